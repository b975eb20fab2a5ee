"""Pictures are bounded in bytes while they are decoded, each by itself and all together."""

from __future__ import annotations

import io
import os
import select
import struct
import threading

import pytest
from PIL import Image

from tests.kit.hostile import finish, start
from tlkit.data import memory, preprocessing
from tlkit.data.decoding import UnreadableImage, open_image
from tlkit.data.memory import needed, reserved
from tlkit.data.preprocessing import load
from tlkit.errors import UsageError
from tlkit.plugin.contract import Preprocessing

PREPROCESSING = Preprocessing(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def webp(width: int, height: int) -> bytes:
    """A lossless WebP of one color, of any size, in 30 bytes."""
    pixels = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + b"\x88\x88\x08\0\0"
    return b"RIFF" + struct.pack("<I", 12 + len(pixels)) + b"WEBPVP8L" + struct.pack("<I", len(pixels)) + pixels


def encoded(mode: str, side: int, kind: str, **options: object) -> bytes:
    written = io.BytesIO()
    Image.new(mode, (side, side)).save(written, kind, **options)
    return written.getvalue()


def peak(data: bytes) -> int:
    """Bytes by which a process grows that decodes an image."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            before = _resident("VmRSS")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(memory, "LIMIT", 100)
                load(data, PREPROCESSING)
            os.write(writing, str(_resident("VmHWM") - before).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    return int(os.read(reading, 100))


def _resident(name: str) -> int:
    with open("/proc/self/status") as lines:
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the system does not tell the memory of a process")
@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGB", "PNG"), ("RGBA", "PNG"), ("LA", "PNG"), ("P", "GIF"), ("I;16", "PNG"), ("CMYK", "JPEG"), ("RGBA", "WEBP")],
)
def test_what_is_counted_is_enough(mode: str, kind: str) -> None:
    data = encoded(mode, 1800, kind)
    image = open_image(data)
    assert peak(data) <= needed(image, image.size) + len(data) + 2**22


def test_a_file_of_some_bytes_is_refused_by_its_header() -> None:
    assert len(webp(13_000, 13_000)) < 35
    assert load(webp(100, 100), PREPROCESSING).shape == (32, 32, 3)
    what = r"13000 x 13000 pixels take 3.38 GB to decode, more than 1.61 GB; .* set TLKIT_IMAGE_MEMORY to more GiB"
    with pytest.raises(UnreadableImage, match=what):
        load(webp(13_000, 13_000), PREPROCESSING)


def test_a_large_jpeg_is_decoded_at_reduced_scale() -> None:
    data = encoded("L", 3000, "JPEG")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "LIMIT", 0.02)
        assert load(data, PREPROCESSING).shape == (32, 32, 3)
        with pytest.raises(UnreadableImage, match=r"3000 x 3000 pixels take .* to decode"):
            load(encoded("L", 3000, "JPEG", progressive=True), PREPROCESSING)  # all its coefficients are kept


def test_the_limit_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded("RGB", 1500, "PNG")
    monkeypatch.setenv(memory.LIMIT_VARIABLE, "0.01")
    with pytest.raises(UnreadableImage, match=r"1500 x 1500 pixels take 18 MB to decode, more than 10.7 MB"):
        load(data, PREPROCESSING)
    monkeypatch.setenv(memory.LIMIT_VARIABLE, "much")
    with pytest.raises(UsageError, match="TLKIT_IMAGE_MEMORY=much is not a number of GiB"):
        load(data, PREPROCESSING)


def test_pictures_that_are_decoded_at_once_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.new("RGB", (2000, 2000))  # 32 MB
    monkeypatch.setattr(memory, "LIMIT", 70e6 / 2**30)
    inside, most, failed = [0], [0], list[Exception]()
    two, together = threading.Event(), threading.Lock()

    def decode() -> None:
        with reserved(image, image.size):
            with together:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            if most[0] == 2:
                two.set()
            two.wait(10)
            with together:
                inside[0] -= 1

    threads = [threading.Thread(target=decode) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (most, inside, failed, memory._taken) == ([2], [0], [], [0])


def test_a_picture_that_is_decoded_again_gives_back_what_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded("RGB", 1500, "PNG")
    chunk = b"tEXt" + b"a\0" + b"x" * 20
    damaged = data[:33] + struct.pack(">I", len(chunk) - 4) + chunk + b"\0\0\0\0" + data[33:]  # its checksum is wrong
    monkeypatch.setattr(memory, "LIMIT", 40e6 / 2**30)
    taken = []
    whole = preprocessing.render
    monkeypatch.setattr(preprocessing, "render", lambda *given: (taken.append(memory._taken[0]), whole(*given))[1])
    assert (load(damaged, PREPROCESSING) == load(data, PREPROCESSING)).all()
    assert taken == [18_000_000, 18_000_000]
    assert memory._taken == [0]


def test_processes_of_torchrun_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has half: pictures within it are decoded beside those of the other, one that takes more is alone."""
    small, large = Image.new("RGB", (1500, 1500)), Image.new("RGB", (3000, 2000))  # 18 and 48 MB
    monkeypatch.setattr(memory, "LIMIT", 60e6 / 2**30)
    monkeypatch.setenv(memory.PROCESSES_VARIABLE, "2")
    (go, began), (told, tell) = os.pipe(), os.pipe()

    def other() -> None:
        os.read(go, 1)
        with reserved(small, small.size):
            os.write(tell, b"s")
        with reserved(large, large.size):
            os.write(tell, b"l")

    def says(seconds: float) -> bytes:
        return os.read(told, 1) if select.select([told], [], [], seconds)[0] else b""

    pid = start(other)
    with reserved(small, small.size):
        os.write(began, b"b")
        assert (says(20), says(0.2)) == (b"s", b"")
    assert (says(20), finish(pid)) == (b"l", 0)
    assert (memory._taken, memory._lock) == ([0], [])
    monkeypatch.setenv(memory.PROCESSES_VARIABLE, "many")
    with reserved(large, large.size):
        assert memory._lock == []
