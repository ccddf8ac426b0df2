"""Which mutants a run makes: a seed's choice, spread over sections and kinds.  (No claims.)"""

from __future__ import annotations

import ast
import bisect
import hashlib
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from tests.long.mutants.kinds import Identity, Mutant, find_mutants, sections_of

# The sections that decide who gets what, and what becomes of it.
DECIDING: Final = (
    "CREDENTIALS",
    "KEYS",
    "ROUTES",
    "HTTP SYNTAX",
    "WEBSOCKET SYNTAX",
    "EVENT STREAMS",
    "TRANSLATION",
    "VERDICTS",
    "ACCOUNTS",
    "TOKENS",
    "RELAY",
    "WEBSOCKET",
)


class Source:
    """A parsed source, its mutants and its sections."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tree = ast.parse(text)
        self.mutants = {mutant.identity: mutant for mutant in find_mutants(self.tree)}
        self.by_id = {identity.id: identity for identity in self.mutants}
        self.sections = sections_of(text)
        self.starts = [line for line, _ in self.sections]

    def section_of(self, mutant: Mutant) -> str:
        return self.sections[bisect.bisect(self.starts, mutant.first) - 1][1]


class Place(NamedTuple):
    """Where a mutant stands in the order of the draw: lower ones are drawn first."""

    rank: float
    tie: str


def _lot(seed: int, identity: Identity) -> str:
    """A mutant's random number: it stays the same when the source changes elsewhere."""
    return hashlib.sha256(f"{seed} {tuple(identity)}".encode()).hexdigest()


def draw(source: Source, seed: int, count: int, sections: Iterable[str]) -> list[Mutant]:
    """So many mutants of those sections: of each section and kind in proportion to its code.

    A greater count draws the same and more.
    """
    strata: defaultdict[tuple[str, str], list[Mutant]] = defaultdict(list)
    wanted = {*sections}
    for mutant in source.mutants.values():
        if (section := source.section_of(mutant)) in wanted:
            strata[section, mutant.identity.kind].append(mutant)

    placed: list[tuple[Place, Mutant]] = []
    for stratum, mutants in strata.items():
        shift = random.Random(f"{seed} {stratum}").random()  # small ones have their chance, too
        lots = {mutant.identity: _lot(seed, mutant.identity) for mutant in mutants}
        mutants.sort(key=lambda mutant: lots[mutant.identity])
        for number, mutant in enumerate(mutants):
            rank = (number + shift) / len(mutants)
            placed.append((Place(rank, lots[mutant.identity]), mutant))
    placed.sort(key=lambda pair: pair[0])
    return [mutant for _, mutant in placed[:count]]


def named(source: Source, ids: Sequence[str]) -> list[Mutant]:
    """The mutants of those names.  Raises: KeyError."""
    return [source.mutants[source.by_id[one]] for one in ids]
