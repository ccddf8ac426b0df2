"""Single mistakes in the section COMMAND LINE of pooler.py.  (No claims.)"""

from __future__ import annotations

from tests.long.mutations.apply import Rows

# fmt: off
ROWS: Rows = (
    ("demo_chat", "The demo answers Chat.",
     "demo_response", "path.endswith(CallKind.CHAT.value)", "False",
     "demo::the_demo_serves_what_a_client_may_request"),
    ("demo_whole", "The demo answers in one piece, too.",
     "demo_response",
     ("if is_stream:\n"
     "    return ('text/event-stream', pieces)"),
     ("if path:\n"
     "    return ('text/event-stream', pieces)"),
     "demo::the_demo_serves_what_a_client_may_request"),
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
)
