"""Single mistakes in mcp_server.py.  (No claims.)"""

from __future__ import annotations

from tests.long.mutations.apply import Rows

# fmt: off
ROWS: Rows = (
    ("mcp_words", "A client's words are cut and disarmed for an operator's model.",
     "word", "name[:WORD_CHARS_MAX]", "name",
     "mcp::a_model_of_the_clients_own_making_is_shortened_and_disarmed"),
    ("mcp_reason", "A reason that quotes an upstream is cut and disarmed as well.",
     "explain_routing", "sentence(row['reason'])", "row['reason']",
     "mcp::a_reason_with_an_upstream_s_words_is_shortened_and_disarmed"),
    ("mcp_outcome", "A client that left is not called an error.",
     "outcome", "{None: 'ok', 'client_gone': 'aborted'}", "{None: 'ok'}",
     "mcp"),
    ("snapshot_leak", "A member that is not listed stays private.",
     "visible", "{name: visible(value[name], name) for name in names if name in value}",
     "{name: visible(value[name], name) for name in value}",
     "operator_pages::a_new_member_stays_private_at_every_level"),
    ("admin_not_escaped", "No name changes the page.",
     "escaped", "html.escape(printable(text))", "printable(text)",
     "operator_pages::no_name_changes_the_page"),
    ("result_not_checked", "A snapshot of another shape shows nothing.",
     "run_tool", "not fits(result, tool.gives)", "False",
     "mcp::a_snapshot_of_another_shape_is_a_bug_that_reveals_nothing"),
    ("unknown_argument", "An argument that the schema lacks is refused.",
     "wrong_arguments", "arguments.keys() <= members.keys()", "True",
     "mcp::a_wrong_argument_is_named_with_what_it_may_be_and_never_repeated"),
    ("time_without_a_zone", "A time says which zone it is in.",
     "instant", "time.timestamp() if time.tzinfo else None", "time.timestamp()",
     "mcp::a_wrong_argument_is_named_with_what_it_may_be_and_never_repeated"),
    ("requests_before_since", "Requests before `since` are left out.",
     "list_request_logs", "request['at'] >= since", "True",
     "mcp::request_logs"),
    ("any_is_a_name", "`any` selects by status only: a pool may bear that name.",
     "list_request_logs", "arguments[name] != members[name]['default']",
     "arguments[name] not in ('', 'any')",
     "mcp::request_logs"),
    ("alias_of_another_pool", "An alias is shown as it is served in the selected pool.",
     "model_rows", "pool in ('', meaning[0])", "True",
     "mcp::an_alias_is_served_like_the_model_that_it_means_in_each_pool"),
    ("advice_unclean", "Advice is cleaned like all other text.",
     "condition_facts", "sentence(account['advice'], ADVICE_CHARS_MAX)", "account['advice']",
     "mcp::what_an_upstream_may_have_chosen_is_disarmed"),
)
