"""Single mistakes in sessions and answers, as rows of `Mutation` in mutations.py.  (No claims.)"""

from __future__ import annotations

from typing import Final

_CHUNKS: Final = "translation::a_chat_client_gets_chunks"
_TURNS: Final = "conversations::a_conversation_has_one_account_and_one_id"

# fmt: off
ROWS: Final[tuple[tuple[str, str, str, str, str], ...]] = (
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
     'elif not ("call_id" in head and "name" in head):', "elif False:", _CHUNKS),
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
    # What is said where there is nothing to say.
    ("no_ping", "A client that is idle is asked whether it is there.",
     "            self.start(self.frames.ping)\n", "            pass\n",
     "websocket_pings::an_idle_client_is_asked_every_30_seconds"),
)
# fmt: on
