"""What sentences say of groups, each where it holds and not where it does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_runs import mean, wobble
from test_groups_report import course, group_ppo, portrait, portraits

from keel.report.folder import read
from keel.report.groups_course import cast, change, recent
from keel.report.groups_words import group_evidence, group_notes, group_says
from keel.report.headline import headline
from keel.report.series import Series, collect

Course = Callable[[float], float]


def said(folder: Path, **changed: Any) -> str:
    """All sentences above the portraits."""
    run = read(group_ppo(folder, **changed))
    who = cast(run, collect(run))
    assert who is not None
    return "\n".join(group_says(run, collect(run), who))


def noted(folder: Path, **changed: Any) -> list[tuple[str, str, bool]]:
    run = read(group_ppo(folder, **changed))
    return group_notes(run, collect(run))


def agreed(rand: float) -> dict[str, Any]:
    return portraits(agreement={"rand": rand, "information": 0.03})


def line(start: float, end: float, noise: float = 0.0) -> Course:
    """From one value to another over the run."""
    return lambda t: start + t * (end - start) + noise * wobble(round(1000 * t))


def test_a_change_is_told_from_noise_by_two_standard_errors() -> None:
    steps = list(range(1, 13))
    rising = change(Series(steps, [float(s > 6) for s in steps]))
    assert rising is not None and (rising.first, rising.last, rising.error, rising.direction) == (0.0, 1.0, 0.0, 1)
    # Quarters 0 1 2 and 1 2 3: means 1 and 2, variances 1 and 1 over 3 phases, so the error is sqrt(2 / 3) = 0.816...
    noisy = change(Series(steps, [0.0, 1.0, 2.0, *[9.0] * 6, 1.0, 2.0, 3.0]))
    assert noisy is not None and noisy.direction == 0 and noisy.error == pytest.approx((2 / 3) ** 0.5)
    # Three apart: 3 > 2 * 0.816...
    fallen = change(Series(steps, [4.0, 5.0, 6.0, *[9.0] * 6, 1.0, 2.0, 3.0]))
    assert fallen is not None and fallen.direction == -1
    assert change(Series(steps[:7], [1.0] * 7)) is None and change(None) is None


def test_recent_is_the_mean_of_the_last_quarter_and_skips_what_is_not_finite() -> None:
    assert recent(Series(list(range(9)), [0.0] * 5 + [float("nan")] + [2.0, 4.0, 6.0])) == 5.0
    assert recent(Series([1, 2], [1.0, 3.0])) == 3.0 and recent(None, 7.0) == 7.0


@pytest.mark.parametrize(("rand", "words"), [
    (0.02, "The groups are not the known labels in “domain” (adjusted Rand 0.02, on 81 held-out prompts; 0 is chance, "
           "1 the same split): what they are"),
    (0.3, "The groups have something of the known labels in “domain”, and are not the same"),
    (0.8, "The groups are nearly the known labels in “domain”"),
])
def test_agreement_with_known_labels_is_put_in_words(tmp_path: Path, rand: float, words: str) -> None:
    assert words in said(tmp_path / "run", groups=agreed(rand))


def test_shared_information_is_told_as_what_chance_gives_too_and_decides_nothing(tmp_path: Path) -> None:
    words = ("Shared information is 0.5; chance alone raises it above 0, the more so with many labels or few "
             "responses, so trust the Rand index.")
    unique = portraits(agreement={"rand": 0.0, "information": 0.5}, labels=[f"p-{i}" for i in range(81)])
    text = said(tmp_path / "run", groups=unique)
    assert "The groups are not the known labels" in text and words in text
    alone = portraits(agreement={"information": 0.9})
    assert "known labels" not in said(tmp_path / "alone", groups=alone)
    assert "Shared information" not in said(tmp_path / "rand", groups=portraits(agreement={"rand": 0.8}))


def test_fewer_groups_than_labels_cannot_be_the_same_split(tmp_path: Path) -> None:
    three = agreed(0.3) | {"labels": ["a", "b", "c"]}
    assert "2 groups cannot be the same split as 3 labels." in said(tmp_path / "three", groups=three)
    assert "cannot be the same split" not in said(tmp_path / "two", groups=agreed(0.3))


def test_agreement_is_read_from_the_course_where_there_are_no_portraits(tmp_path: Path) -> None:
    metrics = course(groups__rand=line(0.5, 0.5), groups__information=line(0.5, 0.5))
    assert "in the last quarter of the phases; 0 is chance" in said(tmp_path / "run", groups={}, metrics=metrics)
    assert "known labels" not in said(tmp_path / "none", groups={})
    assert "known labels" not in said(tmp_path / "known", source="known", groups={}, metrics=metrics)


def test_groups_of_responses_follow_the_score_and_groups_of_prompts_are_not_told_to(tmp_path: Path) -> None:
    words = ("Responses were grouped, not prompts. Such groups follow the score (0.1 in the lowest group, 0.9 in the "
             "highest group)")
    assert words in said(tmp_path / "run", level="trajectory")
    assert "No word marks" not in said(tmp_path / "run", level="trajectory")
    assert "Responses were grouped" not in said(tmp_path / "prompt")
    bare = portraits(level="trajectory", groups=[portrait(str(i + 1), i, words={"prompt": []}) for i in range(2)])
    assert "No word marks the prompts of any group." in said(tmp_path / "bare", groups=bare)
    assert "Responses were grouped" in said(tmp_path / "early", level="trajectory", groups={})


def test_groups_that_differ_more_in_length_than_in_score_are_called_out(tmp_path: Path) -> None:
    # Scores are 0.8 apart with halves of 0.1, so 5.7 intervals; lengths 24 with halves of 2, so 8.5.
    longer = portraits(groups=[portrait("1", 0, length=mean(12.0, 2.0)), portrait("2", 1, length=mean(36.0, 2.0))])
    text = said(tmp_path / "run", groups=longer)
    assert ("the lowest group and the highest group differ more in length (12 against 36 tokens) than in score (0.1 "
            "against 0.9)") in text
    assert "differ more in length" not in said(tmp_path / "same")
    single = {"mean": 90.0, "low": None, "high": None, "n": 1}
    unknown = portraits(groups=[portrait("1", 0, length=mean(12.0, 0.0)), portrait("2", 1, length=single)])
    assert "differ more in length" not in said(tmp_path / "unknown", groups=unknown)
    names = ("1", "2")
    assert "differ more in length" not in said(tmp_path / "known", source="known", metrics=course(names=names),
                                               groups=longer | {"source": "known"})
    close = portraits(groups=[portrait("1", 0), portrait("2", 1, length=mean(18.5, 3.0), score=mean(0.1, 0.1))])
    assert "differ more in length" not in said(tmp_path / "close", groups=close)


def test_where_gold_ranks_another_group_lowest_the_page_says_so(tmp_path: Path) -> None:
    names = ("list", "ledger")
    turned = portraits(names, source="known")
    turned["groups"][0]["gold"], turned["groups"][1]["gold"] = mean(0.4, 0.1), mean(-0.4, 0.1)
    words = "By score “list” is lowest, by gold “ledger” is (gold \u22120.4, that of “list” 0.4)"
    known = {"source": "known", "metrics": course(names=names)}
    assert words in said(tmp_path / "run", groups=turned, **known)
    turned["groups"][1]["gold"] = mean(0.39, 0.1)
    assert "By score" not in said(tmp_path / "chance", groups=turned, **known)
    assert "By score" not in said(tmp_path / "same")


@pytest.mark.parametrize(("start", "end", "words"), [
    (1.5, 0.5, "narrowed (1.41 to 0.591 standard deviations, first to last quarter of the phases)."),
    (0.5, 1.5, "grew (0.591 to 1.41 standard deviations, first to last quarter of the phases). The head that finds"),
])
def test_the_gap_is_told_from_the_first_quarter_to_the_last(tmp_path: Path, start: float, end: float,
                                                            words: str) -> None:
    text = said(tmp_path / "run", metrics=course(groups__gap=line(start, end)))
    assert f"The gap between the lowest and the highest return {words}" in text
    known = said(tmp_path / "known", source="known", groups={}, metrics=course(groups__gap=line(start, end)))
    assert "The head that finds" not in known


def test_a_gap_that_only_wobbles_did_not_clearly_change_and_few_phases_say_nothing(tmp_path: Path) -> None:
    assert "did not clearly change" in said(tmp_path / "run", metrics=course(groups__gap=line(1.0, 1.0, 0.3)))
    assert "The gap between" not in said(tmp_path / "few", metrics=course(7))


def test_raw_scores_and_prices_of_both_ends_and_changes_of_order(tmp_path: Path) -> None:
    metrics = course(group__1__score=line(0.0, 1.1), groups__swaps=lambda t: round(3 * t))
    text = said(tmp_path / "run", metrics=metrics)
    assert "the raw score went from 0.1 to 1 in the lowest group and from 0.9 to 0.9 in the highest group." in text
    assert "a nat of drift cost 0.02 in the lowest group and 0.1 in the highest group." in text
    assert "The order of the groups changed 3 times; numbers follow the order" in text
    equal = said(tmp_path / "equal", metrics=course(group__1__kl_coef=line(0.1, 0.1)))
    assert "a nat of drift" not in equal and "The order of the groups" not in equal
    known = said(tmp_path / "known", source="known", groups={}, metrics=metrics)
    assert "changed 3 times. A group's price of drift follows its place: it is highest for the highest." in known
    equal = said(tmp_path / "same price", source="known", groups={}, metrics=metrics, kl="equal")
    assert equal.endswith("The order of the groups changed 3 times.")


def test_levelling_down_is_grave_and_is_read_from_raw_scores(tmp_path: Path) -> None:
    falling = course(group__2__score=line(0.9, 0.3))
    ((text, remedy, grave),) = noted(tmp_path / "run", metrics=falling)
    assert text == ("Levelling down: from the first to the last quarter of the phases the raw score of the highest "
                    "group fell from 0.845 to 0.355, and that of the lowest group did not rise (0.1 to 0.1). Inferred "
                    "groups go by rank, so the head's regrouping can look the same.")
    assert grave and remedy == "Lower groups.coef or take groups.objective = low_only or dro."
    assert noted(tmp_path / "dro", metrics=falling, objective="dro")[0][1] == "Lower groups.coef."
    rising = course(group__2__score=line(0.9, 0.3), group__1__score=line(0.1, 0.3))
    assert noted(tmp_path / "up", metrics=rising) == [] and noted(tmp_path / "none", objective="none") == []
    assert noted(tmp_path / "off", metrics=falling, objective="none") == []
    assert noted(tmp_path / "both", metrics=course(group__1__score=line(0.1, -0.3))) == []


def test_known_groups_are_levelled_by_who_was_highest_before(tmp_path: Path) -> None:
    metrics = course(names=("b", "a"), group__b__score=line(0.9, 0.1), group__a__score=line(0.2, 0.2))
    ((text, _, _),) = noted(tmp_path / "run", source="known", metrics=metrics,
                            groups=portraits(("b", "a"), source="known"))
    assert "the raw score of “b” fell" in text and "that of “a” did not rise" in text and "regrouping" not in text


def test_a_group_below_the_floor_of_mass_is_named(tmp_path: Path) -> None:
    small = course(group__1__mass=line(0.08, 0.08))
    assert noted(tmp_path / "binds", metrics=course(group__1__mass=line(0.121, 0.121))) == []  # a fifth under 15%
    assert len(noted(tmp_path / "under", metrics=course(group__1__mass=line(0.119, 0.119)))) == 1
    ((text, remedy, grave),) = noted(tmp_path / "run", metrics=small)
    assert text == ("The lowest group held 8.0% of the responses in the last quarter of the phases, below groups.floor "
                    "= 15%.") and not grave and "groups.floor_coef" in remedy
    assert noted(tmp_path / "known", source="known", metrics=small, groups=portraits(source="known")) == []


def test_several_groups_below_the_floor_are_one_note(tmp_path: Path) -> None:
    names = ("1", "2", "3")
    small = course(names=names, group__1__mass=line(0.08, 0.08), group__2__mass=line(0.05, 0.05))
    ((text, _, _),) = noted(tmp_path / "run", metrics=small, groups=portraits(names))
    assert text == ("The lowest group held 8.0% and group 2 held 5.0% of the responses in the last quarter of the "
                    "phases, below groups.floor = 15%.")


def test_known_groups_without_a_held_out_prompt_are_one_note_that_names_their_labels(tmp_path: Path) -> None:
    def told(*n: int) -> str:
        names = tuple("abcdefgh"[: len(n)])
        groups = portraits(names, source="known", groups=[portrait(x, i, n=k) for i, (x, k) in enumerate(
            zip(names, n, strict=True))])
        found = noted(tmp_path / "-".join(map(str, n)), source="known", metrics=course(names=names), groups=groups)
        return " ".join(text for text, _, _ in found)

    assert told(0, 4) == "No held-out prompt has the label “a”." and told(4, 4) == ""
    assert told(0, 4, 0) == "No held-out prompt has the label “a” or “c”."
    assert told(0, 0, 0, 0, 0, 0, 0, 4) == (
        "No held-out prompt has the label “a”, “b”, “c”, “d”, “e” or one of 2 others.")


def test_where_groups_json_is_missing_both_reasons_are_named(tmp_path: Path) -> None:
    ((text, remedy, grave),) = noted(tmp_path / "run", source="known", groups={})
    assert text.startswith("There is no groups.json") and not grave
    assert remedy == ("It is written at the end where there are held-out prompts and, of known groups, where one of "
                      "these prompts has the label of a group.")
    inferred = noted(tmp_path / "inferred", groups={})[0][1]
    assert inferred == "It is written at the end where there are held-out prompts."


def test_shaping_that_fades_is_told_with_its_reason(tmp_path: Path) -> None:
    faded = {"groups__shaping": line(0.08, 0.0)}
    ((text, remedy, _),) = noted(tmp_path / "run", metrics=course(24, **{"groups__shaping": lambda t: 0.1 * (t < 0.5)}))
    assert ("The groups act no more: in the last quarter of the phases in which something is added to advantages, that "
            "was 0 on average") in text
    assert "Returns inside each group are nearly the same" in text and "groups.level = prompt" in remedy
    closed = course(**faded | {"groups__shaping": lambda _t: 0.002, "groups__gap": lambda _t: 0.04})
    ((text, remedy, _),) = noted(tmp_path / "closed", metrics=closed)
    assert "Their returns are 0.04 standard deviations apart, so there is nothing to even out." in text and not remedy
    assert noted(tmp_path / "dro", metrics=closed, objective="dro") == []
    bare = [{key: x for key, x in row.items() if key not in ("groups/shaping", "groups/coef")} for row in closed]
    assert noted(tmp_path / "bare", metrics=bare) == []
    warming = course(groups__shaping=lambda _t: 0.0, groups__coef=lambda _t: 0.0)
    assert noted(tmp_path / "warming", metrics=warming) == []


def test_groups_stand_in_the_evidence_by_gold_or_else_by_score(tmp_path: Path) -> None:
    run = read(group_ppo(tmp_path / "run"))
    words = ("Gold score by group on held-out prompts: from 0.20 [0.10, 0.30] in group 1 to 0.50 [0.40, 0.60] in group "
             "2.")
    assert group_evidence(run) == words and headline(run, collect(run)).evidence.endswith(f"Higher is better. {words}")
    known = portraits(("x", "y"), source="known", groups=[portrait(n, i, gold=None) for i, n in enumerate("xy")])
    told = group_evidence(read(group_ppo(tmp_path / "known", source="known", groups=known)))
    assert told.startswith("Score by group on held-out prompts: from 0.10 [0.00, 0.20] in “x” to")
    assert group_evidence(read(group_ppo(tmp_path / "none", groups={}))) == ""
