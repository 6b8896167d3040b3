"""Every recipe that takes a validation file: what it holds out is not in the training file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny
from recipes import test_attribute_rm as graded
from recipes import test_meta_rm as meta
from recipes import test_preference_labelled as labelled
from recipes import test_ranking_rm as ranked
from recipes.offline_runs import offline_config
from recipes.running import brief, preference_config, reward_config, sft_config

from keel.errors import DataError
from keel.recipes import attribute_rm, meta_rm, offline_pg, ppo, preference, ranking_rm, reward_model, sft

WHOLE = 30


class Case(NamedTuple):
    """A recipe, its settings for one step, which of its files is meant, and what is said to be shared."""

    recipe: object
    settings: Callable
    field: str = "data"
    what: str = "prompts"


CASES = {
    "sft": Case(sft, sft_config, what="demonstrations"),
    "reward_model": Case(reward_model, reward_config),
    "meta_rm-pairs": Case(meta_rm, meta.config),
    "meta_rm-responses": Case(meta_rm, meta.config, "responses"),
    "meta_rm-prompts": Case(meta_rm, meta.sampling_config, "prompts"),
    "preference": Case(preference, preference_config),
    "preference-labelled": Case(preference, labelled.kto),
    "ranking_rm": Case(ranking_rm, ranked.config),
    "attribute_rm": Case(attribute_rm, graded.config),
    "offline_pg": Case(offline_pg, offline_config),
    "ppo": Case(ppo, brief, "prompts"),
}


def held(told: Path, n_shared: int) -> Path:
    """The rows of WHOLE prompts under other names; the first `n_shared` prompts are those of a training file."""
    by_prompt: dict[str, list[dict]] = {}
    for line in told.read_text().splitlines():
        by_prompt.setdefault(json.dumps(json.loads(line)["prompt"]), []).append(json.loads(line))
    groups, others, rows = list(by_prompt.values()), tiny.conversations(80)[50:], []
    for i in range(WHOLE):
        prompt = groups[i][0]["prompt"] if i < n_shared else others[i]
        rows += [row | {"id": f"v{i}-{j}", "prompt": prompt} for j, row in enumerate(groups[i % len(groups)])]
    return tiny.write_rows(told.parent / "held.jsonl", rows)


def asked(case: Case, tmp_path: Path, n_shared: int):
    cfg = case.settings(tmp_path, steps=1)
    data = getattr(cfg, case.field)
    data = data.model_copy(update={"validation": str(held(Path(data.path), n_shared))})
    return cfg.model_copy(update={case.field: data})


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_more_than_a_tenth_of_what_is_held_out_in_the_training_file_is_refused(tmp_path, case):
    said = f"4 of 30 validation {case.what} are in the training data, so they hold nothing out"
    with pytest.raises(DataError, match=said) as caught:
        case.recipe.run(asked(case, tmp_path, 4))
    assert caught.value.where == str(tmp_path / "held.jsonl")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_up_to_a_tenth_of_it_is_noted_once(tmp_path, case):
    notes = case.recipe.run(asked(case, tmp_path, 3)).values["notes"]
    said = [note for note in notes if "in the training data" in note]
    assert said == [f"3 of 30 validation {case.what} are in the training data: what is measured on them is no held-out "
                    "measurement"]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_where_nothing_is_shared_nothing_is_said(tmp_path, case):
    notes = case.recipe.run(asked(case, tmp_path, 0)).values.get("notes", [])
    assert not [note for note in notes if "training data" in note]


def test_another_answer_to_a_training_prompt_is_another_demonstration(tmp_path):
    """Not so for recipes that hold out prompts."""
    cfg = asked(CASES["sft"], tmp_path, 24)
    file = Path(cfg.data.validation)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    tiny.write_rows(file, [row | {"completion": tiny.said("blue blue dog")} for row in rows])
    assert not [note for note in sft.run(cfg).values.get("notes", []) if "training data" in note]


def test_the_policy_of_meta_rm_answers_nothing_before_the_refusal(tmp_path, monkeypatch):
    monkeypatch.setattr(meta_rm, "causal_lm", lambda spec: pytest.fail("the policy was loaded"))
    with pytest.raises(DataError, match="4 of 30 validation prompts are in the training data"):
        meta_rm.run(asked(CASES["meta_rm-prompts"], tmp_path, 4))
