"""Proves that the suite proves as much with `python -O`, which leaves out assertions.

Method: pytest compiles the assertions of tests so that they stay; here, whether it does so with
those of every helper, too, and whether the processes that tests start are optimized as they are.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support.paths import ROOT
from tests.support.processes import clean_env
from tests.support.server_process import KEPT

MODULES: Final = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("support", "deployment", "long", "process")
    for path in (ROOT / "tests" / folder).rglob("*.py")
    if path.name not in {"__main__.py", "__init__.py"} and not path.name.startswith("test_")
)


@pytest.mark.parametrize("name", MODULES)
def test_what_helpers_assert_is_kept(name: str) -> None:
    module = importlib.import_module(name)
    assert type(module.__loader__).__name__ == "AssertionRewritingHook"


@pytest.mark.parametrize("name", ["PYTHONOPTIMIZE", "PYTHONWARNINGS"])
def test_processes_run_as_the_tests_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    assert clean_env()[name] == "1"
    assert KEPT.fullmatch(name)


def test_an_assertion_of_a_helper_fails_with_o(tmp_path: Path) -> None:
    """The whole chain, with this project's conftest."""
    test = tmp_path / "test_it.py"
    test.write_text(
        "import sys\n"
        "import pytest\n"
        "from tests.support.limits import set_constants\n"
        "def test_it():\n"
        "    assert sys.flags.optimize == 1\n"
        "    with pytest.raises(AssertionError):\n"
        "        set_constants({'NO_SUCH_LIMIT': 1})\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "tests.conftest", str(test)],
        cwd=ROOT,
        env={**os.environ, "PYTHONOPTIMIZE": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
