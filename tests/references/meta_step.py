"""One step of MetaRM by torch.func in float64: section 6.2 of the spec read as functions of the parameters.

Nothing is moved and put back here: theta' is a new set of parameters, and the second order is the derivative of
L(theta + eta * grad J(theta)) itself.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import grad

Parameters = dict[str, Tensor]
Scores = Callable[[Parameters], Sequence[Sequence[Tensor]]]


def difference(groups: Sequence[Sequence[Tensor]]) -> Tensor:
    """The mean of J over prompts."""
    total = torch.zeros((), dtype=torch.float64)
    for scores in groups:
        k = len(scores)
        for i in range(k):
            for j in range(i + 1, k):
                total = total + 2 / k**2 / (1 + torch.exp(-torch.abs(scores[i] - scores[j])))
    return total / len(groups)


def preference(pairs: Sequence[Sequence[Tensor]]) -> Tensor:
    """The mean of log(1 + exp(-(chosen - rejected)))."""
    total = torch.zeros((), dtype=torch.float64)
    for chosen, rejected in pairs:
        total = total + torch.log(1 + torch.exp(rejected - chosen))
    return total / len(pairs)


def climbed(theta: Parameters, responses: Scores, eta: float, who: Sequence[str]) -> Parameters:
    """theta' = theta + eta * grad J(theta), of the named parameters."""
    rise = grad(lambda p: difference(responses(p)))(theta)
    return {name: p + eta * rise[name] if name in who else p for name, p in theta.items()}


def first_order(theta: Parameters, pairs: Scores, responses: Scores, eta: float, who: Sequence[str]) -> Parameters:
    """grad L at theta'."""
    there = {name: p.detach() for name, p in climbed(theta, responses, eta, who).items()}
    return grad(lambda p: preference(pairs(p)))(there)


def second_order(theta: Parameters, pairs: Scores, responses: Scores, eta: float, who: Sequence[str]) -> Parameters:
    """The derivative of L(theta'(theta)) by theta."""
    return grad(lambda p: preference(pairs(climbed(p, responses, eta, who))))(theta)
