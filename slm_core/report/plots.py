"""The scores and the loss curve as one PNG, for places that show an image and no page.

The page draws its own charts (``charts.py``); this is for Prefect's image artifacts. Needs
matplotlib, imported only here, and no display.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from slm_core.errors import MissingDependency
from slm_core.records import ARMS, TRACKS, Approach, ArmName, Comparison, Track
from slm_core.report.compose import compose
from slm_core.report.document import LossSample, TrackReport
from slm_core.report.inputs import ReportInput
from slm_core.report.words import (
    ARM_NAMES,
    HEADLINE,
    metric_name,
    metrics_of,
    rows_scored,
    score_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS: dict[ArmName, str] = {
    "teacher": "#64748b",
    "student": "#c2740c",
    "student_cep": "#0d8ba6",
    "adapter": "#4338ca",
}
_MARKS: dict[ArmName, str] = {"teacher": "D", "student": "o", "student_cep": "s", "adapter": "o"}
_SOFT = "#5a6372"
_LONGEST_NAME = 60


def plot_png(report: ReportInput) -> bytes:
    """Return a PNG: one panel of scores a track, and the loss if there is one.

    Equal records give equal bytes with the same matplotlib.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    document = compose(report, "")
    panels = len(document.tracks) + bool(document.losses)
    figure, axes = _panels(panels, width=5.2, height=4.2)
    for axis, (track, scores) in zip(axes, document.tracks.items(), strict=False):
        _draw_scores(axis, track, scores)
    if document.losses:
        _draw_losses(axes[-1], document.losses)
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return _as_png(figure)


def comparison_png(comparison: Comparison) -> bytes:
    """Return a PNG: one panel a track, the headline F1 of every approach with its interval.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    scored: list[tuple[Track, list[Approach]]] = [
        (track, [one for one in comparison.approaches if one.result.track == track])
        for track in TRACKS
    ]
    shown = [one for one in scored if one[1]]
    most = max((len(found) for _, found in shown), default=1)
    figure, axes = _panels(len(shown), width=7.4, height=1.2 + 0.42 * most)
    for axis, (track, found) in zip(axes, shown, strict=False):
        for line, one in enumerate(found):
            f1 = one.result.metrics.get(HEADLINE[track])
            if f1 is None:
                continue
            axis.errorbar(
                [100 * f1.value],
                [line],
                xerr=[[100 * max(0.0, f1.value - f1.low)], [100 * max(0.0, f1.high - f1.value)]],
                marker=_MARKS[one.result.arm],
                color=_COLOURS[one.result.arm],
                markersize=6,
                elinewidth=1.6,
            )
        axis.set_yticks(range(len(found)), [_short(one.name) for one in found])
        axis.invert_yaxis()
        axis.set_xlim(-3, 103)
        axis.set_title(
            f"{track}: {metric_name(HEADLINE[track])}, per cent", loc="left", fontsize=11
        )
        _calm(axis)
    return _as_png(figure)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _panels(count: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many panels beside each other; width and height are of one."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency.of_extra(
            "report", "Drawing a PNG needs matplotlib", error
        ) from error

    figure = Figure(figsize=(width * max(1, count), height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, max(1, count), squeeze=False)[0])


def _as_png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def data_uri(png: bytes) -> str:
    """Return a PNG as the address of an image that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _draw_scores(axis: Axes, track: Track, report: TrackReport) -> None:
    metrics = metrics_of(report)
    for line, arm in enumerate(ARMS):
        found = [(n, s) for n, m in enumerate(metrics) if (s := score_of(report, arm, m))]
        axis.errorbar(
            [100 * score.value for _, score in found],
            [number + 0.18 * (line - 1.5) for number, _ in found],
            xerr=[
                [100 * max(0.0, score.value - score.low) for _, score in found],
                [100 * max(0.0, score.high - score.value) for _, score in found],
            ],
            linestyle="none",
            marker=_MARKS[arm],
            markerfacecolor="white" if arm == "student" else _COLOURS[arm],
            color=_COLOURS[arm],
            markersize=6,
            elinewidth=1.6,
            label=ARM_NAMES[arm],
        )
    axis.set_yticks(range(len(metrics)), [metric_name(metric) for metric in metrics])
    axis.invert_yaxis()
    axis.set_xlim(-3, 103)
    axis.set_title(f"{track}, n = {rows_scored(report) or 0}, per cent", loc="left", fontsize=11)
    _calm(axis)


def _draw_losses(axis: Axes, points: tuple[LossSample, ...]) -> None:
    train = [(p.step, p.loss) for p in points if p.loss is not None]
    val = [(p.step, p.val_loss) for p in points if p.val_loss is not None]
    if train:
        axis.plot(*zip(*train, strict=True), color="#8b94a3", label="training")
    if val:
        axis.plot(
            *zip(*val, strict=True), color=_COLOURS["adapter"], marker="o", label="validation"
        )
    axis.set_ylim(bottom=0)
    axis.set_title("loss by step, nats per supervised token", loc="left", fontsize=11)
    axis.legend(frameon=False, fontsize=9)
    _calm(axis)


def _calm(axis: Axes) -> None:
    axis.grid(axis="both", color="#e3e6ec", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(colors=_SOFT, length=0)
    axis.spines[["top", "right", "left", "bottom"]].set_visible(False)
