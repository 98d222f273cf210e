"""Typed access to JSON written by others, with errors that name file and field."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def read_json(file: Path) -> Any:  # noqa: ANN401
    """The contents of a JSON file.

    Raises:
        ValueError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: is no valid JSON ({error})") from error


@dataclass(frozen=True)
class Fields:
    """Nested JSON by dotted names; what is missing or of the wrong type is a ValueError."""

    raw: object
    file: Path

    def get(self, name: str, what: str, *types: type) -> Any:  # noqa: ANN401
        value = self.raw
        for key in name.split("."):
            if not isinstance(value, dict) or key not in value:
                raise ValueError(f"{self.file}: field {name} is missing")
            value = value[key]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError(f"{self.file}: field {name} must be {what}, got {value!r:.60}")
        return value

    def schema(self, newest: int) -> None:
        """Refuses what a later version of this program has written."""
        schema = self.whole("schema")
        if schema > newest:
            raise ValueError(
                f"{self.file}: has schema {schema}, this chainrule reads up to {newest}: upgrade chainrule"
            )

    def text(self, name: str) -> str:
        return str(self.get(name, "a string", str))

    def flag(self, name: str) -> bool:
        return bool(self.get(name, "true or false", bool))

    def whole(self, name: str) -> int:
        return int(self.get(name, "a whole number", int))

    def number(self, name: str) -> float:
        return float(self.get(name, "a number", int, float))

    def has(self, name: str) -> bool:
        """Whether the field is there, and not null."""
        value = self.raw
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value is not None

    def text_if_any(self, name: str) -> str | None:
        return self.text(name) if self.has(name) else None

    def number_if_any(self, name: str) -> float | None:
        return self.number(name) if self.has(name) else None
