// Drawing attention: the same strokes on a canvas, which is quick, and in an SVG, which can be saved.

import { colour, el, mix, scheme } from "./common.js";

const FONT = "system-ui, sans-serif";
const ROOM = 118;
const measure = document.createElement("canvas").getContext("2d");
const letters = new Intl.Segmenter(undefined, { granularity: "grapheme" });

/** How deep the colour of a weight is: its square root, with its sign. */
export function depth(weight) {
  return Math.sign(weight) * Math.sqrt(Math.abs(weight));
}

/** Black or white, whichever is read better on the colour of a share. */
export function readable(share) {
  const light = (part) => (part <= 10 ? part / 3294 : ((part / 255 + 0.055) / 1.055) ** 2.4);
  const [red, green, blue] = mix(share).map(light);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000000" : "#ffffff";
}

/** A token as a label: never empty, without space around it unless it is `whole`, cut to so many characters. */
export function label(text, most = 16, whole = false) {
  if (text === "") return "∅";
  const bare = text.trim();
  const seen = bare === "" ? text.replaceAll(" ", "␣") : whole ? text : bare;
  if (seen.length <= most) return seen;
  const parts = [...letters.segment(seen.slice(0, 8 * most))].map((part) => part.segment);
  return parts.length <= most && seen.length <= 8 * most ? seen : `${parts.slice(0, most - 1).join("")}…`;
}

/** How wide a text is, in pixels. */
export function width(text, size = 12) {
  measure.font = `${size}px ${FONT}`;
  return measure.measureText(text).width;
}

/** A pen that draws on a canvas of so many pixels, sharp on any screen. */
export function canvasPen(canvas, wide, high, ratio = devicePixelRatio || 1) {
  const [columns, rows] = [Math.max(1, Math.round(wide * ratio)), Math.max(1, Math.round(high * ratio))];
  if (canvas.width !== columns) canvas.width = columns;
  if (canvas.height !== rows) canvas.height = rows;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.fillStyle = scheme().paper;
  context.fillRect(0, 0, wide, high);
  return {
    rect(x, y, w, h, { fill = null, stroke = null, thick = 1, opacity = 1, round = 0 }) {
      context.globalAlpha = opacity;
      context.beginPath();
      context.roundRect(x, y, w, h, round);
      paintPath(context, fill, stroke, thick);
    },
    text(x, y, text, { anchor = "start", fill = scheme().ink, size = 12, bold = false, turn = 0 } = {}) {
      context.save();
      context.translate(x, y);
      context.rotate((turn * Math.PI) / 180);
      context.font = `${bold ? "600 " : ""}${size}px ${FONT}`;
      context.textAlign = { start: "left", middle: "center", end: "right" }[anchor];
      context.fillStyle = fill;
      context.fillText(`\u2068${text}\u2069`, 0, 0);
      context.restore();
    },
    curve(x1, y1, x2, y2, { stroke, thick, opacity }) {
      const middle = (x1 + x2) / 2;
      context.globalAlpha = opacity;
      context.beginPath();
      context.moveTo(x1, y1);
      context.bezierCurveTo(middle, y1, middle, y2, x2, y2);
      paintPath(context, null, stroke, thick);
    },
    cells(image, x, y, w, h) {
      context.imageSmoothingEnabled = false;
      context.drawImage(image, x, y, w, h);
    },
    within(x, y, w, h, draw) {
      context.save();
      context.beginPath();
      context.rect(x, y, w, h);
      context.clip();
      draw();
      context.restore();
    },
  };
}

function paintPath(context, fill, stroke, thick) {
  if (fill) {
    context.fillStyle = fill;
    context.fill();
  }
  if (stroke) {
    context.strokeStyle = stroke;
    context.lineWidth = thick;
    context.stroke();
  }
  context.globalAlpha = 1;
}

/** A pen that draws an SVG element, which stands in `pen.svg`. */
export function svgPen(wide, high) {
  const paper = el("rect", { width: wide, height: high, fill: scheme().paper });
  const svg = el("svg", { width: wide, height: high, viewBox: `0 0 ${wide} ${high}` }, paper);
  return {
    svg,
    rect(x, y, w, h, { fill = null, stroke = null, thick = 1, opacity = 1, round = 0 }) {
      const place = { x, y, width: w, height: h, rx: round };
      svg.append(el("rect", { ...place, fill: fill ?? "none", stroke, "stroke-width": thick, opacity }));
    },
    text(x, y, text, { anchor = "start", fill = scheme().ink, size = 12, bold = false, turn = 0 } = {}) {
      const font = { "font-family": FONT, "font-size": size, "font-weight": bold ? 600 : 400, "text-anchor": anchor };
      svg.append(el("text", { ...font, fill, transform: `translate(${x} ${y}) rotate(${turn})`, style: "white-space: pre" },
        `\u2068${text}\u2069`));
    },
    curve(x1, y1, x2, y2, { stroke, thick, opacity }) {
      const middle = (x1 + x2) / 2;
      svg.append(el("path", { d: `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`, fill: "none", stroke,
        "stroke-width": thick, opacity }));
    },
    cells(image, x, y, w, h) {
      const picture = document.createElementNS("http://www.w3.org/2000/svg", "image");
      for (const [name, value] of Object.entries({ x, y, width: w, height: h, preserveAspectRatio: "none",
        style: "image-rendering: pixelated", href: image.toDataURL() })) picture.setAttribute(name, value);
      svg.append(picture);
    },
    within(x, y, w, h, draw) {
      draw();
    },
  };
}

/** An SVG element as the text of a file. */
export function svgFile(svg) {
  svg.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  return new XMLSerializer().serializeToString(svg).replaceAll('xmlns=""', "");
}

// --- the matrix --------------------------------------------------------------------------------------------

/** Where things are in a matrix whose cells are `cell` pixels wide. */
export function matrixPlan(rows, columns, cell) {
  const widest = (texts) => Math.min(ROOM, Math.ceil(Math.max(24, ...texts.slice(0, 600).map((text) => width(label(text))))));
  const across = widest(columns);
  const flat = columns.length <= 64 && columns.every((text) => width(label(text, 12)) <= cell - 6);
  return {
    cell,
    flat,
    length: rows.length,
    left: widest(rows) + 14,
    top: flat ? 40 : Math.ceil(0.87 * across) + 32,
    right: flat ? 8 : Math.ceil(0.5 * across) + 10,
    size: rows.length * cell,
  };
}

/** Draws the part of a matrix that is seen. `look`: weights, over, cursor, found, rows, columns, values, causal. */
export function drawMatrix(pen, plan, look, seen) {
  const { cell, left, top, length } = plan;
  const first = (offset) => Math.max(0, Math.floor(offset / cell));
  const last = (offset, room) => Math.min(length, Math.ceil((offset + room) / cell));
  const room = { width: Math.min(plan.size, seen.width - left), height: Math.min(plan.size, seen.height - top) };
  const range = { r0: first(seen.y), r1: last(seen.y, room.height), c0: first(seen.x), c1: last(seen.x, room.width) };
  const at = { x: (column) => left + column * cell - seen.x, y: (row) => top + row * cell - seen.y };
  pen.within(left, top, room.width, room.height, () => {
    const [columns, rows] = [range.c1 - range.c0, range.r1 - range.r0];
    pen.cells(cellImage(plan, look, range), at.x(range.c0), at.y(range.r0), columns * cell, rows * cell);
    if (cell >= 7) drawGaps(pen, plan, look, range, at);
    if (look.values && cell >= 34) drawValues(pen, look, range, at, cell);
    if (look.cursor) drawCross(pen, plan, look, at);
  });
  drawRowNames(pen, plan, look, range, at);
  pen.within(left - 8, 0, seen.width - left + 8, top, () => drawColumnNames(pen, plan, look, range, at));
  pen.rect(0, 0, left - 8, top - 12, { fill: scheme().paper });
  pen.text(left - 10, top - 10, "from ↓", { anchor: "end", fill: scheme().soft, size: 11 });
  pen.text(left, 14, "to →", { fill: scheme().soft, size: 11 });
}

/** The cells of a range as an image, one pixel each; those that cannot be, or are below the threshold, are paper. */
function cellImage(plan, look, { r0, r1, c0, c1 }) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, c1 - c0);
  canvas.height = Math.max(1, r1 - r0);
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const colours = scheme();
  for (let row = r0, to = 0; row < r1; row += 1) {
    for (let column = c0; column < c1; column += 1, to += 4) {
      if (look.causal && column > row) continue;
      const weight = look.weights[row * plan.length + column];
      const [red, green, blue] = mix(Math.abs(weight) < look.over ? 0 : depth(weight), colours);
      image.data[to] = red;
      image.data[to + 1] = green;
      image.data[to + 2] = blue;
      image.data[to + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function drawGaps(pen, plan, look, { r0, r1, c0, c1 }, at) {
  const fill = scheme().paper;
  for (let row = r0; row <= r1; row += 1) pen.rect(at.x(c0), at.y(row) - 0.5, (c1 - c0) * plan.cell, 1, { fill });
  const high = (r1 - r0) * plan.cell;
  for (let column = c0; column <= c1; column += 1) pen.rect(at.x(column) - 0.5, at.y(r0), 1, high, { fill });
}

function drawValues(pen, look, { r0, r1, c0, c1 }, at, cell) {
  const length = look.rows.length;
  for (let row = r0; row < r1; row += 1) {
    for (let column = c0; column < Math.min(c1, look.causal ? row + 1 : c1); column += 1) {
      const weight = look.weights[row * length + column];
      if (Math.abs(weight) < Math.max(look.over, 0.005)) continue;
      const fill = readable(depth(weight));
      const text = weight.toFixed(2).replace("-", "−").replace(/^(−?)0\./, "$1.");
      const size = cell >= 44 ? 13 : 11;
      pen.text(at.x(column) + cell / 2, at.y(row) + cell / 2 + 4, text, { anchor: "middle", fill, size });
    }
  }
}

function drawCross(pen, plan, { cursor }, at) {
  const { cell } = plan;
  const stroke = scheme().mark;
  const band = { stroke, thick: 1, opacity: 0.55 };
  pen.rect(at.x(0), at.y(cursor.row), plan.size, cell, band);
  pen.rect(at.x(cursor.column), at.y(0), cell, plan.size, band);
  pen.rect(at.x(cursor.column), at.y(cursor.row), cell, cell, { stroke, thick: cursor.locked ? 3 : 2 });
}

/** Which labels are written where there is no room for all: each so many pixels, beside the one at the cursor. */
function named(from, to, cell, needed, cursor) {
  const step = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((candidate) => candidate * cell >= needed) ?? 1000;
  const found = [];
  for (let n = from; n < to; n += 1) {
    if (n === cursor) found.push(n);
    else if (n % step === 0 && (cursor === undefined || Math.abs(n - cursor) * cell >= needed)) found.push(n);
  }
  return found;
}

function style(n, cursor, found) {
  if (n === cursor) return { fill: scheme().mark, bold: true };
  return found.has(n) ? { fill: scheme().mark, bold: true } : {};
}

function drawRowNames(pen, plan, look, { r0, r1 }, at) {
  const cursor = look.cursor?.row;
  for (const row of named(r0, r1, plan.cell, 13, cursor)) {
    const y = at.y(row) + plan.cell / 2 + 4;
    if (y < plan.top - 2) continue;
    pen.text(plan.left - 8, y, label(look.rows[row]), { anchor: "end", ...style(row, cursor, look.found) });
  }
}

function drawColumnNames(pen, plan, look, { c0, c1 }, at) {
  const cursor = look.cursor?.column;
  for (const column of named(c0, c1, plan.cell, plan.flat ? 0 : 14, cursor)) {
    const x = at.x(column) + plan.cell / 2;
    const drawn = style(column, cursor, look.found);
    if (plan.flat) pen.text(x, plan.top - 9, label(look.columns[column], 12), { anchor: "middle", ...drawn });
    else pen.text(x + 3, plan.top - 8, label(look.columns[column]), { turn: -60, ...drawn });
  }
}

// --- lines between tokens ----------------------------------------------------------------------------------

export const STEP = 22;

/** Where things are in two columns of tokens, `wide` pixels apart. */
export function linePlan(rows, columns, wide) {
  const widest = Math.max(40, ...[...rows, ...columns].slice(0, 1200).map((text) => width(label(text))));
  const room = Math.min(0.36 * wide, widest + 12);
  return { left: room, right: wide - room, top: 30, length: rows.length, wide, size: rows.length * STEP + 8 };
}

/** Draws the lines that are seen: width and opacity by weight; at a cursor only those of its token. */
export function drawLines(pen, plan, look, seen) {
  const { left, right, top, length } = plan;
  const y = (n) => top + n * STEP + STEP / 2 - seen.y;
  const shown = (n) => y(n) > top - STEP && y(n) < seen.height + STEP;
  const { cursor } = look;
  pen.within(0, top, seen.width, seen.height - top, () => {
    shadeNames(pen, plan, look, y, shown);
    for (let row = 0; row < length; row += 1) {
      if (cursor?.side === "from" && row !== cursor.row) continue;
      for (let column = 0; column < length; column += 1) {
        if (cursor?.side === "to" && column !== cursor.column) continue;
        const weight = look.weights[row * length + column];
        if (Math.abs(weight) < Math.max(look.over, 0.004) || !(shown(row) || shown(column))) continue;
        const strong = Math.min(1, Math.abs(depth(weight)));
        const opacity = cursor ? 0.25 + 0.75 * strong : 0.05 + 0.65 * strong;
        const stroke = colour(Math.sign(weight));
        pen.curve(left + 4, y(row), right - 4, y(column), { stroke, thick: 1 + 4 * strong * strong, opacity });
      }
    }
    for (let n = 0; n < length; n += 1) {
      if (!shown(n)) continue;
      const [from, to] = [cursor?.side === "from" ? cursor.row : -1, cursor?.side === "to" ? cursor.column : -1];
      pen.text(left, y(n) + 4, label(look.rows[n]), { anchor: "end", ...style(n, from, look.found) });
      pen.text(right, y(n) + 4, label(look.columns[n]), { ...style(n, to, look.found) });
    }
  });
  pen.text(left, 16, "from", { anchor: "end", fill: scheme().soft, size: 11 });
  pen.text(right, 16, "to", { fill: scheme().soft, size: 11 });
}

/** Behind the tokens at the other end of the cursor's lines: how much they get. */
function shadeNames(pen, plan, look, y, shown) {
  const { cursor } = look;
  if (!cursor?.side) return;
  const away = cursor.side === "from";
  for (let n = 0; n < plan.length; n += 1) {
    const weight = look.weights[away ? cursor.row * plan.length + n : n * plan.length + cursor.column];
    if (!shown(n) || Math.abs(weight) < Math.max(look.over, 0.004)) continue;
    const wide = Math.min(width(label(away ? look.columns[n] : look.rows[n])) + 8, plan.left);
    const x = away ? plan.right - 4 : plan.left + 4 - wide;
    const opacity = 0.45 * Math.min(1, Math.abs(depth(weight)));
    pen.rect(x, y(n) - STEP / 2 + 2, wide, STEP - 4, { fill: colour(Math.sign(weight)), opacity, round: 4 });
  }
}

// --- the scale ---------------------------------------------------------------------------------------------

/** What the colours mean, 330 × 34 pixels. */
export function drawScale(pen, x, y, signed) {
  const [low, wide] = [signed ? -1 : 0, 200];
  for (let n = 0; n < 50; n += 1) {
    pen.rect(x + (n * wide) / 50, y, wide / 50 + 0.5, 10, { fill: colour(low + ((1 - low) * n) / 49) });
  }
  for (const tick of signed ? [-1, -0.25, 0, 0.25, 1] : [0, 0.06, 0.25, 0.56, 1]) {
    const at = x + (wide * (depth(tick) - low)) / (1 - low);
    const anchor = tick === low ? "start" : "middle";
    pen.text(at, y + 24, String(tick).replace("-", "−"), { anchor, fill: scheme().soft, size: 11 });
  }
  pen.text(x + wide + 12, y + 9, signed ? "clean − corrupt" : "attention weight", { fill: scheme().soft, size: 11 });
}
