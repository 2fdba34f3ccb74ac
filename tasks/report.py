"""Records to a report: files on disk, artifacts in the dashboard."""

from __future__ import annotations

from pathlib import Path

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

from slm_core.records import Comparison
from slm_core.report import ReportInput, ReportPaths, ReportSpec, arms_table, write_report
from slm_core.report.approaches import ComparisonPaths, comparison_table, write_comparison
from tasks._artifacts import showing
from tasks._wiring import step


@step("publish the report")
def publish_report(report: ReportInput, out_dir: Path, spec: ReportSpec) -> ReportPaths:
    """Write the report and show it in the run: text, table of arms, plots, link to the page."""
    paths = write_report(report, out_dir, spec)
    with showing("report"):
        _show(report, paths)
    return paths


@step("publish the comparison")
def publish_comparison(comparison: Comparison, out_dir: Path) -> ComparisonPaths:
    """Write the comparison and show it in the run: text, table, plot, link to the numbers."""
    paths = write_comparison(comparison, out_dir)
    with showing("comparison"):
        _show_comparison(comparison, paths)
    return paths


def _show_comparison(comparison: Comparison, paths: ComparisonPaths) -> None:
    from slm_core.report.plots import comparison_png, data_uri

    create_markdown_artifact(
        paths.markdown.read_text(encoding="utf-8"),
        key="comparison",
        description="Approaches side by side, with differences and what was left out",
    )
    create_table_artifact(
        comparison_table(comparison),
        key="approaches",
        description=f"Strict scores on {comparison.test_set_id}",
    )
    create_image_artifact(
        data_uri(comparison_png(comparison)),
        key="approaches-plot",
        description="F1 of every approach with its 95 % interval",
    )
    create_link_artifact(
        paths.csv.resolve().as_uri(), key="comparison-csv", link_text="comparison.csv on the worker"
    )


def _show(report: ReportInput, paths: ReportPaths) -> None:
    from slm_core.report.plots import data_uri, plot_png

    create_markdown_artifact(
        paths.markdown.read_text(encoding="utf-8"),
        key="report",
        description=f"{report.decision.outcome}: verdict, arms, gates and what to do next",
    )
    table = arms_table(report.evaluation)
    create_table_artifact(
        [dict(zip(table.columns, row, strict=True)) for row in table.rows],
        key="arms",
        description="Every arm on every track, strict scores",
    )
    create_image_artifact(
        data_uri(plot_png(report)), key="plots", description="Scores, loss, failures, cost"
    )
    create_link_artifact(
        paths.html.resolve().as_uri(),
        key="report-page",
        link_text="report.html on the worker",
        description="The whole report as one page, to be opened on the worker",
    )
