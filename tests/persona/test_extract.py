"""Running sums: which tokens count, that nothing depends on batches or parts, and that what is planted is found."""

import dataclasses

import pytest
import tiny
import torch
from tolerances import EXACT, FLOAT32, FLOAT64, HEARD, PLANTED

from keel.data.chat import template
from keel.data.records import Message, Prompt
from keel.errors import RunError
from keel.models.load import ModelConfig, causal_lm, load_tokenizer
from keel.models.residual import Columns, attach
from keel.persona import extract
from keel.persona.extract import Heard, Listener, RoleSums, kept_alike, read_again, read_sums, sums_file
from keel.rng import stream
from keel.rollout.sample import SamplingConfig, sample

LAYERS = 3


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    path = str(tiny.llama(tmp_path_factory.mktemp("m"), layers=LAYERS))
    return causal_lm(ModelConfig(path=path)), template(load_tokenizer(path))


@pytest.fixture(scope="module")
def asked(spoken):
    return [spoken[1].prompt_ids(Prompt(f"p{i}", tuple(Message(**m) for m in talk)))
            for i, talk in enumerate(tiny.conversations(24))]


def written(spoken, prompts, **sampling):
    """What the sampler wrote and what was heard: token ids of each response, whether it ended, and the means."""
    model, words = spoken
    listener = Listener(len(prompts), LAYERS)
    with attach(model, listener.taps):
        rollout = sample(model, prompts, SamplingConfig(**({"max_new_tokens": 12, "temperature": 1.3} | sampling)),
                         [stream(0, "s", i) for i in range(len(prompts))], stop_ids=words.stop_ids, pad_id=words.pad_id,
                         record_ids=[str(i) for i in range(len(prompts))])
    ids = [row[mask].tolist() for row, mask in zip(rollout.tokens.ids, rollout.tokens.response_mask, strict=True)]
    return ids, rollout.ended.tolist(), listener.heard()


def states(spoken, row):
    """Output of every block over one row of tokens, by hand: embeddings, then block by block. [L T D]"""
    found = []
    hooks = [block.register_forward_hook(lambda _, __, out: found.append(out if torch.is_tensor(out) else out[0]))
             for block in spoken[0].model.layers]
    with torch.no_grad():
        spoken[0](torch.tensor([row]))
    for hook in hooks:
        hook.remove()
    return torch.cat(found).float()


def test_what_is_heard_while_sampling_is_the_mean_over_what_was_fed(spoken, asked):
    ids, ended, heard = written(spoken, asked, slots=5)  # slots are refilled and rows move
    assert 0 < sum(ended) < len(ended)
    for i, (prompt, response) in enumerate(zip(asked, ids, strict=True)):
        fed = response[:-1]  # the end was never fed, and of a cut response its last token was not either
        assert int(heard.n_tokens[i]) == len(fed)
        if fed:
            own = states(spoken, prompt + fed)[:, len(prompt):]
            torch.testing.assert_close(heard.means[i], own.mean(1), **FLOAT32)
            torch.testing.assert_close(heard.lengths[i], own.norm(dim=-1).sum(1), **FLOAT32)
        else:
            assert not heard.means[i].any()


def test_slots_do_not_change_what_is_heard(spoken, asked):
    (ids, _, few), (same, _, many) = written(spoken, asked, slots=3), written(spoken, asked, slots=64)
    assert ids == same
    torch.testing.assert_close(few.means, many.means, **FLOAT32)


def test_a_second_pass_hears_the_same_of_responses_that_ended(spoken, asked):
    model, words = spoken
    ids, ended, heard = written(spoken, asked)
    texts = [words.decode(row) for row in ids]
    again = read_again(model, words, list(zip(asked, texts, ended, strict=True)), micro_tokens=60)
    # A text splits into the tokens that wrote it unless these hold control tokens, which a text leaves out.
    alike = [i for i, row in enumerate(ids) if ended[i] and words.response_ids(texts[i]) == row]
    assert len(alike) >= 3
    for i in alike:
        assert int(again.n_tokens[i]) == int(heard.n_tokens[i])
        torch.testing.assert_close(again.means[i], heard.means[i], **HEARD)
        torch.testing.assert_close(again.lengths[i], heard.lengths[i], **HEARD)


def test_what_the_template_writes_before_a_response_is_no_content(spoken, asked):
    """With a lead of one token the first token of the row is not counted; a lead elsewhere in the text is."""
    model, words = spoken
    lead = dataclasses.replace(words, lead="red ")
    prompt = asked[0]
    row = lead.response_ids("the red cat", True)
    content = row[1:-1]
    heard = read_again(model, lead, [(prompt, "the red cat", True)], micro_tokens=60)
    assert len(content) == 3 == int(heard.n_tokens[0])
    own = states(spoken, prompt + row)[:, len(prompt) + 1 : len(prompt) + 4]
    torch.testing.assert_close(heard.means[0], own.mean(1), **FLOAT32)


def test_of_a_cut_response_only_a_second_pass_hears_the_last_token(spoken, asked):
    model, words = spoken
    ids, ended, heard = written(spoken, asked, max_new_tokens=3)
    texts = [words.decode(row) for row in ids]
    cut = next(i for i, row in enumerate(ids) if not ended[i] and words.response_ids(texts[i], False) == row)
    again = read_again(model, words, [(asked[cut], texts[cut], False)], micro_tokens=60)
    assert (int(again.n_tokens[0]), int(heard.n_tokens[cut])) == (3, 2)


def test_only_content_counts_and_what_lies_elsewhere_is_invisible():
    """Two responses by hand. Rows 1 and 0 of a prefill, then tokens; NaN wherever nothing should be read."""
    nan = float("nan")
    listener = Listener(3, 1)
    tap = listener.taps[0]

    def columns(generated, rows):
        flags = torch.tensor(generated, dtype=torch.bool)
        return Columns(torch.ones_like(flags), flags, torch.tensor(rows), torch.zeros(flags.shape, dtype=torch.long),
                       named=True)

    tap(0, torch.full((2, 3, 2), nan), columns([[0, 0, 1], [0, 1, 0]], [1, 0]))
    tap(0, torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]), columns([[1], [1]], [1, 0]))
    tap(0, torch.tensor([[[5.0, 6.0]]]), columns([[1]], [0]))
    heard = listener.heard()
    torch.testing.assert_close(heard.means[:, 0], torch.tensor([[4.0, 5.0], [1.0, 2.0], [0.0, 0.0]]), **EXACT)
    assert heard.n_tokens.tolist() == [2, 1, 0]
    torch.testing.assert_close(heard.lengths[:, 0], torch.tensor([5.0 + 61**0.5, 5**0.5, 0.0]), **FLOAT32)


def test_a_prompt_of_one_token_is_no_content():
    listener, one = Listener(2, 1), torch.ones(1, 1, dtype=torch.bool)
    columns = Columns(one, one, torch.tensor([1]), torch.zeros(1, 1, dtype=torch.long))
    for state in (7.0, 1.0, 3.0):
        listener.taps[0](0, torch.full((1, 1, 1), state), columns)
    assert listener.heard().means.flatten().tolist() == [0.0, 2.0] and listener.n_tokens.tolist() == [0, 2]


def test_a_whole_conversation_in_one_pass_counts_behind_its_last_prompt_token():
    listener = Listener(1, 1)
    generated = torch.tensor([[False, True, True, True]])
    listener.taps[0](0, torch.tensor([[[9.0], [9.0], [1.0], [3.0]]]), Columns(
        torch.ones(1, 4, dtype=torch.bool), generated, torch.tensor([0]), torch.arange(4)[None]))
    assert listener.heard().means.item() == 2.0 and listener.n_tokens.item() == 2


def test_a_planted_direction_is_found_where_it_was_planted(spoken, asked):
    """s w added to the response tokens of default runs at block 1: the axis gains s w there, and nothing below."""
    model, words = spoken
    said = [(prompt, text, True) for prompt, text in zip(asked, ["the cat sat .", "no no", "hello two red"] * 8,
                                                         strict=True)]
    w = torch.nn.functional.normalize(torch.randn(16, generator=stream(0, "w")), dim=0)

    def plant(layer, hidden, columns):
        return hidden + torch.where(columns.generated[..., None], 2.5 * w, 0.0)

    plain = read_again(model, words, said, micro_tokens=200).means.mean(0)
    with attach(model, {1: plant}):
        planted = read_again(model, words, said, micro_tokens=200).means.mean(0)
    gained = planted - plain
    torch.testing.assert_close(gained[0], torch.zeros(16), **EXACT)
    torch.testing.assert_close(gained[1], 2.5 * w, **PLANTED)
    assert gained[2].norm() > 1


def test_a_planted_direction_is_heard_while_sampling_too(spoken, asked):
    """The same through the sampler, whose responses the plant changes: a second pass over them has to agree."""
    model, words = spoken

    def plant(layer, hidden, columns):
        return hidden + torch.where(columns.generated[..., None], torch.linspace(-2, 2, 16), 0.0)

    with attach(model, {0: plant}):
        ids, ended, heard = written(spoken, asked)
        texts = [words.decode(row) for row in ids]
        again = read_again(model, words, list(zip(asked, texts, ended, strict=True)), micro_tokens=300)
    alike = [i for i, row in enumerate(ids) if ended[i] and words.response_ids(texts[i]) == row]
    assert len(alike) >= 3
    torch.testing.assert_close(again.means[alike], heard.means[alike], **HEARD)


# --- sums of a role


def heard_of(n, seed=0, empty=()):
    generator = stream(seed, "heard")
    n_tokens = torch.tensor([0 if i in empty else 3 for i in range(n)])
    means = torch.where((n_tokens > 0)[:, None, None], torch.randn(n, 2, 4, generator=generator), 0.0)
    return Heard(means, n_tokens, torch.rand(n, 2, generator=generator))


def test_streaming_means_are_stored_means_and_parts_add_up():
    heard, labels = heard_of(20, empty=(4,)), ["3/even", "3/odd", "2/even", "unscored/odd"] * 5
    whole, first, second = (RoleSums("poet", "role") for _ in range(3))
    whole.add(labels, heard)
    first.add(labels[:7], heard.picked(range(7)))
    second.add(labels[7:], heard.picked(range(7, 20)))
    both = first.merged(second)
    fully = [i for i, label in enumerate(labels) if label.startswith("3/") and i != 4]
    stored = heard.means[fully].double()
    for sums in (whole, both):
        bucket = sums.bucket(("3",))
        assert int(bucket.count) == 9
        torch.testing.assert_close(bucket.total / bucket.count, stored.mean(0), **FLOAT64)
        torch.testing.assert_close(bucket.squares, stored.square().sum((0, 2)), **FLOAT64)
        torch.testing.assert_close(sums.lengths, heard.lengths.double().sum(0), **FLOAT64)
        assert sums.counts == {"3": 10, "2": 5, "unscored": 5} and sums.n_tokens == 57
    assert int(whole.bucket(("3", "2"), "odd").count) == 5 and whole.bucket(("0",)) is None


def test_sums_come_back_from_the_disk(tmp_path):
    sums = RoleSums("a poet", "role", through=7)
    sums.add(["3/even", "all/odd"], heard_of(2))
    sums.keep(["x", "y"], heard_of(2), 1)
    sums.save(tmp_path)
    back = read_sums(sums_file(tmp_path, "role", "a poet"))
    assert (back.name, back.kind, back.counts, back.n_tokens, back.through) == ("a poet", "role", sums.counts, 6, 7)
    for label, bucket in sums.buckets.items():
        torch.testing.assert_close(back.buckets[label].total, bucket.total, **EXACT)
        torch.testing.assert_close(back.buckets[label].squares, bucket.squares, **EXACT)
        assert int(back.buckets[label].count) == int(bucket.count)
    torch.testing.assert_close(kept_alike([back]), kept_alike([sums]), **EXACT)
    torch.testing.assert_close(back.lengths, sums.lengths, **EXACT)


def test_damaged_sums_are_named(tmp_path):
    file = sums_file(tmp_path, "role", "poet")
    file.write_bytes(b"half a file")
    with pytest.raises(RunError, match=r"role poet.safetensors: the sums of a role are damaged"):
        read_sums(file)


def test_what_is_kept_is_bounded_and_does_not_depend_on_order_or_parts(monkeypatch):
    monkeypatch.setattr(extract, "N_KEPT", 5)
    heard, ids = heard_of(12, empty=(3,)), [f"r{i}" for i in range(12)]
    whole, one, two = (RoleSums("default", "default") for _ in range(3))
    whole.keep(ids, heard, 1)
    two.keep(ids[5:], heard.picked(range(5, 12)), 1)
    one.keep(ids[:5], heard.picked(range(5)), 1)
    assert len(whole.kept) == 5
    torch.testing.assert_close(kept_alike([one.merged(two)]), kept_alike([whole]), **EXACT)
    rows = {tuple(row.tolist()) for row in kept_alike([whole])}
    assert rows <= {tuple(row.tolist()) for row in heard.means[:, 1]} and (0.0,) * 4 not in rows
    assert kept_alike([RoleSums("x", "default")]).shape == (0, 0)
