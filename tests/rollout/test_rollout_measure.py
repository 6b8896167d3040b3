import pytest
import tiny
import tolerances as tol
import torch

from keel.batches import Rollout
from keel.data.collate import collate
from keel.data.records import Message, Prompt
from keel.data.render import Row, template
from keel.errors import NumericsError
from keel.models.forward import response_scores, token_logprobs, token_values
from keel.models.load import ModelConfig, causal_lm, load_tokenizer, scalar_model
from keel.rollout.measure import Scorer, measure, same_tokens
from keel.rollout.respond import Responses

TEXTS = ["yes please .", "no", "the cat sat", "why ? hello two red"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.llama(tmp_path_factory.mktemp("m")))


@pytest.fixture(scope="module")
def responses(folder):
    """Four plain-word responses, the last one cut, as the sampler would return them."""
    words = template(load_tokenizer(folder))
    asked = [Prompt(f"q{i}", (Message("user", "hello cat " * (i + 1)),)) for i in range(4)]
    heads = [words.prompt_ids(p) for p in asked]
    rows = [
        Row(h + words.response_ids(t, i < 3), len(h), p.id)
        for i, (h, t, p) in enumerate(zip(heads, TEXTS, asked, strict=True))
    ]
    tokens = collate(rows, words.pad_id)
    rollout = Rollout(tokens, torch.zeros(tokens.ids.shape), torch.tensor([True, True, True, False]), torch.arange(4))
    return Responses(rollout, tuple(asked), tuple(TEXTS))


def test_every_model_measures_the_same_tokens_whatever_the_parts(folder, responses):
    words, model = template(load_tokenizer(folder)), scalar_model(ModelConfig(path=folder), seed=1)
    policy, tokens = causal_lm(ModelConfig(path=folder)), responses.rollout.tokens
    for budget in (1, 25, 10_000):
        found = measure(
            responses,
            policy=policy,
            reference=policy,
            critic=model,
            micro_tokens=budget,
            temperature=1.0,
            kl="full",
            bootstrap=True,
        )
        torch.testing.assert_close(found.ref_logprobs, token_logprobs(policy, tokens)[0], **tol.FLOAT32)
        torch.testing.assert_close(found.values, token_values(model, tokens), **tol.FLOAT32)
        torch.testing.assert_close(found.after_values, response_scores(model, tokens), **tol.FLOAT32)
        torch.testing.assert_close(found.kl, torch.zeros_like(found.kl), **tol.FLOAT32)
        scores = Scorer(model, words, words, budget)(responses)
        torch.testing.assert_close(scores, response_scores(model, tokens), **tol.FLOAT32)


def test_scores_through_text_equal_scores_of_the_tokens(folder, responses):
    """A reward model with another template object reads the text; where both mean the same, the scores agree."""
    words, model = template(load_tokenizer(folder)), scalar_model(ModelConfig(path=folder), seed=1)
    by_tokens = Scorer(model, words, words, 1000)
    by_text = Scorer(model, words, words, 30)
    by_text.same_tokens = False
    torch.testing.assert_close(by_text(responses), by_tokens(responses), **tol.FLOAT32)


def test_tokenizers_are_the_same_only_with_the_same_template_and_vocabulary(folder, tmp_path):
    words = template(load_tokenizer(folder))
    assert same_tokens(words, template(load_tokenizer(folder)))
    other = load_tokenizer(folder)
    other.chat_template = "{# x #}" + other.chat_template
    assert not same_tokens(words, template(other))
    grown = load_tokenizer(folder)
    grown.add_tokens(["zebra"])
    assert not same_tokens(words, template(grown))


def test_scoring_function_must_give_a_finite_number(responses):
    with pytest.raises(NumericsError, match="record q0: the scoring function gave nan"):
        responses.scored_by(lambda *_: float("nan"))
    for function in (lambda *_: "text", lambda *_: 1 / 0):
        with pytest.raises(NumericsError, match=r"record q0: the scoring function failed: (Value|ZeroDivision)Error"):
            responses.scored_by(function)
    assert responses.scored_by(lambda p, t, e: len(t) - e).tolist() == [len(t) - (i < 3) for i, t in enumerate(TEXTS)]
