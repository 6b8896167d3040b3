"""Process supervision: labels of steps, scores of solutions, and credit for single steps.

Steps are numbered through a whole batch: `values` holds one number per step, `rows` the number of its response. The
steps of a response stand together and in order, so `rows` never falls.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import softplus

from keel.functional.advantage import gae, group_sum
from keel.functional.masked import Stats, wide

__all__ = ["FirstError", "aggregate_steps", "first_error_scores", "majority_vote", "predicted_first_error",
           "step_grpo", "step_loss", "step_payments", "step_rloo"]

AGGREGATES = ("min", "product", "mean", "last", "sum")
CREDITS = ("sum", "mean", "min", "delta", "clip")


def step_loss(logits: Float[Tensor, " S"], labels: Float[Tensor, " S"]) -> tuple[Float[Tensor, " S"], Stats]:
    """Binary cross-entropy of each step against the probability that it is right.

        loss = -y log sigmoid(x) - (1 - y) log sigmoid(-x)

    With two classes, x is the difference of their logits.
    Source: Lightman et al. 2023, arXiv:2305.20050, section 2 (likelihood of each step's label); Wang et al. 2023
        (Math-Shepherd), arXiv:2312.08935, section 3 (cross-entropy per step, hard and soft labels).

    Args:
        logits: of the step being right; the only input that receives gradient.
        labels: 1 right, 0 wrong, or a probability; a step that nobody judged is left out by the caller.
    Returns:
        The loss per step in nats; and per step `steps/accuracy` (1 where the logit is on the side of the label, a label
        of 1/2 being on the right side; a logit of 0 counts half) and `steps/probability` (of being right).
    Raises:
        ValueError: a label is no probability.
    """
    x, y = wide(logits), wide(labels.detach())
    if not bool(((y >= 0) & (y <= 1)).all()):
        raise ValueError("a label of a step is outside [0, 1]: it is the probability that the step is right")
    at = x.detach()
    agrees = ((at > 0) == (y >= 0.5)).to(at.dtype)
    stats = {"steps/accuracy": torch.where(at == 0, 0.5, agrees), "steps/probability": at.sigmoid()}
    return y * softplus(-x) + (1 - y) * softplus(x), stats


def aggregate_steps(
    values: Float[Tensor, " S"], rows: Int[Tensor, " S"], n_rows: int, *, how: str,
) -> Float[Tensor, " R"]:
    """One score per solution from the values of its steps: their min, product, mean or sum, or the last one.

    Source: Lightman et al. 2023, arXiv:2305.20050 (product and min); Wang et al. 2023, arXiv:2312.08935 (min); Uesato
        et al. 2022, arXiv:2211.14275 (last).

    Args:
        values: probabilities, for `product`.
        rows: number of the solution of each step, never falling.
        n_rows: how many solutions there are.
        how: min, product, mean, last or sum.
    Returns:
        Float64: a product over many steps leaves float32's range. NaN for a solution without steps.
    Raises:
        ValueError: another way, or rows out of order or out of range.
    """
    if how not in AGGREGATES:
        raise ValueError(f"how={how!r} of joining steps to a score is none of {', '.join(AGGREGATES)}")
    depth, n = _places(rows, n_rows)
    table = _table(values.detach().double(), rows, depth, n_rows, {"min": math.inf, "product": 1.0}.get(how, 0.0))
    match how:
        case "min":
            scores = table.amin(1)
        case "product":
            scores = table.prod(1)
        case "last":
            scores = table.gather(1, (n - 1).clamp_min(0)[:, None])[:, 0]
        case _:
            scores = table.sum(1) / (n if how == "mean" else 1)
    return torch.where(n > 0, scores, math.nan)


def step_payments(
    values: Float[Tensor, " S"], rows: Int[Tensor, " S"], *, credit: str, cap: int | None = None,
    bound: float | None = None,
) -> Float[Tensor, " S"]:
    """What each step of a response is paid, c_k being its value and K the number of paid steps of the response.

        sum     c_k                         total: the sum, which useless right steps raise without end
        mean    c_k / K                     total: the mean
        min     m_k - m_(k-1), first c_1    total: the min; m_k = min(c_1, ..., c_k)
        delta   c_k - c_(k+1), last c_K     total: c_1, and c_k from step k on
        clip    min(c_k - bound, 0)         total: at most 0

    Source: Gao et al. 2024, arXiv:2410.15115 (clip and delta; there the last step, which earns the reward of the
        answer, is paid nothing); mean, and min paid as it falls, are ours.

    Args:
        values: as a rule probabilities.
        rows: number of the response of each step, never falling.
        credit: sum, mean, min, delta or clip.
        cap: only the first so many steps of a response are steps, later ones are paid 0; none: all are.
        bound: value from which on a step is paid 0; for clip, and only there.
    Raises:
        ValueError: another credit, a cap below 1, a bound missing or not needed, or rows out of order.
    """
    if credit not in CREDITS:
        raise ValueError(f"credit={credit!r} for steps is none of {', '.join(CREDITS)}")
    if (bound is not None) != (credit == "clip"):
        raise ValueError(f"credit={credit!r} and bound={bound} do not go together: clip needs one, no other takes one")
    if cap is not None and cap < 1:
        raise ValueError(f"cap={cap} leaves no step that is paid; none pays all of them")
    c = wide(values.detach())
    n_rows = int(rows.max()) + 1 if len(rows) else 0
    depth, n = _places(rows, n_rows)
    n_paid = (n if cap is None else n.clamp_max(cap))[rows]
    match credit:
        case "mean":
            c = c / n_paid
        case "min":
            lowest = _table(c, rows, depth, n_rows, math.inf).cummin(1).values[rows, depth]
            c = torch.where(depth == 0, c, lowest - lowest.roll(1))
        case "delta":
            c = c - torch.where(depth + 1 < n_paid, c.roll(-1), 0.0)
        case "clip":
            c = (c - (bound or 0.0)).clamp_max(0.0)
    return torch.where(depth < n_paid, c, 0.0)


def step_rloo(
    step_rewards: Float[Tensor, "B T"], step_ends: Bool[Tensor, "B T"], response_mask: Bool[Tensor, "B T"],
    groups: Int[Tensor, " B"],
) -> Float[Tensor, "B T"]:
    """Leave-one-out by depth: what a response is still paid, minus the same of the others after as many steps.

        A_i = G_i,k - mean of G_j,k over j != i in the group,    G_i,k: sum of the rewards of step k and later ones

    on the tokens of the k-th step; G is 0 beyond the last step. How many steps lie behind is known before a token is
    drawn, so the baseline does not bias the gradient.
    Source: ours, from the RLOO estimator of Ahmadian et al. 2024, arXiv:2402.14740; one step ending at the last token
        gives `advantage.rloo`.

    Args:
        step_rewards: paid where a step ends; invisible elsewhere.
        step_ends: True at the last token of each step.
        response_mask: True on response tokens; they are contiguous in each row.
        groups: rows with the same number answer the same prompt.
    Returns:
        Advantages, zero outside the mask.
    Raises:
        ValueError: a prompt has one response only.
    """
    counted = step_ends & response_mask
    rewards = torch.where(counted, wide(step_rewards), 0.0)
    behind = counted.cumsum(1) - counted.long()
    row, column = counted.nonzero(as_tuple=True)
    from_step = rewards.new_zeros(len(rewards), int(counted.sum(1).max()) + 1)
    from_step[row, behind[row, column]] = _to_come(rewards, response_mask)[row, column]
    n = group_sum(torch.ones_like(rewards[:, 0]), groups)[:, None]
    if bool((n < 2).any()):
        raise ValueError("step_rloo found a prompt with a single response: sample two or more responses per prompt")
    # Depth by depth: all at once would hold every step beside every response.
    mean = torch.stack([group_sum(column, groups) for column in from_step.unbind(1)], 1) / n
    advantages = (from_step - mean) * n / (n - 1)
    return torch.where(response_mask, advantages.gather(1, behind), 0.0)


def step_grpo(
    step_rewards: Float[Tensor, "B T"], step_ends: Bool[Tensor, "B T"], response_mask: Bool[Tensor, "B T"],
    groups: Int[Tensor, " B"], *, scale: bool = True,
) -> Float[Tensor, "B T"]:
    """GRPO with process supervision: the normalised rewards of the steps that end at a token or later.

        A_t = sum over steps k with end_k >= t of (r_k - mean) / (std + 1e-4)

    Mean and std (divisor n - 1) are over all steps of all responses to the prompt. The only step of a prompt has
    nothing to be compared with: its advantage is 0.
    Source: Shao et al. 2024, arXiv:2402.03300, section 4.1.3; one step ending at the last token gives `advantage.grpo`.

    Args:
        step_rewards: paid where a step ends; invisible elsewhere.
        step_ends: True at the last token of each step.
        response_mask: True on response tokens; they are contiguous in each row.
        groups: rows with the same number answer the same prompt.
        scale: divide by the std.
    Returns:
        Advantages, zero outside the mask and after the last step.
    Raises:
        ValueError: a prompt has one response only.
    """
    counted = step_ends & response_mask
    r = torch.where(counted, wide(step_rewards), 0.0)
    if bool((group_sum(torch.ones_like(r[:, 0]), groups) < 2).any()):
        raise ValueError("steps of a single response have no group: sample two or more responses per prompt")
    n = group_sum(counted.sum(1).to(r.dtype), groups)
    # A group without steps divides by zero here, and no step shows the result.
    mean = group_sum(r.sum(1), groups) / n
    gap = torch.where(counted, r - mean[:, None], 0.0)
    variance = group_sum(gap.square().sum(1), groups) / (n - 1).clamp_min(1)
    return _to_come(gap / (variance.sqrt()[:, None] + 1e-4) if scale else gap, response_mask)


def predicted_first_error(
    probabilities: Float[Tensor, " S"], rows: Int[Tensor, " S"], n_rows: int, *, threshold: float = 0.5,
) -> Int[Tensor, " R"]:
    """Place of the first step of each solution whose probability is below the threshold, from 0 on; -1: there is none.

    A probability of NaN is below. Source: Zheng et al. 2024 (ProcessBench), arXiv:2412.06559 (first step scored below
    a threshold).

    Args:
        probabilities: that the step is right.
        rows: number of the solution of each step, never falling.
        n_rows: how many solutions there are.
        threshold: the lowest probability that passes.
    Raises:
        ValueError: rows out of order or out of range.
    """
    depth, _ = _places(rows, n_rows)
    below = _table(~(probabilities >= threshold), rows, depth, n_rows, False)
    return torch.where(below.any(1), below.int().argmax(1), -1)


@dataclass(frozen=True)
class FirstError:
    """How well first errors are found.

    Attributes:
        accuracy_wrong: share of the solutions with an error whose first one is found; NaN where there are none.
        accuracy_right: share of the solutions without an error in which none is found; NaN where there are none.
        f1: harmonic mean of the two; 0 where both are 0, NaN where one is.
        n_wrong: solutions with an error.
        n_right: solutions without.
    """

    accuracy_wrong: float
    accuracy_right: float
    f1: float
    n_wrong: int
    n_right: int


def first_error_scores(predicted: Int[Tensor, " N"], true: Int[Tensor, " N"]) -> FirstError:
    """Accuracies on wrong and on right solutions, and their harmonic mean.

    Source: Zheng et al. 2024 (ProcessBench), arXiv:2412.06559 (accuracies on erroneous and correct samples, F1).

    Args:
        predicted: place of the first error, -1 for none.
        true: the same, as annotated.
    """
    found, wrong = predicted == true, true >= 0
    n_wrong, n_right = int(wrong.sum()), int((~wrong).sum())
    on_wrong = int(found[wrong].sum()) / n_wrong if n_wrong else math.nan
    on_right = int(found[~wrong].sum()) / n_right if n_right else math.nan
    both = on_wrong + on_right
    return FirstError(on_wrong, on_right, 2 * on_wrong * on_right / both if both else 0.0, n_wrong, n_right)


def majority_vote(answers: Sequence[str | None], weights: Sequence[float] | None = None) -> str | None:
    """The answer with the most votes, each counting its weight; of equal ones the one that stands first.

    Answers are the same if their texts are: the caller writes equal ones alike. None does not vote; where nobody
    votes the result is None.
    Source: Wang et al. 2022, arXiv:2203.11171, section 2 (majority); Wang et al. 2023 (Math-Shepherd),
        arXiv:2312.08935 (each vote weighted by its verifier's score).

    Args:
        answers: final answers to one problem.
        weights: one per answer, finite and not negative; none: all are 1. A weight of a None is read by nobody.
    Raises:
        ValueError: a weight is negative or not finite, or there are more or fewer weights than answers.
    """
    votes: dict[str, list[float]] = {}
    for answer, weight in zip(answers, [1.0] * len(answers) if weights is None else weights, strict=True):
        if answer is None:
            continue
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight={weight} of the answer {answer!r} cannot vote: it must be finite and 0 or more")
        votes.setdefault(answer, []).append(weight)
    # fsum: ten votes of 0.1 tie with one of 1; added one by one they fall short.
    return max(votes, key=lambda answer: math.fsum(votes[answer]), default=None)


def _places(rows: Int[Tensor, " S"], n_rows: int) -> tuple[Int[Tensor, " S"], Int[Tensor, " R"]]:
    """Of each step, how many of its row come before it; of each row, how many steps it has."""
    if len(rows) and (bool((rows.diff() < 0).any()) or int(rows[0]) < 0 or int(rows[-1]) >= n_rows):
        raise ValueError(f"rows of steps must never fall and lie between 0 and {n_rows - 1}")
    starts = torch.searchsorted(rows.contiguous(), torch.arange(n_rows + 1, device=rows.device))
    return torch.arange(len(rows), device=rows.device) - starts[rows], starts.diff()


def _table(
    x: Shaped[Tensor, " S"], rows: Int[Tensor, " S"], depth: Int[Tensor, " S"], n_rows: int, fill: float,
) -> Shaped[Tensor, "R K"]:
    """One row per response, its steps from the left, and that filling where there is none."""
    width = int(depth.max()) + 1 if len(depth) else 1
    table = x.new_full((n_rows, width), fill)
    table[rows, depth] = x
    return table


def _to_come(rewards: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Sum of the rewards of this token and the later ones of its response, detached."""
    return gae(rewards, torch.zeros_like(rewards), response_mask, gamma=1.0, lam=1.0)[0]
