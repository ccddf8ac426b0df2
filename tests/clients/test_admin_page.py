"""Proves that the operator's page works in a real browser: nothing refused, nothing cut off.

Method: headless Chromium, told what to do over its DevTools pipe, loads the page from a server on
loopback that sends the page's own Content-Security-Policy.  The screenshots stay in pytest's
folder (`--basetemp`), for people to look at.
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import os
import queue
import re
import select
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import mcp_server
from tests.clients.aimock import installed
from tests.support.paths import SNAPSHOT
from tests.support.processes import POOL_KEY, Pooler

Json = dict[str, Any]

SECONDS_MAX: Final = 30.0
WIDE: Final = 1280
PHONE: Final = 390


class Chromium:
    """One tab.  `messages`: whatever the browser had to say about the page."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("chromium")
        assert program, "chromium is not installed. Run: apt-get install chromium"
        to_read, self.to_write = os.pipe()
        self.to_read, to_write = os.pipe()
        # The DevTools pipe is on descriptors 3 and 4.
        started = [
            "bash", "-c", f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}', program,
            "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
            "--hide-scrollbars", f"--user-data-dir={folder}", "about:blank",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            started, pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL
        )
        os.close(to_read)
        os.close(to_write)
        self.read = b""
        self.asked_count = 0
        self.session: str | None = None
        self.events: list[Json] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: object) -> Json:
        """Send a command; its result.  Events that come before it are kept."""
        self.asked_count += 1
        asked = {"id": self.asked_count, "method": method, "params": params}
        if self.session is not None:
            asked["sessionId"] = self.session
        os.write(self.to_write, json.dumps(asked).encode() + b"\0")
        while True:
            told = self.receive()
            if told.get("id") == self.asked_count:
                assert "error" not in told, told
                result: Json = told["result"]
                return result
            self.events.append(told)

    def receive(self) -> Json:
        while b"\0" not in self.read:
            assert select.select([self.to_read], [], [], SECONDS_MAX)[0], "chromium is silent"
            part = os.read(self.to_read, 65536)
            assert part, "chromium has ended"
            self.read += part
        message, _, self.read = self.read.partition(b"\0")
        told: Json = json.loads(message)
        return told

    def load(self, url: str, *, width: int = WIDE, scheme: str = "light") -> None:
        """Returns when all of the page is there, and what it had to ask for."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.ask("Emulation.setEmulatedMedia", features=[feature])
        is_phone = width == PHONE
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=is_phone,
        )  # fmt: skip
        self.events.clear()
        self.ask("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())

    def value(self, expression: str) -> Any:  # noqa: ANN401 (whatever the page has)
        told = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def complaints(self) -> list[str]:
        """Of the console, of the policy, of the parser."""
        self.value("document.readyState")  # what was said before this answer has arrived
        names = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [json.dumps(event) for event in self.events if event["method"] in names]

    def requested(self) -> list[str]:
        name = "Network.requestWillBeSent"
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == name]

    def roles(self) -> list[str]:
        """What a screen reader is told about."""
        nodes = self.ask("Accessibility.getFullAXTree")["nodes"]
        return [node["role"]["value"] for node in nodes if not node["ignored"]]

    def take_picture(self, path: Path) -> None:
        told = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(told["data"]))

    def close(self) -> None:
        os.close(self.to_write)  # it ends with its pipe
        self.process.wait(SECONDS_MAX)
        os.close(self.to_read)


class Site(http.server.ThreadingHTTPServer):
    """Serves one page, under the pooler's policy."""

    daemon_threads = True

    def __init__(self) -> None:
        self.page = ""
        self.asked: queue.Queue[str] = queue.Queue()
        super().__init__(("127.0.0.1", 0), Visit)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/admin"


class Visit(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Site)
        body = self.server.page.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", mcp_server.ADMIN_CSP)
        self.end_headers()
        self.wfile.write(body)
        self.server.asked.put(self.path)

    def log_message(self, *_words: object) -> None:
        """The tests say what matters."""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with contextlib.closing(Chromium(tmp_path_factory.mktemp("profile"))) as started:
        yield started


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as opened:
        opened.page = mcp_server.admin_page(snapshot())
        thread = threading.Thread(target=opened.serve_forever)
        thread.start()
        yield opened
        opened.shutdown()
        thread.join(SECONDS_MAX)


def snapshot() -> Json:
    told: Json = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    return told


def crowded() -> Json:
    """Long names, many accounts and requests, every state."""
    told = snapshot()
    name = "an-account-with-quite-a-long-name_" + "n" * 30
    first = told["accounts"][0]
    told["is_draining"] = True
    told["accounts"] += [
        {**first, "name": f"{state}-{name}"[:64], "status": state, "is_demoted": True,
         "windows": [{**first["windows"][0], "family": "codex_other_model", "used_percent": 100.0}]}
        for state in ("refused", "login_needed", "paused")
    ]  # fmt: skip
    told["pools"] += [{**told["pools"][0], "name": name, "models": [f"{name}{name}"] * 4}]
    told["keys"] += [{**told["keys"][0], "name": name, "pool": name, "status": "paused"}]
    failed = {
        **told["requests"][0], "status": 502, "code": "upstream_stream_truncated",
        "model": "m" * 128, "attempts": [{"account": name, "reason": "stream cut"}] * 3,
    }  # fmt: skip
    told["requests"] = [*told["requests"], failed] * 20
    return told


VIEWS: Final = [(width, scheme) for width in (WIDE, PHONE) for scheme in ("light", "dark")]
OVERFLOW: Final = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
IS_SIDEWAYS: Final = (
    "[...document.querySelectorAll('section')].some(s => s.scrollWidth > s.clientWidth)"
)
IS_COVERED: Final = """[...document.querySelectorAll('.bar > * + *')].some(part => {
    const [before, here] = [part.previousSibling, part].map(p => p.getBoundingClientRect());
    return here.left < before.right && here.top < before.bottom;
})"""


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
@pytest.mark.parametrize("name", ["example", "crowded"])
def test_the_page_is_whole_at_every_width_in_light_and_dark(
    chromium: Chromium, site: Site, tmp_path: Path, name: str, *, width: int, scheme: str
) -> None:
    given = crowded() if name == "crowded" else snapshot()
    site.page = mcp_server.admin_page(given)
    chromium.load(site.url, width=width, scheme=scheme)
    chromium.take_picture(tmp_path / f"{name}-{width}-{scheme}.png")
    assert chromium.complaints() == []
    assert chromium.requested() == [site.url]
    assert chromium.value("innerWidth") == width
    assert chromium.value(OVERFLOW) == 0
    assert chromium.value(IS_SIDEWAYS) is False
    assert chromium.value(IS_COVERED) is False
    background = chromium.value("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", background))) / 3
    assert (brightness > 128) == (scheme == "light")
    shown = chromium.value("document.body.innerText")
    assert "5h: 42 %, resets 10:46 (in 1 h 46 min)" in shown
    assert "personal (429 usage_limit_reached), then platform" in shown


@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_a_screen_reader_finds_tables_with_heads_and_bars(
    chromium: Chromium, site: Site, width: int
) -> None:
    chromium.load(site.url, width=width)
    roles = chromium.roles()
    counts = {role: roles.count(role) for role in ("table", "columnheader", "rowheader", "meter")}
    assert counts == {"table": 4, "columnheader": 28, "rowheader": 8, "meter": 3}


AXE: Final = """axe.run().then(found => JSON.stringify(
    found.violations.map(one => [one.id, one.impact, one.nodes.map(node => node.html)])
))"""


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
@pytest.mark.parametrize("name", ["example", "crowded"])
def test_an_accessibility_checker_finds_nothing(
    chromium: Chromium, site: Site, name: str, *, width: int, scheme: str
) -> None:
    given = crowded() if name == "crowded" else snapshot()
    site.page = mcp_server.admin_page(given)
    chromium.load(site.url, width=width, scheme=scheme)
    axe = Path(installed("axe-core", "axe.min.js"))
    chromium.value(f"{axe.read_text(encoding='utf-8')};0")
    told = chromium.ask("Runtime.evaluate", expression=AXE, awaitPromise=True, returnByValue=True)
    assert told["result"]["value"] == "[]"


def test_a_page_of_many_accounts_and_keys_is_a_few_screens_long(
    chromium: Chromium, site: Site
) -> None:
    """Long lists are folded: 12 accounts and 40 keys."""
    given = snapshot()
    first, key = given["accounts"][0], given["keys"][0]
    given["accounts"] += [{**first, "name": f"account-{index}"} for index in range(10)]
    given["keys"] += [{**key, "name": f"key-{index}"} for index in range(38)]
    given["requests"] = given["requests"] * 20
    site.page = mcp_server.admin_page(given)
    chromium.load(site.url)
    assert chromium.value("document.documentElement.scrollHeight") < 3000
    assert len(re.findall("<tr>", site.page)) > 60


def test_forced_colours_leave_what_is_drawn_in_sight(chromium: Chromium, site: Site) -> None:
    chromium.load(site.url)
    features = [{"name": "forced-colors", "value": "active"}]
    chromium.ask("Emulation.setEmulatedMedia", features=features)
    part = "getComputedStyle(document.querySelector('.chart .{}')).fill"
    ground = chromium.value("getComputedStyle(document.body).backgroundColor")
    fills = {chromium.value(part.format(kind)) for kind in ("ok", "failed")}
    assert len({ground, *fills}) == 3


def test_the_page_comes_again_by_itself_on_request(chromium: Chromium, site: Site) -> None:
    site.page = mcp_server.admin(snapshot(), "text/html", "refresh=1")[1]
    chromium.load(site.url)
    paths = [site.asked.get(timeout=SECONDS_MAX) for _ in range(2)]
    assert paths == ["/admin", "/admin"]


SNEAKED: Final = {
    "script": "<script>document.title = 'sneaked'</script>",
    "handler": "<img src='x:' onerror=\"document.title = 'sneaked'\">",
    "style": "<p style='color: red'>x</p>",
    "another style": "<style>p { color: red }</style>",
    "image": "<img src='/sneaked'>",
    "frame": "<iframe src='/sneaked'></iframe>",
}


@pytest.mark.parametrize("sneaked", SNEAKED.values(), ids=SNEAKED)
def test_the_policy_refuses_what_is_sneaked_in(
    chromium: Chromium, site: Site, sneaked: str
) -> None:
    site.page = site.page.replace("</main>", f"{sneaked}</main>")
    chromium.load(site.url)
    assert "Content Security Policy" in "".join(chromium.complaints())
    assert chromium.value("document.title") == "(2) codex-pooler"
    last = "document.querySelector('main').lastElementChild"
    assert chromium.value(f"getComputedStyle({last}).color") != "rgb(255, 0, 0)"


def test_texts_have_contrast_in_light_and_dark() -> None:
    """At least 4.5 to 1, WCAG 2.2 success criterion 1.4.3."""
    for colours in (dict(re.findall(r"--(\w+): #(\w+)", part)) for part in schemes()):
        inks = ("ink", "faint", "good", "fair", "bad", "link")
        pairs = [(ink, ground) for ink in inks for ground in ("paper", "card")]
        pairs += [(ink, ground) for ink in ("ink", "bad") for ground in ("badcard", "faircard")]
        for ink, ground in [*pairs, ("fair", "faircard")]:
            lighter, darker = sorted(
                (luminance(colours[ink]), luminance(colours[ground])), reverse=True
            )
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (ink, ground)


def schemes() -> tuple[str, str]:
    light, _, dark = mcp_server.ADMIN_STYLE.partition("prefers-color-scheme: dark")
    return light, dark


def luminance(colour: str) -> float:
    """WCAG's relative luminance of `rgb` or `rrggbb`."""
    pairs = re.findall("..", colour if len(colour) == 6 else "".join(c * 2 for c in colour))
    shares = [int(pair, 16) / 255 for pair in pairs]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return sum(part * share for part, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


################################################################
# THE REAL ADDRESS
################################################################


def test_the_real_page_opens_with_the_token_as_a_password(
    chromium: Chromium, tmp_path: Path
) -> None:
    """As a person at the prompt of a browser: any name, and the operator's token."""
    token = "cpo-operator-token-0123456789"
    config = {
        "listen": "127.0.0.1:0",
        "accounts": {"platform": {"type": "openai", "api_key": "none", "models": ["m1"]}},
        "pools": {"home": {"accounts": ["platform"], "keys": {"laptop": POOL_KEY}}},
        "operators": {"me": token},
    }
    server = Pooler(config, tmp_path)
    host = server.origin.removeprefix("http://")
    chromium.load(f"http://anybody:{token}@{host}/admin")
    assert "platform" in chromium.value("document.body.innerText")
    assert chromium.complaints() == []
    assert chromium.value("document.title").endswith("codex-pooler")
    server.stop()
    assert token not in server.process.output
