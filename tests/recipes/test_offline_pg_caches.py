"""What `keel offline-pg` computes before it learns is computed once, found again, and anew where anything changed. A
run that is killed anywhere goes on to the same bytes."""

import json
import sys

import pytest
import tiny
from recipes.offline_runs import killed_at, offline_config, reward, told
from recipes.running import FAST, killed_here, logged, same_results

from keel.bench import engine
from keel.bench.scorers import ScorerConfig
from keel.models.load import FrozenModelConfig, ModelConfig, load_tokenizer
from keel.recipes import offline_pg
from keel.rollout.sample import SamplingConfig
from keel.train import baseline, checkpoint, frozen


def cached(tmp, name: str, **changes):
    return offline_config(tmp, **({"out": tmp / name, "cache": tmp / "cache", "steps": 1, "n_samples": 0, "batch": 4,
                                   "eval_prompts": 2} | changes))


def notes_of(found) -> str:
    return " ".join(found.values["notes"])


def test_a_second_run_computes_nothing_and_learns_the_same(tmp_path, monkeypatch):
    first = offline_pg.run(cached(tmp_path, "a"))
    assert first.values["before"]["score"]["n"] == 2  # as many prompts as eval_prompts says; the value has them all
    assert first.values["n_validation"] == first.values["value"]["n_prompts"] > 2

    def never(*arguments, **named):
        raise AssertionError("computed again")

    monkeypatch.setattr(baseline, "prompt_states", never)
    monkeypatch.setattr(baseline, "fit_value", never)
    monkeypatch.setattr(frozen, "token_logprobs", never)
    kept = scored(monkeypatch, tmp_path)
    second = offline_pg.run(cached(tmp_path, "b"))
    assert second.values["value"]["computed"] == 0 and first.values["value"]["computed"] > 0
    assert second.values["value"] == first.values["value"] | {"computed": 0} and not second.values["value"]["stale"]
    same_results(tmp_path / "a", tmp_path / "b")
    assert kept == []
    assert (tmp_path / "a/advantages.jsonl").read_bytes() == (tmp_path / "b/advantages.jsonl").read_bytes()


def test_in_a_folder_of_its_own_a_run_keeps_its_cache_beside_its_results(tmp_path):
    cfg = cached(tmp_path, "a", cache=None)
    offline_pg.run(cfg)
    assert sorted(path.name for path in (cfg.out / "cache").iterdir()) == ["reference", "rewards", "values"]
    assert cfg.cached_in == cfg.out / "cache"


def test_another_model_makes_values_and_reference_stale_but_not_rewards(tmp_path, monkeypatch):
    offline_pg.run(cached(tmp_path, "a"))
    kept = scored(monkeypatch, tmp_path)
    other = ModelConfig(path=str(tiny.llama(tmp_path / "other", seed=1)))
    found = offline_pg.run(cached(tmp_path, "b", policy=other))
    assert "the folder of values was filled with another reference" in notes_of(found)
    assert "lacked what this reference says of" in notes_of(found)
    assert found.values["value"]["stale"] and found.values["value"]["computed"] > 0 and kept == []
    ours = cached(tmp_path, "c", reference=FrozenModelConfig(path=other.path, autocast=True))
    assert offline_pg.run(ours).values["value"]["stale"]  # the number format


def scored(monkeypatch, tmp) -> list[str]:
    """Keys of the responses whose scores go to the shared folder from now on."""
    seen, add = [], engine.Cache.add

    def watched(self, scores):
        seen.extend(scores if self.folder.is_relative_to(tmp) else [])
        return add(self, scores)

    monkeypatch.setattr(engine.Cache, "add", watched)
    return seen


def test_other_responses_are_new_and_the_rest_is_found(tmp_path, monkeypatch):
    cfg, kept = cached(tmp_path, "a"), scored(monkeypatch, tmp_path)
    assert len(kept) == 0 and offline_pg.run(cfg).values["n_responses"] == len(kept)
    kept.clear()
    rows = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()]
    place = next(int(line["id"][1:]) for line in logged(cfg.out, "advantages.jsonl", None) if line["kept"])
    rows[place]["completion"] = tiny.said("yes yes please")
    data = cfg.data.model_copy(update={"path": str(tiny.write_rows(tmp_path / "changed.jsonl", rows))})
    found = offline_pg.run(cached(tmp_path, "b", data=data))
    assert "lacked what this reference says of 1 of" in notes_of(found)
    assert found.values["value"]["computed"] == 0 and not found.values["value"]["stale"] and len(kept) == 1


def test_another_source_of_the_reward_function_is_scored_anew(tmp_path, monkeypatch):
    """The same name, another body: rewards and values are those of the new one."""
    module = tmp_path / "scoring_of_h.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = {"name": "own", "scorer": ScorerConfig(function="scoring_of_h:score")}
    found = []
    for name, body in (("a", "len(text) / 100"), ("b", "1 - len(text) / 100")):
        module.write_text(f"def score(prompt, text):\n    return {body}\n")
        sys.modules.pop("scoring_of_h", None)
        result = offline_pg.run(cached(tmp_path, name, rewards=(reward("own", **spec),)))
        lines = logged(tmp_path / name, "advantages.jsonl", None)
        found.append({line["id"]: line["total"] for line in lines})
        assert result.values["value"]["stale"] == (name == "b")
        assert result.values["value"]["computed"] > 0
    sys.modules.pop("scoring_of_h", None)
    for name, total in found[0].items():
        assert found[1][name] == 1 - total


@pytest.mark.parametrize("change", ["template", "sampling", "value", "weight"])
def test_what_else_changes_a_value_makes_it_stale(tmp_path, change):
    cfg = cached(tmp_path, "a")
    offline_pg.run(cfg)
    changes = {"sampling": {"value_sampling": SamplingConfig(max_new_tokens=6, temperature=0.7)},
               "value": {"value": {"samples": 3}}, "weight": {"rewards": (reward(weight=0.5),)}}.get(change, {})
    if change == "template":
        words = load_tokenizer(cfg.policy.path)
        words.chat_template = words.chat_template.replace("<bos>", "<bos><system>")
        words.save_pretrained(cfg.policy.path)
    found = offline_pg.run(cached(tmp_path, "b", **changes))
    assert found.values["value"]["stale"] and found.values["value"]["computed"] > 0
    assert ("lacked what this reference says of" in notes_of(found)) == (change == "template")


# --- killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [
    {}, {"loss": {"variant": "a_lol_seq"}, "selection": {"keep": "all", "draw": "uniform"}, "lora": 2}])
def test_a_run_killed_at_several_moments_ends_in_the_same_bytes(tmp_path, settings):
    """Priority draws, shuffled passes; right after a row, and inside a checkpoint."""
    settings = dict(settings)
    rank = settings.pop("lora", None)
    whole = offline_config(tmp_path, steps=12, save_every=3, eval_every=5, **settings)
    if rank:
        whole = whole.model_copy(update={"policy": whole.policy.model_copy(update={
            "lora": whole.policy.lora.model_copy(update={"rank": rank})})})
    result = offline_pg.run(whole)
    killed = whole.model_copy(update={"out": tmp_path / "killed"})
    killed_here(killed, [("log", 1), ("log", 6), ("save", 2)], offline_pg.run)
    same_results(whole.out, killed.out)
    assert (whole.out / "best/model.safetensors").read_bytes() == (killed.out / "best/model.safetensors").read_bytes()
    again = json.loads((killed.out / "result.json").read_text())
    for name in ("before", "evaluation", "best", "headline", "data", "n_kept"):
        assert again[name] == json.loads(json.dumps(result.values[name])), name


def test_a_resumed_run_remembers_which_policy_was_the_best(tmp_path):
    """With a learning rate of nothing it is the first of all, before the kill and after it."""
    cfg = offline_config(tmp_path, steps=4, optimizer=FAST.model_copy(update={"lr": 1e-30}))
    killed_at(cfg, checkpoint, "save", 1)
    assert offline_pg.run(cfg, resume=True).values["best"]["step"] == 0


def test_a_run_killed_before_its_first_step_goes_on_where_it_was(tmp_path):
    """While rewards are scored, samples drawn, the head fitted, values and log-probabilities computed."""
    whole = offline_config(tmp_path, steps=2, micro_tokens=40, save_every=1000)
    offline_pg.run(whole)
    places = [(engine.Cache, "add", 1), (baseline, "fit_value", 1), (baseline, "save_head", 1),
              (frozen.FrozenNumbers, "_append", 1), (frozen.FrozenNumbers, "_append", 3), (checkpoint, "save", 1)]
    killed = whole.model_copy(update={"out": tmp_path / "killed"})
    for k, (owner, name, n) in enumerate(places):
        killed_at(killed, owner, name, n, resume=k > 0)
    offline_pg.run(killed, resume=True)
    same_results(whole.out, killed.out)
    assert (whole.out / "advantages.jsonl").read_bytes() == (killed.out / "advantages.jsonl").read_bytes()


def test_a_request_to_stop_is_heard_before_the_first_step(tmp_path, monkeypatch):
    """What was computed is kept, and the message says how to go on."""
    from keel.runs import Run, Stopped

    cfg = offline_config(tmp_path, steps=1, micro_tokens=40)
    monkeypatch.setattr(Run, "stop_requested", lambda self: True)
    with pytest.raises(Stopped, match="after step 0; nothing is lost") as caught:
        offline_pg.run(cfg)
    assert f"keel offline-pg --resume {cfg.out}" in str(caught.value)
    monkeypatch.undo()
    assert offline_pg.run(cfg, resume=True).values["steps"] == 1


def test_progress_is_shown_for_rewards_samples_values_and_the_reference(tmp_path, monkeypatch):
    from contextlib import contextmanager

    seen: dict[str, list[tuple[int, int]]] = {}

    @contextmanager
    def watched(label, total, done=0):
        assert not seen.get("open"), "one bar at a time"
        seen["open"] = [(0, 0)]
        yield type("Bar", (), {"reach": lambda self, n, note="": seen.setdefault(label, []).append((n, total))})()
        seen["open"] = []

    monkeypatch.setattr(frozen, "bar", watched)
    cfg = offline_config(tmp_path, steps=1, value={"samples": 2}, micro_tokens=40)
    found = offline_pg.run(cfg).values
    n, n_kept, n_held_out = (found[name] for name in ("n_responses", "n_kept", "n_validation"))
    assert seen["rewards of the data"][-1][0] == seen["rewards of the data"][-1][1]
    value = seen["value of the reference"]
    assert (2 * n_held_out, 2 * n_held_out) in value and value[-1] == (n, n)
    assert seen["what the reference says"][-1] == (n_kept + n_held_out, n_kept + n_held_out)


def test_the_file_must_be_the_one_that_the_run_began_with(tmp_path):
    from keel.errors import RunError

    cfg = offline_config(tmp_path, steps=2, save_every=1)
    killed_at(cfg, checkpoint, "save", 1)
    told(tmp_path / "told.jsonl", 41)
    with pytest.raises(RunError, match="has changed since the run began"):
        offline_pg.run(cfg, resume=True)


@pytest.mark.parametrize("what", ["rewards", "reference", "policy", "tokenizer"])
def test_a_run_does_not_go_on_with_another_reward_or_model(tmp_path, monkeypatch, what):
    """Stopped after a checkpoint, then one thing is edited: refused; put back, it goes on to the same bytes."""
    from keel.errors import RunError
    from keel.runs import Run, Stopped

    module = tmp_path / "scoring_of_r.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    other = tiny.llama(tmp_path / "other", seed=1)
    cfg = offline_config(tmp_path, steps=4, save_every=2, reference=FrozenModelConfig(path=str(other)), rewards=(
        reward("own", scorer=ScorerConfig(function="scoring_of_r:score")),), value={"kind": "constant"})
    third = tiny.llama(tmp_path / "third", seed=2)
    files = {"rewards": module, "reference": other / "model.safetensors", "tokenizer": other / "tokenizer_config.json",
             "policy": tmp_path / "base/model.safetensors"}

    def begun(body: str) -> None:
        module.write_text(body)
        sys.modules.pop("scoring_of_r", None)

    good = "def score(prompt, text):\n    return len(text) / 100\n"
    begun(good)
    offline_pg.run(cfg)
    stopped = cfg.model_copy(update={"out": tmp_path / "stopped"})
    with monkeypatch.context() as patch:
        patch.setattr(Run, "stop_requested", lambda self: bool(list(self.folder.glob("checkpoints/*.pt"))))
        with pytest.raises(Stopped):
            offline_pg.run(stopped)
    kept = {name: path.read_bytes() for name, path in files.items()}
    if what == "rewards":
        begun("def score(prompt, text):\n    return 1 - len(text) / 100\n")
    elif what == "tokenizer":
        for folder in (tmp_path / "base", other):  # of both, or the reference would not fit the policy
            words = load_tokenizer(str(folder))
            words.chat_template = words.chat_template.replace("<bos>", "<bos><bos>")
            words.save_pretrained(folder)
    else:
        files[what].write_bytes((third / "model.safetensors").read_bytes())
    with pytest.raises(RunError, match=f"{what}: not what this run began with") as caught:
        offline_pg.run(stopped, resume=True)
    assert "Put back what it began with" in str(caught.value)
    if what == "tokenizer":
        return
    files[what].write_bytes(kept[what])
    sys.modules.pop("scoring_of_r", None)
    offline_pg.run(stopped, resume=True)
    same_results(cfg.out, stopped.out)
    sys.modules.pop("scoring_of_r", None)
