"""Single mistakes in the section FILES of pooler.py.  (No claims.)"""

from __future__ import annotations

from tests.long.mutations.apply import Rows

# fmt: off
ROWS: Rows = (
    ("saved_once", "A disk that fails for a moment loses no login.",
     "save_over", "if not tries_left:\n    raise", "raise",
     "token_refresh::a_disk_that_fails_for_a_moment_does_not_lose_what_was_fetched"),
    ("full_folder_given", "Root gives away no folder that has something in it.",
     "give_folder", "not os.listdir(descriptor)", "True",
     "saving_is_sure::root_gives_the_owner_of_a_folder_nothing_but_an_empty_one"),
    ("linked_folder_given", "Root gives away no folder that a link leads to.",
     "give_folder", "os.O_NOFOLLOW", "0",
     "saving_is_sure::root_gives_the_owner_of_a_folder_nothing_but_an_empty_one"),
    ("given_in_a_group", "Where a group may make files, root gives no login to who was first.",
     "heir_of", "stat.S_IWGRP | stat.S_IWOTH", "stat.S_IWOTH",
     "saving_is_sure::root_gives_no_login_to_whoever_was_first_in_an_open_folder"),
    ("pipe_is_read", "A pipe is no file.",
     "read_file",
     ("if stat.S_ISREG(os.fstat(descriptor).st_mode):\n"
     "    with os.fdopen(descriptor, 'rb') as file:\n"
     "        return file.read(bytes_max)"),
     ("if True:\n"
     "    os.set_blocking(descriptor, True)\n"
     "    with os.fdopen(descriptor, 'rb') as file:\n"
     "        return file.read(bytes_max)"),
     "nothing_blocks::a_pipe_in_the_place_of_a_file_stops_no_running_server"),
    ("no_fsync", "A save is on the disk before it counts.",
     "sync", "os.fsync(descriptor)", "pass",
     "login_recovery::a_save_is_on_the_disk_before_it_counts"),
    ("folder_sync_needed", "A folder that cannot be synced at all is no failure.",
     "sync_folder",
     ("if error.errno not in _NO_FOLDER_SYNC:\n"
     "    raise"), "raise",
     "saving_is_sure::a_folder_that_cannot_be_synced_at_all_is_no_failure"),
    ("saved_over_another", "A refreshed login takes no other's place.",
     "save_file",
     ("if read_file(path) not in (expected, raw):\n"
     "    new_path.unlink()\n"
     "    return"), "pass",
     "saving_is_sure::a_login_that_comes_while_another_is_being_saved_stays"),
    ("owner_again", "No owner is changed to what it is.",
     "write_new", "owner is not None and owner.st_uid != os.geteuid()", "owner is not None",
     "login_recovery::the_owner_is_left_alone_if_it_is_our_own"),
    ("save_in_place", "A login is replaced whole.",
     "save_file",
     "os.rename(new_path, path)",
     ("path.write_bytes(raw)\n"
     "new_path.unlink()"),
     "login_recovery::a_save_is_on_the_disk_before_it_counts"),
    ("left_by_another", "What another user left is not taken for a login.",
     "read_own", "not (stat.S_ISREG(state.st_mode) and is_ours(state))", "False",
     "login_recovery::what_another_user_left_in_the_place_of_a_new_login_is_not_taken"),
)
