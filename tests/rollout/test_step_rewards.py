"""Rewards of single steps: their places, moments of their own, what is paid, and the sum of all parts.

The tiny tokenizer knows words, so steps are parted by " . ": "the cat . no . yes" has three.
"""

import dataclasses
import math
import random

import pytest
import tiny
import tolerances as tol
import torch

from keel.batches import Rollout
from keel.data.collate import collate
from keel.data.records import Message, Prompt
from keel.data.render import Row, template
from keel.errors import ConfigError, DataError, NumericsError
from keel.functional.masked import row_sums
from keel.models.load import LoraSettings, ModelConfig, load_tokenizer, save_model
from keel.models.process import process_model, step_logits
from keel.rollout.credit import AdvantageConfig, TruncationConfig, paid_in_all, with_credit
from keel.rollout.monitor import monitors
from keel.rollout.process import StepScorer
from keel.rollout.respond import Responses
from keel.rollout.reward import RewardSources, merged_moments, processed, with_step_rewards
from keel.rollout.reward_settings import RewardConfig, ScoreConfig

TEXTS = ["the cat . no . yes", "no", "red dog . why", "one . one . one"]
ENDED = [True, True, False, True]
RAW = ScoreConfig(center=False, scale=None, clip=None)
HERE = "rollout.test_step_rewards"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A process model of the policy's family."""
    base = tmp_path_factory.mktemp("p")
    source = str(tiny.llama(base / "policy"))
    model = process_model(ModelConfig(path=source), seed=1)
    with torch.no_grad():
        model.score.weight.mul_(20.0)
    save_model(model, load_tokenizer(source), base / "prm", pad_id=0)
    return base


@pytest.fixture(scope="module")
def words(folder):
    return template(load_tokenizer(str(folder / "policy")))


def answering(words, order=None, texts=TEXTS, ended=ENDED, answer="2") -> Responses:
    """Those responses, right-padded, as a policy would have sampled them."""
    asked = [Prompt(f"q{i}", (Message("user", "hello cat " * (i + 1)),), meta={"answer": answer})
             for i in range(len(texts))]
    rows, order = [], list(range(len(texts)) if order is None else order)
    for i in order:
        head = words.prompt_ids(asked[i])
        rows.append(Row(head + words.response_ids(texts[i], ended[i]), len(head), asked[i].id))
    tokens = collate(rows, words.pad_id)
    rollout = Rollout(tokens, torch.zeros(tokens.ids.shape), torch.tensor([ended[i] for i in order]),
                      torch.tensor(order), kl=torch.zeros(tokens.ids.shape),
                      values=torch.zeros(tokens.ids.shape))
    return Responses(rollout, tuple(asked[i] for i in order), tuple(texts[i] for i in order))


def lengths_of_steps(prompt, text, ended):
    """A number for each step: how many words it has."""
    parts = [part for part in text.split(".") if part.strip()]
    return [float(len(part.split())) for part in (parts if ended else parts[:-1])]


def words_in_all(prompt, text, ended):
    return float(len(text.split()))


def failing(prompt, text, ended):
    raise KeyError("sum")


def too_many(prompt, text, ended):
    return [1.0] * 9


def endless(prompt, text, ended):
    return [math.inf for _ in lengths_of_steps(prompt, text, ended)]


def ten_each(prompt, text, ended):
    """Ten for each step that "no" or the end of the response ends."""
    return {TEXTS[0]: [10.0, 10.0], TEXTS[3]: [10.0]}.get(text, [])


def by_length(credit="sum", **more) -> RewardConfig:
    steps = {"separator": ".", "credit": credit} | more
    return RewardConfig(name="steps", function=f"{HERE}:lengths_of_steps", steps=steps)


WHOLE = RewardConfig(name="whole", function=f"{HERE}:words_in_all", weight=0.5)


def rewarded(responses, words, *sources, score=RAW, moments=None):
    """The rollout with step rewards, its processed scores, and what the sources said."""
    rewards = RewardSources(sources, words, 64)
    scored = rewards(responses)
    known = merged_moments(moments or {}, scored, responses.rollout.tokens.response_mask)
    rollout = with_step_rewards(responses.rollout, scored, known, score, rewards.weights)
    return rollout, processed(scored, known, score, rewards.weights), scored


def credited(rollout, scores, estimator="gae", truncation=None, group=1):
    how = AdvantageConfig(estimator=estimator, lam=1.0, group=group)
    return with_credit(rollout, scores, kl_coef=0.0, truncation=truncation or TruncationConfig(), advantage=how)


# --- where and what ---------------------------------------------------------------------------------------------------


def test_each_step_is_paid_at_the_token_that_ends_it_in_a_batch_of_mixed_counts(words):
    responses = answering(words)
    rollout, _, scored = rewarded(responses, words, by_length())
    mask = rollout.tokens.response_mask
    # the cat . | no . | yes <eos>;  no <eos>;  red dog . why (cut);  one . | one . | one <eos>
    paid = [[0, 0, 2, 0, 1, 0, 1], [0, 1], [0, 0, 2, 0], [0, 1, 0, 0, 0, 0]]
    assert [row[own].tolist() for row, own in zip(rollout.step_rewards, mask, strict=True)] == paid
    ends = [[0, 0, 1, 0, 1, 0, 1], [0, 1], [0, 0, 1, 0], [0, 1, 0, 1, 0, 1]]
    assert [row[own].int().tolist() for row, own in zip(rollout.step_ends, mask, strict=True)] == ends
    assert not bool(rollout.step_ends[~mask].any()) and not bool(rollout.step_rewards[~mask].any())
    assert scored.steps["steps"].unfinished == (False, False, True, False)
    assert scored.steps["steps"].repeated.tolist() == [False] * 6 + [True, True]


def test_a_step_that_says_what_was_said_earns_nothing_unless_the_settings_pay_it(words):
    responses = answering(words)
    again, _, _ = rewarded(responses, words, by_length(repeats=True))
    once, _, _ = rewarded(responses, words, by_length())
    mask = again.tokens.response_mask
    assert again.step_rewards[3][mask[3]].tolist() == [0, 1, 0, 1, 0, 1]
    assert once.step_rewards[3][mask[3]].tolist() == [0, 1, 0, 0, 0, 0]
    negative, _, _ = rewarded(responses, words, by_length(credit="clip", bound=5.0))
    assert negative.step_rewards[3][mask[3]].tolist() == [0, -4, 0, -4, 0, -4]  # what costs costs each time


def test_the_total_reward_is_the_sum_of_its_parts(words):
    responses = answering(words)
    rollout, scores, scored = rewarded(responses, words, by_length(), WHOLE)
    found = credited(rollout, scores)
    steps = torch.tensor([4.0, 1.0, 2.0, 1.0])
    whole = torch.tensor([6.0, 1.0, 4.0, 5.0])
    assert torch.equal(row_sums(found.rewards, found.tokens.response_mask), steps + 0.5 * whole)
    assert torch.equal(paid_in_all(rollout, scores, TruncationConfig()), steps + 0.5 * whole)
    # For people a source of steps is the mean of its steps, a repeated one included; the outcome stands beside it.
    means = torch.tensor([4 / 3, 1.0, 2.0, 1.0])
    assert torch.allclose(scored.raw["steps"], means, **tol.FLOAT32)
    assert torch.allclose(scored.total, means + 0.5 * whole, **tol.FLOAT32)
    assert torch.equal(scored.outcome, 0.5 * whole)


@pytest.mark.parametrize("estimator", ["gae", "rloo", "grpo", "reinforce++"])
def test_one_step_is_outcome_mode(words, estimator):
    """A step that ends with its response, paid what a score would be, gives the advantages of that score."""
    texts = ["the cat", "no", "red dog why", "one"]
    responses = answering(words, texts=texts, ended=[True] * 4)
    as_steps = RewardConfig(name="x", function=f"{HERE}:lengths_of_steps", steps={"separator": "."})
    as_score = RewardConfig(name="x", function=f"{HERE}:words_in_all")
    score = ScoreConfig(center=False)
    one = credited(*rewarded(responses, words, as_steps, score=score)[:2], estimator, group=2)
    other = credited(*rewarded(responses, words, as_score, score=score)[:2], estimator, group=2)
    assert torch.equal(one.rewards, other.rewards)
    torch.testing.assert_close(one.advantages, other.advantages, **tol.FLOAT32)
    assert bool(one.advantages.any())


def test_steps_and_scores_have_moments_of_their_own(words):
    responses = answering(words)
    rewards = RewardSources([by_length(), WHOLE], words, 64)
    scored = rewards(responses)
    known = merged_moments({}, scored, responses.rollout.tokens.response_mask)
    values, whole = torch.tensor([2.0, 1, 1, 1, 2, 1, 1, 1]), torch.tensor([6.0, 1.0, 4.0, 5.0])
    assert known["steps"].tolist()[:2] == [8.0, float(values.mean())]
    assert known["whole"].tolist()[:2] == [4.0, float(whole.mean())]
    rollout = with_step_rewards(responses.rollout, scored, known, ScoreConfig(), rewards.weights)
    paid = rollout.step_rewards[rollout.step_ends]
    assert torch.allclose(paid[:6], (values / values.std())[:6], **tol.FLOAT32)  # scaled, and never centred
    assert paid[6:].tolist() == [0.0, 0.0]  # repeated
    assert known["steps/rolling"][0] == responses.rollout.tokens.n_response_tokens
    more = merged_moments(known, scored, responses.rollout.tokens.response_mask)
    assert more["steps"][0] == 16.0 and known["steps"][0] == 8.0


@pytest.mark.parametrize("credit", ["sum", "mean", "min", "delta"])
def test_no_step_is_worth_less_than_steps_of_the_usual_kind(words, credit):
    """Were the mean taken off each step, the shortest answer would earn most, and none more than an ordinary one."""
    texts, ended = ["red dog . why no . one two", "no", "the cat", "hello"], [True, True, False, True]
    source = by_length(credit=credit, repeats=True)
    rollout, _, _ = rewarded(answering(words, texts=texts, ended=ended), words, source, score=ScoreConfig())
    paid = row_sums(rollout.step_rewards, rollout.tokens.response_mask).tolist()
    assert paid[2] == 0.0 and min(paid[0], paid[1], paid[3]) > 0.0 and paid[0] > paid[1]


def test_rolling_sums_of_steps_are_of_what_is_paid_token_by_token(words):
    responses = answering(words, order=[0], texts=TEXTS)
    rewards = RewardSources([by_length()], words, 64)
    known = merged_moments({}, rewards(responses), responses.rollout.tokens.response_mask)
    sums = torch.tensor([0.0, 0, 2, 2, 3, 3, 4])
    assert known["steps/rolling"].tolist()[:2] == [7.0, float(sums.double().mean())]


def test_the_order_of_responses_changes_nothing(words):
    order = list(range(4))
    random.Random(0).shuffle(order)
    straight = rewarded(answering(words), words, by_length(credit="min"))[0]
    shuffled = rewarded(answering(words, order=order), words, by_length(credit="min"))[0]
    for place, i in enumerate(order):
        own = straight.step_rewards[i][straight.tokens.response_mask[i]]
        assert torch.equal(own, shuffled.step_rewards[place][shuffled.tokens.response_mask[place]])
        assert torch.equal(own, shuffled.rows([place]).step_rewards[0][shuffled.rows([place]).tokens.response_mask[0]])


def test_responses_without_a_finished_step_are_paid_nothing_for_steps(words):
    responses = answering(words, texts=["the cat", "no dog"], ended=[False, False])
    rollout, scores, scored = rewarded(responses, words, by_length(), score=ScoreConfig())
    assert scored.raw["steps"].tolist() == [0.0, 0.0] and not bool(rollout.step_ends.any())
    assert not bool(credited(rollout, scores).rewards.any())


def test_a_cut_response_keeps_what_its_whole_steps_earned(words):
    rollout, scores, _ = rewarded(answering(words), words, by_length(), WHOLE)
    told = credited(rollout, scores, truncation=TruncationConfig(how="constant", value=-1.0))
    assert float(row_sums(told.rewards, told.tokens.response_mask)[2]) == -1.0 + 2.0
    assert float(paid_in_all(rollout, scores, TruncationConfig(how="constant", value=-1.0))[2]) == -1.0 + 2.0


# --- several sources --------------------------------------------------------------------------------------------------

BY_NO = RewardConfig(name="noes", function=f"{HERE}:ten_each", weight=0.5, steps={"separator": "no", "credit": "sum"})


def test_sources_of_steps_add_up_by_their_weights_and_their_ends_are_joined(words):
    responses = answering(words)
    rollout, _, _ = rewarded(responses, words, by_length().model_copy(update={"weight": 2.0}), BY_NO)
    mask = rollout.tokens.response_mask
    # the cat . | no . | yes <eos>, twice its words; the cat . no | . yes <eos>, half of ten.
    paid = [[0, 0, 4, 5, 2, 0, 2 + 5], [0, 2], [0, 0, 4, 0], [0, 2, 0, 0, 0, 5]]
    assert [row[own].tolist() for row, own in zip(rollout.step_rewards, mask, strict=True)] == paid
    ends = [[0, 0, 1, 1, 1, 0, 1], [0, 1], [0, 0, 1, 0], [0, 1, 0, 1, 0, 1]]
    assert [row[own].int().tolist() for row, own in zip(rollout.step_ends, mask, strict=True)] == ends
    other, _, _ = rewarded(responses, words, BY_NO, by_length().model_copy(update={"weight": 2.0}))
    assert torch.equal(other.step_rewards, rollout.step_rewards) and torch.equal(other.step_ends, rollout.step_ends)


def test_numbers_of_steps_are_means_over_the_sources(words):
    rollout, scores, scored = rewarded(answering(words), words, by_length(), BY_NO)
    measured = dataclasses.replace(credited(rollout, scores), logprobs=torch.zeros(rollout.tokens.ids.shape),
                                   ref_logprobs=torch.zeros(rollout.tokens.ids.shape))
    told = monitors(measured, scored, scores, merged_moments({}, scored, rollout.tokens.response_mask))
    # Steps by points: 3, 1, 1, 3; by noes: 2, 0, 0, 1. Two of the eight by points repeat, and both cut the third.
    assert told["steps/count"] == pytest.approx((8 / 4 + 3 / 4) / 2, abs=tol.SIX_DECIMALS)
    assert told["steps/repeated"] == pytest.approx(2 / 11, abs=tol.SIX_DECIMALS)
    assert told["steps/unfinished"] == 2 / 8
    assert told["steps/score"] == pytest.approx((2 + 1 + 1 + 1 + 2 + 3 + 30) / 11, abs=tol.SIX_DECIMALS)
    assert told["steps/paid"] == pytest.approx((4 + 1 + 2 + 1 + 0.5 * 30) / 4, abs=tol.SIX_DECIMALS)


def test_steps_that_end_in_one_token_are_paid_together(words):
    told = rewarded(answering(words), words, by_length())[2].steps["steps"]
    two = dataclasses.replace(told, values=torch.tensor([1.0, 2.5, 4.0]), rows=torch.tensor([0, 0, 1]),
                              columns=torch.tensor([2, 2, 2]))
    assert two.placed(torch.Size([2, 3])).tolist() == [[0, 0, 3.5], [0, 0, 4]]
    assert two.placed_ends(torch.Size([2, 3])).int().tolist() == [[0, 0, 1], [0, 0, 1]]


def test_steps_beyond_the_cap_are_paid_nothing(words):
    rollout, _, _ = rewarded(answering(words), words, by_length(cap=2, repeats=True))
    mask = rollout.tokens.response_mask
    paid = [[0, 0, 2, 0, 1, 0, 0], [0, 1], [0, 0, 2, 0], [0, 1, 0, 1, 0, 0]]
    assert [row[own].tolist() for row, own in zip(rollout.step_rewards, mask, strict=True)] == paid


# --- process models ---------------------------------------------------------------------------------------------------


def prm(folder, *, count=1, **more) -> RewardConfig:
    return RewardConfig(name="prm", models=[str(folder / "prm")] * count, steps={"separator": ".", "credit": "sum",
                                                                                 "repeats": True}, **more)


def test_a_process_model_pays_its_probability_where_the_step_ends(folder, words):
    responses = answering(words)
    rollout, _, scored = rewarded(responses, words, prm(folder))
    model, tokens = process_model(ModelConfig(path=str(folder / "prm"))), responses.rollout.tokens
    for i in range(len(TEXTS)):
        alone = responses.rollout.rows([i])
        columns = rollout.step_ends[i].nonzero()[:, 0]
        wanted = step_logits(model, alone.tokens, torch.zeros_like(columns), columns).sigmoid()
        torch.testing.assert_close(rollout.step_rewards[i][columns], wanted.detach(), **tol.FLOAT32)
    assert len({round(x, 4) for x in scored.steps["prm"].values.tolist()}) > 3
    assert tokens.n_response_tokens == 19


def test_a_process_model_with_another_tokenizer_reads_the_text(folder, words, tmp_path):
    tokenizer = load_tokenizer(str(folder / "prm"))
    # Another template, which spells every conversation like the policy's, so that the numbers must be the same.
    tokenizer.chat_template = tokenizer.chat_template.replace("<bos>", "<bos><bos>", 1)
    save_model(process_model(ModelConfig(path=str(folder / "prm"))), tokenizer, tmp_path / "prm", pad_id=0)
    other = rewarded(answering(words), words, prm(tmp_path))[2].steps["prm"]
    same = rewarded(answering(words), words, prm(folder))[2].steps["prm"]
    assert torch.equal(other.rows, same.rows) and torch.equal(other.columns, same.columns)
    assert other.texts == same.texts
    torch.testing.assert_close(other.values, same.values, **tol.FLOAT32)


def test_an_ensemble_of_process_models_is_combined_step_by_step(folder, words):
    one = rewarded(answering(words), words, prm(folder))[0]
    two = rewarded(answering(words), words, prm(folder, count=2, combine="minimum"))[0]
    torch.testing.assert_close(one.step_rewards, two.step_rewards, **tol.FLOAT32)


def test_process_models_that_differ_disagree_and_are_combined(folder, words, tmp_path):
    source = str(folder / "policy")
    other = process_model(ModelConfig(path=source), seed=2)
    with torch.no_grad():
        other.score.weight.mul_(20.0)
    save_model(other, load_tokenizer(source), tmp_path / "prm", pad_id=0)
    one, two = (rewarded(answering(words), words, prm(base))[2].steps["prm"].values for base in (folder, tmp_path))
    assert float((one - two).abs().max()) > 0.1
    both = RewardConfig(name="prm", models=[str(folder / "prm"), str(tmp_path / "prm")],
                        steps={"separator": ".", "credit": "sum", "repeats": True})
    for how, wanted in (("mean", (one + two) / 2), ("minimum", torch.minimum(one, two)),
                        ("mean_minus_std", (one + two) / 2 - 0.5 * (one - two).abs() / 2)):
        coef = {"dissent_coef": 0.5} if how == "mean_minus_std" else {}
        scored = rewarded(answering(words), words, both.model_copy(update={"combine": how, **coef}))[2]
        told = scored.steps["prm"]
        torch.testing.assert_close(told.values, wanted, **tol.FLOAT32)
        torch.testing.assert_close(told.spread, (one - two).abs() / 2, **tol.FLOAT32)
        torch.testing.assert_close(scored.disagreement["prm"], told.spreads, **tol.FLOAT32)
    assert scored.disagreement["prm"].min() > 0


def test_texts_that_go_on_from_plain_ones_have_no_turn_around_them(folder, words):
    model, tokenizer = process_model(ModelConfig(path=str(folder / "prm"))), load_tokenizer(str(folder / "prm"))
    # In a conversation this template begins every response with a word, which plain texts do not get.
    tokenizer.chat_template = tokenizer.chat_template.replace("{% generation %}{{ m['content']",
                                                              "{% generation %}{{ 'hello ' + m['content']")
    own = template(tokenizer)
    assert own.lead == "hello "
    (told,) = StepScorer(model, own, ".", 64).of_texts([Prompt("q", (), "why no")], ["the cat . yes"], [True])
    ids = tokenizer.convert_tokens_to_ids(["<bos>", "why", "no", "the", "cat", ".", "yes", "<eos>"])
    batch = collate([Row(ids, 3, "q")], words.pad_id)
    wanted = step_logits(model, batch, torch.tensor([0, 0]), torch.tensor([5, 7])).sigmoid()
    assert told.texts == ("the cat ", " yes") and told.unfinished == ""
    torch.testing.assert_close(torch.tensor(told.probabilities), wanted.detach(), **tol.FLOAT32)


def test_the_disagreement_of_process_models_is_logged_step_by_step(folder, words):
    scored = rewarded(answering(words), words, prm(folder, count=2))[2]
    assert scored.disagreement["prm"].tolist() == pytest.approx([0.0] * 4, abs=tol.SIX_DECIMALS)
    assert "prm" not in rewarded(answering(words), words, prm(folder))[2].disagreement
    told = scored.steps["prm"]
    apart = dataclasses.replace(told, spread=torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8]))
    assert apart.spreads.tolist() == [2.0, 4.0, 5.0, 7.0]
    assert prm(folder, count=2).warning is None  # probabilities have one scale


def test_a_process_model_says_nothing_of_responses_without_a_finished_step(folder, words):
    responses = answering(words, texts=["the cat", "no dog"], ended=[False, False])
    for count in (1, 2):
        rollout, _, scored = rewarded(responses, words, prm(folder, count=count))
        assert scored.raw["prm"].tolist() == [0.0, 0.0] and not bool(rollout.step_ends.any())


def test_micro_batches_change_no_probability(folder, words):
    responses = answering(words)
    few, many = (RewardSources([prm(folder)], words, n)(responses).steps["prm"].values for n in (8, 4096))
    torch.testing.assert_close(few, many, **tol.FLOAT32)


def test_broken_weights_are_named(folder, words, tmp_path):
    model = process_model(ModelConfig(path=str(folder / "prm")))
    with torch.no_grad():
        model.score.weight.fill_(math.nan)
    save_model(model, load_tokenizer(str(folder / "prm")), tmp_path / "nan", pad_id=0)
    source = RewardConfig(name="nan", models=[str(tmp_path / "nan")], steps={"separator": "."})
    with pytest.raises(NumericsError, match=r"q0.*score of a step is not a number"):
        rewarded(answering(words), words, source)


def test_a_process_model_that_only_scores_takes_no_adapter(folder, words):
    spec = ModelConfig(path=str(folder / "prm"), lora=LoraSettings(rank=2))
    source = RewardConfig(name="x", models=(spec,), steps={})
    with pytest.raises(ConfigError, match=r"lora\.rank=2 of a process model that only scores"):
        RewardSources([source], words, 64)


# --- answers ----------------------------------------------------------------------------------------------------------


def test_a_right_answer_is_paid_and_a_missing_one_is_an_error(words):
    source = RewardConfig(name="answer", answer={"extract": "whole", "compare": "exact", "right": 2.0, "wrong": -1.0})
    said, ended = ["no", "no", "yes", " no ."], [True, False, True, True]
    scored = RewardSources([source], words, 64)(answering(words, texts=said, ended=ended, answer="no"))
    assert scored.raw["answer"].tolist() == [2.0, -1.0, -1.0, -1.0]  # what was cut has no final answer
    with pytest.raises(DataError, match="no right answer: the column 'answer' is absent or empty"):
        RewardSources([source], words, 64)(answering(words, answer=" "))


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given, fragment", [
    ({"endpoint": "http://a/", "steps": {}}, "in reward 'a': whole models or a function score single steps"),
    ({"answer": {}, "steps": {}}, "steps and answer exclude each other"),
    ({"models": ["m"], "adapters": ["x", "y"], "steps": {}}, "steps and adapters exclude each other"),
    ({"function": "m:f", "answer": {}}, "function and answer exclude each other"),
    ({"function": "m:f", "steps": {"credit": "clip"}}, "steps.credit='clip' and steps.bound=None do not go together"),
    ({"function": "m:f", "steps": {"bound": 1.0}}, "steps.credit='mean' and steps.bound=1.0 do not go together"),
    ({"answer": {"right": 0.0}}, "answer.right=0 is not above answer.wrong=0: it would teach wrong answers"),
    ({"function": "m:f", "steps": {"separator": ""}}, "separator = ''"),
    ({"function": "m:f", "steps": {"cap": 0}}, "cap = 0"),
])
def test_settings_that_exclude_each_other(given, fragment):
    with pytest.raises(ConfigError) as caught:
        RewardConfig.checked({"name": "a"} | given)
    assert fragment in str(caught.value)


@pytest.mark.parametrize("function, fragment", [
    ("failing", "the function that scores steps failed: KeyError: 'sum'"),
    ("too_many", "gave 9 scores for a response of 3 finished steps"),
    ("endless", "gave a step a score that is not finite"),
])
def test_a_function_that_gives_no_number_for_each_step_is_named(words, function, fragment):
    source = RewardConfig(name="x", function=f"{HERE}:{function}", steps={"separator": "."})
    with pytest.raises(NumericsError, match=fragment):
        RewardSources([source], words, 64)(answering(words))


def test_a_reward_of_steps_is_no_model_that_a_critic_could_start_from():
    assert RewardConfig(name="x", models=["m"], steps={}).whole is None
    assert RewardConfig(name="x", models=["m"]).whole is not None


def test_a_separator_can_be_typed_on_a_command_line():
    """A shell hands over a backslash and an n; a file in TOML has the line break itself."""
    typed = RewardConfig(name="x", function="m:f", steps={"separator": r"\n\n"})
    written = RewardConfig(name="x", function="m:f", steps={"separator": "\n\n"})
    assert typed.steps.separator == written.steps.separator == "\n\n"
    assert RewardConfig(name="x", function="m:f", steps={}).steps.separator == "\n"
