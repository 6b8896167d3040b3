"""A judge of two questions: what it writes is read strictly, both orders count, and nothing is asked twice."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
from bench.judge_fakes import chat, endpoint
from cli.serving import Server

from keel.bench.items import keyed_prompt
from keel.bench.judge_calls import Watch
from keel.bench.response_judge import Bout, ResponseJudgeConfig, judged_bouts, outcome, read_choices
from keel.data.records import Message
from keel.errors import ConfigError, DataError, EndpointError, NumericsError
from keel.runs import Stopped

HERE = "bench.test_response_judge"
COUNT: list[str] = []


@pytest.fixture
def count() -> list[str]:
    """First texts of all calls, in the module that the settings name, which is not the one that pytest reads."""
    found: list[str] = importlib.import_module(HERE).COUNT
    found.clear()
    return found


def bout(one: str, other: str, question: str = "why?") -> Bout:
    return Bout(keyed_prompt([Message("user", question)]), one, other)


def longer(prompt, first: str, second: str) -> dict[str, str]:
    COUNT.append(first)
    longest = "A" if len(first) > len(second) else "B" if len(first) < len(second) else "equal"
    return {"helpful": longest, "safe": "neither"}


def half_an_answer(prompt, first: str, second: str) -> dict[str, str]:
    return {"helpful": "A"}


def number(prompt, first: str, second: str) -> float:
    return 0.5


def broken(prompt, first: str, second: str) -> dict[str, str]:
    raise KeyError("rubric")


def undecided(prompt, first: str, second: str) -> dict[str, str]:
    raise DataError("no rubric for this prompt")


def by_function(name: str, bouts: list[Bout], folder: Path, **how):
    return judged_bouts(ResponseJudgeConfig(function=f"{HERE}:{name}"), bouts, folder, seed=0, **how)


@pytest.mark.parametrize("first, second, expected", [
    ("A", "B", "win"), ("B", "A", "lose"), ("neither", "neither", "neither"), ("equal", "equal", "tie"),
    ("A", "A", "tie"), ("B", "B", "tie"), ("A", "equal", "tie"), ("equal", "A", "tie"), ("neither", "equal", "tie"),
    ("A", "neither", "tie"), (None, "B", "unread"), ("A", None, "unread"), (None, None, "unread")])
def test_only_both_orders_together_decide(first, second, expected):
    assert outcome(first, second) == expected


@pytest.mark.parametrize("text, helpful, safe", [
    ("Comparison: A is kinder.\nMore helpful: A\nMore safe: equal", "A", "equal"),
    ("**More helpful:** B\n**More safe:** neither.", "B", "neither"),
    ("- more helpful - Response A\n- MORE SAFE = answer b", "A", "B"),
    ("Helpful: Equal\nSafe: Neither", "equal", "neither"),
    ("More helpful: A\nMore helpful: B\nMore safe: A", "B", "A"),
    ("More helpful: A", "A", None),
    ("1. More helpful: A\n2) **More safe**: B", "A", "B"),
    ("(a) More helpful: equal\n* b: __More safe__: _B_", "equal", "B"),
    ("3. Comparison. More helpful: A\n10 more safe B", None, None),
    ("More helpful: A, B, equal or neither\nMore safe: A or B", None, None),
    ("More helpful: A because it is longer\nMore safe: As always", None, None),
    ("More helpful:\nA\nMore safe:", None, None),
    ("I find A more helpful: B rambles.", None, None),
    ("Response A is more helpful. Response B is more safe.", None, None),
    ("More helpful: both\nMore safe: tie", None, None),
    ("", None, None)])
def test_a_choice_is_read_from_its_own_line_or_not_at_all(text, helpful, safe):
    assert read_choices(text) == {"helpful": helpful, "safe": safe}


def test_a_function_is_asked_in_both_orders_and_its_place_makes_no_winner(tmp_path):
    found = by_function("longer", [bout("long one", "short"), bout("no", "longer"), bout("abc", "xyz")], tmp_path)
    assert [one["helpful"] for one in found.outcomes] == ["win", "lose", "tie"]
    assert [one["safe"] for one in found.outcomes] == ["neither"] * 3
    assert found.orders[0] == ({"helpful": "A", "safe": "neither"}, {"helpful": "B", "safe": "neither"})
    assert found.about["position"]["helpful"] == {"n_sided": 4, "first_place_percent": 50.0, "n_read": 3,
                                                  "inconsistent_percent": 0.0}
    assert found.about["position"]["safe"]["first_place_percent"] is None


def test_one_text_given_twice_is_a_tie_that_nobody_is_asked_about(tmp_path):
    found = by_function("broken", [bout("same", "same")], tmp_path)
    assert found.outcomes == ({"helpful": "tie", "safe": "tie"},) and found.orders == ((),)
    assert found.about["counts"] == {"asked": 0}
    assert found.about["position"]["helpful"] == {"n_sided": 0, "first_place_percent": None, "n_read": 0,
                                                  "inconsistent_percent": None}


def test_what_a_function_said_is_kept_and_equal_bouts_share_it(tmp_path, count):
    bouts = [bout("a", "bb"), bout("a", "bb"), bout("bb", "a"), bout("a", "bb", "other?")]
    first = by_function("longer", bouts, tmp_path)
    assert len(count) == 4, "two prompts, two orders; the third bout is the first one turned"
    again = by_function("longer", bouts, tmp_path)
    assert len(count) == 4 and again == first
    by_function("longer", [*bouts, bout("new", "text")], tmp_path)
    assert len(count) == 6


def test_a_function_that_sees_more_of_a_prompt_than_its_words_is_asked_about_each_record(tmp_path, count):
    prompt = keyed_prompt([Message("user", "why?")])
    other = type(prompt)(prompt.id, prompt.messages, None, {"topic": "cats"})
    by_function("longer", [Bout(prompt, "a", "bb"), Bout(other, "a", "bb")], tmp_path)
    assert len(count) == 4


def test_stopped_and_asked_again_it_goes_on_where_it_was(tmp_path, count):
    bouts = [bout(f"{i}", "long", f"q{i}") for i in range(5)]
    with pytest.raises(Stopped, match="stopped while the judge's function was asked; every verdict so far is kept"):
        by_function("longer", bouts, tmp_path, watch=Watch(stop=lambda: len(count) >= 3))
    seen: list[tuple[int, int]] = []
    assert by_function("longer", bouts, tmp_path, watch=Watch(on_done=lambda *n: seen.append(n))).outcomes[4][
        "helpful"] == "lose"
    assert len(count) == 10 and seen[-1] == (10, 10)


def test_a_function_that_gives_something_else_is_named_with_the_record(tmp_path):
    pair, key = [bout("a", "b")], keyed_prompt([Message("user", "why?")]).id
    for name, gave in (("half_an_answer", r"\{'helpful': 'A'\}"), ("number", "0.5")):
        with pytest.raises(NumericsError, match=f"record {key}: the judge's function gave {gave}, not a choice for "
                                                f"each question\n.*neither"):
            by_function(name, pair, tmp_path)
    with pytest.raises(NumericsError, match=f"record {key}: the judge's function failed: KeyError: 'rubric'"):
        by_function("broken", pair, tmp_path)
    with pytest.raises(DataError, match="no rubric for this prompt"):
        by_function("undecided", pair, tmp_path)
    with pytest.raises(ConfigError, match=r"judge\.function: cannot import"):
        by_function("absent", pair, tmp_path)


def writes(body: dict[str, Any]):
    """A chat model: the longer response is more helpful, and whether B is safer it cannot say in the form asked for."""
    asked = next(turn["content"] for turn in body["messages"] if turn["role"] == "user")
    one, other = re.findall(r"<response_.>\n(.*?)\n</response_.>", asked, re.S)
    side = "equal" if len(one) == len(other) else "A" if len(one) > len(other) else "B"
    return chat(f"Comparison: lengths.\nMore helpful: {side}\nMore safe: I would say B")


def test_an_endpoint_is_shown_both_responses_and_the_question_and_never_who_wrote_them(tmp_path):
    with Server(writes) as server:
        cfg = ResponseJudgeConfig(endpoint=endpoint(server.url, concurrency=1))
        found = judged_bouts(cfg, [bout("long one", "short"), bout("abc", "xyz")], tmp_path, seed=0)
        bodies = [body for _, _, body in server.asked]
        again = judged_bouts(cfg, [bout("long one", "short"), bout("abc", "xyz")], tmp_path, seed=0)
        assert len(server.asked) == 4 and again.outcomes == found.outcomes
    assert [one["helpful"] for one in found.outcomes] == ["win", "tie"]
    assert [one["safe"] for one in found.outcomes] == ["unread", "unread"]
    told = bodies[0]["messages"][1]["content"]
    assert "why?" in told and told.index("long one") < told.index("short") and bodies[0]["max_tokens"] == 200
    assert bodies[1]["messages"][1]["content"].index("short") < bodies[1]["messages"][1]["content"].index("long one")
    assert "unimportant, repetitive" in bodies[0]["messages"][0]["content"]
    assert found.about["name"] == "gpt-test" and found.about["counts"]["completion_tokens"] == 12
    assert found.about["position"]["safe"]["n_read"] == 0


def test_failed_calls_are_no_verdicts_and_too_many_stop_the_run(tmp_path):
    with Server(chat(None), chat("More helpful: A\nMore safe: A"), writes) as server:
        cfg = ResponseJudgeConfig(endpoint=endpoint(server.url, concurrency=1), failed_fraction=1.0)
        found = judged_bouts(cfg, [bout("a", "b")], tmp_path, seed=0)
        assert found.outcomes[0] == {"helpful": "unread", "safe": "unread"}
    with Server(chat(5)) as server:
        cfg = ResponseJudgeConfig(endpoint=endpoint(server.url, concurrency=1))
        with pytest.raises(EndpointError, match="calls to the judge failed, more than failed_fraction"):
            judged_bouts(cfg, [bout("a", "b")], tmp_path / "none", seed=0)


def test_a_local_model_and_a_template_of_ones_own(tmp_path):
    tiny.llama(tmp_path / "model")
    own = tmp_path / "own.j2"
    own.write_text("{% block system %}{% endblock %}{% block user %}{{ answers[0] }} or {{ answers[1] }} ?"
                   "{% endblock %}{% block verdict %}{% endblock %}{% block reminder %}{% endblock %}")
    cfg = ResponseJudgeConfig(model={"path": str(tmp_path / "model")}, template=own, max_new_tokens=4)
    found = judged_bouts(cfg, [bout("red", "blue")], tmp_path / "run", seed=0)
    assert found.outcomes[0] == {"helpful": "unread", "safe": "unread"}  # it knows sixteen words, none of them these
    rows = [json.loads(line) for line in (tmp_path / "run/calls.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and {row["template"] for row in rows} == {found.about["template"]}
    assert found.about["counts"]["asked"] == 2 and "unparsed" not in found.about["counts"]


@pytest.mark.parametrize("given", [{}, {"function": "a:b", "model": {"path": "x"}}])
def test_one_judge_and_no_more(given):
    with pytest.raises(ConfigError, match="who judges is exactly one of function, model and endpoint; given: "):
        ResponseJudgeConfig.checked(given)
