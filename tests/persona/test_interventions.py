"""The settings that are compared: every axis at every strength, preset and bound, with every choice of tokens."""

import pytest
import torch

from keel.errors import ConfigError
from keel.persona.axis import AssistantAxis
from keel.persona.cap import Cap
from keel.persona.interventions import Intervention, NamedAxis, grid, remarks
from keel.persona.settings import AxisConfig

OFF = {"steer": (), "unit": "unit", "layers": (), "caps": (), "lower": (), "where": ("all",)}


@pytest.fixture
def path(tmp_path):
    axis = AssistantAxis(torch.linspace(-1, 1, 64).reshape(4, 16), caps={
        "narrow": Cap((1, 2), (0.1, 0.2), (None, None), percentile=0.75), "wide": Cap((3,), (0.0,), (None,))})
    axis.save(tmp_path / "axis.safetensors")
    return tmp_path / "axis.safetensors"


def test_the_model_as_it_is_comes_first(path):
    assert grid([], **OFF) == [Intervention("none", "none")]


def test_every_strength_preset_and_bound(path):
    found = grid([NamedAxis(path=path)], **OFF | {
        "steer": (-0.5, 2.0), "caps": ("narrow", "wide"), "lower": (0.25,)})
    assert [(one.name, one.curve, one.layers, dict(one.dose)) for one in found[1:]] == [
        ("axis -0.5", "axis", "2", {"strength": -0.5}), ("axis +2", "axis", "2", {"strength": 2.0}),
        ("axis narrow", "axis", "1, 2", {"percentile": 75.0}), ("axis wide", "axis", "3", {}),
        ("axis above 0.25", "axis", "2", {"lower": 0.25})]
    steered, _, capped, _, floored = (one.acts for one in found[1:])
    assert (steered.steer, steered.unit, steered.cap, steered.lower) == (-0.5, "unit", None, None)
    assert (capped.cap, capped.steer, capped.lower) == ("narrow", None, None)
    assert (floored.lower, floored.steer, floored.cap) == (0.25, None, None)


def test_controls_tokens_and_blocks(path):
    axes = [NamedAxis(path=path), NamedAxis(path=path, name="random", control=3)]
    found = grid(axes, **OFF | {"steer": (1.0,), "where": ("all", "generation"), "layers": (0, 3)})[1:]
    assert [one.name for one in found] == ["axis +1, all", "axis +1, generation", "random +1, all",
                                           "random +1, generation"]
    assert [(one.where, one.acts.where, one.acts.control, one.acts.layers, one.layers) for one in found] == [
        ("all", "all", None, (0, 3), "0, 3"), ("generation", "generation", None, (0, 3), "0, 3"),
        ("all", "all", 3, (0, 3), "0, 3"), ("generation", "generation", 3, (0, 3), "0, 3")]


def test_bounds_that_mean_nothing_are_refused(path):
    with pytest.raises(ConfigError, match="the axis 'axis' has no preset 'other'"):
        grid([NamedAxis(path=path)], **OFF | {"caps": ("other",)})
    for bounds in ({"caps": ("wide",)}, {"lower": (0.0,)}):
        with pytest.raises(ConfigError, match="the bounds of 'axis' were measured on the axis, not on its"):
            grid([NamedAxis(path=path, control=1)], **OFF | bounds)


def test_a_comparison_without_a_control_is_remarked_on(path, tmp_path):
    axis, off = NamedAxis(path=path), {"caps": (), "where": ("all",)}
    (said,) = remarks([axis], **off)
    assert said.startswith("none of the axes is a random control")
    AssistantAxis.load(path).random(1).save(tmp_path / "random.safetensors")
    assert remarks([axis, NamedAxis(path=path, control=1)], **off) == []
    assert remarks([axis, NamedAxis(path=tmp_path / "random.safetensors")], **off) == []
    assert remarks([], **off) == []


def test_presets_for_generation_on_other_tokens_are_remarked_on(path):
    axes, caps = [NamedAxis(path=path, control=1)], ("layers_0:1-p0.25", "layers_0:1-p0.25-token-generation")
    (said,) = remarks(axes, caps=caps, where=("generation", "all"))
    assert said.startswith("layers_0:1-p0.25-token-generation: made for generation, and here where=all:")
    assert remarks(axes, caps=caps, where=("generation",)) == [] == remarks(axes, caps=caps[:1], where=("all",))


@pytest.mark.parametrize(("given", "place"), [
    ({"cap": "layers_0:1-p0.25-generation"}, "generation"), ({"cap": "layers_0:1-p0.25"}, "all"), ({}, "all"),
    ({"cap": "layers_0:1-p0.25-generation", "where": "all"}, "all"), ({"lower": 1.0, "where": "prompt"}, "prompt")])
def test_a_preset_acts_on_the_tokens_that_it_was_made_for_unless_others_are_named(given, place):
    assert AxisConfig.checked({"path": "a"} | given).where == place
    assert AxisConfig.model_validate(AxisConfig.checked({"path": "a"} | given)).where == place
