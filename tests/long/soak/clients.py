"""The clients of the soak: each knows what its upstream was told, and judges its answer by that.

(No claims.)
"""

from __future__ import annotations

import itertools
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import trio

from tests.long.soak.upstreams import (
    BREAKS,
    CODEX_MODEL,
    FINAL,
    GOOD,
    MODEL,
    REFUSALS,
    REST_SECONDS,
    SLOW,
    Mark,
    Told,
    chat_chunks,
    pause,
    response_events,
    whole_chat,
    whole_response,
)
from tests.support.memory_sockets import OWN_SIZES, Client, Response, Truncated, post, request
from tests.support.memory_websockets import TERMINAL, SocketClient, read_upgrade, upgrade

if TYPE_CHECKING:
    from tests.support.memory_sockets import MemorySocket

Json = Any
KEYS: Final = {name: f"pool-key-canary-{name}-0123456789" for name in ("open", "codex", "brief")}
OPERATOR: Final = "operator-canary-0123456789"
FAULT_SHARE: Final = 0.05
ANSWER_SECONDS_MAX: Final = 40.0
REFUSED_STATUSES: Final = {429, 500, 503}
BROKEN_STATUSES: Final = {502, 504}
CAPACITY: Final = {"usage_limit_reached", "no_usable_account", "pool_busy"}
LOOK: Final = {"type": "function", "name": "look", "parameters": {"type": "object"}}


class Judged(Exception):
    """An answer that nothing explains."""


class NotOurs(Exception):
    """An answer of somebody before the pooler, or none at all."""


def expect(what: object, why: object) -> None:
    if not what:
        raise Judged(str(why)[:600])


@dataclass
class Ledger:
    """What was asked and how it ended."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    unexplained: list[str] = field(default_factory=list)
    is_ending: bool = False  # no client begins anything more
    is_draining: bool = False  # the server stops
    is_one_leaving: bool = False  # one of several servers does
    drain_ends: Counter[str] = field(default_factory=Counter)
    is_brief_gone: bool = False
    brief_changed_at: float = 0.0
    paused_at: dict[str, float] = field(default_factory=dict)


Explain = Callable[["Browser", float, BaseException], str]


def explain_nothing(_browser: Browser, _began: float, _fault: BaseException) -> str:
    return ""


class Browser:
    """One client program: at most one request at a time, on a connection kept or not.

    `open` makes a connection.  `explain` returns the outcome of a request that failed, if there is
    a reason for that which the upstreams do not know, or "".  `names` are the requests that it
    makes, all of them by default; with a `session` they are of one, and nothing goes wrong.
    """

    def __init__(
        self,
        open: Callable[[], Awaitable[trio.abc.Stream]],  # noqa: A002 (what it does)
        told: Told,
        ledger: Ledger,
        number: int,
        seed: str,
        *,
        explain: Explain = explain_nothing,
        names: frozenset[str] = frozenset(),
        keys: Mapping[str, str] = KEYS,
        session: str = "",
        sizes: re.Pattern[bytes] = OWN_SIZES,
    ) -> None:
        self.open, self.told, self.ledger = open, told, ledger
        self.explain, self.names, self.keys, self.session = explain, names, keys, session
        self.sizes = sizes
        self.random = random.Random(f"{seed} {number}")
        self.number = number
        self.client: Client | None = None
        self.has_begun = False  # there is a head
        self.request_id = ""
        self.mark = Mark(0, GOOD, 0, SLOW)  # the last one
        self.serial = itertools.count(number * 1_000_000)

    async def connect(self) -> Client:
        if self.client is None:
            self.client = Client(cast("MemorySocket", await self.open()), self.sizes)
        return self.client

    async def drop(self) -> None:
        if self.client is not None:
            client, self.client = self.client, None
            await trio.aclose_forcefully(client.stream)

    def new_mark(self, faults: tuple[str, ...]) -> Mark:
        is_fault = not self.session and self.random.random() < FAULT_SHARE
        fault = self.random.choice(faults) if is_fault else GOOD
        pace = SLOW if self.random.random() < 0.15 else "quick"
        self.mark = Mark(next(self.serial), fault, self.random.randint(1, 30), pace)
        return self.mark

    async def run(self) -> None:
        kinds: list[tuple[int, Callable[[], Any]]] = [
            (24, self.responses),
            (16, self.chat),
            (20, self.codex),
            (8, self.native),
            (5, self.socket),
            (5, self.hang_up),
            (6, self.anchored),
            (4, self.models),
            (4, self.usage),
            (3, self.operate),
            (3, self.brief),
            (2, self.wrong),
        ]
        if self.names:
            kinds = [(weight, kind) for weight, kind in kinds if kind.__name__ in self.names]
        weights = [weight for weight, _ in kinds]
        while not self.ledger.is_ending:
            _, kind = self.random.choices(kinds, weights)[0]
            await self.one(kind)
            if self.random.random() < 0.3:
                await self.drop()
            await pause(self.random.expovariate(4))
        await self.drop()

    async def one(self, kind: Callable[[], Any]) -> None:
        name = kind.__name__
        was_draining, began = self.ledger.is_draining, time.monotonic()
        self.has_begun, self.request_id = False, ""
        outcome = "no answer in time"
        try:
            with trio.move_on_after(ANSWER_SECONDS_MAX) as scope:
                outcome = await kind()
            if scope.cancelled_caught:
                raise Judged("no answer in time")
        except (Judged, AssertionError, ValueError, KeyError, IndexError) as fault:
            outcome = self.excuse(name, began, fault)
            await self.drop()
        except (Truncated, NotOurs, OSError, trio.BrokenResourceError) as fault:
            is_begun = isinstance(fault, Truncated) and self.has_begun
            is_untaken = self.ledger.is_draining and not is_begun
            outcome = "not taken, draining" if is_untaken else self.excuse(name, began, fault)
            await self.drop()
        if self.ledger.is_draining and not was_draining:
            self.ledger.drain_ends[outcome] += 1
        self.ledger.outcomes[name, outcome] += 1

    def excuse(self, name: str, began: float, fault: BaseException) -> str:
        """The outcome of what failed."""
        if outcome := self.explain(self, began, fault):
            return outcome
        self.unexplained(name, fault)
        return "UNEXPLAINED"

    def unexplained(self, name: str, fault: BaseException) -> None:
        at = time.strftime("%H:%M:%S")
        self.ledger.unexplained.append(f"{at} {name}: {type(fault).__name__}: {str(fault)[:700]}")
        sys.stderr.write(self.ledger.unexplained[-1] + "\n")  # at once: a soak is long

    ############ judging

    def may_fail(self, mark: Mark, code: str, accounts: str, *, is_anchored: bool = False) -> bool:
        """Whether an error of capacity is explained by what was injected for others."""
        if self.ledger.is_draining and code == "server_stopping":
            return True
        if self.session:  # nothing goes wrong with its accounts
            return False
        # With all others at rest there is one account left, and nobody listens at its address.
        is_dark = code == "upstream_unreachable" and accounts == "o" and not is_anchored
        if code not in CAPACITY and not is_dark:
            return False
        now = time.monotonic()
        down = {
            name
            for times in (self.told.rested_at, self.ledger.paused_at)
            for name, at in times.items()
            if name.startswith(accounts) and now - at < REST_SECONDS
        }
        return bool(down) if is_anchored else len(down) >= 4

    def judge_error(
        self, mark: Mark, status: int, code: str, accounts: str, *, is_anchored: bool = False
    ) -> str:
        why = f"{mark} got {status} {code}, attempts {self.told.attempts[mark.number]}"
        is_played = self.told.attempts[mark.number] > 0
        if mark.fault in FINAL and is_played:
            expect(status == 400, why)
            return f"error of {mark.fault}"
        if mark.fault in REFUSALS and is_played and status in REFUSED_STATUSES:
            return f"error of {mark.fault}"
        if mark.fault in BREAKS and is_played and status in BROKEN_STATUSES:
            return f"error of {mark.fault}"
        expect(self.may_fail(mark, code, accounts, is_anchored=is_anchored), why)
        return f"capacity: {code}"

    def judge_success(self, mark: Mark) -> str:
        expect(mark.number in self.told.ended, f"{mark}: success, but the upstream had not ended")
        expect(mark.fault not in (*BREAKS, *FINAL), f"{mark}: success of what was broken")
        return "ok" if mark.fault == GOOD else "ok elsewhere"

    async def read_stream(self, client: Client) -> list[bytes]:
        """The events without comments."""
        events = []
        is_slow = self.random.random() < 0.1
        while event := await client.read_event():
            if is_slow:
                await pause(0.05)
            if not event.startswith(b":"):
                events.append(event)
        return events

    async def ask(self, raw: bytes) -> tuple[Client, Response]:
        client = await self.connect()
        await client.send(raw)
        head = await client.read_head()
        self.has_begun = True
        self.request_id = head.header("x-request-id") or ""
        if not self.request_id:
            raise NotOurs(f"{head.status}, not the pooler's: {head.headers}")
        return client, head

    async def finish(self, client: Client, head: Response) -> None:
        pieces = []
        while piece := await client.read_piece():
            pieces.append(piece)
        head.body = b"".join(pieces)
        await self.end(head)

    async def end(self, head: Response) -> None:
        if head.header("connection") == "close":
            await self.drop()

    async def judge_refused(
        self,
        mark: Mark,
        client: Client,
        head: Response,
        accounts: str,
        *,
        is_anchored: bool = False,
    ) -> str:
        await self.finish(client, head)
        code = str(head.error.get("code"))
        return self.judge_error(mark, head.status, code, accounts, is_anchored=is_anchored)

    def judge_failed_event(self, mark: Mark, event: Json, accounts: str) -> str:
        error = event.get("error") or event.get("response", {}).get("error")
        expect(isinstance(error, dict), event)
        code = str(error.get("code"))
        if self.ledger.is_draining and code == "server_stopping":
            return "ended by the drain"
        expect(mark.fault in (*BREAKS, *REFUSALS), f"{mark} failed with {error}")
        return f"failed of {mark.fault}"

    def is_ended_by_the_drain(self, events: list[bytes], whole: list[bytes]) -> bool:
        """Whether the drain ended just between the terminal event and the `[DONE]` behind it."""
        return self.ledger.is_draining and events == whole[:-1]

    def judge_responses(
        self, mark: Mark, events: list[bytes], accounts: str, *, exact: bool
    ) -> str:
        values = [
            json.loads(event.partition(b"data: ")[2])
            for event in events
            if b"data: [DONE]" not in event
        ]
        kinds = [value["type"] for value in values]
        terminal = [kind for kind in kinds if kind in TERMINAL]
        expect(len(terminal) == 1, f"{mark}: terminals {kinds[-4:]}")
        expect(kinds[-1] == terminal[0], f"{mark}: after the terminal: {kinds[-4:]}")
        text = "".join(
            value["delta"] for value in values if value["type"] == "response.output_text.delta"
        )
        expect(mark.text().startswith(text), f"{mark}: another text: {text[-200:]}")
        if terminal[0] == "response.completed":
            expect(text == mark.text(), f"{mark}: not the whole text")
            if exact and self.is_ended_by_the_drain(events, response_events(mark)):
                return "whole, [DONE] cut by the drain"
            if exact:
                expect(events == response_events(mark), f"{mark}: other bytes")
            return self.judge_success(mark)
        return self.judge_failed_event(mark, values[-1], accounts)

    def judge_chat(self, mark: Mark, events: list[bytes], accounts: str, *, exact: bool) -> str:
        dones = [event for event in events if event == b"data: [DONE]\n\n"]
        values = [
            json.loads(event.partition(b"data: ")[2]) for event in events if event not in dones
        ]
        deltas = [
            choice["delta"].get("content") or ""
            for value in values
            for choice in value.get("choices", [])
        ]
        text = "".join(deltas)
        expect(mark.text().startswith(text), f"{mark}: another text: {text[-200:]}")
        errors = [value for value in values if "error" in value]
        if exact and self.is_ended_by_the_drain(events, chat_chunks(mark)):
            return "whole, [DONE] cut by the drain"
        expect(len(errors) + len(dones) == 1, f"{mark}: {len(errors)} errors, {len(dones)} ends")
        if errors:
            expect(values[-1] is errors[0], f"{mark}: something after the error")
            return self.judge_failed_event(mark, errors[0], accounts)
        expect(events[-1] == dones[0], f"{mark}: something after the end")
        expect(text == mark.text(), f"{mark}: not the whole text")
        if exact:
            expect(events == chat_chunks(mark), f"{mark}: other bytes")
        return self.judge_success(mark)

    ############ kinds of requests

    def headers(self) -> list[tuple[str, str]]:
        if self.session:
            return [] if self.is_in_body else [("session-id", self.session)]
        headers = []
        if self.random.random() < 0.5:
            headers.append(("session-id", f"session-{self.number}-{self.random.randint(1, 3)}"))
        return headers

    @property
    def is_in_body(self) -> bool:
        """Whether its session is named there, and not in a header."""
        return bool(self.number % 2)

    def post(self, path: str, body: Json, key: str) -> bytes:
        if self.session and self.is_in_body:
            body = body | {"prompt_cache_key": self.session}
        return post(path, body, key=key, headers=self.headers())

    async def responses(self) -> str:
        mark = self.new_mark((*REFUSALS, *BREAKS, *FINAL))
        return await self.ask_responses(mark)

    async def ask_responses(self, mark: Mark, anchor: str = "") -> str:
        is_stream = self.random.random() < 0.7
        body = {"model": MODEL, "input": mark.prompt(), "stream": is_stream}
        if self.random.random() < 0.3:
            body["tools"] = [LOOK]
        if anchor:
            body["previous_response_id"] = anchor
        client, head = await self.ask(self.post("/v1/responses", body, self.keys["open"]))
        if head.status != 200:
            return await self.judge_refused(mark, client, head, "o", is_anchored=bool(anchor))
        if is_stream:
            events = await self.read_stream(client)
            await self.end(head)
            return self.judge_responses(mark, events, "o", exact=True)
        await self.finish(client, head)
        expect(head.json() == whole_response(mark), f"{mark}: another answer")
        return self.judge_success(mark)

    async def anchored(self) -> str:
        first = self.new_mark((GOOD,))
        made = await self.ask_responses(first)
        if made != "ok":
            return f"first {made}"
        return await self.ask_responses(self.new_mark((*REFUSALS, *BREAKS)), f"resp_{first.number}")

    async def chat(self) -> str:
        mark = self.new_mark((*REFUSALS, *BREAKS, *FINAL))
        is_stream = self.random.random() < 0.7
        messages = [{"role": "user", "content": mark.prompt()}]
        body = {"model": MODEL, "messages": messages, "stream": is_stream}
        client, head = await self.ask(self.post("/v1/chat/completions", body, self.keys["open"]))
        if head.status != 200:
            return await self.judge_refused(mark, client, head, "o")
        if is_stream:
            events = await self.read_stream(client)
            await self.end(head)
            return self.judge_chat(mark, events, "o", exact=True)
        await self.finish(client, head)
        expect(head.json() == whole_chat(mark), f"{mark}: another answer")
        return self.judge_success(mark)

    async def codex(self) -> str:
        """Either route of `/v1`, translated."""
        mark = self.new_mark((*REFUSALS, *BREAKS, *FINAL))
        is_stream, is_chat = self.random.random() < 0.7, self.random.random() < 0.5
        said = [{"role": "user", "content": mark.prompt()}]
        body = {"model": CODEX_MODEL, "stream": is_stream}
        body |= {"messages": said} if is_chat else {"input": said}
        path = "/v1/chat/completions" if is_chat else "/v1/responses"
        client, head = await self.ask(self.post(path, body, self.keys["codex"]))
        if head.status != 200:
            return await self.judge_refused(mark, client, head, "acct-")
        if is_stream:
            events = await self.read_stream(client)
            await self.end(head)
            judge = self.judge_chat if is_chat else self.judge_responses
            return judge(mark, events, "acct-", exact=False)
        await self.finish(client, head)
        answer = head.json()
        if is_chat:
            text = answer["choices"][0]["message"]["content"]
        else:
            items = [item for item in answer["output"] if item["type"] == "message"]
            text = items[0]["content"][0]["text"]
        expect(text == mark.text(), f"{mark}: another answer: {answer}")
        return self.judge_success(mark)

    def native_body(self, mark: Mark) -> Json:
        said = {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": mark.prompt()}],
        }
        return {
            "model": CODEX_MODEL,
            "instructions": "",
            "input": [said],
            "store": False,
            "stream": True,
        }

    async def native(self) -> str:
        if self.random.random() < 0.2:
            path = "/backend-api/codex/models?client_version=1.0.0"
            return await self.get(path, self.keys["codex"])
        mark = self.new_mark((*REFUSALS, *BREAKS, *FINAL))
        raw = self.post("/backend-api/codex/responses", self.native_body(mark), self.keys["codex"])
        client, head = await self.ask(raw)
        if head.status != 200:
            return await self.judge_refused(mark, client, head, "acct-")
        events = [event for event in await self.read_stream(client) if b"keepalive" not in event]
        await self.end(head)
        return self.judge_responses(mark, events, "acct-", exact=False)

    async def socket(self) -> str:
        """A WebSocket with a few turns; the later ones refer to the one before."""
        await self.drop()
        client = await self.connect()
        await client.send(upgrade(key=self.keys["codex"]))
        try:
            web = await read_upgrade(client)
        except AssertionError as refused:
            raise NotOurs(f"no upgrade: {refused}") from refused
        outcome, anchor = "no turn", ""
        for _ in range(self.random.randint(1, 4)):
            outcome, anchor = await self.turn(web, anchor)
            if outcome not in {"ok", "ok elsewhere"}:
                break
        await self.drop()
        return outcome

    async def turn(self, web: SocketClient, anchor: str) -> tuple[str, str]:
        mark = self.new_mark((*REFUSALS, "cut", *FINAL))
        said = {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": mark.prompt()}],
        }
        more = {"previous_response_id": anchor} if anchor else {}
        await web.create(model=CODEX_MODEL, input=[said], **more)
        self.has_begun = True
        try:
            events = await web.read_turn()
        except AssertionError as other:
            # Closed as it stops: well, where the turn had not been taken up.
            is_closed = str(other).startswith("(8, b'\\x03\\xe9')")
            is_taken = self.told.attempts[mark.number] > 0
            is_leaving = self.ledger.is_draining or self.ledger.is_one_leaving
            if not (is_closed and is_leaving and not is_taken):
                raise Judged(f"{mark}, anchor {anchor!r}, taken {is_taken}: {other}") from other
            return "not taken, draining", ""
        self.has_begun = False
        last = events[-1]
        text = "".join(
            event["delta"] for event in events if event["type"] == "response.output_text.delta"
        )
        expect(mark.text().startswith(text), f"{mark}: another text: {text[-200:]}")
        if last["type"] == "response.completed":
            expect(text == mark.text(), f"{mark}: not the whole text")
            return self.judge_success(mark), str(last["response"]["id"])
        error = last.get("error") or last.get("response", {}).get("error")
        code = str(error.get("code"))
        if code == "previous_response_not_found" and anchor:
            # Lost: by a fault of this very turn, or by a reload that paused the account.
            is_ours = mark.fault != GOOD
            expect(is_ours or self.is_near_a_change(), f"{mark}: lost its anchor: {last}")
            return "anchor lost" if is_ours else "anchor lost by another fault", ""
        if mark.fault != GOOD and self.told.attempts[mark.number]:
            return f"error of {mark.fault}", ""
        status = int(last.get("status") or 0)
        return self.judge_error(mark, status, code, "acct-", is_anchored=bool(anchor)), ""

    def is_near_a_change(self) -> bool:
        times = [*self.told.rested_at.values(), *self.ledger.paused_at.values()]
        return any(time.monotonic() - at < REST_SECONDS for at in times)

    async def hang_up(self) -> str:
        """Leave in the middle, or before the head."""
        mark = Mark(next(self.serial), GOOD, 30, SLOW)
        await self.drop()
        client = await self.connect()
        body = {"model": MODEL, "input": mark.prompt(), "stream": True}
        await client.send(self.post("/v1/responses", body, self.keys["open"]))
        if self.random.random() < 0.3:
            await pause(self.random.random() * 0.3)
        else:
            head = await client.read_head()
            for _ in range(self.random.randint(0, 4) if head.status == 200 else 0):
                await client.read_event()
        await self.drop()
        return "left"

    async def get(self, path: str, key: str, *, accept: str = "*/*") -> str:
        client, head = await self.ask(request("GET", path, key=key, headers=[("Accept", accept)]))
        await self.finish(client, head)
        expect(head.status == 200, f"{path}: {head.status} {head.body[:300]!r}")
        return "ok"

    async def models(self) -> str:
        return await self.get("/v1/models", self.keys[self.random.choice(["open", "codex"])])

    async def usage(self) -> str:
        return await self.get("/v1/usage", self.keys[self.random.choice(["open", "codex"])])

    async def operate(self) -> str:
        path = self.random.choice(["/admin", "/metrics", "/mcp"])
        if path != "/mcp":
            return await self.get(path, OPERATOR)
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
        headers = [("Accept", "application/json, text/event-stream")]
        client, head = await self.ask(post(path, call, key=OPERATOR, headers=headers))
        await self.finish(client, head)
        expect(head.status == 200, f"{path}: {head.status} {head.body[:300]!r}")
        return "ok"

    async def brief(self) -> str:
        """With the key that comes and goes."""
        was_gone = self.ledger.is_brief_gone
        mark = self.new_mark((GOOD,))
        body = {"model": MODEL, "input": mark.prompt(), "stream": False}
        client, head = await self.ask(self.post("/v1/responses", body, self.keys["brief"]))
        if head.status == 401:
            await self.finish(client, head)
            is_near = time.monotonic() - self.ledger.brief_changed_at < 5
            expect(was_gone or self.ledger.is_brief_gone or is_near, "401 for a key that stands")
            return "401, the key is gone"
        if head.status != 200:
            return await self.judge_refused(mark, client, head, "o")
        await self.finish(client, head)
        is_near = time.monotonic() - self.ledger.brief_changed_at < 5
        expect(not was_gone or is_near, "served with a key that is gone")
        return self.judge_success(mark)

    async def wrong(self) -> str:
        """What is refused whatever the upstreams do."""
        await self.drop()
        client, head = await self.ask(request("GET", "/v1/models", key="not-a-key-0123456789"))
        await self.finish(client, head)
        expect(head.status == 401, head.status)
        return "401"
