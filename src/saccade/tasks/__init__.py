"""What each task means: how its predictions are counted, compared and told."""

from __future__ import annotations

from collections.abc import Mapping

from saccade.tasks.base import EvaluateConfig, Evaluation, Facts, Table, Tally, Task
from saccade.tasks.classification import ClassificationTask
from saccade.tasks.detection import DetectionTask, InstanceTask
from saccade.tasks.semantic import SemanticTask
from saccade.tasks.zero_shot import ZeroShotTask
from saccade.types import TaskName

TASKS: Mapping[TaskName, Task] = {
    task.name: task for task in (ClassificationTask(), SemanticTask(), DetectionTask(), InstanceTask(), ZeroShotTask())
}
"""Every task by its name."""

__all__ = ["TASKS", "EvaluateConfig", "Evaluation", "Facts", "Table", "Tally", "Task"]
