"""Heat maps: exact registration with the original picture, files, captions."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.errors import InputError, RunError
from saccade.explanation.heatmap import Heatmap, shared_scale
from saccade.ops.image import Preprocess, to_original
from saccade.types import Geometry


def heatmap(values: torch.Tensor, **changes) -> Heatmap:
    facts = {
        "map": values,
        "seen": torch.ones(values.shape, dtype=torch.bool),
        "image": torch.full((3, *values.shape), 90, dtype=torch.uint8),
        "is_signed": True,
        "is_class_agnostic": False,
        "name": "ones",
        "method": "HiResCAM(layer='final')",
        "of": "sneaker",
        "score": 3.5,
        "manifest": {"model": "Net"},
    }
    return Heatmap(**(facts | changes))


@pytest.mark.parametrize("size", [(60, 90), (90, 60), (64, 64), (500, 301)])
@pytest.mark.parametrize("policy", ["stretch", "crop", "letterbox"])
def test_a_marker_comes_back_to_where_it_was(policy, size):
    image = torch.zeros(3, *size, dtype=torch.uint8)
    centre = (size[0] * 0.4, size[1] * 0.55)
    rows, columns = (torch.arange(n) + 0.5 for n in size)
    blob = torch.exp(-(((rows[:, None] - centre[0]) ** 2 + (columns - centre[1]) ** 2) / (0.06 * min(size)) ** 2))
    image[:] = (blob * 255).to(torch.uint8)
    batch = Preprocess(size=(64, 96), policy=policy, mean=(0, 0, 0), std=(1, 1, 1))([image])
    values = batch.pixels[0, 0]
    back, seen = to_original(values, (64, 96), batch.geometries[0])
    assert back.shape == size
    assert seen[int(centre[0]), int(centre[1])]
    mass = back / back.sum()
    found = float((mass.sum(1) * rows).sum()), float((mass.sum(0) * columns).sum())
    assert found == pytest.approx(centre, abs=0.15 * max(1, size[0] / 64))


def test_pixels_that_were_cropped_away_are_zero_and_marked():
    image = torch.zeros(3, 40, 80, dtype=torch.uint8)
    batch = Preprocess(size=(40, 40), policy="crop")([image])
    back, seen = to_original(torch.ones(2, 5, 5), (40, 40), batch.geometries[0])
    expected = torch.zeros(40, 80)
    expected[:, 20:60] = 1
    assert torch.equal(back, expected.expand(2, -1, -1))
    assert torch.equal(seen, expected.bool())


def test_cells_smaller_than_pixels_are_averaged_and_not_skipped():
    fine = torch.rand(1, 80, 80)
    back, _ = to_original(fine, (80, 80), Geometry((8, 8), (10.0, 10.0)))
    assert back.mean() == pytest.approx(float(fine.mean()), abs=0.02)
    assert back.std() < fine.std() / 4


def test_a_constant_map_stays_constant():
    back, seen = to_original(torch.full((7, 9), 2.5), (112, 144), Geometry((55, 61), (112 / 55, 144 / 61)))
    torch.testing.assert_close(back, torch.full((55, 61), 2.5))
    assert seen.all()


def test_maps_share_a_scale_only_when_asked():
    low, high = heatmap(torch.tensor([[0.1, -0.2]])), heatmap(torch.tensor([[1.0, 0.5]]))
    torch.testing.assert_close(low.display(), torch.tensor([[0.5, -1.0]]))
    torch.testing.assert_close(low.display(scale=1.0), low.map)
    torch.testing.assert_close(heatmap(high.map, is_signed=False).display(0.5), torch.tensor([[1.0, 1.0]]))
    assert not heatmap(torch.zeros(2, 2)).display().any()


def test_maps_of_other_weights_share_no_scale():
    one, other = (heatmap(torch.ones(1, 1), manifest={"model": "Net", "weights": word}) for word in ("a", "b"))
    with pytest.raises(InputError, match="maps of different weights share no scale: a, b"):
        shared_scale([one, other])


def test_captions_say_what_must_not_be_overlooked():
    assert heatmap(torch.ones(1, 1)).label == "sneaker"
    assert "ignores the class" in heatmap(torch.ones(1, 1), is_class_agnostic=True).label
    assert "speaks against" in heatmap(torch.zeros(1, 1), blank="all the evidence speaks against it").label


def test_arrays_are_saved_with_their_story(tmp_path):
    heat = heatmap(torch.tensor([[1.0, -2.0], [0.0, 4.0]]), error=0.1)
    assert heat.save_array(tmp_path / "new" / "why.npy") == tmp_path / "new" / "why.npy"
    np.testing.assert_array_equal(np.load(tmp_path / "new" / "why.npy"), heat.map.numpy())
    heat.save_array(tmp_path / "why.npz")
    with np.load(tmp_path / "why.npz") as stored:
        np.testing.assert_array_equal(stored["map"], heat.map.numpy())
        assert stored["seen"].all()
        about = json.loads(str(stored["about"]))
    assert about["of"] == "sneaker"
    assert about["error"] == pytest.approx(0.1)
    assert about["manifest"] == {"model": "Net"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "why.npz"]


def test_overlays_are_saved_as_pictures(tmp_path):
    values = torch.zeros(20, 30)
    values[5:10, 10:20] = 1
    values[15:, :5] = -1
    path = heatmap(values).save(tmp_path / "why.png")
    with Image.open(path) as picture:
        assert picture.size == (30, 20)
        colours = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(colours[7, 15] - colours[17, 2]).sum() > 60
    assert [entry.name for entry in tmp_path.iterdir()] == ["why.png"]


def test_bad_places_are_named_and_nothing_is_left_behind(tmp_path):
    heat = heatmap(torch.ones(4, 4))
    with pytest.raises(InputError, match=r"npy or \.npz"):
        heat.save_array(tmp_path / "why.txt")
    with pytest.raises(InputError, match=r"expected \.png"):
        heat.save(tmp_path / "why.xyz")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot be written"):
        heat.save_array(tmp_path / "file" / "why.npy")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(RunError, match="cannot be written"):
        heat.save_array(tmp_path / "folder.npy")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder.npy"]
