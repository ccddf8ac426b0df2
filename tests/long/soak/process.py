"""The server of a soak: the real process, whose log goes to a file.  (No claims.)"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from tests.long.soak.upstreams import pause
from tests.support.limits import LAUNCHER, constants
from tests.support.processes import clean_env

START_SECONDS_MAX: Final = 30.0


@dataclass
class Served:
    """`pooler serve`; it is killed by whoever has started it."""

    process: trio.Process
    log: Path
    address: tuple[str, int] = ("127.0.0.1", 0)

    async def wait_told(self, event: str, count: int = 1) -> str:
        """The last line of the log with this event, once there are so many."""
        with trio.fail_after(START_SECONDS_MAX):
            while True:
                whole = self.log.read_text(errors="replace").rpartition("\n")[0]
                lines = [line for line in whole.split("\n") if told_in(line) == event]
                if len(lines) >= count:
                    return lines[-1]
                if self.process.poll() is not None:
                    raise RuntimeError(f"the process has ended: {whole[-2000:]}")
                await pause(0.05)  # a file cannot be waited for


def told_in(line: str) -> str:
    """The event of a line of the log; "" if it is none."""
    try:
        return str(json.loads(line)["event"])
    except ValueError:
        return ""


async def start_server(
    folder: Path, log: Path, limits: Mapping[str, float], variables: Mapping[str, str]
) -> Served:
    """It serves the pools.json of this folder, and listens."""
    with log.open("wb") as output:
        process = await trio.lowlevel.open_process(
            [sys.executable, LAUNCHER, json.dumps(constants(limits)), "serve"],
            cwd=folder,
            env=clean_env(**variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    served = Served(process, log)
    line = await served.wait_told("listening")
    host, _, port = json.loads(line)["address"].rpartition(":")
    served.address = (host, int(port))
    return served
