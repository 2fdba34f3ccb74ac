"""Text as it grows: from token ids to characters, and up to where an answer must stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class TextStream:
    """Turns token ids into text as they come; the pieces add up to the decoded whole."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._recent: list[int] = []
        """The ids of the last piece, then those not yet said."""
        self._said = 0
        """How many of them the last piece was made of."""

    def push(self, token: int) -> str:
        """Return the text that ``token`` completes; empty in the middle of a character."""
        self._recent.append(token)
        piece = self.rest()
        # A character that is not complete yet decodes to U+FFFD at the end.
        if piece.endswith("\ufffd"):
            return ""
        if piece:
            del self._recent[: self._said]
            self._said = len(self._recent)
        return piece

    def rest(self) -> str:
        """Return the text of what was held back."""
        # Some tokenizers write a word's first token differently with nothing before it.
        before = self._decode(self._recent[: self._said])
        return self._decode(self._recent)[len(before) :]


class StopText:
    """Lets text pass up to the first of some stop strings, which themselves never show."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Watch for ``stops``, none of them empty; without any, all text passes at once."""
        self._stops = stops
        self._held = ""
        """The end of the text so far, where a stop string may have begun."""
        self.found = False
        """True once a stop string has come: the answer ends here."""

    def push(self, piece: str) -> str:
        """Return what can be said after ``piece`` has come."""
        text = self._held + piece
        at = min((at for at in map(text.find, self._stops) if at >= 0), default=-1)
        if at >= 0:
            self.found, self._held = True, ""
            return text[:at]
        begun = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - begun :]
        return text[: len(text) - begun]

    def rest(self) -> str:
        """Return what was held back, when nothing more will come."""
        return self._held


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of ``text`` are the beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
