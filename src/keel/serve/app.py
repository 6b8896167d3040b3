"""The routes."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse, Response, StreamingResponse

from keel.serve.answer import Answer, refusal
from keel.serve.engine import Event, Job
from keel.serve.guard import Guard
from keel.serve.protocol import Asked, ChatAsked, CompletionAsked, Refused, as_json, parsed
from keel.serve.service import Plan, Service

__all__ = ["application"]

HERE = Path(__file__).parent
PAGE = {"/": ("chat.html", "text/html; charset=utf-8"), "/chat.css": ("chat.css", "text/css; charset=utf-8"),
        "/chat.js": ("chat.js", "text/javascript; charset=utf-8"),
        "/trace.js": ("trace.js", "text/javascript; charset=utf-8")}
News = asyncio.Queue[Event | None]
_OTHERS = {404: "there is nothing at this address", 405: "this address takes another method"}


def application(service: Service, token: str) -> Any:
    """Everything behind the socket."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    _add_pages(app, service)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _answered(service, request, ChatAsked)

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        return await _answered(service, request, CompletionAsked)

    @app.get("/v1/models")
    async def models() -> Response:
        return _json({"object": "list", "data": [_model(service)]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name != service.cfg.shown:
            raise Refused(404, f"no model is called {name!r}; see /v1/models", param="model", code="model_not_found")
        return _json(_model(service))

    @app.get("/v1/axis")
    async def axis() -> Response:
        return _json(service.described())

    guarded = Guard(app, token=token, hosts=service.cfg.known_hosts)
    if not service.cfg.origins:
        return guarded
    return CORSMiddleware(guarded, allow_origins=list(service.cfg.origins), allow_methods=["GET", "POST"],
                          allow_headers=["authorization", "content-type"])


def _add_pages(app: FastAPI, service: Service) -> None:
    @app.exception_handler(Refused)
    async def refused(_: Request, problem: Refused) -> Response:
        return _refused(problem)

    @app.exception_handler(HTTPException)
    async def other(_: Request, problem: HTTPException) -> Response:
        return _refused(Refused(problem.status_code, _OTHERS.get(problem.status_code, str(problem.detail))))

    @app.exception_handler(Exception)
    async def broken(_: Request, problem: Exception) -> Response:
        return _refused(Refused(500, f"the server failed: {type(problem).__name__}", code="server_failed"))

    @app.api_route("/healthz", methods=["GET", "HEAD"])
    async def health() -> Response:
        ready = service.engine.alive and not service.engine.closing
        running, waiting = service.engine.counts
        return _json({"status": "ready" if ready else "closing", "running": running, "waiting": waiting},
                     200 if ready else 503)

    def add(path: str, name: str, kind: str) -> None:
        @app.api_route(path, methods=["GET", "HEAD"])
        async def page() -> Response:
            return FileResponse(HERE / name, media_type=kind)

    for path, (name, kind) in PAGE.items():
        add(path, name, kind)


async def _answered(service: Service, request: Request, kind: type[Asked]) -> Response:
    body = await _body(request, service.cfg.limits.max_body_bytes, service.cfg.limits.body_timeout_s)
    plan = await run_in_threadpool(service.plan, parsed(kind, body))
    loop, news = asyncio.get_running_loop(), News()
    jobs = service.jobs(plan, lambda event: loop.call_soon_threadsafe(news.put_nowait, event))
    if not service.engine.submit(jobs):
        if service.engine.closing:
            raise Refused(503, "the server is being stopped and takes no more requests", code="closing")
        raise Refused(429, "too many requests are running or waiting; try again soon", code="busy")
    talk = _Talk(service, plan, jobs, news, request)
    if not plan.asked.stream:
        return await talk.whole()
    first = await talk.next()  # what is wrong from the start gets its own status
    return StreamingResponse(talk.stream(first), media_type="text/event-stream")


class _Talk:
    """One request while it is answered. When the client goes away, its rows are free before the next token."""

    def __init__(self, service: Service, plan: Plan, jobs: Sequence[Job], news: News, request: Request) -> None:
        self._service, self._plan, self._jobs, self._news = service, plan, jobs, news
        self._answer = Answer(service, plan)
        self._watch = asyncio.create_task(self._until_gone(request))

    async def next(self) -> Event | None:
        """The next event; none where the client has gone.

        Raises:
            Refused: it is a problem.
        """
        event = await self._news.get()
        problem = refusal(event) if event is not None else None
        if problem is not None:
            self._over()
            raise problem
        return event

    async def whole(self) -> Response:
        """The answer in one piece."""
        try:
            while not self._answer.complete:
                event = await self.next()
                if event is None:
                    return Response(status_code=499)
                self._answer.heard(event)
            return _json(self._answer.whole())
        finally:
            self._over()

    async def stream(self, event: Event | None) -> AsyncIterator[bytes]:
        """The answer as server-sent events, from the first event on."""
        try:
            while event is not None:
                chunk = self._answer.heard(event)
                if chunk is not None:
                    yield _sent(chunk)
                if self._answer.complete:
                    if self._plan.asked.usage_asked:
                        yield _sent(self._answer.usage_chunk())
                    yield b"data: [DONE]\n\n"
                    return
                event = await self.next()
        except Refused as problem:
            yield _sent(problem.body)
        finally:
            self._over()

    async def _until_gone(self, request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self._service.engine.cancel(self._jobs)
        self._news.put_nowait(None)

    def _over(self) -> None:
        self._service.engine.cancel(self._jobs)
        self._watch.cancel()


async def _body(request: Request, most: int, timeout_s: float) -> bytes:
    """The request's body, of which no more is read than may come.

    Raises:
        Refused: it is too long, or too slow.
    """
    told = request.headers.get("content-length", "0")
    found = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            if told.isdecimal() and int(told) > most:
                raise Refused(413, f"a request of {int(told)} bytes; this server reads at most {most}",
                              code="body_too_large")
            async for part in request.stream():
                found += part
                if len(found) > most:
                    raise Refused(413, f"the request is longer than {most} bytes, which is all this server reads",
                                  code="body_too_large")
    except TimeoutError as error:
        raise Refused(408, "the body of the request did not arrive in time", code="slow_body") from error
    return bytes(found)


def _model(service: Service) -> dict[str, Any]:
    return {"id": service.cfg.shown, "object": "model", "created": service.started, "owned_by": "keel",
            "context_length": service.engine.capacity}


def _json(content: Any, status: int = 200) -> Response:
    return Response(as_json(content), status, media_type="application/json")


def _sent(content: Any) -> bytes:
    return b"data: " + as_json(content) + b"\n\n"


def _refused(problem: Refused) -> Response:
    answer = _json(problem.body, problem.status)
    if problem.status in (429, 503):
        answer.headers["retry-after"] = "1"
    if problem.status in (408, 413):
        answer.headers["connection"] = "close"
    return answer
