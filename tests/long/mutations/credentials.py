"""Single mistakes in the section CREDENTIALS of pooler.py.  (No claims.)"""

from __future__ import annotations

from tests.long.mutations.apply import Rows

# fmt: off
ROWS: Rows = (
    ("proxy_spends", "Only the token endpoint's own error marks a login spent.",
     "classify_refresh", "status in _SPENT_STATUSES and _first_text(_SPENT_CODES, *named)",
     "status == 401 or (status and _first_text(_SPENT_CODES, *named))",
     "saving_is_sure::an_answer_that_is_not_the_endpoints_own_spends_no_login"),
)
