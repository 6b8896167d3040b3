"""What the official client gets, held against keel's own sampler."""

import pytest
import tolerances as tol
from served import TOKEN, USER, serving, settings

from keel.data.chat import template, tokenizer_from
from keel.data.records import Message, Prompt
from keel.models.load import ModelConfig, causal_lm
from keel.rng import stream
from keel.rollout.sample import SamplingConfig, sample


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(settings(tmp_path_factory.mktemp("answers"))) as running:
        yield running


@pytest.fixture(scope="module")
def expected(served):
    """What the sampler says to a prompt: texts, and the rollout."""
    path = served.cfg.model.path
    words, policy = template(tokenizer_from(path)), causal_lm(ModelConfig(path=path, device="cpu"))

    def say(prompt, seed=1, n=1, **drawing):
        ids = words.prompt_ids(prompt)
        config = SamplingConfig(**({"max_new_tokens": 24} | drawing))
        rollout = sample(policy, [ids] * n, config, [stream(seed, "serve", i) for i in range(n)],
                         stop_ids=words.stop_ids, pad_id=0, record_ids=["a"] * n)
        rows = [row[mask].tolist() for row, mask in zip(rollout.tokens.ids, rollout.tokens.response_mask, strict=True)]
        return [words.decode(row) for row in rows], rollout

    return say


CHAT = Prompt("a", (Message("user", USER[0]["content"]),))


@pytest.mark.parametrize("drawing", [{}, {"temperature": 0.0}, {"temperature": 0.7, "top_p": 0.6}])
def test_a_chat_says_what_the_sampler_says(served, expected, drawing):
    texts, rollout = expected(CHAT, n=3, **drawing)
    answer = served.chat(n=3, **drawing)
    assert [choice.message.content for choice in answer.choices] == texts
    assert [choice.finish_reason for choice in answer.choices] == [
        "stop" if ended else "length" for ended in rollout.ended.tolist()]
    assert answer.usage.completion_tokens == int(rollout.tokens.response_mask.sum())
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == answer.usage.total_tokens
    assert answer.object == "chat.completion" and answer.model == "tiny"
    assert answer.choices[0].message.role == "assistant"


def test_a_stream_is_the_same_answer_in_pieces(served, expected):
    texts, rollout = expected(CHAT, n=2)
    said, ends, usage, roles = ["", ""], {}, None, 0
    for chunk in served.chat(n=2, stream=True, stream_options={"include_usage": True}):
        assert chunk.object == "chat.completion.chunk"
        usage = chunk.usage or usage
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content
            roles += choice.delta.role == "assistant"
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert said == texts and roles == 2 and len(ends) == 2
    assert usage.completion_tokens == int(rollout.tokens.response_mask.sum())


def test_logprobs_are_those_of_the_sampler_token_by_token(served, expected):
    _, rollout = expected(CHAT)
    own = rollout.logprobs[rollout.tokens.response_mask].tolist()
    whole = served.chat(logprobs=True).choices[0].logprobs.content
    assert [token.logprob for token in whole] == pytest.approx(own, rel=tol.RELATIVE32)
    pieces = [token for chunk in served.chat(logprobs=True, stream=True)
              for token in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])]
    assert [token.token for token in pieces] == [token.token for token in whole]
    assert served.chat().choices[0].logprobs is None


def test_a_stop_string_is_not_said_and_ends_the_response(served):
    text = served.chat().choices[0].message.content
    word = text.split()[2]
    answer = served.chat(stop=["nothing", word]).choices[0]
    assert answer.message.content == text[:text.index(word)] and answer.finish_reason == "stop"
    pieces = [chunk.choices[0].delta.content for chunk in served.chat(stop=word, stream=True)]
    assert "".join(pieces) == text[:text.index(word)]


def test_seeds_decide_and_what_has_none_differs_from_request_to_request(served):
    texts = [served.chat(seed=seed).choices[0].message.content for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert len({served.chat(seed=None).choices[0].message.content for _ in range(4)}) > 1


def test_plain_text_is_continued(served, expected):
    texts, _ = expected(Prompt("a", (), "the cat"), max_new_tokens=6)
    answer = served.client.completions.create(model="tiny", prompt="the cat", max_tokens=6, seed=1, logprobs=0)
    assert answer.choices[0].text == texts[0] and answer.object == "text_completion"
    assert len(answer.choices[0].logprobs.token_logprobs) == answer.usage.completion_tokens
    both = served.client.completions.create(model="tiny", prompt=["the cat", "dog"], max_tokens=6, n=2, seed=1)
    assert len(both.choices) == 4 and both.choices[0].text == texts[0]
    pieces = served.client.completions.create(model="tiny", prompt="the cat", max_tokens=6, seed=1, stream=True)
    assert "".join(chunk.choices[0].text for chunk in pieces) == texts[0]


def test_parts_of_a_content_are_one_text_and_developers_are_the_system(served):
    parts = [{"role": "developer", "content": "please"},
             {"role": "user", "content": [{"type": "text", "text": "hello cat "}, {"type": "text", "text": "why ?"}]}]
    whole = [{"role": "system", "content": "please"}, {"role": "user", "content": "hello cat why ?"}]
    assert served.chat(parts).choices[0].message.content == served.chat(whole).choices[0].message.content


def test_models_are_listed_and_health_needs_no_token(served):
    assert [model.id for model in served.client.models.list()] == ["tiny"]
    assert served.client.models.retrieve("tiny").context_length == 128
    served.http.headers.pop("authorization")
    try:
        assert served.http.get("/healthz").json() == {"status": "ready", "running": 0, "waiting": 0}
    finally:
        served.http.headers["authorization"] = f"Bearer {TOKEN}"


def test_fields_with_nothing_in_them_change_nothing(served):
    empty = {name: None for name in ("tools", "tool_choice", "functions", "logit_bias", "metadata", "stream", "audio",
                                     "stop", "service_tier", "reasoning_effort", "response_format")}
    said = served.chat().choices[0].message.content
    answer = served.chat(extra=empty | {"store": False, "parallel_tool_calls": False, "frequency_penalty": 0.0})
    assert answer.choices[0].message.content == said
    body = {"model": "tiny", "prompt": "hello cat", "seed": 1, "echo": False, "best_of": None, "suffix": None}
    assert served.post(body, "/v1/completions").status_code == 200


@pytest.mark.parametrize("content", [None, "", " "])
def test_an_empty_answer_may_be_sent_back(served, expected, content):
    talk = [*USER, {"role": "assistant", "content": content, "refusal": None, "tool_calls": None}, *USER]
    messages = tuple(Message(turn["role"], turn["content"] or "") for turn in talk)
    texts, _ = expected(Prompt("a", messages))
    choice = served.chat(talk, axis={"monitor": True}).choices[0]
    assert choice.message.content == texts[0]
    turns = choice.axis["turns"]
    assert [turn["n_tokens"] > 0 for turn in turns] == [True, False, True] and turns[1]["projection"] is None


def test_an_answer_as_it_came_may_be_sent_back(served):
    message = served.chat().choices[0].message
    assert served.chat([*USER, message, *USER]).choices[0].finish_reason
    assert served.chat([*USER, message.model_dump(), *USER]).choices[0].finish_reason
