// Rows one by one on an axis, a lane for each class, with what each row was read from.

import { el, scheme, series } from "./common.js";
import { chart, label, mark, short, sized, stroke } from "./axes.js";

const LANE = 26;

/** A strip below a histogram, on the same axis; arrow keys step through the rows. */
export function stripPanel(view, { spread, scores }) {
  const { rows, classes } = view.model;
  const count = rows.classes.length;
  const svg = chart("Rows one by one; arrow keys step through them", (event) => step(event));
  let points = [];
  let now = null;

  function value(row) {
    const { layer } = view.state;
    const [low, high] = [scores.edges[2 * layer], scores.edges[2 * layer + 1]];
    return low + (scores.steps[layer * count + row] / 65535) * (high - low);
  }

  function draw({ left, right }) {
    const { layer } = view.state;
    const [low, high] = [spread.edges[2 * layer], spread.edges[2 * layer + 1]];
    const lanes = view.shown();
    sized(svg, right + 12, 20 + LANE * lanes.length);
    svg.append(label(left, 11, "row by row"));
    points = [];
    now = null;
    lanes.forEach((n, lane) => {
      const middle = 18 + LANE * (lane + 0.5);
      svg.append(stroke(left, middle, right, middle));
      let path = "";
      for (let row = 0; row < count; row += 1) {
        if (rows.classes[row] !== n) continue;
        const place = (value(row) - low) / (high - low);
        const x = left + Math.max(0, Math.min(1, place)) * (right - left);
        const y = middle + (((row * 7919) % 13) - 6); // so that equal ones can be told apart
        points.push({ row, x, y });
        path += mark(n, Math.round(x * 10) / 10, y, count > 600 ? 2 : 3.2);
      }
      svg.append(el("path", { class: "points", d: path, fill: series(n), "fill-opacity": 0.6 }));
    });
    points.sort((a, b) => a.x - b.x || a.row - b.row);
  }

  function cursor(aloud) {
    svg.querySelector(".cursor")?.remove();
    if (now === null) return view.hint.hide();
    const { row, x, y } = points[now];
    svg.append(el("circle", { class: "cursor", cx: x, cy: y, r: 7, fill: "none", stroke: scheme().ink, "stroke-width": 1.6 }));
    const words = [...(rows.texts ? [rows.texts[row]] : []),
      `${classes[rows.classes[row]].name}, row ${rows.numbers[row]}: ${short(value(row))}`];
    view.hintAt(svg, x, y, words);
    if (aloud) view.say(words.join(", "));
  }

  function step(event) {
    const moves = { ArrowRight: 1, ArrowLeft: -1, Home: -count, End: count };
    if (event.key === "Escape") now = null;
    else if (moves[event.key] && points.length) now = now === null ? 0 : Math.max(0, Math.min(points.length - 1,
      now + moves[event.key]));
    else return;
    event.preventDefault();
    cursor(true);
  }

  function nearest(event) {
    const box = svg.getBoundingClientRect();
    let [best, least] = [null, 400];
    points.forEach(({ x, y }, n) => {
      const far = (x - event.clientX + box.left) ** 2 + (y - event.clientY + box.top) ** 2;
      if (far < least) [best, least] = [n, far];
    });
    return best;
  }

  svg.addEventListener("pointermove", (event) => { now = nearest(event); cursor(false); });
  for (const leave of ["pointerleave", "blur"]) svg.addEventListener(leave, () => { now = null; cursor(false); });
  return { svg, draw };
}
