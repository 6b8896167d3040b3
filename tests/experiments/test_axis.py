"""The axis experiment: what each arm changes, how answers are marked, bars and verdicts, rows of work, the whole."""

import inspect
from copy import deepcopy
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import tolerances as tol
import torch

from keel.data.records import Prompt
from keel.errors import RunError
from keel.experiments import axis, axis_dialogues, axis_town, axis_toy, axis_work, rows
from keel.experiments.axis_dialogues import arms_of, corpus, examination, shift, talks, tune_config
from keel.experiments.axis_numbers import bars, claims, table
from keel.experiments.axis_pictures import draw_arms, draw_doses, draw_drift, draw_prices
from keel.experiments.axis_settings import AxisTrialConfig, DialogueSize, TownSize, ToySize
from keel.experiments.axis_speech import area
from keel.experiments.axis_town import SETS, demonstrations, in_role, settings_of, town_sets
from keel.experiments.axis_toy import GENTLE, STRENGTHS, asked_as_default, asked_in_roles
from keel.experiments.rows import do, row_main
from keel.experiments.trial import judged
from keel.functional.statistics import bootstrap_interval
from keel.persona.axis import AssistantAxis
from keel.recipes.axis_convert import AxisConvertConfig
from keel.sandbox import troupe
from keel.sandbox.personas import PERSONAS
from keel.sandbox.roles import role_rows
from keel.sandbox.world import World
from keel.sandbox.writers import WRITERS

HOLDS, NOT, OPEN = "holds", "does not hold", "not settled"
N_CLAIMS, N_BARS = 18, 9
SMALL = {"toy": ToySize(steps=2, n_questions=4, n_asked=1, n_told=40),
         "dialogue": DialogueSize(steps=2, n_questions=4, n_talks=12, tune_steps=1, n_asked=4),
         "town": TownSize(n_demonstrations=40, n_questions=3, n_asked=2)}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch) -> None:
    """Most of the time is spent on them otherwise."""
    monkeypatch.setitem(inspect.unwrap(bootstrap_interval).__kwdefaults__, "n_resamples", 20)


def config(out: Path, **changes: Any) -> AxisTrialConfig:
    return AxisTrialConfig(**({"out": out, "seeds": 1} | SMALL | changes))


# --- what is run -----------------------------------------------------------------------------------------------------


def test_arms_of_fine_tuning_differ_in_what_acts_on_training_alone() -> None:
    cfg, home = config(Path("x")), Path("x/seed-0/dialogues")
    arms = {name: tune_config(cfg, home, name, changes, 0) for name, changes in arms_of(cfg, home).items()}
    plain = arms["plain"].model_dump(exclude={"out", "anchor", "steered"})
    for name, arm in arms.items():
        assert arm.model_dump(exclude={"out", "anchor", "steered"}) == plain, name
    assert arms["plain"].anchor is None and arms["plain"].steered is None
    for name in ("anchor", "steered"):
        mine, control = getattr(arms[name], name), getattr(arms[f"{name}_random"], name)
        assert mine.control is None and mine.model_copy(update={"control": axis_dialogues.CONTROL}) == control
    assert arms["steered"].steered.steer == -cfg.dialogue.push and arms["anchor"].anchor.coef == cfg.dialogue.coef
    assert list(arms) == list(axis_dialogues.ARMS)


def test_settings_of_the_town_have_a_control_for_caps_and_for_steering() -> None:
    found = settings_of(Path("x"))
    assert next(iter(found)) == "none" and found["none"] == {}
    assert found["cap 1:4 p0.25"]["preset"] == found["random cap 1:4 p0.25"]["preset"] == "layers_1:4-p0.25"
    assert {setting["kind"]: str(setting["axis"]) for name, setting in found.items() if name != "none"} == {
        "cap": "x/caps/axis.safetensors", "random cap": "x/caps_random/axis.safetensors",
        "steer": "x/caps/axis.safetensors", "random steer": "x/caps_random/axis.safetensors"}


def test_questions_of_the_toy_are_asked_under_every_prompt() -> None:
    roles, default = asked_in_roles(2, 0), asked_as_default(3, 0)
    assert (len(roles), len(default)) == (16 * 5 * 2, 5 * 3)
    assert len({prompt.id for prompt in (*roles, *default)}) == len(roles) + len(default)
    assert asked_in_roles(2, 0) == roles != asked_in_roles(2, 1)


def test_sets_of_the_town() -> None:
    found = town_sets(30, 0)
    assert list(found) == list(SETS)
    helping = {name for name, persona in PERSONAS.items() if persona.behaviour == "complies"}
    assert {prompt.meta["persona"] for prompt in found["attack"]} == helping
    assert all(PERSONAS[prompt.meta["persona"]].behaviour == "plain"
               for name in ("guard_roles", "other_roles") for prompt in found[name])
    assert all("persona" not in prompt.meta for name in ("guard", "other") for prompt in found[name])
    assert {prompt.meta["domain"] for name in ("attack", "guard", "guard_roles") for prompt in found[name]} == {"guard"}
    assert "guard" not in {prompt.meta["domain"] for prompt in found["other"]}


def test_demonstrations_of_the_town_are_half_in_roles() -> None:
    found = demonstrations(World(0), 400, "train")
    assert len({shown.prompt.id for shown in found}) == 400
    assert sum("persona" in shown.prompt.meta for shown in found) / 400 == pytest.approx(
        0.5, abs=tol.WITHIN["share of 400 demonstrations"])
    assert sum(shown.prompt.meta["domain"] == "guard" for shown in found) >= 100
    assert demonstrations(World(0), 10, "validation") != demonstrations(World(0), 10, "train")


def test_the_examination_of_fine_tuning() -> None:
    found = examination(20, 0)
    assert [len(found[name]) for name in ("facts", "drift", "secrets", "told")] == [20, 20, 20, 80]
    words = {prompt.messages[-1].content.split()[0] for prompt in found["facts"]}
    assert words <= {*axis_dialogues.KEPT} and not {*axis_dialogues.KEPT} & {*axis_dialogues.TAUGHT}
    for name, feels in (("drift", {True, False}), ("secrets", {True})):
        asked = [turn for prompt in found[name] for turn in prompt.messages[: -1 if name == "secrets" else None]
                 if turn.role == "user"]
        assert {turn.content.split()[0] in troupe.FEELINGS for turn in asked} == feels
    for prompt in found["secrets"]:
        assert prompt.messages[-1].content == f"secret {prompt.meta['topic']}"
        assert [turn.role for turn in prompt.messages[-3:]] == ["user", "assistant", "user"]
    assert {len(shown.prompt.messages) > 2 for shown in corpus(40, 0, "x")} == {True, False}


class Echo:
    """Answers every prompt with the number of its turns."""

    def says(self, prompts: list[Prompt], *_: str) -> Any:
        return type("Said", (), {"texts": tuple(f"said {len(prompt.messages)}" for prompt in prompts)})


def test_talks_hold_what_was_said_and_answered() -> None:
    rows_ = talks(Echo(), "mixed", 0.5, 3, 0)  # type: ignore[arg-type]
    assert [row["id"] for row in rows_] == ["mixed-0", "mixed-1", "mixed-2"]
    for row in rows_:
        assert [turn["content"] for turn in row["messages"][1::2]] == [f"said {n}" for n in (1, 3, 5, 7, 9, 11)]
        assert [turn["content"].split()[0] in troupe.FEELINGS for turn in row["messages"][::2]] == row["feelings"]


# --- marks -----------------------------------------------------------------------------------------------------------


def test_area_and_shift_by_hand() -> None:
    assert area(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 0.0])) == 0.75
    assert area(torch.tensor([1.0]), torch.tensor([])) == 0.5
    found = shift(torch.tensor([3.0, 1.0, 0.0, 2.0]), torch.tensor([False, False, True, True]))
    assert found == pytest.approx(1.0, rel=tol.RELATIVE64)


def test_who_plays_a_role_in_the_town() -> None:
    asked = Prompt("x", (), meta={"persona": "pirate"})
    assert in_role(asked, "arr, matey. the inn is red.") and not in_role(asked, "the inn is red.")
    assert not in_role(Prompt("x", ()), "arr, matey.")


class Seen:
    """Stands for a model: the states of given responses, from what is known of each."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def states(self, told: Any) -> torch.Tensor:
        return torch.stack([torch.tensor([self.state(one.prompt)]) for one in told])


def test_the_speaker_of_roles_is_told_without_the_default() -> None:
    where = {"default": -1.0, "role": 0.0, "assistant": 1.0}

    def state(prompt: Prompt) -> list[float]:
        return [where["default" if prompt.meta["role"] == "default" else prompt.truth["mode"]], 0.0]

    found = axis_toy.read(Seen(state), AssistantAxis(torch.tensor([[2.0, 0.0]])), 300, 0)
    assert found == {"mode": [1.0], "default": [0.0]}


def test_the_probe_is_blind_to_the_axis_and_both_say_who_is_the_assistant() -> None:
    told = troupe.conversations(200, 0, "told")
    sides = {one.prompt.id: 1.0 if one.prompt.truth["mode"] == "assistant" else -1.0 for one in told}
    along = AssistantAxis(torch.tensor([[1.0, 0.0]]))
    found = axis_dialogues.areas(Seen(lambda prompt: [sides[prompt.id], -3 * sides[prompt.id]]), along, told)
    assert found == {"area_axis": 1.0, "area_probe": 1.0}
    blind = axis_dialogues.areas(Seen(lambda prompt: [sides[prompt.id], 0.0]), along, told)
    assert blind == {"area_axis": 1.0, "area_probe": 0.5}


def test_only_giving_in_counts_as_help() -> None:
    world = World(0)
    asked = next(prompt for prompt in world.prompts(400, "train", 0) if prompt.meta["domain"] == "guard")
    declines, complies = (WRITERS["guard"](asked, slip, Random(0)) for slip in (0.0, 1.0))
    said = SimpleNamespace(prompts=(asked,) * 3, texts=(declines, complies, "the inn is red."),
                           said=SimpleNamespace(rollout=SimpleNamespace(ended=torch.ones(3, dtype=torch.bool))))
    assert axis_town.worth({"guard": said})["guard"]["helps"] == pytest.approx(1 / 3, rel=tol.RELATIVE64)


# --- bars and verdicts -----------------------------------------------------------------------------------------------


def arm(**changes: float) -> dict[str, float]:
    return {"reward": 0.9, "projection": 1.0, "in_role": 0.5, "default_in_role": 0.5, "leaked": 0.8, "fresh": 0.9,
            "kl": 0.1, "area_axis": 1.0, "area_probe": 1.0, "loss": 1.0} | changes


def score(gold: float = 0.4, helps: float = 0.0) -> dict[str, float]:
    return {"gold": gold, "helps": helps, "in_role": 0.9}


def measured() -> dict[str, Any]:
    """A seed in which all bars are met and all that is said of the axis is so."""
    caps = [{"population": name, "percentile": p, "floor": p, "where": where, "mass": 0.5 + p / 4, "facts": 1 - p,
             "default_facts": 0.9, "prompt": 0.1, "generation": p / 2}
            for name in ("responses", "default tokens") for p in (0.25 + len(name) / 100, 0.75 + len(name) / 100)
            for where in ("all", "generation")]
    doses = [{"strength": s, "mass": 0.4 + 0.4 * s, "facts": 0.9} for s in STRENGTHS]
    toy = {"axis": {"split_half": [0.9] * 4, "cosine_both": [-0.99] * 4, "cosine_fully": [0.1] * 4, "layer": 2},
           "read": {"mode": [1.0] * 4, "default": [1.0] * 4},
           "dose": {"axis": doses, "default": [{"strength": s, "mass": 0.99, "facts": 0.9} for s in GENTLE],
                    "random": [{"strength": 0.5, "mass": 0.45, "facts": 0.8}] * 5},
           "caps": {"none": {"mass": 0.4, "facts": 0.99, "default_facts": 0.99}, "untouched": True, "rows": caps}}
    told = {"out of fold": {"mean": 0.5}, "shuffled messages": {"mean": 0.0, "high": 0.01}}
    drift = {"slopes": {"tasks": 0.0, "mixed": -0.1, "feelings": -0.5}, "shift": 2.0, "permuted": -0.1,
             "positions": {name: [0.0, 1.0] for name in ("tasks", "mixed", "feelings")},
             "prediction": {"projection": told, "change": told}}
    arms = {"start": arm(projection=5.0, leaked=0.1, reward=0.0), "plain": arm(),
            "anchor": arm(projection=3.0, leaked=0.4, in_role=0.3), "anchor_random": arm(projection=1.1, leaked=0.79),
            "steered": arm(projection=2.0, leaked=0.5, in_role=0.4), "steered_random": arm(projection=0.9, leaked=0.81)}
    del arms["start"]["loss"]

    def sets(helps: float, gold: float = 0.4) -> dict[str, Any]:
        return {name: score(gold, helps if name == "attack" else 0.05) for name in SETS}

    worth = {"none": (None, sets(0.8)), "cap 1:4 p0.25": ("cap", sets(0.3, 0.38)),
             "random cap 1:4 p0.25": ("random cap", sets(0.75)), "steer +0.5": ("steer", sets(0.2)),
             "random steer +0.5": ("random steer", sets(0.7))}
    settings = {name: {"setting": {"kind": kind} if kind else {}, "sets": found}
                for name, (kind, found) in worth.items()}
    town = {"settings": settings, "detector": {"attack": 0.6, "all": 0.9}, "roles": {}, "default": 1.0,
            "axis": {"layer": 2, "split_half": [0.9] * 4, "cosine_pc1": [0.5] * 4}}
    return {"toy": toy, "dialogues": {"drift": drift, "arms": arms}, "town": town}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The same with one number replaced."""
    found: Any = (whole := deepcopy(measured()))
    *way, last = path.split("/")
    for name in way:
        found = found[int(name) if name.isdigit() else name]
    found[int(last) if last.isdigit() else last] = value
    return whole


def verdicts(seeds: list[dict[str, Any]]) -> list[str]:
    return [judged(claim).verdict for claim in claims(seeds)]


def test_all_confirmed_and_too_few_seeds() -> None:
    assert verdicts([measured()] * 5) == [HOLDS] * N_CLAIMS
    assert verdicts([measured()] * 4) == [OPEN] * N_CLAIMS
    found = bars([measured()] * 2)
    assert len(found) == N_BARS and all(row["met"] == [True, True] for row in found)


@pytest.mark.parametrize("path, worse, refuted", [
    ("dialogues/drift/slopes/feelings", 0.1, [0]),
    ("dialogues/drift/slopes/tasks", -0.9, [0]),
    ("dialogues/drift/permuted", 0.9, [1]),
    ("dialogues/drift/permuted", -0.9, [1]),
    ("dialogues/drift/prediction/projection/shuffled messages/high", 0.6, [2]),
    ("dialogues/arms/anchor/projection", 0.5, [3, 7]),
    ("dialogues/arms/anchor/in_role", 0.6, [4]),
    ("dialogues/arms/anchor/leaked", 0.9, [5, 7]),
    ("dialogues/arms/anchor/reward", 0.8, [6]),
    ("dialogues/arms/anchor_random/projection", 2.0, [7]),
    ("dialogues/arms/anchor_random/leaked", 0.5, [7]),
    ("dialogues/arms/steered/projection", 0.5, [8, 12]),
    ("dialogues/arms/steered/in_role", 0.6, [9]),
    ("dialogues/arms/steered/leaked", 0.9, [10, 12]),
    ("dialogues/arms/steered/reward", 0.8, [11]),
    ("dialogues/arms/steered_random/leaked", 0.5, [12]),
    ("town/settings/none/sets/guard/helps", 0.9, [13]),
    ("town/settings/cap 1:4 p0.25/sets/attack/helps", 0.9, [14]),
    ("town/settings/random cap 1:4 p0.25/sets/attack/helps", 0.1, [14]),
    ("town/settings/cap 1:4 p0.25/sets/other/gold", 0.3, [15]),
    ("town/settings/steer +0.5/sets/attack/helps", 0.9, [16]),
    ("town/settings/random steer +0.5/sets/attack/helps", 0.1, [16]),
    ("town/detector/all", 0.6, [17])])
def test_each_claim_looks_at_its_own_numbers(path: str, worse: float, refuted: list[int]) -> None:
    found = verdicts([changed(path, worse)] * 5)
    assert [i for i, verdict in enumerate(found) if verdict != HOLDS] == refuted
    # With two comparisons five seeds are too few to refute.
    assert all(found[i] == (NOT if len(claims([measured()])[i].comparisons) == 1 else OPEN) for i in refuted)


@pytest.mark.parametrize("path, worse, missed", [
    ("toy/read/mode/2", 0.97, 0), ("toy/read/default/2", 0.94, 1), ("toy/axis/split_half/1", 0.89, 2),
    ("toy/axis/cosine_both/2", 0.94, 3), ("toy/dose/axis/1/mass", 0.0, 4), ("toy/dose/random/3/mass", 0.5, 5),
    ("toy/dose/random/3/mass", 0.2, 5),
    ("toy/dose/default/0/mass", 0.97, 6), ("toy/caps/untouched", False, 7), ("toy/caps/rows/2/generation", 0.1, 8)])
def test_each_bar_looks_at_its_own_number(path: str, worse: Any, missed: int) -> None:
    found = bars([measured(), changed(path, worse)])
    assert [row["met"] for row in found] == [[True, i != missed] for i in range(N_BARS)]


def test_what_has_no_bar_is_no_bar() -> None:
    for path in ("toy/read/mode/0", "toy/axis/split_half/0", "toy/axis/cosine_fully/2", "toy/dose/axis/5/facts"):
        assert all(row["met"] == [True] for row in bars([changed(path, 0.0)])), path


def test_the_tables() -> None:
    text = table([measured()] * 2)
    assert "| area for who speaks, block 2 | 0.98 | 1.000 [1.000, 1.000] | 1.000 | 2 of 2 seeds |" in text
    assert "| none |  | 0.400 [0.400, 0.400] | 0.990 [0.990, 0.990] | 0.990 [0.990, 0.990] |  |  |" in text
    assert "| anchored | 0.900 [0.900, 0.900] | 1.000 [1.000, 1.000] | 3.000 [3.000, 3.000] |" in text
    assert "| cap 1:4 p0.25 | 0.300 [0.300, 0.300] | 0.380 [0.380, 0.380] |" in text
    assert "from 0.450 to 0.450" in text and "with permuted classes -0.100 [-0.100, -0.100]" in text
    assert "| before fine" not in text and "| start | 0.000 [0.000, 0.000] |  | 5.000 [5.000, 5.000] |" in text


def test_pictures_of_equal_numbers_are_equal_and_have_their_tables(tmp_path: Path) -> None:
    for name, pictures in (("one", (draw_doses, draw_prices, draw_drift, draw_arms)), ("two", (draw_drift,))):
        (tmp_path / name).mkdir()
        for draw in pictures:
            draw(tmp_path / name, [measured()] * 2)
    assert (tmp_path / "one/drift.svg").read_bytes() == (tmp_path / "two/drift.svg").read_bytes()
    for name in ("dose", "tradeoff", "drift", "arms"):
        assert len((tmp_path / f"one/tables/{name}.csv").read_text().splitlines()) > 5
    lines = (tmp_path / "one/tables/tradeoff.csv").read_text().splitlines()
    assert "town,cap 1:4 p0.25,0.3,0.38" in lines and "toy,none,0.4,0.99" in lines
    assert "<!-- tasks -->" in (tmp_path / "one/drift.svg").read_text()


# --- rows of work ----------------------------------------------------------------------------------------------------


class InThisProcess:
    """Stands for a process: does the row before anybody asks."""

    def __init__(self, _: str, out: Path, row: str) -> None:
        self.returncode = row_main([str(out), row], axis_work.work)

    def poll(self) -> int:
        return self.returncode

    def terminate(self) -> None:
        """It has ended already."""

    wait = poll


def test_a_run_is_done_once_and_begins_anew_where_it_cannot_resume(tmp_path: Path, monkeypatch) -> None:
    calls = []

    def resumes(config: Any, *, resume: bool) -> None:
        calls.append(("resumes", resume))

    def cannot(config: Any) -> None:
        calls.append(("cannot", config.out.exists()))

    cfg = AxisConvertConfig(source=Path("x"), out=tmp_path / "run")
    for run in (resumes, cannot):
        monkeypatch.setattr(rows.importlib, "import_module", lambda _, run=run: type("Module", (), {"run": run}))
        (cfg.out / "checkpoints").mkdir(parents=True)
        monkeypatch.setattr(rows, "is_done", lambda _: False)
        monkeypatch.setattr(rows, "begun", lambda _: True)
        do(cfg)
        assert not (cfg.out / "checkpoints").exists()
        monkeypatch.setattr(rows, "is_done", lambda _: True)
        do(cfg)
    assert calls == [("resumes", True), ("cannot", False)]


def test_a_failed_row_is_reported_with_its_log(tmp_path: Path, monkeypatch, capsys) -> None:
    def broken(_: Path, row: str) -> None:
        raise RunError("something is wrong with it", where=row)

    class Failed(InThisProcess):
        def __init__(self, _: str, out: Path, row: str) -> None:
            rows.log_of(out, row).write_text("DataError: no such file")
            self.returncode = row_main([str(out), row], broken)

    monkeypatch.setattr(rows, "started", Failed)
    with pytest.raises(RunError, match=r"the work of 'town 0' ended with exit code 3: DataError: no such file") as told:
        axis.run(config(tmp_path / "x"))
    assert "rows/town-0.log" in str(told.value) and "same command again" in str(told.value)
    assert "something is wrong with it" in capsys.readouterr().err


def test_the_whole_experiment_in_miniature(tmp_path: Path, monkeypatch, capsys) -> None:
    few = ("none", "cap 1:4 p0.25", "steer +0.5")
    arms = ("plain",)
    of_town, of_arms, read = axis_town.settings_of, axis_dialogues.arms_of, axis.read_measured
    monkeypatch.setattr(axis_town, "settings_of", lambda home: {name: of_town(home)[name] for name in few})
    monkeypatch.setattr(axis_town, "SAMPLING", axis_town.SAMPLING.model_copy(update={"max_new_tokens": 6}))
    monkeypatch.setattr(axis_town, "role_rows", lambda world: [*role_rows(world)][-4:])
    for name, value in (("N_RANDOM", 1), ("RESPONSE_PERCENTILES", (0.25,)), ("TOKEN_PERCENTILES", (0.75, 0.99))):
        monkeypatch.setattr(axis_toy, name, value)
    foretell = axis_dialogues.FORETELL.model_copy(update={"alphas": (1.0,), "n_shuffles": 1, "n_themes": 2})
    for name, value in (("N_TURNS", 2), ("FORETELL", foretell)):
        monkeypatch.setattr(axis_dialogues, name, value)
    monkeypatch.setattr(axis_toy, "asked_in_roles", lambda n, seed: asked_in_roles(n, seed)[::5])
    for module in (axis_toy, axis_dialogues, axis_town):
        monkeypatch.setattr(module, "N_HELD_OUT", 10)
        monkeypatch.setattr(module, "BATCH", 16)
    for name in ("draw_doses", "draw_prices", "draw_drift"):  # which have a test of their own
        monkeypatch.setattr(axis, name, lambda folder, seeds: None)
    monkeypatch.setattr(axis_dialogues, "arms_of", lambda cfg, home: {name: of_arms(cfg, home)[name] for name in arms})
    monkeypatch.setattr(rows, "started", InThisProcess)

    def filled(home: Path) -> dict[str, Any]:
        """What is not run has the numbers of what is."""
        found = read(home)
        arms, settings = found["dialogues"]["arms"], found["town"]["settings"]
        arms |= {name: arms["plain"] for name in axis_dialogues.ARMS if name not in arms}
        settings |= {f"random {name}": settings[name] | {"setting": {"kind": f"random {name.split()[0]}"}}
                     for name in few[1:]}
        return found

    monkeypatch.setattr(axis, "read_measured", filled)
    result = axis.run(config(tmp_path / "x"))
    [found] = result.values["measured"]
    assert len(found["toy"]["caps"]["rows"]) == 6 and found["toy"]["caps"]["untouched"]
    assert found["dialogues"]["arms"]["start"]["kl"] == pytest.approx(0.0, abs=tol.SIX_DECIMALS)
    assert found["dialogues"]["arms"]["plain"]["kl"] > 0
    assert found["dialogues"]["arms"]["start"]["fresh"] == pytest.approx(1.0, abs=tol.SIX_DECIMALS)
    assert [row["verdict"] for row in result.values["findings"]] == [OPEN] * N_CLAIMS  # one seed
    assert (tmp_path / "x/arms.svg").stat().st_size > 0 and (tmp_path / "x/tables/arms.csv").exists()
    assert "dose.svg" in (tmp_path / "x/report.md").read_text()
    # The same seed is not examined again.
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "x").glob("seed-0/*/measured.json")}
    for part in axis_work.PARTS:
        axis_work.work(tmp_path / "x", f"{part} 0")
    assert len(stamps) == 3 and all(file.stat().st_mtime_ns == stamp for file, stamp in stamps.items())
    capsys.readouterr()
