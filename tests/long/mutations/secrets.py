"""Single mistakes in the section SECRETS of pooler.py.  (No claims.)"""

from __future__ import annotations

from tests.long.mutations.apply import Rows

# fmt: off
ROWS: Rows = (
    ("client_header_goes_on", "Only listed headers of a client go on.",
     "FORWARDED_TO_UPSTREAM", "{'accept', 'openai-beta'}", "{'accept', 'openai-beta', 'cookie'}",
     "secrets_never_leave::an_upstream_gets_its_own_key_and_the_listed_headers"),
    ("set_cookie_comes_back", "Only listed headers of an upstream come back.",
     "FORWARDED_TO_CLIENT",
     "'content-type openai-model openai-processing-ms openai-version x-should-retry'",
     "'set-cookie content-type openai-model openai-processing-ms openai-version x-should-retry'",
     "secrets_never_leave::what_an_upstream_sends_besides_its_response_is_not_passed_on"),
    ("plan_comes_back", "Codex CLI is not told the plan of an account.",
     "NATIVE_TO_CLIENT", "'x-codex-turn-state x-reasoning-included x-oai-request-id cf-ray'",
     "'x-codex-turn-state x-codex-plan-type x-reasoning-included x-oai-request-id cf-ray'",
     "native_headers::an_answer_s_head_tells_nothing_of_the_account"),
    ("etag_of_an_answer", "No answer names a version of a list that has none.",
     "NATIVE_TO_CLIENT", "'x-codex-turn-state x-reasoning-included x-oai-request-id cf-ray'",
     "'x-codex-turn-state x-models-etag x-reasoning-included x-oai-request-id cf-ray'",
     "catalogues::no_response_names_a_version_of_a_list_that_has_none"),
)
