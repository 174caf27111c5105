"""The look of a report's page and its small script. Constants only: nothing here depends on a run."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1c2430; --quiet: #667085; --rule: #e3e7ee; --fill: #c9d3e3;
  --good: #1a7f4b; --bad: #c2372e;
  --c0: #3465c8; --c1: #d9722b; --c2: #24936a; --c3: #a83e93; --c4: #7157d9; --c5: #a5811a;
  --c6: #0e8fa8; --c7: #8a4b3a;
  --r0: #b3262a; --r1: #cb4f24; --r2: #d8761d; --r3: #c89a1c; --r4: #98a02a;
  --r5: #55a04a; --r6: #229a7c; --r7: #1f86ab; --r8: #3564bd; --r9: #5a3fa8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161d; --card: #1b212b; --ink: #e6eaf0; --quiet: #98a3b5; --rule: #2e3744; --fill: #3c495d;
    --good: #4cc38a; --bad: #ff7b72;
    --c0: #7aa2f7; --c1: #f2a05f; --c2: #5cc9a0; --c3: #db86ca; --c4: #a892ff; --c5: #d6b656;
    --c6: #5bc8de; --c7: #d39b86;
    --r0: #ff7b78; --r1: #ff9166; --r2: #f9ab57; --r3: #ebc75a; --r4: #c4ce62;
    --r5: #8cd07f; --r6: #5fcdae; --r7: #62bfe3; --r8: #8aa9f5; --r9: #b39af2;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main, header.page { max-width: 1240px; margin: 0 auto; padding: 0 24px; }
header.page { padding-top: 32px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 36px 0 12px; letter-spacing: -0.005em; }
h3 { font-size: 15px; margin: 20px 0 8px; overflow-wrap: anywhere; }
p { margin: 6px 0 12px; max-width: 78ch; }
.quiet, figcaption small { color: var(--quiet); }
code, .mono { font: 12.5px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.card, figure.chart {
  background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px; margin: 0;
}
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; margin: 12px 0; }
.tile b { display: block; font-size: 22px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--quiet); font-size: 12.5px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 14px; }
.charts.after { margin-top: 14px; align-items: start; }
figure.chart { position: relative; min-width: 0; }
figcaption { font-weight: 600; font-size: 14px; margin-bottom: 6px; }
figure.chart > svg { display: block; width: 100%; height: auto; overflow: visible; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 12.5px; color: var(--quiet); margin-top: 4px; }
.key { display: inline-flex; align-items: center; gap: 6px; overflow-wrap: anywhere; }
.key svg { width: 18px; height: 10px; flex: none; }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); }
.c3 { --c: var(--c3); } .c4 { --c: var(--c4); } .c5 { --c: var(--c5); }
.c6 { --c: var(--c6); } .c7 { --c: var(--c7); } .neutral { --c: var(--quiet); }
.r0 { --c: var(--r0); } .r1 { --c: var(--r1); } .r2 { --c: var(--r2); } .r3 { --c: var(--r3); } .r4 { --c: var(--r4); }
.r5 { --c: var(--r5); } .r6 { --c: var(--r6); } .r7 { --c: var(--r7); } .r8 { --c: var(--r8); } .r9 { --c: var(--r9); }
svg .line { fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; }
svg .dashed { stroke-dasharray: 5 3; }
svg .dotted { stroke-dasharray: 1.5 2.5; }
svg .swatch { fill: none; stroke: var(--c); stroke-width: 2.4; }
svg .swatch.area { stroke: var(--fill); stroke-width: 9; }
svg .swatch.bar { stroke-width: 9; }
svg .area { fill: var(--fill); }
svg .bar { fill: var(--c); }
svg .column { fill: transparent; }
svg g:hover > .column { fill: var(--rule); }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .axis { stroke: var(--quiet); stroke-width: 1; }
svg .tick { fill: var(--quiet); font: 11px system-ui, sans-serif; }
svg .phase { fill: var(--c); opacity: 0.16; }
svg .phase.odd { opacity: 0.34; }
svg .phase-name { fill: var(--ink); font: 10px system-ui, sans-serif; }
svg .phase-start { stroke: var(--c); stroke-width: 1; opacity: 0.35; stroke-dasharray: 2 3; }
svg .backdrop { fill: var(--c); opacity: 0; }
svg .backdrop.odd { opacity: 0.06; }
svg .mark { stroke: var(--c); stroke-width: 1.2; opacity: 0.8; }
svg .mark-head { fill: var(--c); }
svg .mark-name {
  fill: var(--ink); font: 10px system-ui, sans-serif; paint-order: stroke; stroke: var(--card); stroke-width: 3px;
}
svg.spark { display: block; width: 100%; height: 26px; margin: 3px 0; }
svg .dot-last { fill: var(--c); }
svg .cursor { stroke: var(--quiet); stroke-width: 1; }
.tip {
  position: absolute; z-index: 2; pointer-events: none; background: var(--card); border: 1px solid var(--rule);
  border-radius: 6px; padding: 6px 9px; font-size: 12px; box-shadow: 0 2px 10px rgb(0 0 0 / 0.16); white-space: nowrap;
}
.tip i {
  display: inline-block; width: 10px; height: 3px; margin-right: 6px; background: var(--c); vertical-align: middle;
}
.scroll { overflow: auto; max-height: 460px; }
.scroll:has(> table.whole) { max-height: none; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 8px; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 11ch; }
th { color: var(--quiet); font-weight: 600; position: sticky; top: 0; background: var(--card); }
td.left, th:has(> .left) { text-align: left; }
td.words { text-align: left; white-space: normal; min-width: 30ch; overflow-wrap: anywhere; }
table.settings td { text-align: left; white-space: normal; min-width: 12ch; overflow-wrap: anywhere; }
table.settings th { text-align: left; }
tr:last-child td { border-bottom: 0; }
table.sortable th { cursor: pointer; }
table.sortable th[aria-sort="ascending"]::after { content: " \\2191"; }
table.sortable th[aria-sort="descending"]::after { content: " \\2193"; }
td.best { font-weight: 700; }
.meter {
  display: inline-block; width: 48px; height: 7px; border-radius: 4px; background: var(--rule); margin-left: 8px;
}
.meter i { display: block; height: 100%; border-radius: 4px; background: var(--c0); }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 50%; background: var(--c); margin-right: 7px; }
details > summary { cursor: pointer; font-weight: 600; margin: 10px 0; overflow-wrap: anywhere; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; }
.suspect { padding: 8px; display: flex; flex-direction: column; font-size: 12.5px; min-width: 0; }
.suspect img, .suspect .missing {
  width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--page); border-radius: 6px; margin-bottom: 6px;
}
.suspect .missing { display: grid; place-items: center; color: var(--quiet); }
.suspect .labels { overflow-wrap: anywhere; line-height: 1.35; }
.suspect .mono { color: var(--quiet); font-size: 11px; margin-top: 4px; }
.badge {
  align-self: flex-start; border-radius: 4px; padding: 0 6px; font-weight: 600; font-size: 11.5px; color: var(--card);
}
.badge.wrong { background: var(--bad); } .badge.right { background: var(--good); }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; font-size: 13px; margin: 0; }
.facts dt { color: var(--quiet); } .facts dd { margin: 0; overflow-wrap: anywhere; }
footer { color: var(--quiet); font-size: 12.5px; padding: 32px 0 40px; }
@media (max-width: 600px) {
  main, header.page { padding: 0 12px; }
  .card, figure.chart { padding: 12px; }
  th, td { padding: 5px 6px; }
  table.events thead { display: none; }
  table.events tr { display: block; padding: 6px 0; border-bottom: 1px solid var(--rule); }
  table.events td { display: inline-block; border: 0; padding: 0 8px 0 0; min-width: 0; }
  table.events td.words { display: block; }
  .meter { width: 28px; }
  svg .tick { font-size: 16px; }
  svg .phase-name, svg .mark-name { font-size: 13px; }
}
@media print { .scroll { max-height: none; } figure.chart, .card { break-inside: avoid; } }
"""

SCRIPT = """
"use strict";
for (const svg of document.querySelectorAll("svg[data-chart]")) {
  const chart = JSON.parse(svg.dataset.chart), figure = svg.parentElement;
  const show = value => chart.percent ? (100 * value).toFixed(1) + "%" : Number(value.toPrecision(4)).toString();
  let tip = null, cursor = null;
  const hide = () => { tip?.remove(); cursor?.remove(); tip = cursor = null; };
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", event => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    if (at.x < chart.left || at.x > chart.right) return hide();
    const [low, high] = chart.range;
    const x = low + (at.x - chart.left) / (chart.right - chart.left) * (high - low);
    if (!tip) {
      tip = document.createElement("div"); tip.className = "tip"; figure.append(tip);
      cursor = document.createElementNS(svg.namespaceURI, "path"); cursor.setAttribute("class", "cursor");
      svg.append(cursor);
    }
    cursor.setAttribute("d", `M${at.x} 0V${svg.viewBox.baseVal.height - 34}`);
    const at_x = chart.x === "step" ? "step " + Math.round(x).toLocaleString() : `${chart.x} ${x.toFixed(2)}`;
    tip.replaceChildren(at_x);
    for (const line of chart.lines) {
      let near = 0;
      line.x.forEach((value, place) => { if (Math.abs(value - x) < Math.abs(line.x[near] - x)) near = place; });
      const row = document.createElement("div"), mark = document.createElement("i");
      mark.className = line.css; row.append(mark, line.label + ": " + show(line.y[near])); tip.append(row);
    }
    const frame = figure.getBoundingClientRect(), left = event.clientX - frame.left;
    tip.style.top = event.clientY - frame.top + 14 + "px";
    if (left > frame.width / 2) { tip.style.right = frame.width - left + 14 + "px"; tip.style.left = ""; }
    else { tip.style.left = left + 14 + "px"; tip.style.right = ""; }
  });
}
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const rising = head.getAttribute("aria-sort") === "descending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const compare = (a, b) => key(a).localeCompare(key(b), undefined, { numeric: true });
    const numeric = (a, b) => Number(key(a)) - Number(key(b));
    const rows = [...body.rows];
    rows.sort(rows.every(row => key(row) !== "" && !isNaN(key(row))) ? numeric : compare);
    body.append(...(rising ? rows : rows.reverse()));
  }));
}
"""
