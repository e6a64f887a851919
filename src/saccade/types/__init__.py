"""What crosses the boundaries between the parts: validated, frozen, movable between devices.

B batch · N objects · K classes · H, W padded canvas · h, w true size in canvas pixels. Boxes are absolute xyxy float32.
Predictions and heat maps are in the pixels of the original picture; ``Geometry`` is the way back there.
"""

from saccade.types.classes import TASK_SYNONYMS, Classes, TaskName
from saccade.types.explain import (
    AttentionSite,
    ExplainSpec,
    GridLayer,
    LinearHead,
    QueryLayer,
    QueryLooks,
    Rows,
    as_grid,
)
from saccade.types.images import Geometry, ImageBatch
from saccade.types.masks import Masks
from saccade.types.predictions import Classification, Detections, Embedding, Prediction, Segmentation
from saccade.types.targets import IGNORE, BoxTarget, Caption, ClassTarget, Losses, MapTarget, Sample, Target

__all__ = [
    "IGNORE",
    "TASK_SYNONYMS",
    "AttentionSite",
    "BoxTarget",
    "Caption",
    "ClassTarget",
    "Classes",
    "Classification",
    "Detections",
    "Embedding",
    "ExplainSpec",
    "Geometry",
    "GridLayer",
    "ImageBatch",
    "LinearHead",
    "Losses",
    "MapTarget",
    "Masks",
    "Prediction",
    "QueryLayer",
    "QueryLooks",
    "Rows",
    "Sample",
    "Segmentation",
    "Target",
    "TaskName",
    "as_grid",
]
