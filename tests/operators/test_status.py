"""Proves that `pooler status` shows a running server to an operator, and reports what is wrong.

Watched, it shows again what a restarted server says, and fits the terminal.

Method: the real program, as a process, against a real server on loopback, or against a server that
notes what it is asked; its terminal is a pseudo-terminal.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.server
import json
import os
import pty
import queue
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from tests.support.paths import ROOT
from tests.support.processes import Pooler, Running, clean_env

pytestmark: Final = pytest.mark.slow

TOKEN: Final = "cpo-operator-token-0123456789"
KEY: Final = "cp-key-of-the-laptop-0123456789"
SECONDS_MAX: Final = 20


def described(listen: str, token: str = TOKEN) -> dict[str, object]:
    """A configuration that needs no upstream."""
    return {
        "listen": listen,
        "accounts": {"platform": {"type": "openai", "api_key": "none", "models": ["m1"]}},
        "pools": {"home": {"accounts": ["platform"], "keys": {"laptop": KEY}}},
        "operators": {"me": token},
    }


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = Pooler(described("127.0.0.1:0"), tmp_path_factory.mktemp("status"))
    yield server.origin
    server.stop()
    assert TOKEN not in server.process.output


def status(*arguments: str, token: str | None = TOKEN, **env: str) -> tuple[int, str, str]:
    command = [sys.executable, str(ROOT / "pooler.py"), "status", *arguments]
    more = {} if token is None else {"CODEX_POOLER_OPERATOR_TOKEN": token}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=clean_env(COLUMNS="100", **more, **env),
        timeout=SECONDS_MAX,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_table_is_printed_without_colours_into_a_pipe(origin: str) -> None:
    code, shown, told = status("--url", origin)
    assert (code, told) == (0, "")
    assert re.search(r"platform\b.*ready", shown)
    assert "home" in shown
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_json_is_that_of_the_page(origin: str) -> None:
    code, shown, _ = status("--url", origin, "--json")
    assert code == 0
    assert [account["name"] for account in json.loads(shown)["accounts"]] == ["platform"]


def test_watching_prints_again_until_it_is_stopped(origin: str) -> None:
    command = [sys.executable, str(ROOT / "pooler.py"), "status", "--watch", "--url", origin]
    watching = Running(*command, env=clean_env(CODEX_POOLER_OPERATOR_TOKEN=TOKEN))
    for _ in range(2):
        watching.wait_line("(codex-pooler)")
    watching.process.send_signal(signal.SIGINT)
    assert watching.process.wait(SECONDS_MAX) == 0
    assert "Traceback" not in watching.output


WRONG: Final = {
    "no token": (["--url", "ORIGIN"], None, "set CODEX_POOLER_OPERATOR_TOKEN"),
    "a wrong token": (
        ["--url", "ORIGIN"],
        "cpo-wrong-0123456789",
        "the token in CODEX_POOLER_OPERATOR_TOKEN was rejected",
    ),
    "a pool key": (
        ["--url", "ORIGIN"],
        KEY,
        "the token in CODEX_POOLER_OPERATOR_TOKEN was rejected",
    ),
    "nobody there": (["--url", "http://127.0.0.1:9"], TOKEN, "no server responds there"),
    "no address": (["--url", "pooler"], TOKEN, "--url must look like https://host\n"),
    "plain HTTP": (["--url", "http://pooler.example.com"], TOKEN, "in the clear"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_reported_in_one_line(case: str, origin: str) -> None:
    arguments, token, words = WRONG[case]
    replaced = [origin if word == "ORIGIN" else word for word in arguments]
    code, shown, told = status(*replaced, token=token)
    assert (code, shown) == (1, "")
    assert told.startswith("pooler: ")
    assert words in told
    assert len(told.splitlines()) == 1
    assert TOKEN not in told


def test_the_former_name_of_the_variable_is_still_read(origin: str) -> None:
    code, shown, _ = status("--url", origin, token=None, POOLER_OPERATOR_TOKEN=TOKEN)
    assert (code, "platform" in shown) == (0, True)
    code, _, told = status("--url", origin, token="cpo-wrong-0123", POOLER_OPERATOR_TOKEN=TOKEN)
    assert code == 1, told  # the present name counts first


def watch(origin: str) -> Running:
    command = [sys.executable, str(ROOT / "pooler.py"), "status", "--watch", "--url", origin]
    return Running(*command, env=clean_env(CODEX_POOLER_OPERATOR_TOKEN=TOKEN))


def test_watching_outlives_a_restart_of_the_server(tmp_path: Path) -> None:
    server = Pooler(described("127.0.0.1:0"), tmp_path)
    watching = watch(server.origin)
    watching.wait_line("(codex-pooler)")

    server.stop()
    line = watching.wait_line("(pooler: .*no server responds.*)")
    assert re.search(r" since \d\d:\d\d:\d\d; trying again every 2 s$", line)
    server = Pooler(described(urlsplit(server.origin).netloc), tmp_path)
    shown = len(watching.lines)
    while "codex-pooler" not in "".join(watching.lines[shown:]):
        watching.wait_line("(codex-pooler)")
    assert watching.output.count("no server responds") == 1  # once an outage
    server.stop()
    assert watching.wait_line("(pooler: .*no server responds.*)")
    watching.process.send_signal(signal.SIGINT)
    assert watching.process.wait(SECONDS_MAX) == 0
    assert "Traceback" not in watching.output


def test_watching_ends_when_the_token_is_rejected(tmp_path: Path) -> None:
    server = Pooler(described("127.0.0.1:0"), tmp_path)
    watching = watch(server.origin)
    watching.wait_line("(codex-pooler)")
    server.stop()
    other = described(urlsplit(server.origin).netloc, "cpo-another-token-0123456789")
    server = Pooler(other, tmp_path)
    watching.wait_line("(was rejected; it is that)")
    assert watching.process.wait(SECONDS_MAX) == 1
    server.stop()


@contextlib.contextmanager
def noting_server() -> Iterator[tuple[str, queue.Queue[str], threading.Event]]:
    """A server that answers with one line; its origin, the targets asked for, and its end."""
    targets: queue.Queue[str] = queue.Queue()
    is_down = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            targets.put(self.path)
            body = b"codex-pooler 9\nsecond line"
            self.send_response(503 if is_down.is_set() else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", targets, is_down
        server.shutdown()


def resize(terminal: int, columns: int, lines: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


def read_until(terminal: int, pattern: str) -> str:
    """What a terminal is sent, up to the pattern."""
    shown = ""
    ends_at = time.monotonic() + SECONDS_MAX
    while not re.search(pattern, shown) and time.monotonic() < ends_at:
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 65536).decode()
    assert re.search(pattern, shown), shown
    return shown


def test_the_server_is_told_the_size_of_the_terminal_and_its_changes() -> None:
    with noting_server() as (origin, targets, is_down):
        terminal, inside = pty.openpty()
        resize(terminal, 90, 30)
        command = ["status", "--watch", "--failed", "--url", origin]
        watching = subprocess.Popen(
            [sys.executable, str(ROOT / "pooler.py"), *command],
            stdin=inside, stdout=inside, stderr=inside,
            env=clean_env(CODEX_POOLER_OPERATOR_TOKEN=TOKEN, TERM="xterm"),
        )  # fmt: skip
        try:
            asked = targets.get(timeout=SECONDS_MAX)
            # The last line is the cursor's.
            assert asked == "/admin?colour=1&columns=90&rows=29&failed=1"
            shown = read_until(terminal, "second line")
            assert "\x1b[H\x1b[2Jcodex-pooler 9" in shown

            began_at = time.monotonic()
            resize(terminal, 60, 20)
            watching.send_signal(signal.SIGWINCH)  # as the kernel does for a controlling terminal
            while "columns=60&rows=19" not in targets.get(timeout=SECONDS_MAX):
                assert time.monotonic() - began_at < 5

            is_down.set()
            shown = read_until(terminal, "it returned 503.*\x1b8")
            outage = re.findall("\x1b7\x1b\\[H\x1b\\[2K(.*?)\x1b8", shown)[0]
            assert re.search(r"it returned 503 since [0-9:]{8}; ", outage)
            assert len(outage) <= 60

            is_down.clear()
            read_until(terminal, "codex-pooler 9")
            watching.send_signal(signal.SIGINT)
            assert watching.wait(SECONDS_MAX) == 0
        finally:
            watching.kill()
            watching.wait()
            os.close(terminal)
            os.close(inside)
