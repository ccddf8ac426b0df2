"""Single mistakes in sessions and answers: rows of `MUTATIONS`.  (No claims.)"""

from __future__ import annotations

from typing import Final

_CHUNKS: Final = "translation::a_chat_client_gets_chunks"
_TURNS: Final = "conversations::a_conversation_has_one_account_and_one_id"

# fmt: off
ROWS: Final[tuple[tuple[str, str, str, str, str], ...]] = (
    ("cut_and_closed", "A stream that ends with our event leaves its connection open.",
     "        self.closes |= is_turn or error", "        self.closes = True or error",
     "long_silence::what_comes_later_is_told_in_the_stream"),
    # Sessions that nobody has named.
    ("conversation_unknown", "A conversation is a session where none is named.",
     'digest_parts(*scope, "conversation", begun) if begun else None', "None", _TURNS),
    ("conversation_uncached", "The upstream's cache is told of the session.",
     'if call.session is not None and "prompt_cache_key" not in made:', "if False:", _TURNS),
    ("empty_cache_key", "An empty cache key is none.",
     '_short_id(_checked(body, "prompt_cache_key", str) or "") or None,',
     '_short_id(_checked(body, "prompt_cache_key", str) or ""),',
     "conversations::an_empty_cache_key_is_as_good_as_none"),
    ("beginning_unbounded", "Only the first of a long text is read to know it again.",
     "kept.append(text[:left])", "kept.append(text)",
     "conversations::the_beginning_of_a_text_and_its_length_count"),
    ("socket_forgotten", "A WebSocket's turn goes on with the session of the turn before.",
     "exchange.socket.session = call.session", "pass",
     "conversations::a_turn_that_holds_only_what_is_new_goes_on_with_its_websocket"),
    ("unkept_response", "What a codex account made is asked of no other.",
     "owner = account.identity if is_kept else UNKEPT", "owner = account.identity",
     "earlier_responses::a_codex_accounts_response_is_asked_of_nobody"),
    # Chat answers.
    ("commentary_is_answer", "What is said on the way is no part of a streamed answer.",
     'elif member == "content" and index in self._comments:', "elif False:", _CHUNKS),
    ("messages_in_one_line", "Of several messages each is a paragraph.",
     "if self._spoke not in {None, part[0]}:", "if False:", _CHUNKS),
    ("call_without_name", "A call is opened once its id and name are known.",
     'if not (is_whole or ("call_id" in head and "name" in head)):', "if False:", _CHUNKS),
    ("one_unnumbered_item", "Items without a number are told apart by their ids.",
     "            if is_new and not found:\n", "            if False:\n", _CHUNKS),
    ("reasoning_twice", "Reasoning and its summary are not told both.",
     "if self._told_as.setdefault(index, name) != name:", "if False:", _CHUNKS),
    ("empty_finish", "An empty reason is no end.",
     'bool(_text_at(choice, "finish_reason"))', 'isinstance(choice.get("finish_reason"), str)',
     "chat_endings::a_body_that_ends_in_mid_text_has_failed"),
    ("older_end", "The older name of an end becomes the name that clients know.",
     'is_renamed = name == "response.done"', "is_renamed = False",
     "translation::a_responses_client_gets_repaired_events"),
    ("older_failure", "The older name of an end does not hide that it has failed.",
     '{"incomplete": "incomplete", "failed": "failed"}', '{"incomplete": "incomplete"}',
     "translation::a_responses_client_gets_repaired_events"),
    ("late_citation", "A citation that only the finished message has is told.",
     'if "annotations" in message and index not in self._cited:',
     'if "annotations" in message and index not in self._said:', _CHUNKS),
    ("citation_twice", "A citation is told once.",
     'if "annotations" in message and index not in self._cited:',
     'if "annotations" in message:', _CHUNKS),
    ("call_without_id", "A call without an id of the call goes by its own.",
     'call_id = _text_at(item, "call_id") or _label_at(item, "id") or f"call_{place}"',
     'call_id = _text_at(item, "call_id")', _CHUNKS),
    ("arguments_in_part", "Arguments of which a part came too early are told whole.",
     "                self._missed.add(index)\n", "                pass\n", _CHUNKS),
    ("late_text", "A text that only the end tells is told, if its message is known.",
     "is_known = any(name in self._indexes for name in names)", "is_known = False", _CHUNKS),
    ("late_call", "A call that only the end tells of is told, whatever was told before.",
     "            if is_all or is_known:\n", "            if is_all:\n", _CHUNKS),
    # What is said where there is nothing to say.
    ("no_ping", "A client that is idle is asked whether it is there.",
     "            self.start(self.frames.ping)\n", "            pass\n",
     "websocket_pings::an_idle_client_is_asked_every_30_seconds"),
    ("silent_head", "A stream's client hears of us before its upstream does speak.",
     "tell_at = exchange.silent_since + SILENCE_SECONDS_MAX if is_stream else math.inf",
     "tell_at = math.inf",
     "long_silence::the_head_and_comments_come_before_the_upstreams_head"),
    ("one_silence", "To the client the silence of several accounts is one.",
     "exchange.silent_since = min(exchange.silent_since, trio.current_time())",
     "exchange.silent_since = trio.current_time()",
     "long_silence::the_silence_of_several_accounts_is_one"),
    ("committed_elsewhere", "Who has its head is not served by somebody else.",
     "may_go_on &= not exchange.is_started", "may_go_on &= True",
     "long_silence::what_comes_later_is_told_in_the_stream"),
)
# fmt: on
