"""Tiny tokenizers with known ids, and files written by hand."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>", "<system>",
         "hi", "there", "yes", "no", "why", "so"]
CHAT = ("{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}")


def word_tokenizer(chat_template=CHAT, **special):
    """One id per word of WORDS; the spaces between words are not kept."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"} | special
    named = {name: token for name, token in named.items() if token is not None}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, additional_special_tokens=["<user>", "<assistant>", "<system>"], **named)
    tokenizer.chat_template = chat_template
    return tokenizer


def byte_tokenizer(chat_template=CHAT, **special):
    """One id per byte, so that every text survives; control tokens behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"} | special
    named = {name: token for name, token in named.items() if token is not None}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, additional_special_tokens=["<user>", "<assistant>", "<system>"], **named)
    tokenizer.chat_template = chat_template
    return tokenizer


@pytest.fixture(scope="session")
def words():
    return word_tokenizer()


@pytest.fixture(scope="session")
def letters():
    return byte_tokenizer()


@pytest.fixture
def make_words():
    return word_tokenizer


@pytest.fixture
def make_letters():
    return byte_tokenizer


@pytest.fixture
def jsonl(tmp_path):
    """Write rows as JSON Lines; strings are written as they are."""

    def write(*rows, name="rows.jsonl"):
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write
