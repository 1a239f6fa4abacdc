// Heat maps: one or several, rows × columns of numbers, with one scale of colours.

import { announcer, el, exporters, hint, number, onScheme, svgCanvas, svgText, unpack } from "./common.js";
import { Panel, legend } from "./heatmap_panel.js";
import { choice, csv, fileName, resize, slider, toggle, within } from "./parts.js";

const LEGEND = 44;
const GAP = 20;

/** Brings heat maps to life. */
export async function mount(root, data, memory) {
  const values = await Promise.all(data.panels.map((spec) => unpack(spec.values)));
  const settings = { limit: data.full, least: 0, write: "nothing", swapped: false, profiles: false, size: 0 };
  const panels = data.panels.map((spec, n) => new Panel(spec, values[n], settings, data.panels.length > 1));
  new View(root, data, memory, settings, panels).start();
}

/** Everything that is seen: controls, board, cursor. */
class View {
  constructor(root, data, memory, settings, panels) {
    Object.assign(this, { root, data, memory, settings, panels, cell: null, locked: false, ready: false });
    this.svg = el("svg", { "aria-hidden": "true" });
    this.board = el(
      "div",
      { class: "plot", role: "application", tabindex: 0, "aria-label": this.#about() },
      ...panels.map((panel) => panel.canvas),
      this.svg,
    );
    this.scroller = el("div", { class: "wide" }, this.board);
    root.append(this.#controls(), this.scroller);
    this.hint = hint(root);
    this.announce = announcer(root);
  }

  #about() {
    const sizes = this.panels.map((panel) => `${panel.spec.rows.length} × ${panel.spec.columns.length}`).join(", ");
    return `Heat map, ${sizes}: ${this.data.title}. Arrow keys move from cell to cell, Enter locks a cell, Escape lets go.`;
  }

  start() {
    const { board } = this;
    board.addEventListener("pointermove", (event) => this.#hover(event));
    board.addEventListener("pointerleave", () => this.#leave());
    board.addEventListener("click", (event) => this.#click(event));
    board.addEventListener("keydown", (event) => this.#key(event));
    board.addEventListener("blur", () => this.#leave());
    onScheme(() => this.render());
    new ResizeObserver(() => {
      if (this.drawnFor !== this.root.clientWidth) this.render();
    }).observe(this.root);
    this.ready = true;
    this.#recall();
    this.render();
  }

  #recall() {
    const [panel, r, c] = String(this.memory.get("cell", "")).split(".").map(Number);
    const spec = this.panels[panel]?.spec;
    if (!spec || !(r >= 0 && r < spec.rows.length && c >= 0 && c < spec.columns.length)) return;
    const [row, column] = this.panels[panel].turned(r, c);
    this.cell = { panel, row, column };
    this.locked = true;
  }

  #controls() {
    const { memory, settings, data } = this;
    const cells = Math.max(...data.panels.map((spec) => spec.rows.length * spec.columns.length));
    const most = this.#most();
    const again = (change) => (value) => {
      change(value);
      if (this.ready) this.render();
    };
    const texts = data.panels.every((spec) => spec.texts);
    const options = ["nothing", "numbers", ...(texts ? ["texts"] : [])];
    const parts = [
      cells > 6000
        ? null
        : choice(memory, "write", "In cells", {
            options,
            value: texts ? "texts" : "nothing",
            change: again((value) => (settings.write = value)),
          }),
      slider(memory, "limit", "Full colour at", {
        least: 1,
        most: 100,
        value: this.#percent(most),
        shown: (value) =>
          `±${number(this.#limit(value, most))}`.slice(data.panels[0].sequential || data.panels[0].centre ? 1 : 0),
        change: again((value) => (settings.limit = this.#limit(value, most))),
      }),
      slider(memory, "least", "Hide below", {
        least: 0,
        most: 100,
        value: 0,
        shown: (value) => number((most * value) / 100),
        change: again((value) => (settings.least = (most * value) / 100)),
      }),
      toggle(memory, "profiles", "Profiles", { value: false, change: again((value) => (settings.profiles = value)) }),
      toggle(memory, "swap", "Swap axes", { value: false, change: again((value) => this.#swap(value)) }),
      cells > 600
        ? slider(memory, "size", "Cell size", {
            least: 0,
            most: 60,
            value: 0,
            shown: (value) => (value ? `${value} px` : "fits"),
            change: again((value) => (settings.size = value && Math.max(3, value))),
          })
        : null,
      exporters(fileName(data.title), {
        svg: () => this.#file(),
        png: () => this.#canvas(),
        json: () => this.#json(),
        csv: () => this.#csv(),
      }),
    ];
    return el("div", { class: "controls" }, ...parts);
  }

  /** The magnitude farthest from the centre, or that of full colour if it is larger. */
  #most() {
    let most = this.data.full;
    for (const { values, spec } of this.panels) {
      for (const value of values) if (Number.isFinite(value)) most = Math.max(most, Math.abs(value - spec.centre));
    }
    return most;
  }

  #limit(percent, most) {
    return percent === this.#percent(most) ? this.data.full : (most * percent) / 100;
  }

  /** Where the slider of full colour stands at first. */
  #percent(most) {
    return Math.max(1, Math.min(100, Math.round((100 * this.data.full) / most)));
  }

  #swap(swapped) {
    if (this.settings.swapped === swapped) return;
    this.settings.swapped = swapped;
    if (this.cell) [this.cell.row, this.cell.column] = [this.cell.column, this.cell.row];
  }

  /** Draws everything anew. */
  render() {
    const room = Math.max(240, this.root.clientWidth);
    this.drawnFor = this.root.clientWidth;
    this.#measure(room);
    const groups = [];
    let [x, y, high, width] = [0, 0, 0, 0];
    for (const panel of this.panels) {
      if (x && !this.together) [x, y, high] = [0, y + high + GAP, 0];
      groups.push(panel.draw(x, y));
      x += panel.width + GAP;
      high = Math.max(high, panel.height);
      width = Math.max(width, x - GAP);
    }
    this.low = y + high + 18;
    this.scale = el("g", {});
    const height = y + high + LEGEND;
    const most = Math.max(width, this.panels[0].left + 420);
    resize(this.svg, most, height);
    this.board.setAttribute("style", `width: ${most}px; height: ${height}px`);
    this.svg.replaceChildren(...groups, this.scale);
    this.#point();
    if (this.cell && this.locked) this.#show();
  }

  /** Finds cells of one size for all: beside each other if there is room, else below each other. */
  #measure(room) {
    const { panels } = this;
    const labels = panels.map((panel) => panel.rows.join("\u0000"));
    panels.forEach((panel, n) => panel.measure(room, n > 0 && labels[n] === labels[n - 1]));
    const taken = panels.reduce((sum, panel) => sum + panel.beside + GAP, -GAP);
    const free = Math.floor((room - taken) / panels.reduce((sum, panel) => sum + panel.columns.length, 0));
    this.together = panels.length === 1 || free >= Math.max(...panels.map((panel) => panel.least));
    if (panels.length === 1) return;
    if (!this.together) panels.forEach((panel) => panel.measure(room));
    const most = Math.max(...panels.map((panel) => panel.wanted));
    const each = this.together ? Math.min(free, most) : Math.min(...panels.map((panel) => panel.cellWidth));
    panels.forEach((panel) => panel.measure(room, panel.bare, each));
  }

  #hover(event) {
    if (this.locked) return;
    const found = this.#find(event);
    if (!found) {
      this.#leave();
    } else if (!this.#isHere(found)) {
      this.cell = found;
      this.#point();
      this.#show();
    }
  }

  #find(event) {
    const { x, y } = within(event, this.board);
    for (const [panel, candidate] of this.panels.entries()) {
      const cell = candidate.cellAt(x, y);
      if (cell) return { panel, ...cell };
    }
    return null;
  }

  #leave() {
    if (this.locked) return;
    this.cell = null;
    this.hint.hide();
    this.#point();
  }

  #click(event) {
    const found = this.#find(event);
    this.#lock(found && !(this.locked && this.#isHere(found)) ? found : null);
  }

  /** Whether the cursor is on this cell. */
  #isHere({ panel, row, column }) {
    return this.cell !== null && panel === this.cell.panel && row === this.cell.row && column === this.cell.column;
  }

  #lock(cell) {
    this.locked = cell !== null;
    this.cell = cell;
    if (cell) {
      const [r, c] = this.panels[cell.panel].turned(cell.row, cell.column);
      this.memory.set("cell", `${cell.panel}.${r}.${c}`);
      this.#show();
    } else {
      this.memory.set("cell", null);
      this.hint.hide();
    }
    this.#point();
  }

  #key(event) {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const from = this.cell ?? this.#strongest();
    const panel = this.panels[from.panel];
    let to = null;
    if (moves[event.key]) to = this.cell ? this.#moved(from, ...moves[event.key]) : from;
    else if (event.key === "Home") to = { ...from, column: 0 };
    else if (event.key === "End") to = { ...from, column: panel.columns.length - 1 };
    else if (event.key === "PageUp" || event.key === "PageDown") to = this.#beside(from, event.key === "PageUp" ? -1 : 1);
    else if (event.key === "Enter" || event.key === " ") to = from;
    else if (event.key === "Escape") this.#lock(null);
    else return;
    event.preventDefault();
    if (!to) return;
    if (this.locked || event.key === "Enter" || event.key === " ") this.#lock(to);
    else {
      this.cell = to;
      this.#point();
      this.#show();
    }
    this.announce(this.panels[to.panel].words(to.row, to.column).join(". "));
  }

  #moved(from, down, right) {
    const panel = this.panels[from.panel];
    const row = Math.min(panel.rows.length - 1, Math.max(0, from.row + down));
    const column = from.column + right;
    if (column >= 0 && column < panel.columns.length) return { ...from, row, column };
    const next = this.#beside(from, right);
    return next.panel === from.panel ? from : { ...next, column: right > 0 ? 0 : this.panels[next.panel].columns.length - 1 };
  }

  #beside(from, step) {
    const panel = Math.min(this.panels.length - 1, Math.max(0, from.panel + step));
    const { rows, columns } = this.panels[panel];
    return { panel, row: Math.min(from.row, rows.length - 1), column: Math.min(from.column, columns.length - 1) };
  }

  #strongest() {
    let best = { panel: 0, row: 0, column: 0, size: -1 };
    this.panels.forEach((panel, number) =>
      panel.values.forEach((value, n) => {
        const size = Math.abs(panel.share(value));
        if (!(size > best.size)) return;
        const [row, column] = panel.turned(Math.floor(n / panel.spec.columns.length), n % panel.spec.columns.length);
        best = { panel: number, row, column, size };
      }),
    );
    return { panel: best.panel, row: best.row, column: best.column };
  }

  /** Outlines the cell, in every heat map of the same size. */
  #point() {
    const here = this.cell && this.panels[this.cell.panel];
    for (const panel of this.panels) {
      const same = here && panel.rows.length === here.rows.length && panel.columns.length === here.columns.length;
      panel.point(same || panel === here ? this.cell : null, this.locked);
    }
    const value = here ? here.value(this.cell.row, this.cell.column) : NaN;
    this.scale.replaceChildren(...legend(this.panels[0].spec, this.settings.limit, this.panels[0].left, this.low, value));
  }

  #show() {
    const panel = this.panels[this.cell.panel];
    const corner = panel.corner(this.cell.row, this.cell.column);
    const [board, root] = [this.board.getBoundingClientRect(), this.root.getBoundingClientRect()];
    const [x, y] = [corner.x + board.left - root.left - 10, corner.y + board.top - root.top - 10];
    this.hint.show(x, y, panel.words(this.cell.row, this.cell.column));
  }

  /** The board with its cells, as one SVG element in the page, for as long as `use` needs it. */
  async #whole(use) {
    const images = this.panels.map((panel) => panel.image());
    this.svg.prepend(...images);
    try {
      return await use(this.svg);
    } finally {
      images.forEach((image) => image.remove());
    }
  }

  #file() {
    return this.#whole(svgText);
  }

  #canvas() {
    return this.#whole(svgCanvas);
  }

  #json() {
    const panels = this.panels.map(({ spec, values }) => ({
      title: spec.title,
      row_name: spec.rowName,
      column_name: spec.columnName,
      rows: spec.rows,
      columns: spec.columns,
      values: spec.rows.map((_, r) => Array.from(values.slice(r * spec.columns.length, (r + 1) * spec.columns.length))),
      notes: spec.notes,
      texts: spec.texts,
    }));
    return JSON.stringify({ title: this.data.title, panels }, null, 1);
  }

  #csv() {
    const rows = [["map", "row", "column", "value", "text", "note"]];
    for (const { spec, values } of this.panels) {
      spec.rows.forEach((row, r) =>
        spec.columns.forEach((column, c) =>
          rows.push([
            spec.title,
            row,
            column,
            values[r * spec.columns.length + c],
            spec.texts?.[r][c] ?? "",
            spec.notes?.[r][c] ?? "",
          ]),
        ),
      );
    }
    return csv(rows);
  }
}
