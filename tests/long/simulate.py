"""Whole lives of the pooler from one random seed each.  (No claims.)

    python -m tests.long.simulate --seeds 200000 [--first N] [--jobs J]

A life is the real `Server` in virtual time, and sometimes several of them after each other.  All
of it is drawn from the seed, Trio's order of tasks included.

What surrounds it, and how that errs:

    sim_clients       clients of each API and of WebSockets, which stall, leave and half-close;
                      whose sessions are named by a header or a cache key, continue a response, or
                      show in their first message alone; operators, strangers, reloads, clocks
    sim_upstreams     accounts of both types, with models of their own names, catalogues that are
                      odd, routes that are lacking, a usage route that fails
    sim_troubles      what these say of an account: limits, refusals, lacks, in each carrier
    sim_logins        the token endpoint, whose refresh tokens work once; a Codex CLI beside us
    sim_disk          a disk that is full, read-only or broken, and power cuts
    sim_surroundings  a proxy, a receiver of notices, a reader of the log: each fails or stalls
    sim_names         who is who, and what no client may be told

What must hold of each life:

    I1   with the last client gone nothing is left, and the server ends when it is told to: `end`
    I2   nothing is sent again that an upstream may have done: `judge` (sim_answers)
    I3   each stream ends once, and has nothing that its upstream did not say: `judge`
    I4   success is what an upstream said in full: `judge`
    I5   a client is told no secret, nothing of another's, and nothing of an account; neither the
         log nor an operator is told a secret: `judge_told` (sim_answers), `end`, `Life.look`
    I6   after a power cut each login that could be saved is good, and the state file is the old
         or the new one: `survive`, `judge_state`
    I7   the state can be saved, has no secret, and is the same after each restart: `outlive`
    I8   what is held of a stream is bounded: `Gauge` (sim_requests)
    I9   an account that has told of its trouble, in whichever carrier, is not asked before its
         time: `Book.judge_asked` (sim_book)
    I10  a session stays on its account while that is in order, and a response is continued where
         it was made: `Book.judge_home`, `Book.judge_continued`
    I11  what an operator is shown is what the next request meets: sim_page
    I12  each line of the log is written or counted: `LogReader.judge` (sim_surroundings)
    I13  each socket and each file is closed, and what a process keeps does not grow from life to
         life: `judge_closed`, `Sim.end_process` (sim_world), sim_growth
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import random
import secrets
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

import trio
import trio._core._run as trio_run
from trio.testing import MockClock

import pooler
from pooler import (
    REFRESH_URL_VARIABLE,
    Config,
    KeyUse,
    Lasting,
    Ledger,
    LoginNeeded,
    Roster,
    UpstreamConnection,
    dump_escaped,
    parse_config,
    parse_state,
)
from tests.long.sim_clients import PROXIED, STATE, Life, draw_kind
from tests.long.sim_disk import Crash
from tests.long.sim_ground import Ground
from tests.long.sim_growth import judge_passing, judge_process, judge_server, sizes_of_process
from tests.long.sim_logins import tokens_in
from tests.long.sim_names import (
    CALM,
    CALM_KEY,
    CODEX,
    MOVED,
    MOVED_PORT,
    NAMES,
    NOTIFY_PORT,
    NOTIFY_TARGET,
    OWN_NAMES,
    PORT,
    PROXY_PORT,
    TOKEN,
)
from tests.long.sim_page import Page
from tests.long.sim_world import Sim, probe, run_inline
from tests.support.memory_sockets import KEY, OTHER_KEY, Json
from tests.support.world import TOKEN_PATH, UPSTREAM_KEY, World

LIFE_SECONDS_MAX: Final = 20_000.0  # of virtual time: no client waits longer
SEED_REAL_SECONDS_MAX: Final = 60  # where time stands still
END_SECONDS_MAX: Final = 300.0  # after the last client has gone (I1)
LOG_LINES_MAX: Final = 20  # instead of the program's: a life logs little
TYPED: Final = ("Sim-", "Opening ", "said by the upstream", "private.example", ".0 ")  # not ours
GROWTH_SEEDS: Final = 250  # so many lives of one process, then what it keeps is counted
STATE_FILE: Final = "state/state.json"

################################################################
# CONFIGURATIONS
################################################################
# The bits of a configuration's kind.
TIGHT: Final = 1  # little room at accounts
HURRIED: Final = 2  # short limits, and priorities
LESS: Final = 4  # less of everything
ELSEWHERE: Final = 8  # other servers, and other credentials, under the same names
RENAMED: Final = 16  # models have names of their own at one account, and the pool has a list
LIMITED: Final = 32  # a key has limits
ROUTINGS: Final = ("sticky", "soonest_reset", "quota_first", "sticky")  # by both of these
NOTIFYING: Final = 128


def describe_account(folder: Path, name: str, kind: int) -> Json:
    account: dict[str, Json] = {"websocket": True, "concurrent": 2 if kind & TIGHT else 16}
    port = PORT + NAMES.index(name)
    owner = name
    if kind & ELSEWHERE and name in MOVED:
        owner, port = MOVED[name], MOVED_PORT + NAMES.index(name)
    if name in CODEX:
        account |= {"type": "codex", "auth_file": str(folder / owner / "auth.json")}
        return account | {"base_url": f"http://127.0.0.1:{port}/backend-api/codex"}
    account |= {"type": "openai", "api_key": UPSTREAM_KEY + owner}
    account |= {"base_url": f"http://127.0.0.1:{port}/v1"}
    if name == "alder7" and kind & RENAMED:
        return account | {"models": OWN_NAMES}
    if name == "cedar7":
        return account | {"priority": kind & HURRIED}  # its models are those of its catalogue
    return account | {"models": ["m1", "m2"]}


def describe_life(folder: Path, kind: int) -> Json:
    """pools.json: alder and cedar with API keys, birch and dogwood with logins, zelkova apart."""
    key: dict[str, Json] = {"key": OTHER_KEY}
    if kind & LIMITED:
        key |= {"requests_per_minute": 3, "tokens_per_day": 60, "concurrent": 1}
    home: dict[str, Json] = {
        "accounts": [name for name in NAMES if name != CALM],
        "keys": {"laptop": KEY, "ci": key},
        "aliases": {"fast": "m1"},
        "routing": ROUTINGS[(kind & (RENAMED | LIMITED)) // RENAMED],
    }
    whole: dict[str, Json] = {
        "accounts": {name: describe_account(folder, name, kind) for name in NAMES},
        "pools": {"home": home, "calm": {"accounts": [CALM], "keys": {"calm": CALM_KEY}}},
        "operators": {"desk": TOKEN},
    }
    if kind & RENAMED:
        home["models"] = ["m1", "m2"]
    if kind & HURRIED:
        whole["limits"] = {"queue_seconds_max": 1, "attempts_max": 2}
    if kind & LESS:
        del home["keys"]["ci"], home["accounts"][1]
        whole["accounts"]["alder7"]["paused"] = True
    if kind & PROXIED:
        whole["proxy"] = f"http://127.0.0.1:{PROXY_PORT}"
    if kind & NOTIFYING:
        whole["notify"] = f"http://127.0.0.1:{NOTIFY_PORT}{NOTIFY_TARGET}"
    if kind & STATE:
        whole["state"] = str(folder / STATE_FILE)
    return whole


@functools.cache
def config_of(folder: Path, kind: int) -> Config:
    env = {REFRESH_URL_VARIABLE: f"http://127.0.0.1:9{TOKEN_PATH}"}
    return parse_config(json.dumps(describe_life(folder, kind)).encode(), env, str)


################################################################
# A LIFE, AND ITS END
################################################################


async def end(sim: Sim, world: World) -> None:
    """I1: with the last client gone nothing is left, and the server ends when it is told to."""
    await world.settle()
    world.assert_quiet()
    left = [
        *world.server.connections.counted,
        *world.server.connections.keyless,
        *world.server.websockets.opened,
    ]
    assert left == []
    world.server.stop()
    with trio.fail_after(END_SECONDS_MAX):
        await world.ended.wait()
    await world.settle()
    told = json.dumps(world.logged)
    found = [one for one in (*sim.secrets, *TYPED) if one in told]
    assert not found, f"the log tells {found}"
    sim.readers[-1].judge()
    judge_closed(sim, world)
    outlive(sim, world)


def judge_closed(sim: Sim, world: World) -> None:
    """I13: no socket is left open, whoever made it."""
    shared = world.server.shared
    open_count = sum(not socket.is_closed for socket in world.accepted)
    assert open_count == 0, f"{open_count} connections of clients are left open"
    assert not sim.open_sockets(), f"{len(sim.open_sockets())} connections are left open"
    assert not shared.idle.by_endpoint, "idle connections are kept"
    assert not shared.reaper.idle_until, "the reaper waits for somebody"
    assert not any(shared.queues.by_pool.values())
    assert not shared.roster.leases.in_flight
    assert world.server.keeper.lock is None or world.server.keeper.lock.closed


def outlive(sim: Sim, world: World) -> None:
    """I7: the state can be saved, contains no secret, and is the same after each restart."""
    lasting = world.server.keeper.lasting()
    raw = dump_escaped(lasting.save())
    found = [one for one in (*sim.secrets, *TYPED) if one.encode() in raw]
    assert not found, f"the state contains {found}"
    versions = [raw]
    for _ in range(2):
        roster, ledger = Roster(lasting.config), Ledger(1)
        restarted = Lasting(
            lasting.config, roster, ledger, defaultdict(KeyUse), 0.0, lasting.unix_now
        )
        restarted.restore(parse_state(versions[-1]))
        versions.append(dump_escaped(restarted.save()))
    assert versions[1] == versions[2]


async def survive(sim: Sim, config: Config) -> None:
    """I6: after a crash and a start, every login that could be saved is good."""
    ground, desk = sim.ground, sim.desk
    disk = ground.disk
    disk.restore()
    lost = set(desk.withdrawn)
    for name in CODEX:
        path = desk.path_of(name)
        fresh = path.with_name(f".{path.name}.new")
        left = disk.durable(fresh) if fresh.exists() else b""
        saved = {tokens_in(disk.durable(path))[1], tokens_in(left)[1]}
        if desk.newest[name].refresh_token not in saved:  # got, and not yet written
            lost.add(name)
    disk.crash()
    disk.fault_rate = disk.crash_rate = disk.standing_fault = 0
    desk.told = {token for token in desk.told if token.split("-")[2] not in lost}
    ground.is_calm = True
    judge_state(ground)
    async with trio.open_nursery() as nursery:
        world = await sim.start_world(config, nursery)
        await world.settle()
        told = [fields for _, event, fields in world.logged if event == "state"]
        assert not any("broken" in str(fields) for fields in told), told
        for name in CODEX:
            assert tokens_in(desk.path_of(name).read_bytes())[1], f"{name}: its file is broken"
            if name in lost:
                continue
            login = world.server.shared.endpoints.logins.get(name)
            if login is None:  # it is that of a name that points elsewhere now
                continue
            try:
                await world.server.shared.tokens.credentials(login)
            except LoginNeeded as error:
                raise AssertionError(f"{name}: its login is lost: {error}") from None
        await end(sim, world)


def judge_state(ground: Ground) -> None:
    """I6: the state file is one of the two latest versions, or not there yet."""
    path = ground.folder / STATE_FILE
    versions = ground.disk.versions[str(path)]
    if path.exists():
        ground.note("state survived")
        raw = path.read_bytes()
        assert raw in versions[-2:], "the state file is neither the old nor the new one"
        parse_state(raw)
    else:
        assert len(versions) <= 1, "the state file is gone"


async def live_on(sim: Sim, world: World, life: Life, nursery: trio.Nursery) -> World:
    """What may come between two lives: nothing, or a restart."""
    ground = sim.ground
    await world.settle()
    world.assert_quiet()
    judge_server(world.server)
    if not life.is_stopping and ground.rng.random() < 0.5:
        ground.note("lived on")
        return world
    ground.note("restart")
    await end(sim, world)
    ground.disk.settle()
    sim.desk.restart()
    is_kept = life.kind & STATE and not ground.disk.fault_rate
    if is_kept:
        ground.note("restart with a state")
        ground.book.restart()
    else:
        ground.book.forget(is_restart=True)
    return await sim.start_world(config_of(ground.folder, life.kind), nursery)


async def run_life(seed: int, folder: Path, counts: Counter[str]) -> list[tuple[float, str]]:
    """The whole of one run; what happened.  Raises: AssertionError."""
    rng = random.Random(seed)
    ground = Ground(rng, folder, counts)
    sim = Sim(ground)
    ground.disk.fault_rate = rng.choice([0, 0, 0.1])
    ground.disk.crash_rate = rng.choice([0, 0, 0.06])
    ground.is_harsh = rng.random() < 0.25
    for name in CODEX:
        sim.desk.log_in(name, rng.choice([10**6, 10**6, 200, 400, 30, -60]))
    kind = draw_kind(rng) & ~(LESS | ELSEWHERE) | rng.choice([0, STATE])
    count = rng.choice([1, 1, 1, 1, 2, 3])
    logged: list[tuple[float, str]] = []
    with ground.disk.mounted():
        try:
            async with trio.open_nursery() as nursery:
                world = await sim.start_world(config_of(folder, kind), nursery)
                page = Page(ground, world.server)
                for at in range(count):
                    ground.book.is_tight = bool(kind & TIGHT)
                    life = Life(ground, sim, world, page, kind, logged)
                    with trio.fail_after(LIFE_SECONDS_MAX):
                        await life.live(functools.partial(config_of, folder))
                    kind = life.kind
                    if at < count - 1:
                        world = await live_on(sim, world, life, nursery)
                        page = page if world is life.world else Page(ground, world.server)
                await end(sim, world)
        except* Crash:
            assert ground.disk.has_crashed
        sim.end_process()
        if ground.disk.has_crashed:
            counts["crash"] += 1
            await survive(sim, config_of(folder, kind & ~ELSEWHERE & ~LESS))
    return logged


def do_nothing(*_: object) -> None:
    pass


def run_seed(seed: int, folder: Path, counts: Counter[str]) -> list[tuple[float, str]]:
    """One run, drawn from `seed` alone."""
    places: Sequence[tuple[object, str, object]] = (
        (trio_run, "_r", random.Random(seed)),
        (trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
        (trio.to_thread, "run_sync", run_inline),
        (secrets, "token_bytes", random.Random(seed).randbytes),  # of request ids
        (UpstreamConnection, "probe", probe),
        (pooler, "LOG_LINES_MAX", LOG_LINES_MAX),
        (time, "sleep", do_nothing),  # of a thread
    )
    kept = [getattr(place, name) for place, name, _ in places]
    for place, name, value in places:
        setattr(place, name, value)
    for name in (*CODEX, "state"):
        (folder / name).mkdir(exist_ok=True)
        for left in folder.glob(f"{name}/*"):  # hidden ones, too
            left.unlink()
    files = os.listdir("/proc/self/fd")
    try:
        logged = trio.run(
            run_life, seed, folder, counts, clock=MockClock(autojump_threshold=0)
        )  # fmt: skip
        assert os.listdir("/proc/self/fd") == files, "a file or socket of the system is left open"
        return logged
    finally:
        for (place, name, _), value in zip(places, kept, strict=True):
            setattr(place, name, value)


################################################################
# MANY
################################################################


def give_up(*_: object) -> None:
    raise TimeoutError("this seed does not end, in real time")


def run_seeds(seeds: Sequence[int]) -> tuple[Counter[str], dict[int, str]]:
    """What happened how often, and the failures by seed."""
    counts: Counter[str] = Counter()
    failures: dict[int, str] = {}
    kept = signal.signal(signal.SIGALRM, give_up)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        sizes: dict[str, int] = {}
        for at, seed in enumerate(seeds):
            signal.alarm(SEED_REAL_SECONDS_MAX)
            try:
                run_seed(seed, folder, counts)
                if at == 0:
                    sizes = sizes_of_process()
                elif at % GROWTH_SEEDS == 0 or seed == seeds[-1]:
                    judge_process(sizes)
                    judge_passing()
            except Exception as error:  # noqa: BLE001 (it is told, with its seed)
                failures[seed] = "".join(traceback.format_exception(error))
    signal.alarm(0)
    signal.signal(signal.SIGALRM, kept)
    return counts, failures


def run_many(first: int, count: int, jobs: int) -> tuple[Counter[str], dict[int, str]]:
    step = max(1, min(500, count // jobs))
    parts = [range(at, min(at + step, first + count)) for at in range(first, first + count, step)]
    counts: Counter[str] = Counter()
    failures: dict[int, str] = {}
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for counted, failed in pool.map(run_seeds, parts):
            counts.update(counted)
            failures |= failed
    return counts, failures


def main() -> int:
    parser = argparse.ArgumentParser(description="Simulate lives of the pooler.")
    parser.add_argument("--seeds", type=int, default=2000, help="how many")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    asked = parser.parse_args()
    counts, failures = run_many(asked.first, asked.seeds, asked.jobs)
    for what, count in counts.most_common():
        sys.stdout.write(f"{count:9} {what}\n")
    for seed, told in list(failures.items())[:5]:
        sys.stdout.write(f"\nseed {seed}\n{told}")
    sys.stdout.write(f"\n{asked.seeds} seeds, {len(failures)} failed: {sorted(failures)[:50]}\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
