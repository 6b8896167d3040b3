"""Files for the groups of HH prompts, helpful and harmless mixed.

    python configs/real/groups_hh/make.py FOLDER_OF_HH OUT

The release has no training split: a fifth of the prompts of helpful-base and harmless-base is held out as test here.
What the model imitates are helpful replies alone, never a turn of the harmless half. Rows on the authors' exclusion
list are left out, and so are replies that end with ":", which are cut off.
"""

import json
import sys
from pathlib import Path

from keel.data.load import read_pairs
from keel.data.records import PreferencePair
from keel.rng import digest, shuffled

SUBSETS = ("helpful-base", "harmless-base", "helpful-online")
MIXED = SUBSETS[:2]
TEST_SHARE = 0.2


def read(folder: Path) -> list[PreferencePair]:
    """The pairs that are used, one for each prompt."""
    files = [folder / f"hh_test.{name.replace('-', '_')}.jsonl.gz" for name in SUBSETS]
    found = [pair for pair in read_pairs(files, on_bad_record="skip")[0] if not pair.prompt.meta.get("eval_excluded")
             and not pair.chosen.endswith(":") and not pair.rejected.endswith(":")]
    return list({pair.prompt.messages: pair for pair in reversed(found)}.values())[::-1]


def asked(pair: PreferencePair) -> dict:
    return {"id": pair.id, "prompt": [{"role": turn.role, "content": turn.content} for turn in pair.prompt.messages],
            "meta": {"subset": pair.prompt.meta["subset"]}}


def write(file: Path, made: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    counts = {name: sum(row["meta"]["subset"] == name for row in made) for name in SUBSETS}
    print(f"{file}: {len(made)} rows, " + ", ".join(f"{n} {name}" for name, n in counts.items() if n))


def main(source: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    pairs = read(source)
    pairs = [pairs[i] for i in shuffled(len(pairs), 0, "groups_hh")]
    test = [pair for pair in pairs if pair.prompt.meta["subset"] in MIXED
            and digest(0, "groups_hh test", pair.id) % 1000 < 1000 * TEST_SHARE]
    held_out = {pair.id for pair in test}
    train = [pair for pair in pairs if pair.id not in held_out]
    mixed = [pair for pair in train if pair.prompt.meta["subset"] in MIXED]
    helpful = [pair for pair in train if pair.prompt.meta["subset"] != "harmless-base"]
    for name, found in (("pairs", train), ("test_pairs", test)):
        write(out / f"{name}.jsonl", [asked(pair) | {"chosen": pair.chosen, "rejected": pair.rejected}
                                      for pair in found])
    for name, found in (("prompts", mixed), ("test_prompts", test)):
        write(out / f"{name}.jsonl", [asked(pair) for pair in found])
    write(out / "demonstrations.jsonl", [asked(pair) | {"completion": pair.chosen} for pair in helpful])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
