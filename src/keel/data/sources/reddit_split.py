"""`keel data reddit`: scored comments to training files of upvoted and downvoted replies and shared held-out files."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from keel.config import Config
from keel.data.chat import tokenizer_from
from keel.data.load import iter_demonstrations
from keel.data.problems import Tally
from keel.data.records import Demonstration, Message
from keel.data.write import write_records
from keel.errors import DataError
from keel.rng import python_stream

__all__ = ["RedditConfig", "run"]

_URL = re.compile(r"https?://[^\s()<>\[\]]+")
_URL_TOKEN = "<URL>"
_SIGNS = ("positive", "negative")


class RedditConfig(Config):
    """Everything `keel data reddit` reads. The defaults are the numbers of A-LoL's script."""

    positive: str = Field(description="file of upvoted comments (comments_positive.csv)")
    negative: str = Field(description="file of downvoted comments (comments_negative.csv)")
    output: str = Field(description="folder for train_positive, train_negative, validation and test (.jsonl)")
    sampled: int = Field(102_000, ge=1, description="comments drawn of each file before long ones are left out")
    held_out: int = Field(1000, ge=1, description="comments of each file for the test, and as many for validation")
    longest_words: int = Field(100, ge=1, description="words of a comment or of what it answers, at most")
    longest_tokens: int = Field(300, ge=1, description="tokens of both together, each with its end, at most")
    tokenizer: str | None = Field(None, description="folder or public name whose tokens are counted; none: words only")
    seed: int = Field(0, ge=0, description="which comments are drawn, and in which order")


def run(cfg: RedditConfig) -> dict[str, int]:
    """Draw, clean and split; the numbers of records by file.

    Raises:
        DataError: an output exists, too few comments are left, or a file cannot be read.
    """
    from rich.console import Console

    count = None if cfg.tokenizer is None else tokenizer_from(cfg.tokenizer)
    shorter = _fits(cfg, None if count is None else lambda text: len(count(text).input_ids))
    parts: dict[str, list[Demonstration]] = {"test": [], "validation": []}
    n_long = n_repeated = n_unusable = 0
    for sign, path in zip(_SIGNS, (cfg.positive, cfg.negative), strict=True):
        drawn, n_bad = _drawn(path, cfg.sampled, cfg.seed, sign)
        n_unusable += n_bad
        kept = [one for one in drawn if shorter(one)]
        n_long += len(drawn) - len(kept)
        if len(kept) <= 2 * cfg.held_out:
            raise DataError(f"{len(kept)} comments are left, of which held_out = {cfg.held_out} goes to each of test "
                            "and validation", where=path, remedy="Lower held_out, or give a larger file.")
        parts["test"] += kept[:cfg.held_out]
        parts["validation"] += kept[cfg.held_out:2 * cfg.held_out]
        parts[f"train_{sign}"] = kept[2 * cfg.held_out:]
    seen: dict[str, str] = {}
    for name, records in parts.items():
        own = [one for one in records if seen.setdefault(_asked(one), _side(name)) == _side(name)]
        n_repeated, parts[name] = n_repeated + len(records) - len(own), own
    written = {name: write_records(records, Path(cfg.output) / f"{name}.jsonl") for name, records in parts.items()}
    Console(highlight=False, soft_wrap=True).print(
        f"{cfg.output}: {', '.join(f'{name} {n}' for name, n in written.items())}; left out: {n_unusable} of "
        f"the files deleted or unreadable, {n_long} too long, {n_repeated} to a parent held out", markup=False)
    return written


def _drawn(path: str, n: int, seed: int, sign: str) -> tuple[list[Demonstration], int]:
    """At most n usable comments of a file, cleaned, in an order that the seed fixes; and how many were not usable.

    The file is read twice, so that memory holds no more than is drawn.
    """
    tally = Tally()
    n_usable = sum(1 for _ in iter_demonstrations(path, tally))
    if not n_usable:
        first = f"; the first: {tally.report.problems[0]}" if tally.report.problems else ""
        raise DataError(f"no usable comment: {tally.report.summary()}{first}", where=path,
                        remedy="The columns must be those of Kaggle's scored Reddit comments.")
    order = python_stream(seed, "reddit", sign).sample(range(n_usable), min(n, n_usable))
    place = {index: i for i, index in enumerate(order)}
    found = [(place[i], one) for i, one in enumerate(iter_demonstrations(path, Tally())) if i in place]
    return [_cleaned(one, sign) for _, one in sorted(found, key=lambda pair: pair[0])], tally.report.n_dropped


def _cleaned(one: Demonstration, sign: str) -> Demonstration:
    turns = tuple(Message(turn.role, _clean(turn.content)) for turn in one.prompt.messages)
    meta = {name: one.prompt.meta[name] for name in ("score", "parent_score", "subreddit") if name in one.prompt.meta}
    return Demonstration(replace(one.prompt, messages=turns, meta={**meta, "sign": sign}), _clean(one.response))


def _clean(text: str) -> str:
    return _URL.sub(_URL_TOKEN, " ".join(text.split()))


def _fits(cfg: RedditConfig, n_tokens: Callable[[str], int] | None) -> Callable[[Demonstration], bool]:
    def fits(one: Demonstration) -> bool:
        texts = (_asked(one), one.response)
        if any(len(text.split()) > cfg.longest_words for text in texts):
            return False
        # Each of the two ends with one token more.
        return n_tokens is None or sum(n_tokens(text) + 1 for text in texts) <= cfg.longest_tokens

    return fits


def _asked(one: Demonstration) -> str:
    return one.prompt.messages[-1].content


def _side(name: str) -> str:
    return name.partition("_")[0]
