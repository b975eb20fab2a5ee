"""The page to drop a picture on, the list of routes, and their description in the form of OpenAPI; no other files."""

from __future__ import annotations

from typing import Any

from tlkit.pages import html
from tlkit.version import __version__

JSON, PICTURES = "application/json", "image/*"
ROUTES = {  # address: method, what it is for, what it answers, whether it takes a body
    "/v2/health/live": ("get", "Is the process there?", "empty", ""),
    "/v2/health/ready": ("get", "Were the golden images of all models replayed?", "empty", ""),
    "/v2": ("get", "Name, version and extensions of the server", JSON, ""),
    "/v2/models/{model}": ("get", "Inputs, outputs, bundle, precision and verdict", JSON, ""),
    "/v2/models/{model}/ready": ("get", "Is this model ready?", "empty", ""),
    "/v2/models/{model}/config": ("get", "Configuration as in a model repository", JSON, ""),
    "/v2/models/{model}/stats": ("get", "Statistics of this model", JSON, ""),
    "/v2/models/stats": ("get", "Statistics of all models", JSON, ""),
    "/v2/models/{model}/infer": ("post", "Inference: JSON, or JSON and raw tensors", JSON, JSON),
    "/v2/repository/index": ("post", "The models and their state", JSON, JSON),
    "/predict": ("post", "Label the picture in the body; ?model=NAME&topk=5", JSON, PICTURES),
    "/evidence": ("post", "What a label rests on in the picture; ?label=NAME&model=NAME", "image/png", PICTURES),
    "/metrics": ("get", "Metrics for Prometheus", "text/plain", ""),
}


def openapi() -> dict[str, Any]:
    """Return the routes in the form of OpenAPI 3.1."""
    paths: dict[str, Any] = {}
    for path, (method, what, answer, body) in ROUTES.items():
        content: dict[str, Any] = {} if answer == "empty" else {"content": {answer: {}}}
        problem = {"description": "what is wrong", "content": {JSON: {"schema": PROBLEM}}}
        operation: dict[str, Any] = {"summary": what, "responses": {"200": {"description": "ok", **content}}}
        operation["responses"]["default"] = problem
        if "{model}" in path:
            operation["parameters"] = [_parameter("model", "path")]
        if body == PICTURES:
            own = "topk" if path == "/predict" else "label"
            operation["parameters"] = [_parameter("model", "query"), _parameter(own, "query")]
        if body:
            operation["requestBody"] = {"content": {body: {}}}
        paths[path] = {method: operation}
    return {"openapi": "3.1.0", "info": {"title": "tlkit serve", "version": __version__}, "paths": paths}


PROBLEM = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}


def _parameter(name: str, place: str) -> dict[str, Any]:
    kind = "integer" if name == "topk" else "string"
    return {"name": name, "in": place, "required": place == "path", "schema": {"type": kind}}


def docs() -> str:
    """Return the page that lists the routes."""
    rows = [(method.upper(), path, what) for path, (method, what, _, _) in ROUTES.items()]
    more = '<p>The same as <a href="openapi.json">OpenAPI</a>; <a href="./">drop a picture</a>.</p>'
    table = html.table(("method", "address", "what it answers"), rows)
    return html.document("tlkit serve: routes", f'<div class="routes">{table}</div>{more}', "routes", live=True)


def drop() -> str:
    """Return the page to drop a picture on."""
    return html.document(
        "tlkit serve: drop a picture",
        '<p id="models" hidden><label>Model <select id="model"></select></label></p>'
        '<p id="secret" hidden><label>Token <input id="token" type="password" autocomplete="off"></label></p>'
        '<label id="drop">Drop a picture here, or choose one.<input id="file" type="file" accept="image/*"></label>'
        '<img id="picture" alt="the picture" hidden><p id="said" role="status"></p><table id="labels"></table>'
        '<img id="evidence" alt="the evidence for the label" hidden><p id="why"></p>'
        '<p><a href="docs">Routes</a></p>',
        "serve",
        live=True,
    )
