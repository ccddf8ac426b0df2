"""The AI SDK's scripts, run with Node.js.  (No claims.)"""

from __future__ import annotations

import json
import subprocess
from typing import Any

from tests.clients.aimock import HERE, installed, node
from tests.support.processes import (
    POOL_KEY,
    SECONDS_MAX,
    Pooler,
    clean_env,
)


def run_script(
    script: str, *arguments: str, pooler: Pooler, key: str = POOL_KEY, release: str = "7"
) -> Any:  # noqa: ANN401
    """What a script prints, read; `release`: of the AI SDK."""
    for package in ("ai", "ai-5", "openai"):
        installed(package, "package.json")
    done = subprocess.run(
        [node(), str(HERE / script), *arguments],
        env=clean_env(POOLER_URL=pooler.base_url, CODEX_POOLER_API_KEY=key, AI_SDK=release),
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)
