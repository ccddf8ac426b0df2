"""Proves that `pooler serve` speaks to a terminal in words, and elsewhere in JSON.

Method: the real program, as a process whose controlling terminal is a pseudo-terminal, and requests
over real sockets.  Its one upstream is a port at which nobody listens.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

import pytest

from tests.support.paths import POOLER
from tests.support.processes import clean_env

pytestmark: Final = pytest.mark.slow

SECONDS_MAX: Final = 20
KEY: Final = "cp-key-of-the-laptop-0123456789"
TOKEN: Final = "cpo-operator-token-0123456789"
PROMPT: Final = "Say something about marmalade."
CTRL_C, CTRL_Q, CTRL_S = b"\x03", b"\x11", b"\x13"
# A session leader takes its standard input as its terminal, and becomes the pooler.
AT_TERMINAL: Final = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def described() -> dict[str, object]:
    accounts = {
        "nobody": {
            "type": "openai", "api_key": "none", "base_url": "http://127.0.0.1:9/v1",
            "models": ["m1"],
        },
        "personal": {"type": "codex", "auth_file": "accounts/personal.json"},
    }  # fmt: skip
    pool = {"accounts": [*accounts], "models": ["m1"], "keys": {"laptop": KEY}}
    return {
        "listen": "127.0.0.1:0",
        "accounts": accounts,
        "pools": {"home": pool},
        "operators": {"me": TOKEN},
    }


class Terminal:
    """A pooler at a terminal; `shown` is what it has written, without carriage returns."""

    def __init__(self, folder: Path, *arguments: str, columns: int = 100, **env: str) -> None:
        self.path = folder / "pools.json"
        self.path.touch(0o600)
        self.path.write_text(json.dumps(described()), encoding="utf-8")
        self.raw = b""
        self.may_read = threading.Event()
        self.may_read.set()
        self.is_closed = False

        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", AT_TERMINAL, POOLER, "serve", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=clean_env(**{"TERM": "xterm", "PYTHONUTF8": "1", **env}),
            cwd=folder,
            start_new_session=True,
        )
        os.close(slave)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.may_read.set()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(SECONDS_MAX)
        self.hang_up()

    def hang_up(self) -> None:
        """Close the terminal's window."""
        if not self.is_closed:
            self.is_closed = True
            self.reader.join(SECONDS_MAX)
            os.close(self.master)

    def read(self) -> None:
        """Read until either end is closed; a blocking read would keep the terminal open."""
        with contextlib.suppress(OSError):
            while not self.is_closed:
                self.may_read.wait()
                if select.select([self.master], [], [], 0.02)[0]:
                    self.raw += os.read(self.master, 4096)

    def press(self, key: bytes) -> None:
        os.write(self.master, key)

    @property
    def shown(self) -> str:
        return self.raw.decode().replace("\r", "")

    def wait_text(self, pattern: str) -> re.Match[str]:
        until, turn = time.monotonic() + SECONDS_MAX, threading.Event()
        while (match := re.search(pattern, self.shown)) is None:
            assert time.monotonic() < until, self.shown
            turn.wait(0.01)
        return match

    def wait_port(self) -> int:
        return int(self.wait_text(r"listening\D+127\.0\.0\.1:([0-9]+)")[1])

    def wait_end(self) -> int:
        code = self.process.wait(SECONDS_MAX)
        self.reader.join(SECONDS_MAX)
        return code


def get(port: int, path: str, key: str = KEY) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS_MAX)
    with contextlib.closing(connection):
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}"})
        return connection.getresponse().status


def post(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS_MAX)
    with contextlib.closing(connection):
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        body = json.dumps({"model": "m1", "input": PROMPT, "stream": True})
        connection.request("POST", "/v1/responses", body, headers)
        return connection.getresponse().status


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    with Terminal(tmp_path) as at_terminal:
        yield at_terminal


def test_a_server_says_in_words_what_it_does(terminal: Terminal) -> None:
    port = terminal.wait_port()
    origin = f"http://127.0.0.1:{port}"
    plain = re.sub("\x1b\\[[0-9]*m", "", terminal.shown)
    assert f"codex-pooler 0.1.0 serves {origin}/v1\n" in plain
    assert "  pool home: nobody, personal; models: 1; keys: 1\n" in plain
    assert "  account nobody: ready\n" in plain
    assert "  account personal: login needed\n" in plain
    assert f"  operators: {origin}/admin " in plain
    assert f"  Ctrl-C stops it; kill -HUP {terminal.process.pid} reads pools.json again\n" in plain
    assert len(re.findall("personal.json does not exist", plain)) == 1

    assert get(port, "/v1/models") == 200
    terminal.wait_text("\x1b\\[32m200\x1b\\[0m  home/laptop  GET models  [0-9]+ ms\n")
    assert get(port, "/v1/models", "cp-key-of-nobody-0123456789") == 401
    terminal.wait_text("\x1b\\[33m401\x1b\\[0m  GET models  [0-9]+ ms  .*invalid_api_key")
    assert post(port) == 502
    terminal.wait_text("\x1b\\[31m502\x1b\\[0m  home/laptop  m1  nobody connect: refused  ")
    terminal.wait_text("account nobody: unreachable .*Start the server at 127.0.0.1:9")

    terminal.press(CTRL_C)
    assert terminal.wait_end() == 0
    assert re.search("stopping; requests in progress: 0.*\n.*  stopped\n$", terminal.shown)
    assert "{" not in terminal.shown
    for private in (KEY, TOKEN, "marmalade", "cp-key-of-nobody"):
        assert private not in terminal.shown


def test_a_reload_is_reported_in_words(terminal: Terminal) -> None:
    terminal.wait_port()
    terminal.process.send_signal(1)
    terminal.wait_text("  reloaded; changed: nothing\n")
    terminal.path.write_text("{", encoding="utf-8")
    terminal.process.send_signal(1)
    terminal.wait_text("error:.* reload refused, the configuration stays as it was: ")


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colours_can_be_refused(tmp_path: Path, env: dict[str, str]) -> None:
    with Terminal(tmp_path, columns=100, **env) as terminal:
        post(terminal.wait_port())
        terminal.wait_text("upstream_unreachable")
        assert "\x1b" not in terminal.shown


def test_a_terminal_can_have_json(tmp_path: Path) -> None:
    with Terminal(tmp_path, "--log", "json") as terminal:
        post(terminal.wait_port())
        terminal.wait_text('"event": "request"')
        terminal.press(CTRL_C)
        assert terminal.wait_end() == 0
        lines = terminal.shown.replace("^C", "").splitlines()
        events = [json.loads(line)["event"] for line in lines]
        assert {"listening", "request", "draining", "stopped"} <= {*events}


@pytest.mark.parametrize("columns", [60, 200])
def test_a_line_fits_the_terminal(tmp_path: Path, columns: int) -> None:
    with Terminal(tmp_path, columns=columns, NO_COLOR="1") as terminal:
        post(terminal.wait_port())
        line = terminal.wait_text("(.*)upstream_unreachable\n")[0]
        assert ("connect: refused" in line) is (columns == 200)


def test_a_pipe_gets_json_and_text_if_it_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "pools.json"
    path.touch(0o600)
    path.write_text(json.dumps(described()), encoding="utf-8")
    for arguments, is_json in (([], True), (["--log", "json"], True), (["--log", "text"], False)):
        process = subprocess.Popen(
            [sys.executable, POOLER, "serve", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=clean_env(PYTHONUTF8="1"),
            cwd=tmp_path,
        )
        with process:
            assert process.stderr is not None
            lines: list[str] = []
            while not lines or "listening" not in lines[-1]:
                lines.append(process.stderr.readline())
            process.terminate()
            lines += process.stderr.readlines()
        assert process.returncode == 0
        assert "\x1b" not in "".join(lines)
        if is_json:
            assert json.loads(lines[-1])["event"] == "stopped"
        else:
            assert lines[-1].endswith("  stopped\n")


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_stuck_terminal_stops_no_request(terminal: Terminal, *, is_stopped: bool) -> None:
    """Nobody reads it; or Ctrl-S has stopped it, until Ctrl-Q."""
    port = terminal.wait_port()
    if is_stopped:
        terminal.press(CTRL_S)
    else:
        terminal.may_read.clear()
    shown_count = len(terminal.raw)
    for _ in range(1500):
        assert get(port, "/healthz") == 200
    assert len(terminal.raw) <= shown_count + 4096  # it was stuck

    terminal.may_read.set()
    terminal.press(CTRL_Q)
    assert post(port) == 502
    terminal.wait_text("upstream_unreachable")


def test_a_stuck_terminal_delays_the_end_only_for_a_moment(terminal: Terminal) -> None:
    port = terminal.wait_port()
    terminal.press(CTRL_S)
    assert post(port) == 502
    terminal.process.terminate()
    assert terminal.process.wait(SECONDS_MAX) == 0


def test_a_closed_terminal_ends_the_server(terminal: Terminal) -> None:
    """Nobody would find it again, and the next one could not have its port."""
    terminal.wait_port()
    terminal.hang_up()
    assert terminal.process.wait(SECONDS_MAX) == 0
