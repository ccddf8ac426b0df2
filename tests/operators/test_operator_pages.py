"""Proves that /admin, /metrics and `pooler status` show what they should, and nothing else.

Method: values in, text out.  The snapshot of tests/support/snapshot.json is changed member by
member: a canary may appear nowhere, a hostile name only where it does no harm.  HTML is read by a
parser that takes nothing unbalanced, metrics by a small strict parser (tests/clients asks
Prometheus' own), the terminal's lines by their width.
"""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final

import pytest

import mcp_server
from tests.support import paths
from tests.support.paths import SNAPSHOT
from tests.support.snapshots import (
    HOSTILE_TEXTS,
    LISTS,
    objects_in,
    replace_texts,
    snapshot,
    watched,
)

Json = Any

page = mcp_server.admin_page

CANARY: Final = "canary-4f1e"
ESCAPE: Final = re.compile(r"\033\[(?:0|1|31|32|33)m")
VOID_TAGS: Final = {"meta", "input", "br"}


def view(query: str, given: Json = None) -> str:
    """The page, as a query chooses it."""
    return mcp_server.admin(given or snapshot(), "text/html", query)[1]


def admin_json(given: Json) -> str:
    return mcp_server.admin(given, "application/json", "")[1]


def status(
    given: Json, columns: int = 100, is_coloured: bool = False, rows: int | None = None
) -> str:
    return mcp_server.status_text(given, columns, is_coloured, rows)


SHOWERS: Final[dict[str, Callable[[Json], str]]] = {
    "json": admin_json,
    "page": page,
    "status": lambda given: status(given, 1000),
    "metrics": mcp_server.metrics_text,
}
EACH_SHOWER: Final = pytest.mark.parametrize("show", SHOWERS.values(), ids=SHOWERS)


PLACES: Final = [path for path, _ in objects_in(snapshot())]


################################################################
# WHAT IS SHOWN
################################################################


@EACH_SHOWER
@pytest.mark.parametrize("place", PLACES)
def test_a_new_member_stays_private_at_every_level(place: str, show: Callable[[Json], str]) -> None:
    given = snapshot()
    found = dict(objects_in(given))[place]
    found["added"] = CANARY
    found["added_object"] = {CANARY: CANARY, "name": CANARY}
    found["added_list"] = [CANARY, {"name": CANARY}]
    assert show(given) == show(snapshot())


@EACH_SHOWER
def test_nothing_is_read_but_what_is_listed(show: Callable[[Json], str]) -> None:
    assert show(watched(snapshot())) == show(snapshot())


def shown_fields(name: str) -> set[str]:
    """The fields of a kind of object that /admin shows; of the snapshot itself its tables, too."""
    place = "requests" if name == "failures" else name
    return {*mcp_server.VISIBLE[place], *(() if name else (*mcp_server.TABLES, "attention"))}


def test_what_is_shown_is_named_in_one_table() -> None:
    shown = mcp_server.overview(snapshot())
    for place, found in objects_in(shown):
        name = re.sub(r"\[\d+\]", "", place).rpartition(".")[2]
        assert set(found) <= set(shown_fields(name))
    assert not {"operators", "models", "totals", "attempts", "refreshes"} & set(shown)


def check_same(shown: Json, given: Json) -> None:
    """Some of the input, unchanged."""
    if isinstance(shown, dict):
        assert shown.keys() <= given.keys()
        for name in shown:
            check_same(shown[name], given[name])
    elif isinstance(shown, list):
        for one, other in zip(shown, given, strict=True):
            check_same(one, other)
    else:
        assert shown == given


def test_what_is_allowed_arrives_unchanged() -> None:
    given = snapshot()
    shown = mcp_server.overview(given)
    del shown["attention"], shown["failures"]
    check_same(shown, given)
    assert given == snapshot()


def test_tuples_are_shown_as_lists() -> None:
    given = snapshot()
    given["pools"][0]["accounts"] = tuple(given["pools"][0]["accounts"])
    given["accounts"] = tuple(given["accounts"])
    assert mcp_server.overview(given) == mcp_server.overview(snapshot())


def test_only_the_newest_requests_are_shown() -> None:
    given = snapshot()
    newest = given["requests"][0]
    given["requests"] = [{**newest, "request_id": f"id{index:04}."} for index in range(1000)]
    shown = mcp_server.overview(given)
    ids = [request["request_id"] for request in shown["requests"]]
    assert ids == [f"id{index:04}." for index in range(50)]
    assert re.findall(r"id\d{4}\.", page(given)) == ids
    assert re.findall(r"id\d{4}\.", status(given, 1000)) == ids[:15]
    assert len(page(given)) < 100 * 1024


FACTS: Final = (
    "started 08:00 (1 h ago), times are UTC, in flight: 3, connections: 7, WebSockets: 1",
    "cooling down, back 09:06 (in 6 min)",
    "5h: 42 %, resets 10:46 (in 1 h 46 min)",
    "7d: 97.5 %, resets 18 Jan 19:20 (in 3 d 10 h)",
    "429 usage_limit_reached 08:51 (8 min ago)",
    "429 rate_limit_exceeded, 3 failed in a row",
    "qwen3-coder, back 09:06 (in 6 min)",
    "gpt-5.5 (personal)",
    "3, 0 waiting",
    "sticky, keys: 2",
    "2 of 16",
    "codex plus at chatgpt.com, token expires 25 Jan 18:00 (in 10 d 9 h)",
    "openai at api.openai.com",
    "home (priority 1)",
    "home / laptop",
    "124 requests, 100,010 in (80,000 cached), 9,009 out",
    "at most 60 a minute",
    "5,000 of 2,000,000",
    "2027-01-15: 4,400 tokens, 40 requests, cost 0.04; 2027-01-14: 3,300 tokens",
    "expired, since 05:13 (3 h 46 min ago)",
    "08:59:50 (9 s ago)",
    "200 ok",
    "client left",
    "5,120 ms",
    "412 ms",
    "personal (429 usage_limit_reached), then platform",
    "POST responses sse",
    "31,877 in, 20,480 out",
    "qfnpfoibhbtsjsqhmhnw",
)


@pytest.mark.parametrize("fact", FACTS)
def test_the_page_and_the_terminal_show_the_facts_in_words(fact: str) -> None:
    assert fact in "\n".join(parsed(page(snapshot())).texts)
    assert fact in status(snapshot(), 1000)


Change = Callable[[Json], Json]
CHANGED: Final[dict[str, tuple[Change, str]]] = {
    "draining": (lambda s: s.update(is_draining=True), "0.1.0, draining, started 08:00 (1 h ago)"),
    "demoted": (lambda s: s["accounts"][0].update(is_demoted=True, last_error=None), "demoted"),
    "refused": (lambda s: s["accounts"][0].update(status="refused"), "refused"),
    "login needed": (lambda s: s["accounts"][0].update(status="login_needed"), "login needed"),
    "login ends": (lambda s: s["accounts"][0].update(login="renewal_due"), "login refresh due"),
    "rests for ever": (lambda s: s["accounts"][1].update(until=None), "cooling down"),
    "pool down": (lambda s: s["pools"][0].update(status="down"), "down"),
    "state unheard of": (lambda s: s["accounts"][0].update(status="on_leave"), "on_leave"),
    "key ends": (
        lambda s: s["keys"][0].update(expires_at=s["at"] + 90061),
        "expires 16 Jan 10:01 (in 1 d 1 h)",
    ),
    "error": (lambda s: s["requests"][0].update(status=502, code="upstream_error"), "502 upstream"),
    "reset is past": (
        lambda s: s["accounts"][0]["windows"][0].update(resets_at=s["at"]),
        "42 %, resets 09:00 (0 s ago)",
    ),
    "no length": (
        lambda s: s["accounts"][0]["windows"][0].update(window=None),
        "codex: 42 %",
    ),
    "one model's": (
        lambda s: s["accounts"][0]["windows"][0].update(family="spark"),
        "spark 5h: 42 %",
    ),
    "beyond the limit": (
        lambda s: s["accounts"][0]["windows"][0].update(used_percent=133.333),
        "133.3 %",
    ),
    "attempt's end unknown": (
        lambda s: s["requests"][0]["attempts"][0].update(reason=None),
        "personal, then platform",
    ),
    "none of a key's models": (lambda s: s["keys"][1].update(models=[]), "expired"),
    "started now": (lambda s: s.update(started_at=s["at"]), "started 09:00 (0 s ago)"),
}


@pytest.mark.parametrize(("change", "words"), CHANGED.values(), ids=CHANGED)
def test_other_states_have_their_words(change: Change, words: str) -> None:
    given = snapshot()
    change(given)
    assert words in "\n".join(parsed(page(given)).texts)
    assert words in status(given, 1000)
    check_metrics(mcp_server.metrics_text(given))


SPANS: Final = {
    0: "0 s", 0.9: "0 s", 59.9: "59 s", 60: "1 min", 61: "1 min 1 s",
    3599: "59 min 59 s", 3600: "1 h", 7800: "2 h 10 min", 86399: "23 h 59 min",
    86400: "1 d", 86460: "1 d 1 min", 40 * 86400 + 7200: "40 d 2 h",
}  # fmt: skip


@pytest.mark.parametrize(("seconds", "words"), SPANS.items())
def test_a_span_has_two_units_at_most(seconds: float, words: str) -> None:
    assert mcp_server.span(seconds) == words


################################################################
# HOSTILE NAMES
################################################################


@pytest.mark.parametrize("text", HOSTILE_TEXTS.values(), ids=HOSTILE_TEXTS)
def test_no_name_changes_the_page(text: str) -> None:
    plain, hostile = (parsed(page(replace_texts(snapshot(), given))) for given in ("x", text))
    assert hostile.tags == plain.tags
    words = "".join(char if char.isprintable() else "?" for char in text)
    assert any(words in told for told in hostile.texts)
    hostile_page = page(replace_texts(snapshot(), text))
    hostile_page.encode()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", hostile_page)


@pytest.mark.parametrize("text", HOSTILE_TEXTS.values(), ids=HOSTILE_TEXTS)
def test_no_name_changes_the_metrics(text: str) -> None:
    plain, hostile = (
        mcp_server.metrics_text(replace_texts(snapshot(), given)) for given in ("x", text)
    )
    hostile.encode()
    names = [[name for name, _, _ in check_metrics(given)] for given in (plain, hostile)]
    assert names[0] == names[1]
    words = "".join(char if char.isprintable() else "?" for char in text)
    values = {value for _, labels, _ in check_metrics(hostile) for value in labels.values()}
    assert words in values


@pytest.mark.parametrize("columns", [60, 61, 80, 97, 200, 1000])
@pytest.mark.parametrize("text", HOSTILE_TEXTS.values(), ids=HOSTILE_TEXTS)
def test_no_name_breaks_the_terminal(text: str, columns: int) -> None:
    given = replace_texts(snapshot(), text)
    check_lines(status(given, columns, is_coloured=False), columns)
    check_lines(ESCAPE.sub("", status(given, columns, is_coloured=True)), columns)


@pytest.mark.parametrize("text", HOSTILE_TEXTS.values(), ids=HOSTILE_TEXTS)
def test_the_json_holds_every_name_as_it_is(text: str) -> None:
    given = replace_texts(snapshot(), text)
    told = admin_json(given)
    assert told.isascii()
    assert told.isprintable()
    assert json.loads(told)["accounts"][0]["name"] == text


################################################################
# THE PAGE
################################################################


class Page(html.parser.HTMLParser):
    """Takes balanced tags and quoted attributes only."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open_tags: list[str] = []
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        assert all(value is not None for _, value in attrs)
        self.tags.append((tag, tuple(names)))
        self.attributes.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID_TAGS:
            self.open_tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)


def parsed(text: str) -> Page:
    found = Page()
    found.feed(text)
    found.close()
    assert found.open_tags == []
    assert text.startswith("<!DOCTYPE html>\n")
    return found


def test_the_page_needs_nothing_but_itself() -> None:
    found = parsed(page(snapshot()))
    assert not {"script", "link", "img", "iframe", "base"} & {tag for tag, _ in found.tags}
    named = {name for _, names in found.tags for name in names}
    assert not {name for name in named if name.startswith("on")}
    assert not named & {"style", "src", "action", "srcset", "data"}
    links = [attributes["href"] for tag, attributes in found.attributes if tag == "a"]
    assert links
    assert {link[0] for link in links} == {"?"}
    assert "://" not in page(snapshot())
    assert "url(" not in mcp_server.ADMIN_STYLE
    assert "@import" not in mcp_server.ADMIN_STYLE


def test_the_policy_allows_the_one_style_and_nothing_else() -> None:
    styles = re.findall(r"<style>(.*?)</style>", page(snapshot()), re.DOTALL)
    assert len(styles) == 1
    digest = base64.b64encode(hashlib.sha256(styles[0].encode()).digest()).decode()
    rules = [rule.split() for rule in mcp_server.ADMIN_CSP.split("; ")]
    assert rules == [
        ["default-src", "'none'"],
        ["base-uri", "'none'"],
        ["form-action", "'self'"],
        ["frame-ancestors", "'none'"],
        ["style-src", f"'sha256-{digest}'"],
    ]


def test_the_page_fits_phones_and_dark_rooms() -> None:
    metas = [found for tag, found in parsed(page(snapshot())).attributes if tag == "meta"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas
    assert "prefers-color-scheme: dark" in mcp_server.ADMIN_STYLE
    assert "forced-colors: active" in mcp_server.ADMIN_STYLE
    assert "color-scheme: light dark" in mcp_server.ADMIN_STYLE


@pytest.mark.parametrize(("query", "is_fresh"), [("", False), ("refresh=1", True)])
def test_the_page_refreshes_itself_on_request(query: str, is_fresh: bool) -> None:
    """A page that is replaced while somebody reads it is a barrier (WCAG 2.2.1)."""
    metas = [found for tag, found in parsed(view(query)).attributes if tag == "meta"]
    assert ({"http-equiv": "refresh", "content": "10"} in metas) == is_fresh


def test_the_page_can_be_heard() -> None:
    found = parsed(page(snapshot()))
    assert [tag for tag, _ in found.tags if re.fullmatch(r"h\d", tag)] == ["h1", *["h2"] * 7]
    heads = [attributes for tag, attributes in found.attributes if tag == "th"]
    assert heads
    assert {attributes["scope"] for attributes in heads} == {"col", "row"}
    meters = [attributes for tag, attributes in found.attributes if tag == "meter"]
    assert [(meter["aria-label"], float(meter["value"])) for meter in meters] == [
        ("5h used", 42),
        ("7d used", 97.5),
        ("Used of its tokens for today", 0.25),
    ]
    pictures = [attributes for tag, attributes in found.attributes if tag == "svg"]
    assert {picture["role"] for picture in pictures} == {"img"}
    assert "342 requests in 24 hours, 10 failed, at most 29 in an hour" in pictures[0]["aria-label"]
    assert pictures[1]["aria-label"].endswith("2,200, 3,300, 4,400")
    assert {attributes.get("lang") for tag, attributes in found.attributes if tag == "html"} == {
        "en"
    }


def test_every_cell_says_its_column_on_a_phone() -> None:
    found = parsed(page(snapshot()))
    columns = {
        attributes["data-column"]
        for tag, attributes in found.attributes
        if tag == "td" and "data-column" in attributes
    }
    heads = {text for text in found.texts if text in columns}
    assert columns == heads


@EACH_SHOWER
def test_a_cell_names_twenty_and_counts_the_others(show: Callable[[Json], str]) -> None:
    given = snapshot()
    given["accounts"][0]["models"] = [f"model{index}" for index in range(10_000)]
    told = show(given)
    assert ("model19 and 9980 more" in told) == (show in {page, SHOWERS["status"]})


@EACH_SHOWER
def test_a_pooler_without_anything_can_be_shown(show: Callable[[Json], str]) -> None:
    given = {**snapshot(), **{name: [] for name in LISTS}}
    assert show(given)
    assert page(given).count("None.") == 5
    parsed(page(given))
    check_lines(status(given, 60), 60)
    check_metrics(mcp_server.metrics_text(given))


################################################################
# THE TERMINAL
################################################################


def check_lines(text: str, columns: int) -> None:
    assert text.endswith("\n")
    for line in text.split("\n"):
        assert len(line) <= columns
        assert re.fullmatch(r"[ -~█░…]*", line)


@pytest.mark.parametrize("columns", range(60, 260, 7))
def test_the_status_fits_its_terminal(columns: int) -> None:
    plain = status(snapshot(), columns)
    check_lines(plain, columns)
    for fact in ("personal", "cooling down, back 09:06 (in 6 min)", "(in 3 d 10 h)", "client left"):
        assert fact in plain


@pytest.mark.parametrize("columns", [-1, 0, 1, 59])
def test_a_narrower_terminal_gets_the_narrowest_status(columns: int) -> None:
    assert status(snapshot(), columns) == status(snapshot(), 60)


def test_colours_come_only_on_request_and_add_no_information() -> None:
    plain, coloured = status(snapshot()), status(snapshot(), is_coloured=True)
    assert "\033" not in plain
    for code, words in (
        (32, "personal +ready"),
        (33, "platform +cooling down"),
        (31, "home / ci +exp"),
    ):
        assert re.search(f"^\033\\[{code}m{words}[^\033]*\033\\[0m$", coloured, re.MULTILINE)
    assert "\033" not in ESCAPE.sub("", coloured)
    assert unpadded(ESCAPE.sub("", coloured)) == unpadded(plain)
    assert coloured.count("\033[0m") * 2 == coloured.count("\033")


def unpadded(text: str) -> list[str]:
    return [line.rstrip() for line in text.split("\n")]


def test_columns_are_aligned() -> None:
    lines = status(snapshot(), 200).split("\n")
    start = lines.index("ACCOUNTS") + 1
    state = lines[start].index("State")
    rows = [line for line in lines[start + 1 : start + 4] if not line.startswith(" ")]
    assert [row[state:].split()[0] for row in rows] == ["cooling", "ready"]
    assert {row[state - 2 : state] for row in rows} == {"  "}


def test_bars_are_as_long_as_the_use() -> None:
    given = snapshot()
    given["accounts"][0]["windows"][0]["used_percent"] = 250.0
    bars = re.findall(r"[█░]+", status(given))
    assert bars == ["██████████", "█████████░"]


def test_a_cut_text_ends_with_an_ellipsis() -> None:
    given = snapshot()
    given["accounts"][0]["name"] = "n" * 64
    assert f"\n{'n' * 19}…  ready" in status(given, 60)


################################################################
# METRICS
################################################################

SAMPLE: Final = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)")
LABEL: Final = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(?:,|$)')
UNESCAPED: Final = {r"\\": "\\", r"\"": '"', r"\n": "\n"}

Sample = tuple[str, dict[str, str], float]


def check_metrics(text: str) -> list[Sample]:
    """The samples of a text that is strictly of the format: each family whole and told once."""
    assert text.endswith("\n")
    samples: list[Sample] = []
    families: dict[str, str] = {}
    family = ""
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            family, words = line[7:].split(" ", 1)
            assert family.startswith("codex_pooler_")
            assert family not in families
            assert re.fullmatch(r"[^\\]+\.", words)
        elif line.startswith("# TYPE "):
            assert line[7:].split(" ")[0] == family
            families[family] = line.rpartition(" ")[2]
        else:
            samples.append(sample(line))
            suffixes = ("_sum", "_count") if families[family] == "summary" else ("",)
            assert samples[-1][0] in {family + suffix for suffix in suffixes}
    assert set(families.values()) <= {"gauge", "counter", "summary"}
    for name, kind in families.items():
        assert name.endswith("_total") == (kind == "counter")
    told = [(name, tuple(labels.items())) for name, labels, _ in samples]
    assert len(told) == len(set(told))
    return samples


def sample(line: str) -> Sample:
    match = SAMPLE.fullmatch(line)
    assert match, line
    name, inside, value = match.groups()
    labels: dict[str, str] = {}
    at = 0
    while inside is not None and at < len(inside):
        label = LABEL.match(inside, at)
        assert label, line
        assert label[1] not in labels
        labels[label[1]] = re.sub(r"\\.", lambda found: UNESCAPED[found[0]], label[2])
        at = label.end()
    return name, labels, float(value)


def value_of(given: Json, name: str, **labels: str) -> float:
    """The only sample of that name with these labels."""
    (value,) = (
        value
        for found, told, value in check_metrics(mcp_server.metrics_text(given))
        if found == f"codex_pooler_{name}" and labels.items() <= told.items()
    )
    return value


METRICS: Final[dict[str, tuple[dict[str, str], float]]] = {
    "build_info": ({"version": "0.1.0"}, 1),
    "start_time_seconds": ({}, 1800000000),
    "draining": ({}, 0),
    "connections": ({}, 7),
    "websockets": ({}, 1),
    "requests_in_flight": ({}, 3),
    "pool_requests_in_flight": ({"pool": "home"}, 3),
    "pool_requests_queued": ({"pool": "home"}, 0),
    "key_requests_in_flight": ({"pool": "home", "key": "laptop"}, 3),
    "account_requests_in_flight": ({"account": "personal"}, 2),
    "account_state": ({"account": "platform", "state": "cooling_down"}, 1),
    "account_cooldown_seconds": ({"account": "platform"}, 400),
    "token_expiry_timestamp_seconds": ({"account": "personal"}, 1800900000),
    "quota_used_ratio": ({"account": "personal", "family": "codex", "window": "7d"}, 0.975),
    "quota_reset_timestamp_seconds": ({"account": "personal", "window": "5h"}, 1800010000),
    "requests_total": (
        {"pool": "home", "key": "laptop", "account": "platform", "model": "gpt-5.5",
         "route": "responses", "code": "ok"}, 4,
    ),
    "request_seconds_sum": ({"route": "responses", "code": "ok"}, 20.5),
    "request_seconds_count": ({"route": "responses", "code": "ok"}, 4),
    "first_event_seconds_sum": ({"account": "platform"}, 1.5),
    "first_event_seconds_count": ({"account": "platform"}, 4),
    "tokens_total": ({"kind": "input", "key": "laptop"}, 10),
    "body_bytes_total": ({"direction": "out"}, 2000),
    "attempts_total": ({"account": "personal", "reason": "429 usage_limit_reached"}, 3),
    "needs_attention": ({}, 2),
    "pool_model_servable": ({"pool": "home", "model": "gpt-5.5"}, 1),
    "account_failures": ({"account": "platform"}, 3),
    "account_last_success_timestamp_seconds": ({"account": "platform"}, 1800003400),
    "refreshes_total": ({"account": "personal", "outcome": "renewed"}, 2),
}  # fmt: skip


@pytest.mark.parametrize(("name", "labels", "value"), [(n, *row) for n, row in METRICS.items()])
def test_metrics_show_the_snapshot(name: str, labels: dict[str, str], value: float) -> None:
    assert value_of(snapshot(), name, **labels) == value


def test_every_metric_has_a_golden_value() -> None:
    names = {name for name, _, _ in check_metrics(mcp_server.metrics_text(snapshot()))}
    assert names == {f"codex_pooler_{name}" for name in METRICS}


def test_an_account_is_in_one_state() -> None:
    given = snapshot()
    for status_now in ("ready", "cooling_down", "refused", "login_needed", "paused"):
        given["accounts"][0]["status"] = status_now
        samples = check_metrics(mcp_server.metrics_text(given))
        states = {
            labels["state"]: value
            for name, labels, value in samples
            if name == "codex_pooler_account_state" and labels["account"] == "personal"
        }
        assert states == {status_now: 1}


def test_rows_that_differ_in_other_labels_are_added_up() -> None:
    given = snapshot()
    row = given["totals"][0]
    given["totals"] += [{**row, "route": "chat"}, {**row, "code": "upstream_error"}]
    assert value_of(given, "tokens_total", kind="input") == 30
    assert value_of(given, "body_bytes_total", direction="in") == 3000
    assert value_of(given, "requests_total", route="chat") == 4
    assert value_of(given, "first_event_seconds_count", route="responses", code="ok") == 4


def test_what_is_unknown_has_no_sample() -> None:
    given = snapshot()
    given["accounts"][0]["token_ends_at"] = None
    samples = check_metrics(mcp_server.metrics_text(given))
    assert "codex_pooler_token_expiry_timestamp_seconds" not in {name for name, _, _ in samples}


def test_a_cooldown_is_never_negative() -> None:
    given = snapshot()
    given["accounts"][1]["until"] = given["at"] - 5
    assert value_of(given, "account_cooldown_seconds", account="platform") == 0


################################################################
# WHERE THEY COME FROM
################################################################

FORMS: Final = {
    "application/json": "application/json",
    "text/plain": "text/plain; charset=utf-8",
    "text/html": "text/html; charset=utf-8",
    "": "text/html; charset=utf-8",
    "*/*": "text/html; charset=utf-8",
    "text/html, application/xhtml+xml, */*;q=0.8": "text/html; charset=utf-8",
}


@pytest.mark.parametrize("accept", FORMS)
def test_admin_has_the_requested_form(accept: str) -> None:
    headers, text = mcp_server.admin(snapshot(), accept, "")
    shown = dict(headers)
    assert shown["content-type"] == FORMS[accept]
    assert shown["content-security-policy"] == mcp_server.ADMIN_CSP
    assert (shown["vary"], shown["referrer-policy"]) == ("accept", "no-referrer")
    assert text.startswith(("{", "codex-pooler ", "<!DOCTYPE html>\n"))


@pytest.mark.parametrize(
    ("query", "columns", "is_coloured"),
    [
        ("", 100, False),
        ("columns=80", 80, False),
        ("colour=1&columns=9999", 1000, True),
        ("columns=0&colour=0", 60, False),
        ("columns=99999&columns=-1", 100, False),
        ("columns=x&colour=", 100, False),
        ("%63olumns=80", 80, False),
        ("&".join(["columns=80"] * 21), 100, False),
    ],
)
def test_the_query_says_how_wide_a_terminal_is(query: str, columns: int, is_coloured: bool) -> None:
    _, text = mcp_server.admin(snapshot(), "text/plain", query)
    assert text == status(snapshot(), columns, is_coloured)


def test_the_pages_need_no_package_of_mcp() -> None:
    code = (
        "import json, mcp_server, pathlib, sys\n"
        f"facts = json.loads(pathlib.Path({str(paths.SNAPSHOT)!r}).read_text('utf-8'))\n"
        "for accept in ('application/json', 'text/plain', 'text/html'):\n"
        "    assert mcp_server.admin(facts, accept, '')[1]\n"
        "assert mcp_server.metrics(facts)[1]\n"
        "print([name for name in sys.modules if name.startswith(('mcp.', 'mcp_t', 'pydantic'))])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=paths.ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_a_page_of_very_many_keys_says_how_many_are_left_out() -> None:
    given = json.loads(SNAPSHOT.read_text())
    given["keys"] = [{**given["keys"][0], "name": f"key-{number}"} for number in range(150)]
    assert "50 more are left out; the JSON has all." in mcp_server.admin(given, "text/html", "")[1]


def test_a_request_without_a_key_has_no_link_to_one() -> None:
    given = snapshot()
    given["requests"] = [{**given["requests"][0], "pool": None, "key": None}]
    assert "?key=" not in view("", given).partition("<h2>Latest requests")[2]
