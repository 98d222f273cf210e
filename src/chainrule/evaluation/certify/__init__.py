"""Proof that a run's number is a normalized likelihood of its test images: six checks, and a certificate.

Each check is a function from a context to figures; what fails one is its first counterexample.
"""

from chainrule.evaluation.certify.certificate import CHECKS, certify
from chainrule.evaluation.certify.context import CheckFailed, Context
from chainrule.evaluation.certify.table import table

__all__ = ["CHECKS", "CheckFailed", "Context", "certify", "table"]
