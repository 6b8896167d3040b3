"""One row per loss: how to call it and how to make its inputs. The laws in `test_laws.py` run over every row."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from hypothesis import reject
from references.ragged import noise
from torch import Tensor

from keel.functional import (
    advantage,
    contrastive,
    direct,
    directions,
    ensemble,
    masked,
    meta,
    offline,
    policy,
    preference,
    steps,
)

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """A function under the laws.

    Attributes:
        function: called with all inputs by name; returns a result, or a result and its stats.
        inputs: names of its tensors, [B T] but for those named below. `response_mask`, `mask`, `present`, which is True
            on the left, and a `counted` that is not in `per_row` are masks.
        learns: the inputs that receive gradient; all others are targets.
        per_row: the inputs with one number per row; `ended` and `counted` are booleans, `groups` integers that pair
            the rows.
        scalars: the inputs with one number for the whole batch.
        per_member: the inputs with one row per ensemble member, [K B].
        tables: the inputs with two rows of their own, [2 T].
        local: whether row i of the result depends on row i of the inputs alone.
        reduced: whether its mask is [B T] and its result and stats have one number per row.
        least_columns: fewer mean nothing to it.
    """

    function: Callable[..., object]
    inputs: tuple[str, ...]
    learns: tuple[str, ...] = ()
    per_row: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()
    per_member: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    local: bool = True
    reduced: bool = False
    least_columns: int = 1

    @property
    def mask_name(self) -> str | None:
        """The input that says which tokens count; none for losses with one value per row."""
        masks = [name for name in self.inputs if name.endswith("mask")]
        counted = [name for name in self.inputs if name in ("counted", "present") and name not in self.per_row]
        return next(iter(masks + counted), None)

    @property
    def beside(self) -> tuple[str, ...]:
        """The inputs that have no tokens: a mask over tokens says nothing about them."""
        return self.per_row + self.scalars + self.per_member + self.tables

    @property
    def has_numbers(self) -> bool:
        """Whether any input is more than a mask."""
        return any(name != self.mask_name and name not in BOOLEANS for name in self.inputs)

    def make(self, seed: int, mask: Tensor) -> Inputs:
        """Float64 inputs under that mask; scores and labels have one number for each of its rows."""
        if mask.shape[1] < self.least_columns:
            reject()
        if self.mask_name == "present":
            mask = mask.sort(1, descending=True).values
        made: Inputs = {}
        for i, name in enumerate(self.inputs):
            shape = (tuple(mask.shape[:1]) if name in self.per_row else () if name in self.scalars
                     else (3, len(mask)) if name in self.per_member
                     else (2, mask.shape[1]) if name in self.tables else tuple(mask.shape))
            made[name] = mask.clone() if name == self.mask_name else noise(seed + i, *shape, scale=0.7)
            if name in PROBABILITIES:
                made[name] = made[name].sigmoid()
            elif name == "groups":
                made[name] = groups_of(made[name])
            elif name in BOOLEANS and name != self.mask_name:
                made[name] = made[name] > 0
        return made

    def rows(self, inputs: Inputs, index: slice | Tensor) -> Inputs:
        """Some rows of the batch, in some order."""
        return {name: x if name in self.scalars + self.tables else x[:, index] if name in self.per_member else x[index]
                for name, x in inputs.items()}

    def call(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """The result, and everything else it returned, by name."""
        out = self.function(**inputs)
        if isinstance(out, Tensor):
            return out, {}
        result, rest = out  # type: ignore[misc]
        return result, rest if isinstance(rest, dict) else {"second": rest}


BOOLEANS = ("ended", "counted", "tied", "desirable", "step_ends")
PROBABILITIES = ("label_prob", "labels")


def groups_of(order: Tensor) -> Tensor:
    """Pairs of rows in an arbitrary order, the last three together where the number of rows is odd."""
    if len(order) < 2:
        reject()  # no other response to compare with
    places = order.argsort().argsort()
    return torch.minimum(places // 2, torch.tensor(len(order) // 2 - 1))


PPO = ("logprobs", "old_logprobs", "advantages", "response_mask")
CRITIC = ("values", "old_values", "returns", "response_mask")
PAIR = ("chosen_scores", "rejected_scores")
DRIFT = ("logprobs", "ref_logprobs")
LOGITS = ("logits", "ref_logits")
ENTROPY = ("entropy", "mean_entropy")
REWARDS = ("rewards", "response_mask")
GROUPED = (*REWARDS, "groups")
STEPS = ("logits", "labels")
PAID_STEPS = ("step_rewards", "step_ends", "response_mask", "groups")
CUT = ("scores", "ended")
RANKED = ("scores", "present", "tied")
GRADED = ("predicted", "target", "present")
VIEWS = ("features", "other_view")
SIDES = ("chosen", "rejected")
HELD = (*SIDES, "ref_chosen", "ref_rejected")
JUDGED = ("logprobs", "ref_logprobs", "desirable")
WEIGHED = ("logprobs", "weight", "response_mask")
SHIFTED = ("logprobs", "ref_logprobs", "weight", "response_mask")
ORDERED = ("mean_logprobs", "best_logprobs", "rewards", "present")

LOSSES = {
    "clipped_surrogate": Row(partial(policy.clipped_surrogate, clip=0.2), PPO, learns=PPO[:1]),
    "unclipped_surrogate": Row(partial(policy.clipped_surrogate, clip=None), PPO, learns=PPO[:1]),
    "penalised_surrogate": Row(partial(policy.penalised_surrogate, old_kl_coef=0.3), PPO, learns=PPO[:1]),
    "clipped_value_loss": Row(partial(policy.clipped_value_loss, clip=0.2), CRITIC, learns=CRITIC[:1]),
    "value_loss": Row(partial(policy.clipped_value_loss, clip=None), CRITIC, learns=CRITIC[:1]),
    "entropy_bonus": Row(
        partial(policy.entropy_term, mode="bonus"), ENTROPY, learns=ENTROPY[:1], scalars=ENTROPY[1:]),
    "entropy_floor": Row(
        partial(policy.entropy_term, mode="floor", target=0.2), ENTROPY, learns=ENTROPY[:1], scalars=ENTROPY[1:]),
    "entropy_target": Row(
        partial(policy.entropy_term, mode="target", target=0.2), ENTROPY, learns=ENTROPY[:1], scalars=ENTROPY[1:]),
    "kl_k1": Row(policy.kl_k1, DRIFT, learns=DRIFT[:1]),
    "kl_k2": Row(policy.kl_k2, DRIFT, learns=DRIFT[:1]),
    "kl_k3": Row(policy.kl_k3, DRIFT, learns=DRIFT[:1]),
    "kl_full": Row(policy.kl_full, LOGITS, learns=LOGITS[:1]),
    "nll": Row(policy.nll, ("logprobs", "response_mask"), learns=("logprobs",)),
    "bradley_terry": Row(preference.bradley_terry, PAIR, learns=PAIR, per_row=PAIR),
    "bradley_terry_margin": Row(
        preference.bradley_terry, (*PAIR, "margin"), learns=PAIR, per_row=(*PAIR, "margin")),
    "bradley_terry_soft": Row(
        preference.bradley_terry, (*PAIR, "margin", "label_prob"), learns=PAIR,
        per_row=(*PAIR, "margin", "label_prob")),
    "centring": Row(preference.centring, PAIR, learns=PAIR, per_row=PAIR),
    "eps_sigmoid": Row(preference.eps_sigmoid, PAIR, learns=PAIR, per_row=PAIR),
    "plackett_luce": Row(preference.plackett_luce, RANKED, learns=RANKED[:1], reduced=True),
    "all_pairs": Row(preference.all_pairs, RANKED, learns=RANKED[:1], reduced=True),
    "attribute_error": Row(preference.attribute_error, GRADED, learns=GRADED[:1], reduced=True),
    "response_logprobs": Row(
        direct.response_logprobs, ("logprobs", "response_mask"), learns=("logprobs",), reduced=True),
    "per_token": Row(direct.per_token, ("sums", "n_tokens"), learns=("sums",), per_row=("sums", "n_tokens")),
    "dpo": Row(partial(direct.dpo, beta=0.3), HELD, learns=SIDES, per_row=HELD),
    "dpo_soft": Row(partial(direct.dpo, beta=0.3, label_smoothing=0.1), (*HELD, "label_prob"), learns=SIDES,
                    per_row=(*HELD, "label_prob")),
    "dpo_robust": Row(partial(direct.dpo_robust, beta=0.3, label_smoothing=0.1), HELD, learns=SIDES, per_row=HELD),
    "ipo": Row(partial(direct.ipo, beta=0.3), HELD, learns=SIDES, per_row=HELD),
    "hinge": Row(partial(direct.hinge, beta=0.3), HELD, learns=SIDES, per_row=HELD),
    "simpo": Row(partial(direct.simpo, beta=2.0, gamma=0.5), SIDES, learns=SIDES, per_row=SIDES),
    "orpo": Row(partial(direct.orpo, beta=0.3), SIDES, learns=SIDES, per_row=SIDES),
    "kto": Row(partial(direct.kto, beta=0.3, undesirable_weight=1.2), (*JUDGED, "baseline"), learns=JUDGED[:1],
               per_row=JUDGED, scalars=("baseline",)),
    "weighted_nll": Row(offline.weighted_nll, WEIGHED, learns=WEIGHED[:1], per_row=WEIGHED[1:2], reduced=True),
    "weighted_mean": Row(
        partial(offline.weighted_nll, length_norm=True), WEIGHED, learns=WEIGHED[:1], per_row=WEIGHED[1:2],
        reduced=True),
    "reward_gold": Row(offline.reward_gold, WEIGHED, learns=WEIGHED[:1], per_row=WEIGHED[1:2], reduced=True),
    "a_lol": Row(offline.a_lol, SHIFTED, learns=SHIFTED[:1], per_row=WEIGHED[1:2], reduced=True),
    "a_lol_unclipped": Row(
        partial(offline.a_lol, clip=None), SHIFTED, learns=SHIFTED[:1], per_row=WEIGHED[1:2], reduced=True),
    "a_lol_seq": Row(offline.a_lol_seq, SHIFTED, learns=SHIFTED[:1], per_row=WEIGHED[1:2], reduced=True),
    "a_lol_seq_unclipped": Row(
        partial(offline.a_lol_seq, clip=None), SHIFTED, learns=SHIFTED[:1], per_row=WEIGHED[1:2], reduced=True),
    "a_lol_kl": Row(
        partial(offline.a_lol_kl, coef=0.3), SHIFTED, learns=SHIFTED[:1], per_row=WEIGHED[1:2], reduced=True),
    "a_lol_quotient": Row(
        partial(offline.a_lol_kl, coef=0.3, term="quotient"), SHIFTED, learns=SHIFTED[:1], per_row=WEIGHED[1:2],
        reduced=True),
    "a_lol_k3": Row(
        partial(offline.a_lol_kl, coef=0.3, term="k3"), SHIFTED, learns=SHIFTED[:1], per_row=WEIGHED[1:2],
        reduced=True),
    "pro": Row(offline.pro, ORDERED, learns=ORDERED[:2], per_row=("best_logprobs",), reduced=True),
    "step_loss": Row(steps.step_loss, STEPS, learns=STEPS[:1], per_row=STEPS),
    "difference_objective": Row(meta.difference_objective, ("scores",), learns=("scores",), least_columns=2),
    "anchor_loss": Row(partial(directions.anchor_loss, floor=0.3, spread=0.5), ("projections", "response_mask"),
                       learns=("projections",)),
    "simcse": Row(contrastive.simcse, VIEWS, learns=VIEWS, local=False, least_columns=2),
    "swav": Row(contrastive.swav, (*VIEWS, "prototypes"), learns=(*VIEWS, "prototypes"), tables=("prototypes",),
                local=False, least_columns=2),
}
"""What is minimised. A new loss adds its row here."""

TARGETS = {
    "gae": Row(partial(advantage.gae, gamma=0.9, lam=0.8), ("rewards", "values", "response_mask")),
    "gae_after": Row(partial(advantage.gae, gamma=0.9, lam=0.8), ("rewards", "values", "response_mask", "after"),
                     per_row=("after",)),
    "rolling_sums": Row(partial(advantage.rolling_sums, gamma=0.9), REWARDS),
    "rloo": Row(advantage.rloo, GROUPED, per_row=("groups",), local=False),
    "grpo": Row(advantage.grpo, GROUPED, per_row=("groups",), local=False),
    "grpo_unscaled": Row(partial(advantage.grpo, scale=False), GROUPED, per_row=("groups",), local=False),
    "step_rloo": Row(steps.step_rloo, PAID_STEPS, per_row=("groups",), local=False),
    "step_grpo": Row(steps.step_grpo, PAID_STEPS, per_row=("groups",), local=False),
    "reinforce_plus_plus": Row(partial(advantage.reinforce_plus_plus, gamma=0.9), REWARDS, local=False),
    "shaped_advantages": Row(
        partial(advantage.shaped_advantages, normalise=True, clip=0.8), ("advantages", "counted"), local=False),
    "clipped_advantages": Row(
        partial(advantage.shaped_advantages, normalise=False, clip=0.8), ("advantages", "counted")),
    "cut_scores": Row(partial(advantage.cut_scores, how="score"), CUT, per_row=CUT),
    "cut_scores_mask": Row(partial(advantage.cut_scores, how="mask"), CUT, per_row=CUT),
    "cut_scores_penalty": Row(partial(advantage.cut_scores, how="penalty", value=0.3), CUT, per_row=CUT),
    "cut_scores_constant": Row(partial(advantage.cut_scores, how="constant", value=-2.5), CUT, per_row=CUT),
    "cut_scores_bootstrap": Row(partial(advantage.cut_scores, how="bootstrap"), CUT, per_row=CUT),
    "token_rewards": Row(
        partial(advantage.token_rewards, kl_coef=0.1), ("scores", "kl", "response_mask"), per_row=("scores",)),
    "process_scores": Row(
        partial(advantage.process_scores, moments=torch.tensor([9.0, 0.3, 4.0], dtype=torch.float64),
                center=True, scale=True, clip=5.0), ("scores",), per_row=("scores",)),
    "process_scores_spread": Row(
        partial(advantage.process_scores, moments=torch.tensor([9.0, 0.3, 4.0], dtype=torch.float64),
                spread=torch.tensor([5.0, 9.0, 12.0], dtype=torch.float64), center=True, scale=True, clip=None),
        ("scores",), per_row=("scores",)),
    "mean_score": Row(
        partial(ensemble.combined_scores, how="mean"), ("scores",), per_member=("scores",)),
    "lowest_score": Row(
        partial(ensemble.combined_scores, how="minimum"), ("scores",), per_member=("scores",)),
    "cautious_score": Row(
        partial(ensemble.combined_scores, how="mean_minus_std", coef=0.5), ("scores",), per_member=("scores",)),
    "wary_score": Row(
        partial(ensemble.combined_scores, how="mean_minus_variance", coef=0.5), ("scores",), per_member=("scores",)),
    "median_score": Row(
        partial(ensemble.combined_scores, how="median"), ("scores",), per_member=("scores",)),
    "sinkhorn": Row(contrastive.sinkhorn, ("scores",), local=False),
    "token_weights": Row(
        partial(masked.loss_weights, reduction="token"), ("response_mask", "counted"), per_row=("counted",)),
    "response_weights": Row(
        partial(masked.loss_weights, reduction="sequence"), ("response_mask", "counted"), per_row=("counted",)),
    "whiten": Row(masked.whiten, ("x", "mask"), local=False),
    "whiten_off_center": Row(partial(masked.whiten, center=False), ("x", "mask"), local=False),
}
"""What losses are fed with: nothing here may carry gradient."""

ALL = LOSSES | TARGETS
