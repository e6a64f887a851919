"""Charts of results: experts per patch, reliability, confusion, curves.

gh, gw grid of patches · K classes · E experts
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import InputError
from saccade.ops.palette import OKABE_ITO, categorical
from saccade.render.figure import FAINT, INK, PAPER, new_figure, plain_axes, show
from saccade.render.heat import check_image, enlarged

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
"""Lines differ by their dashes too, not only by colour."""


def routing_map(image: Tensor, experts: Tensor, num_experts: int, *, title: str = "") -> Figure:
    """Which expert handled which patch, beside the picture, with a legend of shares.

    Args:
        image: ``[3, h, w]`` uint8.
        experts: ``[gh, gw]`` int, the first choice of each patch; -1 where the patch was dropped.
        num_experts: E.
        title: line above.

    Raises:
        InputError: where an expert does not exist.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    check_image(image)
    if experts.ndim != 2 or int(experts.max()) >= num_experts or int(experts.min()) < -1:
        raise InputError(
            f"experts of shape {tuple(experts.shape)}", expected=f"[gh, gw] numbers from -1 to {num_experts - 1}"
        )
    picture = enlarged(image)
    height, width = picture.shape[1:]
    colours = [categorical(index) for index in range(num_experts)]
    table = torch.tensor([to_rgb(colour) for colour in [*colours, "#FFFFFF"]]) * 255
    paint = table[experts.cpu().long()].permute(2, 0, 1)[None]  # [1, 3, gh, gw]; -1 is the last row, white
    paint = F.interpolate(paint, (height, width), mode="nearest")[0]
    mixed = (0.35 * picture.float().mean(0, keepdim=True) + 0.65 * paint).round().to(torch.uint8)
    figure = new_figure(2 * 3.0 + 1.9, 3.0 * height / width + 0.45)
    for index, (shown, name) in enumerate([(picture, "picture"), (mixed, title or "first expert of each patch")]):
        axes = figure.add_axes((0.02 + index * 0.385, 0.04, 0.365, 1 - 0.45 / figure.get_figheight()))
        show(axes, shown)
        axes.set_title(name, size=9.5, weight="bold", color=INK, loc="left", pad=4)
    for row, column in ((r, c) for r in range(experts.shape[0]) for c in range(experts.shape[1])):
        if experts.numel() <= 256 and int(experts[row, column]) >= 0:
            place = ((column + 0.5) / experts.shape[1] * width - 0.5, (row + 0.5) / experts.shape[0] * height - 0.5)
            size = min(9.0, 110 / max(experts.shape))
            axes.text(
                *place, str(int(experts[row, column])), size=size, ha="center", va="center", color=INK, alpha=0.75
            )
    shares = [float((experts == index).float().mean()) for index in range(num_experts)]
    handles = [
        Patch(color=c, label=f"expert {i}  {s:4.0%}") for i, (c, s) in enumerate(zip(colours, shares, strict=True))
    ]
    if bool((experts < 0).any()):
        handles.append(
            Patch(facecolor=PAPER, edgecolor=FAINT, label=f"dropped  {float((experts < 0).float().mean()):4.0%}")
        )
    figure.legend(handles=handles, loc="center left", bbox_to_anchor=(0.79, 0.5), frameon=False, fontsize=9)
    return figure


def reliability_diagram(
    confidence: Sequence[float | None],
    accuracy: Sequence[float | None],
    counts: Sequence[int],
    *,
    error: float | None = None,
) -> Figure:
    """Confidence against accuracy over equal bins of confidence, with the number of pictures in each below.

    Args:
        confidence: mean confidence of each bin; None where it is empty.
        accuracy: share of right predictions in each bin; None where it is empty.
        counts: predictions in each bin.
        error: expected calibration error, told in the title.

    Raises:
        InputError: where the lengths differ or all bins are empty.
    """
    if not len(confidence) == len(accuracy) == len(counts) or sum(counts) == 0:
        raise InputError("the reliability table is empty or uneven", expected="one entry per bin, in every column")
    bins = len(counts)
    edges = [(index + 0.5) / bins for index in range(bins)]
    figure = new_figure(4.4, 4.6)
    upper, lower = figure.add_axes((0.14, 0.34, 0.82, 0.57)), figure.add_axes((0.14, 0.12, 0.82, 0.17))
    upper.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--", label="perfectly calibrated")
    filled = [i for i in range(bins) if counts[i] and confidence[i] is not None and accuracy[i] is not None]
    for index in filled:
        sure, right = float(confidence[index] or 0), float(accuracy[index] or 0)
        upper.bar(edges[index], right, width=0.92 / bins, color="#CFE3F1", edgecolor=OKABE_ITO[0], linewidth=0.8)
        upper.plot([sure, sure], sorted([sure, right]), color=OKABE_ITO[5], linewidth=2.2, solid_capstyle="butt")
        upper.plot(sure, right, marker="o", markersize=4, color=OKABE_ITO[0])
    lower.bar(edges, counts, width=0.92 / bins, color=FAINT)
    for axes in (upper, lower):
        axes.set_xlim(0, 1)
        plain_axes(axes)
    upper.set_ylim(0, 1)
    upper.set_xticklabels([])
    upper.set_ylabel("accuracy", color=INK, size=9)
    lower.set_ylabel("pictures", color=INK, size=9)
    lower.set_xlabel("confidence", color=INK, size=9)
    title = "Reliability" if error is None else f"Reliability: off by {error:.1%} on average"
    upper.set_title(title, size=10.5, weight="bold", color=INK, loc="left")
    upper.plot([], [], color=OKABE_ITO[5], linewidth=2.2, label="gap")
    upper.legend(loc="upper left", frameon=False, fontsize=8)
    return figure


def confusion_matrix(
    counts: Sequence[Sequence[int]], classes: Sequence[str], *, max_classes: int = 30, in_percent: bool = False
) -> Figure:
    """What is mistaken for what: rows the true class, columns the predicted one, shades by the share of the row.

    Args:
        counts: ``[K][K]``.
        classes: names of the K classes.
        max_classes: where there are more, the most mistaken ones are shown.
        in_percent: write percentages of the row, for counts with too many digits, such as those of pixels.

    Raises:
        InputError: where the table is not square or the names do not fit.
    """
    table = torch.tensor([list(row) for row in counts])
    if table.ndim != 2 or table.shape != (len(classes), len(classes)):
        raise InputError(f"counts of shape {tuple(table.shape)}", expected=f"[{len(classes)}, {len(classes)}]")
    unit = ", percent of the row" if in_percent else ""
    names, title = list(classes), f"Confusion: true class in rows, prediction in columns{unit}"
    if len(names) > max_classes:
        wrong = table.sum(0) + table.sum(1) - 2 * table.diagonal()
        chosen = wrong.topk(max_classes).indices.sort().values
        table, names = table[chosen][:, chosen], [names[i] for i in chosen.tolist()]
        title = f"Confusion of the {max_classes} most mistaken of {len(classes)} classes"
    share = table / table.sum(1, keepdim=True).clamp(min=1)
    number = len(names)
    cell = 0.46 if number <= 12 else max(0.2, 5.5 / number)
    longest = max(len(name) for name in names) * 0.075 + 0.2
    # Wide enough for the title.
    width, height = max(number * cell + longest + 0.3, len(title) * 0.082), number * cell + longest + 0.5
    figure = new_figure(width, height)
    axes = figure.add_axes((longest / width, longest / height, number * cell / width, number * cell / height))
    axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(number), names, rotation=90, size=8, color=INK)
    axes.set_yticks(range(number), names, size=8, color=INK)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks([i - 0.5 for i in range(1, number)], minor=True)
    axes.set_yticks([i - 0.5 for i in range(1, number)], minor=True)
    axes.grid(which="minor", color=PAPER, linewidth=1.2)
    axes.tick_params(which="minor", length=0)
    digits = 4 if in_percent else len(str(int(table.max())))
    size = min(8.0, cell * 72 * 0.85 / (0.65 * digits))
    for row, column in table.nonzero().tolist():
        ink = PAPER if float(share[row, column]) > 0.55 else INK
        words = f"{float(share[row, column]):.1%}"[:-1] if in_percent else str(int(table[row, column]))
        axes.text(column, row, words, ha="center", va="center", size=size, color=ink)
    figure.text(0.1 / width, 1 - 0.2 / height, title, size=10, weight="bold", color=INK, va="center")
    return figure


def bars(rows: Mapping[str, Sequence[float | None]], names: Sequence[str], *, title: str = "") -> Figure:
    """Shares from 0 to 1 as horizontal bars, several per row: figures of each class.

    Args:
        rows: values by the name of the row, one for each of ``names``; None where there is none.
        names: what the bars of a row are.
        title: line above.

    Raises:
        InputError: where a row has another number of values, or there is none.
    """
    if not rows or any(len(values) != len(names) for values in rows.values()):
        raise InputError("the rows do not fit the names", expected=f"{len(names)} values in each")
    thick = 0.8 / len(names)
    longest = max(len(name) for name in rows) * 0.075 + 0.25
    width, height = longest + 4.2, len(rows) * 0.2 * (len(names) + 1) + 0.95
    figure = new_figure(width, height)
    axes = figure.add_axes((longest / width, 0.35 / height, 4.0 / width, 1 - 0.95 / height))
    for place, name in enumerate(names):
        for row, values in enumerate(rows.values()):
            value = values[place]
            if value is None:
                continue
            at = row + (place - (len(names) - 1) / 2) * thick
            label = name if row == 0 else None
            axes.barh(at, value, thick * 0.9, color=OKABE_ITO[place], label=label, hatch="//" * place, edgecolor=PAPER)
            axes.text(value + 0.01, at, f"{value:.0%}", size=7, color=INK, va="center")
    axes.set_yticks(range(len(rows)), list(rows), size=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1.08)
    plain_axes(axes)
    figure.legend(loc="upper right", ncols=len(names), frameon=False, fontsize=8)
    figure.text(0.1 / width, 1 - 0.2 / height, title, size=10, weight="bold", color=INK, va="center")
    return figure


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str = "",
    across: str = "share of the picture hidden or shown",
    up: str = "score",
) -> Figure:
    """Lines over a common axis: deletion and insertion with their controls, or the course of a training.

    Args:
        lines: name to (places, values); lines named ``... control`` or ``random ...`` are drawn in grey.
        title: line above.
        across: name of the horizontal axis.
        up: name of the vertical axis.

    Raises:
        InputError: where there is no line, or places and values differ in number.
    """
    from matplotlib.ticker import MaxNLocator

    if not lines or any(len(places) != len(values) for places, values in lines.values()):
        raise InputError("the lines are missing or uneven", where="curves", expected="as many values as places")
    figure = new_figure(5.2, 3.3)
    axes = figure.add_axes((0.12, 0.15, 0.84, 0.72))
    coloured = 0
    for index, (name, (places, values)) in enumerate(lines.items()):
        is_control = name.endswith("control") or name.startswith("random")
        colour = FAINT if is_control else OKABE_ITO[coloured % len(OKABE_ITO)]
        coloured += not is_control
        dash = DASHES[index % len(DASHES)]
        axes.plot(
            list(places), list(values), color=colour, linestyle=dash, linewidth=1.4 if is_control else 2.2, label=name
        )
    plain_axes(axes)
    axes.set_xlabel(across, color=INK, size=9)
    axes.set_ylabel(up, color=INK, size=9)
    axes.set_title(title, size=10.5, weight="bold", color=INK, loc="left")
    if all(float(place).is_integer() for places, _ in lines.values() for place in places):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no epoch 1.5
    axes.legend(frameon=False, fontsize=8)
    return figure


def precision_recall(lines: Mapping[str, Sequence[float | None]], *, title: str = "", max_lines: int = 8) -> Figure:
    """Precision over recall, one line per class; where there are more classes, the lowest and the mean of all.

    Args:
        lines: by class, precisions at evenly spaced recalls from 0 to 1; None where there is none.
        title: line above.
        max_lines: most classes drawn.

    Raises:
        InputError: where there is no line.
    """
    drawn = {name: [value or 0.0 for value in values] for name, values in lines.items() if len(values) > 1}
    if not drawn:
        raise InputError("there is no curve", where="precision_recall", expected="precisions of at least one class")
    areas = {name: sum(values) / len(values) for name, values in drawn.items()}
    shown = sorted(drawn, key=lambda name: areas[name])[:max_lines] if len(drawn) > max_lines else list(drawn)
    beside = max(len(name) for name in shown) * 0.075 + 1.0
    figure = new_figure(4.6 + beside, 3.7)
    axes = figure.add_axes((0.6 / (4.6 + beside), 0.14, 3.9 / (4.6 + beside), 0.76))
    for index, name in enumerate(shown):
        dash = DASHES[index % len(DASHES)]
        axes.plot(
            *_over_recall(drawn[name]),
            color=OKABE_ITO[index],
            linestyle=dash,
            linewidth=1.8,
            label=f"{name}  {areas[name]:.1%}",
        )
    if len(drawn) > 1 and len({len(values) for values in drawn.values()}) == 1:
        mean = [sum(column) / len(column) for column in zip(*drawn.values(), strict=True)]
        axes.plot(
            *_over_recall(mean), color=INK, linewidth=2.6, label=f"mean of {len(drawn)}  {sum(mean) / len(mean):.1%}"
        )
    axes.set_xlim(0, 1.005)
    axes.set_ylim(0, 1.03)
    plain_axes(axes)
    axes.set_xlabel("recall", color=INK, size=9)
    axes.set_ylabel("precision", color=INK, size=9)
    axes.set_title(title, size=10.5, weight="bold", color=INK, loc="left")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def losses_by_cause(causes: Mapping[str, tuple[float | None, int]], *, title: str = "", unit: str = "AP") -> Figure:
    """What each kind of mistake costs, as horizontal bars with the number of mistakes beside.

    Args:
        causes: kind of mistake -> (what would be won without it, as a share; None where unknown, how many there are).
        title: line above.
        unit: what would be won.

    Raises:
        InputError: where there is none.
    """
    if not causes:
        raise InputError("there are no kinds of mistakes", where="losses_by_cause", expected="at least one")
    width, height = 5.2, 0.36 * len(causes) + 1.1
    figure = new_figure(width, height)
    axes = figure.add_axes((0.24, 0.55 / height, 0.6, 1 - 1.0 / height))
    top = max([value or 0.0 for value, _ in causes.values()] + [1e-3])
    for row, (value, count) in enumerate(causes.values()):
        won = value or 0.0
        axes.barh(row, max(won, 0.0), 0.68, color=OKABE_ITO[row % len(OKABE_ITO)])
        told = "–" if value is None else f"{100 * won:.1f}"
        axes.text(max(won, 0.0) + top * 0.02, row, f"{told}  ({count:,})", size=8, color=INK, va="center")
    axes.set_yticks(range(len(causes)), list(causes), size=8)
    axes.set_ylim(len(causes) - 0.5, -0.5)
    axes.set_xlim(0, top * 1.2)
    plain_axes(axes)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
    axes.set_xlabel(f"points of {unit} won without these mistakes (number of them)", color=INK, size=9)
    figure.text(0.1 / width, 1 - 0.2 / height, title, size=10, weight="bold", color=INK, va="center")
    return figure


def _over_recall(values: Sequence[float]) -> tuple[list[float], list[float]]:
    return [index / (len(values) - 1) for index in range(len(values))], list(values)
