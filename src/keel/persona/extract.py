"""States of responses as running sums: every block in one pass, and nothing kept per token or per response.

A `Listener` adds up the states of the content tokens of a batch of responses while they are computed, at every block.
When the batch has been judged, the mean of each response goes into the sums of its role. Sums of the parts of a run
add up to those of the whole.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from keel.data.chat import Template
from keel.data.collate import budget_batches, collate
from keel.data.render import Row
from keel.errors import RunError
from keel.functional.spaces import Sums, merge_sums, sum_rows
from keel.models.forward import hidden_states
from keel.models.load import check_context, device_of
from keel.models.residual import Columns, Tap, attach, n_blocks
from keel.rng import digest
from keel.runs import explained_disk_errors

__all__ = ["Heard", "Listener", "RoleSums", "kept_alike", "read_again", "read_sums", "sums_file"]

N_KEPT = 2000
"""Responses of the default whose states at one block are kept, for percentiles: their number is fixed, whatever is
asked."""


@dataclass(frozen=True)
class Heard:
    """What a listener made of a batch of responses.

    Attributes:
        means: mean state of each response's content tokens, float32 on the CPU; 0 where there are none. [N L D]
        n_tokens: content tokens of each.
        lengths: sum over them of the state's length. [N L]
    """

    means: Float[Tensor, "N L D"]
    n_tokens: Int[Tensor, " N"]
    lengths: Float[Tensor, "N L"]

    def picked(self, places: Sequence[int]) -> "Heard":
        """Some of the responses."""
        at = torch.tensor(places, dtype=torch.long)
        return Heard(self.means[at], self.n_tokens[at], self.lengths[at])


class Listener:
    """Sums over the content tokens of `n` responses, at every block of a model, while it computes them.

    While keel's sampler writes, rows are numbered by response, and a response's content is what is fed of it behind the
    last prompt token: every token but the one that ends it. (Of a response that was cut the last token is never fed,
    and is missing.) In a pass over whole conversations `content` says which tokens count, and `first` which response
    the first row is.
    """

    def __init__(self, n: int, n_layers: int) -> None:
        self.content: Bool[Tensor, "B T"] | None = None
        self.first = 0
        self.n_tokens = torch.zeros(n, dtype=torch.long)
        self._begun = torch.zeros(n, dtype=torch.bool)
        self._n, self._n_layers = n, n_layers
        self._sums: dict[int, Tensor] = {}
        self._lengths: dict[int, Tensor] = {}
        self._picked: Tensor | None = None
        self._owners = torch.zeros(0, dtype=torch.long)

    @property
    def taps(self) -> Mapping[int, Tap]:
        return dict.fromkeys(range(self._n_layers), self._hear)

    def heard(self) -> Heard:
        """Means over what was heard so far."""
        zeros = torch.zeros(self._n, 0)
        width = next(iter(self._sums.values()), zeros).shape[1]
        sums = torch.stack([self._sums.get(layer, torch.zeros(self._n, width)).cpu()
                            for layer in range(self._n_layers)], 1)
        lengths = torch.stack([self._lengths.get(layer, torch.zeros(self._n)).cpu()
                               for layer in range(self._n_layers)], 1)
        return Heard(sums / self.n_tokens.clamp_min(1)[:, None, None], self.n_tokens, lengths)

    def _hear(self, layer: int, hidden: Tensor, columns: Columns) -> None:
        if layer == 0:  # which columns count is the same at every block
            self._find(columns)
        if self._picked is None:
            return
        states = hidden.detach()[self._picked.to(hidden.device)].float()
        if layer not in self._sums:
            self._sums[layer] = states.new_zeros(self._n, states.shape[1])
            self._lengths[layer] = states.new_zeros(self._n)
        owners = self._owners.to(states.device)
        self._sums[layer].index_add_(0, owners, states)
        self._lengths[layer].index_add_(0, owners, states.norm(dim=-1))

    def _find(self, columns: Columns) -> None:
        rows = columns.rows.cpu()
        owners = (rows if rows.dim() == 2 else rows[:, None].expand(columns.real.shape)) + self.first
        picked = self._behind_prompts(columns, owners) if self.content is None else self.content.cpu()
        self._picked = picked if bool(picked.any()) else None
        self._owners = owners[picked]
        self.n_tokens.index_add_(0, self._owners, torch.ones_like(self._owners))

    def _behind_prompts(self, columns: Columns, owners: Tensor) -> Tensor:
        """Generated columns without the first of each response, which is the last token of its prompt."""
        generated = (columns.generated & columns.real).cpu()
        picked = torch.zeros_like(generated)
        for at in generated.any(0).nonzero()[:, 0].tolist():
            here, who = generated[:, at], owners[:, at]
            picked[:, at] = here & self._begun[who]
            self._begun[who[here]] = True
        return picked


@torch.no_grad()
def read_again(model: nn.Module, words: Template, said: Sequence[tuple[list[int], str, bool]], *, micro_tokens: int,
               ) -> Heard:
    """The same from responses that are written already, by passes over whole conversations.

    It agrees with what was heard in sampling wherever a response's text splits into the tokens that wrote it; and it
    has the last token of responses that were cut.

    Args:
        model: the one that wrote them, or another one with this template.
        words: its template.
        said: prompt ids, text of the response, and whether it ended.
        micro_tokens: token positions per pass; changes memory, not results.
    """
    rows, contents = [], []
    for i, (prompt, text, ended) in enumerate(said):
        response = words.response_ids(text, ended)
        n_content = len(response) - ended
        n_lead = _n_lead(words, response[:n_content])
        rows.append(Row(prompt + response, len(prompt), str(i)))
        contents.append((len(prompt) + n_lead, len(prompt) + n_content))
    check_context(model, max(row.n_tokens for row in rows))
    listener = Listener(len(rows), n_blocks(model))
    order: list[int] = []
    with attach(model, listener.taps):
        for part in budget_batches([row.n_tokens for row in rows], micro_tokens):
            batch = collate([rows[i] for i in part], words.pad_id)
            column = torch.arange(batch.ids.shape[1])
            bounds = torch.tensor([contents[i] for i in part])
            listener.content = (column >= bounds[:, :1]) & (column < bounds[:, 1:])
            listener.first = len(order)
            hidden_states(model, batch.to(device_of(model)))
            order += part
    heard, back = listener.heard(), torch.tensor(order).argsort()
    return Heard(heard.means[back], heard.n_tokens[back], heard.lengths[back])


def _n_lead(words: Template, response: list[int]) -> int:
    """Tokens of what the template itself writes before a response, where they are tokens of their own."""
    lead = words.tokenizer(words.lead, add_special_tokens=False).input_ids if words.lead.strip() else []
    return len(lead) if response[: len(lead)] == lead else 0


@dataclass
class RoleSums:
    """All that is kept of a role's responses.

    Attributes:
        name, kind: of the role.
        buckets: "SCORE/HALF" -> sums; SCORE is 0 to 3, `unscored`, `all` without a judge, and `for` or `against` of
            a trait; HALF is even or odd, by the question's number.
        counts: score -> responses, those without a token included.
        n_tokens: content tokens.
        lengths: sum of their states' lengths by block, float64. [L]
        kept: number that a response's id draws -> its mean at one block; those with the smallest numbers, which is a
            fair sample that does not depend on order or on parts.
        through: the batch that was added last; a batch that is offered again is not added twice.
    """

    name: str
    kind: str
    buckets: dict[str, Sums] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    n_tokens: int = 0
    lengths: Float[Tensor, " L"] | None = None
    kept: dict[int, Float[Tensor, " D"]] = field(default_factory=dict)
    through: int = 0

    def add(self, labels: Sequence[str], heard: Heard) -> None:
        """Add responses; `labels` name the bucket and half of each."""
        for label in dict.fromkeys(labels):
            self.counts[label.partition("/")[0]] += labels.count(label)
            mine = torch.tensor([i for i, own in enumerate(labels) if own == label and int(heard.n_tokens[i]) > 0],
                                dtype=torch.long)
            if len(mine):
                fresh = sum_rows(heard.means[mine])
                self.buckets[label] = merge_sums(self.buckets[label], fresh) if label in self.buckets else fresh
        self.n_tokens += int(heard.n_tokens.sum())
        lengths = heard.lengths.double().sum(0)
        self.lengths = lengths if self.lengths is None else self.lengths + lengths

    def keep(self, ids: Iterable[str], heard: Heard, layer: int) -> None:
        """Keep some of these responses' means at a block."""
        for name, mean, n in zip(ids, heard.means[:, layer], heard.n_tokens.tolist(), strict=True):
            if n:
                self.kept[digest(0, "kept", name)] = mean.clone()
        self.kept = {number: self.kept[number] for number in sorted(self.kept)[:N_KEPT]}

    def bucket(self, names: Sequence[str], half: str | None = None) -> Sums | None:
        """The sums of several scores together; of one half of the questions, or of both."""
        wanted = [f"{name}/{one}" for name in names for one in (("even", "odd") if half is None else (half,))]
        found = [self.buckets[label] for label in wanted if label in self.buckets]
        return reduce(merge_sums, found) if found else None

    def merged(self, other: "RoleSums") -> "RoleSums":
        """Sums of both parts."""
        buckets = dict(self.buckets)
        for label, one in other.buckets.items():
            buckets[label] = merge_sums(buckets[label], one) if label in buckets else one
        kept = self.kept | other.kept
        lengths = [x for x in (self.lengths, other.lengths) if x is not None]
        return RoleSums(self.name, self.kind, buckets, self.counts + other.counts, self.n_tokens + other.n_tokens,
                        sum(lengths[1:], lengths[0]) if lengths else None,
                        {number: kept[number] for number in sorted(kept)[:N_KEPT]})

    def save(self, folder: Path) -> None:
        """Write it beside and rename.

        Raises:
            RunError: it cannot be written.
        """
        tensors = {f"total/{label}": one.total for label, one in self.buckets.items()}
        tensors |= {f"squares/{label}": one.squares for label, one in self.buckets.items()}
        if self.lengths is not None:
            tensors["lengths"] = self.lengths
        if self.kept:
            tensors["kept"] = torch.stack(list(self.kept.values()))
        words = {"name": self.name, "kind": self.kind, "through": self.through, "n_tokens": self.n_tokens,
                 "counts": self.counts, "n": {label: int(one.count) for label, one in self.buckets.items()},
                 "kept": list(self.kept)}
        with explained_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            file = sums_file(folder, self.kind, self.name)
            beside = file.with_name(f".{file.name}.new")
            beside.write_bytes(save(tensors, {"sums": json.dumps(words)}))
            beside.replace(file)


def sums_file(folder: Path, kind: str, name: str) -> Path:
    """Where the sums of a role lie."""
    return folder / f"{kind} {name}.safetensors"


def read_sums(file: Path) -> RoleSums:
    """What `RoleSums.save` wrote.

    Raises:
        RunError: it is damaged.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            words = json.loads(opened.metadata()["sums"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
        buckets = {label: Sums(torch.tensor(float(n), dtype=torch.float64), tensors[f"total/{label}"],
                               tensors[f"squares/{label}"]) for label, n in words["n"].items()}
        kept = dict(zip(words["kept"], tensors["kept"].unbind(), strict=True)) if words["kept"] else {}
        return RoleSums(words["name"], words["kind"], buckets, Counter(words["counts"]), words["n_tokens"],
                        tensors.get("lengths"), kept, words["through"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"the sums of a role are damaged: {type(error).__name__}: {error}", where=str(file),
                       remedy="Extract again with another --out; sums cannot be mended.") from error


def kept_alike(sums: Sequence[RoleSums]) -> Float[Tensor, "N D"]:
    """The kept means of several roles together."""
    kept: dict[int, Tensor] = {}
    for one in sums:
        kept |= one.kept
    return torch.stack([kept[number] for number in sorted(kept)]) if kept else torch.zeros(0, 0)
