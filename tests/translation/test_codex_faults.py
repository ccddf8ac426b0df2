"""Proves that no bytes of a ChatGPT backend break what the pooler owes a client.

Method: a codex account whose upstream is a script: a stream cut at every byte, answers that are
not what they should be, ends that come twice or never.  Every world is left quiet and without a
bug in its log.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from pooler import CATALOGUE_PAUSE_SECONDS
from tests.support.codex_backend import Play, TokenPlay, make_auth_file
from tests.support.codex_world import (
    COMPLETED,
    CREATED,
    DELTA,
    DONE,
    FIRST,
    FORMS,
    ITEM,
    NATIVE_BODY,
    PREFIX,
    RESPONSE,
    RESPONSES_BODY,
    SECOND,
    WHOLE,
    ask_scripted,
    check_end,
    describe_codex,
    every_form,
    opened_codex_world,
    opened_scripted_world,
    sse_script,
    stream_of,
)
from tests.support.memory_sockets import Json, Response, post, request
from tests.support.world import (
    LAST_CHUNK,
    UNIX_START,
    Script,
    Send,
    Stall,
    chunk,
    json_response,
    response_head,
    sse_head,
)


@pytest.mark.slow
@every_form
async def test_a_stream_that_is_cut_anywhere_has_one_end(
    autojump_clock: MockClock, tmp_path: Path, form: str
) -> None:
    raw = stream_of(WHOLE)
    last = len(stream_of(WHOLE[:-1]))
    async with opened_scripted_world(tmp_path) as world:
        for at in range(0, len(raw), 3):
            response = await ask_scripted(world, form, sse_script(raw[:at], is_whole=False))
            assert not check_end(form, response), at
        assert check_end(form, await ask_scripted(world, form, sse_script(raw)))
        assert last < len(raw)


ENDINGS: Final[dict[str, tuple[Sequence[Json], bool]]] = {
    "whole": (WHOLE, True),
    "legacy": ((*WHOLE[:-1], COMPLETED | {"type": "response.done"}), True),
    "done-after": ((*WHOLE, b"[DONE]"), True),
    "done-before": ((*WHOLE[:-1], b"[DONE]"), False),
    "no-terminal": (WHOLE[:-1], False),
    "nothing": ((), False),
    "comments": ((CREATED, {"type": "keepalive"}), False),
    "not-json": ((CREATED, b"{", DELTA), False),
    "lists": ((CREATED, [1], DELTA), False),
}


@every_form
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("name", [name for name in ENDINGS if name != "legacy"])
async def test_only_a_terminal_event_is_an_end(
    autojump_clock: MockClock, tmp_path: Path, name: str, form: str, newline: bytes
) -> None:
    if newline == b"\r" and form in {"native", "responses-stream"}:
        newline = b"\r\n"  # this client of ours reads no lone CR; the scanner's tests do
    events, is_well = ENDINGS[name]
    async with opened_scripted_world(tmp_path) as world:
        response = await ask_scripted(world, form, sse_script(stream_of(events, newline)))
        if name == "done-after" and form in {"native", "responses-stream"}:
            assert b"[DONE]" in response.body
            return
        if name == "done-before" and form == "native":
            return  # as it came: the client knows its own upstream
        assert check_end(form, response) == is_well


@every_form
async def test_nothing_follows_the_first_end(
    autojump_clock: MockClock, tmp_path: Path, form: str
) -> None:
    failed = {"type": "response.failed", "response": RESPONSE | {"error": {"code": "server_error"}}}
    async with opened_scripted_world(tmp_path) as world:
        response = await ask_scripted(
            world, form, sse_script(stream_of((*WHOLE, DELTA, failed, COMPLETED)))
        )
        assert response.status == 200
        if form == "chat-stream":
            assert check_end(form, response)
            assert response.body.count(b"Hi.") == 1
        if form == "chat":
            assert response.json()["choices"][0]["finish_reason"] == "tool_calls"
        if form == "responses":
            assert [item["type"] for item in response.json()["output"]] == [
                "message", "function_call",
            ]  # fmt: skip


ODD: Final[dict[str, tuple[Script, int, str]]] = {
    "gzip": (
        [Send(sse_head(headers=[("content-encoding", "gzip")]) + chunk(b"\x1f\x8b") + LAST_CHUNK)],
        502, "upstream_invalid_response",
    ),
    "redirect": (
        [Send(response_head(302, [("location", "http://evil/"), ("content-length", "0")]))],
        502, "upstream_invalid_response",
    ),
    "html": (
        json_response(b"<html>", 500, [("x-codex-primary-used-percent", "nan")]),
        500, "upstream_error",
    ),
    "deep-error": (json_response(b"[" * 100_000, 400), 400, "upstream_error"),
    "error-is-text": (json_response({"error": "no"}, 400), 400, "upstream_error"),
    "detail-is-list": (json_response({"detail": [{"msg": "x"}]}, 422), 422, "upstream_error"),
}  # fmt: skip


@pytest.mark.parametrize("form", ["responses", "responses-stream", "chat", "chat-stream"])
@pytest.mark.parametrize("name", ODD)
async def test_an_odd_answer_is_told_in_the_client_s_own_form(
    autojump_clock: MockClock, tmp_path: Path, name: str, form: str
) -> None:
    script, status, code = ODD[name]
    async with opened_scripted_world(tmp_path) as world:
        response = await ask_scripted(world, form, script)
        assert (response.status, response.error["code"]) == (status, code)
        assert set(response.error) == {"message", "type", "code", "param"}


@pytest.mark.parametrize("form", ["responses", "chat", "chat-stream", "responses-stream"])
async def test_what_is_kept_of_an_answer_is_bounded(
    autojump_clock: MockClock, tmp_path: Path, form: str
) -> None:
    big = DONE | {"item": ITEM | {"content": [{"type": "output_text", "text": "x" * 3000}]}}
    async with opened_scripted_world(tmp_path, unary_bytes_max=10_000) as world:
        fits = [CREATED, *[big | {"output_index": at} for at in range(3)], COMPLETED]
        assert check_end(form, await ask_scripted(world, form, sse_script(stream_of(fits))))
        over = [CREATED, *[big | {"output_index": at} for at in range(4)], COMPLETED]
        response = await ask_scripted(world, form, sse_script(stream_of(over)))
        assert not check_end(form, response)
        assert world.records[-1]["code"] == "upstream_invalid_response"


async def test_a_compact_answer_must_be_json(autojump_clock: MockClock, tmp_path: Path) -> None:
    body = {"model": "gpt-5.5", "instructions": "", "input": []}
    async with opened_scripted_world(tmp_path) as world:
        for content, status in ((b"{", 502), (b'{"output": []}', 200)):
            world.upstreams["a"].plays(json_response(content))
            response = await world.ask(post(f"{PREFIX}/responses/compact", body))
            assert response.status == status


HOSTILE_HEADERS: Final = [
    ("x-codex-primary-used-percent", "1e999"),
    ("x-codex-primary-window-minutes", "9" * 400),
    ("x-codex-secondary-used-percent", "-5"),
    ("x-codex-secondary-reset-at", "99999999999999999999"),
    ("x-codex-caf\xe9-primary-used-percent", "100"),
    *[(f"x-codex-{at}-primary-used-percent", "100") for at in range(60)],
]


async def test_hostile_quota_headers_rest_nobody(autojump_clock: MockClock, tmp_path: Path) -> None:
    event = {
        "type": "codex.rate_limits",
        "rate_limits": {"primary": {"used_percent": 1e308, "window_minutes": [], "reset_at": "x"}},
    }
    events = [CREATED, event, event | {"rate_limits": [1]}, *WHOLE[1:]]
    headers = [pair for pair in HOSTILE_HEADERS if pair[0].isascii()]
    script = [Send(sse_head(headers=headers) + chunk(stream_of(events)) + LAST_CHUNK)]
    async with opened_scripted_world(tmp_path) as world:
        for _ in range(2):
            assert check_end("chat", await ask_scripted(world, "chat", script))
        assert len(world.server.shared.roster.health["a"].quota.windows) <= 16


@every_form
async def test_a_drain_ends_every_answer_that_does_not_end(
    autojump_clock: MockClock, tmp_path: Path, form: str
) -> None:
    async with opened_scripted_world(tmp_path) as world:
        world.upstreams["a"].plays([Send(sse_head() + chunk(stream_of((CREATED, DELTA)))), Stall()])
        client = await world.connect()
        path, body = FORMS[form]
        await client.send(post(path, body))
        await world.settle()
        world.server.stop()
        response = await client.read_response()
        assert trio.current_time() == pytest.approx(30, abs=1)
        if form in {"responses", "chat"}:
            assert (response.status, response.error["code"]) == (503, "server_stopping")
        else:
            assert not check_end(form, response)
            assert b"server_stopping" in response.body


async def test_a_reload_keeps_what_is_known_of_a_login(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Renewed tokens that are not on the disk yet are nowhere else."""
    async with opened_scripted_world(tmp_path) as world:
        before = world.server.shared.endpoints.logins["a"]
        await world.server.reload(lambda: (world.config, {}))
        assert world.server.shared.endpoints.logins["a"] is before
        assert world.server.shared.endpoints.logins["a"].tls is None


async def test_the_log_says_once_when_a_login_is_lost_and_when_it_is_back(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    described_one = describe_codex(tmp_path, accounts=["first"])
    async with opened_codex_world(described_one, tmp_path) as world:

        def told() -> list[tuple[str, str]]:
            lines = [(level, fields) for level, event, fields in world.logged if event == "login"]
            return [(level, str(fields["problem"])) for level, fields in lines]

        path = tmp_path / "first" / "auth.json"
        os.rename(path, tmp_path / "kept")
        for _ in range(2):
            assert (await world.ask(post("/v1/responses", RESPONSES_BODY))).status == 503
        [(level, problem)] = told()
        assert (level, f"{path} does not exist; log in with" in problem) == ("warning", True)
        os.rename(tmp_path / "kept", path)
        for _ in range(2):
            assert (await world.ask(post("/v1/responses", RESPONSES_BODY))).status == 200
        assert told()[1:] == [("info", "None")]
        path.write_text("{")
        await world.server.reload(lambda: (world.server.shared.config, {}))
        assert [problem.partition(";")[0] for _, problem in told()[2:]] == [
            f"{path} is empty or not valid JSON"
        ]


@pytest.mark.parametrize("form", ["chat", "native"])
async def test_a_login_that_cannot_be_renewed_takes_only_its_account_out(
    mock_clock: MockClock, tmp_path: Path, form: str
) -> None:
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        made = make_auth_file(tmp_path / "first" / "auth.json", FIRST, expires_at=UNIX_START)
        world.backend.admit(made)
        world.backend.token_plays.append(TokenPlay(400, "refresh_token_invalidated"))
        path, body = FORMS[form]
        for _ in range(2):
            response = await world.ask(post(path, body))
            assert (response.status, response.header("x-request-id") is None) == (200, False)
        assert world.backend.accounts() == [SECOND, SECOND]
        assert [len(record["attempts"]) for record in world.records] == [2, 1]
        assert world.records[0]["attempts"][0]["reason"] == "login needed"


@every_form
async def test_a_stream_without_a_content_type_is_one_all_the_same(
    autojump_clock: MockClock, tmp_path: Path, form: str
) -> None:
    bare = response_head(200, [("transfer-encoding", "chunked")])
    async with opened_scripted_world(tmp_path) as world:
        script = [Send(bare + chunk(stream_of(WHOLE)) + LAST_CHUNK)]
        response = await ask_scripted(world, form, script)
        assert check_end(form, response)
        kind = "json" if form in {"responses", "chat"} else "event-stream"
        assert kind in (response.header("content-type") or "")


CANARY: Final = "canary-prompt-0123456789"
FAILURES: Final = (
    Play(),
    Play(FIRST, error="usage_limit"),
    Play(FIRST, error="token_invalidated"),
    Play(FIRST, error="account_deactivated"),
    Play(error="model_unsupported", count=2),
    Play(error="challenge"),
    Play(ends="cut"),
    Play(ends="response.failed", after="handshake", code="context_length_exceeded"),
)


@every_form
async def test_no_login_and_no_prompt_is_told_to_anybody_else(
    mock_clock: MockClock, tmp_path: Path, form: str
) -> None:
    path, body = FORMS[form]
    name = "messages" if "messages" in body else "input"
    said = body | {name: [{"role": "user", "content": CANARY}], "prompt_cache_key": CANARY}
    if form == "native":
        part = {"type": "input_text", "text": CANARY}
        said |= {"input": [{"type": "message", "role": "user", "content": [part]}]}
    for play in FAILURES:
        async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
            logins = list(world.backend.logins.values())
            world.backend.plays.append(play)
            response = await world.ask(post(path, said))
            logins += world.backend.logins.values()
            told = json.dumps([world.logged, response.headers]) + response.body.decode()
            for login in logins:
                for secret in (login.access_token, login.refresh_token, login.account_id):
                    if secret.startswith("acct") and form == "native":
                        continue  # the backend of the tests puts it into its own headers
                    assert secret not in told
            assert CANARY not in told
            for seen in world.backend.asked():
                others = [one for one in logins if one.account_id != seen.account]
                sent_text = json.dumps([seen.headers, seen.body])
                assert not [one for one in others if one.access_token in sent_text]


################################################################
# MODEL LISTS
################################################################

LISTED: Final = json_response({"models": [{"slug": "gpt-5.5", "context_window": 100}]})


def shown_models(response: Response) -> dict[str, Json]:
    return {entry["id"]: entry.get("context_length") for entry in response.json()["data"]}


async def test_a_model_list_that_could_not_be_had_is_asked_for_again(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_scripted_world(tmp_path, models=None) as world:
        upstream = world.upstreams["a"]
        assert shown_models(await world.ask(request("GET", "/v1/models"))) == {}
        upstream.catalogue = LISTED
        autojump_clock.jump(CATALOGUE_PAUSE_SECONDS - 1)
        assert shown_models(await world.ask(request("GET", "/v1/models"))) == {}
        autojump_clock.jump(2)
        await world.ask(request("GET", "/v1/models"))
        assert shown_models(await world.ask(request("GET", "/v1/models"))) == {"gpt-5.5": 95}
        autojump_clock.jump(3500)
        await world.ask(request("GET", "/v1/models"))
        assert len(upstream.catalogue_asked) == 2


async def test_a_new_login_brings_its_models(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with opened_scripted_world(tmp_path, models=None) as world:
        world.upstreams["a"].catalogue = LISTED
        path = tmp_path / "auth.json"
        make_auth_file(path, "acct-2", expires_at=UNIX_START + 2 * 10**6)
        await world.ask(request("GET", "/v1/models"))
        assert shown_models(await world.ask(request("GET", "/v1/models"))) == {"gpt-5.5": 95}


async def test_an_alias_changes_the_model_of_a_native_body_and_no_more(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    body = NATIVE_BODY | {"model": "small", "extra": {"model": "small"}}
    async with opened_scripted_world(tmp_path, pool={"aliases": {"small": "gpt-5.5"}}) as world:
        world.upstreams["a"].plays(sse_script(stream_of(WHOLE)))
        response = await world.ask(post(f"{PREFIX}/responses", body))
        assert response.status == 200
        [asked] = world.asked
        assert asked.json() == body | {"model": "gpt-5.5"}
