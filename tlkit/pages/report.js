// The map of the images, with hover and filters. It sets text and attributes; no name ever becomes markup.
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
