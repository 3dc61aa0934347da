"""One HTML file that shows what a set of runs found."""

from vlm2rec.report.html import write_report

__all__ = ["write_report"]
