"""What a saved state of the loader must be: a few integers, and an identity of the plan that they belong to."""

from collections.abc import Mapping
from typing import Any

from wv_loader.errors import StateMismatchError

STATE_VERSION = 1


def make_state(identity: Mapping[str, Any], epoch: int, batches: int) -> dict[str, Any]:
    """A position, JSON-able.

    Args:
        identity: everything that decides which samples come in which order, by name.
        epoch, batches: the position.
    """
    return {"version": STATE_VERSION, "plan": dict(identity), "epoch": epoch, "batches": batches}


def position_of(state: Any, identity: Mapping[str, Any], *, last_epoch: int) -> tuple[int, int]:
    """Epoch and batches done of a saved state.

    Raises:
        StateMismatchError: it is no state, of another version, or of another plan; the message names what differs.
    """
    if not isinstance(state, dict) or not isinstance(state.get("plan"), dict):
        raise StateMismatchError("not a state of this loader: expected what state_dict() gives")
    if state.get("version") != STATE_VERSION:
        raise StateMismatchError(
            f"loader state of version {state.get('version')}, this wv-toolkit reads {STATE_VERSION}"
        )
    saved = state["plan"]
    differing = [
        f"{name} was {saved.get(name)!r}, is {identity.get(name)!r}"
        for name in {**identity, **saved}
        if identity.get(name) != saved.get(name)
    ]
    if differing:
        raise StateMismatchError(
            f"loader state belongs to another plan: {'; '.join(differing)}; "
            "use the same data set and options, or start a new run"
        )
    for name in ("epoch", "batches"):
        if type(state.get(name)) is not int or state[name] < 0:
            raise StateMismatchError(f"not a state of this loader: {name} {state.get(name)!r}, expected 0 or more")
    if state["epoch"] > last_epoch:
        raise StateMismatchError(f"not a state of this loader: epoch {state['epoch']}, expected at most {last_epoch}")
    return state["epoch"], state["batches"]
