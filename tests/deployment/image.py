"""README's Containerfile, followed by hand, and its compose file's container under bubblewrap.

No builder is needed: the base image is this machine's system, read-only, with a Python in
/usr/local; `Image.build` does what each instruction says, and knows no others than those in
README.  `Image.command` runs a program as compose.yaml says.  (No claims.)
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.deployment.snippets import program, snippet, with_places
from tests.support.paths import ROOT
from tests.support.processes import clean_env

SEARCHED: Final = "/usr/local/bin:/usr/bin:/bin"
BASE: Final = "/python"  # where this Python is in there: it may be in a home here
FOUND: Final = {"PATH": SEARCHED, "LD_LIBRARY_PATH": f"{BASE}/lib"}
SYSTEM: Final = ("bin", "etc", "lib", "lib32", "lib64", "libx32", "opt", "sbin", "usr")
FILES: Final = ("usr/local", "src", "data")  # what the image has of its own
SETTINGS: Final = {name: text for name, text in os.environ.items() if name.startswith("PIP_")}


def instructions(text: str) -> Iterator[tuple[str, str]]:
    for line in text.replace("\\\n", "").splitlines():
        name, _, value = line.partition(" ")
        yield name, value.strip()


@dataclass
class Image:
    """What the Containerfile makes; `root` is its file system, as far as it is its own."""

    root: Path
    port: int  # instead of README's
    user: str = "0:0"
    folder: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)
    volume: str = ""
    health: list[str] = field(default_factory=list)

    def build(self) -> None:
        for name in FILES:
            (self.root / name).mkdir(parents=True)
        self.do_run(f"{BASE}/bin/python3 -m venv /usr/local")  # the base image has one
        text = with_places(snippet("dockerfile"), {" 4000": f" {self.port}"})
        for name, value in instructions(text):
            getattr(self, f"do_{name.lower()}")(value)

    ############ instructions

    def do_from(self, value: str) -> None:
        assert re.fullmatch(r"docker\.io/library/python:3\.\d+-slim", value)

    def do_copy(self, value: str) -> None:
        *sources, target = value.split()
        folder = self.root / target.strip("/")
        for source in sources:
            shutil.copy(ROOT / source, folder)

    def do_run(self, value: str) -> None:
        """As root, with the network, in a file system that it can change."""
        sandbox = [program("bwrap"), *self.mounts("--bind"), "--tmpfs", "/tmp"]
        env = clean_env(**FOUND, **SETTINGS)
        subprocess.run([*sandbox, "sh", "-c", value], check=True, env=env)

    def do_user(self, value: str) -> None:
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", value)  # numbers: Kubernetes checks them
        self.user = value

    def do_workdir(self, value: str) -> None:
        self.folder = value

    def do_volume(self, value: str) -> None:
        self.volume = value

    def do_expose(self, value: str) -> None:
        assert value == str(self.port)

    def do_healthcheck(self, value: str) -> None:
        self.health = json.loads(value.partition(" CMD ")[2])

    def do_entrypoint(self, value: str) -> None:
        self.entrypoint = json.loads(value)

    def do_cmd(self, value: str) -> None:
        self.arguments = json.loads(value)

    ############ sandboxes

    def mounts(self, kind: str) -> Iterator[str]:
        """This machine's system, read-only, and above it what the image has of its own."""
        for path in (Path("/", name) for name in SYSTEM):
            if path.is_symlink():
                yield from ("--symlink", os.readlink(path), str(path))
            elif path.is_dir():
                yield from ("--ro-bind", str(path), str(path))
        yield from ("--ro-bind", sys.base_prefix, BASE)
        yield from ("--proc", "/proc", "--dev", "/dev")
        for name in FILES:
            yield from (kind, str(self.root / name), f"/{name}")

    def command(self, *arguments: str, folder: Path, env: Mapping[str, str]) -> list[str]:
        """Run a program as PID 1, as compose.yaml says; `folder` is the one beside that file."""
        compose = snippet("yaml")
        for line in ("read_only: true", "cap_drop: [ALL]", '["no-new-privileges:true"]'):
            assert line in compose  # what follows does it, with and without being asked
        (volume,) = re.findall(r'volumes: \["\./(\w+):(/\w+)"\]', compose)
        assert volume[1] == self.volume == self.folder

        user, _, group = self.user.partition(":")
        variables = {**FOUND, **env}
        return [
            program("bwrap"),
            *("--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--as-pid-1"),
            *self.mounts("--ro-bind"),
            *("--bind", str(folder / volume[0]), volume[1], "--remount-ro", "/"),
            *("--clearenv", *(word for pair in variables.items() for word in ("--setenv", *pair))),
            *("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"),
            *("--cap-add", "CAP_SETPCAP", program("setpriv")),
            *("--reuid", user, "--regid", group, "--clear-groups"),
            *("--bounding-set", "-all", "--inh-caps", "-all", "--no-new-privs"),
            *("/usr/bin/env", "--chdir", self.folder, *arguments),
        ]
