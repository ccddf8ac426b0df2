"""The upstreams of the soak: each request carries a marker which says what is to be played.

The marker (`soak <number> <fault> <pieces>`) stands in the prompt.  What a good answer is follows
from it, so that a client can rebuild every byte; a fault is played to the first attempt only.
(No claims.)
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, cast

import h11
import trio

from tests.support.codex_backend import TURNS, CodexBackend, Seen, Wire
from tests.support.codex_turns import Answer, Play

Json = Any
MODEL: Final = "m1"
CODEX_MODEL: Final = "gpt-5.5"
API_KEYS: Final = {f"o{n}": f"account-canary-{n}-0123456789" for n in range(1, 5)}
PROMPT: Final = "prompt-canary-of-the-soak"
ANSWER: Final = "answer-canary"
MARK: Final = re.compile(r"soak (\d+) (\w+) (\d+) (\w+)")
# What an upstream may do wrong.  The first group says that the work was not done.
REFUSALS: Final = ("limited", "limited_until", "error500", "error503", "refused401")
BREAKS: Final = ("reset_before", "reset_head", "cut", "stall", "malformed")
BROKEN_AT_ONCE: Final = ("reset_before", "reset_head", "malformed")
FINAL: Final = ("bad400",)
GOOD: Final = "good"
SLOW: Final = "slow"
REST_SECONDS: Final = 6.0  # after a refusal an account may still rest: 2 s, a probe, and slack


@dataclass(frozen=True, slots=True)
class Mark:
    number: int
    fault: str
    pieces: int
    pace: str

    def words(self) -> list[str]:
        return [f"{ANSWER} {self.number}-{index} " for index in range(self.pieces)]

    def text(self) -> str:
        return "".join(self.words())

    def prompt(self) -> str:
        return f"{PROMPT} soak {self.number} {self.fault} {self.pieces} {self.pace}"


def find_mark(body: Json) -> Mark | None:
    found = MARK.search(json.dumps(body))
    return Mark(int(found[1]), found[2], int(found[3]), found[4]) if found else None


async def pause(seconds: float) -> None:
    """Load has a pace, and nothing to wait for."""
    with trio.move_on_after(seconds):
        await trio.sleep_forever()


@dataclass
class Told:
    """What the upstreams did, for the clients to judge by."""

    attempts: Counter[int] = field(default_factory=Counter)
    ended: set[int] = field(default_factory=set)  # their terminal was sent in full
    rested_at: dict[str, float] = field(default_factory=dict)
    makers: dict[str, str] = field(default_factory=dict)  # response id -> account
    complaints: list[str] = field(default_factory=list)
    injected: Counter[str] = field(default_factory=Counter)
    accounts: dict[int, str] = field(default_factory=dict)  # that was asked last, by mark
    open: int = 0

    def begin(self, mark: Mark, account: str) -> str:
        """The fault to be played now."""
        self.attempts[mark.number] += 1
        self.accounts[mark.number] = account
        is_first = self.attempts[mark.number] == 1
        if mark.fault in BREAKS and not is_first:
            self.complaints.append(f"asked twice after {mark.fault}")
        if mark.fault == GOOD and not is_first:
            self.complaints.append("asked twice without a fault")
        fault = mark.fault if is_first or mark.fault in FINAL else GOOD
        if fault != GOOD:
            self.injected[fault] += 1
        if fault in REFUSALS:
            self.rested_at[account] = time.monotonic()
        return fault


def reset(stream: trio.abc.Stream) -> None:
    """Let the close be a reset."""
    sock = cast("trio.SocketStream", stream).socket
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


################################################################
# THE OPENAI-COMPATIBLE ONE
################################################################


def sse(value: Json) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def usage(mark: Mark) -> Json:
    return {"input_tokens": 3, "output_tokens": mark.pieces, "total_tokens": 3 + mark.pieces}


def whole_response(mark: Mark) -> Json:
    part = {"type": "output_text", "text": mark.text(), "annotations": []}
    item = {"type": "message", "id": "msg_1", "role": "assistant", "content": [part]}
    return {
        "id": f"resp_{mark.number}",
        "object": "response",
        "status": "completed",
        "model": MODEL,
        "output": [item],
        "usage": usage(mark),
    }


def response_events(mark: Mark) -> list[bytes]:
    begun = {"id": f"resp_{mark.number}", "object": "response", "status": "in_progress"}
    events = [{"type": "response.created", "sequence_number": 0, "response": begun}]
    for at, word in enumerate(mark.words()):
        events.append(
            {
                "type": "response.output_text.delta",
                "delta": word,
                "item_id": "msg_1",
                "output_index": 0,
                "content_index": 0,
                "sequence_number": at + 1,
            }
        )
    events.append(
        {
            "type": "response.completed",
            "sequence_number": mark.pieces + 1,
            "response": whole_response(mark),
        }
    )
    return [*(sse(event) for event in events), b"data: [DONE]\n\n"]


def chat_chunks(mark: Mark) -> list[bytes]:
    base = {"id": f"chatcmpl-{mark.number}", "object": "chat.completion.chunk", "model": MODEL}

    def chunk(delta: Json, finish: str | None = None) -> bytes:
        return sse(base | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    words = [chunk({"content": word}) for word in mark.words()]
    return [chunk({"role": "assistant"}), *words, chunk({}, "stop"), b"data: [DONE]\n\n"]


def whole_chat(mark: Mark) -> Json:
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": mark.text()},
    }
    return {
        "id": f"chatcmpl-{mark.number}",
        "object": "chat.completion",
        "model": MODEL,
        "choices": [choice],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": mark.pieces,
            "total_tokens": 3 + mark.pieces,
        },
    }


def refusal(fault: str) -> Answer | None:
    error = {"error": {"message": "injected", "type": "server_error", "code": "injected"}}
    return {
        "limited": Answer(429, error),
        "limited_until": Answer(429, error, [("retry-after", "2")]),
        "error500": Answer(500, error),
        "error503": Answer(503, error),
        "refused401": Answer(401, error),
        "bad400": Answer(400, error),
    }.get(fault)


class OpenAiUpstream:
    """Tells accounts apart by their keys."""

    def __init__(self, told: Told) -> None:
        self.told = told
        self.accounts = {key: name for name, key in API_KEYS.items()}

    async def serve(self, stream: trio.SocketStream) -> None:
        wire = Wire(stream)
        self.told.open += 1
        try:
            while (seen := await wire.read_request()) is not None:
                if not await self.answer(wire, seen):
                    break
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            pass
        finally:
            self.told.open -= 1
            await trio.aclose_forcefully(stream)

    async def answer(self, wire: Wire, seen: Seen) -> bool:
        account = self.accounts.get(seen.headers.get("authorization", "").removeprefix("Bearer "))
        mark = find_mark(seen.body)
        if account is None or mark is None:
            self.told.complaints.append(f"unknown account or mark at {seen.path}")
            return False
        anchor = seen.body.get("previous_response_id")
        if anchor and self.told.makers.get(anchor, account) != account:
            self.told.complaints.append("an anchored request went to another account")
        self.told.makers[f"resp_{mark.number}"] = account
        fault = self.told.begin(mark, account)
        if (refused := refusal(fault)) is not None:
            await wire.answer(refused)
            return True
        if fault == "reset_before":
            reset(wire.stream)
            return False
        if not seen.body.get("stream"):
            return await self.answer_whole(wire, seen, mark, fault)
        return await self.stream_response(wire, seen, mark, fault)

    async def answer_whole(self, wire: Wire, seen: Seen, mark: Mark, fault: str) -> bool:
        made = whole_chat(mark) if "chat" in seen.path else whole_response(mark)
        if fault == GOOD:
            self.told.ended.add(mark.number)  # before: the client may know it before we go on
            await wire.answer(Answer(200, made))
            return True
        if fault == "stall":
            await wire.wait_left()
            return False
        data = json.dumps(made).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        if fault == "malformed":
            await wire.stream.send_all(b"HTTP/9.9 what\x00ever\r\n\r\n" + data)
            return False
        await wire.stream.send_all(head % len(data) + data[: len(data) // 2])
        if fault == "reset_head":
            reset(wire.stream)
        return False

    async def stream_response(self, wire: Wire, seen: Seen, mark: Mark, fault: str) -> bool:
        if fault == "malformed":
            await wire.stream.send_all(b"HTTP/9.9 what\x00ever\r\n\r\n")
            return False
        events = chat_chunks(mark) if "chat" in seen.path else response_events(mark)
        headers = [("content-type", "text/event-stream")]
        await wire.send(h11.Response(status_code=200, headers=headers))
        if fault == "reset_head":
            reset(wire.stream)
            return False
        if fault in {"cut", "stall"}:
            events = events[: max(2, len(events) // 2 - 2)]
        for event in events:
            if mark.pace == SLOW:
                await pause(0.15)
            if event is events[-1] and fault == GOOD:
                self.told.ended.add(mark.number)  # before: the client may know it before we go on
            await wire.send(h11.Data(data=event))
        if fault == "stall":
            await wire.wait_left()
        if fault != GOOD:
            return False
        await wire.send(h11.EndOfMessage())
        return True


################################################################
# THE CODEX ONE
################################################################


class SoakBackend:
    """What the strict backend plays in the soak: the prompt of a request says it."""

    def __init__(self, told: Told) -> None:
        self.told = told
        self.backend = CodexBackend()
        self.backend.choose_play = self.choose_play
        self.backend.handlers[TURNS] = self.respond

    async def serve(self, stream: trio.abc.Stream) -> None:
        self.told.open += 1
        try:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self.backend.serve(stream)
        finally:
            self.told.open -= 1

    def forget_old(self) -> None:
        """Drop what nobody asks for, before it takes much memory."""
        self.backend.seen.clear()
        if len(self.backend.sealed) > 5000:
            self.backend.sealed.clear()

    def choose_play(self, seen: Seen, at: str) -> Play:
        """The play that the prompt of a turn names."""
        self.forget_old()
        mark = find_mark(seen.body)
        if at != "turn" or mark is None:
            return Play()
        fault = self.told.begin(mark, seen.account)
        if fault == GOOD:
            self.told.ended.add(mark.number)
        return {
            "limited": Play(error="usage_limit", seconds=2),
            "limited_until": Play(error="rate_limited"),
            "error500": Play(status=500, body={"error": {"message": "x", "code": "injected"}}),
            "error503": Play(error="overloaded"),
            "refused401": Play(error="token_expired"),
            "bad400": Play(error="context_length"),
            "cut": Play(ends="cut", text=mark.text()),
            "stall": Play(ends="stall", text=mark.text()),
        }.get(fault, Play(text=mark.text()))

    async def respond(self, wire: Wire, seen: Seen) -> bool:
        mark = find_mark(seen.body)
        is_first = mark is not None and not self.told.attempts[mark.number]
        if mark is None or not is_first or mark.fault not in BROKEN_AT_ONCE:
            return await self.backend.respond(wire, seen)
        self.told.begin(mark, seen.account)
        if mark.fault == "malformed":
            await wire.stream.send_all(b"HTTP/9.9 what\x00ever\r\n\r\n")
        elif mark.fault == "reset_head":
            head = h11.Response(status_code=200, headers=[("content-type", "text/event-stream")])
            await wire.send(head)
        reset(wire.stream)
        return False
