"""What is drawn from a finished run: samples and completions, as pictures and as bits."""

from __future__ import annotations

from pathlib import Path

import anyorder
import numpy as np
import pytest
import torch
from PIL import Image
from zoo import chance, every_image

from chainrule import load_model
from chainrule.evaluation import sampling
from chainrule.evaluation.sampling import mask

Command = anyorder.command


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``any``, a model of any order, and ``one``, of one order."""
    where = tmp_path_factory.mktemp("sampling")
    anyorder.train(where / "any")
    with pytest.MonkeyPatch.context() as patch:
        words = ["data=toy", "model=fvsbn", "logger=none", "trainer.max_epochs=1", "hydra.run.dir=one"]
        Command(patch, where, "train", *words)
    return where


def bits(text: str, name: str, shape: tuple[int, int] = (4, 4)) -> None:
    found = mask(name, shape, torch.Generator().manual_seed(0)).view(shape)
    assert "/".join("".join(str(int(bit)) for bit in row) for row in found) == text, name


def test_masks_by_name(tmp_path: Path) -> None:
    bits("1100/1100/1100/1100", "left")
    bits("0011/0011/0011/0011", "right")
    bits("1111/1111/0000/0000", "top")
    bits("0000/0000/1111/1111", "bottom")
    bits("0000/0110/0110/0000", "centre")
    assert mask("random-0.3", (10, 10), torch.Generator().manual_seed(0)).sum() == 30
    picture = np.array([[0, 255], [200, 3], [0, 128]], np.uint8)
    Image.fromarray(picture).save(tmp_path / "mask.png")
    bits("01/10/01", str(tmp_path / "mask.png"), (3, 2))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("middle", r"observed must be left, right, top, bottom, centre, random-0.3 or a .png file, got 'middle'"),
        ("random-1.5", "got 'random-1.5'"),
        ("mask.png", r"mask.png must have 4×4 pixels, got 3×2"),
    ],
)
def test_what_is_no_mask(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((3, 2), np.uint8)).save("mask.png")
    with pytest.raises(ValueError, match=message):
        mask(name, (4, 4), torch.Generator())


@pytest.mark.parametrize("observed", ["right", "centre", "random-0.4"])
def test_any_mask_is_completed_exactly(observed: str, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["run=any", f"observed={observed}", "n=1", "draws=1000", "out=x.npy", "seed=3"]
    Command(monkeypatch, trained, "complete", *words)
    draws = torch.from_numpy(np.load(trained / "x.npy").reshape(-1, 9))
    generator = torch.Generator().manual_seed(3)
    seen = mask(observed, (3, 3), generator)
    assert (draws[:, seen] == draws[0, seen]).all()
    # Each of the images that show the same is drawn as often as the model says in an order that begins with it.
    x = every_image()[(every_image()[:, seen] == draws[0, seen]).all(1)]
    model = load_model(trained / "any").double().reordered(sampling.order_after(seen, generator))
    expected = model.log_prob(x).softmax(0).detach().numpy() * len(draws)
    found = np.array([(draws == image).all(1).sum() for image in x])
    assert expected.min() > 1
    assert chance(found, expected) > 1e-3


def test_an_order_that_is_asked_for_is_kept(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"observed=right: order=raster does not begin with these pixels"):
        Command(monkeypatch, trained, "complete", "run=any", "observed=right", "order=raster")


def test_a_prefix_is_completed_by_every_model_and_another_mask_refused(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Command(monkeypatch, trained, "complete", "run=one", "observed=top", "out=top.png")
    assert (trained / "top.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(SystemExit, match=r"no order of one begins .*; transposed_lr, .* do: .*; a model of any"):
        Command(monkeypatch, trained, "complete", "run=one", "observed=right")
    with pytest.raises(SystemExit, match=r"order=transposed_lr: one was trained in one order only"):
        Command(monkeypatch, trained, "complete", "run=one", "order=transposed_lr")


def test_completions_as_bits(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Command(monkeypatch, trained, "complete", "run=one", "keep=0.34", "n=5", "draws=4", "out=bits.npy")
    found = np.load(trained / "bits.npy")
    assert (found.shape, found.dtype) == ((5, 4, 3, 3), np.uint8)
    assert (found[:, :, 0] == found[:, :1, 0]).all()  # the first row is kept
    with pytest.raises(SystemExit, match=r"out must end in .png or .npy, got bits.txt"):
        Command(monkeypatch, trained, "complete", "run=one", "out=bits.txt")


def test_many_samples_are_drawn_in_parts(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    model = load_model(trained / "one")
    monkeypatch.setattr(sampling, "load_model", lambda path, trust: model)
    monkeypatch.setattr(type(model), "draw", lambda self, u: sizes.append(len(u)) or (u < 0.5).to(u.dtype))
    Command(monkeypatch, trained, "sample", "run=one", "n=50000", "out=many.npy")
    found = np.load(trained / "many.npy")
    assert (found.shape, found.dtype) == ((50_000, 3, 3), np.uint8)
    assert max(sizes) <= 250
    together = torch.rand(50_000, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    assert np.array_equal(found.reshape(-1, 9), together.numpy())


def test_a_picture_has_a_limit(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"a picture has at most 5,000 images, got n=1,000,000: write bits"):
        Command(monkeypatch, trained, "sample", "run=one", "n=1000000")
