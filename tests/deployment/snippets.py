"""The snippets of README's "Deployment", and the programs that they are for.  (No claims.)

A test may put other ports, addresses and paths into a snippet (`with_places`), and nothing else.
"""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Mapping
from typing import Final

from tests.support.paths import ROOT

README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION: Final = README.partition("\n## Deployment\n")[2].partition("\n## ")[0]
NAME: Final = "pooler.example.com"  # of the proxy, in every snippet
PACKAGES: Final = {  # of Debian, by the program that is in them
    "nginx": "nginx-light",
    "caddy": "caddy",
    "haproxy": "haproxy",
    "bwrap": "bubblewrap",
    "setpriv": "util-linux",
    "nsenter": "util-linux",
    "systemd-analyze": "systemd",
    "systemd-nspawn": "systemd-container",
}


def snippet(language: str) -> str:
    """The one block of this language in the section."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
    return str(block)


def with_places(text: str, places: Mapping[str, str]) -> str:
    """The snippet with ports, addresses and paths of the test; each must be in it."""
    for place, ours in places.items():
        assert place in text, place
        text = text.replace(place, ours)
    return text


def program(name: str) -> str:
    """The path of an installed program, or a failure that says what to install."""
    path = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    assert path, f"{name} is not installed. Run: apt-get install {PACKAGES[name]}"
    return path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
