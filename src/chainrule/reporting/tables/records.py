"""Result records: what result.json holds."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import translate
from functools import cache
from pathlib import Path
from typing import Any

from chainrule.reporting.tables.certificates import Verdict, read_verdict
from chainrule.reporting.tables.fields import Fields, read_json

SCHEMA = 1  # of result.json; a change of meaning adds one

# Configuration that changes where, how loudly or how fast a number is computed, but not the number.
IGNORED = (
    "seed", "name", "*run_name", "*run_dir", "tags", "notes", "experiment", "samples", "resume", "paths.*", "hydra.*",
    "logger", "logger.*", "trainer.logger*", "trainer.enable_*", "trainer.default_root_dir", "trainer.profiler",
    "trainer.log_every_n_steps", "callbacks.*checkpoint*", "callbacks.*progress*", "callbacks.*summary*",
    "callbacks.*images*", "callbacks.*samples*", "callbacks.*completion*", "callbacks.*learning_rate*", "model",
    "model.kernel", "model.block", "data", "data.name", "data.side", "*_dir", "*.root", "*.download", "*.fused",
    "*.num_workers", "*.verbose", "*._partial_", "*._convert_", "*._recursive_",
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A mean over images with its standard error, in nats."""

    mean: float
    stderr: float
    count: int


@dataclass(frozen=True)
class Record:
    """One finished run, as its result.json has it; ``raw`` is the whole of it.

    What a mixture, which was never trained as one, cannot say is None.
    """

    path: Path
    model: str
    kernel: str | None
    parameters: int
    effective: int
    data: str
    side: int
    n: int
    sha256: str  # of the test set
    seed: int
    nll: Mapping[str, Estimate]  # of test, and of train and valid where they were scored
    bits_per_pixel: float
    epochs: int | None
    seconds: float | None
    images_per_second: float | None
    seconds_per_sample: float | None  # of many drawn at once
    latency: float | None  # seconds until one image, drawn alone, is there
    date: str
    commit: str | None
    settings: Mapping[str, object]
    raw: Mapping[str, Any] = field(repr=False)
    verdict: Verdict | None = None  # None: nobody has certified it

    @property
    def name(self) -> str:
        """The model; of a mixture also what it mixes."""
        if "members" not in self.settings:
            return self.model
        return f"{self.model} of {self.settings['members']} {self.settings.get('of', '')}".rstrip()

    @property
    def dirty(self) -> bool:
        """Whether the checkout had changes that no commit has."""
        return Fields(self.raw, self.path).has("git.dirty") and bool(self.raw["git"]["dirty"])

    @property
    def machine(self) -> str:
        """What the seconds were measured on; empty when the record does not say."""
        hardware = self.raw.get("hardware") or {}
        threads = f"{hardware['threads']} threads" if hardware.get("threads") else ""
        return ", ".join(filter(None, [hardware.get("gpu"), hardware.get("cpu"), threads]))

    @property
    def command(self) -> str:
        """The overrides that this run was started with, without those that say where things are."""
        words = [str(word) for word in self.raw.get("overrides") or ()]
        return shlex.join(word for word in words if not word.startswith(("paths.", "hydra.", "runs=", "out=")))


def read_record(path: Path | str) -> Record:
    """Reads the record of a finished run, and its certificate where there is one.

    Args:
        path: a run directory, or its result.json.

    Raises:
        ValueError: a file is no JSON, a field is missing or of the wrong type, or the schema is newer than
            this program's. The message names the file and the field.
    """
    file = Path(path) / "result.json" if Path(path).is_dir() else Path(path)
    record = parse(read_json(file), file)
    return replace(record, verdict=read_verdict(file.parent, record.raw))


def parse(raw: Mapping[str, Any], file: Path | str = "result.json") -> Record:
    """A record from the contents of a result.json; ``file`` is named in errors.

    Raises:
        ValueError: as :func:`read_record`.
    """
    get = Fields(raw, Path(file))
    get.schema(SCHEMA)
    return Record(
        path=Path(file).parent,
        model=get.text("model"),
        kernel=get.text_if_any("kernel"),
        parameters=get.whole("parameters.count"),
        effective=get.whole("parameters.effective"),
        data=get.text("data.name"),
        side=get.whole("data.side"),
        n=get.whole("data.n"),
        sha256=get.text("data.sha256.test"),
        seed=get.whole("seed"),
        nll=_estimates(get),
        bits_per_pixel=get.number("bits_per_pixel"),
        epochs=get.whole("epochs") if get.has("epochs") else None,
        seconds=get.number_if_any("seconds"),
        images_per_second=get.number_if_any("images_per_second"),
        seconds_per_sample=_seconds_per_sample(get),
        latency=get.number_if_any("sampling.latency"),
        date=get.text("date"),
        commit=get.text_if_any("git.commit"),
        settings=settings(get.get("config", "a mapping", dict)),
        raw=raw,
    )


def _estimates(get: Fields) -> dict[str, Estimate]:
    """The scores of each split; the test images must be among them."""
    return {split: _estimate(get, f"nll.{split}") for split in ("train", "valid", "test")
            if split == "test" or get.has(f"nll.{split}")}  # fmt: skip


def _estimate(get: Fields, name: str) -> Estimate:
    return Estimate(get.number(f"{name}.mean"), get.number(f"{name}.stderr"), get.whole(f"{name}.count"))


def _seconds_per_sample(get: Fields) -> float | None:
    if not get.has("sampling"):
        return None
    return get.number("sampling.seconds") / max(get.whole("sampling.images"), 1)


def settings(config: Mapping[str, Any]) -> dict[str, object]:
    """The configuration flattened to dotted keys, without what does not change the number.

    A ``_target_`` becomes the value of its parent: ``optimizer: AdamW``, ``optimizer.lr: 0.001``. Of the
    ``members`` of a mixture, their number remains. Seeds that follow the run's own, as ``data.seed`` does, are no
    setting.
    """
    found = {key: value for key, value in _flatten(config) if not _ignored(key)}
    follow = {key for key, value in found.items() if key.endswith(".seed") and value == config.get("seed")}
    return {key: _counted(key, value) for key, value in found.items() if key not in follow}


def _counted(key: str, value: object) -> object:
    return len(value) if key == "members" and isinstance(value, list) else value


@cache
def _ignored(key: str) -> bool:
    return re.match("|".join(map(translate, IGNORED)), key) is not None


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in config.items():
        key = f"{prefix}{name}"
        if name == "_target_" and prefix:
            yield prefix[:-1], str(value).rpartition(".")[2]
        elif isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{key}.")
        else:
            yield key, value or None if isinstance(value, Mapping) else value
