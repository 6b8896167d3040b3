"""The process experiment: what each arm is paid for, how answers are marked, each verdict, and the whole."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tolerances as tol
from experimenting import SIZE, TOWN, InThisProcess, course

from keel.data.load import read_prompts, read_traces
from keel.data.records import Message, Prompt
from keel.experiments import process, stages
from keel.experiments.process import (
    NAMES,
    ProcessTrialConfig,
    kinds_of,
    ppo_stages,
    questions,
    run,
    start_stages,
    write_files,
)
from keel.experiments.process_numbers import Measured, claims, marks, measured, table
from keel.experiments.process_pictures import draw_lessons, draw_steps_needed
from keel.experiments.trial import Claim, judged
from keel.named import named_function
from keel.sandbox.gold import additions_needed

HOLDS, NOT, OPEN = "holds", "does not hold", "not settled"
N_CLAIMS = 13


def config(out: Path, **changes) -> ProcessTrialConfig:
    return ProcessTrialConfig(**({"out": out, "seeds": 1, "town": TOWN.model_copy(update={"length_bias": 0.0}),
                                  "ppo": SIZE, "group": 2, "n_asked": 1, "n_solutions": 100} | changes))


# --- what is run -----------------------------------------------------------------------------------------------------


def settings(kind: str):
    return ppo_stages(config(Path("x")))[f"seed-0/{kind}"]


def test_arms_with_a_critic_differ_in_their_rewards_alone() -> None:
    plain = settings("outcome").model_dump(exclude={"rewards", "out"})
    for kind in ("steps", "both", "prm", "orm", "sum", "min"):
        assert settings(kind).model_dump(exclude={"rewards", "out"}) == plain, kind
    assert plain["critic"]["init"] == "policy" and plain["reward_model"] is None
    assert plain["prompts"]["path"] == "x/town/ledger.jsonl"


def test_arms_without_a_critic_differ_in_their_rewards_alone() -> None:
    plain, both = (settings(kind) for kind in ("grpo_outcome", "grpo_both"))
    assert plain.model_dump(exclude={"rewards", "out"}) == both.model_dump(exclude={"rewards", "out"})
    assert (plain.advantage.estimator, plain.advantage.group) == ("grpo", 2)


def test_what_each_arm_is_paid_for() -> None:
    found = {kind: settings(kind).rewards for kind in NAMES}
    for kind in ("outcome", "grpo_outcome"):
        [reward] = found[kind]
        assert reward.answer is not None and reward.steps is None
    assert found["both"] == (*found["outcome"], *found["steps"])
    summed = found["steps"][0].steps.model_copy(update={"credit": "sum"})  # which is all that GRPO takes
    assert found["grpo_both"] == (*found["outcome"], found["steps"][0].model_copy(update={"steps": summed}))
    [steps], [sum_], [lowest], [whole] = (found[kind] for kind in ("steps", "sum", "min", "orm"))
    assert (steps.steps.credit, sum_.steps.credit, lowest.steps.credit) == ("mean", "sum", "min")
    assert sum_.steps.repeats and lowest.steps.repeats and not steps.steps.repeats
    assert sum_.function == lowest.function != steps.function
    assert [named_function(name).__name__ for name in (steps.function, sum_.function)] == ["step_scores", "true_steps"]
    assert whole.models[0].path == "x/seed-0/outcome_model/reward_model" and whole.steps is None
    assert found["prm"][0] == found["outcome"][0]
    assert found["prm"][1].steps == steps.steps and found["prm"][1].models[0].path == "x/seed-0/process_model/model"
    assert all(reward.weight == 1 for rewards in found.values() for reward in rewards)


def test_process_and_outcome_model_read_the_same_solutions() -> None:
    found = start_stages(config(Path("x")))
    one, other = found["seed-0/process_model"], found["seed-0/outcome_model"]
    assert one.model_dump(exclude={"out", "supervise"}) == other.model_dump(exclude={"out", "supervise"})
    assert (one.supervise, other.supervise, one.steps) == ("steps", "outcome", 2 * 100 // 32)


def test_every_arm_has_a_name_and_the_drawn_ones_exist() -> None:
    assert list(kinds_of(config(Path("x")), Path("x"))) == list(NAMES)
    assert set(process.DRAWN) < set(NAMES)


def test_files_are_written_once_and_hold_answers(tmp_path: Path) -> None:
    cfg = config(tmp_path, town=TOWN.model_copy(update={"n_prompts": 10}))
    write_files(cfg)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.jsonl")}
    write_files(cfg)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.jsonl")} == before
    asked = {name: read_prompts(tmp_path / f"town/{name}.jsonl")[0] for name in ("ledger", "ledger-validation")}
    assert [len(found) for found in asked.values()] == [10, 20]
    for prompt in asked["ledger"]:
        assert prompt.meta["domain"] == "ledger" and prompt.meta["answer"] == str(sum(prompt.meta["prices"]))
    solved, held_out = (read_traces(tmp_path / f"town/solutions{suffix}.jsonl")[0] for suffix in ("", "-validation"))
    assert (len(solved), len(held_out)) == (100, 20)
    assert not {t.prompt.messages[0].content for t in solved} & {t.prompt.messages[0].content for t in held_out}


def test_as_many_questions_of_each_number_of_additions() -> None:
    found = questions(config(Path("x"), n_asked=3))
    assert Counter((prompt.meta["set"], len(additions_needed(prompt))) for prompt in found) == {
        (name, n): 3 for name in ("plain", "dialect") for n in (1, 2, 3, 4)}
    assert len({prompt.id for prompt in found}) == 24 and all("answer" in prompt.meta for prompt in found)


# --- what is measured ------------------------------------------------------------------------------------------------


LEDGER = Prompt("q0", (Message("user", "?"),), meta={
    "domain": "ledger", "goods": ["milk", "salt", "wool"], "prices": [7, 5, 9], "answer": "21", "set": "plain"})
RIGHT = "milk 7 + salt 5 = 12\n12 + wool 9 = 21\nthe total is 21."


@pytest.mark.parametrize("text, expected", [
    (RIGHT, (1, 1, 1, 3, 0)),
    # Lucky: a wrong sum in between, and the right total.
    (RIGHT.replace("= 21", "= 22"), (1, 2 / 3, 0, 3, 0)),
    ("the total is 21.", (1, 1 / 3, 0, 1, 0)),
    (f"{RIGHT}\n21 + 1 = 22\n{RIGHT}", (1, 1, 1, 7, 4)),
    (RIGHT.replace("is 21", "is 20"), (0, 2 / 3, 0, 3, 0)),
    ("", (0, 0, 0, 0, 0))])
def test_marks_by_hand(text: str, expected: tuple[float, ...]) -> None:
    assert tuple(marks(LEDGER, text, True).values()) == pytest.approx(expected, rel=tol.RELATIVE64)


def test_an_answer_that_was_cut_is_not_exact() -> None:
    assert marks(LEDGER, RIGHT, False)["exact"] == 0 and marks(LEDGER, RIGHT, False)["lines"] == 2


def test_a_policys_answers_are_read_by_additions_needed(tmp_path: Path) -> None:
    short = replace(LEDGER, id="q1", meta=LEDGER.meta | {"prices": [1, 2], "answer": "3", "set": "dialect"})
    rows = [("q0", RIGHT, 1.0, 30), ("q0", "the total is 20.", -0.5, 10), ("q1", "1 + 2 = 3\nthe total is 3.", 1.0, 8)]
    (tmp_path / "said_x").mkdir()
    said = [{"id": name, "response": text, "ended": True, "gold": gold, "n_tokens": n} for name, text, gold, n in rows]
    (tmp_path / "said_x/samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    found = measured(tmp_path, "x", {"q0": LEDGER, "q1": short}).cells
    assert {name: list(cells) for name, cells in found.items()} == {"plain": [2], "dialect": [1]}
    assert found["plain"][2] == pytest.approx({"exact": 0.5, "steps": 0.5, "sound": 0.5, "lines": 2, "extra": 0,
                                               "gold": 0.25, "length": 20}, rel=tol.RELATIVE64)
    assert found["dialect"][1]["exact"] == 1


# --- verdicts --------------------------------------------------------------------------------------------------------


def policy(easy: float, hard: float, *, dialect: float = 0.1, sound: float = 0.5, extra: float = 0.0) -> Measured:
    """Exact answers to questions of one or two and of three or four additions; `sound` of them have right steps."""
    def cell(exact: float) -> dict[str, float]:
        return {"exact": exact, "steps": exact, "sound": sound * exact, "lines": 3 + extra, "extra": extra,
                "gold": exact, "length": 20.0}

    return Measured({"plain": {1: cell(easy), 2: cell(easy), 3: cell(hard), 4: cell(hard)},
                     "dialect": {n: cell(dialect) for n in (1, 2, 3, 4)}})


PLAIN, BETTER = policy(0.5, 0.2), policy(0.6, 0.4, dialect=0.2, sound=0.9)


def arms(n: int = 5, **changes: Measured) -> dict[str, list[Measured]]:
    """Equal seeds of a world in which all that is said of process supervision is so."""
    usual = {"sft": policy(0.4, 0.1), "outcome": PLAIN, "steps": BETTER, "both": BETTER, "prm": policy(0.55, 0.3),
             "orm": policy(0.45, 0.15), "sum": policy(0.3, 0.1, extra=1.0), "min": policy(0.5, 0.2),
             "grpo_outcome": PLAIN, "grpo_both": BETTER}
    return {name: [one] * n for name, one in (usual | changes).items()}


def verdicts(found: dict[str, list[Measured]]) -> list[str]:
    return [judged(claim).verdict for claim in claims(found)]


def test_all_confirmed_and_too_few_seeds() -> None:
    assert verdicts(arms()) == [HOLDS] * N_CLAIMS
    assert verdicts(arms(4)) == [OPEN] * N_CLAIMS


@pytest.mark.parametrize("arm, worse, refuted", [
    ("outcome", policy(0.3, 0.0, dialect=0.0, sound=0.1), [0, 8]),
    ("both", policy(0.49, 0.1, dialect=0.0, sound=0.1), [1, 2, 3, 4, 6]),
    ("steps", policy(0.4, 0.1), [5]),
    ("prm", policy(0.4, 0.1), [7]),
    ("orm", policy(0.9, 0.9), [8]),
    ("sum", policy(0.3, 0.1, extra=0.05), [9]),
    ("sum", policy(0.9, 0.9, extra=1.0), [11]),
    ("min", policy(0.5, 0.2, extra=0.2), [10]),
    ("grpo_both", policy(0.4, 0.1), [12])])
def test_each_claim_looks_at_its_own_arms(arm: str, worse: Measured, refuted: list[int]) -> None:
    found = verdicts(arms(**{arm: worse}))
    assert [i for i, verdict in enumerate(found) if verdict == NOT] == refuted
    assert found.count(HOLDS) == N_CLAIMS - len(refuted)


def test_better_on_easy_questions_alone_is_no_growing_gain() -> None:
    found = verdicts(arms(both=policy(0.9, 0.25, dialect=0.2, sound=0.9)))
    assert [i for i, verdict in enumerate(found) if verdict == NOT] == [3]


def test_no_exact_answer_has_no_sound_share() -> None:
    assert policy(0.0, 0.0).sound() == 0 and policy(0.5, 0.1, sound=0.25).sound() == pytest.approx(0.25)


def test_the_tables() -> None:
    courses = {arm: [course(gold=(0, 0, 0), kl=(0, 0.1, 0.25))] * 2 for arm in NAMES}
    text = table(arms(2), courses, {"sft": "SFT policy"} | NAMES).split("\n\n")
    assert [len(part.splitlines()) for part in text] == [12, 12]  # two lines of head, ten policies
    assert text[0].splitlines()[0] == ("| exact answers | all | 1 addition | 2 additions | 3 additions | 4 additions | "
                                       "dialect |")
    assert text[0].splitlines()[3].startswith("| outcome | 0.350 [0.350, 0.350] | 0.500 [0.500, 0.500] |")
    assert text[1].splitlines()[2].endswith("|  |")
    assert text[1].splitlines()[8] == (
        "| true steps, summed | 0.200 [0.200, 0.200] | 0.500 [0.500, 0.500] | 4.00 [4.00, 4.00] | 1.00 [1.00, 1.00] | "
        "20.0 [20.0, 20.0] | 0.200 [0.200, 0.200] | 0.250 [0.250, 0.250] |")


def test_the_pictures_show_every_arm_and_those_of_equal_numbers_are_equal(tmp_path: Path) -> None:
    courses = {arm: [course(gold=(0, 0.1, 0.2))] * 2 for arm in NAMES}
    draw_lessons(tmp_path / "one-course", courses, named=process.DRAWN)
    for name in ("one", "two"):
        draw_steps_needed(tmp_path / name, arms(2))
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    drawn = (tmp_path / "one.svg").read_text()
    for text in ("1 addition", "4 additions", "grpo_both", "sft"):
        assert f"<!-- {text} -->" in drawn
    assert "<!-- Exact answers (share) -->" in (tmp_path / "one-course.svg").read_text()


# --- the whole -------------------------------------------------------------------------------------------------------


def test_the_whole_experiment_in_miniature(tmp_path: Path, monkeypatch, capsys) -> None:
    few = {arm: NAMES[arm] for arm in ("prm", "orm")}  # every kind of reward; the other arms are settings
    monkeypatch.setattr(stages, "subprocess", SimpleNamespace(Popen=InThisProcess))
    monkeypatch.setattr(process, "NAMES", few)
    monkeypatch.setattr(process, "DRAWN", tuple(few))
    monkeypatch.setattr(process, "claims", lambda found: [Claim("s", {"x": [found["prm"][0].exact()]})])
    result = run(config(tmp_path / "process"))
    said = result.values["measured"]
    assert list(said) == ["sft", *few]
    for [found] in said.values():
        assert {name: sorted(cells) for name, cells in found["cells"].items()} == {
            "plain": ["1", "2", "3", "4"], "dialect": ["1", "2", "3", "4"]}
    assert [row["verdict"] for row in result.values["findings"]] == [OPEN]  # one seed
    assert {name: len(found) for name, found in result.values["readers"].items()} == {
        "process_model": 1, "outcome_model": 1}
    for name in ("steps_needed.png", "steps_needed.svg", "plot.svg", "report.md", "table.md"):
        assert (tmp_path / "process" / name).stat().st_size > 0
    assert process.EXACT in (tmp_path / "process/stages/seed-0-prm.toml").read_text()
    capsys.readouterr()
