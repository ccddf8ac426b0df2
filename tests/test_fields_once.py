"""Proves that no field that two readers could read differently is ever given twice.

Method: an upstream's head with each such field twice and alike.
"""

from __future__ import annotations

import pytest
from trio.testing import memory_stream_pair

from pooler import BadSyntax, Connection, parse_response_head

NAMES = (
    "authorization content-encoding content-length content-type expect host origin "
    "sec-websocket-key sec-websocket-version transfer-encoding upgrade"
)


@pytest.mark.parametrize("name", NAMES.split())
def test_a_field_that_is_given_twice_is_refused(name: str) -> None:
    once = b"HTTP/1.1 200 OK\r\n" + name.encode() + b": chunked\r\n"
    with pytest.raises(BadSyntax, match="field given twice"):
        parse_response_head(once + name.encode() + b": chunked\r\n\r\n")


async def test_a_bare_line_feed_is_refused_before_the_head_is_whole() -> None:
    stream, _ = memory_stream_pair()
    connection = Connection(stream, b"GET / HTTP/1.1\nHost: a\n\n")
    with pytest.raises(BadSyntax, match="bare LF"):
        connection.take_head(1000)
