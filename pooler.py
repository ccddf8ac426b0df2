# /// script
# requires-python = ">=3.11"
# dependencies = ["h11>=0.16,<0.17", "trio>=0.27,<0.36", "trio-websocket>=0.12,<0.13"]
# ///
"""codex-pooler: several AI accounts behind one OpenAI-compatible address.

Clients call a narrow `/v1` with a pool key.  Each request goes to one account of that key's pool,
and the response is streamed back: unchanged from an account with an API key, translated from a
ChatGPT account.  The program is this one file, which reads from top to bottom.

Words that have one meaning here:

    account    an API key or a ChatGPT login, at one upstream
    pool       accounts that stand in for each other, and the keys that may use them
    pool key   what a client presents; an operator presents a token
    login      the auth.json of a ChatGPT account; a refresh gets its next tokens
    catalogue  an account's list of models
    session    the requests of one conversation; its pin keeps them on one account
    request    what a client sends: a call, if it is to be served by an account
    turn       one call on a WebSocket
    attempt    one call sent to one account, with its repairs
    event      one SSE event, or one message of a WebSocket
    response   what a request gets, from its upstream or from the pooler
    fault      a failed attempt, classified: its effect on the account, and the next action
    cooldown   a time in which an account gets no requests; after a demotion it is chosen last
    lease      a place at an account, held until it is given back
    head       the first line and the header fields of a request or a response

The steps of serving a request, and the sections that take them:

    its connection is accepted and counted    SERVER, CONNECTIONS
    its head is validated                     HTTP SYNTAX, ERRORS
    Host, Origin, credential and method       ROUTES, KEYS, CONFIGURATION
    its body is read and validated            JSON, REQUEST BODIES, LIMITS
    an account is chosen, or waited for       ACCOUNTS, RELAY
    its login is read and refreshed           CREDENTIALS, TOKENS, FILES
    an attempt: translated, and sent          TRANSLATION, UPSTREAM, SECRETS
    its events are held until there is        EVENT STREAMS, RELAY
      content, then relayed
    a failure is classified; another attempt  VERDICTS, RELAY
    or all of this for each turn              WEBSOCKET SYNTAX, WEBSOCKET
    it is logged and counted                  RECORDS, LOG
    operators see states and sums, and are    OPERATORS, NOTICES
      told what needs them
    how the process starts and stops          COMMAND LINE
    what a new user is given                  SETUP

Read these first, in this order: they serve a streamed request to an account with an API key, and
everything else is a variant of one of them.

    Server.serve_connection, Server.serve_request, ClientConnection.read_head, Exchanges.serve,
    Server.dispatch, parse_request_head, find_routes, identify_caller, match_secret, Calls.accept,
    KeyUse.admit, Exchange.read_body, Calls.validate, Calls.read, parse_json_object, read_call,
    serve_call, Queues.assign, Queues.find_assignment, Choice.ranked, try_account, Attempt.open,
    Attempt.ask, Attempt.fields, HttpTransport.send, request_head, reveal, connect,
    Deadline.bounded, Opened.open, parse_response_head, Opened.hold, HttpSource.receive,
    EventScanner.feed, Opened.take, Relay.deliver, HttpReply.start, Relay.relay, Relay.pump,
    HttpReply.put, HttpReply.flush, Relay.note_outcome, Calls.close

Trust: everything that arrives on the listening socket is untrusted.  An upstream may see what is
sent to it, and is otherwise untrusted.  pools.json decides every destination except the token
endpoint, which CODEX_REFRESH_TOKEN_URL_OVERRIDE moves, as it does for Codex CLI.  A secret leaves
its `Secret` through one function, `reveal`.

Sections are bottom-up: each uses only what is above it.  Above CONNECTIONS nothing waits, reads a
clock, draws a random number or touches a file, so all of it can be tested with values.

A number like (F12) in a comment is a fact about another program: tests/FACTS.md has its source.

Run: `python pooler.py demo`, or `python pooler.py serve --config pools.json`.  `uv run pooler.py`
installs what the comment above names.
"""

from __future__ import annotations

import argparse
import base64
import codecs
import contextlib
import dataclasses
import difflib
import enum
import errno
import fcntl
import functools
import gc
import hashlib
import hmac
import http
import importlib
import importlib.util
import io
import ipaddress
import itertools
import json
import logging
import math
import os
import posixpath
import re
import resource
import secrets
import select
import shlex
import shutil
import signal
import socket
import ssl
import stat
import sys
import tempfile
import textwrap
import threading
import time
import traceback
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Container,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import (
    Any,
    Final,
    Generic,
    NamedTuple,
    Never,
    Protocol,
    Self,
    TextIO,
    TypeVar,
    TypeVarTuple,
    cast,
)
from urllib.parse import unquote, urlencode

try:
    import h11
    import trio
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    # What a person sees who has this file only, and starts it with `python pooler.py`.
    install = "`uv run pooler.py` installs it, and so does `pip install h11 trio trio-websocket`"
    sys.exit(f"pooler: {missing}: {install}")

VERSION: Final = "0.1.0"

T = TypeVar("T")
K = TypeVar("K")
Ts = TypeVarTuple("Ts")
Json = Any  # what `json.loads` returns: checked with isinstance, never trusted
JsonObject = Mapping[str, Json]  # one that is only read
JsonDict = dict[str, Json]  # one that may be changed
Field = tuple[str, str]  # of a head: name and value

################################################################
# LIMITS
################################################################
# Every buffer, wait, queue and count has its bound here: whatever peers do, memory, descriptors and
# time in use stay below a sum of these.  `Limits` can be overridden in pools.json, within the
# bounds that follow each default; the constants below it are fixed.
#
# A name has its unit (BYTES, CHARS or SECONDS; otherwise it is a count), and MAX if it is a bound.
# One event loop serves all clients, and work without an `await` in it blocks the loop.  Next to a
# bound on such a step of work stands the time that the largest one takes.

KIB: Final = 1024
MIB: Final = 1024 * KIB
HOUR: Final = 3600.0


def _limit(default: float, low: float, high: float, about: str) -> Any:  # noqa: ANN401 (as `field`)
    """A field of `Limits`, with the bounds that pools.json must keep, and what it bounds.

    The lower ones leave the pooler usable, and the higher ones keep it bounded.
    """
    return field(default=default, metadata={"low": low, "high": high, "about": about})


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that pools.json may override; units are in the names."""

    # What clients may hold: memory for their bodies, connections, and places.
    body_bytes_max: int = _limit(
        32 * MIB, KIB, 512 * MIB, "a request body, which may hold images in base64"
    )
    bodies_bytes_max: int = _limit(
        256 * MIB, MIB, 8192 * MIB, "all request bodies in memory; at least 8 of the largest"
    )
    connections_max: int = _limit(
        1024, 2, 65536, "client connections; each takes one descriptor or two (ulimit -n)"
    )
    key_streams_max: int = _limit(64, 1, 10_000, "requests of one key at once, unless it says more")
    account_streams_max: int = _limit(
        16, 1, 10_000, "requests at one account at once, unless it says more"
    )
    # How long a request waits for an account, and how many it may try.
    queue_seconds_max: float = _limit(
        10, 0, 600, "the wait for an account, if all are at their concurrent"
    )
    attempts_max: int = _limit(3, 1, 16, "accounts tried for one request")
    cooldown_seconds: float = _limit(
        30, 1, HOUR, "the cooldown after a throttle that announces no reset"
    )
    # How long an upstream or a client may be silent.
    first_event_seconds_max: float = _limit(
        120, 0.1, 3600, "the wait for a stream's first event; local models load first"
    )
    between_events_seconds_max: float = _limit(
        300, 0.1, 3600, "the wait between two events, as reasoning may be silent; not comments"
    )
    unary_seconds_max: float = _limit(600, 0.1, 3600, "the wait for a response that is no stream")
    comment_seconds: float = _limit(
        15, 0.1, 300, "silence until a client gets an SSE comment: proxies cut it from 50 s on"
    )  # (F97)
    websocket_idle_seconds_max: float = _limit(1800, 1, 24 * HOUR, "a WebSocket without a turn")
    # The end of the process, and what it remembers until then.
    drain_seconds_max: float = _limit(
        30, 0, 3600, "the time for requests to finish after SIGTERM or SIGINT"
    )
    records_max: int = _limit(1000, 1, 100_000, "recent requests kept for operators")


# The head of a client's request.  Whoever has not presented a key yet holds no more than this.
HEAD_BYTES_MAX: Final = 32 * KIB  # Codex sends about 3 KiB of metadata
HEAD_FIELDS_MAX: Final = 100  # browsers and proxies send some 40
TARGET_BYTES_MAX: Final = 8 * KIB  # what most servers take
BEARER_BYTES_MAX: Final = 512  # our own keys have some 50
HEAD_SECONDS_MAX: Final = 15.0  # absolute: drips do not extend it
KEEP_ALIVE_SECONDS_MAX: Final = 75.0  # longer than proxies keep theirs (F98)
KEYLESS_CONNECTIONS_MAX: Final = 256  # that have not presented a valid key yet

# A client's connections and descriptors.  Health checks have some of their own, so that a pooler
# that has none left is still seen to be alive.
LISTEN_BACKLOG: Final = 1024  # as many as connections
DESCRIPTORS_KEPT: Final = 32  # for listeners, the log, files, and health checks
SPARE_CONNECTIONS_MAX: Final = 16  # beyond all others, for health checks
ACCEPT_LOG_SECONDS: Final = 60.0  # between two lines about refused connections
PLACES_KEPT_PART: Final = 8  # one eighth is kept for keys that use little
RECEIVE_BYTES: Final = 64 * KIB  # one receive, and one step of a write
STEPS_AT_ONCE_MAX: Final = 8  # of a request: encrypting them blocks the loop about 0.5 ms
# One receive may hold ten thousand chunks, or as many events, and a peer may have many connections:
# only a part is dealt with in one step.
CHUNKS_AT_ONCE_MAX: Final = 2_000  # they block the loop about 1.5 ms
LINES_AT_ONCE_MAX: Final = 256  # of events that are no plain content: about 4 ms
PIPELINED_BYTES_MAX: Final = 64 * KIB  # sent ahead while a response is in progress
WRITE_STALL_SECONDS_MAX: Final = 60.0  # for 64 KiB

# How a client's connection ends.  If it is closed while bytes of the request are unread, the system
# sends a TCP reset, which also discards a response that the client has not read yet: a proxy makes
# a 502 of it (F109).  So the rest is read first, as much as a body has by default, but not for
# long: a client could send without end.
LINGER_BYTES_MAX: Final = 32 * MIB  # read of a rejected request, so that its response arrives
LINGER_SECONDS_MAX: Final = 1.0  # to read them in
CLOSE_SECONDS_MAX: Final = 2.0  # to send the last record of TLS, or a WebSocket's Close
STOP_SECONDS_MAX: Final = 5.0  # after the drain, for the last terminal events
ARRIVAL_STEPS: Final = 4  # of the loop, from bytes that have arrived to a request in progress

# The body of a client's request.  A body is parsed in one step, which must not block the loop for
# long, whatever a hostile body is made of (F96).
BODY_IDLE_SECONDS_MAX: Final = 30.0  # without a byte
BODY_SECONDS_MAX: Final = 120.0  # absolute: 32 MiB at 2 Mbit/s
BODY_DEPTH_MAX: Final = 100  # json.loads itself gives up near 1,000
JSON_SEPARATORS_MAX: Final = 200_000  # parsing them blocks the loop about 60 ms
# Of a client's body, as escapes or in short strings.  Parsing this much text and as many members as
# are allowed takes about 120 ms; twice as much of both would take twice as long.
MUCH_TEXT_BYTES: Final = 16 * MIB
FLOATS_MAX: Final = 100_000  # in a client's body: serialising one takes 0.7 us
WIDE_BYTES_MAX: Final = MIB  # of wide text that is written as it is
INTEGER_DIGITS_MAX: Final = 32  # int() of thousands of digits is quadratic
PIECE_BYTES: Final = 256 * KIB  # of JSON, in one step: up to 1.5 ms
MEMBER_BYTES: Final = 128  # about what a member of an object takes in memory
PARSED_BYTES_MAX: Final = 8 * MIB  # of memory for a parsed body, to be kept for its translation
INPUT_ITEMS_MAX: Final = 20_000  # translating them blocks the loop about 80 ms

# Names and ids in a client's request.  Each is kept, compared or sent on, so none may be long.
MODEL_CHARS_MAX: Final = 200  # of a name: some that clients made up are remembered
SESSION_CHARS_MAX: Final = 256  # of its header; clients send UUIDs
CODEX_ID_CHARS_MAX: Final = 64  # of a call or a prompt_cache_key (F7)
RESPONSE_ID_CHARS_MAX: Final = 4096  # of a stored response's id; real ones have about 60
BEGINNING_CHARS_MAX: Final = 64 * KIB  # of a conversation, for its digest, which takes 0.3 ms

# The choice of an account: queue, pins, and how long something is remembered of an account.  All
# of it may be out of date, because limits are reset early, plans are changed and servers repaired:
# nothing that an upstream has said keeps an account out for good.
QUEUE_LENGTH_MAX: Final = 64  # per pool
PASSED_OVER_MAX: Final = 20  # accounts that a refusal lists: a pool may have a thousand
# Of a pool, with how each account stands for each: of a large pool fewer, as a snapshot is made in
# one step, and takes about 5 us for a pair of model and account.
SERVING_MODELS_MAX: Final = 100
SERVING_PAIRS_MAX: Final = 4000
OUTAGES_MAX: Final = 1000  # pairs of pool and model that nobody can serve: see AccountWatch
PINS_MAX: Final = 4096
PIN_IDLE_SECONDS_MAX: Final = 24 * HOUR  # prompt caches are gone by then
RESPONSE_PINS_MAX: Final = 4096  # as many as sessions
SHORT_COOLDOWN_SECONDS_MAX: Final = 3.0  # a session waits this long for its cache (F15, F40)
UNTRIED_SECONDS_MAX: Final = 900.0  # limits are reset early, and nobody announces that
# Beyond it a reset is implausible: the longest windows of plans have 30 days (F34).
RESET_SECONDS_MAX: Final = 32 * 24 * HOUR
DEMOTION_SECONDS: Final = 60.0  # a server that failed mostly fails again at once
FAILING_COUNT_MIN: Final = 2  # failures in a row: fewer than that may have been an accident
FORBIDDEN_MAX: Final = 3  # refusals of one account in a row, for no known reason
MODEL_BLOCK_SECONDS: Final = HOUR  # an upstream said that the account lacks the model
ROUTE_BLOCK_SECONDS: Final = 300.0  # its upstream lacks the route, but may be updated
MODEL_BLOCKS_MAX: Final = 64  # per account, of each kind
NO_WEBSOCKET_SECONDS: Final = HOUR  # an upstream refused the upgrade

# Quotas and catalogues of accounts, as their upstreams report them.  An upstream that reports
# nonsense may make the choice of an account worse, but not the pooler larger or slower.
NEARLY_USED_PERCENT: Final = 95.0  # from here on new sessions go elsewhere if possible
UNKNOWN_LEFT_PERCENT: Final = 99.0  # without evidence: after the untouched, before the used
QUOTA_WINDOWS_MAX: Final = 16  # per account: its plan has two, single models may have more
WINDOW_MINUTES_MAX: Final = 366 * 24 * 60  # no plan has a longer window
CATALOGUE_SECONDS: Final = HOUR  # how long an account's /models stays good
CATALOGUE_PAUSE_SECONDS: Final = 300.0  # after one that could not be fetched
CATALOGUE_BYTES_MAX: Final = 4 * MIB  # Codex's has 650 kB (F20)
CATALOGUE_MEMBERS_MAX: Final = 80_000  # read, and serialised to be kept, in one step
CATALOGUE_MODELS_MAX: Final = 2_000  # the largest providers list a few hundred
NAMES_KNOWN_MAX: Final = 32_000  # of models, and codes of errors: in memory 10 MiB at most
SETUP_MODELS_MAX: Final = 50  # of a local server's, written into pools.json
SETUP_SECONDS_MAX: Final = 5.0  # for a local server to list its models
ANSWERS_MAX: Final = 3  # to a question of `pooler init`, until one can be used
USAGE_SECONDS: Final = 900.0  # without news of its quota, a ChatGPT account is asked for it
USAGE_SPREAD: Final = 0.2  # by up to which part of that accounts are asked later, each by its own
USAGE_PAUSE_SECONDS: Final = 24 * HOUR  # after an upstream without the route
USAGE_REQUESTS_MAX: Final = 2  # at once
USAGE_BYTES_MAX: Final = 64 * KIB  # real ones have about 1 KiB
EFFECTIVE_WINDOW_PERCENT: Final = 95  # of a context window: what Codex CLI uses of it (F21)
MODELS_SHOWN_MAX: Final = 20  # in an error, of those that a key may use

# Connections to upstreams, and the names by which these know the pooler.  A connection that is
# kept saves the next request one to three round trips.
CONNECT_SECONDS_MAX: Final = 10.0  # name, TCP and TLS together
CONNECTS_MAX: Final = 2  # failed at one host by one request: each may take seconds
# Per account, as many as the default of key_streams_max: with 8, two in five requests of 32
# clients had to open a new connection.
IDLE_CONNECTIONS_MAX: Final = 64
SURE_IDLE_CONNECTIONS_MAX: Final = 8  # of these, how many an account may keep whatever others keep
ALL_IDLE_CONNECTIONS_MAX: Final = 128  # beyond those, of all accounts: each takes a descriptor
IDLE_CONNECTION_SECONDS_MAX: Final = 15.0  # servers drop theirs at 60 s (F98)
# To accounts with an API key: LiteLLM drops parameters if the name begins with "codex" (F61).
API_AGENT: Final = f"pooler/{VERSION}"
CODEX_VERSION: Final = "0.169.0"  # of Codex CLI: older ones do not get newer models (F20)
# By how many minor releases a client's Codex CLI may be ahead of that to be believed.
CODEX_MINORS_AHEAD_MAX: Final = 200
CA_BYTES_MAX: Final = 4 * MIB  # a system's authorities take about 256 KiB

# The head and frame of an upstream's response: as little trusted as a client's request, for a
# response may come from anything between the pooler and the server that was meant.
UPSTREAM_HEAD_BYTES_MAX: Final = 32 * KIB  # cookies and policies of CDNs take some KiB
UPSTREAM_INTERIM_MAX: Final = 8  # responses with a status 1xx
CHUNK_EXTENSION_BYTES_MAX: Final = KIB  # of each chunk of an upstream; real ones have about ten
TRAILER_BYTES_MAX: Final = 8 * KIB  # read, checked and dropped
EARLY_RESPONSE_SECONDS_MAX: Final = 1.0  # a response before the end of our request

# A response in one piece, or the JSON of an event.  It is read in one step, and serialised again in
# another, so what is longer passes unread if that is possible, and is refused otherwise.
UNARY_BYTES_MAX: Final = 64 * MIB  # several images in base64
UNARY_READ_BYTES_MAX: Final = 16 * MIB  # of a response to be read; a longer one passes unread
TRANSLATED_BYTES_MAX: Final = 32 * MIB  # of a response, which is serialised again in one step
JSON_DEPTH_MAX: Final = 500  # of an upstream's: responses repeat the tools of bodies
JSON_MEMBERS_MAX: Final = 100_000  # of an upstream's: read with 16 MiB they take about 120 ms
WHOLE_MEMBERS_MAX: Final = 10_000  # of a response in one piece that is made into events
WRITTEN_MEMBERS_MAX: Final = 50_000  # of what is serialised again: as many numbers take 80 ms
WRITTEN_BYTES_MAX: Final = 4 * MIB  # of an event that is serialised again, without new items
OUTPUT_ITEMS_MAX: Final = 4_000  # of a response: sent at its end, they block the loop 80 ms
TOKENS_MAX: Final = 10**12  # a larger count is nonsense, and could break a sum's JSON

# A stream.  Until its client has a 200, another account can still take its request.  So the 200 is
# held until the upstream sends content, but not for long: proxies and clients give up (F97).
HOLD_SECONDS_MAX: Final = 10.0  # then the client gets its 200
SILENCE_SECONDS_MAX: Final = 45.0  # then a stream's client gets its 200: proxies cut it (F97)
HANDSHAKE_EVENTS_MAX: Final = 16  # before content; real streams have two or three (F28)
EVENT_BYTES_MAX: Final = 16 * MIB  # an image in one event (F37)
EVENTS_BYTES_MAX: Final = 256 * MIB  # unfinished, all streams
EVENT_LINES_MAX: Final = 100_000  # pretty-printed JSON has one for each member
AFTER_TERMINAL_SECONDS_MAX: Final = 1.0  # OpenCode waits for the end of the body (F71)

# What an upstream says of a failure.  It is searched for names, numbers and reasons, and some of it
# is shown, so little of it is enough.
ERROR_BODY_BYTES_MAX: Final = MIB  # the largest error page that is worth reading
ERROR_BODY_SECONDS_MAX: Final = 10.0  # then its status must suffice
ERROR_DEPTH_MAX: Final = 5  # `response`, `error`, `detail` ... around what an upstream says
DETAILS_MAX: Final = 8  # next to an error's message that are read
SPAN_PARTS_MAX: Final = 8  # of a time to wait: "1d2h3m4s" has four
MESSAGE_CHARS_MAX: Final = 4096  # of an upstream's error message: searched, and shown
NAMED_BYTES_MAX: Final = 64 * KIB  # of an error that is searched for names of accounts: 8 ms
REASON_CHARS_MAX: Final = 300  # of an upstream's error message that one of ours repeats
KEY_PART_CHARS_MIN: Final = 12  # of a name: with digits in it, it is an id or a key
RETRY_AFTER_SECONDS_MAX: Final = 60  # OpenCode obeys a longer one, too (F70)

# A Responses WebSocket, on both sides of the pooler.
WEBSOCKET_HANDSHAKE_SECONDS_MAX: Final = 10.0  # with an upstream
WEBSOCKET_MESSAGE_BYTES_MAX: Final = 32 * MIB  # a client's
WEBSOCKET_UPSTREAM_BYTES_MAX: Final = 16 * MIB  # more is refused (F25)
WEBSOCKET_FRAMES_MAX: Final = 4096  # until a message is whole, pings too
FRAMES_AT_ONCE: Final = 64  # of a WebSocket's peer: they block the loop about 2 ms
PART_BYTES: Final = 64  # what a part of an unfinished message takes besides its data
TURNS_WAITING_MAX: Final = 16  # sent ahead on one WebSocket, behind the one in progress
ANCHORS_MAX: Final = 256  # response ids that an upstream WebSocket is known to keep
WEBSOCKET_PING_SECONDS: Final = 30.0  # proxies cut what is silent from 50 s on (F97)
WEBSOCKET_CLOSE_SECONDS_MAX: Final = 5.0  # for the client's Close, after ours
WEBSOCKET_AGE_SECONDS_MAX: Final = 0.95 * HOUR  # the upstream ends its own at 60 minutes (F25)

# The logins of ChatGPT accounts.  A refresh token can be used only once, so a refresh that has
# started is given time to be saved.
REFRESH_MARGIN_SECONDS: Final = 300.0  # before a token ends (F55)
REFRESH_AGE_SECONDS: Final = 8 * 24 * HOUR  # of a token that does not say when it ends (F55)
REFRESH_SECONDS_MAX: Final = 15.0  # lock, response and disk together
REFRESH_SECONDS_CEILING: Final = 60.0  # of one refresh: a shutdown waits for it
REFRESH_PAUSE_SECONDS: Final = 10.0  # after one that failed
TOKEN_SECONDS_MIN: Final = HOUR  # for which a new token is valid, at least
LOCK_SECONDS: Final = 0.05  # between two tries to lock a login's file
LOCK_TRIES_MAX: Final = 20  # by a caller that only checks that it can be locked
SAVE_TRIES_MAX: Final = 3  # of a refreshed login; each waits for the disk
SAVE_PAUSE_SECONDS: Final = 0.1  # between two of these
ROOM_SPARE_BYTES: Final = 4 * KIB  # by which a refreshed login may outgrow the last one
UNSAVED_MAX: Final = 64  # refreshed logins that could not be saved yet, by file

# A login by device code (F104).
DEVICE_SECONDS_MAX: Final = 900.0  # for a person to enter the code
DEVICE_SECONDS_MIN: Final = 60.0  # an end before that is by another clock
POLL_SECONDS: Final = 5.0  # between two polls; and what slow_down adds to that (RFC 8628 §3.5)
POLL_SECONDS_MIN: Final = 1.0
POLL_SECONDS_MAX: Final = 60.0
REDEEM_TRIES_MAX: Final = 3  # to get the tokens for a login that has been granted

# Times that others write down, and clocks that disagree.
UNIX_SECONDS_MIN: Final = 10**9  # a larger number of seconds is a point in time, not a duration
UNIX_MAX: Final = 10**10  # in the year 2286: a later time in a file is nonsense
MS_DIGITS: Final = 13  # of a unix time in milliseconds, until the year 2286
CLOCK_LEAD_SECONDS_MIN: Final = 60.0  # less may be latency, or a clock that is well kept
SLEEP_SECONDS_MIN: Final = 5.0  # a clock may be corrected by less at any time

# pools.json, and the secrets and files that it names.
CONFIG_BYTES_MAX: Final = 4 * MIB  # of pools.json: thousands of keys
SECRET_FILE_BYTES_MAX: Final = 64 * KIB  # a login has some 5 KiB
SECRET_CHARS_MIN: Final = 16  # fewer can be guessed
API_KEY_CHARS_MAX: Final = 8 * KIB  # of an upstream: a signed token may be long
DOUBTED_CHARS_MAX: Final = 512  # of a secret: a longer one is no placeholder, and shows in so many
SHOWN_CHARS_MAX: Final = 60  # of a line that is not JSON, on either side of the error
CHANGES_SHOWN_MAX: Final = 100  # of a reload, in one line of the log
RELOAD_SECONDS_MAX: Final = 10.0  # to read pools.json and the files that it names
FILE_SECONDS_MAX: Final = 2.0  # for a login's file: a dead disk must stop nobody else
STUCK_SECONDS: Final = 60.0  # until a login on a dead disk is looked at again, which may be new
STUCK_LOOKS_MAX: Final = 2  # again, while the thread of the first look is stuck: each has one
FILE_THREADS_MAX: Final = 8  # for files: a dead disk leaves those that resolve names

# The operator's side.  Accounts and codes that come and go must not make its tables grow forever.
MCP_BODY_BYTES_MAX: Final = MIB  # messages have some hundred bytes
MCP_DEPTH_MAX: Final = 100  # of a message to /mcp, which has some dozens of members
MCP_MEMBERS_MAX: Final = 10_000  # reading them takes about 10 ms
ACCOUNTS_COUNTED_MAX: Final = 1024  # with rows of counters: reloads may bring new ones
TOTALS_MAX: Final = 512  # rows of counters for each account
UPSTREAM_CODES_MAX: Final = 16  # of one account, counted one by one: it may invent more
MINUTES_KEPT: Final = 60  # of sums: the last hour, which slides
HOURS_KEPT: Final = 24  # of sums
DAYS_KEPT: Final = 14  # of sums for each key
KEYS_COUNTED_MAX: Final = 2048  # by day: reloads may bring new ones
MINUTE_CODES_MAX: Final = 32  # counted one by one in a minute
CAUSES_SHOWN_MAX: Final = 10  # of the failures in the last hour, the most frequent ones
STEPS_PER_OCTAVE: Final = 8  # of times to a first event: a shown one is within 5 % of a real one
FIRST_EVENT_STEPS_MAX: Final = 22 * STEPS_PER_OCTAVE  # beyond an hour all count as one
PRICE_MAX: Final = 10.0**6  # of a million tokens: a larger one is a mistake

# The file of `state`: what a restart goes on from.  It is read and written in a thread.
STATE_SECONDS: Final = 60.0  # between two versions of it
STATE_BYTES_MAX: Final = 16 * MIB  # all pins have 1 MiB, the days of all keys 4 MiB
STATE_MEMBERS_MAX: Final = 600_000  # parsing them takes half a second, before anything is served
STATE_AHEAD_SECONDS_MAX: Final = 60.0  # what is further in the future is not believed
SUM_MAX: Final = 10**24  # no sum of a trillion responses is larger
NOTICES_WAITING_MAX: Final = 100  # changes that no notice has told yet; the rest are counted
NOTICES_KNOWN_MAX: Final = 2_000  # what is wrong, and was told
NOTICE_LINES_MAX: Final = 20  # changes that one notice describes
NOTICE_GATHER_SECONDS: Final = 2.0  # what breaks together is told together
NOTICE_PAUSE_SECONDS: Final = 30.0  # between two notices: services for them count
NOTICE_SECONDS_MAX: Final = 15.0  # for one; more than for its connection, whose end is told apart
ASKED_AT_ONCE_MAX: Final = 8  # accounts, by `pooler check --ask`
STATUS_SECONDS: Final = 2.0  # between two looks of `pooler status --watch`

# The log.  It never waits for its reader: what finds no room is counted, and dropped.
STDERR: Final = 2
LOG_LINES_MAX: Final = 10_000  # not written yet; about 6 MiB
LOG_GATHER_SECONDS: Final = 0.02  # how long a line waits for others to be written with it
LOG_BATCH_LINES: Final = 100  # written at once
LOG_WRITE_BYTES: Final = 4 * KIB  # in one step, so that a slow reader's progress is seen
LOG_SECONDS_MAX: Final = 2.0  # at the end, without progress with the lines that are left
HOLDER_SECONDS_MAX: Final = 1.0  # of another program that listens where this one is to
LOG_END_SECONDS_MAX: Final = 10.0  # at the end, for all of them

_DEFAULTS: Final = Limits()
# Of each pair the first is a part of the second, or comes before it in time: in another order one
# of the two would never have an effect.
assert TARGET_BYTES_MAX < HEAD_BYTES_MAX < _DEFAULTS.body_bytes_max < _DEFAULTS.bodies_bytes_max
assert EVENT_BYTES_MAX < EVENTS_BYTES_MAX
assert _DEFAULTS.connections_max > KEYLESS_CONNECTIONS_MAX
assert _DEFAULTS.first_event_seconds_max > HOLD_SECONDS_MAX


@dataclass(eq=False, slots=True)
class Budget:
    """A count of bytes that many holders share; nobody may hold more than is left for the others.

    So the first holder gets at most half of it, and the next one at most half of the rest.

    A holder is a pool key, by its pool and name, or an account, by its name.  What an account
    holds is held for a key, its user.  No user has more than the account could still take for the
    others, so that a client that reads slowly does not keep them from their responses.
    """

    bytes_max: int
    bytes_held: int = 0
    by_holder: dict[Hashable, int] = field(default_factory=dict)  # none of them is 0
    by_user: dict[tuple[Hashable, Hashable], int] = field(default_factory=dict)  # nor of these

    def grow(self, holder: Hashable, byte_count: int, user: Hashable = None) -> bool:
        """Take `byte_count` more bytes (negative: fewer); returns whether that is not too many.

        If it is, none are taken.
        """
        if byte_count > 0:
            left = self.bytes_max - self.bytes_held - byte_count
            spare = left - self.by_holder.get(holder, 0) - byte_count
            if spare < 0:
                return False

            # Each byte that the holder takes is one fewer that is left, too.
            used = self.by_user.get((holder, user), 0)
            if user is not None and 2 * (used + byte_count) > spare:
                return False

        self.force(holder, byte_count, user)
        return True

    def force(self, holder: Hashable, byte_count: int, user: Hashable = None) -> None:
        """Count bytes that are already held, without asking whether there is room for them."""
        held = self.by_holder.pop(holder, 0) + byte_count
        self.bytes_held += byte_count
        assert held >= 0
        if held:
            self.by_holder[holder] = held
        if user is None:
            return

        used = self.by_user.pop((holder, user), 0) + byte_count
        assert used >= 0
        if used:
            self.by_user[holder, user] = used


################################################################
# ERRORS
################################################################
# An expected failure is a PoolerError, one row of this table: what the client gets.  Anything
# else that is raised is a bug.  Our messages contain no status codes and none of the phrases that
# make OpenCode retry a final error (F68), and repeat nothing that the client sent but its Host.

INVALID: Final = "invalid_request_error"
SERVER: Final = "server_error"

# The status and the message of each code, and for the reference when it occurs or what to do then.
# The type of an error is INVALID if its status is 4xx, and SERVER if it is 5xx; only limits have
# types of their own.
#
# Statuses are chosen by what clients do with them.  OpenCode repeats a request after a 404, and
# gives up after a 400 (F68, F69): so a model that a key may not use is a 400.  503 means that the
# same request may succeed later, 502 that the upstream failed with it.
# fmt: off
ERRORS: Final[Mapping[str, tuple[int, str, str]]] = {
    "bad_request": (400, "The request is not well-formed HTTP.",
        "Malformed HTTP; the connection closes."),
    "expectation_failed": (417, "Only Expect: 100-continue is supported.",
        "An Expect header other than 100-continue: leave it out."),
    "head_too_large": (431, "The request head is too large.",
        "Its header fields have more than 32 KiB, or are more than 100."),
    "host_not_allowed": (403, "This Host is not allowed.",
        "Add the name in the message to hosts."),
    "internal_error": (500, "The pooler failed; its log has the cause under this request's id.",
        "A bug of the pooler; its log has the request's id."),
    "invalid_api_key": (401, "A valid pool key is required as Authorization: Bearer.",
        ("The key is missing, wrong, paused or expired, which all look the same; or a "
         "token was used where a key belongs.  See `pooler check` and /admin.")),
    "invalid_json": (400, "The request body is not valid JSON.",
        ("No JSON object, nested too deeply, too many members, or a member that differs "
         "from a known one in case only.")),
    "invalid_value": (400, "A field of the request has an invalid value.",
        ("A field of a wrong type that cannot be translated for a ChatGPT account, a "
         "stream or store that is no boolean, or a model name of more than 200 "
         "characters; param names it.")),
    "key_limit_reached": (429, "This pool key has reached a limit of its own.",
        ("A limit that you have set on this key.  Retry-After says when; over a minute "
         "there is x-should-retry: false instead.")),
    "operators_not_installed": (501, "This server has no mcp_server.py for operators.",
        "/admin, /metrics and /mcp need the file mcp_server.py beside pooler.py."),
    "mcp_not_installed": (501,
        ("MCP needs the package mcp, which is not installed. `pooler check` prints the "
         "command that installs it."),
        ("/mcp needs the package mcp; `pooler check` prints the command that installs "
         "it.")),
    "method_not_allowed": (405, "This method is not allowed on this path.",
        "Allow lists the methods of this path."),
    "missing_required_parameter": (400, "The request names no model.",
        "No model, or (for a ChatGPT account) no input."),
    "model_not_found": (400, "This key has no such model. GET /v1/models lists its own.",
        ("Not in the pool, or not allowed for this key (404 on GET /v1/models/{id}): see"
         " GET /v1/models.  Or no account can use it now: /admin says why.")),
    "no_usable_account": (503, "No account can serve this request; the pooler's log says why.",
        ("Every account is paused, has no login, or is refused by its upstream: see "
         "/admin, the log or `pooler check --ask`.")),
    "not_found": (404, "There is nothing at this path. The API is under /v1.",
        "Any path outside of /v1 that is not served."),
    "origin_not_allowed": (403, "This Origin is not allowed (allowed_origins).",
        ("A browser's page, or an app, calls from an origin that is not in "
         "allowed_origins.")),
    "pool_busy": (503, "Every account of this pool is busy. Retry in a moment.",
        ("All accounts are at their concurrent and the queue is full or too slow, or too"
         " much data is in memory.  Retry-After: 2.")),
    "previous_response_not_found": (400,
        "No account that can serve this has the earlier response. Send the full input.",
        ("A ChatGPT account made it, which keeps none, or it is not known on this "
         "WebSocket: send the full input.")),
    "request_timeout": (408, "The request did not arrive in time.",
        "It came too slowly; the connection closes."),
    "request_too_large": (413, "The request body is too large.",
        "Over body_bytes_max; the connection closes."),
    "server_stopping": (503, "The pooler is shutting down.",
        "The server is shutting down: try again when it is back."),
    "target_too_long": (414, "The request target is too long.",
        "The URL has more than 8 KiB."),
    # Codex CLI may compress with zstd (F79).
    "unsupported_content_encoding": (415,
        ("Compressed bodies are not accepted here. Send the body as it is (Codex CLI: "
         "[features] enable_request_compression = false)."),
        ("Compressed bodies are not taken.  Codex CLI: [features] "
         "enable_request_compression = false.")),
    "unsupported_endpoint": (404,
        ("Unsupported OpenAI /v1 endpoint. If the path has /v1 twice, end the client's base URL "
         "in one /v1."),
        ("404: a route under /v1 that is not served.  400: no account of the pool has "
         "this route; the message says what to do.")),
    "unsupported_media_type": (415, "The body must be Content-Type: application/json.",
        "Send Content-Type: application/json."),
    "unsupported_parameter": (400, "No account of this pool supports this field.",
        ("ChatGPT accounts lack this field, and no other account can take the request; "
         "param names it, the message says what to write.")),
    "upstream_blocked": (502, "The upstream's bot protection blocks the pooler's address.",
        "A bot protection blocks the pooler's address; no account is blamed."),
    "upstream_error": (502, "The upstream failed.",
        ("An upstream's 5xx, with its own status, its code if it has one, and its reason"
         " if that names no account, person or key.  Its errors about the request (400, "
         "413, 422 ...) pass unchanged.")),
    "upstream_invalid_response": (502, "The upstream sent an invalid response.",
        "No valid HTTP, or no valid response: see the log."),
    "upstream_stream_truncated": (502, "The upstream's response was cut off.",
        "The response was cut off."),
    "upstream_timeout": (504, "The upstream did not respond in time.",
        "A wait took too long: the message names the limit."),
    "upstream_unreachable": (502, "The upstream cannot be reached.",
        "Could not connect, or the connection was lost: the log and /admin say why."),
    "usage_limit_reached": (429, "Every account of this pool has reached its limit.",
        ("Every account is cooling down.  resets_at and resets_in_seconds say until "
         "when; Retry-After if that is within a minute, else x-should-retry: false.")),
    # The one status after which Codex CLI goes on over HTTP at once (F80).
    "websocket_unsupported": (426, "No WebSocket for this request. Use POST.",
        ("GET /v1/responses without a proper upgrade, or no account takes WebSockets: "
         "use POST, as Codex CLI then does at once.")),
}
_LIMIT_TYPES: Final = {
    "key_limit_reached": "rate_limit_error",
    # Codex CLI stops at this type, and shows when the limit ends (F77).
    "usage_limit_reached": "usage_limit_reached",
}
_ERROR_HEADERS: Final[Mapping[str, tuple[Field, ...]]] = {
    "invalid_api_key": (("WWW-Authenticate", "Bearer"),),
    "pool_busy": (("Retry-After", "2"),),
    "websocket_unsupported": (
        ("Upgrade", "websocket"), ("Connection", "upgrade"), ("Sec-WebSocket-Version", "13")),
}
# fmt: on
# Must not appear in a name or code that is shown: OpenCode would retry forever (F68).
_RETRIED_DIGITS: Final = re.compile("429|50[0234]|524")
UPSTREAM_CODE: Final = "upstream:"
_PARAMS: Final = {"model_not_found": "model", "previous_response_not_found": "previous_response_id"}


def upstream_name(code: str) -> str:
    """An upstream's code in a namespace of its own: it may have the same name as one of ours."""
    return f"{UPSTREAM_CODE}{code}"


@dataclass(eq=False)
class PoolerError(Exception):
    """A response to the client that is not a success.

    What is left out comes from the row of `code`.  `upstream_code` is an upstream's own name for
    what went wrong: it is shown and counted apart, but decides nothing.  `upstream_response` is an
    upstream's body and Content-Type, passed on unchanged.
    """

    code: str
    public: str = ""
    status: int = 0
    param: str | None = None
    headers: Sequence[Field] = ()
    details: Mapping[str, float] = field(default_factory=dict)
    upstream_response: tuple[bytes, str] | None = None
    upstream_code: str = ""

    def __post_init__(self) -> None:
        usual_status, message, _ = ERRORS[self.code]
        self.status = self.status or usual_status
        self.public = self.public or message

        # An upstream's 4xx is about the request, even if it is passed on as `upstream_error`.
        is_server_error = usual_status >= 500 and self.status >= 429
        usual_type = SERVER if is_server_error else INVALID
        self.type = _LIMIT_TYPES.get(self.code, usual_type)

        self.headers = (*_ERROR_HEADERS.get(self.code, ()), *self.headers)
        self.param = _PARAMS.get(self.code, self.param)

    @property
    def is_renamed(self) -> bool:
        """Whether the upstream's code would pass for one of ours that it must not use.

        A client told `invalid_api_key` by an upstream would ask for a new pool key, and one told
        `no_usable_account` would wait.
        """
        if self.upstream_code not in ERRORS:
            return False
        meaning, _, _ = ERRORS[self.upstream_code]
        return self.status >= 500 or meaning >= 500 or meaning in {401, 403}

    @property
    def public_code(self) -> str:
        """The code that the client gets: an upstream's own if it cannot pass for one of ours."""
        return self.code if self.is_renamed else self.upstream_code or self.code

    @property
    def record_code(self) -> str:
        """The code for the log and for counts; an upstream's has a namespace of its own."""
        return upstream_name(self.upstream_code) if self.upstream_code else self.code

    def content(self) -> tuple[bytes, str]:
        """The body and its Content-Type: OpenAI-shaped, unless it is an upstream's own."""
        if self.upstream_response is not None:
            return self.upstream_response

        shown = {
            "message": self.public,
            "type": self.type,
            "code": self.public_code,
            "param": self.param,
            **self.details,
        }
        return json.dumps({"error": shown}).encode(), "application/json"


NO_CHATGPT_ACCOUNT: Final = "Only ChatGPT accounts have this route, and this pool has none."
# Of pool_busy, if not accounts but memory is short: for bodies of requests, and for responses.
TOO_MANY_BODIES: Final = "Too many request bodies are in memory. Retry in a moment."
TOO_MUCH_HELD: Final = "Too much data is in memory. Retry in a moment."


@dataclass(eq=False, slots=True)
class HeldBytes:
    """The bytes that one holder has in a budget; at the end of a `with` none are left.

    So no path out of a function, an exception or a cancellation included, can leave bytes counted
    that nobody holds: the budget would shrink until the process ends.
    """

    budget: Budget
    holder: Hashable
    user: Hashable = None
    refusal: str = TOO_MUCH_HELD
    byte_count: int = 0

    def __enter__(self) -> HeldBytes:
        return self

    def __exit__(self, *_: object) -> None:
        self.replace(0)

    def grow(self, byte_count: int) -> None:
        """Hold `byte_count` bytes more; negative: fewer.

        Raises: PoolerError (pool_busy), if that is too much; then as many are held as before.
        """
        if not self.budget.grow(self.holder, byte_count, self.user):
            raise PoolerError("pool_busy", self.refusal)
        self.byte_count += byte_count

    def resize(self, byte_count: int) -> None:
        """Hold `byte_count` bytes in all.  Raises: as `grow`."""
        self.grow(byte_count - self.byte_count)

    def replace(self, byte_count: int) -> None:
        """Hold `byte_count` bytes in all; never refused, for they are made of what was held."""
        if byte_count != self.byte_count:
            self.budget.force(self.holder, byte_count - self.byte_count, self.user)
            self.byte_count = byte_count


@dataclass(eq=False)
class ConfigRefused(Exception):
    """pools.json cannot be used.  `problems`: one line each, with its JSON path."""

    problems: Sequence[str]


def retry_headers(seconds: int) -> list[Field]:
    """The header that says when to try again: `Retry-After`, or that it makes no sense to wait.

    OpenCode obeys any Retry-After (F70): a long one would freeze it.
    """
    if seconds <= RETRY_AFTER_SECONDS_MAX:
        return [("Retry-After", str(seconds))]
    return [("x-should-retry", "false")]


################################################################
# JSON
################################################################
# JSON comes from two sides.  A client's is parsed strictly (REQUEST BODIES); an upstream's, or a
# file's, leniently, by `load_json`.  Neither parses before `check_members` has passed the text:
# hostile JSON would block the event loop for seconds (F96).  How deeply JSON is nested is known
# cheaply only once it is parsed; the parser itself gives up near 1,000 levels.
#
# What was parsed is read by one family of functions, at the end of this section.


class BadSyntax(Exception):
    """The peer's bytes violate the standard, or a stricter rule of ours."""


_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_NOT_BEGINNINGS: Final = bytes(set(range(256)) - set(b"[{,"))


def uncollected(work: Callable[[*Ts], T], *arguments: *Ts) -> T:
    """`work(*arguments)`, with Python's collector of cyclic garbage turned off.

    Parsing JSON creates many objects at once and no cycles among them: looking for cycles takes
    several times as long as the rest of the work.
    """
    if not gc.isenabled():
        return work(*arguments)

    gc.disable()
    try:
        return work(*arguments)
    finally:
        gc.enable()


def check_members(raw: bytes, members_max: int) -> None:
    """Refuse JSON text with more members than that.  Raises: BadSyntax."""
    for _ in members_checked(raw, members_max):
        pass


def members_checked(raw: bytes, members_max: int) -> Iterator[None]:
    """As `check_members`, in steps of about a millisecond each; the text need not be valid.

    A member is anything that a bracket opens or a comma precedes.  Nearly always it is enough to
    count these bytes, also in strings.  Otherwise the strings are taken out, one piece of the text
    after the other, so that neither a long step nor a copy of the whole is made.
    Raises: BadSyntax, as soon as there are too many.
    """
    if len(raw) <= members_max or count_beginnings(raw) <= members_max:
        return

    count, at, is_inside = 0, 0, False  # a string, at the beginning of the piece
    while at < len(raw):
        piece = raw[at : at + PIECE_BYTES]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # an escape that is cut
            piece = raw[at : at + PIECE_BYTES + 1]
        at += len(piece)

        # Without escapes every quote begins or ends a string.  Pairs of backslashes go first: what
        # is left of a run of them begins an escape.
        plain = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        texts = plain.split(b'"')
        count += count_beginnings(b"".join(texts[is_inside::2]))
        is_inside ^= len(texts) % 2 == 0
        if count > members_max:
            raise BadSyntax("too many members")
        yield


def count_beginnings(raw: bytes) -> int:
    """How many members JSON text has at most: the contents of strings are counted, too."""
    return len(raw.translate(None, _NOT_BEGINNINGS))


_HOLDERS: Final = (dict, list)  # `dict | list` would make a new type for every member


def is_deeper(value: Json, depth_max: int) -> bool:
    """Whether objects and lists in parsed JSON are nested more deeply than that.

    A parser creates no subclasses, and comparing types takes half as long as `isinstance`.
    """
    holders: list[Json] = [[value]]
    for _ in range(depth_max + 1):
        holders = [
            member
            for holder in holders
            for member in (holder.values() if type(holder) is dict else holder)
            if type(member) is dict or type(member) is list
        ]
        if not holders:
            return False
    return True


def parse_shallow(
    decode: Callable[[str], Json],
    text: str,
    depth_max: int,
) -> Json:
    """The value that `decode` finds in JSON text.

    Raises: what `decode` raises; BadSyntax, if objects and lists are nested more deeply than that.
    """
    try:
        value = uncollected(decode, text)
    except RecursionError:
        raise BadSyntax("too much nesting") from None

    # Each level takes two characters: most events need not be looked through.
    if len(text) > 2 * depth_max and is_deeper(value, depth_max):
        raise BadSyntax("too much nesting")
    return value


def count_members(value: Json) -> int:
    """How many members the objects and lists in a value have, at every level."""
    count = 0
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        members = holder.values() if isinstance(holder, dict) else holder
        count += len(members)
        waiting += [member for member in members if isinstance(member, _HOLDERS)]
    return count


def check_writable(value: Json) -> None:
    """Refuse an upstream's value that would take long to serialise.  Raises: BadSyntax."""
    if count_members(value) > WRITTEN_MEMBERS_MAX:
        raise BadSyntax("too many members")


def _writable(number: str) -> float | None:
    """A number that can be serialised again; None for NaN, an infinity, or a huge one."""
    value = float(number)
    return value if math.isfinite(value) else None


def _writable_int(digits: str) -> float | None:
    """The same for an integer: Python refuses to print a long one, so it becomes a float."""
    if len(digits) > INTEGER_DIGITS_MAX:
        return _writable(digits)
    return int(digits)


_LENIENT: Final = json.JSONDecoder(
    parse_int=_writable_int,
    parse_float=_writable,
    parse_constant=_writable,
)


def load_json(raw: bytes, members_max: int = JSON_MEMBERS_MAX) -> Json:
    """The value in JSON text of an upstream, or of a file.

    Raises: ValueError, if it is not JSON in UTF-8; BadSyntax, if it has too much of something.
    """
    check_members(raw, members_max)
    text = raw.removeprefix(_BYTE_ORDER_MARK).decode()
    return parse_shallow(_LENIENT.decode, text, JSON_DEPTH_MAX)


def load_object(raw: bytes, members_max: int = JSON_MEMBERS_MAX) -> JsonDict:
    """The object in JSON text; {} if it is anything else, or no JSON.  Raises: BadSyntax."""
    text = raw.removeprefix(_BYTE_ORDER_MARK).lstrip()
    if not text.startswith(b"{"):
        return {}

    try:
        value = load_json(raw, members_max)
        return object_of(value)
    except ValueError:
        return {}


def try_load_object(raw: bytes) -> JsonDict:
    """The same; {} also if it has too much of something."""
    try:
        return load_object(raw)
    except BadSyntax:
        return {}


_write: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_write_escaped: Final = json.JSONEncoder(separators=(",", ":")).encode
_CONTINUATIONS: Final = bytes(range(0x80, 0xC0))  # of UTF-8: all bytes of a character but the first


def dump_json(value: Json) -> bytes:
    """Compact JSON in UTF-8; only a lone surrogate is escaped."""
    return uncollected(_write, value).encode("utf-8", "backslashreplace")


def dump_escaped(value: Json) -> bytes:
    """Compact JSON in ASCII."""
    return uncollected(_write_escaped, value).encode()


def parsed_size(raw: bytes, member_count: int) -> int:
    """About how many bytes of memory a value takes that was parsed from this JSON.

    One character beyond ASCII makes all others of its text wide: each may take 4 bytes.
    """
    char_bytes = 1 if raw.isascii() and b"\\u" not in raw else 4
    return len(raw) * char_bytes + member_count * MEMBER_BYTES


def dump_like(value: Json, raw: bytes) -> bytes:
    """Compact JSON of a value that was made of the JSON in `raw`.

    Text that was escaped is escaped again, which takes a fifth less time.  Long text that is mostly
    ASCII is escaped, too: otherwise three copies of it would be in memory while it is serialised,
    with 4 bytes for each character.
    """
    if raw.isascii():
        return dump_escaped(value)
    if len(raw) <= WIDE_BYTES_MAX:
        return dump_json(value)
    char_count = len(raw.translate(None, _CONTINUATIONS))
    return dump_escaped(value) if 2 * char_count > len(raw) else dump_json(value)


# Readers of what others have sent: the `..._of` read a value, the `..._at` a member of an object.
# To them a value of the wrong type is absent: it comes from an upstream or a file.  A client's
# value of the wrong type is refused by the `valid_...`.


def object_of(value: Json) -> JsonDict:
    """The value, if it is an object; else {}."""
    return value if isinstance(value, dict) else {}


def objects_of(values: Json) -> list[JsonDict]:
    """The objects in a list; [] if there is no list."""
    if not isinstance(values, list):
        return []
    return [value for value in values if isinstance(value, dict)]


def object_at(value: Json, name: str) -> JsonDict:
    """A member that is an object; else {}."""
    return object_of(object_of(value).get(name))


def objects_at(value: Json, name: str) -> list[JsonDict]:
    """The objects in a member that is a list; [] if there is no list."""
    return objects_of(object_of(value).get(name))


def members_of(
    value: JsonObject,
    names: Iterable[str],
) -> JsonDict:
    """Those of the named members that are there and not null."""
    return {name: value[name] for name in names if value.get(name) is not None}


def text_at(value: Json, name: str) -> str:
    """A member that is text; else ""."""
    if not isinstance(value, dict):
        return ""
    member = value.get(name)
    return member if isinstance(member, str) else ""


def label_at(value: Json, name: str) -> str:
    """The same; "" also if it is too long to be repeated with every chunk of a stream."""
    text = text_at(value, name)
    return text if len(text) <= SESSION_CHARS_MAX else ""


def count_at(value: Json, name: str) -> int:
    """A member that is a plausible number of tokens; else 0."""
    member: Json = object_of(value).get(name)
    if not isinstance(member, int) or isinstance(member, bool):
        return 0
    return member if 0 < member <= TOKENS_MAX else 0


def index_at(
    value: JsonObject,
    name: str,
    default: int,
) -> int:
    """A member that is the index of an output item, or of a part of one; else the default."""
    member: Json = value.get(name)
    if not isinstance(member, int):
        return default
    return member if 0 <= member < OUTPUT_ITEMS_MAX else default


def number_of(value: Json) -> float | None:
    """A number, or text that is one, if a clock can hold it; else None."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) < 10**12 else None


def first_text(
    pattern: re.Pattern[str],
    *candidates: Json,
) -> str | None:
    """The first candidate that is text and matches the pattern as a whole; else None."""
    for candidate in candidates:
        if isinstance(candidate, str) and pattern.fullmatch(candidate):
            return candidate
    return None


def valid_member(
    value: JsonObject,
    name: str,
    kind: type | tuple[type, ...],
) -> Json:
    """A member of that type; None if it is absent or null.  Raises: PoolerError (invalid_value)."""
    member = value.get(name)
    if member is not None and not isinstance(member, kind):
        raise PoolerError("invalid_value", param=name)
    return member


def valid_text(value: JsonObject, name: str) -> str:
    """A member that is text; "" if it is absent.  Raises: PoolerError (invalid_value)."""
    return valid_member(value, name, str) or ""


def valid_object(value: JsonObject, name: str) -> JsonDict:
    """A member that is an object; {} if it is absent.  Raises: PoolerError (invalid_value)."""
    return valid_member(value, name, dict) or {}


def valid_list(
    value: JsonObject,
    name: str,
    kind: type,
) -> list[Json]:
    """A new list of a member's values of that type.  Raises: PoolerError (invalid_value)."""
    values = valid_member(value, name, list) or []
    if {*map(type, values)} - {kind}:  # a parser creates no subclasses
        raise PoolerError("invalid_value", param=name)
    return [*values]


################################################################
# SECRETS
################################################################
# A secret is wrapped where it enters, and unwrapped by `reveal` where it is sent or compared.  The
# other way out is a header, so only the headers listed here by name are passed on.

Headers = Mapping[str, str]  # names in lower case; values of one name are joined by commas
NO_FIELDS: Final[Headers] = {}

# By name: a pattern would let through what an upstream invents next year.
FORWARDED_TO_UPSTREAM: Final = frozenset({"accept", "openai-beta"})
FORWARDED_TO_CLIENT: Final = frozenset(
    "content-type openai-model openai-processing-ms openai-version x-should-retry".split()
)
# On Codex CLI's own routes (F19), and for its Responses Lite requests on /v1.
NATIVE_TO_UPSTREAM: Final = FORWARDED_TO_UPSTREAM | frozenset(
    "originator user-agent version session-id session_id thread-id thread_id conversation_id "
    "x-client-request-id x-codex-window-id x-codex-turn-state x-codex-turn-metadata "
    "x-codex-parent-thread-id x-codex-installation-id x-codex-beta-features x-openai-subagent "
    "x-openai-memgen-request x-openai-internal-codex-responses-lite "
    "x-openai-internal-codex-residency x-responsesapi-include-timing-metrics".split()
)
# Nothing of the account's plan, quota or credits: a key holder sees the pool's.  Nor the version of
# the account's catalogue: Codex CLI would fetch the pool's again after each response (F83).
NATIVE_TO_CLIENT: Final = FORWARDED_TO_CLIENT | frozenset(
    "x-codex-turn-state x-reasoning-included x-oai-request-id cf-ray".split()
)
LITE_HEADER: Final = "x-openai-internal-codex-responses-lite"  # see is_lite (F16)
LITE_METADATA: Final = f"ws_request_header_{LITE_HEADER.replace('-', '_')}"
TURN_STATE: Final = "x-codex-turn-state"  # a secret of the account that sent it (F22)


class Secret:
    """A value that its repr does not show.  Not a dataclass: `asdict` would copy it out."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "Secret(...)"


def reveal(secret: Secret) -> str:
    """The secret's value; no other function reads it."""
    return secret._value  # noqa: SLF001 (the one place)


# How providers begin keys, tokens and ids of accounts, before "-", "_" or ".".
ID_PREFIXES: Final = (
    "acct org proj user ws "  # accounts, organizations, projects, people and workspaces
    "at rt sess "  # access and refresh tokens, and sessions
    "sk key "  # keys of OpenAI, Anthropic, DeepSeek, OpenRouter, and of many more
    "csk fw gsk jina nvapi pplx tgp xai "  # Cerebras to xAI
    "hf r8 "  # Hugging Face and Replicate, which host models
    "ghp github_pat glpat"  # GitHub's models, and GitLab's
).split()
# JWTs, and keys of Google, AWS and Bedrock: no mark follows their beginning.
KEY_BEGINNINGS: Final = ("eyJ", "AIza", "AKIA", "ABSK")
_PARTS_OF_NAME: Final = re.compile("[_.-]")


def digest_of(text: str) -> bytes:
    """The SHA-256 of a text: what is kept of a secret that is only compared."""
    return hashlib.sha256(text.encode()).digest()


def looks_secret(name: str) -> bool:
    """Whether what should be a name may be a key, a token or an id: they mix letters and digits."""
    parts = _PARTS_OF_NAME.split(name[:DOUBTED_CHARS_MAX])
    return any(len(part) >= KEY_PART_CHARS_MIN and any(map(str.isdigit, part)) for part in parts)


def forwarded(headers: Headers, names: Collection[str]) -> list[Field]:
    """Those of the headers that are listed in `names`."""
    return [pair for pair in headers.items() if pair[0] in names]


################################################################
# CREDENTIALS
################################################################
# The login that Codex CLI keeps in auth.json (F49): reading it, and what the token endpoint's
# responses mean.  JWTs are decoded and not verified: only dates and names are taken from them, and
# the upstream validates the rest.  All times are unix seconds.

AUTH_CLAIM: Final = "https://api.openai.com/auth"
_TOKEN_TEXT: Final = re.compile(r"[\x21-\x7e]{1,16384}")
_ACCOUNT_ID: Final = re.compile(r"[\x21-\x7e]{1,256}")
# A refresh that fails with one of these codes will never succeed (F54).
_REVOKED_CODES: Final = re.compile(
    "refresh_token_[a-z_]{1,32}|invalid_grant|invalid_refresh_token|revoked|"
    "token_(?:expired|invalidated|revoked)|app_session_terminated|account_session_expired|"
    "account_auth_invalidated|account_(?:deactivated|suspended|deleted)"
)
# Only with these statuses: a 5xx with such a code is a fault of the endpoint, which may pass.
_REVOKED_STATUSES: Final = frozenset({400, 401, 403})
_TOKEN_NAMES: Final = ("id_token", "access_token", "refresh_token")
_CODE_FIELDS: Final = ("code", "type", "error")


class LoginNeeded(Exception):
    """An account has no usable login.  The text says what to do, and contains no secret."""


class Credentials(NamedTuple):
    """One version of an auth.json, identified by `digest`, the SHA-256 of the file."""

    access_token: Secret
    # None: the login cannot be refreshed, and ends with its access token.
    refresh_token: Secret | None
    account_id: str | None
    plan: str | None
    # By the issuer's clock, as is `issued_at`; `refreshed_at` is by its writer's.
    expires_at: float | None
    refreshed_at: float | None
    digest: bytes
    issued_at: float | None = None


class RefreshOutcome(enum.Enum):
    """What a response of the token endpoint means."""

    DONE = enum.auto()
    REVOKED = enum.auto()  # no later attempt can succeed: somebody has to log in
    FAILED = enum.auto()  # a later attempt may succeed


def _claims(token: Json) -> JsonDict:
    """The payload of a JWT (RFC 7519 §3); empty if there is none."""
    _, _, rest = str(token).partition(".")
    payload, _, _ = rest.partition(".")
    try:
        # JWTs leave the padding out; more of it than is missing does no harm.
        raw = base64.urlsafe_b64decode(payload + "==")
    except ValueError:
        return {}
    return try_load_object(raw)


def parse_auth_file(raw: bytes) -> Credentials:
    """The login in an auth.json.  Tokens win over an API key (F50).  Raises: LoginNeeded.

    Everything but the access token may be missing: the file is another program's, which adds and
    drops members (F49), and a login that can be used is better than a strict reader.
    """
    value = try_load_object(raw)
    tokens = object_of(value.get("tokens"))
    access = first_text(_TOKEN_TEXT, tokens.get("access_token"))
    if access is None:
        raise LoginNeeded(_why_no_login(value))

    id_claims = _claims(tokens.get("id_token"))
    access_claims = _claims(access)
    id_account = object_of(id_claims.get(AUTH_CLAIM))
    access_account = object_of(access_claims.get(AUTH_CLAIM))

    # The account's id is in one of three places, the most reliable one first (F51).
    ids = [
        tokens.get("account_id"),
        id_account.get("chatgpt_account_id"),
        access_account.get("chatgpt_account_id"),
    ]
    for holder in (id_account, access_account, id_claims, access_claims):
        organizations = objects_of(holder.get("organizations"))
        ids += [organization.get("id") for organization in organizations[:1]]

    plans = [
        id_account.get("chatgpt_plan_type"),
        access_account.get("chatgpt_plan_type"),
    ]
    refresh = first_text(_TOKEN_TEXT, tokens.get("refresh_token"))
    return Credentials(
        access_token=Secret(access),
        refresh_token=Secret(refresh) if refresh else None,
        account_id=first_text(_ACCOUNT_ID, *ids),
        plan=first_text(_ACCOUNT_ID, *plans),
        expires_at=_unix_time(access_claims.get("exp")),
        refreshed_at=_written_time(value.get("last_refresh")),
        digest=hashlib.sha256(raw).digest(),
        issued_at=_unix_time(access_claims.get("iat")),
    )


def _why_no_login(value: JsonObject) -> str:
    """What an auth.json without an access token is, as the predicate of a sentence."""
    if not value:
        return "is empty or not valid JSON"
    if value.get("OPENAI_API_KEY"):
        return "contains an API key, which is for type openai, and no ChatGPT login"
    return "contains no ChatGPT login of Codex CLI"


def _written_time(value: Json) -> float | None:
    """The unix time of an ISO 8601 text; None if it is none."""
    try:
        return datetime.fromisoformat(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _unix_time(value: Json) -> float | None:
    """The number if it can be a time, within some 30,000 years; else None."""
    is_time = type(value) in {int, float} and abs(value) < 10**12
    return float(value) if is_time else None


def has_ended(credentials: Credentials, unix_now: float) -> bool:
    """Whether the access token has expired; one without a date has not."""
    return credentials.expires_at is not None and credentials.expires_at <= unix_now


def is_refresh_due(credentials: Credentials, unix_now: float, margin_seconds: float) -> bool:
    """Whether the token expires within the margin; without a date, whether it is old (F55)."""
    if credentials.expires_at is not None:
        return unix_now >= credentials.expires_at - margin_seconds

    refreshed_at = credentials.refreshed_at
    return refreshed_at is not None and unix_now >= refreshed_at + REFRESH_AGE_SECONDS


def is_later(credentials: Credentials, other: Credentials) -> bool:
    """Whether one version of a login was issued after the other.

    By the issuer's clock, if both tokens tell it: each version was written by the clock of its
    machine, which may have been set back in between.
    """
    pairs = (
        (credentials.issued_at, other.issued_at),
        (credentials.expires_at, other.expires_at),
    )
    for own, others in pairs:
        if own is not None and others is not None and own != others:
            return own > others
    return (credentials.refreshed_at or 0) > (other.refreshed_at or 0)


def clock_lead(credentials: Credentials, response: bytes, unix_now: float) -> float:
    """The seconds by which our clock is ahead, if it shows `unix_now` when a token was just issued.

    The token says when it expires, and the response, or else the token, for how long it is valid:
    the difference is the issuer's present.  If neither says so, a clock by which the new token has
    already expired is still known to be ahead.  0 if nothing proves that it is.
    """
    expires_at = credentials.expires_at
    issued_at = credentials.issued_at
    if expires_at is None:
        return 0.0

    lifetime = _unix_time(try_load_object(response).get("expires_in")) or 0.0
    if 0 < lifetime < UNIX_MAX:
        lead = unix_now + lifetime - expires_at
        return lead if lead > CLOCK_LEAD_SECONDS_MIN else 0.0

    if unix_now < expires_at - REFRESH_MARGIN_SECONDS:
        return 0.0

    if issued_at is not None and issued_at < expires_at:
        lifetime = min(expires_at - issued_at, REFRESH_AGE_SECONDS)
        return max(0.0, unix_now + lifetime - expires_at)

    has_expired = expires_at <= unix_now
    return unix_now + TOKEN_SECONDS_MIN - expires_at if has_expired else 0.0


def classify_refresh(status: int, body: bytes) -> RefreshOutcome:
    """What the token endpoint's response means.

    Failures are identified by their code, which comes with 400, 401 or 403 (F54).  The same status
    with another body may come from a proxy on the way: it says nothing about the login.
    """
    value = try_load_object(body)
    if status == 200 and first_text(_TOKEN_TEXT, value.get("access_token")):
        return RefreshOutcome.DONE

    if status in _REVOKED_STATUSES and first_text(_REVOKED_CODES, *_codes_of(value)):
        return RefreshOutcome.REVOKED
    return RefreshOutcome.FAILED


def _codes_of(value: JsonObject) -> list[Json]:
    """What may be the code of an error, wherever the issuer writes it."""
    error = value.get("error")
    detail = value.get("detail")
    codes = [error, value.get("code"), detail]
    for holder in (error, detail):
        codes += [object_of(holder).get(name) for name in _CODE_FIELDS]
    return codes


def merge_tokens(raw: bytes, body: bytes, unix_now: float) -> bytes:
    """The auth.json after a refresh; what the response leaves out stays, known or not (F52).

    The file is shared with Codex CLI, so it must stay one that Codex CLI can read.
    """
    value = try_load_object(raw)
    tokens = object_of(value.get("tokens"))
    response = try_load_object(body)
    for name in _TOKEN_NAMES:
        if token := first_text(_TOKEN_TEXT, response.get(name)):
            tokens[name] = token

    # As Codex CLI writes it: in UTC, with Z.
    moment = datetime.fromtimestamp(unix_now, UTC).isoformat(timespec="milliseconds")
    value["tokens"] = tokens
    value["last_refresh"] = moment.replace("+00:00", "Z")
    return json.dumps(value, indent=2).encode()


# A login by device code (F104): a person enters a short code on a page of the issuer, in whatever
# browser, while `pooler login` asks again and again whether that was done.

DEVICE_PATH: Final = "/codex/device"  # where a person enters the code
DEVICE_CODE_PATH: Final = "/api/accounts/deviceauth/usercode"
DEVICE_POLL_PATH: Final = "/api/accounts/deviceauth/token"
DEVICE_CALLBACK_PATH: Final = "/deviceauth/callback"  # only named, as OAuth requires: nobody calls
PROFILE_CLAIM: Final = "https://api.openai.com/profile"
_USER_CODE: Final = re.compile("[A-Za-z0-9-]{4,32}")  # shown on a terminal: no escape sequence
_CODE_WORD: Final = re.compile("[a-z_]{1,80}")
# What Codex CLI, and versions of it, write into an auth.json (F49).
_OF_AUTH_FILE: Final = frozenset({"auth_mode", "OPENAI_API_KEY", "tokens", "last_refresh"})
_NAME_IN_JSON: Final = re.compile(r'"(\w{1,32})"\s{0,8}:')


class DeviceCode(NamedTuple):
    """What a person is to enter, and what the program asks with whether that was done."""

    device_id: Secret
    user_code: str
    interval_seconds: float
    seconds_left: float  # until it expires


class PollOutcome(enum.Enum):
    """What a response to the question means whether a login has been granted."""

    GRANTED = enum.auto()
    PENDING = enum.auto()
    SLOW_DOWN = enum.auto()  # pending, and asked too often
    DENIED = enum.auto()
    EXPIRED = enum.auto()
    REFUSED = enum.auto()  # for another reason, which stays
    FAILED = enum.auto()  # the next question may get a response


# By a word in the code of an error (F105).
_POLL_WORDS: Final[Mapping[str, PollOutcome]] = {
    "slow_down": PollOutcome.SLOW_DOWN,
    "pending": PollOutcome.PENDING,
    "authorization_unknown": PollOutcome.PENDING,
    "denied": PollOutcome.DENIED,
    "declined": PollOutcome.DENIED,
    "expired": PollOutcome.EXPIRED,
}


class Holder(NamedTuple):
    """Whose a login is; what of it goes to a terminal is visible ASCII."""

    account_id: str | None
    user: str | None  # an account of a company has several
    email: str | None
    plan: str | None

    def is_same(self, other: Holder) -> bool:
        """Whether both are one person's login at one account."""
        return (self.account_id, self.user) == (other.account_id, other.user)

    def __str__(self) -> str:
        plan = self.plan and f"plan {self.plan}"
        account = self.account_id and f"account {self.account_id}"
        return ", ".join(filter(None, (self.email, plan, account))) or "an account without a name"


def with_config(command: str, config: str) -> str:
    """A command for a shell, with the path of pools.json if it is not the usual one."""
    return command if config == "pools.json" else f"{command} --config {shlex.quote(config)}"


def login_command(name: str, config: str) -> str:
    """The command that logs an account in; `config` is the path of pools.json."""
    return with_config(f"pooler login {name}", config)


def parse_device_code(body: bytes, unix_now: float) -> DeviceCode | None:
    """The issuer's response to a request for a code; None if it is none.

    Versions differ in names, and in whether a number is a text (F104).  A time that is far off is
    by another clock than ours, so the code is taken to be as good as new.
    """
    value = try_load_object(body)
    device_id = first_text(_TOKEN_TEXT, value.get("device_auth_id"))
    user_code = first_text(_USER_CODE, value.get("user_code"), value.get("usercode"))
    if device_id is None or user_code is None:
        return None

    interval = POLL_SECONDS
    with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
        interval = float(value["interval"])
    if not POLL_SECONDS_MIN <= interval <= POLL_SECONDS_MAX:
        interval = POLL_SECONDS

    expires_at = _written_time(value.get("expires_at"))
    left = DEVICE_SECONDS_MAX if expires_at is None else expires_at - unix_now
    if not DEVICE_SECONDS_MIN <= left <= DEVICE_SECONDS_MAX:
        left = DEVICE_SECONDS_MAX
    return DeviceCode(Secret(device_id), user_code, interval, left)


def classify_poll(status: int, body: bytes) -> PollOutcome:
    """What the issuer's response means while a person is to enter the code.

    Only a code that says so ends the wait: 403 and 404 mean that nobody has entered it yet (F105).
    A web page says nothing: it comes from a bot wall (F45), or from somebody's proxy.
    """
    if status == 200 and parse_grant(body) is not None:
        return PollOutcome.GRANTED

    code = error_code(body)
    for word, outcome in _POLL_WORDS.items():
        if word in code:
            return outcome

    if status == 429:
        return PollOutcome.SLOW_DOWN
    if is_web_page(body) or status in {200, 408} or status >= 500:
        return PollOutcome.FAILED
    return PollOutcome.PENDING if status in {403, 404} else PollOutcome.REFUSED


def error_code(body: bytes) -> str:
    """The code of an error of the issuer; "" if there is none."""
    return first_text(_CODE_WORD, *_codes_of(try_load_object(body))) or ""


def is_web_page(body: bytes) -> bool:
    """Whether a response is no JSON, but made for a browser."""
    return body.lstrip()[:1] == b"<"


def parse_grant(body: bytes) -> tuple[Secret, Secret] | None:
    """The authorization code of a granted login, and its verifier (RFC 7636 §4.1); else None."""
    value = try_load_object(body)
    code = first_text(_TOKEN_TEXT, value.get("authorization_code"))
    verifier = first_text(_TOKEN_TEXT, value.get("code_verifier"))
    if code is None or verifier is None:
        return None
    return Secret(code), Secret(verifier)


def new_auth_file(former: bytes, body: bytes, unix_now: float) -> bytes:
    """The auth.json of a new login, as Codex CLI writes it (F49); `body` has the tokens.

    Of the file that it replaces, `former`, only an API key is kept: that belongs to no login, and
    could not be had again.
    """
    api_key = try_load_object(former).get("OPENAI_API_KEY")
    fresh = {
        "auth_mode": "chatgpt",
        "OPENAI_API_KEY": api_key if isinstance(api_key, str) else None,
    }
    value = try_load_object(merge_tokens(json.dumps(fresh).encode(), body, unix_now))
    login = parse_auth_file(json.dumps(value).encode())
    value["tokens"]["account_id"] = login.account_id
    return json.dumps(value, indent=2).encode()


def may_replace(raw: bytes) -> bool:
    """Whether a file may give way to a login: it is an auth.json, or the rest of one.

    A rest is cut off somewhere, and names what is in an auth.json if it names anything.  A file of
    another program, too large to be read or with comments in it, is no JSON either.
    """
    if len(raw) > SECRET_FILE_BYTES_MAX:
        return False

    value = try_load_object(raw)
    names = value or _NAME_IN_JSON.findall(raw.decode("utf-8", "replace"))
    is_empty = not names and raw.strip() in {b"", b"{", b"{}"}
    return is_empty or not _OF_AUTH_FILE.isdisjoint(names)


def holder_of(raw: bytes) -> Holder | None:
    """Whose login an auth.json is; None if it has none."""
    try:
        login = parse_auth_file(raw)
    except LoginNeeded:
        return None

    tokens = object_of(try_load_object(raw).get("tokens"))
    claims = [_claims(tokens.get(name)) for name in _TOKEN_NAMES[:2]]
    accounts = [object_at(claim, AUTH_CLAIM) for claim in claims]
    profiles = [holder for claim in claims for holder in (claim, object_at(claim, PROFILE_CLAIM))]
    email = first_text(_ACCOUNT_ID, *(profile.get("email") for profile in profiles))
    users = [account.get(name) for account in accounts for name in ("chatgpt_user_id", "user_id")]
    user = first_text(_ACCOUNT_ID, *users, email)
    return Holder(login.account_id, user, email, login.plan)


################################################################
# CONFIGURATION
################################################################
# The bytes of pools.json and an environment in; frozen values out, or every problem at once, each
# with its JSON path.  A problem never repeats a secret.
#
#   checks      functions that turn the JSON of one field into its value
#   values      what the rest of the program gets: Account, Key, Pool, Config
#   specs       tables of the fields that each kind of object may have, with their checks
#   _Resolver   resolves {env:} and {file:}, and finds a secret that is used twice
#   _Loader     reads the objects, and collects the problems
#   doubts      warnings about what is accepted, but is probably a mistake
#   changes     what a reload logs
#
# The file is refused if it cannot mean what it says: an operator learns of a mistake when the
# pooler starts or reloads, and not from a client's failed request days later.  What may be meant
# but probably is not, is a doubt: `pooler check` prints it, and the pooler serves.  All problems
# are reported at once, so that a file with five mistakes takes one correction and not five.


class Routing(enum.StrEnum):
    """How a new session's account is chosen among those of the same priority."""

    STICKY = "sticky"
    QUOTA_FIRST = "quota_first"
    SOONEST_RESET = "soonest_reset"


# Values that were removed, and how the same is written now.  Whoever updates the pooler would
# otherwise only read that the value is unknown.
_ROUTINGS_GONE: Final = {
    "round_robin": "write 'sticky', which spreads sessions evenly",
    "failover": "write 'sticky', and give the accounts priority 0, 1, 2 in their order",
}


# Secrets that are none.  A key that was not filled in would get a 401 from its upstream, at the
# first request only, and the log would blame the account.  As a pool key, it would be known to
# everybody who has read the same documentation.  So each of these shapes is refused:
#
#   _VARIABLE       what another program would replace: shells, Docker, LiteLLM, secret stores
#   _ASSIGNMENT     a whole line of an environment file
#   _SCHEME         an Authorization header's value, of which the key is the second word
#   _PLACEHOLDER    what a person should have replaced
#
# The shapes are narrow: a real key that resembles one could not be used at all.
_VARIABLE: Final = re.compile(
    r"\$(?:env:)?[A-Za-z_]\w*|%[A-Za-z_]\w*%|.*(?:\$\{|\$\(|\{\{|\{env[:.]).*|"
    r"(?i:env|environ|file|op|vault|ssm|keyring|keychain|doppler|secret):[^\s]+|"
    r"!?(?i:env|getenv|file)[ (].*|"
    r"(?:os\.environ|os\.getenv|process\.env|import\.meta\.env|secrets\.|ENV\[)[^\s]*|"
    r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*_(?:KEY|TOKEN|SECRET|PASSWORD)|@[~/.]\S*",
)
_ASSIGNMENT: Final = re.compile(r"(?:export +|set +)?[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+ *=.*")
_PLACEHOLDER: Final = re.compile(
    r"(?s)<.*|\[.*\]|.*(?:\.{3}|…|\*{3}|x{6}|X{6}).*|"
    r"(?i:(?:[a-z]{2,6}[-_])?(?:your.*(?:key|token|secret|password|here).*|"
    r"(?:insert|enter|paste|put|replace|change|add)[-_ ]?"
    r"(?:me|this|it|with|your|my|api|key|secret|token|real)(?:[-_ ].*)?))|"
    r"(?i:.*[-_ ]here|todo|tbd|fixme|placeholder|changeit|change[-_ ]?me.*|null|undefined)",
)
_SCHEME: Final = re.compile("(?i:bearer|basic|authorization:) ")
_TYPOGRAPHIC_QUOTES: Final = ("\u2018", "\u2019", "\u201c", "\u201d")
_QUOTES: Final = ("'", '"', "`", *_TYPOGRAPHIC_QUOTES)


def _has_quotes(text: str) -> bool:
    """Whether a value was pasted with quotes, or one of them, around it."""
    return text.startswith(_QUOTES) or text.endswith(_QUOTES)


def _first_of(reasons: Iterable[tuple[object, str]]) -> str:
    """The text of the first reason whose condition holds, or ""."""
    for holds, text in reasons:
        if holds:
            return text
    return ""


def doubt_of_secret(secret: str) -> str:
    """Why a text cannot be the secret that was intended, or "": a predicate, as in "is JSON".

    The first reason is shown, so the most specific ones come first.
    """
    if len(secret) > DOUBTED_CHARS_MAX:
        return ""

    reasons = (
        (_has_quotes(secret), "still has its quotes"),
        (_ASSIGNMENT.fullmatch(secret), "is a line NAME=value of an environment file"),
        (_VARIABLE.fullmatch(secret), "is a variable that is not expanded here"),
        (_SCHEME.match(secret), "begins with a scheme, which is not part of the key"),
        (secret.startswith("{"), "is JSON, of which the key is only a part"),
        (_PLACEHOLDER.fullmatch(secret), "is a placeholder"),
    )
    return _first_of(reasons)


# Addresses.


class BaseUrl(NamedTuple):
    """Where an account's upstream is; `path` has no slash at its end, `host` no brackets."""

    is_tls: bool
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The value of a Host header: with the port, unless it is the scheme's own."""
        host, _, _ = self.address.rpartition(":")
        usual_port = 443 if self.is_tls else 80
        return host if self.port == usual_port else self.address

    @property
    def address(self) -> str:
        """Its host and port, even if the port is the scheme's default."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Proxy(NamedTuple):
    """An HTTP proxy that makes tunnels (CONNECT); `login` is "name:password" for it."""

    url: BaseUrl
    login: Secret | None = None
    source: str = ""  # where its URL stands, as `_Resolver.read` says


class Notify(NamedTuple):
    """Where notices go.  `target`, the path and query of the URL, may hold a token."""

    url: BaseUrl  # without its path
    target: Secret
    token: Secret | None
    source: str  # of the URL
    token_source: str


class Listen(NamedTuple):
    """A TCP address, or the path of a unix socket."""

    text: str
    host: str = ""
    port: int = 0
    unix_path: str | None = None
    is_optional: bool = False  # without IPv6, ::1 is not required

    @property
    def is_loopback(self) -> bool:
        """Whether no other machine can connect to it."""
        return self.unix_path is not None or _is_loopback(self.host)


# Both loopbacks: clients that look up "localhost" may try ::1 first.
DEFAULT_LISTEN: Final = (
    Listen("127.0.0.1:4000", "127.0.0.1", 4000),
    Listen("[::1]:4000", "::1", 4000, is_optional=True),
)
USUAL_URL: Final = "http://127.0.0.1:4000"  # of a server whose listen has not been set
REFRESH_URL: Final = BaseUrl(True, "auth.openai.com", 443, "/oauth/token")  # (F52)
REFRESH_URL_VARIABLE: Final = "CODEX_REFRESH_TOKEN_URL_OVERRIDE"  # Codex CLI's own (F57)
# Python's `ssl` honours it in every context that `create_default_context` makes.
KEY_LOG_VARIABLE: Final = "SSLKEYLOGFILE"
PROXY_VARIABLES: Final = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")  # of other programs; lower, too

# Names of accounts, pools, keys and operators.  They appear in JSON paths, log lines, labels of
# metrics and URLs of pages: with these characters none of them needs quoting or escaping.
NAME_CHARS_MAX: Final = 64
_NAME: Final = rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{NAME_CHARS_MAX - 1}}}"
_VERSION: Final = r"\d{1,4}(?:\.\d{1,4}){2}(?:-[a-z0-9.]{1,32})?"
# A label longer than 63 characters cannot be looked up (RFC 1035 §2.3.4).
_LABEL: Final = "[A-Za-z0-9_][A-Za-z0-9_-]{0,62}"
# As a browser writes it (RFC 6454 §6.2), of whatever scheme: apps have schemes of their own.  It
# is compared character by character, so another spelling of the same origin would never match.
_ORIGIN: Final = (
    r"(?:https?://(?:[a-z0-9._\-]+|\[[0-9a-f:.]+\])"
    r"|(?!https?:|file:|data:)[A-Za-z][A-Za-z0-9+.\-]*://[A-Za-z0-9._~%\-]+)(?::[0-9]{1,5})?"
)
_ORIGIN_WANTED: Final = (
    "like https://host or tauri://localhost, in lower case and without a path; "
    "null, *, file: and data: would allow pages that anybody can make"
)
_HOST_NAME: Final = rf"{_LABEL}(?:\.{_LABEL}){{0,126}}\.?|\[[0-9A-Fa-f:.]+\]"
_PORT_MAX: Final = 65535
_ANY_PORT: Final = r"[0-5]?\d{1,4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-5]"
_PORT: Final = rf"(?!0+\b)(?:{_ANY_PORT})"  # not 0
_ADDRESS: Final = re.compile(rf"({_HOST_NAME}):({_ANY_PORT})")
# A base URL has no login, query or fragment: the first would be a secret that is logged, and the
# others would be lost when a route is added.
_BASE_URL: Final = re.compile(
    rf"(https?)://({_HOST_NAME})(?::({_PORT}))?(/[A-Za-z0-9_.~/%-]*)?",
)
_PROXY_URL: Final = re.compile(rf"http://(?:([^@/\s]+)@)?({_HOST_NAME}):({_PORT})/?")
# Tokens of webhooks stand in their path or query, which may hold any visible ASCII but #.
_NOTIFY_URL: Final = re.compile(
    rf"(https?)://({_HOST_NAME})(?::({_PORT}))?([/?][!\x22$-~]*)?",
)
# What nobody on the way can read: with TLS, or to this machine.
_HERE: Final = r"localhost|127\.[0-9.]+|\[[0:]*(?:1|[Ff]{4}:.*)\]"
_SAFE: Final = {"pattern": rf"^\s*(?:https:|\{{|http://(?:{_HERE})(?:[:/?\s]|$))"}
UNIX_PATH_BYTES_MAX: Final = 107  # sun_path of Linux, without its zero (unix(7))
_SHA256: Final = re.compile(r"sha256:([0-9a-fA-F]{64})")
_REFERENCE: Final = re.compile(r"\{(env|file):([^{}]+)\}")
_VARIABLE_NAME: Final = re.compile("[A-Z_][A-Z0-9_]{0,63}")
# Sentinel for the value of a duplicate name (JSON has no tuples).
_TWICE: Final = ("the name occurs twice",)


def _is_loopback(host: str) -> bool:
    """Whether a host is this machine.

    The only name is localhost: no name is resolved here, and what another name resolves to may
    change after the file was checked.
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# Checks.  Each turns the JSON of a field into its value.  It raises ValueError with one argument
# for each problem; a problem that begins with "[0]" or ".name" is about a member.  Nothing is
# converted: "4" is not 4, and 1 is not true.  Whoever wrote the one may have meant something else.
Check = Callable[[Json], Any]
Spec = Mapping[str, Check]  # of each member that an object has


@dataclass(frozen=True, slots=True)
class Rule:
    """A check, and what JSON Schema can say of what it accepts: `pooler schema` is made of these.

    So a schema accepts all that its check accepts, and often more.  Its patterns are written for
    Python and for ECMA 262, which is the syntax of JSON Schema.
    """

    run: Check
    schema: JsonObject

    def __call__(self, value: Json) -> Any:  # noqa: ANN401 (of whatever kind the field is)
        """The value that the JSON stands for.  Raises: ValueError."""
        return self.run(value)


class Setting(NamedTuple):
    """A field of pools.json: one row of a spec."""

    check: Rule
    about: str  # what it means, for the schema and `pooler check --explain`
    default: str = ""  # in words; "": nothing


Settings = Mapping[str, Setting]  # of each field that an object may have
REQUIRED: Final = "required"  # instead of a default


_KINDS: Final = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a string",
    list: "a list", dict: "an object", type(None): "null",
}  # fmt: skip


def _typed(value: Json, *kinds: type[T]) -> T:
    """The value, which is of one of the kinds; the last of them is the widest.

    Types are compared, as `isinstance` takes true for a whole number.
    """
    if value is _TWICE:
        raise ValueError(*_TWICE)
    actual = type(value)
    if actual not in kinds:
        raise ValueError(f"must be {_KINDS[kinds[-1]]}, not {_KINDS[actual]}")
    return cast(T, value)


_flag: Final = Rule(lambda value: _typed(value, bool), {"type": "boolean"})


def _object(value: Json) -> JsonDict:
    """A check for objects, whatever they hold."""
    return _typed(value, dict)


def _number(low: float, high: float, kinds: Sequence[type[float]] = (int,)) -> Rule:
    """A check for numbers from `low` to `high`: whole ones, if `kinds` are not given.

    It refuses NaN, too, which is not between any two numbers.
    """

    def check(value: Json) -> float:
        number: float = _typed(value, *kinds)
        if not low <= number <= high:
            raise ValueError(f"must be from {_shown(low)} to {_shown(high)}")
        return number

    kind = "number" if float in kinds else "integer"
    return Rule(check, {"type": kind, "minimum": low, "maximum": high})


def _shown(number: float) -> str:
    """A number in digits that can be pasted into pools.json."""
    return f"{number:g}" if isinstance(number, float) else str(number)


def _matching(pattern: str) -> JsonDict:
    """The schema of strings that match a pattern as a whole."""
    return {"type": "string", "pattern": f"^(?:{pattern})$"}


def _text(pattern: str, description: str) -> Rule:
    """A check for strings that match a pattern as a whole; a problem says: must be `description`.

    The text itself is not repeated: it may be a secret in the wrong place.
    """

    def check(value: Json) -> str:
        text = _typed(value, str)
        if not re.fullmatch(pattern, text):
            raise ValueError(f"must be {description}")
        return text

    return Rule(check, _matching(pattern))


_string: Final = _text(r"[^\x00]*", "a string")


def _each(check: Check, members: Iterable[tuple[str, Json]]) -> list[Any]:
    """The values of members, which come with their paths; raises the problems of all of them."""
    values: list[Any] = []
    problems: list[str] = []
    for subpath, member in members:
        try:
            values.append(check(member))
        except ValueError as error:
            problems.append(f"{subpath}: {error}")

    if problems:
        raise ValueError(*problems)
    return values


def _list(check_member: Rule) -> Rule:
    """A check for lists, whose members differ and pass a check.

    A name that is listed twice is mostly one that should have been changed after it was copied.
    """

    def check(value: Json) -> tuple[Any, ...]:
        members: list[Json] = _typed(value, list)

        def check_place(index: int) -> Json:
            if members[index] in members[:index]:
                raise ValueError("is listed twice")
            return check_member(members[index])

        places = ((f"[{index}]", index) for index in range(len(members)))
        return tuple(_each(check_place, places))

    return Rule(check, {"type": "array", "uniqueItems": True, "items": check_member.schema})


def _members(value: Json) -> JsonDict:
    """A check for objects whose members have names of our form, whatever they hold."""
    members = _object(value)
    problems = [_name_problem(name) for name in members if not re.fullmatch(_NAME, name)]
    if problems:
        raise ValueError(*problems)
    return members


def _objects(schema: JsonObject, minimum: int = 0) -> Rule:
    """A check as `_members`; `schema` is that of a member, which `_Loader` reads."""
    return Rule(
        _members,
        {
            "type": "object",
            "minProperties": minimum,
            "propertyNames": _matching(_NAME),
            "additionalProperties": schema,
        },
    )


def _described(kind: str) -> JsonDict:
    """The schema of a kind of object, which has its place in the whole schema."""
    return {"$ref": f"#/$defs/{kind}"}


def _name_problem(name: str) -> str:
    """What is wrong with the name of a member, behind the path to it."""
    if not name:
        return ": a name is empty"

    if len(name) > NAME_CHARS_MAX:
        start = name[:NAME_CHARS_MAX]
        return f".{start}…: the name has {len(name)} characters; the maximum is {NAME_CHARS_MAX}"

    # Would it be a name if something stood before it?
    if not name[0].isalnum() and re.fullmatch(_NAME, f"a{name[:-1]}"):
        return f".{name}: the name must begin with a letter or digit"
    return f".{name}: the name must consist of letters, digits and _.-"


def _routing(value: Json) -> Routing:
    """A check for the routing of a pool."""
    text = _typed(value, str)
    if text in _ROUTINGS_GONE:
        raise ValueError(f"{text!r} was removed; {_ROUTINGS_GONE[text]}")

    names = [routing.value for routing in Routing]
    if text not in names:
        raise ValueError(f"unknown routing; {_did_you_mean(text, names)}")
    return Routing(text)


def is_model_name(text: str) -> bool:
    """Whether a text can be the name of a model.

    Servers list names with spaces, in any script.  Characters that cannot be printed would break
    the lines and tables in which names are shown.
    """
    is_short = len(text) <= MODEL_CHARS_MAX
    return is_short and text.isprintable() and text.strip() != ""


def _check_model(value: Json) -> str:
    """A check for the name of a model."""
    text = _typed(value, str)
    if not is_model_name(text):
        raise ValueError("must be a model name")
    return text


_MODEL_NAME: Final = {
    **_matching(r"(?=.*\S)[^\x00-\x1f\x7f-\x9f]*"),
    "maxLength": MODEL_CHARS_MAX,
}
_model: Final = Rule(_check_model, _MODEL_NAME)
_models: Final = _list(_model)


def _named_by_models(value: Json) -> JsonDict:
    """A check for objects whose names are models, whatever their members hold."""
    members = _object(value)
    if not all(map(is_model_name, members)):
        raise ValueError("has a name that is not a model name")
    return members


def _by_model(schema: JsonObject) -> Rule:
    """A check as `_named_by_models`; `schema` is that of a member, which `_Loader` reads."""
    return Rule(
        _named_by_models,
        {"type": "object", "propertyNames": _MODEL_NAME, "additionalProperties": schema},
    )


def _served(value: Json) -> dict[str, str]:
    """A check for an account's models: the upstream's name of each by the pool's.

    In a list both names are the same.  An object is for a pool whose accounts call one model by
    different names.  It has at least one member, as {} could mean all models or none.
    """
    if not isinstance(value, dict):
        return {name: name for name in _models(value)}

    names = _named_by_models(value)
    if not names:
        raise ValueError("must name at least one model")

    _each(_model, ((f".{name}", upstream_name) for name, upstream_name in names.items()))
    return names


# The ends of the URLs in providers' documentation.  People paste these whole, and every request
# would go to .../chat/completions/chat/completions, which is a 404.  A longer one comes before its
# own end, so that the problem names all that must go.
_ROUTES_OF_APIS: Final = (
    "/responses/compact", "/responses", "/chat/completions", "/completions", "/chat", "/models",
    "/embeddings", "/messages",
)  # fmt: skip


_BASE_URL_SCHEMA: Final = {
    **_matching(_BASE_URL.pattern),
    "not": {"pattern": f"[^/](?:{'|'.join(_ROUTES_OF_APIS)})/*$"},
}


def _base_url(value: Json, example: str = "https://host/v1") -> BaseUrl:
    """A check for an upstream's address; a problem shows `example`, and not the address."""
    match = _BASE_URL.fullmatch(_string(value))
    if match is None:
        raise ValueError(f"must look like {example}")

    scheme, host, digits, path = match.groups("")
    is_tls = scheme == "https"
    usual_port = 443 if is_tls else 80
    port = int(digits or usual_port)

    path = path.rstrip("/")
    for route in _ROUTES_OF_APIS:
        if path.lower().endswith(route):
            raise ValueError(f"must end before {route}, which the pooler adds")
    return BaseUrl(is_tls, host.strip("[]"), port, path)


def _proxy(text: str) -> Proxy:
    """What a proxy's URL says.  Raises: ValueError, which does not repeat it.

    Name and password are percent-decoded (RFC 3986 §3.2.1), so that they may contain @ and :.
    """
    match = _PROXY_URL.fullmatch(text)
    if match is None:
        raise ValueError("must look like http://host:port or http://name:password@host:port")

    name, _, password = (match[1] or "").partition(":")
    if doubt := doubt_of_secret(name) or doubt_of_secret(password):
        raise ValueError(f"its name or password {doubt}")

    login = Secret(f"{unquote(name)}:{unquote(password)}") if name else None
    url = BaseUrl(False, match[2].strip("[]"), int(match[3]), "")
    return Proxy(url, login)


def _notify(value: Json) -> Json:
    """A check for a URL, or an object with one: `_load_notify` reads it."""
    return value if isinstance(value, dict) else _string(value)


def _notify_url(text: str) -> tuple[BaseUrl, Secret]:
    """The address in a webhook's URL, and its path and query.  Raises: ValueError."""
    match = _NOTIFY_URL.fullmatch(text)
    if match is None:
        raise ValueError("must look like https://host/path")

    scheme, host, digits, target = match.groups("")
    is_tls = scheme == "https"
    usual_port = 443 if is_tls else 80
    port = int(digits or usual_port)

    url = BaseUrl(is_tls, host.strip("[]"), port, "")
    return url, Secret(target if target.startswith("/") else f"/{target}")


def _listen(value: Json) -> Listen:
    """A check for one address to listen at; port 0 lets the system choose a free one."""
    text = _string(value)
    if text.startswith("unix:/"):
        path = text.removeprefix("unix:")
        if len(path.encode()) > UNIX_PATH_BYTES_MAX:
            raise ValueError(f"the path of a socket has at most {UNIX_PATH_BYTES_MAX} bytes")
        return Listen(text, unix_path=path)

    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise ValueError("must be host:port, [v6]:port or unix:/path")
    return Listen(text, match[1].strip("[]"), int(match[2]))


_LISTEN: Final = _matching(rf"unix:/[^\x00]{{0,{UNIX_PATH_BYTES_MAX - 1}}}|{_ADDRESS.pattern}")
_listen_list: Final = _list(Rule(_listen, _LISTEN))


def _listens(value: Json) -> tuple[Listen, ...]:
    """A check for one address to listen at, or a list of them."""
    if value == []:
        raise ValueError("must name at least one address")
    if not isinstance(value, list):
        return (_listen(value),)
    return tuple(_listen_list(value))


_MOMENT: Final = "a date (2027-01-01) or a time (2027-01-01T12:00:00Z)"
_moment_text: Final = _text(r"\d{4}-\d{2}-\d{2}(T[0-9:.]+(Z|[+-][0-9:]+))?", _MOMENT)


def _expiry(value: Json) -> float:
    """A check for the end of a key, which gives unix time.

    A date means the end of that day in UTC; a time needs its offset (RFC 3339 §5.6), as the
    server's own time zone is rarely the one that is meant.
    """
    text = _moment_text(value)
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC) + timedelta(days=1)
        return moment.timestamp()
    except OverflowError:
        raise ValueError("is too far away; a key without it never expires") from None
    except ValueError:  # as of the 30th of February
        raise ValueError(f"must be {_MOMENT}") from None


_path_text: Final = _text(r"[^\x00~][^\x00]*", "a path that does not begin with ~")
_UNEXPANDED: Final = r"\$\w|\$[{(]|\{|<|%\w+%"
_QUOTE: Final = f"[{''.join(_QUOTES)}]"
_PATH_SCHEMA: Final = {
    **_path_text.schema,
    "not": {"pattern": rf"{_UNEXPANDED}|://|^\s|\s$|^{_QUOTE}|{_QUOTE}$"},
}


def _path(value: Json) -> str:
    """A check for the path of a file.

    Nothing expands ~ or variables here, so a path with them would name a file that does not exist.
    For a login, that would not even be an error: it is created by logging in.
    """
    text: str = _path_text(value)
    if re.search(_UNEXPANDED, text):
        raise ValueError("must be a path; variables are not expanded here")
    if _has_quotes(text):
        raise ValueError("must be a path, without quotes around it")
    if "://" in text or text != text.strip():
        raise ValueError("must be a path, not a URL, and without spaces around it")
    return text


# Values.  They are frozen: a request keeps the account, key and pool with which it began, while a
# reload replaces the Config as a whole.


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account; one of type `codex` has an `auth_file`, as written, the others an `api_key`."""

    name: str
    base_url: BaseUrl
    api_key: Secret
    auth_file: str | None = None
    allow_plain_http: bool = False
    # Smaller ones are used first; a larger one is a reserve.
    priority: int = 0
    paused: bool = False
    # How many requests it may have in progress.
    concurrent: int
    # The upstream's name of each model by the pool's; None: those that its own /models lists.
    models: Mapping[str, str] | None = None
    first_event_seconds: float
    ca_file: str | None = None
    websocket: bool
    client_version: str | None = None
    # Where the API key was given: literal, env or file; the reference itself, if it is one.
    source: str = ""
    reference: str = ""
    # A digest of where its requests go, as whom, and which authorities are trusted there.
    identity: bytes = b""

    @property
    def is_codex(self) -> bool:
        """Whether it is a ChatGPT account, and no API key."""
        return self.auth_file is not None

    def name_of(self, model: str) -> str:
        """What its upstream calls a model of the pool."""
        return (self.models or {}).get(model, model)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One pool key.  `digest` is the SHA-256 of the secret; the secret itself is not kept."""

    pool: str
    name: str
    digest: bytes = b""
    # Where the secret was given: literal, env, file or sha256.
    source: str = ""
    # Those that it may use; None: all that its pool has.
    models: tuple[str, ...] | None = None
    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    concurrent: int
    # In unix time; None: never.
    expires: float | None = None
    paused: bool = False

    def is_usable(self, unix_now: float) -> bool:
        """Whether it is neither paused nor expired."""
        return not self.paused and (self.expires is None or unix_now < self.expires)


class Operator(NamedTuple):
    """May read the pooler's status, and nothing under /v1."""

    name: str
    digest: bytes
    source: str


@dataclass(frozen=True, slots=True)
class Alias:
    """What another name for a model stands for; None leaves a field as the client sent it."""

    model: str
    effort: str | None = None
    service_tier: str | None = None


class Price(NamedTuple):
    """What a million tokens of a model cost, in the currency that the operator has in mind."""

    fresh: float  # of input
    cached: float  # of input that was in the upstream's cache
    output: float

    def cost_of(self, tokens: Mapping[str, int]) -> float:
        """The cost of one response, by the fields of Usage."""
        # Cached tokens are a part of the input; an upstream that counts otherwise gets no credit.
        cached = min(tokens["cached_tokens"], tokens["input_tokens"])
        fresh = tokens["input_tokens"] - cached
        whole = fresh * self.fresh + cached * self.cached
        return (whole + tokens["output_tokens"] * self.output) / 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Accounts that stand in for each other, and the keys that may use them."""

    name: str
    accounts: tuple[Account, ...]
    # Those that it offers; None: whatever its accounts serve.
    models: tuple[str, ...] | None = None
    aliases: Mapping[str, Alias]
    routing: Routing = Routing.STICKY
    keys: tuple[Key, ...]

    @property
    def has_codex(self) -> bool:
        """Whether any of its accounts is a ChatGPT account."""
        return any(account.is_codex for account in self.accounts)

    def meant_by(self, name: str) -> Alias:
        """The model that a client means, which may have called it by an alias."""
        return self.aliases.get(name, Alias(name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All of pools.json, and what the environment adds to it.  A reload replaces it as a whole."""

    accounts: Mapping[str, Account]
    pools: Mapping[str, Pool]
    operators: tuple[Operator, ...]
    listen: tuple[Listen, ...] = DEFAULT_LISTEN
    allow_public: bool = False
    base_path: str = ""
    allowed_origins: tuple[str, ...] = ()
    # What a Host header may name; None: anything.
    hosts: frozenset[str] | None = None
    # For all that goes out; None: connections are made directly.
    proxy: Proxy | None = None
    # The file that a restart goes on from, as written; None: nothing outlives the process.
    state: str | None = None
    # Who is told that an account needs its operator, or that a pool cannot serve a model.
    notify: Notify | None = None
    # By the model's name in a pool.
    prices: Mapping[str, Price] = field(default_factory=dict)
    limits: Limits
    token_url: BaseUrl = REFRESH_URL
    source: str = "pools.json"  # the path of the file
    warnings: tuple[str, ...] = ()

    @property
    def keys(self) -> Iterator[Key]:
        """The keys of all pools."""
        return (key for pool in self.pools.values() for key in pool.keys)


# Specs: the fields of each kind of object.  An unknown field is refused, as a misspelt one would
# otherwise be a setting that silently does nothing: a limit that does not limit, or a pause that
# does not pause.  The check of a field that holds objects looks at their names only: `_Loader`
# reads the objects, so that their problems have their own paths.


class _AccountType(NamedTuple):
    """What an account needs as its credential, may not have, and has as its default address.

    A field of the other type is refused: with both credentials it would depend on the program
    which of two accounts was meant.
    """

    required: str
    foreign: tuple[str, ...]
    base_url: BaseUrl


_TYPES: Final[Mapping[str, _AccountType]] = {
    "openai": _AccountType(
        required="api_key",
        foreign=("auth_file", "client_version"),
        base_url=BaseUrl(True, "api.openai.com", 443, "/v1"),
    ),
    "codex": _AccountType(
        required="auth_file",
        foreign=("api_key",),
        base_url=BaseUrl(True, "chatgpt.com", 443, "/backend-api/codex"),  # F1
    ),
}
_type: Final = Rule(
    _text("|".join(_TYPES), " or ".join(map(repr, _TYPES))).run, {"enum": [*_TYPES]}
)
_file: Final = Rule(_path, _PATH_SCHEMA)

# Secrets, or references to them: `_Resolver` reads them.
_LITERAL: Final = "[!-;=-~]"  # visible ASCII without <, which begins a placeholder
_presented: Final = Rule(
    _string,
    _matching(
        rf"{_SHA256.pattern}|{_REFERENCE.pattern}|\s*(?!\{{|[sS][hH][aA]256:)"
        rf"{_LITERAL}{{{SECRET_CHARS_MIN},{BEARER_BYTES_MAX}}}\s*"
    ),
)
_api_key: Final = Rule(
    _string,
    _matching(rf"{_REFERENCE.pattern}|(?!\{{|sha256:)\s*{_LITERAL}{{1,{API_KEY_CHARS_MAX}}}\s*"),
)


def _url_or_reference(pattern: re.Pattern[str]) -> Rule:
    """A check for a URL that may hold a secret, so it may be a reference: `_Loader` reads it."""
    return Rule(_string, _matching(rf"{_REFERENCE.pattern}|\s*(?:{pattern.pattern})\s*"))


_notify_text: Final = _url_or_reference(_NOTIFY_URL)

_TOP: Final[Settings] = {
    "accounts": Setting(
        _objects(_described("account"), 1), "The upstream accounts, by name.", REQUIRED
    ),
    "pools": Setting(
        _objects(_described("pool"), 1),
        "Pools, by name: accounts that stand in for each other, and the keys of clients.",
        REQUIRED,
    ),
    "operators": Setting(
        _objects(_presented.schema),
        "Names and tokens of those who may use /mcp, /admin, /metrics and `pooler status`; "
        "make one with `pooler key --operator`.  Without any, these routes return 404.",
    ),
    "listen": Setting(
        Rule(_listens, {"anyOf": [_LISTEN, {**_listen_list.schema, "minItems": 1}]}),
        "One address or a list: host:port, [v6]:port, or unix:/path (mode 0660).  Port 0: a free "
        "one, which is logged.  A change needs a restart.",
        "127.0.0.1:4000 and, with IPv6, [::1]:4000",
    ),
    "allow_public": Setting(
        _flag,
        "Silences the warning about an address at which other machines can connect.",
        "false",
    ),
    # Compared as it stands: with a slash at its end, or dots in it, no path could begin with it.
    "base_path": Setting(
        _text(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9_.~-]+)*", "a path like /pooler"),
        "Prefix of all routes, such as /pooler, which a reverse proxy must not strip.",
    ),
    # Pages that may send requests from a browser, to which the pooler is otherwise closed.
    "allowed_origins": Setting(
        _list(_text(_ORIGIN, _ORIGIN_WANTED)),
        "Origins that may call, as browsers and apps write them: https://host, tauri://localhost.  "
        "CORS headers are never sent: this is for apps, and for pages that your proxy serves from "
        "the same origin.",
        "none, but pages of this machine may call /mcp",
    ),
    # Compared with Host headers after their port was cut off.
    "hosts": Setting(
        _list(_text(_HOST_NAME, "a host name without a port")),
        "Names that a Host header may have, on all but the two health routes; they replace the "
        "default.",
        "loopback names when listening on loopback only, otherwise any",
    ),
    "proxy": Setting(
        _url_or_reference(_PROXY_URL),
        "http://host:port of an HTTP proxy (CONNECT) for all that goes out, with name:password@ if "
        "it wants a login.  Variables like HTTPS_PROXY are not used.",
        "none",
    ),
    "state": Setting(
        _file,
        "Path, relative to pools.json, of one small JSON file that a restart goes on from.",
        "none: pins, cooldowns and sums end with the process",
    ),
    "prices": Setting(
        _by_model(_described("price")),
        "What models cost, by their names in pools, so that operators see costs.  A request is "
        "priced when it ends.",
    ),
    "notify": Setting(
        Rule(_notify, {"anyOf": [_described("notify"), {**_notify_text.schema, "allOf": [_SAFE]}]}),
        "URL of a webhook that is told what needs you, or an object.",
        "none",
    ),
    "limits": Setting(Rule(_object, _described("limits")), "Other values for limits."),
    "$schema": Setting(_string, "Ignored here: editors find the schema of this file by it."),
}
_price: Final = _number(0, PRICE_MAX, (int, float))
_PRICE: Final[Settings] = {
    "input": Setting(_price, "Of a million tokens of input.", REQUIRED),
    "cached": Setting(
        _price, "Of a million tokens of input that the provider had in its cache.", "that of input"
    ),
    "output": Setting(_price, "Of a million tokens of output.", REQUIRED),
}
_NOTIFY: Final[Settings] = {
    "url": Setting(
        _notify_text, "Where notices are sent: a URL, {env:NAME} or {file:PATH}.", REQUIRED
    ),
    "token": Setting(_api_key, "A secret that is sent as a bearer token.", "none"),
    "allow_plain_http": Setting(
        _flag, "Allows http:// to other machines, in a network that you trust.", "false"
    ),
}
_POOL: Final[Settings] = {
    # Names, which are looked up after all accounts have been read.
    "accounts": Setting(
        Rule(_list(_string), {**_list(_string).schema, "minItems": 1}),
        "Names of its accounts.",
        REQUIRED,
    ),
    "models": Setting(_models, "The only models that it serves.", "all models of its accounts"),
    "aliases": Setting(
        _by_model({"anyOf": [_MODEL_NAME, _described("alias")]}),
        "Other names for its models: name and model, or name and object.  In what is sent only the "
        "value of model changes.",
    ),
    "routing": Setting(
        Rule(_routing, {"enum": [*Routing]}),
        "How a new session's account is chosen among those of one priority; see the topic routing.",
        Routing.STICKY,
    ),
    "keys": Setting(
        _objects({"anyOf": [_presented.schema, _described("key")]}),
        "The keys of clients: name and secret, or name and object; make one with `pooler key`.",
    ),
}
_ACCOUNT: Final[Settings] = {
    "base_url": Setting(
        Rule(_base_url, _BASE_URL_SCHEMA),
        "Where its API is, without the route.",
        "https://api.openai.com/v1; of type codex https://chatgpt.com/backend-api/codex",
    ),
    # A secret or a reference to one, as is the `key` of a key.
    "api_key": Setting(
        _api_key,
        'Of type openai, and required there: the key, {env:NAME} or {file:PATH}; "none" if the '
        "upstream needs none.",
    ),
    "auth_file": Setting(
        _file,
        "Of type codex, and required there: path of its login, relative to pools.json; "
        "`pooler login NAME` makes it.",
    ),
    # Over plain HTTP everybody on the way can read the key: it takes a decision.
    "allow_plain_http": Setting(
        _flag,
        "Allows http:// to other machines, which sends keys and prompts unencrypted.",
        "false",
    ),
    # Accounts of one priority share the sessions; a wider range would have no use.
    "priority": Setting(
        _number(-1000, 1000),
        "Smaller numbers are used first, in strict order; a larger one is a reserve.",
        "0",
    ),
    "paused": Setting(_flag, "true takes it out of rotation.", "false"),
    # Never 0: that is what `paused` is for.
    "concurrent": Setting(
        _number(1, 10_000),
        "Requests that it may have in progress.",
        f"account_streams_max ({_DEFAULTS.account_streams_max})",
    ),
    "models": Setting(
        Rule(
            _served,
            {
                "anyOf": [
                    _models.schema,
                    {**_by_model(_MODEL_NAME).schema, "minProperties": 1},
                ]
            },
        ),
        "Models that it serves: a list, or an object from the pool's names to this upstream's, so "
        "that two accounts can serve one model under different names.",
        "what its /models lists, asked at most once an hour",
    ),
    # Its own, as a local server may load a model for minutes.
    "first_event_seconds": Setting(
        _number(0.1, HOUR, (int, float)),
        "How long a stream's first event may take.",
        f"first_event_seconds_max ({_DEFAULTS.first_event_seconds_max:g})",
    ),
    # Of a private authority, for an upstream whose certificate the system does not trust.
    "ca_file": Setting(
        _file,
        "PEM file of a private authority, relative to pools.json, that is trusted in addition; "
        "of type codex for the token endpoint, too.",
        "none",
    ),
    # Whether it accepts WebSockets: most upstreams with API keys do not.
    "websocket": Setting(
        _flag,
        "Whether it takes Responses WebSockets.",
        "true for type codex and api.openai.com, else false",
    ),
    # Of Codex CLI, as which the account asks for its models: older ones get fewer (F20).
    "client_version": Setting(
        _text(_VERSION, "a version like 0.169.0"),
        "Of type codex: the version of Codex CLI to send; old ones are shown no new models.",
        f"{CODEX_VERSION}, or a higher one that a client has sent",
    ),
    "type": Setting(
        _type, "openai: an API key of a compatible provider.  codex: a ChatGPT login.", REQUIRED
    ),
}
_KEY: Final[Settings] = {
    "models": Setting(_models, "The only models or aliases that it may use.", "all of its pool"),
    # A limit of 0 would refuse every request: that is what `paused` is for.
    "requests_per_minute": Setting(_number(1, 100_000), "Requests in any 60 seconds.", "no limit"),
    "tokens_per_day": Setting(
        _number(1, 10**12),
        "Tokens in a UTC day, as reported; estimated (4 bytes a token) if none are.  A restart "
        "forgets them, unless state is set.",
        "no limit",
    ),
    "concurrent": Setting(
        _number(1, 10_000),
        "Requests that it may have in progress.",
        f"key_streams_max ({_DEFAULTS.key_streams_max})",
    ),
    "expires": Setting(
        Rule(_expiry, _moment_text.schema),
        "A date, 2030-01-01 (to the end of that day in UTC), or a time with its offset.",
        "never",
    ),
    "paused": Setting(_flag, "true disables it.", "false"),
    "key": Setting(
        _presented, "The secret, {env:NAME}, {file:PATH}, or its sha256: line.", REQUIRED
    ),
}
# Efforts and tiers differ from model to model and are added often (F13), so anything that looks
# like one is accepted; `_doubts_of_aliases` warns of those that are not known.
_ALIAS: Final[Settings] = {
    "model": Setting(_model, "The model that it stands for.", REQUIRED),
    "effort": Setting(
        _text("[a-z]{1,32}", "a level like low or high"),
        "The reasoning effort to ask for, for clients that cannot set it.",
        "as the client asks",
    ),
    "service_tier": Setting(
        _text("[a-z_]{1,32}", "a tier like priority"),
        "The service tier to ask for.",
        "as the client asks",
    ),
}


def _limit_setting(limit: dataclasses.Field[Any]) -> Setting:
    """The row of one field of `Limits`: a count is a whole number, a time may have a fraction."""
    kinds = (int,) if limit.type == "int" else (int, float)
    check = _number(limit.metadata["low"], limit.metadata["high"], kinds)
    default = getattr(_DEFAULTS, limit.name)
    size = f" ({default // MIB} MiB)" if limit.name.endswith("bytes_max") else ""
    about = limit.metadata["about"]
    return Setting(check, f"{about[:1].upper()}{about[1:]}.", _shown(default) + size)


_LIMITS: Final[Settings] = {
    limit.name: _limit_setting(limit) for limit in dataclasses.fields(Limits)
}


@dataclass(eq=False, slots=True)
class _Resolver:
    """Resolves secrets, and knows where each one is used.

    A secret is a literal, or a reference to an environment variable or to the first line of a
    file.  So pools.json can be copied, or kept under version control, without its secrets.
    """

    env: Mapping[str, str]
    read_file: Callable[[str], str]
    claims: dict[str | bytes, str] = field(default_factory=dict)  # paths, by secret or login

    def claim(self, secret: str | bytes, path: str, problem: str) -> None:
        """Note where a secret or a login is used.

        Raises: ValueError, if it is used at another path, which `problem` names.
        """
        claimant = self.claims.setdefault(secret, path)
        if claimant != path:
            raise ValueError(problem.format(claimant))

    def read(self, text: str) -> tuple[str, str]:
        """The secret that `text` is or refers to, and its source.  Raises: ValueError.

        No secret begins with a brace, so a misspelt reference is never taken for one.
        """
        if not text.startswith("{"):
            return text, "literal"

        match = _REFERENCE.fullmatch(text)
        if match is None:
            raise ValueError("only {env:NAME} and {file:PATH} are supported")

        source, name = match.groups()
        secret = self.variable(name) if source == "env" else self.first_line(name)
        # Editors and Docker leave a line end or spaces behind the secret.
        return secret.strip(), source

    def variable(self, name: str) -> str:
        """The value of an environment variable.  Raises: ValueError."""
        value = self.env.get(name)
        if value is None:
            # Whoever pastes a secret in the place of a name must not read it in the log.
            shown = f"variable {name}" if _VARIABLE_NAME.fullmatch(name) else "variable it names"
            raise ValueError(f"the environment {shown} is not set")
        return value

    def first_line(self, path: str) -> str:
        """The first line of a file.  Raises: ValueError."""
        try:
            text = self.read_file(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise ValueError(f"the file cannot be read: {reason}") from None
        return text.partition("\n")[0]

    def digest(self, path: str, text: str, command: str) -> tuple[bytes, str]:
        """The digest of a pool key or operator token, and its source.  Raises: ValueError.

        No two may be the same: limits and counts of one key would be another's, and a pool key
        that is also an operator's token would show to its holder what only operators may see.
        """
        if match := _SHA256.fullmatch(text):
            digest, source = bytes.fromhex(match[1]), "sha256"
        elif text.lower().startswith("sha256:") or "<" in text:
            problem = "is a placeholder" if "<" in text else "must have 64 hex digits after sha256:"
            raise ValueError(f"{problem}; run `{command}` and paste the line it prints")
        else:
            secret, source = self.read(text)
            _check_presented(secret, command)
            digest = digest_of(secret)

        self.claim(digest, path, "is the same secret as {}")
        return digest, source

    def api_key(self, text: str) -> tuple[Secret, str]:
        """The key for an upstream, and its source.  Raises: ValueError.

        It may be short, as that of a local server is, but a digest of it would be of no use: the
        upstream needs the key itself.
        """
        advice = "must be the key itself, {env:NAME} or {file:PATH}"
        if "<" in text or text.startswith("sha256:"):
            raise ValueError(advice)

        secret, source = self.read(text)
        if doubt := doubt_of_secret(secret):
            raise ValueError(f"{doubt}; it {advice}")

        # A space or a line end in it would be a malformed Authorization header, or two.
        if not re.fullmatch(rf"[\x21-\x7e]{{1,{API_KEY_CHARS_MAX}}}", secret):
            raise ValueError('must be visible ASCII; use "none" if the upstream needs no key')
        return Secret(secret), source


@dataclass(eq=False, slots=True)
class _Loader:
    """Loads pools.json once, and collects its problems and warnings.

    After a problem there will be no Config, so from there on a part is None: it is still read, so
    that all problems are reported at once, but nothing is made of it.
    """

    resolver: _Resolver
    source: str
    limits: Limits = field(default_factory=Limits)
    is_proxied_elsewhere: bool = False  # all outgoing connections pass through another machine
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)  # paths that have a problem already

    def refuse(self, path: str, problem: str) -> None:
        """Record a problem at a path; it may begin with the rest of the path.

        A person who swapped a name and its key must not find the key in a log; a control character
        in a name must not forge a line there.
        """
        self.refused.add(path)
        is_of_member = problem.startswith(("[", ".", ":"))
        line = path + problem if is_of_member else f"{path}: {problem}"

        full_path, colon, reason = line.partition(": ")
        names = ["(hidden)" if looks_secret(name) else name for name in full_path.split(".")]
        masked = ".".join(names) + colon + reason
        printable = [char if char.isprintable() else "?" for char in masked]
        self.problems.append("".join(printable))

    def warn(self, path: str, warning: str) -> None:
        """Record a warning, which keeps nobody from serving: `check` and the log show it."""
        self.warnings.append(f"{path}: {warning}")

    @contextlib.contextmanager
    def at(self, path: str) -> Iterator[None]:
        """A ValueError inside is a problem at `path`, or several."""
        try:
            yield
        except ValueError as error:
            for problem in error.args:
                self.refuse(path, problem)

    def read(self, path: str, value: Json, spec: Settings) -> dict[str, Any]:
        """The valid fields of one object; a required field that is missing or empty is refused."""
        fields: dict[str, Any] = {}
        prefix = f"{path}." if path else ""
        with self.at(path or self.source):
            members = _object(value)
            for name, content in members.items():
                with self.at(prefix + name):
                    if name not in spec:
                        raise ValueError(f"unknown field; {_hint_for(name, spec)}")
                    fields[name] = spec[name].check(content)

            for name, setting in spec.items():
                if setting.default == REQUIRED:
                    self.require(prefix + name, members.get(name))
        return fields

    def require(self, path: str, value: Json) -> None:
        """Refuse a value that is missing or empty, unless its path has a problem already."""
        if value in (None, "", [], {}) and path not in self.refused:
            self.refuse(path, "is required and must not be empty")

    # Accounts.  What an account leaves out comes from its type, or from the limits.

    def account(self, name: str, value: Json) -> Account | None:
        """The account that an object describes; None if the file has a problem."""
        path = f"accounts.{name}"
        fields = self.read(path, value, _ACCOUNT)
        # Without a valid type, the credential is not checked: either kind may be meant.
        kind = fields.pop("type", None)
        if kind:
            self.check_type(path, value, kind)

        url = fields.setdefault("base_url", _TYPES[kind or "openai"].base_url)
        self.check_transport(f"{path}.base_url", url, fields.get("allow_plain_http"))
        fields.setdefault("websocket", kind == "codex" or url.host == "api.openai.com")
        fields.setdefault("concurrent", self.limits.account_streams_max)
        fields.setdefault("first_event_seconds", self.limits.first_event_seconds_max)

        if text := fields.pop("api_key", ""):
            with self.at(f"{path}.api_key"):
                fields["api_key"], fields["source"] = self.resolver.api_key(text)
                fields["reference"] = text if fields["source"] != "literal" else ""
        login = fields.get("auth_file")
        if login is not None:
            fields["auth_file"] = self.auth_file(path, login)
            login = posixpath.normpath(login)
        if self.problems:
            return None

        # Two accounts of one identity are one to their upstream: a reload that only renames an
        # account, or changes its priority, keeps the connections that it has.  A login is named as
        # in pools.json: another working directory at the next start does not make it another.
        fields.setdefault("api_key", Secret(""))  # of an account of type codex
        credential = (reveal(fields["api_key"]), login)
        identity = digest_of(repr((kind, url, credential, fields.get("ca_file"))))
        return Account(name=name, identity=identity, **fields)

    def is_here(self, url: BaseUrl) -> bool:
        """Whether what is sent to an address does not leave this machine.

        A proxy elsewhere carries everything: to it, a loopback address means its own machine.
        """
        return _is_loopback(url.host) and not self.is_proxied_elsewhere

    def check_transport(self, path: str, url: BaseUrl, is_plain_allowed: Json) -> None:
        """Refuse an address if others could read what is sent there."""
        reader = ""
        if _is_loopback(url.host) and self.is_proxied_elsewhere:
            self.warn(path, "to the proxy, which carries all connections, this is its own machine")
            reader = " to the proxy"

        if not (url.is_tls or self.is_here(url) or is_plain_allowed):
            hint = "use https://, or set allow_plain_http if you trust the network"
            what = "notices" if path.startswith("notify") else "the key"
            self.refuse(path, f"http:// sends {what} in the clear{reader}; {hint}")

    def check_type(self, path: str, value: JsonObject, kind: str) -> None:
        """Refuse an account that lacks its credential, or has what belongs to another type."""
        required = _TYPES[kind].required
        self.require(f"{path}.{required}", value.get(required))
        for name in _TYPES[kind].foreign:
            if name in value:
                self.refuse(f"{path}.{name}", f"does not apply to type {kind!r}")

    def auth_file(self, path: str, file: str) -> str:
        """A login's path, relative to pools.json.

        No two accounts may share a login: each would spend the refresh token of the other (F53).
        """
        return self.own_file(f"{path}.auth_file", file, path, "each account needs its own login")

    def own_file(self, path: str, file: str, claimant: str, hint: str) -> str:
        """The path, relative to pools.json, of a file that the pooler replaces."""
        folder = posixpath.dirname(self.source)
        file = posixpath.normpath(posixpath.join(folder, file))
        with self.at(path):
            if file == posixpath.normpath(self.source):
                raise ValueError("is pools.json itself, which would be replaced")
            self.resolver.claim(file, claimant, f"is already used by {{}}: {hint}")
        return file

    # Pools.  They are read after all accounts, as they refer to these by name.

    def key(self, pool: str, name: str, value: Json) -> Key | None:
        """A pool key, its text alone or an object; None if the file has a problem."""
        path = f"pools.{pool}.keys.{name}"
        if isinstance(value, str):
            inner = path
            fields: dict[str, Any] = {"key": value}
            self.require(path, value)
        else:
            inner = f"{path}.key"
            fields = self.read(path, value, _KEY)

        fields.setdefault("concurrent", self.limits.key_streams_max)
        if text := fields.pop("key", ""):
            with self.at(inner):
                fields["digest"], fields["source"] = self.resolver.digest(inner, text, "pooler key")
        return None if self.problems else Key(pool=pool, name=name, **fields)

    def pool(self, name: str, value: Json, accounts: Mapping[str, Account | None]) -> Pool | None:
        """The pool that an object describes; None if the file has a problem."""

        def find_account(member: Json) -> Account | None:
            account_name = _string(member)
            # If accounts could not be read as a whole, no name in a pool can be called wrong.
            if account_name not in accounts and "accounts" not in self.refused:
                hint = _did_you_mean(account_name, accounts)
                raise ValueError(f"no account has this name; {hint}")
            return accounts.get(account_name)

        path = f"pools.{name}"
        accounts_setting = _POOL["accounts"]._replace(check=_list(Rule(find_account, {})))
        fields = self.read(path, value, {**_POOL, "accounts": accounts_setting})

        members = object_of(value)
        models = _known_models(members.get("models"))
        fields["aliases"] = {
            alias: self.alias(f"{path}.aliases.{alias}", alias, target, models)
            for alias, target in fields.get("aliases", {}).items()
        }

        keys = object_of(members.get("keys"))
        fields["keys"] = tuple(self.key(name, *item) for item in keys.items())
        if not keys:
            self.warn(f"{path}.keys", "no keys, so nobody can use this pool")
        return None if self.problems else Pool(name=name, **fields)

    def alias(
        self, path: str, name: str, value: Json, models: Collection[str] | None
    ) -> Alias | None:
        """What an alias stands for: a model, or an object with one; None if it has a problem.

        `models` are those of the pool; None if it lists none: then anything may be meant.
        """
        fields: dict[str, Any] = {}
        if isinstance(value, dict):
            fields = self.read(path, value, _ALIAS)
        else:
            with self.at(path):
                fields["model"] = _model(value)
        if "model" not in fields:
            return None

        # An alias with the name of a model would hide it; one that leads nowhere, or to another
        # alias, would be a model that no account serves.
        target = fields["model"]
        if models is not None and (name in models or target not in models):
            hint = "" if name in models else _model_hint(target, models)
            self.refuse(path, f"must map a name that is not in models to one that is{hint}")
        return Alias(**fields)

    # The top of the file, and the environment.

    def read_limits(self, value: Json) -> Limits:
        """The limits, which the other parts have as defaults: they are read first."""
        self.limits = Limits(**self.read("limits", value, _LIMITS))
        # As text a body may be 8 times as large, and one key may use half of the room for all.
        if self.limits.bodies_bytes_max < 8 * self.limits.body_bytes_max:
            self.warn("limits.bodies_bytes_max", "should be at least 8 times body_bytes_max")
        return self.limits

    def operators(self, tokens: JsonObject) -> tuple[Operator, ...]:
        """The operators whose tokens are valid; no token may be a pool key, too."""
        operators = []
        for name, token in tokens.items():
            path = f"operators.{name}"
            with self.at(path):
                secret = _string(token)
                digest, source = self.resolver.digest(path, secret, "pooler key --operator")
                operators.append(Operator(name, digest, source))
        return tuple(operators)

    def proxy(self, text: str) -> Proxy | None:
        """The proxy that `text` is or refers to; None if it has a problem."""
        proxy: Proxy | None = None
        with self.at("proxy"):
            url, source = self.resolver.read(text)
            proxy = _proxy(url)._replace(source=source)
            self.is_proxied_elsewhere = not _is_loopback(proxy.url.host)
        return proxy

    def warn_of_proxies(self) -> None:
        """Warn of variables that make other programs use a proxy: here they do nothing.

        They could come from anywhere, and where requests go is decided by pools.json alone.
        """
        hint = "a proxy is used only if pools.json has one under proxy"
        for name in PROXY_VARIABLES:
            for variable in (name, name.lower()):
                if self.resolver.env.get(variable):
                    self.warn(f"{variable} is set but not used", hint)

    def token_url(self) -> BaseUrl:
        """Where logins are refreshed: at the usual place, or where the environment says (F57)."""
        text = self.resolver.env.get(REFRESH_URL_VARIABLE)
        url = REFRESH_URL
        if not text:
            return url

        with self.at(REFRESH_URL_VARIABLE):
            url = _base_url(text, "https://host/oauth/token")
            if not (url.is_tls or self.is_here(url)):
                raise ValueError("must be https://, because refresh tokens are sent there")
        return url

    def warn_of_token_url(self, url: BaseUrl, accounts: Iterable[Account | None]) -> None:
        """Warn of the one destination that pools.json does not decide, if a login goes there."""
        is_used = any(account is not None and account.is_codex for account in accounts)
        if is_used and self.resolver.env.get(REFRESH_URL_VARIABLE):
            receiver = f"logins are refreshed at {url.authority}, which gets their refresh tokens"
            self.warn(f"{REFRESH_URL_VARIABLE} is set", receiver)

    def warn_of_key_log(self) -> None:
        """Warn of the file to which Python's TLS writes the keys of every connection."""
        if self.resolver.env.get(KEY_LOG_VARIABLE):
            reader = "whoever reads that file can decrypt all connections to upstreams"
            self.warn(f"{KEY_LOG_VARIABLE} is set", reader)

    def warn_of_public(self, listens: Iterable[Listen]) -> None:
        """Warn of addresses at which other machines can connect: the pooler itself has no TLS."""
        hint = "put a TLS proxy in front of it, and set allow_public: true if this is intended"
        for listen in listens:
            if not listen.is_loopback:
                self.warn("listen", f"{listen.text} is open to other machines; {hint}")

    def config(self, value: Json) -> Config:
        """The whole configuration; members that have a problem are still read in full.

        Raises: ConfigRefused, if there is any problem.
        """
        fields = self.read("", value, _TOP)
        fields.pop("$schema", None)
        members = object_of(value)
        fields["limits"] = self.read_limits(fields.get("limits", {}))

        # Before the accounts: it decides which of their addresses are on this machine.
        if "proxy" in fields:
            fields["proxy"] = self.proxy(fields["proxy"])
        else:
            self.warn_of_proxies()
        if "notify" in fields:
            fields["notify"] = _load_notify(self, fields["notify"])
        fields["token_url"] = self.token_url()
        self.warn_of_key_log()

        fields["accounts"] = accounts = {
            name: self.account(name, content)
            for name, content in object_of(members.get("accounts")).items()
        }
        self.warn_of_token_url(fields["token_url"], accounts.values())
        fields["pools"] = {
            name: self.pool(name, content, accounts)
            for name, content in object_of(members.get("pools")).items()
        }
        if "state" in fields:
            hint = "it needs a file of its own"
            fields["state"] = self.own_file("state", fields["state"], "state", hint)
        fields["operators"] = self.operators(object_of(members.get("operators")))
        fields["prices"] = {
            model: _read_price(self, f"prices.{model}", content)
            for model, content in fields.get("prices", {}).items()
        }

        listens = fields.setdefault("listen", DEFAULT_LISTEN)
        if not fields.get("allow_public"):
            self.warn_of_public(listens)
        fields["hosts"] = _hosts_of(fields.get("hosts"), listens)

        if self.problems:
            raise ConfigRefused(sorted(set(self.problems)))
        return Config(**fields, source=self.source, warnings=tuple(self.warnings))


def _read_price(loader: _Loader, path: str, value: Json) -> Price | None:
    """The price that an object describes; None if the file has a problem.

    A price may be 0, so it is its absence that is refused.  Without one of their own, cached tokens
    cost as much as the others.
    """
    fields = loader.read(path, value, _PRICE)
    if loader.problems:
        return None
    cached = fields.get("cached", fields["input"])
    return Price(fields["input"], cached, fields["output"])


def _load_notify(loader: _Loader, value: Json) -> Notify | None:
    """Where notices go, a URL or an object; None if it has a problem."""
    fields, place = {"url": value}, "notify"
    if isinstance(value, dict):
        fields, place = loader.read("notify", value, _NOTIFY), "notify.url"
    else:
        loader.require("notify", value)

    token: Secret | None = None
    token_source = ""
    with loader.at("notify.token"):
        if "token" in fields:
            token, token_source = loader.resolver.api_key(fields["token"])

    notify: Notify | None = None
    with loader.at(place):
        if fields.get("url"):
            text, source = loader.resolver.read(fields["url"])
            url, target = _notify_url(text)
            loader.check_transport(place, url, fields.get("allow_plain_http"))
            notify = Notify(url, target, token, source, token_source)
    return notify


def _check_presented(secret: str, command: str) -> None:
    """Raises: ValueError, if a client could not present this secret, or should not."""
    if doubt := doubt_of_secret(secret):
        advice = f"run `{command}` and paste the line it prints, or write {{env:NAME}}"
        raise ValueError(f"{doubt}; {advice}")

    # Visible ASCII only: anything else would not pass through an Authorization header unchanged.
    # A hash must never be a password: it stands in files that are not kept secret.
    is_hash = secret.lower().startswith("sha256:")
    if is_hash or not re.fullmatch(rf"[\x21-\x7e]{{{SECRET_CHARS_MIN},}}", secret):
        wanted = f"at least {SECRET_CHARS_MIN} visible ASCII characters"
        raise ValueError(f"must have {wanted}; `{command}` generates one")

    if len(secret) > BEARER_BYTES_MAX:
        raise ValueError(
            f"has more than {BEARER_BYTES_MAX} characters, so no client can present it"
        )


def _known_models(value: Json) -> set[str] | None:
    """The models in a pool's list, which may contain duplicates; None if the list is invalid."""
    if not isinstance(value, list):
        return None
    are_names = all(isinstance(name, str) and is_model_name(name) for name in value)
    return set(value) if are_names else None


# Hints for misspelt names.


def _did_you_mean(name: str, choices: Collection[str], likeness: float = 0.6) -> str:
    """A hint: the choice that is meant, however its words are joined; else all choices.

    `likeness` is how much a name must resemble a choice, as `difflib` counts it: 1 is equal.
    """
    by_plain = {_plain(choice): choice for choice in choices}
    nearest = difflib.get_close_matches(_plain(name), list(by_plain), 1, likeness)
    if nearest:
        return f"did you mean {by_plain[nearest[0]]!r}?"
    return f"known: {', '.join(choices)}"


def _model_hint(target: str, models: Collection[str]) -> str:
    """A hint at the model of a pool that an alias means; "" if none resembles its target.

    The pool's models are not listed: a key may have been pasted among them.
    """
    hint = _did_you_mean(target, sorted(models))
    return f"; {hint}" if hint.startswith("did") else ""


def _plain(name: str) -> str:
    """A name without what people write differently: case, and the marks between words."""
    return re.sub("[-_ ]", "", name).lower()


# What other programs call a field of ours, in words that do not resemble it.
_ELSEWHERE_CALLED: Final = {
    "paused": "enabled disabled active",
    "priority": "weight",
    "requests_per_minute": "rpm",
    "tokens_per_day": "tpd",
    "first_event_seconds": "timeout",
    "routing": "strategy policy",
    "listen": "port bind address",
    "base_url": "apibase endpoint url",
    "key": "token secret",
    "notify": "webhook notifications notices alerts",
    "api_key": "key",
}


# Limits that pools.json could once set: they are constants now, or no longer used.  The hint for
# such a name must not be the limit that happens to resemble it.
_FIXED_LIMITS: Final = frozenset(
    "bearer_bytes_max body_idle_seconds_max body_seconds_max connect_seconds_max decoded_bytes_max "
    "decoded_ratio_max demotion_seconds event_bytes_max events_bytes_max handshake_events_max "
    "head_bytes_max head_fields_max head_seconds_max hold_seconds_max idle_connection_seconds_max "
    "idle_connections_max json_depth_max json_separators_max keep_alive_seconds_max "
    "keyless_connections_max mcp_body_bytes_max pin_idle_seconds_max pins_max "
    "probe_interval_seconds queue_length_max refresh_margin_seconds refresh_pause_seconds "
    "refresh_seconds_max reset_seconds_max response_pins_max target_bytes_max unary_bytes_max "
    "upstream_head_bytes_max upstream_interim_max websocket_frames_max "
    "websocket_handshake_seconds_max websocket_message_bytes_max websocket_upstream_bytes_max "
    "write_stall_seconds_max".split()
)
_FIELD_OWNERS: Final[tuple[tuple[Settings, str], ...]] = (
    (_TOP, "to the top of the file"),
    (_LIMITS, "under limits"),
    (_ACCOUNT, "to an account"),
    (_POOL, "to a pool"),
    (_KEY, "to a key"),
    (_NOTIFY, "to notify"),
)


def _hint_for(name: str, spec: Settings) -> str:
    """The hint for an unknown field: what was meant, where it belongs, or that it is gone.

    A field in the wrong object is the most common mistake that is not a misspelling.  It comes
    after a strong resemblance, as `key` in a pool means `keys` and does not belong to a key.
    """
    if name in _FIXED_LIMITS:
        return "this limit can no longer be set"

    for field_name, words in _ELSEWHERE_CALLED.items():
        if field_name in spec and _plain(name) in words.split():
            return f"did you mean {field_name!r}?"

    strong_hint = _did_you_mean(name, spec, 0.75)
    if strong_hint.startswith("known"):
        for other_spec, owner in _FIELD_OWNERS:
            if name in other_spec:
                return f"it belongs {owner}"
    return _did_you_mean(name, spec)


def _hosts_of(hosts: Sequence[str] | None, listens: Sequence[Listen]) -> frozenset[str] | None:
    """The names that a Host header may have; None: any.

    On loopback only, a foreign name is DNS rebinding: a page's own host name was made to resolve
    to this machine.  No browser can connect to a unix socket.
    """
    if hosts is not None:
        return frozenset(name.lower() for name in hosts)

    tcp = [listen for listen in listens if listen.unix_path is None]
    if not tcp or not all(listen.is_loopback for listen in tcp):
        return None

    own_names = {listen.text.rpartition(":")[0] for listen in tcp}
    return frozenset({"localhost", "127.0.0.1", "[::1]"} | own_names)


# Text that is not JSON.


def _object_of(pairs: list[tuple[str, Json]]) -> JsonDict:
    """A JSON object in which a repeated name has the value `_TWICE`.

    `json.loads` would keep the last value silently: of two keys with one name, the first would be
    gone.
    """
    members: JsonDict = {}
    for name, value in pairs:
        members[name] = _TWICE if name in members else value
    return members


_FIELD_NAMES: Final = frozenset().union(_TOP, _POOL, _ACCOUNT, _KEY, _NOTIFY, _LIMITS)
# Python says what it expected, which does not help somebody who wrote a comment.  So the text at
# that place is checked first: what it begins with, and what is wrong; the first match counts.
_COMMENTS: Final = ("//", "/*", "#")
_LAST_COMMAS: Final = (",}", ",]")
_MISTAKES: Final = (
    (_COMMENTS, "a comment; JSON has none"),
    ((*_LAST_COMMAS, "}", "]"), "a comma before a closing bracket; remove it"),
    (_TYPOGRAPHIC_QUOTES, 'a typographic quote; JSON uses " only'),
    (("'",), 'a single quote; JSON uses " only'),
    (("True", "False", "None"), "JSON writes true, false and null in lower case"),
    ((",",), "one comma too many"),
)
# Python's messages that say enough, in words for people who write no JSON otherwise.
_MESSAGES: Final = {
    "Extra data": "more text after the end of the JSON",
    "Unterminated string starting at": "a string that is not closed",
    "Invalid control character at": "a line break or tab within a string",
    "Invalid \\escape": "a backslash in a string; write two of them",
    "Invalid \\uXXXX escape": "a backslash in a string; write two of them",
    "Expecting ',' delimiter": "a comma is missing before this",
    "Expecting ':' delimiter": "a colon is missing before this",
}


def describe_bad_json(text: str, offset: int, message: str) -> str:
    """Where and why text is no JSON: what is wrong, the line itself, and a caret; three lines.

    Of an empty file there is only the first.
    `offset` and `message` are those of Python's error.  Of the line only field names and
    punctuation are shown: the rest may be a secret.
    """
    if not text.strip():
        return "line 1: the file is empty; delete it, and `pooler init` writes a new one"

    offset = min(offset, len(text.rstrip()))  # if it ends too early: after what is there
    before = text[:offset].rstrip()
    if before.endswith(",") and text[offset : offset + 1] in {"}", "]"}:
        offset = len(before) - 1  # Python before 3.13 reports the bracket

    rest = text[offset : offset + 1] + text[offset + 1 :].lstrip()[:SHOWN_CHARS_MAX]
    mistake = _mistake_in(rest.strip(), message.partition(": ")[0])

    # Only the part of the line around the mistake: a file may be one long line.
    line_start = text.rfind("\n", 0, offset) + 1
    line = text[line_start:].partition("\n")[0].rstrip("\r")
    column = offset - line_start
    first = max(0, column - SHOWN_CHARS_MAX)
    part = line[first : column + SHOWN_CHARS_MAX]

    masked = re.sub(r"[^\s{}\[\],:\"]+", _masked, part)
    shown = "".join(char if char.isprintable() else " " for char in masked)
    caret = " " * (column - first) + "^"
    number = text.count("\n", 0, offset) + 1
    return f"line {number}, column {column + 1}: {mistake}\n  {shown}\n  {caret}"


def _mistake_in(rest: str, message: str) -> str:
    """What is wrong where `rest` begins; `message`: the first part of Python's."""
    is_plain = rest.startswith((*_COMMENTS, *_LAST_COMMAS))
    if message in _MESSAGES and not is_plain:
        return _MESSAGES[message]
    if not rest:
        return "it ends too early; a bracket or a quote is not closed"

    for beginnings, mistake in _MISTAKES:
        if rest.startswith(beginnings):
            return mistake
    return "something is missing before this: a comma, a colon or a quote"


def _masked(match: re.Match[str]) -> str:
    """A word of pools.json if it is known not to be secret; else asterisks of the same length.

    The line is logged, and broken JSON has no fields by which a secret could be recognized.
    """
    word = match[0]
    is_known = word in _FIELD_NAMES or word in (*_COMMENTS, "*/")
    return word if is_known else "*" * len(word)


# Doubts: what is probably a mistake, but no reason not to serve.  Each is a line that begins with
# its JSON path: `check` prints them, and the start logs them.  They are made from the values, so
# they see what defaults and references came to.


def doubts_of(config: Config, unix_now: float) -> list[str]:
    """What a person should know of a configuration that is accepted, each with its JSON path."""
    doubts = [*_doubts_of_top(config), *_doubts_of_shared_secrets(config)]
    for account in config.accounts.values():
        doubts += _doubts_of_account(account, config)

    for pool in config.pools.values():
        doubts += _doubts_of_pool(pool)
        doubts += _doubts_of_aliases(pool)
        doubts += _doubts_of_keys(pool, unix_now)
    return doubts


def _doubts_of_top(config: Config) -> Iterator[str]:
    """Doubts about the top of the file, and accounts that nobody uses."""
    # An operator who wanted to allow every host would see each request refused with a 403.
    if config.hosts == frozenset():
        yield "hosts: is empty, so every request is refused"
    for name, other in (("proxy", config.proxy), ("notify", config.notify)):
        if other is not None and (doubt := _doubt_of_own(other.url, config.listen)):
            yield f"{name}: {doubt}"
    # Routes have /v1 anyway: a prefix that repeats it is mostly a client's base URL.
    if f"{config.base_path}/".startswith("/v1/"):
        yield f"base_path: is put before /v1, so a route is {config.base_path}/v1/responses"

    used = {account.name for pool in config.pools.values() for account in pool.accounts}
    for name in config.accounts:
        if name not in used:
            yield f"accounts.{name}: is in no pool, so it is never used"
    yield from _doubts_of_prices(config)


def _doubts_of_prices(config: Config) -> Iterator[str]:
    """Doubts about models with a price that no pool offers: nothing would ever cost it."""
    offered: set[str] = set()
    for pool in config.pools.values():
        models = _listed_models(pool.accounts) if pool.models is None else set(pool.models)
        if models is None:  # whatever its accounts serve
            return
        offered |= models

    for name in config.prices:
        if name not in offered:
            hint = _did_you_mean(name, sorted(offered))
            yield f"prices.{name}: no pool offers this model (an alias has no price); {hint}"


def _doubts_of_shared_secrets(config: Config) -> Iterator[str]:
    """Doubts about pool keys that an upstream knows, too: it could use the pool itself."""
    upstreams = {
        digest_of(reveal(account.api_key)): name for name, account in config.accounts.items()
    }
    for key in config.keys:
        if key.digest in upstreams:
            path = f"pools.{key.pool}.keys.{key.name}"
            yield f"{path}: is also the api_key of {upstreams[key.digest]}"


def _doubts_of_account(account: Account, config: Config) -> Iterator[str]:
    """Doubts about an account's address, key and models."""
    path = f"accounts.{account.name}"
    url = account.base_url
    if doubt := _doubt_of_url(account) or _doubt_of_own(url, config.listen):
        yield f"{path}.base_url: {doubt}"
    # "none" is for local servers: here each request would get a 401.
    if url.host == "api.openai.com" and reveal(account.api_key) == "none":
        yield f'{path}.api_key: "none" is not accepted by api.openai.com'
    if account.models is not None:
        yield from _doubts_of_served(f"{path}.models", account.models)


def _doubts_of_served(path: str, models: Mapping[str, str]) -> Iterator[str]:
    """The doubts about an account's models."""
    if not models:
        yield f"{path}: is empty, so it serves nothing"
    for index, (name, upstream_name) in enumerate(models.items()):
        # In a list both are the same.
        subpath = f"[{index}]" if name == upstream_name else f".{name}"
        if doubt := _doubt_of_name(name) or _doubt_of_name(upstream_name):
            yield f"{path}{subpath}: {doubt}"


def _doubt_of_own(url: BaseUrl, listens: Iterable[Listen]) -> str:
    """Why what is sent to an address comes back to the pooler, or "".

    Each request would become another one, until all places are taken.
    """
    for listen in listens:
        is_any = listen.is_loopback or listen.host in _EVERYWHERE
        is_here = url.host == listen.host or (_is_loopback(url.host) and is_any)
        if is_here and url.port == listen.port and listen.unix_path is None:
            return "is where this pooler listens, so requests would come back to it"
    return ""


# Addresses that stand for all of a machine's own.
_EVERYWHERE: Final = {str(ipaddress.IPv4Address(0)), "::"}
_UNMEANT_NAME: Final = re.compile(r"\$\w+|.*(?:\$\{|\{\{|\{env:|\{file:).*|<.*>")


def _doubt_of_name(name: str) -> str:
    """Why a text is probably not a model's name, or "".

    Servers choose the names of their models, so none of this is impossible.
    """
    reasons = (
        (name != name.strip(), "has a space at its beginning or end"),
        ("*" in name, "names are compared as they stand; * is not a wildcard"),
        (_UNMEANT_NAME.fullmatch(name), "is a variable or placeholder that is not replaced here"),
    )
    return _first_of(reasons)


def _doubts_of_names(path: str, names: Sequence[str] | None, emptiness: str) -> Iterator[str]:
    """The doubts about an allow-list of models; `emptiness`: what it means if it is empty."""
    if names == ():
        yield f"{path}: is empty, so {emptiness}"
    for index, name in enumerate(names or ()):
        if doubt := _doubt_of_name(name):
            yield f"{path}[{index}]: {doubt}"


# Where well-known providers have their APIs: a base URL that ends before it gets a 404 for all.
_PATHS_OF_HOSTS: Final = {
    "api.openai.com": "/v1", "openrouter.ai": "/api/v1", "api.groq.com": "/openai/v1",
    "api.mistral.ai": "/v1", "api.x.ai": "/v1", "api.together.xyz": "/v1",
    "api.anthropic.com": "/v1",
}  # fmt: skip
# In providers' documentation, and in examples of this one.
_PLACEHOLDER_HOST: Final = re.compile(
    r"(?i:(?:^|[.-])your[.-]|(?:^|\.)example\.(?:com|net|org)$|(?:^|[.-])placeholder(?:[.-]|$))"
)
# Providers whose API is at the root of their host.
_PATHLESS_HOSTS: Final = frozenset({"api.deepseek.com", "api.perplexity.ai"})


def _doubt_of_url(account: Account) -> str:
    """Why there is probably no API at an account's address, or "".

    The two types of accounts have different APIs at OpenAI (F1): with the other one's address each
    request gets a 401 or a 404, which looks as if the credential were wrong.
    """
    url = account.base_url
    if account.is_codex:
        if url.host == "api.openai.com":
            return "this address takes API keys; the type of such an account is openai"
        is_odd = url.host == "chatgpt.com" and url.path != "/backend-api/codex"
        return "should end in /backend-api/codex" if is_odd else ""

    path = _PATHS_OF_HOSTS.get(url.host, "")
    is_pathless = not url.path and url.host not in _PATHLESS_HOSTS
    reasons = (
        (_PLACEHOLDER_HOST.search(url.host), "is a placeholder; write the host of your upstream"),
        (url.path.endswith("/v1/v1"), "has /v1 twice"),
        (
            url.host == "chatgpt.com",
            "this address takes ChatGPT logins; the type of such an account is codex",
        ),
        (not url.path.startswith(path), f"should end in {path}, where this provider has its API"),
        (is_pathless, "has no path; most APIs are under /v1"),
    )
    return _first_of(reasons)


def _doubts_of_keys(pool: Pool, unix_now: float) -> Iterator[str]:
    """Doubts about each key of a pool, and whether any of them can be used.

    An expired key gets the same 401 as an unknown one: only here the operator sees why.
    """
    for key in pool.keys:
        path = f"pools.{pool.name}.keys.{key.name}"
        yield from _doubts_of_names(f"{path}.models", key.models, "this key may use no model")
        if key.expires is not None and key.expires <= unix_now:
            yield f"{path}.expires: this key has expired"

    if pool.keys and not any(key.is_usable(unix_now) for key in pool.keys):
        consequence = "all of them are paused or expired, so nobody can use this pool"
        yield f"pools.{pool.name}.keys: {consequence}"


# As upstreams call them; others only cause a warning, as upstreams may add more.
_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra")
_ALIAS_TIERS: Final = ("auto", "default", "fast", "flex", "priority", "scale", "ultrafast")


def _doubts_of_aliases(pool: Pool) -> Iterator[str]:
    """Doubts about what aliases add to a request; its upstream would refuse that, or ignore it."""
    for name, alias in pool.aliases.items():
        path = f"pools.{pool.name}.aliases.{name}"
        if name != name.strip():
            yield f"{path}: has a space at its beginning or end"
        for member, choices in (("effort", _EFFORTS), ("service_tier", _ALIAS_TIERS)):
            value = getattr(alias, member)
            if value not in (None, *choices):
                yield f"{path}.{member}: is not a known value; {_did_you_mean(value, choices)}"


def _doubts_of_pool(pool: Pool) -> Iterator[str]:
    """Doubts about a pool's accounts, and names of models that lead nowhere.

    A client that asks for such a model gets a 400, though `GET /v1/models` may have offered it.
    """
    path = f"pools.{pool.name}"
    if pool.accounts and all(account.paused for account in pool.accounts):
        yield f"{path}.accounts: all of them are paused, so nobody can serve this pool"
    yield from _doubts_of_names(f"{path}.models", pool.models, "this pool serves nothing")

    offered = _listed_models(pool.accounts)
    if pool.models is not None:
        for subpath, model in _lacking(pool.models, offered):
            yield f"{path}.models{subpath}: no account of this pool lists {model}"
        offered = set(pool.models)
    if offered is not None:
        yield from _doubts_of_offer(path, pool, offered)


def _doubts_of_offer(path: str, pool: Pool, offered: set[str]) -> Iterator[str]:
    """What of a pool is not among the models that it offers."""
    for index, account in enumerate(pool.accounts):
        if account.models and offered and offered.isdisjoint(account.models):
            consequence = "lists none of this pool's models, so it serves nothing here"
            yield f"{path}.accounts[{index}]: {account.name} {consequence}"

    for alias, target in pool.aliases.items():
        if target.model not in offered:
            yield f"{path}.aliases.{alias}: no account of this pool lists {target.model}"

    names = offered | pool.aliases.keys()
    for key in pool.keys:
        for subpath, model in _lacking(key.models or (), names):
            yield f"{path}.keys.{key.name}.models{subpath}: this pool does not offer {model}"


def _listed_models(accounts: Iterable[Account]) -> set[str] | None:
    """The models that the accounts list together; None if one of them lists none.

    Such an account serves what its upstream's /models lists, which is not known here.
    """
    models: set[str] = set()
    for account in accounts:
        if account.models is None:
            return None
        models |= account.models.keys()
    return models


def _lacking(models: Iterable[str], offered: Collection[str] | None) -> Iterator[tuple[str, str]]:
    """The paths and names of those not offered; nothing if it is not known what is offered."""
    for index, model in enumerate(models):
        if offered is not None and model not in offered:
            yield f"[{index}]", model


def literal_secrets(config: Config) -> list[str]:
    """The JSON paths of secrets that stand in the file itself.

    They are accepted, as the file may be well kept; `check` recommends references.
    """
    sources: dict[str, str] = {}
    for account in config.accounts.values():
        # A shorter one is what a server without keys takes: "none", "ollama".
        if len(reveal(account.api_key)) >= SECRET_CHARS_MIN:
            sources[f"accounts.{account.name}.api_key"] = account.source

    for key in config.keys:
        sources[f"pools.{key.pool}.keys.{key.name}"] = key.source
    for operator in config.operators:
        sources[f"operators.{operator.name}"] = operator.source

    sources |= _sources_of_addresses(config.proxy, config.notify)
    return [path for path, source in sources.items() if source == "literal"]


def _sources_of_addresses(proxy: Proxy | None, notify: Notify | None) -> dict[str, str]:
    """Where the secrets of addresses stand, by JSON path."""
    sources = {}
    if proxy is not None and proxy.login is not None:
        sources["proxy"] = proxy.source
    if notify is None:
        return sources

    if len(reveal(notify.target)) >= SECRET_CHARS_MIN:
        sources["notify"] = notify.source
    sources["notify.token"] = notify.token_source
    return sources


# Changes.  After a reload the operator reads in the log what it changed, which should be what was
# edited: a path that is not expected there is a mistake that was valid.


def changes_between(before: Config, after: Config) -> list[str]:
    """The sorted JSON paths of what was added, removed or changed; no members of what is new."""
    old, new = _by_path(before), _by_path(after)
    both = old.keys() & new.keys()
    changes = [f"{path} changed" for path in both if old[path] != new[path]]
    for change, with_it, without in (("added", new, old), ("removed", old, new)):
        for path in with_it.keys() - both:
            parent = path.rpartition(".")[0]
            # If its parent was added or removed with it, that is the change.
            if parent in without or parent not in with_it:
                changes.append(f"{path} {change}")

    changes.sort()
    more = len(changes) - CHANGES_SHOWN_MAX
    if more > 0:
        changes[CHANGES_SHOWN_MAX:] = [f"and {more} more"]
    return changes


# Fields that say where a value stands, or repeat what another says.
_NOT_COMPARED: Final = frozenset({"name", "identity", "source", "reference", "pool"})


def _by_path(config: Config) -> dict[str, object]:
    """What a configuration says, by JSON path; secrets as digests.

    Two of these are compared, so what is equal must mean the same: a secret that has moved from the
    file to a variable is unchanged.  `listen` and `state` are left out, as a reload does not change
    them.
    """
    flat: dict[str, object] = {}

    def put(prefix: str, value: Any, *left_out: str) -> None:  # noqa: ANN401 (any dataclass)
        names = {member.name for member in dataclasses.fields(value)}
        for name in names.difference(_NOT_COMPARED, left_out):
            flat[f"{prefix}{name}"] = getattr(value, name)

    put("", config, "accounts", "pools", "operators", "limits", "warnings", "listen", "state")
    put("limits.", config.limits)
    if config.proxy is not None:
        login = "" if config.proxy.login is None else reveal(config.proxy.login)
        flat["proxy"] = (config.proxy.url, digest_of(login))
    if config.notify is not None:
        token = reveal(config.notify.token) if config.notify.token else ""
        target = reveal(config.notify.target)
        flat["notify"] = (config.notify.url, digest_of(f"{target} {token}"))

    for name, account in config.accounts.items():
        flat[f"accounts.{name}"] = account.is_codex
        put(f"accounts.{name}.", account)
        flat[f"accounts.{name}.api_key"] = digest_of(reveal(account.api_key))

    for name, pool in config.pools.items():
        flat[f"pools.{name}"] = None
        put(f"pools.{name}.", pool, "keys")
        flat[f"pools.{name}.accounts"] = [account.name for account in pool.accounts]
        for key in pool.keys:
            path = f"pools.{name}.keys.{key.name}"
            flat[path] = None
            put(f"{path}.", key)

    for operator in config.operators:
        flat[f"operators.{operator.name}"] = operator.digest
    return flat


def parse_config(
    raw: bytes, env: Mapping[str, str], read_file: Callable[[str], str], source: str = "pools.json"
) -> Config:
    """The configuration that `raw`, the bytes of pools.json, describes.

    `read_file` gives the text of a file named by `{file:path}`; `source` is where `raw` is from.
    Raises: ConfigRefused with all problems.
    """
    try:
        value = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_object_of)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except json.JSONDecodeError as error:
        description = describe_bad_json(error.doc, error.pos, error.msg)
        raise ConfigRefused([f"{source}: not valid JSON at {description}"]) from None
    except (ValueError, RecursionError):
        raise ConfigRefused([f"{source}: not valid JSON in UTF-8"]) from None
    return _Loader(_Resolver(env, read_file), source).config(value)


def part_for_login(name: str, raw: bytes) -> bytes:
    """What of a pools.json concerns the login of one account, as a whole pools.json.

    A mistake elsewhere, or a variable that is set for the server alone, must not be in the way of
    a login.  What cannot be read is returned as it is.
    Raises: ConfigRefused, if there is no such account, or it has no login.
    """
    value = try_load_object(raw)
    accounts = object_at(value, "accounts")
    if not accounts:
        return raw

    codex = [other for other in accounts if object_at(accounts, other).get("type") == "codex"]
    if name not in codex:
        problem = "is not of type codex, and needs no login" if name in accounts else "is not there"
        hint = _did_you_mean(name, [other for other in codex if other.isprintable()])
        raise ConfigRefused([f"accounts: {name!r} {problem}; {hint}"])

    part: JsonDict = {"accounts": {name: accounts[name]}}
    part["pools"] = {"login": {"accounts": [name], "keys": {}}}
    if "proxy" in value:
        part["proxy"] = value["proxy"]
    return dump_json(part)


def other_logins(name: str, raw: bytes) -> dict[str, str]:
    """The `auth_file` of each other ChatGPT account in a pools.json, as it stands there."""
    accounts = object_at(try_load_object(raw), "accounts")
    files = {other: object_at(accounts, other).get("auth_file") for other in accounts}
    return {other: file for other, file in files.items() if other != name and isinstance(file, str)}


################################################################
# SETUP
################################################################
# What a new user needs besides the server, all of it as text: a first pools.json, the
# configurations of clients, and which commands come next.
#
#   plan        what the first pools.json is to have, from flags or answers
#   files       that pools.json, and the configurations of OpenCode and Codex CLI
#   guide       what `pooler init` prints
#   schema      that of pools.json, made of its specs
#   reference   what README leaves out: fields, limits, errors and behaviour

OPENAI_MODEL: Final = "gpt-5.5"  # what ChatGPT accounts and OpenAI's API serve
TITLE_MODEL: Final = "gpt-5.4-nano"  # of OpenCode, which requests a session's title from it (F73)
CLIENT_VARIABLE: Final = "CODEX_POOLER_API_KEY"
OPERATOR_VARIABLE: Final = "CODEX_POOLER_OPERATOR_TOKEN"


class OfferedModel(NamedTuple):
    """A model for which a client is to be configured."""

    name: str
    is_chat_only: bool = False  # its upstream has no Responses API
    context_length: int | None = None  # in tokens
    upstream_name: str = ""  # if its upstream has another


# The plan.


class LocalServer(NamedTuple):
    """A server of one's own, whose API takes no key; `models` is () as long as none is known."""

    name: str
    url: BaseUrl
    models: tuple[OfferedModel, ...] = ()


class SetupPlan(NamedTuple):
    """What a first pools.json is to have; all but the servers by name."""

    chatgpt: Sequence[str]
    openai: Mapping[str, str]  # the variable that has its API key, by account
    local: Sequence[LocalServer]
    client: Sequence[str]
    operator: Sequence[str]


class SetupPart(NamedTuple):
    """One part of the plan: a flag of `pooler init`, and a question if there is no flag."""

    check: Check  # of one word of it
    usual: str  # what the flag alone means, and "yes"
    about: str
    question: str = ""  # "": it is not asked for
    default: str = "-"  # the answer that an empty line stands for; "-": none


_LOCAL_URL: Final = "http://127.0.0.1:8080/v1"
_NAME_WANTED: Final = (
    f"must be a name of at most {NAME_CHARS_MAX} letters, digits and _.-, which begins with a "
    "letter or digit"
)


def _plain_name(word: str) -> str:
    """A check for the name of an account, a client or an operator."""
    if looks_secret(word):
        raise ValueError("looks like a key; write a name, as keys are read from the environment")
    if not re.fullmatch(_NAME, word):
        raise ValueError(_NAME_WANTED)
    return word


def _api_account(word: str) -> tuple[str, str]:
    """A check for NAME or NAME=VARIABLE, which gives both."""
    name, equals, variable = word.partition("=")
    if equals and not _VARIABLE_NAME.fullmatch(variable):
        raise ValueError("must be NAME or NAME=VARIABLE, with the variable that has the key")
    return _plain_name(name), variable or "OPENAI_API_KEY"


def _local_server(word: str) -> LocalServer:
    """A check for NAME=URL or NAME=URL,MODEL,MODEL; without a path, the API is under /v1."""
    name, equals, rest = word.partition("=")
    if not equals:
        raise ValueError(f"must be NAME=URL, like llama={_LOCAL_URL}")

    _plain_name(name)
    text, *models = rest.split(",")
    url = _base_url(text, f"{name}={_LOCAL_URL}")
    offered = tuple(OfferedModel(_model(model), True) for model in dict.fromkeys(models))
    return LocalServer(name, url._replace(path=url.path or "/v1"), offered)


SETUP_PARTS: Final[Mapping[str, SetupPart]] = {
    "chatgpt": SetupPart(
        _plain_name,
        "personal",
        "ChatGPT accounts, by names of your choice",
        "ChatGPT accounts: a name for each; you log in to them afterwards",
        "personal",
    ),
    "openai": SetupPart(
        _api_account,
        "platform",
        "API keys of OpenAI, as NAME or NAME=VARIABLE; the key stays in OPENAI_API_KEY or VARIABLE",
        "API keys of OpenAI: a name for each; the key itself stays in OPENAI_API_KEY",
    ),
    "local": SetupPart(
        _local_server,
        "",
        "local servers, as NAME=URL or NAME=URL,MODEL,MODEL; without models they are asked",
        f"Local servers: NAME=URL for each, like llama={_LOCAL_URL}",
    ),
    "client": SetupPart(
        _plain_name,
        "laptop",
        "clients, each with a key of its own; default: laptop",
        "Clients: a name for each program or machine that gets a key of its own",
        "laptop",
    ),
    "operator": SetupPart(_plain_name, "me", "who may see the pooler's status; default: me"),
}
_NONE: Final = frozenset({"-", "n", "no", "none"})
_YES: Final = frozenset({"y", "yes"})


def words_of(answer: str, part: SetupPart) -> list[str]:
    """The words of an answer to a question: those of a person who types names, yes, no or Enter."""
    words = (answer.strip() or part.default).replace(", ", " ").split()
    plain = " ".join(words).lower()
    if plain in _NONE:
        return []
    return [part.usual] if plain in _YES else words


def plan_setup(words: Mapping[str, Sequence[str]], *, is_whole: bool = True) -> SetupPlan:
    """The plan that flags or answers describe: their words, by the names of SETUP_PARTS.

    Without any, there is one client and one operator.  `is_whole`: there must be an account.
    Raises: ValueError, with all problems; a word that may be a secret is not repeated.
    """
    values = _checked_words(words)
    for name in ("client", "operator"):
        values[name] = values[name] or [SETUP_PARTS[name].usual]
    variables = [variable for _, variable in values["openai"]]
    accounts = [
        *values["chatgpt"],
        *(name for name, _ in values["openai"]),
        *(server.name for server in values["local"]),
    ]

    problems = [
        *_repeated("account", accounts),
        *_repeated("client", values["client"]),
        *_repeated("operator", values["operator"]),
        *_repeated("API key", variables, "; write NAME=VARIABLE"),
    ]
    if is_whole and not accounts:
        problems.append("name an account: --chatgpt NAME, --openai, or --local NAME=URL")
    if problems:
        raise ValueError(*problems)
    return SetupPlan(**values | {"openai": dict(values["openai"])})


def _checked_words(words: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The values of each part's words, in lists.  Raises: ValueError, with all problems."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, part in SETUP_PARTS.items():
        places = [(_place_of(word), word) for word in words.get(name, ())]
        try:
            values[name] = _each(part.check, places)
        except ValueError as error:
            problems += error.args

    if problems:
        raise ValueError(*problems)
    return values


def _place_of(word: str) -> str:
    """A word as a problem names it: without what may be a secret, or a command to a terminal."""
    name = word.partition("=")[0]
    return "(hidden)" if looks_secret(name) else json.dumps(name[:NAME_CHARS_MAX])


def _repeated(kind: str, names: Sequence[str], hint: str = "") -> Iterator[str]:
    """The problems of names that are used twice; their files may not differ by case alone."""
    counts = Counter(name.lower() for name in names)
    for name, count in counts.items():
        if count > 1:
            yield f"{json.dumps(name)}: only one {kind} can have this name{hint}"


# The files.


def first_config(plan: SetupPlan, keys: Mapping[str, str], tokens: Mapping[str, str]) -> str:
    """The text of a first pools.json, which has the digests of the clients' keys and of tokens."""
    accounts = _first_accounts(plan)
    pool: JsonDict = {"accounts": list(accounts)}
    if alias := _title_alias(plan):
        pool["aliases"] = {TITLE_MODEL: alias}

    pool["keys"] = {name: _digest_line(key) for name, key in keys.items()}
    operators = {name: _digest_line(token) for name, token in tokens.items()}
    config = {"accounts": accounts, "pools": {"home": pool}, "operators": operators}
    return readable_json(config) + "\n"


def _first_accounts(plan: SetupPlan) -> dict[str, JsonDict]:
    """The accounts by name, each with the priority of its kind, 0 for the first that there is.

    Servers of one's own come first, then what is paid by the month, then what each request costs.
    A server gets only requests for the models that it lists; as long as these are unknown it might
    get any, so it comes last.
    """
    ranked: list[tuple[int, str, JsonDict]] = [
        *(
            (1, name, {"type": "codex", "auth_file": f"accounts/{name}.json"})
            for name in plan.chatgpt
        ),
        *(
            (2, name, {"type": "openai", "api_key": f"{{env:{variable}}}"})
            for name, variable in plan.openai.items()
        ),
        *(
            (0 if server.models else 3, server.name, _local_account(server))
            for server in plan.local
        ),
    ]
    ranks = sorted({rank for rank, _, _ in ranked})

    accounts = {}
    for rank, name, account in ranked:
        accounts[name] = account
        if priority := ranks.index(rank):
            account["priority"] = priority
    return accounts


def _digest_line(secret: str) -> str:
    """What pools.json has in the place of a secret that is only compared."""
    return f"sha256:{digest_of(secret).hex()}"


def _local_account(server: LocalServer) -> JsonDict:
    """The account of a local server, which may load a model for minutes before it responds."""
    scheme = "https" if server.url.is_tls else "http"
    url = f"{scheme}://{server.url.authority}{server.url.path}"
    account: JsonDict = {"type": "openai", "base_url": url, "api_key": "none"}
    if not (server.url.is_tls or _is_loopback(server.url.host)):
        account["allow_plain_http"] = True
    names = {model.name: model.upstream_name or model.name for model in server.models}
    if names:
        is_same = list(names) == list(names.values())
        account["models"] = list(names) if is_same else names
    return account | {"first_event_seconds": 600}


def short_name(model: str) -> str:
    """The name of a model in the pool: of a path, as llama.cpp lists it, that of the file."""
    name = model.rpartition("/")[2].removesuffix(".gguf")
    return name if name and model.endswith(".gguf") else model


def offered_models(plan: SetupPlan) -> list[OfferedModel]:
    """The models for which clients are configured, the default one first; may be empty.

    OpenCode replaces `{env:NAME}` and `{file:PATH}` anywhere in its configuration: by the name of a
    model a server could have a secret or a file sent to it, so such a name is left out.
    """
    models = [OfferedModel(OPENAI_MODEL)] if plan.chatgpt or plan.openai else []
    for server in plan.local:
        models += [
            model
            for model in server.models
            if not any(beginning in model.name for beginning in ("{env:", "{file:"))
        ]
    models.sort(key=lambda model: "embed" in model.name.lower())  # these generate no text
    by_name: dict[str, OfferedModel] = {}
    for model in models:
        by_name.setdefault(model.name, model)
    return list(by_name.values())


def _title_alias(plan: SetupPlan) -> str:
    """The model that generates titles in the place of TITLE_MODEL, or "".

    OpenAI's API has that one itself; and what speaks only Chat would not be asked for it.
    """
    models = offered_models(plan)
    is_served = plan.openai and not plan.chatgpt
    if is_served or not models or models[0].is_chat_only:
        return ""
    return "" if any(model.name == TITLE_MODEL for model in models) else models[0].name


# What OpenCode must be told of OPENAI_MODEL, so that it compacts a long session in time.  In
# a provider's options, effort and verbosity would be ignored.
_OPENAI_MODEL_FOR_OPENCODE: Final[JsonDict] = {
    "family": "gpt",
    "attachment": True,
    "reasoning": True,
    "tool_call": True,
    "temperature": False,
    "modalities": {"input": ["text", "image"], "output": ["text"]},
    "limit": {"context": 400_000, "input": 256_000, "output": 128_000},
    "options": {"reasoningEffort": "high", "reasoningSummary": "auto", "textVerbosity": "medium"},
}
# OpenCode requests at most so many tokens, and a server may refuse more than its context has.
_OUTPUT_TOKENS_MAX: Final = 32_000


def opencode_config(
    url: str,
    models: Sequence[OfferedModel],
    small_model: str = "",
    *,
    has_operator: bool = False,
) -> str:
    """The text of an opencode.json for a pooler at `url`, which has no /v1.

    The first model is the default one.  `small_model` generates titles: one of the models, or
    another that the pool serves; "" means the first.  `has_operator`: with the pooler's MCP server.
    The secrets themselves are not in it: OpenCode reads them from the environment.
    """
    responses = [model for model in models if not model.is_chat_only]
    chat_only = [model for model in models if model.is_chat_only]
    providers: JsonDict = {}
    if responses:
        providers["openai"] = _opencode_provider(url, "@ai-sdk/openai", responses)
    if chat_only:
        providers["pooler"] = _opencode_provider(url, "@ai-sdk/openai-compatible", chat_only)

    def qualified(name: str) -> str:
        is_chat = any(model.name == name for model in chat_only)
        return f"pooler/{name}" if is_chat else f"openai/{name}"

    default = models[0].name
    config = {
        "$schema": "https://opencode.ai/config.json",
        "model": qualified(default),
        "small_model": qualified(small_model or default),
        "provider": providers,
    }
    if has_operator:
        config["mcp"] = {"codex_pooler": _opencode_mcp(url)}
    return readable_json(config)


def _opencode_provider(url: str, package: str, models: Sequence[OfferedModel]) -> Json:
    """A provider of OpenCode's: `package` decides by which API it asks."""
    name = "Codex Pooler"
    options: JsonDict = {"baseURL": f"{url}/v1", "apiKey": f"{{env:{CLIENT_VARIABLE}}}"}
    if package.endswith("/openai"):
        options |= {"include": ["reasoning.encrypted_content"], "store": False}
    else:
        name = "Codex Pooler (Chat)"

    described = {model.name: _opencode_model(model) for model in models}
    return {"npm": package, "name": name, "options": options, "models": described}


def _opencode_model(model: OfferedModel) -> Json:
    """What OpenCode is told of a model."""
    described: JsonDict = {"id": model.name, "name": f"{model.name} via Codex Pooler"}
    if model.name == OPENAI_MODEL and not model.is_chat_only:
        described["name"] = "GPT-5.5 via Codex Pooler"
        return described | _OPENAI_MODEL_FOR_OPENCODE

    described["tool_call"] = True
    if model.context_length:
        output = min(_OUTPUT_TOKENS_MAX, model.context_length // 4)
        described["limit"] = {"context": model.context_length, "output": output}
    return described


def _opencode_mcp(url: str) -> Json:
    """How OpenCode reaches the pooler's MCP server, as an operator."""
    return {
        "type": "remote",
        "url": f"{url}/mcp",
        "oauth": False,
        "headers": {"Authorization": f"Bearer {{env:{OPERATOR_VARIABLE}}}"},
        "enabled": True,
        "timeout": 30_000,
    }


def codex_config(url: str) -> str:
    """What Codex CLI's config.toml must have for a pool with ChatGPT accounts."""
    return f"""\
model = "{OPENAI_MODEL}"
model_provider = "pooler"

[model_providers.pooler]
name = "OpenAI"
base_url = "{url}/backend-api/codex"
env_key = "{CLIENT_VARIABLE}"
wire_api = "responses"
supports_websockets = true
"""


_READABLE_COLUMNS: Final = 96


def readable_json(value: Json, indent: int = 0, label: str = "") -> str:
    """JSON as a person writes it: what fits stands in one line, except the outermost object.

    `label` stands before it in its line.
    """
    line = label + json.dumps(value)
    fits = indent > 0 and indent + len(line) < _READABLE_COLUMNS
    if fits or not value or not isinstance(value, (dict, list)):
        return line

    inner = indent + 2
    if isinstance(value, dict):
        opening, closing = "{", "}"
        members = value.items()
        parts = [readable_json(member, inner, f"{json.dumps(name)}: ") for name, member in members]
    else:
        opening, closing = "[", "]"
        parts = [readable_json(member, inner) for member in value]

    separator = ",\n" + " " * inner
    outer = " " * indent
    return f"{label}{opening}{separator[1:]}{separator.join(parts)}\n{outer}{closing}"


# The guide.

_UNKNOWN_MODEL: Final = OfferedModel("MODEL", True)  # to be replaced by the user


def setup_guide(
    plan: SetupPlan,
    url: str,
    keys: Mapping[str, str],
    tokens: Mapping[str, str],
) -> str:
    """What `pooler init` prints: what goes to the clients, the secrets last, as they scroll away.

    `url` is where the pooler will serve; `keys` and `tokens` are the secrets, by name.
    """
    models = offered_models(plan)
    small_model = TITLE_MODEL if plan.openai and not plan.chatgpt else ""
    config = opencode_config(url, models or [_UNKNOWN_MODEL], small_model, has_operator=True)
    parts = [f"OpenCode: put this into ~/.config/opencode/opencode.json\n\n{config}"]
    if not models:
        parts.append("There, replace MODEL by a name that your server has for a model.")
    if plan.chatgpt:
        codex = codex_config(url).rstrip()
        parts.append(f"Codex CLI: put this into ~/.codex/config.toml\n\n{codex}")

    parts.append(f"Other clients: their base URL is {url}/v1")
    exports = [
        *(_export_line(CLIENT_VARIABLE, key, f"for {name}") for name, key in keys.items()),
        *(_export_line(OPERATOR_VARIABLE, token, f"for {name}") for name, token in tokens.items()),
    ]
    parts.append("\n".join(["The secrets, which are shown only now; keep them:", *exports]))
    return "\n\n".join(parts)


def _export_line(variable: str, value: str, comment: str) -> str:
    """A line for a shell."""
    return f"  export {variable}={value}  # {comment}"


def next_commands(plan: SetupPlan, path: str, env: Mapping[str, str]) -> list[str]:
    """The lines that a shell needs next, until the pooler serves."""
    exports = [
        _export_line(variable, "sk-...", f"the API key of {name}")
        for name, variable in plan.openai.items()
        if variable not in env
    ]
    logins = [f"  {login_command(name, path)}" for name in plan.chatgpt]
    last = [f"  {with_config(f'pooler {command}', path)}" for command in ("check --ask", "serve")]
    return [*exports, *logins, *last]


# The schema of pools.json.


class _Kind(NamedTuple):
    """A kind of object in pools.json, for the schema and the reference."""

    path: str  # where such objects are
    settings: Settings
    conditions: Sequence[JsonObject] = ()  # of its schema: what fields say of each other


# Plain http:// to another machine is a decision.
_PLAIN_ALLOWED: Final = {
    "properties": {"allow_plain_http": {"const": True}},
    "required": ["allow_plain_http"],
}


def _conditions_of(kind: str) -> JsonDict:
    """What the type of an account demands and forbids."""
    required, foreign, _ = _TYPES[kind]
    return {
        "if": {"properties": {"type": {"const": kind}}, "required": ["type"]},
        "then": {"required": [required], "properties": dict.fromkeys(foreign, False)},
    }


_KINDS_OF_OBJECTS: Final[Mapping[str, _Kind]] = {
    "pools.json": _Kind("pools.json", _TOP),
    "account": _Kind(
        "accounts.NAME",
        _ACCOUNT,
        [
            {"if": _PLAIN_ALLOWED, "else": {"properties": {"base_url": _SAFE}}},
            *map(_conditions_of, _TYPES),
        ],
    ),
    "pool": _Kind("pools.NAME", _POOL),
    "key": _Kind("pools.NAME.keys.NAME", _KEY),
    "alias": _Kind("pools.NAME.aliases.NAME", _ALIAS),
    "price": _Kind("prices.MODEL", _PRICE),
    "notify": _Kind(
        "notify", _NOTIFY, [{"if": _PLAIN_ALLOWED, "else": {"properties": {"url": _SAFE}}}]
    ),
    "limits": _Kind("limits", _LIMITS),
}


def config_schema() -> JsonDict:
    """The JSON Schema (2020-12) of pools.json, made of the rows that check it.

    It accepts every file that is accepted here.  What depends on other parts of the file, on the
    environment or on files, it cannot know.
    """
    described = {name: _schema_of(kind) for name, kind in _KINDS_OF_OBJECTS.items()}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return {
        **head,
        "title": "codex-pooler: pools.json",
        **described.pop("pools.json"),
        "$defs": described,
    }


def _schema_of(kind: _Kind) -> JsonDict:
    """The schema of one kind of object."""
    schema: JsonDict = {
        "type": "object",
        "properties": {
            name: {**setting.check.schema, "description": _about(setting)}
            for name, setting in kind.settings.items()
        },
        "required": [name for name, row in kind.settings.items() if row.default == REQUIRED],
        "additionalProperties": False,
    }
    if kind.conditions:
        schema["allOf"] = kind.conditions
    return schema


def _about(setting: Setting) -> str:
    """What a field means, and what holds without it, in one text."""
    is_optional = setting.default not in {"", REQUIRED}
    return f"{setting.about}  Default: {setting.default}." if is_optional else setting.about


# The reference: what `pooler check --explain` prints.

REFERENCE_COLUMNS: Final = 79
# What no table holds: how the pooler behaves.  Paragraphs, in lines of at most 78 characters.
TOPICS: Final[Mapping[str, str]] = {
    "secrets": """
A secret is a literal, {env:NAME}, or {file:PATH}: the file's first line, its
path relative to pools.json.  A pool key or operator's token may also be its
sha256: line, so that pools.json need not hold it: `pooler key` prints both.
Values of {env:NAME} are those of the start; SIGHUP reads files again.

Refused are what is shorter than 16 characters (pool keys and tokens), a
placeholder, a variable like $NAME, what still has its quotes, and the same
secret twice.
""",
    "routing": """
Considered are accounts that are not paused, offer the model and are not
cooling down.  Among them: the one that the session is pinned to; the lowest
priority; those without a recent failure; then by the pool's routing.

sticky (default): new sessions are spread by a hash of session and account
name, so that several poolers with one file agree, over the accounts that
have used less than 95 % of their quota (over all, if there are none).
Without a session: the least busy one.

quota_first: the account with the most quota left, then the least busy one.

soonest_reset: the account whose longest quota window (mostly a week) ends
first, so that none of it goes unused; first those whose window has not
begun.

For a strict order give accounts the priorities 0, 1, 2.
""",
    "sessions": """
A session is named by the client's header (session-id, x-session-id,
x-session-affinity, session_id, thread-id, or Codex's own), else by
prompt_cache_key, else by how its history begins: the instructions and the
first message.  On a WebSocket it is that of the turn before.

A session stays on its account, which keeps the provider's prompt cache warm,
until it has been idle for a day or the account cannot serve it.  If its
account is back within 3 s, it waits for it.

A ChatGPT account is sent a digest of pool, key and session as session-id,
and as prompt_cache_key if the client sends none.  A request with
previous_response_id goes only to the account that made that response.  If a
session moves to another provider, its encrypted reasoning is left out, as
only the old provider can read it.
""",
    "failover": """
At most three accounts are tried (attempts_max), only while nothing has been
sent to the client, and only if the response proves that the upstream did not
do the work (401, 402, 403, 429, 500, 502, 503, 520, 521, 529, or a failure
before content), or if it failed before the request was sent as a whole.

A request that may be in progress is never sent twice: after a timeout, a cut
connection, 408, 504, 522 or 524 the client gets the error.  An image or a
compaction may be charged, so after a 5xx it is not repeated either.

If an upstream sends nothing for 45 s after a streamed request, the client
gets its 200 and comments, as proxies cut silent connections; from then on no
other account is tried, and a failure is reported in the stream.

An upstream's error code counts more than its status, wherever it stands: in
a 400, a 403, an event or body of a 200, a Chat chunk, or a WebSocket frame.
""",
    "cooldowns": """
After a 429 an account cools down until the reset that it announces, up to 32
days ahead; without one for 30 s after a throttle (cooldown_seconds), else
until its fullest plan window resets, or for 15 minutes.  After a 401 or 402
it is out of rotation.  Either way it is tried again every 15 minutes, and a
success ends the cooldown.  SIGHUP ends all of them.

After a 403, a 5xx or a failed connection it is used last for a minute; after
three 403 in a row it is out of rotation.  A page of something in front of an
upstream (a bot protection, a rate limiter) and a client's own mistake change
nothing.

A limit of one model cools down that model only.  If an account lacks a
model, it is not asked for it for an hour; if it lacks a route, for five
minutes.

Time in which the machine sleeps counts, too.
""",
    "quota": """
A ChatGPT account's quota is reported with its responses.  At the start, and
after 15 minutes without news, its usage route is asked; no request waits for
that, and a failure changes no account (`usage` in the log).
""",
    "connections": """
A host that could not be connected to is tried last for a minute, whichever
account uses it, and at most twice by one request.  The log has the reason:
`connect: ` and name not found, refused, unreachable, timed out, closed,
certificate not trusted (see ca_file), certificate for another name,
certificate out of date, TLS failed, no descriptor left (ulimit -n), or what
is wrong with the proxy.
""",
    "proxy": """
With "proxy": "http://proxy.example.com:3128" all that goes out is a tunnel
through it (CONNECT): requests, WebSockets, lists of models, quotas, notices
and logins, also to upstreams on this machine, so it must be allowed to reach
them.  A proxy on another machine would read what is sent to http://
addresses: the pooler then asks for https:// or allow_plain_http.

If the proxy intercepts TLS, put its authority into ca_file.  If it wants a
login, write http://name:password@host:port (escaped with %), best as
{env:NAME} or {file:PATH}.  HTTPS_PROXY, HTTP_PROXY and ALL_PROXY are not
used: write "proxy": "{env:HTTPS_PROXY}".
""",
    "sharing": """
When all accounts are at their concurrent, a request waits in a queue for at
most 10 s (queue_seconds_max).  The key with the fewest requests in progress
is served first, and a full queue makes room for a key with fewer in it.  An
account with eight places or more keeps an eighth for keys that hold few.

No key may hold more memory than it leaves for the others.  When all
connections are in use, the key with the most loses the one that has been
idle longest; /healthz and /readyz are always served.
""",
    "logins": """
A ChatGPT login is refreshed when it is used less than five minutes before
its end, or when its upstream rejects it.  A refresh token works once: so the
pooler locks the file, reads it again, makes room on the disk, and replaces
it in one step (0600).  Mount the folder into a container, not the file.

Give the pooler a login of its own (`pooler login NAME`): Codex CLI takes no
lock, so sharing its file is a race.  A new file is noticed by itself.

CODEX_REFRESH_TOKEN_URL_OVERRIDE moves the token endpoint, as it does for
Codex CLI; a warning says so.
""",
    "models": """
If an account of a router has "models": {"gpt-5.5": "openai/gpt-5.5"},
clients ask for gpt-5.5 and get it from it as well as from a ChatGPT account.
Only the value of model changes in what is sent; in the response it is the
upstream's.

Without models, an account's /models is asked in the background, at most once
an hour (5 minutes after a failure).  At most 4 MiB and 2000 models are read.
""",
    "chatgpt": """
ChatGPT accounts serve Responses and Chat.  Left out without an error:
temperature, top_p, max_output_tokens, stop, seed and the like.  Refused:
background, conversation, prompt, previous_response_id (except on a
WebSocket), references to stored items, remote MCP servers, n over 1,
logprobs, audio, and the other API's name of a field.

AI SDK: set store to false, as it otherwise refers to items that are not
kept.
""",
    "websocket": """
GET /v1/responses with an upgrade (also /backend-api/codex/responses) is a
Responses WebSocket.  Each text message is {"type": "response.create", ...}
with the fields of a POST; each message back is one event.  Turns run one at
a time; up to 16 may wait.  A stream_id comes back on every event of its
turn.

The pooler keeps one upstream WebSocket for each, to one account, until a
turn fails.  previous_response_id means an earlier turn of the same
WebSocket; if its account or connection is lost, the error is
previous_response_not_found, and the next turn with the full input may go
anywhere.  An error is a message {"type": "error", "status": ..., "error":
...}, and the WebSocket stays open.

It is closed with
  1000        30 minutes without a turn (websocket_idle_seconds_max)
  1001        the pooler is shutting down, or the upstream has closed
  1002, 1007  frames or text that are not well-formed
  1003        a binary message
  1008        the key was removed, paused or has expired; a message of more
              than 4096 frames or too slow; more than 16 turns that wait
  1009        a message of more than 32 MiB
  1011        a bug of the pooler; the log has the request's id
  1013        too much data is in memory
""",
    "clients": """
OpenCode 1.18: 400, 401 and 403 are final.  429, 5xx and (if the provider's
id begins with openai) 404 are retried five times, as Retry-After says.  413
begins a compaction.  A failed stream is retried, its partial text is
dropped.

Codex CLI 0.169: 400, and 429 with usage_limit_reached or insufficient_quota,
are final.  401, 403, 404 and 415 are tried six times within 7 s, 5xx 30
times within 24 s.  A failed stream is retried five times, unless it failed
for good.

OpenAI SDKs: 408, 409, 429 and 5xx are retried twice, unless there is
x-should-retry: false.
""",
    "log": """
Without a terminal, or with --log json, the log is JSON lines on standard
error, with `at`, `level` and `event`: metadata only, no prompts, responses,
secrets or client addresses.  It never blocks the server.

request: one for each request, and each turn of a WebSocket, at its end.
status is null if the client left before; code is client_gone then.  attempts
lists the accounts tried, and why each but the last failed (renewed: with a
new token; repaired: without reasoning that it could not read); passed_over
those not tried.  tokens is the usage that was reported; tokens_estimated:
the key was charged by bytes.  An upstream's own codes begin with upstream:.
A model that nobody has configured or listed is `other`.

account: it got better or worse: status, reason, what to do.  pool: it can no
longer serve a model, or can again.  login: a login needs you, or (problem:
null) works.  models, usage: a list or a quota could not be read.

listening, draining, stopped, config (a warning), listen (an address that
could not be opened), reloaded (what changed), `reload refused` (why), accept
(no connection could be taken), notice, state, `log lines dropped` (nobody
read), bug (type and place of an exception, never its text).
""",
    "notices": """
With notify, a webhook is told when an account needs you, when a pool cannot
serve a model, and when it can again: one POST for all that changes within
seconds, at most one every 30 s, each trouble once until it ends.  The body
is JSON with title, message and text, which ntfy (2.10 or later), Gotify and
Slack take:

  "notify": {"url": "https://ntfy.sh/a-name-nobody-guesses",
             "token": "{env:NTFY_TOKEN}"}
  "notify": "{env:SLACK_WEBHOOK_URL}"
  "notify": {"url": "https://gotify.example.com/message",
             "token": "{env:GOTIFY_TOKEN}"}

A notice has names, reason and advice, as /admin shows them: no secret,
prompt or client.  It goes through proxy; if it cannot be delivered, it is
sent later.
""",
    "state": """
With state, a restart goes on from where the last process was: sums, what
keys have used of tokens_per_day, cooldowns, quota, pins of sessions, and who
made which stored response.  Limits that ended meanwhile have ended.

The file (0600) is replaced in one step, at most once a minute and at the
end. It has names, numbers, codes and digests: no secrets, prompts or session
names. Put it on a local disk, in a folder that the pooler may write to
(mount the folder); beside it are state.json.lock and, for a moment,
.state.json.new.

A broken file is renamed to state.json.broken; one that cannot be read is
never replaced.  Of two processes with one file only the first saves.  An
account with another base_url, key or login starts from nothing.
""",
    "codex": """
/backend-api/codex has Codex CLI's own routes: models, responses,
responses/compact; bodies and events pass unchanged.  With ChatGPT accounts
also alpha/search, images/generations and images/edits, under /v1 as well.  A
pool's models do not exclude image models; a key's do.  /status shows the
pool's quota.
""",
}


class _Entry(NamedTuple):
    """A part of the reference: a field, an error, or a paragraph of a topic."""

    name: str  # of a paragraph, that of its topic
    text: str


def reference(word: str = "") -> str:
    """The reference as text; with a word, what it names, else all that has it; "" if nothing has.

    A word names a section, or an entry of any of them.
    """
    wanted = word.lower()
    chosen = _chosen(lambda section, entry: wanted in {section, entry.name})
    chosen = chosen or _chosen(lambda _, entry: wanted in entry.text.lower())
    blocks = [[name.upper(), *texts] for name, texts in chosen.items()]
    return "\n\n\n".join("\n\n".join(block) for block in blocks)


def _chosen(is_wanted: Callable[[str, _Entry], bool]) -> dict[str, list[str]]:
    """The texts of the wanted entries, by section; without those that have none."""
    chosen: dict[str, list[str]] = {}
    for section, entries in _sections():
        for entry in entries:
            if is_wanted(section, entry):
                chosen.setdefault(section, []).append(entry.text)
    return chosen


def section_names() -> list[str]:
    """The sections of the reference, in their order."""
    return [name for name, _ in _sections()]


def _sections() -> Iterator[tuple[str, Iterator[_Entry]]]:
    """The sections of the reference, and their entries."""
    for name, kind in _KINDS_OF_OBJECTS.items():
        yield name, (_entry_of(kind.path, field, row) for field, row in kind.settings.items())

    yield (
        "errors",
        (
            _entry(code, f"{code}: {status}", f"{message}  {about}")
            for code, (status, message, about) in ERRORS.items()
        ),
    )
    for name, text in TOPICS.items():
        paragraphs = text.strip().split("\n\n")
        yield name, (_Entry(name, _indented(paragraph)) for paragraph in paragraphs)


def _entry_of(path: str, field: str, row: Setting) -> _Entry:
    """A field of pools.json as an entry: where it is, what it may be, what it means."""
    schema = row.check.schema
    values = ""
    if "enum" in schema:
        values = ", ".join(schema["enum"])
    elif "minimum" in schema:
        values = f"{_shown(schema['minimum'])} to {_shown(schema['maximum'])}"
    elif schema.get("type") == "boolean":
        values = "true or false"

    place = field if path == "pools.json" else f"{path}.{field}"
    head = f"{place}: {values}" if values else place
    return _entry(field, head + " (required)" * (row.default == REQUIRED), _about(row))


def _entry(name: str, head: str, text: str) -> _Entry:
    """An entry of a line, and text below it."""
    return _Entry(name, _indented("\n".join([head, *_indented_lines(text)])))


def _indented_lines(text: str) -> list[str]:
    """A text in lines that fit below a head."""
    width = REFERENCE_COLUMNS - 2
    return textwrap.wrap(
        text, width, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False
    )


def _indented(text: str) -> str:
    """A text in the place of an entry."""
    return textwrap.indent(text, "  ")


################################################################
# KEYS
################################################################
# Which credential a request presents, whose it is, and what its key may still use.  Credentials are
# compared by their SHA-256 digests, with `hmac.compare_digest` and against every entry, so that the
# time taken reveals neither which entry matched nor how much of it.

_BASIC: Final = re.compile(r"basic +([A-Za-z0-9+/=]+)", re.IGNORECASE)
_BEARER: Final = re.compile(r"bearer +([\x21-\x7e\x80-\xff]+)", re.IGNORECASE)
Entry = TypeVar("Entry", Key, Operator)
KeyNames = tuple[str, str]  # of a key's pool, and its own


def bearer_of(headers: Headers) -> str | None:
    """The token of `Authorization: Bearer` (RFC 6750 §2.1), as latin-1 text.

    None if there is none, or if it is longer than our keys may be.  A head with a second
    Authorization field has already been refused.
    """
    match = _BEARER.fullmatch(headers.get("authorization", ""))
    if match is None or len(match[1]) > BEARER_BYTES_MAX:
        return None
    return match[1]


def basic_of(headers: Headers) -> str | None:
    """The password of `Authorization: Basic` (RFC 7617), as latin-1 text.

    None if there is none, or if it is longer than our keys may be.  The user name is ignored.
    """
    match = _BASIC.fullmatch(headers.get("authorization", ""))
    if match is None:
        return None

    try:
        decoded = base64.b64decode(match[1], validate=True)
    except ValueError:
        return None

    _, _, password = decoded.decode("latin-1").partition(":")
    return password if len(password) <= BEARER_BYTES_MAX else None


def match_secret(
    presented: str | None,
    entries: Iterable[Entry],
) -> Entry | None:
    """The key or the operator whose secret was presented (latin-1 text), or None.

    Without a secret the comparison is still made, so that it takes as long.
    """
    secret = (presented or "").encode("latin-1")
    digest = hashlib.sha256(secret).digest()

    match: Entry | None = None
    for entry in entries:  # no early exit: its time would show which entry matched
        if hmac.compare_digest(digest, entry.digest):
            match = entry
    return match if presented else None


@dataclass(eq=False, slots=True)
class KeyUse:
    """What one key has used: its calls in progress, of the last minute, and tokens by UTC day.

    `request_count` and `tokens` are sums since the process started.
    """

    request_count: int = 0
    tokens: Counter[str] = field(default_factory=Counter)  # by the fields of Usage
    in_flight_count: int = 0
    minute: deque[float] = field(default_factory=deque)  # starts; at most requests_per_minute
    day: int = 0  # days since 1970
    day_tokens: int = 0  # of that day

    def admit(
        self,
        key: Key,
        now: float,
        unix_now: float,
    ) -> None:
        """Count a call in.  Raises: PoolerError (key_limit_reached); then nothing is counted."""
        if self.in_flight_count >= key.concurrent:
            raise key_limit("has reached its limit of concurrent requests", 1)
        self.check_tokens(key, unix_now)

        # This check comes last: a call that is refused must not count for the minute.
        if key.requests_per_minute is not None:
            self.check_minute(key.requests_per_minute, now)
            self.minute.append(now)

        self.in_flight_count += 1
        self.request_count += 1

    def check_tokens(self, key: Key, unix_now: float) -> None:
        """Raises: PoolerError (key_limit_reached), with the time until the next UTC day."""
        self.start_day(unix_now)
        if key.tokens_per_day is None or self.day_tokens < key.tokens_per_day:
            return

        day_ends_at = (self.day + 1) * 24 * HOUR
        seconds = math.ceil(day_ends_at - unix_now)
        raise key_limit("has used up its daily tokens (UTC)", seconds)

    def check_minute(
        self,
        requests_max: int,
        now: float,
    ) -> None:
        """Raises: PoolerError (key_limit_reached), with the time until a request is allowed."""
        while self.minute and self.minute[0] <= now - 60:
            self.minute.popleft()
        if len(self.minute) >= requests_max:
            seconds = math.ceil(self.minute[0] + 60 - now)
            raise key_limit("has used up its requests per minute", seconds)

    def charge(
        self,
        spent: Mapping[str, int],
        unix_now: float,
    ) -> None:
        """Add the tokens of one response, by the fields of Usage."""
        self.start_day(unix_now)
        self.day_tokens += spent["input_tokens"] + spent["output_tokens"]
        self.tokens.update(spent)

    def start_day(self, unix_now: float) -> None:
        """Count from zero if a new UTC day has begun."""
        day = int(unix_now // (24 * HOUR))
        if day != self.day:
            self.day = day
            self.day_tokens = 0


def key_limit(reason: str, seconds: int) -> PoolerError:
    """The error for a key that has reached a limit, until `seconds` from now."""
    headers = retry_headers(max(1, seconds))
    return PoolerError("key_limit_reached", f"This pool key {reason}.", headers=headers)


################################################################
# ROUTES
################################################################
# ROUTES is the table of who may do what: each row has a path, its methods, the credential that a
# request must present, and the name of the method of SERVER that serves it.  The table is total:
# its last rows match every other path.  A path is compared as the client sent it: it is not decoded
# or normalised, and a trailing slash counts.  Only the id of a model is decoded, once its route is
# known.


class Access(enum.Enum):
    """The credential that a route requires.  The values are for people; no code compares them."""

    ANYBODY = "none"
    POOL_KEY = "a pool key"
    CODEX_KEY = "a key of a pool that has a ChatGPT account"
    OPERATOR = "an operator's token"
    OPERATOR_PAGE = "an operator's token, for browsers also as the password of Basic"


class CallKind(enum.Enum):
    """Which API a client speaks; the value is its path below an account's base_url."""

    RESPONSES = "/responses"
    CHAT = "/chat/completions"


COMPACT_PATH: Final = "/responses/compact"
SEARCH_PATH: Final = "/alpha/search"
IMAGE_PATHS: Final = ("/images/generations", "/images/edits")
# Tools of Codex CLI, which sends their requests to whatever base URL it has.
TOOL_PATHS: Final = (SEARCH_PATH, *IMAGE_PATHS)
# Bodies are sent on unchanged, and the response comes in one piece.
UNARY_PATHS: Final = (COMPACT_PATH, *TOOL_PATHS)
HEALTH_PATHS: Final = ("/healthz", "/readyz")


@dataclass(frozen=True, eq=False)
class Route:
    """One row of ROUTES; what follows from its path is computed once."""

    name: str  # in the log
    path: str  # below base_path; `find_routes` knows the patterns in braces
    methods: Sequence[str]  # none: every method is refused
    access: Access
    handler: str  # its key in `Server.handlers`

    @functools.cached_property
    def upstream_path(self) -> str:
        """Where a call is sent, below the account's base_url."""
        return self.path.removeprefix("/backend-api/codex").removeprefix("/v1")

    @functools.cached_property
    def kind(self) -> CallKind:
        """The API in which a call's body is written."""
        is_chat = self.upstream_path == CallKind.CHAT.value
        return CallKind.CHAT if is_chat else CallKind.RESPONSES

    @functools.cached_property
    def is_native(self) -> bool:
        """Whether it is Codex CLI's own route: ChatGPT accounts alone serve it, untranslated."""
        return self.access is Access.CODEX_KEY


READ: Final = ("GET", "HEAD")
POST: Final = ("POST",)
UPGRADE: Final = ("GET",)  # to a WebSocket
NO_METHOD: Final = ()
ANYBODY, POOL_KEY, CODEX_KEY, OPERATOR, OPERATOR_PAGE = Access

ROUTES: Final = (
    Route("healthz", "/healthz", READ, ANYBODY, "serve_health"),
    Route("readyz", "/readyz", READ, ANYBODY, "serve_readiness"),
    # The OpenAI API.
    Route("responses", "/v1/responses", POST, POOL_KEY, "accept_call"),
    Route("responses", "/v1/responses", UPGRADE, POOL_KEY, "accept_socket"),
    Route("compact", "/v1/responses/compact", POST, POOL_KEY, "accept_call"),
    Route("chat", "/v1/chat/completions", POST, POOL_KEY, "accept_call"),
    Route("models", "/v1/models", READ, POOL_KEY, "serve_models"),
    Route("model", "/v1/models/{id}", READ, POOL_KEY, "serve_models"),
    Route("usage", "/v1/usage", READ, POOL_KEY, "serve_usage"),
    # Codex CLI's own.
    Route("codex_models", "/backend-api/codex/models", READ, CODEX_KEY, "serve_models"),
    Route("codex_responses", "/backend-api/codex/responses", POST, CODEX_KEY, "accept_call"),
    Route("codex_responses", "/backend-api/codex/responses", UPGRADE, CODEX_KEY, "accept_socket"),
    Route("codex_compact", "/backend-api/codex/responses/compact", POST, CODEX_KEY, "accept_call"),
    Route("codex_search", "/v1/alpha/search", POST, CODEX_KEY, "accept_call"),
    Route("codex_search", "/backend-api/codex/alpha/search", POST, CODEX_KEY, "accept_call"),
    Route("codex_images", "/v1/images/generations", POST, CODEX_KEY, "accept_call"),
    Route("codex_images", "/backend-api/codex/images/generations", POST, CODEX_KEY, "accept_call"),
    Route("codex_image_edits", "/v1/images/edits", POST, CODEX_KEY, "accept_call"),
    Route("codex_image_edits", "/backend-api/codex/images/edits", POST, CODEX_KEY, "accept_call"),
    Route("codex_usage", "/api/codex/usage", READ, POOL_KEY, "serve_codex_usage"),
    Route("codex_usage", "/wham/usage", READ, POOL_KEY, "serve_codex_usage"),
    Route("codex_usage", "/backend-api/wham/usage", READ, POOL_KEY, "serve_codex_usage"),
    # The operators'.
    Route("mcp", "/mcp", POST, OPERATOR, "serve_mcp"),
    Route("admin", "/admin", READ, OPERATOR_PAGE, "serve_admin"),
    Route("metrics", "/metrics", READ, OPERATOR, "serve_metrics"),
    # All else.
    Route("unsupported", "/v1{any}", NO_METHOD, POOL_KEY, "refuse_endpoint"),
    Route("nothing", "{any}", NO_METHOD, ANYBODY, "refuse_path"),
)
_PLAIN_VERSION: Final = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,4}){2}")
_CODEX_AGENT: Final = re.compile(r"codex[_-](?!pooler)[a-z_-]{1,32}/([0-9.]{5,14})")
_VERSION_ASKED: Final = re.compile("&client_version=([0-9.]{5,14})")
_LOOPBACK_ORIGIN: Final = re.compile(
    r"https?://(?:localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[1-9][0-9]{0,4})?"
)


def is_origin_allowed(
    origin: str,
    route: Route,
    config: Config,
) -> bool:
    """Whether pages of this origin, in lower case, may send requests to the route.

    Pages of this machine may also send requests to /mcp (F90), which still need an operator's
    token.
    """
    if route.path == "/mcp" and _LOOPBACK_ORIGIN.fullmatch(origin):
        return True
    allowed = {text.lower() for text in config.allowed_origins}
    return origin in allowed


def codex_version_of(headers: Headers, query: str) -> str:
    """The version of Codex CLI that a request names, the highest of several (F84); else "".

    It may come in the header `version`, in the User-Agent, or in the query.
    """
    texts = [headers.get("version", "")]
    agent = _CODEX_AGENT.match(headers.get("user-agent", ""))
    if agent is not None:
        texts.append(agent[1])
    member = _VERSION_ASKED.search(f"&{query}")
    if member is not None:
        texts.append(member[1])

    versions: list[str] = []
    for text in texts:
        match = _PLAIN_VERSION.match(text)
        if match is not None and is_version_plausible(match[0]):
            versions.append(match[0])
    return max(versions, key=version_key, default="")


def is_version_plausible(version: str) -> bool:
    """Whether Codex CLI may have reached this version since the pooler was released.

    Upstreams are told the highest version that any client has named: without a bound one client
    could make all accounts claim a version that never existed.
    """
    major, minor, _ = version_key(version)
    our_major, our_minor, _ = version_key(CODEX_VERSION)

    if major == our_major:
        return minor <= our_minor + CODEX_MINORS_AHEAD_MAX
    if major == our_major + 1:
        return minor <= CODEX_MINORS_AHEAD_MAX
    return major < our_major


def version_key(version: str) -> tuple[int, ...]:
    """The numbers of a version, by which versions are compared; () for ""."""
    if not version:
        return ()
    numbers = version.split(".")
    return tuple(map(int, numbers))


_ROUTES_BY_PATH: Final[Mapping[str, Sequence[Route]]] = {
    path: [route for route in ROUTES if route.path == path]
    for path in dict.fromkeys(route.path for route in ROUTES)
}


def find_routes(path: str, base_path: str) -> tuple[Sequence[Route], str]:
    """The rows of a path, at least one, and the id of the model that it names, else "".

    Every path outside of `base_path` is unknown, even one that is in the table.
    """
    if not path.startswith(f"{base_path}/"):
        return _ROUTES_BY_PATH["{any}"], ""

    path = path.removeprefix(base_path)
    model = path.removeprefix("/v1/models/")
    if model and model != path:
        return _ROUTES_BY_PATH["/v1/models/{id}"], unquote(model)
    if path in _ROUTES_BY_PATH:
        return _ROUTES_BY_PATH[path], ""

    is_api = path == "/v1" or path.startswith("/v1/")
    pattern = "/v1{any}" if is_api else "{any}"
    return _ROUTES_BY_PATH[pattern], ""


def with_method(
    routes: Sequence[Route],
    method: str,
) -> Route:
    """The row that has the method, or the one that refuses every method.

    Raises: PoolerError (method_not_allowed).
    """
    allowed: list[str] = []
    for route in routes:
        if method in route.methods or not route.methods:
            return route
        allowed.extend(route.methods)

    # The connection stays open: MCP hosts send GET first, and expect that (F89).
    headers = [("Allow", ", ".join(allowed))]
    raise PoolerError("method_not_allowed", headers=headers)


def call_route(path: str) -> Route:
    """The row of a call to `path`, which is in the table."""
    return with_method(_ROUTES_BY_PATH[path], "POST")


################################################################
# HTTP SYNTAX
################################################################
# RFC 9112, minus everything that two readers could understand differently: bare CR or LF, folded
# lines, blanks around names, a second Host, Content-Length or Authorization, a length together
# with chunking, chunk extensions, and targets other than a path.  Upstreams may deviate in a few
# points, each named where it is read.
#
# Every request head passes the grammar here first, because h11 lets through more than that (F94).
# h11 then parses it: a second opinion, which has never differed.

_TOKEN: Final = rb"[!#$%&'*+\-.^`|~\w]"
_REQUEST_LINE: Final = re.compile(_TOKEN + rb"{1,16} /[\w\-.~!$&'()*+,;=:@%/?]* HTTP/1\.([01])")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
# Each field line comes with the line end before it.
_FIELD_LINES: Final = re.compile(rf"(?a:\r\n{_TOKEN.decode()}+:[\t\x20-\x7e\x80-\xff]*)*")
_FIELD: Final = re.compile(r"\r\n([^:\r]+):([^\r]*)")  # of lines that match _FIELD_LINES
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")
_LENGTH: Final = re.compile(r"0|[1-9][0-9]{0,14}")
_HOST_FIELD: Final = re.compile(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
# A size line with the line end before it, and what may be the beginning of one.
_CHUNK_SIZE: Final = re.compile(rb"\r\n([0-9A-Fa-f]{1,8})\r\n")
_CHUNK_SIZE_PART: Final = re.compile(rb"(?:\r(?:\n(?:[0-9A-Fa-f]{1,8}\r?)?)?)?")
# An upstream's may have blanks and extensions, which are ignored (F64).
_EXTENSION: Final = rb"[\t ]{0,16}(?:;[\t\x20-\x7e\x80-\xff]{0,%d})?" % CHUNK_EXTENSION_BYTES_MAX
_LOOSE_SIZE: Final = re.compile(rb"\r\n([0-9A-Fa-f]{1,8})%b\r\n" % _EXTENSION)
_LOOSE_SIZE_PART: Final = re.compile(rb"(?:\r(?:\n(?:[0-9A-Fa-f]{1,8}%b\r?)?)?)?" % _EXTENSION)
_ONCE: Final = frozenset(
    "authorization content-encoding content-length content-type expect host origin "
    "sec-websocket-key sec-websocket-version transfer-encoding upgrade".split()
)
_REPEATABLE: Final = ("content-length", "content-type")  # by an upstream, with one value


class Framing(NamedTuple):
    """Where a body ends: after `length` bytes, or with its last chunk, or with the connection."""

    length: int | None = None
    is_chunked: bool = False


NO_BODY: Final = Framing(length=0)
UNTIL_CLOSE: Final = Framing()


class RequestHead(NamedTuple):
    """A valid request head."""

    method: str
    path: str  # as the client sent it
    query: str  # without the question mark
    host: str | None  # in lower case, without its port; None: HTTP/1.0 without a Host
    is_http_1_0: bool
    headers: Headers
    framing: Framing
    keeps_alive: bool  # as far as the client is concerned


class ResponseHead(NamedTuple):
    """A valid response head of an upstream.

    One of status 1xx is a head of its own: whoever reads it goes on to the next.
    """

    status: int
    headers: Headers
    framing: Framing
    keeps_alive: bool


def _parse_fields(raw: bytes, repeatable: Collection[str] = ()) -> Headers:
    """The values of field lines, by lower-case name; `raw` has each with the line end before it.

    Values of one name are joined by commas (RFC 9110 §5.3), but a name of _ONCE may be repeated
    only if it is in `repeatable`, and with the same value.  Raises: BadSyntax.
    """
    text = raw.decode("latin-1")
    if not _FIELD_LINES.fullmatch(text):
        raise BadSyntax("field line")

    headers: dict[str, str] = {}
    for spelling, padded in _FIELD.findall(text):
        name, value = spelling.lower(), padded.strip(" \t")
        if name not in headers:
            headers[name] = value
        elif name not in _ONCE:
            headers[name] += f", {value}"
        elif name not in repeatable or headers[name] != value:
            raise BadSyntax("field given twice")
    return headers


def _framing_of(headers: Headers, is_http_1_0: bool) -> Framing | None:
    """The framing that the fields declare; None if they declare none.  Raises: BadSyntax."""
    length = headers.get("content-length")
    coding = headers.get("transfer-encoding")
    if coding is not None:
        if length is not None or coding.lower() != "chunked" or is_http_1_0:
            raise BadSyntax("transfer-encoding")
        return Framing(is_chunked=True)

    if length is None:
        return None
    if not _LENGTH.fullmatch(length):
        raise BadSyntax("content-length")
    return Framing(length=int(length))


def has_coding(headers: Headers) -> bool:
    """Whether a body has a Content-Encoding but `identity`, which is none (RFC 9110 §8.4.1)."""
    codings = headers.get("content-encoding", "").lower().split(",")
    return not {coding.strip(" \t") for coding in codings} <= {"", "identity"}


def _options(headers: Headers) -> set[str]:
    """The members of the Connection fields, in lower case (RFC 9110 §7.6.1)."""
    return {option.strip() for option in headers.get("connection", "").lower().split(",")}


def _keeps_alive(headers: Headers, is_http_1_0: bool) -> bool:
    """Whether the connection stays open after the message (RFC 9112 §9.3).

    `close` prevails over `keep-alive`, which only HTTP/1.0 needs.
    """
    options = _options(headers)
    return "close" not in options and (not is_http_1_0 or "keep-alive" in options)


def parse_request_head(raw: bytes) -> RequestHead:
    """A request head: `raw` up to its blank line, inclusive.

    Raises: PoolerError (bad_request, head_too_large, target_too_long).
    """
    line = raw.partition(b"\r\n")[0]
    fields = raw[len(line) : -4]
    if len(line.partition(b" ")[2]) > TARGET_BYTES_MAX + len(b" HTTP/1.1"):
        raise PoolerError("target_too_long")
    start = _REQUEST_LINE.fullmatch(line)
    if start is None:
        raise PoolerError("bad_request")
    if fields.count(b"\n") > HEAD_FIELDS_MAX:
        raise PoolerError("head_too_large")

    is_http_1_0 = start[1] == b"0"
    try:
        headers = _parse_fields(fields)
        framing = _framing_of(headers, is_http_1_0) or NO_BODY
        host = _host_of(headers, is_http_1_0)
        event = _parsed_by_h11(raw)
    except (BadSyntax, h11.RemoteProtocolError):
        raise PoolerError("bad_request") from None

    path, _, query = event.target.decode().partition("?")
    return RequestHead(
        method=event.method.decode(),
        path=path,
        query=query,
        host=host,
        is_http_1_0=is_http_1_0,
        headers=headers,
        framing=framing,
        keeps_alive=_keeps_alive(headers, is_http_1_0),
    )


def _host_of(headers: Headers, is_http_1_0: bool) -> str | None:
    """The name in the Host field, which only HTTP/1.0 may leave out.  Raises: BadSyntax."""
    if is_http_1_0 and "host" not in headers:
        return None

    match = _HOST_FIELD.fullmatch(headers.get("host", ""))
    if match is None:
        raise BadSyntax("host")
    return match[1].lower()


def _parsed_by_h11(raw: bytes) -> h11.Request:
    """A request head as h11 reads it.  Raises: h11.RemoteProtocolError.

    A parser of its own for each head: whatever h11 keeps of a message cannot reach the next.  That
    is about a tenth of what a small request costs, and worth it: a second, independent reading of
    every head, by the parser that most of Python's HTTP clients and servers have been tested with.
    """
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=len(raw))
    parser.receive_data(raw)
    event = parser.next_event()
    assert isinstance(event, h11.Request)
    return event


def parse_response_head(raw: bytes) -> ResponseHead:
    """An upstream's response head, nearly as strict as a client's.

    Some upstreams repeat the type or the length of a body with the same value (RFC 9110 §8.6),
    which leaves nothing to understand differently.  Raises: BadSyntax.
    """
    line = raw.partition(b"\r\n")[0]
    start = _STATUS_LINE.fullmatch(line)
    if start is None:
        raise BadSyntax("status line")

    status, is_http_1_0 = int(start[2]), start[1] == b"0"
    headers = dict(_parse_fields(raw[len(line) : -4], _REPEATABLE))
    for name in _REPEATABLE:
        if "," in headers.get(name, ""):
            headers[name] = _single(headers[name])

    framing = _framing_of(headers, is_http_1_0)
    if status < 200 or status in {204, 304}:
        framing = NO_BODY
    keeps_alive = framing is not None and _keeps_alive(headers, is_http_1_0)
    return ResponseHead(status, headers, framing or UNTIL_CLOSE, keeps_alive)


def _single(value: str) -> str:
    """The one member that a list repeats; any other value unchanged.

    `5, 5` becomes `5`; `5, 6` stays as it is, and is rejected as a length.
    """
    first, *others = [member.strip(" \t") for member in value.split(",")]
    return first if others and {first} == set(others) else value


class ChunkReader:
    """Removes the chunked framing from a body (RFC 9112 §7.1) that is fed in any pieces.

    Sizes have at most 8 digits; only an upstream's may have extensions.  Trailers are validated
    and dropped.  `unread` is what was fed and not used: after the end, it belongs to the next
    message.  `has_more`: it holds more chunks, for which `feed` must be called again.
    """

    __slots__ = ("_is_trailer", "_left", "_size", "_size_part", "has_more", "is_done", "unread")

    def __init__(self, *, is_of_upstream: bool = False) -> None:
        self._size = _LOOSE_SIZE if is_of_upstream else _CHUNK_SIZE
        self._size_part = _LOOSE_SIZE_PART if is_of_upstream else _CHUNK_SIZE_PART
        self._left = 0  # bytes of the chunk that are still to come
        self._is_trailer = False  # the last chunk has come
        self.has_more = False
        self.is_done = False
        self.unread = b"\r\n"  # the first size line follows a line end, too, as all others do

    def feed(self, received: bytes) -> bytes:
        """The bytes of the body that are in `received`, or in its first chunks.

        Raises: BadSyntax.
        """
        buffer = self.unread + received
        byte_count = len(buffer)
        self.has_more = False
        match_size = self._size.match
        at = self._left  # where the current chunk ends, and the next size line begins
        pieces = [buffer[:at]] if at else []
        while at <= byte_count and not self._is_trailer:  # the hot loop of a burst
            match = match_size(buffer, at)
            if match is None:
                if not self._size_part.fullmatch(buffer, at):
                    raise BadSyntax("chunk size")
                break

            if len(pieces) >= CHUNKS_AT_ONCE_MAX:
                self.has_more = True
                break
            start = match.end()
            at = start + int(match[1], 16)
            if at == start:
                self._is_trailer = True
            else:
                pieces.append(buffer[start:at])

        self._left = max(0, at - byte_count)
        self.unread = buffer[at:]
        if self._is_trailer:
            self._read_trailer()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_trailer(self) -> None:
        """Validate the trailer, as far as it has come.  Raises: BadSyntax."""
        # The end of the last size line serves as the line end before the first field.
        section, end, after = (b"\r\n" + self.unread).partition(b"\r\n\r\n")
        if len(section) > TRAILER_BYTES_MAX + (0 if end else len(b"\r\n\r")):
            raise BadSyntax("trailer too large")
        if _BARE_LF.search(section):
            raise BadSyntax("trailer")
        if end:
            _parse_fields(section)
            self.unread = after
            self.is_done = True


class LengthReader:
    """Takes `length` bytes as a body; None: everything until the peer closes."""

    __slots__ = ("_left", "has_more", "is_done", "unread")

    def __init__(self, length: int | None) -> None:
        self._left = length
        self.has_more = False
        self.is_done = length == 0
        self.unread = b""

    def feed(self, received: bytes) -> bytes:
        """The bytes of the body that are in `received`."""
        if self._left is None:
            return received

        piece, self.unread = received[: self._left], received[self._left :]
        self._left -= len(piece)
        self.is_done = not self._left
        return piece


BodyReader = ChunkReader | LengthReader


def body_reader(framing: Framing, *, is_of_upstream: bool = False) -> BodyReader:
    """A new reader for a body with that framing."""
    if framing.is_chunked:
        return ChunkReader(is_of_upstream=is_of_upstream)
    return LengthReader(framing.length)


REASONS: Final = {status.value: status.phrase for status in http.HTTPStatus}


def format_head(start_line: str, headers: Iterable[Field]) -> bytes:
    """A message head.  Values are our own, or have passed the grammar of fields.

    Nobody can add a field through a value all the same.  Raises: ValueError.
    """
    lines = [f"{name}: {value}\r\n" for name, value in headers]
    head = f"{start_line}{''.join(lines)}\r\n"
    if not head.count("\r") == head.count("\n") == len(lines) + 2:
        raise ValueError("a line end within a field")
    return head.encode("latin-1")


def format_response_head(status: int, headers: Iterable[Field]) -> bytes:
    """A response head, with the standard reason of its status."""
    return format_head(f"HTTP/1.1 {status} {REASONS.get(status, '')}\r\n", headers)


def format_chunk(body: bytes) -> bytes:
    """`body` as one chunk; an empty one is the last."""
    return b"%x\r\n%b\r\n" % (len(body), body)


################################################################
# WEBSOCKET SYNTAX
################################################################
# Of RFC 6455 what trio-websocket does not do: the heads of the opening handshake, which it is
# only given once they are valid, and bounds on frames, which are counted before it joins them.
#
# A client's head has been read by HTTP SYNTAX, like any other: Host, Origin and key are validated
# before there is a WebSocket.  The library then gets a head that the pooler has made itself.

_WEBSOCKET_GUID: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_UPGRADE: Final = (("Upgrade", "websocket"), ("Connection", "Upgrade"))
_WEBSOCKET_KEY: Final = re.compile(r"[A-Za-z0-9+/]{22}==")
_TEXT: Final = 0x1  # opcodes (RFC 6455 §5.2)
_BINARY: Final = 0x2


def _is_upgrade(headers: Headers) -> bool:
    """Whether a head is that of a WebSocket's opening handshake (RFC 6455 §4.2.1)."""
    protocol = headers.get("upgrade", "").lower()
    return protocol == "websocket" and "upgrade" in _options(headers)


def upgrade_fields(key: str) -> list[Field]:
    """The fields of an opening handshake, without extensions or subprotocol (RFC 6455 §4.1)."""
    return [*_UPGRADE, ("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", key)]


def upgrade_head(head: RequestHead) -> bytes:
    """A new head of an opening handshake, made from a valid one: with the required fields only.

    Extensions that the client offers are left out, so the library accepts none: the size of a
    compressed message would not be known before it is decompressed.

    Raises: PoolerError (websocket_unsupported, bad_request).
    """
    version = head.headers.get("sec-websocket-version")
    key = head.headers.get("sec-websocket-key", "")
    if not _is_upgrade(head.headers) or head.is_http_1_0 or version != "13":
        raise PoolerError("websocket_unsupported")
    if not _WEBSOCKET_KEY.fullmatch(key) or head.framing != NO_BODY:
        raise PoolerError("bad_request")

    fields = [("Host", "pooler"), *upgrade_fields(key)]
    return format_head("GET / HTTP/1.1\r\n", fields)


def upgraded_head(key: str) -> bytes:
    """The response head that accepts an upgrade requested with `key`."""
    accept = ("Sec-WebSocket-Accept", _accept_of(key))
    return format_response_head(101, [*_UPGRADE, accept])


def _accept_of(key: str) -> str:
    """The proof that a server has read `key` (RFC 6455 §4.2.2)."""
    text = f"{key}{_WEBSOCKET_GUID}"
    digest = hashlib.sha1(text.encode(), usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


def is_upgraded(head: ResponseHead, key: str) -> bool:
    """Whether an upstream has accepted the upgrade requested with `key`, and nothing more."""
    if head.status != 101 or not _is_upgrade(head.headers):
        return False
    if head.headers.get("sec-websocket-accept") != _accept_of(key):
        return False

    # Neither was offered (RFC 6455 §4.1).
    extras = forwarded(head.headers, ("sec-websocket-extensions", "sec-websocket-protocol"))
    return not extras


def close_frame(code: int) -> bytes:
    """A server's Close frame without a reason (RFC 6455 §5.5.1)."""
    return b"\x88\x02" + code.to_bytes(2, "big")


def is_utf8(text: bytes) -> bool:
    """Whether `text` is UTF-8; no `str` of it is made, in which a letter may take 4 bytes.

    It is read in pieces: one emoji would make a `str` of the whole message four times as large.
    """
    if text.isascii():
        return True
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for at in range(0, len(text), RECEIVE_BYTES):
            decoder.decode(text[at : at + RECEIVE_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _read_frame_head(head: bytes) -> tuple[int, int] | None:
    """The bytes of a frame's head and of its payload; None if the head is not complete.

    RFC 6455 §5.2: two bytes, then 2 or 8 for a longer length, then 4 of a client's mask.
    """
    if len(head) < 2:
        return None

    code = head[1] & 0x7F
    length_bytes = {126: 2, 127: 8}.get(code, 0)
    size = 2 + length_bytes
    length = int.from_bytes(head[2:size], "big") if length_bytes else code
    if head[1] & 0x80:
        size += 4
    return (size, length) if len(head) >= size else None


def _with_binary_frames(frames: bytes, texts: Collection[int]) -> bytes:
    """The frames, with those that begin at `texts` turned from text into binary ones."""
    if not texts:
        return frames

    turned = bytearray(frames)
    for at in texts:
        turned[at] ^= _TEXT ^ _BINARY
    return bytes(turned)


@dataclass(eq=False, slots=True)
class FrameMeter:
    """Counts the frames of a WebSocket's peer as they come, and turns text into bytes.

    trio-websocket bounds neither the frames of a message, which may be empty, nor the pings, and
    it makes a `str` of each part of a text (F95).  So it gets every text frame as a binary one (RFC
    6455 §5.2); binary ones of the peer are refused.

    Only kind and length of a frame are read here.  The library checks the rest: masks, reserved
    bits, and the order of fragments.
    """

    bytes_max: int  # of a message
    frames_max: int  # from one message to the next
    bytes_pending: int = 0  # what has come of the message that is not complete
    part_count: int = 0  # in which it has come
    bytes_whole: int = 0  # of complete messages that nobody has taken
    message_count: int = 0  # complete ones
    is_closed: bool = False  # the peer's Close has come
    refused: int = 0  # the code of the Close for a peer that exceeds a bound
    _frame_count: int = 0  # since the last complete message
    _head: bytes = b""  # of a frame, incomplete
    _left: int = 0  # bytes of the frame's payload that are still to come
    _kind: int = 0  # the first byte of the frame
    _is_in_message: bool = False

    @property
    def is_amid(self) -> bool:
        """Whether a frame or a message has begun and is not complete."""
        return bool(self._is_in_message or self._left or self._head)

    @property
    def is_over(self) -> bool:
        """Whether nothing more is passed on."""
        return self.is_closed or self.refused > 0

    def feed(self, received: bytes) -> bytes:
        """What of `received` may be passed on at once: nothing after a Close or a refusal."""
        at = frame_count = 0
        texts: list[int] = []  # where text frames begin
        # An empty frame takes six bytes, so one receive may hold ten thousand.
        while at < len(received) and frame_count < FRAMES_AT_ONCE and not self.is_over:
            if self._left:
                step = min(self._left, len(received) - at)
                self._take_payload(step)
            else:
                is_text = not self._head and received[at] & 0x0F == _TEXT
                step = self._begin(received[at : at + 14])  # no head is longer
                if is_text and step:
                    texts.append(at)

            at += step
            if self._is_between_frames():
                self._end()
                frame_count += 1
        return _with_binary_frames(received[:at], texts)

    def _is_between_frames(self) -> bool:
        """Whether the last frame is complete."""
        return not (self._left or self._head or self.refused)

    def _take_payload(self, byte_count: int) -> None:
        """Count bytes of a payload; a control frame's are not kept."""
        self._left -= byte_count
        if not self._kind & 0x08:
            self.bytes_pending += byte_count
            self.part_count += 1

    def _end(self) -> None:
        """Note the end of a frame, which may be that of its message."""
        self.is_closed = self._kind & 0x0F == 0x08
        if self._kind & 0x88 == 0x80:  # final, and no control frame
            self.bytes_whole += self.bytes_pending
            self.message_count += 1
            self._is_in_message = False
            self._frame_count = self.bytes_pending = self.part_count = 0

    def _begin(self, received: bytes) -> int:
        """Read the head of a frame, or a part of it; returns the number of bytes used."""
        head = self._head + received
        if head[0] & 0x0F == _BINARY:
            self.refused = 1003
            return 0

        sizes = _read_frame_head(head)
        if sizes is None:
            self._head = head
            return len(received)

        used = sizes[0] - len(self._head)
        self._head, self._kind, self._left = b"", head[0], sizes[1]
        is_data = not head[0] & 0x08
        self._is_in_message |= is_data
        self._frame_count += 1
        if self._frame_count > self.frames_max:
            self.refused = 1008
        elif is_data and self.bytes_pending + self._left > self.bytes_max:
            self.refused = 1009
        return 0 if self.refused else used


################################################################
# REQUEST BODIES
################################################################
# A body is parsed and validated once.  Then it is forwarded unchanged, or serialised again from
# what was validated.  Names that an object has twice are refused, so that an upstream cannot read
# another value than the one that was validated here.


class Obstacle(NamedTuple):
    """A field that no codex account can honour."""

    param: str
    public: str = ""  # what to send instead


class Call(NamedTuple):
    """What a request asks of its pool, and where its session belongs."""

    kind: CallKind
    pool: Pool
    key: Key
    requested_model: str
    model: str  # with the pool's alias applied
    is_stream: bool
    is_stored: bool
    # Digests that begin with the names of pool and key: of the session, which is named or found by
    # its beginning; of that which a web search of this session will name; of the earlier response.
    session: bytes | None
    search_session: bytes | None
    response: bytes | None
    path: str  # below the base_url of an account to which the body is sent unchanged
    is_native: bool  # Codex CLI's own: nothing but credentials changes
    is_codex_only: bool  # the route is one that only ChatGPT accounts have
    obstacle: Obstacle | None  # the first one
    is_socket: bool = False  # a turn of a WebSocket
    is_unary: bool = False  # see UNARY_PATHS
    is_unlisted: bool = False  # it names no model, or one that no catalogue lists

    @property
    def key_name(self) -> KeyNames:
        return self.key.pool, self.key.name


# By which clients name a session (F74); the body's prompt_cache_key comes after them.
SESSION_HEADERS: Final = (
    "x-codex-window-id", "x-codex-session-id", "session-id", "x-session-id",
    "x-session-affinity", "session_id", "thread-id", "x-codex-conversation-id",
    "conversation_id",
)  # fmt: skip


def check_json_shape(body: bytes) -> Iterator[None]:
    """Refuse a body that has too many members, in steps that block the loop only briefly.

    Much text takes time to parse, too, so next to it only half as many are allowed.
    Raises: PoolerError (invalid_json).
    """
    parts = 2 if len(body) > MUCH_TEXT_BYTES else 1
    try:
        yield from members_checked(body, JSON_SEPARATORS_MAX // parts)
    except BadSyntax as error:
        raise PoolerError("invalid_json", f"The request body has {error}.") from None


def _once(pairs: list[tuple[str, Json]]) -> JsonDict:
    """The object with these members.  Raises: ValueError, if a name is there twice."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name is in an object twice")
    return members


def _short_int(digits: str) -> int:
    """Raises: ValueError, if it is so long that to convert it would take long."""
    if len(digits) > INTEGER_DIGITS_MAX:
        raise ValueError("number too long")
    return int(digits)


def _strict_decoder() -> json.JSONDecoder:
    """A new decoder, for one body: it counts the floats, each of which takes some microseconds."""
    counter = itertools.count(1)

    def read_float(text: str) -> float:
        """The finite number in `text`.  Raises: ValueError, also if there are too many."""
        value = float(text)
        if not math.isfinite(value):  # NaN, which is no JSON, or 1e400
            raise ValueError("no finite number")

        if next(counter) > FLOATS_MAX:
            raise ValueError("too many floats")

        return value

    return json.JSONDecoder(
        object_pairs_hook=_once,
        parse_int=_short_int,
        parse_float=read_float,
        parse_constant=read_float,
    )


def decode_body(body: bytes) -> str:
    """The text of a body: UTF-8 without BOM.  Raises: PoolerError (invalid_json)."""
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        raise PoolerError("invalid_json") from None


def parse_strictly(text: str, depth_max: int) -> Json:
    """The value of a client's JSON.  Raises: ValueError, BadSyntax (too much nesting)."""
    return parse_shallow(_strict_decoder().decode, text, depth_max)


def parse_json_object(text: str) -> JsonDict:
    """The JSON object in the text of a body, read strictly: no name twice, no NaN.

    The body must have passed `check_json_shape`.  Raises: PoolerError (invalid_json).
    """
    try:
        value = parse_strictly(text, BODY_DEPTH_MAX)
    except BadSyntax as error:
        raise PoolerError("invalid_json", f"The request body has {error}.") from None
    except ValueError:
        raise PoolerError("invalid_json") from None

    if not isinstance(value, dict):
        raise PoolerError("invalid_json", "The request body must be a JSON object.")
    return value


def parse_again(text: str) -> JsonDict:
    """The object in a text that `parse_json_object` has read before: nothing is checked again."""
    value: JsonDict = uncollected(json.loads, text)
    return value


def digest_parts(*parts: str) -> bytes:
    """One digest of several texts; only the last of them may hold a NUL."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).digest()


def _is_message(item: JsonObject, *roles: str) -> bool:
    """Whether an item of either API is a message of one of these roles."""
    return item.get("type") in (None, "message") and item.get("role") in roles


_CONTENT_MEMBERS: Final = (
    "text", "url", "image_url", "file_url", "file_id", "file_data", "data",
)  # fmt: skip


def _content_texts(content: Json) -> Iterator[str]:
    """The texts of a message's content in either API's form, and the addresses of its files."""
    if isinstance(content, str):
        yield content
        return

    for part in content if isinstance(content, list) else ():
        # Chat puts the address of a file into an object, Responses next to the type.
        for holder in (part, *map(object_of, object_of(part).values())):
            for name in _CONTENT_MEMBERS:
                if text := text_at(holder, name):
                    yield text


def _beginning_of(texts: Iterable[str]) -> str:
    """The length of several texts, and their first BEGINNING_CHARS_MAX characters; else ""."""
    beginning, length = "", 0
    for text in texts:
        beginning += text[: BEGINNING_CHARS_MAX - len(beginning)]
        length += len(text)
    return f"{length} {beginning}" if length else ""


def conversation_digest(kind: CallKind, body: JsonObject) -> str:
    """A digest of what all turns of a conversation share; "" if there is no such thing.

    That is the instructions, or the system's text in front of the user's first message, and that
    message: histories are sent whole, and most clients name no session (F75).
    """
    items = body.get("input")
    if kind is CallKind.CHAT:
        items = body.get("messages") or items  # Cursor sends `input` to Chat (F86)
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]

    instructions = [text_at(body, "instructions")]
    for item in map(object_of, items if isinstance(items, list) else ()):
        if _is_message(item, "user"):
            message = _beginning_of(_content_texts(item.get("content")))
            return digest_parts(_beginning_of(instructions), message).hex() if message else ""
        if _is_message(item, "system", "developer"):
            instructions += _content_texts(item.get("content"))
    return ""


def find_session(
    route: Route,
    body: JsonObject,
    headers: Headers,
    scope: KeyNames,
    *,
    before: bytes | None,
) -> bytes | None:
    """The digest of a request's session: as named, or as before, or found by its beginning.

    `scope` is the pool and the key; `before` the session of the WebSocket's turn before.  A body
    that continues an earlier response holds only what is new, and a tool's request nothing of its
    conversation: such a body has no beginning.
    """
    names = [headers.get(name, "") for name in SESSION_HEADERS]
    names.append(text_at(body, "prompt_cache_key"))
    if route.upstream_path == SEARCH_PATH:
        names.append(text_at(body, "id"))
    name = next(filter(None, names), "")
    if name:
        return digest_parts(*scope, "session", name[:SESSION_CHARS_MAX])
    if before is not None:
        return before

    if body.get("previous_response_id") or route.upstream_path in TOOL_PATHS:
        return None
    beginning = conversation_digest(route.kind, body)
    return digest_parts(*scope, "conversation", beginning) if beginning else None


def read_call(
    route: Route,
    body: JsonObject,
    headers: Headers,
    pool: Pool,
    key: Key,
    *,
    obstacle: Obstacle | None = None,
    socket_id: str = "",
    session_before: bytes | None = None,
) -> Call:
    """What the request asks for, if this key may ask for it.

    `socket_id` names the WebSocket of which it is a turn, and `session_before` the session of the
    turn before, which continues unless this one names another: one account serves a WebSocket best.
    Raises: PoolerError (missing_required_parameter, invalid_value, model_not_found,
    unsupported_parameter).
    """
    model = _model_of(body, pool, key, route)
    kind, path = route.kind, route.upstream_path
    is_unary = path in UNARY_PATHS
    _check_flags(body, route)

    scope = (pool.name, key.name)
    session = find_session(route, body, headers, scope, before=session_before)
    if session is None and socket_id:
        session = digest_parts(*scope, "socket", socket_id)

    is_native = route.is_native
    if is_lite(kind, body, headers) and pool.has_codex:
        is_native, obstacle = True, None
    return Call(
        kind=kind,
        pool=pool,
        key=key,
        requested_model=model,
        model=pool.meant_by(model).model,
        is_stream=not is_unary and (bool(socket_id) or body.get("stream") is True),
        is_stored=kind is CallKind.RESPONSES and body.get("store") is not False,
        session=session,
        search_session=_search_session(headers, scope),
        response=_response_of(body, scope),
        path=path,
        is_native=is_native,
        is_codex_only=route.is_native,
        obstacle=obstacle,
        is_socket=bool(socket_id),
        is_unary=is_unary,
        is_unlisted=not model or path in IMAGE_PATHS,
    )


def _check_flags(body: JsonObject, route: Route) -> None:
    """Raises: PoolerError (unsupported_parameter, invalid_value)."""
    if route.upstream_path in TOOL_PATHS and body.get("stream"):
        public = "The response of this route comes in one piece."
        raise PoolerError("unsupported_parameter", public, param="stream")
    for name in ("stream", "store"):
        valid_member(body, name, bool)


def _response_of(body: JsonObject, scope: KeyNames) -> bytes | None:
    """The digest of the earlier response that a body continues, if an account can have made it."""
    previous = text_at(body, "previous_response_id")
    if not previous or len(previous) > RESPONSE_ID_CHARS_MAX:
        return None
    return digest_parts(*scope, "response", previous)


def _model_of(body: JsonObject, pool: Pool, key: Key, route: Route) -> str:
    """The model that a request names; "" if a tool of Codex CLI leaves it to the upstream.

    Image models are in no catalogue, so a pool's list does not exclude them: only a key's list
    does, and then the request must name one.
    Raises: PoolerError (missing_required_parameter, invalid_value, model_not_found).
    """
    model = body.get("model")
    is_image = route.upstream_path in IMAGE_PATHS
    is_tool = route.upstream_path in TOOL_PATHS
    may_be_absent = is_tool and not (is_image and key.models is not None)
    if model is None and may_be_absent:
        return ""

    if not isinstance(model, str) or not model:
        raise PoolerError("missing_required_parameter", param="model")
    if len(model) > MODEL_CHARS_MAX:
        message = f"The name of a model has at most {MODEL_CHARS_MAX} characters."
        raise PoolerError("invalid_value", message, param="model")
    listing = dataclasses.replace(pool, models=None) if is_image else pool
    if not is_model_allowed(model, listing, key):
        raise unknown_model(pool, key, ())
    return model


def _search_session(headers: Headers, scope: KeyNames) -> bytes | None:
    """The digest of what Codex CLI's web search will give as its `id`; None if there is no such id.

    That is the session (F26), whatever its turns name; but a subagent's thread differs from it.
    """
    session = headers.get("session-id") or headers.get("session_id") or ""
    thread = headers.get("thread-id") or headers.get("thread_id") or session
    if not session or thread != session:
        return None
    return digest_parts(*scope, "session", session[:SESSION_CHARS_MAX])


def is_lite(kind: CallKind, body: JsonObject, headers: Headers) -> bool:
    """Whether a body is in the form that Codex CLI uses for most of its models.

    A header says so, or a member of the body on a WebSocket, and the upstream wants such a body
    unchanged (F16).
    """
    metadata = text_at(body.get("client_metadata"), LITE_METADATA)
    return kind is CallKind.RESPONSES and "true" in (headers.get(LITE_HEADER), metadata)


def is_model_allowed(requested: str, pool: Pool, key: Key) -> bool:
    """Whether the pool's and the key's lists allow a name, which may be an alias."""
    model = pool.meant_by(requested).model
    if key.models is not None and not {requested, model} & set(key.models):
        return False
    return pool.models is None or model in pool.models


def unknown_model(pool: Pool, key: Key, offered: Iterable[str]) -> PoolerError:
    """The error for a model that a key may not use, with some of those that it may.

    `offered` are the models of the pool's accounts, which count if the pool lists none.  A name
    that looks like a status that clients retry is left out.
    """
    listed = offered if pool.models is None else pool.models
    names = (
        name
        for name in dict.fromkeys([*(key.models or ()), *listed, *pool.aliases])
        if is_model_allowed(name, pool, key) and not _RETRIED_DIGITS.search(name)
    )
    shown = ", ".join(itertools.islice(names, MODELS_SHOWN_MAX))
    if not shown:
        return PoolerError("model_not_found")

    public = f"This key has no such model. It may use {shown} (GET /v1/models)."
    return PoolerError("model_not_found", public)


def with_alias(kind: CallKind, body: JsonObject, alias: Alias) -> JsonDict:
    """The body with its alias resolved: another model, and the tier and effort of the alias."""
    resolved = {**body, "model": alias.model}
    if alias.service_tier is not None:
        resolved["service_tier"] = alias.service_tier
    if alias.effort is None:
        return resolved

    # Some Chat clients send the Responses API's object, too: both must have the same effort.
    reasoning = object_of(body.get("reasoning"))
    if kind is CallKind.CHAT:
        resolved["reasoning_effort"] = alias.effort
    if kind is CallKind.RESPONSES or "effort" in reasoning:
        resolved["reasoning"] = {**reasoning, "effort": alias.effort}
    return resolved


COMPACTIONS: Final = ("compaction", "compaction_summary", "context_compaction")
ENCRYPTED_ITEMS: Final = ("reasoning", *COMPACTIONS)


def drop_reasoning(body: JsonObject) -> JsonDict | None:
    """The body without the items that another account cannot read; None if it has none (F10).

    They are dropped whole: upstreams refuse an item without its encrypted content.
    """
    items = body.get("input")
    if not isinstance(items, list):
        return None

    # ENCRYPTED_ITEMS is a tuple: a type may be a list, which a set could not look up.
    kept = [item for item in items if object_of(item).get("type") not in ENCRYPTED_ITEMS]
    return None if len(kept) == len(items) else {**body, "input": kept}


################################################################
# EVENT STREAMS
################################################################
# WHATWG HTML, "Interpreting an event stream".  Events are scanned and never rewritten: the client
# gets each whole event byte for byte.  An event is parsed as JSON only if its first key is not its
# type, or if it carries something that is required: the end, an error or usage.


RESPONSE_FIELDS: Final = ("id", "object", "created_at", "model")  # those that are remembered


class EventKind(enum.Enum):
    IDLE = enum.auto()  # comments and `keepalive` (F76): they prove no progress
    HANDSHAKE = enum.auto()  # before content; failover is still possible (F28)
    CONTENT = enum.auto()
    SUCCESS = enum.auto()  # terminal (F29)
    FAILURE = enum.auto()  # terminal
    DONE = enum.auto()  # `[DONE]`


# These say how the response ended; `[DONE]` does not.
_OUTCOME_KINDS: Final = frozenset({EventKind.SUCCESS, EventKind.FAILURE})
TERMINAL_KINDS: Final = _OUTCOME_KINDS | {EventKind.DONE}
_KIND_OF_TYPE: Final[Mapping[bytes, EventKind]] = {
    b"keepalive": EventKind.IDLE,
    b"response.created": EventKind.HANDSHAKE,
    b"response.in_progress": EventKind.HANDSHAKE,
    b"response.queued": EventKind.HANDSHAKE,
    b"response.metadata": EventKind.HANDSHAKE,
    b"response.completed": EventKind.SUCCESS,
    b"response.incomplete": EventKind.SUCCESS,
    b"response.done": EventKind.SUCCESS,
    b"response.failed": EventKind.FAILURE,
    b"error": EventKind.FAILURE,
}
# A lone CR also ends a line, but only the next byte shows that no LF follows it.
_EVENT_END: Final = re.compile(rb"(?:\r\n|\n|\r(?=[^\n])){2}")
_EVENT_END_AT_EOF: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_EVENT_END_WITHOUT_CR: Final = re.compile(rb"\n\n")
_BEGINS_WITH_TYPE: Final = (
    rb"\{(?:\"sequence_number\": ?\d{1,20}, ?)?\"type\": ?\"([a-z0-9_.]{1,200})\""
)
_TYPE_FIRST: Final = re.compile(rb"(?:event: ?[^\r\n]{0,200}\r?\n)?data: ?" + _BEGINS_WITH_TYPE)
_TYPE_FIRST_IN_MESSAGE: Final = re.compile(_BEGINS_WITH_TYPE)
_SOME_LINES: Final = re.compile(rb"(?:[^\r\n]*[\r\n]){%d}" % LINES_AT_ONCE_MAX)
_NUMBER: Final = re.compile(rb'"sequence_number"\s*:\s*([0-9]{1,12})(?![0-9.eE])')
_CHAT_CONTENT: Final = re.compile(rb"data: ?\{\"(?:id|choices|object|created|model)\"")
_CHAT_NOTABLE: Final = re.compile(
    rb'"(?:finish_reason"\s*:\s*"(?!")|usage"\s*:\s*\{|error"\s*:\s*[^n\s]|object"\s*:\s*"error)'
)


class Usage(NamedTuple):
    """Token counts as a response reports them."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


# Input tokens -> output tokens, as Responses and Chat call them.
_USAGE_NAMES: Final = {
    "input_tokens": "output_tokens",
    "prompt_tokens": "completion_tokens",
}


def read_usage(value: Json) -> Usage | None:
    """The token counts in the `usage` of a Responses or Chat response; None if it has none."""
    if not isinstance(value, dict):
        return None

    for input_name, output_name in _USAGE_NAMES.items():
        if input_name in value:
            input_details = value.get(f"{input_name}_details")
            output_details = value.get(f"{output_name}_details")
            return Usage(
                count_at(value, input_name),
                count_at(value, output_name),
                count_at(input_details, "cached_tokens"),
                count_at(output_details, "reasoning_tokens"),
            )
    return None


def _lines(event: bytes) -> list[bytes]:
    """The lines of an event, some of them empty.  Raises: BadSyntax, if there are too many."""
    line_count = event.count(b"\n") + event.count(b"\r")
    if line_count > EVENT_LINES_MAX and line_count - event.count(b"\r\n") > EVENT_LINES_MAX:
        raise BadSyntax("too many lines")
    event = event.removeprefix(_BYTE_ORDER_MARK)
    return event.splitlines() if b"\r" in event else event.split(b"\n")


def event_data(event: bytes) -> bytes:
    """The data of one event: its `data` lines joined by LF.  Raises: BadSyntax."""
    fields = [line for line in _lines(event) if line.startswith(b"data:")]
    # One space after the colon belongs to the syntax; further ones belong to the data.
    data = [line.removeprefix(b"data:").removeprefix(b" ") for line in fields]
    return b"\n".join(data)


class Event(NamedTuple):
    """One event of a stream: unchanged SSE lines, or one WebSocket message.

    A run of events that are all plain content may stand in it together, as `event_count` of them.
    """

    kind: EventKind
    raw: bytes
    value: JsonDict | None = None  # the object in it, if it has been parsed
    is_message: bool = False
    event_count: int = 1

    def load(self) -> JsonDict:
        """The JSON object in the event; an empty one if there is none.

        Raises: BadSyntax, if it would take long to parse.
        """
        if self.value is not None:
            return self.value
        return load_object(self.raw if self.is_message else event_data(self.raw))

    def try_load(self) -> JsonDict:
        """Like `load`, but an object that would take long to parse is empty, too."""
        try:
            return self.load()
        except BadSyntax:
            return {}


def failure_of(value: JsonObject) -> JsonObject:
    """The error object of a failed event, whatever its shape (F38).

    Status and headers next to the error are added to it: an event of a WebSocket carries them in
    place of an HTTP response.
    """
    response = object_of(value.get("response"))
    error = response.get("error") or value.get("error")
    if not isinstance(error, dict):
        return value if error == value.get("error") else response
    return members_of(value, ("status", "status_code", "headers")) | error


# The members of an error that nothing wraps: those of OpenAI and of RFC 9457.
_PROBLEM_FIELDS: Final = frozenset(
    "code detail instance message param request_id status title type".split()
)
# Next to one of these, `errors` only comments on a response that has not failed.
_SUCCESS_FIELDS: Final = frozenset({"choices", "id", "output"})
_FAILED_STATUS: Final = re.compile("[45][0-9][0-9]")


def is_error(value: JsonObject) -> bool:
    """Whether an object is an error, if no known `type` says what it is (F58)."""
    if value.get("error") or "error" in (value.get("type"), value.get("object")):
        return True

    choices = objects_of(value.get("choices"))
    if any(object_of(choice).get("error") for choice in choices):
        return True

    if objects_of(value.get("errors")) and not value.keys() & _SUCCESS_FIELDS:
        return True

    # An error that nothing wraps has no members but those of errors.
    if not value.keys() <= _PROBLEM_FIELDS:
        return False
    statuses = (value.get("code"), value.get("status"))
    return bool(value.get("detail")) or any(map(status_in, statuses))


def status_in(value: Json) -> int:
    """The HTTP status of a failed response, from a number or text; 0 if the value is neither."""
    text = str(value) if isinstance(value, int | str) else ""
    return int(text) if _FAILED_STATUS.fullmatch(text) else 0


def _kind_of_type(name: bytes) -> EventKind:
    """The kind of an event of that type.

    An unknown type is content, so that no other account is tried after it.  Those of Codex itself
    are the exception: they are about the account and carry nothing of a response.
    """
    is_codex = name.startswith(b"codex.")
    return _KIND_OF_TYPE.get(name, EventKind.HANDSHAKE if is_codex else EventKind.CONTENT)


def is_event_type(name: bytes) -> bool:
    """Whether a type is that of an event: errors in HTTP responses have a `type`, too."""
    return name.startswith((b"response.", b"codex.")) or name in _KIND_OF_TYPE


# OpenCode retries a broken stream only if the error message allows it (F68).
RETRY_WORDS: Final = "You can retry your request."


@dataclass(eq=False, slots=True)
class EventScanner:
    """Splits a stream into events and classifies them: SSE in any pieces, or WebSocket messages.

    After the terminal event, `failure` is the error object if the response failed, and `usage` and
    `response` are what the upstream reported.
    """

    kind: CallKind
    is_socket: bool = False  # events are messages
    is_translated: bool = False  # parsed content is kept for the translator
    joins_content: bool = False  # plain content is not taken apart into single events
    has_content: bool = False
    has_finish: bool = False  # a Chat finish_reason was seen
    terminal: EventKind | None = None
    failure: JsonObject | None = None
    usage: Usage | None = None
    response: JsonDict = field(default_factory=dict)  # id, created_at, model if known
    has_done: bool = False  # a `[DONE]` was seen
    _is_first: bool = True  # only the first event may have a byte order mark
    _unfinished: bytearray = field(default_factory=bytearray)  # the bytes of one event
    _next_number: int = 0  # after the latest sequence number
    _content_prefix: bytes = b"\0"  # of the latest content; no event begins with NUL
    _run_prefix: bytes = b"\0"  # with which each event of a run begins

    @property
    def bytes_pending(self) -> int:
        """The length of the unfinished event."""
        return len(self._unfinished)

    def feed(self, received: bytes, *, is_end: bool = False) -> list[Event]:
        """The events that `received` completes, unchanged.  Raises: BadSyntax.

        `is_end`: the body has ended, so that a last CR is a line end of its own.  An unfinished
        event is then dropped, as the standard requires, unless it is only blank lines.
        """
        if not is_end and (run := self.take_run(received)):
            return [run]

        events = [self._take(raw) for raw in self._split(received, is_end)]
        self._note_number(events)
        return events

    def take_run(self, received: bytes) -> Event | None:
        """The events that `received` completes, as one run; None if they are not plain content.

        Nearly all events of a stream are: what all of them have in common is counted by two
        searches, which cost less than a step of Python for each.
        """
        end = received.rfind(b"\n\n") + 2
        if end < 2 or not self.joins_content:
            return None

        run = received[:end]
        if self._unfinished:
            run = bytes(self._unfinished) + run
        if not run.startswith(self._run_prefix) or b"\r" in run:
            return None

        # Each event has at least the line ends of its start and two at its end.  If there are no
        # more than that, no other event hides between two that begin in the same way.
        event_count = run.count(b"\n\n" + self._run_prefix) + 1
        if run.count(b"\n") != event_count * (self._run_prefix.count(b"\n") + 2):
            return None
        if self.kind is CallKind.CHAT and _CHAT_NOTABLE.search(run):
            return None

        self._unfinished[:] = received[end:]
        self.has_content = True
        self._note_number_at(run, run.rfind(b"\n\n", 0, -2) + 2 if event_count > 1 else 0)
        return Event(EventKind.CONTENT, run, event_count=event_count)

    def take_message(self, message: bytes) -> Event:
        """The event that a WebSocket message is.  Raises: BadSyntax."""
        event = self._take(message)
        self._note_number([event])
        return event

    def _split(self, received: bytes, is_end: bool) -> list[bytes]:
        """The events that are complete by now; the bytes of an unfinished one are kept."""
        boundary = _EVENT_END_AT_EOF if is_end else _EVENT_END
        # An event ends with at most 4 bytes, 3 of which may have been received before.
        searched = max(0, len(self._unfinished) - 3)
        self._unfinished += received
        is_whole = is_end or received.endswith(b"\n\n")  # nearly always: no search is required
        if not is_whole and boundary.search(self._unfinished, searched) is None:
            return []

        buffer = bytes(self._unfinished)
        if b"\r" not in buffer:  # several times faster, and enough for most streams
            boundary = _EVENT_END_WITHOUT_CR
        events: list[bytes] = []
        start = 0
        for match in boundary.finditer(buffer, searched):
            events.append(buffer[start : match.end()])
            start = match.end()

        del self._unfinished[:start]
        if is_end and self._unfinished and not self._unfinished.strip(b"\r\n"):
            events.append(bytes(self._unfinished))
            self._unfinished.clear()
        return events

    def _take(self, raw: bytes) -> Event:
        """Classify the next event and remember what it reports."""
        # Most events share the prefix of the content before them, up to and including the type.
        if raw.startswith(self._content_prefix):
            self.has_content = True
            return Event(EventKind.CONTENT, raw, None, self.is_socket)

        text = raw
        if not self._is_first and raw.startswith(_BYTE_ORDER_MARK):
            text = b":" + raw  # clients read it as part of an unknown field
        self._is_first = False
        kind, value = self._classify(text)
        if kind in _OUTCOME_KINDS and value is None and self.terminal is None:
            kind, value = self._verified(kind, text)
        if kind is EventKind.CONTENT:
            self.has_content = True
            # A parsed object may take several times the memory of its event.
            value = value if self.is_translated else None
        elif kind is not EventKind.IDLE:
            value = self._note(kind, text, value)
        return Event(kind, raw, value, self.is_socket)

    def _classify(self, text: bytes) -> tuple[EventKind, JsonDict | None]:
        """The kind of an event, and the object in it, if it was parsed."""
        kind = self._kind_at_first_sight(text)
        if kind is not None:
            return kind, None

        data = self._data(text)
        if not data:
            return EventKind.IDLE, None
        if data == b"[DONE]":
            return EventKind.DONE, None

        try:
            value = load_object(data)
        except BadSyntax:  # whoever needs the object fails on it, too
            return EventKind.CONTENT, None
        return self._kind_of(value), value

    def _kind_at_first_sight(self, text: bytes) -> EventKind | None:
        """The kind of an event, if it can be seen without parsing JSON."""
        if self.kind is CallKind.RESPONSES:
            kind = self._kind_by_leading_type(text)
            if kind is not None:
                return kind
        elif self.has_content and self._note_plain_chunk(text):
            return EventKind.CONTENT

        if not self.is_socket and b"data" not in text:
            return EventKind.IDLE
        return None

    def _note_plain_chunk(self, text: bytes) -> bool:
        """Remember the start of a Chat event that is content and surely nothing else; if it is."""
        match = _CHAT_CONTENT.match(text)
        if match is None or _CHAT_NOTABLE.search(text):
            return False
        self._run_prefix = match[0]
        return True

    def _kind_by_leading_type(self, text: bytes) -> EventKind | None:
        """The kind of a Responses event whose first member is a known `type`; None otherwise.

        The prefix of plain content is remembered: `_take` recognizes the next events by it.
        """
        # Each is called by its name: so it is known that neither is ever used to search.
        match = _TYPE_FIRST_IN_MESSAGE.match(text) if self.is_socket else _TYPE_FIRST.match(text)
        if match is None:
            return None

        kind = _kind_of_type(match[1])
        if kind is not EventKind.CONTENT:
            return kind
        # An object of an unknown type may be an error: its other members decide (F58).
        if not match[1].startswith(b"response."):
            return None
        self._content_prefix = self._run_prefix = match[0]
        return kind

    def _data(self, text: bytes) -> bytes:
        """The JSON text of an event: all of a WebSocket's message, or the data lines of SSE."""
        return text if self.is_socket else event_data(text)

    def _verified(self, kind: EventKind, text: bytes) -> tuple[EventKind, JsonDict | None]:
        """The kind of an event whose prefix is that of an outcome, and the object in it.

        The whole event is parsed: one that is not JSON, or repeats `type` with another value, does
        not end the stream for a client.
        """
        try:
            value = load_object(self._data(text))
        except BadSyntax:
            return kind, None
        return self._kind_of(value), value

    def _kind_of(self, value: JsonDict) -> EventKind:
        """The kind of an event with that object in it."""
        if self.kind is CallKind.CHAT and value:
            return self._kind_of_chunk(value)

        name = text_at(value, "type").encode("utf-8", "replace")
        if not is_event_type(name):
            return EventKind.FAILURE if is_error(value) else EventKind.CONTENT

        kind = _kind_of_type(name)
        # The status of the response takes precedence over the type of the event.
        has_failed = text_at(value.get("response"), "status") == "failed"
        if kind is EventKind.SUCCESS and has_failed:
            return EventKind.FAILURE
        return kind

    def _kind_of_chunk(self, value: JsonDict) -> EventKind:
        """The kind of a Chat chunk, whose usage and finish_reason are remembered.

        A chunk with only a role is no content yet: failover is still possible after it.
        """
        if is_error(value):
            return EventKind.FAILURE

        self.usage = read_usage(value.get("usage")) or self.usage
        is_content = self.has_content
        for choice in objects_of(value.get("choices")):
            if text_at(choice, "finish_reason"):  # some send "" before the end (F63)
                self.has_finish = True
            delta = object_of(choice.get("delta"))
            if any(member for name, member in delta.items() if name != "role"):
                is_content = True

        if is_content or self.has_finish:
            return EventKind.CONTENT
        return EventKind.HANDSHAKE

    def _note(self, kind: EventKind, text: bytes, value: JsonDict | None) -> JsonDict | None:
        """Remember what an event other than plain content reports, up to the terminal one.

        Returns the object in it, if it was parsed.
        """
        if self.terminal is not None:
            return value

        if kind is EventKind.DONE:
            self.has_done = True
            # A Responses stream ends with its outcome: `[DONE]` alone does not complete it.
            if self.kind is CallKind.CHAT:
                self.terminal = kind
            return value

        if kind in TERMINAL_KINDS:
            self.terminal = kind
        if kind is EventKind.HANDSHAKE and self.response:
            return value

        if value is None and kind not in _OUTCOME_KINDS:
            with contextlib.suppress(BadSyntax):
                value = load_object(self._data(text))
        content = object_of(value)
        self._note_response(object_of(content.get("response")))
        if kind is EventKind.FAILURE:
            self.failure = failure_of(content)
        return value

    def _note_response(self, response: JsonObject) -> None:
        """Remember the id of the response, and its usage.

        Only short members are kept, for `failure_event` repeats them in the client's last event.
        """
        if not response:
            return

        self.response = {}
        for name, member in members_of(response, RESPONSE_FIELDS).items():
            is_short = isinstance(member, str) and len(member) <= SESSION_CHARS_MAX
            if is_short or isinstance(member, int):
                self.response[name] = member
        self.usage = read_usage(response.get("usage")) or self.usage

    def _note_number(self, events: Sequence[Event]) -> None:
        """Remember which sequence number comes next, for `failure_event`."""
        for event in reversed(events):
            if self._note_number_at(event.raw, 0):
                return

    def _note_number_at(self, raw: bytes, start: int) -> bool:
        """Note the first sequence number behind `start`; whether there is one."""
        at = raw.find(b'"sequence_number"', start)
        if at < 0:
            return False
        match = _NUMBER.match(raw, at)
        self._next_number = int(match[1]) + 1 if match else 0
        return True

    def is_complete(self, is_clean: bool) -> bool:
        """Whether a body that ends now is complete; `is_clean`: its HTTP framing was complete.

        A Chat stream is also complete without `[DONE]`, after a finish_reason and a clean end.
        """
        if self.terminal is not None:
            return True
        return is_clean and self.has_finish and self.kind is CallKind.CHAT

    def failure_event(
        self, error: PoolerError, request_id: str, kind: CallKind, *, is_instead: bool = False
    ) -> bytes:
        """The terminal event for a client of `kind` that has had output before (F72, F78).

        `is_instead`: it replaces the latest event and takes its sequence number.
        """
        if kind is CallKind.CHAT:
            return b"data: " + error.content()[0] + b"\n\n"

        message = f"{error.public} {RETRY_WORDS}"
        response = {
            "id": f"resp_{request_id}",
            "object": "response",
            **self.response,
            "status": "failed",
            "error": {"code": error.public_code, "message": message},
            "output": [],
        }
        number = self._next_number - is_instead
        event = {
            "type": "response.failed",
            "sequence_number": number,
            "response": response,
        }
        text = json.dumps(event).encode()
        if self.is_socket:
            return text
        return b"event: response.failed\ndata: " + text + b"\n\n"


def type_of(message: bytes) -> str:
    """The type of the event in a WebSocket message; "" if it has none and is no error."""
    match = _TYPE_FIRST_IN_MESSAGE.match(message[:KIB])
    if match is not None:
        return match[1].decode()

    value = try_load_object(message)
    name = text_at(value, "type")
    if not name and is_error(value):
        return "error"
    return name


def is_news(name: str) -> bool:
    """Whether events of that type are about the account or connection rather than a turn."""
    return name.startswith("codex.") or name in {"keepalive", "response.metadata"}


def with_stream_id(message: bytes, stream_id: str) -> bytes:
    """The event with the `stream_id` of its turn added; unchanged if it is not a JSON object.

    The member is inserted as text, so that a large event is neither parsed nor serialised.
    """
    text = message.strip(b" \t\r\n")
    members = text[1:-1].strip(b" \t\r\n")
    if not (text.startswith(b"{") and text.endswith(b"}")):
        return message

    # If the name occurred twice, some clients would read the wrong member.  It may be written
    # plainly or with escaped letters.
    if b'"stream_id"' in members or b"\\u00" in members:
        value = try_load_object(text)
        if "stream_id" in value:
            return dump_json(value | {"stream_id": stream_id})

    comma = "," if members else ""
    return b"{" + members + f'{comma}"stream_id":"{stream_id}"}}'.encode()


COMMENT: Final = b": keepalive\n\n"
NATIVE_KEEPALIVE: Final = b'{"type":"keepalive"}'  # Codex CLI's timer ignores comments (F76)
NATIVE_COMMENT: Final = b"data: " + NATIVE_KEEPALIVE + b"\n\n"


################################################################
# TRANSLATION
################################################################
# The ChatGPT backend speaks one dialect: Responses, streamed and stateless (F2), with few fields.
# This section makes a codex account respond like OpenAI's own API:
#
#   1. what a codex account cannot do     request            -> the field that is refused
#   2. a Responses request                request            -> the body for the backend
#   3. a Chat request                     Chat request       -> a Responses request, for 2
#   4. the whole response                 the backend's events -> one Responses or Chat object
#   5. Chat chunks                        the backend's events -> events of Chat
#   6. a response in one piece            one object         -> events, for a client that streams
#
# Both sides are untrusted.  A request of the wrong shape raises PoolerError; an event of the wrong
# shape has no effect.  The events of a Responses stream stay unchanged, except for the few that 4
# must complete.


class ToolCallForm(NamedTuple):
    """How a tool call, which is an output item in Responses, is written elsewhere."""

    chat: str  # the type of the call in Chat, and the name of the object in it
    arguments: str  # the member of both that holds the arguments
    events: str  # the prefix of the types of events with the arguments


_CUSTOM_CALL: Final = "custom_tool_call"
_TOOL_CALLS: Final = {
    "function_call": ToolCallForm("function", "arguments", "response.function_call_arguments"),
    _CUSTOM_CALL: ToolCallForm("custom", "input", "response.custom_tool_call_input"),
}
COMMENTARY: Final = "commentary"  # the phase of messages before the final one


def is_commentary(item: Json) -> bool:
    """Whether an output item precedes the final message and is shown like reasoning."""
    return text_at(item, "phase") == COMMENTARY


def _paragraphs(texts: Iterable[str]) -> str:
    """The non-empty texts, separated by blank lines."""
    return "\n\n".join(filter(None, texts))


def _filled(members: JsonObject) -> JsonDict:
    """The members that are neither null nor empty."""
    return {name: value for name, value in members.items() if value}


# ---- 1. What a codex account cannot do ----
#
# A request with such a field goes to an API-key account if the pool has one, and is refused
# otherwise: a response that ignores the field would mean something else.

# Field -> its values that request nothing; any other value is an obstacle.
_HARMLESS: Final = {
    "background": (None, False),
    "logprobs": (None, False),
    "conversation": (None,),
    "prompt": (None,),
    "audio": (None,),
    "previous_response_id": (None, ""),
    "n": (None, 1),
    "modalities": (None, ["text"]),
    "functions": (None, []),
    "function_call": (None, "none"),
}
# Name of a field in another API -> its name in this one, for the error message.
_OTHER_NAMES: Final = {
    CallKind.RESPONSES: {
        "messages": "input",
        "reasoning_effort": "reasoning.effort",
        "response_format": "text.format",
        "system": "instructions",
        "verbosity": "text.verbosity",
        "web_search_options": "tools",
    },
    CallKind.CHAT: {"system": "messages"},
}
_EMPTY: Final[Sequence[Json]] = (None, [], {"type": "text"})  # request nothing in any field
_NOTHING_STORED: Final = "Nothing is stored here. Send the whole input, with store: false."


def codex_obstacle(
    kind: CallKind,
    body: JsonObject,
    carried: Sequence[str] = (),
) -> Obstacle | None:
    """The first field of a request that a codex account cannot honour, or None.

    `carried`: fields of `_HARMLESS` that are no obstacle because they are passed on unchanged.
    """
    for name, harmless in _HARMLESS.items():
        if body.get(name) not in harmless and name not in carried:
            return Obstacle(name, _NOTHING_STORED if name == "previous_response_id" else "")

    for name, name_here in _OTHER_NAMES[kind].items():
        if body.get(name) not in _EMPTY:
            return Obstacle(name, f"Here this field is called {name_here}.")

    if _has_mcp(body):
        return Obstacle("tools")
    return _input_obstacle(kind, body)


def _input_obstacle(kind: CallKind, body: JsonObject) -> Obstacle | None:
    """The field of the items, `input` or `messages`, if one of them is an obstacle; else None."""
    name = "input"
    # Cursor sends `input` to Chat (F86): it is read if there are no messages.
    if kind is CallKind.CHAT and (body.get("messages") or body.get("input") is None):
        name = "messages"
    items = objects_at(body, name)

    if any(map(_is_reference, items)):
        return Obstacle(name, _NOTHING_STORED)
    holders = [item for item in items if "tools" in item]
    if any(map(_has_mcp, holders)) or _has_unfit_part(items):
        return Obstacle(name)
    return None


def _has_mcp(holder: JsonObject) -> bool:
    """Whether one of the tools, at any depth, is an MCP server that the upstream would call.

    The list of tools grows while it is read: namespaces of tools hold tools themselves.
    """
    tools = objects_at(holder, "tools")
    for tool in tools:
        tools += objects_at(tool, "tools")
    return any(tool.get("type") == "mcp" for tool in tools)


def _is_reference(item: JsonObject) -> bool:
    """Whether an item refers to a stored one, by its type or by an id alone."""
    if item.get("type") is None and item.get("role") is None:
        return item.get("id") is not None
    return item.get("type") == "item_reference"


_UNFIT_NAMES: Final = frozenset({"file_id", "audio", "function_call"})


def _has_unfit_part(items: Sequence[JsonObject]) -> bool:
    """Whether there is audio, a stored file or a legacy function call.

    A long conversation has thousands of parts, so each of them is looked at only once, and for
    most of them nothing but the names of their members.
    """
    for part in _items_and_parts(items):
        if part.get("type") == "input_audio" or part.get("role") == "function":
            return True
        if not _UNFIT_NAMES.isdisjoint(part) and members_of(part, _UNFIT_NAMES):
            return True
    return False


def _items_and_parts(items: Sequence[JsonObject]) -> list[JsonObject]:
    """The items, the parts of their contents and outputs, and the files in these."""
    parts = [*items]
    for name in ("content", "output"):
        for holder in [part for part in parts if name in part]:
            parts += objects_of(holder[name])
    return parts + objects_of([part["file"] for part in parts if "file" in part])


# Members of a body that decide how it is handled, by the functions that read them.
DECIDING_NAMES: Final = frozenset(
    {
        *("model", "stream", "store", "prompt_cache_key", "previous_response_id"),  # read_call
        "instructions",  # conversation_digest
        *(*_HARMLESS, "tools", "messages", "input"),  # codex_obstacle
        *("type", "stream_id"),  # Turn.understand
        *itertools.chain(*_OTHER_NAMES.values()),  # codex_obstacle
        "client_metadata",  # is_lite
    }
)
_DECIDING_CHARS_MAX: Final = max(map(len, DECIDING_NAMES))


def check_names(body: Iterable[str]) -> None:
    """Refuse names that differ from one of `DECIDING_NAMES` only in case.

    Some upstreams ignore case (F67): they would act on a field that was not checked here.
    Raises: PoolerError (invalid_json).
    """
    for name in body:
        # A client may send names of any length, and `casefold` would copy them.
        if len(name) > _DECIDING_CHARS_MAX or name in DECIDING_NAMES:
            continue
        if name.casefold() in DECIDING_NAMES:
            public = "The request body has a field that differs from a known one only in its case."
            raise PoolerError("invalid_json", public)


# ---- 2. A Responses request ----
#
# The backend refuses a request with an unknown field (F3), so the body is built from a list of
# known ones:
#
#   model                    replaced: the account's own name for the model
#   instructions             kept; developer messages at the start of the input are added
#   input                    kept, item by item (below)
#   tools, tool_choice       kept; the nested form of Chat is flattened
#   parallel_tool_calls      kept, if there are tools
#   reasoning                kept: effort (the nearest one supported), summary, context, mode
#   text                     kept: verbosity, format
#   include                  kept; reasoning.encrypted_content is added (F14)
#   prompt_cache_key         kept; too long a key is replaced by its digest
#   service_tier             translated, or dropped: see _SERVICE_TIERS (F5)
#   context_management       kept
#   store, stream            replaced: always false and true: the backend accepts nothing else
#   those of 1               refused
#   all others               dropped, such as temperature, metadata and max_output_tokens
#
# And of the items of the input:
#
#   message                  kept: role (system becomes developer: F4), content, phase
#   function_call and the
#   like, their outputs      kept, without id and status
#   reasoning                kept, if encrypted: with its summary; dropped otherwise
#   compaction and the like  kept unchanged, with the id to which their ciphertext is bound (F9)
#   item_reference           refused, by 1
#   all others               kept without id: the backend would look it up and fail (F6)

_ROLES: Final = frozenset({"user", "assistant", "developer"})
_REASONING: Final = ("effort", "summary", "context", "mode")
_SERVICE_TIERS: Final = {
    "fast": "priority",
    "priority": "priority",
    "ultrafast": "ultrafast",
}
_EFFORTS_ASSUMED: Final = tuple(name for name in _EFFORTS if name not in {"minimal", "ultra"})
# Type of an object in Chat -> the members of the inner object of that name.  In Responses they
# are next to the type.
_NESTED: Final = {
    "function": ("name", "description", "parameters", "strict"),
    "custom": ("name", "description", "format"),
    "grammar": ("syntax", "definition"),
    "json_schema": ("name", "description", "schema", "strict"),
    "allowed_tools": ("mode", "tools"),
    "file": ("filename", "file_data"),
    "url_citation": ("start_index", "end_index", "url", "title"),
}
_CHOICES: Final = ("auto", "none", "required")  # tool choices that are words
_TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text"})
_PART_TYPES: Final = {"image_url": "input_image", "file": "input_file"}  # Chat -> Responses
# Members of a schema that may mean that the value is not an object.
_SCHEMA_KINDS: Final = frozenset(
    ("type", "properties", "$ref", "allOf", "anyOf", "oneOf", "const", "enum"),
)


def to_codex(
    kind: CallKind,
    body: JsonObject,
    model: str,
    efforts: Sequence[str] | None,
) -> JsonDict:
    """The body for the backend; `efforts`: those of the model, ascending, or None if unknown.

    Raises: PoolerError (invalid_value, missing_required_parameter).
    """
    if kind is CallKind.CHAT:
        body = _chat_as_responses(body)

    text = members_of(valid_object(body, "text"), ("verbosity", "format"))
    instructions, items = _instructions_and_input(body, text)
    tools = [_codex_tool(tool) for tool in valid_list(body, "tools", dict)]
    include = [*valid_list(body, "include", str), "reasoning.encrypted_content"]
    is_parallel = valid_member(body, "parallel_tool_calls", bool)
    valid_member(valid_object(body, "stream_options"), "include_usage", bool)

    fields = {
        "model": model,
        "instructions": instructions,
        "input": items,
        "tools": tools or None,
        "tool_choice": _codex_tool_choice(body),
        "parallel_tool_calls": is_parallel if tools else None,
        "reasoning": _codex_reasoning(body, efforts or _EFFORTS_ASSUMED) or None,
        "text": text or None,
        "include": [*dict.fromkeys(include)],
        "prompt_cache_key": _short_id(valid_text(body, "prompt_cache_key")) or None,
        "service_tier": _SERVICE_TIERS.get(valid_text(body, "service_tier")),
        "context_management": valid_list(body, "context_management", dict) or None,
        "store": False,
        "stream": True,
    }
    return members_of(fields, fields)


def _instructions_and_input(
    body: JsonObject,
    text: JsonObject,
) -> tuple[str, Sequence[JsonObject]]:
    """The instructions, with those that the input begins with, and the rest of the input.

    `text`: the field of that name.  In JSON mode the backend requires the word JSON in the input
    itself (F11), so instructions that contain it are moved into the input.
    """
    instructions = valid_text(body, "instructions")
    items = _input_items(body)
    if object_at(text, "format").get("type") == "json_object":
        if "json" not in instructions.lower():
            return instructions, items
        message = {"role": "developer", "content": instructions}
        return "", _message_items(message) + items

    # The last item always stays: the backend requires some input.
    lifted = [*itertools.takewhile(_is_instruction, items[:-1])]
    texts = [part["text"] for item in lifted for part in item["content"]]
    return _paragraphs([instructions, *texts]), items[len(lifted) :]


def _is_instruction(item: JsonObject) -> bool:
    """Whether an item is a developer's message of text alone."""
    if item["type"] != "message" or item["role"] != "developer":
        return False
    return all(part.get("type") == "input_text" for part in item["content"])


def _codex_reasoning(body: JsonObject, supported: Collection[str]) -> JsonDict:
    """The `reasoning` of a request, with a supported effort."""
    reasoning = members_of(valid_object(body, "reasoning"), _REASONING)
    if effort := valid_text(reasoning, "effort"):
        reasoning["effort"] = _nearest_effort(effort, supported)
    return reasoning


def _nearest_effort(effort: str, supported: Collection[str]) -> str:
    """The supported level that is nearest to `effort`; a higher one is preferred.

    `ultra` is a client's name for `max` (F13).  An unknown name stays unchanged, and so does
    `none`, which is not a level.
    """
    if effort == "none" or effort not in _EFFORTS:
        return effort
    supported = {"max" if name == "ultra" else name for name in supported}
    at = _EFFORTS.index(effort)
    nearest_first = _EFFORTS[at:] + _EFFORTS[:at][::-1]
    return next((name for name in nearest_first if name in supported), effort)


def _codex_tool_choice(body: JsonObject) -> Json:
    """The tool choice: a word, or an object that names tools.

    Some clients put one of the words into an object, as its type: the backend takes the word.
    """
    choice = valid_member(body, "tool_choice", (str, dict))
    if not isinstance(choice, dict):
        return choice
    flat = _flattened(choice)
    return flat["type"] if flat.get("type") in _CHOICES else flat


def _codex_tool(tool: JsonObject) -> JsonDict:
    """A tool, and the tools inside it, in the form that the backend accepts."""
    flat = _flattened(tool)
    if tool.get("type") == "function" and "function" in tool:
        # Absent means false in Chat, and true in Responses.
        flat = {"parameters": {}, "strict": False} | flat

    schema: Json = flat.get("parameters")
    if isinstance(schema, dict):
        flat["parameters"] = _with_properties(schema)
    return _with_codex_tools(flat)


def _with_codex_tools(holder: JsonDict) -> JsonDict:
    """A tool or an item, with the tools inside it in the form that the backend accepts."""
    if holder.get("tools") is not None:
        tools = valid_list(holder, "tools", dict)
        holder["tools"] = [_codex_tool(tool) for tool in tools]
    return holder


def _with_properties(schema: JsonObject) -> JsonObject:
    """The schema of a tool's arguments, with the `properties` that the backend requires (F12)."""
    is_object = schema.get("type") in ("object", ["object"])
    is_object |= _SCHEMA_KINDS.isdisjoint(schema)
    if not is_object or schema.get("properties") is not None:
        return schema
    return {"type": "object", **schema, "properties": {}}


def _flattened(nested: JsonObject) -> JsonDict:
    """A tool, choice, format or citation in the form of Responses, from either form."""
    kind = valid_text(nested, "type")
    inner = nested.get(kind) if kind in _NESTED else None
    flat = dict(nested)
    if isinstance(inner, dict):
        flat = {"type": kind, **members_of(inner, _NESTED[kind])}

    if kind.startswith("web_search_preview"):
        flat["type"] = "web_search"  # its name now
    if isinstance(flat.get("format"), dict):
        flat["format"] = _flattened(flat["format"])
    if kind == "allowed_tools":
        tools = valid_list(flat, "tools", dict)
        flat["tools"] = [_flattened(tool) for tool in tools]
    return flat


def _input_items(body: JsonObject) -> list[JsonDict]:
    """The items of the input in the backend's form, with outputs that match their calls.

    Raises: PoolerError (invalid_value, missing_required_parameter).
    """
    items: list[JsonDict] = []
    for item in _input_list(body):
        items += _codex_items(item)

    _match_outputs([item for item in items if "call_id" in item])
    return items


def _match_outputs(items: Sequence[JsonDict]) -> None:
    """Give calls and their outputs, which name their call, ids and types that the backend accepts.

    The items are changed in place: `_codex_items` has just created them.
    """
    custom_calls = [item for item in items if item["type"] == _CUSTOM_CALL]
    custom_ids = {text_at(item, "call_id") for item in custom_calls}

    for item in items:
        call_id = text_at(item, "call_id")
        if item["type"] == "function_call_output" and call_id in custom_ids:
            item["type"] = f"{_CUSTOM_CALL}_output"  # Chat has one kind of output for both
        if call_id:
            item["call_id"] = _short_id(call_id)


def _input_list(body: JsonObject) -> list[Json]:
    """The items of a request's input; an input that is one text is a user's message.

    Each is a new object for the JSON that is sent, so their number has a bound of its own.
    Raises: PoolerError (missing_required_parameter, invalid_value).
    """
    content = body.get("input")
    if content is None:
        raise PoolerError("missing_required_parameter", "The request has no input.", param="input")
    if isinstance(content, str):
        return [{"role": "user", "content": content}]

    items = valid_list(body, "input", dict)
    if len(items) > INPUT_ITEMS_MAX:
        raise PoolerError("invalid_value", "The request has too many items.", param="input")
    return items


def _short_id(label: str) -> str:
    """The id itself, or its digest if it is too long for the backend: equal ids stay equal."""
    if len(label) <= CODEX_ID_CHARS_MAX:
        return label
    return digest_parts(label).hex()


def _codex_items(item: JsonObject) -> list[JsonDict]:
    """The items that replace one of the input: none, or several if a Chat message calls tools."""
    kind = valid_text(item, "type")
    if kind in {"", "message"}:
        return _message_items(item)
    if kind == "reasoning":
        return _reasoning_items(item)

    # A copy: the object that was read belongs to the caller, and must not change.
    kept = {**item}
    kept.pop("internal_chat_message_metadata_passthrough", None)  # Codex CLI's own (F82)
    # An id is looked up by the backend, which has stored nothing; but that of a compaction is bound
    # to its ciphertext (F6, F9).
    if kind not in COMPACTIONS or kept.get("id") is None:
        kept.pop("id", None)
    if kind.removesuffix("_output") in _TOOL_CALLS:
        kept.pop("status", None)
        if isinstance(kept.get("output"), list):
            kept["output"] = _codex_content(kept, "output", "user")
    return [_with_codex_tools(kept)]


def _reasoning_items(item: JsonObject) -> list[JsonDict]:
    """A reasoning item, if it is encrypted: the backend refuses others, and other members (F8)."""
    encrypted = text_at(item, "encrypted_content")
    if not encrypted:
        return []
    return [
        {
            "type": "reasoning",
            "summary": objects_at(item, "summary"),
            "encrypted_content": encrypted,
        }
    ]


def _codex_content(
    holder: JsonObject,
    name: str,
    role: str,
) -> list[JsonDict]:
    """The parts of a message, or of a tool's output, in the backend's form.

    Content that is one text becomes a list with one part: the items that begin the input may become
    instructions, and those are found by their parts.  Raises: PoolerError (invalid_value).
    """
    content = holder.get(name)
    if not isinstance(content, str):
        return [_codex_part(part, role) for part in valid_list(holder, name, dict)]
    if role == "assistant" and not content:  # it only calls tools
        return []
    return [_text_part(content, role)]


def _text_part(text: str, role: str) -> JsonDict:
    """A part of text, whose type depends on who wrote it."""
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": kind, "text": text}


def _codex_part(part: JsonObject, role: str) -> JsonDict:
    """One part: text gets the type of its role; files and images lose the nesting of Chat."""
    kind = valid_text(part, "type")
    if kind in _TEXT_PARTS:
        text_part = _text_part(valid_text(part, "text"), role)
        if role == "assistant":
            text_part |= _flattened_citations(part)
        return text_part

    image = part.get("image_url")
    if kind == "image_url" and isinstance(image, dict):
        part = {"image_url": image.get("url"), **members_of(image, ("detail",))}
    flat = _flattened(part)
    if kind:
        flat["type"] = _PART_TYPES.get(kind, kind)
    flat.pop("prompt_cache_breakpoint", None)  # unknown to the backend
    return flat


def _flattened_citations(holder: JsonObject) -> JsonDict:
    """The member `annotations` in the form of Responses; nothing if there are none.

    An empty list, which most texts of an assistant have, is left out.
    """
    notes = [_flattened(note) for note in valid_list(holder, "annotations", dict)]
    return {"annotations": notes} if notes else {}


# ---- 3. A Chat request ----
#
# Fields, before 2 treats the request as its own:
#
#   messages                 becomes input
#   response_format          becomes text.format
#   verbosity                becomes text.verbosity
#   reasoning_effort         becomes reasoning.effort, with reasoning.summary: auto
#   stream_options           include_usage adds a chunk with the usage
#   all others               as in 2
#
# Members of a message:
#
#   role                     kept; system becomes developer; tool becomes a function_call_output
#   content                  kept: the parts under the names of Responses
#   refusal                  becomes a part of the content
#   annotations              become a member of the text, if that is all of the content
#   tool_calls               become items after the message
#   phase                    kept
#   all others               dropped, such as reasoning_content, which cannot be verified


def _chat_as_responses(body: JsonObject) -> JsonDict:
    """A Chat request with its fields under the names of Responses; its messages are unchanged.

    Cursor sends `input` instead of `messages` (F86), and other clients fields of Responses besides.
    Raises: PoolerError (invalid_value, missing_required_parameter).
    """
    items = valid_list(body, "messages", dict) or body.get("input")
    if not items:
        raise PoolerError("missing_required_parameter", "There are no messages.", param="messages")

    text = {**valid_object(body, "text")}
    if verbosity := valid_text(body, "verbosity"):
        text["verbosity"] = verbosity
    response_format = valid_object(body, "response_format")
    if response_format and response_format.get("type") != "text":
        text["format"] = _flattened(response_format)

    reasoning = {**valid_object(body, "reasoning")}
    effort = valid_text(reasoning, "effort") or valid_text(body, "reasoning_effort")
    reasoning["effort"] = effort or None
    if effort not in {"", "none"}:
        reasoning.setdefault("summary", "auto")  # Chat has no field to ask for it
    return {
        **body,
        "input": items,
        "text": text,
        "reasoning": reasoning,
    }


def _message_items(message: JsonObject) -> list[JsonDict]:
    """The items for a message of either API: its content, then its tool calls.

    The order matters: a call must precede its output, which is the next message of Chat.
    Raises: PoolerError (invalid_value), also for an unknown role.
    """
    role = valid_text(message, "role")
    content = _codex_content(message, "content", role)
    if role == "tool":
        return [_tool_output_item(message, content)]
    if role == "system":
        role = "developer"  # the backend refuses system (F4)
    if role not in _ROLES:
        raise PoolerError("invalid_value", param="role")

    if refusal := valid_text(message, "refusal"):
        content.append({"type": "refusal", "refusal": refusal})
    if len(content) == 1 and content[0].get("type") == "output_text":  # an assistant's
        content[0] |= _flattened_citations(message)

    calls = [_tool_call_item(call) for call in valid_list(message, "tool_calls", dict)]
    if role == "assistant" and not content:  # it only calls tools
        return calls
    item = {
        "type": "message",
        "role": role,
        "content": content,
        **members_of(message, ("phase",)),
    }
    return [item, *calls]


def _tool_output_item(message: JsonObject, content: Sequence[JsonObject]) -> JsonDict:
    """The item for a message of role tool; its output is one text if all its parts are."""
    output: Json = content
    if all(part.get("type") == "input_text" for part in content):
        output = "".join(part["text"] for part in content)
    call_id = valid_text(message, "tool_call_id") or text_at(message, "call_id")
    return {"type": "function_call_output", "call_id": call_id, "output": output}


def _tool_call_item(call: JsonObject) -> JsonDict:
    """The item for one of a message's `tool_calls`.

    A call of any other type than `custom`, or of none, is read as one of a function.
    """
    kind = _CUSTOM_CALL if call.get("type") == "custom" else "function_call"
    form = _TOOL_CALLS[kind]
    inner = valid_object(call, form.chat)
    return {
        "type": kind,
        "call_id": valid_text(call, "id"),
        "name": valid_text(inner, "name"),
        form.arguments: valid_text(inner, form.arguments),
    }


# ---- 4. The whole response ----
#
# The terminal event holds the whole response, but some upstreams send it with an empty `output`
# (F31), or with only a part of the streamed items.  So finished items are kept until then.  For
# the client of a Responses stream, these events are rewritten:
#
#   created and the like     `output` becomes [], if it is no list
#   completed, ..., failed   `output` gets the items that it lacks
#   done                     renamed completed, incomplete or failed, by its status
#   error                    loses `headers`, which reveal the account
#   codex.*, metadata        dropped, and so is keepalive
#   all others               unchanged, byte for byte

# Type of a part whose text is streamed in events "response.TYPE.delta" -> member with the text.
_PART_TEXTS: Final = {"output_text": "text", "refusal": "refusal"}
_PART_OF_EVENT: Final = {f"response.{kind}.delta": kind for kind in _PART_TEXTS}


_END_STATUSES: Final = ("completed", "failed", "incomplete")
_END_NAMES: Final = frozenset(f"response.{status}" for status in _END_STATUSES)


def _end_status(response: Json) -> str:
    """The status of a response that has ended: completed, failed or incomplete."""
    status = text_at(response, "status")
    return status if status in _END_STATUSES else "completed"


@dataclass(eq=False, slots=True)
class OutputCollector:
    """Keeps the output that the terminal event may lack, from at most `bytes_max` of events.

    These are the finished items and, for a client that waits for the whole response, the text of
    messages that never arrive as finished items.
    """

    bytes_max: int
    is_whole: bool = False  # the client gets one response, and no events
    response: JsonDict | None = None  # of the terminal event, with all of its output
    bytes_kept: int = 0  # an estimate of the memory for all of this
    _items: dict[int, JsonDict] = field(default_factory=dict)  # by output_index
    _deltas: dict[tuple[int, str], list[str]] = field(default_factory=dict)  # index, part's type
    _commentary: set[int] = field(default_factory=set)  # output indexes
    _bytes_taken: int = 0
    _members_taken: int = 0

    def take(
        self,
        kind: EventKind,
        event: bytes,
        value: JsonObject,
    ) -> bool:
        """Keep the output in an event, whose object is `value`, for the end.

        Returns whether the response in it was changed, in place.  Raises: BadSyntax, if there is
        too much to keep, or to write at the end.
        """
        name = text_at(value, "type")
        item = value.get("item")
        if name == "response.output_item.done" and isinstance(item, dict):
            self._items[index_at(value, "output_index", len(self._items))] = item
            self._count(event, count_members(item))
        elif self.is_whole:
            self._take_delta(name, event, value)

        response = value.get("response")
        if kind is EventKind.SUCCESS or kind is EventKind.FAILURE:
            response = self.response = object_of(response)
            if self.is_whole:
                check_writable(response)
        return isinstance(response, dict) and self._complete(kind, response)

    def _take_delta(
        self,
        name: str,
        event: bytes,
        value: JsonObject,
    ) -> None:
        """Keep the text of a message's part from an event of that type, if it has any."""
        index = index_at(value, "output_index", 0)
        if name == "response.output_item.added" and is_commentary(value.get("item")):
            self._commentary.add(index)
        if part := _PART_OF_EVENT.get(name):
            self._deltas.setdefault((index, part), []).append(text_at(value, "delta"))
            self._count(event, 1)

    def _count(
        self,
        event: bytes,
        member_count: int,
    ) -> None:
        """Account for an event that is kept.  Raises: BadSyntax, if there is too much.

        Three bounds, for each can be reached alone: the bytes to send at the end, the members to
        serialise then, and the items, each of which costs a step of its own.
        """
        self._bytes_taken += len(event)
        self._members_taken += member_count
        self.bytes_kept += parsed_size(event, member_count)
        if (
            self._bytes_taken > self.bytes_max
            or self._members_taken > WRITTEN_MEMBERS_MAX
            or len(self._items) > OUTPUT_ITEMS_MAX
        ):
            raise BadSyntax("response too large")

    def _complete(
        self,
        kind: EventKind,
        response: JsonDict,
    ) -> bool:
        """Add the missing output to a response; return whether any was missing.

        An output that has as many items as were kept, or more, is the upstream's own and stays.
        """
        output = response.get("output")
        if kind is EventKind.SUCCESS and not output:
            self._items = self._unfinished_messages() | self._items

        items: list[JsonDict] = []
        if self.response is not None:  # only the terminal event carries the items
            items += [self._items[index] for index in sorted(self._items)]
        if isinstance(output, list) and len(output) >= len(items):
            return False
        response["output"] = items
        return True

    def _unfinished_messages(self) -> dict[int, JsonDict]:
        """The messages that the kept deltas make up, by output index."""
        messages: dict[int, JsonDict] = {}
        for (index, part), deltas in self._deltas.items():
            begun: JsonDict = {
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [],
            }
            message = messages.setdefault(index, begun)
            if index in self._commentary:
                message["phase"] = COMMENTARY
            text = {"type": part, _PART_TEXTS[part]: "".join(deltas)}
            message["content"].append(text)
        return messages


@dataclass(eq=False, slots=True)
class ResponsesTranslator:
    """A codex account's response for a Responses client, streamed or whole.

    `feed` returns the bytes for the client's stream; `whole` returns the response after the end.
    """

    output: OutputCollector

    def feed(self, event: Event) -> bytes:
        """The event, unchanged or rewritten; b"" if it is not for the client.

        Raises: BadSyntax.
        """
        kind = event.kind
        raw = event.raw
        if kind is EventKind.IDLE:
            return b"" if self._is_keepalive(event) else raw

        is_after_end = self.output.response is not None
        if kind is EventKind.DONE:
            return raw if is_after_end else b""  # clients stop reading at `[DONE]` (F85)
        if is_after_end:
            return b""

        is_collected = self.output.is_whole or b"output_item.done" in raw
        if kind is EventKind.CONTENT and not is_collected:
            return raw
        return self._completed(event)

    def _is_keepalive(self, event: Event) -> bool:
        """Whether an idle event is the backend's own `keepalive` rather than a comment."""
        return event.is_message or (b"data" in event.raw and event_data(event.raw) != b"")

    def _completed(self, event: Event) -> bytes:
        """The event with a complete response and without `headers`; unchanged if it already is."""
        value = event.load()
        name = text_at(value, "type")
        if event.kind is EventKind.HANDSHAKE and name.startswith(("codex.", "response.metadata")):
            return b""

        is_changed = self.output.take(event.kind, event.raw, value) and "response" in value
        if value.pop("headers", None) is not None:
            is_changed = True
        if name == "response.done":
            value["type"] = f"response.{_end_status(self.output.response)}"
            is_changed = True
        return event_with_data(event, value) if is_changed else event.raw

    def whole(self) -> JsonDict:
        return self.output.response or {}


def event_with_data(event: Event, value: Json) -> bytes:
    """`event` with `value` as its data; all other lines and the line ends stay.

    An event named `response.done` is renamed to the type in `value`, if that is the name of an end:
    any other type is the upstream's, and may hold line ends, and so an event that nobody has read.

    Raises: BadSyntax, if that would take long to write.
    """
    if len(event.raw) > WRITTEN_BYTES_MAX:
        raise BadSyntax("event too large")
    check_writable(value)
    if event.is_message:
        return dump_json(value)

    line_end = b"\r\n" if b"\r\n" in event.raw else b"\n"
    name = text_at(value, "type")
    lines: list[bytes] = []
    for line in _lines(event.raw):
        if name in _END_NAMES and line.startswith(b"event: response.done"):
            lines.append(f"event: {name}".encode())
        elif line and not line.startswith(b"data:"):
            lines.append(line)
    return line_end.join([*lines, data_line(value), b"", b""])


def data_line(value: Json) -> bytes:
    """The line of an event that carries a value."""
    return b"data: " + dump_json(value)


THOUGHT: Final = "reasoning_content"  # not OpenAI's, but where Chat clients look for it


def _chat_message(output: Sequence[JsonObject]) -> JsonDict:
    """The Chat message for the items of an output.

    Its content is the final text alone, since some clients parse it as JSON (F32); each message
    is a paragraph of it.  The content is null if there are only tool calls or a refusal.
    """
    texts: list[str] = []
    thoughts: list[str] = []
    parts: list[JsonDict] = []
    calls: list[JsonDict] = []
    for item in output:
        thoughts += _thoughts(item)
        if text_at(item, "type") in _TOOL_CALLS:
            calls.append(_chat_call(item, len(calls)))
        if not is_commentary(item):
            texts.append(_output_text(item))
            parts += objects_at(item, "content")

    types = {text_at(part, "type") for part in parts}
    refusal = "".join(text_at(part, "refusal") for part in parts)
    is_silent = "output_text" not in types and (calls or refusal)
    more = {
        "annotations": _chat_citations(parts),
        THOUGHT: _paragraphs(thoughts),
        "tool_calls": calls,
    }
    return {
        "role": "assistant",
        "content": None if is_silent else _paragraphs(texts),
        "refusal": refusal or None,
        **_filled(more),
    }


def _output_text(item: JsonObject) -> str:
    """All text in the content of an item: its parts of type `output_text`, joined."""
    parts = objects_at(item, "content")
    text_parts = [part for part in parts if part.get("type") == "output_text"]
    return "".join(text_at(part, "text") for part in text_parts)


def _thoughts(item: JsonObject) -> list[str]:
    """The reasoning in an item: commentary, or the summary of reasoning, or else its content."""
    if is_commentary(item):
        return [_output_text(item)]
    summary = [text_at(part, "text") for part in objects_at(item, "summary")]
    if any(summary) or item.get("type") != "reasoning":
        return summary
    return [text_at(part, "text") for part in objects_at(item, "content")]


def _chat_call(item: JsonObject, index: int) -> JsonDict:
    """A tool call in the form of Chat; `index`: its number among the calls of the response."""
    form = _TOOL_CALLS[item["type"]]
    inner = {name: text_at(item, name) for name in ("name", form.arguments)}
    return {
        # Without an id the client could not return the output.
        "id": text_at(item, "call_id") or label_at(item, "id") or f"call_{index}",
        "type": form.chat,
        form.chat: inner,
    }


def _chat_citations(parts: Sequence[JsonObject]) -> list[JsonDict]:
    """The URL citations of parts in the form of Chat, which has no other annotations."""
    citations = []
    notes = [note for part in parts for note in objects_at(part, "annotations")]
    for note in notes:
        if note.get("type") == "url_citation":
            plain = {
                name: value for name, value in note.items() if isinstance(value, str | int | float)
            }
            inner = members_of(plain, _NESTED["url_citation"])
            citations.append({"type": "url_citation", "url_citation": inner})
    return citations


def _finish_reason(response: JsonObject, has_calls: bool) -> str:
    """The `finish_reason` of Chat for a response that has ended."""
    details = response.get("incomplete_details")
    if response.get("status") == "incomplete" or isinstance(details, dict):
        if text_at(details, "reason") == "content_filter":
            return "content_filter"
        return "length"
    return "tool_calls" if has_calls else "stop"


def _chat_usage(response: JsonObject) -> JsonDict | None:
    """The usage of a response under the names of Chat; None if it has none.

    Chat counts cached and reasoning tokens as details of the other two, as Responses does.
    """
    usage = read_usage(response.get("usage"))
    return usage and {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


# ---- 5. Chat chunks ----
#
#   output_text.delta        delta.content, or .reasoning_content in a message of commentary
#   refusal.delta            delta.refusal
#   reasoning_*.delta        delta.reasoning_content: of text or summary, whichever is first
#   output_item.added        delta.tool_calls: id and name of a call
#   *_arguments.delta, .done delta.tool_calls: the arguments; `done` only if there was no delta
#   *.annotation.added       delta.annotations
#   output_item.done         the unsent rest of the item
#   completed, incomplete    the unsent rest of the output, the finish reason, the usage
#   failed, error            an error; no [DONE] follows
#   all others               nothing
#
# A chunk with the role precedes the first delta.

# Type of an event with text -> member of the delta.
_TEXT_EVENTS: Final = {
    "response.output_text.delta": "content",
    "response.refusal.delta": "refusal",
    "response.reasoning_summary_text.delta": THOUGHT,
    "response.reasoning_text.delta": THOUGHT,
}
# Type of an event with arguments of a call -> its member that holds them.
_ARGUMENT_EVENTS: Final = {
    "response.function_call_arguments.delta": "delta",
    "response.function_call_arguments.done": "arguments",
    "response.custom_tool_call_input.delta": "delta",
    "response.custom_tool_call_input.done": "input",
}
Delta = JsonDict  # what a chunk adds to the message


def _chat_error(value: JsonObject) -> bytes:
    """The event that ends a Chat stream, with the upstream's error message."""
    error = failure_of(value)
    names = ("code", "message", "type", "param")
    texts = {name: text_at(error, name)[:MESSAGE_CHARS_MAX] for name in names}

    failure = PoolerError("upstream_error", texts["message"], upstream_code=texts["code"])
    if error is not value:  # if the event is the error, its `type` is the event's
        failure.type = texts["type"] or failure.type
    failure.param = texts["param"] or None
    return b"data: " + failure.content()[0] + b"\n\n"


@dataclass(eq=False, slots=True)
class StreamedItem:
    """How much of one output item has been sent to a Chat client."""

    is_commentary: bool = False
    has_text: bool = False  # or, of a call, arguments
    has_citations: bool = False
    thought_event: str = ""  # the type of events with its reasoning; others repeat it
    call: dict[str, str] = field(default_factory=dict)  # type, id, call_id, name, as far as known
    index: int | None = None  # the number of a call that was begun
    has_lost_arguments: bool = False  # some preceded the head of the call


@dataclass(eq=False, slots=True)
class ChatTranslator:
    """A codex account's response for a Chat client, streamed or whole.

    `request_id`, `model` and `created_unix` are used if the upstream does not report its own.
    """

    output: OutputCollector
    request_id: str = ""
    model: str = ""
    created_unix: int = 0
    include_usage: bool = False
    _head: JsonDict = field(default_factory=dict)  # of every chunk, once there is one
    _by_index: dict[int, StreamedItem] = field(
        default_factory=lambda: defaultdict(StreamedItem)
    )  # by output_index
    _by_id: dict[str, StreamedItem] = field(default_factory=dict)  # by id, or call_id
    _latest: StreamedItem = field(default_factory=StreamedItem)
    _unnumbered_count: int = 0  # of items without an output_index
    _call_count: int = 0  # of those that were begun
    # Member of a delta -> the latest part sent in it: an item, and the part's number in the item.
    _last_part: dict[str, tuple[StreamedItem, int]] = field(default_factory=dict)

    def feed(self, event: Event) -> bytes:
        """The chunks for one event.  Raises: BadSyntax, if there is too much to remember."""
        kind = event.kind
        if kind is EventKind.IDLE or kind is EventKind.DONE or self.output.response is not None:
            return b""
        value = event.load()
        self.output.take(kind, event.raw, value)
        if self.output.is_whole:
            return b""
        if kind is EventKind.FAILURE:
            return _chat_error(value)

        deltas = self._deltas(value)
        response = object_of(self.output.response or value.get("response"))
        if kind is not EventKind.SUCCESS:
            return self._chunks(deltas, response)
        deltas += self._unsent(objects_at(response, "output"))
        return self._chunks(deltas, response) + self._end(response)

    def whole(self) -> JsonDict:
        """The response after its end, as an object `chat.completion`."""
        response = self.output.response or {}
        message = _chat_message(objects_at(response, "output"))
        reason = _finish_reason(response, "tool_calls" in message)

        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": reason,
        }
        return {
            **self._chunk_head(response),
            "object": "chat.completion",
            "choices": [choice],
            "usage": _chat_usage(response),
            **_filled({"service_tier": text_at(response, "service_tier")}),
        }

    def _chunk_head(self, response: JsonObject) -> JsonDict:
        """The members that every chunk of a response begins with."""
        stem = label_at(response, "id").removeprefix("resp_") or self.request_id
        return {
            "id": f"chatcmpl-{stem}",
            "object": "chat.completion.chunk",
            "created": count_at(response, "created_at") or self.created_unix,
            "model": label_at(response, "model") or self.model,
        }

    def _chunks(self, deltas: Sequence[Delta], response: JsonObject) -> bytes:
        """One chunk per delta; a chunk with the role precedes the first of the stream."""
        if not self._head and (deltas or response):
            self._head = self._chunk_head(response)
            deltas = [{"role": "assistant", "content": ""}, *deltas]
        return b"".join([self._chunk(delta) for delta in deltas])

    def _chunk(
        self,
        delta: Delta,
        reason: str | None = None,
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        usage = {"usage": None} if self.include_usage else {}
        return data_line({**self._head, "choices": [choice], **usage}) + b"\n\n"

    def _end(self, response: JsonObject) -> bytes:
        """The last events: the finish reason, the usage if requested, and `[DONE]`."""
        end = self._chunk({}, _finish_reason(response, self._call_count > 0))
        usage = _chat_usage(response)
        if self.include_usage and usage:
            end += data_line({**self._head, "choices": [], "usage": usage}) + b"\n\n"
        return end + b"data: [DONE]\n\n"

    # From an event to deltas.

    def _deltas(self, value: JsonObject) -> list[Delta]:
        """The deltas for one event."""
        name = text_at(value, "type")
        item = object_at(value, "item")
        streamed = self._item_of(name, value, item)
        if name in _TEXT_EVENTS:
            return self._part_of_text(streamed, name, value)
        if name in _ARGUMENT_EVENTS:
            text = text_at(value, _ARGUMENT_EVENTS[name])
            return self._arguments(streamed, text, is_all=name.endswith(".done"))

        if name == "response.output_text.annotation.added":
            return self._citation(streamed, value.get("annotation"))
        if name == "response.output_item.added":
            streamed.is_commentary |= is_commentary(item)
            return self._begin_call(streamed, item)
        if name == "response.output_item.done":
            return self._rest_of(streamed, item)
        return []

    def _item_of(
        self,
        name: str,
        value: JsonObject,
        item: JsonObject,
    ) -> StreamedItem:
        """The item of an event: by its output index or an id, otherwise the latest one.

        Raises: BadSyntax, if there are too many.
        """
        index = index_at(value, "output_index", -1)
        if index >= 0:
            self._latest = self._by_index[index]
            if not item:  # as in nearly all events
                return self._latest

        labels = (
            label_at(value, "item_id"),
            label_at(item, "id"),
            label_at(item, "call_id"),
        )
        ids = [*filter(None, labels)]
        if index < 0 and (ids or name == "response.output_item.added"):
            self._latest = self._item_with(ids)
        self._by_id.update(dict.fromkeys(ids, self._latest))
        if max(len(self._by_id), self._unnumbered_count) > OUTPUT_ITEMS_MAX:
            raise BadSyntax("response too large")
        return self._latest

    def _item_with(self, ids: Sequence[str]) -> StreamedItem:
        """The item that has one of those ids; a new one if none does."""
        for label in ids:
            if label in self._by_id:
                return self._by_id[label]
        self._unnumbered_count += 1
        return StreamedItem()

    def _part_of_text(
        self,
        streamed: StreamedItem,
        name: str,
        value: JsonObject,
    ) -> list[Delta]:
        """The delta for an event with text, whose type is `name`."""
        member = _TEXT_EVENTS[name]
        number = 0
        if member == THOUGHT:
            # Some upstreams send both reasoning and its summary: the client gets one of them.
            streamed.thought_event = streamed.thought_event or name
            if streamed.thought_event != name:
                return []
            number = index_at(value, "summary_index", index_at(value, "content_index", 0))
        elif member == "content" and streamed.is_commentary:
            member = THOUGHT
        return self._text(streamed, number, member, text_at(value, "delta"))

    def _text(
        self,
        streamed: StreamedItem,
        number: int,
        member: str,
        text: str,
    ) -> list[Delta]:
        """The delta for text in part `number` of an item; each part is a paragraph."""
        if not text:
            return []
        streamed.has_text = True

        part = (streamed, number)
        previous_part = self._last_part.setdefault(member, part)
        if member != "refusal" and previous_part != part:
            self._last_part[member] = part
            text = f"\n\n{text}"
        return [{member: text}]

    def _citation(self, streamed: StreamedItem, note: Json) -> list[Delta]:
        """The delta for one annotation, if it is a citation in the final message."""
        citations = _chat_citations([{"annotations": [note]}])
        if not citations or streamed.is_commentary:
            return []
        streamed.has_citations = True
        return [{"annotations": citations}]

    def _begin_call(
        self,
        streamed: StreamedItem,
        item: JsonObject,
        *,
        is_all: bool = False,
    ) -> list[Delta]:
        """The delta that begins a call: its index, id and name, with empty arguments.

        Clients take id and name from the first chunk of a call (F87), so it is not sent before
        both are known.  `is_all`: the item is finished, so nothing more will be known.
        """
        if text_at(item, "type") not in _TOOL_CALLS or streamed.index is not None:
            return []
        names = ("type", "id", "call_id", "name")
        streamed.call |= _filled({name: text_at(item, name) for name in names})
        is_known = {"call_id", "name"} <= streamed.call.keys()
        if not (is_known or is_all):
            return []

        streamed.index = self._call_count
        self._call_count += 1
        call = _chat_call(streamed.call, streamed.index)
        return [{"tool_calls": [{"index": streamed.index, **call}]}]

    def _arguments(
        self,
        streamed: StreamedItem,
        text: str,
        *,
        is_all: bool,
    ) -> list[Delta]:
        """The delta for a part of a call's arguments, or for all of them if none was sent.

        If parts arrive before the call has begun, no part is sent: the client would join the
        later ones to broken JSON.  It gets all arguments at the end.
        """
        if streamed.index is None:
            streamed.has_lost_arguments |= not is_all
            return []
        is_sent = streamed.has_text if is_all else streamed.has_lost_arguments
        if is_sent or not text:
            return []

        streamed.has_text = True
        form = _TOOL_CALLS[streamed.call["type"]]
        call = {"index": streamed.index, form.chat: {form.arguments: text}}
        return [{"tool_calls": [call]}]

    def _rest_of(self, streamed: StreamedItem, item: JsonObject) -> list[Delta]:
        """The deltas for the unsent rest of a finished item."""
        form = _TOOL_CALLS.get(text_at(item, "type"))
        if form is not None:
            text = text_at(item, form.arguments)
            head = self._begin_call(streamed, item, is_all=True)
            return head + self._arguments(streamed, text, is_all=True)

        deltas: list[Delta] = []
        message = _chat_message([item])
        if not streamed.has_text:
            for member in ("content", "refusal", THOUGHT):
                deltas += self._text(streamed, 0, member, text_at(message, member))
        if "annotations" in message and not streamed.has_citations:
            streamed.has_citations = True
            deltas.append(members_of(message, ("annotations",)))
        return deltas

    def _unsent(self, items: Sequence[JsonObject]) -> list[Delta]:
        """The deltas for the unsent rest of the output; all of it if nothing was sent.

        Otherwise only items that were streamed are completed, which their ids identify, and calls:
        a call has an id of its own, so a new one cannot be sent twice.
        Raises: BadSyntax, if there are too many items.
        """
        if len(items) > OUTPUT_ITEMS_MAX:
            raise BadSyntax("response too large")

        deltas: list[Delta] = []
        is_all = not (self._last_part or self._call_count)
        for number, item in enumerate(items):
            call_id = label_at(item, "call_id")
            is_call = call_id and text_at(item, "type") in _TOOL_CALLS
            if is_all:
                deltas += self._rest_of(self._by_index[number], item)
            elif is_call or call_id in self._by_id or label_at(item, "id") in self._by_id:
                deltas += self._rest_of(self._item_of("", {}, item), item)
        return deltas


Translator = ResponsesTranslator | ChatTranslator

# ---- 6. A response in one piece, although a stream was requested (F62) ----


def events_of(value: JsonObject, kind: CallKind) -> bytes:
    """The events of a stream for one whole response or error.

    What surrounds the items is repeated in each event, so even a short value may become any number
    of bytes: they are counted as they are made.
    Raises: BadSyntax, if the value is neither, or would take long to write.
    """
    check_writable(value)
    lines: list[bytes] = []
    byte_count = 0
    for line in _event_lines(value, kind):
        byte_count += len(line)
        if byte_count > TRANSLATED_BYTES_MAX:
            raise BadSyntax("response too large")
        lines.append(line)
    return b"".join(line + b"\n\n" for line in lines)


def _event_lines(value: JsonObject, kind: CallKind) -> Iterator[bytes]:
    """The lines of each event, without the blank line at its end.  Raises: BadSyntax."""
    if kind is CallKind.RESPONSES:
        for number, event in enumerate(_response_events(value)):
            name = f"event: {event['type']}\n".encode()
            yield name + data_line({**event, "sequence_number": number})
        return

    yield from map(data_line, _chunks_of(value))
    if not is_error(value):
        yield b"data: [DONE]"


def _response_events(response: JsonObject) -> Iterator[JsonDict]:
    """The event `response.created`, those of each item, and the terminal one; or an error."""
    if is_error(response) and "output" not in response:
        yield {"type": "error", "error": dict(failure_of(response))}
        return
    items = objects_at(response, "output")
    if len(items) > OUTPUT_ITEMS_MAX or not isinstance(response.get("output"), list):
        raise BadSyntax("no response, or too large")

    begun = {**response, "status": "in_progress", "output": []}
    yield {"type": "response.created", "response": begun}
    for index, item in enumerate(items):
        yield from _item_events(index, item)
    status = _end_status(response)
    yield {"type": f"response.{status}", "response": {**response, "status": status}}


def _item_events(index: int, item: JsonObject) -> list[JsonDict]:
    """The events of one item: added, the message's parts or the call's arguments, done."""
    kind = text_at(item, "type")
    position = {"output_index": index, "item_id": text_at(item, "id")}
    begun = {**item, "status": "in_progress"}

    inner: list[JsonDict] = []
    if kind == "message":
        begun["content"] = []
        for number, part in enumerate(objects_at(item, "content")):
            inner += _part_events({**position, "content_index": number}, part)
    elif form := _TOOL_CALLS.get(kind):
        begun[form.arguments] = ""
        inner += _text_events(form.events, position, form.arguments, item)

    return [
        {"type": "response.output_item.added", "output_index": index, "item": begun},
        *inner,
        {"type": "response.output_item.done", "output_index": index, "item": dict(item)},
    ]


def _part_events(position: JsonObject, part: JsonObject) -> Iterator[JsonDict]:
    """The events of one part of a message: added, its text if it has any, done."""
    kind = text_at(part, "type")
    member = _PART_TEXTS.get(kind)
    begun = {**part, member: ""} if member else part
    yield {"type": "response.content_part.added", **position, "part": begun}
    if member:
        yield from _text_events(f"response.{kind}", position, member, part)
    yield {"type": "response.content_part.done", **position, "part": part}


def _text_events(
    name: str,
    position: JsonObject,
    member: str,
    holder: JsonObject,
) -> Iterator[JsonDict]:
    """A delta with all text of a member, and its end; `name` is the prefix of their types."""
    text = text_at(holder, member)
    yield {"type": f"{name}.delta", **position, "delta": text}
    yield {"type": f"{name}.done", **position, member: text}


def _chunks_of(completion: JsonObject) -> Iterator[JsonDict]:
    """The chunks of a Chat response: those of each choice, then the usage; or an error."""
    if is_error(completion):
        yield {"error": dict(failure_of(completion))}
        return
    choices = objects_at(completion, "choices")
    if not choices or len(choices) > OUTPUT_ITEMS_MAX:
        raise BadSyntax("no response, or too large")

    head = {**completion, "object": "chat.completion.chunk"}
    usage = head.pop("usage", None)
    for choice in choices:
        for chunk_choice in _choices_of_chunks(choice):
            yield {**head, "choices": [chunk_choice]}
    if usage is not None:
        yield {**head, "choices": [], "usage": usage}


def _choices_of_chunks(choice: JsonDict) -> Iterator[JsonDict]:
    """The two forms of a choice in chunks: its message as a delta, then its finish_reason."""
    message = object_at(choice, "message") or object_at(choice, "delta")
    delta = {"role": "assistant", **message}
    if calls := objects_at(delta, "tool_calls"):
        delta["tool_calls"] = [{**call, "index": index} for index, call in enumerate(calls)]

    begun = {**choice, "delta": delta, "finish_reason": None}
    begun.pop("message", None)
    yield begun
    reason = text_at(choice, "finish_reason") or "stop"
    yield {"index": choice.get("index", 0), "delta": {}, "finish_reason": reason}


################################################################
# VERDICTS
################################################################
# What a failed attempt means: for the request (return the response, try the next account, repair
# the request and ask the same account again) and for the account.  A code, or a type, stands for a
# status, and one table says what a status means, wherever it is found (F41): in a response's head,
# in an event or a JSON body of a 200, in a frame of a WebSocket.  F46 says which statuses prove
# that nothing was executed.
#
# Three guarantees of SECURITY.md rest on this section.  Never twice: Action.NEXT is for failures
# that prove that no work was done.  Never blamed: a failure that the request has caused by itself
# has Effect.NONE.  Never leaked: what an upstream says of an account reaches no client.


class Action(enum.Enum):
    """What happens to the request after a failed attempt."""

    RETURN = enum.auto()  # the client gets the failure: another account cannot help, or must not
    NEXT = enum.auto()  # another account is asked: this one has done nothing
    REFRESH = enum.auto()  # the same account once with a new token, if it is of type codex
    REPAIR = enum.auto()  # the same account once without encrypted reasoning
    REOPEN = enum.auto()  # the same account once on a new WebSocket


class Effect(enum.Enum):
    """What a failed attempt does to its account."""

    NONE = enum.auto()  # the account is not to blame
    LIMITED = enum.auto()  # cools down until its reset
    MODEL_LIMITED = enum.auto()  # the same, but only for this model
    REFUSED = enum.auto()  # its credential or plan is not accepted
    FORBIDDEN = enum.auto()  # a refusal without a reason: perhaps of this request only
    DEMOTED = enum.auto()  # used after the others for a minute
    # Not asked for that for a while; it may serve everything else.
    LACKS_MODEL = enum.auto()
    LACKS_ROUTE = enum.auto()
    LACKS_WEBSOCKET = enum.auto()


LIMIT_EFFECTS: Final = frozenset({Effect.LIMITED, Effect.MODEL_LIMITED})


class Fault(NamedTuple):
    """One failed attempt.  `reason` is for the log; `error` is for the client if it is final."""

    reason: str
    action: Action  # what happens to the request
    effect: Effect  # what happens to the account
    error: PoolerError
    cooldown_seconds: float | None = None  # until a limit resets, if known
    is_refusal: bool = False  # the upstream has said that it did nothing
    cause: Cause | None = None  # if no connection was established
    is_throttle: bool = False  # a limit of pace; else one of a plan, a quota, or credits
    is_hearsay: bool = False  # only a text says so, which may quote what the client sent
    about: str = ""  # the family of a model's limit, or the path that is lacking


NAMELESS: Final = 0  # the status of a failure in a 200 that says nothing else about itself
# A status that is not in here is about the request: the client gets it, no account is blamed.
_BY_STATUS: Final[Mapping[int, tuple[Action, Effect]]] = {
    NAMELESS: (Action.NEXT, Effect.NONE),
    401: (Action.REFRESH, Effect.REFUSED),
    402: (Action.NEXT, Effect.REFUSED),
    403: (Action.NEXT, Effect.FORBIDDEN),
    429: (Action.NEXT, Effect.LIMITED),
    **dict.fromkeys((500, 502, 503, 520, 521, 529), (Action.NEXT, Effect.DEMOTED)),
    # These may still be working on it (F46).
    **dict.fromkeys((504, 522, 524), (Action.RETURN, Effect.DEMOTED)),
}
SOCKET_EXPIRED_CODE: Final = "websocket_connection_limit_reached"  # it was open for an hour (F25)
# In a code, or in the way a limit was reached: the limit will not be over in a few seconds.
_USAGE_WORDS: Final = re.compile(
    "usage|quota|credit|billing|balance|spend|depleted|funds|budget|(?:daily|monthly|plan|weekly)_"
)
# Every repetition below is bounded: an upstream that is hostile chooses the text, and the time of a
# match must not grow faster than that text.
_ANY: Final = "(?:[a-z]{1,24}_){0,4}"
# A client's content names users, projects and teams, too: if an upstream does not find one of
# these, it may well be one that the client named.
_HOLDER: Final = "(?:account|org|organization|subscription|workspace)"
_OWNER: Final = f"(?:{_HOLDER}|project|team|user)"
_MEANS: Final = "(?:balance|billing_hard|budget|credits?|funds|quota)"
_PROOF: Final = (
    "(?:api_key|(?:account_|user_)?auth|authentication|authorization|credentials?|jwt|login"
    "|(?:[a-z]{1,24}_)?(?:session|token))"
)
_CREDENTIAL_WORDS: Final = re.compile(
    f"{_PROOF}_(?:is_)?(?:disabled|expired|invalid|invalidated|revoked|terminated)"
    f"|(?:bad|disabled|expired|incorrect|invalid|missing|revoked)_{_PROOF}(?:_provided)?"
    "|(?:auth|authentication|authorization)_(?:error|failed|failure|required)"
    "|(?:disabled|expired|revoked)_key|key_(?:disabled|expired|revoked)"
    "|invalid_grant|login_required|not_authenticated|not_authorized"
    "|unauthenticated|unauthorized(?:_error)?"
)
_ACCOUNT_WORDS: Final = re.compile(
    f"{_OWNER}_(?:is_)?(?:archived|banned|blocked|cancell?ed|closed|deactivated|deleted|disabled"
    "|expired|inactive|locked|not_active|past_due|restricted|suspended|terminated"
    "|unpaid)|(?:banned|cancell?ed|deactivated|deleted|disabled|expired|inactive|no_active"
    f"|suspended)_{_OWNER}|no_subscription|subscription_required"
    f"|{_HOLDER}_not_found|(?:invalid|mismatched|unknown)_{_HOLDER}(?:_selected)?"
    "|access_terminated(?:_error)?|billing_(?:error|not_active)|payment_required"
)
_LIMIT_WORDS: Final = re.compile(
    f"{_ANY}(?:rate|spend|spending|usage|{_MEANS})_limit(?:_?[a-z]{{1,24}})?(?:_error)?"
    "|(?:concurrency|daily|hourly|minute|monthly|plan|requests?|weekly)_"
    "(?:requests?_|tokens?_)?limit_(?:exceeded|reached)"
    f"|{_ANY}{_MEANS}_(?:depleted|exceeded|exhausted|reached)(?:_error)?"
    f"|(?:exceeded|exhausted|insufficient|no|out_of)_(?:[a-z]{{1,24}}_)?{_MEANS}(?:_error)?"
    "|usage_not_included|too_many_requests(?:_error)?|resource_exhausted"
    "|rate_limited(?:_error)?|throttl(?:ed|ing)(?:_error|_exception)?"
)
# Not the same as a missing credential: the account is in order, but may not do this.
_DENIAL_WORDS: Final = re.compile(
    "access_denied|forbidden(?:_error)?|permission_(?:denied(?:_error)?|error)"
)
# Also of an account whose plan lacks the model (F42): another account may have it.
_MODEL_WORDS: Final = re.compile(
    "model_not_(?:accessible|allowed|available|exist|found|included|supported)"
    "|model_(?:decommissioned|deprecated|discontinued|retired)"
    "|(?:invalid|unknown|unsupported)_model(?:_id|_name)?|deployment_not_found"
)
# The upstream's own trouble, which proves that it has stopped working on the request (F46).
_FAILURE_WORDS: Final = re.compile(
    "api_?(?:connection_)?error|bad_gateway(?:_error)?|provider_error|upstream_error"
    "|internal(?:_error)?|(?:internal_)?server_error|internal_failure"
    f"|stream_incomplete|upstream_request_timeout|{SOCKET_EXPIRED_CODE}"
)
# Overload has many names, and comes mostly in a 200 (F43).
_OVERLOAD_WORDS: Final = re.compile(
    f"{_ANY}overloaded(?:_error)?|slow_down|(?:service_)?unavailable(?:_error)?"
)
# Only a gateway has stopped waiting: the server behind it may still be working (F46).
_TIMEOUT_WORDS: Final = re.compile("deadline_exceeded|(?:gateway_)?timeout(?:_error)?")
# The status that an upstream's code or type stands for.  Those about an account come first: 401 for
# its credential, 402 for the account itself, 429 for its limits.  A code that matches none of these
# is about the request.
_MEANINGS: Final[Mapping[int, Callable[[str], re.Match[str] | None]]] = {
    401: _CREDENTIAL_WORDS.fullmatch,
    402: _ACCOUNT_WORDS.fullmatch,
    429: _LIMIT_WORDS.fullmatch,
    403: _DENIAL_WORDS.fullmatch,
    404: _MODEL_WORDS.fullmatch,
    502: _FAILURE_WORDS.fullmatch,
    503: _OVERLOAD_WORDS.fullmatch,
    504: _TIMEOUT_WORDS.fullmatch,
}
# These count whatever status they come with: some upstreams have one status for everything (F41).
_FIRM: Final = frozenset({401, 402, 429})
_STILL_WORKING: Final = frozenset({504, 522, 524})
# A code that stands where a text is usual, as in OAuth's errors, has this form.
_WORDY_CODE: Final = re.compile("[a-z]{1,24}(?:_[a-z]{1,24}){1,5}")
_CAMEL: Final = re.compile("(?<=[a-z0-9])(?=[A-Z])")
# A policy forbids what was sent, whichever account is asked (F44); upstreams vary these names.
_POLICY_CODES: Final = re.compile(
    "(?:cyber|bio|content|safety|usage)_policy.*|[a-z_]{0,60}policy_violation"
    "|(?:content|prompt|safety)_(?:blocked|error|filter|filtered|flagged|violation)"
    "|content_filter_.*|(?:content_)?moderation(?:_.*)?|(?:input|output|prompt|request)_flagged"
    "|flagged(?:_.*)?|image_generation_user_error"
)
# The same in the message of a 403: it is about what the client sent, not about an account.
_FLAGGED: Final = re.compile(
    r"(?i)\b(?:content|image|input|messages?|prompt|request)\b[^.\n]{0,60}"
    r"\b(?:flagged|moderation|(?:content|safety|usage) polic(?:y|ies)|safety system)\b"
)
# What may be logged and counted as a code.  Not the type of a flat event, which says only that it
# is an error, and not a number, which is a status.
_CODE_TOKEN: Final = re.compile(r"(?!error$|response\.|[0-9]+$)[A-Za-z0-9_.-]{1,80}")
_UNREADABLE: Final = re.compile("could not be (?:verified|decrypted)")  # encrypted content (F10)
# A limit that is lower than what the request asks for by itself (F48).
_ASKED: Final = re.compile(
    r"Limit ([0-9]{1,15}), (?:Used [0-9]{1,15}, )?Requested ([0-9]{1,15})(?![0-9])"
)
# Without any code a text may still say that it is a limit of pace; one of a plan has a code (F39).
_THROTTLED: Final = re.compile(r"(?i)\brate.?limit|\btoo many requests")
_MARKUP: Final = re.compile(r"(?i)<(?:!doctype|html|head|body|title|script)\b")
# Control characters, line separators and marks of direction: none of them may forge a log line or
# reorder what a person reads.
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ufffd]")
# Keys, tokens and ids, as providers write them, also masked ones of which a part is left; the
# ids of ChatGPT accounts, which look like those of requests; and addresses of people.  An id has a
# digit or a capital: without them `user_location` is a name of the API, which the client needs.
_NAMES_ACCOUNT: Final = (
    rf"\b(?i:{'|'.join(ID_PREFIXES)})[-_.](?=[\w-]{{0,64}}[0-9A-Z])[\w-]{{6}}[\w-]*"
    rf"|\b(?:{'|'.join(KEY_BEGINNINGS)})[\w-]{{8}}[\w.-]*"
    r"|[\w-]{0,16}\*{4}[\w*-]*|\b(?i:gsk|key|rt|sk|xai)[-_][\w-]{0,16}(?:\.{3}|\u2026)[\w-]*"
    r"|(?i:(?<=organization )org-\w+|(?<=project )proj-\w+|(?<=account )acct-\w+)"
    r"|(?i:(?<!request id )(?<!request id: )\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b)"
    r"|(?:(?<![\w.+-])[\w.+-]{1,64}|[\w.+-])@[\w-][\w.-]*"
)
_ACCOUNT_NAMES: Final = re.compile(_NAMES_ACCOUNT)
# These, and what is said to the owner of an account: "your plan", "your API key".
_PRIVATE: Final = re.compile(
    rf"{_NAMES_ACCOUNT}|(?i:\b[0-9a-f-]{{32}}|\bbearer |\bapi.?key|\b(?:billing|credentials?)\b"
    r"|\byour (?:\w+ )?(?:account|authentication|organization|plan|subscription|team|workspace))"
)
# Addresses of hosts: a client must not learn where the upstream is.
_HOST_ADDRESS: Final = re.compile(r"https?://[^\s'\"]+|\b(?:[0-9]{1,3}\.){3}[0-9]{1,3}\b")
# "The model `x` does not exist", in the words of the upstreams that were seen to give no code.
_NO_MODEL: Final = re.compile(
    r"(?i)(?:model [`'\"]?[\w.:/-]+[`'\"]?|model|[`'\"][\w.:/-]+[`'\"] model) "
    r"(?:(?:was |is |does )?not (?:found|exist|available|supported when using)"
    r"|requires a newer version|has been (?:decommissioned|deprecated|discontinued|retired))"
    r"|(?:no|not have|without) access to (?:the )?model |(?:unknown|no such) model\b"
    r"|(?:invalid|unsupported) model(?: name)?(?: passed in\b|:|[.!]?$| [`'\"])"
    r"|is not a valid model\b|no endpoints found for [\w.:/-]+$"
)
NO_ROUTE_STATUSES: Final = frozenset({404, 405, 501})
_ROUTE_REMEDIES: Final[Mapping[str, str]] = {
    CallKind.RESPONSES.value: (
        "Ask with POST /v1/chat/completions, or add an account whose upstream has /responses."),
    CallKind.CHAT.value: (
        "Ask with POST /v1/responses, or add an account whose upstream has /chat/completions."),
}  # fmt: skip
# What servers say of a path, or a method, that they do not know (F59); an item's 404 says more.
_NO_ROUTE: Final = re.compile(
    r"(?i)(?:[a-z.]{1,40}(?:error|exception)(?::| -) ){0,3}(?:404:? )?"
    r"(?:(?:(?:file|page|path|route|url|endpoint|resource) )?not found[.!]?"
    r"|method not allowed[.!]?|(?:http )?not implemented[.!]?"
    r"|(?:invalid url|unexpected endpoint|unknown (?:request )?(?:endpoint|path|route|url)"
    r"|cannot post|unsupported (?:openai )?(?:/v1 )?(?:endpoint|route)"
    r"|no (?:such )?(?:endpoint|route)|(?:this )?(?:endpoint|method|route) (?:is )?not supported"
    r")\b.*)"
)
_NO_ROUTE_CODES: Final = re.compile(
    "(?:unknown|unsupported|invalid)_(?:endpoint|route|url)|(?:endpoint|path|route)_not_found"
)
_HTTP_DATE: Final = "%a, %d %b %Y %H:%M:%S GMT"  # RFC 9110 §5.6.7: the form that must be sent
# What comes before a span of time (F40), and before a moment.
_RETRY_HINT: Final = re.compile(
    r"(?i)(?:(?:try(?:ing)? again|retry(?:ing)?|resets?) (?:in|after)|wait(?: for)?)"
    r"(?: about| at least)? (?=[0-9])"
)
_RETRY_MOMENT: Final = re.compile(
    r"(?i)(?:try(?:ing)? again|retry|resets?)(?: at| after| on)?:? "
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:.]{5,16}) ?(Z|UTC|GMT|[+-][0-9]{2}:?[0-9]{2})?"
)
# A limit's reset counts only if nothing is left of it: `x-ratelimit-remaining-tokens: 0` (F66).
_RATE_LIMITS: Final = ("", "-requests", "-tokens")
# One part of a span: "6m0s" has two.  Milliseconds first, as their "m" is no minute.
_SPAN: Final = re.compile(
    r"(?i)([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(?:(ms|milliseconds?)|([smhd])|"
    r"(sec|min|second|minute|hour|day)s?)(?![a-z]),? ?(?:and )?"
)
_SECONDS_OF: Final = {"s": 1.0, "m": 60.0, "h": HOUR, "d": 24 * HOUR}


class UpstreamWords(NamedTuple):
    """What an upstream says of an error, in whichever shape (F38, F58)."""

    code: str  # "" if it names none
    message: str
    error: JsonObject
    headers: Headers
    names: tuple[str, ...] = ()  # its codes and types, the most telling first
    status: int = 0  # that it speaks of, as a number


# The members under which upstreams nest an error (F38, F58).  What is inside says more than what is
# around it.
_ERROR_HOLDERS: Final = ("error", "response", "detail", "errors", "choices")
_MESSAGE_NAMES: Final = ("message", "detail", "msg", "error_description")
_STATUS_NAMES: Final = ("code", "status", "status_code")  # a code may be a number (F58)
REACHED_HEADER: Final = "x-codex-rate-limit-reached-type"  # how a limit was reached (F39)


def read_error(value: Json, headers: Headers = NO_FIELDS) -> UpstreamWords:
    """What `{"error": {...}}`, `{"error": "text"}`, `{"detail": ...}` or a bare error object says.

    An error in an event may have a response's status and headers next to it.
    """
    levels = _levels(object_of(value))
    error = ChainMap(*levels)  # a member of an inner object hides that of an outer one
    names = _error_names(levels, headers)
    code = names[0] if names else ""

    texts = (text_at(level, name) for level in levels for name in _MESSAGE_NAMES)
    message = next(filter(None, texts), "")
    numbers = (level.get(name) for level in levels for name in _STATUS_NAMES)
    status = next(filter(None, map(status_in, numbers)), 0)

    return UpstreamWords(
        code,
        message[:MESSAGE_CHARS_MAX],
        error,
        _error_headers(error) | {**headers},
        tuple(names),
        status,
    )


def is_code(text: str) -> bool:
    """Whether a text names a failure: keys and ids do not, as they mix letters and digits."""
    is_token = _CODE_TOKEN.fullmatch(text) is not None
    # An id of letters alone names an account, too, but `user_not_found` is none.
    is_word = _WORDY_CODE.fullmatch(text) is not None
    return is_token and not looks_secret(text) and (is_word or not is_account_name(text))


def _error_names(levels: Sequence[JsonObject], headers: Headers) -> list[str]:
    """The codes and types that an error bears; first those whose meaning is firm."""
    names = [text_at(level, name) for level in levels for name in ("code", "type")]
    names.append(headers.get("x-openai-authorization-error", ""))  # maybe the only word (F47)
    names = [name for name in names if is_code(name)]
    names.sort(key=lambda name: meaning_of(name) not in _FIRM)
    return names


def _error_headers(error: JsonObject) -> dict[str, str]:
    """The headers in an error, or in its metadata, by lower-case name; long ones are left out.

    An error frame of a WebSocket has them there (F24), as it has no head of its own.
    """
    headers = object_of(error.get("headers")) or object_at(error.get("metadata"), "headers")
    return {
        name.lower(): text
        for name, text in headers.items()
        if isinstance(text, str) and len(text) <= KIB
    }


def _levels(outer: JsonDict) -> list[JsonDict]:
    """The objects around what an upstream says of an error, the innermost first.

    Of a list the first object is taken (F65), and a text counts as an object with that message.
    """
    levels = [outer]
    while len(levels) < ERROR_DEPTH_MAX:
        members = (levels[0].get(name) for name in _ERROR_HOLDERS)
        inner = next(filter(None, members), None)
        if isinstance(inner, list):
            inner = next(iter(objects_of(inner[:1])), None)
        if isinstance(inner, str):
            is_known_code = _WORDY_CODE.fullmatch(inner) and meaning_of(inner)
            inner = {"code" if is_known_code else "message": inner}
        if not isinstance(inner, dict):
            break

        levels.insert(0, inner)
    return levels


def meaning_of(name: str) -> int:
    """The status that a code or a type stands for; 0 if that is not known.

    It may be the name of a class, as in `openai.RateLimitError`: only its last part counts.
    """
    last_part = name.rpartition(".")[2]
    plain = _CAMEL.sub("_", last_part).lower().replace("-", "_")
    return next((status for status, means in _MEANINGS.items() if means(plain)), 0)


def _status_of(status: int, words: UpstreamWords) -> int:
    """The status to classify a failure by; `status`: the response's own, if it was not a success.

    A word for the account's own trouble goes before any number, and a number before other words.
    """
    meanings = (*map(meaning_of, words.names), words.status)
    for meaning in meanings:
        if meaning in _FIRM:
            return meaning

    # A gateway that only stopped waiting says so in its words, whatever status it sends: the
    # server behind it may still be working (F46).
    if status >= 500 and not _STILL_WORKING.isdisjoint(meanings):
        return 504
    return status or _status_in_200(words)


def _status_in_200(words: UpstreamWords) -> int:
    """The status that a failure in a 200 stands for, by what it says of itself."""
    if words.status:
        is_usual = words.status < 500 or words.status in _BY_STATUS
        return words.status if is_usual else 502
    if words.names:
        # A code that nobody knows is most likely about the request, and blames no account.
        return meaning_of(words.code) or 400
    if _THROTTLED.search(words.message):
        return 429
    is_of_request = _is_about_model(words) or _is_about_reasoning(words)
    return 400 if is_of_request else NAMELESS


def _reason(status: int, words: UpstreamWords) -> str:
    """What is known of a failure, for the log: names and numbers, and no text.

    `status` is the response's: a 200 with a failure in it must be recognizable in the log.
    """
    reached: Json = words.headers.get(REACHED_HEADER)
    reached = reached or words.error.get("rate_limit_reached_type")
    reached = text_at(reached, "type") or text_at(reached, "kind") or reached

    name = words.code
    if not name and words.status not in {0, status}:
        name = str(words.status)
    parts = [str(status), name]
    if isinstance(reached, str) and is_code(reached) and reached != name:
        parts.append(reached)
    return " ".join(filter(None, parts))


def cleaned(text: str) -> str:
    """An upstream's reason as it may appear in one of our errors: a sentence or two, in plain text.

    "" if it is a page, or names an account, a person or a secret.
    """
    if _MARKUP.search(text) or _PRIVATE.search(text):
        return ""

    plain = _CONTROL.sub(" ", text)
    shown = " ".join(_HOST_ADDRESS.sub("[...]", plain).split())
    return shown if len(shown) <= REASON_CHARS_MAX else f"{shown[:REASON_CHARS_MAX]} ..."


def _texts_in(value: Json) -> str:
    """All texts in a value, one a line: as they are meant, and not as JSON escapes them.

    In the source of a text an escape hides where a word begins: `\\norg-abc`.
    """
    texts: list[str] = []
    unread: list[Json] = [value]  # not by recursion: an upstream chooses how deep it is
    while unread:
        part = unread.pop()
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, list):
            unread += part
        elif isinstance(part, dict):
            unread += part.values()
    return "\n".join(texts)


@functools.lru_cache(NAMES_KNOWN_MAX)
def is_account_name(text: str) -> bool:
    """Whether a short text holds what names an account, a person or a secret.

    Remembered, as a catalogue has thousands of names, of which each may take 50 us.
    """
    return _ACCOUNT_NAMES.search(text) is not None


def names_account(words: UpstreamWords, value: Json = None, body: bytes = b"") -> bool:
    """Whether an error that would be passed on unchanged names an account, in whichever spelling.

    `value`: all that would be passed on; `body`: its source, which may also have a name in a
    member's name.  Of a long value only the beginning is searched, and a long body not at all: the
    search would block the loop.
    """
    texts = [words.message, _texts_in(value)[:NAMED_BYTES_MAX]]
    if len(body) <= NAMED_BYTES_MAX:
        texts.append(body.decode("utf-8", "replace"))
    return any(map(_ACCOUNT_NAMES.search, texts))


def without_names(text: str) -> str:
    """An upstream's text about the request, without what names an account, a person or a secret."""
    return _ACCOUNT_NAMES.sub("[...]", text)


def _moment_of(value: Json) -> float | None:
    """A Unix time, written as one, as RFC 3339, or as the date of a header (RFC 9110 §5.6.7).

    None if the value is none of these.
    """
    if isinstance(value, str):
        for parse in (datetime.fromisoformat, _date_of):
            with contextlib.suppress(ValueError, OverflowError):
                moment = parse(value)
                if moment.tzinfo is None:
                    moment = moment.replace(tzinfo=UTC)
                return moment.timestamp()
    return number_of(value)


def _date_of(text: str) -> datetime:
    """The moment of a header's date.  Raises: ValueError."""
    return datetime.strptime(text, _HTTP_DATE).replace(tzinfo=UTC)


def cooldown_of(words: UpstreamWords, unix_now: float) -> float | None:
    """The seconds until a limit resets, as the upstream says; None if it says nothing plausible.

    A reset beyond RESET_SECONDS_MAX is not believed: one wrong number must not keep an account out
    for years.
    """
    for seconds in _stated_cooldowns(words, unix_now):
        if 0 < seconds <= RESET_SECONDS_MAX:
            return seconds
    return None


def _stated_cooldowns(words: UpstreamWords, unix_now: float) -> Iterator[float]:
    """All that an error says of when its limit resets, in seconds from now, the surest first.

    What it does not say, or what cannot be read, is no positive number.
    """
    error, headers = words.error, words.headers
    yield _seconds_until(error.get("resets_at"), unix_now)
    yield number_of(error.get("resets_in_seconds")) or 0

    after = headers.get("retry-after", "")
    yield (number_of(headers.get("retry-after-ms")) or 0) / 1000
    yield number_of(after) or 0
    yield _seconds_until(after, unix_now)
    yield number_of(error.get("retry_after")) or 0

    for detail in _details(error):
        yield _span_of(text_at(detail, "retryDelay"))
    yield _hinted_seconds(words.message)
    if match := _RETRY_MOMENT.search(words.message):
        moment, zone = match[1], match[2] or ""
        if not zone.startswith(("+", "-")):
            zone = "+00:00"
        yield _seconds_until(moment + zone, unix_now)
    for limit in _RATE_LIMITS:
        yield _reset_of(headers, limit, unix_now)


def _seconds_until(value: Json, unix_now: float) -> float:
    """The seconds until a moment, which may be past; 0 if the value is none."""
    moment = _moment_of(value)
    return 0.0 if moment is None else moment - unix_now


def _details(error: JsonObject) -> Sequence[Json]:
    """What google.rpc.Status has next to its message (F65)."""
    details = error.get("details")
    return objects_of(details[:DETAILS_MAX]) if isinstance(details, list) else ()


def _reset_of(headers: Headers, limit: str, unix_now: float) -> float:
    """How long until there is something left of a limit of pace, in seconds; 0 if that is unknown.

    The header is a span, "6m0s", or a number: of seconds, or a Unix time in seconds or
    milliseconds (F66).
    """
    if headers.get(f"x-ratelimit-remaining{limit}") != "0":
        return 0.0

    reset = headers.get(f"x-ratelimit-reset{limit}", "")
    is_in_milliseconds = reset.isdecimal() and len(reset) == MS_DIGITS
    number = number_of(reset[:-3] if is_in_milliseconds else reset)
    if number is None:
        return _span_of(reset)
    # A span of that many seconds would be thirty years.
    return number - unix_now if number > UNIX_SECONDS_MIN else number


def _hinted_seconds(message: str) -> float:
    """How long an error's text says to wait (F40): "1.898s", "6m0s", "2 days and 3 hours"; or 0."""
    hint = _RETRY_HINT.search(message)
    return _span_of(message, hint.end()) if hint else 0.0


def _span_of(text: str, at: int = 0) -> float:
    """The seconds of a span of time that is written there; 0 if none is.

    What comes after its first SPAN_PARTS_MAX parts is not read.
    """
    seconds = 0.0
    for _ in range(SPAN_PARTS_MAX):
        part = _SPAN.match(text, at)
        if part is None:
            break

        unit = part[3] or part[4] or ""  # neither: milliseconds
        unit_seconds = _SECONDS_OF.get(unit[:1].lower(), 0.001)
        seconds += float(part[1]) * unit_seconds
        at = part.end()
    return seconds


class Window(NamedTuple):
    """One window of an account's quota, as the upstream reports it (F33, F34).

    Its length tells the five-hour window from the weekly one; its position does not.
    """

    family: str  # the limit's id
    length_seconds: int  # 0: not reported
    used_percent: float  # 0 to 100
    resets_at: float | None  # unix time, not yet checked
    name: str = ""  # of the limit, for people; that of a model's own limit is the model's


PLAN_FAMILY: Final = "codex"  # this limit is the account's; others are of single models (F35)
_POSITIONS: Final = ("primary", "secondary")
_WINDOW_FIELDS: Final = ("used-percent", "window-minutes", "reset-at")
_FAMILY: Final = re.compile("[a-z0-9_]{1,64}")
_QUOTA_HEADER: Final = re.compile(r"x-([a-z0-9-]{1,64})-(primary|secondary)-used-percent")


def _read_window(family: str, values: Iterable[Json], name: str) -> list[Window]:
    """The window with these `_WINDOW_FIELDS`; none, if they are no plausible numbers.

    More than 100 % counts as 100: the last response may overrun.  Nothing used, of an unknown
    length, with no reset, is how an upstream says "no data" (F33).
    """
    percent, minutes, resets_at = map(number_of, values)
    if percent is None or percent < 0:
        return []
    if not (percent or minutes or resets_at):
        return []

    seconds = 0
    if minutes and 1 <= minutes <= WINDOW_MINUTES_MAX:
        seconds = int(minutes) * 60
    used_percent = min(percent, 100.0)
    return [Window(family, seconds, used_percent, resets_at, name[:MODEL_CHARS_MAX])]


def read_quota_headers(headers: Headers) -> list[Window]:
    """The quota windows in the head of a response, a refusal's too (F33, F35)."""
    windows: list[Window] = []
    for header in headers:
        match = _QUOTA_HEADER.fullmatch(header)
        if match is None:
            continue

        stem = header.removesuffix(_WINDOW_FIELDS[0])
        values = [headers.get(stem + part) for part in _WINDOW_FIELDS]
        limit_name = headers.get(f"x-{match[1]}-limit-name", "")
        windows += _read_window(match[1].replace("-", "_"), values, limit_name)
    return windows


def read_quota_event(event: JsonObject) -> list[Window]:
    """The quota windows in a `codex.rate_limits` event; one that names no limit is the plan's."""
    rates = object_at(event, "rate_limits")
    limit_name = text_at(event, "limit_name")
    limit_id = event.get("metered_limit_name") or event.get("limit_name") or PLAN_FAMILY
    family = _family_of(limit_id)
    if not family:
        return []
    if limit_name == limit_id:
        limit_name = ""  # it is the id, and no name for people

    windows: list[Window] = []
    for position in _POSITIONS:
        window = object_at(rates, position)
        values = [window.get(part.replace("-", "_")) for part in _WINDOW_FIELDS]
        windows += _read_window(family, values, limit_name)
    return windows


def _family_of(limit_id: Json) -> str:
    """The family that a limit's id names; "" if it is no id."""
    family = limit_id.lower().replace("-", "_") if isinstance(limit_id, str) else ""
    return family if _FAMILY.fullmatch(family) else ""


def read_usage_report(report: JsonObject) -> list[Window]:
    """The quota windows in a response of the usage route (F36): the plan's, and single models'."""
    plan = {"metered_feature": PLAN_FAMILY, "rate_limit": report.get("rate_limit")}
    others = objects_at(report, "additional_rate_limits")[:QUOTA_WINDOWS_MAX]

    windows: list[Window] = []
    for limit in (plan, *others):
        family = _family_of(limit.get("metered_feature"))
        rates = object_at(limit, "rate_limit")
        for position in _POSITIONS if family else ():
            window = object_at(rates, f"{position}_window")
            minutes = (number_of(window.get("limit_window_seconds")) or 0) / 60
            values = [window.get("used_percent"), minutes, window.get("reset_at")]
            windows += _read_window(family, values, text_at(limit, "limit_name"))
    return windows


class LimitWords(NamedTuple):
    """What a response says of its account's limits, besides an error."""

    windows: Sequence[Window] = ()
    active: str = ""  # the id of the limit that fired
    reached: str = ""  # in which way it was


NO_LIMIT_WORDS: Final = LimitWords()


def read_limit_words(headers: Headers) -> LimitWords:
    """What the head of a response, or of a WebSocket's error frame, says of limits."""
    active = headers.get("x-codex-active-limit", "").lower().replace("-", "_")
    reached = headers.get(REACHED_HEADER, "")
    if not is_code(reached):  # it will be logged
        reached = ""
    return LimitWords(read_quota_headers(headers), active, reached)


def model_of_limit(name: str) -> str:
    """The model that a limit is named after, as models are compared: "GPT-6 Mini" is gpt-6-mini."""
    return name.strip().lower().replace(" ", "-").replace("_", "-")


def _limited_family(limits: LimitWords, model: str, *, is_throttle: bool) -> str:
    """The family of the model whose own limit was reached; "" if it was the plan's (F35).

    The limit that fired is named by some responses.  Otherwise it is one whose window is full, but
    not for a throttle, which has no window.
    """
    others = {window.family for window in limits.windows} - {PLAN_FAMILY}
    if limits.active in others:
        return limits.active
    if is_throttle or limits.active == PLAN_FAMILY:
        return ""

    full = [window for window in limits.windows if window.used_percent >= 100]
    if PLAN_FAMILY in [window.family for window in full]:
        return ""
    # The window that is named after the model of the request comes first.
    full.sort(key=lambda window: model_of_limit(window.name) != model_of_limit(model))
    return full[0].family if full else ""


def classify_limit(fault: Fault, limits: LimitWords, model: str) -> Fault:
    """The fault, with what else its response says of limits: it may be the model's alone.

    Without this a model with a small limit of its own would put the whole account into a cooldown
    of days (F35).
    """
    if fault.effect is not Effect.LIMITED:
        return fault

    is_throttle = fault.is_throttle and not _USAGE_WORDS.search(limits.reached)
    family = _limited_family(limits, model, is_throttle=is_throttle)
    reason = fault.reason
    if limits.reached and limits.reached not in reason:
        reason = f"{reason} {limits.reached}"
    return fault._replace(
        reason=reason,
        effect=Effect.MODEL_LIMITED if family else Effect.LIMITED,
        is_throttle=is_throttle,
        about=family,
    )


def lacking_model(code: str = "") -> PoolerError:
    """The error if the key may use a model, but no account can, as an upstream says (F42).

    A code with digits that OpenCode reads as a status (F68) is left out: it would retry for ever.
    """
    source = ""
    if code and not _RETRIED_DIGITS.search(code):
        source = f" (upstream: {code})"
    public = f"No account in this pool can use this model at the moment{source}."
    return PoolerError("model_not_found", public)


def lacking_route(path: str) -> PoolerError:
    """The error if no upstream of the accounts has the route.

    A 400, as OpenCode retries every 404 of some providers (F69).
    """
    remedy = _ROUTE_REMEDIES.get(path, "Add an account whose upstream has it.")
    public = f"The upstream of this pool's accounts has no {path}. {remedy}"
    return PoolerError("unsupported_endpoint", public, 400)


def _classified(
    reason: str,
    status: int,
    words: UpstreamWords,
    request_error: PoolerError,
    unix_now: float,
) -> Fault:
    """What a failure with this status means; `request_error`: if the request is to blame."""
    action, effect = _verdict_of(status, words)

    error = request_error
    if status >= 500 or status == NAMELESS:
        cause = cleaned(words.message)
        public = f"The upstream failed: {cause}" if cause else ""
        error = PoolerError("upstream_error", public, status, upstream_code=words.code)
    elif effect is Effect.LACKS_MODEL:
        error = lacking_model(words.code)
    elif action in {Action.NEXT, Action.REFRESH}:
        error = PoolerError("no_usable_account")

    # A 408 says that the upstream has waited for something, not that it has done nothing.
    is_clients = 400 <= status < 500 and status != 408
    return Fault(
        reason,
        action,
        effect,
        error,
        cooldown_of(words, unix_now),
        is_refusal=is_clients or action is not Action.RETURN,
        is_throttle=not _USAGE_WORDS.search(words.code),
    )


def _verdict_of(status: int, words: UpstreamWords) -> tuple[Action, Effect]:
    """What happens next, and to the account.

    The exceptions come before the table: in each of them the status alone would blame an account
    for the request, or the request for an account.
    """
    if status in {400, 403, 404, 422} and _is_about_model(words):
        return Action.NEXT, Effect.LACKS_MODEL
    if _is_about_content(status, words) or (status == 429 and is_too_large(words)):
        return Action.RETURN, Effect.NONE
    if status == 400 and _is_about_reasoning(words):
        return Action.REPAIR, Effect.NONE
    if words.code == SOCKET_EXPIRED_CODE:
        return Action.REOPEN, Effect.NONE
    return _BY_STATUS.get(status, (Action.RETURN, Effect.NONE))


def _is_about_content(status: int, words: UpstreamWords) -> bool:
    """Whether a policy forbids what was sent (F44): that must not count against an account.

    A word about the account goes first: one is suspended, too, for what was sent.
    """
    if meaning_of(words.code) in _FIRM:
        return False
    if any(map(_POLICY_CODES.fullmatch, words.names)):
        return True
    if status != 403 or _PRIVATE.search(words.message):
        return False
    return _FLAGGED.search(words.message) is not None


def _is_about_reasoning(words: UpstreamWords) -> bool:
    """Whether the account cannot read the encrypted reasoning of another one (F10)."""
    if words.code == "invalid_encrypted_content":
        return True
    _, _, rest = words.message.partition("encrypted content ")
    return _UNREADABLE.search(rest) is not None


def is_too_large(words: UpstreamWords) -> bool:
    """Whether a request alone is more than a limit allows (F48): no cooldown changes that."""
    if match := _ASKED.search(words.message):
        return int(match[2]) > int(match[1])
    return words.message.startswith("Request too large")


def _is_about_model(words: UpstreamWords) -> bool:
    """Whether the account cannot use the model (F42): by a code, or in words.

    Neither counts if another parameter is to blame: a client may name a model inside a tool, and a
    message may quote its text.
    """
    if words.error.get("param") not in (None, "", "model"):
        return False
    return meaning_of(words.code) == 404 or _NO_MODEL.search(words.message) is not None


def _lacks_route(status: int, value: JsonObject, words: UpstreamWords) -> bool:
    """Whether an upstream has no such route (F59): it says so, or says nothing that is an API's.

    `value`: the object in the body of its response.
    """
    if status not in NO_ROUTE_STATUSES or _is_about_model(words):
        return False

    is_error = isinstance(value.get("error"), dict) or bool(words.names)
    is_of_api = is_error or value.get("detail") is not None
    return not is_of_api or _names_no_route(words)


def _names_no_route(words: UpstreamWords) -> bool:
    """Whether an error says, by its code or in words, that there is no such route."""
    is_code = _NO_ROUTE_CODES.fullmatch(words.code)
    return bool(is_code or _NO_ROUTE.fullmatch(words.message))


def _without_route(reason: str) -> Fault:
    """The fault of an account whose upstream lacks the route, and so has done nothing."""
    error = PoolerError("unsupported_endpoint", status=400)
    return Fault(reason, Action.NEXT, Effect.LACKS_ROUTE, error, is_refusal=True)


def _is_of_an_edge(status: int, headers: Headers, value: JsonObject) -> bool:
    """Whether the response is a page of something in front of the upstream: a bot wall (F45).

    It has seen an address, and no account, so it begins no cooldown.
    """
    if status not in {403, 429}:
        return False
    if headers.get("cf-mitigated") is not None:
        return True

    is_page = "html" in headers.get("content-type", "").lower()
    if status == 403:
        return is_page
    # Cloudflare's limiter sends no JSON of an API; an upstream behind Cloudflare does.
    is_cloudflare = headers.get("server", "").lower() == "cloudflare"
    return (is_page or is_cloudflare) and not value


def classify_response(
    status: int,
    headers: Headers,
    body: bytes,
    unix_now: float,
    *,
    is_reshaped: bool = False,
    is_whole: bool = True,
) -> Fault:
    """What an upstream's response other than 2xx means.

    `is_reshaped`: a body that is not OpenAI-shaped must not be passed on unchanged.
    `is_whole`: all of it has come; else it may have said what is not there.
    """
    content_type = headers.get("content-type", "").lower()
    is_page = "html" in content_type  # its text is for people, and in no code
    value, text = _read_refusal(b"" if is_page else body)
    words = read_error(value, headers)
    reason = _reason(status, words)

    if status < 400:
        error = PoolerError("upstream_invalid_response")
        return Fault(reason, Action.RETURN, Effect.NONE, error)
    if _is_of_an_edge(status, headers, value):
        return _edge_fault(reason, status)
    # A word for the account's trouble changes the status, and then it is not about the route.
    meant = _status_of(status, words)
    if is_whole and meant == status and _lacks_route(status, value, words):
        return _without_route(reason)

    words = words._replace(message=words.message or text)
    request_error = _refusal_error(
        status,
        words,
        value,
        body,
        content_type,
        is_reshaped=is_reshaped,
    )
    return _classified(reason, meant, words, request_error, unix_now)


def _refusal_error(
    status: int,
    words: UpstreamWords,
    value: JsonObject,
    body: bytes,
    content_type: str,
    *,
    is_reshaped: bool,
) -> PoolerError:
    """The error for the client, if the refusal is about its request.

    It is the upstream's own body, or has its message.  `value`: what is in a body that is JSON.
    """
    error = PoolerError("upstream_error", status=status, upstream_code=words.code)
    error.public = cleaned(words.message) or "The upstream refused the request."
    is_flat = is_reshaped and not isinstance(value.get("error"), dict)
    if is_flat or names_account(words, value, body):
        if value:  # a text of no known shape is shown as far as it is clean
            error.public = without_names(words.message) or error.public
        return error

    # Unchanged (SECURITY.md, 8), unless its code is one of ours: it would pass for our own error.
    is_json = "json" in content_type and bool(try_load_object(body))
    if is_json and not error.is_renamed:
        error.upstream_response = (body, content_type)
    return error


def _edge_fault(reason: str, status: int) -> Fault:
    """What a page of an edge means, a bot wall or a limiter.

    One that counts requests has done nothing, and the next account may have another edge.
    """
    is_limiter = status == 429
    verdict = (Action.NEXT, Effect.DEMOTED) if is_limiter else (Action.RETURN, Effect.NONE)
    return Fault(reason, *verdict, PoolerError("upstream_blocked"), is_refusal=is_limiter)


def _read_refusal(body: bytes) -> tuple[JsonDict, str]:
    """The object in the body of a refusal, or else the text that it is.

    A list may hold it (F65).  What is not UTF-8 is nearly always Latin-1.
    """
    raw = body if is_utf8(body) else body.decode("latin-1").encode()
    start = raw.lstrip()[:1]
    is_list = start == b"["
    value = try_load_object(b'{"errors":' + raw + b"}" if is_list else raw)
    if value or is_list or start == b"{":
        return value, ""

    text = raw[:MESSAGE_CHARS_MAX].decode("utf-8", "replace")
    return {}, text.strip().strip('"')  # a JSON string is a text, too


def classify_event(failure: JsonObject, unix_now: float) -> Fault | None:
    """What a failure hidden in a 200, before any content, means.

    None if the request is to blame, or if nothing of it could be read.
    """
    if not failure:
        return None

    words = read_error(failure)
    reason = _reason(200, words)
    # Some local servers answer every path with a 200 (F59).
    is_bare = not (words.status or words.names)
    if (is_bare or words.status in NO_ROUTE_STATUSES) and _names_no_route(words):
        return _without_route(reason)

    fault = _classified(reason, _status_of(0, words), words, _own_failure(words), unix_now)
    fault = fault._replace(is_hearsay=is_bare)
    is_own = fault.action is Action.RETURN and fault.effect is Effect.NONE
    return None if is_own else fault


def failed_response(failure: JsonObject, unix_now: float) -> PoolerError:
    """The HTTP error for a failure in a stream whose client has been sent nothing yet.

    If the request is to blame, the error has the upstream's words, as it would in a 400.
    """
    if fault := classify_event(failure, unix_now):
        return fault.error
    return _own_failure(read_error(failure))


def own_fault(failure: JsonObject, body: bytes = b"") -> Fault:
    """The fault of a request that a 200 reports; `body`: the whole of it, if it is JSON."""
    words = read_error(failure)
    error = _own_failure(words)
    value = try_load_object(body)
    is_shaped = isinstance(value.get("error"), dict)
    if is_shaped and not error.is_renamed and not names_account(words, value, body):
        error.upstream_response = (body, "application/json")
    return Fault(_reason(200, words), Action.RETURN, Effect.NONE, error, is_refusal=True)


def _own_failure(words: UpstreamWords) -> PoolerError:
    """The HTTP error for what a 200 reports that is the request's own fault.

    Its status is the one in the failure if that is a 4xx, as a response of that status would say.
    """
    status = words.status if 400 <= words.status < 500 else 400
    public = without_names(words.message)
    return PoolerError("upstream_error", public, status, upstream_code=words.code)


# Of a failed event: what no client gets, and what only names the request.
_NOT_SHOWN: Final = frozenset({"headers", "request_id"})


def public_error(
    fault: Fault | None,
    failure: JsonObject,
    *,
    is_reshaped: bool = False,
) -> PoolerError | None:
    """The error that a client gets in the place of a failure in the middle of its stream.

    None: the upstream's own words may go to the client.  Those about an account may not
    (SECURITY.md, 7).  `is_reshaped`: they would come in an event of ours, so a code of ours in it
    would pass for the pooler's, and clients act on these.
    """
    effect = Effect.NONE if fault is None else fault.effect
    if fault is not None and effect in {Effect.REFUSED, Effect.FORBIDDEN}:
        return fault.error

    words = read_error(failure)
    error = PoolerError("upstream_error", without_names(words.message), upstream_code=words.code)
    if effect in LIMIT_EFFECTS and words.message and not cleaned(words.message):
        error.status = 429
        error.public = "The account that served this has reached its limit."
        return error

    if names_account(words, _error_members(failure)):
        return error
    if is_reshaped and error.is_renamed:
        return PoolerError("upstream_error", cleaned(words.message), upstream_code=words.code)
    return None


def _error_members(failure: JsonObject) -> list[Json]:
    """What a failed event shows of its error.

    Of a whole response it is nothing: most of that is the client's own, as its instructions are.
    """
    if "output" in failure or "response" in failure:
        return []
    return [failure[name] for name in failure if name not in _NOT_SHOWN]


class Stage(enum.Enum):
    """How far an attempt has come on its connection: it decides whether it may be repeated."""

    UPGRADE = enum.auto()  # to a WebSocket
    SEND = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()


class Trouble(enum.Enum):
    """What ended an attempt; the value is the code of its error, unless a body was cut off."""

    CLOSED = "upstream_unreachable"
    TIMEOUT = "upstream_timeout"
    SYNTAX = "upstream_invalid_response"


# If an upgrade is refused with one of these, there is no WebSocket, for this account at least.
NO_WEBSOCKET_STATUSES: Final = frozenset({404, 405, 426, 501})


class Cause(enum.StrEnum):
    """Why no connection was established; these words are logged and counted."""

    NAME = "name not found"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    TIMED_OUT = "timed out"
    CLOSED = "closed"
    NOT_TRUSTED = "certificate not trusted"
    OTHER_NAME = "certificate for another name"
    OUT_OF_DATE = "certificate out of date"
    TLS = "TLS failed"
    NO_DESCRIPTOR = "no descriptor left"
    PROXY_NAME = "proxy name not found"
    PROXY_UNREACHABLE = "proxy unreachable"
    PROXY_TIMED_OUT = "proxy timed out"
    PROXY_LOGIN = "proxy requires a login"
    PROXY_REFUSED = "proxy refused"
    PROXY_FAILED = "proxy could not connect"
    PROXY_CLOSED = "proxy closed"
    PROXY_RESPONSE = "invalid response from proxy"


# About the certificate: accounts of one host may trust different authorities.
_OF_TRUST: Final = frozenset({Cause.NOT_TRUSTED, Cause.OTHER_NAME, Cause.OUT_OF_DATE, Cause.TLS})
# The pooler itself, or its proxy, is in trouble: no other account would fare better.
_OF_EVERYBODY: Final = frozenset(
    {
        Cause.NO_DESCRIPTOR, Cause.PROXY_NAME, Cause.PROXY_UNREACHABLE, Cause.PROXY_TIMED_OUT,
        Cause.PROXY_LOGIN, Cause.PROXY_RESPONSE,
    }
)  # fmt: skip


def _timed_out(timer: str) -> PoolerError:
    """The error for a timer of `limits` that has run out.

    It names the timer and not its seconds: their digits might read like a status to OpenCode (F68).
    """
    public = f"The upstream took longer than the timer {timer} allows."
    return PoolerError("upstream_timeout", public)


def classify_connect(cause: Cause) -> Fault:
    """What a failed connection attempt means: nothing was sent, so others may be tried.

    The network is no account's fault, but one that cannot be reached is tried after the others.
    """
    action, effect = Action.NEXT, Effect.DEMOTED
    if cause in _OF_EVERYBODY:
        action, effect = Action.RETURN, Effect.NONE

    error = PoolerError("upstream_unreachable")
    if cause in {Cause.TIMED_OUT, Cause.PROXY_TIMED_OUT}:
        error = _timed_out("connect_seconds_max")
    return Fault(f"connect: {cause}", action, effect, error, cause=cause)


def classify_transport(stage: Stage, trouble: Trouble, timer: str) -> Fault:
    """What a broken connection, a passed deadline or nonsense means at this stage.

    Only what was never sent whole may go elsewhere (SECURITY.md, 2): an upstream that has read the
    request may be working on it.  The network is no account's fault, but an account that cannot be
    reached, or is silent, is tried after the others for a minute.
    """
    is_unsent = stage in {Stage.UPGRADE, Stage.SEND}
    action = Action.NEXT if is_unsent else Action.RETURN
    is_demoted = stage is Stage.UPGRADE or trouble is Trouble.TIMEOUT
    effect = Effect.DEMOTED if is_demoted else Effect.NONE

    code = trouble.value
    if stage is Stage.BODY and trouble is Trouble.CLOSED:
        code = "upstream_stream_truncated"
    error = PoolerError(code)
    if trouble is Trouble.TIMEOUT:
        error = _timed_out(timer)
    return Fault(f"{stage.name} {trouble.name}".lower(), action, effect, error)


################################################################
# ACCOUNTS
################################################################
# Which account serves a call.  All state is here, in memory and bounded; each method decides and
# takes effect in one step, so nothing can come between.  `now` is monotonic, in seconds; what an
# upstream announces is in Unix seconds, and `unix_now` translates it.
#
#     Health              what is known of one account: cooldowns, blocks, quota, catalogue
#     Sessions, Leases    which account a conversation belongs to, and what is in flight
#     Standing            whether an account can serve a call; if not, why, and until when
#     Hosts               which hosts could not be reached
#     Roster              all of that, and what happens to it
#     Choice              for one call: the best account, or the wait, or the error
#
# Two guarantees of SECURITY.md rest on this section: a session stays on its account (3), and a
# cooldown ends at its reset, or when a request that began after it succeeds (5).


class Model(NamedTuple):
    """One entry of an account's catalogue."""

    context_length: int | None = None  # in tokens
    efforts: tuple[str, ...] = ()  # reasoning levels, the lowest first; () if unknown
    entry: bytes = b""  # JSON, as in Codex's catalogue
    slug: str = ""  # its name in that entry

    def entry_as(self, name: str) -> bytes:
        """The entry under the name that a pool has for the model."""
        entry = load_object(self.entry, CATALOGUE_MEMBERS_MAX)
        return dump_json({**entry, "slug": name})

    def merged(self, other: Model) -> Model:
        """The model as two accounts serve it: the shorter context, as either may be asked."""
        both = (self, other)
        lengths = [model.context_length for model in both if model.context_length]
        context_length = min(lengths, default=None)
        described = self if self.entry else other
        return described._replace(context_length=context_length)


def _remember(
    values: OrderedDict[K, T],
    key: K,
    value: T,
    length_max: int,
) -> None:
    """Set a member; above `length_max` the one that was set longest ago is forgotten."""
    values[key] = value
    values.move_to_end(key)
    while len(values) > length_max:
        values.popitem(last=False)


class Memory(Generic[T]):
    """Values by digest, in shares: one for each pool key.

    The largest share forgets its oldest value first, so no client can push out what others need,
    however much it adds itself.
    """

    def __init__(self) -> None:
        self.by_share: dict[Hashable, OrderedDict[bytes, T]] = {}
        self.length = 0

    def __len__(self) -> int:
        return self.length

    def get(self, share: Hashable, digest: bytes | None) -> T | None:
        """The value in a share under a digest; None if it is not remembered.

        `digest` may be None, for what has no name: nothing is remembered under it.
        """
        values = self.by_share.get(share)
        return values.get(digest) if values and digest else None

    def set(
        self,
        share: Hashable,
        digest: bytes,
        value: T,
        length_max: int,
    ) -> None:
        """Remember a value; above `length_max` values in all, old ones are forgotten."""
        values = self.by_share.setdefault(share, OrderedDict())
        self.length += digest not in values
        values[digest] = value
        values.move_to_end(digest)
        while self.length > length_max:
            self._forget_one()

    def _forget_one(self) -> None:
        """Forget the oldest value of the largest share."""
        largest = max(self.by_share, key=lambda share: len(self.by_share[share]))
        values = self.by_share[largest]
        values.popitem(last=False)
        self.length -= 1
        if not values:
            del self.by_share[largest]


# Quota.


class QuotaWindow(NamedTuple):
    """How far one window of a limit is used up, and when the next one begins.

    Windows are compared by their first fields: the one that is used more, and ends later, is the
    larger one.
    """

    used_percent: float  # 0 to 100
    ends_at: float  # if the upstream announces no plausible reset, the latest that it can be
    seen_at: float = 0.0  # when it was reported
    is_reset_known: bool = True

    @property
    def is_full(self) -> bool:
        return self.used_percent >= 100


def _window_of(
    report: Window,
    now: float,
    unix_now: float,
) -> QuotaWindow:
    """A reported window on our clock.

    A reset in the past, or further away than RESET_SECONDS_MAX, is not believed: the upstream's
    clock or ours is wrong, and a window is over after its length at the latest.
    """
    seconds = (report.resets_at or 0.0) - unix_now
    is_plausible = 0 < seconds <= RESET_SECONDS_MAX
    if not is_plausible:
        seconds = report.length_seconds
    return QuotaWindow(report.used_percent, now + seconds, now, is_plausible)


@dataclass(eq=False, slots=True)
class Quota:
    """How far the limits of one account are used up: its plan's, and those of single models."""

    # By the limit's family, and the window's length in seconds.
    windows: dict[tuple[str, int], QuotaWindow] = field(default_factory=dict)
    # The families of models that have a limit of their own, by the upstream's name of the model.
    families: OrderedDict[str, str] = field(default_factory=OrderedDict)

    @property
    def heard_at(self) -> float:
        """When the upstream reported any of it last."""
        return max((window.seen_at for window in self.windows.values()), default=-math.inf)

    def running(self, family: str, now: float) -> dict[int, QuotaWindow]:
        """The windows of a limit that have not ended, by their length in seconds."""
        return {
            length: window
            for (name, length), window in self.windows.items()
            if name == family and window.ends_at > now
        }

    def has_own_room(self, model: str, now: float) -> bool:
        """Whether a model has a limit apart from the plan's, and that is not used up (F35)."""
        family = self.families.get(model_of_limit(model), "")
        windows = self.running(family, now).values()
        return bool(windows) and not any(window.is_full for window in windows)

    def reset_seconds(self, family: str, now: float) -> float | None:
        """The seconds until a limit's fullest window ends; None if that is unknown."""
        windows = self.running(family, now).values()
        announced = [window for window in windows if window.is_reset_known]
        if not announced:
            return None
        return max(announced).ends_at - now

    def left_percent(self, now: float) -> float:
        """What is left of the plan's fullest window: that is the one that will bar the account."""
        windows = self.running(PLAN_FAMILY, now).values()
        left = [100 - window.used_percent for window in windows]
        return min(left, default=UNKNOWN_LEFT_PERCENT)

    def lapse(self, now: float, *, has_plan: bool) -> tuple[float, float]:
        """How soon quota of the plan is lost unused, as a sort key; smaller is sooner.

        The longest window counts, as a short one begins many times before that is over; among
        windows that end within the same hour the shortest decides.  A window begins with its first
        use, so a plan without a running one comes first: its window should begin.
        """
        windows = self.running(PLAN_FAMILY, now)
        if not windows:
            moment = -math.inf if has_plan else math.inf
            return moment, moment

        longest = windows[max(windows)]
        if longest.is_full:  # there is nothing left to lose
            return math.inf, math.inf

        hours = round((longest.ends_at - now) / HOUR)
        ends = [window.ends_at for window in windows.values()]
        return hours, min(ends)

    def note(
        self,
        reports: Sequence[Window],
        now: float,
        unix_now: float,
    ) -> float | None:
        """Take what an upstream reports; when the plan has just been used up: until when.

        A window is used up once: an account that serves all the same does so on credits.
        """
        full_before = self._full_of_plan(now)
        # A limit is reported whole: what is missing of it does not exist any more.
        families = {report.family for report in reports}
        windows = {key: window for key, window in self.windows.items() if key[0] not in families}

        # The fullest last: of two with the same length it counts.
        for report in sorted(reports, key=lambda report: report.used_percent):
            window = _window_of(report, now, unix_now)
            windows[report.family, report.length_seconds] = window
            if report.name and report.family != PLAN_FAMILY:
                self.note_family(report.name, report.family)
        latest = [*windows.items()][-QUOTA_WINDOWS_MAX:]
        self.windows = dict(latest)

        ends = [
            window.ends_at
            for length, window in self._full_of_plan(now).items()
            if window.is_reset_known and length not in full_before
        ]
        return max(ends, default=None)

    def _full_of_plan(self, now: float) -> dict[int, QuotaWindow]:
        """The plan's windows that are used up, by their length in seconds."""
        windows = self.running(PLAN_FAMILY, now)
        return {length: window for length, window in windows.items() if window.is_full}

    def note_family(self, model: str, family: str) -> None:
        """Remember the limit that is a model's own."""
        _remember(self.families, model_of_limit(model), family, QUOTA_WINDOWS_MAX)

    def bring_forward(self, seconds: float) -> None:
        """Move the end of every window closer by this many seconds."""
        for key, window in self.windows.items():
            ends_at, seen_at = window.ends_at - seconds, window.seen_at - seconds
            self.windows[key] = window._replace(ends_at=ends_at, seen_at=seen_at)


# Health.


@dataclass(eq=False, slots=True)
class Cooldown:
    """A limit that was reached, or a refusal.

    Limits are reset early, and refusals end, so the account may be asked again before the announced
    end: from `retry_at` on.  If it fails then, the next wait begins.  All times are monotonic.
    """

    until: float = 0.0  # as announced; infinite: refused
    retry_at: float = 0.0  # never later than `until`
    noted_at: float = -math.inf  # when there was evidence for it last
    reason: str = ""
    limit: tuple[float, str] = (0.0, "")  # the last one to end, and why: it may outlast a refusal

    def extend(
        self,
        until: float,
        now: float,
        reason: str,
    ) -> None:
        """Cool down until then.  The latest evidence wins, but never shortens a cooldown.

        Requests that ran at the same time fail one after the other, each with its own reset.
        """
        if until < math.inf:
            self.limit = max(self.limit, (until, reason))
        self.until = until if self.until == math.inf else max(self.until, until)
        self.retry_at = min(self.until, now + UNTRIED_SECONDS_MAX)
        self.noted_at, self.reason = now, reason

    def end(self) -> None:
        """Let the account be asked again at once; the reason stays for operators."""
        self.until = self.retry_at = 0.0
        self.limit = (0.0, "")

    def end_refusal(self) -> None:
        """Let only a limit hold, if there is one: a new login does not lift it."""
        self.until, self.reason = self.limit
        self.retry_at = min(self.until, self.retry_at)

    def bring_forward(self, seconds: float) -> None:
        """Move all ends closer by this many seconds."""
        self.until -= seconds  # infinite stays infinite
        self.retry_at -= seconds
        self.limit = (self.limit[0] - seconds, self.limit[1])


class Block(NamedTuple):
    """What an account lacks, or why it comes last: until when, and the evidence."""

    until: float  # monotonic
    reason: str  # of a `Fault`: what the log says, too
    # The only key whose requests have met it: what they hold may have caused it, so it does not
    # count for others.  None: it counts for all.
    key: KeyNames | None = None


class Failure(NamedTuple):
    """The latest attempt at an account that failed, and not because of the request."""

    at: float  # monotonic
    reason: str  # of a `Fault`: what the log says, too
    cause: Cause | None  # if no connection was established


# How long an account is not asked for what it lacks.
_BLOCK_SECONDS: Final = {
    Effect.LACKS_MODEL: MODEL_BLOCK_SECONDS,
    Effect.LACKS_ROUTE: ROUTE_BLOCK_SECONDS,
    Effect.LACKS_WEBSOCKET: NO_WEBSOCKET_SECONDS,
}


@dataclass(eq=False, slots=True)
class Health:
    """What is known of one account."""

    account: Account
    whole: Cooldown = field(default_factory=Cooldown)  # after a throttle or a refusal
    # The plan is used up, which bars all models but those with a limit of their own.
    plan: Cooldown = field(default_factory=Cooldown)
    by_model: OrderedDict[str, Cooldown] = field(default_factory=OrderedDict)
    # By the model or path that it lacks, or under "".  Clients choose the names of models, so the
    # blocks of one effect are bounded apart from those of another.
    blocks: dict[Effect, OrderedDict[str, Block]] = field(
        default_factory=lambda: {effect: OrderedDict() for effect in Effect}
    )
    quota: Quota = field(default_factory=Quota)
    served_at: float = -math.inf  # when it was chosen last
    # Refusals without a known reason, without a success in between: their number by key.
    forbidden: Counter[KeyNames | None] = field(default_factory=Counter)
    failure_count: int = 0  # attempts in a row that failed, for whatever cause
    trouble_count: int = 0  # of them the latest ones that were its upstream's trouble: no limits
    failure: Failure | None = None  # the latest one; it stays after a success
    success_at: float = -math.inf  # when a request succeeded last
    status: Status | None = None  # as an `AccountWatch` has seen it last
    since: float = -math.inf  # when that began
    catalogue: Mapping[str, Model] | None = None  # its /models
    catalogue_at: float = -math.inf  # when that was asked for
    catalogue_status: int = 0  # of the response to that; 0: there was none
    catalogue_until: float = -math.inf  # when it must be asked for again
    catalogue_problem: str = ""  # the last one, which has been logged
    usage_at: float = -math.inf  # when its quota may be asked for again
    usage_problem: str = ""  # the last one, which has been logged
    has_login: bool = True  # False: its auth_file cannot serve
    login: bytes = b""  # digest of its auth_file

    @property
    def cooldowns(self) -> list[Cooldown]:
        """All of the account's, whatever they bar."""
        return [self.whole, self.plan, *self.by_model.values()]

    @property
    def models(self) -> Mapping[str, object] | None:
        """The models that it offers by pools.json, else by its catalogue; None if unknown."""
        return self.catalogue if self.account.models is None else self.account.models

    @property
    def has_doubtful_key(self) -> bool:
        """Whether the API key was refused for the list of models, and has served nothing since.

        That bars no request: a key may be for other routes only.  The operator of a pool which
        nobody has used yet learns of it all the same.
        """
        is_refused = self.catalogue_status == 401 and not self.account.is_codex
        return is_refused and self.success_at < self.catalogue_at

    def forget(self) -> None:
        """End all cooldowns and blocks, as an operator asks by a reload.

        The operator may have just bought credits.  Quota windows stay: they are measurements.
        """
        self.forbidden.clear()
        self.failure_count = self.trouble_count = 0
        self.catalogue_until = -math.inf
        for cooldown in self.cooldowns:
            cooldown.end()
        for blocks in self.blocks.values():
            blocks.clear()

    def bring_forward(self, seconds: float) -> None:
        """Move everything that has a time closer by this many seconds: see `Roster.note_time`."""
        self.catalogue_at -= seconds
        self.catalogue_until -= seconds
        self.usage_at -= seconds

        self.success_at -= seconds
        self.since -= seconds
        if self.failure is not None:
            self.failure = self.failure._replace(at=self.failure.at - seconds)
        self.quota.bring_forward(seconds)
        for cooldown in self.cooldowns:
            cooldown.bring_forward(seconds)
        for blocks in self.blocks.values():
            for name, block in blocks.items():
                blocks[name] = block._replace(until=block.until - seconds)

    def note_login(self, digest: bytes, is_usable: bool) -> None:
        """Take the state of the auth_file; a new login may be what a refused account needed."""
        is_first = self.has_login and not self.login
        self.has_login = is_usable
        if digest == self.login:
            return

        # What failed with the last login, or for lack of one, says nothing about this one; what a
        # process has restored from before its start still does.
        if not is_first:
            self.trouble_count = self.failure_count = 0
        self.login = digest
        self.catalogue_until = self.usage_at = -math.inf
        self.forbidden.clear()
        self.end_refusal()

    def end_refusal(self) -> None:
        """End the cooldown of the whole account if it is a refusal; a limit stays."""
        if self.whole.until == math.inf:
            self.whole.end_refusal()

    def cooldowns_of(self, model: str, now: float) -> list[Cooldown]:
        """All that may bar a model, by its name in the pool; some of them may be over."""
        cooldowns = [self.whole]
        if not self.quota.has_own_room(self.account.name_of(model), now):
            cooldowns.append(self.plan)
        if model in self.by_model:
            cooldowns.append(self.by_model[model])
        return cooldowns

    def cooldown_of_model(self, model: str) -> Cooldown:
        """The cooldown of a single model, begun if there is none yet."""
        cooldown = self.by_model.get(model) or Cooldown()
        _remember(self.by_model, model, cooldown, MODEL_BLOCKS_MAX)
        return cooldown

    def block(
        self,
        effect: Effect,
        name: str,
        until: float,
        reason: str,
        key: KeyNames | None = None,
    ) -> None:
        """Remember what the account lacks, under the name of a model or a path."""
        _remember(self.blocks[effect], name, Block(until, reason, key), MODEL_BLOCKS_MAX)

    def block_of(
        self, effect: Effect, now: float, name: str = "", key: KeyNames | None = None
    ) -> Block | None:
        """The block that holds now, for a key; without one, any that holds for some."""
        block = self.blocks[effect].get(name)
        if block is None or block.until <= now or (key and block.key not in {None, key}):
            return None
        return block

    def block_with(
        self,
        effect: Effect,
        name: str,
        seconds: float,
        reason: str,
        now: float,
        *,
        key: KeyNames | None,
    ) -> None:
        """Begin a block that a key has met; once another key meets it, too, it counts for all."""
        before = self.block_of(effect, now, name)
        if before is not None and before.key != key:
            key = None
        self.block(effect, name, now + seconds, reason, key)

    def note_fault(
        self,
        fault: Fault,
        model: str,
        now: float,
        throttle_seconds: float,
        key: KeyNames | None = None,
    ) -> None:
        """Record what a failed attempt means for the account.

        `throttle_seconds`: how long a limit of pace lasts if the upstream does not say.
        `key`: the one whose request it was; None, if the account has no other.
        """
        effect = fault.effect
        if effect in _BLOCK_SECONDS:
            name = model if effect is Effect.LACKS_MODEL else fault.about
            seconds = _BLOCK_SECONDS[effect]
            self.block_with(effect, name, seconds, fault.reason, now, key=key)
        elif effect in LIMIT_EFFECTS:
            self.note_limit(fault, model, now, throttle_seconds, key)
        elif effect in {Effect.DEMOTED, Effect.FORBIDDEN}:
            self.block(Effect.DEMOTED, "", now + DEMOTION_SECONDS, fault.reason)

        self.count_failure(fault, now)
        if effect is Effect.REFUSED:
            self.whole.extend(math.inf, now, fault.reason)
        elif effect is Effect.FORBIDDEN:
            self.note_forbidden(fault, now, key)

    def note_forbidden(self, fault: Fault, now: float, key: KeyNames | None) -> None:
        """Count a refusal without a known reason.

        One may be about a request.  Several in a row are about the account, or if they are all of
        one key of several, perhaps about what that key's client sends.
        """
        self.forbidden[key] += 1
        if self.forbidden.total() < FORBIDDEN_MAX:
            return
        if key is None or len(self.forbidden) > 1:
            self.whole.extend(math.inf, now, fault.reason)
        else:
            self.block(Effect.FORBIDDEN, "", now + UNTRIED_SECONDS_MAX, fault.reason, key)

    def count_failure(self, fault: Fault, now: float) -> None:
        """Count a failed attempt for operators, unless the request was to blame for it.

        A broken proxy demotes nobody, and yet nothing is served.  A bot protection blocks the
        pooler's own address, which says nothing about an account.
        """
        is_limit = fault.effect in LIMIT_EFFECTS or fault.effect is Effect.REFUSED
        is_demoted = fault.effect in {Effect.DEMOTED, Effect.FORBIDDEN}
        is_blocked = fault.error.code == "upstream_blocked"
        is_upstreams = fault.effect is Effect.NONE and fault.error.status >= 500 and not is_blocked
        if is_limit:
            self.trouble_count = 0
        elif is_demoted or is_upstreams or fault.cause is not None:
            self.trouble_count += 1
        else:
            return

        self.failure_count += 1
        self.failure = Failure(now, fault.reason, fault.cause)

    def next_end(self, now: float) -> float:
        """When the next thing that holds against the account ends; infinite if none does."""
        ends = [cooldown.until for cooldown in self.cooldowns]
        ends += [block.until for blocks in self.blocks.values() for block in blocks.values()]
        if self.failure is not None:
            ends.append(self.failure.at + DEMOTION_SECONDS)
        return min((end for end in ends if end > now), default=math.inf)

    def trouble(self, now: float) -> Failure | None:
        """What keeps the account's requests from succeeding, if none has since.

        A single failure counts for a minute, as its demotion does; several count until a success.
        """
        failure = self.failure
        if failure is None or not self.trouble_count:
            return None
        is_recent = now < failure.at + DEMOTION_SECONDS
        return failure if is_recent or self.trouble_count >= FAILING_COUNT_MIN else None

    def note_limit(
        self,
        fault: Fault,
        model: str,
        now: float,
        throttle_seconds: float,
        key: KeyNames | None = None,
    ) -> None:
        """Begin the cooldown of a limit: until its reset, or as long as is usual.

        One that only a text tells is no more than the key's.
        """
        if fault.is_hearsay and key is not None:
            seconds = min(fault.cooldown_seconds or throttle_seconds, UNTRIED_SECONDS_MAX)
            self.block_with(Effect.FORBIDDEN, "", seconds, fault.reason, now, key=key)
            return

        usual: float | None = throttle_seconds
        if not fault.is_throttle:
            usual = self.quota.reset_seconds(fault.about or PLAN_FAMILY, now)
        seconds = fault.cooldown_seconds or usual or UNTRIED_SECONDS_MAX

        for cooldown in self.limited_by(fault, model, now):
            cooldown.extend(now + seconds, now, fault.reason)

    def limited_by(
        self,
        fault: Fault,
        model: str,
        now: float,
    ) -> Sequence[Cooldown]:
        """The cooldowns that a limit begins: of the model, of everything, or of the plan."""
        quota, upstream_model = self.quota, self.account.name_of(model)
        if fault.effect is Effect.MODEL_LIMITED:
            if fault.about and fault.about not in quota.families.values():
                quota.note_family(upstream_model, fault.about)
            return [self.cooldown_of_model(model)]
        if fault.is_throttle:
            return [self.whole]

        # The upstream counted the request against a plan, so it accepts the account again.
        self.end_refusal()
        if quota.has_own_room(upstream_model, now):
            # The plan's cooldown does not bar this model, and yet it was refused.
            return [self.plan, self.cooldown_of_model(model)]
        return [self.plan]

    def is_demoted(self, now: float) -> bool:
        """Whether the account is used only after the others."""
        return self.block_of(Effect.DEMOTED, now) is not None

    def takes_websocket(self, now: float) -> bool:
        """Whether a WebSocket to the account may be tried."""
        return self.account.websocket and self.block_of(Effect.LACKS_WEBSOCKET, now) is None

    def efforts_of(self, model: str) -> tuple[str, ...]:
        """The reasoning levels of a model, by its upstream's name; () if unknown."""
        return (self.catalogue or {}).get(model, Model()).efforts


# How an account stands.
#
# A new status needs: a member below, at its place in the order; its words in STATUS_TEXT; the
# condition under which `standing_for` or `condition_of` returns it; if an operator can do something
# about it, a sentence in `advice_for`; its place in _BY_SEVERITY; and in mcp_server.py its words in
# STATUS_WORDS, and, if it is a condition of an account, a place in that file's list of states.


class Status(enum.StrEnum):
    """Whether an account can serve, or else the first cause that holds, in this order.

    What no wait can change comes first.  The values are an interface: operators' pages, metrics and
    MCP tools show them.
    """

    PAUSED = "paused"
    CANNOT_HONOUR = "cannot_honour"
    NOT_CHATGPT = "not_chatgpt"
    NO_WEBSOCKET = "no_websocket"
    NOT_CREATOR = "not_creator"
    LACKS_MODEL = "lacks_model"
    LACKS_ROUTE = "lacks_route"
    NOT_OFFERED = "not_offered"
    NOT_LISTED = "not_listed"
    NO_LOGIN = "login_needed"
    REFUSED = "refused"
    COOLING_DOWN = "cooling_down"
    AT_LIMIT = "at_limit"
    MODEL_LIMITED = "model_limited"
    # Of a `Condition` only: such an account may be asked.
    UNREACHABLE = "unreachable"
    FAILING = "failing"
    READY = "ready"


STATUS_TEXT: Final[Mapping[Status, str]] = {
    **{status: status.replace("_", " ") for status in Status},
    Status.CANNOT_HONOUR: "cannot honour a field of the request",
    Status.NOT_CHATGPT: "only ChatGPT accounts have this route",
    Status.NO_WEBSOCKET: "takes no WebSocket",
    Status.NOT_CREATOR: "does not know the earlier response",
    Status.LACKS_MODEL: "cannot use the model",
    Status.LACKS_ROUTE: "its upstream has no such route",
    Status.NOT_OFFERED: "does not offer the model",
    Status.NOT_LISTED: "its catalogue does not list the model",
    Status.AT_LIMIT: "at its limit",
    Status.MODEL_LIMITED: "limited for this model",
}
# These have an end that is known, so a client can be told when to come back.
LIMITED: Final = frozenset({Status.COOLING_DOWN, Status.AT_LIMIT, Status.MODEL_LIMITED})
# These pass only if somebody logs in, pays, or puts another key in.
NEEDS_OPERATOR: Final = frozenset({Status.NO_LOGIN, Status.REFUSED})
# It has what the request needs, though perhaps not now.
_ABLE: Final = frozenset({*NEEDS_OPERATOR, *LIMITED, Status.READY})


class Standing(NamedTuple):
    """Whether an account can serve; if not, why, and until when."""

    status: Status
    reason: str = ""  # the evidence, for operators
    until: float = math.inf  # as announced
    retry_at: float = math.inf  # when it may be asked again all the same

    @property
    def is_able(self) -> bool:
        """Whether the account could serve the call at another time."""
        return self.status in _ABLE

    @property
    def reason_for_log(self) -> str:
        """Why an account was passed over: `at_limit: 429 usage_limit_reached`."""
        return f"{self.status}: {self.reason}" if self.reason else self.status.value

    def text(self, now: float) -> str:
        """The standing for operators, in words."""
        words = STATUS_TEXT[self.status]
        if self.status in LIMITED:
            words += f" for {duration_text(self.until - now)} more"
        return f"{words}: {self.reason}" if self.reason else words


def standing_of(health: Health, now: float) -> Standing:
    """How an account stands, whatever is asked of it: what the pages of operators show.

    A cooldown of a single model is not in it, as the account serves all others.
    """
    if health.account.paused:
        return Standing(Status.PAUSED)
    cooldowns = [health.whole, health.plan]
    return _standing_in_time(health, cooldowns, now)


def standing_for(
    health: Health,
    call: Call,
    creator: bytes | None,
    now: float,
) -> Standing:
    """How an account stands for a request; `creator`: see `Sessions.creator_of`."""
    lack = _lack_of(health, call, creator, now) or _lack_of_model(health, call, now)
    return lack or _standing_for_model(health, call, now)


def _lack_of(
    health: Health,
    call: Call,
    creator: bytes | None,
    now: float,
) -> Standing | None:
    """Why an account cannot serve such a request, whatever its model; None if it can."""
    account = health.account
    if account.paused:
        return Standing(Status.PAUSED)
    if account.is_codex and call.obstacle is not None:
        return Standing(Status.CANNOT_HONOUR, call.obstacle.param or "")
    if call.is_codex_only and not account.is_codex:
        return Standing(Status.NOT_CHATGPT)
    if call.is_socket and not health.takes_websocket(now):
        return Standing(Status.NO_WEBSOCKET)

    return None if _is_creator(account, creator) else Standing(Status.NOT_CREATOR)


def _is_creator(account: Account, creator: bytes | None) -> bool:
    """Whether an account can have the stored response that a request continues.

    Only the account that created it has it: others would respond "not found".  What a codex
    account created is known on its WebSocket, and nowhere else (F23).
    """
    if creator == UNKEPT:
        return account.is_codex
    return creator is None or creator == account.identity


def _lack_of_model(
    health: Health,
    call: Call,
    now: float,
) -> Standing | None:
    """Why an account cannot serve this model or route; None if it can.

    What its upstream has said of them counts for more than a list.
    """
    key = call.key_name if call.key.name else None  # an operator's explanation is of no key
    if block := health.block_of(Effect.LACKS_MODEL, now, call.model, key):
        return Standing(Status.LACKS_MODEL, block.reason, block.until, block.until)
    if block := health.block_of(Effect.LACKS_ROUTE, now, call.path, key):
        return Standing(Status.LACKS_ROUTE, call.path, block.until, block.until)

    models = health.models
    if models is None or call.model in models or call.is_unlisted:
        return None
    if health.account.models is not None:
        return Standing(Status.NOT_OFFERED)
    return Standing(Status.NOT_LISTED)


def _standing_for_model(
    health: Health,
    call: Call,
    now: float,
) -> Standing:
    """How an account that lacks nothing stands for a model."""
    cooldowns = health.cooldowns_of(call.model, now)
    standing = _standing_in_time(health, cooldowns, now)
    block = health.block_of(Effect.FORBIDDEN, now, key=call.key_name)
    if block is not None and standing.status is Status.READY:
        return Standing(Status.COOLING_DOWN, block.reason, block.until, block.until)

    # If the model's own cooldown is the longest, an operator reads that only this model is limited.
    own = health.by_model.get(call.model)
    if own is not None and standing.until == own.until < math.inf:
        return standing._replace(status=Status.MODEL_LIMITED)
    return standing


def _standing_in_time(
    health: Health,
    cooldowns: Iterable[Cooldown],
    now: float,
) -> Standing:
    """How an account stands that may be barred by some cooldowns, or by its login."""
    if not health.has_login:
        return Standing(Status.NO_LOGIN)

    holding = [cooldown for cooldown in cooldowns if cooldown.until > now]
    if not holding:
        return Standing(Status.READY, until=-math.inf, retry_at=-math.inf)

    longest = max(holding, key=lambda cooldown: cooldown.until)
    status = Status.AT_LIMIT if longest is health.plan else Status.COOLING_DOWN
    if longest.until == math.inf:
        status = Status.REFUSED
    # Each of them bars the account, so it may be asked again when the last one allows it.
    retry_at = max(cooldown.retry_at for cooldown in holding)
    return Standing(status, longest.reason, longest.until, retry_at)


# How an account is, for its operator.


class LoginState(NamedTuple):
    """What an operator may know of a login; all None for an account that has an API key."""

    login: str | None = None  # ok, renewal_due, needed
    plan: str | None = None  # as ChatGPT names it: plus, team ...
    token_ends_at: float | None = None  # Unix time of the access token's end
    unreached: Cause | None = None  # why the token endpoint was not reached
    problem: str = ""  # why it cannot serve, in the words of the log and without its path
    advice: str = ""  # what to do about that
    retry_at: float = math.inf  # monotonic: when a refresh is tried again
    is_stuck: bool = False  # its token is not valid, and could not be refreshed the last time
    command: str = ""  # the one that logs in


class Condition(NamedTuple):
    """How an account is, whatever is asked of it: what an operator reads.

    More than a `Standing`, as an account that may be asked can still fail every time.
    """

    status: Status
    reason: str = ""
    until: float = math.inf  # monotonic: the announced end of a limit or a cooldown
    retry_at: float = math.inf  # monotonic: when it may be asked again

    @property
    def text(self) -> str:
        """The status in words, and its reason: `login needed: this login has been revoked`."""
        words = STATUS_TEXT[self.status]
        return f"{words}: {self.reason}" if self.reason else words

    @property
    def needs_operator(self) -> bool:
        """Whether it stays so until somebody logs in, pays, or puts another key in."""
        return self.status in NEEDS_OPERATOR


def condition_of(
    health: Health,
    login: LoginState,
    now: float,
) -> Condition:
    """How an account is at a moment; `login`: an empty one if it has an API key."""
    standing = standing_of(health, now)
    # One that could not be refreshed may be tried again in a moment, and is not ready for that.
    is_stuck = login.is_stuck and standing.status is Status.READY
    if is_stuck or standing.status is Status.NO_LOGIN:
        return _condition_of_login(login)
    if standing.status is not Status.READY:
        return Condition(standing.status, standing.reason, standing.until, standing.retry_at)

    failure = health.trouble(now)
    if failure is None:
        return Condition(Status.READY)
    if failure.cause is None:
        return Condition(Status.FAILING, failure.reason, retry_at=now)
    reason = connect_text(failure.cause, health.account.base_url)
    return Condition(Status.UNREACHABLE, reason, retry_at=now)


def _condition_of_login(login: LoginState) -> Condition:
    """The condition of an account whose login cannot serve.

    One that is there, and only cannot be refreshed for now, needs nobody: that is tried again.
    """
    if login.login == "needed":
        return Condition(Status.NO_LOGIN, login.problem)
    status = Status.FAILING if login.unreached is None else Status.UNREACHABLE
    return Condition(status, login.problem, retry_at=login.retry_at)


# These say what an address did; the others speak for themselves.
_OF_ADDRESS: Final = frozenset({Cause.REFUSED, Cause.TIMED_OUT, Cause.CLOSED})


def connect_text(cause: Cause, url: BaseUrl) -> str:
    """Why no connection was established, and to where: `connection refused at 127.0.0.1:8080`."""
    if cause in _OF_EVERYBODY:
        return cause.value
    words = f"connection {cause}" if cause in _OF_ADDRESS else cause.value
    return f"{words} at {url.authority}"


_CHECK_PROXY: Final = "Check the proxy that pools.json names."
_CONNECT_ADVICE: Final[Mapping[Cause, str]] = {
    Cause.NAME: "Check the host name in base_url, and this machine's DNS.",
    Cause.NOT_TRUSTED: "Name the authority of its certificate in ca_file.",
    Cause.OTHER_NAME: "Use the host name of its certificate in base_url.",
    Cause.OUT_OF_DATE: "Renew its certificate; check this machine's clock.",
    Cause.NO_DESCRIPTOR: "Raise this process's limit of open files (ulimit -n).",
    **{cause: _CHECK_PROXY for cause in Cause if cause.name.startswith("PROXY")},
}


def advice_for(
    account: Account,
    condition: Condition,
    login: LoginState,
    cause: Cause | None,
) -> str:
    """What an operator can do about an account's condition; "" if there is nothing.

    `cause`: why no connection was established the last time.
    """
    if condition.status is Status.REFUSED:
        return login.advice or _advice_on_key(account, condition.reason, login.command)
    if condition.status is Status.AT_LIMIT:
        return "Nothing: it comes back by itself. After buying credits, reload (SIGHUP)."
    if condition.status is Status.UNREACHABLE and login.login in {None, "ok"} and cause is not None:
        usual = f"Start the server at {account.base_url.authority}, or check base_url."
        return _CONNECT_ADVICE.get(cause, usual)
    return login.advice if condition.status in {Status.NO_LOGIN, Status.FAILING} else ""


def key_doubt(health: Health, condition: Condition) -> tuple[str, str]:
    """Why the key of an account that seems ready may not be valid, and what to do; else "", ""."""
    if condition.status is not Status.READY or not health.has_doubtful_key:
        return "", ""
    reason = f"{health.catalogue_status} for its list of models"
    return reason, _advice_on_key(health.account, reason, "")


def _advice_on_key(account: Account, reason: str, login_again: str) -> str:
    """What to do about an account whose upstream refuses it; `login_again` is a command."""
    status, _, _ = reason.partition(" ")
    if status == "402":
        return "Check the account's plan and billing with its provider, then reload (SIGHUP)."
    if account.is_codex:
        return f"Check the account's plan with its provider, or log in again: {login_again}"
    if account.source == "env":
        return f"Put a valid key into {account.reference} and restart."
    if account.source == "file":
        return f"Put a valid key into {account.reference}, then reload (SIGHUP)."
    return f"Put a valid key into accounts.{account.name}.api_key, then reload (SIGHUP)."


# Sessions.

UNKEPT: Final = b""  # instead of a creator: a codex account created the response, and keeps none


class Pin(NamedTuple):
    """Where a session stays: its prompt is in that account's cache (F15)."""

    account: str  # by name
    base_url: BaseUrl  # a reload may give the name to another upstream
    is_mixed: bool  # its history may hold reasoning of several upstreams (F10)
    used_at: float  # monotonic

    def is_foreign_to(self, account: Account) -> bool:
        """Whether the history may hold reasoning that `account` cannot read."""
        # Accounts at one upstream can mostly read each other's (F10).
        return self.is_mixed or self.base_url != account.base_url


class Sessions:
    """Which account a session, a stored response or a turn's state belongs to.

    All of it is kept by digest, as clients choose these names and may put anything into them.
    """

    def __init__(self) -> None:
        self.pins = Memory[Pin]()  # by key and session
        # By key, and the digest of what was created: an account's identity, or UNKEPT.
        self.creators = Memory[bytes]()

    def pin_of(self, call: Call, now: float) -> Pin | None:
        """Where the session of a request stays; None if it has none, or was idle too long."""
        pin = self.pins.get(call.key_name, call.session)
        if pin is None or now - pin.used_at > PIN_IDLE_SECONDS_MAX:
            return None
        return pin

    def pin(
        self,
        call: Call,
        account: Account,
        is_mixed: bool,
        now: float,
    ) -> None:
        """Keep a session on an account; its web searches stay there, too."""
        pin = Pin(account.name, account.base_url, is_mixed, now)
        for session in filter(None, (call.session, call.search_session)):
            self.pins.set(call.key_name, session, pin, PINS_MAX)

    def has_foreign_reasoning(self, call: Call, account: Account, now: float) -> bool:
        """Whether the session's history may hold reasoning that `account` cannot read."""
        pin = self.pin_of(call, now)
        return pin is not None and pin.is_foreign_to(account)

    def note_creator(
        self,
        account: Account,
        call: Call,
        what: str,
        value: Json,
    ) -> None:
        """Remember who created a response (`what`: "response") or a turn's state (F22).

        `value` is its id, as an upstream's event has it; without one there is nothing to remember.
        """
        if not isinstance(value, str):
            return

        is_kept = what != "response" or not account.is_codex
        creator = account.identity if is_kept else UNKEPT
        digest = digest_parts(*call.key_name, what, value)
        self.creators.set(call.key_name, digest, creator, RESPONSE_PINS_MAX)

    def is_creator(
        self,
        account: Account,
        call: Call,
        what: str,
        value: str,
    ) -> bool:
        """Whether the account is known to have created a response or a turn's state."""
        digest = digest_parts(*call.key_name, what, value)
        return self.creators.get(call.key_name, digest) == account.identity

    def creator_of(self, call: Call) -> bytes | None:
        """The creator of the response that a request continues, or UNKEPT; None if unknown."""
        return self.creators.get(call.key_name, call.response)


# Leases.


class Lease(NamedTuple):
    """One request's place at an account."""

    account: Account
    health: Health  # what a success changes, even if a reload replaces the account meanwhile
    cooldowns: Sequence[Cooldown]  # that its success ends
    began_at: float  # monotonic
    key: KeyNames  # for whom: pool and name


def uncount(counts: Counter[K], name: K) -> None:
    """Count one less; a name without any is forgotten, as reloads can bring new ones forever."""
    left = counts.pop(name) - 1
    assert left >= 0
    if left:
        counts[name] = left


class Leases:
    """How many requests are in flight, by account and by key."""

    def __init__(self) -> None:
        self.in_flight: Counter[str] = Counter()  # by account
        self.of_key: Counter[KeyNames] = Counter()  # by pool and name of the key
        self.of_key_at: Counter[tuple[str, KeyNames]] = Counter()  # by account and key
        self.key_counts: Counter[str] = Counter()  # the keys that may use an account

    def reload(self, config: Config) -> None:
        """Count the keys that may use each account; requests in flight stay counted."""
        self.key_counts.clear()
        for pool in config.pools.values():
            key_count = sum(not key.paused for key in pool.keys)
            for account in pool.accounts:
                self.key_counts[account.name] += key_count

    def has_room(self, account: Account, key: KeyNames) -> bool:
        """Whether a key may have one more request in flight there: the account is not at its cap.

        If several keys share an account, its last places are for those that have few: a client that
        sends as much as it can must not shut out the others.
        """
        kept = 0
        if self.key_counts[account.name] > 1:
            kept = account.concurrent // PLACES_KEPT_PART

        left = account.concurrent - self.in_flight[account.name]
        if left > kept:
            return True
        return left > 0 and self.of_key_at[account.name, key] < kept

    def take(self, account: str, key: KeyNames) -> None:
        """Count one more request in flight."""
        self.in_flight[account] += 1
        self.of_key[key] += 1
        self.of_key_at[account, key] += 1

    def give_back(self, account: str, key: KeyNames) -> None:
        """Count one request less."""
        uncount(self.in_flight, account)
        uncount(self.of_key, key)
        uncount(self.of_key_at, (account, key))


# Hosts.

Way = tuple[str, str | None]  # a host with its port; if it matters, what is trusted there


def _ways(account: Account) -> tuple[Way, Way]:
    """What it takes to reach an account's host: the network, and trust in its certificate.

    Accounts of one host may trust different authorities: that one of them rejects the certificate
    says nothing about the others.
    """
    address = account.base_url.address
    return (address, None), (address, f"ca_file {account.ca_file}")


class Hosts:
    """The hosts that could not be reached a moment ago, whichever account was asked.

    Without this memory a request would wait for the connection timer once for each account of a
    host that is down, before it comes to an account elsewhere.
    """

    def __init__(self) -> None:
        self.unreached: dict[Way, tuple[float, Cause]] = {}  # until when that counts, and why

    def note_unreached(self, account: Account, cause: Cause, now: float) -> None:
        """Remember for DEMOTION_SECONDS that no connection was established."""
        network, trust = _ways(account)
        way = trust if cause in _OF_TRUST else network
        self.unreached[way] = (now + DEMOTION_SECONDS, cause)

    def note_reached(self, account: Account) -> None:
        """Forget that no connection was established: now one has been."""
        for way in _ways(account):
            self.unreached.pop(way, None)

    def cause_for(self, account: Account, now: float) -> Cause | None:
        """Why the account's host could not be reached a moment ago; None if it could."""
        for way in _ways(account):
            until, cause = self.unreached.get(way, (now, None))
            if until > now:
                return cause
        return None


# What happens to accounts.


class Roster:
    """The accounts' state, and what happens to them.

    `Choice` reads it for one call.  The state of a single account is its `Health`.
    """

    def __init__(self, config: Config) -> None:
        self.unix_ahead = math.inf  # how far the wall clock is ahead of the monotonic one
        # The accounts to which something has happened that an `AccountWatch` has not seen yet.
        self.touched: set[str] = set()
        self.health: dict[str, Health] = {}  # by the account's name
        self.sessions = Sessions()
        self.leases = Leases()
        self.hosts = Hosts()
        self.reload(config)

    def reload(self, config: Config) -> None:
        """Take a new configuration: cooldowns and blocks are forgotten, pins and counts stay.

        Nothing is known any more of an account whose requests go elsewhere now, or as another:
        what its former upstream reported does not hold for the new one.
        """
        self.limits = config.limits
        self.pools = config.pools
        self.hosts = Hosts()

        healths = {}
        for name, account in config.accounts.items():
            health = healths[name] = self.health_of(account)
            health.account = account
            health.forget()
        self.health = healths
        self.leases.reload(config)

    def note_time(self, now: float, unix_now: float) -> None:
        """Bring every cooldown forward by the time that the machine has slept.

        Cooldowns are kept by the monotonic clock, which stands still while the machine sleeps; the
        wall clock does not.  If the wall clock was only set, accounts are tried early, which does
        no harm.
        """
        ahead = unix_now - now
        slept_seconds = ahead - self.unix_ahead
        self.unix_ahead = ahead
        if slept_seconds <= SLEEP_SECONDS_MIN:
            return

        self.hosts = Hosts()
        for health in self.health.values():
            health.bring_forward(slept_seconds)

    def health_of(self, account: Account) -> Health:
        """What is known of an account; nothing if a reload has removed it or pointed it elsewhere.

        Then what comes of requests that are still in progress is recorded in a `Health` that nobody
        reads.
        """
        return self.health[account.name] if self.is_current(account) else Health(account)

    def is_current(self, account: Account) -> bool:
        """Whether no reload has removed the account or pointed it elsewhere."""
        health = self.health.get(account.name)
        return health is not None and health.account.identity == account.identity

    def current(self, call: Call) -> Call:
        """The call with its pool as it is now: a choice is made among accounts as they are."""
        # A reload may have dropped the pool: then the call has no account left.
        pool = self.pools.get(call.pool.name)
        if pool is call.pool:
            return call
        return call._replace(pool=pool or dataclasses.replace(call.pool, accounts=()))

    def standings(self, call: Call, now: float) -> list[tuple[Health, Standing]]:
        """How each account of the call's pool stands for it, in the pool's order.

        An account that a reload has removed is left out: its lease would have no endpoint.
        """
        creator = self.sessions.creator_of(call)
        standings = []
        is_any_able = False
        for account in call.pool.accounts:
            if not self.is_current(account):
                continue
            health = self.health[account.name]
            standing = standing_for(health, call, creator, now)
            is_any_able |= standing.is_able
            standings.append((health, standing))

        if is_any_able or call.pool.models is None:
            return standings

        # A catalogue may be incomplete, and pools.json allows the model: what the catalogues lack
        # decides only if some account does offer it.  Otherwise its accounts are asked after all.
        return [
            (health, _standing_for_model(health, call, now))
            if standing.status is Status.NOT_LISTED else (health, standing)
            for health, standing in standings
        ]  # fmt: skip

    def may_upgrade(
        self,
        pool: Pool,
        is_native: bool,
        now: float,
    ) -> bool:
        """Whether a WebSocket is of use: not if only accounts that take none can serve.

        Asked before there is a call: a client that is told so at its upgrade uses HTTP (F80),
        while one whose first turn fails would have to be told in the turn.
        """
        accounts = [account for account in pool.accounts if account.is_codex or not is_native]
        healths = [self.health_of(account) for account in accounts if not account.paused]
        ready = [health for health in healths if standing_of(health, now).status is Status.READY]
        return any(health.takes_websocket(now) for health in ready or healths)

    def begin(
        self,
        account: Account,
        call: Call,
        now: float,
    ) -> Lease:
        """Lease a place at an account; `end` gives it back, also after a reload.

        The lease keeps the cooldowns that may bar its model: only these does its success disprove.
        """
        health = self.health[account.name]
        health.served_at = now
        self.leases.take(account.name, call.key_name)
        cooldowns = health.cooldowns_of(call.model, now)
        return Lease(account, health, cooldowns, now, call.key_name)

    def end(self, lease: Lease) -> None:
        """Give back the place of a request that is over."""
        self.leases.give_back(lease.account.name, lease.key)

    def note_fault(
        self,
        account: Account,
        fault: Fault,
        model: str,
        now: float,
        key: KeyNames | None = None,
    ) -> None:
        """Record what a failed attempt means for its account, and for the account's host."""
        if self.leases.key_counts[account.name] <= 1:
            key = None
        usual = self.limits.cooldown_seconds
        self.health_of(account).note_fault(fault, model, now, usual, key)
        # What a client's own request has caused changes nothing.
        if fault.effect is not Effect.NONE or fault.error.status >= 500:
            self.touched.add(account.name)

        # What keeps the pooler from every host, as a broken proxy does, demotes no account.
        cause = fault.cause
        if cause is not None and fault.effect is Effect.DEMOTED and self.is_current(account):
            self.hosts.note_unreached(account, cause, now)

    def note_quota(
        self, account: Account, reports: Sequence[Window], now: float, unix_now: float
    ) -> None:
        """Record what a response reports of quota; a plan that is used up begins a cooldown.

        No report ends a cooldown: time does, and the success of a later request.
        """
        health = self.health_of(account)
        until = health.quota.note(reports, now, unix_now)
        if until is not None:
            # The response that began a limit says more than a report of it.
            plan = health.plan
            is_limited = now < plan.until < math.inf
            plan.extend(until, now, plan.reason if is_limited else "plan used up")
            self.touched.add(account.name)

    def note_success(self, lease: Lease, now: float) -> None:
        """Record a success, which ends a cooldown only if it began after the latest evidence.

        A stream may take an hour: that it ends well does not disprove a limit that another request
        met ten minutes ago.
        """
        health = lease.health
        if health.failure_count or any(cooldown.until for cooldown in lease.cooldowns):
            self.touched.add(lease.account.name)

        for cooldown in lease.cooldowns:
            if lease.began_at > cooldown.noted_at:
                cooldown.end()
        health.blocks[Effect.DEMOTED].clear()
        health.blocks[Effect.FORBIDDEN].clear()
        health.forbidden.clear()
        health.failure_count = health.trouble_count = 0
        health.success_at = now

    def note_served(
        self,
        call: Call,
        account: Account,
        now: float,
    ) -> None:
        """Pin the session to the account that serves it, unless its own will serve it again."""
        pin = self.sessions.pin_of(call, now)
        if pin is not None and pin.account != account.name and self.may_return(call, pin, now):
            return

        is_mixed = pin is not None and pin.is_foreign_to(account)
        self.sessions.pin(call, account, is_mixed, now)

    def may_return(
        self,
        call: Call,
        pin: Pin,
        now: float,
    ) -> bool:
        """Whether a session's own account is only busy, or has no login for now: the pin stays.

        Its prompt cache is worth returning to (F15).  An account that has reached a limit may be
        out for days, so the session moves for good.
        """
        health = self.health.get(pin.account)
        names = [account.name for account in call.pool.accounts]
        if health is None or pin.account not in names:
            return False

        status = standing_of(health, now).status
        return status in {Status.NO_LOGIN, Status.READY} and not health.is_demoted(now)


# Catalogues.


def catalogue_of(roster: Roster, pool: Pool) -> dict[str, Model]:
    """The models of a pool's accounts, by the name that the pool has for them.

    Paused accounts are left out, as nobody can use their models.
    """
    models: dict[str, Model] = {}
    for account in pool.accounts:
        if account.paused:
            continue
        health = roster.health_of(account)
        listed = health.catalogue or {}
        for name in health.models or ():
            model = listed.get(account.name_of(name), Model())
            known = models.get(name)
            models[name] = model if known in {None, model} else known.merged(model)
    return models


def models_of(
    roster: Roster,
    pool: Pool,
    key: Key,
) -> dict[str, int | None]:
    """The names that GET /v1/models shows to a key, with context lengths in tokens if known."""
    catalogue = catalogue_of(roster, pool)
    names = sorted(catalogue) if pool.models is None else pool.models

    lengths = {}
    for name in [*names, *pool.aliases]:
        if is_model_allowed(name, pool, key):
            model = catalogue.get(pool.meant_by(name).model, Model())
            lengths[name] = model.context_length
    return lengths


def codex_models_of(
    roster: Roster,
    pool: Pool,
    key: Key,
) -> list[bytes]:
    """The entries of Codex's catalogue that a key may use (F20), as JSON.

    Unchanged except for the name: Codex CLI reads more of an entry than the pooler knows.
    """
    return [
        model.entry if model.slug == name else model.entry_as(name)
        for name, model in catalogue_of(roster, pool).items()
        if model.entry and is_model_allowed(name, pool, key)
    ]


def is_model_known(roster: Roster, call: Call) -> bool:
    """Whether the model's name is an operator's or an upstream's, not just a client's.

    The log shows such a name (SECURITY.md, 7), so one of an upstream must not name an account.
    """
    name, pool = call.requested_model, call.pool
    of_accounts = [account.models for account in pool.accounts]
    configured = [pool.models, pool.aliases, *of_accounts]
    if any(name in names for names in configured if names is not None):
        return True

    if is_account_name(name):
        return False
    catalogues = [roster.health_of(account).catalogue for account in pool.accounts]
    return any(name in names for names in catalogues if names)


# The choice.


class Rank(NamedTuple):
    """What makes an account the better choice, the weightiest first; the smallest wins."""

    is_unreached: bool  # else each request would wait there first, and go elsewhere all the same
    is_elsewhere: bool  # not where the session is pinned
    priority: int
    # False for an idle account whose cooldown has lasted long enough: it comes first, as nobody
    # would notice otherwise that its limit has been reset early.
    needs_no_trial: bool
    is_demoted: bool
    quota: tuple[float, float]  # by the pool's routing
    digest: bytes  # of session and account: rendezvous hashing, so that replicas agree
    busy: int  # requests in flight
    served_at: float


class Choice:
    """One call at one moment: how the accounts of its pool stand, and what follows from that.

    `standings` alone says why an account can or cannot serve the call.  The choice, the wait, the
    refusal's text and the operators' explanation are read from it, so they cannot disagree.
    """

    def __init__(
        self,
        roster: Roster,
        call: Call,
        tried: Collection[str],
        now: float,
    ) -> None:
        self.roster = roster
        self.call = call
        self.tried = tried  # the names of accounts that have failed for this call
        self.now = now
        self.pin = roster.sessions.pin_of(call, now)
        self.standings = roster.standings(call, now)

    def ranked(self) -> list[Account]:
        """The accounts that may be asked now, the best first, whether or not they have room."""
        ranks: list[tuple[Rank, Account]] = []
        for health, standing in self.standings:
            account = health.account
            if standing.retry_at <= self.now and account.name not in self.tried:
                ranks.append((self.rank(health, standing), account))

        # By the rank alone: accounts of equal rank stay in the pool's order.
        ranks.sort(key=lambda ranked: ranked[0])
        return [account for _, account in ranks]

    def rank(self, health: Health, standing: Standing) -> Rank:
        """How good a choice an account is; the smallest rank is the best."""
        account, pin = health.account, self.pin
        busy = self.roster.leases.in_flight[account.name]
        digest = b""
        if self.call.session is not None:
            digest = hashlib.sha256(self.call.session + account.name.encode()).digest()

        return Rank(
            is_unreached=self.roster.hosts.cause_for(account, self.now) is not None,
            is_elsewhere=pin is None or pin.account != account.name,
            priority=account.priority,
            needs_no_trial=standing.status is Status.READY or busy > 0,
            is_demoted=health.is_demoted(self.now),
            quota=self.quota_rank(health, busy),
            digest=digest,
            busy=busy,
            served_at=health.served_at,
        )

    def quota_rank(self, health: Health, busy: int) -> tuple[float, float]:
        """What the pool's routing makes of an account's quota; the smallest is the best."""
        routing = self.call.pool.routing
        if routing is Routing.SOONEST_RESET:
            return health.quota.lapse(self.now, has_plan=health.account.is_codex)

        left_percent = health.quota.left_percent(self.now)
        if routing is Routing.QUOTA_FIRST:
            # Reports come with responses only: what is in flight has not been counted yet.
            return -left_percent, busy
        # New sessions avoid an account that is nearly used up: they would have to move soon.
        return left_percent <= 100 - NEARLY_USED_PERCENT, 0

    def next_change(self) -> float:
        """When an account that cannot serve now may be asked; infinite if none ever."""
        moments = [standing.retry_at for _, standing in self.standings]
        later = [moment for moment in moments if moment > self.now]
        return min(later, default=math.inf)

    def returns_at(self) -> float:
        """When a session's own account is back, if that is worth waiting for; else infinite.

        Any other account would have to read the whole history again, without a cache (F15).
        """
        pin = self.pin
        if pin is None or pin.account in self.tried:
            return math.inf

        for health, standing in self.standings:
            is_own = health.account.name == pin.account
            is_soon = standing.until <= self.now + SHORT_COOLDOWN_SECONDS_MAX
            if is_own and is_soon and standing.status in LIMITED:
                return standing.until
        return math.inf

    def refusal(self, unix_now: float) -> PoolerError:
        """Why nobody can serve: all limited, all broken, or nobody has the model or the route.

        If an account is left that the attempts did not reach, waiting for a reset would be wrong
        advice, and clients stop at that error (F77): the next request may well be served.
        """
        if self.ranked():
            public = "The accounts tried could not serve this. Retry in a moment."
            return PoolerError("pool_busy", public)

        able = [standing for _, standing in self.standings if standing.is_able]
        if self.is_history_missing(len(able)):
            return PoolerError("previous_response_not_found")
        if not able:
            return self.lack()

        ends = [standing.until for standing in able if standing.status in LIMITED]
        stuck_count = sum(standing.status in NEEDS_OPERATOR for standing in able)
        if not ends:
            return PoolerError("no_usable_account", refusal_text(0, stuck_count))
        seconds = max(1, math.ceil(min(ends) - self.now))
        error = usage_limit(seconds, unix_now, is_native=self.call.is_codex_only)
        error.public = refusal_text(len(ends), stuck_count, seconds)
        return error

    def passed_over(self) -> list[JsonDict]:
        """The accounts that were not asked, each with the reason; the first PASSED_OVER_MAX."""
        return [
            {"account": health.account.name, "reason": standing.reason_for_log}
            for health, standing in self.standings
            if health.account.name not in self.tried
        ][:PASSED_OVER_MAX]

    def is_history_missing(self, able_count: int) -> bool:
        """Whether more accounts than `able_count` could serve the call without its history.

        That is so if the response that it continues is kept nowhere: a client that is told
        "previous_response_not_found" sends the whole conversation again.
        """
        sessions = self.roster.sessions
        if sessions.creator_of(self.call) != UNKEPT:
            return False

        whole = self.call._replace(response=None)
        standings = self.roster.standings(whole, self.now)
        return sum(standing.is_able for _, standing in standings) > able_count

    def lack(self) -> PoolerError:
        """The error for what no account has; of several lacks, one that the client can mend."""
        call = self.call
        if obstacle := call.obstacle:
            return PoolerError("unsupported_parameter", obstacle.public, param=obstacle.param)

        # The first account of each status: reversed, as the last one set stays.
        by_status = {standing.status: standing for _, standing in reversed(self.standings)}
        if standing := by_status.get(Status.LACKS_MODEL):
            _, _, code = standing.reason.partition(" ")  # after the response's status
            return lacking_model(code)
        if Status.LACKS_ROUTE in by_status:
            return lacking_route(call.path)
        if Status.NOT_CREATOR in by_status or by_status.keys() <= {Status.PAUSED}:
            return PoolerError("no_usable_account")

        if is_model_known(self.roster, call):
            return lacking_model()

        # An upstream names its models as it likes: a fine-tuned one perhaps by its owner's id.
        catalogue = catalogue_of(self.roster, call.pool)
        offered = [name for name in catalogue if not is_account_name(name)]
        return unknown_model(call.pool, call.key, offered)


# What a pool can serve.

ANY_MODEL: Final = "any model"  # instead of a name, of a pool that knows none


class Serving(NamedTuple):
    """Whether a pool can serve a model now."""

    pool: str
    model: str
    status: str  # ready, limited or down
    accounts: Sequence[str]  # that can serve it now, by name, in the pool's order
    until: float  # monotonic: if nobody can, when the first limited account is back
    passed_over: Sequence[tuple[str, Condition]]  # the others, with what keeps them


class Outage(NamedTuple):
    """That nobody can serve a model of a pool."""

    since: float  # monotonic
    failed_count: int = 0  # requests for it that failed since then


def _call_for(pool: Pool, model: str, path: str = "/v1/responses") -> Call:
    """A call for a model, of a key without limits of its own.  Raises: PoolerError."""
    nobody = Key(pool=pool.name, name="", concurrent=1)
    return read_call(
        call_route(path),
        {"model": model},
        NO_FIELDS,
        pool,
        nobody,
    )


def serving_of(
    roster: Roster,
    pool: Pool,
    logins: Mapping[str, LoginState],
    now: float,
) -> list[Serving]:
    """Which of its models a pool can serve now: those of pools.json, else those of its accounts.

    Of a pool that knows no model there is one row, of ANY_MODEL.
    """
    conditions = {}
    for account in pool.accounts:
        login = logins.get(account.name, LoginState())
        conditions[account.name] = condition_of(roster.health_of(account), login, now)

    names: Sequence[str] = pool.models or ()
    if pool.models is None:
        # An upstream names its models as it likes, and these names are logged and sent to webhooks.
        offered = sorted(catalogue_of(roster, pool))
        names = [name for name in offered if not is_account_name(name)]
    count_max = SERVING_PAIRS_MAX // max(1, len(pool.accounts))
    names = names[: max(1, min(SERVING_MODELS_MAX, count_max))]
    if not names:
        return [_serving(pool, ANY_MODEL, list(conditions.items()))]

    rows = []
    for model in names:
        pairs = [
            (health.account.name, _condition_for(standing, conditions[health.account.name]))
            for health, standing in _standings_on_some_route(roster, pool, model, now)
        ]
        rows.append(_serving(pool, model, pairs))
    return rows


def _standings_on_some_route(
    roster: Roster, pool: Pool, model: str, now: float
) -> list[tuple[Health, Standing]]:
    """How each account stands for a model on the API on which it can do more.

    A client that has used an API that a local server lacks is told so; its operator has nothing to
    mend, as the model is served on the other API.
    """
    standings = roster.standings(_call_for(pool, model), now)
    if all(standing.status is not Status.LACKS_ROUTE for _, standing in standings):
        return standings

    on_chat = roster.standings(_call_for(pool, model, "/v1/chat/completions"), now)
    return [
        other if pair[1].status is Status.LACKS_ROUTE else pair
        for pair, other in zip(standings, on_chat, strict=True)
    ]


def _condition_for(standing: Standing, condition: Condition) -> Condition:
    """What keeps an account from serving a model.

    Its own condition counts only if it has the model: otherwise no limit's end would help.
    """
    if standing.is_able and condition.status is not Status.READY:
        return condition
    return Condition(standing.status, standing.reason, standing.until, standing.retry_at)


def _serving(
    pool: Pool,
    model: str,
    conditions: Sequence[tuple[str, Condition]],
) -> Serving:
    """Whether a pool can serve a model, by the conditions of its accounts for it."""
    ready, others = [], []
    for name, condition in conditions:
        if condition.status is Status.READY:
            ready.append(name)
        else:
            others.append((name, condition))

    ends = [condition.until for _, condition in others if condition.status in LIMITED]
    if ready:
        return Serving(pool.name, model, "ready", ready, math.inf, others)
    status = "limited" if ends else "down"
    return Serving(pool.name, model, status, ready, min(ends, default=math.inf), others)


# Reading catalogues.

# Where a response to /models may have its list, and a model in it its name: the likeliest first.
# llama.cpp has "models", too (F60), and they are not those of Codex's catalogue (F20).
_CATALOGUE_LISTS: Final = {True: ("models", "data"), False: ("data", "models")}  # by is_codex
_CATALOGUE_NAMES: Final = {True: ("slug", "id"), False: ("id", "name")}
# What OpenRouter, vLLM and other servers call the context length.
_LENGTH_NAMES: Final = (
    "context_length",
    "context_window",
    "max_model_len",
    "max_context_length",
)


def read_catalogue(body: bytes, *, is_codex: bool = False) -> Mapping[str, Model] | None:
    """The models in a response to /models, as Codex's backend or anybody else writes it.

    Of an entry is kept what is shown of it; entries past the bound are left out, and those that
    cannot be read.  None if nothing can be read: then it is not known what the account offers.
    """
    try:
        value = load_json(body, CATALOGUE_MEMBERS_MAX)
    except (ValueError, BadSyntax):
        return None

    members = object_of(value)
    candidates = [value, *map(members.get, _CATALOGUE_LISTS[is_codex])]
    lists = [candidate for candidate in candidates if isinstance(candidate, list)]
    for entries in lists:
        if models := _catalogue_of(entries[:CATALOGUE_MODELS_MAX], is_codex=is_codex):
            return models
    return {} if [] in lists else None


def _catalogue_of(entries: Sequence[Json], *, is_codex: bool) -> dict[str, Model]:
    """The models of a list, by name; an entry is an object, or the name alone."""
    models: dict[str, Model] = {}
    for entry in entries:
        names = [text_at(entry, member) for member in _CATALOGUE_NAMES[is_codex]]
        name = entry if isinstance(entry, str) else next(filter(None, names), "")
        if not is_model_name(name):
            continue

        if is_codex and text_at(entry, "slug"):
            models[name] = _codex_model(entry, name)
        else:
            lengths = [count_at(entry, member) for member in _LENGTH_NAMES]
            models[name] = Model(max(lengths) or None)
    return models


def _codex_model(entry: JsonObject, name: str) -> Model:
    """A model of Codex's catalogue: Codex itself uses only a percentage of its window (F21)."""
    window = count_at(entry, "context_window") or count_at(entry, "max_context_window")
    percent = count_at(entry, "effective_context_window_percent")
    if not 0 < percent <= 100:
        percent = EFFECTIVE_WINDOW_PERCENT

    levels = entry.get("supported_reasoning_levels")
    efforts = []
    if isinstance(levels, list):
        efforts = [text_at(level, "effort") for level in levels]
    # Each once, in the upstream's order, which is that of their strength (F13).
    supported = dict.fromkeys(effort for effort in efforts if effort in _EFFORTS)

    context_length = window * percent // 100 or None
    return Model(context_length, tuple(supported), dump_json(entry), name)


def duration_text(seconds: float) -> str:
    """A duration in at most two units, rounded up to a whole second: `1 h 29 min`, `30 s`.

    Days are at most 32, and the other units below 60, so no digits of it read like a status that
    OpenCode repeats (F68).
    """
    left = max(0, math.ceil(seconds))
    words = []
    for name, unit in (("d", 24 * 3600), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, unit)
        if count:
            words.append(f"{count} {name}")
    return " ".join(words[:2]) or "0 s"


# Numbers as clients read them: as digits they might read like a status to OpenCode (F68).
_NUMBER_WORDS: Final = (
    "none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
)  # fmt: skip


def _number_word(count: int) -> str:
    """A number in words; `many` above ten."""
    return _NUMBER_WORDS[count] if count < len(_NUMBER_WORDS) else "many"


def refusal_text(limited_count: int, stuck_count: int, seconds: float = 0) -> str:
    """Why no account of a pool can serve, for a client: how many are limited, and how many stuck.

    Both counts are of the accounts that have what the request needs.  `seconds`: until the first of
    the limited ones is back.  It names no account, and has none of the phrases that make clients
    repeat a request (F68).
    """
    parts = []
    if limited_count == 1:
        parts.append("one account has reached its limit")
    elif limited_count:
        parts.append(f"{_number_word(limited_count)} accounts have reached their limit")
    if stuck_count == 1:
        parts.append("one account needs its operator")
    elif stuck_count:
        parts.append(f"{_number_word(stuck_count)} accounts need their operator")

    causes = " and ".join(parts) or "none is usable"
    text = f"No account of this pool can serve the request: {causes}."
    if limited_count:
        return f"{text} The first is back in {duration_text(seconds)}."
    return f"{text} The pooler's log says why."


def usage_limit(
    seconds: int,
    unix_now: float,
    *,
    is_native: bool,
) -> PoolerError:
    """The error if all accounts are limited; the first one is back in `seconds`.

    Codex CLI stops at the code and shows the reset (F77), so on its own routes a long wait has no
    header.  Other clients stop only at the header (F70).
    """
    resets_at = math.ceil(unix_now) + seconds
    details = {"resets_at": resets_at, "resets_in_seconds": seconds}
    is_silent = is_native and seconds > RETRY_AFTER_SECONDS_MAX
    headers = [] if is_silent else retry_headers(seconds)
    return PoolerError("usage_limit_reached", details=details, headers=headers)


################################################################
# RECORDS
################################################################
# What is kept of requests, and shown of the pooler's state: to a client its own use, to Codex CLI
# the pool's quota, to operators a snapshot.  It is metadata only: names from pools.json, numbers,
# codes.  Of what a client typed there is only the model's name, cut and cleaned.
#
# Everything here is a function of state that is passed in.  mcp_server.py picks from the snapshot
# what operators see; the log shows a `Record`.


_STATUS_VALUES: Final = frozenset(status.value for status in Status)


@dataclass
class Record:
    """One request, filled in while it is served; the log shows it field by field.

    The names of the fields are an interface: people search their logs for them.
    """

    request_id: str
    method: str = ""
    route: str = ""
    # Names from pools.json.  The first two are None without a valid key; `account` is None unless
    # one has served the request: those that failed are in `attempts`.
    pool: str | None = None
    key: str | None = None
    account: str | None = None
    # `other` if no pool and no account has a model of the name that the client sent.
    model: str | None = None
    stream: bool = False
    # None if the client left before a response began.
    status: int | None = None
    # Of ERRORS, or an upstream's own after UPSTREAM_CODE; None if the request succeeded.
    code: str | None = None
    # By account, each with the reason why the next one was tried.
    attempts: list[JsonDict] = field(default_factory=list)
    # If nobody could serve it: the accounts that were not asked, each with the reason.
    passed_over: list[JsonDict] = field(default_factory=list)
    first_byte_ms: int | None = None
    duration_ms: int = 0
    # Of bodies, as they crossed the client's connection.
    bytes_in: int = 0
    bytes_out: int = 0
    tokens: Usage | None = None
    # What was charged to the key is a guess from the bytes: see `tokens_spent`.
    tokens_estimated: bool = False
    transport: str = "http"  # or sse, websocket

    def as_object(self) -> JsonDict:
        """The fields as the log has them."""
        return {**vars(self), "tokens": self.tokens and self.tokens._asdict()}


def request_level(record: Record) -> str:
    """The level of a request's log line: a warning if it failed, and not by its client's fault."""
    status = record.status or 0
    is_cut = status == 200 and record.code not in {None, "client_gone"}
    return "warning" if status >= 500 or is_cut else "info"


def tokens_spent(entry: JsonObject) -> Mapping[str, int]:
    """The tokens to charge for a record: those reported, else one for each 4 bytes.

    A response that was cut off reports none, and was paid for all the same: if it were free, a
    client could leave each of its streams before the end and never use up its key.
    """
    input_count = entry["bytes_in"] // 4
    total_count = (entry["bytes_in"] + entry["bytes_out"]) // 4
    guess = {"input_tokens": input_count, "output_tokens": total_count - input_count}
    return entry["tokens"] or guess


# Kind, window, the most, what is used, and when it starts from 0 again.  Without a most: no limit.
LimitRow = tuple[str, str | None, float | None, float, float | None]


def _limit_rows(rows: Iterable[LimitRow]) -> list[JsonDict]:
    """The limits of GET /v1/usage, with the fields of icoretech/codex-pooler's.

    Scripts that read those fields work with either pooler; `reset_at` is RFC 3339 in UTC.
    """
    shown = []
    for kind, window, most, used, reset_unix in rows:
        if most is None:
            continue

        reset_at = None
        if reset_unix:
            reset_at = datetime.fromtimestamp(reset_unix, UTC).isoformat("T", "seconds")
        row = {
            "limit_type": kind,
            "limit_window": window,
            "max_value": most,
            "current_value": used,
            "remaining_value": max(0, most - used),
            "reset_at": reset_at,
            "source": "upstream_usage" if kind == "percent" else "pool_key",
            "model_filter": None,
        }
        shown.append(row)
    return shown


def _window_name(seconds: int) -> str:
    """A window's length in its largest whole unit: `7d`, `5h`, `90m`.

    Upstreams report it in whole minutes.
    """
    for unit, letter in ((24 * HOUR, "d"), (HOUR, "h")):
        if seconds % unit == 0:
            return f"{seconds / unit:.0f}{letter}"
    return f"{seconds // 60}m"


def pooled_quota(
    roster: Roster,
    pool: Pool,
    now: float,
) -> tuple[bool, dict[int, QuotaWindow]]:
    """Whether all accounts are limited, and the least used window of each length in seconds.

    The windows of the accounts that can serve; if none can, of the limited one that is back first:
    that is when clients may go on.
    """
    # When each may serve: -inf if it can now.
    moments: list[tuple[float, Health]] = []
    for account in pool.accounts:
        health = roster.health_of(account)
        standing = standing_of(health, now)
        if standing.status in {Status.READY, Status.COOLING_DOWN, Status.AT_LIMIT}:
            moments.append((standing.until, health))
    first = min((moment for moment, _ in moments), default=-math.inf)

    # The next request goes to an account that has room, so the best window is what a client has.
    best: dict[int, QuotaWindow] = {}
    for moment, health in moments:
        if moment > first:
            continue
        for length, window in health.quota.running(PLAN_FAMILY, now).items():
            best[length] = min(best.get(length, window), window)
    best.pop(0, None)  # of unknown length: it counts, but cannot be shown as a window
    return first > now, dict(sorted(best.items()))


def show_key_usage(
    roster: Roster,
    pool: Pool,
    key: Key,
    use: KeyUse,
    *,
    now: float,
    unix_now: float,
) -> JsonDict:
    """GET /v1/usage: a key's own counts and limits, and its pool's best level for each window.

    Accounts are not named: a client learns what it may still use, and nothing of who pays for it.
    """
    use.start_day(unix_now)
    day_end = (use.day + 1) * 24 * HOUR

    # The minute slides: its next place is free 60 s after the first of the requests in it.
    minute = [at for at in use.minute if at > now - 60]
    minute_end = None
    if minute:
        minute_end = unix_now + minute[0] + 60 - now

    own: list[LimitRow] = [
        ("requests", "1m", key.requests_per_minute, len(minute), minute_end),
        ("total_tokens", "1d", key.tokens_per_day, use.day_tokens, day_end),
        ("concurrent_requests", None, key.concurrent, use.in_flight_count, None),
    ]

    upstream: list[LimitRow] = []
    # Upstreams report percentages only, never the amount that they are a percentage of.
    _, windows = pooled_quota(roster, pool, now)
    for seconds, level in windows.items():
        name = _window_name(seconds)
        used_percent = int(level.used_percent)
        reset_unix = unix_now + level.ends_at - now
        upstream.append(("percent", name, 100, used_percent, reset_unix))

    return {
        "request_count": use.request_count,
        "total_tokens": use.tokens["input_tokens"] + use.tokens["output_tokens"],
        "cached_input_tokens": use.tokens["cached_tokens"],
        "limits": _limit_rows(own),
        "upstream_limits": _limit_rows(upstream),
    }


def show_codex_usage(
    roster: Roster,
    pool: Pool,
    now: float,
    unix_now: float,
) -> JsonDict:
    """What Codex CLI's /status shows of quota, for the whole pool (F36).

    Codex reads whole numbers only, and refuses a plan it does not know: "guest" is known to
    every version, and means none in particular.
    """
    is_limited, windows = pooled_quota(roster, pool, now)
    limit: JsonDict = {
        "allowed": not is_limited,
        "limit_reached": is_limited,
        "primary_window": None,
        "secondary_window": None,
    }

    for position, (seconds, level) in zip(_POSITIONS, windows.items(), strict=False):
        left_seconds = level.ends_at - now
        limit[f"{position}_window"] = {
            "used_percent": int(level.used_percent),
            "limit_window_seconds": seconds,
            "reset_after_seconds": math.ceil(left_seconds),
            "reset_at": math.ceil(unix_now + left_seconds),
        }
    return {"plan_type": "guest", "rate_limit": limit}


def show_quota_headers(
    roster: Roster,
    pool: Pool,
    now: float,
    unix_now: float,
) -> list[Field]:
    """The headers from which Codex CLI learns its quota (F33), for the whole pool.

    They go with each response on Codex CLI's own routes: the shortest window as the primary one.
    Those of the account itself are withheld from clients: they show who pays, and what is left.
    """
    _, windows = pooled_quota(roster, pool, now)
    headers = []
    for position, (seconds, level) in zip(_POSITIONS, windows.items(), strict=False):
        name = f"x-codex-{position}"
        reset_at = math.ceil(unix_now + level.ends_at - now)
        headers += [
            (f"{name}-used-percent", str(int(level.used_percent))),
            (f"{name}-window-minutes", str(seconds // 60)),
            (f"{name}-reset-at", str(reset_at)),
        ]
    return headers


# What requests are counted by, next to their account: enough to find out who caused what, and few
# enough that the number of rows stays small.
_LABELS: Final = ("pool", "key", "model", "route", "code")
# By account, then by the values of further labels: amounts by name.
Sums = dict[str, dict[tuple[str, ...], dict[str, float]]]


@dataclass(slots=True)
class Tally:
    """Sums of requests, in the order in which the state file has them.

    A request whose client left counts as neither failed nor served.  The cost is None until a
    response is counted that has a price.
    """

    requests: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost: float | None = None

    def add(self, other: Tally) -> None:
        """Add other sums to these."""
        self.requests += other.requests
        self.failed += other.failed
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.cached_tokens += other.cached_tokens
        if other.cost is not None:
            self.cost = other.cost + (self.cost or 0.0)

    def as_object(self) -> JsonDict:
        """The sums without the cost, as operators read them."""
        return {
            "requests": self.requests,
            "failed": self.failed,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cached_tokens": self.cached_tokens,
        }

    def with_cost(self, has_prices: bool) -> JsonDict:
        """The sums and their cost: null without prices, and if nothing of what was used had one."""
        cost = self.cost
        if cost is None and not (self.input_tokens or self.output_tokens):
            cost = 0.0
        return {**self.as_object(), "cost": cost if has_prices else None}


def _tally_of(entry: JsonObject, price: Price | None) -> Tally:
    """The sums of a single record."""
    failed = int(entry["code"] not in (None, "client_gone"))
    tokens = entry["tokens"]
    if tokens is None:
        return Tally(1, failed)

    cost = None if price is None else price.cost_of(tokens)
    counts = (tokens["input_tokens"], tokens["output_tokens"], tokens["cached_tokens"])
    return Tally(1, failed, *counts, cost)


def _step_of(milliseconds: int) -> int:
    """The step of a logarithmic scale that a time is on: steps can be added up, and few suffice."""
    step = int(math.log2(max(1, milliseconds)) * STEPS_PER_OCTAVE)
    return min(step, FIRST_EVENT_STEPS_MAX)


def _percentile(steps: Mapping[int, int], percent: int) -> int | None:
    """The time in the middle of the step that holds a percentile; None if nothing was measured."""
    rank = sum(steps.values()) * percent / 100
    count = 0
    for step in sorted(steps):
        count += steps[step]
        if count >= rank:
            return round(2 ** ((step + 0.5) / STEPS_PER_OCTAVE))
    return None


@dataclass(slots=True)
class Minute:
    """What the last hour is made of: the sums of a minute, its failures, and its first events."""

    tally: Tally = field(default_factory=Tally)
    codes: Counter[str] = field(default_factory=Counter)  # of the failed requests
    steps: Counter[int] = field(default_factory=Counter)  # of the times to the first event

    def add(self, entry: JsonObject, code: str, tally: Tally) -> None:
        """Count a record.  The time to the first event is a stream's: others have none."""
        self.tally.add(tally)
        if tally.failed:
            is_new = code not in self.codes
            self.codes["other" if is_new and len(self.codes) >= MINUTE_CODES_MAX else code] += 1

        is_stream = entry["stream"] and entry["account"] and entry["status"] in {101, 200}
        if is_stream and entry["first_byte_ms"] is not None:
            self.steps[_step_of(entry["first_byte_ms"])] += 1


def _sums_of(periods: dict[int, T], period: int, length: int, empty: Callable[[], T]) -> T:
    """The sums of a period.  If it is a new one, what is older than `length` periods is forgotten.

    What lies in its future is forgotten, too: then the clock has been set back.
    """
    sums = periods.get(period)
    if sums is None:
        for other in [*periods]:
            if not period - length < other < period:
                del periods[other]
        sums = periods[period] = empty()
    return sums


class Ledger:
    """What is kept of requests that are over: the latest ones, and sums of them.

    All of it is in memory and bounded, whatever clients and upstreams put into names and codes, and
    whatever names reloads bring up.  Periods are numbered from 1970, in UTC.
    """

    def __init__(self, records_max: int) -> None:
        self.requests: deque[JsonObject] = deque(maxlen=records_max)  # oldest first
        # Since the start:
        self.totals: Sums = {}  # by account and _LABELS
        self.attempts: Sums = {}  # by account and reason
        self.upstream_codes: dict[str, set[str]] = {}  # by account: those counted by name
        # By time:
        self.minutes: dict[int, Minute] = {}
        self.hours: dict[int, Tally] = {}
        self.days: dict[KeyNames, dict[int, Tally]] = {}  # by pool and key
        self.account_days: dict[str, tuple[int, int]] = {}  # the latest day, and its tokens

    def add(self, entry: JsonObject, price: Price | None = None) -> None:
        """Count a record, which is an object of `Record` with its time as `at`, in Unix seconds.

        If no tokens were reported, none are counted here: the estimate that is charged to a key is
        no measurement.  The cost is computed now, with the price that held for the request: a
        reload that changes prices must not change what has been spent, and a sum by key and day
        takes less memory than one by model, too.
        """
        self.requests.append(entry)
        code = self.counted_code(entry["account"] or "", entry["code"] or "ok")
        self.add_to_totals(entry, code)
        self.add_to_periods(entry, code, _tally_of(entry, price))

    def add_to_periods(self, entry: JsonObject, code: str, tally: Tally) -> None:
        """Add a record to the sums of the times in which it ended."""
        unix_end = entry["at"] + entry["duration_ms"] / 1000
        minute = int(unix_end // 60)
        hour = minute // 60
        day = hour // 24
        _sums_of(self.hours, hour, HOURS_KEPT, Tally).add(tally)
        _sums_of(self.minutes, minute, MINUTES_KEPT, Minute).add(entry, code, tally)

        key = (entry["pool"], entry["key"])
        if key in self.days or len(self.days) < KEYS_COUNTED_MAX:
            days = self.days.setdefault(key, {})
            _sums_of(days, day, DAYS_KEPT, Tally).add(tally)

        account = entry["account"]
        has_room = account in self.account_days or len(self.account_days) < ACCOUNTS_COUNTED_MAX
        if account and has_room:
            count = self.tokens_of(account, day) + tally.input_tokens + tally.output_tokens
            self.account_days[account] = (day, count)

    def tokens_of(self, account: str, day: int) -> int:
        """The tokens that an account has used on a day, if that is its latest one."""
        latest, count = self.account_days.get(account, (day, 0))
        return count if latest == day else 0

    def forget_others(self, keys: Container[KeyNames], accounts: Container[str]) -> None:
        """Forget the days of keys and accounts that a reload has removed."""
        for key in [key for key in self.days if key not in keys]:
            del self.days[key]
        for name in [name for name in self.account_days if name not in accounts]:
            del self.account_days[name]

    def add_to_totals(self, entry: JsonObject, code: str) -> None:
        """Add a record to the sums since the start."""
        account = entry["account"] or ""
        tokens = entry["tokens"] or Usage()._asdict()

        amounts = {
            "requests": 1,
            "seconds": entry["duration_ms"] / 1000,
            "first_byte_seconds": (entry["first_byte_ms"] or 0) / 1000,
            "bytes_in": entry["bytes_in"],
            "bytes_out": entry["bytes_out"],
            **tokens,
        }
        labels = [entry[name] or "" for name in _LABELS[:-1]]
        _count(self.totals, account, (*labels, code), amounts)

        # The last attempt has no reason of its own: it ended as the request did.
        for attempt in entry["attempts"]:
            reason = attempt.get("reason", code)
            account = attempt["account"]
            _count(self.attempts, account, (reason,), {"count": 1})

    def counted_code(self, account: str, code: str) -> str:
        """The code, or `upstream:other` once an upstream has made up UPSTREAM_CODES_MAX others.

        Each code becomes a series of the metrics, and an upstream may send a new one every time.
        """
        if not code.startswith(UPSTREAM_CODE):
            return code

        codes = self.upstream_codes.setdefault(account, set())
        if len(codes) < UPSTREAM_CODES_MAX:
            codes.add(code)
        return code if code in codes else upstream_name("other")


def _count(
    sums: Sums,
    account: str,
    row: tuple[str, ...],
    amounts: Mapping[str, float],
) -> None:
    """Add to a row of an account's sums.

    Reloads and clients can bring up new names forever, so both levels are bounded.  An account too
    many counts as no account, a row too many as one whose last label is `other`.
    """
    if account not in sums and len(sums) >= ACCOUNTS_COUNTED_MAX:
        account = ""
    rows = sums.setdefault(account, {})

    if row not in rows and len(rows) >= TOTALS_MAX:
        empty = [""] * (len(row) - 1)
        row = (*empty, "other")
    if row not in rows:
        rows[row] = dict.fromkeys(amounts, 0)

    sums_of_row = rows[row]
    for name, amount in amounts.items():
        sums_of_row[name] += amount


class State(NamedTuple):
    """All that a snapshot is made from, and the time on both clocks.

    SERVER gathers it.  Nothing here reads a clock, so a snapshot shows a single moment.
    """

    config: Config
    roster: Roster
    ledger: Ledger
    uses: Mapping[KeyNames, KeyUse]
    logins: Mapping[str, LoginState]
    refreshes: Sums  # by account and outcome
    queued: Mapping[str, int]  # by pool
    outages: Mapping[tuple[str, str], Outage]  # by pool and model
    process: JsonObject  # shown as it is
    now: float
    unix_now: float

    def unix(self, at: float) -> float:
        """Converts a time of Trio's clock, which deadlines use, to Unix time.

        The offset is computed for each snapshot, because the machine's clock may be set.
        """
        return at - self.now + self.unix_now

    def unix_or_none(self, at: float) -> float | None:
        """The same for a time that may be infinite: then there is no such moment."""
        return self.unix(at) if math.isfinite(at) else None

    def login_of(self, account: Account) -> LoginState:
        """The state of an account's login; an empty one if it has an API key."""
        return self.logins.get(account.name, LoginState())

    def use_of(self, key: Key) -> KeyUse:
        """What a key has used; nothing, if it has never been presented.

        Counts are kept by name: they survive a reload that changes the key's secret or its limits.
        """
        names = (key.pool, key.name)
        return self.uses.get(names, KeyUse())


def snapshot(state: State) -> JsonDict:
    """The pooler's state for operators: metadata, with times in Unix seconds.

    It is the interface to mcp_server.py, which shows only the fields that it lists.
    tests/support/snapshot.json is an example.
    """
    config = state.config
    ledger = state.ledger
    accounts = _show_accounts(state)
    no_days = _show_days(state, {})

    pools = []
    for pool in config.pools.values():
        offered = sorted(catalogue_of(state.roster, pool))
        pools.append(_show_pool(state, pool, offered))

    return {
        "version": VERSION,
        "at": state.unix_now,
        "uptime_seconds": int(state.unix_now - state.process["started_at"]),
        **state.process,
        "in_flight": sum(state.roster.leases.in_flight.values()),
        "pools": pools,
        "accounts": accounts,
        "keys": [_show_key(state, key, no_days) for key in config.keys],
        "operators": [
            {
                "name": operator.name,
                "source": operator.source,
                "status": "active",
            }
            for operator in config.operators
        ],
        "models": _show_models(state),
        "requests": list(reversed(ledger.requests)),
        "has_prices": bool(config.prices),
        "hours": _show_hours(ledger, state.unix_now),
        "last_hour": _show_last_hour(ledger, state.unix_now),
        "today": _show_today(state),
        "totals": _flat_rows(_LABELS, ledger.totals),
        "attempts": _flat_rows(("reason",), ledger.attempts),
        "refreshes": _flat_rows(("outcome",), state.refreshes),
    }


def _holders(names_of: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """The inverted mapping: for each name, who lists it, in the order of `names_of`.

    It turns the models of each pool into the pools of each model; likewise for accounts.
    """
    holders: dict[str, list[str]] = {}
    for holder, names in names_of.items():
        for name in names:
            holders.setdefault(name, []).append(holder)
    return holders


def _show_models(state: State) -> list[JsonDict]:
    """The names that GET /v1/models shows to a key without a list of its own, in any pool.

    Each has the pools that show it, and what it means in each of them: an alias, another model.
    """
    names_of = {}
    for name, pool in state.config.pools.items():
        nobody = Key(pool=name, name="", concurrent=1)
        names_of[name] = models_of(state.roster, pool, nobody)

    pools = state.config.pools
    return [
        {
            "name": model,
            "pools": names,
            "targets": [pools[name].meant_by(model).model for name in names],
        }
        for model, names in sorted(_holders(names_of).items())
    ]


def _flat_rows(labels: Sequence[str], sums: Sums) -> list[JsonDict]:
    """Sums as a list of objects, each with its account, the further labels and the amounts.

    JSON has no objects whose keys are tuples, so the labels become members.
    """
    return [
        {
            "account": account,
            **dict(zip(labels, row, strict=True)),
            **amounts,
        }
        for account, rows in sums.items()
        for row, amounts in rows.items()
    ]


def _show_accounts(state: State) -> list[JsonDict]:
    """Every account of pools.json, also one that is in no pool: that may be a mistake."""
    members = {
        pool.name: [account.name for account in pool.accounts]
        for pool in state.config.pools.values()
    }
    pools_of = _holders(members)
    return [
        _show_account(state, account, pools_of.get(name, []))
        for name, account in state.config.accounts.items()
    ]


def _show_account(
    state: State,
    account: Account,
    pools: Sequence[str],
) -> JsonDict:
    """An account: its configuration, its health, its login's state and its quota windows.

    Not its key, its file or more of its address than the host: operators know accounts by name.
    """
    health = state.roster.health_of(account)
    login = state.login_of(account)
    unreached = state.roster.hosts.cause_for(account, state.now)
    catalogue = sorted(health.catalogue or ())

    return {
        "name": account.name,
        "priority": account.priority,
        "concurrent": account.concurrent,
        "type": "codex" if account.is_codex else "openai",
        "host": account.base_url.host,
        "pools": pools,
        **_show_condition(state, health, login),
        "is_demoted": health.is_demoted(state.now),
        "unreached": unreached or login.unreached,
        "in_flight": state.roster.leases.in_flight[account.name],
        "lacks": _show_lacks(state, account, health),
        "login": login.login,
        "plan": login.plan,
        "token_ends_at": login.token_ends_at,
        "models": list(account.models or catalogue) or None,
        "tokens_today": state.ledger.tokens_of(account.name, int(state.unix_now // (24 * HOUR))),
        "windows": _show_windows(state, health),
    }


def _show_condition(
    state: State,
    health: Health,
    login: LoginState,
) -> JsonDict:
    """How an account is: why, since when, how often it has failed, and what to do about it."""
    condition = condition_of(health, login, state.now)
    since = None
    if condition.status is not Status.READY:
        # What has begun just now no watch has seen yet.
        began_at = health.since if health.status is condition.status else state.now
        since = state.unix(began_at)

    doubt, advice_on_key = key_doubt(health, condition)
    cause, last_error = None, None
    if health.failure is not None:
        cause = health.failure.cause
        last_error = {"at": state.unix(health.failure.at), "reason": health.failure.reason}

    return {
        "status": condition.status.value,
        "reason": condition.reason or None,
        "since": since,
        "until": state.unix_or_none(condition.until),
        "next_try_at": state.unix_or_none(condition.retry_at),
        "failures": health.failure_count,
        "last_success_at": state.unix_or_none(health.success_at),
        "last_error": last_error,
        "key_problem": doubt or None,
        "advice": advice_for(health.account, condition, login, cause) or advice_on_key or None,
        "needs_operator": condition.needs_operator,
    }


def _show_windows(state: State, health: Health) -> list[JsonDict]:
    """The quota windows that have not ended, the plan's first, the shorter before the longer.

    A length of 0 was not reported.
    The family is the limit's name: `codex`, or that of a model with a limit of its own.
    """
    return [
        {
            "family": family,
            "window": _window_name(seconds) if seconds else None,
            "window_minutes": seconds // 60,
            "used_percent": window.used_percent,
            "resets_at": state.unix(window.ends_at),
            "observed_at": state.unix(window.seen_at),
        }
        for (family, seconds), window in sorted(health.quota.windows.items(), key=_window_order)
        if window.ends_at > state.now
    ]


def _window_order(item: tuple[tuple[str, int], QuotaWindow]) -> tuple[bool, str, int]:
    """Where a quota window is shown."""
    (family, seconds), _ = item
    return family != PLAN_FAMILY, family, seconds


# How operators read what an account lacks.  A route and the WebSocket are named by the pooler.
_LACKS: Final = {
    Effect.LACKS_MODEL: "model",
    Effect.LACKS_ROUTE: "route",
    Effect.LACKS_WEBSOCKET: "WebSocket",
}


def _named_models(config: Config, account: Account, health: Health) -> set[str]:
    """The models that pools.json or the account's catalogue names.

    Only they are shown: names that clients have made up may hold anything (SECURITY.md, 7).
    """
    names = set(account.models or ())
    names.update(name for name in health.catalogue or () if not is_account_name(name))
    for pool in config.pools.values():
        names.update(pool.models or ())
    return names


def _show_lacks(
    state: State,
    account: Account,
    health: Health,
) -> list[JsonDict]:
    """What an account cannot serve for now, until when, and why.

    Models that only clients have named are left out: a client chose those names.
    """
    named = _named_models(state.config, account, health)
    blocks: dict[str, Mapping[Any, Any]] = {"limit": health.by_model}
    for effect, kind in _LACKS.items():
        blocks[kind] = health.blocks[effect]

    rows = []
    for kind, by_name in blocks.items():
        for name, block in by_name.items():
            is_ours = name in named or kind in {"route", "WebSocket"}
            if not is_ours or block.until <= state.now:
                continue

            row = {
                "kind": kind,
                "name": name,
                "reason": block.reason,
                "ends_at": state.unix(block.until),
            }
            rows.append(row)
    return rows


def _show_pool(
    state: State,
    pool: Pool,
    models: Iterable[str],
) -> JsonDict:
    """A pool: its accounts, how busy it is, and which models it can serve.

    `models` are those of its accounts, shown if pools.json lists none for the pool.  What is in
    flight is counted by key, as an account may serve several pools.
    """
    serving = [
        _show_serving(state, row) for row in serving_of(state.roster, pool, state.logins, state.now)
    ]
    return {
        "name": pool.name,
        "routing": pool.routing.value,
        "accounts": [account.name for account in pool.accounts],
        "models": list(models if pool.models is None else pool.models),
        "key_count": len(pool.keys),
        "queued": state.queued.get(pool.name, 0),
        "in_flight": sum(state.use_of(key).in_flight_count for key in pool.keys),
        "status": _status_of_pool([row["status"] for row in serving]),
        "serving": serving,
    }


def _status_of_pool(statuses: Sequence[str]) -> str:
    """Ready if all of a pool's models can be served, degraded if some; else limited or down.

    Limited passes by itself; down needs somebody, or an upstream that comes back.
    """
    ready_count = statuses.count("ready")
    if ready_count:
        return "ready" if ready_count == len(statuses) else "degraded"
    return "limited" if "limited" in statuses else "down"


def _show_serving(state: State, row: Serving) -> JsonDict:
    """Whether a pool can serve a model; if not, since when, why not, and until when."""
    outage = state.outages.get((row.pool, row.model))
    since = None
    if not row.accounts:
        since = state.unix(outage.since if outage is not None else state.now)

    return {
        "model": row.model,
        "status": row.status,
        "accounts": row.accounts,
        "since": since,
        "until": state.unix_or_none(row.until),
        "failed": outage.failed_count if outage is not None else 0,
        "passed_over": [
            {
                "account": name,
                "status": condition.status.value,
                "reason": condition.reason or STATUS_TEXT[condition.status],
                "until": state.unix_or_none(condition.until),
            }
            for name, condition in row.passed_over[:PASSED_OVER_MAX]
        ],
    }


def _show_hours(ledger: Ledger, unix_now: float) -> list[JsonDict]:
    """The sums of the last HOURS_KEPT hours, oldest first; the last one is not over."""
    hour = int(unix_now // HOUR)
    rows = []
    for period in range(hour - HOURS_KEPT + 1, hour + 1):
        tally = ledger.hours.get(period, Tally())
        rows.append({"at": period * HOUR, **tally.as_object()})
    return rows


def _show_last_hour(ledger: Ledger, unix_now: float) -> JsonDict:
    """The sums of the last MINUTES_KEPT minutes: what failed, and how fast streams began."""
    last = int(unix_now // 60)
    whole = Minute()
    for period, minute in ledger.minutes.items():
        if last - MINUTES_KEPT < period <= last:
            whole.tally.add(minute.tally)
            whole.codes.update(minute.codes)
            whole.steps.update(minute.steps)

    causes = whole.codes.most_common(CAUSES_SHOWN_MAX)
    return {
        **whole.tally.as_object(),
        "causes": [{"code": code, "count": count} for code, count in causes],
        "first_event_p50_ms": _percentile(whole.steps, 50),
        "first_event_p95_ms": _percentile(whole.steps, 95),
        "responses": whole.steps.total(),
    }


def _show_today(state: State) -> JsonDict:
    """The sums of the present UTC day, which are those of its hours."""
    hour = int(state.unix_now // HOUR)
    first = hour - hour % 24
    whole = Tally()
    for period, tally in state.ledger.hours.items():
        if first <= period <= hour:
            whole.add(tally)
    return whole.with_cost(bool(state.config.prices))


def _show_days(state: State, days: Mapping[int, Tally]) -> list[JsonDict]:
    """The sums of a key on each of the last DAYS_KEPT days, oldest first; today is the last."""
    today = int(state.unix_now // (24 * HOUR))
    rows = []
    for day in range(today - DAYS_KEPT + 1, today + 1):
        tally = days.get(day, Tally())
        name = datetime.fromtimestamp(day * 24 * HOUR, UTC).date().isoformat()
        rows.append({"day": name, **tally.with_cost(bool(state.config.prices))})
    return rows


def _show_key(state: State, key: Key, no_days: Sequence[JsonObject]) -> JsonDict:
    """A pool key: its limits and its use of them; the key itself is not in it, nor its digest.

    `no_days` are the days of a key that was not used: there may be thousands of these.
    """
    use = state.use_of(key)
    days = state.ledger.days.get((key.pool, key.name))
    # Yesterday's tokens would be shown until the key's next request.
    use.start_day(state.unix_now)
    status = "active"
    if key.paused:
        status = "paused"
    elif not key.is_usable(state.unix_now):
        status = "expired"

    return {
        "pool": key.pool,
        "name": key.name,
        "source": key.source,
        "models": key.models,
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_day": key.tokens_per_day,
        "concurrent": key.concurrent,
        "status": status,
        "expires_at": key.expires,
        "in_flight": use.in_flight_count,
        "requests": use.request_count,
        "tokens_today": use.day_tokens,
        "tokens": {name: use.tokens[name] for name in Usage._fields},
        "days": no_days if days is None else _show_days(state, days),
    }


def explain(
    roster: Roster,
    pool: Pool,
    model: str,
    session: str | None,
    now: float,
    *,
    logins: Mapping[str, LoginState],
) -> JsonDict:
    """Which account a request for the model would go to now, and why not to the others.

    The functions that choose for real requests decide, so this cannot contradict them.  It sends
    nothing, takes no place and moves no pin.  Raises: PoolerError (model_not_found).
    """
    call = _call_for(pool, model)
    if session:
        call = _call_of_session(roster, call, session, now)

    # The accounts that may be tried, best first.  The first one with a free place is chosen.
    choice = Choice(roster, call, (), now)
    order = choice.ranked()
    ranked = [account.name for account in order]
    free = [account.name for account in order if roster.leases.has_room(account, call.key_name)]
    chosen = free[0] if free else None

    rows = []
    for health, standing in choice.standings:
        name = health.account.name
        login = logins.get(name, LoginState())
        if name in ranked:
            status, reason = _place_in_order(roster, health, login, ranked, now)
        else:
            status, reason = _why_excluded(health, standing, login, now)

        if name in ranked and name not in free:
            status = "at_cap"
            reason += ", and busy: at its cap"
        is_chosen = name == chosen
        rows.append({"name": name, "is_chosen": is_chosen, "status": status, "reason": reason})

    return {
        "pool": pool.name,
        "model": model,
        "chosen": chosen,
        "accounts": rows,
    }


def _place_in_order(
    roster: Roster,
    health: Health,
    login: LoginState,
    ranked: Sequence[str],
    now: float,
) -> tuple[str, str]:
    """The status of an account that may be asked, and its place in the order of those."""
    place = f"number {ranked.index(health.account.name) + 1} in order"
    cause = roster.hosts.cause_for(health.account, now)
    if cause:  # perhaps another account's requests have met it, at the same host
        reason = f"{place}; tried last, for it did not connect: {cause}"
        return Status.UNREACHABLE.value, reason

    condition = condition_of(health, login, now)
    if condition.status is Status.READY:
        return condition.status.value, place
    return condition.status.value, f"{place}; {condition.text}"


def _call_of_session(
    roster: Roster,
    call: Call,
    session: str,
    now: float,
) -> Call:
    """The call as it would arrive with a client's session id.

    Session ids are scoped by key, and no key is given here: the first key that has a pin for this
    session is used.
    """
    calls = []
    for key in call.pool.keys:
        digest = digest_parts(call.pool.name, key.name, "session", session)
        calls.append(call._replace(key=key, session=digest))

    pinned = [candidate for candidate in calls if roster.sessions.pin_of(candidate, now)]
    return [*pinned, *calls, call][0]


def _why_excluded(
    health: Health,
    standing: Standing,
    login: LoginState,
    now: float,
) -> tuple[str, str]:
    """Why an account may not be tried: as one of the words of `passed_over`, and as a text.

    Unless it is not meant for such requests at all, what excludes it from every request comes
    first: an operator must fix that before anything else.
    """
    if standing.status in {Status.NOT_OFFERED, Status.NOT_LISTED, Status.NOT_CHATGPT}:
        return standing.status.value, standing.text(now)

    overall = standing_of(health, now)
    if overall.status is Status.NO_LOGIN:
        condition = condition_of(health, login, now)
        return condition.status.value, condition.text
    if overall.status is not Status.READY:
        standing = overall
    return standing.status.value, standing.text(now)


# The state file: what a restart goes on from.  Times in it are Unix times in whole seconds, periods
# are numbered from 1970, and digests are in hex.  Names are those of pools.json; of models there
# are only those that no client has made up.  So it shows who used how much, but no secret.

STATE_VERSION: Final = 1
Row = list[Json]


def _nullable(check: Check) -> Check:
    """The same check, which lets null pass."""
    return lambda value: None if value is None else check(value)


def _row(*checks: Check) -> Check:
    """A check for lists that have one member for each of the checks."""

    def check(value: Json) -> Row:
        members = _typed(value, list)
        if len(members) != len(checks):
            raise ValueError("has a row of another length")
        return [check(member) for check, member in zip(checks, members, strict=True)]

    return check


def _rows(*checks: Check) -> Check:
    """A check for lists of such rows."""
    row = _row(*checks)
    return lambda value: [row(member) for member in _typed(value, list)]


def _valued(check: Check, names: Check = _object) -> Check:
    """A check for objects that have values of one kind, under whatever names `names` lets pass."""
    return lambda value: {name: check(member) for name, member in names(value).items()}


def _fielded(spec: Spec) -> Check:
    """A check for objects that have exactly the fields of a spec."""

    def check(value: Json) -> JsonDict:
        members = _object(value)
        if members.keys() != spec.keys():
            raise ValueError("has other members")
        return {name: spec[name](members[name]) for name in spec}

    return check


_AMOUNT: Final = _number(0, SUM_MAX)
_UNIX: Final = _number(0, 10**12)
_SHA256_HEX: Final = _text("[0-9a-f]{64}", "a digest")
_TALLY_ROWS: Final = _rows(_UNIX, *[_AMOUNT] * 5, _nullable(_number(0, SUM_MAX, (int, float))))
_REASON: Final = _text(f"[ -~]{{0,{REASON_CHARS_MAX}}}", "a reason")
_COOLDOWN: Final = _row(_nullable(_UNIX), _UNIX, _UNIX, _REASON)
_STATE_OF_ACCOUNT: Final[Spec] = {
    "identity": _SHA256_HEX,
    "status": _nullable(Status),
    "since": _nullable(_UNIX),
    "success_at": _nullable(_UNIX),
    "counts": _row(_AMOUNT, _AMOUNT),  # of failures, and of those that were trouble
    "failure": _nullable(_row(_UNIX, _REASON, _nullable(Cause))),
    "login": _nullable(_SHA256_HEX),
    "tokens": _row(_UNIX, _AMOUNT),
    "whole": _nullable(_COOLDOWN),
    "plan": _nullable(_COOLDOWN),
    "models": _valued(_COOLDOWN, _named_by_models),
    "windows": _rows(
        _text(_FAMILY.pattern, "a limit's id"),
        _number(0, WINDOW_MINUTES_MAX * 60),
        _number(0, 100, (int, float)),
        _UNIX,
        _UNIX,
        _flag,
    ),
    "families": _valued(_text(_FAMILY.pattern, "a limit's id"), _named_by_models),
}
_STATE: Final[Spec] = {
    "version": _number(STATE_VERSION, STATE_VERSION),
    "hours": _TALLY_ROWS,
    # By pool and key:
    "days": _valued(_valued(_TALLY_ROWS)),
    "charged": _valued(_valued(_row(_UNIX, _AMOUNT))),
    "pins": _valued(_valued(_rows(_SHA256_HEX, _string, _flag, _UNIX))),
    "creators": _valued(_valued(_rows(_SHA256_HEX, _string))),
    # By name:
    "accounts": _valued(_fielded(_STATE_OF_ACCOUNT)),
}


def parse_state(raw: bytes) -> JsonDict:
    """The content of a state file.  Raises: ValueError, if it is not exactly what we write."""
    if len(raw) > STATE_BYTES_MAX:
        raise ValueError("it is too large")
    try:
        check_members(raw, STATE_MEMBERS_MAX)
        # `load_json` would take NaN for null, which is a time without end here.
        value = parse_shallow(json.loads, raw.decode(), JSON_DEPTH_MAX)
    except BadSyntax:
        raise ValueError("it has too many members") from None
    return cast(JsonDict, _fielded(_STATE)(value))


def _by_pool(values: Mapping[Any, T]) -> dict[str, dict[str, T]]:
    """What is known by pool and key, in the form of JSON."""
    pools: dict[str, dict[str, T]] = {}
    for (pool, key), value in values.items():
        pools.setdefault(pool, {})[key] = value
    return pools


def _tally_rows(periods: Mapping[int, Tally]) -> list[Row]:
    """Sums by period, as rows: spelt out, as there may be thousands of keys."""
    return [
        [
            period,
            tally.requests,
            tally.failed,
            tally.input_tokens,
            tally.output_tokens,
            tally.cached_tokens,
            tally.cost,
        ]
        for period, tally in periods.items()
    ]


def _saved_reason(reason: str) -> str:
    """The reason of a failure, if it is one that can be read again."""
    return reason[:REASON_CHARS_MAX] if reason.isascii() and reason.isprintable() else ""


_BY_KEY: Final = ("days", "charged", "pins", "creators")


class Lasting(NamedTuple):
    """What outlives the process, and the time on both clocks: the monotonic one begins anew."""

    config: Config
    roster: Roster
    ledger: Ledger
    uses: dict[KeyNames, KeyUse]
    now: float
    unix_now: float

    def unix(self, at: float) -> int:
        """Converts a time of Trio's clock; none is before 1970, wherever the clock has been."""
        return max(0, round(at - self.now + self.unix_now))

    def unix_or_none(self, at: float) -> int | None:
        """The same; None for what never was, or never will be: JSON has no infinity."""
        return self.unix(at) if math.isfinite(at) else None

    def at(self, unix: float) -> float:
        """Converts a time of the state file."""
        return unix - self.unix_now + self.now

    def past(self, unix: float) -> float:
        """Converts a time that is not in the future."""
        return min(self.at(unix), self.now)

    def is_past(self, unix: float) -> bool:
        """Whether it can have been: if not, the clock has been set back since it was noted."""
        return unix <= self.unix_now + STATE_AHEAD_SECONDS_MAX

    # To the file.

    def save(self) -> JsonDict:
        """The content of the state file."""
        ledger, sessions = self.ledger, self.roster.sessions
        accounts = self.config.accounts.values()
        names = {account.identity: account.name for account in accounts} | {UNKEPT: ""}
        days = {key: _tally_rows(periods) for key, periods in ledger.days.items()}
        charged = {
            key: [use.day, use.day_tokens] for key, use in self.uses.items() if use.day_tokens
        }
        creators = {
            key: [[digest.hex(), names[by]] for digest, by in rows.items() if by in names]
            for key, rows in sessions.creators.by_share.items()
        }

        return {
            "version": STATE_VERSION,
            "hours": _tally_rows(ledger.hours),
            "days": _by_pool(days),
            "charged": _by_pool(charged),
            "pins": _by_pool({key: self.pin_rows(key) for key in sessions.pins.by_share}),
            "creators": _by_pool(creators),
            "accounts": {account.name: self.save_account(account) for account in accounts},
        }

    def pin_rows(self, key: Hashable) -> list[Row]:
        """The pins of a key's sessions, the one that was set last at the end."""
        accounts = self.config.accounts
        return [
            [digest.hex(), pin.account, pin.is_mixed, self.unix(pin.used_at)]
            for digest, pin in self.roster.sessions.pins.by_share[key].items()
            if pin.account in accounts and accounts[pin.account].base_url == pin.base_url
        ]

    def save_account(self, account: Account) -> JsonDict:
        """What is known of an account."""
        health = self.roster.health_of(account)
        named = self.named_models(account, health)
        cooldowns = health.by_model.items()
        rows = {name: self.cooldown_row(cooldown) for name, cooldown in cooldowns if name in named}
        limited = {model_of_limit(account.name_of(name)) for name in named}
        limits = health.quota.families.items()
        families = {model: family for model, family in limits if model in limited}

        return {
            "identity": account.identity.hex(),
            "status": health.status,
            "since": self.unix_or_none(health.since),
            "success_at": self.unix_or_none(health.success_at),
            "counts": [health.failure_count, health.trouble_count],
            "failure": self.failure_row(health.failure),
            "login": health.login.hex() or None,
            "tokens": [*self.ledger.account_days.get(account.name, (0, 0))],
            "whole": self.cooldown_row(health.whole),
            "plan": self.cooldown_row(health.plan),
            "models": {name: row for name, row in rows.items() if row},
            "windows": self.window_rows(health.quota),
            "families": families,
        }

    def named_models(self, account: Account, health: Health) -> set[str]:
        """The models that may be named; none if nothing is known of any: there may be thousands."""
        if not health.by_model and not health.quota.families:
            return set()
        return _named_models(self.config, account, health)

    def window_rows(self, quota: Quota) -> list[Row]:
        """The windows that have not ended."""
        rows = []
        for key, window in quota.windows.items():
            if window.ends_at > self.now:
                times = (self.unix(window.ends_at), self.unix(window.seen_at))
                rows.append([*key, window.used_percent, *times, window.is_reset_known])
        return rows

    def failure_row(self, failure: Failure | None) -> Row | None:
        """The latest failure."""
        if failure is None:
            return None
        return [self.unix(failure.at), _saved_reason(failure.reason), failure.cause]

    def cooldown_row(self, cooldown: Cooldown) -> Row | None:
        """A cooldown that holds; None if it does not.  A refusal has no end."""
        if cooldown.until <= self.now:
            return None
        times = (self.unix(cooldown.retry_at), self.unix(cooldown.noted_at))
        return [self.unix_or_none(cooldown.until), *times, _saved_reason(cooldown.reason)]

    # From the file.  What pools.json does not name any more is dropped, and so is what is over, and
    # what is said to have happened in the future.

    def restore(self, saved: JsonObject) -> None:
        """Go on from the content of a state file."""
        accounts = {
            name: account
            for name, account in self.config.accounts.items()
            if object_at(saved["accounts"], name).get("identity") == account.identity.hex()
        }
        for name, account in accounts.items():
            self.restore_account(account, saved["accounts"][name])

        self.restore_tallies(self.ledger.hours, saved["hours"], HOUR, HOURS_KEPT)
        for key in self.config.keys:
            names = (key.pool, key.name)
            rows = {name: object_at(saved[name], key.pool).get(key.name, ()) for name in _BY_KEY}
            self.restore_use(names, rows)
            self.restore_sessions(names, accounts, rows)

    def restore_use(self, key: KeyNames, rows: Mapping[str, Sequence[Json]]) -> None:
        """Go on with what a key has used, which counts for its limit of today."""
        days: dict[int, Tally] = {}
        self.restore_tallies(days, rows["days"], 24 * HOUR, DAYS_KEPT)
        if days and len(self.ledger.days) < KEYS_COUNTED_MAX:
            self.ledger.days[key] = days

        day, count = rows["charged"] or (0, 0)
        if day == int(self.unix_now // (24 * HOUR)):
            self.uses[key].day, self.uses[key].day_tokens = day, count

    def restore_tallies(
        self, periods: dict[int, Tally], rows: Iterable[Row], seconds: float, length: int
    ) -> None:
        """Go on with the sums of the latest periods."""
        latest = int(self.unix_now // seconds)
        for period, *amounts in rows:
            if latest - length < period <= latest:
                periods[period] = Tally(*amounts)

    def restore_sessions(
        self,
        key: KeyNames,
        accounts: Mapping[str, Account],
        rows: Mapping[str, Sequence[Json]],
    ) -> None:
        """Keep a key's sessions, and its stored responses, on their accounts."""
        sessions = self.roster.sessions
        for digest, name, is_mixed, used_unix in rows["pins"]:
            if name in accounts and self.is_past(used_unix):
                pin = Pin(name, accounts[name].base_url, is_mixed, self.past(used_unix))
                sessions.pins.set(key, bytes.fromhex(digest), pin, PINS_MAX)

        creators = {name: account.identity for name, account in accounts.items()} | {"": UNKEPT}
        for digest, name in rows["creators"]:
            if name in creators:
                created = bytes.fromhex(digest)
                sessions.creators.set(key, created, creators[name], RESPONSE_PINS_MAX)

    def restore_account(self, account: Account, saved: JsonObject) -> None:
        """Go on with what was known of an account whose identity is the same."""
        health = self.roster.health[account.name]
        health.login = bytes.fromhex(saved["login"] or "")
        self.restore_story(health, saved)
        self.restore_cooldown(health.whole, saved["whole"])
        self.restore_cooldown(health.plan, saved["plan"])
        for model, row in saved["models"].items():
            self.restore_cooldown(health.cooldown_of_model(model), row)

        day, count = saved["tokens"]
        if count and day == int(self.unix_now // (24 * HOUR)):
            self.ledger.account_days[account.name] = (day, count)
        for model, family in saved["families"].items():
            health.quota.note_family(model, family)
        for row in saved["windows"][:QUOTA_WINDOWS_MAX]:
            family, length, used_percent, ends, seen, is_known = row
            longest = max(length, RESET_SECONDS_MAX)
            if self.is_past(seen) and self.unix_now < ends <= self.unix_now + longest:
                window = QuotaWindow(used_percent, self.at(ends), self.past(seen), is_known)
                health.quota.windows[family, length] = window

    def restore_story(self, health: Health, saved: JsonObject) -> None:
        """Go on with since when an account has been as it is, and how its last requests ended."""
        since, success, failure = (saved[name] for name in ("since", "success_at", "failure"))
        if since is not None and self.is_past(since):
            health.status, health.since = saved["status"], self.past(since)
        if success is not None and self.is_past(success):
            health.success_at = self.past(success)

        if failure is not None and self.is_past(failure[0]):
            at, reason, cause = failure
            health.failure = Failure(self.past(at), reason, cause)
            health.failure_count, health.trouble_count = saved["counts"]

    def restore_cooldown(self, cooldown: Cooldown, row: Row | None) -> None:
        """Go on with a cooldown that holds; its next try is no later than it would have been."""
        until, retry, noted, reason = row or (0, 0, 0, "")
        end = math.inf if until is None else until
        is_plausible = until is None or until <= self.unix_now + RESET_SECONDS_MAX
        if end <= self.unix_now or not is_plausible or not self.is_past(noted):
            return

        cooldown.until = self.at(end)
        cooldown.retry_at = min(cooldown.until, self.at(retry), self.now + UNTRIED_SECONDS_MAX)
        cooldown.noted_at = self.past(noted)
        cooldown.reason = reason
        if end < math.inf:
            cooldown.limit = (cooldown.until, reason)


# In words: lines for a person at a terminal, where the log would have JSON.

LINE_COLUMNS: Final = 100
_NAME_COLUMNS: Final = 24  # of a pool and key, and of a model
_PATH_COLUMNS_MIN: Final = 12  # of the accounts, whatever else is in the line
# Select Graphic Rendition of ECMA-48.
_TONES: Final = {"good": "32", "fair": "33", "bad": "31", "bold": "1", "faint": "2"}


def tinted(text: str, tone: str, is_coloured: bool) -> str:
    """The text in the colour of its tone, if the terminal is to have colours."""
    return f"\x1b[{_TONES[tone]}m{text}\x1b[0m" if is_coloured else text


def printable(value: Json) -> str:
    """A value as text in which nothing is a command to a terminal, or a line end: it is escaped.

    Names of models, reasons and methods come from upstreams and clients.
    """
    text = "" if value is None else str(value)
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def cut_text(text: str, columns: int) -> str:
    """At most so many characters of a text."""
    return text if len(text) <= columns else f"{text[: columns - 1]}…"


def _tone_of(status: int | None, code: str | None) -> str:
    """How a request ended: well, not for a reason of the pooler's, or badly."""
    if code is None:
        return "good"
    is_clients = status is None or 400 <= status < 500 or code == "client_gone"
    return "fair" if is_clients else "bad"


def _path_of(entry: JsonObject) -> str:
    """The accounts that were tried, each with why the next one was, then those passed over.

    `personal 429 → second`, `(personal login_needed, second paused)`.
    """

    def words(row: JsonObject) -> str:
        """An account and its reason; of an upstream's error the status suffices."""
        reason = printable(row.get("reason"))
        status, _, _ = reason.partition(" ")
        account = printable(row["account"])
        return f"{account} {status if status.isdecimal() else reason}".rstrip()

    tried = " → ".join(map(words, entry["attempts"]))
    passed_over = ", ".join(map(words, entry["passed_over"]))
    return f"{tried} ({passed_over})".strip() if passed_over else tried


def _effort_of(entry: JsonObject) -> str:
    """What a request has cost: `8120+960 tokens  412/5120 ms`."""
    tokens, shown = entry["tokens"], ""
    if tokens is not None:
        shown = f"{tokens['input_tokens']}+{tokens['output_tokens']} tokens  "
    if entry["stream"] and entry["first_byte_ms"] is not None:
        shown += f"{entry['first_byte_ms']}/"
    return f"{shown}{entry['duration_ms']} ms"


def request_line(
    entry: JsonObject,
    at: datetime,
    is_coloured: bool,
    columns: int = LINE_COLUMNS,
) -> str:
    """One short line on a request, from the fields of its log line; `at`: when it ended.

        14:02:31  200  home/laptop  gpt-5.5  personal 429 → second  8120+960 tokens  412/5120 ms

    The times are those of a stream's first event and of the whole.  A request without a model is
    shown with its method and route, one that failed with its code at the end.
    """
    status, code = entry["status"], printable(entry["code"])
    whose = "/".join(printable(entry[name]) for name in ("pool", "key") if entry[name])
    what = printable(entry["model"] or f"{entry['method']} {entry['route']}".strip())
    begins = [cut_text(text, _NAME_COLUMNS) for text in (whose, what)]
    effort = _effort_of(entry)

    others = "  ".join(filter(None, [f"{at:%H:%M:%S}  200", *begins, effort, code]))
    path = cut_text(_path_of(entry), max(_PATH_COLUMNS_MIN, columns - len(others) - 2))

    tone = _tone_of(status, entry["code"])
    if code:
        code = tinted(code, tone, is_coloured)
    shown = tinted(str(status or "---"), tone, is_coloured)
    return "  ".join(filter(None, [f"{at:%H:%M:%S}", shown, *begins, path, effort, code]))


# The other events of the log, with its fields in braces; see `_EVENT_ADDITIONS`.
EVENT_WORDS: Final[Mapping[str, str]] = {
    "accept": "{problem}",
    "account": "account {account}: {status}{reason}{until}{advice}",
    "bug": "a bug in the pooler; please report this line: {type} at {at_frames} {request_id}",
    "config": "{problem}",
    "draining": "stopping; requests in progress: {requests}; Ctrl-C again ends them at once",
    "listen": "not listening: {problem}",
    "listening": "listening on {address}",
    "log lines dropped": "{problem}; lines that are missing here: {lines}",
    "login": "account {account}: {problem}",
    "models": "account {account}: its models are not known: {problem}",
    "notice": "notices to {host} do not arrive: {problem}",
    "pool": "pool {pool}: no account can serve {model}{until}",
    "reload": "reload: {problem}",
    "reload refused": "reload refused, the configuration stays as it was: {problem}",
    "reloaded": "reloaded; changed: {changed}",
    "state": "{problem}",
    "stopped": "stopped",
    "usage": "account {account}: {problem}",
}
# Of those that say that something works again.
GOOD_EVENT_WORDS: Final[Mapping[str, str]] = {
    "login": "account {account}: its login works",
    "notice": "notices to {host} arrive again",
    "pool": "pool {pool}: {model} can be served again by {accounts}",
    "state": "the state is saved again",
}
# What surrounds a field that may be null.
_EVENT_ADDITIONS: Final = {
    "reason": " ({})",
    "until": ", until {}",
    "advice": ". {}",
}


def _in_words(name: str, value: Json, at: datetime) -> str:
    """A field of a log line for a person; `at`: now, on the clock of that person."""
    if name == "until" and isinstance(value, str):
        value = datetime.fromisoformat(value).timestamp()
    if name == "until" and value is not None:
        moment = datetime.fromtimestamp(value, at.tzinfo)
        value = f"{moment:%H:%M}" if moment.date() == at.date() else f"{moment:%Y-%m-%d %H:%M}"
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    if name == "status" and value in _STATUS_VALUES:
        value = STATUS_TEXT[Status(value)]

    text = printable(value)
    return _EVENT_ADDITIONS.get(name, "{}").format(text) if text else ""


def event_line(
    level: str,
    event: str,
    fields: JsonObject,
    at: datetime,
    *,
    is_coloured: bool,
    columns: int = LINE_COLUMNS,
) -> str:
    """A line of the log for a person: a request's as `request_line`, others in a few words.

    They are not cut: a path or a command without its end would be worth nothing.
    """
    if event == "request":
        return request_line(fields, at, is_coloured, columns)

    is_good = level == "info" and event in GOOD_EVENT_WORDS
    pattern = (GOOD_EVENT_WORDS if is_good else EVENT_WORDS).get(event, event)
    words = {name: _in_words(name, value, at) for name, value in fields.items()}
    mark = {"warning": "fair", "error": "bad"}.get(level)
    begin = f"{at:%H:%M:%S}  "
    if mark is not None:
        begin += tinted(f"{level}:", mark, is_coloured) + " "
    return begin + pattern.format_map(defaultdict(str, words))


def introduction(
    shown: JsonObject,
    urls: Sequence[str],
    at: datetime,
    is_coloured: bool,
) -> list[str]:
    """What a server that has started says of itself, in lines, from its snapshot.

    `urls`: where it listens, with its base path; one of a Unix socket is `unix:PATH`.
    """
    name = tinted(f"codex-pooler {shown['version']}", "bold", is_coloured)
    at_urls = [f"{url}/v1" if url.startswith("http") else url for url in urls]
    lines = [f"{name} serves {' and '.join(at_urls)}"]

    for pool in shown["pools"]:
        models = f"models: {len(pool['models']) or 'those of its accounts'}"
        counts = f"{models}; keys: {pool['key_count']}"
        lines.append(f"  pool {pool['name']}: {', '.join(pool['accounts'])}; {counts}")

    lines += [_account_line(account, at, is_coloured) for account in shown["accounts"]]

    operators = "none; `pooler key --operator` makes a token for /admin and `pooler status`"
    if shown["operators"]:
        operators = _ways_of_operators(urls)
    return [*lines, f"  operators: {operators}"]


def _ways_of_operators(urls: Sequence[str]) -> str:
    """Where an operator sees more."""
    url = next((url for url in urls if url.startswith("http")), None)
    if url is None:
        return "/admin through your proxy"
    option = "" if url == USUAL_URL else f" --url {url}"
    return f"{url}/admin (the token is the password), or `pooler status{option}`"


def _account_line(account: JsonObject, at: datetime, is_coloured: bool) -> str:
    """How an account is, and what to do about it."""
    status = Status(account["status"])
    tone = "bad" if account["needs_operator"] else "fair"
    if status is Status.READY:
        tone = "good"

    line = f"  account {account['name']}: {tinted(STATUS_TEXT[status], tone, is_coloured)}"
    if status is Status.NO_LOGIN:  # the cause and a remedy have just been logged
        return line
    return line + "".join(_in_words(name, account[name], at) for name in _EVENT_ADDITIONS)


# What `pooler check --ask` has found out, in words of our own: an upstream's could hold anything.


class Asked(NamedTuple):
    """What came of the request for an account's models."""

    level: str  # "error" if the account cannot serve, "warning", or ""
    text: str
    models: Collection[str] | None = None  # that it offers, if that is known

    @property
    def line(self) -> str:
        """What a person is shown."""
        return f"{self.level}: {self.text}" if self.level else self.text


_NO_LIST: Final = 'check base_url, or name its models under "models"'


def asked_of_response(account: Account, models: Collection[str] | None) -> Asked:
    """What a 200 means; `models`: its catalogue, or None if that cannot be read."""
    if models is None:
        level = "error" if account.models is None else "warning"
        return Asked(level, f"its response is no list of models: {_NO_LIST}")

    count = "1 model" if len(models) == 1 else f"{len(models)} models"
    lacking = sorted({*(account.models or {}).values()} - {*models})
    if lacking:
        return Asked(
            "warning",
            f"answers, {count}, but does not list {shown_names(lacking)} of its models",
            account.models,
        )
    shown = [printable(model) for model in sorted(models)]
    names = f": {shown_names(shown)}" if shown else ""
    return Asked("", f"answers, {count}{names}", account.models or models)


def shown_names(names: Sequence[str]) -> str:
    """Names as a list for people, which is never long."""
    shown = ", ".join(names[:MODELS_SHOWN_MAX])
    more = len(names) - MODELS_SHOWN_MAX
    return f"{shown} and {more} more" if more > 0 else shown


def asked_of_fault(
    account: Account, fault: Fault, condition: Condition, login: LoginState
) -> Asked:
    """What a failed request means; `condition`: how the account is after it."""
    is_unlisted = fault.effect in {Effect.LACKS_ROUTE, Effect.FORBIDDEN}
    if is_unlisted and account.models is not None:
        route = "no /models route" if fault.effect is Effect.LACKS_ROUTE else fault.reason
        return Asked("", f'{route} (fine: "models" is set)')
    if fault.effect is Effect.LACKS_ROUTE:
        return Asked("warning", f"no /models route: {_NO_LIST}")
    if fault.effect in LIMIT_EFFECTS:
        return Asked("warning", f"{fault.reason}: at a limit, which ends by itself")

    is_unreached = condition.status is Status.UNREACHABLE
    reason = condition.reason if is_unreached else fault.reason
    if not (is_unreached or reason[:1].isdecimal()):  # how far it came, for the log
        reason = ""
    _, message, _ = ERRORS[fault.error.code]
    about = _ASKED_IN_VAIN.get(fault.error.code, message)
    return Asked(
        "error",
        with_advice(reason, advice_for(account, condition, login, fault.cause) or about),
    )


def asked_of_login(account: Account, condition: Condition, login: LoginState) -> Asked:
    """What it means that an account has no login that can be used."""
    return Asked("error", with_advice(condition.text, advice_for(account, condition, login, None)))


def asked_of_pool(pool: Pool, asked: Mapping[str, Asked]) -> list[str]:
    """Lines about a pool's models that its accounts do not list; `asked`: by account."""
    names = [account.name for account in pool.accounts]
    offers = {name: asked[name].models for name in names if name in asked}
    lines: list[str] = []
    for name, models in offers.items():
        if lacking := _unlisted(pool, models):
            lines.append(f"{name} does not list {lacking}")

    if offers and None not in offers.values():
        offered = set(itertools.chain.from_iterable(filter(None, offers.values())))
        if lacking := _unlisted(pool, offered):
            lines.append(f"warning: no account lists {lacking}")
    return lines


def _unlisted(pool: Pool, models: Collection[str] | None) -> str:
    """The pool's models that are not among these, for people; "" if none, or if it is not known."""
    return shown_names([model for _, model in _lacking(pool.models or (), models)])


# By the code of a fault that is no condition of its account.
_ASKED_IN_VAIN: Final = {
    "no_usable_account": 'it may not list models; check the account, or name them under "models"',
    "upstream_error": "its server failed, or refused the request; check base_url",
    "upstream_invalid_response": "this does not look like its API; check base_url",
    "upstream_unreachable": "it closed the connection without a response",
    "upstream_timeout": f"no complete response within {CONNECT_SECONDS_MAX:g} s",
}


def with_advice(reason: str, advice: str) -> str:
    """A reason, and the advice on it as the rest of the sentence."""
    rest = (advice[:1].lower() + advice[1:]).removesuffix(".")
    return ": ".join(filter(None, [reason, rest]))


################################################################
# CONNECTIONS
################################################################
# == Below this line code may block. ==
# The client's side of one connection: heads and bodies in, bytes out, each wait with its deadline.
# A task, `read_ahead`, reads for as long as the connection lives, so that the client's end is
# noticed at any time: during a call it ends the call.  What arrives early is kept for the next
# request, at most PIPELINED_BYTES_MAX of it.


BROKEN: Final = (trio.BrokenResourceError, trio.ClosedResourceError)  # the peer's end, and ours


class ClientGone(Exception):
    """The client has left or stopped reading: nobody is there to receive an error."""


class PeerClosed(Exception):
    """The peer has closed or reset the connection in the middle of a message."""


class HeadTooLarge(BadSyntax):
    """A message head has more bytes than its limit."""


async def read_socket(source: trio.socket.SocketType) -> bytes:
    """The next bytes, as soon as there are any; b"" at the end.

    A socket that is closed here is not waited for: Trio files waiters by descriptor, which is -1
    then, and would find the next one's place taken (F99).  Raises: OSError, ClosedResourceError.
    """
    while source.fileno() >= 0:
        await trio.lowlevel.wait_readable(source)
        try:
            return os.read(source.fileno(), RECEIVE_BYTES)
        except BlockingIOError:  # a false alarm
            continue
    raise trio.ClosedResourceError


@dataclass(eq=False, slots=True)
class Connection:
    """A stream, and what was received from it and not used yet.

    A plain socket is read by a system call of our own, and written to by one as far as that goes,
    which makes an event much cheaper (F100).
    """

    stream: trio.abc.Stream
    buffer: bytes = b""
    searched: int = 0  # bytes of the buffer that hold no end of a head
    source: Callable[[], Awaitable[bytes]] | None = None  # what has read from the stream already

    async def receive(self) -> bytes:
        """The next bytes; b"" at the end.  Raises: PeerClosed, at a reset or once closed here."""
        if self.source is not None:
            return await self.source()

        stream = self.stream
        try:
            if isinstance(stream, trio.SocketStream):
                return await read_socket(stream.socket)
            return bytes(await stream.receive_some(RECEIVE_BYTES))
        except (*BROKEN, OSError):
            raise PeerClosed from None

    def send_now(self, data: bytes) -> int:
        """Send what goes out without waiting; the number of bytes.  `send_all` raises errors."""
        if not isinstance(self.stream, trio.SocketStream):
            return 0
        try:
            return os.write(self.stream.socket.fileno(), data)
        except OSError:
            return 0

    async def send_all(self, data: bytes, stall_seconds_max: float) -> None:
        """Send all of `data`, however slowly, if every 64 KiB of it go out in time.

        Raises: BrokenResourceError, ClosedResourceError.
        """
        for at in range(self.send_now(data), len(data), RECEIVE_BYTES):
            with trio.move_on_after(stall_seconds_max) as scope:
                await self.stream.send_all(data[at : at + RECEIVE_BYTES])
            if scope.cancelled_caught:
                raise trio.BrokenResourceError

    def holds(self, framing: Framing) -> bool:
        """Whether a whole body is in the buffer."""
        return framing.length is not None and len(self.buffer) >= framing.length

    def take_head(self, bytes_max: int) -> bytes | None:
        """A message head with its blank line; None if it is not complete.

        Raises: BadSyntax, HeadTooLarge.
        """
        end = self.buffer.find(b"\r\n\r\n", max(0, self.searched - 3)) + 4
        if 4 <= end <= bytes_max:
            head, self.buffer, self.searched = self.buffer[:end], self.buffer[end:], 0
            return head

        if end >= 4 or len(self.buffer) >= bytes_max:
            raise HeadTooLarge

        if _BARE_LF.search(self.buffer, self.searched):
            raise BadSyntax("bare LF")

        self.searched = len(self.buffer)
        return None

    async def read_to_blank_line(self, bytes_max: int) -> bytes:
        """A message head with its blank line.  Raises: PeerClosed, BadSyntax, HeadTooLarge."""
        while True:
            head = self.take_head(bytes_max)
            if head is not None:
                return head

            received = await self.receive()
            if not received:
                raise PeerClosed

            self.buffer += received


def check_body_head(head: RequestHead, bytes_max: int) -> None:
    """Refuse a body before it is read.

    Raises: PoolerError (expectation_failed, unsupported_content_encoding, request_too_large).
    """
    if head.headers.get("expect", "").lower() not in {"", "100-continue"}:
        raise PoolerError("expectation_failed")

    if has_coding(head.headers):
        raise PoolerError("unsupported_content_encoding")

    if (head.framing.length or 0) > bytes_max:
        raise PoolerError("request_too_large")


class Idle(Protocol):
    """A connection that the reaper may end."""

    async def expire(self) -> None:
        """End it: it has been idle for too long."""


class Reaper:
    """Ends each connection that is idle for too long, at the moment when it is.

    One task serves all of them: a deadline of its own would cost every request more.
    """

    def __init__(self) -> None:
        self.idle_until: dict[Idle, float] = {}  # trio time
        self.wakes_at = math.inf
        self.changed = trio.Event()

    def watch(self, connection: Idle, until: float) -> None:
        """End the connection then, unless it is forgotten before."""
        self.idle_until[connection] = until
        if until < self.wakes_at:
            self.changed.set()

    def forget(self, connection: Idle) -> None:
        self.idle_until.pop(connection, None)

    async def run(self) -> Never:
        """Run the task."""
        while True:
            self.changed = trio.Event()
            self.wakes_at = min(self.idle_until.values(), default=math.inf)
            with trio.move_on_at(self.wakes_at):
                await self.changed.wait()

            now = trio.current_time()
            for connection in list(self.idle_until):
                if self.idle_until.get(connection, math.inf) <= now:
                    del self.idle_until[connection]
                    await connection.expire()


@dataclass(eq=False, slots=True)
class ClientConnection:
    """One accepted connection, for as many requests as it carries."""

    stream: trio.abc.HalfCloseableStream
    wire: Connection = field(init=False)  # reads what `read_ahead` has read
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)  # of the whole of it
    ahead: bytes = b""  # received by `read_ahead`, and not yet taken by `receive`
    # Whoever waits for `ahead` to grow or to shrink, or for the end.
    waiters: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    is_at_end: bool = False  # the client sends no more
    is_gone: bool = False  # the client can get no response any more
    is_first: bool = True  # no request has come yet
    is_in_call: bool = False  # an account works for it, and must not once the client is gone
    is_busy: bool = False  # with a call, from the body on, or as a WebSocket
    caller: Hashable = None  # the key that it has presented last

    def __post_init__(self) -> None:
        self.wire = Connection(self.stream, source=self.receive)

    async def read_ahead(self) -> None:
        """Receive until the client's end, before anybody asks for it, within bounds."""
        connection = Connection(self.stream)
        with contextlib.suppress(PeerClosed):
            while received := await connection.receive():
                self.ahead += received
                del received  # a stream lives long, and there may be a thousand
                self.note_change()
                while len(self.ahead) >= PIPELINED_BYTES_MAX and not self.is_in_call:
                    await self.wait_change()
                if len(self.ahead) > PIPELINED_BYTES_MAX:
                    break

        self.is_at_end = True
        self.note_change()
        self.check_presence()

    def enter_call(self, is_in_call: bool) -> None:
        """Begin or end the time in which an account works for the client."""
        self.is_in_call = is_in_call
        self.note_change()
        self.check_presence()

    def check_presence(self) -> None:
        """End the connection if a call is in progress and its client has left, or sends too much.

        Called whenever one of these may have changed.
        """
        if self.is_in_call and (self.is_at_end or len(self.ahead) > PIPELINED_BYTES_MAX):
            self.is_gone = True
            self.scope.cancel()

    async def receive(self) -> bytes:
        """The next bytes, from `read_ahead`; b"" at the end."""
        while not (self.ahead or self.is_at_end):
            await self.wait_change()
        received, self.ahead = self.ahead, b""
        self.note_change()
        return received

    def note_change(self) -> None:
        if self.waiters:
            self.waiters.unpark_all()

    async def wait_change(self) -> None:
        await self.waiters.park()

    async def expire(self) -> None:
        self.scope.cancel()

    async def read_head(self, reaper: Reaper) -> bytes | None:
        """The next request head with its blank line; None if the client sends no more.

        Raises: PoolerError (head_too_large, bad_request, request_timeout).
        """
        wait = HEAD_SECONDS_MAX if self.is_first else KEEP_ALIVE_SECONDS_MAX
        self.is_first = False
        try:
            if self.wire.buffer:
                await trio.lowlevel.checkpoint()  # others take turns with pipelined requests
            else:
                reaper.watch(self, trio.current_time() + wait)
                self.wire.buffer = await self.receive()
                reaper.forget(self)

            if not self.wire.buffer:
                return None

            # Nearly always the head is complete, and a deadline is not worth its cost.
            head = self.wire.take_head(HEAD_BYTES_MAX)
            if head is not None:
                return head

            with trio.move_on_after(HEAD_SECONDS_MAX):
                return await self.wire.read_to_blank_line(HEAD_BYTES_MAX)
        except PeerClosed:
            self.is_gone = True
            return None
        except HeadTooLarge:
            raise PoolerError("head_too_large") from None
        except BadSyntax:
            raise PoolerError("bad_request") from None

        raise PoolerError("request_timeout")

    async def read_body(self, head: RequestHead, limits: Limits, held: HeldBytes) -> bytes:
        """The whole body, without its chunked framing; its bytes are `held` for the sender.

        The caller bounds the time of the whole, and holds the bytes no longer than the body.

        Raises: ClientGone; PoolerError (request_too_large, request_timeout, pool_busy, bad_request,
        unsupported_content_encoding, expectation_failed).
        """
        check_body_head(head, limits.body_bytes_max)
        if head.headers.get("expect") and not head.is_http_1_0 and not self.wire.buffer:
            await self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

        body = bytearray()  # one block that grows: freed pieces would leave holes in the heap
        reader = body_reader(head.framing)
        while not reader.is_done:
            piece = await self._read_piece(reader)
            if len(body) + len(piece) > limits.body_bytes_max:
                raise PoolerError("request_too_large")

            held.grow(len(piece))
            body += piece
        return bytes(body)

    async def _read_piece(self, reader: BodyReader) -> bytes:
        """Some bytes of the body, maybe none.  Raises: ClientGone, PoolerError."""
        if reader.has_more:
            await trio.lowlevel.checkpoint()  # others run between two steps
        elif not self.wire.buffer:
            with trio.move_on_after(BODY_IDLE_SECONDS_MAX) as scope:
                self.wire.buffer = await self.receive()
            if scope.cancelled_caught:
                raise PoolerError("request_timeout")

            if not self.wire.buffer:
                self.is_gone = True
                raise ClientGone

        received, self.wire.buffer = self.wire.buffer, b""
        try:
            piece = reader.feed(received)
        except BadSyntax:
            raise PoolerError("bad_request", "The chunked framing is malformed.") from None
        if reader.is_done:
            self.wire.buffer = reader.unread
        return piece

    async def send(self, data: bytes) -> None:
        """Send all of `data`.  Raises: ClientGone."""
        try:
            await self.wire.send_all(data, WRITE_STALL_SECONDS_MAX)
        except BROKEN:
            self.is_gone = True
            raise ClientGone from None

    async def linger(self, seconds_max: float = LINGER_SECONDS_MAX) -> None:
        """Half-close and keep reading briefly.

        Otherwise a reset could destroy our response before the client reads it.
        """
        byte_count = 0
        with trio.move_on_after(seconds_max), contextlib.suppress(*BROKEN):
            await self.stream.send_eof()
            while byte_count <= LINGER_BYTES_MAX:
                received = await self.receive()
                if not received:
                    return

                byte_count += len(received)


################################################################
# FILES
################################################################
# Files are read and written in threads, with a deadline, and only if they are regular files.  What
# the pooler itself has left behind is used only if nobody else could have written it.  A login is
# replaced so that a crash at any moment leaves the old version or the new one, on the disk: write
# next to it, fsync, rename, fsync the folder.


def make_folder(folder: Path) -> None:
    """Create a folder for logins and those above it, if required.  Raises: OSError.

    Nobody else can read what is in them.  They get the owner of the folder that they are made in:
    run by root, the pooler must not lock the owner out.
    """
    if folder.is_dir():
        return

    make_folder(folder.parent)
    folder.mkdir(0o700, exist_ok=True)
    if os.geteuid() == 0:
        give_folder(folder)


def give_folder(folder: Path) -> None:
    """Give a folder that root has just made to the owner of the one above.  Raises: OSError.

    That owner may have put another file of root's in its place: only an empty folder is given.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        above = folder.parent.stat()
        if not os.listdir(descriptor):
            os.fchown(descriptor, above.st_uid, above.st_gid)
    finally:
        os.close(descriptor)


def new_file(path: Path) -> Path:
    """The temporary name used while replacing `path`.

    It is fixed, so that after a crash the next process finds what was left there.
    """
    return path.with_name(f".{path.name}.new")


def room_file(path: Path) -> Path:
    """The file that reserves disk space for a new version of `path`."""
    return path.with_name(f".{path.name}.room")


def read_file(path: Path, bytes_max: int = SECRET_FILE_BYTES_MAX) -> bytes:
    """The first `bytes_max` bytes of a regular file; a FIFO would block.  Raises: OSError."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        with os.fdopen(descriptor, "rb") as file:
            return file.read(bytes_max)

    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a regular file")


class Files:
    """Runs functions that read or write files, in a few threads and with a deadline.

    A disk may not respond at all, and the event loop must not wait for it.  The threads are not
    those of Trio's own limiter, so that dead disks do not stop name resolution.
    """

    def __init__(self) -> None:
        self.limiter = trio.CapacityLimiter(FILE_THREADS_MAX)

    async def run(
        self,
        seconds_max: float,
        call: Callable[[*Ts], T],
        *args: *Ts,
    ) -> T:
        """The result of `call(*args)`.  Raises: OSError, also if it takes too long.

        A thread cannot be cancelled: after the deadline it goes on by itself.
        """
        with trio.move_on_after(seconds_max):
            return await trio.to_thread.run_sync(
                call,
                *args,
                abandon_on_cancel=True,
                limiter=self.limiter,
            )
        raise OSError(errno.ETIMEDOUT, "the disk did not respond in time")


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk.  Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_NO_FOLDER_SYNC: Final = {
    errno.EINVAL,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
}


def sync_folder(path: Path) -> None:
    """As `sync`; if the file system cannot sync folders, there is nothing to wait for (F101)."""
    try:
        sync(path)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def write_new(path: Path, raw: bytes, owner: os.stat_result | None) -> None:
    """Write a new file that nobody else can have open or read.  Raises: OSError.

    It gets the owner of the file that it will replace: run by root, the pooler must not lock the
    owner out of a login.  If that is the pooler's own user, no call is made: a service manager may
    end a process for it (F107).
    """
    path.unlink(missing_ok=True)  # it may be another user's, or a link
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        if owner is not None and owner.st_uid != os.geteuid():
            with contextlib.suppress(OSError):  # only root may do this
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        file.write(raw)


def make_room(path: Path, byte_count: int) -> None:
    """Make sure that `byte_count` bytes can be saved as `path`.  Raises: OSError.

    The caller holds the lock of `path`.  The space stays reserved until `drop_room` or `save_over`.
    """
    room = room_file(path)
    try:
        write_new(room, os.urandom(byte_count), None)  # a file system may not store zeros
        sync(room)
        sync_folder(path.parent)
    except OSError:
        drop_room(path)
        raise


def drop_room(path: Path) -> None:
    """Release the disk space that `make_room` has reserved."""
    with contextlib.suppress(OSError):
        room_file(path).unlink()


def heir_of(path: Path) -> os.stat_result:
    """The state of the file or folder whose owner gets what replaces `path`.  Raises: OSError.

    It is the file's own, but not where others may make files, as in /tmp or in a group's folder:
    whoever had put one there first would be given the login by root.
    """
    folder = path.parent.stat()
    is_shared = folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return folder if is_shared else path.stat()


def save_over(path: Path, raw: bytes, expected: bytes | None) -> None:
    """Save a login in the space that was reserved for it; `expected`: see `save_file`.

    Its tokens cannot be had again, and a command that ends has only this chance: an error that
    passes must not lose them.  Raises: OSError.
    """
    drop_room(path)
    for tries_left in reversed(range(SAVE_TRIES_MAX)):
        try:
            save_file(path, raw, expected, path.parent.stat())
        except OSError:
            if not tries_left:
                raise
        else:
            return
        time.sleep(SAVE_PAUSE_SECONDS)


def save_file(
    path: Path,
    raw: bytes,
    expected: bytes | None = None,
    owner: os.stat_result | None = None,
) -> None:
    """Replace a file atomically; it is on the disk when this returns.  Raises: OSError.

    A file that does not hold `expected`, if that is given, stays: it is somebody else's newer
    login.  Syncing may take long, so this is checked last: only between it and the rename could a
    program that takes no lock (F56) lose what it writes.  `owner`: of a file that is not there yet.
    """
    new_path = new_file(path)
    # A process that was killed may have left just this, and it may be the only copy there is.
    is_leftover = False
    with contextlib.suppress(OSError):
        is_leftover = new_path.lstat().st_mode == stat.S_IFREG | 0o600 and read_own(new_path) == raw

    if not is_leftover:
        with contextlib.suppress(OSError):
            owner = heir_of(path)
        write_new(new_path, raw, owner)

    sync(new_path)
    if expected is not None:
        with contextlib.suppress(FileNotFoundError):
            if read_file(path) not in (expected, raw):
                new_path.unlink()
                return

    os.rename(new_path, path)
    sync_folder(path.parent)


def is_ours(state: os.stat_result) -> bool:
    """Whether a file belongs to the pooler's user, and nobody else may write to it."""
    return state.st_uid == os.geteuid() and not state.st_mode & 0o022


def read_own(path: Path, bytes_max: int = SECRET_FILE_BYTES_MAX) -> bytes:
    """The content of a file that an earlier process of the pooler has written.

    Raises: OSError; also for a link, and for a file that another user owns, which may be a trap.
    """
    state = path.lstat()
    if not (stat.S_ISREG(state.st_mode) and is_ours(state)):
        raise OSError(errno.EPERM, "it belongs to another user")
    return read_file(path, bytes_max)


################################################################
# LOG
################################################################
# One line on standard error for each event: of JSON, or on a terminal in words.  Its reader may be
# slow or gone, and requests never wait for it: a thread writes the lines, and those that it cannot
# write in time are counted.  A full pipe, or a terminal after Ctrl-S, would otherwise stop all
# streams, as the only loop would wait for the reader of a log.

Log = Callable[[str, str, JsonObject], None]  # level, event, further fields
LineForm = Callable[[str, str, JsonObject], str]  # the same as a line, with its end

# Created once; nothing that is logged refers to itself.
_encode: Final = json.JSONEncoder(check_circular=False).encode


def print_log(level: str, event: str, fields: JsonObject) -> None:
    """Write a line at once, for commands that do not serve.

    What cannot be written is lost: a command must not fail because nobody reads what it logs.
    """
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:  # it is if descriptor 2 was closed at the start
            sys.stderr.write(format_log_line(level, event, fields))


def takes_colours(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal that shows colours, to somebody who wants them."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream is not None and stream.isatty()


@functools.lru_cache(maxsize=2)  # of log lines, and of Date headers
def format_utc(pattern: str, unix_seconds: int) -> str:
    """A time in one of two forms, which costs something only once a second."""
    return time.strftime(pattern, time.gmtime(unix_seconds))


def format_log_line(level: str, event: str, fields: JsonObject) -> str:
    """One line of ASCII JSON, with the time (UTC) and a line end.

    Control characters and line separators are escaped, so no value can forge a second line.
    """
    seconds, milliseconds = divmod(time.time_ns() // 1_000_000, 1000)
    now = format_utc("%Y-%m-%dT%H:%M:%S", seconds)
    line = {"at": f"{now}.{milliseconds:03}+00:00", "level": level, "event": event, **fields}
    return _encode(line) + "\n"


class TerminalForm:
    """Forms lines in words, with the local time: a `LineForm`.

    An account's condition that the introduction has shown is left out when it is logged, too.
    """

    def __init__(self) -> None:
        self.introduced: dict[str, str] = {}  # by account: its status

    def __call__(self, level: str, event: str, fields: JsonObject) -> str:
        """One line, or "" if it would repeat the introduction."""
        if event == "account" and self.introduced.pop(fields["account"], "") == fields["status"]:
            return ""

        columns = LINE_COLUMNS
        with contextlib.suppress(OSError):  # standard error is not a terminal
            columns = os.get_terminal_size(STDERR).columns or columns
        now = datetime.now().astimezone()
        is_coloured = takes_colours(sys.stderr)
        line = event_line(level, event, fields, now, is_coloured=is_coloured, columns=columns)
        return f"\n{line}\n" if event == "draining" else f"{line}\n"  # the terminal shows ^C first

    def introduce(self, shown: JsonObject, urls: Sequence[str]) -> str:
        """What a server is that has started, and how to stop and reload it, in several lines."""
        self.introduced = {account["name"]: account["status"] for account in shown["accounts"]}
        now = datetime.now().astimezone()
        lines = introduction(shown, urls, now, takes_colours(sys.stderr))
        how = f"  Ctrl-C stops it; kill -HUP {os.getpid()} reads pools.json again"
        return "\n".join(["", *lines, how, "", ""])


class LogWriter:
    """Writes log lines to standard error in a thread of its own: requests wait for no reader.

    Lines that find no space, in the queue or on standard error, are dropped and counted; one line
    reports how many as soon as one can be written.  As a context manager it writes the remaining
    lines at the end, for a short while.
    """

    def __init__(self, form: LineForm = format_log_line) -> None:
        self.form = form
        self.lines: deque[str] = deque()  # at most LOG_LINES_MAX
        self.dropped_count = 0
        self.reported_count = 0  # of dropped lines, in the batch that is being written
        self.byte_count = 0  # written so far
        self.is_torn = False  # the last line was written in part
        self.is_failing = False  # the latest attempt has written nothing
        self.is_closed = False
        self.changed = threading.Condition()
        self.closing = threading.Event()  # ends the wait for further lines
        self.thread = threading.Thread(
            target=self.write_all,
            name="log",
            daemon=True,
        )

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self.changed:
            self.is_closed = True
            self.changed.notify()
        self.closing.set()

        # A slow reader gets all lines, as long as it takes some; one that is gone delays the end
        # only once.
        until = time.monotonic() + LOG_END_SECONDS_MAX
        before = -1
        while before != self.byte_count and time.monotonic() < until:
            before = self.byte_count
            self.thread.join(LOG_SECONDS_MAX)

    def __call__(self, level: str, event: str, fields: JsonObject) -> None:
        """Queue one line: the class is a `Log`."""
        line = self.form(level, event, fields)
        if line:
            self.put(line)

    def put(self, line: str) -> None:
        """Queue one line, or several in one text."""
        with self.changed:
            if len(self.lines) < LOG_LINES_MAX:
                self.lines.append(line)
                self.changed.notify()
            else:
                self.dropped_count += 1

    def write_all(self) -> None:
        """Run the thread: write batches until the queue is closed and empty."""
        while lines := self.take_some():
            encoding = sys.stderr.encoding if sys.stderr else "ascii"
            lost_count = self.write("".join(lines).encode(encoding, "backslashreplace"))
            with self.changed:
                self.is_failing = lost_count > 0
                # The last line of the batch was lost, and it reported others.
                if lost_count and self.reported_count:
                    lost_count += self.reported_count - 1
                self.dropped_count += lost_count
                self.reported_count = 0

    def write(self, raw: bytes) -> int:
        """Write whole lines; returns how many standard error did not take: it is closed or full."""
        line_count = raw.count(b"\n")
        if self.is_torn:
            raw = b"\n" + raw

        try:
            while raw:
                written_count = self.write_some(raw)
                self.byte_count += written_count
                if written_count:
                    self.is_torn = raw[written_count - 1] != ord("\n")
                raw = raw[written_count:]
        except OSError:  # this must not end the thread
            return min(raw.count(b"\n"), line_count)
        return 0

    def write_some(self, raw: bytes) -> int:
        """Write some bytes, as soon as standard error takes any; returns how many.

        Raises: OSError.
        """
        while True:
            try:
                return os.write(STDERR, raw[:LOG_WRITE_BYTES])
            except BlockingIOError:  # another process that shares it has made it non-blocking
                select.select((), (STDERR,), ())

    def take_some(self) -> list[str]:
        """The next lines, as soon as there are any; none at the end.

        The last one reports how many were dropped, unless nothing else is there to be written and
        writing has just failed.
        """
        with self.changed:
            while not (self.lines or self.is_closed):
                self.changed.wait()
            is_full = len(self.lines) >= LOG_BATCH_LINES

        # Each time that this thread wakes up it takes the interpreter from the event loop: seven
        # system calls a request.  So lines are gathered before they are written.
        if not is_full:
            self.closing.wait(LOG_GATHER_SECONDS)

        with self.changed:
            count = min(len(self.lines), LOG_BATCH_LINES)
            batch = [self.lines.popleft() for _ in range(count)]
            if self.dropped_count and (batch or not self.is_failing):
                self.reported_count = self.dropped_count
                fields = {"problem": "nobody read the log in time", "lines": self.dropped_count}
                batch.append(self.form("warning", "log lines dropped", fields))
                self.dropped_count = 0
            return batch


class AcceptLog(logging.Handler):
    """Logs once a minute that no connection can be accepted; Trio does so ten times a second."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self.log = log
        self.logged_at = -math.inf

    def emit(self, record: logging.LogRecord) -> None:
        """Handle a record of `trio.serve_listeners`."""
        now = time.monotonic()
        if now - self.logged_at >= ACCEPT_LOG_SECONDS:
            self.logged_at = now
            error = record.exc_info[1] if record.exc_info else None
            reason = getattr(error, "strerror", None) or "unknown"
            self.log("error", "accept", {"problem": f"no connection can be accepted: {reason}"})


################################################################
# UPSTREAM
################################################################
# One connection carries one exchange at a time.  Heads are written by hand and read as
# strictly as a client's.  No redirect is followed, identity encoding is asked for.  A response may
# come before the end of its request; a connection on which more has come is not used again.


class DeadlinePassed(Exception):
    """A wait for the upstream took too long; `Deadline.timer` says which one."""


@dataclass(eq=False)
class ConnectFailed(Exception):
    """No connection to an upstream could be made."""

    cause: Cause


TRANSPORT_ERRORS: Final = (
    OSError, trio.BrokenResourceError, PeerClosed, BadSyntax, DeadlinePassed, ConnectFailed
)  # fmt: skip

Dial = Callable[[BaseUrl, ssl.SSLContext | None], Awaitable[trio.abc.Stream]]
TlsContexts = Mapping[str | None, ssl.SSLContext]  # by `ca_file`; None: the system's authorities


class TlsStream(trio.abc.Stream):
    """The client's side of TLS on a socket; reading and writing do not depend on each other.

    trio.SSLStream would give nothing more to read after a send that failed or was cancelled, and
    does not show what it buffers.  Here OpenSSL works in memory, and each call takes all that was
    received.  As usual with HTTPS no close_notify is sent or waited for: the framing of a response
    shows if it was cut.
    """

    def __init__(self, stream: trio.SocketStream, context: ssl.SSLContext, host: str) -> None:
        self.stream = stream
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=host)
        self.unsent = b""  # encrypted, and not taken by the socket yet
        self.is_at_end = False
        self.is_broken = False  # something came that is no TLS: no more can be read or written
        self._record_left = 0  # bytes of the record that is not whole yet
        self._record_head = b""  # less than one
        self._reply_bytes = 0  # of `unsent`, at most

    @property
    def holds_more(self) -> bool:
        """Whether an end has come, or a part of a record, after what was received."""
        is_over = self.is_at_end or self.is_broken
        return is_over or bool(self._record_left or self._record_head)

    async def do_handshake(self) -> None:
        """Greet the peer and check its certificate and name.

        ssl.SSLError, of which a bad certificate is one kind, is an OSError.
        Raises: OSError, BrokenResourceError.
        """
        while not self.is_at_end:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.send_all(b"")
                await self._fill()
            else:
                return await self.send_all(b"")
        raise trio.BrokenResourceError

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """All that comes next, whatever `max_bytes`: little more than one receive holds.

        Raises: OSError, BrokenResourceError, ClosedResourceError.
        """
        while not (received := self._decrypt()) and not self.is_at_end:
            await self._fill()
        return received

    def _decrypt(self) -> bytes:
        """All that has come, decrypted; b"" if no record is whole, or at the end.

        Bytes in front of a broken record are given first: they were authentic.
        Raises: BrokenResourceError.
        """
        pieces = []
        try:
            while piece := self.tls.read(RECEIVE_BYTES):
                pieces.append(piece)
            self.is_at_end = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self.is_broken = True
            if not pieces:  # else it is raised again
                raise trio.BrokenResourceError from None
        if self.outgoing.pending:
            self._reply()
        return b"".join(pieces)

    def _reply(self) -> None:
        """Send what OpenSSL answers by itself, to new keys (RFC 8446 §4.6.3).

        A peer could ask for responses and read none.  Raises: BrokenResourceError.
        """
        self._reply_bytes += self.outgoing.pending
        self.send_now(b"")
        self._reply_bytes = min(self._reply_bytes, len(self.unsent))
        if self._reply_bytes > RECEIVE_BYTES:
            raise trio.BrokenResourceError

    async def _fill(self) -> None:
        """Wait for bytes of the socket, and note how far the last record has come.

        Raises: OSError, ClosedResourceError.
        """
        received = await read_socket(self.stream.socket)
        self.is_at_end = not received
        self.incoming.write(received)

        # OpenSSL does not show what it buffers of an incomplete record, so the lengths are read
        # here: the last two of the five bytes in front of each (RFC 8446 §5.1).
        data = self._record_head + received
        at = self._record_left
        while at + 5 <= len(data):
            at += 5 + int.from_bytes(data[at + 3 : at + 5], "big")
        self._record_left, self._record_head = max(0, at - len(data)), data[at:]

    def send_now(self, data: bytes) -> bool:
        """Encrypt `data`, send what goes out without waiting, and return whether all was sent.

        `send_all` sends the rest, and raises the errors.
        """
        self._encrypt(data)
        try:
            self._write()
        except OSError:
            return False
        return not self.unsent

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send what is left from earlier calls, cancelled ones included, and then `data`.

        Raises: BrokenResourceError, also if it is closed here.
        """
        await trio.lowlevel.checkpoint()
        try:
            self._encrypt(data)
            while True:
                with contextlib.suppress(BlockingIOError):
                    self._write()
                if not self.unsent:
                    return
                await trio.lowlevel.wait_writable(self.stream.socket)
        except (OSError, trio.ClosedResourceError):
            raise trio.BrokenResourceError from None

    def _encrypt(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data` to `unsent`, behind what OpenSSL sends of its own accord."""
        if data:
            self.tls.write(data)
        self.unsent += self.outgoing.read()

    def _write(self) -> None:
        """Send as much of `unsent` as the socket takes now.  Raises: OSError (BlockingIOError)."""
        if self.unsent:
            self.unsent = self.unsent[os.write(self.stream.socket.fileno(), self.unsent) :]

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.stream.aclose()


async def dial(url: BaseUrl, tls: ssl.SSLContext | None) -> trio.abc.Stream:
    """A connection to `url`, the name resolved again.  Raises: OSError, BrokenResourceError."""
    stream = await trio.open_tcp_stream(url.host, url.port)
    return stream if tls is None else await secured(stream, tls, url.host)


async def secured(stream: trio.SocketStream, tls: ssl.SSLContext, host: str) -> TlsStream:
    """`stream` with TLS; it is closed if that fails.  Raises: OSError, BrokenResourceError."""
    try:
        secure = TlsStream(stream, tls, host)
        await secure.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return secure


# By the number of a system's error; of several addresses the cause that stands first here.
_CAUSE_OF_ERRNO: Final[Mapping[int | None, Cause]] = {
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), Cause.NO_DESCRIPTOR),
    errno.ECONNREFUSED: Cause.REFUSED,
    errno.ETIMEDOUT: Cause.TIMED_OUT,
    **dict.fromkeys((errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE), Cause.CLOSED),
    **dict.fromkeys((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN), Cause.UNREACHABLE),
    **dict.fromkeys((errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM), Cause.UNREACHABLE),
}
_CAUSES_IN_ORDER: Final = list(dict.fromkeys(_CAUSE_OF_ERRNO.values()))
# By OpenSSL's number (X509_V_ERR_...).
_CAUSE_OF_VERIFYING: Final[Mapping[int, Cause]] = {
    **dict.fromkeys((9, 10), Cause.OUT_OF_DATE),
    **dict.fromkeys((62, 64), Cause.OTHER_NAME),
}
_CAUSE_AT_PROXY: Final[Mapping[Cause, Cause]] = {
    Cause.NAME: Cause.PROXY_NAME,
    Cause.TIMED_OUT: Cause.PROXY_TIMED_OUT,
    Cause.NO_DESCRIPTOR: Cause.NO_DESCRIPTOR,
}


def cause_of(error: BaseException) -> Cause:
    """Why no connection was made, by the exception that was raised.

    The log gets this word instead of the exception's text, which may hold a proxy's address or
    what an upstream sent.
    """
    if isinstance(error, ConnectFailed):
        return error.cause
    if isinstance(error, socket.gaierror):
        return Cause.NAME
    if isinstance(error, ssl.SSLCertVerificationError):
        return _CAUSE_OF_VERIFYING.get(error.verify_code, Cause.NOT_TRUSTED)
    if isinstance(error, ssl.SSLError) or not isinstance(error, OSError):
        return Cause.TLS
    if isinstance(error.__cause__, ExceptionGroup):  # Trio's: one for each address
        causes = [cause_of(failure) for failure in error.__cause__.exceptions]
        return min(causes, key=_CAUSES_IN_ORDER.index, default=Cause.UNREACHABLE)
    return _CAUSE_OF_ERRNO.get(error.errno, Cause.UNREACHABLE)


async def connect(
    dial: Dial,
    url: BaseUrl,
    tls: ssl.SSLContext | None,
    proxy: Proxy | None,
) -> trio.abc.Stream:
    """A connection to `url`, in time, and through the proxy if there is one.

    Through a proxy TLS begins in the tunnel, so that the proxy sees neither key nor request.
    Raises: ConnectFailed.
    """
    is_at_proxy, cause = proxy is not None, Cause.TIMED_OUT
    try:
        with trio.move_on_after(CONNECT_SECONDS_MAX):
            if proxy is None:
                return await dial(url, tls)

            stream = await dial(proxy.url, None)
            is_at_proxy = False
            await open_tunnel(stream, url, proxy)

            if tls is None:
                return stream
            assert isinstance(stream, trio.SocketStream)
            return await secured(stream, tls, url.host)
    except TRANSPORT_ERRORS as error:
        cause = cause_of(error)

    raise ConnectFailed(
        _CAUSE_AT_PROXY.get(cause, Cause.PROXY_UNREACHABLE) if is_at_proxy else cause,
    )


async def open_tunnel(stream: trio.abc.Stream, url: BaseUrl, proxy: Proxy) -> None:
    """Have the proxy connect `stream` with `url` (RFC 9110 §9.3.6); it is closed if it does not.

    Raises: ConnectFailed.
    """
    fields = [("Host", url.address)]
    if proxy.login is not None:
        login = base64.b64encode(reveal(proxy.login).encode()).decode()
        fields.append(("Proxy-Authorization", f"Basic {login}"))
    head = format_head(f"CONNECT {url.address} HTTP/1.1\r\n", fields)

    cause: Cause | None = Cause.PROXY_CLOSED
    try:
        await stream.send_all(head)
        cause = await read_consent(Connection(stream))
    except (trio.BrokenResourceError, PeerClosed):
        pass
    except BadSyntax:
        cause = Cause.PROXY_RESPONSE
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise

    if cause is not None:
        await trio.aclose_forcefully(stream)
        raise ConnectFailed(cause)


async def read_consent(connection: Connection) -> Cause | None:
    """Read a proxy's response to CONNECT: None, or why there is no tunnel.

    A tunnel begins with its head: what comes before we have said anything is not the upstream's.
    Raises: PeerClosed, BadSyntax.
    """
    for _ in range(UPSTREAM_INTERIM_MAX + 1):
        raw = await connection.read_to_blank_line(UPSTREAM_HEAD_BYTES_MAX)
        status = parse_response_head(raw).status
        if status >= 200:
            break
    else:
        raise BadSyntax("too many interim responses")
    if status < 300:
        return Cause.PROXY_RESPONSE if connection.buffer else None
    if status == 407:
        return Cause.PROXY_LOGIN
    return Cause.PROXY_FAILED if status >= 500 else Cause.PROXY_REFUSED


def make_tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """The system's trust store and, if given, the authorities of `ca_file`.

    Raises: OSError, ssl.SSLError, ValueError, if that is not a readable PEM file.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # or a write might have to wait for a read
    # Not DHE: the server chooses its modulus, and a large one blocks the loop for a second (F102).
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES:!aNULL:!eNULL:!SHA1:!AESCCM")
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is not None:
        context.load_verify_locations(
            cadata=read_file(ca_file, CA_BYTES_MAX).decode("ascii", "ignore"),
        )
    return context


def in_steps(head: bytes, body: bytes) -> Iterator[bytes]:
    """A request in pieces of one write each; the first is the head and the start of the body.

    The stall limit is for each of them: a large body may take long if it keeps moving.
    """
    yield head + body[:RECEIVE_BYTES]
    for at in range(RECEIVE_BYTES, len(body), RECEIVE_BYTES):
        yield body[at : at + RECEIVE_BYTES]


NO_RESPONSE: Final = ResponseHead(0, NO_FIELDS, NO_BODY, keeps_alive=False)


@dataclass(eq=False, slots=True)
class UpstreamConnection:
    """One connection to an upstream.  Whoever holds it closes it or gives it back.

    An exchange is `begin`, `send_rest` if that leaves anything, `read_head`, and `receive_body`
    until it returns b"".
    """

    stream: trio.abc.Stream
    wire: Connection = field(init=False)
    head: ResponseHead = NO_RESPONSE
    reader: BodyReader = field(default_factory=lambda: LengthReader(None))
    is_at_end: bool = False
    kept: deque[UpstreamConnection] | None = None  # where it waited for this exchange
    is_cut: bool = False  # the request was not sent whole
    is_large: bool = False  # it has more than one step
    interim_count: int = 0  # responses with a status 1xx of this exchange
    is_malformed: bool = False  # something came in the place of a head

    def __post_init__(self) -> None:
        self.wire = Connection(self.stream)

    @property
    def is_reusable(self) -> bool:
        """Whether the response is complete, and nothing more has come.

        A large request that was refused may never be read to its end, though the system has taken
        all of it: the next one would wait behind it.
        """
        # Bytes in the buffer would be read as the beginning of the next response.
        is_clean = not (
            self.wire.buffer or self.is_cut or (self.is_large and self.head.status >= 300)
        )
        if isinstance(self.stream, TlsStream):
            is_clean &= not self.stream.holds_more
        return self.is_at_end and self.head.keeps_alive and is_clean

    def probe(self) -> bool:
        """Read what may have come since the last response; whether nothing has, as it should be.

        An end, or bytes that nobody asked for, make the connection unusable.
        """
        stream = self.stream
        if isinstance(stream, TlsStream):
            stream = stream.stream
        if not isinstance(stream, trio.SocketStream):
            return True
        try:
            os.read(stream.socket.fileno(), 1)  # any result but EAGAIN: the connection is unusable
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def begin(self, head: bytes, body: bytes) -> Iterator[bytes] | None:
        """Begin an exchange: send as much of the request as goes out at once.

        Most requests are sent by this alone, without a nursery for an early response.
        Returns the pieces that `send_rest` must send; None if all has been sent.
        """
        self.is_at_end = False  # so that it is not kept before its response is whole
        self.head, self.interim_count = NO_RESPONSE, 0
        self.is_large = len(body) > RECEIVE_BYTES
        steps = in_steps(head, body)
        for step in itertools.islice(steps, STEPS_AT_ONCE_MAX):
            if isinstance(self.stream, TlsStream):
                is_out, unsent = self.stream.send_now(step), b""  # it keeps the rest itself
            else:
                unsent = step[self.wire.send_now(step) :]
                is_out = not unsent
            if not is_out:
                return itertools.chain([unsent], steps)
        return steps if len(body) > STEPS_AT_ONCE_MAX * RECEIVE_BYTES else None

    async def send_rest(self, steps: Iterable[bytes]) -> None:
        """Send what `begin` has left of a request, while its response may already arrive.

        A response that is not a success ends the sending: the rest of the request is of no use.
        If the upstream hangs up, its response may already be here, and says why.
        Raises: BrokenResourceError, BadSyntax, DeadlinePassed, if the request was not sent whole
        and no response came.
        """
        self.is_cut = True  # until it is out

        failure: type[Exception] = trio.BrokenResourceError
        async with trio.open_nursery() as nursery:  # holds: the reader of the response's head
            sending, reading_seconds = trio.CancelScope(), 0.0
            nursery.start_soon(self.read_early, sending)

            try:
                with sending:
                    for step in steps:
                        with trio.fail_after(WRITE_STALL_SECONDS_MAX):
                            await self.stream.send_all(step)
                    self.is_cut = False
            except trio.TooSlowError:
                failure = DeadlinePassed
            except BROKEN:
                reading_seconds = EARLY_RESPONSE_SECONDS_MAX

            nursery.cancel_scope.deadline = trio.current_time() + reading_seconds

        if self.is_cut and self.head is NO_RESPONSE:
            raise BadSyntax if self.is_malformed else failure

    async def read_early(self, sending: trio.CancelScope) -> None:
        """Read the response's head, and end the sending if it has become useless."""
        try:
            # An upstream may begin a success early, and still need the rest of the request.
            is_useless = (await self.read_head()).status >= 300
        except PeerClosed:
            is_useless = True
        except BadSyntax:
            is_useless = self.is_malformed = True
        if is_useless:
            sending.cancel()

    async def read_head(self) -> ResponseHead:
        """The final response head, which may have been read early; interim ones are skipped.

        Raises: PeerClosed, BadSyntax.
        """
        if self.is_malformed:
            raise BadSyntax("malformed before")

        while self.head is NO_RESPONSE:
            raw = await self.wire.read_to_blank_line(UPSTREAM_HEAD_BYTES_MAX)
            head = parse_response_head(raw)
            if head.status >= 200:
                self.head = head
                self.reader = body_reader(head.framing, is_of_upstream=True)
            elif head.status == 101:  # then HTTP would be over (RFC 9110 §15.2.2)
                raise BadSyntax("unasked 101")
            elif self.interim_count >= UPSTREAM_INTERIM_MAX:
                raise BadSyntax("too many interim responses")
            self.interim_count += 1
        return self.head

    async def receive_body(self) -> bytes:
        """The next body bytes, framing taken off; b"" at its end.

        A body without a length ends with the connection (RFC 9112 §6.3); any other that does is
        cut, and so is never taken for a whole one.
        Raises: PeerClosed, BadSyntax.
        """
        while not self.reader.is_done:
            received = b""
            if self.reader.has_more:
                await trio.lowlevel.checkpoint()  # others run between two steps
            else:
                received, self.wire.buffer = self.wire.buffer or await self.wire.receive(), b""

            if not (received or self.reader.has_more):
                if self.head.framing != UNTIL_CLOSE:
                    raise PeerClosed
                break
            if piece := self.reader.feed(received):
                return piece
        self.is_at_end = True
        self.wire.buffer = (
            self.wire.buffer or self.reader.unread
        )  # the first one, if there was no body
        return b""

    async def read_body(self, bytes_max: int, held: HeldBytes | None = None) -> bytes:
        """The whole body; its bytes are `held`, if that is given.

        Raises: PeerClosed; BadSyntax, also if it is too large; PoolerError (pool_busy).
        """
        body = bytearray()  # one block that grows: freed pieces would leave holes in the heap
        while piece := await self.receive_body():
            if len(body) + len(piece) > bytes_max:
                raise BadSyntax("body too large")

            if held is not None:
                held.grow(len(piece))

            body += piece
        return bytes(body)

    async def expire(self) -> None:
        """Close it, idle for too long (called by the reaper)."""
        assert self.kept is not None
        self.kept.remove(self)
        await self.close()

    async def close(self) -> None:
        """Close it at once, without a word: whatever was still to come is given up."""
        await trio.aclose_forcefully(self.stream)


class IdleConnections:
    """Connections kept for the next request of the same account, for a few seconds.

    An `endpoint` is an account with its proxy and its trusted authorities: requests of another
    account, or of one that a reload has changed, never share a connection.
    """

    def __init__(self, reaper: Reaper) -> None:
        self.reaper = reaper
        self.by_endpoint = defaultdict[Hashable, deque[UpstreamConnection]](deque)

    async def take(self, endpoint: Hashable) -> UpstreamConnection | None:
        """The most recent connection that looks alive; those that do not are closed."""
        idle = self.by_endpoint[endpoint]
        while idle:
            connection = idle.pop()
            self.reaper.forget(connection)
            if connection.probe():
                return connection
            await connection.close()
        return None

    def give(self, endpoint: Hashable, connection: UpstreamConnection) -> bool:
        """Keep the connection; False, and the caller closes it, if there is no room."""
        idle = self.by_endpoint[endpoint]
        if len(idle) >= IDLE_CONNECTIONS_MAX:
            return False
        all_count = sum(map(len, self.by_endpoint.values()))
        if len(idle) >= SURE_IDLE_CONNECTIONS_MAX and all_count >= ALL_IDLE_CONNECTIONS_MAX:
            return False

        connection.kept = idle
        idle.append(connection)
        self.reaper.watch(connection, trio.current_time() + IDLE_CONNECTION_SECONDS_MAX)
        return True

    async def close_all(self) -> None:
        """Close all that are idle: at the end, and at a reload, which may change their accounts."""
        closing, self.by_endpoint = self.by_endpoint, defaultdict(deque)
        for idle in closing.values():
            while idle:
                self.reaper.forget(idle[-1])
                await idle.pop().close()


def request_head(
    url: BaseUrl,
    path: str,
    secret: Secret | None,
    others: Sequence[Field],
    body: bytes,
) -> bytes:
    """The head of a POST, or with an empty body of a GET, to an account's upstream.

    `others`: what the account's kind or the client adds; a User-Agent or a Content-Type there
    replaces ours.  Nothing else of the client's head gets here.
    """
    headers = [("Host", url.authority), ("Accept-Encoding", "identity")]
    given = {name for name, _ in others}
    if secret is not None:
        headers.append(("Authorization", f"Bearer {reveal(secret)}"))
    if "user-agent" not in given:
        headers.append(("User-Agent", f"codex-pooler/{VERSION}"))
    if body and "content-type" not in given:
        headers.append(("Content-Type", "application/json"))
    if body:
        headers.append(("Content-Length", str(len(body))))
    method = "POST" if body else "GET"
    return format_head(f"{method} {url.path}{path} HTTP/1.1\r\n", [*headers, *others])


################################################################
# TOKENS
################################################################
# Each login file is refreshed by one process at a time: lock it, read it again, and use what
# another process has refreshed; else ask the token endpoint, save the response, and only then use
# the new token.  A refresh token works once, so no request is sent whose response could not be
# saved (F53).
#
# A login file may be written by this process, by other poolers, which take the same lock, and by
# Codex CLI, which takes none (F56).  The lock keeps poolers apart (`FileLock`); what Codex CLI has
# written is kept because the file is read again right before it is replaced (`save_file`).

CODEX_CLIENT_ID: Final = "app_EMoamEEZ73f0CkXaXp7hrann"  # Codex CLI's, whose logins these are (F52)


class Finding(NamedTuple):
    """What a person should know about a login."""

    is_error: bool
    text: str


def why_unsaveable(path: Path) -> str | None:
    """Why `save_file` could not replace this file, as far as can be seen without touching it.

    The text continues a sentence that begins with the path; None if nothing is in the way.
    """
    if path.is_symlink():
        return "is a symbolic link, which a refresh would replace; use the path of the file itself"

    if not os.access(path.parent, os.W_OK | os.X_OK):
        return "is in a folder that cannot be written to, so it cannot be refreshed"

    folder = path.parent.stat()
    owner_id = path.stat().st_uid if path.exists() else os.geteuid()
    is_owner = os.geteuid() in {0, folder.st_uid, owner_id}
    if folder.st_mode & stat.S_ISVTX and not is_owner:
        reason = "belongs to another user, in a folder where only its owner may replace it"
        return f"{reason}; {_CHANGE_OWNER}"

    # A file that is mounted by itself cannot be replaced (F101).
    with contextlib.suppress(OSError):  # macOS has neither this list nor mounts of a file
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
        mounted = str(path.resolve()).replace(" ", r"\040")
        if any(line.split()[4:5] == [mounted] for line in mounts.splitlines()):
            return "is a bind-mounted file and cannot be replaced; mount its folder instead"

    return None


_CHANGE_OWNER: Final = "make the pooler's user the owner of the file and of its folder"
# What to do about a file that cannot be locked or written, by the cause.
_REMEDIES: Final[Mapping[int | None, str]] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space on its disk"),
    **dict.fromkeys(
        (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL),
        "keep the login on a local disk: this file system cannot lock or sync files",
    ),
    errno.EFBIG: "raise the file size limit (ulimit -f)",
    errno.EROFS: "mount its folder writable",
    errno.EBUSY: "mount its folder, not the file",
    **dict.fromkeys((errno.EEXIST, errno.EISDIR, errno.ELOOP), "remove it"),
    errno.ENOENT: "create its folder",
    errno.EAGAIN: "give each process a file of its own",
    errno.ETIMEDOUT: "check that disk",
}


def remedy_for(error: OSError) -> str:
    """What a person can do about an error; it follows a semicolon."""
    if isinstance(error, PermissionError):
        return _CHANGE_OWNER
    return _REMEDIES.get(error.errno, "check its disk")


def lock_file(path: Path) -> Path:
    """The file next to a login whose `flock` protects the refresh."""
    return path.with_name(f"{path.name}.lock")


def open_lock(path: Path) -> int:
    """The descriptor of a login's lock file, created if required.  Raises: OSError.

    If root creates or finds the lock file, it gives it to the owner of the login, or of the folder
    if there is no login yet, who would be locked out otherwise.  One that is not empty, or has
    several hard links, is left alone: that owner may have put another file of root's there.
    A file that another user can open is refused: that user could hold the lock for good.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(lock_file(path), flags, 0o600)
    state = os.fstat(descriptor)
    is_trusted = is_ours(state)
    is_alone = stat.S_ISREG(state.st_mode) and (state.st_nlink, state.st_size) == (1, 0)
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            owner = heir_of(path) if path.exists() else path.parent.stat()
            if state.st_uid == 0 != owner.st_uid and is_alone:
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            is_trusted |= state.st_uid == owner.st_uid and not state.st_mode & 0o022

    if stat.S_ISREG(state.st_mode) and is_trusted:
        return descriptor

    os.close(descriptor)
    raise OSError(errno.EEXIST, "it belongs to another user, or others can write to it")


def try_lock(path: Path) -> io.FileIO | None:
    """A login's lock file, locked until it is closed; None if another process holds the lock.

    Raises: OSError.  Called in a thread that was abandoned, its result is unused, and the file
    object closes itself.
    """
    file = os.fdopen(open_lock(path), "rb", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if isinstance(error, BlockingIOError):
            return None

        raise
    return file


def lock_problem(path: Path, error: OSError) -> str:
    """Why a login cannot be locked, as a sentence for the log and for `pooler check`."""
    return f"{lock_file(path)} cannot be locked: {error.strerror}; {remedy_for(error)}"


def room_problem(path: Path, error: OSError) -> str:
    """Why a login cannot be refreshed, in the same way."""
    reason = f"the new login could not be saved in its folder: {error.strerror}"
    return f"{path} cannot be refreshed, because {reason}; {remedy_for(error)}"


class FileLock(NamedTuple):
    """The lock of a login, and the threads that work under it.

    A thread cannot be cancelled: one that is abandoned after its deadline may still replace the
    login, however late.  Until it has ended, no other process may refresh that login, or an older
    version would take the place of the newer one.
    """

    file: io.FileIO
    files: Files

    async def run(self, seconds_max: float, call: Callable[[*Ts], T], *args: *Ts) -> T:
        """As `Files.run`, with the lock held until the thread ends.  Raises: OSError.

        A `flock` is released with the last descriptor of its file that was duplicated, so a thread
        that has one of its own holds the lock.  If it never begins, the descriptor closes itself.
        """
        own_file = self.duplicate()

        def hold() -> T:
            with own_file:
                return call(*args)

        return await self.files.run(seconds_max, hold)

    def duplicate(self) -> io.FileIO:
        """The lock's file on a descriptor of its own."""
        return os.fdopen(os.dup(self.file.fileno()), "rb", buffering=0)


@contextlib.asynccontextmanager
async def locked(path: Path, files: Files) -> AsyncIterator[FileLock]:
    """Hold an exclusive `flock` on a login.

    The lock is polled: a thread that waited for it could not be cancelled.  The caller bounds the
    time.  Raises: LoginNeeded, if the file cannot be locked at all.
    """
    lock: io.FileIO | None = None
    try:
        while lock is None:
            lock = await files.run(FILE_SECONDS_MAX, try_lock, path)
            if lock is None:
                await trio.sleep(LOCK_SECONDS)
    except OSError as error:
        raise LoginNeeded(lock_problem(path, error)) from None

    with lock:
        yield FileLock(lock, files)


def try_saving(path: Path, byte_count: int) -> list[Finding]:
    """What would prevent a refresh, found by taking the lock and making room, without a refresh.

    It blocks, for about a second if another process holds the lock.
    """
    lock: io.FileIO | None = None
    try:
        for _ in range(LOCK_TRIES_MAX):
            lock = try_lock(path)
            if lock is not None:
                break

            time.sleep(LOCK_SECONDS)
    except OSError as error:
        return [Finding(True, lock_problem(path, error))]

    if lock is None:  # so it can be locked, which is all that matters here
        return [
            Finding(False, f"{lock_file(path)} is locked by another process, perhaps for a refresh")
        ]

    with lock:
        try:
            make_room(path, byte_count)
        except OSError as error:
            return [Finding(True, room_problem(path, error))]

        drop_room(path)
    return []


Mark = tuple[int, ...]  # what identifies a version of a file: inode, time, size, device


class Sight(NamedTuple):
    """What was found at a login's path: credentials, or a problem."""

    mark: Mark | None = None
    raw: bytes = b""
    credentials: Credentials | None = None
    problem: str = ""
    is_absent: bool = False
    remedy: str = ""  # "": to log in


def read_login(path: Path, known_mark: Mark | None) -> Sight | None:
    """The login file at a path; None if it still has the mark `known_mark`.  It blocks."""
    try:
        state = os.stat(path)
        mark = (state.st_ino, state.st_mtime_ns, state.st_size, state.st_dev)
        if mark == known_mark:
            return None

        raw = read_file(path)
        return Sight(mark, raw, parse_auth_file(raw))
    except FileNotFoundError:
        return Sight(problem="does not exist", is_absent=True)
    except OSError as error:
        remedy = "name the auth.json in it" if os.path.isdir(path) else ""
        if isinstance(error, PermissionError):
            remedy = _CHANGE_OWNER
        return Sight(problem=f"cannot be read: {error.strerror}", remedy=remedy)
    except LoginNeeded as error:
        return Sight(problem=str(error))


@dataclass(eq=False, slots=True)
class Look:
    """A look at several logins, one after the other, in a thread that may be given up."""

    wanted: Sequence[tuple[Path, Mark | None]]  # their paths, and their marks so far
    sights: list[Sight | None] = field(default_factory=list, repr=False)  # of those that were seen
    has_begun: bool = False
    has_ended: bool = False
    is_over: trio.Event = field(default_factory=trio.Event)  # nobody waits for it any more
    again_at: float = math.inf  # then another one may begin, even if this one has not ended

    def is_on(self, now: float) -> bool:
        """Whether no other look is to begin meanwhile."""
        return not self.has_ended and now < self.again_at

    def run(self) -> None:
        """Look at them.  It blocks."""
        self.has_begun = True
        try:
            for path, mark in self.wanted:
                self.sights.append(read_login(path, mark))
        finally:
            self.has_ended = True


SEVERAL_LINKS: Final = (
    "has other hard links, which keep a token that no longer works after a refresh; give every "
    "program a login of its own"
)


@dataclass(eq=False, slots=True, repr=False)  # it holds secrets as they are in the file
class Login:
    """The login of one codex account: its file as last read, and what prevents its use.

    What it is good for follows from what it holds (digests are SHA-256 of a version of the file):

    no credentials                  nothing: there is no file, or no login in it that can be read
    their digest is `revoked`       nothing: the token endpoint will never refresh it
    `unsaved` is not empty          refreshed, and not yet on the disk: to be saved first
    none of these                   to serve until it expires, and to be refreshed when due

    A new version of the file may lead from each of them to each.
    """

    name: str
    path: Path
    config: str = "pools.json"  # its path, for the command that logs in
    tls: ssl.SSLContext | None = None  # what is trusted at the token endpoint
    proxy: Proxy | None = None  # on the way there
    mark: Mark | None = None
    raw: bytes = b""
    credentials: Credentials | None = None
    problem: str | None = None  # why it cannot serve, or soon will not
    is_absent: bool = False  # there is no file: nobody has logged in yet
    revoked: bytes = b""  # the digest of a version that can no longer be refreshed
    rejected: bytes = b""  # the digest of a version that its upstream has refused
    rejected_until: float = -math.inf  # then it may be tried all the same
    unsaved: bytes = b""  # refreshed, and not on the disk yet
    reported: str | None = None  # the problem that was logged last
    unreached: Cause | None = None  # why the token endpoint was not, the last time
    retry_at: float = -math.inf  # until then no refresh is tried
    refresh: trio.Event | None = None  # set at the end of the one in progress
    is_retired: bool = False  # a reload has pointed its account elsewhere
    clock_lead: float = 0.0  # seconds that our clock is ahead, by the last token that we got
    issued: bytes = b""  # the digest of the last version that we got
    issued_margin_seconds: float = math.inf  # half of its token's lifetime

    @property
    def live(self) -> Credentials | None:
        """The credentials, unless they are revoked."""
        is_revoked = self.credentials and self.credentials.digest == self.revoked
        return None if is_revoked else self.credentials

    def look(self) -> None:
        """Read the file if it has changed.  It blocks: see `Tokens.look`."""
        self.take(read_login(self.path, self.mark))

    def take(self, sight: Sight | None) -> None:
        """Adopt what was read at the path; None: the file is unchanged.

        A login that has been refreshed but not saved stays in use while its file still holds the
        version before it, and gives way to any other version: somebody has logged in again.
        """
        self.is_absent = sight is not None and sight.is_absent
        if sight is None:
            return

        if sight.credentials is None:
            self.mark = self.credentials = None
            self.problem = f"{self.path} {sight.problem}; {sight.remedy or self.advice}"
            return

        is_another = sight.raw not in (self.raw, self.unsaved)  # a file may be touched only
        if is_another:
            self.unsaved = b""
            if self.is_retired:
                return

        self.mark = sight.mark
        self.raw = sight.raw
        self.credentials = sight.credentials
        if self.live and not self.unsaved:
            self.problem = self.clock_problem

    def holds(self, refresh_token: Secret) -> bool:
        """Whether the file, as last read, is the version or a copy of it that has this token.

        If it is not, somebody has logged in: what the token is exchanged for belongs to the login
        before, perhaps to another account, and must not get into this one.
        """
        own = parse_auth_file(self.raw).refresh_token
        return own is not None and reveal(own) == reveal(refresh_token)

    @property
    def clock_problem(self) -> str | None:
        """A warning if a token that was just issued has expired by our clock; else None."""
        if not self.clock_lead:
            return None

        reason = "by this machine's clock its new token has already expired"
        return f"{self.path}: {reason}; it is used anyway; check the clock"

    def note_issue(self, response: bytes, unix_now: float) -> None:
        """Compare a token that was just issued, and is not saved yet, with our clock.

        Half of its lifetime is remembered: one that lives for less than the margin would be
        refreshed with each request.
        """
        issued = parse_auth_file(self.unsaved)
        self.clock_lead = clock_lead(issued, response, unix_now)
        self.issued = issued.digest
        self.issued_margin_seconds = math.inf
        if issued.expires_at is not None:
            lifetime = issued.expires_at - unix_now + self.clock_lead
            self.issued_margin_seconds = max(0.0, lifetime / 2)

    def has_ended(self, credentials: Credentials, unix_now: float) -> bool:
        """Whether the token has expired by the issuer's clock."""
        return has_ended(credentials, unix_now - self.clock_lead)

    def is_safe(self, credentials: Credentials, unix_now: float) -> bool:
        """Whether a token may be used: it has not expired, and no power failure can undo it.

        One renamed into place but not yet fsynced could be lost.
        """
        return self.raw != self.unsaved and not self.has_ended(credentials, unix_now)

    def is_due(self, credentials: Credentials, unix_now: float) -> bool:
        """Whether to refresh: within the margin, or in the second half of a shorter lifetime."""
        margin_seconds = REFRESH_MARGIN_SECONDS
        if credentials.digest == self.issued:
            margin_seconds = min(margin_seconds, self.issued_margin_seconds)
        return is_refresh_due(credentials, unix_now - self.clock_lead, margin_seconds)

    @property
    def command(self) -> str:
        """The command that creates the file."""
        return login_command(self.name, self.config)

    @property
    def advice(self) -> str:
        """How to create the file."""
        return f"log in with: {self.command}"

    @property
    def problem_and_advice(self) -> tuple[str, str]:
        """Why it cannot serve, without the file's path, and what to do about that; "" if nothing.

        A problem is written as `PATH what is wrong; what to do`.  Where nothing is to be done it
        says that the pooler will retry.
        """
        if self.problem is None:
            return "", ""

        text = self.problem.removeprefix(str(self.path)).lstrip(": ")
        cause, _, remedy = text.partition("; ")
        if remedy == "will retry":
            return cause, ""
        return cause, remedy[:1].upper() + remedy[1:]

    def is_usable(self, unix_now: float) -> bool:
        """Whether a request may use it: the token is valid, or can be refreshed now.

        A token that its upstream has refused is valid no more, whatever it says of its own end.
        """
        if self.live is None:
            return False
        return self.is_valid(self.live, unix_now) or trio.current_time() >= self.retry_at

    def is_valid(self, credentials: Credentials, unix_now: float) -> bool:
        """Whether a token has neither expired nor been refused by the upstream."""
        return not self.has_ended(credentials, unix_now) and not self.is_rejected(credentials)

    def note_rejected(self, credentials: Credentials) -> None:
        """Remember that the account's upstream has refused a token before its end."""
        self.rejected = credentials.digest
        self.rejected_until = trio.current_time() + UNTRIED_SECONDS_MAX

    def is_rejected(self, credentials: Credentials) -> bool:
        """Whether the upstream has refused the token, and lately."""
        is_same = credentials.digest == self.rejected
        return is_same and trio.current_time() < self.rejected_until

    def inspect(self, unix_now: float) -> list[Finding]:
        """What a person should know before a token is spent, found without the network.

        The first error is the reason why the login cannot be used, or cannot be refreshed.
        """
        self.look()
        current = self.credentials
        if current is None:
            is_error = not self.is_absent or self.path.is_symlink()
            return [Finding(is_error, str(self.problem))]

        findings: list[Finding] = []
        obstacle = why_unsaveable(self.path)
        if obstacle:
            findings.append(Finding(True, f"{self.path} {obstacle}"))
        can_refresh = current.refresh_token is not None and obstacle is None
        if can_refresh:
            findings += try_saving(self.path, len(self.raw) + ROOM_SPARE_BYTES)

        state = self.path.stat()
        folder = self.path.parent.stat()
        is_open = state.st_mode & 0o077 != 0
        is_replaceable = folder.st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH
        folder_name = shlex.quote(str(self.path.parent))
        is_due = can_refresh and is_refresh_due(current, unix_now, 0)
        warnings = {
            f"can be read by others: chmod 600 {shlex.quote(str(self.path))}": is_open,
            f"can be replaced by others: chmod o-w {folder_name}": is_replaceable,
            SEVERAL_LINKS: state.st_nlink > 1,
            f"contains no refresh token; {self.advice}": current.refresh_token is None,
            "has expired; it will be refreshed on first use": is_due,
        }
        shown = [text for text, is_so in warnings.items() if is_so]
        return findings + [Finding(False, f"{self.path} {text}") for text in shown]


@dataclass(eq=False)
class Tokens:
    """Keeps logins fresh.  A refresh goes on even if the request that caused it is cancelled."""

    url: BaseUrl
    dial: Dial
    log: Log
    unix_now: Callable[[], float]
    files: Files
    services: trio.Nursery | None = None  # the server's own
    # By file: the version that was refreshed, and its successor that could not be saved.  A reload
    # may take a login out and bring it back.
    unsaved: OrderedDict[Path, tuple[bytes, bytes]] = field(default_factory=OrderedDict, repr=False)
    outcomes: Sums = field(default_factory=dict)  # by account, and ok or failed
    # By login: the look that is in progress, or was given up and has not ended.
    looks: dict[Login, Look] = field(default_factory=dict)
    given_up: Counter[Login] = field(default_factory=Counter)  # looks since the last that was not

    def state_of(self, login: Login) -> LoginState:
        """A login's state, for operators."""
        current = login.live
        problem, advice = login.problem_and_advice
        if current is None:
            plan = login.credentials and login.credentials.plan
            return LoginState("needed", plan, None, login.unreached, problem, advice)

        status = "renewal_due" if self.is_due(login, current) else "ok"
        return LoginState(
            status,
            current.plan,
            current.expires_at,
            login.unreached,
            problem,
            advice,
            login.retry_at,
            is_stuck=bool(problem) and not login.is_valid(current, self.unix_now()),
            command=login.command,
        )

    async def credentials(self, login: Login, rejected: Credentials | None = None) -> Credentials:
        """A login's credentials, refreshed if they are about to expire or were `rejected`.

        Raises: LoginNeeded.
        """
        await self.look([login])
        if rejected is not None:
            login.note_rejected(rejected)
        before = login.live
        if (
            before
            and login.is_usable(self.unix_now())
            and (login.is_rejected(before) or login.unsaved or self.is_due(login, before))
        ):
            await self.join_refresh(login, before)

        current = login.live
        if current and not login.is_rejected(current) and login.is_safe(current, self.unix_now()):
            return current

        raise LoginNeeded(login.problem)

    async def join_refresh(self, login: Login, before: Credentials) -> None:
        """Start a refresh unless one is in progress or has just failed; wait for its end.

        All requests of the account that come in the meantime wait for the same one: a second
        refresh would present a token that the first has spent (F53).
        """
        is_retry_due = trio.current_time() >= login.retry_at
        if login.refresh is None and self.services is not None and is_retry_due:
            login.refresh = trio.Event()
            self.services.start_soon(self.serve_refresh, login, before)

        if login.refresh is not None:
            await login.refresh.wait()

    def report(self, login: Login) -> None:
        """Log what prevents a login's use, or that nothing does."""
        level = "warning" if login.problem else "info"
        self.log(level, "login", {"account": login.name, "problem": login.problem})

    def report_change(self, login: Login) -> None:
        """Log a login's problem if it has changed.

        Requests look at the file again and again; each would repeat the same line.
        """
        if login.problem != login.reported:
            login.reported = login.problem
            self.report(login)

    async def look(self, logins: Sequence[Login], *, is_fresh: bool = False) -> None:
        """Read the files that have changed, one after the other in one thread.

        A look that is in progress is waited for instead, unless it must be `is_fresh`.  A login
        whose disk does not respond is looked at again once it does, or a few times after a while:
        another may be mounted there.  Requests for other accounts hardly wait, and few threads do.
        """
        now = trio.current_time()
        self.looks = {login: look for login, look in self.looks.items() if look.is_on(now)}
        others = [self.looks[login] for login in logins if login in self.looks]
        mine = [login for login in logins if not self.is_looked_at(login, is_fresh=is_fresh)]
        if mine:
            # Others may wait for it: it is not given up with the request that it began for.
            with trio.move_on_after(REFRESH_SECONDS_CEILING, shield=True):
                await self.look_at(mine)
        for other in others:
            await other.is_over.wait()

    def is_looked_at(self, login: Login, *, is_fresh: bool) -> bool:
        """Whether a look at a login is in progress, or was given up and must end first."""
        look = self.looks.get(login)
        return look is not None and (look.is_over.is_set() or not is_fresh)

    async def look_at(self, logins: Sequence[Login]) -> None:
        """As `look`, whoever looks at them as well."""
        look = Look([(login.path, login.mark) for login in logins])
        self.looks |= dict.fromkeys(logins, look)
        problem = ""
        try:
            await self.files.run(FILE_SECONDS_MAX, look.run)
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"

        sights = [*look.sights]
        stuck: Sequence[Login] = ()
        if problem and look.has_begun:  # those behind the one that it waits for stay as they are
            stuck = logins[len(sights) :][:1]
        if problem:
            sights += [Sight(problem=problem)] * len(stuck or logins)

        for login, (_, mark), sight in zip(logins, look.wanted, sights, strict=False):
            if login.mark == mark:  # otherwise another task has read the file since
                login.take(sight)
        self.note_look(look, logins, stuck)

    def note_look(self, look: Look, logins: Sequence[Login], stuck: Sequence[Login]) -> None:
        """Note the end of a look at several logins, of which it was given up at the `stuck` one."""
        for login in logins:
            self.looks.pop(login, None)
            if login not in stuck:
                self.given_up.pop(login, None)
        for login in stuck:
            self.looks[login] = look
            self.given_up[login] += 1
            if self.given_up[login] <= STUCK_LOOKS_MAX:
                look.again_at = trio.current_time() + STUCK_SECONDS
        look.is_over.set()

    def is_due(self, login: Login, current: Credentials) -> bool:
        """Whether to refresh the login now."""
        return login.is_due(current, self.unix_now())

    @property
    def endpoint(self) -> str:
        """The token endpoint, in the words of a problem."""
        return f"the token endpoint {self.url.authority}{self.url.path}"

    async def serve_refresh(self, login: Login, before: Credentials) -> None:
        """One refresh of `before`, to its end, even while the server stops.

        A new token must not be lost between the response and the disk, so only its own deadlines
        cancel this.  What went wrong becomes the login's `problem`, which all that wait then read.
        """
        assert login.refresh is not None
        problem = "refreshing the login timed out; will retry"
        login.unreached = None

        try:
            with (
                trio.move_on_after(REFRESH_SECONDS_CEILING, shield=True),
                trio.move_on_after(REFRESH_SECONDS_MAX),
            ):
                await self.check_saving(login)
                async with locked(login.path, self.files) as lock:
                    await self.refresh_locked(login, before, lock)
                problem = "" if login.credentials else login.problem or ""
        except LoginNeeded as refused:
            problem = str(refused)
        except ConnectFailed as failed:
            login.unreached = failed.cause
            problem = f"{self.endpoint} cannot be reached: {failed.cause}; will retry"
        except TRANSPORT_ERRORS:
            problem = f"{self.endpoint} sent no valid response; will retry"
        finally:
            # Without an await: this runs also if the deadlines have passed.
            outcome = "failed" if problem else "ok"
            _count(self.outcomes, login.name, (outcome,), {"count": 1})
            if problem:
                login.retry_at = trio.current_time() + REFRESH_PAUSE_SECONDS
                login.problem = login.reported = problem
                self.report(login)

            login.refresh.set()
            login.refresh = None

    async def check_saving(self, login: Login) -> None:
        """Raises: LoginNeeded, if a refreshed login could not be saved."""
        try:
            obstacle = await self.files.run(FILE_SECONDS_MAX, why_unsaveable, login.path)
        except OSError as error:
            obstacle = f"cannot be examined: {error.strerror}"
        if obstacle:
            raise LoginNeeded(f"{login.path} {obstacle}")

    async def refresh_locked(self, login: Login, before: Credentials, lock: FileLock) -> None:
        """Use a login that another process has refreshed, or refresh and save it.

        Raises: LoginNeeded, TRANSPORT_ERRORS.
        """
        await self.look([login], is_fresh=True)
        current = login.credentials
        if current is None:
            return

        if login.is_retired:
            raise LoginNeeded("a reload has removed this login from the configuration")

        await self.find_unsaved(login)
        is_refreshed = bool(login.unsaved) or current.digest != before.digest
        await self.save(login, lock)

        current = login.credentials
        if current is not None and not (is_refreshed and not self.is_due(login, current)):
            await self.ask_with_room(login, current, lock)
            await self.save(login, lock)

    async def find_unsaved(self, login: Login) -> None:
        """Find tokens that were fetched and not saved: they are as good as fresh ones.

        A process that was killed before the rename has left them in a file; this process keeps its
        own in memory.
        """
        with contextlib.suppress(OSError, LoginNeeded):
            raw = await self.files.run(FILE_SECONDS_MAX, read_own, new_file(login.path))
            leftover = parse_auth_file(raw)
            current = login.credentials  # another request may have read the file in the meantime
            if (
                current is not None
                and leftover.account_id == current.account_id
                and is_later(leftover, current)
            ):
                login.unsaved = login.unsaved or raw

        before, unsaved = self.unsaved.get(login.path, (b"", b""))
        if before == login.raw:  # otherwise another login has come in the meantime
            login.unsaved = login.unsaved or unsaved

    async def save(self, login: Login, lock: FileLock) -> None:
        """Save what is not on the disk yet.  Raises: LoginNeeded.

        If another login has come into the file in the meantime, that one stays.
        """
        if not login.unsaved:
            return

        try:
            await lock.run(math.inf, save_over, login.path, login.unsaved, login.raw)
        except OSError as error:
            problem = f"{login.path} cannot be saved: {error.strerror}; will retry"
            raise LoginNeeded(problem) from None

        login.unsaved = b""
        self.unsaved.pop(login.path, None)
        await self.look([login], is_fresh=True)
        self.report(login)
        login.reported = login.problem

    async def ask_with_room(self, login: Login, current: Credentials, lock: FileLock) -> None:
        """As `ask`, after space on the disk has been reserved for the response.

        Raises: LoginNeeded, TRANSPORT_ERRORS.
        """
        byte_count = len(login.raw) + ROOM_SPARE_BYTES
        try:
            await lock.run(math.inf, make_room, login.path, byte_count)
        except OSError as error:
            raise LoginNeeded(room_problem(login.path, error)) from None

        failure: Exception | None = None
        try:
            await self.ask(login, current)
        except (LoginNeeded, *TRANSPORT_ERRORS) as error:
            failure = error

        if not login.unsaved:  # otherwise saving it releases the room
            with contextlib.suppress(OSError):
                await lock.run(FILE_SECONDS_MAX, drop_room, login.path)
        if failure is not None:
            raise failure

    async def ask(self, login: Login, current: Credentials) -> None:
        """Ask for new tokens, which then have to be saved.  Raises: LoginNeeded, TRANSPORT_ERRORS.

        Codex CLI, which takes no lock (F56), may be faster: then there is nothing to save.  Another
        request may have read what it wrote, at any of the waits here.
        """
        if current.refresh_token is None:
            raise LoginNeeded(f"{login.path} contains no refresh token; {login.advice}")
        if not login.holds(current.refresh_token):
            return

        grant = {
            "client_id": CODEX_CLIENT_ID,
            "grant_type": "refresh_token",
            "refresh_token": reveal(current.refresh_token),
        }
        body = json.dumps(grant).encode()
        request = request_head(self.url, "", None, [("accept", "application/json")], body) + body
        status, response = await ask_once(
            self.dial,
            self.url,
            login.tls,
            request,
            proxy=login.proxy,
            bytes_max=SECRET_FILE_BYTES_MAX,
        )

        outcome = classify_refresh(status, response)
        if outcome is RefreshOutcome.FAILED:
            raise LoginNeeded(f"{self.endpoint} returned {status} without a token; will retry")

        if outcome is RefreshOutcome.DONE:
            if not login.holds(current.refresh_token):
                return

            login.unsaved = merge_tokens(login.raw, response, self.unix_now())
            _remember(self.unsaved, login.path, (login.raw, login.unsaved), UNSAVED_MAX)
            login.note_issue(response, self.unix_now())
            return

        await self.look([login], is_fresh=True)
        if login.credentials is not None and login.credentials.digest == current.digest:
            login.revoked = current.digest
            raise LoginNeeded(f"{login.path}: this login has been revoked; {login.advice}")


async def ask_once(
    dial: Dial,
    url: BaseUrl,
    tls: ssl.SSLContext | None,
    request: bytes,
    *,
    proxy: Proxy | None,
    bytes_max: int,
) -> tuple[int, bytes]:
    """Send one request on a connection of its own; returns the response's status and body.

    The caller bounds the time.  Raises: TRANSPORT_ERRORS, also if the body is too large.
    """
    head, body = await exchange_once(dial, url, tls, request, proxy=proxy, bytes_max=bytes_max)
    return head.status, body


async def exchange_once(
    dial: Dial,
    url: BaseUrl,
    tls: ssl.SSLContext | None,
    request: bytes,
    *,
    proxy: Proxy | None,
    bytes_max: int,
) -> tuple[ResponseHead, bytes]:
    """As `ask_once`, with the whole head of the response."""
    connection = UpstreamConnection(await connect(dial, url, tls, proxy))
    try:
        await connection.stream.send_all(request)
        head = await connection.read_head()
        return head, await connection.read_body(bytes_max)
    finally:
        with trio.move_on_after(CLOSE_SECONDS_MAX, shield=True):
            await connection.close()


def check_user(folder: Path) -> None:
    """Raises: LoginNeeded, if a folder is another user's to write in; OSError."""
    owner_id = folder.stat().st_uid
    if owner_id != os.geteuid() and not os.access(folder, os.W_OK | os.X_OK):
        owner = f"another user, whose id is {owner_id}"
        raise LoginNeeded(f"{folder} belongs to {owner}; run this command as that user")


def prepare_login(path: Path) -> None:
    """Make sure that a login can be saved, before a person makes it.  It blocks.

    The folder is created if required; the lock is taken, and room made, as for a refresh.
    Raises: LoginNeeded.
    """
    try:
        make_folder(path.parent)
        check_user(path.parent)
        raw = read_file(path, SECRET_FILE_BYTES_MAX + 1) if path.exists() else b""
    except OSError as error:
        problem = f"{error.filename or path}: {error.strerror}; {remedy_for(error)}"
        raise LoginNeeded(problem) from None

    obstacle = why_unsaveable(path)
    if obstacle is None and not may_replace(raw):
        obstacle = "is no login of Codex CLI, and is left alone; remove it, or name another file"
    if obstacle:
        raise LoginNeeded(f"{path} {obstacle}")

    for finding in try_saving(path, SECRET_FILE_BYTES_MAX):
        if finding.is_error:
            raise LoginNeeded(finding.text)


# Where that is off, the issuer may say so only after a person has entered the code (F106).
_ENABLE: Final = (
    "turn on device code authorization for Codex in ChatGPT, Settings, Security",
    "(in a workspace, its administrator does)",
)


def save_login(path: Path, body: bytes, unix_now: float) -> tuple[bytes, bytes]:
    """Save the tokens in `body` as a new login; returns the file's content before and after.

    It blocks; the caller holds the lock.  Raises: LoginNeeded.
    """
    try:
        before = read_file(path) if path.exists() else b""
        raw = new_auth_file(before, body, unix_now)
        save_over(path, raw, None)
    except OSError as error:
        problem = f"{path} cannot be saved: {error.strerror}; {remedy_for(error)}"
        raise LoginNeeded(f"{problem}, and log in again") from None
    return before, raw


@dataclass(eq=False, slots=True)
class DeviceLogin:
    """A login by device code (F104): what `pooler login` does.

    The issuer is the host of the token endpoint, also if CODEX_REFRESH_TOKEN_URL_OVERRIDE has moved
    that: only the issuer of a login can refresh it, and the host gets the refresh token anyway.
    Like the token endpoint it is reached by https, or on this machine (`_Loader.token_url`).
    """

    login: Login
    token_url: BaseUrl
    dial: Dial
    files: Files
    unix_now: Callable[[], float]
    show: Callable[..., None]

    @property
    def issuer(self) -> str:
        """The address of the issuer, which its pages begin with."""
        scheme = "https" if self.token_url.is_tls else "http"
        return f"{scheme}://{self.token_url.authority}"

    async def run(self) -> tuple[bytes, bytes]:
        """Log in; returns the login file's content before and after.  Raises: LoginNeeded."""
        # Otherwise a person's work at the browser could be lost at the end.
        try:
            await self.files.run(REFRESH_SECONDS_MAX, prepare_login, self.login.path)
            problem = ""
        except OSError as error:
            problem = f"{self.login.path}: {error.strerror}; {remedy_for(error)}"
        if problem:
            raise LoginNeeded(problem)

        code = await self.get_code()
        self.show(
            f"To log in account {self.login.name}, open this page in any browser:",
            "",
            f"    {self.issuer}{DEVICE_PATH}",
            "",
            f"and enter this code within {code.seconds_left / 60:.0f} minutes:",
            "",
            f"    {code.user_code}",
            "",
            "Never enter a code that somebody has sent you: it would log them in as you.",
            "If the page refuses it:",
            *_ENABLE,
            "and start again.",
            "",
            "Waiting; Ctrl-C to give up.",
        )
        grant = await self.wait_grant(code)
        return await self.redeem(*grant)

    async def post(self, url: BaseUrl, body: bytes, kind: str = "json") -> tuple[int, bytes]:
        """The status and body of the issuer's response to a POST.  Raises: TRANSPORT_ERRORS."""
        fields = [("accept", "application/json"), ("content-type", f"application/{kind}")]
        request = request_head(url, "", None, fields, body) + body
        with trio.move_on_after(REFRESH_SECONDS_MAX):
            return await ask_once(
                self.dial,
                url,
                self.login.tls,
                request,
                proxy=self.login.proxy,
                bytes_max=SECRET_FILE_BYTES_MAX,
            )
        raise ConnectFailed(Cause.TIMED_OUT)

    def problem_of(self, failure: Exception | None, status: int, body: bytes) -> str:
        """What is wrong with a response that means nothing, or with the way to it."""
        if isinstance(failure, ConnectFailed):
            return f"{self.issuer} cannot be reached: {failure.cause}"
        if failure is not None:
            return f"{self.issuer} sent no valid response"

        if is_web_page(body):
            return f"{self.issuer} sent a web page ({status}): a bot wall or a proxy is in the way"
        return f"{self.issuer} returned {status} {error_code(body)}".rstrip()

    async def get_code(self) -> DeviceCode:
        """The code that a person is to enter.  Raises: LoginNeeded."""
        url = self.token_url._replace(path=DEVICE_CODE_PATH)
        status, body, failure = await self.try_post(url, dump_json({"client_id": CODEX_CLIENT_ID}))
        code = parse_device_code(body, self.unix_now()) if status == 200 else None
        if code is not None:
            return code

        problem = self.problem_of(failure, status, body)
        if status == 404 and not is_web_page(body):
            remedy = f"{' '.join(_ENABLE)}, or {self.copying}"
            problem = f"{self.issuer} refuses device codes; {remedy}"
        raise LoginNeeded(problem)

    @property
    def copying(self) -> str:
        """How to have a login without a device code."""
        return (
            "run `codex login` on a machine with a browser, and move its ~/.codex/auth.json to "
            f"{self.login.path}"
        )

    async def try_post(self, url: BaseUrl, body: bytes) -> tuple[int, bytes, Exception | None]:
        """As `post`, with JSON; or 0 and what prevented it."""
        failure: Exception
        try:
            return *await self.post(url, body), None
        except TRANSPORT_ERRORS as error:
            failure = error
        return 0, b"", failure

    async def wait_grant(self, code: DeviceCode) -> tuple[Secret, Secret]:
        """Ask until somebody has entered the code; returns what the tokens are got with.

        A network that fails is tried again until the code expires, less and less often.
        Raises: LoginNeeded.
        """
        question = {"device_auth_id": reveal(code.device_id), "user_code": code.user_code}
        url = self.token_url._replace(path=DEVICE_POLL_PATH)
        problem, wait_seconds, failed_count = "", code.interval_seconds, 0

        with trio.move_on_after(code.seconds_left):
            while True:
                pause = wait_seconds + failed_count * POLL_SECONDS
                await trio.sleep(min(pause, POLL_SECONDS_MAX))
                status, body, failure = await self.try_post(url, dump_json(question))
                outcome = classify_poll(status, body) if failure is None else PollOutcome.FAILED
                grant = parse_grant(body)
                if outcome is PollOutcome.GRANTED and grant is not None:
                    return grant

                problem = self.problem_of(failure, status, body)
                if outcome is PollOutcome.SLOW_DOWN:
                    wait_seconds += POLL_SECONDS
                if outcome is not PollOutcome.FAILED:
                    self.check_outcome(outcome, problem)
                    problem, failed_count = "", 0
                    continue

                failed_count += 1
                if failed_count == 1:
                    self.show(f"{problem}; trying again")

        raise LoginNeeded(problem or "nobody has entered the code in time; start again")

    def check_outcome(self, outcome: PollOutcome, problem: str) -> None:
        """Raises: LoginNeeded, if there is nothing to wait for any more."""
        if outcome is PollOutcome.DENIED:
            raise LoginNeeded("the login was denied in the browser")
        if outcome is PollOutcome.EXPIRED:
            raise LoginNeeded("the code has expired; start again")
        if outcome is PollOutcome.REFUSED:
            raise LoginNeeded(f"{problem}; start again, or {self.copying}")

    async def redeem(self, code: Secret, verifier: Secret) -> tuple[bytes, bytes]:
        """Get the tokens of a login that was granted, and save them; returns as `run`.

        Between two tries Ctrl-C ends it.  Raises: LoginNeeded.
        """
        problem = ""
        for _ in range(REDEEM_TRIES_MAX):
            if problem:
                self.show(f"{problem}; trying again")
                await trio.sleep(POLL_SECONDS)

            failure: Exception
            try:
                with trio.fail_after(REFRESH_SECONDS_CEILING):
                    async with locked(self.login.path, self.files) as lock:
                        return await self.redeem_locked(lock, code, verifier)
            except trio.TooSlowError:
                raise LoginNeeded(f"{lock_file(self.login.path)} stays locked") from None
            except TRANSPORT_ERRORS as error:
                failure = error
            problem = self.problem_of(failure, 0, b"")
        raise LoginNeeded(problem)

    async def redeem_locked(
        self, lock: FileLock, code: Secret, verifier: Secret
    ) -> tuple[bytes, bytes]:
        """As `redeem`, once.

        From the request on nothing but its own deadline cancels it: a code can be used only once.
        Raises: LoginNeeded, TRANSPORT_ERRORS.
        """
        path = self.login.path
        with trio.move_on_after(REFRESH_SECONDS_CEILING, shield=True):
            problem = ""
            try:
                await lock.run(math.inf, make_room, path, SECRET_FILE_BYTES_MAX)
            except OSError as error:
                problem = room_problem(path, error)
            if problem:
                raise LoginNeeded(problem)

            try:
                body = await self.get_tokens(code, verifier)
            except BaseException:
                drop_room(path)
                raise
            return await lock.run(math.inf, save_login, path, body, self.unix_now())

        raise LoginNeeded(f"saving {path} takes too long; see whether it has come")

    async def get_tokens(self, code: Secret, verifier: Secret) -> bytes:
        """The token endpoint's response to an authorization code.

        Raises: LoginNeeded, TRANSPORT_ERRORS.
        """
        form = {
            "grant_type": "authorization_code",
            "client_id": CODEX_CLIENT_ID,
            "code": reveal(code),
            "code_verifier": reveal(verifier),
            "redirect_uri": f"{self.issuer}{DEVICE_CALLBACK_PATH}",
        }
        body = urlencode(form).encode()
        status, response = await self.post(self.token_url, body, "x-www-form-urlencoded")
        if classify_refresh(status, response) is RefreshOutcome.DONE:
            return response

        problem = self.problem_of(None, status, response)
        if status >= 500 or status == 429:
            raise BadSyntax(problem)
        raise LoginNeeded(f"{problem}; start again")


################################################################
# NOTICES
################################################################
# `notify` in pools.json is told when an account needs its operator, when a pool cannot serve a
# model any more, and when it can again.  Whoever reports a change never waits: `Notices.changed`
# notes it, and a task of its own sends what has gathered.
#
# All receivers get the same JSON.  Gotify reads `title` and `message`; Slack, and what imitates it,
# `text`.  ntfy would show it as it stands, and is told in headers where title and message are
# (F103); others ignore these.  `priority` is for Gotify alone: to Mattermost that is an object.


_NO_MARKUP: Final = str.maketrans("<>&|`", "?????")


class AccountChange(NamedTuple):
    """An account's new status, and what an operator should know of it."""

    name: str
    status: str
    reason: str
    advice: str  # a sentence, or ""
    needs_operator: bool

    @property
    def is_trouble(self) -> bool:
        """Whether somebody should hear of it."""
        return self.needs_operator

    @property
    def about(self) -> tuple[str, ...]:
        """What it is about: a later change about the same replaces it."""
        return (self.name,)

    @property
    def title(self) -> str:
        return f"account {self.name}: {self.status.replace('_', ' ')}"

    @property
    def line(self) -> str:
        """All of it, for a person."""
        reason = f": {self.reason}" if self.reason else ""
        return (
            f"Account {self.name}: {self.status.replace('_', ' ')}{reason}. {self.advice}".strip()
        )


class PoolChange(NamedTuple):
    """That a pool cannot serve a model any more, or can again."""

    pool: str
    model: str
    status: str  # ready, limited or down
    until: str | None  # when the first account is back, if that is known

    @property
    def is_trouble(self) -> bool:
        return self.status != "ready"

    @property
    def about(self) -> tuple[str, ...]:
        return (self.pool, self.model)

    @property
    def title(self) -> str:
        can = "cannot" if self.is_trouble else "can again"
        # An upstream may have chosen the model's name, and some receivers read markup.
        model = self.model.translate(_NO_MARKUP)
        return f"pool {self.pool} {can} serve {model}"

    @property
    def line(self) -> str:
        until = f" until {self.until}" if self.until and self.is_trouble else ""
        return f"P{self.title[1:]}{until}."


Change = AccountChange | PoolChange


def make_notice(changes: Sequence[Change], more_count: int, *, is_gotify: bool) -> JsonDict:
    """The body of the notice that tells of these changes, and that there were more."""
    lines = [change.line for change in changes[:NOTICE_LINES_MAX]]
    more_count += len(changes) - len(lines)
    title = f"codex-pooler: {changes[0].title}"
    if more_count or len(changes) > 1:
        title += f" (and {len(changes[1:NOTICE_LINES_MAX]) + more_count} more)"
    if more_count:
        lines.append(f"And {more_count} more changes.")

    message = "\n".join(lines)
    notice: JsonDict = {"title": title, "message": message, "text": f"{title}\n{message}"}
    if is_gotify:
        notice["priority"] = 8 if any(change.is_trouble for change in changes) else 4
    return notice


# Templates of ntfy, which it fills from the body.
_NTFY_FIELDS: Final = (
    ("x-template", "yes"), ("x-title", "{{.title}}"), ("x-message", "{{.message}}"),
)  # fmt: skip


@dataclass(eq=False)
class Notices:
    """What is to be told to `notify`, and the task that tells it.

    A change about which the receiver knows nothing new is not sent: what breaks and is mended
    before it was told needs no notice.
    """

    dial: Dial
    log: Log
    notify: Notify | None = None
    tls: ssl.SSLContext | None = None
    proxy: Proxy | None = None
    # The latest change about each, the oldest first; none of them has been told.
    waiting: dict[tuple[str, ...], Change] = field(default_factory=dict)
    known: OrderedDict[tuple[str, ...], bool] = field(default_factory=OrderedDict)  # told trouble
    forgotten: set[tuple[str, ...]] = field(default_factory=set)  # while a notice is sent
    more_count: int = 0  # changes for which there was no room
    problem: str = ""  # of the last notice
    woken: trio.Event = field(default_factory=trio.Event)

    def reload(self, config: Config, contexts: TlsContexts) -> None:
        """Send to where the configuration says; what waits goes there, too."""
        self.notify, self.proxy = config.notify, config.proxy
        self.forgotten.clear()
        self.tls = contexts.get(None) if self.notify and self.notify.url.is_tls else None
        for about in [*self.known]:
            if about[0] not in (config.accounts if len(about) == 1 else config.pools):
                del self.known[about]
        if self.notify is None:
            self.waiting.clear()
            self.more_count = 0

    def changed(self, change: Change) -> None:
        """Note a change; a notice reports it, unless it has been undone by then."""
        if self.notify is None:
            return

        about = change.about
        self.waiting.pop(about, None)
        is_news = change.is_trouble != (about in self.known)
        if not is_news:
            return
        if not change.is_trouble and isinstance(change, AccountChange):
            self.forget(change.name)  # its pools tell that it serves again
            return

        if len(self.waiting) >= NOTICES_WAITING_MAX:
            self.more_count += 1
            return
        self.waiting[about] = change
        self.woken.set()

    def forget(self, account: str) -> None:
        """Let the next trouble of an account be news, even if a notice of one is under way."""
        self.known.pop((account,), None)
        if self.notify is not None:
            self.forgotten.add((account,))

    async def run(self) -> Never:
        """Run the task."""
        while True:
            self.woken = trio.Event()
            if not self.waiting:
                await self.woken.wait()
            await trio.sleep(NOTICE_GATHER_SECONDS)  # nothing else says that all has come
            if self.waiting and self.notify is not None:
                await self.tell(self.notify)
                await trio.sleep(NOTICE_PAUSE_SECONDS)  # whatever changes meanwhile

    async def tell(self, notify: Notify) -> None:
        """Send one notice of all that waits.

        It is sent again only if no connection was made: otherwise it may have arrived.
        """
        changes, more_count = [*self.waiting.values()], self.more_count
        self.waiting.clear()
        self.forgotten.clear()
        self.more_count = 0
        for change in changes:
            self.note_known(change, change.is_trouble)

        problem = "no response in time"
        try:
            with trio.move_on_after(NOTICE_SECONDS_MAX):
                problem = await self.send(notify, changes, more_count)
        except ConnectFailed as failed:
            problem = str(failed.cause)
            self.take_back(changes, more_count)
        except TRANSPORT_ERRORS:
            problem = "no valid response"

        if problem != self.problem:
            level = "warning" if problem else "info"
            fields = {"host": notify.url.authority, "problem": problem or None}
            self.log(level, "notice", fields)
        self.problem = problem

    def note_known(self, change: Change, is_trouble: bool) -> None:
        """Note what the receiver knows."""
        if is_trouble:
            _remember(self.known, change.about, True, NOTICES_KNOWN_MAX)
        else:
            self.known.pop(change.about, None)

    def take_back(self, changes: Sequence[Change], more_count: int) -> None:
        """Let changes wait again that were not told; one that was undone meanwhile need not be."""
        self.more_count += more_count
        later, self.waiting = self.waiting, {}
        for change in changes:
            if change.about in self.forgotten:  # it is over by now
                continue
            self.note_known(change, not change.is_trouble)
            if later.pop(change.about, None) is None:
                self.waiting[change.about] = change
        self.waiting.update(later)

    async def send(self, notify: Notify, changes: Sequence[Change], more_count: int) -> str:
        """Send one notice; what is wrong with the response, or "".

        Of the response only the status counts, and the rest is not read.
        Raises: TRANSPORT_ERRORS.
        """
        target = reveal(notify.target)
        is_gotify = target.partition("?")[0].endswith("/message")
        body = dump_json(make_notice(changes, more_count, is_gotify=is_gotify))
        is_high = any(change.is_trouble for change in changes)
        priority = ("x-priority", "high" if is_high else "default")
        fields = [*_NTFY_FIELDS, priority]
        head = request_head(notify.url, target, notify.token, fields, body)

        connection = UpstreamConnection(await connect(self.dial, notify.url, self.tls, self.proxy))
        try:
            await connection.stream.send_all(head + body)
            status = (await connection.read_head()).status
        finally:
            with trio.move_on_after(CLOSE_SECONDS_MAX, shield=True):
                await connection.close()
        return "" if 200 <= status < 300 else f"status {status}"


################################################################
# RELAY
################################################################
# One pipeline of events.  `serve_call` tries accounts in turn: an `Attempt` yields a `Fault`, or an
# `Opened` response with its first events, which a `Relay` hands to the client.  What is HTTP or a
# WebSocket stands behind three protocols: a `Transport` sends the request, a `Source` yields the
# events of the response, a `Reply` is what the client gets.  A `Deadline` bounds every wait.


JSON: Final[Sequence[Field]] = (("content-type", "application/json"),)
# On every response that is the pooler's own: nobody keeps it, or takes it for what it is not.
OWN: Final[Sequence[Field]] = (
    ("cache-control", "no-store"),
    ("x-content-type-options", "nosniff"),
)


class Authorization(NamedTuple):
    """The credentials to send to an account's upstream.

    An API key is a bearer alone; a login has the id of its ChatGPT account with it (F17).
    """

    secret: Secret | None  # the bearer
    fields: Sequence[Field]  # what else goes with it
    credentials: Credentials | None = None  # of a codex account, what both are made of


# The head of a request that has not been read.
UNREAD: Final = RequestHead("", "", "", None, False, NO_FIELDS, NO_BODY, keeps_alive=False)


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    """Where an account's requests go, and with which login, fixed when the account is chosen.

    A reload makes new ones.  A request keeps the one that it was given, and nothing of it is looked
    up by the account's name again: a login can never reach a server that it was not meant for.
    """

    account: Account
    tls: ssl.SSLContext | None
    proxy: Proxy | None
    login: Login | None  # of a codex account


class Assignment(NamedTuple):
    """What a request is given: a lease at an account, and where that account's requests go."""

    lease: Lease
    endpoint: Endpoint


class Unpacking:
    """Lets one large body be parsed at a time: in memory it may become eight times as large.

    Called with its holder and length it is a context manager.  Keys take turns.  Without a length
    it is for work that takes long for another reason, and counts as large.
    """

    def __init__(self) -> None:
        self.bench = trio.Lock()
        self.by_holder: dict[Hashable, trio.Lock] = {}  # of those who are here or wait

    def __call__(
        self,
        holder: Hashable,
        byte_count: float = math.inf,
    ) -> contextlib.AbstractAsyncContextManager[None]:
        """Holds the bench while a large body is parsed; a small one passes at once."""
        if byte_count <= RECEIVE_BYTES:
            return contextlib.nullcontext()
        return self.take_turn(holder)

    @contextlib.asynccontextmanager
    async def take_turn(self, holder: Hashable) -> AsyncIterator[None]:
        """Hold the bench, once the key's other bodies and those of other keys allow it."""
        # Its own lock first: however many bodies a key sends, only one of them waits for the bench.
        own = self.by_holder.setdefault(holder, trio.Lock())
        try:
            async with own, self.bench:
                yield
        finally:
            if not own.locked():
                self.by_holder.pop(holder, None)


@dataclass(eq=False, slots=True)
class Waiter:
    """A request in the queue of its pool, until it has a place, is displaced, or is out of time.

    Whoever ends a lease fills in `assignment` and sets `served`.
    """

    call: Call
    tried: Sequence[str]
    served: trio.Event
    deadline: float  # until then it waits, also for an account that it would rather have
    assignment: Assignment | None = None
    is_displaced: bool = False  # by a key that has fewer waiting


class Endpoints:
    """The endpoint of each account, as the configuration says now; a reload makes new ones.

    Destination, credentials and what is trusted there change together (SECURITY.md, 3).
    """

    def __init__(self) -> None:
        self.by_name: dict[str, Endpoint] = {}  # by the account's name
        self.logins: dict[str, Login] = {}  # of the codex accounts, by the same

    def reload(self, config: Config, tls_contexts: TlsContexts) -> None:
        """Make the endpoints of a configuration; logins that are not in it any more retire.

        A retired login is not refreshed again, even by a request that still has it: the new
        configuration may use its file for another account.
        """
        before, self.by_name = self.by_name, {}
        logins_before, self.logins = self.logins, {}
        for name, account in config.accounts.items():
            login = self.login_of(account, before.get(name), config.source)
            # A login goes to the token endpoint the way its account's requests go: with the same
            # proxy, and the same trusted authorities.
            if login is not None:
                self.logins[name] = login
                is_tls = config.token_url.is_tls
                login.tls = tls_contexts.get(account.ca_file) if is_tls else None
                login.proxy = config.proxy

            tls = tls_contexts[account.ca_file] if account.base_url.is_tls else None
            self.by_name[name] = Endpoint(
                account,
                tls,
                config.proxy,
                login,
            )

        for login in logins_before.values():
            if login not in self.logins.values():
                login.is_retired = True

    def login_of(
        self,
        account: Account,
        before: Endpoint | None,
        config: str,
    ) -> Login | None:
        """The login of an account; None for an account with an API key.

        What is known of a login outlives a reload, if the account's identity is the same:
        `before` is the endpoint that had this name.  Whoever reads the advice at night may be in
        any folder, so it names pools.json, `config`, by its whole path.
        """
        if account.auth_file is None:
            return None

        if before is not None and before.account.identity == account.identity:
            return before.login  # of the same file, which is a part of the identity
        return Login(account.name, Path(account.auth_file), os.path.abspath(config))

    def is_current(self, endpoint: Endpoint) -> bool:
        """Whether no reload has replaced this endpoint."""
        return self.by_name.get(endpoint.account.name) is endpoint


@dataclass(eq=False, slots=True)
class LoginWatch:
    """Notices login files that have changed, and logs what is wrong with one."""

    roster: Roster
    endpoints: Endpoints
    tokens: Tokens
    changed: trio.Event = field(default_factory=trio.Event)  # set by the next change

    async def inspect_all(self) -> None:
        """Log the problems of the logins, as `pooler check` reports them, and the pools without."""
        logins = list(self.endpoints.logins.values())
        unusable = {login.name for login in logins if not await self.inspect(login)}
        for pool in self.roster.pools.values():
            names = {account.name for account in pool.accounts if not account.paused}
            if names and names <= unusable:
                problem = f"pools.{pool.name}: no account can serve it until you log in to one"
                self.tokens.log("warning", "config", {"problem": problem})

    async def inspect(self, login: Login) -> bool:
        """Log what is wrong with a login, unless that was logged before; whether it is usable.

        It reads the file as `pooler check` does, in a thread: it may be on a network, and hang.
        """
        # A thread must not change the one in use.
        copy = Login(login.name, login.path, login.config)
        try:
            findings = await self.tokens.files.run(
                FILE_SECONDS_MAX,
                copy.inspect,
                self.tokens.unix_now(),
            )
        except OSError as error:
            findings = [Finding(True, f"{login.path} cannot be read: {error.strerror}")]

        for _, problem in findings:
            if problem != login.reported:
                self.tokens.log(
                    "warning",
                    "login",
                    {"account": login.name, "problem": problem},
                )
        login.reported = copy.problem or login.reported
        return copy.credentials is not None or not copy.problem

    async def look(self, accounts: Iterable[Account]) -> None:
        """Notice login files that have changed: an account whose login is back can be chosen again.

        And a clock that has: see `Roster.note_time`.
        """
        self.roster.note_time(trio.current_time(), self.tokens.unix_now())
        logins = self.endpoints.logins
        wanted = [logins[account.name] for account in accounts if account.name in logins]
        await self.tokens.look(wanted)

        for login in wanted:
            if self.endpoints.logins.get(login.name) is not login:  # a reload has come meanwhile
                continue
            is_usable = login.is_usable(self.tokens.unix_now())
            self.tokens.report_change(login)
            digest = login.credentials.digest if login.credentials else b""
            health = self.roster.health[login.name]
            if (digest, is_usable) != (health.login, health.has_login):
                self.roster.touched.add(login.name)
                self.changed.set()
            health.note_login(digest, is_usable)


# The better first; among these a change to a later one is logged as a warning.
_BY_SEVERITY: Final = (
    Status.READY, Status.PAUSED, Status.COOLING_DOWN, Status.AT_LIMIT, Status.FAILING,
    Status.UNREACHABLE, Status.REFUSED, Status.NO_LOGIN,
)  # fmt: skip


@dataclass(eq=False, slots=True)
class AccountWatch:
    """Logs each change of an account, and of what a pool can serve, and remembers since when.

    It looks at the accounts that something has happened to, and at all of them whenever a cooldown,
    a block or a minute of failing ends.
    """

    roster: Roster
    endpoints: Endpoints
    tokens: Tokens
    notices: Notices
    outages: dict[tuple[str, str], Outage] = field(default_factory=dict)  # by pool and model
    next_at: float = math.inf  # when an account may change by itself
    woken: trio.Event = field(default_factory=trio.Event)  # set when that comes earlier

    async def run(self) -> Never:
        """Look whenever a limit, a cooldown, a block or a minute of failing ends."""
        while True:
            self.next_at = math.inf
            self.roster.touched.update(self.roster.health)
            self.look()
            self.woken = trio.Event()
            with trio.move_on_at(self.next_at):
                await self.woken.wait()

    def logins(self) -> dict[str, LoginState]:
        """The state of each ChatGPT account's login."""
        logins = self.endpoints.logins
        return {name: self.tokens.state_of(login) for name, login in logins.items()}

    def look(self) -> None:
        """Log what has changed at the accounts that something has happened to."""
        names = self.roster.touched & self.roster.health.keys()
        if not self.roster.touched:
            return

        self.roster.touched.clear()
        now = trio.current_time()
        for name in sorted(names):
            self.look_at(self.roster.health[name], now)
        pools = [
            pool
            for pool in self.roster.pools.values()
            if any(account.name in names for account in pool.accounts)
        ]
        logins = self.logins() if pools else {}
        for pool in pools:
            self.look_at_pool(pool, logins, now)

    def look_at(self, health: Health, now: float) -> None:
        """Note a change of one account."""
        account = health.account
        login = LoginState()
        if own := self.endpoints.logins.get(account.name):
            login = self.tokens.state_of(own)
        self.wait_for(health.next_end(now))
        if health.status is None:  # a new account, or one with another key: nothing was told of it
            self.notices.forget(account.name)
        condition = condition_of(health, login, now)
        before = health.status or Status.READY
        is_seen = health.status is condition.status
        if is_seen:
            return

        health.status, health.since = condition.status, now
        if condition.status is not before:  # else a new account, that is ready
            self.report_change(health, condition, before, login, now)

    def report_change(
        self,
        health: Health,
        condition: Condition,
        before: Status,
        login: LoginState,
        now: float,
    ) -> None:
        """Log an account's change, and let the operator hear of it."""
        account = health.account
        is_worse = _BY_SEVERITY.index(condition.status) > _BY_SEVERITY.index(before)
        is_warned = is_worse and condition.status is not Status.PAUSED
        cause = health.failure.cause if health.failure is not None else None
        advice = advice_for(account, condition, login, cause)

        fields: JsonDict = {
            "account": account.name,
            "status": condition.status.value,
            "before": before.value,
            "reason": condition.reason or None,
            "failures": health.failure_count,
            "until": self.rfc3339(condition.until, now),
            "next_try_at": self.rfc3339(condition.retry_at, now),
            "advice": advice or None,
        }
        self.tokens.log("warning" if is_warned else "info", "account", fields)
        change = AccountChange(
            account.name,
            condition.status.value,
            condition.reason,
            advice,
            condition.needs_operator,
        )
        self.notices.changed(change)

    def wait_for(self, end: float) -> None:
        """Look again at this moment, if not before."""
        if end < self.next_at:
            self.next_at = end
            self.woken.set()

    def look_at_pool(self, pool: Pool, logins: Mapping[str, LoginState], now: float) -> None:
        """Log which of its models a pool can serve no more, or can again."""
        rows = serving_of(self.roster, pool, logins, now)
        for serving in rows:
            self.note_serving(serving, now)

        # A model that the pool has no more is missed by nobody.
        models = {serving.model for serving in rows}
        for name in [*self.outages]:
            if name[0] == pool.name and name[1] not in models:
                del self.outages[name]
                self.notices.known.pop(name, None)

    def note_serving(self, serving: Serving, now: float) -> None:
        """Log that nobody can serve a model of a pool any more, or that somebody can again."""
        names = (serving.pool, serving.model)
        if (names in self.outages) is not bool(serving.accounts):
            return

        level = "info"
        if serving.accounts:
            del self.outages[names]
        else:
            if len(self.outages) >= OUTAGES_MAX:
                return
            level = "warning"
            self.outages[names] = Outage(now)
        until = self.rfc3339(serving.until, now)
        fields: JsonDict = {
            "pool": serving.pool,
            "model": serving.model,
            "status": serving.status,
            "until": until,
            "accounts": list(serving.accounts),
        }
        self.tokens.log(level, "pool", fields)
        change = PoolChange(serving.pool, serving.model, serving.status, until)
        self.notices.changed(change)

    def note_failed(self, pool: str, model: str) -> None:
        """Count a request that failed, if nobody can serve its model."""
        for name in (model, ANY_MODEL):
            outage = self.outages.get((pool, name))
            if outage is not None:
                failed_count = outage.failed_count + 1
                self.outages[pool, name] = outage._replace(failed_count=failed_count)

    def reload(self) -> None:
        """Forget the outages of pools that a reload has removed, and look at all accounts."""
        for name in [*self.outages]:
            if name[0] not in self.roster.pools:
                del self.outages[name]
        self.roster.touched.update(self.roster.health)
        self.look()

    def rfc3339(self, at: float, now: float) -> str | None:
        """A time of Trio's clock as the log has it; None if it is infinite."""
        if not math.isfinite(at):
            return None
        unix = at - now + self.tokens.unix_now()
        return datetime.fromtimestamp(unix, UTC).isoformat("T", "seconds")


@dataclass(eq=False, slots=True)
class Queues:
    """The requests that wait for an account, by pool, and the assignment of accounts to requests.

    Keys take turns: whoever has the fewest leases is served first, and a full queue makes room
    for a key that has fewer in it.
    """

    roster: Roster
    endpoints: Endpoints
    unix_now: Callable[[], float]
    by_pool: dict[str, deque[Waiter]] = field(default_factory=dict)  # the oldest first

    async def assign(
        self,
        exchange: Exchange,
        call: Call,
        tried: Sequence[str],
    ) -> Assignment:
        """A place on the best account that has room, waiting for one in a fair queue.

        A session whose own account is back in a moment waits for that, if the queue has room.
        Raises: PoolerError (pool_busy, usage_limit_reached, no_usable_account,
        model_not_found, server_stopping).
        """
        now = trio.current_time()
        has_room = len(self.by_pool.get(call.pool.name, ())) < QUEUE_LENGTH_MAX
        deadline = now + exchange.limits.queue_seconds_max
        waiter = Waiter(
            call,
            tried,
            trio.Event(),
            deadline if has_room else now,
        )
        if assignment := self.find_assignment(waiter):
            return assignment

        # None is free: wait only if an account is busy, or back soon; else refuse at once.
        choice = Choice(self.roster, self.roster.current(call), tried, now)
        is_back = choice.returns_at() <= waiter.deadline
        if not is_back and not choice.ranked():
            exchange.record.passed_over = choice.passed_over()
            raise choice.refusal(self.unix_now())
        return await self.queue_up(exchange, waiter, deadline)

    async def queue_up(self, exchange: Exchange, waiter: Waiter, deadline: float) -> Assignment:
        """The assignment that a waiter gets in its pool's queue.

        Raises: PoolerError (pool_busy), if it was displaced, or has waited until `deadline`.
        """
        queue = self.by_pool.setdefault(waiter.call.pool.name, deque())
        # A full queue must not be one key's: whoever has most in it loses its newest request.
        self.make_way(queue, waiter.call)
        queue.append(waiter)
        exchange.replace_body(exchange.body)  # what was parsed is not kept for seconds
        try:
            await self.wait_for_assignment(exchange, waiter, deadline)
        except BaseException:
            if waiter.assignment is not None:  # assigned and cancelled at the same moment
                self.end_lease(waiter.assignment.lease)
            raise
        finally:
            if waiter in queue:
                queue.remove(waiter)

        if waiter.assignment is None:
            raise PoolerError("pool_busy")
        return waiter.assignment

    async def wait_for_assignment(
        self, exchange: Exchange, waiter: Waiter, deadline: float
    ) -> None:
        """Return when a waiter has a place, was displaced, or has waited until `deadline`.

        It wakes when a cooldown ends, as nobody else may be there to notice that.
        """
        while not (waiter.assignment or waiter.is_displaced) and trio.current_time() < deadline:
            call, now = self.roster.current(waiter.call), trio.current_time()
            change = Choice(self.roster, call, waiter.tried, now).next_change()
            with contextlib.suppress(DeadlinePassed):
                await exchange.deadline.bounded(min(change, deadline), waiter.served.wait)
            self.assign_waiters()

    def make_way(self, queue: deque[Waiter], call: Call) -> None:
        """Let a request into a queue; a full one gives way to a key that has fewer in it.

        Raises: PoolerError (pool_busy).
        """
        if len(queue) < QUEUE_LENGTH_MAX:
            return

        counts = Counter(waiter.call.key_name for waiter in queue)
        most, count = max(
            counts.items(),
            key=lambda pair: pair[1],
            default=(("", ""), 0),
        )
        if counts[call.key_name] + 1 >= count:
            raise PoolerError("pool_busy")

        newest = next(waiter for waiter in reversed(queue) if waiter.call.key_name == most)
        queue.remove(newest)
        newest.is_displaced = True
        newest.served.set()

    def find_assignment(
        self, waiter: Waiter, in_vain: set[Hashable] | None = None
    ) -> Assignment | None:
        """A place that is free now, and worth taking.

        If no account has one, what is like the waiter is added to `in_vain`.
        """
        now, call = trio.current_time(), self.roster.current(waiter.call)
        choice = Choice(self.roster, call, waiter.tried, now)
        # A session's own account has its prompt in a cache: if it is back before the deadline, that
        # costs less than to have another account read all of it.
        if choice.returns_at() <= waiter.deadline:
            return None

        for account in choice.ranked():
            if self.roster.leases.has_room(account, call.key_name):
                lease = self.roster.begin(account, call, now)
                return Assignment(lease, self.endpoints.by_name[account.name])
        if in_vain is not None:
            in_vain.add(self.likeness(waiter))
        return None

    def likeness(self, waiter: Waiter) -> Hashable:
        """What decides whether any account has room for a waiter; equal ones fare alike.

        Sessions decide only which account is the best, so they are not in it.
        """
        call, creator = waiter.call, self.roster.sessions.creator_of(waiter.call)
        way = (call.path, call.is_codex_only, call.is_socket)
        return call.key_name, call.model, way, call.obstacle is None, creator, *waiter.tried

    def end_lease(self, lease: Lease) -> None:
        """End a lease; whoever waits for the room that it leaves gets it now."""
        self.roster.end(lease)
        self.assign_waiters()

    def assign_waiters(self) -> None:
        """Serve the requests that wait: first those of the key with the fewest leases, in order."""
        for queue in self.by_pool.values():
            while self.assign_one(queue):
                pass

    def assign_one(self, queue: deque[Waiter]) -> bool:
        """Serve one waiter of the queue; whether any could be served."""
        by_key = self.roster.leases.of_key
        # One choice takes about a millisecond in a large pool, and a client may fill the queue.
        in_vain: set[Hashable] = set()
        # Sorting is stable: requests of keys that have equally many stay in their order.
        for waiter in sorted(queue, key=lambda waiter: by_key[waiter.call.key_name]):
            if self.likeness(waiter) in in_vain:
                continue
            if assignment := self.find_assignment(waiter, in_vain):
                waiter.assignment = assignment
                waiter.served.set()
                queue.remove(waiter)
                return True
        return False


class RefusedReload(NamedTuple):
    """Why pools.json as it is now is not what the pooler uses, and since when."""

    problems: Sequence[str]
    unix: float

    def words(self) -> str:
        """The first problem, and how many more there are; the log has them all."""
        more_count = len(self.problems) - 1
        return self.problems[0] + (f" (and {more_count} more)" if more_count else "")


@dataclass(eq=False)
class Shared:
    """What all requests share: the configuration, and the parts that are made from it."""

    config: Config
    tls_contexts: TlsContexts
    dial: Dial = dial
    unix_now: Callable[[], float] = time.time
    log: Log = print_log
    reaper: Reaper = field(default_factory=Reaper)
    is_draining: bool = False
    is_stopped: bool = False
    endpoints: Endpoints = field(default_factory=Endpoints)
    unpacking: Unpacking = field(default_factory=Unpacking)
    listing: Unpacking = field(default_factory=Unpacking)  # of models: a pool may have thousands
    files: Files = field(default_factory=Files)
    # What each key has used, by the names of pool and key.
    uses: dict[KeyNames, KeyUse] = field(default_factory=lambda: defaultdict(KeyUse))
    started_unix: int = field(default_factory=lambda: int(time.time()))
    codex_version: str = CODEX_VERSION  # the newest that a native client has sent
    refused_reload: RefusedReload | None = None  # the last reload, if its configuration is not used

    def __post_init__(self) -> None:
        """Make the parts, from those that know nothing of the others to those that use them."""
        config = self.config
        self.ledger = Ledger(config.limits.records_max)
        self.idle = IdleConnections(self.reaper)
        self.bodies = Budget(config.limits.bodies_bytes_max)
        self.events = Budget(EVENTS_BYTES_MAX)

        self.roster = Roster(config)
        self.endpoints.reload(config, self.tls_contexts)
        self.queues = Queues(self.roster, self.endpoints, self.unix_now)
        self.tokens = Tokens(
            config.token_url,
            self.dial,
            self.log,
            self.unix_now,
            self.files,
        )
        self.login_watch = LoginWatch(self.roster, self.endpoints, self.tokens)
        self.notices = Notices(self.dial, self.log)
        self.notices.reload(config, self.tls_contexts)
        self.account_watch = AccountWatch(
            self.roster,
            self.endpoints,
            self.tokens,
            self.notices,
        )

    async def look_at_logins(self, accounts: Iterable[Account]) -> None:
        """Notice login files that have changed, and log what that changes at their accounts."""
        await self.login_watch.look(accounts)
        self.account_watch.look()

    def version_for(self, account: Account) -> str:
        """The version of Codex CLI to send to an account: old ones are shown no new models."""
        return account.client_version or self.codex_version

    def note_version(self, version: str) -> None:
        """Take a newer version from a client, and ask for the models that it may list.

        The backend lists a model only to a version that knows it, so with the version alone the
        old lists would stay in use until they are due.
        """
        if version_key(version) <= version_key(self.codex_version):
            return

        self.codex_version = version
        for name, endpoint in self.endpoints.by_name.items():
            if endpoint.account.is_codex:
                health = self.roster.health[name]
                # However many versions clients make up, the list is not requested more often.
                until = health.catalogue_at + CATALOGUE_PAUSE_SECONDS
                health.catalogue_until = min(health.catalogue_until, until)

    def log_bug(self, request_id: str | None) -> None:
        """Log type and place of the current exception; its text could hold a client's.

        Of a group it is the first, and of each frame the function and line: no values.
        """
        error = sys.exc_info()[1]
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        trace = traceback.extract_tb(error.__traceback__ if error else None)
        frames = [f"{frame.name}:{frame.lineno}" for frame in trace]
        name = type(error).__name__
        self.log(
            "error",
            "bug",
            {"request_id": request_id, "type": name, "at_frames": frames},
        )


@dataclass(eq=False, slots=True)
class Deadline:
    """Bounds each wait of a request for others: by a time, and by what stops the request at once.

    All times are Trio's clock.  `stage` and `timer`, the name of a limit, say what a wait that took
    too long was for.  Nothing that writes to the client waits in here: a send that is cut tears an
    event apart.
    """

    stop_code: Callable[[], str]  # why no wait may go on, or ""
    began_at: float = field(default_factory=trio.current_time)
    stage: Stage = Stage.SEND
    timer: str = ""
    at: float = math.inf  # of the next event, or of a response in one piece
    whole_at: float = math.inf  # of a response that is collected from events
    scope: trio.CancelScope | None = None  # of the latest wait

    def age_ms(self) -> int:
        """The milliseconds since the request began."""
        return round((trio.current_time() - self.began_at) * 1000)

    def begin(
        self,
        stage: Stage,
        timer: str,
        seconds: float = math.inf,
    ) -> None:
        """Begin a stage, which the limit `timer` bounds to `seconds`."""
        self.stage, self.timer = stage, timer
        self.at = trio.current_time() + seconds

    def move(self, seconds: float) -> None:
        """There was progress: the next event is due, or the end of a response that is collected."""
        self.at, self.timer = trio.current_time() + seconds, "between_events_seconds_max"
        if self.whole_at < self.at:
            self.at, self.timer = self.whole_at, "unary_seconds_max"

    def cancel(self) -> None:
        """End the wait in progress, if there is one: `stop_code` has changed."""
        if self.scope is not None:
            self.scope.cancel()

    async def bounded(self, until: float, wait: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """`await wait(*args)`, at most until that time, and only if nothing stops the request.

        Raises: DeadlinePassed; PoolerError (the stop code).
        """
        # Checked before and after: a stop may come while nothing waits, or end the wait itself.
        if not self.stop_code():
            with trio.CancelScope(deadline=until) as self.scope:
                return await wait(*args)
        if code := self.stop_code():
            raise PoolerError(code)
        raise DeadlinePassed


class Reply(Protocol):
    """What carries the response to a client: HTTP, or the events of a WebSocket's turn.

    A stream is started, fed and ended; a response in one piece, or an error in place of either, is
    one call.  Everything that waits raises ClientGone.
    """

    is_started: bool  # something was sent, so an error can no longer take its place
    is_whole: bool  # the response was sent to its end
    closes: bool  # no other request follows on the connection
    copies_held: int  # of events in progress, in memory

    @property
    def is_gone(self) -> bool:
        """Whether the client has left."""

    async def start(
        self,
        status: int,
        headers: Sequence[Field],
        events: Sequence[bytes],
    ) -> None:
        """Begin a stream with its first events."""

    def put(self, events: Sequence[bytes]) -> bool:
        """Send whole events as far as the client takes them; whether it took all."""

    async def flush(self) -> None:
        """Send what the client has not taken."""

    async def comment(self, *, is_native: bool) -> None:
        """Show in a silence that the stream goes on; a native client's timer wants an event."""

    async def end(self, last: Sequence[bytes]) -> None:
        """End the stream with these events."""

    async def respond(
        self,
        status: int,
        body: bytes,
        headers: Sequence[Field] = JSON,
        *,
        is_own: bool = True,
    ) -> None:
        """Send a response in one piece; `is_own`: it is the pooler's, not an upstream's."""

    async def fail(self, error: PoolerError) -> None:
        """Send an error; nothing was sent before."""


@dataclass(eq=False, slots=True)
class HttpReply:
    """A response of HTTP (a `Reply`): a stream is chunked, or in HTTP/1.0 ended by closing."""

    shared: Shared
    connection: ClientConnection
    record: Record
    deadline: Deadline  # whose clock measures the request's age
    request: RequestHead = UNREAD  # without its headers, which a stream need not keep
    is_started: bool = False
    is_whole: bool = False
    closes: bool = True  # until the request has been read whole
    copies_held: int = 1
    unsent: bytes = b""  # of a chunk

    @property
    def is_gone(self) -> bool:
        """Whether the client has closed, or takes nothing any more."""
        return self.connection.is_gone

    async def start(
        self,
        status: int,
        headers: Sequence[Field],
        events: Sequence[bytes],
    ) -> None:
        """Send the head of a stream and its first events as one chunk."""
        await self._begin(status, headers, b"".join(events), None)

    async def respond(
        self,
        status: int,
        body: bytes,
        headers: Sequence[Field] = JSON,
        *,
        is_own: bool = True,
    ) -> None:
        """Send a response with its Content-Length."""
        if is_own:
            headers = [*headers, *OWN]
        await self._begin(status, headers, body, len(body))
        self.is_whole = True

    async def fail(self, error: PoolerError) -> None:
        """Send an error as a response in one piece.

        An upstream's own body is sent without the headers that mark a response as ours (`OWN`).
        """
        assert not self.is_started
        self.record.code = error.record_code
        body, content_type = error.content()
        headers = [("content-type", content_type), *error.headers]
        await self.respond(
            error.status,
            body,
            headers,
            is_own=error.upstream_response is None,
        )

    async def _begin(
        self,
        status: int,
        headers: Sequence[Field],
        body: bytes,
        length: int | None,
    ) -> None:
        """Send the head and the first of the body; without a length it is streamed.

        What the record says of the response is set before anything is sent: a client that leaves
        in the middle is logged with the status that it was sent.  Raises: ClientGone.
        """
        is_stream = length is None
        self.is_started = True
        self.record.status = status
        self.record.transport = "sse" if is_stream else "http"
        self.record.first_byte_ms = self.deadline.age_ms()

        if self.request.method == "HEAD":
            body = b""
        elif is_stream and body:
            body = self._framed(body)
        self.record.bytes_out += len(body)

        raw = format_response_head(status, [*headers, *self._own_headers(length)])
        # A short body goes out with its head in one system call; joining a large one would copy it.
        if len(body) < RECEIVE_BYTES:
            await self.connection.send(raw + body)
        else:
            await self.connection.send(raw)
            await self.connection.send(body)

    def _own_headers(self, length: int | None) -> list[Field]:
        """The id and the date, the framing, and whether the connection goes on.

        HTTP/1.0 has no chunks, so there a stream ends with its connection (RFC 9112 §6.3), and one
        that stays open must be announced; in HTTP/1.1 only one that closes (RFC 9112 §9.3).
        """
        is_stream = length is None
        is_http_1_0 = self.request.is_http_1_0
        self.closes |= not self.request.keeps_alive
        self.closes |= self.shared.is_draining
        self.closes |= is_stream and is_http_1_0

        headers = [("x-request-id", self.record.request_id)]
        headers.append(("date", format_utc(_HTTP_DATE, int(time.time()))))
        if not is_stream:
            headers.append(("content-length", str(length)))
        elif not is_http_1_0:
            headers.append(("transfer-encoding", "chunked"))
        if self.closes:
            headers.append(("connection", "close"))
        elif is_http_1_0:
            headers.append(("connection", "keep-alive"))
        return headers

    def _framed(self, body: bytes) -> bytes:
        """`body` as a chunk, an empty one being the last; HTTP/1.0 has none."""
        return body if self.request.is_http_1_0 else format_chunk(body)

    def put(self, events: Sequence[bytes]) -> bool:
        """Send events as one chunk, as far as the socket takes it; whether it took all."""
        body = b"".join(events)
        if not body:
            return True
        self.record.bytes_out += len(body)
        framed = self._framed(body)
        # What the socket does not take is left for `flush`: only that may wait for the client.
        self.unsent = framed[self.connection.wire.send_now(framed) :]
        return not self.unsent

    async def flush(self) -> None:
        """Send the rest of the chunk."""
        unsent, self.unsent = self.unsent, b""
        if unsent:
            await self.connection.send(unsent)

    async def comment(self, *, is_native: bool) -> None:
        """Send a comment; Codex CLI's timer ignores those, and gets an event (F76)."""
        comment = NATIVE_COMMENT if is_native else COMMENT
        await self.connection.send(self._framed(comment))

    async def end(self, last: Sequence[bytes]) -> None:
        """Send the last events, and the end of the body with them."""
        body = b"".join(last)
        self.record.bytes_out += len(body)
        framed = self._framed(body) if body else b""
        await self.connection.send(framed + self._framed(b""))
        self.is_whole = True


class Source(Protocol):
    """Where the response to one attempt comes from: HTTP, or the messages of a WebSocket.

    Everything that waits raises PeerClosed and BadSyntax.
    """

    @property
    def is_at_end(self) -> bool:
        """Whether no event follows."""

    @property
    def bytes_pending(self) -> int:
        """The bytes that are held of an event, or a response, that is not whole."""

    async def read_head(self) -> ResponseHead | None:
        """Status and headers; None for a response that begins with its first event."""

    @property
    def has_body(self) -> bool:
        """Whether the whole body has come with the head, so that `read_body` waits for nothing."""

    def early_events(self) -> Sequence[bytes]:
        """The messages that came in front of the error that a turn began with."""

    async def read_body(self, bytes_max: int, held: HeldBytes) -> bytes:
        """The body of a response in one piece, which is held.  Raises PoolerError, too."""

    async def receive(self, keeps_error: bool = False) -> Sequence[Event]:
        """What comes next: any number of whole events.

        `keeps_error`: an error in one piece is kept for `take_error`, and makes no event.
        """

    def take_error(self) -> tuple[JsonObject, bytes] | None:
        """An error that came in one piece instead of events, and its body; once only."""


@dataclass(eq=False, slots=True)
class HttpSource:
    """A response of HTTP (a `Source`): events, or one piece, even if a stream was requested."""

    connection: UpstreamConnection
    scanner: EventScanner
    is_at_end: bool = False
    ahead: bytes = b""  # received, and not split into events yet
    is_blank: bool = True  # nothing has come yet that could tell events from JSON
    whole: bytearray | None = None  # of the response that came instead of events
    error: tuple[JsonObject, bytes] | None = None

    @property
    def bytes_pending(self) -> int:
        """The bytes that are held of an event, or a response, that is not whole."""
        return self.scanner.bytes_pending + len(self.whole or b"")

    async def read_head(self) -> ResponseHead | None:
        """Status and headers, which are not kept: a stream may take an hour."""
        head = await self.connection.read_head()
        self.connection.head = head._replace(headers=NO_FIELDS)
        return head

    @property
    def has_body(self) -> bool:
        """Whether the whole body has come with the head, as a short one nearly always has."""
        return self.connection.wire.holds(self.connection.head.framing)

    def early_events(self) -> Sequence[bytes]:
        """Nothing: in HTTP an error comes alone."""
        return ()

    async def read_body(self, bytes_max: int, held: HeldBytes) -> bytes:
        """The whole body, which is held."""
        return await self.connection.read_body(bytes_max, held)

    async def receive(self, keeps_error: bool = False) -> Sequence[Event]:
        """The events that the next bytes, or the end, complete."""
        if self.ahead:
            await trio.lowlevel.checkpoint()  # others run between two steps of what came at once
            received, self.ahead = self.ahead, b""
        else:
            received = await self.connection.receive_body()
            self.is_at_end = not received
            if self.is_blank or self.whole is not None:
                received = self._as_events(received, keeps_error)

        some_lines = _SOME_LINES.match(received)
        if some_lines is not None and not self.is_at_end:
            if run := self.scanner.take_run(received):
                return [run]
            received, self.ahead = some_lines[0], received[some_lines.end() :]
        return self.scanner.feed(received, is_end=self.is_at_end)

    def _as_events(self, received: bytes, keeps_error: bool) -> bytes:
        """What was received; of a response in one piece nothing, and at its end its events.

        Raises: BadSyntax, if it is neither.
        """
        # JSON begins with a bracket, a stream of events with the name of a field or a colon.  White
        # space before either decides nothing.
        if self.is_blank:
            start = received.removeprefix(_BYTE_ORDER_MARK).lstrip()[:1]
            self.is_blank = not start
            self.whole = bytearray() if start in {b"{", b"["} else None

        if self.whole is None:
            return received

        self.whole += received
        if len(self.whole) > WRITTEN_BYTES_MAX:
            raise BadSyntax("response too large")
        if received:
            return b""

        # The end has come: what was collected is one JSON value.
        body, self.whole = bytes(self.whole), bytearray()
        value = load_object(body, WHOLE_MEMBERS_MAX)
        if keeps_error and is_error(value):
            self.error = value, body
            return b""
        return events_of(value, self.scanner.kind)

    def take_error(self) -> tuple[JsonObject, bytes] | None:
        """An error that came in one piece instead of events, and its body; once only."""
        error, self.error = self.error, None
        return error


class Outgoing(NamedTuple):
    """A request for an account's upstream, and what reads the events of its response.

    The body is what this account gets: translated, or with the model's name replaced, as required.
    """

    endpoint: Endpoint
    path: str
    authorization: Authorization
    body: bytes
    scanner: EventScanner


class Transport(Protocol):
    """How a client's requests reach accounts: over HTTP, or as turns of a WebSocket."""

    async def send(self, outgoing: Outgoing) -> Source | Fault:
        """Send a request; where its response comes from, or why it was not sent.

        Raises: TRANSPORT_ERRORS; PoolerError.
        """

    def keep(self, endpoint: Endpoint) -> bool:
        """Keep the connection that was used for the account's next request, if it can be kept.

        Returns False if it must be closed.  It nearly never must, so keeping waits for nothing.
        """

    async def close(self) -> None:
        """Close the connection that was not kept."""


@dataclass(eq=False, slots=True)
class HttpTransport:
    """A connection to an upstream for each attempt (a `Transport`), kept if that ended well."""

    shared: Shared
    deadline: Deadline
    limits: Limits
    has_gone: Callable[[], bool]  # whether the client has
    upstream: UpstreamConnection | None = None

    async def connect(self, endpoint: Endpoint) -> UpstreamConnection:
        """A new connection to the account's upstream, held by `upstream`.

        Raises: ConnectFailed; PoolerError (the stop code).
        """
        stream = await self.deadline.bounded(
            math.inf,
            connect,
            self.shared.dial,
            endpoint.account.base_url,
            endpoint.tls,
            endpoint.proxy,
        )
        self.shared.roster.hosts.note_reached(endpoint.account)
        self.upstream = UpstreamConnection(stream)
        return self.upstream

    async def send(self, outgoing: Outgoing) -> Source | Fault:
        """Send the request on an idle connection, or a new one.  Raises: TRANSPORT_ERRORS.

        An idle connection that turns out closed before the last byte was written is replaced
        once, silently.  A slow uplink may take its time as long as it moves.
        """
        endpoint, authorization, body = outgoing.endpoint, outgoing.authorization, outgoing.body
        head = request_head(
            endpoint.account.base_url,
            outgoing.path,
            authorization.secret,
            authorization.fields,
            body,
        )
        self.upstream = await self.shared.idle.take(endpoint)

        while True:
            upstream = self.upstream or await self.connect(endpoint)
            self.deadline.begin(Stage.SEND, "write_stall_seconds_max")
            try:
                steps = upstream.begin(head, body)
                if steps is not None:  # else it cost no task and no timer
                    await self.deadline.bounded(math.inf, upstream.send_rest, steps)
            except trio.BrokenResourceError:
                if upstream.kept is None:
                    raise
            else:
                return HttpSource(upstream, outgoing.scanner)

            # Its upstream had closed it before it had the whole request: nothing is done twice.
            self.upstream = None
            await upstream.close()

    def keep(self, endpoint: Endpoint) -> bool:
        """Keep the connection for the account's next request; False if it must be closed."""
        upstream, shared = self.upstream, self.shared
        if upstream is None:
            return True
        if self.has_gone() or shared.is_draining or not upstream.is_reusable:
            return False

        # After a reload the account's address or credentials may be others.
        if not (shared.endpoints.is_current(endpoint) and shared.idle.give(endpoint, upstream)):
            return False
        self.upstream = None
        return True

    async def close(self) -> None:
        """Close the connection that was not kept."""
        upstream, self.upstream = self.upstream, None
        assert upstream is not None
        await upstream.close()


@dataclass(eq=False, slots=True)
class Exchange:
    """One request of a client, and what its parts share: see Reply, Transport and Deadline."""

    shared: Shared
    connection: ClientConnection
    record: Record
    config: Config  # as the request found it: a reload does not change it
    deadline: Deadline
    reply: Reply
    transport: Transport
    held: HeldBytes  # of `body`, and of what was made of it
    head: RequestHead = UNREAD
    body: bytes = b""
    parsed: JsonDict | None = None  # the object in `body`, if it is kept for its translation
    carried: Sequence[str] = ()  # fields that a translated body keeps unchanged
    call: Call | None = None
    use: KeyUse | None = None  # of the key, which counts the call
    is_billable: bool = False  # an upstream has read it whole, and may have worked on it
    is_sent: bool = False  # the upstream of the latest attempt has read it whole
    has_ended: bool = False  # a stream's terminal event was sent, or kept for a whole response
    silent_since: float = math.inf  # when the client began to wait, its request being out

    @property
    def limits(self) -> Limits:
        """Those of the configuration that the request found."""
        return self.config.limits

    @property
    def price(self) -> Price | None:
        """The price of the model that was called, if it has one."""
        return self.config.prices.get(self.call.model) if self.call else None

    @property
    def holder(self) -> KeyNames:
        """For whom bytes are held: the key."""
        return self.record.pool or "", self.record.key or ""

    def begin(self, head: RequestHead) -> None:
        """Take the head of the request: it decides how a response is framed."""
        assert isinstance(self.reply, HttpReply)
        self.head = head
        self.reply.request = head._replace(headers=NO_FIELDS)

    async def read_body(self, limits: Limits) -> None:
        """Read the request's body, in time.  Raises: PoolerError, ClientGone."""
        read = functools.partial(
            self.connection.read_body,
            self.head,
            limits,
            self.held,
        )
        until = self.deadline.began_at + BODY_SECONDS_MAX
        try:
            if self.connection.wire.holds(self.head.framing):  # a deadline is not worth its cost
                self.body = await read()
            else:
                self.body = await self.deadline.bounded(until, read)
        except DeadlinePassed:
            raise PoolerError("request_timeout") from None
        self.reply.closes = False

    def replace_body(self, body: bytes) -> None:
        """Hold this body and no other, and not what was parsed."""
        self.body, self.parsed = body, None
        self.held.replace(len(body))

    def keep_parsed(self, call: Call, value: JsonDict) -> None:
        """Keep the object in the body if it may be translated, and if there is room for both.

        Otherwise the body is parsed again: a few milliseconds are worth less than another request.
        """
        if call.is_native or call.is_unary or call.obstacle or not call.pool.has_codex:
            return
        byte_count = parsed_size(self.body, count_beginnings(self.body))
        if byte_count <= PARSED_BYTES_MAX:
            with contextlib.suppress(PoolerError):
                self.held.grow(byte_count)
                self.parsed = value

    async def cut(self, error: PoolerError) -> None:
        """End what has been begun: a stream with one terminal event.  Raises: ClientGone.

        After a bug, or if the body cannot be ended cleanly, the connection ends with it; so does a
        WebSocket, as nobody knows how far its turn has come.
        """
        reply, call = self.reply, self.call
        self.record.code = error.record_code
        if reply.is_whole or call is None or self.record.transport == "http":
            reply.closes = True
            return

        is_bug = error.code == "internal_error"
        reply.closes |= call.is_socket or is_bug or self.shared.is_draining
        if self.has_ended:
            await reply.end(())
            return

        if error.upstream_response is not None:  # an upstream's body, which is no event
            upstream_error = read_error(try_load_object(error.upstream_response[0]))
            error = dataclasses.replace(
                error, upstream_response=None, public=upstream_error.message
            )
        scanner = EventScanner(call.kind, is_socket=call.is_socket)
        await reply.end([scanner.failure_event(error, self.record.request_id, call.kind)])


def crossing_headers(frame: JsonObject) -> JsonDict:
    """The headers that a frame of an upstream's WebSocket has, as far as a client may see them."""
    if "headers" not in frame:
        return {}
    headers = object_of(frame["headers"])
    crossing: JsonDict = {
        name: value for name, value in headers.items() if name.lower() in NATIVE_TO_CLIENT
    }
    return {"headers": crossing}


TROUBLES: Final = {
    DeadlinePassed: Trouble.TIMEOUT,
    BadSyntax: Trouble.SYNTAX,
    HeadTooLarge: Trouble.SYNTAX,
}


async def authorize(
    tokens: Tokens, endpoint: Endpoint, rejected: Credentials | None = None
) -> Authorization:
    """The credentials to send upstream: a bearer token and extra header fields.

    `rejected`: credentials that the upstream has refused.  Raises: LoginNeeded.
    """
    if endpoint.login is None:
        return Authorization(endpoint.account.api_key, [("user-agent", API_AGENT)])
    credentials = await tokens.credentials(endpoint.login, rejected)
    account_id = credentials.account_id
    fields = [("chatgpt-account-id", account_id)] if account_id else []  # F17
    return Authorization(credentials.access_token, fields, credentials)


def classify_trouble(error: Exception, deadline: Deadline) -> Fault:
    """What a failure of the connection means, at the stage that the attempt has come to."""
    if isinstance(error, ConnectFailed):
        return classify_connect(error.cause)
    trouble = TROUBLES.get(type(error), Trouble.CLOSED)
    return classify_transport(deadline.stage, trouble, deadline.timer)


async def yield_after(body: bytes) -> None:
    """Let others run between two steps that block the loop for a large body."""
    if len(body) > RECEIVE_BYTES:
        await trio.lowlevel.checkpoint()


async def read_json(body: bytes, parse: Callable[[str], JsonDict]) -> JsonDict:
    """The object that `parse` finds in a body; others run after each of the two steps.

    A single wide character makes the text of a large body take four times as much memory, so that
    to decode it takes as long as to parse it.  Raises: PoolerError (invalid_json).
    """
    text = decode_body(body)
    await yield_after(body)

    value = parse(text)
    del text  # before anybody else's takes as much
    await yield_after(body)
    return value


async def share_after(message: bytes) -> None:
    """As `yield_after`, but no deadline ends it: what has been taken would be lost."""
    if len(message) > RECEIVE_BYTES:
        await trio.lowlevel.cancel_shielded_checkpoint()


async def await_head(exchange: Exchange, call: Call, source: Source) -> ResponseHead | None:
    """The head of the response; in a long silence a stream's client is shown that it goes on.

    However many accounts are tried, to the client it is one silence.  From then on it has its 200,
    so whatever comes later is reported in its stream.
    """
    deadline, reply = exchange.deadline, exchange.reply
    exchange.silent_since = min(exchange.silent_since, trio.current_time())
    comment_at = math.inf
    if call.is_stream:
        comment_at = exchange.silent_since + SILENCE_SECONDS_MAX

    deadline_at = deadline.at
    while True:
        until = min(deadline_at, comment_at)
        with contextlib.suppress(DeadlinePassed):
            return await deadline.bounded(until, source.read_head)
        if until >= deadline_at:
            raise DeadlinePassed

        # A WebSocket has no head to send, and an error can still be a message of its own.
        if not (reply.is_started or call.is_socket):
            await reply.start(200, stream_headers(()), ())
        await reply.comment(is_native=call.is_native)
        comment_at = trio.current_time() + exchange.limits.comment_seconds


@dataclass(eq=False, slots=True)
class LimitNews:
    """What a response reports of its account's limits, which also serves to classify its error."""

    shared: Shared
    account: Account
    words: LimitWords = NO_LIMIT_WORDS  # so far

    def note_head(self, headers: Headers, messages: Sequence[bytes]) -> None:
        """Note the limits that a codex account reports, in the head or in messages before it."""
        if not self.account.is_codex:
            return
        self.words = read_limit_words(headers)
        self.note_quota(self.words.windows)
        for message in messages:
            self.note_quota(read_quota_event(try_load_object(message)))

    def note_quota(self, windows: Sequence[Window]) -> None:
        """Take news of a quota: of each family of windows the latest counts."""
        # A response may name a quota twice, in its head and in an event: the later one is right.
        families = {window.family for window in windows}
        kept = [window for window in self.words.windows if window.family not in families]
        latest = [*kept, *windows][-QUOTA_WINDOWS_MAX:]
        self.words = self.words._replace(windows=latest)
        now, unix_now = trio.current_time(), self.shared.unix_now()
        self.shared.roster.note_quota(self.account, windows, now, unix_now)

    def completed(self, fault: Fault, call: Call) -> Fault:
        """The fault, with what only the response and its request know of it."""
        if fault.effect is Effect.LACKS_ROUTE:
            return fault._replace(about=call.path)
        return classify_limit(
            fault,
            self.words,
            self.account.name_of(call.model),
        )


@dataclass(eq=False, slots=True)
class Opened:
    """The response to an attempt, from its head on, and what the client gets of it.

    `open` reads it up to the first content; from there on it is the relay's.
    """

    exchange: Exchange
    call: Call
    account: Account
    source: Source
    scanner: EventScanner  # of a response in one piece: what would have been its sums
    translator: Translator | None  # None: the response is passed on unchanged
    held: HeldBytes  # what is held of it
    news: LimitNews = field(init=False)
    status: int = 0
    headers: Headers = field(default_factory=lambda: NO_FIELDS)
    body: bytes = b""  # of a response in one piece
    events: list[bytes] = field(default_factory=list)  # read, and not sent yet
    event_count: int = 0  # those that are progress
    end: EventKind | None = None  # of those passed on, the latest that ends a stream

    def __post_init__(self) -> None:
        self.news = LimitNews(self.exchange.shared, self.account)

    @property
    def is_streamed(self) -> bool:
        """Whether the upstream streams it, for the client or for the pooler."""
        return self.call.is_stream or self.translator is not None

    @property
    def is_reshaped(self) -> bool:
        """Whether it becomes another form's before the client has it."""
        return self.account.is_codex and not self.call.is_native

    # The head, and a response in one piece.

    async def open(self) -> Fault | None:
        """Read the response up to its first content; why there is none.

        Raises: TRANSPORT_ERRORS, PoolerError (the stop code, pool_busy), ClientGone.
        """
        limits, deadline = self.exchange.limits, self.exchange.deadline
        deadline.begin(Stage.HEAD, "unary_seconds_max", limits.unary_seconds_max)
        deadline.whole_at = math.inf if self.call.is_stream else deadline.at
        if self.is_streamed:
            seconds = self.account.first_event_seconds
            deadline.begin(Stage.HEAD, "first_event_seconds_max", seconds)

        # A response other than 2xx is a refusal: its body says why, and nothing of it is an event.
        head = await await_head(self.exchange, self.call, self.source)
        deadline.stage = Stage.BODY
        if head is not None:
            self.status, self.headers = head.status, head.headers
            self.news.note_head(head.headers, self.source.early_events())
            if not 200 <= head.status < 300:
                return await self.read_refusal()

        if has_coding(self.headers):
            raise BadSyntax("content-encoding")
        if not self.is_streamed:
            self.body = await self.read_whole()
            return self.note_response()
        # A website's; a stream without any type is fine (F30).
        if "html" in self.headers.get("content-type", "").lower():
            raise BadSyntax("content-type")
        return await self.hold()

    async def read_whole(self) -> bytes:
        """The body of a response in one piece.  Raises: as `open`."""
        read, limit = self.source.read_body, UNARY_BYTES_MAX
        if self.source.has_body:  # a deadline is not worth its cost
            return await read(limit, self.held)
        deadline = self.exchange.deadline
        return await deadline.bounded(deadline.at, read, limit, self.held)

    def note_response(self) -> Fault | None:
        """Note id and usage of a response in one piece; the fault, if it is an error in a 200.

        One that would take long to read is passed on unread, and nothing is noted.
        Raises: BadSyntax, if it is not JSON.
        """
        value: Json = None
        if len(self.body) <= UNARY_READ_BYTES_MAX:
            try:
                value = load_json(self.body)
            except ValueError:
                raise BadSyntax("not JSON") from None
            except BadSyntax:
                pass

        response = object_of(value)
        if is_error(response) and (fault := self.fault_of(response, self.body)):
            return fault
        self.scanner.response = members_of(response, RESPONSE_FIELDS)  # the rest may be large
        self.scanner.usage = read_usage(response.get("usage"))
        return None

    def fault_of(self, value: JsonObject, body: bytes) -> Fault | None:
        """What an error in a 200 means; None for a response that failed by the request's own fault.

        That is how an API reports it; the client gets it unchanged.
        """
        failure = failure_of(value)
        if fault := self.classify(failure):
            return fault
        if value.get("object") == "response" and not self.is_streamed:
            return None
        return own_fault(failure, b"" if self.translator else body)

    async def read_refusal(self) -> Fault:
        """What a response other than 2xx means.

        The status alone suffices if the body is cut or late, or there is no room for it.
        """
        deadline, body, is_whole = self.exchange.deadline, b"", False
        until = min(deadline.at, trio.current_time() + ERROR_BODY_SECONDS_MAX)
        read = self.source.read_body
        try:
            with contextlib.suppress(PeerClosed, BadSyntax, DeadlinePassed):
                body = await deadline.bounded(until, read, ERROR_BODY_BYTES_MAX, self.held)
                is_whole = True
        except PoolerError as error:
            if error.code != "pool_busy":
                raise

        # Without a body, status and headers still distinguish a limit from a refusal or an outage.
        fault = classify_response(
            self.status,
            self.headers,
            body,
            self.exchange.shared.unix_now(),
            is_reshaped=self.is_reshaped,
            is_whole=is_whole,
        )
        return self.news.completed(fault, self.call)

    def classify_failure(self) -> Fault | None:
        """What the failure that the stream has reported means, if it has."""
        failure = self.scanner.failure
        return None if failure is None else self.classify(failure)

    def classify(self, failure: JsonObject) -> Fault | None:
        """What a failure means; None for one of the request itself."""
        fault = classify_event(failure, self.exchange.shared.unix_now())
        return fault and self.news.completed(fault, self.call)

    # Events.

    async def hold(self) -> Fault | None:
        """Read events until content or the end of the hold; why the response is none.

        What is read is held, so that after a failure another account can be tried.
        Raises: as `open`.
        """
        # What is collected for a response in one piece is held to its end.
        hold_until = events_max = math.inf
        if self.call.is_stream:
            hold_until = trio.current_time() + HOLD_SECONDS_MAX
            events_max = HANDSHAKE_EVENTS_MAX

        byte_count = 0
        while self.event_count <= events_max:
            received = await self.receive_until(hold_until)
            if received is None:
                return None
            if error := self.source.take_error():
                return self.fault_of(*error)

            # None of these is sent yet: until the first content another account can still be tried.
            events = self.take(received)
            self.events += events
            byte_count += sum(map(len, events))
            if self.scanner.has_content:
                self.hold_unsent(byte_count)
                return None
            if fault := self.classify_failure():
                return fault
            if self.scanner.terminal:
                return None

            if self.source.is_at_end:
                raise PeerClosed
            self.count_held(byte_count)
        return None

    async def receive_until(self, hold_until: float) -> Sequence[Event] | None:
        """What the source yields next; None if the hold ends before.

        Raises: as `open`; DeadlinePassed, if the deadline comes before the end of the hold.
        """
        deadline = self.exchange.deadline
        until = min(hold_until, deadline.at)
        keeps_error = not self.exchange.reply.is_started
        try:
            return await deadline.bounded(until, self.source.receive, keeps_error)
        except DeadlinePassed:
            if until < hold_until:
                raise
            return None

    def count_held(self, held_back: int = 0) -> None:
        """Count what is held: an unfinished event, whole ones held back, what the end is made of.

        Raises: BadSyntax, if one event is too large; PoolerError (pool_busy).
        """
        pending = self.source.bytes_pending
        kept = 0 if self.translator is None else self.translator.output.bytes_kept
        byte_count = pending + held_back + kept
        if byte_count == self.held.byte_count:  # as after nearly every event
            return
        if max(pending, held_back) > EVENT_BYTES_MAX:
            raise BadSyntax("event too large")
        self.held.resize(byte_count)

    def hold_unsent(self, byte_count: int) -> None:
        """Hold events that are about to be sent, if they are large, until the next one.

        The client may take its time.  Raises: PoolerError (pool_busy).
        """
        if byte_count > RECEIVE_BYTES:
            self.held.grow(self.exchange.reply.copies_held * byte_count)

    def take(self, events: Sequence[Event]) -> list[bytes]:
        """What the client's stream gets for these events.  News of a quota is noted.

        Raises: BadSyntax; PoolerError (pool_busy).
        """
        self.count_held()
        self.count_progress(events)
        if self.account.is_codex:
            shown = [(event, self.shown(event)) for event in events]
            return self.masked(shown) if self.call.is_stream else []
        if self.scanner.terminal is None and not self.scanner.has_done:  # as nearly always
            return [event.raw for event in events]
        passing = [event for event in events if self.passes(event.kind)]
        return self.masked([(event, event.raw) for event in passing])

    def count_progress(self, events: Sequence[Event]) -> None:
        """Count what is progress; the next event is due from now on."""
        count = sum([event.event_count for event in events if event.kind is not EventKind.IDLE])
        if count:
            self.event_count += count
            self.exchange.deadline.move(self.exchange.limits.between_events_seconds_max)

    def passes(self, kind: EventKind) -> bool:
        """Let the next event pass, or not: after one terminal event only `[DONE]` does.

        Clients take the first end for the end, and a second one could contradict it.  A stream of
        Chat is ended by `[DONE]` alone.
        """
        scanner, before = self.scanner, self.end
        is_before_end = scanner.terminal is None and not scanner.has_done
        if is_before_end or kind is EventKind.IDLE:
            return True
        if kind is EventKind.DONE:
            is_fit = before is not None or scanner.kind is CallKind.CHAT
            self.end = kind if is_fit else before
            return is_fit and before is not EventKind.DONE
        if before is None and kind in TERMINAL_KINDS:
            self.end = kind
        return before is None

    def shown(self, event: Event) -> bytes:
        """What the client's stream gets for one event of a codex account.  Raises: BadSyntax.

        Codex CLI gets its events unchanged: `codex.rate_limits` names a plan, and nobody (F33).
        """
        kind, raw = event.kind, event.raw
        if kind is EventKind.HANDSHAKE and b'"codex.rate_limits"' in raw:
            self.news.note_quota(read_quota_event(event.try_load()))
        if self.translator is not None:
            return self.translator.feed(event)
        if not self.passes(kind):
            return b""
        if kind not in {EventKind.FAILURE, EventKind.HANDSHAKE}:
            return raw

        # Their name in plain letters, or with one of them escaped.
        if b'"headers"' not in raw and b"\\u00" not in raw:
            return raw
        # Of a WebSocket's response they are the head, in which nothing of the account may be.
        value = event.load()
        crossing = value | crossing_headers(value)
        return raw if crossing == value else event_with_data(event, crossing)

    def masked(self, shown: Sequence[tuple[Event, bytes]]) -> list[bytes]:
        """The events as shown, with our own in place of one that clients must not see.

        They must not see an account's own trouble, nor, in a response that is translated anyway, a
        code of ours that an upstream has used.
        """
        texts = [text for _, text in shown]
        if self.scanner.failure is not None:
            for index, (event, text) in enumerate(shown):
                error = self.error_instead(event.kind) if text else None
                if error is not None:
                    is_numbered = b'"sequence_number"' in text
                    texts[index] = self.failure_event(error, is_instead=is_numbered)
        return [text for text in texts if text]

    def error_instead(self, kind: EventKind) -> PoolerError | None:
        """The error to show in place of an event of this kind; None if the event may be shown.

        Only failures are replaced: their messages may be about the account.
        """
        failure = self.scanner.failure or {}
        if kind is not EventKind.FAILURE:
            return None
        return public_error(self.classify_failure(), failure, is_reshaped=self.is_reshaped)

    def failure_event(self, error: PoolerError, *, is_instead: bool = False) -> bytes:
        """Our terminal event; `is_instead`: it replaces the latest, with its sequence number."""
        request_id = self.exchange.record.request_id
        return self.scanner.failure_event(
            error,
            request_id,
            self.call.kind,
            is_instead=is_instead,
        )


@dataclass(eq=False, slots=True)
class Attempt:
    """A request sent to one account: `open` has its response, or why there is none.

    A repair, for instance a new token, is another attempt at the same account.
    """

    exchange: Exchange
    call: Call
    endpoint: Endpoint
    held: HeldBytes  # of the response
    credentials: Credentials | None = None  # sent with the request, of a codex account

    async def open(self, rejected: Credentials | None) -> Opened | Fault:
        """Send the request, and read the response up to its first content.

        `rejected`: the credentials that this account's upstream has just refused.
        Raises: PoolerError (the stop code, invalid_value, pool_busy), ClientGone.
        """
        try:
            return await self.ask(rejected)
        except LoginNeeded:
            error = PoolerError("no_usable_account")
            return Fault("login needed", Action.NEXT, Effect.NONE, error, is_refusal=True)
        except TRANSPORT_ERRORS as error:
            return classify_trouble(error, self.exchange.deadline)

    async def ask(self, rejected: Credentials | None) -> Opened | Fault:
        """As `open`, whose faults of the login and of the transport it raises instead.

        Raises: LoginNeeded, TRANSPORT_ERRORS; PoolerError, ClientGone.
        """
        exchange, call, account = self.exchange, self.call, self.endpoint.account
        exchange.is_sent = False
        # Only a codex account's token may need a refresh, which waits and so must be bounded.
        login = (exchange.shared.tokens, self.endpoint, rejected)
        if account.is_codex:
            authorization = await exchange.deadline.bounded(math.inf, authorize, *login)
        else:
            authorization = await authorize(*login)
        self.credentials = authorization.credentials

        # What is sent is translated if this account speaks another form than the client.
        body, translator = await self.prepare()
        kind = CallKind.RESPONSES if account.is_codex else call.kind
        is_translated = translator is not None
        scanner = EventScanner(
            kind,
            is_socket=call.is_socket,
            is_translated=is_translated,
            joins_content=not (call.is_socket or is_translated),
        )

        # The backend has no Chat: all that is translated goes to the one path (F1).
        path = CallKind.RESPONSES.value if is_translated else call.path
        authorization = authorization._replace(fields=[*authorization.fields, *self.fields()])
        outgoing = Outgoing(self.endpoint, path, authorization, body, scanner)
        source = await exchange.transport.send(outgoing)
        if isinstance(source, Fault):
            return source

        # From here on the upstream may be at work: a repetition could do everything twice.
        exchange.is_billable = exchange.is_sent = True
        exchange.replace_body(exchange.body)  # what was made of it has been sent
        opened = Opened(
            exchange,
            call,
            account,
            source,
            scanner,
            translator,
            self.held,
        )
        return await opened.open() or opened

    async def prepare(self) -> tuple[bytes, Translator | None]:
        """The body that this account takes, and what makes the client's response of its own.

        Raises: PoolerError (invalid_value, pool_busy).
        """
        exchange, call = self.exchange, self.call
        if call.is_native or call.is_unary or not self.endpoint.account.is_codex:
            exchange.replace_body(exchange.body)  # and not what another account was sent
            return await self.renamed(), None

        async with exchange.shared.unpacking(exchange.holder, len(exchange.body)):
            body, include_usage = await self.translate()
        exchange.replace_body(exchange.body)  # nor what was parsed
        exchange.held.grow(len(body))

        # The end of a stream may lack items that came before it, so they are kept, within a bound.
        bytes_max = min(UNARY_BYTES_MAX, TRANSLATED_BYTES_MAX)
        output = OutputCollector(bytes_max, not call.is_stream)
        if call.kind is CallKind.RESPONSES:
            return body, ResponsesTranslator(output)
        return body, ChatTranslator(
            output,
            request_id=exchange.record.request_id,
            model=call.model,
            created_unix=int(exchange.shared.unix_now()),
            include_usage=include_usage,
        )

    async def renamed(self) -> bytes:
        """The client's body with its model called as this account's upstream calls it.

        Unchanged, byte for byte, if both call it the same.  Raises: PoolerError (pool_busy).
        """
        exchange, body = self.exchange, self.exchange.body
        model = self.endpoint.account.name_of(self.call.model)
        if model == self.call.model:
            return body

        async with exchange.shared.unpacking(exchange.holder, len(body)):
            value = await read_json(body, parse_again)
            renamed = dump_like({**value, "model": model}, body)
            await yield_after(body)
        exchange.held.grow(len(renamed))
        return renamed

    async def translate(self) -> tuple[bytes, bool]:
        """The body for a codex account, and whether a Chat client asks for usage.

        Raises: PoolerError (invalid_value).
        """
        exchange, call, account = self.exchange, self.call, self.endpoint.account
        value = exchange.parsed or await read_json(exchange.body, parse_again)

        model = account.name_of(call.model)
        # The account's own catalogue says which reasoning efforts the model has.
        efforts = exchange.shared.roster.health_of(account).efforts_of(model)
        translated = uncollected(to_codex, call.kind, value, model, efforts)
        translated |= members_of(value, exchange.carried)
        if call.session is not None and "prompt_cache_key" not in translated:
            # 64 characters, the most (F7, F15).
            translated["prompt_cache_key"] = call.session.hex()
        await yield_after(exchange.body)

        body = dump_like(translated, exchange.body)
        await yield_after(body)
        return body, object_of(value.get("stream_options")).get("include_usage") is True

    def fields(self) -> list[Field]:
        """The client's header fields to forward, and those that a codex account needs.

        What is on neither list of forwarded fields stays here, so that a client's cookies and
        addresses reach nobody.
        """
        exchange, call, account = self.exchange, self.call, self.endpoint.account
        client = exchange.head.headers
        if not account.is_codex:
            return forwarded(client, FORWARDED_TO_UPSTREAM)
        if not call.is_native:
            own = [
                ("accept", "application/json" if call.is_unary else "text/event-stream"),
                ("originator", "codex-pooler"),  # F18
                ("version", exchange.shared.version_for(account)),
            ]
            # A digest of ours: requests of a session share the backend's cache (F15), and nobody
            # learns what the client calls it.
            if call.session:
                own.append(("session-id", call.session.hex()))
            return own

        roster = exchange.shared.roster
        return [
            (name, value)
            for name, value in forwarded(client, NATIVE_TO_UPSTREAM)
            # The client keeps the first of a turn (F22), whoever serves the rest of it.
            if name != TURN_STATE or roster.sessions.is_creator(account, call, TURN_STATE, value)
        ]


def stream_headers(headers: Sequence[Field]) -> list[Field]:
    """The headers of a stream of events, of those that an upstream has sent."""
    shown = list(headers)
    if "event-stream" not in dict(headers).get("content-type", ""):
        shown = [pair for pair in headers if pair[0] != "content-type"]
        shown.append(("content-type", "text/event-stream; charset=utf-8"))
    # nginx would otherwise gather what is streamed (F109).
    return [*shown, ("cache-control", "no-cache"), ("x-accel-buffering", "no")]


@dataclass(eq=False, slots=True)
class Relay:
    """Hands an opened response to the client, to its end.

    From here on no other account can be tried: what fails now is reported in the stream.
    """

    exchange: Exchange
    call: Call
    opened: Opened
    comment_at: float = math.inf
    comment_seconds: float = math.inf  # until the client's stream has begun
    end_at: float = math.inf  # after the terminal event

    async def deliver(self, lease: Lease) -> None:
        """Hand over the response, and note its outcome.

        Raises: ClientGone; PoolerError, where a stream was read for a response in one piece.
        """
        exchange, opened = self.exchange, self.opened
        exchange.record.account = opened.account.name
        exchange.replace_body(b"")
        # The session's next request may come before this response is complete, and belongs here.
        exchange.shared.roster.note_served(
            self.call,
            opened.account,
            trio.current_time(),
        )
        headers = self.headers()
        # A stream may take an hour, and there may be a thousand: their heads have served.
        exchange.head = UNREAD
        opened.headers = NO_FIELDS

        try:
            if opened.is_streamed:
                await self.relay(headers)
            else:
                await exchange.reply.respond(
                    opened.status,
                    opened.body,
                    headers,
                    is_own=False,
                )
        finally:
            self.note_outcome(lease)

    def headers(self) -> list[Field]:
        """The headers of the response that the client gets."""
        opened, call, shared = self.opened, self.call, self.exchange.shared
        if not call.is_native:
            return forwarded(opened.headers, FORWARDED_TO_CLIENT)

        # The turn state is worth something at the account that made it, and nowhere else (F22).
        state = opened.headers.get(TURN_STATE)
        shared.roster.sessions.note_creator(opened.account, call, TURN_STATE, state)
        now, unix_now = trio.current_time(), shared.unix_now()
        quota = show_quota_headers(shared.roster, call.pool, now, unix_now)
        return forwarded(opened.headers, NATIVE_TO_CLIENT) + quota

    def note_outcome(self, lease: Lease) -> None:
        """Note whether the account served the call well, and which account owns the response.

        Nothing is awaited, so a client that leaves cannot keep it from being noted.
        """
        exchange, call, opened = self.exchange, self.call, self.opened
        account, scanner = opened.account, opened.scanner
        roster = exchange.shared.roster
        exchange.record.tokens = scanner.usage

        # Later requests that name this response must reach the account that has it.
        is_kept = call.kind is CallKind.RESPONSES and account.is_codex
        if call.is_stored or is_kept:
            roster.sessions.note_creator(
                account,
                call,
                "response",
                scanner.response.get("id"),
            )
        if exchange.reply.is_whole and exchange.record.code is None:
            roster.note_success(lease, trio.current_time())
            return

        # Too late for this request; the next ones need not run into it.
        fault = opened.classify_failure()
        if fault is not None and fault.effect is not Effect.LACKS_MODEL:
            now = trio.current_time()
            roster.note_fault(account, fault, call.model, now, call.key_name)

    async def relay(self, headers: list[Field]) -> None:
        """Relay events to the end, ours if the upstream's does not come; or collect them.

        What went wrong, here or upstream, is the record's `code`.
        Raises: ClientGone; PoolerError, where nothing was sent and an error still can be.
        """
        exchange, scanner = self.exchange, self.opened.scanner
        if exchange.reply.is_started or self.is_sent_as_events():
            await self.start_events(headers)
        exchange.has_ended = scanner.terminal is not None

        # Whatever happens in between, a stream that was begun gets exactly one terminal event.
        trouble = await self.relay_on()
        last: list[bytes] = []
        error = self.failure_after(trouble)
        if error is not None:
            last.append(self.opened.failure_event(error))
            exchange.has_ended = True
        elif scanner.failure is not None:
            error = self.note_failure(scanner.failure)
        await self.finish(last, error)

    async def finish(self, last: Sequence[bytes], error: PoolerError | None) -> None:
        """End the stream with `last`; one that has not begun becomes an error, or one piece.

        Raises: ClientGone; PoolerError (`error`).
        """
        reply = self.exchange.reply
        if reply.is_started:
            await reply.end(last)
        elif error is not None:
            raise error
        else:
            await self.respond_collected()

    def is_sent_as_events(self) -> bool:
        """Whether a response that has not begun is sent as a stream, and not in one piece.

        A Chat client gets a failure that comes before all content as an error with its status.
        """
        opened, scanner = self.opened, self.opened.scanner
        is_failed = scanner.failure is not None and not scanner.has_content
        is_translated_chat = opened.translator is not None and self.call.kind is CallKind.CHAT
        return self.call.is_stream and not (is_failed and is_translated_chat)

    def failure_after(self, trouble: PoolerError | None) -> PoolerError | None:
        """Why the stream, which is over, has no end of its own; it is the record's `code`.

        `trouble` is what has ended the relaying.  None is returned if the stream has its end.
        """
        opened, scanner = self.opened, self.opened.scanner
        # Of Chat there may be an end without a terminal event.
        has_ended = self.exchange.has_ended
        if opened.translator is None:
            has_ended |= scanner.terminal is None
        else:
            has_ended &= opened.translator.output.response is not None
        if has_ended and scanner.is_complete(trouble is None):
            return None
        error = trouble or PoolerError("upstream_stream_truncated")
        self.exchange.record.code = error.record_code
        return error

    def note_failure(self, failure: JsonObject) -> PoolerError:
        """Record the failure that the stream has ended with; the error it would be in one piece."""
        exchange = self.exchange
        code = read_error(failure).code
        exchange.record.code = upstream_name(code) if code else "upstream_error"
        return failed_response(failure, exchange.shared.unix_now())

    async def respond_collected(self) -> None:
        """Send the response that was collected from events.

        Large ones are dumped as ASCII: a single wide character would make the text take four times
        its size.  Raises: ClientGone.
        """
        opened = self.opened
        assert opened.translator is not None
        await trio.lowlevel.checkpoint()  # its last event has had its time
        is_large = opened.translator.output.bytes_kept > WIDE_BYTES_MAX
        dump = dump_escaped if is_large else dump_json
        body = dump(opened.translator.whole())
        opened.translator = None  # with all that the body was made of
        opened.held.replace(len(body))
        await self.exchange.reply.respond(200, body)

    async def start_events(self, headers: list[Field]) -> None:
        """Commit: the head of a stream, if it has not been sent, and what has been held.

        After a long silence it has been sent (see `await_head`).  Raises: ClientGone.
        """
        reply = self.exchange.reply
        events, self.opened.events = self.opened.events, []  # not kept in addition to what is sent
        if not reply.is_started:
            await reply.start(200, stream_headers(headers), events)
        elif not reply.put(events):
            await reply.flush()
        self.comment_seconds = self.exchange.limits.comment_seconds

    async def relay_on(self) -> PoolerError | None:
        """Relay what comes to its end; what went wrong, here or upstream, or None.

        It is returned and not raised, because the stream still needs its terminal event: that is
        true of a bug as well.  Raises: ClientGone.
        """
        exchange = self.exchange
        try:
            await self.relay_rest()
        except ClientGone:
            raise
        except PoolerError as stopping:
            return stopping
        except TRANSPORT_ERRORS as cut:
            return classify_trouble(cut, exchange.deadline).error
        except Exception:  # noqa: BLE001 (a bug is logged, and the stream still has its end)
            exchange.shared.log_bug(exchange.record.request_id)
            return PoolerError("internal_error")
        return None

    async def relay_rest(self) -> None:
        """Relay what comes until the body's end, or a second after the terminal event.

        Raises: TRANSPORT_ERRORS, PoolerError (the stop code, pool_busy), ClientGone.
        """
        exchange, opened = self.exchange, self.opened
        reply, deadline = exchange.reply, exchange.deadline
        self.comment_at = trio.current_time() + self.comment_seconds
        while not opened.source.is_at_end:
            if opened.scanner.terminal is not None and self.end_at == math.inf:
                self.end_at = trio.current_time() + AFTER_TERMINAL_SECONDS_MAX
                self.comment_at = self.comment_seconds = math.inf

            # Which of the three has come is decided by the clock once the wait is over.
            until = min(self.comment_at, deadline.at, self.end_at)
            try:
                await deadline.bounded(until, self.pump)
            except DeadlinePassed:
                now = trio.current_time()
                if now >= min(deadline.at, self.end_at):
                    raise
                is_silent = now >= self.comment_at  # else there was progress meanwhile
            else:
                is_silent = False
                await reply.flush()

            if is_silent:
                self.comment_at = trio.current_time() + self.comment_seconds
                await reply.comment(is_native=self.call.is_native)
            exchange.has_ended = opened.scanner.terminal is not None

    async def pump(self) -> None:
        """Relay as long as the client takes all at once.

        It waits for the upstream only, so that a deadline can tear no event.  It returns also at
        the terminal event and at the end.  Raises: PeerClosed, BadSyntax, PoolerError (pool_busy).
        """
        opened, reply = self.opened, self.exchange.reply
        source, scanner = opened.source, opened.scanner
        while True:
            events = opened.take(await source.receive())
            if events:
                self.comment_at = trio.current_time() + self.comment_seconds
                # Held before they are put: a client that takes nothing makes them stay in memory.
                opened.hold_unsent(sum(map(len, events)))
                if not reply.put(events):
                    return
            if source.is_at_end or scanner.terminal is not None:
                return


@dataclass(eq=False, slots=True)
class Tries:
    """Which accounts a call has been sent to, or need not be sent to.

    The accounts of one host that is down could use up all attempts: it is passed over as a whole.
    """

    tried: list[str] = field(default_factory=list)
    unreached: Counter[str] = field(default_factory=Counter)  # failures to connect, by host
    out_of_reach: set[str] = field(default_factory=set)  # accounts of hosts that do not connect

    @property
    def passed_over(self) -> list[str]:
        """The accounts that are not tried again."""
        return [*self.tried, *self.out_of_reach]

    def note_unreached(self, pool: Pool, account: Account, fault: Fault) -> None:
        """Count a host that did not connect; after some it is worth no other account's try."""
        if fault.cause is None or fault.cause in _OF_TRUST:
            return
        # Accounts share hosts: after some failures the host is the trouble, not the account.
        address = account.base_url.address
        self.unreached[address] += 1
        if self.unreached[address] >= CONNECTS_MAX:
            self.out_of_reach |= {
                other.name for other in pool.accounts if other.base_url.address == address
            }


async def serve_call(exchange: Exchange, call: Call) -> None:
    """Try accounts, at most `attempts_max`, until one serves the call.

    The only loop that sends a call to a second account: `final_error` decides whether it may.
    Raises: PoolerError, the client's error; ClientGone.
    """
    shared, tries = exchange.shared, Tries()
    while True:
        assignment = await shared.queues.assign(exchange, call, tries.passed_over)
        call, account = shared.roster.current(call), assignment.lease.account
        # Recorded before it begins, so that an attempt that is cancelled is in the record, too.
        exchange.record.attempts.append({"account": account.name})
        try:
            fault = await try_account(exchange, call, assignment)
        finally:
            # Also after a cancellation.  The lease ends last: whoever gets its room may use the
            # connection again.
            if not exchange.transport.keep(assignment.endpoint):
                with trio.move_on_after(CLOSE_SECONDS_MAX, shield=True):
                    await exchange.transport.close()
            shared.queues.end_lease(assignment.lease)
        if fault is None:
            return

        # An account is tried once, but for a session's own that is back in a moment.
        exchange.record.attempts[-1]["reason"] = fault.reason
        if not is_back_soon(exchange, call, account, fault):
            tries.tried.append(account.name)
        tries.note_unreached(call.pool, account, fault)
        if error := final_error(exchange, call, tries, fault):
            raise error


async def try_account(exchange: Exchange, call: Call, assignment: Assignment) -> Fault | None:
    """Have one account serve the call; the fault, if it failed before the client got anything.

    Raises: PoolerError, ClientGone.
    """
    shared, account = exchange.shared, assignment.lease.account
    with HeldBytes(shared.events, account.name, exchange.holder) as held:
        opened = await open_repaired(exchange, call, assignment, held)
        if isinstance(opened, Opened):
            await Relay(exchange, call, opened).deliver(assignment.lease)
            return None

    fault = opened
    exchange.is_billable &= not fault.is_refusal
    await shared.login_watch.look(call.pool.accounts)  # a refresh of ours is no new file
    shared.roster.note_fault(
        account,
        fault,
        call.model,
        trio.current_time(),
        call.key_name,
    )
    shared.account_watch.look()
    return fault


def is_back_soon(
    exchange: Exchange,
    call: Call,
    account: Account,
    fault: Fault,
) -> bool:
    """Whether the account that has just failed is the session's own, and worth one wait.

    Then it is not passed over: the next assignment waits for it, as long as a queue may take.
    """
    roster, now = exchange.shared.roster, trio.current_time()
    if fault.effect not in LIMIT_EFFECTS:
        return False
    names = [attempt["account"] for attempt in exchange.record.attempts]
    # Another account would have to read the whole prompt again, without the cache of this one.
    pin = roster.sessions.pin_of(call, now)
    is_own = pin is not None and pin.account == account.name
    is_first = names.count(account.name) == 1
    return is_own and is_first and Choice(roster, call, (), now).returns_at() < math.inf


async def without_reasoning(exchange: Exchange) -> bytes:
    """The client's body without encrypted reasoning, in steps that hold up nobody for long."""
    body = exchange.body
    if b"reasoning" not in body and b"compaction" not in body:
        return body

    async with exchange.shared.unpacking(exchange.holder, len(body)):
        # A large body takes long to parse and to dump: others run between the steps.
        value = drop_reasoning(await read_json(body, parse_again))
        if value is None:
            return body

        shorter = dump_like(value, body)
        await yield_after(body)
        return shorter


async def open_repaired(
    exchange: Exchange,
    call: Call,
    assignment: Assignment,
    held: HeldBytes,
) -> Opened | Fault:
    """An opened response, tried once more with a new token, a new WebSocket, or no reasoning.

    Raises: PoolerError (the stop code, invalid_value, pool_busy), ClientGone.
    """
    roster, account = exchange.shared.roster, assignment.lease.account
    entry = exchange.record.attempts[-1]
    # What another account has encrypted this one cannot read: it would refuse the whole request.
    if roster.sessions.has_foreign_reasoning(call, account, assignment.lease.began_at):
        exchange.replace_body(await without_reasoning(exchange))

    rejected: Credentials | None = None
    repairs: set[Action] = set()
    while True:
        attempt = Attempt(exchange, call, assignment.endpoint, held)
        opened = await attempt.open(rejected)
        if isinstance(opened, Opened):
            return opened

        action = opened.action
        body = await without_reasoning(exchange) if action is Action.REPAIR else exchange.body
        can_help = {
            Action.REOPEN: True,
            Action.REFRESH: account.is_codex,
            Action.REPAIR: body is not exchange.body,
        }
        # Each repair is tried once: a second refusal shows that it did not help.
        if action in repairs or not can_help.get(action, False):
            return opened

        if not exchange.transport.keep(assignment.endpoint):
            await exchange.transport.close()
        held.replace(0)
        repairs.add(action)
        if action is Action.REFRESH:
            rejected = attempt.credentials
            entry["renewed"] = True
        elif action is Action.REPAIR:
            exchange.replace_body(body)
            roster.sessions.pin(call, account, True, trio.current_time())
            entry["repaired"] = True


# An upstream that fails with one of these has not begun the work.
_NOT_BEGUN: Final = frozenset({
    Effect.LIMITED, Effect.MODEL_LIMITED, Effect.REFUSED, Effect.FORBIDDEN, Effect.LACKS_MODEL,
    Effect.LACKS_ROUTE,
})  # fmt: skip
# By a call's path: the effects of a failure after which another account may be sent the call,
# although an upstream has read it whole.  A 500 may follow long work, so where each attempt may be
# charged, as a compaction (F27) and an image (F26) may, only what was surely not begun is repeated.
REPEATED_AFTER: Final[Mapping[str, frozenset[Effect]]] = {
    **dict.fromkeys([*[kind.value for kind in CallKind], SEARCH_PATH], frozenset(Effect)),
    **dict.fromkeys([COMPACT_PATH, *IMAGE_PATHS], _NOT_BEGUN),
}


def final_error(
    exchange: Exchange,
    call: Call,
    tries: Tries,
    fault: Fault,
) -> PoolerError | None:
    """The client's error after this fault; None if another account must be tried.

    It is the fault's own, unless that only says what this account lacks, or that it cannot be used:
    then the error is about the pool as a whole.
    """
    if may_repeat(exchange, call, fault) and is_account_left(exchange, call, tries):
        return None

    # A model or route that this account lacks, another may have: report it once none is left.
    is_lack = fault.effect in {Effect.LACKS_MODEL, Effect.LACKS_ROUTE}
    if not is_lack and fault.error.code != "no_usable_account":
        return fault.error

    roster, unix_now = exchange.shared.roster, exchange.shared.unix_now()
    choice = Choice(roster, call, tries.passed_over, trio.current_time())
    exchange.record.passed_over = choice.passed_over()
    return choice.refusal(unix_now)


def may_repeat(exchange: Exchange, call: Call, fault: Fault) -> bool:
    """Whether the call may be sent to another account, so that nothing is done twice.

    If an upstream has read it whole, only effects that REPEATED_AFTER lists for its path allow it.
    """
    if exchange.reply.is_started:  # after a long silence the client has its 200
        return False
    if fault.action not in {Action.NEXT, Action.REFRESH}:
        return False
    return not exchange.is_sent or fault.effect in REPEATED_AFTER[call.path]


def is_account_left(exchange: Exchange, call: Call, tries: Tries) -> bool:
    """Whether an account can be tried, now or soon, and `attempts_max` allows one more."""
    if len(exchange.record.attempts) >= exchange.limits.attempts_max:
        return False

    roster, now = exchange.shared.roster, trio.current_time()
    choice = Choice(roster, call, tries.passed_over, now)
    return bool(choice.ranked()) or choice.returns_at() < math.inf


################################################################
# WEBSOCKET
################################################################
# GET /v1/responses with an upgrade: each frame of the client is one call of RELAY, and the
# events of its response are frames.  trio-websocket reads and writes them on both sides; the heads
# of a handshake are validated as strictly as all others and replayed to it, what it does not bound
# is counted before it gets there (F95), and it is given bytes where it would decode text.  All
# tasks are in the nursery of the client's connection: the library's reader for each side, which
# ends before its stream is closed, and the task that takes what it has read.

WEBSOCKET_LIBRARY: Final = "trio_websocket"
_STREAM_ID: Final = re.compile("[A-Za-z0-9_.-]{1,256}")
_BETA: Final = ("openai-beta", "responses_websockets=2026-02-06")  # F24


def is_processed_note(frame: bytes) -> bool:
    """Whether a client only reports a response that it has processed (F81).

    It is parsed as strictly as a call: a frame that another parser could read differently is none.
    """
    if len(frame) >= KIB:
        return False
    try:
        value = parse_json_object(decode_body(frame))
    except PoolerError:
        return False
    is_alone = [name.lower() for name in value].count("type") == 1
    return is_alone and value.get("type") == "response.processed"


SENT_COPIES: Final = 3  # in memory, of an event on its way to a client: it, its message, its frame
Work = Callable[[], Awaitable[None]]
Start = Callable[[Work], None]  # in a task of its own


class Frames:
    """A connection as trio-websocket sees it, and that library's side of it.

    First comes the head of the opening handshake, then frames that have been counted.  `held` are
    the bytes of messages that are not whole, or not taken, or taken and not done with.

    The library is given this object both as its stream and as its nursery, and calls no more of
    them than `receive_some`, `send_all`, `aclose` and `start_soon`: so it can neither buffer a
    byte that was not counted (F95) nor keep a task that `stop` does not end.
    """

    def __init__(
        self,
        connection: Connection,
        bytes_max: int,
        held: HeldBytes,
        limits: Limits,
        *,
        is_client: bool,
    ) -> None:
        self.library = importlib.import_module(WEBSOCKET_LIBRARY)  # many never need it
        self.socket: Any = None  # the library's WebSocketConnection
        self.connection = connection
        self.meter = FrameMeter(bytes_max, WEBSOCKET_FRAMES_MAX)
        self.held = held
        self.bytes_taken = 0  # of messages that were taken, and are not done with
        self.is_client = is_client  # the peer is one; else it is an upstream

        # Of a message that is not whole: for its next bytes, and for all of it.
        self.idle_seconds = self.message_seconds = limits.between_events_seconds_max
        if is_client:
            self.idle_seconds = BODY_IDLE_SECONDS_MAX
            self.message_seconds = BODY_SECONDS_MAX
        self.waited_seconds = 0.0  # for the message that is not whole
        self.waited_for = 0  # its number
        self.is_late = False  # it did not come in time

        self.is_pinging = False  # the peer has not answered the latest ping
        self.head = b""
        self.is_accepted = trio.Event()  # until then the library would keep a frame to itself
        self.start: Start
        self.reading = trio.CancelScope()
        self.has_read = trio.Event()  # there is no reader any more

    async def accept(self, start: Start, head: bytes, request_id: str) -> None:
        """Accept a client's handshake; the library's reader runs from now on.

        `head` is that of the client's request, already validated: the library reads it once more,
        and sends the 101.  `socket` stays None if the client has gone.
        """
        self.start, self.head = start, head
        size_max = self.meter.bytes_max
        request = await self.library.wrap_server_stream(self, self, max_message_size=size_max)
        fields = [(name.encode(), value.encode()) for name, value in OWN]
        fields.append((b"x-request-id", request_id.encode()))
        with contextlib.suppress(self.library.ConnectionClosed):
            self.socket = await request.accept(extra_headers=fields)
        self.is_accepted.set()

    async def begin(self, start: Start) -> None:
        """Begin after a handshake with an upstream; the library's reader runs from now on.

        The handshake is over and its response validated.  The library insists on one of its own,
        which never reaches the upstream: `send_all` replies to it.
        """
        self.start = start
        size_max = self.meter.bytes_max
        self.socket = await self.library.wrap_client_stream(
            self, self, "pooler", "/", max_message_size=size_max
        )

    async def stop(self) -> None:
        """End the reader: nothing waits for the connection any more.

        Otherwise its task could meet another one that waits for a closed socket (F99).  It is
        shielded, since a turn that was cancelled closes its connection, too.
        """
        with trio.move_on_after(CLOSE_SECONDS_MAX, shield=True):
            await trio.lowlevel.checkpoint()  # a bug that it ends with is reported first
            self.reading.cancel()
            await self.has_read.wait()

    async def take(self) -> bytes:
        """The next whole message, held until its taker calls `done` with it.

        The bytes are UTF-8, as those of text must be (RFC 6455 §8.1).
        Raises: PeerClosed; BadSyntax, if the peer's frames are bad.
        """
        try:
            message = cast("bytes", await self.socket.get_message())
        except self.library.ConnectionClosed:
            raise (BadSyntax("frames") if self.close_code else PeerClosed) from None

        self.meter.bytes_whole -= len(message)
        self.bytes_taken += len(message)
        # The library believes the message to be binary, and does not check this.
        if not is_utf8(message):
            self.done(message)
            self.meter.refused = 1007
            raise BadSyntax("not UTF-8")
        return message

    def done(self, message: bytes) -> None:
        """Stop counting a message that was taken."""
        self.bytes_taken -= len(message)
        self.held.grow(-len(message))

    async def put(self, message: bytes | None) -> None:
        """Send a message; None: a sign of life (RFC 6455 §5.5.3).  Raises: PeerClosed."""
        try:
            if message is None:
                await self.socket.pong()
            else:
                await self.socket.send_message(message)
        except self.library.ConnectionClosed:
            # Nobody takes any more what has been read, and the library would go through all of it.
            self.reading.cancel()
            raise PeerClosed from None

    async def ping(self) -> None:
        """Send a ping, and wait for the pong, however long that takes.

        Meanwhile `is_pinging` keeps `show_life` from sending another one.
        """
        self.is_pinging = True
        with contextlib.suppress(self.library.ConnectionClosed):  # its reader has ended
            await self.socket.ping(b"")
        self.is_pinging = False

    @property
    def close_code(self) -> int:
        """What to say to a peer whose frames are bad; 0, if it has closed or gone itself.

        The codes are those of RFC 6455 §7.4.1.
        """
        reason = self.socket and self.socket.closed  # no socket: the turns are over
        if self.meter.refused:
            return self.meter.refused

        # 1006 stands for an end without a Close, and is never sent.
        is_theirs = reason is None or reason.code == 1006 or self.meter.is_closed
        return 0 if is_theirs else int(reason.code)

    def count(self) -> None:
        """Count what is held now: all messages that are not done with, whole or not.

        The parts of an incomplete one are objects of the library, which cost memory even if they
        are empty (F95).  Raises: PoolerError (pool_busy), and it is held as before.
        """
        meter = self.meter
        parts = PART_BYTES * meter.part_count
        self.held.resize(meter.bytes_whole + meter.bytes_pending + parts + self.bytes_taken)

    def release(self) -> None:
        """Hold nothing any more, nor the socket: nothing reads, and nobody calls `done`."""
        self.bytes_taken = 0
        self.held.replace(0)
        self.socket = None

    async def refuse(self, code: int) -> Never:
        """Read no more; the peer can still be written to, and gets a Close with this code.

        It is called in the task of the library's reader, which its sleep ends.
        """
        self.meter.refused = code
        self.reading.cancel()
        await trio.sleep_forever()

    async def read(self, reader: Work) -> None:
        """Run the library's reader until it is stopped."""
        try:
            with self.reading:
                await reader()
        finally:
            self.has_read.set()

    # What the library calls.

    def start_soon(self, reader: Work) -> None:
        """In the place of a nursery's: the reader runs until it is stopped."""
        self.start(functools.partial(self.read, reader))

    async def receive_some(self, _max_bytes: int | None = None) -> bytes:
        """The head of the handshake, then frames as they come, each of them counted."""
        if self.head:
            head, self.head = self.head, b""
            return head
        if self.meter.refused:
            await self.refuse(self.meter.refused)
        # Nothing may follow a Close (RFC 6455 §5.5.1); the b"" ends the reader.
        if self.socket is not None and self.socket.closed:
            return b""
        if self.is_client:
            await self.is_accepted.wait()

        # So many frames may have come at once that only a part of them is passed on; the rest is
        # what the next call begins with.
        received = await self.receive()
        passed = self.meter.feed(received)
        if not self.meter.is_over:
            self.connection.buffer = received[len(passed) :]

        # 1013: try again later (IANA's registry of RFC 6455 §11.7).
        has_room = False
        with contextlib.suppress(PoolerError):
            self.count()
            has_room = True
        if not has_room:
            await self.refuse(1013)
        return passed

    async def receive(self) -> bytes:
        """What the peer sends next, b"" at its end; a message that does not come is refused.

        Only the time spent waiting for a message counts, not the time that it waits to be read.
        """
        connection, meter = self.connection, self.meter
        received, connection.buffer = connection.buffer, b""
        if received:
            await trio.lowlevel.checkpoint()  # between two steps of what came at once
            return received

        # Between two messages a peer may be silent: only one that has begun must go on.
        if meter.message_count != self.waited_for:
            self.waited_for, self.waited_seconds = meter.message_count, 0.0
        began_at, until = trio.current_time(), math.inf
        if meter.is_amid:
            left = min(self.idle_seconds, self.message_seconds - self.waited_seconds)
            until = began_at + left

        try:
            with trio.move_on_at(until) as scope:
                received = await connection.receive()
        except PeerClosed:
            raise trio.BrokenResourceError from None
        if scope.cancelled_caught:
            self.is_late = True
            await self.refuse(1008)
        if meter.is_amid:
            self.waited_seconds += trio.current_time() - began_at
        return received

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send frames.  The library is given text as bytes; here its frames are marked as text.

        A large frame is sent in steps, each with the time limit of a write: a peer that reads
        slowly has not stalled.  Raises: BrokenResourceError, ClosedResourceError.
        """
        if self.socket is None and not self.is_client:
            # The library asks for what the upstream has agreed to already.
            request = parse_request_head(bytes(data))
            self.head = upgraded_head(request.headers["sec-websocket-key"])
            await trio.lowlevel.checkpoint()
            return

        for at in range(0, len(data), RECEIVE_BYTES):
            piece = bytes(data[at : at + RECEIVE_BYTES])
            if at == 0 and piece[0] == 0x82:  # a message, which is text
                piece = b"\x81" + piece[1:]
            await self.connection.send_all(piece, WRITE_STALL_SECONDS_MAX)

    async def aclose(self) -> None:
        """The library is done; the connection is closed by whoever owns it."""
        await trio.lowlevel.checkpoint()


@dataclass(eq=False, slots=True, kw_only=True)
class UpstreamSocket:
    """An upstream's WebSocket, which serves one turn after the other.

    What comes after the last event of a turn, and before the first of the next one, is of
    neither.  If they cannot be told apart, no further turn uses it: `is_unusable`.

    `response_ids` are those that its turns may continue, and turns on no other WebSocket (F23).
    """

    destination: bytes  # digest of the account that it was opened for
    connection: UpstreamConnection
    frames: Frames
    end: Callable[[], None]  # called when it ends before it was to
    opened_at: float = field(default_factory=trio.current_time)
    response_ids: deque[str] = field(default_factory=lambda: deque(maxlen=ANCHORS_MAX))
    is_unusable: bool = False
    idle_scope: trio.CancelScope = field(default_factory=trio.CancelScope)  # between two turns

    def serves(self, destination: bytes) -> bool:
        """Whether a turn may use it: same upstream, same credentials.

        An old one may not, because the upstream might end it in the middle of the turn (F25).
        """
        is_old = trio.current_time() - self.opened_at > WEBSOCKET_AGE_SECONDS_MAX
        return self.destination == destination and not (self.is_unusable or is_old)

    async def take(self) -> bytes:
        """The next message, still held.

        After a failure no turn uses the WebSocket again, and the client's is closed with it: that
        is how a client learns that none of its responses can be continued (F23).
        Raises: PeerClosed, BadSyntax.
        """
        try:
            return await self.frames.take()
        except (PeerClosed, BadSyntax) as error:
            failure = error
        await self.frames.stop()
        if not self.is_unusable:
            self.end()
        self.is_unusable = True
        raise failure

    async def watch(self, idle_scope: trio.CancelScope) -> None:
        """Notice its end between turns; messages that come then belong to no turn.

        `idle_scope` may be over before this has begun, and another one begun.
        """
        with idle_scope, contextlib.suppress(PeerClosed, BadSyntax):
            while True:
                message = await self.take()
                self.frames.done(message)
                # Another event of a turn may follow, which would pass for the next turn's.
                self.is_unusable |= not is_news(type_of(message))

    async def close(self) -> None:
        """Close it once its reader has ended: nothing waits for a socket that is closed."""
        self.is_unusable = True
        self.idle_scope.cancel()
        await self.frames.stop()
        self.frames.release()
        await self.connection.close()


@dataclass(eq=False, slots=True, kw_only=True)
class SocketSource:
    """The messages of one turn on an upstream's WebSocket (a `Source`)."""

    socket: UpstreamSocket
    scanner: EventScanner
    is_reused: bool  # there was a turn before this one
    is_begun: bool = False  # its first event has come
    is_at_end: bool = False
    first: deque[bytes] = field(default_factory=deque)  # read for the head, and not given yet
    type: str = ""  # of the latest message, up to and with the one that the turn began with
    bytes_pending: int = 0  # what is not whole is held with the frames
    has_body: bool = False  # the response comes in messages

    async def receive_message(self, strays_max: int) -> bytes:
        """The next message of the turn, still held; those of the turn before are dropped.

        Raises: PeerClosed; BadSyntax, also if too many of those come.
        """
        for _ in range(strays_max + 1):
            message = await self.socket.take()
            self.type = "" if self.is_begun else type_of(message)
            await share_after(message)
            if self.is_begun or is_news(self.type):
                return message

            # Behind another turn, only these two types can begin this one.  After an unusual
            # beginning nobody knows where the events of the turn end.
            if not self.is_reused or self.type in {"response.created", "error"}:
                self.is_begun = True
                self.socket.is_unusable |= self.type != "response.created"
                return message
            self.socket.frames.done(message)
        raise BadSyntax("events of no turn")

    async def read_head(self) -> ResponseHead | None:
        """The status and headers of an error that the turn begins with (F24); else None.

        What it reads on the way is kept for `receive`, or for `read_body`.
        Raises: PeerClosed, BadSyntax.
        """
        # The backend's own events may come first (F28), and say nothing of how the turn goes.
        name = "codex."
        while name.startswith("codex.") and len(self.first) < HANDSHAKE_EVENTS_MAX:
            self.first.append(await self.receive_message(HANDSHAKE_EVENTS_MAX))
            if sum(map(len, self.first)) > EVENT_BYTES_MAX:
                raise BadSyntax("event too large")
            name = self.type

        value = try_load_object(self.first[-1]) if name == "error" else {}
        status = read_error(value).status
        if not status:
            return None

        headers = {
            field.lower(): text
            for field, text in object_of(value.get("headers")).items()
            if isinstance(text, str)
        }
        if sum(map(len, itertools.chain(*headers.items()))) > UPSTREAM_HEAD_BYTES_MAX:
            raise BadSyntax("head too large")
        # The body is the frame itself, which is JSON whatever its headers claim.
        headers["content-type"] = "application/json"
        return ResponseHead(status, headers, NO_BODY, keeps_alive=True)

    def early_events(self) -> Sequence[bytes]:
        """The messages that came in front of the error that the turn began with."""
        return [*self.first][:-1]

    async def read_body(self, bytes_max: int, held: HeldBytes) -> bytes:
        """The error that the turn began, and ended, with.

        Raises: BadSyntax, where it is too large; PoolerError (pool_busy).
        """
        self.is_at_end = True
        error = self.first.pop()
        self.socket.frames.done(error)
        if len(error) > bytes_max:
            raise BadSyntax("body too large")
        held.grow(len(error))
        return error

    async def receive(self, keeps_error: bool = False) -> Sequence[Event]:
        """The next event, in a sequence of one; an error is one, too.

        `keeps_error` is for errors in one piece, of which a WebSocket has none.
        Raises: PeerClosed, BadSyntax.
        """
        frames, scanner = self.socket.frames, self.scanner
        if self.first:
            message = self.first.popleft()
        else:
            message = await self.receive_message(HANDSHAKE_EVENTS_MAX)
        frames.done(message)
        await share_after(message)

        event = scanner.take_message(message)
        if scanner.terminal is not None:
            self.is_at_end = True
            # A second failure that may follow the first would pass for the next turn's.
            self.socket.is_unusable |= scanner.failure is not None
            if response_id := text_at(scanner.response, "id"):
                self.socket.response_ids.append(response_id)
        return [event]

    def take_error(self) -> None:
        """Nothing: an error is an event here."""

    def drop(self) -> None:
        """Hold nothing of the turn any more."""
        while self.first:
            self.socket.frames.done(self.first.pop())


@dataclass(eq=False, slots=True, kw_only=True)
class ClientSocket:
    """A client's WebSocket: its turns in order, and their upstream.

    `close_code` is set once it must be closed, `stop_code` if the turn in progress ends with it.
    """

    upgrade: Exchange
    frames: Frames
    key: Key
    native_path: str
    note_bug: Callable[[], None]
    session: bytes | None = None  # of the latest turn
    nursery: trio.Nursery = field(init=False)  # of all that reads, here and upstream
    upstream: UpstreamSocket | None = None
    turn: Exchange | None = None  # in progress
    waiting: deque[bytes] = field(default_factory=deque)  # frames, still held
    changed: trio.Event = field(default_factory=trio.Event)
    close_code: int = 0
    stop_code: str = ""
    is_gone: bool = False
    has_bug: bool = False

    def note_change(self) -> None:
        """Wake who waits for a frame, or for the end.

        An event of Trio cannot be cleared, so each wait is for a new one.
        """
        self.changed.set()
        self.changed = trio.Event()

    def end(self, close_code: int, stop_code: str = "") -> None:
        """Close it after the turn in progress; with a `stop_code`, that one ends now.

        The first codes stay: later ones tend to follow from what caused the first.
        """
        self.close_code = self.close_code or close_code
        self.stop_code = self.stop_code or stop_code
        self.note_change()
        if stop_code and self.turn is not None:
            self.turn.deadline.cancel()

    def start(self, work: Work) -> None:
        """Run `work` in a task of its own."""
        self.nursery.start_soon(self.guard, work)

    async def guard(self, work: Work) -> None:
        """Await `work`; a bug in it ends the turn in progress with an error, then the WebSocket."""
        try:
            await work()
        except Exception:  # noqa: BLE001 (a bug is logged, and reported)
            self.has_bug = True
            self.note_bug()
            self.end(1011, "internal_error")

    async def read_frames(self) -> None:
        """Take the client's frames as they come; its hang-up ends everything."""
        try:
            # Calls are served in order; a client that sends far ahead is not worth the memory.
            while len(self.waiting) <= TURNS_WAITING_MAX:
                self.waiting.append(await self.frames.take())
                self.note_change()
            self.end(1008, "bad_request")
        except BadSyntax:
            is_late = self.frames.is_late
            self.end(self.frames.close_code, "request_timeout" if is_late else "bad_request")
        except PeerClosed:
            await self.frames.stop()
            if not self.has_bug:
                self.is_gone = True
                self.nursery.cancel_scope.cancel()

    async def next_frame(self) -> bytes | None:
        """The next frame of the client; None if the WebSocket must be closed.

        While it waits it sends pings, or a proxy would cut the silent connection (F97); they do not
        prolong the idle limit, which is looked at with each: a reload may change it.
        """
        began_at = trio.current_time()
        while not (self.waiting or self.close_code):
            seconds_max = self.upgrade.shared.config.limits.websocket_idle_seconds_max
            left = began_at + seconds_max - trio.current_time()
            if left <= 0:
                self.end(1000)
                break
            with trio.move_on_after(min(left, WEBSOCKET_PING_SECONDS)) as silence:
                await self.changed.wait()
            if silence.cancelled_caught and left > WEBSOCKET_PING_SECONDS:
                await self.show_life()

        return None if self.close_code else self.waiting.popleft()

    async def show_life(self) -> None:
        """Send a ping; if the latest one got no pong yet, send a pong, which needs no reply.

        A client that answers no ping is still not disconnected before the usual idle limit.
        """
        if not self.frames.is_pinging:
            self.start(self.frames.ping)
            return
        with contextlib.suppress(PeerClosed):  # its reader has ended
            await self.frames.put(None)

    async def drop_upstream(self) -> None:
        """Close the upstream's WebSocket, if there is one."""
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            await upstream.close()

    async def release(self) -> None:
        """Hold nothing any more; nothing reads."""
        self.waiting.clear()
        self.frames.release()
        await self.drop_upstream()


@dataclass(eq=False, slots=True, kw_only=True)
class SocketReply:
    """The events of one turn on a client's WebSocket (a `Reply`); there is no head."""

    client: ClientSocket
    record: Record
    deadline: Deadline  # whose clock measures the turn's age
    stream_id: str = ""  # echoed on every event
    is_started: bool = False
    is_whole: bool = False
    closes: bool = False
    copies_held: int = SENT_COPIES
    unsent: list[bytes] = field(default_factory=list)

    @property
    def is_gone(self) -> bool:
        """Whether the client has left."""
        return self.client.is_gone

    async def start(self, status: int, headers: Sequence[Field], events: Sequence[bytes]) -> None:
        """Send the first of the events; they say all that a head would."""
        self.record.status, self.record.transport = status, "websocket"
        self.record.first_byte_ms = self.deadline.age_ms()
        self.put(events)
        await self.flush()
        self.is_started = True

    def put(self, events: Sequence[bytes]) -> bool:
        """Take events for `flush`: the library sends nothing without waiting.

        Returns whether none is left to send.  A `[DONE]` is part of SSE: here the terminal event
        ends a turn (F24).
        """
        self.record.bytes_out += sum(map(len, events))
        self.unsent += [event for event in events if event not in {b"", b"[DONE]"}]
        return not self.unsent

    async def flush(self) -> None:
        """Send each event as a message, with the `stream_id` of the turn.  Raises: ClientGone."""
        unsent, self.unsent = self.unsent, []
        for event in unsent:
            await yield_after(event)
            message = with_stream_id(event, self.stream_id) if self.stream_id else event
            await self._send(message)

    async def comment(self, *, is_native: bool) -> None:
        """Send a pong; Codex CLI's timer ignores those, and gets an event (F76)."""
        await self._send(NATIVE_KEEPALIVE if is_native else None)

    async def _send(self, message: bytes | None) -> None:
        """Send a message, or a pong.  Raises: ClientGone."""
        try:
            await self.client.frames.put(message)
        except PeerClosed:
            self.client.is_gone = True
            raise ClientGone from None

    async def end(self, last: Sequence[bytes]) -> None:
        """Send the last events: the turn is over, the WebSocket is not.  Raises: ClientGone."""
        self.put(last)
        await self.flush()
        self.is_whole = True

    async def respond(
        self, status: int, body: bytes, headers: Sequence[Field] = JSON, *, is_own: bool = True
    ) -> None:
        """Send a response in one piece as one event: the turn's only one.  Raises: ClientGone."""
        assert is_own
        await self.start(status, headers, [body])
        self.is_whole = True

    async def fail(self, error: PoolerError) -> None:
        """Send an event `error`, with status and headers as Codex CLI shows them (F88)."""
        self.record.code = error.record_code
        body = try_load_object(error.content()[0])
        if not self.client.native_path:  # an upstream's frame may hold headers of the account
            body = {"error": body.get("error") or body}
        event = {
            "type": "error",
            "status": error.status,
            **body,
            **crossing_headers(body),
        }
        headers = {name.lower(): value for name, value in error.headers}
        if headers:
            event["headers"] = headers
        await self.respond(error.status, dump_json(event))


@dataclass(eq=False, slots=True, kw_only=True)
class SocketTransport:
    """Sends turns on the client's one WebSocket to an upstream (a `Transport`)."""

    client: ClientSocket
    http: HttpTransport  # for the opening handshake, and a refusal of it
    user: KeyNames  # the key, for which bytes are held
    anchor: str = ""  # previous_response_id
    source: SocketSource | None = None

    async def send(self, outgoing: Outgoing) -> Source | Fault:
        """Send the turn on the WebSocket of the account, or a new one.

        Raises: TRANSPORT_ERRORS; PoolerError (previous_response_not_found, request_too_large,
        pool_busy).
        """
        endpoint, body = outgoing.endpoint, outgoing.body
        if len(body) > WEBSOCKET_UPSTREAM_BYTES_MAX:
            size = WEBSOCKET_UPSTREAM_BYTES_MAX
            hint = f"Upstreams accept no message over {size:,} bytes. Use POST."
            raise PoolerError("request_too_large", hint)

        destination = digest_of_destination(endpoint, outgoing.authorization.credentials)
        kept = self.kept_socket(endpoint.account, destination)
        upstream = kept or await self.open_socket(outgoing, destination)
        if isinstance(upstream, Fault):
            return upstream
        if upstream is None:
            assert self.http.upstream is not None
            return HttpSource(self.http.upstream, outgoing.scanner)

        # From now on what comes is the turn's, and no longer for `watch` to drop.
        upstream.idle_scope.cancel()
        is_reused = kept is not None
        self.source = SocketSource(socket=upstream, scanner=outgoing.scanner, is_reused=is_reused)
        try:
            await self.put(upstream, body)
        except PeerClosed:
            upstream.is_unusable = True
            if not is_reused:
                raise
            # Closed since the last turn.  A message that was not sent whole starts no work, so the
            # same account may be given the turn once more.
            error = PoolerError("upstream_unreachable")
            return Fault("closed", Action.REOPEN, Effect.NONE, error)
        return self.source

    def kept_socket(self, account: Account, destination: bytes) -> UpstreamSocket | None:
        """The WebSocket of the previous turn, if it may serve this one, too.

        Raises: PoolerError (previous_response_not_found), if the turn continues a response that
        only another WebSocket knows (F23).
        """
        kept = self.client.upstream
        # A login or an address that has changed since needs a connection of its own.
        if kept is not None and not kept.serves(destination):
            kept = None
        # The backend keeps such a response in the memory of one WebSocket (F23): sent on any other,
        # the turn would fail there.
        if self.anchor and account.is_codex:
            response_ids = kept.response_ids if kept is not None else ()
            if self.anchor not in response_ids:
                raise PoolerError("previous_response_not_found")
        return kept

    async def put(self, upstream: UpstreamSocket, body: bytes) -> None:
        """Send a turn as one message.  Raises: PeerClosed, DeadlinePassed, PoolerError."""
        deadline = self.http.deadline
        deadline.begin(Stage.SEND, "write_stall_seconds_max")
        with HeldBytes(self.http.shared.bodies, self.user) as held:
            held.grow(len(body))  # a copy of it, in a frame
            await deadline.bounded(math.inf, upstream.frames.put, body)

    async def open_socket(
        self, outgoing: Outgoing, destination: bytes
    ) -> UpstreamSocket | Fault | None:
        """A new WebSocket, which replaces the previous one.

        None, if it was refused with a response that is still unread.
        Raises: TRANSPORT_ERRORS; PoolerError (the stop code).
        """
        await self.client.drop_upstream()
        http, client = self.http, self.client
        limits, deadline = http.limits, http.deadline
        account, authorization = outgoing.endpoint.account, outgoing.authorization
        connection = await http.connect(outgoing.endpoint)

        # A nonce of our own: the two handshakes are independent (RFC 6455 §4.1).
        nonce = base64.b64encode(secrets.token_bytes(16)).decode()
        fields = [pair for pair in authorization.fields if pair[0] != "accept"]
        fields += upgrade_fields(nonce)
        if account.is_codex and not any(name == "openai-beta" for name, _ in fields):
            fields.append(_BETA)
        head = request_head(account.base_url, outgoing.path, authorization.secret, fields, b"")

        seconds = WEBSOCKET_HANDSHAKE_SECONDS_MAX
        deadline.begin(Stage.UPGRADE, "websocket_handshake_seconds_max", seconds)
        until = deadline.at
        await deadline.bounded(until, connection.wire.send_all, head, WRITE_STALL_SECONDS_MAX)
        size_max = UPSTREAM_HEAD_BYTES_MAX
        raw = await deadline.bounded(until, connection.wire.read_to_blank_line, size_max)

        response = parse_response_head(raw)
        if response.status in NO_WEBSOCKET_STATUSES:
            reason, error = f"{response.status} at upgrade", PoolerError("websocket_unsupported")
            return Fault(reason, Action.NEXT, Effect.LACKS_WEBSOCKET, error)
        if response.status >= 300:
            # Put back, for HttpSource to read and classify as it does any other refusal.
            connection.wire.buffer = raw + connection.wire.buffer
            return None
        if not is_upgraded(response, nonce):
            raise BadSyntax("no upgrade")

        held = HeldBytes(http.shared.events, account.name, self.user)
        frames = Frames(connection.wire, EVENT_BYTES_MAX, held, limits, is_client=False)
        upstream = UpstreamSocket(
            destination=destination,
            connection=connection,
            frames=frames,
            end=lambda: client.end(1001),
        )
        # The connection now belongs to the WebSocket: HttpTransport must not close or keep it.
        http.upstream = None
        client.upstream = upstream
        await frames.begin(client.start)
        return upstream

    def keep(self, endpoint: Endpoint) -> bool:
        """Keep the WebSocket for the next turn if its response was whole; return whether it is.

        Between the turns a task of its own notices if the upstream ends it.
        """
        source = self.source
        if source is None:
            return self.http.keep(endpoint)

        upstream = source.socket
        if not source.is_at_end or upstream.is_unusable:
            return False
        self.source = None
        upstream.idle_scope = trio.CancelScope()
        self.client.start(functools.partial(upstream.watch, upstream.idle_scope))
        return True

    async def close(self) -> None:
        """Close the WebSocket, or the connection that was to become one."""
        source, self.source = self.source, None
        if source is None:
            await self.http.close()
            return

        # What was read of the turn and not given to anybody is held no longer.
        source.drop()
        self.client.upstream = None
        await source.socket.close()


def digest_of_destination(endpoint: Endpoint, credentials: Credentials | None) -> bytes:
    """A digest of the account that an upstream's WebSocket is opened for, and of the way there.

    If a reload or a new login changes any of it, the next turn must not use the old connection.
    """
    account = endpoint.account
    account_id = credentials.account_id if credentials else None
    proxy_address = endpoint.proxy.url.address if endpoint.proxy else ""
    return digest_parts(account.name, account.identity.hex(), account_id or "", proxy_address)


# Fields of a turn that a translated body keeps unchanged.
CARRIED: Final[Sequence[str]] = ("type", "previous_response_id", "generate")


@dataclass(eq=False, slots=True)
class Turn:
    """What a call on a WebSocket has in addition to an exchange."""

    client: ClientSocket
    reply: SocketReply
    transport: SocketTransport

    def understand(self, body: JsonDict) -> JsonDict:
        """The call in a frame, without its `stream_id`, which is not the upstream's business.

        Raises: PoolerError (invalid_value).
        """
        stream_id = body.get("stream_id")
        if stream_id is not None:
            if not (isinstance(stream_id, str) and _STREAM_ID.fullmatch(stream_id)):
                raise PoolerError("invalid_value", param="stream_id")
            self.reply.stream_id = stream_id
            body = {name: member for name, member in body.items() if name != "stream_id"}

        if body.get("type") != "response.create":
            raise PoolerError("invalid_value", "Only response.create is supported.", param="type")
        self.transport.anchor = valid_text(body, "previous_response_id")
        return body


################################################################
# OPERATORS
################################################################
# What operators are shown is made in mcp_server.py, from `snapshot` and `explain` of RECORDS.
# Without that module pooler.py serves its clients as usual.

COMPANION: Final = "mcp_server"  # imported when an operator first asks
MCP_PACKAGE: Final = "mcp>=2.3,<3"  # as pyproject.toml has it


def parse_mcp_message(body: bytes) -> Json:
    """The JSON value of a message to /mcp, parsed as strictly as a client's body.

    Raises: ValueError.
    """
    try:
        check_members(body, MCP_MEMBERS_MAX)
        value = parse_strictly(body.decode("utf-8"), MCP_DEPTH_MAX)
    except BadSyntax as error:
        raise ValueError(*error.args) from None
    _write(value).encode()  # half of a surrogate pair could not be sent back
    return value


################################################################
# SERVER
################################################################
# From an accepted connection to a request's handler: `serve_connection`, `serve_request` and
# `dispatch`, which checks Host, Origin, credential and method, in this order, and then calls the
# handler that ROUTES names.  The classes before Server have one duty each, and are given the others
# that they use; `Shared` holds what RELAY uses as well.
#
# An expected failure is a PoolerError, which becomes the response.  Anything else is a bug: it is
# logged with the functions and lines on the stack, becomes a 500 without detail, and ends nothing
# but its connection.

_LETTERS: Final = bytes(ord("a") + value % 26 for value in range(256))


def new_request_id() -> str:
    """20 random letters: OpenCode could mistake digits for a status that it retries."""
    return secrets.token_bytes(20).translate(_LETTERS).decode("ascii")


KNOWN_METHODS: Final = ("GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE")
Caller = Key | Operator | None  # None: nobody in particular


class Incoming(NamedTuple):
    """A request whose head is valid: what a handler of ROUTES is called with.

    Its body has not been read, and its caller may use its route.
    """

    exchange: Exchange
    head: RequestHead
    route: Route
    model: str  # that the path names, else ""
    caller: Caller  # of the kind that the route demands

    @property
    def key(self) -> Key:
        """The caller of a route that demands a pool key."""
        assert isinstance(self.caller, Key)
        return self.caller

    @property
    def pool(self) -> Pool:
        """The key's pool, in the configuration with which the request began.

        A reload in the meantime changes nothing for this request.
        """
        return self.exchange.config.pools[self.key.pool]

    @property
    def operator(self) -> Operator:
        """The caller of a route that demands an operator's token."""
        assert isinstance(self.caller, Operator)
        return self.caller


Handler = Callable[[Incoming], Awaitable[None]]


@dataclass(eq=False)
class Connections:
    """The client connections, and which of them is ended if there are too many.

    A connection is keyless until it has presented a valid credential, idle while it waits for a
    request, busy while a call or a WebSocket is served on it, and spare if it was accepted beyond
    the limit: then it may use the health routes and nothing else.
    """

    shared: Shared
    descriptors_max: float = math.inf  # of the process
    counted: dict[ClientConnection, None] = field(default_factory=dict)  # oldest first
    keyless: dict[ClientConnection, None] = field(default_factory=dict)  # of these; oldest first
    spares: dict[ClientConnection, None] = field(default_factory=dict)  # oldest first
    busy: Counter[Hashable] = field(default_factory=Counter)  # number by caller

    @property
    def count_max(self) -> int:
        """How many connections are admitted, at least one: the limit, or what descriptors allow.

        A connection takes one descriptor, and another for its upstream while a call is served.
        Some are kept for idle upstream connections, and DESCRIPTORS_KEPT for everything else:
        without a free descriptor neither a login nor a configuration could be read.
        """
        limits = self.shared.config.limits
        account_count = len(self.shared.config.accounts)
        idle_max = min(
            account_count * IDLE_CONNECTIONS_MAX,
            account_count * SURE_IDLE_CONNECTIONS_MAX + ALL_IDLE_CONNECTIONS_MAX,
        )
        room = (self.descriptors_max - DESCRIPTORS_KEPT - idle_max) / 2
        return max(1, int(min(limits.connections_max, room)))

    def warn_of_descriptors(self) -> None:
        """Log a warning if the system allows fewer connections than are configured."""
        if self.count_max < self.shared.config.limits.connections_max:
            cause = f"the limit of open files allows only {self.count_max} connections (ulimit -n)"
            problem = f"limits.connections_max: {cause}"
            self.shared.log("warning", "config", {"problem": problem})

    def admit(self, connection: ClientConnection) -> None:
        """Count a connection in; another is ended for it if there are too many.

        The oldest keyless one is ended first, else an idle one, so that a flood without keys costs
        no client its connection.  If all are busy, the new one is spare.
        """
        is_full = len(self.counted) >= self.count_max
        if is_full or len(self.keyless) >= KEYLESS_CONNECTIONS_MAX:
            leaving = next(iter(self.keyless), None) or self.dispensable()
            if leaving is None:
                self.admit_spare(connection)
                return
            self.dismiss(leaving)

        self.counted[connection] = None
        self.keyless[connection] = None

    def admit_spare(self, connection: ClientConnection) -> None:
        """Count in a spare connection; the oldest spare one is ended if there are too many."""
        if len(self.spares) >= SPARE_CONNECTIONS_MAX:
            self.dismiss(next(iter(self.spares)))
        self.spares[connection] = None

    def dispensable(self) -> ClientConnection | None:
        """The connection to end for a new one: not busy, of the caller with the most, longest idle.

        None if all are busy: a call in progress is never ended for another client.  Counting by
        caller keeps one key with many connections from displacing the others'.
        """
        free = [connection for connection in self.counted if not connection.is_busy]
        if not free:
            return None

        counts = Counter(connection.caller for connection in self.counted)
        caller = max(free, key=lambda connection: counts[connection.caller]).caller
        candidates = [connection for connection in free if connection.caller == caller]
        idle_since = self.shared.reaper.idle_until
        return min(candidates, key=lambda connection: idle_since.get(connection, math.inf))

    async def end_idle(self) -> None:
        """End the connections on which no request has arrived.

        What has arrived is served: a proxy takes a connection that is closed without a response
        for a failed request, and may not repeat a POST.
        """
        for _ in range(ARRIVAL_STEPS):
            await trio.lowlevel.checkpoint()
        for connection in list(self.counted):
            if connection in self.shared.reaper.idle_until and not connection.ahead:
                connection.scope.cancel()

    def recognize(self, connection: ClientConnection, caller: Hashable) -> None:
        """Note whose credential has been presented on a connection."""
        self.keyless.pop(connection, None)
        connection.caller = caller

    def check_share(self, connection: ClientConnection) -> None:
        """Refuse a call with which one key would keep all connections busy.

        A part of them is reserved for the other keys, unless only one key is not paused.
        Raises: PoolerError (pool_busy).
        """
        if connection.is_busy or connection not in self.counted:
            return

        keys = [key for key in self.shared.config.keys if not key.paused]
        count_max = self.count_max
        if len(keys) > 1:
            count_max -= max(1, count_max // PLACES_KEPT_PART)
        if self.busy[connection.caller] >= count_max:
            raise PoolerError("pool_busy", "This key has too many busy connections.")

    def occupy(self, connection: ClientConnection) -> None:
        """Note that a connection is busy, so that it is not ended for another one."""
        if connection in self.counted and not connection.is_busy:
            self.busy[connection.caller] += 1
            connection.is_busy = True

    def release(self, connection: ClientConnection) -> None:
        """Note that a connection is no longer busy.

        Callers without a busy connection are removed, so that the counts stay as few as the keys.
        """
        if not connection.is_busy:
            return

        connection.is_busy = False
        uncount(self.busy, connection.caller)

    def dismiss(self, connection: ClientConnection) -> None:
        """End a connection, and no longer count it."""
        self.forget(connection)
        connection.scope.cancel()

    def forget(self, connection: ClientConnection) -> None:
        """No longer count a connection."""
        self.counted.pop(connection, None)
        self.keyless.pop(connection, None)
        self.spares.pop(connection, None)


def catalogue_query(account: Account, version: str) -> tuple[str, Sequence[Field]]:
    """The path, behind the account's own, and the header fields that request its models.

    ChatGPT lists only what this version of Codex CLI knows (F20).
    """
    if not account.is_codex:
        return "/models", ()
    return f"/models?client_version={version}", [("version", version)]


@dataclass(eq=False)
class Catalogues:
    """Keeps the accounts' catalogues up to date, in the background and only when they are used."""

    shared: Shared
    wanted: trio.Event = field(default_factory=trio.Event)

    def is_old(self, endpoint: Endpoint) -> bool:
        """Whether the account's catalogue must be fetched."""
        account = endpoint.account
        is_asked = (account.models is None or account.is_codex) and not account.paused
        health = self.shared.roster.health_of(account)
        return is_asked and health.catalogue_until <= trio.current_time()

    async def want(self, pool: Pool) -> None:
        """Look for new logins, and have the pool's old catalogues fetched in the background."""
        await self.shared.login_watch.look(pool.accounts)
        for account in pool.accounts:
            endpoint = self.shared.endpoints.by_name.get(account.name)
            if endpoint is not None and self.is_old(endpoint):
                self.wanted.set()

    async def run(self) -> Never:
        """Fetch all old catalogues one by one, at the start and whenever one is wanted.

        The event is replaced first: what is wanted during a round starts another one.
        """
        while True:
            self.wanted = trio.Event()
            await self.shared.look_at_logins(self.shared.config.accounts.values())
            for endpoint in list(self.shared.endpoints.by_name.values()):
                if self.shared.endpoints.is_current(endpoint) and self.is_old(endpoint):
                    await self.update(endpoint)
            await self.wanted.wait()

    async def update(self, endpoint: Endpoint) -> None:
        """Fetch one account's catalogue; a problem is logged once for as long as it lasts.

        After a failure the old catalogue stays in use, and the next attempt is made sooner.
        """
        account = endpoint.account
        health = self.shared.roster.health_of(account)
        status, catalogue, problem = await self.fetch(endpoint)
        health.catalogue_status = status
        health.catalogue = catalogue or health.catalogue
        health.catalogue_at = trio.current_time()
        pause = CATALOGUE_PAUSE_SECONDS if catalogue is None else CATALOGUE_SECONDS
        health.catalogue_until = health.catalogue_at + pause

        if problem and problem != health.catalogue_problem:
            fields = {"account": account.name, "problem": problem}
            self.shared.log("warning", "models", fields)
        health.catalogue_problem = problem

    async def fetch(self, endpoint: Endpoint) -> tuple[int, Mapping[str, Model] | None, str]:
        """The status, the account's catalogue or None, and what went wrong for the log or ""."""
        account = endpoint.account
        path, fields = catalogue_query(account, self.shared.version_for(account))
        status, body, problem = await ask_upstream(
            self.shared,
            endpoint,
            account.base_url,
            path,
            fields,
            bytes_max=CATALOGUE_BYTES_MAX,
        )
        if status != 200:
            words = problem and f"its list of models could not be fetched: {problem}"
            return status, None, words

        catalogue = read_catalogue(body, is_codex=account.is_codex)
        return status, catalogue, "its list of models cannot be read" if catalogue is None else ""


async def ask_upstream(
    shared: Shared,
    endpoint: Endpoint,
    url: BaseUrl,
    path: str,
    more: Sequence[Field],
    *,
    bytes_max: int,
) -> tuple[int, bytes, str]:
    """Status and body of a GET of the pooler's own as an account, and what is wrong if not 200.

    `url` is the account's, but may have another path; `path` is added to it.

    The status is 0 without a response; then the problem may be a login's, which is logged as that:
    here it is "".  The text is the pooler's own: an upstream's might contain secrets.
    """
    problem = "no response in time"  # unless there was another

    with trio.move_on_after(CONNECT_SECONDS_MAX):
        try:
            secret, fields, _ = await authorize(shared.tokens, endpoint)
            head = request_head(url, path, secret, [*fields, *more], b"")
            status, body = await ask_once(
                shared.dial,
                endpoint.account.base_url,
                endpoint.tls,
                head,
                proxy=endpoint.proxy,
                bytes_max=bytes_max,
            )
        except LoginNeeded:
            problem = ""
        except ConnectFailed as error:
            problem = str(error.cause)
        except TRANSPORT_ERRORS as error:
            problem = TROUBLES.get(type(error), Trouble.CLOSED).value
        else:
            return status, body, "" if status == 200 else f"status {status}"

    return 0, b"", problem


@dataclass(eq=False)
class QuotaWatch:
    """Asks ChatGPT accounts for their quota at the start, and after a time without news of it.

    So it is known before a request depends on it.  No request waits for this, and a failure says
    nothing of what the account can serve: it changes no account.
    """

    shared: Shared
    places: trio.CapacityLimiter = field(
        default_factory=lambda: trio.CapacityLimiter(USAGE_REQUESTS_MAX)
    )

    def due_at(self, endpoint: Endpoint) -> float:
        """When the account is to be asked; never, if it is paused or has no login."""
        account = endpoint.account
        health = self.shared.roster.health_of(account)
        if not account.is_codex or account.paused or not health.has_login:
            return math.inf
        return max(health.usage_at, health.quota.heard_at + USAGE_SECONDS)

    async def run(self) -> Never:
        """Ask whoever is due, and wait for the next one, for a login or for a reload."""
        shared = self.shared
        while True:
            shared.login_watch.changed = trio.Event()
            await shared.look_at_logins(shared.config.accounts.values())
            endpoints = [*shared.endpoints.by_name.values()]
            now = trio.current_time()
            async with trio.open_nursery() as nursery:  # holds: one task for each request
                for endpoint in endpoints:
                    if self.due_at(endpoint) <= now:
                        nursery.start_soon(self.update, endpoint)

            next_at = min(map(self.due_at, shared.endpoints.by_name.values()), default=math.inf)
            with trio.move_on_at(next_at):
                await shared.login_watch.changed.wait()

    async def update(self, endpoint: Endpoint) -> None:
        """Ask one account, and take its windows as if a response had reported them.

        A problem is logged once for as long as it lasts.  An upstream without the route is left
        alone for a day.
        """
        account, shared = endpoint.account, self.shared
        # Next to the routes of Codex, not under them (F36).
        url = account.base_url
        parent = url._replace(path=url.path.removesuffix("/codex"))
        async with self.places:
            if not shared.endpoints.is_current(endpoint):
                return
            status, body, problem = await ask_upstream(
                shared, endpoint, parent, "/wham/usage", [], bytes_max=USAGE_BYTES_MAX
            )

        now = trio.current_time()
        health = shared.roster.health_of(account)
        pause = USAGE_PAUSE_SECONDS if status == 404 else USAGE_SECONDS
        spread = USAGE_SPREAD * digest_of(account.name)[0] / 256
        health.usage_at = now + pause * (1 + spread)
        if status == 200:
            windows = read_usage_report(try_load_object(body))
            shared.roster.note_quota(account, windows, now, shared.unix_now())
            shared.account_watch.look()

        if problem and problem != health.usage_problem:
            fields = {"account": account.name, "problem": f"its quota is not known: {problem}"}
            shared.log("info", "usage", fields)
        health.usage_problem = problem


def check_origin(head: RequestHead, route: Route, config: Config) -> None:
    """Refuse browser pages of foreign origins, and foreign hosts (DNS rebinding).

    A browser sends the name in its address bar as Host, so a page whose name was pointed at this
    machine is recognized by it.  Health checks may use any name.
    Raises: PoolerError (host_not_allowed, origin_not_allowed).
    """
    host = head.host  # None: HTTP/1.0 without a Host
    hosts = config.hosts  # None: every name is allowed
    is_foreign = host is not None and hosts is not None and host not in hosts
    if is_foreign and route.path not in HEALTH_PATHS:
        name = (host or "")[:253]  # no DNS name is longer
        hint = f'To allow it, add "{name}" to hosts in pools.json.'
        raise PoolerError("host_not_allowed", f"This Host is not allowed. {hint}")

    origin = head.headers.get("origin")
    if origin is not None and not is_origin_allowed(origin.lower(), route, config):
        raise PoolerError("origin_not_allowed")


def identify_caller(
    head: RequestHead,
    route: Route,
    config: Config,
    unix_now: float,
) -> Caller:
    """The pool key or the operator whose credential a request presents, as its route demands.

    Unknown, paused and expired keys get the same response, which therefore does not show whether a
    key ever existed.  Raises: PoolerError (invalid_api_key, not_found).
    """
    if route.access is Access.ANYBODY:
        return None
    if route.access in (OPERATOR, OPERATOR_PAGE):
        return identify_operator(head, route, config)

    presented = bearer_of(head.headers)
    key = match_secret(presented, config.keys)
    if key is None or not key.is_usable(unix_now):
        raise PoolerError("invalid_api_key")
    return key


def identify_operator(head: RequestHead, route: Route, config: Config) -> Operator:
    """The operator whose token a request presents.

    Without operators in the configuration their routes do not exist.
    Raises: PoolerError (invalid_api_key, not_found).
    """
    if not config.operators:
        raise PoolerError("not_found")

    presented = bearer_of(head.headers)
    challenge: list[Field] = []
    if route.access is Access.OPERATOR_PAGE:
        presented = presented or basic_of(head.headers)
        challenge = [("WWW-Authenticate", 'Basic realm="codex-pooler"')]

    operator = match_secret(presented, config.operators)
    if operator is None:
        public = "A valid operator token is required as Authorization: Bearer."
        raise PoolerError("invalid_api_key", public, headers=challenge)
    return operator


@dataclass(eq=False)
class Readings:
    """What a key may read: its pool's models, and how much it and its pool have used.

    Everything is about the key or about the pool as a whole: accounts appear neither by name nor
    by number.
    """

    shared: Shared
    catalogues: Catalogues

    async def serve_models(self, incoming: Incoming) -> None:
        """The models of the key's pool, or the one that the path names.

        Raises: PoolerError (model_not_found, pool_busy), ClientGone.
        """
        key = incoming.key
        pool = incoming.pool
        await self.catalogues.want(pool)
        async with self.shared.listing(incoming.exchange.holder):  # a pool may have thousands
            # Codex CLI asks for its own form of the list on /v1, too.
            is_of_codex = pool.has_codex and "client_version=" in incoming.head.query
            if incoming.route.is_native or is_of_codex:
                shown = self.list_codex_models(pool, key)
            else:
                shown = self.list_models(pool, key, incoming.model)
        await self.respond_held(incoming, shown)

    def list_codex_models(self, pool: Pool, key: Key) -> bytes:
        """The models of the pool's ChatGPT accounts, in the form that Codex CLI reads."""
        entries = codex_models_of(self.shared.roster, pool, key)
        return b'{"models":[' + b",".join(entries) + b"]}"

    def list_models(self, pool: Pool, key: Key, wanted: str) -> bytes:
        """The OpenAI API's list, or the model `wanted` alone.

        `owned_by` names no upstream, and `created` is when the server was started: a pool is asked,
        not an account.  Raises: PoolerError (model_not_found).
        """
        models: JsonDict = {}
        for name, length in models_of(self.shared.roster, pool, key).items():
            models[name] = {
                "id": name,
                "object": "model",
                "created": self.shared.started_unix,
                "owned_by": "codex-pooler",
            }
            if length:
                models[name]["context_length"] = length

        if not wanted:
            return dump_json({"object": "list", "data": [*models.values()]})
        if wanted not in models:  # not a 400: OpenCode never sends this GET (F69)
            raise PoolerError("model_not_found", status=404)
        return dump_json(models[wanted])

    async def serve_usage(self, incoming: Incoming) -> None:
        """What the key has used, and how much is left of its pool's quota.

        Raises: PoolerError (pool_busy), ClientGone.
        """
        key, pool = incoming.key, incoming.pool
        await self.catalogues.want(pool)
        use = self.shared.uses[key.pool, key.name]
        shown = show_key_usage(
            self.shared.roster,
            pool,
            key,
            use,
            now=trio.current_time(),
            unix_now=self.shared.unix_now(),
        )
        await self.respond_held(incoming, dump_json(shown))

    async def serve_codex_usage(self, incoming: Incoming) -> None:
        """The pool's quota, in the form that Codex CLI's `/status` reads.

        Raises: PoolerError (pool_busy), ClientGone.
        """
        await self.catalogues.want(incoming.pool)
        shown = show_codex_usage(
            self.shared.roster,
            incoming.pool,
            trio.current_time(),
            self.shared.unix_now(),
        )
        await self.respond_held(incoming, dump_json(shown))

    async def respond_held(self, incoming: Incoming, shown: bytes) -> None:
        """Respond, and charge the body to the key until it is sent.

        A list of models may take MiB, which a client that does not read would otherwise pile up.
        Raises: PoolerError (pool_busy), ClientGone.
        """
        held = incoming.exchange.held
        held.refusal = TOO_MUCH_HELD
        held.grow(len(shown))
        await incoming.exchange.reply.respond(200, shown)


@dataclass(eq=False)
class Calls:
    """Reads calls, counts them for their keys, and closes their records.

    From `admit` to `close` a call counts as in progress for its key.  However it ends, `close` is
    called, because `Exchanges.serve` closes each exchange.
    """

    shared: Shared
    connections: Connections
    catalogues: Catalogues

    async def accept(self, incoming: Incoming) -> None:
        """Read and validate the body; sets `exchange.call`.

        The key's limits come before the body: a key that has used them up costs no memory.
        Raises: PoolerError, ClientGone.
        """
        exchange, head = incoming.exchange, incoming.head
        # A page of another origin cannot send this type without a preflight, which is refused.
        content_type = head.headers.get("content-type", "").partition(";")[0]
        if content_type.strip().lower() != "application/json":
            raise PoolerError("unsupported_media_type")

        self.admit(exchange, incoming.key)
        await exchange.read_body(exchange.limits)
        await self.validate(exchange, head, incoming.key, incoming.route)
        exchange.connection.enter_call(True)

    def admit(self, exchange: Exchange, key: Key) -> None:
        """Count a call in if the limits of its key allow it.

        Raises: PoolerError (key_limit_reached, pool_busy).
        """
        use = self.shared.uses[key.pool, key.name]
        self.connections.check_share(exchange.connection)
        use.admit(key, exchange.deadline.began_at, self.shared.unix_now())
        exchange.use = use
        self.connections.occupy(exchange.connection)

    async def validate(
        self,
        exchange: Exchange,
        head: RequestHead,
        key: Key,
        route: Route,
        turn: Turn | None = None,
    ) -> None:
        """Validate the body that was read; sets `exchange.call`.  Raises: PoolerError.

        The log gets a model's name only if it is known: any other is text that a client made up.
        """
        exchange.record.bytes_in = len(exchange.body)
        async with self.shared.unpacking(exchange.holder, len(exchange.body)):
            call = await self.read(exchange, head, key, route, turn)
        if call.requested_model:
            is_known = is_model_known(self.shared.roster, call)
            exchange.record.model = call.requested_model if is_known else "other"
        exchange.record.stream = call.is_stream
        await self.catalogues.want(call.pool)
        exchange.call = call

    async def read(
        self,
        exchange: Exchange,
        head: RequestHead,
        key: Key,
        route: Route,
        turn: Turn | None,
    ) -> Call:
        """The call in the body, with its alias resolved.  Raises: PoolerError.

        Parsing a large body takes long, so other tasks get their turn between the steps.
        """
        pool = exchange.config.pools[key.pool]

        for _ in check_json_shape(exchange.body):
            await yield_after(exchange.body)
        value = await read_json(exchange.body, parse_json_object)
        check_names(value)
        fields = value if turn is None else turn.understand(value)

        obstacle: Obstacle | None = None
        if pool.has_codex and not route.is_native:
            obstacle = codex_obstacle(route.kind, fields, exchange.carried)
        turn_fields: dict[str, Any] = {}
        if turn is not None:
            turn_fields["socket_id"] = turn.client.upgrade.record.request_id
            turn_fields["session_before"] = turn.client.session
        call = read_call(route, fields, head.headers, pool, key, obstacle=obstacle, **turn_fields)
        if turn is not None:
            turn.client.session = call.session

        # The body is written again only if something has changed: else it is sent as it came.
        alias = pool.meant_by(call.requested_model)
        if call.is_unary:  # not every server takes effort and tier there, and a search has neither
            alias = Alias(alias.model)
        if fields is not value or alias != Alias(call.requested_model):
            await yield_after(exchange.body)
            fields = with_alias(route.kind, fields, alias)
            exchange.replace_body(dump_like(fields, exchange.body))
            await yield_after(exchange.body)
        exchange.keep_parsed(call, fields)
        return call

    def close(self, exchange: Exchange) -> None:
        """Log a request that has ended, count it, and charge its key.

        A call that an upstream may have worked on is charged even if its client has left.
        """
        record, use = exchange.record, exchange.use
        unix_now = self.shared.unix_now()
        if exchange.reply.is_gone and not exchange.reply.is_whole:
            record.code = "client_gone"
        elif self.shared.is_draining and not exchange.reply.is_whole:
            record.code = record.code or "server_stopping"  # it was cut at once

        record.duration_ms = exchange.deadline.age_ms()
        record.tokens_estimated = exchange.is_billable and record.tokens is None
        shown = record.as_object()

        if use is not None:
            use.in_flight_count -= 1
            if exchange.is_billable:
                use.charge(tokens_spent(shown), unix_now)
        self.note_account(exchange)
        self.shared.log(request_level(record), "request", shown)
        if record.pool is not None:  # unauthenticated requests must not evict the others
            began_at = unix_now - record.duration_ms / 1000
            self.shared.ledger.add({"at": began_at, **shown}, exchange.price)

    def note_account(self, exchange: Exchange) -> None:
        """Log what the request has changed at accounts, and count it if nobody could serve it."""
        record, watch = exchange.record, self.shared.account_watch
        watch.look()
        is_failed = record.code is not None and record.code != "client_gone"
        if is_failed and watch.outages and exchange.call is not None:
            watch.note_failed(exchange.call.pool.name, exchange.call.model)


def load_state(path: Path) -> tuple[JsonDict | None, str]:
    """The content of a state file, None if there is none, and why it was put aside, or "".

    A broken one is renamed: it may be of a newer version, or of use to whoever wants to know what
    broke it.  Raises: OSError.
    """
    try:
        return parse_state(read_own(path, STATE_BYTES_MAX + 1)), ""
    except FileNotFoundError:
        return None, ""
    except ValueError:  # whose text may repeat the file's
        aside = path.with_name(f"{path.name}.broken")

    replaced = ", in place of an earlier one" if aside.exists() else ""
    path.rename(aside)
    reason = "is broken, or of another version, and was put aside"
    return None, f"{path} {reason} as {aside.name}{replaced}; sums and cooldowns start from zero"


@dataclass(eq=False)
class StateKeeper:
    """Keeps the file of `state`: it is read at the start, and then replaced when it has changed.

    One process at a time saves to a path, which it locks; another one serves, but saves nothing
    until the first has ended.  What cannot be saved is a warning, and no reason not to serve.
    """

    shared: Shared
    problem: str | None = None  # why nothing is saved, in words
    is_left_alone: bool = False  # it could not be read, so it must not be replaced either
    lock: io.FileIO | None = None
    saved: bytes = b""
    # Held by the thread that writes: one that was abandoned must not mix its version with another.
    writing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def path(self) -> Path | None:
        """The file; a reload does not change it."""
        text = self.shared.config.state
        return None if text is None else Path(text)

    def lasting(self) -> Lasting:
        """What is saved, at this moment."""
        shared = self.shared
        now, unix_now = trio.current_time(), shared.unix_now()
        return Lasting(shared.config, shared.roster, shared.ledger, shared.uses, now, unix_now)

    async def restore(self) -> None:
        """Go on from what an earlier process has saved."""
        path = self.path
        if path is None:
            return

        saved, problem, failure = None, "", None
        try:
            saved, problem = await self.shared.files.run(RELOAD_SECONDS_MAX, load_state, path)
        except OSError as error:
            failure = f"{path} cannot be read: {error.strerror}; {remedy_for(error)}"
        self.is_left_alone = failure is not None
        self.note(failure)

        if problem:
            self.shared.log("warning", "state", {"problem": problem})
        try:
            if saved is not None:
                self.lasting().restore(saved)
        except Exception:  # noqa: BLE001 (a bug here must not keep the pooler from serving)
            self.shared.log_bug(None)

    async def run(self) -> None:
        """Save at once, which shows whether it is possible, then once a minute, and at the end."""
        try:
            while self.path is not None:
                await self.save()
                await trio.sleep(STATE_SECONDS)
        finally:
            with trio.move_on_after(FILE_SECONDS_MAX, shield=True):
                await self.save()
            if self.lock is not None:
                self.lock.close()

    async def save(self) -> None:
        """Replace the file if something has changed."""
        path = self.path
        if path is None or self.is_left_alone:
            return

        failure = None
        try:
            await self.shared.files.run(FILE_SECONDS_MAX, self.write, path, self.lasting().save())
        except OSError as error:
            failure = f"{path} cannot be saved: {error.strerror}; {remedy_for(error)}"
        except Exception:  # noqa: BLE001 (a bug here must not end the server)
            self.shared.log_bug(None)
            failure = "a bug, which the log shows"
        self.note(failure)

    def write(self, path: Path, value: JsonDict) -> None:
        """Replace the file.  It blocks.  Raises: OSError."""
        raw = dump_escaped(value)
        if len(raw) > STATE_BYTES_MAX:
            raise OSError(errno.EFBIG, "it would be too large")
        if not self.writing.acquire(timeout=FILE_SECONDS_MAX):
            raise OSError(errno.ETIMEDOUT, "the disk did not respond in time")

        try:
            self.lock = self.lock or try_lock(path)
            if self.lock is None:
                raise OSError(errno.EAGAIN, "another process saves to it")
            if raw != self.saved or not path.exists():
                save_file(path, raw)
                self.saved = raw
        finally:
            self.writing.release()

    def note(self, problem: str | None) -> None:
        """Log why nothing is saved, once, and that something is again."""
        if problem == self.problem:
            return

        self.problem = problem
        if problem is None:
            self.shared.log("info", "state", {"problem": None})
        else:
            self.shared.log("warning", "state", {"problem": problem})


@dataclass(eq=False)
class Imports:
    """Modules that are slow to load: each is imported when a request first needs it."""

    files: Files  # in whose threads that is done
    loaded: set[str] = field(default_factory=set)

    async def load(self, name: str) -> None:
        """Import a module in a thread, if it is not loaded.  Raises: ImportError.

        `sys.modules` has a module while it is still being imported, so that `loaded` decides.  Two
        requests may import at once: Python's lock makes the second wait for the first.
        """
        if name not in self.loaded:
            limiter = self.files.limiter
            await trio.to_thread.run_sync(importlib.import_module, name, limiter=limiter)
            self.loaded.add(name)


@dataclass(eq=False)
class Exchanges:
    """The requests in progress: what a drain waits for."""

    shared: Shared
    calls: Calls
    in_progress: set[Exchange] = field(default_factory=set)
    quiet: trio.Event = field(default_factory=trio.Event)  # set when there is none

    async def serve(self, exchange: Exchange, dispatched: Awaitable[None]) -> None:
        """Await `dispatched` and the call that it reads; then release what they held.

        A request and a turn of a WebSocket differ only in what reads and validates their call.
        """
        self.in_progress.add(exchange)
        try:
            await self.conclude(exchange, dispatched)
        finally:
            # Nothing here waits, so none of it can be cancelled.
            exchange.replace_body(b"")
            self.calls.close(exchange)
            self.in_progress.discard(exchange)
            if not self.in_progress:
                self.quiet.set()

    async def conclude(self, exchange: Exchange, dispatched: Awaitable[None]) -> None:
        """Await `dispatched`, then serve its call, if there is one.

        An expected failure, or a bug, becomes the response or its end.  A response that has begun
        is cut with a terminal event: its status has already been sent.
        """
        failure: PoolerError | None = None
        try:
            await dispatched
            if exchange.call is not None:
                await serve_call(exchange, exchange.call)
        except PoolerError as error:
            failure = error.with_traceback(None)  # its frames would keep the body in memory,
            failure.__context__ = None  # and so would those of what it replaces
        except ClientGone:
            return
        except Exception:  # noqa: BLE001 (a bug is logged, and its client gets a 500)
            self.shared.log_bug(exchange.record.request_id)
            failure = PoolerError("internal_error")
        if failure is None:
            return

        with contextlib.suppress(ClientGone):
            if exchange.reply.is_started:
                await exchange.cut(failure)
            else:
                await exchange.reply.fail(failure)

    async def wait_quiet(self) -> None:
        """Wait until no request is in progress."""
        while self.in_progress:
            self.quiet = trio.Event()
            await self.quiet.wait()


@dataclass(eq=False)
class WebSockets:
    """The clients' WebSockets: the upgrade, then one turn after the other, each an exchange."""

    shared: Shared
    connections: Connections
    catalogues: Catalogues
    calls: Calls
    imports: Imports
    exchanges: Exchanges
    opened: set[ClientSocket] = field(default_factory=set)

    async def accept(self, incoming: Incoming) -> None:
        """Serve a WebSocket to its end.  Raises: PoolerError, before the upgrade."""
        route = incoming.route
        native_path = route.upstream_path if route.is_native else ""
        await self.serve_socket(incoming.exchange, incoming.head, incoming.key, native_path)

    async def serve_socket(
        self, exchange: Exchange, head: RequestHead, key: Key, native_path: str
    ) -> None:
        """Validate the upgrade, then serve turns to the end of the connection.

        Raises: PoolerError, before the upgrade.
        """
        raw, record = upgrade_head(head), exchange.record
        pool, connection = exchange.config.pools[key.pool], exchange.connection
        await self.catalogues.want(pool)
        await self.imports.load(WEBSOCKET_LIBRARY)

        # Nothing waits from here until `opened` has this one: no other can take its place.  What is
        # refused before the upgrade gets a plain response, which every client understands.
        self.check_room(key, pool, is_native=bool(native_path))
        self.connections.check_share(connection)
        self.connections.occupy(connection)

        # The library sends the 101 itself.  HTTP is over then: no error may be written in its form.
        reply = exchange.reply
        reply.closes = reply.is_started = reply.is_whole = True
        record.status = 101

        held = HeldBytes(self.shared.bodies, exchange.holder)
        frames = Frames(
            connection.wire, WEBSOCKET_MESSAGE_BYTES_MAX, held, exchange.limits, is_client=True
        )
        client = ClientSocket(
            upgrade=exchange,
            frames=frames,
            key=key,
            native_path=native_path,
            note_bug=lambda: self.shared.log_bug(record.request_id),
        )

        is_open = False
        self.opened.add(client)
        try:
            async with trio.open_nursery() as client.nursery:  # holds: readers, of both sides
                with trio.move_on_after(WEBSOCKET_HANDSHAKE_SECONDS_MAX):
                    await frames.accept(client.start, raw, record.request_id)
                if is_open := frames.socket is not None:
                    client.start(client.read_frames)
                    await self.serve_turns(client)
                # The turns are over; the readers alone would go on for as long as their peers.
                client.nursery.cancel_scope.cancel()
        finally:  # the readers have ended: nothing more is taken
            self.opened.discard(client)

            connection.is_gone = connection.is_at_end
            with trio.move_on_after(CLOSE_SECONDS_MAX, shield=True):
                await client.release()

        # Closed at once the socket might be reset, and the Close be lost (RFC 6455 §7.1.1).
        if is_open and client.close_code:
            await connection.send(close_frame(client.close_code))
            await connection.linger(WEBSOCKET_CLOSE_SECONDS_MAX)

    def check_room(self, key: Key, pool: Pool, *, is_native: bool) -> None:
        """Raises: PoolerError, if the key must not open another WebSocket now."""
        if not self.shared.roster.may_upgrade(pool, is_native, trio.current_time()):
            raise PoolerError("websocket_unsupported")

        # By name: a reload may have changed what else the key is.
        names = [(client.key.pool, client.key.name) for client in self.opened]
        if names.count((key.pool, key.name)) >= key.concurrent:
            raise key_limit("has reached its limit of concurrent WebSockets", 1)
        if self.shared.is_draining:
            raise PoolerError("server_stopping")

    async def serve_turns(self, client: ClientSocket) -> None:
        """Serve one turn after the other, until the WebSocket must be closed.

        Before each turn the key is looked up again: a reload may have removed or paused it, and
        its time may have expired.
        """
        while (frame := await client.next_frame()) is not None:
            key = self.key_of(client)
            if key is not None and not is_processed_note(frame):
                await self.serve_turn(client, key, frame)
                continue
            client.frames.done(frame)
            if key is None:
                client.end(1008)
            elif client.upstream is not None:  # it sends no response to them
                with contextlib.suppress(PeerClosed):
                    await client.upstream.frames.put(frame)

    async def serve_turn(self, client: ClientSocket, key: Key, frame: bytes) -> None:
        """Serve one call of a WebSocket, with an exchange of its own.

        It uses the configuration as it is now, and not that of the upgrade.  To the log, the limits
        of its key and the choice of an account it is a request like any other.
        """
        shared, upgrade = self.shared, client.upgrade
        limits = shared.config.limits
        record = Record(
            new_request_id(),
            "GET",
            upgrade.record.route,
            key.pool,
            key.name,
        )

        def stop_code() -> str:
            """The code of the error that ends the turn, once it has to end; else ""."""
            server_code = "server_stopping" if shared.is_stopped else ""
            return client.stop_code or server_code

        deadline = Deadline(stop_code)
        user = (key.pool, key.name)
        http = HttpTransport(shared, deadline, limits, lambda: client.is_gone)
        reply = SocketReply(client=client, record=record, deadline=deadline)
        transport = SocketTransport(client=client, http=http, user=user)
        exchange = Exchange(
            shared,
            upgrade.connection,
            record,
            shared.config,
            deadline,
            reply,
            transport,
            HeldBytes(shared.bodies, user, refusal=TOO_MANY_BODIES),
            head=upgrade.head,
            carried=CARRIED,
        )
        client.frames.done(frame)  # from here on the exchange holds it
        exchange.replace_body(frame)

        # While it is set, `ClientSocket.end` can end the turn.
        client.turn = exchange
        turn = Turn(client, reply, transport)
        await self.exchanges.serve(exchange, self.validate_turn(exchange, key, turn))
        client.turn = None
        if reply.closes:
            client.end(1011)

    async def validate_turn(self, exchange: Exchange, key: Key, turn: Turn) -> None:
        """Validate the call in a frame, as if it had come to the HTTP route.

        Raises: PoolerError.
        """
        self.calls.admit(exchange, key)
        path = "/backend-api/codex/responses" if turn.client.native_path else "/v1/responses"
        await self.calls.validate(exchange, exchange.head, key, call_route(path), turn)

    def key_of(self, client: ClientSocket) -> Key | None:
        """The key of a WebSocket as it is now; None if it has been removed, paused or has expired.

        A WebSocket may be open for hours, and its key may be revoked in the meantime.
        """
        names = (client.key.pool, client.key.name, client.key.digest)
        for key in self.shared.config.keys:
            is_same = (key.pool, key.name, key.digest) == names
            if is_same and key.is_usable(self.shared.unix_now()):
                return key
        return None


def installed_from() -> str:
    """The folder or URL that this program was installed from; its name, if that was an index.

    Installers write it down (https://packaging.python.org/en/latest/specifications/direct-url/).
    """
    pattern = "lib/python*/site-packages/codex_pooler-*.dist-info/direct_url.json"
    for path in Path(sys.prefix).glob(pattern):
        origin = try_load_object(path.read_bytes())
        kind = object_of(origin.get("vcs_info")).get("vcs")
        place = unquote(str(origin.get("url", "codex-pooler")).removeprefix("file://"))
        return shlex.quote(f"{kind}+{place}" if kind else place)
    return "codex-pooler"


def mcp_command() -> str:
    """The command that adds the package `mcp` to this installation.

    Installers leave a file of their own in the environments that they make.  Those of `uvx` and
    `uv run` are in uv's cache, made again for each set of packages, so they are not to be changed.
    """
    package = shlex.quote(MCP_PACKAGE)
    prefix = Path(sys.prefix)
    if (prefix / "pipx_metadata.json").exists():
        return f"pipx inject {prefix.name} {package}"
    if (prefix / "uv-receipt.toml").exists():
        return f"uv tool install --with {package} {installed_from()}"
    if prefix.parent.name.startswith("archive-v"):
        return f"uvx --with {package} --from {installed_from()} pooler"
    if prefix.parent.name.startswith("environments-v"):
        return f"uv run --with {package} {shlex.quote(__file__)}"

    python = shlex.quote(sys.executable)
    if importlib.util.find_spec("pip"):
        return f"{python} -m pip install {package}"
    return f"uv pip install --python {python} {package}"


def doubts_of_modules(config: Config) -> list[str]:
    """A warning if operators lack a module, with what to do."""
    missing = [name for name in (COMPANION, "mcp") if not importlib.util.find_spec(name)]
    if not (config.operators and missing):
        return []
    if COMPANION in missing:
        return ["operators: /admin, /metrics and /mcp need mcp_server.py next to pooler.py"]
    return [f"operators: /mcp needs the package mcp: {mcp_command()}"]


@dataclass(eq=False)
class Operators:
    """Serves the operators: their page, the metrics and MCP, each from one snapshot.

    The companion module decides which parts of a snapshot they are shown.  It is imported at the
    first request for one, so the pooler serves its clients without it.
    """

    shared: Shared
    imports: Imports
    connections: Connections
    sockets: Collection[ClientSocket]
    keeper: StateKeeper

    async def serve_admin(self, incoming: Incoming) -> None:
        """The operator's page, or the same as JSON or as text, as `Accept` demands.

        Raises: PoolerError, ClientGone.
        """
        companion = await self.load_companion()
        await self.shared.look_at_logins(self.shared.config.accounts.values())
        head = incoming.head
        accept = head.headers.get("accept", "")
        headers, text = companion.admin(self.snapshot(), accept, head.query)
        await incoming.exchange.reply.respond(200, text.encode("utf-8", "replace"), headers)

    async def serve_metrics(self, incoming: Incoming) -> None:
        """The metrics in Prometheus' text format.  Raises: PoolerError, ClientGone."""
        companion = await self.load_companion()
        await self.shared.look_at_logins(self.shared.config.accounts.values())
        headers, text = companion.metrics(self.snapshot())
        await incoming.exchange.reply.respond(200, text.encode("utf-8", "replace"), headers)

    async def serve_mcp(self, incoming: Incoming) -> None:
        """One JSON-RPC message, and its response.

        Of this process the companion gets two functions that read its state, and nothing that could
        change it.  Raises: PoolerError, ClientGone.
        """
        exchange, limits = incoming.exchange, incoming.exchange.limits
        bounded = dataclasses.replace(limits, body_bytes_max=MCP_BODY_BYTES_MAX)
        await exchange.read_body(bounded)

        companion = await self.load_companion()
        try:
            for name in companion.SDK:
                await self.imports.load(name)
        except ImportError:
            raise PoolerError("mcp_not_installed") from None

        await self.shared.look_at_logins(self.shared.config.accounts.values())
        status, headers, body = await companion.answer(
            incoming.head.headers,
            exchange.body,
            operator=incoming.operator.name,
            parse=parse_mcp_message,
            snapshot=self.snapshot,
            explain=self.explain,
        )
        await exchange.reply.respond(status, body, headers)

    async def load_companion(self) -> Any:  # noqa: ANN401 (a module)
        """The module that makes what operators are shown.  Raises: PoolerError."""
        try:
            await self.imports.load(COMPANION)
        except ImportError:
            raise PoolerError("operators_not_installed") from None
        return sys.modules[COMPANION]

    def explain(self, pool_name: str, model: str, session: str | None) -> JsonObject:
        """Which account a request would go to, and why.

        Raises: LookupError, if there is no such pool, or it does not serve the model.
        """
        pool = self.shared.config.pools[pool_name]
        try:
            return explain(
                self.shared.roster,
                pool,
                model,
                session,
                trio.current_time(),
                logins=self.login_states(),
            )
        except PoolerError:
            raise LookupError(model) from None

    def login_states(self) -> dict[str, LoginState]:
        """The state of each ChatGPT account's login."""
        return self.shared.account_watch.logins()

    def snapshot(self) -> JsonDict:
        """The state of the whole process as JSON, of which operators are shown parts.

        It is made without a wait, so all of its numbers are of one moment.
        """
        shared = self.shared
        refused = shared.refused_reload

        state = State(
            shared.config,
            shared.roster,
            shared.ledger,
            shared.uses,
            self.login_states(),
            shared.tokens.outcomes,
            {name: len(queue) for name, queue in shared.queues.by_pool.items()},
            shared.account_watch.outages,
            {
                "started_at": shared.started_unix,
                "is_draining": shared.is_draining,
                "state_problem": self.keeper.problem,
                "config_problem": refused and refused.words(),
                "config_problem_at": refused and refused.unix,
                "connections": len(self.connections.counted),
                "websockets": len(self.sockets),
            },
            trio.current_time(),
            shared.unix_now(),
        )
        return snapshot(state)

    def warn_of_missing_modules(self) -> None:
        """Log what operators cannot use because a module is not installed."""
        for problem in doubts_of_modules(self.shared.config):
            self.shared.log("warning", "config", {"problem": problem})


class Server:
    """What lives as long as the process: its parts, and the tasks that serve connections."""

    def __init__(
        self,
        config: Config,
        tls_contexts: TlsContexts,
        *,
        dial: Dial = dial,
        unix_now: Callable[[], float] = time.time,
        log: Log = print_log,
        descriptors_max: float = math.inf,
    ) -> None:
        """Make the parts; nothing is opened, read or started before `serve`.

        `dial`, `unix_now` (seconds) and `log` are the world outside, together with files and
        Trio's clock; tests give others.
        """
        # Each part is given those before it: no two of them need each other.
        self.shared = Shared(config, tls_contexts, dial, unix_now, log)
        self.connections = Connections(self.shared, descriptors_max)
        self.catalogues = Catalogues(self.shared)
        self.calls = Calls(self.shared, self.connections, self.catalogues)
        self.readings = Readings(self.shared, self.catalogues)
        self.imports = Imports(self.shared.files)
        self.exchanges = Exchanges(self.shared, self.calls)
        self.websockets = WebSockets(
            self.shared,
            self.connections,
            self.catalogues,
            self.calls,
            self.imports,
            self.exchanges,
        )
        sockets = self.websockets.opened
        self.keeper = StateKeeper(self.shared)
        self.operators = Operators(
            self.shared, self.imports, self.connections, sockets, self.keeper
        )

        self.stopping = trio.Event()
        self.accepting = trio.CancelScope()

        # By the names in ROUTES: no request can call anything that is not listed here.
        self.handlers: Mapping[str, Handler] = {
            "serve_health": self.serve_health,
            "serve_readiness": self.serve_readiness,
            "accept_call": self.calls.accept,
            "accept_socket": self.websockets.accept,
            "serve_models": self.readings.serve_models,
            "serve_usage": self.readings.serve_usage,
            "serve_codex_usage": self.readings.serve_codex_usage,
            "serve_mcp": self.operators.serve_mcp,
            "serve_admin": self.operators.serve_admin,
            "serve_metrics": self.operators.serve_metrics,
            "refuse_endpoint": self.refuse_endpoint,
            "refuse_path": self.refuse_path,
        }

    async def serve_connection(self, stream: trio.abc.HalfCloseableStream) -> None:
        """Serve the requests on one accepted stream, and close it.  Raises: Cancelled alone.

        The reader runs for as long as the connection: so a client that leaves is noticed while its
        call waits for an upstream, and ends it.
        """
        connection = ClientConnection(stream)

        try:
            self.connections.admit(connection)
            async with trio.open_nursery() as nursery:  # holds: the reader
                connection.scope = nursery.cancel_scope
                nursery.start_soon(connection.read_ahead)
                while await self.serve_request(connection):
                    pass
                nursery.cancel_scope.cancel()

        except Exception:  # noqa: BLE001 (a bug stays within its connection)
            self.shared.log_bug(None)

        finally:
            self.connections.forget(connection)
            self.shared.reaper.forget(connection)
            with trio.move_on_after(CLOSE_SECONDS_MAX, shield=True):
                await stream.aclose()

    async def serve_request(self, connection: ClientConnection) -> bool:
        """Read one request and respond; whether the connection may carry another.

        Whatever is wrong with the request, it gets a response, a record and a line of the log,
        unless the client has left without sending one.
        """
        shared = self.shared
        raw: bytes | PoolerError | None
        try:
            raw = await connection.read_head(shared.reaper)
        except PoolerError as error:
            raw = error
        if raw is None:
            return False

        exchange = self.new_exchange(connection)

        dispatched = self.dispatch(exchange, raw)
        del raw  # a response may take an hour
        try:
            await self.exchanges.serve(exchange, dispatched)
        finally:
            connection.enter_call(False)
            self.connections.release(connection)

        if exchange.reply.closes and not connection.is_gone:
            await connection.linger()
        return not (exchange.reply.closes or connection.is_gone)

    def new_exchange(self, connection: ClientConnection) -> Exchange:
        """The exchange of a request whose head has not been parsed.

        It exists first, so that a head that is refused is logged and refused like any request.
        """
        shared = self.shared
        record = Record(new_request_id())
        limits = shared.config.limits
        deadline = Deadline(lambda: "server_stopping" if shared.is_stopped else "")
        return Exchange(
            shared,
            connection,
            record,
            shared.config,
            deadline,
            HttpReply(shared, connection, record, deadline),
            HttpTransport(shared, deadline, limits, lambda: connection.is_gone),
            HeldBytes(shared.bodies, ("", ""), refusal=TOO_MANY_BODIES),
        )

    async def dispatch(self, exchange: Exchange, raw: bytes | PoolerError) -> None:
        """Check the head and call the handler of its route.

        The one way to a handler: what is checked here is checked for every route.  Origin and Host
        come before the credential, because a browser adds a cached Basic login by itself.
        Raises: PoolerError, ClientGone.
        """
        if isinstance(raw, PoolerError):
            raise raw

        config = exchange.config
        head = parse_request_head(raw)
        exchange.begin(head)
        routes, model = find_routes(head.path, config.base_path)
        route = routes[0]  # the others differ in their methods
        check_origin(head, route, config)

        # Only names of ours get into the log: a client could write anything else there.
        exchange.record.method = head.method if head.method in KNOWN_METHODS else "other"
        exchange.record.route = route.name

        # Until the body has been read, its bytes would pass for the next request.
        exchange.reply.closes = head.framing != NO_BODY
        if head.method == "OPTIONS":  # browsers get no CORS headers
            raise PoolerError("not_found")
        if exchange.connection in self.connections.spares:
            exchange.reply.closes = True
            if route.access is not Access.ANYBODY:
                raise PoolerError("pool_busy", "Too many connections are open.")

        # The method is checked last: without a credential a 405 would show which routes exist.
        caller = identify_caller(head, route, config, self.shared.unix_now())
        self.note_caller(exchange, caller)
        if route.access is Access.CODEX_KEY and not config.pools[exchange.holder[0]].has_codex:
            raise PoolerError("unsupported_endpoint", NO_CHATGPT_ACCOUNT)

        route = with_method(routes, head.method)
        await self.handlers[route.handler](Incoming(exchange, head, route, model, caller))

    def note_caller(self, exchange: Exchange, caller: Caller) -> None:
        """Note whose credential the request and its connection have presented.

        From here on what the request holds in memory counts for its key, and not for strangers.
        """
        if isinstance(caller, Operator):
            self.connections.recognize(exchange.connection, caller.name)
        elif isinstance(caller, Key):
            exchange.record.pool, exchange.record.key = caller.pool, caller.name
            exchange.held.holder = exchange.holder
            self.connections.recognize(exchange.connection, exchange.holder)
            self.shared.note_version(codex_version_of(exchange.head.headers, exchange.head.query))

    async def serve_health(self, incoming: Incoming) -> None:
        """Whether the process is alive."""
        await incoming.exchange.reply.respond(200, b'{"status": "ok"}')

    async def serve_readiness(self, incoming: Incoming) -> None:
        """Whether the process takes new requests: not while it drains.

        Accounts do not count: a pool without a usable one still responds, with the reason.
        """
        if self.shared.is_draining:
            await incoming.exchange.reply.respond(503, b'{"status": "draining"}')
        else:
            await incoming.exchange.reply.respond(200, b'{"status": "ok"}')

    async def refuse_path(self, _: Incoming) -> None:
        """Raises: PoolerError."""
        raise PoolerError("not_found")

    async def refuse_endpoint(self, _: Incoming) -> None:
        """Raises: PoolerError."""
        raise PoolerError("unsupported_endpoint")

    async def reload(self, load: Callable[[], Loaded]) -> None:
        """Replace the configuration by what `load` returns, atomically, or log why not.

        A configuration with one problem is refused as a whole, and the old one stays in use.
        """
        shared = self.shared
        loaded, problems = await self.try_load(load)
        for problem in problems:
            shared.log("error", "reload refused", {"problem": problem})
        if loaded is None:
            shared.refused_reload = RefusedReload(problems, shared.unix_now())
            return

        (config, contexts), changes = loaded
        shared.refused_reload = None
        kept = {name: getattr(shared.config, name) for name in ("listen", "state")}
        for name, value in kept.items():
            if getattr(config, name) != value:
                shared.log("warning", "reload", {"problem": f"{name}: a change requires a restart"})
        for warning in config.warnings:
            shared.log("warning", "config", {"problem": warning})
        self.apply(dataclasses.replace(config, **kept), contexts)
        shared.log("info", "reloaded", {"pools": len(config.pools), "changed": changes})

        # Idle connections may lead to addresses that are not configured any more.
        await shared.idle.close_all()
        await shared.login_watch.inspect_all()

    async def try_load(self, load: Callable[[], Loaded]) -> tuple[Compared | None, Sequence[str]]:
        """What `load` returns and changes, or None and the problems that it raises; in a thread.

        A secret may be a file on a file system that does not respond: that blocks no request.
        """
        try:
            return await self.shared.files.run(RELOAD_SECONDS_MAX, compared, load, self.shared), []
        except ConfigRefused as refused:
            return None, refused.problems
        except OSError as error:
            return None, [f"the configuration cannot be read: {error.strerror}"]

    def apply(self, config: Config, contexts: TlsContexts) -> None:
        """Replace the configuration; nothing is awaited, so no request sees half of it.

        Requests in progress keep the old one; what they have used still counts for their keys.
        """
        shared, limits = self.shared, config.limits
        shared.config, shared.tls_contexts = config, contexts
        shared.roster.reload(config)
        shared.endpoints.reload(config, contexts)
        shared.notices.reload(config, contexts)
        shared.account_watch.reload()
        shared.bodies.bytes_max = limits.bodies_bytes_max
        shared.ledger.requests = deque(shared.ledger.requests, limits.records_max)

        names = {(key.pool, key.name) for key in config.keys}
        for name in shared.uses.keys() - names:
            del shared.uses[name]
        shared.ledger.forget_others(names, config.accounts)
        for client in self.websockets.opened:
            if self.websockets.key_of(client) is None:
                client.end(1008, "invalid_api_key")

        self.operators.warn_of_missing_modules()
        # What waits may be served now: by a new account, or by one whose cooldown is cleared.
        shared.queues.assign_waiters()
        self.catalogues.wanted.set()
        shared.login_watch.changed.set()

    async def serve(self, listeners: Sequence[trio.abc.Listener[Any]]) -> None:
        """Accept on `listeners` until `stop`, then drain; closes the listeners.

        Services outlive connections, because a request that is drained may need a refresh.
        """
        async with trio.open_nursery() as services:  # holds: all services, and refreshes
            self.shared.tokens.services = services
            services.start_soon(self.shared.reaper.run)
            services.start_soon(self.catalogues.run)
            services.start_soon(QuotaWatch(self.shared).run)
            services.start_soon(self.shared.notices.run)
            services.start_soon(self.shared.account_watch.run)
            services.start_soon(self.keeper.run)

            async with trio.open_nursery() as connections:  # holds: one task a connection
                connections.start_soon(self.end_accepting, listeners)
                with self.accepting:
                    await trio.serve_listeners(
                        self.serve_connection,
                        list(listeners),
                        handler_nursery=connections,
                    )
                await self.drain()
                connections.cancel_scope.cancel()
            services.cancel_scope.cancel()
        await self.shared.idle.close_all()

    def stop(self) -> None:
        """Stop accepting, and let `serve` drain.

        A WebSocket ends after its turn in progress.
        """
        self.shared.is_draining = True
        self.stopping.set()
        for client in self.websockets.opened:
            client.end(1001)

    async def end_accepting(self, listeners: Iterable[trio.abc.Listener[Any]]) -> None:
        """When it stops, accept what has connected, for the system would reset it; then no more."""
        await self.stopping.wait()
        sockets = [one.socket for one in listeners if isinstance(one, trio.SocketListener)]
        for _ in range(LISTEN_BACKLOG):
            if not select.select(sockets, (), (), 0)[0]:
                break
            await trio.lowlevel.checkpoint()
        self.accepting.cancel()

    async def drain(self) -> None:
        """Give requests time to end, then end the others with a terminal event.

        Cancelling the wait for its upstream is how a request learns of `is_stopped`.
        """
        with trio.move_on_after(self.shared.config.limits.drain_seconds_max):
            await self.connections.end_idle()
            while self.exchanges.in_progress:
                await self.exchanges.wait_quiet()
                # A response that had begun has not announced that its connection will end.
                await self.connections.end_idle()
        self.shared.is_stopped = True
        for exchange in self.exchanges.in_progress:
            exchange.deadline.cancel()
        with trio.move_on_after(STOP_SECONDS_MAX):
            await self.exchanges.wait_quiet()


async def open_listeners(
    config: Config,
    log: Log,
    advice: str = "",
) -> list[trio.SocketListener]:
    """The sockets of `listen`.

    An optional address that the machine does not have (no IPv6, perhaps) is left out with a
    warning; a port in use never is, because another program would get the requests.
    `advice` is what helps then.  Raises: ConfigRefused, if one cannot be opened.
    """
    opened: list[trio.SocketListener] = []
    problem = ""
    for listen in config.listen:
        try:
            opened += await _open_listener(listen)
        except OSError as error:
            if listen.is_optional and error.errno != errno.EADDRINUSE:
                log("warning", "listen", {"problem": f"{listen.text}: {error.strerror}"})
                continue
            cause = error.strerror or str(error)
            remedy = _LISTEN_ADVICE.get(error.errno, "check listen in pools.json")
            if error.errno == errno.EADDRINUSE:
                cause += f" by {await _holder_of(listen, config.base_path)}"

            problem = f"listen: {listen.text}: {cause}; {advice or remedy}"
            break

    if problem:
        for listener in opened:
            await listener.aclose()
        raise ConfigRefused([problem])
    return opened


_LISTEN_ADVICE: Final[Mapping[int | None, str]] = {
    errno.EADDRINUSE: "stop it, or set another address in listen",
    errno.EACCES: "use a port from 1024 on, or a socket in a folder of this user",
    errno.EADDRNOTAVAIL: "use an address of this machine, or 0.0.0.0 for all of them",
    errno.ENOENT: "create the folder of the socket",
}


async def _holder_of(listen: Listen, base_path: str) -> str:
    """Who has an address that is in use: another pooler, if it responds like one."""

    async def dial_there(*_: object) -> trio.SocketStream:
        """A connection to whoever listens there.  Raises: OSError."""
        if listen.unix_path is not None:
            return await trio.open_unix_socket(listen.unix_path)
        return await trio.open_tcp_stream(listen.host, listen.port)

    url = BaseUrl(False, listen.host or "localhost", listen.port, base_path)
    head = request_head(url, "/healthz", None, [], b"")
    body = b""
    with contextlib.suppress(*TRANSPORT_ERRORS), trio.move_on_after(HOLDER_SECONDS_MAX):
        _, body = await ask_once(dial_there, url, None, head, proxy=None, bytes_max=KIB)
    if try_load_object(body).get("status") in {"ok", "draining"}:
        return "another codex-pooler"
    return "another program (`ss -ltnp` or `lsof -i` names it)"


async def _open_listener(listen: Listen) -> list[trio.SocketListener]:
    """The sockets of one address, of which a name may have several.  Raises: OSError."""
    if listen.unix_path is not None:
        return [_open_unix_listener(listen.unix_path)]
    return await trio.open_tcp_listeners(listen.port, host=listen.host)


def _open_unix_listener(path: str) -> trio.SocketListener:
    """A listening Unix socket with mode 0660, replacing one that a dead process has left behind.

    Raises: OSError.
    """
    if os.path.lexists(path) and stat.S_ISSOCK(os.lstat(path).st_mode):  # no symbolic link
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(path) == errno.ECONNREFUSED:
                os.unlink(path)

    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(path)
        os.chmod(path, 0o660)  # before `listen`: until then nobody can connect
        listening.listen(LISTEN_BACKLOG)
        return trio.SocketListener(trio.socket.from_stdlib_socket(listening))
    except BaseException:
        listening.close()
        raise


Contexts = dict[str | None, ssl.SSLContext]  # by `ca_file`; None: the system's authorities
Loaded = tuple[Config, Contexts]
Compared = tuple[Loaded, list[str] | str]  # with what it changes


def compared(load: Callable[[], Loaded], shared: Shared) -> Compared:
    """What `load` returns, and what that changes; to compare many keys may take seconds."""
    loaded = load()
    return loaded, changes_between(shared.config, loaded[0]) or "nothing"


def load(
    path: Path,
    env: Mapping[str, str],
    part_of: Callable[[bytes], bytes] = bytes,
) -> Loaded:
    """The configuration in pools.json, with all warnings, and its TLS contexts.

    `part_of` makes of the file what is read of it.
    Raises: ConfigRefused; OSError, if the system's authorities cannot be loaded.
    """
    secret_files: dict[Path, None] = {}  # a set in the order of pools.json

    def read_secret(name: str) -> str:
        """The text of {file:NAME}, relative to pools.json.  Raises: OSError, UnicodeDecodeError."""
        secret_file = path.parent / name
        secret_files[secret_file] = None
        return read_file(secret_file).decode("utf-8")

    try:
        raw = read_file(path, CONFIG_BYTES_MAX + 1)
    except OSError as error:
        remedy = "name a file with --config"
        if isinstance(error, FileNotFoundError):
            remedy = f"write it with `pooler init`, or {remedy}"
        elif isinstance(error, PermissionError):
            remedy = "run the pooler as its owner, or make this user the owner"
        raise ConfigRefused([f"{path}: {error.strerror}; {remedy}"]) from None
    if len(raw) > CONFIG_BYTES_MAX:
        raise ConfigRefused([f"{path}: larger than {CONFIG_BYTES_MAX} bytes"])

    config = parse_config(part_of(raw), env, read_secret, str(path))
    contexts = _make_contexts(path, config)
    doubts = [*doubts_of(config, time.time()), *doubts_of_modes(path, config)]
    for secret_file in secret_files:
        doubts += doubts_of_secret_file(secret_file)
    return dataclasses.replace(config, warnings=(*config.warnings, *doubts)), contexts


def _make_contexts(path: Path, config: Config) -> Contexts:
    """The TLS contexts that the accounts need, the token endpoint, and `notify`.

    One for each `ca_file`, as loading the system's authorities takes time and memory.
    Raises: ConfigRefused, with all files that cannot be read.
    """
    contexts: Contexts = {}
    problems: list[str] = []
    accounts = config.accounts.values()
    if _needs_authorities(config):
        contexts[None] = make_tls_context(None)

    for account in accounts:
        name = account.ca_file
        if name in contexts or not (account.base_url.is_tls or name):
            continue
        context = _try_tls_context(path.parent, name)
        if context is None:
            problems.append(f"accounts.{account.name}.ca_file: not a readable PEM file")
        else:
            contexts[name] = context

    if problems:
        raise ConfigRefused(problems)
    return contexts


def _needs_authorities(config: Config) -> bool:
    """Whether the token endpoint or `notify` is reached over TLS: they have no CA of their own."""
    if config.notify is not None and config.notify.url.is_tls:
        return True
    has_codex = any(account.is_codex for account in config.accounts.values())
    return config.token_url.is_tls and has_codex


def _try_tls_context(folder: Path, name: str | None) -> ssl.SSLContext | None:
    """The context that trusts the authorities in a file; None if that is not possible."""
    try:
        return make_tls_context(folder / name if name else None)
    except (OSError, ssl.SSLError, ValueError):
        return None


def doubts_of_modes(path: Path, config: Config) -> list[str]:
    """Warnings if others can read pools.json with secrets in it, or change it.

    Raises: ConfigRefused.
    """
    state = _state_of(path)
    places = literal_secrets(config)
    quoted = shlex.quote(str(path))
    doubts: list[str] = []
    if places and _is_read_by_others(state):
        doubts.append(f"{places[0]}: others can read the file that contains it: chmod 600 {quoted}")
    # Who can change the file can send every secret to an upstream of their own.
    if state.st_mode & 0o022:
        doubts.append(f"{path}: others can change it: chmod go-w {quoted}")
    return doubts


# Where container runtimes mount secrets, mode 0444 if nobody says otherwise.  Nobody else is in the
# container, and its user cannot change the mode.
MOUNTED_SECRETS: Final = Path("/run/secrets")


def doubts_of_secret_file(path: Path) -> list[str]:
    """A warning if others can read a file that pools.json names as {file:PATH}, or change it.

    Raises: ConfigRefused.
    """
    state = _state_of(path)
    quoted = shlex.quote(str(path))
    if _is_read_by_others(state) and not path.is_relative_to(MOUNTED_SECRETS):
        return [f"{path}: others can read this secret: chmod 600 {quoted}"]
    if state.st_mode & 0o022:
        return [f"{path}: others can change this secret: chmod go-w {quoted}"]
    return []


def _state_of(path: Path) -> os.stat_result:
    """The state of a file that has just been read.  Raises: ConfigRefused."""
    try:
        return path.stat()
    except OSError as error:
        raise ConfigRefused([f"{path}: {error.strerror}"]) from None


def _is_read_by_others(state: os.stat_result) -> bool:
    """Whether users who need not read a file may do so."""
    # If another user owns the file, the pooler itself may need its group to read it.
    readers = 0o044 if state.st_uid == os.geteuid() else 0o004
    return state.st_mode & readers != 0


################################################################
# COMMAND LINE
################################################################
# One function runs each command, and returns its exit code:
#
#   serve     serve_logged, run_serve, serve_with_signals
#   init      run_init
#   check     run_check
#   demo      run_demo
#   key       run_key
#   login     run_login
#   schema    run_schema
#   status    run_status
#   completion  run_completion
#
# Exit codes: 0 for success; 1 for a refusal, with one line for each problem on standard error; 2
# for wrong usage.  What a person has asked for goes to standard output, the server's log to
# standard error.


def show(*lines: str) -> None:
    """Print lines for a person on standard output, at once."""
    print(*lines, sep="\n", flush=True)  # noqa: T201


def discard_output() -> None:
    """Discard what could not be printed, and all that follows.

    Otherwise Python complains at exit that it cannot flush standard output.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# The demo: the real server, with accounts at an upstream of its own.

DEMO_TEXT: Final = "Hello! This response was streamed through codex-pooler, event by event."
DEMO_PAUSE_SECONDS: Final = 0.02  # between two events
DEMO_SECONDS_MAX: Final = 15.0  # for the demo's own request
DEMO_DRAIN_SECONDS_MAX: Final = 3  # who ends a demo does not want to wait
DEMO_LOGIN_SECONDS: Final = 365 * 24 * HOUR  # so that no login is refreshed because of its age
DEMO_HOST: Final = "127.0.0.1"
DEMO_PATH: Final = "/backend-api/codex"  # the paths of the upstream, as of the real ones
DEMO_USAGE_PATH: Final = "/backend-api/wham/usage"
# The folder with the logins must go, whichever of them ends the demo.
DEMO_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DEMO_PIXEL: Final = (  # the smallest PNG
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNgAAAAAgAB5Sfe/AAAAABJRU5ErkJggg=="
)


class DemoAccount(NamedTuple):
    """One of the demo's ChatGPT accounts: what it is there for, and how it stands."""

    about: str
    used_percents: tuple[int, int]  # of five hours, and of a week
    refusal: tuple[int, str] | None = None  # status and code of its responses; None: it serves


# By the name in pools.json, which is the id of the ChatGPT account, too.  The first is preferred.
DEMO_ACCOUNTS: Final[Mapping[str, DemoAccount]] = {
    "spent": DemoAccount("preferred; its plan is used up", (61, 94), (429, "usage_limit_reached")),
    "revoked": DemoAccount("next; its login was revoked", (8, 22), (401, "token_invalidated")),
    "well": DemoAccount("the reserve; it can serve", (12, 35)),
}


def demo_error(code: str, **details: Json) -> JsonDict:
    """An error as the ChatGPT backend and the token endpoint send it."""
    return {"error": {"type": code, "message": "The demo plays this.", **details}}


def demo_model() -> JsonDict:
    """The one model, as Codex CLI needs it described (F20)."""
    return {
        "slug": OPENAI_MODEL,
        "display_name": OPENAI_MODEL,
        "base_instructions": "You are a demo.",
        "default_reasoning_level": "medium",
        "supported_reasoning_levels": [{"effort": "medium", "description": "the only one"}],
        "shell_type": "shell_command",
        "visibility": "list",
        "supported_in_api": True,
        "priority": 1,
        "context_window": 272_000,
        "truncation_policy": {"mode": "tokens", "limit": 10_000},
        "supports_reasoning_summaries": True,
        "support_verbosity": True,
        "supports_parallel_tool_calls": True,
        "experimental_supported_tools": [],
    }


def demo_result(path: str) -> JsonDict:
    """The response of a native route in one piece: what was found or drawn, or a short history."""
    if path == SEARCH_PATH:
        return {"output": DEMO_TEXT}
    if path in IMAGE_PATHS:
        return {"created": int(time.time()), "data": [{"b64_json": DEMO_PIXEL}]}
    return {"output": [{"type": "compaction", "encrypted_content": "gAAAA"}]}


def demo_events(request: JsonObject) -> Iterator[JsonDict]:
    """The events of a turn, with the text word by word, as a model sends it.

    With `generate: false` Codex CLI opens a WebSocket ahead of time and wants no output (F24).
    """
    part = {"type": "output_text", "text": DEMO_TEXT, "annotations": []}
    message = {
        "type": "message",
        "id": "msg_demo",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }
    response = {
        "id": f"resp_{secrets.token_hex(8)}",
        "object": "response",
        "created_at": int(time.time()),
        "model": OPENAI_MODEL,
        "status": "completed",
        "output": [] if request.get("generate") is False else [message],
        "usage": {"input_tokens": 3, "output_tokens": 11, "total_tokens": 14},
    }

    words = re.findall(r" ?\S+", DEMO_TEXT)
    for event in _response_events(response):
        if "delta" not in event:
            yield event
            continue
        for word in words:
            yield {**event, "delta": word}


class DemoWindow(NamedTuple):
    """A window of a plan, as the backend reports it."""

    position: str  # by which it is called
    used_percent: int
    seconds: int
    reset_at: int  # in unix seconds

    def in_usage(self) -> JsonDict:
        """Its object in a response of the usage route (F36)."""
        return {
            "used_percent": self.used_percent,
            "limit_window_seconds": self.seconds,
            "reset_at": self.reset_at,
        }

    def in_head(self) -> list[Field]:
        """Its fields in the head of a response (F33)."""
        stem = f"x-codex-{self.position}"
        return [
            (f"{stem}-used-percent", str(self.used_percent)),
            (f"{stem}-window-minutes", str(self.seconds // 60)),
            (f"{stem}-reset-at", str(self.reset_at)),
        ]


@dataclass(eq=False, slots=True)
class DemoUpstream:
    """The demo's ChatGPT backend and its token endpoint, on a loopback port.

    Each account has its models and its quota listed.  That it serves nothing is found out by
    a request: only from then on its plan is reported as used up.
    """

    limited: set[str] = field(default_factory=set)  # the accounts that have been refused so

    async def serve(self, stream: trio.SocketStream) -> None:
        """Respond to one request on a connection, and close it.

        The pooler is the only client, so a malformed or incomplete request needs no response.
        """
        connection = Connection(stream)
        async with stream:
            with contextlib.suppress(PeerClosed, BadSyntax, PoolerError, *BROKEN):
                raw = await connection.read_to_blank_line(HEAD_BYTES_MAX)
                head = parse_request_head(raw)
                check_body_head(head, _DEFAULTS.body_bytes_max)
                while not connection.holds(head.framing):
                    received = await connection.receive()
                    if not received:
                        return
                    connection.buffer += received
                await self.respond(connection, head)

    async def respond(self, connection: Connection, head: RequestHead) -> None:
        """Send the response that the path demands, as the account stands."""
        name = head.headers.get("chatgpt-account-id", "")
        path = head.path.removeprefix(DEMO_PATH)
        status, body = self.response(name, path)

        is_turn = status == 200 and path == CallKind.RESPONSES.value
        if is_turn and head.method == "GET":
            await serve_demo_socket(connection, head)
            return

        kind = "text/event-stream" if is_turn else "application/json"
        headers = [("content-type", kind), ("connection", "close")]
        for window in self.windows(name):
            headers += window.in_head()
        await connection.stream.send_all(format_response_head(status, headers))
        if not is_turn:
            await connection.stream.send_all(dump_json(body))
            return

        for event in demo_events(try_load_object(connection.buffer)):
            name_line = f"event: {event['type']}\n".encode()
            await connection.stream.send_all(name_line + data_line(event) + b"\n\n")
            await trio.sleep(DEMO_PAUSE_SECONDS)  # otherwise nobody would see that it streams

    def response(self, name: str, path: str) -> tuple[int, JsonDict]:
        """The status of the response to an account, and its body unless it is a turn's."""
        account = DEMO_ACCOUNTS.get(name)
        if account is None:  # at the token endpoint, where only the revoked login asks
            return 401, demo_error("refresh_token_invalidated")
        if path == "/models":
            return 200, {"models": [demo_model()]}
        if path == DEMO_USAGE_PATH:
            windows = {f"{one.position}_window": one.in_usage() for one in self.windows(name)}
            return 200, {"plan_type": "plus", "rate_limit": windows}
        if account.refusal is None:
            return 200, demo_result(path)

        status, code = account.refusal
        details: JsonDict = {}
        if status == 429:
            self.limited.add(name)
            details["resets_at"] = max(window.reset_at for window in self.windows(name))
        return status, demo_error(code, **details)

    def windows(self, name: str) -> list[DemoWindow]:
        """The windows of an account's plan; none, if there is no such account."""
        if name not in DEMO_ACCOUNTS:
            return []

        now, hour = int(time.time()), int(HOUR)
        used_percent, used_of_week = DEMO_ACCOUNTS[name].used_percents
        if name in self.limited:
            used_of_week = 100
        return [
            DemoWindow("primary", used_percent, 5 * hour, now + 2 * hour),
            DemoWindow("secondary", used_of_week, 7 * 24 * hour, now + 3 * 24 * hour),
        ]


async def serve_demo_socket(connection: Connection, head: RequestHead) -> None:
    """Serve turns on a WebSocket, until the pooler closes it.  Raises: PoolerError."""
    frames = Frames(
        connection,
        WEBSOCKET_UPSTREAM_BYTES_MAX,
        HeldBytes(Budget(_DEFAULTS.bodies_bytes_max), "demo"),
        _DEFAULTS,
        is_client=True,
    )

    async def serve_turns() -> None:
        """Send the events of each request, one request after the other."""
        while frames.socket is not None:  # it is if the pooler has left
            request = await frames.take()
            frames.done(request)
            for event in demo_events(try_load_object(request)):
                await frames.put(dump_json(event))
                await trio.sleep(DEMO_PAUSE_SECONDS)

    raw = upgrade_head(head)
    async with trio.open_nursery() as nursery:  # holds: the library's reader
        await frames.accept(nursery.start_soon, raw, new_request_id())
        with contextlib.suppress(PeerClosed, BadSyntax):
            await serve_turns()
        nursery.cancel_scope.cancel()


def port_of(listener: trio.SocketListener) -> int:
    """The port that it listens on."""
    port: int = listener.socket.getsockname()[1]
    return port


def demo_login(name: str) -> bytes:
    """The auth.json of an account, as after a login; nobody but the demo's upstream knows it."""
    claims: JsonDict = {
        "exp": int(time.time() + DEMO_LOGIN_SECONDS),
        "email": f"{name}@example.com",
        AUTH_CLAIM: {"chatgpt_account_id": name, "chatgpt_plan_type": "plus"},
    }
    payload = base64.urlsafe_b64encode(dump_json(claims)).rstrip(b"=").decode()
    token = f"e30.{payload}.demo"  # a JWT of which nobody checks the signature
    tokens = {
        "id_token": token,
        "access_token": token,
        "refresh_token": "demo",
        "account_id": name,
    }
    return json.dumps({"tokens": tokens}, indent=2).encode()


def write_demo_login(folder: Path, name: str) -> str:
    """Write the login of an account, and return its path.  Raises: OSError."""
    path = folder / f"{name}.json"
    # Whoever owns the folder above may have replaced this one: nothing that is there is written to.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        file.write(demo_login(name))
    return str(path)


def demo_secrets() -> dict[str, str]:
    """The client's key and the operator's token, by the variables that may have them already."""
    prefixes = {CLIENT_VARIABLE: "cp", OPERATOR_VARIABLE: "cpo"}
    return {
        variable: os.environ.get(variable, "").strip() or new_secret(prefix)
        for variable, prefix in prefixes.items()
    }


def describe_demo(port: int, origin: str, auth_files: Mapping[str, str]) -> JsonDict:
    """The demo's pools.json, which is in no file.

    `port`: of the pooler, 0 for any.  `origin`: of the upstream.
    """
    accounts = {
        name: {
            "type": "codex",
            "auth_file": auth_file,
            "base_url": origin + DEMO_PATH,
            "models": [OPENAI_MODEL],
            "priority": priority,
        }
        for priority, (name, auth_file) in enumerate(auth_files.items())
    }
    pool = {
        "accounts": [*accounts],
        "models": [OPENAI_MODEL],
        "aliases": {TITLE_MODEL: OPENAI_MODEL},  # OpenCode asks it for a session's title (F73)
        "keys": {"you": f"{{env:{CLIENT_VARIABLE}}}"},
    }

    return {
        "listen": f"{DEMO_HOST}:{port}",
        "accounts": accounts,
        "pools": {"demo": pool},
        "operators": {"you": f"{{env:{OPERATOR_VARIABLE}}}"},
        "limits": {"drain_seconds_max": DEMO_DRAIN_SECONDS_MAX},
    }


def parse_demo(described: JsonObject, env: Mapping[str, str]) -> Config:
    """The configuration of the demo.  Raises: ConfigRefused.

    Only a secret from the environment can be wrong, and it is named as it is there.
    """
    problems = []
    try:
        return parse_config(dump_json(described), env, str)
    except ConfigRefused as refused:
        for problem in refused.problems:
            reason, _, _ = problem.partition(";")
            reason = reason.replace("pools.demo.keys.you", CLIENT_VARIABLE)
            reason = reason.replace("operators.you", OPERATOR_VARIABLE)
            problems.append(f"{reason}; unset it, and the demo generates one")
    raise ConfigRefused(problems)


async def ask_demo(url: BaseUrl, secret: str) -> bool:
    """Send one streamed request through the pooler, and print the text as it arrives.

    Returns True if the stream has ended with success.  The request passes the real listener and the
    real key, so it shows that the whole path works.  Raises: OSError, if nobody reads the text.
    """
    request = {"model": OPENAI_MODEL, "input": "Say hello.", "stream": True}
    body = json.dumps(request).encode()
    head = request_head(url, f"/v1{CallKind.RESPONSES.value}", Secret(secret), (), body)
    scanner = EventScanner(CallKind.RESPONSES)
    try:
        stream = await dial(url, None)
    except OSError:  # a signal has come before the first request
        return False

    async with stream:
        with contextlib.suppress(PeerClosed, BadSyntax, *BROKEN):  # as after two signals
            await stream.send_all(head + body)
            connection = UpstreamConnection(stream)
            await connection.read_head()
            while received := await connection.receive_body():
                for event in scanner.feed(received):
                    word = event.try_load().get("delta", "")
                    print(word, end="", flush=True)  # noqa: T201

    show("")
    return scanner.terminal is EventKind.SUCCESS


def demo_introduction(authority: str) -> list[str]:
    """What the demo is, and what it does next."""
    accounts = [f"  {name:10}{account.about}" for name, account in DEMO_ACCOUNTS.items()]
    return [
        f"codex-pooler {VERSION} demo on http://{authority}",
        "One pool of three ChatGPT accounts.  They are built in; nothing leaves this machine.",
        *accounts,
        "",
        "POST /v1/responses, streamed:",
    ]


def demo_guide(url: str, exports: Mapping[str, str], doubts: Sequence[str]) -> list[str]:
    """What a person can try while the demo serves; `doubts`: what operators cannot use.

    A secret that comes from the environment is not printed.
    """
    lines = [
        f"  export {name}={secret}" if os.environ.get(name, "").strip() != secret
        else f"  # {name} is used as it is set here"
        for name, secret in exports.items()
    ]  # fmt: skip
    status = f"{program_name()} status"
    if url != USUAL_URL:
        status += f" --url {url}"

    models = [OfferedModel(OPENAI_MODEL)]
    config = opencode_config(url, models, has_operator=not doubts)
    return [
        "",
        "For OpenCode, as opencode.json:",
        config,
        "",
        "In another terminal, also before opencode:",
        *lines,
        f"  {status}",
        f'  curl -H "Authorization: Bearer ${OPERATOR_VARIABLE}" {url}/metrics',
        "",
        f"In a browser: {url}/admin",
        f"  Any user name will do; the password is ${OPERATOR_VARIABLE}.",
        "  The account `revoked` is built in: there is nothing to log in to, whatever it says.",
        *(f"  {doubt}" for doubt in doubts),
        "",
        "Serving until Ctrl-C; each request is shown in a line:",
    ]


def program_name() -> str:
    """How a shell calls this program, as it has just been called."""
    called_as = sys.argv[0]
    if called_as.endswith(".py"):
        return shlex.join([sys.executable, called_as])

    name = Path(called_as).name
    return name if shutil.which(name) == called_as else shlex.quote(called_as)


@dataclass(eq=False, slots=True)
class Demo:
    """The demo while it runs, and what a person sees of it."""

    is_once: bool  # it ends after its own request
    exports: Mapping[str, str]  # its secrets, by the variables that a person exports
    server: Server = field(init=False)
    url: BaseUrl = field(init=False)  # of the server
    is_served: bool = False  # its own request has been
    waiting: list[str] = field(default_factory=list)  # lines, for the end of a streamed text
    is_streaming: bool = True
    has_logged: trio.Event = field(default_factory=trio.Event)  # a request
    problem: OSError | None = None  # nobody reads what is shown

    def log(self, level: str, event: str, fields: JsonObject) -> None:
        """Show a request, or a problem, in a line; what becomes of the accounts is expected."""
        is_request = event == "request"
        if not is_request and (level == "info" or event in {"account", "login"}):
            return

        now, is_coloured = datetime.now().astimezone(), takes_colours(sys.stdout)
        self.waiting.append(event_line(level, event, fields, now, is_coloured=is_coloured))
        if is_request:
            self.has_logged.set()
        if not self.is_streaming:
            self.show_waiting()

    def show_waiting(self) -> None:
        """Show the lines that wait; if nobody reads them, the demo is over.

        Nothing is raised: this is called in the middle of somebody's request.
        """
        lines, self.waiting = self.waiting, []
        try:
            if lines:
                show(*lines)
        except OSError as error:
            self.end(error)

    def end(self, problem: OSError | None = None) -> None:
        """Stop the server; `problem`: nothing more can be shown."""
        self.problem = self.problem or problem
        self.server.stop()

    async def run(self, port: int, auth_files: Mapping[str, str]) -> None:
        """Serve until a signal, or the end of the demo's request.

        `port` 0 means a free one.  Raises: ConfigRefused, BrokenPipeError.
        """
        [upstream] = await trio.open_tcp_listeners(0, host=DEMO_HOST)
        async with upstream:
            origin = f"http://{DEMO_HOST}:{port_of(upstream)}"
            env = {**self.exports, REFRESH_URL_VARIABLE: origin + REFRESH_URL.path}
            config = parse_demo(describe_demo(port, origin, auth_files), env)
            self.server = Server(config, {}, log=self.log, descriptors_max=raise_descriptor_limit())

            listeners = await open_listeners(config, self.log, "use --port 0 for a free port")
            self.url = BaseUrl(False, DEMO_HOST, port_of(listeners[0]), "")
            async with trio.open_nursery() as nursery:  # holds: the upstream, the introduction
                nursery.start_soon(trio.serve_listeners, DemoUpstream().serve, [upstream])
                nursery.start_soon(self.introduce)
                await serve_with_signals(self.server, listeners)
                nursery.cancel_scope.cancel()

        self.waiting += [] if self.is_once else ["", "Stopped."]
        self.show_waiting()
        self.check_output()

    def check_output(self) -> None:
        """Raises: BrokenPipeError, ConfigRefused, if something could not be shown."""
        if self.problem is None:
            return
        if self.problem.errno in {errno.EPIPE, errno.EIO}:  # its reader, or its terminal, is gone
            raise BrokenPipeError

        discard_output()
        raise ConfigRefused([f"standard output: {self.problem.strerror}"])

    async def introduce(self) -> None:
        """Show what the demo does, send its request, and show what to try next."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, DEMO_SIGNALS)
        try:
            show(*demo_introduction(self.url.authority))
            with trio.move_on_after(DEMO_SECONDS_MAX):
                self.is_served = await ask_demo(self.url, self.exports[CLIENT_VARIABLE])
                await self.has_logged.wait()

            self.is_streaming = False
            self.show_waiting()
            if not (self.is_once or self.server.shared.is_draining):
                doubts = doubts_of_modules(self.server.shared.config)
                show(*demo_guide(f"http://{self.url.authority}", self.exports, doubts))
        except OSError as error:
            self.end(error)
        if self.is_once:
            self.end()


@contextlib.contextmanager
def demo_logins() -> Iterator[dict[str, str]]:
    """The paths of the accounts' logins by their names, in a folder that is removed at the end.

    Raises: ConfigRefused.
    """
    parent = os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 (else it could be the current folder)
    with contextlib.ExitStack() as stack:
        try:
            # What cannot be removed is of no use to anybody, and no reason to fail at the end.
            temporary = tempfile.TemporaryDirectory(
                dir=parent, prefix="codex-pooler-demo-", ignore_cleanup_errors=True
            )
            folder = Path(stack.enter_context(temporary))
            paths = {name: write_demo_login(folder, name) for name in DEMO_ACCOUNTS}
        except OSError as error:
            advice = "set TMPDIR to a folder for temporary files"
            raise ConfigRefused([f"{parent}: {error.strerror}; {advice}"]) from None
        yield paths


def run_demo(options: argparse.Namespace) -> int:
    """Run `pooler demo`: the real server, with built-in accounts; returns the exit code.

    It is 0 if the demo's own request has been served.  Raises: ConfigRefused, BrokenPipeError.
    """
    # A signal waits until the server takes it, and does nothing any more at the end: otherwise it
    # could leave the logins behind.
    signal.pthread_sigmask(signal.SIG_BLOCK, DEMO_SIGNALS)
    for number in DEMO_SIGNALS:
        signal.signal(number, lambda *_: None)

    demo = Demo(options.once, demo_secrets())
    log_refused_connections(demo.log)
    with demo_logins() as auth_files:
        trio.run(demo.run, options.port, auth_files)
    return 0 if demo.is_served else 1


def url_of(listener: trio.SocketListener, base_path: str) -> str:
    """Where a client finds a listener: `http://127.0.0.1:4000`; a Unix socket is `unix:PATH`."""
    name = listener.socket.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    return f"http://{BaseUrl(False, name[0], name[1], '').authority}{base_path}"


async def serve_with_signals(
    server: Server,
    listeners: Sequence[trio.SocketListener],
    reload: Callable[[], Loaded] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second one ends at once; SIGHUP reloads.

    A reload runs in a task of its own, so that a stop does not wait for it.  Without `reload`
    SIGHUP is ignored.  When the window of its terminal is closed, SIGHUP ends the server, too:
    nobody would find it again, and the next one could not have its port.
    """
    is_at_terminal = os.isatty(STDERR)
    # One pending reload is enough: it will read the file as it is then.
    to_reload, reloads = trio.open_memory_channel[None](1)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as received:
        async with trio.open_nursery() as nursery:  # holds: the two readers of signals

            async def reload_each() -> None:
                """Reload for each SIGHUP, one after the other."""
                async for _ in reloads:
                    if reload is not None:
                        await server.reload(reload)

            async def obey() -> None:
                """Turn signals into a reload, a stop, or an end at once."""
                async for number in received:
                    if number == signal.SIGHUP and os.isatty(STDERR) is is_at_terminal:
                        with contextlib.suppress(trio.WouldBlock):
                            to_reload.send_nowait(None)
                    elif server.shared.is_draining:
                        nursery.cancel_scope.cancel()
                    else:
                        count = len(server.exchanges.in_progress)
                        server.shared.log("info", "draining", {"requests": count})
                        server.stop()

            nursery.start_soon(obey)
            nursery.start_soon(reload_each)

            for listener in listeners:
                name = listener.socket.getsockname()
                shown = f"unix:{name}" if isinstance(name, str) else f"{name[0]}:{name[1]}"
                server.shared.log("info", "listening", {"address": shown})

            await server.serve(listeners)
            nursery.cancel_scope.cancel()


Introduce = Callable[[JsonObject, Sequence[str]], None]  # a snapshot, and the URLs


async def run_serve(
    path: Path,
    env: Mapping[str, str],
    log: Log,
    introduce: Introduce | None = None,
) -> int:
    """Read pools.json, open the listeners and serve; returns the exit code.

    `introduce` is called once, before anything is accepted.  Raises: ConfigRefused, before that.
    """
    # Before `serve_with_signals` has its handlers, SIGHUP would end the process; and SIGTERM would
    # not, if it is the first of a container (F108).  There is nothing to drain yet.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    descriptors_max = raise_descriptor_limit()
    config, contexts = load(path, env)
    for warning in config.warnings:
        log("warning", "config", {"problem": warning})

    server = Server(config, contexts, log=log, descriptors_max=descriptors_max)
    server.connections.warn_of_descriptors()
    server.operators.warn_of_missing_modules()
    await server.keeper.restore()
    await server.shared.login_watch.inspect_all()
    await server.shared.login_watch.look(config.accounts.values())

    listeners = await open_listeners(config, log)
    if introduce is not None:
        urls = [url_of(listener, config.base_path) for listener in listeners]
        introduce(server.operators.snapshot(), urls)
    try:
        await serve_with_signals(server, listeners, functools.partial(load, path, env))
    except Exception:  # noqa: BLE001 (a bug in a service ends the server; its text may be private)
        server.shared.log_bug(None)
        return 1
    log("info", "stopped", {})
    return 0


def raise_descriptor_limit() -> float:
    """Raise the limit of open descriptors as far as the system allows; returns the new limit.

    Many systems start a process with 1024, which suffices for fewer than 500 busy connections.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS has a lower bound than it reports
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if soft == resource.RLIM_INFINITY else soft


def log_refused_connections(log: Log) -> None:
    """Have Trio's complaints about connections that it cannot accept logged, without tracebacks."""
    accepting = logging.getLogger("trio.serve_listeners")
    accepting.addHandler(AcceptLog(log))
    accepting.propagate = False


def serve_logged(path: Path, env: Mapping[str, str], log_form: str | None = None) -> int:
    """Run `pooler serve` and return its exit code.  Raises: ConfigRefused.

    The log is written by a thread, so that a slow reader of standard error blocks no request.
    On a terminal it is in words, unless `log_form` is "json"; elsewhere only if it is "text".
    """
    # If descriptor 2 was closed at the start, another file or socket may get its number.
    if sys.stderr is None:
        return trio.run(run_serve, path, env, print_log)

    is_in_words = log_form == "text" or (log_form is None and sys.stderr.isatty())
    words = TerminalForm()
    with LogWriter(words if is_in_words else format_log_line) as log:
        log_refused_connections(log)

        def introduce(shown: JsonObject, urls: Sequence[str]) -> None:
            """Show on a terminal what has started."""
            if is_in_words:
                log.put(words.introduce(shown, urls))

        return trio.run(run_serve, path, env, log, introduce)


async def request_models(
    shared: Shared, endpoint: Endpoint, rejected: Credentials | None = None
) -> tuple[ResponseHead, bytes]:
    """What an account's upstream responds to the request for its models, as the server sends it.

    A login whose token has expired is refreshed before, and one that is rejected after it; then it
    is sent once more.  Raises: LoginNeeded, TRANSPORT_ERRORS.
    """
    account = endpoint.account
    path, more = catalogue_query(account, shared.version_for(account))
    authorization = await authorize(shared.tokens, endpoint, rejected)
    fields = [*authorization.fields, *more]
    request = request_head(account.base_url, path, authorization.secret, fields, b"")
    response: tuple[ResponseHead, bytes] | None = None
    with trio.move_on_after(CONNECT_SECONDS_MAX):
        response = await exchange_once(
            shared.dial,
            account.base_url,
            endpoint.tls,
            request,
            proxy=endpoint.proxy,
            bytes_max=CATALOGUE_BYTES_MAX,
        )

    if response is None:
        raise DeadlinePassed
    credentials = authorization.credentials
    if response[0].status == 401 and credentials is not None and rejected is None:
        return await request_models(shared, endpoint, credentials)
    return response


async def ask_account(shared: Shared, endpoint: Endpoint) -> Asked:
    """What came of asking an account for its models, classified as the server does it."""
    account = endpoint.account
    fault: Fault | None = None
    try:
        head, body = await request_models(shared, endpoint)
    except LoginNeeded:
        pass
    except ConnectFailed as failed:
        fault = classify_connect(failed.cause)
    except TRANSPORT_ERRORS as error:
        trouble = TROUBLES.get(type(error), Trouble.CLOSED)
        fault = classify_transport(Stage.HEAD, trouble, "")
    else:
        if head.status == 200:
            catalogue = read_catalogue(body, is_codex=account.is_codex)
            return asked_of_response(account, catalogue)
        fault = classify_response(head.status, head.headers, body, shared.unix_now())

    now = trio.current_time()
    if fault is not None:
        shared.roster.note_fault(account, fault, "", now)
    await shared.login_watch.look([account])
    state = LoginState() if endpoint.login is None else shared.tokens.state_of(endpoint.login)
    condition = condition_of(shared.roster.health_of(account), state, now)
    if fault is None:
        return asked_of_login(account, condition, state)
    return asked_of_fault(account, fault, condition, state)


async def ask_accounts(config: Config, contexts: Contexts) -> dict[str, Asked]:
    """What came of asking the accounts that are not paused, by name; a few are asked at once.

    A refresh that has begun is saved even so.  Raises: KeyboardInterrupt.
    """
    shared = Shared(config, contexts, log=lambda *_: None)
    places = trio.CapacityLimiter(ASKED_AT_ONCE_MAX)
    asked: dict[str, Asked] = {}

    async def ask(name: str, endpoint: Endpoint) -> None:
        async with places:
            asked[name] = await ask_account(shared, endpoint)

    with cancelled_by_interrupt():
        async with trio.open_nursery() as nursery:  # holds: a task for each account; refreshes
            shared.tokens.services = nursery
            for name, endpoint in shared.endpoints.by_name.items():
                if not endpoint.account.paused:
                    nursery.start_soon(ask, name, endpoint)
        return asked
    raise KeyboardInterrupt


def login_words(login: Login, findings: Sequence[Finding]) -> str:
    """How a login is, in the line of its account; what is wrong with it follows."""
    if login.credentials is None:
        return "not logged in"
    return "logged in" if findings else "login OK: it can be read, refreshed and saved"


def check_account(account: Account, config: str, asked: Asked | None) -> tuple[bool, bool]:
    """Print an account's state and problems; returns whether it has an error, and can serve.

    The login of a ChatGPT account is read and locked, and the check includes whether it can be
    saved.  Nothing is refreshed.  `config` is the path of pools.json.
    """
    state = "no API key" if reveal(account.api_key) == "none" else "API key set"
    problems: list[Finding] = []
    can_serve = not account.paused
    if account.auth_file is not None:
        login = Login(account.name, Path(account.auth_file), config)
        problems = login.inspect(time.time())
        state = login_words(login, problems)
        can_serve &= login.credentials is not None
    if account.paused:
        state = "paused"

    url = account.base_url
    scheme = "https" if url.is_tls else "http"
    show(f"account {account.name}: {scheme}://{url.authority}{url.path}: {state}")
    has_error = False
    for is_error, problem in problems:
        level = "error" if is_error else "warning"
        show(f"  {level}: {problem}")
        has_error |= is_error

    if asked is not None:
        show(f"  {asked.line}" if can_serve else "  error: not asked, as it has no login")
        has_error |= asked.level == "error"
        can_serve &= asked.level != "error"
    return has_error, can_serve


def doubts_of_state(config: Config) -> list[str]:
    """A warning if the state cannot be saved; while the pooler serves, a `StateKeeper` warns."""
    folder = Path(config.state or "").parent
    if config.state is None or os.access(folder, os.W_OK | os.X_OK):
        return []
    return [f"state: the folder {folder} does not exist or cannot be written to"]


def doubts_of_logins(config: Config) -> list[str]:
    """A warning for each ChatGPT account that several accounts of pools.json are logged in to.

    They have one limit together.  Copies of one login are worse: once one of them is refreshed,
    the refresh token in the others is spent (F53).
    """
    names_of: dict[tuple[str | None, str], list[str]] = {}
    for account in config.accounts.values():
        if account.auth_file is None:
            continue

        login = Login(account.name, Path(account.auth_file))
        login.look()
        holder = holder_of(login.raw)
        if holder is not None and holder.user is not None:
            names_of.setdefault((holder.account_id, holder.user), []).append(account.name)

    return [
        f"accounts {', '.join(names)} are logged in to the same ChatGPT account and share its "
        "limit; if their files are copies of one login, the first refresh ends the others"
        for names in names_of.values()
        if len(names) > 1
    ]


def check_pool(pool: Pool, *, can_serve: bool) -> None:
    """Print what a pool is, and whether any of its accounts can serve it."""
    names = ", ".join(account.name for account in pool.accounts)
    show(f"pool {pool.name}: {names}; {len(pool.keys)} key(s); {pool.routing.value}")
    if not can_serve:
        advice = "log in to one of its accounts, or unpause one"
        show(f"  warning: pools.{pool.name}: no account can serve it; {advice}")


def run_check(path: Path, env: Mapping[str, str], *, is_asking: bool = False) -> int:
    """Run `pooler check`: validate and summarize pools.json.

    It prints no secrets, and uses the network only to ask the accounts.  Returns the exit code: 1
    if there is an error; a warning is none.  Raises: ConfigRefused.
    """
    config, contexts = load(path, env)
    doubts = [
        *config.warnings,
        *doubts_of_state(config),
        *doubts_of_modules(config),
        *doubts_of_logins(config),
    ]
    for warning in doubts:
        show(f"warning: {warning}")

    asked: Mapping[str, Asked] = {}
    if is_asking:
        show("Asking the accounts for their models ...")
        asked = trio.run(ask_accounts, config, contexts)

    checked = {
        name: check_account(account, config.source, asked.get(name))
        for name, account in config.accounts.items()
    }
    for pool in config.pools.values():
        can_serve = any(checked[account.name][1] for account in pool.accounts)
        check_pool(pool, can_serve=can_serve)
        for line in asked_of_pool(pool, asked):
            show(f"  {line}")

    has_error = any(is_wrong for is_wrong, _ in checked.values())
    show(f"{path}: {'an account has a problem' if has_error else 'OK'}")
    return int(has_error)


_OPERATOR_VARIABLE_BEFORE: Final = "POOLER_OPERATOR_TOKEN"  # its name until version 0.1
_NO_STATUS: Final = {
    0: "no server responds there",
    200: "this is not a codex-pooler",
    401: f"the token in {OPERATOR_VARIABLE} was rejected; it is that of another server, or expired",
    404: "it has no operators (`pooler key --operator` makes a token), or is not a codex-pooler",
}
# What a terminal could take for a command, except colours; a server is not trusted with that.
_UNSAFE: Final = re.compile("\x1b(?!\\[[0-9]{0,2}m)|[^\x1b\n -~█░…]")
# Cursor: save it, go to the first line, empty that; and back to where it was.
_ON_FIRST_LINE: Final = "\x1b7\x1b[H\x1b[2K{}\x1b8"
_CLEARED: Final = "\x1b[H\x1b[2J"


class NoStatus(ConfigRefused):
    """There is no status: no server responds, or it has rejected the token."""

    def __init__(self, place: str, status: int) -> None:
        super().__init__([f"{place}: {_NO_STATUS.get(status, f'it returned {status}')}"])
        self.is_final = status == 401  # to ask again with the same token is of no use


@dataclass(eq=False, slots=True)
class StatusCommand:
    """`pooler status`: which server is asked, with which token, and how its status is shown."""

    url: BaseUrl
    tls: ssl.SSLContext | None
    token: Secret
    options: argparse.Namespace  # watch, failed and json
    failing_since: str = ""  # the time of day at which the server stopped responding

    async def ask(self, query: str) -> bytes:
        """The body of GET /admin of the server.  Raises: NoStatus."""
        accept = "application/json" if self.options.json else "text/plain"
        head = request_head(self.url, f"/admin?{query}", self.token, [("accept", accept)], b"")
        status, body = 0, b""
        with contextlib.suppress(*TRANSPORT_ERRORS), trio.move_on_after(CONNECT_SECONDS_MAX):
            status, body = await ask_once(
                dial, self.url, self.tls, head, proxy=None, bytes_max=EVENT_BYTES_MAX
            )

        is_pooler = body.startswith(b"codex-pooler ") or "version" in try_load_object(body)
        if status == 200 and is_pooler:
            return body
        raise NoStatus(self.url.authority, status)

    async def show(self) -> None:
        """Show the status once.  Raises: NoStatus.

        On a terminal it fits, and its last line is left for the cursor.
        """
        query = f"colour={takes_colours(sys.stdout):d}"
        with contextlib.suppress(OSError):  # standard output is not a terminal
            size = os.get_terminal_size(sys.stdout.fileno())
            query += f"&columns={size.columns}&rows={size.lines - 1}"
        if self.options.failed:
            query += "&failed=1"

        body = await self.ask(query)
        text = _UNSAFE.sub("?", body.decode("utf-8", "replace"))
        if self.options.json:
            text = json.dumps(try_load_object(body), indent=2)
        if self.options.watch and sys.stdout.isatty():
            text = _CLEARED + text
        show(text)

    async def run(self) -> None:
        """Show the status, or watch it, until Ctrl-C.  Raises: NoStatus.

        That is how a person stops watching, even if the shell has set it to be ignored.
        """
        with cancelled_by_interrupt():
            await (self.watch() if self.options.watch else self.show())

    async def watch(self) -> None:
        """Show the status every STATUS_SECONDS, and when the terminal has another size.

        On a terminal each status replaces the last; into a pipe or a file they follow each other.
        Raises: NoStatus, if there is none at first, or the token is rejected later.
        """
        await self.show()
        with trio.open_signal_receiver(signal.SIGWINCH) as resized:
            while True:
                with trio.move_on_after(STATUS_SECONDS):
                    await anext(resized)
                await self.show_again()

    async def show_again(self) -> None:
        """Show the status, or that there is none: a server that is restarted comes back.

        Raises: NoStatus, if the token is rejected.
        """
        try:
            await self.show()
        except NoStatus as missing:
            if missing.is_final:
                raise
            self.show_outage(missing)
        else:
            self.failing_since = ""

    def show_outage(self, missing: NoStatus) -> None:
        """Say in one line why there is no status, and since when.

        On a terminal it takes the place of the first line: the last status stays to be read.
        """
        is_new = not self.failing_since
        self.failing_since = self.failing_since or time.strftime("%H:%M:%S")
        wait = f"trying again every {STATUS_SECONDS:g} s"
        line = f"{missing.problems[0]} since {self.failing_since}; {wait}"
        if sys.stdout.isatty():
            columns = os.get_terminal_size(sys.stdout.fileno()).columns
            print(_ON_FIRST_LINE.format(line[:columns]), end="", flush=True)  # noqa: T201
        elif is_new:
            print(f"pooler: {line}", file=sys.stderr, flush=True)  # noqa: T201


def run_status(options: argparse.Namespace) -> int:
    """Run `pooler status` and return its exit code.

    The token comes from the environment, because other users can read a command line.
    Raises: ConfigRefused.
    """
    variables = (OPERATOR_VARIABLE, _OPERATOR_VARIABLE_BEFORE)
    token = next((value for name in variables if (value := os.environ.get(name))), "")
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        remedy = "`pooler key --operator` makes one"
        raise ConfigRefused([f"set {OPERATOR_VARIABLE} to an operator's token; {remedy}"])
    try:
        url = _base_url(options.url, "https://host")
    except ValueError as error:
        raise ConfigRefused([f"--url {error}"]) from None
    if not (url.is_tls or _is_loopback(url.host)):
        raise ConfigRefused(["--url: http:// would send the token in the clear; use https://"])

    tls = make_tls_context(None) if url.is_tls else None
    command = StatusCommand(url, tls, Secret(token), options)
    trio.run(command.run)
    return 0


def new_secret(prefix: str) -> str:
    """A secret with 256 random bits, whose prefix tells people what it is for."""
    return f"{prefix}-{secrets.token_urlsafe(32)}"


def run_key(is_operator: bool) -> int:
    """Run `pooler key`: print a new secret and its line for pools.json; returns the exit code.

    The line has only the digest: from it nobody can find a secret of 256 random bits.
    """
    secret = new_secret("cpo" if is_operator else "cp")
    digest = digest_of(secret).hex()
    whose, where = "client", "the keys of a pool"
    if is_operator:
        whose, where = "operator", "operators"

    show(f"Secret for the {whose} (shown only once):", secret)
    show(f"Line for pools.json, under {where}:", f'"sha256:{digest}"')
    return 0


def run_explain(word: str) -> int:
    """Run `pooler check --explain`; returns the exit code.  Raises: ConfigRefused."""
    names = section_names()
    text = reference(word)
    if not text:
        raise ConfigRefused([f"nothing is known of this word; {_did_you_mean(word, names)}"])

    if not word:
        show("`pooler check --explain WORD` shows a section, or what has the word.", "")
        show(textwrap.fill(f"Sections: {', '.join(names)}.", REFERENCE_COLUMNS), "")
    show(text)
    return 0


def run_schema() -> int:
    """Run `pooler schema`; returns the exit code."""
    show_surely(readable_json(config_schema()))
    return 0


# `pooler init`: a plan, from flags or answers; what local servers list; then the file.


def read_answer(question: str, default: str, read: Callable[[str], T]) -> T:
    """What `read` makes of an answer on the terminal; it raises ValueError with all problems.

    A question is no output, so it goes to standard error.  Raises: ConfigRefused.
    """
    for _ in range(ANSWERS_MAX):
        print(f"{question} [{default}]: ", end="", file=sys.stderr, flush=True)  # noqa: T201
        answer = sys.stdin.readline()
        if not answer:
            print(file=sys.stderr)  # noqa: T201
            raise ConfigRefused(["the input has ended; nothing was written"])

        try:
            return read(answer)
        except ValueError as error:
            print(*error.args, sep="\n", file=sys.stderr)  # noqa: T201
    raise ConfigRefused(["no answer could be used; nothing was written"])


def ask_for_words() -> dict[str, list[str]]:
    """The words for `plan_setup`, from answers on the terminal.  Raises: ConfigRefused."""
    hint = "Separate names by spaces; - means none; Enter takes what is in brackets."
    print(hint, file=sys.stderr)  # noqa: T201
    words: dict[str, list[str]] = {}
    for name, part in SETUP_PARTS.items():
        if not part.question:
            continue

        def read_words(answer: str, name: str = name, part: SetupPart = part) -> list[str]:
            """The words of an answer, if they fit those before it."""
            given = words_of(answer, part)
            plan_setup({**words, name: given}, is_whole=name in {"local", "client"})
            return given

        words[name] = read_answer(part.question, part.default, read_words)
    return words


async def ask_local(url: BaseUrl, path: str, body: bytes = b"") -> tuple[int, bytes, str]:
    """The status and body of a local server's response, and what is wrong if there is none.

    With a body it is a POST.  Time and size are bounded.
    """
    head = request_head(url, path, Secret("none"), (), body)
    tls = make_tls_context(None) if url.is_tls else None
    problem = "does not respond in time"
    with trio.move_on_after(SETUP_SECONDS_MAX):
        try:
            status, response = await ask_once(
                dial, url, tls, head + body, proxy=None, bytes_max=CATALOGUE_BYTES_MAX
            )
        except ConnectFailed as error:
            problem = f"cannot be reached ({error.cause})"
        except TRANSPORT_ERRORS:
            problem = "does not respond with valid HTTP"
        else:
            return status, response, ""
    return 0, b"", problem


async def look_at_local(server: LocalServer) -> tuple[LocalServer, str]:
    """The server with its models, and what a person should know of it: a predicate, or "".

    What has the Responses API refuses an empty request, as it lacks all that is required; what has
    not, does not know the route.
    """
    status, body, problem = await ask_local(server.url, "/models")
    listed: Mapping[str, Model] = {}
    if status == 200:
        listed = read_catalogue(body) or {}
    if not (problem or listed):
        problem = f"lists no models (status {status})"

    route_status = 0
    if status:
        route_status, _, _ = await ask_local(server.url, CallKind.RESPONSES.value, b"{}")
    is_chat_only = route_status in {0, 401, 403, *NO_ROUTE_STATUSES}

    names = [model.name for model in server.models] or list(listed)
    if len(names) > SETUP_MODELS_MAX:
        problem = f"has {len(names)} models, of which the first {SETUP_MODELS_MAX} are written"
    models = []
    for name in names[:SETUP_MODELS_MAX]:
        length = listed.get(name, Model()).context_length
        models.append(OfferedModel(short_name(name), is_chat_only, length, name))
    return server._replace(models=tuple(models)), problem


async def look_at_all(servers: Sequence[LocalServer]) -> list[tuple[LocalServer, str]]:
    """As `look_at_local`, one after the other: a person has named these few."""
    return [await look_at_local(server) for server in servers]


def ask_for_models(server: LocalServer, problem: str) -> LocalServer:
    """The server with the models that a person names, if any.  Raises: ConfigRefused."""

    def read_models(answer: str) -> tuple[OfferedModel, ...]:
        """The models of an answer."""
        names = words_of(answer, SETUP_PARTS["local"])
        return tuple(OfferedModel(_model(name), True) for name in dict.fromkeys(names))

    question = f"Models of {server.name}, which {problem}"
    return server._replace(models=read_answer(question, "-", read_models))


def write_first(path: Path, raw: bytes, text: str) -> None:
    """Print `text`, and write a file that does not exist yet; it is on the disk when this returns.

    The text has the secrets of which the file has the digests: without them it would be of no use,
    so they are printed first.  Raises: ConfigRefused; then nothing was written.
    """
    new_path = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write_new(new_path, raw, None)
        sync(new_path)
        show_surely(text)
        give_name(new_path, path)
    except OSError as error:
        raise ConfigRefused([f"{path}: {error.strerror}; nothing was written"]) from None
    finally:
        with contextlib.suppress(OSError):
            new_path.unlink(missing_ok=True)
            sync_folder(path.parent)


def show_surely(text: str) -> None:
    """Print a text for a person.  Raises: ConfigRefused, if that is not possible."""
    try:
        show(text)
    except OSError as error:
        discard_output()
        problem = f"standard output: {error.strerror}; nothing was written"
        raise ConfigRefused([problem]) from None


def give_name(new_path: Path, path: Path) -> None:
    """Name a file, unless there is one of this name, or a link: that stays.  Raises: OSError."""
    try:
        os.link(new_path, path)
    except FileExistsError:
        raise
    except OSError:  # some file systems have no links: take the name, then replace what has it
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        os.rename(new_path, path)


def refuse_path(path: Path) -> None:
    """Raises: ConfigRefused, if a new pools.json cannot be written there."""
    if os.path.lexists(path):
        hint = "edit it (`pooler key` makes another key), or name another file with --config"
        raise ConfigRefused([f"{path} exists, and is never replaced; {hint}"])
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigRefused([f"{path.parent}: no such folder, or it cannot be written to"])
    if sys.stdout is None:
        raise ConfigRefused(["standard output is closed, so nobody would read the secrets"])


_NO_FLAGS: Final = (
    "pooler: init asks on a terminal only; without one use --chatgpt NAME, --openai, "
    "--local NAME=URL, --client NAME"
)


def run_init(options: argparse.Namespace) -> int:
    """Run `pooler init`: write a first pools.json, and say what comes next; returns the exit code.

    Raises: ConfigRefused; then nothing was written.
    """
    path: Path = options.config
    refuse_path(path)
    words = words_of_flags(options)
    is_asked = not words
    if is_asked:
        if sys.stdin is None or not sys.stdin.isatty():
            print(_NO_FLAGS, file=sys.stderr)  # noqa: T201
            return 2
        words = ask_for_words()

    plan, notes = make_plan(words, is_asked)
    keys = {name: new_secret("cp") for name in plan.client}
    tokens = {name: new_secret("cpo") for name in plan.operator}
    raw = first_config(plan, keys, tokens).encode()

    # Whether the API keys are in their variables yet is not a question of the file.
    stand_ins = {variable: new_secret("sk") for variable in plan.openai.values()}
    config = parse_config(raw, {**os.environ, **stand_ins}, str, str(path))
    notes += [*config.warnings, *doubts_of(config, time.time())]

    # The path may have any bytes.
    cast("io.TextIOWrapper", sys.stdout).reconfigure(errors="surrogateescape")
    url = f"http://{DEFAULT_LISTEN[0].text}"
    commands = next_commands(plan, str(path), os.environ)
    parts = [
        f"Writing {path}, which only you can read.",
        *(f"Note: {note}" for note in notes),
        setup_guide(plan, url, keys, tokens),
        "\n".join(["Next:", *commands]),
    ]
    write_first(path, raw, "\n\n".join(parts))
    return 0


def words_of_flags(options: argparse.Namespace) -> dict[str, list[str]]:
    """The words for `plan_setup`, from flags; a flag alone means what is usual."""
    words = {}
    for name, part in SETUP_PARTS.items():
        given = getattr(options, name)
        if given is not None:
            words[name] = given or [part.usual]
    return words


def make_plan(words: Mapping[str, list[str]], is_asked: bool) -> tuple[SetupPlan, list[str]]:
    """The plan, with the models of its local servers, and notes on these.

    `is_asked`: what a server does not say is asked on the terminal.  Raises: ConfigRefused.
    """
    try:
        plan = plan_setup(words)
    except ValueError as error:
        raise ConfigRefused(error.args) from None

    servers, notes = [], []
    for server, problem in trio.run(look_at_all, plan.local):
        if is_asked and not server.models:
            servers.append(ask_for_models(server, problem))
            continue

        servers.append(server)
        if problem:
            hint = '; it is asked while the pooler serves, or write "models" for it'
            notes.append(f"{server.name} {problem}{'' if server.models else hint}")
    return plan._replace(local=servers), notes


def port_number(text: str) -> int:
    """The value of `--port`.  Raises: ValueError, ArgumentTypeError, as argparse expects."""
    port = int(text)
    if not 0 <= port <= _PORT_MAX:
        raise argparse.ArgumentTypeError(f"must be from 0 to {_PORT_MAX}")
    return port


def run_login(name: str, path: Path, env: Mapping[str, str]) -> int:
    """Run `pooler login`: log a ChatGPT account in; returns the exit code.  Raises: ConfigRefused.

    Ctrl-C ends it at any moment, except while a login that was granted is saved.
    """
    raws: list[bytes] = []

    def part_of(raw: bytes) -> bytes:
        raws.append(raw)
        return part_for_login(name, raw)

    config, contexts = load(path, env, part_of)
    # One may be why the issuer is not reached, or is another: a proxy or its address in `env`.
    for warning in config.warnings:
        if not warning.startswith("pools."):
            show(f"warning: {warning}")

    account = config.accounts[name]
    tls = contexts.get(account.ca_file) if config.token_url.is_tls else None
    login = Login(name, Path(str(account.auth_file)), config.source, tls, config.proxy)
    device = DeviceLogin(login, config.token_url, dial, Files(), time.time, show)

    obey_as_interrupt(signal.SIGTERM, signal.SIGHUP)
    saved: list[tuple[bytes, bytes]] = []

    async def run() -> None:
        with cancelled_by_interrupt():
            saved.append(await device.run())

    try:
        trio.run(run)
    except LoginNeeded as problem:
        raise ConfigRefused([str(problem)]) from None
    if not saved:
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is done, and says so to its end
    others = {other: path.parent / file for other, file in other_logins(name, raws[0]).items()}
    show_login(login, *saved[0], others)
    return 0


def obey_as_interrupt(*numbers: signal.Signals) -> None:
    """Let these signals end a command as Ctrl-C does: not between a grant and the saved login.

    One that is ignored, as `nohup` makes it, stays so.
    """
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))


def show_login(login: Login, before: bytes, after: bytes, others: Mapping[str, Path]) -> None:
    """Print whose login an account has now, and whether that may not be what was meant."""
    holder, former = holder_of(after), holder_of(before)
    assert holder is not None
    show("", f"Account {login.name} is logged in: {holder}.")
    if former is not None and not holder.is_same(former):
        show(f"This is another ChatGPT account than before, which was: {former}.")

    for other, path in others.items():
        with contextlib.suppress(OSError):
            same = holder_of(read_file(path))
            if same is not None and holder.is_same(same):
                show(f"Account {other} is the same one: to add another, log out in the browser.")
    if parse_auth_file(after).refresh_token is None:
        show("It has no refresh token, so it will end.")
    show(f"Saved in {login.path}; a running pooler will use it from its next request on.")


@contextlib.contextmanager
def cancelled_by_interrupt() -> Iterator[None]:
    """Ctrl-C cancels what is done inside, even if the shell has set it to be ignored."""
    with trio.CancelScope() as scope:
        token = trio.lowlevel.current_trio_token()
        cancel = functools.partial(token.run_sync_soon, scope.cancel)
        before = signal.signal(signal.SIGINT, lambda *_: cancel())
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


class Command(NamedTuple):
    """What the program can be asked to do: one row of COMMANDS."""

    run: Callable[[argparse.Namespace], int]  # returns the exit code; raises ConfigRefused
    about: str  # for the list of commands
    example: str  # a command line; more of them are lines of their own
    options: Sequence[tuple[str, Mapping[str, Any]]] = ()  # as `add_argument` takes them
    note: str = ""  # what else its help says, below the options


_CONFIG_OPTION: Final = (
    "--config",
    {"type": Path, "default": "pools.json", "metavar": "FILE", "help": "default: pools.json"},
)

_LOG_OPTION: Final = (
    "--log",
    {
        "choices": ["json", "text"],
        "help": "how to log on standard error (default: text on a terminal, else json)",
    },
)

_SERVE_NOTE: Final = f"""\
signals:
  SIGINT (Ctrl-C), SIGTERM  end when the requests in progress have ended, after 30 s in any case
                            (limits.drain_seconds_max); a second one ends at once
  SIGHUP                    read pools.json again; a broken one changes nothing.  If the window of
                            the server's terminal was closed: end

environment:
  the variables that pools.json names as {{env:NAME}}, as they are at the start
  {REFRESH_URL_VARIABLE}  where logins are refreshed, as for Codex CLI
  NO_COLOR, TERM=dumb       no colours

exit codes:
  0  it was stopped
  1  pools.json was refused, or an address cannot be opened"""
_PROGRAM_NOTE: Final = """\
first steps:
  pooler demo              a sandbox, which needs no account
  pooler init              write pools.json
  pooler login ACCOUNT     for each ChatGPT account
  pooler check --ask       is all well?
  pooler                   serve, until Ctrl-C

`pooler help COMMAND` explains a command.
Exit codes: 0 success; 1 refused, with a line for each problem; 2 wrong usage."""

COMMANDS: Final[Mapping[str, Command]] = {
    "serve": Command(
        lambda options: serve_logged(options.config, dict(os.environ), options.log),
        "run the server (default)",
        "pooler serve --config /etc/codex-pooler/pools.json",
        [_CONFIG_OPTION, _LOG_OPTION],
        _SERVE_NOTE,
    ),
    "init": Command(
        run_init,
        "write a first pools.json",
        "pooler init --chatgpt personal second --local llama=http://127.0.0.1:8080/v1",
        [
            *(
                (
                    f"--{name}",
                    {"nargs": "*", "action": "extend", "metavar": "NAME", "help": part.about},
                )
                for name, part in SETUP_PARTS.items()
            ),
            ("--config", {**_CONFIG_OPTION[1], "help": "the file to write (default: pools.json)"}),
        ],
        "Without options it asks on the terminal.  It makes the keys of clients and operators,\n"
        "prints them once, and what goes into the configurations of OpenCode and Codex CLI.",
    ),
    "check": Command(
        lambda options: (
            run_check(options.config, os.environ, is_asking=options.ask)
            if options.explain is None
            else run_explain(options.explain)
        ),
        "validate and summarize pools.json",
        "pooler check --ask",
        [
            _CONFIG_OPTION,
            ("--ask", {"action": "store_true", "help": "ask each account for its models"}),
            (
                "--explain",
                {
                    "metavar": "WORD",
                    "nargs": "?",
                    "const": "",
                    "help": "explain a field, limit, error or topic, or all of it",
                },
            ),
        ],
        "Without --ask, no network is used.  With it, each account that is not paused\n"
        "gets one request for its models.  One that cannot serve is an error (exit\n"
        "code 1), one at a limit is not.  A ChatGPT login whose token has ended, or is\n"
        "rejected, is refreshed as the server does it: under its lock, and saved.\n\n"
        + textwrap.fill(f"Topics to explain: {', '.join(TOPICS)}.", REFERENCE_COLUMNS),
    ),
    "schema": Command(
        lambda _: run_schema(),
        "print the JSON Schema of pools.json",
        "pooler schema > pools.schema.json",
        note='For editors: begin pools.json with {"$schema": "./pools.schema.json", ...',
    ),
    "demo": Command(
        run_demo,
        "run a demo that needs no account",
        "pooler demo --port 0",
        [
            ("--once", {"action": "store_true", "help": "exit after the first response"}),
            (
                "--port",
                {
                    "type": port_number,
                    "default": 4000,
                    "help": "port to listen on (default 4000; 0: any free port)",
                },
            ),
        ],
    ),
    "key": Command(
        lambda options: run_key(options.operator),
        "generate a pool key",
        "pooler key --operator",
        [("--operator", {"action": "store_true", "help": "generate an operator token instead"})],
    ),
    "login": Command(
        lambda options: run_login(options.account, options.config, os.environ),
        "log a ChatGPT account in",
        "pooler login personal",
        [
            ("account", {"help": "its name in pools.json"}),
            _CONFIG_OPTION,
        ],
        "You enter a code on a page of OpenAI, in any browser; the auth_file is written.",
    ),
    "status": Command(
        run_status,
        "show a running server's status",
        "pooler status --watch",
        [
            (
                "--url",
                {
                    "default": USUAL_URL,
                    "help": "address of the server (default %(default)s)",
                },
            ),
            ("--watch", {"action": "store_true", "help": "repeat every two seconds"}),
            ("--failed", {"action": "store_true", "help": "only the requests that failed"}),
            ("--json", {"action": "store_true", "help": "print JSON"}),
        ],
        f"Set {OPERATOR_VARIABLE} to an operator's token.",
    ),
    "completion": Command(
        lambda options: run_completion(options.shell),
        "print what makes a shell complete commands",
        "pooler completion fish > ~/.config/fish/completions/pooler.fish",
        [("shell", {"choices": ["bash", "zsh", "fish"], "help": "the shell: %(choices)s"})],
        'bash: put into ~/.bashrc  eval "$(pooler completion bash)"\n'
        'zsh:  put into ~/.zshrc   eval "$(pooler completion zsh)"',
    ),
}


# What nothing in it completes is the name of a file.
_BASH_COMPLETION: Final = """\
_pooler() {
    local offered='help %(commands)s'
    if ((COMP_CWORD > 1)); then
        case ${COMP_WORDS[1]} in
            help) offered='%(commands)s' ;;
%(cases)s
            *) offered='' ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$offered" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _pooler pooler codex-pooler"""
_ZSH_LOADING: Final = """\
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
autoload -Uz bashcompinit && bashcompinit"""


def run_completion(shell: str) -> int:
    """Run `pooler completion`: print what makes a shell complete commands, options and values."""
    if shell == "fish":
        show(*_fish_lines())
        return 0

    cases = []
    for name, command in COMMANDS.items():
        words = ["--help"]
        for option, settings in command.options:
            words += [option] if option.startswith("-") else []
            words += settings.get("choices", ())
        cases.append(f"            {name}) offered='{' '.join(words)}' ;;")

    if shell == "zsh":  # it runs what is made for bash
        show(_ZSH_LOADING)
    show(_BASH_COMPLETION % {"commands": " ".join(COMMANDS), "cases": "\n".join(cases)})
    return 0


def _fish_lines() -> Iterator[str]:
    """The lines of fish's completion, one for each command and each option."""
    yield "complete -c codex-pooler -w pooler"
    yield "complete -c pooler -f -n __fish_use_subcommand -a help -d 'explain a command'"
    for name, command in COMMANDS.items():
        about = shlex.quote(command.about)
        yield f"complete -c pooler -f -n __fish_use_subcommand -a {name} -d {about}"

        for option, settings in command.options:
            line = f"complete -c pooler -n '__fish_seen_subcommand_from {name}'"
            line += f" -d {shlex.quote(settings['help'] % settings)}"
            if option.startswith("-"):
                line += f" -l {option.removeprefix('--')}"
            if "choices" in settings:
                line += f" -x -a '{' '.join(settings['choices'])}'"
            elif settings.get("action") != "store_true":
                line += " -r"
            yield line


def make_parser() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """The parser of the command line, and that of each command, made from COMMANDS."""
    about = "Pools AI accounts behind one OpenAI-compatible address."
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="pooler",
        description=about,
        epilog=_PROGRAM_NOTE,
        formatter_class=raw,
    )
    parser.add_argument("--version", action="version", version=f"codex-pooler {VERSION}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    parsers = {}
    for name, command in COMMANDS.items():
        parsers[name] = commands.add_parser(
            name,
            help=command.about,
            description=f"{command.about[:1].upper()}{command.about[1:]}.",
            epilog=f"example:\n  {command.example}\n\n{command.note}",
            formatter_class=raw,
        )
        parsers[name].set_defaults(run=command.run)
        for option, settings in command.options:
            parsers[name].add_argument(option, **settings)
    return parser, parsers


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The values of the command's options, and `run`, which takes them and runs the command.

    `serve` is the default command, because service managers and containers usually pass only
    options.  `help` and `help COMMAND` are what people try first.  Wrong usage ends the process
    with exit code 2, as argparse defines.
    """
    parser, _ = make_parser()

    # An option without a command belongs to `serve`, except those of the program itself.
    first, *rest = arguments or ["-"]
    if first == "help":
        arguments = [*rest[:1], "--help"]
    elif first.startswith("-") and first not in {"-h", "--help", "--version"}:
        arguments = ["serve", *arguments]
    return parser.parse_args(arguments)


def is_only(error: BaseException, kind: type[BaseException]) -> bool:
    """Whether an error is of a kind, or a group of nothing else, as Trio's tasks raise them."""
    rest = error.split(kind)[1] if isinstance(error, BaseExceptionGroup) else error
    return rest is None or isinstance(rest, kind)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, 0 for success or 1 if it was refused.

    Expected failures, and Ctrl-C, become lines for a person; anything else is a bug and shows its
    traceback.
    """
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # bars become `?` if the locale has none
        sys.stdout.reconfigure(errors="replace")

    problems: Sequence[str] = ()
    try:
        exit_code: int = options.run(options)
    except ConfigRefused as refused:
        problems = refused.problems
    # Trio groups what its tasks raise.
    except (KeyboardInterrupt, BrokenPipeError, BaseExceptionGroup) as error:
        if is_only(error, BrokenPipeError):  # standard output was closed: `| head`
            discard_output()
            return 0
        if not is_only(error, KeyboardInterrupt):
            raise
        problems = ["interrupted"]
    else:
        return exit_code

    for problem in problems:
        print(f"pooler: {problem}", file=sys.stderr, flush=True)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main())
