"""How close is equal. Named once, never typed in a test, never loosened in the commit that changes the code.

Each one is a dict of keywords for `torch.testing.assert_close`, or a number where the name says of what.
"""

EXACT = {"rtol": 0.0, "atol": 0.0}
FLOAT64 = {"rtol": 1e-10, "atol": 1e-10}
FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}
PRINTED = {"rtol": 0.0, "atol": 5e-7}
"""Against a number that a paper or a spec prints with six decimals."""

RELATIVE64 = 1e-10
RELATIVE32 = 1e-5
"""For `pytest.approx(x, rel=RELATIVE64)`."""

SMALL_DIFFERENCE32 = {"rtol": 0.02, "atol": 0.0}
"""A term of order 1e-10 computed in float32 as a difference of numbers of order 1e-5, where half a unit in the last
place is 1%; without care all of it is lost."""

STANDARD_ERRORS = 4.0
"""Standard errors between a Monte Carlo mean and the truth; one seed in 16 000 would miss it, and ours is fixed."""

BOOTSTRAP_SPREAD = 0.1
"""Share of an interval's width that two bootstraps of 2000 resamples may differ by."""

GRADIENT32 = {"rtol": 1e-4, "atol": 2e-5}
"""Gradients summed over a whole model in float32, against another order of summation."""

BFLOAT16 = {"rtol": 0.1, "atol": 0.3}
"""Log-probabilities of a two-layer model under bfloat16 autocast."""

RATIO = 1e-6
"""How far from 1 the ratio of the first minibatch may be."""

MICRO_BATCHES = {"rel": 1e-3, "abs": 1e-5}
"""Logged numbers of a run of several updates, cut into other micro-batches: float32 rounding has been amplified."""

WITHIN = {"share of 1000 cells": 0.06, "share of 3000 prompts": 0.024, "mean gold": 0.12, "share of 2000 talks": 0.03,
          "share of 20000 labels": 0.0142, "share of 400 demonstrations": 0.1, "share of 130 conversations": 0.1,
          "share of 900 lessons": 0.055}
"""Sampling error allowed in the sandbox's statistics: four standard errors at the sample sizes of those tests."""

SIX_DECIMALS = 1e-6

LOG_RATIO = 1e-4
"""Nats between the sampler, which reads a cache, and one full pass over the same tokens in float32."""

CREDIT32 = {"rtol": 1e-4, "atol": 1e-5}
"""Rewards, advantages and returns in float32 against float64 loops over the same float32 inputs; scores are the sum of
normalised numbers, which loses a digit."""

TOPOLOGIES = {"rel": 1e-4, "abs": 1e-6}
"""Logged numbers of several phases, adapters in models of their own against adapters on one trunk: the products are
summed in another order and the rounding is amplified by Adam."""

CELLS = 1e-3
"""Nats by which a sum over 4000 cells may miss the KL of best of 16, whose density is steepest at the end."""

META_STEP = {"rtol": 0.0, "atol": 1e-6}
"""Gradients of one MetaRM step of a two-layer model in float32, of order 0.1, against the same step in float64."""

SHIFTED32 = {"rtol": 0.0, "atol": 1e-4}
"""Standardised scores of order 1 from float32 scores near 100, where one unit in the last place is 8e-6, divided by
their standard deviation."""

TEMPERATURE = 1e-6
"""Relative, between a root of the slope and a golden section on values: flat near its bottom, a likelihood in float64
tells places apart only to the root of its last digit."""

THREE_DECIMALS = 5e-4
"""Against a number that a paper prints with three decimals."""

CAP32 = 1e-5
"""Relative: by how much a capped projection may miss its bound in float32."""

CAP_BFLOAT16 = 2.0**-7
"""Times the length of the state: the same in bfloat16."""

CAP_TWICE = {"rtol": 0.0, "atol": 1e-6}
"""Capping once against capping twice, states of order 1."""

STREAMED = {"rtol": 1e-6, "atol": 1e-6}
"""Means from running sums against means of what was stored."""

DYKSTRA = {"rtol": 0.0, "atol": 1e-7}
"""What 1000 rounds of alternating projections leave to the nearest point."""

SIX_FIGURES = {"rtol": 1e-6, "atol": 0.0}
"""Of a difference of 1e-3 between numbers of 1e6 in float64."""

PLANTED_COSINE = 0.03
"""Share by which the cosine of one estimated axis may stay below the expected one."""

HEARD = {"rtol": 1e-5, "atol": 1e-5}
"""Mean states of order 1, heard while sampling with a cache, against one pass over the whole conversation."""

PLANTED = {"rtol": 0.0, "atol": 1e-4}
"""A direction that a hook adds, found again as a difference of means of float32 states."""

INTERFACE32 = {"rtol": 1e-5, "atol": 1e-4}
"""Logits and projections of order 10 from a padded, cached batch against the same row by itself, in float32."""
