"""Writes what the pooler serves of OpenAI's OpenAPI document, as JSON.

    trimmed.py DOCUMENT WRITTEN MODEL

The rest is left out, and requests name this one model.  It runs in the environment of the suites.
(No claims.)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import yaml

SERVED: Final = {
    "/chat/completions": ["post"],
    "/models": ["get"],
    "/models/{model}": ["get"],
    "/responses": ["post"],
    "/responses/compact": ["post"],
}
MODEL_SCHEMAS: Final = ["ModelIdsShared", "ModelIdsResponses", "ModelIdsCompaction"]


def references(node: Any) -> set[str]:  # noqa: ANN401 (JSON)
    """The names of the schemas that a part of the document refers to."""
    if isinstance(node, list):
        return set().union(*map(references, node))
    if not isinstance(node, dict):
        return set()
    found = set().union(*map(references, node.values()))
    target = node.get("$ref")
    return found | {target.rpartition("/")[2]} if isinstance(target, str) else found


def trim(document: dict[str, Any], model: str) -> None:
    paths, schemas = document["paths"], document["components"]["schemas"]
    schemas |= {name: {"type": "string", "enum": [model]} for name in MODEL_SCHEMAS}
    document["paths"] = {
        path: {method: paths[path][method] for method in methods}
        for path, methods in SERVED.items()
    }

    used: set[str] = set()
    found = references(document["paths"])
    while found - used:
        used |= found
        found = references([schemas[name] for name in used])
    document["components"]["schemas"] = {name: schemas[name] for name in schemas if name in used}


def main(document: str, written: str, model: str) -> None:
    parsed = yaml.load(Path(document).read_text("utf-8"), yaml.CSafeLoader)
    trim(parsed, model)
    Path(written).write_text(json.dumps(parsed), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
