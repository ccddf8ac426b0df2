"""Proves that OpenCode works with the configuration that users are told to paste.

Method: the real program, headless, in an empty home, with its catalogue and updates off.  The
configuration is the one in README.md, read from there, with only the address changed.  The titles
of sessions are asked for beside the turn, so a test names which requests it means.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any, Final

import pytest

from tests.clients.aimock import MODEL, TITLE_MODEL, Asked, Providers, Upstream, calls, fails, says
from tests.clients.opencode import PAGE, TITLE, TUNED, TURN_SECONDS_MAX, OpenCode, documented, turns
from tests.support.processes import ANSWER, OTHER_POOL_KEY, Pooler

# What the pooler says, and what OpenCode therefore shows.
NO_KEY: Final = "A valid pool key is required as Authorization: Bearer."
NO_MODEL: Final = "This key has no such model. It may use gpt-other (GET /v1/models)."


################################################################
# THE PROGRAM
################################################################


@pytest.fixture
def opencode(tmp_path: Path) -> OpenCode:
    return OpenCode(tmp_path)


def titles(*models: str) -> list[dict[str, Any]]:
    """Fixtures for the titles, which are asked for with another model, or without tools."""
    return [says(TITLE, model=model, systemMessage="title generator") for model in models]


def title_requests(upstream: Upstream) -> list[Asked]:
    return [asked for asked in upstream.asked if not asked.body.get("tools")]


@pytest.fixture
def both(providers: Providers) -> Providers:
    """Both upstreams give titles; what else they say is the test's."""
    for _, upstream in providers.upstreams():
        upstream.will(*titles(MODEL, TITLE_MODEL))
    return providers


################################################################
# TURNS
################################################################


def test_a_text_turn(opencode: OpenCode, pooler: Pooler, both: Providers) -> None:
    both.first.will(says())
    turn = opencode.run(config=documented(PAGE, pooler))
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    (asked,) = turns(both.first)
    assert asked.path == "/v1/responses"
    assert (asked.body["model"], asked.body["stream"], asked.body["store"]) == (MODEL, True, False)
    assert asked.body["include"] == ["reasoning.encrypted_content"]
    assert asked.body["prompt_cache_key"] == turn.session
    # Why the README has a second configuration: these come from there, not from the provider.
    assert (asked.body["reasoning"]["effort"], asked.body["text"]["verbosity"]) == ("medium", "low")
    assert both.second.asked == []


def test_a_tool_loop_and_the_session_goes_on(
    opencode: OpenCode, pooler: Pooler, both: Providers
) -> None:
    recipe = opencode.project / "recipe.txt"
    recipe.write_text("Peel, cut, boil.\n")
    call = calls("read", {"filePath": str(recipe)})
    call["response"]["reasoning"] = "The file will tell."
    both.first.will(call, says(hasToolResult=True))
    config = documented(PAGE, pooler)
    turn = opencode.run(config=config)
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert [(tool["tool"], tool["state"]["status"]) for tool in turn.tools] == [
        ("read", "completed")
    ]
    first, second = turns(both.first)
    assert "Peel, cut, boil." not in first.text
    outputs = [item for item in second.body["input"] if item.get("type") == "function_call_output"]
    assert "Peel, cut, boil." in json.dumps(outputs)
    thoughts = [item for item in second.body["input"] if item.get("type") == "reasoning"]
    assert [bool(thought["encrypted_content"]) for thought in thoughts] == [True]

    again = opencode.run("--continue", config=config)
    assert (again.code, again.session) == (0, turn.session)
    history = turns(both.first)[2].body["input"]
    assert len([item for item in history if item.get("role") == "user"]) == 2
    assert both.second.asked == []


def test_the_chat_route_of_another_provider_package(
    opencode: OpenCode, pooler: Pooler, both: Providers
) -> None:
    both.first.will(says())
    config = documented(TUNED, pooler)
    config["provider"]["openai"]["npm"] = "@ai-sdk/openai-compatible"
    turn = opencode.run(config=config)
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert [asked.path for asked in turns(both.first)] == ["/v1/chat/completions"]


################################################################
# FAILOVER
################################################################


@pytest.mark.parametrize(
    "fault",
    [fails(429, "usage_limit_reached", after=3600), fails(503, "server_is_overloaded")],
    ids=["limited", "overloaded"],
)
def test_failover_is_not_seen(
    fault: dict[str, Any], opencode: OpenCode, pooler: Pooler, both: Providers
) -> None:
    both.first.will(fault)
    both.second.will(says())
    turn = opencode.run(config=documented(PAGE, pooler))
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert len(turns(both.first)) == len(turns(both.second)) == 1
    assert turns(both.first)[0].body == turns(both.second)[0].body
    served = [line for line in pooler.stop_and_read() if line["model"] == MODEL]
    assert [line["status"] for line in served] == [200]  # OpenCode asked once


def test_a_session_moves_in_the_middle_of_a_tool_loop(
    opencode: OpenCode, pooler: Pooler, both: Providers
) -> None:
    recipe = opencode.project / "recipe.txt"
    recipe.write_text("Peel, cut, boil.\n")
    limited = fails(429, "usage_limit_reached", after=3600, hasToolResult=True)
    both.first.will(calls("read", {"filePath": str(recipe)}), limited)
    both.second.will(says(hasToolResult=True))
    turn = opencode.run(config=documented(PAGE, pooler))
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert [len(turns(upstream)) for _, upstream in both.upstreams()] == [2, 1]


def test_a_session_stays_on_its_account(opencode: OpenCode, both: Providers) -> None:
    recipe = opencode.project / "recipe.txt"
    recipe.write_text("Peel, cut, boil.\n")
    for _, upstream in both.upstreams():
        upstream.will(calls("read", {"filePath": str(recipe)}), says(hasToolResult=True))
    pooler = both.start(pool={"routing": "sticky", "aliases": {TITLE_MODEL: MODEL}})
    for arguments in ([], ["--continue"]):
        turn = opencode.run(*arguments, config=documented(PAGE, pooler))
        assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    counts = sorted(len(upstream.asked) for _, upstream in both.upstreams())
    assert counts == [0, 5]  # two tool loops, and the title


@pytest.mark.parametrize("package", ["@ai-sdk/openai", "@ai-sdk/openai-compatible"])
def test_opencode_asks_again_where_a_stream_is_cut(
    package: str, opencode: OpenCode, pooler: Pooler, both: Providers
) -> None:
    cut = {**says(sequenceIndex=0), "latency": 20, "truncateAfterChunks": 6}
    both.first.will(cut, says())
    config = documented(TUNED, pooler)
    config["provider"]["openai"]["npm"] = package
    turn = opencode.run(config=config)
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert len(turns(both.first)) == 2
    assert turns(both.second) == []


def test_opencode_waits_for_a_pool_that_is_back_soon(
    opencode: OpenCode, pooler: Pooler, both: Providers
) -> None:
    for _, upstream in both.upstreams():
        upstream.will(fails(429, "usage_limit_reached", sequenceIndex=0), says())
    turn = opencode.run(config=documented(PAGE, pooler))
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert [len(turns(upstream)) for _, upstream in both.upstreams()] == [2, 1]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_turn_that_is_left_is_left_upstream_too(
    end: signal.Signals, opencode: OpenCode, pooler: Pooler, both: Providers
) -> None:
    both.first.will({**says(ANSWER * 100), "latency": 50})
    turn = opencode.start(config=documented(PAGE, pooler))
    turn.wait_line('"type":"(step_start)"')
    assert both.first.tap.hangups.empty()
    turn.process.send_signal(end)
    both.first.tap.hangups.get(timeout=5)
    turn.end()


################################################################
# OPTIONS AND MODELS
################################################################


def test_options_of_the_model_take_effect(
    opencode: OpenCode, pooler: Pooler, both: Providers
) -> None:
    both.first.will(says())
    turn = opencode.run(config=documented(TUNED, pooler))
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    (asked,) = turns(both.first)
    assert asked.body["reasoning"] == {"effort": "high", "summary": "auto"}
    assert asked.body["text"]["verbosity"] == "medium"
    assert asked.body["store"] is False


def test_the_small_model_writes_the_title(
    opencode: OpenCode, pooler: Pooler, both: Providers
) -> None:
    both.first.will(says())
    config = documented(TUNED, pooler)
    turn = opencode.run(config=config)
    assert (turn.code, opencode.title(turn, config)) == (0, TITLE)
    assert [asked.body["model"] for asked in title_requests(both.first)] == [MODEL]


@pytest.mark.parametrize("has_alias", [False, True], ids=["no-alias", "alias"])
def test_the_title_model_may_be_an_alias_and_may_be_missing(
    has_alias: bool, opencode: OpenCode, both: Providers
) -> None:
    both.first.will(says())
    aliases = {TITLE_MODEL: MODEL} if has_alias else {}
    pooler = both.start(pool={"aliases": aliases})
    config = documented(PAGE, pooler)
    turn = opencode.run(config=config)
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert (opencode.title(turn, config) == TITLE) is has_alias
    assert [asked.body["model"] for asked in title_requests(both.first)] == [MODEL] * has_alias
    statuses = sorted(line["status"] for line in pooler.stop_and_read())
    assert statuses == [200, 200 if has_alias else 400]  # no title is asked for twice


################################################################
# REFUSALS
################################################################


def test_a_wrong_key_is_told(opencode: OpenCode, pooler: Pooler, both: Providers) -> None:
    turn = opencode.run(config=documented(PAGE, pooler), key=OTHER_POOL_KEY)
    assert turn.code == 1
    assert turn.errors == [NO_KEY]
    assert both.first.asked == []
    statuses = [line["status"] for line in pooler.stop_and_read()]
    assert statuses in ([401], [401, 401])  # the turn, and perhaps the title


def test_a_key_that_is_not_set_is_told(opencode: OpenCode, pooler: Pooler) -> None:
    turn = opencode.run(config=documented(PAGE, pooler), key="")
    assert turn.code == 1
    assert turn.errors == [NO_KEY]


def test_a_model_that_the_pool_lacks_is_told_at_once(opencode: OpenCode, both: Providers) -> None:
    pooler = both.start(pool={"models": ["gpt-other"]}, accounts={"models": ["gpt-other"]})
    turn = opencode.run(config=documented(PAGE, pooler))
    assert turn.code == 1
    assert turn.errors == [NO_MODEL]
    statuses = [line["status"] for line in pooler.stop_and_read()]
    assert statuses in ([400], [400, 400])  # once, as it would not be after a 404; and the title
    assert turn.seconds < TURN_SECONDS_MAX / 2
