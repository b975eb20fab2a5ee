"""JPEGs as they are left by a download that ended early: used if all pixels are there, else refused."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tlkit.data.decoding import UnreadableImage
from tlkit.data.jpeg import END, Jpeg
from tlkit.data.preprocessing import load
from tlkit.plugin.contract import Preprocessing

WHOLE = Preprocessing(64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1.0, "squash")
KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "optimized": {"optimize": True},
    "full color": {"subsampling": 0},
    "RST markers": {"restart_marker_rows": 1},
    "progressive": {"progressive": True},
}
SHARES = (0.3, 0.5, 0.75)


def jpeg(mode: str = "RGB", size: tuple[int, int] = (200, 150), **options: Any) -> bytes:
    coarse = np.random.default_rng(1).integers(0, 256, (12, 16, 3), np.uint8)
    picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    file = BytesIO()
    picture.convert(mode).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def refused(data: bytes) -> bool:
    try:
        load(data, WHOLE)
    except UnreadableImage:
        return True
    return False


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_jpeg_is_refused_and_one_that_lacks_its_end_mark_alone_is_used(kind: str, mode: str) -> None:
    whole = jpeg(mode, **KINDS[kind])
    expected = load(whole, WHOLE)
    assert whole.endswith(END)
    for complete in (whole[:-2], whole[:-1], whole + b"behind", whole[:-2] + bytes(2000), whole[:-2] + b"\0\1" + END):
        assert np.array_equal(load(complete, WHOLE), expected)
    for share in SHARES:
        start = whole[: int(len(whole) * share)]
        assert refused(start)
        assert refused(start + bytes(len(whole) - len(start)))
        # A progressive file that lacks the last bits of its coefficients alone has all its rows.
        assert refused(start + END) or (kind == "progressive" and share == SHARES[-1])


@pytest.mark.parametrize("size", [(1600, 1200), (801, 609), (203, 145)])  # the first two are decoded at reduced scale
def test_a_cut_jpeg_of_any_size_is_refused(size: tuple[int, int]) -> None:
    whole = jpeg(size=size)
    for share in (0.1, 0.5, 0.9):
        assert refused(whole[: int(len(whole) * share)] + END)
    assert not refused(whole)
    assert not refused(whole[:-2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_gray_picture_is_complete(kind: str) -> None:
    for mode in ("RGB", "L"):
        file = BytesIO()
        Image.new("RGB", (90, 70), (128, 128, 128)).convert(mode).save(file, "JPEG", **KINDS[kind])
        assert (load(file.getvalue(), WHOLE) == 128).all()
        if kind != "optimized":  # its data are zeros alone, as of a file that was never written
            assert (load(file.getvalue()[:-2], WHOLE) == 128).all()


def test_the_first_image_of_several_is_the_one_that_may_be_cut() -> None:
    whole = jpeg()
    assert not refused(whole + whole)
    assert refused(whole[: len(whole) // 2] + END + whole)
    assert refused(whole[: len(whole) // 2] + whole)


def test_a_complete_jpeg_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[int] = []
    original = Jpeg.is_cut
    monkeypatch.setattr(Jpeg, "is_cut", lambda self, *images: judged.append(1) or original(self, *images))
    load(jpeg(), WHOLE)
    load(jpeg(progressive=True), WHOLE)
    assert judged == []
    load(jpeg()[:-2], WHOLE)
    assert judged == [1]
