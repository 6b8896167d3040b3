import json
import os
import signal
from pathlib import Path

import pytest
import tiny
import tolerances as tol
import torch
from recipes import running
from recipes.running import FAST, logged

from keel import cli, runs
from keel.data.load import read_pairs
from keel.errors import ConfigError, DataError, NumericsError, RunError
from keel.functional.strength import votes
from keel.models.load import LoraSettings, ModelConfig
from keel.recipes import strength
from keel.recipes.strength import StrengthConfig
from keel.train import checkpoint
from keel.train.inputs import FileConfig


def strength_config(tmp: Path, **changes) -> StrengthConfig:
    """Three voters of four steps each."""
    if not (tmp / "base").exists():
        tiny.llama(tmp / "base")
    settings = {
        "out": tmp / "strength", "model": ModelConfig(path=str(tmp / "base")), "voters": 3, "batch": 6,
        "data": FileConfig(path=str(pairs_file(tmp)), max_length=64), "optimizer": FAST, "save_every": 2,
        "n_quantiles": 4,
    }
    return StrengthConfig(**(settings | changes))


def pairs_file(tmp: Path, n: int = 24) -> Path:
    """Two pairs for every prompt; the last sixth is labelled wrong: there it is "no" that was chosen."""
    rows = []
    for i in range(n):
        good, bad = tiny.said("yes please ." if i % 2 else "the cat sat"), tiny.said("no" if i % 3 else "no no why ?")
        wrong = i >= n - n // 6
        rows.append({"id": f"p{i}", "prompt": tiny.conversations(n)[i // 2 * 2], "chosen": bad if wrong else good,
                     "rejected": good if wrong else bad, "meta": {"domain": "even" if i % 2 == 0 else "odd"},
                     "truth": {"wrong_label": wrong}})
    return tiny.write_rows(tmp / f"judged-{n}.jsonl", rows)


def scores_of(folder: Path, voter: int) -> dict:
    return json.loads((folder / "members" / f"{voter:02d}" / "scores.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with everything that a run can write."""
    tmp = tmp_path_factory.mktemp("whole")
    cfg = strength_config(tmp, clean={"flip": 0.25})
    return tmp, cfg, strength.run(cfg)


def test_the_votes_are_the_scores_of_the_saved_voters(whole):
    from keel.bench.pairwise import score_pairs
    from keel.data.render import render_pairs, template
    from keel.models.load import load_tokenizer, scalar_model

    tmp, cfg, _ = whole
    written, _ = read_pairs(cfg.out / "strength.jsonl")
    original, _ = read_pairs(cfg.data.path)
    words = template(load_tokenizer(str(tmp / "base")))
    rows = render_pairs(words, original, 64)[0]
    for voter in range(3):
        model = scalar_model(ModelConfig(path=str(cfg.out / "members" / f"{voter:02d}" / "model")))
        again = score_pairs(model, rows, pad_id=words.pad_id, micro_tokens=512)
        stored = torch.tensor([[getattr(p.strength, side)[voter] for p in written]
                               for side in ("chosen_scores", "rejected_scores")])
        torch.testing.assert_close(stored, again, **tol.FLOAT32)
    assert [(p.id, p.chosen, p.rejected, p.prompt.messages) for p in written] == [
        (p.id, p.chosen, p.rejected, p.prompt.messages) for p in original]


def test_mean_spread_share_and_quantile_of_every_pair(whole):
    written, _ = read_pairs(whole[1].out / "strength.jsonl")
    ranked = sorted(range(24), key=lambda i: written[i].strength.mean)
    for i, pair in enumerate(written):
        gaps = [a - b for a, b in zip(pair.strength.chosen_scores, pair.strength.rejected_scores, strict=True)]
        mean = sum(gaps) / 3
        assert pair.strength.mean == pytest.approx(mean, rel=tol.RELATIVE64)
        assert pair.strength.std == pytest.approx((sum((g - mean) ** 2 for g in gaps) / 3) ** 0.5, rel=tol.RELATIVE64)
        assert pair.prompt.meta["vote_share"] == sum(g > 0 for g in gaps) / 3
        assert pair.prompt.meta["quantile"] == ranked.index(i) * 4 // 24


def test_the_file_has_the_columns_of_the_published_data_set(whole):
    row = json.loads((whole[1].out / "strength.jsonl").read_text().splitlines()[0])
    assert {"chosen", "rejected", "mean preference difference", "std preference difference", "chosen score list",
            "rejected score list"} <= row.keys()
    assert row["chosen"][-1] == "the cat sat" and row["chosen"][:-1] == row["rejected"][:-1]


def test_voters_find_the_wrong_labels_and_clean_turns_them_over(tmp_path):
    cfg = strength_config(tmp_path, voters=4, clean={"flip": 0.17}, keep_models=False,
                          data=FileConfig(path=str(pairs_file(tmp_path, 96)), max_length=64))
    told = strength.run(cfg).values
    suspects, _ = read_pairs(cfg.out / "suspects.jsonl")
    wrong = {f"p{i}" for i in range(80, 96)}
    assert {pair.id for pair in suspects[:16]} == wrong and told["n_suspects"] == len(suspects)
    means = [pair.strength.mean for pair in suspects]
    assert means == sorted(means) and means[0] < 0
    assert "4 of 4 voters are against the label" in suspects[0].prompt.meta["reasons"][0]
    cleaned, _ = read_pairs(cfg.out / "cleaned.jsonl")
    assert {pair.id for pair in cleaned if "flip" in pair.prompt.meta.get("denoised", ())} == wrong
    assert told["changes"]["flip"] == 16 and not any("remember labels" in note for note in told["notes"])


def test_several_epochs_are_warned_of(tmp_path):
    told = strength.run(strength_config(tmp_path, voters=2, epochs=2.0, keep_models=False)).values
    assert "remember labels" in told["notes"][0] and told["members"][0]["steps"] == 8


def test_voters_differ_in_head_and_order_and_seeds_differ(whole, tmp_path):
    tmp, cfg, result = whole
    first = [row for row in logged(cfg.out) if row["member"] == 0]
    second = [row for row in logged(cfg.out) if row["member"] == 1]
    assert first[0]["loss"] != second[0]["loss"] and len(first) == len(second) == 4
    other = strength.run(strength_config(tmp, out=tmp_path / "other", seed=1, keep_models=False))
    seeds = [row["seed"] for told in (result, other) for row in told.values["members"]]
    assert len(set(seeds)) == 6
    assert scores_of(cfg.out, 0)["chosen"] != scores_of(tmp_path / "other", 0)["chosen"]
    assert not (tmp_path / "other/members/00/model").exists()


def test_the_result_says_who_voted_how_long_and_with_what(whole):
    _, cfg, result = whole
    told = result.values
    for row in told["members"]:
        assert row["weights_sha256"] == scores_of(cfg.out, row["voter"])["weights_sha256"]
        found = scores_of(cfg.out, row["voter"])
        right = sum(a > b for a, b in zip(found["chosen"], found["rejected"], strict=True)) / 24
        assert row["accuracy"] == pytest.approx(right, rel=tol.RELATIVE32) and row["n_learned"] == row["n_judged"] == 24
    assert len(told["member_seconds"]) == 3 and told["peak_memory_bytes"] > 2**20 and told["score_dtype"] == "float32"
    evaluations = logged(cfg.out, phase="eval")
    assert [row["step"] for row in evaluations] == [5, 10, 15]
    assert [row["accuracy"] for row in evaluations] == [row["accuracy"] for row in told["members"]]
    pairs, _ = read_pairs(cfg.out / "strength.jsonl")
    assert told["headline"]["after"]["mean"] == sum(pair.strength.mean < 0 for pair in pairs) / 24


def test_truth_reaches_the_audit_and_nothing_else(whole, tmp_path):
    tmp, cfg, _ = whole
    rows = [json.loads(line) for line in (tmp / "judged-24.jsonl").read_text().splitlines()]
    lying = tiny.write_rows(tmp_path / "lying.jsonl", [
        row | {"truth": {"wrong_label": not row["truth"]["wrong_label"]}} for row in rows])
    other = cfg.model_copy(update={"out": tmp_path / "other", "data": FileConfig(path=str(lying), max_length=64)})
    strength.run(other)
    assert (cfg.out / "metrics.jsonl").read_bytes() == (other.out / "metrics.jsonl").read_bytes()
    for name in ("strength", "suspects", "cleaned"):
        one, two = (read_pairs(folder / f"{name}.jsonl")[0] for folder in (cfg.out, other.out))
        assert [(p.id, p.chosen, p.strength, p.prompt.meta) for p in one] == [
            (p.id, p.chosen, p.strength, p.prompt.meta) for p in two]
    areas = [json.loads((folder / "audit.json").read_text())["truth"]["area"] for folder in (cfg.out, other.out)]
    assert areas[0] + areas[1] == pytest.approx(1, rel=tol.RELATIVE64)


def test_with_folds_nobody_judges_a_prompt_it_has_seen(tmp_path):
    cfg = strength_config(tmp_path, voters=4, folds=2)
    told = strength.run(cfg).values
    pairs, _ = read_pairs(cfg.data.path)
    prompt = [pair.prompt.messages for pair in pairs]
    parts = [scores_of(cfg.out, voter)["pairs"] for voter in range(4)]
    assert parts[0] == parts[2] and parts[1] == parts[3] and sorted(parts[0] + parts[1]) == list(range(24))
    assert not {prompt[i] for i in parts[0]} & {prompt[i] for i in parts[1]}
    assert [row["n_learned"] for row in told["members"]] == [24 - len(parts[v]) for v in range(4)]
    written, _ = read_pairs(cfg.out / "strength.jsonl")
    own = tuple(scores_of(cfg.out, voter)["chosen"][3] for voter in (1, 3))
    assert written[parts[1][3]].strength.chosen_scores == own


def test_a_voter_learns_nothing_from_its_own_fold(tmp_path):
    """Its scores stay the same when the labels of the pairs that it judges are turned over."""
    cfg = strength_config(tmp_path, voters=2, folds=2, keep_models=False)
    strength.run(cfg)
    mine = set(scores_of(cfg.out, 0)["pairs"])
    rows = [json.loads(line) for line in (tmp_path / "judged-24.jsonl").read_text().splitlines()]
    turned = tiny.write_rows(tmp_path / "turned.jsonl", [
        row | {"chosen": row["rejected"], "rejected": row["chosen"]} if i in mine else row
        for i, row in enumerate(rows)])
    other = cfg.model_copy(update={"out": tmp_path / "other", "data": FileConfig(path=str(turned), max_length=64)})
    strength.run(other)
    torch.testing.assert_close(torch.tensor(scores_of(cfg.out, 0)["chosen"]),
                               torch.tensor(scores_of(other.out, 0)["rejected"]), **tol.FLOAT32)
    assert scores_of(cfg.out, 1)["chosen"] != scores_of(other.out, 1)["rejected"]


def test_one_scale_weighs_every_voter_alike(tmp_path):
    cfg = strength_config(tmp_path, one_scale=True)
    strength.run(cfg)
    written, _ = read_pairs(cfg.out / "strength.jsonl")
    raw = torch.tensor([[scores_of(cfg.out, v)[side] for v in range(3)] for side in ("chosen", "rejected")],
                       dtype=torch.float64)
    expected = votes(raw[0], raw[1], one_scale=True)
    assert [pair.strength.mean for pair in written] == pytest.approx(expected.mean.tolist(), rel=tol.RELATIVE64)
    gaps = torch.tensor([[a - b for a, b in zip(p.strength.chosen_scores, p.strength.rejected_scores, strict=True)]
                         for p in written], dtype=torch.float64)
    torch.testing.assert_close(gaps.std(0, correction=0), torch.ones(3, dtype=torch.float64), **tol.FLOAT64)


def test_finished_models_vote_without_training(whole, tmp_path):
    _, cfg, _ = whole
    specs = tuple(ModelConfig(path=str(cfg.out / "members" / f"{v:02d}" / "model")) for v in (0, 2))
    told = strength.run(StrengthConfig(out=tmp_path / "again", models=specs, data=cfg.data, n_quantiles=4)).values
    assert [row["steps"] for row in told["members"]] == [0, 0] and not logged(tmp_path / "again")
    for ours, theirs in ((0, 0), (1, 2)):
        for side in ("chosen", "rejected"):
            torch.testing.assert_close(torch.tensor(scores_of(tmp_path / "again", ours)[side]),
                                       torch.tensor(scores_of(cfg.out, theirs)[side]), **tol.FLOAT32)


def test_lora_voters_share_one_trunk(tmp_path):
    """An adapter each; what they say is what a model of its own with that adapter says."""
    from keel.bench.pairwise import score_pairs
    from keel.data.render import render_pairs, template
    from keel.models.load import load_tokenizer
    from keel.models.members import load_members

    base = ModelConfig(path=str(tiny.llama(tmp_path / "base")))
    cfg = strength_config(tmp_path, voters=2, model=base.model_copy(update={"lora": LoraSettings(rank=2)}))
    strength.run(cfg)
    words = template(load_tokenizer(base.path))
    rows = render_pairs(words, read_pairs(cfg.data.path)[0], 64)[0]
    folders = [str(cfg.out / "members" / f"{v:02d}" / "adapter") for v in (0, 1)]
    for voter, member in enumerate(load_members(base, folders)):
        again = score_pairs(member, rows, pad_id=words.pad_id, micro_tokens=512)
        torch.testing.assert_close(torch.tensor(scores_of(cfg.out, voter)["chosen"]), again[0], **tol.FLOAT32)
    assert scores_of(cfg.out, 0)["chosen"] != scores_of(cfg.out, 1)["chosen"]
    assert not (cfg.out / "members/00/model").exists()


def test_micro_batches_change_nothing(tmp_path):
    for micro, name in ((10_000, "one"), (40, "many")):
        strength.run(strength_config(tmp_path, out=tmp_path / name, micro_tokens=micro, center_coef=0.01, voters=2))
    for a, b in zip(logged(tmp_path / "one"), logged(tmp_path / "many"), strict=True):
        for key in ("loss", "accuracy", "margin", "center"):
            assert a[key] == pytest.approx(b[key], rel=tol.GRADIENT32["rtol"], abs=tol.GRADIENT32["atol"])


# --- killed and resumed ----------------------------------------------------------------------------------------------

PLACES = {
    "in training": [(runs.Run, "log", 3)],
    "in a checkpoint": [(checkpoint.os, "fsync", 2), (checkpoint.os, "fsync", 1)],
    "in a vote": [(strength, "_heed", 6), (strength, "_heed", 1)],
    "before a checkpoint of a vote": [(strength, "_keep", 2), (runs.Run, "time", 6)],
    "in the outputs": [(strength, "oddities", 1), (strength, "_write", 1), (strength, "_write", 3),
                       (strength, "audit", 1), (runs, "write_json", 1), (strength, "_member", 1)],
}


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
def test_killed_at_any_instant_it_goes_on_to_the_same_bytes(whole, tmp_path, places):
    """SIGKILL right after the n-th call of a function, then on from there; several times in a row."""
    _, cfg, _ = whole
    config = cfg.model_copy(update={"out": tmp_path / "killed"})
    for i, (owner, name, n) in enumerate(places):
        killed(config, resume=i > 0, owner=owner, name=name, n=n)
    strength.run(config, resume=True)
    same(cfg.out, config.out)
    assert not list(config.out.glob(".*.unfinished"))


def test_a_killed_lora_voter_goes_on_to_the_same_bytes(tmp_path):
    base = ModelConfig(path=str(tiny.llama(tmp_path / "base")), lora=LoraSettings(rank=2))
    config = strength_config(tmp_path, voters=2, model=base)
    strength.run(config.model_copy(update={"out": tmp_path / "whole"}))
    killed(config, resume=False, owner=runs.Run, name="log", n=9)
    strength.run(config, resume=True)
    for name in ("metrics.jsonl", "strength.jsonl", "members/01/adapter/adapter_model.safetensors"):
        assert (config.out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def killed(config: StrengthConfig, *, resume: bool, owner, name: str, n: int) -> None:
    child = running._fork()
    if child == 0:
        try:
            real, calls = getattr(owner, name), []

            def deadly(*arguments, **named):
                found = real(*arguments, **named)
                calls.append(1)
                if len(calls) == n:
                    os.kill(os.getpid(), signal.SIGKILL)
                return found

            setattr(owner, name, deadly)
            strength.run(config, resume=resume)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"it was not killed at {name} {n}"


def same(one: Path, other: Path) -> None:
    """Every file but the clock's, byte for byte; of the result all but durations and memory."""
    names = ["metrics.jsonl", "strength.jsonl", "suspects.jsonl", "cleaned.jsonl", "audit.json"]
    names += [f"members/{v:02d}/{file}" for v in range(3) for file in ("scores.json", "model/model.safetensors")]
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    for told in results:
        assert len(told.pop("member_seconds")) == 3
        del told["seconds"], told["peak_memory_bytes"]
    assert results[0] == results[1]


def test_asked_to_stop_it_keeps_what_it_has(tmp_path, monkeypatch):
    cfg = strength_config(tmp_path, voters=2, keep_models=False)
    monkeypatch.setattr(runs.Run, "stop_requested", lambda run: (run.folder / "members").exists())
    with pytest.raises(runs.Stopped, match="nothing is lost"):
        strength.run(cfg)
    assert not (cfg.out / "strength.jsonl").exists() and (cfg.out / "members/00/scores.json").exists()
    monkeypatch.undo()
    strength.run(cfg, resume=True)
    strength.run(strength_config(tmp_path, out=tmp_path / "whole", voters=2, keep_models=False))
    assert (cfg.out / "strength.jsonl").read_bytes() == (tmp_path / "whole/strength.jsonl").read_bytes()


# --- the door --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "said"), [
    ({"voters": 1}, "greater than or equal to 2"),
    ({"voters": 4, "folds": 3}, "voters=4 and folds=3: folds is 0, or at least 2 and a divisor"),
    ({"folds": 1}, "folds is 0, or at least 2 and a divisor of voters"),
    ({"model": None}, "give either model, the trunk of voters"),
    ({"models": ["a", "b"]}, "give either model, the trunk of voters"),
    ({"model": None, "models": ["a"], "voters": 10}, "models names a single one"),
    ({"model": None, "models": ["a", "b"]}, "models and voters exclude each other"),
    ({"model": None, "models": ["a", "b"], "voters": 10, "folds": 2}, "models and folds exclude each other"),
])
def test_settings_that_contradict_each_other(tmp_path, changes, said):
    values = strength_config(tmp_path).model_dump() | changes
    with pytest.raises(ConfigError, match=said):
        StrengthConfig.checked(values)


def test_data_that_cannot_be_judged(tmp_path):
    one = tiny.write_rows(tmp_path / "one.jsonl", [json.loads(pairs_file(tmp_path).read_text().splitlines()[0])])
    with pytest.raises(DataError, match="1 different prompts do not fill 3 folds"):
        strength.run(strength_config(tmp_path, folds=3, data=FileConfig(path=str(one))))
    with pytest.raises(DataError, match="rows fits into 8 tokens"):
        strength.run(strength_config(tmp_path, data=FileConfig(path=str(pairs_file(tmp_path)), max_length=8),
                                     out=tmp_path / "long"))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="no rows in this file"):
        strength.run(strength_config(tmp_path, data=FileConfig(path=str(tmp_path / "empty.jsonl")), out=tmp_path / "e"))


def test_a_single_pair_is_judged_with_a_note(tmp_path):
    one = tiny.write_rows(tmp_path / "one.jsonl", [json.loads(pairs_file(tmp_path).read_text().splitlines()[0])])
    told = strength.run(strength_config(tmp_path, voters=2, data=FileConfig(path=str(one)))).values
    assert told["n"] == 1 and "1 pair in 4 quantiles: fewer than 10 each" in told["notes"][0]


def test_pairs_that_no_two_models_can_read_together(whole, tmp_path, monkeypatch):
    _, cfg, _ = whole
    folders = [cfg.out / "members" / f"{v:02d}" / "model" for v in (0, 1)]
    real = strength.render_pairs
    monkeypatch.setattr(strength, "render_pairs", lambda words, pairs, *how: real(
        words, pairs[:3] if words.tokenizer.name_or_path == str(folders[0]) else pairs[3:], *how))
    models = tuple(ModelConfig(path=str(folder)) for folder in folders)
    with pytest.raises(DataError, match="no pair fits all the models"):
        strength.run(StrengthConfig(out=tmp_path / "s", models=models, data=cfg.data))


def test_a_voter_without_an_opinion_has_no_scale(tmp_path, monkeypatch):
    monkeypatch.setattr(strength, "score_pairs", lambda model, rows, **how: torch.zeros(2, len(rows)))
    with pytest.raises(NumericsError, match="voter 0 gives every pair the same difference of scores"):
        strength.run(strength_config(tmp_path, one_scale=True))


def test_one_vote_a_pair_is_said_to_have_no_spread(tmp_path):
    told = strength.run(strength_config(tmp_path, voters=2, folds=2)).values
    assert any("leave each pair one vote" in note for note in told["notes"])
    assert all(pair.strength.std == 0 for pair in read_pairs(tmp_path / "strength/strength.jsonl")[0])


def test_the_command_names_the_files_and_the_next_step(whole, tmp_path, capsys):
    _, cfg, _ = whole
    models = "[" + ", ".join(f'"{cfg.out}/members/{v:02d}/model"' for v in (0, 1)) + "]"
    assert cli.main(["strength", "--out", str(tmp_path / "s"), "--models", models, "--data", cfg.data.path]) == 0
    said = capsys.readouterr().out
    assert f"keel report {tmp_path / 's'}" in said and "suspects.jsonl" in said and " of 24 labels (" in said
    with pytest.raises(RunError, match="already holds a run"):
        strength.run(cfg)
