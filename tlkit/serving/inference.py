"""From a request to its answer: check it against the model, decode pictures, queue, and name the labels."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlkit.data.decoding import UnreadableImage, decoding, open_image
from tlkit.data.preprocessing import load
from tlkit.errors import TlkitError
from tlkit.plugin.contract import IMAGES, LOGITS, PROBABILITIES
from tlkit.runtime.evidence import overlay
from tlkit.serving.limits import Limits
from tlkit.serving.metrics import Metrics
from tlkit.serving.models import LABEL, Repository, ServedModel
from tlkit.serving.protocol import (
    InferRequest,
    InferResponse,
    InputTensor,
    OutputTensor,
    ProtocolError,
    RequestedOutput,
)
from tlkit.serving.scheduler import Answer, Job

SOON = 0.05  # seconds: only a client that waits for longer is watched, whether it closes its connection


@dataclass(frozen=True)
class Inference:
    """Answers to requests of HTTP and gRPC, on one event loop. `pool` decodes."""

    repository: Repository
    limits: Limits
    metrics: Metrics
    pool: ThreadPoolExecutor

    async def infer(
        self,
        name: str,
        version: str,
        request: InferRequest,
        gone: Callable[[], Awaitable[object]] | None = None,
    ) -> InferResponse:
        """Return the answer; `gone` returns when the client does not wait any more. Raises ProtocolError."""
        served = self.repository.get(name, version)
        started = time.monotonic()
        with served.used():
            try:
                tensor, asked = check(served, request, self.limits)
                deadline = started + min(self.limits.deadline, request.timeout or self.limits.deadline)
                outputs = sorted(served.prefix_of(name) + name for name in {_computed(each) for each in asked})
                with served.scheduler.admitted(len(tensor.content)):
                    answer = await self._wait(self._begin(served, tensor, tuple(outputs), deadline), gone)
                ended = time.monotonic()
                response = answered(served, request, asked, answer)
            except ProtocolError:
                served.counts.failed += 1
                served.counts.seconds["fail"] += time.monotonic() - started
                raise
            steps = {"queue": answer.queued, "compute_input": answer.decoded, "compute_infer": answer.ran}
            steps["compute_output"] = time.monotonic() - ended
            served.counts.add(len(tensor.content), time.monotonic() - started, **steps)
            self.metrics.answered(served, answer)
            return response

    async def evidence(self, served: ServedModel, data: bytes, label: str) -> bytes:
        """Return the evidence for a label in an encoded picture, drawn over it, as PNG. Raises ProtocolError."""
        if label not in served.labels:
            raise ProtocolError(400, f"there is no label {label[:60]!r}")

        def drawn() -> bytes:
            image = pixels(served, 0, data, self.limits)
            found = served.evidence().maps(image[None], [served.labels.index(label)])[0]
            file = BytesIO()
            Image.fromarray(overlay(image, found)).save(file, "PNG")
            return file.getvalue()

        with served.used(), served.scheduler.admitted(1):
            work = asyncio.get_running_loop().run_in_executor(self.pool, drawn)
            try:
                return await asyncio.wait_for(asyncio.shield(work), self.limits.deadline)
            except TimeoutError as error:
                raise ProtocolError(504, "the deadline has passed", reason="deadline") from error
            except TlkitError as error:
                raise ProtocolError(500, "the model failed", reason="model failed") from error

    def _begin(self, served: ServedModel, tensor: InputTensor, outputs: tuple[str, ...], deadline: float) -> Job:
        """Return the job of a request; the thread that decodes the last of its pictures queues it."""
        content, scheduler = tensor.content, served.scheduler
        later = asyncio.get_running_loop().call_soon  # once the loop waits: a thread that starts needs the GIL at once
        if not isinstance(content, tuple):
            job = Job(content, outputs, deadline)
            later(scheduler.submit, job)
            return job
        job = Job(np.empty((len(content), *served.inputs[IMAGES][1]), np.uint8), outputs, deadline)
        decoded = itertools.count(1)  # which no two threads advance at once

        def decode(index: int) -> None:
            if job.abandoned:
                return
            try:
                job.images[index] = pixels(served, index, content[index], self.limits)
                if next(decoded) == len(content):
                    scheduler.submit(job)
            except Exception as error:  # noqa: BLE001 - raised again by who waits for the answer
                job.fail(error)

        for index in range(len(content)):
            later(self.pool.submit, decode, index)
        return job

    async def _wait(self, job: Job, gone: Callable[[], Awaitable[object]] | None) -> Answer:
        """Return the answer of a job, which is abandoned when its deadline passes or the client goes."""
        future = asyncio.wrap_future(job.future)
        waiting: set[asyncio.Future[object]] = {future}  # type: ignore[arg-type]  # Future is invariant
        listening: asyncio.Future[object] | None = None
        try:
            await asyncio.wait(waiting, timeout=min(SOON, max(0.0, job.deadline - time.monotonic())))
            if not future.done() and gone is not None:
                listening = asyncio.ensure_future(gone())
                waiting.add(listening)
            if not future.done():
                left = max(0.0, job.deadline - time.monotonic())
                await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if future.done():
                return future.result()
            if listening is not None and listening.done():
                raise ProtocolError(499, "the client closed the connection", reason="closed")
            raise ProtocolError(504, "the deadline has passed", reason="deadline")
        except TlkitError as error:
            raise ProtocolError(500, "the model failed", reason="model failed") from error
        finally:
            job.abandoned = True
            future.cancel()
            if listening is not None:
                listening.cancel()


def pixels(served: ServedModel, index: int, data: bytes, limits: Limits) -> NDArray[np.uint8]:
    """Return an encoded picture as the network sees it. Raises ProtocolError."""
    try:
        with decoding():
            width, height = open_image(data).size
        if width * height > limits.pixels:
            raise ProtocolError(400, f"image {index} has more than {limits.pixels:,} pixels", reason="size")
        return load(data, served.model.preprocessing)
    except UnreadableImage as error:
        raise ProtocolError(400, f"image {index} {error.what}", reason="image") from error


def check(
    served: ServedModel, request: InferRequest, limits: Limits
) -> tuple[InputTensor, tuple[RequestedOutput, ...]]:
    """Return the one input of a request and the outputs that it asks for, if they are the model's."""
    if len(request.inputs) != 1 or request.inputs[0].name != IMAGES:
        raise ProtocolError(400, f"the model has one input, {IMAGES!r}")
    tensor = request.inputs[0]
    encoded = isinstance(tensor.content, tuple)
    axes = (() if len(tensor.shape) == 1 else (1,)) if encoded else served.inputs[IMAGES][1]
    if tensor.shape[1:] != axes or not tensor.shape:
        wanted = ["N"] if encoded else ["N", *axes]
        raise ProtocolError(400, f"input {IMAGES!r} must have the shape [{', '.join(map(str, wanted))}]")
    if not 0 < tensor.shape[0] <= limits.images:
        raise ProtocolError(400, f"a request may hold 1 to {limits.images} images", reason="size")
    asked = request.outputs or tuple(RequestedOutput(name, request.binary) for name in served.outputs)
    for each in asked:
        if each.name not in served.outputs:
            raise ProtocolError(400, f"there is no output {each.name[:60]!r}, only {', '.join(served.outputs)}")
        if each.classes and each.name not in (LOGITS, PROBABILITIES):
            raise ProtocolError(400, f"output {each.name!r} has no classes")
    return tensor, asked


def answered(
    served: ServedModel, request: InferRequest, asked: Sequence[RequestedOutput], answer: Answer
) -> InferResponse:
    """Return the outputs that were asked for. Raises ProtocolError for numbers that mean nothing."""
    for values in answer.arrays.values():
        if not np.isfinite(values).all():
            finite = np.isfinite(values).reshape(len(values), -1).all(1)
            raise ProtocolError(400, f"image {int(np.argmin(finite))} makes the network's output NaN", reason="image")
    outputs = []
    for each in asked:
        computed = _computed(each)
        values = answer.arrays[served.prefix_of(computed) + computed]
        outputs.append(_tensor(served, each, values))
    return InferResponse(served.source.name, served.source.version, request.id, tuple(outputs))


def _computed(asked: RequestedOutput) -> str:
    """Return the output of the graph that an output of the protocol is made of."""
    return PROBABILITIES if asked.name == LABEL else asked.name


def _tensor(served: ServedModel, asked: RequestedOutput, values: NDArray[np.float32]) -> OutputTensor:
    if asked.name == LABEL:
        best = tuple(served.labels[i].encode() for i in np.argsort(-values, axis=1, kind="stable")[:, 0])
        return OutputTensor(LABEL, (len(best), 1), best, asked.binary)
    if asked.classes:  # as Triton writes it: value:index:label
        order = np.argsort(-values, axis=1, kind="stable")[:, : asked.classes]
        pairs = ((row, i) for row, best in zip(values, order, strict=True) for i in best)
        texts = tuple(f"{row[i]:f}:{i}:{served.labels[i]}".encode() for row, i in pairs)
        return OutputTensor(asked.name, order.shape, texts, asked.binary)
    values = values.reshape(len(values), -1)  # a score is an axis of one, as in Triton's repositories
    return OutputTensor(asked.name, values.shape, values, asked.binary)
