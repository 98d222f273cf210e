"""Result records + published numbers → tables.

A number stands next to another only when both were computed on the same test images: every table is about
one data set, one size and one SHA-256 of the test set. Nothing here needs torch.
"""

from chainrule.reporting.tables.certificates import Verdict, read_verdict
from chainrule.reporting.tables.finding import failure, find, standing
from chainrule.reporting.tables.formats import FORMATS, check_format, check_published, render, tabulate
from chainrule.reporting.tables.grids import Block, Column, Grid, make_grid
from chainrule.reporting.tables.published import Published, neighbours, published_for, published_numbers
from chainrule.reporting.tables.records import IGNORED, SCHEMA, Estimate, Record, parse, read_record, settings
from chainrule.reporting.tables.rows import Row, differing, group, label
from chainrule.reporting.tables.sections import Section, notes, sections
from chainrule.reporting.tables.single import summary

__all__ = [
    "FORMATS",
    "IGNORED",
    "SCHEMA",
    "Block",
    "Column",
    "Estimate",
    "Grid",
    "Published",
    "Record",
    "Row",
    "Section",
    "Verdict",
    "check_format",
    "check_published",
    "differing",
    "failure",
    "find",
    "group",
    "label",
    "make_grid",
    "neighbours",
    "notes",
    "parse",
    "published_for",
    "published_numbers",
    "read_record",
    "read_verdict",
    "render",
    "sections",
    "settings",
    "standing",
    "summary",
    "tabulate",
]
