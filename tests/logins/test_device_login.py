"""Proves that `pooler login` makes a login that serves, or says why not and leaves nothing behind.

Method: the flow in virtual time and in memory, against an issuer that is strict, slow, absent or
wrong; and the real process, with a real issuer's sockets, signals, disks and a running pooler.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock

import pooler
from tests.support.codex_backend import make_auth_file
from tests.support.codex_turns import encode_part, error_body
from tests.support.device_logins import (
    ESCAPE,
    WALL,
    Asked,
    Desk,
    DevicePlay,
    approving,
    iso,
    opened_device_desk,
)
from tests.support.logins import locked_by_another

Json = Any
MINUTES: Final = 60.0


################################################################
# A LOGIN
################################################################


async def test_a_login_is_made_as_codex_cli_writes_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with opened_device_desk(tmp_path) as desk:
        desk.issuer.on_poll = approving("acct-1", after=3)
        saved = await desk.run()
        assert list(saved) == ["auth_mode", "OPENAI_API_KEY", "tokens", "last_refresh"]
        assert (saved["auth_mode"], saved["OPENAI_API_KEY"]) == ("chatgpt", None)
        tokens = saved["tokens"]
        assert set(tokens) == {"id_token", "access_token", "refresh_token", "account_id"}
        assert tokens["account_id"] == "acct-1"
        assert saved["last_refresh"].endswith("Z")
        assert desk.issuer.backend.logins[tokens["access_token"]].account_id == "acct-1"

        modes = [stat.S_IMODE(path.stat().st_mode) for path in (desk.path.parent, desk.path)]
        assert modes == [0o700, 0o600]
        assert desk.left == ["one.json", "one.json.lock"]
        assert desk.issuer.times == [5, 10, 15]


async def test_a_person_is_shown_the_page_the_code_and_the_time(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with opened_device_desk(tmp_path) as desk:
        desk.issuer.on_poll = approving("acct-1")
        await desk.run()
        assert "    http://127.0.0.1:9/codex/device" in desk.shown
        assert "    ABCD-00001" in desk.shown
        assert any("within 15 minutes" in line for line in desk.shown)
        shown = "\n".join(desk.shown)
        secrets = [*desk.issuer.grants, *desk.issuer.backend.logins, "deviceauth_1", "verifier"]
        assert not [secret for secret in secrets if secret in shown]


@pytest.mark.parametrize(
    ("interval", "seconds"),
    [("7", 7), (7, 7), (2.5, 2.5), (None, 5), ("x", 5), (0, 5), ("-3", 5), (61, 5), ("nan", 5),
     (10**400, 5), ([], 5), (True, 1)],
)  # fmt: skip
async def test_it_asks_as_often_as_it_is_told_within_bounds(
    tmp_path: Path, autojump_clock: MockClock, interval: Json, seconds: float
) -> None:
    async with opened_device_desk(tmp_path) as desk:
        desk.issuer.interval = interval
        desk.issuer.code_field = "usercode"
        desk.issuer.on_poll = approving("acct-1", after=2)
        await desk.run()
        assert desk.issuer.times == [seconds, 2 * seconds]


PENDING_ANSWERS: Final[dict[str, DevicePlay]] = {
    "403 with its code": DevicePlay(
        "poll", 403, error_body("deviceauth_authorization_pending", "x")
    ),
    "403 not known yet": DevicePlay(
        "poll", 403, error_body("deviceauth_authorization_unknown", "x")
    ),
    "400 as a text": DevicePlay("poll", 400, {"error": "authorization_pending"}),
    "404 without a word": DevicePlay("poll", 404, b""),
    "403 with another code": DevicePlay("poll", 403, error_body("whatever", "x")),
    "404 detail": DevicePlay("poll", 404, {"detail": "Not Found"}),
}


@pytest.mark.parametrize("name", PENDING_ANSWERS)
async def test_whatever_means_pending_is_waited_out(
    tmp_path: Path, autojump_clock: MockClock, name: str
) -> None:
    async with opened_device_desk(tmp_path) as desk:
        desk.issuer.plays.append(PENDING_ANSWERS[name])
        desk.issuer.on_poll = approving("acct-1", after=2)
        await desk.run()
        assert desk.issuer.times == [5, 10]
        assert not [line for line in desk.shown if "trying again" in line]


@pytest.mark.parametrize(
    "play",
    [
        DevicePlay("poll", 400, {"error": "slow_down"}),
        DevicePlay("poll", 403, error_body("deviceauth_slow_down", "x")),
        DevicePlay("poll", 429, b""),
    ],
)
async def test_slow_down_adds_to_every_later_pause(
    tmp_path: Path, autojump_clock: MockClock, play: DevicePlay
) -> None:
    async with opened_device_desk(tmp_path) as desk:
        desk.issuer.plays += [play, play]
        desk.issuer.on_poll = approving("acct-1", after=4)
        await desk.run()
        assert desk.issuer.times == [5, 15, 30, 45]


async def test_no_pause_is_longer_than_a_minute(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with opened_device_desk(tmp_path) as desk:
        desk.issuer.plays.append(DevicePlay("poll", 400, {"error": "slow_down"}, count=99))
        assert "nobody has entered the code in time" in await desk.refused()
        pauses = [later - at for at, later in itertools.pairwise(desk.issuer.times)]
        assert max(pauses) == 60


################################################################
# NO LOGIN
################################################################


@pytest.mark.parametrize(
    ("seconds", "waited"),
    [(None, 900), (600, 600), (60, 60), (59, 900), (-3600, 900), (901, 900), (10**9, 900)],
)
async def test_a_code_expires_when_the_issuer_says_within_bounds(
    tmp_path: Path, autojump_clock: MockClock, seconds: float | None, waited: float
) -> None:
    async with opened_device_desk(tmp_path) as desk:
        if seconds is not None:
            desk.issuer.expires_at = iso(desk.unix_now() + seconds)
        assert await desk.refused() == "nobody has entered the code in time; start again"
        assert trio.current_time() == waited
        assert f"within {waited / 60:.0f} minutes" in "\n".join(desk.shown)


FINAL_ANSWERS: Final[dict[str, tuple[DevicePlay, str]]] = {
    "denied": (DevicePlay("poll", 403, error_body("access_denied", "x")), "was denied"),
    "declined": (DevicePlay("poll", 403, error_body("deviceauth_declined", "x")), "was denied"),
    "expired": (DevicePlay("poll", 400, {"error": "expired_token"}), "code has expired"),
    "expired, theirs": (DevicePlay("poll", 403, error_body("deviceauth_expired", "x")), "expired"),
    "refused": (DevicePlay("poll", 400, {"error": "invalid_client"}), "400 invalid_client; start"),
    "unauthorized": (DevicePlay("poll", 401, b""), "401; start again, or run `codex login`"),
    "redirect": (DevicePlay("poll", 302, b""), "returned 302"),
    "escapes": (DevicePlay("poll", 400, {"error": ESCAPE}), "returned 400; start again"),
    "used code": (DevicePlay("token", 400, {"error": "invalid_grant"}), "400 invalid_grant; start"),
    "no token": (DevicePlay("token", 200, {"access_token": 1}), "returned 200; start again"),
    "token page": (DevicePlay("token", 403, WALL), "sent a web page (403)"),
    "not enabled": (DevicePlay("code", 404, b""), "turn on device code authorization"),
    "not enabled, copy": (DevicePlay("code", 404, {"detail": "x"}), "move its ~/.codex/auth"),
    "wall": (DevicePlay("code", 403, WALL), "sent a web page (403): a bot wall or a proxy"),
    "404 page": (DevicePlay("code", 404, WALL), "sent a web page (404)"),
    "429": (DevicePlay("code", 429, b""), "returned 429"),
    "500": (DevicePlay("code", 500, b""), "returned 500"),
    "cut": (DevicePlay("code"), "sent no valid response"),
    "no code": (DevicePlay("code", 200, {"device_auth_id": "d"}), "returned 200"),
    "code with escapes": (
        DevicePlay("code", 200, {"device_auth_id": "d", "user_code": f"AB{ESCAPE}"}), "ned 200",
    ),
    "long code": (
        DevicePlay("code", 200, {"device_auth_id": "d", "user_code": "A" * 33}), "returned 200",
    ),
    "a list": (DevicePlay("code", 200, []), "returned 200"),
    "deep": (DevicePlay("code", 200, b"[" * 60000), "returned 200"),
    "huge": (DevicePlay("code", 200, b" " * (64 * 1024 + 1)), "sent no valid response"),
}  # fmt: skip


@pytest.mark.parametrize("name", FINAL_ANSWERS)
async def test_what_ends_it_is_said_and_nothing_is_left(
    tmp_path: Path, autojump_clock: MockClock, name: str
) -> None:
    play, words = FINAL_ANSWERS[name]
    async with opened_device_desk(tmp_path) as desk:
        desk.issuer.plays.append(play)
        desk.issuer.on_poll = approving("acct-1")
        problem = await desk.refused()
        assert words in problem
        assert "\x1b" not in problem + "".join(desk.shown)
        assert trio.current_time() <= 5


FAILURES: Final[dict[str, tuple[DevicePlay, str]]] = {
    "cut": (DevicePlay("poll", count=3), "sent no valid response"),
    "500": (DevicePlay("poll", 500, b"", 3), "returned 500"),
    "wall": (DevicePlay("poll", 403, WALL, 3), "sent a web page (403)"),
    "503 page": (DevicePlay("poll", 503, WALL, 3), "sent a web page (503)"),
    "200 page": (DevicePlay("poll", 200, WALL, 3), "sent a web page (200)"),
    "huge": (DevicePlay("poll", 200, b" " * (64 * 1024 + 1), 3), "no valid response"),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_a_poll_that_fails_is_repeated_later_and_later_and_said_once(
    tmp_path: Path, autojump_clock: MockClock, name: str
) -> None:
    play, words = FAILURES[name]
    async with opened_device_desk(tmp_path) as desk:
        desk.issuer.plays.append(play)
        desk.issuer.on_poll = approving("acct-1", after=4)
        await desk.run()
        assert desk.issuer.times == [5, 15, 30, 50]
        [line] = [line for line in desk.shown if "trying again" in line]
        assert words in line


async def test_a_network_that_is_gone_while_a_person_is_at_it_may_come_back(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    def go_away(_asked: Asked) -> None:
        cause = pooler.Cause.UNREACHABLE
        desk.dial_plays = [pooler.ConnectFailed(cause) for _ in range(2)]
        desk.issuer.on_poll = approving("acct-1")

    async with opened_device_desk(tmp_path) as desk:
        desk.issuer.on_poll = go_away
        await desk.run()
        assert "http://127.0.0.1:9 cannot be reached: unreachable; trying again" in desk.shown


async def test_a_network_that_stays_away_is_what_ends_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with opened_device_desk(tmp_path) as desk:
        desk.issuer.plays.append(DevicePlay("poll", count=999))
        assert await desk.refused() == "http://127.0.0.1:9 sent no valid response"
        assert trio.current_time() == 15 * MINUTES
        assert len(desk.issuer.times) < 30


async def test_an_issuer_that_hangs_is_not_waited_for(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_stream: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    async with opened_device_desk(tmp_path) as desk:
        monkeypatch.setattr(desk.issuer.backend, "serve", hang)
        problem = await desk.refused()
        assert problem == "http://127.0.0.1:9 cannot be reached: timed out"
        assert trio.current_time() == pooler.REFRESH_SECONDS_MAX


@pytest.mark.parametrize("play", [DevicePlay("token"), DevicePlay("token", 502, b"")])
async def test_tokens_that_do_not_come_are_asked_for_again(
    tmp_path: Path, autojump_clock: MockClock, play: DevicePlay
) -> None:
    async with opened_device_desk(tmp_path) as desk:
        desk.issuer.on_poll = approving("acct-1")
        desk.issuer.plays += [play, play]
        assert (await desk.run())["tokens"]["account_id"] == "acct-1"
        desk.path.unlink()
        desk.issuer.plays += [play, play, play]
        assert "sent no valid response" in await desk.refused()


################################################################
# THE FILE
################################################################


async def test_nothing_is_asked_if_the_login_could_not_be_saved(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    async with opened_device_desk(tmp_path) as desk:
        monkeypatch.setattr(pooler, "make_room", fail)
        assert "No space left on device; free some space" in await desk.refused()
        assert desk.issuer.backend.seen == []


async def test_a_code_is_not_spent_if_the_login_cannot_be_saved_any_more(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def fill(asked: Asked) -> None:
        approving("acct-1")(asked)
        monkeypatch.setattr(pooler, "make_room", fail)

    async with opened_device_desk(tmp_path) as desk:
        desk.issuer.on_poll = fill
        assert "No space left on device; free some space" in await desk.refused()
        assert desk.issuer.backend.asked("/oauth/token") == []


def a_folder(path: Path) -> None:
    path.mkdir()


def a_link(path: Path) -> None:
    path.symlink_to("elsewhere.json")


OBSTACLES: Final[dict[str, tuple[Callable[[Path], Any], str]]] = {
    "folder": (a_folder, "not a regular file"),
    "link": (a_link, "is a symbolic link"),
    "foreign": (lambda path: path.write_text("[Interface]\n"), "is no login of Codex CLI"),
    "foreign json": (lambda path: path.write_text('{"name": "x"}'), "is left alone; remove it"),
    "settings": (lambda path: path.write_text('{"a": 1, // why\n}'), "is left alone; remove it"),
    "a list of none": (lambda path: path.write_text('{"a": [1, 2'), "is left alone; remove it"),
    "large json": (
        lambda path: path.write_text(json.dumps({"tokens": "x" * 70_000})),
        "is left alone; remove it",
    ),
}


@pytest.mark.parametrize("name", OBSTACLES)
async def test_what_is_no_login_is_left_alone(
    tmp_path: Path, autojump_clock: MockClock, name: str
) -> None:
    spoil, words = OBSTACLES[name]
    async with opened_device_desk(tmp_path) as desk:
        desk.path.parent.mkdir()
        spoil(desk.path)
        with pytest.raises(pooler.LoginNeeded, match=words):
            await desk.run()
        assert desk.issuer.backend.seen == []


@pytest.mark.parametrize(
    "text",
    ["", "\n", "{", "{}", '{"tokens": 1}', '{"OPENAI_API_KEY": "sk-1"}', '{"auth_mode" : "cha'],
)
async def test_the_rest_of_a_login_gives_way_and_its_api_key_stays(
    tmp_path: Path, autojump_clock: MockClock, text: str
) -> None:
    async with opened_device_desk(tmp_path) as desk:
        desk.path.parent.mkdir()
        desk.path.write_text(text)
        desk.path.chmod(0o644)
        desk.issuer.on_poll = approving("acct-1")
        saved = await desk.run()
        assert saved["OPENAI_API_KEY"] == ("sk-1" if "sk-1" in text else None)
        assert stat.S_IMODE(desk.path.stat().st_mode) == 0o600


async def test_a_refresh_that_is_in_progress_is_waited_for(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with opened_device_desk(tmp_path) as desk:
        make_auth_file(desk.path, "acct-0")
        with locked_by_another(desk.path) as unlock:

            async def unlock_later() -> None:
                with trio.move_on_after(25):
                    await trio.sleep_forever()
                unlock()

            desk.issuer.on_poll = approving("acct-1")
            desk.nursery.start_soon(unlock_later)
            assert (await desk.run())["tokens"]["account_id"] == "acct-1"
            assert trio.current_time() >= 25


async def test_a_lock_that_stays_is_named_and_the_code_is_not_spent(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with opened_device_desk(tmp_path) as desk:
        login = make_auth_file(desk.path, "acct-0")
        desk.issuer.on_poll = approving("acct-1")
        with (
            locked_by_another(desk.path),
            pytest.raises(pooler.LoginNeeded, match=r"one\.json\.lock stays locked"),
        ):
            await desk.run()
        assert login.access_token in desk.path.read_text()
        assert desk.issuer.backend.asked("/oauth/token") == []


async def test_whoever_gives_up_while_it_is_saved_has_the_login(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_device_desk(tmp_path) as desk:
        desk.issuer.on_poll = approving("acct-1")
        plain = desk.issuer.issue

        def issue(asked: Asked) -> Json:
            scope.cancel()
            return plain(asked)

        monkeypatch.setattr(desk.issuer, "issue", issue)
        with trio.CancelScope() as scope:
            await desk.run()
        assert desk.path.exists()
        assert not scope.cancelled_caught


@pytest.mark.parametrize("moment", [0.0, 2.5, 5.0, 7.5, 12.0])
async def test_whoever_gives_up_before_leaves_nothing(
    tmp_path: Path, autojump_clock: MockClock, moment: float
) -> None:
    async with opened_device_desk(tmp_path) as desk:
        with trio.move_on_after(moment) as scope:
            await desk.run()
        assert scope.cancelled_caught
        assert not desk.path.parent.exists() or desk.left in ([], ["one.json.lock"])


################################################################
# WHOSE IT IS
################################################################


async def holder_with(desk: Desk, **claims: Json) -> pooler.Holder:
    desk.issuer.claims = claims
    desk.issuer.on_poll = approving("acct-1", plan="pro")
    await desk.run()
    holder = pooler.holder_of(desk.path.read_bytes())
    assert holder is not None
    return holder


OF_AUTH: Final = {"chatgpt_account_id": "acct-1", "chatgpt_plan_type": "pro"}


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"email": "a@b.c", pooler.AUTH_CLAIM: OF_AUTH}, "a@b.c, plan pro, account acct-1"),
        ({pooler.PROFILE_CLAIM: {"email": "p@b.c"}}, "p@b.c, plan pro, account acct-1"),
        ({"email": f"x{ESCAPE}@b.c"}, "acct-1@example.com, plan pro, account acct-1"),
        ({"email": "a\nb"}, "acct-1@example.com, plan pro, account acct-1"),
        ({pooler.AUTH_CLAIM: {"chatgpt_plan_type": ESCAPE}}, "plan pro"),
        ({"email": {}, pooler.AUTH_CLAIM: []}, "acct-1@example.com"),
    ],
)
async def test_it_is_said_whose_login_it_is_and_no_more(
    tmp_path: Path, autojump_clock: MockClock, claims: dict[str, Json], words: str
) -> None:
    async with opened_device_desk(tmp_path) as desk:
        holder = await holder_with(desk, **claims)
        assert words in str(holder)
        assert str(holder).isprintable()


def auth_file(path: Path, account_id: str, user: str = "") -> bytes:
    make_auth_file(path, account_id)
    if user:
        content = json.loads(path.read_bytes())
        claims = {"email": f"{user}@b.c", pooler.AUTH_CLAIM: {"chatgpt_user_id": user}}
        content["tokens"]["id_token"] = f"x.{encode_part(claims)}.x"
        path.write_text(json.dumps(content))
    return path.read_bytes()


def test_another_account_and_the_same_twice_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    login = pooler.Login("one", tmp_path / "one.json")
    mine, other = auth_file(login.path, "acct-1"), auth_file(tmp_path / "two.json", "acct-2")
    colleague = auth_file(tmp_path / "three.json", "acct-1", "user-of-mine")
    others = {"two": tmp_path / "two.json", "three": tmp_path / "three.json", "no": tmp_path}

    def said(before: bytes, after: bytes) -> str:
        pooler.show_login(login, before, after, others)
        return capsys.readouterr().out

    assert "another ChatGPT account" not in said(b"", mine)
    assert "another ChatGPT account" not in said(mine, mine)
    assert "same one" not in said(mine, mine)
    assert "another ChatGPT account than before, which was: acct-1@example.com" in said(mine, other)
    assert "Account two is the same one" in said(mine, other)
    assert "Account three is the same one" in said(mine, colleague)
    assert "another ChatGPT account" in said(mine, colleague)  # another person in one workspace
    assert "a running pooler will use it" in said(b"", mine)


################################################################
# FILES THAT FAIL
################################################################


async def test_a_disk_that_hangs_is_noticed_before_anything_is_asked(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(path: Path) -> None:
        raise OSError(errno.ETIMEDOUT, "timed out", str(path))

    monkeypatch.setattr(pooler, "prepare_login", hang)
    async with opened_device_desk(tmp_path) as desk:
        desk.path.parent.mkdir()
        assert (await desk.refused()).startswith(f"{desk.path}: timed out; ")
        assert desk.issuer.backend.seen == []


def test_a_login_that_cannot_be_saved_in_the_end_says_so(tmp_path: Path) -> None:
    tokens = {"access_token": "a", "id_token": "i", "refresh_token": "r"}
    path = tmp_path / "gone" / "one.json"
    with pytest.raises(
        pooler.LoginNeeded, match=r"one.json cannot be saved: No such file .* again"
    ):
        pooler.save_login(path, json.dumps(tokens).encode(), 1.0)


def test_a_folder_of_another_user_is_named_with_that_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    pooler.check_user(tmp_path)  # who may write there may use it
    monkeypatch.setattr(os, "access", lambda *_: False)
    words = f"belongs to another user, whose id is {tmp_path.stat().st_uid}; run this command as"
    with pytest.raises(pooler.LoginNeeded, match=words):
        pooler.check_user(tmp_path)
    # It is looked at before a person goes to the issuer.
    with pytest.raises(pooler.LoginNeeded, match=words):
        pooler.prepare_login(tmp_path / "auth.json")


def test_whoever_is_not_root_gives_no_folder_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []
    monkeypatch.setattr(os, "fchown", lambda *names: given.append(names))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    pooler.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert given == []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    pooler.make_folder(tmp_path / "c")
    assert len(given) == 1


def test_a_login_without_a_refresh_token_is_said_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "one.json"
    make_auth_file(path, "acct-1")
    whole = json.loads(path.read_bytes())
    pooler.show_login(pooler.Login("one", path), b"", path.read_bytes(), {})
    assert "no refresh token" not in capsys.readouterr().out
    del whole["tokens"]["refresh_token"]
    pooler.show_login(pooler.Login("one", path), b"", json.dumps(whole).encode(), {})
    assert "It has no refresh token, so it will end." in capsys.readouterr().out


def test_a_signal_that_is_ignored_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = {signal.SIGHUP: signal.SIG_IGN, signal.SIGTERM: signal.SIG_DFL}
    monkeypatch.setattr(signal, "getsignal", handlers.get)
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    pooler.obey_as_interrupt(signal.SIGHUP, signal.SIGTERM)
    assert handlers[signal.SIGHUP] is signal.SIG_IGN
    assert callable(handlers[signal.SIGTERM])
