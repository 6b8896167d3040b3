"""What user messages foretell, on conversations where that is planted."""

from dataclasses import replace
from itertools import accumulate

import pytest
import tiny
import torch

from keel.data.render import template
from keel.errors import ConfigError
from keel.models.load import FrozenModelConfig, causal_lm, load_tokenizer
from keel.persona.drift import Course
from keel.persona.foretell import ForetellConfig, foretold, message_features, themes, told_rows
from keel.rng import python_stream

WORDS = {"cat": 1.0, "dog": -1.0, "red": 2.0, "blue": -2.0}
CFG = ForetellConfig(embed="words", n_words=32, folds=3, alphas=(0.01, 1.0), n_shuffles=2, n_themes=4)


def planted(n=24, *, noise=0.0, permuted=False):
    """Each response's projection is what the words of the message before it say; or of another message."""
    random = python_stream(0, "planted")
    courses = []
    for i in range(n):
        said = [random.choice(list(WORDS)) for _ in range(5)]
        meant = random.sample(said, len(said)) if permuted else said
        turns = tuple(WORDS[word] + noise * random.gauss(0, 1) for word in meant)
        texts = tuple(f"please the {word}" for word in said)
        courses.append(Course(f"c{i}", "even" if i % 2 else "odd", "", (f"{i} {texts[0]}", *texts[1:]), turns, texts))
    return courses


def features(told, cfg=CFG):
    return message_features(cfg, told.texts, torch.nn.Identity(), None, layer=0, width=8)


def scores(courses, cfg=CFG):
    told = told_rows(courses)
    return foretold(cfg, told, features(told, cfg), seed=0, n_draws=100)


def test_rows_are_responses_with_a_message_before_them():
    some = [Course("a", "x", "", ("hi", "so", "no"), (1.0, 2.0, None, 4.0), ("hi", None, "so", "no")),
            Course("b", "y", "", ("hi ",), (5.0,), ("hi ",)), Course("c", "y", "", (), (6.0,), (None,))]
    told = told_rows(some)
    assert told.texts == ("hi", "no", "hi ") and told.next.tolist() == [1.0, 4.0, 5.0]
    assert told.previous.isnan().all() and told.domains == ("x", "x", "y")
    assert told.clusters.tolist() == [0, 0, 0]  # the first two begin alike and are never held against each other


def test_the_response_before_is_the_one_just_before():
    told = told_rows([Course("a", "x", "", ("hi",), (1.0, 2.0, 3.0), ("hi", "so", "no"))])
    assert told.previous.isnan().tolist() == [True, False, False] and told.previous[1:].tolist() == [1.0, 2.0]


def test_what_is_planted_is_found_and_controls_find_nothing():
    found = scores(planted(noise=0.3))
    level, change = found["projection"], found["change"]
    assert level["out of fold"]["mean"] > 0.9 and level["out of fold"]["n"] == 24 * 5
    assert level["out of fold"]["low"] < level["out of fold"]["mean"] < level["out of fold"]["high"]
    assert level["shuffled messages"]["high"] < 0.2 and level["domain alone"]["mean"] < 0.2
    assert level["response before"]["mean"] < 0.3
    # The change also holds the response before, of which the message knows nothing.
    assert 0.2 < change["out of fold"]["mean"] < 0.8 and change["out of fold"]["n"] == 24 * 4
    assert level["training rows"]["mean"] >= level["out of fold"]["mean"]


def test_a_message_that_moves_the_assistant_from_where_it_was():
    """Each word adds what it says to the response before: the change is foretold, the place hardly."""
    courses = [replace(one, turns=tuple(accumulate(one.turns))) for one in planted(12)]
    found = scores(courses, CFG.model_copy(update={"n_shuffles": 1}))
    assert found["change"]["out of fold"]["mean"] > 0.9
    assert found["projection"]["out of fold"]["mean"] < 0.7


def test_the_seed_decides_who_is_left_out_with_whom():
    told = told_rows(planted(9, noise=1.0))
    cfg = CFG.model_copy(update={"n_shuffles": 1, "alphas": (1.0,)})
    one, other, again = (foretold(cfg, told, features(told), seed=seed, n_draws=100)["projection"]["out of fold"]
                         for seed in (0, 1, 0))
    assert one["mean"] != other["mean"] and one == again


def test_nothing_is_found_where_messages_and_responses_do_not_belong_together():
    """The training score shows something all the same: it is not to be believed."""
    found = scores(planted(permuted=True), CFG.model_copy(update={"alphas": (0.01,)}))["projection"]
    assert found["out of fold"]["mean"] < 0.2 and found["training rows"]["mean"] > found["out of fold"]["mean"]


def test_conversations_that_begin_alike_are_left_out_together():
    """Every conversation has a word of its own: it says all on its own rows, and nothing on others."""
    courses = [Course(f"c{i}", "x", "", (f"w{i}",), (float(i % 4),) * 3, (f"w{i}",) * 3) for i in range(16)]
    found = scores(courses, CFG.model_copy(update={"n_words": 4096, "alphas": (0.001,)}))["projection"]
    assert found["training rows"]["mean"] > 0.99 and found["out of fold"]["mean"] < 0.0


def test_too_little_to_leave_anything_out():
    assert scores(planted(2)) == {}
    flat = [Course(f"c{i}", "x", "", (f"w{i}",), (1.0,) * 2, ("a", "b")) for i in range(4)]
    assert scores(flat) == {}
    single = [Course(f"c{i}", "x", "", (f"w{i}",), (float(i),), ("a",)) for i in range(4)]
    assert [*scores(single)] == ["projection"]


def test_themes_from_the_highest_to_the_lowest():
    told = told_rows(planted())
    found = themes(CFG, told, features(told), seed=0, n_draws=100)
    assert [row["name"] for row in found] == ["red", "cat", "dog", "blue"]
    assert [row["projection"]["mean"] for row in found] == [2.0, 1.0, -1.0, -2.0]
    assert all(row["examples"] == [f"please the {row['name']}"] for row in found)
    assert sum(row["n"] for row in found) == len(told.texts)
    assert found[0]["projection"]["low"] == found[0]["projection"]["high"] == 2.0


def test_a_theme_without_words_is_called_that():
    told = told_rows([Course("a", "x", "", ("hi",), (1.0, 2.0), ("hi", "so"))])
    found = themes(CFG, told, features(told), seed=0, n_draws=100)
    assert [(row["name"], row["examples"]) for row in found] == [("(no words)", ["so"]), ("(no words)", ["hi"])]


def test_a_response_before_that_is_followed_by_one_and_the_same():
    """Nothing is left to be told of the second responses; the score of all of them stands."""
    courses = [Course(f"c{i}", "x", "", (f"w{i}",), (float(i), 1.0), ("cat", "dog")) for i in range(6)]
    assert "response before" not in scores(courses)["projection"] and "change" in scores(courses)


def test_one_message_has_no_themes():
    told = told_rows([Course("a", "x", "", ("hi",), (1.0, 2.0), ("hi", "hi"))])
    assert themes(CFG, told, features(told), seed=0, n_draws=100) == []


def test_the_models_own_states_of_a_message_alone(tmp_path):
    """Mean state of its content at the block, of length 1, against one pass over that message."""
    path = str(tiny.llama(tmp_path / "m", layers=3))
    model, words = causal_lm(FrozenModelConfig(path=path).whole), template(load_tokenizer(path))
    texts = ("the cat sat", "no", "the cat sat", "red blue one two")
    found = message_features(ForetellConfig(), texts, model, words, layer=1, width=128)
    for row, text in zip(found, texts, strict=True):
        ids = words.tokenizer(f"<bos><user>{text}<eos>", add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            state = model(ids, output_hidden_states=True).hidden_states[2][0, 2:-1].double().mean(0)
        torch.testing.assert_close(row.float(), (state / state.norm()).float())
    cut = message_features(ForetellConfig(), texts, model, words, layer=1, width=5)
    assert not torch.equal(cut[3], found[3]) and torch.allclose(cut[1], found[1])


def test_an_encoders_states(tmp_path):
    """Whatever is beside them in the batch."""
    path = str(tiny.bert(tmp_path / "m"))
    cfg = ForetellConfig(embed="encoder", encoder=path)
    both = message_features(cfg, ("the cat", "no please why red"), torch.nn.Identity(), None, layer=0, width=8)
    alone = message_features(cfg, ("the cat",), torch.nn.Identity(), None, layer=0, width=8)
    torch.testing.assert_close(both[0].float(), alone[0].float())
    assert float(both[0].norm()) == pytest.approx(1.0)
    assert not torch.allclose(both[0], both[1])


def test_settings_that_contradict_each_other():
    for values in ({"embed": "encoder"}, {"encoder": "somewhere"}):
        with pytest.raises(ConfigError, match="do not go together: the one needs the other"):
            ForetellConfig.checked(values)
    with pytest.raises(ConfigError, match="holds a penalty that is not above 0"):
        ForetellConfig.checked({"alphas": [1.0, 0.0]})
