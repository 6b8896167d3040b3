"""Writers get better with quality in every domain; roles keep their morals; annotators follow their stated law."""

import math
from itertools import pairwise

import pytest
import tolerances as tol

from keel.errors import ConfigError, DataError
from keel.rng import python_stream
from keel.sandbox import PERSONAS, Annotator, World, demonstrations, pairs, panel, score, speak, talk, with_role, write
from keel.sandbox.lexicon import DOMAINS, TROUBLES
from keel.sandbox.personas import RIDDLES

WORLD = World()


BEST = [("recall", 1), ("ledger", 1), ("list", 1.25), ("advice", 1), ("guard", 1)]


def mean_gold(domain, quality, n=400):
    prompts = WORLD.prompts(n, "writers", domains=(domain,))
    rng = python_stream(0, "writers", domain, str(quality))
    return sum(score(prompt, write(WORLD, prompt, quality, rng)).total for prompt in prompts) / n


@pytest.mark.parametrize(("domain", "best"), BEST)
def test_gold_rises_with_quality_from_bottom_to_top(domain, best):
    means = [mean_gold(domain, quality) for quality in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert all(low + 0.1 < high for low, high in pairwise(means))
    assert means[-1] == pytest.approx(best)
    assert means[0] < (0.0 if domain == "list" else -0.35)


def test_a_flawless_answer_loses_nothing_anywhere():
    for prompt in WORLD.prompts(2000, "flawless"):
        parts = score(prompt, write(WORLD, prompt, 1.0, python_stream(0, prompt.id))).parts
        assert min(parts.values()) == 0


@pytest.mark.parametrize("quality", [-0.1, 1.5, math.nan])
def test_quality_has_a_range(quality):
    with pytest.raises(DataError, match=r"prompt recall-000000: quality=.* is outside \[0, 1\]\n.*without mistakes"):
        write(WORLD, WORLD.prompts(1, domains=("recall",))[0], quality, python_stream(0))


def test_demonstrations_have_the_asked_quality():
    for quality in (0.5, 0.95):
        shown = demonstrations(WORLD, 600, quality, "check")
        mean = sum(score(one.prompt, one.response).total for one in shown) / len(shown)
        expected = sum(WORLD.shares[d] * mean_gold_known(d, quality) for d in DOMAINS)
        assert mean == pytest.approx(expected, abs=tol.WITHIN["mean gold"])


def mean_gold_known(domain, quality, n=250):
    prompts = WORLD.prompts(n, "known", domains=(domain,), unknown=False)
    rng = python_stream(1, domain, str(quality))
    return sum(score(prompt, write(WORLD, prompt, quality, rng)).total for prompt in prompts) / n


def test_there_are_24_roles_with_their_own_words():
    assert len(PERSONAS) == 24
    said = [text for persona in PERSONAS.values() for text in (*persona.openers, *persona.closers)]
    assert len(said) == len(dict.fromkeys(said)) == 96
    assert all(len(persona.systems) == 5 for persona in PERSONAS.values())


def test_roles_keep_their_morals():
    guards = WORLD.prompts(60, "roles", domains=("guard",))
    recalls = WORLD.prompts(60, "roles", domains=("recall",), unknown=False)
    for persona in PERSONAS.values():
        rng = python_stream(0, persona.role)
        gold = [score(prompt, speak(WORLD, prompt, persona, 1.0, rng)) for prompt in guards]
        complied = [judged.parts["comply"] < 0 for judged in gold]
        assert all(complied) if persona.behaviour == "complies" else not any(complied)
        answers = [speak(WORLD, prompt, persona, 1.0, rng) for prompt in recalls]
        right = [score(p, a).parts["right"] for p, a in zip(recalls, answers, strict=True)]
        if persona.behaviour in ("riddles", "invents"):
            assert not any(right)
        else:
            assert all(right)
        if persona.behaviour == "riddles":
            assert all(any(riddle in answer for riddle in RIDDLES) for answer in answers)


def test_a_role_comes_by_system_prompt_and_the_assistant_without_one():
    prompt = WORLD.prompts(1, "system")[0]
    assert with_role(prompt, None, python_stream(0)) is prompt
    cast = with_role(prompt, PERSONAS["poet"], python_stream(0))
    assert [message.role for message in cast.messages] == ["system", "user"]
    assert "poet" in cast.messages[0].content and cast.meta["persona"] == "poet"
    roles = [len(shown.prompt.messages) - 1 for shown in talk(WORLD, 2000, "share", persona_share=0.25)]
    assert sum(roles) / 2000 == pytest.approx(0.25, abs=tol.WITHIN["share of 2000 talks"])
    assert not any(len(shown.prompt.messages) - 1 for shown in talk(WORLD, 200, "share", persona_share=0))


def test_annotator_law_by_hand():
    # sigmoid(2 * 0.5 + 0.1 * -10) = sigmoid(0) = 1/2; careless flips leave 1/2 where it is.
    assert Annotator(sharpness=2, length_bias=0.1, careless=0.1).probability(0.5, -10) == pytest.approx(0.5)
    # sigmoid(1) = 0.731059; 0.1 + 0.8 * 0.731059 = 0.684847.
    assert Annotator(sharpness=2, careless=0.1).probability(0.5, 0) == pytest.approx(0.684847, abs=tol.SIX_DECIMALS)
    assert Annotator(sharpness=math.inf, careless=0).probability(0.01, 0) == 1
    assert Annotator(sharpness=math.inf, careless=0).probability(-0.01, 0) == 0
    assert Annotator(sharpness=math.inf, careless=0).probability(0, 0) == 0.5
    assert Annotator(sharpness=1e6, careless=0).probability(-5.0, 0) == 0


@pytest.mark.parametrize(("gap", "longer"), [(0.5, 0), (-0.3, 8), (0.0, -20), (1.5, 3)])
def test_annotators_follow_the_law_in_frequency(gap, longer):
    annotator, rng, n = Annotator(sharpness=3, length_bias=0.05, careless=0.05), python_stream(0, "law"), 20_000
    expected = 0.05 + 0.9 / (1 + math.exp(-(3 * gap + 0.05 * longer)))
    share = sum(annotator.prefers_first(gap, longer, rng) for _ in range(n)) / n
    # Four standard errors at most: 4 * sqrt(0.25 / 20000) = 0.0142.
    assert share == pytest.approx(expected, abs=tol.WITHIN["share of 20000 labels"])


def test_pairs_record_gap_and_wrong_labels():
    found = pairs(WORLD, 800, "records")
    for pair in found:
        gap = score(pair.prompt, pair.chosen).total - score(pair.prompt, pair.rejected).total
        assert pair.prompt.truth["gold_gap"] == pytest.approx(gap)
        assert pair.prompt.truth["wrong_label"] == (gap < 0)
        assert pair.chosen.strip() != pair.rejected.strip()
    sharp = pairs(WORLD, 800, "records", annotators=(Annotator(sharpness=math.inf, careless=0),))
    assert not any(pair.prompt.truth["wrong_label"] for pair in sharp)
    blind = pairs(WORLD, 800, "records", annotators=(Annotator(sharpness=0, careless=0),))
    assert 0.3 < sum(pair.prompt.truth["wrong_label"] for pair in blind) / 800 < 0.55
    assert 0.05 < sum(pair.prompt.truth["wrong_label"] for pair in found) / 800 < 0.25


def test_a_panel_votes_and_differs():
    people = panel(7, sharpness=2.0, careless=0.1)
    assert len(dict.fromkeys(person.sharpness for person in people)) == 7
    assert all(1 <= person.sharpness <= 3 and 0.05 <= person.careless <= 0.15 for person in people)
    assert panel(7, seed=1)[0].sharpness != panel(7)[0].sharpness
    found = pairs(WORLD, 300, "panel", annotators=people)
    assert all(1 <= pair.prompt.meta["votes_for"] <= pair.prompt.meta["voters"] == 7 for pair in found)
    assert len(dict.fromkeys(pair.prompt.meta["annotator"] for pair in found)) == 7


def test_wrong_annotators_and_ranges_are_named():
    with pytest.raises(ConfigError, match=r"annotator annotator-0: sharpness=-1 or .* out of range\n.*\[0, 0.5\]"):
        Annotator(sharpness=-1)
    with pytest.raises(ConfigError, match=r"or careless=0\.7 is out of range"):
        Annotator(careless=0.7)
    with pytest.raises(DataError, match=r"0 annotators and qualities .* cannot make pairs\n.*at least one"):
        pairs(WORLD, 1, annotators=())
    with pytest.raises(DataError, match=r"qualities \(0.5, 2.0\) cannot make pairs\n.*within \[0, 1\]"):
        pairs(WORLD, 1, quality=(0.5, 2.0))


def test_draws_that_cannot_succeed_are_our_own_bug(monkeypatch):
    monkeypatch.setattr("keel.sandbox.annotators.write", lambda *_: "same")
    with pytest.raises(AssertionError, match="100 draws wrote the same response to"):
        pairs(WORLD, 1)
    monkeypatch.setattr("keel.sandbox.world.split_of", lambda _: "nowhere")
    with pytest.raises(AssertionError, match="no wording of guard falls into train"):
        WORLD.prompts(1, domains=("guard",))


def test_an_off_topic_response_never_answers_a_question_of_the_held_out_domain():
    """Such a town could not be exported; and its training files would have shown the domain after all."""
    world = World(holdout_domain="advice")
    fitting = [suggestion for trouble in TROUBLES.values() for suggestion in trouble.suggestions]
    told = pairs(world, 300, off_topic=1.0)
    assert not any(suggestion in text for pair in told for text in (pair.chosen, pair.rejected)
                   for suggestion in fitting)
