"""Pictures of results: heat maps over photographs, pages that compare methods, routing maps, and charts."""

from saccade.render.charts import confusion_matrix, curves, reliability_diagram, routing_map
from saccade.render.figure import categorical, save, to_png, to_svg
from saccade.render.heat import crossed_out, enlarged, overlay
from saccade.render.page import Panel, Status, explanation, side_by_side

__all__ = [
    "Panel",
    "Status",
    "categorical",
    "confusion_matrix",
    "crossed_out",
    "curves",
    "enlarged",
    "explanation",
    "overlay",
    "reliability_diagram",
    "routing_map",
    "save",
    "side_by_side",
    "to_png",
    "to_svg",
]
