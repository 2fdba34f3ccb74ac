"""What may be configured about a report."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from slm_core.records import Record


class ReportSpec(Record):
    """How a report looks."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    title: str = "SLM Swap report"
    """Heading of the page and of the Markdown file."""
    cases_per_track: int = Field(default=3, ge=0, le=50)
    """How many test cases the page shows with the outputs of student and adapter. They hold
    prompt text; 0 keeps it out."""
    case_characters: int = Field(default=1200, ge=100)
    """Longest text shown of one output; the rest is cut and counted."""
