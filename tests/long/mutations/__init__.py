"""Single mistakes in the program, each of which the named tests must find.  (No claims.)

One table for each section of pooler.py; a row names the place and the code of a mistake, so that
wording, layout and comments of the source may change.  `apply.py` makes the mistake.
"""

from __future__ import annotations

from types import ModuleType
from typing import Final

from tests.long.mutations import (
    accounts,
    command_line,
    configuration,
    connections,
    credentials,
    errors,
    event_streams,
    files,
    http_syntax,
    json,
    keys,
    limits,
    log,
    mcp_server,
    notices,
    records,
    relay,
    request_bodies,
    routes,
    secrets,
    server,
    setup,
    tokens,
    translation,
    upstream,
    verdicts,
    websocket,
    websocket_syntax,
)
from tests.long.mutations.apply import Mutation

TABLES: Final[tuple[ModuleType, ...]] = (
    limits,
    errors,
    json,
    secrets,
    credentials,
    configuration,
    setup,
    keys,
    routes,
    http_syntax,
    websocket_syntax,
    request_bodies,
    event_streams,
    translation,
    verdicts,
    accounts,
    records,
    connections,
    files,
    log,
    upstream,
    tokens,
    notices,
    relay,
    websocket,
    server,
    command_line,
    mcp_server,
)
MUTATIONS: Final = tuple(Mutation(*row) for table in TABLES for row in table.ROWS)
