"""Proves that a login of Codex CLI is read as it is, classified correctly, and replaced atomically.

Method: tables of files and responses for what is pure; real files, and a real process that kills
itself at every step of a save, for the rest.
"""

from __future__ import annotations

import json
import math
import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pooler
from pooler import (
    REFRESH_AGE_SECONDS,
    SECRET_FILE_BYTES_MAX,
    Credentials,
    Finding,
    Login,
    LoginNeeded,
    RefreshOutcome,
    classify_refresh,
    is_refresh_due,
    merge_tokens,
    parse_auth_file,
    reveal,
    save_file,
    why_unsaveable,
)
from tests.support.codex_backend import make_auth_file, make_token
from tests.support.codex_turns import encode_part

Json = Any
NOW: Final = 1_800_000_000.0
MARGIN_SECONDS: Final = pooler.REFRESH_MARGIN_SECONDS
AUTH: Final = "https://api.openai.com/auth"
ACCESS: Final = make_token("acct-claimed", "plus", NOW + 3600)


def jwt(**claims: Json) -> str:
    return f"{encode_part({'alg': 'none'})}.{encode_part(claims)}.c2ln"


def content(tokens: Json = None, **top: Json) -> bytes:
    """An auth.json; a member that is None is left out."""
    made = {"access_token": ACCESS, "refresh_token": "rt-1", "account_id": "acct-1"}
    made |= tokens or {}
    kept = {name: value for name, value in made.items() if value is not None}
    return json.dumps({"tokens": kept, "last_refresh": "2027-01-15T08:00:00Z", **top}).encode()


################################################################
# READING
################################################################


def test_a_login_is_read_with_all_its_fields() -> None:
    found = parse_auth_file(content(OPENAI_API_KEY="sk-unused"))
    assert reveal(found.access_token) == ACCESS
    assert found.refresh_token is not None
    assert reveal(found.refresh_token) == "rt-1"
    assert (found.account_id, found.plan, found.expires_at) == ("acct-1", "plus", NOW + 3600)
    assert found.refreshed_at == NOW
    assert ACCESS not in repr(found)
    assert "rt-1" not in repr(found)


ACCOUNTS: Final[dict[str, tuple[Json, str | None]]] = {
    "own": ({"account_id": "acct-1"}, "acct-1"),
    "id-token": ({"account_id": None, "id_token": jwt(**{AUTH: {"chatgpt_account_id": "i"}})}, "i"),
    "access-token": ({"account_id": None}, "acct-claimed"),
    "id-before-access": (
        {"account_id": "", "id_token": jwt(**{AUTH: {"chatgpt_account_id": "i"}})}, "i",
    ),
    "organization": (
        {"account_id": None, "access_token": jwt(organizations=[{"id": "org-1"}, {"id": "x"}])},
        "org-1",
    ),
    "nested-organization": (
        {"account_id": None, "access_token": jwt(**{AUTH: {"organizations": [{"id": "org-2"}]}})},
        "org-2",
    ),
    "none": ({"account_id": None, "access_token": "opaque"}, None),
    "no-header-text": ({"account_id": "a\r\nb", "access_token": "opaque"}, None),
    "a-number": ({"account_id": 7, "access_token": "opaque"}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCOUNTS)
def test_the_account_is_named_by_the_first_that_names_it(name: str) -> None:
    tokens, expected = ACCOUNTS[name]
    assert parse_auth_file(content(tokens)).account_id == expected


UNUSABLE: Final[dict[str, tuple[bytes, str]]] = {
    "empty": (b"", "is empty or not valid JSON"),
    "cut": (content()[:-9], "is empty or not valid JSON"),
    "no-object": (b"[1]", "is empty or not valid JSON"),
    "not-utf-8": (b"\xff\xfe", "is empty or not valid JSON"),
    "deep": (b"[" * 100_000, "is empty or not valid JSON"),
    "nothing": (b"{}", "is empty or not valid JSON"),
    "other": (b'{"a": 1}', "contains no ChatGPT login"),
    "api-key": (b'{"OPENAI_API_KEY": "sk-secret", "tokens": null}', "contains an API key"),
    "no-access-token": (content({"access_token": None}), "contains no ChatGPT login"),
    "empty-token": (content({"access_token": ""}), "contains no ChatGPT login"),
    "token-with-line": (content({"access_token": "a\r\nb: c"}), "contains no ChatGPT login"),
    "token-is-number": (content({"access_token": 5}), "contains no ChatGPT login"),
    "tokens-is-list": (b'{"tokens": [1]}', "contains no ChatGPT login"),
    "flat": (b'{"access_token": "a.b.c", "type": "codex"}', "contains no ChatGPT login"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_is_not_a_login_is_reported_as_what_it_is(name: str) -> None:
    raw, words = UNUSABLE[name]
    with pytest.raises(LoginNeeded, match=words) as raised:
        parse_auth_file(raw)
    assert "sk-secret" not in str(raised.value)


@pytest.mark.parametrize(
    "token",
    ["opaque", "a.b", "a.!!.c", "a.e30.c", "..", jwt(exp="soon"), jwt(exp=10**40), jwt(exp=True),
     jwt(exp=-(10**400)), jwt(exp=math.nan), jwt(exp=math.inf), jwt(**{AUTH: [1]}),
     f"a.{encode_part([1])}.c", "a." + "A" * 16000 + ".c"],
)  # fmt: skip
def test_an_opaque_token_is_used_all_the_same(token: str) -> None:
    found = parse_auth_file(content({"access_token": token}))
    assert reveal(found.access_token) == token
    assert found.expires_at is None
    assert not is_refresh_due(found, NOW + REFRESH_AGE_SECONDS - 1, MARGIN_SECONDS)
    assert is_refresh_due(found, NOW + REFRESH_AGE_SECONDS, MARGIN_SECONDS)


def test_an_end_may_have_a_fraction() -> None:
    found = parse_auth_file(content({"access_token": jwt(exp=NOW + 0.5)}))
    assert found.expires_at == NOW + 0.5


LAST_REFRESHES: Final[dict[str, tuple[Json, float | None]]] = {
    "nanoseconds": ("2027-01-15T08:00:00.250000999Z", NOW + 0.25),
    "null": (None, None),
    "number": (5, None),
    "no-date": ("soon", None),
    "before-time": ("0001-01-01T00:00:00", None),
}


@pytest.mark.parametrize("name", LAST_REFRESHES)
def test_the_time_of_the_last_refresh_is_read_if_possible(name: str) -> None:
    value, expected = LAST_REFRESHES[name]
    assert parse_auth_file(content(last_refresh=value)).refreshed_at == expected


def test_a_login_that_was_never_refreshed_is_valid() -> None:
    value = json.loads(content())
    del value["last_refresh"]
    found = parse_auth_file(json.dumps(value).encode())
    assert (reveal(found.access_token), found.refreshed_at) == (ACCESS, None)


@given(st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["tokens", "access_token", "id_token", "account_id", "last_refresh", "x"]),
        inner, max_size=4,
    ),
    max_leaves=12,
))  # fmt: skip
def test_no_file_breaks_the_reader(value: Json) -> None:
    beside = value if isinstance(value, dict) else {"last_refresh": value}
    inside = {"tokens": {"id_token": jwt(**beside), "access_token": jwt(exp=value)}}
    for whole in (value, beside | inside, inside):
        try:
            found = parse_auth_file(json.dumps(whole).encode())
        except LoginNeeded:
            continue
        assert isinstance(found, Credentials)


def test_a_login_is_refreshed_five_minutes_before_it_expires() -> None:
    found = parse_auth_file(content())
    assert found.expires_at is not None
    assert not is_refresh_due(found, found.expires_at - MARGIN_SECONDS - 1, MARGIN_SECONDS)
    assert is_refresh_due(found, found.expires_at - MARGIN_SECONDS, MARGIN_SECONDS)
    assert MARGIN_SECONDS == 300


################################################################
# THE ANSWER
################################################################

GOOD: Final = json.dumps({"access_token": "new.a.b", "refresh_token": "rt-2"}).encode()


def test_a_merge_keeps_unknown_fields() -> None:
    raw = content({"id_token": "old-id", "unknown": 1}, OPENAI_API_KEY=None, auth_mode="chatgpt")
    merged = json.loads(merge_tokens(raw, GOOD, NOW + 0.5))
    assert merged == {
        "OPENAI_API_KEY": None,
        "auth_mode": "chatgpt",
        "last_refresh": "2027-01-15T08:00:00.500Z",
        "tokens": {
            "access_token": "new.a.b", "refresh_token": "rt-2", "id_token": "old-id",
            "account_id": "acct-1", "unknown": 1,
        },
    }  # fmt: skip


@pytest.mark.parametrize("name", ["refresh_token", "id_token"])
@pytest.mark.parametrize("value", [None, "", 5, "a\nb"])
def test_a_value_that_does_not_come_stays(name: str, value: Json) -> None:
    answer = {"access_token": "new.a.b", name: value}
    merged = json.loads(merge_tokens(content({name: "old"}), json.dumps(answer).encode(), NOW))
    assert merged["tokens"][name] == "old"


def shapes(code: str) -> list[bytes]:
    return [
        json.dumps(value).encode()
        for value in ({"error": {"code": code}}, {"error": code}, {"code": code})
    ]


SPENT_CODES: Final = (
    "refresh_token_expired", "refresh_token_reused", "refresh_token_invalidated", "invalid_grant",
    "account_deactivated", "app_session_terminated",
)  # fmt: skip


@pytest.mark.parametrize("code", SPENT_CODES)
@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_spent_refresh_token_is_recognized_by_its_code(status: int, code: str) -> None:
    assert {classify_refresh(status, body) for body in shapes(code)} == {RefreshOutcome.REVOKED}


# What stands between us and the endpoint answers so: the login may be as good as ever.
OF_A_PROXY: Final = (
    b"", b"<html>captive portal</html>", b"401 Unauthorized", b"\xff\xfe", b"[]",
    b'"invalid_grant"',
    b'{"error": "anything"}', b'{"error": {"code": 401, "message": "invalid_grant"}}',
    b'{"error": "Proxy authentication required", "code": 407}', b'{"message": "revoked"}',
    b'{"detail": "Not authenticated"}',
)  # fmt: skip


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, GOOD, RefreshOutcome.DONE),
        (200, b"{}", RefreshOutcome.FAILED),
        (200, b"<html>", RefreshOutcome.FAILED),
        (200, b'{"access_token": 5}', RefreshOutcome.FAILED),
        (200, b'{"access_token": "a\\nb"}', RefreshOutcome.FAILED),
        (400, b'{"error": "invalid_request"}', RefreshOutcome.FAILED),
        (400, b'{"error": {"code": 7}}', RefreshOutcome.FAILED),
        (403, b"<html>", RefreshOutcome.FAILED),
        (429, b'{"error": "invalid_grant"}', RefreshOutcome.FAILED),
        (500, b'{"error": "refresh_token_reused"}', RefreshOutcome.FAILED),
        (302, GOOD, RefreshOutcome.FAILED),
        (
            400,
            b'{"error": null, "detail": {"code": "refresh_token_reused"}}',
            RefreshOutcome.REVOKED,
        ),
        (401, b'{"error": {"type": "invalid_grant", "code": null}}', RefreshOutcome.REVOKED),
        (401, b'{"code": "refresh_token_not_known_any_more"}', RefreshOutcome.REVOKED),
        *(
            (status, body, RefreshOutcome.FAILED)
            for status in (400, 401, 403, 407)
            for body in OF_A_PROXY
        ),
    ],
)
def test_a_response_of_the_token_endpoint_is_classified(
    status: int, body: bytes, verdict: RefreshOutcome
) -> None:
    assert classify_refresh(status, body) is verdict


################################################################
# THE FILE
################################################################


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "home" / "auth.json"
    make_auth_file(made, "acct-1", expires_at=NOW + 3600)
    return made


def inspected(path: Path, at: float = NOW) -> list[Finding]:
    return Login("one", path).inspect(at)


def test_a_good_file_has_no_problem(path: Path) -> None:
    assert inspected(path) == []
    [(is_error, words)] = inspected(path, NOW + 3600)
    assert (is_error, "has expired" in words) == (False, True)


def make_symlink(path: Path) -> None:
    os.rename(path, path.with_name("real"))
    path.symlink_to("real")


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


PROBLEMS: Final[dict[str, tuple[Callable[[Path], Any], bool, str]]] = {
    "missing": (lambda path: path.unlink(), False, "does not exist; log in with: pooler login one"),
    "broken": (lambda path: path.write_text("{"), True, "is empty or not valid JSON; log in with"),
    "api-key": (lambda path: path.write_text('{"OPENAI_API_KEY": "sk"}'), True, "an API key"),
    "folder": (make_folder, True, "not a regular file; name the auth.json in it"),
    "symlink": (make_symlink, True, "is a symbolic link"),
    "readable": (lambda path: path.chmod(0o640), False, "can be read by others: chmod 600"),
    "hard-link": (
        lambda path: path.with_name("other.json").hardlink_to(path), False, "hard links",
    ),
    "no-refresh": (
        lambda path: path.write_bytes(content({"refresh_token": None})), False, "no refresh token",
    ),
    "too-long": (
        lambda path: path.write_bytes(content(x="y" * SECRET_FILE_BYTES_MAX)), True, "valid JSON",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem_is_reported_before_a_token_is_spent(path: Path, name: str) -> None:
    spoil, is_error, words = PROBLEMS[name]
    spoil(path)
    [(found_error, found)] = inspected(path)
    assert (found_error, words in found) == (is_error, True), found
    assert str(path) in found


def test_a_folder_that_cannot_be_written_is_reported(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    assert "cannot be written" in (why_unsaveable(path) or "")


@pytest.mark.parametrize("folder", ["home", "a home"])
def test_a_bind_mounted_file_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    path = tmp_path / folder / "auth.json"
    make_auth_file(path, "acct-1", expires_at=NOW + 3600)
    shown = str(path.resolve()).replace(" ", r"\040")  # as the kernel writes it
    line = f"36 35 98:0 /inner {shown} rw,noatime - ext4 /dev/root rw"
    read_text = Path.read_text

    def told(self: Path, **options: str) -> str:
        return line if str(self) == "/proc/self/mountinfo" else read_text(self, **options)

    assert why_unsaveable(path) is None
    monkeypatch.setattr(Path, "read_text", told)
    assert "mount its folder" in (why_unsaveable(path) or "")


def test_a_file_on_another_disk_than_its_folder_is_replaced_like_any_other(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is on Linux' overlayfs, where layers are of several disks: containers have one."""
    plain_stat = os.stat

    def told(name: Any, **options: Any) -> os.stat_result:  # noqa: ANN401 (as os.stat)
        found = plain_stat(name, **options)
        device = found.st_dev + (name in {path, str(path)})
        return os.stat_result((*found[:2], device, *found[3:]))

    monkeypatch.setattr(os, "stat", told)
    assert path.stat().st_dev != path.parent.stat().st_dev
    assert why_unsaveable(path) is None


@pytest.mark.parametrize(
    ("config", "option"),
    [
        ("pools.json", ""),
        ("/etc/pooler/pools.json", " --config /etc/pooler/pools.json"),
        ("it's/my pools.json", """ --config 'it'"'"'s/my pools.json'"""),
    ],
)
def test_the_advice_names_the_account_and_where_pools_json_is(config: str, option: str) -> None:
    advice = Login("one", Path("a/auth.json"), config).advice
    assert advice == f"log in with: pooler login one{option}"


@pytest.mark.parametrize("name", [".", "/", ".."])
def test_a_folder_without_a_name_of_its_own_is_reported_like_any_other(name: str) -> None:
    [(is_error, found)] = inspected(Path(name))
    assert is_error
    assert found.endswith("; name the auth.json in it")


def test_a_change_is_noticed_and_a_loss_too(path: Path) -> None:
    login = Login("one", path)
    login.look()
    first = login.credentials
    login.look()
    assert login.credentials is first
    save_file(path, content({"access_token": "other"}))
    login.look()
    assert login.credentials is not None
    assert reveal(login.credentials.access_token) == "other"
    assert "other" not in repr(login)
    path.unlink()
    login.look()
    assert not login.is_usable(NOW)


################################################################
# SAVING
################################################################


def test_a_saved_file_is_whole_and_private(path: Path) -> None:
    path.chmod(0o644)
    save_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["auth.json"]


@pytest.mark.parametrize("make", [os.symlink, os.link], ids=["symlink", "hard-link"])
def test_a_leftover_that_leads_elsewhere_is_not_followed(
    path: Path, make: Callable[[Path, Path], None]
) -> None:
    victim = path.with_name("victim")
    victim.write_text("safe")
    make(victim, path.with_name(".auth.json.new"))
    save_file(path, b"new")  # the token is spent by now: nothing may stand in its way
    assert (victim.read_text(), path.read_bytes(), path.is_symlink()) == ("safe", b"new", False)


# Every call of the operating system that a save makes; the child dies before or after its Nth.
CHILD: Final = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    import pooler
    path, step, is_after = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "after"
    count = 0
    def deadly(name):
        real = getattr(os, name)
        def call(*args, **options):
            global count
            count += 1
            if count == step and not is_after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return real(*args, **options)
            finally:  # also where there is nothing to unlink
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)
        return call
    for name in ("unlink", "open", "fdopen", "fchmod", "fsync", "rename", "close"):
        setattr(os, name, deadly(name))
    pooler.save_file(path, b"new" * 30000)
    print(count)
""")


def run_child(path: Path, step: int, when: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-c", CHILD, str(path), str(step), when]
    root = str(Path(pooler.__file__).parent)
    return subprocess.run(
        arguments, check=False, capture_output=True, text=True, cwd=root, timeout=30
    )


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_the_old_file_or_the_new_one(path: Path) -> None:
    old, new = content(), b"new" * 30000
    save_file(path, old)
    step_count = int(run_child(path, 0, "before").stdout)
    assert step_count >= 7
    seen = set()
    for step in range(1, step_count + 1):
        for when in ("before", "after"):
            save_file(path, old)  # over whatever the one before has left
            assert run_child(path, step, when).returncode == -signal.SIGKILL
            left = path.read_bytes()
            assert left in {old, new}, (step, when)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            for one in path.parent.iterdir():
                assert stat.S_IMODE(one.stat().st_mode) == 0o600, one
            seen.add(left)
    assert seen == {old, new}


def test_a_login_that_the_user_may_not_read_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "auth.json"
    make_auth_file(path, "acct-1")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(pooler, "read_file", refuse)
    sight = pooler.read_login(path, None)
    assert sight is not None
    assert sight.problem == "cannot be read: Permission denied"
    assert "owner" in sight.remedy
