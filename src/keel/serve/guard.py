"""What every request passes first: is it addressed to this server, and does it bring the token?"""

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from keel.serve.protocol import Refused, as_json

__all__ = ["Guard", "answer_bytes"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

HEADERS = (
    (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"), (b"cache-control", b"no-store"),
    (b"x-frame-options", b"DENY"), (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
     b"img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
)


class Guard:
    """Around an ASGI application.

    A page that was made to look as if it came from this server (DNS rebinding) sends its own name as host; those are
    refused whatever they bring. Everything under /v1/ needs the token.

    Args:
        app: what is guarded.
        token: what clients send as `Authorization: Bearer TOKEN`.
        hosts: names under which requests may come.
    """

    def __init__(self, app: Any, *, token: str, hosts: tuple[str, ...]) -> None:
        self._app, self._token, self._hosts = app, token.encode(), hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on, or answer 400 or 401."""
        headers = dict(scope["headers"])

        async def sealed(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        problem = self._problem(scope["path"], headers)
        if problem is not None:
            extra = [(b"www-authenticate", b"Bearer")] if problem.status == 401 else []
            await answer_bytes(sealed, problem.status, as_json(problem.body), extra)
            return
        await self._app(scope, receive, sealed)

    def _problem(self, path: str, headers: dict[bytes, bytes]) -> Refused | None:
        if _name(headers.get(b"host", b"")) not in self._hosts:
            return Refused(400, "the request is addressed to another host; the operator names further ones in `hosts`",
                           code="unknown_host")
        if path.startswith("/v1/"):
            kind, _, sent = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(sent.strip(), self._token):
                return Refused(401, "the token is missing or wrong; send it as Authorization: Bearer TOKEN",
                               code="invalid_api_key")
        return None


def _name(host: bytes) -> str:
    """The name in a Host header, without its port."""
    text = host.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0] if text.count(":") == 1 else text


async def answer_bytes(send: Send, status: int, body: bytes, extra: list[tuple[bytes, bytes]]) -> None:
    """A whole answer in JSON."""
    await send({"type": "http.response.start", "status": status, "headers": [
        (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *extra]})
    await send({"type": "http.response.body", "body": body})
