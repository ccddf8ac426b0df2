"""Single mistakes in the section CREDENTIALS of pooler.py.  (No claims.)"""

from __future__ import annotations

from tests.long.mutations.apply import Rows

# fmt: off
ROWS: Rows = (
    ("later_by_our_clock", "Which version of a login is the later one is told by its issuer.",
     "is_later", "own is not None and others is not None and own != others", "False",
     "token_refresh::what_was_left_is_found_by_the_clock_of_the_issuer"),
    ("proxy_spends", "Only the token endpoint's own error marks a login revoked.",
     "classify_refresh",
     "status in _REVOKED_STATUSES and first_text(_REVOKED_CODES, *_codes_of(value))",
     "status == 401 or (status and first_text(_REVOKED_CODES, *_codes_of(value)))",
     "saving_is_sure::a_response_that_is_not_the_endpoint_s_own_revokes_no_login"),
    ("pending_for_ever", "A login that was denied is not waited for.",
     "classify_poll", "word in code", "not word",
     "device_login::what_ends_it_is_said_and_nothing_is_left"),
    ("wall_is_pending", "A web page does not mean that nobody has entered the code.",
     "classify_poll", "is_web_page(body) or status in {200, 408} or status >= 500",
     "status in {200, 408} or status >= 500",
     "device_login::a_poll_that_fails_is_repeated_later_and_later_and_said_once"),
    ("wild_interval", "An interval is taken within bounds.",
     "parse_device_code", "not POLL_SECONDS_MIN <= interval <= POLL_SECONDS_MAX", "False",
     "device_login::it_asks_as_often_as_it_is_told_within_bounds"),
    ("other_clock", "An end by another clock is not believed.",
     "parse_device_code", "not DEVICE_SECONDS_MIN <= left <= DEVICE_SECONDS_MAX", "False",
     "device_login::a_code_expires_when_the_issuer_says_within_bounds"),
    ("escapes_shown", "Nothing that a terminal obeys is shown.",
     "parse_device_code",
     "first_text(_USER_CODE, value.get('user_code'), value.get('usercode'))",
     "value.get('user_code') or value.get('usercode')",
     "device_login::what_ends_it_is_said_and_nothing_is_left"),
    ("api_key_lost", "An API key in an auth.json outlives a login.",
     "new_auth_file", "api_key if isinstance(api_key, str) else None", "None",
     "device_login::the_rest_of_a_login_gives_way_and_its_api_key_stays"),
    ("over_anything", "What is no login is not replaced by one.",
     "may_replace", "is_rest or not _OF_AUTH_FILE.isdisjoint(value)", "True",
     "device_login::what_is_no_login_is_left_alone"),
    ("one_workspace_one_person", "Two people of one workspace are two.",
     "Holder.is_same", "(self.account_id, self.user) == (other.account_id, other.user)",
     "self.account_id == other.account_id",
     "device_login::another_account_and_the_same_twice_are_said"),
)
