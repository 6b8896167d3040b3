"""`keel report RUN... --out FILE`."""

from pathlib import Path

from pydantic import Field

from keel.config import Config
from keel.report.page import build

__all__ = ["ReportConfig", "run"]


class ReportConfig(Config):
    """Everything `keel report` reads."""

    runs: tuple[Path, ...] = Field(description="run folders, or a demo folder; several are laid side by side")
    out: Path = Field(Path("report.html"), description="the HTML file to write; one file, opens offline")


def run(cfg: ReportConfig) -> Path:
    """Write the report and return its path."""
    return build(list(cfg.runs), cfg.out)
