"""Proves that `pooler init` writes a configuration that works, and says all that a user needs next.

Method: texts are made from values; the command runs as a process, on a pseudo terminal where it
asks, and next to local servers on real sockets, good and hostile ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import jsonschema  # type: ignore[import-untyped] # it has no types
import pytest

import pooler
from pooler import Config, OfferedModel, SetupPlan
from tests.support.local_servers import Play, listing, local_server, response
from tests.support.paths import POOLER
from tests.support.server_process import ENV, SECONDS_MAX, run_pooler
from tests.support.terminals import CTRL_C, CTRL_D, Terminal

URL: Final = "http://127.0.0.1:4000"
NOBODY: Final = "http://127.0.0.1:9/v1"  # where nothing listens
CLIENT: Final = "CODEX_POOLER_API_KEY"
OPERATOR: Final = "CODEX_POOLER_OPERATOR_TOKEN"
slow: Final = pytest.mark.slow

################################################################
# THE PLAN
################################################################


def planned(**words: list[str]) -> SetupPlan:
    return pooler.plan_setup(words)


def problems_of(**words: list[str]) -> list[str]:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 (its arguments are compared)
        pooler.plan_setup(words)
    return list(refused.value.args)


def test_a_plan_has_a_client_and_an_operator_in_any_case() -> None:
    plan = planned(openai=["platform"])
    assert (plan.client, plan.operator) == (["laptop"], ["me"])
    assert plan.openai == {"platform": "OPENAI_API_KEY"}


def test_an_api_key_may_be_in_a_variable_of_another_name() -> None:
    plan = planned(openai=["a", "b=KEY_OF_B"])
    assert plan.openai == {"a": "OPENAI_API_KEY", "b": "KEY_OF_B"}


@pytest.mark.parametrize(
    ("word", "path", "models"),
    [
        ("x=http://127.0.0.1:8080", "/v1", []),
        ("x=http://127.0.0.1:8080/", "/v1", []),
        ("x=https://[::1]/api/,m", "/api", ["m"]),
        ("x=http://box:1/v1,m,n=1,m", "/v1", ["m", "n=1"]),
    ],
)
def test_a_local_server_has_an_address_and_may_have_models(
    word: str, path: str, models: list[str]
) -> None:
    [server] = planned(local=[word]).local
    assert server.url.path == path
    assert [model.name for model in server.models] == models
    assert all(model.is_chat_only for model in server.models)


NAME: Final = (
    "must be a name of at most 64 letters, digits and _.-, which begins with a letter or digit"
)
KEY: Final = "(hidden): looks like a key; write a name, as keys are read from the environment"
WRONG: Final[dict[str, tuple[dict[str, list[str]], str]]] = {
    "space": ({"chatgpt": ["a b"]}, f'"a b": {NAME}'),
    "path": ({"chatgpt": ["../x"]}, f'"../x": {NAME}'),
    "empty": ({"chatgpt": [""]}, f'"": {NAME}'),
    "long": ({"client": ["y" * 65]}, f'"{"y" * 64}": {NAME}'),
    "escape": ({"operator": ["\x1b[1m"]}, f'"\\u001b[1m": {NAME}'),
    "key": ({"openai": ["sk-proj-0123456789abcdef"]}, KEY),
    "key-as-variable": (
        {"openai": ["platform=sk-proj-0123456789abcdef"]},
        '"platform": must be NAME or NAME=VARIABLE, with the variable that has the key',
    ),
    "no-url": (
        {"local": ["llama"]},
        '"llama": must be NAME=URL, like llama=http://127.0.0.1:8080/v1',
    ),
    "alone": ({"local": [""]}, '"": must be NAME=URL, like llama=http://127.0.0.1:8080/v1'),
    "url": ({"local": ["x=localhost:8080"]}, '"x": must look like x=http://127.0.0.1:8080/v1'),
    "login": ({"local": ["x=http://a:b@c/v1"]}, '"x": must look like x=http://127.0.0.1:8080/v1'),
    "route": (
        {"local": ["x=http://a/v1/chat/completions"]},
        '"x": must end before /chat/completions, which the pooler adds',
    ),
    "model": ({"local": ["x=http://a/v1,"]}, '"x": must be a model name'),
    "twice": ({"chatgpt": ["a", "a"]}, '"a": only one account can have this name'),
    "case": ({"chatgpt": ["Ab", "aB"]}, '"ab": only one account can have this name'),
    "kinds": (
        {"chatgpt": ["a"], "local": ["a=http://b/v1"]},
        '"a": only one account can have this name',
    ),
    "clients": (
        {"openai": ["a"], "client": ["b", "b"]},
        '"b": only one client can have this name',
    ),
    "variables": (
        {"openai": ["a", "b"]},
        '"openai_api_key": only one API key can have this name; write NAME=VARIABLE',
    ),
    "nothing": (
        {"client": ["b"]},
        "name an account: --chatgpt NAME, --openai, or --local NAME=URL",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_a_line_that_says_what_to_write(case: str) -> None:
    words, problem = WRONG[case]
    assert problems_of(**words) == [problem]


def test_all_problems_are_told_at_once() -> None:
    assert len(problems_of(chatgpt=["a b", "c d"], local=["x"], client=["!"])) == 4


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("\n", ["personal"]),
        ("-\n", []),
        (" No \n", []),
        ("YES\n", ["personal"]),
        ("a  b\n", ["a", "b"]),
        ("a, b", ["a", "b"]),
    ],
)
def test_an_answer_may_be_names_yes_no_or_nothing(answer: str, words: list[str]) -> None:
    assert pooler.words_of(answer, pooler.SETUP_PARTS["chatgpt"]) == words


################################################################
# THE FILE
################################################################


def written(plan: SetupPlan) -> Any:  # noqa: ANN401 (JSON)
    keys = {name: f"cp-secret-of-{name}-0123456789" for name in plan.client}
    tokens = {name: f"cpo-secret-of-{name}-0123456789" for name in plan.operator}
    text = pooler.first_config(plan, keys, tokens)
    env = dict.fromkeys(plan.openai.values(), "sk-0123456789-abcdef")
    config = pooler.parse_config(text.encode(), env, str)
    assert (config.warnings, pooler.doubts_of(config, time.time())) == ((), [])
    jsonschema.validate(json.loads(text), pooler.config_schema())
    return json.loads(text)


def with_models(plan: SetupPlan, *models: OfferedModel) -> SetupPlan:
    """The plan, whose servers all have listed these."""
    return plan._replace(local=[server._replace(models=models) for server in plan.local])


def priorities(config: Any) -> dict[str, int]:  # noqa: ANN401 (JSON)
    return {name: account.get("priority", 0) for name, account in config["accounts"].items()}


def test_accounts_are_used_in_the_order_of_what_they_cost() -> None:
    plan = planned(chatgpt=["a", "b"], openai=["api"], local=["x=http://127.0.0.1:8080"])
    known = with_models(plan, OfferedModel("m", True))
    assert priorities(written(known)) == {"a": 1, "b": 1, "api": 2, "x": 0}
    # A server whose models are unknown would get requests for all of them.
    assert priorities(written(plan)) == {"a": 0, "b": 0, "api": 1, "x": 2}
    assert priorities(written(planned(openai=["api"]))) == {"api": 0}


@pytest.mark.parametrize(
    ("plan", "aliases"),
    [
        (planned(chatgpt=["a"]), {"gpt-5.4-nano": "gpt-5.5"}),
        (planned(chatgpt=["a"], openai=["b"]), {"gpt-5.4-nano": "gpt-5.5"}),
        (planned(openai=["b"]), None),  # it has that model
        (planned(local=["x=http://127.0.0.1:1"]), None),
        (with_models(planned(local=["x=http://127.0.0.1:1"]), OfferedModel("m", True)), None),
        (
            with_models(planned(local=["x=http://127.0.0.1:1"]), OfferedModel("m")),
            {"gpt-5.4-nano": "m"},
        ),
        (
            with_models(
                planned(local=["x=http://127.0.0.1:1"], chatgpt=["a"]),
                OfferedModel("gpt-5.4-nano"),
            ),
            None,
        ),
    ],
)
def test_opencodes_titles_have_a_model(plan: SetupPlan, aliases: Any) -> None:  # noqa: ANN401
    assert written(plan)["pools"]["home"].get("aliases") == aliases


def test_a_server_elsewhere_may_be_asked_in_the_clear_because_its_address_says_so() -> None:
    plan = planned(local=["x=http://box:1", "y=https://box", "z=http://127.0.0.1:1"])
    accounts = written(plan)["accounts"]
    assert [accounts[name].get("allow_plain_http") for name in "xyz"] == [True, None, None]


@pytest.mark.parametrize(
    ("listed", "name"),
    [
        ("/models/a/Qwen3-8B.gguf", "Qwen3-8B"),
        ("Qwen3-8B.gguf", "Qwen3-8B"),
        ("qwen/qwen3:8b", "qwen/qwen3:8b"),
        ("/.gguf", "/.gguf"),
    ],
)
def test_a_path_is_not_the_name_of_a_model(listed: str, name: str) -> None:
    assert pooler.short_name(listed) == name


def test_a_model_may_have_another_name_at_its_server() -> None:
    plan = planned(local=["x=http://127.0.0.1:1"])
    models = [OfferedModel("a", upstream_name="/a.gguf"), OfferedModel("b", upstream_name="b")]
    account = written(with_models(plan, *models))["accounts"]["x"]
    assert account["models"] == {"a": "/a.gguf", "b": "b"}
    account = written(with_models(plan, models[1]))["accounts"]["x"]
    assert account["models"] == ["b"]


def test_models_that_generate_no_text_are_not_the_default() -> None:
    models = [OfferedModel("nomic-Embed-text"), OfferedModel("qwen"), OfferedModel("qwen", True)]
    plan = with_models(planned(local=["x=http://127.0.0.1:1"]), *models)
    assert pooler.offered_models(plan) == [models[1], models[0]]


@pytest.mark.parametrize(
    ("path", "option"),
    [
        ("pools.json", ""),
        ("a/pools.json", " --config a/pools.json"),
        ("my pools.json", " --config 'my pools.json'"),
    ],
)
def test_the_next_commands_say_which_file(path: str, option: str) -> None:
    plan = planned(chatgpt=["a", "b"], openai=["api"])
    lines = pooler.next_commands(plan, path, {})
    assert [line.partition("#")[0].strip() for line in lines] == [
        "export OPENAI_API_KEY=sk-...",
        f"pooler login a{option}",
        f"pooler login b{option}",
        f"pooler check --ask{option}",
        f"pooler serve{option}",
    ]
    assert len(pooler.next_commands(plan, path, {"OPENAI_API_KEY": "x"})) == 4


################################################################
# OPENCODE'S CONFIGURATION
################################################################


def opencode(*models: OfferedModel, **more: Any) -> Any:  # noqa: ANN401 (JSON)
    return json.loads(pooler.opencode_config(URL, models, **more))


def test_opencode_asks_for_a_models_responses_with_the_keys_of_its_environment() -> None:
    config = opencode(OfferedModel("gpt-5.5"), has_operator=True)
    assert config["model"] == config["small_model"] == "openai/gpt-5.5"
    [provider] = config["provider"].values()
    assert provider["npm"] == "@ai-sdk/openai"
    assert provider["options"] == {
        "baseURL": f"{URL}/v1",
        "apiKey": "{env:CODEX_POOLER_API_KEY}",
        "include": ["reasoning.encrypted_content"],
        "store": False,
    }
    [model] = provider["models"].values()
    assert model["limit"] == {"context": 400_000, "input": 256_000, "output": 128_000}
    assert model["options"]["reasoningEffort"] == "high"
    [server] = config["mcp"].values()
    assert server["url"] == f"{URL}/mcp"
    assert server["headers"] == {"Authorization": "Bearer {env:CODEX_POOLER_OPERATOR_TOKEN}"}


def test_opencode_asks_a_server_that_speaks_only_chat_by_chat() -> None:
    models = [OfferedModel("gpt-5.5"), OfferedModel("qwen", True, 8192), OfferedModel("big", True)]
    config = opencode(*models, small_model="qwen")
    assert (config["model"], config["small_model"]) == ("openai/gpt-5.5", "pooler/qwen")
    assert "mcp" not in config
    assert list(config["provider"]["openai"]["models"]) == ["gpt-5.5"]
    chat = config["provider"]["pooler"]
    assert chat["npm"] == "@ai-sdk/openai-compatible"
    assert chat["options"] == {
        "baseURL": f"{URL}/v1",
        "apiKey": "{env:CODEX_POOLER_API_KEY}",
    }
    assert chat["models"]["qwen"]["limit"] == {"context": 8192, "output": 2048}
    assert "limit" not in chat["models"]["big"]


def test_opencode_may_take_titles_from_a_model_that_is_not_listed() -> None:
    config = opencode(OfferedModel("gpt-5.5"), small_model="gpt-5.4-nano")
    assert config["small_model"] == "openai/gpt-5.4-nano"


@pytest.mark.parametrize(
    "value", [{}, [], {"a": []}, {"a": {"b": ["x" * 60, {"é": "y" * 60}], "c": 1}}, "x", 1.5, None]
)
def test_readable_json_is_json_that_fits_a_terminal(value: Any) -> None:  # noqa: ANN401 (JSON)
    text = pooler.readable_json(value)
    assert json.loads(text) == value
    assert max(map(len, text.split("\n"))) <= 96


################################################################
# THE COMMAND
################################################################


def secrets_in(shown: str) -> dict[str, list[str]]:
    """The values of the variables that are to be exported."""
    return {
        name: re.findall(rf"export {name}=(\S+)", shown)
        for name in (CLIENT, OPERATOR, "OPENAI_API_KEY")
    }


def check_written(folder: Path, shown: str, name: str = "pools.json") -> Config:
    """The configuration that was written: it has the digests of what was shown, and no secret."""
    assert os.listdir(folder) == [name]
    path = folder / name
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    config = pooler.parse_config(text.encode(), {"OPENAI_API_KEY": "sk-0123456789-abcdef"}, str)

    secrets = secrets_in(shown)
    digests = [hashlib.sha256(secret.encode()).digest() for secret in secrets[CLIENT]]
    assert [key.digest for key in config.keys] == digests
    [token] = secrets[OPERATOR]
    assert [one.digest for one in config.operators] == [hashlib.sha256(token.encode()).digest()]
    for secret in (*secrets[CLIENT], token):
        assert shown.count(secret) == 1
        assert secret not in text
    return config


def init(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return run_pooler("init", *arguments, cwd=folder, **env)


def refused(done: subprocess.CompletedProcess[str], *problems: str) -> None:
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [f"pooler: {problem}" for problem in problems]


@slow
def test_flags_give_a_file_that_works(tmp_path: Path) -> None:
    with local_server({"id": "qwen", "context_length": 8192}, "/a/tiny.gguf") as server:
        done = init(
            tmp_path,
            *("--chatgpt", "personal", "second"),
            *("--openai", "--local", f"llama={server.url}", "--client", "laptop", "ci"),
        )
    assert (done.returncode, done.stderr) == (0, "")
    config = check_written(tmp_path, done.stdout)
    assert list(config.accounts) == ["personal", "second", "platform", "llama"]
    assert config.accounts["second"].auth_file == "accounts/second.json"
    assert config.accounts["llama"].models == {"qwen": "qwen", "tiny": "/a/tiny.gguf"}
    assert [key.name for key in config.keys] == ["laptop", "ci"]
    assert "\nNote: " not in done.stdout

    shown = json.loads(done.stdout.partition("opencode.json\n\n")[2].partition("\n\n")[0])
    assert shown["model"] == "openai/gpt-5.5"
    assert list(shown["provider"]["pooler"]["models"]) == ["qwen", "tiny"]
    assert shown["provider"]["pooler"]["models"]["qwen"]["limit"]["context"] == 8192
    assert shown["mcp"]["codex_pooler"]["url"] == f"{URL}/mcp"
    assert 'base_url = "http://127.0.0.1:4000/backend-api/codex"' in done.stdout
    assert done.stdout.endswith(
        "Next:\n  export OPENAI_API_KEY=sk-...  # the API key of platform\n"
        "  pooler login personal\n  pooler login second\n  pooler check --ask\n  pooler serve\n"
    )

    checked = run_pooler("check", cwd=tmp_path, OPENAI_API_KEY="sk-0123456789-abcdef")
    assert checked.returncode == 0
    warnings = [line for line in checked.stdout.splitlines() if "warning" in line]
    assert len(warnings) == 2
    assert all("does not exist" in warning for warning in warnings)


@slow
def test_an_api_key_alone_needs_no_login_and_no_codex(tmp_path: Path) -> None:
    done = init(tmp_path, "--openai", OPENAI_API_KEY="'in quotes'")
    assert done.stdout.endswith("Next:\n  pooler check --ask\n  pooler serve\n")
    assert "Codex CLI" not in done.stdout
    assert '"small_model": "openai/gpt-5.4-nano"' in done.stdout
    check_written(tmp_path, done.stdout)


@slow
def test_a_server_without_known_models_gets_words_instead(tmp_path: Path) -> None:
    done = init(tmp_path, "--local", f"llama={NOBODY}")
    config = check_written(tmp_path, done.stdout)
    assert config.accounts["llama"].models is None
    assert "\nNote: llama cannot be reached (refused); it is asked while" in done.stdout
    assert "replace MODEL by a name" in done.stdout


@slow
def test_models_that_were_named_are_taken_although_nobody_responds(tmp_path: Path) -> None:
    done = init(tmp_path, "--local", f"llama={NOBODY},qwen")
    config = check_written(tmp_path, done.stdout)
    assert list(config.accounts["llama"].models or ()) == ["qwen"]
    assert "\nNote: llama cannot be reached (refused)\n" in done.stdout
    assert '"model": "pooler/qwen"' in done.stdout


@slow
def test_a_local_server_serves_with_what_was_written(tmp_path: Path) -> None:
    """The printed key opens the pool, whose server gets a Chat request."""
    with local_server("tiny") as server:
        done = init(tmp_path, "--local", f"llama={server.url}")
        path = tmp_path / "pools.json"
        path.write_text(path.read_text().replace("{", '{"listen": "127.0.0.1:0",', 1))
        [key] = secrets_in(done.stdout)[CLIENT]
        with serving(tmp_path) as origin:
            status, body = post_chat(origin, key)
    assert status == 200
    assert b"Quinces." in body
    assert server.asked == [
        "GET /v1/models",
        "POST /v1/responses",
        "POST /v1/chat/completions",
    ]


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """`pooler serve` in a folder; its origin."""
    command = [sys.executable, str(POOLER), "serve"]
    with subprocess.Popen(
        command, cwd=folder, env=ENV, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        address = next(m[1] for line in lines if (m := re.search(r'"address": ?"([^"]+)"', line)))
        yield f"http://{address}"
        process.terminate()
        process.stderr.read()


def post_chat(origin: str, key: str) -> tuple[int, bytes]:
    host, _, port = origin.removeprefix("http://").partition(":")
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": True}
    connection = http.client.HTTPConnection(host, int(port), timeout=SECONDS_MAX)
    with contextlib.closing(connection):
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


def run_bash(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )


def make_file(path: Path) -> None:
    path.write_text("mine")


def make_link(path: Path) -> None:
    path.symlink_to("nowhere")


@slow
@pytest.mark.parametrize("make", [make_file, make_link, Path.mkdir])
def test_what_exists_is_never_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "pools.json"
    make(path)
    before = path.lstat()
    hint = "edit it (`pooler key` makes another key), or name another file with --config"
    refused(init(tmp_path, "--openai"), f"pools.json exists, and is never replaced; {hint}")
    assert path.lstat() == before
    assert os.listdir(tmp_path) == ["pools.json"]


@slow
def test_of_many_at_once_one_writes_and_the_others_change_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(POOLER), "init", "--openai"]
    processes = [
        subprocess.Popen(
            command,
            cwd=tmp_path,
            env=ENV,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(6)
    ]
    shown = [process.communicate(timeout=SECONDS_MAX)[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 1, 1, 1, 1, 1]
    check_written(tmp_path, shown[codes.index(0)])


def test_a_file_that_appears_in_the_meantime_stays(tmp_path: Path) -> None:
    path = tmp_path / "pools.json"
    new_path = tmp_path / "new"
    new_path.write_text("new")
    make_link(path)
    with pytest.raises(FileExistsError):
        pooler.give_name(new_path, path)
    assert path.is_symlink()


def test_a_file_system_without_links_gets_the_file_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "pools.json"
    pooler.write_first(path, b"one", "")
    assert path.read_bytes() == b"one"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(pooler.ConfigRefused):
        pooler.write_first(path, b"two", "")
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["pools.json"]


@slow
@pytest.mark.parametrize("redirection", ["</dev/null", "<&-"])
def test_without_a_terminal_the_flags_are_named(tmp_path: Path, redirection: str) -> None:
    done = run_bash(f"{sys.executable} {POOLER} init {redirection}", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert all(f"--{name}" in line for name in ("chatgpt", "openai", "local", "client"))
    assert os.listdir(tmp_path) == []


@slow
@pytest.mark.parametrize(
    ("redirection", "problem"),
    [
        (">/dev/full", "standard output: No space left on device; nothing was written"),
        (">&-", "standard output is closed, so nobody would read the secrets"),
        ("| true", "standard output: Broken pipe; nothing was written"),
    ],
)
def test_secrets_that_nobody_can_read_are_not_written(
    tmp_path: Path, redirection: str, problem: str
) -> None:
    # The pipe's reader is gone before anything is printed: that waits for a server.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        script = f"{sys.executable} {POOLER} init --local x={url},m {redirection}"
        done = run_bash(f"set -o pipefail; {script}", tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"pooler: {problem}\n"
    assert os.listdir(tmp_path) == []


@slow
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    # A measurement of coverage would complain that it cannot be saved.
    script = f"unset ${{!COVERAGE_@}}; ulimit -f 0; exec {sys.executable} -B {POOLER} init --openai"
    done = run_bash(script, tmp_path)
    refused(done, "pools.json: File too large; nothing was written")
    assert os.listdir(tmp_path) == []


@slow
def test_a_folder_that_is_not_there_is_named_before_anything_is_asked(tmp_path: Path) -> None:
    done = init(tmp_path, "--openai", "--config", "a/b.json")
    refused(done, "a: no such folder, or it cannot be written to")


@slow
def test_wrong_flags_are_one_line_each(tmp_path: Path) -> None:
    done = init(tmp_path, "--chatgpt", "a b", "--local", "x")
    refused(
        done,
        f'"a b": {NAME}',
        '"x": must be NAME=URL, like llama=http://127.0.0.1:8080/v1',
    )
    assert os.listdir(tmp_path) == []


@slow
def test_another_file_may_have_any_name(tmp_path: Path) -> None:
    file = "\udcff p'.json"  # as Python has a name that is not UTF-8
    command = [sys.executable, str(POOLER), "init", "--openai", "--config", file]
    env = ENV | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert os.listdir(os.fsencode(tmp_path)) == [b"\xff p'.json"]
    assert done.stdout.endswith(b"  pooler serve --config '\xff p'\"'\"'.json'\n")


@slow
def test_what_is_odd_around_it_is_noted(tmp_path: Path) -> None:
    done = init(tmp_path, "--local", "me=http://127.0.0.1:4000,m", https_proxy="http://p:1")
    assert "\nNote: https_proxy is set but not used: a proxy is used only if" in done.stdout
    assert "\nNote: accounts.me.base_url: is where this pooler listens" in done.stdout


################################################################
# LOCAL SERVERS
################################################################


def endless(head: bytes, piece: bytes) -> Play:
    """Send a beginning, and then the same again until the other side leaves."""

    def play(caller: socket.socket) -> None:
        caller.sendall(head)
        while True:
            caller.sendall(piece)

    return play


def silence(caller: socket.socket) -> None:
    """Read until the other side leaves."""
    while caller.recv(65536):
        pass


NO_HTTP: Final = "does not respond with valid HTTP"
HOSTILE: Final[Mapping[str, tuple[bytes | Play, str]]] = {
    "no HTTP": (b"SSH-2.0-x\r\n\r\n", NO_HTTP),
    "nothing": (lambda caller: caller.close(), NO_HTTP),
    "endless head": (endless(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n" * 99), NO_HTTP),
    "endless body": (endless(b"HTTP/1.1 200 OK\r\n\r\n", b" " * 65536), NO_HTTP),
    "endless interim": (endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), NO_HTTP),
    "silence": (silence, "does not respond in time"),
    "redirect": (
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        "lists no models (status 302)",
    ),
    "login": (response(401, {}), "lists no models (status 401)"),
    "page": (response(200, b"<html>", "text/html"), "lists no models (status 200)"),
    "deep": (response(200, b"[" * 100_000), "lists no models (status 200)"),
    "none": (listing(), "lists no models (status 200)"),
    "no names": (
        listing(
            {"id": "\x1b]0;x\x07"}, {"id": "a\nb"}, {"id": "\u202ex"}, {"id": 5}, {"id": "x" * 201}
        ),
        "lists no models (status 200)",
    ),
}


@slow
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_server_costs_little_and_gets_no_word_in(tmp_path: Path, case: str) -> None:
    play, note = HOSTILE[case]
    with local_server() as server:
        server.routes["GET /v1/models"] = play
        done = init(tmp_path, "--local", f"x={server.url}")
    assert done.stderr == ""
    config = check_written(tmp_path, done.stdout)
    assert config.accounts["x"].models is None
    assert f"\nNote: x {note}; it is asked while the pooler serves" in done.stdout
    assert re.search(r"[^\n -~]", done.stdout) is None


@slow
def test_the_names_of_a_server_reach_no_terminal_as_commands(tmp_path: Path) -> None:
    names = ["good", "\x1b[31m", 'quo"te', "naïve", "\x9b1m", "${HOME}"]
    with local_server(*({"id": name} for name in names)) as server:
        done = init(tmp_path, "--local", f"x={server.url}")
    config = check_written(tmp_path, done.stdout)
    assert list(config.accounts["x"].models or ()) == ["good", 'quo"te', "naïve", "${HOME}"]
    assert re.search(r"[^\n -~]", done.stdout) is None


@pytest.mark.parametrize(
    "name",
    ["{file:~/.codex/auth.json}", "{env:OPENAI_API_KEY}", "a {file:b", "x/{env:HOME}"],
)
def test_no_server_gets_a_file_or_a_variable_from_opencode(name: str) -> None:
    plan = planned(local=["x=http://127.0.0.1:1"])
    alone, both = with_models(plan, OfferedModel(name)), OfferedModel("{plain}")
    assert name not in pooler.setup_guide(alone, URL, {}, {})
    assert pooler.offered_models(with_models(plan, OfferedModel(name), both)) == [both]
    assert "aliases" not in pooler.first_config(alone, {}, {})


@slow
def test_of_a_long_list_the_first_are_written(tmp_path: Path) -> None:
    with local_server(*(f"m{number}" for number in range(60))) as server:
        done = init(tmp_path, "--local", f"x={server.url}")
    config = check_written(tmp_path, done.stdout)
    assert list(config.accounts["x"].models or ()) == [f"m{number}" for number in range(50)]
    assert "\nNote: x has 60 models, of which the first 50 are written\n" in done.stdout


@slow
@pytest.mark.parametrize("has_responses", [False, True])
def test_a_server_is_asked_by_the_api_that_it_has(tmp_path: Path, has_responses: bool) -> None:
    with local_server("tiny", has_responses=has_responses) as server:
        done = init(tmp_path, "--local", f"x={server.origin}")
    check_written(tmp_path, done.stdout)
    provider = "openai" if has_responses else "pooler"
    assert f'"model": "{provider}/tiny"' in done.stdout
    assert server.asked == ["GET /v1/models", "POST /v1/responses"]


################################################################
# QUESTIONS
################################################################

QUESTIONS: Final = ("ChatGPT accounts:", "API keys", "Local servers:", "Clients:")


@slow
def test_enter_takes_what_is_usual(tmp_path: Path) -> None:
    with Terminal("init", cwd=tmp_path) as terminal:
        for question in QUESTIONS:
            terminal.answer(question, "\n")
        assert terminal.wait_exit() == 0
    config = check_written(tmp_path, terminal.shown)
    assert list(config.accounts) == ["personal"]
    assert [key.name for key in config.keys] == ["laptop"]
    assert "\n  pooler login personal\n  pooler check --ask\n  pooler serve\n" in terminal.shown


@slow
def test_answers_are_asked_again_until_they_can_be_used(tmp_path: Path) -> None:
    with Terminal("init", cwd=tmp_path) as terminal:
        terminal.answer(QUESTIONS[0], "a/b\n")
        terminal.answer(QUESTIONS[0], "none\n")
        terminal.answer(QUESTIONS[1], "no\n")
        terminal.answer(QUESTIONS[2], "-\n")  # then there would be no account
        terminal.answer(QUESTIONS[2], f"x={NOBODY}\n")
        terminal.answer(QUESTIONS[3], "laptop, phone\n")
        terminal.answer("Models of x, which cannot be reached (refused) [-]:", "m n\n")
        assert terminal.wait_exit() == 0
    config = check_written(tmp_path, terminal.shown)
    assert list(config.accounts["x"].models or ()) == ["m", "n"]
    assert [key.name for key in config.keys] == ["laptop", "phone"]
    assert f'"a/b": {NAME}' in terminal.shown
    assert "name an account" in terminal.shown


@slow
def test_wrong_answers_end_at_last(tmp_path: Path) -> None:
    with Terminal("init", cwd=tmp_path) as terminal:
        for _ in range(pooler.ANSWERS_MAX):
            terminal.answer(QUESTIONS[0], "a/b\n")
        assert terminal.wait_exit() == 1
    assert terminal.shown.endswith("\npooler: no answer could be used; nothing was written\n")
    assert os.listdir(tmp_path) == []


@slow
@pytest.mark.parametrize("count", range(len(QUESTIONS)))
@pytest.mark.parametrize(
    ("key", "words"),
    [
        (CTRL_C, "pooler: interrupted"),
        (CTRL_D, "pooler: the input has ended; nothing was written"),
    ],
)
def test_whoever_leaves_a_question_leaves_no_trace(
    tmp_path: Path, count: int, key: str, words: str
) -> None:
    with Terminal("init", cwd=tmp_path) as terminal:
        for question in QUESTIONS[:count]:
            terminal.answer(question, "\n")
        terminal.answer(QUESTIONS[count], key)
        assert terminal.wait_exit() == 1
    assert terminal.shown.endswith(f"{words}\n")
    assert os.listdir(tmp_path) == []


@slow
def test_ctrl_c_ends_the_wait_for_a_server(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Terminal("init", "--local", f"x={url}", cwd=tmp_path) as terminal:
            listener.settimeout(SECONDS_MAX)
            with listener.accept()[0] as caller:
                assert caller.recv(65536).startswith(b"GET /v1/models ")
                os.write(terminal.descriptor, CTRL_C.encode())
                assert terminal.wait_exit() == 1
    assert terminal.shown.endswith("pooler: interrupted\n")
    assert os.listdir(tmp_path) == []
