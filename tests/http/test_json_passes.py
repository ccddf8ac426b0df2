"""Proves that a request's body is read, and written, no more often than is known of it.

Method: the passes over large bodies are counted in the real server in virtual time: an account of
either type, with and without another name for the model, and a WebSocket's turn.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from trio.testing import MockClock

import pooler
from tests.support.codex_world import (
    FIRST_ALONE,
    MODEL,
    ask_by_carrier,
    describe_codex,
    opened_codex_world,
)
from tests.support.limits import with_limits
from tests.support.memory_sockets import ask_responses, post
from tests.support.world import describe, json_response, opened_world

TEXT: Final = "much\n" * 200
PASSES: Final = ("check_json_shape", "parse_json_object", "parse_again", "dump_like")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each pass was made."""
    counts = dict.fromkeys(PASSES, 0)

    def counted(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:  # noqa: ANN401
            counts[name] += 1
            return work(*given)

        return run

    for name in PASSES:
        monkeypatch.setattr(pooler, name, counted(name, getattr(pooler, name)))
    return counts


@pytest.mark.parametrize(("model", "expected"), [("m1", (1, 1, 0, 0)), ("small", (1, 1, 0, 1))])
async def test_a_body_for_an_account_with_a_key_is_read_once(
    model: str, expected: tuple[int, ...], passes: dict[str, int], autojump_clock: MockClock
) -> None:
    async with opened_world(describe("a", pool={"aliases": {"small": "m1"}})) as world:
        world.upstreams["a"].always = json_response({"id": "r"})
        body = {"model": model, "input": TEXT}
        assert (await world.ask(post("/v1/responses", body))).status == 200
    assert tuple(passes.values()) == expected


CARRIERS: Final = ("responses", "responses-stream", "chat", "websocket")


async def translate(carrier: str, folder: Path) -> None:
    name = "messages" if carrier == "chat" else "input"
    body = {"model": MODEL, name: [{"role": "user", "content": TEXT}]}
    async with opened_codex_world(describe_codex(folder, **FIRST_ALONE), folder) as world:
        assert (await ask_by_carrier(world, carrier, body))[0] == 200


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_a_body_that_is_translated_is_read_once_and_written_once(
    carrier: str, passes: dict[str, int], tmp_path: Path, autojump_clock: MockClock
) -> None:
    await translate(carrier, tmp_path)
    assert tuple(passes.values()) == (1, 1, 0, 1)


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_what_takes_much_memory_is_not_kept_but_read_again(
    carrier: str, passes: dict[str, int], tmp_path: Path, autojump_clock: MockClock
) -> None:
    with_limits({"parsed_bytes_max": len(TEXT)})
    await translate(carrier, tmp_path)
    assert tuple(passes.values()) == (1, 1, 1, 1)


async def test_a_text_full_of_commas_is_a_body_like_any_other(autojump_clock: MockClock) -> None:
    """It may have too many members, so the whole guard looks at it, and finds that it has not."""
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(json_response({"id": "r"}))
        body = ask_responses(stream=False, input="[,{" * (pooler.JSON_SEPARATORS_MAX // 2))
        assert (await world.ask(body)).status == 200
