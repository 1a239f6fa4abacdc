// Rows as points: principal components, with a cursor, a lock and a search.

import { el, scheme, series, token } from "./common.js";
import { axisBelow, axisBeside, chart, label, mark, percent, short, sized, stroke } from "./axes.js";

const NEAR = 26;

/** Scatter plots of rows on two principal components. */
export function scatterPanel(view) {
  const { pca, rows, classes } = view.model;
  const count = rows.classes.length;
  const kept = view.memory("row");
  const own = { axes: axesFrom(view.memory("axes").get(), pca.components), row: rowFrom(kept.get()), locked: false, query: "" };
  own.locked = own.row !== null;
  const svg = chart("", (event) => step(event));
  const detail = el("p", { class: "note" });
  const found = el("output", {});
  const search = el("input", { type: "search", placeholder: "words in a row", oninput: () =>
    { own.query = search.value; draw(); } });
  const axes = ["across", "up"].map((name, n) => {
    const choice = el("select", { onchange: () => setAxis(n, Number(choice.value)) },
      ...Array.from({ length: pca.components }, (_, k) =>
      el("option", { value: k, selected: own.axes[n] === k }, `PC ${k + 1}`)));
    return el("label", {}, name, choice);
  });
  const host = el("div", {}, el("div", { class: "controls" }, ...axes, rows.texts ? el("label", {}, "Find", search,
    found) : null), svg, detail);
  let points = null;

  function rowFrom(number) {
    const place = number === undefined || number === "" ? -1 : rows.numbers.indexOf(Number(number));
    return place < 0 ? null : place;
  }

  function setAxis(n, component) {
    own.axes[n] = component;
    view.memory("axes").set(own.axes.map((k) => k + 1).join("-"));
    draw();
  }

  function draw() {
    const width = Math.min(host.clientWidth, 1000);
    const height = Math.max(320, Math.min(600, width * 0.62));
    const { layer } = view.state;
    const place = { left: 56, right: width - 10, top: 24, bottom: height - 46 };
    const ends = own.axes.map((k) => spans(pca, layer, k));
    points = placed(pca, rows, layer, own.axes, place, new Set(view.shown()));
    sized(svg, width, height);
    svg.setAttribute("aria-label", `${points.visible.length} rows on two principal components, ` +
      `layer ${view.model.layers[layer]}; ` +
      "arrow keys step through them, Enter locks one, Escape lets go");
    const names = own.axes.map((k) => `PC ${k + 1} (${percent(pca.shares[layer][k])} of variance)`);
    svg.append(el("rect", { x: place.left, y: place.top, width: place.right - place.left, height: place.bottom - place.top,
      fill: "transparent" }),
      axisBelow({ low: ends[0][0], high: ends[0][1], left: place.left, right: place.right, y: place.bottom, top: place.top,
        title: names[0] }),
      axisBeside({ low: ends[1][0], high: ends[1][1], top: place.top, bottom: place.bottom, x: place.left, right: place.right }),
      label(4, 13, `↑ ${names[1]}`),
      stroke(place.left, place.top, place.left, place.bottom));
    drawPoints();
    drawFound();
    cursor();
  }

  function drawPoints() {
    const size = count > 1500 ? 2.6 : count > 300 ? 3.4 : 4.6;
    for (const n of view.shown()) {
      const paths = ["", ""];
      for (const row of points.visible) {
        if (rows.classes[row] === n) paths[points.apart(row) ? 1 : 0] += mark(n, round(points.x[row]), round(points.y[row]),
          size);
      }
      svg.append(el("path", { class: "points", d: paths[0], fill: series(n), "fill-opacity": 0.7 }),
        el("path", { d: paths[1], fill: "none", stroke: series(n), "stroke-width": 1.4 }));
    }
  }

  function drawFound() {
    found.textContent = "";
    if (!own.query) return;
    const query = own.query.toLowerCase();
    const hits = points.visible.filter((row) => rows.texts[row].toLowerCase().includes(query));
    svg.append(el("path", { class: "found", d: hits.map((row) => ring(points.x[row], points.y[row], 8)).join(""), fill: "none",
      stroke: scheme().mark, "stroke-width": 1.6 }));
    found.textContent = `${hits.length} row${hits.length === 1 ? "" : "s"}`;
    view.say(`${hits.length} rows found`);
  }

  function words(row) {
    const where = rows.positions ? `, position ${rows.positions[row]}` : "";
    const known = [`${classes[rows.classes[row]].name}, row ${rows.numbers[row]}${where}`];
    if (rows.texts) known.unshift(rows.texts[row]);
    const apart = points.apart(row) ? "left out of the fit for its length; its place at the edge is not to scale" : null;
    const [x, y] = own.axes.map((k) => short(score(pca, view.state.layer, k, row, count)));
    return [...known, apart ?? `PC ${own.axes[0] + 1}: ${x}, PC ${own.axes[1] + 1}: ${y}`];
  }

  function cursor(aloud = false) {
    svg.querySelector(".cursor")?.remove();
    const { row } = own;
    const hidden = row === null || !points.seen[row];
    detail.replaceChildren();
    if (hidden) return view.hint.hide();
    svg.append(el("path", { class: "cursor", d: ring(points.x[row], points.y[row], 9), fill: "none", stroke: scheme().ink,
      "stroke-width": own.locked ? 3 : 1.6, "pointer-events": "none" }));
    view.hintAt(svg, points.x[row], points.y[row], words(row));
    if (own.locked) detail.append("Locked: ", ...words(row).flatMap((line, n) => (n ? [" · ", token(line)] : [token(line)])),
      " (Esc lets go)");
    if (aloud) view.say(words(row).join(", "));
  }

  function lock(row) {
    own.row = row;
    own.locked = row !== null;
    kept.set(row === null ? null : rows.numbers[row]);
    cursor(true);
  }

  function nearest(event) {
    const box = svg.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let [best, least] = [null, NEAR * NEAR];
    for (const row of points.visible) {
      const far = (points.x[row] - x) ** 2 + (points.y[row] - y) ** 2;
      if (far < least) [best, least] = [row, far];
    }
    return best;
  }

  function step(event) {
    const directions = { ArrowRight: [points.x, 1], ArrowLeft: [points.x, -1], ArrowUp: [points.y, -1], ArrowDown: [points.y,
      1] };
    if (event.key === "Escape") lock(null);
    else if (event.key === "Enter" && own.row !== null) lock(own.row);
    else if (directions[event.key] && points.visible.length) {
      const [by, sign] = directions[event.key];
      const order = [...points.visible].sort((a, b) => by[a] - by[b] || a - b);
      const now = order.indexOf(own.row);
      own.row = order[now < 0 ? (sign > 0 ? 0 : order.length - 1) : Math.max(0, Math.min(order.length - 1, now + sign))];
      if (own.locked) kept.set(rows.numbers[own.row]);
      cursor(true);
    } else return;
    event.preventDefault();
  }

  svg.addEventListener("pointermove", (event) => { if (!own.locked) { own.row = nearest(event); cursor(); } });
  svg.addEventListener("pointerleave", () => { if (own.locked) view.hint.hide(); else { own.row = null; cursor(); } });
  svg.addEventListener("click", (event) => { const row = nearest(event); lock(own.locked && row === own.row ? null : row); });
  svg.addEventListener("blur", () => { if (!own.locked) { own.row = null; cursor(); } });
  const exported = () => Array.from({ length: count }, (_, row) => ({ row: rows.numbers[row],
    layer: view.model.layers[view.state.layer],
    class: classes[rows.classes[row]].name, text: rows.texts?.[row] ?? "",
      ...Object.fromEntries(Array.from({ length: pca.components }, (_, k) =>
      [`pc${k + 1}`, score(pca, view.state.layer, k, row, count)])),
        left_out: pca.apart ? pca.apart[view.state.layer * count + row] : 0 }));
  return { host, draw, svg: () => [svg], rows: exported };
}

function axesFrom(text, components) {
  const found = (text ?? "1-2").split("-").map((part) => Number(part) - 1);
  return found.length === 2 && found.every((k) => Number.isInteger(k) && k >= 0 && k < components) ? found : [0, Math.min(1,
    components - 1)];
}

/** The ends of an axis: those of the points, and a margin. */
function spans(pca, layer, component) {
  const place = 2 * (layer * pca.components + component);
  const [low, high] = [pca.edges[place], pca.edges[place + 1]];
  return [low - 0.05 * (high - low), high + 0.05 * (high - low)];
}

function score(pca, layer, component, row, count) {
  const group = layer * pca.components + component;
  const [low, high] = [pca.edges[2 * group], pca.edges[2 * group + 1]];
  return low + (pca.steps[group * count + row] / 65535) * (high - low);
}

/** Where the points of a layer are, and which can be seen. */
function placed(pca, rows, layer, axes, { left, right, top, bottom }, shown) {
  const count = rows.classes.length;
  const share = (component, row) => 0.05 / 1.1 + pca.steps[(layer * pca.components + component) * count + row] / 65535 / 1.1;
  const points = { x: new Float32Array(count), y: new Float32Array(count), visible: [], seen: new Uint8Array(count),
    apart: (row) => Boolean(pca.apart && pca.apart[layer * count + row]) };
  for (let row = 0; row < count; row += 1) {
    points.x[row] = left + share(axes[0], row) * (right - left);
    points.y[row] = bottom - share(axes[1], row) * (bottom - top);
    if (shown.has(rows.classes[row])) {
      points.visible.push(row);
      points.seen[row] = 1;
    }
  }
  return points;
}

function ring(x, y, r) {
  return `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`;
}

function round(value) {
  return Math.round(value * 10) / 10;
}
