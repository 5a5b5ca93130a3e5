"""Parameters of a request: one table says their types, bounds and words, and everything else is read from it.

A parameter that is not in the table is refused by its name, with the nearest that is; so is one that is known and not
done here. null always means the default.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from lib.serving.problems import invalid

TYPES = {  # kind -> (JSON schema, what an error calls it)
    "integer": ({"type": "integer"}, "a whole number"),
    "number": ({"type": "number"}, "a number"),
    "boolean": ({"type": "boolean"}, "true or false"),
    "string": ({"type": "string"}, "a string"),
    "strings": ({"type": "array", "items": {"type": "string"}}, "a list of strings"),
    "one or more strings": (
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        "a string or a list of strings",
    ),
    "object": ({"type": "object"}, "an object"),
    "objects": ({"type": "array", "items": {"type": "object"}}, "a list of objects"),
    "prompt": (
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}},
                {"type": "array", "items": {"type": "integer"}},
                {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
            ]
        },
        "a string, a list of strings, token ids or a list of lists of them",
    ),
    "anything": ({}, "anything"),
}


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    kind: a key of `TYPES`. least, most: bounds of numbers, inside unless `open`. said: the error about the bounds, with
    {name} and {value}; None for a general one. refused: why it is not done here; then only null, and what means the
    same as its absence (`harmless`), is allowed. ignored: accepted without effect.
    """

    kind: str
    default: object = None
    least: float | None = None
    most: float | None = None
    open: bool = False
    said: str | None = None
    about: str = ""
    refused: str = ""
    harmless: tuple = ()
    ignored: bool = False
    needed: bool = False

    def schema(self) -> dict:
        """JSON schema of the parameter."""
        found = dict(TYPES[self.kind][0])
        names = ("exclusiveMinimum", "exclusiveMaximum") if self.open else ("minimum", "maximum")
        found |= {name: bound for name, bound in zip(names, (self.least, self.most)) if bound is not None}
        if not self.needed and "type" in found:
            found["type"] = [found["type"], "null"]
        elif not self.needed and "anyOf" in found:
            found["anyOf"] = [*found["anyOf"], {"type": "null"}]
        return found | ({"description": self.about} if self.about else {})


@dataclass(frozen=True)
class Table:
    """The parameters of a route by name; `wheres` names where they stand in errors."""

    parameters: Mapping[str, Parameter]
    where: str = "the request"
    renamed: Mapping[str, str] = field(default_factory=dict)  # other names of a parameter

    def read(self, given) -> dict:
        """The values of a JSON object, checked, with defaults in place of what is missing.

        Raises a `Problem` that names the first parameter that is wrong.
        """
        if not isinstance(given, dict):
            raise invalid(f"{self.where} is {_shown(given)}; an object is needed.")
        found = {}
        for name, value in given.items():
            name = self.renamed.get(name, name)
            if name not in self.parameters:
                raise invalid(self._unknown(name), name)
            if value is not None:
                found[name] = _checked(name, value, self.parameters[name])
        for name, each in self.parameters.items():
            if each.needed and name not in found:
                raise invalid(f"`{name}` is missing; {TYPES[each.kind][1]} is needed.", name)
        return {name: found.get(name, each.default) for name, each in self.parameters.items()}

    def schema(self) -> dict:
        """JSON schema of the object."""
        known = {name: each.schema() for name, each in self.parameters.items() if not each.refused}
        needed = [name for name, each in self.parameters.items() if each.needed]
        found = {"type": "object", "properties": known, "additionalProperties": False}
        return found | ({"required": needed} if needed else {})

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.parameters, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(sorted(self.parameters))}."
        return f"`{name[:64]}` is no parameter of {self.where}; {hint}"


def _checked(name: str, value, rule: Parameter):
    if rule.refused:
        if value in rule.harmless:
            return None
        raise invalid(f"`{name}` is not supported: {rule.refused}", name)
    if rule.ignored:
        return None
    value = _typed(name, value, rule)
    if rule.kind in ("integer", "number") and not _inside(value, rule):
        said = rule.said or f"`{{name}}` must be {_bounds(rule)}. Given: {{value}}"
        raise invalid(said.format(name=name, value=value), name)
    return value


def _typed(name: str, value, rule: Parameter):
    kind, wrong = rule.kind, invalid(f"`{name}` is {_shown(value)}; {TYPES[rule.kind][1]} is needed.", name)
    if kind == "integer":
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong
    elif kind == "number":
        if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
            raise wrong
        value = float(value)
    elif kind == "one or more strings" and isinstance(value, str):
        value = [value]
    elif kind in ("strings", "one or more strings", "objects"):
        inner = dict if kind == "objects" else str
        if not isinstance(value, list) or not all(isinstance(each, inner) for each in value):
            raise wrong
    elif type(value) is not {"boolean": bool, "string": str, "object": dict}.get(kind, type(value)):
        raise wrong
    return value


def _finite(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:  # an integer of hundreds of digits
        return False


def _inside(value: float, rule: Parameter) -> bool:
    low = rule.least is None or (value > rule.least if rule.open else value >= rule.least)
    return low and (rule.most is None or (value < rule.most if rule.open else value <= rule.most))


def _bounds(rule: Parameter) -> str:
    low, high = ("> ", "< ") if rule.open else (">= ", "<= ")
    parts = [(low, rule.least), (high, rule.most)]
    return " and ".join(f"{sign}{bound:g}" for sign, bound in parts if bound is not None)


def _shown(value) -> str:
    """A value in an error: its kind, and short ones themselves."""
    kind = {dict: "an object", list: "a list", type(None): "null", bool: str(value).lower()}.get(type(value))
    text = kind or repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
