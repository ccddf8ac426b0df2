"""Proves that a Responses WebSocket is judged before it is one, and that its turns are calls.

Method: the real server in virtual time, a client and upstreams that make their frames by hand
(tests/support/memory_websockets.py).  Seen are every frame at both ends, the record of each turn,
and where the next turn goes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from tests.support.frames import TEXT, frame
from tests.support.memory_sockets import KEY, OTHER_KEY, Json, post, request
from tests.support.memory_websockets import (
    UPGRADE,
    codex_described,
    error_frame,
    open_socket,
    read_upgrade,
    says,
    socket_described,
    socket_world,
    turn,
    upgrade,
)
from tests.support.world import Fin, Pause, Reset, Send, Stall, error_response, json_response

NATIVE: Final = "/backend-api/codex/responses"
INPUT: Final = [{"role": "user", "content": "hi"}]
HEAD: Final = {name: None for name, _ in UPGRADE}


def types(events: list[Json]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def code_of(event: Json) -> tuple[int, str]:
    assert event["type"] == "error", event
    return event["status"], event["error"]["code"]


################################################################
# THE UPGRADE
################################################################

REFUSED: Final[dict[str, tuple[Json, int, str]]] = {
    "no key": ({"key": None}, 401, "invalid_api_key"),
    "a wrong key": ({"key": "cp-nobody-0123456789abc"}, 401, "invalid_api_key"),
    "a page of elsewhere": ({"more": [("Origin", "https://x.example")]}, 403, "origin_not_allowed"),
    "no upgrade": ({"fields": HEAD}, 426, "websocket_unsupported"),
    "another upgrade": ({"fields": {"Upgrade": "h2c"}}, 426, "websocket_unsupported"),
    "no connection": ({"fields": {"Connection": "keep-alive"}}, 426, "websocket_unsupported"),
    "an old version": ({"fields": {"Sec-WebSocket-Version": "8"}}, 426, "websocket_unsupported"),
    "no nonce": ({"fields": {"Sec-WebSocket-Key": None}}, 400, "bad_request"),
    "a short nonce": ({"fields": {"Sec-WebSocket-Key": "YQ=="}}, 400, "bad_request"),
    "a long nonce": ({"fields": {"Sec-WebSocket-Key": "A" * 23 + "=="}}, 400, "bad_request"),
    "two nonces": ({"more": [UPGRADE[-1]]}, 400, "bad_request"),
    "a body": ({"more": [("Content-Length", "1")]}, 400, "bad_request"),
    "chat": ({"path": "/v1/chat/completions"}, 405, "method_not_allowed"),
    "realtime": ({"path": "/v1/realtime"}, 404, "unsupported_endpoint"),
    "native without codex": ({"path": NATIVE}, 404, "unsupported_endpoint"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
async def test_an_upgrade_is_refused_in_http_and_asks_nobody(
    case: str, autojump_clock: MockClock
) -> None:
    how, status, code = REFUSED[case]
    async with socket_world() as world:
        client = await world.connect()
        response = await client.ask(upgrade(**how))
        assert (response.status, response.error["code"]) == (status, code)
        if status == 426:
            assert response.header("sec-websocket-version") == "13"
            assert response.header("upgrade") == "websocket"
        assert [one.dial_count for one in world.upstreams.values()] == [0, 0]


async def test_a_pool_without_websockets_says_so_at_once(autojump_clock: MockClock) -> None:
    described = socket_described(accounts={"a": {"websocket": False}, "b": {"paused": True}})
    async with socket_world(described) as world:
        client = await world.connect()
        response = await client.ask(upgrade())
        assert (response.status, response.error["code"]) == (426, "websocket_unsupported")
        world.upstreams["a"].plays(json_response({"object": "response", "output": []}))
        again = await client.ask(post("/v1/responses", {"model": "m1", "input": "hi"}))
        assert again.status == 200  # on the same connection


async def test_post_is_asked_for_while_only_others_can_serve(autojump_clock: MockClock) -> None:
    described = socket_described(accounts={"b": {"websocket": False}})
    async with socket_world(described) as world:
        world.upstreams["a"].plays(error_frame(429, "usage_limit_reached"))
        client = await open_socket(world)
        [refused] = await client.ask()
        assert code_of(refused) == (429, "usage_limit_reached")
        response = await (await world.connect()).ask(upgrade())
        assert response.status == 426
        await trio.sleep_until(trio.current_time() + 901)  # the account is back
        await open_socket(world)


async def test_a_key_has_so_many_websockets_and_no_more(autojump_clock: MockClock) -> None:
    keys = {"laptop": {"key": KEY, "concurrent": 2}, "ci": OTHER_KEY}
    async with socket_world(socket_described(pool={"keys": keys})) as world:
        first = await open_socket(world)
        await open_socket(world)
        response = await (await world.connect()).ask(upgrade())
        assert (response.status, response.error["code"]) == (429, "key_limit_reached")
        await open_socket(world, key=OTHER_KEY)
        await first.hang_up()
        await world.settle()
        await open_socket(world)


async def test_a_websocket_counts_from_the_moment_that_it_is_asked_for(
    autojump_clock: MockClock,
) -> None:
    keys = {"laptop": {"key": KEY, "concurrent": 1}}
    async with socket_world(socket_described(pool={"keys": keys})) as world:
        first = await world.connect()
        await first.ask(upgrade())  # it waits for the library, which the others find imported
        await first.hang_up()
        await world.settle()

        clients = [await world.connect() for _ in range(3)]
        async with trio.open_nursery() as nursery:  # all at the same moment
            for client in clients:
                nursery.start_soon(client.send, upgrade())
        answers = [await client.read_response() for client in clients]
        assert sorted(answer.status for answer in answers) == [101, 429, 429]
        for client in clients:
            await client.hang_up()
        await world.settle()
        unread = await world.connect(capacity=10)  # it is not told yet that it has one
        await unread.send(upgrade())
        await world.settle()
        response = await (await world.connect()).ask(upgrade())
        assert (response.status, response.error["code"]) == (429, "key_limit_reached")
        await read_upgrade(unread)


async def test_an_upgrade_may_come_in_any_pieces(autojump_clock: MockClock) -> None:
    raw = upgrade() + frame(TEXT, json.dumps({"type": "response.create", "model": "m1"}).encode())
    async with socket_world(socket_described("a")) as world:
        for cut in range(1, len(raw)):
            world.upstreams["a"].plays(turn("yes"))
            client = await world.connect()
            await client.send(raw[:cut])
            await world.settle()
            await client.send(raw[cut:])
            events = await (await read_upgrade(client)).read_turn()
            assert types(events)[-1] == "completed"
            await client.hang_up()


################################################################
# TURNS
################################################################


async def test_turns_are_relayed_one_after_the_other_on_one_upstream(
    autojump_clock: MockClock,
) -> None:
    async with socket_world() as world:
        world.upstreams["a"].plays(turn("one"), turn("two", response_id="resp_2"))
        world.upstreams["b"].plays(turn("one"), turn("two", response_id="resp_2"))
        client = await open_socket(world)
        first = await client.ask(store=False, x_unknown={"kept": [1]})
        second = await client.ask(previous_response_id="resp_1")
        assert types(first) == ["created", "in_progress", "output_text.delta", "completed"]
        assert second[-1]["response"]["id"] == "resp_2"
        [(name, one, asked), (same, other, follow)] = world.turns
        assert (name, one) == (same, other)
        assert asked == {
            "type": "response.create", "model": "m1", "input": "hi", "store": False,
            "x_unknown": {"kept": [1]},
        }  # fmt: skip
        assert follow["previous_response_id"] == "resp_1"
        [shaken] = world.upstream(name).handshakes
        assert shaken["authorization"] == f"Bearer sk-upstream-key-of-{name}"
        assert "sec-websocket-extensions" not in shaken
        await client.hang_up()
        await world.settle()
        assert [record["status"] for record in world.records] == [200, 200, 101]
        assert [record["account"] for record in world.records] == [name, name, None]
        assert world.records[0]["tokens"]["input_tokens"] == 3
        assert world.records[0]["model"] == "m1"


async def test_events_are_the_upstreams_known_or_not(autojump_clock: MockClock) -> None:
    odd = [
        b'{"type":"response.created","response":{"id":"resp_1"}}',
        b'{ "type" : "response.something.new", "t": "\\u00e9\xc3\xa9 \\n" }',
        b'{\n "type": "response.output_text.delta",\n "delta": "x\\n\\ny"\n}',
        b'{"type":"response.completed","response":{"id":"resp_1","output":[]}}',
    ]
    async with socket_world() as world:
        for one in world.upstreams.values():
            one.plays(says(*odd))
        client = await open_socket(world)
        await client.create()
        for event in odd:
            assert await client.read_frame() == (TEXT, event)


async def test_a_stream_id_is_echoed_on_every_event_and_goes_no_further(
    autojump_clock: MockClock,
) -> None:
    async with socket_world() as world:
        for one in world.upstreams.values():
            one.plays(turn("one"), turn("two"), turn("three"))
        client = await open_socket(world)
        longest = "a-Z_0." + "x" * 250
        for stream_id in ("s1", longest):  # sent ahead: they are served in order
            await client.create(stream_id=stream_id)
        await client.create()
        for expected in ("s1", longest, None):
            events = await client.read_turn()
            assert len(events) == 4
            assert {event.get("stream_id") for event in events} == {expected}
        assert not any("stream_id" in body for _, _, body in world.turns)
        [failed] = await client.ask(stream_id="s4", model="nobody")
        assert code_of(failed) == (400, "model_not_found")
        assert failed["stream_id"] == "s4"


CREATE: Final[Json] = {"type": "response.create", "model": "m1", "input": "hi"}
BAD_TURNS: Final[dict[str, tuple[Json, str, str | None]]] = {
    "not JSON": ("{", "invalid_json", None),
    "a list": ("[]", "invalid_json", None),
    "a key twice": ('{"type":"response.create","type":"x"}', "invalid_json", None),
    "too deep": ("[" * 200 + "]" * 200, "invalid_json", None),
    "empty": ("", "invalid_json", None),
    "no type": ({"model": "m1"}, "invalid_value", "type"),
    "another type": ({"type": "response.cancel"}, "invalid_value", "type"),
    "no model": ({"type": "response.create"}, "missing_required_parameter", "model"),
    "a foreign model": (CREATE | {"model": "x"}, "model_not_found", "model"),
    "an empty stream_id": (CREATE | {"stream_id": ""}, "invalid_value", "stream_id"),
    "a long stream_id": (CREATE | {"stream_id": "x" * 257}, "invalid_value", "stream_id"),
    "an odd stream_id": (CREATE | {"stream_id": "a b"}, "invalid_value", "stream_id"),
    "a number as stream_id": (CREATE | {"stream_id": 7}, "invalid_value", "stream_id"),
    "an odd anchor": (
        CREATE | {"previous_response_id": 7}, "invalid_value", "previous_response_id"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TURNS)
async def test_a_bad_frame_is_answered_and_the_socket_goes_on(
    case: str, autojump_clock: MockClock
) -> None:
    said, code, param = BAD_TURNS[case]
    async with socket_world() as world:
        client = await open_socket(world)
        await client.say(said)
        event = await client.read_event()
        assert code_of(event) == (400, code)
        assert event["error"]["param"] == param
        assert [one.dial_count for one in world.upstreams.values()] == [0, 0]
        for one in world.upstreams.values():
            one.plays(turn("fine"))
        assert types(await client.ask())[-1] == "completed"


async def test_key_limits_hold_for_every_turn(autojump_clock: MockClock) -> None:
    keys = {"laptop": {"key": KEY, "requests_per_minute": 2, "models": ["m1"]}}
    async with socket_world(socket_described("a", pool={"keys": keys})) as world:
        world.upstreams["a"].plays(turn("one"), turn("two"), turn("three"))
        client = await open_socket(world)
        await client.ask()
        assert code_of((await client.ask(model="m2"))[0]) == (400, "model_not_found")
        [refused] = await client.ask()
        assert code_of(refused) == (429, "key_limit_reached")
        assert refused["headers"] == {"retry-after": "60"}
        await trio.sleep_until(trio.current_time() + 60)
        assert types(await client.ask())[-1] == "completed"
        usage = await (await world.connect()).ask(request("GET", "/v1/usage"))
        assert usage.json()["total_tokens"] == 14


async def test_a_days_tokens_and_streams_at_once_hold_for_turns(
    autojump_clock: MockClock,
) -> None:
    keys = {"laptop": {"key": KEY, "tokens_per_day": 10, "concurrent": 2}}
    async with socket_world(socket_described("a", pool={"keys": keys})) as world:
        world.upstreams["a"].plays([Stall()], [Stall()], turn("one"))
        clients = [await open_socket(world) for _ in range(2)]
        posted = await world.connect()
        await posted.send(post("/v1/responses", {"model": "m1", "input": "x", "stream": True}))
        await clients[0].create()
        await world.settle()
        [refused] = await clients[1].ask()
        assert code_of(refused) == (429, "key_limit_reached")
        await posted.hang_up()
        await world.settle()
        spent = world.server.shared.uses["home", "laptop"]
        spent.day_tokens = 10
        [refused] = await clients[1].ask()
        assert code_of(refused) == (429, "key_limit_reached")
        assert "retry-after" not in refused["headers"]  # it is hours
        spent.day_tokens = 9
        assert types(await clients[1].ask())[-1] == "completed"
        assert spent.day_tokens == 16


async def test_a_key_that_expires_opens_no_further_turn(autojump_clock: MockClock) -> None:
    keys = {"laptop": {"key": KEY, "expires": "2027-01-16T00:00:00Z"}}
    async with socket_world(socket_described("a", pool={"keys": keys})) as world:
        world.upstreams["a"].plays(turn("one"))
        client = await open_socket(world)
        assert types(await client.ask())[-1] == "completed"
        world.unix_offset += 2 * 24 * 3600
        await client.create()
        assert await client.read_close() == 1008


async def test_an_alias_is_the_upstreams_name(autojump_clock: MockClock) -> None:
    described = socket_described("a", pool={"aliases": {"fast": "m2"}})
    async with socket_world(described) as world:
        world.upstreams["a"].plays(turn("one"))
        await (await open_socket(world)).ask(model="fast")
        assert world.upstream().asked_bodies[0]["model"] == "m2"


################################################################
# CHATGPT ACCOUNTS
################################################################


async def test_codex_turns_are_translated_as_over_http(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    hidden = {"type": "codex.rate_limits", "rate_limits": {"primary": {"used_percent": 50}}}
    done = {"type": "response.completed", "response": {"id": "resp_1", "output": None}}
    item = {"type": "message", "content": []}
    answer = [
        {"type": "response.created", "response": {"id": "resp_1"}},
        hidden,
        {"type": "keepalive"},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        done,
    ]
    async with socket_world(codex_described(tmp_path)) as world:
        upstream = world.upstream()
        upstream.plays(says(hidden, *answer), turn("two"))
        client = await open_socket(world, more=[("Session-Id", "mine")])
        system = {"role": "system", "content": "Be brief."}
        events = await client.ask(input=[system, *INPUT], temperature=1, user="u", generate=False)
        assert types(events) == ["created", "output_item.done", "completed"]
        assert events[-1]["response"]["output"] == [item]
        await client.ask(previous_response_id="resp_1")
        [(_, first), (_, second)] = upstream.turns
        part = {"type": "input_text", "text": "hi"}
        [shaken] = upstream.handshakes
        assert first == {
            "type": "response.create",
            "model": "m1",
            "instructions": "Be brief.",
            "input": [{"type": "message", "role": "user", "content": [part]}],
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": shaken["session-id"],
            "generate": False,
            "store": False,
            "stream": True,
        }  # fmt: skip
        assert second["previous_response_id"] == "resp_1"
        assert shaken["openai-beta"] == "responses_websockets=2026-02-06"
        assert shaken["chatgpt-account-id"] == "acct-a"
        assert shaken["originator"] == "codex-pooler"
        assert shaken["session-id"] != "mine"
        usage = await (await world.connect()).ask(request("GET", "/api/codex/usage"))
        assert usage.json()["rate_limit"] is not None


async def test_the_native_route_changes_nothing_but_the_credentials(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    events = [
        {"type": "codex.rate_limits", "rate_limits": {}},
        {"type": "response.created", "response": {"id": "resp_1"}},
        {"type": "response.metadata", "headers": {"openai-model": "m1"}},
        {"type": "response.completed", "response": {"id": "resp_1", "output": None}},
    ]
    body = {"type": "response.create", "model": "m1", "input": INPUT, "x": 1, "stream": True}
    ours = [("originator", "codex_cli_rs"), ("x-codex-window-id", "w"), ("openai-beta", "b=1")]
    async with socket_world(codex_described(tmp_path)) as world:
        upstream = world.upstream()
        upstream.plays(says(*events))
        client = await open_socket(world, path=NATIVE, more=[*ours, ("Cookie", "secret=1")])
        assert (await client.ask(**body))[1:] == events[1:]  # the first tells of an account
        assert upstream.asked_bodies == [body]
        [shaken] = upstream.handshakes
        assert {name: shaken[name] for name, _ in ours} == dict(ours)
        assert "cookie" not in shaken
        assert KEY not in json.dumps(shaken)
        await client.say({"type": "response.processed", "response_id": "resp_1"})
        await world.settle()
        assert [json.loads(data)["response_id"] for _, data in upstream.frames] == ["resp_1"]


@pytest.mark.parametrize("path", ["/v1/responses", NATIVE])
async def test_an_unknown_anchor_is_not_asked_of_a_chatgpt_account(
    path: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with socket_world(codex_described(tmp_path)) as world:
        world.upstreams["a"].plays(turn("one"))
        client = await open_socket(world, path=path)
        [refused] = await client.ask(input=INPUT, previous_response_id="resp_0")
        assert code_of(refused) == (400, "previous_response_not_found")
        assert refused["error"]["param"] == "previous_response_id"
        assert types(await client.ask(input=INPUT))[-1] == "completed"
        other = await open_socket(world, path=path)
        [refused] = await other.ask(input=INPUT, previous_response_id="resp_1")
        assert code_of(refused) == (400, "previous_response_not_found")  # another connection's
        assert len(world.turns) == 1


################################################################
# FAILURES
################################################################


async def test_a_limit_before_content_moves_the_turn_and_rests_the_account(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    created = {"type": "response.created", "response": {"id": "resp_9"}}
    late = {"code": "usage_limit_reached", "resets_in_seconds": 120}
    for told in (
        error_frame(429, "usage_limit_reached", {"Retry-After": "120"}),
        says(created, {"type": "error", "error": late}),
    ):
        async with socket_world(codex_described(tmp_path)) as world:
            world.upstreams["a"].plays(told)
            world.upstreams["b"].plays(turn("one"), turn("two"))
            client = await open_socket(world)
            assert types(await client.ask())[-1] == "completed"
            assert [name for name, _, _ in world.turns] == ["a", "b"]
            assert types(await client.ask(previous_response_id="resp_1"))[-1] == "completed"
            assert len(world.upstream("b").handshakes) == 1
            health = world.server.shared.roster.health["a"]
            assert max(
                one.until for one in health.cooldowns
            ) - trio.current_time() == pytest.approx(120, abs=1)
            assert world.open_count == 1  # the first one's is closed


async def test_a_bound_turn_is_not_moved_but_asked_for_in_full(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with socket_world(codex_described(tmp_path)) as world:
        world.upstreams["a"].plays(turn("one"), error_frame(429, "usage_limit_reached"))
        world.upstreams["b"].plays(turn("all of it"))
        client = await open_socket(world)
        await client.ask()
        [refused] = await client.ask(previous_response_id="resp_1")
        assert code_of(refused) == (400, "previous_response_not_found")
        assert types(await client.ask())[-1] == "completed"
        assert [name for name, _, _ in world.turns] == ["a", "a", "b"]


async def test_a_bound_turn_is_told_the_limit_where_nobody_else_can_serve(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with socket_world(codex_described(tmp_path, "a")) as world:
        world.upstreams["a"].plays(turn("one"), error_frame(429, "usage_limit_reached"))
        client = await open_socket(world)
        await client.ask()
        [refused] = await client.ask(previous_response_id="resp_1")
        assert code_of(refused) == (429, "usage_limit_reached")
        assert refused["error"]["resets_in_seconds"] == 900  # none was named


async def test_nothing_moves_once_content_was_relayed(autojump_clock: MockClock) -> None:
    delta = {"type": "response.output_text.delta", "delta": "x", "sequence_number": 1}
    begun = says({"type": "response.created", "response": {"id": "resp_1"}}, delta)
    for end, last in (
        ([Fin()], "failed"),
        ([Reset()], "failed"),
        ([Send(frame(0x8, b"\x03\xf3", mask=b"")), Stall()], "failed"),
        ([Send(frame(0x2, b"x", mask=b"")), Stall()], "failed"),
        (error_frame(429, "usage_limit_reached"), "error"),
    ):
        described = socket_described(pool={"routing": "in_order"})
        async with socket_world(described) as world:
            world.upstreams["a"].plays([*begun, *end])
            client = await open_socket(world)
            events = await client.ask()
            assert types(events) == ["created", "output_text.delta", last]
            if last == "failed":
                assert events[-1]["response"]["id"] == "resp_1"
                assert events[-1]["sequence_number"] == 2
            assert [name for name, _, _ in world.turns] == ["a"]


async def test_a_hang_up_of_the_upstream_ends_the_clients_socket_after_its_terminal_event(
    autojump_clock: MockClock,
) -> None:
    for ending in ([Fin()], [Reset()], [Send(frame(0x8, b"\x03\xe8", mask=b""))]):
        async with socket_world(socket_described("a")) as world:
            world.upstreams["a"].plays(ending)
            client = await open_socket(world)
            [event] = await client.ask()
            assert code_of(event) == (502, "upstream_unreachable")
            assert await client.read_close() == 1001
        async with socket_world(socket_described("a")) as world:
            world.upstreams["a"].plays([*turn("one"), Pause(5), *ending])
            began_at = trio.current_time()
            client = await open_socket(world)
            assert types(await client.ask())[-1] == "completed"
            assert await client.read_close() == 1001
            assert trio.current_time() - began_at == pytest.approx(5, abs=1)


async def test_a_spent_websocket_is_replaced_unless_the_turn_is_bound(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    limit = {"code": "websocket_connection_limit_reached", "message": "60 minutes"}
    for told in (
        {"type": "error", "status": 400, "error": limit},
        {"type": "error", "error": limit},
    ):
        async with socket_world(codex_described(tmp_path)) as world:
            upstream = world.upstream()
            upstream.plays(turn("one"), says(told), turn("two"), says(told), turn("three"))
            client = await open_socket(world)
            await client.ask()
            assert types(await client.ask())[-1] == "completed"
            [refused] = await client.ask(previous_response_id="resp_1")
            assert code_of(refused) == (400, "previous_response_not_found")
            assert types(await client.ask())[-1] == "completed"
            assert [number for number, _ in upstream.turns] == [1, 1, 2, 2, 3]
            assert not world.upstream("b").turns


async def test_an_old_or_ended_websocket_is_not_used_again(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    limit = {"type": "error", "error": {"code": "websocket_connection_limit_reached"}}
    async with socket_world(codex_described(tmp_path, "a")) as world:
        upstream = world.upstream()
        upstream.plays(turn("one"), [*turn("two"), Pause(1), *says(limit), Fin()], turn("three"))
        client = await open_socket(world)
        await client.ask()
        for _ in range(3):  # the idle time of the client is shorter than the hour
            await trio.sleep_until(trio.current_time() + 1200)
            [event] = await client.ask(model="nobody")
            assert code_of(event) == (400, "model_not_found")
        await client.ask()
        await trio.sleep_until(trio.current_time() + 5)  # it was told to be spent, and closed
        assert types(await client.ask())[-1] == "completed"
        assert [number for number, _ in upstream.turns] == [1, 2, 3]


async def test_what_comes_between_two_turns_is_of_neither(autojump_clock: MockClock) -> None:
    stray = {"type": "response.completed", "response": {"id": "resp_0", "output": []}}
    async with socket_world(socket_described("a")) as world:
        strays = [*says(stray, stray, b"[]", b"nonsense", stray)]
        world.upstreams["a"].plays([*turn("one"), *strays], turn("two"))
        client = await open_socket(world)
        await client.ask()
        await world.settle()
        events = await client.ask()
        assert types(events) == ["created", "in_progress", "output_text.delta", "completed"]


AT_UPGRADE: Final[dict[str, tuple[int, str | None, str]]] = {
    "429": (429, "usage_limit_reached", "b"),
    "401": (401, "token_expired", "b"),
    "503": (503, "server_is_overloaded", "b"),
    "426": (426, None, "b"),
    "404": (404, None, "b"),
}


@pytest.mark.parametrize("case", AT_UPGRADE)
async def test_a_refused_upgrade_is_judged_like_a_request(
    case: str, autojump_clock: MockClock
) -> None:
    status, code, served_by = AT_UPGRADE[case]
    described = socket_described(pool={"routing": "in_order"})
    async with socket_world(described) as world:
        world.upstream("a").upgrades.append(error_response(status, code))
        world.upstreams["b"].plays(turn("one"))
        client = await open_socket(world)
        assert types(await client.ask())[-1] == "completed"
        assert [name for name, _, _ in world.turns] == [served_by]


async def test_an_upstream_that_takes_no_websocket_is_known_for_an_hour(
    autojump_clock: MockClock,
) -> None:
    async with socket_world(socket_described("a")) as world:
        world.upstream("a").upgrades.append(error_response(426, None))
        client = await open_socket(world)
        [event] = await client.ask()
        assert code_of(event) == (426, "websocket_unsupported")
        refused = await (await world.connect()).ask(upgrade())
        assert refused.status == 426
        world.upstreams["a"].plays(json_response({"object": "response", "output": []}))
        answer = await world.ask(post("/v1/responses", {"model": "m1", "input": "hi"}))
        assert answer.status == 200
        await trio.sleep_until(trio.current_time() + 3601)
        await open_socket(world)


ODD_UPGRADES: Final[dict[str, bytes]] = {
    "another nonce": b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
    "no upgrade": b"HTTP/1.1 101 S\r\n\r\n",
    "a plain 200": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "no HTTP": b"SSH-2.0-x\r\n\r\n",
    "a bare LF": b"HTTP/1.1 101 S\nUpgrade: websocket\n\n",
    "an endless head": b"HTTP/1.1 101 S\r\n" + b"X: " + b"x" * 40_000,
    "nothing": b"",
}


@pytest.mark.parametrize("case", ODD_UPGRADES)
async def test_an_odd_upgrade_goes_to_the_next_account(
    case: str, autojump_clock: MockClock
) -> None:
    described = socket_described(pool={"routing": "in_order"})
    async with socket_world(described) as world:
        world.upstream("a").upgrades.append([Send(ODD_UPGRADES[case]), Fin()])
        world.upstreams["b"].plays(turn("one"))
        client = await open_socket(world)
        assert types(await client.ask())[-1] == "completed"
        assert world.open_count == 1


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("path", ["/v1/responses", NATIVE])
async def test_nothing_of_an_account_or_a_prompt_is_told(
    path: str, is_late: bool, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """What the account's upstream says of it in headers of an error is for nobody."""
    told = error_frame(400, "a_code", {"x-codex-plan-type": "canary-plan"})
    begun = turn("word")[:3] if is_late else []
    async with socket_world(codex_described(tmp_path)) as world:
        world.upstreams["a"].plays([*begun, *told])
        client = await open_socket(world, path=path, more=[("Cookie", "canary-cookie")])
        body = {"input": INPUT, "instructions": "canary-prompt", "stream_id": "canary-stream"}
        events = await client.ask(**body)
        assert events[-1]["type"] == "error"
        assert "canary-plan" not in json.dumps(events)
        shown = json.dumps([world.logged, world.upstream("a").handshakes, world.records])
        assert "canary" not in shown
        assert "canary-stream" not in json.dumps(world.turns)
        assert "acct-a" not in json.dumps([events, world.logged])


async def test_a_401_renews_the_login_and_asks_the_same_account(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with socket_world(codex_described(tmp_path)) as world:
        world.upstream("a").upgrades.append(error_response(401, "token_expired"))
        world.upstreams["b"].plays(turn("one"))
        client = await open_socket(world)
        assert types(await client.ask())[-1] == "completed"  # no token endpoint here: the next one
        assert [attempt["account"] for attempt in world.records[-1]["attempts"]] == ["a", "b"]
        assert world.records[-1]["attempts"][0]["renewed"]
