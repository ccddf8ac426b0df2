"""Proves that a client that names no session stays on one account, and so finds its prompt cache.

Method: what identifies a conversation is computed from values, in every shape that clients send;
then conversations of four turns go through the real server in virtual time, over each carrier, to
the strict backend of `tests/support/codex_backend.py` and to upstreams with an API key.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest
from trio.testing import MockClock

from pooler import BEGINNING_CHARS_MAX, CallKind, call_route, conversation_digest, read_call
from tests.support.codex_world import CHAT_BODY, MODEL, describe_codex, opened_codex_world
from tests.support.memory_sockets import OTHER_KEY, Json, post
from tests.support.memory_websockets import codex_described, open_socket, socket_world, turn
from tests.support.world import World, describe, json_response, make_config, opened_world

RESPONSES, CHATS = CallKind.RESPONSES, CallKind.CHAT
SAYS: Final = ("Fix my parser.", "Go on.", "And the tests?", "Thanks.")
PAGE: Final = "data:image/png;base64,AAAA"


def digest(kind: CallKind = RESPONSES, **body: Json) -> str:
    return conversation_digest(kind, body)


def user(content: Json, **more: Json) -> Json:
    return {"role": "user", "content": content} | more


def histories(says: Sequence[str]) -> list[list[Json]]:
    """The whole history at each turn, as stateless clients send it."""
    items: list[Json] = []
    found = []
    for said in says:
        items = [*items, user(said)]
        found.append(items)
        items = [*items, {"role": "assistant", "content": "Well."}]
    return found


################################################################
# WHAT TELLS A CONVERSATION
################################################################

SYSTEM: Final[Json] = {"role": "system", "content": "Be terse."}
DEVELOPER: Final[Json] = {"role": "developer", "content": "Be terse."}
ALIKE: Final[dict[str, tuple[CallKind, Json]]] = {
    "a string": (RESPONSES, {"instructions": "Be terse.", "input": "Hi"}),
    "a message": (RESPONSES, {"instructions": "Be terse.", "input": [user("Hi")]}),
    "its type": (
        RESPONSES,
        {"instructions": "Be terse.", "input": [user("Hi", type="message", id="msg_1")]},
    ),
    "parts": (
        RESPONSES,
        {"instructions": "Be terse.", "input": [user([{"type": "input_text", "text": "Hi"}])]},
    ),
    "several parts": (
        CHATS,
        {"messages": [SYSTEM, user([{"type": "text", "text": one} for one in "Hi"])]},
    ),
    "a developer": (RESPONSES, {"input": [DEVELOPER, user("Hi")]}),
    "a system": (RESPONSES, {"input": [SYSTEM | {"type": "message"}, user("Hi")]}),
    "the system's parts": (
        CHATS,
        {"messages": [SYSTEM | {"content": [{"type": "text", "text": "Be terse."}]}, user("Hi")]},
    ),
    "Chat": (CHATS, {"messages": [SYSTEM, user("Hi")]}),
    "input to Chat": (CHATS, {"instructions": "Be terse.", "input": [user("Hi")]}),
    "and no messages": (CHATS, {"messages": [], "input": [DEVELOPER, user("Hi")]}),
    "a greeting": (
        CHATS,
        {"messages": [SYSTEM, {"role": "assistant", "content": "Hello."}, user("Hi")]},
    ),
    "later turns": (CHATS, {"messages": [SYSTEM, user("Hi"), DEVELOPER, user("Bye")]}),
    "other fields": (CHATS, {"messages": [SYSTEM, user("Hi", name="Bob")], "temperature": 1}),
}


@pytest.mark.parametrize("case", ALIKE)
def test_a_conversation_is_the_same_in_every_shape(case: str) -> None:
    kind, body = ALIKE[case]
    assert conversation_digest(kind, body) == digest(instructions="Be terse.", input="Hi") != ""


OTHERS: Final[dict[str, Json]] = {
    "other words": {"instructions": "Be terse.", "input": "Ho"},
    "other orders": {"instructions": "Be long.", "input": "Hi"},
    "no orders": {"input": "Hi"},
    "more words": {"instructions": "Be terse.", "input": "Hi there"},
    "the orders said": {"input": "Be terse.Hi"},
    "a picture": {
        "instructions": "Be terse.",
        "input": [user([{"type": "input_text", "text": "Hi"}, {"image_url": PAGE}])],
    },
}


def test_what_differs_in_its_beginning_is_another_conversation() -> None:
    found = {conversation_digest(RESPONSES, body) for body in OTHERS.values()}
    assert len(found | {digest(instructions="Be terse.", input="Hi")}) == len(OTHERS) + 1


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_image", "image_url": PAGE},
        {"type": "image_url", "image_url": {"url": PAGE, "detail": "low"}},
        {"type": "input_file", "file_data": PAGE},
        {"type": "file", "file": {"file_data": PAGE}},
        {"type": "input_file", "file_url": PAGE},
        {"type": "input_file", "file_id": PAGE},
        {"type": "input_audio", "input_audio": {"data": PAGE}},
    ],
)
def test_a_file_identifies_a_conversation_as_text_does(part: Json) -> None:
    found = digest(input=[user([part])])
    assert found == digest(input=[user([part])]) != ""
    other = json.loads(json.dumps(part).replace("AAAA", "BBBB"))
    assert digest(input=[user([other])]) != found


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": ""},
        {"input": []},
        {"input": [SYSTEM]},
        {"input": [user("")]},
        {"input": [user([])]},
        {"input": [user(None)]},
        {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]},
        {"input": [None, 7, ["user"], "user"]},
        {"input": {"role": "user", "content": "Hi"}},
        {"instructions": "Be terse."},
    ],
)
def test_without_words_of_the_user_there_is_no_conversation(body: Json) -> None:
    assert conversation_digest(RESPONSES, body) == ""


def test_odd_shapes_identify_no_conversation_and_do_no_harm() -> None:
    odd = [user([None, 7, ["x"], {"text": 7}, {"text": "Hi", "image_url": [1]}])]
    assert digest(instructions=["x"], input=odd) == digest(input="Hi")


def test_the_beginning_of_a_text_and_its_length_count() -> None:
    start = "x" * BEGINNING_CHARS_MAX
    assert digest(input=start[1:] + "a") != digest(input=start[1:] + "b")
    assert digest(input=start + "a") == digest(input=start + "b")
    assert digest(input=start + "a") != digest(input=start + "bb")
    split = [user([{"text": start[1:]}, {"text": "xa"}])]
    assert digest(input=split) == digest(input=start + "b")


@pytest.mark.measures
def test_a_large_beginning_costs_no_more_than_a_small_one() -> None:
    """A digest of all of it would take some hundred milliseconds."""
    large = {"instructions": "y" * 2**24, "input": [user([{"text": "x" * 2**24}] * 4)]}
    began_at = time.perf_counter()
    for _ in range(10):
        assert conversation_digest(RESPONSES, large)
    assert time.perf_counter() - began_at < 0.2


################################################################
# WHOSE SESSION IT IS
################################################################


POOL: Final = make_config(describe("ab")).pools["home"]


def session(key: str = "laptop", headers: Json = None, **body: Json) -> bytes | None:
    found = next(one for one in POOL.keys if one.name == key)
    return read_call(
        call_route("/v1/responses"), {"model": "m1"} | body, headers or {}, POOL, found
    ).session


def test_a_conversation_is_a_session_of_its_key_if_the_client_names_none() -> None:
    begun = session(input="Hi")
    assert begun is not None
    assert begun == session(input="Hi", model="m2", prompt_cache_key="")
    assert begun == session(input="Hi", headers={"session-id": ""}, prompt_cache_key=None)
    assert begun != session("ci", input="Hi")
    assert begun != session(input="Hi", prompt_cache_key="p")
    assert begun != session(input="Hi", headers={"session-id": "s"})
    name = conversation_digest(RESPONSES, {"input": "Hi"})
    assert begun != session(prompt_cache_key=name)


def test_what_goes_on_from_an_earlier_response_begins_no_conversation() -> None:
    assert session(input="Hi", previous_response_id="resp_1") is None


async def test_no_key_pushes_out_another_keys_conversations(autojump_clock: MockClock) -> None:
    async with opened_world(describe("abc", limits={"pins_max": 4})) as world:
        for upstream in world.upstreams.values():
            upstream.always = json_response({})
        for one in ("one", "two"):
            await world.ask(post("/v1/responses", {"model": "m1", "input": one}, key=OTHER_KEY))
        for number in range(20):
            await world.ask(post("/v1/responses", {"model": "m1", "input": f"x{number}"}))
        pins = world.server.shared.roster.sessions.pins
        assert len(pins) == 4
        assert {share: len(known) for share, known in pins.by_share.items()} == {
            ("home", "ci"): 2,
            ("home", "laptop"): 2,
        }


################################################################
# OVER EACH CARRIER
################################################################


def bodies(kind: CallKind, says: Sequence[str] = SAYS) -> list[tuple[str, Json]]:
    """Path and body of each turn."""
    if kind is CHATS:
        return [
            ("/v1/chat/completions", {"model": MODEL, "messages": [SYSTEM, *history]})
            for history in histories(says)
        ]
    orders = {"model": MODEL, "instructions": "Be terse."}
    return [("/v1/responses", orders | {"input": history}) for history in histories(says)]


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("kind", [RESPONSES, CHATS])
async def test_a_conversation_stays_on_one_account_with_one_id(
    autojump_clock: MockClock, tmp_path: Path, kind: CallKind, *, is_stream: bool
) -> None:
    async with opened_codex_world(describe_codex(tmp_path, routing="sticky"), tmp_path) as world:
        for path, body in bodies(kind):
            response = await world.ask(post(path, body | {"stream": is_stream}))
            assert response.status == 200
        asked = world.backend.asked()
        assert len(asked) == len(SAYS)
        assert len({seen.account for seen in asked}) == 1
        [session_id] = {seen.headers["session-id"] for seen in asked}
        assert {seen.body["prompt_cache_key"] for seen in asked} == {session_id}
        assert len(session_id) == 64

        for path, body in bodies(kind, ["Another one.", "Go on."]):
            await world.ask(post(path, body))
        assert len({seen.headers["session-id"] for seen in world.backend.asked()[-3:]}) == 2


async def test_chat_and_responses_share_a_conversation(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_codex_world(describe_codex(tmp_path, routing="sticky"), tmp_path) as world:
        for kind in (RESPONSES, CHATS):
            await world.ask(post(*bodies(kind)[0]))
        assert len({seen.headers["session-id"] for seen in world.backend.asked()}) == 1


@pytest.mark.parametrize(
    ("more", "headers"),
    [
        ({"prompt_cache_key": ""}, []),
        ({"prompt_cache_key": None}, []),
        ({}, [("session-id", "")]),
        ({}, [("session-id", "mine")]),
    ],
)
@pytest.mark.parametrize("body", [{"model": MODEL, "input": "Hi"}, CHAT_BODY])
async def test_an_empty_cache_key_is_as_good_as_none(
    autojump_clock: MockClock, tmp_path: Path, body: Json, more: Json, headers: Json
) -> None:
    path = "/v1/chat/completions" if "messages" in body else "/v1/responses"
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        assert (await world.ask(post(path, body | more, headers=headers))).status == 200
        [seen] = world.backend.asked()
        assert seen.body["prompt_cache_key"] == seen.headers["session-id"] != "mine"


async def test_a_cache_key_of_the_clients_own_is_sent(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        await world.ask(
            post("/v1/responses", {"model": MODEL, "input": "x", "prompt_cache_key": "k"})
        )
        [seen] = world.backend.asked()
        assert seen.body["prompt_cache_key"] == "k"
        assert "session-id" in seen.headers


async def ask_turns(world: World, kind: CallKind) -> list[bytes]:
    sent = []
    for path, body in bodies(kind):
        raw = json.dumps(body | {"model": "m1", "unknown": [1]}).encode()
        sent.append(raw)
        assert (await world.ask(post(path, raw))).status == 200
    return sent


@pytest.mark.parametrize("kind", [RESPONSES, CHATS])
async def test_an_openai_account_gets_the_body_unchanged(world: World, kind: CallKind) -> None:
    for upstream in world.upstreams.values():
        upstream.always = json_response({})
    sent = await ask_turns(world, kind)
    assert [asked.body for asked in world.asked] == sent
    assert len({record["account"] for record in world.records}) == 1
    assert all(asked.header("session-id") is None for asked in world.asked)


@pytest.mark.parametrize("is_one_socket", [True, False])
async def test_a_conversation_over_websockets_stays_on_one_account_with_one_id(
    autojump_clock: MockClock, tmp_path: Path, *, is_one_socket: bool
) -> None:
    described = codex_described(tmp_path, "abc", pool={"routing": "sticky"})
    async with socket_world(described) as world:
        for name in "abc":
            world.upstreams[name].always = turn("well")
        client = await open_socket(world)
        for history in histories(SAYS):
            await client.ask(instructions="Be terse.", input=history)
            if not is_one_socket:
                await client.client.hang_up()
                client = await open_socket(world)
        assert len({name for name, _, _ in world.turns}) == 1
        check_ids(world)


def check_ids(world: World) -> None:
    """All turns have one id, which is also that of their WebSockets."""
    shaken = [one for name in "abc" for one in world.upstream(name).handshakes]
    [session_id] = {one["session-id"] for one in shaken}
    assert {body["prompt_cache_key"] for _, _, body in world.turns} == {session_id}


@pytest.mark.parametrize("first", [[DEVELOPER], [DEVELOPER, user("Hi")], "Hi"])
async def test_a_turn_that_holds_only_what_is_new_goes_on_with_its_websocket(
    autojump_clock: MockClock, tmp_path: Path, first: Json
) -> None:
    described = codex_described(tmp_path, "abc", pool={"routing": "sticky"})
    async with socket_world(described) as world:
        for name in "abc":
            world.upstreams[name].plays(*[turn("x", response_id=f"resp_{n}") for n in range(4)])
        client = await open_socket(world)
        await client.ask(input=first)
        for number, said in enumerate(SAYS[:3]):
            events = await client.ask(input=said, previous_response_id=f"resp_{number}")
            assert events[-1]["type"] == "response.completed"
        assert len({(name, number) for name, number, _ in world.turns}) == 1
        check_ids(world)
