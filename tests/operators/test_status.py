"""Proves that `pooler status` shows a running server to who has the token, and says what is wrong.

Method: the real program, as a process, against a real server on loopback.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Final

import pytest

from tests.support.paths import ROOT
from tests.support.processes import Pooler, Running, clean_env

pytestmark: Final = pytest.mark.slow

TOKEN: Final = "cpo-operator-token-0123456789"
KEY: Final = "cp-key-of-the-laptop-0123456789"
SECONDS_MAX: Final = 20


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("status")
    described = {
        "listen": "127.0.0.1:0",
        "accounts": {"platform": {"type": "openai", "api_key": "none", "models": ["m1"]}},
        "pools": {"home": {"accounts": ["platform"], "keys": {"laptop": KEY}}},
        "operators": {"me": TOKEN},
    }
    server = Pooler(described, folder)
    yield server.origin
    server.stop()
    assert TOKEN not in server.process.output


def status(*arguments: str, token: str | None = TOKEN, **env: str) -> tuple[int, str, str]:
    command = [sys.executable, str(ROOT / "pooler.py"), "status", *arguments]
    more = {} if token is None else {"POOLER_OPERATOR_TOKEN": token}
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
    watching = Running(*command, env=clean_env(POOLER_OPERATOR_TOKEN=TOKEN))
    for _ in range(2):
        watching.wait_line("(codex-pooler)")
    watching.process.send_signal(signal.SIGINT)
    assert watching.process.wait(SECONDS_MAX) == 0
    assert "Traceback" not in watching.output


def test_another_version_is_not_misread() -> None:
    shown = b'{"version": "9.9.9", "accounts": 7}'
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            caller, _ = listener.accept()
            with caller:
                caller.recv(65536)
                caller.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(shown) + shown
                )

        thread = threading.Thread(target=answer)
        thread.start()
        code, _, told = status("--url", f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join(SECONDS_MAX)
    assert code == 1
    assert "it is not codex-pooler 0.1.0" in told


WRONG: Final = {
    "no token": (["--url", "ORIGIN"], None, "set POOLER_OPERATOR_TOKEN"),
    "a wrong token": (["--url", "ORIGIN"], "cpo-wrong-0123456789", "does not take this token"),
    "a pool key": (["--url", "ORIGIN"], KEY, "does not take this token"),
    "nobody there": (["--url", "http://127.0.0.1:9"], TOKEN, "no pooler answers there"),
    "no address": (["--url", "pooler"], TOKEN, "--url must look like https://host\n"),
    "plain HTTP": (["--url", "http://pooler.example.com"], TOKEN, "in the clear"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_a_line(case: str, origin: str) -> None:
    arguments, token, words = WRONG[case]
    replaced = [origin if word == "ORIGIN" else word for word in arguments]
    code, shown, told = status(*replaced, token=token)
    assert (code, shown) == (1, "")
    assert told.startswith("pooler: ")
    assert words in told
    assert len(told.splitlines()) == 1
    assert TOKEN not in told
