"""What a report that is handed around leaves out: secrets, and where things lie on somebody's machine."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

PRIVATE = {
    "paths", "path", "dir", "root", "folder", "hydra",
    "key", "token", "secret", "password", "entity", "user", "username", "host", "url",
}  # fmt: skip
# A path from the root, the home folder or a drive; not the fraction in "images/s", and not an address.
PATH = re.compile(r"(?<![\w/:.…)~])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\,;:'\"()\[\]]+[/\\])*([^\s/\\,;:'\"()\[\]]+)")


def is_private(key: str) -> bool:
    """Whether a dotted key names a place or a secret, by any of its words."""
    return not PRIVATE.isdisjoint(re.split(r"[._+~@/-]+", key.lower()))


def without_places(text: str) -> str:
    """Paths of somebody's machine shortened to their last part."""
    return PATH.sub(r"…/\1", text)


def public(value: object) -> object:
    """A configuration without its private keys, at any depth."""
    if isinstance(value, Mapping):
        return {str(k): public(v) for k, v in value.items() if not is_private(str(k))}
    if isinstance(value, list | tuple):
        return [public(v) for v in value]
    if isinstance(value, str):
        return f"…/{PurePath(value).name}" if value.startswith("../") else without_places(value)
    return value


def rerun(record: Mapping[str, Any]) -> str:
    """The command that makes this run again, from its result.json, without what is private."""
    overrides = [str(word) for word in record.get("overrides") or [] if not is_private(str(word).partition("=")[0])]
    members = record["config"].get("members")
    if members and not any(word.startswith("runs=") for word in overrides):  # they lay somewhere on that machine
        overrides.append(f"runs={','.join('…/' + PurePath(str(m['run'])).name for m in members)}")
    return shlex.join(["chainrule", "mix" if members else "train", *map(without_places, overrides)])
