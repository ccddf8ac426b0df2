"""Proves that what hardly ever happens ends as well as what happens every day.

Method: the real server in virtual time, brought to places that no other file of tests comes to:
deadlines, reloads and stops that meet, a peer that leaves in the one moment that is left, an
operator who asks about accounts that cannot serve.
"""

from __future__ import annotations

import gc
import json
import tracemalloc
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock, open_stream_to_socket_listener

from pooler import (
    ERROR_BODY_BYTES_MAX,
    LINGER_SECONDS_MAX,
    Connection,
    Model,
    PeerClosed,
    read_catalogue,
)
from tests.support.codex_backend import make_auth_file
from tests.support.memory_sockets import Json, Response, ask_responses, post, request
from tests.support.memory_websockets import (
    SocketUpstream,
    codex_described,
    open_socket,
    says,
    socket_described,
    socket_world,
    turn,
    upgrade,
)
from tests.support.world import (
    UNIX_START,
    Line,
    Script,
    Stall,
    Wait,
    World,
    describe,
    error_response,
    json_response,
    make_config,
    opened_world,
    responses_events,
    sse_event,
    sse_response,
    sse_steps,
)

TOKEN: Final = "cpo-operator-token-0123456789"
WHOLE: Final = ask_responses()
EVENTS: Final = responses_events("x", "y")
CREATED, _, DELTA, _, COMPLETED = EVENTS
NATIVE: Final = "/backend-api/codex/responses"
IN_ORDER: Final = {"routing": "in_order"}
BIG: Final = DELTA | {"delta": "x" * 50_000}


################################################################
# TIME
################################################################


async def test_an_account_s_first_event_is_not_waited_for_any_longer_because_of_the_hold(
    autojump_clock: MockClock,
) -> None:
    whole = describe("a", accounts={"a": {"first_event_seconds": 4}})
    async with opened_world(whole) as world:
        world.upstreams["a"].plays(sse_steps(CREATED, Stall(), is_whole=False), sse_steps(Stall()))
        response = await world.ask(WHOLE)
        # The handshake is an event: from then on the hold is all that is waited for.
        assert (response.status, response.head_at) == (200, 10)
        began_at = trio.current_time()
        response = await world.ask(WHOLE)
        assert (response.status, response.error["code"]) == (504, "upstream_timeout")
        assert response.ended_at - began_at == 4


async def test_a_stop_that_comes_while_a_client_is_slow_ends_its_stream_all_the_same(
    autojump_clock: MockClock,
) -> None:
    """No wait for the upstream is under way then: none may begin."""
    async with opened_world(describe("a", limits={"drain_seconds_max": 5})) as world:
        world.upstreams["a"].plays(sse_steps(BIG, Stall()))
        client = await world.connect(capacity=1000)
        await client.send(WHOLE)
        await world.settle()
        world.server.stop()
        await trio.sleep_until(trio.current_time() + 6)
        response = await client.read_response()
        assert response.ended_at == 6
        *events, last = response.body.decode().strip().split("\n\n")
        assert [json.loads(event[6:]) for event in events] == [BIG]
        failed = json.loads(last.partition("data: ")[2])
        assert failed["response"]["error"]["code"] == "server_stopping"
        await world.settle()
        assert world.records[-1]["code"] == "server_stopping"


################################################################
# MODELS
################################################################

UNLISTED: Final = {name: {"models": None} for name in "ab"}
LISTED: Final = json_response({"data": [{"id": "m1"}]})


async def ask_about(pool: Json) -> tuple[Response, list[str]]:
    """A request for m3, which is in nobody's list; who was asked."""
    async with opened_world(describe("ab", accounts=UNLISTED, pool=pool)) as world:
        for upstream in world.upstreams.values():
            upstream.catalogue = LISTED
            upstream.always = json_response({"id": "r"})
        await world.ask(request("GET", "/v1/models"))
        await world.settle()
        response = await world.ask(ask_responses(stream=False, model="m3"))
        return response, [name for name, one in world.upstreams.items() if one.asked]


async def test_a_list_of_the_pool_s_owner_counts_more_than_the_upstreams_lists(
    autojump_clock: MockClock,
) -> None:
    response, asked = await ask_about(IN_ORDER | {"models": ["m3"]})
    assert (response.status, asked) == (200, ["a"])


async def test_without_one_a_model_in_nobody_s_list_is_not_there(
    autojump_clock: MockClock,
) -> None:
    response, asked = await ask_about(IN_ORDER)
    assert (response.status, response.error["code"], asked) == (400, "model_not_found", [])


async def test_a_paused_account_s_models_are_not_offered(autojump_clock: MockClock) -> None:
    async with opened_world(
        describe("ab", accounts={"b": {"paused": True, "models": ["m9"]}})
    ) as world:
        shown = (await world.ask(request("GET", "/v1/models"))).json()
        assert [model["id"] for model in shown["data"]] == ["m1", "m2"]


def test_a_list_s_odd_names_are_left_out_and_the_others_stay() -> None:
    names = ["m1", "", "m 2", "m\n3", "x" * 201, "m4"]
    body = json.dumps({"data": [{"id": name} for name in names]}).encode()
    assert read_catalogue(body) == {"m1": Model(), "m 2": Model(), "m4": Model()}


async def test_a_chunk_whose_choices_are_no_objects_is_relayed_and_not_stumbled_over(
    autojump_clock: MockClock,
) -> None:
    odd = {"id": "c1", "choices": [None, 1, {"delta": {"content": "x"}, "finish_reason": "stop"}]}
    body = {"model": "m1", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(sse_response([odd]))  # without [DONE]: its end is the finish
        response = await world.ask(post("/v1/chat/completions", body))
        assert response.body == sse_event(odd)
        assert world.records[-1]["code"] is None


################################################################
# OPERATORS
################################################################


async def test_a_password_that_is_no_base64_is_none(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a", operators={"me": TOKEN})) as world:
        for coded in ("A", "AA=A", "=", "QUJD=="):
            fields = [("Authorization", f"Basic {coded}")]
            client = await world.connect()
            await client.send(request("GET", "/admin", key=None, headers=fields))
            assert (await client._read_to(b"\r\n")).split()[1] == b"401"


async def test_the_state_of_every_login_is_shown(autojump_clock: MockClock, tmp_path: Path) -> None:
    """One is good, one about to end, one is not there, and one's file is no login."""
    whole = codex_described(tmp_path, "abcd", operators={"me": TOKEN})
    make_auth_file(tmp_path / "b" / "auth.json", "acct-b", expires_at=UNIX_START + 60)
    (tmp_path / "c" / "auth.json").unlink()
    (tmp_path / "d" / "auth.json").write_text("{}")
    accept = [("Accept", "application/json")]
    async with socket_world(whole) as world:
        shown = (await world.ask(request("GET", "/admin", key=TOKEN, headers=accept))).json()
        states = {one["name"]: (one["status"], one["login"]) for one in shown["accounts"]}
        assert states == {
            "a": ("ready", "ok"),
            "b": ("ready", "renewal_due"),
            "c": ("login_needed", "needed"),
            "d": ("login_needed", "needed"),
        }
        told = world.server.explain("home", "m1", None)["accounts"]
        assert [one["reason"] for one in told] == [
            "number 1 in order", "number 2 in order", "login_needed", "login_needed",
        ]  # fmt: skip


async def test_a_limit_of_one_model_is_told_from_a_rest(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    limit = [
        ("x-codex-active-limit", "codex_other"),
        ("x-codex-other-primary-used-percent", "100"),
        ("x-codex-other-primary-window-minutes", "300"),
        ("x-codex-other-primary-reset-after-seconds", "600"),
    ]
    async with socket_world(codex_described(tmp_path)) as world:
        world.upstreams["a"].plays(error_response(429, "usage_limit_reached", limit))
        world.upstreams["b"].always = sse_response(EVENTS)
        assert (await world.ask(ask_responses(input=[]))).status == 200
        for model, reasons in (
            ("m1", ["limited for this model: 429 usage_limit_reached", "number 1 in order"]),
            ("m2", ["number 1 in order", "number 2 in order"]),
        ):
            told = world.server.explain("home", model, None)["accounts"]
            assert [one["reason"] for one in told] == reasons


async def test_a_reload_tells_what_a_start_would_have_warned_of(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("a")) as world:
        unused = describe("a", pool={"keys": {}})
        await world.server.reload(lambda: (make_config(unused), {}))
        [told] = [fields for level, event, fields in world.logged if event == "config"]
        assert told["problem"] == "pools.home.keys: no key, so nobody can use this pool"


async def test_a_listen_that_is_served_again_needs_no_restart(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a")) as world:
        moved = make_config(describe("a", listen="127.0.0.1:1"))
        await world.server.reload(lambda: (moved, {}))
        await world.server.reload(lambda: (make_config(describe("a")), {}))
        [told] = [fields for level, event, fields in world.logged if event == "reload"]
        assert told["problem"] == "listen: a change needs a restart"


################################################################
# LOGINS
################################################################


async def test_an_account_that_a_reload_takes_away_is_not_asked_a_second_time(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Its token is refused; the reload comes before a renewed one would be tried."""
    whole = codex_described(tmp_path)
    async with socket_world(whole) as world:
        refused = trio.Event()
        world.upstreams["a"].plays([Wait(refused), *error_response(401, "token_expired")])
        world.upstreams["b"].plays(sse_response(EVENTS))
        client = await world.connect()
        await client.send(ask_responses(input=[]))
        await world.settle()
        del whole["accounts"]["a"]
        whole["pools"]["home"]["accounts"] = ["b"]
        config = make_config(whole)
        await world.server.reload(lambda: (config, {}))
        refused.set()
        assert (await client.read_response()).status == 200
        await world.settle()
        assert len(world.upstreams["a"].asked) == 1
        reasons = [attempt.get("reason") for attempt in world.records[-1]["attempts"]]
        assert reasons == ["login needed", None]


################################################################
# WEBSOCKETS
################################################################


async def test_no_websocket_is_opened_once_the_pooler_is_being_stopped(
    autojump_clock: MockClock,
) -> None:
    raw = upgrade()
    async with socket_world(socket_described("a")) as world:
        client = await world.connect()
        await client.send(raw[:-2])
        await world.settle()
        world.server.stop()
        await client.send(raw[-2:])
        response = await client.read_response()
        assert (response.status, response.error["code"]) == (503, "server_stopping")


@pytest.mark.parametrize("way", ["reset", "not read"])
async def test_a_client_that_leaves_before_it_knows_of_its_upgrade_holds_nothing(
    autojump_clock: MockClock, way: str
) -> None:
    async with socket_world(socket_described("a")) as world:
        client = await world.connect(capacity=10)
        await client.send(upgrade())
        await world.settle()
        if way == "reset":
            client.reset()
            await world.settle()
        # The handshake's time, and the moment that is left for an answer to be read.
        seconds = 0 if way == "reset" else 10 + LINGER_SECONDS_MAX
        assert len(world.server.connections.counted) == (seconds > 0)
        await trio.sleep_until(trio.current_time() + seconds)
        await world.settle()
        assert not world.server.connections.counted
        assert not world.server.sockets


async def test_news_for_an_upstream_that_is_not_there_are_nobody_s(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with socket_world(codex_described(tmp_path)) as world:
        world.upstreams["a"].plays(turn("one"))
        client = await open_socket(world, path=NATIVE)
        await client.say({"type": "response.processed", "response_id": "resp_0"})
        await world.settle()
        assert world.open_count == 0
        assert (await client.ask(input=[]))[-1]["type"] == "response.completed"
        assert world.upstream().frames == []


async def test_a_refusal_that_is_too_long_to_be_read_is_one_all_the_same(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    error = {"type": "usage_limit_reached", "message": "x" * ERROR_BODY_BYTES_MAX}
    async with socket_world(codex_described(tmp_path)) as world:
        world.upstreams["a"].plays(says({"type": "error", "status": 429, "error": error}))
        world.upstreams["b"].plays(turn("one"))
        client = await open_socket(world)
        assert (await client.ask(input=[]))[-1]["type"] == "response.completed"
        [turned] = world.records[:1]
        assert [one["account"] for one in turned["attempts"]] == ["a", "b"]
        assert turned["attempts"][0]["reason"] == "429"


async def test_a_turn_that_cannot_be_sent_goes_out_on_a_new_websocket(
    autojump_clock: MockClock,
) -> None:
    """The upstream has gone, which only who sends to it notices."""
    async with socket_world(socket_described("a")) as world:
        world.upstreams["a"].plays([*turn("one"), Stall()], turn("two"), turn("three"))
        client = await open_socket(world)
        await client.ask()
        world.upstreams["a"].lines[0].socket.incoming.set(deaf=True)
        assert (await client.ask())[-1]["type"] == "response.completed"
        assert [number for _, number, _ in world.turns] == [1, 2]
        assert len(world.records[-1]["attempts"]) == 1
        assert (await client.ask())[-1]["type"] == "response.completed"  # the client's stays
        assert [number for _, number, _ in world.turns] == [1, 2, 2]


async def test_an_upstream_that_leaves_right_after_the_upgrade_was_not_asked(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with socket_world(socket_described(pool=IN_ORDER)) as world:
        upstream = world.upstream("a")

        async def leave(script: Script, line: Line) -> bool:
            await SocketUpstream._play(upstream, script, line)
            return False

        monkeypatch.setattr(upstream, "_play", leave)
        world.upstreams["b"].plays(turn("one"))
        client = await open_socket(world)
        assert (await client.ask())[-1]["type"] == "response.completed"
        assert [name for name, _, _ in world.turns] == ["b"]
        assert len(upstream.handshakes) == 1


async def test_a_refused_body_is_given_back_before_anybody_collects(world: World) -> None:
    """An error that held the frames it went through would hold the body, too."""
    size = 8 * 1024 * 1024
    await world.ask(post("/v1/responses", b"[" * 1000))
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(3):
            response = await world.ask(post("/v1/responses", b"[" * size))
            assert response.error["code"] == "invalid_json"
        assert tracemalloc.get_traced_memory()[0] < size
    finally:
        tracemalloc.stop()
        gc.enable()


async def test_a_socket_that_was_closed_here_is_at_its_end() -> None:
    """A WebSocket's reader may come back to one: of the real kind, no memory stream."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        stream = await open_stream_to_socket_listener(listener)
        await stream.aclose()
        with pytest.raises(PeerClosed):
            await Connection(stream).receive()
