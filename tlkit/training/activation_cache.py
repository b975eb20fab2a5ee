"""Cache of the frozen stages' output for each augmented view: epochs start at the first trainable stage.

On a CPU the deployed runtime computes it, several times as fast as PyTorch. Each view is one npy file, row = index of
the image, in half precision if the values fit, with a checksum behind the array, and is written atomically: a resumed
run reuses the files that exist and are intact.
"""

from __future__ import annotations

import os
import shutil
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tlkit.errors import ResourceError, TlkitWarning
from tlkit.graph.trace import map_graph
from tlkit.model.trunk import Trunk, fingerprint
from tlkit.plugin.contract import Progress, Tick, silent
from tlkit.runtime.session import OnnxSession
from tlkit.training.device import Device
from tlkit.training.inputs import AugmentedViews, Batches, DecodedImages, Examples, padded
from tlkit.util.files import NpyWriter, atomic_file, translate_os_errors
from tlkit.util.prefetch import prefetch
from tlkit.util.resources import cores
from tlkit.util.text import format_bytes

RESERVED = 0.05  # share of a disk's free space that is not used
GPU_BATCH_SIZE = 64
CHECKSUM = struct.Struct("<I")  # CRC-32 of the rows, behind them


@dataclass
class ActivationCache:
    """Output of the frozen stages for all views of one split's images, computed on first use."""

    folder: Path
    split: str
    examples: Examples
    views: AugmentedViews
    frozen: nn.Module
    session: OnnxSession | None  # of the same stages; None on a GPU, where PyTorch runs them
    key: str  # changes with the weights of the frozen stages
    device: Device
    progress: Progress = silent
    dtype: type[np.float16 | np.float32] = np.float16
    opened: dict[int, Tensor] = field(default_factory=dict)  # by view, memory-mapped, or on a GPU if they fit there
    fold: NDArray[np.int64] | None = None  # rows of the images that batches are drawn from; None: all

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels `(n,)` of the images that batches are drawn from."""
        return self.examples.labels if self.fold is None else self.examples.labels[self.fold]

    @property
    def missing(self) -> int:
        """Size in bytes of the views that are not on disk yet, in half precision."""
        count = sum(not self._file(number).exists() for number in range(self._count))
        return count * len(self.examples.labels) * int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image's output, channels last."""
        size = self.views.preprocessing.size
        return self.compute(np.zeros((1, size, size, 3), np.uint8)).shape[1:]

    def batches(self, batches: Batches, epoch: int) -> Iterator[Tensor]:
        """Yield the output of the frozen stages for each batch, float32 and with the channels last in memory."""
        view = self._open(self.views.number(epoch) if self.views.varies else 0)
        fold = np.arange(len(self.examples.labels)) if self.fold is None else self.fold
        for rows in batches:
            index = torch.from_numpy(fold[rows])
            here = view.device == self.device.torch_device
            output = self.device.put(view[self.device.put(index) if here else index]).float()
            yield output.permute(0, 3, 1, 2) if output.ndim == 4 else output

    def compute(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the output of the frozen stages for images `(N, S, S, 3)`: `(N, H, W, C)`, or `(N, …)` as it is."""
        if self.session is not None:
            (output,) = self.session.run(images).values()
            return output
        with torch.no_grad(), self.device.autocast():
            maps: Tensor = self.frozen(padded(self.device.put(torch.from_numpy(images)), GPU_BATCH_SIZE))[: len(images)]
            return (maps.permute(0, 2, 3, 1) if maps.ndim == 4 else maps).float().cpu().numpy()

    @property
    def _count(self) -> int:
        return self.views.views if self.views.varies else 1

    def _file(self, number: int) -> Path:
        kind = f"{'crop' if self.views.crop else 'whole'}-{self.views.magnitude}"
        return self.folder / f"{self.key}-{self.split}-{kind}-{number:03}.npy"

    def _open(self, number: int) -> Tensor:
        if not self.opened:
            files = {each: self._file(each) for each in range(self._count)}
            for each, file in files.items():
                if self.device.is_main_process and not self._is_intact(file):
                    self._fill(file, each)
            self.device.barrier()
            # Copied on a write, which PyTorch has to be able to, and nothing does.
            views = {each: np.load(file, mmap_mode="c", allow_pickle=False) for each, file in files.items()}
            fit = sum(view.nbytes for view in views.values()) <= self.device.room()
            place = self.device.torch_device if fit else "cpu"
            self.opened = {each: torch.from_numpy(view).to(place) for each, view in views.items()}
        return self.opened[number]

    def _is_intact(self, file: Path) -> bool:
        """Return True if a view is there with a row for each image, as it was written; a damaged one is removed."""
        if not file.exists():
            return False
        try:
            view = np.load(file, mmap_mode="r", allow_pickle=False)
            whole = view.shape == (len(self.examples.labels), *self.shape) and view.dtype in (np.float16, np.float32)
            with file.open("rb") as stream:
                stream.seek(-CHECKSUM.size, os.SEEK_END)
                whole = whole and CHECKSUM.unpack(stream.read()) == (_checksum(view),)
        except (OSError, ValueError, EOFError, struct.error, SyntaxError, TypeError):
            whole = False
        if not whole:
            warnings.warn(f"{file}: a cached view was damaged and is computed again", TlkitWarning, stacklevel=2)
            file.unlink(missing_ok=True)
        return whole

    def _fill(self, file: Path, number: int) -> None:
        what = f"frozen stages, {self.split} view {number + 1} of {self._count}"
        try:
            self._write(file, number, self.progress(what, len(self.examples.labels)))
        except OverflowError:
            self.dtype = np.float32
            self._write(file, number, self.progress(f"{what}, in single precision", len(self.examples.labels)))

    def _write(self, file: Path, number: int, tick: Tick) -> None:
        """Write one view; raises an OverflowError if half precision can't hold a value."""
        rows, paths = range(len(self.examples.labels)), self.examples.paths
        size = GPU_BATCH_SIZE if self.session is None else self.session.batch_size
        chunks = [rows[start : start + size] for start in range(0, len(rows), size)]

        def decode(row: int) -> NDArray[np.uint8]:
            return self.views.decode(paths[row], number, row)

        def output(chunk: range) -> NDArray[np.float32]:
            return self.compute(np.stack([decode(row) for row in chunk]))

        if self.session is not None:
            outputs = prefetch(output, chunks, workers=self.session.workers, ahead=2 * self.session.workers)
        else:
            images = DecodedImages.ahead(decode, chunks)
            outputs = (self.compute(np.stack([next(images) for _ in chunk])) for chunk in chunks)
        with atomic_file(file) as temporary, translate_os_errors(file), temporary.open("wb") as stream:
            writer, checksum = NpyWriter(stream, self.shape, self.dtype), 0
            for maps in outputs:
                with np.errstate(over="ignore"):
                    kept = maps.astype(self.dtype)
                if np.isinf(kept).any() and not np.isinf(maps).any():
                    raise OverflowError
                writer.write(kept)
                checksum = zlib.crc32(np.ascontiguousarray(kept).data, checksum)
                tick(len(maps))
            writer.close()
            stream.seek(0, os.SEEK_END)
            stream.write(CHECKSUM.pack(checksum))


def _checksum(view: NDArray[Any]) -> int:
    checksum = 0
    for start in range(0, len(view), GPU_BATCH_SIZE):
        checksum = zlib.crc32(np.ascontiguousarray(view[start : start + GPU_BATCH_SIZE]).data, checksum)
    return checksum


def open_cache(
    folder: Path,
    stages: Trunk,
    frozen: nn.Module,
    train: tuple[Examples, AugmentedViews],
    val: tuple[Examples, AugmentedViews],
    device: Device,
    progress: Progress = silent,
) -> tuple[ActivationCache, ActivationCache]:
    """Return the caches of both splits; the cached output of other stages is removed, as no later phase uses it.

    `stages` is the frozen part of a trunk, `frozen` the same on the device. Raises a ResourceError if the disk can't
    hold what is missing.
    """
    session = OnnxSession(map_graph(stages), workers=cores()) if device.type == "cpu" else None
    key = fingerprint(stages)[:16]
    first = ActivationCache(folder, "train", *train, frozen, session, key, device, progress)
    caches = first, replace(first, split="val", examples=val[0], views=val[1], opened={})
    if device.is_main_process:
        for file in folder.glob("*.npy"):
            if not file.name.startswith(key):
                file.unlink(missing_ok=True)
    needed = sum(cache.missing for cache in caches)
    check_space(folder, needed)
    progress(f"the activation cache takes {format_bytes(needed)} more", 0)
    return caches


def check_space(folder: Path, needed: int) -> None:
    """Raise a ResourceError, before any work, if the disk can't hold `needed` bytes."""
    with translate_os_errors(folder):
        free = int(shutil.disk_usage(folder).free * (1 - RESERVED))
    if needed > free:
        raise ResourceError(
            f"the output of the frozen stages takes {format_bytes(needed)}, and {format_bytes(free)} are free",
            file=folder,
            do="use fewer --views, or --views 0 to compute it in every epoch",
        )
