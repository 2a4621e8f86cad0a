"""A JSON Schema: asked of the server, and checked here whatever the server does."""

import re
import shlex
from collections.abc import Mapping
from typing import Any

import jsonschema_rs
import orjson

from llmfilter.errors import UsageError
from llmfilter.jsontext import parse_json
from llmfilter.words import printable

# What a schema can check an object by; a document without any is satisfied by everything.
KEYWORDS = {
    *("type", "enum", "const", "$ref", "$dynamicRef", "$recursiveRef", "allOf", "anyOf", "oneOf", "not", "if"),
    *("properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties"),
    *("maxProperties", "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties"),
}
# Where APIs put a schema: OpenAI's two, both as the value of a request's field, tools, Anthropic, Gemini.
_WRAPPERS = [
    *(".schema", ".json_schema.schema", ".response_format.json_schema.schema", ".format.schema", ".text.format.schema"),
    *(".json_schema", ".function.parameters", ".parameters", ".input_schema", ".responseSchema"),
]
_LEVELS_MOST = 10  # references may go round in circles
_SHOWN = 500  # characters of a fault: it goes into the error line and, with re-asking, to the model


class Schema:
    """A JSON Schema (draft 2020-12 unless its `$schema` says otherwise).

    Raises UsageError, naming `source` and the place in it, if it is not one.
    """

    def __init__(self, text: bytes, source: str) -> None:
        named = f"--schema {printable(source)}"
        try:
            self.document = parse_json(text)
        except ValueError as fault:
            raise UsageError(f"{named}: not JSON: {fault}") from None
        if not isinstance(self.document, dict):
            raise UsageError(f"{named}: a schema is a JSON object")
        if path := wrapped_at(self.document):
            raise UsageError(f"{named}: the schema is inside of it; take it out: {_jq(path, source)}")
        try:
            orjson.dumps([[self.document]])  # as deep as in response_format
            self._validator = jsonschema_rs.validator_for(self.document)
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as fault:
            raise UsageError(f"{named}: not a JSON Schema: {_place(fault)}") from None
        except orjson.JSONEncodeError:
            raise UsageError(
                f"{named}: it can't be sent: it is nested too deeply, or holds a number that is too large "
                "(like 1e400) or text that is not Unicode"
            ) from None
        if not KEYWORDS & self.document.keys():
            raise UsageError(f"{named}: it checks nothing, since it holds no keyword like properties; leave it out?")
        if not takes_object(self.document, self.document):
            hint = _wrapping(self.document, source)
            raise UsageError(f"{named}: no JSON object satisfies it, and answers are objects{hint}")

    def faults(self, value: Any) -> list[str]:
        """Return what in a value is against the schema, each fault with its place; empty if nothing is."""
        try:
            return [_place(error) for error in self._validator.iter_errors(value)]
        except ValueError as fault:  # nested too deeply for it, or a lone surrogate
            return [f"it can't be checked: {fault}"]

    def may_have(self, key: str) -> bool:
        """Return whether an object that satisfies the schema may have a key, as far as can be seen at its root."""
        properties = self.document.get("properties")
        is_closed = self.document.get("additionalProperties") is False and isinstance(properties, dict)
        return not is_closed or key in properties or bool(self.document.get("patternProperties"))

    def response_format(self) -> dict[str, Any]:
        """Return what asks a server for such answers."""
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


def _jq(filter_: str, source: str) -> str:
    return f"jq {shlex.quote(filter_)} {shlex.quote(printable(source))} > new-schema.json"


def _wrapping(document: Mapping[str, Any], source: str) -> str:
    """Return the hint for a schema of a list: how to make one of an object with the list in it."""
    if document.get("type") != "array":
        return ""
    items, defs = ('del(."$defs")', ', "$defs": ."$defs"') if "$defs" in document else (".", "")
    made = f'type: "object", properties: {{items: {items}}}, required: ["items"], additionalProperties: false{defs}'
    return f"; put the list into one: {_jq(f'{{{made}}}', source)}"


def _follow(ref: str, root: Mapping[str, Any]) -> Any:
    """Return what a local `$ref` without escapes points at; True for any other."""
    inner: Any = root
    for key in ref.removeprefix("#").split("/")[1:]:
        inner = inner.get(key, True) if ref.startswith("#") and isinstance(inner, dict) else True
    return inner


def wrapped_at(document: Mapping[str, Any]) -> str | None:
    """Return jq's path to the schema if a document is what an API wraps around one, else None."""
    kind = document.get("type")
    if (KEYWORDS - {"type"}) & document.keys() or kind not in (None, "json_schema", "function"):
        return None
    for path in _WRAPPERS:
        inner: Any = document
        for key in path.split(".")[1:]:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            return path
    return None


def takes_object(schema: Any, root: Mapping[str, Any], level: int = 0) -> bool:
    """Return False where a schema plainly takes no JSON object, by its type, enum, const, or what it refers to."""
    if not isinstance(schema, dict) or level > _LEVELS_MOST:
        return schema is not False
    kinds, ref = schema.get("type", "object"), schema.get("$ref")
    if "object" not in (kinds if isinstance(kinds, list) else [kinds]):
        return False
    values = [schema["const"]] if "const" in schema else schema.get("enum", [{}])
    if not any(isinstance(each, dict) for each in values):
        return False
    inner = _follow(ref, root) if isinstance(ref, str) else True
    return (
        takes_object(inner, root, level + 1)
        and all(takes_object(each, root, level + 1) for each in schema.get("allOf", []))
        and all(
            any(takes_object(each, root, level + 1) for each in schema.get(word, [True])) for word in ("anyOf", "oneOf")
        )
    )


# https://platform.openai.com/docs/guides/structured-outputs: what strict mode asks of a schema.
def allows_strict(schema: Any) -> bool:
    """Return whether every object in a schema lists all its properties as required and allows no others."""
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
