"""A key-value cache of slots: every row has its own length, and a slot is used again when its row has finished."""

import weakref

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

__all__ = ["SlotCache"]


class _Slots(CacheLayerMixin):
    """Keys and values of one layer, allocated once for all slots: [slots, heads, capacity, head width]."""

    def __init__(self, owner: "SlotCache") -> None:
        super().__init__()
        # Not the cache itself: a cycle would keep the memory of every finished batch until Python looks for cycles.
        self.owner = weakref.proxy(owner)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        shape = (self.owner.n_slots, key_states.shape[1], self.owner.capacity)
        # Under autocast rotated keys come in float32, but attention reads them in the format of the values.
        self.keys = value_states.new_empty((*shape, key_states.shape[3]))
        self.values = value_states.new_empty((*shape, value_states.shape[3]))
        # Positions beyond a row's length are masked, but 0 * NaN is NaN: fresh memory must hold numbers.
        self.keys.zero_()
        self.values.zero_()
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        owner, width = self.owner, key_states.shape[2]
        if owner.fill is not None:  # prefill: whole prompts into fresh slots; they attend among themselves
            self.keys[owner.fill, :, :width] = key_states.to(self.keys.dtype)
            self.values[owner.fill, :, :width] = value_states
            return key_states, value_states
        rows = owner.rows[: owner.n_active]
        self.keys[rows, :, owner.lengths[: owner.n_active]] = key_states[:, :, 0].to(self.keys.dtype)
        self.values[rows, :, owner.lengths[: owner.n_active]] = value_states[:, :, 0]
        seen = slice(0, owner.longest + 1)
        return self.keys[: owner.n_active, :, seen], self.values[: owner.n_active, :, seen]

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_max_length(self) -> int:
        return self.owner.capacity


class SlotCache(Cache):
    """Slots 0 .. n_active - 1 hold running rows; `lengths` says how many tokens each has in the cache.

    `fill` names the slots that the next forward pass fills with whole prompts; None means decoding.
    """

    def __init__(self, n_layers: int, n_slots: int, capacity: int, device: torch.device) -> None:
        self.n_slots, self.capacity, self.n_active, self.longest = n_slots, capacity, 0, 0
        self.lengths = torch.zeros(n_slots, dtype=torch.long, device=device)
        self.rows = torch.arange(n_slots, device=device)
        self.positions = torch.arange(capacity, device=device)
        self.fill: Tensor | None = None
        super().__init__(layers=[_Slots(self) for _ in range(n_layers)])

    def visible(self) -> Tensor:
        """Which cached positions each running row may look at as it adds a token: [n_active, 1, 1, longest + 1]."""
        seen = self.positions[None, : self.longest + 1] <= self.lengths[: self.n_active, None]
        return seen[:, None, None, :]

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy slots, so that running rows stay together at the front."""
        for layer in self.layers:
            layer.keys[targets, :, : self.longest + 1] = layer.keys[sources, :, : self.longest + 1]
            layer.values[targets, :, : self.longest + 1] = layer.values[sources, :, : self.longest + 1]
        self.lengths[targets] = self.lengths[sources]
