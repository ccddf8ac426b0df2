"""Proves that an upstream with TLS is as well understood as a plain one, and as little trusted.

An answer that comes before the end of its request is the answer; what comes after an answer is
nobody's; a certificate is for its name and of a known authority.

Method: the real process, and upstreams on real sockets that send by hand
(tests/support/tls_upstreams.py); every client has a connection of its own.  Each case is an
account of its own, so that none finds what another has left behind.
"""

from __future__ import annotations

import json
import queue
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.support.codex_backend import make_auth_file
from tests.support.tls_upstreams import (
    HOST,
    SECONDS_MAX,
    Authority,
    Line,
    Play,
    Site,
    Upstream,
    answer,
    event_stream,
    opened_site,
)
from tests.support.world import responses_events

MIB: Final = 1024 * 1024
SCHEMES: Final = ("http", "https")


def upstream_of(site: Site, scheme: str) -> Upstream:
    return site.secure if scheme == "https" else site.plain


################################################################
# EARLY ANSWERS
################################################################


class Early(NamedTuple):
    """An answer to a request of which no more than the head was read."""

    status: int
    stays: bool  # open, and never reads on
    scheme: str
    mib: int
    is_stream: bool
    kind: str = "openai"

    @property
    def name(self) -> str:
        way = "stays" if self.stays else "closes"
        shape = "stream" if self.is_stream else "unary"
        return f"{self.kind}-{self.scheme}-{self.status}-{way}-{self.mib}-{shape}"


EARLY: Final = [
    *(
        Early(status, stays, scheme, mib, is_stream)
        for status in (413, 401, 429)
        for stays in (True, False)
        for scheme in SCHEMES
        for mib, is_stream in ((1, True), (1, False), (20, False))
    ),
    *(
        Early(status, stays, "https", 1, is_stream=True, kind="codex")
        for status in (413, 429)
        for stays in (True, False)
    ),
]
REFUSAL: Final = {"error": {"message": "No more of that.", "type": "t", "code": "c", "param": None}}


def refuse(case: Early, upstream: Upstream) -> Play:
    def play(line: Line, _head: bytes) -> bool:
        line.send(answer(REFUSAL, case.status))
        if case.stays:
            upstream.is_over.wait()
        return False

    return play


def serve(case: Early, bodies: list[bytes]) -> Play:
    def play(line: Line, head: bytes) -> bool:
        bodies.append(line.read_body(head))
        whole = event_stream(responses_events("x")) if case.is_stream else answer({"id": "r"})
        line.send(whole)
        return False

    return play


def account_of(case: Early, folder: Path, priority: int) -> dict[str, Any]:
    if case.kind == "openai":
        return {"base_url": case.scheme, "priority": priority}
    login = folder / f"{case.name}-{priority}.json"
    make_auth_file(login, f"{case.name}-{priority}")
    return {
        "type": "codex",
        "base_url": case.scheme,
        "auth_file": str(login),
        "api_key": None,
        "priority": priority,
        "websocket": False,
    }


@pytest.fixture(scope="module")
def early_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("early")
    accounts, pools = {}, {}
    for case in EARLY:
        pools[case.name] = [f"{case.name}-a", f"{case.name}-b"]
        for priority, name in enumerate(pools[case.name]):
            accounts[name] = account_of(case, folder, priority)
    with opened_site(folder, accounts, pools) as site:
        yield site


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in EARLY])
def test_an_answer_before_the_end_of_the_request_is_the_answer(
    early_site: Site, case: Early
) -> None:
    upstream = upstream_of(early_site, case.scheme)
    bodies: list[bytes] = []
    upstream.plays[f"{case.name}-a"] = refuse(case, upstream)
    upstream.plays[f"{case.name}-b"] = serve(case, bodies)
    began_at = time.monotonic()
    status, said = early_site.ask(
        case.name, {"input": "x" * case.mib * MIB, "stream": case.is_stream}
    )
    assert time.monotonic() - began_at < 15  # no timer of ours was waited for
    assert len(upstream.lines_of(f"{case.name}-a")) == 1
    if case.status == 413:  # the request's own: nobody else is asked
        assert (status, said["error"]["message"]) == (413, "No more of that.")
        assert bodies == []
        return
    assert status == 200
    assert ("response.completed" in said) if case.is_stream else (said == {"id": "r"})
    assert [len(body) > case.mib * MIB for body in bodies] == [True]
    assert "x" * case.mib * MIB in json.loads(bodies[0])["input"] or case.kind == "codex"


class Patient(NamedTuple):
    """What an upstream says before it has read a request that it will read whole."""

    said: bytes
    rest: bytes  # and afterwards


PATIENT: Final = {
    "interim": Patient(b"HTTP/1.1 100 Continue\r\n\r\n" * 8, answer({"id": "r"})),
    "head": Patient(answer({"id": "r"})[:-11], answer({"id": "r"})[-11:]),
    "half-a-head": Patient(answer({"id": "r"})[:20], answer({"id": "r"})[20:]),
    "whole": Patient(answer({"id": "r"}), b""),
}


KIB_SENT: Final = (100, 600, 1024, 8192)
KEPT: Final = [f"kept-{kib}" for kib in KIB_SENT]


@pytest.fixture(scope="module")
def patient_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    names = [f"{scheme}-{name}" for scheme in SCHEMES for name in PATIENT]
    accounts: dict[str, dict[str, Any]] = {
        name: {"base_url": name.partition("-")[0]} for name in names
    }
    accounts |= {scheme: {"base_url": scheme} for scheme in SCHEMES}
    for name in (*KEPT, "replaced-shut", "replaced-closed", "given-up"):
        accounts |= {f"{scheme}-{name}": {"base_url": scheme} for scheme in SCHEMES}
    pools = {name: [name] for name in accounts}
    for scheme in SCHEMES:
        for way in ("shut", "farewell", "closed"):
            pair = pools[f"{scheme}-{way}"] = [f"{scheme}-{way}-a", f"{scheme}-{way}-b"]
            accounts |= {name: {"base_url": scheme} for name in pair}
            accounts[pair[1]]["priority"] = 1
    limits = {"write_stall_seconds_max": 2}
    with opened_site(tmp_path_factory.mktemp("patient"), accounts, pools, limits) as site:
        yield site


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", PATIENT)
def test_a_good_word_before_the_end_of_the_request_does_not_stop_it(
    patient_site: Site, name: str, scheme: str
) -> None:
    """And the connection is as good as before."""
    upstream, case = upstream_of(patient_site, scheme), PATIENT[name]
    bodies: queue.Queue[bytes] = queue.Queue()

    def play(line: Line, head: bytes) -> bool:
        line.send(case.said)
        bodies.put(line.read_body(head))
        line.send(*([case.rest] if case.rest else []))
        return True

    account = f"{scheme}-{name}"
    upstream.plays[account] = play
    for count in (1, 2):
        asked = {"input": "x" * 8 * MIB}
        assert patient_site.ask(account, asked) == (200, {"id": "r"})
        assert json.loads(bodies.get(timeout=SECONDS_MAX)) == {"model": "m1", **asked}
        assert len(upstream.lines_of(account)) == count
    assert len(set(upstream.lines_of(account))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kib", KIB_SENT)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_refusal_on_a_kept_connection_is_the_answer_and_the_last_there(
    patient_site: Site, scheme: str, kib: int
) -> None:
    """Also where the system has taken what is left of the request: it may never be read."""
    upstream, account = upstream_of(patient_site, scheme), f"{scheme}-kept-{kib}"

    def play(line: Line, head: bytes) -> bool:
        if len(upstream.lines_of(account)) == 2:
            line.send(answer(REFUSAL, 413))
            upstream.is_over.wait()
        line.read_body(head)
        line.send(answer({"id": "r"}))
        return True

    upstream.plays[account] = play
    statuses = [patient_site.ask(account, {"input": "x" * kib * 1024})[0] for _ in range(4)]
    assert statuses == [200, 413, 200, 200]
    numbers = [line.number for line in upstream.lines_of(account)]
    assert [number - numbers[0] for number in numbers] == [0, 0, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["shut", "closed"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_kept_connection_that_ends_before_the_request_does_is_replaced(
    patient_site: Site, scheme: str, way: str
) -> None:
    """Once, in silence: an upstream may end one just when it is used again."""
    upstream, account = upstream_of(patient_site, scheme), f"{scheme}-replaced-{way}"
    bodies: queue.Queue[bytes] = queue.Queue()

    def play(line: Line, head: bytes) -> bool:
        if len(upstream.lines_of(account)) in {2, 4}:
            line.caller.shutdown(socket.SHUT_WR)
            if way == "shut":
                upstream.is_over.wait()
            return False
        bodies.put(line.read_body(head))
        line.send(answer({"id": "r"}))
        return True

    upstream.plays[account] = play
    for count in (1, 3, 5):
        asked = {"input": str(count) * 8 * MIB}
        assert patient_site.ask(account, asked) == (200, {"id": "r"})
        assert json.loads(bodies.get(timeout=SECONDS_MAX)) == {"model": "m1", **asked}
        assert len(upstream.lines_of(account)) == count


@pytest.mark.slow
@pytest.mark.parametrize("way", ["shut", "farewell", "closed"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_upstream_that_will_say_nothing_more_is_sent_nothing_more(
    patient_site: Site, scheme: str, way: str
) -> None:
    """It has not got the whole of the request, so the next account may have it."""
    upstream, pool = upstream_of(patient_site, scheme), f"{scheme}-{way}"
    bodies: queue.Queue[bytes] = queue.Queue()

    def end(line: Line, _head: bytes) -> bool:
        if way == "farewell" and line.tls is not None:
            line.caller.sendall(line.farewell())
            upstream.is_over.wait()
        elif way != "closed":
            line.caller.shutdown(socket.SHUT_WR)
            upstream.is_over.wait()
        return False

    def play(line: Line, head: bytes) -> bool:
        bodies.put(line.read_body(head))
        line.send(answer({"id": "r"}))
        return True

    upstream.plays |= {f"{pool}-a": end, f"{pool}-b": play}
    assert patient_site.ask(pool, {"input": "x" * 8 * MIB}) == (200, {"id": "r"})
    assert len(json.loads(bodies.get(timeout=SECONDS_MAX))["input"]) == 8 * MIB


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_upstream_that_neither_reads_nor_answers_is_a_timeout_of_the_write(
    patient_site: Site, scheme: str
) -> None:
    upstream = upstream_of(patient_site, scheme)
    upstream.plays[scheme] = lambda *_: upstream.is_over.wait()
    status, said = patient_site.ask(scheme, {"input": "x" * 20 * MIB})
    assert (status, said["error"]["code"]) == (504, "upstream_timeout")
    assert "write_stall_seconds_max" in said["error"]["message"]


################################################################
# WHAT NOBODY ASKED FOR
################################################################

STOLEN: Final = answer({"id": "stolen"})
ODD: Final = b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 99\r\n\r\n"
FIRST: Final = {
    "length": answer({"id": "first"}),
    "chunked": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'8\r\n{"id":"f\r\n5\r\nirst"\r\n1\r\n}\r\n0\r\n\r\n'
    ),
    "empty": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "empty-chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "304": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n",
    "400-empty": b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n",
}
# Behind the first answer: what the wire takes for the line, and what is left of it for later.
WAYS: Final[dict[str, Callable[[Line, bytes], tuple[bytes, bytes]]]] = {
    "in the same record": lambda line, first: (line.encrypted(first + STOLEN), b""),
    "in the next record": lambda line, first: (
        line.encrypted(first) + line.encrypted(STOLEN), b""
    ),
    "in two records": lambda line, first: (
        line.encrypted(first + STOLEN[:9]) + line.encrypted(STOLEN[9:]), b""
    ),
    "half of its record": lambda line, first: split_late(line, first, -7),
    "the head of its record": lambda line, first: split_late(line, first, 5),
    "half the head of its record": lambda line, first: split_late(line, first, 3),
    "an interim answer": lambda line, first: (
        line.encrypted(first + b"HTTP/1.1 100 Continue\r\n\r\n"), b""
    ),
    "later": lambda line, first: (line.encrypted(first), line.encrypted(STOLEN)),
    "nothing": lambda line, first: (line.encrypted(first), b""),
    "an end": lambda line, first: (line.encrypted(first) + line.farewell(), b""),
}  # fmt: skip
ONLY_TLS: Final = {"an end"}
CASES: Final = [
    pytest.param(scheme, framing, way, id=f"{scheme}-{framing}-{way.replace(' ', '-')}")
    for scheme in SCHEMES
    for framing in FIRST
    for way in WAYS
    if scheme == "https" or way not in ONLY_TLS
]


def split_late(line: Line, first: bytes, count: int) -> tuple[bytes, bytes]:
    """The first answer and a piece of what the wire takes for another one; and the rest."""
    whole, late = line.encrypted(first), line.encrypted(STOLEN)
    return whole + late[:count], late[count:]


def account_for(scheme: str, framing: str, way: str) -> str:
    return f"{scheme}-{framing}-{list(WAYS).index(way)}"


@pytest.fixture(scope="module")
def late_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    accounts = {
        account_for(scheme, framing, way): {"base_url": scheme}
        for scheme in SCHEMES
        for framing in FIRST
        for way in WAYS
    }
    with opened_site(tmp_path_factory.mktemp("late"), accounts) as site:
        yield site


@pytest.mark.parametrize(("scheme", "framing", "way"), CASES)
def test_what_comes_behind_an_answer_is_never_the_next_client_s(
    late_site: Site, scheme: str, framing: str, way: str
) -> None:
    upstream, account = upstream_of(late_site, scheme), account_for(scheme, framing, way)
    rest: list[bytes] = []

    def play(line: Line, head: bytes) -> bool:
        line.read_body(head)
        if len(upstream.lines_of(account)) == 1:
            sent, left = WAYS[way](line, FIRST[framing])
            rest.append(left)
            line.caller.sendall(sent)
        else:
            if upstream.lines_of(account)[0] is line:
                line.caller.sendall(rest.pop())
            line.send(answer({"id": "second"}))
        return True

    upstream.plays[account] = play
    late_site.ask(account, {"input": "first"})
    if way == "later":
        upstream.lines_of(account)[0].caller.sendall(rest.pop())
    assert late_site.ask(account, {"input": "second"}) == (200, {"id": "second"})
    assert len(set(upstream.lines_of(account))) == (1 if way == "nothing" else 2)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_answer_that_was_given_up_is_never_the_next_client_s(
    patient_site: Site, scheme: str
) -> None:
    """Its connection was a kept one, and its head was whole."""
    upstream, account = upstream_of(patient_site, scheme), f"{scheme}-given-up"

    def play(line: Line, head: bytes) -> bool:
        line.read_body(head)
        is_odd = len(upstream.lines_of(account)) == 2
        line.send(ODD if is_odd else answer({"id": "r"}))
        return True

    upstream.plays[account] = play
    assert patient_site.ask(account, {"input": "first"}) == (200, {"id": "r"})
    status, said = patient_site.ask(account, {"input": "second"})
    assert (status, said["error"]["code"]) == (502, "upstream_invalid_response")
    assert patient_site.ask(account, {"input": "third"}) == (200, {"id": "r"})
    numbers = [line.number for line in upstream.lines_of(account)]
    assert [number - numbers[0] for number in numbers] == [0, 0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("is_held", [False, True], ids=["at-once", "with-the-answer"])
def test_tickets_of_a_session_are_no_answer(tmp_path: Path, *, is_held: bool) -> None:
    """With TLS 1.3 they come when the server likes."""
    with opened_site(tmp_path, {"a": {}}) as site:
        site.secure.holds_tickets = is_held
        tickets_sent = []

        def play(line: Line, head: bytes) -> bool:
            line.read_body(head)
            tickets_sent.append(line.outgoing.pending)
            line.send(answer({"id": "r"}))
            return True

        site.secure.plays["a"] = play
        for _ in range(3):
            assert site.ask("a", {"input": "x"}) == (200, {"id": "r"})
        assert [count > 0 for count in tickets_sent] == [is_held, False, False]
        assert site.secure.opened_count == 1


################################################################
# TRUST
################################################################


class Trust(NamedTuple):
    """What a server shows, and which authorities the account knows."""

    names: tuple[str, ...] = (HOST,)
    is_of_ours: bool = True
    is_over: bool = False
    has_ca_file: bool = True
    host: str = HOST
    is_good: bool = False


TRUST: Final = {
    "an-address": Trust(is_good=True),
    "a-name": Trust(("localhost",), host="localhost", is_good=True),
    "one-of-two-names": Trust(("else.example", HOST), is_good=True),
    "another-name": Trust(("else.example",)),
    "another-address": Trust(("127.0.0.2",)),
    "a-name-for-an-address": Trust(("localhost",)),
    "an-address-for-a-name": Trust(host="localhost"),
    "of-a-stranger": Trust(is_of_ours=False),
    "of-nobody-known": Trust(has_ca_file=False),
    "run-out": Trust(is_over=True),
}


@pytest.fixture(scope="module")
def trust_site(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Site, dict[str, Upstream]]]:
    folder = tmp_path_factory.mktemp("trust")
    ours, stranger = Authority(folder, "ours"), Authority(folder, "stranger")
    upstreams, accounts = {}, {}
    for name, case in TRUST.items():
        authority = ours if case.is_of_ours else stranger
        context = authority.context(*case.names)
        if case.is_over:
            long_ago = datetime(2001, 1, 1, tzinfo=UTC), datetime(2002, 1, 1, tzinfo=UTC)
            cert = authority.ca.issue_cert(
                *case.names, not_before=long_ago[0], not_after=long_ago[1]
            )
            cert.configure_cert(context)
        upstreams[name] = Upstream(context)
        accounts[name] = {
            "base_url": f"https://{case.host}:{upstreams[name].port}/{name}/v1",
            "ca_file": str(ours.path) if case.has_ca_file else None,
        }
    with opened_site(folder, accounts) as site:
        yield site, upstreams
    for upstream in upstreams.values():
        upstream.close()


@pytest.mark.parametrize("name", TRUST)
def test_a_certificate_is_for_its_name_and_of_an_authority_that_the_account_knows(
    trust_site: tuple[Site, dict[str, Upstream]], name: str
) -> None:
    """Else nothing is asked there: no byte of a request, and no key."""
    site, upstreams = trust_site
    upstream = upstreams[name]

    def play(line: Line, head: bytes) -> bool:
        line.read_body(head)
        line.send(answer({"id": "r"}))
        return True

    upstream.plays[name] = play
    status, said = site.ask(name, {"input": "x"})
    assert upstream.opened_count == 1
    if TRUST[name].is_good:
        assert (status, said) == (200, {"id": "r"})
    else:
        assert (status, said["error"]["code"]) == (502, "upstream_unreachable")
        assert upstream.asked == []
