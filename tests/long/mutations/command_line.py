"""Single mistakes in the section COMMAND LINE of pooler.py.  (No claims.)"""

from __future__ import annotations

from tests.long.mutations.apply import Rows

# fmt: off
ROWS: Rows = (
    ("demo_limit_early", "The demo's preferred account is found to be used up by a request.",
     "DemoUpstream.windows", "name in self.limited", "DEMO_ACCOUNTS[name].refusal",
     "demo::a_plan_of_the_demo_is_used_up_once_that_has_been_found_out"),
    ("demo_here", "The demo writes nothing into the current folder.",
     "demo_logins", "os.environ.get('TMPDIR') or '/tmp'", "'.'",
     "demo::a_signal_ends_the_demo_and_its_folder"),
    ("demo_secret", "The demo keeps the secrets of the environment.",
     "demo_secrets", "os.environ.get(variable, '').strip() or new_secret(prefix)",
     "new_secret(prefix)",
     "demo::the_demo_keeps_the_secrets_that_are_set"),
    ("demo_told", "The demo does not print a secret of the environment.",
     "demo_guide", "os.environ.get(name, '').strip() != secret", "secret",
     "demo::the_demo_keeps_the_secrets_that_are_set"),
    ("demo_deaf", "A demo whose output nobody reads ends.",
     "Demo.show_waiting", "self.end(error)", "pass",
     "demo::a_reader_that_goes_away_later_ends_the_demo"),
    ("demo_order", "The line of the demo's request follows its text.",
     "Demo.introduce", "await self.has_logged.wait()", "self.is_streaming = True",
     "demo::the_first_request_of_the_demo_fails_over_in_its_log_line"),
    ("stop_behind_reload", "What is to end does not wait for a reload.",
     "serve_with_signals.obey", "to_reload.send_nowait(None)",
     ("if reload is not None:\n"
     "    await server.reload(reload)"),
     "nothing_blocks::a_reload_that_takes_long_does_not_delay_the_end"),
    ("hup_kills", "A reload that comes as it ends does not kill it.",
     "run_serve", "signal.signal(signal.SIGHUP, signal.SIG_IGN)", "pass",
     "soak::a_reload_after_the_last_log_line_does_not_kill_it"),
    ("soft_descriptors", "The soft limit of descriptors is raised.",
     "raise_descriptor_limit", "resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))", "pass",
     "nothing_blocks::the_soft_limit_is_raised_and_connections_stay_below_what_is_left"),
    ("watch_ends", "A watched status outlives a restart of its server.",
     "StatusCommand.show_again", "missing.is_final", "True",
     "status::watching_outlives_a_restart_of_the_server"),
    ("resized_late", "A watched status fits the terminal whenever its size changes.",
     "StatusCommand.show", "query += f'&columns={size.columns}&rows={size.lines - 1}'",
     "query += '&columns=90&rows=29'",
     "status::the_server_is_told_the_size_of_the_terminal_and_its_changes"),
    ("unadvised", "`check` says what operators lack.",
     "run_check", "doubts_of_modules(config)", "[]",
     "package::check_says_what_operators_lack"),
)
