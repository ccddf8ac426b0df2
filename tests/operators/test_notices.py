"""Proves that `notify` is told what needs an operator, once for each change, and no secret.

Method: `Notices` sends over real sockets to a receiver that answers well, not at all, with a
redirect or with too much; and the real process, whose account is refused, tells a real webhook.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import http.server
import json
import queue
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
import trio

import pooler
from pooler import (
    AccountChange,
    BaseUrl,
    Change,
    Notices,
    PoolChange,
    make_notice,
    parse_config,
)
from tests.support.outbound_proxies import Gate
from tests.support.processes import POOL_KEY, Pooler

SECRET: Final = "/hooks/T0-secret-path?token=secret-of-the-query"
TOKEN: Final = "tk_secret-bearer-token"
API_KEY: Final = "sk-secret-upstream-key-0123"
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
REFUSED: Final = AccountChange("a", "refused", "401 invalid_api_key", "Put a valid key.", True)
READY: Final = AccountChange("a", "ready", "", "", False)
DOWN: Final = PoolChange("home", "m1", "down", None)
LIMITED: Final = PoolChange("home", "m1", "limited", "2026-11-29T10:00:00+00:00")
AGAIN: Final = PoolChange("home", "m1", "ready", None)


def configured(notify: object, **more: object) -> pooler.Config:
    account = {"type": "openai", "api_key": API_KEY, "base_url": "http://127.0.0.1:9/v1"}
    described = {
        "accounts": {"a": account},
        "pools": {"home": {"accounts": ["a"], "keys": {"laptop": POOL_KEY}}},
        "notify": notify,
        **more,
    }
    return parse_config(json.dumps(described).encode(), {"HOOK": f"https://h.test{SECRET}"}, str)


class Receiver:
    """A server on loopback; `answer` is sent for each request, None: nothing."""

    def __init__(self) -> None:
        self.answer: bytes | None = OK
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.sent = 0  # bytes of answers that were taken

    async def serve(self, stream: trio.SocketStream) -> None:
        raw = b""
        while b"\r\n\r\n" not in raw:
            raw += await stream.receive_some()
        head, _, body = raw.decode().partition("\r\n\r\n")
        first, *lines = head.split("\r\n")
        fields = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }
        while len(body) < int(fields["content-length"]):
            body += (await stream.receive_some()).decode()
        self.requests.append((first, fields, json.loads(body)))
        with contextlib.suppress(trio.BrokenResourceError):
            if self.answer is None:
                await stream.receive_some()
                return
            await stream.send_all(self.answer)
            for _ in range(1024 if b"67108864" in self.answer else 0):
                await stream.send_all(b"x" * 65536)
                self.sent += 65536
        await stream.aclose()


class Told:
    """Notices to a receiver, and what is logged."""

    def __init__(self, receiver: Receiver, notices: Notices, logged: list[Any]) -> None:
        self.receiver, self.notices, self.logged = receiver, notices, logged

    async def until(self, holds: Callable[[], object]) -> None:
        with trio.fail_after(10):
            while not holds():
                with trio.move_on_after(0.01):
                    await trio.sleep_forever()

    async def undo_while_unreached(self, trouble: Change, end: Change) -> None:
        """A trouble that ends while a notice of it cannot be sent; then the receiver is back."""
        dial, is_dialled = self.notices.dial, trio.Event()

        async def fail(*_: object) -> trio.abc.Stream:
            is_dialled.set()
            with trio.move_on_after(0.05):
                await trio.sleep_forever()
            raise pooler.ConnectFailed(pooler.Cause.REFUSED)

        self.notices.dial = fail
        self.notices.changed(trouble)
        await is_dialled.wait()
        self.notices.changed(end)
        await self.until(lambda: self.notices.problem)
        self.notices.dial = dial

    async def change(self, *changes: Change) -> list[dict[str, Any]]:
        """The bodies that are told after these changes, which come together."""
        before = len(self.receiver.requests)
        for change in changes:
            self.notices.changed(change)
        with trio.move_on_after(0.4):
            await trio.sleep_forever()
        return [body for _, _, body in self.receiver.requests[before:]]


@contextlib.asynccontextmanager
async def told(
    monkeypatch: pytest.MonkeyPatch, path: str = SECRET, **fields: object
) -> AsyncIterator[Told]:
    times = {"GATHER_SECONDS": 0.05, "PAUSE_SECONDS": 0.05, "SECONDS_MAX": 1.0}
    for name, seconds in times.items():
        monkeypatch.setattr(pooler, f"NOTICE_{name}", seconds)
    receiver, logged = Receiver(), []
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, receiver.serve, [listener])
        port = listener.socket.getsockname()[1]
        notices = Notices(pooler.dial, lambda *line: logged.append(line))
        url = f"http://127.0.0.1:{port}{path}"
        notices.reload(configured({"url": url, **fields}), {})
        nursery.start_soon(notices.run)
        yield Told(receiver, notices, logged)
        nursery.cancel_scope.cancel()
    shown = json.dumps(logged)
    assert "secret" not in shown


def test_a_notice_says_what_is_wrong_and_what_to_do() -> None:
    notice = make_notice([REFUSED, LIMITED], 0, is_gotify=False)
    assert notice["title"] == "codex-pooler: account a: refused (and 1 more)"
    assert notice["message"] == (
        "Account a: refused: 401 invalid_api_key. Put a valid key.\n"
        "Pool home cannot serve m1 until 2026-11-29T10:00:00+00:00."
    )
    assert notice["text"] == f"{notice['title']}\n{notice['message']}"
    assert set(notice) == {"title", "message", "text"}  # Mattermost refuses other priorities
    assert make_notice([AGAIN], 0, is_gotify=True)["priority"] < 8
    assert make_notice([DOWN], 0, is_gotify=True)["priority"] == 8
    assert make_notice([AGAIN], 0, is_gotify=False)["message"] == "Pool home can again serve m1."


def test_a_notice_describes_so_many_changes_and_counts_the_rest() -> None:
    changes = [REFUSED._replace(name=f"a{number}") for number in range(30)]
    notice = make_notice(changes, 5, is_gotify=False)
    assert notice["message"].count("\n") == pooler.NOTICE_LINES_MAX
    assert notice["message"].endswith("And 15 more changes.")
    assert notice["title"].endswith("(and 34 more)")


async def test_one_post_tells_all_that_changes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    async with told(monkeypatch, token=TOKEN) as notices:
        (body,) = await notices.change(REFUSED, DOWN)
        assert "Account a" in body["message"]
        assert "Pool home cannot serve m1." in body["message"]
        ((first, fields, _),) = notices.receiver.requests
        assert first == f"POST {SECRET} HTTP/1.1"
        assert fields["authorization"] == f"Bearer {TOKEN}"
        assert fields["content-type"] == "application/json"
        # For ntfy.
        assert (fields["x-template"], fields["x-title"]) == ("yes", "{{.title}}")
        assert (fields["x-message"], fields["x-priority"]) == ("{{.message}}", "high")
        assert API_KEY not in json.dumps(body)


async def test_each_change_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with told(monkeypatch) as notices:
        assert await notices.change(READY, AGAIN) == []  # nothing was wrong
        assert len(await notices.change(REFUSED, DOWN)) == 1
        assert await notices.change(REFUSED, LIMITED, DOWN) == []  # that is known
        (body,) = await notices.change(READY, AGAIN)
        assert body["message"] == "Pool home can again serve m1."
        assert len(await notices.change(REFUSED)) == 1  # anew
        assert await notices.change(DOWN, AGAIN) == []  # mended before it was told


async def test_more_changes_than_there_is_room_for_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with told(monkeypatch) as notices:
        count = pooler.NOTICES_WAITING_MAX + 7
        for number in range(count):
            notices.notices.changed(REFUSED._replace(name=f"a{number}"))
        assert len(notices.notices.waiting) == pooler.NOTICES_WAITING_MAX
        (body,) = await notices.change()
        assert body["title"].endswith(f"(and {count - 1} more)")


FAULTS: Final = {
    "404": (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "status 404"),
    "redirect": (
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/secret\r\nContent-Length: 0\r\n\r\n",
        "status 302",
    ),
    "not HTTP": (b"secret\r\n\r\n", "no valid response"),
    "hangs": (None, "no response in time"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_failure_is_logged_once_until_it_changes(
    monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    answer, problem = FAULTS[fault]
    async with told(monkeypatch) as notices:
        notices.receiver.answer = answer
        requests = notices.receiver.requests
        notices.notices.changed(REFUSED)
        await notices.until(lambda: len(requests) == 1)
        notices.notices.changed(DOWN)  # a new notice, and no second try
        await notices.until(lambda: len(requests) == 2)
        await notices.until(lambda: notices.logged)
        notices.receiver.answer = OK
        notices.notices.changed(REFUSED._replace(name="b"))
        await notices.until(lambda: len(notices.logged) == 2)
        assert len(requests) == 3
        (level, event, fields), (_, _, later) = notices.logged
        assert (level, event, fields["problem"]) == ("warning", "notice", problem)
        assert fields["host"].startswith("127.0.0.1:")
        assert later["problem"] is None


async def test_a_trouble_that_ended_while_it_could_not_be_told_is_not_told_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with told(monkeypatch) as scene:
        await scene.undo_while_unreached(REFUSED, READY)
        assert await scene.change() == []
        [body] = await scene.change(REFUSED)
        assert body["title"] == "codex-pooler: account a: refused"


async def test_what_is_mended_while_it_could_not_be_told_is_told_neither_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with told(monkeypatch) as scene:
        await scene.undo_while_unreached(DOWN, AGAIN)
        assert await scene.change() == []
        assert (scene.notices.waiting, {*scene.notices.known}) == ({}, set())


async def test_an_account_with_another_key_is_told_of_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with told(monkeypatch) as scene:
        assert len(await scene.change(REFUSED)) == 1
        assert await scene.change(REFUSED) == []
        scene.notices.forget("a")
        assert len(await scene.change(REFUSED)) == 1


async def test_an_account_that_a_reload_removes_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with told(monkeypatch) as scene:
        await scene.change(REFUSED, DOWN)
        assert {*scene.notices.known} == {("a",), ("home", "m1")}
        config = configured(f"https://hooks.test{SECRET}")
        scene.notices.reload(dataclasses.replace(config, accounts={}), {})
        assert {*scene.notices.known} == {("home", "m1")}


def test_a_changed_webhook_is_named_in_the_line_of_a_reload() -> None:
    before = configured({"url": "https://hooks.test/one", "token": TOKEN})
    after = configured({"url": "https://hooks.test/two"})
    assert "notify" in str(pooler.changes_between(before, after))
    assert not pooler.changes_between(before, before)


def test_a_models_name_brings_no_markup_into_a_notice() -> None:
    change = PoolChange("home", "<https://evil.test|Click>", "down", None)
    notice = make_notice([change], 0, is_gotify=False)
    assert not re.search("[<>|]", notice["text"])


async def test_a_notice_goes_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(Gate()) as gate:
        async with told(monkeypatch) as scene:
            assert scene.notices.notify is not None
            authority = scene.notices.notify.url.authority
            scene.notices.proxy = pooler.Proxy(BaseUrl(False, "127.0.0.1", gate.listening.port, ""))
            [body] = await scene.change(REFUSED)
            assert body["title"] == "codex-pooler: account a: refused"

        assert [head.split(b"\r\n")[0] for head in gate.heads] == [
            f"CONNECT {authority} HTTP/1.1".encode()
        ]


async def test_a_large_response_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async with told(monkeypatch) as notices:
        notices.receiver.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n"
        assert len(await notices.change(REFUSED)) == 1
        assert notices.notices.problem == ""
        assert notices.receiver.sent < 16 * 1024 * 1024  # what the sockets hold


async def test_what_reached_nobody_is_told_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async with told(monkeypatch) as notices:
        good = notices.notices.notify
        assert good is not None
        notices.notices.notify = good._replace(url=good.url._replace(port=9))
        assert await notices.change(REFUSED, DOWN) == []
        assert await notices.change(AGAIN) == []  # it need not be told any more
        assert [line[2]["problem"] for line in notices.logged] == ["refused"]
        notices.notices.notify = good
        (body,) = await notices.change()
        assert body["message"] == "Account a: refused: 401 invalid_api_key. Put a valid key."


GOOD: Final = {
    "a URL": f"https://ntfy.example.org:8443{SECRET}",
    "a reference": "{env:HOOK}",
    "an object": {"url": "{env:HOOK}", "token": "tk_0123456789"},
    "loopback": "http://127.0.0.1:2586/pooler",
    "a trusted network": {"url": "http://ntfy.lan/pooler", "allow_plain_http": True},
}


@pytest.mark.parametrize("case", GOOD)
def test_a_webhook_is_read_and_its_secrets_are_not_shown(case: str) -> None:
    config = configured(GOOD[case])
    assert config.notify is not None
    assert "secret" not in repr(config)
    assert "tk_0123456789" not in repr(config)


BAD: Final = {
    "plain HTTP": ("http://h.test/secret", "notify: http:// sends notices in the clear"),
    "no URL": ("secret", "notify: must look like https://host/path"),
    "another scheme": ("ftp://h.test/secret", "notify: must look like https://host/path"),
    "a fragment": ("https://h.test/#secret", "notify: must look like https://host/path"),
    "no port": ("https://h.test:0/secret", "notify: must look like https://host/path"),
    "nothing": ("", "notify: is required and must not be empty"),
    "no variable": ("{env:NONE}", "notify: the environment variable NONE is not set"),
    "a list": (["https://h.test"], "notify: must be a string, not a list"),
    "no url": ({"token": "tk_secret"}, "notify.url: is required and must not be empty"),
    "a token with a space": (
        {"url": "https://h.test", "token": "tk secret"}, "notify.token: must be visible ASCII",
    ),
    "an unknown field": ({"url": "https://h.test", "topic": "x"}, "notify.topic: unknown field"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_webhook_is_refused_without_its_secrets(case: str) -> None:
    value, problem = BAD[case]
    with pytest.raises(pooler.ConfigRefused) as refused:
        configured(value)
    assert [text[: len(problem)] for text in refused.value.problems] == [problem]
    assert "secret" not in str(refused.value.problems)


@contextlib.contextmanager
def webhook() -> Iterator[tuple[str, queue.Queue[dict[str, Any]]]]:
    """An upstream that refuses every key under /v1, and a webhook anywhere else."""
    bodies: queue.Queue[dict[str, Any]] = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not self.path.startswith("/v1"):
                bodies.put(json.loads(body))
            answer = b'{"error": {"message": "no", "code": "invalid_api_key"}}'
            self.send_response(401 if self.path.startswith("/v1") else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", bodies
        server.shutdown()


@pytest.mark.slow
def test_the_process_tells_of_a_refused_account(tmp_path: Path) -> None:
    with webhook() as (origin, bodies):
        account = {"type": "openai", "api_key": API_KEY, "base_url": f"{origin}/v1"}
        described = {
            "listen": "127.0.0.1:0",
            "accounts": {"platform": {**account, "models": ["m1"]}},
            "pools": {"home": {"accounts": ["platform"], "keys": {"laptop": POOL_KEY}}},
            "notify": f"{origin}{SECRET}",
            "limits": {"notice_gather_seconds": 0.2},
        }
        server = Pooler(described, tmp_path)
        connection = http.client.HTTPConnection(urlsplit(server.origin).netloc, timeout=20)
        with contextlib.closing(connection):
            headers = {"Authorization": f"Bearer {POOL_KEY}", "Content-Type": "application/json"}
            body = json.dumps({"model": "m1", "input": "Something of marmalade."})
            connection.request("POST", "/v1/responses", body, headers)
            assert connection.getresponse().status == 503
        notice = bodies.get(timeout=20)
        assert "Account platform: refused: 401 invalid_api_key" in notice["message"]
        assert "Pool home cannot serve m1." in notice["message"]
        shown = json.dumps(notice)
        assert not [word for word in (API_KEY, POOL_KEY, "marmalade", "secret") if word in shown]
        server.stop()
        assert "secret" not in server.process.output
        assert bodies.empty()
