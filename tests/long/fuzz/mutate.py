"""Bytes that are nearly right.  (No claims.)"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

TOKENS: Final = tuple(
    b'\r\n|\n|\r|\r\n\r\n|: |:|;|,|, |"|\\|\\"|{|}|[|]|{}|[]|null|true|-1|0|1e999|NaN|\x00|\xff|'
    b"\xef\xbb\xbf|data: |event: |data: [DONE]\n\n|\n\n|chunked|Content-Length: 5\r\n|"
    b"Transfer-Encoding: chunked\r\n|Host: b\r\n|0\r\n\r\n|ffffffff|\xf0\x9f\x98\x80|\\ud800|"
    b'99999999999999999999|"type"|"model"|"error"|"input"|"content"|"id"|{"a":1}|\x88\x02|\x81\x7f'.split(
        b"|"
    )
)


def cut(rng: random.Random, raw: bytes, _other: bytes) -> bytes:
    return raw[: rng.randint(0, len(raw))]


def take_out(rng: random.Random, raw: bytes, _other: bytes) -> bytes:
    at = rng.randint(0, len(raw))
    return raw[:at] + raw[at + rng.choice([1, 1, 2, 8, 40]) :]


def put_in(rng: random.Random, raw: bytes, _other: bytes) -> bytes:
    at = rng.randint(0, len(raw))
    return raw[:at] + rng.choice(TOKENS) + raw[at:]


def overwrite(rng: random.Random, raw: bytes, _other: bytes) -> bytes:
    at = rng.randint(0, len(raw))
    return raw[:at] + rng.randbytes(1) + raw[at + 1 :]


def repeat(rng: random.Random, raw: bytes, _other: bytes) -> bytes:
    at = rng.randint(0, len(raw))
    part = raw[at : at + rng.choice([1, 4, 20, 200])]
    return raw[:at] + part * rng.choice([2, 2, 3, 30]) + raw[at + len(part) :]


def splice(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    return raw[: rng.randint(0, len(raw))] + other[rng.randint(0, len(other)) :]


WAYS: Final[Sequence[Callable[[random.Random, bytes, bytes], bytes]]] = (
    cut, take_out, put_in, put_in, overwrite, repeat, splice,
)  # fmt: skip


def mutated(rng: random.Random, corpus: Sequence[bytes]) -> bytes:
    """One of the good inputs, with one to eight changes."""
    raw = rng.choice(corpus)
    for _ in range(rng.randint(1, 8)):
        raw = rng.choice(WAYS)(rng, raw, rng.choice(corpus))
    return raw[:8192]
