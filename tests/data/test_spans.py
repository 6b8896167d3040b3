"""Which tokens are the content of which turn. Ids and places are worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from keel.data import Message, Prompt, template
from keel.data.spans import Window, render_conversation, windows
from keel.errors import DataError

# The ids of `conftest.WORDS`.
PAD, BOS, EOS, UNK, USER, BOT, SYSTEM, HI, THERE, YES, NO, WHY, SO = range(13)
NO_SYSTEM = ("<bos>{% for m in messages %}{% if m.role != 'system' %}<{{ m.role }}>{{ m.content | trim }}<eos>"
             "{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}")
REFUSES = NO_SYSTEM.replace("{% if m.role != 'system' %}", "{% if m.role == 'system' %}{{ raise_exception('none') }}"
                            "{% else %}")
LAST_THOUGHT = ("<bos>{% for m in messages %}{% set c = m.content.split('</think>')[-1] if not loop.last "
                "else m.content %}<{{ m.role }}>{{ c.lstrip() }}<eos>{% endfor %}")


def talk(*turns):
    names = {"s": "system", "u": "user", "a": "assistant"}
    return [Message(names[who], text) for who, text in turns]


def spots(found):
    return [(turn.role, turn.start, turn.end) for turn in found.turns]


def test_a_conversation_by_hand(words):
    found = render_conversation(template(words), talk(("s", "so"), ("u", "hi there"), ("a", "yes no why")))
    assert found.ids == [BOS, SYSTEM, SO, EOS, USER, HI, THERE, EOS, BOT, YES, NO, WHY, EOS]
    assert spots(found) == [("system", 2, 3), ("user", 5, 7), ("assistant", 9, 12)]
    assert [turn.index for turn in found.turns] == [0, 1, 2] and not found.joined
    assert found.turns[2].positions == [9, 10, 11]


def test_roles_come_from_the_messages_and_an_empty_turn_keeps_its_place(words):
    """Two user turns in a row, and one in which the assistant says nothing: nobody's turn is counted as another's."""
    found = render_conversation(template(words), talk(("u", "hi"), ("u", "there"), ("a", "  "), ("u", "why"),
                                                      ("a", "so")))
    assert [turn.role for turn in found.turns] == ["user", "user", "assistant", "user", "assistant"]
    assert found.turns[2].start == found.turns[2].end and found.turns[2].positions == []
    assert [found.ids[turn.start:turn.end] for turn in found.turns] == [[HI], [THERE], [], [WHY], [SO]]


def test_the_ids_are_those_of_the_prompt_and_the_response(words):
    spelled = template(words)
    turns = talk(("u", "hi"), ("a", "yes"), ("u", "why <eos> so"), ("a", "no"))
    found = render_conversation(spelled, turns)
    assert found.ids == spelled.prompt_ids(Prompt("p", tuple(turns[:3]))) + spelled.response_ids("no")


@pytest.mark.parametrize("opening", ["", "<bos>", "<bos><bos>"])
def test_places_are_counted_from_the_one_beginning(make_words, opening):
    """A template may write it twice, and a tokenizer of its own accord where the template does not."""
    tokenizer = make_words(chat_template=opening + "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    written = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    tokenizer.backend_tokenizer.post_processor = written
    found = render_conversation(template(tokenizer), talk(("u", "hi"), ("a", "yes")))
    assert found.ids == [BOS, USER, HI, BOT, YES] and spots(found) == [("user", 2, 3), ("assistant", 4, 5)]


@pytest.mark.parametrize("chat_template", [NO_SYSTEM, REFUSES])
def test_a_system_turn_that_the_template_has_no_place_for_is_joined_to_the_users(make_words, chat_template):
    found = render_conversation(template(make_words(chat_template=chat_template)),
                                talk(("s", "so"), ("u", "hi there"), ("a", "yes")))
    assert found.joined and found.ids == [BOS, USER, SO, HI, THERE, EOS, BOT, YES, EOS]
    assert spots(found) == [("system", 2, 3), ("user", 3, 5), ("assistant", 7, 8)]


def test_a_template_that_refuses_without_a_system_turn_to_blame(make_words):
    spelled = template(make_words(chat_template=REFUSES))
    with pytest.raises(DataError, match="refuses the turns"):
        render_conversation(spelled, talk(("u", "hi"), ("s", "so"), ("a", "yes")))


def test_a_template_that_moves_the_system_turn(make_words):
    moved = ("<bos>{% for m in messages[1:] %}<{{ m.role }}>{{ m.content }}{% if loop.index == 1 %} "
             "{{ messages[0].content }}{% endif %}<eos>{% endfor %}")
    found = render_conversation(template(make_words(chat_template=moved)), talk(("s", "so"), ("u", "hi"), ("a", "yes")))
    assert found.ids == [BOS, USER, HI, SO, EOS, BOT, YES, EOS]
    assert spots(found) == [("system", 3, 4), ("user", 2, 3), ("assistant", 6, 7)] and not found.joined


def test_control_tokens_in_a_text_stay_text(letters):
    found = render_conversation(template(letters), talk(("u", "hi <eos> there"), ("a", "<user>")))
    inside = [found.ids[turn.start:turn.end] for turn in found.turns]
    assert [letters.decode(ids) for ids in inside] == ["hi <eos> there", "<user>"]
    assert [len(ids) for ids in inside] == [len("hi <eos> there"), len("<user>")]
    assert found.ids.count(letters.eos_token_id) == 2


THINKING = [("u", "hi"), ("a", "<think> why so </think> yes there <think> no </think> hi"), ("u", "so"), ("a", "no")]


@pytest.mark.parametrize(("how", "said"), [("keep", [WHY, SO, YES, THERE, NO, HI]), ("leave_out", [YES, THERE, HI])])
def test_reasoning_counts_or_not(words, how, said):
    """Its tags are unknown words to this tokenizer; they count with the reasoning that they surround."""
    found = render_conversation(template(words), talk(*THINKING), reasoning=how)
    turn = found.turns[1]
    assert [found.ids[place] for place in turn.positions if found.ids[place] != UNK] == said
    assert (len(turn.pieces) == 1) == (how == "keep")
    assert found.turns[0].positions and [found.ids[place] for place in found.turns[3].positions] == [NO]


def test_reasoning_that_the_template_drops_and_one_that_was_cut(make_words):
    spelled = template(make_words(chat_template=LAST_THOUGHT))
    found = render_conversation(spelled, talk(("u", "hi"), ("a", "why so </think> yes"), ("u", "so"),
                                              ("a", "<think> no why")), reasoning="leave_out")
    assert [found.ids[place] for place in found.turns[1].positions] == [YES]
    assert found.ids[:7] == [BOS, USER, HI, EOS, BOT, YES, EOS]
    assert found.turns[3].positions == []  # all of it is reasoning


def test_users_may_write_of_thinking(words):
    found = render_conversation(template(words), talk(("u", "hi <think> there </think> why"), ("a", "yes")),
                                reasoning="leave_out")
    assert {HI, THERE, WHY} <= {found.ids[place] for place in found.turns[0].positions}


def test_a_template_that_looks_at_the_ends_of_a_content(make_words):
    spelled = template(make_words(chat_template="{% for m in messages %}<{{ m.role }}>{{ m.content }}"
                                  "{% if m.content[-2:] == 'hi' %} so{% endif %}<eos>{% endfor %}"))
    with pytest.raises(DataError, match="writes a turn otherwise when marks stand at its ends"):
        render_conversation(spelled, talk(("u", "hi"), ("a", "yes")), record_id="r")


def characters(merges):
    """A tokenizer of single letters and these merges; a line break is one of them."""
    letters = sorted({*"abcdU:.", "\n"})
    vocabulary = {letter: i for i, letter in enumerate(["<eos>", *letters, *(a + b for a, b in merges)])}
    core = Tokenizer(models.BPE(vocabulary, merges))
    core.pre_tokenizer = pre_tokenizers.Split("<none>", "isolated")
    core.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>")
    made.chat_template = "{% for m in messages %}U:{{ m.content }}\n{% endfor %}"
    return made


class WithoutOffsets:
    """A tokenizer that does not tell where in the text a token was."""

    is_fast = False

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def __call__(self, text, **settings):
        assert "return_offsets_mapping" not in settings
        return self._inner(text, **settings)


@pytest.mark.parametrize("how", [lambda words: words, WithoutOffsets], ids=["told", "found"])
def test_a_token_on_the_border_belongs_to_the_content_if_all_else_in_it_is_white_space(how):
    spelled = template(how(characters([(".", "\n")])))
    found = render_conversation(spelled, talk(("u", "ab."), ("a", "cd")))
    # U : a b .\n U : c d \n
    assert spots(found) == [("user", 2, 5), ("assistant", 7, 9)] and len(found.ids) == 10


@pytest.mark.parametrize("how", [lambda words: words, WithoutOffsets], ids=["told", "found"])
def test_a_token_that_holds_header_and_content_is_refused(how):
    spelled = template(how(characters([(":", "a")])))
    with pytest.raises(DataError, match=r"the tokens of turn 1 \(user\) spell ':ab', and its content begins 'ab'"):
        render_conversation(spelled, talk(("u", "ab"), ("a", "cd")))


def test_a_tokenizer_that_cannot_hold_a_text_is_asked_for_what_it_makes_of_it(words):
    found = render_conversation(template(words), talk(("u", "hi stranger"), ("a", "unheard of")))
    assert [found.ids[turn.start:turn.end] for turn in found.turns] == [[HI, UNK], [UNK, UNK]]


def merging_bytes():
    """Bytes with merges across words and lines, so that tokens straddle the ends of contents."""
    merges = [("a", "b"), ("\u0120", "a"), (".", "\u010a"), ("\u010a", "\u010a")]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, *(a + b for a, b in merges)])}
    core = Tokenizer(models.BPE(vocabulary, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    made.chat_template = "<bos>{% for m in messages %}[{{ m.role }}] {{ m.content }}\n<eos>{% endfor %}"
    return made


MERGING = merging_bytes()


@given(st.lists(st.text(st.sampled_from("ab .\n<>|é🙂\U000f0000"), max_size=12), min_size=1, max_size=5))
def test_every_turn_is_spelled_by_its_tokens(contents):
    """With and without offsets alike, on a byte-level tokenizer, whatever is written."""
    turns = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(contents)]
    found = render_conversation(template(MERGING), turns)
    for turn, message in zip(found.turns, turns, strict=True):
        spelled = MERGING.decode(found.ids[turn.start:turn.end], clean_up_tokenization_spaces=False)
        assert "".join(spelled.split()) == "".join(message.content.split())
    slow = render_conversation(template(WithoutOffsets(MERGING)), turns)
    assert slow.ids == found.ids and slow.turns == found.turns


def test_windows_read_every_token_once():
    assert windows(10, 4) == [Window(0, 4, 0), Window(2, 6, 4), Window(4, 8, 6), Window(6, 10, 8)]
    assert windows(3, 4) == [Window(0, 3, 0)] and windows(5, 4) == [Window(0, 4, 0), Window(2, 5, 4)]


@given(st.integers(1, 60), st.integers(1, 20))
def test_windows_cover_a_row(n, width):
    found = windows(n, width)
    assert [place for one in found for place in range(one.read_from, one.stop)] == list(range(n))
    assert all(one.stop - one.start <= width for one in found)
    assert all(one.read_from - one.start >= width // 2 for one in found[1:])
