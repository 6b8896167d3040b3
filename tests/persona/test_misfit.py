"""Whether the model that runs is the one that an axis was extracted from."""

import json

import pytest
import tiny
import torch

from keel.data.render import template
from keel.models.identity import model_identity, tokenizer_identity
from keel.models.load import ModelConfig, causal_lm, load_tokenizer
from keel.persona.axis import AssistantAxis
from keel.persona.misfit import misfit, misfit_of

OWN = {"weights": "a", "adapter": None, "dtype": "float32", "autocast": None, "device": "cpu"}


def axis_of(**meta) -> AssistantAxis:
    return AssistantAxis(torch.ones(2, 16), meta=meta)


@pytest.mark.parametrize(("identity", "words", "said"), [
    (OWN, "t", None),
    (OWN | {"dtype": "bfloat16", "autocast": "bfloat16", "device": "cuda"}, "t", None),
    (OWN | {"weights": "b"}, "t", "extracted from folder/m with other weights than this model has"),
    (OWN | {"adapter": "c"}, "t", "with other weights than"),
    ({"hub": "m", "revision": "1", "adapter": None}, "t", "with other weights than"),
    (OWN, "u", "with another chat template than"),
    (OWN | {"weights": "b"}, "u", "with other weights and another chat template than"),
])
def test_what_makes_a_model_another_one(identity, words, said):
    found = misfit(axis_of(model="folder/m", model_identity=json.dumps(OWN), template_hash="t"), identity, words)
    assert found is None if said is None else said in found and "default range and presets are of that model" in found


def test_an_axis_that_does_not_say_what_it_is_of_is_taken(tmp_path):
    assert misfit(axis_of(model="folder/m", template_hash="t"), OWN, "u") is None
    assert misfit_of(axis_of(), None, None, None) is None, "and nothing is read for it"


def test_a_copy_is_the_same_model_and_a_trained_one_is_not(tmp_path):
    for name, seed in (("m", 0), ("copy", 0), ("other", 3)):
        tiny.llama(tmp_path / name, seed=seed)
    specs = {name: ModelConfig(path=str(tmp_path / name)) for name in ("m", "copy", "other")}
    words = template(load_tokenizer(str(tmp_path / "m")))
    axis = axis_of(model_identity=json.dumps(model_identity(specs["m"], causal_lm(specs["m"]))),
                   template_hash=tokenizer_identity(words.tokenizer)["template"])
    found = {name: misfit_of(axis, spec, causal_lm(spec), words) for name, spec in specs.items()}
    assert found["m"] is found["copy"] is None and "other weights" in found["other"]
