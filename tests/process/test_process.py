"""Proves that the real process does what README.md says: commands, signals, sockets, files, stderr.

Method: `python pooler.py` as a subprocess with real sockets.  Its upstream is the small server
below, which holds an answer back until a test lets it go on.  Nothing sleeps: a test waits for a
log line, for bytes, or for the end of the process, and everything within `SECONDS_MAX`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
import trio
import trustme

from tests.support.paths import POOLER
from tests.support.server_process import (
    API_KEY,
    BEGIN,
    ENV,
    HEALTH,
    KEY,
    SECONDS_MAX,
    SILENT,
    SLOW,
    WHOLE,
    ServerProcess,
    Upstream,
    code_of,
    describe_server,
    read_all,
    read_until,
    run_pooler,
    serving,
    start_upstream,
    started,
    status_of,
    write_config,
)

OTHER_KEY: Final = "key-of-another-0123456789"


################################################################
# THE UPSTREAM
################################################################


@pytest.fixture
async def upstream(nursery: trio.Nursery) -> Upstream:
    return await start_upstream(nursery)


################################################################
# THE PROCESS
################################################################


################################################################
# COMMANDS
################################################################


def test_the_demo_streams_a_response_with_only_h11_and_trio_installed(tmp_path: Path) -> None:
    for name in ("mcp", "trio_websocket", "wsproto"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('this is not installed')\n")
    done = run_pooler("demo", "--once", "--port", "0", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Hello! This response was streamed through codex-pooler" in done.stdout


@pytest.mark.slow
async def test_the_demo_prints_a_configuration_that_works_until_ctrl_c() -> None:
    async with started("demo", "--port", "0") as process:
        assert process.stdout is not None
        shown = (await read_until(process.stdout, b"Ctrl-C")).decode()
        config, _ = json.JSONDecoder().raw_decode(shown, shown.index("{"))
        options = config["provider"]["openai"]["options"]
        assert options["apiKey"] == "{env:CODEX_POOLER_API_KEY}"
        key = re.search(r"CODEX_POOLER_API_KEY=(\S+)", shown)
        assert key is not None
        pooler = ServerProcess(process)
        pooler.address = options["baseURL"].removeprefix("http://").removesuffix("/v1")
        answer = await pooler.ask(key=key[1])
        assert status_of(answer) == 200
        assert b"response.completed" in answer
        pooler.process.send_signal(signal.SIGINT)
        assert await pooler.wait_exit() == 0
        assert pooler.lines == []


def test_a_valid_configuration_is_checked_without_showing_secrets(tmp_path: Path) -> None:
    config = describe_server(None)
    config["pools"]["home"]["keys"]["ci"] = {"key": "{env:CI_KEY}"}
    path = write_config(tmp_path, config)
    done = run_pooler("check", "--config", str(path), CI_KEY=OTHER_KEY)
    assert (done.returncode, done.stderr) == (0, "")
    assert "one" in done.stdout
    assert not [secret for secret in (KEY, OTHER_KEY, API_KEY) if secret in done.stdout]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_bad_configuration_is_refused_with_all_that_is_wrong(
    command: str, tmp_path: Path
) -> None:
    config = describe_server(None, listne="127.0.0.1:0")
    config["accounts"]["one"]["priority"] = "first"
    config["accounts"]["two"] = {"type": "openai", "api_key": "{env:NOT_SET}"}
    config["pools"]["home"]["keys"]["short"] = "short-secret"
    path = write_config(tmp_path, config)
    done = run_pooler(command, "--config", str(path))
    assert (done.returncode, done.stdout) == (1, "")
    for place in ("listne", "accounts.one.priority", "accounts.two.api_key", "home.keys.short"):
        assert place in done.stderr
    assert "'listen'" in done.stderr
    assert not [text for text in (KEY, API_KEY, "short-secret", "Traceback") if text in done.stderr]


@pytest.mark.slow
@pytest.mark.parametrize(("line", "prefix"), [("key", "cp-"), ("key --operator", "cpo-")])
def test_a_new_key_comes_with_its_digest(line: str, prefix: str) -> None:
    done = run_pooler(*line.split())
    assert (done.returncode, done.stderr) == (0, "")
    secret = next(word for word in done.stdout.split() if word.startswith(prefix))
    assert f'"sha256:{hashlib.sha256(secret.encode()).hexdigest()}"' in done.stdout
    assert secret not in run_pooler(*line.split()).stdout


WRONG: Final = """fly, serve --fast, serve --port 0, check --config, key extra, key --once,
demo --port http, demo --port 65536, demo --port -1"""


@pytest.mark.slow
@pytest.mark.parametrize("line", WRONG.replace("\n", " ").split(", "))
def test_wrong_usage_exits_with_2(line: str, tmp_path: Path) -> None:
    done = run_pooler(*line.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert "usage: pooler" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_version_is_printed() -> None:
    assert re.fullmatch(r"codex-pooler \d+\.\d+\.\d+\n", run_pooler("--version").stdout)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["serve"], ["check"]], ids=["default", "serve", "check"])
def test_a_missing_configuration_says_where_to_start(arguments: list[str], tmp_path: Path) -> None:
    done = run_pooler(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "write it with `pooler init`" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve", "demo"])
def test_a_port_in_use_is_named(command: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        write_config(tmp_path, describe_server(None, listen=f"127.0.0.1:{port}"))
        arguments = [command, "--port", port] if command == "demo" else [command]
        done = run_pooler(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    hint = (
        "use --port 0 for a free port" if command == "demo" else "stop it, or set another address"
    )
    assert f": {os.strerror(errno.EADDRINUSE)} by another program (" in done.stderr
    assert f"); {hint}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
async def test_another_pooler_on_the_port_is_recognized(tmp_path: Path) -> None:
    async with serving(tmp_path, describe_server(None)) as first:
        second = tmp_path / "second"
        second.mkdir()
        write_config(second, describe_server(None, listen=first.address))
        done = await trio.to_thread.run_sync(lambda: run_pooler(cwd=second))
    assert done.returncode == 1
    assert "by another codex-pooler; stop it, or set another address in listen\n" in done.stderr


UNREADABLE: Final[dict[str, Callable[[Path], object]]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a loop": lambda path: path.symlink_to(path),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", UNREADABLE)
def test_what_is_no_readable_file_is_one_line(case: str, tmp_path: Path) -> None:
    UNREADABLE[case](tmp_path / "pools.json")
    done = run_pooler(cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "name a file with --config" in done.stderr
    assert len(done.stderr.splitlines()) == 1


################################################################
# SERVING AND STOPPING
################################################################


@pytest.mark.slow
@pytest.mark.parametrize("line", ["serve", "serve --config pools.json", "--config pools.json", ""])
async def test_serve_is_the_default_and_sigterm_ends_it_at_once(
    line: str, upstream: Upstream, tmp_path: Path
) -> None:
    write_config(tmp_path, describe_server(upstream))
    async with started(*line.split(), cwd=tmp_path) as process:
        pooler = ServerProcess(process)
        pooler.address = (await pooler.wait_line("listening"))["address"]
        assert status_of(await pooler.get("/healthz")) == 200
        assert status_of(await pooler.get("/readyz")) == 200
        answer = await pooler.ask()
        assert status_of(answer) == 200
        assert BEGIN.partition(b"\n\n")[0] in answer
        assert b"response.completed" in answer
        assert status_of(await pooler.ask(key=OTHER_KEY)) == 401
        async with await pooler.connect():  # an idle connection keeps nobody waiting
            began_at = trio.current_time()
            pooler.process.send_signal(signal.SIGTERM)
            assert await pooler.wait_exit() == 0
            assert trio.current_time() - began_at < 3
        log = json.dumps(pooler.lines)
        assert not [text for text in (KEY, OTHER_KEY, API_KEY, WHOLE, "warning") if text in log]


@pytest.mark.slow
async def test_a_signal_right_after_the_start_is_obeyed(tmp_path: Path) -> None:
    async with serving(tmp_path, describe_server(None)):
        pass  # which sends SIGTERM, and wants 0, as soon as the log says "listening"


async def wait_refused(pooler: ServerProcess) -> None:
    """Wait until no new connection is accepted."""
    with contextlib.suppress(OSError):
        while True:
            await (await pooler.connect()).aclose()


async def test_sigterm_lets_a_stream_end_by_itself(upstream: Upstream, tmp_path: Path) -> None:
    config = describe_server(upstream)
    async with serving(tmp_path, config) as pooler, await pooler.post(SLOW) as stream:
        await read_until(stream, b"one")
        pooler.process.send_signal(signal.SIGTERM)
        await pooler.wait_line("draining")
        await wait_refused(pooler)
        upstream.may_end.set()
        rest = await read_all(stream)
        assert b"response.completed" in rest
        assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert await pooler.wait_exit() == 0


@pytest.mark.slow
async def test_sigterm_drops_no_request_that_has_arrived(
    upstream: Upstream, tmp_path: Path
) -> None:
    """On a kept connection, and on new ones which nobody has accepted."""
    async with serving(tmp_path, describe_server(upstream)) as pooler:
        kept = await pooler.connect()
        await kept.send_all(HEALTH)
        await read_until(kept, b"ok")
        pooler.process.send_signal(signal.SIGSTOP)
        await kept.send_all(HEALTH)
        new = [await pooler.post(WHOLE) for _ in range(20)]
        pooler.process.send_signal(signal.SIGTERM)
        pooler.process.send_signal(signal.SIGCONT)

        answers = []
        for stream in (kept, *new):
            async with stream:
                answers.append(await read_all(stream))
        assert [status_of(answer) for answer in answers] == [200] * 21
        assert await pooler.wait_exit() == 0


@pytest.mark.slow
async def test_what_outlives_the_drain_gets_an_error(upstream: Upstream, tmp_path: Path) -> None:
    config = describe_server(upstream, limits={"drain_seconds_max": 0.2})
    async with (
        serving(tmp_path, config) as pooler,
        await pooler.post(SLOW) as stream,
        await pooler.post(SILENT) as waiting,
    ):
        await read_until(stream, b"one")
        for _ in range(2):
            await upstream.asked.receive()
        pooler.process.send_signal(signal.SIGTERM)
        rest = await read_all(stream)
        failed = json.loads(rest.partition(b"data: ")[2].partition(b"\n")[0])
        assert (failed["type"], failed["sequence_number"]) == ("response.failed", 2)
        assert failed["response"]["error"]["code"] == "server_stopping"
        assert rest.endswith(b"\r\n0\r\n\r\n")
        answer = await read_all(waiting)
        assert (status_of(answer), code_of(answer)) == (503, "server_stopping")
        assert await pooler.wait_exit() == 0


@pytest.mark.slow
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_a_second_signal_ends_it_at_once(
    second: signal.Signals, upstream: Upstream, tmp_path: Path
) -> None:
    config = describe_server(upstream)
    async with serving(tmp_path, config) as pooler, await pooler.post(SLOW) as stream:
        await read_until(stream, b"one")
        pooler.process.send_signal(signal.SIGINT)
        await pooler.wait_line("draining")
        began_at = trio.current_time()
        pooler.process.send_signal(second)
        assert await pooler.wait_exit() == 0
        assert trio.current_time() - began_at < 3  # the drain would take 30


@pytest.mark.parametrize(
    ("text", "is_stream"),
    [(SLOW, True), (SILENT, True), (SILENT, False)],
    ids=["mid-stream", "before an answer", "not streamed"],
)
async def test_a_hang_up_reaches_the_upstream_within_a_second(
    text: str, is_stream: bool, upstream: Upstream, tmp_path: Path
) -> None:
    async with (
        serving(tmp_path, describe_server(upstream)) as pooler,
        await pooler.post(text, stream=is_stream) as stream,
    ):
        await upstream.asked.receive()
        if text == SLOW:
            await read_until(stream, b"one")
        left_at = trio.current_time()
        await stream.aclose()
        assert await upstream.gone.receive() - left_at < 1
        assert (await pooler.wait_line("request"))["code"] == "client_gone"


def descriptor_count(pid: int) -> int:
    """The process's open descriptors; 0 where the system does not show them."""
    return len(os.listdir(f"/proc/{pid}/fd")) if os.path.isdir("/proc/self/fd") else 0


async def abort_a_stream(pooler: ServerProcess, is_rude: bool) -> None:
    """Leave in the middle of an answer, by an orderly end or by a reset."""
    async with await pooler.post(SLOW) as stream:
        await read_until(stream, b"one")
        if is_rude:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


@pytest.mark.slow
async def test_aborted_streams_leave_no_descriptor_behind(
    upstream: Upstream, tmp_path: Path
) -> None:
    async with (
        serving(tmp_path, describe_server(upstream)) as pooler,
        await pooler.connect() as line,
    ):
        await pooler.ask()
        await line.send_all(HEALTH)  # on a line that stays: another one would be counted, too
        await read_until(line, b'"ok"}')
        before = descriptor_count(pooler.process.pid)
        async with trio.open_nursery() as nursery:
            for index in range(50):
                nursery.start_soon(abort_a_stream, pooler, index % 2 == 0)
        _ = [await upstream.gone.receive() for _ in range(50)]
        while descriptor_count(pooler.process.pid) > before:  # bounded by SECONDS_MAX
            await line.send_all(HEALTH)
            await read_until(line, b'"ok"}')
        upstream.may_end.set()
        assert b"response.completed" in await pooler.ask(SLOW)


################################################################
# RELOADING
################################################################


async def reload(
    pooler: ServerProcess, folder: Path, config: object, name: str = "reloaded"
) -> str:
    """Write another pools.json, send SIGHUP, and wait for the log's line; its problem, if any."""
    write_config(folder, config)
    pooler.process.send_signal(signal.SIGHUP)
    return str((await pooler.wait_line(name)).get("problem"))


async def test_a_reload_changes_keys_while_streams_go_on(
    upstream: Upstream, tmp_path: Path
) -> None:
    config = describe_server(upstream)
    async with serving(tmp_path, config) as pooler, await pooler.post(SLOW) as stream:
        await read_until(stream, b"one")
        config["pools"]["home"]["keys"] = {"phone": OTHER_KEY}
        config["listen"] = "127.0.0.1:4000"
        assert "restart" in await reload(pooler, tmp_path, config, "reload")
        await pooler.wait_line("reloaded")
        assert status_of(await pooler.ask(key=OTHER_KEY)) == 200
        refused = await pooler.ask()
        assert (status_of(refused), code_of(refused)) == (401, "invalid_api_key")
        upstream.may_end.set()
        assert b"response.completed" in await read_all(stream)


@pytest.mark.slow
async def test_a_broken_file_changes_nothing_and_says_why(
    upstream: Upstream, tmp_path: Path
) -> None:
    name = "reload refused"
    async with serving(tmp_path, describe_server(upstream)) as pooler:
        assert "not valid JSON" in await reload(pooler, tmp_path, '{"accounts": ', name)
        assert "'pools'" in await reload(pooler, tmp_path, describe_server(upstream, pool={}), name)
        (tmp_path / "pools.json").unlink()
        pooler.process.send_signal(signal.SIGHUP)
        assert os.strerror(errno.ENOENT) in (await pooler.wait_line(name))["problem"]
        assert status_of(await pooler.ask()) == 200


@pytest.mark.slow
async def test_a_reload_clears_cooldowns(upstream: Upstream, tmp_path: Path) -> None:
    async with serving(tmp_path, describe_server(upstream)) as pooler:
        upstream.is_limited = True
        for _ in range(2):  # the second is not sent
            answer = await pooler.ask()
            assert (status_of(answer), code_of(answer)) == (429, "usage_limit_reached")
        assert len(upstream.heads) == 1
        upstream.is_limited = False
        await reload(pooler, tmp_path, describe_server(upstream))
        assert status_of(await pooler.ask()) == 200


@pytest.mark.slow
async def test_a_reload_reads_secret_files_again(upstream: Upstream, tmp_path: Path) -> None:
    config = describe_server(upstream)
    config["accounts"]["one"]["api_key"] = "{file:account.key}"
    config["pools"]["home"]["keys"] = {"laptop": "{file:laptop.key}"}
    (tmp_path / "account.key").write_text(f"{API_KEY}\nthe second line is not read\n")
    (tmp_path / "laptop.key").write_text(f"{KEY}\n")
    async with serving(tmp_path, config) as pooler:
        assert status_of(await pooler.ask()) == 200
        assert f"Bearer {API_KEY}\r\n".encode() in upstream.heads[-1] + b"\r\n"
        (tmp_path / "account.key").write_text("rotated-account-secret\n")
        (tmp_path / "laptop.key").write_text(f"{OTHER_KEY}\n")
        await reload(pooler, tmp_path, config)
        assert status_of(await pooler.ask()) == 401
        assert status_of(await pooler.ask(key=OTHER_KEY)) == 200
        assert b"Bearer rotated-account-secret\r\n" in upstream.heads[-1] + b"\r\n"


################################################################
# SOCKETS
################################################################


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for a unix socket's 100 bytes."""
    with tempfile.TemporaryDirectory(prefix="cp") as folder:
        yield Path(folder)


@pytest.mark.slow
async def test_a_unix_socket_is_private_and_replaces_a_stale_one(
    upstream: Upstream, short_folder: Path
) -> None:
    path = short_folder / "p.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    config = describe_server(upstream, listen=f"unix:{path}")
    async with serving(short_folder, config) as pooler:
        assert pooler.address == f"unix:{path}"
        mode = path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o660
        assert status_of(await pooler.ask()) == 200
        second = await trio.to_thread.run_sync(lambda: run_pooler("serve", cwd=short_folder))
        assert second.returncode == 1
        assert f"unix:{path}" in second.stderr
        assert status_of(await pooler.ask()) == 200


@pytest.mark.slow
def test_a_file_in_the_place_of_a_unix_socket_stays(short_folder: Path) -> None:
    path = short_folder / "p.sock"
    path.write_text("a letter")
    write_config(short_folder, describe_server(None, listen=f"unix:{path}"))
    done = run_pooler("serve", cwd=short_folder)
    assert done.returncode == 1
    assert f"unix:{path}" in done.stderr
    assert path.read_text() == "a letter"


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.slow
async def test_all_listeners_serve_the_same(upstream: Upstream, short_folder: Path) -> None:
    listen = ["127.0.0.1:0", f"unix:{short_folder}/p.sock", *["[::1]:0"] * has_ipv6()]
    async with serving(short_folder, describe_server(upstream, listen=listen)) as pooler:
        for text in listen:
            assert pooler.address.strip("[").startswith(text.strip("[").partition("]")[0][:9])
            assert status_of(await pooler.ask()) == 200
            if text is not listen[-1]:
                pooler.address = (await pooler.wait_line("listening"))["address"]


@pytest.mark.slow
@pytest.mark.parametrize("is_known", [True, False], ids=["known", "unknown"])
async def test_a_private_upstream_is_believed_only_with_its_ca_file(
    is_known: bool, nursery: trio.Nursery, tmp_path: Path
) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    upstream = await start_upstream(nursery, context)
    config = describe_server(upstream)
    account = config["accounts"]["one"]
    account["base_url"] = f"https://localhost:{upstream.port}/v1"
    if is_known:
        account["ca_file"] = "ca.pem"
    async with serving(tmp_path, config) as pooler:
        answer = await pooler.ask()
        if is_known:
            assert b"response.completed" in answer
        else:
            assert (status_of(answer), code_of(answer)) == (502, "upstream_unreachable")
            assert upstream.heads == []


@pytest.mark.slow
@pytest.mark.parametrize("line", ["key", "check", "demo --port 0"])
def test_a_reader_that_goes_away_ends_a_command_in_silence(line: str, tmp_path: Path) -> None:
    write_config(tmp_path, describe_server(None))
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as output:
        done = subprocess.run(
            [sys.executable, POOLER, *line.split()],
            env=ENV,
            stdout=output,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            timeout=SECONDS_MAX,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.slow
@pytest.mark.parametrize(("text", "status"), [(SLOW, 200), (SILENT, None)])
async def test_what_a_second_signal_cuts_is_not_recorded_as_well(
    nursery: trio.Nursery, tmp_path: Path, text: str, status: int | None
) -> None:
    upstream = await start_upstream(nursery)
    async with (
        serving(tmp_path, describe_server(upstream)) as server,
        await server.post(text) as stream,
    ):
        await upstream.asked.receive()
        if text == SLOW:
            await read_until(stream, b"one")
        server.process.send_signal(signal.SIGINT)
        await server.wait_line("draining")
        server.process.send_signal(signal.SIGINT)
        assert await server.wait_exit() == 0
    [line] = [line for line in server.lines if line["event"] == "request"]
    assert (line["status"], line["code"]) == (status, "server_stopping")
