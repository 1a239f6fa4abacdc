// All heads, small: a list to choose from with mouse or arrow keys; P or a double click pins.

import { el, number, paint } from "./common.js";
import { depth } from "./attention_draw.js";
import { ordered, pooled } from "./attention_data.js";

const PIXELS = 40;
const WIDE = 392;
let lists = 0;

/** The list of heads; a small picture is drawn when it comes into sight. */
export function headList(app) {
  lists += 1;
  const own = `heads${lists}`;
  const grid = el("div", { class: "grid" });
  const list = el("div", { class: "heads", role: "listbox", tabindex: 0, "aria-label": "Heads; P pins" }, grid);
  grid.setAttribute("role", "presentation");
  const seen = new Set();
  const tiles = app.data.heads.map((head, n) => tile(app, head, n, `${own}-${n}`));
  const draw = queue(app, tiles, seen);
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) seen.add(Number(entry.target.dataset.head));
      else seen.delete(Number(entry.target.dataset.head));
    }
    draw();
  }, { rootMargin: "150px" });
  tiles.forEach((one) => watch.observe(one.element));
  let order = [];
  let columns = 1;
  let layout = "";
  list.addEventListener("keydown", (event) => move(app, event, order, columns));

  function refresh() {
    const now = [app.state.sort, app.state.layer].join();
    const first = layout === "";
    if (now !== layout) {
      order = ordered(app.scope(), app.data.scores, app.state.sort);
      columns = arrange(app, grid, tiles, order);
      layout = now;
    }
    tiles.forEach((one, n) => one.refresh(app.state.head === n, app.state.pins.includes(n)));
    list.setAttribute("aria-activedescendant", `${own}-${app.state.head}`);
    if (first) list.scrollTop += tiles[app.state.head].element.getBoundingClientRect().top
      - list.getBoundingClientRect().top - list.clientHeight / 2;
    if (document.activeElement === list) tiles[app.state.head].element.scrollIntoView({ block: "nearest", inline: "nearest" });
    draw();
  }
  return { element: list, refresh };
}

function tile(app, head, n, id) {
  const canvas = el("canvas", { "aria-hidden": "true" });
  const name = el("span", {});
  const element = el("div", { role: "option", id, "data-head": n, ondblclick: () => pin(app, n),
    onclick: () => app.set({ head: n, combine: "each" }), onpointerenter: () => hover(app, element, n),
    onpointerleave: () => app.hint.hide() }, canvas, name);
  const refresh = (chosen, pinned) => {
    const sorted = app.state.sort !== "layer";
    element.setAttribute("aria-selected", chosen);
    element.setAttribute("aria-label", [head.label, ...facts(app, n, sorted), pinned ? "pinned" : ""].filter(Boolean).join(", "));
    element.classList.toggle("pinned", pinned);
    name.textContent = sorted ? head.name : "";
  };
  return { element, canvas, refresh };
}

/** What is known of a head: the score that heads are sorted by, or all. */
export function facts(app, head, sorted) {
  const wanted = app.data.scores.filter((score) => !sorted || score.name === app.state.sort);
  return wanted.map(({ name, values }) => {
    if (values[head] === null) return `${name} n/a`;
    const tiny = values.every((value) => Math.abs(value) < 0.1);
    return `${name} ${tiny ? number(values[head]) : values[head].toFixed(2).replace("-", "−")}`;
  });
}

function hover(app, element, n) {
  const [box, frame] = [element.getBoundingClientRect(), app.root.getBoundingClientRect()];
  const lines = [app.data.heads[n].label, ...facts(app, n, false)];
  app.hint.show(box.left - frame.left + box.width / 2, box.bottom - frame.top - 10, lines);
}

/** Pins a head, or unpins it. */
export function pin(app, head) {
  const { pins } = app.state;
  return app.set({ pins: pins.includes(head) ? pins.filter((other) => other !== head) : [...pins, head] });
}

function move(app, event, order, columns) {
  const at = order.indexOf(app.state.head);
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -at, End: order.length - 1 - at };
  const by = step[event.key];
  if (event.key.toLowerCase() === "p") pin(app, app.state.head);
  else if (by === undefined) return;
  else if (order[at + by] !== undefined) app.set({ head: order[at + by], combine: "each" });
  event.preventDefault();
}

/** Puts the tiles in their places: a row for each layer, or one after the other by score. */
function arrange(app, grid, tiles, order) {
  const { heads } = app.data;
  const byLayer = app.state.sort === "layer" && heads[0].layer !== null && heads[0].head !== null;
  const numbers = byLayer ? [...new Set(order.map((n) => heads[n].head))].sort((a, b) => a - b) : [];
  const columns = byLayer ? numbers.length : Math.min(order.length, 8);
  const size = Math.max(26, Math.min(72, Math.floor((WIDE - (byLayer ? 34 : 0)) / columns) - 4));
  grid.style.setProperty("--tile", `${size}px`);
  grid.style.gridTemplateColumns = `${byLayer ? "28px " : ""}repeat(${columns}, ${size}px)`;
  const layers = [...new Set(order.map((n) => heads[n].layer))];
  const labels = !byLayer ? [] : [...numbers.map((n, at) => margin(`H${n}`, 1, at + 2)),
    ...layers.map((layer, at) => margin(`L${layer}`, at + 2, 1))];
  for (const n of order) {
    const { element } = tiles[n];
    element.style.gridArea = byLayer ? `${layers.indexOf(heads[n].layer) + 2} / ${numbers.indexOf(heads[n].head) + 2}` : "auto";
  }
  grid.replaceChildren(...labels, ...order.map((n) => tiles[n].element));
  return columns;
}

function margin(text, row, column) {
  return el("span", { "aria-hidden": "true", class: row === 1 ? "above" : null, style: `grid-area: ${row} / ${column}` }, text);
}

/** Draws the tiles in sight, one after the other, whose settings are not those that they were drawn with. */
function queue(app, tiles, seen) {
  const { data } = app;
  const drawn = new Map();
  let busy = false;
  return async () => {
    if (busy) return;
    busy = true;
    for (;;) {
      const settings = { ...app.state };
      const key = [settings.show, settings.mask, settings.norms, matchMedia("(prefers-color-scheme: dark)").matches].join();
      const next = [...seen].find((n) => drawn.get(n) !== key);
      if (next === undefined) break;
      drawn.set(next, key);
      const { size, values } = pooled(await app.reader.weights(next, settings), data.tokens.length, PIXELS);
      const shares = values.map((weight, at) => (data.causal && at % size > Math.floor(at / size) ? NaN : depth(weight)));
      paint(tiles[next].canvas, shares, size, size);
      tiles[next].element.dataset.drawn = "";
    }
    busy = false;
  };
}
