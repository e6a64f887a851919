"""Pictures of results: heat maps and label maps over pictures, pages that compare methods, routing maps, and charts."""

from saccade.ops.palette import categorical, class_colours
from saccade.render.charts import bars, confusion_matrix, curves, reliability_diagram, routing_map
from saccade.render.figure import save, to_png, to_svg
from saccade.render.heat import crossed_out, enlarged, overlay
from saccade.render.maps import error_map, label_overlay, outlined
from saccade.render.page import Panel, Status, explanation, side_by_side

__all__ = [
    "Panel",
    "Status",
    "bars",
    "categorical",
    "class_colours",
    "confusion_matrix",
    "crossed_out",
    "curves",
    "enlarged",
    "error_map",
    "explanation",
    "label_overlay",
    "outlined",
    "overlay",
    "reliability_diagram",
    "routing_map",
    "save",
    "side_by_side",
    "to_png",
    "to_svg",
]
