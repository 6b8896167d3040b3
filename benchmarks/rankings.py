"""Rankings and grades from the town, as files: `python benchmarks/rankings.py FOLDER [N]`.

N prompts (default 2,000) with four responses each, of independent qualities, and 400 of the test split. A ranking is
drawn from Plackett-Luce with four times the gold score, the sharpness of the town's annotators. The grades of a
response are the parts of its gold score (content, length, repeat; their sum is the gold score), a tenth of them absent.
"""

import json
import math
import sys
from itertools import combinations
from pathlib import Path

from keel.rng import python_stream
from keel.sandbox import World, score, write

SHARPNESS, RESPONSES, ABSENT = 4.0, 4, 0.1
N_TEST = 400


def main(folder: Path, n: int) -> None:
    """Write four files: rankings and grades, to train and to test."""
    folder.mkdir(parents=True)
    world = World(0)
    for split, size in (("train", n), ("test", N_TEST)):
        rankings, grades, right = [], [], []
        for number, prompt in enumerate(world.prompts(size, "rankings", split=split)):
            rng = python_stream(0, "rankings", split, number)
            written = dict.fromkeys(write(world, prompt, rng.random(), rng).strip() for _ in range(20))
            texts = list(written)[:RESPONSES]
            asked = {"prompt": [vars(turn) for turn in prompt.messages], "meta": {"domain": prompt.meta["domain"]}}
            found = [score(prompt, text) for text in texts]
            # The largest of scores with Gumbel noise is a draw from their softmax, and so on down the list.
            noisy = [SHARPNESS * one.total - math.log(-math.log(rng.random())) for one in found]
            if len(texts) > 1:
                rankings.append(asked | {"id": prompt.id, "responses": texts, "scores": noisy})
            right += [(found[i].total > found[j].total) == (noisy[i] > noisy[j])
                      for i, j in combinations(range(len(texts)), 2) if found[i].total != found[j].total]
            for i, (text, one) in enumerate(zip(texts, found, strict=True)):
                parts = {"length": one.parts["length"], "repeat": one.parts["repeat"]}
                parts["content"] = one.total - sum(parts.values())
                there = {name: None if rng.random() < ABSENT else part for name, part in parts.items()}
                if any(part is not None for part in there.values()):
                    grades.append(asked | {"id": f"{prompt.id}-{i}", "response": text} | there)
        for name, rows in (("rankings", rankings), ("grades", grades)):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}-{split}.jsonl").write_text(lines, encoding="utf-8")
            print(f"{name}-{split}.jsonl: {len(rows)} rows")
        print(f"the gold score puts {sum(right) / len(right):.3f} of the pairs right that it does not tie")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2000)
