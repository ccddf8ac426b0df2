"""Single mistakes in the program, each of which the named tests must find.  (No claims.)

Run: `python -m tests.mutations [NAME ...] [--jobs N] [--list]`.  Each mistake is made in a copy of
the checkout, and its tests are run there; first they must pass without it.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parent.parent
SECONDS_MAX: Final = 90.0
LEFT_OUT: Final = (".git", "node_modules", "__pycache__", ".hypothesis", ".*_cache", "*venv")
FIRST: Final = "without a mistake"


class Mutation(NamedTuple):
    """`old` occurs `times` times; `tests` leave out every `test_`, to be short."""

    name: str
    promise: str
    old: str
    new: str
    tests: str
    times: int = 1
    file: str = "pooler.py"


_ONCE: Final = (
    '    "authorization content-encoding content-length content-type expect host origin "\n'
    '    "sec-websocket-key sec-websocket-version transfer-encoding upgrade".split()\n'
)
_TWICE: Final = "http_syntax::a_field_that_two_readers_could_read_differently_is_refused"
_GIVEN_ONCE: Final = "fields_once::a_field_that_is_given_twice_is_refused"
_SAFE: Final = "failover_is_safe::a_fault_of_one_account_goes_on_only_where_it_is_safe"
_REQUEST: Final = "translation::a_request_becomes_what_the_backend_takes"
_CHUNKS: Final = "translation::a_chat_client_gets_chunks"
_RIGHT: Final = "account_choice::the_right_account_is_chosen"
_JSON: Final = "json_guard::what_another_reader_could_read_differently_is_refused"
_RENEWED: Final = "login.unsaved = merge_tokens(login.raw, answer, self.unix_now())\n"

M = Mutation
# fmt: off
MUTATIONS: Final[tuple[Mutation, ...]] = (
    # Keys.
    M("hash_is_a_key", "A hash from a file never becomes a password.",
      'is_hash = secret.lower().startswith("sha256:")', "is_hash = False",
      "config_is_strict::a_referred_hash_never_becomes_a_password"),
    M("expired_key", "A key ends at its second.",
      "unix_now < key.expires)", "unix_now <= key.expires)",
      "keys::a_key_expires_at_its_second"),
    M("paused_key", "A paused key opens nothing.",
      "return not key.paused and (", "return (",
      "keys::all_other_credentials_get_one_identical_401"),
    M("pool_key_opens_admin", "Only an operator's token opens the operators' routes.",
      "operator = find_owner(presented, exchange.config.operators)",
      "operator = find_owner(presented, [*exchange.config.operators, *exchange.config.keys])",
      "operators::only_an_operators_token_opens_the_operators_routes"),
    M("operator_opens_v1", "An operator's token opens nothing of the clients'.",
      "key = find_owner(presented, exchange.config.keys)",
      "key = find_owner(presented, exchange.config.keys) or (next(exchange.config.keys)\n"
      "            if find_owner(presented, exchange.config.operators) else None)",
      "operators::the_token_opens_nothing_of_the_clients"),
    M("key_models", "A key's list of models is kept to.",
      "if key.models is not None and not {requested, model} & set(key.models):", "if False:",
      "keys::a_key_has_its_own_models"),
    M("requests_per_minute", "A key has so many requests a minute.",
      "len(self.minute) >= key.requests_per_minute", "len(self.minute) > key.requests_per_minute",
      "keys::requests_per_minute_slide"),
    M("key_concurrent", "A key has so many requests at once.",
      "self.in_flight_count >= key.concurrent", "self.in_flight_count > key.concurrent",
      "keys::a_key_has_so_many_requests_at_once"),
    M("tokens_per_day", "A key has so many tokens a day.",
      "self.day_tokens >= key.tokens_per_day", "self.day_tokens > key.tokens_per_day",
      "keys::tokens_per_day_end_at_midnight_utc"),
    M("place_not_given_back", "A key's place is free again when its request is over.",
      "            use.in_flight_count -= 1", "            pass",
      "keys::a_client_that_leaves_gives_its_place_back"),
    # Accounts, sessions, rests.
    M("account_concurrent", "An account has so many requests at once.",
      "self.in_flight[account.name] < account.concurrent",
      "self.in_flight[account.name] <= account.concurrent",
      "limits_hold::an_account_has_so_many_streams"),
    M("queue_length", "A queue is bounded.",
      "if len(queue) >= exchange.limits.queue_length_max:",
      "if len(queue) > exchange.limits.queue_length_max:",
      "limits_hold::a_queue_is_so_long"),
    M("queue_unfair", "Who has waited longest is served first.",
      "for waiter in list(queue):", "for waiter in reversed(list(queue)):",
      "queue_is_fair::the_queue_is_fair_and_its_wait_is_ten_seconds"),
    M("priority", "Priorities order the accounts.",
      "rank = (is_elsewhere, account.priority, is_ready", "rank = (is_elsewhere, 0, is_ready",
      _RIGHT),
    M("paused_account", "A paused account serves nobody.",
      "if account.paused or account.name not in", "if account.name not in", _RIGHT),
    M("session_pin", "A session stays at its account.",
      "is_elsewhere = pin is None or pin.account != account.name", "is_elsewhere = True",
      "account_choice::a_session_stays_where_it_is_though_a_better_account_is_back"),
    M("response_pin", "A follow-up goes where its response was made.",
      "for account in accounts if owner in {None, account.name}]", "for account in accounts]",
      "account_choice::a_stored_response_binds_its_key_to_its_account"),
    M("rest_without_end", "A rest ends at its reset.",
      "return now >= self.rests_until", "return self.rests_until == 0",
      "account_choice"),
    M("rest_ended_early", "An earlier request's success ends no rest.",
      "if lease.began_at > lease.health.rested_at:", "if True:",
      "account_choice::the_success_of_an_earlier_request_does_not_end_the_rest"),
    M("client_fault_rests", "A client's fault rests no account.",
      "_BY_STATUS.get(status, (Action.RETURN, Effect.NONE))",
      "_BY_STATUS.get(status, (Action.RETURN, Effect.LIMITED))",
      "account_choice::a_fault_of_the_request_is_not_the_account_s"
      " failover_is_safe::a_fault_of_the_only_account_is_told"),
    # No request is sent twice.
    M("attempts_max", "At most so many accounts are tried.",
      "and is_left and len(tried) < exchange.limits.attempts_max:", "and is_left:",
      "failover_is_safe::at_most_three_accounts_are_tried"),
    M("retry_after_reset", "What may have been executed is not sent again after a reset.",
      "if stage in {Stage.CONNECT, Stage.SEND} else Action.RETURN",
      "if stage in {Stage.CONNECT, Stage.SEND} or (stage, trouble) == (Stage.HEAD, Trouble.CLOSED)"
      " else Action.RETURN",
      _SAFE),
    M("retry_after_timeout", "Nor after a time-out.",
      "if stage in {Stage.CONNECT, Stage.SEND} else Action.RETURN",
      "if stage in {Stage.CONNECT, Stage.SEND} or (stage, trouble) == (Stage.HEAD, Trouble.TIMEOUT)"
      " else Action.RETURN",
      "timers::a_silent_upstream_is_given_up_in_time"),
    M("retry_after_cut", "Nor after a cut answer.",
      "if stage in {Stage.CONNECT, Stage.SEND} else Action.RETURN",
      "if stage in {Stage.CONNECT, Stage.SEND} or (stage, trouble) == (Stage.BODY, Trouble.CLOSED)"
      " else Action.RETURN",
      "failover_is_safe::a_success_that_is_none_is_an_error_and_not_sent_twice"
      " stream_is_exact::a_cut_whole_answer_is_an_error_and_not_asked_again"),
    M("retry_after_504", "Nor after a 504.",
      "(504, 522, 524), (Action.RETURN", "(504, 522, 524), (Action.NEXT", _SAFE),
    M("retry_after_408", "Nor after a 408.",
      "    402: (Action.NEXT, Effect.REFUSED),\n",
      "    402: (Action.NEXT, Effect.REFUSED),\n    408: (Action.NEXT, Effect.NONE),\n", _SAFE),
    M("retry_after_content", "Nor once content has come.",
      "            if scanner.has_content:\n                return\n", "",
      "failover_is_safe::other_failures_in_a_stream_are_forwarded_as_they_came"
      " failover_is_safe::nothing_is_sent_elsewhere_once_the_client_has_its_head"),
    # Streams.
    M("cut_told_as_clean", "A cut stream ends with our failure.",
      "last = scanner.failure_event(error, exchange.record.request_id, call.kind)", 'last = b""',
      "timers::silence_between_events_ends_after_five_minutes"),
    M("two_terminal_events", "A stream has one terminal event.",
      "if not (is_told and scanner.is_complete(trouble is None)):",
      "if trouble or scanner.failure:",
      "failover_is_safe::other_failures_in_a_stream_are_forwarded_as_they_came"
      " stream_is_exact::nothing_of_ours_follows_a_terminal_event"),
    M("chunked_cut_is_the_end", "A chunked answer that is cut is not whole.",
      "if self.head.framing != UNTIL_CLOSE:", "if self.head is UNANSWERED:",
      "stream_is_exact::a_cut_chat_stream_with_a_finish_reason_but_no_done"),
    M("idle_counts", "A comment is no progress.",
      "if count := sum(kind is not EventKind.IDLE for kind, _ in events):",
      "if count := len(events):",
      "timers::idle_events_are_forwarded_and_do_not_count"),
    M("first_event_timer", "The wait for the first event is bounded.",
      "now + self.account.first_event_seconds", "now + 2 * self.account.first_event_seconds",
      "timers::a_stream_without_a_first_event_ends_after_two_minutes"),
    M("between_events_timer", "Silence between events is bounded.",
      "(until, \"between_events_seconds_max\"), (self",
      "(until + 1, \"between_events_seconds_max\"), (self",
      "timers::silence_between_events_ends_after_five_minutes"),
    M("unclean_reuse", "A connection whose answer was cut is not used again.",
      "self.is_at_end and self.head.keeps_alive and is_clean", "self.head.keeps_alive",
      "failover_is_safe::a_connection_whose_answer_was_cut_or_overfull_is_not_used_again"),
    M("hang_up", "A client that leaves ends its request.",
      "            self.is_gone = True\n            self.scope.cancel()\n", "            pass\n",
      "cancellation::a_client_that_leaves_ends_its_request_at_once"),
    M("drain", "The end of the drain ends every wait.",
      '        return "server_stopping" if self.server.is_stopped else ""\n',
      '        return ""\n', "cancellation::a_stop_ends_what_is_left_with_one_terminal_event"),
    # Logins.
    M("save_in_place", "A login is replaced whole.",
      "    sync(fresh)\n    os.rename(fresh, path)\n",
      "    path.write_bytes(raw)\n    fresh.unlink()\n",
      "login_recovery::a_save_is_on_the_disk_before_it_counts"),
    M("no_fsync", "A save is on the disk before it counts.",
      "        os.fsync(descriptor)\n", "        pass\n",
      "login_recovery::a_save_is_on_the_disk_before_it_counts"),
    M("used_before_saved", "No token is used before it is saved.",
      _RENEWED, _RENEWED + "            login.credentials = parse_auth_file(login.unsaved)\n",
      "token_refresh::nothing_is_used_before_it_is_saved"),
    M("no_lock", "Processes take turns at a login.",
      "                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n", "",
      "login_recovery::processes_that_contend_send_no_refresh_token_twice"),
    M("not_single_flight", "One renewal is under way at a time.",
      "if login.renewal is None and self.services is not None", "if self.services is not None",
      "token_refresh::fifty_requests_on_an_ended_token_ask_once"),
    # What crosses.
    M("client_header_goes_on", "Only listed headers of a client go on.",
      '"accept|openai-beta")', '"accept|openai-beta|cookie|x-.*")',
      "secrets_never_leave::an_upstream_gets_its_own_key_and_the_listed_headers"),
    M("set_cookie_comes_back", "Only listed headers of an upstream come back.",
      '"content-type|openai-(?:model', '"set-cookie|content-type|openai-(?:model',
      "secrets_never_leave::what_an_upstream_says_besides_its_answer_is_not_told"),
    M("redirect_relayed", "A redirect is an error of ours.",
      "    if status < 400 or (status", "    if status < 300 or (status",
      "secrets_never_leave::an_upstreams_redirect_is_not_followed"),
    M("model_in_the_log", "What a client makes up is not in the log.",
      'call.requested_model if is_known else "other"', "call.requested_model",
      "secrets_never_leave::a_model_nobody_configured_is_not_in_the_log"),
    M("text_of_a_bug_in_the_log", "The text of an exception is not in the log.",
      "name = type(error).__name__", "name = str(error)",
      "secrets_never_leave::a_bug_on_the_way_is_a_500_that_says_nothing"),
    M("host_check", "A foreign Host is refused.",
      "host is not None and host not in config.hosts:", "host is None:",
      "routes::a_foreign_host_or_origin_is_refused_on_every_route"),
    M("origin_check", "A foreign Origin is refused.",
      "origin is not None and origin.lower() not in config.allowed_origins:", "origin == '':",
      "routes::a_foreign_host_or_origin_is_refused_on_every_route"),
    # Syntax and bounds.
    M("body_bytes", "A body may have just so many bytes.",
      "if byte_count > limits.body_bytes_max:", "if byte_count >= limits.body_bytes_max:",
      "limits_hold::a_body_has_so_many_bytes"),
    M("body_by_its_word", "A body too long by its own word is not read.",
      "if (head.framing.length or 0) > limits.body_bytes_max:", "if False:",
      "limits_hold::a_body_too_long_by_its_own_word_is_not_read"),
    M("json_depth", "JSON may be just so deep.",
      "if depth > limits.json_depth_max:", "if depth > limits.json_depth_max + 1:",
      "json_guard::depth_at_the_limit_and_one_past_it"),
    M("duplicate_keys", "No key stands twice.",
      "object_pairs_hook=_once, ", "", _JSON),
    M("not_a_number", "NaN is no JSON.",
      ", parse_constant=_finite", "", _JSON),
    M("bare_lf_in_a_head", "A bare LF ends no line of a head.",
      "if _BARE_LF.search(self.buffer, self.searched):", "if False:",
      "fields_once::a_bare_line_feed_is_refused_before_the_head_is_whole"),
    M("bare_lf_in_a_trailer", "Nor one of a trailer.",
      "if _BARE_LF.search(section):", "if False:",
      "http_syntax::malformed_chunks_are_refused_at_every_cut"),
    M("two_framings", "A body has one framing.",
      'if length is not None or coding.lower() != "chunked"', 'if coding.lower() != "chunked"',
      _TWICE),
    M("chunk_extension", "A chunk has no extension.",
      r'rb"\r\n([0-9A-Fa-f]{1,8})\r\n"', r'rb"\r\n([0-9A-Fa-f]{1,8})(?:;[^\r\n]*)?\r\n"',
      "http_syntax::malformed_chunks_are_refused_at_every_cut"),
    M("interim_answers", "Interim answers are bounded.",
      "elif self.interim_count >= limits.upstream_interim_max:",
      "elif self.interim_count > limits.upstream_interim_max:",
      "limits_hold::so_many_interim_answers_are_skipped"),
    *(M(f"twice_{name}", f"{name} is given once.", _ONCE,
        _ONCE.replace(f'"{name} ', '"').replace(f" {name} ", " ").replace(f' {name}"', '"'),
        _GIVEN_ONCE) for name in _ONCE.replace('"', " ").replace(".split()", "").split()),
    # Connections to upstreams.
    M("closed_socket_waited_for", "A socket that is closed here is never waited for.",
      "while source.fileno() >= 0:", "while True:",
      "closed_sockets::a_closed_socket_is_at_its_end_however_often_it_is_read"),
    M("closed_while_read", "Who reads a socket while it is closed hears of it.",
      "except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):\n"
      "            raise PeerClosed",
      "except (trio.BrokenResourceError, OSError):\n            raise PeerClosed",
      "closed_sockets::who_reads_a_socket_while_it_is_closed_hears_of_it"),
    M("rest_thrown_away", "What comes behind an answer without a body is not thrown away.",
      "self.buffer = self.buffer or self.reader.rest", "self.buffer = self.reader.rest",
      "tls_upstreams::what_comes_behind_an_answer_is_never_the_next_client_s"),
    M("record_unseen", "A part of a record behind an answer is seen.",
      "is_clean &= not self.stream.holds_more", "pass",
      "tls_upstreams::what_comes_behind_an_answer_is_never_the_next_client_s"),
    M("refusal_unheard", "A refusal ends the sending of what it refuses.",
      "(await self.read_head(limits)).status >= 300",
      "(await self.read_head(limits)).status >= 600",
      "early_answers::what_an_upstream_says_early_is_told"),
    M("success_stops", "A success does not end the sending of its request.",
      "(await self.read_head(limits)).status >= 300",
      "(await self.read_head(limits)).status >= 200",
      "tls_upstreams::a_good_word_before_the_end_of_the_request_does_not_stop_it"),
    M("cut_and_kept", "A connection that a request was not sent whole on is not used again.",
      "        self.is_cut = True  # until it is out\n", "",
      "early_answers::what_an_upstream_says_early_is_told"),
    M("refused_and_kept", "A connection on which a large request was refused is not used again.",
      "(self.is_large and self.head.status >= 300)", "False",
      "tls_upstreams::a_refusal_on_a_kept_connection_is_the_answer_and_the_last_there"),
    M("whole_before", "That an answer was whole says nothing of the next one there.",
      "        self.is_at_end = False  # so that it is not kept before its answer is whole\n", "",
      "tls_upstreams::an_answer_that_was_given_up_is_never_the_next_client_s"),
    M("send_that_failed", "After a send that failed an answer has a second.",
      "reading_seconds = EARLY_ANSWER_SECONDS_MAX", "reading_seconds = 0.0",
      "early_answers::an_answer_may_come_a_second_after_the_sending_failed"),
    M("replies_unbounded", "What a peer asks of TLS itself and does not read is bounded.",
      "if self._reply_bytes > RECEIVE_BYTES:", "if False:",
      "tls_stream::answers_that_nobody_reads_are_bounded"),
    M("handshake_left_open", "A handshake that fails leaves no socket open.",
      "    except BaseException:\n        await trio.aclose_forcefully(stream)\n        raise\n"
      "    return secure",
      "    except BaseException:\n        raise\n    return secure",
      "tls_stream::a_handshake_that_fails_leaves_no_socket_open"),
    M("name_unchecked", "A certificate is for its name, with a `ca_file` too.",
      "        context.load_verify_locations(ca_file)\n",
      "        context.load_verify_locations(ca_file)\n        context.check_hostname = False\n",
      "tls_upstreams::a_certificate_is_for_its_name_and_of_an_authority_that_the_account_knows"),
    M("authority_unchecked", "And of an authority that the account knows.",
      "        context.load_verify_locations(ca_file)\n",
      "        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE\n",
      "tls_upstreams::a_certificate_is_for_its_name_and_of_an_authority_that_the_account_knows"),
    # WebSockets.
    M("frame_count", "A message has so many frames.",
      "if self._frame_count > self.frames_max:", "if self._frame_count > self.frames_max + 1:",
      "websocket_bounds::a_message_comes_in_so_many_frames_and_no_more"),
    M("frame_bytes", "A message has so many bytes.",
      "self.bytes_pending + self._left > self.bytes_max:",
      "self.bytes_pending + self._left >= self.bytes_max:",
      "websocket_bounds::a_clients_message_has_so_many_bytes_and_no_more"),
    M("socket_counted_late", "A WebSocket counts before anything waits.",
      "        self.sockets.add(client)  # before anything waits: the key's others are counted\n",
      "        await trio.lowlevel.checkpoint()\n        self.sockets.add(client)\n",
      "websocket::a_websocket_counts_from_the_moment_that_it_is_asked_for"),
    M("turn_not_counted", "A key's limits hold for every turn.",
      "        self.admit(turn, key)\n", "", "websocket::key_limits_hold_for_every_turn"),
    M("turn_after_expiry", "An expired key opens no further turn.",
      "(key.pool, key.name, key.digest) == names and is_key_usable(key, self.unix_now()):",
      "(key.pool, key.name, key.digest) == names:",
      "websocket::a_key_that_expires_opens_no_further_turn"),
    # Operators.
    M("journal_mode", "The journal is its owner's alone.",
      "os.fchmod(self.file, 0o600)", "os.fchmod(self.file, 0o644)",
      "operators::every_request_with_a_key_is_a_line_of_metadata"),
    M("snapshot_leak", "A member that is not listed stays private.",
      "for name in names if name in value}\n\n\ndef show_admin",
      "for name in value}\n\n\ndef show_admin",
      "operator_pages::a_new_member_stays_private_at_every_level"),
    M("admin_not_escaped", "No name changes the page.",
      "return html.escape(_visible(text))", "return _visible(text)",
      "operator_pages::no_name_changes_the_page"),
    M("mcp_words", "A client's words are cut and disarmed for an operator's model.",
      '"?", name[:WORD_CHARS_MAX])', '"?", name)',
      "mcp::a_model_of_the_clients_own_making_is_shortened_and_disarmed", 1, "mcp_server.py"),
    M("mcp_outcome", "A client that left is not called an error.",
      '"aborted" if code == "client_gone" else "error"', '"error"',
      "mcp", 1, "mcp_server.py"),
    # Found by the simulation, the exhaustion and the soak, and mended.
    M("used_before_its_name", "No token is used before its file's name is on the disk.",
      "if login.raw == login.unsaved or has_ended(", "if has_ended(",
      "token_refresh::nothing_is_used_before_its_name_is_on_the_disk"),
    M("body_held_on", "What is refused holds no body.",
      "failure = error.with_traceback(None)", "failure = error",
      "rare_paths::a_refused_body_is_given_back_before_anybody_collects"),
    M("hup_kills", "A reload that comes as it ends does not kill it.",
      "    signal.signal(signal.SIGHUP, signal.SIG_IGN)", "    pass",
      "soak::a_reload_after_the_last_log_line_does_not_kill_it"),
    # Translation.
    M("call_arguments_up", "A tool call keeps its arguments on the way up.",
      'for name in ("name", member)}\n    return {"type": kind, "call_id"',
      'for name in ("name",)}\n    return {"type": kind, "call_id"', _REQUEST),
    M("call_arguments_down", "And on the way down.",
      "yield {\"tool_calls\": [{\"index\": number, chat: {member: text}}]}", "yield {}",
      _CHUNKS),
    M("usage_dropped", "Usage is told to who asks for it.",
      "if self.include_usage and usage:", "if False:", _CHUNKS),
    M("incomplete_is_stop", "An incomplete answer is not called whole.",
      '== "content_filter" else "length"', '== "content_filter" else "stop"', _CHUNKS),
    M("foreign_reasoning", "Encrypted reasoning reaches no other upstream.",
      "if roster.is_foreign(call, account, lease.began_at):", "if False:",
      "codex_accounts::a_session_that_moves_to_an_api_key_leaves_its_reasoning_behind"),
    M("foreign_turn_state", "A turn's state reaches no other account.",
      "if name != TURN_STATE or roster.is_maker(account, call, TURN_STATE, value)", "if True",
      "codex_hostile::a_turn_s_state_never_reaches_another_account"),
)
# fmt: on


def mutated(mutation: Mutation, source: str) -> str:
    """Raises: LookupError, where the old text is not there as often as it should be."""
    if source.count(mutation.old) != mutation.times:
        raise LookupError(f"old text occurs {source.count(mutation.old)} times")
    return source.replace(mutation.old, mutation.new)


def node_ids(tests: str) -> list[str]:
    """`keys::a_b` is tests/test_keys.py::test_a_b; `keys` is the whole file."""
    parts = [test.partition("::") for test in tests.split()]
    return [
        f"tests/test_{module}.py" + (f"::test_{name}" if name else "") for module, _, name in parts
    ]


def run_tests(tests: str, mutation: Mutation | None = None) -> str:
    """How the tests end in a copy with that mistake: passed, found, found (hang), error ..."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy = Path(folder) / "checkout"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
        if mutation is not None:
            source = copy / mutation.file
            source.write_text(mutated(mutation, source.read_text("utf-8")), "utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        process = subprocess.Popen(
            [*command, *dict.fromkeys(node_ids(tests))],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a hang may have children
        )
        try:
            output, _ = process.communicate(timeout=SECONDS_MAX * (1 if mutation else 5))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()
            return "found (it hangs)"
    if process.returncode in {0, 1}:
        return "found" if process.returncode else "passed"
    return "error\n" + output.decode(errors="replace")[-2000:]


def judge(mutation: Mutation) -> tuple[str, float]:
    """What became of a mistake, and the seconds that it took."""
    began_at = time.monotonic()
    try:
        ended = run_tests(mutation.tests, mutation)
    except LookupError as error:
        ended = f"cannot be applied: {error}"
    told = f"SURVIVED: {mutation.promise}" if ended == "passed" else ended
    return told, time.monotonic() - began_at


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Are single mistakes found by the tests?")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="show names and promises only")
    asked = parser.parse_args(arguments)
    known = {mutation.name: mutation for mutation in MUTATIONS}
    if unknown := set(asked.names) - known.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    chosen = [known[name] for name in asked.names] or [*MUTATIONS]
    if asked.list:
        for mutation in chosen:
            sys.stdout.write(f"{mutation.name:26} {mutation.promise}\n")
        return 0
    began_at = time.monotonic()
    good = run_tests(" ".join(mutation.tests for mutation in chosen))
    sys.stdout.write(f"{FIRST:26} {good}, {time.monotonic() - began_at:.1f} s\n")
    sys.stdout.flush()
    if good != "passed":
        return 1
    lost = 0
    with concurrent.futures.ThreadPoolExecutor(asked.jobs) as pool:
        for mutation, (ended, seconds) in zip(chosen, pool.map(judge, chosen), strict=True):
            lost += not ended.startswith("found")
            sys.stdout.write(f"{mutation.name:26} {ended}, {seconds:.1f} s\n")
            sys.stdout.flush()
    seconds = time.monotonic() - began_at
    sys.stdout.write(f"{len(chosen) - lost} of {len(chosen)} found, {seconds:.0f} s\n")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
