"""Proves that the pooler judges the requests of another server's tests as that server does.

Method: gunicorn's tests have a folder of requests that are valid, and one of those that are not.
Each is sent to the real server: those about bodies as calls, because others are refused before
their body is read.  Where the pooler judges otherwise is listed here, with the reason.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from tests.clients.suites import explain, free_port, unpacked
from tests.support.processes import API_KEYS, POOL_KEY, SECONDS_MAX, Pooler

HOST: Final = b"Host: 127.0.0.1\r\n"
LEAST: Final = {"valid": 60, "invalid": 80}

# What is said to requests that gunicorn takes.  A client of an API sends none of these, and what
# two servers might read differently is refused.
REFUSED: Final = {
    "005": "bad_request",  # a fragment in the target
    "014": "bad_request",  # a quotation mark in it
    "018": "not_found bad_request",  # the second request has no Host (RFC 9112 §3.2)
    "022": "not_found bad_request",
    "023": "invalid_json bad_request",
    "013": "bad_request",  # chunk extensions
    "rfc9112_chunked_ext_quoted_01": "bad_request",
    "025": "bad_request",  # a coding besides chunked
    "025_line": "bad_request",
    "029": "bad_request",
    "030": "bad_request",
    "rfc9112_smuggle_gzip_chunked_01": "bad_request",
    "rfc9112_smuggle_te_identity_chunked_01": "bad_request",
    "028": "bad_request",  # gunicorn takes this and the next two if it is told to
    "compat_obs_fold": "bad_request",
    "compat_obs_fold_huge": "bad_request",
    "pp_01": "bad_request",  # the PROXY protocol
    "pp_02": "bad_request",
    "pp_04": "bad_request",
    "pp_05": "bad_request",
    "rfc9112_leading_crlf_01": "bad_request",  # RFC 9112 §2.2 says SHOULD
    "rfc9112_target_absolute_01": "bad_request",  # it is no proxy
    "rfc9112_target_absolute_https_01": "bad_request",
    "rfc9112_target_absolute_ipv6_01": "bad_request",
    "rfc9112_target_absolute_userinfo_01": "bad_request",
    "rfc9112_target_asterisk_options_01": "bad_request",
    "rfc9112_target_authority_connect_01": "bad_request",
    "rfc9112_target_authority_ipv6_01": "bad_request",
}
# What is said to requests that gunicorn does not take.
TAKEN: Final = {
    "001": "",  # unfinished
    "pp_01": "",
    "pp_02": "",
    "pp_03": "",
    "rfc9112_chunked_missing_final_crlf_01": "",
    "003c": "not_found",  # gunicorn wants methods of three capitals or more
    "006": "not_found",  # limits that gunicorn is told, and smaller ones
    "007": "missing_required_parameter",
    "008": "not_found",
    "009": "head_too_large",  # the same, but in our words
    "010": "not_found",
    "011": "not_found",
    "012": "not_found",
    "017": "not_found",
    "limit_header_default_01": "not_found",
    "019": "not_found",  # headers of a proxy in front, which have no meaning here
    "040": "invalid_json",  # names with _, which some gateways take for those with -
    "chunked_07": "invalid_json",
    # Trailers are read and dropped, whatever their names are (RFC 9110 §6.5.1).
    "rfc9110_trailer_forbidden_cl_01": "invalid_json",
    "rfc9110_trailer_forbidden_host_01": "invalid_json",
    "rfc9110_trailer_forbidden_te_01": "invalid_json",
}
# How the files write what a line of text cannot hold.
ESCAPED: Final = {rb"\r\n": b"\r\n", rb"\0": b"\0", rb"\n": b"\n", rb"\t": b"\t"}


def read(path: Path) -> bytes:
    """The bytes of a request; a line that ends has no meaning."""
    raw = path.read_bytes().replace(b"\n", b"")
    for written, meant in ESCAPED.items():
        raw = raw.replace(written, meant)
    return re.sub(rb"\\x([0-9a-fA-F]{2})", lambda match: bytes([int(match[1], 16)]), raw)


def hosted(raw: bytes) -> bytes:
    """The same for this server: with its name, and with a Host if there is none."""
    line, end, rest = raw.partition(b"\r\n")
    if not end or b" HTTP/1." not in line:
        return raw
    head, blank, body = rest.partition(b"\r\n\r\n")
    head = re.sub(rb"(?im)^host: [^\r\n]*", b"Host: 127.0.0.1", head)
    has_host = re.search(rb"(?im)^host:", head) is not None
    return line + end + (b"" if has_host else HOST) + head + blank + body


def posted(raw: bytes) -> bytes | None:
    """The same as a call, with a key and declared as JSON; None, if it is not about a body."""
    first = re.match(rb"[A-Z]+ [!-~]+ (HTTP/1\.[01])\r\n", raw)
    if first is None or re.search(rb"(?i)(transfer.encoding|content.length)", raw) is None:
        return None
    rest = re.sub(rb"(?im)^(host|content-type): [^\r\n]*\r\n", b"", raw[first.end() :])
    key = f"Authorization: Bearer {POOL_KEY}\r\nContent-Type: application/json\r\n".encode()
    return b"POST /v1/responses " + first[1] + b"\r\n" + key + HOST + rest


def ask(pooler: Pooler, raw: bytes) -> str:
    """The codes of the errors that came: as many as there were requests."""
    address = urlsplit(pooler.origin)
    where = (address.hostname or "", address.port or 0)
    received = b""
    with socket.create_connection(where, SECONDS_MAX) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        while read_now := connection.recv(65536):
            received += read_now
    return " ".join(code.decode() for code in re.findall(rb'"code": "([^"]+)"', received))


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """By folder and name."""
    folder = unpacked("gunicorn", tmp_path_factory.mktemp("corpus")) / "tests/requests"
    found = {
        f"{kind}/{path.stem}": read(path)
        for kind in LEAST
        for path in sorted((folder / kind).glob("*.http"))
    }
    for kind, least in LEAST.items():
        assert len([name for name in found if name.startswith(f"{kind}/")]) >= least
    return found


@pytest.fixture
def served(tmp_path: Path) -> Pooler:
    account = {
        "type": "openai",
        "base_url": f"http://127.0.0.1:{free_port()}/v1",
        "api_key": API_KEYS["first"],
        "models": ["m1"],
    }
    pool = {"accounts": ["first"], "keys": {"laptop": POOL_KEY}}
    config = {
        "listen": "127.0.0.1:0", "accounts": {"first": account}, "pools": {"home": pool},
    }  # fmt: skip
    return Pooler(config, tmp_path)


def judged_otherwise(found: dict[str, str]) -> dict[str, str]:
    """Those that are refused though valid, or not refused though invalid."""
    return {
        name: codes
        for name, codes in found.items()
        if ("bad_request" in codes) == name.startswith("valid/")
    }


def test_requests_are_judged_as_gunicorn_judges_them(
    requests: dict[str, bytes], served: Pooler
) -> None:
    found = {name: ask(served, posted(raw) or hosted(raw)) for name, raw in requests.items()}
    served.stop()
    expected = {f"valid/{name}": codes for name, codes in REFUSED.items()}
    expected |= {f"invalid/{name}": codes for name, codes in TAKEN.items()}
    assert explain(judged_otherwise(found), expected) == ""
