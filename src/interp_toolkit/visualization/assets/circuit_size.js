// The slider over the size of a circuit, and beside it how faithful circuits of that size are.

import { el, number } from "./common.js";
import { chart, faithfulness, fixed } from "./circuit_curve.js";

const STEPS = 1000;

/** The controls for the number of edges, as an element; `show` brings them up to date. */
export function sizeControl(data, base, state, change) {
  const all = data.edges.length;
  const scores = data.edges.map((edge) => Math.abs(edge[4] ?? 0));
  const slider = el("input", { type: "range", min: 0, max: STEPS, step: 1, "aria-label": "Size of the circuit" });
  const box = el("input", { type: "number", min: 1, max: all, step: 1 });
  const words = el("output", {});
  const scale = el("select", { onchange: () => change("scale", scale.value) },
    el("option", { value: "number" }, "number of edges"), el("option", { value: "weight" }, "weight of edges"));
  slider.addEventListener("input", () => change("count", countAt(slider.value / STEPS, scale.value, scores)));
  box.addEventListener("change", () => change("count", Math.min(all, Math.max(1, Math.round(Number(box.value)) || all))));
  const value = el("span", { class: "value" });
  const told = el("span", { "aria-live": "polite" });
  const picture = chart(data);
  const controls = el("div", { class: "size" }, slider, words, el("label", {}, "Strongest", box, "edges"),
    base.scored ? el("label", {}, "Slide by", scale) : null);
  const faith = el("div", { class: "faith" }, el("div", { class: "words" }, value, told), picture?.svg ?? null);
  return {
    element: el("div", { class: "top" }, controls, faith),
    show(now, shown) {
      const found = faithfulness(data, now.count, !now.hidden.size);
      scale.value = now.scale;
      if (document.activeElement !== slider) slider.value = Math.round(STEPS * shareOf(now.count, now.scale, scores));
      slider.setAttribute("aria-valuetext", `${now.count} edges`);
      slider.disabled = all < 2;
      if (document.activeElement !== box) box.value = now.count;
      words.textContent = sizeWords(data, now, shown, scores);
      value.textContent = found.value === null ? "–" : `${found.known ? "" : "≈ "}${fixed(found.value)}`;
      told.textContent = `Faithfulness. ${found.text}.`;
      picture?.move(now.count, found);
    },
  };
}

/** How many edges a place of the slider stands for: both scales are logarithmic. */
function countAt(share, scale, scores) {
  if (scale === "number") return Math.max(1, Math.round(scores.length ** share));
  const [most, least] = ends(scores);
  const limit = most * (least / most) ** share;
  const found = scores.findIndex((score) => score < limit * (1 - 1e-12));
  return share >= 1 || found === -1 ? scores.length : Math.max(1, found);
}

/** The place of the slider for a number of edges. */
function shareOf(count, scale, scores) {
  if (count >= scores.length) return 1;
  if (scale === "number") return Math.log(Math.max(1, count)) / Math.log(Math.max(2, scores.length));
  const [most, least] = ends(scores);
  return most === least ? 1 : Math.log(Math.max(least, scores[count - 1]) / most) / Math.log(least / most);
}

function ends(scores) {
  const positive = scores.filter((score) => score > 0);
  return positive.length ? [positive[0], positive[positive.length - 1]] : [1, 1];
}

function sizeWords(data, now, shown, scores) {
  const whole = data.total === null ? "" : ` (${Number(((100 * now.count) / data.total).toPrecision(3))}% of the model’s)`;
  const weakest = scores[now.count - 1] > 0 ? `, each with |score| of at least ${number(scores[now.count - 1])}` : "";
  const left = shown.edges === now.count ? "" : `; ${shown.edges.toLocaleString("en")} of them are shown`;
  return `${now.count.toLocaleString("en")} of ${(data.edges.length + data.leftOut).toLocaleString("en")} edges${whole}${weakest}${left}`;
}
