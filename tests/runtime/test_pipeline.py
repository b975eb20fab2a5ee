"""Images to arrays: in order, unreadable ones in their place, the same for any number of workers."""

from __future__ import annotations

import hashlib
import threading
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tlkit.data.preprocessing import load
from tlkit.errors import ArtifactError, UsageError
from tlkit.plugin.contract import IMAGES, Preprocessing, Session
from tlkit.runtime.pipeline import iter_images, stream
from tlkit.util.resources import cores


@pytest.fixture
def files(pictures):
    return sorted(pictures.rglob("*.png"))


class Counting(Session):
    """Returns the mean of each image, and counts the calls that run concurrently."""

    input, outputs, metadata = IMAGES, ("mean",), {}

    def __init__(self, workers):
        self.workers, self.now, self.most = workers, 0, 0
        self.lock = threading.Lock()

    def run(self, array, outputs=None):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        mean = array.mean((1, 2, 3), dtype=np.float64).astype(np.float32)[:, None]
        with self.lock:
            self.now -= 1
        return {"mean": mean}


PREPROCESSING = Preprocessing(16, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_images_come_in_the_order_of_the_files(files, workers):
    session = Counting(workers)
    batches = list(stream(session, PREPROCESSING, files, hashed=True))
    images = [image for batch in batches for image in batch.images]
    assert [image.name for image in images] == list(map(str, files))
    assert [image.sha256 for image in images] == [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    expected = [load(file, PREPROCESSING).mean(dtype=np.float64) for file in files]
    assert np.concatenate([batch.arrays["mean"] for batch in batches])[:, 0] == pytest.approx(expected)
    if workers == 1:
        assert session.most == 1  # calls are serialized


def test_unreadable_images_keep_their_place(files, tmp_path):
    broken, missing = tmp_path / "broken.jpg", tmp_path / "missing.jpg"
    broken.write_bytes(b"no image")
    mixed = [broken, files[0], missing, *files[1:10], broken]
    batches = list(stream(Counting(2), PREPROCESSING, mixed, hashed=True))
    images = [image for batch in batches for image in batch.images]
    assert [image.name for image in images] == list(map(str, mixed))
    assert [index for index, image in enumerate(images) if image.reason] == [0, 2, 12]
    assert images[2].sha256 == ""
    assert sum(len(batch.arrays.get("mean", ())) for batch in batches) == 10
    assert all(len(batch.readable()) == len(batch.arrays.get("mean", ())) for batch in batches)


def test_files_are_hashed_on_request_only(files):
    assert {image.sha256 for batch in stream(Counting(2), PREPROCESSING, files) for image in batch.images} == {""}


def test_a_batch_without_a_readable_image_has_no_arrays(tmp_path):
    batches = list(stream(Counting(1), PREPROCESSING, [tmp_path / "none.jpg"]))
    assert [batch.arrays for batch in batches] == [{}]


def test_no_images_give_no_batches():
    assert list(stream(Counting(1), PREPROCESSING, [])) == []


def test_only_so_many_files_are_read_ahead(files):
    asked = []

    def source():
        for file in files * 20:
            asked.append(file)
            yield file

    next(stream(Counting(2), PREPROCESSING, source()))
    assert len(asked) <= (2 * max(2, cores()) + 1) * Counting.batch_size


def test_an_error_in_the_session_reaches_the_caller(files):
    class Failing(Counting):
        def run(self, array, outputs=None):
            raise ArtifactError("broken engine")

    with pytest.raises(ArtifactError, match="broken engine"):
        list(stream(Failing(2), PREPROCESSING, files))


def kinds(file):
    """An image as each kind of input."""
    content = file.read_bytes()
    image = Image.open(BytesIO(content))
    return {"str": str(file), "path": file, "bytes": content, "image": image, "array": np.asarray(image.convert("RGB"))}


@pytest.mark.parametrize("kind", ["str", "path", "bytes", "image", "array"])
def test_a_single_input_is_one_image(files, kind):
    (source,) = iter_images(kinds(files[0])[kind])
    assert np.array_equal(load(source, PREPROCESSING), load(files[0], PREPROCESSING))


def test_inputs_may_be_mixed_and_batched(files):
    array = kinds(files[0])["array"]
    sources = list(iter_images([*kinds(files[0]).values(), np.stack([array, array])]))
    assert len(sources) == 7
    expected = load(files[0], PREPROCESSING)
    assert all(np.array_equal(load(source, PREPROCESSING), expected) for source in sources)


def test_a_gray_array_is_the_gray_image(files, tmp_path):
    gray = np.asarray(Image.open(files[0]).convert("L"))
    Image.fromarray(gray).save(tmp_path / "gray.png")
    (source,) = iter_images(gray)
    assert np.array_equal(load(source, PREPROCESSING), load(tmp_path / "gray.png", PREPROCESSING))


def test_an_image_that_is_turned_by_its_exif_is_the_file(tmp_path):
    turned = Image.fromarray(np.arange(30 * 20 * 3, dtype=np.uint8).reshape(30, 20, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        assert np.array_equal(load(opened, PREPROCESSING), load(tmp_path / "turned.png", PREPROCESSING))


def test_inputs_without_a_path_are_numbered(files):
    (batch,) = stream(Counting(1), PREPROCESSING, [files[0], files[1].read_bytes()])
    assert [image.name for image in batch.images] == [str(files[0]), "image 1"]


def test_bytes_are_hashed_too(files):
    content = files[0].read_bytes()
    (batch,) = stream(Counting(1), PREPROCESSING, [content], hashed=True)
    assert batch.images[0].sha256 == hashlib.sha256(content).hexdigest()


def test_the_same_lazy_image_may_be_passed_many_times(files):
    with Image.open(files[0]) as opened:
        batches = list(stream(Counting(4), PREPROCESSING, [opened] * 40))
    means = np.concatenate([batch.arrays["mean"] for batch in batches])
    assert len(means) == 40
    assert np.ptp(means) == 0


def test_an_image_that_breaks_off_is_unreadable(files):
    content = files[0].read_bytes()
    (batch,) = stream(Counting(1), PREPROCESSING, [Image.open(BytesIO(content[: len(content) // 2]))])
    assert "truncated" in batch.images[0].reason


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros(8, np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 1), np.uint8),
        3,
        None,
        bytearray(b"x"),
        ["a.jpg", 3],
        [["a.jpg"]],
        torch.zeros((8, 8, 3), dtype=torch.uint8),
        "s3://bucket/a.jpg",
    ],
    ids=str,
)
def test_other_inputs_are_refused(image):
    with pytest.raises(UsageError):
        list(iter_images(image))


def test_a_folder_is_unreadable(tmp_path: Path):
    (batch,) = stream(Counting(1), PREPROCESSING, iter_images(tmp_path))
    assert batch.images[0].reason == "is a folder, not an image"


class Dividing(Counting):
    """Divides by the mean, so a black image has no finite output."""

    def run(self, array, outputs=None):
        mean = super().run(array, outputs)["mean"]
        with np.errstate(divide="ignore"):
            return {"mean": mean, "inverse": 1 / mean}


def test_an_image_without_a_finite_output_is_rejected_by_name(files, tmp_path):
    black = tmp_path / "black.png"
    Image.new("RGB", (20, 20)).save(black)
    given = [files[0], tmp_path / "gone.png", black, files[1]]
    images, rows = [], 0
    for batch in stream(Dividing(1), PREPROCESSING, given):
        images.extend(batch.images)
        assert all(np.isfinite(array).all() for array in batch.arrays.values())
        rows += len(batch.arrays["inverse"])
    reasons = {image.name: image.reason for image in images}
    assert reasons[str(black)] == "makes the network's output NaN"
    assert (rows, [reasons[str(file)] for file in (files[0], files[1])]) == (2, [None, None])
    (alone,) = stream(Dividing(1), PREPROCESSING, [black])
    assert alone.readable() == []
