"""A frozen model's last hidden states over the prompts of the data, and the values that a head reads off them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from keel.data.collate import Tokens, budget_batches, collate
from keel.data.render import Row
from keel.errors import DataError, ModelError
from keel.models.forward import hidden_states
from keel.models.load import device_of, is_encoder
from keel.models.value_head import ValueHead, finite_values

__all__ = ["prompt_rows", "prompt_states", "state_batches", "value_numbers"]


def prompt_rows(rows: Sequence[Tokens]) -> list[Row]:
    """The rows without their responses.

    Raises:
        DataError: a prompt has no tokens.
    """
    found = [Row(row.ids[: row.n_prompt], row.n_prompt, row.record_id) for row in rows]
    empty = [row.record_id for row in found if not row.ids]
    if empty:
        raise DataError(f"{len(empty)} prompts have no tokens, so there is nothing to estimate their value from",
                        where=f"records {', '.join(empty[:8])}", remedy="Remove these records, or use a template that "
                                                                        "marks whose turn it is.")
    return found


@torch.no_grad()
def state_batches(
    model: nn.Module, rows: Sequence[Tokens], *, pad_id: int, micro_tokens: int,
    skip: Callable[[list[int]], bool] | None = None,
) -> Iterator[tuple[list[int], list[Float[Tensor, "P H"]]]]:
    """Last hidden states of the prompts, batch by batch, in float32 where the model is: places in `rows`, and states.

    A prompt that several rows share comes once, at the first of them. Which prompts make up a batch depends on `rows`
    alone, so that a killed run goes on with the very same sums.

    Args:
        model: a causal language model in eval mode.
        rows: prompts, or prompts with responses, which are not looked at.
        pad_id: what stands in the padding.
        micro_tokens: token positions per forward pass; changes memory, not results.
        skip: whether a batch is not wanted.

    Raises:
        DataError: a prompt has no tokens.
        ModelError: the model is no causal language model.
    """
    config: Any = model.config
    if is_encoder(model) or getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"a {config.model_type} model gives no value estimate: it is no causal language model",
                         remedy="The reference must read and write with one stack of layers (Llama, Qwen, GPT-2, ...).")
    prompts = prompt_rows(rows)
    first = {tuple(prompt.ids): i for i, prompt in reversed(list(enumerate(prompts)))}
    places = sorted(first.values())
    for part in budget_batches([prompts[i].n_tokens for i in places], micro_tokens):
        here = [places[k] for k in part]
        if skip is not None and skip(here):
            continue
        hidden = hidden_states(model, collate([prompts[i] for i in here], pad_id).to(device_of(model)))
        yield here, [one[: prompts[i].n_tokens].float() for i, one in zip(here, hidden, strict=True)]


def prompt_states(model: nn.Module, rows: Sequence[Tokens], *, pad_id: int, micro_tokens: int,
                  ) -> list[Float[Tensor, "P H"]]:
    """Last hidden states of every row's prompt, on the CPU; rows with one prompt share one tensor.

    All of them are held at once: 4 bytes x tokens x width. Arguments and errors as in `state_batches`.
    """
    found = {tuple(rows[i].ids[: len(one)]): one.to("cpu", copy=True)
             for part, states in state_batches(model, rows, pad_id=pad_id, micro_tokens=micro_tokens)
             for i, one in zip(part, states, strict=True)}
    return [found[tuple(row.ids[: row.n_prompt])] for row in rows]


def value_numbers(model: nn.Module, head: ValueHead, rows: Sequence[Tokens], *, pad_id: int, micro_tokens: int,
                  ) -> Callable[[Callable[[list[int]], bool]], Iterator[tuple[list[int], list[list[float]]]]]:
    """V of each row's prompt, for `FrozenNumbers.fill`, to which the rows' names are digests of `prompt_rows(rows)`.

    A prompt that several rows share is computed once, and no states are kept. Dropout is off.

    Args:
        model, rows, pad_id, micro_tokens: see `state_batches`.
        head: of this model's width; computes where it is.

    Raises:
        DataError, ModelError: see `state_batches`.
        ModelError: the head is for another width.
        NumericsError: a value is not finite.
    """
    def compute(skip: Callable[[list[int]], bool]) -> Iterator[tuple[list[int], list[list[float]]]]:
        for part, states in state_batches(model, rows, pad_id=pad_id, micro_tokens=micro_tokens, skip=skip):
            yield part, finite_values(head, states, [rows[i].record_id for i in part])[:, None].tolist()
    return compute
