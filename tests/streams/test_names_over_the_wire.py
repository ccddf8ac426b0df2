"""Proves over real sockets that no error names an account, an organisation or a key of an upstream.

Method: the real process on loopback, with ChatGPT accounts and one with an API key.  Each refusal
names somebody in its message or in another member; it comes in a frame of a WebSocket, before or
after a turn's first text, as the response to a refused upgrade, in its body and its headers, or as
an error of the image and search routes.
The client's whole bytes and the log are searched.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.frames import TEXT, frame
from tests.support.hostile_bytes import NAMING_ERRORS
from tests.support.memory_sockets import Json, post
from tests.support.raw_http import SECONDS_MAX
from tests.support.raw_websockets import SocketWire, opened_sockets

pytestmark: Final = pytest.mark.slow

CODEX: Final = "/backend-api/codex"
NAME: Final = re.compile(r"\S*(?:org-|acct_|proj_|gsk_|AIza|xai-|hf_|@|\*|sk-|4f2c)\S*")
CREATED: Final[Json] = {"type": "response.created", "response": {"id": "r"}}
DELTA: Final[Json] = {"type": "response.output_text.delta", "delta": "x"}
Carrier = Callable[[dict[str, Json]], list[Json]]


def failed(error: Json) -> Json:
    return {"type": "response.failed", "response": {"id": "r", "status": "failed", "error": error}}


# How a WebSocket carries an error.
FRAMES: Final[dict[str, Carrier]] = {
    "refused": lambda error: [{"type": "error", "status": 400, "error": error}],
    "refused with fields": lambda error: [
        {
            "type": "error",
            "status": 400,
            "error": error,
            "headers": {"openai-organization": error["message"], "x-request-id": "req-1"},
        }
    ],
    "too large": lambda error: [
        {"type": "error", "status": 413, "error": error | {"code": "tokens"}}
    ],
    "without a status": lambda error: [{"type": "error", "error": error}],
    "flat": lambda error: [{**error, "type": "error"}],
    "failed at once": lambda error: [CREATED, failed(error)],
    "refused later": lambda error: [
        CREATED, DELTA, {"type": "error", "status": 400, "error": error}
    ],
    "failed later": lambda error: [CREATED, DELTA, failed(error)],
    "failing upstream": lambda error: [
        CREATED, DELTA, {"type": "error", "error": error | {"code": "server_error"}}
    ],
    "in a detail": lambda error: [
        CREATED,
        DELTA,
        {"type": "error", "error": error | {"details": [{"owner": error["message"]}]}},
    ],
}  # fmt: skip
TOOLS: Final = ("/images/generations", "/images/edits", "/alpha/search")
# How a response in one piece carries one.
BODIES: Final[dict[str, Callable[[dict[str, Json]], tuple[int, Json]]]] = {
    "refused": lambda error: (400, {"error": error}),
    "too large": lambda error: (413, {"error": error | {"code": "tokens"}}),
    "flat": lambda error: (422, {"detail": error["message"]}),
    "in a detail": lambda error: (400, {"error": error | {"details": [error["message"]]}}),
    "reported by a 200": lambda error: (200, {"error": error | {"code": 400}}),
}


def errors() -> Iterator[dict[str, Json]]:
    """Errors that name somebody, in one member after the other."""
    for message, _ in NAMING_ERRORS:
        yield {"message": message, "code": "invalid_prompt", "param": None}
    for member in ("code", "type", "param"):
        error: dict[str, Json] = {"message": "m", "code": "invalid_prompt"}
        yield error | {member: "org-abcDEFghi"}


def check(shown: str, error: dict[str, Json]) -> None:
    """No name of the error is in what was shown."""
    for name in NAME.findall(json.dumps(error)):
        bare = name.strip('",')
        assert bare not in shown, (bare, shown)


class Script:
    """The events of the upstreams' next turn, and their next response in one piece."""

    def __init__(self) -> None:
        self.events: list[Json] = []
        self.response = (200, b"{}")

    def answer(self, stream: socket.socket, _turn: Json) -> bool:
        for event in self.events:
            stream.sendall(frame(TEXT, json.dumps(event).encode(), mask=b""))
        return True

    def respond(self, _target: str, _body: bytes) -> bytes:
        return raw_response(*self.response)


def raw_response(status: int, body: bytes, *fields: str) -> bytes:
    """A response with these header fields, after which the connection closes."""
    lines = [
        f"HTTP/1.1 {status} X",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *fields,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def check_log(wire: SocketWire) -> None:
    log = wire.pooler.process.output
    for error in errors():
        check(log, error)


@pytest.mark.parametrize(
    ("is_codex", "path"),
    [(False, "/v1/responses"), (True, "/v1/responses"), (True, f"{CODEX}/responses")],
)
def test_no_frame_of_a_websocket_names_an_account(
    tmp_path: Path, is_codex: bool, path: str
) -> None:
    script = Script()
    with opened_sockets(tmp_path, {"a": script.answer}, is_codex=is_codex) as wire:
        for carrier in FRAMES.values():
            for error in errors():
                script.events = carrier(error)
                with wire.open(path) as client:
                    events = client.ask()
                assert events[-1]["type"] in {"error", "response.failed"}
                check(json.dumps(events, ensure_ascii=False), error)
    check_log(wire)


OWNER: Final = "janeplus"  # the account's name; `acct-janeplus` is its id
REFUSED_FIELDS: Final = (
    f"OpenAI-Organization: org-{OWNER}",
    f"ChatGPT-Account-Id: acct-{OWNER}",
    f"X-Codex-Turn-State: acct-{OWNER}",
    "X-Request-Id: req-1",
)
OWNED: Final[dict[str, Json]] = {
    "message": f"The account acct-{OWNER} of the organization org-{OWNER} may not",
    "code": "invalid_prompt",
}
# Only a 400 surely leaves the account in service, so the other statuses have one error each.
UPGRADE_REFUSALS: Final = (
    (400, (OWNED, *errors())), (401, (OWNED,)), (404, (OWNED,)), (429, (OWNED,)), (500, (OWNED,)),
)  # fmt: skip


@pytest.mark.parametrize(("status", "refusals"), UPGRADE_REFUSALS)
@pytest.mark.parametrize("is_codex", [False, True])
def test_no_refused_upgrade_names_an_account(
    tmp_path: Path, is_codex: bool, status: int, refusals: tuple[dict[str, Json], ...]
) -> None:
    script = Script()
    with opened_sockets(tmp_path, {OWNER: script.answer}, is_codex=is_codex) as wire:
        upstream = wire.upstreams[OWNER]
        for error in refusals:
            refused_before = upstream.refused_count
            body = json.dumps({"error": error, "detail": error["message"]}).encode()
            upstream.refusal = raw_response(status, body, *REFUSED_FIELDS)
            with wire.open() as client:
                events = client.ask()
            assert upstream.refused_count > refused_before
            assert events[-1]["type"] == "error"
            shown = json.dumps(events, ensure_ascii=False)
            assert OWNER not in shown
            check(shown, error)
    for error in refusals:
        check(wire.pooler.process.output, error)


@pytest.mark.parametrize("carrier", BODIES)
def test_no_error_of_a_tool_names_an_account(tmp_path: Path, carrier: str) -> None:
    script = Script()
    with opened_sockets(tmp_path, {"a": script.answer}, is_codex=True) as wire:
        wire.upstreams["a"].respond = script.respond
        for error in errors():
            status, body = BODIES[carrier](error)
            script.response = (status, json.dumps(body).encode())
            for tool in TOOLS:
                for base in (CODEX, "/v1"):
                    shown = ask(wire, base + tool)
                    assert shown.startswith("HTTP/1.1 4")
                    check(shown, error)
    check_log(wire)


def ask(wire: SocketWire, path: str) -> str:
    """The raw response to a request of Codex CLI's tools."""
    body = {"model": "m1", "id": "s", "prompt": "x"}
    with socket.create_connection(wire.address, SECONDS_MAX) as stream:
        stream.sendall(post(path, body, headers=[("Connection", "close")]))
        raw = b""
        while received := stream.recv(65536):
            raw += received
    return raw.decode()
