"""Single mistakes in the section NOTICES of pooler.py.  (No claims.)"""

from __future__ import annotations

from tests.long.mutations.apply import Rows

# fmt: off
ROWS: Rows = (
    ("notice_in_the_clear", "A notice goes over TLS where `notify` says https.",
     "Notices.reload",
     "contexts.get(None) if self.notify and self.notify.url.is_tls else None", "None",
     "tls_paths::nothing_is_sent_before_a_certificate_is_right"),
    ("told_again", "Each change is told once.",
     "Notices.changed", "change.is_trouble != (about in self.known)", "True",
     "notices::each_change_is_told_once"),
    ("notices_without_end", "Changes that wait are bounded.",
     "Notices.changed", "len(self.waiting) >= NOTICES_WAITING_MAX", "False",
     "notices::more_changes_than_there_is_room_for_are_counted"),
    ("untold", "What reached nobody is told later.",
     "Notices.tell", "self.take_back(changes, more_count)", "pass",
     "notices::what_reached_nobody_is_told_later"),
    ("webhook_may_fail", "A webhook that did not take a notice is in the log.",
     "Notices.send", "'' if 200 <= status < 300 else f'status {status}'", "''",
     "notices::a_failure_is_logged_once_until_it_changes"),
)
