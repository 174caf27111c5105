"""Signals are wishes: remembered, granted by the loop, and never lost."""

import signal

import pytest

from wv_train.signals import STOP_SIGNALS, Stopped, StopSignals


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGUSR2, 140)],
)
def test_every_stop_signal_is_remembered_and_has_its_exit_code(number: int, exit_code: int) -> None:
    with StopSignals() as signals:
        assert signals.received == 0
        signal.raise_signal(number)
        assert signals.received == number
    assert Stopped(number).exit_code == exit_code
    assert str(Stopped(number)) == f"stopped by {signal.Signals(number).name}"


def test_afterwards_signals_mean_what_they_meant_before() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with StopSignals():
        assert [signal.getsignal(number) for number in STOP_SIGNALS] != before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


@pytest.mark.parametrize("first", STOP_SIGNALS)
def test_a_ctrl_c_after_any_signal_interrupts(first: int) -> None:
    with StopSignals():
        signal.raise_signal(first)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_the_same_signal_twice_is_one_wish(number: int) -> None:
    """Slurm signals every process of a job step, and torchrun then passes on what it got."""
    with StopSignals() as signals:
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert signals.received == number
