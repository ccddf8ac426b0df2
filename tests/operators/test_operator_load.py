"""Proves that operators disturb no client: 50 streams go on, and a response costs little.

Method: the real process with MCP, an upstream of the test's own that sends an event to each stream
every 50 ms, and an operator who sends requests as fast as possible. Measured are the pooler's
processor time and the longest silence in any stream.
"""

from __future__ import annotations

import http.client
import json
import statistics
import time
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.support.processes import Pooler
from tests.support.world import responses_events, sse_event

pytestmark: Final = pytest.mark.measures

TOKEN: Final = "cpo-operator-token-0123456789"
KEY: Final = "cp-key-of-the-laptop-0123456789"
STREAMS: Final = 50
PERIOD_SECONDS: Final = 0.05
CALLS: Final = 60
CPU_SECONDS_MAX: Final = 0.005  # for one answer, the median
SILENCE_SECONDS_MAX: Final = 1.0  # of a stream; without operators it is about 0.06


@pytest.fixture(params=["tools/list", "tools/call", "/admin", "/metrics"])
def asked(request: pytest.FixtureRequest) -> tuple[str, str, bytes]:
    """Method, path and body of the operator's request."""
    name: str = request.param
    if name.startswith("/"):
        return "GET", name, b""
    call = {"name": "codex_pooler_list_upstreams", "arguments": {}}
    params = call if name == "tools/call" else {}
    message = {"jsonrpc": "2.0", "id": 1, "method": name, "params": params}
    return "POST", "/mcp", json.dumps(message).encode()


def cpu_seconds(process_id: int) -> float:
    """What a process has used so far, in ticks of a scheduler: exact enough for many calls."""
    fields = Path(f"/proc/{process_id}/schedstat").read_text().split()
    return int(fields[0]) / 1e9


async def serve_slowly(stream: trio.SocketStream) -> None:
    """An event every 50 ms, until the other side leaves."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += await stream.receive_some(65536)
    events = responses_events("x")
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    try:
        await stream.send_all(head + sse_event(events[0]))
        while True:
            await stream.send_all(sse_event(events[2]))
            await trio.sleep_until(trio.current_time() + PERIOD_SECONDS)
    except trio.BrokenResourceError:
        pass
    finally:
        await trio.aclose_forcefully(stream)


async def read_stream(address: tuple[str, int], silences: list[float]) -> None:
    """One client; the longest time between two receives goes to `silences`."""
    body = json.dumps({"model": "m1", "input": "x", "stream": True}).encode()
    head = f"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    stream = await trio.open_tcp_stream(*address)
    longest = 0.0
    try:
        await stream.send_all(head.encode() + body)
        await stream.receive_some(65536)
        before = time.monotonic()
        while await stream.receive_some(65536):
            longest, before = max(longest, time.monotonic() - before), time.monotonic()
    finally:
        silences.append(longest)
        await trio.aclose_forcefully(stream)


def ask_often(address: tuple[str, int], asked: tuple[str, str, bytes], process_id: int) -> float:
    """The median of the pooler's time for a response, without that of the streams."""
    method, path, body = asked
    headers = {
        "Authorization": f"Bearer {TOKEN}",
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
    }
    connection = http.client.HTTPConnection(*address, timeout=20)
    costs = []
    for _ in range(CALLS):
        before = cpu_seconds(process_id)
        connection.request(method, path, body or None, headers)
        answer = connection.getresponse()
        assert (answer.status, len(answer.read()) > 200) == (200, True)
        costs.append(cpu_seconds(process_id) - before)
    connection.close()
    return statistics.median(costs)


async def test_fifty_streams_go_on_while_an_operator_asks(
    asked: tuple[str, str, bytes], tmp_path: Path
) -> None:
    silences: list[float] = []
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve_slowly, [listener])
        port = listener.socket.getsockname()[1]
        account = {
            "type": "openai", "api_key": "none", "models": ["m1"], "concurrent": STREAMS,
            "base_url": f"http://127.0.0.1:{port}/v1",
        }  # fmt: skip
        config = {
            "listen": "127.0.0.1:0",
            "accounts": {"slow": account},
            "pools": {"home": {"accounts": ["slow"], "keys": {"laptop": KEY}}},
            "operators": {"me": TOKEN},
        }
        server = await trio.to_thread.run_sync(Pooler, config, tmp_path)
        host, _, number = server.origin.removeprefix("http://").partition(":")
        address = (host, int(number))
        async with trio.open_nursery() as streams:
            for _ in range(STREAMS):
                streams.start_soon(read_stream, address, silences)
            await trio.sleep_until(trio.current_time() + 1)  # all have begun
            process_id = server.process.process.pid
            cost = await trio.to_thread.run_sync(ask_often, address, asked, process_id)
            streams.cancel_scope.cancel()
        await trio.to_thread.run_sync(server.stop)
        nursery.cancel_scope.cancel()
    await listener.aclose()
    assert len(silences) == STREAMS
    assert max(silences) < SILENCE_SECONDS_MAX
    assert cost < CPU_SECONDS_MAX
