"""Write a run's report: numbers for scripts, Markdown for a pull request, a page for people."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from slm_core.report.compose import compose
from slm_core.report.inputs import ReportInput
from slm_core.report.markdown import to_markdown
from slm_core.report.page import to_page
from slm_core.report.shown_cases import choose_cases
from slm_core.report.spec import ReportSpec
from slm_core.system.durable import replace_file

log = logging.getLogger(__name__)


class ReportPaths(NamedTuple):
    """The three files of a report."""

    json: Path
    markdown: Path
    html: Path


def write_report(
    report: ReportInput, out_dir: str | Path, spec: ReportSpec | None = None
) -> ReportPaths:
    """Write ``report.json``, ``report.md`` and ``report.html`` into ``out_dir``.

    The same records give the same bytes. What a record does not hold is shown as missing.
    Only the page holds prompt text: the cases chosen from the evaluation's details.

    Raises:
        OSError: the folder cannot be written.
    """
    spec = spec or ReportSpec()
    document = compose(report, spec.title)
    cases = choose_cases(
        Path(report.evaluation.details_path),
        report.questions,
        after=document.challenger,
        per_track=spec.cases_per_track,
    )
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    paths = ReportPaths(folder / "report.json", folder / "report.md", folder / "report.html")
    replace_text(paths.json, document.model_dump_json(indent=2) + "\n")
    replace_text(paths.markdown, to_markdown(document))
    replace_text(paths.html, to_page(document, cases, spec.case_characters))
    log.info("report written outcome=%s folder=%s", document.outcome, folder)
    return paths


def replace_text(path: Path, text: str) -> None:
    """Write ``text`` whole or not at all; lone surrogates of a model become question marks."""
    replace_file(path, text.encode("utf-8", "replace"))
