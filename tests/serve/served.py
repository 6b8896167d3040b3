"""A tiny model behind a real socket, in this process."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import tiny
import torch
import uvicorn

from keel.models.load import FrozenModelConfig
from keel.persona.axis import AssistantAxis, DefaultStats
from keel.persona.cap import Cap
from keel.persona.settings import AxisConfig
from keel.serve import command
from keel.serve.command import LimitsConfig, ServeConfig

TOKEN = "a-token-of-the-tests"
USER = [{"role": "user", "content": "hello cat why ?"}]
TALK = [{"role": "system", "content": "please"}, *USER, {"role": "assistant", "content": "the dog ran ."},
        {"role": "user", "content": "yes no two"}]


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def axis_file(path: Path, layers: int = 2, width: int = 16) -> Path:
    """A random direction per block, with one preset on the axis and one beside it."""
    caps = {"floor": Cap(tuple(range(layers)), (0.4,) * layers, (None,) * layers, 0.25, "tests", "tests"),
            "beside": Cap((layers - 1,), (None,), (-0.1,), None, "tests", "tests", drawn(1, width, seed=2))}
    stats = DefaultStats(layers // 2, 0.2, 0.3, -0.2, 0.6, 50)
    AssistantAxis(drawn(layers, width, seed=1), token_norm=torch.linspace(1, 2, layers), caps=caps,
                  meta={"default_stats": stats.words}).save(path)
    return path


def settings(folder: Path, *, limits: dict[str, Any] | None = None, axis: dict[str, Any] | None = None,
             more: dict[str, Any] | None = None) -> ServeConfig:
    """A model, an axis and small limits."""
    model = folder / "tiny"
    if not model.exists():
        tiny.llama(model)
        axis_file(folder / "axis.safetensors")
    small = {"slots": 4, "queue": 4, "max_new_tokens": 24, "max_choices": 4, "max_messages": 8, "grace_s": 5.0}
    return ServeConfig(model=FrozenModelConfig(path=str(model), device="cpu"),
                       axis=AxisConfig(path=folder / "axis.safetensors", **(axis or {})),
                       limits=LimitsConfig(**(small | (limits or {}))), **(more or {}))


class Served:
    """A running server, and clients for it."""

    def __init__(self, cfg: ServeConfig, port: int, engine: Any, server: Any) -> None:
        self.cfg, self.port, self.engine, self.server = cfg, port, engine, server
        self.address = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.address, headers={"authorization": f"Bearer {TOKEN}"}, timeout=20)
        self.client = openai.OpenAI(base_url=f"{self.address}/v1", api_key=TOKEN, max_retries=0, timeout=20)

    def chat(self, messages: Any = None, *, axis: Any = None, extra: Any = None, seed: int = 1, **asked: Any) -> Any:
        """The official client's answer."""
        body = ({} if axis is None else {"axis": axis}) | (extra or {})
        return self.client.chat.completions.create(model="tiny", messages=USER if messages is None else messages,
                                                   seed=seed, extra_body=body or None, **asked)

    def post(self, body: Any, path: str = "/v1/chat/completions") -> httpx.Response:
        """A request as it is written, without any client's help."""
        return self.http.post(path, content=body) if isinstance(body, bytes) else self.http.post(path, json=body)

    def idle(self) -> bool:
        """Whether everything is free again; waits a little for it."""
        return until(lambda: self.engine.counts == (0, 0) and len(self.engine._rows) == self.cfg.limits.slots)


def until(true: Any, seconds: float = 10.0) -> bool:
    """Whether something comes true in time."""
    end = time.monotonic() + seconds
    while not (found := bool(true())) and time.monotonic() < end:
        time.sleep(0.01)
    return found


@contextlib.contextmanager
def serving(cfg: ServeConfig) -> Iterator[Served]:
    """The server in a thread, until the block ends."""
    app, engine = command.opened(cfg, TOKEN)
    server = command.server_of(uvicorn, app, cfg, engine)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    assert until(lambda: server.started)
    served = Served(cfg, listener.getsockname()[1], engine, server)
    try:
        yield served
    finally:
        served.http.close()
        served.client.close()
        server.handle_exit(0, None)
        engine.close(0)
        engine.join(10)
        thread.join(10)
        listener.close()


class Gate:
    """Holds an engine before each step, so that a test decides how far its responses have come."""

    def __init__(self, engine: Any) -> None:
        self._open = threading.Semaphore(0)
        self._engine, self._step = engine, engine._desk.step
        engine._desk.step = self._stepped

    def _stepped(self) -> None:
        self._open.acquire(timeout=10)
        self._step()

    def let(self, n: int) -> None:
        """So many steps."""
        for _ in range(n):
            self._open.release()

    def off(self) -> None:
        """As fast as it goes from now on."""
        self._engine._desk.step = self._step
        self.let(1)
