"""Proves that README's Containerfile and compose file make a container that holds a pool.

Method: the instructions are followed one by one (`image.py`), and the pooler is run as PID 1, as
that user, with that read-only root and those mounts, without any capability.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import trio

import pooler
from tests.deployment.image import Image
from tests.deployment.snippets import SECTION, snippet, with_places
from tests.support.codex_backend import CodexBackend, make_auth_file
from tests.support.server_process import (
    KEY,
    MODEL,
    SECONDS_MAX,
    SLOW,
    ServerProcess,
    Upstream,
    read_all,
    read_until,
    start_upstream,
    status_of,
)

KEY_COUNT: Final = 20_000  # they take a while to read
LOGIN: Final = "data/accounts/personal.json"


@pytest.fixture
def folder(image: Image, tmp_path: Path) -> Path:
    """The folder of compose.yaml, with a `data` made by README's command."""
    (command,) = re.findall(r"^sudo (install .*)$", SECTION, re.MULTILINE)
    subprocess.run(shlex.split(command), cwd=tmp_path, check=True)
    return tmp_path


def write_pools(image: Image, folder: Path, accounts: dict[str, Any], **more: object) -> None:
    """README's pools.json, with accounts of the test."""
    shown = json.loads(with_places(snippet("json"), {":4000": f":{image.port}"}))
    pool = {"accounts": list(accounts), "models": [MODEL], "keys": {"laptop": KEY}}
    config = {**shown, "accounts": accounts, "pools": {"home": pool}, **more}
    (folder / "data/pools.json").write_text(json.dumps(config))
    own(image, folder)


def own(image: Image, folder: Path) -> None:
    """Give everything in `data` to the container's user."""
    user, _, group = image.user.partition(":")
    for path in (folder / "data").rglob("*"):
        os.chown(path, int(user), int(group))


def api_account(upstream: Upstream) -> dict[str, Any]:
    url = f"http://127.0.0.1:{upstream.port}/v1"
    return {"type": "openai", "base_url": url, "api_key": "sk-of-the-test-0123456789"}


def run(image: Image, folder: Path, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    line = image.command(*command, folder=folder, env=env)
    return subprocess.run(line, check=False, capture_output=True, text=True, timeout=SECONDS_MAX)


@dataclass
class Container:
    """A running one, and its pooler's process as the machine around it sees it."""

    server: ServerProcess
    pid: int

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    async def wait_begun(self) -> None:
        """Until it ignores SIGHUP, as it does before it reads pools.json."""
        status = trio.Path(f"/proc/{self.pid}/status")
        while not re.search(r"^SigIgn:\s*\w+[13579bdf]$", await status.read_text(), re.MULTILINE):
            with trio.move_on_after(0.005):
                await self.server.process.wait()
            assert self.server.process.returncode is None

    async def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return await self.server.wait_exit()


@contextlib.asynccontextmanager
async def begun(image: Image, folder: Path, **env: str) -> AsyncIterator[Container]:
    """The image's entry point with its own arguments, as the first process."""
    line = image.command(*image.entrypoint, *image.arguments, folder=folder, env=env)
    process = await trio.lowlevel.open_process(
        line, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        with trio.fail_after(SECONDS_MAX):
            children = trio.Path(f"/proc/{process.pid}/task/{process.pid}/children")
            while not (pid := await children.read_text()):
                pass
            yield Container(ServerProcess(process), int(pid))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


@contextlib.asynccontextmanager
async def contained(image: Image, folder: Path, **env: str) -> AsyncIterator[Container]:
    """The same, listening."""
    async with begun(image, folder, **env) as container:
        server = container.server
        server.address = (await server.wait_line("listening"))["address"]
        yield container


################################################################
# THE FILES AND THE USER
################################################################


def test_nothing_but_the_mounted_folder_can_be_written(image: Image, folder: Path) -> None:
    places = ["/x", "/tmp/x", "/usr/local/x", "/src/x", "/etc/x", "/data/x"]
    script = 'for file in "$@"; do touch $file; done 2>/dev/null; ls "$@" 2>/dev/null'
    written = run(image, folder, "sh", "-c", script, "sh", *places)
    assert written.stdout.split() == ["/data/x"]
    assert (folder / "data/x").stat().st_uid == int(image.user.partition(":")[0])


def test_no_capability_is_left(image: Image, folder: Path) -> None:
    status = run(image, folder, "cat", "/proc/self/status").stdout
    sets = re.findall(r"^Cap(?:Prm|Eff|Bnd|Amb):\s*(\w+)$", status, re.MULTILINE)
    assert [int(bits, 16) for bits in sets] == [0, 0, 0, 0]
    assert re.search(r"^NoNewPrivs:\s*1$", status, re.MULTILINE)


def test_the_compose_file_fits_the_containerfile() -> None:
    compose = snippet("yaml")
    assert json.loads(snippet("json"))["listen"] == "0.0.0.0:4000"
    assert re.search(r'ports: \["127\.0\.0\.1:4000:4000"\]', compose)
    (grace,) = re.findall(r"stop_grace_period: (\d+)s", compose)
    assert int(grace) > pooler.Limits().drain_seconds_max + 7


################################################################
# ITS LIFE
################################################################


async def test_it_serves_and_drains_as_the_first_process(image: Image, folder: Path) -> None:
    async with trio.open_nursery() as nursery:
        upstream = await start_upstream(nursery)
        write_pools(image, folder, {"api": api_account(upstream)})
        assert run(image, folder, *image.health).returncode == 1
        async with contained(image, folder) as container:
            assert run(image, folder, *image.health).returncode == 0
            assert status_of(await container.server.ask()) == 200
            async with await container.server.post(SLOW) as stream:
                await read_until(stream, b"one")
                container.signal(signal.SIGTERM)
                await container.server.wait_line("draining")
                assert run(image, folder, *image.health).returncode == 1
                upstream.may_end.set()
                assert b"response.completed" in await read_all(stream)
            assert await container.server.wait_exit() == 0
        nursery.cancel_scope.cancel()


async def test_it_reloads_as_the_first_process(image: Image, folder: Path) -> None:
    async with trio.open_nursery() as nursery:
        upstream = await start_upstream(nursery)
        write_pools(image, folder, {"api": api_account(upstream)})
        async with contained(image, folder) as container:
            path = folder / "data/pools.json"
            other = "key-of-another-0123456789"
            path.write_text(path.read_text().replace(KEY, other))
            container.signal(signal.SIGHUP)
            await container.server.wait_line("reloaded")
            assert status_of(await container.server.ask(key=KEY)) == 401
            assert status_of(await container.server.ask(key=other)) == 200
            assert await container.stop() == 0
        nursery.cancel_scope.cancel()


async def test_a_login_is_refreshed_in_the_mounted_folder(image: Image, folder: Path) -> None:
    async with trio.open_nursery() as nursery:
        backend = CodexBackend()
        origin = await nursery.start(backend.listen)
        backend.admit(make_auth_file(folder / LOGIN, "one", expires_at=time.time() - 60))
        account = {"type": "codex", "base_url": f"{origin}/backend-api/codex"}
        write_pools(image, folder, {"one": account | {"auth_file": "accounts/personal.json"}})
        url = {"CODEX_REFRESH_TOKEN_URL_OVERRIDE": f"{origin}/oauth/token"}
        checked = run(image, folder, *image.entrypoint, "check", **url)
        assert (checked.returncode, "error" in checked.stdout) == (0, False), checked

        before = (folder / LOGIN).stat()
        async with contained(image, folder, **url) as container:
            assert b"response.completed" in await container.server.ask()
            assert await container.stop() == 0
        after = (folder / LOGIN).stat()
        assert after.st_ino != before.st_ino
        assert (after.st_uid, after.st_mode) == (before.st_uid, before.st_mode)
        assert len(backend.asked("/oauth/token")) == 1
        nursery.cancel_scope.cancel()


async def test_a_stop_during_the_start_is_not_lost(image: Image, folder: Path) -> None:
    """A signal that the first process of a container does not handle does nothing."""
    keys = {f"key-{number}": f"key-of-somebody-{number:09}" for number in range(KEY_COUNT)}
    pool = {"accounts": ["api"], "keys": keys}
    account = {"type": "openai", "api_key": "sk-of-the-test-0123456789"}
    write_pools(image, folder, {"api": account}, pools={"home": pool})
    async with begun(image, folder) as container:
        await container.wait_begun()
        container.signal(signal.SIGTERM)
        assert await container.server.wait_exit() == 0
    assert container.server.lines == []


@pytest.mark.parametrize(
    "line", re.findall(r"^docker compose run --rm pooler (.*)$", SECTION, re.MULTILINE)
)
def test_commands_are_run_in_the_same_container(image: Image, folder: Path, line: str) -> None:
    helped = run(image, folder, *image.entrypoint, line.split(maxsplit=1)[0], "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
