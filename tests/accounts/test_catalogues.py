"""Proves that upstreams' model lists are read as far as they are valid, and shown unchanged.

Method: lists as real servers write them, and broken ones, are read as values and fetched over
connections in memory; the log, the pooler's own lists and the accounts that get requests are
examined.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest
from trio.testing import MockClock

import mcp_server
from pooler import (
    CATALOGUE_PAUSE_SECONDS,
    CATALOGUE_SECONDS,
    CODEX_VERSION,
    MODEL_CHARS_MAX,
    Model,
    codex_version_of,
    is_account_name,
    read_catalogue,
)
from tests.support.codex_backend import make_auth_file
from tests.support.memory_sockets import Json, Response, ask_responses, post, request
from tests.support.memory_websockets import codex_described, open_socket, says, socket_world
from tests.support.processes import OPERATOR_TOKEN
from tests.support.world import (
    UNIX_START,
    Fin,
    Send,
    Step,
    World,
    describe,
    error_response,
    json_response,
    opened_world,
    response_head,
    responses_events,
    sse_response,
)

NATIVE: Final = "/backend-api/codex"
EVENTS: Final = responses_events("x", "y")


def llama(name: str) -> Json:
    """What llama.cpp responds."""
    more = {"name": name, "model": name, "type": "model", "capabilities": ["completion"]}
    listed = {"id": name, "object": "model", "owned_by": "llamacpp", "meta": {"n_ctx": 4096}}
    return {"models": [more], "object": "list", "data": [listed]}


SLUGS: Final[Json] = [{"slug": "c1", "context_window": 1000}, {"slug": "c2"}]
GOOD: Final[Json] = {"id": "m1"}
BAD: Final[list[Json]] = [
    None, 7, [], {}, {"id": None}, {"id": 7}, {"id": ""}, {"id": " "}, {"id": "a\nb"}, "",
    {"id": "x" * (MODEL_CHARS_MAX + 1)}, {"id": ["m"]}, {"id": "\u202eabc"}, {"slug": "m9"},
]  # fmt: skip
ODD_NAMES: Final = (
    "Qwen 3 8B (local)", "模型-7b", "models/gemini", "gpt-5.5:free", "café", " a",
    "x" * MODEL_CHARS_MAX,
)  # fmt: skip
ODD_LEVELS: Final[list[Json]] = [None, 7, "low", {}, [7], [{"effort": 7}], ["low"]]


@pytest.mark.parametrize(
    ("value", "names"),
    [
        pytest.param(llama("tiny"), ["tiny"], id="llama.cpp"),
        pytest.param([{"id": "m1"}, {"id": "m2"}], ["m1", "m2"], id="bare-list"),
        pytest.param(["m1", "m2"], ["m1", "m2"], id="bare-names"),
        pytest.param({"data": ["m1"]}, ["m1"], id="names"),
        pytest.param({"models": [{"name": "m1", "size": 3}]}, ["m1"], id="only-models"),
        pytest.param({"data": [], "models": [{"name": "m1"}]}, ["m1"], id="empty-data"),
        pytest.param({"data": None, "models": [{"name": "m1"}]}, ["m1"], id="null-data"),
        pytest.param({"data": [{"name": "n", "id": "m1"}]}, ["m1"], id="the-id-before-the-name"),
        pytest.param({"data": [GOOD], "models": SLUGS}, ["m1"], id="not-codex's"),
        *[
            pytest.param({"data": [GOOD, bad, {"id": "m2"}]}, ["m1", "m2"], id=f"bad-{at}")
            for at, bad in enumerate(BAD)
        ],
        *[
            pytest.param({"data": [{"id": name}]}, [name], id=f"odd-{at}")
            for at, name in enumerate(ODD_NAMES)
        ],
    ],
)
def test_a_catalogue_is_read_as_far_as_it_is_valid(value: Json, names: list[str]) -> None:
    found = read_catalogue(json.dumps(value).encode())
    assert found is not None
    assert list(found) == names
    assert {model.entry for model in found.values()} == {b""}


@pytest.mark.parametrize(
    ("value", "names"),
    [
        pytest.param({"models": SLUGS}, ["c1", "c2"], id="codex's"),
        pytest.param({"models": SLUGS, "data": [GOOD]}, ["c1", "c2"], id="codex's-first"),
        pytest.param({"models": [], "data": [GOOD]}, ["m1"], id="a-gateway's"),
        pytest.param(
            {"models": [*SLUGS, None, {"slug": 7}, {"slug": "x\ty"}]},
            ["c1", "c2"],
            id="bad-entries",
        ),
        *[
            pytest.param(
                {"models": [{"slug": "c1", "supported_reasoning_levels": levels}]},
                ["c1"],
                id=str(levels),
            )
            for levels in ODD_LEVELS
        ],
    ],
)
def test_a_codex_catalogue_is_read_as_far_as_it_is_valid(value: Json, names: list[str]) -> None:
    found = read_catalogue(json.dumps(value).encode(), is_codex=True)
    assert found is not None
    assert list(found) == names
    assert all(bool(model.entry) == (name != "m1") for name, model in found.items())


@pytest.mark.parametrize(
    ("entry", "length"),
    [
        ({"context_window": 272_000}, 258_400),
        ({"context_window": 272_000, "effective_context_window_percent": 95}, 258_400),
        ({"context_window": 272_000, "effective_context_window_percent": 100}, 272_000),
        ({"context_window": 400_000, "effective_context_window_percent": 68}, 272_000),
        ({"context_window": 101, "effective_context_window_percent": 50}, 50),
        *[
            ({"context_window": 1000, "effective_context_window_percent": odd}, 950)
            for odd in (None, 0, -1, 101, "90", 90.5, True)
        ],
        ({"context_window": None, "max_context_window": 1000}, 950),
        *[({"context_window": odd}, None) for odd in (None, 0, -1, "272000", True, 1)],
        ({}, None),
    ],
)
def test_a_codex_account_s_context_window_is_shown_as_codex_uses_it(
    entry: Json, length: int | None
) -> None:
    raw = json.dumps({"models": [{"slug": "m", **entry}]}).encode()
    found = read_catalogue(raw, is_codex=True)
    assert found is not None
    assert found["m"].context_length == length


def test_another_upstream_s_context_window_is_shown_unchanged() -> None:
    for name in ("context_length", "context_window", "max_model_len", "max_context_length"):
        entry = {"id": "m", name: 1000, "effective_context_window_percent": 50}
        found = read_catalogue(json.dumps({"data": [entry]}).encode())
        assert found is not None
        assert found["m"].context_length == 1000


################################################################
# OVER THE WIRE
################################################################


def unlisted(names: str = "ab") -> dict[str, Json]:
    return describe(names, accounts={name: {"models": None} for name in names})


async def test_two_similar_servers_get_requests_for_their_own_models_only(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(unlisted()) as world:
        for name, upstream in world.upstreams.items():
            upstream.catalogue = json_response(llama(f"tiny of {name}"))
            upstream.always = json_response({"id": "r"})
        await world.ask(request("GET", "/v1/models"))
        shown = (await world.ask(request("GET", "/v1/models"))).json()["data"]
        assert [model["id"] for model in shown] == ["tiny of a", "tiny of b"]
        one = await world.ask(request("GET", "/v1/models/tiny%20of%20b"))
        assert one.json()["id"] == "tiny of b"
        for name in "abbabaab":
            body = {"model": f"tiny of {name}", "input": "x"}
            assert (await world.ask(post("/v1/responses", body))).status == 200
        asked = [
            (name, one.json()["model"]) for name in "ab" for one in world.upstreams[name].asked
        ]
        assert asked == [("a", "tiny of a")] * 4 + [("b", "tiny of b")] * 4


def told(world: World) -> list[str]:
    """What the log says of model lists."""
    return [str(fields["problem"]) for _, event, fields in world.logged if event == "models"]


async def look(world: World, clock: MockClock) -> None:
    """Have the lists fetched again."""
    clock.jump(CATALOGUE_SECONDS + 1)
    await world.ask(request("GET", "/v1/models"))
    await world.settle()


UNREADABLE: Final[dict[str, list[Step]]] = {
    "404": error_response(404, "not_found"),
    "500": error_response(500, "oops"),
    "no JSON": json_response(b"<html>"),
    "no list": json_response({"data": {"id": "m"}}),
    "no names": json_response({"data": [{"slug": "x"}, 7]}),
    "too deep": json_response(b'{"data":' + b"[" * 600 + b"]" * 600 + b"}"),
    "cut": [Send(response_head(200, [("content-length", "99")]) + b"{"), Fin()],
    "no HTTP": [Send(b"SSH-2.0-x\r\n\r\n"), Fin()],
}


@pytest.mark.parametrize("name", UNREADABLE)
async def test_a_catalogue_that_cannot_be_read_is_logged_once(
    autojump_clock: MockClock, name: str
) -> None:
    async with opened_world(unlisted("a")) as world:
        upstream = world.upstreams["a"]
        upstream.catalogue = UNREADABLE[name]
        for _ in range(3):
            await look(world, autojump_clock)
        [problem] = told(world)
        assert "its list of models c" in problem
        upstream.catalogue = json_response({"data": [{"id": "m1"}]})
        await look(world, autojump_clock)
        assert told(world) == [problem]
        shown = (await world.ask(request("GET", "/v1/models"))).json()["data"]
        assert [model["id"] for model in shown] == ["m1"]
        upstream.catalogue = UNREADABLE[name]
        await look(world, autojump_clock)
        assert told(world) == [problem] * 2


@pytest.mark.parametrize("value", [{"data": []}, [], llama("m")], ids=["none", "bare", "one"])
async def test_a_catalogue_that_can_be_read_is_not_logged(
    autojump_clock: MockClock, value: Json
) -> None:
    async with opened_world(unlisted("a")) as world:
        world.upstreams["a"].catalogue = json_response(value)
        await look(world, autojump_clock)
        assert told(world) == []


################################################################
# A KEY THAT IS REFUSED FOR THE LIST
################################################################


def doubts(world: World) -> list[tuple[str, str]]:
    """What needs the operator, as title and advice."""
    shown = mcp_server.overview(world.server.operators.snapshot())
    return [(need.title, need.advice) for need in mcp_server.attention(shown)]


async def test_a_key_that_is_refused_for_the_list_of_models_needs_the_operator(
    autojump_clock: MockClock,
) -> None:
    """Nobody has asked for anything yet: a new pool with a mistyped key must not look in order."""
    advice = "Put a valid key into accounts.a.api_key, then reload (SIGHUP)."
    async with opened_world(unlisted("a")) as world:
        upstream = world.upstreams["a"]
        upstream.catalogue = error_response(401, "invalid_api_key")
        await look(world, autojump_clock)
        assert doubts(world) == [("a: its key may not be valid", advice)]

        upstream.plays(sse_response(EVENTS))
        assert (await world.ask(ask_responses(stream=True))).status == 200
        assert doubts(world) == []  # it is good for what it is used for

        await look(world, autojump_clock)
        assert len(doubts(world)) == 1
        upstream.catalogue = json_response({"data": [{"id": "m1"}]})
        await look(world, autojump_clock)
        assert doubts(world) == []


@pytest.mark.parametrize("status", [403, 404, 429, 500])
async def test_a_list_that_is_refused_otherwise_says_nothing_of_the_key(
    autojump_clock: MockClock, status: int
) -> None:
    async with opened_world(unlisted("a")) as world:
        world.upstreams["a"].catalogue = error_response(status, "no_list")
        await look(world, autojump_clock)
        assert doubts(world) == []


async def test_an_account_whose_requests_fail_is_told_of_once(autojump_clock: MockClock) -> None:
    async with opened_world(unlisted("a")) as world:
        world.upstreams["a"].catalogue = error_response(401, "invalid_api_key")
        world.upstreams["a"].plays(error_response(401, "invalid_api_key"))
        await look(world, autojump_clock)
        await world.ask(ask_responses(stream=True))
        titles = [title for title, _ in doubts(world)]
        assert "a: its key is refused" in titles
        assert "a: its key may not be valid" not in titles


################################################################
# THE VERSION OF A LIST
################################################################

ETAG: Final = [("x-models-etag", 'W/"m1"'), ("etag", 'W/"m1"')]
META: Final[Json] = {"type": "response.metadata", "headers": {"X-Models-Etag": 'W/"m1"'}}


async def test_no_response_names_a_version_of_a_list_that_has_none(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Codex CLI would fetch the list again after each response whose version it does not know."""
    body: Json = {"model": "m1", "input": [], "instructions": "", "store": False}
    events = responses_events("hi")
    async with socket_world(codex_described(tmp_path, "a")) as world:
        upstream = world.upstream()
        upstream.catalogue = json_response({"models": SLUGS}, headers=ETAG)
        listed = await world.ask(request("GET", f"{NATIVE}/models?client_version=0.169.0"))
        told = [listed.headers]
        for path, answer in (
            ("responses", sse_response(events, headers=ETAG)),
            ("responses", sse_response([events[0], META, *events[1:]], headers=ETAG)),
            ("responses", error_response(400, "bad", ETAG)),
            ("responses/compact", json_response({"id": "r", "output": []}, headers=ETAG)),
        ):
            upstream.plays(answer)
            asked = body | {"stream": True} if path == "responses" else body
            response = await world.ask(post(f"{NATIVE}/{path}", asked))
            told.append(response.headers)
            assert b"-etag" not in response.body.lower()
        assert not any(name.endswith("etag") for headers in told for name, _ in headers)

        upstream.plays(says(events[0], META, *events[1:]))
        client = await open_socket(world, path=f"{NATIVE}/responses")
        assert "etag" not in json.dumps(await client.ask()).lower()


################################################################
# THE VERSION OF CODEX CLI
################################################################


def login(folder: Path, **fields: Json) -> dict[str, Json]:
    path = folder / "auth.json"
    make_auth_file(path, "acct-a", expires_at=UNIX_START + 10**6)
    codex = {"type": "codex", "auth_file": str(path), "api_key": None}
    return describe("a", accounts={"a": codex | fields})


async def version_told(world: World, clock: MockClock) -> set[str | None]:
    """The version that the account is sent for its list, and with a translated request."""
    upstream = world.upstreams["a"]
    upstream.catalogue = json_response({"models": []})
    upstream.always = sse_response(responses_events("hi"))
    await look(world, clock)
    await world.ask(ask_responses())
    listed, asked = upstream.catalogue_asked[-1], upstream.asked[-1]
    assert listed.target.endswith(f"/models?client_version={listed.header('version')}")
    return {listed.header("version"), asked.header("version")}


async def test_a_codex_account_is_sent_the_configured_version(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    newer = [("version", "0.171.0")]
    for version, fields in ((CODEX_VERSION, {}), ("0.99.1", {"client_version": "0.99.1"})):
        async with opened_world(login(tmp_path, **fields)) as world:
            assert await version_told(world, autojump_clock) == {version}
            if fields:
                await world.ask(request("GET", f"{NATIVE}/models", headers=newer))
                assert await version_told(world, autojump_clock) == {version}


@pytest.mark.parametrize(
    ("query", "headers", "version"),
    [
        ("?client_version=0.171.0", [], "0.171.0"),
        ("?x=1&client_version=1.2.3", [], "1.2.3"),
        ("", [("version", "0.171.2-alpha.1")], "0.171.2"),
        ("", [("user-agent", "codex_exec/0.180.1 (Debian 12.0.0; x86_64)")], "0.180.1"),
        ("", [("user-agent", "codex-tui/0.169.1")], "0.169.1"),
        ("?client_version=0.170.0", [("version", "0.169.9")], "0.170.0"),
        ("?client_version=0.168.9", [], CODEX_VERSION),
        ("?client_version=99999.0.0", [], CODEX_VERSION),
        ("?client_version=new", [("version", "1")], CODEX_VERSION),
        ("?client_version=0.370.0", [("version", "9.0.0")], CODEX_VERSION),
        ("", [("user-agent", "codex-pooler/1.0.0")], CODEX_VERSION),
        ("", [("user-agent", "opencode/1.18.33")], CODEX_VERSION),
    ],
)
async def test_a_client_s_newer_version_is_sent_from_then_on(
    autojump_clock: MockClock, tmp_path: Path, query: str, headers: Json, version: str
) -> None:
    async with opened_world(login(tmp_path)) as world:
        await world.ask(request("GET", f"{NATIVE}/models{query}", headers=headers))
        assert await version_told(world, autojump_clock) == {version}


async def test_invented_versions_do_not_make_catalogues_be_fetched_more_often(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_world(login(tmp_path)) as world:
        upstream = world.upstreams["a"]
        upstream.catalogue = json_response({"models": SLUGS})
        await look(world, autojump_clock)
        count = len(upstream.catalogue_asked)
        for number in range(1, 6):
            version = f"1.0.{number}"
            await world.ask(request("GET", f"{NATIVE}/models?client_version={version}"))
        assert len(upstream.catalogue_asked) == count
        autojump_clock.jump(CATALOGUE_PAUSE_SECONDS)
        for number in range(6, 11):
            version = f"1.0.{number}"
            await world.ask(request("GET", f"{NATIVE}/models?client_version={version}"))
        assert len(upstream.catalogue_asked) == count + 1


def test_a_version_is_three_short_numbers() -> None:
    for text, version in (("0.1.2", "0.1.2"), ("0.1", ""), ("1.2.3.4", "1.2.3"), ("v1.2.3", "")):
        assert codex_version_of({"version": text}, "") == version


IN_ORDER: Final = {"routing": "in_order"}
LISTED: Final = json_response({"data": [{"id": "m1"}]})
UNLISTED: Final = {name: {"models": None} for name in "ab"}


async def ask_about(pool: Json) -> tuple[Response, list[str]]:
    """Send a request for m3, which is in no list; which accounts got it."""
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


async def test_without_a_configured_list_a_model_in_no_catalogue_does_not_exist(
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


async def test_a_model_name_that_identifies_its_owner_is_in_no_error_or_log(
    autojump_clock: MockClock,
) -> None:
    """Upstreams choose these names; a key that may use the model still finds it in the list."""
    own = "ft:gpt:org-abcDEF123"
    async with opened_world(describe("a", accounts={"a": {"models": None}})) as world:
        a = world.upstreams["a"]
        a.catalogue = json_response({"data": [{"id": "plain"}, {"id": own}]})
        a.always = json_response({"id": "r"})
        await world.ask(request("GET", "/v1/models"))
        await world.settle()

        response = await world.ask(ask_responses(stream=False, model="other"))
        assert "plain" in response.error["message"]
        assert own not in response.body.decode()

        assert (await world.ask(ask_responses(stream=False, model=own))).status == 200
        assert own not in json.dumps(world.records)


async def test_the_names_of_a_catalogue_are_searched_for_those_of_people_once(
    autojump_clock: MockClock,
) -> None:
    """A list may have thousands of long ones, and each failed request and page needs all."""
    listed = [{"id": f"{'y' * 190}-{number}"} for number in range(300)]
    async with opened_world(unlisted() | {"operators": {"me": OPERATOR_TOKEN}}) as world:
        for upstream in world.upstreams.values():
            upstream.catalogue = json_response({"data": listed})
        await world.ask(request("GET", "/v1/models"))
        await world.settle()

        counts = []
        for _ in range(3):
            assert (await world.ask(ask_responses(model="nobody-has-this"))).status == 400
            page = await world.ask(request("GET", "/admin", key=OPERATOR_TOKEN))
            assert page.status == 200
            counts.append(is_account_name.cache_info().misses)
        assert counts[0] >= len(listed)
        assert counts[2] == counts[0]
