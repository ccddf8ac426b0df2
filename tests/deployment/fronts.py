"""nginx, Caddy and HAProxy with README's snippets, and a client that reads through them.

`in_front(name, folder, ports)` runs one in front of poolers at these ports; a `Front` is where its
clients connect, over TLS, under the name that the snippets have.  (No claims.)
"""

from __future__ import annotations

import base64
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio
import trustme

from tests.deployment.snippets import NAME, free_port, program, snippet, with_places
from tests.support.frames import TEXT, frame, split_frame
from tests.support.memory_websockets import CLIENT_KEY
from tests.support.server_process import KEY, SECONDS_MAX, receive

OPERATOR: Final = "operator-of-the-test-0123456789"


@dataclass
class Front:
    """Where clients reach a proxy."""

    port: int
    tls: ssl.SSLContext

    async def connect(self) -> trio.SSLStream[trio.SocketStream]:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        secured = trio.SSLStream(stream, self.tls, server_hostname=NAME, https_compatible=True)
        await secured.do_handshake()
        return secured

    async def ask(self, raw: bytes) -> bytes:
        """The response to a request that ends with its connection.

        It is read while the request is being sent: what is refused may not be read to its end.
        """
        async with await self.connect() as stream, trio.open_nursery() as nursery:

            async def send() -> None:
                with contextlib.suppress(trio.BrokenResourceError):
                    await stream.send_all(raw)

            nursery.start_soon(send)
            answer = await read_end(stream)
            nursery.cancel_scope.cancel()
        return answer


def leave(stream: trio.SSLStream[trio.SocketStream]) -> None:
    """Go away as a client that was killed: the connection is closed, and TLS is not."""
    stream.transport_stream.socket.close()


async def read_end(stream: trio.abc.Stream) -> bytes:
    """What comes until the end, or a reset."""
    raw = b""
    with contextlib.suppress(trio.BrokenResourceError):
        while received := await stream.receive_some():
            raw += received
    return raw


def request(
    method: str,
    path: str,
    body: bytes = b"",
    *,
    key: str = KEY,
    closes: bool = True,
    host: str = NAME,
    more: str = "",
) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{more}"
    if key:
        head += f"Authorization: Bearer {key}\r\n"
    if closes:
        head += "Connection: close\r\n"
    if method == "POST":
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


class WebSocket:
    """The client's side, after the upgrade."""

    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self.stream = stream
        self.buffer = b""

    async def send(self, text: bytes) -> None:
        await self.stream.send_all(frame(TEXT, text))

    async def read(self) -> bytes:
        """The payload of the next frame with text."""
        while True:
            while (whole := split_frame(self.buffer)) is None:
                self.buffer += await receive(self.stream)
            opcode, _, _, payload, self.buffer = whole
            if opcode == TEXT:
                return payload


async def open_websocket(front: Front, path: str) -> WebSocket:
    stream = await front.connect()
    fields = (
        f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {CLIENT_KEY}\r\n"
    )
    head = request("GET", path, closes=False, more=f"Connection: Upgrade\r\n{fields}")
    await stream.send_all(head)
    opened = WebSocket(stream)
    while b"\r\n\r\n" not in opened.buffer:
        opened.buffer += await receive(stream)
    answer, _, opened.buffer = opened.buffer.partition(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 101 "), answer
    return opened


def basic(token: str) -> str:
    return f"Authorization: Basic {base64.b64encode(b'me:' + token.encode()).decode()}\r\n"


################################################################
# THE PROXIES
################################################################


@dataclass
class Place:
    """What a proxy is given instead of the snippet's ports and paths."""

    folder: Path
    port: int
    poolers: Sequence[int]  # ports
    certificate: Path
    key: Path


def nginx(place: Place) -> list[str]:
    """Debian's nginx.conf includes the snippet in `http`; its own files need places of ours."""
    shown = with_places(
        snippet("nginx"),
        {
            "listen 443": f"listen 127.0.0.1:{place.port}",
            "/etc/ssl/pooler.pem": f"{place.certificate}",
            "/etc/ssl/pooler.key": f"{place.key}",
            "127.0.0.1:4000": f"127.0.0.1:{place.poolers[0]}",
        },
    )
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {place.folder}/{kind};" for kind in kinds)
    own = f"daemon off; user root; pid {place.folder}/pid; events {{}}"
    config = place.folder / "nginx.conf"
    config.write_text(f"{own} http {{ access_log off; {temporary}\n{shown} }}")
    return [program("nginx"), "-e", "stderr", "-c", str(config)]


def caddy(place: Place) -> list[str]:
    """It makes its own certificates, and is told not to ask for any, nor for other ports."""
    places = {
        NAME: f"https://{NAME}:{place.port}",
        "127.0.0.1:4000": f"127.0.0.1:{place.poolers[0]}",
    }
    shown = with_places(snippet("caddy"), places)
    own = "{\n admin off\n auto_https disable_redirects\n local_certs\n skip_install_trust\n}\n"
    config = place.folder / "Caddyfile"
    config.write_text(own + shown)
    return [program("caddy"), "run", "--adapter", "caddyfile", "--config", str(config)]


def haproxy(place: Place) -> list[str]:
    both = place.folder / "both.pem"
    both.write_bytes(place.certificate.read_bytes() + place.key.read_bytes())
    shown = with_places(
        snippet("haproxy"),
        {
            "bind :443": f"bind 127.0.0.1:{place.port}",
            "/etc/ssl/pooler.pem": f"{both}",
            "10.0.0.1:4000": f"127.0.0.1:{place.poolers[0]}",
            "10.0.0.2:4000": f"127.0.0.1:{place.poolers[-1]}",
        },
    )
    config = place.folder / "haproxy.cfg"
    config.write_text(shown)
    return [program("haproxy"), "-db", "-f", str(config)]


PROXIES: Final[dict[str, Callable[[Place], list[str]]]] = {
    "nginx": nginx,
    "caddy": caddy,
    "haproxy": haproxy,
}


@contextlib.contextmanager
def certificates(folder: Path) -> Iterator[tuple[Path, Path, trustme.CA]]:
    authority = trustme.CA()
    issued = authority.issue_cert(NAME)
    certificate, key = folder / "pooler.pem", folder / "pooler.key"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    yield certificate, key, authority


@contextlib.asynccontextmanager
async def in_front(name: str, folder: Path, poolers: Sequence[int]) -> AsyncIterator[Front]:
    """The proxy, serving; it must end when it is told to."""
    folder = folder / name
    folder.mkdir()
    tls = ssl.create_default_context()
    with certificates(folder) as (certificate, key, authority):
        place = Place(folder, free_port(), poolers, certificate, key)
        command = PROXIES[name](place)
        async with running(command, folder / "log", {"HOME": str(folder)}) as process:
            await wait_listening(process, place.port, folder / "log")
            authority.configure_trust(tls)
            root = folder / ".local/share/caddy/pki/authorities/local/root.crt"
            if name == "caddy":
                tls.load_verify_locations(root)
            yield Front(place.port, tls)


@contextlib.asynccontextmanager
async def running(
    command: Sequence[str], output: Path, environment: Mapping[str, str] | None = None
) -> AsyncIterator[trio.Process]:
    """A process whose output goes to a file; it is ended at the end of the block.

    By SIGTERM if it can: nginx would otherwise leave its workers behind.
    """
    with output.open("wb") as log:
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )
        try:
            yield process
        finally:
            process.terminate()
            with trio.move_on_after(SECONDS_MAX, shield=True):
                await process.wait()
            process.kill()
            with trio.move_on_after(SECONDS_MAX, shield=True):
                await process.wait()


async def wait_listening(process: trio.Process, port: int, log: Path) -> None:
    with trio.fail_after(SECONDS_MAX):
        while True:
            with contextlib.suppress(OSError):
                await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
                return
            with trio.move_on_after(0.05):
                await process.wait()
            assert process.returncode is None, await trio.Path(log).read_text()
