"""What surrounds the pooler in the simulation: a disk, a token endpoint, upstreams.  (No claims.)

Each of them draws its faults from the one random generator of its run, and keeps what an
invariant needs: what was asked, what was said in full, what a power cut would leave.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from pooler import BaseUrl, Config, UpstreamConnection
from tests.long.sim_disk import Disk, login_file, tokens_in
from tests.support.codex_backend import CodexBackend, make_token
from tests.support.codex_turns import Login, Refused
from tests.support.frames import frame
from tests.support.memory_sockets import KEY, OTHER_KEY, Json, MemorySocket, Pipe
from tests.support.world import (
    LAST_CHUNK,
    TOKEN_PATH,
    UNIX_START,
    UPSTREAM_KEY,
    Asked,
    DialStep,
    FakeUpstream,
    Fin,
    Line,
    Pause,
    Refuse,
    Reset,
    Script,
    Send,
    Stall,
    Step,
    Tell,
    World,
    chunk,
    error_response,
    json_response,
    response_head,
    sse_event,
    sse_head,
)

T = TypeVar("T")

# The accounts with a login, by name; a reload may point the names a and b elsewhere, as somebody
# else: those are called 2a and 2b here.
CODEX: Final = ("b", "d", "2b")
MOVED: Final = {"a": "2a", "b": "2b"}
CALM_KEY: Final = "cp-calm-key-0123456789"
TOKEN: Final = "cpo-operator-0123456789abcdef"
SECRETS: Final = frozenset(
    {KEY, OTHER_KEY, CALM_KEY, TOKEN, *(UPSTREAM_KEY + one for one in ("a", "c", "z", "2a"))}
)
CALM: Final = "z"  # an account of a pool of its own, where nothing goes wrong
HELD_BYTES_MAX: Final = 256 * 1024
MOVED_PORT: Final = 9100
DEEP: Final = b'{"type":"vendor.deep","item":' + b"[" * 900 + b"]" * 900 + b"}"
DEEP_ITEM: Final = DEEP.replace(b"vendor.deep", b"response.output_item.done")
MARK: Final = re.compile(rb"Sim-(\d{4,})-prompt")
# Answers that say "not executed" (F46); after any other nothing is sent again.
REPEATABLE: Final = frozenset({401, 402, 403, 429, 500, 502, 503, 520, 521, 529})
FINAL: Final = frozenset({400, 404, 408, 413, 422, 504, 522, 524})
REPEATABLE_CODES: Final = (
    "server_is_overloaded", "rate_limit_exceeded", "usage_limit_reached", "token_invalidated",
    "account_deactivated", 429,
)  # fmt: skip


################################################################
# LOGINS
################################################################


class TokenDesk:
    """The token endpoint: each refresh token works once; and the Codex CLI that uses it, too."""

    def __init__(self, sim: Sim) -> None:
        self.sim = sim
        self.backend = CodexBackend(sim.unix_now)
        self.backend.note_login = self.note_login
        self.newest: dict[str, Login] = {}  # by account
        self.told: set[str] = set()  # refresh tokens whose answer the pooler has got whole
        self.withdrawn: set[str] = set()  # accounts whose login is over
        self.secrets: set[str] = set()

    def log_in(self, name: str, seconds: float) -> None:
        """A new login, whose token ends in so many seconds."""
        expires_at = self.sim.unix_now() + seconds
        access = make_token(f"acct-{name}", "plus", expires_at)
        self.backend.admit(Login(f"acct-{name}", access, f"rt-acct-{name}-1", "plus"))
        self.sim.path_of(name).parent.mkdir(exist_ok=True)
        self.write(name, expires_at, 3600.0)

    def write(self, name: str, expires_at: float, age: float = 0.0) -> None:
        raw = login_file(self.newest[name], self.sim.unix_now() - age, expires_at)
        self.sim.disk.write(self.sim.path_of(name), raw)

    def note_login(self, login: Login) -> None:
        self.newest[login.account_id.removeprefix("acct-")] = login
        self.secrets |= {login.access_token, login.refresh_token}

    def rotate(self, name: str) -> None:
        """What a Codex CLI on the same file does, if its refresh token is still good."""
        held = tokens_in(self.sim.path_of(name).read_bytes())[1]
        if held in self.backend.refreshable:
            self.backend.exchange(held)
            self.write(name, self.sim.unix_now() + 10**6)

    async def serve_token(self, upstream: FakeUpstream, line: Line) -> bool:
        """Serve one refresh; return whether the connection stays open."""
        asked = await upstream.read(line)
        if asked is None:
            return False
        rng, held = self.sim.rng, str(asked.json()["refresh_token"])
        name = held.split("-")[2]
        if held in self.told:
            self.sim.complaints.append(f"{name}: a spent refresh token was sent again")
        at = 1.0 if self.sim.is_calm else rng.random()
        if at < 0.06:  # it works, and nobody is told
            with contextlib.suppress(Refused):
                self.backend.exchange(held)
            return False
        if at < 0.14:
            return await upstream.play(error_response(rng.choice([500, 503, 429]), "busy"), line)
        if at < 0.18:
            self.backend.refreshable.pop(held, None)
            self.withdrawn.add(name)
        if at < 0.3 and not await upstream.play([Pause(rng.choice([1, 14, 16, 40]))], line):
            return False
        try:
            answer = self.backend.exchange(held)
        except Refused as refused:
            self.withdrawn.add(name)
            return await upstream.play(json_response(refused.answer.body, 401), line)
        if not (line.socket.outgoing.is_deaf or at < 0.3):
            self.told.add(held)
        return await upstream.play(json_response(answer), line)


################################################################
# WHAT IS ASKED AND ANSWERED
################################################################


@dataclass
class Attempt:
    """What one upstream did with one request that it has read whole."""

    account: str
    outcome: str
    said: str = ""  # the text, or the tool's arguments, that a whole answer has
    is_repeatable: bool = False  # it was proof that nothing was done
    end_at: int = 0  # so many bytes of the answer say how it ended; 0: none do
    is_told: bool = False  # they have been sent
    is_lie: bool = False  # there was more behind the end
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
        return [f"w{self.number}.{account}.{at}{filling} " for at in range(self.word_count)]


@dataclass
class Gauge:
    """What the pooler holds of a stream, between its upstream and its client (I8)."""

    sim: Sim
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
            self.sim.complaints.append(f"request {self.task.number}: {held} bytes are held")


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
    response = {"id": f"resp_{task.number}", "object": "response", "created_at": 7, "model": "m1"}
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


def stream_of(rng: random.Random, payloads: Sequence[Json], *, is_chat: bool) -> tuple[bytes, int]:
    """A whole answer as bytes, and how many of them say how it ended."""
    events = [sse_event(payload) for payload in payloads]
    framing = rng.choice(["chunked", "chunked", "length", "close"])
    raw = sse_head(framing, sum(map(len, events)))
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
    rng: random.Random, raw: bytes, attempt: Attempt, pauses: Sequence[float]
) -> list[Step]:
    """`raw` cut anywhere; the attempt is told before the piece goes out that ends the answer."""
    cuts = sorted({len(raw), *(rng.randint(1, max(1, len(raw))) for _ in range(rng.randint(0, 6)))})
    steps: list[Step] = []
    start = 0
    for cut in cuts:
        if start < attempt.end_at <= cut:
            steps.append(Tell(attempt))
        steps.append(Send(raw[start:cut]))
        if attempt.gauge is not None:
            steps.append(Tell(attempt.gauge))
        if cut < len(raw) and rng.random() < 0.3:
            steps.append(Pause(rng.choice(pauses)))
        start = cut
    return steps


################################################################
# UPSTREAMS
################################################################

SHORT: Final = (0.01, 3.0, 20.0)  # pauses that break no timer
LONG: Final = (*SHORT, 9.9, 119.0, 130.0, 310.0)
NOISE: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9009/\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\nx",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;\nx\r\n",
    b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n<ok>",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
    b"SSH-2.0-noise\r\n\r\n",
    b"\x16\x03\x01\x00\xa5\x01",
    b"",
)
ENDS: Final[Sequence[Step]] = (Fin(), Reset(), Stall())
DONE: Final[Json] = {"type": "response.done", "response": {"id": "resp_x"}}
FAILED: Final[Json] = {"type": "response.failed", "response": {"id": "resp_x"}}
NO_ROUTE: Final = [Send(response_head(404, [("content-length", "8")]) + b"no page\n")]
UPGRADES: Final = (426, 401, 403, 429, 500, 503)


def draw_dial(rng: random.Random) -> DialStep:
    """What goes wrong at a dial."""
    steps: list[DialStep] = [Refuse(), Stall(), Pause(rng.choice([1, 9, 11])), Fin(), Reset()]
    return rng.choice(steps)


class SimUpstream:
    """What the upstream of an account does, which errs as it is drawn."""

    def __init__(self, sim: Sim, upstream: FakeUpstream) -> None:
        self.sim = sim
        self.rng = sim.rng
        self.name = upstream.name
        self.upstream = upstream
        upstream.always = self.answer
        upstream.on_turn = self.answer_turn
        upstream.observe = partial(sim.check_request, self.name)
        upstream.handle = self.serve_request
        upstream.next_dial = self.draw_dial

    @property
    def is_calm(self) -> bool:
        return self.sim.is_calm or self.name == CALM

    def draw_dial(self) -> DialStep | None:
        """What goes wrong at a dial, if anything does."""
        return draw_dial(self.rng) if self.happens(0.08) else None

    async def serve_request(self, line: Line) -> bool:
        """Serve one request or turn; return whether the connection stays open."""
        if not line.socket_number and self.happens(0.03):
            line.buffer += await line.socket.receive_some(self.rng.randint(1, 400))
            if self.rng.random() < 0.5:
                line.socket.reset()
            return False  # it never read the whole of it
        upgrades = self.upstream.upgrades
        if not upgrades and self.happens(0.1):
            upgrades.append(error_response(self.rng.choice(UPGRADES), "no_upgrade"))
        return await self.upstream.serve_request(line)

    def answer(self, asked: Asked) -> Script:
        task = self.sim.task_of(self.name, asked.body)
        return self.draw(task, asked.connection, is_stream=task.is_stream or self.name in CODEX)

    def answer_turn(self, body: Json) -> Script:
        raw = json.dumps(body).encode()
        return self.draw_turn(self.sim.task_of(self.name, raw))

    ############ what is drawn

    def draw_fault(self, task: Task) -> float:
        """Below 0.6 something goes wrong, or slowly."""
        return 1.0 if self.is_calm or task.is_calm else self.rng.random()

    def happens(self, share: float) -> bool:
        """Whether something goes wrong beside the answers."""
        return not self.is_calm and self.rng.random() < share

    def draw(self, task: Task, line: Line, *, is_stream: bool) -> Script:
        rng = self.rng
        attempt = Attempt(self.name, "whole", "".join(task.words(self.name)))
        task.attempts.append(attempt)
        is_chat = task.kind == "chat" and self.name not in CODEX
        payloads: Sequence[Json] = (chat_response if is_chat else responses_response)(
            task, self.name
        )
        if is_stream:
            raw, attempt.end_at = stream_of(rng, payloads, is_chat=is_chat)
            if self.name not in CODEX:
                longest = max(len(sse_event(payload)) for payload in payloads)
                attempt.gauge = Gauge(self.sim, task, line.socket.outgoing, longest)
        else:
            raw = whole_of(json_response(unary_response(task, self.name)))
            attempt.end_at = len(raw)
        at = self.draw_fault(task)
        if at < 0.24:
            return self.draw_odd(at, task, attempt, payloads if is_stream else [])
        if at < 0.4:
            attempt.outcome = "cut"
            cut = raw[: rng.randrange(len(raw))]
            return [*in_pieces(rng, cut, attempt, LONG), rng.choice(ENDS)]
        if at < 0.45:
            # In one piece: what comes while the next request is under way is taken for its answer.
            attempt.outcome, attempt.is_lie = "more behind it", True
            return [Send(raw + rng.choice([raw, *NOISE])), Fin()]
        steps = in_pieces(rng, raw, attempt, SHORT if at > 0.6 else LONG)
        is_closed = b"\r\ntransfer-encoding" not in raw and b"\r\ncontent-length" not in raw
        return [*steps, Fin()] if is_closed or rng.random() < 0.1 else steps

    def draw_odd(self, at: float, task: Task, attempt: Attempt, payloads: Sequence[Json]) -> Script:
        """No whole answer; `payloads`: of a stream."""
        rng, is_chat = self.rng, task.kind == "chat" and self.name not in CODEX
        if at < 0.12:
            return self.draw_status(task, attempt)
        if at < 0.13 and payloads:
            # An event that can be read by some, and written again by few.
            attempt.outcome, attempt.is_lie = "too deep", True
            count = rng.randint(1, len(payloads) - 1)
            deep = rng.choice([DEEP, DEEP_ITEM])
            raw, _ = stream_of(rng, [*payloads[:count], deep, *payloads[count:]], is_chat=False)
            return [*in_pieces(rng, raw, attempt, SHORT), Fin()]
        if at < 0.14 and payloads:
            attempt.outcome, attempt.is_lie = "ended twice", True
            raw, _ = stream_of(rng, [*payloads, *payloads[2:]], is_chat=False)
            return [*in_pieces(rng, raw, attempt, SHORT), Fin()]
        if at < 0.18 and payloads:
            return self.draw_failure(attempt, payloads, is_chat=is_chat)
        attempt.outcome = "noise"
        return [Send(rng.choice(NOISE)), rng.choice(ENDS)]

    def draw_status(self, task: Task, attempt: Attempt) -> Script:
        """An error before anything else."""
        rng = self.rng
        status = rng.choice(sorted(REPEATABLE | FINAL))
        attempt.outcome, attempt.is_repeatable = str(status), status in REPEATABLE
        code = {429: rng.choice(["usage_limit_reached", "rate_limit_exceeded"])}.get(status, "odd")
        if task.has_reasoning and rng.random() < 0.5:
            attempt.outcome, attempt.is_repeatable = "sealed", True
            return error_response(400, "invalid_encrypted_content")
        if rng.random() < 0.1:
            attempt.outcome, attempt.is_repeatable = "lacks", True
            return rng.choice([NO_ROUTE, error_response(404, "model_not_found")])
        headers = [("retry-after", str(rng.choice([0, 1, 40])))] if rng.random() < 0.3 else []
        more = (
            {"resets_in_seconds": rng.choice([2, 5, 600, 24 * 86400, None])}
            if status == 429
            else {}
        )
        attempt.end_at = 0
        return in_pieces(
            rng, whole_of(error_response(status, code, headers, **more)), attempt, SHORT
        )

    def draw_failure(self, attempt: Attempt, payloads: Sequence[Json], *, is_chat: bool) -> Script:
        """A 200 that tells of a failure, before its first content or later."""
        rng = self.rng
        count = rng.choice([0, 1, 2, rng.randint(3, max(3, len(payloads) - 1))])
        code = rng.choice([*REPEATABLE_CODES, "invalid_prompt"])
        attempt.outcome = "failure"
        # Of a Chat answer the role alone is no content; of the others all is from its third event.
        is_early = count <= (1 if is_chat else 2)
        attempt.is_repeatable = is_early and code != "invalid_prompt"
        error = {"code": code, "message": "said by the upstream"}
        failed: Json = {"error": error}
        if not is_chat:
            response = {"id": "resp_x", "object": "response", "status": "failed", "error": error}
            failed = {"type": "response.failed", "sequence_number": count, "response": response}
        raw, _ = stream_of(rng, [*payloads[:count], failed], is_chat=False)
        attempt.end_at = 0
        return [*in_pieces(rng, raw, attempt, SHORT), Fin()]

    def draw_turn(self, task: Task) -> Script:
        """The answer to a turn of a WebSocket."""
        rng = self.rng
        attempt = Attempt(self.name, "turn", "".join(task.words(self.name)))
        task.attempts.append(attempt)
        raws = [
            frame(1, json.dumps(event).encode(), mask=b"")
            for event in responses_response(task, self.name)
        ]
        raw, attempt.end_at = b"".join(raws), sum(map(len, raws))
        at = self.draw_fault(task)
        if at < 0.15:
            status = rng.choice(sorted(REPEATABLE | FINAL))
            code = rng.choice(["usage_limit_reached", "odd", "websocket_connection_limit_reached"])
            is_old = code.startswith("websocket")
            attempt.outcome = f"turn {400 if is_old else status}"
            attempt.is_repeatable = is_old or status in REPEATABLE or code == "usage_limit_reached"
            error = {"type": code, "code": code, "message": "x", "param": None}
            told = {"type": "error", "status": 400 if is_old else status, "error": error}
            refused = Send(frame(1, json.dumps(told).encode(), mask=b""))
            return [refused, *self.draw_rest([told, FAILED])]
        if at < 0.35:
            attempt.outcome = "turn cut"
            cut = raw[: rng.randrange(len(raw))]
            closed = Send(frame(8, b"\x03\xf3", mask=b""))
            return [*in_pieces(rng, cut, attempt, LONG), rng.choice([*ENDS, closed])]
        pauses = SHORT if at > 0.6 else LONG
        late = f"w{task.number}.late "
        extra: Json = {"type": "response.output_text.delta", "delta": late}
        rest = self.draw_rest([extra, DONE, FAILED])
        return [*in_pieces(rng, raw, attempt, pauses), *rest]

    def draw_rest(self, events: Sequence[Json]) -> list[Step]:
        """What may come behind the end of a turn: events, of which one is late or never whole."""
        rng = self.rng
        if not self.happens(0.25):
            return []
        raw = b"".join(
            frame(1, json.dumps(event).encode(), mask=b"")
            for event in rng.sample(events, rng.randint(1, len(events)))
        )
        cut = rng.choice([0, len(raw), rng.randrange(len(raw))])
        after = rng.choice([Pause(rng.choice(LONG)), rng.choice(ENDS)])
        return [Send(raw[:cut]), after, *([Send(raw[cut:])] if isinstance(after, Pause) else [])]


################################################################
# THE WORLD
################################################################


class Sim:
    """What outlives a crash: the disk, the logins, who asked for what, and what was wrong."""

    def __init__(self, rng: random.Random, folder: Path) -> None:
        self.rng = rng
        self.folder = folder
        self.disk = Disk(rng)
        self.unix_offset: float = UNIX_START
        self.complaints: list[str] = []
        self.tasks: dict[int, Task] = {}
        self.is_calm = False  # nothing goes wrong any more
        self.desk = TokenDesk(self)

    def unix_now(self) -> float:
        return self.unix_offset + trio.current_time()

    def path_of(self, name: str) -> Path:
        return self.folder / name / "auth.json"

    def task_of(self, name: str, raw: bytes) -> Task:
        """The one whose prompt an upstream was sent."""
        marks = sorted(set(MARK.findall(raw)))
        if len(marks) != 1:
            self.complaints.append(f"{name} was sent the prompts {marks}")
        return self.tasks[int(marks[0])]

    def check_request(self, name: str, asked: Asked) -> None:
        """What an upstream is sent: its own secret, which no power cut can take back."""
        bearer = (asked.header("authorization") or "").removeprefix("Bearer ")
        if name not in CODEX:
            if bearer != UPSTREAM_KEY + name:
                self.complaints.append(f"{name} was sent the bearer {bearer}")
        else:
            newest = self.desk.newest[name].access_token
            is_durable = tokens_in(self.disk.durable(self.path_of(name)))[0] == bearer
            if bearer not in self.desk.backend.logins or (bearer == newest and not is_durable):
                self.complaints.append(f"{name}: a token was used before it was saved")
            if asked.header("chatgpt-account-id") != f"acct-{name}":
                self.complaints.append(f"{name} was sent another account's id")
        raw = asked.head + asked.body
        if found := [one for one in self.secrets - {bearer} if one.encode() in raw]:
            self.complaints.append(f"{name} was sent {found}")

    @property
    def secrets(self) -> set[str]:
        return self.desk.secrets | SECRETS

    ############ a server and its surroundings, until it stops or crashes

    def start_world(self, config: Config, nursery: trio.Nursery) -> World:
        """A world of this simulation, whose server runs."""
        world = World(
            config,
            nursery,
            make_upstream=self.make_upstream,
            find_service=lambda url: world.upstream(name_at(url)).connect,
            clock=self.unix_now,
        )
        world.complaints = self.complaints
        world.start()
        return world

    def make_upstream(self, name: str, world: World) -> FakeUpstream:
        """The upstream of an account, or the token endpoint."""
        upstream = FakeUpstream(name, world)
        upstream.capacity = self.rng.choice([float("inf"), 65536])
        if name == TOKEN_PATH:
            upstream.handle = partial(self.desk.serve_token, upstream)
            upstream.next_dial = self.draw_token_dial
        else:
            SimUpstream(self, upstream)
        return upstream

    def draw_token_dial(self) -> DialStep | None:
        """What goes wrong at a dial of the token endpoint, if anything does."""
        fails = not self.is_calm and self.rng.random() < 0.08
        return draw_dial(self.rng) if fails else None


def name_at(url: BaseUrl) -> str:
    """Whose upstream a URL names; a request may have begun before a reload that moved the name."""
    if url.path == TOKEN_PATH:
        return TOKEN_PATH
    name = "abcdz"[url.port % 100 - 1]
    return MOVED[name] if url.port > MOVED_PORT else name


def probe(connection: UpstreamConnection) -> bool:
    """In the place of the method, which asks the kernel about a socket."""
    assert isinstance(connection.stream, MemorySocket)
    pipe = connection.stream.incoming
    return not (pipe.buffer or pipe.is_ended or pipe.is_reset)


async def run_inline(call: Callable[..., T], *args: object, **_options: object) -> T:
    """In the place of `trio.to_thread.run_sync`: a thread's time is not ours to draw."""
    await trio.lowlevel.checkpoint()
    return call(*args)
