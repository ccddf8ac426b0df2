"""Proves that `check` and `serve` report every problem of a configuration with its location.

Method: the real program as a process, with files that are valid but odd, or wrong.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

import pooler
from tests.support.codex_turns import encode_part
from tests.support.server_process import describe_server, run_pooler, serving, write_config

pytestmark: Final = pytest.mark.slow


NO_KEY: Final = "pools.home.keys: no keys, so nobody can use this pool"


def without_keys() -> dict[str, Any]:
    return describe_server(None, pools={"home": {"accounts": ["one"], "keys": {}}})


async def test_what_is_legal_and_odd_is_a_warning_at_the_start(tmp_path: Path) -> None:
    async with serving(tmp_path, without_keys()) as server:
        told = [line for line in server.lines if line["event"] == "config"]
        assert [(line["level"], line["problem"]) for line in told] == [("warning", NO_KEY)]


@pytest.mark.parametrize("text", [None, "{"], ids=["no login yet", "a broken one"])
def test_a_check_says_what_is_odd_and_what_is_wrong(tmp_path: Path, text: str | None) -> None:
    config = without_keys()
    config["accounts"]["one"] = {"type": "codex", "auth_file": "auth.json"}
    if text is not None:
        (tmp_path / "auth.json").write_text(text)
    write_config(tmp_path, config)
    done = run_pooler("check", cwd=tmp_path)
    kind, problem = (
        ("error", "is empty or not valid JSON") if text else ("warning", "does not exist; log in")
    )
    lines = done.stdout.splitlines()
    assert lines[0] == f"warning: {NO_KEY}"
    assert lines[1].endswith(": not logged in")
    assert lines[2].startswith(f"  {kind}: ")
    assert problem in lines[2]
    assert lines[-1] == f"pools.json: {'an account has a problem' if text else 'OK'}"
    assert (done.returncode, done.stderr) == (1 if text else 0, "")


@pytest.mark.parametrize(
    ("account_ids", "users", "names"),
    [
        ("ab", "uv", ""),
        ("aa", "uu", "one, two"),
        ("aa", "uv", ""),  # two members of one company have a limit each
        ("ab", "uu", ""),  # a person's own account, and that in a company
        ("aba", "uuu", "one, three"),
        ("aa", ["", ""], ""),  # nobody knows whose they are
    ],
)
def test_a_check_warns_of_logins_of_the_same_account(
    tmp_path: Path, account_ids: str, users: Sequence[str], names: str
) -> None:
    config = without_keys()
    config["accounts"] = {}
    for name, account_id, user in zip(("one", "two", "three"), account_ids, users, strict=False):
        path = tmp_path / f"{name}.json"
        identity = {"chatgpt_account_id": f"acct-{account_id}", "chatgpt_user_id": user}
        claims = {"exp": 2**33, "https://api.openai.com/auth": identity}
        access_token = f"e30.{encode_part(claims)}.c2ln"
        tokens = {"access_token": access_token, "refresh_token": f"rt-{name}"}
        path.write_text(json.dumps({"tokens": tokens}))
        path.chmod(0o600)
        config["accounts"][name] = {"type": "codex", "auth_file": path.name}
    config["pools"]["home"]["accounts"] = list(config["accounts"])
    write_config(tmp_path, config)
    done = run_pooler("check", cwd=tmp_path)
    told = [line for line in done.stdout.splitlines() if "same ChatGPT account" in line]
    assert [line.partition(" are logged in")[0] for line in told] == (
        [f"warning: accounts {names}"] if names else []
    )
    assert done.returncode == 0


@pytest.mark.parametrize("folder", ["here", "nowhere"])
def test_a_check_warns_of_a_state_that_cannot_be_saved(tmp_path: Path, folder: str) -> None:
    (tmp_path / "here").mkdir()
    config = without_keys() | {"state": f"{folder}/state.json"}
    write_config(tmp_path, config)
    done = run_pooler("check", cwd=tmp_path)
    warning = "warning: state: the folder nowhere does not exist or cannot be written to"
    assert (warning in done.stdout.splitlines()) == (folder == "nowhere")
    assert done.returncode == 0


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_file_of_another_name_is_refused_by_that_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.json").write_text(text, "latin-1")
    done = run_pooler("check", "--config", "mine.json", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("pooler: mine.json: ")


@pytest.mark.parametrize("accounts", [{"a b": {"type": "openai", "api_key": "none"}}, "x"])
def test_missing_accounts_are_reported_once_and_not_for_each_pool(
    tmp_path: Path, accounts: object
) -> None:
    write_config(tmp_path, describe_server(None, accounts=accounts))
    done = run_pooler("check", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    [problem] = done.stderr.splitlines()
    assert problem.startswith(("pooler: accounts: ", "pooler: accounts.a b: "))


@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ("a" * 64 + ".example:4000", "must be host:port, [v6]:port or unix:/path"),
        ("a..example:4000", "must be host:port, [v6]:port or unix:/path"),
        ("unix:/" + "x" * 200, "listen: the path of a socket has at most 107 bytes"),
    ],
)
def test_a_name_that_no_address_can_have_is_reported(
    tmp_path: Path, listen: str, words: str
) -> None:
    write_config(tmp_path, describe_server(None, listen=listen))
    done = run_pooler("serve", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].endswith(words)


def test_a_file_that_is_too_large_is_no_configuration(tmp_path: Path) -> None:
    whole = json.dumps(without_keys())
    write_config(tmp_path, whole + " " * (pooler.CONFIG_BYTES_MAX - len(whole)))
    assert run_pooler("check", cwd=tmp_path).returncode == 0
    write_config(tmp_path, whole + " " * (pooler.CONFIG_BYTES_MAX - len(whole) + 1))
    done = run_pooler("check", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"pooler: pools.json: larger than {pooler.CONFIG_BYTES_MAX} bytes\n"


@pytest.mark.parametrize("text", [None, "", "-----BEGIN CERTIFICATE-----\nno\n"])
def test_authorities_that_cannot_be_read_are_named(tmp_path: Path, text: str | None) -> None:
    config = describe_server(None)
    config["accounts"]["one"]["ca_file"] = "ca.pem"
    if text is not None:
        (tmp_path / "ca.pem").write_text(text)
    write_config(tmp_path, config)
    done = run_pooler("check", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "pooler: accounts.one.ca_file: not a readable PEM file\n"
