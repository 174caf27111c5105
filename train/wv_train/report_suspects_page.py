"""The page of suspects as one HTML text, which loads nothing: a list of classes, and the worst samples of one of them.

Keys, paths and names of classes come from strangers. They travel as JSON in which no `<` is left, and the script puts
them on the page as text, never as HTML.
"""

import base64
import json
from typing import Any

from wv_train.ledger import HISTORY_VISITS
from wv_train.report_style import STYLE
from wv_train.report_suspects import SuspectImage, SuspectsPage
from wv_train.report_words import escape, short_name

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def render_suspects(page: SuspectsPage) -> str:
    """The whole page."""
    low, high = page.interval
    lead = (
        f"{page.known:,} of {page.samples:,} samples were seen often enough to be judged. Wrong labels to be expected "
        f"among them: {page.expected_wrong:,.0f} ({page.expected_wrong / max(1, page.known):.1%}), "
        f"likely between {low:,.0f} and {high:,.0f}."
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Suspects of {escape(page.run)}</title><style>{STYLE}{_STYLE}</style></head>\n<body>"
        f'<header class="page"><h1>Suspects of {escape(page.run)}</h1><p class="quiet">{escape(lead)}</p>'
        '<p class="quiet">Each picture: the given label, the class that the model believes in, the probability that '
        "the label is wrong, a rough number: the order is worth more. The small line is the label's confidence "
        f"at its last visits, at most {HISTORY_VISITS}, between 0 and 1. "
        "Keys: <kbd>/</kbd> search; <kbd>j</kbd> and <kbd>k</kbd>, in the list <kbd>↓</kbd> and <kbd>↑</kbd> too, the "
        "next class and the one before.</p></header>\n"
        '<main class="browse"><nav aria-label="classes"><input id="search" type="search" placeholder="Search a class"'
        ' aria-label="Search a class" autocomplete="off"><select id="order" aria-label="Order of the classes">'
        '<option value="expected">most wrong labels first</option><option value="share">largest share first</option>'
        '<option value="name">by name</option></select>'
        '<div id="classes" role="listbox" tabindex="0" aria-label="Classes"></div></nav>'
        '<section aria-live="polite"><h2 id="title"></h2><p id="about" class="quiet"></p>'
        '<div id="gallery" class="gallery"></div></section></main>'
        '<noscript><p class="page">This page shows its pictures by a script, which is in it.</p></noscript>'
        f'<script type="application/json" id="data">{_as_json(page)}</script><script>{_SCRIPT}</script></body></html>\n'
    )


def _as_json(page: SuspectsPage) -> str:
    document = {
        "visits": HISTORY_VISITS,
        "names": [short_name(name) for name in page.names],
        "classes": [
            [one.class_id, one.name, one.samples, round(one.expected_wrong, 2), list(one.images)]
            for one in page.classes
        ],
        "overall": list(page.overall),
        "images": [_image(image) for image in page.images],
        "known": page.known,
        "expected": round(page.expected_wrong, 1),
    }
    text = json.dumps(document, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    # Within a script element HTML looks for `</` and `<!--` alone; JSON may write both otherwise.
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _image(image: SuspectImage) -> dict[str, Any]:
    return {
        "key": image.key,
        "path": image.path,
        "label": image.label,
        "believed": image.believed,
        "wrong": round(image.wrong, 3),
        "mean": round(image.mean_confidence, 3),
        "last": round(image.last_confidence, 3),
        "visits": image.visits,
        "gated": image.gated,
        "history": list(image.history),
        "jpeg": None if image.thumbnail is None else base64.b64encode(image.thumbnail).decode(),
    }


_STYLE = """
main.browse { display: grid; grid-template-columns: 300px minmax(0, 1fr); gap: 24px; align-items: start; }
nav { position: sticky; top: 12px; display: grid; gap: 8px; }
nav input, nav select {
  font: inherit; color: inherit; background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 6px 10px; width: 100%;
}
#classes {
  background: var(--card); border: 1px solid var(--rule); border-radius: 10px; overflow: auto;
  max-height: calc(100vh - 120px); font-size: 13.5px;
}
#classes > div {
  display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 2px 10px; padding: 5px 12px; cursor: pointer;
  border-left: 3px solid transparent; content-visibility: auto; contain-intrinsic-size: auto 31px;
}
#classes > div:hover { background: var(--page); }
#classes > div[aria-selected="true"] { border-left-color: var(--c0); background: var(--page); font-weight: 600; }
#classes .name { overflow-wrap: anywhere; }
#classes .number { color: var(--quiet); font-variant-numeric: tabular-nums; }
#classes .none { padding: 8px 12px; color: var(--quiet); cursor: default; }
section h2 { margin-top: 0; overflow-wrap: anywhere; }
kbd {
  border: 1px solid var(--rule); border-radius: 4px; padding: 0 5px; background: var(--card); font: 12px monospace;
}
.suspect .p { font-size: 15px; font-variant-numeric: tabular-nums; }
:focus-visible { outline: 2px solid var(--c0); outline-offset: 1px; }
@media (max-width: 800px) {
  main.browse { grid-template-columns: minmax(0, 1fr); } nav { position: static; } #classes { max-height: 240px; }
}
"""

_SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const [search, order, list, gallery] = ["search", "order", "classes", "gallery"].map(id => document.getElementById(id));
const number = (value, digits = 0) => value.toLocaleString("en", { maximumFractionDigits: digits });
const all = { id: -1, name: "All classes", samples: data.known, expected: data.expected, images: data.overall };
const classes = data.classes.map(([id, name, samples, expected, images]) => ({ id, name, samples, expected, images }));
let shown = [], at = 0;

function element(kind, css, text) {
  const made = document.createElement(kind);
  if (css) made.className = css;
  if (text !== undefined) made.textContent = text;
  return made;
}
function spark(history) {
  const space = "http://www.w3.org/2000/svg", svg = document.createElementNS(space, "svg");
  const part = (kind, attributes) => {
    const made = document.createElementNS(space, kind);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    svg.append(made);
    return made;
  };
  svg.setAttribute("class", "spark"); svg.setAttribute("viewBox", "0 0 100 26"); svg.setAttribute("role", "img");
  svg.setAttribute("preserveAspectRatio", "xMinYMid");
  const said = history.map(value => value.toFixed(2)).join(", ");
  svg.setAttribute("aria-label", "confidence of the label by visit: " + said);
  part("title", {}).textContent = said;
  part("path", { class: "grid", d: "M0 22H100" });
  const step = 92 / (data.visits - 1), corners = history.map((value, k) => [4 + k * step, 4 + (1 - value) * 18]);
  part("polyline", { class: "line c0", points: corners.map(corner => corner.map(v => v.toFixed(1))).join(" ") });
  const [x, y] = corners[corners.length - 1];
  part("circle", { class: "dot-last c0", cx: x.toFixed(1), cy: y.toFixed(1), r: 2.4 });
  return svg;
}
function card(image) {
  const box = element("div", "card suspect");
  box.title = image.path;
  if (image.jpeg === null) box.append(element("div", "missing", "not readable"));
  else {
    const picture = element("img");
    picture.loading = "lazy"; picture.alt = image.key; picture.src = "data:image/jpeg;base64," + image.jpeg;
    box.append(picture);
  }
  const labels = element("div", "labels"), name = id => id < 0 ? "unknown" : data.names[id];
  const believed = image.believed === image.label ? "the same" : name(image.believed);
  labels.append(element("b", "", name(image.label)), element("br"), element("span", "quiet", "believed: " + believed));
  const mean = "confidence " + image.mean.toFixed(2) + ", last " + image.last.toFixed(2);
  const visits = image.visits + " visits" + (image.gated ? ", gated " + image.gated + " times" : "");
  box.append(labels, element("div", "p", "wrong: " + (100 * image.wrong).toFixed(0) + "%"));
  box.append(element("div", "quiet", mean), element("div", "quiet", visits));
  if (image.history.length) box.append(spark(image.history));
  box.append(element("div", "mono", image.key));
  return box;
}
function show() {
  const chosen = shown[at];
  for (const row of list.children) row.setAttribute("aria-selected", row.dataset.place === String(at));
  if (!chosen) return;
  const row = list.children[at];
  list.setAttribute("aria-activedescendant", row.id);
  row.scrollIntoView({ block: "nearest" });
  document.getElementById("title").textContent = chosen.name;
  let about = number(chosen.expected, 1) + " wrong labels expected among " + number(chosen.samples) + " samples";
  if (chosen.images.length) about += "; the worst " + number(chosen.images.length);
  else about += "; no pictures of this class are on the page: make it with more --page-images";
  document.getElementById("about").textContent = about + ".";
  gallery.replaceChildren(...chosen.images.map(place => card(data.images[place])));
}
function fill() {
  const kept = shown[at]?.id, wanted = search.value.trim().toLowerCase();
  const found = classes.filter(one => one.name.toLowerCase().includes(wanted));
  if (order.value === "share") found.sort((a, b) => b.expected / b.samples - a.expected / a.samples);
  if (order.value === "name") found.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
  shown = wanted ? found : [all, ...found];
  list.replaceChildren(...shown.map((one, place) => {
    const row = element("div");
    row.role = "option"; row.id = "class-" + one.id; row.dataset.place = place;
    row.title = number(one.expected, 1) + " of " + number(one.samples) + " labels expected to be wrong";
    row.append(element("span", "name", one.name), element("span", "number", number(one.expected)));
    return row;
  }));
  if (!shown.length) list.append(element("div", "none", "no such class"));
  at = Math.max(0, shown.findIndex(one => one.id === kept));
  show();
}
function move(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target === search || event.target === order;
  if (event.key === "/" && !typing) { event.preventDefault(); search.focus(); search.select(); return; }
  if (event.key === "Escape" && event.target === search) { search.value = ""; fill(); list.focus(); return; }
  const arrows = event.target === list || event.target === search;
  const step = arrows ? { ArrowDown: 1, ArrowUp: -1 }[event.key] : undefined;
  const letter = typing ? undefined : { j: 1, k: -1 }[event.key];
  if (!(step ?? letter) || !shown.length) return;
  event.preventDefault();
  at = Math.min(shown.length - 1, Math.max(0, at + (step ?? letter)));
  show();
}
list.addEventListener("click", event => {
  const row = event.target.closest("[data-place]");
  if (row) { at = Number(row.dataset.place); show(); }
});
search.addEventListener("input", fill);
order.addEventListener("change", fill);
document.addEventListener("keydown", move);
fill();
list.focus({ preventScroll: true });
"""
