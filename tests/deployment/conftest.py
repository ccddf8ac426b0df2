"""The image of README's Containerfile, made once for all that run it.  (No claims.)"""

from __future__ import annotations

import pytest

from tests.deployment.image import Image
from tests.deployment.snippets import free_port


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    built = Image(tmp_path_factory.mktemp("image"), free_port())
    built.build()
    return built
