"""Write the inputs that both sides read: four models from one seed, and the same rows as records and as token ids.

Called by run.py in keel's environment; prints one line saying where the text came from.
"""

import gzip
import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from common import (
    BATCH,
    DATA,
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    LAYERS,
    MAX_LENGTH,
    MAX_PROMPT,
    POSITIONS,
    ROLLOUTS,
    ROOT,
    SHARED,
    SIZES,
    VOCABULARY,
    WARM_UP,
)
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from keel.data.load import read_demonstrations, read_pairs, read_prompts
from keel.data.render import render_demonstrations, render_pairs, render_prompts, template
from keel.train.order import batch_indices

NEVER = -40.0
"""Logit scale of tokens that must not be sampled."""


def main(size_name: str) -> None:
    size, made = SIZES[size_name], DATA / "made.json"
    source_text = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    wanted_for = {"size": size_name, "by": source_text, "shared": str(SHARED)}
    if made.exists() and (before := json.loads(made.read_text()))["for"] == wanted_for:
        print(json.dumps(before["inputs"]))
        return
    DATA.mkdir(parents=True, exist_ok=True)
    real = (SHARED / "models" / "storychat-4M").exists() and (SHARED / "data" / "hh_rlhf").exists()
    source = SHARED / "models" / "storychat-4M" if real else ROOT / "src" / "keel" / "sandbox" / "base_model"
    tokenizer = AutoTokenizer.from_pretrained(source)
    words = template(tokenizer)
    n_rows = BATCH * (WARM_UP + size.steps)
    records = hh_records() if real else made_up_records(8 * n_rows)

    # Rows that fit without cutting, so that no side has to decide how to cut.
    write("all.jsonl", records)
    pairs = read_pairs(DATA / "all.jsonl", on_bad_record="skip")[0]
    rows, _ = render_pairs(words, pairs, MAX_LENGTH, "drop")
    keep = {row.record_id for row in rows[:n_rows]}
    write("pairs.jsonl", [record for record in records if record["id"] in keep])
    prompts, _ = render_prompts(words, [pair.prompt for pair in pairs], MAX_PROMPT, "drop")
    wanted = {row.record_id for row in prompts[: ROLLOUTS * (WARM_UP + size.phases + 4)]}
    write("prompts.jsonl", [record for record in records if record["id"] in wanted])

    # The same rows as token ids, for TRL: in the order in which keel's recipes take them.
    told, _ = render_demonstrations(words, read_demonstrations(DATA / "pairs.jsonl")[0], MAX_LENGTH, "error")
    compared, _ = render_pairs(words, read_pairs(DATA / "pairs.jsonl")[0], MAX_LENGTH, "error")
    asked, _ = render_prompts(words, read_prompts(DATA / "prompts.jsonl")[0], MAX_PROMPT, "error")
    sft = [told[i] for i in order(len(told), "sft", size.steps)]
    rm = [compared[i] for i in order(len(compared), "reward_model", size.steps)]
    dpo = [compared[i] for i in order(len(compared), "preference", size.steps)]
    write("sft_ids.jsonl", [{"input_ids": row.ids, "labels": [-100] * row.n_prompt + row.ids[row.n_prompt:],
                             "length": len(row.ids)} for row in sft])
    write("rm_ids.jsonl", [{"chosen_ids": row.chosen.ids, "rejected_ids": row.rejected.ids,
                            "length": row.n_tokens // 2} for row in rm])
    write("dpo_ids.jsonl", [{"prompt_ids": row.prompt_ids, "chosen_ids": row.chosen_ids,
                             "rejected_ids": row.rejected_ids, "length": row.longest} for row in dpo])
    write("prompt_ids.jsonl", [{"input_ids": row.ids} for row in asked])
    models(tokenizer, [words.pad_id, *words.stop_ids])

    tokens = sum(len(row.ids) for row in told)
    origin = "HH-RLHF pairs" if real else "made-up text of similar lengths (../shared is missing)"
    inputs = {"data": origin, "rows": len(told), "mean_tokens": round(tokens / len(told), 1),
              "response_share": round(sum(len(r.ids) - r.n_prompt for r in told) / tokens, 3),
              "mean_prompt": round(sum(len(row.ids) for row in asked) / len(asked), 1)}
    made.write_text(json.dumps({"for": wanted_for, "inputs": inputs}))
    print(json.dumps(inputs))


def order(n: int, purpose: str, steps: int) -> list[int]:
    batches = batch_indices(n, BATCH, 0, purpose)
    return [i for _ in range(WARM_UP + steps) for i in next(batches)]


def hh_records() -> list[dict[str, Any]]:
    """All pairs in a fixed order, short and long mixed."""
    rows = []
    for path in sorted((SHARED / "data" / "hh_rlhf").glob("hh_test.*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows += [json.loads(line) for line in file]
    rows = [row for row in rows if row["chosen"].strip() and row["rejected"].strip()
            and row["chosen"] != row["rejected"]]
    random.Random(0).shuffle(rows)
    return rows


def made_up_records(n: int) -> list[dict[str, Any]]:
    """Nonsense with the lengths of short dialogues: log-normal prompts and replies."""
    draw = random.Random(0)
    vocabulary = ["".join(draw.choice("aeioubdklmnprst") for _ in range(draw.randint(2, 7))) for _ in range(2000)]

    def text(mean: float) -> str:
        return " ".join(draw.choice(vocabulary) for _ in range(min(80, max(2, int(draw.lognormvariate(mean, 0.8))))))

    return [{"id": f"made/{i:05d}", "turns": [{"role": "user", "content": text(2.5)}], "chosen": text(2.7),
             "rejected": text(2.6)} for i in range(n)]


def models(tokenizer: Any, forbidden: list[int]) -> None:
    """A policy and a reward model of size S. The policy cannot write a padding or end token, so that every response
    has the same length on both sides: one residual dimension is held constant, and only their head rows read it."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=POSITIONS,
        tie_word_embeddings=False, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id)
    policy = LlamaForCausalLM(config)
    fill(policy, 0)
    with torch.no_grad():
        policy.model.embed_tokens.weight[:, 0] = 1.0
        for layer in policy.model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        policy.lm_head.weight[:, 0] = 0.0
        policy.lm_head.weight[torch.tensor(forbidden)] = 0.0
        policy.lm_head.weight[torch.tensor(forbidden), 0] = NEVER
    save(policy, tokenizer, DATA / "policy")
    config.num_labels = 1
    reward = LlamaForSequenceClassification(config)
    fill(reward, 1)
    save(reward, tokenizer, DATA / "reward")


def fill(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.02, generator=generator)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write(name: str, rows: list[dict[str, Any]]) -> None:
    (DATA / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
