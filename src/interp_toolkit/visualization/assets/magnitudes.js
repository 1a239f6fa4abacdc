// Sizes: norms by layer and position, and dimensions that stand out.

import { colour, el, scheme, series } from "./common.js";
import { axisBelow, axisBeside, chart, label, logTicks, mark, short, sized, stroke } from "./axes.js";

/** A map of cells with a cursor; `of()` gives rows, columns, share(r, c) from 0 to 1, words(r, c),
  and the chosen row or column. */
function cellMap(view, name, of, choose) {
  const svg = chart(name, (event) => step(event));
  let cell = null;
  let places = null;

  function draw(width) {
    const { rows, columns, share, chosen, title, scale } = of();
    const left = Math.min(130, 16 + 6.6 * Math.max(...rows.map((row) => Math.min(14, [...row].length))));
    const high = Math.max(6, Math.min(22, 520 / rows.length));
    const wide = Math.min(60, (width - left - 4) / columns.length);
    const [top, bottom] = [6, 6 + high * rows.length];
    places = { left, top, high, wide, rows: rows.length, columns: columns.length };
    sized(svg, width, bottom + 74);
    const gap = wide > 5 && high > 9 ? 1 : 0;
    const cells = el("g", { "shape-rendering": "crispEdges" });
    rows.forEach((_, r) => columns.forEach((_, c) => cells.append(el("rect", { x: (left + wide * c).toFixed(1),
      y: (top + high * r).toFixed(1),
      width: Math.max(0.5, wide - gap).toFixed(1), height: (high - gap).toFixed(1), fill: colour(share(r, c)) }))));
    svg.append(cells);
    const every = Math.ceil(13 / high);
    rows.forEach((row, r) => {
      const now = chosen.row === r;
      if (r % every === 0 || now) svg.append(label(left - 6, top + high * (r + 0.5) + 4, row, { anchor: "end", soft: !now,
        room: 14 }));
    });
    const longest = Math.max(...columns.map((column) => Math.min(9, [...column].length)));
    const room = wide >= 24 ? Math.max(3, Math.floor(wide / 6.4)) : 9;
    const thin = wide >= 24 ? 1 : Math.ceil((8 + 6.4 * longest) / wide);
    columns.forEach((column, c) => {
      const now = chosen.column === c;
      if (c % thin === 0 || (now && thin === 1)) {
        svg.append(label(left + wide * (c + 0.5), bottom + 15, column, { anchor: "middle", soft: !now, room }));
      }
    });
    svg.append(label(left, bottom + 32, title));
    legend(left, bottom + 44, scale);
    if (chosen.row !== undefined) outline(left, top + high * chosen.row, wide * columns.length, high, scheme().ink);
    if (chosen.column !== undefined) outline(left + wide * chosen.column, top, wide, high * rows.length, scheme().ink);
    if (cell) showCursor(false);
  }

  function legend(x, y, { low, high }) {
    const start = x + 8 + 6.4 * low.length;
    svg.append(label(x, y + 12, low));
    for (let n = 0; n < 40; n += 1) svg.append(el("rect", { x: start + 4 * n, y, width: 4.5, height: 14, fill: colour(n / 39) }));
    svg.append(label(start + 168, y + 12, high));
  }

  function outline(x, y, width, height, tint, kind = "chosen") {
    svg.append(el("rect", { class: kind, x: x - 1, y: y - 1, width: width + 1, height: height + 1, fill: "none", stroke: tint,
      "stroke-width": 1.5, "pointer-events": "none" }));
  }

  function showCursor(aloud, y = null) {
    svg.querySelector(".cursor")?.remove();
    if (!cell) return view.hint.hide();
    const { left, top, high, wide } = places;
    cell = [Math.min(cell[0], places.rows - 1), Math.min(cell[1], places.columns - 1)];
    outline(left + wide * cell[1], top + high * cell[0], wide, high, scheme().mark, "cursor");
    const words = of().words(...cell);
    view.hintAt(svg, left + wide * (cell[1] + 1), y ?? top + high * (cell[0] + 1), words);
    if (aloud) view.say(words.join(", "));
  }

  function under(event) {
    const box = svg.getBoundingClientRect();
    const c = Math.floor((event.clientX - box.left - places.left) / places.wide);
    const r = Math.floor((event.clientY - box.top - places.top) / places.high);
    return r >= 0 && c >= 0 && r < places.rows && c < places.columns ? [r, c] : null;
  }

  function step(event) {
    const moves = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
    if (event.key === "Escape") cell = null;
    else if (event.key === "Enter" && cell) choose(...cell);
    else if (!moves[event.key]) return;
    else {
      const move = moves[event.key];
      cell = cell ? [Math.max(0, Math.min(places.rows - 1, cell[0] + move[0])), Math.max(0, Math.min(places.columns - 1,
        cell[1] + move[1]))]
        : [0, 0];
    }
    event.preventDefault();
    showCursor(true);
  }

  svg.addEventListener("pointermove", (event) => { cell = under(event); showCursor(false,
    event.clientY - svg.getBoundingClientRect().top); });
  svg.addEventListener("pointerleave", () => { cell = null; showCursor(false); });
  svg.addEventListener("blur", () => { cell = null; showCursor(false); });
  svg.addEventListener("click", (event) => { const found = under(event); if (found) choose(...found); });
  return { svg, draw };
}

/** Norms: a map of layers and positions where rows have positions, and lines over layers for each class. */
export function normsPanel(view) {
  const { positions, layers, norms } = view.model;
  const lines = chart("Norms by layer: median and middle half of each class; the same numbers are in the table below");
  const map = positions && cellMap(view, "Norms by layer and position; arrow keys read the cells", cells, (row) =>
    view.setLayer(row));
  const host = el("div", {}, map ? map.svg : "", lines);

  function cells() {
    const known = Array.from(positions.medians).filter((value) => value > 0);
    const least = known.reduce((a, b) => Math.min(a, b), Infinity);
    const most = known.reduce((a, b) => Math.max(a, b), least);
    const at = (r, c) => positions.medians[r * positions.columns.length + c];
    return {
      rows: layers.map((name) => `layer ${name}`), columns: positions.tokens ?? positions.columns,
        chosen: { row: view.state.layer },
      share: (r, c) => (at(r, c) > 0 && most > least ? Math.log(at(r, c) / least) / Math.log(most / least) : 0),
      title: positions.tokens ? "token" : "position in the prompt",
      scale: { low: short(least), high: `${short(most)} (logarithmic scale)` },
      words: (r, c) => [
        `layer ${layers[r]}, position ${positions.columns[c]}${positions.tokens ? `: ${positions.tokens[c]}` : ""}`,
        positions.numbers[c] > 1 ? `median norm ${short(at(r, c))} of ${positions.numbers[c]} rows` : `norm ${short(at(r, c))}`],
    };
  }

  function draw() {
    map?.draw(host.clientWidth);
    drawLines(lines, view, norms, Math.min(host.clientWidth, 900));
  }

  return { host, draw, svg: () => (map ? [map.svg, lines] : [lines]), rows };

  function rows() {
    if (!positions) {
      return layers.flatMap((layer, l) => view.model.classes.map(({ name }, n) => ({ layer, class: name,
        ...Object.fromEntries(["25%", "median", "75%"].map((key) => [key, quantile(view, norms, l, n, key)])) })));
    }
    return layers.flatMap((layer, r) => positions.columns.map((column, c) => ({ layer, position: column,
      token: positions.tokens?.[c] ?? "",
      median_norm: positions.medians[r * positions.columns.length + c], rows: positions.numbers[c] })));
  }
}

function quantile(view, spread, layer, n, key) {
  const { summary, classes } = view.model;
  return spread.summary[(layer * classes.length + n) * summary.length + summary.indexOf(key)];
}

function drawLines(svg, view, spread, width) {
  const { layers } = view.model;
  const [left, right, top, bottom] = [60, width - 12, 26, 250];
  const scaled = (value) => (spread.log ? Math.log10(value) : value);
  const ends = layers.flatMap((_, l) => view.shown().flatMap((n) => ["25%", "75%"].map((key) => scaled(quantile(view, spread,
    l, n, key)))));
  let [low, high] = [Math.min(...ends), Math.max(...ends)];
  if (!(high > low)) [low, high] = [low - 0.5 * (Math.abs(low) + 1), high + 0.5 * (Math.abs(high) + 1)];
  const x = (l) => left + ((right - left) * (l + 0.5)) / layers.length;
  const y = (value) => bottom - ((scaled(value) - low) / (high - low)) * (bottom - top);
  sized(svg, width, 296);
  const scale = spread.log ? ", logarithmic axis" : "";
  svg.append(label(left, 14, `norms of rows by layer: median and middle half of each class${scale}`,
    { soft: false, size: 12, room: 100 }));
  svg.append(axisBeside({ low, high, log: spread.log, top, bottom, x: left, right }));
  svg.append(stroke(x(view.state.layer), top, x(view.state.layer), bottom, scheme().mark));
  for (const n of view.shown()) {
    const line = (key) => layers.map((_, l) => `${x(l).toFixed(1)} ${y(quantile(view, spread, l, n, key)).toFixed(1)}`);
    svg.append(el("path", { d: `M${[...line("25%"), ...line("75%").reverse()].join("L")}Z`, fill: series(n),
      "fill-opacity": 0.2 }),
      el("path", { d: `M${line("median").join("L")}`, fill: "none", stroke: series(n), "stroke-width": 1.8 }),
      el("path", { d: layers.map((_, l) => mark(n, x(l), y(quantile(view, spread, l, n, "median")), 3)).join(""),
        fill: series(n) }));
  }
  const thin = Math.ceil((layers.length * (10 + 6.4 * Math.max(...layers.map((name) => Math.min(9,
    name.length))))) / (right - left));
  layers.forEach((name, l) => {
    if (l % thin === 0) svg.append(label(x(l), bottom + 16, name, { anchor: "middle", soft: l !== view.state.layer, room: 9 }));
  });
  svg.append(label((left + right) / 2, bottom + 34, "layer", { anchor: "middle" }));
  view.pointing(svg, (event) => {
    const l = Math.floor(((event.clientX - svg.getBoundingClientRect().left - left) / (right - left)) * layers.length);
    return layers[l] === undefined ? null : [`layer ${layers[l]}`, ...view.shown().map((n) =>
      `${view.model.classes[n].name}: median ${short(quantile(view, spread, l, n, "median"))}, middle half ` +
      `${short(quantile(view, spread, l, n, "25%"))} to ${short(quantile(view, spread, l, n, "75%"))}`)];
  });
}

const MEASURES = { typical: "the median row", largest: "the largest row" };

/** Dimensions that stand out: the strongest at every layer, and all of one layer. */
export function outliersPanel(view) {
  const { outliers, layers, dimensions } = view.model;
  const kept = view.memory("measure");
  let measure = outliers.find(({ key }) => key === kept.get()) ?? outliers[0];
  const choice = el("select", { onchange: () => {
    measure = outliers.find(({ key }) => key === choice.value);
    kept.set(choice.value);
    draw();
  } }, ...outliers.map(({ key }) => el("option", { value: key, selected: key === measure.key }, MEASURES[key])));
  const map = cellMap(view, "Strongest dimensions by layer; arrow keys read the cells", cells, (_, column) =>
    view.setLayer(column));
  const stems = chart("All dimensions of the layer; the strongest are in the map above");
  const host = el("div", {}, el("div", { class: "controls" }, el("label", {}, "Magnitude in", choice)), map.svg, stems);
  const ratio = (layer, dimension) => measure.ratios[layer * dimensions + dimension];

  function cells() {
    const most = Math.max(measure.limit, ...measure.top.flatMap((d) => layers.map((_, l) => ratio(l, d))));
    return {
      rows: measure.top.map((d) => `dim ${d}`), columns: layers, chosen: { column: view.state.layer },
      share: (r, c) => Math.max(0, Math.log(Math.max(1, ratio(c, measure.top[r]))) / Math.log(most)),
      title: "layer", scale: { low: "≤ 1×", high: `${short(most)} times the median (logarithmic scale)` },
      words: (r, c) => [`dimension ${measure.top[r]}, layer ${layers[c]}`,
        `${short(ratio(c, measure.top[r]))} times the median magnitude`,
        `at least ${measure.limit} times in ${times(measure.top[r])} of ${layers.length} layer(s)`],
    };
  }

  function times(dimension) {
    return layers.filter((_, l) => ratio(l, dimension) >= measure.limit).length;
  }

  function draw() {
    map.draw(host.clientWidth);
    drawStems(Math.min(host.clientWidth, 1100));
  }

  function drawStems(width) {
    const { layer } = view.state;
    const all = Array.from({ length: dimensions }, (_, d) => ratio(layer, d));
    const [left, right, top, bottom] = [52, width - 12, 26, 230];
    const high = Math.log10(1.4 * Math.max(measure.limit, ...chunked(all)));
    const low = -1;
    const x = (d) => left + ((right - left) * (d + 0.5)) / dimensions;
    const y = (value) => bottom - Math.max(0, (Math.log10(Math.max(value, 0.1)) - low) / (high - low)) * (bottom - top);
    sized(stems, width, 276);
    stems.append(label(left, 14, `layer ${layers[layer]}: ${MEASURES[measure.key]}, times the median magnitude (logarithmic)`,
      { soft: false, size: 12, room: 100 }));
    for (const tick of logTicks(low, high, 6)) {
      const place = bottom - ((tick - low) / (high - low)) * (bottom - top);
      stems.append(stroke(left, place, right, place), label(left - 6, place + 4, short(10 ** tick), { anchor: "end" }));
    }
    const path = (strong) => all.map((value, d) => (value >= measure.limit === strong
      ? `M${x(d).toFixed(1)} ${bottom}V${y(value).toFixed(1)}` : ""));
    stems.append(el("path", { d: path(false).join(""), stroke: series(0), "stroke-width": Math.max(0.6, Math.min(4,
      400 / dimensions)) }),
      el("path", { d: path(true).join(""), stroke: series(1), "stroke-width": 2 }));
    stems.append(el("line", { x1: left, x2: right, y1: y(measure.limit), y2: y(measure.limit), stroke: scheme().mark,
      "stroke-dasharray": "4 3" }));
    const strong = all.map((value, d) => [value, d]).filter(([value]) => value >= measure.limit).sort((a, b) => b[0] - a[0]);
    const named = [];
    for (const [value, d] of strong) {
      if (named.length > 7 || named.some((other) => Math.abs(other - x(d)) < 30)) continue;
      named.push(x(d));
      stems.append(label(Math.min(right - 12, Math.max(left + 12, x(d))), y(value) - 4, `${d}`, { anchor: "middle",
        soft: false }));
    }
    stems.append(axisBelow({ low: 0, high: Math.max(1, dimensions - 1), left: x(0), right: x(Math.max(1, dimensions - 1)),
      y: bottom,
      title: `dimension; ${strong.length} of ${dimensions} at ${measure.limit} times or more (dashed)` }));
    view.pointing(stems, (event) => {
      const d = Math.floor(((event.clientX - stems.getBoundingClientRect().left - left) / (right - left)) * dimensions);
      return all[d] === undefined ? null : [`dimension ${d}`, `${short(all[d])} times the median magnitude`];
    });
  }

  return { host, draw, svg: () => [map.svg, stems], rows: () => measure.top.flatMap((d) => layers.map((layer, l) =>
    ({ measure: measure.key, dimension: d, layer, times_median: ratio(l, d) }))) };
}

/** A few numbers with the same maximum: a spread of very many arguments would overflow the stack. */
function chunked(values) {
  const found = [];
  for (let n = 0; n < values.length; n += 4096) found.push(Math.max(...values.slice(n, n + 4096)));
  return found;
}
