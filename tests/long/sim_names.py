"""Who is who in the simulation, and what nobody else may be told.  (No claims.)"""

from __future__ import annotations

from typing import Final

from tests.support.memory_sockets import KEY, OTHER_KEY
from tests.support.world import UPSTREAM_KEY

# The accounts, by the port of their upstreams; a reload may point the first two elsewhere, as
# somebody else.
NAMES: Final = ("alder7", "birch7", "cedar7", "dogwood7", "zelkova7")
MOVED: Final = {"alder7": "elm7", "birch7": "fir7"}
EVERYBODY: Final = (*NAMES, *MOVED.values())
CODEX: Final = ("birch7", "dogwood7", "fir7")  # have a login, not a key
CALM: Final = "zelkova7"  # in a pool of its own, where nothing goes wrong
PORT: Final = 9001
MOVED_PORT: Final = 9101
PROXY_PORT: Final = 9201
NOTIFY_PORT: Final = 9202

CALM_KEY: Final = "cp-calm-key-0123456789"
TOKEN: Final = "cpo-operator-0123456789abcdef"
NOTIFY_TARGET: Final = "/notices-of-0123456789abcdef"
SECRETS: Final = frozenset(
    {KEY, OTHER_KEY, CALM_KEY, TOKEN, NOTIFY_TARGET}
    | {UPSTREAM_KEY + name for name in EVERYBODY if name not in CODEX}
)
# What the pool calls a model, by what upstreams may call it.
MODEL_OF: Final = {"m1": "m1", "m2": "m2", "vendor/one": "m1", "vendor/two": "m2", "fast": "m1"}
RENAMERS: Final = ("alder7", "elm7")
OWN_NAMES: Final = {"m1": "vendor/one", "m2": "vendor/two"}  # of the models, at alder
# What an answer shows of who made it, as an account's own name must not be in it.
SIGN_OF: Final = {name: name[0] for name in EVERYBODY}


def email_of(name: str) -> str:
    return f"owner-{name}@private.example"


def organization_of(name: str) -> str:
    return f"org-Pr1vate{name}"


def number_of(name: str) -> str:
    """An account id as ChatGPT writes them."""
    return f"8f14e45f-ceea-467f-a0e6-{EVERYBODY.index(name):012x}"


def key_shown(name: str) -> str:
    """A key as OpenAI shows it."""
    return f"sk-upst**********{name}"


def private_words(name: str) -> tuple[str, ...]:
    """What the upstream of an account may say of it, and no client may read."""
    return email_of(name), organization_of(name), number_of(name), key_shown(name)


# No client may be told any of these: accounts' names, what their upstreams say of them, hosts.
PRIVATE: Final = (
    *(name.encode() for name in EVERYBODY),
    *(number_of(name).encode() for name in EVERYBODY),
    *(b"127.0.0.1:%d" % (PORT + at) for at in range(len(NAMES))),
    b"127.0.0.1:%d" % MOVED_PORT,
    b"127.0.0.1:%d" % PROXY_PORT,
    b"private.example",
    b"org-Pr1vate",
    b"sk-upst",
    b"private-plan",
    b"req-private",
)
