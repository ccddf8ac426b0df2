"""The WebSocket of a ChatGPT Codex backend (F24, F25), for `codex_backend.py`.

`serve_socket` validates the upgrade as it does a POST, and then serves one turn after another.
What the facts leave open is as strict as it may be: no extension and no unknown field.  An anchor
(`previous_response_id`) is the last response of this very connection, and a turn that is refused
takes its anchor away (developers.openai.com, "WebSocket mode").
(No claims.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import h11
import trio
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.utilities import generate_accept_token

from tests.support.codex_turns import (
    TURN_STATE,
    Answer,
    Json,
    Login,
    Play,
    Refused,
    check_body,
    deny,
    error_body,
    extra_events,
    invalid,
    limit_headers,
    make_events,
)

if TYPE_CHECKING:
    from tests.support.codex_backend import CodexBackend, Seen, Wire

BETA: Final = "responses_websockets=2026-02-06"
MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024  # the real ceiling
CLOSE_SECONDS_MAX: Final = 5  # for the other side's Close
CLOSE_CODES: Final[Mapping[str, int]] = {"close": 1011, "limit": 1000, "quiet": 1000}
SOCKET_FIELDS: Final = frozenset({"type", "previous_response_id", "generate"})
TOO_OLD: Final = error_body("websocket_connection_limit_reached", "The connection is too old.")


################################################################
# THE WIRE
################################################################


class Socket:
    """One WebSocket after the upgrade: text comes in, JSON objects go out."""

    def __init__(self, stream: trio.abc.Stream, received: bytes) -> None:
        self.stream = stream
        self.frames = Connection(ConnectionType.SERVER, trailing_data=received)

    async def next_event(self) -> Event:
        while (event := next(iter(self.frames.events()), None)) is None:
            try:
                data = bytes(await self.stream.receive_some(65536))
            except trio.BrokenResourceError:
                data = b""
            self.frames.receive_data(data or None)
        return event

    async def read_text(self) -> str | None:
        """The next message; None once the connection is over."""
        pieces: list[str] = []
        byte_count = 0
        while not isinstance(event := await self.next_event(), CloseConnection):
            if isinstance(event, Ping):
                await self.send(event.response())
            elif isinstance(event, BytesMessage):
                await self.close(1003)
                return None
            elif isinstance(event, TextMessage):
                pieces.append(event.data)
                byte_count += len(event.data.encode())
                if byte_count > MESSAGE_BYTES_MAX:
                    await self.close(1009)
                    return None
                if event.message_finished:
                    return "".join(pieces)
        if event.code != 1006:  # the other side closed it, or broke the protocol
            await self.send(event.response())
        return None

    async def send(self, event: Event) -> None:
        await self.stream.send_all(self.frames.send(event))

    async def send_json(self, content: Json) -> None:
        await self.send(TextMessage(json.dumps(content)))

    async def close(self, code: int) -> None:
        """Reads on until the other side agrees, so that it can read all that was sent."""
        await self.send(CloseConnection(code))
        with trio.move_on_after(CLOSE_SECONDS_MAX):
            while not isinstance(await self.next_event(), CloseConnection):
                pass


################################################################
# WHAT IS REFUSED
################################################################


def check_upgrade(headers: Mapping[str, str]) -> None:
    """Raises: Refused."""
    if headers.get("upgrade", "").lower() != "websocket":
        deny("Not Found", 404)
    if headers.get("sec-websocket-version") != "13" or "sec-websocket-key" not in headers:
        deny("Bad Request")
    if BETA not in headers.get("openai-beta", ""):
        deny("Unsupported OpenAI-Beta")


def read_object(text: str) -> dict[str, Json]:
    """The object of a frame; an empty one is no good frame either."""
    try:
        frame = json.loads(text)
    except ValueError:
        frame = None
    return frame if isinstance(frame, dict) else {}


def check_frame(frame: Mapping[str, Json], last_id: str | None, headers: Mapping[str, str]) -> None:
    """Raises: Refused, for the first fault."""
    if frame.get("type") != "response.create":
        invalid("invalid_value", "Invalid value.", "type")
    anchor = frame.get("previous_response_id")
    if anchor not in (None, last_id):
        message = f"Previous response with id '{anchor}' not found."
        invalid("previous_response_not_found", message, "previous_response_id")
    body = {name: value for name, value in frame.items() if name not in SOCKET_FIELDS}
    check_body({"stream": True} | body, headers=headers, is_anchored=anchor is not None)


def error_frame(answer: Answer, login: Login, now: float) -> Json:
    """A response other than 200, as a frame; its `detail` becomes the error's message."""
    body = answer.body if isinstance(answer.body, dict) else {"detail": str(answer.body)}
    detail = {"type": "invalid_request_error", "message": body.get("detail")}
    error = body.get("error") or detail
    headers = dict([*limit_headers(login, now), *answer.headers])
    return {"type": "error", "status": answer.status, "error": error, "headers": headers}


################################################################
# TURNS
################################################################


class Talk:
    """The turns of one WebSocket."""

    def __init__(self, backend: CodexBackend, socket: Socket, seen: Seen, login: Login) -> None:
        self.backend = backend
        self.socket = socket
        self.seen = seen  # what is seen of each turn, but for its body
        self.login = login
        self.last_id: str | None = None  # of the response that can be an anchor
        self.added: list[Json] = []  # the items with tools of the turns before

    async def answer(self, text: str) -> bool:
        """Serve one frame; return False if the connection is over."""
        frame = read_object(text)
        if frame.get("type") == "response.processed":
            return True
        seen = replace(self.seen, body=frame)
        self.backend.seen.append(seen)
        last_id = self.last_id
        if frame.get("previous_response_id") == last_id:
            self.last_id = None  # until the turn has succeeded
        try:
            check_frame(frame, last_id, self.seen.headers)
            at = "warm_up" if frame.get("generate") is False else "turn"
            play = self.backend.play_for(seen, self.login, at)
        except Refused as refused:
            await self.tell(refused.answer)
            return True
        return await self.perform(frame, play)

    async def tell(self, answer: Answer) -> None:
        await self.socket.send_json(error_frame(answer, self.login, self.backend.clock()))

    async def perform(self, frame: Mapping[str, Json], play: Play) -> bool:
        """False where the connection is over."""
        backend = self.backend
        backend.turn_count += 1
        number = backend.turn_count
        earlier = self.added if frame.get("previous_response_id") else []
        items = [*earlier, *frame["input"]]
        self.added = [item for item in items if item.get("type") == "additional_tools"]
        body = {**frame, "input": items}
        events = make_events(body, play, self.login, number, backend.clock())
        backend.remember(events)
        if play.after != "nothing" and not play.has_extra_events:
            events[:0] = extra_events(self.login, backend.clock())[:1]  # its limits: always
        if play.ends in {"completed", "incomplete"}:
            self.last_id = f"resp_{number}"
        for event in events:
            await self.socket.send_json(event)
        if play.ends == "limit":
            await self.tell(Answer(400, TOO_OLD))
        if play.ends == "stall":
            while await self.socket.read_text() is not None:
                pass
            backend.left.set()
        code = play.close_code or CLOSE_CODES.get(play.ends)
        if code:
            await self.socket.close(code)
        return not code and play.ends not in {"stall", "cut"}


async def serve_socket(backend: CodexBackend, wire: Wire, seen: Seen) -> bool:
    """False: the connection is to be cut.  Raises: Refused, instead of an upgrade."""
    login = backend.authenticate(seen)
    check_upgrade(seen.headers)
    backend.play_for(seen, login, "upgrade")
    token = generate_accept_token(seen.headers["sec-websocket-key"].encode()).decode()
    headers = [
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-accept", token),
        ("x-codex-turn-state", f"{TURN_STATE}-{seen.account}"),
        ("x-models-etag", 'W/"models-1"'),
        ("x-reasoning-included", "true"),
    ]
    backend.socket_count += 1
    backend.open_sockets += 1
    try:
        await wire.send(h11.InformationalResponse(status_code=101, headers=headers))
        socket = Socket(wire.stream, wire.http.trailing_data[0])
        pattern = replace(seen, method="WEBSOCKET", connection=backend.socket_count)
        talk = Talk(backend, socket, pattern, login)
        while (text := await socket.read_text()) is not None:
            if not await talk.answer(text):
                break
    finally:
        backend.open_sockets -= 1
    return False
