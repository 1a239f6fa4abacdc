// A circuit as SVG: nodes, links, bands; what is shown, traced, pinned and found; zoom.

import { el, onScheme, series } from "./common.js";

const WIDTHS = { large: [0.9, 5.5], middle: [0.6, 3.6], small: [0.4, 2.4] };
const FONTS = { large: 15, middle: 11.5, small: 9.5 };
const SMALLEST = 5.5; // pixels of a letter, below which names would be a blur

/** The drawing of a circuit; `on` has `over(key, link)`, `out()`, `pin(key)` and `zoomed(text)`. */
export class Drawing {
  constructor(data, base, on) {
    Object.assign(this, { data, base, on, groups: new Map(), merged: [] });
    const [width, height, boxWidth, boxHeight] = data.size;
    Object.assign(this, { width, height, boxWidth, boxHeight, view: { k: 1, x: 0, y: 0 } });
    this.links = base.links.map((link) => this.link(link.curve, link.score, { link }));
    this.ports = data.look === "large" ? base.links.map((link) => portOf(link)) : [];
    this.nodes = data.nodes.map((node, n) => this.node(String(n), node.at, node, node.name));
    this.more = [el("g"), el("g")];
    this.inner = el("g", {}, ...this.frame(), this.more[0], el("g", {}, ...[...this.links].reverse()),
      ...this.ports.filter(Boolean), el("g", {}, ...this.nodes), this.more[1]);
    this.svg = el("svg", { role: "group", "aria-label": "Nodes of the circuit; arrow keys move along edges" }, this.inner);
    this.colours();
    onScheme(() => this.colours());
    this.gestures();
  }

  frame() {
    const rails = this.data.bands.map(([, y]) => el("line", { class: "rail", x1: 58, x2: this.width - 6, y1: y, y2: y }));
    const names = this.data.bands.map(([name, y]) => el("text", { class: "side", x: 6, y: y + 4 }, name));
    const feet = this.data.columns.map(([name, x]) =>
      el("text", { class: "side", x, y: this.height + 6, "text-anchor": "middle" }, name));
    return [...(this.data.look === "small" ? [] : rails), ...names, ...feet];
  }

  link([x1, y1, x2, y2, bend], score, what) {
    const [thin, thick] = WIDTHS[this.data.look];
    const share = Math.sqrt(Math.min(1, Math.abs(score ?? 0) / this.base.largest));
    const middle = (y1 + y2) / 2;
    return el("path", {
      class: score === null ? "link bare" : score < 0 ? "link minus" : "link",
      d: `M${x1} ${y1}C${x1 + bend} ${middle} ${x2 + bend} ${middle} ${x2} ${y2}`,
      "stroke-width": (thin + (thick - thin) * share).toFixed(2),
      style: `stroke-opacity: ${(0.3 + 0.7 * share).toFixed(2)}`,
      onpointerenter: (event) => this.on.over(null, what.link, event),
      onpointerleave: () => this.on.out(),
    });
  }

  node(key, [x, y], node, name, group = false) {
    const [w, h] = [this.boxWidth + (group ? 10 : 0), this.boxHeight + (group ? 4 : 0)];
    const box = { x: -w / 2, y: -h / 2, width: w, height: h, rx: node.kind === "head" ? h / 2 : 3 };
    const tag = this.data.look === "large" && node.role !== null && !group ? this.data.roles[node.role][0] : null;
    const kind = ["node", group && "group", (node.kind === "embed" || node.kind === "logits") && "end"].filter(Boolean).join(" ");
    const letters = FONTS[this.data.look];
    const texts = [el("text", { y: tag ? -3 : letters * 0.36, "font-size": letters }, fitted(name, w - 6, letters))];
    if (tag) texts.push(el("text", { class: "tag", y: 14, "font-size": 11.5 }, fitted(tag, w - 12, 11.5)));
    const made = el("g", { class: kind, transform: `translate(${x} ${y})`, role: "button", tabindex: -1, "aria-pressed": "false",
      "data-key": key, onclick: () => this.on.pin(key),
      onpointerenter: (event) => this.on.over(key, null, event), onpointerleave: () => this.on.out(),
      onfocus: () => this.on.over(key, null, null), onblur: () => this.on.out() },
    el("rect", { class: "back", ...box }), el("rect", { class: "box", ...box }), ...texts);
    made.setAttribute("aria-label", [name, node.role === null ? null : this.data.roles[node.role][0]].filter(Boolean).join(", "));
    made.role_ = node.role;
    return made;
  }

  colours() {
    for (const node of [...this.nodes, ...this.groups.values()]) {
      if (node.role_ !== null) node.style.setProperty("--role", series(this.data.roles[node.role_][1]));
    }
  }

  /** Shows what there is now, and nothing else. */
  show(now, labelOf) {
    const single = new Set();
    for (const link of now.links) if (link.link) single.add(link.link.n);
    this.links.forEach((path, n) => set(path, single.has(n)));
    this.ports.forEach((port, n) => port && set(port, single.has(n)));
    this.nodes.forEach((node, n) => set(node, now.nodes.has(String(n))));
    const groups = [...now.nodes.values()].filter((node) => Number.isNaN(Number(node.key)));
    this.groups = new Map(groups.map((group) => [group.key, this.groupNode(group, labelOf(group.key))]));
    this.merged = now.links.filter((link) => !link.link).map((link) => this.mergedLink(link));
    this.more[0].replaceChildren(...this.merged);
    this.more[1].replaceChildren(...this.groups.values());
    this.now = now;
    if (groups.length) this.colours();
    this.reachable();
  }

  groupNode(group, name) {
    const at = [0, 1].map((axis) => mean(group.members.map((n) => this.data.nodes[n].at[axis])));
    const role = group.key.startsWith("r") ? Number(group.key.slice(1)) : null;
    const made = this.node(group.key, at, { kind: "group", role }, name, true);
    made.at = at;
    return made;
  }

  mergedLink(link) {
    const [from, to] = [this.at(link.from), this.at(link.to)];
    const up = (from[1] >= to[1] ? 1 : -1) * (this.boxHeight / 2);
    const path = this.link([from[0], from[1] - up, to[0], to[1] + up, 0], link.score, { link });
    path.shown = link;
    return path;
  }

  at(key) {
    return this.groups.get(key)?.at ?? this.data.nodes[Number(key)].at;
  }

  element(key) {
    return this.groups.get(key) ?? this.nodes[Number(key)];
  }

  /** One node can be reached with the tab key: the one that was last active, or the first. */
  reachable(key = null) {
    const wanted = key ?? this.active;
    this.active = this.now.nodes.has(wanted) ? wanted : [...this.now.nodes.keys()][0];
    for (const other of this.svg.querySelectorAll('.node[tabindex="0"]')) other.setAttribute("tabindex", -1);
    if (this.active !== undefined) this.element(this.active).setAttribute("tabindex", 0);
  }

  /** Brings out what leads to a node and from it; null lets everything be seen. */
  trace(key, path) {
    this.svg.classList.toggle("tracing", key !== null);
    for (const element of this.svg.querySelectorAll(".near, .far")) element.classList.remove("near", "far");
    if (key === null) return;
    const near = new Set([key]);
    for (const link of path.links) {
      const close = link.from === key || link.to === key;
      if (close) near.add(link.from).add(link.to);
      const n = link.link?.n;
      const elements = link.link ? [this.links[n], this.ports[n]] : [this.merged.find((path) => path.shown === link)];
      for (const element of elements) element?.classList.add(close ? "near" : "far");
    }
    for (const node of path.nodes) this.element(node).classList.add(near.has(node) ? "near" : "far");
  }

  pinned(key) {
    for (const node of this.svg.querySelectorAll(".node.pinned")) {
      node.classList.remove("pinned");
      node.setAttribute("aria-pressed", "false");
    }
    if (key === null || !this.now.nodes.has(key)) return;
    this.element(key).classList.add("pinned");
    this.element(key).setAttribute("aria-pressed", "true");
  }

  /** Marks the nodes that were searched for; null if nothing was. */
  mark(keys) {
    this.svg.classList.toggle("seeking", keys !== null);
    for (const node of this.svg.querySelectorAll(".node")) node.classList.toggle("match", keys?.has(node.dataset.key) ?? false);
  }

  // --- zoom --------------------------------------------------------------------------------------------------

  /** All of it in the middle; once it is on the page, its height follows from its width. */
  fit() {
    const wide = this.svg.parentElement.clientWidth || 800;
    const high = this.height + (this.data.columns.length ? 20 : 0);
    const k = Math.min(wide / this.width, 1.4);
    this.tall = Math.max(200, Math.min(high * k, 860));
    this.svg.setAttribute("height", this.tall);
    const whole = Math.min(k, this.tall / high);
    this.zoom(whole, (wide - this.width * whole) / 2, (this.tall - high * whole) / 2);
  }

  zoom(k, x, y, told = false) {
    this.view = { k: Math.min(8, Math.max(0.1, k)), x, y };
    this.inner.setAttribute("transform", `translate(${x.toFixed(1)} ${y.toFixed(1)}) scale(${this.view.k.toFixed(4)})`);
    this.svg.classList.toggle("thin", FONTS[this.data.look] * this.view.k < SMALLEST);
    if (told) this.on.zoomed([this.view.k.toFixed(3), Math.round(x), Math.round(y)].join("_"));
  }

  /** Nearer or further, with one point staying where it is. */
  zoomBy(factor, px = this.svg.clientWidth / 2, py = this.tall / 2) {
    const { k, x, y } = this.view;
    const next = Math.min(8, Math.max(0.1, k * factor));
    this.zoom(next, px - ((px - x) * next) / k, py - ((py - y) * next) / k, true);
  }

  gestures() {
    let from = null;
    this.svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || event.target.closest(".node")) return;
      from = { px: event.clientX, py: event.clientY, ...this.view };
      this.svg.setPointerCapture(event.pointerId);
      this.svg.classList.add("moving");
    });
    this.svg.addEventListener("pointermove", (event) => {
      if (from) this.zoom(from.k, from.x + event.clientX - from.px, from.y + event.clientY - from.py, true);
    });
    for (const name of ["pointerup", "pointercancel"]) {
      this.svg.addEventListener(name, () => {
        from = null;
        this.svg.classList.remove("moving");
      });
    }
    this.svg.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      const place = this.svg.getBoundingClientRect();
      this.zoomBy(Math.exp(-event.deltaY / 300), event.clientX - place.left, event.clientY - place.top);
    }, { passive: false });
  }
}

function set(element, there) {
  if (element.hasAttribute("hidden") === there) element.toggleAttribute("hidden", !there);
}

function mean(values) {
  return values.reduce((a, b) => a + b, 0) / values.length;
}

/** The letter of an input beside the end of its link. */
function portOf(link) {
  if (!link.port) return null;
  const [, , x, y] = link.curve;
  return el("text", { class: "port", x: x + 6, y: y + 14 }, link.port);
}

const ruler = { context: null };

/** A text cut to a width, with an ellipsis. */
function fitted(text, room, size) {
  ruler.context ??= document.createElement("canvas").getContext("2d");
  ruler.context.font = `${size}px system-ui, sans-serif`;
  if (ruler.context.measureText(text).width <= room) return text;
  const parts = [...new Intl.Segmenter().segment(text)].map((part) => part.segment);
  while (parts.length > 1 && ruler.context.measureText(`${parts.join("")}…`).width > room) parts.pop();
  return `${parts.join("")}…`;
}
