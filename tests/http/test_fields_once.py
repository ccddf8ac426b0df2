"""Proves that heads which two readers could read differently are refused, each for its own reason.

Method: an upstream's head with each such field twice, and alike but for two; a head whose lines
end with a bare LF, before it is whole.
"""

from __future__ import annotations

from typing import Final

import pytest
import trio
from trio.testing import memory_stream_pair

from pooler import BadSyntax, Connection, parse_response_head

NAMES: Final = (
    "authorization content-encoding content-length content-type expect host origin "
    "sec-websocket-key sec-websocket-version transfer-encoding upgrade"
)


@pytest.mark.parametrize("name", NAMES.split())
def test_a_field_that_is_given_twice_is_refused(name: str) -> None:
    """Of what tells how a body is to be read an upstream may say the same again."""
    other = b"identity" if name in {"content-length", "content-type"} else b"chunked"
    once = b"HTTP/1.1 200 OK\r\n" + name.encode() + b": chunked\r\n"
    with pytest.raises(BadSyntax, match="field given twice"):
        parse_response_head(once + name.encode() + b": " + other + b"\r\n\r\n")


async def test_a_bare_line_feed_is_refused_before_the_head_is_whole() -> None:
    await trio.lowlevel.checkpoint()
    stream, _ = memory_stream_pair()
    connection = Connection(stream, b"GET / HTTP/1.1\nHost: a\n\n")
    with pytest.raises(BadSyntax, match="bare LF"):
        connection.take_head(1000)
