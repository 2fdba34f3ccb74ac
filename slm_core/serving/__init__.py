"""Serving: which model answers, and a server that lets it."""

from slm_core.serving.promotion import promote, roll_back
from slm_core.serving.router import Answer, Router, ask
from slm_core.serving.server import serve
from slm_core.serving.spec import ServingSpec

__all__ = ["Answer", "Router", "ServingSpec", "ask", "promote", "roll_back", "serve"]
