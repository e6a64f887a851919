"""Writes the figures of a full run of all studies into ``studies.md``, with one small chart of each.

    saccade study all && python docs/make_studies.py [FOLDER [NAME ...]]

Trials are read from the folder that ``saccade study all`` leaves; those that are missing there are run. With names only
the sections of these studies are written anew.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from saccade import render
from saccade.atomic import write_bytes
from saccade.console import clock
from saccade.studies.base import Report
from saccade.studies.catalogue import ALL
from saccade.studies.page import MARKS, charts, command, details_table, figures_table, findings_table
from saccade.studies.run import OUT, study
from saccade.tasks import Table

HERE = Path(__file__).parent
BEGIN, END = "<!-- figures: written by make_studies.py -->", "<!-- end of figures -->"
DRAWN = {"moe": "moe", "skips": "with skips", "queries": "10 queries", "cam-family": "cnn", "saliency": "cnn"}
"""Studies of which a picture says more than a chart, and the arm that drew it."""
MOST = 4
"""Pictures of an arm below each other."""
WIDEST = 720
"""Pixels of a picture."""


def main() -> None:
    """Read, draw, write."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    names = sys.argv[2:]
    reports = [report for name in names or [ALL] for report in study(name, out=folder)]
    page = HERE / "studies.md"
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    kept, after = rest.split(END)
    written = [markdown(contents(reports)), *(told(report) for report in reports)]
    parts = merged(kept.strip(), written) if names else written
    write_bytes(page, (before + "\n\n".join([BEGIN, *parts, END]) + after).encode())
    print(page)


def merged(kept: str, written: Sequence[str]) -> list[str]:
    """The sections of the page with some of them replaced, and their rows in the table of all."""
    table, *sections = re.split(r"\n\n(?=### )", kept)
    rows = {row.split("|")[1]: row for row in written[0].splitlines()[2:]}
    new = {part.split("\n")[0]: part for part in written[1:]}
    table = "\n".join(rows.get(row.split("|")[1], row) for row in table.splitlines())
    return [table, *(new.get(part.split("\n")[0], part) for part in sections)]


def contents(reports: Sequence[Report]) -> Table:
    """All verdicts at a glance."""
    rows = []
    for report in reports:
        name, parts = report.study.name, [finding.status for finding in report.findings]
        counts = ", ".join(f"{parts.count(status)} {status}" for status in MARKS if status in parts)
        rows.append((f"[`{name}`](#{name})", f"{MARKS[report.status]} {report.status}", counts, clock(report.seconds)))
    return Table(("study", "says", "parts of the claim", "minutes of work"), rows)


def told(report: Report) -> str:
    """What one study found."""
    name = report.study.name
    head = f"### {name}\n\n{MARKS[report.status]} **{report.status}** - “{report.study.claim}”"
    shown = picture_of(report, HERE / "pictures" / "studies" / f"{name}.png")
    picture = f"![{shown}](pictures/studies/{name}.png)\n\n*{shown[0].upper()}{shown[1:]}.*"
    tables = [markdown(findings_table(report)), picture, markdown(figures_table(report))]
    for arm in report.results.arms():
        if report.results.measured_on(arm):
            head_of = f"<details><summary>{arm}: single pictures</summary>"
            tables.append(f"{head_of}\n\n{markdown(details_table(report, arm))}\n\n</details>")
    conditions = f"{report.data or 'random pixels'}; {len(report.results.of(report.results.arms()[0]))} seeds"
    advice = [" ".join(report.advice)] if report.advice else []
    return "\n\n".join([head, *tables, *advice, f"*{conditions}; repeat it with `{command(report)}`*"])


def picture_of(report: Report, path: Path) -> str:
    """Draw the first chart of a study, or what an arm drew; returns what it shows."""
    name = DRAWN.get(report.study.name)
    shots = [shot for one in report.results.outcomes if one.arm == name for shot in one.measured.shots][:MOST]
    if shots:
        told = list(dict.fromkeys(shot.caption for shot in shots))
        title = told[0] if len(told) == 1 else f"from the top: {', '.join(told)}"
        drawn = [Image.open(io.BytesIO(shot.png)).convert("RGB") for shot in shots]
    else:
        title, figure = next(iter(charts(report).items()))
        title = f"{title}: every seed, the mean and its interval"
        drawn = [Image.open(io.BytesIO(render.to_png(figure, dpi=90))).convert("RGB")]
    size = (max(one.width for one in drawn), sum(one.height for one in drawn))
    picture, top = Image.new("RGB", size, "white"), 0
    for one in drawn:
        picture.paste(one, (0, top))
        top += one.height
    picture.thumbnail((WIDEST, WIDEST))
    written = io.BytesIO()
    picture.quantize(64).save(written, format="PNG", optimize=True)
    write_bytes(path, written.getvalue())
    return title


def markdown(table: Table) -> str:
    """A table; bars in it are escaped."""
    rows = [table.head, ["---"] * len(table.head), *table.rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)


if __name__ == "__main__":
    main()
