"""Proves that no field that decides about a request comes in under a name of another case.

Some servers take `Model` for `model`, the last one counting: what the pooler judged would not be
what they read.  Method: every such name in every kind of case, on each route; and a body that
notes what is read of it, so that the list of names is that of the judges.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
from trio.testing import MockClock

from pooler import (
    DECIDING_NAMES,
    CallKind,
    Key,
    PoolerError,
    Turn,
    call_route,
    check_names,
    codex_obstacle,
    read_call,
)
from tests.support.codex_world import opened_scripted_world
from tests.support.memory_sockets import Json, post
from tests.support.memory_websockets import (
    codex_described,
    open_socket,
    socket_described,
    socket_world,
    turn,
)
from tests.support.world import describe, json_response, make_config, opened_world

BODY: Final[Json] = {"model": "m1", "input": [], "messages": [{"role": "user", "content": "x"}]}
LONG_S, KELVIN = "\u017f", "\u212a"  # to Unicode, and to Go, other cases of s and k


def cases_of(name: str) -> set[str]:
    """Other spellings of a name that only differ in case."""
    made = {name.upper(), name.title(), name.swapcase(), name[0] + name[1:].upper()}
    made |= {name.replace("s", LONG_S), name.replace("k", KELVIN), name[:-1] + name[-1].upper()}
    return {spelling for spelling in made if spelling != name}


class Noting(dict[str, Any]):
    """A body that notes which of its members are asked for."""

    def __init__(self, *args: Json) -> None:
        super().__init__(*args)
        self.read: set[str] = set()

    def get(self, name: str, default: Json = None) -> Json:
        self.read.add(name)
        return super().get(name, default)

    def pop(self, name: str, *default: Json) -> Json:
        self.read.add(name)
        return super().pop(name, *default)

    def __getitem__(self, name: str) -> Json:
        self.read.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.read.add(str(name))
        return super().__contains__(name)


def test_the_names_are_those_that_are_read_to_judge() -> None:
    pool = make_config(describe("a")).pools["home"]
    key = Key(pool="home", name="k", concurrent=1)
    body = Noting({"model": "m1", "type": "response.create"})
    for kind in CallKind:
        read_call(call_route(f"/v1{kind.value}"), body, {}, pool, key)
        codex_obstacle(kind, body)
    stand_in: Any = SimpleNamespace()
    Turn(stand_in, stand_in, stand_in).understand(body)
    assert body.read == DECIDING_NAMES


@pytest.mark.parametrize("name", sorted(DECIDING_NAMES))
def test_a_name_in_another_case_is_refused(name: str) -> None:
    check_names(BODY | {name: 1})
    for spelling in cases_of(name):
        for body in ({spelling: 1}, BODY | {name: 1, spelling: 1}, {spelling: 1, "x": 2}):
            with pytest.raises(PoolerError) as refused:
                check_names(body)
            assert (refused.value.status, refused.value.code) == (400, "invalid_json")
            assert spelling not in refused.value.public
            assert not set("0123456789") & set(refused.value.public)


@pytest.mark.parametrize(
    "name", ["Temperature", "MAX_TOKENS", "modell", "mo", "", "Mod el", "m\u00f6del", "x" * 10**6]
)
def test_other_names_are_the_client_s_own_affair(name: str) -> None:
    check_names(BODY | {name: 1})
    check_names(BODY | {"metadata": {"Model": "m2", "MODEL": 1}})


ROUTES: Final = ["/v1/responses", "/v1/chat/completions"]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("spelling", ["Model", "MODEL", "\\u004dodel", "mode\\u004c", "Stream"])
async def test_no_upstream_sees_two_models(
    autojump_clock: MockClock, path: str, spelling: str
) -> None:
    """The key may use m1; a server that takes the last name it knows would answer with m2."""
    raw = json.dumps(BODY).encode()[:-1] + b', "' + spelling.encode() + b'": "m2"}'
    described = describe("a", pool={"models": ["m1"]})
    async with opened_world(described) as world:
        world.upstreams["a"].always = json_response({"id": "r"})
        response = await world.ask(post(path, raw))
        assert (response.status, response.error["code"]) == (400, "invalid_json")
        assert "odel" not in response.error["message"]
        assert world.asked == []
        assert (await world.ask(post(path, BODY))).status == 200


async def test_nor_on_codex_cli_s_own_route(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with opened_scripted_world(tmp_path) as world:
        body = {"model": "gpt-5.5", "input": [], "Previous_Response_Id": "resp_1"}
        for path in ("responses", "responses/compact"):
            response = await world.ask(post(f"/backend-api/codex/{path}", body))
            assert (response.status, response.error["code"]) == (400, "invalid_json")
        assert world.asked == []


@pytest.mark.parametrize("path", ["/v1/responses", "/backend-api/codex/responses"])
async def test_nor_in_a_frame(autojump_clock: MockClock, tmp_path: Path, path: str) -> None:
    is_native = path != "/v1/responses"
    described = codex_described(tmp_path) if is_native else socket_described()
    async with socket_world(described) as world:
        for upstream in world.upstreams.values():
            upstream.always = turn("word")
        client = await open_socket(world, path=path)
        for name in ("Model", "STREAM_ID", "TYPE", "previous_re\u017fponse_id"):
            [error] = await client.ask(**{name: "m2"})
            assert (error["status"], error["error"]["code"]) == (400, "invalid_json")
        assert world.turns == []
        assert (await client.ask(input=[]))[-1]["type"] == "response.completed"
