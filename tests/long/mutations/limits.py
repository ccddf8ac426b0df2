"""Single mistakes in the section LIMITS of pooler.py.  (No claims.)"""

from __future__ import annotations

from tests.long.mutations.apply import Rows

# fmt: off
ROWS: Rows = (
    ("weeks_disbelieved", "A reset is believed up to 32 days.",
     "RESET_SECONDS_MAX", "32 * 24 * HOUR", "8 * 24 * HOUR",
     "limits_of_accounts::a_reset_weeks_away_is_honoured_and_reported_and_the_account_tried_before_it"),
    ("name_of_codex", "An upstream with an API key is told a name that is not Codex CLI's.",
     "API_AGENT", "f'pooler/{VERSION}'", "f'codex-pooler/{VERSION}'",
     "own_name::an_account_with_an_api_key_is_sent_the_short_name"),
    ("names_forgotten", "The names of a catalogue are searched once.",
     "NAMES_KNOWN_MAX", "32000", "0",
     "catalogues::the_names_of_a_catalogue_are_searched_for_those_of_people_once"),
    ("upstream_depth", "An upstream's JSON may be just so deep.",
     "JSON_DEPTH_MAX", "500", "5000",
     "one_terminal_event::a_deep_end_is_one_end"),
    ("budget_share", "No holder has more than is left for the others.",
     "Budget.grow", "spare < 0", "left < 0",
     "shares::a_budget_gives_nobody_more_than_is_left_for_the_others"),
    ("account_share", "A user of a budget gets no more than it could take for the others.",
     "Budget.grow", "user is not None", "False",
     "shares::what_one_key_does_not_read_leaves_room_for_another_s_answers"),
)
