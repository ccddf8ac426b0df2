"""Proves that every command explains itself, and that wrong usage is refused with exit code 2.

Method: the arguments are parsed in this process, as `main` does it; nothing is run.
"""

from __future__ import annotations

import shlex

import pytest

import pooler


def words_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code of arguments that only print something, and what they print."""
    with pytest.raises(SystemExit) as ended:
        pooler.parse_arguments(arguments)
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out + printed.err


@pytest.mark.parametrize("arguments", [["help"], ["--help"], ["-h"]])
def test_help_lists_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, words = words_of(capsys, *arguments)
    assert code == 0
    for name, command in pooler.COMMANDS.items():
        assert name in words
        assert command.about.split()[0] in words


@pytest.mark.parametrize("name", pooler.COMMANDS)
def test_each_command_has_a_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, words = words_of(capsys, "help", name)
    assert (code, words) == words_of(capsys, name, "--help")
    assert code == 0
    assert words.startswith(f"usage: pooler {name}")
    for option, settings in pooler.COMMANDS[name].options:
        assert option in words
        assert settings["help"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["help", "nothing"],
        ["nothing"],
        ["--nothing"],
        ["serve", "--nothing"],
        ["demo", "--port", "x"],
    ],
)
def test_wrong_usage_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, words = words_of(capsys, *arguments)
    assert code == 2
    assert "usage: pooler" in words


@pytest.mark.parametrize("arguments", [[], ["--config", "pools.json"], ["serve"]])
def test_serve_is_the_default_command(arguments: list[str]) -> None:
    options = pooler.parse_arguments(arguments)
    assert options.run is pooler.COMMANDS["serve"].run
    assert str(options.config) == "pools.json"


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), BaseExceptionGroup("", [KeyboardInterrupt()])]
)
def test_ctrl_c_is_one_word(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> int:
        raise error

    command = pooler.COMMANDS["check"]._replace(run=interrupted)
    monkeypatch.setitem(pooler.COMMANDS, "check", command)
    assert pooler.main(["check"]) == 1
    assert capsys.readouterr() == ("", "pooler: interrupted\n")


@pytest.mark.parametrize("name", pooler.COMMANDS)
def test_each_commands_example_is_right(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    example = pooler.COMMANDS[name].example
    program, *arguments = shlex.split(example.partition(" >")[0])
    assert (program, arguments[0]) == ("pooler", name)
    assert pooler.parse_arguments(arguments).run is pooler.COMMANDS[name].run
    _, words = words_of(capsys, "help", name)
    assert f"example:\n  {example}\n" in words
    assert max(map(len, words.splitlines())) <= 100


def test_signals_variables_and_exit_codes_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    _, words = words_of(capsys, "help", "serve")
    for word in ("SIGTERM", "SIGHUP", "CODEX_REFRESH_TOKEN_URL_OVERRIDE", "NO_COLOR", "exit codes"):
        assert word in words
    _, words = words_of(capsys, "help")
    assert "Exit codes: 0" in words
    assert "pooler init" in words
