// A heat map: rows × columns of numbers.

import { el, hint, token } from "./common.js";

/** Brings a heat map to life. */
export function mount(root, data, memory) {
  root.append(el("p", {}, token(data.rows.join(" "))));
}
