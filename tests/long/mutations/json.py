"""Single mistakes in the section JSON of pooler.py.  (No claims.)"""

from __future__ import annotations

from tests.long.mutations.apply import Rows

# fmt: off
ROWS: Rows = (
    ("parsed_depth", "What was parsed may be just so deep, too.",
     "is_deeper", "range(depth_max + 1)", "range(depth_max + 2)",
     "json_guard::depth_at_the_limit_and_one_past_it"),
    ("cheap_count", "What a list begins counts in the cheap count.",
     "count_beginnings", "len(raw.translate(None, _NOT_BEGINNINGS))",
     "raw.count(b',')", "json_guard::the_cheap_count_lets_pass_what_the_whole_guard_does"),
    ("recursion_is_a_bug", "What the parser cannot nest is refused like what is nested too deeply.",
     "parse_shallow", "RecursionError", "MemoryError",
     "json_guard::what_is_nested_without_end_is_refused_at_once"),
    ("quotes_uncounted", "Strings are counted before a list of them is made.",
     "check_members", "raw.count(b'\"') - raw.count(b'\\\\') > quotes_max", "False",
     "json_guard::quotes_are_counted_before_a_list_of_strings_is_made"),
    ("upstream_members", "An upstream's JSON has a bounded number of members.",
     "load_json", "check_members(raw, members_max)",
     "check_members(raw, 10 ** 9)",
     "upstream_json::each_bound_and_one_past_it"),
    ("long_chunk_name", "A long id is not said with every chunk.",
     "label_at", "text if len(text) <= SESSION_CHARS_MAX else ''", "text",
     "upstream_excess::a_long_name_is_not_said_with_every_chunk"),
)
