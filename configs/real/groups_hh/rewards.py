"""A reward model of both halves of HH: Bradley-Terry on MiniLM's embeddings of a reply and of the turn before it.

    python -m configs.real.groups_hh.rewards runs/groups_hh/data

fits it on pairs.jsonl and says how often it agrees with people on test_pairs.jsonl. What makes a good reply may depend
on the turn before it: reply and cosine of the two count once for all turns, and once more by each of the turns' first
principal components. Nothing says which half a pair is from. The weights go to runs/groups_hh/reward.pt.
"""

import functools
import sys
from pathlib import Path

import torch
from torch.nn.functional import logsigmoid, normalize

from configs.real.offline_hh.rewards import encoder
from keel.data.load import read_pairs
from keel.data.records import PreferencePair, Prompt
from keel.functional.statistics import bootstrap_interval
from keel.rng import stream

WEIGHTS = Path("runs/groups_hh/reward.pt")
DECAY, N_COMPONENTS = 3e-3, 4
KIN, TURN = 4.0, 3.0
"""What brings a cosine, and a turn's components, to the size of the embeddings' numbers."""


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


def features(turns: torch.Tensor, replies: torch.Tensor, about: dict[str, torch.Tensor]) -> torch.Tensor:
    """The reply and its cosine with the turn, for all turns and by each of the turn's components."""
    said = torch.cat([replies, KIN * (turns * replies).sum(1, keepdim=True)], dim=1)
    by = torch.cat([torch.ones(len(turns), 1), TURN * (turns - about["mean"]) @ about["components"].T], dim=1)
    return (by[:, :, None] * said[:, None]).flatten(1)


@functools.lru_cache(maxsize=8192)
def embedded(text: str) -> torch.Tensor:
    return embed([text])


@functools.cache
def learned() -> dict[str, torch.Tensor]:
    return torch.load(WEIGHTS)


def judged(prompt: Prompt, text: str, ended: bool) -> float:
    """Log-odds by which people prefer this reply to the average one of the pairs."""
    model = learned()
    return float(features(embedded(prompt.messages[-1].content), embedded(text), model) @ model["weights"]
                 - model["average"])


def told(pairs: list[PreferencePair]) -> dict[str, torch.Tensor]:
    """Embeddings of last turns and replies."""
    return {"turn": embed([pair.prompt.messages[-1].content for pair in pairs]),
            "chosen": embed([pair.chosen for pair in pairs]), "rejected": embed([pair.rejected for pair in pairs])}


def fit(pairs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The reward model of these pairs."""
    mean = pairs["turn"].mean(0)
    components = torch.linalg.svd(pairs["turn"] - mean, full_matrices=False)[2][:N_COMPONENTS]
    about = {"mean": mean, "components": components}
    chosen, rejected = (features(pairs["turn"], pairs[name], about) for name in ("chosen", "rejected"))
    w = fitted(chosen - rejected)
    return about | {"weights": w, "average": ((chosen + rejected) @ w).mean() / 2}


def margins(pairs: dict[str, torch.Tensor], model: dict[str, torch.Tensor]) -> torch.Tensor:
    """Score of the chosen reply less that of the rejected one."""
    return (features(pairs["turn"], pairs["chosen"], model)
            - features(pairs["turn"], pairs["rejected"], model)) @ model["weights"]


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
    model = fit(told(train))
    torch.save(model, WEIGHTS)
    report(test, margins(told(test), model))


def report(test: list[PreferencePair], found: torch.Tensor) -> None:
    """Accuracy on each half, beside that of the rule that the longer reply wins."""
    longer = torch.tensor([float(len(pair.chosen) - len(pair.rejected)) for pair in test])
    for subset in ("helpful-base", "harmless-base", None):
        rows = [i for i, pair in enumerate(test) if subset in (None, pair.prompt.meta["subset"])]
        for name, x in (("reward", found[rows]), ("the longer one", longer[rows])):
            right = (x > 0).float() + 0.5 * (x == 0).float()
            mean, low, high = bootstrap_interval(right, generator=stream(0, "groups_hh", name))
            print(f"{subset or 'both'}: {name} {mean:.3f} [{low:.3f}, {high:.3f}] on {len(rows)} pairs")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
