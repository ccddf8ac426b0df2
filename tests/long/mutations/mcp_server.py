"""Single mistakes in mcp_server.py.  (No claims.)"""

from __future__ import annotations

from tests.long.mutations.apply import Rows

# fmt: off
ROWS: Rows = (
    ("mcp_words", "A client's words are cut and disarmed for an operator's model.",
     "word", "name[:WORD_CHARS_MAX]", "name",
     "mcp::a_model_of_the_clients_own_making_is_shortened_and_disarmed"),
    ("mcp_outcome", "A client that left is not called an error.",
     "outcome", "'aborted' if code == 'client_gone' else 'error'", "'error'",
     "mcp"),
)
