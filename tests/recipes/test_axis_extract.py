"""keel axis extract on a tiny model: the sums are those of its responses, and no kill, shard or batch changes them."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from recipes.running import killed_here
from tolerances import EXACT, FLOAT32, HEARD

from keel.bench.role_judge import RoleJudgeConfig
from keel.errors import ConfigError, DataError, RunError
from keel.models.load import FrozenModelConfig
from keel.persona.axis import AssistantAxis
from keel.persona.published import read_published
from keel.recipes import axis_extract
from keel.recipes.axis_extract import AxisExtractConfig, run
from keel.report.glossary import describe
from keel.rollout.sample import SamplingConfig

EVAL = "{question} {answer}"
ROLES = [{"name": name, "system_prompts": [f"the {name}", f"{name} please"], "eval_prompt": EVAL}
         for name in ("cat", "dog", "one")] + [
    {"name": "default", "is_default": True, "system_prompts": ["", "hello {model_name}"]}]
QUESTIONS = [{"question": text} for text in ("why ?", "the cat ran", "red two", "yes no", "please", "blue . ?")]
TRAITS = [{"name": "calm", "pairs": [{"pos": "yes yes", "neg": "no no"}], "eval_prompt": EVAL}]


def by_length(prompt, text, ended):
    """3 for long responses, 2 for short ones, nothing for empty ones; only roles are asked about."""
    assert prompt.meta["kind"] == "role"
    return 3 if len(text.split()) > 3 else 2 if text else None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    here = tmp_path_factory.mktemp("axis")
    tiny.llama(here / "m")
    for name, rows in (("roles", ROLES), ("questions", QUESTIONS), ("traits", TRAITS)):
        tiny.write_rows(here / f"{name}.jsonl", rows)
    return here


def config(folder, out, **changes):
    settings = {
        "out": out, "model": FrozenModelConfig(path=str(folder / "m")), "roles": folder / "roles.jsonl",
        "questions": folder / "questions.jsonl", "sampling": SamplingConfig(max_new_tokens=6, slots=8), "batch": 10,
        "judge": RoleJudgeConfig(function="test_axis_extract:by_length"), "min_count": 1}
    return AxisExtractConfig(**(settings | changes))


@pytest.fixture(scope="module")
def finished(folder):
    result = run(config(folder, folder / "whole", traits=folder / "traits.jsonl", authors_files=True))
    return result, AssistantAxis.load(folder / "whole" / "axis.safetensors")


def rows_of(out):
    return [json.loads(line) for line in (out / "responses.jsonl").read_text().splitlines()]


def test_everything_is_asked_once_and_the_folder_holds_what_it_says(folder, finished):
    result, axis = finished
    rows = rows_of(folder / "whole")
    assert len(rows) == 4 * 2 * 6 + 2 * 6 == result.values["n_responses"]
    assert len({(row["role"], row["prompt_index"], row["question_index"], row.get("against")) for row in rows}) == 60
    assert rows[36]["system"] == "" and rows[42]["system"] == "hello m" and "score" not in rows[36]
    assert result.values["n_cut"] == sum(not row["ended"] for row in rows)
    space = json.loads((folder / "whole" / "space.json").read_text())
    told = {name: space["counts"][name].get("3", 0) for name in ("cat", "dog", "one")}
    assert told == {name: sum(row["score"] == 3 for row in rows if row["role"] == name) for name in told}
    assert axis.vectors.shape == (2, 16) and axis.middle == space["layer"] == 1
    assert axis.meta["judge"] == "function test_axis_extract:by_length" and axis.meta["system_turn"] == "own turn"
    torch.testing.assert_close(axis.vectors, axis.default_mean - axis.role_mean, **FLOAT32)
    torch.testing.assert_close(axis.role_mean, torch.stack(list(axis.roles.values())).mean(0), **FLOAT32)
    assert [one["name"] for one in space["traits"]] == ["calm"] and space["counts"]["calm"] == {"against": 6, "for": 6}
    assert space["default"]["n"] <= 12
    assert len(space["vectors"]) == result.values["n_fully"] + result.values["n_somewhat"]
    published = read_published(folder / "whole" / "published", print)
    assert sorted(published.roles) == sorted(axis.roles) and sorted(published.traits) == ["calm"]


def test_every_logged_number_has_a_word_and_a_line_on_the_page(folder, finished):
    logged = [json.loads(line) for line in (folder / "whole" / "metrics.jsonl").read_text().splitlines()]
    page = (Path(__file__).parents[2] / "docs" / "methods" / "axis_extract.md").read_text(encoding="utf-8")
    for name in logged[0].keys() - {"step", "phase"}:
        assert describe(name).group != "Other" and f"`{name}`" in page, name
    assert sum(row["responses/n"] for row in logged) == 60


def test_stored_responses_give_the_same_axis(folder, finished, tmp_path):
    """Judged anew or as they were judged, they give the same; rows come back as they were."""
    kept = [row for row in rows_of(folder / "whole") if row["response"] or row["kind"] == "trait"]
    stored = tiny.write_rows(tmp_path / "kept.jsonl", kept)
    with_judge = run(config(folder, tmp_path / "a", responses=stored, questions=None)).values
    with_scores = run(config(folder, tmp_path / "b", responses=stored, questions=None, judge=None, roles=None)).values
    assert with_judge == with_scores
    one, other = (AssistantAxis.load(tmp_path / name / "axis.safetensors") for name in "ab")
    torch.testing.assert_close(one.vectors, other.vectors, **EXACT)
    assert other.meta["judge"] == "as stored"
    assert rows_of(tmp_path / "b") == kept


def test_shards_merged_are_one_pass(folder, finished, tmp_path):
    result, axis = finished
    parts = []
    for k in (1, 2, 3):
        part = run(config(folder, tmp_path / str(k), traits=folder / "traits.jsonl", shard=f"{k}/3"))
        assert part.values["shard"] == f"{k}/3" and not (tmp_path / str(k) / "axis.safetensors").exists()
        parts.append(tmp_path / str(k))
    merged = run(AxisExtractConfig(out=tmp_path / "all", merge=tuple(parts), min_count=1))
    assert merged.values["n_responses"] == 60 and merged.values["n_tokens"] == result.values["n_tokens"]
    again = AssistantAxis.load(tmp_path / "all" / "axis.safetensors")
    torch.testing.assert_close(again.vectors, axis.vectors, **HEARD)
    assert again.default_stats.n == axis.default_stats.n
    assert again.default_stats.low == pytest.approx(axis.default_stats.low, rel=HEARD["rtol"])
    key = ("role", "prompt_index", "question_index", "response", "kind")
    assert sorted([str(row[k]) for k in key] for row in rows_of(tmp_path / "all")) == sorted(
        [str(row[k]) for k in key] for row in rows_of(folder / "whole"))
    for wrong in (parts[:2], [parts[0], parts[0], parts[1]]):
        with pytest.raises(RunError, match=r"these are not the \d shards of one extraction"):
            run(AxisExtractConfig(out=tmp_path / f"no{len(wrong)}", merge=tuple(wrong)))


def test_one_run_can_be_concluded_anew(folder, finished, tmp_path):
    _, axis = finished
    result = run(AxisExtractConfig(out=tmp_path / "n", merge=(folder / "whole",), min_count=1, rows="fully"))
    again = AssistantAxis.load(tmp_path / "n" / "axis.safetensors")
    torch.testing.assert_close(again.vectors, axis.vectors, **EXACT)
    assert result.values["components_for"] != finished[0].values["components_for"]


def test_without_a_judge_every_response_counts(folder, tmp_path):
    result = run(config(folder, tmp_path / "o", judge=None, n_questions=3, n_roles=2))
    assert result.values["n_all"] == 2 and result.values["n_responses"] == 3 * 2 * 3
    assert json.loads((tmp_path / "o" / "metrics.jsonl").read_text().splitlines()[0]).keys() == {
        "step", "phase", "responses/n", "responses/tokens", "responses/cut", "responses/empty"}


def test_a_traits_pair_counts_where_the_judge_sees_it_apart(folder, tmp_path, monkeypatch):
    class Fake:
        name, scores_traits = "fake", True

        def __init__(self, cfg, seed):
            self.n = 0

        def scores(self, rated):
            told = {("yes yes", 0): 90, ("no no", 0): 40, ("yes yes", 1): 90, ("no no", 1): 41, ("no no", 2): None}
            return [3 if one.highest == 3 else told.get((one.prompt.meta["system"], one.prompt.id.endswith("q1") * 1 + (
                one.prompt.id[-1] in "2345") * 2), 90) for one in rated]

    monkeypatch.setattr(axis_extract, "RoleJudge", Fake)
    run(config(folder, tmp_path / "o", traits=folder / "traits.jsonl"))
    space = json.loads((tmp_path / "o" / "space.json").read_text())
    assert space["counts"]["calm"] == {"against": 1, "alike": 10, "for": 1}


def test_a_killed_run_goes_on_to_the_same_bytes(folder, finished, tmp_path):
    """kill -9 where sums have a batch that the note of where the run stands has not; then --resume, three times."""
    out = tmp_path / "killed"
    killed_here(config(folder, out, traits=folder / "traits.jsonl"), [("log", 3), ("log", 1), ("log", 2)], run=run,
                saved="axis extract")
    for name in ("responses.jsonl", "metrics.jsonl", "space.json"):
        assert (out / name).read_bytes() == (folder / "whole" / name).read_bytes(), name
    again = AssistantAxis.load(out / "axis.safetensors")
    torch.testing.assert_close(again.vectors, finished[1].vectors, **EXACT)


def test_half_a_row_behind_the_last_save_is_cut_off(folder, finished, tmp_path, monkeypatch):
    save, calls = axis_extract._save, []

    def stopped(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        save(*args)

    monkeypatch.setattr(axis_extract, "_save", stopped)
    cfg = config(folder, tmp_path / "k", traits=folder / "traits.jsonl")
    with pytest.raises(KeyboardInterrupt):
        run(cfg)
    with (tmp_path / "k" / "responses.jsonl").open("a") as file:
        file.write('{"half a row')
    run(cfg, resume=True)
    for name in ("responses.jsonl", "metrics.jsonl", "space.json"):
        assert (tmp_path / "k" / name).read_bytes() == (folder / "whole" / name).read_bytes(), name


def test_what_cannot_be_extracted_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="layer=2, but the model has blocks 0 to 1"):
        run(config(folder, tmp_path / "a", layer=2))
    roles = tiny.write_rows(tmp_path / "roles.jsonl", ROLES[:1])
    with pytest.raises(DataError, match="none of the roles is the default, so there is nothing to compare"):
        run(config(folder, tmp_path / "b", roles=roles))
    stored = tiny.write_rows(tmp_path / "one.jsonl", rows_of(folder / "whole")[:1])
    with pytest.raises(DataError, match="there is nothing to extract from: no response in this part"):
        run(config(folder, tmp_path / "c", responses=stored, questions=None, shard="2/2"))
    with pytest.raises(RunError, match="this part is not complete, or is no extraction"):
        run(AxisExtractConfig(out=tmp_path / "d", merge=(tmp_path / "b",)))
    (tmp_path / "e" / "sums").mkdir(parents=True)
    with pytest.raises(RunError, match="this folder holds sums of an extraction that was stopped"):
        run(config(folder, tmp_path / "e"))


@pytest.mark.parametrize(("changes", "message"), [
    ({"merge": ("x",)}, "merge excludes shard, model, responses and layer"),
    ({"model": None}, "model is needed, unless merge names the folders of shards"),
    ({"roles": None}, "roles and questions are needed, unless responses are given"),
    ({"responses": "x"}, "responses excludes questions and traits"),
    ({"shard": "3/2"}, "shard=3/2 is no part of 2: count from 1"),
])
def test_settings_that_contradict_each_other_are_refused(folder, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config(folder, tmp_path, **changes)
