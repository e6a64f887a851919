"""Pictures as they are, in order, read ahead: for evaluations of models that take pictures of any size.

h, w picture
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from torch import Tensor

from saccade.data.dataset import Dataset
from saccade.errors import DataError, ImageError
from saccade.types import Sample, Target

_AHEAD = 2
"""Threads that read pictures for an evaluation, and batches that they may be ahead of it."""


@dataclass(frozen=True, eq=False)
class PictureBatch:
    """Pictures as they are, each with its ground truth in its own pixels.

    Attributes:
        pictures: each ``[3, h, w]`` uint8.
        targets: ground truth of each.
        sources: path or ``file#index`` of each.
        indices: place of each in the data set.
    """

    pictures: tuple[Tensor, ...]
    targets: tuple[Target, ...]
    sources: tuple[str, ...]
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.pictures)


class Pictures:
    """The pictures of a data set as they are, in order: what segmenters and detectors are evaluated on.

    Reading runs ahead in threads (decoders let go of the interpreter), never by more than ``_AHEAD`` batches.

    Args:
        dataset: the samples.
        batch_size: pictures per batch.
        strict: fail at the first unreadable picture instead of skipping it.

    Attributes:
        skipped: one sentence for every picture skipped so far.
    """

    def __init__(self, dataset: Dataset, batch_size: int = 8, *, strict: bool = False) -> None:
        if not len(dataset):
            raise DataError("the data set is empty", expected="at least one picture")
        self.dataset, self.batch_size, self.strict = dataset, batch_size, strict
        self.skipped: list[str] = []

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-len(self.dataset) // self.batch_size)

    def epoch(self, epoch: int = 0, start_batch: int = 0) -> Iterator[PictureBatch]:
        """The batches from ``start_batch`` on; every epoch is the same.

        Raises:
            ImageError: with ``strict``, at the first picture that cannot be decoded.
        """
        places = range(start_batch * self.batch_size, len(self.dataset))
        with ThreadPoolExecutor(_AHEAD) as pool:
            waiting: deque[Future[Sample]] = deque()
            feed = iter(places)
            done = iter(places)
            for place in islice(feed, _AHEAD * self.batch_size):
                waiting.append(pool.submit(self.dataset.__getitem__, place))
            while waiting:
                found: list[tuple[int, Sample]] = []
                for _ in range(min(self.batch_size, len(waiting))):
                    index = next(done)
                    try:
                        found.append((index, waiting.popleft().result()))
                    except ImageError as error:
                        if self.strict:
                            raise
                        self._report(str(error))
                    for place in islice(feed, 1):
                        waiting.append(pool.submit(self.dataset.__getitem__, place))
                if found:
                    yield PictureBatch(
                        tuple(sample.image for _, sample in found),
                        tuple(sample.target for _, sample in found),
                        tuple(sample.source for _, sample in found),
                        tuple(index for index, _ in found),
                    )

    def _report(self, problem: str) -> None:
        if problem not in self.skipped:
            self.skipped.append(problem)
