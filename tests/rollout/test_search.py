"""Solutions step by step: where a step stops, what a beam keeps, and what it ends with."""

import math

import pytest
import tiny
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from keel.batches import Rollout, TokenBatch
from keel.data.chat import tokenizer_from
from keel.data.records import Message, Prompt
from keel.data.render import PromptRow, render_prompts, template
from keel.data.segment import split, steps_of
from keel.models.load import ModelConfig, causal_lm
from keel.rng import digest, stream
from keel.rollout import search
from keel.rollout.picks import scores_of_steps
from keel.rollout.process import StepScored
from keel.rollout.sample import SamplingConfig, sample
from keel.rollout.search import Candidate, Draft, StepWriter, beam_search, next_steps, stopping_ids

WORDS = template(tiny.tokenizer())
EOS = WORDS.end_id


def prompts(n=6):
    records = [Prompt(f"q{i}", (Message("user", talk[0]["content"]),)) for i, talk in
               enumerate(tiny.conversations(n))]
    return render_prompts(WORDS, records, 64)[0]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return causal_lm(ModelConfig(path=str(tiny.llama(tmp_path_factory.mktemp("m")))))


def writer(policy, separator=".", **settings):
    return StepWriter(policy, WORDS, SamplingConfig(**({"max_new_tokens": 24, "slots": 8} | settings)), separator, 0)


def by_words(values):
    """A judge that knows what each step is worth, or else how many words it has; a solution is worth its worst step."""

    def judge(drafts):
        made = []
        for one in drafts:
            texts = split(one.text, ".", ended=one.ended)
            told = [values[text.strip()] if values else 1 / (1 + len(text.split())) for text in texts]
            made.append(Candidate(one, StepScored(tuple(texts), told, ""), scores_of_steps([told], "min")[0]))
        return made

    return judge


# --- stopping --------------------------------------------------------------------------------------------------------


def byte_words(merges=()):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({word: i for i, word in enumerate(
        ["<pad>", "<eos>", *alphabet, *map("".join, merges)])}, list(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return template(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>"))


def test_every_token_that_may_complete_the_separator_stops_the_sampler():
    words = byte_words([("Ċ", "b"), (".", "Ċ")])  # "\nb" and ".\n"
    spelled = {words.tokenizer.convert_ids_to_tokens(i) for i in stopping_ids(words, "##\n")}
    whole = {token for token in spelled if "Ċ" in token}
    assert whole == {"Ċ", "Ċb", ".Ċ"}
    assert len(spelled - whole) == 128 and "a" not in spelled and "#" not in spelled  # bytes of larger characters


def test_a_space_that_tokenizers_drop_at_the_beginning_is_seen():
    core = Tokenizer(models.WordLevel({"<eos>": 0, "\u2581a": 1, "\u2581b": 2, "b": 3, "<unk>": 4}, unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    words = template(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<unk>"))
    assert words.tokenizer.decode([2]) == "b"
    assert stopping_ids(words, "; ") == [1, 2] and stopping_ids(words, "a") == [1]


def test_a_step_ends_with_its_separator_or_with_the_response(policy):
    rows = prompts(12)
    for draft in next_steps(write := writer(policy), [Draft(row, (0,)) for row in rows]):
        text = WORDS.decode(list(draft.ids))
        assert draft.text == text and draft.ended == (draft.ids[-1] == EOS)
        assert draft.n_steps == len(steps_of(WORDS, draft.ids, ".", ended=draft.ended).texts) <= 1
        assert text.endswith(".") or draft.ended or len(draft.ids) == 24
        assert write.is_closed(draft) == (draft.ended or len(draft.ids) == 24)


@pytest.mark.parametrize("separator", [".", ". ?"])
def test_where_the_sampler_stopped_on_the_way_changes_nothing(policy, separator):
    """The last token of ". ?" comes often without its first: then the draft goes on where it was."""
    rows, write = prompts(12), writer(policy, separator)
    drafts = next_steps(write, [Draft(row, (0,)) for row in rows])
    whole = sample(policy, [row.ids for row in rows], write.sampling,
                   [stream(0, "steps", row.record_id, 0) for row in rows], stop_ids=WORDS.stop_ids, pad_id=0,
                   record_ids=[row.record_id for row in rows])
    n_steps = 0
    for draft, ids, mask in zip(drafts, whole.tokens.ids, whole.tokens.response_mask, strict=True):
        said = ids[mask].tolist()
        assert list(draft.ids) == said[: len(draft.ids)]
        known = steps_of(WORDS, said, separator, ended=said[-1] == EOS)
        ends = [end for end in known.ends if end < len(said) - 1] or [len(said) - 1]
        assert len(draft.ids) == ends[0] + 1
        n_steps += separator in draft.text
    assert n_steps > 0


def test_a_separator_over_two_tokens_comes_after_false_ends():
    """The sampler is asked three times: "?" completes nothing behind a word, and does behind "."."""
    write = writer(None, ". ?")
    script = {digest(0, "steps", "q", 0): "yes ? no ? cat . ? dog"}
    with pytest.MonkeyPatch.context() as patch:
        calls = scripted(patch, script)
        [draft] = next_steps(write, [Draft(PromptRow([1], Prompt("q", ())), (0,))])
    assert draft.text == "yes ? no ? cat . ?" and (draft.n_steps, draft.ended) == (1, False)
    assert calls == [2, 2, 3]


def test_no_draft_is_longer_than_a_solution_may_be_whatever_it_is_written_beside(policy):
    """The longest draft of the batch leaves the sampler little room; the others go on without it."""
    rows, write = prompts(6), writer(policy, "hello", max_new_tokens=9)
    begun = [Draft(row, (0,), tuple([7] * (i % 2 * 8)), "the " * (i % 2 * 8)) for i, row in enumerate(rows)]
    together = next_steps(write, begun)
    assert together == [next_steps(write, [one])[0] for one in begun]
    assert {len(one.ids) for one in together[1::2]} == {9} and max(len(one.ids) for one in together) == 9


def test_a_draft_that_is_almost_written_does_not_ask_for_more_than_the_context_holds(policy):
    """28 tokens of prompt and 100 of solution are all that this model can read: 98 + 28 leave room for 2."""
    row = PromptRow([1, 4, *[9] * 25, 5], Prompt("q", ()))
    begun = [Draft(row, (0,), (7,) * 98, "the " * 98), Draft(row, (1,))]
    found = next_steps(writer(policy, max_new_tokens=100), begun)
    assert len(found[0].ids) in (99, 100) and found[1].ids


# --- beam ------------------------------------------------------------------------------------------------------------


def scripted(patch, script):
    """A sampler that writes what the stream's name has in the script, as far as the next token that stops it."""
    left = {seed: WORDS.response_ids(text.removesuffix(" END"), text.endswith(" END")) for seed, text in script.items()}
    calls = []

    def fake(policy, rows, sampling, streams, *, stop_ids, pad_id, record_ids):
        said = []
        for generator in streams:
            rest = left[generator.initial_seed()]
            n = next((i + 1 for i, token in enumerate(rest) if token in stop_ids), len(rest))
            said.append(rest[: min(n, sampling.max_new_tokens)])
            left[generator.initial_seed()] = rest[len(said[-1]) :]
        width = max(len(a) + len(b) for a, b in zip(rows, said, strict=True))
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, (row, more) in enumerate(zip(rows, said, strict=True)):
            ids[i, : len(row) + len(more)] = torch.tensor([*row, *more])
            mask[i, len(row) : len(row) + len(more)] = True
            calls.append(len(more))
        tokens = TokenBatch(ids, mask, mask, tuple(record_ids))
        ended = torch.zeros(len(rows), dtype=torch.bool)
        return Rollout(tokens, torch.zeros(ids.shape), ended, torch.arange(len(rows)))

    patch.setattr(search, "sample", fake)
    return calls


def searched(script, values, *, beams, expand, most_steps=9, **settings):
    """One prompt, q, whose continuations are known by their path."""
    with pytest.MonkeyPatch.context() as patch:
        scripted(patch, {digest(0, "steps", "q", *path): text for path, text in script.items()})
        row = PromptRow([1, 4, 9, 5], Prompt("q", ()))
        [found] = beam_search(writer(None, **settings), [row], by_words(values), beams=beams, expand=expand,
                              most_steps=most_steps)
    return found


VALUES = {"red": 0.9, "blue": 0.8, "cat": 0.3, "dog": 0.1, "yes": 0.7, "no": 0.2, "why": 0.15}
FIRST = {(0,): "cat .", (1,): "red .", (2,): "blue .", (3,): "dog ."}
THEN = {(1, 0): "no END", (1, 1): "why END", (2, 0): "yes END", (2, 1): "no END"}


def test_by_hand_two_beams_find_what_the_best_first_step_leads_away_from():
    """red is the better first step, and nothing good follows it: min(0.9, 0.2). After blue comes yes: min(0.8, 0.7)."""
    greedy = searched({(0,): "blue .", (1,): "red ."} | THEN, VALUES, beams=1, expand=2)
    assert (greedy.best.draft.text, greedy.best.score) == ("red . no", 0.2)
    assert greedy.best.draft.path == (1, 0) and greedy.n_sampled == 2 + 2 + 2 + 2
    found = searched(FIRST | THEN, VALUES, beams=2, expand=2)
    assert (found.best.draft.text, found.best.score) == ("blue . yes", 0.7)
    assert found.best.steps.probabilities == [0.8, 0.7] and found.best.draft.ended
    assert found.n_sampled == 4 * 2 + 4 * 2  # four first steps, two continuations of two; END is a token


def test_a_solution_that_ended_keeps_its_place_and_ends_the_search():
    found = searched({(0,): "red END", (1,): "blue ."}, VALUES, beams=1, expand=2)
    assert (found.best.draft.text, found.best.score, found.n_sampled) == ("red", 0.9, 4)


def test_a_solution_that_the_beam_passed_over_is_not_forgotten():
    """Neither where others looked better for a while, nor where all others are cut."""
    script = {(0,): "blue END", (1,): "red .", (1, 0): "no END", (1, 1): "why END"}
    assert searched(script, VALUES, beams=1, expand=2).best.draft.text == "blue"
    cut = {(0,): "no END", (1,): "red .", (1, 0): "blue . blue .", (1, 1): "blue . blue ."}
    found = searched(cut, VALUES, beams=1, expand=2, most_steps=2)
    assert (found.best.draft.text, found.best.score) == ("no", 0.2)


def test_without_any_that_ended_the_best_of_those_that_were_cut():
    script = {(0,): "red .", (0, 0): "blue ."}
    for settings, n_sampled in (({"most_steps": 2}, 4), ({"max_new_tokens": 4}, 4)):
        found = searched(script, VALUES, beams=1, expand=1, **settings)
        assert (found.best.draft.text, found.best.draft.ended) == ("red . blue .", False)
        assert found.n_sampled == n_sampled and found.best.score == 0.8


def test_a_text_that_was_written_twice_takes_one_place():
    """Two beams are red and blue, not red and red; the tokens of the copy are counted."""
    first = {(0,): "red .", (1,): "red .", (2,): "blue .", (3,): "cat ."}
    then = {(0, 0): "no END", (0, 1): "why END", (2, 0): "yes END", (2, 1): "no END"}
    found = searched(first | then, VALUES, beams=2, expand=2)
    assert found.best.draft.text == "blue . yes" and found.n_sampled == 16


def test_of_equal_scores_the_first_stays():
    same = dict.fromkeys(VALUES, 0.5)
    script = {(0,): "cat .", (1,): "red .", (0, 0): "dog END", (0, 1): "yes END"}
    found = searched(script, same, beams=1, expand=2)
    assert (found.best.draft.text, found.best.draft.path) == ("cat . dog", (0, 0))


def test_an_answer_without_a_step_stands_behind_any_other():
    found = searched({(0,): " END", (1,): "dog END"}, VALUES, beams=2, expand=1)
    assert found.best.draft.text == "dog"
    alone = searched({(0,): " END"}, VALUES, beams=1, expand=1)
    assert alone.best.draft.text == "" and math.isnan(alone.best.score)


def test_one_beam_without_choice_is_sampling_step_by_step(policy):
    rows, write = prompts(3), writer(policy)
    for row, found in zip(rows, beam_search(write, rows, by_words({}), beams=1, expand=1, most_steps=99), strict=True):
        [draft] = next_steps(write, [Draft(row, (0,))])
        while not write.is_closed(draft):
            [draft] = next_steps(write, [Draft(row, (*draft.path, 0), draft.ids, draft.text, False, draft.n_steps)])
        assert found.best.draft == draft and found.n_sampled == len(draft.ids)


def test_without_chance_it_is_the_most_probable_response(policy):
    rows, write = prompts(4), writer(policy, temperature=0)
    whole = sample(policy, [row.ids for row in rows], write.sampling, [stream(0)] * len(rows), stop_ids=[EOS],
                   pad_id=0, record_ids=[row.record_id for row in rows])
    found = beam_search(write, rows, by_words({}), beams=1, expand=1, most_steps=99)
    for one, ids, mask in zip(found, whole.tokens.ids, whole.tokens.response_mask, strict=True):
        assert list(one.best.draft.ids) == ids[mask].tolist()


def test_a_search_does_not_depend_on_its_neighbours(policy):
    rows, how = prompts(3), {"beams": 2, "expand": 2, "most_steps": 3}
    together = beam_search(writer(policy), rows, by_words({}), **how)
    assert together == [beam_search(writer(policy, slots=2), [row], by_words({}), **how)[0] for row in rows]
    assert len({one.best.draft.path for one in together}) > 1  # there was a choice


def test_tokenizers_from_disk_stop_alike(tmp_path):
    folder = tiny.llama(tmp_path / "m")
    assert stopping_ids(template(tokenizer_from(str(folder))), ".") == stopping_ids(WORDS, ".")
