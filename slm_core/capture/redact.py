"""Blacks out secrets and personal data before a call touches the disk.

A text that cannot be checked is replaced as a whole: what is in doubt is never written.
"""

from __future__ import annotations

import logging
import re
import string
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

REDACTED = "[REDACTED]"
UNCHECKED = "[REDACTION FAILED]"


class Rule(NamedTuple):
    """A pattern, and what stands in its place."""

    pattern: re.Pattern[str]
    replacement: str | Callable[[re.Match[str]], str] = REDACTED


def _card(match: re.Match[str]) -> str:
    """Black out ``match`` if its digits pass the Luhn test (ISO/IEC 7812-1, annex B)."""
    digits = [int(character) for character in match[0] if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return match[0] if (sum(digits[-1::-2]) + sum(doubled)) % 10 else REDACTED


# Every alternative begins with a letter of its own: ``re`` then skips quickly to a candidate.
_KEY = re.compile(
    r"sk-(?<!\wsk-)[A-Za-z0-9_-]{20,}"  # OpenAI, Anthropic; not the end of "task-"
    r"|sk_(?:live|test)_[A-Za-z0-9]{16,}|rk_(?:live|test)_[A-Za-z0-9]{16,}"  # Stripe
    r"|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,}"  # GitHub
    r"|xox[abeoprs]-[A-Za-z0-9-]{16,}"  # Slack
    r"|AKIA[A-Z0-9]{16}|ASIA[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{35}"  # AWS, Google
    # JSON web token
    r"|eyJ(?<![A-Za-z0-9_-]eyJ)[A-Za-z0-9_-]{17,}\.eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"
)
_BEARER = re.compile(r"([Bb](?:earer|EARER) +)[A-Za-z0-9_-]{20}[A-Za-z0-9._~+/=-]*")
_PEM = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----.*?(?:-----END (?:[A-Z]+ )*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_RULES: dict[str, tuple[Rule, ...]] = {
    "secrets": (Rule(_KEY), Rule(_BEARER, r"\1" + REDACTED), Rule(_PEM)),
    "email": (
        # Bounded repeats (RFC 5321, 4.5.3.1) keep a long text without "@" linear.
        Rule(re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}")),
    ),
    "card": (Rule(re.compile(r"(?<![0-9])[0-9](?:[ -]?[0-9]){12,18}(?![0-9])"), _card),),
}

_WORD = (string.ascii_letters + string.digits + "_-").encode()
_WORDS_TO_ZERO = bytes(0 if byte in _WORD else 1 for byte in range(256))
_LONG_WORD = bytes(20)


def may_hold_secret(encoded: bytes) -> bool:
    """Return False if JSON ``encoded`` surely holds nothing that the ``secrets`` rules match.

    Each of them needs 20 letters, digits, ``_`` or ``-`` in a row, which ordinary prose does
    not have, or a PEM head. This test costs 1 ns per byte, the rules about 30.
    """
    return _LONG_WORD in encoded.translate(_WORDS_TO_ZERO) or b"-----BEGIN" in encoded


class Redactor:
    """Applies the rules to every text of a call."""

    def __init__(self, kinds: Sequence[str], patterns: Sequence[str] = ()) -> None:
        """Prepare the rules of the built-in ``kinds`` and the own ``patterns``."""
        own = tuple(Rule(re.compile(pattern)) for pattern in patterns)
        self.rules = tuple(rule for kind in kinds for rule in _RULES[kind]) + own
        self._only_secrets = tuple(kinds) == ("secrets",) and not own

    def concerns(self, encoded: bytes) -> bool:
        """Return whether the texts, encoded as JSON, have to be looked at closely."""
        if not self.rules:
            return False
        return not self._only_secrets or may_hold_secret(encoded)

    def apply(self, value: Any) -> Any:
        """Return ``value`` (JSON data) with every string redacted; keys stay."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, dict):
            return {key: self.apply(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.apply(item) for item in value]
        return value

    def _text(self, text: str) -> str:
        try:
            if self._only_secrets and not may_hold_secret(text.encode("utf-8", "surrogatepass")):
                return text
            for rule in self.rules:
                text = rule.pattern.sub(rule.replacement, text)
        except Exception as error:  # whatever it is, the raw text must not pass
            log.error("redaction failed error=%s; the text was replaced", type(error).__name__)
            return UNCHECKED
        return text
