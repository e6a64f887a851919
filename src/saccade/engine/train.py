"""Training: one readable loop that yields a record per step and per epoch; the caller prints, plots or stops.

A run can be killed at any moment and resumed to bit-identical weights, optimizer, average and history on the same
machine: order and augmentation depend on (seed, epoch, picture) alone, all other randomness on (seed, step, process)
alone, and what was written after the last checkpoint is cut off and done again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from saccade.config import from_dict
from saccade.data.source import DataSource, open_data
from saccade.engine.checkpoint import build_described
from saccade.engine.plan import StepRecord, TrainConfig
from saccade.engine.run import RunFolder, interrupts_deferred
from saccade.engine.session import Session
from saccade.errors import DataError, RunError
from saccade.models.base import VisionModel

__all__ = ["StepRecord", "TrainConfig", "resume", "train"]


def train(
    model: VisionModel[Any, Any, Any],
    data: DataSource,
    config: TrainConfig | None = None,
    *,
    out: str | Path,
    resume: bool = False,
    name: str | None = None,
    fabric: Fabric | None = None,
    notes: Sequence[str] = (),
) -> Iterator[StepRecord]:
    """Train ``model`` into the run folder ``out``.

    Everything is checked and the folder is made when this is called; the training itself happens while the records
    are taken. Leaving the loop early, or Ctrl-C, saves a state that ``resume`` continues from.

    Args:
        model: trained in place; at the end it holds the last raw weights, and ``best.safetensors`` the best ones.
        data: with a ``train`` split; ``val`` is made from it where it is missing.
        config: how to train.
        out: the run folder, which must not exist unless ``resume``.
        resume: continue the run in ``out``, which must have been made with equal config and data.
        name: what the model was created by, for its file.
        fabric: launched with several processes by the caller; made for this process alone where it is None.
        notes: told with the first record.

    Raises:
        RunError: where the folder exists, cannot be written, or cannot be resumed.
        DataError: where data and model do not know the same classes.
        TrainingError: while training, where the loss is not finite; the batch is saved.
    """
    session = Session(model, data, config or TrainConfig(), RunFolder(out), fabric, name=name, resume=resume)
    session.notes += notes
    return _steps(session)


def resume(out: str | Path, data: Any = None, *, fabric: Fabric | None = None) -> Iterator[StepRecord]:
    """Continue the run in the folder ``out`` from its last checkpoint, with its own model and config.

    Args:
        out: the run folder.
        data: anything ``open_data`` knows, where the data cannot be opened by the name it was opened by: it lies
            elsewhere now, or is an object in memory.
        fabric: as in ``train``.

    Raises:
        RunError: where there is nothing to resume, or the data changed.
        DataError: where the data is not found.
    """
    folder = RunFolder(out)
    folder.check_resumable()
    settings = folder.read_json("config.json")
    missing = {"model", "train", "data", "name"} - settings.keys()
    if missing:
        raise RunError(f"config.json lacks {', '.join(sorted(missing))}", where=str(folder.path))
    model = build_described(settings["model"], where=str(folder.path / "config.json"))
    config = from_dict(TrainConfig, settings["train"])
    name = settings["data"]["name"] if data is None else data
    try:
        # Data that is open already may hold more than the task wants; `train` checks that.
        source = name if isinstance(name, DataSource) else open_data(name, task=model.task, strict=config.strict)
    except DataError as error:
        if data is None and not Path(name).exists():
            error.remedy = (
                "the run was trained on it; give the DATA beside --resume (in Python data=) where it lies now"
            )
        raise
    return train(model, source, config, out=out, resume=True, name=settings["name"], fabric=fabric)


def _steps(session: Session) -> Iterator[StepRecord]:
    try:
        while not session.is_finished:
            for batches in session.batches():
                with interrupts_deferred():
                    record = session.step(batches)
                yield record
            evaluations = session.validate() if session.is_validation_due else {}
            with interrupts_deferred():
                record = session.end_epoch(evaluations)
            yield record
        session.finish()
    except (KeyboardInterrupt, GeneratorExit):
        # Steps are never left half done, so the state here is whole and can be continued from.
        with interrupts_deferred():
            session.save()
        raise
    finally:
        session.close()
