"""WebSocket frames made and read without the library that the pooler uses.  (No claims.)"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Final

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
GUID: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
MASK: Final = b"\x0f\x1e\x2d\x3c"


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bytes = MASK, rsv: int = 0
) -> bytes:
    """One frame (RFC 6455 §5.2); an empty `mask`: none, as a server's."""
    first = opcode | (0x80 if fin else 0) | rsv
    size = len(payload)
    masked = 0x80 if mask else 0
    if size < 126:
        head = bytes([first, masked | size])
    elif size < 65536:
        head = bytes([first, masked | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([first, masked | 127]) + size.to_bytes(8, "big")
    return head + mask + unmasked(payload, mask)


def accept_of(key: str) -> str:
    """What a server says to a nonce (RFC 6455 §4.2.2)."""
    digest = hashlib.sha1((key + GUID).encode(), usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


def switching(head: bytes) -> bytes:
    """The response that agrees to an upgrade."""
    match = re.search(rb"(?i)\r\nsec-websocket-key: ([^\r]+)\r\n", head)
    assert match
    accepted = accept_of(match[1].decode())
    fields = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accepted}"
    return f"HTTP/1.1 101 Switching\r\n{fields}\r\n\r\n".encode()


def unmasked(payload: bytes, mask: bytes) -> bytes:
    if not mask or not payload:
        return payload
    keys = (mask * (len(payload) // 4 + 1))[: len(payload)]
    size = len(payload)
    return (int.from_bytes(payload, "big") ^ int.from_bytes(keys, "big")).to_bytes(size, "big")


def split_frame(raw: bytes) -> tuple[int, bool, bytes, bytes, bytes] | None:
    """Opcode, whether it is the last, mask, payload, rest; None if it is not whole yet."""
    if len(raw) < 2:
        return None
    size, at = raw[1] & 0x7F, 2
    if size > 125:
        extra = 2 if size == 126 else 8
        size, at = int.from_bytes(raw[2 : 2 + extra], "big"), 2 + extra
    mask = raw[at : at + 4] if raw[1] & 0x80 else b""
    at += len(mask)
    if len(raw) < at + size:
        return None
    payload = unmasked(raw[at : at + size], mask)
    assert raw[0] & 0x70 == 0, "reserved bits"
    return raw[0] & 0x0F, bool(raw[0] & 0x80), mask, payload, raw[at + size :]
