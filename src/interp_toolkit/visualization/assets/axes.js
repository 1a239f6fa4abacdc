// Charts: numbers in few digits, ticks, axes and the marks of classes.

import { el, scheme } from "./common.js";

/** A number in about three digits, as Python's side writes it. */
export function short(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (value !== 0 && (size < 1e-3 || size >= 1e5)) return minus(value.toExponential(2));
  return minus(size >= 100 ? Math.round(value).toLocaleString("en-US") : String(Number(value.toPrecision(3))));
}

/** A share in percent. */
export function percent(share) {
  return `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0)}%`;
}

function minus(text) {
  return text.replaceAll("-", "−");
}

/** Round numbers between two others, about so many. */
export function ticks(low, high, about) {
  const rough = (high - low) / about;
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((found) => found >= rough * 0.999);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-6); n * step <= high + 1e-6 * step; n += 1) found.push(n * step);
  return found;
}

/** The same for an axis of base-10 logarithms: powers of ten, and 2 and 5 times those where there are few. */
export function logTicks(low, high, about) {
  const factors = high - low > 2 ? [1] : high - low > 0.7 ? [1, 2, 5] : null;
  if (!factors) return ticks(10 ** low, 10 ** high, about).filter((value) => value > 0).map(Math.log10);
  const found = [];
  for (let power = Math.floor(low); power <= high; power += 1) {
    for (const factor of factors) {
      const place = power + Math.log10(factor);
      if (place >= low && place <= high) found.push(place);
    }
  }
  const step = Math.ceil(found.length / about);
  return found.filter((_, n) => n % step === 0);
}

/** An SVG element for a chart; `label` says what it shows. Those that take keys are applications to a screen reader. */
export function chart(label, keys = null) {
  const role = keys ? { role: "application", tabindex: 0, "aria-roledescription": "chart", onkeydown: keys } : { role: "img" };
  return el("svg", { ...role, "aria-label": label, style: "display: block; touch-action: pan-y" });
}

/** Gives a chart its size in pixels and empties it. */
export function sized(svg, width, height) {
  svg.replaceChildren();
  for (const [name, value] of Object.entries({ width, height, viewBox: `0 0 ${width} ${height}` })) svg.setAttribute(name, value);
}

/** A text in a chart; cut with an ellipsis where it is longer than `room` characters, with the whole on hover. */
export function label(x, y, content, { anchor = "start", soft = true, size = 11, weight = 400, room = 60 } = {}) {
  const letters = [...content];
  const cut = letters.length > room ? `${letters.slice(0, room - 1).join("")}…` : content;
  const colours = scheme();
  const made = el("text", { x, y, "text-anchor": anchor, "font-size": size, "font-weight": weight,
    fill: soft ? colours.soft : colours.ink,
    style: "unicode-bidi: isolate; white-space: pre" }, cut);
  if (cut !== content) made.append(el("title", {}, content));
  return made;
}

/** A straight stroke. */
export function stroke(x1, y1, x2, y2, colour = scheme().line, width = 1) {
  return el("line", { x1, y1, x2, y2, stroke: colour, "stroke-width": width });
}

/** A horizontal axis with ticks and a title; `log` where low and high are base-10 logarithms. */
export function axisBelow({ low, high, log = false, left, right, y, title = "", top = null }) {
  const group = el("g", { "aria-hidden": true });
  const about = Math.max(2, Math.floor((right - left) / 90));
  for (const tick of log ? logTicks(low, high, about) : ticks(low, high, about)) {
    const x = left + ((tick - low) / (high - low)) * (right - left);
    group.append(stroke(x, top ?? y, x, y + 4), label(x, y + 16, short(log ? 10 ** tick : tick), { anchor: "middle" }));
  }
  group.append(stroke(left, y, right, y), label((left + right) / 2, y + 33, title, { anchor: "middle", room: 90 }));
  return group;
}

/** A vertical axis with ticks; `write` makes their labels. */
export function axisBeside({ low, high, log = false, top, bottom, x, right, write = short }) {
  const group = el("g", { "aria-hidden": true });
  const about = Math.max(2, Math.floor((bottom - top) / 48));
  for (const tick of log ? logTicks(low, high, about) : ticks(low, high, about)) {
    const y = bottom - ((tick - low) / (high - low)) * (bottom - top);
    group.append(stroke(x, y, right, y), label(x - 6, y + 4, write(log ? 10 ** tick : tick), { anchor: "end" }));
  }
  return group;
}

const TURNED = { 1: [3, -90], 2: [4, 45], 3: [4, 0], 4: [3, 90], 5: [6, 0] };

/** The mark of a class as a path: disc, triangle, square, diamond, triangle downwards, hexagon, cross, plus. */
export function mark(n, x, y, r) {
  if (n % 8 === 0) return `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`;
  if (n % 8 > 5) return cross(x, y, r * 1.15, n % 8 === 6 ? 45 : 0);
  const [sides, turn] = TURNED[n % 8];
  const corners = Array.from({ length: sides }, (_, k) => polar(x, y, r * 1.25, turn + (360 * k) / sides));
  return `M${corners.join("L")}Z`;
}

function cross(x, y, r, turn) {
  const thin = Math.atan2(1, 3) * (180 / Math.PI);
  const inner = r * 0.45;
  const corners = [0, 90, 180, 270].flatMap((side) =>
    [polar(x, y, r, turn + side - thin), polar(x, y, r, turn + side + thin), polar(x, y, inner, turn + side + 45)]);
  return `M${corners.join("L")}Z`;
}

function polar(x, y, r, degrees) {
  const angle = (degrees * Math.PI) / 180;
  return `${(x + r * Math.cos(angle)).toFixed(1)} ${(y + r * Math.sin(angle)).toFixed(1)}`;
}
