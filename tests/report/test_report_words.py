"""The headline in plain words: it says better, worse or not distinguishable, and never hides an over-optimised run."""

import math
from pathlib import Path

import pytest
from report_runs import counted, environment, mean, ppo, result, reward_model, win_rate, write

from keel.report import build
from keel.report.folder import RunFolder, read
from keel.report.headline import Headline, between, headline, stages
from keel.report.series import collect
from keel.report.verdict import divergence, verdict
from keel.report.words import brief, clean, duration, interval, joined, number, shares


def told(folder: Path) -> Headline:
    run: RunFolder = read(folder)
    return headline(run, collect(run))


def texts(words: Headline) -> str:
    return " | ".join(concern.text for concern in words.concerns)


def plain(tmp_path: Path, **more: object) -> Path:
    metrics = [{"step": 1, "loss": 1.0}]
    return write(tmp_path / "run", environment=environment(), config="", metrics=metrics, result=result(**more))


def test_better_names_both_numbers_and_what_was_trained_on_what(tmp_path: Path) -> None:
    words = told(ppo(tmp_path / "run"))
    assert words.title == "PPO improved the gold score, from 0.21 to 0.62."
    assert words.verdict == "better"
    assert "0.21 [0.15, 0.27] before, 0.62 [0.57, 0.67] after" in words.evidence
    assert "n = 200" in words.evidence and "do not overlap" in words.evidence
    assert words.subject == "PPO of models/sft on prompts.jsonl; 40 steps, 3 min 5 s, seed 1."


@pytest.mark.parametrize("recipe", ["axis calibrate", "axis drift", "ppo", "sft", "bench_rm"])
def test_what_a_run_noted_is_told_and_never_all_clear(tmp_path: Path, recipe: str) -> None:
    given = ["a cap never acts", "epochs=3: too many", "axis.json is old.", "<b>x</b> stays", "partial: 2 of 3", 7, " "]
    made = write(tmp_path / "run", environment=environment(recipe), config="", metrics=[{"step": 1, "loss": 1.0}],
                 result=result(recipe, notes=given))
    said = [concern.text for concern in told(made).concerns]
    own = ["A cap never acts.", "epochs=3: too many.", "axis.json is old.", "<b>x</b> stays."]
    assert [text for text in said if text in own] == own and not any("2 of 3" in text for text in said)
    page = build([made], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "A cap never acts." in page and "&lt;b&gt;x&lt;/b&gt; stays." in page and "<b>x</b>" not in page
    assert "No alarm was raised" not in page


def test_damaged_notes_are_no_notes(tmp_path: Path) -> None:
    assert told(plain(tmp_path, notes={"a": 1})).concerns == told(plain(tmp_path)).concerns


def test_shares_of_one_whole_have_the_same_digits() -> None:
    assert shares([0.998, 0.002]) == ["99.8%", "0.2%"] and shares([0.75, 0.25]) == ["75%", "25%"]
    assert shares([1.0, 0.0]) == ["100%", "0%"]


def test_overlapping_intervals_are_not_called_better(tmp_path: Path) -> None:
    words = told(plain(tmp_path, before=mean(0.30, 0.06), after=mean(0.36, 0.06)))
    assert words.title == "After PPO, the gold score is not distinguishable from before."
    assert "The intervals overlap." in words.evidence


def test_worse_without_a_proxy_is_only_worse(tmp_path: Path) -> None:
    words = told(plain(tmp_path, before=mean(0.6, 0.05), after=mean(0.3, 0.05)))
    assert words.title == "PPO made the gold score worse: from 0.6 to 0.3."


def test_worse_gold_with_a_risen_proxy_is_over_optimisation(tmp_path: Path) -> None:
    rows = [{"step": 1, "score/mean": 0.1}, {"step": 2, "score/mean": 2.0}]
    outcome = result(before=mean(0.6, 0.05), after=mean(0.3, 0.05))
    words = told(write(tmp_path / "run", environment=environment(), metrics=rows, result=outcome))
    assert words.title == "Over-optimisation: the proxy score rose while the gold score fell."
    assert words.concerns[0].text.startswith("Over-optimisation") and words.concerns[0].grave


def test_curves_that_part_are_over_optimisation_even_when_the_ends_overlap(tmp_path: Path) -> None:
    words = told(ppo(tmp_path / "run", collapse=True))
    assert words.verdict == "overoptimised"
    assert words.title.startswith("Over-optimisation: after about step 2")
    assert "proxy score rose from" in words.concerns[0].text


def test_better_but_past_its_best_says_both(tmp_path: Path) -> None:
    better = result(before=mean(0.1, 0.02), after=mean(0.4, 0.02))
    words = told(ppo(tmp_path / "run", collapse=True, result=better))
    assert words.title == "PPO improved the gold score, from 0.1 to 0.4, but went past its best."
    assert "Over-optimisation" in words.concerns[0].text


def test_a_healthy_run_and_mere_noise_are_not_accused(tmp_path: Path) -> None:
    healthy = read(ppo(tmp_path / "healthy"))
    assert divergence(collect(healthy)) is None
    rows = [{"step": s, "score/mean": s / 50, "gold/mean": 0.3 + 0.1 * math.sin(s * s)} for s in range(1, 51)]
    assert divergence(collect(read(write(tmp_path / "noise", metrics=rows)))) is None


def test_paired_change_decides_where_the_run_recorded_one() -> None:
    wide = {"before": mean(0.3, 0.1), "after": mean(0.35, 0.1), "higher_is_better": True}
    assert verdict(wide) == "unclear"
    assert verdict(wide | {"change": mean(0.05, 0.02)}) == "better"
    assert verdict(wide | {"change": mean(-0.05, 0.02)}) == "worse"
    assert verdict(wide | {"change": mean(0.05, 0.06)}) == "unclear"


def test_lower_is_better_turns_the_verdict() -> None:
    assert verdict({"before": mean(25, 1), "after": mean(4, 1), "higher_is_better": False}) == "better"
    assert verdict({"before": mean(4, 1), "after": mean(25, 1), "higher_is_better": False}) == "worse"


def test_no_interval_is_no_verdict(tmp_path: Path) -> None:
    words = told(plain(tmp_path, before=mean(0.3), after=mean(0.9)))
    assert words.verdict == "unknown"
    assert words.title == "PPO ended with a gold score of 0.9, from 0.3."
    assert "does not say whether it got better" in words.evidence


@pytest.mark.parametrize(
    ("status", "title"),
    [
        ("failed", "PPO failed at step 1."),
        ("stopped", "PPO was stopped at step 1."),
        ("finished", "PPO finished without a headline number."),
    ],
)
def test_how_a_run_ended_comes_first(tmp_path: Path, status: str, title: str) -> None:
    words = told(plain(tmp_path, status=status, error="loss is not finite at step 1"))
    assert words.title == title
    assert ("loss is not finite at step 1" in texts(words)) == (status != "finished")


def test_unfinished_run_says_so(tmp_path: Path) -> None:
    words = told(write(tmp_path / "run", environment=environment(), metrics=[{"step": 7, "loss": 1.0}]))
    assert words.title == "PPO has not finished; its last logged step is 7."
    assert "There is no result.json" in texts(words) and "config.toml is missing" in texts(words)


def test_everything_that_went_wrong_is_listed_and_grave_things_first(tmp_path: Path) -> None:
    words = told(ppo(tmp_path / "run", collapse=True))
    told_texts = texts(words)
    assert "Alarm “length reward race” 8 times between steps 28 and 35" in told_texts
    assert "Alarm “truncation” at step 37" in told_texts
    assert "3 records were skipped as faulty." in told_texts and "truncated" not in told_texts
    assert "of the last responses were cut at the length limit" in told_texts
    graves = [concern.grave for concern in words.concerns]
    assert graves == sorted(graves, reverse=True)


def test_every_way_a_record_can_be_lost_is_counted(tmp_path: Path) -> None:
    skipped = {
        "records": 1,
        "n_rows": 202,
        "n_fewer_turns": 66,
        "n_cut": 0,
        "n_dropped": 30,
        "max_length": 512,
        "odd": 2,
    }
    said = texts(told(plain(tmp_path, skipped=skipped)))
    assert "1 record was skipped as faulty." in said
    assert "66 of 202 records were stripped of the oldest turns to fit 512 tokens." in said
    assert "30 of 202 records were left out: longer than 512 tokens." in said
    assert "2 records were left out (odd)." in said and " cut" not in said


def test_a_proxy_alone_proves_nothing(tmp_path: Path) -> None:
    headline_row = {"metric": "score", "before": mean(0.1, 0.02), "after": mean(0.9, 0.02)}
    words = told(plain(tmp_path, headline=headline_row))
    assert words.title == "PPO improved the proxy score, from 0.1 to 0.9."
    assert "Only the proxy was measured." in texts(words)
    assert "Only the proxy" not in texts(told(ppo(tmp_path / "gold", result=result(headline=headline_row))))


@pytest.mark.parametrize(
    ("after", "relation"), [(0.8, "better than"), (0.3, "worse than"), (0.56, "not distinguishable from")]
)
def test_a_baseline_in_the_place_of_before_is_called_by_its_name(tmp_path: Path, after: float, relation: str) -> None:
    shown = {"metric": "held-out accuracy (before: the longer answer wins)", "before": mean(0.55, 0.03)}
    words = told(plain(tmp_path, recipe="reward_model", headline=shown | {"after": mean(after, 0.03)}))
    end = f"a held-out accuracy of {after}, {relation} “the longer answer wins” at 0.55."
    assert words.title == f"Reward model training ended with {end}"
    assert "0.550 [0.520, 0.580] for “the longer answer wins”" in words.evidence


def test_a_unit_in_brackets_and_a_missing_before(tmp_path: Path) -> None:
    shown = {"metric": "validation loss (nats per token)", "higher_is_better": False, "after": {"mean": 2.846}}
    words = told(plain(tmp_path, recipe="sft", headline=shown | {"before": {"mean": None}}))
    assert words.title == "Supervised fine-tuning ended with a validation loss of 2.85."
    assert "Nothing was measured before training" in words.evidence
    nothing = told(plain(tmp_path, recipe="sft", headline=shown | {"after": {"mean": None}}))
    assert nothing.title == "Supervised fine-tuning finished without a headline number."


def test_alarms_that_were_counted_but_lost_are_said(tmp_path: Path) -> None:
    assert "2 alarms raised, but alarms.jsonl is missing." in texts(told(plain(tmp_path, n_alarms=2)))


def test_a_reward_model_is_held_against_guessing_and_length(tmp_path: Path) -> None:
    good = texts(told(reward_model(tmp_path / "good", 0.71)))
    assert "distinguishable" not in good
    length = texts(told(reward_model(tmp_path / "length", 0.63)))
    assert "Not distinguishable from always preferring the longer response, which reaches 0.62." in length
    assert "guessing" not in length
    assert "not distinguishable from guessing" in texts(told(reward_model(tmp_path / "coin", 0.51)))
    inverted = texts(told(reward_model(tmp_path / "inverted", 0.3)))
    assert "Its accuracy is worse than guessing" in inverted and "Worse than always preferring the longer" in inverted


@pytest.mark.parametrize(
    ("win", "tie", "said"),
    [
        (44.0, 26.0, "ppo beats sft by the gold score: win rate 57% [51, 63]."),
        (20.0, 26.0, "ppo loses to sft by the gold score: win rate 33% [27, 39]."),
        (40.0, 26.0, "ppo is not distinguishable from sft by the gold score: win rate 53% [47, 59]."),
    ],
)
def test_a_comparison_says_who_won_and_by_how_much(tmp_path: Path, win: float, tie: float, said: str) -> None:
    words = told(win_rate(tmp_path / "run", win, tie))
    assert words.title == said
    assert f"{win:.0f}% wins, 26% ties and {74 - win:.0f}% losses on 200 prompts" in words.evidence
    assert "Sign test on the 148 decided prompts: p = 0.031." in words.evidence
    assert "Mean length 61.2 against 48 characters." in words.evidence
    assert words.subject == "Comparison of runs/ppo/model against runs/sft/model on prompts.jsonl; 3 min 5 s, seed 1."
    assert words.concerns == ()


def test_what_weakens_a_verdict_is_said(tmp_path: Path) -> None:
    court = {"gold": counted(20, 20), "judge": counted(42, 20), "reward_model": counted(70, 20)}
    order = {"inconsistent_percent": 55.0, "first_place_percent": 71.0}
    sides = {"policy": {"cut_percent": 60.0}, "opponent": {"cut_percent": 2.0}}
    words = told(win_rate(tmp_path / "all", judges=court | {"judge": counted(42, 20) | order}, **sides))
    said = texts(words)
    assert "The judges contradict each other: the reward model for ppo, the gold score against it." in said
    assert "with the order of the two answers on 55% of the prompts; the first place won 71% of its verdicts." in said
    assert "60% of the answers of ppo were cut." in said and "2.0% of the answers of sft were cut." in said
    assert [c.grave for c in words.concerns] == [True, True, True, False]
    proxy = win_rate(tmp_path / "proxy", judges={"reward_model": counted(60, 0)})
    assert "Only the reward model judged." in texts(told(proxy))
    assert "Only the reward model" not in said


def test_sides_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    def title(ours: str, theirs: str) -> str:
        config = f'policy = "{ours}"\nopponent = "{theirs}"\n'
        folder = win_rate(tmp_path / f"{ours}-{theirs}".replace("/", "-"))
        (folder / "config.toml").write_text(config)
        return told(folder).title.split(" by ")[0]

    assert title("a/x", "b/y") == "x beats y"
    assert title("a/model", "b/model") == "a beats b"
    assert title("a/x", "b/x") == "a/x beats b/x"
    assert title("a/x", "a/x") == "x beats itself"
    assert title("model", "/") == "model beats /"


def test_non_finite_values_are_named_with_their_step(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": loss} for step, loss in enumerate((1.0, math.nan, None, math.inf), start=1)]
    assert "loss (3, first at step 2)" in texts(told(write(tmp_path / "run", metrics=rows)))


def test_several_runs_are_ranked_only_when_intervals_part() -> None:
    rows = [("a", mean(0.5, 0.02)), ("b", mean(0.7, 0.02)), ("c", mean(0.1, 0.02))]
    numbers = "0.700 [0.680, 0.720] against 0.500 [0.480, 0.520] of a"
    assert between(rows, "gold") == f"b ends with the best gold score: {numbers}, the next."
    assert between(rows, "perplexity", higher=False).startswith("c ends with the best perplexity")
    assert "b and a are not distinguishable" in between([("a", mean(0.69, 0.02)), rows[1]], "gold")
    assert "may be chance" in between([("a", mean(0.5)), ("b", mean(0.7))], "gold")
    assert between(rows[:1], "gold") == ""


def test_stages_of_a_demo() -> None:
    rows = [{"stage": "base", **mean(0.1, 0.02)}, {"stage": "SFT"}, {"stage": "PPO", **mean(0.5, 0.02)}]
    assert stages(rows) == "From base to PPO, the gold score rose from 0.100 [0.080, 0.120] to 0.500 [0.480, 0.520]."
    assert "fell" in stages(rows[::-1])
    assert "not distinguishable" in stages([rows[0], {"stage": "PPO", **mean(0.11, 0.02)}])
    assert stages(rows[:2]) == ""


def test_numbers_as_text() -> None:
    assert [number(x) for x in (0, 1234567, 0.00012, -0.5)] == ["0", "1.23e6", "1.20e\u22124", "\u22120.5"]
    assert [number(x) for x in (math.nan, None, True)] == ["\u2013"] * 3
    assert brief(0.123456) == "0.123" and brief(12345) == "12,345" and brief(10**400) == "\u2013"
    assert interval({"mean": 0.5234, "low": 0.47, "high": 0.58}) == "0.52 [0.47, 0.58]"
    assert interval({"mean": 3.0, "low": 3.0, "high": 3.0}) == "3 [3, 3]" and interval(None) == "\u2013"
    assert [duration(x) for x in (4.21, 42, 185, 7800)] == ["4.2 s", "42 s", "3 min 5 s", "2 h 10 min"]
    assert duration(None) == duration(-1) == "\u2013"
    assert joined(["a"]) == "a" and joined(["a", "b", "c"]) == "a, b and c"
    assert clean("a\x00\ud800\x1b\x85b\n\t") == "a\ufffd\ufffd\ufffd\ufffdb\n\t"
