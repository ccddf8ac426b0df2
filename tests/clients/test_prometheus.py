"""Proves that Prometheus takes the metrics, whatever the names in them are.

Method: Debian's promtool, which reads them as a server would and knows the naming rules.
"""

from __future__ import annotations

import shutil
import subprocess

import pytest

import mcp_server
from tests.support.memory_sockets import Json
from tests.support.snapshots import HOSTILE_TEXTS, LISTS, replace_texts, snapshot


def check(given: Json) -> None:
    promtool = shutil.which("promtool")
    assert promtool, "promtool is not installed. Run: apt-get install prometheus"
    text = mcp_server.metrics_text(given).encode()
    asked = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (asked.returncode, asked.stdout, asked.stderr) == (0, b"", b"")


@pytest.mark.parametrize("text", ["x", *HOSTILE_TEXTS.values()], ids=["plain", *HOSTILE_TEXTS])
def test_promtool_has_no_complaint(text: str) -> None:
    check(snapshot())
    check(replace_texts(snapshot(), text))


def test_promtool_takes_a_pooler_without_anything() -> None:
    check({**snapshot(), **{name: [] for name in LISTS}})
