"""Proves what accounts of type `codex` do for clients, and what they never let out.

Method: the real server in virtual time; its codex accounts dial the strict backend of
`tests/support/codex_backend.py` over sockets in memory.  Seen are the client's answer, what the
backend was asked, and where the next request goes.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from pooler import parse_config
from tests.support import codex_backend
from tests.support.codex_backend import Play, make_auth_file
from tests.support.codex_turns import ANSWER, TURN_STATE
from tests.support.codex_world import (
    CHAT_BODY,
    FIRST,
    FORMS,
    MODEL,
    NAMES,
    NATIVE_BODY,
    PLATFORM,
    PREFIX,
    RESPONSES_BODY,
    SECOND,
    describe_codex,
    every_form,
    opened_codex_world,
    payloads,
    streamed,
    text_of,
)
from tests.support.memory_sockets import KEY, Json, Pairs, post, request
from tests.support.world import UNIX_START, json_response

################################################################
# WHO WE ARE
################################################################


@every_form
async def test_each_form_of_request_is_answered(
    autojump_clock: MockClock, tmp_path: Path, form: str
) -> None:
    path, body = FORMS[form]
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        world.backend.plays.append(Play(has_extra_events=True, has_null_output=True))
        response = await world.ask(post(path, body))
        assert response.status == 200
        assert text_of(response) == ANSWER
        assert world.backend.accounts() == [FIRST]
        [record] = world.records
        assert (record["account"], record["code"], record["model"]) == ("first", None, MODEL)
        assert record["tokens"]["input_tokens"] == 11


async def test_the_backend_is_told_who_we_are_and_nothing_of_the_client(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    private = [
        ("Cookie", "secret=1"), ("X-Stainless-Lang", "python"), ("X-Forwarded-For", "10.1.2.3"),
        ("Originator", "codex_cli_rs"), ("User-Agent", "codex_cli_rs/1"), ("Session-Id", "mine"),
        ("Chatgpt-Account-Id", "acct-foreign"), ("X-Codex-Turn-State", "state"),
    ]  # fmt: skip
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        await world.ask(post("/v1/responses", RESPONSES_BODY, headers=private))
        [seen] = world.backend.asked()
        assert seen.headers["originator"] == "codex-pooler"
        assert seen.headers["user-agent"].startswith("codex-pooler/")
        assert seen.headers["chatgpt-account-id"] == FIRST
        told = json.dumps(seen.headers)
        for _, value in private:
            assert value not in told.replace("codex-pooler", "")
        assert KEY not in told
        assert len(seen.headers["session-id"]) == 64  # a digest


async def test_a_v1_stream_has_no_events_of_the_backend_s_own(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        world.backend.plays.append(Play(has_extra_events=True, has_null_output=True))
        response = await world.ask(post("/v1/responses", streamed(RESPONSES_BODY)))
        kinds = [event["type"] for event in payloads(response)]
        assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
        assert not [kind for kind in kinds if kind.startswith(("codex", "keepalive"))]
        assert "response.metadata" not in kinds
        snapshots = [
            event["response"]["output"] for event in payloads(response) if "response" in event
        ]
        assert snapshots[0] == []
        assert [item["type"] for item in snapshots[-1]] == ["message"]
        numbers = [event["sequence_number"] for event in payloads(response)]
        assert numbers == sorted(numbers)
        assert not [name for name, _ in response.headers if name.startswith("x-codex")]


################################################################
# FAULTS
################################################################

# The play, the answer's status and code with one account, and whether a second one is asked.
FAULTS: Final[dict[str, tuple[Play, int, str | None, bool]]] = {
    "limit": (Play(FIRST, error="usage_limit"), 429, "usage_limit_reached", True),
    "rate": (Play(FIRST, error="rate_limited"), 429, "usage_limit_reached", True),
    "quota": (Play(FIRST, error="insufficient_quota"), 429, "usage_limit_reached", True),
    "no-plan": (Play(FIRST, error="usage_not_included"), 429, "usage_limit_reached", True),
    "overloaded": (Play(FIRST, error="overloaded"), 503, "server_is_overloaded", True),
    "workspace": (Play(FIRST, error="workspace_off"), 503, "no_usable_account", True),
    "gone": (Play(FIRST, error="account_deactivated"), 503, "no_usable_account", True),
    "model": (Play(FIRST, error="model_unsupported"), 400, "model_not_found", True),
    "challenge": (Play(FIRST, error="challenge"), 502, "upstream_blocked", False),
    "context": (Play(FIRST, error="context_length"), 400, "context_length_exceeded", False),
    "504": (Play(FIRST, status=504, body={"detail": "late"}), 504, "upstream_error", False),
    "detail": (Play(FIRST, status=400, body={"detail": "No."}), 400, "upstream_error", False),
    "failed-in-200": (
        Play(FIRST, ends="response.failed", after="handshake"), 503, "server_is_overloaded", True,
    ),
    "error-in-200": (
        Play(FIRST, ends="error", after="handshake", code="usage_limit_reached"),
        429, "usage_limit_reached", True,
    ),
    "cut-before": (
        Play(FIRST, ends="cut", after="handshake"), 502, "upstream_stream_truncated", False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("is_alone", [True, False], ids=["one", "two"])
@pytest.mark.parametrize("form", ["responses", "chat", "chat-stream", "responses-stream"])
@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_before_content(
    autojump_clock: MockClock, tmp_path: Path, name: str, form: str, is_alone: bool
) -> None:
    play, status, code, goes_on = FAULTS[name]
    path, body = FORMS[form]
    pool = {"accounts": ["first"]} if is_alone else {}
    async with opened_codex_world(describe_codex(tmp_path, **pool), tmp_path) as world:
        world.backend.plays.append(play)
        response = await world.ask(post(path, body))
        if goes_on and not is_alone:
            assert (response.status, text_of(response)) == (200, ANSWER)
            assert world.backend.accounts() == [FIRST, SECOND]
            return
        assert world.backend.accounts() == [FIRST]
        assert (response.status, response.error["code"]) == (status, code)
        assert set(response.error) >= {"message", "type", "code", "param"}


@pytest.mark.parametrize("form", ["responses", "chat", "chat-stream", "responses-stream"])
async def test_what_is_the_client_s_own_fault_in_a_200_is_told_to_it(
    autojump_clock: MockClock, tmp_path: Path, form: str
) -> None:
    path, body = FORMS[form]
    play = Play(ends="response.failed", after="handshake", code="context_length_exceeded")
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        world.backend.plays.append(play)
        response = await world.ask(post(path, body))
        assert world.backend.accounts() == [FIRST]
        if form == "responses-stream":
            last = payloads(response)[-1]
            assert last["response"]["error"]["code"] == "context_length_exceeded"
        else:
            assert (response.status, response.error["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize("form", ["responses", "chat", "chat-stream", "responses-stream", "native"])
async def test_a_cut_after_content_is_told_once(
    autojump_clock: MockClock, tmp_path: Path, form: str
) -> None:
    path, body = FORMS[form]
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        world.backend.plays.append(Play(ends="cut"))
        response = await world.ask(post(path, body))
        assert world.backend.accounts() == [FIRST]
        if form in {"responses", "chat"}:
            assert (response.status, response.error["code"]) == (502, "upstream_stream_truncated")
            return
        told = payloads(response)
        if form == "chat-stream":
            assert told[-1]["error"]["code"] == "upstream_stream_truncated"
            assert not [
                one for one in told if "choices" in one and one["choices"][0]["finish_reason"]
            ]
        else:
            assert told[-1]["type"] == "response.failed"
            assert told[-1]["sequence_number"] == told[-2]["sequence_number"] + 1
        assert world.records[-1]["code"] == "upstream_stream_truncated"


@every_form
async def test_silence_ends_when_its_timer_does(
    autojump_clock: MockClock, tmp_path: Path, form: str
) -> None:
    path, body = FORMS[form]
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        world.backend.plays.append(Play(ends="stall"))
        began_at = trio.current_time()
        response = await world.ask(post(path, body))
        assert trio.current_time() - began_at == pytest.approx(300, abs=1)
        if form in {"responses", "chat"}:
            assert (response.status, response.error["code"]) == (504, "upstream_timeout")
            return
        comments = response.body.count(b": keepalive\n\n")
        data = response.body.count(b'data: {"type":"keepalive"}\n\n')
        assert (comments, data) == ((0, 19) if form == "native" else (19, 0))
        assert b"between_events_seconds_max" in response.body


@every_form
async def test_a_client_that_leaves_ends_the_upstream_s_work(
    autojump_clock: MockClock, tmp_path: Path, form: str
) -> None:
    path, body = FORMS[form]
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        world.backend.plays.append(Play(ends="stall"))
        client = await world.connect()
        await client.send(post(path, body))
        await world.settle()
        await client.hang_up()
        with trio.fail_after(1):
            await world.backend.left.wait()
        await world.settle()
        assert world.records[-1]["code"] == "client_gone"


################################################################
# QUOTA
################################################################


async def test_a_limited_account_is_left_until_its_reset(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        world.backend.plays.append(Play(FIRST, error="usage_limit", seconds=7200))
        for _ in range(3):
            assert (await world.ask(post("/v1/responses", RESPONSES_BODY))).status == 200
        assert world.backend.accounts() == [FIRST, SECOND, SECOND, SECOND]
        autojump_clock.jump(7200)
        await world.ask(post("/v1/responses", RESPONSES_BODY | {"input": "Another conversation."}))
        assert world.backend.accounts()[-1] == FIRST


async def test_a_window_that_is_told_to_be_used_up_is_a_rest(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        [first, second] = world.backend.logins.values()
        for login in (dataclasses.replace(first, primary_used=100.0), second):
            world.backend.admit(login)
        for _ in range(2):
            assert (await world.ask(post("/v1/responses", RESPONSES_BODY))).status == 200
        assert world.backend.accounts() == [FIRST, SECOND]


async def test_an_event_tells_of_a_window_as_well_as_a_head_does(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codex_backend, "limit_headers", lambda *_: [])
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        [first, _] = world.backend.logins.values()
        world.backend.admit(dataclasses.replace(first, primary_used=100.0))
        world.backend.plays.append(Play(FIRST, has_extra_events=True))
        for form in ("chat-stream", "native"):
            path, body = FORMS[form]
            assert (await world.ask(post(path, body))).status == 200
        assert world.backend.accounts() == [FIRST, SECOND]


@pytest.mark.parametrize(("asked", "sent"), [("low", "low"), ("minimal", "low"), ("max", "xhigh")])
async def test_an_effort_that_the_model_lacks_becomes_the_nearest(
    autojump_clock: MockClock, tmp_path: Path, asked: str, sent: str
) -> None:
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        body = RESPONSES_BODY | {"reasoning": {"effort": asked}}
        assert (await world.ask(post("/v1/responses", body))).status == 200
        body = CHAT_BODY | {"reasoning_effort": asked}
        assert (await world.ask(post("/v1/chat/completions", body))).status == 200
        assert {seen.body["reasoning"]["effort"] for seen in world.backend.asked()} == {sent}


async def test_an_exhausted_pool_names_the_earliest_reset(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        world.backend.plays += [
            Play(FIRST, error="usage_limit", seconds=7200),
            Play(SECOND, error="usage_limit", seconds=3600),
        ]
        for path, body in (FORMS["native"], FORMS["responses"]):
            response = await world.ask(post(path, body))
            assert (response.status, response.error["type"]) == (429, "usage_limit_reached")
            assert response.error["resets_in_seconds"] == pytest.approx(3600, abs=1)
        usage = await world.ask(request("GET", "/api/codex/usage"))
        assert usage.json()["rate_limit"]["limit_reached"] is True
        assert usage.json()["rate_limit"]["allowed"] is False


async def test_usage_shows_the_key_and_the_best_of_the_pool_without_names(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        await world.ask(post("/v1/responses", RESPONSES_BODY))
        shown = await world.ask(request("GET", "/v1/usage"))
        value = shown.json()
        assert value["request_count"] == 1
        assert value["total_tokens"] > 0
        assert {limit["limit_window"] for limit in value["upstream_limits"]} == {"5h", "7d"}
        for text in (*NAMES, *NAMES.values(), "example.com"):
            assert text not in shown.body.decode()


################################################################
# LOGINS
################################################################


async def test_an_account_without_a_login_is_passed_over_until_its_file_is_there(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        path = tmp_path / "first" / "auth.json"
        os.rename(path, tmp_path / "kept")
        assert (await world.ask(post("/v1/responses", RESPONSES_BODY))).status == 200
        assert world.backend.accounts() == [SECOND]
        os.rename(tmp_path / "second" / "auth.json", tmp_path / "kept-too")
        response = await world.ask(post("/v1/responses", RESPONSES_BODY))
        assert (response.status, response.error["code"]) == (503, "no_usable_account")
        os.rename(tmp_path / "kept", path)
        assert (await world.ask(post("/v1/responses", RESPONSES_BODY))).status == 200
        assert world.backend.accounts() == [SECOND, FIRST]


async def test_a_refused_account_is_asked_again_once_its_login_is_another(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_codex_world(describe_codex(tmp_path, accounts=["first"]), tmp_path) as world:
        world.backend.plays.append(Play(FIRST, error="account_deactivated"))
        assert (await world.ask(post("/v1/responses", RESPONSES_BODY))).status == 503
        assert (await world.ask(post("/v1/responses", RESPONSES_BODY))).status == 503
        assert world.backend.accounts() == [FIRST]
        expires_at = UNIX_START + 2 * 10**6
        path = tmp_path / "first" / "auth.json"
        world.backend.admit(make_auth_file(path, FIRST, expires_at=expires_at))
        assert (await world.ask(post("/v1/responses", RESPONSES_BODY))).status == 200


@pytest.mark.parametrize("form", ["chat", "native"])
@pytest.mark.parametrize("refusals", [1, 2])
async def test_a_refused_token_is_renewed_once_on_the_same_account(
    mock_clock: MockClock, tmp_path: Path, refusals: int, form: str
) -> None:
    path, body = FORMS[form]
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        world.backend.plays.append(Play(FIRST, error="token_invalidated", count=refusals))
        for _ in range(2):
            response = await world.ask(post(path, body))
            assert (response.status, text_of(response)) == (200, ANSWER)
        assert world.backend.accounts() == [
            FIRST,
            FIRST,
            *([FIRST] if refusals == 1 else [SECOND, SECOND]),
        ]
        assert len(world.backend.asked("/oauth/token")) == 1
        tokens = [seen.headers["authorization"] for seen in world.backend.asked()[:2]]
        assert tokens[0] != tokens[1]
        attempts = world.records[0]["attempts"]
        assert attempts[0]["renewed"] is True
        assert len(attempts) == refusals


async def test_a_reload_brings_logins_and_takes_them_away(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    only = {name: describe_codex(tmp_path, accounts=[name]) for name in NAMES.values()}
    for name, one in only.items():
        one["accounts"] = {name: one["accounts"][name]}
    async with opened_codex_world(only["first"], tmp_path) as world:
        world.backend.plays.append(Play(FIRST, ends="stall"))
        client = await world.connect()
        await client.send(post("/v1/responses", streamed(RESPONSES_BODY)))
        await world.settle()
        config = parse_config(json.dumps(only["second"]).encode(), {}, str)
        await world.server.reload(lambda: (config, {}))
        assert (await world.ask(post("/v1/responses", RESPONSES_BODY))).status == 200
        assert world.backend.accounts() == [FIRST, SECOND]
        assert list(world.server.shared.endpoints.logins) == ["second"]
        autojump_clock.jump(400)  # the first one's stream ends by its timer
        assert (await client.read_response()).status == 200


async def test_who_waits_while_its_account_goes_is_served_by_another(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The request waits for a place while a reload takes its account away."""
    whole = describe_codex(tmp_path, accounts=["first"])
    whole["accounts"]["first"]["concurrent"] = 1
    none = describe_codex(tmp_path, accounts=["second"])
    del none["accounts"]["first"]
    async with opened_codex_world(whole, tmp_path) as world:
        world.backend.plays.append(Play(FIRST, ends="stall"))
        busy = await world.connect()
        await busy.send(post("/v1/responses", streamed(RESPONSES_BODY)))
        await world.settle()
        waiting = await world.connect()
        await waiting.send(post("/v1/responses", RESPONSES_BODY))
        await world.settle()
        config = parse_config(json.dumps(none).encode(), {}, str)
        await world.server.reload(lambda: (config, {}))
        await busy.hang_up()
        response = await waiting.read_response()
        assert response.status == 200
        assert world.records[-1]["account"] == "second"


################################################################
# CODEX CLI'S OWN ROUTES
################################################################

EXTRA: Final[Pairs] = [
    ("originator", "codex_exec"), ("User-Agent", "codex_exec/0.169.0"), ("session-id", "thread"),
    ("thread-id", "thread"), ("x-codex-window-id", "thread:0"), ("x-codex-beta-features", "a"),
    ("x-codex-turn-metadata", '{"a": 1}'), ("x-client-request-id", "thread"), ("version", "0.1"),
    ("Cookie", "secret"), ("x-stainless-lang", "js"), ("chatgpt-account-id", "acct-foreign"),
]  # fmt: skip


async def test_on_its_own_routes_only_credentials_change(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    raw = json.dumps(NATIVE_BODY | {"client_metadata": {"x": "y"}}, indent=1).encode()
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        world.backend.plays.append(Play(has_extra_events=True, newline="\r\n"))
        response = await world.ask(post(f"{PREFIX}/responses", raw, headers=EXTRA))
        [seen] = world.backend.asked()
        assert seen.body == json.loads(raw)
        assert seen.headers["content-length"] == str(len(raw))
        for name, value in EXTRA[:9]:
            assert seen.headers[name.lower()] == value
        assert seen.headers["chatgpt-account-id"] == FIRST
        assert not {"cookie", "x-stainless-lang"} & set(seen.headers)
        kinds = [event["type"] for event in payloads(response)]
        assert {"codex.rate_limits", "response.metadata", "keepalive"} <= set(kinds)
        assert response.header("x-codex-turn-state") == f"{TURN_STATE}-{FIRST}"
        assert response.header("openai-model") == MODEL
        assert response.header("x-codex-primary-used-percent") is not None
        assert response.body.count(b"\r\n\r\n") == len(kinds)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd", "br", "gzip, identity"])
async def test_a_compressed_body_is_refused_with_the_clients_switch(
    coding: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    packed = gzip.compress(json.dumps(NATIVE_BODY).encode())
    headers = [("Content-Encoding", coding)]
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        for path in (f"{PREFIX}/responses", "/v1/responses", "/v1/chat/completions"):
            response = await world.ask(post(path, packed, headers=headers))
            assert response.status == 415
            assert response.error["code"] == "unsupported_content_encoding"
            assert "enable_request_compression = false" in response.error["message"]
        assert world.backend.asked() == []


async def test_a_turn_s_state_stays_with_its_account(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    state = [("session-id", "thread"), ("x-codex-turn-state", f"{TURN_STATE}-{FIRST}")]
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        await world.ask(post(f"{PREFIX}/responses", NATIVE_BODY, headers=state[:1]))
        await world.ask(post(f"{PREFIX}/responses", NATIVE_BODY, headers=state))
        assert world.backend.asked()[1].headers["x-codex-turn-state"] == f"{TURN_STATE}-{FIRST}"
        world.backend.plays.append(Play(FIRST, error="usage_limit"))
        await world.ask(post(f"{PREFIX}/responses", NATIVE_BODY, headers=state))
        assert world.backend.accounts()[-1] == SECOND
        assert "x-codex-turn-state" not in world.backend.asked()[-1].headers


@pytest.mark.parametrize(
    ("error", "is_moved"),
    [("usage_limit", True), ("overloaded", False), ("account_deactivated", True)],
)
async def test_a_compaction_moves_only_before_it_has_begun(
    autojump_clock: MockClock, tmp_path: Path, error: str, is_moved: bool
) -> None:
    body = {"model": MODEL, "instructions": "", "input": NATIVE_BODY["input"]}
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        world.backend.plays.append(Play(FIRST, error=error))
        response = await world.ask(post(f"{PREFIX}/responses/compact", body))
        seen = [one.account for one in world.backend.asked(f"{PREFIX}/responses/compact")]
        assert seen == ([FIRST, SECOND] if is_moved else [FIRST])
        assert response.status == (200 if is_moved else 503)
        if is_moved:
            assert response.json()["output"][0]["type"] == "compaction"


@pytest.mark.parametrize("path", [f"{PREFIX}/models", "/v1/models"])
async def test_the_catalogue_is_the_backend_s_as_far_as_the_key_may_use_it(
    autojump_clock: MockClock, tmp_path: Path, path: str
) -> None:
    async with opened_codex_world(describe_codex(tmp_path, models=[MODEL]), tmp_path) as world:
        shown = (await world.ask(request("GET", f"{path}?client_version=0.169.0"))).json()
        assert [entry["slug"] for entry in shown["models"]] == [MODEL]
        assert shown["models"][0]["base_instructions"]
        plain = (await world.ask(request("GET", "/v1/models"))).json()
        assert [entry["id"] for entry in plain["data"]] == [MODEL]
        assert plain["data"][0]["context_length"] == 258_400  # 95 % of 272,000


################################################################
# POOLS OF BOTH KINDS
################################################################


@pytest.mark.parametrize(
    "field",
    [{"background": True}, {"conversation": "c"}, {"prompt": {"id": "p"}},
     {"previous_response_id": "resp_1"}, {"tools": [{"type": "mcp", "server_label": "x"}]}],
    ids=str,
)  # fmt: skip
async def test_what_no_codex_account_can_honour_goes_to_another_or_is_refused(
    autojump_clock: MockClock, tmp_path: Path, field: Json
) -> None:
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        response = await world.ask(post("/v1/responses", RESPONSES_BODY | field))
        assert (response.status, response.error["code"]) == (400, "unsupported_parameter")
        assert response.error["param"] == next(iter(field))
        assert world.backend.accounts() == []
    async with opened_codex_world(describe_codex(tmp_path, others=PLATFORM), tmp_path) as world:
        world.upstreams["platform"].plays(json_response({"id": "resp_2", "output": []}))
        assert (await world.ask(post("/v1/responses", RESPONSES_BODY | field))).status == 200
        assert [asked.json() for asked in world.asked] == [RESPONSES_BODY | field]
        assert world.backend.accounts() == []


async def test_a_session_that_moves_to_an_api_key_leaves_its_reasoning_behind(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    items = [
        {"role": "user", "content": "a"},
        {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"},
        {"role": "user", "content": "b"},
    ]
    pool = {"accounts": ["first", "platform"]}
    headers = [("session-id", "s")]
    async with opened_codex_world(
        describe_codex(tmp_path, others=PLATFORM, **pool), tmp_path
    ) as world:
        await world.ask(post("/v1/responses", RESPONSES_BODY, headers=headers))
        world.backend.plays.append(Play(FIRST, error="usage_limit"))
        world.upstreams["platform"].plays(json_response({"id": "resp_2", "output": []}))
        world.backend.sealed.add("gAAAA")
        await world.ask(post("/v1/responses", RESPONSES_BODY | {"input": items}, headers=headers))
        assert [seen.body["input"][1]["type"] for seen in world.backend.asked()[1:]] == [
            "reasoning"
        ]
        assert world.asked[0].json()["input"] == [items[0], items[2]]


@pytest.mark.parametrize("error", ["encrypted_a", "encrypted_b"])
async def test_reasoning_that_cannot_be_read_is_left_out_once_on_the_same_account(
    autojump_clock: MockClock, tmp_path: Path, error: str
) -> None:
    items = [
        {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"},
        *NATIVE_BODY["input"],
    ]
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        for path, body in (FORMS["responses"], FORMS["native"]):
            world.backend.plays = [Play(error=error, count=0)]
            assert (await world.ask(post(path, body | {"input": items}))).status == 200
        kinds = [[item["type"] for item in seen.body["input"]] for seen in world.backend.asked()]
        assert kinds == [["reasoning", "message"], ["message"]] * 2
        assert set(world.backend.accounts()) == {FIRST}


async def test_native_routes_never_reach_an_api_key(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_codex_world(describe_codex(tmp_path, others=PLATFORM), tmp_path) as world:
        world.backend.plays += [Play(FIRST, error="usage_limit"), Play(SECOND, error="usage_limit")]
        response = await world.ask(post(f"{PREFIX}/responses", NATIVE_BODY))
        assert response.status == 429
        assert world.asked == []
    async with opened_codex_world(
        describe_codex(tmp_path, others=PLATFORM, accounts=["platform"]), tmp_path
    ) as world:
        for method, path in (
            ("POST", "responses"),
            ("POST", "responses/compact"),
            ("GET", "models"),
        ):
            raw = (
                post(f"{PREFIX}/{path}", NATIVE_BODY)
                if method == "POST"
                else request(method, f"{PREFIX}/{path}")
            )
            answer = await world.ask(raw)
            assert (answer.status, answer.error["code"]) == (404, "unsupported_endpoint")
