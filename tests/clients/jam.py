"""What the structured responses of the Python SDK are parsed into.  (No claims.)"""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel


class Jam(BaseModel):
    """The SDK makes the schema of a request from it."""

    fruit: str
    minutes: int


JAM: Final = Jam(fruit="quinces", minutes=50)
