"""Pascal VOC XML: one file of boxes per picture.

Known layouts: ``Annotations`` with ``JPEGImages`` and lists of names in ``ImageSets/Main``; ``annotations`` with
``images`` and ``train.txt``, ``val.txt`` beside them or folders ``train``, ``val`` in them; XML beside the pictures, in
one folder or in ``train`` and ``val``.

VOC counts pixels from 1 and the last pixel belongs to the box (Everingham et al. 2010), so the edges are ``xmin - 1,
ymin - 1, xmax, ymax``. Data with a coordinate below 1 cannot count from 1: there the numbers are the edges, which is
told. Files that we write say which it is in ``<coordinates>``, so that a box comes back as it was, however thin.
``difficult`` objects are crowds: nothing is learned from them and nothing counts against them.

h, w picture
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from saccade.data.dataset import Opened
from saccade.data.decode import SUFFIXES
from saccade.data.objectjoin import Found, absent, join, read_class_list
from saccade.data.objects import AnnotatedImage, Box, ObjectAnnotation, plain_value
from saccade.data.objectscan import Draft, Drafted, shown
from saccade.data.splits import SPLIT_NAMES, counted
from saccade.data.walk import pictures_in
from saccade.errors import DataError
from saccade.types import TaskName

INCLUSIVE = "1-based inclusive"
"""What ``<coordinates>`` says in files that we write."""

_XML_FOLDERS = ("annotations", "annotation", "xml", "xmls", "labels")
_IMAGE_FOLDERS = ("jpegimages", "images", "image", "imgs", "img")
_ABOUT_PICTURE = frozenset({"folder", "filename", "path", "segmented", "coordinates"})
_HEAD_BYTES = 4096
_LARGEST = 1 << 24
"""Largest file that is taken for annotations of one picture, in bytes."""


class _File(NamedTuple):
    """One XML file, parsed.

    Attributes:
        path: the file.
        root: its element ``annotation``.
    """

    path: Path
    root: ElementTree.Element


def is_voc_xml_folder(root: Path) -> bool:
    """Whether the folder holds VOC XML of boxes in one of the known layouts."""
    return any(_is_voc_xml(paths[0]) for paths in _groups(root).values() if paths)


def open_voc_xml(root: Path, task: TaskName | None = None, *, strict: bool = False) -> Opened:
    """The splits of a folder with VOC XML.

    Raises:
        DataError: XML that is damaged, boxes that are no numbers, no picture of those it describes, faults of the boxes
            that cannot be mended, masks wanted (there are none in XML).
    """
    groups = _groups(root)
    found = Found("", "xyxy")
    files = {split: [parse(path) for path in paths] for split, paths in groups.items()}
    everything = [file for members in files.values() for file in members]
    is_inclusive, note = _convention(everything)
    found.notes += note
    pictures = _pictures(root)
    listed, told = _lists(root, everything, strict)
    found.notes += told
    if listed:
        files = listed
    lost: list[str] = []
    for split, members in files.items():
        drafts = []
        for file in members:
            path = _picture(file, pictures)
            if path is None:
                lost.append(_text(file.root, "filename") or file.path.stem)
            else:
                drafts.append(_draft(file, path, is_inclusive))
        found.splits[split] = drafts
    total = sum(len(members) for members in files.values())
    found.notes += absent(lost, total, "that XML files describe are", str(root), strict)
    found.notes += _without_xml(pictures, everything, root)
    found.classes = read_class_list(root)
    named = [split for split in found.splits if split]
    found.format = "Pascal VOC XML" + (f" with splits {', '.join(named)}" if named else " without splits")
    return join(found, root, str(root), task or "detection", strict)


# --- files


def _is_voc_xml(path: Path) -> bool:
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    return b"<annotation" in head


def _subfolders(folder: Path) -> dict[str, Path]:
    return {p.name.lower(): p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")}


def _xml_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.xml") if path.is_file() and not path.name.startswith("."))


def _groups(root: Path) -> dict[str | None, list[Path]]:
    """Split (None: nobody said) -> XML files."""
    folders = _subfolders(root)
    home = next((folders[name] for name in _XML_FOLDERS if name in folders), None)
    for base in (home, root):
        if base is None:
            continue
        split: dict[str | None, list[Path]] = {}
        for name, folder in _subfolders(base).items():
            if name in SPLIT_NAMES:
                inner = _subfolders(folder)
                places = [folder, *(inner[name] for name in _XML_FOLDERS if name in inner)]
                files = [path for place in places for path in _xml_files(place)]
                if files:
                    split.setdefault(SPLIT_NAMES[name], []).extend(files)
        if split:
            return split
        alone = _xml_files(base)
        if alone:
            return {None: alone}
    return {}


def _pictures(root: Path) -> dict[str, list[Path]]:
    """Pictures below the folder by name and by name without ending, those of masks left aside."""
    found: dict[str, list[Path]] = {}
    for path in pictures_in(root):
        parts = {part.lower() for part in path.relative_to(root).parts[:-1]}
        if not any(part.startswith("segmentation") for part in parts):
            for key in {path.name, path.stem}:
                found.setdefault(key, []).append(path)
    return found


def _picture(file: _File, pictures: dict[str, list[Path]]) -> Path | None:
    """The picture of an XML file: by the name of the file, else by the name that it says."""
    said = (_text(file.root, "filename") or "").replace("\\", "/").rpartition("/")[2]
    choices = pictures.get(file.path.stem, []) or pictures.get(said, []) or pictures.get(Path(said).stem, [])
    # train/1.xml and val/1.xml: the picture of the same folder is meant.
    own = {part.lower() for part in file.path.parts[:-1]}
    return max(choices, key=lambda path: len(own & {p.lower() for p in path.parts[:-1]})) if choices else None


def _without_xml(pictures: dict[str, list[Path]], files: list[_File], root: Path) -> list[str]:
    """A note about pictures that no XML file describes: whether they are empty nobody said."""
    known = {file.path.stem for file in files} | {(_text(file.root, "filename") or "") for file in files}
    alone = sorted({p.name for paths in pictures.values() for p in paths if not {p.stem, p.name} & known})
    return [f"{counted(len(alone), 'picture')} without an XML file: {shown(alone)}: left out"] if alone else []


def _lists(root: Path, files: list[_File], strict: bool) -> tuple[dict[str | None, list[_File]], list[str]]:
    """The XML files by the split that lists their name; nothing where there are no lists."""
    by_stem = {file.path.stem: file for file in files}
    found: dict[str | None, list[_File]] = {}
    notes: list[str] = []
    for folder in (root / "ImageSets" / "Main", root / "ImageSets", root):
        for path in sorted(folder.glob("*.txt")) if folder.is_dir() else []:
            split = SPLIT_NAMES.get(path.stem.lower())
            if split is None or split in found:
                continue
            lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
            names = [_stem(line.split()[0]) for line in lines if line.strip()]
            lost = [name for name in names if name not in by_stem]
            found[split] = [by_stem[name] for name in dict.fromkeys(names) if name in by_stem]
            notes += absent(lost, len(names), f"of {path.name} have XML that is", str(path), strict)
        if found:
            break
    listed = {file.path for members in found.values() for file in members}
    if found and len(listed) < len(files):
        notes.append(f"{counted(len(files) - len(listed), 'XML file')} in no list: left out")
    return found, notes


def _stem(name: str) -> str:
    """The name of a picture without folder and, if it is one, without the ending."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return Path(last).stem if Path(last).suffix.lower() in {*SUFFIXES, ".xml"} else last


# --- one file


def parse(path: Path) -> _File:
    """One XML file.

    Raises:
        DataError: damaged, too large, or no annotation of a picture.
    """
    content = path.read_bytes()
    if len(content) > _LARGEST or b"<!ENTITY" in content:
        told = "this is no annotation of a picture: it is too large, or defines entities"
        raise DataError(told, where=str(path), expected="VOC XML")
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise DataError(f"the XML is damaged ({error})", where=str(path), remedy="export it again") from error
    if root.tag != "annotation":
        told = f"the XML begins with <{root.tag}>"
        raise DataError(told, where=str(path), expected="<annotation>, as Pascal VOC has it")
    return _File(path, root)


def _text(element: ElementTree.Element, path: str) -> str | None:
    found = element.find(path)
    return found.text.strip() if found is not None and found.text and found.text.strip() else None


def _number(element: ElementTree.Element, path: str, where: str) -> float:
    text = _text(element, path)
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise DataError(f"{path} is {text!r}", where=where, expected="a number")
    return value


def _boxes(file: _File) -> Iterator[tuple[int, ElementTree.Element, Box]]:
    for index, element in enumerate(file.root.findall("object")):
        where = f"{file.path} object {index}"
        if element.find("bndbox") is None:
            raise DataError("the object has no bndbox", where=where, expected="xmin, ymin, xmax, ymax")
        left, top, right, bottom = (_number(element, f"bndbox/{n}", where) for n in ("xmin", "ymin", "xmax", "ymax"))
        yield index, element, (left, top, right, bottom)


def _convention(files: list[_File]) -> tuple[bool, list[str]]:
    """Whether the files count pixels from 1, and a note where they do not."""
    if files and all(_text(file.root, "coordinates") == INCLUSIVE for file in files):
        return True, []
    for file in files:
        for index, _, box in _boxes(file):
            if min(box[:2]) < 1:
                told = f"{file.path} object {index} begins at {min(box[:2]):g}, so pixels are not counted from 1 here"
                return False, [f"{told}: the numbers are read as the edges of the boxes"]
    return True, []


def _draft(file: _File, path: Path, is_inclusive: bool) -> Draft:
    is_ours = _text(file.root, "coordinates") == INCLUSIVE
    objects = []
    for index, element, box in _boxes(file):
        where = f"{file.path} object {index}"
        name = _text(element, "name")
        if name is None:
            raise DataError("the object has no name", where=where, expected="the name of its class")
        left, top, right, bottom = box
        # A box that ends where it begins is a slip of the mouse, not one pixel, unless we wrote it.
        is_box = is_ours or (right > left and bottom > top)
        edges = (left - 1, top - 1, right, bottom) if is_inclusive and is_box else box
        thing = ObjectAnnotation(name, edges, None, _text(element, "difficult") in {"1", "true"}, _extra(element))
        objects.append(Drafted(thing, where))
    height, width = (_text(file.root, f"size/{side}") or "0" for side in ("height", "width"))
    size = (int(float(height)), int(float(width))) if _is_number(height) and _is_number(width) else (0, 0)
    source = {child.tag: child.text for child in file.root.findall("source/*") if child.text}
    extra = _extra(file.root, _ABOUT_PICTURE) | ({"source": source} if source else {})
    image = AnnotatedImage(path, size if min(size) > 0 else (0, 0), extra=extra)
    return Draft(image, objects)


def _is_number(text: str) -> bool:
    try:
        return 0 <= float(text) < 1e9
    except ValueError:
        return False


def _extra(
    element: ElementTree.Element, known: frozenset[str] = frozenset({"name", "bndbox", "difficult"})
) -> dict[str, Any]:
    """What the file says beyond what is known: pose, truncated and the like."""
    told = {
        child.tag: child.text.strip() for child in element if child.tag not in known and not len(child) and child.text
    }
    return {key: plain_value(text) for key, text in told.items() if text}


# --- writing


def voc_tree(image: AnnotatedImage, name: str) -> ElementTree.Element:
    """The XML of one picture, whose file is called ``name``."""
    root = ElementTree.Element("annotation")
    _child(root, "folder", "JPEGImages")
    _child(root, "filename", name)
    size = ElementTree.SubElement(root, "size")
    for key, value in (("width", image.size[1]), ("height", image.size[0]), ("depth", 3)):
        _child(size, key, str(value))
    _child(root, "segmented", "0")
    _child(root, "coordinates", INCLUSIVE)
    source = image.extra.get("source")
    if isinstance(source, dict):
        holder = ElementTree.SubElement(root, "source")
        _children(holder, source)
    _children(root, image.extra)
    for thing in image.objects:
        element = ElementTree.SubElement(root, "object")
        _child(element, "name", thing.name)
        _child(element, "difficult", str(int(thing.is_crowd)))
        _children(element, thing.extra)
        box = ElementTree.SubElement(element, "bndbox")
        left, top, right, bottom = thing.box
        for key, edge in (("xmin", left + 1), ("ymin", top + 1), ("xmax", right), ("ymax", bottom)):
            _child(box, key, _figure(edge))
    ElementTree.indent(root)
    return root


def _children(parent: ElementTree.Element, extra: Mapping[str, Any]) -> None:
    """What else there is to say, as text; keys that are no names of elements, or taken, are left out."""
    taken = {child.tag for child in parent} | {"bndbox", "object"}
    for key, value in extra.items():
        if key.isidentifier() and key not in taken and value is not None:
            _child(parent, key, value if isinstance(value, str) else json.dumps(value))


def _child(parent: ElementTree.Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = text


def _figure(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(round(value, 6))
