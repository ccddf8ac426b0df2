"""Single mistakes in how upstreams are reached: rows of `MUTATIONS`.  (No claims.)"""

from __future__ import annotations

from typing import Final

# fmt: off
ROWS: Final[tuple[tuple[str, str, str, str, str], ...]] = (
    # Failed connections, and the outbound proxy.
    ("one_cause_for_trust", "A certificate for another name has its own cause.",
      "**dict.fromkeys((62, 64), Cause.OTHER_NAME),", "62: Cause.OTHER_NAME,",
      "connect_causes::the_log_has_the_cause_of_each_attempt_on_every_carrier"),
    ("first_address", "Of several addresses the cause that says most is told.",
      "min(causes, key=_CAUSES_IN_ORDER.index, default=", "min(causes[:1], key=len, default=",
      "connect_causes::what_a_system_says_is_one_of_the_causes"),
    ("dead_host_first", "A host that did not connect is tried last, whatever the account.",
      "ranks.append(((is_unreached, *rank), account))", "ranks.append((rank, account))",
      "dead_hosts::an_account_elsewhere_is_asked_first_until_the_host_is_back"),
    ("dead_host_thrice", "One request tries a host twice at most.",
      "if exchange.unreached[address] >= CONNECTS_MAX:",
      "if exchange.unreached[address] > CONNECTS_MAX:",
      "dead_hosts::accounts_at_one_dead_host_cost_two_timeouts"),
    ("token_past_the_proxy", "A login is renewed through the proxy.",
      "proxy=login.proxy,", "proxy=None,",
      "outbound_proxy::nothing_goes_past_the_proxy_and_tls_goes_through_it"),
    ("models_past_the_proxy", "Models are listed through the proxy.",
      "proxy=endpoint.proxy,", "proxy=None,",
      "outbound_proxy::nothing_goes_past_the_proxy_and_tls_goes_through_it"),
    ("said_before_tls", "What comes before the tunnel has been used is not the upstream's.",
      "return Cause.PROXY_RESPONSE if connection.buffer else None", "return None",
      "outbound_proxy::an_answer_that_makes_no_tunnel_has_its_cause"),
    ("socket_of_another_way", "A WebSocket of before a change of the proxy is not used after it.",
      'way = endpoint.proxy.url.address if endpoint.proxy else ""', 'way = ""',
      "outbound_proxy::a_change_of_the_proxy_leaves_no_connection_in_use"),
    ("variable_in_lower_case", "A proxy's variable that is not used is told, in either case.",
      "for each in (name, name.lower())]", "for each in (name,)]",
      "outbound_proxy::a_variable_that_is_not_used_is_told_and_its_value_is_not"),
    # What an upstream may do, and what it is told.
    ("name_of_codex", "An upstream with an API key is told a name that is not Codex CLI's.",
      'API_AGENT: Final = f"pooler/{VERSION}"', 'API_AGENT: Final = f"codex-pooler/{VERSION}"',
      "own_name::an_account_with_an_api_key_is_told_our_own_name"),
    ("extension_refused", "An upstream's chunk may have an extension.",
      "self._size = _LOOSE_SIZE if is_of_upstream else _CHUNK_SIZE", "self._size = _CHUNK_SIZE",
      "loose_answers::an_answer_is_read_as_if_it_had_been_said_once"),
    ("extension_of_a_client", "A client's may not.",
      "self._size = _LOOSE_SIZE if is_of_upstream else _CHUNK_SIZE", "self._size = _LOOSE_SIZE",
      "loose_answers::a_client_may_not_extend_a_chunk"),
    ("other_length", "A length that is said again is the same.",
      "if name in repeatable and value == lines[name][0]:", "if name in repeatable:",
      "loose_answers::what_is_said_differently_is_refused"),
)
# fmt: on
