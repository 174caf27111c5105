"""A report's section on the ledger: how far the labels were believed, and the images that were believed least."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wv_train.ledger import HISTORY_VISITS
from wv_train.report_bars import histogram, sparkline
from wv_train.report_data import Judgement
from wv_train.report_words import decimal, escape, percent, score_cell, short_name


@dataclass(frozen=True, kw_only=True, slots=True)
class Suspect:
    """One picture of the gallery."""

    key: str
    path: str
    label: str
    """Name of the class that the data gives it."""
    prediction: str
    """Name of the class that the model saw at its last visit."""
    confidence: float
    """Of the label, averaged over visits."""
    visits: int
    gated: int
    """Visits at which the gate kept it from teaching."""
    history: tuple[float, ...]
    """The label's confidence at the last visits, oldest first; empty where the ledger has none."""
    thumbnail: bytes | None
    """A JPEG; None if the image can't be read."""
    wrong: bool | None
    """Whether the label is wrong, where the truth is known."""
    truth: str
    """What the image really shows; "" where that is not known."""


def gallery_section(
    heading: str,
    *,
    suspects: Sequence[Suspect],
    believed: Sequence[tuple[str, NDArray[np.int64]]],
    judgement: Judgement | None,
    seen: int,
    samples: int,
    opened: bool,
) -> str:
    """Histogram, judgement and pictures of a run. `believed`: histogram by group, (name, (bins,)); none: no ledger."""
    if not believed:
        return f'<h2>{escape(heading)}</h2><p class="quiet">No ledger has been written yet.</p>'
    chart = histogram("Confidence of the label, averaged over visits", "confidence of the given label", believed)
    return (
        f"<h2>{escape(heading)}</h2>"
        f'<p class="quiet">{seen:,} of {samples:,} samples were shown. The lower the confidence that the '
        "model gave a label over all visits, the likelier the label is wrong. A small line is the label's confidence "
        f"at its last visits, at most {HISTORY_VISITS}, between 0 and 1.</p>"
        f'<div class="charts">{chart}{_judgement(judgement)}</div>'
        f"<details{' open' if opened else ''}><summary>The {len(suspects)} least believed images</summary>"
        f'<div class="gallery">{"".join(map(_card, suspects))}</div></details>'
    )


def _judgement(judgement: Judgement | None) -> str:
    if judgement is None:
        return ""
    rows = "".join(
        f"<tr><td>first {escape(name)}</td>{score_cell(precision)}"
        f"<td>{_times(precision, judgement.base_rate)}</td></tr>"
        for name, precision in judgement.suspects_precision.items()
    )
    return (
        '<div class="card"><table><thead><tr><th>suspects</th><th>really wrong</th><th>against chance</th></tr></thead>'
        f"<tbody>{rows}<tr><td>drawn by lot</td>{score_cell(judgement.base_rate)}<td>1.0×</td></tr></tbody></table>"
        f"<p>{judgement.wrong:,} of {judgement.known:,} labels are wrong. A wrong label has a lower confidence than a "
        f"right one with probability {decimal(judgement.auroc)} (AUROC). The model repeated "
        f"{percent(judgement.memorised_fraction)} of the wrong labels at its last visit.</p></div>"
    )


def _card(suspect: Suspect) -> str:
    if suspect.thumbnail is None:
        picture = '<div class="missing">not readable</div>'
    else:
        data = base64.b64encode(suspect.thumbnail).decode()
        picture = f'<img loading="lazy" alt="{escape(suspect.key)}" src="data:image/jpeg;base64,{data}">'
    badge = ""
    if suspect.wrong is not None:
        badge = f'<span class="badge {"wrong" if suspect.wrong else "right"}">{escape(suspect.truth)}</span>'
    visits = f"over {suspect.visits:,} visits" + (f", gated at {suspect.gated:,}" if suspect.gated else "")
    return (
        f'<div class="card suspect" title="{escape(f"{suspect.path}: {suspect.label}")}">{picture}'
        f'<div class="labels"><b>{escape(short_name(suspect.label))}</b><br>'
        f'<span class="quiet">model: {escape(short_name(suspect.prediction))}</span></div>'
        f'<div>{suspect.confidence:.3f} <span class="quiet">{visits}</span></div>'
        f'{sparkline(suspect.history)}{badge}<div class="mono">{escape(suspect.key)}</div></div>'
    )


def _times(precision: float, base_rate: float) -> str:
    return f"{precision / base_rate:.1f}×" if base_rate else "–"
