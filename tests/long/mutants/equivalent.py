"""The mutants that nobody can see, each with its reason: no run makes them.  (No claims.)"""

from __future__ import annotations

from typing import Final

from tests.long.mutants.draw import Source
from tests.long.mutants.kinds import Identity

# Place, kind, old code, new code, occurrence in the place; and why nobody can see the difference.
ROWS: Final[tuple[tuple[str, str, str, str, int, str], ...]] = ()

ARGUED: Final = {Identity(*row[:5]): row[5] for row in ROWS}


def unfitting(source: Source) -> list[str]:
    """The rows that no longer fit the source, or have no reason."""
    return [
        f"{identity.place}: {identity.kind}: {identity.old}"
        for identity, reason in ARGUED.items()
        if identity not in source.mutants or len(reason.split()) < 4
    ]
