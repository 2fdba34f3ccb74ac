"""A handful of questions in the format of the Berkeley Function-Calling Leaderboard.

They are our own, are no part of the leaderboard, and say nothing about a model. They let
``eval/berkeley`` and its tests run where the leaderboard's files are not.
"""

from pathlib import Path

SAMPLE = Path(__file__).parent
"""Folder to give to ``load_berkeley``."""
