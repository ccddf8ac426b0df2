"""Single mistakes in the section RECORDS of pooler.py.  (No claims.)"""

from __future__ import annotations

from tests.long.mutations.apply import Rows

# fmt: off
ROWS: Rows = (
    ("codes_without_end", "An upstream's codes are counted within a bound.",
     "Ledger.counted_code", "len(codes) < UPSTREAM_CODES_MAX", "True",
     "operators::counters_have_a_bound_whatever_an_upstream_calls_its_errors"),
)
