// Attention weights: unpacked when they are asked for, masked, weighed, compared and averaged.

import { unpack } from "./common.js";

const KEPT = 48;
const STEPS = 200;
const WEIGHT = Float32Array.from({ length: 256 }, (_, byte) => (byte / STEPS) ** 2);

/** The weights of every head, as `await weights(head, settings)`, dense and row by row. */
export function reader(data) {
  const length = data.tokens.length;
  const kept = new Map();
  const norms = data.norms ? unpack(data.norms) : null;

  async function plain(head, list) {
    return dense(await unpack({ dtype: "uint8", data: list[head] }), length, data.causal);
  }

  async function adjusted(head, list, settings) {
    const weights = await plain(head, list);
    const weigh = settings.norms && norms ? (await norms).subarray(head * length, (head + 1) * length) : null;
    return settings.mask || weigh ? reweigh(weights, length, settings.mask, weigh) : weights;
  }

  async function shown(head, settings) {
    if (settings.show === "clean" || !data.corrupt) return adjusted(head, data.patterns, settings);
    if (settings.show === "corrupt") return adjusted(head, data.corrupt, settings);
    const clean = await adjusted(head, data.patterns, settings);
    const corrupt = await adjusted(head, data.corrupt, settings);
    return clean.map((weight, n) => weight - corrupt[n]);
  }

  function remembered(key, make) {
    const found = kept.get(key) ?? make();
    kept.delete(key);
    kept.set(key, found);
    if (kept.size > Math.max(8, Math.min(KEPT, 4e7 / length ** 2))) kept.delete(kept.keys().next().value);
    return found;
  }

  return {
    /** One head's weights; of `difference`, clean minus corrupt. */
    weights(head, settings) {
      const key = [head, settings.show, settings.mask, settings.norms].join();
      return remembered(key, () => shown(head, settings));
    },
    /** The mean or the largest of several heads' weights; of `difference`, the difference of these. */
    combined(heads, settings) {
      const key = [settings.combine, heads.join("+"), settings.show, settings.mask, settings.norms].join();
      return remembered(key, async () => {
        const over = async (list) => combine(heads.map((head) => () => adjusted(head, list, settings)), length, settings.combine);
        if (settings.show === "corrupt" && data.corrupt) return over(data.corrupt);
        const clean = await over(data.patterns);
        if (settings.show !== "difference" || !data.corrupt) return clean;
        const corrupt = await over(data.corrupt);
        return clean.map((weight, n) => weight - corrupt[n]);
      });
    },
  };
}

/** Weights of bytes, the upper triangle filled with zeros. */
export function dense(bytes, length, causal) {
  const weights = new Float32Array(length * length);
  if (!causal) return weights.map((_, n) => WEIGHT[bytes[n]]);
  let from = 0;
  for (let row = 0; row < length; row += 1) {
    for (let column = 0; column <= row; column += 1, from += 1) weights[row * length + column] = WEIGHT[bytes[from]];
  }
  return weights;
}

/** Weights without the first token, or times norms; each row sums to what it did, if anything is left of it. */
function reweigh(weights, length, mask, norms) {
  const made = new Float32Array(weights.length);
  for (let row = 0; row < length; row += 1) {
    let before = 0;
    let rest = 0;
    for (let n = row * length, column = 0; column < length; n += 1, column += 1) {
      before += weights[n];
      made[n] = mask && column === 0 ? 0 : weights[n] * (norms ? norms[column] : 1);
      rest += made[n];
    }
    if (rest === 0) continue;
    for (let n = row * length; n < (row + 1) * length; n += 1) made[n] *= before / rest;
  }
  return made;
}

async function combine(makers, length, kind) {
  const made = new Float32Array(length * length);
  for (const make of makers) {
    const weights = await make();
    if (kind === "max") for (let n = 0; n < made.length; n += 1) made[n] = Math.max(made[n], weights[n]);
    else for (let n = 0; n < made.length; n += 1) made[n] += weights[n] / makers.length;
  }
  return made;
}

/** A matrix cut down to `most` rows and columns: of each block the number that is furthest from zero. */
export function pooled(weights, length, most) {
  if (length <= most) return { size: length, values: weights };
  const values = new Float32Array(most * most);
  const place = Int32Array.from({ length }, (_, n) => Math.floor(((n + 1) * most - 1) / length));
  for (let row = 0, n = 0; row < length; row += 1) {
    const start = place[row] * most;
    for (let column = 0; column < length; column += 1, n += 1) {
      const to = start + place[column];
      if (Math.abs(weights[n]) > Math.abs(values[to])) values[to] = weights[n];
    }
  }
  return { size: most, values };
}

/** Heads in the order of a score: the most focused first for entropy, else the largest; unknown ones last. */
export function ordered(heads, scores, name) {
  const score = scores.find((candidate) => candidate.name === name);
  if (!score) return heads;
  const sign = name === "entropy" ? 1 : -1;
  const rank = (head) => (score.values[head] === null ? Infinity : sign * score.values[head]);
  return [...heads].sort((a, b) => rank(a) - rank(b) || a - b);
}

/** The head of a layer with the number of another head, or the first one. */
export function sameHead(heads, head, layer) {
  const there = heads.map((_, n) => n).filter((n) => heads[n].layer === layer);
  return there.find((n) => heads[n].head === heads[head].head) ?? there[0];
}

/** The columns with the largest weights of a row, largest first. */
export function sources(weights, length, row, most) {
  const size = (column) => Math.abs(weights[row * length + column]);
  const columns = Array.from({ length }, (_, column) => column).filter((column) => size(column) > 5e-4);
  return columns.sort((a, b) => size(b) - size(a)).slice(0, most).map((column) => [column, weights[row * length + column]]);
}
