"""HTTP: the routes of the protocol, `/predict` for curl, the page, and the guard around them all."""

from __future__ import annotations

import asyncio
import gzip
import time
import zlib
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route, Router

from tlkit.plugin.contract import IMAGES, PROBABILITIES
from tlkit.serving import page
from tlkit.serving.limits import Body, Front, problem_of
from tlkit.serving.models import LABEL, ServedModel
from tlkit.serving.protocol import (
    InferRequest,
    InputTensor,
    ProtocolError,
    RequestedOutput,
    encode_infer,
    parse_infer,
    parse_json,
)
from tlkit.version import __version__

HEADER_LENGTH = "inference-header-content-length"
EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"]
UNSUPPORTED = ("systemsharedmemory", "cudasharedmemory", "trace", "logging", "repository")
OPEN = ("/v2/health/live", "/v2/health/ready", "/", "/docs", "/openapi.json")  # without the token, if there is one
CLOSED = 499  # the client closed the connection; as nginx has it
# The rest of the policy is in the page itself.
PAGE = {"content-security-policy": "frame-ancestors 'none'", "x-content-type-options": "nosniff"}
SMALL = 1 << 16  # bytes of JSON that are parsed in no time
Asgi = Callable[..., Any]
Scope = MutableMapping[str, Any]


@dataclass
class Http(Front):
    """The application."""

    _reading: int = 0  # bytes of bodies that are held

    def __post_init__(self) -> None:
        repository = self.inference.repository
        model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"

        def get(path: str, answer: Callable[[Request], object]) -> Route:
            async def endpoint(request: Request) -> Response:
                return JSONResponse(answer(request))

            return Route(path, endpoint, methods=["GET"])

        def of(tail: str, answer: Callable[[ServedModel], object]) -> list[Route]:
            return [get(path + tail, lambda request: answer(self._model(request))) for path in (model, version)]

        async def ready(request: Request) -> Response:
            if "model" in request.path_params:
                self._model(request)
            return Response(status_code=200 if repository.ready else 503)

        async def live(_request: Request) -> Response:
            return Response()

        async def metrics(_request: Request) -> Response:
            return Response(self.inference.metrics.text(), media_type="text/plain; version=0.0.4")

        async def unsupported(_request: Request) -> Response:
            raise ProtocolError(501, "this extension is not supported", reason="unsupported")

        everything = lambda _request: {"model_stats": [each.statistics() for each in repository.all()]}  # noqa: E731
        images = self.inference.limits.images
        routes = [
            Route(model + "/infer", self._infer, methods=["POST"]),
            Route("/predict", self._predict, methods=["POST"]),
            Route("/evidence", self._evidence, methods=["POST"]),
            Route("/v2/health/live", live),
            Route("/v2/health/ready", ready),
            Route(model + "/ready", ready),
            Route(version + "/ready", ready),
            get("/v2", lambda _: {"name": "tlkit", "version": __version__, "extensions": EXTENSIONS}),
            get("/v2/models/stats", everything),
            *of("", ServedModel.metadata),
            *of("/config", lambda served: served.config(images)),
            *of("/stats", lambda served: {"model_stats": [served.statistics()]}),
            Route(version + "/infer", self._infer, methods=["POST"]),
            Route("/v2/repository/index", self._index, methods=["POST"]),
            *(Route(f"/v2/{name}{{path:path}}", unsupported, methods=["GET", "POST"]) for name in UNSUPPORTED),
            Route(model + "/trace/setting", unsupported, methods=["GET", "POST"]),
            Route("/metrics", metrics),
            get("/openapi.json", lambda _: page.openapi()),
            Route("/docs", _html(page.docs())),
            Route("/", _html(page.drop())),
        ]
        self._router = Router(routes, redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Asgi, send: Asgi) -> None:
        """Answer a request; nothing that goes wrong leaves here but as an answer without paths, versions or stacks."""
        started, seen = time.monotonic(), dict[str, int]()

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
            await send(message)

        scope["app"] = self  # the router raises HTTPException instead of answering in plain text
        try:
            if scope["path"] not in OPEN:
                self.authorize(next((value for name, value in scope["headers"] if name == b"authorization"), b""))
            await self._router(scope, receive, sending)
        except Exception as error:  # noqa: BLE001 - the last resort of a server
            problem = _problem(error)
            self.inference.metrics.rejected(problem.reason)
            if "status" not in seen and problem.status != CLOSED:
                await _refusal(problem, unread=not scope.get("tlkit.read"))(scope, receive, sending)
            seen.setdefault("status", problem.status)
        finally:
            self._reading -= scope.get("tlkit.held", 0)
        client, facts = scope.get("client"), {"method": scope["method"], "path": scope["path"]}
        facts |= {"client": client[0] if client else "", "bytes": scope.get("tlkit.held", 0)}
        self.note(scope.get("tlkit.model", ""), seen["status"], started, "http", **facts)

    def _model(self, request: Request) -> ServedModel:
        """Return the model that an address names."""
        served = self.inference.repository.get(request.path_params["model"], request.path_params.get("version", ""))
        request.scope["tlkit.model"] = served.source.name
        return served

    async def _body(self, request: Request, served: ServedModel | None = None) -> bytes:
        """Return the body of a request, counted as it streams in. Raises ProtocolError.

        If the queue of the model that it is for is full, nothing is kept of it.
        """
        limits, refused = self.inference.limits, served is not None and served.scheduler.full
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > limits.body:
            raise ProtocolError(413, f"the body is larger than {limits.body:,} bytes", reason="size")
        encoding = request.headers.get("content-encoding", "").strip().lower()
        body = Body(encoding, limits.body, keep=not refused)
        request.scope["tlkit.held"] = 0
        try:
            async with asyncio.timeout(limits.reading):
                async for chunk in request.stream():
                    if encoding:  # a chunk of a bomb keeps a thread busy for a while
                        loop = asyncio.get_running_loop()
                        held = await loop.run_in_executor(self.inference.pool, body.feed, chunk)
                    else:
                        held = body.feed(chunk)
                    request.scope["tlkit.held"] += held
                    self._reading += held
                    if self._reading > limits.memory:
                        raise ProtocolError(503, "the server is busy; try again", reason="busy", retry_after=1)
        except TimeoutError as error:
            raise ProtocolError(408, "the body came too slowly", reason="slow") from error
        request.scope["tlkit.read"] = True
        if refused:
            raise ProtocolError(503, "the server is busy; try again", reason="busy", retry_after=1)
        return body.whole()

    async def _infer(self, request: Request) -> Response:
        body = await self._body(request, self._model(request))
        length, limit = request.headers.get(HEADER_LENGTH), self.inference.limits.json
        if (int(length) if length and length.isdigit() else len(body)) > SMALL:
            loop = asyncio.get_running_loop()
            parsed = await loop.run_in_executor(self.inference.pool, parse_infer, body, length, limit)
        else:
            parsed = parse_infer(body, length, limit)
        answer = await self._answer(request, parsed)
        content, header = encode_infer(answer)
        if header is None:
            return self._compressed(request, content, "application/json")
        response = self._compressed(request, content, "application/octet-stream")
        response.headers[HEADER_LENGTH] = str(header)
        return response

    async def _answer(self, request: Request, parsed: InferRequest) -> Any:
        """Return the answer; a client that closes its connection meanwhile is not answered."""

        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        place = request.path_params
        return await self.inference.infer(place.get("model", ""), place.get("version", ""), parsed, gone)

    def _compressed(self, request: Request, content: bytes, media_type: str) -> Response:
        """Return an answer, compressed where the client asks for it; a tensor of a classifier is small."""
        wanted = request.headers.get("accept-encoding", "")
        for name, compress in (("gzip", gzip.compress), ("deflate", zlib.compress)):
            if wanted.strip().lower() == name:  # not one of several: for those the plain answer is as good
                packed = compress(content, 1)
                return Response(packed, media_type=media_type, headers={"content-encoding": name})
        return Response(content, media_type=media_type)

    async def _index(self, request: Request) -> Response:
        body = await self._body(request)
        asked = parse_json(body, SMALL) if body else {}
        listed = self.inference.repository.index()
        return JSONResponse([each for each in listed if not asked.get("ready") or each["state"] == "READY"])

    async def _picture(self, request: Request) -> tuple[ServedModel, bytes]:
        """Return the model that a request with a picture as its body is for, and that body."""
        served = self.inference.repository.get(request.query_params.get("model", ""))
        request.path_params["model"] = request.scope["tlkit.model"] = served.source.name
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise ProtocolError(415, "send the picture itself as the body, not a form: curl --data-binary @FILE")
        return served, await self._body(request, served)

    async def _predict(self, request: Request) -> Response:
        """Label the picture that is the body, whatever its content type says."""
        topk = request.query_params.get("topk", "5")
        if not topk.isascii() or not topk.isdigit() or not 0 < int(topk[:9]) <= 1000:
            raise ProtocolError(400, "topk must be a number from 1 to 1000")
        served, body = await self._picture(request)
        picture = InputTensor(IMAGES, (1,), (body,))
        names = (PROBABILITIES, LABEL, *served.scores)
        parsed = InferRequest((picture,), tuple(RequestedOutput(each) for each in names))
        answer = await self._answer(request, parsed)
        tensors = {each.name: each.content for each in answer.outputs}
        row = tensors[PROBABILITIES][0]
        best = sorted(range(len(row)), key=lambda index: -row[index])[: int(topk)]
        predictions = [{"label": served.labels[i], "probability": float(row[i])} for i in best]
        scores = {name: float(tensors[name][0, 0]) for name in served.scores}
        facts = {"model": served.source.name, "version": served.source.version, "predictions": predictions}
        return JSONResponse({**facts, **({"scores": scores} if scores else {})})

    async def _evidence(self, request: Request) -> Response:
        """Draw what a label rests on over the picture that is the body."""
        served, body = await self._picture(request)
        drawing = await self.inference.evidence(served, body, request.query_params.get("label", ""))
        return Response(drawing, media_type="image/png")


def _problem(error: Exception) -> ProtocolError:
    match error:
        case HTTPException():
            return ProtocolError(error.status_code, "no such route or method", reason="route")
        case ClientDisconnect():
            return ProtocolError(CLOSED, "the client closed the connection", reason="closed")
    return problem_of(error)


def _refusal(problem: ProtocolError, *, unread: bool) -> Response:
    headers = {} if problem.retry_after is None else {"retry-after": str(problem.retry_after)}
    if unread and problem.status in (401, 408, 413, 415, 503):  # the rest of the body, which is not for the parser
        headers["connection"] = "close"
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse({"error": problem.message}, problem.status, headers)


def _html(text: str) -> Callable[[Request], Any]:
    async def endpoint(_request: Request) -> Response:
        return HTMLResponse(text, headers=PAGE)

    return endpoint
