"""`keel serve --model DIR`: the settings, and the server's life from its first line to its end."""

import errno
import os
import secrets
import signal
import socket
import sys
from typing import Any

from pydantic import Field, model_validator

from keel.config import Config
from keel.data.render import template
from keel.errors import ConfigError
from keel.models.load import FrozenModelConfig, causal_lm, load_tokenizer
from keel.persona.rows import Bounds, RowControl, RowSettings, Steering
from keel.persona.settings import AxisConfig
from keel.rollout.sample import check_fit
from keel.serve.engine import Engine

__all__ = ["LimitsConfig", "ServeConfig", "opened", "run", "server_of"]

EVERYWHERE = ("0.0.0.0", "::", "")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SHORTEST_TOKEN = 16


class LimitsConfig(Config):
    """What one client may cost."""

    max_length: int = Field(4096, ge=8, description="most tokens of a prompt and its response; at most the model's "
                            "own context")
    max_new_tokens: int = Field(1024, ge=1, description="most tokens of one response; what a request gets that names "
                                "no number")
    max_choices: int = Field(8, ge=1, description="most responses to one request: n, times its prompts")
    max_messages: int = Field(512, ge=1, description="most messages of a conversation")
    max_body_bytes: int = Field(1 << 20, ge=1024, description="longest request in bytes")
    slots: int = Field(16, ge=1, description="responses written at the same time")
    queue: int = Field(64, ge=0, description="responses that may wait for a slot; beyond them requests get 429")
    connections: int = Field(256, ge=1, description="open connections; beyond them clients get 503")
    timeout_s: float = Field(300.0, gt=0, description="seconds from a request to the end of its response")
    body_timeout_s: float = Field(30.0, gt=0, description="seconds for a request to arrive")
    grace_s: float = Field(20.0, ge=0, description="seconds that running requests get to finish when the server stops")


class ServeConfig(Config):
    """Everything `keel serve` reads."""

    model: FrozenModelConfig = Field(description="causal language model to serve")
    name: str | None = Field(None, description="what clients call the model; none: the name of its folder")
    host: str = Field("127.0.0.1", description="address to listen on; the default is this machine alone")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0: any that is free")
    hosts: tuple[str, ...] = Field((), description="further names under which browsers may reach the server")
    origins: tuple[str, ...] = Field((), description="origins whose pages may call the server (CORS); none: only its "
                                     "own page")
    token_env: str = Field("KEEL_SERVE_TOKEN", pattern=r"^[A-Z][A-Z0-9_]*$", description="environment variable with "
                           "the token clients must send; not set: one is made and printed once")
    axis: AxisConfig | None = Field(None, description="the Assistant Axis: what acts on every request; none: no axis")
    allow_axis: bool = Field(True, description="let requests change what the axis does; else they may only watch it")
    window: int = Field(32, ge=1, description="tokens of the rolling mean that is held against the default range")
    limits: LimitsConfig = LimitsConfig()
    seed: int = Field(0, ge=0, description="fixes the responses to requests that bring no seed, in their order")

    @model_validator(mode="after")
    def _check(self) -> "ServeConfig":
        if self.host in EVERYWHERE and not self.hosts:
            raise ValueError(f"host={self.host!r} listens on every address, and hosts is empty: name the addresses or "
                             "names under which clients will reach it, for others are refused")
        return self

    @property
    def shown(self) -> str:
        """The model's name for clients."""
        return self.name or os.path.basename(os.path.normpath(self.model.path))

    @property
    def known_hosts(self) -> tuple[str, ...]:
        """Names that a request may be addressed to."""
        own = () if self.host in EVERYWHERE else (self.host,)
        return tuple(name.lower() for name in (*LOOPBACK, *own, *self.hosts))


def run(cfg: ServeConfig) -> None:
    """Serve until SIGTERM or Ctrl-C; what runs then may finish."""
    uvicorn = _library()
    token, made = _token(cfg.token_env)
    listener = _listener(cfg)  # before the model is loaded, which may take minutes
    try:
        app, engine = opened(cfg, token)
    except BaseException:
        listener.close()
        raise
    # The server hands the signal that stopped it on to whoever listened before; there is nobody who must hear it.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        _announce(cfg, listener.getsockname()[1], token if made else None)
        server_of(uvicorn, app, cfg, engine).run(sockets=[listener])
    finally:
        engine.close(0)
        engine.join(cfg.limits.grace_s + 1)
        listener.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    print("keel serve: stopped", file=sys.stderr)


def _listener(cfg: ServeConfig) -> socket.socket:
    """The socket.

    Raises:
        ConfigError: nobody can listen at this address.
    """
    family = socket.AF_INET6 if ":" in cfg.host else socket.AF_INET
    try:
        return socket.create_server((cfg.host, cfg.port), family=family, backlog=cfg.limits.connections)
    except (OSError, UnicodeError) as error:
        number = (isinstance(error, OSError) and error.errno) or 0
        remedy = {errno.EADDRINUSE: "Another program listens there; --port 0 takes a free one.",
                  errno.EACCES: "Ports below 1024 belong to the system; --port 0 takes a free one."}.get(
                      number, "Name this machine by its host name or one of its addresses; 127.0.0.1 is itself alone.")
        raise ConfigError(f"cannot listen on port {cfg.port} of host {cfg.host!r} "
                          f"({getattr(error, 'strerror', None) or error})", remedy=remedy) from error


def opened(cfg: ServeConfig, token: str) -> tuple[Any, Engine]:
    """The application, and the engine behind it, which runs from now on.

    Raises:
        ModelError: the model or the axis cannot be used.
    """
    from keel.serve.app import application
    from keel.serve.service import Service

    words = template(load_tokenizer(cfg.model.path, trust_remote_code=cfg.model.trust_remote_code))
    policy = causal_lm(cfg.model.whole)
    capacity = _capacity(cfg, policy)
    control, defaults = _axis(cfg, policy)
    engine = Engine(policy, words, slots=cfg.limits.slots, capacity=capacity, queue=cfg.limits.queue, control=control)
    engine.start()
    return application(Service(cfg, words, engine, control, defaults), token), engine


def _library() -> Any:
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ConfigError(f"keel serve needs packages that are not installed ({error.name})",
                          remedy='pip install "keel-rlhf[serve]"') from error
    return uvicorn


def _token(variable: str) -> tuple[str, bool]:
    """The token, and whether it was made here."""
    found = os.environ.get(variable)
    if found is None:
        return secrets.token_urlsafe(32), True
    if len(found) < SHORTEST_TOKEN or not found.isascii() or not found.isprintable() or " " in found:
        raise ConfigError(f"the token in {variable} is shorter than {SHORTEST_TOKEN} characters, or has others than "
                          "printable ASCII without blanks", remedy="Make one: openssl rand -hex 32")
    return found, False


def _capacity(cfg: ServeConfig, policy: Any) -> int:
    own = getattr(policy.config, "max_position_embeddings", None) or cfg.limits.max_length
    capacity = min(cfg.limits.max_length, own)
    check_fit(policy, [[0]], capacity)
    return capacity


def _axis(cfg: ServeConfig, policy: Any) -> tuple[RowControl | None, RowSettings]:
    """The axis on the model, and what acts on requests that say nothing."""
    if cfg.axis is None:
        return None, RowSettings()
    axis = cfg.axis.read()
    axis.fitting(policy, None)
    control = RowControl(axis, policy, n_rows=cfg.limits.slots, watch=cfg.axis.monitor)
    steer = None if cfg.axis.steer is None else Steering(cfg.axis.steer, cfg.axis.unit, cfg.axis.layers)
    held = None if cfg.axis.lower is None else Bounds(cfg.axis.lower, None, cfg.axis.layers)
    defaults = RowSettings(steer, cfg.axis.cap or held, cfg.axis.where)
    control.check(defaults)
    return control, defaults


def server_of(uvicorn: Any, app: Any, cfg: ServeConfig, engine: Engine) -> Any:
    """The HTTP server around an application."""

    class Server(uvicorn.Server):
        """Tells the engine as soon as it is to stop, so that running requests can finish in time."""

        def handle_exit(self, sig: int, frame: Any) -> None:
            engine.close(cfg.limits.grace_s)
            uvicorn.Server.handle_exit(self, sig, frame)

    return Server(uvicorn.Config(
        app, host=cfg.host, port=cfg.port, log_level="warning", access_log=False, server_header=False, lifespan="off",
        ws="none", proxy_headers=False, limit_concurrency=cfg.limits.connections, timeout_keep_alive=10,
        h11_max_incomplete_event_size=16384, timeout_graceful_shutdown=int(cfg.limits.grace_s) + 5))


def _announce(cfg: ServeConfig, port: int, token: str | None) -> None:
    name = cfg.hosts[0] if cfg.host in EVERYWHERE else cfg.host
    address = f"http://{f'[{name}]' if ':' in name else name}:{port}"
    print(f"keel serve: {cfg.shown} at {address}/v1, chat page at {address}/", file=sys.stderr)
    if token is not None:
        print(f"keel serve: no {cfg.token_env} in the environment; the token of this run is {token}\n"
              f"            open {address}/#token={token}", file=sys.stderr)
    else:
        print(f"keel serve: clients send the token of {cfg.token_env}", file=sys.stderr)
    if cfg.host not in LOOPBACK:
        print("keel serve: other machines can reach this, and token and text travel readable; put TLS in front of it",
              file=sys.stderr)
    sys.stderr.flush()
