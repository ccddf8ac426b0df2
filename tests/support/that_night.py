"""A pool at night, on the real process: each of its four accounts is out of order in another way.

`opened_night` yields it once clients have met all four faults: a login that was withdrawn, a plan
that is used up, an API key that is refused, and a server that is not running.  (No claims.)
"""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from tests.support.codex_backend import CodexBackend, Play, TokenPlay, make_auth_file
from tests.support.server_process import (
    KEY,
    ServerProcess,
    read_all,
    read_request,
    started,
    write_config,
)

TOKEN: Final = "cpo-operator-of-the-night-0123456789"
PLATFORM_KEY: Final = "sk-platform-0123456789abcdef"
LIMIT_SECONDS: Final = 5400
# By account: a word of its cause, and one of what is to be done.
CAUSES: Final[Mapping[str, tuple[str, str]]] = {
    "personal": ("revoked", "pooler login personal --config "),
    "second": ("usage_limit_reached", "First account back: second"),
    "platform": ("401 invalid_api_key", "{env:PLATFORM_KEY}"),
    "llama": ("connection refused at 127.0.0.1:", "Start the server at 127.0.0.1:"),
}
REFUSED: Final = json.dumps(
    {"error": {"message": "Incorrect API key provided.", "code": "invalid_api_key"}}
).encode()


class Night:
    """The running pooler, and what an operator and a client can ask it."""

    def __init__(self, process: ServerProcess, backend: CodexBackend) -> None:
        self.process = process
        self.backend = backend

    async def request(self, method: str, path: str, key: str, body: bytes, accept: str) -> bytes:
        """The whole response, as it came."""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
            f"Accept: {accept}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        async with await self.process.connect() as stream:
            await stream.send_all(head.encode() + body)
            return await read_all(stream)

    async def show(self, path: str = "/admin", accept: str = "text/html") -> str:
        """What an operator reads at a path."""
        response = await self.request("GET", path, TOKEN, b"", accept)
        head, _, body = response.partition(b"\r\n\r\n")
        assert head.split()[1] == b"200", head
        return body.decode()

    async def ask(self, model: str) -> int:
        """The status that a client gets."""
        body = json.dumps({"model": model, "input": "hello", "stream": True}).encode()
        response = await self.request("POST", "/v1/responses", KEY, body, "*/*")
        return int(response.split()[1])

    async def call(self, tool: str, **arguments: object) -> dict[str, Any]:
        """The result of an MCP tool."""
        params = {"name": f"codex_pooler_{tool}", "arguments": arguments}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        accept = "application/json, text/event-stream"
        response = await self.request("POST", "/mcp", TOKEN, json.dumps(message).encode(), accept)
        result: dict[str, Any] = json.loads(response.partition(b"\r\n\r\n")[2])["result"]
        assert not result["isError"], result
        return result


async def refuse_key(stream: trio.abc.Stream) -> None:
    """An API that knows no key."""
    async with stream:
        try:
            while True:
                await read_request(stream)
                head = (
                    "HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\n"
                    f"Content-Length: {len(REFUSED)}\r\n\r\n"
                )
                await stream.send_all(head.encode() + REFUSED)
        except (trio.BrokenResourceError, AssertionError, ValueError, IndexError):
            return


def unused_port() -> int:
    """A port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


async def start_backend(nursery: trio.Nursery, folder: Path) -> tuple[CodexBackend, str]:
    """The ChatGPT backend and its origin; one login is withdrawn, the other's plan is used up."""
    backend = CodexBackend()
    origin = await nursery.start(backend.listen)
    for name in ("personal", "second"):
        (folder / name).mkdir()
        backend.admit(make_auth_file(folder / name / "auth.json", f"acct-{name}"))
    backend.plays += [
        Play("acct-personal", count=0, error="token_invalidated"),
        Play("acct-second", count=0, error="usage_limit", seconds=LIMIT_SECONDS),
    ]
    backend.token_plays += [TokenPlay(401, "refresh_token_invalidated") for _ in range(9)]
    return backend, origin


def describe_night(backend: str, platform: str, llama_port: int) -> dict[str, Any]:
    """The pools.json."""
    codex = {"type": "codex", "base_url": f"{backend}/backend-api/codex", "websocket": False}
    return {
        "listen": "127.0.0.1:0",
        "accounts": {
            "personal": {**codex, "auth_file": "personal/auth.json", "models": ["gpt-5.5"]},
            "second": {**codex, "auth_file": "second/auth.json", "models": ["gpt-5.5"]},
            "platform": {
                "type": "openai", "base_url": platform, "api_key": "{env:PLATFORM_KEY}",
                "models": ["gpt-5.5"],
            },
            "llama": {
                "type": "openai", "base_url": f"http://127.0.0.1:{llama_port}/v1",
                "api_key": "none", "models": ["qwen3-coder"],
            },
        },
        "pools": {
            "home": {
                "accounts": ["personal", "second", "platform", "llama"],
                "models": ["gpt-5.5", "qwen3-coder"],
                "keys": {"laptop": KEY},
            }
        },
        "operators": {"me": TOKEN},
    }  # fmt: skip


@asynccontextmanager
async def opened_night(folder: Path) -> AsyncIterator[Night]:
    """The real process after its clients have met every fault; it must end well."""
    async with trio.open_nursery() as nursery:
        backend, origin = await start_backend(nursery, folder)
        (platform,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, refuse_key, [platform])
        address = f"http://127.0.0.1:{platform.socket.getsockname()[1]}/v1"

        write_config(folder, describe_night(origin, address, unused_port()))
        env = {
            "PLATFORM_KEY": PLATFORM_KEY,
            "CODEX_REFRESH_TOKEN_URL_OVERRIDE": f"{origin}/oauth/token",
        }
        async with started("serve", cwd=folder, env=env) as process:
            pooler = ServerProcess(process)
            pooler.address = (await pooler.wait_line("listening"))["address"]
            night = Night(pooler, backend)
            # At most three accounts are asked for one request.
            statuses = [await night.ask("gpt-5.5") for _ in range(3)]
            statuses += [await night.ask("qwen3-coder") for _ in range(2)]
            assert statuses[2:] == [429, 502, 502], statuses

            yield night
            if process.returncode is None:
                process.terminate()
                assert await pooler.wait_exit() == 0
        nursery.cancel_scope.cancel()
