"""`keel meta-rm loop`: rounds of MetaRM and PPO, each with responses of the policy that the round before left.

Source: arXiv:2401.06080, section 3.2 (iterative RLHF with MetaRM): no new labels, only fresh responses.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from keel import runs
from keel.config import PRESETS, Config, read_toml
from keel.data.collate import budget_batches, collate
from keel.data.load import read_demonstrations
from keel.data.render import Row, template
from keel.experiments.stages import begun, is_done, side_by_side
from keel.experiments.town import with_changes
from keel.experiments.trial import markdown
from keel.models.forward import token_logprobs
from keel.models.load import ModelConfig, causal_lm, device_of, load_tokenizer
from keel.recipes.meta_rm import MetaRMConfig
from keel.recipes.ppo import PPOConfig
from keel.train.inputs import DataConfig

__all__ = ["MetaLoopConfig", "run", "stop_because"]

MICRO_TOKENS = 2048


class MetaLoopConfig(Config):
    """Everything `keel meta-rm loop` reads."""

    out: Path = Field(description="folder to make, or to go on with")
    policy: ModelConfig = Field(description="policy to begin with, from SFT; every round's reward model starts from it")
    pairs: DataConfig = Field(description="preference pairs, the same in every round")
    prompts: DataConfig = Field(description="prompts for responses and PPO; new domains may be among them")
    rounds: int = Field(3, ge=1, description="rounds at most; the report's policies got worse after 3 or 4")
    seed: int = Field(0, ge=0, description="fixes everything; each round draws anew")
    gold: str | None = Field(None, description="package.module:function of (prompt, text, ended) -> float: the true "
                             "score or a judge; logged, never trained on")
    most_perplexity: float = Field(2.0, gt=1, description="stop where the first policy finds the answers this many "
                                   "times as surprising as its own, while the score still grows")
    meta_rm: str | None = Field(None, description="TOML file with settings of `keel meta-rm`; none: its defaults")
    ppo: str | None = Field(None, description="TOML file, or a preset, with settings of `keel ppo`; none: its defaults")


@dataclass(frozen=True)
class Round:
    """What one round came to, on held-out prompts.

    Attributes:
        number: from 1 on.
        score_before, score: of the policy before and after, both by this round's MetaRM.
        gold_before, gold: the same by the true score; none where it is not known.
        perplexity: of the policy's answers under the first policy, per token.
        perplexity_first: of the first policy's own answers.
    """

    number: int
    score_before: float
    score: float
    gold_before: float | None
    gold: float | None
    perplexity: float
    perplexity_first: float


def run(cfg: MetaLoopConfig, *, resume: bool = False) -> runs.RunResult:
    """Go round until the rounds are over or a policy got worse; table.md has a row per round."""
    files = [Path(name) for data in (cfg.pairs, cfg.prompts) for name in (data.path, data.validation) if name]
    resume = resume or (begun(cfg.out) and not is_done(cfg))
    with runs.start("meta_rm loop", cfg, cfg.out, seed=cfg.seed, data=files, resume=resume) as log:
        found, reason = list[Round](), None
        for number in range(1, cfg.rounds + 1):
            for name, stage in stages_of(cfg, number).items():
                side_by_side(cfg.out, f"round {number} of {cfg.rounds}: {name}", {name: stage}, jobs=1,
                             again="give the same command again: it goes on where it was")
            found.append(read(cfg, number, found))
            (cfg.out / "table.md").write_text(table(found))
            reason = stop_because(found, most_perplexity=cfg.most_perplexity)
            if reason is not None:
                log.note(f"stopped after round {number}: {reason}")
                break
        print(f"\n{table(found)}")
        kept = len(found) if reason is None else len(found) - 1
        return log.finish({"rounds": [vars(one) for one in found], "stopped": reason, "best_round": kept,
                           "best_policy": str(policy_of(cfg, kept))})


def policy_of(cfg: MetaLoopConfig, number: int) -> str:
    """Where the policy after a round is; after round 0, the one to begin with."""
    return cfg.policy.path if number == 0 else str(cfg.out / f"ppo-{number}/model")


def stages_of(cfg: MetaLoopConfig, number: int) -> dict[str, Config]:
    """MetaRM with responses of the policy as it is, then PPO from that policy."""
    policy = cfg.policy.model_copy(update={"path": policy_of(cfg, number - 1)})
    seed = 100 * cfg.seed + number  # else every round would ask the same prompts and draw the same answers
    meta = MetaRMConfig.checked(with_changes({"model": cfg.policy} | settings(cfg.meta_rm), {
        "out": cfg.out / f"meta-{number}", "data": cfg.pairs, "policy": policy, "prompts": cfg.prompts, "seed": seed}))
    # DEVIATION(meta_rm-2): drift is charged from the policy of the round before; `keel ppo` knows no other reference.
    ppo = PPOConfig.checked(with_changes(settings(cfg.ppo), {
        "out": cfg.out / f"ppo-{number}", "policy": policy, "prompts": cfg.prompts, "seed": seed, "gold": cfg.gold,
        "reward_model": ModelConfig(path=str(cfg.out / f"meta-{number}/model"), device=cfg.policy.device)}))
    return {f"meta-{number}": meta, f"ppo-{number}": ppo}


def settings(file: str | None) -> dict[str, Any]:
    """What a TOML file or a preset says."""
    if file is None:
        return {}
    return read_toml(Path(file) if file.endswith(".toml") else PRESETS / f"{file}.toml")


def read(cfg: MetaLoopConfig, number: int, before: Sequence[Round]) -> Round:
    """The round's numbers from what PPO left; how surprising its answers are to the first policy."""
    folder = cfg.out / f"ppo-{number}"
    result = json.loads((folder / "result.json").read_text())
    first = before[0].perplexity_first if before else perplexity(cfg, folder, 0)
    old, new = ({name: result[when].get(name, {}).get("mean") for name in ("score", "gold")}
                for when in ("before", "after"))
    return Round(number, old["score"], new["score"], old["gold"], new["gold"],
                 perplexity(cfg, folder, result["steps"]), first)


@torch.no_grad()
def perplexity(cfg: MetaLoopConfig, run: Path, step: int) -> float:
    """Of the answers that a PPO run kept from a step, under the first policy."""
    rows = [line for line in (run / "samples.jsonl").read_text().splitlines() if json.loads(line)["step"] == step]
    file = run / f"samples-{step}.jsonl"
    file.write_text("\n".join(rows) + "\n")
    told = read_demonstrations(file, on_bad_record="skip", as_text=cfg.prompts.as_text)[0]  # some answers are empty
    policy, words = causal_lm(cfg.policy), template(load_tokenizer(cfg.policy.path))
    found = []
    for record in told:
        head, ended = words.prompt_ids(record.prompt), bool(record.prompt.meta["ended"])
        said = words.response_ids(record.response, ended, after=record.prompt.text)
        found.append(Row(head + said, len(head), record.id))
    total, n = 0.0, 0
    for part in budget_batches([row.n_tokens for row in found], MICRO_TOKENS):
        batch = collate([found[i] for i in part], words.pad_id).to(device_of(policy))
        total += float(token_logprobs(policy, batch)[0].sum())
        n += batch.n_response_tokens
    return float(torch.tensor(-total / n).exp())


def stop_because(found: Sequence[Round], *, most_perplexity: float) -> str | None:
    """Why there is no further round; none: go on."""
    now = found[-1]
    if now.gold is not None and now.gold_before is not None and now.gold < now.gold_before:
        return f"gold fell from {now.gold_before:.3f} to {now.gold:.3f}"
    if now.score > now.score_before and now.perplexity > most_perplexity * now.perplexity_first:
        return (f"the score grew from {now.score_before:.3f} to {now.score:.3f} while the answers became "
                f"{now.perplexity / now.perplexity_first:.1f} times as surprising to the first policy as its own")
    return None


def table(found: Sequence[Round]) -> str:
    """One row per round."""
    def shown(x: float | None) -> str:
        return "" if x is None else f"{x:.3f}"

    rows: list[Mapping[str, str]] = [{
        "round": str(one.number), "score, before": shown(one.score_before), "score, after": shown(one.score),
        "gold, before": shown(one.gold_before), "gold, after": shown(one.gold),
        "perplexity under the first policy": shown(one.perplexity)} for one in found]
    return markdown(rows)
