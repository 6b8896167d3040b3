"""Models and files small enough for a test: two layers, a word-level vocabulary, a chat template."""

import json
from pathlib import Path

WORDS = [
    "the",
    "cat",
    "dog",
    "sat",
    "ran",
    "yes",
    "no",
    "please",
    "why",
    "hello",
    "red",
    "blue",
    ".",
    "?",
    "one",
    "two",
]
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>", "<system>"]
TEMPLATE = (
    "<bos>{% for m in messages %}{{ '<' + m['role'] + '>' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<eos>' }}{% endgeneration %}{% else %}{{ m['content'] + '<eos>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens(SPECIAL)
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    made.chat_template = TEMPLATE
    return made


def llama(
    folder: Path, *, seed: int = 0, layers: int = 2, hidden: int = 16, scale: float = 0.3, tied: bool = True
) -> Path:
    """A random Llama with its tokenizer; logits are spread enough that samples differ."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=hidden,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return _saved(LlamaForCausalLM(config), words, folder, seed, scale, torch)


def gpt2(folder: Path, *, seed: int = 0) -> Path:
    """The same with learned absolute positions, for which padding and position ids matter most."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    words = tokenizer()
    config = GPT2Config(
        vocab_size=len(words),
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return _saved(GPT2LMHeadModel(config), words, folder, seed, 0.3, torch)


def bert(folder: Path, *, seed: int = 0) -> Path:
    """A random encoder with a one-label head."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    words = tokenizer()
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=128,
        num_labels=1,
        pad_token_id=0,
    )
    return _saved(BertForSequenceClassification(config), words, folder, seed, 0.3, torch)


def _saved(model, words, folder: Path, seed: int, scale: float, torch) -> Path:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, scale, generator=generator)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def conversations(n: int) -> list[list[dict]]:
    """Prompts that differ in words and length."""
    return [
        [{"role": "user", "content": " ".join(WORDS[(i * 7 + j * (1 + i % 5)) % len(WORDS)] for j in range(2 + i % 4))}]
        for i in range(n)
    ]


def said(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def demonstrations(path: Path, n: int = 24) -> Path:
    answers = ["yes please .", "no .", "the cat sat .", "hello two red blue"]
    return write_rows(
        path,
        [
            {"id": f"d{i}", "prompt": prompt, "completion": said(answers[i % 4])}
            for i, prompt in enumerate(conversations(n))
        ],
    )


def pairs(path: Path, n: int = 24) -> Path:
    return write_rows(
        path,
        [
            {
                "id": f"p{i}",
                "prompt": prompt,
                "chosen": said("yes please ." if i % 2 else "the cat sat"),
                "rejected": said("no" if i % 3 else "no no why ?"),
            }
            for i, prompt in enumerate(conversations(n))
        ],
    )


def prompts(path: Path, n: int = 24) -> Path:
    return write_rows(
        path,
        [
            {"id": f"q{i}", "prompt": prompt, "domain": "even" if i % 2 == 0 else "odd"}
            for i, prompt in enumerate(conversations(n))
        ],
    )


def length(prompt, text: str, ended: bool) -> float:
    """A reward with a known hack: it grows with the length, whatever is said."""
    return float(len(text.split()))


def always_one(prompt, text: str, ended: bool) -> float:
    """A reward that knows no difference."""
    return 1.0


def count_yes(prompt, text: str, ended: bool) -> float:
    """A true score for tests: how often the answer says yes, less a half when it was cut."""
    return text.split().count("yes") - 0.5 * (not ended)
