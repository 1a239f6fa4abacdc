// Line charts with intervals.

import { announcer, el, exporters, hint, onScheme, scheme, series, svgCanvas, svgText } from "./common.js";
import { csv, fileName, fitting, resize, thinned, toggle, widthOf, within } from "./parts.js";

const HIGH = 340;
const TOP = 26;
const FOOT = 44;
const APART = 15;
const BESIDE = 12; // as in lines.py
const INK = "12px system-ui, sans-serif";

/** Brings a line chart to life. */
export function mount(root, data, memory) {
  new Chart(root, data, memory).start();
}

/** Everything that is seen: a legend to choose lines from, the chart, a cursor over it. */
class Chart {
  constructor(root, data, memory) {
    Object.assign(this, { root, data, memory, point: null, locked: false, log: data.log, bands: true });
    const hidden = String(memory.get("hidden", "")).split(",").filter(Boolean).map(Number);
    this.hidden = new Set(hidden.filter((n) => n >= 0 && n < data.series.length));
    this.svg = el("svg", { "aria-hidden": "true" });
    const about = `Line chart: ${data.title}. Arrow keys move from point to point, Enter locks a point, Escape lets go.`;
    this.board = el("div", { class: "plot", role: "application", tabindex: 0, "aria-label": about }, this.svg);
    root.append(this.#controls(), el("div", { class: "wide" }, this.board));
    this.hint = hint(root);
    this.announce = announcer(root);
  }

  start() {
    const { board, memory } = this;
    board.addEventListener("pointermove", (event) => this.#hover(event));
    board.addEventListener("pointerleave", () => this.#leave());
    board.addEventListener("blur", () => this.#leave());
    board.addEventListener("click", (event) => this.#click(event));
    board.addEventListener("keydown", (event) => this.#key(event));
    onScheme(() => this.render());
    new ResizeObserver(() => {
      if (this.drawnFor !== this.root.clientWidth) this.render();
    }).observe(this.root);
    const at = memory.get("point", null);
    if (at !== null && this.data.x[Number(at)] !== undefined) [this.point, this.locked] = [Number(at), true];
    this.ready = true;
    this.render();
  }

  #controls() {
    const { data, memory } = this;
    const again = (change) => (value) => {
      change(value);
      if (this.ready) this.render();
    };
    this.legend = data.series.map((line, n) =>
      el(
        "button",
        { type: "button", "aria-pressed": String(!this.hidden.has(n)), onclick: () => this.#switch(n) },
        this.#swatch(n),
        el("bdi", {}, fitting(line.name, 220, INK)),
      ),
    );
    const banded = data.series.some((line) => line.low);
    return el(
      "div",
      { class: "controls" },
      data.series.length > 1 ? el("span", { class: "legend", role: "group", "aria-label": "Lines" }, ...this.legend) : null,
      banded ? toggle(memory, "bands", "Intervals", { value: true, change: again((value) => (this.bands = value)) }) : null,
      data.xTicks.log
        ? toggle(memory, "log", "Logarithmic", { value: data.log, change: again((value) => (this.log = value)) })
        : null,
      exporters(fileName(data.title), {
        svg: () => svgText(this.svg),
        png: () => svgCanvas(this.svg),
        json: () => this.#json(),
        csv: () => this.#csv(),
      }),
    );
  }

  #swatch(n) {
    const { dash } = this.data.series[n];
    return el(
      "svg",
      { width: 22, height: 8, "aria-hidden": "true", class: "swatch" },
      el("path", {
        d: "M1 4h20",
        style: `stroke: ${series(this.data.series[n].colour)}; stroke-width: 2.5; stroke-dasharray: ${dash.join(" ") || "none"}`,
      }),
    );
  }

  #switch(n) {
    if (this.hidden.has(n)) this.hidden.delete(n);
    else this.hidden.add(n);
    this.legend[n].setAttribute("aria-pressed", String(!this.hidden.has(n)));
    this.memory.set("hidden", [...this.hidden].sort((a, b) => a - b).join(","));
    this.render();
  }

  // --- places --------------------------------------------------------------------------------------------

  #shown() {
    return this.data.series.map((line, n) => ({ ...line, n })).filter((line) => !this.hidden.has(line.n));
  }

  #x(value) {
    const { x } = this.data;
    const [first, last] = [x[0], x[x.length - 1]];
    if (first === last) return this.left + this.wide / 2;
    if (this.data.beside) return this.left + (this.wide * (value - first + 0.5)) / x.length;
    const share = this.log ? Math.log(value / first) / Math.log(last / first) : (value - first) / (last - first);
    return this.left + this.wide * share;
  }

  /** The place of a point: those of one name may lie side by side, in the order of the lines that are shown. */
  #at(n, line) {
    const x = this.#x(this.data.x[n]);
    if (!this.data.beside) return x;
    const shown = this.#shown().map((other) => other.n);
    const apart = Math.min(BESIDE, (0.7 * this.wide) / this.data.x.length / shown.length);
    return x + apart * (shown.indexOf(line.n) - (shown.length - 1) / 2);
  }

  #y(value) {
    const ticks = this.data.yTicks;
    const [low, high] = [ticks[0][0], ticks[ticks.length - 1][0]];
    return TOP + HIGH * (1 - (Math.min(high, Math.max(low, value)) - low) / (high - low));
  }

  // --- drawing -------------------------------------------------------------------------------------------

  /** Draws everything anew. */
  render() {
    const { data } = this;
    this.drawnFor = this.root.clientWidth;
    const room = Math.max(320, Math.min(1000, this.root.clientWidth));
    const shown = this.#shown();
    this.left = Math.ceil(Math.max(...data.yTicks.map(([, text]) => widthOf(text))) + 16);
    const names = [...shown.map((line) => line.name), ...data.references.map(([name]) => name)];
    const beside = Math.min(room < 700 ? 130 : 220, Math.max(40, ...names.map((name) => widthOf(name, INK))));
    this.beside = beside;
    this.wide = room - this.left - beside - 26;
    const height = TOP + HIGH + FOOT;
    resize(this.svg, room, height);
    this.board.setAttribute("style", `width: ${room}px; height: ${height}px`);
    this.over = el("g", {});
    const bands = this.bands ? shown.filter((line) => line.low).map((line) => this.#band(line)) : [];
    this.svg.replaceChildren(
      ...this.#axes(),
      ...bands,
      ...shown.map((line) => this.#line(line)),
      ...shown.flatMap((line) => this.#dots(line)),
      ...this.#names(shown),
      this.over,
    );
    for (const [n, button] of this.legend.entries()) button.replaceChild(this.#swatch(n), button.firstChild);
    this.#point();
    if (this.point !== null && this.locked) this.#show();
  }

  #axes() {
    const { data } = this;
    const bottom = TOP + HIGH;
    const parts = [el("text", { x: 0, y: 12 }, data.yName)];
    for (const [value, text] of data.yTicks) {
      const y = this.#y(value);
      parts.push(
        el("path", { class: "axis", d: `M${this.left} ${y}h${this.wide}` }),
        el("text", { x: this.left - 8, y: y + 4, "text-anchor": "end" }, text),
      );
    }
    for (const [, value] of data.references) {
      parts.push(el("path", { class: "reference", d: `M${this.left} ${this.#y(value)}h${this.wide}` }));
    }
    const ticks = this.log ? data.xTicks.log : data.xTicks.linear;
    const widest = Math.max(...ticks.map(([, text]) => Math.min(80, widthOf(text)))) + 10;
    const each = ticks.length > 1 ? this.wide / (ticks.length - 1) : this.wide;
    for (const n of thinned(ticks.length, widest / each)) {
      const [value, text] = ticks[n];
      const x = this.#x(value);
      parts.push(
        el("path", { class: "axis", d: `M${x} ${bottom}v4` }),
        el("text", { x, y: bottom + 18, "text-anchor": "middle" }, fitting(text, Math.max(80, each - 8))),
      );
    }
    parts.push(el("text", { x: this.left + this.wide / 2, y: bottom + 38, "text-anchor": "middle" }, data.xName));
    return parts;
  }

  /** Stretches of points that are all there. */
  #runs(line, there) {
    const runs = [];
    line.y.forEach((_, n) => {
      if (!there(n)) return;
      if (n && there(n - 1) && runs.length) runs[runs.length - 1].push(n);
      else runs.push([n]);
    });
    return runs;
  }

  #band(line) {
    const runs = this.#runs(line, (n) => line.y[n] !== null && line.low[n] !== null && line.high[n] !== null);
    const edge = (run, ends) => run.map((n) => `${this.#at(n, line)} ${this.#y(ends[n])}`).join("L");
    const alone = line.joined ? runs.filter((run) => run.length === 1) : runs.flat().map((n) => [n]);
    const area = (run) => `M${edge(run, line.high)}L${edge([...run].reverse(), line.low)}Z`;
    const areas = runs
      .filter((run) => line.joined && run.length > 1)
      .map(area)
      .join("");
    const single = alone.map((run) => `M${edge(run, line.high)}L${edge(run, line.low)}`).join("");
    const fill = series(line.colour);
    return el(
      "g",
      { class: "band" },
      el("path", { d: areas, style: `fill: ${fill}; opacity: 0.16` }),
      el("path", { d: single, style: `stroke: ${fill}; stroke-width: 2; opacity: 0.6` }),
    );
  }

  #line(line) {
    const runs = line.joined ? this.#runs(line, (n) => line.y[n] !== null) : [];
    const place = (n) => `${this.#at(n, line)} ${this.#y(line.y[n])}`;
    const strokes = runs.map((run) => `M${run.map(place).join("L")}`).join("");
    return el("path", {
      class: "stroke",
      d: strokes,
      style: `stroke: ${series(line.colour)}; stroke-width: 2; stroke-dasharray: ${line.dash.join(" ") || "none"}; fill: none`,
    });
  }

  #dots(line) {
    const { x, marked } = this.data;
    const radius = x.length <= 60 ? 3 : 1.5;
    const style = `fill: ${series(line.colour)}`;
    const dots = line.y.map((y, n) =>
      y === null ? null : el("circle", { class: "dot", cx: this.#at(n, line), cy: this.#y(y), r: radius, style }),
    );
    const rings = marked
      .filter(([n, at]) => n === line.n && line.y[at] !== null)
      .map(([, at]) => el("circle", { class: "ring", cx: this.#at(at, line), cy: this.#y(line.y[at]), r: 7 }));
    return [...dots.filter(Boolean), ...rings];
  }

  #names(shown) {
    const ends = this.data.references.map(([name, value]) => ({ name, y: this.#y(value), colour: scheme().soft, dash: [4, 4] }));
    for (const line of shown) {
      const known = line.y.filter((y) => y !== null);
      if (known.length)
        ends.push({
          name: line.name,
          y: this.#y(known[known.length - 1]),
          colour: series(line.colour),
          dash: line.dash,
          ink: true,
        });
    }
    ends.sort((a, b) => a.y - b.y);
    const places = spread(
      ends.map((end) => end.y),
      APART,
      TOP - 4,
      TOP + HIGH,
    );
    const right = this.left + this.wide;
    return ends.flatMap((end, n) => [
      el("path", { d: `M${right + 3} ${end.y}L${right + 10} ${places[n]}`, style: `stroke: ${scheme().line}; fill: none` }),
      el("path", { d: `M${right + 11} ${places[n]}h8`, style: `stroke: ${end.colour}; stroke-width: 2.5; fill: none` }),
      el("text", { x: right + 23, y: places[n] + 4, class: end.ink ? "ink" : null }, fitting(end.name, this.beside, INK)),
    ]);
  }

  // --- the cursor ----------------------------------------------------------------------------------------

  #nearest(event) {
    const { x } = within(event, this.board);
    let [best, least] = [0, Infinity];
    this.data.x.forEach((value, n) => {
      const distance = Math.abs(this.#x(value) - x);
      if (distance < least) [best, least] = [n, distance];
    });
    return best;
  }

  #hover(event) {
    if (this.locked) return;
    this.#move(this.#nearest(event));
  }

  #move(point) {
    if (point === this.point) return;
    this.point = point;
    this.#point();
    this.#show();
  }

  #leave() {
    if (this.locked) return;
    this.point = null;
    this.hint.hide();
    this.#point();
  }

  #click(event) {
    const point = this.#nearest(event);
    this.#lock(this.locked && point === this.point ? null : point);
  }

  #lock(point) {
    [this.point, this.locked] = [point, point !== null];
    this.memory.set("point", point);
    this.#point();
    if (point === null) this.hint.hide();
    else this.#show();
  }

  #key(event) {
    const last = this.data.x.length - 1;
    const from = this.point ?? -1;
    const moves = { ArrowLeft: Math.max(0, from - 1), ArrowRight: Math.min(last, from + 1), Home: 0, End: last };
    if (event.key === "Escape") this.#lock(null);
    else if (event.key === "Enter" || event.key === " ") this.#lock(Math.max(0, from));
    else if (event.key in moves && this.locked) this.#lock(moves[event.key]);
    else if (event.key in moves) this.#move(moves[event.key]);
    else return;
    event.preventDefault();
    if (this.point !== null) this.announce(this.#words().join(". "));
  }

  #words() {
    const { data, point } = this;
    return [`${data.xName} ${data.xTexts[point]}`.trim(), ...this.#shown().map((line) => `${line.name}: ${line.words[point]}`)];
  }

  #point() {
    const { point } = this;
    if (point === null) {
      this.over.replaceChildren();
      return;
    }
    const x = this.#x(this.data.x[point]);
    const dots = this.#shown()
      .filter((line) => line.y[point] !== null)
      .map((line) =>
        el("circle", {
          cx: this.#at(point, line),
          cy: this.#y(line.y[point]),
          r: 5,
          style: `fill: ${series(line.colour)}; stroke: ${scheme().paper}; stroke-width: 1.5`,
        }),
      );
    this.over.replaceChildren(
      el("path", { class: this.locked ? "cursor locked" : "cursor", d: `M${x} ${TOP}v${HIGH}` }),
      ...dots,
    );
  }

  #show() {
    const [board, root] = [this.board.getBoundingClientRect(), this.root.getBoundingClientRect()];
    const first = this.#shown().find((line) => line.y[this.point] !== null);
    const y = first ? this.#y(first.y[this.point]) : TOP;
    this.hint.show(
      this.#x(this.data.x[this.point]) + board.left - root.left,
      Math.min(y, TOP + HIGH - 60) + board.top - root.top,
      this.#words(),
    );
  }

  // --- files ---------------------------------------------------------------------------------------------

  #json() {
    const { title, x, xTexts, xName, yName, references, series: lines } = this.data;
    const plain = lines.map(({ name, y, low, high }) => ({ name, y, low, high }));
    return JSON.stringify({ title, x_name: xName, y_name: yName, x, x_labels: xTexts, references, series: plain }, null, 1);
  }

  #csv() {
    const row = ({ name, y, low, high }, n) => [name, this.data.xTexts[n], ...[y, low, high].map((part) => part?.[n] ?? "")];
    const rows = this.data.series.flatMap((line) => line.y.map((_, n) => row(line, n)));
    return csv([["series", this.data.xName || "x", this.data.yName || "y", "low", "high"], ...rows]);
  }
}

/** Sorted heights moved to be so far apart, between top and bottom while there is room. */
function spread(heights, apart, top, bottom) {
  const groups = [];
  for (const height of heights) {
    groups.push({ wanted: height, count: 1, place: height });
    while (groups.length > 1 && groups.at(-2).place + groups.at(-2).count * apart > groups.at(-1).place) {
      const last = groups.pop();
      const before = groups.at(-1);
      before.wanted += last.wanted - last.count * before.count * apart;
      before.count += last.count;
      before.place = before.wanted / before.count;
    }
  }
  const found = groups.flatMap((group) => Array.from({ length: group.count }, (_, n) => group.place + n * apart));
  for (let n = found.length - 1; n >= 0; n -= 1) found[n] = Math.min(found[n], bottom - (found.length - 1 - n) * apart);
  return found.map((place, n) => Math.max(place, top + n * apart));
}
