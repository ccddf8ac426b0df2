"""Requests in the simulation, and whole answers to them.  (No claims.)"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.long.sim_names import SIGN_OF
from tests.support.memory_sockets import Json, Pairs, Pipe
from tests.support.world import (
    LAST_CHUNK,
    Pause,
    Send,
    Settable,
    Step,
    Tell,
    chunk,
    sse_event,
    sse_head,
)

MARK: Final = re.compile(rb"Sim-(\d{4,})-prompt")
HELD_BYTES_MAX: Final = 256 * 1024


@dataclass
class Attempt:
    """What one upstream did with one request that it has read whole."""

    account: str
    outcome: str
    at: float = 0.0  # when it had read it
    said: str = ""  # the text, or the tool's arguments, that a whole answer has
    is_repeatable: bool = False  # it was proof that nothing was done
    end_at: int = 0  # so many bytes of the answer say how it ended; 0: none do
    is_told: bool = False  # they have been sent
    is_lie: bool = False  # there was more behind the end
    told_at: float = math.inf  # when its trouble was told, if there was any
    task: Task | None = field(default=None, repr=False)
    is_doubt: bool = False  # of its credential: the same account may be asked once more
    gauge: Gauge | None = field(default=None, repr=False)

    def set(self) -> None:
        """As an event's: a script tells it."""
        self.is_told = True


@dataclass
class Task:
    """One request of a client."""

    number: int
    kind: str  # responses | chat | native
    is_stream: bool
    model: str = "m1"  # as the pool calls it
    asked_model: str = "m1"  # as the client does
    key: str = ""
    session: tuple[str, str] | None = None  # what names its session, and how
    opening: str = ""  # the first message of its conversation, if that is another one
    previous: str = ""  # the id of the response that it continues
    is_turn: bool = False  # of a WebSocket
    began_at: float = math.inf  # when its client began to send it
    ended_at: float = math.inf  # when its client had the end of the answer
    has_tool: bool = False
    has_reasoning: bool = False
    is_calm: bool = False  # nothing goes wrong on its way
    word_count: int = 3
    word_bytes: int = 0  # of filling
    socket: Any = None  # the client's
    byte_count: int = 0  # that this socket had carried before
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def prompt(self) -> str:
        return f"Sim-{self.number:04d}-prompt"

    def words(self, account: str) -> list[str]:
        """They tell of the request and of who answers it."""
        filling = "x" * self.word_bytes
        sign = SIGN_OF[account]
        return [f"w{self.number}.{sign}.{at}{filling} " for at in range(self.word_count)]

    def response_id(self, account: str) -> str:
        return f"resp_{self.number}_{SIGN_OF[account]}"

    @property
    def path(self) -> str:
        """As the call's of an account with an API key."""
        return "/chat/completions" if self.kind == "chat" else "/responses"


@dataclass
class Gauge:
    """What the pooler holds of a stream, between its upstream and its client (I8)."""

    complaints: list[str]
    task: Task
    pipe: Pipe  # from the upstream
    event_bytes: int  # of its longest event, which is held until it is whole
    start: int = 0

    def __post_init__(self) -> None:
        self.start = self.taken

    @property
    def taken(self) -> int:
        return self.pipe.byte_count - len(self.pipe.buffer)

    def set(self) -> None:
        given = self.task.socket.incoming.byte_count - self.task.byte_count
        held = self.taken - self.start - given
        if held > HELD_BYTES_MAX + self.event_bytes and not self.task.socket.is_closed:
            self.complaints.append(f"request {self.task.number}: {held} bytes are held")


def responses_response(task: Task, account: str) -> list[dict[str, Json]]:
    """The events of a whole answer."""
    words = task.words(account)
    text = "".join(words)
    item: dict[str, Json] = {"type": "message", "id": "msg_1", "role": "assistant"}
    part = {"type": "output_text", "text": text, "annotations": []}
    whole = item | {"status": "completed", "content": [part]}
    delta = "response.output_text.delta"
    if task.has_tool:
        item = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "look"}
        whole = item | {"status": "completed", "arguments": text}
        delta = "response.function_call_arguments.delta"
    place = {"item_id": item["id"], "output_index": 0}
    usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    response = {
        "id": task.response_id(account),
        "object": "response",
        "created_at": 7,
        "model": "m1",
    }
    done = response | {"status": "completed", "output": [whole], "usage": usage}
    begun = response | {"status": "in_progress", "output": []}
    events: list[dict[str, Json]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        *({"type": delta, **place, "content_index": 0, "delta": word} for word in words),
        {"type": "response.output_item.done", "output_index": 0, "item": whole},
        {"type": "response.completed", "response": done},
    ]
    return [event | {"sequence_number": number} for number, event in enumerate(events)]


def chat_response(task: Task, account: str) -> list[Json]:
    def piece(delta: Json, finish: str | None = None) -> dict[str, Json]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {"id": "c1", "object": "chat.completion.chunk", "model": "m1", "choices": [choice]}

    words = task.words(account)
    if not task.has_tool:
        says = [piece({"content": word}) for word in words]
        return [piece({"role": "assistant", "content": ""}), *says, piece({}, "stop"), b"[DONE]"]
    first = {"index": 0, "id": "call_1", "type": "function"}
    calls = [{"index": 0, "function": {"arguments": word}} for word in words]
    told = first | {"function": {"name": "look", "arguments": ""}}
    says = [piece({"tool_calls": [call]}) for call in (told, *calls)]
    return [piece({"role": "assistant"}), *says, piece({}, "tool_calls"), b"[DONE]"]


def unary_response(task: Task, account: str) -> dict[str, Json]:
    if task.kind != "chat":
        response = responses_response(task, account)[-1]["response"]
        assert isinstance(response, dict)
        return response
    text = "".join(task.words(account))
    message: dict[str, Json] = {"role": "assistant", "content": text}
    if task.has_tool:
        call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": text}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
    finish = "tool_calls" if task.has_tool else "stop"
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"id": "c1", "object": "chat.completion", "model": "m1", "choices": [choice]}


def whole_of(steps: Sequence[Step]) -> bytes:
    """The bytes of a script that only sends."""
    return b"".join(step.data for step in steps if isinstance(step, Send))


def stream_of(
    rng: random.Random, payloads: Sequence[Json], *, is_chat: bool, headers: Pairs = ()
) -> tuple[bytes, int]:
    """A whole answer as bytes, and how many of them say how it ended."""
    events = [sse_event(payload) for payload in payloads]
    framing = rng.choice(["chunked", "chunked", "length", "close"])
    raw = sse_head(framing, sum(map(len, events)), headers)
    end_at = 0
    for at, event in enumerate(events):
        # A Chat answer whose body ends with the connection has its finish_reason to say so.
        if at == len(events) - 1 - (is_chat and framing == "close"):
            end_at = len(raw) + raw_offset(event, framing)
        raw += chunk(event) if framing == "chunked" else event
    return raw + (LAST_CHUNK if framing == "chunked" else b""), end_at


def raw_offset(event: bytes, framing: str) -> int:
    """Where the data of a framed event is whole, but for its blank line."""
    head = len(b"%x\r\n" % len(event)) if framing == "chunked" else 0
    return head + len(event.rstrip(b"\n"))


def in_pieces(
    rng: random.Random,
    raw: bytes,
    attempt: Attempt,
    pauses: Sequence[float],
    *,
    marks: Sequence[tuple[int, Settable]] = (),
) -> list[Step]:
    """`raw` cut anywhere; the attempt is told before the piece goes out that ends the answer.

    `marks`: what else is told, before so many bytes have gone out.
    """
    cuts = sorted({len(raw), *(rng.randint(1, max(1, len(raw))) for _ in range(rng.randint(0, 6)))})
    steps: list[Step] = []
    start = 0
    for cut in cuts:
        if start < attempt.end_at <= cut:
            steps.append(Tell(attempt))
        steps += [Tell(what) for at, what in marks if start < at <= cut]
        steps.append(Send(raw[start:cut]))
        if attempt.gauge is not None:
            steps.append(Tell(attempt.gauge))
        if cut < len(raw) and rng.random() < 0.3:
            steps.append(Pause(rng.choice(pauses)))
        start = cut
    return steps
