"""Proves that shells complete the commands, options and values that the program has.

Method: the printed scripts in the real shells; one that is not installed is left out.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

import pooler
from tests.support.processes import clean_env

SECONDS_MAX: Final = 30
# Completes the words $1 ... as the shell would for a Tab after the last one.
BASH: Final = """
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _pooler; printf '%s\\n' "${COMPREPLY[@]}"
"""
# Types into a zsh at a pseudo-terminal of its own, until it shows the completed words.
ZSH: Final = """
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PS1=READY; source $1"
zpty -r -m shell shown '*READY*READY*'
zpty -n -w shell $'codex-pooler st\\t--wa\\t'
zpty -r -m shell shown '*atus*tch*'
"""
FISH: Final = "complete -C (string join ' ' -- $argv) | string split -f 1 \\t"
SHELLS: Final = {
    "bash": ["bash", "--norc", "-c", BASH, "bash"],
    "fish": ["fish", "--no-config", "-c", FISH],
}


def script_of(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert pooler.main(["completion", shell]) == 0
    return capsys.readouterr().out


def completed(shell: str, script: str, *words: str) -> set[str]:
    """What a shell offers after a command line whose last word is not finished."""
    command = [*SHELLS[shell]]
    place = command.index("-c") + 1
    command[place] = f"{script}\n{command[place]}"
    done = subprocess.run(
        [*command, *words],
        capture_output=True,
        text=True,
        env=clean_env(HOME="/nonexistent"),
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.stderr == ""
    return {*done.stdout.split()}


def installed(*shells: str) -> list[str]:
    return [shell for shell in shells if shutil.which(shell)]


@pytest.mark.slow
@pytest.mark.parametrize("shell", installed(*SHELLS))
def test_a_shell_completes_what_the_program_has(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    script = script_of(shell, capsys)
    for program in ("pooler", "codex-pooler"):
        assert completed(shell, script, program, "") == {*pooler.COMMANDS, "help"}
    assert completed(shell, script, "pooler", "st") == {"status"}
    assert completed(shell, script, "pooler", "status", "--wa") == {"--watch"}
    assert completed(shell, script, "pooler", "serve", "--log", "j") == {"json"}
    assert completed(shell, script, "pooler", "completion", "") >= {"bash", "zsh", "fish"}
    for name, command in pooler.COMMANDS.items():
        options = {option for option, _ in command.options if option.startswith("-")}
        assert completed(shell, script, "pooler", name, "--") >= options


@pytest.mark.slow
@pytest.mark.parametrize("shell", installed("zsh"))
def test_zsh_completes_with_the_functions_of_bash(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "completion"
    path.write_text(script_of(shell, capsys))
    command = [shell, "-f", "-c", ZSH, shell, str(path)]
    subprocess.run(command, env=clean_env(HOME=str(tmp_path)), timeout=SECONDS_MAX, check=True)


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_every_option_is_in_the_script(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = script_of(name, capsys)
    for command in pooler.COMMANDS.values():
        for option, _ in command.options:
            assert option.strip("-") in script or option in {"account", "shell"}
