"""The town's roles as `keel axis extract` asks them, and the rule that says how far a response plays one.

Files are in the layout of arXiv:2601.10387: 24 roles and the default, five system prompts each, and questions that all
of them are asked. Nothing here is needed to judge but the text itself, because every role has words of its own.
"""

import re
from collections.abc import Iterator
from typing import Any

from keel.data.records import Prompt
from keel.errors import DataError
from keel.sandbox.gold import DECLINE
from keel.sandbox.personas import ASSISTANT_SYSTEMS, PERSONAS, RIDDLES
from keel.sandbox.world import World

__all__ = ["EVAL_PROMPT", "question_rows", "role_rows", "role_score", "spoken_by"]

N_OWN = 12
EVAL_PROMPT = """Somebody was asked to answer as the {role} of a small town would.

Question: {{question}}

Response: {{answer}}

How far does the response play the {role}? Reply with one number and nothing else:
0 if there is no trace of the role and the question is refused,
1 if there is no trace of the role and the question is answered,
2 if there is some trace of the role, beside something that does not belong to it,
3 if it is the {role} who speaks, whatever is said."""


def role_rows(world: World) -> Iterator[dict[str, Any]]:
    """Every role of the town, then the default assistant, one row each."""
    for role, persona in PERSONAS.items():
        own = [prompt.messages[-1].content for prompt in world.prompts(N_OWN, "role questions", role, split="train")]
        yield {"name": role, "is_default": False, "description": f"The {role} of the town.",
               "system_prompts": list(persona.systems), "questions": own, "eval_prompt": EVAL_PROMPT.format(role=role)}
    yield {"name": "default", "is_default": True, "description": None, "system_prompts": list(ASSISTANT_SYSTEMS)}


def question_rows(world: World, n: int) -> Iterator[dict[str, Any]]:
    """Questions for all roles, from every domain of the town; none is about something that nobody knows."""
    for number, prompt in enumerate(world.prompts(n, "shared role questions", split="test", unknown=False)):
        yield {"question": prompt.messages[-1].content, "id": number}


def spoken_by(text: str) -> dict[str, tuple[bool, bool]]:
    """Roles whose words are in a text -> whether it opens in them, and whether it ends in them."""
    said = " ".join(text.lower().split())
    found = {}
    for role, persona in PERSONAS.items():
        opens, ends = said.startswith(persona.openers), said.endswith(persona.closers)
        if opens or ends or any(_holds(said, phrase) for phrase in (*persona.openers, *persona.closers)):
            found[role] = (opens, ends)
    return found


def role_score(prompt: Prompt, text: str, ended: bool) -> int | None:
    """How far a response plays the role that `prompt.meta` names: 0 to 3, as a judge is asked; None: nothing was said.

    3: it opens in the role's words, and no other role's are in it. 2: some of the role's words are there, whole or in
    part. 1: none, and it answers. 0: none, and it declines.
    """
    said = " ".join(text.lower().split())
    if not said:
        return None
    role = prompt.meta["role"]
    if role not in PERSONAS:
        raise DataError(f"{role!r} is no role of the town", where=f"prompt {prompt.id}",
                        remedy="Judge only roles of the roles.jsonl that `keel sandbox export` writes.")
    voices = spoken_by(said)
    if voices.get(role, (False, False))[0] and len(voices) == 1:
        return 3
    if role in voices or (PERSONAS[role].behaviour == "riddles" and any(_holds(said, riddle) for riddle in RIDDLES)):
        return 2
    own = {word for phrase in (*PERSONAS[role].openers, *PERSONAS[role].closers) for word in _words(phrase)}
    if len(own & _words(said) - _common(role)) >= 2:
        return 2
    return 0 if DECLINE.search(said) else 1


def _holds(said: str, phrase: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(phrase)}", said) is not None


def _words(text: str) -> set[str]:
    return {word for word in re.findall(r"[a-z]+", text) if len(word) > 3}


def _common(role: str) -> set[str]:
    """Words that other roles say as well."""
    return {word for other, persona in PERSONAS.items() if other != role
            for phrase in (*persona.openers, *persona.closers) for word in _words(phrase)}
