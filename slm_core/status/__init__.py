"""The state of the whole service on one screen: what is live, what runs, what needs a person.

``gather`` reads the store, the runs' folders and this machine. What only the Prefect server knows
is handed in as ``Operations``; this library knows nothing of Prefect.
"""

from slm_core.status.concerns import Concern, RunbookPage, concerns
from slm_core.status.files import StatusFiles
from slm_core.status.gather import Look, gather
from slm_core.status.markdown import to_markdown
from slm_core.status.page import headline, to_page
from slm_core.status.sections import Section, sections
from slm_core.status.snapshot import (
    FlowRunNow,
    Night,
    Operations,
    PoolNow,
    Routine,
    Status,
    Waiting,
)

__all__ = [
    "Concern",
    "FlowRunNow",
    "Look",
    "Night",
    "Operations",
    "PoolNow",
    "Routine",
    "RunbookPage",
    "Section",
    "Status",
    "StatusFiles",
    "Waiting",
    "concerns",
    "gather",
    "headline",
    "sections",
    "to_markdown",
    "to_page",
]
