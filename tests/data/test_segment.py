"""Steps of a response: where they end in the text, and in which token."""

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from keel.data.render import template
from keel.data.segment import Steps, cut_text, places_in_text, split, steps_in_text, steps_of, token_places


def byte_template(merges=(), **offsets):
    """A byte-level tokenizer that knows every byte, and the given merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<pad>", "<eos>", *alphabet, *("".join(pair) for pair in merges)]
    core = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, list(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    if offsets:
        core.post_processor = processors.ByteLevel(**offsets)
    core.add_special_tokens(["<pad>", "<eos>"])
    return template(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>"))


BYTES = byte_template()
MERGED = byte_template([("Ċ", "b"), (".", "Ċ"), (".Ċ", "Ċ")])
"""Ċ is how byte-level tokenizers write a line break: tokens "\\nb", ".\\n" and ".\\n\\n"."""


def ids_of(words, text, ended=True):
    return words.response_ids(text, ended, after="")


def test_each_step_ends_with_its_separator_and_the_last_with_the_turn():
    # a . \n b b \n c <eos>
    assert steps_of(BYTES, ids_of(BYTES, "a.\nbb\nc"), "\n", ended=True) == Steps(("a.", "bb", "c"), (2, 5, 7))


def test_without_a_separator_there_is_one_step_that_ends_at_the_last_token():
    assert steps_of(BYTES, ids_of(BYTES, "abc"), "\n", ended=True) == Steps(("abc",), (3,))


def test_a_separator_at_the_very_end_ends_the_last_step():
    assert steps_of(BYTES, ids_of(BYTES, "ab\n"), "\n", ended=True) == Steps(("ab",), (2,))


def test_a_last_step_that_was_cut_has_no_end():
    ids = ids_of(BYTES, "ab\ncd", ended=False)
    assert steps_of(BYTES, ids, "\n", ended=False) == Steps(("ab",), (2,), "cd")
    assert steps_of(BYTES, ids[:3], "\n", ended=False) == Steps(("ab",), (2,))
    assert steps_of(BYTES, ids[:2], "\n", ended=False) == Steps((), (), "ab")


def test_what_is_only_whitespace_is_no_step():
    found = steps_of(BYTES, ids_of(BYTES, "\n a\n \n\nb\n \n"), "\n", ended=True)
    assert found == Steps((" a", "b"), (3, 8))
    assert steps_of(BYTES, ids_of(BYTES, ""), "\n", ended=True) == Steps((), ())
    assert steps_of(BYTES, ids_of(BYTES, " \n"), "\n", ended=True) == Steps((), ())


def test_a_separator_spread_over_tokens_is_complete_with_the_last_of_them():
    # "ки" takes two bytes a letter: a 4 bytes b 4 bytes, then the end.
    ids = ids_of(BYTES, "aкиbки")
    assert len(ids) == 11
    assert steps_of(BYTES, ids, "ки", ended=True) == Steps(("a", "b"), (4, 9))
    assert steps_of(BYTES, ids[:4], "ки", ended=False) == Steps((), (), BYTES.decode(ids[:4]))


def test_a_token_that_ends_a_step_and_begins_the_next_holds_the_end():
    ids = ids_of(MERGED, "a\nbc\nd")
    assert len(ids) == 6  # a, \nb, c, \n, d, <eos>
    assert steps_of(MERGED, ids, "\n", ended=True) == Steps(("a", "bc", "d"), (1, 3, 5))


def test_two_steps_may_end_in_one_token():
    words = byte_template([(";", "b"), (";b", ";")])
    ids = ids_of(words, "a;b;c")
    assert len(ids) == 4  # a, ;b;, c, <eos>
    assert steps_of(words, ids, ";", ended=True) == Steps(("a", "b", "c"), (1, 1, 3))


def test_a_longer_separator_is_found_inside_a_merged_token():
    ids = ids_of(MERGED, "a.\n\nc")
    assert len(ids) == 4  # a, .\n\n, c, <eos>
    assert steps_of(MERGED, ids, "\n\n", ended=True) == Steps(("a.", "c"), (1, 3))


def test_an_empty_separator_is_refused():
    with pytest.raises(ValueError, match="would end a step after every character"):
        cut_text("abc", "")


def test_words_that_look_like_a_separator_across_its_repetition_are_cut_once():
    assert split("a;;;b", ";;") == ["a", ";b"]
    assert split("ab;;", ";;", ended=False) == ["ab"]
    assert split("ab;;c", ";;", ended=False) == ["ab"]


@given(st.text(alphabet="ab \nки.;", max_size=24), st.sampled_from(["\n", "ки", ".\n", ";"]), st.booleans())
def test_sampled_tokens_and_rendered_text_agree(text, separator, merged):
    """Two ways to the same token: by decoding prefixes, and by the tokenizer's own offsets."""
    words = MERGED if merged else BYTES
    ids, positions = ids_of(words, text), [behind for _, behind in cut_text(text, separator)[0]]
    assert token_places(words, ids, positions) == places_in_text(words, text, ids, positions)


@given(st.text(alphabet="ab \n", max_size=24), st.booleans())
def test_steps_are_the_text_and_none_ends_before_the_one_ahead_of_it(text, ended):
    ids = ids_of(BYTES, text, ended)
    found = steps_of(BYTES, ids, "\n", ended=ended)
    assert list(found.texts) == split(text, "\n", ended=ended)
    assert list(found.ends) == sorted(found.ends)
    assert all(0 <= end < len(ids) for end in found.ends)
    rest = text.rpartition("\n")[2]
    assert found.unfinished == ("" if ended or not rest.strip() else rest)


def test_a_tokenizer_that_drops_the_separator_ends_the_step_at_the_word_before_it():
    words = template(tiny.tokenizer())
    text = "the cat\nred dog\nno"
    ids = words.response_ids(text)
    assert places_in_text(words, text, ids, [8, 16]) == [1, 3]


def test_control_tokens_spelled_out_in_a_text_leave_the_places_where_they_are():
    """Then the tokens are not those of the plain text, and the tokenizer's offsets are of no use."""
    words = template(tiny.tokenizer())
    text = "the <eos> cat no"
    ids = words.response_ids(text)
    before = words.response_ids("the <eos>", ended=False)
    assert ids[: len(before)] == before
    assert places_in_text(words, text, ids, [3, 9]) == [0, len(before) - 1]


def test_a_template_that_strips_responses_shifts_the_places():
    words = template(tiny.tokenizer())
    stripping = type(words)(words.tokenizer, words.end_id, words.stop_ids, words.pad_id, trims=True)
    assert places_in_text(stripping, "  the cat no", stripping.response_ids("  the cat no"), [9]) == [1]


def test_the_town_keeps_its_line_breaks():
    from keel.models.load import load_tokenizer
    from keel.sandbox.shipped import base_model_folder

    words = template(load_tokenizer(str(base_model_folder())))
    text = "bread 12 + fish 3 = 15\n15 + egg 2 = 17\nthe total is 17."
    found = steps_of(words, words.response_ids(text), "\n", ended=True)
    assert found.texts == tuple(text.split("\n"))
    assert words.decode(words.response_ids(text)[: found.ends[0] + 1]) == "bread 12 + fish 3 = 15\n"


def sentence_template():
    """As Llama 2's: a space becomes part of the word behind it, one is put before every text, and decoding drops it."""
    letters = list("abcdefgh123456789=+:?")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *letters]
    pieces += [f"▁{x}" for x in letters]
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [("▁", x) for x in letters],
                                byte_fallback=True, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                      decoders.Strip(" ", 1, 0)])
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    return template(PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>",
                                            unk_token="<unk>", pad_token="<unk>"))


@pytest.mark.parametrize("prompt, text", [("a?", " 4+4=8\n b=9\n e"), ("a?", "4+4=8\nb=9\ne"), ("a? ", "4+4=8\nb=9\ne"),
                                          ("a\n", " 4+4=8\nb=9\ne"), ("a\n", "4+4=8\nb=9\ne")])
def test_behind_a_plain_text_steps_end_where_those_of_the_sampled_tokens_do(prompt, text):
    """There the first token is often another one than that of the response by itself."""
    words = sentence_template()
    ids = words.response_ids(text, after=prompt)
    told = steps_in_text(words, text, ids, "\n", ended=True)
    assert told.ends == steps_of(words, ids, "\n", ended=True).ends == (5, 9, len(ids) - 1)


def test_a_tokenizer_whose_offsets_leave_spaces_out_keeps_them_in_its_tokens():
    words = byte_template([("Ġ", "b")], trim_offsets=True)
    ids = words.response_ids("a. b. b", after="")
    assert len(ids) == 6  # a . Ġb . Ġb <eos>
    assert steps_in_text(words, "a. b. b", ids, ". ", ended=True).ends == (2, 4, 5)
    assert steps_of(words, ids, ". ", ended=True).ends == (2, 4, 5)


def stripping():
    """A template that strips what is in a turn, as Llama 3's."""
    tokenizer = byte_template().tokenizer
    tokenizer.chat_template = ("{% for m in messages %}{{ m.role }}:{{ m.content | trim }}<eos>{% endfor %}"
                               "{% if add_generation_prompt %}assistant:{% endif %}")
    return template(tokenizer)


@pytest.mark.parametrize("text, ended, ends", [
    ("ab\n", False, (2,)), ("ab\nc", True, (2, 4)), ("ab\nc\n", True, (2, 4)), ("ab\nc\n", False, (2, 4)),
    (" ab\nc", True, (2, 4)),
])
def test_a_template_that_strips_turns_does_not_strip_one_that_goes_on(text, ended, ends):
    """What it strips at the end of a turn, a separator perhaps, gives its place to the end of the turn."""
    words = stripping()
    assert words.trims
    ids = words.response_ids(text, ended)
    assert steps_in_text(words, text, ids, "\n", ended=ended).ends == ends


@pytest.mark.parametrize("words", [BYTES, MERGED, sentence_template()], ids=["bytes", "merged", "sentences"])
def test_long_responses_end_their_steps_where_the_separators_are(words):
    lines = [f"{'ab=1+2 ' * (i % 5)}c{i % 7 + 1}" for i in range(40)]
    ids = words.response_ids("\n".join(lines), after="")
    ends = steps_of(words, ids, "\n", ended=True).ends
    assert [words.decode(ids[: end + 1]).count("\n") for end in ends[:-1]] == list(range(1, 40))
    assert all(words.decode(ids[:end]).count("\n") == i for i, end in enumerate(ends[:-1]))
