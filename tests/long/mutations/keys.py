"""Single mistakes in the section KEYS of pooler.py.  (No claims.)"""

from __future__ import annotations

from tests.long.mutations.apply import Rows

# fmt: off
ROWS: Rows = (
    ("secrets_by_equality", "Secrets are compared in constant time.",
     "match_secret", "hmac.compare_digest(digest, entry.digest)", "digest == entry.digest",
     "keys::time_tells_neither_which_secret_matched_nor_how_much_of_it"),
    ("first_secret_ends_it", "The time does not show which secret matched.",
     "match_secret", "match = entry", "return entry",
     "keys::time_tells_neither_which_secret_matched_nor_how_much_of_it"),
    ("no_secret_is_quicker", "The time does not show that no secret was presented.",
     "match_secret", "secret = (presented or '').encode('latin-1')",
     ("if not presented:\n"
     "    return None\n"
     "secret = presented.encode('latin-1')"),
     "keys::time_tells_neither_which_secret_matched_nor_how_much_of_it"),
    ("requests_per_minute", "A key has so many requests a minute.",
     "KeyUse.check_minute",
     "len(self.minute) >= requests_max",
     "len(self.minute) > requests_max",
     "keys::requests_per_minute_slide"),
    ("key_concurrent", "A key has so many requests at once.",
     "KeyUse.admit", "self.in_flight_count >= key.concurrent",
     "self.in_flight_count > key.concurrent",
     "keys::a_key_has_so_many_requests_at_once"),
    ("tokens_per_day", "A key has so many tokens a day.",
     "KeyUse.check_tokens", "self.day_tokens < key.tokens_per_day",
     "self.day_tokens <= key.tokens_per_day",
     "keys::tokens_per_day_end_at_midnight_utc"),
)
