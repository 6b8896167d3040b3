"""One measurement of TRL, in a process of its own and in TRL's environment: `python time_trl.py JOB FORMAT SIZE`.

JOB is sft, sft-grouped, rm, dpo (the reference computed once, before the first step), dpo-live (in every step),
dpo-grouped, dpo-live-grouped or ppo. TRL gets the token ids that keel's recipes make, in the same batches
(its sampler set to "sequential", its default "random" would only change the order); the grouped job lets TRL choose
its batches by length. Off, because they cost TRL time that a careful user saves: gradient checkpointing (on by
default), evaluation, logging, progress bars, checkpoints.

What differs from keel and cannot be made equal:
- PPO: TRL updates policy and critic with one optimiser and whitens over the phase, keel uses two and whitens over the
  minibatch: the work is the same. TRL shuffles its prompts by torch, keel by its own streams. TRL's bf16 flag does not
  reach its PPO loop, so that row is fp32 on TRL's side; run.py prints it as such.
- The reward model: TRL's score head runs over all positions and transformers picks one, keel's runs over one.
"""

import importlib
import logging
import sys
import tempfile
import warnings
from typing import Any

import torch
from common import (
    BATCH,
    BETA,
    DATA,
    LEARNING_RATE,
    MAX_LENGTH,
    MINIBATCH,
    PASSES,
    RESPONSE,
    ROLLOUTS,
    SIZES,
    TRL_ROWS,
    WARM_UP,
    Laps,
    Size,
    cpu_seconds,
    dpo_counts,
    ppo_flops,
    read_rows,
    report,
    timed_rows,
    training_flops,
)
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer


class Watch(TrainerCallback):
    """Notes the CPU clock after each optimiser step (PPO: after each phase)."""

    def __init__(self) -> None:
        self.laps, self.tokens, self.trainer = Laps(), [], None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.laps.mark()
        self.tokens.append(getattr(self.trainer, "_total_train_tokens", 0))


def plain(fmt: str, folder: str) -> dict[str, Any]:
    """Settings of every trainer."""
    return {
        "output_dir": folder, "bf16": fmt == "bf16", "use_cpu": True, "gradient_checkpointing": False, "report_to": [],
        "logging_strategy": "no", "save_strategy": "no", "eval_strategy": "no", "disable_tqdm": True,
        "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "dataloader_num_workers": 0, "seed": 0}


def run_sft(size: Size, fmt: str, folder: str, *, grouped: bool = False, micro: int = TRL_ROWS) -> None:
    rows, watch = read_rows("sft_ids.jsonl"), Watch()
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(DATA / "policy"),
        args=SFTConfig(**plain(fmt, folder), **batches(grouped, size, micro), max_length=MAX_LENGTH),
        train_dataset=Dataset.from_list(rows), processing_class=tokenizer(), callbacks=[watch])
    watch.trainer = trainer
    trainer.train()
    timed = timed_rows("sft_ids.jsonl", size)
    tokens = watch.tokens[-1] - watch.tokens[WARM_UP - 1]
    share = sum(x >= 0 for row in timed for x in row["labels"]) / sum(row["length"] for row in timed)
    report("sft", watch.laps.seconds, tokens, flops=training_flops(tokens, tokens * share))


def run_rm(size: Size, fmt: str, folder: str, *, micro: int = TRL_ROWS) -> None:
    watch = Watch()
    model = AutoModelForSequenceClassification.from_pretrained(DATA / "policy", num_labels=1)
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**plain(fmt, folder), **batches(False, size, micro), max_length=MAX_LENGTH),
        train_dataset=Dataset.from_list(read_rows("rm_ids.jsonl")), processing_class=tokenizer(), callbacks=[watch])
    watch.trainer = trainer
    trainer.train()
    tokens = watch.tokens[-1] - watch.tokens[WARM_UP - 1]
    report("rm", watch.laps.seconds, BATCH * watch.laps.n, flops=training_flops(tokens, 0))


class WatchedDPO(DPOTrainer):
    """Takes token ids as they are, notes the loss of each micro-batch, and how long the reference takes beforehand."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        found = super().compute_loss(*args, **kwargs)
        losses.append(float((found[0] if isinstance(found, tuple) else found).detach()))
        return found

    def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
        start = cpu_seconds()
        found = super()._precompute_ref_logps(*args, **kwargs)
        precompute_s.append(cpu_seconds() - start)
        return found


losses: list[float] = []
precompute_s: list[float] = []


def run_dpo(size: Size, fmt: str, folder: str, *, live: bool = False, grouped: bool = False,
            micro: int = TRL_ROWS // 2) -> None:
    watch, n = Watch(), BATCH * (WARM_UP + size.steps)
    trainer = WatchedDPO(
        model=AutoModelForCausalLM.from_pretrained(DATA / "policy"),
        args=DPOConfig(**plain(fmt, folder), **batches(grouped, size, micro), max_length=MAX_LENGTH, beta=BETA,
                       remove_unused_columns=not grouped, precompute_ref_log_probs=not live,
                       precompute_ref_batch_size=micro),
        train_dataset=Dataset.from_list(read_rows("dpo_ids.jsonl")), processing_class=tokenizer(), callbacks=[watch])
    trainer.train()
    parts = BATCH // micro
    report("dpo", watch.laps.seconds, BATCH * watch.laps.n, flops=training_flops(*dpo_counts(size)),
           losses=[sum(losses[k : k + parts]) / parts for k in range(0, len(losses), parts)],
           reference_s_per_pair=sum(precompute_s) / n)


def batches(grouped: bool, size: Size, micro: int) -> dict[str, Any]:
    return {"per_device_train_batch_size": micro, "gradient_accumulation_steps": BATCH // micro,
            "max_steps": WARM_UP + size.steps,
            "train_sampling_strategy": "group_by_length" if grouped else "sequential", "length_column_name": "length"}


def run_ppo(size: Size, fmt: str, folder: str) -> None:
    current = importlib.import_module("trl.experimental.ppo")  # 1.12 only

    def scorer() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(DATA / "reward", num_labels=1)

    policy = AutoModelForCausalLM.from_pretrained(DATA / "policy")
    policy.generation_config.eos_token_id = None
    words, prompts, watch = tokenizer(), read_rows("prompt_ids.jsonl"), Watch()
    words.padding_side = "left"
    # One gradient accumulation step and ROLLOUTS / MINIBATCH minibatches: as many optimiser steps as keel takes.
    trainer = current.PPOTrainer(
        args=current.PPOConfig(
            **plain(fmt, folder), per_device_train_batch_size=ROLLOUTS, gradient_accumulation_steps=1,
            num_mini_batches=ROLLOUTS // MINIBATCH, num_ppo_epochs=PASSES, response_length=RESPONSE, temperature=1.0,
            total_episodes=ROLLOUTS * (WARM_UP + size.phases), num_sample_generations=0, kl_coef=0.05,
            local_rollout_forward_batch_size=ROLLOUTS),
        processing_class=words, model=policy, ref_model=AutoModelForCausalLM.from_pretrained(DATA / "policy"),
        reward_model=scorer(), value_model=scorer(), train_dataset=Dataset.from_list(prompts), callbacks=[watch])
    trainer.train()
    mean = sum(len(row["input_ids"]) for row in prompts) / len(prompts)
    flops = ppo_flops(ROLLOUTS * (mean + RESPONSE), ROLLOUTS * RESPONSE)
    report("ppo", watch.laps.seconds, ROLLOUTS * watch.laps.n, flops=watch.laps.n * flops)


def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DATA / "policy")


def main() -> None:
    job, fmt, size = sys.argv[1:4]
    more: dict[str, Any] = {name: int(value) for name, value in (word.split("=") for word in sys.argv[4:])}
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    kind, *variants = job.split("-")
    more |= dict.fromkeys(variants, True)
    with tempfile.TemporaryDirectory() as folder:
        {"sft": run_sft, "rm": run_rm, "dpo": run_dpo, "ppo": run_ppo}[kind](SIZES[size], fmt, folder, **more)


if __name__ == "__main__":
    main()
