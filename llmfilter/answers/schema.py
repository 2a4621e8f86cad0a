"""A JSON Schema: asked of the server, and checked here whatever the server does."""

import json
import re
import shlex
from collections.abc import Mapping
from itertools import islice
from typing import Any
from urllib.parse import urljoin

import jsonschema_rs
import orjson

from llmfilter.answers.subschemas import REFERENCES, follow, judgements, walk
from llmfilter.errors import UsageError
from llmfilter.jsontext import is_exact, one_line, parse_json
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
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_KNOWN_DIALECTS = r"https?://json-schema\.org/(draft/2020-12|draft/2019-09|draft-0[467])/schema#?"
JUDGEMENTS_MOST = 1000  # of one value: an answer is judged in milliseconds then
FAULTS_MOST = 5  # told of one answer
_LEVELS_MOST = 10  # references may go round in circles
_SHOWN = 500  # characters of a fault: it goes into the error line and, with re-asking, to the model
# For those who give an example of an answer.
_LIKE = '{"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]}'


class Schema:
    """A JSON Schema (draft 2020-12 unless its `$schema` says otherwise). Nothing in it reaches network or disk.

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
            raise UsageError(f"{named}: the schema is inside it; to take it out: {_jq(path, source)}")
        if reason := misuse(self.document):
            raise UsageError(f"{named}: {reason}")
        # orjson takes integers beyond 64 bits for floats: where there are any, Python's json reads schema and answers.
        self._is_exact = is_exact(text.decode())
        self._text = one_line(text.decode())
        try:
            orjson.dumps([[self.document]])  # as deep as in response_format
            document = self.document if self._is_exact else json.loads(text)
            self._validator = jsonschema_rs.validator_for(document, validate_formats=True, offline=True)
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as fault:
            raise UsageError(f"{named}: not a JSON Schema: {_place(fault)}{_hint(fault)}") from None
        except orjson.JSONEncodeError:
            raise UsageError(
                f"{named}: it can't be sent: it is nested too deeply, or holds a number that is too large "
                "(like 1e400) or text that is not Unicode"
            ) from None
        if not KEYWORDS & self.document.keys():
            raise UsageError(
                f"{named}: it checks nothing, since it has no keyword like properties; a schema is like {_LIKE}"
            )
        if not takes_object(self.document, self.document):
            hint = _wrapping(self.document, source)
            raise UsageError(f"{named}: no JSON object satisfies it, and answers are objects{hint}")

    def faults(self, value: Any, text: bytes | None = None) -> list[str]:
        """Return what in a value is against the schema, each fault with its place; empty if nothing is.

        text: the value's own JSON, where numbers beyond 64 bits matter.
        """
        try:
            if text and not self._is_exact:
                value = json.loads(text)
            return [_place(error) for error in islice(self._validator.iter_errors(value), FAULTS_MOST)]
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
        schema = self.document if self._is_exact else orjson.Fragment(self._text)
        asked: dict[str, Any] = {"name": name, "schema": schema}
        if not {"$ref", "anyOf"} & self.document.keys() and allows_strict(self.document):
            asked["strict"] = True
        return {"type": "json_schema", "json_schema": asked}


def _place(error: Exception) -> str:
    path = "".join(f"/{step}" for step in getattr(error, "instance_path", []))
    message = getattr(error, "message", None) or str(error).partition("\n")[0]
    if len(message) > _SHOWN:  # the value comes first, what is wrong with it last
        message = f"{message[: _SHOWN // 2]} … {message[-_SHOWN // 2 :]}"
    return f"at {path}: {message}" if path else message


def misuse(document: dict[str, Any]) -> str | None:
    """Return what in a schema would reach beyond it, mean nothing, or take too long; None if nothing does."""
    home = document.get("$id")
    here = {schema["$id"] for schema in walk(document) if isinstance(schema.get("$id"), str)}
    for schema in walk(document):
        for word in REFERENCES:
            if isinstance(ref := schema.get(word), str) and not _stays(ref, home, here):
                return f"`{word}` {printable(ref)!r} is elsewhere, and nothing is fetched: bundle it into $defs"
        dialect = schema.get("$schema", _DIALECT)
        if isinstance(dialect, str) and not re.fullmatch(_KNOWN_DIALECTS, dialect):
            return f"`$schema` {printable(dialect)!r} is not a known draft of JSON Schema; leave it out"
        if schema.get("nullable") is True:
            kind = schema.get("type", "string")
            return f'`nullable` is OpenAPI\'s; JSON Schema writes {{"type": ["{printable(str(kind))}", "null"]}}'
    if judgements(document, JUDGEMENTS_MOST) > JUDGEMENTS_MOST:
        return (
            f"it holds one value against more than {JUDGEMENTS_MOST:,} schemas, by references that double: flatten it"
        )
    return None


def _stays(ref: str, home: Any, here: set[str]) -> bool:
    base = ref.partition("#")[0]
    return (
        not base
        or base in here
        or (isinstance(home, str) and urljoin(home, base) in {urljoin(home, at) for at in here})
    )


def _hint(fault: Exception) -> str:
    if "URI reference" in str(fault):
        return "; in a `$ref` write %3C for <, %3E for > and %20 for a space"
    return ""


def _jq(filter_: str, source: str) -> str:
    return f"jq {shlex.quote(filter_)} {shlex.quote(printable(source))} > new-schema.json"


def _wrapping(document: Mapping[str, Any], source: str) -> str:
    """Return the hint for a schema of a list: how to make one of an object with the list in it."""
    if document.get("type") != "array":
        return ""
    items, defs = ('del(."$defs")', ', "$defs": ."$defs"') if "$defs" in document else (".", "")
    made = f'type: "object", properties: {{items: {items}}}, required: ["items"], additionalProperties: false{defs}'
    return f"; put the list into one: {_jq(f'{{{made}}}', source)}"


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
    inner = follow(ref, root, {}) if isinstance(ref, str) else True
    return (
        takes_object(inner, root, level + 1)
        and all(takes_object(each, root, level + 1) for each in schema.get("allOf", []))
        and all(
            any(takes_object(each, root, level + 1) for each in schema.get(word, [True])) for word in ("anyOf", "oneOf")
        )
    )


# https://platform.openai.com/docs/guides/structured-outputs: what strict mode asks of a schema.
_NOT_STRICT = {"allOf", "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas"}
_NOT_STRICT |= {"patternProperties", "unevaluatedProperties", "propertyNames"}


def allows_strict(schema: Any) -> bool:
    """Return whether a schema keeps to strict mode's subset.

    Every object in it lists all its properties as required and allows no others.
    """
    if isinstance(schema, list):
        return all(map(allows_strict, schema))
    if not isinstance(schema, dict):
        return True
    if _NOT_STRICT & schema.keys() or ("$ref" in schema and len(schema) > 1):
        return False
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
