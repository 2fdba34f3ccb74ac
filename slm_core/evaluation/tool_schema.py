"""Asks a tool's JSON Schema what scoring needs to know about one value.

Reads ``type``, ``enum``, ``const``, ``properties``, ``items``, ``anyOf``, ``oneOf``, ``allOf``
and local ``$ref``. Other keywords are ignored: this names what is wrong with a value, it does
not validate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from slm_core.records import FailureClass, Tool

_MAX_HOPS = 16
"""A ``$ref`` may point at itself."""


class SchemaNode(NamedTuple):
    """A schema and the document that its references point into."""

    schema: Any
    root: Any

    def branches(self, hops: int = _MAX_HOPS) -> Iterator[dict[str, Any]]:
        """Yield this schema and all that it is combined from."""
        if not isinstance(self.schema, dict) or hops == 0:
            return
        yield self.schema
        for part in self._parts("anyOf", "oneOf", "allOf"):
            yield from part.branches(hops - 1)
        if (target := self._reference()) is not None:
            yield from target.branches(hops - 1)

    def says_number(self) -> bool:
        """Return whether some branch has the type ``number``, so that 1 and 1.0 are the same."""
        return any("number" in _types(branch) for branch in self.branches())

    def property(self, name: str) -> SchemaNode:
        """Return the schema of a property; empty when there is none."""
        for branch in self.branches():
            properties = branch.get("properties")
            if isinstance(properties, dict) and name in properties:
                return SchemaNode(properties[name], self.root)
        return SchemaNode({}, self.root)

    def knows(self, name: str) -> bool:
        """Return whether an object of this schema may have the property ``name``."""
        branches = list(self.branches())
        named = [b["properties"] for b in branches if isinstance(b.get("properties"), dict)]
        # JSON Schema lets any name pass by default; a tool that lists its parameters does not.
        opened = any(b.get("additionalProperties") for b in branches)
        return opened or not named or any(name in properties for properties in named)

    def required(self) -> set[str]:
        """Return the properties that every object of this schema has."""
        if not isinstance(self.schema, dict):
            return set()
        return set(self.schema.get("required") or ())

    def items(self) -> SchemaNode:
        """Return the schema of the items of an array; empty when there is none."""
        found = next((b["items"] for b in self.branches() if "items" in b), {})
        return SchemaNode(found, self.root)

    def fault(self, value: Any, hops: int = 4 * _MAX_HOPS) -> FailureClass | None:
        """Return WRONG_TYPE or NOT_IN_ENUM if ``value`` breaks the schema, else None."""
        if not isinstance(self.schema, dict) or hops == 0:
            return None
        types = _types(self.schema)
        if types and not any(_is_type(value, name) for name in types):
            return FailureClass.WRONG_TYPE
        if not _is_listed(value, self.schema):
            return FailureClass.NOT_IN_ENUM
        must = list(self._parts("allOf"))
        if (target := self._reference()) is not None:
            must.append(target)
        faults = [node.fault(value, hops - 1) for node in must]
        for key in ("anyOf", "oneOf"):
            tried = [node.fault(value, hops - 1) for node in self._parts(key)]
            if tried and None not in tried:
                # The branch that only misses its enum is the one that was meant.
                near = FailureClass.NOT_IN_ENUM in tried
                faults.append(FailureClass.NOT_IN_ENUM if near else FailureClass.WRONG_TYPE)
        if isinstance(value, dict):
            faults += [self.property(key).fault(inner, hops - 1) for key, inner in value.items()]
        elif isinstance(value, list):
            items = self.items()
            faults += [items.fault(inner, hops - 1) for inner in value]
        return next((fault for fault in faults if fault), None)

    def _parts(self, *keys: str) -> Iterator[SchemaNode]:
        for key in keys:
            parts = self.schema.get(key)
            for part in parts if isinstance(parts, list) else ():
                yield SchemaNode(part, self.root)

    def _reference(self) -> SchemaNode | None:
        pointer = self.schema.get("$ref")
        if not isinstance(pointer, str) or not pointer.startswith("#"):
            return None
        found = self.root
        for step in pointer[1:].strip("/").split("/") if pointer != "#" else ():
            found = found.get(step.replace("~1", "/").replace("~0", "~"), {})
            if not isinstance(found, dict):
                return None
        return SchemaNode(found, self.root)


def parameters_of(tool: Tool | None) -> SchemaNode:
    """Return the schema of a tool's arguments object; empty for an unknown tool."""
    schema = tool.parameters if tool else {}
    return SchemaNode(schema, schema)


def _types(schema: dict[str, Any]) -> tuple[str, ...]:
    declared = schema.get("type", ())
    return (declared,) if isinstance(declared, str) else tuple(declared or ())


def _is_type(value: Any, name: str) -> bool:
    if name in ("integer", "number"):
        kinds = (int,) if name == "integer" else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)
    if name == "null":
        return value is None
    kind = {"string": str, "boolean": bool, "array": list, "object": dict}.get(name)
    return kind is None or isinstance(value, kind)


def _is_listed(value: Any, schema: dict[str, Any]) -> bool:
    listed = schema.get("enum")
    if not isinstance(listed, list):
        listed = [schema["const"]] if "const" in schema else [value]
    return any(entry == value and type(entry) is type(value) for entry in listed)
