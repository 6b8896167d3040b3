"""Group-invariant learning: how far groups of responses differ in return, who belongs to one, what closes the gap.

Memberships p [B G] are the probabilities that response i belongs to group g; rows sum to 1, a known group is one-hot.
`reduce` turns sums of this rank into those of all ranks, `gather` a column of this rank into that of all ranks; none:
there is one rank. Equations and headings are those of docs/methods/group_ppo.md, keel's reading of arXiv:2310.11971.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from keel.functional.masked import wide

__all__ = ["GroupStats", "adaptive_kl_coef", "cvar_shaping", "dro_weights", "group_factor",
           "group_objective", "group_stats", "memberships", "ratio_variance", "sorted_order",
           "standardised_returns", "variance_shaping"]

Across = Callable[[Tensor], Tensor] | None


@dataclass(frozen=True)
class GroupStats:
    """What the groups of one batch earn.

    Attributes:
        mass: soft number of responses of each group, S_g.
        returns: mean return of each group, R_g; 0 where the group is absent.
        present: whether the group has any mass in this batch.
        variance: population variance of the present groups' returns, each group counting the same.
    """

    mass: Float[Tensor, " G"]
    returns: Float[Tensor, " G"]
    present: Bool[Tensor, " G"]
    variance: Float[Tensor, ""]


# --- returns and groups


def standardised_returns(
    returns: Float[Tensor, " B"], *, tails: float | None = None, gather: Across = None,
) -> Float[Tensor, " B"]:
    """Returns of mean 0 and (biased) standard deviation 1 over all ranks, extremes pulled in first where asked.

        R_i = (x_i - mean) / (std + 1e-8),    x clamped to its quantiles `tails` and 1 - `tails`

    Source: Equations (returns) and Guards (tails) of the page.

    Args:
        returns: one per response; detached here.
        tails: share of the responses on either side that counts as extreme; none: nothing is clamped.
        gather: gives the returns of all ranks.
    Raises:
        ValueError: tails is out of range.
    """
    if tails is not None and not 0 <= tails < 0.5:
        raise ValueError(f"tails={tails} is no share of either side: 0 <= tails < 0.5, usually 0.02")
    # In float32 the rounding of the mean of equal returns would be all that is left, blown up by 1 / 1e-8.
    x = returns.detach().double()
    everyone = gather(x) if gather else x
    if tails is not None:
        low, high = torch.quantile(everyone, everyone.new_tensor([tails, 1 - tails]))
        x, everyone = x.clamp(low, high), everyone.clamp(low, high)
    scale = everyone.std(correction=0) + 1e-8
    return ((x - everyone.mean()) / scale).to(wide(returns).dtype)


def group_stats(p: Float[Tensor, "B G"], returns: Float[Tensor, " B"], *, reduce: Across = None) -> GroupStats:
    """Mass and return of each group, and the variance of the returns over the groups that are present.

        S_g = sum_i p_ig    R_g = sum_i p_ig R_i / S_g    R_var = mean_g (R_g - mean_h R_h)^2

    Gradient flows into p, never into the returns. It is this rank's share: over ranks the gradients add up.
    Source: the page, Eq. 1 and 2.
    """
    p, n_groups = wide(p), p.shape[1]
    paid = p * returns.detach()[:, None]
    mass, total = _everywhere(torch.cat([p.sum(0), paid.sum(0)]), reduce).split(n_groups)
    present = mass > 0
    means = total / _divisor(mass)
    variance = _gaps(means, present).square().sum() / present.sum().clamp_min(1)
    return GroupStats(mass, means, present, variance)


def memberships(logits: Float[Tensor, "B G"], *, bound: float) -> Float[Tensor, "B G"]:
    """Probability of each group, never nearer to 0 or 1 than logits of +-`bound` allow.

        p_i = softmax(bound tanh(z_i / bound))

    Source: the page, Eq. 4 and Guards (saturation).

    Raises:
        ValueError: there are fewer than two groups, or bound is out of range.
    """
    return _log_memberships(logits, bound).exp()


def group_objective(
    logits: Float[Tensor, "B G"], returns: Float[Tensor, " B"], *, variance: str, floor: float, floor_coef: float,
    bound: float, entropy_coef: float, reduce: Across = None,
) -> Float[Tensor, ""]:
    """What the group head maximises: groups that differ in return, none of them small.

        V - floor_coef sum_g relu(floor - S_g/B)^2 + entropy_coef mean_i entropy(p_i),    p = memberships(logits)
        V = R_var  or, weighted,  sum_g (S_g/B) (R_g - mean_i R_i)^2

    Source: the page, Eq. 4 and Guards. Over ranks the value is that of the whole batch and the gradients add up.

    Args:
        logits: of the head; the only input that receives gradient.
        returns: standardised.
        variance: "plain", the paper's, or "weighted", which no small group can raise above the variance of returns.
        floor: share of the responses below which a group costs.
        floor_coef: what it costs.
        bound: of the logits.
        entropy_coef: reward per nat of doubt.
        reduce: turns sums of this rank into those of all ranks.
    Raises:
        ValueError: another variance, a floor that all groups together cannot reach, or what `memberships` refuses.
    """
    if variance not in ("plain", "weighted"):
        raise ValueError(f"variance={variance!r} is neither 'plain' nor 'weighted'")
    if not 0 <= floor <= 1 / logits.shape[1]:
        raise ValueError(f"floor={floor} is outside [0, 1/{logits.shape[1]}]: not every group can have that share")
    log_p = _log_memberships(logits, bound)
    stats = group_stats(log_p.exp(), returns, reduce=reduce)
    sums = torch.stack([-(log_p.exp() * log_p).sum(), wide(returns.detach()).sum(), log_p.new_tensor(len(log_p))])
    entropy, total, n = _everywhere(sums, reduce)
    share = stats.mass / n
    spread = stats.variance if variance == "plain" else (share * (stats.returns - total / n).square()).sum()
    return spread - floor_coef * (floor - share).relu().square().sum() + entropy_coef * entropy / n


def sorted_order(order: list[int], ema: Float[Tensor, " G"], *, slack: float) -> list[int]:
    """The groups from lowest to highest; neighbours change places only where the averages leave no doubt.

    Source: the page, Guards (groups that change names).

    Args:
        order: columns of the memberships, lowest group first, as it was.
        ema: moving average of each column's return.
        slack: by how much the lower one of two neighbours has to be above the higher one.
    Raises:
        ValueError: slack is negative, or order does not name every column once.
    """
    if slack < 0:
        raise ValueError(f"slack={slack} is negative: equal groups would change places in every phase")
    if sorted(order) != list(range(len(ema))):
        raise ValueError(f"order={order} does not name each of {len(ema)} groups once")
    found = list(order)
    for last in range(len(found)):  # each one moves down among those before it, which stand as they should
        for k in range(last, 0, -1):
            if ema[found[k - 1]] - ema[found[k]] > slack:
                found[k - 1], found[k] = found[k], found[k - 1]
    return found


# --- what the policy's advantages lose or gain


def variance_shaping(
    p: Float[Tensor, "B G"], returns: Float[Tensor, " B"], *, side: str, reduce: Across = None,
) -> Float[Tensor, " B"]:
    """Weights with which the policy gradient becomes that of a penalty on unequal groups; A - beta w lowers it.

        w_i = sum_g c_g (B p_ig / S_g) (R_i - R_g)
        both      c_g = (2/G) (R_g - mean_h R_h): the gradient of R_var
        low_only  the same, 0 for groups above the mean: the strong ones are left alone
        worst     c_g = -1 for the lowest group, 0 for others: minus the gradient of the lowest R_g

    Source: the page, Eq. 5. Over all ranks the weights sum to 0.

    Args:
        p: memberships; detached here.
        returns: standardised; detached here.
        side: "both", "low_only" or "worst".
        reduce: turns sums of this rank into those of all ranks.
    Raises:
        ValueError: another side.
    """
    if side not in ("both", "low_only", "worst"):
        raise ValueError(f"side={side!r} is none of 'both', 'low_only' and 'worst'")
    p = wide(p.detach())
    stats = group_stats(p, returns, reduce=reduce)
    return _n_rows(p, reduce) * (p * _pull(stats, side) * _slopes(stats, returns)).sum(1)


def ratio_variance(
    p: Float[Tensor, "B G"], returns: Float[Tensor, " B"], log_ratios: Float[Tensor, " B"], *, reduce: Across = None,
) -> Float[Tensor, ""]:
    """Variance of group returns under the policy being trained, differentiable in it; for short responses.

        R_g = sum_i p_ig rho_i R_i / sum_i p_ig rho_i,    rho_i = exp(log_ratios_i)

    At rho = 1 its gradient is that of `variance_shaping`. |log ratio| is held at 20, where its gradient is zero.
    Source: the page, Switches (estimator = "ratio").

    Args:
        p: memberships; detached here.
        returns: standardised; detached here.
        log_ratios: nats per response, policy being trained against the one that sampled; receives the gradient.
        reduce: turns sums of this rank into those of all ranks.
    """
    ratio = wide(log_ratios).clamp(-20.0, 20.0).exp()
    return group_stats(wide(p.detach()) * ratio[:, None], returns, reduce=reduce).variance


def group_factor(
    p: Float[Tensor, "B G"], q: Float[Tensor, " G"], *, reduce: Across = None,
) -> Float[Tensor, " B"]:
    """What turns a mean over responses into a mean over groups of weights q, whatever their size.

        f_i = sum_g q_g B p_ig / S_g,    q of the present groups scaled to sum 1

    Equal weights give each group the same say. Source: Sagawa et al. 2020, arXiv:1911.08731, Algorithm 1 (q_g times the
    mean loss of a group); Krueger et al. 2021, arXiv:2003.00688, Eq. 8 (risks of domains summed, whatever their size).

    Args:
        p: memberships; detached here.
        q: weights of the groups, >= 0; detached here.
        reduce: turns sums of this rank into those of all ranks.
    """
    p = wide(p.detach())
    stats = group_stats(p, p.new_zeros(len(p)), reduce=reduce)
    weights = torch.where(stats.present, q.detach().to(p), 0.0)
    return _n_rows(p, reduce) * (p @ (weights / _divisor(stats.mass))) / weights.sum()


def dro_weights(
    q: Float[Tensor, " G"], group_returns: Float[Tensor, " G"], present: Bool[Tensor, " G"], *, step: float,
) -> Float[Tensor, " G"]:
    """Weights of the groups after one exponentiated step towards those that earn least; they sum to 1.

        q_g <- q_g exp(-step R_g) / sum_h q_h exp(-step R_h)

    Source: Sagawa et al. 2020, arXiv:1911.08731, Algorithm 1, with -R_g for a loss. An absent group takes no step,
        and none falls below 1e-30, from where a group of weight 0 could never come back.

    Args:
        q: weights so far, not all 0.
        group_returns: of each group.
        present: whether it has one.
        step: >= 0.
    Raises:
        ValueError: step is negative.
    """
    if step < 0:
        raise ValueError(f"step={step} is negative: the groups that earn most would gain weight")
    losses = torch.where(present, -wide(group_returns.detach()), 0.0)
    return (wide(q.detach()).log() + step * losses).softmax(0).clamp_min(1e-30)


def cvar_shaping(returns: Float[Tensor, " B"], *, share: float, gather: Across = None) -> Float[Tensor, " B"]:
    """Weights with which the policy gradient becomes minus that of CVaR, the mean of the worst `share` of returns.

        w_i = relu(q - R_i) / share - mean_j,    CVaR = max_q q - mean_i relu(q - R_i) / share

    A - beta w raises CVaR. Over all ranks the weights sum to 0.
    Source: Rockafellar and Uryasev 2000, "Optimization of conditional value-at-risk", Theorem 1.

    Args:
        returns: detached here.
        share: 0 < share <= 1; at 1, CVaR is the mean.
        gather: gives the returns of all ranks.
    Raises:
        ValueError: share is out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share} of the returns is outside (0, 1]: CVaR is the mean of the worst ones")
    x = wide(returns.detach())
    everyone = gather(x) if gather else x
    # The lowest return that at least that share does not exceed maximises over q; a quantile between two need not.
    quantile = everyone.sort().values[math.ceil(share * len(everyone)) - 1]
    return ((quantile - x).relu() - (quantile - everyone).relu().mean()) / share


# --- the price of drift


def adaptive_kl_coef(
    p_sorted: Float[Tensor, "B G"], *, coef: float, floor: float, renorm: bool, reduce: Across = None,
) -> Float[Tensor, " B"]:
    """What each response pays per nat of drift: all of it in the highest group, least in the lowest.

        coef_i = coef max(sum_g c_g p_ig, floor),    c from 0 (lowest) to 1 (highest) in equal steps

    Source: the page, Eq. 7.

    Args:
        p_sorted: memberships, the lowest group first; detached here.
        coef: the highest price.
        floor: least share of it that anyone pays, in [0, 1].
        renorm: divide by the mean over all responses, so that the mean price is `coef`.
        reduce: turns sums of this rank into those of all ranks.
    Raises:
        ValueError: there are fewer than two groups, or floor is out of range.
    """
    p = wide(p_sorted.detach())
    if p.shape[1] < 2:
        raise ValueError("one group has neither a lowest nor a highest member: a price by group needs two or more")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor={floor} is no share of the coefficient: it must be in [0, 1], usually 0.1")
    price = (p @ torch.linspace(0, 1, p.shape[1], dtype=p.dtype, device=p.device)).clamp_min(floor)
    if renorm:
        mean = _everywhere(price.sum(), reduce) / _n_rows(p, reduce)
        # Where nobody owes anything, all owe the same.
        price = torch.where(mean > 0, price / mean, 1.0)
    return coef * price


# --- pieces


def _everywhere(x: Float[Tensor, "*S"], reduce: Across) -> Float[Tensor, "*S"]:
    """Sums over all ranks, of which the gradient sees this rank's part."""
    return reduce(x.detach()) + (x - x.detach()) if reduce else x


def _divisor(mass: Float[Tensor, " G"]) -> Float[Tensor, " G"]:
    """The mass, or 1 for an absent group, whose total is 0."""
    return torch.where(mass > 0, mass, 1.0)


def _n_rows(p: Float[Tensor, "B G"], reduce: Across) -> Float[Tensor, ""]:
    """Number of responses on all ranks."""
    return _everywhere(p.new_tensor(float(len(p))), reduce)


def _log_memberships(logits: Float[Tensor, "B G"], bound: float) -> Float[Tensor, "B G"]:
    """Logarithms of the probabilities: their entropy stays finite where a probability underflows."""
    if logits.shape[1] < 2:
        raise ValueError(f"groups={logits.shape[1]}: responses can only be told apart by two groups or more")
    if not 0 < bound < math.inf:
        raise ValueError(f"bound={bound} of the group logits must be positive and finite; 5 is usual")
    # DEVIATION(group_ppo-1): bounded smoothly; a logit that is clipped has no gradient and could never come back.
    return (bound * (wide(logits) / bound).tanh()).log_softmax(1)


def _gaps(means: Float[Tensor, " G"], present: Bool[Tensor, " G"]) -> Float[Tensor, " G"]:
    """Each group's return minus the mean over groups; 0 for an absent one. Equal groups have gaps of exactly 0."""
    both = present[:, None] & present
    return torch.where(both, means[:, None] - means, 0.0).sum(1) / present.sum().clamp_min(1)


def _slopes(stats: GroupStats, returns: Float[Tensor, " B"]) -> Float[Tensor, "B G"]:
    """dR_g / dp_ig = (R_i - R_g) / S_g; of an absent group finite, and nobody pulls at it."""
    return (returns.detach()[:, None] - stats.returns) / _divisor(stats.mass)


def _pull(stats: GroupStats, side: str) -> Float[Tensor, " G"]:
    """By how much each group's return is held down: derivative of the penalty by it."""
    if side == "worst":
        lowest = torch.where(stats.present, stats.returns, math.inf).argmin()
        return -torch.nn.functional.one_hot(lowest, len(stats.returns)).to(stats.returns.dtype)
    pull = 2 * _gaps(stats.returns, stats.present) / stats.present.sum()
    return pull.clamp_max(0) if side == "low_only" else pull
