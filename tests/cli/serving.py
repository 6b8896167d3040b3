"""A real HTTP server on this machine that answers as a test tells it to, one reply after the other."""

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """One answer; `silent` accepts the request and says nothing until the server closes."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    silent: bool = False


Answer = Reply | Callable[[Any], Reply]


class Server:
    """Answers with the given replies in turn, the last one for ever; use it in a `with`.

    Attributes:
        url: where it listens.
        asked: path, headers and JSON body of every request, in order.
    """

    def __init__(self, *answers: Answer) -> None:
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        closing = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                answer = answers[min(len(server.asked), len(answers) - 1)]
                server.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                reply = answer if isinstance(answer, Reply) else answer(body)
                if reply.silent:
                    closing.wait()
                    return
                raw = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                with suppress(ConnectionError):
                    self.send_response(reply.status)
                    for name, value in (reply.headers | {"content-length": str(len(raw))}).items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                """Say nothing on stderr."""

        self._closing = closing
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self.url = f"http://127.0.0.1:{self._server.server_port}/score"

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
