"""What may go wrong while something is shown, and what must not be kept from a run."""

from __future__ import annotations

import signal

import pytest
from prefect.exceptions import TerminationSignal

from tasks._artifacts import showing


def test_an_error_is_logged_by_its_kind_and_the_work_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with showing("report"):
        raise ConnectionError("https://user:secret@prefect.example")
    assert "report not shown in the dashboard error=ConnectionError" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("stop", [TerminationSignal(signal.SIGTERM), KeyboardInterrupt()])
def test_a_signal_that_stops_the_run_passes(stop: BaseException) -> None:
    with pytest.raises(type(stop)), showing("report"):
        raise stop


def test_nothing_takes_the_place_of_the_signal_that_ends_the_run_already() -> None:
    def stopped(by: TerminationSignal) -> None:
        try:
            raise by
        finally:
            with showing("attempts", unwinding=True):
                raise KeyboardInterrupt

    first = TerminationSignal(signal.SIGTERM)
    with pytest.raises(TerminationSignal) as ended:
        stopped(first)
    assert ended.value is first
