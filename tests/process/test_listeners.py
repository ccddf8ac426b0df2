"""Proves that the server listens on all of its addresses or on none.

Method: real sockets, with addresses that this machine lacks and unix sockets whose path is taken.
"""

from __future__ import annotations

import dataclasses
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import trio

import pooler
from tests.support.world import describe, make_config

# Of no machine: addresses for examples (RFC 3849).  Where IPv6 is missing, ::1 is none either.
ELSEWHERE: Final = pooler.Listen("[2001:db8::1]:0", "2001:db8::1", 0, is_optional=True)
HERE: Final = pooler.Listen("127.0.0.1:0", "127.0.0.1", 0)


async def test_an_address_that_may_be_missing_is_a_warning() -> None:
    told: list[Mapping[str, Any]] = []
    config = dataclasses.replace(make_config(describe("a")), listen=(HERE, ELSEWHERE))
    listeners = await pooler.open_listeners(config, lambda *entry: told.append(entry[2]))
    assert [one.socket.getsockname()[0] for one in listeners] == ["127.0.0.1"]
    assert [one["problem"].partition(": ")[0] for one in told] == [ELSEWHERE.text]
    for listener in listeners:
        await listener.aclose()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """The path of a unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


async def test_one_unavailable_address_leaves_no_other_open(short_folder: Path) -> None:
    path = str(short_folder / "s")
    first = pooler.Listen(f"unix:{path}", unix_path=path)
    wanted = (first, ELSEWHERE._replace(is_optional=False))
    config = dataclasses.replace(make_config(describe("a")), listen=wanted)
    with pytest.raises(pooler.ConfigRefused) as refused:
        await pooler.open_listeners(config, pooler.print_log)
    assert refused.value.problems[0].startswith(f"listen: {ELSEWHERE.text}: ")
    with pytest.raises(ConnectionRefusedError):
        await trio.open_unix_socket(path)


async def test_a_link_in_the_place_of_a_unix_socket_stays(short_folder: Path) -> None:
    path, dead = short_folder / "s", short_folder / "dead"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(dead))
    path.symlink_to(dead)
    listen = pooler.Listen(f"unix:{path}", unix_path=str(path))
    config = dataclasses.replace(make_config(describe("a")), listen=(listen,))
    with pytest.raises(pooler.ConfigRefused):
        await pooler.open_listeners(config, pooler.print_log)
    assert path.is_symlink()


def unavailable(listen: pooler.Listen) -> str:
    config = dataclasses.replace(make_config(describe("a")), listen=(listen,))
    with pytest.raises(pooler.ConfigRefused) as refused:
        trio.run(pooler.open_listeners, config, pooler.print_log)
    return str(refused.value.problems[0])


def test_a_socket_that_cannot_be_opened_says_what_helps(short_folder: Path) -> None:
    path = str(short_folder / "nowhere" / "s")
    assert "create the folder" in unavailable(pooler.Listen(f"unix:{path}", unix_path=path))
    elsewhere = ELSEWHERE._replace(is_optional=False, host="192.0.2.1", text="192.0.2.1:0")
    assert "use an address of this machine" in unavailable(elsewhere)


def test_a_unix_socket_in_use_is_another_programs(short_folder: Path) -> None:
    path = str(short_folder / "s")
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(path)
        taken.listen()
        problem = unavailable(pooler.Listen(f"unix:{path}", unix_path=path))
    assert "by another program" in problem


def test_a_holder_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooler, "HOLDER_SECONDS_MAX", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        problem = unavailable(pooler.Listen(f"127.0.0.1:{port}", "127.0.0.1", port))
    assert problem.startswith(
        f"listen: 127.0.0.1:{port}: Address already in use by another program"
    )
