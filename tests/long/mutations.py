"""Single mistakes in the program, each of which the named tests must find.  (No claims.)

Run: `python -m tests.long.mutations [NAME ...] [--jobs N] [--list]`, in copies of the checkout.
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
from typing import Final

from tests.long import (
    mutations_of_accounts,
    mutations_of_answers,
    mutations_of_connections,
    mutations_of_logins,
    mutations_of_models,
    mutations_of_requests,
    mutations_of_routes,
    mutations_of_verdicts,
)
from tests.long.mutation import Mutation
from tests.support.paths import ROOT

SECONDS_MAX: Final = 90.0
LEFT_OUT: Final = (".git", "node_modules", "__pycache__", ".hypothesis", ".*_cache", "*venv")
FIRST: Final = "without a mistake"
PARTS: Final = (
    mutations_of_accounts,
    mutations_of_answers,
    mutations_of_connections,
    mutations_of_logins,
    mutations_of_models,
    mutations_of_requests,
    mutations_of_routes,
    mutations_of_verdicts,
)

_ONCE: Final = (
    '    "authorization content-encoding content-length content-type expect host origin "\n'
    '    "sec-websocket-key sec-websocket-version transfer-encoding upgrade".split()\n'
)
_TWICE: Final = "http_syntax::a_field_that_two_readers_could_read_differently_is_refused"
_GIVEN_ONCE: Final = "http_syntax::a_field_that_is_given_twice_is_refused"
_SAFE: Final = "failover_is_safe::a_fault_of_one_account_goes_on_only_where_it_is_safe"
_REQUEST: Final = "translation::a_request_becomes_what_the_backend_takes"
_CHUNKS: Final = "translation::a_chat_client_gets_chunks"
_RIGHT: Final = "account_choice::the_right_account_is_chosen"
_JSON: Final = "json_guard::what_another_reader_could_read_differently_is_refused"
_RENEWED: Final = "login.unsaved = merge_tokens(login.raw, answer, self.unix_now())\n"
M = Mutation
# fmt: off
MUTATIONS: Final[tuple[Mutation, ...]] = (
    M("second_end", "After a terminal event nothing but `[DONE]` is passed on.",
      "        return before is None\n", "        return True\n",
      "upstream_excess::a_client_reads_one_terminal_event_whatever_comes"),
    M("unread_end", "An end that a client cannot read is none.",
      "        return self._kind_of(value), value\n\n    def _kind_of",
      "        return kind, value\n\n    def _kind_of",
      "upstream_excess::a_client_reads_one_terminal_event_whatever_comes"),
    M("long_chunk_name", "A long id is not said with every chunk.",
      'return found if len(found) <= SESSION_CHARS_MAX else ""', "return found",
      "upstream_excess::a_long_name_is_not_said_with_every_chunk"),
    M("dhe", "No server chooses the modulus of a handshake.",
      '"ECDHE+AESGCM:', '"DHE+AESGCM:ECDHE+AESGCM:',
      "upstream_excess::no_server_chooses_the_modulus_of_a_handshake"),
    M("models_uncounted", "Models that nobody takes are counted.",
      "if not exchange.hold_body(len(shown)):", "if not exchange.hold_body(0):",
      "upstream_excess::models_that_nobody_takes_are_counted"),
    M("head_as_a_list", "The head in an error tells nothing, in any shape.",
      '    given = _object(frame["headers"])\n',
      '    given = frame["headers"]\n    if not isinstance(given, dict):\n        return {}\n',
      "upstream_excess::the_head_in_an_error_tells_nothing_in_any_shape"),
    M("long_error_head", "The head in an error frame is no longer than another.",
      "headers.items()))) > limits.upstream_head_bytes_max:", "headers.items()))) > math.inf:",
      "upstream_excess::the_head_in_an_error_is_no_longer_than_another"),
    M("broken_tls_kept", "A connection on which no TLS came is not used again.",
      "            self.is_broken = True\n", "            pass\n",
      "upstream_excess::after_a_record_that_is_no_tls_the_next_request_is_served"),
    # What clients make up.
    M("long_response_id", "A response has no id of any length.",
      "if previous and is_short else None", "if previous else None",
      "shares::what_names_nothing_is_not_remembered"),
    M("all_at_once", "What one connection sends ahead is not answered all at once.",
      "await trio.lowlevel.checkpoint()  # others come between what was sent ahead", "pass",
      "no_stall::no_request_without_a_body_holds_the_loop_for_long"),
    M("lists_at_once", "Models are listed for one request after the other.",
      "async with self.listing(exchange.holder):", "if True:",
      "no_stall::no_request_without_a_body_holds_the_loop_for_long"),
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
      "left = account.concurrent - self.in_flight[account.name]",
      "left = account.concurrent - self.in_flight[account.name] + 1",
      "limits_hold::an_account_has_so_many_streams"),
    M("queue_length", "A queue is bounded.",
      "if len(queue) < length_max:", "if len(queue) <= length_max:",
      "limits_hold::a_queue_is_so_long"),
    M("queue_unfair", "Who has waited longest is served first.",
      "for waiter in sorted(queue, key=", "for waiter in sorted(reversed(queue), key=",
      "queue_is_fair::the_queue_is_fair_and_its_wait_is_ten_seconds"),
    M("priority", "Priorities order the accounts.",
      "rank = (is_elsewhere, account.priority, is_ready", "rank = (is_elsewhere, 0, is_ready",
      _RIGHT),
    M("paused_account", "A paused account serves nobody.",
      "if account.paused or not self.is_current(account):", "if not self.is_current(account):",
      _RIGHT),
    M("session_pin", "A session stays at its account.",
      "is_elsewhere = pin is None or pin.account != account.name", "is_elsewhere = True",
      "account_choice::a_session_stays_where_it_is_though_a_better_account_is_back"),
    M("response_pin", "A follow-up goes where its response was made.",
      "for account in accounts if owner in {None, account.identity}]", "for account in accounts]",
      "account_choice::a_stored_response_binds_its_key_to_its_account"),
    M("rest_without_end", "A rest ends at its reset.",
      "        return now >= self.until\n", "        return self.until == 0\n",
      "account_choice"),
    M("rest_ended_early", "An earlier request's success ends no rest.",
      "if lease.began_at > rest.said_at:", "if True:",
      "account_choice::the_success_of_an_earlier_request_does_not_end_the_rest"),
    M("client_fault_rests", "A client's fault rests no account.",
      "_BY_STATUS.get(status, (Action.RETURN, Effect.NONE))",
      "_BY_STATUS.get(status, (Action.RETURN, Effect.LIMITED))",
      "account_choice::a_fault_of_the_request_is_not_the_account_s"
      " failover_is_safe::a_fault_of_the_only_account_is_told"),
    # No request is sent twice.
    M("too_large_rests", "A request that is too large for a limit rests no account.",
      "        return int(match[2]) > int(match[1])\n", "        return False\n",
      "request_too_large::an_account_with_an_api_key_passes_it_on"),
    M("ordinary_limit_passed_on", "An ordinary limit rests its account.",
      "        return int(match[2]) > int(match[1])\n", "        return True\n",
      "request_too_large::an_ordinary_limit_still_rests_and_the_next_is_asked"),
    M("attempts_max", "At most so many accounts are tried.",
      "and len(exchange.record.attempts) < exchange.limits.attempts_max:", ":",
      "failover_is_safe::at_most_three_accounts_are_tried"),
    M("retry_after_reset", "What may have been executed is not sent again after a reset.",
      "if stage in {Stage.UPGRADE, Stage.SEND} else Action.RETURN",
      "if stage in {Stage.UPGRADE, Stage.SEND} or (stage, trouble) == (Stage.HEAD, Trouble.CLOSED)"
      " else Action.RETURN",
      _SAFE),
    M("retry_after_timeout", "Nor after a time-out.",
      "if stage in {Stage.UPGRADE, Stage.SEND} else Action.RETURN",
      "if stage in {Stage.UPGRADE, Stage.SEND} or (stage, trouble) == (Stage.HEAD, Trouble.TIMEOUT)"
      " else Action.RETURN",
      "timers::a_silent_upstream_is_given_up_in_time"),
    M("retry_after_cut", "Nor after a cut answer.",
      "if stage in {Stage.UPGRADE, Stage.SEND} else Action.RETURN",
      "if stage in {Stage.UPGRADE, Stage.SEND} or (stage, trouble) == (Stage.BODY, Trouble.CLOSED)"
      " else Action.RETURN",
      "failover_is_safe::a_success_that_is_none_is_an_error_and_not_sent_twice"
      " stream_is_exact::a_cut_whole_answer_is_an_error_and_not_asked_again"),
    M("retry_after_504", "Nor after a 504.",
      "(504, 522, 524), (Action.RETURN", "(504, 522, 524), (Action.NEXT", _SAFE),
    M("retry_after_408", "Nor after a 408.",
      "    402: (Action.NEXT, Effect.REFUSED),\n",
      "    402: (Action.NEXT, Effect.REFUSED),\n    408: (Action.NEXT, Effect.NONE),\n", _SAFE),
    M("retry_after_content", "Nor once content has come.",
      "                exchange.hold_unsent(byte_count)\n                return\n",
      "                pass\n",
      "failover_is_safe::other_failures_in_a_stream_are_forwarded_as_they_came"
      " failover_is_safe::nothing_is_sent_elsewhere_once_the_client_has_its_head"),
    # Streams.
    M("cut_told_as_clean", "A cut stream ends with our failure.",
      "last = scanner.failure_event(error, exchange.record.request_id, call.kind)", 'last = b""',
      "timers::silence_between_events_ends_after_five_minutes"),
    M("seen_is_told", "A terminal event that was read and not sent is none.",
      "is_told = exchange.is_told or (scanner.terminal is None and self.translator is None)",
      "is_told = True",
      "one_terminal_event::a_terminal_event_that_was_read_and_not_sent_is_none"),
    M("bug_cuts_a_stream", "A stream that a bug has left open gets its end.",
      "        await self.send_events(b\"\" if self.is_told else last, is_last=True)\n", "",
      "one_terminal_event::a_bug_where_a_stream_is_ended_ends_it_all_the_same"),
    M("two_terminal_events", "A stream has one terminal event.",
      "if not (is_told and scanner.is_complete(trouble is None)):",
      "if trouble or scanner.failure:",
      "failover_is_safe::other_failures_in_a_stream_are_forwarded_as_they_came"
      " stream_is_exact::nothing_of_ours_follows_a_terminal_event"),
    M("chunked_cut_is_the_end", "A chunked answer that is cut is not whole.",
      "if self.head.framing != UNTIL_CLOSE:", "if self.head is NO_RESPONSE:",
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
      "            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)\n", "",
      "login_recovery::processes_that_contend_send_no_refresh_token_twice"),
    M("not_single_flight", "One renewal is under way at a time.",
      "if login.renewal is None and self.services is not None", "if self.services is not None",
      "token_refresh::fifty_requests_on_an_ended_token_ask_once"),
    M("hard_link", "A login with other names is told of.",
      "        if state.st_nlink > 1:\n", "        if state.st_nlink > 2:\n",
      "auth_file::a_problem_is_found_before_a_token_is_spent"),
    M("client_header_goes_on", "Only listed headers of a client go on.",
      'frozenset({"accept", "openai-beta"})', 'frozenset({"accept", "openai-beta", "cookie"})',
      "secrets_never_leave::an_upstream_gets_its_own_key_and_the_listed_headers"),
    M("set_cookie_comes_back", "Only listed headers of an upstream come back.",
      '"content-type openai-model', '"set-cookie content-type openai-model',
      "secrets_never_leave::what_an_upstream_says_besides_its_answer_is_not_told"),
    M("plan_comes_back", "Codex CLI is not told the plan of an account.",
      '"x-codex-turn-state x-reasoning', '"x-codex-turn-state x-codex-plan-type x-reasoning',
      "native_headers::an_answer_s_head_tells_nothing_of_the_account"),
    M("account_quota_told", "An error frame tells nothing of the account.",
      "        return event if told == known else _with_data(event, told)\n",
      "        return event\n", "native_headers::an_error_frame_tells_nothing_of_the_account"),
    M("redirect_relayed", "A redirect is an error of ours.",
      "    if status < 400:\n", "    if status < 300:\n",
      "secrets_never_leave::an_upstreams_redirect_is_not_followed"),
    M("model_in_the_log", "What a client makes up is not in the log.",
      'call.requested_model if is_known else "other"', "call.requested_model",
      "secrets_never_leave::a_model_nobody_configured_is_not_in_the_log"),
    M("text_of_a_bug_in_the_log", "The text of an exception is not in the log.",
      "name = type(error).__name__", "name = str(error)",
      "secrets_never_leave::a_bug_on_the_way_is_a_500_that_says_nothing"),
    M("host_check", "A foreign Host is refused.",
      "if host is not None and not is_named:", "if host == '':",
      "routes::a_foreign_host_or_origin_is_refused_on_every_route"),
    M("origin_check", "A foreign Origin is refused.",
      "is not None and not is_origin_allowed(origin.lower(), route, config):", "== '':",
      "routes::a_foreign_host_or_origin_is_refused_on_every_route"),
    # Syntax and bounds.
    M("body_bytes", "A body may have just so many bytes.",
      "if len(body) + len(piece) > limits.body_bytes_max:",
      "if len(body) + len(piece) >= limits.body_bytes_max:",
      "limits_hold::a_body_has_so_many_bytes"),
    M("body_by_its_word", "A body too long by its own word is not read.",
      "if (head.framing.length or 0) > limits.body_bytes_max:", "if False:",
      "limits_hold::a_body_too_long_by_its_own_word_is_not_read"),
    M("json_depth", "JSON may be just so deep.",
      "        if depth > depth_max:\n", "        if depth > depth_max + 1:\n",
      "json_guard::depth_at_the_limit_and_one_past_it"),
    M("upstream_depth", "An upstream's JSON may be just so deep.",
      "JSON_DEPTH_MAX: Final = 500", "JSON_DEPTH_MAX: Final = 5000",
      "one_terminal_event::a_deep_end_is_one_end"),
    M("upstream_members", "And have just so many members.",
      "json_excess(raw, JSON_DEPTH_MAX, members_max):", "json_excess(raw, JSON_DEPTH_MAX, 10**9):",
      "upstream_json::each_bound_and_one_past_it"),
    M("catalogue_bytes", "A model list has just so many bytes.",
      "bytes_max=CATALOGUE_BYTES_MAX,\n", "bytes_max=limits.event_bytes_max,\n",
      "upstream_json::a_model_list_has_so_many_bytes_and_no_more"),
    M("always_filled", "Only the end of an answer is filled with its items.",
      "self._items[at] for at in sorted(self._items)] if is_end else []",
      "self._items[at] for at in sorted(self._items)]",
      "upstream_json::only_the_end_is_filled_with_the_items"),
    M("quadratic_pattern", "No pattern takes quadratic time.",
      '_UNREADABLE: Final = re.compile("could', '_UNREADABLE: Final = re.compile("(?s)an?.*could',
      "linear_time::the_time_of_a_pattern_is_linear"),
    M("closers_counted", "Brackets that only close are not counted one by one.",
      '    if 2 * openers < len(brackets):', '    if False:',
      "longest_step::no_brackets_that_only_close_take_long"),
    M("any_name_of_a_model", "The name of a model has just so many characters.",
      "    if len(model) > MODEL_CHARS_MAX:", "    if False:",
      "keys::the_name_of_a_model_has_so_many_characters"),
    M("anything_is_a_session", "What is no text names no session.",
      'named or _text_at(body, "prompt_cache_key")',
      'named or str(body.get("prompt_cache_key") or "")',
      "account_choice::what_is_no_text_names_no_session"),
    M("alias_ignored", "An alias changes no value but that of the model.",
      "with_alias(kind, asked, alias)", "{**with_alias(kind, asked, alias), **asked}",
      "stream_is_exact::an_alias_changes_the_value_of_model_alone"),
    M("words_not_cut", "An upstream's words are cut before they are searched.",
      'next(filter(None, said), "")[:MESSAGE_CHARS_MAX]', 'next(filter(None, said), "")',
      "upstream_json::an_upstream_s_words_are_cut"),
    M("duplicate_keys", "No key stands twice.",
      "        object_pairs_hook=_once,\n", "", _JSON),
    M("name_by_case", "A name of another case is not let in beside the one that is judged.",
      "        check_names(value)\n", "",
      "names_by_case::no_upstream_sees_two_models"),
    M("long_s", "Nor one that only Unicode takes for another case.",
      "name.casefold() in DECIDING_NAMES\n", "name.lower() in DECIDING_NAMES\n",
      "names_by_case::a_name_in_another_case_is_refused"),
    M("not_a_number", "NaN is no JSON.",
      "        parse_constant=read_float,\n", "", _JSON),
    M("much_text", "Much text leaves room for fewer members.",
      "        members_max //= 2\n", "        pass\n",
      "json_guard::where_there_is_much_text_half_as_many_members_may_be"),
    M("floats_uncounted", "The floats of a body are counted.",
      "if self.count > FLOATS_MAX:", "if False:",
      "json_guard::floats_at_their_limit_and_one_past_it"),
    M("bare_lf_in_a_head", "A bare LF ends no line of a head.",
      "if _BARE_LF.search(self.buffer, self.searched):", "if False:",
      "http_syntax::a_bare_line_feed_is_refused_before_the_head_is_whole"),
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
      "reading_seconds = EARLY_RESPONSE_SECONDS_MAX", "reading_seconds = 0.0",
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
      "    if ca_file is not None:\n        context.load_verify_locations(",
      "    if ca_file is not None:\n        context.check_hostname = False\n"
      "        context.load_verify_locations(",
      "tls_upstreams::a_certificate_is_for_its_name_and_of_an_authority_that_the_account_knows"),
    M("authority_unchecked", "And of an authority that the account knows.",
      "    if ca_file is not None:\n        context.load_verify_locations(",
      "    if ca_file is not None:\n"
      "        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE\n"
      "        context.load_verify_locations(",
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
    M("reader_outlives_its_socket", "A socket is closed once its reader has ended.",
      "        self.rest.cancel()\n        await self.frames.stop()\n", "",
      "websocket::a_spent_websocket_is_replaced_unless_the_turn_is_bound"),
    M("bug_without_an_end", "A bug in a reader ends the turn under way.",
      'self.end(1011, "internal_error")', "self.end(1011)",
      "websocket_turns::a_bug_in_the_reader_of_a_client_ends_its_turn_and_its_websocket"),
    M("cut_turn", "A turn has an end, whatever is raised.",
      "        await self.send_events(b\"\" if self.is_told else last, is_last=True)\n", "",
      "websocket_turns::whatever_is_raised_in_a_turn_it_has_one_end"),
    M("unfinished_message", "A message that is not finished is given up.",
      "until = began_at + left", "until = math.inf",
      "websocket_memory::a_clients_message_that_is_not_finished_is_given_up"),
    M("dripping_message", "However it drips.",
      "self.waited_seconds += trio.current_time() - began_at", "pass",
      "websocket_memory::a_clients_message_that_drips_is_given_up"),
    M("whole_message_uncounted", "A message is counted until it is taken.",
      "held = meter.bytes_whole + meter.bytes_pending", "held = meter.bytes_pending",
      "websocket_memory::whole_messages_are_counted_until_they_are_taken"),
    M("text_held_as_str", "The library holds bytes, and no text.",
      "turned[place] ^= _TEXT ^ _BINARY", "turned[place] ^= 0",
      "websocket_bounds::the_meter_counts_the_same_in_any_pieces"),
    M("news_unbounded", "What comes before the first event is bounded.",
      "if sum(map(len, self.first)) > limits.event_bytes_max:", "if False:",
      "websocket_memory::what_comes_before_the_first_event_has_so_many_bytes_together"),
    M("slow_reader_uncounted", "Events that a client does not take are counted.",
      "with counted(hold, SENT_COPIES * len(data)):", "with counted(hold, 0):",
      "websocket_memory::events_that_clients_do_not_take_have_room_or_end_their_turn"),
    M("frames_at_once", "A piece of many frames is handled in steps.",
      "frame_count < FRAMES_AT_ONCE and", "frame_count <= FRAMES_AT_ONCE and",
      "websocket_bounds::so_many_frames_are_passed_on_at_once"),
    M("half_a_character", "A text ends with a whole character.",
      '        decoder.decode(b"", final=True)\n', "",
      "websocket_memory::text_is_judged_in_slices"),
    M("note_read_carelessly", "A frame means one thing to every reader.",
      'return is_alone and value.get("type")', 'return value.get("type")',
      "websocket_turns::a_frame_that_only_looks_like_a_note_is_judged_as_a_call"),
    M("stray_passed_on", "What comes late is not the next turn's.",
      "if not self.is_reused or self.type in", "if self.is_at_end is False or self.type in",
      "websocket_turns::what_comes_late_is_not_the_turns_that_was_asked_for_meanwhile"),
    M("stray_ignored", "A WebSocket that says too much is replaced.",
      "self.is_spent |= not is_news(type_of(message))", "pass",
      "websocket_turns::a_websocket_on_which_something_was_said_between_two_turns_is_replaced"),
    M("failed_websocket_kept", "A failure that is told twice is one turn's.",
      "self.is_spent |= scanner.failure is not None", "pass",
      "websocket_turns::a_failure_that_is_told_twice_is_one_turns"),
    M("two_stream_ids", "An event bears its stream_id once.",
      'if "stream_id" in value:', "if False:",
      "websocket_turns::a_stream_id_leaves_an_event_valid"),
    M("websocket_of_another_login", "A WebSocket is one login's.",
      'owner = digest_parts(account.name, account.identity.hex(), account_id or "", way)',
      "owner = digest_parts(account.name, account.identity.hex(), way)",
      "websocket_turns::a_websocket_is_one_login_s_and_one_account_id_s"),
    # Operators.
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
      "if login.raw == login.unsaved or login.has_ended(", "if login.has_ended(",
      "token_refresh::nothing_is_used_before_its_name_is_on_the_disk"),
    M("body_held_on", "What is refused holds no body.",
      "failure = error.with_traceback(None)", "failure = error",
      "limits_hold::a_refused_body_is_given_back_before_anybody_collects"),
    M("hup_kills", "A reload that comes as it ends does not kill it.",
      "    signal.signal(signal.SIGHUP, signal.SIG_IGN)", "    pass",
      "soak::a_reload_after_the_last_log_line_does_not_kill_it"),
    # What is shared.
    M("sockets_of_a_key", "WebSockets count for their key, whatever a reload has changed of it.",
      "        if names.count((key.pool, key.name)) >= key.concurrent:\n",
      "        if [client.key for client in self.sockets].count(key) >= key.concurrent:\n",
      "websocket_bounds::the_websockets_of_a_key_count_on_over_a_reload"),
    M("stop_behind_reload", "What is to end does not wait for a reload.",
      "                            to_reload.send_nowait(None)\n",
      "                            if reload is not None:\n"
      "                                await server.reload(reload)\n",
      "nothing_blocks::a_reload_that_takes_long_does_not_delay_the_end"),
    M("half_imported", "A module that is being imported is waited for in a thread.",
      "        if name not in self.modules:\n", "        if name not in sys.modules:\n",
      "nothing_blocks::who_comes_while_a_module_is_loaded_waits_in_a_thread"),
    M("budget_share", "No holder has more than is left for the others.",
      "            if spare < 0:\n", "            if left < 0:\n",
      "shares::a_budget_gives_nobody_more_than_is_left_for_the_others"),
    M("account_share", "Nor one of its users more than it could take for the others.",
      "if user is not None and 2 *", "if False and 2 *",
      "shares::what_one_key_does_not_read_leaves_room_for_another_s_answers"),
    M("bodies_of_all", "Bodies are held for the key that sent them.",
      "return self.record.pool or \"\", self.record.key or \"\"", "return \"\", \"\"",
      "limits_hold::all_bodies_together_have_so_many_bytes"),
    M("events_of_all", "Events are held for the account that they are of.",
      "        exchange.response_of = account.name\n", "        pass\n",
      "limits_hold::all_unfinished_events_together_have_so_many_bytes"),
    M("queue_of_one_key", "A full queue gives way to a key that has fewer in it.",
      "if counts[call.key_name] + 1 >= count:", "if True:",
      "shares::a_full_queue_gives_way_to_a_key_that_has_fewer_in_it"),
    M("queue_by_time_alone", "The key that has least is served first.",
      "key=lambda waiter: by_key[waiter.call.key_name]):", "key=lambda waiter: 0):",
      "shares::the_queue_serves_the_key_that_has_least"),
    M("no_place_kept", "One key leaves some places of an account to the others.",
      "kept = account.concurrent // PLACES_KEPT_PART if", "kept = 0 if",
      "shares::one_key_leaves_some_places_to_the_others"),
    M("nobody_leaves", "A connection that rests goes for one that comes.",
      "next(iter(self.keyless), None) or self.dispensable()", "next(iter(self.keyless), None)",
      "shares::so_many_connections_are_served"),
    M("the_quiet_one_leaves", "It is one of the key that has most.",
      "most = max(free, key=lambda one: counts[one.owner]).owner",
      "most = min(free, key=lambda one: counts[one.owner]).owner",
      "shares::the_key_that_has_most_connections_loses_one"),
    M("no_connection_kept", "One key leaves some connections to the others.",
      "if is_new and self.busy[connection.owner]", "if False and self.busy[connection.owner]",
      "shares::one_key_leaves_some_connections_to_the_others"),
    M("no_spares", "Health is answered though all connections are taken.",
      "        self.spares[connection] = None\n", "        connection.scope.cancel()\n",
      "shares::so_many_more_may_ask_for_its_health"),
    M("one_memory", "Nobody's sessions are pushed out by another's.",
      "largest = max(self.by_owner, key=lambda owner: len(self.by_owner[owner]))",
      "largest = next(iter(self.by_owner))",
      "shares::who_has_most_forgets_first"),
    # Where a request goes, and as whom.
    M("login_of_the_name", "A place is that of the login it was chosen with.",
      "identity = functools.partial(identify, tokens, endpoint, rejected)",
      "identity = functools.partial(identify, tokens, exchange.server.endpoints.get("
      "account.name, endpoint), rejected)",
      "one_value"),
    M("login_not_retired", "A login whose account goes elsewhere takes nothing new.",
      "                endpoint.login.is_retired = True\n", "                pass\n",
      "one_value"),
    M("saved_over_another", "A refreshed login takes no other's place.",
      "        if read_file(path) not in (known, raw):\n            return\n", "        pass\n",
      "one_value"),
    M("kept_after_reload", "A connection of before a reload is not used after it.",
      "            and self.server.is_current(endpoint)\n", "",
      "one_value::a_connection_is_not_kept_for_those_who_come_after_a_reload"),
    # Nothing blocks, nothing is told wrong.
    M("spent_if_answered", "What an upstream has read is spent.",
      "            if exchange.is_spent:\n", "            if record.account is not None:\n",
      "keys::a_client_that_leaves_has_spent_what_its_upstream_has_read"),
    M("log_blocks", "The log is written by a thread of its own.",
      "            if len(self.lines) < LOG_LINES_MAX:\n",
      "            while len(self.lines) >= 100:\n                self.changed.wait(1)\n"
      "            if len(self.lines) < LOG_LINES_MAX:\n",
      "nothing_blocks::a_log_that_nobody_reads_stops_nothing"),
    M("pipe_is_read", "A pipe is no file.",
      "    if stat.S_ISREG(os.fstat(descriptor).st_mode):\n        with os.fdopen",
      "    if True:\n        os.set_blocking(descriptor, True)\n        with os.fdopen",
      "nothing_blocks::a_pipe_in_the_place_of_a_file_stops_no_running_server"),
    M("code_of_ours", "An upstream that fails does not speak in the pooler's name.",
      "return meaning > 0 and (", "return False and (",
      "hostile_answers::an_upstream_that_fails_does_not_speak_in_the_poolers_name"),
    M("codes_without_end", "An upstream's codes are counted within a bound.",
      "        if len(known) < UPSTREAM_CODES_MAX:\n", "        if True:\n",
      "operators::counters_have_a_bound_whatever_an_upstream_calls_its_errors"),
    M("slept", "A machine that has slept rests no account for longer.",
      "if slept_seconds > SLEEP_SECONDS_MIN:", "if False:",
      "account_choice::a_cooldown_ends_at_its_reset_though_the_machine_has_slept"),
    M("soft_descriptors", "The soft limit of descriptors is raised.",
      "resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))", "pass",
      "nothing_blocks::the_soft_limit_is_raised_and_connections_stay_below_what_is_left"),
    M("descriptors_ignored", "Connections stay below what descriptors allow.",
      "int(min(limits.connections_max, room))", "int(limits.connections_max)",
      "nothing_blocks::the_soft_limit_is_raised_and_connections_stay_below_what_is_left"),
    M("lock_of_another", "A lock of another user is not used.",
      "    if stat.S_ISREG(found.st_mode) and is_own:\n        return descriptor",
      "    if stat.S_ISREG(found.st_mode):\n        return descriptor",
      "login_recovery::a_lock_that_is_not_the_poolers_own_is_not_used"),
    M("left_by_another", "What another user left is not taken for a login.",
      "    if not (stat.S_ISREG(found.st_mode) and is_ours(found)):\n", "    if False:\n",
      "login_recovery::what_another_user_left_in_the_place_of_a_new_login_is_not_taken"),
    # Translation.
    M("call_arguments_up", "A tool call keeps its arguments on the way up.",
      'for name in ("name", member)}\n    return {"type": kind, "call_id"',
      'for name in ("name",)}\n    return {"type": kind, "call_id"', _REQUEST),
    M("call_arguments_down", "And on the way down.",
      "yield {\"tool_calls\": [{\"index\": number, chat: {member: text}}]}", "yield {}", _CHUNKS),
    M("usage_dropped", "It tells usage.", "if self.include_usage and usage:", "if False:", _CHUNKS),
    M("incomplete_is_stop", "An incomplete answer is not called whole.",
      'content_filter" else "length"', 'content_filter" else "stop"', _CHUNKS),
    M("foreign_reasoning", "Encrypted reasoning reaches no other upstream.",
      "if roster.is_foreign(call, account, place.lease.began_at):", "if False:",
      "codex_accounts::a_session_that_moves_to_an_api_key_leaves_its_reasoning_behind"),
    M("foreign_turn_state", "A turn's state reaches no other account.",
      "if name != TURN_STATE or roster.is_maker(account, call, TURN_STATE, value)", "if True",
      "codex_hostile::a_turn_s_state_never_reaches_another_account"),
    *(M(*row) for part in PARTS for row in part.ROWS),
)
# fmt: on


def mutated(mutation: Mutation, source: str) -> str:
    """Raises: LookupError, where the old text is not there as often as it should be."""
    if source.count(mutation.old) != mutation.times:
        raise LookupError(f"old text occurs {source.count(mutation.old)} times")
    return source.replace(mutation.old, mutation.new)


def node_ids(tests: str) -> list[str]:
    """`keys::a_b` is test_a_b of the only test_keys.py in a folder of tests/, `keys` that file."""
    found = []
    for module, _, name in (test.partition("::") for test in tests.split()):
        paths = (ROOT / "tests").glob(f"*/test_{module}.py")
        (path,) = (path for path in paths if path.parent.name != "clients")
        found.append(str(path.relative_to(ROOT)) + (f"::test_{name}" if name else ""))
    return found


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
