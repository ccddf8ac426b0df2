"""What clients of the simulation were answered, and what must hold of that.  (No claims.)"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from tests.long.sim_names import CODEX, PRIVATE
from tests.long.sim_requests import Task
from tests.support.memory_sockets import Json, Response
from tests.support.memory_websockets import TERMINAL

SUCCESSES: Final = (["response.completed"], ["[DONE]"], ["finish"], ["json"])


@dataclass
class Seen:
    """An answer as a client has read it."""

    status: int = 0
    text: str = ""
    ends: list[str] = field(default_factory=list)  # the types of its terminal events
    has_finish: bool = False  # of a Chat answer
    is_whole: bool = False  # the body came to its end
    code: str = ""  # of an error in one piece

    @property
    def is_success(self) -> bool:
        return self.is_whole and self.status == 200 and self.ends in SUCCESSES


def read_payloads(body: bytes) -> list[Json]:
    """The data of whole events.  AssertionError: they are not."""
    assert body == b"" or body.endswith((b"\n\n", b"\r\n\r\n")), body[-80:]
    payloads: list[Json] = []
    for event in body.replace(b"\r\n", b"\n").split(b"\n\n"):
        data = [line[6:] for line in event.split(b"\n") if line.startswith(b"data: ")]
        if data and data != [b"[DONE]"]:
            payloads.append(json.loads(b"\n".join(data)))
        elif data:
            payloads.append("[DONE]")
    return payloads


def read_event(seen: Seen, event: Json) -> None:
    if event == "[DONE]":
        seen.ends += [] if "error" in seen.ends else ["[DONE]"]
    elif "choices" in event:
        delta = event["choices"][0]["delta"] if event["choices"] else {}
        seen.has_finish |= bool(event["choices"] and event["choices"][0]["finish_reason"])
        calls = delta.get("tool_calls") or []
        seen.text += delta.get("content") or ""
        seen.text += "".join(call["function"].get("arguments", "") for call in calls)
    elif event.get("type") in TERMINAL or event.get("error"):
        seen.ends.append(event.get("type") or "error")
    elif str(event.get("type")).endswith((".output_text.delta", "arguments.delta")):
        seen.text += event["delta"]


def text_of(value: Json) -> str:
    """What an answer in one piece says."""
    if "choices" in value:
        message = value["choices"][0]["message"]
        calls = message.get("tool_calls") or []
        return (message.get("content") or "") + "".join(
            call["function"]["arguments"] for call in calls
        )
    item = value["output"][0]
    return str(item["arguments"] if "arguments" in item else item["content"][0]["text"])


def read_body(response: Response, *, is_whole: bool) -> Seen:
    """Raises: AssertionError, for what no client could read."""
    seen = Seen(response.status, is_whole=is_whole)
    if response.header("content-type") == "application/json" or response.status != 200:
        if is_whole:
            value = json.loads(response.body)
            assert (response.status == 200) == ("error" not in value or value["error"] is None)
            seen.ends = ["json"]
            error = value.get("error")
            seen.code = str(error.get("code")) if isinstance(error, dict) else ""
            seen.text = text_of(value) if response.status == 200 else ""
        return seen
    body = response.body
    for event in read_payloads(body if is_whole else body[: body.rfind(b"\n\n") + 2]):
        read_event(seen, event)
    if seen.has_finish and is_whole:  # as the upstream's own stream may end, without a [DONE]
        seen.ends = seen.ends or ["finish"]
    return seen


def judge(task: Task, seen: Seen) -> None:
    """I2 to I4 of one request.  Raises: AssertionError."""
    for attempt in task.attempts[:-1]:
        assert attempt.is_repeatable, f"asked again after {attempt.outcome}"
    assert len({attempt.account for attempt in task.attempts}) <= 3
    last = task.attempts[-1] if task.attempts else None
    is_relayed = last is not None and (last.account not in CODEX or task.kind == "native")
    if last is not None and last.is_lie and is_relayed:  # behind its end, too
        assert last.said.startswith(seen.text) or seen.text.startswith(last.said), seen.text
        return
    assert seen.text == "" or (last is not None and last.said.startswith(seen.text)), seen.text
    if task.is_stream and seen.is_whole and seen.status == 200:
        assert len(seen.ends) == 1, f"{len(seen.ends)} ends: {seen} {task}"
    if seen.is_success:
        assert last is not None
        assert last.is_told or last.is_lie, "success, and the upstream did not say so"
        assert seen.text == last.said, "success, and not all of it"


def judge_told(task: Task, response: Response, secrets: Collection[str]) -> None:
    """I5: a client is told no secret, nothing of another's, and nothing of an account."""
    fields = "\n".join(f"{name}: {value}" for name, value in response.headers)
    raw = fields.encode("latin-1") + b"\n" + response.body
    told = [one for one in secrets if one.encode() in raw]
    others = {int(number) for number in re.findall(rb"\bw(\d+)\.[a-z0-9]+\.", raw)} - {task.number}
    private = [one for one in PRIVATE if one in raw]
    assert not told, f"a client was told {told}"
    assert not others, f"the client of request {task.number} was told words of {others}"
    assert not private, f"a client was told {private}: {raw[:2000]!r}"
