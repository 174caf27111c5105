"""How a report of shards looks, and its few lines of script. Constants: nothing here depends on a data set.

The palette is that of wv-report's pages. The page reads the same without the script, which only sorts tables.
"""

STYLE = """
:root {
  color-scheme: light dark;
  --back: light-dark(#f6f7f9, #12161d); --card: light-dark(#fff, #1b212b);
  --ink: light-dark(#1c2430, #e6eaf0); --soft: light-dark(#5d6779, #98a3b5);
  --line: light-dark(#e3e7ee, #2e3744); --mass: light-dark(#c9d3e3, #3c495d);
  --one: light-dark(#3465c8, #7aa2f7); --two: light-dark(#c2601c, #f2a05f); --good: light-dark(#1a7f4b, #4cc38a);
  --bad: light-dark(#c2372e, #ff7b72);
}
*, *::before { box-sizing: border-box }
html { background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, Arial, sans-serif }
body { margin: 0 auto; max-width: 1180px; padding: 28px 22px 48px }
h1 { font-size: 25px; line-height: 1.25; margin: 0 }
h2 { font-size: 19px; margin: 40px 0 10px; scroll-margin-top: 10px }
h3 { font-size: 14.5px; margin: 0 0 6px; overflow-wrap: anywhere }
h3 .soft { font-weight: 400 }
p { margin: 4px 0 10px; max-width: 80ch; overflow-wrap: anywhere }
nav { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 13.5px; margin: 10px 0 }
a { color: var(--one) }
bdi { unicode-bidi: isolate }
.soft, .soft a { color: var(--soft) }
.ok { color: var(--good); font-weight: 600 }
.no { color: var(--bad); font-weight: 600 }
.mono { font: 12.5px/1.5 ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere }
.box { background: var(--card); border: 1px solid var(--line); border-radius: 10px; min-width: 0; padding: 13px 15px }
.grid { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)) }
.chart { display: grid; gap: 14px; grid-template-columns: minmax(0, 1.7fr) minmax(0, 1fr) }
.tiles { display: grid; gap: 11px; grid-template-columns: repeat(auto-fill, minmax(142px, 1fr)); margin: 16px 0 }
.tiles b { display: block; font-size: 21px; font-variant-numeric: tabular-nums; line-height: 1.3 }
.tiles span { color: var(--soft); font-size: 12.5px }
.pairs { display: grid; font-size: 13px; gap: 2px 16px; grid-template-columns: max-content minmax(0, 1fr); margin: 0 }
.pairs dt { color: var(--soft) }
.pairs dd { margin: 0; overflow-wrap: anywhere }
.wide { max-width: 100%; overflow: auto; width: fit-content }
details .wide { max-height: 520px }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums }
td, th { border-bottom: 1px solid var(--line); padding: 4px 9px; text-align: right; white-space: nowrap }
thead th { background: var(--card); color: var(--soft); font-weight: 600; position: sticky; top: 0 }
td.t, th.t { text-align: left; white-space: normal }
td.t { max-width: 46ch; min-width: 7ch; overflow-wrap: break-word }
tr.sum td { border-bottom: 0; font-weight: 600 }
.sorts thead th { cursor: pointer }
.sorts th[data-way="1"]::after { content: " \\25b4" }
.sorts th[data-way="-1"]::after { content: " \\25be" }
.bar { background: var(--line); border-radius: 3px; display: inline-block; height: 7px; margin-left: 8px; width: 54px }
.bar i { background: var(--one); border-radius: 3px; display: block; height: 7px }
figure { margin: 0; min-width: 0 }
figcaption { font-size: 14px; font-weight: 600; margin-bottom: 6px }
figure > svg { display: block; height: auto; overflow: visible; width: 100% }
svg text { fill: var(--soft); font-family: system-ui, sans-serif; font-size: 12px }
.rule { stroke: var(--line) }
.axis { stroke: var(--soft) }
.mass { fill: var(--mass) }
.bars { fill: var(--one) }
.one, .two { fill: none; stroke: var(--one); stroke-linejoin: round; stroke-width: 1.8 }
.two { stroke: var(--two); stroke-dasharray: 5 3 }
.hit { fill: transparent }
g:hover > .hit { fill: var(--line); fill-opacity: 0.55 }
.key { color: var(--soft); display: flex; flex-wrap: wrap; font-size: 12.5px; gap: 2px 16px; margin-top: 5px }
.key span { align-items: center; display: inline-flex; gap: 6px }
.key svg { height: 10px; width: 20px }
summary { cursor: pointer; font-weight: 600; margin: 12px 0 8px }
.codes { font-size: 12.5px; margin-bottom: 6px }
.lines { font-size: 12.5px; list-style: none; margin: 6px 0 0; padding: 0 }
.lines li { border-top: 1px solid var(--line); padding: 3px 0 }
.row { display: flex; flex-wrap: wrap; gap: 10px }
.pic { font-size: 11.5px; line-height: 1.35; margin: 0; overflow-wrap: anywhere; width: 103px }
.pic img, .pic .gone { background: var(--back); border-radius: 6px; display: block; height: 103px; width: 103px }
.pic img { object-fit: contain }
.pic .gone { color: var(--soft); display: grid; place-items: center }
.pic.first img { outline: 2px solid var(--one); outline-offset: -1px }
.keys { max-height: 3em; overflow: hidden }
.keys .mono { font-size: 10.5px }
.stack { display: grid; gap: 14px }
@media (max-width: 900px) { .chart { grid-template-columns: minmax(0, 1fr) } }
@media (max-width: 640px) {
  body { padding: 18px 12px 36px }
  .curve text { font-size: 19px }
  td, th { padding: 4px 6px }
  .minor { display: none }
  .pic, .pic img, .pic .gone { width: 98px }
  .pic img, .pic .gone { height: 98px }
}
@media print {
  html { font-size: 12px }
  nav { display: none }
  details .wide, .wide { max-height: none; overflow: visible }
  .box, .tiles div, figure { break-inside: avoid }
}
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sorts")) {
  const body = table.tBodies[0];
  table.tHead.addEventListener("click", ({ target }) => {
    const way = target.dataset.way === "-1" ? 1 : -1, at = target.cellIndex;
    for (const cell of target.parentNode.cells) delete cell.dataset.way;
    target.dataset.way = way;
    const text = row => row.cells[at].textContent.trim();
    const number = row => parseFloat(text(row).replaceAll(",", ""));
    const order = (a, b) => {
      const x = number(a), y = number(b);
      return isNaN(x) && isNaN(y) ? text(a).localeCompare(text(b)) : isNaN(x) ? -1 : isNaN(y) ? 1 : x - y;
    };
    const names = target.classList.contains("t");
    const byName = (a, b) => text(a).localeCompare(text(b), undefined, { numeric: true });
    body.append(...[...body.rows].sort((a, b) => way * (names ? byName : order)(a, b)));
  });
}
"""
