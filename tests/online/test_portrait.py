"""groups.json: who is in each group, which words mark it, and its examples, against counts by hand."""

import json
import re
from dataclasses import replace

import pytest
import tolerances as tol
import torch
from recipes.running import group_ppo_config

from keel import runs
from keel.data.records import Message, Prompt
from keel.online.group_monitor import agreement
from keel.online.groups import Groups
from keel.online.memory import beginning
from keel.online.portrait import Crowd, portrait, portrayed
from keel.online.setup import prepared
from keel.recipes.group_ppo import labels_of
from keel.rollout.respond import Responses

N = 24
HARD = {1, 4, 5, 9, 10, 13, 16, 17, 20, 22}
"""Whose second group is the likelier one."""


@pytest.fixture(scope="module")
def crowd() -> Crowd:
    """Prompts of the second group ask to prove, its answers say sorry; everything else is the same for all."""
    prompts, texts = [], []
    for i in range(N):
        asks = f"Please {'PROVE' if i in HARD else 'list'} it, number {'one' if i % 2 else 'two'}."
        turns = (Message("user", "sorry sorry"), Message("assistant", "prove"), Message("user", asks))
        meta = {"group": "x" if i < 10 else 3} if i != 5 else {}
        prompts.append(Prompt(f"q{i}", (), text=asks, meta=meta) if i % 3 else Prompt(f"q{i}", turns, meta=meta))
        texts.append("well sorry, I can't" if i in HARD else "well, sure: I can")
    p = torch.tensor([0.5 + (0.3 + 0.01 * ((i * 7) % 13)) * (1 if i in HARD else -1) for i in range(N)])
    draw = torch.Generator().manual_seed(0)
    columns = {"score": torch.randn(N, generator=draw), "length": torch.arange(1, N + 1).float(),
               "kl": torch.rand(N, generator=draw), "gold": torch.randn(N, generator=draw)}
    p = torch.stack([1 - p, p], 1)
    labels = tuple(None if "group" not in one.meta else str(one.meta["group"]) for one in prompts)
    return Crowd(Responses(None, tuple(prompts), tuple(texts)), p, p.argmax(1), labels, columns)


def near(x: float):
    return pytest.approx(x, rel=tol.RELATIVE32)


def test_means_counts_and_labels_are_those_of_the_members_and_the_mass_is_soft(crowd):
    for g, name in enumerate(("1", "2")):
        members = [i for i in range(N) if (i in HARD) == bool(g)]
        found = portrait(crowd, g, name, 0)
        assert found["name"] == name and found["n"] == len(members)
        assert found["mass"] == near(sum(float(row[g]) for row in crowd.memberships) / N)
        for column in ("score", "gold", "length"):
            values = [float(crowd.columns[column][i]) for i in members]
            assert found[column]["mean"] == near(sum(values) / len(values)) and found[column]["n"] == len(members)
            assert found[column]["low"] < found[column]["mean"] < found[column]["high"]
        nats, tokens = (sum(float(crowd.columns[x][i]) for i in members) for x in ("kl", "length"))
        assert found["kl"] == near(nats / tokens)
        assert found["labels"] == {"3": sum(i >= 10 for i in members), "x": sum(i < 10 and i != 5 for i in members)}


def test_words_are_found_where_they_were_planted_and_no_others(crowd):
    """In the last turn only, whatever their case, with how often they occur here and elsewhere."""
    easy, hard = (portrait(crowd, g, str(g + 1), 0)["words"] for g in (0, 1))
    assert [(one["word"], one["here"], one["elsewhere"]) for one in hard["prompt"]] == [("prove", 10, 0)]
    assert [(one["word"], one["here"], one["elsewhere"]) for one in easy["prompt"]] == [("list", 14, 0)]
    assert {(one["word"], one["here"], one["elsewhere"]) for one in hard["response"]} == {
        ("sorry", 10, 0), ("can't", 10, 0)}
    assert {one["word"] for one in easy["response"]} == {"sure", "can"}
    for words in (*easy.values(), *hard.values()):
        z = [one["z"] for one in words]
        assert z == sorted(z, reverse=True) and min(z) > 2


def test_examples_are_the_surest_members_first_and_at_most_six(crowd):
    for g in (0, 1):
        found = portrait(crowd, g, str(g + 1), 0)["examples"]
        members = [i for i in range(N) if (i in HARD) == bool(g)]
        members.sort(key=lambda i: (-float(crowd.memberships[i, g]), i))
        assert [one["id"] for one in found] == [f"q{i}" for i in members[:6]]
        for one, i in zip(found, members[:6], strict=True):
            assert one["membership"] == pytest.approx(float(crowd.memberships[i, g]), abs=tol.LOG_RATIO)
            assert one["score"] == float(crowd.columns["score"][i]) and one["gold"] == float(crowd.columns["gold"][i])
            assert one["label"] == crowd.labels[i] and one["response"] == crowd.responses.texts[i]
            assert one["prompt"].startswith("Please ") and one["prompt"].endswith(("one.", "two."))


def test_without_a_true_score_there_is_none_and_an_empty_group_has_a_mass_only(crowd):
    alone = replace(crowd, likeliest=torch.zeros(N, dtype=torch.long),
                    columns={name: x for name, x in crowd.columns.items() if name != "gold"})
    full, empty = portrait(alone, 0, "1", 0), portrait(alone, 1, "2", 0)
    assert full["n"] == N and full["gold"] is None and full["examples"][0]["gold"] is None
    assert full["words"] == {"prompt": [], "response": []}  # nobody is elsewhere
    assert empty == {"name": "2", "n": 0, "mass": empty["mass"], "gold": None, "score": None, "length": None,
                     "kl": None, "labels": {}, "words": {"prompt": [], "response": []}, "examples": []}
    assert empty["mass"] > 0.3


# --- agreement -------------------------------------------------------------------------------------------------------


def asked(labels) -> list[Prompt]:
    return [Prompt(f"q{i}", (), text="x", meta={} if label is None else {"group": label})
            for i, label in enumerate(labels)]


def test_agreement_is_that_of_the_likeliest_groups_and_names_do_not_matter():
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.45, 0.55]])
    same = {"groups/rand": near(1.0), "groups/information": near(1.0)}
    assert agreement(p, asked(["a", "a", "b", "b"]), "group") == same
    assert agreement(p, asked([7, 7, 3, 3]), "group") == same == agreement(p.flip(1), asked([7, 7, 3, 3]), "group")
    found = agreement(p, asked(["a", "b", "a", "b"]), "group")
    assert found == {"groups/rand": near(-0.5), "groups/information": pytest.approx(0.0, abs=tol.RATIO)}
    three = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.1, 0.4], [0.1, 0.5, 0.4], [0.3, 0.2, 0.5]])
    assert agreement(three, asked(["a", "a", "b", "c"]), "group") == same


@pytest.mark.parametrize("labels", [["a", "a", None, "b"], [None] * 4, ["a"] * 4])
def test_there_is_no_agreement_with_labels_that_are_missing_or_all_the_same(labels):
    assert agreement(torch.eye(2).repeat(2, 1), asked(labels), "group") == {}


# --- the whole file --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def written(home, out, order, n_prompts: int = 7, **groups_settings):
    """Settings, groups and what of them is on held-out prompts before any learning."""
    prompts = group_ppo_config(home).prompts.model_copy(update={"validation_fraction": 0.4 if n_prompts else 0.0})
    cfg = group_ppo_config(home, out=out, prompts=prompts, eval_prompts=max(n_prompts, 1), gold="tiny:count_yes",
                           groups=groups_settings)
    with runs.start("group_ppo", cfg, cfg.out, seed=cfg.seed, data=cfg.files) as log:
        setup = prepared(cfg, log)
        groups = Groups(cfg.groups, setup.models.critic, labels_of(cfg, setup.prompts), seed=cfg.seed)
        known = groups.beginning() | {"order": order}
        told = portrayed(setup, groups, beginning(cfg) | {"groups": known})
        log.finish({})
    return setup, told


def test_the_file_has_every_held_out_answer_in_one_group_and_the_lowest_group_first(home, tmp_path):
    setup, told = written(home, tmp_path / "run", [0, 1])
    found = json.loads((tmp_path / "run/groups.json").read_text())
    assert list(found) == ["source", "level", "column", "n_prompts", "labels", "agreement", "groups"]
    assert (found["source"], found["level"], found["column"]) == ("inferred", "trajectory", "domain")
    assert found["n_prompts"] == 7 and found["labels"] == ["even", "odd"]
    assert found["agreement"].keys() == {"rand", "information"}
    assert told == {"agreement": found["agreement"], "groups": [
        {name: one[name] for name in ("name", "mass", "score", "gold", "length")} for one in found["groups"]]}
    assert [one["name"] for one in found["groups"]] == ["1", "2"] and sum(one["n"] for one in found["groups"]) == 7
    assert sum(one["mass"] for one in found["groups"]) == near(1.0)
    for one in found["groups"]:
        assert list(one) == ["name", "n", "mass", "gold", "score", "length", "kl", "labels", "words", "examples"]
        assert sum(one["labels"].values()) == one["n"] and len(one["examples"]) == min(one["n"], 6)
    ids = {row.record.id for row in setup.held_out}
    examples = [x for one in found["groups"] for x in one["examples"]]
    assert {x["id"] for x in examples} <= ids and all(x["membership"] >= 0.5 for x in examples)
    told_by_id = {row.record.id: row.record for row in setup.held_out}
    assert all(x["prompt"] == told_by_id[x["id"]].messages[-1].content for x in examples)
    assert all(x["gold"] == len(re.findall("yes", x["response"])) - x["gold"] % 1 for x in examples if x["gold"] >= 0)
    setup, _ = written(home, tmp_path / "turned", [1, 0])
    turned = json.loads((tmp_path / "turned/groups.json").read_text())
    assert [one | {"name": ""} for one in turned["groups"]][::-1] == [one | {"name": ""} for one in found["groups"]] \
        or [one["mass"] for one in turned["groups"]][::-1] == [one["mass"] for one in found["groups"]]


def test_known_groups_are_called_by_their_labels_in_their_order(home, tmp_path):
    _, told = written(home, tmp_path / "run", [1, 0], source="known")
    found = json.loads((tmp_path / "run/groups.json").read_text())
    assert [one["name"] for one in found["groups"]] == ["odd", "even"] == [one["name"] for one in told["groups"]]
    assert found["level"] is None and found["agreement"] is None
    for one in found["groups"]:
        assert one["labels"] == {one["name"]: one["n"]} and one["mass"] == near(one["n"] / 7)
        assert all(x["membership"] == 1.0 and x["label"] == one["name"] for x in one["examples"])


def test_without_held_out_prompts_there_is_no_file(home, tmp_path):
    setup, told = written(home, tmp_path / "run", [0, 1], n_prompts=0)
    assert told == {} and not setup.held_out and not (tmp_path / "run/groups.json").exists()
