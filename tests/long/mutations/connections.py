"""Single mistakes in the section CONNECTIONS of pooler.py.  (No claims.)"""

from __future__ import annotations

from tests.long.mutations.apply import Rows

# fmt: off
ROWS: Rows = (
    ("closed_socket_waited_for", "A socket that is closed here is never waited for.",
     "read_socket", "source.fileno() >= 0", "True",
     "closed_sockets::a_closed_socket_is_at_its_end_however_often_it_is_read"),
    ("closed_while_read", "Who reads a socket while it is closed hears of it.",
     "Connection.receive", "(*BROKEN, OSError)",
     "(trio.BrokenResourceError, OSError)",
     "closed_sockets::who_reads_a_socket_while_it_is_closed_hears_of_it"),
    ("bare_lf_in_a_head", "A bare LF ends no line of a head.",
     "Connection.take_head", "_BARE_LF.search(self.buffer, self.searched)", "False",
     "http_syntax::a_bare_line_feed_is_refused_before_the_head_is_whole"),
    ("hang_up", "A client that leaves ends its request.",
     "ClientConnection.check_presence",
     ("self.is_gone = True\n"
     "self.scope.cancel()"), "pass",
     "cancellation::a_client_that_leaves_ends_its_request_at_once"),
    ("all_at_once", "What one connection sends ahead is not answered all at once.",
     "ClientConnection.read_head", "await trio.lowlevel.checkpoint()", "pass",
     "no_stall::no_request_without_a_body_holds_the_loop_for_long"),
    ("body_bytes", "A body may have just so many bytes.",
     "ClientConnection.read_body", "len(body) + len(piece) > limits.body_bytes_max",
     "len(body) + len(piece) >= limits.body_bytes_max",
     "limits_hold::a_body_has_so_many_bytes"),
    ("body_by_its_word", "A body too long by its own word is not read.",
     "check_body_head", "(head.framing.length or 0) > bytes_max", "False",
     "limits_hold::a_body_too_long_by_its_own_word_is_not_read"),
)
