"""Single mistakes in the section RECORDS of pooler.py.  (No claims.)"""

from __future__ import annotations

from tests.long.mutations.apply import Rows

# fmt: off
ROWS: Rows = (
    ("codes_without_end", "An upstream's codes are counted within a bound.",
     "Ledger.counted_code", "len(codes) < UPSTREAM_CODES_MAX", "True",
     "operators::counters_have_a_bound_whatever_an_upstream_calls_its_errors"),
    ("hours_without_end", "Sums by time are kept within a bound.",
     "_sums_of", "not period - length < other < period", "False",
     "sums::sums_have_bounds_whatever_comes"),
    ("keys_without_end", "The keys that are counted by day have a bound.",
     "Ledger.add_to_periods", "key in self.days or len(self.days) < KEYS_COUNTED_MAX", "True",
     "sums::sums_have_bounds_whatever_comes"),
    ("who_left_has_failed", "A client that leaves is no failure.",
     "_tally_of", '(None, "client_gone")', "(None,)",
     "sums::a_client_that_leaves_is_no_failure"),
    ("cached_is_credit", "Cached tokens are a part of the input.",
     "Price.cost_of", 'min(tokens["cached_tokens"], tokens["input_tokens"])',
     'tokens["cached_tokens"]',
     "sums::more_cached_tokens_than_input_are_no_credit"),
    ("another_account_goes_on", "An account with another key forgets what was saved of it.",
     "Lasting.restore",
     'object_at(saved["accounts"], name).get("identity") == account.identity.hex()',
     'name in saved["accounts"]',
     "state::an_account_that_is_another_now_forgets_its_state"),
    ("future_believed", "What a state file says of the future is not believed.",
     "Lasting.is_past", "unix <= self.unix_now + STATE_AHEAD_SECONDS_MAX", "True",
     "state::nothing_from_the_future_is_believed"),
    ("unknown_model_saved", "Names that only clients have made up are not saved.",
     "Lasting.save_account", "name in named", "True",
     "state::no_secret_and_no_name_of_a_client_is_in_the_file"),
    ("tried_when_announced", "A cooldown that was saved is tried no later than any other.",
     "Lasting.restore_cooldown",
     "min(cooldown.until, self.at(retry), self.now + UNTRIED_SECONDS_MAX)", "cooldown.until",
     "state::a_cooldown_is_tried_as_soon_as_ever"),
    ("nan_is_for_ever", "A state file with a number that is none is broken.",
     "parse_state", "parse_shallow(json.loads, raw.decode(), JSON_DEPTH_MAX)",
     "load_json(raw, STATE_MEMBERS_MAX)",
     "state::a_broken_file_is_refused_as_a_whole"),
)
