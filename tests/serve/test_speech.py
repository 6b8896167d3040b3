"""Text that comes in pieces: their sum is the text, and no piece has to be taken back."""

import pytest
import tiny

from keel.data.chat import template, tokenizer_from
from keel.serve.speech import Speech


def byte_level():
    """One token for each byte, so that characters are cut in all places."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)} | {"<eos>": 256}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens(["<eos>"])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")


TEXTS = ["the cat sat . why ?", "na\u00efve \u2014 \U0001f9ed\u20ac!", "", " a  b\n\nc "]


def told(words, ids, stops=()):
    speech = Speech(words, stops, words.lead)
    pieces = []
    for token in ids:
        pieces.append(speech.add(token))
        if speech.stopped:
            return pieces
    return [*pieces, speech.close()]


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_are_the_text_whatever_the_tokenizer(text, shared):
    for words in (template(tiny.tokenizer()), template(byte_level()),
                  *(template(tokenizer_from(str(folder))) for folder in (shared / "models/storychat-4M",
                                                                          shared / "models/stories260K"))):
        ids = words.tokenizer(text, add_special_tokens=False).input_ids
        assert "".join(told(words, ids)) == words.decode(ids)


def test_no_piece_holds_half_a_character():
    words = template(byte_level())
    ids = words.tokenizer("\u20ac\U0001f9ed", add_special_tokens=False).input_ids
    assert told(words, ids) == ["", "", "\u20ac", "", "", "", "\U0001f9ed", ""]
    assert told(words, ids[:4])[-1] == "\ufffd"  # it stops in the middle of one, and that is shown


@pytest.mark.parametrize(("stops", "expected"), [
    (("cat",), "the "), (("t sa",), "the ca"), (("zz", "sat ."), "the cat "), (("sat", "cat"), "the "),
    (("no",), None)])
def test_a_stop_string_ends_it_wherever_the_tokens_are_cut(stops, expected):
    words = template(byte_level())
    ids = words.tokenizer("the cat sat .", add_special_tokens=False).input_ids
    pieces = told(words, ids, stops)
    assert "".join(pieces) == ("the cat sat ." if expected is None else expected)
    # Worked by hand: while "t sa" may still come, its beginning is kept back, and given out when something else comes.
    assert told(words, ids[:3], ("e x",)) == ["t", "h", "", "e"]


def test_the_lead_of_a_template_is_no_part_of_the_text():
    words = template(byte_level())
    object.__setattr__(words, "lead", " ")
    ids = words.tokenizer(" yes  no", add_special_tokens=False).input_ids
    assert "".join(told(words, ids)) == "yes  no" == words.decode(ids)
    assert Speech(words).add(ids[0]) == " "  # plain text goes on as it is
