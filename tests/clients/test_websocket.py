"""Proves that real clients work on a Responses WebSocket through the pooler.

Method: Codex CLI against two ChatGPT accounts, openai-python against them and against aimock's
own Responses WebSocket; the real pooler between.  What Codex CLI does straight on a WebSocket is
proved in test_codex_cli.py.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Final

import openai
import pytest

from tests.clients.aimock import MODEL, TITLE_MODEL, Providers, calls, says
from tests.clients.codex import (
    LIMIT_SHOWN,
    SOCKET_PROOFS,
    Backend,
    CodexCli,
    CodexPool,
    limited,
    shell,
    types,
)
from tests.clients.opencode import TUNED, OpenCode, documented
from tests.support.codex_backend import Play
from tests.support.processes import ANSWER, POOL_KEY, PROMPT, SECONDS_MAX, Pooler

FIRST, SECOND = "acct-first", "acct-second"
each_door: Final = pytest.mark.parametrize("door", ["native", "v1"])


@pytest.fixture
def codex(door: str, codex_pool: CodexPool, tmp_path: Path) -> CodexCli:
    made = CodexCli(tmp_path, codex_pool.door(door))
    made.uses_websockets = True
    made.stream_retries = 5  # its default
    return made


################################################################
# CODEX CLI
################################################################


@each_door
@pytest.mark.parametrize("proof", SOCKET_PROOFS)
def test_codex_works_on_a_websocket(proof: str, codex: CodexCli, backend: Backend) -> None:
    SOCKET_PROOFS[proof](codex, backend)
    if proof != "limit":
        assert {seen.account for seen in backend.frames()} == {FIRST}
    assert backend.ask("GET", "/_seen")["open_sockets"] == 0


@each_door
def test_codex_does_not_see_that_a_limit_is_reached(codex: CodexCli, backend: Backend) -> None:
    backend.will(Play(FIRST, at="warm_up", error="usage_limit"))
    turn = codex.run()
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert [seen.account for seen in backend.frames()] == [FIRST, SECOND, SECOND]


@each_door
def test_codex_does_not_see_it_in_the_middle_of_a_tool_loop(
    codex: CodexCli, backend: Backend
) -> None:
    """The turn is bound to the account, so it is asked for in full, and that goes elsewhere."""
    backend.will(shell("echo peel, cut, boil"), limited(FIRST))
    turn = codex.run()
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert "error" not in [item["type"] for item in turn.items]
    frames = backend.frames()
    assert [seen.account for seen in frames] == [FIRST, FIRST, FIRST, SECOND]
    assert frames[2].body["previous_response_id"]
    moved = frames[3]
    assert "previous_response_id" not in moved.body
    assert types(moved)[-3:] == ["reasoning", "function_call", "function_call_output"]


@each_door
def test_codex_is_told_when_all_accounts_are_used_up(codex: CodexCli, backend: Backend) -> None:
    backend.will(shell("true"), limited(FIRST, seconds=7200), limited(SECOND, seconds=3600))
    turn = codex.run()
    assert turn.code == 1
    assert LIMIT_SHOWN in turn.errors[-1]


@each_door
def test_codex_goes_to_http_at_once_where_no_account_takes_websockets(
    door: str, codex_pool: CodexPool, backend: Backend, tmp_path: Path
) -> None:
    codex_pool.start_with({"websocket": False})
    codex = CodexCli(tmp_path, codex_pool.door(door))
    codex.uses_websockets = True
    backend.will(shell("true"))
    turn = codex.run()
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert "error" not in [item["type"] for item in turn.items]  # not even a warning
    assert [seen.method for seen in backend.asked()] == ["POST", "POST"]


@each_door
def test_codex_goes_to_http_where_the_upstream_refuses_the_upgrade(
    codex: CodexCli, backend: Backend
) -> None:
    backend.will(Play(at="upgrade", status=426, body={"detail": "Not here."}, count=0))
    turn = codex.run()
    assert (turn.code, turn.text) == (0, ANSWER)
    assert backend.asked()[-1].method == "POST"


LOST: Final = {
    "a limit of age": Play(ends="limit", after="nothing"),
    "a close": Play(ends="close", after="nothing"),
    "a close in the middle": Play(ends="close"),
    "a cut": Play(ends="cut"),
    "a close between turns": shell("true", close_code=1001),
}


@each_door
@pytest.mark.parametrize("case", LOST)
def test_codex_goes_on_after_the_upstream_has_closed(
    case: str, codex: CodexCli, backend: Backend
) -> None:
    backend.will(shell("echo peel"), LOST[case])
    turn = codex.run()
    assert (turn.code, turn.errors) == (0, [])
    assert turn.text.endswith(ANSWER)
    last = backend.frames()[-1]
    assert "previous_response_id" not in last.body
    assert types(last)[-1] == "function_call_output"


def test_an_account_whose_token_is_refused_at_the_upgrade_gets_another(
    codex_pool: CodexPool, backend: Backend, tmp_path: Path
) -> None:
    codex = CodexCli(tmp_path, codex_pool.door("native"))
    codex.uses_websockets = True
    backend.will(Play(FIRST, at="upgrade", error="token_expired"))
    turn = codex.run()
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert {seen.account for seen in backend.frames()} == {FIRST}
    assert len(backend.asked("/oauth/token")) == 1


################################################################
# OPENCODE
################################################################


@pytest.mark.parametrize("is_limited", [False, True], ids=["one-account", "failover"])
def test_opencode_runs_a_tool_loop_on_its_experimental_websocket(
    is_limited: bool, codex_pool: CodexPool, backend: Backend, tmp_path: Path
) -> None:
    pooler = codex_pool.start()
    opencode = OpenCode(tmp_path)
    opencode.switches["OPENCODE_EXPERIMENTAL_WEBSOCKETS"] = "1"
    kept = opencode.home / "DATA" / "opencode" / "auth.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps({"openai": {"type": "api", "key": POOL_KEY}}))
    recipe = opencode.project / "recipe.txt"
    recipe.write_text("Peel, cut, boil.\n")
    backend.will(Play(tool="read", arguments={"filePath": str(recipe)}, with_tools=True))
    if is_limited:
        backend.will(limited(FIRST, with_tools=True))
    turn = opencode.run(config=documented(TUNED, pooler))
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    frames = [seen for seen in backend.frames() if seen.body.get("tools")]
    assert [seen.account for seen in frames] == [FIRST, FIRST, SECOND][: 2 + is_limited]
    assert "Peel, cut, boil." in json.dumps(frames[-1].body["input"][-1]["output"])


################################################################
# OPENAI-PYTHON
################################################################


def asked(**more: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"model": MODEL, "input": PROMPT} | more


def client_of(pooler: Pooler) -> openai.OpenAI:
    return openai.OpenAI(base_url=pooler.base_url, api_key=POOL_KEY, timeout=SECONDS_MAX)


def read_turn(connection: Any) -> list[Any]:  # noqa: ANN401
    """The events of a turn, each of a class of the SDK's."""
    events: list[Any] = []
    for event in connection:
        events.append(event)
        if event.type in {"response.completed", "response.failed", "error"}:
            break
    return events


def text_of(events: list[Any]) -> str:
    assert events[-1].type == "response.completed", events[-1]
    return str(events[-1].response.output_text)


def test_openai_python_connects_to_chatgpt_accounts(
    codex_pool: CodexPool, backend: Backend
) -> None:
    with client_of(codex_pool.start()) as client, client.responses.connect() as connection:
        connection.response.create(**asked())
        first = read_turn(connection)
        assert text_of(first) == ANSWER
        again = asked(previous_response_id=first[-1].response.id)
        connection.response.create(**again)
        assert text_of(read_turn(connection)) == ANSWER
    frames = backend.frames()
    assert frames[0].connection == frames[1].connection
    assert (frames[0].body["store"], frames[0].body["instructions"]) == (False, "")
    assert frames[1].body["previous_response_id"] == first[-1].response.id


def test_openai_python_is_told_an_error_and_goes_on(
    codex_pool: CodexPool, backend: Backend
) -> None:
    with client_of(codex_pool.start()) as client, client.responses.connect() as connection:
        connection.response.create(**asked(model="nobody"))
        (event,) = read_turn(connection)
        assert event.type == "error"
        connection.response.create(**asked(stream_id="mine"))
        events = read_turn(connection)
        assert text_of(events) == ANSWER
        assert {event.to_dict()["stream_id"] for event in events} == {"mine"}


@pytest.fixture
def sockets(providers: Providers) -> Pooler:
    return providers.start(accounts={"websocket": True, "models": [MODEL, TITLE_MODEL]})


def test_openai_python_connects_to_an_upstream_that_nobody_here_wrote(
    sockets: Pooler, providers: Providers
) -> None:
    providers.first.will(says())
    with client_of(sockets) as client, client.responses.connect() as connection:
        for _ in range(3):
            connection.response.create(**asked())
            events = read_turn(connection)
            assert "".join(e.delta for e in events if e.type.endswith("text.delta")) == ANSWER
    upgrades = [one for one in providers.first.tap.asked if "upgrade" in one.headers]
    assert [one.path for one in upgrades] == ["/v1/responses"]  # one for all turns


def test_a_tool_loop_on_a_websocket(sockets: Pooler, providers: Providers) -> None:
    providers.first.will(calls("get_weather", {"city": "Marmalade"}), says())
    tool = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}}
    with client_of(sockets) as client, client.responses.connect() as connection:
        connection.response.create(**asked(tools=[tool]))
        (call,) = [e.item for e in read_turn(connection) if e.type == "response.output_item.done"]
        assert json.loads(call.arguments) == {"city": "Marmalade"}
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
        given = [{"role": "user", "content": PROMPT}, call.to_dict(), output]
        connection.response.create(**asked(input=given, tools=[tool]))
        assert read_turn(connection)[-1].type == "response.completed"


def test_the_asynchronous_client_connects_too(sockets: Pooler, providers: Providers) -> None:
    providers.first.will(says())

    async def main() -> list[str]:
        client = openai.AsyncOpenAI(
            base_url=sockets.base_url, api_key=POOL_KEY, timeout=SECONDS_MAX
        )
        found: list[str] = []
        async with client, client.responses.connect() as connection:
            await connection.response.create(**asked())
            async for event in connection:
                found.append(event.type)
                if event.type == "response.completed":
                    break
        return found

    assert asyncio.run(main())[-1] == "response.completed"


def test_a_wrong_key_is_refused_before_the_upgrade(sockets: Pooler, providers: Providers) -> None:
    client = openai.OpenAI(base_url=sockets.base_url, api_key="cp-wrong-0123456789abcdef")
    with pytest.raises(Exception, match="401"), client, client.responses.connect():
        pass
    assert not [one for one in providers.first.tap.asked if "upgrade" in one.headers]
