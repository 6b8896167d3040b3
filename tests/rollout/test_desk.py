"""Responses that come and go while others are written."""

import pytest
import tiny
import torch

from keel.models.load import ModelConfig, causal_lm
from keel.rng import stream
from keel.rollout.desk import Desk, Draft, Draws

PROMPTS = [[1, 4, 8 + i % 9] + [9] * (i % 5) for i in range(8)]
WAYS = [Draws(), Draws(temperature=0.0), Draws(0.7, top_p=0.8), Draws(top_k=3), Draws(repetition_penalty=1.5),
        Draws(0.8, logprob_temperature=0.8)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return causal_lm(ModelConfig(path=str(tiny.llama(tmp_path_factory.mktemp("m")))))


def desk(model, n_slots=4):
    return Desk(model, n_slots=n_slots, capacity=32, stop_ids=[2], pad_id=0)


def draft(i, draws=None, limit=9):
    uniforms = torch.rand(limit, generator=stream(0, "d", i)).tolist()
    return Draft(PROMPTS[i], WAYS[i % len(WAYS)] if draws is None else draws, limit, uniforms, i)


@torch.no_grad()
def alone(model, i):
    place, one = desk(model, 1), draft(i)
    place.join([one])
    while place.running:
        place.step()
    return one


@torch.no_grad()
def test_whoever_joins_or_leaves_and_however_others_draw_a_draft_says_what_it_says_alone(model):
    place, drafts, queue = desk(model), [draft(i) for i in range(8)], list(range(8))
    steps = 0
    while queue or place.running:
        if queue and place.free and steps % 2 == 0:
            place.join([drafts[queue.pop(0)]])
        if place.running:
            place.step()
        if steps == 3:
            drafts[1].dropped = True  # its slot goes to another one
        steps += 1
    for i in (0, 2, 3, 4, 5, 6, 7):
        expected = alone(model, i)
        assert drafts[i].written == expected.written and drafts[i].ended == expected.ended
    assert len(drafts[1].written) < len(alone(model, 1).written)
    assert not place.running and place.free == 4


@torch.no_grad()
def test_a_dropped_draft_leaves_at_once_and_what_is_left_goes_on(model):
    place, drafts = desk(model, 3), [draft(0, limit=6), draft(2, limit=6), draft(3, limit=6)]
    place.join(drafts)
    drafts[0].dropped = True
    place.clear()
    assert place.free >= 1 and drafts[0] not in place.running and len(drafts[0].written) == 1
    while place.running:
        place.step()
    assert all(d.ended or len(d.written) == 6 for d in drafts[1:])


@torch.no_grad()
def test_who_joins_is_not_penalised_for_what_others_have_written(model):
    """The same prompt twice, the second time beside a running draft and another way of drawing."""
    place, careful = desk(model), Draws(temperature=0.0, repetition_penalty=100.0)
    first, second = (Draft(PROMPTS[0], careful, 5, [0.5] * 5, number) for number in range(2))
    place.join([first])
    place.step()
    place.join([second, draft(2, Draws())])
    while place.running:
        place.step()
    assert first.written and second.written == first.written


def test_the_memory_of_a_finished_batch_is_free_at_once():
    import gc
    import weakref

    from keel.rollout.cache import SlotCache

    gc.disable()  # the collector of cycles would come some time later, many batches on
    try:
        cache = SlotCache(2, 3, 5, torch.device("cpu"))
        seen = weakref.ref(cache)
        del cache
        assert seen() is None
    finally:
        gc.enable()
