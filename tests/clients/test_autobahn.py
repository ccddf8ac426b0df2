"""Proves that the WebSockets of the pooler pass the Autobahn test suite, as server and as client.

Method: `kosoku` plays the suite's cases against the real server, and as its upstream.  The suite
expects an echo, which `autobahn.py` explains; what fails is listed here, with the reason.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from tests.clients.aimock import HERE
from tests.clients.codex import CodexPool
from tests.clients.suites import explain, free_port, run_suite
from tests.support.processes import API_KEYS, POOL_KEY, Pooler

AS_SERVER, AS_CLIENT = 517, 246  # cases
PASSED: Final = {"OK", "NON-STRICT", "INFORMATIONAL"}


def cases(group: str, count: int, start: int = 1) -> list[str]:
    return [f"{group}.{number}" for number in range(start, count + 1)]


# How a case is judged: its events, its end, and the code of the Close that came.
Verdict = tuple[str, str, str]
# A turn is text (RFC 6455 §7.4.1, 1003).
BINARY: Final[Verdict] = ("FAILED", "FAILED", "1003")
# More frames than a message may have: 65,536 and 16,384 here, and 4,096 is the limit.
FRAMES: Final[Verdict] = ("FAILED", "FAILED", "1008")
# These compare the text of large messages, and what came was no echo.
ANSWERED: Final[Verdict] = ("FAILED", "OK", "1000")
# A binary frame with a reserved bit is wrong in two ways: 1002 is expected for the other one.
TWICE_WRONG: Final[Verdict] = ("OK", "WRONG CODE", "1003")
# No compression is agreed on.
UNCOMPRESSED: Final[Verdict] = ("UNIMPLEMENTED", "OK", "1000")
OF_THE_SERVER: Final[dict[Verdict, list[str]]] = {
    BINARY: [
        *cases("1.2", 8), *cases("9.2", 6), *cases("9.4", 9), *cases("9.6", 6), *cases("9.8", 6),
    ],
    FRAMES: cases("9.3", 2),
    ANSWERED: [*cases("9.1", 6), *cases("9.3", 9, 3), *cases("9.5", 6), *cases("9.7", 6)],
    TWICE_WRONG: ["3.5", "3.6"],
    UNCOMPRESSED: [
        case
        for group, last in (("12", 5), ("13", 7))
        for kind in cases(group, last)
        for case in cases(kind, 18)
    ],
}  # fmt: skip
# A binary message is an upstream's error, and ends its WebSocket without a Close.
OF_THE_CLIENT: Final[dict[Verdict, list[str]]] = {("OK", "UNCLEAN", "None"): cases("1.2", 8)}
# What a client is told of its turn, whatever the upstream has done.
ENDS: Final = {"upstream_invalid_response", "upstream_stream_truncated", "upstream_unreachable"}

Rows = dict[str, tuple[Verdict, str]]


def play(side: str, url: str, folder: Path, *port: str) -> Rows:
    """By case: how it was judged, and what the client was told."""
    done = run_suite(HERE / "autobahn.py", side, url, POOL_KEY, *port, folder=folder)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {case: ((events, end, code), told) for case, events, end, code, told in rows}


def failures(rows: Rows) -> dict[str, Verdict]:
    return {
        case: verdict
        for case, (verdict, _) in rows.items()
        if verdict[0] not in PASSED or verdict[1] not in PASSED
    }


def by_case(table: dict[Verdict, list[str]]) -> dict[str, Verdict]:
    return {case: verdict for verdict, names in table.items() for case in names}


def start_over(port: int, folder: Path) -> Pooler:
    """A pooler whose two accounts have their upstream at this port."""
    accounts = {
        name: {
            "type": "openai",
            "base_url": f"http://127.0.0.1:{port}/v1",
            "api_key": api_key,
            "models": ["m1"],
            "websocket": True,
        }
        for name, api_key in API_KEYS.items()
    }
    pool = {"accounts": [*accounts], "keys": {"laptop": POOL_KEY}}
    config = {"listen": "127.0.0.1:0", "accounts": accounts, "pools": {"home": pool}}
    return Pooler(config, folder)


def test_clients_meet_a_server_that_passes(tmp_path: Path) -> None:
    pooler = start_over(free_port(), tmp_path)  # no case gets as far as an upstream
    rows = play("server", f"{pooler.base_url}/responses", tmp_path)
    pooler.stop()
    assert len(rows) == AS_SERVER
    assert explain(failures(rows), by_case(OF_THE_SERVER)) == ""


def test_codex_cli_meets_the_same_server(codex_pool: CodexPool, tmp_path: Path) -> None:
    pooler = codex_pool.start()
    rows = play("server", f"{pooler.origin}/backend-api/codex/responses", tmp_path)
    assert len(rows) == AS_SERVER
    assert explain(failures(rows), by_case(OF_THE_SERVER)) == ""


def test_upstreams_meet_a_client_that_passes(tmp_path: Path) -> None:
    port = free_port()
    pooler = start_over(port, tmp_path)
    rows = play("client", f"{pooler.base_url}/responses".replace("http", "ws"), tmp_path, str(port))
    pooler.stop()
    assert len(rows) == AS_CLIENT
    assert explain(failures(rows), by_case(OF_THE_CLIENT)) == ""
    # Each turn has ended with one error, and none was given to the other account as well.
    assert {told for _, told in rows.values()} == ENDS
