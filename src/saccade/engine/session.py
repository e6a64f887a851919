"""The state of one training and the moves of its loop: take a step, validate, end an epoch, save, restore."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

import saccade
from saccade.config import to_dict
from saccade.data.loader import Batch
from saccade.data.source import DataSource
from saccade.engine.board import check_board, draw, open_board
from saccade.engine.checkpoint import describe_model, load_state, load_weights, save_model, save_state
from saccade.engine.contrastive import ContrastivePass
from saccade.engine.evaluate import score_batches
from saccade.engine.failure import save_failure, seed_step
from saccade.engine.feed import Feed, build_feed
from saccade.engine.machine import build_fabric, environment, matrix_width
from saccade.engine.modes import freeze, train_mode
from saccade.engine.optim import MovingAverage, build_optimizer, parameter_groups, schedule, set_learning_rate
from saccade.engine.plan import StepRecord, TrainConfig
from saccade.engine.run import RunFolder
from saccade.engine.zero_shot import new_tally
from saccade.errors import ConfigError, RunError, TrainingError, is_out_of_memory
from saccade.models.base import VisionModel
from saccade.tasks import TASKS, EvaluateConfig
from saccade.types import Losses

MAX_CHECKPOINT_SHARE = 0.05
"""Share of the time that checkpoints within an epoch may take."""

DEAD_SHARE = 0.01
"""An expert that took less than this share of an even load over an epoch counts as dead."""


_VALIDATION = EvaluateConfig(resamples=1, boundary_tolerance=0.0)
"""Only the figures that choose an epoch."""


class _Carried:
    """A batch on its way through Fabric, which rebuilds every dataclass it is handed and cannot rebuild frozen ones."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch


class _Forward(nn.Module):
    """The forward pass in the form that Fabric wraps (precision, several processes)."""

    def __init__(self, view: nn.Module) -> None:
        super().__init__()
        self.view = view

    def forward(self, carried: _Carried) -> Any:
        return self.view(carried.batch.images, carried.batch.targets)


class Session:
    """One training, between two records.

    Args:
        model: trained in place.
        data: what to learn from.
        config: how.
        folder: where to write.
        fabric: launched by the caller, or None.
        name: what the model was created by.
        resume: continue the run in ``folder``.
    """

    def __init__(
        self,
        model: VisionModel[Any, Any, Any],
        data: DataSource,
        config: TrainConfig,
        folder: RunFolder,
        fabric: Fabric | None,
        *,
        name: str | None,
        resume: bool,
    ) -> None:
        self.model, self.config, self.name = model, config, name
        self.task = TASKS[model.task]
        folder.check_resumable() if resume else folder.check_free()
        if config.tensorboard:
            check_board()
        self.fabric, reason = (
            build_fabric(config, matrix_width(model))
            if fabric is None
            else (fabric, "precision as given by the caller")
        )
        self.folder = RunFolder(folder.path, is_writer=self.fabric.is_global_zero)
        self.notes = [f"precision: {reason}"]
        freeze(model, config.freeze)
        self.feed: Feed = build_feed(model, data, config, self.fabric)
        self.notes += self.feed.notes
        self.num_steps = self.feed.steps_per_epoch * config.epochs
        self.data_facts = {"name": _lasting(data.name), "format": data.format, "fingerprint": self.feed.fingerprint}
        self.settings = {
            "name": name,
            "model": describe_model(model),
            "train": to_dict(config),
            "data": self.data_facts,
            "version": saccade.__version__,
        }
        self.epoch, self.step_count, self.stale_epochs = 0, 0, 0
        self.best: dict[str, Any] | None = None
        self._sums: dict[str, float] = defaultdict(float)
        self._load: Tensor | None = None
        self._images_done, self._steps_done, self._train_seconds = 0, 0, 0.0
        self._saved_at, self._save_seconds = time.monotonic(), 0.0
        self._set_up()
        self._restore() if resume else self._begin()
        self.board = open_board(self.folder, self.step_count) if config.tensorboard else None
        self._started_at = time.monotonic()

    def _set_up(self) -> None:
        """Hand model and optimizer to Fabric; from here on the model is where it trains."""
        config, model = self.config, self.model
        model.to(self.fabric.device)
        self.average = MovingAverage(model, config.ema_decay) if config.ema_decay else None
        groups = parameter_groups(
            model, weight_decay=config.weight_decay, spared=model.no_decay(), head_multiplier=config.head_multiplier
        )
        if not groups:
            raise ConfigError("every parameter is frozen", where="freeze", remedy="leave the head out of it")
        self.optimizer = build_optimizer(config.optimizer, groups, config.learning_rate)
        view = self.feed.view(model)
        if config.compile:
            view.compile()
        self.module, self.stepper = self.fabric.setup(_Forward(view), self.optimizer)

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, or none has been better for long enough."""
        is_stale = bool(self.config.patience) and self.stale_epochs >= self.config.patience
        return self.epoch >= self.config.epochs or is_stale

    @property
    def is_validation_due(self) -> bool:
        """Whether the epoch that is about to end is followed by a validation."""
        number = self.epoch + 1
        return number % self.config.validate_every == 0 or number >= self.config.epochs

    def batches(self) -> Iterator[list[Batch]]:
        """The batches of each step that is left in this epoch."""
        done = self.step_count - self.epoch * self.feed.steps_per_epoch
        batches = self.feed.train.epoch(self.epoch, start_batch=done * self.config.accumulate)
        for _ in range(self.feed.steps_per_epoch - done):
            start = time.monotonic()
            if not (group := list(islice(batches, self.config.accumulate))):
                return
            yield group
            self._train_seconds += time.monotonic() - start

    def step(self, batches: Sequence[Batch]) -> StepRecord:
        """One optimizer step on the gradient of all ``batches`` together.

        Raises:
            TrainingError: where loss or gradient is not finite; the batch is saved. Where the memory is too small.
        """
        config = self.config
        train_mode(self.model, config.freeze)
        rate = config.learning_rate * schedule((self.step_count + 0.5) / self.num_steps, config.warmup, config.floor)
        set_learning_rate(self.optimizer, rate)
        num_images = sum(len(batch.targets) for batch in batches)
        figures: dict[str, float] = defaultdict(float)
        for place, batch in enumerate(batches):
            share = len(batch.targets) / num_images
            try:
                terms = self._backward(batch, place, share, is_last=place == len(batches) - 1)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                raise TrainingError(
                    f"the memory is too small for {len(batch.targets)} pictures at once",
                    where=f"step {self.step_count + 1}",
                    remedy=f"start again with a smaller --batch-size (now {config.batch_size}); --set "
                    "train.accumulate=2 takes two such batches for one step",
                ) from error
            for key, value in terms.items():
                figures[key] += value * share
        norm = self._clip(batches)
        self.stepper.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.model)
        self.step_count += 1
        self._steps_done += 1
        self._images_done += num_images * self.fabric.world_size
        for key, value in figures.items():
            self._sums[key] += value
        self._sums["steps"] += 1
        record = self._record("step", figures, rate, grad_norm=norm)
        self._keep(record)
        if self._is_checkpoint_due():
            self.save()
        return record

    def validate(self) -> dict[str, dict[str, float]]:
        """Validation figures of the raw and, where there is one, the averaged weights."""
        evaluations: dict[str, dict[str, float]] = {}
        if self.fabric.is_global_zero:
            for which, model in self._candidates().items():
                tally = new_tally(model, self.feed.val.dataset, self.feed.relabel, _VALIDATION)
                view = self.feed.view(model)
                with _forward_in(self.fabric.autocast, view):
                    for _ in score_batches(view, self.feed.val.epoch(0), tally):
                        pass
                evaluations[which] = tally.compute()
        # One process decides for all, so that they cannot disagree about the best epoch or the end.
        return dict(self.fabric.broadcast(evaluations))

    def end_epoch(self, evaluations: dict[str, dict[str, float]]) -> StepRecord:
        """Keep the best weights, write history and checkpoint, turn to the next epoch."""
        self.epoch += 1
        # A loader that skipped unreadable pictures may have given fewer steps than planned; the schedule goes by the
        # plan.
        self.step_count = self.epoch * self.feed.steps_per_epoch
        metrics, is_best = self._judge(evaluations) if evaluations else ({}, False)
        steps = max(self._sums.pop("steps", 0.0), 1.0)
        figures = {key: value / steps for key, value in self._sums.items()}
        load = [] if self._load is None else (self._load / steps).tolist()
        rate = self.optimizer.param_groups[0]["lr"] / self.optimizer.param_groups[0]["rate_multiplier"]
        skipped = self.feed.new_skipped()
        if skipped:
            self.notes.append(f"{len(skipped)} unreadable pictures were skipped")
        self.notes += [*dead_experts(load), *(f"skipped {problem}" for problem in skipped)]
        record = dataclasses.replace(
            self._record("epoch", figures, rate),
            metrics=metrics,
            evaluations=evaluations,
            is_best=is_best,
            expert_load=tuple(tuple(layer) for layer in load),
        )
        self._sums, self._load = defaultdict(float), None
        self._keep(record)
        self.save()
        return record

    def _judge(self, evaluations: Mapping[str, Mapping[str, float]]) -> tuple[dict[str, float], bool]:
        """The figures of the better weights, and whether they are the best so far; those are kept."""

        def quality(figures: Mapping[str, float]) -> tuple[float, ...]:
            # A figure that nobody knows (of objects, where no picture has any) compares with nothing: it ranks last.
            return tuple(-math.inf if math.isnan(value) else value for value in self.task.quality(figures))

        which = max(evaluations, key=lambda name: quality(evaluations[name]))
        metrics = dict(evaluations[which])
        is_unknown = math.isnan(self.task.quality(metrics)[0])
        # The latest of several that cannot be told apart has at least learned the longest.
        is_best = self.best is None or quality(metrics) > quality(self.best["metrics"])
        if is_unknown and self.best is not None and math.isnan(self.task.quality(self.best["metrics"])[0]):
            is_best = True
        if is_unknown:
            told = f"{self.task.headline} is not known on the validation pictures: the latest epoch counts as the best"
            self.notes.append(told)
        self.stale_epochs = 0 if is_best else self.stale_epochs + 1
        if is_best:
            self.best = {"epoch": self.epoch, "weights": which, "metrics": metrics}
            self._save_best(which)
        return metrics, is_best

    def finish(self) -> None:
        """Write ``metrics.json``."""
        is_early = self.epoch < self.config.epochs
        result = {
            "split": "val",
            "headline": self.task.headline,
            **(self.best or {}),
            "epochs": self.epoch,
            "stopped_early": is_early,
        }
        self.folder.write_json("metrics.json", result)

    def close(self) -> None:
        """Let go of files."""
        if self.board is not None:
            self.board.close()

    def save(self) -> None:
        """Write the state to resume from.

        Raises:
            RunError: where it cannot be written.
        """
        if not self.fabric.is_global_zero:
            return
        start = time.monotonic()
        state = {
            "settings": self.settings,
            "epoch": self.epoch,
            "step": self.step_count,
            "stale_epochs": self.stale_epochs,
            "best": self.best,
            "sums": dict(self._sums),
            "load": self._load,
            "history": self.folder.settled_history(),
            "threads": torch.get_num_threads(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
        }
        save_state(self.folder.last, state)
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - start

    def _begin(self) -> None:
        precision = self.notes[0].removeprefix("precision: ")
        with self.folder.created():
            self.folder.write_json("config.json", self.settings)
            self.folder.write_json("environment.json", environment(self.fabric.device, precision, self.config.seed))
            self.save()
        self.fabric.barrier()

    def _restore(self) -> None:
        state = load_state(self.folder.last)
        where = str(self.folder.path)
        for part in ("model", "train", "data"):
            then: Any = state["settings"][part]
            now: Any = self.settings[part]
            if part == "data":
                # Where the pictures lie and how they were found is nothing to the run, as long as they are the same.
                then, now = ({"fingerprint": facts["fingerprint"]} for facts in (then, now))
            if then != now:
                differs = _difference(then, now)
                remedy = "resume with what the run was started with, or start another --out"
                raise RunError(f"the run was made with another {part}: {differs}", where=where, remedy=remedy)
        self.epoch, self.step_count, self.stale_epochs = state["epoch"], state["step"], state["stale_epochs"]
        self.best, self._load = state["best"], state["load"]
        self._sums = defaultdict(float, state["sums"])
        load_weights(self.model, state["model"], where=str(self.folder.last))
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])
        if lost := self.folder.cut_history(state["history"]):
            self.notes.append(lost)
        if self.is_finished and (self.folder.path / "metrics.json").is_file():
            raise RunError("the run is finished, there is nothing to resume", where=where)
        self.notes.append(f"resumed after step {self.step_count} of {self.num_steps}")
        if state["threads"] != torch.get_num_threads():
            change = f"{state['threads']} threads then, {torch.get_num_threads()} now"
            self.notes.append(f"not bit-identical to an uninterrupted run: {change}")

    def _backward(self, batch: Batch, place: int, share: float, *, is_last: bool) -> dict[str, float]:
        """Add the gradient of one batch; returns its loss terms, logs and total."""
        batch = self.feed.prepare(batch, self.fabric.device)
        seeds = (self.config.seed, self.step_count, place, self.fabric.global_rank)
        seed_step(*seeds)
        with self.fabric.no_backward_sync(self.module, enabled=not is_last):
            outputs, cached = None, None
            if self.task.name == "zero_shot" and (self.config.chunk or self.fabric.world_size > 1):
                cached = self._contrast(batch, seeds)
                losses: Losses = cached.losses
            else:
                outputs = self.module(_Carried(batch))
                losses = self.model.loss(outputs, batch.targets)
            total = losses.total
            # The mean over all processes is finite only where each of them is, so all of them stop together.
            mean = total.detach() if self.fabric.world_size == 1 else self.fabric.all_reduce(total.detach())
            if not math.isfinite(float(mean)):
                self._fail(batch, seeds, losses)
            self.fabric.backward(total * share) if cached is None else cached.backward(share)
        load = self.feed.expert_load(outputs)
        if load is not None:
            self._load = load * share + (0 if self._load is None else self._load)
        figures = {name: float(value.detach()) for name, value in {**losses.terms, **losses.logs}.items()}
        return {**figures, "total": float(mean)}

    def _contrast(self, batch: Batch, seeds: tuple[int, ...]) -> ContrastivePass:
        """The loss over all parts of a batch and all processes."""

        def forward(part: Batch) -> Any:
            return self.module(_Carried(part))

        chunk = self.config.chunk
        return ContrastivePass(self.fabric, self.module, forward, self.model, batch, chunk=chunk, seeds=seeds)

    def _clip(self, batches: Sequence[Batch]) -> float:
        limit = self.config.clip_norm or math.inf
        norm = self.fabric.clip_gradients(self.module, self.stepper, max_norm=limit, error_if_nonfinite=False)
        value = float(norm) if isinstance(norm, Tensor) else math.nan
        if not math.isfinite(value):
            # Of several batches the last is kept, with the seed that it was computed with.
            seeds = (self.config.seed, self.step_count, len(batches) - 1, self.fabric.global_rank)
            self._fail(self.feed.prepare(batches[-1], self.fabric.device), seeds, None)
        return value

    def _fail(self, batch: Batch, seeds: tuple[int, ...], losses: Losses | None) -> None:
        terms = {} if losses is None else {name: str(float(value.detach())) for name, value in losses.terms.items()}
        path = self.folder.path / "failure.safetensors"
        if self.fabric.is_global_zero:
            save_failure(path, self.model, batch, seeds, {"step": self.step_count, "terms": terms})
        what = "the gradient is not finite" if losses is None else f"the loss is not finite ({terms})"
        raise TrainingError(
            f"{what} in step {self.step_count + 1}, epoch {self.epoch + 1}",
            where=str(path),
            remedy="lower the learning rate, or look at the saved batch with saccade.engine.failure.replay(path)",
        )

    def _candidates(self) -> Mapping[str, VisionModel[Any, Any, Any]]:
        return {"raw": self.model, "average": self.average.model} if self.average else {"raw": self.model}

    def _save_best(self, which: str) -> None:
        if not self.fabric.is_global_zero or self.best is None:
            return
        model = self._candidates()[which]
        model.classes = self.model.classes
        licences = {"data": self.feed.licence}
        save_model(model, self.folder.best, name=self.name, metrics=self.best, data=self.data_facts, licences=licences)

    def _record(self, kind: Any, figures: Mapping[str, float], rate: float, grad_norm: float = math.nan) -> StepRecord:
        elapsed = time.monotonic() - self._started_at
        notes, self.notes = tuple(self.notes), []
        return StepRecord(
            kind=kind,
            epoch=self.epoch + (kind == "step"),
            step=self.step_count,
            num_steps=self.num_steps,
            losses={name: value for name, value in figures.items() if name != "total"},
            total=figures.get("total", math.nan),
            learning_rate=rate,
            grad_norm=grad_norm,
            notes=notes,
            images_per_second=self._throughput(),
            seconds_left=elapsed / max(self._steps_done, 1) * (self.num_steps - self.step_count),
        )

    def _throughput(self) -> float:
        """Images per second of training alone; the step being recorded is not in the time yet."""
        done = self._images_done * max(self._steps_done - 1, 0) / max(self._steps_done, 1)
        return done / self._train_seconds if self._train_seconds else math.nan

    def _keep(self, record: StepRecord) -> None:
        self.folder.append_history(record.to_line())
        if self.board is not None:
            draw(self.board, record)

    def _is_checkpoint_due(self) -> bool:
        if self.config.checkpoint_steps:
            return self.step_count % self.config.checkpoint_steps == 0
        pause = max(self.config.checkpoint_seconds, self._save_seconds / MAX_CHECKPOINT_SHARE)
        return time.monotonic() - self._saved_at >= pause


@contextmanager
def _forward_in(precision: Callable[[], AbstractContextManager[Any]], model: nn.Module) -> Iterator[None]:
    """The forward passes of a model run in a precision, one context each, and answer in float32.

    What comes after them stays out of it, as the loss does in training: eight bits are enough for a network, but not
    for the places of its boxes on the canvas.
    """
    entered: list[AbstractContextManager[Any]] = []

    def begin(module: nn.Module, given: Any) -> None:
        entered.append(precision())
        entered[-1].__enter__()

    def end(module: nn.Module, given: Any, outputs: Any) -> Any:
        entered.pop().__exit__(None, None, None)
        return _widened(outputs)

    handles = [model.register_forward_pre_hook(begin), model.register_forward_hook(end, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _widened(outputs: Any) -> Any:
    """The outputs of a model with all tensors of half types in float32."""
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.dtype in {torch.bfloat16, torch.float16} else outputs
    if not isinstance(outputs, tuple):
        return outputs
    parts = [_widened(part) for part in outputs]
    return type(outputs)(*parts) if hasattr(outputs, "_fields") else tuple(parts)


def _lasting(name: str) -> str:
    """The name that data was opened by, so that it says the same from another folder."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def dead_experts(load: Sequence[Sequence[float]]) -> list[str]:
    """One sentence for each expert that took almost nothing over an epoch."""
    return [
        f"expert {expert} of routed layer {layer} is dead: {share:.2%} of the tokens, even is {1 / len(row):.0%}"
        for layer, row in enumerate(load)
        for expert, share in enumerate(row)
        if share < DEAD_SHARE / len(row)
    ]


def _difference(then: Any, now: Any, path: str = "") -> str:
    """The first place where two trees of plain data differ."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in sorted(then.keys() | now.keys()):
            if then.get(key) != now.get(key):
                return _difference(then.get(key), now.get(key), f"{path}.{key}" if path else key)
    return f"{path} was {then!r}, is {now!r}"
