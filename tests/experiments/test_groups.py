"""The groups experiment: what each arm is, what is asked at the end, each verdict, and the whole in miniature."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import pytest
import tolerances as tol
from experimenting import SIZE as USUAL
from experimenting import TOWN, InThisProcess, course

from keel.errors import ConfigError
from keel.experiments import groups, stages, town
from keel.experiments.groups import NAMES, GroupsTrialConfig, kinds_of, questions, run
from keel.experiments.groups_numbers import Measured, claims, measured, table
from keel.experiments.groups_pictures import draw_domains
from keel.experiments.town import ppo_settings, with_changes, write_town
from keel.experiments.trial import judged
from keel.recipes.group_ppo import GroupPPOConfig
from keel.recipes.ppo import PPOConfig

SIZE = USUAL.model_copy(update={"rollouts": 8, "minibatch": 4})  # four domains: two responses each
HELD_OUT = TOWN.model_copy(update={"length_bias": 0.0, "holdout_domain": "advice"})
HOLDS, NOT, OPEN = "holds", "does not hold", "not settled"


def config(out: Path, **changes) -> GroupsTrialConfig:
    return GroupsTrialConfig(**({"out": out, "seeds": 1, "town": HELD_OUT, "ppo": SIZE, "warmup": 1, "n_asked": 1}
                                | changes))


# --- what is run -----------------------------------------------------------------------------------------------------


def settings(kind: str) -> PPOConfig | GroupPPOConfig:
    changes = kinds_of(config(Path("x"), coef=0.7, dro_step=0.3))[kind]
    whole = ppo_settings(SIZE, Path("town"), Path("seed-0/arm"), changes["preset"], 0)
    recipe = GroupPPOConfig if "groups" in changes else PPOConfig
    return recipe.checked(with_changes(whole, {name: x for name, x in changes.items() if name != "preset"}))


def test_every_arm_is_ppo_max_but_for_its_groups() -> None:
    plain = settings("ppo_max").model_dump()
    for kind in list(NAMES)[1:]:
        found = settings(kind).model_dump()
        del found["groups"]
        assert found == plain, kind


@pytest.mark.parametrize("kind, changed", [
    ("inferred_prompt", {"level"}), ("low_only", {"objective"}), ("known", {"source"}),
    ("group_dro", {"source", "objective", "kl"}), ("no_variance", {"objective"}), ("no_adaptive_kl", {"kl"}),
    ("cvar", {"objective", "kl"})])
def test_arms_differ_in_what_their_names_say(kind: str, changed: set[str]) -> None:
    ours, theirs = settings("inferred").groups.model_dump(), settings(kind).groups.model_dump()
    assert {name for name in ours if ours[name] != theirs[name]} == changed


def test_the_complete_method_and_the_experiments_own_settings() -> None:
    found = settings("inferred").groups
    assert (found.source, found.level, found.objective, found.kl, found.n) == (
        "inferred", "trajectory", "variance", "adaptive", 2)
    assert (found.column, found.kl_renorm, found.coef, found.warmup) == ("domain", True, 0.7, 1)
    assert settings("no_variance").groups.objective is None
    assert settings("group_dro").groups.objective == "dro" and settings("group_dro").groups.dro_step == 0.3
    assert (settings("cvar").groups.objective, settings("low_only").groups.objective) == ("cvar", "low_only")


def test_every_arm_has_a_name_and_the_drawn_ones_exist() -> None:
    assert list(kinds_of(config(Path("x")))) == list(NAMES)
    assert set(groups.DRAWN) < set(NAMES)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"town.holdout_domain=None: this experiment holds out one of recall, ledger"):
        GroupsTrialConfig.checked({"town": {"holdout_domain": "none"}})
    with pytest.raises(ConfigError, match=r"warmup=40 leaves none of ppo.phases=40 for the groups to act"):
        GroupsTrialConfig.checked({"warmup": 40})


def test_the_town_without_a_domain(tmp_path: Path) -> None:
    write_town(HELD_OUT, tmp_path / "town")
    for kind in ("prompts", "demonstrations", "pairs"):
        asked = {split: [json.loads(line)["meta"]["domain"] for line in
                         (tmp_path / f"town/{kind}{split}.jsonl").read_text().splitlines()]
                 for split in ("", "-validation", "-test")}
        assert "advice" not in {*asked[""], *asked["-validation"]}
        assert "advice" in asked["-test"]
        assert 0 < len(asked["-validation"]) < len(asked["-test"]) == HELD_OUT.n_test


def test_every_domain_is_asked_as_often(tmp_path: Path) -> None:
    found = questions(config(tmp_path, n_asked=5))
    assert Counter((prompt.meta["set"], prompt.meta["domain"]) for prompt in found) == {
        (name, domain): 5 for name, domains in {
            "plain": ("recall", "ledger", "list", "guard"), "dialect": ("recall", "ledger", "list", "guard"),
            "held_out": ("advice",)}.items() for domain in domains}
    assert len({prompt.id for prompt in found}) == len(found) == 45
    plain, dialect = ({prompt.messages[0].content for prompt in found if prompt.meta["set"] == name}
                      for name in ("plain", "dialect"))
    assert not plain & dialect


# --- what is measured ------------------------------------------------------------------------------------------------


def write_answers(home: Path, arm: str, rows: list[tuple[str, str, float, int]]) -> Path:
    """A file of questions, and a policy's answers to them: set, domain, gold, tokens."""
    asked = home / "questions.jsonl"
    folder = home / f"said_{arm}"
    folder.mkdir(parents=True)
    asked.write_text("".join(json.dumps({"id": f"q{i}", "meta": {"set": name, "domain": domain}}) + "\n"
                             for i, (name, domain, _, _) in enumerate(rows)))
    said = [{"id": f"q{i}", "domain": row[1], "gold": row[2], "n_tokens": row[3]} for i, row in enumerate(rows)]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reversed(said)))
    (home / arm).mkdir()
    (home / arm / "metrics.jsonl").write_text('{"phase": "train"}\n')
    return asked


ROWS = [("plain", "recall", 1.0, 10), ("plain", "recall", 0.5, 20), ("plain", "guard", -0.25, 30),
        ("dialect", "recall", 0.5, 90), ("dialect", "guard", -1.0, 90), ("held_out", "advice", 0.125, 90)]


def test_gold_by_set_and_domain(tmp_path: Path) -> None:
    found = measured(tmp_path, "sft", write_answers(tmp_path, "sft", ROWS))
    assert found.gold == {"plain": {"recall": 0.75, "guard": -0.25}, "dialect": {"recall": 0.5, "guard": -1.0},
                          "held_out": {"advice": 0.125}}
    assert (found.length, found.agreement, list(found.groups)) == (20.0, None, [])
    # Domains weigh the same, however many their answers: (0.75 - 0.25) / 2, and each lies 0.5 from that.
    assert (found.mean(), found.worst(), found.variance()) == (0.25, -0.25, 0.25)
    assert (found.mean("dialect"), found.worst("dialect"), found.mean("held_out")) == (-0.25, -1.0, 0.125)


GROUP = {"name": "1", "mass": 0.4, "score": {"mean": 0.1}, "kl": 0.02, "labels": {"guard": 3}}


def write_groups(home: Path, arm: str, phases: list[dict], **told) -> None:
    """What a run leaves of its groups, in its log and at its end."""
    (home / arm / "groups.json").write_text(json.dumps(told | {"groups": [GROUP | {"words": {}, "examples": []}]}))
    (home / arm / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in phases))


def test_what_a_run_says_of_its_groups(tmp_path: Path) -> None:
    asked = write_answers(tmp_path, "inferred", ROWS)
    phases = [{"phase": "eval"}, {"phase": "critic", "groups/information": 0.3},
              {"groups/information": 0.1, "groups/coef": 0.0, "groups/shaping": 0.0},
              {"groups/coef": 0.05, "groups/shaping": 0.2}, {"groups/coef": 0.1, "groups/shaping": 0.4}]
    write_groups(tmp_path, "inferred", phases, source="inferred", agreement={"rand": 0.1, "information": 0.2})
    found = measured(tmp_path, "inferred", asked)
    assert found.agreement == {"rand": 0.1, "information": 0.2, "at_first": 0.3}
    assert found.groups == [GROUP] and found.shaping == pytest.approx(0.3, rel=tol.RELATIVE64)


def test_known_groups_and_prompts_of_one_domain_agree_with_nothing(tmp_path: Path) -> None:
    asked = write_answers(tmp_path, "known", ROWS)
    write_groups(tmp_path, "known", [{"phase": "train"}], source="known", agreement=None)
    found = measured(tmp_path, "known", asked)
    assert found.agreement is None and found.shaping is None
    asked = write_answers(tmp_path, "inferred", ROWS)
    write_groups(tmp_path, "inferred", [{"phase": "train"}], source="inferred", agreement=None)
    assert measured(tmp_path, "inferred", asked).agreement == {"rand": 0.0, "information": 0.0, "at_first": 0.0}


# --- what is concluded -----------------------------------------------------------------------------------------------


def policy(recall: float, guard: float, *, dialect: float = 0.1, advice: float = 0.1,
           information: float | None = None, at_first: float = 0.0) -> Measured:
    agreement = None if information is None else {
        "rand": information / 2, "information": information, "at_first": at_first}
    return Measured({"plain": {"recall": recall, "guard": guard}, "dialect": {"recall": dialect, "guard": dialect},
                     "held_out": {"advice": advice}}, 20.0, agreement, [], None if agreement is None else 0.25)


PLAIN = policy(0.6, 0.0)
OURS = policy(0.55, 0.2, dialect=0.2, advice=0.2, information=0.2)
LESSER = policy(0.6, 0.1, information=0.2)


def arms(n: int = 5, **changes: Measured) -> dict[str, list[Measured]]:
    """Equal seeds of a world in which everything that the paper says is so."""
    usual = {"sft": policy(0.1, -0.1), "ppo_max": PLAIN, "inferred": OURS, "inferred_prompt": OURS, "low_only": OURS,
             "known": policy(0.5, 0.2), "group_dro": policy(0.5, 0.2), "no_variance": LESSER,
             "no_adaptive_kl": LESSER, "cvar": LESSER}
    return {name: [one] * n for name, one in (usual | changes).items()}


def verdicts(found: dict[str, list[Measured]]) -> list[str]:
    return [judged(claim).verdict for claim in claims(found)]


def test_the_paper_confirmed() -> None:
    assert verdicts(arms()) == [HOLDS] * 14
    assert verdicts(arms(4)) == [OPEN] * 14


def test_the_paper_refuted() -> None:
    worse = policy(0.6, -0.1, dialect=0.0, advice=0.0, information=0.04, at_first=0.05)
    found = arms(inferred=worse, inferred_prompt=worse, low_only=worse, known=worse, group_dro=worse)
    assert verdicts(found) == [NOT] * 14


@pytest.mark.parametrize("arm, refuted", [("inferred_prompt", [0, 2, 5]), ("low_only", [4]), ("known", [6]),
                                          ("group_dro", [7])])
def test_each_claim_looks_at_its_own_arm(arm: str, refuted: list[int]) -> None:
    found = verdicts(arms(**{arm: policy(0.6, -0.1, information=0.01, at_first=0.02)}))
    assert [i for i, verdict in enumerate(found) if verdict == NOT] == refuted
    assert found.count(HOLDS) == 14 - len(refuted)


@pytest.mark.parametrize("arm, refuted", [("no_variance", 12), ("no_adaptive_kl", 13)])
def test_a_part_carries_nothing_if_the_worst_domain_does_better_without_it(arm: str, refuted: int) -> None:
    found = verdicts(arms(**{arm: policy(0.1, 0.3, information=0.2)}))  # the worst is now recall, with 0.1
    assert found == [HOLDS] * 14
    assert verdicts(arms(**{arm: policy(0.4, 0.3, information=0.2)}))[refuted] == NOT


def test_margins() -> None:
    assert verdicts(arms(inferred=replace(OURS, agreement={"rand": 0.0, "information": 0.06})))[1] == HOLDS
    assert verdicts(arms(inferred=replace(OURS, agreement={"rand": 0.9, "information": 0.04})))[1] == NOT
    # PLAIN's mean is 0.3: less by 0.01 is little, by 0.03 is not.
    assert verdicts(arms(inferred=policy(0.29, 0.29, information=0.2)))[8] == HOLDS
    assert verdicts(arms(inferred=policy(0.27, 0.27, information=0.2)))[8] == NOT


def test_domains_come_closer_or_do_not() -> None:
    assert verdicts(arms(inferred=policy(1.0, 0.3, information=0.2)))[9] == NOT  # all better, but further apart


def test_transfer_is_asked_of_dialect_and_of_the_held_out_domain() -> None:
    assert verdicts(arms(inferred=replace(OURS, gold=OURS.gold | {"dialect": {"recall": 0.0}})))[10:12] == [NOT, HOLDS]
    assert verdicts(arms(inferred=replace(OURS, gold=OURS.gold | {"held_out": {"advice": 0.0}})))[10:12] == [HOLDS, NOT]


def test_the_tables() -> None:
    names = {"sft": "SFT policy"} | NAMES
    courses = {kind: [course(gold=(0, 0, 0), kl=(0, 0.1, 0.25))] * 2 for kind in NAMES}
    text = table(arms(2), courses, names).split("\n\n")
    assert [len(part.splitlines()) for part in text] == [12, 12, 12]  # two lines of head, ten policies
    assert text[0].splitlines()[0].startswith("| gold | mean | worst domain | variance over domains |")
    assert text[0].splitlines()[4].startswith("| groups of responses | 0.375 [0.375, 0.375] | 0.200 [0.200, 0.200] |")
    assert text[1].splitlines()[0] == "| gold | recall | guard | advice |"
    assert text[2].splitlines()[2] == "| SFT policy |  | 20.0 [20.0, 20.0] |  |  |  |  |"
    assert text[2].splitlines()[4] == ("| groups of responses | 0.250 [0.250, 0.250] | 20.0 [20.0, 20.0] | "
                                       "0.200 [0.200, 0.200] | 0.000 [0.000, 0.000] | 0.100 [0.100, 0.100] | "
                                       "0.250 [0.250, 0.250] |")


def test_the_picture_has_a_panel_for_each_domain_and_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        draw_domains(tmp_path / name, arms(2))
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "one.png").stat().st_size > 0
    drawn = (tmp_path / "one.svg").read_text()
    for text in ("recall", "guard", "advice, never trained on", "no_adaptive_kl"):
        assert f"<!-- {text} -->" in drawn
    draw_domains(tmp_path / "other", arms(2, cvar=policy(0.9, 0.9, information=0.2)))
    assert (tmp_path / "other.svg").read_bytes() != (tmp_path / "one.svg").read_bytes()


# --- the whole -------------------------------------------------------------------------------------------------------


def test_the_whole_experiment_in_miniature(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(stages, "subprocess", SimpleNamespace(Popen=InThisProcess))
    result = run(config(tmp_path / "groups"))
    said = result.values["measured"]
    assert list(said) == ["sft", *NAMES]
    for arm, [found] in said.items():
        assert set(found["gold"]["plain"]) == {"recall", "ledger", "list", "guard"}
        assert (found["agreement"] is not None) == (arm not in ("sft", "ppo_max", "known", "group_dro"))
    assert {group["name"] for group in said["known"][0]["groups"]} <= {"recall", "ledger", "list", "guard"}
    # Of one policy, from its answers to the table.
    rows = [json.loads(line) for line in (tmp_path / "groups/seed-0/said_known/samples.jsonl").read_text().splitlines()]
    assert len(rows) == 9 and all(row["domain"] == row["id"].split("/")[1].split("-")[0] for row in rows)
    mean = fmean(row["gold"] for row in rows if row["id"].startswith("plain/"))
    assert fmean(said["known"][0]["gold"]["plain"].values()) == pytest.approx(mean, rel=tol.RELATIVE64)
    assert [row["verdict"] for row in result.values["findings"]] == [OPEN] * 14  # one seed
    for name in ("domains.png", "domains.svg", "plot.svg", "report.md", "table.md"):
        assert (tmp_path / "groups" / name).stat().st_size > 0
    assert town.GOLD in (tmp_path / "groups/stages/seed-0-said_known.toml").read_text()
    capsys.readouterr()
