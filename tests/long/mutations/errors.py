"""Single mistakes in the section ERRORS of pooler.py.  (No claims.)"""

from __future__ import annotations

from tests.long.mutations.apply import Rows

# fmt: off
ROWS: Rows = (
    ("code_of_ours", "An upstream that fails does not speak in the pooler's name.",
     "PoolerError.is_renamed", "self.upstream_code not in ERRORS", "True",
     "hostile_answers::an_upstream_that_fails_does_not_speak_in_the_poolers_name"),
)
