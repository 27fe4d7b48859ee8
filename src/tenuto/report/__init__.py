"""Records in, one self-contained HTML file out. It reads records and never sees a model."""

from tenuto.report.page import Report, write_report

__all__ = ["Report", "write_report"]
