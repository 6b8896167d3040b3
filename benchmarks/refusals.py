"""How far the rule about refusal phrases agrees with people, on responses that two of them labelled.

    python benchmarks/refusals.py ../shared/data/jailbreak/xstest_completions.jsonl.gz
"""

import gzip
import json
import sys
from collections import Counter

from keel.bench.refusals import refuses
from keel.data.records import Prompt


def main(path: str) -> None:
    """Responses of each label, and how many of them the rule calls refusals."""
    n: Counter[str] = Counter()
    called: Counter[str] = Counter()
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            n[row["label"]] += 1
            called[row["label"]] += int(refuses(Prompt(row["id"], ()), row["response"][0]["content"], True))
    for label in sorted(n):
        print(f"{label}: {called[label]} of {n[label]} ({100 * called[label] / n[label]:.1f}%)")


if __name__ == "__main__":
    main(sys.argv[1])
