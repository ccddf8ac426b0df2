"""The upstreams of accounts in the simulation, which err as real ones do.  (No claims.)

Each draws its faults from the one random generator of its life, and has the book note what it said.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from tests.long.sim_book import Book, Trouble
from tests.long.sim_ground import Ground
from tests.long.sim_names import (
    CALM,
    CODEX,
    MODEL_OF,
    RENAMERS,
    email_of,
    number_of,
    organization_of,
)
from tests.long.sim_requests import (
    Attempt,
    Gauge,
    Task,
    chat_response,
    in_pieces,
    responses_response,
    stream_of,
    unary_response,
    whole_of,
)
from tests.long.sim_troubles import Said, Speaker, body_of, window_event, window_headers
from tests.support.frames import frame
from tests.support.memory_sockets import Json, MemorySocket
from tests.support.world import (
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
    Settable,
    Stall,
    Step,
    error_response,
    json_response,
    response_head,
    sse_event,
)

DEEP: Final = b'{"type":"vendor.deep","item":' + b"[" * 900 + b"]" * 900 + b"}"
DEEP_ITEM: Final = DEEP.replace(b"vendor.deep", b"response.output_item.done")
# Answers that say "not executed" (F46), and are of no account; after the others nothing is sent
# again.
REPEATABLE: Final = frozenset({500, 502, 503, 520, 521, 529})
FINAL: Final = frozenset({400, 404, 408, 413, 422, 504, 522, 524})
SHORT: Final = (0.01, 3.0, 20.0)  # pauses that break no timer
QUICK: Final = (0.01, 0.5)  # nor that of a refusal's body
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
NO_ROUTE: Final[Sequence[Script]] = (
    [Send(response_head(404, [("content-length", "8")]) + b"no page\n")],
    json_response({"detail": "Not Found"}, 404),
    json_response({}, 405),
)
UPGRADES: Final = (426, 401, 403, 429, 500, 503)
WITHOUT: Final[Sequence[frozenset[str]]] = (
    *[frozenset()] * 6, frozenset({"/responses"}), frozenset({"/chat/completions"})
)  # fmt: skip


def draw_dial(rng: random.Random) -> DialStep:
    """What goes wrong at a dial."""
    steps: list[DialStep] = [Refuse(), Stall(), Pause(rng.choice([1, 9, 11])), Fin(), Reset()]
    return rng.choice(steps)


def private_headers(name: str) -> list[tuple[str, str]]:
    """What upstreams say of an account at each answer."""
    return [
        ("x-request-id", f"req-private-{number_of(name)}"),
        ("openai-organization", organization_of(name)),
        ("x-codex-plan-type", "private-plan"),
        ("x-owner", email_of(name)),
        ("set-cookie", f"account={number_of(name)}"),
    ]


@dataclass(frozen=True)
class Drawn:
    """A script that is drawn each time that it is played."""

    draw: Callable[[], Script]

    def __iter__(self) -> Iterator[Step]:
        return iter(self.draw())


@dataclass(frozen=True)
class Telling:
    """As an event's: the pooler is about to read of a trouble."""

    book: Book
    attempt: Attempt
    trouble: Trouble
    socket: MemorySocket
    is_late: bool

    def set(self) -> None:
        if not self.socket.outgoing.is_deaf:
            self.attempt.told_at = trio.current_time()
            self.book.note_trouble(self.attempt, self.trouble, is_late=self.is_late)


@dataclass(frozen=True)
class Report:
    """The same, of a window of the plan."""

    book: Book
    attempt: Attempt
    percent: float
    ends_at: float

    def set(self) -> None:
        self.attempt.told_at = trio.current_time()
        self.book.note_window(self.attempt.account, self.attempt, self.percent, self.ends_at)

    def waive(self) -> None:
        """Somewhere in its answer, and perhaps not read: the book asks for nothing."""
        if self.percent >= 100:
            self.book.was_full.add(self.attempt.account)
            self.book.note_odd(self.attempt.account)

    def end_in(self, raw: bytes) -> int:
        """How many bytes of an answer tell it."""
        event_at = raw.find(b'"codex.rate_limits"')
        return raw.index(b"\r\n\r\n") + 4 if event_at < 0 else raw.index(b"\n\n", event_at) + 2


class SimUpstream:
    """What the upstream of an account does."""

    def __init__(self, ground: Ground, upstream: FakeUpstream) -> None:
        self.ground = ground
        self.book = ground.book
        self.rng = ground.rng
        self.name = upstream.name
        self.upstream = upstream
        self.is_codex = self.name in CODEX
        upstream.always = self.answer
        upstream.on_turn = self.answer_turn
        upstream.handle = self.serve_request
        upstream.next_dial = self.draw_dial
        upstream.catalogue = Drawn(self.draw_catalogue)
        upstream.usage = Drawn(self.draw_usage)
        self.lacks: frozenset[str] = frozenset()
        self.is_looping = False  # each of its tokens is refused
        if not self.is_calm:
            self.lacks = frozenset() if self.is_codex else self.rng.choice(WITHOUT)
            self.is_looping = self.is_codex and self.rng.random() < 0.04
        self.has_usage = self.rng.random() < 0.6
        self.line: Line | None = None  # on which a turn was read last

    @property
    def is_calm(self) -> bool:
        return self.ground.is_calm or self.name == CALM

    def happens(self, share: float) -> bool:
        """Whether something goes wrong beside the answers."""
        return self.name != CALM and self.ground.happens(share)

    def draw_dial(self) -> DialStep | None:
        """What goes wrong at a dial, if anything does."""
        if not self.happens(0.06):
            return None
        self.book.note_odd(self.name)
        return draw_dial(self.rng)

    async def serve_request(self, line: Line) -> bool:
        """Serve one request or turn; return whether the connection stays open."""
        self.line = line
        if not line.socket_number and self.happens(0.03):
            self.book.note_odd(self.name)
            line.buffer += await line.socket.receive_some(self.rng.randint(1, 400))
            if self.rng.random() < 0.5:
                line.socket.reset()
            return False  # it never read the whole of it
        upgrades = self.upstream.upgrades
        if not upgrades and self.happens(0.08):
            upgrades.append(Drawn(self.draw_upgrade))
        return await self.upstream.serve_request(line)

    def draw_upgrade(self) -> Script:
        """No WebSocket, for the next one that asks."""
        self.book.no_sockets.add(self.name)
        self.book.note_odd(self.name)
        return error_response(self.rng.choice(UPGRADES), "no_upgrade")

    def answer(self, asked: Asked) -> Script:
        task = self.ground.task_of(self.name, asked.body)
        self.check_model(task, asked.json())
        return self.draw(task, asked, is_stream=task.is_stream or self.is_codex)

    def answer_turn(self, body: Json) -> Script:
        task = self.ground.task_of(self.name, json.dumps(body).encode())
        self.check_model(task, body)
        return self.draw_turn(task)

    def check_model(self, task: Task, body: Json) -> None:
        """It is asked for the model that was meant, by a name of its own."""
        model = body["model"]
        is_own = model.startswith("vendor/")
        is_right = MODEL_OF.get(model) == task.model and model != "fast"
        if not is_right or (is_own and self.name not in RENAMERS):
            self.ground.complaints.append(f"{self.name} is asked for {model}, not {task.model}")
        if is_own:
            self.ground.note("own model name")

    ############ what it says of itself

    def draw_catalogue(self) -> Script:
        """Its list of models: Codex's, llama.cpp's, an incomplete one, or none."""
        rng, names = self.rng, self.rng.choice([["m1", "m2"], ["m1", "m2", "m3"], ["m1"]])
        self.ground.note("catalogue")
        if self.is_calm or rng.random() < 0.6:
            listed = [{"slug": name, "id": name, "context_window": 272000} for name in names]
            lists: Json = {"data": listed, "object": "list"}
            if self.is_codex:
                lists = {"models": listed}
            elif rng.random() < 0.3:
                lists["models"] = [{"name": name} for name in names]
            return json_response(rng.choice([lists, lists, listed]))
        odd: list[Script] = [
            error_response(404, "not_found"), error_response(500, "odd"),
            json_response({"data": 7}),
            [Send(b"HTTP/1.1 200 OK\r\n\r\n["), Fin()], [Stall()], [Reset()],
        ]  # fmt: skip
        return rng.choice(odd)

    def draw_usage(self) -> Script:
        """How far its plan is used up, if it has such a route."""
        rng, now = self.rng, self.ground.unix_now()
        if not self.has_usage:
            return error_response(404, "not_found")
        if rng.random() < 0.2:
            return rng.choice([error_response(500, "odd"), error_response(401, "odd"), [Stall()]])
        self.ground.note("usage")
        percent, seconds = rng.choice([3, 3, 97, 100]), rng.choice([600, 9000])
        window = {
            "used_percent": percent, "limit_window_seconds": 18000, "reset_at": int(now) + seconds
        }  # fmt: skip
        self.book.note_window(self.name, None, percent, trio.current_time() + seconds)
        report: dict[str, Json] = {"email": email_of(self.name), "plan_type": "private-plan"}
        report["rate_limit"] = {"primary_window": window, "secondary_window": None}
        if rng.random() < 0.3:  # m2 has a limit of its own
            self.book.roomy.add((self.name, "m2"))
            own = {**window, "used_percent": 7}
            limit = {"limit_name": "m2", "metered_feature": "codex_other"}
            report["additional_rate_limits"] = [limit | {"rate_limit": {"primary_window": own}}]
        return json_response(report)

    ############ an answer over HTTP

    def draw_fault(self, task: Task) -> float:
        """Below 0.6 something goes wrong, or slowly."""
        if self.is_calm or task.is_calm:
            return 1.0
        return self.rng.random() * (0.3 if self.ground.is_harsh else 1.0)

    def new_attempt(self, task: Task, outcome: str) -> Attempt:
        said = "".join(task.words(self.name))
        attempt = Attempt(self.name, outcome, trio.current_time(), said, task=task)
        self.book.judge_asked(self.name, task)
        task.attempts.append(attempt)
        return attempt

    def draw(self, task: Task, asked: Asked, *, is_stream: bool) -> Script:
        """The answer to a request; what is wrong with the account comes before all else."""
        rng, line = self.rng, asked.connection
        attempt = self.new_attempt(task, "whole")
        if any(asked.target.endswith(path) for path in self.lacks):
            said = Said(Trouble("lacks route"), 404, {})
            return self.tell_whole(attempt, said, whole_of(rng.choice(NO_ROUTE)), line)
        if self.is_looping and not self.is_calm:
            return self.draw_refusal(attempt, self.speaker(task).refusal(), line)
        at = self.draw_fault(task)
        headers = private_headers(self.name)
        if is_stream:
            return self.draw_stream(at, task, attempt, headers, line)
        if at < 0.28:
            return self.draw_odd(at, attempt, [], line)
        raw = whole_of(json_response(unary_response(task, self.name), headers=headers))
        attempt.end_at = len(raw)
        return self.draw_rest_of(at, attempt, raw, headers, [])

    def draw_stream(
        self, at: float, task: Task, attempt: Attempt, headers: list[tuple[str, str]], line: Line
    ) -> Script:
        """An answer as events, with a report of the plan in its head or as its first event."""
        is_chat = task.kind == "chat" and not self.is_codex
        respond = chat_response if is_chat else responses_response
        payloads: list[Json] = [*respond(task, self.name)]
        report = self.draw_report(attempt, headers, payloads)
        if is_chat and 0.6 <= at < 0.85:  # or this would be rare
            return self.draw_failure(attempt, payloads, line, is_chat=True)
        if report and (at < 0.28 or 0.4 <= at < 0.45):
            report.waive()
        if at < 0.28:
            return self.draw_odd(at, attempt, payloads, line)
        raw, end_at = stream_of(self.rng, payloads, is_chat=is_chat, headers=headers)
        attempt.end_at = end_at
        if not self.is_codex:
            longest = max(len(sse_event(payload)) for payload in payloads)
            attempt.gauge = Gauge(self.ground.complaints, task, line.socket.outgoing, longest)
        marks = [(report.end_in(raw), report)] if report else []
        return self.draw_rest_of(at, attempt, raw, headers, marks)

    def draw_rest_of(
        self,
        at: float,
        attempt: Attempt,
        raw: bytes,
        headers: list[tuple[str, str]],
        marks: Sequence[tuple[int, Settable]],
    ) -> Script:
        """An answer that begins well."""
        rng = self.rng
        self.book.note_service(attempt)
        if at < 0.6:
            self.book.note_odd(self.name)
        if at < 0.4:
            attempt.outcome = "cut"
            cut = raw[: rng.randrange(len(raw))]
            return [*in_pieces(rng, cut, attempt, LONG, marks=marks), rng.choice(ENDS)]
        if at < 0.45:
            # In one piece: what comes while the next request is under way is taken for its answer.
            attempt.outcome, attempt.is_lie = "more behind it", True
            again = raw  # but for what a client would be told of the account: it is body here
            for name, value in headers:
                again = again.replace(f"{name}: {value}\r\n".encode(), b"")
            return [Send(raw + rng.choice([again, *NOISE])), Fin()]
        steps = in_pieces(rng, raw, attempt, SHORT if at > 0.6 else LONG, marks=marks)
        is_closed = b"\r\ntransfer-encoding" not in raw and b"\r\ncontent-length" not in raw
        return [*steps, Fin()] if is_closed or rng.random() < 0.1 else steps

    def draw_report(
        self, attempt: Attempt, headers: list[tuple[str, str]], payloads: list[Json]
    ) -> Report | None:
        """How far the plan is used up, in the head or in the first event."""
        rng = self.rng
        if not self.is_codex or self.is_calm or rng.random() < 0.6:
            return None
        percent, seconds = rng.choice([4, 40, 96, 100]), rng.choice([600, 5 * 86400])
        ends_at = int(self.ground.unix_now()) + seconds
        if rng.random() < 0.5:
            headers += window_headers("codex", percent, str(ends_at), 300)
        else:
            payloads.insert(0, window_event(percent, ends_at, 300))
        self.ground.note("report")
        return Report(self.book, attempt, percent, trio.current_time() + seconds)

    def speaker(self, task: Task) -> Speaker:
        return Speaker(self.rng, self.name, task.model, self.ground.unix_now())

    def draw_odd(self, at: float, attempt: Attempt, payloads: Sequence[Json], line: Line) -> Script:
        """No whole answer; `payloads`: of a stream."""
        rng, task = self.rng, attempt.task
        assert task is not None
        is_chat = task.kind == "chat" and not self.is_codex
        if 0.03 <= at < 0.11:
            return self.draw_refusal(attempt, self.speaker(task).draw(in_head=True), line)
        if 0.13 <= at < 0.26:
            return self.draw_failure(attempt, payloads, line, is_chat=is_chat)
        self.book.note_service(attempt)
        self.book.note_odd(self.name)
        if at < 0.03:
            return self.draw_status(task, attempt)
        if at < 0.12 and payloads:
            # An event that can be read by some, and written again by few.
            attempt.outcome, attempt.is_lie = "too deep", True
            count = rng.randint(1, len(payloads) - 1)
            deep = rng.choice([DEEP, DEEP_ITEM])
            raw, _ = stream_of(rng, [*payloads[:count], deep, *payloads[count:]], is_chat=False)
            return [*in_pieces(rng, raw, attempt, SHORT), Fin()]
        if at < 0.13 and payloads:
            attempt.outcome, attempt.is_lie = "ended twice", True
            raw, _ = stream_of(rng, [*payloads, *payloads[2:]], is_chat=False)
            return [*in_pieces(rng, raw, attempt, SHORT), Fin()]
        attempt.outcome = "noise"
        return [Send(rng.choice(NOISE)), rng.choice(ENDS)]

    def draw_status(self, task: Task, attempt: Attempt) -> Script:
        """An error before anything else, which is no account's."""
        rng = self.rng
        status = rng.choice(sorted(REPEATABLE | FINAL))
        attempt.outcome, attempt.is_repeatable = str(status), status in REPEATABLE
        if task.has_reasoning and rng.random() < 0.5:
            attempt.outcome, attempt.is_repeatable = "sealed", True
            return error_response(400, "invalid_encrypted_content")
        headers = [("retry-after", str(rng.choice([0, 1, 40])))] if rng.random() < 0.3 else []
        more = {"message": self.speaker(task).words()}
        attempt.end_at = 0
        raw = whole_of(error_response(status, "odd", headers, **more))
        return in_pieces(rng, raw, attempt, SHORT)

    def draw_refusal(self, attempt: Attempt, said: Said, line: Line) -> Script:
        """A trouble of the account as a status with a body."""
        headers = [*private_headers(self.name), *said.headers]
        status = said.status
        raw = whole_of(json_response(body_of(said, self.rng), status, headers))
        return self.tell_whole(attempt, said, raw, line)

    def tell_whole(self, attempt: Attempt, said: Said, raw: bytes, line: Line) -> Script:
        """A trouble that comes before all else."""
        attempt.outcome, attempt.is_repeatable = f"{said.trouble.effect} in a status", True
        attempt.is_doubt, attempt.end_at = said.trouble.effect == "doubt", 0
        telling = Telling(self.book, attempt, said.trouble, line.socket, False)
        self.ground.note(f"carrier: status {said.trouble.effect}")
        return in_pieces(self.rng, raw, attempt, QUICK, marks=[(len(raw), telling)])

    def draw_failure(
        self, attempt: Attempt, payloads: Sequence[Json], line: Line, *, is_chat: bool
    ) -> Script:
        """A 200 that tells of a failure, before its first content or later."""
        rng, task = self.rng, attempt.task
        assert task is not None
        said = self.speaker(task).draw(in_head=False)
        code = rng.choice(["server_is_overloaded", "invalid_prompt", "", "", "", "", ""])
        if code:
            said = Said(Trouble(""), 400, {"code": code, "message": self.speaker(task).words()})
        attempt.end_at = 0
        if not payloads or rng.random() < 0.15:
            return self.tell_in_json(attempt, said, line, code)
        count = rng.choice([0, 1, 2, rng.randint(3, max(3, len(payloads) - 1))])
        # Of a Chat answer the role alone is no content; of the others all is from its third event.
        is_handshake = [self.is_handshake(payload) for payload in payloads[:count]]
        is_early = count <= 1 if is_chat else all(is_handshake)
        attempt.outcome = f"failure {code or said.trouble.effect}{'' if is_early else ', late'}"
        attempt.is_repeatable = is_early and code != "invalid_prompt"
        attempt.is_doubt = said.trouble.effect == "doubt" and is_early
        failed = failed_payload(rng, said.error, count, is_chat=is_chat)
        events = [*payloads[:count], failed]
        raw, end_at = stream_of(rng, events, is_chat=False, headers=private_headers(self.name))
        marks: list[tuple[int, Settable]] = []
        if code:
            self.book.note_service(attempt)
            self.book.note_odd(self.name)
        else:
            telling = Telling(self.book, attempt, said.trouble, line.socket, not is_early)
            marks = [(end_at, telling)]
            carrier = "chunk" if is_chat else "event"
            self.ground.note(f"carrier: {'early' if is_early else 'late'} {carrier}")
        return [*in_pieces(rng, raw, attempt, SHORT, marks=marks), Fin()]

    @staticmethod
    def is_handshake(payload: Json) -> bool:
        kinds = {"response.created", "response.in_progress", "codex.rate_limits"}
        return isinstance(payload, dict) and payload.get("type") in kinds

    def tell_in_json(self, attempt: Attempt, said: Said, line: Line, code: str) -> Script:
        """A failure in a 200 of one piece."""
        attempt.outcome = f"failure {code or said.trouble.effect} in a piece"
        attempt.is_repeatable = code != "invalid_prompt"
        attempt.is_doubt = said.trouble.effect == "doubt"
        raw = whole_of(json_response({"error": said.error}, headers=private_headers(self.name)))
        marks: list[tuple[int, Settable]] = []
        if code:
            self.book.note_service(attempt)
            self.book.note_odd(self.name)
        else:
            telling = Telling(self.book, attempt, said.trouble, line.socket, False)
            marks = [(len(raw), telling)]
            self.ground.note("carrier: piece")
        return in_pieces(self.rng, raw, attempt, QUICK, marks=marks)

    ############ an answer over a WebSocket

    def draw_turn(self, task: Task) -> Script:
        """The answer to a turn of a WebSocket."""
        rng = self.rng
        attempt = self.new_attempt(task, "turn")
        events = responses_response(task, self.name)
        raws = [text_frame(event) for event in events]
        raw, attempt.end_at = b"".join(raws), sum(map(len, raws))
        at = self.draw_fault(task)
        if at < 0.1:
            return self.draw_turn_trouble(task, attempt, raws)
        self.book.note_service(attempt)
        if at < 0.15:
            self.book.note_odd(self.name)
            return self.draw_turn_error(attempt)
        if at < 0.3:
            attempt.outcome = "turn cut"
            self.book.note_odd(self.name)
            cut = raw[: rng.randrange(len(raw))]
            closed = Send(frame(8, b"\x03\xf3", mask=b""))
            return [*in_pieces(rng, cut, attempt, LONG), rng.choice([*ENDS, closed])]
        if at < 0.6:
            self.book.note_odd(self.name)
        late = f"w{task.number}.late "
        extra: Json = {"type": "response.output_text.delta", "delta": late}
        rest = self.draw_rest([extra, DONE, FAILED])
        return [*in_pieces(rng, raw, attempt, SHORT if at > 0.6 else LONG), *rest]

    def draw_turn_error(self, attempt: Attempt) -> Script:
        """A turn that is refused, and that is no account's fault."""
        rng, status = self.rng, self.rng.choice(sorted(REPEATABLE | FINAL))
        code = rng.choice(["odd", "websocket_connection_limit_reached"])
        is_old = code.startswith("websocket")
        attempt.outcome = f"turn {400 if is_old else status}"
        attempt.is_repeatable = is_old or status in REPEATABLE
        error = {"type": code, "code": code, "message": "x", "param": None}
        told = {"type": "error", "status": 400 if is_old else status, "error": error}
        return [Send(text_frame(told)), *self.draw_rest([told, FAILED])]

    def draw_turn_trouble(self, task: Task, attempt: Attempt, raws: Sequence[bytes]) -> Script:
        """A trouble of the account in an event of a turn."""
        rng = self.rng
        said = self.speaker(task).draw(in_head=True)
        while said.trouble.effect == "model limit":  # its frame has no head
            said = self.speaker(task).draw(in_head=True)
        count = rng.choice([0, 0, 1, 2, 4])
        is_early = count <= 2
        told: dict[str, Json] = {"type": "error", "error": said.error}
        needs_status = said.is_detail or said.trouble.effect.startswith("lacks") or said.headers
        if needs_status or rng.random() < 0.6:
            told["status"] = said.status
        if said.headers:
            told["headers"] = dict(said.headers)
        if "status" not in told and rng.random() < 0.5:
            told = failed_payload(rng, said.error, count, is_chat=False)
        attempt.outcome = f"turn {said.trouble.effect}{'' if is_early else ', late'}"
        attempt.is_repeatable = is_early
        attempt.is_doubt = said.trouble.effect == "doubt" and is_early
        attempt.end_at = 0
        assert self.line is not None
        telling = Telling(self.book, attempt, said.trouble, self.line.socket, not is_early)
        self.ground.note(f"carrier: {'early' if is_early else 'late'} frame")
        raw = b"".join([*raws[:count], text_frame(told)])
        pieces = in_pieces(rng, raw, attempt, QUICK, marks=[(len(raw), telling)])
        return [*pieces, *self.draw_rest([told, FAILED])]

    def draw_rest(self, events: Sequence[Json]) -> list[Step]:
        """What may come behind the end of a turn: events, of which one is late or never whole."""
        rng = self.rng
        if not self.happens(0.25):
            return []
        self.book.note_odd(self.name)
        raw = b"".join(map(text_frame, rng.sample(events, rng.randint(1, len(events)))))
        cut = rng.choice([0, len(raw), rng.randrange(len(raw))])
        after = rng.choice([Pause(rng.choice(LONG)), rng.choice(ENDS)])
        return [Send(raw[:cut]), after, *([Send(raw[cut:])] if isinstance(after, Pause) else [])]


def text_frame(event: Json) -> bytes:
    return frame(1, json.dumps(event).encode(), mask=b"")


def failed_payload(
    rng: random.Random, error: dict[str, Json], count: int, *, is_chat: bool
) -> dict[str, Json]:
    """An event that tells of an error, in one of its forms."""
    if is_chat:
        return {"error": error}
    response = {"id": "resp_x", "object": "response", "status": "failed", "error": error}
    forms: list[dict[str, Json]] = [
        {"type": "response.failed", "sequence_number": count, "response": response},
        {"type": "error", "sequence_number": count, "error": error},
    ]
    if "type" not in error:
        forms.append({"type": "error", "sequence_number": count} | error)
    return rng.choice(forms)
