// How a circuit looks.

export const STYLE = `
.circuit { --panel-width: 19rem; } .circuit rect { shape-rendering: auto; } .circuit bdi { white-space: pre-wrap; }
.circuit .top { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: .5rem 1.5rem; align-items: center;
  border: 1px solid var(--line); border-radius: 8px; background: var(--panel); padding: .75rem 1rem; margin-bottom: .75rem; }
.circuit .size { display: flex; flex-wrap: wrap; gap: .35rem .9rem; align-items: center; font-size: .875rem;
  color: var(--soft); }
.circuit .size input[type=range] { flex: 1 1 100%; width: 100%; margin: .1rem 0; accent-color: var(--accent); }
.circuit .size label { display: inline-flex; gap: .4rem; align-items: center; }
.circuit .size output { flex: 1 1 100%; color: var(--ink); font-variant-numeric: tabular-nums; }
.circuit input[type=number] { font: inherit; color: var(--ink); background: var(--paper); border: 1px solid var(--line);
  border-radius: 6px; padding: .15rem .4rem; width: 5.5rem; }
.circuit .faith { display: flex; gap: 1rem; align-items: center; }
.circuit .faith .words { width: 15rem; font-size: .8125rem; line-height: 1.35; color: var(--soft); min-height: 5.6em; }
.circuit .faith .value { display: block; font-size: 1.75rem; line-height: 1.15; font-weight: 600; color: var(--ink);
  font-variant-numeric: tabular-nums; }
.circuit .faith svg { display: block; }
.circuit .rule { stroke: var(--line); } .circuit .tick { fill: var(--soft); font: 10px system-ui, sans-serif; }
.circuit .band { fill: var(--accent); opacity: .15; } .circuit .curve { fill: none; stroke: var(--accent); stroke-width: 2; }
.circuit .spot { fill: var(--accent); } .circuit .own { fill: var(--paper); stroke: var(--accent); stroke-width: 2; }
.circuit line.now { stroke: var(--ink); stroke-width: 1; stroke-dasharray: 2 2; } .circuit circle.now { fill: var(--ink); }
.circuit .main { display: grid; grid-template-columns: minmax(0, 1fr) var(--panel-width); gap: 1rem; align-items: start; }
.circuit .stage { position: relative; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.circuit .stage > svg { display: block; width: 100%; cursor: grab; touch-action: pan-y; }
.circuit .stage > svg.moving { cursor: grabbing; }
.circuit .zoom { display: inline-flex; gap: .25rem; }
.circuit .zoom button { min-width: 2rem; }
.circuit .link { fill: none; stroke: var(--positive); } .circuit .link.minus { stroke: var(--negative); stroke-dasharray: 5 3; }
.circuit .link.bare { stroke: var(--soft); } .circuit .link:hover { stroke-opacity: 1 !important; }
.circuit .rail { stroke: var(--line); opacity: .5; } .circuit .side { fill: var(--soft); font: 11px system-ui, sans-serif; }
.circuit .port { fill: var(--soft); font: 600 11px system-ui, sans-serif; paint-order: stroke; stroke: var(--paper);
  stroke-width: 3px; }
/* What is not shown keeps its place in the layout, which makes the slider quick */
.circuit .stage svg [hidden] { display: inline !important; visibility: hidden; }
.circuit .node { cursor: pointer; outline: none; }
.circuit .node .back { fill: var(--paper); stroke: none; }
.circuit .node .box { fill: var(--role, transparent); fill-opacity: .2; stroke: var(--role, var(--soft)); stroke-width: 1.6px; }
.circuit .node.end .box { fill: var(--line); fill-opacity: .6; }
.circuit .node.group .box { stroke-dasharray: none; stroke-width: 3px; }
.circuit .node text { fill: var(--ink); font-family: system-ui, sans-serif; text-anchor: middle; pointer-events: none; }
.circuit .node .tag { fill: var(--soft); }
.circuit .node:hover .box, .circuit .node:focus .box { stroke: var(--ink); }
.circuit .node:focus-visible .box { stroke: var(--accent); stroke-width: 3px; }
.circuit .node.pinned .box { stroke: var(--ink); stroke-width: 3px; }
.circuit .node.match .box { stroke: var(--mark); stroke-width: 3px; }
.circuit .tracing .link { stroke-opacity: .04 !important; } .circuit .tracing .link.far { stroke-opacity: .4 !important; }
.circuit .tracing .link.near { stroke-opacity: 1 !important; }
.circuit .tracing .node:not(.near):not(.far), .circuit .seeking .node:not(.match) { opacity: .25; }
.circuit .tracing .node.far { opacity: .75; } .circuit .tracing .port:not(.near) { opacity: 0; }
.circuit .thin .node:not(.near):not(.match):not(.pinned) text { display: none; }
.circuit .panel { font-size: .875rem; line-height: 1.45; overflow-wrap: anywhere; }
.circuit .panel h3 { font-size: 1.0625rem; line-height: 1.3; margin: 0 0 .25rem; }
.circuit .panel h4 { font-size: .8125rem; color: var(--soft); font-weight: 600; margin: .75rem 0 .25rem; }
.circuit .panel p { margin: .25rem 0; } .circuit .panel ul { list-style: none; margin: 0; padding: 0; }
.circuit .panel li { display: grid; grid-template-columns: minmax(0, 1fr) 3.2rem 4rem; gap: .5rem; align-items: center; }
.circuit .panel li > span { text-align: right; font-variant-numeric: tabular-nums; }
.circuit .panel li button { border: 0; background: none; text-align: left; padding: .1rem .25rem; color: var(--accent);
  min-height: 1.6rem; }
.circuit .panel li button:hover { text-decoration: underline; }
.circuit .bar { height: .5rem; border-radius: 2px; background: var(--positive); }
.circuit .bar.minus { background: var(--negative); }
.circuit .acts { display: flex; flex-wrap: wrap; gap: .35rem; margin: .6rem 0; }
.circuit .roles-row { display: flex; flex-wrap: wrap; gap: .35rem .5rem; margin: .6rem 0; align-items: center;
  font-size: .8125rem; color: var(--soft); }
.circuit .pill { display: inline-flex; gap: .4rem; align-items: center; border-radius: 999px; padding: .1rem .7rem;
  font-size: .8125rem; }
.circuit .pill i { width: 1.1rem; height: .7rem; border-radius: 999px; border: 2px solid var(--role); position: relative;
  overflow: hidden; }
.circuit .pill i::before { content: ""; position: absolute; inset: 0; background: var(--role); opacity: .25; }
.circuit .sample { display: inline-flex; gap: .4rem; align-items: center; }
.circuit .sample i { width: 1.6rem; border-top: 3px solid var(--positive); }
.circuit .sample.minus i { border-top: 3px dashed var(--negative); }
.circuit .tokens { display: flex; flex-wrap: wrap; gap: .25rem; }
.circuit .tokens bdi { background: var(--panel); border: 1px solid var(--line); border-radius: 4px; padding: 0 .3rem; }
.circuit .panel canvas { width: 100%; max-width: 12rem; image-rendering: pixelated; border: 1px solid var(--line); }
.circuit .help { color: var(--soft); font-size: .8125rem; }
@media (max-width: 1000px) { .circuit .top { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 760px) { .circuit .main { grid-template-columns: minmax(0, 1fr); } .circuit .faith { flex-wrap: wrap; }
  .circuit .faith .words { width: auto; flex: 1 1 12rem; min-height: 0; } }
@media print { .circuit .zoom, .circuit .size, .circuit .acts { display: none; } }
`;
