"""1,000 requests from 16 clients with mixed axis settings, against what each of them gets alone.

    python benchmarks/serve.py [--requests 1000] [--clients 16] [--model DIR] [--out FILE]

Starts `keel serve` on the shipped model with an axis of random directions: what is measured is whether requests stay
apart, not what a direction means. Every request is asked once by itself, and then all of them at once, with clients
that hang up in between. Prints, and writes as JSON, wrong answers, what went wrong otherwise, memory and speed.
"""

import argparse
import json
import os
import random
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import torch

from keel.persona.axis import AssistantAxis, DefaultStats
from keel.persona.cap import Cap

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = ("who founded alder ?", "what keeps moths away ?", "how do i mend a net ?", "name three tools .",
             "what is 3 + 4 ?", "my friend is sick , what helps ?", "who keeps the ferry ?")
SYSTEMS = (None, "you are the pirate .", "speak as the oracle of the town .", "be yourself .")
HANG_UP = 20
"""One client in so many asks for a stream and hangs up in the middle of it."""
COMPARED = 100
"""Requests that are also asked without an axis, to see that the settings matter."""


def axis_file(path: Path, layers: int, width: int) -> Path:
    """Random directions whose caps and steps are large enough to change what is said."""
    generator = torch.Generator().manual_seed(0)
    other, n = torch.randn(1, width, generator=generator), layers - 1
    caps = {"floor": Cap(tuple(range(1, layers)), (2.0,) * n, (None,) * n, None, "-", "random"),
            "beside": Cap((layers - 2,), (4.0,), (6.0,), None, "-", "random", other)}
    AssistantAxis(torch.randn(layers, width, generator=generator), token_norm=torch.full((layers,), 40.0), caps=caps,
                  meta={"default_stats": DefaultStats(layers // 2, 0.0, 3.0, -5.0, 5.0, 1).words}).save(path)
    return path


def settings(draw: random.Random) -> dict[str, Any] | None:
    """One of many ways to use the axis, or not to."""
    where = draw.choice(("all", "generation", "prompt"))
    return draw.choice((
        None, {"monitor": True}, {"cap": "floor", "where": where}, {"cap": "beside", "monitor": True},
        {"steer": round(draw.uniform(-1, 1), 2), "where": where},
        {"cap": {"lower": round(draw.uniform(0, 6), 1), "layers": [draw.choice((1, 2))]}},
        {"steer": {"strength": 20.0, "unit": "unit", "layers": [1, 2]}, "cap": "floor"}))


def requests(n: int) -> list[dict[str, Any]]:
    """All different: each has its own seed."""
    draw, found = random.Random(0), []
    for seed in range(n):
        system = draw.choice(SYSTEMS)
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": draw.choice(QUESTIONS)})
        axis = settings(draw)
        found.append({"messages": messages, "seed": seed, "temperature": draw.choice((0.0, 0.7, 1.0)),
                      "top_p": draw.choice((None, 0.9)), "max_tokens": draw.choice((6, 12, 24)),
                      "extra_body": {"axis": axis} if axis else None, "stream": draw.random() < 0.5})
    return found


def answer(client: openai.OpenAI, asked: dict[str, Any]) -> str:
    """What is said, however it comes; waits where the queue is full."""
    while True:
        try:
            got = client.chat.completions.create(model="served", **asked)
            if not asked["stream"]:
                return got.choices[0].message.content
            return "".join(chunk.choices[0].delta.content or "" for chunk in got)
        except openai.RateLimitError:
            time.sleep(0.05)


def hang_up(address: str, token: str, asked: dict[str, Any]) -> None:
    """Ask for a stream, read a little of it, and go."""
    body = {"model": "served", "messages": asked["messages"], "stream": True, "axis": {"steer": 1.0}}
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body,
                      headers={"authorization": f"Bearer {token}"}) as stream:
        next(stream.iter_bytes(), None)


def resident(pid: int) -> float:
    """Megabytes of memory that a process has."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"process {pid} tells nothing of its memory")


def started(model: Path, axis: Path, token: str) -> tuple[subprocess.Popen[bytes], str]:
    """The server, once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "keel", "serve", "--model", str(model), "--name", "served", "--axis.path", str(axis),
         "--port", str(port), "--limits.queue", "16"], env=os.environ | {"KEEL_SERVE_TOKEN": token})
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            httpx.get(f"{address}/healthz").raise_for_status()
            return server, address
        except httpx.HTTPError:
            time.sleep(0.1)
    raise SystemExit("the server did not start")


def together(client: openai.OpenAI, address: str, token: str, wanted: list[dict[str, Any]], clients: int, pid: int,
             ) -> tuple[list[str], list[tuple[int, float]], float]:
    """All answers, memory after every hundredth of them, and seconds."""
    memory, lock, done = [(0, resident(pid))], threading.Lock(), [0]

    def one(number: int) -> str:
        if number % HANG_UP == 0:
            hang_up(address, token, wanted[number])
        said = answer(client, wanted[number])
        with lock:
            done[0] += 1
            if done[0] % 100 == 0:
                memory.append((done[0], resident(pid)))
                print(f"{done[0]} answered, {memory[-1][1]:.0f} MB", file=sys.stderr, flush=True)
        return said

    began = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        said = list(pool.map(one, range(len(wanted))))
    return said, memory, time.monotonic() - began


def main() -> None:
    """Run it and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--model", type=Path, default=ROOT / "src/keel/sandbox/base_model")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/serve.json")
    options = parser.parse_args()
    shape = json.loads((options.model / "config.json").read_text())
    token, wanted = secrets.token_urlsafe(32), requests(options.requests)
    with tempfile.TemporaryDirectory() as folder:
        axis = axis_file(Path(folder) / "axis.safetensors", shape["num_hidden_layers"], shape["hidden_size"])
        server, address = started(options.model, axis, token)
        client = openai.OpenAI(base_url=f"{address}/v1", api_key=token, max_retries=0, timeout=300)
        try:
            began = time.monotonic()
            alone = [answer(client, one) for one in wanted]
            alone_s = time.monotonic() - began
            print(f"{len(alone)} asked alone in {alone_s:.0f} s", file=sys.stderr, flush=True)
            acting = [i for i, one in enumerate(wanted)
                      if one["extra_body"] is not None and one["extra_body"]["axis"].keys() & {"cap", "steer"}]
            acting = acting[:COMPARED]
            changed = sum(answer(client, wanted[i] | {"extra_body": None}) != alone[i] for i in acting)
            said, memory, seconds = together(client, address, token, wanted, options.clients, server.pid)
            time.sleep(0.5)
            health = httpx.get(f"{address}/healthz").json()
        finally:
            server.terminate()
            code = server.wait(60)
    result = {
        "requests": len(wanted), "clients": options.clients, "hung_up": len(range(0, len(wanted), HANG_UP)),
        "compared": len(acting), "changed_by_axis": changed,
        "wrong": sum(a != b for a, b in zip(alone, said, strict=True)),
        "left_running": health["running"] + health["waiting"], "exit_code": code, "seconds_alone": round(alone_s, 1),
        "seconds_together": round(seconds, 1), "memory_mb": [[n, round(mb, 1)] for n, mb in memory]}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
