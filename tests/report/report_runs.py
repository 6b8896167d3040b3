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


def described(mean_strength: float, right: float | None = None, n: int = 60, **more: Any) -> Row:
    """One line of a table of audit.json."""
    line = {"n": n, "mean": mean_strength, "std": 0.3, "low": mean_strength - 0.1, "high": mean_strength + 0.1,
            "against": float(mean_strength < 0), "votes_for": 0.6, "agreement": 0.7, "divided": 0.25, "right": right,
            "judge_agrees": None, "n_judged": 0, "chosen_tokens": 20.0, "rejected_tokens": 18.5}
    return line | more


def card(name: str, mean_strength: float, text: str = "") -> Row:
    """An example of audit.json."""
    prompt = [{"role": "user", "content": f"which river runs by {name}? {text}"}]
    return {"id": f"{name}{text}", "prompt": prompt, "chosen": f"the arle. {text}", "rejected": f"no river. {text}",
            "mean": mean_strength, "std": 0.25, "votes_for": 3, "wrong": mean_strength < 0}


def suspect(name: str, mean_strength: float, text: str = "") -> Row:
    """A line of suspects.jsonl."""
    return {"id": f"{name}{text}", "prompt": [{"role": "user", "content": f"which river runs by {name}? {text}"}],
            "chosen": [{"role": "assistant", "content": f"the arle. {text}"}],
            "rejected": [{"role": "assistant", "content": f"no river. {text}"}],
            "strength_mean": mean_strength, "strength_std": 0.25, "truth": {"wrong_label": True},
            "meta": {"reasons": [f"9 of 10 voters are against the label {text}", "3 of 5 annotators prefer the other"]}}


def strength(folder: Path, text: str = "", n_suspects: int = 14, audit: Row | None = None, **more: Any) -> Path:
    """A data audit as `keel strength` leaves it; `audit` replaces parts of audit.json, `more` keys of result.json."""
    means = [-1.2, -0.3, 0.1, 0.4, 0.9]
    told = {
        "n": 300, "n_votes": 10, "n_quantiles": 5, "all": described(-0.02, 0.75, 300, against=0.4),
        "histogram": {"edges": [-2.0, -1.0, 0.0, 1.0, 2.0], "counts": [60, 60, 140, 40], "wrong": [50, 20, 5, 0],
                      "n_below": 2, "n_above": 1},
        "quantiles": [described(m, 0.2 * i + 0.1, quantile=i, shares={"domain": {f"guard{text}": 0.25, "list": 0.75}})
                      for i, m in enumerate(means)],
        "spread": [{"mean": m, "std": s, "n": 60} for m, s in zip(means, (0.4, 0.2, 0.15, 0.3, 0.5), strict=True)],
        "voters": {"pairwise": 0.7, "unanimous": 0.3, "split": [0.1] * 10 + [0.0], "correlation": 0.5, "fleiss": 0.31},
        "subsets": {"domain": [described(0.3, value="list"), described(-0.2, value=f"guard{text}")]},
        "lengths": {"sides": [described(0.2, value="chosen is longer")], "quarters": [described(0.1, value="6 to 20")],
                    "prefers_longer": {"labels": 0.5, "voters": 0.55}},
        "truth": {"n_wrong": 75, "share_wrong": 0.25, "area": 0.912,
                  "searches": [{"value": "weakest 10%", "n": 30, "precision": 0.8, "recall": 0.32}]},
        "annotators": {
            "people": {"n_annotators": 2, "n_comparisons": 40, "krippendorff": 0.61, "fleiss": 0.6,
                       "cohen": [{"one": f"ann{text}", "other": "bob", "n": 40, "agree": 0.8, "kappa": 0.59}]},
            "panel": {"n": 300, "votes_for": 0.8, "unanimous": 0.5, "outvoted": 0.1, "fleiss": 0.42}},
        "duplicates": {"n_repeats": 1, "n_alike": 2, "n_contradictions": 0, "n_in_repeats": 2, "n_in_alike": 5,
                       "n_in_contradictions": 0, "n_opposed": 1, "repeats": [["a", f"b{text}"]],
                       "alike": [["a", "b", "c", "d", "e"]], "contradictions": []},
        "examples": [{"quantile": i, "pairs": [card(f"village {i}", m, text)]} for i, m in enumerate(means)],
    }
    members = [{"voter": v, "path": f"models/sft{text}", "n_learned": 300, "n_judged": 300, "accuracy": 0.7 + 0.01 * v}
               for v in range(10)]
    after = {"mean": 0.4, "low": 0.36, "high": 0.44, "n": 300}
    headline = {"metric": "share of labels that the voters side against", "after": after, "higher_is_better": False}
    write(
        folder,
        audit=told | (audit or {}),
        suspects=[suspect(f"place {i}", -2.0 + 0.1 * i, text) for i in range(n_suspects)],
        metrics=[{"step": s, "phase": "train", "member": s // 5, "loss": 0.7 - 0.01 * s} for s in range(1, 10)],
        environment=environment("strength"),
        config='folds = 0\n[model]\npath = "models/sft"\n',
        result=result("strength") | {"members": members, "n_suspects": n_suspects, "headline": headline} | more,
    )
    return folder
