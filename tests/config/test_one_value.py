"""Proves that no reload, at any moment, sends a credential to a server it was not configured for.

Method: the same account name stands for one server and login before a reload, and for another
server with another login after it. Each scenario is repeated once for each step that the pooler's
tasks take in it, with the reload before a different step each time. So it comes between every two
awaits: of requests, of requests that wait for a place, of model lists and of refreshes.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from pooler import REFRESH_URL_VARIABLE, BaseUrl, Config, parse_config
from tests.conftest import run_inline
from tests.support.codex_backend import make_auth_file, make_token
from tests.support.memory_sockets import KEY, OTHER_KEY, Json, Truncated, post, request
from tests.support.memory_websockets import open_socket, turn
from tests.support.world import (
    TOKEN_PATH,
    UNIX_START,
    Asked,
    FakeUpstream,
    Pause,
    Script,
    Service,
    Step,
    World,
    error_response,
    json_response,
    responses_events,
    sse_response,
)

OLD, NEW, TOKEN_PORT = 9001, 9101, 9999
FAR: Final = UNIX_START + 10**6
OWNER: Final = {OLD: "old", NEW: "new"}
STEPS_MAX: Final = 2000  # of the pooler's tasks in one scenario: far more than any takes


class Elsewhere:
    """Every address has a server of its own, which records whose credentials each request has."""

    def __init__(self, config: Config, nursery: trio.Nursery) -> None:
        self.world = World(config, nursery, find_service=self.service_at)
        self.seen: set[tuple[int, str]] = set()  # ports, and whose credentials came there

    def service_at(self, url: BaseUrl) -> Service:
        return self.server(url.port).connect

    def server(self, port: int) -> FakeUpstream:
        """The server at a port."""
        name = str(port)
        if name not in self.world.upstreams:
            server = self.world.upstream(name)
            server.always = respond
            server.on_turn = respond_to_turn
            server.observe = partial(self.check, port)
            server.catalogue = json_response({"data": [{"id": "m1"}], "models": []})
        return self.world.upstreams[name]

    def check(self, port: int, asked: Asked) -> None:
        """Note whose credentials a request has, and complain if they are not for this server."""
        sent = (asked.header("authorization") or "") + (asked.header("chatgpt-account-id") or "")
        sent += asked.body.decode() if port == TOKEN_PORT else ""
        for name in ("old", "new"):
            tokens = (f"sk-{name}", f"rt-{name}", make_token(name, "plus", FAR), f"acct-{name}")
            again = make_token(name, "plus", FAR + 7)
            due = make_token(name, "plus", UNIX_START + 100)
            if any(token in sent for token in (*tokens, again, due)):
                self.seen.add((port, name))
                if port != TOKEN_PORT and OWNER[port] != name:
                    self.world.complaints.append(f"{port} was sent the credentials of {name}")


def respond(asked: Asked) -> Script:
    """The script for a request to any of the servers, the token endpoint included."""
    if asked.target == TOKEN_PATH:
        name = asked.json()["refresh_token"].split("-")[1]
        token = make_token(name, "plus", FAR + 7)
        return json_response({"access_token": token, "refresh_token": f"rt-{name}-2"})
    if asked.json().get("stream"):
        return [Pause(0.5), *sse_response(responses_events("hi"))]
    return [Pause(0.5), *json_response({"id": "r"})]


def respond_to_turn(_body: Json) -> Script:
    steps: list[Step] = [Pause(0.5), *turn("hi")]
    return steps


class Reloading(trio.abc.Instrument):
    """Acts once, before a task of the pooler takes its step of that number."""

    def __init__(self, number: int, act: Callable[[], None]) -> None:
        self.number = number
        self.act = act
        self.count = 0
        self.failure: Exception | None = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task.name.startswith("pooler.")
        if self.count == self.number:
            self.number = -1
            try:
                self.act()
            except Exception as error:  # noqa: BLE001 (Trio would only log it)
                self.failure = error


################################################################
# CONFIGURATIONS
################################################################


def config_of(folder: Path, kind: str, which: str) -> Config:
    """`kind`: of the account's credentials; `which` of the two states of the world it is."""
    port = {"old": OLD, "new": NEW}[which]
    account: Json = {"concurrent": 1, "websocket": True}
    account["base_url"] = f"http://127.0.0.1:{port}/v1"
    if kind == "key":
        account |= {"type": "openai", "api_key": f"sk-{which}-0123456789"}
    else:
        name = "same" if kind == "same file" else which
        account |= {"type": "codex", "auth_file": str(folder / name / "auth.json")}
    keys = {"laptop": KEY, "ci": OTHER_KEY}
    whole = {"accounts": {"a": account}, "pools": {"home": {"accounts": ["a"], "keys": keys}}}
    env = {REFRESH_URL_VARIABLE: f"http://127.0.0.1:{TOKEN_PORT}{TOKEN_PATH}"}
    return parse_config(json.dumps(whole).encode(), env, str)


def log_in(folder: Path, kind: str, which: str, *, is_due: bool) -> None:
    if kind != "key":
        name = "same" if kind == "same file" else which
        expires_at = UNIX_START + 100 if is_due else FAR
        refresh_token = f"rt-{which}-1"
        path = folder / name / "auth.json"
        make_auth_file(path, which, expires_at=expires_at, refresh_token=refresh_token)


################################################################
# SCENARIOS
################################################################

Scenario = Callable[[World], Awaitable[None]]


async def one_request(world: World) -> None:
    await world.ask(post("/v1/responses", {"model": "m1", "input": "x", "stream": True}))


async def some_that_wait(world: World) -> None:
    """One lease, and three requests, of two keys."""
    clients = []
    for key in (KEY, KEY, OTHER_KEY):
        client = await world.connect()
        clients.append(client)
        await client.send(post("/v1/responses", {"model": "m1", "input": "x"}, key=key))
        await world.settle()
    for client in clients:
        await client.read_response()


async def a_model_list(world: World) -> None:
    await world.ask(request("GET", "/v1/models"))
    await world.settle()
    await world.ask(request("GET", "/v1/models"))


async def two_turns(world: World) -> None:
    client = await open_socket(world)
    try:
        for _ in range(2):
            await client.ask()
    except (Truncated, AssertionError):  # its upstream was closed by the reload
        pass
    await client.hang_up()


async def a_failure(world: World) -> None:
    """Rejected, refreshed and sent again."""
    for port in (OLD, NEW):
        await (await world.dial(BaseUrl(False, "127.0.0.1", port, ""), None)).aclose()
        world.upstream(str(port)).plays(error_response(401, "token_invalidated"))
    await world.ask(post("/v1/responses", {"model": "m1", "input": "x"}))


SCENARIOS: Final[dict[str, tuple[str, bool, Scenario]]] = {
    "a request with a key": ("key", False, one_request),
    "a request with a login": ("login", False, one_request),
    "a request with a login in the same file": ("same file", False, one_request),
    "a login that is refreshed": ("login", True, one_request),
    "a login in the same file that is refreshed": ("same file", True, one_request),
    "a token that is refused": ("login", False, a_failure),
    "a token that is refused, in the same file": ("same file", False, a_failure),
    "a queue for a key": ("key", False, some_that_wait),
    "a queue for a login": ("login", False, some_that_wait),
    "a queue for a login in the same file": ("same file", False, some_that_wait),
    "a model list with a key": ("key", False, a_model_list),
    "a model list with a login": ("login", False, a_model_list),
    "a model list with a login that is refreshed": ("same file", True, a_model_list),
    "turns with a key": ("key", False, two_turns),
    "turns with a login in the same file": ("same file", False, two_turns),
}


def live(folder: Path, name: str, number: int) -> tuple[set[tuple[int, str]], bool]:
    """Which server got whose credentials, and whether the reload has come."""
    kind, is_due, scenario = SCENARIOS[name]
    for which in ("new", "old"):
        log_in(folder, kind, which, is_due=is_due)
    old, new = (config_of(folder, kind, which) for which in ("old", "new"))
    places: list[Elsewhere] = []

    def reload() -> None:
        log_in(folder, kind, "new", is_due=is_due)
        places[0].world.server.apply(new, {})

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            places.append(Elsewhere(old, nursery))
            world = places[0].world
            world.start()
            with trio.fail_after(1000):
                await scenario(world)
                await world.settle()
            await world.close()
            nursery.cancel_scope.cancel()

    reloading = Reloading(number, reload)
    trio.run(main, clock=MockClock(autojump_threshold=0), instruments=[reloading])
    assert reloading.failure is None
    return places[0].seen, reloading.number == -1


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_credential_reaches_a_server_that_it_was_not_configured_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trio.to_thread, "run_sync", run_inline)
    seen: set[tuple[int, str]] = set()
    for number in range(1, STEPS_MAX):
        found, has_come = live(tmp_path, name, number)
        seen |= found
        if not has_come:
            break
    else:
        pytest.fail("the scenario does not end")
    assert number > 10
    assert {(OLD, "old"), (NEW, "new")} <= seen


async def test_a_connection_is_not_kept_for_those_who_come_after_a_reload(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """It may have been opened with another CA: the same configuration is one more, too."""
    old = config_of(tmp_path, "key", "old")
    async with trio.open_nursery() as nursery:
        world = Elsewhere(old, nursery).world
        world.start()
        client = await world.connect()
        await client.send(post("/v1/responses", {"model": "m1", "input": "x"}))
        await world.settle()
        await world.server.reload(lambda: (old, {}))
        assert (await client.read_response()).status == 200
        await world.settle()
        server = world.upstream(str(OLD))
        assert server.asked[0].connection.closed_at is not None
        await world.ask(post("/v1/responses", {"model": "m1", "input": "x"}))
        assert len({id(asked.connection) for asked in server.asked}) == 2
        await world.close()
        nursery.cancel_scope.cancel()
