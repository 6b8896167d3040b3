"""keel's own file of an axis: what goes in comes out bit for bit, and what contradicts itself is refused."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from keel.errors import DataError
from keel.persona.cap import Cap, axis_percentile, meaning, preset_lines, preset_name, stated_percentile
from keel.persona.files import AxisFile, read_axis, write_axis


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def full() -> AxisFile:
    default, roles = drawn(4, 6), {"bard": drawn(4, 6, seed=1), "a/b: c": drawn(4, 6, seed=2)}
    role_mean = torch.stack(list(roles.values())).mean(0)
    caps = {"layers_1:3-p0.25": Cap((1, 2), (0.1, -0.30000000000000004), (None, None), 0.75, "all responses", "a run"),
            "other": Cap((0, 0), (None, 0.5), (1.5, 2.5), None, "", "", drawn(2, 6, seed=3), ("x", "y"))}
    return AxisFile(default - role_mean, default, role_mean, roles, {"vanity": drawn(4, 6, seed=4)},
                    drawn(4, seed=5).abs() + 1, {"model": "tiny", "layer": "2", "counts": "{}"}, caps)


def same(one: AxisFile, other: AxisFile) -> None:
    for name in ("vectors", "default_mean", "role_mean", "token_norm"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for name in ("roles", "traits"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert one.meta == other.meta and one.caps.keys() == other.caps.keys()
    for name, cap in one.caps.items():
        theirs = other.caps[name]
        assert (cap.vectors is None) == (theirs.vectors is None)
        assert cap.vectors is None or torch.equal(cap.vectors, theirs.vectors)
        for field in ("layers", "lower", "upper", "percentile", "population", "source", "names"):
            assert getattr(cap, field) == getattr(theirs, field), field


def test_what_is_written_is_read_bit_for_bit(tmp_path):
    write_axis(tmp_path / "deep/axis.safetensors", full())
    same(read_axis(tmp_path / "deep/axis.safetensors"), full())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["axis.safetensors"], "nothing half-written stays"


def test_what_an_axis_lacks_stays_absent(tmp_path):
    write_axis(tmp_path / "axis.safetensors", AxisFile(drawn(2, 3)))
    found = read_axis(tmp_path / "axis.safetensors")
    assert found.default_mean is None and found.role_mean is None and found.token_norm is None
    assert not found.roles and not found.traits and not found.caps and not found.meta


def test_the_file_says_in_words_what_its_bounds_are(tmp_path):
    write_axis(tmp_path / "axis.safetensors", full())
    with safe_open(tmp_path / "axis.safetensors", framework="pt") as file:
        words, names = file.metadata(), set(file.keys())
    caps = json.loads(words["caps"])
    assert names == {"axis", "default_mean", "role_mean", "token_norm", "roles/bard", "roles/a/b: c", "traits/vanity",
                     "caps/other"}
    assert caps["layers_1:3-p0.25"]["bound"] == "lower" and caps["other"]["bound"] == "lower and upper"
    assert caps["layers_1:3-p0.25"]["percentile_on_axis"] == 0.75
    assert "p0.25 is percentile_on_axis 0.75" in caps["layers_1:3-p0.25"]["orientation"]


def test_other_formats_of_numbers_become_float32(tmp_path):
    wide = replace(full(), vectors=full().vectors.double(), default_mean=full().default_mean.bfloat16())
    write_axis(tmp_path / "axis.safetensors", wide)
    found = read_axis(tmp_path / "axis.safetensors")
    assert found.vectors.dtype == found.default_mean.dtype == torch.float32
    assert torch.equal(found.default_mean, full().default_mean.bfloat16().float())


@pytest.mark.parametrize(("change", "complaint"), [
    ({"vectors": drawn(6)}, r"an axis is \[blocks hidden\], this one has the shape"),
    ({"default_mean": drawn(3, 6)}, "default_mean has the shape"),
    ({"roles": {"bard": torch.full((4, 6), torch.nan)}},
     r"the role 'bard' has the shape \(4, 6\), or numbers that are not finite"),
    ({"traits": {"vanity": drawn(4, 5)}}, "the trait 'vanity' has the shape"),
    ({"token_norm": torch.zeros(4)}, r"token_norm has the shape \(4,\) for 4 blocks, or a length that is not above 0"),
    ({"token_norm": torch.ones(3)}, "token_norm has the shape"),
    ({"caps": {"far": Cap((4,), (0.0,), (None,))}}, "'far' caps block 4 of a model with 4 blocks"),
    ({"caps": {"wide": Cap((0,), (0.0,), (None,), vectors=torch.ones(1, 5))}}, "vectors of 5 numbers for states of 6"),
    ({"meta": {"caps": "{}"}}, "the metadata may not be called 'caps': the format uses that name"),
])
def test_an_axis_that_contradicts_itself_is_not_written(tmp_path, change, complaint):
    with pytest.raises(DataError, match=complaint):
        write_axis(tmp_path / "axis.safetensors", replace(full(), **change))
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_axis_are_refused(tmp_path):
    file = tmp_path / "axis.safetensors"
    with pytest.raises(DataError, match="cannot read an axis: "):
        read_axis(file)
    file.write_bytes(b"not safetensors at all")
    with pytest.raises(DataError, match="cannot read an axis: "):
        read_axis(file)
    save_file({"axis": drawn(2, 3)}, file)
    with pytest.raises(DataError, match="this safetensors file holds no axis"):
        read_axis(file)
    for caps in ("{", '{"a": {"layers": [0]}}', '{"a": 1}', "[1]"):
        save_file({"axis": drawn(2, 3)}, file, {"keel_axis": "1", "caps": caps})
        with pytest.raises(DataError, match="the presets in this axis file cannot be read"):
            read_axis(file)
    save_file({"axis": torch.full((2, 3), torch.inf)}, file, {"keel_axis": "1"})
    with pytest.raises(DataError, match="the axis has the shape"):
        read_axis(file)


@pytest.mark.parametrize(("layers", "lower", "upper", "named", "complaint"), [
    ((), (), (), {}, "a cap with 0 blocks has 0 lower and 0 upper bounds"),
    ((0, 1), (0.0,), (None, None), {}, "a cap with 2 blocks has 1 lower and 2 upper bounds"),
    ((0,), (0.0,), (None,), {"names": ("a", "b")}, "2 names"),
    ((-1,), (0.0,), (None,), {}, "a cap acts on block -1, but blocks count from 0"),
    ((3,), (None,), (None,), {}, "block 3 has the bounds None and None: one of them has to be a number"),
    ((3,), (float("nan"),), (None,), {}, "block 3 has the bounds nan and None"),
    ((3,), (2.0,), (1.0,), {}, r"the cap at block 3 leaves no room: lower=2.0 is above upper=1.0"),
    ((3,), (2.0,), (None,), {"vectors": torch.zeros(1, 4)}, r"the vectors of a cap have the shape \(1, 4\) for 1"),
    ((3,), (2.0,), (None,), {"vectors": torch.ones(2, 4)}, "the vectors of a cap have the shape"),
])
def test_a_cap_that_bounds_nothing_is_refused(layers, lower, upper, named, complaint):
    with pytest.raises(DataError, match=complaint):
        Cap(layers, lower, upper, **named)


def test_a_percentile_is_said_in_both_directions():
    # 1000 projections 0.001, 0.002, ... 1: at p0.25 a quarter of them stays, three quarters lie below the floor.
    projections = torch.arange(1, 1001) / 1000
    floor = torch.quantile(projections, axis_percentile(0.25))
    assert (projections >= floor).float().mean() == 0.25
    assert torch.allclose(-torch.quantile(-projections, 0.25), floor), "the same place seen from the other end"
    said = meaning(0.25)
    assert "percentile 25 of the role-playing direction" in said and "percentile 75 of the axis itself" in said
    assert "leaves 25% of the population as it is and lifts 75%" in said


def test_names_of_presets_are_the_published_ones():
    assert preset_name(46, 54, 0.25) == "layers_46:54-p0.25" and preset_name(56, 72, 0.5) == "layers_56:72-p0.5"
    assert preset_name(0, 4, 0.01, "token", "generation") == "layers_0:4-p0.01-token-generation"
    for name, stated in [("layers_46:54-p0.25", 0.25), ("layers_0:4-p0.01-token-generation", 0.01), ("mine", None),
                         ("layers_0:4-p7", None)]:
        assert stated_percentile(name) == stated


def test_presets_are_shown_with_their_bounds_and_their_meaning():
    lines = preset_lines({"layers_1:3-p0.25": Cap((1, 2), (0.5, 2.0), (None, None)),
                          "mine": Cap((0,), (None,), (3.0,), vectors=torch.ones(1, 4))})
    assert lines[0] == "layers_1:3-p0.25: blocks 1, 2, floors 0.5 to 2 on the axis"
    assert lines[1].startswith("mine: blocks 0, ceilings 3 to 3 on directions of its own")
    assert lines[2] == meaning(0.25) and len(lines) == 3
    assert preset_lines({str(n): Cap((0,), (0.0,), (None,)) for n in range(5)}, limit=2)[2] == "and 3 more presets"
