"""Single mistakes in the section SETUP of pooler.py.  (No claims.)"""

from __future__ import annotations

from tests.long.mutations.apply import Rows

# fmt: off
ROWS: Rows = (
    ("greedy_server", "A local server whose models are unknown is asked last.",
     "_first_accounts", "0 if server.models else 3", "0",
     "init::accounts_are_used_in_the_order_of_what_they_cost"),
    ("title_lost", "OpenCode's titles have a model.",
     "_title_alias", "models[0].is_chat_only", "True",
     "init::opencodes_titles_have_a_model"),
    ("title_hidden", "An alias hides no model.",
     "_title_alias", "model.name == TITLE_MODEL", "not model.name",
     "init::opencodes_titles_have_a_model"),
    ("word_shown", "A key that was typed as a name is not repeated.",
     "_place_of", "looks_secret(name)", "not name",
     "init::what_is_wrong_is_a_line_that_says_what_to_write"),
    ("one_case", "Two names do not differ by case alone: they are names of files.",
     "_repeated", "name.lower()", "name",
     "init::what_is_wrong_is_a_line_that_says_what_to_write"),
    ("chat_asked", "A server that speaks only Chat is asked by Chat.",
     "opencode_config.qualified", "any((model.name == name for model in chat_only))", "False",
     "init::opencode_asks_a_server_that_speaks_only_chat_by_chat"),
    ("other_file", "The next commands name a pools.json elsewhere.",
     "next_commands", "with_config(f'pooler {command}', path)", "f'pooler {command}'",
     "init::the_next_commands_say_which_file"),
    ("schema_types", "The schema tells the two types of accounts apart.",
     "_conditions_of", "dict.fromkeys(foreign, False)", "{}",
     "schema::what_the_pooler_refuses_the_schema_refuses_if_it_can_say_it"),
    ("schema_closed", "The schema refuses fields that nobody knows.",
     "_schema_of", "'additionalProperties': False", "'additionalProperties': True",
     "schema::a_misspelt_field_is_refused"),
    ("explain_all", "A word that names something is not looked for elsewhere.",
     "reference", "wanted in {section, entry.name}", "False",
     "explain::a_field_of_several_objects_is_shown_with_the_place_of_each"),
)
