"""A plugin of pytest: writes how each test of somebody else's suite ended.

A line of OUTCOMES is the test, "passed", "failed" or "skipped", and the first line of what was
raised.  (No claims.)
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.passed:
        return
    crash: Any = getattr(report.longrepr, "reprcrash", None)
    words = str(crash.message if crash else report.longrepr or "").partition("\n")[0]
    with Path(os.environ["OUTCOMES"]).open("a", encoding="utf-8") as lines:
        lines.write(json.dumps([report.nodeid, report.outcome, words]) + "\n")
