"""Single mistakes in the section LOG of pooler.py.  (No claims.)"""

from __future__ import annotations

from tests.long.mutations.apply import Rows

# fmt: off
ROWS: Rows = (
    ("slow_reader", "Who reads slowly gets all lines at the end.",
     "LogWriter.__exit__", "before != self.byte_count", "before == -1",
     "log_writer::who_reads_slowly_gets_every_line_at_the_end"),
    ("log_blocks", "The log is written by a thread of its own.",
     "LogWriter.put",
     ("if len(self.lines) < LOG_LINES_MAX:\n"
     "    self.lines.append(line)\n"
     "    self.changed.notify()\n"
     "else:\n"
     "    self.dropped_count += 1"),
     ("while len(self.lines) >= 100:\n"
     "    self.changed.wait(1)\n"
     "if len(self.lines) < LOG_LINES_MAX:\n"
     "    self.lines.append(line)\n"
     "    self.changed.notify()\n"
     "else:\n"
     "    self.dropped_count += 1"),
     "nothing_blocks::a_log_that_nobody_reads_stops_nothing"),
    ("terminal_commands", "What others have named is no command to a terminal.",
     "printable", "text.encode('unicode_escape').decode('ascii')", "text",
     "terminal_words::no_event_is_a_command_to_the_terminal"),
    ("closed_terminal", "A server ends with the window of its terminal.",
     "serve_with_signals", "os.isatty(STDERR) is is_at_terminal", "True",
     "terminal::a_closed_terminal_ends_the_server"),
    ("words_into_pipe", "Without a terminal the log is JSON.",
     "serve_logged", "(log_form is None and sys.stderr.isatty())", "log_form is None",
     "terminal::a_pipe_gets_json_and_text_if_it_is_wanted"),
    ("no_color", "Colours can be refused.",
     "takes_colours", "os.environ.get('NO_COLOR')", "False",
     "terminal_words::colours_are_for_terminals_whose_owner_wants_them"),
    ("wide_line", "A request's line is cut to the terminal.",
     "request_line", "columns - len(others) - 2", "columns",
     "terminal_words::a_long_line_is_cut_in_the_middle"),
    ("said_twice", "What the introduction has shown is not repeated.",
     "TerminalForm.__call__", "self.introduced.pop(fields['account'], '') == fields['status']",
     "False", "terminal_words::what_was_introduced_is_not_repeated"),
    ("other_day", "A time on another day has its date.",
     "_in_words", "moment.date() == at.date()", "True",
     "terminal_words::a_time_on_another_day_has_its_date"),
    ("full_disk_uncounted", "Lines that stderr does not take are counted.",
     "LogWriter.write", "min(raw.count(b'\\n'), line_count)", "0",
     "log_writer::lines_lost_on_a_full_disk_are_reported_once_there_is_room"),
    ("torn_line", "A cut line ends before the next one.",
     "LogWriter.write",
     ("if self.is_torn:\n"
     "    raw = b'\\n' + raw"),
     ("if False:\n"
     "    raw = b'\\n' + raw"),
     "log_writer::a_line_that_was_cut_harms_no_other"),
    ("stderr_not_waiting", "A stderr that does not wait loses nothing.",
     "LogWriter.write_some", "BlockingIOError", "ZeroDivisionError",
     "log_writer::a_stderr_that_does_not_wait_loses_nothing"),
)
