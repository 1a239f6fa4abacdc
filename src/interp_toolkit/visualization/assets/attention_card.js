// One head, large: as a matrix, as lines between tokens, or as running text; the cursor is that of all cards.

import { el } from "./common.js";
import { STEP, canvasPen, drawLines, drawMatrix, label, linePlan, matrixPlan } from "./attention_draw.js";
import { facts, pin } from "./attention_heads.js";
import { runningText } from "./attention_text.js";
import { sources } from "./attention_data.js";

const HIGH = 690;
const WINDOW = 256;

/** A card of a pinned head, or, without a number, of what is chosen. */
export function card(app, pinned) {
  const parts = skeleton(app, pinned);
  const { canvas, scroll, sizer } = parts;
  const look = { weights: null, name: "", plan: null };
  const text = runningText(app, () => look.weights);
  parts.element.append(text.element);
  let turn = 0;

  async function refresh() {
    turn += 1;
    const mine = turn;
    const found = await chosen(app, pinned);
    if (mine !== turn) return;
    Object.assign(look, found);
    heading(app, parts, found, pinned);
    const running = app.state.mode === "text";
    text.element.hidden = !running;
    scroll.hidden = running;
    if (running) text.refresh();
    else fit();
  }

  function fit() {
    const wide = parts.element.clientWidth;
    if (!wide || !look.weights || app.state.mode === "text") return;
    look.plan = plan(app, wide);
    const size = extent(app, look.plan);
    sizer.style.width = `${size.wide}px`;
    sizer.style.height = `${size.high}px`;
    redraw();
  }

  function redraw() {
    if (!look.weights) return;
    if (app.state.mode === "text") text.refresh();
    else if (look.plan) paintCard(app, parts, look);
  }

  function reveal() {
    if (app.cursor && look.plan && app.state.mode !== "text") bringIntoView(app, scroll, look.plan);
    redraw();
  }
  const watch = new ResizeObserver(fit);
  watch.observe(parts.element);
  scroll.addEventListener("scroll", redraw);
  listen(app, parts, look, reveal);
  if (pinned === null) app.current = () => chosen(app, null);
  return { element: parts.element, refresh, redraw, reveal, scene: () => scene(app, look),
    remove: () => { watch.disconnect(); parts.element.remove(); } };
}

function skeleton(app, pinned) {
  const canvas = el("canvas", { tabindex: 0, role: "application", "aria-roledescription": "attention" });
  const sizer = el("div", {}, canvas);
  const scroll = el("div", { class: "scroll" }, sizer);
  const name = el("strong", {});
  const about = el("span", { class: "facts" });
  const button = el("button", { type: "button", onclick: () => pin(app, pinned ?? app.state.head) });
  const header = el("header", {}, name, button, about);
  return { canvas, sizer, scroll, name, about, button, header, element: el("section", { class: "card" }, header, scroll) };
}

/** Name and weights of what a card shows. */
async function chosen(app, pinned) {
  const { state, data } = app;
  if (pinned === null && state.combine !== "each") {
    const heads = app.scope();
    const where = state.layer < 0 ? "" : ` of layer ${app.layers[state.layer]}`;
    const what = state.combine === "mean" ? "Mean" : "Largest";
    return { head: null, name: `${what} of ${heads.length} heads${where}`, weights: await app.reader.combined(heads, state) };
  }
  const head = pinned ?? state.head;
  return { head, name: data.heads[head].label, weights: await app.reader.weights(head, state) };
}

function heading(app, parts, { head, name }, pinned) {
  const single = app.data.heads.length === 1;
  parts.header.hidden = single;
  parts.name.textContent = name;
  parts.about.textContent = head === null ? "" : facts(app, head, false).join(" · ");
  parts.element.setAttribute("aria-label", name || "Attention");
  const keys = "arrow keys move, Enter locks, Escape unlocks";
  parts.canvas.setAttribute("aria-label", `${name || "Attention"}: ${app.state.mode}; ${keys}`);
  parts.button.hidden = single || head === null;
  parts.button.textContent = app.state.pins.includes(head) ? "Unpin" : "Pin";
  parts.button.setAttribute("aria-label", `${parts.button.textContent} ${name}`);
  parts.button.setAttribute("aria-pressed", pinned !== null);
}

// --- drawing -----------------------------------------------------------------------------------------------

function plan(app, wide) {
  const names = app.names();
  if (app.state.mode === "lines") return linePlan(names, names, Math.min(wide, 620));
  const count = names.length;
  const most = app.data.heads.length === 1 ? 60 : 44;
  let cell = Math.min(most, (wide - 150) / count);
  for (let n = 0; n < 2; n += 1) {
    const { left, right, top } = matrixPlan(names, names, cell);
    cell = Math.min(most, (wide - left - right) / count, (HIGH - top) / count);
  }
  cell = Math.max(cell, count > WINDOW ? 10 : 2);
  return matrixPlan(names, names, cell * 1.4 ** app.state.zoom);
}

function extent(app, made) {
  if (app.state.mode === "lines") return { wide: made.wide, high: made.top + made.size };
  return { wide: made.left + made.size + made.right, high: made.top + made.size + 2 };
}

/** What is drawn, with the cursor and the found tokens of the moment. */
function looked(app, look) {
  const names = app.names();
  const cursor = app.cursor && app.state.mode === "lines" ? { ...app.cursor, side: app.cursor.side ?? "from" } : app.cursor;
  return { weights: look.weights, over: app.state.over, cursor, found: app.found(), rows: names, columns: names,
    values: names.length <= 12, causal: app.data.causal };
}

function paintCard(app, { canvas, scroll, sizer }, look) {
  const size = extent(app, look.plan);
  const seen = { x: scroll.scrollLeft, y: scroll.scrollTop };
  seen.width = Math.min(scroll.clientWidth, size.wide);
  seen.height = Math.min(Math.max(scroll.clientHeight, 60), size.high);
  canvas.style.width = `${seen.width}px`;
  canvas.style.height = `${seen.height}px`;
  draw(app, canvasPen(canvas, seen.width, seen.height), look, seen);
  canvas.dataset.head = look.name;
  for (const name of ["cell", "left", "top"]) sizer.dataset[name] = look.plan[name] ?? "";
}

function draw(app, pen, look, seen) {
  if (app.state.mode === "lines") drawLines(pen, look.plan, looked(app, look), seen);
  else drawMatrix(pen, look.plan, looked(app, look), seen);
}

/** The whole card for a file; of text, the matrix. */
function scene(app, look) {
  if (app.state.mode === "text" || !look.plan) {
    const other = { ...app, state: { ...app.state, mode: "matrix" } };
    return scene(other, { ...look, plan: plan(other, 640) });
  }
  const { wide, high } = extent(app, look.plan);
  const name = look.name || app.data.title;
  const all = { x: 0, y: 0, width: wide, height: high };
  return { wide, high, name, weights: look.weights, draw: (pen) => draw(app, pen, look, all) };
}

// --- pointer and keys --------------------------------------------------------------------------------------

function listen(app, { canvas, scroll }, look, reveal) {
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch" || app.cursor?.locked) return;
    const place = at(app, event, scroll, look);
    app.point(place);
    if (place) tell(app, look, near(app, event));
  });
  canvas.addEventListener("pointerleave", () => {
    if (app.cursor?.locked) app.hint.hide();
    else app.point(null);
  });
  canvas.addEventListener("click", (event) => {
    const place = at(app, event, scroll, look);
    const again = app.cursor?.locked && place && place.row === app.cursor.row && place.column === app.cursor.column;
    app.point(!place || again ? null : { ...place, locked: true });
    if (app.cursor) tell(app, look, near(app, event));
  });
  canvas.addEventListener("keydown", (event) => {
    const place = moved(app, event.key);
    const larger = { "+": 1, "-": -1 }[event.key];
    if (larger) app.set({ zoom: Math.max(-3, Math.min(8, app.state.zoom + larger)) });
    else if (!place) return;
    else app.point(place);
    event.preventDefault();
    reveal();
    if (place) tell(app, look, spot(app, canvas, scroll, look));
  });
  canvas.addEventListener("blur", () => app.hint.hide());
}

/** The cell or token under the pointer. */
function at(app, event, scroll, { plan: made }) {
  const box = event.currentTarget.getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top + scroll.scrollTop];
  if (app.state.mode === "lines") {
    const n = Math.floor((y - made.top) / STEP);
    if (n < 0 || n >= made.length) return null;
    const side = x < (made.left + made.right) / 2 ? "from" : "to";
    return { row: n, column: n, side };
  }
  const column = Math.floor((x - made.left + scroll.scrollLeft) / made.cell);
  const row = Math.floor((y - made.top) / made.cell);
  const inside = x >= made.left && y - scroll.scrollTop >= made.top && Math.max(row, column) < made.length;
  return inside && !(app.data.causal && column > row) ? { row, column } : null;
}

/** Where a key takes the cursor; it stays locked, so that the mouse does not take it away. */
function moved(app, key) {
  const length = app.data.tokens.length;
  const { row, column, side } = app.cursor ?? { row: 0, column: 0 };
  const lines = app.state.mode === "lines";
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [-10, 0],
    PageDown: [10, 0], Home: [0, -length], End: [0, length], Enter: [0, 0], " ": [0, 0] };
  if (!steps[key]) return null;
  if (!app.cursor) return { row: length - 1, column: 0, side: lines ? "from" : undefined, locked: true };
  const [down, right] = steps[key];
  const within = (n) => Math.max(0, Math.min(length - 1, n));
  if (lines) {
    const n = within(row + down);
    return { row: n, column: n, side: right ? { [-1]: "from", 1: "to" }[Math.sign(right)] : side ?? "from", locked: true };
  }
  const made = { row: within(row + down), column: within(column + right), locked: true };
  if (app.data.causal && made.column > made.row) made[right > 0 ? "column" : "row"] = right > 0 ? made.row : made.column;
  return made;
}

function near(app, event) {
  const frame = app.root.getBoundingClientRect();
  return [event.clientX - frame.left, event.clientY - frame.top];
}

/** Where the cursor is on the screen, in pixels of the root. */
function spot(app, canvas, scroll, { plan: made }) {
  const [box, frame] = [canvas.getBoundingClientRect(), app.root.getBoundingClientRect()];
  const { row, column, side } = app.cursor;
  const lines = app.state.mode === "lines";
  const x = lines ? (side === "to" ? made.right : made.left) : made.left + (column + 1) * made.cell - scroll.scrollLeft;
  const y = made.top + (row + 1) * (lines ? STEP : made.cell) - scroll.scrollTop;
  return [box.left - frame.left + x, box.top - frame.top + y - 10];
}

/** Says what is at the cursor, in a hint and to those who listen. */
function tell(app, look, [x, y]) {
  const lines = described(app, look);
  app.hint.show(x, y, lines);
  app.say([look.name, ...lines].filter(Boolean).join(", "));
}

function described(app, { weights }) {
  const names = app.names();
  const length = names.length;
  const { row, column, side } = app.cursor;
  const whole = (n) => `${n} “${label(names[n], 60, true)}”`;
  const written = (weight) => weight.toFixed(3).replace("-", "−");
  if (app.state.mode !== "lines") return [`from ${whole(row)}`, `to ${whole(column)}`, written(weights[row * length + column])];
  if (side !== "to") {
    return [`from ${whole(row)}`, ...sources(weights, length, row, 4).map(([n, weight]) => `${written(weight)} to ${whole(n)}`)];
  }
  const received = Float32Array.from(names, (_, n) => weights[n * length + column]);
  return [`to ${whole(column)}`, ...sources(received, length, 0, 4).map(([n, weight]) => `${written(weight)} from ${whole(n)}`)];
}

function bringIntoView(app, scroll, made) {
  const { row, column } = app.cursor;
  const step = app.state.mode === "lines" ? STEP : made.cell;
  const room = { x: scroll.clientWidth - made.left, y: scroll.clientHeight - made.top };
  const placed = (from, offset, there) => Math.min(from, Math.max(offset, from + step - there));
  scroll.scrollTop = placed(row * step, scroll.scrollTop, room.y);
  if (app.state.mode !== "lines") scroll.scrollLeft = placed(column * step, scroll.scrollLeft, room.x);
}
