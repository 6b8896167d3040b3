"""Files for the offline replication on HH prompts.

    python configs/real/offline_hh/make.py FOLDER_OF_HH OUT         everything that depends on no run
    python configs/real/offline_hh/make.py ADVANTAGES.jsonl OUT     pairs for DPO, once a run has said what is worth what

Every prompt has two responses: the one that people preferred, and one that answers another prompt (`meta.bad`). Only
the helpful subsets are used, so that nothing imitates a harmful turn. The release has no training split: a fifth of the
prompts of the test files is held out as test here, and the dev file's prompts are validation. Rows on the authors'
exclusion list, which are those that the dev file repeats, are left out, and so are replies that end with ":".
"""

import json
import sys
from pathlib import Path

from keel.data.load import read_pairs
from keel.data.records import PreferencePair
from keel.rng import digest, shuffled

SUBSETS = ("helpful-base", "helpful-online")
TEST_SHARE = 0.2


def read(files: list[Path]) -> list[PreferencePair]:
    """The pairs that are used, one for each prompt."""
    found = [pair for pair in read_pairs(files, on_bad_record="skip")[0]
             if pair.prompt.meta["subset"] in SUBSETS and not pair.prompt.meta.get("eval_excluded")
             and not pair.chosen.endswith(":")]
    return list({pair.prompt.messages: pair for pair in reversed(found)}.values())[::-1]


def rows(pairs: list[PreferencePair], name: str) -> list[dict]:
    """Two responses to each prompt: its own, and the next one in a shuffled circle of all prompts."""
    order, made = shuffled(len(pairs), 0, "offline_hh", name), []
    other = {i: order[(place + 1) % len(order)] for place, i in enumerate(order)}
    for i, pair in enumerate(pairs):
        asked = [{"role": turn.role, "content": turn.content} for turn in pair.prompt.messages]
        for kind, text in (("own", pair.chosen), ("other", pairs[other[i]].chosen)):
            made.append({"id": f"{pair.id}/{kind}", "prompt": asked, "completion": text,
                         "meta": {"bad": kind == "other", "subset": pair.prompt.meta["subset"]}})
    return made


def preferences(told: Path, advantages: Path) -> list[dict]:
    """Pairs for DPO: the response of the higher training reward is the chosen one; equal ones are left out."""
    totals = {row["id"]: row["total"] for row in map(json.loads, advantages.open())}
    made = []
    lines = [json.loads(line) for line in told.open()]
    for own, other in zip(lines[::2], lines[1::2], strict=True):
        gap = totals.get(own["id"], 0.0) - totals.get(other["id"], 0.0)
        if own["id"] in totals and other["id"] in totals and gap:
            good, bad = (own, other) if gap > 0 else (other, own)
            made.append({"id": own["id"].rpartition("/")[0], "prompt": own["prompt"], "chosen": good["completion"],
                         "rejected": bad["completion"], "meta": {"turned": gap < 0}})
    return made


def write(file: Path, made: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    print(f"{file}: {len(made)} rows")


def main(source: Path, out: Path) -> None:
    """Write what does not depend on a run; then, once there are advantages, the pairs for DPO."""
    out.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        write(out / "pairs.jsonl", preferences(out / "train.jsonl", source))
        return
    every = read([source / f"hh_test.{name.replace('-', '_')}.jsonl.gz" for name in SUBSETS])
    held_out = [pair for pair in every if digest(0, "offline_hh test", pair.id) % 1000 < 1000 * TEST_SHARE]
    train = [pair for pair in every if pair not in held_out]
    validation = read([source / "hh_dev.sampled_dev.jsonl.gz"])
    for name, pairs in (("train", train), ("validation", validation), ("test", held_out)):
        write(out / f"{name}.jsonl", rows(pairs, name))
    write(out / "questions.jsonl", rows(held_out, "test")[::2])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
