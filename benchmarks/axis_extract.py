"""Extraction of an axis: `keel axis extract` against the published procedure written down plainly, on the same model.

    python benchmarks/axis_extract.py [--model FOLDER] [--n-questions 16] [--rounds 3]
    python benchmarks/axis_extract.py --memory

The plain side is what the paper's pipeline does, step by step and without keel: write all responses with transformers'
generate() in left-padded batches; run the padded conversations again, batch by batch, with a hook on every block that
keeps the states; stack them, average each response's tokens; keep every response's means; average those at the end.
Both sides ask the same roles the same questions, sample at temperature 0.7 and top-p 0.9, and read every response. No
judge on either side: all responses count.

Every measurement is a process of its own; both sides take turns within each round, at two numbers of questions, N and
2 N. CPU seconds of one thread, from before the model is loaded to after the axis is there; imports are outside.

`--memory` asks a random model of 32 blocks, whose states are large for the little it computes, for few tokens each, and
shows by how much the peak of the resident set grows with the number of responses.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from common import ROOT, cpu_seconds, peak_mb

LONGEST = 64
"""Tokens of a response at most."""
DEEP = {"num_hidden_layers": 32, "hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 4,
        "num_key_value_heads": 4, "max_position_embeddings": 512}
MEMORY = {"longest": 4, "sizes": (4, 16), "batch": 64}
GENERATE_BATCHES, READ_BATCH = (16, 64, 128), 16
"""Rows that the plain side writes at once, each tried in every round, and rows that it reads at once, as published."""


def imported() -> Any:
    """transformers, with all that it would import later on."""
    for name in ("models.llama.modeling_llama", "models.auto.modeling_auto", "models.auto.tokenization_auto",
                 "generation.utils"):
        import_module(f"transformers.{name}")
    return import_module("transformers")


def keel(args: argparse.Namespace) -> dict[str, Any]:
    recipe, _ = import_module("keel.recipes.axis_extract"), imported()
    begun = cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        result = recipe.run(recipe.AxisExtractConfig.resolve(overrides={
            "out": f"{folder}/run", "model": args.model, "roles": args.roles, "questions": args.questions,
            "n_questions": str(args.n_questions), "sampling.max_new_tokens": str(args.longest)}))
    return {"seconds": cpu_seconds() - begun, "responses": result.values["n_responses"],
            "tokens": result.values["n_tokens"], "norm": result.values["axis_norm"]}


def plain(args: argparse.Namespace) -> dict[str, Any]:
    torch, transformers = import_module("torch"), imported()
    transformers.utils.logging.disable_progress_bar()
    begun = cpu_seconds()
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model, padding_side="left")
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    torch.manual_seed(0)
    roles = [json.loads(line) for line in Path(args.roles).read_text().splitlines()]
    questions = [json.loads(line)["question"] for line in Path(args.questions).read_text().splitlines()]
    asked = [(role["name"], role["is_default"], [{"role": "system", "content": system}] * bool(system)
              + [{"role": "user", "content": question}])
             for role in roles for system in role["system_prompts"] for question in questions[: args.n_questions]]
    written = write(torch, model, tokenizer, [talk for _, _, talk in asked], args)
    stored, n_tokens = read(torch, model, tokenizer, written)
    by_role: dict[str, list[Any]] = {}
    for (name, _, _), means in zip(asked, stored, strict=True):
        if means is not None:
            by_role.setdefault(name, []).append(means)
    vectors = {name: torch.stack(own).mean(0) for name, own in by_role.items()}
    default = next(name for name, is_default, _ in asked if is_default)
    axis = vectors[default] - torch.stack([own for name, own in vectors.items() if name != default]).mean(0)
    return {"seconds": cpu_seconds() - begun, "responses": len(asked), "tokens": n_tokens,
            "norm": float(axis[len(axis) // 2].norm())}


def write(torch: Any, model: Any, tokenizer: Any, talks: list[Any], args: argparse.Namespace,
          ) -> list[tuple[list[int], list[int]]]:
    """Prompt and response of each talk, as token ids; the end of the turn is left out."""
    found = []
    for at in range(0, len(talks), args.batch):
        texts = [tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
                 for talk in talks[at : at + args.batch]]
        rows = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.no_grad():
            out = model.generate(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], do_sample=True,
                                 temperature=0.7, top_p=0.9, top_k=0, max_new_tokens=args.longest,
                                 pad_token_id=tokenizer.pad_token_id)
        width = rows["input_ids"].shape[1]
        for ids, mask, new in zip(rows["input_ids"], rows["attention_mask"].bool(), out[:, width:].tolist(),
                                  strict=True):
            end = next((i for i, token in enumerate(new) if token == tokenizer.eos_token_id), len(new))
            found.append((ids[mask].tolist(), new[:end]))
    return found


def read(torch: Any, model: Any, tokenizer: Any, written: list[tuple[list[int], list[int]]]) -> tuple[list[Any], int]:
    """Means of each response's states at every block [L, D], and how many tokens they are over."""
    states: list[Any] = []
    hooks = [block.register_forward_hook(lambda _, __, out: states.append(out if torch.is_tensor(out) else out[0]))
             for block in model.model.layers]
    found, n_tokens = [], 0
    for at in range(0, len(written), READ_BATCH):
        part = written[at : at + READ_BATCH]
        width = max(len(prompt) + len(response) for prompt, response in part)
        ids = torch.full((len(part), width), tokenizer.pad_token_id)
        mask = torch.zeros(len(part), width, dtype=torch.long)
        for i, (prompt, response) in enumerate(part):
            ids[i, : len(prompt) + len(response)] = torch.tensor(prompt + response)
            mask[i, : len(prompt) + len(response)] = 1
        states.clear()
        with torch.no_grad():
            model.model(input_ids=ids, attention_mask=mask)
        whole = torch.stack(states)
        for i, (prompt, response) in enumerate(part):
            own = whole[:, i, len(prompt) : len(prompt) + len(response)]
            found.append(own.mean(1).clone() if response else None)
            n_tokens += len(response)
    for hook in hooks:
        hook.remove()
    return found, n_tokens


def measured(args: argparse.Namespace, side: str, n_questions: int, batch: int) -> dict[str, Any]:
    words = [sys.executable, __file__, "--side", side, "--model", args.model, "--roles", args.roles, "--questions",
             args.questions, "--n-questions", str(n_questions), "--batch", str(batch), "--longest", str(args.longest)]
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=os.environ | {
        "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})
    return {"side": f"plain, {batch} at once" if side == "plain" else side, "n_questions": n_questions,
            **json.loads(done.stdout.splitlines()[-1])}


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| side | responses | tokens a CPU second | times keel is faster | peak memory, MB |",
             "|---|---|---|---|---|"]
    speed = {(row["round"], row["side"], row["n_questions"]): row["tokens"] / row["seconds"] for row in rows}
    for side, n in dict.fromkeys((row["side"], row["n_questions"]) for row in rows):
        own = [row for row in rows if (row["side"], row["n_questions"]) == (side, n)]
        fast = [speed[row["round"], side, n] for row in own]
        ratio = [speed[row["round"], "keel", n] / speed[row["round"], side, n] for row in own]
        lines.append(f"| {side} | {own[0]['responses']} | {spread(fast, 0)} | {spread(ratio, 2)} | "
                     f"{mean(row['peak_mb'] for row in own):.0f} |")
    return "\n".join(lines)


def memory(args: argparse.Namespace) -> None:
    """Peak memory of both sides at two numbers of responses."""
    torch, transformers = import_module("torch"), imported()
    args.longest = MEMORY["longest"]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(transformers.LlamaConfig(
            **DEEP, vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        args.model = folder
        for side in ("keel", "plain"):
            few, many = (measured(args, side, n, MEMORY["batch"]) for n in MEMORY["sizes"])
            print(f"{side}: {few['peak_mb']} MB for {few['responses']} responses, {many['peak_mb']} MB for "
                  f"{many['responses']}")


def spread(values: list[float], digits: int) -> str:
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=str(ROOT / "src" / "keel" / "sandbox" / "base_model"))
    parser.add_argument("--roles", default="town/roles.jsonl")
    parser.add_argument("--questions", default="town/role_questions.jsonl")
    parser.add_argument("--n-questions", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--longest", type=int, default=LONGEST)
    parser.add_argument("--side", choices=("keel", "plain"))
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    if args.memory:
        memory(args)
        return
    if args.side:
        found = {"keel": keel, "plain": plain}[args.side](args)
        print(json.dumps({**found, "peak_mb": round(peak_mb())}))
        return
    rows = []
    for number in range(args.rounds):
        for n in (args.n_questions, 2 * args.n_questions):
            for side, batch in [("keel", 0), *(("plain", batch) for batch in GENERATE_BATCHES)]:
                began = time.monotonic()
                rows.append({"round": number, **measured(args, side, n, batch)})
                print(json.dumps(rows[-1] | {"wall": round(time.monotonic() - began, 1)}), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
