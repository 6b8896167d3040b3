"""Denoising by strength from end to end on pairs whose true preference is known; section 12 of the spec, last item.

Linear reward models on 50 Gaussian features, 2000 pairs of which a fifth are labelled the wrong way round, ten voters
of one shuffled epoch, students of five epochs, accuracy on clean pairs; five seeds at once.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from keel.functional.preference import bradley_terry
from keel.functional.strength import lowest, votes

N_SEEDS, N_VOTERS, N_PAIRS, N_FEATURES = 5, 10, 2000, 50
WRONG, FLIPPED = 0.2, 0.1
LEARNING_RATE, BATCH = 0.05, 32


@dataclass(frozen=True)
class Study:
    """What five seeds gave, one number per seed."""

    precision: Tensor
    recall: Tensor
    baseline: Tensor
    flipped: Tensor


def trained(chosen: Tensor, rejected: Tensor, *, epochs: int, seed: int) -> Tensor:
    """Weights [M D] of M linear models by plain SGD, each on its own pairs [M N D] in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.zeros(len(chosen), N_FEATURES, requires_grad=True)
    model = torch.arange(len(chosen))[:, None]
    for _ in range(epochs):
        order = torch.rand(chosen.shape[:2], generator=generator).argsort(1)
        for batch in order.split(BATCH, dim=1):
            scores = [(side[model, batch] * weights[:, None]).sum(2).flatten() for side in (chosen, rejected)]
            loss, _ = bradley_terry(*scores)
            (gradient,) = torch.autograd.grad(loss.sum() / batch.shape[1], weights)
            with torch.no_grad():
                weights -= LEARNING_RATE * gradient
    return weights.detach()


@pytest.fixture(scope="module")
def study() -> Study:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(N_SEEDS, N_FEATURES, 1, generator=generator)

    def pairs(wrong: Tensor) -> tuple[Tensor, Tensor]:
        """The better side of Gaussian pairs and the other one, the other way round where that is True."""
        first, second = torch.randn(2, *wrong.shape, N_FEATURES, generator=generator)
        turned = (first @ truth < second @ truth) ^ wrong[..., None]
        return torch.where(turned, second, first), torch.where(turned, first, second)

    wrong = torch.rand(N_SEEDS, N_PAIRS, generator=generator).argsort(1) < WRONG * N_PAIRS
    chosen, rejected = pairs(wrong)
    clean, worse = pairs(torch.zeros_like(wrong))
    voters = trained(*(side.repeat_interleave(N_VOTERS, 0) for side in (chosen, rejected)), epochs=1, seed=1)
    voters = voters.view(N_SEEDS, N_VOTERS, N_FEATURES)
    strength = [votes(voters[s] @ chosen[s].T, voters[s] @ rejected[s].T).mean for s in range(N_SEEDS)]
    suspect = torch.stack([mean < 0 for mean in strength])
    turned = torch.stack([lowest(mean, share=FLIPPED) & (mean < 0) for mean in strength])[..., None]
    students = trained(torch.cat([chosen, torch.where(turned, rejected, chosen)]),
                       torch.cat([rejected, torch.where(turned, chosen, rejected)]), epochs=5, seed=2)
    better = [((clean - worse) @ part[..., None] > 0).double().mean((1, 2)) for part in students.split(N_SEEDS)]
    found = (suspect & wrong).sum(1).double()
    return Study(found / suspect.sum(1), found / wrong.sum(1), *better)


def test_the_voters_find_most_wrong_labels_and_accuse_few_right_ones(study: Study) -> None:
    """A strength below zero, in every seed."""
    assert bool((study.precision > 0.65).all())
    assert bool((study.recall > 0.8).all())


def test_flipping_the_weakest_tenth_makes_a_better_student(study: Study) -> None:
    """On the mean of five seeds, on clean pairs."""
    assert study.flipped.mean() > study.baseline.mean()
