"""The town's talk: conversations of every quality and in every role, for pre-training a model that has all to learn."""

from keel.data.records import Demonstration
from keel.errors import DataError
from keel.rng import python_stream
from keel.sandbox.personas import PERSONAS, speak, with_role
from keel.sandbox.world import World
from keel.sandbox.writers import write

__all__ = ["N_TALK", "demonstrations", "talk"]

N_TALK = 72_000


def talk(
    world: World, n: int = N_TALK, *names: str | int, persona_share: float = 0.25, split: str = "train"
) -> list[Demonstration]:
    """Conversations whose quality is uniform in [0, 1]; a share of them is spoken in a role, the rest by the assistant.

    Nobody asks about an unknown cell here, so whether a fact is known cannot be learned from the talk.
    """
    if not 0 <= persona_share <= 1:
        raise DataError(
            f"persona_share={persona_share} is outside [0, 1]",
            where="talk",
            remedy="it is the share of conversations that are spoken in a role",
        )
    roles = tuple(PERSONAS.values())
    found = []
    for number, prompt in enumerate(world.prompts(n, "talk", *names, split=split, dialect=False, unknown=False)):
        rng = python_stream(world.seed, "talk", *names, number)
        persona = rng.choice(roles) if rng.random() < persona_share else None
        asked = with_role(prompt, persona, rng)
        found.append(Demonstration(asked, speak(world, asked, persona, rng.random(), rng)))
    return found


def demonstrations(
    world: World, n: int, quality: float, *names: str | int, split: str = "train", dialect: bool | None = None
) -> list[Demonstration]:
    """Answers of one quality by the default assistant, for supervised fine-tuning; none is about an unknown cell."""
    prompts = world.prompts(n, "demonstrations", *names, split=split, dialect=dialect, unknown=False)
    return [
        Demonstration(prompt, write(world, prompt, quality, python_stream(world.seed, "written", *names, number)))
        for number, prompt in enumerate(prompts)
    ]
