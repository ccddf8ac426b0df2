"""Proves who may do what: one kind of credential opens one pool, and all others are one 401.

Method: the whole matrix of credentials and routes against a server in memory; the keys' own
limits with virtual time, at the limit and one past it, each moment exact.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import math
from hmac import compare_digest
from typing import Final

import pytest
import trio
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from pooler import MODEL_CHARS_MAX, Key, KeyUse, PoolerError, doubt_of_secret, match_secret
from tests.support.memory_sockets import (
    KEY,
    OTHER_KEY,
    Json,
    Pairs,
    Response,
    ask_responses,
    post,
    request,
)
from tests.support.memory_websockets import open_socket, socket_described, socket_world
from tests.support.world import (
    UNIX_START,
    UPSTREAM_KEY,
    Stall,
    Wait,
    World,
    describe,
    error_response,
    json_response,
    make_config,
    opened_world,
    responses_events,
    sse_response,
    sse_steps,
)

TOKEN: Final = "cpo-operator-token-0123456789"
WORK_KEY: Final = "cp-key-of-the-other-pool-0123"
PAUSED_KEY: Final = "cp-paused-key-0123456789"
EXPIRED_KEY: Final = "cp-expired-key-0123456789"
SOON_KEY: Final = "cp-soon-expired-key-0123456789"
DAY_KEY: Final = "cp-key-for-a-day-0123456789"
LONGEST_KEY: Final = "k" * 512
TOO_LONG_KEY: Final = "k" * 513
HEX: Final = hashlib.sha256(KEY.encode()).hexdigest()
MIDNIGHT_SECONDS: Final = 57_600  # from UNIX_START, which is 2027-01-15T08:00:00Z


def described() -> dict[str, Json]:
    keys = {
        "laptop": KEY,
        "hashed": "sha256:" + hashlib.sha256(OTHER_KEY.encode()).hexdigest(),
        "paused": {"key": PAUSED_KEY, "paused": True},
        "expired": {"key": EXPIRED_KEY, "expires": "2027-01-15T08:00:00Z"},
        "soon": {"key": SOON_KEY, "expires": "2027-01-15T08:00:01Z"},
        "day": {"key": DAY_KEY, "expires": "2027-01-15"},
        "longest": LONGEST_KEY,
        "too-long": f"sha256:{hashlib.sha256(TOO_LONG_KEY.encode()).hexdigest()}",
    }
    whole = describe("ab", pool={"accounts": ["a"], "keys": keys}, operators={"me": TOKEN})
    whole["pools"]["work"] = {"accounts": ["b"], "models": ["m2"], "keys": {"desk": WORK_KEY}}
    return whole


def bearer(token: str) -> Pairs:
    return [("Authorization", f"Bearer {token}")]


def basic(text: str) -> Pairs:
    return [("Authorization", "Basic " + base64.b64encode(text.encode()).decode())]


GOOD: Final[dict[str, Pairs]] = {
    "pool-key": bearer(KEY),
    "key-that-is-kept-as-a-hash": bearer(OTHER_KEY),
    "lower-scheme": [("Authorization", f"bearer {KEY}")],
    "upper-scheme": [("AUTHORIZATION", f"BEARER {KEY}")],
    "two-blanks": [("Authorization", f"Bearer  {KEY}")],
    "padding": [("Authorization", f" Bearer {KEY} \t")],
    "not-yet-expired": bearer(SOON_KEY),
    "last-day": bearer(DAY_KEY),
    "512-bytes": bearer(LONGEST_KEY),
    "other-credentials-besides": [*bearer(KEY), ("x-api-key", "no"), ("cookie", "key=no")],
}
BAD: Final[dict[str, Pairs]] = {
    "none": [],
    "empty": [("Authorization", "")],
    "scheme-only": [("Authorization", "Bearer")],
    "scheme-and-blank": [("Authorization", "Bearer ")],
    "no-scheme": [("Authorization", KEY)],
    "no-blank": [("Authorization", f"Bearer{KEY}")],
    "tab": [("Authorization", f"Bearer\t{KEY}")],
    "colon": [("Authorization", f"Bearer: {KEY}")],
    "quoted": bearer(f'"{KEY}"'),
    "two-tokens": bearer(f"{KEY} {KEY}"),
    "list": bearer(f"x, Bearer {KEY}"),
    "comma": bearer(f"{KEY},"),
    "token-scheme": [("Authorization", f"Token {KEY}")],
    "basic": basic(f"user:{KEY}"),
    "basic-password-only": basic(f":{KEY}"),
    "basic-literal": [("Authorization", f"Basic {KEY}")],
    "wrong": bearer("cp-nobodys-key-0123456789"),
    "prefix": bearer(KEY[:-1]),
    "suffix": bearer(KEY[1:]),
    "longer": bearer(KEY + "0"),
    "twice": bearer(KEY + KEY),
    "upper-case": bearer(KEY.upper()),
    "hash-line": bearer(f"sha256:{HEX}"),
    "hash": bearer(HEX),
    "hash-upper": bearer(HEX.upper()),
    "hash-of-hashed": bearer(described()["pools"]["home"]["keys"]["hashed"]),
    "operator": bearer(TOKEN),
    "account": bearer(UPSTREAM_KEY + "a"),
    "key-name": bearer("laptop"),
    "paused": bearer(PAUSED_KEY),
    "expired-this-second": bearer(EXPIRED_KEY),
    "513-bytes": bearer(TOO_LONG_KEY),
    "8000-bytes": bearer("k" * 8000),
    "non-ascii": bearer(KEY[:-1] + "\xe9"),
    "non-ascii-only": bearer("\xff" * 16),
    "x-api-key": [("x-api-key", KEY)],
    "api-key": [("api-key", KEY)],
    "openai-api-key": [("openai-api-key", KEY)],
    "cookie": [("Cookie", f"key={KEY}; Authorization=Bearer {KEY}")],
    "proxy": [("Proxy-Authorization", f"Bearer {KEY}")],
    "forwarded": [("X-Forwarded-Authorization", f"Bearer {KEY}")],
    "subprotocol": [("Sec-WebSocket-Protocol", f"openai-insecure-api-key.{KEY}")],
    "health-check": [("User-Agent", "GoogleHC/1.0"), ("X-Forwarded-For", "127.0.0.1")],
}
QUERIES: Final = ["api_key", "key", "access_token", "token", "authorization"]
# Method, path, and the status with a good key of a pool that has m1.
KEYED: Final[dict[str, tuple[str, str, int]]] = {
    "models": ("GET", "/v1/models", 200),
    "model": ("GET", "/v1/models/m1", 200),
    "responses": ("POST", "/v1/responses", 200),
    "chat": ("POST", "/v1/chat/completions", 200),
    "responses-get": ("GET", "/v1/responses", 426),
    "usage": ("GET", "/v1/usage", 200),
    "codex-usage": ("GET", "/api/codex/usage", 200),
    "native": ("POST", "/backend-api/codex/responses", 404),  # no ChatGPT login in this pool
    "models-post": ("POST", "/v1/models", 405),
    "realtime": ("POST", "/v1/realtime/calls", 404),
    "embeddings": ("POST", "/v1/embeddings", 404),
    "root": ("GET", "/v1", 404),
    "slash": ("GET", "/v1/", 404),
}
OPEN: Final[dict[str, tuple[str, str, int]]] = {
    "health": ("GET", "/healthz", 200),
    "ready": ("GET", "/readyz", 200),
    "nothing": ("GET", "/", 404),
    "well-known": ("GET", "/.well-known/openid-configuration", 404),
    "above": ("GET", "/v1models", 404),
}


def raw_request(method: str, path: str, headers: Pairs) -> bytes:
    if method == "GET":
        return request("GET", path, key=None, headers=headers)
    body = {"model": "m1", "input": "x", "stream": False}
    return post(path, body, key=None, headers=headers)


def let_answer(world: World) -> None:
    for upstream in world.upstreams.values():
        upstream.always = json_response({"id": "r"})


def shown(response: Response) -> tuple[int, list[tuple[str, str]], bytes]:
    """All that a client sees, but for what is new with every answer."""
    fields = [pair for pair in response.headers if pair[0] not in {"x-request-id", "date"}]
    return response.status, fields, response.body


@pytest.mark.parametrize("route", [*KEYED, *OPEN])
async def test_a_good_key_opens_its_routes(autojump_clock: MockClock, route: str) -> None:
    method, path, status = (KEYED | OPEN)[route]
    async with opened_world(described()) as world:
        let_answer(world)
        for name, headers in GOOD.items():
            response = await world.ask(raw_request(method, path, headers))
            assert response.status == status, name


@pytest.mark.parametrize("route", KEYED)
async def test_all_other_credentials_get_one_identical_401(
    autojump_clock: MockClock, route: str
) -> None:
    method, path, _ = KEYED[route]
    async with opened_world(described()) as world:
        let_answer(world)
        answers = {}
        for name, headers in BAD.items():
            answers[name] = shown(await world.ask(raw_request(method, path, headers)))
        for name in QUERIES:
            raw = raw_request(method, f"{path}?{name}={KEY}", [])
            answers[f"query-{name}"] = shown(await world.ask(raw))
        first = answers["none"]
        assert {name for name, answer in answers.items() if answer != first} == set()
        assert first[0] == 401
        assert ("www-authenticate", "Bearer") in first[1]
        assert world.asked == []
        assert {(record["pool"], record["key"]) for record in world.records} == {(None, None)}


async def test_the_401_is_the_same_on_every_route(autojump_clock: MockClock) -> None:
    async with opened_world(described()) as world:
        seen = set()
        for method, path, _ in KEYED.values():
            response = await world.ask(raw_request(method, path, BAD["wrong"]))
            fields = [pair for pair in shown(response)[1] if pair[0] != "connection"]
            seen.add((response.status, tuple(fields), response.body))
            # The body was not read, so the connection cannot go on.
            assert response.header("connection") == ("close" if method == "POST" else None)
            assert response.error["code"] == "invalid_api_key"
            assert response.error["type"] == "invalid_request_error"
            assert response.error["param"] is None
        assert len(seen) == 1


@pytest.mark.parametrize("route", OPEN)
async def test_no_credential_matters_where_none_is_asked(
    autojump_clock: MockClock, route: str
) -> None:
    method, path, status = OPEN[route]
    async with opened_world(described()) as world:
        answers = [
            shown(await world.ask(raw_request(method, path, headers)))
            for headers in (*GOOD.values(), *BAD.values())
        ]
        assert answers[0][0] == status
        assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(bearer(KEY), id="the-same"),
        pytest.param(bearer("cp-nobodys-key-0123456789"), id="wrong"),
        pytest.param([("authorization", "")], id="empty"),
        pytest.param(basic("a:b"), id="basic"),
    ],
)
@pytest.mark.parametrize("route", [*KEYED, *OPEN])
async def test_two_authorizations_are_no_request(
    autojump_clock: MockClock, route: str, second: Pairs
) -> None:
    method, path, _ = (KEYED | OPEN)[route]
    async with opened_world(described()) as world:
        for headers in ([*bearer(KEY), *second], [*second, *bearer(KEY)]):
            response = await world.ask(raw_request(method, path, headers))
            assert (response.status, response.error["code"]) == (400, "bad_request")
            assert response.header("connection") == "close"


async def test_a_key_reaches_its_own_pool_alone(autojump_clock: MockClock) -> None:
    async with opened_world(described()) as world:
        let_answer(world)
        body = {"model": "m2", "input": "x"}
        for key in (KEY, WORK_KEY, OTHER_KEY, WORK_KEY):
            assert (await world.ask(post("/v1/responses", body, key=key))).status == 200
        assert [len(world.upstreams[name].asked) for name in "ab"] == [2, 2]
        models = await world.ask(request("GET", "/v1/models", key=WORK_KEY))
        assert [model["id"] for model in models.json()["data"]] == ["m2"]
        response = await world.ask(post("/v1/responses", {"model": "m1"}, key=WORK_KEY))
        assert (response.status, response.error["code"]) == (400, "model_not_found")
        assert [(r["pool"], r["key"]) for r in world.records[:2]] == [
            ("home", "laptop"), ("work", "desk"),
        ]  # fmt: skip


@pytest.mark.parametrize("unit", ["a", "\U0001f600"])
async def test_the_name_of_a_model_has_so_many_characters(
    autojump_clock: MockClock, unit: str
) -> None:
    """An account keeps the names that its upstream lacks: they are a client's to choose."""
    whole = describe("a", accounts={"a": {"models": None}})
    async with opened_world(whole) as world:
        let_answer(world)
        for count in (MODEL_CHARS_MAX, MODEL_CHARS_MAX + 1, 1_000_000):
            response = await world.ask(post("/v1/responses", {"model": unit * count}))
            if count == MODEL_CHARS_MAX:
                assert response.status == 200
                continue
            told = response.error["code"], response.error["param"]
            assert (response.status, *told) == (400, "invalid_value", "model")
        assert len(world.upstreams["a"].asked) == 1


async def test_a_key_expires_at_its_second(autojump_clock: MockClock) -> None:
    async with opened_world(described()) as world:
        asks = {key: request("GET", "/v1/models", key=key) for key in (SOON_KEY, DAY_KEY)}
        for offset, key, status in (
            (0.999, SOON_KEY, 200),
            (1, SOON_KEY, 401),
            (MIDNIGHT_SECONDS - 0.5, DAY_KEY, 200),
            (MIDNIGHT_SECONDS, DAY_KEY, 401),
        ):
            world.unix_offset = UNIX_START + offset
            assert (await world.ask(asks[key])).status == status, offset


async def test_a_connection_is_judged_anew_with_every_request(world: World) -> None:
    client = await world.connect()
    for key, status in ((KEY, 200), (WORK_KEY, 401), (None, 401), (OTHER_KEY, 200)):
        assert (await client.ask(request("GET", "/v1/models", key=key))).status == status
    assert [record["key"] for record in world.records] == ["laptop", None, None, "ci"]


@settings(max_examples=60)
@given(
    token=st.text("cpkeyrst-0123456789", max_size=24)
    | st.builds(
        lambda key, at, more, skip: key[:at] + more + key[at + skip :],
        st.sampled_from([KEY, OTHER_KEY, HEX]),
        st.integers(0, 30),
        st.text("abc0-_=\xff", max_size=2),
        st.integers(0, 2),
    )
)
def test_a_token_is_good_if_and_only_if_it_is_one_of_the_keys(token: str) -> None:
    async def status() -> int:
        async with opened_world() as world:
            raw = request("GET", "/v1/models", key=None, headers=bearer(token))
            return (await world.ask(raw)).status

    found = trio.run(status, clock=MockClock(autojump_threshold=0))
    assert found == (200 if token in {KEY, OTHER_KEY} else 401)


################################################################
# THE KEYS' OWN LIMITS
################################################################


def with_key(**fields: Json) -> dict[str, Json]:
    keys = {"laptop": {"key": KEY} | fields, "ci": OTHER_KEY}
    return describe("a", pool={"keys": keys, "aliases": {"small": "m1", "large": "m2"}})


def check_limited(response: Response, seconds: int) -> None:
    error = response.error
    assert (response.status, error["code"]) == (429, "key_limit_reached")
    assert error["type"] == "rate_limit_error"
    assert response.header("retry-after") == (str(seconds) if seconds <= 60 else None)
    assert response.header("x-should-retry") == (None if seconds <= 60 else "false")


async def test_a_key_has_its_own_models(autojump_clock: MockClock) -> None:
    async with opened_world(with_key(models=["m1", "large"])) as world:
        let_answer(world)
        for model, status in (("m1", 200), ("small", 200), ("large", 200), ("m2", 400), ("x", 400)):
            response = await world.ask(ask_responses(model=model, stream=False))
            assert response.status == status, model
            if status == 400:
                assert response.error["code"] == "model_not_found"
                assert response.error["param"] == "model"
                assert response.error["message"].isascii()
                assert model not in response.error["message"].split()
        assert [asked.json()["model"] for asked in world.asked] == ["m1", "m1", "m2"]
        models = (await world.ask(request("GET", "/v1/models"))).json()["data"]
        assert sorted(model["id"] for model in models) == ["large", "m1", "small"]
        for model, status in (("m1", 200), ("large", 200), ("m2", 404)):
            response = await world.ask(request("GET", f"/v1/models/{model}"))
            assert response.status == status, model
        models = (await world.ask(request("GET", "/v1/models", key=OTHER_KEY))).json()["data"]
        assert sorted(model["id"] for model in models) == ["large", "m1", "m2", "small"]


async def test_requests_per_minute_slide(autojump_clock: MockClock) -> None:
    async with opened_world(with_key(requests_per_minute=2)) as world:
        let_answer(world)
        raw = ask_responses(stream=False)

        async def ask_at(moment: float) -> Response:
            with trio.move_on_at(moment):
                await trio.sleep_forever()
            return await world.ask(raw)

        assert (await ask_at(0)).status == 200
        assert (await ask_at(30.5)).status == 200
        check_limited(await ask_at(31), 29)
        check_limited(await ask_at(59.75), 1)
        assert (await ask_at(60)).status == 200
        check_limited(await ask_at(60), 31)
        assert (await ask_at(90.5)).status == 200
        check_limited(await ask_at(91), 29)
        assert len(world.asked) == 4
        assert (
            await world.ask(post("/v1/responses", {"model": "m1"}, key=OTHER_KEY))
        ).status == 200


async def test_a_model_list_takes_nothing_of_the_minute(autojump_clock: MockClock) -> None:
    async with opened_world(with_key(requests_per_minute=1)) as world:
        let_answer(world)
        for _ in range(5):
            assert (await world.ask(request("GET", "/v1/models"))).status == 200
        assert (await world.ask(ask_responses(stream=False))).status == 200
        check_limited(await world.ask(ask_responses(stream=False)), 60)


async def test_tokens_per_day_end_at_midnight_utc(autojump_clock: MockClock) -> None:
    async with opened_world(with_key(tokens_per_day=14)) as world:
        world.upstreams["a"].always = sse_response(responses_events("hello"))  # says 7 tokens
        for _ in range(2):
            assert (await world.ask(ask_responses())).status == 200
        check_limited(await world.ask(ask_responses()), MIDNIGHT_SECONDS)
        world.unix_offset = UNIX_START + MIDNIGHT_SECONDS - 61
        check_limited(await world.ask(ask_responses()), 61)
        world.unix_offset += 1
        check_limited(await world.ask(ask_responses()), 60)
        world.unix_offset += 59
        check_limited(await world.ask(ask_responses()), 1)
        world.unix_offset += 1
        assert (await world.ask(ask_responses())).status == 200
        assert len(world.asked) == 3


async def test_tokens_are_estimated_from_bytes_where_none_are_reported(
    autojump_clock: MockClock,
) -> None:
    answer = b'{"output": "' + b"x" * 400 + b'"}'
    raw = ask_responses(stream=False)
    sent = len(raw.partition(b"\r\n\r\n")[2])
    tokens = (sent + len(answer)) // 4
    for limit, status in ((tokens, 429), (tokens + 1, 200)):
        async with opened_world(with_key(tokens_per_day=limit)) as world:
            world.upstreams["a"].always = json_response(answer)
            assert (await world.ask(raw)).status == 200
            assert (await world.ask(raw)).status == status


@pytest.mark.parametrize("when", ["before an answer", "in its middle", "before its end"])
@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_client_that_leaves_has_spent_what_its_upstream_has_read(
    when: str, is_stream: bool, autojump_clock: MockClock
) -> None:
    if not is_stream and when != "before an answer":
        return
    raw = ask_responses(stream=is_stream, input="x" * 4000)
    async with opened_world(with_key(tokens_per_day=1000)) as world:
        events = responses_events("hello", "again")
        told = {"before an answer": 0, "in its middle": 3, "before its end": 4}[when]
        steps = sse_steps(*events[:told], Stall(), is_whole=False) if told else [Stall()]
        world.upstreams["a"].plays(steps)
        client = await world.connect()
        await client.send(raw)
        await world.settle()
        await client.hang_up()
        await world.settle()
        [record] = world.records
        assert (record["code"], record["tokens"]) == ("client_gone", None)
        assert record["tokens_estimated"] is True
        check_limited(await world.ask(raw), MIDNIGHT_SECONDS)
        assert len(world.asked) == 1


async def test_a_turn_whose_client_leaves_has_spent_what_its_upstream_has_read(
    autojump_clock: MockClock,
) -> None:
    keys = {"laptop": {"key": KEY, "tokens_per_day": 1000}}
    async with socket_world(socket_described("a", pool={"keys": keys})) as world:
        world.upstreams["a"].plays([Stall()])
        client = await open_socket(world)
        await client.create(input="x" * 4000)
        await world.settle()
        await client.hang_up()
        await world.settle()
        check_limited(await world.ask(ask_responses()), MIDNIGHT_SECONDS)


@pytest.mark.parametrize("status", [400, 401, 403, 413, 429, 500, 503])
async def test_what_an_upstream_has_refused_is_not_spent(
    status: int, autojump_clock: MockClock
) -> None:
    async with opened_world(with_key(tokens_per_day=1000)) as world:
        world.upstreams["a"].plays(error_response(status, "some_code"))
        raw = ask_responses(stream=False, input="x" * 4000)
        assert (await world.ask(raw)).status >= 400
        assert world.records[0]["tokens_estimated"] is False
        assert world.server.shared.uses["home", "laptop"].day_tokens == 0


async def test_what_a_200_refuses_as_the_request_s_own_fault_is_not_spent(
    autojump_clock: MockClock,
) -> None:
    refusal = {"error": {"code": "context_length_exceeded", "message": "x"}}
    async with opened_world(with_key(tokens_per_day=1000)) as world:
        world.upstreams["a"].plays(json_response(refusal))
        raw = ask_responses(stream=False, input="x" * 4000)
        assert (await world.ask(raw)).status == 400
        assert world.records[0]["tokens_estimated"] is False
        assert world.server.shared.uses["home", "laptop"].day_tokens == 0


@pytest.mark.parametrize("status", [504, 522, 524])
async def test_what_an_upstream_may_still_be_doing_is_spent(
    status: int, autojump_clock: MockClock
) -> None:
    async with opened_world(with_key(tokens_per_day=1000)) as world:
        world.upstreams["a"].plays(error_response(status, "some_code"))
        await world.ask(ask_responses(stream=False, input="x" * 4000))
        assert world.server.shared.uses["home", "laptop"].day_tokens >= 1000


async def test_a_key_has_so_many_requests_at_once(autojump_clock: MockClock) -> None:
    async with opened_world(with_key(concurrent=2)) as world:
        go = trio.Event()
        world.upstreams["a"].always = [Wait(go), *json_response({"id": "r"})]
        clients = [await world.connect() for _ in range(2)]
        for client in clients:
            await client.send(ask_responses(stream=False))
        await world.settle()
        check_limited(await world.ask(ask_responses(stream=False)), 1)
        assert (await world.ask(request("GET", "/v1/models"))).status == 200
        go.set()
        assert [(await client.read_response()).status for client in clients] == [200, 200]
        assert (await world.ask(ask_responses(stream=False))).status == 200


async def test_a_client_that_leaves_gives_its_place_back(autojump_clock: MockClock) -> None:
    async with opened_world(with_key(concurrent=1)) as world:
        world.upstreams["a"].plays([Wait(trio.Event())])
        client = await world.connect()
        await client.send(ask_responses())
        await world.settle()
        await client.hang_up()
        await world.settle()
        world.upstreams["a"].always = json_response({"id": "r"})
        assert (await world.ask(ask_responses(stream=False))).status == 200


async def test_a_refused_body_is_not_read_and_the_connection_ends(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(with_key(requests_per_minute=1)) as world:
        let_answer(world)
        await world.ask(ask_responses(stream=False))
        client = await world.connect()
        await client.send(request("POST", "/v1/responses", headers=[
            ("Content-Type", "application/json"), ("Content-Length", "1000000000"),
        ]))  # fmt: skip
        response = await client.read_response()
        check_limited(response, 60)
        assert response.header("connection") == "close"


def make_key(**fields: Json) -> Key:
    usual: dict[str, Json] = {"requests_per_minute": None, "tokens_per_day": None, "concurrent": 64}
    kept = usual | fields
    return Key(
        pool="p",
        name="k",
        digest=b"",
        models=None,
        expires=None,
        paused=False,
        source="literal",
        **kept,
    )


@settings(max_examples=200)
@given(
    per_minute=st.integers(1, 4),
    gaps=st.lists(st.floats(0, 70, allow_nan=False).map(lambda gap: round(gap, 2)), max_size=20),
)
def test_no_minute_ever_holds_more_than_allowed(per_minute: int, gaps: list[float]) -> None:
    key, use = make_key(requests_per_minute=per_minute), KeyUse()
    now = 1000.0
    admitted: list[float] = []
    for gap in gaps:
        now += gap
        recent = [moment for moment in admitted if moment > now - 60]
        try:
            use.admit(key, now, UNIX_START)
        except PoolerError as error:
            told = dict(error.headers)
            wait = int(told["Retry-After"])
            assert len(recent) == per_minute
            assert wait == max(1, math.ceil(recent[0] + 60 - now))
        else:
            assert len(recent) < per_minute
            admitted.append(now)
    assert len(use.minute) <= per_minute


def test_many_requests_of_one_key_are_forgotten_after_their_minute() -> None:
    key, use = make_key(requests_per_minute=3), KeyUse()
    for second in range(0, 6000, 20):
        use.admit(key, second, UNIX_START)
        use.in_flight_count -= 1
        assert len(use.minute) <= 3


# What looks like a placeholder, a variable or a quoted secret is refused.
VISIBLE: Final = st.text(
    [chr(code) for code in range(0x21, 0x7F)], min_size=16, max_size=24
).filter(lambda secret: not doubt_of_secret(secret) and not set(secret) & set("<>"))


@settings(max_examples=300)
@given(
    secrets=st.lists(VISIBLE, min_size=1, max_size=4, unique=True),
    hashed=st.integers(0, 4),
    data=st.data(),
)
def test_exactly_the_keys_are_accepted_and_never_their_hashes(
    secrets: list[str], hashed: int, data: st.DataObject
) -> None:
    """The first `hashed` stand in the file as hashes."""
    secrets = [secret for secret in secrets if not secret.lower().startswith(("sha256:", "{"))]
    assume(secrets)
    hashes = [hashlib.sha256(secret.encode()).hexdigest() for secret in secrets]
    lines = [
        f"sha256:{digest}" if at < hashed else secret
        for at, (secret, digest) in enumerate(zip(secrets, hashes, strict=True))
    ]
    keys = {f"k{at}": line for at, line in enumerate(lines)}
    config = make_config(describe("a", pool={"keys": keys}))
    near = [text for secret in secrets for text in (secret[:-1], secret + "x", secret.swapcase())]
    others = st.sampled_from([*hashes, *(f"sha256:{digest}" for digest in hashes), *near])
    anything = st.binary(max_size=40).map(lambda raw: raw.decode("latin-1"))
    presented = data.draw(st.sampled_from(secrets) | others | anything)
    entry = match_secret(presented, config.keys)
    assert (entry is not None) == (presented in secrets)
    if entry is not None:
        assert entry.name == f"k{secrets.index(presented)}"


class Digest(bytes):
    """A digest that may only be compared as a whole, in constant time."""

    __hash__ = None  # type: ignore[assignment] # a set or a table would compare it, too

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared byte by byte")


def digest_of(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("latin-1")).digest()


@pytest.mark.parametrize("presented", [None, "", "of-a", "of-b", "of-c", "of-d", "of-", "\xff"])
def test_time_tells_neither_which_secret_matched_nor_how_much_of_it(
    presented: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each comparison is one of whole digests in constant time, and there are as many always."""
    digests = [digest_of(f"of-{name}") for name in "abc"]
    [key] = make_config(describe("a", pool={"keys": {"laptop": KEY}})).keys
    keys = [dataclasses.replace(key, digest=Digest(digest)) for digest in digests]
    compared: list[bytes] = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append(bytes(right))
        return compare_digest(left, right)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    found = match_secret(presented, keys)
    by_secret = {f"of-{name}": key for name, key in zip("abc", keys, strict=True)}
    assert found is by_secret.get(presented or "")
    assert compared == digests


async def test_the_table_of_keys_in_use_holds_no_names_of_strangers(world: World) -> None:
    """What a caller without a key sends makes no entry anywhere."""
    for number in range(20):
        await world.ask(request("GET", f"/v1/models/{number}", key=f"cp-stranger-{number:010}"))
        await world.ask(post("/v1/responses", {"model": "m1"}, key=KEY + str(number)))
    assert world.server.shared.uses == {}
    assert len(world.server.shared.roster.sessions.pins) == 0
    assert world.server.shared.queues.by_pool == {}
