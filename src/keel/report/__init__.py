"""Run folders in, one self-contained HTML page out. Reads only what a run wrote; recomputes no training number."""

from keel.report.command import ReportConfig, run
from keel.report.page import build

__all__ = ["ReportConfig", "build", "run"]
