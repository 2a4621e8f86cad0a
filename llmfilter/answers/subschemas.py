"""A JSON Schema as a tree: what it refers to, and how much work it makes. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

# Keywords whose values are schemas: one, a list of them, or several by name (JSON Schema 2020-12, core 10 and 11).
_ONE = {"not", "if", "then", "else", "items", "additionalProperties", "contains", "propertyNames"}
_ONE |= {"unevaluatedItems", "unevaluatedProperties", "additionalItems", "contentSchema"}
_LIST = {"allOf", "anyOf", "oneOf", "prefixItems", "items"}
_NAMED = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"}
# Those of them that judge the same value again, not a part of it.
_IN_PLACE = {"not", "if", "then", "else", "allOf", "anyOf", "oneOf", "dependentSchemas", "dependencies"}
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


def subschemas(schema: Any, keywords: set[str] | None = None) -> Iterator[Any]:
    """Yield the schemas right below one, at some keywords only or at all."""
    if not isinstance(schema, dict):
        return
    for keyword, value in schema.items():
        if keywords is not None and keyword not in keywords:
            continue
        if keyword in _ONE and not isinstance(value, list):
            yield value
        elif keyword in _LIST and isinstance(value, list):
            yield from value
        elif keyword in _NAMED and isinstance(value, dict):
            yield from value.values()


def walk(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield a schema and all below it that are objects; it is a tree, as it came from JSON."""
    left = [schema]
    while left:
        schema = left.pop()
        if isinstance(schema, dict):
            yield schema
            left += subschemas(schema)


def judgements(root: Mapping[str, Any], most: int) -> int:
    """Return how many schemas one value is held against at most, or more than `most` as soon as that is clear.

    A chain of references that each lead to two others doubles it at every step.
    """
    anchors = {schema[word]: schema for schema in walk(root) for word in _ANCHORS if isinstance(schema.get(word), str)}
    counted: dict[int, int] = {}

    def count(schema: Any) -> int:
        if not isinstance(schema, dict):
            return 1
        if id(schema) not in counted:
            counted[id(schema)] = 0  # a circle judges nothing twice
            targets = [follow(schema[word], root, anchors) for word in REFERENCES if isinstance(schema.get(word), str)]
            sum_ = 1 + sum(map(count, [*subschemas(schema, _IN_PLACE), *targets]))
            counted[id(schema)] = min(sum_, most + 1)
        return counted[id(schema)]

    return max(map(count, walk(root)), default=0)


_ANCHORS = ("$id", "$anchor", "$dynamicAnchor")


def follow(reference: str, root: Mapping[str, Any], anchors: Mapping[str, Any]) -> Any:
    """Return what a reference within a document points at; True, the schema that takes anything, for any other."""
    base, _, fragment = reference.partition("#")
    found: Any = anchors.get(base, True) if base else root
    if fragment and not fragment.startswith("/"):
        return anchors.get(fragment, True)
    for step in unquote(fragment).split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            found = found.get(key, True) if isinstance(found, dict) else True
    return found
