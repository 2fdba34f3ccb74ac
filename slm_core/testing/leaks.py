"""Look for secrets where none may be: in every table of a database, in every file of a folder.

A secret is found as it is, and in base64 at any offset, as in a header or a pickled result.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Engine


def find_leaks(secrets: Mapping[str, str], places: Iterable[tuple[str, bytes]]) -> set[str]:
    """Return ``"SECRET in PLACE"`` for each secret that is in the bytes of a place.

    Args:
        secrets: name to value; values of less than 8 characters would be found by chance.
        places: name and content, as ``tables`` and ``files`` give them.

    Raises:
        ValueError: a secret is too short.
    """
    short = [name for name, value in secrets.items() if len(value) < 8]
    if short:
        raise ValueError(f"Too short to look for: {', '.join(short)}.")
    wanted = {name: _spellings(value.encode()) for name, value in secrets.items()}
    return {
        f"{name} in {place}"
        for place, content in places
        for name, spellings in wanted.items()
        if any(spelling in content for spelling in spellings)
    }


def tables(engine: Engine) -> Iterator[tuple[str, bytes]]:
    """Yield each table's name and all its values."""
    import sqlalchemy as sa

    for name in sa.inspect(engine).get_table_names():
        with engine.connect() as connection:
            # Reflected columns would decode JSON and dates; what is stored is wanted.
            quoted = engine.dialect.identifier_preparer.quote(name)
            rows = connection.exec_driver_sql(f"select * from {quoted}")
            yield f"table {name}", b"\n".join(_raw(value) for row in rows for value in row)


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the path and content of each file below ``folder``."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield str(path.relative_to(folder)), path.read_bytes()


def _raw(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _spellings(value: bytes) -> tuple[bytes, ...]:
    """The value itself, and what of its base64 does not depend on its neighbours."""
    encoded: list[bytes] = []
    for before in range(3):
        whole = base64.b64encode(b"\0" * before + value)
        # A character holds six bits; drop those that share a byte with something else.
        first = -(-before * 8 // 6)
        last = (before + len(value)) * 8 // 6
        encoded += [whole[first:last], whole[first:last].translate(bytes.maketrans(b"+/", b"-_"))]
    return (value, *encoded)
