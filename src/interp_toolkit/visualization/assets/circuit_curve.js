// How faithful circuits of each size are: what was measured, as a number and as a small chart.

import { el } from "./common.js";

const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP] = [260, 84, 22, 16, 8];

/** Faithfulness of the best edges, in numbers and words: measured, in between, or not known. */
export function faithfulness(data, count, whole) {
  const { own, measured } = data;
  if (!whole) return nothing("Not measured with nodes left out");
  if (own && count === own.edges) {
    return { ...own, known: true, text: ["Measured", own.words, interval(own)].filter(Boolean).join(" ") };
  }
  if (own && data.leftOut && count === data.edges.length) {
    const drawn = `for all ${own.edges.toLocaleString("en")} edges, of which ${count.toLocaleString("en")} are drawn,`;
    return { ...own, known: true, text: ["Measured", drawn, own.words, interval(own)].filter(Boolean).join(" ") };
  }
  const exact = measured.find((point) => point.edges === count);
  if (exact) return { ...exact, known: true, text: `Measured at ${place(exact)} ${interval(exact)}`.trim() };
  const after = measured.findIndex((point) => point.edges > count);
  if (after > 0) return between(measured[after - 1], measured[after], count);
  if (after === 0) return nothing(`Smallest size that was measured: ${place(measured[0])}, ${fixed(measured[0].value)}`);
  if (own) return nothing(`Measured for the whole circuit only: ${fixed(own.value)} ${interval(own)}`.trim());
  return nothing("Not measured");
}

function between(low, high, count) {
  const value = low.value + ((high.value - low.value) * (count - low.edges)) / (high.edges - low.edges);
  const ends = [low, high].map((point) => `${place(point)}: ${fixed(point.value)}`);
  return { value, known: false, text: `Not measured itself: on the line between what was measured at ${ends.join(" and ")}` };
}

function nothing(text) {
  return { value: null, known: false, text };
}

/** A number with its sign as people write it. */
export function fixed(value) {
  return value.toFixed(2).replace("-", "−");
}

function interval(point) {
  return point.low === null || point.high === null ? "" : `(interval ${fixed(point.low)} to ${fixed(point.high)})`;
}

function place(point) {
  const edges = `${point.edges.toLocaleString("en")} edges`;
  return point.size === null ? edges : `${percent(point.size)} (${edges})`;
}

function percent(share) {
  return `${Number((100 * share).toPrecision(3))}%`;
}

/** A chart of faithfulness over the logarithm of the size, with a mark that `move(count, found)` puts at a size. */
export function chart(data) {
  const points = data.measured;
  const all = data.own ? [...points, data.own] : points;
  if (points.length < 2) return null;
  const most = Math.max(data.edges.length, ...all.map((point) => point.edges), 2);
  const low = Math.min(0, ...all.map((point) => Math.max(-1, point.value)));
  const high = Math.max(1, ...all.map((point) => Math.min(2, point.value)));
  const x = (edges) => LEFT + (Math.log(Math.max(1, edges)) / Math.log(most)) * (WIDTH - LEFT - 8);
  const y = (value) => HEIGHT - BOTTOM - ((Math.min(high, Math.max(low, value)) - low) / (high - low)) * (HEIGHT - BOTTOM - TOP);
  const svg = el("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: WIDTH, height: HEIGHT, role: "img",
    "aria-label": "Faithfulness over the number of edges, on a log scale" });
  for (const value of [0, 1]) {
    svg.append(el("line", { class: "rule", x1: LEFT, x2: WIDTH - 8, y1: y(value), y2: y(value) }));
    svg.append(el("text", { class: "tick", x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, String(value)));
  }
  for (let edges = 1; edges <= most; edges *= 10) {
    svg.append(el("text", { class: "tick", x: x(edges), y: HEIGHT - 3, "text-anchor": "middle" }, short(edges)));
  }
  const known = points.filter((point) => point.low !== null && point.high !== null);
  const band = [...known.map((p) => `${x(p.edges)},${y(p.high)}`), ...known.map((p) => `${x(p.edges)},${y(p.low)}`).reverse()];
  svg.append(el("polygon", { class: "band", points: band.join(" ") }));
  svg.append(el("polyline", { class: "curve", points: points.map((point) => `${x(point.edges)},${y(point.value)}`).join(" ") }));
  svg.append(...points.map((point) => el("circle", { class: "spot", cx: x(point.edges), cy: y(point.value), r: 2.5 })));
  if (data.own) svg.append(diamond(x(data.own.edges), y(data.own.value)));
  const line = el("line", { class: "now", y1: TOP - 4, y2: HEIGHT - BOTTOM });
  const dot = el("circle", { class: "now", r: 4 });
  svg.append(line, dot);
  return {
    svg,
    move(count, found) {
      line.setAttribute("x1", x(count));
      line.setAttribute("x2", x(count));
      dot.toggleAttribute("hidden", found.value === null);
      if (found.value !== null) {
        dot.setAttribute("cx", x(count));
        dot.setAttribute("cy", y(found.value));
      }
    },
  };
}

function diamond(x, y) {
  return el("polygon", { class: "own", points: `${x},${y - 5} ${x + 5},${y} ${x},${y + 5} ${x - 5},${y}` });
}

function short(edges) {
  return edges < 1000 ? String(edges) : edges < 1e6 ? `${edges / 1000}k` : `${edges / 1e6}M`;
}
