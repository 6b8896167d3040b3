"""keel against TRL, in one table: `python benchmarks/run.py [--quick] [--only sft|rm|dpo|ppo|decode] ...`.

Same model, rows, batches and optimizer steps on both sides; one thread; CPU seconds of each process, without start-up
and without the first step. Rounds are interleaved (keel, TRL, keel, TRL, ...) and each row shows the best of them, so
that a busy machine slows both sides alike. TRL lives in its own environments: run benchmarks/setup_trl.sh first.

A share of 100% would be every useful operation done at the speed of a square matrix product of 1024 in the same number
format, measured in the same run. Useful are the real tokens only: padding, and the head where no loss reads it, are
work that a tool may waste. time_keel.py and time_trl.py say what is equal on both sides, and what cannot be.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import HOME, ROOT, SIZES

HERE = Path(__file__).resolve().parent
KEEL = [sys.executable, str(HERE / "time_keel.py")]
TRL = {"1.16": HOME / "trl-1.16" / "bin" / "python", "1.12": HOME / "trl-1.12" / "bin" / "python"}
TRL_SETTINGS = "no gradient checkpointing, logging, evaluation or checkpoints"


@dataclass(frozen=True)
class Entry:
    """One measured program: what job, in what number format, by whom."""

    job: str
    fmt: str
    who: str
    command: tuple[str, ...]
    note: str = ""

    @property
    def name(self) -> str:
        return f"{self.job} {self.fmt} {self.who}"


UNITS = {"sft": "tokens/s", "rm": "pairs/s", "dpo": "pairs/s", "ppo": "samples/s", "decode": "tokens/s"}
TITLES = {"sft": "SFT", "rm": "reward model", "dpo": "DPO", "ppo": "PPO", "decode": "decoding"}


def entries(only: str | None, only_format: str | None, with_trl: bool) -> list[Entry]:
    """Everything to measure, the opponents of a comparison next to each other."""
    found = []
    for job in ("sft", "rm"):
        for fmt in ("fp32", "bf16"):
            found.append(keel(job, fmt))
            found.append(trl(job, fmt, "TRL 1.16", "1.16", job))
    # TRL's reward trainer drops the length column, so only its SFT can group batches by length.
    found.insert(4, trl("sft", "bf16", "TRL 1.16, grouped by length", "1.16", "sft-grouped"))
    # In float32 losses can be compared to the last digits; the grouped jobs have other batches.
    found += [keel("dpo", "fp32"), trl("dpo", "fp32", "TRL 1.16", "1.16", "dpo"), keel("dpo", "bf16")]
    for how, job in (("", "dpo"), (", grouped by length", "dpo-grouped"),
                     (", grouped by length, reference in every step", "dpo-live-grouped")):
        found.append(trl("dpo", "bf16", f"TRL 1.16{how}", "1.16", job))
    found += [keel("ppo", "fp32"), trl("ppo", "fp32", "TRL 1.12", "1.12", "ppo"), keel("ppo", "bf16")]
    for fmt in ("fp32", "bf16"):
        found += [keel("decode", fmt), Entry("decode", fmt, "generate()", (*KEEL, "generate", fmt))]
    return [e for e in found if only in (None, e.job) and only_format in (None, e.fmt)
            and (with_trl or not e.who.startswith("TRL"))]


def keel(job: str, fmt: str) -> Entry:
    return Entry(job, fmt, "keel", (*KEEL, job, fmt))


def trl(job: str, fmt: str, who: str, release: str, worker_job: str) -> Entry:
    return Entry(job, fmt, who, (str(TRL[release]), str(HERE / "time_trl.py"), worker_job, fmt), TRL_SETTINGS)


def main() -> int:
    asked = arguments()
    size = "quick" if asked.quick else "full"
    missing = [str(path.relative_to(ROOT)) for release, path in TRL.items()
               if not path.exists() and (release == "1.16" or asked.only in (None, "ppo"))]
    with_trl = not asked.no_trl and not missing
    if missing and not asked.no_trl:
        print(f"TRL is left out: {', '.join(missing)} missing; run benchmarks/setup_trl.sh", file=sys.stderr)
    inputs = worker((sys.executable, str(HERE / "prepare.py"), size))
    print(f"data: {inputs['data']}, {inputs['rows']} rows of {inputs['mean_tokens']} tokens on average; prompts of PPO "
          f"{inputs['mean_prompt']}", flush=True)
    todo = entries(asked.only, asked.format, with_trl)
    rates = [Entry("matmul", fmt, "torch", (*KEEL, "matmul", fmt)) for fmt in ("fp32", "bf16")]
    results: dict[str, list[dict[str, Any]]] = {entry.name: [] for entry in [*rates, *todo]}
    try:
        for k in range(asked.rounds):
            for entry in [*rates, *todo]:
                start = time.monotonic()
                results[entry.name].append(worker((*entry.command, size)))
                print(f"round {k + 1}: {entry.name}, {results[entry.name][-1]['seconds_cpu']:.2f} CPU seconds "
                      f"({time.monotonic() - start:.0f} s in all)", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("interrupted; the table is over what was measured", file=sys.stderr)
        todo = [entry for entry in todo if results[entry.name]]
    peak = {entry.fmt: best(results[entry.name])["rate"] for entry in rates}
    lines = table(todo, results, peak)
    print("\n".join(lines))
    save(asked, inputs, results, peak, lines)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="keel against TRL")
    parser.add_argument("--quick", action="store_true", help="fewer timed steps")
    parser.add_argument("--only", choices=sorted(UNITS), help="one job")
    parser.add_argument("--format", choices=("fp32", "bf16"), help="one number format")
    parser.add_argument("--no-trl", action="store_true", help="keel and transformers alone")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved repetitions; the best of each row counts")
    return parser.parse_args()


def worker(command: tuple[str, ...]) -> dict[str, Any]:
    """Run a process and read the last JSON line it prints."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{\"")]
    if done.returncode or not lines:
        raise SystemExit(f"{shlex.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(lines[-1])
    if "seconds_cpu" in found:
        found["rate"] = found["items"] / found["seconds_cpu"]
    return found


def best(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The round with the highest rate."""
    return max(runs, key=lambda run: run["rate"])


def table(todo: list[Entry], results: dict[str, list[dict[str, Any]]], peak: dict[str, float]) -> list[str]:
    """Markdown: one row per program, keel's ratio beside each opponent."""
    lines = [
        f"matmul 1024, one thread: fp32 {peak['fp32'] / 1e9:.0f} GFLOP/s, bf16 {peak['bf16'] / 1e9:.0f} GFLOP/s", "",
        "| job | format | program | rate | keel is | peak MB | of matmul rate | rounds |",
        "|---|---|---|---|---|---|---|---|"]
    for entry in todo:
        found = best(results[entry.name])
        own = f"{entry.job} {entry.fmt} keel"
        ratio = "" if entry.who == "keel" else f"{best(results[own])['rate'] / found['rate']:.2f}x"
        share = found["flops"] / found["seconds_cpu"] / peak[entry.fmt]
        rounds = " ".join(f"{run['rate']:.4g}" for run in results[entry.name])
        lines.append(f"| {TITLES[entry.job]} | {entry.fmt} | {entry.who} | {found['rate']:.4g} {UNITS[entry.job]} | "
                     f"{ratio} | {found['peak_mb']:.0f} | {share:.0%} | {rounds} |")
    return [*lines, *of_dpo(todo, results), *of_ppo(results)]


def of_dpo(todo: list[Entry], results: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What one pass over the data costs when nothing is known of the reference yet; and whether the work was equal."""
    entries = [entry for entry in todo if entry.job == "dpo"]
    lines = [f"{entry.name}: {first_pass(results[entry.name]):.4g} pairs/s with the reference's pass counted once"
             for entry in entries]
    own, other = results.get("dpo fp32 keel"), results.get("dpo fp32 TRL 1.16")
    if own and other:
        gaps = [abs(a - b) for a, b in zip(own[0]["losses"], other[0]["losses"], strict=True)]
        lines.append(f"DPO in float32: largest difference of the losses of a step {max(gaps):.1e}, after updates too")
    return ["", *lines] if lines else []


def first_pass(found: list[dict[str, Any]]) -> float:
    return max(run["items"] / (run["seconds_cpu"] + run["items"] * run["reference_s_per_pair"]) for run in found)


def of_ppo(results: dict[str, list[dict[str, Any]]]) -> list[str]:
    fast, slow = results.get("ppo bf16 keel"), results.get("ppo fp32 TRL 1.12")
    if fast and slow:
        return ["", f"PPO, keel in bf16 against TRL (whose PPO ignores its bf16 flag): "
                    f"{best(fast)['rate'] / best(slow)['rate']:.2f}x"]
    return []


def save(asked: argparse.Namespace, inputs: dict[str, Any], results: dict[str, list[dict[str, Any]]],
         peak: dict[str, float], lines: list[str]) -> None:
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    parts = [time.strftime("%Y-%m-%d"), *(["quick"] if asked.quick else []), *([asked.only] if asked.only else []),
             *([asked.format] if asked.format else [])]
    path = folder / f"{'-'.join(parts)}.json"
    path.write_text(json.dumps({
        "command": shlex.join(["python", "benchmarks/run.py", *sys.argv[1:]]), "machine": machine(),
        "versions": versions(), "size": vars(SIZES["quick" if asked.quick else "full"]), "inputs": inputs,
        "matmul_flops_per_s": peak, "rounds": results, "table": lines}, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {path.relative_to(ROOT)}")


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in (info.read_text().splitlines() if info.exists() else [])
             if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(), "threads": 1,
            "load": os.getloadavg(), "system": f"{platform.system()} {platform.machine()}"}


def versions() -> dict[str, dict[str, str]]:
    """Of each environment that took part."""
    ask = ("import json, platform\nfrom importlib.metadata import version, PackageNotFoundError\nfound = {'python': "
           "platform.python_version()}\nfor name in ('keel-rlhf', 'trl', 'torch', 'transformers', 'accelerate'):\n"
           "    try: found[name] = version(name)\n    except PackageNotFoundError: pass\nprint(json.dumps(found))")
    pythons = {"keel": Path(sys.executable), **{f"trl-{name}": path for name, path in TRL.items()}}
    return {name: worker((str(path), "-c", ask)) for name, path in pythons.items() if path.exists()}


if __name__ == "__main__":
    sys.exit(main())
