"""Proves that pools.json has exactly one interpretation, or is rejected with all of its errors.

Method: a table of single errors, each laid over a valid configuration and expected at its JSON
path; a table of what is accepted, and as what; then arbitrary JSON, and valid configurations with
one random error, under Hypothesis.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pooler import REFRESH_URL_VARIABLE, Alias, ConfigRefused, Limits, Price, parse_config, reveal
from tests.support.configurations import (
    API_KEY,
    BASE_URLS,
    CI,
    DIGEST,
    ENV,
    KEY_PATH,
    OTHER,
    SECRET,
    SECRETS,
    SHOUTED,
    TOKEN,
    TYPED,
    WRONG_TYPES,
    changed_config,
    good_config,
    parse,
    problems_of,
    read_file,
)
from tests.support.paths import ROOT

Json = Any


def test_the_good_configuration_is_good() -> None:
    config = parse(good_config())
    assert list(config.accounts) == ["a", "b"]
    assert [account.name for account in config.pools["home"].accounts] == ["a", "b"]
    assert [key.name for key in config.keys] == ["laptop", "ci"]
    assert config.warnings == ()
    assert config.limits == Limits()


def test_the_example_is_accepted() -> None:
    env = {
        "OPENAI_API_KEY": API_KEY,
        "CODEX_POOLER_LAPTOP_KEY": SECRET,
        "CODEX_POOLER_CI_KEY": OTHER,
        "CODEX_POOLER_OPERATOR_TOKEN": TOKEN,
    }
    config = parse_config((ROOT / "pools.json.example").read_bytes(), env, read_file)
    assert config.warnings == ()


################################################################
# ONE FAULT, ONE PROBLEM AT ITS PATH
################################################################


MISSING: Final = ["accounts", "pools", "accounts.a.type", "accounts.a.api_key"]
MISSING_MORE: Final = ["pools.home.accounts", f"{CI}.key"]


def fault(path: str, value: Json) -> object:
    return pytest.param(path, value, id=f"{path}={json.dumps(value)[:32]}")


@pytest.mark.parametrize(("path", "value"), [fault(*one) for one in WRONG_TYPES + SECRETS])
def test_a_wrong_value_is_refused_at_its_path(path: str, value: Json) -> None:
    problems = problems_of(changed_config(path, value))
    assert any(problem.startswith(path) for problem in problems)
    elsewhere = [problem for problem in problems if not problem.startswith(path)]
    # A list of accounts that cannot be read leaves the pool's names without a meaning.
    assert all(path == "accounts" and "no account has this" in problem for problem in elsewhere)


@pytest.mark.parametrize("value", BASE_URLS)
def test_a_base_url_is_plain_and_safe(value: Json) -> None:
    problems = problems_of(changed_config("accounts.a.base_url", value))
    assert len(problems) == 1
    assert problems[0].startswith("accounts.a.base_url: ")


@pytest.mark.parametrize("path", [*MISSING, *MISSING_MORE])
def test_what_is_needed_is_named(path: str) -> None:
    described = changed_config(path, None)
    *way, last = path.split(".")
    place = described
    for name in way:
        place = place[name]
    del place[last]
    assert any(one.startswith(f"{path}: is required") for one in problems_of(described))


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("acounts", "accounts"),
        ("pool", "pools"),
        ("limit", "limits"),
        ("accounts.a.apikey", "api_key"),
        ("accounts.a.base-url", "base_url"),
        ("pools.home.model", "models"),
        (f"{CI}.expire", "expires"),
        (f"{CI}.request_per_minute", "requests_per_minute"),
    ],
)
def test_a_misspelt_field_gets_the_name_that_was_meant(path: str, meant: str) -> None:
    assert problems_of(changed_config(path, 1)) == [
        f"{path}: unknown field; did you mean {meant!r}?"
    ]


def test_a_misspelt_limit_and_account_get_the_name_that_was_meant() -> None:
    problems = problems_of(good_config() | {"limits": {"body_byte_max": 1}})
    assert problems == ["limits.body_byte_max: unknown field; did you mean 'body_bytes_max'?"]
    described = changed_config("accounts.platform", good_config()["accounts"]["a"])
    described["pools"]["home"]["accounts"] = ["platfrom"]
    [problem] = problems_of(described)
    assert problem.startswith("pools.home.accounts[0]: ")
    assert "'platform'" in problem


def test_a_field_that_resembles_no_other_is_reported_with_the_valid_ones() -> None:
    [problem] = problems_of(changed_config("pools.home.zzz", 1))
    assert "routing" in problem


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ('{"accounts": 1, "accounts": 2, "pools": {}}', "accounts"),
        ('{"accounts": {"a": {}, "a": {}}, "pools": {}}', "accounts.a"),
        ('{"accounts": {"a": {"type": "openai", "type": "openai"}}}', "accounts.a.type"),
        ('{"pools": {"p": {}, "p": {}}}', "pools.p"),
        ('{"pools": {"p": {"models": [], "models": []}}}', "pools.p.models"),
        ('{"pools": {"p": {"keys": {"k": "x", "k": "x"}}}}', "pools.p.keys.k"),
        ('{"pools": {"p": {"keys": {"k": {"key": "x", "key": "x"}}}}}', "pools.p.keys.k.key"),
        ('{"pools": {"p": {"aliases": {"x": "y", "x": "z"}}}}', "pools.p.aliases.x"),
        ('{"operators": {"me": "x", "me": "y"}}', "operators.me"),
        ('{"limits": {"records_max": 1, "records_max": 2}}', "limits.records_max"),
    ],
)
def test_a_name_that_stands_twice_is_named(raw: str, path: str) -> None:
    assert f"{path}: the name occurs twice" in problems_of(raw.encode())


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="cut"),
        pytest.param(b"{} x", id="more-behind-it"),
        pytest.param(b'{"a": 1,}', id="trailing-comma"),
        pytest.param(b"// no\n{}", id="comment"),
        pytest.param(b'{"a": "\xff"}', id="not-utf-8"),
        pytest.param(b'{"a": ["\\ud800"]}', id="half-a-surrogate-pair"),
        pytest.param("{}".encode("utf-16"), id="utf-16"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"a": ' + b"1" * 10_000 + b"}", id="long-number"),
    ],
)
def test_invalid_json_is_rejected_in_one_line(raw: bytes) -> None:
    [problem] = problems_of(raw)
    assert problem.startswith("pools.json: not valid JSON")


@pytest.mark.parametrize("value", [[], "x", 1, None, True, 1.5])
def test_what_is_no_object_is_refused(value: Json) -> None:
    assert any(problem.startswith("pools.json: ") for problem in problems_of(value))


@pytest.mark.parametrize("depth", [200, 400, 600, 800, 900, 930, 950, 970, 980])
def test_deep_values_are_rejected_in_every_field(depth: int) -> None:
    deep = "[" * depth + "]" * depth
    raw = json.dumps(good_config())[:-1] + f', "hosts": [{deep}, {deep}]}}'
    problems_of(raw.encode())


def test_a_price_may_be_nothing_and_cached_tokens_cost_the_same_unless_told_otherwise() -> None:
    prices = {"m1": {"input": 0, "output": 0}, "m2": {"input": 2.5, "output": 10, "cached": 0.25}}
    config = parse(good_config() | {"prices": prices})
    assert config.prices == {"m1": Price(0, 0, 0), "m2": Price(2.5, 0.25, 10)}
    assert config.warnings == ()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_price_is_a_number(number: str) -> None:
    raw = (
        json.dumps(good_config())[:-1]
        + f', "prices": {{"m1": {{"input": 1, "output": {number}}}}}}}'
    )
    [problem] = problems_of(raw.encode())
    assert problem.startswith("prices.m1.output: must be from 0 to ")


def test_a_login_is_one_account() -> None:
    described = good_config()
    for name, file in (("one", "x/auth.json"), ("two", "x/../x/auth.json")):
        described["accounts"][name] = {"type": "codex", "auth_file": file}
    [problem] = problems_of(described)
    assert problem.startswith("accounts.two.auth_file: is already used by accounts.one")


def test_the_state_file_is_relative_to_pools_json_and_no_login() -> None:
    described = good_config() | {"state": "state/pooler.json"}
    raw = json.dumps(described).encode()
    assert (
        parse_config(raw, ENV, read_file, "/etc/x/pools.json").state == "/etc/x/state/pooler.json"
    )
    assert parse(good_config()).state is None
    described["accounts"]["one"] = {"type": "codex", "auth_file": "x/../state/pooler.json"}
    [problem] = problems_of(described)
    assert problem.startswith("state: is already used by accounts.one: it needs a file of its own")


def test_all_problems_come_at_once_and_in_order() -> None:
    described = good_config() | {"hosts": [1], "base_path": 1, "wrong": 1}
    described["accounts"]["a"] |= {"priority": "1", "base_url": "x"}
    described["pools"]["home"]["keys"]["laptop"] = "short"
    problems = problems_of(described)
    paths = [problem.partition(":")[0] for problem in problems]
    assert paths == [
        "accounts.a.base_url", "accounts.a.priority", "base_path", "hosts[0]", KEY_PATH, "wrong",
    ]  # fmt: skip


@pytest.mark.parametrize("name", TYPED)
def test_each_type_of_account_has_its_own_credential(name: str) -> None:
    account, expected = TYPED[name]
    found = {
        p.removeprefix("accounts.x.") for p in problems_of(changed_config("accounts.x", account))
    }
    assert set(expected) <= found


def test_a_codex_account_uses_chatgpt_by_default() -> None:
    account = {"type": "codex", "auth_file": "accounts/x.json"}
    found = parse(changed_config("accounts.x", account)).accounts["x"]
    assert found.is_codex
    assert (found.auth_file, found.base_url.authority) == ("accounts/x.json", "chatgpt.com")
    assert found.base_url.path == "/backend-api/codex"
    own = account | {"base_url": "http://127.0.0.1:9/backend-api/codex"}
    assert parse(changed_config("accounts.x", own)).accounts["x"].base_url.port == 9


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (None, None),
        ("", None),
        ("https://auth.example.com/oauth/token", None),
        ("http://127.0.0.1:9/oauth/token", None),
        ("http://[::1]:9/oauth/token", None),
        ("http://auth.example.com/oauth/token", "must be https://"),
        ("auth.example.com", "must look like"),
        ("https://user:secret@auth.example.com/", "must look like"),
    ],
)
def test_logins_are_refreshed_only_over_tls_or_loopback(
    url: str | None, problem: str | None
) -> None:
    env = ENV if url is None else ENV | {REFRESH_URL_VARIABLE: url}
    login = {"type": "codex", "auth_file": "accounts/x.json"}
    raw = json.dumps(changed_config("accounts.x", login)).encode()
    if problem is None:
        config = parse_config(raw, env, read_file)
        assert config.token_url.path == "/oauth/token"
        warned = [text for text in config.warnings if text.startswith(REFRESH_URL_VARIABLE)]
        assert len(warned) == bool(url)
        assert not warned or config.token_url.authority in warned[0]
        assert parse_config(json.dumps(good_config()).encode(), env, read_file).warnings == ()
        return
    with pytest.raises(ConfigRefused) as refused:
        parse_config(raw, env, read_file)
    [told] = refused.value.problems
    assert told.startswith(f"{REFRESH_URL_VARIABLE}: {problem}")
    assert "secret" not in told


def test_a_file_that_gets_the_keys_of_all_connections_is_a_warning() -> None:
    raw = json.dumps(good_config()).encode()
    [warning] = parse_config(raw, ENV | {"SSLKEYLOGFILE": "canary"}, read_file).warnings
    assert warning.startswith("SSLKEYLOGFILE is set: ")
    assert "canary" not in warning
    assert parse_config(raw, ENV | {"SSLKEYLOGFILE": ""}, read_file).warnings == ()


def test_a_secret_among_the_models_of_a_pool_is_not_repeated_to_help_an_alias() -> None:
    described = good_config()
    described["pools"]["home"]["models"] = [API_KEY]
    with pytest.raises(ConfigRefused) as refused:
        parse(described)
    assert "aliases" in str(refused.value.problems)
    assert API_KEY not in str(refused.value.problems)


@pytest.mark.parametrize(
    "secret", [SECRET, TOKEN, API_KEY, "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOjEyM30.x"]
)
@pytest.mark.parametrize("path", ["", "accounts", "accounts.a", "pools.home.keys", "operators"])
def test_a_secret_in_the_place_of_a_name_is_not_repeated(path: str, secret: str) -> None:
    """A key written where its name should be must not appear in a log."""
    described = good_config()
    place = described
    for name in filter(None, path.split(".")):
        place = place[name]
    place[secret] = "laptop"
    with pytest.raises(ConfigRefused) as refused:
        parse(described)
    assert f"{path}." * bool(path) + "(hidden)" in str(refused.value.problems)
    assert not any(part in str(refused.value.problems) for part in secret.split(".")[:2])


@pytest.mark.parametrize("name", [one.name for one in dataclasses.fields(Limits)])
def test_each_limit_has_bounds_and_a_type(name: str) -> None:
    [one] = [one for one in dataclasses.fields(Limits) if one.name == name]
    low, high = one.metadata["low"], one.metadata["high"]
    assert low <= one.default <= high
    for value in (low, high):
        kept = parse(good_config() | {"limits": {name: value}}).limits
        assert kept == dataclasses.replace(Limits(), **{name: value})
    for value in (low - 1, high + 1, True, "1", None, [], float("nan"), float("inf")):
        [problem] = problems_of(good_config() | {"limits": {name: value}})
        assert problem.startswith(f"limits.{name}: must be ")
    is_whole = isinstance(one.default, int) and one.type == "int"
    between = low + (high - low) / 2 + 0.25
    if is_whole:
        problems_of(good_config() | {"limits": {name: between}})
    else:
        assert getattr(parse(good_config() | {"limits": {name: between}}).limits, name) == between


@pytest.mark.parametrize(
    ("path", "value", "first"),
    [
        pytest.param(f"{CI}.key", SECRET, KEY_PATH, id="two-keys"),
        pytest.param(f"{CI}.key", DIGEST, KEY_PATH, id="hash-and-key"),
        pytest.param(f"{CI}.key", SHOUTED.replace("SHA", "sha"), KEY_PATH, id="hash-in-capitals"),
        pytest.param(f"{CI}.key", "{env:PADDED}", KEY_PATH, id="variable"),
        pytest.param(f"{CI}.key", "{file:key.txt}", KEY_PATH, id="file"),
        pytest.param("operators.me", OTHER, f"{CI}.key", id="key-and-operator"),
        pytest.param("operators.me", DIGEST, KEY_PATH, id="hash-and-operator"),
        pytest.param("operators.you", TOKEN, "operators.me", id="two-operators"),
        pytest.param(
            "pools.work", {"accounts": ["a"], "keys": {"k": SECRET}}, KEY_PATH, id="pools"
        ),
    ],
)
def test_the_same_secret_twice_names_both_places(path: str, value: Json, first: str) -> None:
    [problem] = problems_of(changed_config(path, value))
    assert problem.startswith(path)
    assert "same secret" in problem
    assert problem.endswith(first)


def test_a_placeholder_comes_with_the_command_to_run() -> None:
    [problem] = problems_of(changed_config(KEY_PATH, "sha256:<printed by: pooler key>"))
    assert "`pooler key`" in problem
    [problem] = problems_of(
        changed_config("operators.me", "sha256:<printed by: pooler key --operator>")
    )
    assert "`pooler key --operator`" in problem


################################################################
# WHAT IS ACCEPTED, AND AS WHAT
################################################################


@pytest.mark.parametrize("written", [SECRET, DIGEST, SHOUTED.replace("SHA", "sha"), "{env:PADDED}"])
@pytest.mark.parametrize("shape", ["bare", "object"])
def test_a_key_is_kept_as_its_digest_however_it_is_written(written: str, shape: str) -> None:
    value = written if shape == "bare" else {"key": written}
    config = parse(changed_config(KEY_PATH, value))
    key = next(iter(config.keys))
    assert key.digest == hashlib.sha256(SECRET.encode()).digest()


@pytest.mark.parametrize("name", ["key.txt", "crlf.txt"])
def test_a_file_gives_its_first_line(name: str) -> None:
    config = parse(changed_config(KEY_PATH, f"{{file:{name}}}"))
    assert next(iter(config.keys)).digest == hashlib.sha256(SECRET.encode()).digest()


@pytest.mark.parametrize("path", [KEY_PATH, f"{CI}.key"])
def test_a_referred_hash_never_becomes_a_password(path: str) -> None:
    """If the variable holds the sha256: line, that line itself is not a valid key."""
    described = changed_config(path, "{env:HASHED}")
    if path != KEY_PATH:
        described["pools"]["home"]["keys"]["laptop"] = "cp-yet-another-key-0123456789"
    try:
        config = parse(described)
    except ConfigRefused:
        return
    assert hashlib.sha256(DIGEST.encode()).digest() not in {key.digest for key in config.keys}


def test_a_secret_of_sixteen_characters_is_enough() -> None:
    assert len("sixteen-letters!") == 16
    parse(changed_config(KEY_PATH, "sixteen-letters!"))


def test_accounts_have_the_documented_defaults() -> None:
    account = parse(changed_config("accounts.a.api_key", "{env:API_KEY}")).accounts["a"]
    assert reveal(account.api_key) == API_KEY
    assert (account.base_url.is_tls, account.base_url.host) == (True, "api.openai.com")
    assert (account.base_url.port, account.base_url.path) == (443, "/v1")
    assert (account.priority, account.paused, account.concurrent) == (0, False, 16)
    assert (account.models, account.ca_file) == (None, None)
    assert account.first_event_seconds == 120


def test_limits_are_the_defaults_of_accounts_and_keys() -> None:
    limits = {"account_streams_max": 3, "key_streams_max": 5, "first_event_seconds_max": 7}
    config = parse(good_config() | {"limits": limits})
    assert {account.concurrent for account in config.accounts.values()} == {3}
    assert {account.first_event_seconds for account in config.accounts.values()} == {7}
    assert {key.concurrent for key in config.keys} == {5}
    assert {key.concurrent for key in parse(good_config()).keys} == {64}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://h", (True, "h", 443, "", "h")),
        ("https://a_b.c-d.", (True, "a_b.c-d.", 443, "", "a_b.c-d.")),
        (f"https://{'a' * 63}.b", (True, f"{'a' * 63}.b", 443, "", f"{'a' * 63}.b")),
        ("https://h/", (True, "h", 443, "", "h")),
        ("https://h:443/v1/", (True, "h", 443, "/v1", "h")),
        ("https://h:8443/a/b", (True, "h", 8443, "/a/b", "h:8443")),
        ("https://[2001:db8::1]:80/v1", (True, "2001:db8::1", 80, "/v1", "[2001:db8::1]:80")),
        ("http://localhost/v1", (False, "localhost", 80, "/v1", "localhost")),
        ("http://127.8.9.1:80/v1", (False, "127.8.9.1", 80, "/v1", "127.8.9.1")),
        ("http://[::1]:8080", (False, "::1", 8080, "", "[::1]:8080")),
    ],
)
def test_a_base_url_is_read(text: str, expected: tuple[bool, str, int, str, str]) -> None:
    url = parse(changed_config("accounts.a.base_url", text)).accounts["a"].base_url
    assert (url.is_tls, url.host, url.port, url.path, url.authority) == expected


def test_plain_http_to_another_machine_is_a_decision() -> None:
    described = changed_config("accounts.a.base_url", "http://192.168.1.5:8080/v1")
    [problem] = problems_of(described)
    assert "allow_plain_http" in problem
    described["accounts"]["a"]["allow_plain_http"] = True
    assert parse(described).accounts["a"].base_url.host == "192.168.1.5"


@pytest.mark.parametrize(
    ("listen", "expected", "is_warned"),
    [
        ("127.0.0.1:4000", [("127.0.0.1", 4000, None)], False),
        ("localhost:0", [("localhost", 0, None)], False),
        (["[::1]:4001", "unix:/run/p.sock"], [("::1", 4001, None), ("", 0, "/run/p.sock")], False),
        ("10.0.0.1:65535", [("10.0.0.1", 65535, None)], True),
        (["[::]:1"], [("::", 1, None)], True),
        ("pooler.example:1", [("pooler.example", 1, None)], True),
    ],
)
def test_listen_takes_three_forms(listen: Json, expected: list[Json], is_warned: bool) -> None:
    config = parse(good_config() | {"listen": listen})
    assert [(one.host, one.port, one.unix_path) for one in config.listen] == expected
    assert bool(config.warnings) == is_warned
    assert parse(good_config() | {"listen": listen, "allow_public": True}).warnings == ()


def test_listen_defaults_to_both_loopbacks() -> None:
    first, second = parse(good_config()).listen
    assert (first.host, first.port, first.is_optional) == ("127.0.0.1", 4000, False)
    assert (second.host, second.port, second.is_optional) == ("::1", 4000, True)


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        ({}, {"localhost", "127.0.0.1", "[::1]"}),
        ({"listen": "127.0.0.9:1"}, {"localhost", "127.0.0.1", "[::1]", "127.0.0.9"}),
        ({"listen": "0.0.0.0:1"}, None),
        ({"listen": ["127.0.0.1:1", "10.0.0.1:1"]}, None),
        ({"listen": "unix:/run/p.sock"}, None),
        ({"listen": ["unix:/p", "[::1]:1"]}, {"localhost", "127.0.0.1", "[::1]"}),
        ({"hosts": ["Pooler.Example.COM"]}, {"pooler.example.com"}),
        ({"hosts": [], "listen": "0.0.0.0:1"}, set()),
        ({"hosts": ["h", "[::1]"], "listen": "0.0.0.0:1"}, {"h", "[::1]"}),
    ],
)
def test_hosts_are_the_loopback_names_by_default(top: Json, expected: set[str] | None) -> None:
    assert parse(good_config() | top).hosts == expected


@pytest.mark.parametrize(
    ("text", "unix"),
    [
        ("2027-01-01", 1_798_848_000),  # the end of that day
        ("2027-01-01T12:00:00Z", 1_798_804_800),
        ("2027-01-01T12:00:00+02:00", 1_798_797_600),
        ("2027-01-01T12:00:00.5Z", 1_798_804_800.5),
        ("2024-02-29", 1_709_251_200),
    ],
)
def test_a_key_expires_at_the_end_of_a_day_or_at_a_time(text: str, unix: float) -> None:
    config = parse(changed_config(f"{CI}.expires", text))
    assert [key.expires for key in config.keys] == [None, unix]


@pytest.mark.parametrize("text", ["", "/pooler", "/a/b.c-d_e~f"])
def test_a_base_path_has_no_slash_at_its_end(text: str) -> None:
    assert parse(good_config() | {"base_path": text}).base_path == text


def test_origins_models_and_aliases_are_taken_as_they_stand() -> None:
    described = good_config() | {
        "allowed_origins": ["https://chat.example.com", "http://localhost:5173"]
    }
    described["pools"]["home"]["aliases"] = {"openai/gpt-x:free": "m2"}
    described["pools"]["home"]["routing"] = "quota_first"
    config = parse(described)
    assert config.allowed_origins == ("https://chat.example.com", "http://localhost:5173")
    assert config.pools["home"].models == ("m1", "m2")
    assert config.pools["home"].aliases == {"openai/gpt-x:free": Alias("m2")}
    assert config.pools["home"].routing == "quota_first"
    assert config.pools["home"].keys[1].models == ("m1",)


def test_a_pool_without_keys_is_a_warning() -> None:
    described = changed_config("pools.home.keys", {})
    [warning] = parse(described).warnings
    assert warning.startswith("pools.home.keys: ")
    del described["pools"]["home"]["keys"]
    assert len(parse(described).warnings) == 1


def test_a_byte_order_mark_before_the_file_is_no_fault() -> None:
    raw = json.dumps(good_config()).encode()
    assert repr(parse(b"\xef\xbb\xbf" + raw)) == repr(parse(raw))


def test_one_account_and_one_alias_may_serve_several_pools() -> None:
    described = changed_config(
        "pools.work", {"accounts": ["a"], "keys": {"laptop": DIGEST[:7] + "0" * 64}}
    )
    config = parse(described)
    assert config.pools["work"].accounts == config.pools["home"].accounts[:1]


################################################################
# ANYTHING AT ALL
################################################################

JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)
CANARY: Final = "hJq7-canary-Zp4-wX9t-canary-Lm2v"
FIELDS: Final = [
    "type",
    "api_key",
    "models",
    "key",
    "keys",
    "accounts",
    "expires",
    "zz\nz",
    "base_url",
]


def windows(secret: str) -> set[str]:
    return {secret[at : at + 8] for at in range(len(secret) - 7)}


def places(value: Json, way: tuple[Json, ...] = ()) -> list[tuple[Json, ...]]:
    inner: Iterable[tuple[Json, Json]] = ()
    if isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    return [way, *(found for name, one in inner for found in places(one, (*way, name)))]


def accepts_or_refuses(raw: bytes) -> None:
    try:
        config = parse_config(raw, ENV, read_file)
    except ConfigRefused as refused:
        problems = list(refused.problems)
    else:
        assert config.accounts
        assert config.pools
        return
    assert problems
    for problem in problems:
        assert all(line.isprintable() for line in problem.split("\n")), problem
        told = {API_KEY, SECRET, OTHER, TOKEN, CANARY}
        assert not any(window in problem for one in told for window in windows(one))


@given(raw=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_accepted_or_refused(raw: bytes) -> None:
    accepts_or_refuses(raw)


@given(data=st.data())
def test_a_good_file_with_any_fault_is_accepted_or_refused_without_its_secrets(
    data: st.DataObject,
) -> None:
    described = copy.deepcopy(good_config())
    *way, last = data.draw(st.sampled_from(places(described)[1:]))
    place = described
    for name in way:
        place = place[name]
    secret = st.sampled_from(
        [CANARY, f"{{env:API_KEY}}{CANARY}", f"<{CANARY}>", f"sha256:{CANARY}"]
    )
    value = data.draw(JSON | secret | st.lists(secret, min_size=1, max_size=2))
    if isinstance(place, dict) and data.draw(st.booleans()):
        last = data.draw(st.sampled_from(FIELDS))
    place[last] = value
    accepts_or_refuses(json.dumps(described).encode())


@pytest.mark.parametrize("pasted", ["sk-proj-0123456789abcdef", "gsk_0123456789abcdef", "x" * 99])
def test_a_secret_in_the_place_of_a_variable_s_name_is_not_repeated(pasted: str) -> None:
    (problem,) = problems_of(changed_config("accounts.a.api_key", f"{{env:{pasted}}}"))
    assert problem == "accounts.a.api_key: the environment variable it names is not set"
