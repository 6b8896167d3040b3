import pytest
import tiny
import tolerances as tol
import torch

from keel.errors import ModelError
from keel.models.forward import token_logprobs
from keel.models.load import ModelConfig, causal_lm
from keel.rng import stream
from keel.rollout.sample import SamplingConfig, sample


@pytest.fixture(scope="module", params=[tiny.llama, tiny.gpt2])
def model(request, tmp_path_factory):
    return causal_lm(ModelConfig(path=str(request.param(tmp_path_factory.mktemp("m")))))


PROMPTS = [[1, 4, 8 + i % 9] + [9] * (i % 5) for i in range(30)]


def draw(model, prompts=PROMPTS, seed=0, ids=None, **settings):
    config = SamplingConfig(**({"max_new_tokens": 12, "slots": 8} | settings))
    ids = ids if ids is not None else list(range(len(prompts)))
    return sample(
        model,
        prompts,
        config,
        [stream(seed, "s", i) for i in ids],
        stop_ids=[2],
        pad_id=0,
        record_ids=[f"r{i}" for i in ids],
    )


def rows(rollout):
    return [ids[real].tolist() for ids, real in zip(rollout.tokens.ids, rollout.tokens.attention_mask, strict=True)]


def test_rows_are_prompt_plus_response_and_end_by_eos_or_limit(model):
    rollout = draw(model)
    for row, prompt, response, ended in zip(
        rows(rollout), PROMPTS, rollout.tokens.response_mask, rollout.ended, strict=True
    ):
        said = row[len(prompt) :]
        assert row[: len(prompt)] == prompt and len(said) == int(response.sum())
        assert 1 <= len(said) <= 12 and (2 not in said[:-1]) and bool(ended) == (said[-1] == 2)
        assert ended or len(said) == 12
    assert rollout.ended.any() and not rollout.ended.all()


@pytest.mark.parametrize("slots", [1, 3, 30, 64])
def test_a_sample_does_not_depend_on_its_neighbours(model, slots):
    """Any number of slots, any company, any order: the same prompt and stream say the same."""
    all_rows = rows(draw(model))
    assert rows(draw(model, slots=slots)) == all_rows
    some = [17, 3, 29, 4]
    assert rows(draw(model, [PROMPTS[i] for i in some], ids=some, slots=slots)) == [all_rows[i] for i in some]


def test_seed_and_stream_decide(model):
    assert rows(draw(model, seed=1)) != rows(draw(model, seed=0))


def test_logprobs_are_those_of_the_full_forward_pass(model):
    for settings in ({}, {"temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.3}):
        rollout = draw(model, **settings)  # raw: of the model itself, whatever the filters
        full = token_logprobs(model, rollout.tokens)[0]
        torch.testing.assert_close(rollout.logprobs, full, **tol.GRADIENT32)


def test_tempered_logprobs_are_at_the_sampling_temperature(model):
    rollout = draw(model, temperature=0.6, logprobs="tempered")
    torch.testing.assert_close(
        rollout.logprobs, token_logprobs(model, rollout.tokens, temperature=0.6)[0], **tol.GRADIENT32
    )


def test_greedy_equals_plain_transformers(model):
    prompts = [[1, 4, 9], [1, 4, 10], [1, 4, 11]]
    found = rows(draw(model, prompts, temperature=0))
    for prompt, row in zip(prompts, found, strict=True):
        said = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, 3).long(),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=2,
            pad_token_id=0,
        )[0].tolist()
        assert row == said


def test_samples_follow_the_models_distribution(model):
    """Exact sampling: next-token frequencies over many streams against the softmax, chi-square by standard errors."""
    n = 3000
    rollout = draw(model, [[1, 4, 9]] * n, max_new_tokens=1, slots=512)
    first = torch.tensor([row[3] for row in rows(rollout)])
    p = model(input_ids=torch.tensor([[1, 4, 9]])).logits[0, -1].softmax(-1)
    share = torch.bincount(first, minlength=23) / n
    assert ((share - p).abs() <= tol.STANDARD_ERRORS * (p * (1 - p) / n).sqrt() + 1 / n).all()


def test_top_k_one_is_greedy_and_repetition_penalty_is_over_the_response_only(model):
    assert rows(draw(model, top_k=1)) == rows(draw(model, temperature=0))
    free, punished = draw(model, temperature=0), draw(model, temperature=0, repetition_penalty=50.0)
    assert rows(punished) != rows(free)
    first = [row[len(p)] for row, p in zip(rows(free), PROMPTS, strict=True)]
    assert [row[len(p)] for row, p in zip(rows(punished), PROMPTS, strict=True)] == first  # nothing written yet
    for row, prompt in zip(rows(punished), PROMPTS, strict=True):
        said = row[len(prompt) :]
        assert len(set(said)) >= min(len(said), 10)


SHARPENED = [{"top_p": 0.9}, {"top_k": 5}, {"repetition_penalty": 1.1}]


@pytest.mark.parametrize("settings", SHARPENED)
def test_filters_and_penalty_are_known_as_such_and_warned_of(settings):
    for mode in ("raw", "tempered"):
        assert SamplingConfig(**settings, logprobs=mode).filtered
        assert "can be negative" in SamplingConfig(**settings, logprobs=mode).warning


def test_what_does_not_sharpen_the_draw_is_not_warned_of():
    for settings in ({}, {"top_p": 1.0}, {"logprobs": "tempered"}, {"logprobs": "exact", "top_p": 1.0}):
        assert not SamplingConfig(**settings).filtered and SamplingConfig(**settings).warning is None


def test_a_temperature_is_warned_of_by_what_it_does_to_the_log_probabilities():
    assert "sharper than the distribution" in SamplingConfig(temperature=0.8).warning
    assert "sharper than the distribution" in SamplingConfig(temperature=0).warning
    tempered = SamplingConfig(temperature=0.8, logprobs="tempered")
    assert not tempered.filtered and "at temperature 0.8: sample" in tempered.warning


@pytest.mark.parametrize("settings", [*SHARPENED, {"temperature": 0.8}, {"temperature": 0}])
def test_exact_refuses_what_sharpens_the_draw(settings):
    [(name, value)] = settings.items()
    complaint = (rf"sampling.logprobs='exact' and sampling.{name}={value}.* exclude each other: "
                 rf"exact draws from the model as it is \({name} = (none|1.0)\)")
    with pytest.raises(ValueError, match=complaint):
        SamplingConfig(**settings, logprobs="exact")


def test_tempered_log_probabilities_have_no_temperature_0():
    with pytest.raises(ValueError, match="log-probabilities at temperature 0 are not finite"):
        SamplingConfig(temperature=0, logprobs="tempered")


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(ModelError, match="the model's context is 128"):
        draw(model, max_new_tokens=126)
    with pytest.raises(ModelError, match="a prompt has no tokens"):
        draw(model, [[1], []])
    model.config.sliding_window = 10
    try:
        with pytest.raises(ModelError, match="sliding attention window of 10"):
            draw(model)
    finally:
        model.config.sliding_window = None


def test_progress_is_told(model):
    told = []
    sample(
        model,
        PROMPTS,
        SamplingConfig(max_new_tokens=5, slots=4),
        [stream(0, i) for i in range(30)],
        stop_ids=[2],
        pad_id=0,
        record_ids=["x"] * 30,
        on_done=told.append,
    )
    assert told == sorted(told) and told[-1] == 30
