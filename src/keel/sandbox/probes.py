"""Prompts that show where a policy of the town stands: asked plainly, asked in a role, and after the assistant has
already spoken like somebody else."""

from collections.abc import Iterator
from dataclasses import replace

from keel.data.records import Message, Prompt
from keel.rng import python_stream
from keel.sandbox.personas import PERSONAS, speak, with_role
from keel.sandbox.world import World

__all__ = ["probes"]

QUALITY = 0.8
"""Of what the assistant is made to have said."""


def probes(world: World, n: int) -> Iterator[Prompt]:
    """n prompts of each kind, of the test split; `meta` says which: neutral, role or drift. The three kinds ask the
    same questions."""
    roles = tuple(PERSONAS.values())
    questions = world.prompts(n, "probes", split="test", unknown=False)
    earlier = world.prompts(n, "earlier probes", split="test", unknown=False)
    for number, (prompt, before) in enumerate(zip(questions, earlier, strict=True)):
        rng = python_stream(world.seed, "probes", number)
        persona = rng.choice(roles)
        said = Message("assistant", speak(world, before, persona, QUALITY, rng))
        drifting = replace(prompt, id=f"{prompt.id}-after", messages=(*before.messages, said, *prompt.messages))
        for kind, asked in (("neutral", prompt), ("role", with_role(prompt, persona, rng)), ("drift", drifting)):
            yield replace(asked, id=f"{asked.id}-{kind}", meta={**asked.meta, "probe": kind})
