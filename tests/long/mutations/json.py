"""Single mistakes in the section JSON of pooler.py.  (No claims.)"""

from __future__ import annotations

from tests.long.mutations.apply import Rows

# fmt: off
ROWS: Rows = (
    ("json_depth", "JSON may be just so deep.",
     "_excess_outside_strings", "depth > depth_max", "depth > depth_max + 1",
     "json_guard::depth_at_the_limit_and_one_past_it"),
    ("parsed_depth", "What was parsed may be just so deep, too.",
     "is_deeper", "range(depth_max)", "range(depth_max + 1)",
     "json_guard::depth_at_the_limit_and_one_past_it"),
    ("cheap_count", "What a list begins counts in the cheap count.",
     "count_beginnings", "len(raw.translate(None, _NOT_BEGINNINGS))",
     "raw.count(b',')", "json_guard::the_cheap_count_lets_pass_what_the_whole_guard_does"),
    ("closers_counted", "Brackets that only close are not counted one by one.",
     "_excess_outside_strings", "2 * openers < len(brackets)", "False",
     "longest_step::no_brackets_that_only_close_take_long"),
    ("upstream_members", "An upstream's JSON has a bounded number of members.",
     "load_json", "json_excess(raw, JSON_DEPTH_MAX, members_max)",
     "json_excess(raw, JSON_DEPTH_MAX, 10 ** 9)",
     "upstream_json::each_bound_and_one_past_it"),
    ("long_chunk_name", "A long id is not said with every chunk.",
     "label_at", "text if len(text) <= SESSION_CHARS_MAX else ''", "text",
     "upstream_excess::a_long_name_is_not_said_with_every_chunk"),
)
