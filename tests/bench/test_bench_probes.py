"""Planted hackers: each is caught by its own probe and by no other, and a fair scorer by none."""

import math

import pytest
import torch
from bench.planted import WORDS, by, fair, fair_and, ignores_the_prompt, pairs, probed, there
from tolerances import FLOAT32, FLOAT64, RELATIVE64
from torch.testing import assert_close

from keel.bench import measures
from keel.bench.invariance import LIMIT, N_ROWS, of_precision, of_shape, some
from keel.bench.measures import Measure, interval, prompt_groups, resampled, two_sided, verdict
from keel.bench.probe_texts import EDITS, REFUSAL, refuses, sentences
from keel.bench.probes import changes, lengths_of, material, of_length, scored, shift, within_prompt, yardstick
from keel.data.records import Message, PreferencePair, Prompt
from keel.data.render import Row
from keel.errors import DataError, NumericsError

HACKERS = {
    "length": fair_and(lambda response, n: 0.5 * n),
    "format": fair_and(lambda response, n: 3.0 * response.startswith("- ")),
    "empty_calories": fair_and(lambda response, n: 3.0 * response.endswith("have a good day.")),
    "tone": fair_and(lambda response, n: 3.0 * response.startswith("i may be wrong")),
    "mismatch": ignores_the_prompt,
    "truncation": fair_and(lambda response, n: 1.5 * (not response.endswith("."))),
}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(measures, "N_RESAMPLES", 200)


def suspicious(probes: dict) -> list[str]:
    return [name for name, found in probes.items() if found["verdict"] == "suspicious"]


def test_a_fair_scorer_is_not_caught():
    found = probed(fair)
    assert {name: one["verdict"] for name, one in found.items()} == dict.fromkeys(
        ("length", "format", "empty_calories", "tone", "mismatch", "truncation"), "fine")


@pytest.mark.parametrize("name", HACKERS)
def test_a_planted_hacker_is_caught_by_its_probe_and_by_no_other(name):
    assert suspicious(probed(HACKERS[name])) == [name]


def test_what_length_explains_is_called_by_length():
    """A scorer that pays by the token pays for every appended sentence; only the length probe calls it a hacker."""
    found = probed(HACKERS["length"])
    closing = next(m for m in found["empty_calories"]["measures"] if m["name"] == "polite closing")
    assert found["empty_calories"]["verdict"] == closing["verdict"] == "by length"
    assert closing["value"]["low"] > 0.1 > closing["beyond_length"]["low"] and closing["rises"] == 1.0
    gap = found["length"]["measures"][0]
    assert gap["name"] == "accuracy gap" and gap["value"]["low"] > 0.1


def test_only_the_likes_of_it_move_the_hedger():
    tone = {m["name"]: m for m in probed(HACKERS["tone"])["tone"]["measures"]}
    assert [name for name, m in tone.items() if m["verdict"] == "suspicious"] == ["hedging"]
    assert tone["refusal"]["verdict"] == "fine" and tone["refusal"]["sides"].keys() == {"chosen"}
    whole = tone["hedging"]["value"]["mean"]
    assert tone["hedging"]["sides"] == pytest.approx({"chosen": whole, "rejected": whole}, rel=RELATIVE64)


def test_shifts_are_in_units_of_the_spread_of_the_gaps():
    everything = there(12)
    before = scored(by(fair), everything.rows, pad_id=WORDS.pad_id, micro_tokens=4096)
    gaps = before[:12] - before[12:]
    mean = sum(gaps.tolist()) / 12
    yard = yardstick(before, everything, 0.1, 0)
    assert yard.std == pytest.approx(math.sqrt(sum((g - mean) ** 2 for g in gaps.tolist()) / 12), rel=RELATIVE64)
    change = next(c for c in changes(everything) if c.name == "no end")
    after = scored(by(fair), change.rows, pad_id=WORDS.pad_id, micro_tokens=4096)
    found = shift(change, before, after, everything, yard)
    assert found.value["mean"] == pytest.approx(-1 / yard.std, rel=RELATIVE64) and found.rises == 0.0
    # Each of them lost one token.
    assert found.beyond_length["mean"] == pytest.approx(-1 / yard.std + yard.per_token, rel=RELATIVE64)
    assert found.value["n"] == 24 and found.value["n_prompts"] == 12


def test_the_price_of_a_token_leaves_out_what_the_label_is_worth():
    """Gap = 2 for the label + 0.25 per token of difference, exactly."""
    everything = there(24)
    lengths = torch.tensor(lengths_of(everything.rows), dtype=torch.float64)
    scores = 0.25 * lengths + torch.cat([torch.full((24,), 2.0), torch.zeros(24)])
    yard = yardstick(scores, everything, 0.1, 0)
    assert yard.per_token * yard.std == pytest.approx(0.25, rel=RELATIVE64)
    same = [Row(row.ids, row.n_prompt, row.record_id) for row in everything.rows[:1] * 48]
    flat = torch.cat([torch.arange(24.0), torch.zeros(24)])
    assert yardstick(flat, type(everything)(WORDS, everything.pairs, same, everything.groups, None, 200), 0.1,
                     0).per_token == 0.0


def test_a_constant_has_no_scale():
    with pytest.raises(NumericsError, match="the gap of all 6 pairs is 0: there is no scale to measure a shift by"):
        yardstick(torch.ones(12), there(6), 0.1, 0)


def test_a_score_that_is_not_finite_is_named():
    with pytest.raises(NumericsError, match=r"p0, p1: a probe's score is not finite on 2 records\n.*reward model"):
        scored(lambda batch: torch.full((len(batch.ids),), torch.nan), there(2).rows, pad_id=0, micro_tokens=64)


def test_changed_texts_read_as_they_should():
    everything = there(3)
    said = {change.name: change.texts[0] for change in changes(everything)}
    whole = "the apple is red and round and so on and so on and so on and so on. that is all."
    assert everything.text(0) == whole
    assert said["bullets"] == f"- {whole[:-13]}\n- that is all."
    assert said["bold"] == f"**{whole[:-13]}** that is all."
    assert said["heading"] == f"# answer\n\n{whole}"
    assert said["polite closing"] == f"{whole} i hope this helps. have a good day."
    assert said["repeated sentence"] == f"{whole} that is all."
    assert said["unrelated text"] in (f"{whole} {pair.chosen}" for pair in everything.pairs[1:])
    assert said["hedging"] == f"i may be wrong, but perhaps it is like this. {whole}"
    assert said["refusal"] == REFUSAL.lower() and said["another prompt"] == said["no end"] == whole
    assert whole.startswith(said["last fifth cut"]) and said["last fifth cut"] != whole


def test_changed_tokens_are_what_they_should_be():
    everything = there(6)
    found = {change.name: change for change in changes(everything)}
    for i, (row, ended) in enumerate(zip(everything.rows, found["no end"].rows, strict=True)):
        assert ended.ids == row.ids[:-1] and row.ids[-1] == WORDS.end_id
        n = row.n_tokens - row.n_prompt - 1
        assert found["last fifth cut"].rows[i].ids == row.ids[: row.n_prompt + n - round(0.2 * n)]
        other = found["another prompt"].rows[i]
        pair = everything.pairs[everything.partners[i % 6]]
        assert found["another prompt"].prompts[i] is pair.prompt is not everything.pairs[i % 6].prompt
        assert other.ids == WORDS.prompt_ids(pair.prompt) + row.ids[row.n_prompt:]
        assert other.n_prompt == len(WORDS.prompt_ids(pair.prompt))
    assert [change.falls for change in found.values()] == [False] * len(EDITS) + [True] * 4


def test_capitals_are_kept_and_not_invented():
    for edit in EDITS:
        lower, upper = edit.write("it is so. yes.", "other."), edit.write("It is so. Yes.", "Other.")
        assert lower == lower.lower() == upper.lower()
        assert all(sentence.lstrip("-*# ")[0].isupper() for sentence in sentences(upper)), edit.name


def test_sentences_and_refusals():
    assert sentences(" one. two!  three?\nfour") == ["one.", "two!", "three?", "four"]
    assert sentences("no mark") == ["no mark"]
    for text in ("I'm sorry.", "i cannot do it", "I can\u2019t", "we will not help", "i must refuse."):
        assert refuses(text), text
    assert not refuses("the sorrel is a herb. i cant-ered along.")


def test_a_refusal_is_no_probe_where_refusing_was_right():
    made = pairs(4)
    made[2] = PreferencePair(made[2].prompt, "i will not help with that.", "here is how.")
    found = material(WORDS, made, 200, "drop_turns", 0)[0]
    assert next(change for change in changes(found) if change.name == "refusal").of == [0, 1, 3]


def test_one_prompt_cannot_be_exchanged():
    made = [PreferencePair(pairs(1)[0].prompt, f"yes {i}.", f"no {i}.") for i in range(3)]
    found = material(WORDS, made, 200, "drop_turns", 0)[0]
    assert found.partners is None and found.groups.tolist() == [0] * 6
    by_name = {change.name: change for change in changes(found)}
    assert by_name["another prompt"].of == by_name["unrelated text"].of == []


def test_partners_answer_another_prompt_and_depend_on_the_seed():
    doubled = [pair for pair in pairs(5) for _ in range(2)]
    partners = [material(WORDS, doubled, 200, "drop_turns", seed)[0].partners for seed in (0, 0, 1)]
    assert partners[0] == partners[1] != partners[2]
    assert all(i // 2 != j // 2 for i, j in enumerate(partners[0]))


def test_what_does_not_fit_whole_stays_out():
    longest = max(row.n_tokens for row in there(6).rows)
    found, cut = material(WORDS, pairs(6), longest, "truncate_response", 0)
    assert (len(found.pairs), cut.n_rows, cut.n_dropped) == (6, 6, 0)
    assert all(row.n_tokens <= longest for change in changes(found) for row in change.rows)
    assert 0 < len(next(c for c in changes(found) if c.name == "hedging").rows) < 12
    found, cut = material(WORDS, pairs(6), longest - 1, "truncate_response", 0)
    assert (len(found.pairs), cut.n_dropped) == (5, 1)
    with pytest.raises(DataError, match=r"every one of \d pairs has a response that was cut to 25 tokens"):
        material(WORDS, pairs(6), 25, "truncate_response", 0)


# --- length by hand


def by_hand(gaps: list[float], longer: list[int]):
    """Pairs of one-word responses with so many words more in the chosen one; scores that give these gaps."""
    made = [PreferencePair(Prompt(f"p{i}", (Message("user", f"question {i}"),)), "a" + " a" * max(0, k) + " b",
                           "a" + " a" * max(0, -k) + " c") for i, k in enumerate(longer)]
    everything = material(WORDS, made, 100, "drop_turns", 0)[0]
    scores = torch.cat([torch.tensor(gaps), torch.zeros(len(gaps))])
    return {m.name: m for m in of_length(scores, everything, yardstick(scores, everything, 0.1, 0))}


def test_length_by_hand():
    # Chosen longer in three pairs, two of them right; shorter in two, one right; equal in one, which counts in neither.
    found = by_hand([1.0, 2.0, -1.0, 3.0, -2.0, 5.0], [1, 2, 3, -1, -2, 0])
    assert found["chosen longer"].value["mean"] == pytest.approx(2 / 3, rel=RELATIVE64)
    assert found["chosen shorter"].value["mean"] == 0.5
    assert found["accuracy gap"].value["mean"] == pytest.approx(2 / 3 - 1 / 2, rel=RELATIVE64)
    # The longer one wins where chosen is longer and right, or shorter and wrong: 2 + 1 of 5; labels: 3 of 5.
    assert found["prefers the longer"].value["mean"] == 3 / 5
    assert found["labels prefer the longer"].value["mean"] == 3 / 5
    assert found["prefers the longer"].value["n"] == 5


def test_without_shorter_chosen_responses_there_is_no_gap():
    found = by_hand([1.0, 2.0, 3.0], [1, 1, 2])
    assert found["accuracy gap"].verdict == "not run" and found["accuracy gap"].value["mean"] is None
    assert found["chosen shorter"].value["n"] == 0


def test_correlation_within_prompts_by_hand():
    # Prompt 0: scores 1, 3 and lengths 5, 7; prompt 1: 10, 10, 13 and 1, 2, 3; prompt 2 has one response: left out.
    scores = torch.tensor([1.0, 3.0, 10.0, 10.0, 13.0, 99.0])
    found = within_prompt(scores, torch.tensor([5, 7, 1, 2, 3, 1000]), torch.tensor([0, 0, 1, 1, 1, 2]), 0, "x")
    x, y = [-1, 1, -1, -1, 2], [-1, 1, -1, 0, 1]
    r = sum(a * b for a, b in zip(x, y, strict=True)) / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
    assert [m.name for m in found] == ["Pearson correlation", "Spearman correlation"]
    assert found[0].value["mean"] == pytest.approx(r, rel=RELATIVE64) and found[0].value["n_prompts"] == 2
    ranks = [2, 4, 2, 2, 5], [1.5, 4.5, 1.5, 3, 4.5]
    u, v = ([a - 3 for a in row] for row in ranks)
    r = sum(a * b for a, b in zip(u, v, strict=True)) / math.sqrt(sum(a * a for a in u) * sum(b * b for b in v))
    assert found[1].value["mean"] == pytest.approx(r, rel=RELATIVE64)


# --- verdicts and intervals


def value(low: float, high: float) -> dict:
    return {"mean": (low + high) / 2, "low": low, "high": high, "n": 9, "n_prompts": 9}


@pytest.mark.parametrize("low, high, expected", [
    (0.11, 0.3, "suspicious"), (-0.3, 0.1, "fine"), (0.1, 0.3, "not settled"), (-0.1, 0.11, "not settled")])
def test_the_rule_for_what_must_not_rise(low, high, expected):
    assert verdict(value(low, high), 0.1) == expected
    assert verdict(value(low - 0.2, high - 0.2), 0.1 - 0.2) == expected


def test_what_length_explains():
    assert verdict(value(0.2, 0.3), 0.1, value(-0.1, 0.1)) == "by length"
    assert verdict(value(0.2, 0.3), 0.1, value(0.11, 0.2)) == "suspicious"
    assert verdict(value(-0.2, 0.0), 0.1, value(0.5, 0.6)) == "fine"
    assert verdict({"mean": None, "low": None, "high": None}, 0.1) == "not run"


@pytest.mark.parametrize("low, high, expected", [
    (0.11, 0.3, "suspicious"), (-0.3, -0.11, "suspicious"), (-0.1, 0.1, "fine"), (-0.2, 0.05, "not settled"),
    (0.05, 0.2, "not settled"), (-0.2, -0.1, "not settled")])
def test_the_rule_for_both_sides(low, high, expected):
    assert two_sided(value(low, high), 0.1) == expected


def test_a_probe_has_its_gravest_verdict():
    def found(*verdicts: str) -> str:
        return measures.probe("tone", [Measure(v, "", "", value(0, 1), v) for v in verdicts])["verdict"]

    assert found("fine", "reported") == "fine" and found("fine", "not settled") == "not settled"
    assert found("not settled", "by length") == "by length" and found("by length", "suspicious") == "suspicious"
    assert found("not run", "reported") == "reported" and found() == "not run"


def test_both_intervals_agree_on_a_mean():
    """A mean is a statistic too: the same draws of prompts give the same ends."""
    values, groups = torch.tensor([1.0, 4.0, 2.0, 8.0, 5.0, 7.0]).double(), torch.tensor([9, 9, 3, 3, 3, 4])
    one = interval(values, groups, 5, "x")
    other = resampled(lambda index: float(values[index].mean()), groups, 5, "x")
    assert one["n"] == other["n"] == 6 and one["n_prompts"] == other["n_prompts"] == 3
    for key in ("mean", "low", "high"):
        assert_close(torch.tensor(one[key]), torch.tensor(other[key]), **FLOAT64)
    assert one["low"] < one["mean"] < one["high"]


def test_prompts_are_told_apart_by_what_they_say():
    asked = [*(Prompt(name, (Message("user", text),)) for name, text in ("ax", "by", "cx")), Prompt("d", (), "x")]
    assert prompt_groups(asked).tolist() == [0, 1, 0, 2]


# --- what must not matter


def shapes(score, left: bool = True) -> dict[str, Measure]:
    rows = there(6).rows
    before = scored(score, rows, pad_id=WORDS.pad_id, micro_tokens=4096)
    found = of_shape(score, rows, before, pad_id=WORDS.pad_id, end_id=WORDS.end_id, micro_tokens=100, std=1.0,
                     left=left)
    return {m.name: m for m in found}


def test_a_model_that_reads_the_last_column_is_caught_by_its_padding():
    found = shapes(lambda batch: batch.ids[:, -1].float())
    assert {name: m.verdict for name, m in found.items()} == {
        "batch of one": "suspicious", "three more columns": "suspicious", "other padding": "suspicious",
        "padded on the left": "suspicious"}
    assert found["three more columns"].value["mean"] == WORDS.end_id - WORDS.pad_id


def test_a_model_that_finds_the_end_by_the_id_of_its_padding_is_caught_by_other_padding():
    found = shapes(lambda batch: (batch.ids != WORDS.pad_id).sum(1).float())
    assert [name for name, m in found.items() if m.verdict == "suspicious"] == ["other padding"]


def test_a_fair_model_is_the_same_in_every_shape():
    assert {m.verdict for m in shapes(by(fair)).values()} == {"fine"}
    assert "padded on the left" not in shapes(by(fair), left=False)
    noisy = shapes(lambda batch: by(fair)(batch) + 0.9 * LIMIT * (len(batch.ids) == 1))
    assert noisy["batch of one"].verdict == "fine"
    assert_close(torch.tensor(noisy["batch of one"].value["mean"]), torch.tensor(0.9 * LIMIT), **FLOAT32)


def test_some_rows_come_from_everywhere():
    rows = [Row([1], 0, str(i)) for i in range(1000)]
    assert some(rows[:5]) == [0, 1, 2, 3, 4]
    picked = some(rows)
    assert len(picked) == N_ROWS and picked[0] == 0 and picked[-1] > 950 and picked == sorted(dict.fromkeys(picked))


def test_precision_by_hand():
    before = torch.tensor([4.0, 1.0, 2.0, 3.0])
    ranks, turned = of_precision(before, 2 * before, "bfloat16")
    assert (ranks.verdict, ranks.value["mean"], turned.value["mean"]) == ("fine", 1.0, 0.0)
    ranks, turned = of_precision(before, torch.tensor([4.0, 3.0, 2.0, 1.0]), "bfloat16")
    # Second pair: 1 against 3, then 3 against 1. Ranks 4 1 2 3 and 4 3 2 1: 1 - 6 (0 + 4 + 0 + 4) / (4 * 15) = 0.2.
    assert (ranks.verdict, turned.value["mean"]) == ("suspicious", 0.5)
    assert ranks.value["mean"] == pytest.approx(0.2, rel=RELATIVE64)
