"""The numbers of a data audit, by hand on a few pairs."""

import json
from itertools import pairwise

import pytest
import tolerances as tol

from keel.bench.audit import LONGEST, audit
from keel.bench.suspects import Oddities, oddities, suspects
from keel.data.records import Message, PreferencePair, Prompt, Strength


def pair(name: str, gaps: list[float], *, question: str = "", chosen: str = "", rejected: str = "",
         **told) -> PreferencePair:
    """Votes with these differences; `truth` and `meta` as given."""
    n, mean = len(gaps), sum(gaps) / len(gaps)
    votes = Strength(mean, (sum((g - mean) ** 2 for g in gaps) / n) ** 0.5, tuple(gaps), (0.0,) * n)
    prompt = Prompt(name, (Message("user", question or f"question {name}"),), None, told.get("meta", {}),
                    told.get("truth", {}))
    return PreferencePair(prompt, chosen or f"good {name}", rejected or f"bad {name}", strength=votes)


def audited(pairs: list[PreferencePair], *, n_quantiles: int = 2, lengths=None) -> dict:
    found = audit(pairs, lengths or [(3, 2)] * len(pairs), oddities(pairs), n_quantiles=n_quantiles)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


GAPS = {"a": [-2.0, -1.0, -3.0], "b": [-1.0, 0.5, 0.25], "c": [1.0, 1.0, -0.5], "d": [2.0, 1.0, 3.0]}
"""Means -2, -1/12, 1/2, 2; for the label 0, 2, 2 and 3 of three voters."""


def four(**told) -> list[PreferencePair]:
    """Told by id."""
    return [pair(name, gaps, **{key: by_id[name] for key, by_id in told.items()}) for name, gaps in GAPS.items()]


def test_one_line_of_a_table() -> None:
    found = audited(four(), lengths=[(2, 4), (4, 2), (10, 1), (12, 3)])
    weak, strong = found["quantiles"]
    assert (found["n"], found["n_votes"], weak["n"], strong["n"]) == (4, 3, 2, 2)
    assert weak["mean"] == pytest.approx((-2 - 1 / 12) / 2, rel=tol.RELATIVE64)
    assert (weak["low"], weak["against"], strong["against"], found["all"]["against"]) == (-2, 1, 0, 0.5)
    assert strong["std"] == pytest.approx((0.5**0.5 + (2 / 3) ** 0.5) / 2, rel=tol.RELATIVE64)
    assert weak["votes_for"] == pytest.approx(1 / 3, rel=tol.RELATIVE64)
    assert strong["votes_for"] == pytest.approx(5 / 6, rel=tol.RELATIVE64)
    # Of the three pairs of voters all agree on a and d, one of three on b and c.
    assert weak["agreement"] == strong["agreement"] == pytest.approx(2 / 3, rel=tol.RELATIVE64)
    assert (weak["chosen_tokens"], weak["rejected_tokens"], strong["chosen_tokens"]) == (3, 3, 11)
    assert weak["divided"] == strong["divided"] == 0  # two of three voters are no longer 60%
    assert weak["right"] is weak["judge_agrees"] is None


def test_agreement_between_the_voters() -> None:
    found = audited(four())["voters"]
    assert found["split"] == [0.25, 0, 0.5, 0.25] and found["unanimous"] == 0.5
    assert found["pairwise"] == pytest.approx(2 / 3, rel=tol.RELATIVE64)
    # Seven of twelve votes are for the label: by chance two agree with probability (49 + 25) / 144.
    assert found["fleiss"] == pytest.approx((2 / 3 - 74 / 144) / (1 - 74 / 144), rel=tol.RELATIVE64)
    assert -1 <= found["correlation"] <= 1
    same = audited([pair(name, [gap, 2 * gap]) for name, gap in (("a", 1.0), ("b", -2.0), ("c", 0.5))])["voters"]
    assert same["correlation"] == pytest.approx(1, rel=tol.RELATIVE64) and same["unanimous"] == 1


def test_a_single_vote_has_no_agreement() -> None:
    found = audited([pair("a", [1.0]), pair("b", [-1.0])])
    assert found["voters"] == {} and found["all"]["agreement"] is None and found["all"]["divided"] == 0


def test_the_histogram_holds_every_pair_and_has_an_edge_at_zero() -> None:
    found = audited(four(truth={name: {"wrong_label": name in "ab"} for name in GAPS}))["histogram"]
    assert sum(found["counts"]) == 4 and sum(found["wrong"]) == 2 and 0.0 in found["edges"]
    widths = [b - a for a, b in pairwise(found["edges"])]
    assert widths == pytest.approx([widths[0]] * len(widths), rel=tol.RELATIVE64)
    below = [count for left, count in zip(found["edges"], found["counts"], strict=False) if left < 0]
    assert sum(below) == 2
    means = {str(i): 0.01 * i for i in range(400)} | {"far": 1e6, "low": -1e6}
    far = audited([pair(name, [mean]) for name, mean in means.items()])["histogram"]
    assert far["n_above"] >= 1 and far["n_below"] == 1 and sum(far["counts"]) == 402 and len(far["counts"]) < 80
    alike = audited([pair("a", [0.0]), pair("b", [0.0])])["histogram"]
    assert alike["counts"] == [2] and alike["edges"][0] == 0


def test_wrong_labels_searched_by_strength() -> None:
    truth = {name: {"wrong_label": name in "ac"} for name in GAPS}
    found = audited(four(truth=truth))["truth"]
    assert (found["n_wrong"], found["share_wrong"]) == (2, 0.5)
    # Wrong (a, c) against right (b, d): a is weaker than both, c weaker than d only.
    assert found["area"] == 0.75
    searches = {row["value"]: row for row in found["searches"]}
    assert {name: (row["n"], row["precision"], row["recall"]) for name, row in searches.items()} == {
        "weakest 5%": (0, None, 0), "weakest 10%": (0, None, 0), "weakest 20%": (0, None, 0),
        "weakest 30%": (1, 1, 0.5), "mean strength below 0": (2, 0.5, 0.5)}
    assert [row["right"] for row in audited(four(truth=truth))["quantiles"]] == [0.5, 0.5]


@pytest.mark.parametrize("truth", [{}, {"wrong_label": None}, {"wrong_label": False}, {"wrong_label": True}])
def test_without_right_and_wrong_labels_there_is_no_search(truth: dict) -> None:
    assert audited(four(truth=dict.fromkeys(GAPS, truth)))["truth"] is None


def test_the_judge_is_asked_where_it_has_a_label() -> None:
    found = audited(four(meta={name: {"judge_label": label} for name, label in zip(GAPS, (0, -1, 1, 1), strict=True)}))
    assert [(row["judge_agrees"], row["n_judged"]) for row in found["quantiles"]] == [(0, 1), (1, 2)]


def test_subsets_by_names_that_tell_pairs_apart() -> None:
    meta = {name: {"domain": "x" if name in "ab" else "y", "source": "one", "worker": i}
            for i, name in enumerate(GAPS)}
    found = audited(four(meta=meta))
    assert set(found["subsets"]) == {"domain", "worker"}
    told = [(row["value"], row["n"], row["against"]) for row in found["subsets"]["domain"]]
    assert told == [("x", 2, 1), ("y", 2, 0)]
    assert found["quantiles"][0]["shares"] == {"domain": {"x": 1, "y": 0}}


def test_lengths_and_what_labels_and_voters_think_of_them() -> None:
    found = audited(four(), lengths=[(9, 2), (4, 2), (1, 5), (3, 3)])["lengths"]
    assert [(row["value"], row["n"]) for row in found["sides"]] == [
        ("chosen is longer", 2), ("equally long", 1), ("chosen is shorter", 1)]
    # Of a, b, c the label prefers the longer one twice; the voters turn a and b over, and c is for the shorter one.
    assert found["prefers_longer"] == {"labels": pytest.approx(2 / 3, rel=tol.RELATIVE64), "voters": 0}
    assert [row["value"] for row in found["quarters"]] == ["6 to 6", "6 to 6", "6 to 6", "11 to 11"]
    assert audited(four())["lengths"]["prefers_longer"] == {"labels": 1, "voters": 0.5}
    assert audited(four(), lengths=[(2, 2)] * 4)["lengths"]["prefers_longer"] == {}


def labelled(who: str, name: str, up: bool) -> PreferencePair:
    sides = ("first", "second") if up else ("second", "first")
    return pair(f"{name}-{who}", [1.0, 2.0], question=name, chosen=sides[0], rejected=sides[1],
                meta={"annotator": who})


def test_agreement_of_annotators_on_repeated_comparisons() -> None:
    verdicts = [(True, True), (True, True), (False, False), (True, False)]
    pairs = [labelled(who, f"q{i}", up) for i, both in enumerate(verdicts) for who, up in zip("xy", both, strict=True)]
    found = audited([*pairs, pair("alone", [1.0, 2.0])])["annotators"]["people"]
    assert (found["n_annotators"], found["n_comparisons"]) == (2, 4)
    # Three of four agreed; by chance 3/4 * 2/4 + 1/4 * 2/4 = 1/2 (Cohen) and (5/8)^2 + (3/8)^2 = 34/64 (Fleiss).
    assert found["cohen"] == [{"one": "x", "other": "y", "n": 4, "agree": 0.75, "kappa": pytest.approx(0.5)}]
    assert found["fleiss"] == pytest.approx((0.75 - 34 / 64) / (1 - 34 / 64), rel=tol.RELATIVE64)
    # Krippendorff: of 8 * 7 ordered pairs of votes 2 * 5 * 3 differ by chance, 2 of 8 within a comparison.
    assert found["krippendorff"] == pytest.approx(1 - (2 / 8) / (30 / 56), rel=tol.RELATIVE64)
    assert audited(four())["annotators"] == {"people": None, "panel": None}
    third = audited([*pairs, labelled("z", "q0", True)])["annotators"]["people"]
    assert third["fleiss"] is None and third["krippendorff"] is not None and len(third["cohen"]) == 3


def test_votes_of_a_panel() -> None:
    meta = {name: {"votes_for": n, "voters": 4} for name, n in zip(GAPS, (4, 3, 2, 1), strict=True)}
    found = audited(four(meta=meta))["annotators"]["panel"]
    assert {key: found[key] for key in ("n", "votes_for", "unanimous", "outvoted")} == {
        "n": 4, "votes_for": 10 / 16, "unanimous": 0.25, "outvoted": 0.5}
    # Pairs of votes that agree: 6, 3, 2 and 3 of 6; by chance (10/16)^2 + (6/16)^2.
    assert found["fleiss"] == pytest.approx((14 / 24 - 136 / 256) / (1 - 136 / 256), rel=tol.RELATIVE64)
    meta["a"] = {"votes_for": 5, "voters": 5}
    assert audited(four(meta=meta))["annotators"]["panel"]["fleiss"] is None
    odd = {name: {"votes_for": "many", "voters": 4} for name in GAPS}
    assert audited(four(meta=odd))["annotators"]["panel"] is None


def test_examples_are_spread_over_their_quantile_and_cut() -> None:
    pairs = [pair(f"p{i}", [float(i)], chosen="x" * (LONGEST + 7)) for i in range(12)]
    first, second = audited(pairs)["examples"]
    assert [row["id"] for row in first["pairs"]] == ["p1", "p3", "p5"]
    assert [row["id"] for row in second["pairs"]] == ["p7", "p9", "p11"]
    assert first["pairs"][0]["chosen"].endswith("x [7 more characters]")
    assert first["pairs"][0]["votes_for"] == 1 and first["pairs"][0]["wrong"] is None
    assert first["pairs"][0]["prompt"] == [{"role": "user", "content": "question p1"}]
    plain = PreferencePair(Prompt("t", (), "once"), "a", "b", strength=Strength(1.0, 0.0, (1.0,), (0.0,)))
    assert audited([plain])["examples"][0]["pairs"][0]["prompt"] == [{"role": "text", "content": "once"}]


TEXTS = {"question": "what shall we do with the old boat in the harbour this summer", "chosen":
         "paint it blue and white and sell it to the miller before autumn comes", "rejected":
         "leave it where it is and let the gulls have it for their nests"}


def twisted(name: str, gaps: list[float], *, turned: bool = False, more: str = "") -> PreferencePair:
    texts = dict(TEXTS) | ({"chosen": TEXTS["rejected"], "rejected": TEXTS["chosen"]} if turned else {})
    return pair(name, gaps, question=texts["question"] + more, chosen=texts["chosen"], rejected=texts["rejected"])


def test_contradictions_and_duplicates_are_counted_and_named() -> None:
    pairs = [twisted("one", [1.0, 2.0]), twisted("two", [0.5, 2.0], turned=True), twisted("three", [1.0, 2.0]),
             pair("else", [1.0, 2.0])]
    found = audited(pairs)["duplicates"]
    assert (found["n_contradictions"], found["n_in_contradictions"], found["n_repeats"]) == (1, 3, 1)
    assert found["contradictions"] == [["one", "two", "three"]] and found["repeats"] == [["one", "three"]]
    assert found["n_opposed"] == 0  # what contradicts outright is not told twice
    doubted = {p.id: p.prompt.meta["reasons"] for p in suspects(pairs, oddities(pairs))}
    assert doubted["one"] == ["its label cannot be right together with that of two, three"]
    assert set(doubted) == {"one", "two", "three"}
    both = Oddities([], [], [[0, 1], [0, 2]], {})  # one pair, two contradictions
    told = {p.id: p.prompt.meta["reasons"] for p in suspects(pairs, both)}
    assert told["one"] == ["its label cannot be right together with that of two, three"]


def test_nearly_the_same_texts_with_the_opposite_label() -> None:
    pairs = [twisted("one", [1.0, 2.0]), twisted("two", [-1.0, -2.0], turned=True, more=" dear"),
             twisted("three", [1.0, 3.0], more=" now")]
    odd = oddities(pairs)
    assert odd.contradictions == [] and odd.opposed == {0: 1, 1: 0, 2: 1}
    doubted = suspects(pairs, odd)
    assert [p.id for p in doubted] == ["two", "one", "three"]
    assert doubted[0].prompt.meta["reasons"] == [
        "2 of 2 voters are against the label (mean strength -1.5)",
        "one has nearly the same texts and the opposite label"]


def test_reasons_of_voters_annotators_and_judge() -> None:
    pairs = [pair("fine", [1.0, 2.0]), pair("split", [1.0, 2.0, 0.5, -0.5, -1.0]),
             pair("against", [-1.0, -2.0], meta={"votes_for": 2, "voters": 5}),
             pair("judge", [1.0, 2.0], meta={"judge_label": 0, "votes_for": 3, "voters": 5}),
             pair("tie", [3.0, 2.0], meta={"votes_for": 2, "voters": 4}), pair("zero", [0.0, 0.0])]
    doubted = suspects(pairs, oddities(pairs))
    assert [(p.id, p.prompt.meta["reasons"]) for p in doubted] == [
        ("against", ["2 of 2 voters are against the label (mean strength -1.5)",
                     "3 of 5 annotators prefer the rejected response"]),
        ("split", ["the voters are divided: 2 of 5 voters are against the label (mean strength 0.4)"]),
        ("judge", ["the judge prefers the rejected response"]),
        ("tie", ["2 of 4 annotators prefer the rejected response"])]
