"""Folders and tables of pictures with a mask each.

Known layouts, with the folder of masks called masks, labels, annotations, segmentation, seg, gt or the like:

* splits above: ``train/images/1.jpg``, ``train/masks/1.png``;
* splits below: ``images/train/1.jpg``, ``masks/train/1.png``;
* splits beside: ``train/1.jpg``, ``train_labels/1_L.png``;
* no splits: ``images/1.jpg``, ``masks/1.png``;
* in one folder: ``1.jpg``, ``1_mask.png``, with or without split folders;
* a CSV table of image, mask and, if you like, split.

A mask belongs to the picture of the same name, its own suffix (``_mask``, ``_L``, ...) left aside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from saccade.data.classtable import read_class_table
from saccade.data.dataset import Opened
from saccade.data.folder import read_licence
from saccade.data.maps import MapDataset, MapItem, MaskFile
from saccade.data.mapscan import Pair, hold_out, scan
from saccade.data.splits import SPLIT_NAMES, counted
from saccade.data.tables import SPLIT_COLUMNS, known_split, read_header, read_table, with_slashes
from saccade.data.walk import name_below, pictures_in, subfolders
from saccade.errors import DataError

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "leftimg8bit", "pictures", "photos")
MASK_FOLDERS = (
    *("masks", "mask", "labels", "label", "annotations", "annotation", "segmentation", "segmentations", "seg"),
    *("segmentationclass", "semantic", "gt", "gtfine", "ground_truth", "groundtruth", "label_maps", "labelmaps"),
)
MASK_SUFFIXES = (
    *("_gtFine_labelIds", "_labelIds", "_segmentation", "_annotation", "_masks", "_mask", "_labels", "_label"),
    *("_seg", "_gt", "_L", "-mask", "-seg"),
)
_IMAGE_SUFFIXES = ("_leftImg8bit", "_image", "_img", "_sat")
_BESIDE_SUFFIXES = ("_labels", "_masks", "_annot", "_labelled", "labels", "masks", "annot")
"""What follows the name of a split in the name of its folder of masks."""

_MASK_COLUMNS = ("mask", "mask_path", "label_map", "segmentation")
_IMAGE_COLUMNS = ("image", "image_path", "path", "file", "filename", "file_name", "picture")
_SHOWN = 3


@dataclass
class _Found:
    """Pairs by split (None: nobody said) and the files that have no partner."""

    layout: str
    splits: dict[str | None, list[Pair]] = field(default_factory=dict)
    without_mask: list[Path] = field(default_factory=list)
    without_image: list[Path] = field(default_factory=list)
    mask_folders: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, split: str | None, images: Mapping[str, Path], masks: Mapping[str, Path]) -> None:
        """Pair what has the same key."""
        matched, loose = _match(images, masks)
        self.splits.setdefault(split, []).extend(Pair(images[key], mask) for key, mask in matched.items())
        self.without_mask += [path for key, path in images.items() if key not in matched]
        self.without_image += loose


def is_pair_folder(root: Path) -> bool:
    """Whether the folder holds pictures with masks in one of the known layouts, or a table of them."""
    return _mask_table(root) is not None or _layout(root) is not None


def open_pairs(source: Path, *, strict: bool = False) -> Opened:
    """The splits of a folder, or of a CSV table, of pictures with a mask each.

    Raises:
        DataError: no pairs, masks of another size than their picture, values that no class has, masks that are
            photographs or wholly ignored, fewer than two classes; with ``strict`` also pictures without a mask and
            masks without a picture.
    """
    table = source if source.is_file() else _mask_table(source)
    root = source.parent if source.is_file() else source
    found = _read_table(table) if table else _layout(root)
    if found is None:
        raise DataError(
            "there are no masks beside the pictures",
            where=str(source),
            expected="images/ and masks/ with files of the same name",
            remedy="see docs/semantic.md for the known layouts",
        )
    notes = [*found.notes, *_partners(found, str(source), strict)]
    splits = {split: pairs for split, pairs in found.splits.items() if pairs}
    if None in splits and len(splits) == 1:
        pairs = splits[None]
        named, note = hold_out(pairs, [name_below(pair.image, root) for pair in pairs])
        notes.append(note)
    else:
        named = {split or "train": pairs for split, pairs in splits.items()}
    listed = read_class_table([root, *found.mask_folders])
    classes, coding, told = scan(named, listed, _object_name(root), str(source))
    licence = read_licence(root)
    datasets = {
        split: MapDataset([MapItem(pair.image, MaskFile(pair.mask, coding)) for pair in pairs], classes, root, licence)
        for split, pairs in named.items()
    }
    by = f", classes of {listed.file.name}" if listed else ""
    return Opened(f"pictures with masks, {found.layout}{by}", datasets, notes + told)


def _object_name(root: Path) -> str:
    """What the objects of masks that number them are called: DSB2018 counts its nuclei in index.csv."""
    index = root / "index.csv"
    if index.is_file():
        with index.open(encoding="utf-8-sig", errors="replace") as stream:
            if "nuclei" in stream.readline().strip().split(","):
                return "nucleus"
    return "object"


def _partners(found: _Found, where: str, strict: bool) -> list[str]:
    """Notes about files without a partner."""
    told = []
    for paths, noun, partner in ((found.without_mask, "picture", "mask"), (found.without_image, "mask", "picture")):
        if paths:
            shown = ", ".join(path.name for path in paths[:_SHOWN]) + (", ..." if len(paths) > _SHOWN else "")
            told.append(f"{counted(len(paths), noun)} without a {partner}: {shown}")
    if not any(found.splits.values()):
        reason = f" ({'; '.join(told)})" if told else ""
        raise DataError(
            f"no picture has a mask of its name{reason}",
            where=where,
            expected=f"the same name, or one that ends in {', '.join(MASK_SUFFIXES[4:6])} and so on",
            remedy="rename the masks, or list the pairs in a CSV of image,mask",
        )
    if told and strict:
        raise DataError("; ".join(told), where=where, remedy="add or delete the files, or leave out --strict")
    return [f"{line}: left out" for line in told]


# --- layouts


def _layout(root: Path) -> _Found | None:
    """The first layout that fits, with its pairs."""
    for read in (_folders_below, _splits_above, _splits_beside, _one_folder):
        found = read(root)
        if found is not None:
            return found
    return None


def _folder_pair(root: Path) -> tuple[Path, Path] | None:
    """The folder of pictures and the folder of masks directly below ``root``."""
    folders = {folder.name.lower(): folder for folder in subfolders(root)}
    images = next((folders[name] for name in IMAGE_FOLDERS if name in folders), None)
    masks = next((folders[name] for name in MASK_FOLDERS if name in folders and pictures_in(folders[name])), None)
    return (images, masks) if images and masks else None


def _folders_below(root: Path) -> _Found | None:
    """``images/`` and ``masks/``, each with or without sub-folders for the splits."""
    folders = _folder_pair(root)
    if folders is None:
        return None
    images, masks = (_by_key(folder, suffixes) for folder, suffixes in zip(folders, _SUFFIX_SETS, strict=True))
    found = _Found(f"{folders[0].name}/ and {folders[1].name}/", mask_folders=[folders[1]])
    splits = {folder.name: SPLIT_NAMES.get(folder.name.lower()) for folder in subfolders(folders[0])}
    known = {name: split for name, split in splits.items() if split}
    if not known:
        found.add(None, images, masks)
        return found
    found.layout += f" with splits {', '.join(sorted(set(known.values()), key=list(SPLIT_NAMES.values()).index))}"
    for name, split in known.items():
        below = {key: path for key, path in images.items() if key.startswith(f"{name}/")}
        own = {key: path for key, path in masks.items() if key.startswith(f"{name}/")}
        if not own and not any((folders[1] / other).is_dir() for other in known):  # the masks are not split
            own = {f"{name}/{key}": path for key, path in masks.items() if f"{name}/{key}" in below}
        found.add(split, below, own)
    loose = [key for key in images if key.split("/")[0] not in known]
    if loose:
        found.notes.append(f"{counted(len(loose), 'picture')} in no split: left out")
    return found


def _splits_above(root: Path) -> _Found | None:
    """``train/images`` and ``train/masks``."""
    pairs = {folder: _folder_pair(folder) for folder in _split_folders(root)}
    if not any(pairs.values()):
        return None
    found = _Found("")
    for folder, both in pairs.items():
        if both is None:
            found.notes.append(f"the folder {folder.name!r} has no images and masks: left out")
            continue
        found.mask_folders.append(both[1])
        found.add(SPLIT_NAMES[folder.name.lower()], _by_key(both[0], _IMAGE_SUFFIXES), _by_key(both[1], MASK_SUFFIXES))
    found.layout = f"splits {', '.join(split for split in found.splits if split)}"
    return found


def _splits_beside(root: Path) -> _Found | None:
    """``train`` and ``train_labels``."""
    folders = {folder.name.lower(): folder for folder in subfolders(root)}
    found = _Found("")
    for folder in _split_folders(root):
        names = (folder.name.lower() + suffix for suffix in _BESIDE_SUFFIXES)
        masks = next((folders[name] for name in names if name in folders), None)
        if masks is not None and pictures_in(masks):
            found.mask_folders.append(masks)
            split = SPLIT_NAMES[folder.name.lower()]
            found.add(split, _by_key(folder, _IMAGE_SUFFIXES), _by_key(masks, MASK_SUFFIXES))
    found.layout = f"splits {', '.join(split for split in found.splits if split)}"
    return found if found.splits else None


def _one_folder(root: Path) -> _Found | None:
    """``1.jpg`` and ``1_mask.png`` side by side."""
    found = _Found("masks beside the pictures")
    for folder, split in [(root, None), *((f, SPLIT_NAMES[f.name.lower()]) for f in _split_folders(root))]:
        files = pictures_in(folder, is_deep=False)
        masks = {path for path in files if _without(path.stem, MASK_SUFFIXES) != path.stem}
        if not masks or len(masks) == len(files):
            continue
        images = {_without(path.stem, _IMAGE_SUFFIXES): path for path in files if path not in masks}
        found.add(split, images, {path.stem: path for path in sorted(masks)})
    return found if any(found.splits.values()) else None


def _split_folders(root: Path) -> list[Path]:
    return [folder for folder in subfolders(root) if folder.name.lower() in SPLIT_NAMES]


_SUFFIX_SETS = (_IMAGE_SUFFIXES, MASK_SUFFIXES)


def _by_key(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Pictures below a folder by their path without ending, and without the suffix where it is of a picture."""
    found: dict[str, Path] = {}
    for path in pictures_in(folder):
        # The suffix of a mask is taken off only when the whole name matches nothing.
        stem = _without(path.stem, suffixes) if suffixes is _IMAGE_SUFFIXES else path.stem
        key = (path.parent.relative_to(folder) / stem).as_posix()
        if key in found:
            raise DataError(
                f"{found[key].name} and {path.name} have the same name",
                where=str(path.parent),
                expected="one file per name",
                remedy="delete one of them, or list the pairs in a CSV of image,mask",
            )
        found[key] = path
    return found


def _without(stem: str, suffixes: Sequence[str]) -> str:
    return next((stem.removesuffix(suffix) for suffix in suffixes if stem.endswith(suffix)), stem)


def _match(images: Mapping[str, Path], masks: Mapping[str, Path]) -> tuple[dict[str, Path], list[Path]]:
    """The mask of each picture by key, and the masks of no picture."""
    matched = {key: path for key, path in masks.items() if key in images}
    loose: list[Path] = []
    for key, path in masks.items():
        if key in matched:
            continue
        shorter = _without(key, MASK_SUFFIXES)
        if shorter not in images:
            loose.append(path)
        elif shorter in matched:
            if matched[shorter] is not masks.get(shorter):
                raise DataError(
                    f"{matched[shorter].name} and {path.name} are both masks of {images[shorter].name}",
                    where=str(path.parent),
                    expected="one mask per picture",
                    remedy="delete one of them, or list the pairs in a CSV of image,mask",
                )
            loose.append(path)
        else:
            matched[shorter] = path
    return {key: matched[key] for key in images if key in matched}, loose


# --- tables


def is_mask_table(path: Path) -> bool:
    """Whether a CSV table has a column of pictures and one of masks."""
    header = {name.lower() for name in read_header(path)}
    return bool(header & set(_MASK_COLUMNS) and header & set(_IMAGE_COLUMNS))


def _mask_table(root: Path) -> Path | None:
    files = [path for path in sorted([*root.glob("*.csv"), *root.glob("*.tsv")]) if path.is_file()]
    tables = [path for path in files if is_mask_table(path)]
    return tables[0] if len(tables) == 1 else None


def _read_table(table: Path) -> _Found:
    found = _Found("listed in a table")
    rows = list(_rows(table))
    for where, image, mask, split in rows:
        if not image.is_file():
            raise DataError(f"there is no picture {image}", where=where, expected="paths relative to the table")
        if mask is None or not mask.is_file():
            found.without_mask.append(image)
        else:
            found.splits.setdefault(split, []).append(Pair(image, mask))
            if mask.parent not in found.mask_folders:
                found.mask_folders.append(mask.parent)
    if None in found.splits and len(found.splits) > 1:
        raise DataError("some rows have a split and some have none", where=str(table), expected="train, val or test")
    return found


def _rows(table: Path) -> Iterator[tuple[str, Path, Path | None, str | None]]:
    """Where it stands, picture, mask (None: empty) and split of every line."""
    names, rows = read_table(table)
    folded = {name.lower(): name for name in reversed(names)}
    columns = [
        next((folded[name] for name in choices if name in folded), None)
        for choices in (_IMAGE_COLUMNS, _MASK_COLUMNS, SPLIT_COLUMNS)
    ]
    for where, cells in rows:
        image, mask, word = (with_slashes(cells[column]) if column else "" for column in columns)
        if not image:
            raise DataError("the image is empty", where=where, remedy="fill it in or delete the row")
        split = known_split(word, columns[2], where)
        yield where, table.parent / image, table.parent / mask if mask else None, split
