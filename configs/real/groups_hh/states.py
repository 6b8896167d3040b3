"""What the state at the last token of a prompt says: `python -m configs.real.groups_hh.states runs/groups_hh`.

How far the prompts differ there, how far a head with random weights tells them apart, and how often a linear classifier
that is trained for it names the half that a prompt is from.
"""

import sys
from pathlib import Path

import torch
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from keel.data.load import read_prompts
from keel.data.render import render_prompts, template
from keel.models.load import ModelConfig, causal_lm, load_tokenizer
from keel.rng import stream

N_LEARN, N_TEST, LONGEST = 700, 300, 72


def states(home: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The last hidden state of the fine-tuned model before its answer; whether the prompt is of the harmless half."""
    path = str(home / "sft/model")
    words, model = template(load_tokenizer(path)), causal_lm(ModelConfig(path=path)).eval()
    prompts = read_prompts([home / "data/prompts.jsonl"])[0]
    rows = render_prompts(words, prompts, LONGEST)[0][: N_LEARN + N_TEST]
    with torch.no_grad():
        found = torch.stack([model.model(torch.tensor([row.ids])).last_hidden_state[0, -1].float() for row in rows])
    return found, torch.tensor([row.record.meta["subset"] == "harmless-base" for row in rows]).float()


def main(home: Path) -> None:
    torch.set_num_threads(1)
    found, harmless = states(home)
    apart = found - found.mean(0)
    print(f"norm of the mean {found.mean(0).norm():.1f}, deviation {apart.norm(dim=1).square().mean().sqrt():.2f}")
    width = found.shape[1]
    head = torch.randn(2, width, generator=stream(0, "group head")) / width**0.5
    p = (found @ head.T).softmax(1)[:, 0]
    print(f"memberships of a head with random weights: {p.mean():.3f}, standard deviation {p.std():.4f}")
    x, w = apart / found.std(0), torch.zeros(width, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = cross_entropy(x[:N_LEARN] @ w, harmless[:N_LEARN]) + 0.01 * w.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    right = ((x @ w > 0) == (harmless > 0)).float()
    print(f"half named rightly: {right[:N_LEARN].mean():.3f} of {N_LEARN} it learned from, "
          f"{right[N_LEARN:].mean():.3f} of {N_TEST} others, of which {harmless[N_LEARN:].mean():.3f} are harmless")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
