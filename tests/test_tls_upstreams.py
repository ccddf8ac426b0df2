"""Proves that an upstream with TLS is as well understood as a plain one, and as little trusted.

A certificate is for its name and of a known authority.

Method: the real process, and upstreams on real sockets that send by hand (tests/tls_wire.py);
every client has a connection of its own.  Each case is an account of its own, so that none finds
what another has left behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
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
