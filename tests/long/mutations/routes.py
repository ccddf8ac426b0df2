"""Single mistakes in the section ROUTES of pooler.py.  (No claims.)"""

from __future__ import annotations

from tests.long.mutations.apply import Rows

# fmt: off
ROWS: Rows = (
    ("tool_below_v1", "Tools of Codex CLI's are served below every base URL.",
     "ROUTES",
     "Route('codex_search', '/v1/alpha/search', POST, CODEX_KEY, 'accept_call')",
     "Route('codex_search', '/v1/alpha/searches', POST, CODEX_KEY, 'accept_call')",
     "codex_tools::a_tool_of_codex_passes_to_the_byte"),
    ("loopback_everywhere", "Only /mcp takes loopback origins.",
     "is_origin_allowed",
     "route.path == '/mcp' and _LOOPBACK_ORIGIN.fullmatch(origin)",
     "_LOOPBACK_ORIGIN.fullmatch(origin)",
     "callers::a_page_of_this_machine_may_use_mcp"),
    ("loopback_alike", "What only looks like a loopback origin is none.",
     "is_origin_allowed", "_LOOPBACK_ORIGIN.fullmatch", "_LOOPBACK_ORIGIN.match",
     "callers::a_page_that_only_looks_like_it_may_not"),
    ("version_made_up", "A version of Codex CLI that cannot exist yet is ignored.",
     "is_version_plausible", "minor <= our_minor + CODEX_MINORS_AHEAD_MAX", "True",
     "catalogues::a_client_s_newer_version_is_sent_from_then_on"),
)
