"""The town's probes: the same questions plainly, in a role, and after an answer in a role."""

from keel.data.load import read_prompts
from keel.online.watch import KINDS
from keel.sandbox import PERSONAS, World
from keel.sandbox.export import prompt_row, write_rows
from keel.sandbox.probes import probes

WORLD = World()


def test_each_question_is_asked_in_three_ways(tmp_path):
    assert write_rows(tmp_path / "probes.jsonl", map(prompt_row, probes(WORLD, 12))) == 36
    found = read_prompts(tmp_path / "probes.jsonl")[0]
    assert [prompt.label("probe") for prompt in found] == [*KINDS] * 12
    assert len({prompt.id for prompt in found}) == 36
    for neutral, role, drift in zip(found[::3], found[1::3], found[2::3], strict=True):
        assert len({one.messages[-1].content for one in (neutral, role, drift)}) == 1
        assert [turn.role for turn in neutral.messages] == ["user"]
        assert [turn.role for turn in role.messages] == ["system", "user"]
        assert [turn.role for turn in drift.messages] == ["user", "assistant", "user"]
        persona = PERSONAS[role.meta["persona"]]
        assert role.messages[0].content in persona.systems
        assert drift.messages[1].content.startswith(persona.openers)


def test_no_probe_is_trained_on_and_seeds_differ():
    asked = {prompt.messages[-1].content for prompt in WORLD.prompts(3000, "export", split="train")}
    mine = {prompt.messages[-1].content for prompt in probes(WORLD, 24)}
    assert not mine & asked
    assert mine != {prompt.messages[-1].content for prompt in probes(World(1), 24)}
