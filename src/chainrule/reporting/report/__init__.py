"""``chainrule report``: everything that finished runs say, as one HTML file that needs no network.

``gather`` reads run directories, ``charts`` turns numbers into coordinates, ``page`` arranges both, and
``report.html.j2`` is what a browser sees. Nothing here needs torch.
"""

from chainrule.reporting.report.page import write_report

__all__ = ["write_report"]
