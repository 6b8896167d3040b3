"""Verdicts by their rule, the folder of an experiment, its report; and what is read from the logs of PPO."""

import json
from pathlib import Path

import pytest
from experimenting import collapse_config, course, write_run
from tolerances import RELATIVE64

from keel.errors import RunError
from keel.experiments.courses import read
from keel.experiments.trial import RULE, Claim, conclude, judged, markdown, opened, seeds_of, with_interval

FIVE = (0.1, 0.3, 0.2, 0.4, 0.1)


def minus(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(-x for x in values)


def verdict(**comparisons: tuple[float, ...]) -> str:
    return judged(Claim("so it is", comparisons)).verdict


def test_five_seeds_of_one_sign_settle_a_claim() -> None:
    assert verdict(a=FIVE) == "holds"
    assert verdict(a=minus(FIVE)) == "does not hold"
    assert verdict(a=(0.1, -0.3, 0.2, 0.4, 0.1)) == "not settled"


def test_a_seed_at_zero_does_not_show_it() -> None:
    assert verdict(a=(0.0, 0.3, 0.2, 0.4, 0.1)) == "not settled"
    assert verdict(a=(0.0,) * 5) == "not settled"  # nor does it speak against it
    assert verdict(a=(0.0, -0.3, -0.2, -0.4, -0.1)) == "not settled"


def test_four_seeds_settle_nothing() -> None:
    assert verdict(a=FIVE[:4]) == "not settled"
    assert verdict(a=minus(FIVE[:4])) == "not settled"


def test_more_seeds_need_not_be_of_one_mind() -> None:
    # Eight heads: 1 + 8 of 256 ways are seven or more, p = 0.035; seven heads: 1 + 7 of 128 are six or more, 0.063.
    assert verdict(a=(1.0,) * 7 + (-1.0,)) == "holds"
    assert verdict(a=(-1.0,) * 7 + (1.0,)) == "does not hold"
    assert verdict(a=(1.0,) * 6 + (-1.0,)) == "not settled"


def test_a_seed_shows_a_claim_with_all_its_numbers_or_not_at_all() -> None:
    assert verdict(a=FIVE, b=FIVE) == "holds"
    assert verdict(a=FIVE, b=(0.1, -0.3, 0.2, 0.4, 0.1)) == "not settled"
    assert verdict(a=(-1, -1, 1, 1, 1), b=(1, 1, -1, -1, -1)) == "not settled"


def test_a_claim_falls_with_one_comparison_held_against_their_number() -> None:
    # Five of five is 1/32; with two comparisons 2/32 = 0.063, with three of seven seeds 3/128 = 0.023.
    assert verdict(a=FIVE, b=minus(FIVE)) == "not settled"
    seven = (*FIVE, 0.2, 0.2)
    assert verdict(a=seven, b=seven, c=minus(seven)) == "does not hold"
    finding = judged(Claim("so it is", {"a": seven, "b": seven, "c": minus(seven)}))
    assert finding.shown_by == 0 and finding.p == pytest.approx(3 / 128, rel=RELATIVE64)


def test_a_finding_in_words() -> None:
    finding = judged(Claim("It rises.", {"end minus start": FIVE, "gold": (1.0, 1.0, 1.0, 1.0, -1.0)}))
    assert (finding.shown_by, finding.n_seeds, finding.p) == (4, 5, 6 / 32)
    lines = finding.in_words().splitlines()
    assert lines[0] == "- **not settled**: It rises. 4 of 5 seeds show it (p = 0.188)."
    assert lines[1].startswith("    - end minus start: 0.220 [0.1")
    assert lines[1].endswith("above zero in 5")
    assert lines[2].endswith("above zero in 4")


def test_a_table() -> None:
    assert markdown([{"": "x", "gold": "1"}, {"": "y", "gold": "2"}]) == (
        "|  | gold |\n| --- | --- |\n| x | 1 |\n| y | 2 |\n")
    assert with_interval([2.0, 2.0], digits=1) == "2.0 [2.0, 2.0]"


def test_an_experiment_goes_on_with_the_same_settings_only(tmp_path: Path) -> None:
    cfg = collapse_config(tmp_path / "trial", seeds=2, first_seed=3)
    assert seeds_of(cfg) == [3, 4]
    with pytest.raises(KeyboardInterrupt), opened("experiment collapse", cfg, resume=False):
        raise KeyboardInterrupt
    with opened("experiment collapse", cfg, resume=False) as log:
        assert log.resumed
    other = cfg.model_copy(update={"seeds": 4})
    with pytest.raises(RunError, match=r"trial: this folder holds a run with other settings of seeds\n.*begun with"):
        opened("experiment collapse", other, resume=False)


def test_a_finished_experiment_is_not_begun_again(tmp_path: Path) -> None:
    cfg = collapse_config(tmp_path / "trial")
    with opened("experiment collapse", cfg, resume=False) as log:
        log.finish({})
    with pytest.raises(RunError, match="this folder already holds a run"):
        opened("experiment collapse", cfg, resume=False)


def test_the_report_holds_verdicts_rule_table_settings_and_command(tmp_path: Path, capsys) -> None:
    cfg = collapse_config(tmp_path / "trial")
    finding = judged(Claim("It rises.", {"end minus start": FIVE}))
    with opened("experiment collapse", cfg, resume=False) as log:
        (tmp_path / "trial/seed-0/ppo").mkdir(parents=True)
        for name, seconds in (("ppo", 1.5), ("ppo/round-0", 0.5), ("town/axis", 2.2)):  # a round is within its run
            (tmp_path / f"trial/seed-0/{name}").mkdir(parents=True, exist_ok=True)
            (tmp_path / f"trial/seed-0/{name}/result.json").write_text(f'{{"seconds": {seconds}}}')
        conclude(log, "A title", markdown([{"": "x"}]), [finding], ["plot.svg"], {"courses": {"a": [1]}})
    page = (tmp_path / "trial/report.md").read_text()
    for part in ("# A title\n", "**holds**: It rises.", RULE, "| x |", "![A title](plot.svg)", "length_bias = 0.2"):
        assert part in page
    assert (tmp_path / "trial/table.md").read_text() in page
    assert "**holds**: It rises." in capsys.readouterr().out
    result = json.loads((tmp_path / "trial/result.json").read_text())
    assert result["status"] == "finished"
    assert result["stage_seconds"] == 3.7
    assert result["findings"][0]["p"] == 1 / 32
    assert result["environment"]["recipe"] == "experiment collapse"
    assert result["settings"]["town"]["length_bias"] == 0.2
    assert result["courses"] == {"a": [1]}


def test_a_course_is_read_from_the_logs(tmp_path: Path) -> None:
    write_run(tmp_path / "ppo", [0.1, 0.5, 0.2], passes=2)
    found = read(tmp_path / "ppo")
    assert found.updates == (0, 32, 64)  # two passes over four minibatches a phase
    assert [found.first("gold"), found.best("gold"), found.last("gold")] == [0.1, 0.5, 0.2]
    assert found.measured["score"] == (0.0, 1.0, 2.0)
    # Phases 1 to 8: quarters 1-2, 3-4, 5-6, 7-8.
    assert found.quarter("kl", 1) == pytest.approx(0.015, rel=RELATIVE64)
    assert found.late_change("kl") == pytest.approx(7.5 / 5.5 - 1, rel=RELATIVE64)
    assert found.quarter("cut", 4) == 0.25
    assert found.alarms == {"kl_jump": 2, "truncation": 1}


def test_quarters_of_fewer_than_four_phases_overlap() -> None:
    short = course(gold=(0, 0, 0), phases={"kl": (1.0, 3.0)})
    assert [short.quarter("kl", number) for number in (1, 2, 3, 4)] == [1.0, 1.0, 3.0, 3.0]


def test_a_run_without_alarms(tmp_path: Path) -> None:
    write_run(tmp_path / "ppo", [0.1, 0.5])
    (tmp_path / "ppo/alarms.jsonl").unlink()
    assert read(tmp_path / "ppo").alarms == {}
