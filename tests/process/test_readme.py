"""Proves that README.md, SECURITY.md and pools.json.example say what the program does.

Method: their blocks and tables are read as data and compared with pooler.py: every JSON block is
parsed, every configuration accepted, every command known, every default and error code the same.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import ssl
import tomllib
from collections.abc import Mapping
from typing import Any, Final

import pytest
import trio
from trio.testing import memory_stream_pair

import pooler
from tests.support.paths import ROOT

README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
SECURITY: Final = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
EXAMPLE: Final = (ROOT / "pools.json.example").read_text(encoding="utf-8")
OPENCODE_PAGE: Final = ROOT.parent / "shared" / "opencode-page.txt"
NOW: Final = 1_800_000_000.0  # in January 2027
BYTES_MAX: Final = 25_000  # longer, and nobody reads it


def blocks(language: str) -> list[str]:
    """The fenced blocks of README in this language, without the indent of a list around them."""
    fences = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", README, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in fences]


def rows(heading: str) -> list[list[str]]:
    """The body of the first table whose header row begins with `| heading |`."""
    table = README.partition(f"\n| {heading} |")[2].partition("\n\n")[0]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in table.splitlines()[2:]
    ]


def codes(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


JSON_BLOCKS: Final = [json.loads(text) for text in blocks("json")]
CONFIGS: Final = [block for block in JSON_BLOCKS if "pools" in block]
OPENCODE: Final = [block for block in JSON_BLOCKS if "provider" in block]


def parsed(config: Any) -> pooler.Config:  # noqa: ANN401
    """The configuration, with every placeholder filled in and every reference at hand."""
    text = re.sub(
        r"sha256:<([^>]*)>",
        lambda made: f"sha256:{hashlib.sha256(made[1].encode()).hexdigest()}",
        json.dumps(config),
    )
    env = {name: f"the-secret-of-{name}" for name in re.findall(r"\{env:(\w+)\}", text)}
    return pooler.parse_config(text.encode(), env, lambda name: f"the-content-of-{name}\n")


################################################################
# BLOCKS
################################################################


def test_the_readme_is_short() -> None:
    assert len(README.encode()) < BYTES_MAX


def test_its_links_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert {link[1:] for link in links if link.startswith("#")} <= anchors
    files = [link for link in links if not link.startswith("#")]
    assert ".github/admin.png" in files
    assert [name for name in files if not (ROOT / name).is_file()] == []


def test_there_are_blocks_of_every_kind() -> None:
    assert len(CONFIGS) >= 2
    assert len(OPENCODE) == 2
    assert len(blocks("sh")) >= 4


@pytest.mark.parametrize("config", CONFIGS)
def test_every_configuration_in_the_readme_is_accepted(config: dict[str, Any]) -> None:
    assert parsed(config).warnings == ()
    assert pooler.doubts_of(parsed(config), NOW) == []


def test_the_example_is_accepted_and_needs_only_what_the_readme_says() -> None:
    config = parsed(json.loads(EXAMPLE))
    assert config.warnings == ()
    assert pooler.doubts_of(config, NOW) == []
    assert "sha256:" not in EXAMPLE
    names = set(re.findall(r"\{env:(\w+)\}", EXAMPLE))
    told = README.partition("is a fuller example. It expects")[2].partition("in the environment")[0]
    assert set(codes(told)) == names
    assert {key.name for key in config.keys} == {"laptop", "ci"}


def test_the_opencode_page_works_as_it_stands() -> None:
    """Both pages show one provider; without the page beside the checkout, it still must be one."""
    shown = OPENCODE[0]["provider"]["openai"]
    assert shown["options"]["apiKey"] == "{env:CODEX_POOLER_API_KEY}"
    if OPENCODE_PAGE.is_file():
        page = OPENCODE_PAGE.read_text(encoding="utf-8")
        wanted, _ = json.JSONDecoder().raw_decode(page, page.index("{\n"))
        assert OPENCODE[0] == wanted


def test_the_second_opencode_block_has_options_of_the_first_where_they_work() -> None:
    first = OPENCODE[0]["provider"]["openai"]
    merged = OPENCODE[1]["provider"]["openai"]["models"]["gpt-5.5"]
    assert merged["options"].items() <= first["options"].items()
    assert merged.keys() == {"options"}
    assert OPENCODE[1]["small_model"] == OPENCODE[1]["model"] == "openai/gpt-5.5"


def test_the_codex_configuration_names_a_provider_of_its_own() -> None:
    (text,) = blocks("toml")
    config = tomllib.loads(text)
    provider = config["model_providers"][config["model_provider"]]
    assert provider["name"] == "OpenAI"  # else Codex has no compaction of its own
    assert provider["base_url"].endswith("/backend-api/codex")
    assert provider["env_key"] == "CODEX_POOLER_API_KEY"
    assert (provider["wire_api"], provider["supports_websockets"]) == ("responses", True)


def test_every_command_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(
        [*blocks("sh"), *blocks("ini"), *re.findall(r"^\| `(pooler .*?)`", README, re.MULTILINE)]
    )
    found = re.findall(
        r"(?:^|[/= ])pooler ((?:[\w-]+|\[?--).*?)(?: && .*| > .*)?$", text, re.MULTILINE
    )
    named = {line.split()[0] for line in found}
    assert {"init", "login", "check", "serve", "demo"} <= named
    assert named <= pooler.COMMANDS.keys()
    for line in found:
        words = shlex.split(line.replace("[", "").replace("]", ""))
        command = [word for word in words[:1] if not word.startswith("-")]
        with pytest.raises(SystemExit) as ended:
            pooler.main([*command, "--help"])
        assert ended.value.code == 0
        help_text = capsys.readouterr().out
        assert [word for word in words if word.startswith("--") and word not in help_text] == []


def test_every_named_path_of_the_repository_exists() -> None:
    prose = re.sub(r"^ *```.*?^ *```$", "", README + SECURITY, flags=re.MULTILINE | re.DOTALL)
    named = {name for name in codes(prose) if re.fullmatch(r"[\w/]+\.(md|py)", name)}
    assert {"SECURITY.md", "tests/process/test_process.py"} <= named
    named |= {"LICENSE", "pools.json.example", "tests/clients"}
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_the_index_of_the_tests_has_every_section_and_only_files_that_exist() -> None:
    index = (ROOT / "tests/README.md").read_text(encoding="utf-8")
    table = index.partition("| Section |")[2].partition("\n\n")[0]
    sections = {
        name
        for line in table.splitlines()[2:]
        for name in line.split("|")[1].strip().replace(" and ", ", ").split(", ")
    }
    source = (ROOT / "pooler.py").read_text(encoding="utf-8")
    banners = set(re.findall(r"^#{64}\n# ([A-Z ]+)\n#{64}$", source, re.MULTILINE))
    assert banners - sections == set()
    files = {path.stem for path in (ROOT / "tests").glob("*/test_*.py")}
    named = {name.rpartition("/")[2] for name in codes(table) if "test_" in name}
    assert named - files == set()
    modules = {path.stem for path in (ROOT / "tests/support").glob("[a-z]*.py")}
    assert {name for row in index.splitlines() for name in codes(row)} >= modules


################################################################
# TABLES
################################################################


def test_the_errors_in_the_readme_have_their_status() -> None:
    told = {codes(code)[0]: int(status) for status, code, _ in rows("Status")}
    assert len(told) >= 9
    assert told.items() <= {code: status for code, (status, *_) in pooler.ERRORS.items()}.items()


################################################################
# THE RUNNING SERVER
################################################################


async def answers(requests: list[bytes]) -> tuple[list[bytes], list[Mapping[str, Any]]]:
    """The server's response to each request, and the lines it logs."""
    config = parsed(json.loads(EXAMPLE))
    logged: list[Mapping[str, Any]] = []
    contexts: dict[str | None, ssl.SSLContext] = {None: pooler.make_tls_context(None)}
    server = pooler.Server(
        config, contexts, log=lambda _level, _event, fields: logged.append(fields)
    )
    found = []
    for request in requests:
        client, theirs = memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve_connection, theirs)
            await client.send_all(request)
            answer = b""
            while received := await client.receive_some():
                answer += bytes(received)
            await client.aclose()
        found.append(answer)
    return found, logged


def get(path: str, key: str = "") -> bytes:
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    fields = f"Host: pooler.example.com\r\nConnection: close\r\n{authorization}"
    return f"GET {path} HTTP/1.1\r\n{fields}\r\n".encode()


async def test_every_route_of_the_readme_is_served(autojump_clock: object) -> None:
    told = README.partition("### What it has")[2].partition("\n- Codex CLI")[0]
    paths = [route.split()[1] for route in codes(told) if route.startswith(("GET", "POST"))]
    key = "the-secret-of-CODEX_POOLER_LAPTOP_KEY"
    found, _ = await answers([get(path.replace("{id}", "gpt-5.5"), key) for path in paths])
    status = {path: int(answer.split()[1]) for path, answer in zip(paths, found, strict=True)}
    assert status == {
        "/v1/responses": 426,
        "/v1/responses/compact": 405,
        "/v1/chat/completions": 405,
        "/v1/models": 200,
        "/v1/models/{id}": 200,
        "/v1/usage": 200,
        "/healthz": 200,
        "/readyz": 200,
    }


async def test_routes_that_are_not_served_get_404(autojump_clock: object) -> None:
    unserved = ["/v1/realtime", "/v1/embeddings", "/v1/files"]
    key = "the-secret-of-CODEX_POOLER_LAPTOP_KEY"
    found, _ = await answers([get(path, key) for path in unserved])
    assert {int(answer.split()[1]) for answer in found} == {404}
    assert not [answer for answer in found if b"access-control" in answer.lower()]
