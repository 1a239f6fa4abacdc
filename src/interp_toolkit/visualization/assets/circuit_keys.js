// Moving from node to node with arrow keys.

/** The node that an arrow key leads to, or null: up and down along the strongest edge, left and right within a layer. */
export function moved(now, drawing, byStrength, key, arrow) {
  const node = now.nodes.get(key);
  if (arrow === "ArrowUp") return byStrength(node.out)[0]?.to ?? nearest(now, drawing, key, -1);
  if (arrow === "ArrowDown") return byStrength(node.into)[0]?.from ?? nearest(now, drawing, key, 1);
  const [x, y] = drawing.at(key);
  const side = arrow === "ArrowRight" ? 1 : -1;
  const reach = Math.max(drawing.boxHeight, drawing.data.size[3]) * 1.2;
  const beside = [...now.nodes.keys()].map((other) => ({ other, at: drawing.at(other) }))
    .filter(({ other, at }) => other !== key && Math.abs(at[1] - y) <= reach && (at[0] - x) * side > 0);
  beside.sort((a, b) => Math.abs(a.at[0] - x) - Math.abs(b.at[0] - x));
  return beside[0]?.other ?? null;
}

/** The nearest node above or below. */
function nearest(now, drawing, key, down) {
  const [x, y] = drawing.at(key);
  const others = [...now.nodes.keys()].map((other) => ({ other, at: drawing.at(other) }))
    .filter(({ at }) => (at[1] - y) * down > 1);
  others.sort((a, b) => distance(a.at, x, y) - distance(b.at, x, y));
  return others[0]?.other ?? null;
}

function distance(at, x, y) {
  return Math.abs(at[1] - y) * 3 + Math.abs(at[0] - x);
}
