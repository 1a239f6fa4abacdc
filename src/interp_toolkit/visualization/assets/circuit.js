// A circuit that can be explored: a slider over its size, tracing, pinning, hiding, grouping, search.

import { announcer, el, exporters, hint, onScheme, series, svgCanvas, svgText, token } from "./common.js";
import { Drawing } from "./circuit_draw.js";
import { byStrength, fileOf, prepared, shownNow, sums, traced } from "./circuit_graph.js";
import { moved } from "./circuit_keys.js";
import { details, overview, signed } from "./circuit_panel.js";
import { sizeControl } from "./circuit_size.js";
import { STYLE } from "./circuit_style.js";

/** Brings a circuit to life. */
export async function mount(root, data, memory) {
  root.append(el("style", {}, STYLE));
  if (data.nodes.length) new Circuit(root, data, memory);
  else root.append(el("p", {}, "This circuit is empty: it has no edges."));
}

/** One circuit on a page: its state, and what follows from it. */
class Circuit {
  constructor(root, data, memory) {
    Object.assign(this, { root, data, memory, over: null, base: prepared(data) });
    this.state = this.remembered();
    this.drawing = new Drawing(data, this.base, {
      over: (key, link, event) => this.look(key, link, event),
      out: () => this.look(null),
      pin: (key) => this.pin(key === this.state.pin ? null : key),
      zoomed: (text) => this.later("zoom", text),
    });
    this.size = sizeControl(data, this.base, this.state, (name, value) => this.change({ [name]: value }));
    this.panel = el("section", { class: "panel", "aria-label": "Details" });
    this.pills = el("div", { class: "roles-row" });
    this.build();
    this.act = { pin: (key) => this.pin(key), hide: (members) => this.hide(members), only: (key) => this.only(key),
      collapse: (band) => this.collapse(band), label: (key) => this.label(key), role: (key) => this.roleOf(key),
      look: (key) => this.look(key), open: (n) => this.openMember(n) };
    this.refresh();
    this.fit();
    this.search(this.state.query);
    onScheme(() => {
      this.panelNow();
      this.legend();
    });
  }

  /** The state that the address names, or the whole circuit. */
  remembered() {
    const { memory, data, base } = this;
    const list = (name) => new Set(memory.get(name, "").split(".").filter(Boolean).map(Number).filter((n) => data.nodes[n]));
    const all = data.edges.length;
    const whole = shownNow(data, base, { count: all, prune: true, hidden: new Set(), bands: new Set(), group: "" });
    this.prunable = base.starts.length > 0 && base.ends.length > 0;
    const bands = new Set(memory.get("bands", "").split(".").filter(Boolean).map(Number));
    const usual = this.prunable && whole.base.length === base.links.length ? "1" : "0";
    return {
      count: Math.min(all, Math.max(Math.min(1, all), Math.round(Number(memory.get("edges", all))) || all)),
      prune: this.prunable && memory.get("prune", usual) === "1", hidden: list("hidden"), bands,
      query: memory.get("search", ""),
      group: ["role", "layer"].includes(memory.get("group", "")) ? memory.get("group") : "", pin: memory.get("pin", null),
      scale: memory.get("by", "number") === "weight" && base.scored ? "weight" : "number",
    };
  }

  build() {
    const { data, root } = this;
    this.say = announcer(root);
    this.stage = el("div", { class: "stage" }, this.drawing.svg);
    const main = el("div", { class: "main" }, el("div", {}, this.stage, this.pills), this.panel);
    const help = "Hover to trace paths, click to pin. With the keyboard: up and down follow the strongest edge, left and right "
      + "move within a layer, Enter pins, H hides, Esc lets go, + and − zoom.";
    root.append(el("div", { class: "circuit" }, data.edges.length ? this.size.element : null, this.controls(), main,
      el("p", { class: "help" }, help)));
    this.tip = hint(root);
    this.drawing.svg.addEventListener("keydown", (event) => this.key(event));
    let wide = this.stage.clientWidth;
    new ResizeObserver(() => {
      if (this.stage.clientWidth !== wide && this.stage.clientWidth) this.drawing.fit();
      wide = this.stage.clientWidth;
    }).observe(this.stage);
  }

  controls() {
    const { state, data } = this;
    const find = el("input", { type: "search", placeholder: "Name or role", value: state.query,
      oninput: () => this.search(find.value), onkeydown: (event) => this.findKey(event) });
    this.find = find;
    this.found = el("output", {});
    const options = [["", "nothing"], ...(data.roles.length ? [["role", "role"]] : []), ["layer", "layer"]];
    const group = el("select", { onchange: () => this.change({ group: group.value, pin: null, bands: new Set() }) },
      ...options.map(([value, name]) => el("option", { value, selected: value === state.group }, name)));
    this.group = group;
    const prune = el("input", { type: "checkbox", checked: state.prune, onchange: () => this.change({ prune: prune.checked }) });
    return el("div", { class: "controls" }, el("label", {}, "Find", find), this.found, el("label", {}, "Group by", group),
      this.prunable ? el("label", { title: "Edges on no path from embed to logits" }, prune, "Hide loose ends") : null,
      this.zoomButtons(),
      exporters("circuit", { svg: () => svgText(this.drawing.svg), png: () => svgCanvas(this.drawing.svg),
        json: () => JSON.stringify(fileOf(data, this.now), null, 1) }));
  }

  zoomButtons() {
    const button = (text, name, act) => el("button", { type: "button", "aria-label": name, title: name, onclick: act }, text);
    return el("span", { class: "zoom", role: "group", "aria-label": "Zoom" }, 
      button("−", "Zoom out", () => this.drawing.zoomBy(1 / 1.4)),
      button("+", "Zoom in", () => this.drawing.zoomBy(1.4)), button("Fit", "Fit the whole circuit", () => {
        this.drawing.fit();
        this.memory.set("zoom", null);
      }));
  }

  fit() {
    this.drawing.fit();
    const kept = this.memory.get("zoom", "").split("_").map(Number);
    if (kept.length === 3 && kept.every(Number.isFinite)) this.drawing.zoom(...kept);
  }

  // --- state -------------------------------------------------------------------------------------------------

  /** Changes the state, shows it, and remembers it. */
  change(changes) {
    Object.assign(this.state, changes);
    this.refresh();
    const { state } = this;
    this.later("edges", state.count === this.data.edges.length ? null : state.count);
    this.later("prune", state.prune ? "1" : "0");
    this.later("by", state.scale === "number" ? null : state.scale);
    this.later("group", state.group);
    this.later("pin", state.pin);
    this.later("hidden", [...state.hidden].join("."));
    this.later("bands", [...state.bands].join("."));
  }

  /** Remembers soon, so that a slider in motion does not rewrite the address a hundred times. */
  later(name, value) {
    this.waiting = { ...this.waiting, [name]: value };
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      for (const [key, found] of Object.entries(this.waiting)) this.memory.set(key, found);
      this.waiting = {};
    }, 150);
  }

  refresh() {
    this.now = shownNow(this.data, this.base, this.state);
    this.drawing.show(this.now, (key) => this.label(key));
    this.group.value = this.state.group;
    this.size.show(this.state, this.now);
    this.drawing.pinned(this.state.pin);
    this.panelNow();
    this.trace();
    const hidden = [...this.state.hidden].join();
    if (this.listed !== hidden) this.legend();
    this.listed = hidden;
    if (this.state.query) this.search(this.state.query);
  }

  panelNow() {
    const { data, now, state } = this;
    this.panel.replaceChildren(...(state.pin === null ? overview(data, now, this.act) : details(data, now, state.pin, this.act))
      .filter(Boolean));
  }

  /** What a node or group is called. */
  label(key) {
    const node = this.data.nodes[Number(key)];
    if (node) return node.name;
    const count = this.now.nodes.get(key)?.members.length ?? 0;
    const n = Number(key.slice(1));
    const name = key.startsWith("r") ? this.data.roles[n]?.[0] : this.data.bands[n]?.[0];
    return `${name ?? "group"} (${count})`;
  }

  roleOf(key) {
    const role = this.data.nodes[Number(key)]?.role ?? null;
    return role === null ? null : this.data.roles[role][0];
  }

  // --- looking and pinning -----------------------------------------------------------------------------------

  look(key, link = null, event = null) {
    this.over = key;
    this.trace();
    if (key !== null && this.now.nodes.has(key)) this.drawing.reachable(key);
    const lines = link ? this.linkWords(link) : key === null ? null : this.nodeWords(key);
    if (!lines || (!event && !this.drawing.svg.contains(document.activeElement))) return this.tip.hide();
    const place = this.root.getBoundingClientRect();
    const at = event ? { x: event.clientX, y: event.clientY } : this.corner(key);
    return this.tip.show(at.x - place.left, at.y - place.top, lines);
  }

  corner(key) {
    const box = this.drawing.element(key).getBoundingClientRect();
    return { x: box.right - 10, y: box.bottom - 6 };
  }

  nodeWords(key) {
    const node = this.now.nodes.get(key);
    if (!node) return null;
    const [into, out] = [sums(node.into), sums(node.out)];
    return [this.label(key), this.roleOf(key), `in ${signed(into.net)} · out ${signed(out.net)}`].filter(Boolean);
  }

  linkWords(link) {
    const port = link.port ? `.${link.port}` : "";
    const [from, to] = link.from === undefined ? [String(link.source), String(link.target)] : [link.from, link.to];
    const place = `edge ${link.edge + 1} of ${this.data.edges.length} by |score|`;
    const rank = link.edge === undefined ? `${link.edges} edges` : place;
    return [`${this.label(from)} → ${this.label(to)}${port}`, `score ${signed(link.score)}`, rank];
  }

  trace() {
    const wanted = this.over ?? this.state.pin;
    const key = wanted !== null && this.now.nodes.has(wanted) ? wanted : null;
    this.drawing.trace(key, key === null ? null : traced(this.now, key));
  }

  pin(key) {
    this.change({ pin: key });
    if (key !== null) this.say(`${this.label(key)} pinned: ${(this.nodeWords(key) ?? []).slice(1).join(", ")}`);
    if (key !== null && this.now.nodes.has(key)) this.drawing.reachable(key);
  }

  hide(members) {
    this.change({ hidden: new Set([...this.state.hidden, ...members]), pin: null });
    this.look(null);
  }

  /** Hides what is on no path through a node. */
  only(key) {
    const kept = new Set([...traced(this.now, key).nodes].flatMap((other) => this.now.nodes.get(other).members));
    const rest = [...this.now.nodes.values()].flatMap((node) => node.members).filter((n) => !kept.has(n));
    this.change({ hidden: new Set([...this.state.hidden, ...rest]) });
  }

  collapse(band) {
    const bands = new Set(this.state.bands);
    const layered = this.state.group === "layer";
    if (layered) this.data.bands.forEach((_, n) => bands.add(n));
    if (!bands.delete(band)) bands.add(band);
    this.change({ bands, group: layered ? "" : this.state.group, pin: bands.has(band) ? `b${band}` : null });
  }

  /** Shows a member of a group by itself. */
  openMember(n) {
    if (this.state.pin.startsWith("b")) this.collapse(this.data.nodes[n].band);
    else this.change({ group: "" });
    this.pin(String(n));
  }

  // --- search and keys ---------------------------------------------------------------------------------------

  matches(query) {
    const wanted = query.trim().toLowerCase();
    if (!wanted) return null;
    const fits = (key) => [this.label(key), this.roleOf(key)].some((text) => text?.toLowerCase().includes(wanted));
    const inside = (node) => fits(node.key) || node.members.some((n) => fits(String(n)));
    return [...this.now.nodes.values()].filter(inside).map((node) => node.key);
  }

  search(query) {
    this.state.query = query;
    if (this.find.value !== query) this.find.value = query;
    const found = this.matches(query);
    this.drawing.mark(found && new Set(found));
    this.found.textContent = found === null ? "" : `${found.length} found`;
    this.later("search", query);
    for (const pill of this.pills.querySelectorAll("[data-role]")) {
      pill.setAttribute("aria-pressed", pill.dataset.role === query);
    }
  }

  findKey(event) {
    const found = this.matches(this.find.value) ?? [];
    if (event.key === "Escape") this.search("");
    if (event.key !== "Enter" || !found.length) return;
    this.pin(found[(found.indexOf(this.state.pin) + 1) % found.length]);
  }

  key(event) {
    const key = event.target.dataset?.key;
    const acts = { Escape: () => this.letGo(), "+": () => this.drawing.zoomBy(1.4), "-": () => this.drawing.zoomBy(1 / 1.4),
      0: () => this.drawing.fit() };
    if (key !== undefined) {
      acts.Enter = () => this.pin(key === this.state.pin ? null : key);
      acts[" "] = acts.Enter;
      acts.h = () => this.hide(this.now.nodes.get(key).members);
      for (const arrow of ["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight"]) acts[arrow] = () => this.move(key, arrow);
    }
    if (!acts[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    acts[event.key]();
  }

  letGo() {
    this.search("");
    this.over = null;
    this.tip.hide();
    this.change({ pin: null });
  }

  move(key, arrow) {
    const next = moved(this.now, this.drawing, byStrength, key, arrow);
    if (next === null) return;
    this.drawing.reachable(next);
    this.drawing.element(next).focus({ preventScroll: true });
  }

  // --- below the picture -------------------------------------------------------------------------------------

  legend() {
    const { data, state } = this;
    const signs = new Set(data.edges.map((edge) => Math.sign(edge[4] ?? 0)));
    const sample = (kind, text) => el("span", { class: `sample ${kind}` }, el("i"), text);
    const roles = data.roles.map(([name, n]) => el("button", { type: "button", class: "pill", "data-role": name,
      "aria-pressed": state.query === name, style: `--role: ${series(n)}`,
      onclick: () => this.search(this.state.query === name ? "" : name) }, el("i"), token(name)));
    const hidden = [...state.hidden].slice(0, 12).map((n) => el("button", { type: "button", class: "pill",
      title: "Show it again", onclick: () => this.unhide([n]) }, token(data.nodes[n].name), " ×"));
    const rest = state.hidden.size ? [el("span", {}, `Hidden (${state.hidden.size}):`), ...hidden,
      el("button", { type: "button", class: "pill", onclick: () => this.unhide([...state.hidden]) }, "Show all")] : [];
    const focused = this.pills.contains(document.activeElement) ? document.activeElement.textContent : null;
    this.pills.replaceChildren(...(signs.has(1) ? [sample("", "helps")] : []),
      ...(signs.has(-1) ? [sample("minus", "works against")] : []), ...roles, ...rest);
    if (focused !== null) [...this.pills.querySelectorAll("button")].find((pill) => pill.textContent === focused)?.focus();
  }

  unhide(members) {
    this.change({ hidden: new Set([...this.state.hidden].filter((n) => !members.includes(n))) });
  }
}
