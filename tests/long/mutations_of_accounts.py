"""Single mistakes at limits, and at what accounts lack: rows of `MUTATIONS`.  (No claims.)"""

from __future__ import annotations

from typing import Final

_LIMITS: Final = "limits_of_accounts::"
_LACKS: Final = "what_accounts_lack::"

# fmt: off
ROWS: Final[tuple[tuple[str, str, str, str, str], ...]] = (
    ("limit_s_name", "A limit is named after its upstream's name of a model.",
     "        family = self.families.get(model_of_limit(self.names.get(model, model)))\n",
     "        family = self.families.get(model_of_limit(model))\n",
     "limits_of_accounts::a_model_s_own_limit_is_known_by_its_upstream_s_name"),
    ("weeks_disbelieved", "A reset is believed up to 32 days.",
     "_limit(32 * 24 * HOUR, 60,", "_limit(8 * 24 * HOUR, 60,",
     _LIMITS + "a_reset_of_weeks_is_believed_and_told_and_tried_meanwhile"),
    ("usage_is_pace", "A used-up plan is no matter of seconds.",
     "    is_throttle = not _USAGE_WORDS.search(words.code)\n", "    is_throttle = True\n",
     _LIMITS + "only_a_throttle_without_a_hint_is_short"),
    ("fullest_window", "Without a reset a plan's limit lasts as its fullest window.",
     "return max(running).ends_at - now if running else None", "return None",
     _LIMITS + "a_plan_s_limit_without_a_reset_lasts_as_its_fullest_window"),
    ("reached_untold", "The log says in which way a limit was reached.",
     'reason=fault.reason if is_told else f"{fault.reason} {said.reached}"', "reason=fault.reason",
     _LIMITS + "the_way_in_which_a_limit_was_reached_is_in_the_log"),
    ("one_model_rests_all", "A limit of one model is that model's.",
     "        effect=Effect.MODEL_LIMITED if family else Effect.LIMITED,\n",
     "        effect=Effect.LIMITED,\n",
     _LIMITS + "a_model_s_own_limit_rests_that_model_alone"),
    ("model_untried", "A limit of one model is tried now and then.",
     "        return self.is_over(now) or (now >= self.probe_at and not self.is_probing)\n",
     "        return self.is_over(now)\n",
     _LIMITS + "a_model_s_own_limit_rests_that_model_alone"),
    ("plan_bars_all", "A used-up plan bars no model whose own limit has room.",
     "[self.whole] if self.has_own_room(model, now) else [self.whole, self.plan]",
     "[self.whole, self.plan]",
     _LIMITS + "a_used_up_plan_bars_no_model_whose_own_limit_has_room"),
    ("moment_unwaited", "A session waits a moment for its own account.",
     "        if self.roster.returns_at(call, waiter.tried, now) <= waiter.deadline:\n",
     "        if False:\n",
     _LIMITS + "a_session_waits_a_moment_for_its_own_account"),
    ("waited_for_ever", "A throttle that goes on is waited for once.",
     "return is_own and is_first and roster", "return is_own and roster",
     _LIMITS + "a_throttle_that_goes_on_is_waited_for_once"),
    ("route_passed_on", "An upstream without the route is passed over.",
     "    if is_own_status and _lacks_route(status, value, words):\n", "    if False:\n",
     _LACKS + "an_upstream_without_the_route_is_passed_over"),
    ("route_of_a_cut_body", "What a body says that has not come whole nobody knows.",
     "    is_own_status = is_whole and ", "    is_own_status = ",
     _LACKS + "an_answer_that_is_cut_is_no_lacking_route"),
    ("route_of_an_item", "What an API says of a request is no lacking route.",
     "    return not is_own or _names_no_route(words)\n", "    return True\n",
     _LACKS + "what_an_api_says_of_a_request_is_no_lacking_route"),
    ("model_s_cause", "A model that no account can use is not one that the key may not use.",
     "                return lacking_model(block.reason.partition(\" \")[2])\n",
     "                return unknown_model(call.pool, call.key, ())\n",
     _LACKS + "a_model_that_no_account_can_use_is_not_one_that_the_key_may_not_use"),
    ("edge_rests_all", "A page of an edge is no account's limit.",
     "    if _is_of_an_edge(status, headers, value):\n", "    if False:\n",
     _LACKS + "an_edge_that_counts_addresses_puts_no_account_to_rest"),
)
# fmt: on
