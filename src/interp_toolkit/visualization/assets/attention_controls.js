// The controls of attention: only those that the data has a use for.

import { el } from "./common.js";
import { sameHead } from "./attention_data.js";

const RUNS = [["clean", "Clean"], ["corrupt", "Corrupt"], ["difference", "Difference"]];
const COMBINED = [["each", "one"], ["mean", "mean of all shown"], ["max", "largest of all shown"]];

/** A bar of controls, or nothing where there is nothing to choose. */
export function toolbar(app) {
  const { data } = app;
  const many = data.heads.length > 1;
  const long = many || data.tokens.length > 32;
  if (!long && !data.corrupt && !data.norms) return null;
  const controls = [
    choice(app, "mode", "Show as", [["matrix", "Matrix"], ["lines", "Lines"], ["text", "Text"]]),
    long ? zoom(app) : null,
    data.corrupt ? choice(app, "show", "Run", RUNS) : null,
    many && app.layers.length > 1 ? layerSlider(app) : null,
    many ? select(app, "sort", "Sort", [["layer", "by layer"], ...data.scores.map(({ name }) => [name, `by ${name}`])]) : null,
    many ? select(app, "combine", "Heads", COMBINED) : null,
    long ? check(app, "mask", "without first token") : null,
    data.norms ? check(app, "norms", "times value norm") : null,
    ...(long ? [threshold(app), search(app)] : []),
  ].filter(Boolean);
  const element = el("div", { class: "controls", role: "group", "aria-label": "Settings" });
  element.append(...controls.map((one) => one.element));
  return { element, refresh: () => controls.forEach((one) => one.refresh()) };
}

function choice(app, name, title, options) {
  const button = ([value, text]) => el("button", { type: "button", onclick: () => app.set({ [name]: value }) }, text);
  const buttons = options.map(button);
  return {
    element: el("span", { role: "group", "aria-label": title, class: "exports" }, ...buttons),
    refresh: () => buttons.forEach((button, n) => button.setAttribute("aria-pressed", options[n][0] === app.state[name])),
  };
}

function select(app, name, title, options) {
  const box = el("select", { "aria-label": title, onchange: () => app.set({ [name]: box.value }) },
    ...options.map(([value, text]) => el("option", { value }, text)));
  return { element: el("label", {}, title, box), refresh: () => { box.value = app.state[name]; } };
}

function check(app, name, title) {
  const box = el("input", { type: "checkbox", onchange: () => app.set({ [name]: box.checked }) });
  return { element: el("label", {}, box, title), refresh: () => { box.checked = app.state[name]; } };
}

/** All layers, or one; the same head of the next layer is chosen. */
function layerSlider(app) {
  const read = el("output", {});
  const box = el("input", { type: "range", min: -1, max: app.layers.length - 1, step: 1,
    oninput: () => app.set(inLayer(app, Number(box.value))) });
  const refresh = () => {
    const text = app.state.layer < 0 ? "all" : String(app.layers[app.state.layer]);
    box.value = app.state.layer;
    box.setAttribute("aria-valuetext", text === "all" ? "all layers" : `layer ${text}`);
    read.textContent = text;
  };
  return { element: el("label", {}, "Layer", box, read), refresh };
}

function inLayer(app, layer) {
  return layer < 0 ? { layer } : { layer, head: sameHead(app.data.heads, app.state.head, app.layers[layer]) };
}

function threshold(app) {
  const read = el("output", {});
  const box = el("input", { type: "range", min: 0, max: 0.5, step: 0.01, oninput: () => app.set({ over: Number(box.value) }) });
  const refresh = () => {
    box.value = app.state.over;
    read.textContent = app.state.over.toFixed(2);
  };
  return { element: el("label", {}, "Hide below", box, read), refresh };
}

/** Marks tokens that contain a text; Enter goes from one to the next. */
function search(app) {
  const read = el("output", { "aria-live": "polite" });
  const next = (event) => {
    const found = [...app.found()];
    if (event.key !== "Enter" || !found.length) return;
    const row = found.find((n) => n > (app.cursor?.row ?? -1)) ?? found[0];
    app.point({ row, column: app.cursor && app.cursor.column <= row ? app.cursor.column : 0, locked: true });
    app.reveal();
  };
  const box = el("input", { type: "search", placeholder: "Find token", "aria-label": "Find token", size: 11, onkeydown: next,
    oninput: () => app.set({ find: box.value }) });
  const refresh = () => {
    if (box.value !== app.state.find) box.value = app.state.find;
    read.textContent = app.state.find ? `${app.found().size} of ${app.data.tokens.length}` : "";
  };
  return { element: el("label", {}, box, read), refresh };
}

function zoom(app) {
  const button = (by, text, name) => el("button", { type: "button", "aria-label": name,
    onclick: () => app.set({ zoom: Math.max(-3, Math.min(8, app.state.zoom + by)) }) }, text);
  const buttons = [button(-1, "−", "Smaller"), button(1, "+", "Larger")];
  return {
    element: el("span", { class: "exports", role: "group", "aria-label": "Zoom" }, ...buttons),
    refresh: () => buttons.forEach((one) => { one.disabled = app.state.mode !== "matrix"; }),
  };
}
