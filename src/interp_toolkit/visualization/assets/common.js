// What every view uses: elements, colours, hints, state in the address, exports. Text is only ever set as text.

/** An element with attributes and children; strings become text, never markup; `on…` attributes are listeners. */
export function el(tag, attributes = {}, ...children) {
  const made = SVG_TAGS.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const SVG_TAGS = new Set(["svg", "g", "path", "rect", "circle", "line", "text", "tspan", "title", "image", "polyline", "polygon",
  "defs", "marker", "clipPath"]);

/** Text of a model or user: isolated, so that its direction stays its own. */
export function token(text, attributes = {}) {
  return el("bdi", attributes, text);
}

/** The numbers of an array that Python has packed; a typed array, row by row. */
export async function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.data), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new KINDS[packed.dtype](await new Response(stream).arrayBuffer());
}

const KINDS = { uint8: Uint8Array, uint16: Uint16Array, int8: Int8Array, int16: Int16Array, int32: Int32Array, float32: Float32Array };

/** A number as Python's side writes it. */
export function number(value) {
  if (value === null || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  const plain = value === 0 || (size >= 0.01 && size < 1e5);
  // Python writes exponents of two digits
  return minus(plain ? value.toFixed(2) : value.toExponential(1).replace(/([+-])(\d)$/, "$10$2"));
}

/** A text whose hyphens are signs: with the sign for minus. */
export function minus(text) {
  return text.replaceAll("-", "−");
}

// --- colours -----------------------------------------------------------------------------------------------

const LIGHT = { dark: false, middle: [247, 247, 247], positive: [33, 102, 172], negative: [199, 92, 18], ink: "#1b1f24", soft: "#59636e",
  paper: "#ffffff", line: "#d1d9e0", mark: "#8a3ffc" };
const DARK = { dark: true, middle: [38, 44, 52], positive: [100, 170, 235], negative: [240, 145, 70], ink: "#e6edf3", soft: "#9198a1",
  paper: "#0d1117", line: "#3d444d", mark: "#be95ff" };
const dark = matchMedia("(prefers-color-scheme: dark)");

/** The colours of the moment. */
export function scheme() {
  return dark.matches ? DARK : LIGHT;
}

/** Calls back whenever light becomes dark or the other way round. */
export function onScheme(callback) {
  dark.addEventListener("change", callback);
}

// The same palette as in shapes.py: on light paper and on dark.
const SERIES = [["#0072b2", "#4ca8e8"], ["#d55e00", "#f08a4b"], ["#00896a", "#2dc29a"], ["#b4508f", "#e392c4"],
  ["#a86f00", "#e6a817"], ["#2f8fc9", "#8fd3fa"], ["#7d7400", "#d9d04a"], ["#59636e", "#a4adb8"]];

/** The colour of a series by its number, told apart by all kinds of colour vision; beyond eight they begin anew. */
export function series(n, colours = scheme()) {
  return SERIES[n % SERIES.length][colours.dark ? 1 : 0];
}

/** Red, green and blue of a share from −1 (full orange) through 0 to 1 (full blue); the same as in pictures. */
export function mix(share, colours = scheme()) {
  const depth = Math.min(1, Math.abs(share));
  const end = share >= 0 ? colours.positive : colours.negative;
  return colours.middle.map((from, n) => Math.round(from + (end[n] - from) * depth));
}

/** The same as a CSS colour. */
export function colour(share, colours = scheme()) {
  return `rgb(${mix(share, colours).join(" ")})`;
}

/** Paints rows × columns of shares onto a canvas, one pixel each; NaN stays transparent. Scale it up with CSS. */
export function paint(canvas, shares, rows, columns) {
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  const colours = scheme();
  for (let n = 0; n < rows * columns; n += 1) {
    if (Number.isNaN(shares[n])) continue;
    const [red, green, blue] = mix(shares[n], colours);
    image.data.set([red, green, blue, 255], 4 * n);
  }
  context.putImageData(image, 0, 0);
}

// --- hints and announcements -------------------------------------------------------------------------------

/** A box that follows the pointer or the keyboard: `show(x, y, lines)` in pixels of the root, and `hide()`. */
export function hint(root) {
  const box = el("div", { class: "hint", role: "tooltip", hidden: true });
  root.append(box);
  return {
    show(x, y, lines) {
      box.replaceChildren(...lines.flatMap((line, n) => (n ? ["\n", token(line)] : [token(line)])));
      box.hidden = false;
      const room = root.clientWidth - box.offsetWidth;
      box.style.left = `${Math.max(0, Math.min(x + 14, room))}px`;
      box.style.top = `${y + 16}px`;
    },
    hide() {
      box.hidden = true;
    },
  };
}

/** Says a text to those who listen to the page; not seen. */
export function announcer(root) {
  const box = el("div", { class: "aside", "aria-live": "polite" });
  root.append(box);
  return (text) => {
    if (box.textContent !== text) box.textContent = text;
  };
}

// --- state in the address ----------------------------------------------------------------------------------

const settings = new URLSearchParams(location.hash.slice(1));

/** What a view remembers in the part of the address behind #: `get(name, otherwise)` and `set(name, value)`. */
export function memory(key) {
  return {
    get(name, otherwise) {
      return settings.get(`${key}.${name}`) ?? otherwise;
    },
    set(name, value) {
      if (value === null || value === undefined || value === "") settings.delete(`${key}.${name}`);
      else settings.set(`${key}.${name}`, String(value));
      try {
        history.replaceState(null, "", `#${settings}`);
      } catch {
        // A page inside another page may have no address of its own; then this is remembered as long as it is open
      }
    },
  };
}

// --- exports -----------------------------------------------------------------------------------------------

/** Buttons that save what is seen; each kind is a function that returns text, or a canvas or its promise for `png`. */
export function exporters(name, kinds) {
  const buttons = Object.entries(kinds).map(([kind, make]) =>
    el("button", { type: "button", onclick: async () => save(`${name}.${kind}`, kind, await make()) }, kind.toUpperCase()));
  return el("span", { class: "exports", role: "group", "aria-label": "Save as" }, ...buttons);
}

const TYPES = { svg: "image/svg+xml", json: "application/json", csv: "text/csv" };

async function save(name, kind, made) {
  const blob = kind === "png" ? await new Promise((done) => made.toBlob(done)) : new Blob([made], { type: TYPES[kind] });
  const address = URL.createObjectURL(blob);
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

const COPIED = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-opacity", "opacity", "font",
  "display", "visibility"];

/** An SVG element as a file's text, with its colours written into it. */
export function svgText(svg) {
  const copy = svg.cloneNode(true);
  const inner = [...copy.querySelectorAll("*")];
  [...svg.querySelectorAll("*")].forEach((from, n) => {
    const style = getComputedStyle(from);
    for (const name of COPIED) {
      const value = style.getPropertyValue(name);
      if (value) inner[n].style.setProperty(name, value);
    }
  });
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.style.background = scheme().paper;
  return new XMLSerializer().serializeToString(copy);
}

/** An SVG element as a canvas of twice its size. */
export async function svgCanvas(svg) {
  const { width, height } = svg.getBoundingClientRect();
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svgText(svg))}`;
  await image.decode();
  const canvas = el("canvas", { width: Math.ceil(2 * width), height: Math.ceil(2 * height) });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas;
}

// --- start -------------------------------------------------------------------------------------------------

/** Brings every view of the page to life; where that fails, its still picture stays. */
export async function start(views) {
  let position = 0;
  for (const figure of document.querySelectorAll("figure[data-view]")) {
    position += 1;
    const live = figure.querySelector(":scope > .live");
    const data = JSON.parse(figure.querySelector(':scope > script[type="application/json"]').textContent);
    live.hidden = false;
    try {
      await views[figure.dataset.view](live, data, memory(`v${position}`));
      figure.querySelector(":scope > .still").hidden = true;
      figure.dataset.ready = "";
    } catch (error) {
      live.replaceChildren();
      live.hidden = true;
      reportError(error);
    }
  }
  document.documentElement.dataset.ready = "";
}
