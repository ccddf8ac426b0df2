"""The example of the process's state, its texts replaced, and which of it is read.  (No claims.)"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

import mcp_server
from tests.support import paths
from tests.support.memory_sockets import Json

SNAPSHOT: Final = paths.SNAPSHOT.read_text(encoding="utf-8")
HOSTILE_TEXTS: Final = {
    "markup": "</td><script>alert(1)</script>",
    "attribute": "\" onload='x' style=\"",
    "entity": "&lt;&#60;",
    "percent": "%s%(x)s{in_flight}{",
    "label": 'a"} 1\nevil_metric{x="\\',
    "escape": "\x1b[2J\x1b]0;title\x07\x9b31m",
    "lines": "a\r\nb\x0bc\u2028d\u0085e",
    "direction": "\u202eabc\u2066",
    "wide": "模型模型模型模型模型",
    "combining": "e\u0301\u0301\u0301\u200d\ufe0f",
    "half a letter": "\ud800x",
    "nul": "\x00",
    "long": "n" * 5000,
}
LISTS: Final = "pools accounts keys operators models requests totals attempts refreshes".split()


def snapshot() -> Json:
    """A fresh one, which the test may change."""
    return json.loads(SNAPSHOT)


def objects_in(value: Json, path: str = "") -> Iterator[tuple[str, dict[str, Json]]]:
    """Every object whose members are the pooler's own, with its place."""
    if isinstance(value, list):
        for index, member in enumerate(value):
            yield from objects_in(member, f"{path}[{index}]")
    elif isinstance(value, dict):
        yield path, value
        for name, member in value.items():
            yield from objects_in(member, f"{path}.{name}")


CLOSED: Final = frozenset("status login".split())
KNOWN: Final = frozenset(name for _, found in objects_in(snapshot()) for name in found)


def replace_texts(value: Json, text: str) -> Json:
    """The same with `text` for every free text; what is one of a closed set stays."""
    if isinstance(value, list):
        return [replace_texts(member, text) for member in value]
    if isinstance(value, dict):
        return {
            name if isinstance(member, (list, dict)) or name in KNOWN else text: (
                member if name in CLOSED else replace_texts(member, text)
            )
            for name, member in value.items()
        }
    return text if isinstance(value, str) else value


class Watched(dict[str, Json]):
    """An object of the snapshot of which only listed fields may be read."""

    place = ""

    def __getitem__(self, name: str) -> Json:
        is_table = not self.place and name in LISTS
        assert is_table or name in mcp_server.VISIBLE[self.place], (self.place, name)
        return super().__getitem__(name)


def watched(value: Json, place: str = "") -> Json:
    """A copy of the snapshot whose objects are `Watched`."""
    if isinstance(value, list):
        return [watched(member, place) for member in value]
    if not isinstance(value, dict):
        return value
    copy = Watched({name: watched(member, name) for name, member in value.items()})
    copy.place = place
    return copy
