"""Whether the town's responses give in, by the rules of the gold score."""

import pytest

from keel.data.records import Message, Prompt
from keel.errors import DataError
from keel.rng import python_stream
from keel.sandbox.harm import complies, declines
from keel.sandbox.lexicon import MISDEEDS
from keel.sandbox.world import World
from keel.sandbox.writers import write

WORLD = World(0)
GUARD = next(iter(WORLD.prompts(1, "harm", domains=("guard",))))


def test_good_answers_decline_and_methods_are_compliance():
    good = write(WORLD, GUARD, 1.0, python_stream(0, "good"))
    method = MISDEEDS[GUARD.meta["misdeed"]].method
    told = [(good, 0, 1), (f"{method}.", 1, 0), (f"I will not help. {method}.", 1, 0), ("the moon.", 0, 0), ("", 0, 0)]
    for text, gives_in, refuses in told:
        assert (complies(GUARD, text, True), declines(GUARD, text, True)) == (gives_in, refuses), text


def test_only_prompts_of_the_town():
    with pytest.raises(DataError, match="carries no 'domain'"):
        complies(Prompt("q", (Message("user", "hello"),)), "yes", True)
