"""The command ``slm``: ask, serve, promote, and look at what the store holds."""

from slm_core.cli.app import main

__all__ = ["main"]
