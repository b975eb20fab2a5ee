"""The script and the style of a report's page: the map of the images, with hover and filters.

It builds elements and sets text and attributes; no name ever becomes markup.
"""

from __future__ import annotations

STYLE = """
.page { & .findings { list-style: none; padding: 0; margin: .8rem 0 .4rem; }
.findings li { border-left: 4px solid var(--warn); padding: .2rem .7rem; margin: .4rem 0; background: var(--paper); }
.findings b { display: block; } svg .right { fill: var(--first); } svg .wrong { fill: var(--warn); }
svg text.number { fill: var(--ink); font-size: 11px; } .pair { margin: .6rem 0 1rem; }
.pair img, .mistake img { border-radius: 4px; margin: 0 .3rem .3rem 0; vertical-align: top; }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1.2rem; }
.mistake { background: var(--panel); border-radius: 6px; padding: .7rem; overflow-wrap: anywhere; }
.mistake figcaption { margin: .1rem 0 .5rem; color: var(--ink); }
.mistake .doubt { color: var(--warn); font-weight: 650; display: block; }
.mistake small { display: block; color: var(--soft); }
tr.worse td { color: var(--warn); font-weight: 650; }
.side { display: flex; flex-wrap: wrap; gap: 1.5rem; } .side > figure { flex: 1 1 20rem; min-width: 0; }
.side svg { width: 100%; max-width: 24rem; } .scroll > svg { width: auto; min-width: 0; max-width: 100%; }
.tools { display: flex; flex-wrap: wrap; gap: .6rem 1.2rem; margin: .6rem 0; }
.tools select { font: inherit; max-width: 14rem; background: var(--panel); color: var(--ink);
  border: 1px solid var(--rule); border-radius: 4px; padding: .15rem .3rem; }
#map { position: relative; max-width: 40rem; } #map svg { width: 100%; height: auto; }
#map circle { cursor: pointer; stroke: var(--panel); } #map circle.bad { stroke: var(--ink); stroke-width: 2; }
#tip { position: absolute; pointer-events: none; background: var(--paper); border: 1px solid var(--soft);
  border-radius: 6px; padding: .4rem .6rem; font-size: .85rem; max-width: 16rem; overflow-wrap: anywhere; z-index: 2; }
#tip img { display: block; margin-bottom: .3rem; border-radius: 3px; } [hidden] { display: none !important; } }
"""

SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent), one = id => document.getElementById(id);
if (data.points.length && data.layouts.length) {
  const NS = "http://www.w3.org/2000/svg", side = 460, edge = 14, box = one("map"), tip = one("tip");
  const svg = document.createElementNS(NS, "svg");
  svg.setAttribute("viewBox", `0 0 ${side} ${side}`); svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", data.points.length + " images by their features");
  const frame = document.createElementNS(NS, "rect");
  for (const [name, value] of [["class", "frame"], ["x", .5], ["y", .5], ["width", side - 1], ["height", side - 1]])
    frame.setAttribute(name, value);
  svg.append(frame);
  const dots = data.points.map(point => {
    const dot = document.createElementNS(NS, "circle");
    dot.setAttribute("r", point.ok ? 4 : 5); dot.setAttribute("fill", data.colors[point.t]);
    if (!point.ok) dot.setAttribute("class", "bad");
    dot.addEventListener("pointerenter", () => show(dot, point));
    dot.addEventListener("pointerleave", () => { tip.hidden = true; });
    svg.append(dot); return dot;
  });
  box.prepend(svg);
  const show = (dot, point) => {
    tip.replaceChildren();
    if (point.i) { const picture = new Image(64, 64); picture.src = point.i; picture.alt = ""; tip.append(picture); }
    const lines = [point.n, (point.ok ? "right: " : "wrong: ") + data.labels[point.t]
      + (point.ok ? "" : " predicted as " + data.labels[point.p]) + ", " + (100 * point.c).toFixed(1) + " %"];
    for (const line of lines) { const p = document.createElement("div"); p.textContent = line; tip.append(p); }
    tip.hidden = false;
    const scale = svg.clientWidth / side, x = dot.getAttribute("cx") * scale, y = dot.getAttribute("cy") * scale;
    tip.style.left = Math.max(0, Math.min(x + 10, box.clientWidth - tip.offsetWidth)) + "px";
    tip.style.top = (y + 12) + "px";
  };
  const choose = (id, names) => one(id).append(...names.map((name, value) => new Option(name, value)));
  choose("method", data.layouts.map(each => each.method));
  choose("class", data.shown.map(index => data.labels[index]));
  const draw = () => {
    const layout = data.layouts[one("method").value], kind = one("class").value, which = one("which").value;
    let seen = 0;
    dots.forEach((dot, index) => {
      const point = data.points[index], [x, y] = layout.places[index];
      dot.setAttribute("cx", edge + x * (side - 2 * edge)); dot.setAttribute("cy", side - edge - y * (side - 2 * edge));
      const on = (kind === "" || point.t === data.shown[kind]) && (which === "" || (which === "right") === point.ok);
      dot.toggleAttribute("hidden", !on); seen += on;
    });
    one("count").textContent = seen + " of " + dots.length + " images; trustworthiness "
      + layout.trust.toFixed(2);
  };
  for (const id of ["method", "class", "which"]) one(id).addEventListener("change", draw);
  draw();
}
"""
