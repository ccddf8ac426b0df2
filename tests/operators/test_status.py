"""Proves that `pooler status` shows a running server to an operator, and reports what is wrong.

Method: the real program, as a process, against a real server on loopback.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
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


WRONG: Final = {
    "no token": (["--url", "ORIGIN"], None, "set POOLER_OPERATOR_TOKEN"),
    "a wrong token": (["--url", "ORIGIN"], "cpo-wrong-0123456789", "the token was rejected"),
    "a pool key": (["--url", "ORIGIN"], KEY, "the token was rejected"),
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
