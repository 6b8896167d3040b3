"""The world of `keel experiment offline`: its rewards by hand, its writers, its files."""

import json
from statistics import fmean

import pytest
import tolerances as tol

from keel.data.load import read_demonstrations, read_pairs, read_responses
from keel.data.records import Message, Prompt
from keel.experiments.offline_world import (
    BANNED,
    CONTENT,
    FILLERS,
    KINDS,
    REWARDS,
    WINDOWS,
    answered,
    expert,
    prompts,
    rewards,
    total,
    write_tokenizer,
    write_world,
)
from keel.rng import python_stream

BRIEF = Prompt("p", (Message("user", "brief river stone bread"),))  # five to seven words


def worth(text: str) -> tuple[float, ...]:
    return tuple(reward(BRIEF, text, True) for reward in REWARDS.values())


def test_rewards_by_hand():
    # Two of three content words; five words, four bigrams, all different.
    assert worth("the river and a stone") == (pytest.approx(2 / 3), 1.0, 1.0, 1.0)
    # the-river, river-the, the-river, river-the: two of four for the first time; only one content word.
    assert worth("the river the river the") == (pytest.approx(1 / 3), 0.5, 1.0, 1.0)
    # Nine words are two too many, with one banned: 1 - 2/4 of length, and nothing for the last.
    assert worth("river stone bread damn the a and with near") == (1.0, 1.0, 0.5, 0.0)
    # Two words are three too few, and too few for repeats and banned words to count.
    assert worth("river stone") == (pytest.approx(2 / 3), 0.0, 0.25, 0.0)
    assert worth("") == (0.0, 0.0, 0.0, 0.0)
    assert total(BRIEF, "the river and a stone") == pytest.approx(11 / 3)


def test_there_are_about_forty_word_types():
    assert len({*WINDOWS, *CONTENT, *FILLERS, *BANNED}) == 40


def test_the_expert_has_about_three_and_bad_responses_about_1_2():
    asked, draw = prompts(1500, 3), python_stream(3, "test")
    good = fmean(total(prompt, " ".join(expert(prompt, draw))) for prompt in asked)
    bad = fmean(total(prompt, " ".join(kind(prompt, draw))) for prompt in asked for kind in KINDS.values())
    assert 2.85 < good < 3.15
    assert 1.1 < bad < 1.3
    for kind in KINDS.values():
        assert fmean(total(prompt, " ".join(kind(prompt, draw))) for prompt in asked) < good - 0.9


def test_noise_is_the_share_of_bad_responses_and_the_better_one_comes_first():
    asked = prompts(1000, 4)
    for noise in (0.0, 0.25, 0.75, 1.0):
        found = [answered(prompt, noise, 4) for prompt in asked]
        assert abs(fmean(side for one in found for side in one.bad) - noise) < 0.04
        assert all(total(one.prompt, one.texts[0]) >= total(one.prompt, one.texts[1]) for one in found)
        assert all(one.texts[0] != one.texts[1] for one in found)


def test_more_noise_turns_more_of_the_same_responses_bad():
    n_bad = 0
    for prompt in prompts(300, 5):
        clean, half, most = (answered(prompt, noise, 5) for noise in (0.0, 0.5, 0.75))
        bad = {text for text, is_bad in zip(half.texts, half.bad, strict=True) if is_bad}
        good = {text for text, is_bad in zip(most.texts, most.bad, strict=True) if not is_bad}
        assert bad <= {*most.texts}
        assert good <= {*half.texts} & {*clean.texts}
        n_bad += len(bad)
    assert 250 < n_bad < 350


def test_prompts_differ_and_a_seed_gives_the_same():
    found = prompts(3000, 6)
    assert len({prompt.messages for prompt in found}) == 3000
    assert found == prompts(3000, 6) and found != prompts(3000, 7)
    assert answered(found[0], 0.5, 6) == answered(found[0], 0.5, 6) and (
        [answered(one, 0.5, 6).texts for one in found[:5]] != [answered(one, 0.5, 7).texts for one in found[:5]])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("offline") / "world"
    write_world(folder, {"train": 40, "validation": 10, "test": 10}, 0.5, 1)
    return folder


def test_files_share_no_prompt_between_splits_and_a_quarter_is_a_part(world):
    asked = {split: [pair.prompt.messages[0].content for pair in read_pairs(str(world / f"{split}-pairs.jsonl"))[0]]
             for split in ("train", "validation", "test", "quarter")}
    assert [len(asked[split]) for split in asked] == [40, 10, 10, 10]
    assert len({*asked["train"], *asked["validation"], *asked["test"]}) == 60
    assert asked["quarter"] == asked["train"][:10]


def test_a_fifth_of_the_labels_is_turned_over(world):
    right, flipped = (read_pairs(str(world / f"train-{kind}.jsonl"))[0] for kind in ("pairs", "flipped"))
    turned = [a.chosen != b.chosen for a, b in zip(right, flipped, strict=True)]
    assert sum(turned) == 8
    for a, b, other in zip(right, flipped, turned, strict=True):
        assert (b.chosen, b.rejected) == ((a.rejected, a.chosen) if other else (a.chosen, a.rejected))


def test_responses_carry_their_rewards_and_what_is_known_of_them_stays_in_meta(world):
    told, _ = read_responses(str(world / "train-flipped.jsonl"), which="all")
    assert len(told) == 80
    for one in told:
        assert one.grades == {name: pytest.approx(reward(one.prompt, one.response, True), rel=tol.RELATIVE64)
                              for name, reward in REWARDS.items()}
        assert one.prompt.truth == {} and {*one.prompt.meta["bad"]} == {"chosen", "rejected"}
        assert one.prompt.messages[0].content.split()[0] in WINDOWS
    row = json.loads((world / "train-responses.jsonl").read_text().splitlines()[0])
    assert {*row} == {"id", "prompt", "completion"}


def test_a_world_that_was_cut_short_is_written_anew_and_one_that_is_there_stays(tmp_path):
    (tmp_path / ".w.new").mkdir()
    (tmp_path / ".w.new/half").write_text("{")
    sizes = {"train": 8, "validation": 2, "test": 2}
    write_world(tmp_path / "w", sizes, 0.5, 1)
    assert not (tmp_path / "w/half").exists()
    (tmp_path / "w/train-pairs.jsonl").write_text("mine")
    write_world(tmp_path / "w", sizes, 0.5, 1)
    assert (tmp_path / "w/train-pairs.jsonl").read_text() == "mine"


def test_every_word_is_one_token_and_comes_back(tmp_path, world):
    from keel.data.render import render_demonstrations, template
    from keel.models.load import load_tokenizer

    write_tokenizer(tmp_path / "t")
    write_tokenizer(tmp_path / "t")
    words = template(load_tokenizer(str(tmp_path / "t")))
    told, _ = read_demonstrations(str(world / "train-responses.jsonl"))
    rows, cut = render_demonstrations(words, told, 48, "error")
    for one, row in zip(told, rows, strict=True):
        said = row.ids[row.n_prompt : row.n_tokens]
        assert words.decode(said) == one.response
        assert len(said) == len(one.response.split()) + 1  # and the end
    assert len(rows) == 80 and not cut.n_cut


def test_the_settings_of_the_rewards_name_these_functions():
    assert [one.name for one in rewards()] == [*REWARDS]
    for one in rewards():
        module, name = one.scorer.function.split(":")
        assert (module, name) == (REWARDS[one.name].__module__, REWARDS[one.name].__name__)
        assert (one.low, one.high, one.stored, one.scorer.prompt_as) == (0.0, 1.0, one.name, "record")
