"""What `keel offline-pg` puts together: a row with its reward, a prompt with its value, a response with its prompt, and
the model that is sampled."""

import json
import math

import pytest
import tiny
import tolerances as tol
from recipes.offline_runs import offline_config, reward, told, whole_batch
from recipes.running import logged

from keel.bench.scorers import ScorerConfig
from keel.models.load import FrozenModelConfig, ModelConfig
from keel.recipes import offline_pg
from keel.rollout.sample import SamplingConfig


def over(cfg, **changes):
    return cfg.model_copy(update={"data": cfg.data.model_copy(update=changes)})


def short_question(prompt, text: str, ended: bool) -> float:
    """What a prompt is worth, whatever is said."""
    return float(len(prompt.messages[-1].content.split()) < 4)


def test_a_row_that_is_left_out_takes_its_reward_with_it(tmp_path):
    """Every fourth row has 14 tokens, the others have 13 at most."""
    cfg = over(whole_batch(tmp_path, steps=1, batch=4), too_long="drop", max_length=13)
    assert offline_pg.run(cfg).values["skipped"]["n_dropped"] == 3
    lines = {line["id"]: (line["total"], line["n_tokens"]) for line in logged(cfg.out, "advantages.jsonl", None)}
    by_answer = [(0.75, 4), (0.25, 3), (0.5, 5)]
    assert lines == {f"d{i}": by_answer[i % 4] for i in range(12) if i % 4 < 3}


def test_a_learned_value_is_of_the_prompt_and_never_of_the_response(tmp_path):
    by_prompt = ScorerConfig(function="recipes.test_offline_pg_pairing:short_question", prompt_as="record")
    cfg = over(offline_config(tmp_path, responses="all", steps=1, rewards=(reward("short", scorer=by_prompt),),
                              value={"epochs": 20}), path=str(tiny.pairs(tmp_path / "pairs.jsonl", 40)))
    assert offline_pg.run(cfg).values["value"]["beats_mean"]
    values: dict[str, set[float]] = {}
    for line in logged(cfg.out, "advantages.jsonl", None):
        values.setdefault(line["record"], set()).add(line["value"])
    # Both are computed in one pass or in two: equal up to rounding.
    assert all(max(own) - min(own) < tol.SIX_DECIMALS for own in values.values())
    means = [min(own) for own in values.values()]
    assert max(means) - min(means) > 100 * tol.SIX_DECIMALS


def test_a_held_out_response_four_times_over_says_no_more_than_once(tmp_path):
    """The interval of S - Q is over prompts."""
    other, found = FrozenModelConfig(path=str(tiny.llama(tmp_path / "other", seed=1))), []
    rows = [json.loads(line) for line in told(tmp_path / "told.jsonl").read_text().splitlines()]
    for n in (1, 4):
        file = tiny.write_rows(tmp_path / f"{n}.jsonl", [row | {"id": f"{row['id']}-{k}"} for row in rows
                                                         for k in range(n)])
        cfg = offline_config(tmp_path, out=tmp_path / str(n), reference=other, steps=1, loss={"variant": "wbc"})
        found.append(offline_pg.run(over(cfg, path=str(file))).values["before"]["shift"])
    once, again = found
    assert once["low"] < once["mean"] < once["high"]
    assert again == pytest.approx(once | {"n": 4 * once["n"]}, rel=tol.GRADIENT32["rtol"])


def test_it_is_the_reference_that_is_sampled(tmp_path):
    """With a reference of its own as where that one is the policy; and unlike the policy."""
    other, found = str(tiny.llama(tmp_path / "other", seed=1)), {}
    for name, models in (("beside", {"reference": FrozenModelConfig(path=other)}),
                         ("alone", {"policy": ModelConfig(path=other)}), ("own", {})):
        cfg = offline_config(tmp_path, out=tmp_path / name, steps=1, value={"kind": "constant", "samples": 3}, **models)
        found[name] = offline_pg.run(cfg).values["value"]["mean"]
    assert found["beside"] == found["alone"] != found["own"]


def test_the_reference_is_sampled_as_the_value_asks_not_as_the_examination(tmp_path):
    """One token is worth a quarter at most."""
    cfg = whole_batch(tmp_path, steps=1, batch=4, value={"kind": "sampled", "samples": 3},
                      selection={"keep": "positive"}, value_sampling=SamplingConfig(max_new_tokens=1))
    offline_pg.run(cfg)
    values = {line["value"] for line in logged(cfg.out, "advantages.jsonl", None)}
    assert 0 < max(values) <= 0.25


def test_what_is_held_out_is_selected_like_what_is_learned_from(tmp_path):
    """The chosen response alone, and no pair of weight 0."""
    file = tiny.pairs(tmp_path / "pairs.jsonl", 40)
    rows = [json.loads(line) | {"weight": float(i % 5 > 0)} for i, line in enumerate(file.read_text().splitlines())]
    cfg = over(offline_config(tmp_path, steps=1, loss={"variant": "wbc"}), path=str(tiny.write_rows(file, rows)))
    found = offline_pg.run(cfg).values
    assert found["n_validation"] > 3 and found["n_responses"] + found["n_validation"] == 32
    assert found["before"]["nll"]["n"] == found["before"]["score"]["n"] == found["n_validation"]


def test_a_pass_is_over_what_is_kept(tmp_path):
    cfg = offline_config(tmp_path, steps=None, epochs=2.0, loss={"variant": "wbc"},
                         selection={"keep": "top", "top_fraction": 0.3})
    found = offline_pg.run(cfg).values
    assert 2 * found["n_kept"] < found["n_responses"]
    assert found["steps"] == math.ceil(2 * found["n_kept"] / 6) == len(logged(cfg.out))
