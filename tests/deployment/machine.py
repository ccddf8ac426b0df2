"""A machine with systemd as its first process, in which README's unit is a service.

It is systemd-nspawn's: this machine's /usr, its network, and the image's Python.  (No claims.)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from tests.deployment.fronts import running, wait_listening
from tests.deployment.image import BASE, FOUND, Image
from tests.deployment.snippets import program, snippet
from tests.support.server_process import SECONDS_MAX

USER_ID: Final = 995
STATE: Final = "var/lib/codex-pooler"
FOLDERS: Final = ("etc/systemd/system", "proc", "sys", "dev", "run", "tmp", "usr", "root", "python")
USERS: Final = f"""\
root:x:0:0:root:/root:/bin/sh
codex-pooler:x:{USER_ID}:{USER_ID}::/{STATE}:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
TARGET: Final = """\
[Unit]
Requires=systemd-journald.service
Wants=codex-pooler.service
"""


def lay_out(root: Path, env: Mapping[str, str]) -> None:
    """The few files that the machine has of its own; `env` is what its unit's file of it says."""
    for name in (*FOLDERS, STATE):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    etc = root / "etc"
    etc.joinpath("passwd").write_text(USERS)
    etc.joinpath("group").write_text(f"root:x:0:\ncodex-pooler:x:{USER_ID}:\nnogroup:x:65534:\n")
    etc.joinpath("os-release").write_text("ID=debian\n")
    etc.joinpath("machine-id").write_text(f"{1:032x}\n")
    shutil.copy("/etc/ld.so.cache", etc)
    etc.joinpath("systemd/system/codex-pooler.service").write_text(snippet("ini"))
    etc.joinpath("systemd/system/test.target").write_text(TARGET)
    settings = "".join(f"{name}={text}\n" for name, text in (FOUND | dict(env)).items())
    etc.joinpath("codex-pooler.env").write_text(settings)
    root.joinpath("opt").mkdir()
    root.joinpath("opt/codex-pooler").symlink_to("/usr/local")


def own_state(root: Path) -> None:
    """Give the service's folder to its user."""
    for path in (root / STATE, *(root / STATE).rglob("*")):
        os.chown(path, USER_ID, USER_ID)


@contextlib.contextmanager
def own_groups() -> Iterator[list[Path]]:
    """Control groups of the machine's own, below which its systemd may do as it likes."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    groups = [
        Path(folder) / f"test-{os.getpid()}"
        for _, folder, kind, options, *_ in mounts
        if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options)
    ]
    for group in groups:
        group.mkdir()
    try:
        yield groups
    finally:
        for group in groups:
            for folder, _, _ in os.walk(group, topdown=False):
                Path(folder).rmdir()


@dataclass
class Machine:
    leader: int  # the process id of its systemd, as seen from here
    process: trio.Process
    log: Path

    async def wait_active(self, port: int) -> None:
        """Until the service listens there."""
        await wait_listening(self.process, port, self.log)

    async def systemctl(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        line = [program("nsenter"), "--target", str(self.leader), "--all", "systemctl", *words]
        return await trio.run_process(line, capture_stdout=True, capture_stderr=True, check=False)


async def find_leader(process: trio.Process) -> int:
    """The process id of the systemd that nspawn has started, once it runs."""
    with trio.fail_after(SECONDS_MAX):
        while True:
            children = trio.Path(f"/proc/{process.pid}/task/{process.pid}/children")
            for child in (await children.read_text()).split():
                if (await trio.Path(f"/proc/{child}/comm").read_text()).strip() == "systemd":
                    return int(child)
            with trio.move_on_after(0.05):
                await process.wait()
            assert process.returncode is None, "see boot.log"


@contextlib.asynccontextmanager
async def booted(root: Path, image: Image) -> AsyncIterator[Machine]:
    """The machine, once its service has been started; it is switched off at the end."""
    binds = {"/usr": "/usr", str(image.root / "usr/local"): "/usr/local", sys.base_prefix: BASE}
    nspawn = [
        *(program("systemd-nspawn"), "--quiet", "--register=no", "--keep-unit", "-D", str(root)),
        *(f"--bind-ro={source}:{place}" for source, place in binds.items()),
        *("/lib/systemd/systemd", "--unit=test.target", "--show-status=no"),
    ]
    join = 'for group in $GROUPS; do echo $$ >$group/cgroup.procs; done; exec "$@"'
    with own_groups() as groups:
        line = ["env", f"GROUPS={' '.join(map(str, groups))}", "sh", "-c", join, "sh", *nspawn]
        log = root.parent / "boot.log"
        async with running(line, log) as process:
            yield Machine(await find_leader(process), process, log)
