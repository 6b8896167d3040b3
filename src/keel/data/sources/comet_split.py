"""`keel data comet`: ATOMIC-10x and the test file of ATOMIC-2020 to files for training, validation and test."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from keel.config import Config
from keel.data.load import OnBadRecord, iter_demonstrations
from keel.data.problems import Tally
from keel.data.records import Demonstration
from keel.data.sources.comet import CRITIC, RELATIONS
from keel.data.write import write_records
from keel.errors import DataError
from keel.rng import python_stream

__all__ = ["CometConfig", "run"]


class CometConfig(Config):
    """Everything `keel data comet` reads."""

    path: str = Field(description="ATOMIC10X.jsonl")
    test: str = Field(description="test.tsv of ATOMIC-2020, below a line with the names head, relation and tail")
    output: str = Field(description="folder for train.jsonl, validation.jsonl and test.jsonl, which must not exist")
    validation: int = Field(10_000, ge=1, description="inferences drawn of the validation part")
    on_bad_record: OnBadRecord = Field("stop", description="stop and list bad rows, or leave them out")
    seed: int = Field(0, ge=0, description="which inferences are drawn for validation")


def run(cfg: CometConfig) -> dict[str, int]:
    """Split by the file's own column `split`; the numbers of records by file.

    Of several tails of one head and relation the test keeps the one that the critic likes best, where the rows have
    its probability, and the first one otherwise. Rows of the seven relations only; the test part of ATOMIC-10x stays
    unused.

    Raises:
        DataError: bad rows, an output exists, or a part has no row.
    """
    from rich.console import Console

    sizes = Counter(str(one.prompt.meta.get("split")) for one in _of(cfg.path, cfg.on_bad_record))
    if not sizes["train"] or not sizes["val"]:
        raise DataError(f"no rows to learn from: the column `split` has {dict(sizes)}", where=cfg.path,
                        remedy="Rows of ATOMIC-10x say split = train, val or test; both train and val are needed.")
    n = min(cfg.validation, sizes["val"])
    drawn = sorted(python_stream(cfg.seed, "comet", "validation").sample(range(sizes["val"]), n))
    held_out = frozenset(drawn)
    tests = _best_tails(_of(cfg.test, cfg.on_bad_record), cfg.test)
    parts = {"train": _part(cfg, "train"), "test": iter(tests),
             "validation": (one for i, one in enumerate(_part(cfg, "val")) if i in held_out)}
    written = {name: write_records(records, Path(cfg.output) / f"{name}.jsonl") for name, records in parts.items()}
    Console(highlight=False, soft_wrap=True).print(
        f"{cfg.output}: {', '.join(f'{name} {number}' for name, number in written.items())}; unused: "
        f"{sizes['test']} of the test part of ATOMIC-10x", markup=False)
    return written


def _of(path: str, on_bad_record: OnBadRecord) -> Iterator[Demonstration]:
    """The rows of the seven relations; at their end the complaint about those that cannot be read."""
    tally = Tally()
    # Rows have no ids of their own; remembering millions of made ones would only take memory.
    yield from (one for one in iter_demonstrations(path, tally, as_text=True, unique_ids=False)
                if one.prompt.meta.get("relation") in RELATIONS)
    if tally.report.n_dropped and on_bad_record == "stop":
        raise tally.report.error(path)


def _part(cfg: CometConfig, name: str) -> Iterator[Demonstration]:
    return (one for one in _of(cfg.path, cfg.on_bad_record) if one.prompt.meta.get("split") == name)


def _best_tails(rows: Iterator[Demonstration], path: str) -> list[Demonstration]:
    best: dict[str, Demonstration] = {}
    for one in rows:
        before = best.setdefault(str(one.prompt.text), one)
        if _liking(one) > _liking(before):
            best[str(one.prompt.text)] = one
    if not best:
        raise DataError("no row of the seven relations of ATOMIC-10x", where=path,
                        remedy=f"The relations are {', '.join(RELATIONS)}.")
    return list(best.values())


def _liking(one: Demonstration) -> float:
    """The critic's probability; below any where there is none."""
    found = one.prompt.meta.get("rewards", {}).get(CRITIC)
    return float(found) if isinstance(found, int | float) else -1.0
