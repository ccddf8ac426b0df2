"""Proves that what many share is shared: no key and no account takes what the others need.

Method: a whole server in virtual time, where one key takes all that it can get: connections, places
at an account, the queue, sessions that are remembered.  tests/long/test_fair_shares.py has the same
with real sockets.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from pooler import (
    MODEL_CHARS_MAX,
    PLACES_KEPT_PART,
    RECEIVE_BYTES,
    RESPONSE_ID_CHARS_MAX,
    SPARE_CONNECTIONS_MAX,
    Budget,
    Memory,
    PoolerError,
    Unpacking,
    call_route,
    read_call,
)
from tests.support.memory_sockets import KEY, OTHER_KEY, Client, Json, ask_responses, post, request
from tests.support.memory_websockets import codex_described, socket_world
from tests.support.world import (
    Pause,
    Send,
    Wait,
    World,
    check_error,
    chunk,
    connect_with_key,
    describe,
    error_response,
    is_closed,
    json_response,
    make_config,
    opened_world,
    responses_events,
    sse_event,
    sse_response,
    sse_steps,
)

THIRD_KEY: Final = "cp-third-key-0123456789"
KEYS: Final = {"laptop": KEY, "ci": OTHER_KEY, "third": THIRD_KEY}


################################################################
# BUDGETS
################################################################


def test_a_budget_gives_nobody_more_than_is_left_for_the_others() -> None:
    budget = Budget(1200)
    assert not budget.grow("a", 601)
    assert budget.grow("a", 600)
    assert not budget.grow("a", 1)
    assert budget.grow("b", 300)
    assert not budget.grow("b", 1)
    assert budget.grow("c", 150)
    assert budget.bytes_held == 1050
    budget.grow("a", -600)
    assert budget.grow("b", 75)
    budget.force("b", 1000)  # what is held anyway counts, however much
    assert not budget.grow("d", 1)
    budget.force("b", -1375)
    budget.force("c", -150)
    assert (budget.bytes_held, budget.by_holder) == (0, {})


def test_no_key_has_more_of_an_account_than_the_account_could_take_for_the_others() -> None:
    budget = Budget(1200)
    assert not budget.grow("a", 301, "laptop")
    assert budget.grow("a", 300, "laptop")
    assert not budget.grow("a", 1, "laptop")
    assert budget.grow("a", 150, "ci")  # of the 600 that are left the account may take 300
    assert not budget.grow("a", 1, "ci")
    assert budget.grow("b", 150, "laptop")  # another account's share is another one
    assert not budget.grow("b", 100, "laptop")
    for holder, user, count in (("a", "laptop", 300), ("a", "ci", 150), ("b", "laptop", 150)):
        assert budget.grow(holder, -count, user)
    assert (budget.bytes_held, budget.by_holder, budget.by_user) == (0, {}, {})


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_so_many_who_take_all_they_can_leave_something_for_the_next(count: int) -> None:
    budget = Budget(1 << 30)
    for holder in range(count):
        while budget.grow(holder, 1000):
            pass
    left = budget.bytes_max - budget.bytes_held
    assert left >= budget.bytes_max >> count
    assert budget.grow("next", left // 2)
    assert not budget.grow("next", 1000)


@pytest.mark.parametrize(
    ("limits", "warned"),
    [
        ({"bodies_bytes_max": 64 << 20}, ["limits.bodies_bytes_max"]),
        ({"bodies_bytes_max": 64 << 20, "body_bytes_max": 8 << 20}, []),
        (
            {"bodies_bytes_max": (64 << 20) - 1, "body_bytes_max": 8 << 20},
            ["limits.bodies_bytes_max"],
        ),
    ],
)
def test_a_budget_that_is_little_for_what_one_may_hold_is_warned_of(
    limits: Json, warned: list[str]
) -> None:
    config = make_config(describe("a", limits=limits))
    told = [one.partition(":")[0] for one in config.warnings if one.startswith("limits.")]
    assert told == warned


def test_who_has_most_forgets_first() -> None:
    memory = Memory[int]()
    for at in range(4):
        memory.set("quiet", b"q%d" % at, at, 10)
    for at in range(100):
        memory.set("loud", b"l%d" % at, at, 10)
    assert len(memory) == 10
    assert [memory.get("quiet", b"q%d" % at) for at in range(4)] == [0, 1, 2, 3]
    assert [at for at in range(100) if memory.get("loud", b"l%d" % at)] == [94, 95, 96, 97, 98, 99]
    assert memory.get("quiet", b"l99") is None
    memory.set("quiet", b"q0", 7, 10)  # set again is as new
    assert (len(memory), memory.get("quiet", b"q0")) == (10, 7)
    for at in range(3):
        memory.set("other", b"o%d" % at, at, 1)
    assert len(memory) == 1


################################################################
# WHAT IS HELD
################################################################


async def test_keys_take_turns_with_large_bodies(autojump_clock: MockClock) -> None:
    """One is taken apart at a time, and of each key one waits for that."""
    unpacking, order = Unpacking(), []

    async def unpack(key: str) -> None:
        async with unpacking(key, RECEIVE_BYTES + 1):
            order.append(key)
            await trio.sleep_until(trio.current_time() + 1)

    async with trio.open_nursery() as nursery:
        for key in "aaaab":
            nursery.start_soon(unpack, key)
            await trio.testing.wait_all_tasks_blocked()
        async with unpacking("c", RECEIVE_BYTES):  # a small one does not wait
            assert order == ["a"]
    assert order == list("abaaa")
    assert trio.current_time() == 5
    assert unpacking.by_holder == {}


async def test_a_large_body_waits_for_its_turn_when_it_is_repaired_too(
    autojump_clock: MockClock,
) -> None:
    """It is parsed once more, for what the upstream could not read."""
    items: list[Json] = [
        {"type": "reasoning", "encrypted_content": "x" * RECEIVE_BYTES, "summary": []},
        {"type": "message", "role": "user", "content": "hi"},
    ]
    async with opened_world(describe("a")) as world:
        go, upstream = trio.Event(), world.upstreams["a"]
        upstream.plays([Wait(go), *error_response(400, "invalid_encrypted_content")])
        upstream.always = json_response({"id": "r"})
        client = await world.connect()
        await client.send(ask_responses(stream=False, input=items))
        await world.settle()

        async with world.server.shared.unpacking("another", RECEIVE_BYTES + 1):
            go.set()
            await world.settle()
            assert len(world.asked) == 1
        assert (await client.read_response()).status == 200
        assert len(world.asked) == 2


async def test_who_leaves_the_queue_for_large_bodies_leaves_nothing(
    autojump_clock: MockClock,
) -> None:
    unpacking = Unpacking()
    for seconds in (0, 1, 2.5):
        async with trio.open_nursery() as nursery:
            for key in "aab":
                nursery.start_soon(hold_bench, unpacking, key)
            with trio.move_on_after(seconds):
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()
        assert unpacking.by_holder == {}
        assert not unpacking.bench.locked()


async def hold_bench(unpacking: Unpacking, key: str) -> None:
    async with unpacking(key, RECEIVE_BYTES + 1):
        await trio.sleep_until(trio.current_time() + 1)


async def test_what_a_slow_client_has_not_taken_counts_for_its_account(
    autojump_clock: MockClock,
) -> None:
    """The second stream, whose event finds no room, is told so; the first goes on."""
    total = 2 * 1024 * 1024
    async with opened_world(describe("a", limits={"events_bytes_max": total})) as world:
        events = responses_events("hi")
        clients = []
        for size in (300_000, 240_000):
            large = responses_events("x" * size)[2]
            steps = sse_steps(*events[:3], Pause(1), large, Pause(100), *events[3:])
            world.upstreams["a"].plays(steps)
            clients.append(await world.connect(capacity=4000))
            await clients[-1].send(ask_responses())
            await trio.sleep_until(trio.current_time() + 2)
        assert 300_000 < world.server.shared.events.bytes_held < 310_000
        refused = (await clients[1].read_response()).body
        assert (refused.count(b"response.failed"), b"pool_busy" in refused) == (2, True)
        assert b"response.completed" in (await clients[0].read_response()).body
        await world.settle()
        assert world.server.shared.events.bytes_held == 0


@pytest.mark.parametrize("is_split", [False, True])
async def test_what_one_key_does_not_read_leaves_room_for_another_s_answers(
    is_split: bool, autojump_clock: MockClock
) -> None:
    """Of the same account: many streams that are not read, and one of another key that is."""
    total = 4 * 1024 * 1024
    described = describe("a", pool={"keys": KEYS}, limits={"events_bytes_max": total})
    async with opened_world(described) as world:
        events = responses_events("hi")
        for size in (*[700_000] * 3, *[300_000] * 3, *[100_000] * 3, 40_000):
            large = responses_events("x" * size)[2]
            steps = sse_steps(*events[:3], large, Pause(100), *events[3:])
            world.upstreams["a"].plays(steps)
            slow = await world.connect(capacity=4000)
            await slow.send(ask_responses())
            await trio.sleep_until(trio.current_time() + 2)
        assert world.server.shared.events.bytes_held > 900_000
        large = responses_events("y" * 300_000)[2]
        event = sse_event(large)
        split = [Send(chunk(event[:150_000])), Pause(1), Send(chunk(event[150_000:]))]
        halves = split if is_split else [large]
        world.upstreams["a"].plays(sse_steps(*events[:3], *halves, *events[3:]))
        body = {"model": "m1", "input": "x", "stream": True}
        answered = await world.ask(post("/v1/responses", body, key=OTHER_KEY))
        assert answered.status == 200
        assert b"response.completed" in answered.body
        assert len(answered.body) > 300_000


async def test_a_translated_body_counts_beside_the_one_that_it_is_made_of(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    limits = {"bodies_bytes_max": 1024 * 1024, "body_bytes_max": 500_000}
    async with socket_world(codex_described(tmp_path, "a", limits=limits)) as world:
        for size, status in ((240_000, 200), (300_000, 503)):
            world.upstreams["a"].always = sse_response(responses_events("hi"))
            body = {"model": "m1", "input": "x" * size}
            assert (await world.ask(post("/v1/responses", body))).status == status
            assert world.server.shared.bodies.bytes_held == 0
        assert len(world.asked) == 1


################################################################
# CONNECTIONS
################################################################


async def test_so_many_connections_are_served(autojump_clock: MockClock) -> None:
    """The one that has rested longest goes for another; of busy ones none does."""
    whole = describe("a", pool={"keys": {"laptop": KEY}}, limits={"connections_max": 3})
    async with opened_world(whole) as world:
        clients = [await connect_with_key(world) for _ in range(3)]
        await trio.sleep_until(trio.current_time() + 1)
        await clients[0].ask(request("GET", "/v1/models"))
        late = await connect_with_key(world)
        assert [await is_closed(client) for client in clients] == [False, True, False]

        go = trio.Event()
        world.upstreams["a"].always = [Wait(go), *json_response({"id": "r"})]
        for client in (clients[0], clients[2], late):
            await client.send(ask_responses(stream=False))
        await world.settle()
        for path in ("/healthz", "/readyz"):
            response = await world.ask(request("GET", path))
            assert (response.status, response.header("connection")) == (200, "close")
        check_error(await world.ask(request("GET", "/v1/models")), 503, "pool_busy")
        assert len(world.server.connections.counted) == 3
        go.set()
        for client in (clients[0], clients[2], late):
            assert (await client.read_response()).status == 200


async def test_so_many_more_may_ask_for_its_health(autojump_clock: MockClock) -> None:
    whole = describe("a", pool={"keys": {"laptop": KEY}}, limits={"connections_max": 2})
    async with opened_world(whole) as world:
        go = trio.Event()
        world.upstreams["a"].always = [Wait(go), *json_response({"id": "r"})]
        busy = [await world.connect() for _ in range(2)]
        for client in busy:
            await client.send(ask_responses(stream=False))
        await world.settle()
        spares = [await world.connect() for _ in range(SPARE_CONNECTIONS_MAX + 1)]
        await world.settle()
        assert await is_closed(spares[0])
        assert not await is_closed(spares[1])
        assert (await world.ask(request("GET", "/healthz"))).status == 200
        go.set()
        for client in busy:
            assert (await client.read_response()).status == 200


async def test_the_key_that_has_most_connections_loses_one(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a", limits={"connections_max": 6})) as world:
        quiet = await world.connect()
        await quiet.ask(request("GET", "/v1/models", key=OTHER_KEY))
        loud = [await connect_with_key(world) for _ in range(5)]
        for _ in range(10):
            await trio.sleep_until(trio.current_time() + 1)
            loud.append(await connect_with_key(world))
        assert not await is_closed(quiet)
        assert (await quiet.ask(request("GET", "/v1/models", key=OTHER_KEY))).status == 200


@pytest.mark.parametrize("unread", ["an answer", "half a head"])
async def test_a_connection_that_rests_in_disguise_goes_as_well(
    unread: str, autojump_clock: MockClock
) -> None:
    """Its client reads no answer, or begins a request and does not go on."""
    names = [f"model-{at:05}" for at in range(2000)]
    whole = describe("a", pool={"models": names}, limits={"connections_max": 4})
    async with opened_world(whole) as world:
        clients = []
        for _ in range(4):
            client = await world.connect(capacity=1000)
            clients.append(client)
            if unread == "an answer":
                await client.send(request("GET", "/v1/models"))
            else:
                await client.ask(request("GET", "/v1/usage"))
                await client.send(b"GET /v1/usage HTTP/1.1\r\n")
            await world.settle()
        assert len(world.server.connections.counted) == 4
        assert (await world.ask(request("GET", "/v1/usage", key=OTHER_KEY))).status == 200


async def test_one_key_leaves_some_connections_to_the_others(autojump_clock: MockClock) -> None:
    """Of those at work, which cannot go for another, an eighth; a key that is alone has all."""
    for keys in ({"laptop": KEY, "ci": OTHER_KEY}, {"laptop": KEY}):
        pool = {"keys": keys}
        whole = describe("a", pool=pool, limits={"connections_max": 16, "account_streams_max": 64})
        async with opened_world(whole) as world:
            go = trio.Event()
            world.upstreams["a"].always = [Wait(go), *json_response({"id": "r"})]
            loud = await waits(world, [KEY] * 16)
            quiet: list[Client] = []
            is_shared = len(keys) > 1
            assert world.server.connections.busy == {("home", "laptop"): 14 if is_shared else 16}
            if is_shared:
                for client in loud[14:]:
                    check_error(await client.read_response(), 503, "pool_busy")
                quiet = await waits(world, [OTHER_KEY, OTHER_KEY])
                assert len(world.asked) == 16
            go.set()
            for client in (*loud[:14], *quiet):
                assert (await client.read_response()).status == 200
            await world.settle()
            assert world.server.connections.busy == {}


async def test_descriptors_bound_the_connections(autojump_clock: MockClock) -> None:
    async with opened_world(describe("ab")) as world:
        assert world.server.connections.count_max == 1024
        world.server.connections.descriptors_max = 256
        assert world.server.connections.count_max == (256 - 32 - 2 * 64) // 2
        world.server.connections.warn_of_descriptors()
        [(level, event, fields)] = world.logged
        assert (level, event) == ("warning", "config")
        assert "ulimit -n" in fields["problem"]
        world.server.connections.descriptors_max = 20
        assert world.server.connections.count_max == 1
        assert (await world.ask(request("GET", "/v1/models"))).status == 200


################################################################
# PLACES AND QUEUES
################################################################


def crowded(concurrent: int = 2, **limits: float) -> Json:
    account = {"concurrent": concurrent}
    return describe("a", accounts={"a": account}, pool={"keys": KEYS}, limits=limits)


async def waits(world: World, keys: Iterable[str]) -> list[Client]:
    """Clients whose requests came one after the other, and are at an account or in the queue."""
    clients = []
    for number, key in enumerate(keys):
        client = await world.connect()
        body = {"model": "m1", "input": f"{number}", "stream": False}
        await client.send(post("/v1/responses", body, key=key))
        await world.settle()
        clients.append(client)
    return clients


def held(world: World, *go: trio.Event) -> None:
    """Each answer waits for an event of its own."""
    world.upstreams["a"].plays(*([Wait(one), *json_response({"id": "r"})] for one in go))
    world.upstreams["a"].always = json_response({"id": "r"})


async def test_the_queue_serves_the_key_that_has_least(autojump_clock: MockClock) -> None:
    async with opened_world(crowded()) as world:
        events = [trio.Event() for _ in range(8)]
        held(world, *events)
        await waits(world, [KEY] * 5 + [OTHER_KEY, THIRD_KEY])
        for event in events:
            event.set()
            await world.settle()
        order = [asked.json()["input"] for asked in world.asked]
        assert order == ["0", "1", "5", "2", "6", "3", "4"]


async def test_a_full_queue_gives_way_to_a_key_that_has_fewer_in_it(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(crowded(queue_length_max=4)) as world:
        go = trio.Event()
        held(world, go, go)
        loud = await waits(world, [KEY] * 6)
        [refused] = await waits(world, [KEY])
        check_error(await refused.read_response(), 503, "pool_busy")
        quiet = await waits(world, [OTHER_KEY, OTHER_KEY])
        for client in (loud[5], loud[4]):  # its newest goes first
            check_error(await client.read_response(), 503, "pool_busy")
        [refused] = await waits(world, [OTHER_KEY])  # now both have two
        check_error(await refused.read_response(), 503, "pool_busy")
        go.set()
        for client in (*loud[:4], *quiet):
            assert (await client.read_response()).status == 200


async def test_one_key_leaves_some_places_to_the_others(autojump_clock: MockClock) -> None:
    """An eighth of an account; who holds that many of them has no more right than the first."""
    async with opened_world(crowded(16)) as world:
        go = trio.Event()
        held(world, *[go] * 16)
        await waits(world, [KEY] * 20)
        assert len(world.asked) == 16 - 16 // PLACES_KEPT_PART == 14
        began_at = trio.current_time()
        await waits(world, [OTHER_KEY, OTHER_KEY, OTHER_KEY])
        assert trio.current_time() == began_at
        assert [asked.json()["input"] for asked in world.asked[14:]] == ["0", "1"]
        go.set()


@pytest.mark.parametrize("paused", [False, True])
async def test_a_key_that_is_alone_has_every_place(paused: bool, autojump_clock: MockClock) -> None:
    keys: Json = {"laptop": KEY}
    if paused:
        keys["ci"] = {"key": OTHER_KEY, "paused": True}
    async with opened_world(describe("a", pool={"keys": keys})) as world:
        go = trio.Event()
        held(world, *[go] * 16)
        await waits(world, [KEY] * 17)
        assert len(world.asked) == 16
        go.set()


################################################################
# SESSIONS
################################################################


async def test_no_key_pushes_out_the_session_of_another(autojump_clock: MockClock) -> None:
    async with opened_world(describe("abc", limits={"pins_max": 8})) as world:
        for upstream in world.upstreams.values():
            upstream.always = json_response({"id": "r"})
        ask = functools.partial(ask_responses, stream=False)
        mine = post("/v1/responses", {"model": "m1", "prompt_cache_key": "mine"}, key=OTHER_KEY)
        await world.ask(mine)
        [first] = world.records
        for number in range(50):
            await world.ask(ask(prompt_cache_key=f"loud {number}"))
        assert len(world.server.shared.roster.sessions.pins) == 8
        busy = {name: {"priority": 5} for name in [first["account"]]}
        config = make_config(describe("abc", accounts=busy, limits={"pins_max": 8}))
        await world.server.reload(lambda: (config, {}))
        await world.ask(mine)
        assert world.records[-1]["account"] == first["account"]


################################################################
# WHAT ONE MAKES UP
################################################################


def test_what_names_nothing_is_not_remembered() -> None:
    """An account remembers names that clients made up; they are no longer than real ones."""
    pool = make_config(describe("a")).pools["home"]
    key = pool.keys[0]

    def read(**body: Json) -> Any:  # noqa: ANN401 (a call)
        return read_call(call_route("/v1/responses"), {"model": "m"} | body, {}, pool, key)

    longest = "m" * MODEL_CHARS_MAX
    assert read(model=longest).model == longest
    with pytest.raises(PoolerError) as caught:
        read(model=longest + "m")
    assert caught.value.code == "invalid_value"

    known = "r" * RESPONSE_ID_CHARS_MAX
    assert read(previous_response_id=known).response is not None
    assert read(prompt_cache_key="s").session is not None
    for odd in (known + "r", ["r"], {"r": 1}, 7, True):
        assert read(previous_response_id=odd).response is None
    for odd in (["s"], {"s": 1}, 7, True):
        assert read(prompt_cache_key=odd).session is None
