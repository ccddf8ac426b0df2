"""Proves that what is edited, hostile or very large does not break the operator's side.

Method: the real server in virtual time, with journals that nobody of ours would have written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest
from trio.testing import MockClock

import pooler
from tests.fakes import UNIX_START, World, describe, opened_world, post, request
from tests.wires import Json

TOKEN: Final = "cpo-operator-token-0123456789"
GOOD: Final[Json] = {
    "at": UNIX_START - 5, "request_id": "abcdefghij", "method": "POST", "route": "responses",
    "transport": "http", "pool": "home", "key": "laptop", "account": "a", "model": "m1",
    "stream": False, "status": 200, "code": None, "attempts": [{"account": "a"}],
    "first_byte_ms": 3, "duration_ms": 5, "bytes_in": 4, "bytes_out": 6,
    "tokens": dict.fromkeys(pooler.Usage._fields, 3),
}  # fmt: skip


def described(**more: Json) -> Json:
    return describe("ab", operators={"me": TOKEN}, **more)


def page(accept: str) -> bytes:
    return request("GET", "/admin", key=TOKEN, headers=[("Accept", accept)])


def tool(name: str, **arguments: Json) -> bytes:
    params = {"name": f"codex_pooler_{name}", "arguments": arguments}
    return post(
        "/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}, key=TOKEN
    )


async def check_all_is_shown(world: World) -> None:
    for raw in (
        page("application/json"),
        page("text/html"),
        request("GET", "/metrics", key=TOKEN),
        tool("list_request_logs"),
        tool("get_request_log", id="abcdefghij"),
    ):
        answer = await world.ask(raw)
        assert answer.status == 200, world.logged
        assert b'"isError":true' not in answer.body


################################################################
# THE JOURNAL
################################################################

ODD: Final[tuple[Json, ...]] = (
    None,
    True,
    -1,
    10**400,
    1e300,
    float("nan"),
    float("inf"),
    "x",
    "",
    [],
    [1],
    [{}],
    {},
)


@pytest.mark.parametrize("name", [*GOOD, "nothing"])
async def test_an_edited_journal_hides_no_page(
    name: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "journal"
    lines = [json.dumps(GOOD | {name: odd}) for odd in ODD]
    lines += [json.dumps({key: GOOD[key] for key in GOOD if key != name}), "[" * 99_999, "{}", "7"]
    path.write_text("\n".join(lines) + "\n")
    async with opened_world(described(journal=str(path))) as world:
        world.server.open_operators()
        world.server.restore()
        await check_all_is_shown(world)
