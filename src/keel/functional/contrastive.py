"""Contrastive terms on reward-model features: SimCSE and SwAV, over two views of the same rows."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from keel.functional.masked import Stats, wide

__all__ = ["as_differences", "prototype_usage", "simcse", "sinkhorn", "swav"]


def as_differences(features: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]:
    """Features of 2B rows (chosen, then rejected) as preference differences: chosen - rejected, then its negative.

    Source: arXiv:2401.06080, section 3.1 (the second of the two sample sets).
    """
    chosen, rejected = features.chunk(2)
    return torch.cat([chosen - rejected, rejected - chosen])


def simcse(
    features: Float[Tensor, "R D"], other_view: Float[Tensor, "R D"], *, temperature: float = 0.05,
    same: Bool[Tensor, "R R"] | None = None,
) -> tuple[Float[Tensor, " R"], Stats]:
    """InfoNCE over two dropout views: each row has to find its own other view among all rows.

        loss_i = -log softmax_j(cos(h_i, h'_j) / temperature)_i

    Source: arXiv:2401.06080, Eq. 9; Gao et al. 2021, arXiv:2104.08821, Eq. 1 and 4 (temperature 0.05).

    Args:
        features: first view.
        other_view: second view of the same rows; it receives gradient too.
        temperature: divides the cosines, > 0.
        same: True where two different rows are one text, which are no negatives of each other; the diagonal is
            ignored. None: all rows differ.
    Returns:
        The loss per row in nats; and per row `contrastive/found` (1 where its own view is the nearest).
    Raises:
        ValueError: temperature is not above 0.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} is not above 0; SimCSE's usual value is 0.05")
    similarity = normalize(wide(features)) @ normalize(wide(other_view)).t() / temperature
    own = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    if same is not None:
        similarity = similarity.masked_fill(same & ~own, float("-inf"))
    loss = similarity.logsumexp(1) - similarity.diagonal()
    found = (similarity.argmax(1) == torch.arange(len(loss), device=loss.device)).to(loss.dtype)
    return loss, {"contrastive/found": found}


def sinkhorn(
    scores: Float[Tensor, "R K"], *, epsilon: float = 0.05, iterations: int = 3,
) -> Float[Tensor, "R K"]:
    """Soft assignment of R rows to K prototypes that uses every prototype about equally; each row sums to 1.

    Source: Caron et al. 2020, arXiv:2006.09882, Eq. 3-5 (Sinkhorn-Knopp, Cuturi 2013).

    Args:
        scores: row times prototype; detached here.
        epsilon: smoothness; smaller is harder.
        iterations: each gives every prototype the same mass, then every row.
    Raises:
        ValueError: epsilon or iterations is not above 0.
    """
    if epsilon <= 0 or iterations < 1:
        raise ValueError(f"epsilon={epsilon}, iterations={iterations}: both must be above 0; usual are 0.05 and 3")
    # In logarithms, where no row or prototype can underflow to a mass of zero. The masses of the paper, 1/K and 1/R,
    # are constants that the last normalisation divides out.
    log_q = wide(scores.detach()) / epsilon
    for _ in range(iterations):
        log_q = log_q.log_softmax(0).log_softmax(1)
    return log_q.exp()


def swav(
    features: Float[Tensor, "R D"], other_view: Float[Tensor, "R D"], prototypes: Float[Tensor, "K D"], *,
    temperature: float = 0.1, epsilon: float = 0.05, iterations: int = 3, queued: Float[Tensor, "Q D"] | None = None,
) -> tuple[Float[Tensor, " R"], Stats]:
    """Swapped assignments: each view predicts the prototypes that the other one was assigned to.

        z = h / |h|, P = z C^T, q = sinkhorn(P);   loss = CE(q_s, softmax(P_t / t)) + CE(q_t, softmax(P_s / t))

    Features and prototypes are used at unit length, so prototypes need no renormalising between steps.
    Source: arXiv:2401.06080, Eq. 7-8; Caron et al. 2020, arXiv:2006.09882, Eq. 1-2 (temperature 0.1, epsilon 0.05,
    three iterations).

    Args:
        features: first view.
        other_view: second view of the same rows.
        prototypes: trained beside the model.
        temperature: of the prediction, > 0.
        epsilon: of `sinkhorn`.
        iterations: of `sinkhorn`.
        queued: features of earlier steps that share in the assignment, so that few rows can meet many prototypes.
    Returns:
        The loss per row in nats, the sum of both directions; and per row `contrastive/found` (1 where both views are
        nearest to the same prototype).
    Raises:
        ValueError: temperature is not above 0.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} is not above 0; SwAV's usual value is 0.1")
    centres = normalize(wide(prototypes))
    first, second = (normalize(wide(x)) @ centres.t() for x in (features, other_view))
    more = first[:0] if queued is None else normalize(wide(queued)) @ centres.t()
    told = [sinkhorn(torch.cat([x, more]), epsilon=epsilon, iterations=iterations)[:len(x)] for x in (first, second)]
    loss = -(told[0] * (second / temperature).log_softmax(1)).sum(1)
    loss = loss - (told[1] * (first / temperature).log_softmax(1)).sum(1)
    agreed = (first.argmax(1) == second.argmax(1)).to(loss.dtype)
    return loss, {"contrastive/found": agreed}


def prototype_usage(assignments: Float[Tensor, "R K"]) -> Float[Tensor, ""]:
    """Entropy in nats of how the rows share the prototypes: log K where all are used alike, 0 where one takes all.

    Source: arXiv:2006.09882, section 3.1 (the equipartition that the assignments are held to).
    """
    share = assignments.detach().mean(0)
    return -torch.xlogy(share, share).sum()
