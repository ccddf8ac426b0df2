"""Upstreams on real sockets, plain and with TLS, which a test plays by hand.  (No claims.)

They are threads and blocking sockets.  TLS is done in memory, so that the test decides which
records go out together, and how much of one.  Each account has a path of its own at them:

    with opened_site(folder, ["first", "second"]) as site:
        site.secure.plays["first"] = lambda line: line.send(ok({"id": "r"}))
        assert site.ask("first", {"input": "hi"}) == (200, {"id": "r"})
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import re
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio
import trustme

from pooler import BaseUrl, dial, make_tls_context
from tests.support.listening import Listening
from tests.support.processes import Pooler

API_KEY: Final = "upstream-key-of-the-test-0123456789"
SECONDS_MAX: Final = 20.0  # of one wait: a machine may be slow
HOST: Final = "127.0.0.1"
_LINE: Final = re.compile(rb"(?:POST|GET) /([a-z0-9-]+)/(?:v1/)?[a-z/]+ HTTP/1\.1")

Json = Any


class Authority:
    """A private certificate authority, and its certificate in a file."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.ca = trustme.CA()
        self.path = folder / f"{name}.pem"
        self.ca.cert_pem.write_to_path(str(self.path))

    def context(
        self, *names: str, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    ) -> ssl.SSLContext:
        """A server that shows a certificate for these names; without one: for `HOST`."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = context.maximum_version = version
        self.ca.issue_cert(*(names or (HOST,))).configure_cert(context)
        return context


class Left(Exception):
    """The pooler has closed the connection."""


class Line:
    """An upstream's side of one connection."""

    def __init__(
        self, caller: socket.socket, context: ssl.SSLContext | None, number: int = 1
    ) -> None:
        self.caller = caller
        self.number = number  # of the connections in their order
        self.received = bytearray()  # and not taken yet
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls: ssl.SSLObject | None = None
        if context is not None:
            self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    def shake_hands(self, *, holds_tickets: bool = False) -> None:
        """With `holds_tickets` those of TLS 1.3 go out with what is encrypted next."""
        is_done = self.tls is None
        while not is_done:
            assert self.tls is not None
            try:
                self.tls.do_handshake()
                is_done = True
            except ssl.SSLWantReadError:
                self.caller.sendall(self.outgoing.read())
                self.incoming.write(self._receive())
        if not holds_tickets:
            self.caller.sendall(self.outgoing.read())

    def _receive(self) -> bytes:
        received = self.caller.recv(65536)
        if not received:
            raise Left
        return received

    def receive(self) -> None:
        """Add what comes next to `received`.  Raises: Left, OSError."""
        if self.tls is None:
            self.received += self._receive()
            return
        while True:
            try:
                read = self.tls.read(65536)
            except ssl.SSLWantReadError:
                self.incoming.write(self._receive())
            else:
                if not read:
                    raise Left
                self.received += read
                return

    def read_head(self) -> bytes:
        while (end := self.received.find(b"\r\n\r\n")) < 0:
            self.receive()
        head = bytes(self.received[: end + 4])
        del self.received[: end + 4]
        return head

    def read_body(self, head: bytes) -> bytes:
        match = re.search(rb"(?i)\r\ncontent-length: (\d+)\r\n", head)
        length = int(match[1]) if match else 0
        while len(self.received) < length:
            self.receive()
        body = bytes(self.received[:length])
        del self.received[:length]
        return body

    def encrypted(self, data: bytes) -> bytes:
        """What goes over the wire for `data`: with TLS one record, if it is no longer than that."""
        if self.tls is None:
            return data
        self.tls.write(data)
        return self.outgoing.read()

    def farewell(self) -> bytes:
        """A close_notify."""
        assert self.tls is not None
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self.outgoing.read()

    def send(self, *records: bytes) -> None:
        """Send them at once, each in a record of its own."""
        self.caller.sendall(b"".join([self.encrypted(record) for record in records]))


# What is done once a request's head is there: the line, and the head.  True: the next one may come.
Play = Callable[[Line, bytes], bool]


class Upstream:
    """Serves accounts by the first part of the path; `plays` has what each of them does."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.context = context
        self.plays: dict[str, Play] = {}
        self.asked: list[tuple[str, Line]] = []  # in their order
        self.is_over = threading.Event()  # the test is
        self.holds_tickets = False
        self.numbers = itertools.count(1)  # of connections
        self.listening = Listening(self.serve)
        self.port = self.listening.port

    @property
    def opened_count(self) -> int:
        return self.listening.count

    def serve(self, caller: socket.socket) -> None:
        caller.settimeout(SECONDS_MAX)
        line = Line(caller, self.context, next(self.numbers))
        with contextlib.suppress(OSError, Left), line.caller:
            line.shake_hands(holds_tickets=self.holds_tickets)
            is_kept = True
            while is_kept:
                head = line.read_head()
                is_upgrade = b"\r\nupgrade: websocket\r\n" in head.lower()
                if head.startswith(b"GET ") and not is_upgrade:  # the models of a codex account
                    line.send(answer({}, 404))
                    continue
                match = _LINE.match(head)
                assert match, head
                name = match[1].decode()
                self.asked.append((name, line))
                is_kept = self.plays[name](line, head)

    def lines_of(self, name: str) -> list[Line]:
        """The connections that this account's requests came on."""
        return [line for asked, line in self.asked if asked == name]

    def close(self) -> None:
        self.is_over.set()
        self.listening.close()
        self.listening.join(SECONDS_MAX)


def answer(content: Json, status: int = 200) -> bytes:
    """A whole response; `content` is sent as it is if it is bytes."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    fields = f"Content-Type: application/json\r\nContent-Length: {len(body)}"
    return f"HTTP/1.1 {status} Whatever\r\n{fields}\r\n\r\n".encode() + body


def event_stream(events: Sequence[Json]) -> bytes:
    """A whole response of events, which ends with the connection."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    return head + b"".join([b"data: " + json.dumps(one).encode() + b"\n\n" for one in events])


@asynccontextmanager
async def dialled(
    folder: Path,
    *,
    is_tls: bool,
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    key_log: Path | None = None,
) -> AsyncIterator[tuple[trio.abc.Stream, Line]]:
    """A connection as the pooler makes it, and the upstream's side of it.

    With a `key_log` that has written its keys, and has sent nothing under them yet.
    """
    authority = Authority(folder)
    theirs = authority.context(version=version) if is_tls else None
    ours = make_tls_context(authority.path) if is_tls else None
    if theirs is not None and key_log is not None:
        theirs.num_tickets = 0
        theirs.keylog_filename = str(key_log)
    lines: list[Line] = []
    with socket.create_server((HOST, 0)) as listener, trio.fail_after(SECONDS_MAX):

        def accept() -> None:
            caller, _ = listener.accept()
            caller.settimeout(SECONDS_MAX)
            lines.append(Line(caller, theirs))
            lines[0].shake_hands()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, accept)
            stream = await dial(BaseUrl(is_tls, HOST, listener.getsockname()[1], ""), ours)
        with lines[0].caller:
            async with stream:
                yield stream, lines[0]


class Site:
    """The pooler's process, and two upstreams of its accounts: a plain one, and one with TLS.

    `accounts` has the fields of each account next to those that all have; each has a pool.
    """

    def __init__(
        self,
        folder: Path,
        accounts: Mapping[str, Mapping[str, Json]],
        pools: Mapping[str, Sequence[str]] | None = None,
        limits: Mapping[str, float] | None = None,
    ) -> None:
        self.authority = Authority(folder)
        self.plain = Upstream()
        self.secure = Upstream(self.authority.context())
        described = {name: self.describe(name, more) for name, more in accounts.items()}
        grouped = pools or {name: [name] for name in accounts}
        config = {
            "listen": f"{HOST}:0",
            "accounts": described,
            "pools": {
                name: {"accounts": list(members), "keys": {"k": key_of(name)}}
                for name, members in grouped.items()
            },
            "limits": dict(limits or {}),
        }
        self.pooler = Pooler(config, folder)
        self.address = self.pooler.origin.removeprefix("http://")

    def describe(self, name: str, more: Mapping[str, Json]) -> dict[str, Json]:
        """An account whose `base_url` may say "http" or "https" alone."""
        scheme = more.get("base_url", "https")
        upstream = self.plain if scheme == "http" else self.secure
        fields = {"type": "openai", "api_key": API_KEY, "models": ["m1"]}
        if scheme == "https":
            fields["ca_file"] = str(self.authority.path)
        described = fields | dict(more)
        if scheme in {"http", "https"}:
            described["base_url"] = f"{scheme}://{HOST}:{upstream.port}/{name}/v1"
        return {field: value for field, value in described.items() if value is not None}

    def ask(self, pool: str, body: Mapping[str, Json] | bytes) -> tuple[int, Json]:
        """One request on a connection of its own: the status, and JSON or else the text."""
        connection = http.client.HTTPConnection(self.address, timeout=SECONDS_MAX)
        raw = body if isinstance(body, bytes) else json.dumps({"model": "m1", **body}).encode()
        fields = {"Authorization": f"Bearer {key_of(pool)}", "Content-Type": "application/json"}
        with contextlib.closing(connection):
            connection.request("POST", "/v1/responses", raw, fields)
            response = connection.getresponse()
            read = response.read()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, json.loads(read) if is_json else read.decode()

    def close(self) -> None:
        self.plain.is_over.set()
        self.secure.is_over.set()
        self.pooler.stop()  # exit code 0, and no word of a bug
        self.plain.close()
        self.secure.close()


def key_of(pool: str) -> str:
    return f"cp-key-of-the-pool-{pool}"


@contextlib.contextmanager
def opened_site(
    folder: Path,
    accounts: Mapping[str, Mapping[str, Json]],
    pools: Mapping[str, Sequence[str]] | None = None,
    limits: Mapping[str, float] | None = None,
) -> Iterator[Site]:
    site = Site(folder, accounts, pools, limits)
    try:
        yield site
    finally:
        site.close()
