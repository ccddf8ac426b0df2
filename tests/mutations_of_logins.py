"""Mistakes about logins and the configuration: rows for `tests.mutations`.  (No claims.)"""

from __future__ import annotations

from typing import Final

# fmt: off
ROWS: Final[tuple[tuple[str, str, str, str, str], ...]] = (
    ("asked_without_room", "Nothing is asked for that could not be saved.",
     "            await self.files.run(math.inf, make_room, login.path, byte_count)\n",
     "            pass\n",
     "saving_is_sure::on_a_full_disk_nobody_is_asked_and_the_login_is_kept"),
    ("folder_sync_needed", "A folder that cannot be synced at all is no failure.",
     "        if error.errno not in _NO_FOLDER_SYNC:\n            raise\n", "        raise\n",
     "saving_is_sure::a_folder_that_cannot_be_synced_at_all_is_no_failure"),
    ("clock_believed", "A token just issued is used whatever our clock says.",
     "        self.clock_lead = clock_lead(", "        self.clock_lead = 0 * clock_lead(",
     "saving_is_sure::a_token_just_issued_is_used_whatever_the_clock_says"),
    ("proxy_spends", "Only the token endpoint's own error marks a login spent.",
     "    is_spent = status in _SPENT_STATUSES and", "    is_spent = status == 401 or status and",
     "saving_is_sure::an_answer_that_is_not_the_endpoints_own_spends_no_login"),
    ("check_takes_no_lock", "`check` takes the lock of a login.",
     "            lock = try_lock(path)\n", "            break\n",
     "saving_is_sure::check_finds_a_lock_of_another_user"),
    ("variable_is_secret", "A variable that nobody fills in is no secret.",
     "    if _VARIABLE.fullmatch(secret):\n", "    if False:\n",
     "config_doubts::a_secret_that_nobody_filled_in_is_refused_at_its_path"),
    ("told_twice", "Each problem of the configuration is told once.",
     "        if not value.get(name) and prefix + name not in self.refused:\n",
     "        if not value.get(name):\n",
     "config_doubts::each_problem_is_told_once_and_at_its_place"),
    ("line_unmasked", "A line of pools.json that is shown holds no secret.",
     '    return word if is_known else "*" * len(word)\n', "    return word\n",
     "config_doubts::a_line_that_is_shown_holds_no_secret"),
    ("undoubted", "What cannot be meant is told at the start and by `check`.",
     "warnings=(*config.warnings, *doubts))", "warnings=config.warnings)",
     "config_doubts::check_and_the_start_tell_of_what_cannot_be_meant"),
    ("reload_says_nothing", "A reload says what it has changed.",
     '"changed": changes or "nothing"}', '"changed": "nothing"}',
     "config_doubts::the_log_of_a_reload_says_what_changed_or_that_nothing_did"),
    ("endpoint_s_cause", "Operators find why a token endpoint was not reached.",
     "            login.unreached = failed.cause\n", "",
     "connect_causes::operators_find_why_a_login_cannot_be_renewed"),
    ("endpoint_s_cause_for_ever", "That it was not reached is over when it is.",
     "        login.unreached = None\n        try:\n", "        try:\n",
     "connect_causes::operators_find_why_a_login_cannot_be_renewed"),
)
