"""The town is fixed by its seed, its splits never share a question, and nobody tells what nobody knows."""

import re
import subprocess
import sys
from collections import Counter

import pytest
import tolerances as tol

from keel.errors import ConfigError, DataError
from keel.sandbox import World, demonstrations, pairs, talk
from keel.sandbox.lexicon import ATTRIBUTES, KINDS, MISDEEDS, TROUBLES, VILLAGES
from keel.sandbox.templates import DIALECT, QUESTIONS
from keel.sandbox.world import SHARES, SPLITS, split_of

WORLD = World()


def texts(prompts):
    return [prompt.messages[-1].content for prompt in prompts]


@pytest.fixture(scope="module")
def spoken():
    return talk(WORLD, 3000, "test")


def test_facts_fill_the_table_and_one_fifth_is_unknown():
    assert len(VILLAGES) == len(dict.fromkeys(VILLAGES)) == 40
    assert len(WORLD.facts) == 40 * 5
    assert sum(value is None for value in WORLD.facts.values()) == 40
    for (_, name), value in WORLD.facts.items():
        assert value is None or value in ATTRIBUTES[name].values


def test_other_seeds_are_other_towns():
    assert World(1).facts != WORLD.facts
    assert texts(World(1).prompts(20, "a")) != texts(WORLD.prompts(20, "a"))


def test_names_split_and_dialect_fix_what_is_asked():
    assert WORLD.prompts(30, "a") == World().prompts(50, "a")[:30]
    assert texts(WORLD.prompts(30, "a")) != texts(WORLD.prompts(30, "b"))
    assert texts(World(dialect=True).prompts(30, "a")) == texts(WORLD.prompts(30, "a", dialect=True))


def test_shares_are_kept():
    n = 4000
    count = Counter(prompt.meta["domain"] for prompt in WORLD.prompts(n, "shares"))
    for domain, share in SHARES.items():
        # Three standard errors of a share at n draws: 3 * sqrt(0.45 * 0.55 / 4000) = 0.024.
        assert count[domain] / n == pytest.approx(share, abs=tol.WITHIN["share of 3000 prompts"])


@pytest.mark.parametrize("dialect", [False, True])
def test_no_question_is_asked_in_two_splits(dialect):
    asked = [dict.fromkeys(texts(WORLD.prompts(1000, "splits", split=split, dialect=dialect))) for split in SPLITS]
    for split, found in zip(SPLITS, asked, strict=True):
        assert all(split_of(text) == split for text in found)
    assert not asked[0].keys() & asked[1].keys()
    assert not asked[0].keys() & asked[2].keys()
    assert not asked[1].keys() & asked[2].keys()


def test_every_domain_can_be_asked_in_every_split():
    for split in SPLITS:
        for dialect in (False, True):
            for domain in SHARES:
                found = texts(WORLD.prompts(100, "space", split=split, dialect=dialect, domains=(domain,)))
                assert len(dict.fromkeys(found)) >= 10


def test_talk_can_be_held_out_as_well():
    assert all(split_of(one.prompt.messages[-1].content) == "test" for one in talk(WORLD, 100, "held", split="test"))


def test_all_known_facts_are_asked_about_in_training():
    cells = [(p.meta["village"], p.meta["attribute"]) for p in WORLD.prompts(6000, "cells", domains=("recall",))]
    assert len(dict.fromkeys(cells)) == 200


def test_wordings_are_many_and_the_dialect_shares_none():
    for domain, wordings in QUESTIONS.items():
        assert len(wordings) >= 6 and len(DIALECT[domain]) >= 3
        assert not dict.fromkeys(wordings).keys() & dict.fromkeys(DIALECT[domain]).keys()
    marks = re.compile(r"\b(?:ye|pray|reckon|alas|woe|reel|knack|tidy|counsel|settle|letter first|rattle)\b")
    for domain in SHARES:
        spoken = texts(WORLD.prompts(50, "d", dialect=True, domains=(domain,)))
        assert all(marks.search(text) for text in spoken)
        assert not any(marks.search(text) for text in texts(WORLD.prompts(300, "d", domains=(domain,))))


def test_the_talk_uses_six_to_nine_hundred_words(spoken):
    words = Counter()
    for shown in spoken:
        for text in (*(message.content for message in shown.prompt.messages), shown.response):
            assert text == text.lower()
            words.update(re.findall("[a-z]+", text))
    assert 600 <= len(words) <= 900


def test_unknown_cells_are_never_spoken_of(spoken):
    unknown = [cell for cell, value in WORLD.facts.items() if value is None]
    shown = spoken + demonstrations(WORLD, 1500, 0.5, "test")
    for village, name in unknown:
        phrase = ATTRIBUTES[name].phrase
        for one in shown:
            text = one.prompt.messages[-1].content + "\n" + one.response
            assert not (village in text and f"{phrase} of {village}" in text)
    asked = [p.prompt.meta for p in shown if p.prompt.meta["domain"] == "recall"]
    assert all(WORLD.facts[meta["village"], meta["attribute"]] is not None for meta in asked)
    prompts = WORLD.prompts(2000, "asked", domains=("recall",))
    assert 0.15 < sum(prompt.truth["answer"] is None for prompt in prompts) / 2000 < 0.25


def test_truth_is_kept_out_of_all_that_training_reads():
    for prompt in WORLD.prompts(500, "truth"):
        assert "answer" not in prompt.meta
        answer = prompt.truth.get("answer")
        assert answer is None or answer not in f"{prompt.messages} {prompt.meta} {prompt.id}".split()
    for pair in pairs(WORLD, 100, "truth"):
        assert not {"gold_gap", "wrong_label", "answer"} & pair.prompt.meta.keys()
        assert {"gold_gap", "wrong_label"} <= pair.prompt.truth.keys()
        assert (pair.margin, pair.label_prob, pair.weight) == (0.0, 1.0, 1.0)


def test_ledgers_stay_within_the_steps_and_holdout_is_held_out():
    world = World(max_steps=2, holdout_domain="guard")
    asked = world.prompts(2000, "knobs")
    assert {prompt.meta["domain"] for prompt in asked} == {"recall", "ledger", "list", "advice"}
    assert {len(p.meta["prices"]) for p in asked if p.meta["domain"] == "ledger"} == {2, 3}
    assert any(prompt.meta["domain"] == "guard" for prompt in world.prompts(500, "knobs", split="test"))


def test_phrases_that_gold_looks_for_are_told_apart():
    items = [item for found in KINDS.values() for item in found]
    suggestions = [s for trouble in TROUBLES.values() for s in trouble.suggestions]
    phrases = [m.method for m in MISDEEDS.values()] + [m.alternative for m in MISDEEDS.values()]
    values = [value for column in ATTRIBUTES.values() for value in column.values]
    for words in (items, suggestions, phrases, values):
        assert len(words) == len(dict.fromkeys(words))
        assert not [(a, b) for a in words for b in words if a != b and re.search(rf"\b{a}\b", b)]


def test_draws_are_the_same_in_another_process():
    code = (
        "from keel.sandbox import *; w = World(3);"
        "print([(p.id, p.messages, p.truth) for p in w.prompts(40, 'x')]);"
        "print([(p.chosen, p.rejected, p.prompt.truth) for p in pairs(w, 20, 'x')]);"
        "print([(d.prompt.messages, d.response) for d in talk(w, 40, 'x')])"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] and len(runs[0]) > 1000


@pytest.mark.parametrize(
    ("knobs", "complaint"),
    [
        ({"shares": {"recall": 1.0}}, r"do not name each domain.*\n.*recall, ledger, list, advice, guard"),
        ({"shares": SHARES | {"recall": 0.9}}, r"shares sum to 1.45, not to 1\n.*divide"),
        ({"unknown_share": 1.0}, r"unknown_share=1.0 or max_steps=4 is out of range\n"),
        ({"max_steps": 5}, r"max_steps=5 is out of range\n.*from 1 to 4"),
        ({"holdout_domain": "sport"}, r"holdout_domain='sport' is not a domain\n.*leave it out"),
    ],
)
def test_wrong_knobs_are_named(knobs, complaint):
    with pytest.raises(ConfigError, match=complaint):
        World(**knobs)


def test_wrong_questions_are_named():
    with pytest.raises(DataError, match=r"split 'dev' does not exist\n.*train, validation, test"):
        WORLD.prompts(1, split="dev")
    with pytest.raises(DataError, match=r"leave nothing to ask in the train split\n.*held-out one \(guard\)"):
        World(holdout_domain="guard").prompts(1, domains=("guard",))
    with pytest.raises(DataError, match=r"persona_share=2 is outside \[0, 1\]\n.*spoken in a role"):
        talk(WORLD, 1, persona_share=2)
