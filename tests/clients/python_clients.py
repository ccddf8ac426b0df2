"""One case of a Python client: python python_clients.py CASE MODEL PROMPT.  (No claims.)

With POOLER_URL and CODEX_POOLER_API_KEY in the environment.  Prints what came of it as one line of
JSON.  It runs in an environment of its own, because these clients want another openai-python.
"""

from __future__ import annotations

import json
import os
import sys

import instructor
import openai
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

URL, KEY = os.environ["POOLER_URL"], os.environ["CODEX_POOLER_API_KEY"]


class Jam(BaseModel):
    """What the answers are parsed into."""

    fruit: str
    minutes: int


def ask_instructor(model: str, prompt: str) -> object:
    """In its JSON mode, which tells the schema in the system message."""
    client = instructor.from_openai(
        openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0), mode=instructor.Mode.JSON
    )
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
    made = client.chat.completions.create(
        model=model, messages=messages, response_model=Jam, max_retries=0
    )
    return made.model_dump()


def ask_langchain(model: str, prompt: str) -> object:
    """In its JSON mode, which leaves the word JSON to whoever writes the messages."""
    chat = ChatOpenAI(base_url=URL, api_key=KEY, model=model, max_retries=0)
    structured = chat.with_structured_output(Jam, method="json_mode")
    made = structured.invoke([("system", "Answer in JSON."), ("user", prompt)])
    return made.model_dump()


CASES = {"instructor": ask_instructor, "langchain": ask_langchain}

if __name__ == "__main__":
    case, *arguments = sys.argv[1:]
    sys.stdout.write(json.dumps(CASES[case](*arguments)))
