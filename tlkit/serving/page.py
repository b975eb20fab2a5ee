"""The page to drop a picture on, the list of routes, and their description in the form of OpenAPI; no other files."""

from __future__ import annotations

from html import escape
from typing import Any

from tlkit.version import __version__

POLICY = (
    "default-src 'none'; img-src blob: data:; connect-src 'self'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
STYLE = """
:root { color-scheme: light dark }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 46rem; padding: 0 1rem }
#drop { border: 2px dashed #888; border-radius: .6rem; padding: 2rem; text-align: center; display: block }
#drop { cursor: pointer }
#drop.over { border-color: #06c }
img { max-width: 100%; max-height: 20rem; display: block; margin: 1rem auto }
[hidden] { display: none }
td { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums }
meter { width: 12rem }
.error { color: #c00 }
input[type=file] { display: none }
"""
SCRIPT = """
const one = id => document.getElementById(id), drop = one("drop"), said = one("said");
let token = "", shown = null, drawn = null;
const headers = () => token ? {Authorization: "Bearer " + token} : {};
const fail = text => { said.className = "error"; said.textContent = text; };
async function ask(path, options) {
  const got = await fetch(path, {...options, headers: headers()});
  if (got.status === 401) { one("secret").hidden = false; throw new Error("enter the token of this server"); }
  const answer = await got.json();
  if (!got.ok) throw new Error(answer.error);
  return answer;
}
async function models() {
  const names = (await ask("v2/repository/index", {method: "POST"})).filter(each => each.state === "READY");
  one("model").replaceChildren(...names.map(each => new Option(each.name, each.name)));
  one("models").hidden = names.length < 2;
}
async function explain(file, model, label) {
  const address = "evidence?" + new URLSearchParams({model, label});
  const got = await fetch(address, {method: "POST", body: file, headers: headers()});
  if (!got.ok) { one("why").textContent = (await got.json()).error; return; }
  drawn = URL.createObjectURL(await got.blob());
  one("evidence").src = drawn; one("evidence").hidden = false;
  one("why").textContent = "In color: where the evidence for " + label + " is.";
}
async function label(file) {
  for (const each of [shown, drawn]) if (each) URL.revokeObjectURL(each);
  drawn = null; one("evidence").hidden = true; one("why").textContent = "";
  one("picture").src = shown = URL.createObjectURL(file);
  one("picture").hidden = false; one("labels").replaceChildren(); said.className = ""; said.textContent = "…";
  try {
    const chosen = one("model").value;
    const answer = await ask("predict?topk=5" + (chosen ? "&model=" + encodeURIComponent(chosen) : ""),
      {method: "POST", body: file});
    const rows = answer.predictions.map(each => {
      const row = document.createElement("tr"), bar = document.createElement("meter");
      bar.value = each.probability; row.insertCell().textContent = each.label;
      const number = row.insertCell(); number.className = "number";
      number.textContent = (100 * each.probability).toFixed(1) + " %"; row.insertCell().append(bar); return row;
    });
    one("labels").replaceChildren(...rows);
    const scores = Object.entries(answer.scores || {}).map(([name, value]) => name + " " + value.toPrecision(4));
    said.textContent = [answer.model + ": " + answer.predictions[0].label, ...scores].join("; ");
    await explain(file, answer.model, answer.predictions[0].label);
  } catch (error) { fail(error.message); }
}
drop.addEventListener("dragover", event => { event.preventDefault(); drop.classList.add("over"); });
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", event => { event.preventDefault(); drop.classList.remove("over");
  if (event.dataTransfer.files.length) label(event.dataTransfer.files[0]); });
one("file").addEventListener("change", event => { if (event.target.files.length) label(event.target.files[0]); });
const list = () => models().catch(error => fail(error.message));
one("token").addEventListener("change", event => { token = event.target.value; list(); });
list();
"""

ROUTES = {  # address: method, what it is for, what it answers, whether it takes a body
    "/v2/health/live": ("get", "Is the process there?", "empty", ""),
    "/v2/health/ready": ("get", "Were the golden images of all models replayed?", "empty", ""),
    "/v2": ("get", "Name, version and extensions of the server", "application/json", ""),
    "/v2/models/{model}": ("get", "Inputs, outputs, bundle, precision and verdict", "application/json", ""),
    "/v2/models/{model}/ready": ("get", "Is this model ready?", "empty", ""),
    "/v2/models/{model}/config": ("get", "Configuration as in a model repository", "application/json", ""),
    "/v2/models/{model}/stats": ("get", "Statistics of this model", "application/json", ""),
    "/v2/models/stats": ("get", "Statistics of all models", "application/json", ""),
    "/v2/models/{model}/infer": (
        "post",
        "Inference: JSON, or JSON and raw tensors",
        "application/json",
        "application/json",
    ),
    "/v2/repository/index": ("post", "The models and their state", "application/json", "application/json"),
    "/predict": ("post", "Label the picture in the body; ?model=NAME&topk=5", "application/json", "image/*"),
    "/evidence": (
        "post",
        "What a label rests on in the picture; ?label=NAME&model=NAME",
        "image/png",
        "image/*",
    ),
    "/metrics": ("get", "Metrics for Prometheus", "text/plain", ""),
}


def openapi() -> dict[str, Any]:
    """Return the routes in the form of OpenAPI 3.1."""
    paths: dict[str, Any] = {}
    for path, (method, what, answer, body) in ROUTES.items():
        content: dict[str, Any] = {} if answer == "empty" else {"content": {answer: {}}}
        problem = {"description": "what is wrong", "content": {"application/json": {"schema": PROBLEM}}}
        operation: dict[str, Any] = {"summary": what, "responses": {"200": {"description": "ok", **content}}}
        operation["responses"]["default"] = problem
        if "{model}" in path:
            operation["parameters"] = [_parameter("model", "path")]
        if body == "image/*":
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
    rows = "".join(
        f"<tr><td><code>{method.upper()}</code></td><td><code>{escape(path)}</code></td><td>{escape(what)}</td></tr>"
        for path, (method, what, _, _) in ROUTES.items()
    )
    more = '<p>The same as <a href="openapi.json">OpenAPI</a>; <a href="./">drop a picture</a>.</p>'
    return _page("tlkit serve: routes", f"<h1>Routes</h1><table>{rows}</table>{more}")


def drop() -> str:
    """Return the page to drop a picture on."""
    return _page(
        "tlkit serve",
        '<h1>Drop a picture</h1><p id="models" hidden><label>Model <select id="model"></select></label></p>'
        '<p id="secret" hidden><label>Token <input id="token" type="password" autocomplete="off"></label></p>'
        '<label id="drop">Drop a picture here, or choose one.<input id="file" type="file" accept="image/*"></label>'
        '<img id="picture" alt="the picture" hidden><p id="said" role="status"></p><table id="labels"></table>'
        '<img id="evidence" alt="the evidence for the label" hidden><p id="why"></p>'
        f'<p><a href="docs">Routes</a></p><script>{SCRIPT}</script>',
    )


def _page(title: str, body: str) -> str:
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    icon = '<link rel="icon" href="data:,">'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}{icon}<title>{title}</title><style>{STYLE}</style></head>'
        f"<body>{body}</body></html>\n"
    )
