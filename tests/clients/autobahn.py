"""Runs the cases of the Autobahn test suite (`kosoku`) against the pooler.

    autobahn.py server URL KEY              against its WebSocket for clients
    autobahn.py client URL KEY PORT         against its client of upstreams, which asks this port

The suite expects an echo.  The pooler is none, so the text of messages is not compared: as a server
it must answer each message with one, and as a client it sends its own.  What is left is what the
suite is about: framing, UTF-8, fragments, pings and closing.

Prints one line for each case: its number, how the suite judges its events and its end, the code
of the Close that came, and what else was seen.  It runs in the environment of the suites, and uses
asyncio, as they do.  (No claims.)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import kosoku
from kosoku.cases import CASES
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

CASES_AT_ONCE: Final = 8
TURN_SECONDS_MAX: Final = 20.0
HEAD_END: Final = b"\r\n\r\n"
TURN: Final = {"type": "response.create", "model": "m1", "input": "x"}
# As a client the pooler answers nothing, so cases that wait for an echo of megabytes say nothing;
# and as either it has no compression, which 216 cases of a server show as well as of a client.
NOT_OF_A_CLIENT: Final = ("9", "10", "12", "13")

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def compare_events(shown: Callable[[Sequence[Any]], object]) -> None:
    """Let the suite compare only what is shown of the events of a case."""
    import case  # type: ignore[import-not-found]  # noqa: PLC0415 (the suite puts it on the path)

    case.Case.compare = lambda _, one, other: shown(one) == shown(other)


def without_texts(events: Sequence[Any]) -> list[Any]:
    return [event if event[0] != "message" else "message" for event in events]


def without_messages(events: Sequence[Any]) -> list[Any]:
    return [event for event in events if event[0] != "message"]


################################################################
# A RELAY
################################################################


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Relay bytes until their end, and tell the end."""
    with contextlib.suppress(OSError):
        while received := await reader.read(65536):
            writer.write(received)
            await writer.drain()
        writer.write_eof()


async def relay(
    near: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    far: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> None:
    await asyncio.gather(copy(near[0], far[1]), copy(far[0], near[1]))


@contextlib.asynccontextmanager
async def listening(handler: Handler, port: int = 0) -> AsyncIterator[int]:
    """The port of a server, all of whose connections have ended afterwards."""
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await handler(reader, writer)

    def start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.add(asyncio.ensure_future(serve(reader, writer)))

    server = await asyncio.start_server(start, "127.0.0.1", port)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await asyncio.wait_for(asyncio.gather(*running), TURN_SECONDS_MAX)


async def ask_upgrade(reader: asyncio.StreamReader, line: str) -> bytes:
    """The head of a handshake that came, with another first line."""
    head = await reader.readuntil(HEAD_END)
    return line.encode() + b"\r\n" + head.partition(b"\r\n")[2]


################################################################
# THE TWO SIDES
################################################################


async def judged(running: Awaitable[Sequence[Any]]) -> Sequence[Any]:
    """The results of a run, whatever they are."""
    try:
        return await running
    except kosoku.FailureError as failure:
        return failure.results  # type: ignore[no-any-return]  # the suite has no types


def show(results: Sequence[Any], more: dict[str, list[str]]) -> None:
    for result in results:
        row = [result.case_id, result.behavior.value, result.behavior_close.value]
        row += [str(result.remote_close_code), " ".join(more.get(result.case_id, []))]
        print(json.dumps(row))  # noqa: T201 (its output is the product)


async def drive_server(url: str, key: str) -> None:
    """Run each case with the pooler as the server."""
    compare_events(without_texts)
    address = urlsplit(url)

    async def admit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = f"GET {address.path} HTTP/1.1\r\nAuthorization: Bearer {key}"
        far = await asyncio.open_connection(address.hostname, address.port)
        with contextlib.closing(far[1]):
            far[1].write(await ask_upgrade(reader, line))
            await relay((reader, writer), far)

    async with listening(admit) as port:
        address_here = f"ws://127.0.0.1:{port}"
        run = kosoku.run_fuzzingclient(address_here, None, None, CASES_AT_ONCE)
        show(await judged(run), {})


@dataclass
class Upstream:
    """Connects each turn to the case that is played, once it has been sent."""

    host: str
    port: int
    number: int = 0
    connections: list[int] = field(default_factory=list)  # the cases, as they were asked for

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(self.number)
        line = f"GET /runCase?case={self.number}&agent=pooler HTTP/1.1"
        far = await asyncio.open_connection(self.host, self.port)
        with contextlib.closing(far[1]):
            far[1].write(await ask_upgrade(reader, line))
            writer.write(await far[0].readuntil(HEAD_END))
            # What the case begins with must not overtake the turn.
            far[1].write(await reader.read(65536))
            await relay((reader, writer), far)


async def take_turn(url: str, key: str) -> list[str]:
    """The codes of the errors that a client is told of one turn."""
    codes: list[str] = []
    headers = {"Authorization": f"Bearer {key}"}
    async with connect(url, additional_headers=headers, max_size=None) as socket:
        await socket.send(json.dumps(TURN))
        with contextlib.suppress(TimeoutError, ConnectionClosed):
            async with asyncio.timeout(TURN_SECONDS_MAX):
                while not codes:
                    codes += codes_in(str(await socket.recv()))
    return codes


def codes_in(message: str) -> list[str]:
    """The code of an error; what else an upstream says comes as it is."""
    try:
        event = json.loads(message)
    except ValueError:
        return []
    error = event.get("error") or event.get("response", {}).get("error")
    return [error["code"]] if error else []


async def drive_client(url: str, key: str, port: int) -> None:
    """Run each case with the pooler as the client, one turn for each."""
    compare_events(without_messages)
    names = [name for name in CASES if name.split(".")[0] not in NOT_OF_A_CLIENT]
    told: dict[str, list[str]] = {}
    async with kosoku.run_fuzzingserver(names, port=0) as server:
        upstream = Upstream(server.address, server.port)
        async with listening(upstream.serve, port):
            for upstream.number, name in enumerate(names, 1):
                told[name] = await take_turn(url, key)
                told[name] += ["again"] * (upstream.connections.count(upstream.number) - 1)
        async with connect(f"ws://{server.address}:{server.port}/updateReports?agent=pooler"):
            show(await judged(asyncio.wait_for(server.get_result(), TURN_SECONDS_MAX)), told)


def main(side: str, url: str, key: str, *port: str) -> None:
    run = drive_server(url, key) if side == "server" else drive_client(url, key, int(port[0]))
    asyncio.run(run)


if __name__ == "__main__":
    main(*sys.argv[1:])
