"""``result.json``: the record of a finished run, written and read by one class. Knows no torch."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from chainrule.files import read_small, write_whole
from chainrule.runs.settings import settings

SCHEMA = 1  # of result.json; a change of meaning adds one
HOW = ("paths.", "hydra.", "runs=", "out=", "logger", "trainer.enable_")  # where, and how loudly
FILE = "result.json"


class _Part(BaseModel):
    """A part of a record. Fields that this version does not know are kept and written again."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Estimate(_Part):
    """A mean over images with its standard error, in nats."""

    mean: float
    stderr: float = Field(ge=0)
    count: int = Field(ge=1)

    @classmethod
    def of(cls, nll: NDArray[np.float64]) -> Self:
        """From the NLL of each image, (N,): a float64 sum over all of them, divided once by their count."""
        count = len(nll)
        stderr = float(nll.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0
        return cls(mean=float(nll.sum()) / count, stderr=stderr, count=count)


class Parameters(_Part):
    count: int
    effective: int  # that the likelihood depends on


class Data(_Part):
    """The images: a number says nothing without them."""

    name: str
    side: int | None = None  # of square images
    n: int
    shape: tuple[int, int] | None = None  # height, width; early records have the side only
    file: str | None = None  # of data=arrays: its name
    file_sha256: str | None = None
    sha256: dict[str, str]  # of each split's bits

    @field_validator("sha256")
    @classmethod
    def _has_test(cls, sha256: dict[str, str]) -> dict[str, str]:
        if "test" not in sha256:
            raise ValueError("that of the test images is missing")
        return sha256

    @property
    def title(self) -> str:
        """The name, with that of the file where the images are somebody's own."""
        return f"{self.name} ({self.file})" if self.file else self.name

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        side = self.side or math.isqrt(self.n)
        return self.shape or (side, side)


class Sampling(_Part):
    images: int  # drawn at once
    seconds: float
    latency: float | None = None  # seconds until one image, drawn alone, is there


class Hardware(_Part):
    cpu: str | None = None
    cores: int | None = None
    threads: int | None = None
    gpu: str | None = None

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        return ", ".join(filter(None, [self.gpu, self.cpu, threads]))


class Git(_Part):
    commit: str | None = None
    dirty: bool | None = None  # changes, or a new file of the model, that no commit has


class Member(_Part):
    """A member of a mixture: what a reader wants to know without looking for it."""

    model: str
    order: str | None = None
    seed: int
    nll: dict[str, float]
    commit: str | None = None


class Record(_Part):
    """One finished run. What a mixture, which was never trained as one, cannot say is None."""

    schema_version: int = Field(SCHEMA, alias="schema")
    model: str  # the configuration's choice
    kernel: str | None = None
    order: str | None = None
    parameters: Parameters
    data: Data
    nll: dict[str, Estimate]  # of test, and of train and valid where they were scored
    bits_per_pixel: float
    seed: int
    complete: bool = True  # False: trained or scored on some batches only, so no result
    best_epoch: int | None = None
    epochs: int | None = None
    seconds: float | None = None
    images_per_second: float | None = None
    sampling: Sampling | None = None
    fingerprint: str | None = None
    code_sha256: str | None = None  # of the source that computes the number
    checkpoint_sha256: str | None = None
    initialized_from: str | None = None  # SHA-256 of the checkpoint that the weights began from
    code_changed: bool = False  # resumed although the code had changed meanwhile
    hardware: Hardware = Hardware()
    versions: dict[str, str] = {}
    git: Git = Git()
    model_git: Git | None = None  # of a model outside the package, its own repository
    date: str
    overrides: list[str] = []
    tags: list[str] = []
    members: list[Member] = []
    config: dict[str, Any]

    model_config = ConfigDict(populate_by_name=True)
    _path: Path = PrivateAttr(default=Path())

    @field_validator("nll")
    @classmethod
    def _has_test(cls, nll: dict[str, Estimate]) -> dict[str, Estimate]:
        if "test" not in nll:
            raise ValueError("the test images are missing")
        return nll

    @field_validator("schema_version")
    @classmethod
    def _is_known(cls, schema: int) -> int:
        if schema > SCHEMA:
            raise ValueError(f"schema {schema} is newer than this chainrule, which reads up to {SCHEMA}: upgrade it")
        return schema

    @property
    def path(self) -> Path:
        """The run directory that it was read from or written to."""
        return self._path

    @property
    def test(self) -> Estimate:
        return self.nll["test"]

    @property
    def name(self) -> str:
        """The model; of a mixture also what it mixes."""
        if not self.config.get("members"):
            return self.model
        mixed = self.config.get("orders") or self.config["members"]
        return f"{self.model} of {len(mixed)} {self.config.get('of', '')}".rstrip()

    @property
    def target(self) -> str:
        """The class of the model, as the configuration names it."""
        return str((self.config.get("model") or {}).get("_target_", self.model))

    @property
    def command(self) -> str:
        """The overrides that this run was started with, without those that say where things are."""
        return shlex.join(word for word in self.overrides if not word.startswith(HOW))

    @cached_property
    def settings(self) -> Mapping[str, object]:
        """The configuration flattened, without what cannot change the number: see :func:`settings`."""
        return settings(self.config)

    @classmethod
    def read(cls, path: Path | str) -> Record:
        """Reads the record of a finished run.

        Args:
            path: a run directory, or its ``result.json``.

        Raises:
            ValueError: the file cannot be read, is no JSON or no record. The message names the file and the field.
        """
        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        record = validated(cls, read_json(file), file)
        record._path = file.parent
        return record

    def write(self, folder: Path) -> None:
        """Writes ``result.json``, which is either whole or absent."""
        write_json(folder / FILE, self.model_dump(mode="json", by_alias=True, exclude_none=True))
        self._path = folder


Model = TypeVar("Model", bound=BaseModel)


def validated(kind: type[Model], content: object, file: Path) -> Model:
    """JSON as an instance of a class.

    Raises:
        ValueError: it is none; the message names the file and the first field that is wrong.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"])) or "the whole"
        raise ValueError(f"{file}: field {field}: {first['msg']}, got {first['input']!r:.60}") from None


def read_json(file: Path) -> Any:  # noqa: ANN401
    """The contents of a JSON file that somebody else may have written.

    Raises:
        ValueError: it cannot be read, is too large or no regular file, or no JSON.
    """
    try:
        return json.loads(read_small(file))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: is no valid JSON ({error})") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file that is either whole or absent.

    Raises:
        ValueError: the content has a number that is not finite.
        OSError: the folder cannot be written.
    """
    write_whole(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
