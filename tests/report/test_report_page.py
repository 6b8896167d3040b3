"""The page as a file: whole, escaped, atomic, honest about what is missing; no browser needed."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from report_runs import HOSTILE, counted, demo, environment, mean, ppo, ppo_metrics, result, samples, win_rate, write

from keel.errors import ConfigError, RunError
from keel.report import ReportConfig, build, run
from keel.report.charts import MAX_MARKS, MAX_PAIRS
from keel.report.folder import read
from keel.report.glossary import METRICS, describe
from keel.report.page import embedded
from keel.report.samples import MAX_CHARACTERS, MAX_PROMPTS, browser
from keel.report.series import MAX_COLUMNS, MAX_POINTS, Series, axis_range, collect, histograms, line


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1], parse_constant=pytest.fail)


def charts_of(page: str) -> dict[str, dict[str, Any]]:
    return {c["name"]: c for s in data_of(page)["sections"] for g in s["groups"] for c in g["charts"]}


def made(out: Path, *runs: Path) -> str:
    return build(list(runs), out / "report.html").read_text(encoding="utf-8")


def test_one_run_makes_a_small_page_that_asks_for_nothing(tmp_path: Path) -> None:
    page = made(tmp_path, ppo(tmp_path / "run"))
    assert len(page) < 200_000
    assert "PPO improved the gold score, from 0.21 to 0.62." in page
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", page)
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page and "unsafe" not in page
    assert "keel ppo configs/ppo.toml --seed 1" in page and "sha256 " + "ab" * 32 in page


def test_every_metric_gets_a_chart_known_or_not(tmp_path: Path) -> None:
    shown = charts_of(made(tmp_path, ppo(tmp_path / "run")))
    logged = {name for name in ppo_metrics(1)[0] if name not in ("step", "phase", "score/histogram")}
    assert logged | {"time/seconds", "time/sample_s"} == set(shown)
    assert shown["kl/reference_k1"]["unit"] == "nats per token"
    assert describe("sampler/refills").group == "Sampler" and describe("widgets").group == "Other"
    assert describe("policy/new_thing").group == describe("policy/clipped").group
    assert all(metric.meaning.endswith(".") for metric in METRICS.values())


def test_hostile_text_stays_text_everywhere(tmp_path: Path) -> None:
    alarm = {"step": 3, "name": HOSTILE, "meaning": HOSTILE, "remedy": HOSTILE, "value": 1.0, "limit": 0.5}
    rows = [{**row, "id": f"{row['id']}{HOSTILE}", "domain": HOSTILE} for row in samples(text=HOSTILE)]
    folder = ppo(
        tmp_path / "run",
        samples=rows,
        alarms=[alarm],
        environment=environment(command=HOSTILE, data={HOSTILE: HOSTILE}),
        metrics=[{"step": 1, "phase": HOSTILE, HOSTILE: 1.0, f"{HOSTILE}/b": 2.0}, {"step": 3, "score/mean": 1.0}],
        result=result(recipe=HOSTILE, error=HOSTILE, status="failed"),
    )
    page = made(tmp_path, folder)
    assert "<img" not in page and "<b>bold" not in page
    assert page.count("</script>") == 2
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", page)
    prompts = data_of(page)["samples"]["prompts"]
    assert prompts[0]["at"]["0"]["text"].endswith(HOSTILE)


def test_embedded_json_has_no_character_that_html_or_javascript_reads() -> None:
    text = embedded({"a": "<!--</script>&\u2028\u2029\ud800é"})
    assert text.isascii() and not set("<>&") & set(text)
    assert json.loads(text) == {"a": "<!--</script>&\u2028\u2029\ud800é"}


def test_secrets_do_not_reach_the_page(tmp_path: Path) -> None:
    command = "keel ppo x.toml --api-key sk-12345 --judge.api_key=sk-678 --token hf_zzz --max-new-tokens 64"
    config = 'hf_token = "hf_abcdef"\nn_tokens = 5\n'
    folder = ppo(tmp_path / "run", environment=environment(command=command), config=config)
    page = made(tmp_path, folder)
    assert not re.search("sk-12345|sk-678|hf_zzz|hf_abcdef", page)
    assert "--max-new-tokens 64" in page and "n_tokens = 5" in page


def test_nan_and_infinity_leave_a_gap_and_strict_json(tmp_path: Path) -> None:
    values = (1.0, math.nan, 2.0, math.inf, None, 10**400, 3.0)
    rows = [{"step": step, "loss": value, "lr": math.nan} for step, value in enumerate(values)]
    page = made(tmp_path, write(tmp_path / "run", metrics=rows, result=result(after=mean(math.nan, 0.1))))
    shown = charts_of(page)["loss"]
    assert shown["lines"][0]["y"] == [1, None, 2, None, None, None, 3]
    assert shown["lines"][0]["bad"] == [1, 3, 4, 5] and shown["range"] == [1, 3]
    assert "lr" not in charts_of(page)


def test_an_unfinished_run_still_gets_its_report(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", metrics=[{"step": 1, "loss": 2.0}], config="steps = 9\n")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"step": 2, "loss": 1.')
    page = made(tmp_path, folder)
    assert "has not finished; its last logged step is 1" in page
    assert "metrics.jsonl: 2 lines were unreadable and left out (first: line 2)" in page
    assert "environment.json is missing" in page and "The command was not recorded" in page
    assert data_of(page)["samples"] is None


@pytest.mark.parametrize("name", ["config.toml", "environment.json", "result.json"])
def test_a_damaged_file_is_left_out_and_named(tmp_path: Path, name: str) -> None:
    folder = ppo(tmp_path / "run")
    (folder / name).write_bytes(b"\xff{[" * 3)
    assert f"{name} is damaged and was left out" in made(tmp_path, folder)


def test_rows_of_one_step_are_joined_and_a_repeated_step_counts_once(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0}, {"step": 2, "lr": 0.1}, {"step": 2, "loss": 3.0}]
    series = collect(read(write(tmp_path / "run", metrics=rows)))
    assert series["loss", "train"] == Series([1, 2], [5.0, 3.0]) and series["lr", "train"] == Series([2], [0.1])


def test_eval_rows_join_their_metric_with_a_band_and_a_baseline(tmp_path: Path) -> None:
    rows = [
        {
            "step": s,
            "phase": "eval",
            "eval/accuracy": 0.6,
            "eval/accuracy_low": 0.5,
            "eval/accuracy_high": 0.7,
            "eval/longer_wins": 0.55,
            "gold/mean": 1.0,
            "gold/low": 0.9,
            "gold/high": 1.1,
        }
        for s in (1, 2)
    ]
    rows += [{"step": 1, "accuracy": 0.8}, {"step": 1, "phase": "critic", "value/loss": 3.0}]
    shown = charts_of(made(tmp_path, write(tmp_path / "run", metrics=rows)))
    assert set(shown) == {"accuracy", "gold/mean", "value/loss"}
    assert [(one["phase"], one["rule"], one.get("low")) for one in shown["accuracy"]["lines"]] == [
        ("train", "", None),
        ("eval", "", [0.5, 0.5]),
        ("eval", "longer wins", None),
    ]
    assert shown["gold/mean"]["lines"][0]["high"] == [1.1, 1.1]


def test_long_lines_are_thinned_with_every_extreme_kept() -> None:
    values = [math.sin(i / 50) for i in range(5000)]
    values[1234], values[4321], values[2000] = 40.0, -40.0, math.nan
    drawn = line(Series(list(range(5000)), values))
    assert len(drawn["x"]) <= MAX_POINTS and drawn["n"] == 5000
    assert drawn["x"][0] == 0 and drawn["x"][-1] == 4999 and {40, -40} <= set(drawn["y"])
    assert drawn["bad"] == [2000] and len(drawn["trend"]["x"]) == 100 and drawn["trend"]["window"] == 101
    assert "trend" not in line(Series([1, 2, 3], [1.0, 2.0, 3.0]))


def test_a_wild_point_is_left_outside_the_axis_and_named() -> None:
    values = [1 + 0.1 * math.sin(i) for i in range(100)]
    assert "beyond" not in axis_range([Series(list(range(100)), values)])
    values[60] = 1e6
    shown = axis_range([Series(list(range(100)), values)])
    assert shown["range"][1] < 2 and shown["beyond"] == {"n": 1, "value": 1000000, "step": 60}
    assert axis_range([Series([1], [math.nan])]) == {"range": None}


def test_histograms_are_thinned_and_broken_ones_left_out(tmp_path: Path) -> None:
    rows = [{"step": s, "score/histogram": {"edges": [0, 1, 2], "counts": [s, 1]}} for s in range(200)]
    rows += [
        {"step": 300, "score/histogram": {"edges": [0, 1], "counts": [1, 2]}},
        {"step": 301, "score/histogram": {"edges": [0, math.nan], "counts": [1]}},
    ]
    columns = histograms(read(write(tmp_path / "run", metrics=rows)))["score/histogram"]
    assert len(columns) == MAX_COLUMNS and columns[0]["step"] == 0 and columns[-1]["step"] == 199


def test_an_alarm_that_keeps_ringing_is_one_mark(tmp_path: Path) -> None:
    page = made(tmp_path, ppo(tmp_path / "run", collapse=True))
    marks = data_of(page)["sections"][0]["alarms"]
    assert [(m["name"], m["step"], m["last"], m["n"]) for m in marks] == [
        ("length_reward_race", 28, 35, 8),
        ("truncation", 37, 37, 1),
    ]
    many = [{"step": s, "name": f"alarm {s}"} for s in range(500)]
    assert len(data_of(made(tmp_path, ppo(tmp_path / "many", alarms=many)))["sections"][0]["alarms"]) == MAX_MARKS


def test_proxy_and_gold_share_a_chart_only_where_both_are_known(tmp_path: Path) -> None:
    versus = data_of(made(tmp_path, ppo(tmp_path / "run", steps=500)))["sections"][0]["versus"]
    assert len(versus[0]["steps"]) == MAX_PAIRS and versus[0]["each"] == 5
    rows = [{"step": 1, "score/mean": 1.0}]
    assert data_of(made(tmp_path, write(tmp_path / "no", metrics=rows)))["sections"][0]["versus"] == []


def test_held_out_gold_is_preferred_once_it_makes_a_path(tmp_path: Path) -> None:
    train = [{"step": s, "score/mean": 0.1 * s, "gold/mean": 0.2, "kl/reference_k1": 0.01 * s} for s in range(1, 9)]
    few = [{"step": s, "phase": "eval", "score/mean": 9.0, "gold/mean": 9.0} for s in (0, 8)]
    many = [{"step": s, "phase": "eval", "score/mean": 9.0, "gold/mean": 9.0} for s in range(8)]
    for rows, first in ((few, 0.2), (many, 9.0)):
        folder = write(tmp_path / f"run{first}", metrics=train + rows)
        versus = data_of(made(tmp_path, folder))["sections"][0]["versus"][0]
        assert versus["gold"][0] == first and versus["kl"][3] == pytest.approx(0.04 if first < 1 else 0.03)


def test_generated_text_has_no_before_and_after(tmp_path: Path) -> None:
    rows = samples(n=3)[:3]
    found = browser([read(write(tmp_path / "run", samples=rows, result={"recipe": "generate"}))])
    assert found and found["columns"] == [{"run": "run", "label": "response", "step": 0}]


def test_a_comparison_shows_win_tie_and_lose_of_every_judge_and_domain(tmp_path: Path) -> None:
    page = made(tmp_path, win_rate(tmp_path / "run"))
    assert "<h1>ppo beats sft by the gold score: win rate 57% [51, 63].</h1>" in page
    assert "ppo against sft, by the gold score" in page and "metrics.jsonl is missing" not in page
    bar = re.search(r'<span class="who">all prompts \(200\)</span>.*?<span class="what">(.*?)</span>', page, re.S)
    assert bar and bar[1] == "57 [51, 63]"
    pieces = re.findall(r'<rect class="(\w+)" x="([\d.]+)%" width="([\d.]+)%"', bar[0])
    assert pieces == [("win", "0.0", "44.0"), ("tie", "44.0", "26.0"), ("lose", "70.0", "30.0")]
    assert re.findall(r'<text class="\w+" x="([\d.]+)%" y="15.5">(\d+)', bar[0]) == [
        ("22.0", "44"), ("57.0", "26"), ("85.0", "30")]
    # What is nothing is not drawn, and what is narrow has no number.
    guard = re.search(r"guard \(3\)</span>.*?</div>", page, re.S)
    assert guard and guard[0].count("<rect") == 1 and "win 100%, tie 0%, lose 0%" in guard[0]
    narrow = made(tmp_path, win_rate(tmp_path / "narrow", win=95.0, tie=2.0))
    assert narrow.count("<text class") == 3
    other = win_rate(tmp_path / "b", win=80.0, tie=0.0)
    (other / "config.toml").write_text('[policy]\npath = "runs/best"\n[opponent]\npath = "runs/sft/model"\n')
    two = made(tmp_path, win_rate(tmp_path / "a"), other)
    assert "b ends with the best win rate in percent against runs/sft/model by gold: 80 [74, 86] against 57" in two
    assert "a: ppo against sft, by" in two and "b: best against sft, by" in two and "before and after" not in two
    assert "<h2>Settings</h2>" in two and "<h2>Curves</h2>" not in two


def test_answers_of_a_comparison_stand_side_by_side_with_their_verdicts(tmp_path: Path) -> None:
    found = browser([read(win_rate(tmp_path / "run"))])
    assert found and [(c["label"], c["step"]) for c in found["columns"]] == [("opponent", 0), ("policy", 0)]
    theirs, ours = found["prompts"][0]["at"][0], found["prompts"][0]["at"][1]
    assert (theirs["text"], theirs["gold"], theirs["ended"], "verdict" in theirs) == ("it is 0.", 0.0, False, False)
    assert (ours["text"], ours["verdict"]) == ("it is 0.", "win by gold, lose by reward model")
    broken = [{"step": 0, "id": "a", "policy": 3}, {"step": 0, "id": "b", "policy": {"response": 1}, "verdicts": 2}]
    found = browser([read(write(tmp_path / "broken", samples=broken, result={"recipe": "win_rate"}))])
    assert found and [p["at"] for p in found["prompts"]] == [{0: {"text": "1", "ended": True}}]


def test_odd_verdicts_do_not_break_the_page(tmp_path: Path) -> None:
    odd = {"gold": 3, "judge": {"win": 1}, HOSTILE: counted(50, 0) | {"domains": {HOSTILE: counted(50, 0), "x": 1}}}
    page = made(tmp_path, win_rate(tmp_path / "run", judges=odd, policy=3, opponent={"characters": 2}))
    assert "<img" not in page and "all prompts (200)" in page and page.count('<rect class="win"') == 2
    none = made(tmp_path, win_rate(tmp_path / "none", judges=[1], headline=None))
    assert "Comparison finished without a headline number." in none


def test_several_runs_share_charts_and_show_what_differs(tmp_path: Path) -> None:
    one = ppo(tmp_path / "a" / "ppo")
    two = ppo(tmp_path / "b" / "ppo", collapse=True, config='policy = "models/sft"\n[kl]\ncoef = 0.0\n')
    page = made(tmp_path, one, two, one)
    data = data_of(page)
    assert [r["name"] for r in data["runs"]] == ["a/ppo", "b/ppo"] and len(data["sections"]) == 1
    assert [one["run"] for one in charts_of(page)["score/mean"]["lines"]] == [0, 1]
    assert "a/ppo ends with the best gold score: 0.62 [0.57, 0.67] against 0.11 [0.06, 0.16] of b/ppo" in page
    assert re.search(r"<th>kl.coef</th><td>0.05</td><td>0.0</td>", page)
    assert "<th>policy</th>" not in page and "<th>headline: gold score</th>" in page
    assert len(data["samples"]["columns"]) == 4


def test_a_demo_stands_for_its_stages(tmp_path: Path) -> None:
    page = made(tmp_path, demo(tmp_path / "demo"))
    assert "From base to PPO, the gold score rose from 0.05 [0.00, 0.10] to 0.52 [0.47, 0.57]." in page
    assert [r["name"] for r in data_of(page)["runs"]] == ["SFT", "Reward model", "PPO"]
    assert [s["title"] for s in data_of(page)["sections"]] == ["Supervised fine-tuning", "Reward model training", "PPO"]
    assert re.search(r"<th>recall</th><td class=\"n\">0.15", page)


def test_samples_join_by_prompt_and_are_capped_out_loud(tmp_path: Path) -> None:
    rows = [*samples(n=700), {"step": 40, "id": "late", "prompt": "x", "response": "y" * 9000, "ended": False}]
    found = browser([read(write(tmp_path / "run", samples=rows))])
    assert found and found["n"] == 701 and len(found["prompts"]) == MAX_PROMPTS
    gains = [p["at"][1]["gold"] - p["at"][0]["gold"] for p in found["prompts"] if len(p["at"]) == 2]
    every = [b["gold"] - a["gold"] for a, b in zip(rows[:700], rows[700:1400], strict=True)]
    assert {*sorted(every)[:100], *sorted(every)[-100:]} <= set(gains)
    few = browser([read(write(tmp_path / "few", samples=rows[:3] + rows[-1:]))])
    assert few and few["prompts"][0]["at"].keys() == {0} and few["prompts"][3]["at"].keys() == {1}
    text = few["prompts"][3]["at"][1]["text"]
    assert len(text) < MAX_CHARACTERS + 100 and "3,000 more characters in samples.jsonl" in text
    assert few["prompts"][3]["turns"] == [["user", "x"]] and not few["prompts"][3]["at"][1]["ended"]


def test_odd_shapes_do_not_break_the_page(tmp_path: Path) -> None:
    rows = [
        {"step": 0, "id": 1, "prompt": None, "response": 7, "score": "high", "gold": math.nan, "domain": 3},
        {"step": 5, "id": 1, "prompt": ["text", {"role": "user"}], "response": None},
    ]
    folder = write(
        tmp_path / "run",
        samples=rows,
        alarms=[{"step": 1}],
        metrics=[{"step": True, "a": 1}, {"a": 2}],
        result={"headline": [1], "skipped": 3, "recipe": None, "seconds": "long"},
        environment={"data": [1]},
    )
    assert "a run of unknown recipe" in made(tmp_path, folder).lower()


def test_complaints_say_what_where_and_what_to_do(tmp_path: Path) -> None:
    out, run_folder = tmp_path / "report.html", ppo(tmp_path / "run")
    with pytest.raises(RunError, match=r"report: no run folder was named\n.*Name one or more"):
        build([], out)
    with pytest.raises(RunError, match=r"nowhere: there is no such run folder\n.*holds metrics.jsonl"):
        build([tmp_path / "nowhere"], out)
    with pytest.raises(RunError, match=r"config.toml: this is a file, not a run folder"):
        build([run_folder / "config.toml"], out)
    with pytest.raises(RunError, match=r"this folder holds no run .*\n.*not the folder above it"):
        build([tmp_path], out)
    with pytest.raises(RunError, match=r"this is a folder, not a file\n.*Name a file: --out .*report.html"):
        build([run_folder], tmp_path)
    with pytest.raises(RunError, match=r"cannot write the report: .*\n.*Choose another file with --out"):
        build([run_folder], run_folder / "config.toml" / "report.html")


def test_complaints_about_a_demo(tmp_path: Path) -> None:
    damaged = write(tmp_path / "damaged", demo={"stages": [{"name": "SFT"}]})
    with pytest.raises(RunError, match=r"demo.json is damaged: it must hold `stages`.*\n.*Name the runs themselves"):
        build([damaged], tmp_path / "report.html")
    outside = write(tmp_path / "outside", demo={"stages": [{"name": "SFT", "run": "../run"}]})
    with pytest.raises(RunError, match=r"stage 'SFT' points outside the demo folder, to '../run'\n.*if you trust it"):
        build([outside], tmp_path / "report.html")


def test_a_failed_write_leaves_the_old_page_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = ppo(tmp_path / "run"), tmp_path / "out" / "report.html"
    old = build([folder], out).read_bytes()

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunError, match="cannot write the report: No space left on device"):
        build([folder], out)
    assert out.read_bytes() == old and [p.name for p in out.parent.iterdir()] == ["report.html"]


def test_the_command(tmp_path: Path) -> None:
    cfg = ReportConfig.checked({"runs": [str(ppo(tmp_path / "run"))], "out": str(tmp_path / "r.html")})
    assert run(cfg) == tmp_path / "r.html" and (tmp_path / "r.html").stat().st_size > 50_000
    with pytest.raises(ConfigError, match="'runs' is required"):
        ReportConfig.checked({})
