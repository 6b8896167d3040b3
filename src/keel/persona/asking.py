"""What extraction asks: every role under each of its system prompts, every question; and traits in pairs."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from keel.data.chat import Template
from keel.data.records import Message, Prompt
from keel.data.roles import MODEL_NAME, Role, Trait
from keel.errors import DataError

__all__ = ["Item", "Kind", "asked", "keeps_system", "role_units", "short_name", "trait_units"]

Kind = Literal["role", "default", "trait"]
LABELS = {"role": "pos", "default": "default", "trait": "pos"}
FAMILIES = ("Gemma", "Qwen", "Llama", "Mistral")


@dataclass(frozen=True)
class Item:
    """One response to be: who is asked to speak, and about what.

    Attributes:
        role: name of the role or trait.
        kind: which of the two, or the default.
        prompt_index, question_index: places among its system prompts and among the questions.
        system: as it is sent, "" for none.
        question: the user's message.
        against: True for the side of a trait's pair that asks for the opposite.
        eval_prompt: the judge's; None where the role has none.
    """

    role: str
    kind: Kind
    prompt_index: int
    question_index: int
    system: str
    question: str
    against: bool = False
    eval_prompt: str | None = None

    @property
    def key(self) -> str:
        """What the authors call it: `pos_p0_q17`; `default_p0_q17`."""
        label = "neg" if self.against else LABELS[self.kind]
        return f"{label}_p{self.prompt_index}_q{self.question_index}"

    @property
    def id(self) -> str:
        """Names it among all items, and its random stream."""
        return f"{self.kind}/{self.role}/{self.key}"

    @property
    def half(self) -> str:
        """Questions with even and with odd numbers make the two halves of the reliability."""
        return "odd" if self.question_index % 2 else "even"


def role_units(roles: Sequence[Role], questions: Sequence[str], n_prompts: int | None, model_name: str,
               ) -> Iterator[tuple[Item, ...]]:
    """Each role with each of its first `n_prompts` system prompts and each question."""
    for role in roles:
        kind: Kind = "default" if role.is_default else "role"
        for (p, system), (q, question) in product(enumerate(role.systems[:n_prompts]), enumerate(questions)):
            yield (Item(role.name, kind, p, q, system.replace(MODEL_NAME, model_name), question,
                        eval_prompt=role.eval_prompt),)


def trait_units(traits: Sequence[Trait], questions: Sequence[str], n_prompts: int | None, model_name: str,
                ) -> Iterator[tuple[Item, ...]]:
    """Each trait with each of its pairs and each question: two items that stay together, for they are compared."""
    for trait in traits:
        for (p, pair), (q, question) in product(enumerate(trait.pairs[:n_prompts]), enumerate(questions)):
            yield tuple(Item(trait.name, "trait", p, q, system.replace(MODEL_NAME, model_name), question, against,
                             trait.eval_prompt) for against, system in zip((False, True), pair, strict=True))


def asked(item: Item, own_turn: bool) -> Prompt:
    """The conversation that asks for it; without a turn of their own instructions open the user's message."""
    meta = {"role": item.role, "kind": item.kind, "system": item.system, "question": item.question}
    instruction = (Message("system", item.system),) if item.system and own_turn else ()
    opening = f"{item.system}\n\n" if item.system and not own_turn else ""
    return Prompt(item.id, (*instruction, Message("user", opening + item.question)), meta=meta)


def keeps_system(words: Template) -> bool:
    """True where the chat template shows what a system message says; some refuse it, some drop it.

    It is tried, never looked up by name: two different messages must give two different conversations.

    Raises:
        DataError: there is no template, or it refuses even a user's message.
    """
    user = Message("user", "hello")
    words.prompt_ids(Prompt("probe", (user,)))
    try:
        one, other = (words.prompt_ids(Prompt("probe", (Message("system", text), user))) for text in ("a", "a a a"))
    except DataError:
        return False
    return one != other


def short_name(path: str) -> str:
    """What stands for `{model_name}`: the family in the folder's name, or its part before a dash."""
    name = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
    first = name.split("-")[0]
    return next((family for family in FAMILIES if family.lower() in name.lower()), first) or name
