// Activations: panels that share a layer, classes, hints and exports.

import { announcer, el, exporters, hint, onScheme, series, svgCanvas, svgText, token, unpack } from "./common.js";
import { mark } from "./axes.js";
import { normsPanel, outliersPanel } from "./magnitudes.js";
import { scatterPanel } from "./scatter.js";
import { spreadPanel } from "./spreads.js";

/** Brings activations to life. */
export async function mount(root, data, memory) {
  const model = await opened(data);
  const view = viewOf(root, model, memory);
  const made = new Map();
  const note = el("p", { class: "note" });
  const stage = el("div", { role: "tabpanel", id: `${view.id}-panel`, "aria-labelledby": `${view.id}-tab`, tabindex: -1 });
  const tabs = el("div", { class: "tabs", role: "tablist", "aria-label": "Panels" });
  const wanted = memory.get("panel");
  let current = model.panels.find(({ kind }) => kind === wanted) ?? model.panels[0];

  function panel() {
    if (!made.has(current.kind)) made.set(current.kind, PANELS[current.kind](view));
    return made.get(current.kind);
  }

  function show(chosen, focus = false) {
    current = chosen;
    view.hint.hide();
    memory.set("panel", current === model.panels[0] ? null : current.kind);
    for (const tab of tabs.children) {
      const selected = tab.dataset.kind === current.kind;
      tab.setAttribute("aria-selected", selected);
      tab.tabIndex = selected ? 0 : -1;
      tab.id = selected ? `${view.id}-tab` : "";
      if (selected && focus) tab.focus();
    }
    note.textContent = current.note;
    stage.replaceChildren(note, panel().host);
    panel().draw();
  }

  for (const one of model.panels) {
    tabs.append(el("button", { type: "button", role: "tab", "data-kind": one.kind, "aria-controls": `${view.id}-panel`,
      onclick: () => show(one), onkeydown: (event) => turn(event) }, one.title));
  }

  function turn(event) {
    const last = model.panels.length - 1;
    const now = model.panels.indexOf(current);
    const next = { ArrowRight: now === last ? 0 : now + 1, ArrowLeft: now === 0 ? last : now - 1, Home: 0, End: last }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    show(model.panels[next], true);
  }

  const files = exporters("activations", {
    svg: () => joined(panel().svg()), png: () => svgCanvas(stacked(panel().svg())), csv: () => csv(panel().rows()),
    json: () => JSON.stringify({ title: model.title, panel: current.kind, note: current.note, rows: panel().rows() }, null, 1),
  });
  const redraw = () => panel().draw();
  root.append(el("div", { class: "controls" }, sliderOf(view), legendOf(view), files));
  if (model.panels.length > 1) root.append(tabs);
  root.append(stage);
  view.redraw = redraw;
  show(current);
  onScheme(() => { view.recolour(); redraw(); });
  let width = root.clientWidth;
  new ResizeObserver(() => {
    if (root.clientWidth && root.clientWidth !== width) {
      width = root.clientWidth;
      redraw();
    }
  }).observe(root);
}

const PANELS = {
  distribution: (view) => spreadPanel(view, {
    values: { name: "activation values", spread: view.model.values }, norms: { name: "norms of rows", spread: view.model.norms },
  }),
  norms: normsPanel,
  outliers: outliersPanel,
  projection: (view) => spreadPanel(view, { projection: { name: "position along the direction",
    spread: view.model.projection.spread,
    scores: view.model.projection.scores } },
    { side: sideOf(view), below: (layer) => separations(view, layer) }),
  pca: scatterPanel,
};

let number = 0;

/** What panels share: the model, what is chosen, hints, and how to change the layer. */
function viewOf(root, model, memory) {
  number += 1;
  const layer = Number(memory.get("layer", model.start));
  const hidden = new Set((memory.get("hidden") ?? "").split(" ").filter((n) => n in model.classes).map(Number));
  const state = { layer: Number.isInteger(layer) && layer >= 0 && layer < model.layers.length ? layer : model.start,
    hidden: hidden.size < model.classes.length ? hidden : new Set() };
  const tip = hint(root);
  const view = { model, state, root, hint: tip, say: announcer(root), id: `activations-${number}`, redraw: () => {},
    recolour: () => {},
    memory: (name) => ({ get: () => (name ? memory.get(name) : undefined), set: (value) => name && memory.set(name, value) }),
    shown: () => model.classes.map((_, n) => n).filter((n) => !state.hidden.has(n)),
    hintAt(svg, x, y, lines) {
      const [from, to] = [svg.getBoundingClientRect(), root.getBoundingClientRect()];
      tip.show(from.left - to.left + x, from.top - to.top + y, lines);
    },
    hintFor(event, lines) {
      const box = root.getBoundingClientRect();
      tip.show(event.clientX - box.left, event.clientY - box.top, lines);
    },
    pointing(svg, words) {
      svg.onpointermove = (event) => { const lines = words(event); if (lines) view.hintFor(event, lines); else tip.hide(); };
      svg.onpointerleave = () => tip.hide();
    },
    setLayer(n) {
      state.layer = n;
      memory.set("layer", n === model.start ? null : n);
      view.moved?.();
      tip.hide();
      view.redraw();
    },
    toggle(n) {
      if (state.hidden.has(n)) state.hidden.delete(n);
      else if (view.shown().length > 1) state.hidden.add(n);
      memory.set("hidden", [...state.hidden].sort().join(" "));
      view.recolour();
      view.redraw();
    } };
  return view;
}

function sliderOf(view) {
  const { layers } = view.model;
  if (layers.length < 2) return null;
  const output = el("output", {});
  const slider = el("input", { type: "range", "aria-label": "Layer", min: 0, max: layers.length - 1, step: 1, oninput: () =>
    view.setLayer(Number(slider.value)) });
  view.moved = () => {
    slider.value = view.state.layer;
    slider.setAttribute("aria-valuetext", `layer ${layers[view.state.layer]}`);
    output.textContent = layers[view.state.layer];
  };
  view.moved();
  return el("label", {}, el("span", { "aria-hidden": true }, "Layer"), slider, output);
}

/** Buttons for classes, each with its mark; pressed ones are shown. */
function legendOf(view) {
  const { classes } = view.model;
  if (classes.length < 2) return null;
  const marks = classes.map(() => el("path", {}));
  const buttons = classes.map(({ name, rows }, n) => el("button", { type: "button", class: "class",
    title: `${name}: ${rows} rows`,
    onclick: () => view.toggle(n) }, el("svg", { width: 14, height: 14, viewBox: "0 0 14 14", "aria-hidden": true }, marks[n]),
  token(name)));
  view.recolour = () => buttons.forEach((button, n) => {
    const on = !view.state.hidden.has(n);
    button.setAttribute("aria-pressed", on);
    for (const [key, value] of Object.entries({ d: mark(n, 7, 7, 5), fill: on ? series(n) : "none", stroke: series(n) })) {
      marks[n].setAttribute(key, value);
    }
  });
  view.recolour();
  return el("span", { class: "legend", role: "group", "aria-label": "Classes shown" }, ...buttons);
}

/** AUC by layer, beside the ridges. */
function sideOf(view) {
  const { separations: known, against } = view.model.projection;
  if (!against.length) return null;
  const of = (layer) => {
    const found = known[layer].filter(Boolean).map(({ auc }) => auc);
    return found.length > 1 ? `${Math.max(...found).toFixed(2)}` : found.length ? found[0].toFixed(3) : "–";
  };
  return { name: against.length > 1 ? "best AUC" : "AUC", of };
}

function separations(view, layer) {
  const { separations: known, against } = view.model.projection;
  if (!against.length) return el("p", { class: "note" }, "One class: nothing to separate.");
  const head = el("tr", {}, ...["above", "below", "ROC AUC", "overlap", "Cohen’s d"].map((text) => el("th", { scope: "col" },
    text)));
  const rows = against.map(([below, above], n) => {
    const found = known[layer][n];
    const numbers = found ? [found.auc.toFixed(3), found.overlap.toFixed(3),
      found.distance === null ? "–" : found.distance.toFixed(2)]
      : ["–", "–", "–"];
    return el("tr", {}, el("th", { scope: "row" }, token(above)), el("td", {}, token(below)), ...numbers.map((text) =>
      el("td", {}, text.replace("-", "−"))));
  });
  return el("table", { class: "small" }, el("caption", {}, "How far classes lie apart"), el("thead", {}, head), el("tbody",
    {}, ...rows));
}

// --- data and files ----------------------------------------------------------------------------------------

async function opened(data) {
  const model = { ...data };
  for (const key of ["values", "norms"]) model[key] = await spreadOf(data[key]);
  if (data.positions) model.positions = { ...data.positions, medians: await unpack(data.positions.medians) };
  if (data.outliers) {
    model.outliers = await Promise.all(data.outliers.map(async (one) => ({ ...one, ratios: await unpack(one.ratios) })));
  }
  if (data.projection) {
    const { scores, spread } = data.projection;
    const numbers = { edges: await unpack(scores.edges), steps: await unpack(scores.steps) };
    model.projection = { ...data.projection, spread: await spreadOf(spread), scores: numbers };
  }
  if (data.pca) {
    const { scores, apart } = data.pca;
    model.pca = { ...data.pca, edges: await unpack(scores.edges), steps: await unpack(scores.steps),
      apart: apart && (await unpack(apart)) };
  }
  if (data.rows) model.rows = await rowsOf(data.rows);
  return model;
}

async function spreadOf(spread) {
  const numbers = ["edges", "counts", "outside", "summary"];
  const found = await Promise.all(numbers.map((key) => unpack(spread[key])));
  return { ...spread, ...Object.fromEntries(numbers.map((key, n) => [key, found[n]])) };
}

async function rowsOf(rows) {
  const texts = rows.texts && JSON.parse(new TextDecoder().decode(await unpack(rows.texts)));
  return { numbers: await unpack(rows.numbers), classes: await unpack(rows.classes), texts,
    positions: rows.positions && (await unpack(rows.positions)) };
}

/** Charts below each other as one; only for files, so that the page keeps its own. */
function stacked(charts) {
  const sizes = charts.map((svg) => [Number(svg.getAttribute("width")), Number(svg.getAttribute("height"))]);
  const height = sizes.reduce((sum, size) => sum + size[1], 0);
  const width = Math.max(...sizes.map((size) => size[0]));
  let y = 0;
  const groups = charts.map((svg, n) => {
    const group = el("g", { transform: `translate(0 ${y})` }, ...[...svg.cloneNode(true).childNodes]);
    y += sizes[n][1];
    return group;
  });
  const whole = el("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "font-family": "system-ui, sans-serif" },
    ...groups);
  whole.getBoundingClientRect = () => ({ width, height });
  return whole;
}

function joined(charts) {
  return svgText(stacked(charts));
}

function csv(rows) {
  if (!rows.length) return "";
  const cell = (value) => (/[",\n\r]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  const keys = Object.keys(rows[0]);
  return [keys, ...rows.map((row) => keys.map((key) => row[key]))].map((line) => line.map(cell).join(",")).join("\r\n");
}
