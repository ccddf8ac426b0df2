"""Proves that the demo serves every form of request that a client has, streamed or not.

Method: `pooler demo` as a process on a free port, its key as it prints it, and requests over real
sockets.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Final, cast

import pytest
import trio

import pooler
from tests.support.memory_sockets import Json, socket_pair
from tests.support.paths import POOLER
from tests.support.server_process import ENV, SECONDS_MAX, ServerProcess, read_until, started

HEAD: Final = b"POST /v1/responses HTTP/1.1\r\nHost: demo\r\nContent-Length: 99\r\n\r\n"

HELLO: Final[Json] = [{"role": "user", "content": "Hello"}]
MODEL: Final = "gpt-5.5"
FORMS: Final[dict[str, tuple[str, Json]]] = {
    "responses": ("/v1/responses", {"input": "Hello"}),
    "responses-stream": ("/v1/responses", {"input": "Hello", "stream": True}),
    "chat": ("/v1/chat/completions", {"messages": HELLO}),
    "chat-stream": ("/v1/chat/completions", {"messages": HELLO, "stream": True}),
    "chat-usage": (
        "/v1/chat/completions",
        {"messages": HELLO, "stream": True, "stream_options": {"include_usage": True}},
    ),
    "alias": ("/v1/chat/completions", {"messages": HELLO, "model": "gpt-5.4-nano"}),
    "long": ("/v1/responses", {"input": "x" * 200_000}),
}


@pytest.fixture(scope="module")
def demo() -> Iterator[tuple[int, str]]:
    """Its port and its key."""
    command = [sys.executable, POOLER, "demo", "--port", "0"]
    with subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = key = ""
        for line in process.stdout:
            port = (re.search(r"demo on http://127\.0\.0\.1:(\d+)", line) or [port, port])[1]
            key = (re.search(r"CODEX_POOLER_API_KEY=(\S+)", line) or [key, key])[1]
            if "Serving until Ctrl-C" in line:
                break
        yield int(port), key
        process.terminate()
        assert process.wait(SECONDS_MAX) == 0


def ask(demo: tuple[int, str], method: str, path: str, body: Json = None) -> tuple[int, bytes]:
    port, key = demo
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS_MAX)
    with contextlib.closing(connection):
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        connection.request(method, path, body and json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


def payloads(raw: bytes) -> list[Json]:
    data = [line[6:] for line in raw.decode().splitlines() if line.startswith("data: ")]
    return [json.loads(text) for text in data if text != "[DONE]"]


def said(raw: bytes) -> str:
    """The text of a response in any form."""
    told = payloads(raw) or [json.loads(raw)]
    texts = [event["delta"] for event in told if event.get("type") == "response.output_text.delta"]
    for value in told:
        parts = [one.get("delta") or one.get("message", {}) for one in value.get("choices", [])]
        texts += [part.get("content") or "" for part in parts]
        texts += [part["text"] for item in value.get("output", []) for part in item["content"]]
    return "".join(texts)


@pytest.mark.parametrize("form", FORMS)
def test_the_demo_serves_what_a_client_may_request(demo: tuple[int, str], form: str) -> None:
    path, body = FORMS[form]
    status, raw = ask(demo, "POST", path, {"model": MODEL} | body)
    assert status == 200, raw
    assert said(raw) == "Hello! This response was streamed through codex-pooler, event by event."
    is_chat, told = path.endswith("completions"), payloads(raw)
    assert bool(told) == body.get("stream", False)
    if told and is_chat:
        assert raw.endswith(b"data: [DONE]\n\n")
        assert told[0]["object"] == "chat.completion.chunk"
        assert bool(told[-1].get("usage")) == ("stream_options" in body)
    elif told:
        assert told[-1]["type"] == "response.completed"
    elif is_chat:
        whole = json.loads(raw)
        assert (whole["object"], whole["choices"][0]["finish_reason"]) == (
            "chat.completion",
            "stop",
        )
        assert whole["usage"]["total_tokens"] == 2
    else:
        assert json.loads(raw)["status"] == "completed"


def test_the_demo_lists_its_model(demo: tuple[int, str]) -> None:
    status, raw = ask(demo, "GET", "/v1/models")
    assert status == 200
    assert [one["id"] for one in json.loads(raw)["data"]] == [MODEL, "gpt-5.4-nano"]


@pytest.mark.slow
async def test_the_demo_takes_long_requests_hang_ups_and_signals_that_mean_nothing_to_it() -> None:
    async with started("demo", "--port", "0") as process:
        assert process.stdout is not None
        shown = (await read_until(process.stdout, b"Ctrl-C")).decode()
        key, address = (
            re.search(r"API_KEY=(\S+)", shown), re.search(r'"http://([^/]+)/v1"', shown)
        )  # fmt: skip
        assert key is not None
        assert address is not None
        demo = ServerProcess(process)
        demo.address = address[1]
        process.send_signal(signal.SIGHUP)  # there is no file to be read again
        async with await demo.post("x" * 200_000, key[1]) as leaving:
            await read_until(leaving, b"response.output_text.delta")
        assert b"response.completed" in await demo.ask("x" * 8_000_000, key[1])
        process.send_signal(signal.SIGINT)
        assert (await demo.wait_exit(), demo.lines) == (0, [])


def test_the_demo_logs_only_what_a_person_should_act_on(
    capfd: pytest.CaptureFixture[str],
) -> None:
    for level in ("info", "warning", "error"):
        pooler.log_problem(level, "it happened", {})
    out, err = capfd.readouterr()
    assert out == ""
    assert [json.loads(line)["level"] for line in err.splitlines()] == ["warning", "error"]


@pytest.mark.parametrize("sent", [b"POST /v1/responses HT", HEAD, HEAD + b'{"model"'])
async def test_the_upstream_of_the_demo_minds_no_client_that_leaves(sent: bytes) -> None:
    client, upstream = socket_pair()
    await client.send_all(sent)
    await client.send_eof()
    with trio.fail_after(SECONDS_MAX):
        await pooler.serve_demo_upstream(cast("trio.SocketStream", upstream))
    assert await client.receive_some() == b""
