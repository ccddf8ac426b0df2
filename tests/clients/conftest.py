"""Fixtures of the client tests.  (No claims.)"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.clients.aimock import Providers, Upstream
from tests.clients.codex import Backend, CodexPool, opened_pool
from tests.support.processes import POOL_KEY, SECONDS_MAX, Pooler


@pytest.fixture(scope="session")
def upstreams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Upstream, Upstream]]:
    """Two providers, with a key each; every test begins with them forgetful."""
    folder = tmp_path_factory.mktemp("upstreams")
    with (
        contextlib.closing(Upstream("first", folder)) as first,
        contextlib.closing(Upstream("second", folder)) as second,
    ):
        yield first, second


@pytest.fixture
def providers(upstreams: tuple[Upstream, Upstream], tmp_path: Path) -> Iterator[Providers]:
    """The upstreams, and a pooler for the test to start, which must end well."""
    with Providers(*upstreams, tmp_path) as opened:
        yield opened


@pytest.fixture
def pooler(providers: Providers) -> Pooler:
    """A pooler over both upstreams, the first one preferred."""
    return providers.start()


@pytest.fixture
def client(pooler: Pooler) -> Iterator[openai.OpenAI]:
    """The Python SDK, which never tries again, so that a test sees each response."""
    with openai.OpenAI(
        base_url=pooler.base_url, api_key=POOL_KEY, max_retries=0, timeout=SECONDS_MAX
    ) as client:
        yield client


@pytest.fixture(scope="session")
def backend_process() -> Iterator[Backend]:
    with contextlib.closing(Backend()) as started:
        yield started


@pytest.fixture
def backend(backend_process: Backend) -> Backend:
    """A Codex backend that knows nobody yet."""
    backend_process.reset()
    return backend_process


@pytest.fixture
def codex_pool(backend: Backend, tmp_path: Path) -> Iterator[CodexPool]:
    """Two accounts at the backend, and a pooler for the test to start, which must end well."""
    with opened_pool(backend, tmp_path) as pool:
        yield pool
