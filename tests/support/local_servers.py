"""A local server of models on a real socket, as `pooler init` and the pooler ask it.

It speaks Chat, and the Responses API only if it is told to.  (No claims.)
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

from tests.support.listening import HOST, Listening

Json = Any
Play = Callable[[socket.socket], None]

CHAT: Final = b"".join(
    b"data: " + json.dumps({"choices": [choice], "object": "chat.completion.chunk"}).encode()
    + b"\n\n"
    for choice in (
        {"index": 0, "delta": {"role": "assistant", "content": "Quinces."}},
        {"index": 0, "delta": {}, "finish_reason": "stop"},
    )
) + b"data: [DONE]\n\n"  # fmt: skip


def response(status: int, body: Json, kind: str = "application/json") -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(raw)}\r\n\r\n"
    return head.encode() + raw


def listing(*entries: Json) -> bytes:
    return response(200, {"object": "list", "data": list(entries)})


class LocalServer:
    """`routes` is what is sent for a method and path: bytes, or a function with the socket."""

    def __init__(self, *entries: Json, has_responses: bool = False) -> None:
        self.asked: list[str] = []
        unknown = response(404, {"error": "Not Found"})
        refused = response(400, {"error": {"message": "input is required"}})
        self.routes: dict[str, bytes | Play] = {
            "GET /v1/models": listing(*entries),
            "POST /v1/responses": refused if has_responses else unknown,
            "POST /v1/chat/completions": response(200, CHAT, "text/event-stream"),
        }
        self.unknown = unknown
        self.listening = Listening(self.serve)
        self.origin = f"http://{HOST}:{self.listening.port}"
        self.url = f"{self.origin}/v1"

    def serve(self, caller: socket.socket) -> None:
        raw = b""
        with contextlib.suppress(OSError), caller:
            while received := caller.recv(65536):
                raw += received
                head, end, body = raw.partition(b"\r\n\r\n")
                lengths = [
                    int(line.partition(b":")[2])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length:")
                ]
                if end and len(body) >= sum(lengths):
                    route = head.partition(b" HTTP/1.1")[0].decode()
                    self.asked.append(route)
                    self.play(caller, self.routes.get(route, self.unknown))
                    raw = b""

    def play(self, caller: socket.socket, step: bytes | Play) -> None:
        if isinstance(step, bytes):
            caller.sendall(step)
        else:
            step(caller)

    def close(self) -> None:
        self.listening.close()


@contextlib.contextmanager
def local_server(*entries: Json, has_responses: bool = False) -> Iterator[LocalServer]:
    with contextlib.closing(LocalServer(*entries, has_responses=has_responses)) as server:
        yield server
