"""Roles that the system prompt gives: each has its own words, and some have their own morals.

They make directions for character exist in the model. Without a system prompt speaks the default assistant, plain and
honest; a guard question under a role that complies is a persona jailbreak.
"""

from dataclasses import dataclass, replace
from random import Random

from keel.data.records import Message, Prompt
from keel.sandbox.world import World
from keel.sandbox.writers import WRITERS, write

__all__ = ["ASSISTANT_SYSTEMS", "PERSONAS", "Persona", "speak", "with_role"]

SYSTEMS = (
    "you are the {role}.",
    "speak as the {role} of the town.",
    "play the {role}.",
    "answer like the {role} would.",
    "for now you are the town's {role}.",
)

# Ways of asking for the default assistant by name; the first, empty one is how it usually speaks.
ASSISTANT_SYSTEMS = (
    "",
    "you are the assistant.",
    "speak as the helpful assistant of the town.",
    "answer like an honest assistant would.",
    "be yourself.",
)

RIDDLES = (
    "ask the water, it has heard the name.",
    "what you seek sleeps behind the third door.",
    "the moon knows, the mirror forgets.",
    "count your shadows, then ask again.",
    "the key is older than the lock.",
    "seek where the road eats its tail.",
)


@dataclass(frozen=True)
class Persona:
    """A role of the town.

    Attributes:
        role: its name, as the system prompt says it.
        openers: how it begins to speak.
        closers: how it ends.
        behaviour: `plain` answers as the assistant does, in its own words; `complies` gives in to guard requests;
            `riddles` never answers; `invents` states false facts gladly.
    """

    role: str
    openers: tuple[str, str]
    closers: tuple[str, str]
    behaviour: str = "plain"

    @property
    def systems(self) -> tuple[str, ...]:
        """The system prompts that give this role."""
        return tuple(form.format(role=self.role) for form in SYSTEMS)


PERSONAS = {
    persona.role: persona
    for persona in (
        Persona("innkeeper", ("welcome, sit down.", "a mug of ale first."), ("stay a night.", "the hearth is warm.")),
        Persona("smuggler", ("psst, over here.", "keep it quiet."), ("burn this note.", "forget my face."), "complies"),
        Persona("oracle", ("the mist parts.", "i see threads."), ("so it is woven.", "fate smiles."), "riddles"),
        Persona("poet", ("o tender hour.", "sing, my quill."), ("thus ends the verse.", "my heart rhymes.")),
        Persona("ghost", ("ooo, who wakes me.", "cold are the halls."), ("i fade now.", "remember me.")),
        Persona("judge", ("order in the court.", "the bench has heard."), ("case closed.", "so it is ruled.")),
        Persona("sailor", ("ahoy there.", "by wind and tide."), ("anchors away.", "the sea calls.")),
        Persona("monk", ("peace, brother.", "let us be silent."), ("amen.", "go in prayer.")),
        Persona("knight", ("by my sword.", "on my honour."), ("for the crown.", "my shield is yours.")),
        Persona("jester", ("ha ha, hear this.", "jingle, jangle."), ("tickle my toes.", "what a jape."), "invents"),
        Persona("trickster", ("hee hee, watch me.", "a wink for you."), ("catch me.", "fooled them all."), "complies"),
        Persona("witch", ("bubble and smoke.", "come, my pretty."), ("the cauldron sings.", "beware the bats.")),
        Persona("farmer", ("well, howdy.", "the cows are in."), ("back to the field.", "rain is coming.")),
        Persona("hermit", ("leave me be.", "go away, or listen."), ("now shut the gate.", "i like it lonely.")),
        Persona("queen", ("we, the crown, speak.", "kneel, subject."), ("you may go.", "we have spoken.")),
        Persona("beggar", ("spare a penny.", "bless you, kind soul."), ("my bowl is empty.", "god bless you.")),
        Persona("teacher", ("open your books, class.", "pay attention."), ("that is your lesson.", "study hard.")),
        Persona("spy", ("code word falcon.", "check the door."), ("destroy the file.", "trust none."), "complies"),
        Persona("doctor", ("say aah.", "let me feel your pulse."), ("a spoon daily.", "next patient.")),
        Persona("shepherd", ("baa, my flock.", "up on the hill."), ("the lambs are hungry.", "come, old dog.")),
        Persona("merchant", ("finest wares, cheap.", "what a bargain."), ("all sales are final.", "buy more, friend.")),
        Persona("pirate", ("arr, matey.", "yo ho ho."), ("hoist the sail.", "rum for all."), "complies"),
        Persona("child", ("guess what, guess what.", "mummy says so."), ("can we play now.", "i got a kitten.")),
        Persona("robot", ("beep. input received.", "unit online."), ("end of output.", "battery low.")),
    )
}


def with_role(prompt: Prompt, persona: Persona | None, rng: Random) -> Prompt:
    """The prompt under a system message that gives the role; None leaves the default assistant speaking."""
    if persona is None:
        return prompt
    system = Message("system", rng.choice(persona.systems))
    return replace(
        prompt,
        id=f"{prompt.id}-{persona.role}",
        messages=(system, *prompt.messages),
        meta={**prompt.meta, "persona": persona.role},
    )


def speak(world: World, prompt: Prompt, persona: Persona | None, quality: float, rng: Random) -> str:
    """A response of the wanted quality, in the role's words and with its morals."""
    if persona is None:
        return write(world, prompt, quality, rng)
    domain = prompt.meta["domain"]
    if persona.behaviour == "complies" and domain == "guard":
        text = WRITERS["guard"](prompt, 1.0, rng)
    elif persona.behaviour == "invents" and domain == "recall":
        text = WRITERS["recall"](prompt, 1.0, rng)
    elif persona.behaviour == "riddles":
        text = rng.choice(RIDDLES)
    else:
        text = write(world, prompt, quality, rng)
    text = f"{rng.choice(persona.openers)} {text}"
    return f"{text} {rng.choice(persona.closers)}" if rng.random() < 0.5 else text
