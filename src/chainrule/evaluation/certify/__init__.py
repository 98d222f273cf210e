"""Proof that a run's number is a normalized likelihood of its test images: six checks, and a certificate.

Each check is a function from a subject to figures; what fails one is its first counterexample.
"""

from chainrule.evaluation.certify.certificate import CHECKS, certify
from chainrule.evaluation.certify.show import table
from chainrule.evaluation.certify.subject import Refuted, Subject

__all__ = ["CHECKS", "Refuted", "Subject", "certify", "table"]
