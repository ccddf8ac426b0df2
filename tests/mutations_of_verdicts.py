"""Single mistakes in what a failure is taken for: rows of `MUTATIONS`.  (No claims.)"""

from __future__ import annotations

from typing import Final

# fmt: off
VERDICTS: Final[tuple[tuple[str, str, str, str, str], ...]] = (
    ("firm_words", "An account's trouble is known by its word, whatever the status.",
     "        if firm in _FIRM:\n            return firm\n    if status:",
     "        if firm in _FIRM and not status:\n            return firm\n    if status:",
     "one_verdict::an_account_s_trouble_is_known_by_its_word"),
    ("number_in_code", "A number in `code` counts as that status.",
     "        return words.status if words.status < 500 or words.status in _BY_STATUS else 502\n",
     "        return 400\n", "one_verdict::a_number_counts_as_that_status"),
    ("error_as_success", "An error in a 200 is no success.",
     "        if is_error(told):\n            self.refuse_answer(told)\n", "",
     "one_verdict::an_error_in_a_200_is_no_success_for_the_client"),
    ("forbidden_for_ever", "An account that is refused again and again is left out.",
     "if health.forbidden_count >= FORBIDDEN_MAX:", "if False:",
     "one_verdict::refused_three_times_in_a_row_an_account_is_left_out"),
    ("forbidden_not_in_a_row", "A success between two refusals is noticed.",
     "        lease.health.forbidden_count = 0\n", "",
     "one_verdict::refused_three_times_in_a_row_an_account_is_left_out"),
    ("owner_s_words", "What an account's owner is told reaches no client.",
     "    if fault.effect in {Effect.REFUSED, Effect.FORBIDDEN}:\n        return fault.error\n",
     "    if fault.effect in {Effect.REFUSED, Effect.FORBIDDEN}:\n        return None\n",
     "one_verdict::an_account_s_words_are_not_told_in_a_stream_that_has_begun"),
    ("reached_unread", "The way in which a limit was reached is in the log.",
     'reached if is_told else ""', '""',
     "one_verdict::the_way_in_which_a_limit_was_reached_is_in_the_reason"),
    ("whole_not_streamed", "An answer in one piece becomes the events that were asked for.",
     "            self.whole = bytearray() if start in {b\"{\", b\"[\"} else None\n",
     "            self.whole = None\n",
     "answers_for_streams::an_answer_in_one_piece_becomes_a_stream"),
    ("secrets_in_reason", "What names an account or a secret is in no error of ours.",
     "if _MARKUP.search(text) or _PRIVATE.search(text):", "if _MARKUP.search(text):",
     "answers_for_streams::a_reason_that_is_not_for_clients_is_not_told"),
    ("in_our_name", "An upstream's code of ours does not end a stream that has begun.",
     "return error if error.is_renamed else None", "return None",
     "one_verdict::a_stream_that_has_begun_does_not_end_in_the_pooler_s_name"),
)
