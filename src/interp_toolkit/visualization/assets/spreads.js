// Distributions: a ridge for each layer, and one layer's histogram with its numbers.

import { el, scheme, series, token } from "./common.js";
import { stripPanel } from "./strip.js";
import { axisBelow, axisBeside, chart, label, mark, percent, short, sized, stroke } from "./axes.js";

/** A panel of ridges beside a histogram. `sources` are quantities by name; `side` says something of a layer. */
export function spreadPanel(view, sources, { side = null, below = null, same = false } = {}) {
  const kept = view.memory(Object.keys(sources).length > 1 ? "quantity" : "");
  const own = { quantity: sources[kept.get()] ? kept.get() : Object.keys(sources)[0], shared: same, bin: null };
  const ridges = chart("");
  const histogram = chart("", (event) => step(event));
  const table = el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Numbers of this layer" });
  const aside = el("p", { class: "note" });
  const controls = el("div", { class: "controls" });
  const left = el("div", {}, ridges);
  const strip = sources[own.quantity].scores ? stripPanel(view, sources[own.quantity]) : null;
  const right = el("div", {}, histogram, strip ? strip.svg : "", aside, table);
  const host = el("div", {}, controls, el("div", { class: "panes" }, left, right));

  if (Object.keys(sources).length > 1) {
    const options = Object.entries(sources).map(([key, { name }]) => el("option", { value: key,
      selected: key === own.quantity }, name));
    const choice = el("select", { onchange: () => {
      own.quantity = choice.value;
      kept.set(choice.value);
      own.bin = null;
      draw();
    } },
      ...options);
    controls.append(el("label", {}, "Of", choice));
  }
  if (view.model.layers.length > 1) {
    const box = el("input", { type: "checkbox", onchange: () => { own.shared = box.checked; draw(); } });
    box.checked = own.shared;
    controls.append(el("label", {}, box, "one axis for all layers"));
  }

  histogram.addEventListener("pointermove", (event) => point(event));
  histogram.addEventListener("pointerleave", () => { own.bin = null; view.hint.hide(); cursor(); });
  histogram.addEventListener("blur", () => { own.bin = null; view.hint.hide(); cursor(); });

  function spread() {
    return sources[own.quantity].spread;
  }

  function draw() {
    const wide = host.clientWidth >= 820 && view.model.layers.length > 1;
    left.parentNode.style.gridTemplateColumns = wide ? "45fr 55fr" : "100%";
    left.hidden = view.model.layers.length < 2;
    const width = host.clientWidth;
    if (!left.hidden) drawRidges(ridges, view, spread(), sources[own.quantity].name, own.shared,
      wide ? (width - 24) * 0.45 : width, side);
    drawHistogram(histogram, view, spread(), sources[own.quantity].name, wide ? (width - 24) * 0.55 : width);
    strip?.draw(histogram.places);
    aside.textContent = outside(view, spread());
    table.replaceChildren(numbers(view, spread()), ...(below ? [below(view.state.layer)] : []));
  }

  function point(event) {
    const { left: from, right: to, bins } = histogram.places;
    const x = event.clientX - histogram.getBoundingClientRect().left;
    own.bin = x < from || x > to ? null : Math.min(bins - 1, Math.floor(((x - from) / (to - from)) * bins));
    cursor(event);
  }

  function step(event) {
    const { bins } = histogram.places;
    const moves = { ArrowRight: 1, ArrowLeft: -1, Home: -bins, End: bins };
    if (event.key === "Escape") own.bin = null;
    else if (moves[event.key]) own.bin = own.bin === null ? 0 : Math.max(0, Math.min(bins - 1, own.bin + moves[event.key]));
    else return;
    event.preventDefault();
    cursor();
    if (own.bin !== null) view.say(words(view, spread(), own.bin).join(", "));
  }

  function cursor(event) {
    histogram.querySelector(".cursor")?.remove();
    if (own.bin === null) return view.hint.hide();
    const { left: from, right: to, top, bottom, bins } = histogram.places;
    const wide = (to - from) / bins;
    const x = from + wide * own.bin;
    histogram.append(el("rect", { class: "cursor", x, y: top, width: wide, height: bottom - top, fill: scheme().mark,
      "fill-opacity": 0.12, stroke: scheme().mark, "pointer-events": "none" }));
    view.hintAt(histogram, x + wide, event ? event.clientY - histogram.getBoundingClientRect().top : top, words(view,
      spread(), own.bin));
  }

  return { host, draw, svg: () => [...(left.hidden ? [] : [ridges]), histogram, ...(strip ? [strip.svg] : [])], rows: () =>
    exported(view, sources) };
}

function at(spread, layer, classes) {
  const { bins } = spread;
  return Array.from({ length: classes }, (_, n) => spread.counts.subarray((layer * classes + n) * bins,
    (layer * classes + n + 1) * bins));
}

/** How many rows or values of a class there are at a layer, those outside the axis included. */
function total(spread, layer, classes, n) {
  const place = layer * classes + n;
  let sum = spread.outside[2 * place] + spread.outside[2 * place + 1];
  for (const count of at(spread, layer, classes)[n]) sum += count;
  return Math.max(sum, 1);
}

function shares(view, spread, layer) {
  const classes = view.model.classes.length;
  return at(spread, layer, classes).map((counts, n) => {
    const whole = total(spread, layer, classes, n);
    return Array.from(counts, (count) => count / whole);
  });
}

function outline(heights, from, wide, base, height) {
  let path = `M${from.toFixed(1)} ${base}`;
  heights.forEach((share, n) => {
    const y = (base - share * height).toFixed(1);
    path += `L${(from + wide * n).toFixed(1)} ${y}L${(from + wide * (n + 1)).toFixed(1)} ${y}`;
  });
  return `${path}L${(from + wide * heights.length).toFixed(1)} ${base}`;
}

function shapes(view, group, layer, heights, from, wide, base, height) {
  for (const n of view.shown()) {
    const path = outline(heights[n], from, wide, base, height);
    group.append(el("path", { d: `${path}Z`, fill: series(n), "fill-opacity": 0.28 }),
      el("path", { d: path, fill: "none", stroke: series(n), "stroke-width": 1.4, "stroke-linejoin": "round" }));
  }
}

const median = (view, spread, layer, n) => {
  const { summary, classes } = view.model;
  return spread.summary[(layer * classes.length + n) * summary.length + summary.indexOf("median")];
};

/** All layers below each other. */
function drawRidges(svg, view, spread, name, shared, width, side) {
  const { layers, classes } = view.model;
  const high = Math.max(13, Math.min(44, 620 / layers.length));
  const [left, right, top] = [76, width - (side ? 62 : 10), side ? 20 : 8];
  const bottom = top + high * layers.length;
  const edges = (n) => [spread.edges[2 * n], spread.edges[2 * n + 1]];
  const all = [Math.min(...layers.map((_, n) => edges(n)[0])), Math.max(...layers.map((_, n) => edges(n)[1]))];
  sized(svg, width, bottom + (shared ? 40 : 24));
  svg.setAttribute("aria-label", `${name} by layer and class; choose the layer with the slider`);
  if (shared) svg.append(axisBelow({ low: all[0], high: all[1], log: spread.log, left, right, y: bottom, top,
    title: axisName(name, spread) }));
  else svg.append(label((left + right) / 2, bottom + 18, "each layer on its own axis, from lowest to highest",
    { anchor: "middle" }));
  if (side) svg.append(label(right + 8, 12, side.name));
  layers.forEach((layerName, n) => {
    const [low, last] = edges(n);
    const [from, to] = shared ? [low, last].map((v) => left + ((v - all[0]) / (all[1] - all[0])) * (right - left)) : [left,
      right];
    const base = top + high * (n + 1) - 3;
    const heights = shares(view, spread, n);
    const full = Math.max(...view.shown().flatMap((c) => heights[c]), 1e-12);
    const group = el("g", { "data-layer": n, style: "cursor: pointer", onclick: () => view.setLayer(n) });
    const chosen = n === view.state.layer;
    group.append(el("rect", { x: 0, y: top + high * n, width, height: high, fill: chosen ? scheme().mark : "transparent",
      "fill-opacity": chosen ? 0.1 : 1 }));
    group.append(stroke(left, base, right, base));
    shapes(view, group, n, heights, from, Math.max((to - from) / spread.bins, 0.05), base, ((high - 4) / full) * 0.98);
    if (high >= 18 || n % 2 === 0 || chosen) {
      group.append(label(left - 8, base - Math.max(0, (high - 16) / 3), `layer ${layerName}`, { anchor: "end", soft: !chosen,
        room: 11 }));
    }
    if (classes.length > 1 && high >= 16) for (const c of view.shown()) group.append(middle(view, spread, n, c, low, last,
      from, to, base) ?? "");
    if (side && high >= 13) group.append(label(right + 8, base - 2, side.of(n), { soft: !chosen }));
    group.addEventListener("pointermove", (event) => view.hintFor(event, [`layer ${layerName}`, ...view.shown().map((c) =>
      `${classes[c].name}: median ${short(median(view, spread, n, c))}`), ...(side ? [`${side.name} ${side.of(n)}`] : [])]));
    group.addEventListener("pointerleave", () => view.hint.hide());
    svg.append(group);
  });
}

function middle(view, spread, layer, n, low, last, from, to, y) {
  const value = median(view, spread, layer, n);
  const place = ((spread.log ? Math.log10(value) : value) - low) / (last - low);
  if (!(place >= 0 && place <= 1)) return null;
  return el("path", { d: mark(n, from + place * (to - from), y, 3.2), fill: series(n), stroke: scheme().paper,
    "stroke-width": 0.8 });
}

function axisName(name, spread) {
  return spread.log ? `${name} (logarithmic)` : name;
}

/** One layer. */
function drawHistogram(svg, view, spread, name, width) {
  const { layer } = view.state;
  const height = Math.max(240, Math.min(360, width * 0.6));
  const [left, right, top, bottom] = [52, width - 12, 24, height - 44];
  const heights = shares(view, spread, layer);
  const full = Math.max(...view.shown().flatMap((n) => heights[n]), 1e-12);
  const [low, last] = [spread.edges[2 * layer], spread.edges[2 * layer + 1]];
  sized(svg, width, height);
  svg.places = { left, right, top, bottom, bins: spread.bins };
  svg.setAttribute("aria-label", `${name} at layer ${view.model.layers[layer]}; arrow keys read the bins`);
  svg.append(el("rect", { x: left, y: top, width: right - left, height: bottom - top, fill: "transparent" }));
  svg.append(label(left, 14, `layer ${view.model.layers[layer]}, share of each class per bin`, { soft: false, size: 12 }));
  svg.append(axisBeside({ low: 0, high: full, top, bottom, x: left, right, write: percent }));
  svg.append(axisBelow({ low, high: last, log: spread.log, left, right, y: bottom, title: axisName(name, spread) }));
  shapes(view, svg, layer, heights, left, (right - left) / spread.bins, bottom, (bottom - top) / full);
  for (const n of view.shown()) svg.append(middle(view, spread, layer, n, low, last, left, right, bottom) ?? "");
}

/** What a bin holds. */
function words(view, spread, bin) {
  const { layer } = view.state;
  const [low, last] = [spread.edges[2 * layer], spread.edges[2 * layer + 1]];
  const ends = [bin, bin + 1].map((n) => low + ((last - low) * n) / spread.bins).map((v) => (spread.log ? 10 ** v : v));
  const counts = at(spread, layer, view.model.classes.length);
  return [`${short(ends[0])} to ${short(ends[1])}`, ...view.shown().map((n) => {
    const share = counts[n][bin] / total(spread, layer, view.model.classes.length, n);
    return `${view.model.classes[n].name}: ${counts[n][bin].toLocaleString("en-US")} (${percent(share)})`;
  })];
}

function outside(view, spread) {
  const sums = [0, 0];
  view.model.classes.forEach((_, n) => [0, 1].forEach((end) => {
    sums[end] += spread.outside[2 * (view.state.layer * view.model.classes.length + n) + end];
  }));
  if (!sums[0] && !sums[1]) return "Marks on the axis are medians.";
  return `Marks on the axis are medians. Beyond the axis: ${sums[0].toLocaleString("en-US")} below, ` +
    `${sums[1].toLocaleString("en-US")} above.`;
}

const SHORTER = { "standard deviation": "s.d." };

/** The numbers of one layer. */
function numbers(view, spread) {
  const { summary, classes, layers } = view.model;
  const head = el("tr", {}, ...["class", "rows", ...summary.map((text) => SHORTER[text] ?? text)].map((text) => el("th",
    { scope: "col" }, text)));
  const body = classes.map(({ name, rows }, n) => el("tr", {},
    el("th", { scope: "row" }, el("span", { class: "chip", style: `background: ${series(n)}` }), token(name)),
    el("td", {}, rows.toLocaleString("en-US")), ...summary.map((_, k) =>
      el("td", {}, short(spread.summary[(view.state.layer * classes.length + n) * summary.length + k])))));
  return el("table", { class: "small" }, el("caption", {}, `Layer ${layers[view.state.layer]}`), el("thead", {}, head),
    el("tbody", {}, ...body));
}

/** All numbers of all layers, for files. */
function exported(view, sources) {
  const { summary, classes, layers } = view.model;
  return Object.entries(sources).flatMap(([quantity, { spread }]) => layers.flatMap((layer, l) => classes.map(({ name, rows },
    n) => ({
    quantity, layer, class: name, rows,
    ...Object.fromEntries(summary.map((key, k) => [key, spread.summary[(l * classes.length + n) * summary.length + k]])),
    counts: Array.from(at(spread, l, classes.length)[n]).join(" "), first_edge: spread.edges[2 * l],
      last_edge: spread.edges[2 * l + 1],
    logarithmic: spread.log,
  }))));
}
