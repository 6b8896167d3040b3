"""How long things take; kept out of metrics.jsonl, which is equal from run to run."""

import time
from collections.abc import Mapping

__all__ = ["Clock"]


class Clock:
    """Seconds since the last lap, by phase."""

    def __init__(self) -> None:
        self._start = self._mark = time.perf_counter()
        self._phases: dict[str, float] = {}

    def phase(self, name: str) -> None:
        """Book the time since the last mark under a name."""
        now = time.perf_counter()
        self._phases[f"{name}_s"] = self._phases.get(f"{name}_s", 0.0) + now - self._mark
        self._mark = now

    def lap(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Seconds of this lap, of its phases, and each count per second; then start the next lap."""
        now = time.perf_counter()
        seconds = now - self._start
        rates = {f"{name}_per_s": count / max(seconds, 1e-9) for name, count in counts.items()}
        result = {"seconds": seconds, **self._phases, **rates}
        self._start = self._mark = now
        self._phases = {}
        return result
