"""A ChatGPT Codex backend and its token endpoint, as strict as the real ones.  (No claims.)

It stands in for two servers: `/backend-api/codex/...` (F1) and `/oauth/token`
(F52, F53).  Three ways to use it:

- on any stream: `await CodexBackend().serve(stream)`;
- on a real socket in a trio test: `origin = await nursery.start(backend.listen)`;
- as a process: `python -m tests.support.codex_backend`, which prints its address, is told what
  to do as JSON (`POST /_control`, see `CodexBackend.control`), tells what it saw (`GET /_seen`).

Logins are made with `make_auth_file`, which writes the file of a Codex CLI, and let in with
`admit`.  A request is answered with a text, unless a `Play` says otherwise: what is refused and
what a turn looks like is in `codex_turns.py`.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import os
import signal
import sys
import time
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import h11
import trio

from tests.support.codex_turns import (
    ENCRYPTED,
    ERRORS,
    FOUND,
    LITE_MODELS,
    MODELS,
    TURN_STATE,
    Answer,
    Json,
    Login,
    Pairs,
    Play,
    Refused,
    TokenPlay,
    check_body,
    check_search,
    deny,
    encode_part,
    error_body,
    framed,
    has_encrypted_content,
    limit_headers,
    make_events,
    make_items,
    usage,
    usage_report,
)
from tests.support.codex_websocket import serve_socket

__all__ = ["CodexBackend", "Login", "Play", "Seen", "TokenPlay", "make_auth_file", "make_token"]

PREFIX: Final = "/backend-api/codex"
USAGE_PATH: Final = "/backend-api/wham/usage"  # not under the prefix (F36)
CLIENT_ID: Final = "app_EMoamEEZ73f0CkXaXp7hrann"  # Codex CLI's public one
TOKEN_SECONDS: Final = 10 * 24 * 3600  # of a token that a refresh gets

################################################################
# LOGINS
################################################################


def make_token(account_id: str, plan: str, expires_at: float, serial: str = "1") -> str:
    """A JWT without a signature; `expires_at` is in unix seconds."""
    claims = {
        "exp": int(expires_at),
        "jti": serial,
        "email": f"{account_id}@example.com",
        "https://api.openai.com/auth": {
            "chatgpt_account_id": account_id,
            "chatgpt_plan_type": plan,
            "chatgpt_user_id": f"user-{account_id}",
        },
    }
    return f"{encode_part({'alg': 'none', 'typ': 'JWT'})}.{encode_part(claims)}.c2lnbmF0dXJl"


def expiry(token: str) -> float:
    payload = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return float(claims["exp"])


def make_auth_file(
    path: Path,
    account_id: str,
    plan: str = "plus",
    expires_at: float | None = None,
    refresh_token: str = "",
    **more: Json,
) -> Login:
    """Write what `codex login` leaves there (F49); `more` are further top-level keys."""
    expires_at = time.time() + TOKEN_SECONDS if expires_at is None else expires_at
    access_token = make_token(account_id, plan, expires_at)
    login = Login(account_id, access_token, refresh_token or f"rt-{account_id}-1", plan)
    tokens = {
        "id_token": make_token(account_id, plan, expires_at, "id"),
        "access_token": login.access_token,
        "refresh_token": login.refresh_token,
        "account_id": account_id,
    }
    written_at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    content = {"OPENAI_API_KEY": None, "tokens": tokens, "last_refresh": written_at, **more}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))
    os.chmod(path, 0o600)
    return login


################################################################
# THE WIRE
################################################################


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as it came; the names of headers are in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Json  # None if it is no JSON
    connection: int = 0  # the number of the WebSocket that it came on

    @property
    def account(self) -> str:
        return self.headers.get("chatgpt-account-id", "")


class Wire:
    """One connection, as HTTP/1.1."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.http = h11.Connection(h11.SERVER)

    async def next_event(self) -> object:
        while True:
            event = self.http.next_event()
            if event is not h11.NEED_DATA:
                return event
            self.http.receive_data(bytes(await self.stream.receive_some(65536)))

    async def read_request(self) -> Seen | None:
        """The next request, or None at the end of the connection."""
        if self.http.our_state is h11.MUST_CLOSE:
            return None
        if self.http.our_state is h11.DONE:
            self.http.start_next_cycle()
        head = await self.next_event()
        if not isinstance(head, h11.Request):
            return None
        raw = bytearray()
        while isinstance(event := await self.next_event(), h11.Data):
            raw += event.data
        if not isinstance(event, h11.EndOfMessage):
            return None
        headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
        target = urlsplit(head.target.decode())
        body = read_body(bytes(raw), headers)
        return Seen(head.method.decode(), target.path, dict(parse_qsl(target.query)), headers, body)

    async def send(self, event: h11.Event) -> None:
        data = self.http.send(event)
        assert data is not None
        await self.stream.send_all(data)

    async def answer(self, answer: Answer) -> None:
        is_raw = isinstance(answer.body, bytes)
        data = answer.body if is_raw else json.dumps(answer.body).encode()
        headers = [("content-length", str(len(data))), *answer.headers]
        if not is_raw:
            headers.append(("content-type", "application/json"))
        head = h11.Response(status_code=answer.status, headers=headers)
        # In one piece: of a refused upgrade Codex CLI reads no more than comes with the head.
        sent = [self.http.send(event) for event in (head, h11.Data(data=data), h11.EndOfMessage())]
        await self.stream.send_all(b"".join(part for part in sent if part))

    async def wait_left(self) -> None:
        """Until the caller has gone."""
        while await self.stream.receive_some(65536):
            pass


def read_body(raw: bytes, headers: Mapping[str, str]) -> Json:
    """The JSON of a body; None if it is none, or is compressed in a way that is not known here."""
    try:
        if headers.get("content-encoding") == "gzip":
            raw = gzip.decompress(raw)
        if headers.get("content-type") == "application/x-www-form-urlencoded":
            return dict(parse_qsl(raw.decode()))
        return json.loads(raw)
    except (OSError, EOFError, ValueError, zlib.error):
        return None


################################################################
# THE BACKEND
################################################################


def model_info(slug: str) -> Json:
    """An entry of the model list (F20), with the fields that Codex CLI asks for."""
    is_lite = slug in LITE_MODELS
    return {
        "slug": slug,
        "display_name": slug.upper(),
        "description": "A model of the tests.",
        "default_reasoning_level": "medium",
        "supported_reasoning_levels": [
            {"effort": effort, "description": effort} for effort in MODELS[slug]
        ],
        "shell_type": "shell_command",
        "visibility": "list",
        "supported_in_api": True,
        "priority": 1,
        "upgrade": None,
        "base_instructions": "You are a model of the tests.",
        "supports_reasoning_summaries": True,
        "support_verbosity": True,
        "default_verbosity": "low",
        "apply_patch_tool_type": "freeform",
        "truncation_policy": {"mode": "tokens", "limit": 10000},
        "supports_parallel_tool_calls": True,
        "context_window": 272000,
        "experimental_supported_tools": [],
        "input_modalities": ["text", "image"],
        "minimal_client_version": "0.166.0" if is_lite else "0.98.0",
        "use_responses_lite": is_lite,
        "tool_mode": "code_mode_only" if is_lite else None,
    }


Route = tuple[str, str]  # method and path
Handler = Callable[[Wire, Seen], Awaitable[bool]]  # it returns whether the connection stays open
TURNS: Final[Route] = ("POST", f"{PREFIX}/responses")


class CodexBackend:
    """The state of both servers: who may come in, what is to be played, what was asked.

    What else it does is given to it: `note_login` is called with each login that is let in,
    `choose_play` returns the play for a request, `handlers` serve what is more than one response.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock  # unix seconds
        self.logins: dict[str, Login] = {}  # by access token; also those that have run out
        self.refreshable: dict[str, Login] = {}  # by the refresh token, until it is spent
        self.spent: set[str] = set()
        self.plays: list[Play] = []
        self.token_plays: deque[TokenPlay] = deque()
        self.token_seconds: float = TOKEN_SECONDS
        self.token_gate = trio.Event()  # refreshes wait for it
        self.token_gate.set()
        self.token_asked = trio.Event()  # somebody waits there
        self.seen: list[Seen] = []
        self.usage_seen: list[Seen] = []  # requests of the pooler's own for quota
        self.left = trio.Event()  # a caller left before its answer had ended
        self.turn_count = 0
        self.sealed: set[str] = set()  # the encrypted contents that were handed out
        self.socket_count = 0  # how many WebSockets were let in
        self.open_sockets = 0

        self.note_login: Callable[[Login], None] | None = None
        self.choose_play: Callable[[Seen, str], Play] = self.next_play
        # Those of them that write more than one whole response, or cut the connection.
        self.handlers: dict[Route, Handler] = {
            TURNS: self.respond,
            ("GET", f"{PREFIX}/responses"): partial(serve_socket, self),
            ("POST", "/oauth/token"): self.renew,
        }

    def admit(self, login: Login) -> None:
        """Let a login in; its refresh token works once."""
        self.logins[login.access_token] = login
        self.refreshable[login.refresh_token] = login
        if self.note_login is not None:
            self.note_login(login)

    def forget(self) -> None:
        """Nobody may come in, nothing is to be played, and nothing was seen."""
        self.logins.clear()
        self.refreshable.clear()
        self.spent.clear()
        self.plays.clear()
        self.token_plays.clear()
        self.token_gate.set()
        self.seen.clear()
        self.left = trio.Event()

    def asked(self, path: str = f"{PREFIX}/responses") -> list[Seen]:
        """The requests to a path, oldest first."""
        return [seen for seen in self.seen if seen.path == path]

    def accounts(self) -> list[str]:
        """The account ids that turns over HTTP were asked for, oldest first."""
        return [seen.account for seen in self.asked()]

    async def listen(
        self, port: int = 0, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve on the loopback address for ever; the task's value is the origin."""
        (listener,) = await trio.open_tcp_listeners(port, host="127.0.0.1")
        bound = listener.socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self.serve, [listener])
            task_status.started(f"http://127.0.0.1:{bound}")

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Own `stream`: serve its requests until one side closes."""
        wire = Wire(stream)
        try:
            while (seen := await wire.read_request()) is not None:
                if not await self.answer(wire, seen):
                    break
        except trio.BrokenResourceError:
            self.left.set()
        except h11.RemoteProtocolError:
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async def answer(self, wire: Wire, seen: Seen) -> bool:
        """Serve a request; return False if the connection must be cut."""
        routes = {
            ("POST", "/_control"): self.control,
            ("GET", "/_seen"): self.tell,
            ("GET", f"{PREFIX}/models"): self.list_models,
            ("GET", USAGE_PATH): self.tell_usage,
            ("POST", f"{PREFIX}/responses/compact"): self.compact,
            ("POST", f"{PREFIX}/alpha/search"): self.search,
        }
        route = (seen.method, seen.path)
        if seen.path == USAGE_PATH:  # nobody's request caused it
            self.usage_seen.append(seen)
        elif not seen.path.startswith("/_"):
            self.seen.append(seen)
        try:
            if route in self.handlers:
                return await self.handlers[route](wire, seen)
            if route not in routes:
                deny("Not Found", 404)
            await wire.answer(routes[route](seen))
        except Refused as refused:
            await wire.answer(refused.answer)
        return True

    ############ the backend's routes

    def authenticate(self, seen: Seen) -> Login:
        """The account that the headers of a request name (F17).  Raises: Refused."""
        scheme, _, token = seen.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer":
            deny("Unauthorized", 401)
        login = self.logins.get(token)
        if login is None:
            raise Refused(Answer(401, error_body("token_invalidated", "The token is not known.")))
        if expiry(token) <= self.clock():
            raise Refused(Answer(401, error_body("token_expired", "The token is expired.")))
        if seen.account != login.account_id:
            deny("The account does not match the token.", 403)
        return login

    def check_caller(self, seen: Seen) -> Login:
        """The caller of a request with JSON.  Raises: Refused."""
        login = self.authenticate(seen)
        if seen.headers.get("content-type", "").partition(";")[0] != "application/json":
            deny("Unsupported media type", 415)
        return login

    def check_posted(self, seen: Seen, *, is_compact: bool = False) -> Login:
        """The caller of a request that is well formed.  Raises: Refused."""
        login = self.check_caller(seen)
        check_body(seen.body, headers=seen.headers, is_compact=is_compact)
        return login

    def play_for(self, seen: Seen, login: Login, at: str = "turn") -> Play:
        """The play for a request.  Raises: Refused, if that or the request itself is an error."""
        play = self.choose_play(seen, at)
        if play.error:
            raise Refused(ERRORS[play.error](login, play, self.clock()))
        if play.status:
            raise Refused(Answer(play.status, play.body, tuple(play.headers.items())))
        items = [] if at in {"upgrade", "search"} else seen.body["input"]
        sealed = {item.get("encrypted_content") for item in items}
        if sealed - self.sealed - {None}:
            raise Refused(ERRORS["encrypted_a"](login, play, self.clock()))
        return play

    def next_play(self, seen: Seen, at: str) -> Play:
        """The first play that matches; it is used up once."""
        for index, play in enumerate(self.plays):
            if play.at != at or play.account not in {"", seen.account}:
                continue
            if play.with_tools and not seen.body.get("tools"):
                continue
            if play.error in ENCRYPTED and not has_encrypted_content(seen.body):
                continue
            if play.count:
                left = [replace(play, count=play.count - 1)] if play.count > 1 else []
                self.plays[index : index + 1] = left
            return play
        return Play()

    async def respond(self, wire: Wire, seen: Seen) -> bool:
        login = self.check_posted(seen)
        play = self.play_for(seen, login)
        self.turn_count += 1
        events = make_events(seen.body, play, login, self.turn_count, self.clock())
        self.remember(events)
        headers = [*limit_headers(login, self.clock()), *self.turn_headers(seen)]
        if play.has_content_type:
            headers.append(("content-type", "text/event-stream"))
        await wire.send(h11.Response(status_code=200, headers=headers))
        for event in events:
            await wire.send(h11.Data(data=framed(event, play.newline)))
        if play.ends == "stall":
            await wire.wait_left()
            self.left.set()
        if play.ends in {"stall", "cut"}:
            return False
        await wire.send(h11.EndOfMessage())
        return True

    def turn_headers(self, seen: Seen) -> Pairs:
        return [
            ("x-codex-turn-state", f"{TURN_STATE}-{seen.account}"),
            ("openai-model", seen.body["model"]),
            ("x-reasoning-included", "true"),
            ("x-request-id", f"req-{self.turn_count}"),
        ]

    def remember(self, events: list[dict[str, Json]]) -> None:
        items = [event.get("item", {}) for event in events]
        self.sealed |= {item["encrypted_content"] for item in items if "encrypted_content" in item}

    def compact(self, seen: Seen) -> Answer:
        """A conversation shortened, in one piece (F27)."""
        login = self.check_posted(seen, is_compact=True)
        self.play_for(seen, login)
        self.turn_count += 1
        sealed = f"gAAAA{encode_part([login.account_id, self.turn_count])}"
        self.sealed.add(sealed)
        items = make_items({"input": [{"type": "compaction_trigger"}]}, Play(), sealed)
        return Answer(
            200, {"output": items, "usage": usage(Play())}, limit_headers(login, self.clock())
        )

    def search(self, seen: Seen) -> Answer:
        """What Codex CLI asks when its model looks something up."""
        login = self.check_caller(seen)
        check_search(seen.body)
        play = self.choose_play(seen, "search")
        if play.error:
            raise Refused(ERRORS[play.error](login, play, self.clock()))
        return Answer(200, {"output": FOUND, "encrypted_output": None})

    def list_models(self, seen: Seen) -> Answer:
        """The model list (F20); without a version all models are too new."""
        self.authenticate(seen)
        models = [model_info(slug) for slug in MODELS if "client_version" in seen.query]
        return Answer(200, {"models": models}, [("etag", 'W/"models-1"')])

    def tell_usage(self, seen: Seen) -> Answer:
        """The quota of the account that asks (F36)."""
        login = self.authenticate(seen)
        play = self.choose_play(seen, "usage")
        if play.error:
            raise Refused(ERRORS[play.error](login, play, self.clock()))
        if play.status:
            raise Refused(Answer(play.status, play.body, tuple(play.headers.items())))
        return Answer(200, usage_report(login, self.clock()))

    ############ the token endpoint

    async def renew(self, wire: Wire, seen: Seen) -> bool:
        """A refresh token can be used once (F53)."""
        self.token_asked.set()
        await self.token_gate.wait()
        form = seen.body if isinstance(seen.body, dict) else {}
        if form.get("client_id") != CLIENT_ID or form.get("grant_type") != "refresh_token":
            raise Refused(Answer(400, {"error": "invalid_request"}))
        token = str(form.get("refresh_token"))
        if self.token_plays:
            play = self.token_plays.popleft()
            if play.is_spent:
                self.exchange(token)
            if not play.status:
                return False
            raise Refused(Answer(play.status, play.body()))
        await wire.answer(Answer(200, self.exchange(token)))
        return True

    def exchange(self, token: str) -> Json:
        """Raises: Refused."""
        login = self.refreshable.pop(token, None)
        if login is None:
            code = "refresh_token_reused" if token in self.spent else "refresh_token_invalidated"
            raise Refused(Answer(401, error_body(code, "The refresh token is not good.")))
        self.spent.add(token)
        stem, _, number = token.rpartition("-")
        serial = f"{stem}-{int(number) + 1}" if number.isdigit() else f"{token}-2"
        expires_at = self.clock() + self.token_seconds
        access_token = make_token(login.account_id, login.plan, expires_at, serial)
        self.admit(replace(login, access_token=access_token, refresh_token=serial))
        return {
            "id_token": make_token(login.account_id, login.plan, expires_at, "id"),
            "access_token": access_token,
            "refresh_token": serial,
            "expires_in": int(self.token_seconds),
        }

    ############ the test's own

    def control(self, seen: Seen) -> Answer:
        """Each field is optional: forget, logins, plays, token_plays, holds_tokens."""
        orders = seen.body
        if orders.get("forget"):
            self.forget()
        for login in orders.get("logins", []):
            self.admit(Login(**login))
        self.plays += [Play(**play) for play in orders.get("plays", [])]
        self.token_plays += [TokenPlay(**play) for play in orders.get("token_plays", [])]
        if orders.get("holds_tokens"):
            self.token_gate = trio.Event()
        elif orders.get("holds_tokens") is False:
            self.token_gate.set()
        return Answer(200, {})

    def tell(self, _seen: Seen) -> Answer:
        seen = [asdict(request) for request in self.seen]
        return Answer(
            200,
            {"seen": seen, "has_left": self.left.is_set(), "open_sockets": self.open_sockets},
        )


################################################################
# THE PROCESS
################################################################


async def run(port: int, backend: CodexBackend) -> None:
    """Until SIGTERM."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            origin = await nursery.start(backend.listen, port)
            sys.stdout.write(f"listening on {origin}\n")
            sys.stdout.flush()
            await anext(signals)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A fake ChatGPT Codex backend on loopback.")
    parser.add_argument("--port", type=int, default=0)
    trio.run(run, parser.parse_args().port, CodexBackend())
