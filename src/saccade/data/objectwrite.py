"""Annotated pictures written as COCO JSON, Pascal VOC XML, YOLO text, CSV or LabelMe JSON.

Every writer takes the same pictures with the names that their files have, and writes annotations only.

h, w picture
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from saccade.data.box_table import UNDERSTOOD
from saccade.data.labelme import labelme_content
from saccade.data.objects import AnnotatedImage, ObjectAnnotation, ObjectDataset, object_mask
from saccade.data.voc_xml import voc_tree

_OWN_KEYS = frozenset({"id", "image_id", "category_id", "bbox", "segmentation", "iscrowd"})


class Named(NamedTuple):
    """A picture with the name that its copy has; no outline of it is in a mask file."""

    image: AnnotatedImage
    name: str


class Format(NamedTuple):
    """How one format is written.

    Attributes:
        told: what it is called.
        folder: where the pictures of a split go, with ``{split}`` in it.
        has_masks: whether it can say which pixels an object covers.
        has_crowds: whether it can mark a crowd.
        keeps: which keys beyond class, box and mask it can hold of an object.
        keeps_of_picture: the same of a picture.
        write: writes the annotations of all splits into a folder.
    """

    told: str
    folder: str
    has_masks: bool
    has_crowds: bool
    keeps: Callable[[str], bool]
    keeps_of_picture: Callable[[str], bool]
    write: Callable[[Path, Mapping[str, Sequence[Named]], ObjectDataset], None]


def _write_coco(out: Path, splits: Mapping[str, Sequence[Named]], data: ObjectDataset) -> None:
    (out / "annotations").mkdir()
    ids = [data.category_ids.get(name) for name in data.classes]
    is_numbered = None not in ids and len(set(ids)) == len(ids)
    numbers = {name: (ids[k] if is_numbered else k + 1) for k, name in enumerate(data.classes)}
    about = {key: value for key, value in data.about.items() if key not in {"images", "annotations", "categories"}}
    told = data.about.get("categories", {})
    categories = [{**told.get(name, {}), "id": numbers[name], "name": name} for name in data.classes]
    categories.sort(key=lambda category: int(category["id"]))
    for split, members in splits.items():
        images, annotations = _coco_entries(members, numbers)
        whole = {**about, "images": images, "annotations": annotations, "categories": categories}
        _write_json(out / "annotations" / f"instances_{split}.json", whole)


def _coco_entries(members: Sequence[Named], numbers: Mapping[str, int | None]) -> tuple[list[Any], list[Any]]:
    image_ids = _ids([member.image.id for member in members])
    things = [(thing, i, member) for i, member in enumerate(members) for thing in member.image.objects]
    own_ids = _ids([thing.extra.get("id") for thing, _, _ in things])
    images = [
        {
            **member.image.extra,
            "id": number,
            "file_name": member.name,
            "height": member.image.size[0],
            "width": member.image.size[1],
        }
        for member, number in zip(members, image_ids, strict=True)
    ]
    annotations = []
    for (thing, index, member), number in zip(things, own_ids, strict=True):
        left, top, right, bottom = thing.box
        entry = {key: value for key, value in thing.extra.items() if key not in _OWN_KEYS}
        entry |= {"id": number, "image_id": image_ids[index], "category_id": numbers[thing.name]}
        entry |= {"bbox": [left, top, right - left, bottom - top], "iscrowd": int(thing.is_crowd)}
        outline = thing.shape
        if outline is not None:
            entry["segmentation"] = outline
        if not isinstance(entry.get("area"), int | float):
            has_mask = outline is not None
            mask = object_mask(thing, member.image.size, str(member.image)) if has_mask else None
            entry["area"] = int(mask.sum()) if mask is not None else (right - left) * (bottom - top)
        annotations.append(entry)
    return images, annotations


def _ids(told: Sequence[Any]) -> list[int]:
    """The numbers that a file had, if they are whole and each is there once; else 1, 2, ..."""
    whole = [number for number in told if isinstance(number, int) and not isinstance(number, bool)]
    return whole if len(set(whole)) == len(told) else list(range(1, len(told) + 1))


def _write_voc(out: Path, splits: Mapping[str, Sequence[Named]], data: ObjectDataset) -> None:
    (out / "Annotations").mkdir()
    (out / "ImageSets" / "Main").mkdir(parents=True)
    _write_classes(out, data)
    for split, members in splits.items():
        stems = [Path(member.name).stem for member in members]
        (out / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{s}\n" for s in stems), encoding="utf-8")
        for member, stem in zip(members, stems, strict=True):
            tree = ElementTree.ElementTree(voc_tree(member.image, member.name))
            tree.write(out / "Annotations" / f"{stem}.xml", encoding="utf-8")


def _write_yolo(out: Path, splits: Mapping[str, Sequence[Named]], data: ObjectDataset) -> None:
    ids = {name: label for label, name in enumerate(data.classes)}
    for split, members in splits.items():
        folder = out / "labels" / split
        folder.mkdir(parents=True)
        for member in members:
            lines = [_yolo_line(thing, ids[thing.name], member.image.size) for thing in member.image.objects]
            (folder / f"{Path(member.name).stem}.txt").write_text("".join(f"{line}\n" for line in lines))
    # JSON strings are YAML strings too, so any name of a class can be written.
    lines = ["path: .", *(f"{split}: images/{split}" for split in splits), "names:"]
    lines += [f"  {label}: {json.dumps(name, ensure_ascii=False)}" for label, name in enumerate(data.classes)]
    (out / "data.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _yolo_line(thing: ObjectAnnotation, label: int, size: tuple[int, int]) -> str:
    height, width = size
    if isinstance(thing.shape, list):
        numbers = [
            _share(value, side) for value, side in zip(thing.shape[0], _sides(thing.shape[0], size), strict=True)
        ]
    else:
        left, top, right, bottom = thing.box
        numbers = [(left + right) / 2 / width, (top + bottom) / 2 / height]
        numbers += [(right - left) / width, (bottom - top) / height]
    return " ".join([str(label), *(repr(float(number)) for number in numbers)])


def _sides(numbers: Sequence[float], size: tuple[int, int]) -> list[int]:
    return [size[1], size[0]] * (len(numbers) // 2)


def _share(value: float, side: int) -> float:
    """The share of a side that, times the side, is the value again: filling decides ties by the last bit."""
    share = value / side
    for candidate in (share, math.nextafter(share, math.inf), math.nextafter(share, -math.inf)):
        if candidate * side == value:
            return candidate
    return share


def as_yolo_reads(polygon: Sequence[float], size: tuple[int, int]) -> list[float]:
    """A polygon as it comes back from the shares of a YOLO line."""
    return [_share(value, side) * side for value, side in zip(polygon, _sides(polygon, size), strict=True)]


def _write_csv(out: Path, splits: Mapping[str, Sequence[Named]], data: ObjectDataset) -> None:
    _write_classes(out, data)
    things = [thing for members in splits.values() for member in members for thing in member.image.objects]
    extra = sorted({key for thing in things for key in thing.extra if is_free_column(key)})
    with (out / "annotations.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        fixed = ["path", "xmin", "ymin", "xmax", "ymax", "class", "crowd", "split", "width", "height"]
        writer.writerow([*fixed, *extra])
        for split, members in splits.items():
            for member in members:
                path, (height, width) = f"images/{split}/{member.name}", member.image.size
                for thing in member.image.objects:
                    cells = [repr(float(edge)) for edge in thing.box]
                    more = [_cell(thing.extra.get(key)) for key in extra]
                    writer.writerow([path, *cells, thing.name, int(thing.is_crowd), split, width, height, *more])
                if not member.image.objects:
                    writer.writerow([path, "", "", "", "", "", "", split, width, height, *("" for _ in extra)])


def is_free_column(key: str) -> bool:
    """Whether a key can be the name of a column of its own."""
    return key.isidentifier() and key.lower() not in UNDERSTOOD


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _write_labelme(out: Path, splits: Mapping[str, Sequence[Named]], data: ObjectDataset) -> None:
    _write_classes(out, data)
    for split, members in splits.items():
        for member in members:
            content = labelme_content(member.image, member.name)
            _write_json(out / split / f"{Path(member.name).stem}.json", content)


def _write_classes(out: Path, data: ObjectDataset) -> None:
    (out / "classes.txt").write_text("".join(f"{name}\n" for name in data.classes), encoding="utf-8")


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _anything(key: str) -> bool:
    return True


def _nothing(key: str) -> bool:
    return False


FORMATS: dict[str, Format] = {
    "coco": Format("COCO JSON", "images/{split}", True, True, _anything, _anything, _write_coco),
    "voc": Format("Pascal VOC XML", "JPEGImages", False, True, str.isidentifier, str.isidentifier, _write_voc),
    "yolo": Format("YOLO text", "images/{split}", True, False, _nothing, _nothing, _write_yolo),
    "csv": Format("CSV of boxes", "images/{split}", False, True, is_free_column, _nothing, _write_csv),
    "labelme": Format("LabelMe JSON", "{split}", True, True, _anything, _anything, _write_labelme),
}
"""The formats that data can be converted to."""
