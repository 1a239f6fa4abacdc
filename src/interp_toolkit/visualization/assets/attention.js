// Attention: heads to choose from, matrices or lines of those that are looked at, and a table of the same.

import { announcer, el, exporters, hint, onScheme } from "./common.js";
import { canvasPen, drawScale, label, svgFile, svgPen } from "./attention_draw.js";
import { headList } from "./attention_heads.js";
import { card } from "./attention_card.js";
import { reader, sameHead, sources } from "./attention_data.js";
import { toolbar } from "./attention_controls.js";

const STYLE = `
.attention { display: grid; gap: 1rem 1.5rem; align-items: start; }
.attention.many { grid-template-columns: minmax(0, 25rem) minmax(0, 1fr); }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.card { min-width: 0; }
.card header { display: grid; grid-template-columns: 1fr auto; gap: .1rem .75rem; align-items: center; margin-bottom: .5rem; }
.card .facts { color: var(--soft); font-size: .8125rem; grid-column: 1 / -1; }
.card .scroll { overflow: auto; max-height: 44rem; overscroll-behavior: contain; }
.card canvas { position: sticky; top: 0; left: 0; display: block; cursor: crosshair; outline-offset: -2px; }
.card .running { line-height: 2; white-space: pre-wrap; overflow-wrap: anywhere; max-width: 48rem; padding: .25rem; }
.running button { all: unset; cursor: pointer; border-radius: 4px; padding: .15em 0; unicode-bidi: isolate; }
.running button:focus-visible { outline: 2px solid var(--accent); }
.running button[aria-current] { box-shadow: 0 0 0 2px var(--mark); }
.running button.found { text-decoration: underline 2px var(--mark); text-underline-offset: 3px; }
.heads { overflow: auto; max-height: 40rem; padding: 3px; position: relative; }
.heads .grid { display: grid; gap: 4px; width: max-content; }
.heads .grid > span { color: var(--soft); font-size: .6875rem; display: grid; place-items: center end; padding-right: 4px; }
.heads .grid > span.above { place-items: end center; padding: 0; }
.heads [role=option] { width: var(--tile); cursor: pointer; border-radius: 3px; font-size: .625rem; line-height: 1.3;
  text-align: center; color: var(--soft); white-space: nowrap; }
.heads [role=option] canvas { width: var(--tile); height: var(--tile); image-rendering: pixelated; display: block;
  border-radius: 3px; box-shadow: 0 0 0 1px var(--line); background: var(--paper); }
.heads [role=option]:hover canvas { box-shadow: 0 0 0 2px var(--soft); }
.heads [role=option].pinned canvas { box-shadow: 0 0 0 2px var(--mark); }
.heads [role=option][aria-selected=true] canvas { box-shadow: 0 0 0 3px var(--accent); }
.foot { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; align-items: center; margin-top: .75rem; }
.exports { display: inline-flex; gap: .35rem; }
.foot .exports button { color: var(--soft); background: none; font-size: .75rem; min-height: 1.7rem; }
@media (max-width: 52rem) { .attention.many { grid-template-columns: minmax(0, 1fr); } .heads { max-height: 18rem; } }
`;
const DEFAULTS = { head: 0, mode: "matrix", layer: -1, sort: "layer", combine: "each", show: "clean", mask: false, norms: false,
  over: 0, zoom: 0, pins: [], find: "" };
const PAGE = 64;
const COLUMNS = ["position", "from", "most to", "then to", "then to"];

/** Brings attention to life. */
export async function mount(root, data, memory) {
  const app = application(root, data, memory);
  const many = data.heads.length > 1;
  const parts = { cards: el("div", { class: "cards" }), scale: el("canvas", { role: "img", "aria-label": "Scale of colours" }) };
  const heads = many ? headList(app) : null;
  const tools = toolbar(app);
  const table = tools ? sourceTable(app) : { element: "", refresh: () => null };
  const cards = new Map();
  root.append(el("style", {}, STYLE), tools?.element ?? "",
    el("div", { class: many ? "attention many" : "attention" }, heads?.element, parts.cards),
    el("div", { class: "foot" }, parts.scale, exporters("attention", saved(app, cards))), table.element);

  app.refresh = async () => {
    tools?.refresh();
    drawLegend(parts.scale, app);
    arrange(app, cards, parts.cards);
    await Promise.all([...[...cards.values()].map((one) => one.refresh()), table.refresh()]);
    heads?.refresh();
  };
  app.redraw = () => cards.forEach((one) => one.redraw());
  app.reveal = () => cards.forEach((one) => one.reveal());
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && app.cursor) app.point(null);
  });
  onScheme(() => app.refresh());
  await app.refresh();
  if (app.cursor) app.reveal();
}

/** What the parts share: data, state, cursor, and how to change them. */
function application(root, data, memory) {
  const app = { root, data, reader: reader(data), state: recalled(memory, data), cursor: null };
  app.layers = layersOf(data);
  app.hint = hint(root);
  app.say = announcer(root);
  const names = Object.fromEntries(["clean", "corrupt", "difference"].map((show) => [show, namesOf(data, show)]));
  app.names = () => names[app.state.show];
  const place = memory.get("at", "").split(".").map(Number);
  if (place.length === 2 && place.every((n) => Number.isInteger(n) && n >= 0 && n < data.tokens.length)) {
    app.cursor = { row: place[0], column: place[1], locked: true };
  }
  const note = notes(memory);
  let busy = 0;
  app.set = async (changes) => {
    Object.assign(app.state, changes);
    for (const name of Object.keys(changes)) note(name, written(app.state[name], DEFAULTS[name]));
    busy += 1;
    root.setAttribute("aria-busy", "true");
    await app.refresh();
    busy -= 1;
    if (!busy) root.setAttribute("aria-busy", "false");
  };
  app.point = (cursor) => {
    app.cursor = cursor;
    note("at", cursor?.locked ? `${cursor.row}.${cursor.column}` : null);
    if (!cursor) app.hint.hide();
    app.redraw();
  };
  app.found = () => matches(app.names(), app.state.find);
  app.scope = () => data.heads.map((_, n) => n).filter((n) => inLayer(app, n));
  return app;
}

/** Writes what changed into the address once nothing has changed for a moment: browsers refuse many writes. */
function notes(memory) {
  const waiting = new Map();
  let timer = 0;
  return (name, value) => {
    if (!waiting.has(name) && String(memory.get(name, null)) === String(value)) return;
    waiting.set(name, value);
    clearTimeout(timer);
    timer = setTimeout(() => {
      waiting.forEach((latest, key) => memory.set(key, latest));
      waiting.clear();
    }, 150);
  };
}

function layersOf(data) {
  return [...new Set(data.heads.map((head) => head.layer))].sort((a, b) => a - b);
}

function inLayer(app, head) {
  return app.state.layer < 0 || app.data.heads[head].layer === app.layers[app.state.layer];
}

/** The tokens of what is shown; where clean and corrupt differ, a difference has both. */
function namesOf(data, show) {
  if (!data.corruptTokens || show === "clean") return data.tokens;
  if (show === "corrupt") return data.corruptTokens;
  const both = (one, other) => (one === other ? one : `${one || label(one)} / ${other.trim() || label(other)}`);
  return data.tokens.map((text, n) => both(text, data.corruptTokens[n]));
}

function matches(names, find) {
  const wanted = find.toLowerCase();
  return new Set(wanted === "" ? [] : names.flatMap((text, n) => (text.toLowerCase().includes(wanted) ? [n] : [])));
}

function written(value, otherwise) {
  if (String(value) === String(otherwise)) return null;
  return Array.isArray(value) ? value.join(".") : typeof value === "boolean" ? Number(value) : value;
}

/** The state that an address names, as far as it makes sense for this data. */
function recalled(memory, data) {
  const state = { ...DEFAULTS, pins: [] };
  const whole = (name, low, high) => {
    const value = Number(memory.get(name, DEFAULTS[name]));
    return Number.isInteger(value) && value >= low && value < high ? value : DEFAULTS[name];
  };
  const oneOf = (name, values) => (values.includes(memory.get(name, "")) ? memory.get(name) : DEFAULTS[name]);
  state.head = whole("head", 0, data.heads.length);
  const layers = layersOf(data);
  state.layer = whole("layer", -1, layers.length);
  if (state.layer >= 0) state.head = sameHead(data.heads, state.head, layers[state.layer]);
  state.zoom = whole("zoom", -3, 9);
  state.mode = oneOf("mode", ["matrix", "lines", "text"]);
  state.sort = oneOf("sort", ["layer", ...data.scores.map((score) => score.name)]);
  state.combine = oneOf("combine", ["each", "mean", "max"]);
  state.show = data.corrupt ? oneOf("show", ["clean", "corrupt", "difference"]) : "clean";
  state.mask = memory.get("mask") === "1";
  state.norms = Boolean(data.norms) && memory.get("norms") === "1";
  state.over = Math.min(0.5, Math.max(0, Number(memory.get("over", 0)) || 0));
  state.find = memory.get("find", "");
  state.pins = [...new Set(memory.get("pins", "").split(".").filter(Boolean).map(Number).filter((n) => n in data.heads))];
  return state;
}

/** Makes the cards of what is looked at: the chosen head or the combination, then those that are pinned. */
function arrange(app, cards, place) {
  const { state } = app;
  const wanted = ["main", ...state.pins.filter((head) => state.combine !== "each" || head !== state.head)];
  for (const [key, one] of cards) {
    if (wanted.includes(key)) continue;
    one.remove();
    cards.delete(key);
  }
  for (const key of wanted) if (!cards.has(key)) cards.set(key, card(app, key === "main" ? null : key));
  const order = wanted.map((key) => cards.get(key).element);
  if (order.some((element, n) => place.children[n] !== element)) place.replaceChildren(...order);
}

function drawLegend(canvas, app) {
  canvas.style.width = "340px";
  canvas.style.height = "30px";
  drawScale(canvasPen(canvas, 340, 30), 8, 0, app.state.show === "difference");
}

// --- the table ---------------------------------------------------------------------------------------------

/** Where each token of the first card looks, in words; kept up to date while it is open. */
function sourceTable(app) {
  const body = el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Where each token looks" });
  let page = 0;
  const turn = (by) => {
    page += by;
    element.refresh();
  };
  const summary = el("summary", {}, "Where each token looks");
  const details = el("details", { class: "sources", ontoggle: () => element.refresh() }, summary, body);
  const element = {
    element: details,
    async refresh() {
      if (!details.open) return;
      const { name, weights } = await app.current();
      const names = app.names();
      const pages = Math.ceil(names.length / PAGE);
      page = Math.max(0, Math.min(page, pages - 1));
      const rows = names.slice(page * PAGE, (page + 1) * PAGE).map((text, n) => sourceRow(app, names, weights, page * PAGE + n));
      const head = el("tr", {}, ...COLUMNS.map((text) => el("th", { scope: "col" }, text)));
      const buttons = pages < 2 ? [] : [["Earlier", -1], ["Later", 1]].map(([text, by]) =>
        el("button", { type: "button", onclick: () => turn(by), disabled: page + by < 0 || page + by >= pages }, text));
      body.replaceChildren(el("table", {}, el("caption", {}, name), el("thead", {}, head), el("tbody", {}, ...rows)), ...buttons);
    },
  };
  return element;
}

function sourceRow(app, names, weights, row) {
  const found = sources(weights, names.length, row, 3);
  const cells = [0, 1, 2].map((n) => {
    if (!found[n]) return el("td", {}, "");
    const [column, weight] = found[n];
    return el("td", {}, el("bdi", {}, label(names[column], 24)), ` (${column}) ${weight.toFixed(2).replace("-", "−")}`);
  });
  return el("tr", {}, el("td", {}, String(row)), el("td", {}, el("bdi", {}, label(names[row], 24))), ...cells);
}

// --- files -------------------------------------------------------------------------------------------------

/** What can be saved: the cards as they are, whole, side by side; or their numbers. */
function saved(app, cards) {
  const scenes = () => [...cards.values()].map((one) => one.scene());
  const layout = () => {
    let x = 0;
    const placed = scenes().map((scene) => ({ ...scene, x: (x += scene.wide + 24) - scene.wide - 24 }));
    return { placed, wide: x - 24, high: 70 + Math.max(...placed.map((scene) => scene.high)) };
  };
  const decorate = (pen, { placed, high }) => {
    for (const scene of placed) pen.text(scene.x + 8, 18, scene.name, { bold: true, size: 14 });
    drawScale(pen, 8, high - 32, app.state.show === "difference");
  };
  return {
    svg: () => {
      const all = layout();
      const outer = svgPen(all.wide, all.high);
      for (const scene of all.placed) {
        const pen = svgPen(scene.wide, scene.high);
        scene.draw(pen);
        pen.svg.setAttribute("x", scene.x);
        pen.svg.setAttribute("y", 28);
        outer.svg.append(pen.svg);
      }
      decorate(outer, all);
      return svgFile(outer.svg);
    },
    png: () => {
      const all = layout();
      const ratio = Math.max(0.5, Math.min(2, 8000 / Math.max(all.wide, all.high)));
      const canvas = el("canvas");
      const pen = canvasPen(canvas, all.wide, all.high, ratio);
      decorate(pen, all);
      for (const scene of all.placed) {
        const part = el("canvas");
        scene.draw(canvasPen(part, scene.wide, scene.high, ratio));
        pen.cells(part, scene.x, 28, scene.wide, scene.high);
      }
      return canvas;
    },
    json: () => JSON.stringify({ title: app.data.title, tokens: app.names(), settings: app.state,
      heads: scenes().map(({ name, weights }) => ({ name, weights: squared(weights, app.data.tokens.length) })) }),
  };
}

function squared(weights, length) {
  const row = (n) => [...weights.subarray(n * length, (n + 1) * length)].map((weight) => Number(weight.toFixed(4)));
  return Array.from({ length }, (_, n) => row(n));
}
