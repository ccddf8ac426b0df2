"""Proves that at night each of the operator's sources names what is wrong, why, and what to do.

Method: the real process over real sockets, with four accounts that are each out of order in
another way (see that_night.py).  Page, status text, MCP, metrics and log are searched for all four.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.that_night import CAUSES, PLATFORM_KEY, Night, opened_night

pytestmark = pytest.mark.trio


def assert_told(text: str, *, with_remedy: bool = True) -> None:
    """Every account is there with its cause, and with what is to be done."""
    for account, (cause, remedy) in CAUSES.items():
        assert account in text
        assert cause in text, (account, cause)
        if with_remedy:
            assert remedy in text, (account, remedy)
    assert PLATFORM_KEY not in text


def plain(page: str) -> str:
    """The words of a page."""
    return html.unescape(re.sub("<[^>]+>", " ", page))


async def check_page(night: Night) -> None:
    """The page names all of it under its first heading, and says how much there is in its title."""
    page = await night.show()
    title = re.search(r"<title>\((\d+)\)", page)
    assert title is not None
    assert int(title[1]) >= 4
    first_section = plain(page.partition("<h2")[2].partition("<h2")[0])
    assert "Needs you" in first_section
    assert_told(first_section)
    assert "ready" not in first_section


async def check_pool(night: Night) -> None:
    """No model can be served: the pool is not ready, and names who was passed over and why."""
    shown: dict[str, Any] = json.loads(await night.show(accept="application/json"))
    [pool] = shown["pools"]
    assert pool["status"] == "limited"
    statuses = {row["model"]: row["status"] for row in pool["serving"]}
    assert statuses == {"gpt-5.5": "limited", "qwen3-coder": "down"}
    accounts = {account["name"]: account["status"] for account in shown["accounts"]}
    assert accounts == {
        "personal": "login_needed",
        "second": "at_limit",
        "platform": "refused",
        "llama": "unreachable",
    }


def check_log(night: Night) -> None:
    """What is above the level info tells the night's story by itself."""
    story = [line for line in night.process.lines if line["level"] != "info"]
    told = {line["account"]: line for line in story if line["event"] == "account"}
    assert told.keys() == CAUSES.keys()
    for account, (cause, _) in CAUSES.items():
        reason = told[account]["reason"]
        # The head of the response reports the used-up plan before its body names the error.
        assert cause in reason or (account == "second" and reason == "plan used up")
    assert {line["model"] for line in story if line["event"] == "pool"} >= {"gpt-5.5"}
    assert any(line["event"] == "request" for line in story)


async def test_each_source_names_what_is_wrong_why_and_what_to_do(tmp_path: Path) -> None:
    async with opened_night(tmp_path) as night:
        await check_page(night)
        await check_pool(night)
        status = await night.show("/admin?columns=200&rows=200", "text/plain")
        assert_told(status)

        metrics = await night.show("/metrics")
        for account, state in (
            ("personal", "login_needed"),
            ("second", "at_limit"),
            ("platform", "refused"),
            ("llama", "unreachable"),
        ):
            sample = f'account_state{{account="{account}",state="{state}"}} 1'
            assert sample in metrics

        diagnosis = await night.call("diagnose")
        assert_told(diagnosis["content"][0]["text"])
        upstreams = await night.call("list_upstreams")
        advice = {row["id"]: row["advice"] for row in upstreams["structuredContent"]["items"]}
        assert advice["second"].startswith("Nothing: it comes back by itself.")
        assert_told(json.dumps(upstreams["structuredContent"]), with_remedy=False)
        route = await night.call("explain_routing", pool_selector="home", model="gpt-5.5")
        reasons = json.dumps(route["structuredContent"])
        assert route["structuredContent"]["chosen"] is None
        assert "login needed" in reasons
        assert "at its limit" in reasons
        assert "refused: 401 invalid_api_key" in reasons

        logs = await night.call("list_request_logs", status="error")
        passed_over = json.dumps(logs["structuredContent"]["items"][2])
        for account in ("personal", "second", "platform"):
            assert account in passed_over

        night.process.process.terminate()
        assert await night.process.wait_exit() == 0
        check_log(night)
