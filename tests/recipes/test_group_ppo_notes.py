"""What a run of group-ppo says of its groups before it begins."""

from types import SimpleNamespace

import pytest
from recipes.running import group_ppo_config

from keel.data.records import Prompt
from keel.errors import DataError
from keel.recipes.group_ppo import labels_of, warnings_of


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    return group_ppo_config(tmp_path_factory.mktemp("home"))


def notes(cfg, *labels, n: int = 2, names: tuple[str, ...] = (), rollouts: int = 64) -> str:
    held_out = [Prompt(f"h{i}", (), text="x", meta={cfg.groups.column: label}) for i, label in enumerate(labels)]
    groups = SimpleNamespace(n=n, labels=names)
    return " ".join(warnings_of(cfg.model_copy(update={"rollouts": rollouts}), groups, held_out))


def test_labels_of_some_held_out_prompts_alone_measure_no_agreement(cfg):
    assert f"1 of 3 held-out prompts have no label {cfg.groups.column!r}" in notes(cfg, "a", "b", None)
    assert "no label" not in notes(cfg, "a", "b") and "no label" not in notes(cfg, None, None)


def test_held_out_prompts_of_unknown_groups_are_counted(cfg):
    assert "2 of 3 held-out prompts are of no trained group" in notes(cfg, "a", "c", None, names=("a", "b"))
    assert "trained group" not in notes(cfg, "a", "b", names=("a", "b"))


def test_many_groups_on_few_responses_are_called_unsteady_inferred_or_known(cfg):
    assert "9 groups on 64 responses per phase: their means are unsteady" in notes(cfg, "a", n=9)
    assert "9 groups on 64" in notes(cfg, "a", n=9, names=tuple("abcdefghi"))
    assert "unsteady" not in notes(cfg, "a", n=8)
    assert "rollouts=63: means of groups are unsteady" in notes(cfg, "a", rollouts=63)


def test_no_more_labels_are_named_than_can_be_read(cfg):
    said = notes(cfg, "n00", n=25, names=tuple(f"n{i:02d}" for i in range(25)), rollouts=256)
    assert "25 known groups: 'n00'" in said and "'n19', ..." in said and "n20" not in said


def test_a_phase_has_two_responses_for_each_known_group_at_least(cfg):
    groups = cfg.groups.model_copy(update={"source": "known", "column": "group"})
    rows = [SimpleNamespace(record=Prompt(f"t{i}", (), text="x", meta={"group": i})) for i in range(5)]
    for rollouts, fits in ((10, True), (8, False)):
        settings = cfg.model_copy(update={"rollouts": rollouts, "groups": groups})
        if fits:
            assert labels_of(settings, rows) == ("0", "1", "2", "3", "4")
        else:
            with pytest.raises(DataError, match="5 labels, and a phase can tell at most 4 groups apart"):
                labels_of(settings, rows)
