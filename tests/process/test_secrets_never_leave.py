"""Proves that secrets, prompts and upstreams' messages stay where they belong.

Method: canaries, texts that occur nowhere else, take the place of every secret and every input, one
at a time; then no eight characters of one may be found in the log, in a response of ours, in a
repr, or in what another account is sent. Both lists of headers are checked as a whole.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

import pooler
from pooler import Config, ConfigRefused, JsonObject, Secret, main, parse_config, print_log
from tests.support.memory_sockets import Json, Pairs, Response, post, request
from tests.support.world import (
    Fin,
    Refuse,
    Send,
    Step,
    Wait,
    World,
    describe,
    error_response,
    json_response,
    opened_world,
    response_head,
    responses_events,
    sse_response,
    sse_steps,
)

API_KEY: Final = {"a": "sk-aQ8fZ2mV6xB1nK9sD4gH7jL3", "b": "sk-bW5eR0tY7uI2oP8aS6dF1gJ4"}
POOL_KEY: Final = "cp-cX3vN8mQ1wE6rT9yU4iO7pA2"
OTHER_KEY: Final = "cp-dL5kJ0hG3fD8sA1qZ6xC9vB4"
TOKEN: Final = "cpo-eM7nB2vC5xZ0lK3jH8gF1dS6"
FROM_ENV: Final = "sk-fT4yU9iO2pA7sD0fG5hJ8kL1"
FROM_FILE: Final = "cp-gR6eW1qZ4xC7vB0nM3lK8jH5"
SECRETS: Final = (*API_KEY.values(), POOL_KEY, OTHER_KEY, TOKEN, FROM_ENV, FROM_FILE)
TYPED: Final = "hVp2Zq9Xw4Kt7Ym1"  # by a client
SAID: Final = "jBd8Rf3Gc6Nh0Sz5"  # by an upstream


def described(**more: Json) -> dict[str, Json]:
    accounts = {name: {"api_key": key} for name, key in API_KEY.items()}
    keys = {"laptop": POOL_KEY, "ci": OTHER_KEY}
    pool = {"keys": keys, "models": ["m1", "m2"], "routing": "in_order"}
    return describe("ab", accounts=accounts, pool=pool, operators={"me": TOKEN}, **more)


def found_in(told: str | bytes, canaries: Iterable[str]) -> list[str]:
    """The canaries of which eight characters in a row are in `told`."""
    text = told.decode("latin-1") if isinstance(told, bytes) else told
    windows = ((one, one[at : at + 8]) for one in canaries for at in range(len(one) - 7))
    return sorted({one for one, window in windows if window.lower() in text.lower()})


def texts_of(value: Json) -> Iterable[str]:
    if isinstance(value, dict):
        for name, one in value.items():
            yield from (name, *texts_of(one))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from texts_of(one)
    elif isinstance(value, str):
        yield value


def check_log(world: World, canaries: Iterable[str] = ()) -> None:
    assert world.logged
    assert found_in(json.dumps(world.logged), (*SECRETS, *canaries)) == []
    assert found_in(repr(world.logged), (*SECRETS, *canaries)) == []
    for text in texts_of([fields for _, _, fields in world.logged]):
        assert text.isascii()
        assert text.isprintable()


def shown(response: Response) -> bytes:
    head = "".join(f"{name}: {value}\n" for name, value in response.headers)
    return head.encode("latin-1") + response.body


def let_answer(world: World) -> None:
    for upstream in world.upstreams.values():
        upstream.always = json_response({"id": "r"})


def ask_with(body: Json = None, *, headers: Pairs = (), key: str = POOL_KEY) -> bytes:
    return post("/v1/responses", body or {"model": "m1", "input": "x"}, key=key, headers=headers)


################################################################
# WHAT CAN BE PRINTED
################################################################


def with_references() -> Config:
    whole = described()
    whole["accounts"]["a"]["api_key"] = "{env:API_KEY}"
    whole["pools"]["home"]["keys"]["laptop"] = "{file:key.txt}"
    env = {"API_KEY": FROM_ENV}
    return parse_config(json.dumps(whole).encode(), env, lambda _: FROM_FILE + "\n")


SHOWS: Final[dict[str, Callable[[Any], object]]] = {
    "repr": repr,
    "str": str,
    "format": "{}".format,
    "percent": lambda value: "%s %r" % (value, value),  # noqa: UP031 (what a log might do)
    "fields": lambda value: repr(dataclasses.asdict(value)),
    "copy": lambda value: repr(copy.copy(value)),
}


@pytest.mark.parametrize("show", SHOWS)
def test_a_configuration_does_not_show_its_secrets(show: str) -> None:
    for config in (with_references(), parse_config(json.dumps(described()).encode(), {}, str)):
        parts = [config, *config.accounts.values(), *config.pools.values(), *config.keys]
        for part in parts:
            assert found_in(str(SHOWS[show](part)), SECRETS) == []


def test_a_secret_shows_itself_to_nobody() -> None:
    secret = Secret(TYPED)
    for show in (repr, str, "{}".format, lambda one: f"{one!r:>40}", dir):
        assert found_in(str(show(secret)), [TYPED]) == []
    with pytest.raises(TypeError):
        vars(secret)
    with pytest.raises(TypeError):
        json.dumps({"key": secret})
    assert not dataclasses.is_dataclass(secret)


async def test_the_live_objects_do_not_show_their_secrets(autojump_clock: MockClock) -> None:
    async with opened_world(described()) as world:
        let_answer(world)
        assert (await world.ask(ask_with())).status == 200
        server = world.server
        parts = [
            server,
            server.shared.roster,
            server.shared.roster.health,
            server.shared.uses,
            server.shared.idle,
            vars(server),
        ]
        for part in parts:
            assert found_in(repr(part), SECRETS) == []


def test_a_rejected_configuration_does_not_show_its_secrets() -> None:
    whole = described()
    whole["accounts"]["a"] |= {"base_url": f"https://user:{TYPED}@h/v1", "modles": [FROM_ENV]}
    whole["accounts"]["b"] |= {"api_key": f"{API_KEY['b']} {TYPED}", "ca_file": [TYPED]}
    whole["pools"]["home"]["keys"] |= {"ci": POOL_KEY, "more": TYPED[:12], "third": [FROM_FILE]}
    whole |= {"operators": {"me": POOL_KEY}, "listen": TYPED, "hosts": [f"{TYPED}:1"]}
    with pytest.raises(ConfigRefused) as refused:
        parse_config(json.dumps(whole).encode(), {}, str)
    told = "".join(traceback.format_exception(refused.value)) + repr(refused.value)
    assert len(refused.value.problems) >= 8
    assert found_in(told, [*SECRETS, TYPED]) == []


async def test_a_refused_reload_does_not_show_its_secrets(autojump_clock: MockClock) -> None:
    async with opened_world(described()) as world:

        def load() -> Any:  # noqa: ANN401 (it never returns)
            raw = json.dumps(described(hosts=[TYPED + ":1"], base_path=[TYPED])).encode()
            parse_config(raw[:-1] + b', "x": "' + FROM_ENV.encode() + b'"}', {}, str)

        await world.server.reload(load)
        assert [event for _, event, _ in world.logged] == ["reload refused"] * 3
        check_log(world, [TYPED])


@pytest.mark.parametrize("is_broken", [False, True], ids=["well", "broken"])
def test_check_prints_no_secret(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_broken: bool,
) -> None:
    whole = described(listen="unix:/tmp/never-bound.sock")
    whole["accounts"]["a"]["api_key"] = "{env:CANARY_KEY}"
    whole["pools"]["home"]["keys"]["laptop"] = "{file:key.txt}"
    if is_broken:
        whole["operators"]["you"] = FROM_FILE
    monkeypatch.setenv("CANARY_KEY", FROM_ENV)
    (tmp_path / "key.txt").write_text(FROM_FILE + "\n")
    (tmp_path / "pools.json").write_text(json.dumps(whole))
    assert main(["check", "--config", str(tmp_path / "pools.json")]) == int(is_broken)
    printed = capsys.readouterr()
    assert printed.out or printed.err
    assert found_in(printed.out + printed.err, SECRETS) == []


def test_a_print_log_is_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_log("info", "test", {"text": 'a\nb\r\x1b[31m\u2028\x00"é\ud800', "none": None})
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.endswith("}\n")
    assert printed.err[:-1].isascii()
    assert printed.err[:-1].isprintable()
    assert json.loads(printed.err)["text"].startswith("a\nb")


################################################################
# WHAT A CLIENT TYPES
################################################################

HEAD: Final = request("POST", "/v1/responses", key=POOL_KEY)
BODY: Final = {"model": "m1", "input": "x"}
TYPED_IN: Final[dict[str, bytes]] = {
    "header-name": ask_with(headers=[(f"X-{TYPED}", "y")]),
    "header-value": ask_with(headers=[("X-Secret", TYPED)]),
    "cookie": ask_with(headers=[("Cookie", f"session={TYPED}")]),
    "user-agent": ask_with(headers=[("User-Agent", f"evil/{TYPED}")]),
    "session": ask_with(headers=[("session-id", TYPED)]),
    "accept": ask_with(headers=[("Accept", TYPED)]),
    "forwarded": ask_with(headers=[("X-Forwarded-For", TYPED)]),
    "coding": ask_with(headers=[("Content-Encoding", TYPED)]),
    "expectation": ask_with(headers=[("Expect", TYPED)]),
    "origin": ask_with(headers=[("Origin", f"https://{TYPED}")]),
    "request-id": ask_with(headers=[("X-Request-Id", TYPED)]),
    "traceparent": ask_with(headers=[("traceparent", TYPED)]),
    "content-type": request("POST", "/v1/responses", key=POOL_KEY, headers=[
        ("Content-Type", TYPED), ("Content-Length", "0")]),
    "bearer": ask_with(key=f"cp-{TYPED}-{TYPED}"),
    "bearer-non-ascii": ask_with(key=f"{TYPED}\xe9"),
    "basic": post("/v1/responses", BODY, key=None, headers=[("Authorization", f"Basic {TYPED}")]),
    "query": post(f"/v1/responses?key={TYPED}", BODY, key=POOL_KEY),
    "path": post(f"/v1/{TYPED}", BODY, key=POOL_KEY),
    "other-path": request("GET", f"/{TYPED}?{TYPED}", key=None),
    "model-path": request("GET", f"/v1/models/{TYPED}", key=POOL_KEY),
    "method": request(TYPED, "/v1/models", key=POOL_KEY),
    "method-nowhere": request(TYPED, "/", key=None),
    "input": ask_with(BODY | {"input": TYPED}),
    "field-name": ask_with(BODY | {TYPED: 1}),
    "instructions": ask_with(BODY | {"instructions": TYPED, "metadata": {TYPED: TYPED}}),
    "cache-key": ask_with(BODY | {"prompt_cache_key": TYPED}),
    "previous": ask_with(BODY | {"previous_response_id": TYPED}),
    "user": ask_with(BODY | {"user": TYPED, "safety_identifier": TYPED}),
    "model": ask_with({"model": TYPED, "input": "x"}),
    "model-with-control": ask_with({"model": f"m1\n\x1b[31m{TYPED}", "input": "x"}),
    "model-object": ask_with({"model": {TYPED: 1}, "input": "x"}),
    "broken-json": ask_with(b'{"model": "m1", "input": "' + TYPED.encode()),
    "duplicate-name": ask_with(f'{{"{TYPED}": 1, "{TYPED}": 2}}'.encode()),
    "not-utf-8": ask_with(TYPED.encode() + b"\xff"),
    "number": ask_with(f'{{"model": "m1", "x": 1e999, "y": "{TYPED}"}}'.encode()),
    "gzip": ask_with(TYPED.encode(), headers=[("Content-Encoding", "gzip")]),
    "chunk": HEAD[:-2] + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
             + TYPED.encode() + b"\r\n",
    "line": f"GET / {TYPED} HTTP/1.1\r\n\r\n".encode(),
    "version": f"GET / HTTP/{TYPED}\r\n\r\n".encode(),
    "field-line": f"GET / HTTP/1.1\r\nHost: localhost\r\n{TYPED}\r\n\r\n".encode(),
    "bare-lf": f"GET / HTTP/1.1\nX: {TYPED}\n".encode(),
    "bad-host": f"GET / HTTP/1.1\r\nHost: {TYPED} x\r\n\r\n".encode(),
    "control": f"GET / HTTP/1.1\r\nHost: localhost\r\nX: \x1b]0;{TYPED}\x07\r\n\r\n".encode(),
    "large-head": b"GET / HTTP/1.1\r\nX: " + TYPED.encode() * 4000,
    "large-length": request("POST", "/v1/responses", key=POOL_KEY, headers=[
        ("Content-Type", "application/json"), ("Content-Length", "9" * 12), ("X", TYPED)]),
}  # fmt: skip


@pytest.mark.parametrize("name", TYPED_IN)
async def test_what_a_client_sends_is_not_logged(autojump_clock: MockClock, name: str) -> None:
    async with opened_world(described()) as world:
        let_answer(world)
        response = await world.ask(TYPED_IN[name])
        assert found_in(shown(response), [TYPED, *SECRETS]) == []
        check_log(world, [TYPED])
        known = {name: health.blocks for name, health in world.server.shared.roster.health.items()}
        assert (
            found_in(
                repr([known, world.server.shared.uses, world.server.shared.queues.by_pool]), [TYPED]
            )
            == []
        )


@pytest.mark.parametrize("has_list", [True, False], ids=["models", "any-model"])
async def test_a_model_nobody_configured_is_not_in_the_log(
    autojump_clock: MockClock, has_list: bool
) -> None:
    """A name from pools.json may be logged; what a client sends in its place may be anything."""
    whole = described()
    if not has_list:
        del whole["pools"]["home"]["models"]
    async with opened_world(whole) as world:
        let_answer(world)
        assert (await world.ask(ask_with({"model": TYPED, "input": "x"}))).status == 400
        check_log(world, [TYPED])
        assert (await world.ask(ask_with())).status == 200
        assert world.records[-1]["model"] == "m1"


async def test_no_control_byte_of_a_models_name_is_in_the_log(autojump_clock: MockClock) -> None:
    """If any name is accepted, and an upstream serves it."""
    whole = described()
    del whole["pools"]["home"]["models"], whole["accounts"]["a"]["models"]
    async with opened_world(whole) as world:
        let_answer(world)
        for model in ("m\n1", "\x1b[31m", "\r\n{}", "\u2028é", "\ud800", "x" * 200, '","a":"'):
            assert (await world.ask(ask_with({"model": model, "input": "x"}))).status == 200
            assert len(json.dumps(world.records[-1])) < 1000
        check_log(world)


async def test_a_foreign_host_is_shown_to_its_sender_alone(autojump_clock: MockClock) -> None:
    """The one intended echo: the name to add to `hosts`."""
    async with opened_world(described()) as world:
        response = await world.ask(request("GET", "/", host=TYPED, key=POOL_KEY))
        assert response.status == 403
        assert TYPED.lower() in response.error["message"]
        check_log(world, [TYPED])


@settings(max_examples=120)
@given(at=st.integers(0, 400), canary=st.sampled_from([TYPED, f"\x1b[31m{TYPED}", f"\r\n{TYPED}"]))
def test_nothing_sent_in_any_field_is_logged(at: int, canary: str) -> None:
    raw = ask_with(BODY | {"stream": False, "prompt_cache_key": "s"}, headers=[("X-A", "b")])
    at = 5 + at % (len(raw) - 5)  # behind the method, which has its own test
    raw = raw[:at] + canary.encode() + raw[at:]

    async def play() -> None:
        async with opened_world(described()) as world:
            let_answer(world)
            client = await world.connect()
            await client.send(raw)
            await client.half_close()
            told = await client.wait_closed()
            if b"host_not_allowed" not in told:
                assert found_in(told, [TYPED, *SECRETS]) == []
            # Of a head that never ended, as its last line end was cut in two, there is no line.
            if told or b"\r\n\r\n" in raw:
                check_log(world, [TYPED])

    trio.run(play, clock=MockClock(autojump_threshold=0))


################################################################
# WHAT AN UPSTREAM SAYS
################################################################

SAID_HEADERS: Final[Pairs] = [
    (name, SAID)
    for name in (
        "set-cookie", "openai-organization", "openai-project", "x-request-id", "cf-ray", "server",
        "location", "www-authenticate", "alt-svc", "via", "x-powered-by", "link", "etag",
        "x-ratelimit-limit-requests", "x-codex-primary-used-percent", "x-codex-turn-state",
        "access-control-allow-origin", "strict-transport-security", "refresh", "clear-site-data",
        "x-oai-request-id", "trailer", "proxy-authenticate", "content-disposition", "upgrade",
        "content-security-policy", "date", "keep-alive", "x-unknown",
    )
]  # fmt: skip
FORWARDED: Final[Pairs] = [
    ("openai-model", "m1"), ("openai-processing-ms", "12"), ("openai-version", "2020-10-01"),
    ("x-should-retry", "false"),
]  # fmt: skip
OURS: Final = {
    "content-type", "x-request-id", "date", "content-length", "transfer-encoding", "connection",
    "cache-control", "x-content-type-options", "x-accel-buffering", "retry-after", "x-should-retry",
}  # fmt: skip
EVENTS: Final = responses_events("hi")
ERROR_WITH_KEY: Final = f"Incorrect API key provided: {API_KEY['a']}. {SAID}"
ANSWERS: Final[dict[str, list[Step]]] = {
    "unary": json_response({"id": "r"}, headers=[*SAID_HEADERS, *FORWARDED]),
    "stream": sse_response(EVENTS, headers=[*SAID_HEADERS, *FORWARDED]),
    "400": error_response(400, "bad", SAID_HEADERS),
    "404": error_response(404, "no", SAID_HEADERS),
    **{
        str(status): error_response(status, "some_code", SAID_HEADERS, message=ERROR_WITH_KEY)
        for status in (301, 307, 401, 402, 403, 429, 500, 502, 503, 504, 522, 529)
    },
    "code-is-no-token": error_response(500, f"{SAID} \x1b[31m {API_KEY['a']}"),
    "code-is-long": error_response(500, SAID * 10),
    "type-is-no-token": error_response(500, None, type=f"x {SAID}"),
    "detail": json_response({"detail": ERROR_WITH_KEY}, 500),
    "html": [Send(response_head(502, [("content-type", "text/html"), ("content-length", "16")])
                  + SAID.encode())],
    "html-403": [Send(response_head(403, [("content-type", "text/html"), ("content-length", "16")])
                      + SAID.encode())],
    "reason": [Send(f"HTTP/1.1 500 {SAID}\r\ncontent-length: 0\r\n\r\n".encode())],
    "no-http": [Send(f"{SAID}\r\n\r\n".encode())],
    "bad-field": [Send(f"HTTP/1.1 200 OK\r\n{SAID}\r\n\r\n".encode())],
    "bad-chunk": [Send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
                       + SAID.encode() + b"\r\n")],
    "bad-coding": [Send(f"HTTP/1.1 200 OK\r\ncontent-encoding: {SAID}\r\n\r\n".encode()), Fin()],
    "failed-first": sse_response([{"type": "response.failed", "response": {
        "error": {"code": "server_error", "message": ERROR_WITH_KEY}}}]),
    "limited-first": sse_response([{"type": "response.failed", "response": {
        "error": {"code": "rate_limit_exceeded", "message": f"try again in 9s {SAID}"}}}]),
    "cut": [Send(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n" + SAID.encode()), Fin()],
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("is_stream", [True, False], ids=["stream", "unary"])
async def test_what_an_upstream_sends_besides_its_response_is_not_passed_on(
    autojump_clock: MockClock, name: str, is_stream: bool
) -> None:
    async with opened_world(described()) as world:
        for upstream in world.upstreams.values():
            upstream.always = ANSWERS[name]
        response = await world.ask(ask_with(BODY | {"stream": is_stream}))
        fields = [pair for pair in response.headers if pair not in FORWARDED]
        assert {field for field, _ in fields} <= OURS
        body = b"" if response.status in {200, 400} else response.body
        assert found_in(repr(response.headers).encode() + body, [SAID, *SECRETS]) == []
        if name in {"unary", "stream"} and response.status == 200:
            assert [pair for pair in response.headers if pair in FORWARDED] == FORWARDED
        check_log(world, [SAID])


async def test_a_stream_that_fails_late_ends_in_our_words(autojump_clock: MockClock) -> None:
    for last in (Send(SAID.encode() + b"\r\n"), Fin()):
        async with opened_world(described()) as world:
            go = trio.Event()
            world.upstreams["a"].plays(sse_steps(*EVENTS[:3], Wait(go), last, is_whole=False))
            client = await world.connect()
            await client.send(ask_with(BODY | {"stream": True}))
            assert (await client.read_head()).status == 200
            go.set()
            told = await client.wait_closed()
            assert b"response.failed" in told
            assert found_in(told, [SAID, *SECRETS]) == []
            check_log(world, [SAID])


async def test_an_upstreams_redirect_is_not_followed(autojump_clock: MockClock) -> None:
    async with opened_world(described()) as world:
        location = [("location", "http://127.0.0.1:9002/v1/responses")]  # the other account's
        world.upstreams["a"].always = error_response(307, "moved", location)
        response = await world.ask(ask_with())
        assert (response.status, response.header("location")) == (502, None)
        assert world.upstreams["b"].asked == []
        assert len(world.upstreams["a"].asked) == 1


################################################################
# WHAT AN UPSTREAM IS SENT
################################################################

NOT_FORWARDED: Final[Pairs] = [
    (name, TYPED)
    for name in (
        "cookie", "x-api-key", "api-key", "openai-organization", "openai-project", "referer",
        "chatgpt-account-id", "user-agent", "x-forwarded-for", "x-forwarded-host", "forwarded",
        "via", "x-real-ip", "x-stainless-os", "session-id", "x-session-id", "traceparent",
        "proxy-authorization", "x-codex-turn-metadata", "accept-language", "te", "trailer",
        "accept-charset", "range", "if-none-match", "priority", "x-unknown", "keep-alive",
        "originator", "x-request-id", "idempotency-key", "sec-fetch-mode", "accept-encoding",
    )
]  # fmt: skip
SENT: Final = {
    "host", "authorization", "user-agent", "accept-encoding", "content-type", "content-length",
    "accept", "openai-beta",
}  # fmt: skip


async def test_an_upstream_gets_its_own_key_and_the_listed_headers(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(described()) as world:
        world.upstreams["a"].always = error_response(503, "server_error")
        world.upstreams["b"].always = json_response({"id": "r"})
        listed = [("Accept", "application/json"), ("OpenAI-Beta", "responses=v1")]
        raw = ask_with(headers=[*NOT_FORWARDED, *listed])
        assert (await world.ask(raw.replace(b"responses HTTP", b"responses?q=" + TYPED.encode()
                                            + b" HTTP"))).status == 200  # fmt: skip
        for name, other in (("a", "b"), ("b", "a")):
            [asked] = world.upstreams[name].asked
            assert {field for field, _ in asked.headers} == SENT
            assert asked.header("authorization") == f"Bearer {API_KEY[name]}"
            assert asked.header("host") == f"127.0.0.1:{9001 + 'ab'.index(name)}"
            assert asked.header("accept-encoding") == "identity"
            assert (asked.header("accept"), asked.header("openai-beta")) == (
                "application/json", "responses=v1",
            )  # fmt: skip
            assert asked.target == "/v1/responses"
            theirs = [secret for secret in SECRETS if secret != API_KEY[name]]
            assert found_in(asked.head + asked.body, [TYPED, *theirs]) == []
            assert API_KEY[other] not in asked.head.decode()


async def test_no_field_of_a_body_chooses_the_destination(autojump_clock: MockClock) -> None:
    fields = ("api_base", "base_url", "api_key", "account", "pool", "provider", "endpoint", "host")
    body = BODY | dict.fromkeys(fields, "http://127.0.0.1:9002/v1") | {"headers": {"Host": "b"}}
    async with opened_world(described()) as world:
        let_answer(world)
        raw = ask_with(body, headers=[("X-Account", "b"), ("X-Forwarded-Host", "127.0.0.1:9002")])
        assert (await world.ask(raw)).status == 200
        [asked] = world.upstreams["a"].asked
        assert asked.header("authorization") == f"Bearer {API_KEY['a']}"
        assert world.upstreams["b"].dial_count == 0


async def test_a_model_list_is_requested_with_nothing_of_a_client(
    autojump_clock: MockClock,
) -> None:
    whole = described()
    for account in whole["accounts"].values():
        del account["models"]
    async with opened_world(whole) as world:
        for upstream in world.upstreams.values():
            upstream.catalogue = json_response({"data": [{"id": "m1", "note": SAID}]}, 200)
        raw = request("GET", f"/v1/models?x={TYPED}", key=POOL_KEY, headers=NOT_FORWARDED)
        assert found_in(shown(await world.ask(raw)), [SAID, TYPED]) == []
        await world.settle()
        for name, upstream in world.upstreams.items():
            [asked] = upstream.catalogue_asked
            assert asked.header("authorization") == f"Bearer {API_KEY[name]}"
            assert {field for field, _ in asked.headers} <= SENT
            assert found_in(asked.head, [TYPED, POOL_KEY]) == []


################################################################
# BUGS
################################################################


class Broken(trio.abc.HalfCloseableStream):
    """A stream with a bug in it: what it raises holds a canary, and so does its cause."""

    def __init__(self, received: bytes = b"") -> None:
        self.received = received

    def fail(self) -> None:
        try:
            raise ValueError(TYPED)
        except ValueError as cause:
            raise RuntimeError(f"{TYPED} {API_KEY['a']}") from cause

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        received, self.received = self.received, b""
        if not received:
            self.fail()
        return received

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self.fail()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def check_bug(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    """A bug was logged, with its place and without its words; then it is forgotten."""
    bugs = [(level, fields) for level, event, fields in world.logged if event == "bug"]
    assert {(level, fields["type"]) for level, fields in bugs} == {("error", "RuntimeError")}
    assert all(fields["at_frames"] for _, fields in bugs)
    check_log(world, [TYPED])
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""
    world.logged.clear()


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_bug_on_the_way_is_a_500_that_says_nothing(
    autojump_clock: MockClock, capfd: pytest.CaptureFixture[str], is_stream: bool
) -> None:
    async with opened_world(described()) as world:
        world.upstreams["a"].dials.append(Refuse(RuntimeError(f"{TYPED} {API_KEY['a']}")))
        response = await world.ask(ask_with(BODY | {"stream": is_stream, "input": TYPED}))
        assert (response.status, response.error["code"]) == (500, "internal_error")
        assert response.error["type"] == "server_error"
        assert found_in(shown(response), [TYPED, *SECRETS]) == []
        [logged] = [fields for _, event, fields in world.logged if event == "bug"]
        assert logged["request_id"] == response.header("x-request-id")
        check_bug(world, capfd)
        let_answer(world)
        assert (await world.ask(ask_with())).status == 200


async def test_a_bug_before_the_request_is_parsed_reveals_nothing(
    autojump_clock: MockClock, capfd: pytest.CaptureFixture[str]
) -> None:
    async with opened_world(described()) as world:
        for received in (b"", request("GET", f"/{TYPED}"), ask_with(BODY | {"input": TYPED})[:-1]):
            await world.server.serve_connection(Broken(received))
            check_bug(world, capfd)


@pytest.mark.parametrize("service", [(pooler.Reaper, "run"), (pooler.Catalogues, "run")])
async def test_a_bug_in_a_service_ends_the_server_and_its_text_stays_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: tuple[type, str]
) -> None:
    async def fail(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("canary")

    logged: list[tuple[str, str, JsonObject]] = []

    def log(level: str, event: str, fields: JsonObject) -> None:
        logged.append((level, event, fields))

    monkeypatch.setattr(*service, fail)
    path = tmp_path / "pools.json"
    path.write_text(json.dumps(describe("a", listen="127.0.0.1:0")))
    assert await pooler.run_serve(path, {}, log) == 1

    [bug] = [fields for level, event, fields in logged if (level, event) == ("error", "bug")]
    assert bug["type"] == "RuntimeError"
    assert "canary" not in json.dumps([fields for _, _, fields in logged])
    assert "stopped" not in [event for _, event, _ in logged]


def test_bugs_are_no_closed_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They show as what they are, and not as success."""

    def fail(*_: object) -> None:
        raise ExceptionGroup("two", [BrokenPipeError(), ValueError("a bug")])

    monkeypatch.setattr(pooler, "load", fail)
    with pytest.RaisesGroup(BrokenPipeError, ValueError):
        main(["check", "--config", str(tmp_path)])
