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
    ("escape_cut", "An escape is not cut in two.",
     "members_checked", "(len(piece) - len(piece.rstrip(b'\\\\'))) % 2", "False",
     "json_guard::wherever_a_text_is_cut_its_members_are_counted"),
    ("string_cut", "A piece may begin in a string.",
     "members_checked", "texts[is_inside::2]", "texts[::2]",
     "json_guard::wherever_a_text_is_cut_its_members_are_counted"),
    ("upstream_members", "An upstream's JSON has a bounded number of members.",
     "load_json", "check_members(raw, members_max)",
     "check_members(raw, 10 ** 9)",
     "upstream_json::each_bound_and_one_past_it"),
    ("long_chunk_name", "A long id is not said with every chunk.",
     "label_at", "text if len(text) <= SESSION_CHARS_MAX else ''", "text",
     "upstream_excess::a_long_name_is_not_said_with_every_chunk"),
)
