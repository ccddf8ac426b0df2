"""The two proxies that the pooler is measured against.

`relay` knows no HTTP: it is what Trio costs alone.  `reverse` is what one would write with
aiohttp: streaming both ways, keep-alive both ways, no keys, no checks, no records.
Run: `python -m tests.long.bench.proxies relay|reverse PORT UPSTREAM_PORT`.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from typing import Final

import aiohttp
import trio
from aiohttp import web

HOP_BY_HOP: Final = frozenset({"connection", "keep-alive", "transfer-encoding", "host", "te"})


async def copy(source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
    try:
        while data := await source.receive_some(64 * 1024):
            await sink.send_all(data)
    except trio.BrokenResourceError:
        pass
    scope.cancel()


async def relay(upstream_port: int, client: trio.SocketStream) -> None:
    upstream = await trio.open_tcp_stream("127.0.0.1", upstream_port)
    async with client, upstream, trio.open_nursery() as nursery:
        nursery.start_soon(copy, client, upstream, nursery.cancel_scope)
        nursery.start_soon(copy, upstream, client, nursery.cancel_scope)


async def run_relay(port: int, upstream_port: int) -> None:
    await trio.serve_tcp(
        functools.partial(relay, upstream_port), port, host="127.0.0.1", backlog=1024
    )


class Reverse:
    """A plain reverse proxy."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str) -> None:
        self.session = session
        self.base_url = base_url

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
        async with self.session.request(
            request.method,
            self.base_url + request.path_qs,
            headers=headers,
            data=request.content if request.body_exists else None,
            allow_redirects=False,
        ) as answer:
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for data in answer.content.iter_any():
                await response.write(data)
            await response.write_eof()
            return response


async def run_reverse(port: int, upstream_port: int) -> None:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None),
        auto_decompress=False,
    ) as session:
        reverse = Reverse(session, f"http://127.0.0.1:{upstream_port}")
        server = web.Server(reverse.handle, access_log=None)
        await asyncio.get_running_loop().create_server(server, "127.0.0.1", port, backlog=1024)
        await asyncio.Event().wait()


if __name__ == "__main__":
    which, port_text, upstream_text = sys.argv[1:]
    if which == "relay":
        trio.run(run_relay, int(port_text), int(upstream_text))
    else:
        asyncio.run(run_reverse(int(port_text), int(upstream_text)))
