"""Run folders as keel.runs writes them, made up by formula: enough of each recipe to draw every part of the page."""

import json
import math
from pathlib import Path
from typing import Any

HOSTILE = "</script><img src=x onerror=alert(1)> <!-- <b>bold</b> & \ud800 \x00\x07\x1b \u2028 \u202e tail"
Row = dict[str, Any]


def write(folder: Path, **files: Any) -> Path:
    """`metrics=[rows]` writes metrics.jsonl, `result={...}` result.json, `config="..."` config.toml."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if isinstance(content, list):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        elif isinstance(content, dict):
            (folder / f"{name}.json").write_text(json.dumps(content))
        else:
            (folder / f"{name}.toml").write_text(content)
    return folder


def mean(value: float, half: float | None = None, n: int = 200) -> Row:
    return {"mean": value, "n": n} | ({} if half is None else {"low": value - half, "high": value + half})


def result(recipe: str = "ppo", before: Row | None = None, after: Row | None = None, **more: Any) -> Row:
    headline = {"metric": "gold", "before": before, "after": after, "higher_is_better": True} if after else None
    ended = {"recipe": recipe, "status": "finished", "steps": 40, "seconds": 185.0, "error": None}
    return ended | {"headline": headline} | more


def environment(recipe: str = "ppo", **more: Any) -> Row:
    made = {
        "keel": "0.1.0",
        "recipe": recipe,
        "command": f"keel {recipe} configs/{recipe}.toml --seed 1",
        "python": "3.11.7",
        "torch": "2.13.0",
        "machine": "Linux",
        "cpu": "two cores",
        "threads": "2",
        "device": "cpu",
        "seed": 1,
        "started": "2026-11-20T20:00:00Z",
        "data": {"data/prompts.jsonl": "ab" * 32},
    }
    return made | more


def wobble(step: int, salt: float = 0.0) -> float:
    """Noise without a generator: the same on every machine."""
    x = math.sin(step * 12.9898 + salt * 78.233) * 43758.5453
    return 2 * (x - math.floor(x)) - 1


def ppo_metrics(steps: int = 40, *, collapse: bool = False, stretch: float = 1.0) -> list[Row]:
    rows = []
    for step in range(1, steps + 1):
        t = step / steps
        late = max(0.0, t - 0.55) * 3 if collapse else 0.0
        noise = {i: wobble(step, i) for i in range(30)}
        center, spread = 0.3 + 1.4 * t * stretch + 1.6 * late, 0.6 + 0.5 * late
        edges = [round(-2 + 0.5 * i, 2) for i in range(17)]
        counts = [round(64 * math.exp(-(((a + 0.25 - center) / spread) ** 2) / 2)) for a in edges[:-1]]
        rows.append(
            {
                "step": step,
                "phase": "train",
                "score/mean": center + 0.08 * noise[0],
                "score/std": spread + 0.03 * noise[1],
                "score/p95": center + 1.7 * spread + 0.1 * noise[2],
                "gold/mean": 0.2 + 0.45 * min(t, 0.6) / 0.6 * stretch - 0.5 * late + 0.03 * noise[3],
                "reward/mean": center - 0.05 + 0.05 * noise[4],
                "kl/reference_k1": 0.06 * t + 0.25 * late + 0.004 * noise[5],
                "kl/reference_k3": 0.065 * t + 0.27 * late + 0.001 * abs(noise[6]),
                "policy/kl_old": 0.002 + 0.0006 * noise[7],
                "policy/clipped": 0.06 + 0.02 * noise[8],
                "policy/entropy": 2.1 - 0.5 * t - 0.9 * late + 0.05 * noise[9],
                "policy/perplexity": math.exp(1.9 - 0.5 * t - 0.5 * late),
                "policy/ratio_max": 1.3 + 0.3 * abs(noise[10]),
                "response/length": 42 + 14 * t + 60 * late + 2 * noise[11],
                "response/cut": min(1.0, 0.01 + 0.6 * late),
                "response/repetition": 0.03 + 0.3 * late,
                "value/explained_variance": 0.7 * (1 - math.exp(-6 * t)) - 0.5 * late + 0.04 * noise[12],
                "value/loss": 0.4 * math.exp(-4 * t) + 0.1 + 0.02 * noise[13],
                "value/clipped": 0.03 + 0.01 * noise[14],
                "advantage/mean": 0.01 * noise[15],
                "advantage/std": 0.8 + 0.1 * noise[16],
                "return/mean": center - 0.1,
                "value/mean": center - 0.2,
                "loss/policy": -0.01 + 0.02 * noise[17],
                "loss/value": 0.2 + 0.02 * noise[18],
                "loss/ptx": 1.9 - 0.2 * t,
                "grad_norm/policy": 0.8 + 0.3 * abs(noise[19]) + (40 if step == 30 else 0),
                "grad_norm/critic": 1.4 + 0.3 * noise[20],
                "lr/policy": 5e-6 * (1 - 0.9 * t),
                "lr/critic": 1e-5,
                "moments/mean": center,
                "moments/std": spread,
                "sampler/refills": 3 + round(2 * noise[21]),
                "score/histogram": {"edges": edges, "counts": counts},
            }
        )
    return rows


def samples(n: int = 24, last: int = 40, text: str = "") -> list[Row]:
    domains = ["recall", "ledger", "list", "advice", "guard"]
    rows = []
    for step, gain in ((0, 0.0), (last, 1.0)):
        for i in range(n):
            gold = 0.2 + 0.1 * wobble(i) + gain * 0.5 * wobble(i, 3)
            said = "the river of stonham is the arle." if step else "i think it may be the arle , the arle , the arle"
            rows.append(
                {
                    "step": step,
                    "id": f"prompt-{i:03d}",
                    "domain": domains[i % 5],
                    "ended": bool((i + step) % 7),
                    "prompt": [
                        {"role": "system", "content": "you are a plain villager."},
                        {"role": "user", "content": f"which river runs by village {i}?"},
                    ],
                    "response": f"{said} {text}",
                    "score": gold + 0.3,
                    "gold": gold,
                    "kl": 0.04 * gain,
                    "n_tokens": 12 + i,
                }
            )
    return rows


def alarms() -> list[Row]:
    meaning = "Responses more than doubled in length while the score rose: length is being rewarded."
    remedy = "Raise kl.coef, or add a length penalty."
    words = {"name": "length_reward_race", "meaning": meaning, "remedy": remedy}
    race = [{"step": s, **words, "value": 2.0 + s / 50, "limit": 2.0} for s in range(28, 36)]
    cut = {
        "step": 37,
        "name": "truncation",
        "meaning": "More than half of the responses hit the limit.",
        "remedy": "Raise max_new_tokens, or stop.",
        "value": 0.55,
        "limit": 0.5,
    }
    return [*race, cut]


CONFIG = """policy = "models/sft"
prompts = "data/prompts.jsonl"
steps = 40
hf_token = "hf_abcdef"

[kl]
coef = 0.05

[sampling]
temperature = 1.0
"""


def ppo(folder: Path, *, steps: int = 40, collapse: bool = False, **more: Any) -> Path:
    """A whole PPO run; `more` replaces single files."""
    after = mean(0.11, 0.05) if collapse else mean(0.62, 0.05)
    files: Row = {
        "metrics": ppo_metrics(steps, collapse=collapse),
        "samples": samples(last=steps),
        "config": CONFIG,
        "alarms": alarms() if collapse else [],
        "environment": environment(),
        "timings": [{"step": s, "seconds": 4 + wobble(s), "sample_s": 2.5} for s in range(1, steps + 1)],
        "result": result(before=mean(0.21, 0.06), after=after, steps=steps, skipped={"records": 3, "truncated": 0}),
    }
    return write(folder, **(files | more))


def counted(win: float, tie: float, n: int = 200, half: float | None = 6.0) -> Row:
    """What `keel win-rate` writes for one judge or one domain; shares in percent."""
    shares = {"win": win, "tie": tie, "lose": 100 - win - tie}
    decided = n - round(n * tie / 100)
    return shares | {"win_rate": mean(win + tie / 2, half, n), "n": n, "n_decided": decided, "p": 0.031}


def win_rate(folder: Path, win: float = 44.0, tie: float = 26.0, **more: Any) -> Path:
    """PPO against SFT; `more` replaces keys of result.json."""
    gold = counted(win, tie) | {"domains": {"ledger": counted(win, tie, 80), "guard": counted(100.0, 0.0, 3, 0.0)}}
    rate = gold["win_rate"]
    change = {key: rate[key] - 50 for key in ("mean", "low", "high")}
    metric = "win rate in percent against runs/sft/model by gold"
    length = {"characters": mean(61.2, 3.0), "tokens": mean(20.0, 1.0), "cut_percent": 0.0}
    told = {
        "judges": {"gold": gold},
        "policy": length,
        "opponent": length | {"characters": mean(48.0, 3.0)},
        "headline": {"metric": metric, "judge": "gold", "after": rate, "change": change, "higher_is_better": True},
    }
    domains = ["ledger", "guard"]
    rows = [
        {
            "step": 0,
            "id": f"prompt-{i}",
            "domain": domains[i % 2],
            "prompt": [{"role": "user", "content": f"what is {i} and {i}?"}],
            "policy": {"response": f"it is {2 * i}.", "ended": True, "n_tokens": 5, "gold": 1.0},
            "opponent": {"response": f"it is {i}.", "ended": i > 0, "n_tokens": 4, "gold": 0.2 * i},
            "verdicts": {"gold": "win" if i < 5 else "tie", "reward_model": "lose"},
        }
        for i in range(6)
    ]
    return write(
        folder,
        samples=rows,
        environment=environment("win_rate"),
        config='[policy]\npath = "runs/ppo/model"\n[opponent]\npath = "runs/sft/model"\n',
        result=result("win_rate") | {"steps": 0} | told | more,
    )


def reward_model(folder: Path, accuracy: float = 0.71) -> Path:
    rows = []
    for step in range(1, 61):
        t = step / 60
        rows.append(
            {
                "step": step,
                "phase": "train",
                "loss": 0.7 - 0.25 * t + 0.05 * wobble(step),
                "accuracy": 0.5 + (accuracy + 0.08 - 0.5) * t + 0.06 * wobble(step, 2),
                "margin": 1.2 * t,
            }
        )
        if step % 10 == 0:
            now = 0.5 + (accuracy - 0.5) * t
            rows.append(
                {
                    "step": step,
                    "phase": "eval",
                    "eval/accuracy": now,
                    "eval/accuracy_low": now - 0.03,
                    "eval/accuracy_high": now + 0.03,
                    "eval/longer_wins": 0.62,
                    "eval/ece": 0.05,
                    "eval/score_chosen": 0.6 * t,
                    "eval/score_rejected": -0.5 * t,
                }
            )
    headline = {"metric": "accuracy", "after": mean(accuracy, 0.03, 900), "higher_is_better": True}
    return write(
        folder,
        metrics=rows,
        environment=environment("reward_model"),
        config='model = "models/sft"\nlr = 1e-5\n',
        result=result("reward_model") | {"headline": headline, "steps": 60},
    )


def sft(folder: Path) -> Path:
    rows = []
    for step in range(1, 101):
        rows.append(
            {
                "step": step,
                "phase": "train",
                "loss": 1.2 + 2 * math.exp(-step / 20) + 0.05 * wobble(step),
                "lr": 1e-4 * (1 - step / 100),
                "grad_norm": 1 + 0.2 * wobble(step, 1),
            }
        )
        if step % 20 == 0:
            rows.append(
                {
                    "step": step,
                    "phase": "eval",
                    "eval/loss": 1.3 + 2 * math.exp(-step / 20),
                    "eval/perplexity": math.exp(1.3 + 2 * math.exp(-step / 20)),
                }
            )
    headline = {"metric": "perplexity", "before": mean(25.0, 1.0), "after": mean(3.7, 0.1), "higher_is_better": False}
    return write(
        folder,
        metrics=rows,
        environment=environment("sft"),
        config='model = "base"\n',
        result=result("sft") | {"headline": headline, "steps": 100},
    )


def demo(folder: Path) -> Path:
    sft(folder / "sft"), reward_model(folder / "rm"), ppo(folder / "ppo")
    gold = [
        {"stage": stage, **mean(m, 0.05), "domains": {"recall": mean(m + 0.1, 0.08), "ledger": mean(m - 0.1, 0.09)}}
        for stage, m in (("base", 0.05), ("SFT", 0.31), ("PPO", 0.52))
    ]
    stages = [{"name": "SFT", "run": "sft"}, {"name": "Reward model", "run": "rm"}, {"name": "PPO", "run": "ppo"}]
    return write(folder, demo={"stages": stages, "gold": gold})
