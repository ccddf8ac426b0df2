"""Fixtures that several files share.  (No claims.)"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

import pytest
import trio
from hypothesis import HealthCheck, settings
from trio.testing import MockClock

import pooler

# What helpers assert is compiled like what tests assert: so it counts with `python -O`, too.
FOLDERS: Final = [path.parent.name for path in Path(__file__).parent.glob("*/__init__.py")]
pytest.register_assert_rewrite(*(f"tests.{name}" for name in FOLDERS))

from tests.support.world import World, opened_world  # noqa: E402 (must come after)

# The same examples in every run, and no bound in real seconds: the machine may be busy.
settings.register_profile(
    "pooler",
    deadline=None,
    derandomize=True,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("pooler")

QUICK: Final = "not slow and not measures"  # in `addopts` of pyproject.toml

T = TypeVar("T")


def clock_of(item: pytest.Function) -> str:
    """The fixture of virtual time that a test asks for, or ""."""
    names = ("autojump_clock", "mock_clock")
    return next((name for name in names if name in item.fixturenames), "")


def run_virtually(
    item: pytest.Function,
    test: Callable[[], Awaitable[T]],
    *,
    clock: object,
    instruments: Sequence[trio.abc.Instrument],
) -> T:
    """`trio.run` with the test's virtual clock, also where only its fixtures ask for it.

    pytest-trio looks at the test's own arguments alone, and finds no `clock` there.
    """
    virtual = item.funcargs[clock_of(item)]
    assert isinstance(virtual, MockClock)
    kept, trio.to_thread.run_sync = trio.to_thread.run_sync, run_inline  # type: ignore[assignment] # threads take real time
    try:
        return trio.run(test, clock=virtual, instruments=instruments)
    finally:
        trio.to_thread.run_sync = kept


async def run_inline(call: Callable[..., T], *args: object, **_options: object) -> T:
    """In the place of `trio.to_thread.run_sync`, during which virtual time would run away."""
    await trio.lowlevel.checkpoint()
    return call(*args)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """A file or test that is named runs whole and in this process, unless told otherwise."""
    arguments = config.invocation_params.args
    if not any(".py" in argument for argument in arguments):
        return
    if config.option.markexpr == QUICK:
        config.option.markexpr = ""
    if not any(argument.startswith(("-n", "--numprocesses")) for argument in arguments):
        config.option.numprocesses = 0
        config.option.dist = "no"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and clock_of(item):
            item.add_marker(pytest.mark.trio(run=functools.partial(run_virtually, item)))


@pytest.fixture(autouse=True)
def limits_stay() -> Iterator[None]:
    """What a test makes of the program's constants (`with_limits`) ends with it."""
    before = {name: value for name, value in vars(pooler).items() if name.isupper()}
    yield
    vars(pooler).update(before)


@pytest.fixture
async def world(autojump_clock: MockClock) -> AsyncIterator[World]:
    """Accounts a, b, c in one pool; virtual time; left quiet, or the test fails."""
    async with opened_world() as opened:
        yield opened
