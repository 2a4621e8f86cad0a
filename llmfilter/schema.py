"""A JSON Schema: asked of the server, and checked here whatever the server does."""

import re
from typing import Any

import jsonschema_rs

from llmfilter.errors import UsageError
from llmfilter.record import parse_json

_SHOWN = 500  # characters of a fault: it goes into the error line and, with re-asking, to the model


class Schema:
    """A JSON Schema (draft 2020-12 unless its `$schema` says otherwise).

    Raises UsageError, naming `source` and the place in it, if it is not one.
    """

    def __init__(self, text: bytes, source: str) -> None:
        try:
            self.document = parse_json(text)
        except ValueError as fault:
            raise UsageError(f"--schema {source}: not JSON: {fault}") from None
        if not isinstance(self.document, dict):
            raise UsageError(f"--schema {source}: a schema is a JSON object")
        try:
            self._validator = jsonschema_rs.validator_for(self.document)
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as fault:
            raise UsageError(f"--schema {source}: not a JSON Schema: {_place(fault)}") from None

    def faults(self, value: Any) -> list[str]:
        """What in a value is against the schema, each fault with its place; empty if nothing is."""
        try:
            return [_place(error) for error in self._validator.iter_errors(value)]
        except ValueError as fault:  # nested too deeply for it, or a lone surrogate
            return [f"it can't be checked: {fault}"]

    def response_format(self) -> dict[str, Any]:
        """What asks a server for such answers."""
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", str(self.document.get("title") or "answer"))[:64]
        asked: dict[str, Any] = {"name": name, "schema": self.document}
        if allows_strict(self.document):
            asked["strict"] = True
        return {"type": "json_schema", "json_schema": asked}


def _place(error: Exception) -> str:
    path = "".join(f"/{step}" for step in getattr(error, "instance_path", []))
    message = getattr(error, "message", None) or str(error).partition("\n")[0]
    if len(message) > _SHOWN:  # the value comes first, what is wrong with it last
        message = f"{message[: _SHOWN // 2]} … {message[-_SHOWN // 2 :]}"
    return f"at {path}: {message}" if path else message


# https://platform.openai.com/docs/guides/structured-outputs: what strict mode asks of a schema.
def allows_strict(schema: Any) -> bool:
    """Whether every object in a schema lists all its properties as required and allows no others."""
    if isinstance(schema, list):
        return all(map(allows_strict, schema))
    if not isinstance(schema, dict):
        return True
    properties = schema.get("properties")
    kind = schema.get("type")
    is_object = kind == "object" or (isinstance(kind, list) and "object" in kind) or isinstance(properties, dict)
    if is_object and not (
        schema.get("additionalProperties") is False and set(schema.get("required", ())) == set(properties or ())
    ):
        return False
    for keyword, inner in schema.items():
        if keyword in ("properties", "$defs", "definitions") and isinstance(inner, dict):
            if not all(map(allows_strict, inner.values())):
                return False
        elif keyword not in ("enum", "const", "default", "examples") and not allows_strict(inner):
            return False
    return True
