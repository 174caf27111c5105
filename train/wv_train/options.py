"""Options that several commands take and that are more than a number or a path."""

import click

from wv_train.holdout import MAX_FRACTION

ENGINE_HELP = "Decoder. auto: on a GPU dali-gpu where DALI works, else turbo where it is built, else pillow."

bad_budget_option = click.option(
    "--bad-budget",
    metavar="COUNT|FRACTION|none",
    default="0.01",
    show_default=True,
    callback=lambda _ctx, _param, text: _bad_budget(text),
    help="Samples of an epoch that may fail on a rank before the run stops: 100, or 0.02 of them.",
)
"""Gives an int, a float or None."""

holdout_option = click.option(
    "--holdout",
    metavar="FRACTION",
    type=float,
    callback=lambda _ctx, _param, fraction: _holdout(fraction),
    help="Validate on this share of the training shards, chosen by a hash of the key, and do not train on it.",
)
"""Gives a float or None."""


def _holdout(fraction: float | None) -> float | None:
    if fraction is not None and not 0.0 < fraction <= MAX_FRACTION:
        raise click.BadParameter(f"expected a fraction of more than 0 and at most {MAX_FRACTION:g}, found {fraction:g}")
    return fraction


def _bad_budget(text: str) -> int | float | None:
    if text == "none":
        return None
    try:
        budget = int(text) if text.isdecimal() else float(text)
    except ValueError:
        budget = -1
    if (isinstance(budget, float) and not 0.0 <= budget <= 1.0) or budget < 0:
        raise click.BadParameter(f"expected a count (100), a fraction (0.02) or none, found {text!r}")
    return budget
