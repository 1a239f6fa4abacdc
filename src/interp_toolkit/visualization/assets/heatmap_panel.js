// One heat map of a view: where its cells and labels are, and how they are drawn.

import { colour, el, mix, number, paint, scheme } from "./common.js";
import { compact, fitting, inkOn, thinned, widthOf } from "./parts.js";

const HEAD = 34;
const ROOM = 190;
const BOLD = "600 12px system-ui, sans-serif";
const PLAIN = "12px system-ui, sans-serif";
const PROFILE = 56;
const AUTOMATIC = { width: 26, height: 24, high: 680 };

/** A heat map with its settings: `swapped`, `write`, `limit`, `least`, `profiles` and `size`. */
export class Panel {
  constructor(spec, values, settings, several) {
    Object.assign(this, { spec, values, settings, several, canvas: el("canvas", {}) });
  }

  get rows() {
    return this.settings.swapped ? this.spec.columns : this.spec.rows;
  }

  get columns() {
    return this.settings.swapped ? this.spec.rows : this.spec.columns;
  }

  get rowName() {
    return this.settings.swapped ? this.spec.columnName : this.spec.rowName;
  }

  get columnName() {
    return this.settings.swapped ? this.spec.rowName : this.spec.columnName;
  }

  /** Row and column of the data, for row and column as they are shown; it is its own inverse. */
  turned(row, column) {
    return this.settings.swapped ? [column, row] : [row, column];
  }

  value(row, column) {
    const [r, c] = this.turned(row, column);
    return this.values[r * this.spec.columns.length + c];
  }

  /** How far a value is from the centre, as a share of what has full colour. */
  share(value) {
    const distance = value - this.spec.centre;
    return (this.spec.sequential ? Math.max(0, distance) : distance) / this.settings.limit;
  }

  written(row, column) {
    const [r, c] = this.turned(row, column);
    if (this.settings.write === "texts") return this.spec.texts[r][c];
    const value = this.value(row, column);
    return this.settings.write === "numbers" && !Number.isNaN(value) ? compact(value, this.settings.limit) : "";
  }

  /** What a cell says. */
  words(row, column) {
    const [r, c] = this.turned(row, column);
    const names = [`${this.rowName} ${this.rows[row]}`, `${this.columnName} ${this.columns[column]}`].map((name) => name.trim());
    const place = names.filter(Boolean).join(", ");
    const text = this.spec.texts?.[r][c];
    const note = this.spec.notes?.[r][c];
    return [
      this.several ? this.spec.title : null,
      text,
      `${place}: ${number(this.value(row, column))}`,
      ...(note ? note.split("\n") : []),
    ].filter(Boolean);
  }

  /** Finds its size in so much room, and the size of its cells; a bare one has the rows of its neighbour. */
  measure(room, bare = false, cellWidth = 0) {
    const { size, write, profiles } = this.settings;
    const tags = this.rows.slice(0, 2000).map((label) => Math.min(ROOM, widthOf(label, BOLD)));
    this.bare = bare;
    this.left = bare ? 4 : Math.ceil(Math.max(...tags, widthOf(this.rowName)) + 16);
    this.profile = profiles ? PROFILE : 0;
    const across = Math.max(...this.columns.slice(0, 2000).map((label) => Math.min(64, widthOf(label, BOLD)))) + 8;
    const written = write === "nothing" ? 0 : this.#widest() + 8;
    const wanted = Math.max(AUTOMATIC.width, across, written);
    const least = write === "nothing" ? 6 : Math.min(written, 64);
    this.wanted = wanted;
    const free = Math.floor((room - this.left - this.profile - 4) / this.columns.length);
    this.least = size || Math.max(least, 8);
    this.cellWidth = size || cellWidth || Math.max(least, Math.min(wanted, free));
    const high = Math.floor(AUTOMATIC.high / this.rows.length);
    this.cellHeight = size ? Math.min(size, 40) : Math.max(write === "nothing" ? 6 : 20, Math.min(AUTOMATIC.height, high));
    if (size && write !== "nothing") this.cellHeight = Math.max(16, this.cellHeight);
    this.top = HEAD + (this.several ? 22 : 0);
    this.needed = across;
    this.inner = { width: this.cellWidth * this.columns.length, height: this.cellHeight * this.rows.length };
    this.beside = this.left + this.profile + 12;
    this.width = this.beside + this.inner.width;
    this.height = this.top + this.inner.height + this.profile + 8;
  }

  #widest() {
    let widest = 0;
    const total = this.rows.length * this.columns.length;
    const step = Math.max(1, Math.floor(total / 3000));
    for (let n = 0; n < total; n += step) {
      widest = Math.max(widest, widthOf(this.written(Math.floor(n / this.columns.length), n % this.columns.length)));
    }
    return Math.min(widest, this.settings.write === "texts" ? 84 : 60);
  }

  /** Paints the cells, and returns everything else as SVG, at this place of the board. */
  draw(x, y) {
    Object.assign(this, { x, y });
    const { rows, columns, settings } = this;
    const shares = new Float32Array(rows.length * columns.length);
    for (let r = 0; r < rows.length; r += 1) {
      for (let c = 0; c < columns.length; c += 1) {
        const value = this.value(r, c);
        const hidden = Math.abs(value - this.spec.centre) < settings.least;
        shares[r * columns.length + c] = hidden ? 0 : this.share(value);
      }
    }
    paint(this.canvas, shares, rows.length, columns.length);
    const { left, top, inner } = this;
    this.canvas.setAttribute(
      "style",
      `left: ${x + left}px; top: ${y + top}px; width: ${inner.width}px; height: ${inner.height}px`,
    );
    this.over = el("g", {});
    return el(
      "g",
      { transform: `translate(${x} ${y})` },
      ...this.#names(),
      this.#lines(),
      this.#missing(),
      ...this.#cellTexts(shares),
      ...this.#marks(),
      this.over,
    );
  }

  #names() {
    const { left, top, cellWidth, cellHeight } = this;
    const names = [
      this.several
        ? el("text", { x: left, y: 14, class: "head" }, fitting(this.spec.title, Math.max(120, this.inner.width), BOLD))
        : null,
      el("text", { x: left, y: top - 23 }, this.columnName),
      this.bare ? null : el("text", { x: left - 8, y: top - 9, "text-anchor": "end" }, fitting(this.rowName, left - 8)),
    ];
    for (const n of thinned(this.columns.length, Math.min(this.needed, 72) / cellWidth)) {
      const x = left + cellWidth * (n + 0.5);
      names.push(el("text", { x, y: top - 9, "text-anchor": "middle" }, fitting(this.columns[n], Math.max(64, cellWidth - 6))));
    }
    for (const n of this.bare ? [] : thinned(this.rows.length, 13 / cellHeight)) {
      const y = top + cellHeight * (n + 0.5) + 4;
      names.push(el("text", { x: left - 8, y, "text-anchor": "end", class: "ink" }, fitting(this.rows[n], ROOM, PLAIN)));
    }
    return names.filter(Boolean);
  }

  #lines() {
    const { left, top, inner, cellWidth, cellHeight } = this;
    let strokes = "";
    if (cellWidth >= 10)
      for (let c = 1; c < this.columns.length; c += 1) strokes += `M${left + c * cellWidth - 0.5} ${top}v${inner.height}`;
    if (cellHeight >= 10)
      for (let r = 1; r < this.rows.length; r += 1) strokes += `M${left} ${top + r * cellHeight - 0.5}h${inner.width}`;
    return el("path", { d: strokes, class: "gap" });
  }

  #missing() {
    const { left, top, cellWidth, cellHeight } = this;
    const inset = Math.min(4, cellWidth / 4, cellHeight / 4);
    const [w, h] = [cellWidth - 1 - 2 * inset, cellHeight - 1 - 2 * inset];
    let strokes = "";
    for (let r = 0; r < this.rows.length; r += 1) {
      for (let c = 0; c < this.columns.length && strokes.length < 200000; c += 1) {
        if (!Number.isNaN(this.value(r, c))) continue;
        const [x, y] = [left + c * cellWidth + inset, top + r * cellHeight + inset];
        strokes += `M${x} ${y}l${w} ${h}M${x} ${y + h}l${w} ${-h}`;
      }
    }
    return el("path", { d: strokes, class: "crosses" });
  }

  #cellTexts(shares) {
    const { left, top, cellWidth, cellHeight, settings } = this;
    if (settings.write === "nothing" || shares.length > 6000) return [];
    const colours = scheme();
    return Array.from(shares, (share, n) => {
      const [r, c] = [Math.floor(n / this.columns.length), n % this.columns.length];
      const text = fitting(this.written(r, c), cellWidth - 4);
      const fill = Number.isNaN(share) ? colours.ink : inkOn(mix(share, colours), colours);
      return el(
        "text",
        {
          x: left + cellWidth * (c + 0.5) - 0.5,
          y: top + cellHeight * (r + 0.5) + 4,
          "text-anchor": "middle",
          style: `fill: ${fill}`,
        },
        text,
      );
    });
  }

  #box(row, column, kind) {
    const { left, top, cellWidth, cellHeight } = this;
    return el("rect", {
      class: kind,
      x: left + column * cellWidth,
      y: top + row * cellHeight,
      width: cellWidth - 1,
      height: cellHeight - 1,
    });
  }

  #marks() {
    return this.spec.marked.map(([r, c]) => this.#box(...this.turned(r, c), "outline"));
  }

  /** The cell at a place of the board, or null. */
  cellAt(x, y) {
    const column = Math.floor((x - this.x - this.left) / this.cellWidth);
    const row = Math.floor((y - this.y - this.top) / this.cellHeight);
    const inside = row >= 0 && row < this.rows.length && column >= 0 && column < this.columns.length;
    return inside ? { row, column } : null;
  }

  /** The lower right corner of a cell, on the board. */
  corner(row, column) {
    return { x: this.x + this.left + this.cellWidth * (column + 1), y: this.y + this.top + this.cellHeight * (row + 1) };
  }

  /** Shows a cell with its row and column, or none. */
  point(cell, locked) {
    const parts = [];
    if (cell) {
      parts.push(...this.#tags(cell), this.#box(cell.row, cell.column, locked ? "cursor locked" : "cursor"));
    }
    if (this.profile) parts.push(...this.#profiles(cell));
    this.over.replaceChildren(...parts);
  }

  #tags({ row, column }) {
    const { left, top, cellWidth, cellHeight } = this;
    const label = fitting(this.columns[column], 120, BOLD);
    const wide = widthOf(label, BOLD) + 8;
    const x = Math.max(wide / 2, Math.min(left + cellWidth * (column + 0.5), this.width - wide / 2));
    const y = top + cellHeight * (row + 0.5);
    return [
      el("rect", { class: "plate", x: x - wide / 2, y: top - 21, width: wide, height: 17 }),
      el("text", { class: "head", x, y: top - 9, "text-anchor": "middle" }, label),
      ...(this.bare ? [] : this.#rowTag(row, y)),
    ];
  }

  #rowTag(row, y) {
    const { left } = this;
    return [
      el("rect", { class: "plate", x: 0, y: y - 8, width: left - 4, height: 16 }),
      el("text", { class: "head", x: left - 8, y: y + 4, "text-anchor": "end" }, fitting(this.rows[row], ROOM, BOLD)),
    ];
  }

  /** Bars of the cell's row below, and of its column on the right; means of magnitudes where there is no cell. */
  #profiles(cell) {
    const { left, top, inner, cellWidth, cellHeight } = this;
    const { centre } = this.spec;
    const mean = {
      down: (c) => this.#mean(this.rows, (r) => this.value(r, c)),
      across: (r) => this.#mean(this.columns, (c) => this.value(r, c)),
    };
    const across = this.columns.map((_, c) => (cell ? this.value(cell.row, c) - centre : mean.down(c)));
    const down = this.rows.map((_, r) => (cell ? this.value(r, cell.column) - centre : mean.across(r)));
    const finite = [...across, ...down].filter(Number.isFinite);
    const most = Math.max(1e-30, ...finite.map(Math.abs));
    const signed = finite.some((value) => value < 0);
    const [length, base] = signed ? [(PROFILE - 20) / 2, 4 + (PROFILE - 20) / 2] : [PROFILE - 20, 4];
    const bars = { up: "", down: "" };
    const bar = (value, lengthwise) => {
      if (Number.isFinite(value) && value !== 0) bars[value > 0 ? "up" : "down"] += lengthwise((value / most) * length);
    };
    const [y0, x0] = [top + inner.height + (signed ? base : PROFILE - 16), left + inner.width + base];
    const [wide, high] = [Math.max(1, cellWidth - 2), Math.max(1, cellHeight - 2)];
    across.forEach((value, c) => bar(value, (l) => `M${left + c * cellWidth + 0.5} ${y0}h${wide}v${-l}h${-wide}z`));
    down.forEach((value, r) => bar(value, (l) => `M${x0} ${top + r * cellHeight + 0.5}h${l}v${high}h${-l}z`));
    const told = cell ? "this row" : "mean magnitudes";
    const beside = cell ? "column" : "means";
    return [
      el("path", { class: "bar-up", d: bars.up }),
      el("path", { class: "bar-down", d: bars.down }),
      el("path", { class: "axis", d: `M${left} ${y0}h${inner.width}M${x0} ${top}v${inner.height}` }),
      el("text", { x: left, y: top + inner.height + PROFILE }, told),
      el("text", { x: left + inner.width + 4, y: top + inner.height + 14 }, beside),
    ];
  }

  #mean(labels, at) {
    let [sum, count] = [0, 0];
    labels.forEach((_, n) => {
      const size = Math.abs(at(n) - this.spec.centre);
      if (Number.isFinite(size)) {
        sum += size;
        count += 1;
      }
    });
    return count ? sum / count : NaN;
  }

  /** The cells as an image for a file of SVG. */
  image() {
    const { left, top, inner } = this;
    return el("image", {
      x: this.x + left,
      y: this.y + top,
      width: inner.width,
      height: inner.height,
      preserveAspectRatio: "none",
      style: "image-rendering: pixelated",
      href: this.canvas.toDataURL(),
    });
  }
}

/** The colours with the numbers at their ends, as SVG; a value has its sign on it. */
export function legend(spec, full, x, y, value) {
  const low = spec.sequential ? 0 : -1;
  const stops = Array.from({ length: 41 }, (_, n) => low + ((1 - low) * n) / 40);
  const [first, last] = [number(spec.centre + low * full), number(spec.centre + full)];
  const start = x + widthOf(first) + 8;
  const middle = low && spec.centre ? `; without colour: ${number(spec.centre)}` : "";
  const share = (value - spec.centre) / full;
  const at = start + (3 * 41 * (Math.max(low, Math.min(1, share)) - low)) / (1 - low);
  return [
    el("text", { x, y: y + 10 }, first),
    ...stops.map((share, n) => el("rect", { x: start + 3 * n, y, width: 3.2, height: 12, style: `fill: ${colour(share)}` })),
    el("text", { x: start + 3 * 41 + 8, y: y + 10 }, `${last}${middle}`),
    Number.isFinite(share) ? el("path", { class: "pointer", d: `M${at} ${y - 1}l-4 -6h8z` }) : null,
  ].filter(Boolean);
}
