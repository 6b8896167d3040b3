"""Policy against policy: who wins by each judge, both orders of asking, and what a model does against itself."""

import json
from pathlib import Path

import pytest
import tiny
from recipes.running import logged, reward

from keel.data.load import read_prompts
from keel.errors import ConfigError, DataError, NumericsError
from keel.functional.statistics import sign_test
from keel.models.load import ModelConfig
from keel.recipes.win_rate import WinRateConfig, run
from keel.rollout.sample import SamplingConfig
from keel.runs import Run, Stopped
from keel.train.inputs import DataConfig


def longer(prompt, first: str, second: str) -> float:
    """A judge that minds only the text: the longer one, for sure."""
    return 0.5 if len(first) == len(second) else float(len(first) > len(second))


def always_first(prompt, first: str, second: str) -> float:
    assert first != second, "nobody has to be asked about one text given twice"
    return 0.9


def no_opinion(prompt, first: str, second: str) -> float:
    return 0.5


def too_sure(prompt, first: str, second: str) -> float:
    return 1.5


def broken(prompt, first: str, second: str) -> float:
    raise KeyError("rubric")


def undecided(prompt, first: str, second: str) -> float:
    raise DataError("no rubric for this prompt")


def judge(name: str) -> str:
    return f"recipes.test_win_rate:{name}"


def config(tmp: Path, out: str = "out", **changes) -> WinRateConfig:
    for seed, name in enumerate(("ours", "theirs")):
        if not (tmp / name).exists():
            tiny.llama(tmp / name, seed=seed)
    settings = {
        "out": tmp / out, "policy": ModelConfig(path=str(tmp / "ours")),
        "opponent": ModelConfig(path=str(tmp / "theirs")), "sampling": SamplingConfig(max_new_tokens=6),
        "prompts": DataConfig(path=str(tiny.prompts(tmp / "q.jsonl")), max_length=64),
    }
    return WinRateConfig(**(settings | changes))


def against_itself(tmp: Path, **changes) -> WinRateConfig:
    return config(tmp, **({"opponent": ModelConfig(path=str(tmp / "ours"))} | changes))


def test_every_judge_counts_what_the_samples_show(tmp_path, capsys):
    cfg = config(tmp_path, gold="tiny:count_yes", judge=judge("longer"),
                 reward_model=ModelConfig(path=str(reward(tmp_path))))
    result = run(cfg).values
    rows = logged(tmp_path / "out", "samples.jsonl", None)
    assert len(rows) == result["n"] == 24 and list(result["judges"]) == ["gold", "judge", "reward_model"]
    for row in rows:
        ours, theirs = row["policy"], row["opponent"]
        assert ours["gold"] == tiny.count_yes(None, ours["response"], ours["ended"])
        for name, key, sign in (("gold", "gold", 1), ("reward_model", "score", 1)):
            gap = sign * (ours[key] - theirs[key])
            assert row["verdicts"][name] == ("win" if gap > 0 else "lose" if gap < 0 else "tie")
        gap = len(ours["response"]) - len(theirs["response"])
        assert row["verdicts"]["judge"] == ("win" if gap > 0 else "lose" if gap < 0 else "tie")
    for name, counted in result["judges"].items():
        verdicts = [row["verdicts"][name] for row in rows]
        for word in ("win", "tie", "lose"):
            assert counted[word] == pytest.approx(100 * verdicts.count(word) / 24)
        rate = counted["win_rate"]
        assert rate["mean"] == pytest.approx(counted["win"] + counted["tie"] / 2)
        assert rate["low"] <= rate["mean"] <= rate["high"] and rate["n"] == counted["n"] == 24
        assert counted["p"] == sign_test(verdicts.count("win"), verdicts.count("lose"))
        assert counted["n_decided"] == 24 - verdicts.count("tie")
        even = [row["verdicts"][name] for row in rows if row["domain"] == "even"]
        assert list(counted["domains"]) == ["even", "odd"] and counted["domains"]["even"]["n"] == len(even) == 12
        assert counted["domains"]["even"]["win"] == pytest.approx(100 * even.count("win") / 12)
    assert result["judges"]["judge"]["inconsistent"] == 0 and result["judges"]["judge"]["first_place_percent"] == 50
    for side in ("policy", "opponent"):
        characters = [len(row[side]["response"]) for row in rows]
        assert result[side]["characters"]["mean"] == pytest.approx(sum(characters) / 24)
        assert result[side]["tokens"]["mean"] == pytest.approx(sum(row[side]["n_tokens"] for row in rows) / 24)
        cut = [row[side]["ended"] for row in rows].count(False)
        assert result[side]["cut_percent"] == pytest.approx(100 * cut / 24)
    headline, gold = result["headline"], result["judges"]["gold"]["win_rate"]
    assert headline["judge"] == "gold" and headline["after"] == gold
    assert headline["change"]["low"] == gold["low"] - 50 and headline["metric"].endswith("theirs by gold")
    assert f"gold: win {result['judges']['gold']['win']:.1f}%, tie" in capsys.readouterr().out


def test_the_same_seed_plays_the_same_match_and_another_seed_another(tmp_path):
    for out, seed in (("one", 0), ("again", 0), ("other", 1)):
        run(config(tmp_path, out, gold="tiny:count_yes", seed=seed, limit=9))
    one, again, other = ((tmp_path / out / "samples.jsonl").read_bytes() for out in ("one", "again", "other"))
    assert one == again != other and one.count(b"\n") == 9


def test_a_model_draws_anew_against_itself(tmp_path):
    """Two independent answers to each prompt: mostly different, and nobody is better."""
    result = run(against_itself(tmp_path, judge=judge("longer"))).values
    assert 0 <= result["identical"] < 6
    assert result["judges"]["judge"]["win_rate"]["low"] <= 50 <= result["judges"]["judge"]["win_rate"]["high"]


def test_the_most_probable_answer_ties_with_itself_by_every_judge(tmp_path):
    """Without chance both sides say the same: all ties, whatever rounding the batches of a reward model bring."""
    result = run(against_itself(tmp_path, gold="tiny:count_yes", judge=judge("always_first"), micro_tokens=40,
                                reward_model=ModelConfig(path=str(reward(tmp_path))),
                                sampling=SamplingConfig(max_new_tokens=6, temperature=0))).values
    assert result["identical"] == 24
    for counted in result["judges"].values():
        assert (counted["win"], counted["tie"], counted["lose"], counted["p"]) == (0, 100, 0, 1)
    order = result["judges"]["judge"]
    assert order["asked"] == 0 and order["inconsistent_percent"] is None and order["first_place_percent"] is None


def test_a_judge_that_likes_the_first_place_decides_nothing(tmp_path):
    result = run(config(tmp_path, judge=judge("always_first"))).values
    order = result["judges"]["judge"]
    assert order["tie"] == 100 and order["n_decided"] == 0
    assert order["inconsistent"] == order["asked"] == 24 - sum(
        row["policy"]["response"] == row["opponent"]["response"]
        for row in logged(tmp_path / "out", "samples.jsonl", None))
    assert order["inconsistent_percent"] == order["first_place_percent"] == 100
    assert order["n_first_place"] == 2 * order["asked"]
    result = run(config(tmp_path, "shrug", judge=judge("no_opinion"))).values
    assert result["judges"]["judge"]["tie"] == 100 and result["judges"]["judge"]["inconsistent"] == 0
    assert result["judges"]["judge"]["first_place_percent"] is None


def test_scores_within_the_margin_tie(tmp_path):
    narrow = run(config(tmp_path, gold="tiny:count_yes")).values["judges"]["gold"]
    wide = run(config(tmp_path, "wide", gold="tiny:count_yes", tie_margin=0.5)).values["judges"]["gold"]
    rows = logged(tmp_path / "wide", "samples.jsonl", None)
    close = [abs(row["policy"]["gold"] - row["opponent"]["gold"]) <= 0.5 for row in rows]
    assert wide["tie"] == pytest.approx(100 * sum(close) / 24) and wide["tie"] > narrow["tie"]


def test_each_side_reads_its_own_template_and_both_answer_the_same_prompts(tmp_path):
    """The opponent's template is longer: a prompt that no longer fits it is played by neither."""
    cfg = config(tmp_path, gold="tiny:count_yes", reward_model=ModelConfig(path=str(reward(tmp_path))))
    words = tiny.tokenizer()
    added = ["the", "cat", "sat"]  # the four others: begin, user, end, assistant
    words.chat_template = tiny.TEMPLATE.replace("<bos>", f"<bos>{' '.join(added)}", 1)
    words.save_pretrained(tmp_path / "theirs")
    result = run(cfg.model_copy(update={"prompts": cfg.prompts.model_copy(update={"max_length": 15})})).values
    rows = logged(tmp_path / "out", "samples.jsonl", None)
    kept = [record.id for record in read_prompts(tmp_path / "q.jsonl")[0]
            if len(record.messages[0].content.split()) + len(added) + 4 <= 15 - 6]
    assert [row["id"] for row in rows] == kept and 0 < len(kept) < 24
    assert result["skipped"]["n_dropped"] == 24 - len(kept) and result["skipped"]["n_rows"] == 24


def test_a_prompt_has_to_fit_both(tmp_path):
    """One template is long where a prompt says cat, the other where it does not: each fits, but never the same."""
    cfg = config(tmp_path, gold="tiny:count_yes")
    for name, test in (("ours", "in"), ("theirs", "not in")):
        words, long = tiny.tokenizer(), " ".join(["no"] * 20)
        when = f"{{% if 'cat' {test} messages[0]['content'] %}}{long}{{% endif %}}"
        words.chat_template = tiny.TEMPLATE.replace("<bos>", f"<bos>{when}", 1)
        words.save_pretrained(tmp_path / name)
    with pytest.raises(DataError, match=r"q\.jsonl: no prompt fits both policies\n.*Raise prompts.max_length"):
        run(cfg.model_copy(update={"prompts": cfg.prompts.model_copy(update={"max_length": 20})}))


def test_somebody_has_to_decide(tmp_path):
    with pytest.raises(ConfigError, match="gold, judge and reward_model are all none; at least one of them"):
        WinRateConfig.checked(config(tmp_path, gold="tiny:count_yes").model_dump() | {"gold": None})


def test_a_judge_that_fails_is_named_with_the_record(tmp_path):
    with pytest.raises(NumericsError, match=r"record q0: the judge gave 1.5, which is no probability\n.*from 0 to 1"):
        run(config(tmp_path, "sure", judge=judge("too_sure")))
    with pytest.raises(NumericsError, match=r"record q0: the judge failed: KeyError: 'rubric'\n.*0.5 is a tie"):
        run(config(tmp_path, "broken", judge=judge("broken")))
    with pytest.raises(DataError, match="no rubric for this prompt"):
        run(config(tmp_path, "undecided", judge=judge("undecided")))
    assert json.loads((tmp_path / "broken/result.json").read_text())["status"] == "failed"


@pytest.mark.parametrize("after", [0, 30])
def test_asked_to_stop_it_keeps_nothing_and_says_so(tmp_path, monkeypatch, after):
    """Whether asked during the answers or during the verdicts."""
    asked = iter(range(1000))
    monkeypatch.setattr(Run, "stop_requested", lambda self: next(asked) >= after)
    with pytest.raises(Stopped, match=r"stopped after \d+ of 72 responses and verdicts; nothing is kept"):
        run(config(tmp_path, judge=judge("longer"), sampling=SamplingConfig(max_new_tokens=6, slots=24)))
    assert json.loads((tmp_path / "out/result.json").read_text())["status"] == "stopped"
    assert not (tmp_path / "out/samples.jsonl").exists()
