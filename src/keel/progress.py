"""A progress bar with rate and time left; silent where nobody watches."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Bar", "bar"]


class Bar:
    """What a loop tells its reader: how far it is, and one line of numbers."""

    def __init__(self, shown: Any, task: Any) -> None:
        self._shown, self._task = shown, task

    def advance(self, note: str = "", n: int = 1) -> None:
        if self._shown is not None:
            self._shown.update(self._task, advance=n, note=note)

    def reach(self, n: int, note: str = "") -> None:
        """Say how many are done in all."""
        if self._shown is not None:
            self._shown.update(self._task, completed=n, note=note)


@contextmanager
def bar(label: str, total: int, done: int = 0) -> Iterator[Bar]:
    """Show a bar on stderr while the block runs; nothing when stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield Bar(None, None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=Console(stderr=True)) as shown:
        yield Bar(shown, shown.add_task(label, total=total, completed=done, note=""))
