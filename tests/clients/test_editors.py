"""Proves that the README's configurations of Continue, Cline and aider work as they stand.

Method: each block is taken from the README, only its address is replaced, and the real program runs
one turn in an empty home: with a ChatGPT account, and with an API key.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.clients.aimock import HERE, MODEL, Providers, installed, node, says
from tests.clients.codex import CodexPool
from tests.support.paths import ROOT
from tests.support.processes import ANSWER, POOL_KEY, PROMPT, SECONDS_MAX, Pooler, clean_env

README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS: Final = "http://127.0.0.1:4000"
AIDER: Final = HERE / ".venv/aider/bin/aider"  # it pins all that it needs
INSTALL_AIDER: Final = (
    "python -m venv tests/clients/.venv/aider && "
    "pip --python tests/clients/.venv/aider install --group aider"
)


def block_of(client: str, pooler: Pooler) -> str:
    """The README's block for a client, with the address of a running pooler."""
    section = README.partition(f"\n**{client}**")[2]
    block = re.search(r"^```\w+\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert block is not None
    assert ADDRESS in block[1]
    assert MODEL in block[1]
    return block[1].replace(ADDRESS, pooler.base_url.removesuffix("/v1"))


def run(command: list[str], folder: Path, more: Mapping[str, str]) -> str:
    """What a program prints in a home and a folder of its own."""
    home = folder / "home"
    project = folder / "project"
    home.mkdir(exist_ok=True)
    project.mkdir(exist_ok=True)
    done = subprocess.run(
        command,
        cwd=project,
        env=clean_env(HOME=str(home), CODEX_POOLER_API_KEY=POOL_KEY, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=3 * SECONDS_MAX,  # aider takes 10 s to load
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_continue(pooler: Pooler, folder: Path) -> str:
    config = folder / "config.yaml"
    config.write_text(block_of("Continue", pooler))
    program = installed("@continuedev/cli", "dist/cn.js")
    return run([node(), program, "--config", str(config), "-p", PROMPT], folder, {})


def run_cline(pooler: Pooler, folder: Path) -> str:
    program = installed("@cline/cli-linux-x64", "bin/cline")
    (line,) = block_of("Cline", pooler).splitlines()
    words = shlex.split(line.replace("$CODEX_POOLER_API_KEY", POOL_KEY))
    assert words[:2] == ["cline", "auth"]
    run([program, *words[1:]], folder, {})
    provider = words[words.index("-p") + 1]
    try:
        return run([program, "-P", provider, "-m", MODEL, PROMPT], folder, {})
    finally:
        end_hub(folder / "project")


def end_hub(project: Path) -> None:
    """End the process that Cline leaves behind for a project."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().decode().split("\0")
            if "--cline-hub-daemon" in words and str(project) in words:
                os.kill(int(entry.parent.name), signal.SIGTERM)


def run_aider(pooler: Pooler, folder: Path) -> str:
    assert AIDER.is_file(), f"aider is not installed. Run: {INSTALL_AIDER}"
    exports, line = block_of("aider", pooler).splitlines()
    variables = dict(word.split("=", 1) for word in shlex.split(exports)[1:])
    assert variables["OPENAI_API_KEY"] == "$CODEX_POOLER_API_KEY"
    variables["OPENAI_API_KEY"] = POOL_KEY
    quiet = "--no-git --yes --no-check-update --no-show-model-warnings --no-analytics --no-pretty"
    words = [*shlex.split(line)[1:], *quiet.split(), "--message", PROMPT]
    return run([str(AIDER), *words], folder, variables)


RUNS: Final[Mapping[str, Callable[[Pooler, Path], str]]] = {
    "Continue": run_continue,
    "Cline": run_cline,
    "aider": run_aider,
}


def in_one_line(text: str) -> str:
    """The text without the line breaks and colours of a terminal."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())


@pytest.mark.parametrize("client", RUNS)
def test_a_turn_with_a_chatgpt_account(client: str, codex_pool: CodexPool, tmp_path: Path) -> None:
    assert ANSWER in in_one_line(RUNS[client](codex_pool.start(), tmp_path))


@pytest.mark.parametrize("client", RUNS)
def test_a_turn_with_an_api_key(client: str, providers: Providers, tmp_path: Path) -> None:
    for _, upstream in providers.upstreams():
        upstream.will(says())
    assert ANSWER in in_one_line(RUNS[client](providers.start(), tmp_path))
