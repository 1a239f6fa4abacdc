"""One page that tells the whole story of one behaviour."""

from interp_toolkit.report.explaining import Report, Said, explain

__all__ = ["Report", "Said", "explain"]
