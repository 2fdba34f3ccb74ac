"""Records of a run to a report: JSON for scripts, Markdown for a pull request, a page."""

from slm_core.report.inputs import LiveAnswer, ReportInput
from slm_core.report.spec import ReportSpec
from slm_core.report.table import ArmsTable, arms_table
from slm_core.report.write import ReportPaths, write_report

__all__ = [
    "ArmsTable",
    "LiveAnswer",
    "ReportInput",
    "ReportPaths",
    "ReportSpec",
    "arms_table",
    "write_report",
]
