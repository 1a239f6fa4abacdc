// What is said of the circuit as a whole, and of one of its nodes.

import { el, number, scheme, token, unpack } from "./common.js";
import { byStrength, sums } from "./circuit_graph.js";

const MOST = 8;

/** A score with its sign. */
export function signed(score) {
  if (score === null) return "–";
  return score > 0 ? `+${number(score)}` : number(score);
}

/** The circuit as a whole: how it was found, and its strongest nodes. */
export function overview(data, now, act) {
  const ranked = [...now.nodes.values()].filter((node) => !["embed", "logits"].includes(data.nodes[Number(node.key)]?.kind))
    .map((node) => ({ key: node.key, ...sums(node.out), link: null })).sort((a, b) => b.size - a.size).slice(0, MOST);
  const largest = Math.max(1e-300, ...ranked.map((node) => node.size));
  const rows = ranked.map((node) => row(act, node.key, act.label(node.key), node.net, node.size / largest, act.role(node.key)));
  const total = data.total === null ? "" : ` of the ${data.total.toLocaleString("en")} of the model`;
  const heads = count(now, data, "head", "head");
  return [
    el("h3", {}, "The circuit"),
    el("p", {}, [heads, count(now, data, "mlp", "MLP"), `${now.edges.toLocaleString("en")} edges${total}`]
      .filter(Boolean).join(", ")),
    ...data.about.map((line) => el("p", {}, token(line))),
    rows.length ? el("h4", {}, "Strongest nodes: bars add up the sizes of the edges out of them, numbers their scores") : null,
    el("ul", {}, ...rows),
  ];
}

function count(now, data, kind, name) {
  const inside = [...now.nodes.values()].flatMap((node) => node.members).filter((n) => data.nodes[n].kind === kind).length;
  return inside ? `${inside} ${name}${inside === 1 ? "" : "s"}` : "";
}

/** One node or group: what it does, what leads into it and out of it. */
export function details(data, now, key, act) {
  const node = now.nodes.get(key);
  const head = el("h3", {}, token(act.label(key)));
  const free = el("button", { type: "button", onclick: () => act.pin(null) }, "Unpin");
  if (!node) return [head, el("p", {}, "No edge of it is among those that are shown."), el("div", { class: "acts" }, free)];
  const group = node.members.length > 1;
  const about = group ? null : data.nodes[node.members[0]];
  const [into, out] = [sums(node.into), sums(node.out)];
  return [
    head,
    ...(about ? described(data, about) : []),
    el("p", {}, `In: ${signed(into.net)} over ${counted(into.edges)}. Out: ${signed(out.net)} over ${counted(out.edges)}.`),
    el("div", { class: "acts" }, free, ...buttons(data, node, group, act)),
    ...list("Strongest edges into it", node.into, "from", act),
    ...list("Strongest edges out of it", node.out, "to", act),
    ...(group ? members(data, node, act) : more(about)),
  ];
}

function counted(all) {
  return `${all} edge${all === 1 ? "" : "s"}`;
}

function described(data, about) {
  const role = about.role === null ? [] : [el("p", {}, el("strong", {}, token(data.roles[about.role][0])))];
  const where = about.position === undefined ? [] : [el("p", {}, "At ", token(about.position))];
  return [...role, ...where, about.words ? el("p", { class: "help" }, token(about.words)) : null];
}

function buttons(data, node, group, act) {
  const made = [
    el("button", { type: "button", onclick: () => act.hide(node.members) }, "Hide"),
    el("button", { type: "button", onclick: () => act.only(node.key) }, "Only its paths"),
  ];
  const band = data.nodes[node.members[0]].band;
  const open = node.key.startsWith("b");
  if (open || (!group && data.nodes.filter((other) => other.band === band).length > 1)) {
    made.push(el("button", { type: "button", onclick: () => act.collapse(band) }, open ? "Expand" : "Collapse its layer"));
  }
  return made;
}

function list(title, links, end, act) {
  if (!links.length) return [];
  const largest = Math.max(1e-300, ...links.map((link) => Math.abs(link.score ?? 0)));
  const rest = links.length > MOST ? [el("p", { class: "help" }, `and ${links.length - MOST} weaker ones`)] : [];
  const rows = byStrength(links).slice(0, MOST).map((link) => {
    const port = link.port ? (end === "from" ? ` → ${link.port}` : `.${link.port}`) : "";
    const other = link[end];
    return row(act, other, `${act.label(other)}${port}`, link.score, Math.abs(link.score ?? 0) / largest, act.role(other));
  });
  return [el("h4", {}, title), el("ul", {}, ...rows), ...rest];
}

function row(act, key, name, score, share, role) {
  const width = `width: ${Math.max(3, 100 * share).toFixed(0)}%`;
  const bar = el("div", { class: score !== null && score < 0 ? "bar minus" : "bar", style: width });
  const button = el("button", { type: "button", onclick: () => act.pin(key), onpointerenter: () => act.look(key),
    onpointerleave: () => act.look(null), title: role }, token(name));
  return el("li", {}, button, bar, el("span", {}, signed(score)));
}

function members(data, node, act) {
  const names = node.members.map((n) =>
    el("button", { type: "button", class: "pill", onclick: () => act.open(n) }, token(data.nodes[n].name)));
  return [el("h4", {}, "In it"), el("div", { class: "roles-row" }, ...names)];
}

function more(about) {
  const found = about.details ?? {};
  const made = [];
  if (found.tokens) {
    const all = found.tokens.map(([text, score]) => token(text, { title: score === null ? null : signed(score) }));
    made.push(el("h4", {}, "Tokens that it promotes"), el("div", { class: "tokens" }, ...all));
  }
  if (found.attention) made.push(el("h4", {}, "Attention, from rows to columns"), thumbnail(found.attention));
  if (found.text) made.push(el("p", {}, token(found.text)));
  return made;
}

function thumbnail(packed) {
  const [rows, columns] = packed.shape;
  const canvas = el("canvas", { width: columns, height: rows, role: "img", "aria-label": `Attention, ${rows} × ${columns}` });
  unpack(packed).then((shares) => {
    const [red, green, blue] = scheme().positive;
    const image = new ImageData(columns, rows);
    shares.forEach((share, n) => image.data.set([red, green, blue, share], 4 * n));
    canvas.getContext("2d").putImageData(image, 0, 0);
  });
  return canvas;
}
