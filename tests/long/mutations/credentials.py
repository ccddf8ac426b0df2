"""Single mistakes in the section CREDENTIALS of pooler.py.  (No claims.)"""

from __future__ import annotations

from tests.long.mutations.apply import Rows

# fmt: off
ROWS: Rows = (
    ("proxy_spends", "Only the token endpoint's own error marks a login revoked.",
     "classify_refresh",
     "status in _REVOKED_STATUSES and first_text(_REVOKED_CODES, *_codes_of(value))",
     "status == 401 or (status and first_text(_REVOKED_CODES, *_codes_of(value)))",
     "saving_is_sure::a_response_that_is_not_the_endpoint_s_own_revokes_no_login"),
)
