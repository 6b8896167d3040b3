"""One measurement of keel, in a process of its own: `python time_keel.py JOB FORMAT SIZE`.

The recipes run as they are; only the call that ends each step is watched. What is timed is therefore all that a user
pays for per step: rendering, collating, metrics.jsonl, TensorBoard. Validation and checkpoints are set beyond the end.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import (
    BATCH,
    BETA,
    DATA,
    DECODE_BATCH,
    LEARNING_RATE,
    MAX_LENGTH,
    MAX_PROMPT,
    MICRO_TOKENS,
    MINIBATCH,
    PASSES,
    RESPONSE,
    ROLLOUTS,
    SIZES,
    WARM_UP,
    Laps,
    Size,
    cpu_seconds,
    decode_flops,
    dpo_counts,
    ppo_flops,
    read_rows,
    report,
    timed_rows,
    training_flops,
)
from transformers import AutoModelForCausalLM, GenerationConfig

from keel import runs
from keel.models.load import ModelConfig, causal_lm
from keel.recipes import ppo, preference, reward_model, sft
from keel.rng import stream
from keel.rollout.sample import SamplingConfig, sample
from keel.train.inputs import DataConfig
from keel.train.step import OptimizerConfig

NEVER = 10**6
OPTIMIZER = OptimizerConfig(lr=LEARNING_RATE, betas=(0.9, 0.999), schedule="constant", warmup_fraction=0.0)


def watched(laps: Laps, counts: list[dict[str, float]]) -> None:
    """Note the CPU clock and the step's own counts whenever a recipe says that a step is over."""
    plain = runs.Run.time

    def time(self: runs.Run, step: int, seconds: Any, phase: str = "train") -> None:
        plain(self, step, seconds, phase)
        counts.append({name[:-6]: rate * seconds["seconds"] for name, rate in seconds.items()
                       if name.endswith("_per_s")})
        laps.mark()

    runs.Run.time = time  # type: ignore[method-assign]


def model(name: str, fmt: str) -> ModelConfig:
    return ModelConfig(path=str(DATA / name), autocast=fmt == "bf16")


def data(name: str, max_length: int) -> DataConfig:
    return DataConfig(path=str(DATA / name), validation_fraction=0.0, max_length=max_length, too_long="error")


def run_sft(size: Size, fmt: str, out: Path, **more: Any) -> None:
    laps, counts = Laps(), []
    watched(laps, counts)
    sft.run(sft.SFTConfig(
        out=out, model=model("policy", fmt), data=data("pairs.jsonl", MAX_LENGTH), batch=BATCH,
        steps=WARM_UP + size.steps, optimizer=OPTIMIZER, eval_every=NEVER, save_every=NEVER, n_samples=0, **more))
    rows = timed_rows("sft_ids.jsonl", size)
    tokens, told = sum(row["length"] for row in rows), sum(x >= 0 for row in rows for x in row["labels"])
    assert round(sum(count["tokens"] for count in counts[WARM_UP:])) == tokens
    report("sft", laps.seconds, tokens, flops=training_flops(tokens, told))


def run_rm(size: Size, fmt: str, out: Path, quiet: bool = False, **more: Any) -> None:
    laps = Laps()
    if not quiet:
        watched(laps, [])
    reward_model.run(reward_model.RewardModelConfig(
        out=out, model=model("policy", fmt), data=data("pairs.jsonl", MAX_LENGTH), batch=BATCH,
        steps=WARM_UP + size.steps, optimizer=OPTIMIZER, eval_every=NEVER, save_every=NEVER, **more))
    if quiet:
        return
    rows = timed_rows("rm_ids.jsonl", size)
    tokens = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    report("rm", laps.seconds, BATCH * laps.n, flops=training_flops(tokens, 0))


def run_dpo(size: Size, fmt: str, out: Path, **more: Any) -> None:
    """What the reference says is computed before the first step; its time is told apart."""
    laps, plain, spent = Laps(), preference.prepared, [0.0]
    watched(laps, [])

    def prepared(*args: Any) -> Any:
        start = cpu_seconds()
        found = plain(*args)
        spent[0] = cpu_seconds() - start
        return found

    preference.prepared = prepared
    preference.run(preference.PreferenceConfig(
        out=out, policy=model("policy", fmt), data=data("pairs.jsonl", MAX_LENGTH), batch=BATCH, beta=BETA,
        steps=WARM_UP + size.steps, optimizer=OPTIMIZER, eval_every=NEVER, save_every=NEVER, n_samples=0, **more))
    tokens, told = dpo_counts(size)
    logged = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    losses = [row["loss"] for row in logged if "loss" in row]
    report("dpo", laps.seconds, BATCH * laps.n, flops=training_flops(tokens, told), losses=losses,
           reference_s_per_pair=spent[0] / (BATCH * (WARM_UP + size.steps)))


def run_ppo(size: Size, fmt: str, out: Path, quiet: bool = False, **more: Any) -> None:
    laps = Laps()
    if not quiet:
        watched(laps, [])
    ppo.run(ppo.PPOConfig(
        out=out, policy=model("policy", fmt), reward_model=model("reward", fmt),
        prompts=data("prompts.jsonl", MAX_PROMPT + RESPONSE), steps=WARM_UP + size.phases, rollouts=ROLLOUTS,
        minibatch=MINIBATCH, passes=PASSES, sampling=SamplingConfig(max_new_tokens=RESPONSE), critic={"pretrain": 0},
        policy_optimizer=OPTIMIZER, critic_optimizer=OPTIMIZER, advantage={"normalise": "minibatch"}, eval_every=NEVER,
        save_every=NEVER, n_samples=0, **more))
    if quiet:
        return
    report("ppo", laps.seconds, ROLLOUTS * laps.n, flops=laps.n * phase_flops())


def phase_flops() -> float:
    prompts = read_rows("prompt_ids.jsonl")
    mean = sum(len(row["input_ids"]) for row in prompts) / len(prompts)
    return ppo_flops(ROLLOUTS * (mean + RESPONSE), ROLLOUTS * RESPONSE)


def run_decode(size: Size, fmt: str, out: Path) -> None:
    policy = causal_lm(ModelConfig(path=str(DATA / "policy"), dtype="bfloat16" if fmt == "bf16" else "float32"))
    prompts = [row["input_ids"] for row in read_rows("prompt_ids.jsonl")[:DECODE_BATCH]]
    settings, laps = SamplingConfig(max_new_tokens=RESPONSE, slots=DECODE_BATCH), Laps()
    for k in range(WARM_UP + size.decodes):
        streams = [stream(0, "decode", k, i) for i in range(DECODE_BATCH)]
        rollout = sample(policy, prompts, settings, streams, stop_ids=(), pad_id=0,
                         record_ids=[str(i) for i in range(DECODE_BATCH)])
        laps.mark()
        assert rollout.tokens.n_response_tokens == DECODE_BATCH * RESPONSE
    tokens = DECODE_BATCH * RESPONSE
    read = sum(map(len, prompts))
    report("decode", laps.seconds, laps.n * tokens, flops=laps.n * decode_flops(read + tokens, tokens))


def run_generate(size: Size, fmt: str, out: Path) -> None:
    """transformers' own generate(), in this environment: same prompts, padded on the left as it wants them."""
    dtype = torch.bfloat16 if fmt == "bf16" else torch.float32
    policy = AutoModelForCausalLM.from_pretrained(DATA / "policy", dtype=dtype).eval()
    policy.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=RESPONSE, pad_token_id=0)
    prompts = [row["input_ids"] for row in read_rows("prompt_ids.jsonl")[:DECODE_BATCH]]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    laps = Laps()
    for k in range(WARM_UP + size.decodes):
        torch.manual_seed(k)
        with torch.no_grad():
            written = policy.generate(input_ids=ids, attention_mask=mask)
        laps.mark()
        assert written.shape[1] == width + RESPONSE
    tokens, read = DECODE_BATCH * RESPONSE, sum(map(len, prompts))
    report("decode", laps.seconds, laps.n * tokens, flops=laps.n * decode_flops(read + tokens, tokens))


def run_matmul(size: Size, fmt: str, out: Path) -> None:
    """What this machine can do at best: square products of 1024, one thread. `items` are floating-point operations."""
    dtype = torch.bfloat16 if fmt == "bf16" else torch.float32
    a, b, laps, n = torch.randn(1024, 1024).to(dtype), torch.randn(1024, 1024).to(dtype), Laps(), 20
    for _ in range(WARM_UP + 3):
        for _ in range(n):
            torch.mm(a, b)
        laps.mark()
    best = min(after - before for before, after in zip(laps.marks, laps.marks[1:], strict=False))
    report("matmul", best, n * 2 * 1024**3)


JOBS = {"sft": run_sft, "rm": run_rm, "dpo": run_dpo, "ppo": run_ppo, "decode": run_decode, "generate": run_generate,
        "matmul": run_matmul}


def main() -> None:
    job, fmt, size = sys.argv[1:4]
    # Further settings of the recipe, for trying them out: name=integer.
    more = {name: int(value) for name, value in (word.split("=") for word in sys.argv[4:])}
    if job in ("sft", "rm", "dpo", "ppo"):
        more.setdefault("micro_tokens", MICRO_TOKENS)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        JOBS[job](SIZES[size], fmt, Path(folder) / "run", **more)
        shutil.rmtree(Path(folder) / "run", ignore_errors=True)


if __name__ == "__main__":
    main()
