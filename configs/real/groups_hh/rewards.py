"""A reward model of both halves of HH: Bradley-Terry, linear in MiniLM's sentence embeddings of reply and last turn.

    python -m configs.real.groups_hh.rewards runs/groups_hh/data

fits it on pairs.jsonl and says how often it agrees with people on test_pairs.jsonl. The weights go to
runs/groups_hh/reward.pt, where `judged` reads them.
"""

import functools
import sys
from pathlib import Path

import torch
from torch.nn.functional import logsigmoid, normalize

from configs.real.offline_hh.rewards import encoder
from keel.data.load import read_pairs
from keel.data.records import PreferencePair, Prompt
from keel.functional.resampling import bootstrap_interval
from keel.rng import stream

WEIGHTS = Path("runs/groups_hh/reward.pt")
DECAY = 1e-3
SCALE = 20.0
"""Products of two unit vectors of 384 numbers are about this much smaller than the vectors."""


def embed(texts: list[str], batch: int = 32) -> torch.Tensor:
    """Mean of MiniLM's last states over at most 96 tokens, of length 1; texts of like length together."""
    tokenizer, model = encoder()
    order, found = sorted(range(len(texts)), key=lambda i: len(texts[i])), torch.zeros(len(texts), 384)
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        inputs = tokenizer([texts[i] or " " for i in some], truncation=True, max_length=96, padding=True,
                           return_tensors="pt")
        with torch.no_grad():
            states, mask = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
        found[some] = normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    return found


def features(prompts: torch.Tensor, replies: torch.Tensor) -> torch.Tensor:
    """The reply, and how it goes with the last turn."""
    return torch.cat([replies, SCALE * prompts * replies], dim=1)


@functools.lru_cache(maxsize=4096)
def embedded(text: str) -> torch.Tensor:
    return embed([text])


@functools.cache
def weights() -> torch.Tensor:
    return torch.load(WEIGHTS)


def judged(prompt: Prompt, text: str, ended: bool) -> float:
    """Log-odds by which people prefer this reply, up to a constant."""
    return float(features(embedded(prompt.messages[-1].content), embedded(text)) @ weights())


def differences(pairs: list[PreferencePair]) -> torch.Tensor:
    """Features of the chosen reply less those of the rejected one."""
    asked, chosen, rejected = (embed(texts) for texts in zip(*(
        (pair.prompt.messages[-1].content, pair.chosen, pair.rejected) for pair in pairs), strict=True))
    return features(asked, chosen) - features(asked, rejected)


def fitted(x: torch.Tensor) -> torch.Tensor:
    """Weights of the highest likelihood, less DECAY times their squares."""
    w = torch.zeros(x.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = -logsigmoid(x @ w).mean() + DECAY * w.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return w.detach()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    train, test = (read_pairs([folder / f"{name}.jsonl"])[0] for name in ("pairs", "test_pairs"))
    w = fitted(differences(train))
    torch.save(w, WEIGHTS)
    margins = differences(test) @ w
    longer = torch.tensor([float(len(pair.chosen) - len(pair.rejected)) for pair in test])
    for subset in ("helpful-base", "harmless-base", None):
        rows = [i for i, pair in enumerate(test) if subset in (None, pair.prompt.meta["subset"])]
        for name, x in (("reward", margins[rows]), ("the longer one", longer[rows])):
            right = (x > 0).float() + 0.5 * (x == 0).float()
            mean, low, high = bootstrap_interval(right, generator=stream(0, "groups_hh", name))
            print(f"{subset or 'both'}: {name} {mean:.3f} [{low:.3f}, {high:.3f}] on {len(rows)} pairs")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
