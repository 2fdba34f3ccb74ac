"""The PNG: an image, the same bytes each time, and no crash where numbers are missing."""

from __future__ import annotations

import base64

import pytest

from slm_core.report import ReportInput
from slm_core.testing.records import make_adapter, make_decision, make_evaluation, make_losses

pytest.importorskip("matplotlib")

from slm_core.report.plots import data_uri, plot_png


def test_it_is_a_png_and_always_the_same() -> None:
    report = ReportInput(
        decision=make_decision(), evaluation=make_evaluation(), adapter=make_adapter()
    )
    png = plot_png(report)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(png) < 300_000
    assert plot_png(report) == png
    head, _, body = data_uri(png).partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(body) == png


@pytest.mark.parametrize(
    ("arms", "losses"),
    [(("teacher",), ()), (("teacher", "adapter"), make_losses(3, val_every=None)), ((), ())],
)
def test_missing_arms_and_losses_are_left_out(
    arms: tuple[str, ...], losses: tuple[object, ...]
) -> None:
    report = ReportInput.model_validate(
        {
            "decision": make_decision(),
            "evaluation": make_evaluation(arms=arms),  # type: ignore[arg-type]
            "adapter": make_adapter(losses=losses),
        }
    )
    assert plot_png(report).startswith(b"\x89PNG")
