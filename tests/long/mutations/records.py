"""Single mistakes in the section RECORDS of pooler.py.  (No claims.)"""

from __future__ import annotations

from tests.long.mutations.apply import Rows

# fmt: off
ROWS: Rows = (
    ("codes_without_end", "An upstream's codes are counted within a bound.",
     "Ledger.counted_code", "len(known) < UPSTREAM_CODES_MAX", "True",
     "operators::counters_have_a_bound_whatever_an_upstream_calls_its_errors"),
    ("snapshot_leak", "A member that is not listed stays private.",
     "_allowed", "{name: _allowed(value[name], name) for name in names if name in value}",
     "{name: _allowed(value[name], name) for name in value}",
     "operator_pages::a_new_member_stays_private_at_every_level"),
    ("admin_not_escaped", "No name changes the page.",
     "_escaped", "html.escape(_visible(text))", "_visible(text)",
     "operator_pages::no_name_changes_the_page"),
)
