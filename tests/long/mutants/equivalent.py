"""The mutants that nobody can see, each with its reason: no run makes them.  (No claims.)"""

from __future__ import annotations

from typing import Final

from tests.long.mutants.draw import Source
from tests.long.mutants.kinds import Identity

# Place, kind, old code, new code, occurrence in the place; and why nobody can see the difference.
ROWS: Final[tuple[tuple[str, str, str, str, int, str], ...]] = (
    ("Queues.make_way", "string", "''", "'XX'", 1,
     "The default is that of an empty queue, which refuses before it reads the name."),
    ("Queues.make_way", "string", "''", "'XX'", 2,
     "The default is that of an empty queue, which refuses before it reads the name."),
    ("with_stream_id", "condition",
     "b'\"stream_id\"' in members or b'\\\\u00' in members", "True", 1,
     "Only speed: what is parsed without need turns out to lack the member, and gets it as text."),
    ("FrameMeter.feed", "slice", "at:at + 14", "at:", 1,
     "Only speed, which tests/long measures: no more than a frame's head is read of it."),
    ("_standings_on_some_route", "statement", "return standings", "", 1,
     "Only speed: where no account lacks the route, every pair is kept one by one."),
    ("ChatTranslator._rest_of", "number", "0", "1", 1,
     "An item that is finished without text has one part, and its number meets no other."),
)  # fmt: skip

ARGUED: Final = {Identity(*row[:5]): row[5] for row in ROWS}


def unfitting(source: Source) -> list[str]:
    """The rows that no longer fit the source, or have no reason."""
    return [
        f"{identity.place}: {identity.kind}: {identity.old}"
        for identity, reason in ARGUED.items()
        if identity not in source.mutants or len(reason.split()) < 4
    ]
