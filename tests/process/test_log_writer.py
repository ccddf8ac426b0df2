"""Proves that the log blocks nothing and loses nothing silently, whatever standard error is.

Method: the writer itself on pipes and on a disk that is full for a while, through a replacement of
`os.write`; and the process with a standard error that is closed, full, or read by nobody.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

import pooler
from pooler import LOG_BATCH_LINES, LOG_SECONDS_MAX, LogWriter
from tests.support.memory_sockets import Json
from tests.support.paths import POOLER
from tests.support.server_process import ENV, HEALTH, KEY, SECONDS_MAX

LINES: Final = 3 * LOG_BATCH_LINES


class Disk:
    """What `os.write` is to the writer: a disk with room for so many bytes."""

    def __init__(self, room: int, error: int = errno.ENOSPC) -> None:
        self.room, self.error = room, error
        self.raw = b""
        self.refused = threading.Event()

    def write(self, _descriptor: int, raw: bytes) -> int:
        taken = raw[: self.room]
        if not taken:
            self.refused.set()
            raise OSError(self.error, "no room")
        self.raw += taken
        self.room -= len(taken)
        return len(taken)

    def told(self) -> list[Json]:
        return [json.loads(line) for line in self.raw.splitlines() if line.endswith(b"}")]


def wait_for(is_so: Callable[[], object]) -> None:
    """Until it is; the writer's thread reports nothing."""
    until = time.monotonic() + SECONDS_MAX
    turn = threading.Event()
    while not is_so():
        assert time.monotonic() < until
        turn.wait(0.001)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EPIPE, errno.EBADF])
def test_lines_lost_on_a_full_disk_are_reported_once_there_is_room(
    monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    disk = Disk(0, error)
    monkeypatch.setattr("pooler.os.write", disk.write)
    with LogWriter() as log:
        for number in range(LINES):
            log("info", "test", {"number": number})
        wait_for(lambda: not log.lines and log.dropped_count == LINES)
        disk.room = 10**9
        log("info", "test", {"number": LINES})
    told = disk.told()
    assert [(one["event"], one.get("number"), one.get("lines")) for one in told] == [
        ("test", LINES, None),
        ("log lines dropped", None, LINES),
    ]
    assert not log.thread.is_alive()


@pytest.mark.parametrize("room", [1, 50, 333, 5000])
def test_a_line_that_was_cut_harms_no_other(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    disk = Disk(room)
    monkeypatch.setattr("pooler.os.write", disk.write)
    with LogWriter() as log:
        for number in range(LINES):
            log("info", "test", {"number": number})
        wait_for(lambda: disk.refused.is_set() and not log.lines and log.is_failing)
        disk.room = 10**9
        for number in range(LINES, LINES + 2):
            log("info", "test", {"number": number})
    told = disk.told()
    numbers = [one["number"] for one in told if one["event"] == "test"]
    assert numbers[-2:] == [LINES, LINES + 1]
    assert sum(one.get("lines", 0) for one in told) == LINES + 2 - len(numbers)
    torn = [line for line in disk.raw.splitlines() if not line.endswith(b"}")]
    assert len(torn) <= 1


def test_a_disk_that_stays_full_ends_no_later(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(100)
    monkeypatch.setattr("pooler.os.write", disk.write)
    with LogWriter() as log:
        for number in range(LINES):
            log("info", "test", {"number": number})
        began_at = time.monotonic()
    assert time.monotonic() - began_at < LOG_SECONDS_MAX
    assert not log.thread.is_alive()
    assert log.dropped_count >= LINES - 1


def slow_reader(reading: int, pause: float, found: list[bytes]) -> None:
    turn = threading.Event()
    while received := os.read(reading, 4096):
        found.append(received)
        turn.wait(pause)


@pytest.mark.parametrize("is_blocking", [True, False])
def test_a_stderr_that_does_not_wait_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, *, is_blocking: bool
) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, is_blocking)
    monkeypatch.setattr("pooler.STDERR", writing)
    found: list[bytes] = []
    reader = threading.Thread(target=slow_reader, args=(reading, 0.0, found))
    with LogWriter() as log:
        for number in range(LINES):
            log("info", "test", {"number": number, "text": "x" * 1000})
        reader.start()
    os.close(writing)
    reader.join()
    os.close(reading)
    told = [json.loads(line) for line in b"".join(found).splitlines()]
    assert [one["number"] for one in told] == [*range(LINES)]


@pytest.mark.slow
def test_who_reads_slowly_gets_every_line_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than the wait without progress."""
    reading, writing = os.pipe()
    monkeypatch.setattr("pooler.STDERR", writing)
    monkeypatch.setattr("pooler.LOG_SECONDS_MAX", 0.2)
    found: list[bytes] = []
    reader = threading.Thread(target=slow_reader, args=(reading, 0.01, found))
    reader.start()
    with LogWriter() as log:
        for number in range(LINES):
            log("info", "test", {"number": number, "text": "x" * 2000})
        began_at = time.monotonic()
    assert time.monotonic() - began_at > 0.2
    os.close(writing)
    reader.join()
    os.close(reading)
    told = [json.loads(line) for line in b"".join(found).splitlines()]
    assert [one["number"] for one in told] == [*range(LINES)]


################################################################
# THE PROCESS
################################################################


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def pipe_without_reader() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def pipe_that_nobody_reads() -> int:
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    os.set_blocking(writing, False)
    while True:
        try:
            os.write(writing, b"x" * 4096)
        except BlockingIOError:
            break
    os.set_blocking(writing, True)
    return writing


STDERRS = [pipe_without_reader, pipe_that_nobody_reads]
STDERRS += [full_disk] if Path("/dev/full").exists() else []  # Linux has it


@pytest.mark.slow
@pytest.mark.parametrize("open_stderr", STDERRS)
def test_a_stderr_that_takes_nothing_stops_no_server(
    tmp_path: Path, open_stderr: Callable[[], int]
) -> None:
    port = free_port()
    account = {"type": "openai", "api_key": "sk-a", "base_url": "http://127.0.0.1:9/v1"}
    pool = {"accounts": ["a"], "models": ["m1"], "keys": {"laptop": KEY}}
    described = {"accounts": {"a": account}, "pools": {"home": pool}}
    path = tmp_path / "pools.json"
    path.write_text(json.dumps({"listen": f"127.0.0.1:{port}"} | described))
    descriptor = open_stderr()
    command = [sys.executable, POOLER, "serve", "--config", str(path)]
    with subprocess.Popen(command, env=ENV, stderr=descriptor) as process:
        os.close(descriptor)

        def answers() -> bool:
            try:
                with socket.create_connection(("127.0.0.1", port), SECONDS_MAX) as client:
                    client.sendall(HEALTH)
                    return client.recv(4096).startswith(b"HTTP/1.1 200 ")
            except ConnectionRefusedError:
                return False

        wait_for(answers)
        for _ in range(300):
            assert answers()
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS_MAX) == 0


def test_a_write_that_takes_nothing_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [3, 0, 4]
    log = LogWriter()
    monkeypatch.setattr(LogWriter, "write_some", lambda *_: counts.pop(0))
    assert log.write(b"abcdef\n") == 0
    assert counts == []
    assert not log.is_torn


def test_lines_that_come_together_are_written_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the end waits for no more of them."""
    written: list[bytes] = []

    def write_some(_: LogWriter, raw: bytes) -> int:
        written.append(raw)
        return len(raw)

    monkeypatch.setattr(pooler, "LOG_GATHER_SECONDS", 30.0)
    monkeypatch.setattr(LogWriter, "write_some", write_some)
    began = time.monotonic()
    with LogWriter() as log:
        for number in range(50):
            log("info", "line", {"number": number})
    assert time.monotonic() - began < 10
    assert len(written) == 1
    numbers = [json.loads(line)["number"] for line in written[0].splitlines()]
    assert numbers == list(range(50))


def test_a_full_batch_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    written = threading.Event()

    def write_some(_: LogWriter, raw: bytes) -> int:
        written.set()
        return len(raw)

    monkeypatch.setattr(pooler, "LOG_GATHER_SECONDS", 30.0)
    monkeypatch.setattr(LogWriter, "write_some", write_some)
    with LogWriter() as log:
        with log.changed:  # the thread sees them all at once
            log.lines += [pooler.format_log_line("info", "line", {})] * pooler.LOG_BATCH_LINES
            log.changed.notify()
        assert written.wait(10)


def test_a_log_without_a_stderr_is_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """`2>&-`: Python has none where descriptor 2 was closed at the start."""
    monkeypatch.setattr(sys, "stderr", None)
    pooler.print_log("info", "it happened", {})
