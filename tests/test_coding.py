"""What is coded comes back bit for bit, at the size that the model promises, or is refused."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest
import torch
from broken import Forgetful, NotANumber
from torch import Tensor
from zoo import MODELS, an_order, build

from chainrule import cli
from chainrule.density import AutoregressiveDensity
from chainrule.evaluation import coding
from chainrule.models.fvsbn import FVSBN
from chainrule.models.tabular import Tabular

every_model = pytest.mark.parametrize("name", MODELS)


def some_images(model: AutoregressiveDensity, count: int = 300) -> Tensor:
    return model.sample(count, torch.Generator().manual_seed(2)).to(torch.uint8)


def nll_bits(model: AutoregressiveDensity, images: Tensor) -> float:
    return -model.log_prob(images).double().sum().item() / np.log(2)


@every_model
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_images_come_back_at_their_nll(name: str, precision: torch.dtype) -> None:
    model = build(name, shape=(4, 4), order=an_order(name)).to(precision)
    images = some_images(model)
    coded = coding.encode(model, images)
    assert torch.equal(coding.decode(model, coded.words, len(images)), images)
    assert coded.ideal == pytest.approx(nll_bits(model, images), rel=1e-3)
    assert coded.ideal < coded.bits < coded.ideal + 64


@pytest.mark.parametrize("count", [0, 1, 6, 7, 8, 30])
def test_batches_of_every_length(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coding, "BATCH", 7)
    model = build("nade", order="spiral")
    images = some_images(model, count)
    content = coding.pack(model, images)
    assert torch.equal(coding.unpack(model, content), images)


def test_what_a_model_holds_for_impossible_can_be_coded() -> None:
    model = Tabular(shape=(2, 2), smoothing=0, closed_form=True).eval()
    model.initialize(torch.zeros(10, 4))
    images = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.uint8)
    coded = coding.encode(model, images)
    assert coded.clamped == 5  # all of the first image, and where the second leaves what was met
    assert torch.equal(coding.decode(model, coded.words, 2), images)
    assert coded.ideal == pytest.approx(16 / np.log(2) + 3, abs=1e-4)


class Shaken(FVSBN):
    """Computes every logit with an error of its own, as another machine would."""

    error = 0.0

    def walk(self, batch: int) -> Generator[Tensor, Tensor, None]:
        steps = super().walk(batch)
        logits = next(steps)
        for t in range(self.dim):
            z_t = yield logits + self.error * torch.randn_like(logits)
            logits = steps.send(z_t) if t + 1 < self.dim else logits


def shaken(monkeypatch: pytest.MonkeyPatch) -> tuple[Shaken, Callable[[float], None]]:
    torch.manual_seed(0)
    model = Shaken(shape=(4, 4)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model, lambda error: monkeypatch.setattr(Shaken, "error", error)


def test_machines_that_differ_in_the_last_digits_read_each_other_s_files(monkeypatch: pytest.MonkeyPatch) -> None:
    model, set_error = shaken(monkeypatch)
    images = some_images(model, 2000)
    content = coding.pack(model, images)
    set_error(1e-12)
    assert coding.pack(model, images) == content
    assert torch.equal(coding.unpack(model, content), images)


def test_a_machine_that_differs_in_more_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    model, set_error = shaken(monkeypatch)
    content = coding.pack(model, some_images(model))
    set_error(0.1)
    with pytest.raises(ValueError, match=r"cannot be read here: this machine .* other probabilities"):
        coding.unpack(model, content)


@every_model
def test_the_file_does_not_depend_on_the_threads(name: str) -> None:
    model = build(name, shape=(4, 4)).float()
    images, before = some_images(model), torch.get_num_threads()
    files = set()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            files.add(coding.pack(model, images))
    finally:
        torch.set_num_threads(before)
    assert len(files) == 1


def test_compress_reads_what_it_has_written() -> None:
    model = Forgetful(shape=(3, 3)).eval()
    with pytest.raises(ValueError, match="could not be decoded again"):
        coding.pack(model, torch.ones(50, 9, dtype=torch.uint8))


def test_a_logit_that_is_no_number_is_named() -> None:
    with pytest.raises(ValueError, match="a logit of step 5 is nan"):
        coding.encode(NotANumber(shape=(3, 3)).eval(), torch.zeros(2, 9, dtype=torch.uint8))


# ---- files --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> AutoregressiveDensity:
    return build("fvsbn", order="random-1")


@pytest.fixture(scope="module")
def content(model: AutoregressiveDensity) -> bytes:
    return coding.pack(model, some_images(model))


def test_every_truncation_is_refused(model: AutoregressiveDensity, content: bytes) -> None:
    for length in range(len(content)):
        with pytest.raises(ValueError, match=r"^x is (truncated or altered|no file of `chainrule compress`)"):
            coding.unpack(model, content[:length], "x")


def test_every_altered_byte_is_refused(model: AutoregressiveDensity, content: bytes) -> None:
    for place in range(len(content)):
        altered = bytearray(content)
        altered[place] ^= 1 << place % 8
        with pytest.raises(ValueError, match=r"^x is (truncated or altered|no file of `chainrule compress`)"):
            coding.unpack(model, bytes(altered), "x")


def test_an_appendix_is_refused(model: AutoregressiveDensity, content: bytes) -> None:
    with pytest.raises(ValueError, match="truncated or altered"):
        coding.unpack(model, content + b"\0")


@pytest.mark.parametrize(
    "other",
    [build("fvsbn", order="random-1", seed=1), build("fvsbn", order="random-2"), build("mlp", order="random-1")],
    ids=["other weights", "other order", "other model"],
)
def test_another_model_is_refused(other: AutoregressiveDensity, content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^x was written by another model .* give the run"):
        coding.unpack(other, content, "x")


def test_a_newer_format_is_refused(model: AutoregressiveDensity, content: bytes) -> None:
    newer = content[:8] + (coding.FORMAT + 1).to_bytes(2, "little") + content[10:-32]
    with pytest.raises(ValueError, match=r"has format 2, this chainrule reads up to 1: upgrade chainrule"):
        coding.unpack(model, newer + hashlib.sha256(newer).digest())


def test_a_fingerprint_is_of_the_weights_and_not_of_the_object(model: AutoregressiveDensity) -> None:
    assert coding.fingerprint(build("fvsbn", order="random-1")) == coding.fingerprint(model)


# ---- commands -----------------------------------------------------------------------------------------

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process, in an empty folder, and returns what it printed."""

    def call(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["chainrule", *words])
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        cli.main()
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coding")
    words = ["data=toy", "data.side=4", "model=fvsbn", "trainer.max_epochs=2", "logger=none"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["chainrule", "train", *words, "hydra.run.dir=trained"])
        cli.main()
    return folder / "trained"


def test_the_test_images_to_one_file_and_back(trained: Path, run: Run, tmp_path: Path) -> None:
    from chainrule.data import Toy

    data = Toy(side=4)
    data.setup()
    said = run("compress", f"run={trained}", "file=with space, comma=and.bin")
    size = (tmp_path / "with space, comma=and.bin").stat().st_size
    assert re.search(rf"and\.bin +{size} ", said)
    assert all(f"{rival} " in said for rival in ("xz -9", "gzip -9", "PNG, all images in one", "raw bits"))
    assert re.search(rf"raw bits +{len(data.test) * 16 // 8} +16\.0 ", said)
    assert "120 images" in run("decompress", f"run={trained}", "file=with space, comma=and.bin", "out=bits.npy")
    assert np.array_equal(np.load(tmp_path / "bits.npy").reshape(-1, 16), data.test.numpy())


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32])
def test_one_s_own_images(kind: type, trained: Path, run: Run, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 2, (13, 4, 4)).astype(kind)
    np.save(tmp_path / "mine.npy", images)
    run("compress", f"run={trained}", "file=mine.bin", "images=mine.npy")
    run("decompress", f"run={trained}", "file=mine.bin")
    assert np.array_equal(np.load(tmp_path / "mine.bin.npy"), images)


CASES = {
    "no such file": (["decompress", "file=nowhere"], "nowhere"),
    "not ours": (["decompress", "file=other"], "other is no file of `chainrule compress`"),
    "cut": (["decompress", "file=cut"], "cut is truncated or altered"),
    "another model": (["decompress", "file=foreign"], "foreign was written by another model"),
    "not a .npy": (["decompress", "file=good", "out=x.png"], "out must end in .npy, got x.png"),
    "no file given": (["compress"], r"missing: file\. Give it as file=…"),
    "no such split": (["compress", "file=new", "split=dev"], "split must be train or valid or test, got 'dev'"),
    "gray images": (["compress", "file=new", "images=gray.npy"], r"each 0 or 1, got .* with other values"),
    "large images": (
        ["compress", "file=new", "images=large.npy"],
        r"4×4 pixels, .* got an array \(2, 5, 5\)",
    ),
    "no images": (["compress", "file=new", "images=other"], "other holds no array of images"),
    "one number": (["compress", "file=new", "images=scalar.npy"], "scalar.npy holds no array of images"),
    "nowhere to write": (["compress", "file=other/new"], "other"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_message_and_leaves_nothing(
    case: str, trained: Path, run: Run, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "other").write_text("hello")
    (tmp_path / "foreign").write_bytes(content)
    run("compress", f"run={trained}", "file=good")
    (tmp_path / "cut").write_bytes((tmp_path / "good").read_bytes()[:-5])
    np.save(tmp_path / "gray.npy", np.full((2, 4, 4), 0.5))
    np.save(tmp_path / "large.npy", np.zeros((2, 5, 5)))
    np.save(tmp_path / "scalar.npy", np.array(1))
    before = {path.name for path in tmp_path.iterdir()}
    (verb, *words), message = CASES[case]
    with pytest.raises(SystemExit) as stop:
        run(verb, f"run={trained}", *words)
    assert re.search(message, str(stop.value.code))
    assert "\n" not in str(stop.value.code).strip()
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_mosaic_has_every_image_in_its_place() -> None:
    pixels = np.arange(7 * 6, dtype=np.uint8).reshape(7, 2, 3)
    mosaic = coding._mosaic(pixels)
    assert mosaic.shape == (6, 9)
    for i, image in enumerate(pixels):
        row, column = divmod(i, 3)
        assert np.array_equal(mosaic[2 * row : 2 * row + 2, 3 * column : 3 * column + 3], image)
    assert not mosaic[4:, 3:].any()


def test_rivals_are_what_the_programs_write(tmp_path: Path) -> None:
    import gzip
    import lzma

    images = (torch.rand(50, 64, generator=torch.Generator().manual_seed(0)) < 0.1).to(torch.uint8)
    sizes = coding.rivals(images, (8, 8))
    packed, plain = np.packbits(images.numpy()).tobytes(), images.numpy().tobytes()
    assert sizes["raw bits"] == 400
    assert sizes["gzip -9"] == min(len(gzip.compress(packed, 9)), len(gzip.compress(plain, 9)))
    assert sizes["xz -9"] == min(len(lzma.compress(packed, preset=9)), len(lzma.compress(plain, preset=9)))
    assert sizes["PNG, a file for each"] > sizes["PNG, all images in one"] > 0
