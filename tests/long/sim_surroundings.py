"""A proxy, a receiver of notices, and whoever reads the log in the simulation.  (No claims.)"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import trio

import pooler
from pooler import LogWriter
from tests.long.sim_ground import Ground
from tests.long.sim_names import CALM, SECRETS
from tests.support.memory_sockets import Json, MemorySocket, socket_pair
from tests.support.world import (
    FakeUpstream,
    Fin,
    Line,
    Pause,
    Reset,
    Stall,
    Step,
    World,
    error_response,
    json_response,
)

CONSENT: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
REFUSALS: Final = (
    b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n",
    b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
    CONSENT + b"too early",
    b"SSH-2.0-noise\r\n\r\n",
    b"",
)


@dataclass(eq=False)
class OutboundProxy:
    """It connects to upstreams, or refuses, stalls and cuts."""

    ground: Ground
    world: World
    upstream_at: Callable[[str], FakeUpstream]  # what an address names
    sockets: list[MemorySocket] = field(default_factory=list)

    async def connect(self) -> MemorySocket:
        await trio.lowlevel.checkpoint()
        ours, theirs = socket_pair()
        self.sockets.append(ours)
        self.world.nursery.start_soon(self.serve, ours)
        return theirs

    async def serve(self, socket: MemorySocket) -> None:
        """One connection: a CONNECT, and then the upstream that it names."""
        try:
            head = b""
            while b"\r\n\r\n" not in head:
                received = await socket.receive_some()
                if not received:
                    raise trio.BrokenResourceError
                head += received
            method, address, version = head.split(b"\r\n")[0].decode().split(" ")
            assert (method, version) == ("CONNECT", "HTTP/1.1"), head
            assert b"authorization: bearer" not in head.lower(), "a proxy was told a credential"
            upstream = self.upstream_at(address)
            if upstream.name == CALM or not self.ground.happens(0.12):
                self.ground.note("tunnel")
                await socket.send_all(CONSENT)
                await upstream.accept(socket)
                return
            self.ground.book.note_odd(upstream.name, *self.ground.holders_of(upstream.name))
            self.ground.note("no tunnel")
            await self.fail(socket)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        socket.close()

    async def fail(self, socket: MemorySocket) -> None:
        rng = self.ground.rng
        if rng.random() < 0.2:  # no word at all
            await socket.wait_peer_gone()
            return
        await socket.send_all(rng.choice(REFUSALS))
        if rng.random() < 0.5:
            socket.reset()


@dataclass(eq=False)
class Receiver:
    """Of notices: it may fail; what it is told has no secret in it."""

    ground: Ground
    upstream: FakeUpstream

    def __post_init__(self) -> None:
        self.upstream.handle = self.serve

    async def serve(self, line: Line) -> bool:
        rng = self.ground.rng
        asked = await self.upstream.read(line)
        if asked is None:
            return False
        self.ground.note("notice")
        found = [one for one in SECRETS if one.encode() in asked.body]
        if found or b"private.example" in asked.body:
            self.ground.complaints.append(f"a notice tells {found}: {asked.body!r}")
        if not self.ground.happens(0.5):
            return await self.upstream.play(json_response({}), line)
        steps: list[Step] = [Fin(), Reset(), Stall(), Pause(rng.choice([1, 14, 40]))]
        odd = rng.choice([error_response(500, "odd"), error_response(429, "odd"), *zip(steps)])
        return await self.upstream.play(odd, line)


class LogReader:
    """Standard error: read at once, late, in parts, or closed; no line is lost uncounted.

    The writer's thread is run here, now and then: `write_all` ends once its queue is empty.
    """

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.writer = LogWriter()
        self.writer.closing.set()
        self.raw = b""
        self.logged_count = 0
        self.is_closed = False
        self.is_stuck = ground.rng.random() < 0.2
        self.is_odd = ground.rng.random() < 0.4

    def __call__(self, level: str, event: str, fields: Mapping[str, Json]) -> None:
        self.logged_count += 1
        self.writer(level, event, dict(fields))
        if self.is_stuck and self.ground.rng.random() < 0.02:
            self.is_stuck = False
        if not self.is_stuck:
            self.run_writer()

    def run_writer(self) -> None:
        """What the thread does until nothing is left."""
        with standing_in(os, "write", self.write):
            self.writer.is_closed = True
            self.writer.write_all()
            self.writer.is_closed = False

    def write(self, descriptor: int, raw: bytes) -> int:
        """In the place of `os.write`."""
        assert descriptor == pooler.STDERR
        rng = self.ground.rng
        if self.is_odd and rng.random() < 0.1:
            self.ground.note("log fails")
            code = rng.choice([errno.EPIPE, errno.EBADF, errno.ENOSPC, errno.EIO])
            raise OSError(code, os.strerror(code))
        count = rng.randint(1, len(raw)) if self.is_odd and rng.random() < 0.2 else len(raw)
        count += raw[count : count + 1] == b"\n"  # a line without its end would count as lost
        self.raw += raw[:count]
        return count

    def judge(self) -> None:
        """I12: each line was written, or counted as dropped."""
        self.is_odd = False
        if self.is_stuck:
            self.ground.note("log stuck")
        self.run_writer()
        told = dropped = 0
        for line in self.raw.split(b"\n"):
            with contextlib.suppress(ValueError):  # a part of a line, which is counted as lost
                fields = json.loads(line)
                is_count = fields["event"] == "log lines dropped"
                dropped += fields["lines"] if is_count else 0
                told += not is_count
        if dropped:
            self.ground.note("log dropped")
        dropped += self.writer.dropped_count
        assert told + dropped == self.logged_count, (told, dropped, self.logged_count)


@contextlib.contextmanager
def standing_in(place: object, name: str, value: object) -> Iterator[None]:
    kept = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, kept)
