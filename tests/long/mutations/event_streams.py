"""Single mistakes in the section EVENT STREAMS of pooler.py.  (No claims.)"""

from __future__ import annotations

from tests.long.mutations.apply import Rows

# fmt: off
ROWS: Rows = (
    ("listed_errors", "An error in a list of a 200 is no success.",
     "is_error",
     "objects_of(value.get('errors')) and (not value.keys() & _SUCCESS_FIELDS)", "False",
     "one_verdict::another_account_serves_and_the_first_is_left_out"),
    ("remarks_as_errors", "A remark beside an answer is no error.",
     "is_error", "objects_of(value.get('errors')) and (not value.keys() & _SUCCESS_FIELDS)",
     "objects_of(value.get('errors'))",
     "one_verdict::what_only_looks_like_an_error_is_a_response"),
    ("unread_end", "An end that a client cannot read is none.",
     "EventScanner._verified", "self._kind_of(value)", "kind",
     "upstream_excess::a_client_reads_one_terminal_event_whatever_comes"),
    ("empty_finish", "An empty reason is no end.",
     "EventScanner._kind_of_chunk", "text_at(choice, 'finish_reason')",
     "isinstance(choice.get('finish_reason'), str)",
     "chat_endings::a_body_that_ends_in_mid_text_has_failed"),
    ("two_stream_ids", "An event bears its stream_id once.",
     "with_stream_id", "'stream_id' in value", "False",
     "websocket_turns::a_stream_id_leaves_an_event_valid"),
    ("hidden_in_a_run", "Between two plain events no other one hides.",
     "EventScanner.take_run",
     "run.count(b'\\n') != event_count * (self._run_prefix.count(b'\\n') + 2)", "False",
     "sse_scanner::a_run_of_content_hides_no_other_event"),
    ("run_with_cr", "A carriage return may end an event, too.",
     "EventScanner.take_run", "b'\\r' in run", "False",
     "sse_scanner::a_run_of_content_hides_no_other_event"),
    ("notable_in_a_run", "What a Chat client waits for is no plain content.",
     "EventScanner.take_run", "_CHAT_NOTABLE.search(run)", "False",
     "sse_scanner::a_run_of_chat_content_ends_at_what_is_notable"),
)
