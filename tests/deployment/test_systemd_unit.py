"""Proves that README's systemd unit confines the pooler, and lets it do all that it must.

Method: systemd-analyze judges the unit; a real systemd, in a machine of its own, starts, reloads
and stops it, with a pooler in it that refreshes a login and keeps its state.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any, Final

import trio

import pooler
from tests.deployment.fronts import OPERATOR
from tests.deployment.image import Image
from tests.deployment.machine import STATE, booted, lay_out, own_state
from tests.deployment.snippets import free_port, program, snippet, with_places
from tests.support.codex_backend import CodexBackend, make_auth_file
from tests.support.server_process import KEY, MODEL, SECONDS_MAX, read_all, status_of

EXPOSURE_MAX: Final = 2.0


def analyze(folder: Path, *words: str, places: dict[str, str]) -> subprocess.CompletedProcess[str]:
    unit = folder / "codex-pooler.service"
    unit.write_text(with_places(snippet("ini"), places))
    line = [program("systemd-analyze"), *words, str(unit)]
    return subprocess.run(line, check=False, capture_output=True, text=True)


def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    """But that the program is not installed here, so its place is taken by another."""
    places = {"/opt/codex-pooler/bin/pooler": "/bin/true"}
    verified = analyze(tmp_path, "verify", "--man=no", places=places)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


def test_little_is_exposed(tmp_path: Path) -> None:
    judged = analyze(tmp_path, "security", "--offline=yes", "--no-pager", places={})
    (exposure,) = re.findall(r"Overall exposure level for .*: ([\d.]+)", judged.stdout)
    assert float(exposure) < EXPOSURE_MAX


def test_there_is_time_to_drain() -> None:
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", snippet("ini"), re.MULTILINE)
    assert int(seconds) > pooler.Limits().drain_seconds_max + 7


class Service:
    """The pooler in the machine, as a client and an operator reach it."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def ask(self, path: str, key: str, body: object) -> bytes:
        raw = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
            f"Accept: application/json, text/event-stream\r\nContent-Length: {len(raw)}\r\n\r\n"
        )
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            await stream.send_all(head.encode() + raw)
            return await read_all(stream)

    async def turn(self, key: str = KEY) -> int:
        return status_of(await self.ask("/v1/responses", key, {"model": MODEL, "input": "Hi"}))

    async def wait_key(self, key: str) -> None:
        """Until a key is good: systemd has done a reload when it has sent the signal for it."""
        with trio.fail_after(SECONDS_MAX):
            while await self.turn(key) == 401:
                pass


def describe(port: int, origin: str) -> dict[str, Any]:
    account = {"type": "codex", "auth_file": "accounts/one.json", "models": [MODEL]}
    return {
        "listen": [f"127.0.0.1:{port}", "unix:/run/codex-pooler/pooler.sock"],
        "state": "state.json",
        "accounts": {"one": account | {"base_url": f"{origin}/backend-api/codex"}},
        "pools": {"home": {"accounts": ["one"], "keys": {"laptop": KEY}}},
        "operators": {"me": OPERATOR},
    }


async def test_the_service_does_all_that_it_must(image: Image, tmp_path: Path) -> None:
    root = tmp_path / "machine"
    async with trio.open_nursery() as nursery:
        backend = CodexBackend()
        origin = await nursery.start(backend.listen)
        lay_out(root, {"CODEX_REFRESH_TOKEN_URL_OVERRIDE": f"{origin}/oauth/token"})
        login, pools = root / STATE / "accounts/one.json", root / STATE / "pools.json"
        backend.admit(make_auth_file(login, "one", expires_at=time.time() - 60))
        config = describe(free_port(), origin)
        pools.write_text(json.dumps(config))
        own_state(root)
        before = login.stat()

        service = Service(int(config["listen"][0].rpartition(":")[2]))
        with trio.fail_after(2 * SECONDS_MAX):
            async with booted(root, image) as machine:
                await machine.wait_active(service.port)

                # It refreshes a login, and imports what `/mcp` needs.
                assert await service.turn() == 200
                assert len(backend.asked("/oauth/token")) == 1
                assert login.stat().st_ino != before.st_ino
                assert login.stat().st_mode == before.st_mode
                call = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
                assert status_of(await service.ask("/mcp", OPERATOR, call)) == 200

                # A reload takes a good file, and refuses a broken one before the service sees it.
                other = "key-of-another-0123456789"
                pools.write_text(pools.read_text().replace(KEY, other))
                assert (await machine.systemctl("reload", "codex-pooler")).returncode == 0
                await service.wait_key(other)
                assert (await service.turn(KEY), await service.turn(other)) == (401, 200)
                pools.write_text("{")
                assert (await machine.systemctl("reload", "codex-pooler")).returncode == 1
                assert await service.turn(other) == 200

                # It stops well, and has saved its state.
                (root / STATE / "state.json").unlink()
                assert (await machine.systemctl("stop", "codex-pooler")).returncode == 0
                shown = await machine.systemctl("show", "codex-pooler", "-p", "Result", "--value")
                assert shown.stdout.strip() == b"success"
                assert (root / STATE / "state.json").stat().st_mode & 0o777 == 0o600
        nursery.cancel_scope.cancel()
