"""Proves that reading and writing through TLS do not depend on each other, and what each tells.

Method: `pooler.TlsStream` on real sockets, and a peer that makes its records by hand
(tests/support/tls_upstreams.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
import trio
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from trio.testing import wait_all_tasks_blocked

import pooler
from pooler import BaseUrl, TlsStream, UpstreamConnection
from tests.support.tls_upstreams import HOST, SECONDS_MAX, Authority, Left, Line, answer, dialled

VERSIONS: Final = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
every_version = pytest.mark.parametrize("version", VERSIONS, ids=["tls-1.2", "tls-1.3"])
MIB: Final = 1024 * 1024
STEP: Final = pooler.RECEIVE_BYTES
AT_ONCE: Final = pooler.STEPS_AT_ONCE_MAX * STEP
HEAD: Final = b"POST / HTTP/1.1\r\n\r\n"


@dataclasses.dataclass
class Pair:
    """Both ends of one connection."""

    stream: TlsStream
    line: Line


@asynccontextmanager
async def joined(
    folder: Path,
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    key_log: Path | None = None,
) -> AsyncIterator[Pair]:
    async with dialled(folder, is_tls=True, version=version, key_log=key_log) as (stream, line):
        assert isinstance(stream, TlsStream)
        yield Pair(stream, line)


def read_to(line: Line, byte_count: int) -> bytes:
    while len(line.received) < byte_count:
        line.receive()
    return bytes(line.received)


@every_version
async def test_a_send_that_was_cancelled_ends_no_reading_and_goes_on_later(
    tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """The peer reads nothing, so that a part of a record is on its way when it is cancelled."""
    data = bytes(range(256)) * 4096 * 24
    async with joined(tmp_path, version) as pair:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.stream.send_all, data)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert pair.stream.unsent
        for word in (b"one", b"two"):
            pair.line.send(word)
            assert await pair.stream.receive_some() == word
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.stream.send_all, b"end")
            read = await trio.to_thread.run_sync(read_to, pair.line, len(data) + 3)
        assert read == data + b"end"


async def send_for_ever(stream: trio.abc.SendStream) -> None:
    while True:
        await stream.send_all(b"x" * MIB)


@every_version
async def test_what_was_said_before_the_peer_closed_is_read_after_a_send_that_failed(
    tmp_path: Path, version: ssl.TLSVersion
) -> None:
    async with joined(tmp_path, version) as pair:
        pair.line.send(b"said ", b"before")
        assert pair.stream.send_now(b"unread")
        pair.line.caller.close()
        with pytest.raises(trio.BrokenResourceError):
            await send_for_ever(pair.stream)
        assert await pair.stream.receive_some() == b"said before"


@every_version
async def test_reading_and_writing_go_on_at_the_same_time(
    tmp_path: Path, version: ssl.TLSVersion
) -> None:
    data = bytes(range(251)) * 40_000

    def echo(line: Line) -> None:
        byte_count = 0
        while byte_count < len(data):
            line.receive()
            line.send(bytes(line.received))
            byte_count += len(line.received)
            line.received.clear()

    async with joined(tmp_path, version) as pair:
        read = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, echo, pair.line)
            nursery.start_soon(pair.stream.send_all, data)
            while len(read) < len(data):
                read += await pair.stream.receive_some()
        assert read == data


@every_version
async def test_a_record_that_somebody_has_changed_ends_the_stream(
    tmp_path: Path, version: ssl.TLSVersion
) -> None:
    async with joined(tmp_path, version) as pair:
        good, bad = pair.line.encrypted(b"good"), bytearray(pair.line.encrypted(b"bad"))
        bad[-1] ^= 1
        pair.line.caller.sendall(good + bad + pair.line.encrypted(b"good"))
        assert await pair.stream.receive_some() == b"good"
        for _ in range(3):
            with pytest.raises(trio.BrokenResourceError):
                await pair.stream.receive_some()


ENDS: Final[dict[str, Callable[[Line], bytes]]] = {
    "close-notify": Line.farewell,
    "without-a-word": lambda _: b"",
    "in-a-record": lambda line: line.encrypted(b"cut")[:-1],
}


@every_version
@pytest.mark.parametrize("way", ENDS)
async def test_an_end_is_told_as_often_as_it_is_asked_for(
    tmp_path: Path, version: ssl.TLSVersion, way: str
) -> None:
    async with joined(tmp_path, version) as pair:
        pair.line.caller.sendall(pair.line.encrypted(b"last") + ENDS[way](pair.line))
        pair.line.caller.shutdown(socket.SHUT_WR)
        assert await pair.stream.receive_some() == b"last"
        for _ in range(3):
            assert await pair.stream.receive_some() == b""
        assert pair.stream.holds_more


@every_version
async def test_a_part_of_a_record_is_seen_wherever_it_is_cut(
    tmp_path: Path, version: ssl.TLSVersion
) -> None:
    async with joined(tmp_path, version) as pair:
        pair.line.send(b"first")
        assert await pair.stream.receive_some() == b"first"
        assert not pair.stream.holds_more
        records = [pair.line.encrypted(data) for data in (b"a", b"bc" * 200, b"def")]
        borders = {sum(map(len, records[:count])) for count in range(1, 4)}
        for count, byte in enumerate(b"".join(records), 1):
            pair.line.caller.sendall(bytes([byte]))
            await pair.stream._fill()
            assert pair.stream.holds_more == (count not in borders), count
        assert await pair.stream.receive_some() == b"a" + b"bc" * 200 + b"def"
        # And where several are there at once.
        late = b"".join([pair.line.encrypted(b"x" * size) for size in (1, 16_384, 5)])
        pair.line.caller.sendall(late + pair.line.encrypted(b"last")[:2])
        byte_count = 0
        while byte_count < 16_390:
            byte_count += len(await pair.stream.receive_some())
        assert pair.stream.holds_more


class NewKeys:
    """A server's side of TLS 1.3 that asks for new keys (RFC 8446 §4.6.3), which ssl cannot."""

    def __init__(self, key_log: str) -> None:
        found = re.search(r"SERVER_TRAFFIC_SECRET_0 \w+ (\w+)", key_log)
        assert found
        self.secret = bytes.fromhex(found[1])

    def expand(self, label: bytes, length: int) -> bytes:
        named = b"tls13 " + label
        info = length.to_bytes(2, "big") + bytes([len(named)]) + named + b"\0"
        return HKDFExpand(SHA384(), length, info).derive(self.secret)

    def sealed(self, content: bytes, kind: bytes) -> bytes:
        """A record, the first under the present keys."""
        head = b"\x17\x03\x03" + (len(content) + 17).to_bytes(2, "big")
        key, nonce = self.expand(b"key", 32), self.expand(b"iv", 12)
        return head + AESGCM(key).encrypt(nonce, content + kind, head)

    def ask(self) -> bytes:
        """A wish for new keys, which come into force."""
        record = self.sealed(b"\x18\0\0\x01\x01", b"\x16")
        self.secret = self.expand(b"traffic upd", 48)
        return record


async def test_what_openssl_answers_by_itself_is_sent(tmp_path: Path) -> None:
    """A peer asks for new keys now and then, and reads the answers."""
    key_log = tmp_path / "keys"
    async with joined(tmp_path, key_log=key_log) as pair:
        keys, caller = NewKeys(key_log.read_text()), pair.line.caller

        def ask() -> None:
            for _ in range(8):
                asked = b"".join([keys.ask() for _ in range(500)])
                caller.sendall(asked)
                byte_count = 0
                while byte_count < len(asked) // 2:  # two wishes may get one answer
                    byte_count += len(caller.recv(65536))
            caller.sendall(keys.sealed(b"word", b"\x17"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, ask)
            assert await pair.stream.receive_some() == b"word"
        await pair.stream.send_all(b"last")
        assert not pair.stream.unsent


async def test_answers_that_nobody_reads_are_bounded(tmp_path: Path) -> None:
    key_log = tmp_path / "keys"
    async with joined(tmp_path, key_log=key_log) as pair:
        keys = NewKeys(key_log.read_text())
        pair.stream.stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

        def ask() -> None:
            with contextlib.suppress(OSError):
                while True:  # the system holds some of the answers
                    pair.line.caller.sendall(b"".join([keys.ask() for _ in range(500)]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, ask)
            with pytest.raises(trio.BrokenResourceError):
                await pair.stream.receive_some()
            assert len(pair.stream.unsent) < 3 * STEP
            await pair.stream.aclose()  # which ends the thread


async def test_it_can_be_waited_for_like_any_stream(tmp_path: Path) -> None:
    async with joined(tmp_path) as pair:
        await pair.stream.wait_send_all_might_not_block()
        await pair.stream.send_all(b"")
        await pair.stream.send_all(b"heard")
        assert await trio.to_thread.run_sync(read_to, pair.line, 5) == b"heard"


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
async def test_a_request_arrives_whole_whatever_its_size(tmp_path: Path, *, is_tls: bool) -> None:
    """A small one at once, without a task of its own; of a large one no more than some steps."""
    sizes = (0, 1, STEP - 1, STEP, STEP + 1, AT_ONCE - 1, AT_ONCE, AT_ONCE + 1, 40 * AT_ONCE + 1)
    async with dialled(tmp_path, is_tls=is_tls) as (stream, line):
        upstream = UpstreamConnection(stream)
        for size in sizes:
            body = bytes(range(251)) * (size // 251) + b"x" * (size % 251)
            rest = upstream.begin(HEAD, body)
            assert rest is None or size >= STEP - 1
            assert rest is not None or size <= AT_ONCE
            async with trio.open_nursery() as nursery:
                if rest is not None:
                    nursery.start_soon(upstream.send_rest, rest)
                read = await trio.to_thread.run_sync(read_to, line, len(HEAD) + size)
            assert read == HEAD + body
            assert not upstream.is_cut
            line.received.clear()


def test_a_write_never_has_to_wait_for_a_read() -> None:
    """TLS 1.2 could be negotiated anew in the middle of a connection."""
    context = pooler.make_tls_context(None)
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


################################################################
# A HANDSHAKE THAT FAILS
################################################################


def be_silent(line: Line) -> None:
    with contextlib.suppress(OSError):
        while line.caller.recv(65536):
            pass


def close(_line: Line) -> None:
    """At once."""


def hear_and_close(line: Line) -> None:
    line.caller.recv(65536)


def speak_plainly(line: Line) -> None:
    line.caller.sendall(answer({"id": "r"}))
    be_silent(line)


def shake_hands(line: Line) -> None:
    with contextlib.suppress(Left, OSError):
        line.shake_hands()
        line.receive()


@pytest.mark.parametrize("play", [close, hear_and_close, speak_plainly, shake_hands, be_silent])
async def test_a_handshake_that_fails_leaves_no_socket_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, play: Callable[[Line], None]
) -> None:
    """Nobody else would close it: the test holds it, as a traceback might."""
    made: list[trio.SocketStream] = []
    open_really = trio.open_tcp_stream

    async def open_and_keep(host: str | bytes, port: int) -> trio.SocketStream:
        made.append(await open_really(host, port))
        return made[-1]

    monkeypatch.setattr(trio, "open_tcp_stream", open_and_keep)
    ours, stranger = Authority(tmp_path, "ours"), Authority(tmp_path, "stranger")
    with socket.create_server((HOST, 0)) as listener:

        def accept() -> None:
            caller, _ = listener.accept()
            caller.settimeout(SECONDS_MAX)
            with caller:
                play(Line(caller, stranger.context()))

        async def call() -> None:
            url = BaseUrl(True, HOST, listener.getsockname()[1], "")
            await pooler.dial(url, pooler.make_tls_context(ours.path))

        with trio.fail_after(SECONDS_MAX):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, accept)
                if play is be_silent:
                    with trio.move_on_after(0.2) as waiting:
                        await call()
                    assert waiting.cancelled_caught
                else:
                    with pytest.raises((OSError, trio.BrokenResourceError)):
                        await call()
                assert [stream.socket.fileno() for stream in made] == [-1]
