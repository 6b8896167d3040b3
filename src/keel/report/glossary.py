"""What each number that keel logs means, in one line, with its unit; and the order in which a reader wants them."""

from collections import Counter
from typing import NamedTuple

__all__ = ["EACH_GROUP", "GROUPS", "RECIPES", "Metric", "describe", "is_of_groups", "position", "recipe_title"]


class Metric(NamedTuple):
    """`group` is a heading; `unit` may be empty for pure numbers."""

    group: str
    meaning: str
    unit: str = ""


RECIPES = {
    "sft": "Supervised fine-tuning",
    "reward_model": "Reward model training",
    "ranking_rm": "Reward model training on rankings",
    "attribute_rm": "Reward model training on grades",
    "ppo": "PPO",
    "group_ppo": "Group-invariant PPO",
    "meta_rm": "Meta reward model training",
    "strength": "Preference strength",
    "offline_pg": "Offline policy gradient",
    "preference": "Preference optimisation",
    "process_rm": "Process reward model training",
    "process_rm label": "Labels of steps by completions",
    "process_rm evaluate": "Process reward model evaluation",
    "process_rm search": "Search with a process reward model",
    "bench_rm": "Reward model benchmark",
    "bench_compare": "Comparison of benchmark runs",
    "bench_rm select": "Best of n by a scorer",
    "bench_correlate": "Correlation of benchmark and use",
    "axis": "Assistant axis",
    "axis calibrate": "Calibration of an axis",
    "axis drift": "Drift along the axis",
    "axis evaluate": "Evaluation of an axis",
    "axis extract": "Extraction of an axis",
    "axis project": "Projection on an axis",
    "generate": "Generation",
    "evaluate": "Evaluation",
    "win_rate": "Comparison",
    "probe": "Probing",
}

# The order of the page: what the run is for, then what reveals a collapse, then the machinery.
OUTCOME, DRIFT, RESPONSES, POLICY = "Outcome", "Drift", "Responses", "Policy update"
CRITIC, CREDIT, LOSSES, OPTIMISER, TIME = "Critic", "Rewards and credit", "Losses", "Optimiser", "Time"
SIZES = "Sample sizes"
WARM_UP = "Critic warm-up"
BY_GROUP, EACH_GROUP = "Groups", "Groups one by one"
GROUPS = (OUTCOME, BY_GROUP, EACH_GROUP, DRIFT, RESPONSES, POLICY, CRITIC, CREDIT, LOSSES, OPTIMISER, TIME, SIZES,
          WARM_UP)

METRICS = {
    "gold/mean": Metric(OUTCOME, "True reward of the responses, known where a task can be checked.", "gold score"),
    "score/mean": Metric(OUTCOME, "What the reward model gives the responses: the proxy being optimised.", "score"),
    "score/outcome": Metric(OUTCOME, "What whole responses are given, where others score their steps.", "score"),
    "score/std": Metric(OUTCOME, "Spread of scores in a batch. Shrinking: the responses are becoming one.", "score"),
    "score/p95": Metric(OUTCOME, "The score one response in twenty beats. A long tail appears at collapse.", "score"),
    "score/histogram": Metric(OUTCOME, "Scores of each batch.", "score"),
    "win_rate/gold/mean": Metric(OUTCOME, "Held-out prompts answered better than at the start, by gold.", "share"),
    "win_rate/score/mean": Metric(OUTCOME, "Held-out prompts answered better than at the start, by score.", "share"),
    "rollouts/right": Metric(OUTCOME, "Completions of cut solutions that come out right.", "share"),
    "rollouts/tokens": Metric(RESPONSES, "Length of the completions.", "tokens"),
    "rollouts/cut": Metric(RESPONSES, "Completions that did not end by themselves; they count as wrong.", "share"),
    "rollouts/n": Metric(SIZES, "Completions behind these numbers.", "count"),
    "judge/fully": Metric(OUTCOME, "Responses in a role that play it fully (score 3): what role vectors are made of.",
                          "share"),
    "judge/somewhat": Metric(OUTCOME, "Responses in a role that play it somewhat (score 2).", "share"),
    "judge/unscored": Metric(OUTCOME, "Responses in a role of which no score could be read.", "share"),
    "responses/tokens": Metric(RESPONSES, "Content tokens whose states were read, per response.", "tokens"),
    "responses/cut": Metric(RESPONSES, "Responses that ran into the limit of their length.", "share"),
    "responses/empty": Metric(RESPONSES, "Responses without a content token; they belong to no vector.", "share"),
    "responses/n": Metric(SIZES, "Responses of the batch.", "count"),
    "alarms": Metric(OUTCOME, "Collapse alarms raised.", "count"),
    "accuracy": Metric(OUTCOME, "Share of pairs where the chosen response scores higher. Guessing gives 0.5.", "share"),
    "first_error/f1": Metric(OUTCOME, "Harmonic mean of the next two: first wrong steps found, right solutions passed.",
                             "share"),
    "first_error/accuracy_wrong": Metric(OUTCOME, "Wrong solutions whose first wrong step is found.", "share"),
    "first_error/accuracy_right": Metric(OUTCOME, "Right solutions in which no step is called wrong.", "share"),
    "outcome/auc": Metric(OUTCOME, "A right solution scores above a wrong one. Chance gives 0.5.", "share"),
    "outcome/accuracy": Metric(OUTCOME, "Final answers that are called what they are.", "share"),
    "steps/accuracy": Metric(OUTCOME, "Labelled steps that are called what they are.", "share"),
    "steps/probability": Metric(OUTCOME, "Mean probability of a labelled step to be right, by the model.", "share"),
    "steps/label": Metric(OUTCOME, "The same by the labels.", "share"),
    "kendall": Metric(OUTCOME, "Share of a ranking's pairs in order, less the share in reverse. Chance gives 0."),
    "top1": Metric(OUTCOME, "Share of rankings whose best response scores highest.", "share"),
    "loss_of_mean": Metric(OUTCOME, "Squared error of predicting the mean grade.", "squared standard deviations"),
    "longer_wins": Metric(OUTCOME, "Accuracy of a rule that always prefers the longer response.", "share"),
    "margin": Metric(OUTCOME, "Score of the chosen response less score of the rejected one.", "score"),
    "ece": Metric(OUTCOME, "Calibration error: how far stated confidence lies from the observed share.", "share"),
    "margin_std": Metric(OUTCOME, "Spread of the margins.", "score"),
    "undecided": Metric(OUTCOME, "Share of pairs whose margin is nearly zero.", "share"),
    "meta/difference": Metric(OUTCOME, "MetaRM's J: how well the policy's responses to one prompt are told apart.", ""),
    "meta/spread": Metric(OUTCOME, "Spread of scores over the policy's responses to one prompt.", "score"),
    "meta/gain": Metric(OPTIMISER, "How much J rises on MetaRM's step up. Not above zero: the step misses.", ""),
    "meta/radius": Metric(OPTIMISER, "Length of MetaRM's step up, as a share of the weights' own norm.", "share"),
    "meta/grad_norm": Metric(OPTIMISER, "Norm of J's gradient.", ""),
    "meta/eta": Metric(OPTIMISER, "Factor of MetaRM's step up.", ""),
    "n": Metric(SIZES, "Pairs that the held-out numbers stand on.", ""),
    "score_chosen": Metric(OUTCOME, "Mean score of chosen responses.", "score"),
    "score_rejected": Metric(OUTCOME, "Mean score of rejected responses.", "score"),
    "perplexity": Metric(OUTCOME, "Exponential of the mean loss per token; 1 is perfect prediction.", ""),
    "groups/gap": Metric(BY_GROUP, "Highest less lowest return of a group.", "standard deviations"),
    "groups/worst": Metric(BY_GROUP, "Return of the lowest group; 0 is the mean of all responses.",
                           "standard deviations"),
    "groups/variance": Metric(BY_GROUP, "Variance of the groups' returns: the head raises it, the policy lowers it."),
    "groups/rand": Metric(BY_GROUP, "Adjusted Rand index of groups and known labels: 1 the same split, 0 chance."),
    "groups/information": Metric(BY_GROUP, "What groups and known labels tell of each other, 0 to 1. Chance raises "
                                 "it with many labels or few responses: trust the Rand index."),
    "groups/shaping": Metric(BY_GROUP, "Mean size of what is added to advantages, in phases where something is.",
                             "advantage"),
    "groups/shaping_max": Metric(BY_GROUP, "The largest of it; groups.cap bounds it.", "advantage"),
    "groups/factor_max": Metric(BY_GROUP, "Largest factor on a response's advantages; a small group's are the largest.",
                                "factor"),
    "groups/coef": Metric(BY_GROUP, "Weight of the groups' objective where it has one: after the warm-up, a ramp."),
    "groups/entropy": Metric(BY_GROUP, "Doubt about which group a response belongs to; 0 is none.", "nats"),
    "groups/objective": Metric(BY_GROUP, "What the head that finds the groups maximises, after its steps."),
    "groups/swaps": Metric(BY_GROUP, "Changes of the groups' order so far.", "count"),
    "kl/reference_k1": Metric(DRIFT, "Drift from the reference, unbiased; can dip below zero.", "nats per token"),
    "kl/reference_k3": Metric(DRIFT, "Drift from the reference, as the estimate never below zero.", "nats per token"),
    "kl/mean": Metric(DRIFT, "Drift from the reference on held-out answers.", "nats per token"),
    "shift/mean": Metric(DRIFT, "What held-out responses gain in log-probability over the reference.",
                         "nats per response"),
    "shift": Metric(DRIFT, "The same for the responses that the step learned from.", "nats per response"),
    "kl": Metric(DRIFT, "The term that shall hold the policy near the reference, before its coefficient.", "nats"),
    "kl/charged": Metric(DRIFT, "Drift by the estimator that the run charges for.", "nats per token"),
    "kl/coef": Metric(DRIFT, "Price of drift; moves where it is adapted or after a rollback.", "per nat"),
    "policy/perplexity": Metric(DRIFT, "How surprised the policy is by its own responses; falling: narrowing.", ""),
    "policy/entropy": Metric(DRIFT, "How open the next token is. A fast fall announces a collapse.", "nats per token"),
    "anchor/loss": Metric(DRIFT, "Price of states that fall below the anchor's threshold, before its coefficient.",
                          "squared standard deviations"),
    "anchor/below": Metric(DRIFT, "Anchored tokens whose state is below the threshold at some block.", "share"),
    "anchor/height": Metric(DRIFT, "How far states of anchored tokens lie above the threshold, on average.",
                            "standard deviations"),
    "response/length": Metric(RESPONSES, "Mean length. Rising with the score: length may be what pays.", "tokens"),
    "response/cut": Metric(RESPONSES, "Responses that hit the length limit instead of ending by themselves.", "share"),
    "response/repetition": Metric(RESPONSES, "How much of a response repeats itself.", "share"),
    "steps/count": Metric(RESPONSES, "Finished steps of a response. Rising without a better outcome: farming.",
                          "steps"),
    "steps/unfinished": Metric(RESPONSES, "Responses whose last step was cut; nothing is paid for it.", "share"),
    "steps/repeated": Metric(RESPONSES, "Steps that say what an earlier step of the response said.", "share"),
    "length/mean": Metric(RESPONSES, "Mean length on held-out prompts.", "tokens"),
    "ended/mean": Metric(RESPONSES, "Answers to held-out prompts that ended by themselves.", "share"),
    "length": Metric(RESPONSES, "Mean length of the responses that the step learned from.", "tokens"),
    "response/tokens": Metric(RESPONSES, "Tokens written in the step, over all responses.", "tokens"),
    "score/n": Metric(SIZES, "Responses that the held-out scores stand on.", ""),
    "gold/n": Metric(SIZES, "Responses that the held-out gold scores stand on.", ""),
    "win_rate/gold/n": Metric(SIZES, "Prompts that the held-out win rate stands on.", ""),
    "win_rate/score/n": Metric(SIZES, "Prompts that the held-out win rate stands on.", ""),
    "ended/n": Metric(SIZES, "Answers that the held-out share of ended ones stands on.", ""),
    "shift/n": Metric(SIZES, "Responses that the held-out drift stands on.", ""),
    "nll/n": Metric(SIZES, "Responses that the held-out cross-entropy stands on.", ""),
    "length/n": Metric(SIZES, "Responses that the held-out length stands on.", ""),
    "policy/ratio": Metric(POLICY, "Mean probability ratio of a token, new policy over old; 1 is no change.", "ratio"),
    "policy/sampler_gap": Metric(POLICY, "How far the sampler's log-probabilities lie from the trainer's.", "nats"),
    "policy/kl_old": Metric(POLICY, "Distance moved within one step, from the policy that sampled.", "nats per token"),
    "policy/clipped": Metric(POLICY, "Tokens whose probability ratio left the trust region.", "share"),
    "ratio": Metric(POLICY, "Importance weight of a response, policy over reference, cut to its band.", "ratio"),
    "ratio/above": Metric(POLICY, "Ratios cut at the upper end. Near 1: the ratio says nothing any more.", "share"),
    "ratio/below": Metric(POLICY, "Ratios cut at the lower end.", "share"),
    "update/steps": Metric(POLICY, "Optimiser steps taken; fewer where the policy moved too far.", "count"),
    "value/explained_variance": Metric(CRITIC, "Part of the returns the critic foresees; at 0 it is blind.", "share"),
    "value/clipped": Metric(CRITIC, "Tokens whose value moved further than its limit.", "share"),
    "value/mean": Metric(CRITIC, "What the critic expects.", "reward"),
    "reward/mean": Metric(CREDIT, "Score after scaling and clipping, less the charge for drift.", "reward"),
    "score/processed": Metric(CREDIT, "Scores after centring, scaling and clipping.", "processed score"),
    "score/processed_std": Metric(CREDIT, "Their spread: near 1 while the moments keep up.", "processed score"),
    "return/mean": Metric(CREDIT, "Discounted reward still to come, per token.", "reward"),
    "advantage/mean": Metric(CREDIT, "How much better than expected a token did, before whitening.", "reward"),
    "advantage/std": Metric(CREDIT, "Spread of the advantages.", "reward"),
    "steps/score": Metric(CREDIT, "Raw score of a step.", "score"),
    "steps/paid": Metric(CREDIT, "What a response is paid for its steps, after processing and credit rule.",
                         "processed score"),
    "credit": Metric(CREDIT, "What a response weighs: its advantage, its reward, or one.", "reward"),
    "moments/mean": Metric(CREDIT, "Running mean of the scores, used to scale them.", "score"),
    "moments/std": Metric(CREDIT, "Running spread of the scores, used to scale them.", "score"),
    "loss": Metric(LOSSES, "What is being minimised.", "nats"),
    "nll/mean": Metric(LOSSES, "Cross-entropy of held-out responses of the data.", "nats per token"),
    "logprob": Metric(LOSSES, "Log-probability of the responses that the step learned from.", "nats per response"),
    "rank": Metric(LOSSES, "The ranking part of the loss, per prompt.", "nats"),
    "sft": Metric(LOSSES, "Cross-entropy of the best response of each prompt, before its coefficient.", "nats"),
    "center": Metric(LOSSES, "Penalty on scores that drift away from zero.", ""),
    "lm/loss": Metric(LOSSES, "Language-model loss on the chosen responses.", "nats per token"),
    "member": Metric(OPTIMISER, "Which voter the step trains; the curves begin anew with each.", ""),
    "tokens": Metric(OPTIMISER, "Response tokens the step learned from.", "tokens"),
    "loss/policy": Metric(LOSSES, "What the policy minimises but the LM mix. Its curve shows no collapse.", ""),
    "loss/value": Metric(LOSSES, "Loss of the critic.", ""),
    "loss/kl": Metric(LOSSES, "Drift from the reference where it is part of the loss.", "nats per token"),
    "loss/entropy": Metric(LOSSES, "The entropy term, before its coefficient.", "nats per token"),
    "loss/ptx": Metric(LOSSES, "Language-model loss on the demonstrations mixed in.", "nats per token"),
    "grad_norm": Metric(OPTIMISER, "Length of the gradient before clipping.", ""),
    "grad_norm/policy": Metric(OPTIMISER, "Length of the policy's gradient before clipping.", ""),
    "grad_norm/critic": Metric(OPTIMISER, "Length of the critic's gradient before clipping.", ""),
    "lr": Metric(OPTIMISER, "Learning rate.", ""),
    "lr/policy": Metric(OPTIMISER, "Learning rate of the policy.", ""),
    "lr/critic": Metric(OPTIMISER, "Learning rate of the critic.", ""),
    "time/seconds": Metric(TIME, "Duration of a step.", "seconds"),
    "time/sample_s": Metric(TIME, "Time spent writing responses.", "seconds"),
}

OF_A_GROUP = {
    "return": Metric(EACH_GROUP, "Mean return of its responses; 0 is the mean of all.", "standard deviations"),
    "score": Metric(EACH_GROUP, "What the reward model gives its responses, before any scaling.", "score"),
    "mass": Metric(EACH_GROUP, "Part of the responses that belongs to it.", "share"),
    "kl_coef": Metric(EACH_GROUP, "What its drift costs.", "per nat"),
    "kl": Metric(EACH_GROUP, "Its drift from the reference.", "nats per token"),
    "length": Metric(EACH_GROUP, "Mean length of its responses.", "tokens"),
    "disagreement": Metric(EACH_GROUP, "How far the models of the ensemble lie apart on it.", "score"),
    "weight": Metric(EACH_GROUP, "Its weight in group DRO; all weights add up to 1.", "share"),
}
"""By the end of the metric's name; the group stands before it."""

HELD_OUT = {
    "score/mean": Metric(EACH_GROUP, "What the reward model gives answers to held-out prompts of a label.", "score"),
    "gold/mean": Metric(EACH_GROUP, "True reward of answers to held-out prompts of a label.", "gold score"),
    "score/n": Metric(EACH_GROUP, "Answers that the held-out score of a label stands on."),
    "gold/n": Metric(EACH_GROUP, "Answers that the held-out gold score of a label stands on."),
}
"""By the two last parts of the metric's name; the label stands before them, whatever group was found."""


def describe(name: str) -> Metric:
    """The entry of a metric; a name that keel does not know is shown all the same, under its prefix."""
    if name in METRICS:
        return METRICS[name]
    prefix, slash, rest = name.partition("/")
    if slash and (patterned := _patterned(prefix, rest)):
        return patterned
    related = Counter(metric.group for known, metric in METRICS.items() if slash and known.startswith(prefix + "/"))
    if related:
        return Metric(related.most_common(1)[0][0], "")
    return Metric(prefix.replace("_", " ").capitalize() if slash else "Other", "")


def _patterned(prefix: str, rest: str) -> Metric | None:
    """The entry of a metric whose name holds one that the user gave: of a group, an ensemble, a reward, a clock."""
    if prefix == "group" and "/" in rest:
        return (HELD_OUT.get("/".join(rest.split("/")[-2:])) or
                OF_A_GROUP.get(rest.rpartition("/")[2], Metric(EACH_GROUP, "")))
    if prefix == "score" and rest.endswith("/disagreement"):
        return Metric(OUTCOME, "How far the models of this ensemble lie apart. Rising: no model knows these responses.",
                      "score")
    if prefix == "reward" and rest.endswith(("/mean", "/n")):
        return _reward(*rest.rsplit("/", 1))
    if prefix == "persona":
        return _persona(rest)
    return _time(rest) if prefix == "time" else None


OF_PERSONA = {
    "projection": ("Where {who} lie on the axis; up is towards the Assistant.", ""),
    "z": ("Where {who} lie on the axis, from the neutral answers of the start. Falling: drift.", "standard deviations"),
    "below": ("{Who} that lie below all but a twentieth of the neutral answers of the start.", "share"),
    "delta": ("How far {who} lie from where the start sees the very same tokens.", ""),
    "fresh": ("Cosine of the policy's own axis now with that of the start. Below 0.9 the old axis misleads.", ""),
    "fresh_file": ("Cosine of the policy's own axis now with the one that the run reads along.", ""),
}
PROBED = {"neutral": "answers to neutral probes", "role": "answers to probes that ask for a role",
          "drift": "answers to probes that invite drift"}


def _persona(rest: str) -> Metric | None:
    """Of all responses or of a kind of probes; at the first block or at one that is named."""
    *within, what = rest.split("/")
    if what not in OF_PERSONA:
        return None
    who = next((PROBED[part] for part in within if part in PROBED), "responses of the step")
    block = next((part for part in within if part.startswith("block_")), None)
    meaning, unit = OF_PERSONA[what]
    told = meaning.format(who=who, Who=who.capitalize())
    return Metric(DRIFT, told if block is None else f"{told} At {block.replace('_', ' ')}.", unit)


def is_of_groups(name: str) -> bool:
    """Whether a metric is about groups, one or all of them."""
    return describe(name).group in (BY_GROUP, EACH_GROUP)


def _reward(name: str, what: str) -> Metric:
    if what == "mean":
        return Metric(OUTCOME, f"The reward {name} on held-out prompts.", "reward")
    return Metric(SIZES, f"Answers that the held-out reward {name} stands on.", "")


def _time(rest: str) -> Metric:
    if rest.endswith("_per_s"):
        return Metric(TIME, f"{rest.removesuffix('_per_s').capitalize()} processed per second.", "per second")
    return Metric(TIME, f"Time spent on {rest.removesuffix('_s').replace('_', ' ')}.", "seconds")


def position(name: str) -> tuple[int, str, int]:
    """Where a metric stands on the page: group by group, each in the order above, unknown names after the known."""
    group, names = describe(name).group, list(METRICS)
    rank = GROUPS.index(group) if group in GROUPS else len(GROUPS)
    return rank, group, names.index(name) if name in METRICS else len(names)


def recipe_title(recipe: str) -> str:
    """The name of a recipe as a sentence begins with it."""
    return RECIPES.get(recipe, f"Recipe “{recipe}”" if recipe != "unknown" else "A run of unknown recipe")
