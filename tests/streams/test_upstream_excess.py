"""Proves that what a hostile upstream may send holds no loop, fills no memory and tells no secret.

Method: values where it is about values; else the real process and upstreams on real sockets, which
send what real ones never do: odd ends of a stream, long names, records that are no TLS.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import pooler
from pooler import MIB, ChatTranslator, Event, EventKind, OutputCollector
from tests.support.hostile_peers import (
    DELTA,
    END,
    SSE_HEAD,
    TURN,
    Rig,
    Visit,
    call,
    crowded,
    json_response,
    message,
    opened_rig,
    paired,
    plays,
    server_message,
    take_message,
    wait_until,
)
from tests.support.memory_sockets import Json, request
from tests.support.tls_upstreams import Line, answer, opened_site
from tests.support.world import sse_event

NATIVE: Final = "/backend-api/codex/responses"
FAILED: Final = sse_event({"type": "response.failed", "response": {"error": {"code": "x"}}})
COMPLETED: Final = "response.completed"
CUT: Final = "response.failed"

################################################################
# THE END OF A STREAM
################################################################


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One account with an API key, one of ChatGPT."""
    (accounts, pools), (others, more) = paired(1), paired(1, "c")
    with opened_rig(tmp_path_factory.mktemp("rig"), accounts | others, pools | more) as made:
        yield made


ENDS: Final[dict[str, tuple[bytes, str]]] = {
    "a-good-one": (END, COMPLETED),
    "and-DONE": (END + b"data: [DONE]\n\n", COMPLETED),
    "twice": (END + END, COMPLETED),
    "failed-after-it": (END + FAILED, COMPLETED),
    "after-a-failure": (FAILED + END, CUT),
    "DONE-alone": (b"data: [DONE]\n\n", CUT),
    "no-JSON": (END.replace(b"}}", b"}"), CUT),
    "no-UTF-8": (END.replace(b'"r"', b'"\xff"'), CUT),
    "another-type-after-it": (END.replace(b"}}", b'},"type":"x"}'), CUT),
    "mark-before-it": (b"\xef\xbb\xbf" + END, CUT),
}


def type_seen(event: bytes) -> str:
    """What a client reads in an event; nothing where that is no JSON."""
    with contextlib.suppress(ValueError):
        lines = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
        return str(json.loads(b"\n".join(lines).decode())["type"])
    return ""


@pytest.mark.parametrize(
    ("name", "path"), [("a0", "/v1/responses"), ("c0", "/v1/responses"), ("c0", NATIVE)]
)
@pytest.mark.parametrize("way", ENDS)
def test_a_client_reads_one_terminal_event_whatever_comes(
    rig: Rig, name: str, path: str, way: str
) -> None:
    raw, expected = ENDS[way]
    rig.upstream.plays[name] = plays(SSE_HEAD + DELTA + raw)
    _, _, told = rig.ask(call(name, path=path, stream=True)).partition(b"\r\n\r\n")
    body = b"".join(line + b"\n" for line in told.replace(b"\r\n", b"\n").split(b"\n"))
    types = [type_seen(event) for event in body.split(b"\n\n")]
    assert [kind for kind in types if kind in {COMPLETED, CUT}] == [expected]
    assert way != "DONE-alone" or b"[DONE]" not in told


################################################################
# SIZES
################################################################


@pytest.mark.parametrize("name", ["id", "model"])
def test_a_long_name_is_not_said_with_every_chunk(name: str) -> None:
    response = {"id": "resp_1", "model": "m", name: "r" * MIB}
    translator = ChatTranslator(
        OutputCollector(MIB), request_id="ours", model="asked", created_unix=1
    )
    translator.feed(
        Event(EventKind.HANDSHAKE, sse_event({"type": "response.created", "response": response}))
    )
    chunk = json.loads(translator.feed(Event(EventKind.CONTENT, DELTA)).removeprefix(b"data: "))
    expected = {
        "id": "chatcmpl-1",
        "model": "m",
        name: "chatcmpl-ours" if name == "id" else "asked",
    }
    assert {field: chunk[field] for field in ("id", "model")} == expected


def test_no_server_chooses_the_modulus_of_a_handshake() -> None:
    ciphers = [cipher["name"] for cipher in pooler.make_tls_context(None).get_ciphers()]
    assert any(name.startswith("ECDHE-") for name in ciphers)
    assert not [name for name in ciphers if not name.startswith(("ECDHE-", "TLS_"))]


def test_models_that_nobody_takes_are_counted(tmp_path: Path) -> None:
    """Clients of one key that read nothing get half of the budget between them, and no more."""
    accounts, pools = paired(1, "c", models=None)
    entries = [{"slug": f"m{number}", "text": "y" * 1000} for number in range(1000)]
    limits = {"bodies_bytes_max": 4 * MIB, "body_bytes_max": MIB}
    raw = request(
        "GET", f"{NATIVE.removesuffix('responses')}models", key="cp-key-of-c0-0123456789",
        headers=[("Connection", "close")],
    )  # fmt: skip
    with opened_rig(tmp_path, accounts, pools, limits) as rig:
        rig.upstream.list = plays(
            json_response(json.dumps({"models": entries}).encode()), keeps=True
        )
        rig.forget()
        assert wait_until(lambda: len(rig.ask(raw)) > 1_000_000)
        with crowded(rig) as crowd:
            for _ in range(8):
                crowd.add(raw, reads=False, receive_bytes=4096)
            assert wait_until(lambda: rig.ask(raw).startswith(b"HTTP/1.1 503 "))


################################################################
# WHAT AN ERROR OF A WEBSOCKET TELLS
################################################################


def ask_socket(rig: Rig, *events: bytes) -> bytes:
    """All that a client of Codex CLI's route is sent in a turn that these end."""

    def play(visit: Visit) -> bool:
        with visit.caller.makefile("rb") as file:
            while visit.is_socket and take_message(file):
                for event in events:
                    visit.caller.sendall(server_message(event))
        return False

    rig.upstream.plays["c0"] = play
    with crowded(rig) as crowd:
        talker = crowd.add_socket("c0", message(TURN), path=NATIVE)
        assert wait_until(lambda: b'"error"' in talker.head or b"completed" in talker.head)
        return talker.head


SECRET: Final = "the-plan-of-the-account"
TOLD: Final[dict[str, bytes]] = {
    "a-list": json.dumps({"headers": [["x-codex-plan-type", SECRET]]}).encode(),
    "text": json.dumps({"headers": f"x-codex-plan-type: {SECRET}"}).encode(),
    "an-object": json.dumps({"headers": {"x-codex-plan-type": SECRET}}).encode(),
    "an-escaped-name": b'{"h\\u0065aders":{"x-codex-plan-type":"%b"}}' % SECRET.encode(),
}


@pytest.mark.parametrize("before", [b"", DELTA[6:-2]], ids=["first", "late"])
@pytest.mark.parametrize("shape", TOLD)
def test_the_head_in_an_error_tells_nothing_in_any_shape(
    rig: Rig, shape: str, before: bytes
) -> None:
    error = b'{"type":"error","status":400,"error":{"code":"a_code"},' + TOLD[shape][1:]
    said = ask_socket(rig, *[before] * bool(before), error)
    assert b"a_code" in said
    assert SECRET.encode() not in said


@pytest.mark.parametrize("shape", TOLD)
def test_the_head_in_news_tells_nothing_in_any_shape(rig: Rig, shape: str) -> None:
    news = b'{"type":"response.metadata","note":"kept",' + TOLD[shape][1:]
    created = b'{"type":"response.created","response":{"id":"r"}}'
    said = ask_socket(rig, created, news, DELTA[6:-2], END[6:-2])
    assert b'"note":"kept"' in said
    assert SECRET.encode() not in said


def test_the_head_in_an_error_is_no_longer_than_another(rig: Rig) -> None:
    fields: Json = {f"x-{number}-primary-used-percent": "1" for number in range(2000)}
    error = {"type": "error", "status": 400, "error": {"code": "a_code"}, "headers": fields}
    assert b"upstream_invalid_response" in ask_socket(rig, json.dumps(error).encode())


################################################################
# TLS
################################################################


def test_after_a_record_that_is_no_tls_the_next_request_is_served(tmp_path: Path) -> None:
    """It goes on a connection of its own, for none of it could be sent on the other one."""

    def play(line: Line, head: bytes) -> bool:
        line.read_body(head)
        line.caller.sendall(
            line.encrypted(answer({"id": "r"})) + b"\x17\x03\x03\x00\x20" + b"z" * 32
        )
        with contextlib.suppress(OSError):
            while line.caller.recv(65536):  # it says no more, and stays
                pass
        return False

    with opened_site(tmp_path, {"first": {}}) as site:
        site.secure.plays["first"] = play
        assert [site.ask("first", {})[0] for _ in range(3)] == [200] * 3
        assert len(site.secure.asked) == 3
        for line in site.secure.lines_of("first"):
            with contextlib.suppress(OSError):
                line.caller.shutdown(socket.SHUT_RDWR)
