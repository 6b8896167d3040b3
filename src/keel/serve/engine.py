"""One thread runs the model: requests join the desk and leave it while others are being written.

Nothing computed for one request is used for another: there is no cache of prefixes, because the keys and values of a
capped prompt differ from those of the same prompt uncapped.
"""

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from keel.data.render import Template
from keel.models.forward import autocasting
from keel.models.load import device_of
from keel.persona.rows import Reading, RowControl, RowSettings
from keel.rollout.desk import Desk, Draft
from keel.serve.speech import Speech

__all__ = ["Engine", "Event", "Job"]

READ_AT_ONCE = 8192
"""Padded prompt tokens of one pass: what runs already has to wait for it."""

Problem = Literal["late", "closing", "broken", "not finite"]


@dataclass(frozen=True)
class Event:
    """News of one choice of a request.

    Attributes:
        choice: its number in the request.
        text: certain from now on.
        tokens: written since the last event, each with its log-probability.
        prompt: projections of the prompt's tokens, in the first event of a watched row.
        readings: place in the response, projection, and whether a bound moved it, of tokens fed since the last event.
        end: why it is over: it ended or a stop string came, it is as long as allowed, or a problem.
        what: more about a problem.
    """

    choice: int
    text: str = ""
    tokens: tuple[tuple[int, float], ...] = ()
    prompt: tuple[float, ...] = ()
    readings: tuple[tuple[int, float, bool], ...] = ()
    end: Literal["stop", "length"] | Problem | None = None
    what: str = ""


@dataclass(eq=False)
class Job:
    """One choice of a request.

    Attributes:
        choice: its number in the request.
        draft: what is to be written; its number is given when a row is free.
        speech: its text.
        settings: of the axis.
        tell: takes events, in the engine's thread; a RuntimeError says that nobody listens any more.
        timeout_s: seconds from now on after which it is given up.
    """

    choice: int
    draft: Draft
    speech: Speech
    settings: RowSettings
    tell: Callable[[Event], object]
    timeout_s: float
    cancelled: bool = False
    began: float = field(default_factory=time.monotonic)


class Engine:
    """The thread, its desk and its queue.

    Args:
        policy: a causal language model; nobody else may run it.
        template: of its tokenizer.
        slots: choices written at the same time.
        capacity: most tokens of a prompt and its response.
        queue: choices that may wait.
        control: the axis, with at least as many rows as slots; none: there is none.
    """

    def __init__(self, policy: nn.Module, template: Template, *, slots: int, capacity: int, queue: int,
                 control: RowControl | None = None) -> None:
        self.capacity, self.room = capacity, slots + queue
        self._policy, self._template, self._slots, self._control = policy, template, slots, control
        self._desk = self._new_desk()
        self._rows = list(range(slots))
        self._jobs: dict[Draft, Job] = {}
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closes: float | None = None
        self._thread = threading.Thread(target=self._work, name="keel-serve-model", daemon=True)

    @property
    def counts(self) -> tuple[int, int]:
        """Choices that are being written, and that wait."""
        return len(self._jobs), len(self._waiting)

    @property
    def closing(self) -> bool:
        """True where nothing new is taken: it is to end, or its thread has ended."""
        return self._closes is not None or not self.alive

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        """From now on requests are answered."""
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> bool:
        """Queue all choices of a request; False where there is no room for them."""
        with self._changed:
            if self.closing or len(self._jobs) + len(self._waiting) + len(jobs) > self.room:
                return False
            self._waiting.extend(jobs)
            self._changed.notify()
        return True

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Nobody wants these any more: they leave before the next token."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
            self._changed.notify()

    def close(self, grace_s: float) -> None:
        """Take nothing new; what is not done after `grace_s` is told so, and then the thread ends."""
        with self._changed:
            if self._closes is None:
                self._closes = time.monotonic() + grace_s
            self._changed.notify()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to end."""
        self._thread.join(timeout_s)

    def _new_desk(self) -> Desk:
        return Desk(self._policy, n_slots=self._slots, capacity=self.capacity, stop_ids=self._template.stop_ids,
                    pad_id=self._template.pad_id)

    def _work(self) -> None:
        # Around all passes: else autocast would convert every weight again for each.
        with torch.no_grad(), autocasting(self._policy, device_of(self._policy).type), \
                self._control or contextlib.nullcontext():
            while self._turn():
                pass

    def _turn(self) -> bool:
        """Read new prompts where there are any, and write one token of everything that runs."""
        with self._changed:
            while not self._waiting and not self._jobs and self._closes is None:
                self._changed.wait()
            self._sweep()
            new = self._admitted()
            if self._closes is not None and not self._jobs and not new:
                return False
        try:
            if new:
                self._heard(new, lambda: self._join(new))
            if self._jobs:
                self._heard(list(self._jobs.values()), self._desk.step)
        except Exception as error:  # whatever broke, those who wait are told, and the next ones get a fresh desk
            self._broken(error)
        return True

    def _sweep(self) -> None:
        now = time.monotonic()
        over = self._closes is not None and now > self._closes
        for job in [*self._jobs.values(), *self._waiting]:
            if over or job.cancelled or now > job.began + job.timeout_s:
                self._finish(job, Event(job.choice, end="closing" if over else "late"))
        self._desk.clear()

    def _admitted(self) -> list[Job]:
        """The next ones that fit, in the order of their coming."""
        new: list[Job] = []
        longest = 0
        while self._waiting and len(new) < self._desk.free:
            longest = max(longest, len(self._waiting[0].draft.prompt))
            if new and longest * (len(new) + 1) > READ_AT_ONCE:
                break
            job = self._waiting.popleft()
            job.draft.number = self._rows.pop()
            self._jobs[job.draft] = job
            new.append(job)
        return new

    def _join(self, new: Sequence[Job]) -> None:
        if self._control is not None:
            for job in new:
                self._control.set(job.draft.number, job.settings)
        self._desk.join([job.draft for job in new])

    def _heard(self, jobs: list[Job], run: Callable[[], None]) -> None:
        """One pass, and what it means for each of these."""
        run()
        readings: dict[int, list[Reading]] = {}
        for reading in self._control.read() if self._control is not None else ():
            readings.setdefault(reading.row, []).append(reading)
        for job in jobs:
            self._told(job, readings.get(job.draft.number, []))

    def _told(self, job: Job, readings: list[Reading]) -> None:
        draft, n_prompt = job.draft, len(job.draft.prompt)
        token, logprob = draft.written[-1], draft.logprobs[-1]
        prompt = tuple(reading.projection for reading in readings if reading.position < n_prompt)
        behind = tuple((reading.position - n_prompt, reading.projection, reading.bounded) for reading in readings
                       if reading.position >= n_prompt)
        if not math.isfinite(logprob):
            return self._finish(job, Event(job.choice, prompt=prompt, readings=behind, end="not finite"))
        text = "" if draft.ended else job.speech.add(token)
        end: Literal["stop", "length"] | None = "stop" if draft.ended or job.speech.stopped else None
        if end is None and draft.finished:
            end = "length"
        if end is not None:
            text += job.speech.close()
            end = "stop" if job.speech.stopped else end
        event = Event(job.choice, text, ((token, logprob),), prompt, behind, end)
        return self._tell(job, event) if end is None else self._finish(job, event)

    def _tell(self, job: Job, event: Event) -> None:
        if job.cancelled:
            return
        try:
            job.tell(event)
        except RuntimeError:  # the loop that listened is closed
            job.cancelled = True

    def _finish(self, job: Job, event: Event) -> None:
        """The row and the slot are free again."""
        job.draft.dropped = True
        if self._jobs.pop(job.draft, None) is None:
            self._waiting.remove(job)
        else:
            self._rows.append(job.draft.number)
            if self._control is not None:
                self._control.forget(job.draft.number)
        self._tell(job, event)

    def _broken(self, error: Exception) -> None:
        what = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
        for job in list(self._jobs.values()):
            self._finish(job, Event(job.choice, end="broken", what=what))
        self._desk = self._new_desk()
