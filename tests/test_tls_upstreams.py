"""Proves that an upstream with TLS is as well understood as a plain one, and as little trusted.

What comes after an answer is nobody's; a certificate is for its name and of a known authority.

Method: the real process, and upstreams on real sockets that send by hand (tests/tls_wire.py);
every client has a connection of its own.  Each case is an account of its own, so that none finds
what another has left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.tls_wire import (
    HOST,
    Authority,
    Line,
    Site,
    Upstream,
    answer,
    opened_site,
)

SCHEMES: Final = ("http", "https")


def upstream_of(site: Site, scheme: str) -> Upstream:
    return site.secure if scheme == "https" else site.plain


################################################################
# WHAT NOBODY ASKED FOR
################################################################

STOLEN: Final = answer({"id": "stolen"})
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
