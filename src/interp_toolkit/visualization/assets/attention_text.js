// The text itself: a chosen token, and how much it attends to each of the others.

import { colour, el } from "./common.js";
import { depth, label, readable } from "./attention_draw.js";
import { sources } from "./attention_data.js";

const WINDOW = 256;

/** Running text in which a token is chosen by pointer or keys; `weights()` gives those of the card. */
export function runningText(app, weights) {
  const element = el("div", { class: "running", role: "group", "aria-label": "Text; choose a token to see where it looks" });
  let from = -1;
  let followed = -1;
  let names = [];
  const choose = (row, locked) => app.point({ row, column: row, side: "from", locked });

  const word = (text, row) => el("button", { type: "button", "data-at": row, tabindex: -1, onclick: () => choose(row, true),
    onpointerenter: () => app.cursor?.locked || choose(row, false) }, text.trim() === "" ? label(text) : text);
  const turn = (by) => {
    build(from + by);
    refresh();
  };
  const more = (by, words) => el("button", { type: "button", class: "more", onclick: () => turn(by) }, words);

  function build(start) {
    from = start;
    names = app.names();
    const shown = names.slice(from, from + WINDOW).map((text, n) => word(text, from + n));
    element.replaceChildren(...(from ? [more(-WINDOW, "‹ earlier tokens "), "\n"] : []), ...shown,
      ...(from + WINDOW < names.length ? ["\n", more(WINDOW, "later tokens ›")] : []));
  }

  function refresh() {
    const row = app.cursor?.row ?? app.data.tokens.length - 1;
    const left = app.cursor?.locked && row !== followed && (row < from || row >= from + WINDOW);
    if (app.cursor?.locked) followed = row;
    if (from < 0 || left || names !== app.names()) build(from < 0 || left ? Math.floor(row / WINDOW) * WINDOW : from);
    const found = app.found();
    for (const button of element.querySelectorAll("[data-at]")) {
      const column = Number(button.dataset.at);
      const weight = weights()[row * names.length + column];
      const strong = Math.abs(weight) < Math.max(app.state.over, 5e-4) ? 0 : depth(weight);
      button.style.background = strong ? colour(strong) : "";
      button.style.color = strong ? readable(strong) : "";
      button.title = `${weight.toFixed(3)}`;
      button.classList.toggle("found", found.has(column));
      button.tabIndex = column === row ? 0 : -1;
      if (column === row) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  }

  element.addEventListener("pointerleave", () => app.cursor?.locked || app.point(null));
  element.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10 }[event.key];
    if (!by) return;
    const row = Math.max(0, Math.min(names.length - 1, (app.cursor?.row ?? names.length - 1) + by));
    choose(row, true);
    element.querySelector(`[data-at="${row}"]`)?.focus();
    app.say(`${label(names[row], 60)} looks most at ${best(weights(), names, row)}`);
    event.preventDefault();
  });
  return { element, refresh };
}

function best(weights, names, row) {
  const [[most, weight] = [row, 0]] = sources(weights, names.length, row, 1);
  return `${label(names[most], 60)}, ${weight.toFixed(2)}`;
}
