"""Proves that what cannot be intended in pools.json is rejected, or reported with its location.

Method: tables of what people write, laid over a valid configuration: each is rejected at its JSON
path, or warned about by `check`; what resembles it and can be intended is accepted without a
warning.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from trio.testing import MockClock

import pooler
from pooler import Config, ConfigRefused, changes_between, doubts_of, main, parse_config
from tests.support.codex_backend import make_auth_file
from tests.support.configurations import (
    API_KEY,
    CI,
    KEY_PATH,
    OTHER,
    SECRET,
    TOKEN,
    changed_config,
    good_config,
    problems_of,
    read_file,
)
from tests.support.world import World, describe, make_config

Json = Any
NOW: Final = 1_800_000_000.0


def parse(described: Json, env: Mapping[str, str] | None = None) -> Config:
    return parse_config(json.dumps(described).encode(), env or {}, read_file)


################################################################
# SECRETS THAT NOBODY FILLED IN
################################################################

VARIABLES: Final = (
    "$CODEX_POOLER_API_KEY", "$openai_api_key_of_mine", "${OPENAI_API_KEY}", "${OPENAI_API_KEY:-x}",
    "$(cat /run/secrets/key)", "%OPENAI_API_KEY%", "$env:OPENAI_API_KEY", "env:OPENAI_API_KEY",
    "ENV:OPENAI_API_KEY", "os.environ/OPENAI_API_KEY", "os.environ['OPENAI_API_KEY']",
    "os.getenv('OPENAI_API_KEY')", "process.env.OPENAI_API_KEY", "{{OPENAI_API_KEY}}",
    "{{ env.OPENAI_API_KEY }}", "sk-${OPENAI_API_KEY}", "file:/run/secrets/openai",
    "op://vault/openai/credential", "OPENAI_API_KEY", "MY_POOL_TOKEN_KEY", "vault:secret/openai",
    "@/run/secrets/openai", "@~/.openai/api-key",
)  # fmt: skip
QUOTED: Final = (
    f'"{API_KEY}"', f"'{API_KEY}'", f"`{API_KEY}`", f'"{API_KEY}', f"{API_KEY}'",
    f"\N{LEFT DOUBLE QUOTATION MARK}{API_KEY}\N{RIGHT DOUBLE QUOTATION MARK}",
)  # fmt: skip
PLACEHOLDERS: Final = (
    "sk-...", "sk-…", "sk-proj-...abcd", "YOUR_API_KEY", "your-api-key-here", "sk-your-key-here",
    "<your key here, please>", "sk-xxxxxxxxxxxx", "XXXXXXXXXXXXXXXXXXXX", "sk-************",
    "REPLACE_ME_WITH_KEY", "replace-this-please", "changeme-changeme", "change-me-1234567",
    "INSERT_YOUR_KEY_HERE", "insert-key-here-12", "[your api key here]", "paste-key-from-mail",
    "put-your-key-here",
)  # fmt: skip
LINES: Final = (f"OPENAI_API_KEY={API_KEY}", f"export OPENAI_API_KEY={API_KEY}")
GOOD_SECRETS: Final = (
    API_KEY, "sk-up-a-0123456789abcdef", "correct-horse-battery-staple", "$2b$12$abcdefghijklmnop",
    "the-secret-of-CODEX_POOLER_KEY", "sixteen-letters!", "put-the-kettle-on", "a%b%c%d%e%f%g%h%i",
    "cp-x_x-x_x-x_x-x_x-x", "MFRGGZDFMZTWQ2LKNNWG", "pa$$word-of-the-year", "xkcd-936-xkcd-936",
    "s3cret:with:colons", "a.b.c.d.e.f.g.h.i.j", "k=v;k2=v2;k3=v3;k4",
)  # fmt: skip
SHORT_KEYS: Final = (
    "none",
    "ollama",
    "EMPTY",
    "dummy",
    "sk-1234",
    "lm-studio",
    "x",
    "token-abc123",
)


@pytest.mark.parametrize("text", [*VARIABLES, *QUOTED, *PLACEHOLDERS, *LINES])
@pytest.mark.parametrize("path", ["accounts.a.api_key", KEY_PATH, f"{CI}.key", "operators.me"])
@pytest.mark.parametrize("source", ["literal", "env"])
def test_a_secret_that_nobody_filled_in_is_refused_at_its_path(
    path: str, text: str, source: str
) -> None:
    """Also if it comes from the environment, as a Docker env file passes it."""
    given, env = (text, {}) if source == "literal" else ("{env:OAK}", {"OAK": text})
    with pytest.raises(pooler.ConfigRefused) as refused:
        parse(changed_config(path, given), env)
    [problem] = refused.value.problems
    assert problem.startswith(f"{path}: ")
    assert API_KEY not in problem
    assert (
        "{env:NAME}" in problem
        or "at least" in problem
        or "only {env" in problem
        or ("placeholder" in problem)
    )


@pytest.mark.parametrize("text", GOOD_SECRETS)
@pytest.mark.parametrize("path", ["accounts.a.api_key", KEY_PATH, f"{CI}.key", "operators.me"])
def test_a_secret_that_can_be_meant_is_taken(path: str, text: str) -> None:
    parse(changed_config(path, text))


@pytest.mark.parametrize("text", SHORT_KEYS)
def test_what_local_servers_call_a_key_is_taken(text: str) -> None:
    parse(changed_config("accounts.b.api_key", text))


@pytest.mark.parametrize(
    "text", ["$HOME/.codex/auth.json", "${HOME}/a.json", "{env:HOME}/a.json", "%HOME%\\a", "<file>"]
)
@pytest.mark.parametrize("field", ["auth_file", "ca_file"])
def test_a_path_with_a_variable_is_refused(field: str, text: str) -> None:
    account = {"type": "codex", "auth_file": "a.json"} | {field: text}
    [problem] = problems_of(changed_config("accounts.x", account))
    assert problem.startswith(f"accounts.x.{field}: must be a path; variables")


@pytest.mark.parametrize(
    "end",
    ["/responses", "/chat/completions", "/completions", "/models", "/embeddings", "/messages",
     "/responses/compact", "/responses/", "/chat"],
)  # fmt: skip
@pytest.mark.parametrize(
    "base", ["https://api.openai.com/v1", "http://127.0.0.1:8080", "https://h/a"]
)
def test_a_base_url_with_a_route_in_it_is_refused(base: str, end: str) -> None:
    [problem] = problems_of(changed_config("accounts.a.base_url", base + end))
    assert problem.startswith(f"accounts.a.base_url: must end before {end.rstrip('/')}")


################################################################
# EACH PROBLEM ONCE, AT ITS PLACE
################################################################

NO_ALIAS: Final = "must map a name that is not in models to one that is"
MAKES_ONE: Final = "`pooler key` generates one"
ONCE: Final[dict[str, tuple[str, Json, list[str]]]] = {
    "empty api key": (
        "accounts.a.api_key", "", ["accounts.a.api_key: is required and must not be empty"],
    ),
    "empty key": (KEY_PATH, "", [f"{KEY_PATH}: is required and must not be empty"]),
    "empty inner key": (f"{CI}.key", "", [f"{CI}.key: is required and must not be empty"]),
    "empty file": (
        "accounts.a", {"type": "codex", "auth_file": ""},
        ["accounts.a.auth_file: must be a path that does not begin with ~"],
    ),
    "empty type": (
        "accounts.a.type", "", ["accounts.a.type: must be 'openai' or 'codex'"],
    ),
    "no object": ("accounts.a", 1, ["accounts.a: must be an object, not a whole number"]),
    "a list": ("pools", [], ["pools: must be an object, not a list"]),
    "twice, and not there": (
        "pools.home.accounts", ["zz", "zz"],
        ["pools.home.accounts[0]: no account has this name; known: a, b",
         "pools.home.accounts[1]: is listed twice"],
    ),
    "no text, and not there": (
        "pools.home.accounts", [1, "zz"],
        ["pools.home.accounts[0]: must be a string, not a whole number",
         "pools.home.accounts[1]: no account has this name; known: a, b"],
    ),
    "models twice, and an alias": (
        "pools.home", {"accounts": ["a"], "models": ["m", "m"], "aliases": {"x": "y"}},
        [f"pools.home.aliases.x: {NO_ALIAS}",
         "pools.home.models[1]: is listed twice"],
    ),
    "an alias of no text": (
        "pools.home.aliases.x", ["m1"], ["pools.home.aliases.x: must be a string, not a list"],
    ),
    "an alias without its model": (
        "pools.home.aliases.x", {"effort": "low"},
        ["pools.home.aliases.x.model: is required and must not be empty"],
    ),
    "an alias misspelt": (
        "pools.home.aliases.x", {"model": "m-1"},
        [f"pools.home.aliases.x: {NO_ALIAS}; did you mean 'm1'?"],
    ),
    "an alias that is a model": (
        "pools.home.aliases.m1", "m2", [f"pools.home.aliases.m1: {NO_ALIAS}"],
    ),
    "a number for an address": (
        "listen", 4000, ["listen: must be a string, not a whole number"],
    ),
    "a long socket": (
        "listen", f"unix:/{'x' * 107}", ["listen: the path of a socket has at most 107 bytes"],
    ),
    "a key that nobody can present": (
        f"{CI}.key", "k0" * 257,
        [f"{CI}.key: has more than 512 characters, so no client can present it"],
    ),
    "a time without end": (
        f"{CI}.expires", "9999-12-31",
        [f"{CI}.expires: is too far away; a key without it never expires"],
    ),
    "a limit in full": (
        "limits", {"body_bytes_max": 1}, ["limits.body_bytes_max: must be from 1024 to 536870912"],
    ),
    "dots in a prefix": ("base_path", "/a/../b", ["base_path: must be a path like /pooler"]),
    "a variable in the proxy's login": (
        "proxy", "http://$USER:${PASS}@h:1",
        ["proxy: its name or password is a variable that is not expanded here"],
    ),
    "another program's placeholder as password": (
        "proxy", "http://me:<password>@h:1", ["proxy: its name or password is a placeholder"],
    ),
    "a login that is pools.json": (
        "accounts.a", {"type": "codex", "auth_file": "./pools.json"},
        ["accounts.a.auth_file: is pools.json itself, which would be replaced"],
    ),
    "a login in quotes": (
        "accounts.a", {"type": "codex", "auth_file": "'a.json'"},
        ["accounts.a.auth_file: must be a path, without quotes around it"],
    ),
    "a login far away": (
        "accounts.a", {"type": "codex", "auth_file": "https://h/auth.json"},
        ["accounts.a.auth_file: must be a path, not a URL, and without spaces around it"],
    ),
    "long name": (
        f"accounts.{'n' * 65}", {"type": "openai", "api_key": "none"},
        [f"accounts.{'n' * 64}…: the name has 65 characters; the maximum is 64"],
    ),
    "odd name": (
        "accounts.a b", {"type": "openai", "api_key": "none"},
        ["accounts.a b: the name must consist of letters, digits and _.-"],
    ),
    "name begins oddly": (
        "operators.-me", OTHER[:-1],
        ["operators.-me: the name must begin with a letter or digit"],
    ),
    "odd name of a key, which has a problem, too": (
        "pools.home.keys", {"a b": SECRET, "": OTHER, "c": "short"},
        ["pools.home.keys.a b: the name must consist of letters, digits and _.-",
         f"pools.home.keys.c: must have at least 16 visible ASCII characters; {MAKES_ONE}",
         "pools.home.keys: a name is empty"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ONCE)
def test_each_problem_is_reported_once_with_its_location(name: str) -> None:
    path, value, expected = ONCE[name]
    described = good_config()
    *way, last = path.split(".")
    place = described
    for one in way:
        place = place[one]
    place[last] = value
    assert problems_of(described) == expected


MEANT: Final[dict[str, tuple[str, str]]] = {
    "another case": ("accounts.a.baseURL", "did you mean 'base_url'?"),
    "small letters": ("accounts.a.APIKEY", "did you mean 'api_key'?"),
    "joined otherwise": (f"{CI}.requestsPerMinute", "did you mean 'requests_per_minute'?"),
    "in another word": ("accounts.a.weight", "did you mean 'priority'?"),
    "the reverse": ("accounts.a.enabled", "did you mean 'paused'?"),
    "in one word": ("accounts.a.key", "did you mean 'api_key'?"),
    "in one word of many": ("pools.home.key", "did you mean 'keys'?"),
    "in short": (f"{CI}.rpm", "did you mean 'requests_per_minute'?"),
    "of a server": ("port", "did you mean 'listen'?"),
    "of another place": ("accounts.a.proxy", "it belongs to the top of the file"),
    "of another place, too": ("drain_seconds_max", "it belongs under limits"),
    "of an account": ("pools.home.priority", "it belongs to an account"),
    "of a pool": ("aliases", "it belongs to a pool"),
    "of a limit that is fixed": ("limits.head_bytes_max", "this limit can no longer be set"),
    "of a limit that is gone": ("limits.decoded_bytes_max", "this limit can no longer be set"),
}


@pytest.mark.parametrize("name", MEANT)
def test_an_unknown_field_is_reported_with_the_likely_name_or_place(name: str) -> None:
    path, words = MEANT[name]
    described = changed_config(path, 1) if not path.startswith("limits.") else good_config()
    if path.startswith("limits."):
        described["limits"] = {path.removeprefix("limits."): 1}
    assert problems_of(described) == [f"{path}: unknown field; {words}"]


@pytest.mark.parametrize("text", ['{"OPENAI_API_KEY": "sk-1"}', "{", '{"key":"x"}'])
@pytest.mark.parametrize("path", ["accounts.a.api_key", KEY_PATH, "operators.me"])
def test_json_is_no_key(path: str, text: str) -> None:
    """Like the first line of a file that was mistaken for the key's."""
    with pytest.raises(pooler.ConfigRefused) as refused:
        parse(changed_config(path, "{env:OAK}"), {"OAK": text})
    [problem] = refused.value.problems
    assert problem.startswith(f"{path}: is JSON, of which the key is only a part")


NO_JSON: Final[dict[str, tuple[str, int, int, str]]] = {
    "comma in an object": ('{\n  "accounts": {},\n}', 2, 17, "a comma before a closing bracket"),
    "comma in a list": ('{"models": [1, 2, ]}', 1, 17, "a comma before a closing bracket"),
    "comma, then lines": ('{"a": 1,\n\n\n}', 1, 8, "a comma before a closing bracket"),
    "comment": ('{\n  // mine\n  "accounts": {}}', 2, 3, "a comment; JSON has none"),
    "comment behind": ('{"accounts": 1, // mine\n "pools": 2}', 1, 17, "a comment; JSON has none"),
    "comment without a comma": ('{"a": 1 /* x */}', 1, 9, "a comment; JSON has none"),
    "comment at the end": ("{}\n# mine", 2, 1, "a comment; JSON has none"),
    "single quotes": ("{'a': 1}", 1, 2, "a single quote"),
    "typographic quotes": ('{\N{LEFT DOUBLE QUOTATION MARK}a": 1}', 1, 2, "a typographic quote"),
    "python": ('{"allow_public": True}', 1, 18, "lower case"),
    "no comma": ('{"a": 1\n "b": 2}', 2, 2, "a comma is missing before this"),
    "no colon": ('{"a" 1}', 1, 6, "a colon is missing before this"),
    "no quotes": ("{a: 1}", 1, 2, "something is missing before this"),
    "cut": ('{"a": {', 1, 8, "it ends too early"),
    "cut before a line end": ('{"a": {\n\n', 1, 8, "it ends too early"),
    "open string": ('{"a": "b}', 1, 7, "a string that is not closed"),
    "line break": ('{"a": "b\nc"}', 1, 9, "a line break or tab within a string"),
    "backslash": ('{"a": "C:\\x"}', 1, 10, "a backslash in a string"),
    "more": ("{} {}", 1, 4, "more text after the end"),
    "two commas": ('{"a": 1,, "b": 2}', 1, 9, "one comma too many"),
}


@pytest.mark.parametrize("name", NO_JSON)
def test_what_is_no_json_is_shown_with_its_line_and_a_caret(name: str) -> None:
    text, line, column, words = NO_JSON[name]
    [problem] = problems_of(text.encode())
    told, shown, caret = problem.split("\n")
    assert told.startswith(f"pools.json: not valid JSON at line {line}, column {column}: ")
    assert words in told
    assert caret == "  " + " " * (column - 1) + "^"
    structure = [at for at, one in enumerate(text.split("\n")[line - 1]) if one in "{}[],:"]
    assert all(shown[2 + at] in "{}[],:" for at in structure)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_has_no_line_to_show(text: str) -> None:
    [problem] = problems_of(text.encode())
    assert problem.startswith("pools.json: not valid JSON at line 1: the file is empty; delete it")
    assert "\n" not in problem


def test_a_line_that_is_shown_holds_no_secret() -> None:
    line = f'"keys": {{"laptop": "{SECRET}", \'ci\': {OTHER}, "key": "{TOKEN}"'
    for text in (f"{{{line},}}", f"{{{line} // {API_KEY}\n}}", " " * 5000 + f"{{{line}"):
        [problem] = problems_of(text.encode())
        assert '"keys"' in problem or len(text) > 5000
        assert len(problem) < 400
        for secret in (SECRET, OTHER, TOKEN, API_KEY):
            assert not any(secret[at : at + 4] in problem for at in range(len(secret) - 3))


################################################################
# ACCEPTED, AND DOUBTED
################################################################


def codex(**more: Json) -> Json:
    return {"type": "codex", "auth_file": "a.json", **more}


def openai(base_url: str = "https://h/v1", **more: Json) -> Json:
    return {"type": "openai", "api_key": API_KEY, "base_url": base_url, **more}


DOUBTS: Final[dict[str, tuple[Mapping[str, Json], list[str]]]] = {
    "good": ({}, []),
    "a model that nobody lists": (
        {"accounts.a.models": ["m1"], "accounts.b.models": ["zz", "m1"]},
        ["pools.home.models[1]: no account"],
    ),
    "not all accounts list theirs": ({"accounts.a.models": ["m1"]}, []),
    "an account without any of the pool's": (
        {"accounts.a.models": ["zz"]}, ["pools.home.accounts[0]: a lists none"],
    ),
    "an alias of what nobody lists": (
        {"accounts.a.models": ["m1"], "accounts.b.models": ["m1"],
         "pools.home": {"accounts": ["a", "b"], "aliases": {"s": "m2"}, "keys": {"k": SECRET}}},
        ["pools.home.aliases.s: no account"],
    ),
    "a key's model outside": ({f"{CI}.models": ["m1", "zz"]}, [f"{CI}.models[1]: this pool"]),
    "a key's model is an alias": ({f"{CI}.models": ["small"]}, []),
    "a key's model that nobody lists": (
        {"accounts.a.models": ["m1"],
         "pools.home": {"accounts": ["a"], "keys": {"k": {"key": SECRET, "models": ["zz"]}}},
         "pools.p": {"accounts": ["b"], "keys": {"k": OTHER}}},
        ["pools.home.keys.k.models[0]: this pool"],
    ),
    "an expired key": ({f"{CI}.expires": "2020-01-01"}, [f"{CI}.expires: this key has expired"]),
    "a key that expires later": ({f"{CI}.expires": "2030-01-01"}, []),
    "no key that works": (
        {"pools.home.keys": {"k": {"key": SECRET, "expires": "2020-01-01T00:00:00Z"},
                             "l": {"key": OTHER, "paused": True}}},
        ["pools.home.keys.k.expires: this key", "pools.home.keys: all of them"],
    ),
    "all paused": (
        {"accounts.a.paused": True, "accounts.b.paused": True}, ["pools.home.accounts: all of"],
    ),
    "one paused": ({"accounts.a.paused": True}, []),
    "in no pool": ({"accounts.c": openai()}, ["accounts.c: is in no pool"]),
    "price of no model": (
        {
            "pools.home.models": ["m1"],
            "prices": {"m1": {"input": 1, "output": 1}, "m11": {"input": 1, "output": 1}},
        },
        ["prices.m11: no pool offers this model"],
    ),
    "no path": ({"accounts.a.base_url": "https://api.openai.com"}, ["accounts.a.base_url: should"]),
    "another path": (
        {"accounts.a.base_url": "https://openrouter.ai/v1"}, ["accounts.a.base_url: should end"],
    ),
    "a local server without a path": (
        {"accounts.b.base_url": "http://127.0.0.1:11434"}, ["accounts.b.base_url: has no path"],
    ),
    "no path, rightly": ({"accounts.a.base_url": "https://api.deepseek.com"}, []),
    "a login for keys": (
        {"accounts.a": codex(base_url="https://api.openai.com/v1")},
        ["accounts.a.base_url: this address takes API keys"],
    ),
    "a login, half of its path": (
        {"accounts.a": codex(base_url="https://chatgpt.com")}, ["accounts.a.base_url: should end"],
    ),
    "a key for logins": (
        {"accounts.a.base_url": "https://chatgpt.com/backend-api/codex"},
        ["accounts.a.base_url: this address takes ChatGPT logins"],
    ),
    "no key for OpenAI": ({"accounts.a.api_key": "none"}, ["accounts.a.api_key: "]),
    "no host": ({"hosts": []}, ["hosts: is empty"]),
    "a host that nobody has filled in": (
        {"accounts.a.base_url": "https://your-resource.openai.azure.com/openai/v1"},
        ["accounts.a.base_url: is a placeholder"],
    ),
    "a host of examples": (
        {"accounts.a.base_url": "https://llm.example.com/v1"}, ["accounts.a.base_url: is a placeh"],
    ),
    "twice the version": (
        {"accounts.a.base_url": "https://api.openai.com/v1/v1"}, ["accounts.a.base_url: has /v1"],
    ),
    "its own address": (
        {"accounts.b.base_url": "http://localhost:4000/v1"}, ["accounts.b.base_url: is where"],
    ),
    "its own address, among all": (
        {"accounts.b.base_url": "http://127.0.0.1:4001/v1", "listen": "0.0.0.0:4001"},
        ["accounts.b.base_url: is where"],
    ),
    "another port": ({"accounts.b.base_url": "http://localhost:4001/v1"}, []),
    "its own address as proxy": ({"proxy": "http://127.0.0.1:4000"}, ["proxy: is where"]),
    "a prefix that is a route": ({"base_path": "/v1"}, ["base_path: is put before /v1"]),
    "a pool key that is an account's": (
        {f"{CI}.key": API_KEY}, [f"{CI}: is also the api_key of a"],
    ),
    "no model of an account": (
        {"accounts.a.models": []}, ["accounts.a.models: is empty"],
    ),
    "no model of a pool": (
        {"pools.home": {"accounts": ["a", "b"], "models": [], "keys": {"k": SECRET}}},
        ["pools.home.models: is empty"],
    ),
    "no model of a key": ({f"{CI}.models": []}, [f"{CI}.models: is empty"]),
    "patterns": (
        {"accounts.a.models": ["m1", "gpt-*"], "accounts.b.models": {"m2": "*"}},
        ["accounts.a.models[1]: names are compared", "accounts.b.models.m2: names are compared"],
    ),
    "a pool's pattern": (
        {"pools.home.models": ["m1", "m2", "*"]}, ["pools.home.models[2]: names are compared"],
    ),
    "blanks around names": (
        {"accounts.a.models": {"m1": " x"}, "pools.home.aliases": {"a ": "m1"}},
        ["accounts.a.models.m1: has a space", "pools.home.aliases.a : has a space"],
    ),
    "variables for names": (
        {"accounts.a.models": {"m1": "$MODEL", "m2": "<model>"}},
        ["accounts.a.models.m1: is a variable", "accounts.a.models.m2: is a variable"],
    ),
    "an effort that there is not": (
        {"pools.home.aliases.x": {"model": "m1", "effort": "hihg"}},
        ["pools.home.aliases.x.effort: is not a known value; did you mean 'high'?"],
    ),
    "a tier that there is not": (
        {"pools.home.aliases.x": {"model": "m1", "service_tier": "prioritised"}},
        ["pools.home.aliases.x.service_tier: is not a known value; did you mean 'priority'?"],
    ),
    "efforts and tiers that there are": (
        {"pools.home.aliases.x": {"model": "m1", "effort": "ultra", "service_tier": "flex"}}, [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DOUBTS)
def test_what_is_accepted_and_cannot_be_meant_is_doubted_at_its_place(name: str) -> None:
    changes, expected = DOUBTS[name]
    described = good_config()
    for path, value in changes.items():
        *way, last = path.split(".")
        place = described
        for one in way:
            place = place[one]
        place[last] = value
    doubts = doubts_of(parse(described), NOW)
    assert len(doubts) == len(expected)
    for doubt, beginning in zip(doubts, expected, strict=True):
        assert doubt.startswith(beginning)
        assert API_KEY not in doubt


def write(folder: Path, described: Json, mode: int = 0o600) -> Path:
    path = folder / "pools.json"
    path.write_text(json.dumps(described))
    path.chmod(mode)
    return path


def test_check_and_startup_report_what_cannot_be_intended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, changed_config("accounts.c", openai()))
    assert main(["check", "--config", str(path)]) == 0
    assert "warning: accounts.c: is in no pool" in capsys.readouterr().out
    config, _ = pooler.load(path, {})
    assert [one.partition(":")[0] for one in config.warnings] == ["accounts.c"]


def test_a_file_that_the_user_may_not_read_says_who_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, _: int) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(pooler, "read_file", refuse)
    with pytest.raises(pooler.ConfigRefused, match="run the pooler as its owner"):
        pooler.load(tmp_path / "pools.json", {})


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o604, 0o646, 0o602, 0o620, 0o664])
@pytest.mark.parametrize(
    "place", ["accounts.a.api_key", KEY_PATH, "operators.me", "notify.token", "proxy", ""]
)
def test_a_file_with_secrets_that_others_can_read_is_doubted(
    tmp_path: Path, mode: int, place: str
) -> None:
    described: Json = {
        "accounts": {"a": openai(api_key="{env:A}")},
        "pools": {"home": {"accounts": ["a"], "keys": {"laptop": "sha256:" + "0" * 64}}},
        "operators": {"me": "sha256:" + "1" * 64},
        "notify": {"url": "{env:HOOK}"},
        "proxy": "http://127.0.0.1:3128",
    }
    if place:
        *way, last = place.split(".")
        inner = described
        for one in way:
            inner = inner[one]
        inner[last] = f"http://me:{SECRET}@127.0.0.1:3128" if place == "proxy" else SECRET
    path = write(tmp_path, described, mode)
    hook = "https://ntfy.example/" + (SECRET if mode & 0o002 else "t")
    config, _ = pooler.load(path, {"A": API_KEY, "HOOK": hook})
    expected = [place] if mode & 0o044 and place else []
    expected += [str(path)] if mode & 0o022 else []
    assert [one.partition(":")[0] for one in config.warnings] == expected
    assert all("chmod" in one for one in config.warnings)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (0o600, None),
        (0o400, None),
        (0o640, "others can read this secret: chmod 600 "),
        (0o604, "others can read this secret: chmod 600 "),
        (0o620, "others can change this secret: chmod go-w "),
        (0o602, "others can change this secret: chmod go-w "),
    ],
)
def test_a_secret_s_file_that_others_can_read_or_change_is_doubted_once(
    tmp_path: Path, mode: int, words: str | None
) -> None:
    secret_file = tmp_path / "up.txt"
    secret_file.write_text(API_KEY)
    secret_file.chmod(mode)
    accounts = {name: openai(api_key="{file:up.txt}") for name in "ab"}
    keys = {"laptop": "sha256:" + "0" * 64}
    pools = {"home": {"accounts": ["a", "b"], "keys": keys}}
    config, _ = pooler.load(write(tmp_path, {"accounts": accounts, "pools": pools}), {})
    expected = [] if words is None else [f"{secret_file}: {words}{secret_file}"]
    assert list(config.warnings) == expected


@pytest.mark.parametrize(("mode", "is_doubted"), [(0o444, False), (0o640, False), (0o666, True)])
def test_a_secret_that_a_container_s_runtime_mounts_may_be_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, *, is_doubted: bool
) -> None:
    """Its mode is the container runtime's choice, and the container has no other users."""
    monkeypatch.setattr(pooler, "MOUNTED_SECRETS", tmp_path / "mounted")
    secret_file = tmp_path / "mounted" / "key"
    secret_file.parent.mkdir()
    secret_file.write_text(API_KEY)
    secret_file.chmod(mode)
    described = good_config() | {"accounts": {"a": openai(api_key=f"{{file:{secret_file}}}")}}
    described["pools"]["home"]["accounts"] = ["a"]
    config, _ = pooler.load(write(tmp_path, described), {})
    assert any("others can change this secret" in text for text in config.warnings) == is_doubted
    assert not any("others can read this secret" in text for text in config.warnings)


UNABLE: Final[dict[str, Callable[[Path], Json]]] = {
    "no login": lambda folder: codex(auth_file=str(folder / "none.json")),
    "broken": lambda folder: codex(auth_file=str(write(folder, []).rename(folder / "b.json"))),
    "paused": lambda folder: codex(auth_file=login_in(folder), paused=True),
}


def login_in(folder: Path) -> str:
    make_auth_file(folder / "good" / "auth.json", "acct-1")
    return str(folder / "good" / "auth.json")


@pytest.mark.parametrize("name", [*UNABLE, "able"])
@pytest.mark.parametrize("count", [1, 2])
def test_check_says_where_nobody_can_serve_a_pool(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, count: int
) -> None:
    accounts = {
        "a": UNABLE[name](tmp_path) if name in UNABLE else codex(auth_file=login_in(tmp_path))
    }
    if count == 2:
        accounts["b"] = openai(paused=True)
    pools = {"home": {"accounts": list(accounts), "keys": {"k": SECRET}}}
    path = write(tmp_path, {"accounts": accounts, "pools": pools})
    assert main(["check", "--config", str(path)]) == (name == "broken")
    told = capsys.readouterr().out
    assert ("warning: pools.home: no account can serve it" in told) == (name in UNABLE)


async def test_the_start_says_where_nobody_can_serve_a_pool(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    accounts = {"a": codex(auth_file=str(tmp_path / "none.json")), "b": openai(paused=True)}
    described = {"accounts": accounts, "pools": {"home": {"accounts": ["a", "b"]}}}
    logged: list[str] = []
    server = pooler.Server(
        parse(described),
        {None: pooler.make_tls_context(None)},
        log=lambda _level, _event, told: logged.append(str(told.get("problem"))),
    )
    await server.shared.login_watch.inspect_all()
    assert [one for one in logged if one.startswith("pools.home: no account can serve it")]


################################################################
# RELOADS
################################################################

CHANGES: Final[dict[str, tuple[str, Json, list[str]]]] = {
    "nothing": ("accounts.a.api_key", API_KEY, []),
    "a default that is written": ("accounts.a.priority", 0, []),
    "a key": ("pools.home.keys.new", TOKEN + "x", ["pools.home.keys.new added"]),
    "a key's secret": (KEY_PATH, TOKEN + "x", [f"{KEY_PATH}.digest changed"]),
    "a key's limit": (f"{CI}.concurrent", 3, [f"{CI}.concurrent changed"]),
    "an account": ("accounts.c", openai(), ["accounts.c added"]),
    "an account's key": ("accounts.a.api_key", OTHER, ["accounts.a.api_key changed"]),
    "pausing": ("accounts.b.paused", True, ["accounts.b.paused changed"]),
    "fewer accounts": ("pools.home.accounts", ["b"], ["pools.home.accounts changed"]),
    "a pool": ("pools.p", {"accounts": ["a"]}, ["pools.p added"]),
    "an operator": ("operators", {}, ["operators.me removed"]),
    "a limit": ("limits", {"attempts_max": 7}, ["limits.attempts_max changed"]),
    "a top field": ("base_path", "/p", ["base_path changed"]),
    "routing": ("pools.home.routing", "quota_first", ["pools.home.routing changed"]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_reload_logs_what_it_changed(name: str) -> None:
    path, value, expected = CHANGES[name]
    told = changes_between(
        parse(good_config()),
        parse(
            changed_config(path, value) if path != "limits" else good_config() | {"limits": value}
        ),
    )
    assert told == expected
    assert not any(secret in str(told) for secret in (API_KEY, OTHER, SECRET, TOKEN))


def test_a_proxy_with_a_login_is_logged_as_changed_only_if_it_differs() -> None:
    described = good_config() | {"proxy": "http://me:canary@127.0.0.1:3128"}
    assert changes_between(parse(described), parse(described)) == []
    for other in ("http://me:other@127.0.0.1:3128", "http://127.0.0.1:3128"):
        assert changes_between(parse(described), parse(described | {"proxy": other})) == [
            "proxy changed"
        ]
    assert changes_between(parse(good_config()), parse(described)) == ["proxy changed"]


def test_removed_objects_are_logged_whole_and_long_lists_are_cut_short() -> None:
    described = good_config()
    del described["accounts"]["b"]
    described["pools"]["home"]["accounts"] = ["a"]
    assert changes_between(parse(good_config()), parse(described)) == [
        "accounts.b removed", "pools.home.accounts changed",
    ]  # fmt: skip
    for number in range(150):
        described["pools"]["home"]["keys"][f"k{number}"] = f"cp-0123456789-{number}-abcdef"
    told = changes_between(parse(good_config()), parse(described))
    assert (len(told), told[-1]) == (101, "and 52 more")


async def test_the_log_of_a_reload_says_what_changed_or_that_nothing_did(world: World) -> None:
    def other() -> pooler.Loaded:
        limits = pooler.Limits(attempts_max=7)
        return dataclasses.replace(config, limits=limits), contexts

    config, contexts = world.server.shared.config, dict(world.server.shared.tls_contexts)
    await world.server.reload(lambda: (config, contexts))
    await world.server.reload(other)
    told = [fields["changed"] for _, event, fields in world.logged if event == "reloaded"]
    assert told == ["nothing", ["limits.attempts_max changed"]]


def test_a_configuration_that_disappears_is_refused_and_no_bug(tmp_path: Path) -> None:
    config = make_config(describe("a"))
    with pytest.raises(ConfigRefused):
        pooler.doubts_of_modes(tmp_path / "pools.json", config)
