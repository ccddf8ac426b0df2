"""Proves that the command `pooler login` does so as a process, whatever is around it.

Method: the real program against the issuer on real sockets, with signals, a proxy, TLS, disks and
folders that are in the way, and next to a running pooler.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import trio

import pooler
from tests.support.codex_backend import CodexBackend, make_auth_file
from tests.support.device_logins import CODE_PATH, TOKEN_PATH, Asked, DevicePlay, Issuer, approving
from tests.support.outbound_proxies import Gate
from tests.support.paths import ROOT
from tests.support.server_process import (
    ENV,
    KEY,
    SECONDS_MAX,
    run_pooler,
    serving,
    started,
    status_of,
    write_config,
)
from tests.support.tls_upstreams import Authority

pytestmark: Final = pytest.mark.slow
Json = Any


class Stage:
    """An issuer on a socket, and a folder with a pools.json whose account `one` is to log in."""

    def __init__(self, folder: Path, issuer: Issuer, origin: str) -> None:
        self.folder = folder
        self.issuer = issuer
        self.origin = origin
        self.env = {"CODEX_REFRESH_TOKEN_URL_OVERRIDE": f"{origin}{TOKEN_PATH}"}
        self.path = folder / "accounts" / "one.json"
        self.output, self.errors = "", ""

    def config(self, **more: Json) -> Json:
        one = {
            "type": "codex",
            "auth_file": "accounts/one.json",
            "base_url": f"{self.origin}/backend-api/codex",
            "websocket": False,
        }
        return {
            "listen": "127.0.0.1:0",
            "accounts": {"one": {**one, **more.pop("one", {})}, **more.pop("accounts", {})},
            "pools": {"home": {"accounts": ["one"], "models": ["gpt-5.5"], "keys": {"k": KEY}}},
            **more,
        }

    async def log_in(self, *, interrupted_at: str = "", name: str = "one") -> int:
        """The exit code of `pooler login`; with SIGINT once it has printed that."""
        async with started("login", name, cwd=self.folder, env=self.env) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            while received := await process.stdout.receive_some():
                self.output += received.decode()
                if interrupted_at and interrupted_at in self.output:
                    process.send_signal(signal.SIGINT)
                    interrupted_at = ""
            while received := await process.stderr.receive_some():
                self.errors += received.decode()
            return await process.wait()

    @property
    def left(self) -> list[str]:
        """What there is in the folder of the logins."""
        return sorted(path.name for path in self.path.parent.glob("*")) + sorted(
            path.name for path in self.path.parent.glob(".*")
        )

    def saved(self) -> Json:
        return json.loads(self.path.read_bytes())["tokens"]


@asynccontextmanager
async def opened_stage(folder: Path, tls: Authority | None = None) -> AsyncIterator[Stage]:
    async with trio.open_nursery() as nursery:
        issuer = Issuer(CodexBackend())
        issuer.interval = "1"
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        listeners = [trio.SSLListener(listener, tls.context()) if tls else listener]
        await nursery.start(trio.serve_listeners, issuer.backend.serve, listeners)
        stage = Stage(folder, issuer, f"{'https' if tls else 'http'}://127.0.0.1:{port}")
        write_config(folder, stage.config())
        yield stage
        nursery.cancel_scope.cancel()


################################################################
# A WHOLE LOGIN
################################################################


async def test_a_login_is_made_and_serves_the_pooler_that_runs(tmp_path: Path) -> None:
    async with opened_stage(tmp_path) as stage:
        async with serving(tmp_path, stage.config(), stage.env) as server:
            warned = [line for line in server.lines if line["event"] == "login"]
            command = f"pooler login one --config {tmp_path / 'pools.json'}"
            assert warned[0]["problem"].endswith(f"does not exist; log in with: {command}")
            assert status_of(await server.ask()) == 503

            stage.issuer.on_poll = approving("acct-1", after=2, plan="pro")
            assert await stage.log_in() == 0, stage.errors
            assert status_of(await server.ask()) == 200

        assert stage.errors == ""
        warning, *lines = stage.output.splitlines()
        assert warning.startswith("warning: CODEX_REFRESH_TOKEN_URL_OVERRIDE is set: logins are")
        assert lines[0] == "To log in account one, open this page in any browser:"
        assert lines[2] == f"    {stage.origin}/codex/device"
        assert lines[6] == "    ABCD-00001"
        assert lines[-2] == (
            "Account one is logged in: acct-1@example.com, plan pro, account acct-1."
        )
        assert lines[-1].startswith("Saved in accounts/one.json; a running pooler will use it")
        assert not [word for word in stage.saved().values() if word in stage.output and "." in word]
        assert (stage.path.stat().st_mode, stage.path.parent.stat().st_mode) == (
            stat.S_IFREG | 0o600,
            stat.S_IFDIR | 0o700,
        )
        assert stage.left == ["one.json", "one.json.lock"]

        checked = run_pooler("check", cwd=tmp_path, **stage.env)
        assert "login OK: it can be read, refreshed and saved" in checked.stdout


async def test_a_login_can_be_made_anew_while_the_pooler_runs(tmp_path: Path) -> None:
    async with opened_stage(tmp_path) as stage:
        former = make_auth_file(stage.path, "acct-0")
        async with serving(tmp_path, stage.config(), stage.env) as server:
            assert status_of(await server.ask()) == 503  # the backend does not know it
            stage.issuer.on_poll = approving("acct-1")
            assert await stage.log_in() == 0, stage.errors
            assert status_of(await server.ask()) == 200
        words = "This is another ChatGPT account than before, which was: acct-0@example.com"
        assert words in stage.output
        assert former.access_token not in stage.path.read_text()


async def test_it_goes_through_the_proxy_and_trusts_the_accounts_authority(
    tmp_path: Path,
) -> None:
    authority, stranger = Authority(tmp_path, "ours"), Authority(tmp_path, "stranger")
    gate = Gate()
    try:
        async with opened_stage(tmp_path, authority) as stage:
            stage.issuer.on_poll = approving("acct-1")
            proxy = f"http://{gate.address}"
            write_config(tmp_path, stage.config(one={"ca_file": str(stranger.path)}, proxy=proxy))
            assert await stage.log_in() == 1
            words = f"pooler: {stage.origin} cannot be reached: certificate not trusted\n"
            assert stage.errors == words

            write_config(tmp_path, stage.config(one={"ca_file": str(authority.path)}, proxy=proxy))
            assert await stage.log_in() == 0, stage.errors
            address = stage.origin.removeprefix("https://")
            assert {head.split()[1].decode() for head in gate.heads} == {address}
            assert len(gate.heads) == 4  # refused, code, poll, tokens
            sent = b"".join(map(bytes, gate.sent[address]))
            assert b"client_id" not in sent
    finally:
        gate.close()


async def test_a_proxy_that_is_not_there_is_named(tmp_path: Path) -> None:
    async with opened_stage(tmp_path) as stage:
        stage.env["HTTPS_PROXY"] = "http://127.0.0.1:9"
        stage.issuer.plays.append(DevicePlay("code", 500))
        assert await stage.log_in() == 1
        assert "warning: HTTPS_PROXY is set but not used: a proxy is used only if" in stage.output

        stage.errors = ""
        stage.issuer.backend.seen.clear()
        write_config(tmp_path, stage.config(proxy="http://127.0.0.1:9"))
        assert await stage.log_in() == 1
        assert stage.errors == f"pooler: {stage.origin} cannot be reached: proxy unreachable\n"
        assert stage.issuer.backend.seen == []


################################################################
# CTRL-C, AND WORSE
################################################################


async def test_ctrl_c_while_it_waits_is_one_word(tmp_path: Path) -> None:
    async with opened_stage(tmp_path) as stage:
        assert await stage.log_in(interrupted_at="Ctrl-C to give up.") == 1
        assert stage.errors == "pooler: interrupted\n"
        assert stage.left == ["one.json.lock"]
        assert "logged in" not in stage.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("route", [CODE_PATH, TOKEN_PATH])
async def test_a_signal_while_the_issuer_is_asked(
    tmp_path: Path, route: str, number: signal.Signals
) -> None:
    """While the tokens come it is too late: the login is there, and says so."""
    async with opened_stage(tmp_path) as stage:
        plain = stage.issuer.backend.handlers["POST", route]
        asked, may_go_on = trio.Event(), trio.Event()

        async def hold(*of_request: Any) -> bool:  # noqa: ANN401 (as a handler)
            asked.set()
            await may_go_on.wait()
            return await plain(*of_request)

        stage.issuer.backend.handlers["POST", route] = hold
        stage.issuer.on_poll = approving("acct-1")
        async with started("login", "one", cwd=tmp_path, env=stage.env) as process:
            await asked.wait()
            process.send_signal(number)
            if route == TOKEN_PATH:
                process.send_signal(number)
                may_go_on.set()
            assert process.stderr is not None
            said = b""
            while received := await process.stderr.receive_some():
                said += received
            code = await process.wait()
        is_saved = route == TOKEN_PATH
        assert (code, said) == ((0, b"") if is_saved else (1, b"pooler: interrupted\n"))
        assert stage.left == ["one.json", "one.json.lock"] if is_saved else ["one.json.lock"]


KILLED: Final = textwrap.dedent("""
    import os, signal, sys
    import pooler
    step = int(sys.argv[1])
    count = 0
    def deadly(name):
        real = getattr(os, name)
        def call(*args, **options):
            global count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)
        return call
    real_save = pooler.save_file
    def save(*args):
        for name in ("unlink", "open", "fdopen", "fchmod", "fchown", "fsync", "rename", "close"):
            setattr(os, name, deadly(name))
        real_save(*args)
    pooler.save_file = save
    sys.exit(pooler.main(["login", "one"]))
""")


@pytest.mark.parametrize("has_former", [False, True])
async def test_a_kill_at_any_step_of_saving_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, has_former: bool
) -> None:
    async with opened_stage(tmp_path) as stage:
        stage.issuer.on_poll = approving("acct-1")
        former = b""
        for step in range(1, 40):
            stage.path.unlink(missing_ok=True)
            if has_former:
                make_auth_file(stage.path, "acct-0")
                former = stage.path.read_bytes()
            command = [sys.executable, "-c", KILLED, str(step)]
            env = ENV | stage.env | {"PYTHONPATH": str(ROOT)}
            with trio.fail_after(SECONDS_MAX):
                done = await trio.run_process(
                    command, capture_stdout=True, check=False, cwd=tmp_path, env=env
                )
            now = stage.path.read_bytes() if stage.path.exists() else b""
            assert now == former or json.loads(now)["tokens"]["account_id"] == "acct-1"
            if done.returncode == 0:
                break
            assert done.returncode == -signal.SIGKILL
        assert step > 5
        assert stage.left == ["one.json", "one.json.lock"]  # nor is anything of the dead there


################################################################
# FOLDERS AND DISKS
################################################################


async def test_a_disk_that_takes_no_more_is_noticed_before_anything_is_asked(
    tmp_path: Path,
) -> None:
    async with opened_stage(tmp_path) as stage:
        program = f"exec {sys.executable} {ROOT / 'pooler.py'} login one"
        command = f"unset ${{!COVERAGE_@}}; ulimit -f 8; {program}"
        with trio.fail_after(SECONDS_MAX):
            done = await trio.run_process(
                ["bash", "-c", command], capture_stdout=True, capture_stderr=True, check=False,
                cwd=tmp_path, env=ENV | stage.env,
            )  # fmt: skip
        assert done.returncode == 1
        assert b"raise the file size limit (ulimit -f)" in done.stderr
        assert stage.issuer.backend.seen == []
        assert stage.left == ["one.json.lock"]


LOGIN_WITHOUT_RIGHTS: Final = textwrap.dedent("""
    import os, sys
    import pooler
    b"x".decode("utf-8-sig")  # the user below may not be able to read Python's own files
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    sys.exit(pooler.main(["login", "one"]))
""")


@pytest.mark.parametrize("mode", [0o500, 0o555])
async def test_a_folder_that_cannot_be_written_is_noticed_before_anything_is_asked(
    tmp_path_factory: pytest.TempPathFactory, mode: int
) -> None:
    folder = tmp_path_factory.mktemp("shut")
    async with opened_stage(folder) as stage:
        (folder / "pools.json").chmod(0o644)
        stage.path.parent.mkdir()
        stage.path.parent.chmod(mode)
        for above in folder.parents:
            if str(above).startswith("/tmp/pytest"):
                above.chmod(0o755)
        folder.chmod(0o755)
        # A measurement of coverage would complain that it cannot be saved.
        plain = {name: value for name, value in ENV.items() if not name.startswith("COVERAGE_")}
        env = plain | stage.env | {"PYTHONPATH": str(ROOT)}
        with trio.fail_after(SECONDS_MAX):
            done = await trio.run_process(
                [sys.executable, "-c", LOGIN_WITHOUT_RIGHTS], capture_stdout=True,
                capture_stderr=True, check=False, cwd=folder, env=env,
            )  # fmt: skip
        stage.path.parent.chmod(0o700)
        assert done.returncode == 1
        words = f"pooler: accounts belongs to another user, whose id is {os.geteuid()}; run this"
        if os.geteuid() != 0:  # then it is the folder of whoever runs the tests
            words = "pooler: accounts/one.json is in a folder that cannot be written to"
        assert done.stderr.decode().startswith(words)
        assert len(done.stderr.splitlines()) == 1
        assert stage.issuer.backend.seen == []


async def test_another_pools_json_has_its_logins_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "it's my pool"
    folder.mkdir()
    async with opened_stage(folder) as stage:
        stage.issuer.on_poll = approving("acct-1")
        config = f"{folder.name}/pools.json"
        async with started("login", "one", "--config", config, cwd=tmp_path, env=stage.env) as run:
            assert await run.wait() == 0
        assert stage.left == ["one.json", "one.json.lock"]

        (stage.path).unlink()
        told = run_pooler("check", "--config", config, cwd=tmp_path, **stage.env).stdout
        command = "log in with: pooler login one --config 'it'\"'\"'s my pool/pools.json'"
        assert f"it's my pool/accounts/one.json does not exist; {command}" in told


def test_root_leaves_what_it_makes_to_the_owner_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the service, which runs as that user, could not read its login."""
    given: list[tuple[str, int]] = []
    plain_stat = os.stat

    def of_service(path: Any, **options: Any) -> os.stat_result:  # noqa: ANN401 (as os.stat)
        found = plain_stat(path, **options)
        is_there = Path(path) == tmp_path or given  # folders that were made follow their owner
        return os.stat_result((*found[:4], 1234 if is_there else 0, *found[5:]))

    def give(descriptor: int, user: int, _group: int) -> None:
        name = next((one.name for one in made if is_open_at(descriptor, one)), "")
        given.append((name, user))

    def is_open_at(descriptor: int, one: Path) -> bool:
        return one.exists() and plain_stat(one).st_ino == plain_fstat(descriptor).st_ino

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "stat", of_service)

    def of_root(descriptor: int) -> os.stat_result:
        found = plain_fstat(descriptor)
        return os.stat_result((*found[:4], 0, *found[5:]))

    plain_fstat = os.fstat
    monkeypatch.setattr(os, "fstat", of_root)
    monkeypatch.setattr(os, "fchown", give)
    path = tmp_path / "accounts" / "of-mine" / "one.json"
    made = path.parents[:2]
    pooler.prepare_login(path)
    assert given[:2] == [("accounts", 1234), ("of-mine", 1234)]
    pooler.save_over(path, b"{}", None)
    assert given[-1] == ("", 1234)


################################################################
# WRONG WORDS
################################################################

ACCOUNTS: Final[Json] = {
    "second": {"type": "codex", "auth_file": "accounts/second.json"},
    "platform": {"type": "openai", "api_key": "{env:NOT_SET_ANYWHERE}"},
}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("onr", "'onr' is not there; did you mean 'one'?"),
        ("x", "'x' is not there; known: one, second"),
        ("platform", "'platform' is not of type codex, and needs no login; known: one, second"),
        ("", "'' is not there; known: one, second"),
        ("\x1b[2J", r"'\x1b[2J' is not there; known: one, second"),
    ],
)
async def test_a_wrong_name_says_which_there_are(tmp_path: Path, name: str, words: str) -> None:
    async with opened_stage(tmp_path) as stage:
        write_config(tmp_path, stage.config(accounts=ACCOUNTS))
        assert await stage.log_in(name=name) == 1
        assert stage.errors == f"pooler: accounts: {words}\n"
        assert stage.output == ""


async def test_what_else_is_wrong_in_pools_json_is_in_no_login_s_way(tmp_path: Path) -> None:
    """At night the shell has not the variables of the service, and an edit may be half done."""
    async with opened_stage(tmp_path) as stage:
        stage.issuer.on_poll = approving("acct-1")
        more = {"accounts": ACCOUNTS, "operators": {"me": "short"}, "lisen": 1}
        write_config(tmp_path, stage.config(**more))
        assert await stage.log_in() == 0, stage.errors


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "pools.json: No such file"),
        ("{", "pools.json: not valid JSON"),
        ("[]", "pools.json"),
        ('{"accounts": {"one": {"type": "codex"}}}', "accounts.one.auth_file"),
        ('{"accounts": {"one": {"type": "codex", "auth_file": "a", "x": 1}}}', "accounts.one.x"),
    ],
)
def test_a_file_that_cannot_be_read_is_reported_as_by_check(
    tmp_path: Path, text: str | None, words: str
) -> None:
    if text is not None:
        write_config(tmp_path, text)
    done = run_pooler("login", "one", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("url", ["http://auth.example/oauth/token", "ftp://x", "https://"])
def test_nothing_is_sent_in_the_clear(tmp_path: Path, url: str) -> None:
    one = {"type": "codex", "auth_file": "accounts/one.json"}
    write_config(tmp_path, {"accounts": {"one": one}})
    done = run_pooler("login", "one", cwd=tmp_path, CODEX_REFRESH_TOKEN_URL_OVERRIDE=url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("pooler: CODEX_REFRESH_TOKEN_URL_OVERRIDE: must ")


def test_a_login_needs_a_name(tmp_path: Path) -> None:
    done = run_pooler("login", cwd=tmp_path)
    assert done.returncode == 2
    assert "the following arguments are required: account" in done.stderr


async def test_without_standard_streams_it_still_logs_in(tmp_path: Path) -> None:
    async with opened_stage(tmp_path) as stage:
        stage.issuer.on_poll = approving("acct-1")
        command = f"exec {sys.executable} {ROOT / 'pooler.py'} login one <&- >&- 2>&-"
        with trio.fail_after(SECONDS_MAX):
            done = await trio.run_process(
                ["bash", "-c", command], check=False, cwd=tmp_path, env=ENV | stage.env
            )
        assert done.returncode == 0
        assert stage.saved()["account_id"] == "acct-1"


async def test_the_same_person_twice_is_said(tmp_path: Path) -> None:
    async with opened_stage(tmp_path) as stage:
        write_config(tmp_path, stage.config(accounts=ACCOUNTS))
        make_auth_file(tmp_path / "accounts" / "second.json", "acct-1")
        stage.issuer.on_poll = approving("acct-1")
        assert await stage.log_in() == 0
        assert "Account second is the same one" in stage.output


async def test_a_refusal_is_one_line(tmp_path: Path) -> None:
    def deny(asked: Asked) -> None:
        asked.is_denied = True

    async with opened_stage(tmp_path) as stage:
        stage.issuer.on_poll = deny
        assert await stage.log_in() == 1
        assert stage.errors == "pooler: the login was denied in the browser\n"
        stage.issuer.plays.append(DevicePlay("code", 404))
        stage.errors = ""
        assert await stage.log_in() == 1
        assert stage.errors.count("\n") == 1
        assert (
            "turn on device code authorization for Codex in ChatGPT, Settings, Security"
            in stage.errors
        )
        assert "move its ~/.codex/auth.json to accounts/one.json" in stage.errors


def test_its_help_says_what_it_does() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "pooler.py", "help", "login"],
        check=True, capture_output=True, text=True, env=ENV,
    )  # fmt: skip
    assert "usage: pooler login [-h] [--config FILE] account" in done.stdout
