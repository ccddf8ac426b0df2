"""Single mistakes at routes, around them, and in the log: rows of `MUTATIONS`.  (No claims.)"""

from __future__ import annotations

from typing import Final

# fmt: off
ROWS: Final[tuple[tuple[str, str, str, str, str], ...]] = (
    ("tool_by_key", "A tool of Codex CLI's reaches no account with an API key.",
     "if call.obstacle if account.is_codex else call.is_codex_only:", "if False:",
     "codex_tools::a_tool_is_no_business_of_an_account_with_an_api_key"),
    ("tool_below_v1", "Tools of Codex CLI's are served below every base URL.",
     '    **{f"/v1{path}": route for route, path in TOOL_PATHS.items()},\n', "",
     "codex_tools::a_tool_of_codex_passes_to_the_byte"),
    ("tool_without_model", "A tool may leave its model to the upstream.",
     "    if model is None and may_be_absent:\n", "    if False:\n",
     "codex_tools::a_tool_may_leave_its_model_to_the_upstream"),
    ("image_model_listed", "A pool's list does not bar image models.",
     "    listing = dataclasses.replace(pool, models=None) if is_image else pool\n",
     "    listing = pool\n",
     "codex_tools::a_tool_may_leave_its_model_to_the_upstream"),
    ("search_unpinned", "A search's session is what its id says.",
     "    if unary_path == SEARCH_PATH:\n", "    if False:\n",
     "codex_tools::searches_of_one_session_go_to_one_account"),
    ("search_elsewhere", "A search goes where the turns of its session go.",
     "for session in filter(None, (call.session, call.search_session)):",
     "for session in filter(None, (call.session,)):",
     "codex_tools::a_search_goes_where_the_turns_of_its_session_go"),
    ("compact_translated", "A compaction goes to a ChatGPT account as it came.",
     "if call.is_native or call.is_unary or not self.account.is_codex:",
     "if call.is_native or not self.account.is_codex:",
     "codex_tools::a_compaction_passes_to_the_byte_to_accounts_of_both_types"),
)
# fmt: on
