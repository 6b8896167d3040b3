"""The value estimate of a frozen policy: a head on its states, fitted to the rewards of what it wrote itself.

V(x) is the mean reward of the policy's responses to x. Prompts, not samples, are divided into those that the head
learns from and those that choose its epoch: two responses to one prompt are never on both sides.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from keel.config import Config
from keel.data.collate import budget_batches
from keel.errors import DataError
from keel.functional.statistics import bootstrap_interval, rank_correlation
from keel.models.value_head import ValueHead, finite_values, outside, padded
from keel.rng import seeded, shuffled, stream
from keel.train.step import Learner, OptimizerConfig

__all__ = ["Epoch", "FittedValue", "ValueConfig", "ValueReport", "fit_value", "values_of"]

FEWEST_PROMPTS = 8
POSITIONS = 1 << 15
"""Token positions of one pass of the head over stored states."""


class ValueConfig(Config):
    """V of the reference: what a response is compared with."""

    kind: Literal["learned", "constant", "batch_mean", "sampled"] = Field("learned", description="a head on the "
        "reference's states; mean reward of its samples; of the step's batch; of its samples to the very prompt")
    prompts: int = Field(1000, ge=1, description="validation prompts that the reference answers, at most")
    samples: int = Field(4, ge=1, description="responses per prompt; the released code takes 1")
    held_out_fraction: float = Field(0.2, gt=0, lt=1, description="share of these prompts that choose the epoch, and "
                                     "that the head does not learn from")
    epochs: int = Field(10, ge=1, description="passes of the head over its prompts; the best of them is kept")
    batch: int = Field(16, ge=1, description="prompts per step of the head")
    lr: float = Field(1e-4, gt=0, description="learning rate of the head; released: 1e-5, which hardly moves it")
    heads: int = Field(8, ge=1, description="attention heads; must divide the width of the hidden states")
    dropout: float = Field(0.1, ge=0, lt=1, description="on the states and before the last layer, while it learns")


@dataclass(frozen=True)
class Epoch:
    """How well the head predicts after an epoch; without dropout, per sample. Epoch 0 is the start.

    Attributes:
        train_mse: mean squared error on the prompts it learns from.
        held_out_mse: on the others.
        spearman: rank correlation of V and the reward of the held-out samples.
    """

    number: int
    train_mse: float
    held_out_mse: float
    spearman: float


@dataclass(frozen=True)
class ValueReport:
    """What came of a fit.

    Attributes:
        epochs: from 0 on.
        chosen: number of the epoch with the lowest held-out error, the first of equals.
        n_prompts: all of them.
        n_held_out: those that chose the epoch.
        n_samples: rewards in all.
        mean: reward of the training samples.
        mean_mse: held-out error of predicting that mean for every prompt.
        noise_mse: held-out error that no value of the prompt could avoid, as samples of one prompt differ; none where
            each has one sample.
        gain: mean_mse less the chosen epoch's held-out error, with the ends of its 95% interval over prompts. The epoch
            was chosen on the same prompts, so it flatters a little.
    """

    epochs: tuple[Epoch, ...]
    chosen: int
    n_prompts: int
    n_held_out: int
    n_samples: int
    mean: float
    mean_mse: float
    noise_mse: float | None
    gain: tuple[float, float, float]

    @property
    def best(self) -> Epoch:
        return self.epochs[self.chosen]

    @property
    def beats_mean(self) -> bool:
        """Whether the head knows more than the mean reward, on prompts it did not learn from."""
        # The start predicts that mean but for rounding, which may fall on either side.
        return self.chosen > 0 and self.best.held_out_mse < self.mean_mse


@dataclass(frozen=True)
class FittedValue:
    """A head, in eval mode, as it was after its best epoch."""

    head: ValueHead
    report: ValueReport


@dataclass(frozen=True)
class _Side:
    """Prompts of one side of the split, and the rewards of their samples.

    Attributes:
        states: of each prompt.
        owners: of each sample, the place of its prompt in `states`.
        rewards: of each sample.
    """

    states: list[Tensor]
    owners: Tensor
    rewards: Tensor


def fit_value(
    states: Sequence[Float[Tensor, "P H"]], targets: Float[Tensor, " N"], groups: Sequence[int], cfg: ValueConfig, *,
    low: float, high: float, seed: int,
) -> FittedValue:
    """Fit a head to rewards of the policy's own responses.

    Its first value, for every prompt, is the mean reward of the training prompts; that start is a candidate too, so
    a head that learns nothing is that constant.

    Args:
        states: last hidden states of each prompt, on the CPU.
        targets: reward of each sample; beside an end of the range by rounding, it is taken for that end.
        groups: which prompt each sample answers; every prompt has at least one.
        cfg: of the fit.
        low: least reward there can be.
        high: greatest reward there can be.
        seed: draws split, weights, order and dropout.

    Raises:
        DataError: there are too few prompts, or a reward is out of range.
        ModelError: cfg.heads does not divide the width of the states.
        NumericsError: a gradient is not finite.
    """
    assert len(targets) == len(groups) and set(groups) == set(range(len(states))), "every prompt has samples"
    _require_in_range(targets, low, high)
    within = targets.detach().cpu().double().clamp(low, high)  # what rounding put beside an end
    train, held_out = _split(states, within, groups, cfg.held_out_fraction, seed)
    head = ValueHead(states[0].shape[1], low=low, high=high, heads=cfg.heads, dropout=cfg.dropout,
                     seed=seed)
    mean = float(train.rewards.double().mean())
    head.begin_at(mean)
    epochs, kept = [_measured(head, 0, train, held_out)], copy.deepcopy(head)
    for _ in _epochs(head, train, cfg, seed):
        epochs.append(_measured(head, len(epochs), train, held_out))
        if epochs[-1].held_out_mse < min(epoch.held_out_mse for epoch in epochs[:-1]):
            kept = copy.deepcopy(head)
    best = min(epochs, key=lambda epoch: (epoch.held_out_mse, epoch.number))
    return FittedValue(kept.eval(), _report(kept, epochs, best.number, train, held_out, seed))


def values_of(head: ValueHead, states: Sequence[Float[Tensor, "P H"]]) -> Float[Tensor, " N"]:
    """V of prompts whose states are known, on the CPU; dropout is off, whatever mode the head is in.

    Raises:
        ModelError: the head is for another width.
        NumericsError: a value is not finite.
    """
    values = torch.empty(len(states))
    for part in budget_batches([len(one) for one in states], POSITIONS):
        values[part] = finite_values(head, [states[i] for i in part], [f"prompt {i}" for i in part])
    return values


def _split(states: Sequence[Tensor], targets: Tensor, groups: Sequence[int], fraction: float, seed: int,
           ) -> tuple[_Side, _Side]:
    """The prompts that the head learns from, and those that choose its epoch; at least two of each."""
    n = len(states)
    if n < FEWEST_PROMPTS:
        raise DataError(f"{n} prompts are too few to fit a value head and to choose its epoch on others",
                        remedy=f"Give at least {FEWEST_PROMPTS} validation prompts (hundreds are usual), or take "
                               "value.kind = constant.")
    n_held_out = min(max(2, round(fraction * n)), n - 2)
    order = shuffled(n, seed, "value prompts")
    held_out, train = (_side(states, targets, groups, sorted(part)) for part in (order[:n_held_out],
                                                                                 order[n_held_out:]))
    return train, held_out


def _side(states: Sequence[Tensor], targets: Tensor, groups: Sequence[int], prompts: list[int]) -> _Side:
    place = {prompt: i for i, prompt in enumerate(prompts)}
    samples = [i for i, group in enumerate(groups) if group in place]
    return _Side([states[i] for i in prompts], torch.tensor([place[groups[i]] for i in samples]),
                 targets.float()[samples])


def _epochs(head: ValueHead, side: _Side, cfg: ValueConfig, seed: int) -> Iterator[None]:
    """Let the head learn, and stop after every pass."""
    n = len(side.states)
    n_steps = -(-n // cfg.batch)
    settings = OptimizerConfig(lr=cfg.lr, betas=(0.9, 0.999), eps=1e-6, schedule="constant", warmup_fraction=0,
                               max_grad_norm=None)
    learner = Learner.of([head], settings, n_steps * cfg.epochs)
    for epoch in range(cfg.epochs):
        order = shuffled(n, seed, "value order", epoch)
        head.train()
        with seeded(seed, "value dropout", epoch), torch.enable_grad():
            for k in range(n_steps):
                part = order[k * cfg.batch : (k + 1) * cfg.batch]
                _error(head, side, part).backward()
                learner.step(epoch * n_steps + k + 1, [f"validation prompt {i}" for i in part])
        yield


def _error(head: ValueHead, side: _Side, part: list[int]) -> Tensor:
    """Mean squared error over the samples of some prompts, in units of the range: rewards may be of any size."""
    place = torch.full((len(side.states),), -1).index_copy(0, torch.tensor(part), torch.arange(len(part)))[side.owners]
    values = head(*padded([side.states[i] for i in part], head.query.device)).cpu()
    gaps = (values[place[place >= 0]] - side.rewards[place >= 0]) / (head.high - head.low)
    return gaps.square().mean()


def _measured(head: ValueHead, number: int, train: _Side, held_out: _Side) -> Epoch:
    errors = [float((values_of(head, side.states)[side.owners] - side.rewards).double().square().mean())
              for side in (train, held_out)]
    spearman = rank_correlation(values_of(head, held_out.states)[held_out.owners], held_out.rewards)
    return Epoch(number, errors[0], errors[1], float(spearman))


def _report(head: ValueHead, epochs: list[Epoch], chosen: int, train: _Side, held_out: _Side, seed: int,
            ) -> ValueReport:
    mean = float(train.rewards.double().mean())
    flat = (held_out.rewards.double() - mean).square()
    error = (held_out.rewards - values_of(head, held_out.states)[held_out.owners]).double().square()
    gain = bootstrap_interval(flat - error, generator=stream(seed, "value gain"), groups=held_out.owners)
    return ValueReport(
        tuple(epochs), chosen, len(train.states) + len(held_out.states), len(held_out.states),
        len(train.rewards) + len(held_out.rewards), mean, float(flat.mean()), _within(held_out), gain)


def _within(side: _Side) -> float | None:
    """Variance of the rewards of one prompt's samples, over all prompts that have several."""
    n = len(side.states)
    counts = torch.zeros(n, dtype=torch.float64).index_add(0, side.owners, torch.ones(len(side.owners)).double())
    sums = torch.zeros(n, dtype=torch.float64).index_add(0, side.owners, side.rewards.double())
    free = len(side.rewards) - n
    if free == 0:
        return None
    return float((side.rewards.double() - (sums / counts)[side.owners]).square().sum() / free)


def _require_in_range(targets: Tensor, low: float, high: float) -> None:
    out = targets[outside(targets, low, high)].tolist()
    if out:
        raise DataError(f"{len(out)} of {len(targets)} rewards of the reference's samples are outside "
                        f"[{low}, {high}], the first of them {out[0]:.7g}",
                        remedy="Say the range the rewards really have, or bring them into it (a sigmoid for a reward "
                               "model's logit).")
