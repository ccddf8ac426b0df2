"""Processes of a test: any program whose output is read as it comes, and the real server.

`Running` starts a program.  `Pooler` is `python pooler.py serve` with a configuration: it waits
until the server listens, and `stop` asserts that it ends with exit code 0 and that its log holds no
secret, prompt or response text.  (No claims.)
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import urlsplit

from tests.support.limits import LAUNCHER, constants, settable
from tests.support.memory_sockets import put_in_order
from tests.support.paths import ROOT

SECONDS_MAX: Final = 30.0
POOL_KEY: Final = "cp-key-of-the-laptop-0123456789"
OTHER_POOL_KEY: Final = "cp-key-of-nobody-0123456789"
OPERATOR_TOKEN: Final = "cp-operator-of-me-0123456789"
API_KEYS: Final = {"first": "sk-first-0123456789abcdef", "second": "sk-second-0123456789abcdef"}
# Every prompt has the one word and every response the other: neither may be in the log.
PROMPT: Final = "Say something about marmalade."
ANSWER: Final = "It is best made of quinces, and slowly, on a rainy afternoon."
NEVER_LOGGED: Final = (
    POOL_KEY, OTHER_POOL_KEY, OPERATOR_TOKEN, *API_KEYS.values(), "marmalade", "quinces",
)  # fmt: skip

Json = dict[str, Any]


def clean_env(**more: str) -> dict[str, str]:
    """The environment without proxies, keys and settings of whoever runs the tests."""
    kept = re.compile("PATH|LANG|TMPDIR|VIRTUAL_ENV|COVERAGE_.*|PYTHON(OPTIMIZE|WARNINGS)")
    return {name: value for name, value in os.environ.items() if kept.fullmatch(name)} | more


class Running:
    """A process, whose output is read as it comes; `output` is all of it so far."""

    def __init__(self, *command: str, env: Mapping[str, str], cwd: Path | None = None) -> None:
        self.lines: list[str] = []
        self.unread: queue.Queue[str | None] = queue.Queue()  # None: the output has ended
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=dict(env),
            cwd=cwd,
        )
        assert self.process.stdout is not None
        self.reader = threading.Thread(target=self.read, args=(self.process.stdout,), daemon=True)
        self.reader.start()

    def read(self, pipe: IO[str]) -> None:
        with pipe:
            for line in pipe:
                self.lines.append(line)
                self.unread.put(line)
        self.unread.put(None)

    def wait_line(self, pattern: str) -> str:
        """The first group of the pattern, in the first line that has it."""
        with contextlib.suppress(queue.Empty):
            while line := self.unread.get(timeout=SECONDS_MAX):
                if match := re.search(pattern, line):
                    return match[1]
        self.end()
        raise AssertionError(f"the process did not come up: {self.output}")

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def end(self) -> int:
        """The exit code after SIGTERM; a process that does not go is killed, and counts as bad."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return -signal.SIGKILL
        finally:
            self.reader.join(SECONDS_MAX)


class Pooler:
    """`python pooler.py serve`, and the address that it listens on."""

    def __init__(self, config: Json, folder: Path, **env: str) -> None:
        path = folder / "pools.json"
        limits = config.get("limits", {})
        config = {**config, "limits": settable(limits)}
        path.write_text(json.dumps(put_in_order(config)))
        command = [sys.executable, str(ROOT / "pooler.py")]
        if changed := constants(limits):
            command = [sys.executable, LAUNCHER, json.dumps(changed)]
        command += ["serve", "--config", str(path)]
        self.process = Running(*command, env=clean_env(PYTHONDEVMODE="1", **env), cwd=folder)
        address = self.process.wait_line(r'"event": ?"listening".*"address": ?"([^"]+)"')
        self.origin = f"http://{address}"
        self.base_url = f"{self.origin}/v1"
        assert self.get("/readyz")[0] == 200

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.origin).netloc, timeout=SECONDS_MAX)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def stop_and_read(self) -> list[Json]:
        """The log's lines about requests for work: all of them, so it stops first."""
        self.stop()
        lines: list[Json] = [json.loads(line) for line in self.process.lines]
        return [line for line in lines if line["event"] == "request" and line["method"] == "POST"]

    def stop(self) -> None:
        """Stop it: it must end well, and its log must be JSON lines without a secret or a text."""
        code = self.process.end()
        log = self.process.output
        assert code == 0, log
        events = [json.loads(line)["event"] for line in log.splitlines()]
        assert events[-1] == "stopped"
        assert "bug" not in events, log
        assert "Traceback" not in log
        assert not [word for word in NEVER_LOGGED if word in log]
