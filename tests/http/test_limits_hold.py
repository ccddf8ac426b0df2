"""Proves that every limit holds: what is at it passes, what is one past it does not.

Method: a table names for each limit the test that crosses it, here or in another file;
a settable one without a row fails.  The tests move one limit to a small value and stand on both
sides.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import re
import tracemalloc
from typing import Final

import pytest
import trio
from trio.testing import MockClock

import pooler
from pooler import (
    ERROR_BODY_BYTES_MAX,
    LINGER_BYTES_MAX,
    MODEL_BLOCKS_MAX,
    Effect,
    Limits,
)
from tests.support.memory_sockets import (
    KEY,
    OTHER_KEY,
    Client,
    Json,
    Pairs,
    ask_responses,
    post,
    request,
)
from tests.support.paths import ROOT
from tests.support.world import (
    LAST_CHUNK,
    Fin,
    Send,
    Stall,
    Step,
    Wait,
    World,
    check_error,
    chunk,
    connect_with_key,
    describe,
    error_response,
    is_closed,
    json_response,
    opened_world,
    response_head,
    responses_events,
    sse_event,
    sse_response,
    sse_steps,
)

CHOICE: Final = "test_account_choice.py"
FAILOVER: Final = "test_failover_is_safe.py"
HERE: Final = "test_limits_hold.py"
JSON: Final = "test_json_guard.py"
SHARES: Final = "test_shares.py"
TIMERS: Final = "test_timers.py"
SCANNER: Final = "test_sse_scanner.py"

TOKENS: Final = "test_token_refresh.py"
OPERATORS: Final = "test_operators.py"
SOCKETS: Final = "test_websocket_bounds.py"
CROSSED_BY: Final[dict[str, tuple[str, str]]] = {
    "head_bytes_max": (HERE, "test_a_head_has_so_many_bytes"),
    "head_fields_max": (HERE, "test_a_head_has_so_many_fields"),
    "target_bytes_max": (HERE, "test_a_target_has_so_many_bytes"),
    "bearer_bytes_max": (HERE, "test_a_bearer_has_so_many_bytes"),
    "head_seconds_max": (TIMERS, "test_a_new_connection_has_15_seconds_to_speak"),
    "keep_alive_seconds_max": (TIMERS, "test_an_idle_connection_is_closed_after_75_seconds"),
    "body_bytes_max": (HERE, "test_a_body_has_so_many_bytes"),
    "bodies_bytes_max": (HERE, "test_all_bodies_together_have_so_many_bytes"),
    "body_idle_seconds_max": (TIMERS, "test_a_slow_request_is_refused_in_time"),
    "body_seconds_max": (TIMERS, "test_a_body_may_take_two_minutes_in_all"),
    "body_depth_max": (JSON, "test_depth_at_the_limit_and_one_past_it"),
    "json_separators_max": (JSON, "test_separators_at_the_limit_and_one_past_it"),
    "connections_max": (SHARES, "test_so_many_connections_are_served"),
    "keyless_connections_max": (HERE, "test_so_many_connections_may_be_without_a_key"),
    "write_stall_seconds_max": (TIMERS, "test_a_client_that_does_not_read_is_left_after_a_minute"),
    "key_streams_max": (HERE, "test_a_key_has_so_many_streams"),
    "account_streams_max": (HERE, "test_an_account_has_so_many_streams"),
    "queue_length_max": (HERE, "test_a_queue_is_so_long"),
    "queue_seconds_max": (TIMERS, "test_the_wait_for_a_place_ends_after_ten_seconds"),
    "attempts_max": (HERE, "test_so_many_accounts_are_tried"),
    "pins_max": (HERE, "test_so_many_sessions_are_remembered"),
    "pin_idle_seconds_max": (CHOICE, "test_a_session_is_kept_for_24_idle_hours"),
    "response_pins_max": (HERE, "test_so_many_responses_are_remembered"),
    "cooldown_seconds": (HERE, "test_a_limit_without_a_time_rests_so_long"),
    "untried_seconds_max": (HERE, "test_a_refused_account_is_tried_again_so_often"),
    "reset_seconds_max": (HERE, "test_a_reset_is_plausible_up_to_so_far"),
    "demotion_seconds": (HERE, "test_a_broken_account_comes_last_so_long"),
    "connect_seconds_max": (TIMERS, "test_a_stalled_connect_costs_ten_seconds_an_account"),
    "first_event_seconds_max": (TIMERS, "test_a_silent_upstream_is_given_up_in_time"),
    "between_events_seconds_max": (
        TIMERS, "test_silence_between_events_ends_after_five_minutes"),
    "unary_seconds_max": (TIMERS, "test_a_unary_answer_may_take_nearly_ten_minutes"),
    "hold_seconds_max": (
        TIMERS, "test_the_client_gets_its_head_with_content_or_after_the_hold"),
    "handshake_events_max": (HERE, "test_so_many_handshake_events_are_held"),
    "upstream_head_bytes_max": (HERE, "test_an_answers_head_has_so_many_bytes"),
    "upstream_interim_max": (HERE, "test_so_many_interim_answers_are_skipped"),
    "unary_bytes_max": (HERE, "test_a_whole_answer_has_so_many_bytes"),
    "event_bytes_max": (HERE, "test_an_event_has_so_many_bytes"),
    "events_bytes_max": (HERE, "test_all_unfinished_events_together_have_so_many_bytes"),
    "idle_connections_max": (HERE, "test_so_many_idle_connections_are_kept"),
    "all_idle_connections_max": (HERE, "test_so_many_idle_connections_of_all_accounts_are_kept"),
    "sure_idle_connections_max": (HERE, "test_so_many_idle_connections_of_all_accounts_are_kept"),
    "idle_connection_seconds_max": (
        TIMERS, "test_an_idle_upstream_connection_is_closed_after_15_seconds"),
    "comment_seconds": (TIMERS, "test_comments_come_after_fifteen_seconds_of_silence"),
    "drain_seconds_max": (
        "test_cancellation.py", "test_a_stop_ends_what_is_left_with_one_terminal_event"),
    "websocket_handshake_seconds_max": (
        SOCKETS, "test_an_upstreams_handshake_has_so_long_and_no_longer"),
    "websocket_idle_seconds_max": (
        SOCKETS, "test_an_idle_websocket_is_closed_and_pings_do_not_keep_it"),
    "websocket_message_bytes_max": (
        SOCKETS, "test_a_clients_message_has_so_many_bytes_and_no_more"),
    "websocket_upstream_bytes_max": (
        SOCKETS, "test_an_upstream_message_has_so_many_bytes_and_no_more"),
    "websocket_frames_max": (SOCKETS, "test_a_message_comes_in_so_many_frames_and_no_more"),
    "mcp_body_bytes_max": (OPERATORS, "test_a_message_to_mcp_has_so_many_bytes_and_no_more"),
    "records_max": (OPERATORS, "test_only_so_many_requests_are_remembered"),
    "refresh_margin_seconds": (
        "test_auth_file.py", "test_a_login_is_refreshed_five_minutes_before_it_expires"),
    "refresh_seconds_max": (
        TOKENS, "test_a_lock_that_is_never_free_is_waited_for_a_bounded_time"),
    "refresh_pause_seconds": (TOKENS, "test_a_passing_failure_is_tried_again_after_a_pause"),
}  # fmt: skip


@pytest.mark.parametrize("name", CROSSED_BY)
def test_every_limit_has_a_test_that_crosses_it(name: str) -> None:
    file, test = CROSSED_BY[name]
    (path,) = (ROOT / "tests").glob(f"*/{file}")
    source = path.read_text(encoding="utf-8")
    assert re.search(rf"^(?:async )?def {test}\(", source, re.MULTILINE)


def test_no_row_outlives_its_limit() -> None:
    settable = {field.name for field in dataclasses.fields(Limits)}
    assert settable <= CROSSED_BY.keys()
    assert all(hasattr(pooler, name.upper()) for name in CROSSED_BY.keys() - settable)


def let_answer(world: World) -> None:
    for upstream in world.upstreams.values():
        upstream.always = json_response({"id": "r"})


def of_length(length: int) -> bytes:
    """A valid body of that length."""
    shell = b'{"model": "m1", "input": ""}'
    return shell[:-2] + b"x" * (length - len(shell)) + shell[-2:]


################################################################
# A REQUEST
################################################################


def padded(length: int) -> bytes:
    """A request head of that length."""
    empty = request("GET", "/v1/models", headers=[("X-Pad", "")])
    pad = "y" * (length - len(empty))
    return request("GET", "/v1/models", headers=[("X-Pad", pad)])


@pytest.mark.parametrize("step", [1, 7, 100_000])
async def test_a_head_has_so_many_bytes(autojump_clock: MockClock, step: int) -> None:
    async with opened_world(describe("a", limits={"head_bytes_max": 1024})) as world:
        for length, status in ((1024, 200), (1025, 431), (5000, 431)):
            client = await world.connect()
            raw = padded(length)
            assert len(raw) == length
            for at in range(0, min(length, 1100), step):
                await client.send(raw[at : at + step])
            response = await client.read_response()
            assert response.status == status
            if status == 431:
                check_error(response, 431, "head_too_large")
                assert response.header("connection") == "close"


async def test_a_head_has_so_many_fields(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a", limits={"head_fields_max": 16})) as world:
        for count, status in ((14, 200), (15, 431)):  # besides Host and Authorization
            headers = [(f"X-{number}", "y") for number in range(count)]
            response = await world.ask(request("GET", "/v1/models", headers=headers))
            assert response.status == status
            assert (b"head_too_large" in response.body) == (status == 431)


async def test_a_target_has_so_many_bytes(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a", limits={"target_bytes_max": 128})) as world:
        for length, status in ((128, 200), (129, 414), (2000, 414)):
            target = "/v1/models?".ljust(length, "x")
            response = await world.ask(request("GET", target))
            assert response.status == status
            assert (b"target_too_long" in response.body) == (status == 414)
            assert response.header("connection") == ("close" if status == 414 else None)


async def test_a_bearer_has_so_many_bytes(autojump_clock: MockClock) -> None:
    long = hashlib.sha256(b"k" * 65).hexdigest()
    keys = {"fits": "k" * 64, "long": f"sha256:{long}"}
    described = describe("a", pool={"keys": keys}, limits={"bearer_bytes_max": 64})
    async with opened_world(described) as world:
        assert (await world.ask(request("GET", "/v1/models", key="k" * 64))).status == 200
        assert (await world.ask(request("GET", "/v1/models", key="k" * 65))).status == 401


def chunked_post(body: bytes, size: int) -> bytes:
    fields = [("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")]
    pieces = [chunk(body[at : at + size]) for at in range(0, len(body), size)]
    return request("POST", "/v1/responses", headers=fields) + b"".join(pieces) + LAST_CHUNK


async def test_a_body_has_so_many_bytes(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a", limits={"body_bytes_max": 2048})) as world:
        let_answer(world)
        for size in (0, 100, 5000):
            fits, long = (
                chunked_post(body, size) if size else post("/v1/responses", body)
                for body in (of_length(2048), of_length(2049))
            )
            assert (await world.ask(fits)).status == 200
            response = await world.ask(long)
            check_error(response, 413, "request_too_large")
            assert response.header("connection") == "close"
        assert {len(asked.body) for asked in world.asked} == {2048}


async def test_a_body_too_long_by_its_own_word_is_not_read(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a", limits={"body_bytes_max": 2048})) as world:
        client = await world.connect()
        await client.send(post("/v1/responses", of_length(2049)).partition(b"\r\n\r\n")[0])
        await client.send(b"\r\n\r\n")
        check_error(await client.read_response(), 413, "request_too_large")


async def test_all_bodies_together_have_so_many_bytes(
    autojump_clock: MockClock,
) -> None:
    total = 1024 * 1024
    async with opened_world(describe("a", limits={"bodies_bytes_max": total})) as world:
        go = trio.Event()
        world.upstreams["a"].plays([Wait(go), *json_response({"id": "r"})])
        first = await world.connect()
        await first.send(post("/v1/responses", of_length(total // 2)))
        await world.settle()
        assert world.server.shared.bodies.bytes_held == total // 2
        let_answer(world)
        for key, length in ((KEY, 100), (OTHER_KEY, total // 4 + 1)):
            response = await world.ask(post("/v1/responses", of_length(length), key=key))
            check_error(response, 503, "pool_busy")
            assert 0 < int(response.header("retry-after") or 0) <= 10
        raw = post("/v1/responses", of_length(total // 4), key=OTHER_KEY)
        assert (await world.ask(raw)).status == 200
        assert world.server.shared.bodies.bytes_held == total // 2
        go.set()
        assert (await first.read_response()).status == 200
        assert world.server.shared.bodies.bytes_held == 0
        assert (await world.ask(post("/v1/responses", of_length(total // 2)))).status == 200


async def test_a_body_is_held_no_longer_than_until_its_stream_begins(
    autojump_clock: MockClock,
) -> None:
    """Until then it may have to be sent elsewhere; a stream may take an hour."""
    begins, ends = trio.Event(), trio.Event()
    first, *others = responses_events("x")
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(
            sse_steps(first, Wait(begins), *others[:-1], Wait(ends), others[-1])
        )
        client = await world.connect()
        await client.send(ask_responses(input="x" * 100_000))
        await world.settle()
        assert world.server.shared.bodies.bytes_held > 100_000
        begins.set()
        await world.settle()
        assert world.server.shared.bodies.bytes_held == 0
        ends.set()
        assert (await client.read_response()).status == 200


async def test_a_body_that_breaks_off_gives_its_bytes_back(world: World) -> None:
    client = await world.connect()
    await client.send(post("/v1/responses", of_length(100_000))[:-1])
    await world.settle()
    assert world.server.shared.bodies.bytes_held > 90_000
    await client.hang_up()
    await world.settle()
    assert world.server.shared.bodies.bytes_held == 0


################################################################
# CONNECTIONS
################################################################


async def test_a_full_house_still_takes_who_shows_a_key(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a", limits={"connections_max": 3})) as world:
        keyed = await connect_with_key(world)
        idle = [await world.connect() for _ in range(2)]
        await world.settle()
        late = await connect_with_key(world)
        assert await is_closed(idle[0])
        assert not await is_closed(idle[1])
        for client in (keyed, late):
            assert (await client.ask(request("GET", "/healthz"))).status == 200
        assert len(world.server.connections.counted) == 3


async def test_so_many_connections_may_be_without_a_key(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a", limits={"keyless_connections_max": 2})) as world:
        keyed = await connect_with_key(world)
        first, second = await world.connect(), await world.connect()
        await first.send(b"GET /v1/models HTTP/1.1\r\n")  # a slow head protects nobody
        await second.send(request("GET", "/v1/models", key=None))  # nor does a wrong key
        assert (await second.read_response()).status == 401
        third = await world.connect()
        await world.settle()
        assert await is_closed(first)
        assert (await second.ask(request("GET", "/healthz"))).status == 200
        fourth = await world.connect()
        await world.settle()
        assert await is_closed(second)
        for client in (keyed, third, fourth):
            assert (await client.ask(request("GET", "/v1/models"))).status == 200
        assert not world.server.connections.keyless


async def test_a_refused_body_of_the_largest_size_is_read(world: World) -> None:
    """Else a proxy that still sends it takes the reset for the answer (F109)."""
    client = await world.connect()
    size = pooler.Limits().body_bytes_max
    length = [("Content-Type", "application/json"), ("Content-Length", str(size))]
    head = request("POST", "/v1/responses", key=None, headers=length)
    await client.send(head + b"x" * size)
    assert (await client.read_response()).status == 401
    assert await client.wait_closed() == b""
    await world.settle()
    assert client.stream.outgoing.buffer == b""


async def test_a_refused_request_is_not_read_for_ever(world: World) -> None:
    client = await world.connect()
    await client.send(b"BAD\r\n\r\n" + b"x" * (2 * LINGER_BYTES_MAX))
    assert (await client.read_response()).status == 400
    assert await client.wait_closed() == b""
    await world.settle()
    unread = client.stream.outgoing
    assert unread.byte_count - len(unread.buffer) <= LINGER_BYTES_MAX + 3 * 65536
    assert trio.current_time() == 0


################################################################
# THE POOL
################################################################


async def send_waiting(world: World, count: int, **more: str) -> list[Client]:
    """So many requests under way, one after the other."""
    clients = [await world.connect() for _ in range(count)]
    for client in clients:
        await client.send(ask_responses(stream=False, **more))
        await world.settle()
    return clients


async def test_a_key_has_so_many_streams(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a", limits={"key_streams_max": 3})) as world:
        go = trio.Event()
        world.upstreams["a"].always = [Wait(go), *json_response({"id": "r"})]
        clients = await send_waiting(world, 3)
        response = await world.ask(ask_responses(stream=False))
        check_error(response, 429, "key_limit_reached")
        assert response.header("retry-after") == "1"
        other = await world.connect()
        await other.send(post("/v1/responses", {"model": "m1"}, key=OTHER_KEY))
        go.set()
        for client in (*clients, other):
            assert (await client.read_response()).status == 200


async def test_an_account_has_so_many_streams(autojump_clock: MockClock) -> None:
    limits = {"account_streams_max": 2, "queue_length_max": 0}
    async with opened_world(
        describe("ab", accounts={"b": {"priority": 1}}, limits=limits)
    ) as world:
        go = trio.Event()
        for name in "ab":
            world.upstreams[name].always = [Wait(go), *json_response({"id": "r"})]
        clients = await send_waiting(world, 4)
        assert [len(world.upstreams[name].asked) for name in "ab"] == [2, 2]
        check_error(await world.ask(ask_responses(stream=False)), 503, "pool_busy")
        go.set()
        assert [(await client.read_response()).status for client in clients] == [200] * 4


async def test_a_queue_is_so_long(autojump_clock: MockClock) -> None:
    limits = {"account_streams_max": 1, "queue_length_max": 2}
    async with opened_world(describe("a", limits=limits)) as world:
        go = trio.Event()
        world.upstreams["a"].always = [Wait(go), *json_response({"id": "r"})]
        clients = await send_waiting(world, 3)
        response = await world.ask(ask_responses(stream=False))
        check_error(response, 503, "pool_busy")
        assert 0 < int(response.header("retry-after") or 0) <= 10
        assert trio.current_time() == 0
        go.set()
        assert [(await client.read_response()).status for client in clients] == [200] * 3


@pytest.mark.parametrize("limit", [1, 2, 4, 9])
async def test_so_many_accounts_are_tried(autojump_clock: MockClock, limit: int) -> None:
    async with opened_world(describe("abcde", limits={"attempts_max": limit})) as world:
        for upstream in world.upstreams.values():
            upstream.always = error_response(500, "server_error")
        assert (await world.ask(ask_responses())).status == 500
        assert len(world.asked) == min(limit, 5)
        assert len({asked.target for asked in world.asked}) == 1


def in_session(name: str, **more: str) -> bytes:
    headers = [("session-id", name)]
    return post("/v1/responses", {"model": "m1", "stream": True} | more, headers=headers)


async def test_so_many_sessions_are_remembered(autojump_clock: MockClock) -> None:
    """While the first account rests they begin at the second one, and stay there."""
    for limit, expected in ((3, "bbbb"), (2, "bbba")):
        described = describe("ab", pool={"routing": "in_order"}, limits={"pins_max": limit})
        async with opened_world(described) as world:
            for upstream in world.upstreams.values():
                upstream.always = sse_response(responses_events("hi"))
            world.upstreams["a"].plays(error_response(429, "slow_down", [("retry-after", "60")]))
            for name in ("s1", "s2", "s3"):
                assert (await world.ask(in_session(name))).status == 200
            autojump_clock.jump(61)
            assert (await world.ask(in_session("s1"))).status == 200
            assert "".join(str(record["account"]) for record in world.records) == expected
            assert len(world.server.shared.roster.sessions.pins) == limit


def named_response(response_id: str) -> list[Step]:
    events = responses_events("hi")
    for event in events:
        if "response" in event:
            event["response"]["id"] = response_id
    return sse_response(events)


async def test_so_many_responses_are_remembered(autojump_clock: MockClock) -> None:
    for limit, expected in ((2, "aba"), (1, "abc")):
        described = describe("abc", limits={"response_pins_max": limit})
        async with opened_world(described) as world:
            for name in "abc":
                world.upstreams[name].always = named_response(f"resp_{name}")
            for previous in (None, None, "resp_a"):
                raw = ask_responses(previous_response_id=previous)
                assert (await world.ask(raw)).status == 200
            assert "".join(str(record["account"]) for record in world.records) == expected
            assert len(world.server.shared.roster.sessions.creators) == limit


async def wait_until(moment: float) -> None:
    with trio.move_on_at(moment):
        await trio.sleep_forever()


async def test_a_limit_without_a_time_rests_so_long(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a", limits={"cooldown_seconds": 20})) as world:
        world.upstreams["a"].plays(error_response(429, "rate_limit_exceeded"))
        response = await world.ask(ask_responses())
        assert response.header("retry-after") == "20"
        let_answer(world)
        for moment, status in ((19.9, 429), (20, 200)):
            await wait_until(moment)
            assert (await world.ask(ask_responses(stream=False))).status == status


async def test_a_refused_account_is_tried_again_so_often(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a", limits={"untried_seconds_max": 50})) as world:
        world.upstreams["a"].plays(error_response(401, "invalid_api_key"))
        check_error(await world.ask(ask_responses()), 503, "no_usable_account")
        let_answer(world)
        for moment, status in ((49.9, 503), (50, 200), (50, 200)):
            await wait_until(moment)
            assert (await world.ask(ask_responses(stream=False))).status == status


async def test_a_reset_is_plausible_up_to_so_far(autojump_clock: MockClock) -> None:
    for told, rests in ((100, 100), (101, 30), (0, 30), (-5, 30)):
        async with opened_world(describe("a", limits={"reset_seconds_max": 100})) as world:
            answer = error_response(429, "rate_limit_exceeded", resets_in_seconds=told)
            world.upstreams["a"].plays(answer)
            response = await world.ask(ask_responses())
            assert response.error["resets_in_seconds"] == rests


async def test_a_broken_account_comes_last_so_long(autojump_clock: MockClock) -> None:
    described = describe("ab", limits={"demotion_seconds": 40})
    async with opened_world(described) as world:
        world.upstreams["a"].plays(error_response(500, "server_error"))
        let_answer(world)
        for moment in (0, 39.9, 40):
            await wait_until(moment)
            assert (await world.ask(ask_responses(stream=False))).status == 200
        assert [record["account"] for record in world.records] == ["b", "b", "a"]


async def test_an_account_lacks_so_many_models_at_most(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a", accounts={"a": {"models": None}})) as world:
        world.upstreams["a"].always = error_response(404, "model_not_found")
        for number in range(MODEL_BLOCKS_MAX + 5):
            response = await world.ask(ask_responses(model=f"model-{number}"))
            check_error(response, 400, "model_not_found")
        assert (
            len(world.server.shared.roster.health["a"].blocks[Effect.LACKS_MODEL])
            == MODEL_BLOCKS_MAX
        )


################################################################
# AN ANSWER
################################################################


def padded_response(length: int) -> list[Step]:
    fields = [("content-type", "application/json"), ("content-length", "2")]
    empty = response_head(200, [*fields, ("x", "")])
    head = response_head(200, [*fields, ("x", "y" * (length - len(empty)))])
    assert len(head) == length
    return [Send(head + b"{}")]


async def test_an_answers_head_has_so_many_bytes(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a", limits={"upstream_head_bytes_max": 1024})) as world:
        for length, status in ((1024, 200), (1025, 502), (9000, 502)):
            world.upstreams["a"].plays(padded_response(length))
            assert (await world.ask(ask_responses(stream=False))).status == status
        endless: list[Step] = [Send(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 2000), Stall()]
        world.upstreams["a"].plays(endless)
        response = await world.ask(ask_responses(stream=False))
        check_error(response, 502, "upstream_invalid_response")


@pytest.mark.parametrize("limit", [0, 1, 8])
async def test_so_many_interim_answers_are_skipped(autojump_clock: MockClock, limit: int) -> None:
    async with opened_world(describe("a", limits={"upstream_interim_max": limit})) as world:
        for count, status in ((limit, 200), (limit + 1, 502)):
            interim = Send(response_head(103, [("link", "</x>")]) * count)
            world.upstreams["a"].plays([interim, *json_response({"id": "r"})])
            assert (await world.ask(ask_responses(stream=False))).status == status


def framed_response(body: bytes, framing: str) -> list[Step]:
    fields: Pairs = [("content-type", "application/json")]
    if framing == "length":
        return [Send(response_head(200, [*fields, ("content-length", str(len(body)))]) + body)]
    if framing == "close":
        return [Send(response_head(200, fields) + body), Fin()]
    half = len(body) // 2
    pieces = chunk(body[:half]) + chunk(body[half:]) + LAST_CHUNK
    return [Send(response_head(200, [*fields, ("transfer-encoding", "chunked")]) + pieces)]


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_a_whole_answer_has_so_many_bytes(autojump_clock: MockClock, framing: str) -> None:
    async with opened_world(describe("a", limits={"unary_bytes_max": 1024})) as world:
        for length, status in ((1024, 200), (1025, 502)):
            world.upstreams["a"].plays(framed_response(of_length(length), framing))
            response = await world.ask(ask_responses(stream=False))
            assert response.status == status
            if status == 200:
                assert response.body == of_length(1024)


async def test_an_error_body_has_so_many_bytes(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a")) as world:
        for length, is_shown in ((ERROR_BODY_BYTES_MAX, True), (ERROR_BODY_BYTES_MAX + 1, False)):
            world.upstreams["a"].plays(json_response(of_length(length), 400))
            response = await world.ask(ask_responses(stream=False))
            assert response.status == 400  # which says enough without the words
            assert (response.body == of_length(length)) is is_shown


async def test_so_many_handshake_events_are_held(autojump_clock: MockClock) -> None:
    created = responses_events()[0]
    for count, at in ((4, 10), (5, 0)):
        async with opened_world(describe("a", limits={"handshake_events_max": 4})) as world:
            world.upstreams["a"].plays(sse_steps(*[created] * count, Stall()))
            client = await world.connect()
            await client.send(ask_responses())
            began = trio.current_time()
            assert (await client.read_head()).status == 200
            assert trio.current_time() - began == at


def half_event(length: int) -> bytes:
    """The beginning of an event, of that length with its (missing) end."""
    return b'data: {"type": "response.output_text.delta", "delta": "'.ljust(length, b"x")


async def started_stream(world: World, *steps: Step, name: str = "a", model: str = "m1") -> Client:
    """A stream past its first content, and then these steps."""
    first, go = responses_events("hi")[:3], trio.Event()
    world.upstreams[name].plays(sse_steps(*first, Wait(go), *steps, is_whole=False))
    client = await world.connect()
    await client.send(ask_responses(model=model))
    assert (await client.read_head()).status == 200
    for _ in first:
        await client.read_event()
    go.set()
    return client


async def test_an_event_has_so_many_bytes(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a", limits={"event_bytes_max": 1024})) as world:
        for length, is_refused in ((1024, False), (1025, True)):
            client = await started_stream(world, Send(chunk(half_event(length))), Stall())
            event = b""
            with trio.move_on_after(1):
                event = await client.read_event()
            assert event.startswith(b"event: response.failed") == is_refused
            assert (b"upstream_invalid_response" in event) == is_refused
            await client.hang_up()


async def test_all_unfinished_events_together_have_so_many_bytes(
    autojump_clock: MockClock,
) -> None:
    """And those for one key at one account no more than a quarter: there are others."""
    total = 1024 * 1024
    accounts = {"a": {"models": ["m1"]}, "b": {"models": ["m2"]}}
    limits = {"events_bytes_max": total}
    async with opened_world(describe("ab", accounts=accounts, limits=limits)) as world:
        half = Send(chunk(half_event(total // 4 - 1000)))
        first = await started_stream(world, half, Stall())
        await world.settle()
        assert world.server.shared.events.bytes_held == total // 4 - 1000
        over = await started_stream(world, Send(chunk(half_event(1001))), Stall())
        assert b"response.failed" in await over.read_event()
        half = Send(chunk(half_event(total // 8)))
        second = await started_stream(world, half, Stall(), name="b", model="m2")
        await world.settle()
        assert world.server.shared.events.bytes_held == total * 3 // 8 - 1000
        await second.hang_up()
        await world.settle()
        assert world.server.shared.events.bytes_held == total // 4 - 1000
        await first.hang_up()
        await world.settle()
        assert world.server.shared.events.bytes_held == 0


async def test_what_is_held_before_the_first_content_counts_too(
    autojump_clock: MockClock,
) -> None:
    total = 1024 * 1024
    async with opened_world(describe("a", limits={"events_bytes_max": total})) as world:
        created = responses_events()[0]
        held = len(sse_event(created))
        clients = []
        for length in (total // 4 - held, 100):
            half = Send(chunk(half_event(length)))
            world.upstreams["a"].plays(sse_steps(created, half, Stall(), is_whole=False))
            clients.append(await world.connect())
            await clients[-1].send(ask_responses())
            await world.settle()
        assert world.server.shared.events.bytes_held == total // 4
        check_error(await clients[1].read_response(), 503, "pool_busy")
        await clients[0].hang_up()
        await world.settle()
        assert world.server.shared.events.bytes_held == 0


@pytest.mark.parametrize("limit", [0, 1, 3])
async def test_so_many_idle_connections_are_kept(autojump_clock: MockClock, limit: int) -> None:
    async with opened_world(describe("a", limits={"idle_connections_max": limit})) as world:
        go = trio.Event()
        world.upstreams["a"].always = [Wait(go), *json_response({"id": "r"})]
        clients = await send_waiting(world, 5)
        go.set()
        for client in clients:
            assert (await client.read_response()).status == 200
        await world.settle()
        lines = world.upstreams["a"].lines
        assert len(lines) == 5
        assert sum(line.closed_at is None for line in lines) == limit


@pytest.mark.parametrize(
    ("limit", "sure", "kept"), [(0, 0, 0), (0, 1, 2), (0, 3, 5), (3, 0, 3), (3, 2, 4), (9, 0, 5)]
)
async def test_so_many_idle_connections_of_all_accounts_are_kept(
    autojump_clock: MockClock, limit: int, sure: int, kept: int
) -> None:
    """Two of one account come free, and then three of another."""
    described = describe(
        "ab",
        accounts={"a": {"concurrent": 2}},
        pool={"routing": "in_order"},
        limits={"all_idle_connections_max": limit, "sure_idle_connections_max": sure},
    )
    async with opened_world(described) as world:
        goes = [trio.Event() for _ in world.upstreams]
        for upstream, go in zip(world.upstreams.values(), goes, strict=True):
            upstream.always = [Wait(go), *json_response({"id": "r"})]
        clients = await send_waiting(world, 5)
        for go in goes:
            go.set()
            await world.settle()
        for client in clients:
            assert (await client.read_response()).status == 200
        await world.settle()
        lines = [line for upstream in world.upstreams.values() for line in upstream.lines]
        assert [len(upstream.lines) for upstream in world.upstreams.values()] == [2, 3]
        assert sum(line.closed_at is None for line in lines) == kept


def test_the_default_limits_are_those_of_the_readme() -> None:
    """All others are constants that no configuration moves."""
    mib = 1024 * 1024
    limits = Limits()
    assert (pooler.HEAD_BYTES_MAX, pooler.HEAD_FIELDS_MAX) == (32 * 1024, 100)
    assert (pooler.TARGET_BYTES_MAX, pooler.BEARER_BYTES_MAX) == (8 * 1024, 512)
    assert (pooler.HEAD_SECONDS_MAX, pooler.KEEP_ALIVE_SECONDS_MAX) == (15, 75)
    assert (limits.body_bytes_max, limits.bodies_bytes_max) == (32 * mib, 256 * mib)
    assert (pooler.BODY_IDLE_SECONDS_MAX, pooler.BODY_SECONDS_MAX) == (30, 120)
    assert (pooler.BODY_DEPTH_MAX, pooler.JSON_SEPARATORS_MAX) == (100, 200_000)
    assert (limits.connections_max, pooler.KEYLESS_CONNECTIONS_MAX) == (1024, 256)
    assert (limits.key_streams_max, limits.account_streams_max) == (64, 16)
    assert (pooler.QUEUE_LENGTH_MAX, limits.queue_seconds_max) == (64, 10)
    assert (pooler.CONNECT_SECONDS_MAX, limits.first_event_seconds_max) == (10, 120)
    assert (limits.between_events_seconds_max, limits.unary_seconds_max) == (300, 600)
    assert (pooler.HOLD_SECONDS_MAX, pooler.HANDSHAKE_EVENTS_MAX) == (10, 16)
    assert (pooler.UPSTREAM_HEAD_BYTES_MAX, pooler.UPSTREAM_INTERIM_MAX) == (32 * 1024, 8)
    assert (64 * mib, 16 * mib) == (pooler.UNARY_BYTES_MAX, pooler.EVENT_BYTES_MAX)
    assert 256 * mib == pooler.EVENTS_BYTES_MAX
    assert (pooler.IDLE_CONNECTIONS_MAX, pooler.ALL_IDLE_CONNECTIONS_MAX) == (64, 128)
    assert pooler.SURE_IDLE_CONNECTIONS_MAX == 8
    assert pooler.IDLE_CONNECTION_SECONDS_MAX == 15
    assert pooler.WRITE_STALL_SECONDS_MAX == 60
    assert (pooler.PINS_MAX, pooler.PIN_IDLE_SECONDS_MAX) == (4096, 24 * 3600)
    assert (pooler.RESPONSE_PINS_MAX, limits.attempts_max) == (4096, 3)
    assert (limits.cooldown_seconds, pooler.UNTRIED_SECONDS_MAX) == (30, 15 * 60)
    assert (pooler.RESET_SECONDS_MAX, pooler.DEMOTION_SECONDS) == (32 * 24 * 3600, 60)
    assert (limits.drain_seconds_max, limits.comment_seconds) == (30, 15)


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


KIB: Final = 1024


@pytest.mark.parametrize("is_error", [False, True])
async def test_an_answer_that_finds_no_room_is_no_fault_of_its_upstream(
    is_error: bool, autojump_clock: MockClock
) -> None:
    """An error's status is told all the same."""
    total = 1024 * KIB
    async with opened_world(describe("a", limits={"events_bytes_max": total})) as world:
        large: Json = {"id": "r", "x": "y" * (total // 2)}
        refusal = {"error": {"message": "no", "code": "x", "x": large["x"]}}
        world.upstreams["a"].plays(
            json_response(refusal, 422) if is_error else json_response(large)
        )
        response = await world.ask(ask_responses(stream=False))
        wanted = (422, "upstream_error") if is_error else (503, "pool_busy")
        assert (response.status, response.error["code"]) == wanted
