"""Parts of the labelled solutions: `python configs/real/process_step_labels_split.py ../shared/data/step_labels OUT`.

test.jsonl holds what the release calls test. The rest is parted by question: a fifth, by digest, to choose settings and
the threshold on (dev.jsonl), and what is learned from (fit.jsonl).
"""

import gzip
import json
import sys
from hashlib import sha256
from pathlib import Path


def part(row: dict) -> str:
    """The part that all solutions of a question are in."""
    question = row["prompt"][-1]["content"]
    return "test" if row["split"] == "test" else "fit" if int(sha256(question.encode()).hexdigest(), 16) % 5 else "dev"


def main(source: Path, out: Path) -> None:
    """Write the three files."""
    out.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[str]] = {"fit": [], "dev": [], "test": []}
    for path in sorted(source.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                parts[part(json.loads(line))].append(line)
    for name, found in parts.items():
        (out / f"{name}.jsonl").write_text("".join(found), encoding="utf-8")
        print(f"{out / name}.jsonl: {len(found)} solutions")


main(Path(sys.argv[1]), Path(sys.argv[2]))
