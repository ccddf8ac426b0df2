"""Hostile peers on real sockets, the pooler's process between them, and what they cost it.

One upstream stands in for all accounts: the first part of a path tells whose it is.  It and the
clients are threads; what is measured is the pooler's alone: its memory as the kernel counts it,
its processor's time, and how long a good client waits, who is a process of its own (this file run
as a program).  (No claims.)
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from tests.support.codex_backend import make_auth_file
from tests.support.frames import TEXT, accept_of, frame
from tests.support.listening import Listening
from tests.support.memory_sockets import post
from tests.support.memory_websockets import upgrade
from tests.support.paths import ROOT
from tests.support.processes import Pooler, clean_env

Json = dict[str, Any]
Figures = dict[str, float]

KIB: Final = 1024
MIB: Final = 1024 * KIB
SECONDS_MAX: Final = 30.0  # of one wait: a machine may be slow
QUIET_SECONDS: Final = 0.15  # without work: what was sent has been dealt with
TICK_SECONDS: Final = 0.01  # between two looks at what is waited for
OPERATOR: Final = "operator-token-of-the-test-01234"
MODEL: Final = "m1"
# What glibc keeps of large freed blocks hides what the pooler keeps; PYTHONDEVMODE's own
# allocator would check every block.
ALLOCATOR: Final = {
    "PYTHONMALLOC": "pymalloc",
    "MALLOC_MMAP_THRESHOLD_": str(128 * KIB),
    "MALLOC_TRIM_THRESHOLD_": str(128 * KIB),
}
SSE_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
DELTA: Final = b'data: {"type":"response.output_text.delta","delta":"x"}\n\n'
TURN: Final = b'{"type":"response.create","model":"m1","input":"hi"}'
END: Final = b'data: {"type":"response.completed","response":{"id":"r"}}\n\n'


def key_of(name: str) -> str:
    return f"cp-key-of-{name}-0123456789"


def wait_until(condition: Callable[[], bool], seconds: float = SECONDS_MAX) -> bool:
    """Whether it came true in time."""
    waiter, deadline = threading.Event(), time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        waiter.wait(TICK_SECONDS)
    return True


def json_head(length: int, status: str = "200 OK", *, closes: bool = False) -> bytes:
    """The head of a whole response in JSON."""
    lines = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
    return f"{lines}Connection: {'close' if closes else 'keep-alive'}\r\n\r\n".encode()


def json_response(body: bytes, status: str = "200 OK") -> bytes:
    return json_head(len(body), status) + body


################################################################
# THE UPSTREAM
################################################################


class Visit(NamedTuple):
    """A whole request, and the socket to respond on."""

    caller: socket.socket
    account: str
    path: str
    number: int  # among the account's requests for work, from 0
    is_socket: bool = False  # a WebSocket, which has been agreed to


Play = Callable[[Visit], object]  # True: the connection goes on


def plays(*pieces: bytes, keeps: bool = False) -> Play:
    """Send these, then end the connection or keep it."""

    def play(visit: Visit) -> bool:
        for piece in pieces:
            visit.caller.sendall(piece)
        return keeps

    return play


class HostileUpstream:
    """Serves all accounts; what each does with a request, and with an upgrade, is its `plays`."""

    def __init__(self) -> None:
        self.plays: dict[str, Play] = {}
        self.list: Play = plays(json_response(b'{"models":[]}'), keeps=True)  # of models
        self.deaf: set[str] = set()  # accounts that read no body until `released`
        self.arrived: Counter[str] = Counter()  # whole requests for work
        self.listed: Counter[str] = Counter()  # requests for the models
        self.released = threading.Event()
        self.may_list = threading.Event()
        self.may_list.set()
        self.lock = threading.Lock()
        self.listening = Listening(self.serve)
        self.port = self.listening.port

    def serve(self, caller: socket.socket) -> None:
        with contextlib.suppress(OSError), caller:
            while self.serve_one(caller):
                pass

    def serve_one(self, caller: socket.socket) -> bool:
        """Read a request, drop its body, send the response; return whether another may come."""
        raw = b""
        while b"\r\n\r\n" not in raw:
            if not (received := caller.recv(64 * KIB)):
                return False
            raw += received
        head, _, rest = raw.partition(b"\r\n\r\n")
        match = re.match(rb"[A-Z]+ /([a-z0-9-]+)(/\S*)", head)
        assert match, head
        account, path = match[1].decode(), match[2].decode()
        if account in self.deaf:
            self.note(account)
            self.released.wait(SECONDS_MAX)
        length = re.search(rb"(?i)content-length: (\d+)", head)
        left = int(length[1]) - len(rest) if length else 0
        scratch = bytearray(MIB)
        while left > 0:
            if not (count := caller.recv_into(scratch, min(left, MIB))):
                return False
            left -= count
        if nonce := re.search(rb"(?i)sec-websocket-key: (\S+)", head):
            lines = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
            lines += f"Connection: Upgrade\r\nSec-WebSocket-Accept: {accept_of(nonce[1].decode())}"
            caller.sendall(f"{lines}\r\n\r\n".encode())
        elif path.split("?")[0].endswith("/models"):
            self.listed[account] += 1
            self.may_list.wait(SECONDS_MAX)
            return self.list(Visit(caller, account, path, -1)) is True
        number = self.arrived[account] if account in self.deaf else self.note(account)
        visit = Visit(caller, account, path, number, is_socket=nonce is not None)
        return self.plays.get(account, well)(visit) is True

    def note(self, account: str) -> int:
        """Count a request; its number."""
        with self.lock:
            self.arrived[account] += 1
            return self.arrived[account] - 1

    def hold(self, visit: Visit) -> bool:
        """Say nothing until `released`, or until the pooler closes the connection."""
        visit.caller.settimeout(TICK_SECONDS * 5)
        while not self.released.is_set():
            try:
                if not visit.caller.recv(64 * KIB):
                    return False
            except TimeoutError:
                continue
        visit.caller.settimeout(None)
        return True

    def plays_and_holds(self, *pieces: bytes, then: bytes = b"") -> Play:
        """Send these, then nothing until `released`, then the rest, and end."""

        def play(visit: Visit) -> bool:
            for piece in pieces:
                visit.caller.sendall(piece)
            if self.hold(visit) and then:
                visit.caller.sendall(then)
            return False

        return play

    def list_with(self, *pieces: bytes) -> None:
        """Answer the requests for models, which have been waiting for that."""
        self.list = plays(*pieces, keeps=True)
        self.may_list.set()

    @property
    def arrived_count(self) -> int:
        return self.arrived.total()

    def close(self) -> None:
        self.released.set()
        self.may_list.set()
        self.listening.close()


def well(visit: Visit) -> bool:
    """A short good response: events for an account whose name begins with `c`, else JSON."""
    if visit.is_socket:
        return turns_well(visit)
    if visit.account.startswith("c"):
        visit.caller.sendall(SSE_HEAD + DELTA + END)
        return False
    visit.caller.sendall(json_response(b'{"id":"r"}'))
    return True


def streams_well(visit: Visit) -> bool:
    visit.caller.sendall(SSE_HEAD + DELTA + END)
    return False


def turns_well(visit: Visit) -> bool:
    """A short good response to each turn of a WebSocket."""
    with visit.caller.makefile("rb") as file:
        while take_message(file):
            for event in (DELTA, END):
                visit.caller.sendall(server_message(event[6:-2]))
    return False


def take_message(file: IO[bytes]) -> int:
    """Read frames of the pooler's until a message is whole; its length."""
    total = 0
    while len(head := file.read(2)) == 2:
        size = head[1] & 0x7F
        if size > 125:
            size = int.from_bytes(file.read(2 if size == 126 else 8), "big")
        file.read(4)
        file.read(size)
        if head[0] & 0x0F < 3:
            total += size
            if head[0] & 0x80:
                return total
    raise ConnectionResetError


################################################################
# THE POOLER
################################################################


def paired(count: int, kind: str = "a", **more: object) -> tuple[Json, Json]:
    """So many accounts, and a pool with one key for each, all of that name; `c`: of ChatGPT."""
    names = [f"{kind}{number}" for number in range(count)]
    account = {"concurrent": 64, "websocket": True, "models": [MODEL], **more}
    pools = {name: {"accounts": [name], "keys": {name: key_of(name)}} for name in names}
    return {name: dict(account) for name in names}, pools


class Rig:
    """The pooler's process and the upstream of all its accounts."""

    def __init__(
        self,
        folder: Path,
        accounts: Mapping[str, Json],
        pools: Mapping[str, Json],
        limits: Mapping[str, float] | None = None,
        *,
        may_list: bool = True,
    ) -> None:
        self.upstream = HostileUpstream()
        if not may_list:  # until the test says with what
            self.upstream.may_list.clear()
        origin = f"http://127.0.0.1:{self.upstream.port}"
        described: Json = {}
        for name, account in accounts.items():
            fields = {field: value for field, value in account.items() if value is not None}
            described[name] = {"type": "openai", "api_key": "none", **fields}
            described[name]["base_url"] = f"{origin}/{name}/v1"
            if name.startswith("c"):
                path = folder / name / "auth.json"
                make_auth_file(path, f"account-{name}")
                described[name] |= {"type": "codex", "auth_file": str(path)}
                del described[name]["api_key"]
        self.keys = {name: key_of(name) for pool in pools.values() for name in pool["keys"]}
        config = {
            "listen": "127.0.0.1:0", "accounts": described, "pools": dict(pools),
            "operators": {"me": OPERATOR}, "limits": {"drain_seconds_max": 0, **(limits or {})},
        }  # fmt: skip
        self.pooler = Pooler(config, folder, **ALLOCATOR)
        host, _, port = self.pooler.origin.removeprefix("http://").partition(":")
        self.address = host, int(port)
        self.pid = self.pooler.process.process.pid
        self.base = 0

    def connect(self, receive_bytes: int = 0) -> socket.socket:
        stream = socket.socket()
        if receive_bytes:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        stream.settimeout(SECONDS_MAX)
        stream.connect(self.address)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return stream

    def ask(self, raw: bytes) -> bytes:
        """All that comes back for one request; it should ask for the connection's end."""
        with self.connect() as client:
            client.sendall(raw)
            return read_all(client)

    def status(self, field: str) -> int:
        """Bytes, of a line of /proc/PID/status."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(rf"(?m)^{field}:\s+(\d+)", text)
        assert match
        return int(match[1]) * KIB

    def settle(self) -> None:
        """Wait until the pooler has had nothing to do for a moment."""
        waiter, deadline = threading.Event(), time.monotonic() + SECONDS_MAX
        before = scheduled(self.pid)
        while not waiter.wait(QUIET_SECONDS):
            after = scheduled(self.pid)
            if sum(after) - sum(before) < QUIET_SECONDS / 20:
                return
            assert time.monotonic() < deadline, "the pooler never comes to rest"
            before = after

    def forget(self) -> None:
        """Have the pooler forget what upstreams have said: it reads its configuration again."""
        lines = self.pooler.process.lines
        before = len(lines)
        os.kill(self.pid, signal.SIGHUP)
        assert wait_until(lambda: any('"reloaded"' in line for line in lines[before:]))

    def warm_up(self) -> None:
        """Let all be built that is built once; growth is counted from here."""
        for name in self.keys:
            self.ask(call(name))
            self.upstream.plays[name] = streams_well
            self.ask(call(name, stream=True))
            del self.upstream.plays[name]
            if not name.startswith("c"):
                with crowded(self) as crowd:
                    talker = crowd.add_socket(name, message(TURN))
                    assert wait_until(functools.partial(said, talker))
        self.settle()
        self.base = self.status("VmRSS")
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # VmHWM begins anew
        self.upstream.arrived.clear()

    def growth(self) -> int:
        """The peak since the warm-up, above what there was then."""
        return self.status("VmHWM") - self.base

    def kill(self) -> None:
        """Without another word."""
        self.upstream.close()
        self.pooler.process.process.kill()
        self.pooler.process.end()

    def close(self) -> None:
        self.upstream.close()
        self.pooler.stop()  # exit code 0, and no word of a bug


@contextlib.contextmanager
def opened_rig(
    folder: Path,
    accounts: Mapping[str, Json],
    pools: Mapping[str, Json],
    limits: Mapping[str, float] | None = None,
    *,
    may_list: bool = True,
) -> Iterator[Rig]:
    rig = Rig(folder, accounts, pools, limits, may_list=may_list)
    try:
        yield rig
    finally:
        rig.close()


def said(talker: Talker) -> bool:
    return b"response.completed" in talker.head


def scheduled(pid: int) -> tuple[float, float]:
    """Seconds that a process has run, and that it has waited for a processor."""
    ran, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(ran) / 1e9, int(waited) / 1e9


################################################################
# CLIENTS
################################################################

CLOSES: Final = [("Connection", "close")]


def call(
    name: str, body: bytes = b"", *, path: str = "/v1/responses", stream: bool = False
) -> bytes:
    """A whole request of that key; `body`: instead of a short one."""
    content = body or {"model": MODEL, "input": "hi", "stream": stream}
    return post(path, content, key=key_of(name), headers=CLOSES)


def read_all(client: socket.socket) -> bytes:
    """Until the end; a reset counts as one."""
    raw = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while received := client.recv(MIB):
            raw += received
    return bytes(raw)


class Talker:
    """A client that sends, and keeps the beginning of what comes back, in a thread of its own."""

    def __init__(self, client: socket.socket, raw: Sequence[bytes], *, reads: bool = True) -> None:
        self.client = client
        self.raw = raw
        self.reads = reads
        self.head = self.tail = b""
        self.byte_count = 0
        self.is_sent = self.is_over = False  # all has been sent; the pooler has ended it
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            for piece in self.raw:
                self.client.sendall(piece)
        self.raw = ()
        self.is_sent = True
        if not self.reads:
            return
        with contextlib.suppress(OSError):
            while received := self.client.recv(MIB):
                self.byte_count += len(received)
                self.tail = (self.tail + received)[-KIB:]
                if len(self.head) < KIB:
                    self.head += received[:KIB]
        self.is_over = True

    @property
    def code(self) -> int:
        """The status of the response; 0 if there is none."""
        match = re.match(rb"HTTP/1\.1 (\d\d\d)", self.head)
        return int(match[1]) if match else 0


class Crowd:
    """Clients on connections of their own, closed together."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.talkers: list[Talker] = []

    def add(self, *raw: bytes, reads: bool = True, receive_bytes: int = 0) -> Talker:
        talker = Talker(self.rig.connect(receive_bytes), raw, reads=reads)
        self.talkers.append(talker)
        return talker

    def add_socket(
        self, name: str, *frames: bytes, path: str = "/v1/responses", reads: bool = True
    ) -> Talker:
        """A WebSocket that sends these frames."""
        client = self.rig.connect(0 if reads else 4 * KIB)
        answer = b""
        with contextlib.suppress(OSError):
            client.sendall(upgrade(path, key=key_of(name)))
            while b"\r\n\r\n" not in answer and (received := client.recv(4096)):
                answer += received
        if not answer.startswith(b"HTTP/1.1 101 "):
            client.close()
            raise AssertionError(answer)
        talker = Talker(client, frames, reads=reads)
        self.talkers.append(talker)
        return talker

    def add_split(self, raws: Sequence[bytes], *, settles: bool = True) -> None:
        """Requests whose last bytes come all at the same time, when all else has been read."""
        begun = [self.add(raw[:-1]) for raw in raws]
        wait_until(lambda: all(talker.is_sent for talker in begun))
        if settles:
            self.rig.settle()
        for talker, raw in zip(begun, raws, strict=True):
            with contextlib.suppress(OSError):
                talker.client.sendall(raw[-1:])

    @property
    def over(self) -> list[Talker]:
        return [talker for talker in self.talkers if talker.is_over]

    @property
    def open_count(self) -> int:
        return len(self.talkers) - len(self.over)

    def codes(self) -> Counter[int]:
        """The statuses of those that are over."""
        return Counter(talker.code for talker in self.over)

    def close(self) -> None:
        for talker in self.talkers:
            with contextlib.suppress(OSError):
                talker.client.shutdown(socket.SHUT_RDWR)
            talker.client.close()
        for talker in self.talkers:
            talker.thread.join(SECONDS_MAX)


@contextlib.contextmanager
def crowded(rig: Rig) -> Iterator[Crowd]:
    crowd = Crowd(rig)
    try:
        yield crowd
    finally:
        crowd.close()


################################################################
# HOSTILE TEXT
################################################################

EMOJI: Final = "\N{GRINNING FACE}".encode()


@functools.lru_cache(maxsize=4)
def wide(size: int) -> bytes:
    """A text of that many bytes that takes four times as many in memory: one character is wide."""
    return EMOJI + b"a" * (size - len(EMOJI))


def speckled(size: int) -> bytes:
    """The same if it is decoded in pieces: a wide character in each KiB."""
    return (EMOJI + b"a" * (KIB - len(EMOJI))) * (size // KIB)


def filled(before: bytes, unit: bytes, after: bytes, size: int) -> bytes:
    """`unit` again and again, as often as there is room for it."""
    return before + unit * ((size - len(before) - len(after)) // len(unit)) + after


@functools.lru_cache(maxsize=32)
def message(body: bytes, fragments: int = 1, *, is_whole: bool = True) -> bytes:
    """A client's message, in that many fragments; if it is unfinished, the last has no FIN."""
    step = -(-len(body) // fragments)
    parts = [body[at : at + step] for at in range(0, len(body), step)]
    last = len(parts) - 1
    return b"".join(
        frame(0 if at else TEXT, part, fin=is_whole and at == last) for at, part in enumerate(parts)
    )


@functools.lru_cache(maxsize=32)
def server_message(body: bytes, *, is_whole: bool = True) -> bytes:
    """An upstream's."""
    return frame(TEXT, body, fin=is_whole, mask=b"")


################################################################
# THE GOOD CLIENT
################################################################

STALL_SECONDS_MAX: Final = 12.0  # nobody waits any longer
HEALTH: Final = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Gap(NamedTuple):
    """The longest wait for a response; `net`: without what was spent in waiting for a processor."""

    net: float
    gross: float
    answers: int


class Probe:
    """A good client, in a process of its own, that asks again and again."""

    def __init__(self, rig: Rig) -> None:
        host, port = rig.address
        command = [sys.executable, "-m", "tests.support.hostile_peers", host, str(port)]
        self.process = subprocess.Popen(
            [*command, str(rig.pid)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=clean_env(), cwd=ROOT, text=True,
        )  # fmt: skip
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def start(self) -> None:
        self.tell()
        assert self.line() == "started"

    def stop(self) -> Gap:
        self.tell()
        return Gap(*json.loads(self.line()))

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.wait(SECONDS_MAX)
        self.process.stdout.close()


def probe(client: socket.socket, pid: int) -> Gap:
    """Ask until there is a line on stdin."""
    net = gross = 0.0
    count = 0
    while True:
        count += 1
        waited, began_at = delays(pid), time.monotonic()
        client.sendall(HEALTH)
        try:
            answer = client.recv(4096)
        except TimeoutError:
            return Gap(math.inf, math.inf, count)
        took = time.monotonic() - began_at
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        gross = max(gross, took)
        net = max(net, took - (delays(pid) - waited))
        if select.select([sys.stdin], [], [], TICK_SECONDS / 5)[0]:
            return Gap(net, gross, count)


def delays(pid: int) -> float:
    """How long the pooler and this process have waited for a processor so far."""
    return scheduled(pid)[1] + float(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9


def main(host: str, port: str, pid: str) -> None:
    with socket.create_connection((host, int(port)), STALL_SECONDS_MAX) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while sys.stdin.readline():
            sys.stdout.write("started\n")
            sys.stdout.flush()
            result = probe(client, int(pid))
            sys.stdin.readline()
            sys.stdout.write(json.dumps(result) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
