"""A plain reverse proxy with aiohttp: what one would write, without keys, checks or records."""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp
from aiohttp import web

HOP_BY_HOP: Final = frozenset({"connection", "keep-alive", "transfer-encoding", "host", "te"})


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
        server = web.Server(reverse.handle, access_log=None, handler_cancellation=True)
        await asyncio.get_running_loop().create_server(server, "127.0.0.1", port, backlog=1024)
        await asyncio.Event().wait()


def run(_: str, port: int, upstream_port: int) -> None:
    asyncio.run(run_reverse(port, upstream_port))
