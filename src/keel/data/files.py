"""How a data file is named in the settings of whoever reads one."""

from typing import Literal

from pydantic import Field

from keel.config import Config

__all__ = ["FileConfig"]


class FileConfig(Config):
    """Where records come from, and what happens to those that do not fit."""

    path: str = Field(description="file or folder: JSON, JSONL (plain, .gz, .zst), Parquet or CSV")
    max_length: int = Field(512, ge=8, description="longest row in tokens, prompt and response together")
    too_long: Literal["drop_turns", "truncate_left", "truncate_response", "drop", "error"] = Field(
        "drop_turns", description="what happens to longer rows; every cut is counted and reported")
    on_bad_record: Literal["stop", "skip"] = Field("stop", description="stop and list bad records, or drop and count")
    as_text: bool = Field(False, description="a plain prompt is text to continue, without a chat template")
