"""A server of the simulation with all that surrounds it, until it ends.  (No claims.)"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

import trio

from pooler import BaseUrl, Config, UpstreamConnection
from tests.long.sim_ground import Ground
from tests.long.sim_logins import TokenDesk, tokens_in
from tests.long.sim_names import (
    CODEX,
    MOVED,
    MOVED_PORT,
    NAMES,
    NOTIFY_PORT,
    PORT,
    PROXY_PORT,
    SECRETS,
)
from tests.long.sim_surroundings import LogReader, OutboundProxy, Receiver
from tests.long.sim_upstreams import SimUpstream, draw_dial
from tests.support.memory_sockets import MemorySocket
from tests.support.world import (
    TOKEN_PATH,
    UPSTREAM_KEY,
    Asked,
    DialStep,
    FakeUpstream,
    Service,
    World,
)

T = TypeVar("T")
NOTICES: Final = "notices"  # in the place of an account's name


class Sim:
    """What outlives a crash, and what stands around each of its servers."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.rng = ground.rng
        self.desk = TokenDesk(ground)
        self.proxies: list[OutboundProxy] = []
        self.readers: list[LogReader] = []
        self.worlds: list[World] = []

    def open_sockets(self) -> list[MemorySocket]:
        """Connections to upstreams and proxies of which the pooler still holds its end.

        That the other end is closed would not give the descriptor back.
        """
        sockets = [socket for proxy in self.proxies for socket in proxy.sockets]
        for world in self.worlds:
            for upstream in world.upstreams.values():
                sockets += [line.socket for line in upstream.lines]
        return [socket for socket in dict.fromkeys(sockets) if not socket.outgoing.is_deaf]

    def end_process(self) -> None:
        """What the system does after a crash: it closes what is held for as long as a process is.

        That is the lock of the state, and idle connections; all else was closed by who opened it.
        """
        idle_count = 0
        for world in self.worlds:
            if world.server.keeper.lock is not None:
                world.server.keeper.lock.close()
            idle = world.server.shared.idle.by_endpoint
            idle_count += sum(map(len, idle.values()))
            idle.clear()
        left = self.open_sockets()
        assert len(left) == idle_count, f"{len(left)} connections are left open, {idle_count} idle"
        for proxy in self.proxies:
            proxy.sockets.clear()
        self.worlds.clear()

    @property
    def secrets(self) -> set[str]:
        return self.desk.secrets | SECRETS

    def check_request(self, name: str, asked: Asked) -> None:
        """What an upstream is sent: its own secret, which no power cut can take back."""
        complaints, desk = self.ground.complaints, self.desk
        bearer = (asked.header("authorization") or "").removeprefix("Bearer ")
        if name not in CODEX:
            if bearer != UPSTREAM_KEY + name:
                complaints.append(f"{name} was sent the bearer {bearer}")
        else:
            newest = desk.newest[name].access_token
            is_durable = tokens_in(self.ground.disk.durable(desk.path_of(name)))[0] == bearer
            if bearer not in desk.backend.logins or (bearer == newest and not is_durable):
                complaints.append(f"{name}: a token was used before it was saved")
            if asked.header("chatgpt-account-id") != f"acct-{name}":
                complaints.append(f"{name} was sent another account's id")
        raw = asked.head + asked.body
        if found := [one for one in self.secrets - {bearer} if one.encode() in raw]:
            complaints.append(f"{name} was sent {found}")

    ############ a server and its surroundings, until it stops or crashes

    async def start_world(self, config: Config, nursery: trio.Nursery) -> World:
        """A world of this simulation, whose server runs: it starts as `pooler serve` does."""
        reader = LogReader(self.ground)
        world = World(
            config,
            nursery,
            make_upstream=self.make_upstream,
            find_service=lambda url: self.service_at(world, proxy, url),
            clock=self.ground.unix_now,
            log=reader,
        )
        proxy = OutboundProxy(self.ground, world, partial(self.upstream_at, world))
        self.proxies.append(proxy)
        self.readers.append(reader)
        world.complaints = self.ground.complaints
        server = world.server
        self.worlds.append(world)
        await server.keeper.restore()
        await server.shared.login_watch.look(config.accounts.values())
        world.start()
        return world

    def service_at(self, world: World, proxy: OutboundProxy, url: BaseUrl) -> Service:
        """What a URL names."""
        if url.port == PROXY_PORT:
            return proxy.connect
        return self.upstream_at(world, f"{url.host}:{url.port}").connect

    @staticmethod
    def upstream_at(world: World, address: str) -> FakeUpstream:
        """The one at an address; a reload may move its account while a request is under way."""
        port = int(address.rpartition(":")[2])
        if port == NOTIFY_PORT:
            return world.upstream(NOTICES)
        if port < PORT:
            return world.upstream(TOKEN_PATH)
        name = NAMES[port % 100 - 1]
        return world.upstream(MOVED[name] if port >= MOVED_PORT else name)

    def make_upstream(self, name: str, world: World) -> FakeUpstream:
        """The upstream of an account, the token endpoint, or who is told notices."""
        upstream = FakeUpstream(name, world)
        upstream.capacity = self.rng.choice([float("inf"), 65536])
        if name == NOTICES:
            upstream.next_dial = partial(self.draw_dial_of, name)
            Receiver(self.ground, upstream)
        elif name == TOKEN_PATH:
            upstream.handle = partial(self.desk.serve_token, upstream)
            upstream.next_dial = partial(self.draw_dial_of, name)
        else:
            upstream.observe = partial(self.check_request, name)
            SimUpstream(self.ground, upstream)
        return upstream

    def draw_dial_of(self, name: str) -> DialStep | None:
        """What goes wrong at a dial of what is no account's, if anything does."""
        if not self.ground.happens(0.08):
            return None
        self.ground.book.note_odd(*self.ground.holders_of(name))
        return draw_dial(self.rng)


def probe(connection: UpstreamConnection) -> bool:
    """In the place of the method, which asks the kernel about a socket."""
    assert isinstance(connection.stream, MemorySocket)
    pipe = connection.stream.incoming
    return not (pipe.buffer or pipe.is_ended or pipe.is_reset)


async def run_inline(call: Callable[..., T], *args: object, **_options: object) -> T:
    """In the place of `trio.to_thread.run_sync`: a thread's time is not ours to draw."""
    await trio.lowlevel.checkpoint()
    return call(*args)
