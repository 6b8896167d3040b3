"""Sources of reward: models, ensembles, functions and servers, each brought to one scale by its own moments."""

import json
import math
import random
import re
import shutil

import pytest
import tiny
import tolerances as tol
import torch
from cli.serving import Reply, Server

from keel.batches import Rollout
from keel.data.collate import collate
from keel.data.records import Message, Prompt
from keel.data.render import Row, template
from keel.endpoint import EndpointConfig
from keel.errors import ConfigError, DataError, EndpointError, ModelError, NumericsError
from keel.models.forward import response_scores
from keel.models.load import LoraSettings, ModelConfig, load_tokenizer, save_model, scalar_model
from keel.rollout.respond import Responses
from keel.rollout.reward import RewardSources, Scores, merged_moments, processed
from keel.rollout.reward_settings import RewardConfig, ScoreConfig

TEXTS = ["yes please .", "no", "the cat sat", "why ? hello two red", "yes yes"]
ENDED = [True, True, True, False, True]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A policy's folder and three reward models of its family."""
    base = tmp_path_factory.mktemp("m")
    source = str(tiny.llama(base / "policy"))
    for seed in (1, 2, 3):
        model = scalar_model(ModelConfig(path=source), seed=seed)
        with torch.no_grad():
            model.score.weight.mul_(10.0)
        save_model(model, load_tokenizer(source), base / f"rm{seed}", pad_id=0)
    return base


@pytest.fixture(scope="module")
def words(folders):
    return template(load_tokenizer(str(folders / "policy")))


@pytest.fixture(scope="module")
def responses(words):
    return answering(words, range(len(TEXTS)))


def answering(words, order) -> Responses:
    """The responses in that order, the last prompt being plain text to continue."""
    asked = [Prompt(f"q{i}", (Message("user", "hello cat " * (i + 1)),)) for i in range(4)] + [Prompt("q4", (), "one")]
    rows, heads = [], [words.prompt_ids(prompt) for prompt in asked]
    for i in order:
        said = words.response_ids(TEXTS[i], ENDED[i], after=asked[i].text)
        rows.append(Row(heads[i] + said, len(heads[i]), asked[i].id))
    tokens = collate(rows, words.pad_id)
    rollout = Rollout(tokens, torch.zeros(tokens.ids.shape), torch.tensor([ENDED[i] for i in order]),
                      torch.tensor(list(order)))
    return Responses(rollout, tuple(asked[i] for i in order), tuple(TEXTS[i] for i in order))


def models(folders, *seeds: int) -> tuple[ModelConfig, ...]:
    return tuple(ModelConfig(path=str(folders / f"rm{seed}")) for seed in seeds)


def letters(prompt, text: str, ended: bool) -> float:
    return float(len(text))


def remote(server: Server, **changes) -> RewardConfig:
    asked = EndpointConfig(url=server.url, timeout_s=5.0, retries=1, backoff_s=0.0)
    return RewardConfig(**({"name": "remote", "endpoint": asked} | changes))


def scored(words, responses, *sources: RewardConfig) -> Scores:
    return RewardSources(sources, words, 64)(responses)


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given, fragments", [
    ({}, ["reward 'a' has no source: give models, function, endpoint or answer"]),
    ({"models": ["m"], "function": "m:f"}, ["models and function exclude each other in reward 'a': make two rewards"]),
    ({"function": "m:f", "endpoint": "http://a/"}, ["function and endpoint exclude each other in reward 'a'"]),
    ({"function": "m:f", "weight": 0}, ["weight=0 makes reward 'a' act on nothing"]),
    ({"function": "m:f", "weight": math.nan}, ["weight = nan"]),
    ({"function": "m:f", "combine": "minimum"},
     ["combine='minimum' needs two or more models or adapters, reward 'a' has 0"]),
    ({"models": ["m"], "combine": "mean_minus_std", "dissent_coef": 1},
     ["needs two or more models or adapters, reward 'a' has 1"]),
    ({"models": ["m", "n"], "combine": "mean_minus_std"},
     ["combine='mean_minus_std' and dissent_coef=None do not go together in reward 'a'"]),
    ({"models": ["m", "n"], "dissent_coef": 1}, ["combine='mean' and dissent_coef=1.0 do not go together"]),
    ({"models": ["m", "n"], "combine": "mean_minus_variance"},
     ["combine='mean_minus_variance' and dissent_coef=None do not go together in reward 'a'"]),
    ({"models": ["m", "n"], "combine": "median", "dissent_coef": 1}, ["combine='median' and dissent_coef=1.0 do not"]),
    ({"models": ["m", "n"], "adapters": ["x"]},
     ["adapters need one model, the trunk they were trained on; reward 'a' has 2"]),
    ({"function": "m:f", "adapters": ["x"]}, ["adapters need one model, the trunk they were trained on"]),
    ({"models": ["m"], "adapters": ["x"], "combine": "minimum"},
     ["needs two or more models or adapters, reward 'a' has 1"]),
    ({"models": ["m"], "calibration": "p"},
     ["calibration needs two or more models or adapters to bring to one scale, reward 'a' has 1"]),
    ({"function": "m:f", "name": "a/b"}, ["name = 'a/b': string should match pattern"]),
])
def test_a_contradiction_names_both_fields(given, fragments):
    with pytest.raises(ConfigError) as caught:
        RewardConfig.checked({"name": "a"} | given)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_sources_have_names_of_their_own(words):
    short = RewardConfig(name="short", function="rollout.test_rollout_reward:letters")
    with pytest.raises(ConfigError, match="several rewards are called 'short'"):
        RewardSources([short, short], words, 64)
    with pytest.raises(ConfigError, match="rewards is empty: there is no source"):
        RewardSources([], words, 64)
    with pytest.raises(ConfigError, match="cannot import 'nowhere:f'"):
        RewardSources([RewardConfig(name="a", function="nowhere:f")], words, 64)


# --- models -----------------------------------------------------------------------------------------------------------


def test_a_single_model_scores_as_itself(folders, words, responses):
    found = scored(words, responses, RewardConfig(name="rm", models=models(folders, 1), weight=-2.0))
    expected = response_scores(scalar_model(models(folders, 1)[0]), responses.rollout.tokens).detach()
    torch.testing.assert_close(found.raw["rm"], expected, **tol.FLOAT32)
    torch.testing.assert_close(found.total, -2.0 * expected, **tol.FLOAT32)
    assert found.disagreement == {} and not found.total.requires_grad


def test_ensembles_combine_and_disagree(folders, words, responses):
    three = models(folders, 1, 2, 3)
    each = torch.stack([response_scores(scalar_model(m), responses.rollout.tokens).detach() for m in three])
    spread = ((each - each.sum(0) / 3).square().sum(0) / 3).sqrt()
    assert (spread > 0.1).all()
    found = scored(words, responses, RewardConfig(name="mean", models=three),
                   RewardConfig(name="least", models=three, combine="minimum"),
                   RewardConfig(name="wary", models=three, combine="mean_minus_std", dissent_coef=2.0),
                   RewardConfig(name="one", models=three[:1]))
    for name, expected in {"mean": each.sum(0) / 3, "least": torch.minimum(torch.minimum(each[0], each[1]), each[2]),
                           "wary": each.sum(0) / 3 - 2 * spread, "one": each[0]}.items():
        torch.testing.assert_close(found.raw[name], expected, **tol.GRADIENT32)
    assert list(found.disagreement) == ["mean", "least", "wary"]
    for dissent in found.disagreement.values():
        torch.testing.assert_close(dissent, spread, **tol.GRADIENT32)


def test_the_other_ways_by_hand(folders, words, responses):
    three = models(folders, 1, 2, 3)
    each = torch.stack([response_scores(scalar_model(m), responses.rollout.tokens).detach() for m in three])
    mean = each.sum(0) / 3
    found = scored(words, responses, RewardConfig(name="middle", models=three, combine="median"),
                   RewardConfig(name="wary", models=three, combine="mean_minus_variance", dissent_coef=0.5))
    torch.testing.assert_close(found.raw["middle"], each.sort(0).values[1], **tol.GRADIENT32)
    torch.testing.assert_close(found.raw["wary"], mean - 0.5 * (each - mean).square().sum(0) / 3, **tol.GRADIENT32)


WAYS = [("mean", None), ("minimum", None), ("median", None), ("mean_minus_std", 1.0), ("mean_minus_variance", 1.0)]


def test_members_that_are_one_do_not_disagree(folders, words, responses):
    same = [RewardConfig(name=how, models=models(folders, 1, 1), combine=how, dissent_coef=coef)
            for how, coef in WAYS]
    found = scored(words, responses, RewardConfig(name="one", models=models(folders, 1)), *same)
    for how, _ in WAYS:
        assert torch.equal(found.raw[how], found.raw["one"]) and not found.disagreement[how].any()


def test_members_in_any_order_say_the_same(folders, words, responses):
    sources = [RewardConfig(name=f"{how}-{i}", models=models(folders, *order), combine=how, dissent_coef=coef)
               for how, coef in WAYS for i, order in enumerate([(1, 2, 3), (3, 1, 2)])]
    found = scored(words, responses, *sources)
    for how, _ in WAYS:
        torch.testing.assert_close(found.raw[f"{how}-0"], found.raw[f"{how}-1"], **tol.FLOAT32)
        torch.testing.assert_close(found.disagreement[f"{how}-0"], found.disagreement[f"{how}-1"], **tol.FLOAT32)


def test_members_on_no_common_scale_are_warned_of():
    def warning(**changes):
        return RewardConfig.checked({"name": "a", "models": ["m", "n"]} | changes).warning

    assert "reward 'a' has combine='minimum' without calibration" in warning(combine="minimum")
    assert "combine='mean_minus_std' without" in warning(combine="mean_minus_std", dissent_coef=1)
    assert "counts as dissent" in warning(combine="minimum")
    assert "counts in the disagreement that is logged" in warning()
    assert warning(calibration="pairs.jsonl") is None and warning(models=["m"]) is None


def test_each_member_reads_the_responses_once(folders, words, responses, monkeypatch):
    from keel.rollout import reward

    calls: list[str] = []
    original = reward.Scorer.__call__
    monkeypatch.setattr(reward.Scorer, "__call__", lambda self, r: (calls.append("x"), original(self, r))[1])
    sources = RewardSources([RewardConfig(name="a", models=models(folders, 1, 2)),
                             RewardConfig(name="b", models=models(folders, 3))], words, 64)
    assert all(not parameter.requires_grad for scorers in sources._scorers.values() for scorer in scorers
               for parameter in scorer.model.parameters())
    sources(responses)
    assert len(calls) == 3


@pytest.mark.parametrize("another_template", [False, True])
def test_a_row_beyond_the_reward_models_context(folders, words, responses, tmp_path, another_template):
    """With the policy's tokenizer and with its own: the longest row, rendered prompt included, is what must fit."""
    own = template(load_tokenizer(str(folders / "rm1")))
    lengths = [len(own.prompt_ids(p) + own.response_ids(t, e, after=p.text))
               for p, t, e in zip(responses.prompts, responses.texts, ENDED, strict=True)]
    assert max(lengths) == lengths[3]
    for limit in (max(lengths), max(lengths) - 1):
        folder = shutil.copytree(folders / "rm1", tmp_path / str(limit))
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": limit}))
        if another_template:
            (folder / "chat_template.jinja").write_text("{# another #}" + tiny.TEMPLATE)
        sources = RewardSources([RewardConfig(name="rm", models=(ModelConfig(path=str(folder)),))], words, 64)
        assert sources._scorers["rm"][0].same_tokens is not another_template
        if limit == max(lengths):
            sources(responses)
            continue
        with pytest.raises(ModelError, match=f"record q3: too long for the reward model: the longest row has "
                                             f"{limit + 1} tokens, the model's context is {limit}"):
            sources(responses)


# --- adapters on one trunk --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapters(folders):
    """Three LoRA reward models on the policy, with heads and adapters that differ."""
    source, found = str(folders / "policy"), []
    for seed in (1, 2, 3):
        model = scalar_model(ModelConfig(path=source, lora=LoraSettings(rank=2)), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator))
        save_model(model, load_tokenizer(source), folders / f"lora{seed}", pad_id=0)
        found.append(str(folders / f"lora{seed}" / "adapter"))
    return tuple(found)


def test_adapters_on_one_trunk_are_an_ensemble_like_any_other(folders, words, responses, adapters):
    """As the three models into which the same adapters were merged."""
    trunk = (ModelConfig(path=str(folders / "policy")),)
    merged = tuple(ModelConfig(path=str(folders / f"lora{seed}")) for seed in (1, 2, 3))
    sources = RewardSources([RewardConfig(name="light", models=trunk, adapters=adapters, combine="minimum"),
                             RewardConfig(name="heavy", models=merged, combine="minimum"),
                             RewardConfig(name="one", models=trunk, adapters=adapters[1:2]),
                             RewardConfig(name="two", models=merged[1:2])], words, 64)
    found = sources(responses)
    torch.testing.assert_close(found.raw["light"], found.raw["heavy"], **tol.GRADIENT32)
    torch.testing.assert_close(found.disagreement["light"], found.disagreement["heavy"], **tol.GRADIENT32)
    torch.testing.assert_close(found.raw["one"], found.raw["two"], **tol.GRADIENT32)
    assert list(found.disagreement) == ["light", "heavy"] and (found.disagreement["light"] > 0.1).all()
    views = [scorer.model for scorer in sources._scorers["light"]]
    assert len({view.base_model for view in views}) == 1 and len(views) == 3


def test_a_trunk_is_no_model_to_start_a_critic_from(folders, adapters):
    trunk = ModelConfig(path=str(folders / "policy"))
    assert RewardConfig(name="a", models=(trunk,), adapters=adapters).whole is None
    assert RewardConfig(name="a", models=models(folders, 2, 1)).whole == models(folders, 2)[0]
    assert RewardConfig(name="a", function="m:f").whole is None


# --- calibration ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shifted(folders):
    """Encoders as reward models: one, and the same one whose scores are 3 s + 100."""
    source = tiny.bert(folders / "encoder")
    model = scalar_model(ModelConfig(path=str(source)))
    with torch.no_grad():
        model.classifier.weight.mul_(3.0)
        model.classifier.bias.mul_(3.0).add_(100.0)
    save_model(model, load_tokenizer(str(source)), folders / "shifted", pad_id=0)
    return ModelConfig(path=str(source)), ModelConfig(path=str(folders / "shifted"))


def test_a_member_on_another_scale_counts_the_same_once_calibrated(folders, words, responses, shifted, tmp_path):
    """Raw, the minimum is simply the one with the lower offset; in units of the calibration set both say the same."""
    (plain, moved), [third] = shifted, models(folders, 1)
    file = str(tiny.pairs(tmp_path / "pairs.jsonl"))
    both = {"models": (plain, moved), "combine": "minimum"}
    found = scored(words, responses, RewardConfig(name="raw", **both), RewardConfig(name="plain", models=(plain,)),
                   RewardConfig(name="calibrated", **both, calibration=file),
                   RewardConfig(name="a", models=(plain, third), combine="minimum", calibration=file),
                   RewardConfig(name="b", models=(moved, third), combine="minimum", calibration=file))
    assert torch.equal(found.raw["raw"], found.raw["plain"]) and (found.disagreement["raw"] > 40).all()
    torch.testing.assert_close(found.disagreement["calibrated"], torch.zeros(len(TEXTS)), **tol.SHIFTED32)
    torch.testing.assert_close(found.raw["b"], found.raw["a"], **tol.SHIFTED32)
    assert not torch.allclose(found.raw["a"], found.raw["calibrated"])


@pytest.mark.parametrize("kind", ["pairs", "demonstrations"])
def test_the_units_are_measured_on_every_response_of_the_file(folders, words, responses, tmp_path, kind):
    """Both sides of a pair: 48 responses. In float64, from scores of one row at a time."""
    two, file = models(folders, 1, 2), getattr(tiny, kind)(tmp_path / "file.jsonl")
    rows = []
    for record in map(json.loads, file.read_text().splitlines()):
        told = [record["chosen"], record["rejected"]] if kind == "pairs" else [record["completion"]]
        head = words.prompt_ids(Prompt("x", (Message("user", record["prompt"][0]["content"]),)))
        rows += [Row(head + words.response_ids(said[0]["content"]), len(head), "x") for said in told]
    assert len(rows) == (48 if kind == "pairs" else 24)
    sources = RewardSources([RewardConfig(name="two", models=two, combine="minimum", calibration=str(file))], words, 64)
    expected = []
    for i, spec in enumerate(two):
        model = scalar_model(spec)
        x = [float(response_scores(model, collate([row], 0)).detach()) for row in rows]
        mean = sum(x) / len(x)
        std = math.sqrt(sum((s - mean) ** 2 for s in x) / len(x))
        assert sources.calibration["two"]["mean"][i] == pytest.approx(mean, rel=tol.RELATIVE32)
        assert sources.calibration["two"]["std"][i] == pytest.approx(std, rel=tol.RELATIVE32)
        expected.append((response_scores(model, responses.rollout.tokens).detach() - mean) / std)
    torch.testing.assert_close(sources(responses).raw["two"], torch.minimum(*expected), **tol.GRADIENT32)
    assert sources.notes == []


def test_what_the_length_limit_does_to_a_calibration_set_is_said(folders, words, tmp_path):
    file = {"path": str(tiny.pairs(tmp_path / "pairs.jsonl")), "max_length": 12}
    sources = RewardSources([RewardConfig(name="two", models=models(folders, 1, 2), calibration=file)], words, 64)
    [note] = sources.notes
    assert note.startswith("reward 'two', calibration: 48 rows at most 12 tokens long: 0 without") and "dropped" in note


def test_a_member_without_a_scale_cannot_be_calibrated(folders, words, tmp_path):
    flat = shutil.copytree(folders / "rm1", tmp_path / "flat")
    model = scalar_model(ModelConfig(path=str(flat)))
    with torch.no_grad():
        model.score.weight.zero_()
    save_model(model, load_tokenizer(str(flat)), flat, pad_id=0)
    file = tiny.pairs(tmp_path / "pairs.jsonl")
    source = RewardConfig(name="a", models=(*models(folders, 1), ModelConfig(path=str(flat))), calibration=str(file))
    with pytest.raises(ModelError, match="member 2 of the ensemble gives all 48 calibration responses the same score"):
        RewardSources([source], words, 64)


def test_prompts_are_no_calibration_set(folders, words, tmp_path):
    file = tiny.prompts(tmp_path / "prompts.jsonl")
    source = RewardConfig(name="a", models=models(folders, 1, 2), calibration=str(file))
    with pytest.raises(DataError, match="no columns for a demonstration"):
        RewardSources([source], words, 64)


# --- functions --------------------------------------------------------------------------------------------------------


def test_adapters_on_a_frozen_reward_model_are_refused(folders, words, responses):
    adapted = models(folders, 1)[0].model_copy(update={"lora": LoraSettings(rank=2)})
    with pytest.raises(ConfigError, match=r"lora\.rank=2 of a reward model that only scores"):
        scored(words, responses, RewardConfig(name="a", models=(adapted,)))


def test_a_function_scores_text(words, responses):
    found = scored(words, responses, RewardConfig(name="yes", function="tiny:count_yes", weight=3.0))
    assert found.raw["yes"].tolist() == [1.0, 0.0, 0.0, -0.5, 2.0] and found.raw["yes"].dtype == torch.float32
    assert found.total.tolist() == [3.0, 0.0, 0.0, -1.5, 6.0] and found.disagreement == {}


def test_a_function_that_gives_no_number_names_the_record(words, responses):
    source = RewardConfig(name="root", function="math:sqrt")
    with pytest.raises(NumericsError, match="record q0: the scoring function failed: TypeError"):
        scored(words, responses, source)


# --- endpoints --------------------------------------------------------------------------------------------------------


def by_length(body) -> Reply:
    return Reply({"scores": [len(item["response"]) for item in body["items"]],
                  "ids": [item["id"] for item in body["items"]]})


@pytest.mark.parametrize("batch, sizes", [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (64, [5])])
def test_a_server_is_asked_in_batches(words, responses, batch, sizes):
    with Server(by_length) as server:
        found = scored(words, responses, remote(server, batch=batch))
    assert found.raw["remote"].tolist() == [float(len(text)) for text in TEXTS]
    assert [len(body["items"]) for _, _, body in server.asked] == sizes


def test_a_server_gets_turns_or_text(words, responses):
    with Server(by_length) as server:
        scored(words, responses, remote(server))
    items = server.asked[0][2]["items"]
    assert items[0] == {"id": "q0", "messages": [{"role": "user", "content": "hello cat "}],
                        "response": "yes please .", "ended": True}
    assert items[4] == {"id": "q4", "prompt": "one", "response": "yes yes", "ended": True}
    assert [item["ended"] for item in items] == ENDED


def test_a_server_that_stumbles_is_asked_again(words, responses):
    with Server(Reply(b"", 500), by_length, Reply(b"", 429, {"retry-after": "0"}), by_length) as server:
        found = scored(words, responses, remote(server, batch=3))
    assert found.raw["remote"].tolist() == [float(len(text)) for text in TEXTS] and len(server.asked) == 4


ORDER = ["q0", "q1", "q2", "q3", "q4"]


@pytest.mark.parametrize("answer, fragment", [
    ({"scores": [1, 2, 3, 4]}, "records q0, q1, q2, q3, q4: the endpoint gave 4 scores for 5 responses"),
    ({"scores": [1, 2, 3, 4, 5, 6]}, "the endpoint gave 6 scores for 5 responses"),
    ({"scores": [1, 2, 3, 4, 5], "ids": ORDER[::-1]}, "the endpoint's ids are not those of the request, or in another"),
    ({"scores": [1, 2, 3, 4, 5], "ids": None}, "the endpoint's ids are not those"),
    ({"score": [1, 2, 3, 4, 5]}, "the endpoint's answer has no list `scores`"),
    ({"scores": {"q0": 1}}, "records q0, q1, q2, q3, q4: the endpoint's answer has no list `scores`"),
    ([1, 2, 3, 4, 5], "the endpoint's answer has no list `scores`"),
    (b'{"scores": [1, NaN, 3, Infinity, 5]}',
     "reward 'remote': the endpoint gave what is no finite number (q1: nan; q3: inf)"),
    ({"scores": [1, "2", None, True, [5]]}, "no finite number (q1: '2'; q2: None; q3: True; q4: [5])"),
    ({"scores": [1, "\x1b[31m", 3, 4, 5]}, r"no finite number (q1: '\x1b[31m')"),  # a server cannot colour the terminal
    ({"scores": [1, 1e39, 3, -(10**400), 5]}, "no finite number (q1: 1e+39; q3: -1000"),
])
def test_a_server_that_does_not_give_one_number_each(words, responses, answer, fragment):
    with Server(Reply(answer)) as server, pytest.raises(EndpointError, match=re.escape(fragment)) as caught:
        scored(words, responses, remote(server))
    assert caught.value.where.startswith("reward 'remote'") and caught.value.remedy
    assert len(server.asked) == 1


# --- all together -----------------------------------------------------------------------------------------------------


def test_the_total_is_the_weighted_sum_of_all(folders, words, responses):
    with Server(by_length) as server:
        rewards = [RewardConfig(name="rm", models=models(folders, 1, 2)), remote(server, weight=-0.25),
                   RewardConfig(name="yes", function="tiny:count_yes", weight=0.5)]
        sources = RewardSources(rewards, words, 64)
        found = sources(responses)
    assert list(found.raw) == ["rm", "remote", "yes"] and list(found.disagreement) == ["rm"]
    assert sources.weights == {"rm": 1.0, "remote": -0.25, "yes": 0.5}
    torch.testing.assert_close(found.total, found.raw["rm"] - 0.25 * found.raw["remote"] + 0.5 * found.raw["yes"],
                               **tol.FLOAT32)


def test_permuting_responses_permutes_scores(folders, words, responses):
    order = [3, 0, 4, 2, 1]
    with Server(by_length) as server:
        sources = RewardSources([RewardConfig(name="rm", models=models(folders, 1, 2), combine="minimum"),
                                 RewardConfig(name="yes", function="tiny:count_yes"), remote(server, batch=2)],
                                words, 40)
        found, moved = sources(responses), sources(answering(words, order))
    for name, column in (found.raw | {f"d/{k}": x for k, x in found.disagreement.items()}).items():
        other = moved.disagreement[name[2:]] if name.startswith("d/") else moved.raw[name]
        torch.testing.assert_close(other, column[order], **tol.FLOAT32)
    torch.testing.assert_close(moved.total, found.total[order], **tol.FLOAT32)
    mask = responses.rollout.tokens.response_mask
    here, there = (merged_moments({}, s, m) for s, m in ((found, mask), (moved, mask[order])))
    weights = sources.weights
    for scale in ("scores", "rolling"):
        cfg = ScoreConfig(scale=scale)
        torch.testing.assert_close(processed(moved, there, cfg, weights), processed(found, here, cfg, weights)[order],
                                   **tol.FLOAT32)


# --- moments ----------------------------------------------------------------------------------------------------------

MASK = torch.tensor([[False, True, True, False], [False, False, True, False]])
FIRST = Scores(torch.zeros(2), {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([10.0, 10.0])}, {})
WEIGHTS = {"a": 1.0, "b": 0.5}


def test_each_source_has_moments_of_its_own():
    """a: mean 2, M2 = 1 + 1; b: mean 10, M2 = 0. Rolling sums of a: 0, 1; 3: mean 4/3, M2 = 42/9; of b: 0, 10; 10."""
    found = merged_moments({}, FIRST, MASK)
    assert list(found) == ["a", "a/rolling", "b", "b/rolling"]
    for name, expected in {"a": (2, 2, 2), "b": (2, 10, 0), "a/rolling": (3, 4 / 3, 42 / 9),
                           "b/rolling": (3, 20 / 3, 200 / 3)}.items():
        torch.testing.assert_close(found[name], torch.tensor(expected, dtype=torch.float64), **tol.FLOAT64)


def test_moments_run_over_batches_and_the_old_ones_stay():
    """Second batch of a: 5 on one response of one token. Scores 1, 3, 5: mean 3, M2 = 8; sums 0, 1, 3, 5."""
    first = merged_moments({}, FIRST, MASK)
    kept = {name: x.clone() for name, x in first.items()}
    second = Scores(torch.zeros(1), {"a": torch.tensor([5.0]), "b": torch.tensor([4.0])}, {})
    found = merged_moments(first, second, torch.tensor([[False, True]]))
    for name, expected in {"a": (3, 3, 8), "b": (3, 8, 24), "a/rolling": (4, 2.25, 14.75)}.items():
        torch.testing.assert_close(found[name], torch.tensor(expected, dtype=torch.float64), **tol.FLOAT64)
    assert all(torch.equal(first[name], kept[name]) for name in kept) and found is not first


def test_a_source_that_is_new_starts_from_nothing():
    first = merged_moments({}, Scores(FIRST.total, {"a": FIRST.raw["a"]}, {}), MASK)
    assert merged_moments(first, FIRST, MASK)["b"].tolist() == [2, 10, 0]
    assert merged_moments(first, FIRST, MASK)["a"].tolist() == [4, 2, 4]


ROOT2, ROLLING = 2**0.5, (42 / 9 / 2) ** 0.5


@pytest.mark.parametrize("settings, expected", [
    # a: (1 - 2) / sqrt(2), (3 - 2) / sqrt(2); b has no spread: 0 / min_std
    ({}, [-1 / ROOT2, 1 / ROOT2]),
    # a by the spread of its rolling sums; b: (10 - 10) / sqrt(100 / 3)
    ({"scale": "rolling"}, [-1 / ROLLING, 1 / ROLLING]),
    ({"scale": None}, [-1.0, 1.0]),
    ({"scale": None, "clip": 0.25}, [-0.25, 0.25]),
    # raw: 1 + 0.5 * 10, 3 + 0.5 * 10; clipped source by source at 2: 1 + 0.5 * 2, 2 + 0.5 * 2
    ({"scale": None, "center": False}, [6.0, 8.0]),
    ({"scale": None, "center": False, "clip": 2.0}, [2.0, 3.0]),
    # b: 10 / min_std, clipped
    ({"center": False, "min_std": 2.0, "clip": None}, [0.5 + 2.5, 1.5 + 2.5]),
    ({"center": False, "scale": "rolling", "clip": None},
     [1 / ROLLING + 5 / (100 / 3) ** 0.5, 3 / ROLLING + 5 / (100 / 3) ** 0.5]),
])
def test_processing_by_hand(settings, expected):
    found = processed(FIRST, merged_moments({}, FIRST, MASK), ScoreConfig(**settings), WEIGHTS)
    torch.testing.assert_close(found, torch.tensor(expected), **tol.FLOAT32)


def test_one_source_is_not_moved_by_another():
    """The same scores of a, beside a source on another scale: its part of the reward stays as it was."""
    alone, beside = Scores(FIRST.total, {"a": FIRST.raw["a"]}, {}), {"a": FIRST.raw["a"], "b": FIRST.raw["b"] * 1e6}
    both = Scores(FIRST.total, beside, {})
    expected = processed(alone, merged_moments({}, alone, MASK), ScoreConfig(), {"a": 1.0})
    found = processed(both, merged_moments({}, both, MASK), ScoreConfig(), WEIGHTS)
    torch.testing.assert_close(found, expected, **tol.FLOAT32)


def test_batches_in_any_cut_give_the_same_moments():
    generator = random.Random(0)
    raw = torch.tensor([generator.gauss(3.0, 2.0) for _ in range(12)])
    lengths = torch.tensor([1 + generator.randrange(5) for _ in range(12)])
    mask = torch.arange(7)[None, :].ge(1) & torch.arange(7)[None, :].le(lengths[:, None])
    whole = merged_moments({}, Scores(raw, {"a": raw}, {}), mask)
    parts: dict[str, torch.Tensor] = {}
    for part in (slice(0, 1), slice(1, 7), slice(7, 12)):
        parts = merged_moments(parts, Scores(raw[part], {"a": raw[part]}, {}), mask[part])
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], **tol.FLOAT64)


def test_moments_survive_a_checkpoint(tmp_path):
    found = merged_moments({}, FIRST, MASK)
    torch.save({"moments": found}, tmp_path / "a.pt")
    read = torch.load(tmp_path / "a.pt", weights_only=True)["moments"]
    on, resumed = (merged_moments(moments, FIRST, MASK) for moments in (found, read))
    assert list(on) == list(resumed) and all(torch.equal(on[name], resumed[name]) for name in on)
