"""The authors' files: both ways without a changed bit, the negated axis as a floor, and pickles that could do harm."""

import os
import pickle
from dataclasses import replace

import pytest
import torch
from persona.published_files import LAYERS, ROLES, WIDTH, bfloats, capping, published
from tolerances import FLOAT32

from keel.errors import DataError, RunError
from keel.functional.directions import bound, unit
from keel.persona.axis import AssistantAxis
from keel.persona.cap import Cap, preset_lines
from keel.persona.files import AxisFile, read_axis, write_axis
from keel.persona.published import read_published, write_published


def load(path):
    return torch.load(path, weights_only=True)


def quiet(note: str) -> None:
    raise AssertionError(note)


def equal(one, other) -> bool:
    """The same objects, tensors by format and bits."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def test_published_files_survive_both_ways_bit_for_bit(tmp_path):
    source = published(tmp_path / "theirs")
    write_axis(tmp_path / "axis.safetensors", read_published(source, quiet))
    write_published(tmp_path / "back", read_axis(tmp_path / "axis.safetensors"), quiet)
    files = sorted(path.relative_to(source) for path in source.rglob("*.pt"))
    assert files == sorted(path.relative_to(tmp_path / "back") for path in (tmp_path / "back").rglob("*.pt"))
    assert len(files) == 7
    for file in files:
        assert equal(load(source / file), load(tmp_path / "back" / file)), file


def test_an_upper_bound_on_the_negated_axis_is_read_as_a_floor(tmp_path):
    found = read_published(published(tmp_path / "theirs"), quiet)
    cap = found.caps["layers_3:6-p0.25"]
    assert cap.layers == (3, 4, 5) and cap.vectors is None and cap.percentile == 0.75
    assert cap.lower == (3.1 + 3 - 0.25, 3.1 + 4 - 0.25, 3.1 + 5 - 0.25) and cap.upper == (None,) * 3
    assert list(found.caps) == [f"layers_{a}:{a + 3}-p{p}" for a in (0, 3) for p in (0.01, 0.25)]


def test_the_floor_changes_states_as_the_published_rule_does(tmp_path):
    """h - relu(<h, u> - cap) u with u along the NEGATED axis, written out, against a floor on the axis."""
    source = published(tmp_path / "theirs")
    found, theirs = read_published(source, quiet), load(source / "capping_config.pt")
    hidden = 6 * torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(3))
    for experiment in theirs["experiments"]:
        cap = found.caps[experiment["id"]]
        for k, entry in enumerate(experiment["interventions"]):
            w = theirs["vectors"][entry["vector"]]["vector"].float()
            u = w / (w.norm() + 1e-8)
            expected = hidden - torch.relu(hidden @ u - entry["cap"])[:, None] * u
            moved, by = bound(hidden, unit(found.vectors[cap.layers[k]]), lower=cap.lower[k])
            torch.testing.assert_close(moved, expected, **FLOAT32)
            assert 0 < int((by > 0).sum()) < 40, "some states are lifted and some are left alone"


def test_means_come_from_the_roles_and_the_default(tmp_path):
    source = published(tmp_path / "theirs")
    found = read_published(source, quiet)
    assert sorted(found.roles) == sorted(ROLES) and list(found.traits) == ["vanity"]
    roles = [bfloats(LAYERS, WIDTH, seed=n).float() for n in (1, 2, 3)]
    assert torch.equal(found.role_mean, torch.stack(roles).mean(0))
    assert found.meta["published_dtype"] == "bfloat16" and found.meta["sign"].startswith("positive")
    for path in (source / "role_vectors").iterdir():
        path.unlink()
    bare = read_published(source, quiet)
    assert torch.equal(bare.role_mean, bare.default_mean - bare.vectors) and not bare.roles


def test_files_of_the_pipeline_are_read_by_their_type_not_by_a_part_of_their_name(tmp_path):
    (tmp_path / "vectors").mkdir()
    default, roles = bfloats(LAYERS, WIDTH, seed=0) + 4, [bfloats(LAYERS, WIDTH, seed=n) for n in (1, 2)]
    rows = {"default_1": (default + 1, "mean"), "default_2": (default - 1, "mean"),
            "default_prone": (roles[0], "pos_3"), "judge": (roles[1], "pos_3")}
    for name, (vector, kind) in rows.items():
        torch.save({"vector": vector, "type": kind, "role": name}, tmp_path / f"vectors/{name}.pt")
    axis = (default.float() - torch.stack(roles).float().mean(0)).bfloat16()
    torch.save({"axis": axis, "metadata": {"model": "tiny", "n": 3}}, tmp_path / "axis.pt")
    found = read_published(tmp_path, quiet)
    assert sorted(found.roles) == ["default_prone", "judge"]
    assert torch.equal(found.default_mean, (default + 1).float() / 2 + (default - 1).float() / 2)
    assert found.meta["published_model"] == "tiny" and found.meta["published_n"] == "3"
    torch.save(default, tmp_path / "default_vector.pt")
    notes = []
    assert torch.equal(read_published(tmp_path, notes.append).default_mean, default.float())
    assert notes == ["default_vector.pt is taken as the default; the 2 default vectors among the roles are not"]


def test_one_file_is_an_axis_too(tmp_path):
    axis = bfloats(LAYERS, WIDTH, seed=1)
    torch.save(axis, tmp_path / "mine.pt")
    found = read_published(tmp_path / "mine.pt", quiet)
    assert torch.equal(found.vectors, axis.float()) and found.default_mean is None and not found.caps
    torch.save({"axis": axis.float()}, tmp_path / "mine.pt")
    assert read_published(tmp_path / "mine.pt", quiet).meta["published_dtype"] == "float32"


def test_a_ceiling_along_the_axis_keeps_the_stated_percentile(tmp_path):
    source = published(tmp_path / "theirs")
    axis, held = load(source / "assistant_axis.pt"), load(source / "capping_config.pt")
    held["vectors"] |= {"towards": {"vector": axis[1], "layer": 1}}
    towards, away = {"vector": "towards", "cap": 2.0}, held["experiments"][0]["interventions"][0]
    held["experiments"] = [{"id": "layers_1:2-p0.2", "interventions": [towards]},
                           {"id": "layers_0:2-p0.3", "interventions": [away, towards]},
                           {"id": "layers_0:1-p0.25", "interventions": [away]}]
    torch.save(held, source / "capping_config.pt")
    caps = AssistantAxis.from_reference(source, lambda note: None).caps
    assert [cap.percentile for cap in caps.values()] == [0.2, None, 0.75]
    assert [line[:6] for line in preset_lines(caps)[3:]] == ["p0.25:"], "what is said of floors is said of them alone"


def test_the_axis_of_the_authors_files_is_read_as_a_value(tmp_path):
    source = published(tmp_path / "theirs")
    axis, found = AssistantAxis.from_reference(source, quiet), read_published(source, quiet)
    assert isinstance(axis, AssistantAxis) and torch.equal(axis.vectors, found.vectors)
    assert torch.equal(axis.role_mean, found.role_mean) and axis.roles.keys() == found.roles.keys()
    assert axis.caps.keys() == found.caps.keys() and axis.meta == found.meta
    alone = AssistantAxis.from_reference(source / "assistant_axis.pt")
    assert torch.equal(alone.vectors, axis.vectors) and not alone.roles


def test_vectors_of_their_own_and_both_bounds_survive(tmp_path):
    """A first component is not the axis; what points away from the Assistant is turned round, and back."""
    source = published(tmp_path / "theirs")
    axis = load(source / "assistant_axis.pt")
    away, along = (-axis[1].float() + 0.5).bfloat16(), (axis[2].float() + 0.5).bfloat16()
    held = capping(axis)
    held["vectors"] = {"pc1": {"vector": away, "layer": 1}, "pc1b": {"vector": along, "layer": 2},
                       "unused": {"vector": along, "layer": 3}}
    held["experiments"] = [
        {"id": "pc1", "interventions": [{"vector": "pc1", "cap": 0.1}, {"vector": "pc1b", "cap": torch.tensor(0.5)}]},
        {"id": "adds", "interventions": [{"vector": "pc1", "coeff": 2.0}, {"vector": "pc1b", "coeff": 2.0}]}]
    torch.save(held, source / "capping_config.pt")
    notes = []
    found = read_published(source, notes.append)
    cap = found.caps["pc1"]
    assert list(found.caps) == ["pc1"] and cap.percentile is None and cap.layers == (1, 2)
    assert cap.lower == (-0.1, None) and cap.upper == (None, 0.5)
    assert torch.equal(cap.vectors, torch.stack([-away, along]).float())
    assert notes == ["interventions that add a vector (`coeff`) in place of a cap were left out, 2 of them: adds (2)",
                     "vectors of capping_config.pt that no experiment uses were left out: 1 of 3"]
    write_published(tmp_path / "back", found, quiet)
    back = load(tmp_path / "back/capping_config.pt")
    assert back["experiments"] == [{"id": "pc1", "interventions": [{"vector": "pc1", "cap": 0.1},
                                                                   {"vector": "pc1b", "cap": 0.5}]}]
    assert equal(back["vectors"], {name: held["vectors"][name] for name in ("pc1", "pc1b")})


def test_a_preset_of_our_own_gets_their_names_and_a_second_bound_an_entry(tmp_path):
    axis = bfloats(LAYERS, WIDTH, seed=1).float()
    own = bfloats(1, WIDTH, seed=2).float()
    caps = {"layers_2:3-p0.5": Cap((2,), (0.25,), (4.0,)), "mine": Cap((2,), (1.0,), (2.0,), vectors=own)}
    write_published(tmp_path / "out", AxisFile(axis, caps=caps), quiet)
    held = load(tmp_path / "out/capping_config.pt")
    assert held["experiments"][0]["interventions"] == [
        {"vector": "layer_2/contrast_role_pos3_default1", "cap": -0.25},
        {"vector": "layer_2/assistant_axis", "cap": 4.0}]
    assert torch.equal(held["vectors"]["layer_2/contrast_role_pos3_default1"]["vector"].float(), -axis[2])
    named = [entry["vector"] for entry in held["experiments"][1]["interventions"]]
    assert named == ["layer_2/mine", "layer_2/mine_towards"]
    assert not (tmp_path / "out/default_vector.pt").exists()
    clash = {name: Cap((2,), (0.0,), (None,), vectors=(k + 1) * own, names=("v",)) for k, name in enumerate("ab")}
    write_published(tmp_path / "two", AxisFile(axis, caps=clash), quiet)
    assert sorted(load(tmp_path / "two/capping_config.pt")["vectors"]) == ["v", "v_2"]


def test_rounding_is_said_and_float32_keeps_every_digit(tmp_path):
    content = AxisFile(torch.tensor([[0.5, 1.0 + 2**-12]]), token_norm=torch.ones(1))
    notes = []
    write_published(tmp_path / "out", content, notes.append)
    assert notes[0] == "1 of 2 numbers were rounded to bfloat16; write float32 to keep them whole"
    assert notes[1].startswith("token_norm has no place in the authors' files") and len(notes) == 2
    write_published(tmp_path / "whole", replace(content, token_norm=None), quiet, dtype=torch.float32)
    assert torch.equal(load(tmp_path / "whole/assistant_axis.pt"), content.vectors)


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = published(tmp_path / "theirs")
    for name in ("assistant_axis.pt", "role_vectors/bard.pt", "capping_config.pt"):
        kept = (source / name).read_bytes()
        torch.save({"axis": Harmful()}, source / name)
        with pytest.raises(DataError, match="not a file of plain tensors: "):
            read_published(source, quiet)
        (source / name).write_bytes(pickle.dumps(Harmful()))
        with pytest.raises(DataError, match="keel never runs code of a pickle"):
            read_published(source, quiet)
        for junk in (b"", b"PK\x03\x04 cut", kept[: len(kept) // 2]):
            (source / name).write_bytes(junk)
            with pytest.raises(DataError, match="not a file of plain tensors: "):
                read_published(source, quiet)
        (source / name).write_bytes(kept)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(("name", "held", "complaint"), [
    ("assistant_axis.pt", [1.0], "a tensor of fractions was expected, this file holds a list"),
    ("assistant_axis.pt", {"vector": torch.ones(2, 2)}, "this file holds a NoneType"),
    ("assistant_axis.pt", torch.ones(LAYERS, WIDTH, dtype=torch.long), "this file holds numbers of type torch.int64"),
    ("assistant_axis.pt", torch.ones(WIDTH), r"an axis is \[blocks hidden\]"),
    ("assistant_axis.pt", -bfloats(LAYERS, WIDTH, seed=0) - 4, "this axis points away from the Assistant"),
    ("default_vector.pt", torch.ones(LAYERS, 3), "default_mean has the shape"),
    ("role_vectors/bard.pt", torch.ones(LAYERS + 1, WIDTH), "the role 'bard' has the shape"),
    ("capping_config.pt", {"vectors": {}}, "not a capping file: it has no `vectors` and `experiments`"),
    ("capping_config.pt", [1], "not a capping file"),
    ("capping_config.pt", {"vectors": {}, "experiments": [{"id": "a"}]}, "experiment 0 of the capping file"),
])
def test_files_that_hold_something_else_are_refused(tmp_path, name, held, complaint):
    source = published(tmp_path / "theirs")
    torch.save(held, source / name)
    with pytest.raises(DataError, match=complaint):
        read_published(source, quiet)


@pytest.mark.parametrize(("vector", "cap", "complaint"), [
    (None, 0.0, "the vector 'v' is missing from the capping file"),
    ({"vector": torch.ones(WIDTH), "layer": LAYERS}, 0.0, f"its layer {LAYERS} is no block of a model with {LAYERS}"),
    ({"vector": torch.ones(WIDTH), "layer": "1"}, 0.0, "its layer '1' is no block"),
    ({"vector": torch.ones(WIDTH + 1), "layer": 1}, 0.0, "the vector 'v' has the shape"),
    ({"vector": torch.zeros(WIDTH), "layer": 1}, 0.0, "or is zero, or not finite"),
    ({"vector": torch.ones(WIDTH), "layer": 1}, float("nan"), "a: a threshold is nan, not a finite number"),
    ({"vector": torch.ones(WIDTH), "layer": 1}, None, "a: a threshold is None"),
])
def test_capping_files_that_do_not_fit_are_refused(tmp_path, vector, cap, complaint):
    source = published(tmp_path / "theirs")
    held = {"vectors": {} if vector is None else {"v": vector},
            "experiments": [{"id": "a", "interventions": [{"vector": "v", "cap": cap}]}]}
    torch.save(held, source / "capping_config.pt")
    with pytest.raises(DataError, match=complaint):
        read_published(source, quiet)


def test_two_experiments_of_one_name_and_a_folder_without_axis_are_refused(tmp_path):
    source = published(tmp_path / "theirs")
    held = load(source / "capping_config.pt")
    torch.save(held | {"experiments": held["experiments"][:1] * 2}, source / "capping_config.pt")
    with pytest.raises(DataError, match=r"two experiments are called 'layers_0:3-p0\.01'"):
        read_published(source, quiet)
    (source / "assistant_axis.pt").unlink()
    with pytest.raises(DataError, match="no axis in this folder"):
        read_published(source, quiet)


def test_means_of_another_extraction_are_noticed(tmp_path):
    source = published(tmp_path / "theirs")
    axis = load(source / "assistant_axis.pt")
    axis[3] = bfloats(WIDTH, seed=77)
    torch.save(axis, source / "assistant_axis.pt")
    (source / "capping_config.pt").unlink()
    notes = []
    read_published(source, notes.append)
    assert len(notes) == 1 and notes[0].startswith("at block 3 the axis has a cosine of ")


def test_names_that_leave_the_folder_and_a_folder_that_is_there_are_refused(tmp_path):
    axis = bfloats(LAYERS, WIDTH, seed=1).float()
    for name in ("../bard", "a/b", ".hidden", ""):
        with pytest.raises(DataError, match="cannot be the name of a file"):
            write_published(tmp_path / "out", AxisFile(axis, roles={name: axis}), quiet)
    (tmp_path / "there").mkdir()
    with pytest.raises(RunError, match="cannot write"):
        write_published(tmp_path / "there", AxisFile(axis), quiet)
