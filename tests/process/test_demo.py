"""Proves that the demo is a sandbox: each route works, a failover is seen, and nothing is left.

Method: `pooler demo` as a process on a free port, its key and token as it prints them, and requests
over real sockets; then every way to end it, with a folder of its own for temporary files.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import http.client
import json
import os
import pty
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, cast

import pytest
import trio
import trio_websocket

import pooler
from tests.support.memory_sockets import Json, socket_pair
from tests.support.paths import POOLER
from tests.support.processes import Running, clean_env
from tests.support.server_process import (
    SECONDS_MAX,
    ServerProcess,
    read_until,
    run_pooler,
    started,
)

HEAD: Final = b"POST /v1/responses HTTP/1.1\r\nHost: demo\r\nContent-Length: 99\r\n\r\n"
TEXT: Final = "Hello! This response was streamed through codex-pooler, event by event."
HELLO: Final[Json] = [{"role": "user", "content": "Hello"}]
MODEL: Final = "gpt-5.5"
SECRET, TOKEN = "a-key-of-my-own-0123456789", "a-token-of-my-own-0123456789"
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
FULL: Final = [path for path in [Path("/dev/full")] if path.exists()]  # not on macOS
NATIVE: Final = "/backend-api/codex"
TURN: Final[Json] = {
    "instructions": "",
    "input": [{"type": "message", "role": "user", "content": "Hello"}],
    "store": False,
    "stream": True,
}
# With a text that the response contains.
NATIVE_ROUTES: Final[dict[tuple[str, str], tuple[Json, str]]] = {
    ("POST", f"{NATIVE}/responses"): (TURN, '"delta":" streamed"'),
    ("POST", f"{NATIVE}/responses/compact"): (TURN, '"compaction"'),
    ("POST", "/v1/responses/compact"): (TURN, '"compaction"'),
    ("POST", f"{NATIVE}/alpha/search"): ({"id": "s", "commands": {}}, '"output"'),
    ("POST", "/v1/alpha/search"): ({"id": "s", "commands": {}}, '"output"'),
    ("POST", f"{NATIVE}/images/generations"): ({"prompt": "a pixel"}, '"b64_json"'),
    ("POST", "/v1/images/edits"): ({"prompt": "a pixel"}, '"b64_json"'),
    ("GET", f"{NATIVE}/models?client_version=0.169.0"): (None, '"slug":"gpt-5.5"'),
    ("GET", "/api/codex/usage"): (None, '"primary_window":{"used_percent":12'),
    ("GET", "/backend-api/wham/usage"): (None, '"secondary_window":{"used_percent":35'),
    ("GET", "/v1/usage"): (None, '"request_count"'),
    ("GET", "/v1/models"): (None, '"id":"gpt-5.4-nano"'),
    ("GET", "/v1/models/gpt-5.5"): (None, '"context_length":258400'),
    ("GET", "/healthz"): (None, "ok"),
}


class Demo:
    """A demo that serves: its port, its secrets, and what it has printed."""

    def __init__(self, *command: str, cwd: Path | None = None, **env: str) -> None:
        start = command or (sys.executable, POOLER)
        self.running = Running(*start, "demo", "--port", "0", env=clean_env(**env), cwd=cwd)
        self.running.wait_line("(Serving until Ctrl-C)")
        self.process = self.running.process
        self.port = int(self.shown(r"demo on http://127\.0\.0\.1:(\d+)"))
        self.key = self.shown(r"export CODEX_POOLER_API_KEY=(\S+)") or SECRET
        self.token = self.shown(r"export CODEX_POOLER_OPERATOR_TOKEN=(\S+)") or TOKEN

    def shown(self, pattern: str) -> str:
        match = re.search(pattern, self.running.output)
        return match[1] if match else ""

    def ask(self, method: str, path: str, body: Json = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS_MAX)
        with contextlib.closing(connection):
            fields = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
            connection.request(method, path, body and json.dumps(body), fields | headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def operate(self, path: str, **headers: str) -> tuple[int, bytes]:
        return self.ask("GET", path, Authorization=f"Bearer {self.token}", **headers)


Start = Callable[..., Demo]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts demos; a test that fails leaves none behind."""
    started: list[Demo] = []

    def begin(*command: str, cwd: Path | None = None, **env: str) -> Demo:
        started.append(Demo(*command, cwd=cwd, **env))
        return started[-1]

    yield begin
    for demo in started:
        demo.process.kill()
        demo.running.end()


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    demo = Demo()
    yield demo
    assert demo.running.end() == 0
    assert "Traceback" not in demo.running.output


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


################################################################
# ROUTES
################################################################


@pytest.mark.parametrize("form", FORMS)
def test_the_demo_serves_what_a_client_may_request(demo: Demo, form: str) -> None:
    path, body = FORMS[form]
    status, raw = demo.ask("POST", path, {"model": MODEL} | body)
    assert status == 200, raw
    assert said(raw) == TEXT
    is_chat, told = path.endswith("completions"), payloads(raw)
    assert bool(told) == body.get("stream", False)
    if told and is_chat:
        assert raw.endswith(b"data: [DONE]\n\n")
        assert told[0]["object"] == "chat.completion.chunk"
        assert bool(told[-1].get("usage")) == ("stream_options" in body)
    elif told:
        assert told[-1]["type"] == "response.completed"
        assert sum(event["type"].endswith("text.delta") for event in told) == len(TEXT.split())
    elif is_chat:
        whole = json.loads(raw)
        assert (whole["object"], whole["choices"][0]["finish_reason"]) == (
            "chat.completion",
            "stop",
        )
        assert whole["usage"]["total_tokens"] == 14
    else:
        assert json.loads(raw)["status"] == "completed"


@pytest.mark.parametrize("route", NATIVE_ROUTES, ids=" ".join)
def test_the_demo_has_the_routes_that_only_codex_needs(demo: Demo, route: tuple[str, str]) -> None:
    body, text = NATIVE_ROUTES[route]
    status, raw = demo.ask(*route, body and {"model": MODEL} | body)
    assert (status, text in raw.decode()) == (200, True), raw


def test_the_image_of_the_demo_is_one() -> None:
    [image] = cast("Json", pooler.demo_result("/images/edits"))["data"]
    assert base64.b64decode(image["b64_json"]).startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("path", ["/v1/responses", f"{NATIVE}/responses"])
async def test_the_demo_serves_websockets(demo: Demo, path: str) -> None:
    url = f"ws://127.0.0.1:{demo.port}{path}"
    fields = [(b"Authorization", f"Bearer {demo.key}".encode())]
    ask = {"type": "response.create", "model": MODEL, **TURN}
    with trio.fail_after(SECONDS_MAX):
        async with trio_websocket.open_websocket_url(url, extra_headers=fields) as socket:
            for body, expected in (({"generate": False}, ""), ({}, TEXT), ({}, TEXT)):
                await socket.send_message(json.dumps(ask | body))
                events = [json.loads(await socket.get_message())]
                while events[-1]["type"] != "response.completed":
                    events.append(json.loads(await socket.get_message()))
                assert "".join(event.get("delta", "") for event in events) == expected


################################################################
# WHAT AN OPERATOR SEES
################################################################


def test_the_first_request_of_the_demo_fails_over_in_its_log_line(demo: Demo) -> None:
    lines = demo.running.output.splitlines()
    at = lines.index(TEXT)
    tried = r"\d\d:\d\d:\d\d  200  demo/you  gpt-5\.5  spent 429 → revoked .+ → well  3\+11 tokens"
    assert re.match(tried, lines[at + 1]), lines[at + 1]


def test_each_further_request_to_the_demo_is_a_line(demo: Demo) -> None:
    assert demo.ask("POST", "/v1/responses", {"model": "no-such", "input": "x"})[0] == 400
    demo.running.wait_line("  (400)  demo/you .*model_not_found")
    assert demo.ask("GET", "/v1/models", Authorization="Bearer nobody")[0] == 401
    demo.running.wait_line("  (401)  GET models .*invalid_api_key")


def test_what_the_accounts_of_the_demo_are_is_seen_by_an_operator(demo: Demo) -> None:
    status, raw = demo.operate("/admin", Accept="application/json")
    assert status == 200
    seen = json.loads(raw)
    states = {row["name"]: row["status"] for row in seen["accounts"]}
    assert states == {"spent": "at_limit", "revoked": "login_needed", "well": "ready"}

    first = min(seen["requests"], key=lambda row: row["at"])
    assert first["attempts"] == [
        {"account": "spent", "reason": "429 usage_limit_reached"},
        {"account": "revoked", "reason": "login needed"},
        {"account": "well"},
    ]

    status, raw = demo.operate("/metrics")
    assert status == 200
    assert 'codex_pooler_account_state{account="spent",state="at_limit"} 1' in raw.decode()


def test_the_page_of_the_demo_takes_any_user_name(demo: Demo) -> None:
    basic = base64.b64encode(f"anybody:{demo.token}".encode()).decode()
    status, raw = demo.ask("GET", "/admin", Authorization=f"Basic {basic}", Accept="text/html")
    assert (status, b"<html" in raw, b"revoked" in raw) == (200, True, True)


@pytest.mark.slow
def test_the_status_of_the_demo_is_shown_by_the_command_that_it_prints(
    demo: Demo, tmp_path: Path
) -> None:
    command = demo.shown(r"\n  (.+ status --url \S+)")
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        env=clean_env(CODEX_POOLER_OPERATOR_TOKEN=demo.token),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "spent" in done.stdout


@pytest.mark.slow
def test_an_agent_sees_the_demo_through_mcp(demo: Demo) -> None:
    call = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "codex_pooler_list_upstreams", "arguments": {}},
    }
    accept = "application/json, text/event-stream"
    bearer = f"Bearer {demo.token}"
    status, raw = demo.ask("POST", "/mcp", call, Authorization=bearer, Accept=accept)
    assert status == 200
    assert "revoked" in raw.decode()


def test_the_configuration_that_the_demo_prints_is_for_this_demo(demo: Demo) -> None:
    config, _ = json.JSONDecoder().raw_decode(demo.shown(r"(?s)\n(\{\n.*)"))
    address = f"http://127.0.0.1:{demo.port}"
    assert config["provider"]["openai"]["options"]["baseURL"] == f"{address}/v1"
    assert config["mcp"]["codex_pooler"]["url"] == f"{address}/mcp"
    assert config["small_model"] == config["model"]


################################################################
# WHAT COMES FROM OUTSIDE
################################################################


@pytest.mark.slow
def test_the_demo_keeps_the_secrets_that_are_set_and_does_not_print_them(
    start: Start, tmp_path: Path
) -> None:
    demo = start(
        cwd=tmp_path, CODEX_POOLER_API_KEY=SECRET, CODEX_POOLER_OPERATOR_TOKEN=f" {TOKEN}\n"
    )
    assert (demo.key, demo.token) == (SECRET, TOKEN)
    assert demo.ask("GET", "/v1/models")[0] == demo.operate("/admin")[0] == 200
    assert demo.running.end() == 0
    assert not [secret for secret in (SECRET, TOKEN) if secret in demo.running.output]
    assert "# CODEX_POOLER_API_KEY is used as it is set here" in demo.running.output


@pytest.mark.parametrize(
    ("key", "token", "expected"),
    [
        ("short", "", "CODEX_POOLER_API_KEY: must have at least 16 visible ASCII characters"),
        ("", "$SOME_TOKEN", "CODEX_POOLER_OPERATOR_TOKEN: is a variable that is not expanded"),
        (SECRET, SECRET, "CODEX_POOLER_OPERATOR_TOKEN: is the same secret as CODEX_POOLER_API_KEY"),
        (f"sha256:{'0' * 64}", "", "CODEX_POOLER_API_KEY: must have"),
        ("x" * 600, "", "CODEX_POOLER_API_KEY: has more than"),
    ],
)
def test_a_secret_that_no_client_could_use_is_refused_in_one_line(
    key: str, token: str, expected: str, tmp_path: Path
) -> None:
    done = run_pooler(
        *("demo", "--port", "0"),
        TMPDIR=str(tmp_path),
        CODEX_POOLER_API_KEY=key,
        CODEX_POOLER_OPERATOR_TOKEN=token,
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert done.stderr.startswith(f"pooler: {expected}")
    assert done.stderr.endswith("; unset it, and the demo generates one\n")
    assert [*tmp_path.iterdir()] == []


def test_the_demo_asks_nobody_but_itself(tmp_path: Path) -> None:
    """Proxies and the token endpoint of Codex CLI's own variable are for real accounts."""
    closed = "http://127.0.0.1:9"
    done = run_pooler(
        *("demo", "--once", "--port", "0"),
        TMPDIR=str(tmp_path),
        CODEX_REFRESH_TOKEN_URL_OVERRIDE=f"{closed}/token",
        HTTPS_PROXY=closed,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "revoked login needed → well" in done.stdout


@pytest.mark.slow
def test_the_single_file_has_a_demo_that_says_what_operators_miss(
    start: Start, tmp_path: Path
) -> None:
    alone = tmp_path / "pooler.py"
    shutil.copy(POOLER, alone)
    # Without `site` nothing else leads to a checkout, as an editable installation would.
    packages = sysconfig.get_path("purelib")
    demo = start(sys.executable, "-S", str(alone), cwd=tmp_path, PYTHONPATH=packages)
    lines = [line for line in demo.running.output.splitlines() if "mcp_server.py" in line]
    assert lines == ["  operators: /admin, /metrics and /mcp need mcp_server.py next to pooler.py"]
    assert '"mcp"' not in demo.running.output
    assert demo.operate("/admin")[0] == 501
    assert demo.ask("POST", "/v1/responses", {"model": MODEL, "input": "Hello"})[0] == 200


################################################################
# THE END
################################################################


def left_in(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*")]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """One for temporary files, and the current one."""
    temporary, current = tmp_path / "temporary", tmp_path / "current"
    temporary.mkdir()
    current.mkdir()
    return temporary, current


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_demo_and_its_folder(
    start: Start, number: int, folders: tuple[Path, Path]
) -> None:
    temporary, current = folders
    demo = start(cwd=current, TMPDIR=str(temporary))
    [folder] = temporary.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    logins = [*folder.glob("*.json")]
    assert sorted(path.stem for path in logins) == ["revoked", "spent", "well"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in logins} == {0o600}

    demo.process.send_signal(number)
    assert demo.process.wait(SECONDS_MAX) == 0
    assert left_in(temporary) == left_in(current) == []
    assert demo.running.end() == 0
    assert demo.running.output.endswith("\n\nStopped.\n")


def wait_some(process: subprocess.Popen[str], seconds: float) -> None:
    """Let a process go on for a time, or to its end."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


@pytest.mark.slow
def test_a_second_signal_ends_the_demo_at_once(start: Start, folders: tuple[Path, Path]) -> None:
    """A third one may come when Python has ended already, but for its process."""
    temporary, _ = folders
    demo = start(TMPDIR=str(temporary))
    with socket.create_connection(("127.0.0.1", demo.port), SECONDS_MAX) as slow:
        slow.sendall(
            b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
            b"Content-Type: application/json\r\nExpect: 100-continue\r\n"
            b"Authorization: Bearer %b\r\n\r\n" % demo.key.encode()
        )
        assert slow.recv(99).startswith(b"HTTP/1.1 100")  # the server waits for its body
        began_at = time.monotonic()
        for _ in range(3):
            demo.process.send_signal(signal.SIGINT)
            wait_some(demo.process, 0.1)
        assert demo.process.wait(SECONDS_MAX) in {0, -signal.SIGINT}
    assert time.monotonic() - began_at < pooler.DEMO_DRAIN_SECONDS_MAX
    assert left_in(temporary) == []
    assert "Traceback" not in demo.running.output


@pytest.mark.slow
def test_a_reload_of_the_demo_changes_nothing(start: Start) -> None:
    demo = start()
    demo.process.send_signal(signal.SIGHUP)
    assert demo.ask("GET", "/v1/models")[0] == 200
    assert demo.running.end() == 0


@pytest.mark.slow
def test_a_terminal_that_is_closed_ends_the_demo(folders: tuple[Path, Path]) -> None:
    temporary, _ = folders
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal, open(theirs, "wb") as end:
        process = subprocess.Popen(
            [sys.executable, POOLER, "demo", "--port", "0"],
            env=clean_env(TMPDIR=str(temporary)),
            stdin=subprocess.DEVNULL,
            stdout=end,
            stderr=end,
            start_new_session=True,
        )
        end.close()
        shown = b""
        while b"Serving until" not in shown:
            shown += terminal.read(4096)
    process.send_signal(signal.SIGHUP)
    assert process.wait(SECONDS_MAX) == 0
    assert left_in(temporary) == []


@pytest.mark.slow
async def test_two_signals_within_the_first_text_end_the_demo_in_a_word() -> None:
    async with started("demo", "--port", "0") as process:
        assert process.stdout is not None
        shown = await read_until(process.stdout, b"Hello!")
        process.send_signal(signal.SIGINT)
        shown += await read_until(process.stdout, b" ")
        process.send_signal(signal.SIGINT)
        while received := await process.stdout.receive_some():
            shown += received
        server = ServerProcess(process)
        assert (await server.wait_exit(), server.lines) == (1, [])
    assert shown.endswith(b"  server_stopping\n\nStopped.\n")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8])
def test_a_signal_at_any_moment_leaves_nothing(seconds: float, folders: tuple[Path, Path]) -> None:
    """While Python itself starts, a signal may end it in its own way."""
    temporary, current = folders
    running = Running(
        *(sys.executable, POOLER, "demo", "--port", "0"),
        env=clean_env(TMPDIR=str(temporary)),
        cwd=current,
    )
    wait_some(running.process, seconds)
    running.process.send_signal(signal.SIGINT)
    running.process.wait(SECONDS_MAX)
    has_begun = "demo on http" in running.output
    assert not (has_begun and running.process.returncode)
    assert left_in(temporary) == left_in(current) == []
    assert running.end() == running.process.returncode
    assert not (has_begun and "Traceback" in running.output)


@pytest.mark.slow
def test_the_first_response_ends_a_demo_that_is_for_once(folders: tuple[Path, Path]) -> None:
    temporary, current = folders
    done = run_pooler("demo", "--once", "--port", "0", cwd=current, TMPDIR=str(temporary))
    assert (done.returncode, done.stderr) == (0, "")
    assert left_in(temporary) == left_in(current) == []
    [*_, text, line] = done.stdout.splitlines()
    assert text == TEXT
    assert "spent 429 → revoked login needed → well" in line


@pytest.mark.slow
def test_a_reader_that_goes_away_later_ends_the_demo(folders: tuple[Path, Path]) -> None:
    """The request whose line cannot be shown is served all the same."""
    temporary, _ = folders
    command = [sys.executable, POOLER, "demo", "--port", "0"]
    env = clean_env(TMPDIR=str(temporary))
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        shown = ""
        while "Serving until" not in shown:
            shown += process.stdout.readline()
        process.stdout.close()
        port, key = (re.search(pattern, shown) for pattern in (r"127.0.0.1:(\d+)", r"KEY=(\S+)"))
        assert port is not None
        assert key is not None
        connection = http.client.HTTPConnection("127.0.0.1", int(port[1]), timeout=SECONDS_MAX)
        with contextlib.closing(connection):
            connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key[1]}"})
            assert connection.getresponse().status == 200
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_MAX)
        process.kill()  # does nothing to one that has ended
        assert (process.wait(), process.stderr.read()) == (0, "")
    assert left_in(temporary) == []


@pytest.mark.slow
@pytest.mark.parametrize("device", FULL)
def test_a_full_disk_under_its_output_is_one_line(device: Path, folders: tuple[Path, Path]) -> None:
    temporary, _ = folders
    with device.open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, POOLER, "demo", "--port", "0"],
            env=clean_env(TMPDIR=str(temporary)),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=SECONDS_MAX,
            check=False,
        )
    reason = os.strerror(errno.ENOSPC)
    assert (done.returncode, done.stderr) == (1, f"pooler: standard output: {reason}\n")
    assert left_in(temporary) == []


@pytest.mark.slow
def test_without_a_folder_for_its_logins_the_demo_says_so(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    done = run_pooler("demo", "--port", "0", TMPDIR=missing)
    reason = f"{os.strerror(errno.ENOENT)}; set TMPDIR to a folder for temporary files"
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"pooler: {missing}: {reason}\n"


def test_a_login_of_the_demo_replaces_no_file_and_follows_no_link(tmp_path: Path) -> None:
    """The owner of TMPDIR may put another folder in the place of the demo's."""
    important = tmp_path / "important"
    important.write_text("kept")
    (tmp_path / "spent.json").symlink_to(important)
    (tmp_path / "well.json").write_text("kept")
    for name in ("spent", "well"):
        with pytest.raises(FileExistsError):
            pooler.write_demo_login(tmp_path, name)
    assert important.read_text() == (tmp_path / "well.json").read_text() == "kept"
    made = Path(pooler.write_demo_login(tmp_path, "revoked"))
    assert (made.stat().st_mode & 0o777, json.loads(made.read_text()).keys()) == (0o600, {"tokens"})


def test_the_end_of_the_demo_is_quiet_if_somebody_has_moved_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pooler.demo_logins() as paths:
        folder = Path(paths["well"]).parent
        folder.rename(tmp_path / "moved")
        folder.symlink_to(tmp_path / "moved")
    assert (tmp_path / "moved").is_dir()


@pytest.mark.slow
def test_a_port_in_use_leaves_nothing(folders: tuple[Path, Path]) -> None:
    temporary, _ = folders
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run_pooler("demo", "--port", port, TMPDIR=str(temporary))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert left_in(temporary) == []


@pytest.mark.slow
def test_a_locale_without_arrows_gets_another_sign() -> None:
    done = run_pooler("demo", "--once", "--port", "0", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "spent 429 ? revoked login needed ? well" in done.stdout


@pytest.mark.slow
async def test_the_demo_takes_long_requests_and_hang_ups() -> None:
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
        async with await demo.post("x" * 200_000, key[1]) as leaving:
            await read_until(leaving, b"response.output_text.delta")
        assert b"response.completed" in await demo.ask("x" * 8_000_000, key[1])
        process.send_signal(signal.SIGINT)
        assert (await demo.wait_exit(), demo.lines) == (0, [])


################################################################
# WHAT IT SAYS
################################################################


@pytest.mark.parametrize(
    ("called_as", "expected"),
    [
        (".venv/bin/pooler", ".venv/bin/pooler"),
        ("/usr/bin/my tools/pooler", "'/usr/bin/my tools/pooler'"),
        ("pooler.py", f"{sys.executable} pooler.py"),
    ],
)
def test_a_command_is_shown_as_the_program_was_called(
    called_as: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [called_as])
    assert pooler.program_name() == expected


def test_a_program_on_the_path_is_shown_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (program := tmp_path / "pooler").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(program), "demo"])
    guide = pooler.demo_guide("http://127.0.0.1:4000", {}, [])
    assert "  pooler status" in guide  # whose default is that address


async def test_a_demo_that_is_stopped_before_its_request_serves_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert not await pooler.ask_demo(pooler.BaseUrl(False, "127.0.0.1", port, ""), SECRET)


################################################################
# ITS UPSTREAM
################################################################


UPGRADE: Final = (
    b"GET /backend-api/codex/responses HTTP/1.1\r\nHost: demo\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nchatgpt-account-id: well\r\n\r\n"
)
HUGE: Final = b"POST /x HTTP/1.1\r\nHost: demo\r\nContent-Length: 99999999999\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [b"POST /v1/responses HT", HEAD, HEAD + b'{"model"', UPGRADE, HUGE, b"\n", b"GET /\r\n\r\n"],
)
async def test_the_upstream_of_the_demo_minds_nothing_that_it_gets(sent: bytes) -> None:
    client, upstream = socket_pair()
    await client.send_all(sent)
    await client.send_eof()
    with trio.fail_after(SECONDS_MAX):
        await pooler.DemoUpstream().serve(cast("trio.SocketStream", upstream))
    assert await client.receive_some() == b""


async def test_a_pooler_that_leaves_at_once_ends_a_websocket_of_the_demo() -> None:
    client, upstream = socket_pair()
    key = b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    await client.send_all(UPGRADE[:-2] + key)
    await client.aclose()
    with trio.fail_after(SECONDS_MAX):
        await pooler.DemoUpstream().serve(cast("trio.SocketStream", upstream))


@pytest.mark.parametrize("path", [f"{NATIVE}/models", f"{NATIVE}/responses", "/oauth/token", "/"])
def test_a_stranger_gets_nothing_from_the_upstream_of_the_demo(path: str) -> None:
    status, body = pooler.DemoUpstream().response("nobody", path.removeprefix(NATIVE))
    assert status == 401
    assert body["error"]["type"] == "refresh_token_invalidated"


def test_a_plan_of_the_demo_is_used_up_once_that_has_been_found_out() -> None:
    upstream = pooler.DemoUpstream()
    used = [upstream.windows("spent")[1].used_percent]
    assert upstream.response("spent", "/responses")[0] == 429
    used.append(upstream.windows("spent")[1].used_percent)
    assert used == [94, 100]
    assert upstream.response("revoked", "/responses")[0] == 401
    assert upstream.windows("revoked")[1].used_percent == 22


def test_the_demo_shows_only_what_a_person_should_act_on() -> None:
    demo = pooler.Demo(False, {})
    for level in ("info", "warning", "error"):
        for event in ("account", "login", "models"):
            demo.log(level, event, {"account": "well", "problem": "none\x1b[2J"})
    assert [line[10:] for line in demo.waiting] == [
        f"{level}: account well: its models are not known: none\\x1b[2J"
        for level in ("warning", "error")
    ]
