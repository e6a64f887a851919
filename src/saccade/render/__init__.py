"""Pictures of results: heat maps, label maps and boxes over pictures, pages of methods, routing maps, and charts."""

from saccade.ops.palette import categorical, class_colours
from saccade.render.boxes import (
    OUTCOME_COLOURS,
    Outcome,
    Outcomes,
    box_overlay,
    compared_boxes,
    object_colour,
    truth_beside_prediction,
)
from saccade.render.charts import (
    bars,
    confusion_matrix,
    curves,
    losses_by_cause,
    precision_recall,
    reliability_diagram,
    routing_map,
)
from saccade.render.figure import save, to_png, to_svg
from saccade.render.fired import fired_overlay
from saccade.render.heat import crossed_out, enlarged, overlay
from saccade.render.maps import error_map, label_overlay, outlined
from saccade.render.page import Panel, Status, explanation, side_by_side
from saccade.render.retrieval import found_sheet

__all__ = [
    "OUTCOME_COLOURS",
    "Outcome",
    "Outcomes",
    "Panel",
    "Status",
    "bars",
    "box_overlay",
    "categorical",
    "class_colours",
    "compared_boxes",
    "confusion_matrix",
    "crossed_out",
    "curves",
    "enlarged",
    "error_map",
    "explanation",
    "fired_overlay",
    "found_sheet",
    "label_overlay",
    "losses_by_cause",
    "object_colour",
    "outlined",
    "overlay",
    "precision_recall",
    "reliability_diagram",
    "routing_map",
    "save",
    "side_by_side",
    "to_png",
    "to_svg",
    "truth_beside_prediction",
]
