"""What frozen stages give on, computed once for each view of each image and kept on disk: every epoch begins there.

On a CPU it is the deployed runtime that computes it, several times as fast as PyTorch. A view of all images is one npy
file, row = index of the image, in half precision where the values fit, and is written whole or not at all: a run that
is taken up finds those that are there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tlkit.errors import ResourceError
from tlkit.graph.trace import map_graph
from tlkit.model.trunk import Trunk, fingerprint
from tlkit.plugin.contract import Progress
from tlkit.runtime.session import OnnxSession
from tlkit.training.device import Device
from tlkit.training.inputs import AugmentedViews, Batches, Images, Inputs
from tlkit.util.files import NpyWriter, atomic_file, translate_os_errors
from tlkit.util.prefetch import prefetch
from tlkit.util.resources import cores
from tlkit.util.text import format_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPARE = 0.05  # of a disk's free space that is left alone
GPU_BATCH = 64  # images at once

Give = Callable[["NDArray[np.uint8]"], "NDArray[np.float32]"]  # images to maps, channels last


@dataclass(frozen=True, slots=True)
class Border:
    """The frozen stages of a trunk: what they give for images, and a name that changes with their weights."""

    give: Give
    batch_size: int  # images a call
    workers: int  # that call at the same time
    key: str
    shape: tuple[int, ...]  # of one image's map, channels last


def border(part: Trunk, frozen: nn.Module, machine: Device) -> Border:
    """The end of a trunk's frozen part; `frozen` are its stages on the machine's device."""
    if machine.device.type == "cpu":
        session = OnnxSession(map_graph(part), workers=cores())
        (output,) = session.outputs
        give: Give = lambda images: session.run(images)[output]  # noqa: E731
        batch, workers = session.batch_size, session.workers
    else:
        batch, workers = GPU_BATCH, 1

        def give(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            with torch.no_grad(), machine.autocast():
                given: Tensor = frozen(machine.put(torch.from_numpy(images)))
                last = given.permute(0, 2, 3, 1) if given.ndim == 4 else given
                return last.float().cpu().numpy()

    size = part.preprocessing.size
    shape = give(np.zeros((1, size, size, 3), np.uint8)).shape[1:]
    return Border(give, batch, workers, fingerprint(part)[:16], shape)


class ActivationCache(Inputs):
    """The maps of one split's images at a border, computed in all views when one is first asked for."""

    def __init__(
        self,
        folder: Path,
        split: str,
        images: Images,
        variety: AugmentedViews,
        edge: Border,
        machine: Device,
        say: Progress,
    ) -> None:
        self.folder, self.split, self.images, self.variety = folder, split, images, variety
        self.edge, self.machine, self.say = edge, machine, say
        self.labels = images.labels
        self.opened: dict[int, NDArray[Any]] = {}
        self.kind: type[np.float16 | np.float32] = np.float16

    @property
    def missing(self) -> int:
        """How many bytes the views that are not there yet take, in half precision."""
        lacking = sum(not self._file(number).exists() for number in range(self._views))
        return lacking * len(self.labels) * int(np.prod(self.edge.shape)) * np.dtype(self.kind).itemsize

    def batches(self, batches: Batches, epoch: int) -> Iterator[Tensor]:
        maps = self._view(self.variety.number(epoch) if self.variety.varies else 0)
        for rows in batches:
            taken = torch.from_numpy(maps[rows])
            given = self.machine.put(taken).float()
            yield given.permute(0, 3, 1, 2) if given.ndim == 4 else given

    @property
    def _views(self) -> int:
        return self.variety.views if self.variety.varies else 1

    def _file(self, number: int) -> Path:
        kind = f"{'crop' if self.variety.crop else 'whole'}-{self.variety.magnitude}"
        return self.folder / f"{self.edge.key}-{self.split}-{kind}-{number:03}.npy"

    def _view(self, number: int) -> NDArray[Any]:
        if not self.opened:
            files = {each: self._file(each) for each in range(self._views)}
            for each, file in files.items():
                if self.machine.is_main_process and not file.exists():
                    self._compute(file, each)
            self.machine.barrier()
            self.opened = {each: np.load(file, mmap_mode="r", allow_pickle=False) for each, file in files.items()}
        return self.opened[number]

    def _compute(self, file: Path, number: int) -> None:
        tick = self.say(f"frozen stages, {self.split} view {number + 1} of {self._views}", len(self.labels))
        try:
            self._write(file, number, tick)
        except _TooLarge:
            self.kind = np.float32
            self._write(file, number, self.say("the same in single precision", len(self.labels)))

    def _write(self, file: Path, number: int, tick: Callable[[int], object]) -> None:
        rows = range(len(self.labels))

        def work(rows: range) -> NDArray[np.float32]:
            seen = [self.variety.see(self.images.paths[row], self.images.preprocessing, number, row) for row in rows]
            return self.edge.give(np.stack(seen))

        chunks = (rows[start : start + self.edge.batch_size] for start in range(0, len(rows), self.edge.batch_size))
        # Written from front to back and not through a map of memory, where a full disk would end the process.
        with atomic_file(file) as temporary, translate_os_errors(file), temporary.open("wb") as stream:
            writer = NpyWriter(stream, self.edge.shape, self.kind)
            for maps in prefetch(work, chunks, workers=max(self.edge.workers, 1), ahead=2 * self.edge.workers):
                with np.errstate(over="ignore"):
                    kept = maps.astype(self.kind)
                if np.isinf(kept).any() and not np.isinf(maps).any():
                    raise _TooLarge
                writer.write(kept)
                tick(len(maps))
            writer.close()


class _TooLarge(Exception):
    """A value that half precision can't hold."""


def forget_others(folder: Path, key: str) -> None:
    """Remove what was kept at other borders: no phase to come begins there."""
    for file in folder.glob("*.npy"):
        if not file.name.startswith(key):
            file.unlink(missing_ok=True)


def check_space(folder: Path, needed: int) -> None:
    """Refuse, before any work, what the disk can't hold."""
    with translate_os_errors(folder):
        free = int(shutil.disk_usage(folder).free * (1 - SPARE))
    if needed > free:
        raise ResourceError(
            f"the output of the frozen stages takes {format_bytes(needed)}, and {format_bytes(free)} are free",
            file=folder,
            do="take fewer --views, or --views 0 to compute it anew in every epoch",
        )
