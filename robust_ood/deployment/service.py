"""A guard as a web service: `POST /predict`, `GET /health`, `GET /metrics`, and a small page.

Nothing that a client sends is unpickled, run, or used as a path.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from robust_ood.deployment.batching import Batcher, Record
from robust_ood.deployment.guard import Guard
from robust_ood.deployment.predict import in_words
from robust_ood.deployment.telemetry import Telemetry
from robust_ood.deployment.uploads import Limits, RefusedError, read_upload
from robust_ood.errors import UserError
from robust_ood.texts import printable, shortened

_GRACE = 30
"""Seconds that requests in progress get when the service is stopped."""
_DECODERS = 2
"""Images decoded at a time, each of at most `Limits.pixels`: this bounds the memory."""
Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]


class Service:
    """What the routes share.

    Args:
        guard: the guard.
        limits: of what it takes.
        log: file to which each decision is appended as a JSON line, or None.
    """

    def __init__(self, guard: Guard, limits: Limits, log: Path | None) -> None:
        self.guard = guard
        self.limits = limits
        self.telemetry = Telemetry(guard)
        self.decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")
        self.log = None if log is None else log.open("a", encoding="utf-8")
        self.batcher: Batcher | None = None

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Score while the service runs, and answer what waits when it stops."""
        self.batcher = Batcher(self.guard, self.limits)
        self.batcher.start()
        yield
        await self.batcher.stop()
        self.decoders.shutdown()
        if self.log is not None:
            self.log.close()

    async def predict(self, request: Request) -> Response:
        """Answer with the decisions of the images of a request, in their order."""
        try:
            uploads = await asyncio.wait_for(self._uploads(request), self.limits.seconds)
        except asyncio.TimeoutError as error:
            raise RefusedError(
                408, f"request: its body did not arrive in {self.limits.seconds:g} seconds"
            ) from error
        loop = asyncio.get_running_loop()
        preprocessing = self.guard.description.preprocessing
        images = []
        for name, content in uploads:
            read = partial(read_upload, content, preprocessing, self.limits)
            try:
                images.append(await loop.run_in_executor(self.decoders, read))
            except RefusedError as error:
                if len(uploads) == 1:
                    raise
                raise RefusedError(error.status, f"{name}: {error}") from error
        assert self.batcher is not None
        decided = await self.batcher.decide(images)
        predictions = []
        for (name, _), record in zip(uploads, decided, strict=True):
            self.telemetry.count(record)
            prediction = {"image": name, **record, "words": in_words(self.guard, record)}
            predictions.append(prediction)
            self._write(prediction)
        return JSONResponse({"guard": self.guard.description.id, "predictions": predictions})

    async def health(self, _: Request) -> Response:
        """Say which guard is served."""
        description = self.guard.description
        return JSONResponse(
            {
                "status": "ok",
                "guard": description.id,
                "detector": description.label,
                "promise": description.threshold.in_words(),
                "threshold": float(self.guard.threshold),
            }
        )

    async def metrics(self, _: Request) -> Response:
        """Answer with the counts as Prometheus reads them."""
        return Response(self.telemetry.page(), media_type="text/plain; version=0.0.4")

    async def _uploads(self, request: Request) -> list[tuple[str, bytes]]:
        """Return names and contents of the images of a request: of a form, or the body itself."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            return await self._form(request)
        if kind.startswith("image/") or kind == "application/octet-stream":
            return [("image", await request.body())]
        raise RefusedError(
            415, "request: expected multipart/form-data with files, or one image as the body"
        )

    async def _form(self, request: Request) -> list[tuple[str, bytes]]:
        uploads = []
        most = self.limits.images
        async with request.form(max_files=most, max_fields=most) as form:
            for _, value in form.multi_items():
                if not isinstance(value, UploadFile):
                    raise RefusedError(422, "request: a form field is no file; expected images")
                name = shortened(printable(value.filename or "image"), 100)
                uploads.append((name, await value.read()))
        if not uploads:
            raise RefusedError(422, "request: holds no file; expected images")
        return uploads

    def _write(self, prediction: Record) -> None:
        """Append a line to the log; a full disk does not stop the service."""
        if self.log is None:
            return
        record = {"time": round(time.time(), 3), **prediction}
        record.pop("words")
        try:
            self.log.write(json.dumps(record) + "\n")
            self.log.flush()
        except OSError as error:
            print(f"warning: log: cannot be written ({error.strerror})", file=sys.stderr)


class Counted:
    """Counts requests, refuses bodies that are too large, and sets headers, outside of the routes.

    Args:
        app: what is inside.
        service: its limits and counts.
    """

    def __init__(self, app: Any, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request of ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        limit = self.service.limits.body
        telemetry = self.service.telemetry
        received = 0

        async def counted() -> Mapping[str, Any]:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise RefusedError(413, f"request: more than the {limit:,} bytes that are accepted")
            return message

        async def marked(message: Mapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                telemetry.requests.labels(str(message["status"])).inc()
                message["headers"].append((b"x-content-type-options", b"nosniff"))
            await send(message)

        await self.app(scope, counted, marked)
        if scope["path"] == "/predict":
            telemetry.latency.observe(time.perf_counter() - start)


def make_app(guard: Guard, limits: Limits | None = None, log: Path | None = None) -> FastAPI:
    """Return the application of a guard.

    Args:
        guard: the guard.
        limits: of what it takes.
        log: file to which each decision is appended as a JSON line.
    """
    service = Service(guard, limits or Limits(), log)
    app = FastAPI(
        title="robust-ood", lifespan=service.lifespan, docs_url=None, redoc_url=None,
        openapi_url=None,
    )  # fmt: skip
    html, policy = page()

    async def front(_: Request) -> Response:
        return HTMLResponse(html, headers={"content-security-policy": policy})

    app.add_route("/", front, methods=["GET"])
    app.add_route("/predict", service.predict, methods=["POST"])
    app.add_route("/health", service.health, methods=["GET"])
    app.add_route("/metrics", service.metrics, methods=["GET"])
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(Counted, service=service)
    app.state.service = service
    return app


def page() -> tuple[str, str]:
    """Return the page, and the policy that lets a browser run its script and style alone."""
    html = files("robust_ood.deployment").joinpath("page.html").read_text(encoding="utf-8")
    policy = "default-src 'none'; img-src blob:; connect-src 'self'; base-uri 'none'"
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        match = re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert match is not None
        digest = base64.b64encode(hashlib.sha256(match[1].encode()).digest()).decode()
        policy += f"; {directive} 'sha256-{digest}'"
    return html, policy


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises: `UserError` where the address cannot be had."""
    try:
        return socket.create_server((host, port), backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"port: cannot listen on {host}:{port} ({reason})") from error


def make_server(app: FastAPI) -> uvicorn.Server:
    """Return the server of an application; h11 bounds the size of headers."""
    config = uvicorn.Config(
        app,
        http="h11",
        loop="asyncio",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=_GRACE,
    )
    return uvicorn.Server(config)


async def _refused(_: Request, error: Exception) -> Response:
    status = 400
    for field in ("status", "status_code"):
        status = getattr(error, field, status)
    message = str(getattr(error, "detail", error))
    headers = {"retry-after": "1"} if status == 503 else None
    return JSONResponse({"error": printable(message)}, status, headers)


async def _failed(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"internal: {type(error).__name__}"}, 500)
