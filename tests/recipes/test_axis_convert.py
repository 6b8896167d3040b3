"""`keel axis convert`: there and back from the command line, what it says of percentiles, and what it refuses."""

import pytest
import torch
from persona.published_files import LAYERS, bfloats, published

from keel import cli
from keel.errors import DataError, RunError
from keel.persona.axis import AssistantAxis
from keel.persona.files import AxisFile, read_axis, write_axis
from keel.recipes.axis_convert import AxisConvertConfig, run


def test_the_command_converts_there_and_back_and_says_what_a_percentile_means(tmp_path, capsys):
    source, own, back = published(tmp_path / "theirs"), tmp_path / "axis.safetensors", tmp_path / "back"
    assert cli.main(["axis", "convert", "--source", str(source), "--out", str(own), "--model", "tiny-6",
                     "--layer", "2"]) == 0
    said = capsys.readouterr().out
    assert "axis of 6 blocks, 8 numbers each; positive is Assistant-like" in said
    assert "default_mean, role_mean; 3 roles, 1 traits, 4 capping presets" in said
    assert "layers_3:6-p0.25: blocks 3, 4, 5, floors 5.85 to 7.85 on the axis" in said
    assert "percentile 25 of the role-playing direction, which is percentile 75 of the axis itself" in said
    axis = AssistantAxis.load(own)
    assert axis.meta["model"] == "tiny-6" and axis.middle == 2 and axis.caps["layers_0:3-p0.01"].percentile == 0.99
    assert cli.main(["axis", "convert", "--source", str(own), "--out", str(back)]) == 0
    for file in source.rglob("*.pt"):
        if file.name != "capping_config.pt":
            assert torch.equal(torch.load(file), torch.load(back / file.relative_to(source)))


def test_help_says_which_way_the_file_goes(capsys):
    assert cli.main(["axis", "convert", "--help"]) == 0
    assert "the authors' layout" in capsys.readouterr().out


def test_rounding_is_a_choice(tmp_path, capsys):
    axis = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    write_axis(tmp_path / "axis.safetensors", AxisFile(axis))
    run(AxisConvertConfig(source=tmp_path / "axis.safetensors", out=tmp_path / "short"))
    assert "8 of 8 numbers were rounded to bfloat16" in capsys.readouterr().out
    run(AxisConvertConfig(source=tmp_path / "axis.safetensors", out=tmp_path / "whole", dtype="float32"))
    assert "rounded" not in capsys.readouterr().out
    assert torch.equal(torch.load(tmp_path / "whole/assistant_axis.pt"), axis)
    assert torch.load(tmp_path / "short/assistant_axis.pt").dtype == torch.bfloat16


def test_what_cannot_be_converted_is_refused_before_anything_is_written(tmp_path):
    own, theirs = tmp_path / "axis.safetensors", published(tmp_path / "theirs")
    write_axis(own, AxisFile(bfloats(LAYERS, 8, seed=0).float()))
    with pytest.raises(DataError, match="nothing to convert: source and out are both keel's own files"):
        run(AxisConvertConfig(source=own, out=tmp_path / "other.safetensors"))
    with pytest.raises(DataError, match="are both in the authors' layout"):
        run(AxisConvertConfig(source=theirs, out=tmp_path / "other"))
    with pytest.raises(RunError, match="the output of a conversion exists already"):
        run(AxisConvertConfig(source=theirs, out=own))
    with pytest.raises(DataError, match="layer=6 is no block of an axis with 6"):
        run(AxisConvertConfig(source=theirs, out=tmp_path / "new.safetensors", layer=6))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["axis.safetensors", "theirs"]
    assert read_axis(own).vectors.shape == (LAYERS, 8)


@pytest.mark.parametrize(("blocks", "layer", "told"), [(46, None, True), (46, 22, False), (45, None, False)])
def test_gemmas_own_block_is_noted_where_none_is_named(tmp_path, capsys, blocks, layer, told):
    torch.save(bfloats(blocks, 4, seed=0), tmp_path / "axis.pt")
    run(AxisConvertConfig(source=tmp_path / "axis.pt", out=tmp_path / "own.safetensors", layer=layer))
    assert ("the authors read that one at block 22, and the middle one is 23" in capsys.readouterr().out) == told
