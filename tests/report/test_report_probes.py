"""The page of nine probes as a file: sentences, places of the marks, and that it trusts nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from report_runs import HOSTILE, mean, ppo, result, write

from keel.report import build
from keel.report.folder import read
from keel.report.probes import panels

Row = dict[str, Any]


def made(out: Path, *runs: Path) -> str:
    return build(list(runs), out / "report.html").read_text(encoding="utf-8")


def plain(page: str) -> str:
    """Words without tags."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def measure(name: str, value: Row, verdict: str, **more: Any) -> Row:
    return {"name": name, "done": f"{name} was tried", "unit": "std of the gaps", "value": value, "bounds": [0.1],
            "must": "not rise by more than 0.1", "verdict": verdict, "rises": 0.75, "beyond_length": mean(0.2, 0.1),
            "sides": {"chosen": 0.4, "rejected": 0.2}} | more


def probe(name: str, verdict: str, *measures: Row, **more: Any) -> Row:
    return {"name": name, "title": name.capitalize(), "question": f"What of {name}?", "verdict": verdict, "needs": "",
            "measures": list(measures), "curve": []} | more


def probing(folder: Path, text: str = "", **more: Any) -> Path:
    """A run of `keel reward-model probe` with one probe of each kind."""
    value = mean(0.3, 0.1) | {"n_prompts": 150}
    plain_number = {"mean": 0.003, "low": None, "high": None, "n": 64, "n_prompts": None}
    curve = [{"n": 1, "kl": 0.0, "sqrt_kl": 0.0, "gold": mean(0.2, 0.1)},
             {"n": 2, "kl": 0.193, "sqrt_kl": 0.44, "gold": mean(0.3, 0.1)},
             {"step": 0, "kl": 0.0, "gold": mean(0.1, 0.1)}]
    found = [
        probe("format", "suspicious", measure(f"bullets{text}", value, "suspicious"),
              measure("bold", mean(-0.1, 0.1), "fine")),
        probe("tone", "by length", measure("hedging", value, "by length")),
        probe("invariance", "fine", measure("alone", plain_number, "fine", rises=None, beyond_length=None, sides=None)),
        probe("mismatch", "not settled", *(measure(f"m{i}", value, "not settled") for i in range(5))),
        probe("gold", "fine", measure("best of n", value, "fine"), curve=curve, needs=f"needs --ppo_run{text}"),
        probe("inflation", "not run", needs="needs --training_run"),
    ]
    told = {"accuracy": mean(0.7, 0.04, 500), "std": 0.53, "per_token": 0.01, "smallest": 0.1, "probes": found}
    rows = [{"step": 0, "id": "p1, chosen: bullets", "domain": "bullets", "prompt": "why?", "response": f"{said}{text}",
             "score": score} for said, score in (("it is so.", 0.1), ("- it is so.", 0.4))]
    return write(folder, **({"probes": told, "samples": rows, "config": 'model = "runs/rm/model"\n',
                             "environment": {"recipe": "probe", "data": {"pairs.jsonl": "ab"}, "seed": 0},
                             "result": result("probe") | {"steps": None}} | more))


def test_the_title_and_what_it_stands_on(tmp_path: Path) -> None:
    page = made(tmp_path, probing(tmp_path / "run"))
    assert "<h1>Suspicious in 1 of 5 probes: format.</h1>" in page
    assert ("Accuracy on 500 pairs: 0.700 [0.660, 0.740]. Shifts are in standard deviations of the gap between chosen "
            "and rejected score (0.53); one of 0.1 counts. Explained by length: tone. Not settled: mismatch. Not run: "
            "inflation.") in plain(page)
    assert '<a href="#probes-1">Probes</a>' in page and "nothing else was recorded as going wrong" in page
    assert "metrics.jsonl is missing" not in page


def test_a_reward_model_that_passes(tmp_path: Path) -> None:
    found = {"probes": [probe("format", "fine", measure("bold", mean(0.0, 0.05), "fine")), probe("gold", "not run")],
             "accuracy": mean(0.52, 0.04)}
    page = made(tmp_path, probing(tmp_path / "run", probes=found))
    assert "<h1>Nothing suspicious in 1 probe.</h1>" in page
    assert "not shown to be better than chance on these pairs (accuracy 0.520 [0.480, 0.560])" in plain(page)


def test_every_line_says_what_was_done(tmp_path: Path) -> None:
    words = plain(made(tmp_path, probing(tmp_path / "run")))
    assert "1 Format suspicious bullets 0.30 [0.20, 0.40]" in words
    assert ("Bullets was tried; must not rise by more than 0.1; rose in 75%; beyond length 0.20 [0.10, 0.30]; chosen "
            "0.40; rejected 0.20; n = 200 of 150 prompts.") in words
    assert "4 Mismatch not settled m0 0.30 [0.20, 0.40]; m1 0.30 [0.20, 0.40]; m2 0.30 [0.20, 0.40]; 2 more" in words
    assert "6 Inflation not run needs --training_run" in words and "5 Gold fine needs --ppo_run" in words
    assert "alone 0.003 fine Alone was tried; must not rise by more than 0.1; n = 64." in words
    assert "n KL, nats \u221aKL gold step 1 0 0 0.20 [0.10, 0.30] \u2013" in words


def test_marks_of_a_probe_share_a_scale_with_zero_and_bound(tmp_path: Path) -> None:
    panel = panels([read(probing(tmp_path / "run"))])[0]
    bullets, bold = panel.probes[0].lines
    # From 1.08 * -0.2 to 1.08 * 0.4.
    low, span = -0.216, 0.648
    assert panel.probes[0].zero == round(100 * -low / span, 2)
    for line, values in ((bullets, (0.3, 0.2, 0.4)), (bold, (-0.1, -0.2, 0.0))):
        assert (line.mean, line.low, line.high) == tuple(round(100 * (x - low) / span, 2) for x in values)
        assert line.bounds == (round(100 * (0.1 - low) / span, 2),)
    alone = panel.probes[2].lines[0]
    assert alone.mean is alone.low is None and alone.bounds == ()


def test_the_examples_are_laid_side_by_side(tmp_path: Path) -> None:
    page = made(tmp_path, probing(tmp_path / "run"))
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])["samples"]
    assert [column["label"] for column in data["columns"]] == ["as it was", "changed"]
    assert [data["prompts"][0]["at"][str(i)]["text"] for i in (0, 1)] == ["it is so.", "- it is so."]


def test_beside_other_runs_it_is_named(tmp_path: Path) -> None:
    page = made(tmp_path, probing(tmp_path / "run"), ppo(tmp_path / "ppo"))
    assert '<a href="#probes-1">Probes of run</a>' in page and "<h2>Probes of run</h2>" in page


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    page = made(tmp_path, probing(tmp_path / "run", HOSTILE))
    assert "<img" not in page and "onerror=alert(1)&gt;" in page and page.count("</script>") == 2


@pytest.mark.parametrize("damaged", [
    {}, {"probes": 3}, {"probes": [3, {}]}, {"probes": [{"measures": [{}], "curve": [{}]}], "accuracy": {"n": "x"}},
    {"probes": [probe("x", "fine", {"value": {"mean": "high", "low": 1, "high": None}})]}])
def test_damaged_files_make_a_page(tmp_path: Path, damaged: Row) -> None:
    assert "<h1>" in made(tmp_path, probing(tmp_path / "run", probes=damaged))


def test_a_probe_that_failed_says_so(tmp_path: Path) -> None:
    ended = result("probe") | {"status": "failed", "error": "no such model"}
    (tmp_path / "run").mkdir()
    page = made(tmp_path, write(tmp_path / "run", environment={"recipe": "probe"}, result=ended))
    assert "<h1>Probing failed.</h1>" in page and 'id="probes-1"' not in page
