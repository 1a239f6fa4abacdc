// Parts that heat maps and charts share: controls that remember, texts that fit, files.

import { el, number, scheme } from "./common.js";

/** A slider with its name and a read-out; `change(value)` is called at once for what the address remembers. */
export function slider(memory, key, name, { least, most, step = 1, value, shown = String, change }) {
  const known = Number(memory.get(key, value));
  const start = Number.isFinite(known) ? Math.min(most, Math.max(least, known)) : value;
  const output = el("output", {}, shown(start));
  const update = () => {
    output.textContent = shown(Number(input.value));
    memory.set(key, Number(input.value) === value ? null : input.value);
    change(Number(input.value));
  };
  const input = el("input", { type: "range", min: least, max: most, step, oninput: update });
  input.value = String(start);
  change(start);
  return el("label", {}, name, input, output);
}

/** A button that is pressed or not. */
export function toggle(memory, key, name, { value, change }) {
  let on = memory.get(key, value ? "1" : "0") === "1";
  const button = el("button", { type: "button", "aria-pressed": String(on), onclick: () => set(!on) }, name);
  const set = (now) => {
    on = now;
    button.setAttribute("aria-pressed", String(on));
    memory.set(key, on === value ? null : on ? "1" : "0");
    change(on);
  };
  change(on);
  return button;
}

/** A choice among names. */
export function choice(memory, key, name, { options, value, change }) {
  const known = memory.get(key, value);
  const update = () => {
    memory.set(key, select.value === value ? null : select.value);
    change(select.value);
  };
  const select = el("select", { onchange: update }, ...options.map((option) => el("option", { value: option }, option)));
  select.value = options.includes(known) ? known : value;
  change(select.value);
  return el("label", {}, name, select);
}

const measuring = document.createElement("canvas").getContext("2d");

/** How many pixels a text takes. */
export function widthOf(text, font = "11px system-ui, sans-serif") {
  measuring.font = font;
  return measuring.measureText(text).width;
}

const signs = new Intl.Segmenter(undefined, { granularity: "grapheme" });

/** As much of a text as there is room for; joined characters stay together. */
export function fitting(text, room, font) {
  if (text.length < 500 && widthOf(text, font) <= room) return text;
  const parts = [];
  for (const { segment } of signs.segment(text)) {
    if (parts.length > 60 || widthOf(`${parts.join("")}${segment}…`, font) > room) return `${parts.join("")}…`;
    parts.push(segment);
  }
  return text;
}

/** Which labels there is room for, each needing so many places: all, every second, fifth, tenth, and so on. */
export function thinned(count, needed) {
  const factors = [2, 2.5, 2];
  let step = 1;
  for (let turn = 0; step < needed; turn += 1) step = Math.round(step * factors[turn % 3]);
  return Array.from({ length: Math.ceil(count / step) }, (_, n) => n * step);
}

/** Rows as comma-separated values. */
export function csv(rows) {
  const quoted = (cell) => (/[",\n\r]/.test(String(cell)) ? `"${String(cell).replaceAll('"', '""')}"` : String(cell));
  return rows.map((row) => row.map(quoted).join(",")).join("\r\n");
}

/** A name for a file. */
export function fileName(title) {
  return (
    title
      .replace(/[^\p{L}\p{N}]+/gu, "_")
      .replace(/^_+|_+$/g, "")
      .slice(0, 60) || "picture"
  );
}

/** Gives an SVG element a size, in which its units are pixels. */
export function resize(svg, width, height) {
  svg.setAttribute("width", width);
  svg.setAttribute("height", height);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
}

/** The place of an event within an element, in its own pixels. */
export function within(event, element) {
  const box = element.getBoundingClientRect();
  return { x: event.clientX - box.left, y: event.clientY - box.top };
}

/** A number with as many decimals as matter beside this one. */
export function compact(value, full) {
  const decimals = [100, 10, 0.1, 0.01, 0.001].findIndex((least) => full >= least);
  if (!Number.isFinite(value) || decimals < 0 || Math.abs(value) >= 1e5) return number(value);
  return value.toFixed(decimals).replace(/^-(?=[0.]*$)/, "").replace("-", "−");
}

/** Ink or paper: what is easier to read on this colour. */
export function inkOn([red, green, blue], colours = scheme()) {
  const linear = [red, green, blue]
    .map((part) => part / 255)
    .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
  const light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  const bright = 1.05 / (light + 0.05) > (light + 0.05) / 0.06;
  return bright ? (colours.dark ? colours.ink : "#ffffff") : colours.dark ? colours.paper : colours.ink;
}
