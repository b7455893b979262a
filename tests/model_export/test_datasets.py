"""Data to train on: the digits, CIFAR's archives, folders of images."""

import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from model_export.datasets import open_data
from model_export.datasets.base import DataSet, pad_crop_flip
from model_export.datasets.digits import augment, enlarge, load_digits
from model_export.errors import ExportError
from model_export.images import read_image, to_pixels
from tests.model_export import cifar_archive as archive

Written = dict[str, bytes]


def pixels_of(normalised: torch.Tensor, data: DataSet) -> NDArray[np.uint8]:
    """Back to `[n, 3, H, W]` in 0 to 255."""
    recipe = data.facts.preprocessing
    mean, std = (torch.tensor(each).reshape(1, 3, 1, 1) for each in (recipe.mean, recipe.std))
    return ((normalised * std + mean) * 255).round().numpy().astype(np.uint8)


def test_the_split_of_the_digits_is_fixed_stratified_and_apart() -> None:
    digits, again = load_digits(), load_digits()
    assert (len(digits.train_scans), len(digits.test_scans)) == (1437, 360)
    np.testing.assert_array_equal(digits.test_scans, again.test_scans)
    assert np.bincount(digits.test_targets).min() >= 34
    seen = {scan.tobytes() for scan in digits.train_scans}
    assert not any(scan.tobytes() in seen for scan in digits.test_scans)


def test_augmented_digits_keep_their_range_and_about_half_are_inverted() -> None:
    torch.manual_seed(0)
    images = enlarge(load_digits().train_scans[:200], Image.Resampling.BILINEAR).unsqueeze(1).float() / 255
    augmented = augment(images)
    assert augmented.shape == images.shape
    assert augmented.min() >= 0
    assert augmented.max() <= 1
    corners = augmented[:, 0, 0, 0] > 0.5
    assert 60 < corners.sum() < 140


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
@pytest.mark.parametrize("version", [archive.binary, archive.python])
@pytest.mark.parametrize("form", ["unpacked", "in a folder", "archive", "beside"])
def test_cifar_is_read_from_every_version_and_form(
    kind: str,
    version: Callable[[str, archive.Images, archive.Images], Written],
    form: str,
    tmp_path: Path,
) -> None:
    training, test = archive.images(kind, 200, seed=1), archive.images(kind, 130, seed=2)
    files = version(kind, training, test)
    place = tmp_path
    if form == "archive":
        place = archive.write_archive(tmp_path / "any.tar.gz", files)
    elif form == "beside":
        archive.write_archive(tmp_path / f"cifar-{kind}.tar.gz", files)
    else:
        archive.write_folder(tmp_path / ("cifar" if form == "in a folder" else ""), files)

    data = open_data(f"{kind}:{place}", 32)

    assert data.facts.labels == archive.LABELS[kind]
    assert (data.facts.training_images, data.facts.held_out_images) == (200, 130)
    batches = list(data.held_out(50))
    assert [len(batch.targets) for batch in batches] == [50, 50, 30]
    np.testing.assert_array_equal(torch.cat([batch.targets for batch in batches]), test[1])
    read = pixels_of(torch.cat([batch.images for batch in batches]), data)
    np.testing.assert_array_equal(read, test[0])
    (batch,) = data.training(200)
    centre = pixels_of(batch.images, data)[:, :, 16, 16]
    given = sorted(
        (int(label), *colour) for label, colour in zip(training[1], training[0][:, :, 0, 0].tolist(), strict=True)
    )
    assert sorted((int(label), *colour) for label, colour in zip(batch.targets, centre.tolist(), strict=True)) == given


def without(name: str) -> Callable[[Written], Written]:
    return lambda files: {key: content for key, content in files.items() if key != name}


def changed(name: str, content: Callable[[bytes], bytes]) -> Callable[[Written], Written]:
    return lambda files: files | {name: content(files[name])}


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (without("data_batch_3"), "does not hold all of CIFAR-10"),
        (without("batches.meta"), "does not hold all of CIFAR-10"),
        (changed("data_batch_2", lambda content: content[:-100]), "data_batch_2 is damaged"),
        (changed("test_batch", lambda _: archive.python2_pickle([1, 2])), "test_batch is no batch of CIFAR"),
        (changed("test_batch", lambda _: archive.python2_pickle({"labels": [1]})), "does not hold images"),
        (changed("batches.meta", lambda _: archive.python2_pickle({"label_names": ["a"]})), "has 1 labels and not 10"),
        (
            changed(
                "test_batch", lambda _: archive._pickled((np.zeros((1, 3072), np.uint8), np.array([10])), "labels")
            ),
            "a label outside 0 to 9",
        ),
    ],
)
def test_a_damaged_python_archive_is_refused(harm: Callable[[Written], Written], reason: str, tmp_path: Path) -> None:
    files = archive.python("cifar10", archive.images("cifar10", 20, seed=1), archive.images("cifar10", 10, seed=2))
    archive.write_folder(tmp_path, harm(files))
    with pytest.raises(ExportError, match=reason):
        open_data(f"cifar10:{tmp_path}", 32)


def test_a_damaged_binary_archive_is_refused(tmp_path: Path) -> None:
    files = archive.binary("cifar100", archive.images("cifar100", 10, seed=1), archive.images("cifar100", 10, seed=2))
    archive.write_folder(tmp_path, files | {"train.bin": files["train.bin"][:-1]})
    with pytest.raises(ExportError, match=r"train\.bin is cut off"):
        open_data(f"cifar100:{tmp_path}", 32)
    packed = archive.write_archive(tmp_path / "cut.tar.gz", files)
    packed.write_bytes(packed.read_bytes()[:300])
    with pytest.raises(ExportError, match="no whole tar archive"):
        open_data(f"cifar100:{packed}", 32)


class _RunsCode:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.proof),)


def test_no_code_in_a_pickle_is_run(tmp_path: Path) -> None:
    files = archive.python("cifar10", archive.images("cifar10", 20, seed=1), archive.images("cifar10", 10, seed=2))
    proof = tmp_path / "was here"
    place = archive.write_folder(tmp_path / "data", files | {"data_batch_1": pickle.dumps(_RunsCode(proof))})
    with pytest.raises(ExportError, match="mkdir"):
        open_data(f"cifar10:{place}", 32)
    assert not proof.exists()


def test_crops_stay_within_four_pixels_and_half_of_them_are_mirrored() -> None:
    torch.manual_seed(0)
    # Each pixel of the middle says where it was.
    image = torch.arange(1.0, 1025).reshape(1, 1, 32, 32)
    cropped = pad_crop_flip(image.expand(400, 1, 32, 32), 4, flip=True)
    mirrored = cropped[:, 0, 16, 10] > cropped[:, 0, 16, 11]
    assert 150 < mirrored.sum() < 250
    upright = torch.where(mirrored[:, None, None, None], cropped.flip(3), cropped)
    shifts = {(int(each) // 32 - 16, int(each) % 32 - 16) for each in (upright[:, 0, 16, 16] - 1)}
    assert {rows for rows, _ in shifts} == {columns for _, columns in shifts} == set(range(-4, 5))
    assert not (pad_crop_flip(image.expand(50, 1, 32, 32), 4, flip=False)[:, 0, 16].diff()[:, 8:20] < 0).any()


def write_images(folder: Path, counts: Mapping[str, int], size: tuple[int, int] = (40, 48)) -> Path:
    generator = np.random.default_rng(0)
    for label, count in counts.items():
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


@pytest.mark.parametrize("input_size", [32, 224])
def test_a_folder_holds_out_a_fifth_of_each_class_prepared_as_it_will_be_served(
    input_size: int, tmp_path: Path
) -> None:
    folder = write_images(tmp_path / "pets", {"dog": 10, "cat": 5, "eel": 2})
    data = open_data(f"folder:{folder}", input_size)
    assert data.facts.labels == ("cat", "dog", "eel")
    assert data.facts.held_out_name == "pets, held-out 20 %"
    (batch,) = data.held_out(10)
    assert sorted(batch.targets.tolist()) == [0, 1, 1, 2]
    again = next(iter(open_data(f"folder:{folder}", input_size).held_out(10)))
    assert torch.equal(batch.images, again.images)
    served = [to_pixels(read_image(path), data.facts.preprocessing).tobytes() for path in sorted(folder.glob("*/*"))]
    found = [served.index(image.transpose(1, 2, 0).tobytes()) for image in pixels_of(batch.images, data)]
    assert [0 if place < 5 else 1 if place < 15 else 2 for place in found] == batch.targets.tolist()
    seen = [count for batch in data.training(4) for count in batch.targets.tolist()]
    assert len(seen) == 12, "of thirteen in batches of four the last one is left out"


@pytest.mark.parametrize("input_size", [32, 224])
def test_the_seed_decides_how_a_folder_is_augmented(input_size: int, tmp_path: Path) -> None:
    data = open_data(f"folder:{write_images(tmp_path, {'a': 4, 'b': 4})}", input_size)

    def epoch(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([batch.images for batch in data.training(4)])

    first, again, other = epoch(1), epoch(1), epoch(2)
    assert first.shape[1:] == (3, input_size, input_size)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_folder_with_parts_is_taken_as_it_is_divided(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"a": 3, "b": 4})
    write_images(tmp_path / "val", {"b": 2})
    data = open_data(f"folder:{tmp_path}", 32)
    assert (data.facts.training_images, data.facts.held_out_images) == (7, 2)
    assert data.facts.held_out_name == f"{tmp_path.name}, val"
    (batch,) = data.held_out(5)
    assert batch.targets.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("counts", "reason"),
    [({"a": 3}, "1 folders with images"), ({"a": 3, "b": 1}, "class b has one image"), ({}, "no PNG")],
)
def test_a_folder_that_cannot_be_learned_is_refused(counts: Mapping[str, int], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=reason):
        open_data(f"folder:{write_images(tmp_path, counts)}", 32)


@pytest.mark.parametrize("input_size", [32, 224])
def test_a_broken_image_is_named(input_size: int, tmp_path: Path) -> None:
    broken = write_images(tmp_path, {"a": 3, "b": 3}) / "a" / "2.png"
    broken.write_bytes(broken.read_bytes()[:100])

    def read_all() -> None:
        data = open_data(f"folder:{tmp_path}", input_size)
        assert list(data.training(4))
        assert list(data.held_out(4))

    with pytest.raises(ExportError, match=r"2\.png cannot be used"):
        read_all()
