"""LoRA ensembles: members score as models of their own, hold one trunk, and leave no bit behind for the next one."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
import tolerances as tol
import torch

from keel.bench.pairwise import score_pairs
from keel.data.collate import collate
from keel.data.load import read_pairs
from keel.data.render import Row, render_pairs, template
from keel.errors import ModelError
from keel.models.forward import response_scores
from keel.models.load import ModelConfig, check_context, device_of, is_encoder, load_tokenizer, save_model, scalar_model
from keel.models.lora import LoraSettings
from keel.models.members import fresh_member, load_members, save_adapter, shared_trunk

SHAPES = {1: LoraSettings(rank=2), 2: LoraSettings(rank=2), 3: LoraSettings(rank=3, alpha=4.0)}
ROWS = [Row([1, 4, 7 + i, 8, 2, 5, *range(9, 9 + i), 2], 6, f"r{i}") for i in range(5)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A causal trunk and an encoder, with three reward models trained on each by LoRA."""
    home = tmp_path_factory.mktemp("members")
    for kind in ("llama", "bert"):
        trunk = getattr(tiny, kind)(home / kind)
        for seed, lora in SHAPES.items():
            model = trained(scalar_model(ModelConfig(path=str(trunk), lora=lora), seed=seed))
            save_model(model, load_tokenizer(str(trunk)), home / f"{kind}-{seed}", pad_id=0)
    return home


def adapters(home: Path, kind: str, *seeds: int) -> list[str]:
    return [str(home / f"{kind}-{seed}" / "adapter") for seed in seeds]


def alone(home: Path, kind: str, seed: int, **changes):
    """The same reward model with a trunk of its own; its adapter is not merged, so that sums round alike."""
    spec = ModelConfig(path=str(home / kind), lora=SHAPES[seed], **changes)
    return trained(scalar_model(spec, seed=seed))


def trained(model, steps: int = 3):
    """A few steps of plain gradient descent on one pair of rows after another."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for i in range(steps):
        loss = torch.nn.functional.softplus(torch.diff(response_scores(model, collate(ROWS[i : i + 2], 0))))
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    return model.eval()


def learned(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def scores(model) -> torch.Tensor:
    with torch.no_grad():
        return response_scores(model, collate(ROWS, 0))


def bytes_held(*models) -> dict[int, int]:
    return {p.data_ptr(): p.numel() for model in models for p in model.parameters()}


# --- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "dtype"), [("llama", "float32"), ("llama", "bfloat16"), ("bert", "float32")])
def test_members_score_as_models_of_their_own_in_any_order(home, kind, dtype):
    spec = ModelConfig(path=str(home / kind), dtype=dtype)
    folders = adapters(home, kind, 1, 2, 3)
    if dtype == "float32":
        expected = [scores(alone(home, kind, seed)) for seed in (1, 2, 3)]
    else:
        expected = [scores(load_members(spec, [folder])[0]) for folder in folders]
    assert not torch.equal(expected[0], expected[1]) and not torch.equal(expected[0], expected[2])
    members = load_members(spec, folders)
    for i in (0, 1, 2, 1, 0, 0, 2):
        assert torch.equal(scores(members[i]), expected[i])
    moved = load_members(spec, folders[::-1])
    assert all(torch.equal(scores(one), x) for one, x in zip(moved, expected[::-1], strict=True))
    assert all((one.score if kind == "llama" else one.classifier).weight.dtype == torch.float32 for one in members)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_member_is_the_model_that_was_saved_merged(home, kind):
    [member] = load_members(ModelConfig(path=str(home / kind)), adapters(home, kind, 3))
    merged = scalar_model(ModelConfig(path=str(home / f"{kind}-3")))
    torch.testing.assert_close(scores(member), scores(merged), **tol.GRADIENT32)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_member_works_where_a_scalar_model_does(home, kind, tmp_path):
    members, one = load_members(ModelConfig(path=str(home / kind)), adapters(home, kind, 1, 2)), alone(home, kind, 2)
    assert [is_encoder(m) for m in members] == [kind == "bert"] * 2 and device_of(members[1]).type == "cpu"
    check_context(members[0], 128)
    with pytest.raises(ModelError, match="the longest row has 129 tokens, the model's context is 128"):
        check_context(members[0], 129)
    pairs = read_pairs(tiny.pairs(tmp_path / "pairs.jsonl", 9))[0]
    rows, _ = render_pairs(template(load_tokenizer(str(home / kind))), pairs, 64)
    members[0].train()  # whoever sets one of them has set all: dropout there is none
    for micro_tokens in (4096, 60):
        found = score_pairs(members[1], rows, pad_id=0, micro_tokens=micro_tokens)
        torch.testing.assert_close(found, score_pairs(one, rows, pad_id=0, micro_tokens=micro_tokens), **tol.EXACT)


def test_many_members_hold_one_trunk(home):
    """Three members: one trunk, and three adapters and heads. By address, whatever the modules are called."""
    spec = ModelConfig(path=str(home / "llama"))
    members = load_members(spec, adapters(home, "llama", 1, 2, 3))
    held, trunk = bytes_held(members[0].shared, *members), bytes_held(shared_trunk(spec))
    added = [sum(p.numel() for p in learned(alone(home, "llama", seed)).values()) for seed in (1, 2, 3)]
    assert sum(held.values()) == sum(trunk.values()) + sum(added)
    assert [sum(p.numel() for p in member.parameters()) for member in members] == added
    assert len(bytes_held(*members)) == sum(len(list(member.parameters())) for member in members)


def test_members_stay_frozen_while_they_score(home):
    members = load_members(ModelConfig(path=str(home / "llama")), adapters(home, "llama", 1, 2))
    for member in members:
        response_scores(member, collate(ROWS, 0))
        assert not any(p.requires_grad for p in members[0].shared.parameters())


# --- adapters that do not fit -----------------------------------------------------------------------------------------


@pytest.fixture
def broken(home, tmp_path):
    """A copy of an adapter, with other settings or other weights."""

    def make(settings: dict | None = None, drop: str = "", cut: bool = False) -> str:
        from safetensors.torch import load_file, save_file

        folder = shutil.copytree(home / "llama-1/adapter", tmp_path / "adapter")
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | (settings or {})))
        weights = load_file(folder / "adapter_model.safetensors")
        kept = {name: x for name, x in weights.items() if not drop or drop not in name}
        save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        if cut:
            (folder / "adapter_model.safetensors").write_bytes(b"half")
        return str(folder)

    return make


@pytest.mark.parametrize(("how", "fragment"), [
    ({"drop": "score"}, "the adapter does not fit the trunk"),
    ({"drop": "layers.1.mlp.up_proj.lora_B"}, "1 weights are missing, unknown or of another shape; the first is base_"),
    ({"settings": {"r": 3}}, "28 weights are missing, unknown or of another shape"),
    ({"settings": {"task_type": "CAUSAL_LM", "modules_to_save": None}},
     "not the adapter of a reward model: LORA for CAUSAL_LM, not LORA for SEQ_CLS"),
    ({"settings": {"peft_type": "NONE"}}, "cannot read a LoRA adapter: KeyError"),
    ({"cut": True}, "cannot read a LoRA adapter: SafetensorError"),
])
def test_an_adapter_that_cannot_be_used_says_why(home, broken, how, fragment):
    folder = broken(**how)
    with pytest.raises(ModelError, match=fragment) as caught:
        load_members(ModelConfig(path=str(home / "llama")), [*adapters(home, "llama", 2), folder])
    assert caught.value.where == folder and caught.value.remedy


@pytest.mark.parametrize(("other", "fragment"), [
    # Of each layer both halves of q, k, v and o, inputs of gate and up, outputs of down: 11 of 14; and the head.
    ({"hidden": 32}, "23 weights are missing, unknown or of another shape"),
    ({"layers": 1}, "the adapter does not fit the trunk"),
])
def test_an_adapter_of_another_shape_of_trunk(broken, tmp_path, other, fragment):
    """Where the trunk's recorded path says nothing: it is not on this machine."""
    trunk, folder = tiny.llama(tmp_path / "other", **other), broken({"base_model_name_or_path": "someone/elses"})
    with pytest.raises(ModelError, match=fragment):
        load_members(ModelConfig(path=str(trunk)), [folder])


def test_an_adapter_of_another_trunk_of_the_same_shape(home, tmp_path):
    """It would load without a complaint, and its scores would be noise."""
    trunk = tiny.llama(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match=r"this adapter was trained on another trunk, .*llama"):
        load_members(ModelConfig(path=str(trunk)), adapters(home, "llama", 1))


def test_two_names_on_the_hub_are_two_trunks(broken):
    from keel.models.members import _read

    folder = broken({"base_model_name_or_path": "someone/base"})
    with pytest.raises(ModelError, match="this adapter was trained on another trunk, someone/base"):
        _read(folder, "someone/instruct")
    assert _read(folder, "someone/base")[1]


def test_the_folder_of_a_merged_model_is_no_adapter(home):
    with pytest.raises(ModelError, match="cannot read a LoRA adapter: FileNotFoundError"):
        load_members(ModelConfig(path=str(home / "llama")), [str(home / "llama-1")])


def test_a_trunk_that_lacks_its_pooler_is_no_trunk(home, tmp_path):
    """Each reward model on it began with a pooler drawn from its own seed, which no adapter holds."""
    from transformers import AutoModel

    AutoModel.from_pretrained(home / "bert", add_pooling_layer=False).save_pretrained(tmp_path / "bare")
    load_tokenizer(str(home / "bert")).save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match=r"the trunk's folder lacks bert\.pooler\.dense\.bias, bert\.pooler"):
        shared_trunk(ModelConfig(path=str(tmp_path / "bare")))


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "dtype"), [("llama", "float32"), ("llama", "bfloat16"), ("bert", "float32")])
def test_a_member_trained_after_others_is_the_one_trained_alone(home, tmp_path, kind, dtype):
    """On the trunk that two others were trained on, one of them to no end: bit for bit as in a process of its own."""
    spec = ModelConfig(path=str(home / kind), dtype=dtype)
    trunk = shared_trunk(spec)
    untouched = {name: x.clone() for name, x in trunk.state_dict().items()}
    with fresh_member(trunk, SHAPES[1], 1) as member:
        trained(member)
    with pytest.raises(KeyboardInterrupt), fresh_member(trunk, SHAPES[3], 3):
        raise KeyboardInterrupt
    with fresh_member(trunk, SHAPES[2], 2) as member:
        assert learned(member).keys() == learned(alone(home, kind, 2)).keys()
        trained(member)
        here, found = learned(member), scores(member)
        save_adapter(member, tmp_path / "two")
    one = alone(home, kind, 2, dtype=dtype)
    there = learned(one)
    assert here.keys() == there.keys() and all(torch.equal(here[name], x) for name, x in there.items())
    assert torch.equal(found, scores(one))
    now = trunk.state_dict()
    assert now.keys() == untouched.keys()
    assert all(torch.equal(now[name], x) for name, x in untouched.items() if not name.startswith("score."))
    [read] = load_members(spec, [str(tmp_path / "two")])
    assert torch.equal(scores(read), found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two"]


def test_the_head_of_a_trained_trunk_is_where_each_member_begins_and_stays(home):
    """A reward model as trunk: its own head is copied, not drawn, and the next member begins from it too."""
    trunk = shared_trunk(ModelConfig(path=str(home / "llama-1")))
    head = trunk.score.weight.clone()
    for seed in (1, 2):
        with fresh_member(trunk, SHAPES[1], seed) as member:
            assert torch.equal(member.get_base_model().score.modules_to_save["default"].weight, head)
            trained(member)
        assert torch.equal(trunk.score.weight, head)
