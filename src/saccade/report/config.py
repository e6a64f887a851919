"""What a report shows."""

from __future__ import annotations

from dataclasses import dataclass, field

from saccade.config import Config
from saccade.tasks import EvaluateConfig


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Config):
    """What the page shows."""

    title: str = "Evaluation"
    """Heading."""
    split: str | None = None
    """Which split to evaluate on, or ``all``; where it is None, ``test`` if there is one, else the held-out one."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """How to evaluate."""
    mistakes: int = 9
    """How many of the worst mistakes are explained."""
    regions: int = 4
    """In how many of the worst label maps the largest mistake is explained."""
    compared: int = 3
    """On how many pictures the methods are drawn side by side."""
    methods: tuple[str, ...] = ("relevance", "gradcam", "hirescam", "gradient", "integrated_gradients", "occlusion")
    """Methods drawn side by side, where they suit the model."""
