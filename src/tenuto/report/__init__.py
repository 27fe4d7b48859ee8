"""Runs in, one self-contained HTML file out. It reads records and never sees a model."""

from tenuto.report.page import write_report

__all__ = ["write_report"]
