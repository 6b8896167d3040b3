"""The settings that are compared: every axis at every strength, preset and bound, with every choice of tokens."""

import pytest
import torch

from keel.errors import ConfigError
from keel.persona.axis import AssistantAxis
from keel.persona.cap import Cap
from keel.persona.interventions import Intervention, NamedAxis, grid

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
