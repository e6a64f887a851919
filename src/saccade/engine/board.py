"""TensorBoard files of a run, where they are asked for."""

from __future__ import annotations

from typing import Any

from saccade.engine.plan import StepRecord
from saccade.engine.run import RunFolder
from saccade.errors import ConfigError


def check_board() -> None:
    """Refuse a run that is to be drawn by a TensorBoard that is not there, before anything of it is written.

    Raises:
        ConfigError: where TensorBoard is not installed.
    """
    _writer()


def open_board(folder: RunFolder, step: int) -> Any:
    """TensorBoard's writer in the run folder, events after ``step`` being void; None where this process is no writer.

    Raises:
        ConfigError: where TensorBoard is not installed.
    """
    if not folder.is_writer:
        return None
    return _writer()(folder.path / "tensorboard", purge_step=step + 1)


def _writer() -> Any:
    """The class of TensorBoard's writer."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        remedy = "pip install '.[tensorboard]' in the folder of Saccade's sources, or leave tensorboard off"
        raise ConfigError("TensorBoard is not installed", where="tensorboard", remedy=remedy) from error
    return SummaryWriter


def draw(board: Any, record: StepRecord) -> None:
    """Add the figures of a record."""
    figures = {**record.losses, "total": record.total, **record.metrics}
    if record.kind == "step":
        figures |= {"learning_rate": record.learning_rate, "grad_norm": record.grad_norm}
    for name, value in figures.items():
        board.add_scalar(f"{record.kind}/{name}", value, record.step)
