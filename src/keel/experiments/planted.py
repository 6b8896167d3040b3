"""Pairs of the town whose wrong labels are planted: exactly so many, anywhere, whatever the gold scores say."""

from dataclasses import replace
from pathlib import Path

from keel.data.records import PreferencePair
from keel.data.write import write_records
from keel.rng import shuffled
from keel.sandbox.annotators import Annotator, pairs
from keel.sandbox.world import World

__all__ = ["planted_pairs", "write_pairs"]

CAREFUL = Annotator("gold", sharpness=1e6, careless=0.0)
SPARE = 2  # drawn for each pair that is kept: responses of equal gold score have no right label


def planted_pairs(n: int, noise: float, seed: int, *, split: str = "train", off_topic: float = 0.15,
                  dialect: bool = False) -> list[PreferencePair]:
    """Pairs of responses whose gold scores differ, labelled by them; then a share of the labels is turned over.

    Args:
        n: pairs.
        noise: share of wrong labels.
        seed: fixes the questions, the responses and which labels are wrong.
        split: train, validation or test.
        off_topic: share of pairs where one response answers another question.
        dialect: ask in the wordings that no training file has.
    """
    drawn = pairs(World(0), SPARE * n, "planted", seed, annotators=(CAREFUL,), off_topic=off_topic, split=split,
                  dialect=dialect)
    kept = [pair for pair in drawn if pair.prompt.truth["gold_gap"] != 0][:n]
    assert len(kept) == n, "more than half of the pairs have equal gold scores"
    wrong = set(shuffled(n, seed, "planted", split)[: round(noise * n)])
    return [turned(pair) if i in wrong else pair for i, pair in enumerate(kept)]


def turned(pair: PreferencePair) -> PreferencePair:
    """The same pair with a wrong label."""
    truth = {**pair.prompt.truth, "gold_gap": -pair.prompt.truth["gold_gap"], "wrong_label": True}
    return replace(pair, prompt=replace(pair.prompt, truth=truth), chosen=pair.rejected, rejected=pair.chosen)


def write_pairs(file: Path, found: list[PreferencePair]) -> None:
    """Write them, unless the file is there already."""
    if not file.exists():
        write_records(found, file)
