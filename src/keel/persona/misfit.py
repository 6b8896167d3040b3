"""Whether the model that runs is the one that an axis was extracted from, by what the axis file says of it."""

import json
from collections.abc import Mapping
from typing import Any

from keel.data.chat import Template
from keel.models.identity import model_identity, tokenizer_identity
from keel.models.load import ModelConfig
from keel.persona.axis import AssistantAxis

__all__ = ["misfit", "misfit_of"]

SAME = ("weights", "hub", "revision", "adapter")
"""What makes a model another one. Number formats and devices round otherwise; the model is the same."""


def misfit(axis: AssistantAxis, identity: Mapping[str, Any], template: str) -> str | None:
    """What a reader has to know of an axis that is of another model; none where it is of this one, or does not say.

    Args:
        axis: with the metadata of its file.
        identity: of the model that runs: see `model_identity`.
        template: digest of its chat template: see `tokenizer_identity`.
    """
    told = axis.meta.get("model_identity")
    if told is None:
        return None
    own, odd = json.loads(told), []
    if any(own.get(key) != identity.get(key) for key in SAME):
        odd.append("other weights")
    if axis.meta.get("template_hash", template) != template:
        odd.append("another chat template")
    if not odd:
        return None
    return (f"the axis was extracted from {axis.meta.get('model', 'a model')} with {' and '.join(odd)} than this model "
            "has: directions, default range and presets are of that model")


def misfit_of(axis: AssistantAxis, spec: ModelConfig, model: Any, words: Template) -> str | None:
    """The same of a model that was loaded. Its weights are read for it, unless the axis does not say what it is of."""
    if "model_identity" not in axis.meta:
        return None
    return misfit(axis, model_identity(spec, model), tokenizer_identity(words.tokenizer)["template"])
