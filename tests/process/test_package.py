"""Proves that the package is what pyproject.toml says, that what is locked is in step with it, and
that each way to install the program leads to one that runs and says how to add MCP to it.

Method: the quick tests read pyproject.toml, .ci/locked and the head of pooler.py as data, and
imitate the files that installers leave.  The slow ones build both archives, look into them, and
install from them with the real pip, pipx and uv, which get the other packages from an index.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from trove_classifiers import classifiers

import pooler
from tests.process.test_tidy import repository_files
from tests.support.paths import ROOT
from tests.support.server_process import write_config

PYPROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT: Final = PYPROJECT["project"]
SOURCES: Final = ("pooler.py", "mcp_server.py")
SCRIPTS: Final = ("pooler", "codex-pooler")
RUNTIME: Final = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["mcp"]]
# Each locked file, and the requirements that it serves.
LOCKED: Final = {
    "runtime": RUNTIME,
    "dev": [*RUNTIME, *PYPROJECT["dependency-groups"]["dev"]],
    "clients": PYPROJECT["dependency-groups"]["clients"],
    "aider": PYPROJECT["dependency-groups"]["aider"],
    "suites": PYPROJECT["dependency-groups"]["suites"],
    "sources": PYPROJECT["dependency-groups"]["sources"],
}
PYTHON_MIN: Final = "3.11"
SECONDS_MAX: Final = 300.0


def locked_blocks(name: str) -> list[list[str]]:
    """The lines of each package in a locked file: a requirement, then its options."""
    text = (ROOT / ".ci/locked" / f"{name}.txt").read_text(encoding="utf-8")
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    return [block.split() for block in re.split(r"\n(?=\S)", lines.replace("\\\n", "\n"))]


def locked_versions(name: str) -> dict[str, set[Version]]:
    """The versions of each package that a locked file has: several, if they depend on Python's."""
    versions: dict[str, set[Version]] = {}
    for block in locked_blocks(name):
        package, _, version = block[0].partition("==")
        versions.setdefault(canonicalize_name(package), set()).add(Version(version))
    return versions


################################################################
# METADATA
################################################################


def test_the_metadata_is_complete_and_has_only_known_words() -> None:
    metadata = ProjectMetadata(str(ROOT), PluginManager())
    metadata.validate_fields()
    assert set(PROJECT["classifiers"]) <= classifiers
    wanted = {"authors", "classifiers", "description", "keywords", "license", "name", "readme"}
    assert wanted <= PROJECT.keys()
    assert "urls" not in PROJECT  # it has no public address yet, and none is made up
    assert PROJECT["version"] == pooler.VERSION
    assert PROJECT["scripts"] == dict.fromkeys(SCRIPTS, "pooler:main")


def test_the_oldest_python_is_the_same_everywhere() -> None:
    assert PROJECT["requires-python"] == f">={PYTHON_MIN}"
    assert f"Programming Language :: Python :: {PYTHON_MIN}" in PROJECT["classifiers"]
    assert PYPROJECT["tool"]["mypy"]["python_version"] == PYTHON_MIN
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{PYTHON_MIN.replace('.', '')}"
    assert f"--python-version {PYTHON_MIN} " in (ROOT / ".ci/lock").read_text(encoding="utf-8")


def test_the_file_alone_requires_what_the_package_requires() -> None:
    """`uv run` and `pipx run` read the first lines of a file (PEP 723)."""
    source = (ROOT / "pooler.py").read_text(encoding="utf-8")
    match = re.match(r"# /// script\n((?:# .*\n)+)# ///\n", source)
    assert match is not None
    header = tomllib.loads(re.sub(r"^# ", "", match[1], flags=re.MULTILINE))
    assert header == {
        "requires-python": PROJECT["requires-python"],
        "dependencies": PROJECT["dependencies"],
    }


def test_the_file_alone_says_which_packages_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h11", None)
    with pytest.raises(ModuleNotFoundError):
        runpy.run_path(str(ROOT / "pooler.py"))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "pooler.py"), run_name="__main__")
    words = re.search(r"^pooler: .*h11.*`pip install (.*)`$", str(ended.value.code))
    assert words is not None
    assert words[1].split() == [Requirement(text).name for text in PROJECT["dependencies"]]


def test_mcp_is_installed_as_the_extra_would_be() -> None:
    assert PROJECT["optional-dependencies"] == {"mcp": [pooler.MCP_PACKAGE]}


@pytest.mark.parametrize("source", SOURCES)
def test_no_message_names_a_file_that_an_installation_lacks(source: str) -> None:
    tree = ast.parse((ROOT / source).read_text(encoding="utf-8"))
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if id(node) not in statements  # docstrings are for readers of the source
    ]
    lacking = re.compile(
        r"pools\.json\.example|README|SECURITY\.md|CHANGELOG|LICENSE|pyproject|tests/|\[mcp\]"
    )
    assert [text for text in texts if lacking.search(text)] == []


################################################################
# WHAT IS LOCKED
################################################################


@pytest.mark.parametrize("name", LOCKED)
def test_every_requirement_is_locked_to_a_version_that_it_allows(name: str) -> None:
    versions = locked_versions(name)
    for requirement in map(Requirement, LOCKED[name]):
        locked = versions[canonicalize_name(requirement.name)]
        assert all(requirement.specifier.contains(version) for version in locked), requirement


@pytest.mark.parametrize("name", LOCKED)
def test_every_locked_package_has_hashes_and_nothing_else(name: str) -> None:
    blocks = locked_blocks(name)
    alone = len(LOCKED[name]) if name == "sources" else 20  # sources come without requirements
    assert len(blocks) >= alone
    for requirement, *options in blocks:
        assert re.fullmatch(r"[a-z0-9.-]+==[0-9a-z.]+", requirement), requirement
        text = " ".join(options)
        assert re.fullmatch(r"(; [^#]+? )?--hash=sha256:[0-9a-f]{64}( --hash=\S+)*", text), text


def test_the_server_is_tested_with_the_versions_of_containers() -> None:
    dev = locked_versions("dev")
    assert {name: dev[name] for name in locked_versions("runtime")} == locked_versions("runtime")


@pytest.mark.parametrize("text", RUNTIME)
def test_the_bounds_are_those_of_the_tested_versions(text: str) -> None:
    """A package may break its users in a new major version, and before 1.0 in every minor one.

    So the versions up to the next of these are allowed: the tested one is the last of its kind.
    """
    requirement = Requirement(text)
    [newest] = locked_versions("runtime")[canonicalize_name(requirement.name)]
    next_one = Version(f"{newest.major + 1}" if newest.major else f"0.{newest.minor + 1}")
    bounds = {bound.operator: Version(bound.version) for bound in requirement.specifier}
    assert bounds.keys() == {">=", "<"}
    assert bounds[">="] <= newest < bounds["<"] == next_one


################################################################
# HOW TO ADD MCP
################################################################

CONFIG: Final = {
    "accounts": {"platform": {"type": "openai", "api_key": "sk-0123456789abcdef"}},
    "pools": {"home": {"accounts": ["platform"], "keys": {"laptop": f"sha256:{'1a' * 32}"}}},
    "operators": {"me": f"sha256:{'2b' * 32}"},
}
PACKAGE: Final = "'mcp>=2.3,<3'"
ORIGIN: Final = "lib/python3.12/site-packages/codex_pooler-0.1.0.dist-info/direct_url.json"
FOLDER: Final = json.dumps({"url": "file:///src/the%20pooler", "dir_info": {}})
GIT: Final = json.dumps({"url": "https://git.example/p.git", "vcs_info": {"vcs": "git"}})


@pytest.mark.parametrize(
    ("environment", "files", "command"),
    [
        ("venvs/codex-pooler", {"pipx_metadata.json": "{}"}, f"pipx inject codex-pooler {PACKAGE}"),
        (
            "tools/codex-pooler",
            {"uv-receipt.toml": "", ORIGIN: FOLDER},
            f"uv tool install --with {PACKAGE} '/src/the pooler'",
        ),
        (
            "tools/codex-pooler",
            {"uv-receipt.toml": "", ORIGIN: GIT},
            f"uv tool install --with {PACKAGE} git+https://git.example/p.git",
        ),
        (
            "tools/codex-pooler",
            {"uv-receipt.toml": "", ORIGIN: "{"},
            f"uv tool install --with {PACKAGE} codex-pooler",
        ),
        (
            "tools/codex-pooler",
            {"uv-receipt.toml": ""},
            f"uv tool install --with {PACKAGE} codex-pooler",
        ),
        (
            "uv/archive-v0/x",
            {ORIGIN: FOLDER},
            f"uvx --with {PACKAGE} --from '/src/the pooler' pooler",
        ),
        ("uv/environments-v2/x", {}, f"uv run --with {PACKAGE} {pooler.__file__}"),
    ],
)
def test_each_installer_is_recognized_by_what_it_leaves(
    environment: str,
    files: Mapping[str, str],
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, text in files.items():
        path = tmp_path / environment / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / environment))
    assert pooler.mcp_command() == command


@pytest.mark.parametrize(
    ("has_pip", "command"),
    [
        (True, f"'/a b/python' -m pip install {PACKAGE}"),
        (False, f"uv pip install --python '/a b/python' {PACKAGE}"),
    ],
)
def test_an_environment_of_no_installer_gets_the_package_from_pip_or_uv(
    has_pip: bool, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/a b/python")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: has_pip or None)
    assert pooler.mcp_command() == command


@pytest.mark.parametrize(
    ("lacking", "first_line"),
    [
        ("mcp", "warning: operators: /mcp needs the package mcp: "),
        ("mcp_server", "warning: operators: /admin, /metrics and /mcp need mcp_server.py"),
        ("", "account platform: "),
    ],
)
def test_check_says_what_operators_lack(
    lacking: str,
    first_line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_config(tmp_path, CONFIG)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name != lacking or None)
    assert pooler.main(["check", "--config", str(path)]) == 0
    assert capsys.readouterr().out.startswith(first_line)


################################################################
# ARCHIVES AND INSTALLATIONS
################################################################

# For each installer: how the unpacked source archive is installed, and how the program is run.
INSTALLERS: Final[Mapping[str, tuple[Sequence[str], str]]] = {
    "pip": (["python -m venv here", "here/bin/pip install -q {source}"], "here/bin/pooler"),
    "pipx": (["pipx install {source}"], "pooler"),
    "uv pip": (["uv venv here", "uv pip install --python here {source}"], "here/bin/pooler"),
    "uv tool": (["uv tool install {source}"], "pooler"),
    "uvx": ([], "uvx --from {source} pooler"),
    "uv run": (["cp {source}/pooler.py {source}/mcp_server.py ."], "uv run pooler.py"),
    "uv project": (["cp -r {source} here"], "uv run --project here pooler"),
}


def run(folder: Path, *command: str | Path) -> str:
    """What a command prints, run in that folder; it must succeed.

    Installers put everything into the folder but what they cache, and use this Python.
    """
    ours = re.compile("VIRTUAL_ENV|COVERAGE_.*")  # what runs there is a copy
    env = {name: value for name, value in os.environ.items() if not ours.fullmatch(name)}
    env |= {
        "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{env['PATH']}",
        "PIPX_HOME": str(folder / "pipx"),
        "PIPX_BIN_DIR": str(folder / "bin"),
        "PIPX_DEFAULT_PYTHON": sys.executable,
        "UV_PYTHON": sys.executable,
        "UV_TOOL_DIR": str(folder / "tools"),
        "UV_TOOL_BIN_DIR": str(folder / "bin"),
    }
    done = subprocess.run(
        command, cwd=folder, env=env, text=True, timeout=SECONDS_MAX, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, unpacked: its only folder."""
    folder = tmp_path_factory.mktemp("source")
    run(ROOT, sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder)
    [archive] = folder.iterdir()
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.mark.slow
def test_the_source_archive_has_all_that_the_repository_has(unpacked: Path) -> None:
    names = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert names == {*repository_files(), "PKG-INFO"}


@pytest.mark.slow
def test_the_wheel_has_the_program_and_nothing_else(unpacked: Path, tmp_path: Path) -> None:
    run(unpacked, sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path)
    [path] = tmp_path.iterdir()
    assert path.name == f"codex_pooler-{pooler.VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(path) as wheel:
        names = {re.sub(r"^.*\.dist-info/", "", name) for name in wheel.namelist()}
        for source in SOURCES:
            assert wheel.read(source) == (ROOT / source).read_bytes()
    assert names == {
        *SOURCES, "METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("installer", INSTALLERS)
def test_each_installation_runs_and_says_how_to_add_mcp(
    installer: str, unpacked: Path, tmp_path: Path
) -> None:
    write_config(tmp_path, CONFIG)
    steps, program = INSTALLERS[installer]
    for step in steps:
        run(tmp_path, *step.format(source=unpacked).split())
    command = program.format(source=unpacked).split()
    assert "Hello!" in run(tmp_path, *command, "demo", "--once", "--port", "0")
    other = [word.replace("bin/pooler", "bin/codex-pooler") for word in command]
    other[-1] = {"pooler": "codex-pooler"}.get(other[-1], other[-1])
    assert run(tmp_path, *other, "--version").endswith(f"codex-pooler {pooler.VERSION}\n")

    checked = run(tmp_path, *command, "check")
    match = re.search(r"/mcp needs the package mcp: (.+)", checked)
    assert match is not None, checked
    advice = shlex.split(match[1])
    if advice[-1] == command[-1] or advice[:2] == ["uv", "run"]:
        command = advice  # it runs the program with the package
    else:
        run(tmp_path, *advice)
    checked = run(tmp_path, *command, "check")
    assert "warning" not in checked
    assert "pools.json: OK" in checked


@pytest.mark.slow
def test_the_file_alone_runs_in_an_empty_folder(unpacked: Path, tmp_path: Path) -> None:
    shutil.copy(unpacked / "pooler.py", tmp_path)
    shown = run(tmp_path, "uv", "run", "pooler.py", "demo", "--once", "--port", "0")
    assert "Hello!" in shown
    assert "warning" not in shown.lower()
