"""Anchoring and steering of training passes: what they cost by hand, whom they spare, and that they leave no trace."""

import copy
import json
from types import SimpleNamespace

import pytest
import tiny
import tolerances as tol
import torch

from keel.data.collate import collate, join
from keel.data.records import Message, Prompt
from keel.data.render import PromptRow, Row, template
from keel.errors import ConfigError, DataError, ModelError
from keel.models.forward import hidden_states, token_logprobs
from keel.models.load import ModelConfig, causal_lm
from keel.online.anchor import Anchor, AnchorConfig, Start, anchored
from keel.online.gauge import Gauge, SampledMeans, content, opened, readings, response_means
from keel.online.held import Held, held, refuse_both
from keel.persona.axis import AssistantAxis
from keel.persona.settings import AxisConfig
from keel.rollout.sample import SamplingConfig, sample
from keel.train.tally import Tally

END = 2


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model of three blocks, and an axis of its shape that names block 1."""
    folder = tmp_path_factory.mktemp("home")
    tiny.llama(folder / "model", layers=3)
    drawn = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    AssistantAxis(drawn, token_norm=torch.ones(3), meta={"layer": "1"}).save(folder / "axis.safetensors")
    AssistantAxis(drawn[:2], meta={"layer": "1"}).save(folder / "shorter.safetensors")
    return folder


@pytest.fixture
def model(home):
    return causal_lm(ModelConfig(path=str(home / "model")))


@pytest.fixture(scope="module")
def words():
    return template(tiny.tokenizer())


def rows(n: int = 6) -> list[Row]:
    """Ragged rows, each response with the end of its turn."""
    g = torch.Generator().manual_seed(1)
    return [Row([*torch.randint(7, 23, (4 + i % 3 + 1 + i,), generator=g).tolist(), END], 4 + i % 3, f"r{i}")
            for i in range(n)]


def states(model, ids: list[int]) -> list[torch.Tensor]:
    """Output of every block, from transformers itself; the last one before the final norm."""
    seen = []
    hooks = [block.register_forward_hook(lambda _, __, out: seen.append(out if torch.is_tensor(out) else out[0]))
             for block in model.model.layers]
    model(input_ids=torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return [x[0] for x in seen]


def start(home, model, words, log=None, **changes) -> Start:
    if log is None:
        log = SimpleNamespace(folder=home / "none", notes=[], resumed=False)
        log.note = log.notes.append
    log.folder.mkdir(exist_ok=True)
    for file in log.folder.glob("*.json"):
        file.unlink()
    settings = {"sampling": SamplingConfig(max_new_tokens=6), "room": 40, "micro_tokens": 60, "seed": 0}
    return Start(model, words, log=log, **(settings | changes))


def asked(words, systems: bool = False, n: int = 8) -> list[PromptRow]:
    found = []
    for i, turns in enumerate(tiny.conversations(n)):
        messages = (Message("user", turns[0]["content"]),)
        if systems:
            messages = (Message("system", "red cat"), *messages)
        prompt = Prompt(f"q{i}", messages)
        found.append(PromptRow(words.prompt_ids(prompt), prompt))
    return found


# --- readings --------------------------------------------------------------------------------------------------------


def test_projections_are_those_of_each_row_alone(home, model, words):
    units = opened(home / "axis.safetensors", model, (0, 2))
    found = readings(model, Gauge(units), rows(), words, 30)
    for row, one in zip(rows(), found, strict=True):
        here = states(model, row.ids)
        by_hand = torch.stack([here[layer][row.n_prompt : -1] @ unit for layer, unit in units.items()])
        torch.testing.assert_close(one, by_hand.detach(), **tol.FLOAT32)


@pytest.mark.parametrize("prompts", [[[4], [1, 4, 9, 11], [5], [1, 4, 7], [8, 9]], [[4], [5], [7], [9]]])
def test_what_is_heard_while_sampling_is_what_a_pass_over_it_reads(home, model, words, prompts):
    """Prompts of one token and of several, more of them than slots, or of one alone, which are fed as a token of a
    response is; the last token of a response is never fed."""
    gauge = Gauge(opened(home / "axis.safetensors", model, (2, 0)))
    heard = SampledMeans(gauge, len(prompts))
    streams = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    with heard.on(model):
        rollout = sample(model, prompts, SamplingConfig(max_new_tokens=7, slots=3), streams, stop_ids=[END], pad_id=0,
                         record_ids=["r"] * len(prompts))
    lengths = rollout.tokens.attention_mask.sum(1).tolist()
    fed = [Row(ids[: n - 1].tolist(), len(prompt), "r") for ids, n, prompt in zip(
        rollout.tokens.ids, lengths, prompts, strict=True)]
    read = response_means(readings(model, gauge, fed, words, 60))
    assert not read.isnan().all() and len(set(lengths)) > 1
    torch.testing.assert_close(heard.means(), read, equal_nan=True, **tol.FLOAT32)


def test_directions_come_from_the_file_or_from_the_seed(home, model):
    path = home / "axis.safetensors"
    axis = AssistantAxis.load(path)
    assert list(opened(path, model, ())) == [1] and torch.equal(opened(path, model, ())[1], axis.unit(1))
    one, same, other = (opened(path, model, (-1,), control=seed)[2] for seed in (3, 3, 4))
    assert torch.equal(one, same) and not torch.equal(one, other) and not torch.equal(one, axis.unit(2))
    torch.testing.assert_close(one.norm(), torch.tensor(1.0), **tol.FLOAT32)
    with pytest.raises(ModelError, match="the axis has 2 blocks, the model 3"):
        opened(home / "shorter.safetensors", model, ())


# --- the price -------------------------------------------------------------------------------------------------------


def priced(model, batch, anchor, weights=None, total=None):
    """The cost of a batch and the gradient that it leaves on the model."""
    tally, weights = Tally(), batch.response_mask.float() if weights is None else weights
    model.zero_grad()
    with Held(anchor=anchor).passing(model):
        hidden_states(model, batch)
    cost = anchor.cost(batch, weights, weights.sum() if total is None else total, tally)
    if cost.requires_grad:
        cost.backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return cost.detach(), torch.cat([g.flatten() for g in grads]), tally.means()


def an_anchor(home, model, names=None, floor=(1.0, -0.5), coef: float = 0.7) -> Anchor:
    units = opened(home / "axis.safetensors", model, (0, 2))
    return Anchor(Gauge(units), floor, (0.5, 2.0), coef, names, (END,))


def test_cost_and_gradient_are_those_of_a_plain_loop(home, model):
    """Two blocks, in float64, row by row without padding; one row is spared, and the ends of turns cost nothing."""
    names, given = frozenset({"r0", "r2", "r3", "r5"}), rows()
    anchor = an_anchor(home, model, names)
    batch = collate(given, 0)
    weights = batch.response_mask * torch.linspace(0.5, 2.0, len(given))[:, None]
    cost, gradient, told = priced(model, batch, anchor, weights)
    slow, terms, below, heights = copy.deepcopy(model).double(), [], [], []
    for k, row in enumerate(given):
        if row.record_id not in names:
            continue
        here = states(slow, row.ids)
        for t in range(row.n_prompt, len(row.ids) - 1):
            short = [float(floor) - here[layer][t] @ anchor.gauge.units[layer].double()
                     for layer, floor in ((0, 1.0), (2, -0.5))]
            terms.append(weights[k, t].double() * sum(
                (x if x > 0 else 0 * x) ** 2 / s**2 for x, s in zip(short, (0.5, 2.0), strict=True)))
            first, second = (float(x.detach()) for x in short)
            below.append((float(max(first, second) > 0), float(weights[k, t])))
            heights.append(-(first / 0.5 + second / 2.0) / 2 * float(weights[k, t]))
    expected = 0.7 * sum(terms) / weights.sum().double()
    expected.backward()
    slow_gradient = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                               for p in slow.parameters()])
    torch.testing.assert_close(cost.double(), expected.detach(), **tol.FLOAT32)
    torch.testing.assert_close(gradient.double(), slow_gradient, **tol.GRADIENT32)
    mass = sum(w for _, w in below)
    assert 0 < told["anchor/below"] < 1
    assert told["anchor/loss"] == pytest.approx(float(expected.detach()) / 0.7, rel=tol.RELATIVE32)
    assert told["anchor/below"] == pytest.approx(sum(x * w for x, w in below) / mass, rel=tol.RELATIVE32)
    assert told["anchor/height"] == pytest.approx(sum(heights) / mass, rel=tol.RELATIVE32)


def test_micro_batches_padding_and_a_joined_batch_change_nothing(home, model):
    given, anchor = rows(), an_anchor(home, model)
    whole = collate(given, 0)
    total = whole.response_mask.sum()
    cost, gradient, _ = priced(model, whole, anchor)
    parts = [priced(model, collate([given[i] for i in part], 0), anchor, total=total)
             for part in ([0, 4], [1, 2, 3], [5])]
    torch.testing.assert_close(sum(part[0] for part in parts), cost, **tol.FLOAT32)
    torch.testing.assert_close(sum(part[1] for part in parts), gradient, **tol.GRADIENT32)
    pairs = [Row(given[0].ids[:5] + [9 + i] * (2 + i) + [END], 5, f"p{i}") for i in range(2)]
    apart, joined = collate(pairs, 0), join(collate(pairs, 0), [0, 0])
    assert joined.n_positions < apart.n_positions
    one, other = (priced(model, batch, anchor) for batch in (apart, joined))
    assert one[0] > 0
    torch.testing.assert_close(one[0], other[0], **tol.FLOAT32)
    torch.testing.assert_close(one[1], other[1], **tol.GRADIENT32)


def test_above_the_floor_nothing_costs_and_nobody_anchored_costs_nothing(home, model):
    batch = collate(rows(), 0)
    for anchor in (an_anchor(home, model, floor=(-1e6, -1e6)), an_anchor(home, model, names=frozenset({"other"}))):
        cost, gradient, told = priced(model, batch, anchor)
        assert cost == 0 and not gradient.any() and told["anchor/loss"] == told["anchor/below"] == 0


def test_ends_of_turns_are_no_content():
    batch = collate([Row([9, 8, 7, END, 11, END], 2, "two turns")], 0)
    assert content(batch, (END,)).tolist() == [[False, False, True, False, True, False]]


# --- where it starts -------------------------------------------------------------------------------------------------


def test_thresholds_are_percentile_and_spread_of_the_default_answers(home, model, words):
    """Of random directions as of the axis: each by the same rule, so the same share of tokens starts below."""
    begun, prompts = start(home, model, words), asked(words)
    for control in (None, 5):
        cfg = AnchorConfig(path=home / "axis.safetensors", percentile=25, layers=(0, 2), control=control, prompts="all")
        found = anchored(cfg, start(home, model, words), prompts)
        gauge = Gauge(opened(cfg.path, model, cfg.layers, control))
        tokens = torch.cat(begun.means(gauge, prompts, "defaults"), 1)
        ordered = tokens.sort(1).values
        place = 0.25 * (tokens.shape[1] - 1)
        low, share = int(place), place - int(place)
        expected = ordered[:, low] + share * (ordered[:, low + 1] - ordered[:, low])
        torch.testing.assert_close(torch.tensor(found.floor), expected, **tol.FLOAT32)
        torch.testing.assert_close(torch.tensor(found.spread), tokens.std(1), **tol.FLOAT32)
        assert found.rows is None and found.coef == cfg.coef


def test_prompts_on_which_the_start_is_below_are_spared(home, model, words):
    """Repeated prompts are answered once and share the verdict."""
    prompts = asked(words)
    twice = [*prompts, *(PromptRow(row.ids, Prompt(f"again {row.record_id}", row.record.messages)) for row in prompts)]
    begun = start(home, model, words)
    found = anchored(AnchorConfig(path=home / "axis.safetensors", percentile=50), begun, twice)
    answers = begun.means(found.gauge, prompts, "own answers")
    good = {row.record_id for row, one in zip(prompts, answers, strict=True) if float(one.mean()) >= found.floor[0]}
    assert 0 < len(good) < len(prompts)
    assert found.rows == good | {f"again {name}" for name in good}
    assert f"anchored are {len(good)} of {len(prompts)} different prompts" in begun.log.notes[0]


def test_defaults_come_from_a_file_or_from_prompts_without_a_system_turn(home, model, words):
    path = home / "axis.safetensors"
    plain, roles = asked(words), [PromptRow(row.ids, Prompt(f"role {row.record_id}", row.record.messages))
                                  for row in asked(words, systems=True)]
    mixed, alone = (anchored(AnchorConfig(path=path, prompts="all"), start(home, model, words), some)
                    for some in ([*roles, *plain], plain))
    assert mixed.floor == alone.floor
    with pytest.raises(ConfigError, match="no prompt of the run is short enough and without a system turn"):
        anchored(AnchorConfig(path=path, prompts="all"), start(home, model, words), roles)
    file = tiny.prompts(home / "defaults.jsonl", 12)
    some = anchored(AnchorConfig(path=path, prompts="all", defaults=str(file), n_defaults=5),
                    start(home, model, words), roles)
    assert some.floor != alone.floor
    assert len(start(home, model, words).read(str(file), 5, "defaults")) == 5


def test_what_cannot_be_measured_or_holds_nothing_is_refused(home, model, words):
    path, prompts = home / "axis.safetensors", asked(words)
    silent = start(home, model, words, sampling=SamplingConfig(max_new_tokens=1, temperature=0))
    with pytest.raises(DataError, match="default answers leave no threshold to measure"):
        anchored(AnchorConfig(path=path), silent, prompts[:1])
    with pytest.raises(ConfigError, match="the start's own answers fall below tau on all"):
        anchored(AnchorConfig(path=path, percentile=99.9), start(home, model, words), prompts)


def test_a_resumed_run_reads_what_the_run_began_with(home, model, words):
    cfg = AnchorConfig(path=home / "axis.safetensors", percentile=50)
    begun = start(home, model, words)
    first = anchored(cfg, begun, asked(words))
    assert json.loads((begun.log.folder / "anchor.json").read_text()) == first.row()
    begun.log.resumed = True
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    again = anchored(cfg, begun, asked(words))
    assert (again.floor, again.spread, again.rows) == (first.floor, first.spread, first.rows)
    begun.log.resumed = False  # one that failed before its first step is begun anew
    assert anchored(AnchorConfig(path=cfg.path, prompts="all"), begun, asked(words)).floor != first.floor


# --- acting on training passes ---------------------------------------------------------------------------------------


def test_steering_acts_inside_and_leaves_the_model_as_it_was(home, model, words):
    batch = collate(rows(), 0)
    how = AxisConfig(path=home / "axis.safetensors", steer=-1.5, unit="unit", layers=(1,))
    holds = held(None, how, start(home, model, words), [])
    axis = AssistantAxis.load(home / "axis.safetensors")
    plain = token_logprobs(model, batch)[0]
    for _ in range(2):
        with holds.passing(model):
            inside = token_logprobs(model, batch)[0]
        with axis.steer(model, -1.5, unit="unit", layers=[1]):
            by_hand = token_logprobs(model, batch)[0]
        assert torch.equal(inside, by_hand) and not torch.equal(inside, plain)
        assert torch.equal(token_logprobs(model, batch)[0], plain)
    with pytest.raises(ZeroDivisionError), holds.passing(model):
        1 / 0  # noqa: B018
    assert torch.equal(token_logprobs(model, batch)[0], plain)


def test_off_means_off(home, model, words):
    batch = collate(rows(), 0)
    holds = held(None, None, start(home, model, words), [])
    with holds.passing(model):
        assert torch.equal(token_logprobs(model, batch)[0], token_logprobs(model, batch)[0])
    assert holds.cost(batch, batch.response_mask.float(), 1.0, Tally()) == 0.0 and holds.handles == ()


def test_settings_that_say_nothing_together_are_refused(home):
    path = home / "axis.safetensors"
    with pytest.raises(ValueError, match="one prices the states that the other moves"):
        refuse_both(AnchorConfig(path=path), AxisConfig(path=path, steer=-1.0))
    with pytest.raises(ValueError, match="steered names an axis and nothing to do with it"):
        refuse_both(None, AxisConfig(path=path))
    refuse_both(None, AxisConfig(path=path, lower=0.0))
