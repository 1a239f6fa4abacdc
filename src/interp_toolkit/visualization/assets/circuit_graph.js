// A circuit as it is shown at the moment: which edges are chosen, which nodes are hidden or grouped, what leads where.

/** Everything that does not change: nodes, edges, and for each edge its links, one for each node that reads it. */
export function prepared(data) {
  const links = [];
  data.edges.forEach(([source, targets, port, dest, score], edge) => {
    for (const target of targets) {
      links.push({ n: links.length, edge, source, target, port, score, curve: data.curves[links.length] });
    }
  });
  const linked = new Set(links.flatMap((link) => [link.source, link.target]));
  const lonely = data.nodes.flatMap((node, n) => (linked.has(n) ? [] : [n]));
  const scored = data.edges.every((edge) => edge[4] !== null);
  const starts = data.nodes.flatMap((node, n) => (node.kind === "embed" ? [n] : []));
  const ends = data.nodes.flatMap((node, n) => (node.kind === "logits" ? [n] : []));
  const largest = Math.max(1e-300, ...data.edges.map((edge) => Math.abs(edge[4] ?? 0)));
  return { links, lonely, scored, starts, ends, largest };
}

/** The links that lie on a path from `embed` to `logits`, of those that are chosen. */
function connected(base, chosen, count) {
  const forth = walk(base.starts, count, chosen, (link) => link.source, (link) => link.target);
  const back = walk(base.ends, count, chosen, (link) => link.target, (link) => link.source);
  return chosen.filter((link) => forth[link.source] && back[link.target]);
}

/** Which nodes can be reached from others over links. */
function walk(from, count, links, begin, end) {
  const beside = Array.from({ length: count }, () => []);
  for (const link of links) beside[begin(link)].push(end(link));
  const seen = new Uint8Array(count);
  const waiting = [...from];
  for (const node of waiting) seen[node] = 1;
  while (waiting.length) {
    for (const next of beside[waiting.pop()]) {
      if (!seen[next]) {
        seen[next] = 1;
        waiting.push(next);
      }
    }
  }
  return seen;
}

/** What is shown: links between nodes and groups, with what leads into each and out of it. */
export function shownNow(data, base, state) {
  const { hidden, count } = state;
  const chosen = base.links.filter((link) => link.edge < count && !hidden.has(link.source) && !hidden.has(link.target));
  const left = state.prune ? connected(base, chosen, data.nodes.length) : chosen;
  const { keys, members } = grouped(data, state);
  const nodes = new Map();
  const touch = (key) => {
    if (!nodes.has(key)) nodes.set(key, { key, members: members.get(key) ?? [Number(key)], into: [], out: [] });
    return nodes.get(key);
  };
  const merged = new Map();
  const single = [];
  for (const link of left) {
    const [from, to] = [keys[link.source], keys[link.target]];
    touch(from);
    touch(to);
    if (from === to) continue;
    if (!members.has(from) && !members.has(to)) {
      single.push({ from, to, link, score: link.score, edges: 1, port: link.port, parts: [link] });
    } else add(merged, from, to, link);
  }
  base.lonely.filter((n) => !state.hidden.has(n)).forEach((n) => touch(keys[n]));
  const links = [...single, ...merged.values()];
  for (const link of links) {
    nodes.get(link.from).out.push(link);
    nodes.get(link.to).into.push(link);
  }
  return { nodes, links, base: left, edges: new Set(left.map((link) => link.edge)).size };
}

function add(merged, from, to, link) {
  const name = `${from}|${to}`;
  const found = merged.get(name) ?? { from, to, link: null, score: null, edges: 0, port: "", parts: [] };
  // Keys and values that several heads read are one edge of the model
  const known = found.parts.some((other) => other.edge === link.edge);
  found.parts.push(link);
  if (!known) found.edges += 1;
  if (!known && link.score !== null) found.score = (found.score ?? 0) + link.score;
  merged.set(name, found);
}

/** For each node the key of what stands for it, and for each group its members. */
function grouped(data, state) {
  const all = new Map();
  const name = data.nodes.map((node, n) => {
    const band = node.kind === "embed" || node.kind === "logits" ? null : `b${node.band}`;
    if (band !== null && (state.group === "layer" || state.bands.has(node.band))) return band;
    return state.group === "role" && node.role !== null ? `r${node.role}` : String(n);
  });
  name.forEach((key, n) => {
    if (!state.hidden.has(n)) all.set(key, [...(all.get(key) ?? []), n]);
  });
  const members = new Map([...all].filter(([key, inside]) => Number.isNaN(Number(key)) && inside.length > 1));
  return { keys: name.map((key, n) => (members.has(key) ? key : String(n))), members };
}

/** All that leads to a node and all that it leads to, and the links in between. */
export function traced(now, key) {
  const nodes = new Set([key]);
  const links = new Set();
  for (const [side, end] of [["into", "from"], ["out", "to"]]) {
    const waiting = [key];
    const seen = new Set(waiting);
    while (waiting.length) {
      for (const link of now.nodes.get(waiting.pop())?.[side] ?? []) {
        links.add(link);
        if (seen.has(link[end])) continue;
        seen.add(link[end]);
        nodes.add(link[end]);
        waiting.push(link[end]);
      }
    }
  }
  return { nodes, links };
}

/** Sums of scores over the edges of the model behind some links, each counted once, and how many there are. */
export function sums(links) {
  const edges = new Map(links.flatMap((link) => link.parts.map((part) => [part.edge, part.score ?? 0])));
  const scores = [...edges.values()];
  return { net: scores.reduce((a, b) => a + b, 0), size: scores.reduce((a, b) => a + Math.abs(b), 0), edges: edges.size };
}

/** Links in the order of their strength. */
export function byStrength(links) {
  return [...links].sort((a, b) => Math.abs(b.score ?? 0) - Math.abs(a.score ?? 0));
}

/** A circuit's file with those edges only that are shown; all of it if all of them are. */
export function fileOf(data, now) {
  const names = data.nodes.map((node) => node.raw ?? node.name);
  const left = new Set(now.base.map((link) => link.edge));
  const kept = data.edges.filter((_, n) => left.has(n));
  const edges = kept.map(([source, , , dest, score]) => [names[source], dest, score]);
  if (!data.file) return { nodes: data.nodes.map((node, n) => plain(data, node, names[n])), edges };
  if (kept.length === data.edges.length && !data.leftOut) return { ...data.file, edges };
  const there = new Set(now.base.flatMap((link) => [names[link.source], names[link.target]]));
  const nameOf = (role) => (role.head === null ? `L${role.layer}MLP` : `L${role.layer}H${role.head}`);
  const roles = data.file.roles.filter((role) => there.has(nameOf(role)));
  const notes = { operation: "shown in a view", edges_of_parts: [data.edges.length + data.leftOut] };
  return { ...data.file, roles, notes, num_edges: edges.length, edges };
}

/** A node as Python's `plot_circuit` reads it. */
function plain(data, node, name) {
  const role = node.role === null ? {} : { role: data.roles[node.role][0] };
  return { name, kind: node.kind, ...(node.layer === undefined ? {} : { layer: node.layer }), ...role };
}
