"""What is drawn, checked pixel by pixel where the truth is known, and as a file where it is a page."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from saccade import render
from saccade.errors import InputError, RunError
from saccade.render.heat import full_strength


def picture(height: int = 40, width: int = 60) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def changed(before: Tensor, after: Tensor) -> Tensor:
    """``[h, w]``: how much each pixel moved."""
    return (before.int() - after.int()).abs().sum(0)


def pixels_of(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("scale", [None, 2.0, 0.0])
def test_a_zero_map_leaves_the_picture_as_it_is(signed: bool, scale: float | None) -> None:
    image = picture()
    assert torch.equal(render.overlay(image, torch.zeros(40, 60), signed, scale=scale), image)


def test_the_peak_is_drawn_where_it_is_and_nowhere_else() -> None:
    image = torch.full((3, 40, 60), 128, dtype=torch.uint8)
    heat = torch.zeros(40, 60)
    heat[7, 51] = 3
    drawn = render.overlay(image, heat)
    assert drawn.shape == image.shape
    assert drawn.dtype == torch.uint8
    assert changed(image, drawn).nonzero().tolist() == [[7, 51]]
    # viridis ends in yellow (253, 231, 37), laid over grey with opacity 0.8.
    expected = 128 + 0.8 * (torch.tensor([253.0, 231.0, 37.0]) - 128)
    assert (drawn[:, 7, 51] - expected).abs().max() <= 1


def test_more_evidence_changes_the_picture_more() -> None:
    image = torch.zeros(3, 1, 11, dtype=torch.uint8)
    drawn = render.overlay(image, torch.linspace(0, 1, 11)[None])
    brightness = drawn.float().mean(0)[0]
    assert (brightness.diff() > 0).all()


def test_signed_zero_is_neutral_and_both_signs_differ() -> None:
    image = torch.full((3, 1, 3), 128, dtype=torch.uint8)
    drawn = render.overlay(image, torch.tensor([[-1.0, 0.0, 1.0]]), True)
    assert drawn[:, 0, 1].tolist() == [128] * 3
    assert drawn[2, 0, 0] > drawn[0, 0, 0]  # against: blue over red
    assert drawn[0, 0, 2] > drawn[2, 0, 2]  # for: red over blue
    unsigned = render.overlay(image, torch.tensor([[-1.0, 0.0, 1.0]]), False)
    assert unsigned[:, 0, 0].tolist() == [128] * 3


def test_one_scale_makes_pictures_comparable() -> None:
    image = torch.zeros(3, 1, 2, dtype=torch.uint8)
    weak, strong = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 4.0]])
    assert torch.equal(render.overlay(image, weak), render.overlay(image, strong))
    assert not torch.equal(render.overlay(image, weak, scale=4), render.overlay(image, strong, scale=4))
    assert torch.equal(render.overlay(image, strong, scale=1), render.overlay(image, weak, scale=1))


def test_a_few_pixels_do_not_leave_the_others_dark() -> None:
    """A tenth of the evidence may lie beyond full strength: of 100 ones and a ten all are drawn at full strength."""
    values = torch.ones(101)
    values[7] = 10.0
    assert full_strength(values) == 1.0
    assert full_strength(-3 * values) == 3.0
    values[7] = 100.0  # half of all evidence is no outlier
    assert full_strength(values) == 100.0
    assert full_strength(torch.zeros(4, 4)) == 0.0
    image = torch.full((3, 2, 2), 128, dtype=torch.uint8)
    heat = torch.tensor([[0.0, 1.0], [0.5, 1.0]])
    assert torch.equal(render.overlay(image, heat), render.overlay(image, heat, scale=full_strength(heat)))


def test_a_failed_map_is_crossed_out() -> None:
    image, heat = torch.full((3, 60, 60), 90, dtype=torch.uint8), torch.zeros(60, 60)
    fine, failed = render.overlay(image, heat), render.overlay(image, heat, is_failed=True)
    assert torch.equal(fine, image)
    assert (changed(fine, failed) > 0).all()
    assert failed.float().mean(0).std() > 10  # the hatching


def test_colours_grow_steadily_lighter() -> None:
    image = torch.zeros(3, 1, 256, dtype=torch.uint8)
    drawn = render.overlay(image, torch.linspace(0, 1, 256)[None], alpha=1.0).float()[:, 0, 128:]
    luminance = (torch.tensor([0.2126, 0.7152, 0.0722])[:, None] * (drawn / 255) ** 2.2).sum(0)
    assert (luminance.diff() > -1e-3).all()


def test_small_pictures_are_enlarged_pixel_by_pixel() -> None:
    image = picture(28, 28)
    large = render.enlarged(image)
    assert large.shape == (3, 224, 224)
    assert torch.equal(large[:, ::8, ::8], image)
    assert torch.equal(large[:, 7::8, 7::8], image)
    assert torch.equal(render.enlarged(picture(300, 400)), picture(300, 400))


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(InputError, match="one size"):
        render.overlay(picture(), torch.zeros(40, 40))
    with pytest.raises(InputError, match="uint8 RGB"):
        render.overlay(picture().float(), torch.zeros(40, 60))
    with pytest.raises(InputError, match="not finite"):
        render.overlay(picture(), torch.full((40, 60), float("nan")))
    with pytest.raises(InputError, match="nothing to show"):
        render.side_by_side([])


def panel(status: render.Status | None, **options: object) -> render.Panel:
    heat = torch.zeros(28, 28)
    heat[5:9, 5:9] = 1
    return render.Panel(
        image=picture(28, 28), heat=heat, title="Grad-CAM", caption="sneaker 0.98", status=status, **options  # type: ignore[arg-type]
    )  # fmt: skip


def test_each_verdict_has_its_own_words_and_shape() -> None:
    texts, markers = set(), set()
    for status in ("supported", "weak", "failed"):
        figure = render.explanation(panel(status))
        words = [text.get_text() for text in figure.texts]
        texts |= {word for word in words if word.startswith(status)}
        markers |= {line.get_marker() for line in figure.artists + figure.lines}
    assert len(texts) == 3
    assert len(markers) == 3
    assert not [t for t in render.explanation(panel(None)).texts if t.get_text() == "supported"]


def test_a_page_shows_every_panel() -> None:
    rows = [[panel("weak"), panel("failed", has_bar=True), panel(None, is_signed=True, has_bar=True)], [panel(None)]]
    figure = render.side_by_side(rows, title="Methods")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles.count("Grad-CAM") == 4
    drawn = pixels_of(render.to_png(figure, dpi=60))
    assert drawn.std() > 20
    for axes in figure.axes:
        box = axes.get_position()
        assert 0 <= box.x0 < box.x1 <= 1
        assert 0 <= box.y0 < box.y1 <= 1


def test_routing_map_paints_each_patch_in_the_colour_of_its_expert() -> None:
    experts = torch.tensor([[0, 1], [2, -1]])
    figure = render.routing_map(torch.full((3, 40, 40), 255, dtype=torch.uint8), experts, 3)
    shown = figure.axes[1].images[0].get_array()
    side = shown.shape[0]
    for (row, column), expert in np.ndenumerate(experts.numpy()):
        from matplotlib.colors import to_rgb

        colour = (1.0, 1.0, 1.0) if expert < 0 else to_rgb(render.categorical(int(expert)))
        expected = 0.35 * 255 + 0.65 * 255 * np.array(colour)
        corner = shown[row * side // 2 + 1, column * side // 2 + 1]
        assert np.abs(corner.astype(float) - expected).max() <= 1.5
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["expert 0   25%", "expert 1   25%", "expert 2   25%", "dropped   25%"]
    with pytest.raises(InputError, match="experts"):
        render.routing_map(picture(), torch.tensor([[5]]), 3)


def test_categories_have_different_colours() -> None:
    assert len({render.categorical(index) for index in range(24)}) == 24


def test_charts_hold_the_numbers_they_were_given() -> None:
    diagram = render.reliability_diagram([None, 0.75], [None, 0.5], [0, 8], error=0.25)
    assert [bar.get_height() for bar in diagram.axes[0].patches] == [0.5]
    assert [bar.get_height() for bar in diagram.axes[1].patches] == [0, 8]
    assert "25.0%" in diagram.axes[0].get_title(loc="left")
    matrix = render.confusion_matrix([[3, 1], [0, 4]], ["cat", "dog"])
    assert [text.get_text() for text in matrix.axes[0].texts] == ["3", "1", "4"]
    assert matrix.axes[0].images[0].get_array().tolist() == [[0.75, 0.25], [0.0, 1.0]]
    lines = render.curves({"deletion": ([0, 1], [5, 0]), "random control": ([0, 1], [5, 2])}, title="Hiding")
    assert [list(line.get_ydata()) for line in lines.axes[0].lines] == [[5, 0], [5, 2]]
    with pytest.raises(InputError, match="uneven"):
        render.curves({"deletion": ([0, 1], [5])})
    with pytest.raises(InputError, match="empty or uneven"):
        render.reliability_diagram([None], [None], [0])
    with pytest.raises(InputError, match="counts of shape"):
        render.confusion_matrix([[1, 2]], ["cat", "dog"])


def test_a_large_confusion_matrix_shows_the_most_mistaken_classes() -> None:
    counts = torch.eye(50, dtype=torch.int64) * 9
    counts[7, 31] = 5
    names = [f"class {index}" for index in range(50)]
    figure = render.confusion_matrix(counts.tolist(), names, max_classes=10)
    shown = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(shown) == 10
    assert {"class 7", "class 31"} <= set(shown)


def test_files_appear_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = render.curves({"a": ([0, 1], [0, 1])})
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        assert render.save(figure, tmp_path / f"a{suffix}").read_bytes().startswith(start)
    with pytest.raises(InputError, match=r"\.bmp"):
        render.save(figure, tmp_path / "a.bmp")
    with pytest.raises(RunError, match="cannot be written"):
        render.save(figure, tmp_path / "a.svg" / "a.png")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunError, match="No space left"):
        render.save(figure, tmp_path / "b.png")
    assert sorted(tmp_path.iterdir()) == before


def test_the_same_figure_gives_the_same_bytes() -> None:
    one, two = (render.curves({"a": ([0, 1], [0, 1])}) for _ in range(2))
    assert render.to_svg(one) == render.to_svg(two)
    assert render.to_png(one) == render.to_png(two)


def test_matplotlib_is_loaded_late_and_pyplot_never() -> None:
    code = (
        "import sys; from saccade import render; assert 'matplotlib' not in sys.modules; "
        "render.to_png(render.curves({'a': ([0, 1], [0, 1])})); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


# --- label maps


def plain(height: int = 300, width: int = 320, value: int = 100) -> Tensor:
    """A grey picture, large enough not to be enlarged."""
    return torch.full((3, height, width), value, dtype=torch.uint8)


def test_class_colours_are_distinct_and_always_the_same() -> None:
    colours = render.class_colours(24)
    assert colours.shape == (24, 3)
    assert colours.dtype == torch.uint8
    assert len({tuple(colour) for colour in colours.tolist()}) == 24
    assert torch.equal(render.class_colours(5), colours[:5]), "more classes change no colour"
    assert render.categorical(3) == "#{:02x}{:02x}{:02x}".format(*colours[3].tolist())


def test_classes_are_tinted_and_hidden_ones_are_not() -> None:
    image = picture(300, 320)
    labels = torch.zeros(300, 320, dtype=torch.uint8)
    labels[100:200, 100:200], labels[:, 300:] = 1, 255
    drawn = render.label_overlay(image, labels, 2, hidden=(0,), alpha=0.4)
    assert drawn.shape == image.shape
    assert torch.equal(drawn[:, labels != 1], image[:, labels != 1]), "a hidden class and what is no class stay"
    colour = render.class_colours(2)[1].float()[:, None, None]
    inner = (slice(None), slice(101, 199), slice(101, 199))
    expected = 0.6 * image[inner].float() + 0.4 * colour
    assert float((drawn[inner].float() - expected).abs().max()) <= 0.51
    # The line along the border has the pure colour, on the side that is tinted.
    assert (drawn[:, 100, 100:200].float() == colour[:, :, 0]).all()
    assert (drawn[:, 100:200, 199].float() == colour[:, :, 0]).all()


def test_every_tinted_class_has_its_own_colour() -> None:
    labels = (torch.arange(320) // 80).expand(300, 320).to(torch.uint8)
    drawn = render.label_overlay(plain(), labels, 4, alpha=1.0)
    for label, colour in enumerate(render.class_colours(4)):
        assert torch.equal(drawn[:, 150, 80 * label + 40], colour)


def test_a_small_picture_and_its_labels_grow_together() -> None:
    labels = torch.zeros(28, 28, dtype=torch.uint8)
    labels[10:, :] = 1
    drawn = render.label_overlay(picture(28, 28), labels, 2, hidden=(0,))
    assert drawn.shape == (3, 224, 224)
    assert torch.equal(drawn[:, :80], render.enlarged(picture(28, 28))[:, :80])
    assert not torch.equal(drawn[:, 80:], render.enlarged(picture(28, 28))[:, 80:])


def test_errors_are_red_ignored_pixels_white_and_the_rest_grey() -> None:
    image = picture(300, 320)
    truth = torch.zeros(300, 320, dtype=torch.uint8)
    predicted = truth.clone()
    predicted[10:20, 10:20] = 1
    truth[200:, :] = 255
    predicted[210:, :] = 1
    drawn = render.error_map(image, predicted, truth)
    assert (drawn[:, 10:20, 10:20] == torch.tensor([213, 94, 0])[:, None, None]).all()
    assert (drawn[:, 200:] == 235).all(), "what nobody labelled is no mistake"
    rest = torch.ones(300, 320, dtype=torch.bool)
    rest[10:20, 10:20] = False
    rest[200:] = False
    assert (drawn[0] == drawn[1])[rest].all()
    assert (drawn[1] == drawn[2])[rest].all()
    expected = image.float().mean(0) * 0.7 + 40
    assert float((drawn[0].float() - expected)[rest].abs().max()) <= 0.5


@pytest.mark.parametrize("area", ["one pixel", "square", "two parts", "at the edge"])
def test_an_outline_leaves_the_region_itself_alone(area: str) -> None:
    image = plain()
    region = torch.zeros(300, 320, dtype=torch.bool)
    if area == "one pixel":
        region[150, 160] = True
    elif area == "at the edge":
        region[:30, :30] = True
    else:
        region[100:140, 100:160] = True
        region[200:210, 100:110] = area == "two parts"
    drawn = render.outlined(image, region)
    assert torch.equal(drawn[:, region], image[:, region])
    values = {tuple(colour) for colour in drawn.flatten(1).T.unique(dim=0).tolist()}
    assert values == {(0, 0, 0), (100, 100, 100), (255, 255, 255)}
    near = torch.nn.functional.max_pool2d(region[None].float(), 41, 1, 20)[0] > 0
    assert torch.equal(drawn[:, ~near], image[:, ~near]), "the line is close to the region"
    # White lies between the region and black: from a white pixel the region is nearer than from any black one.
    white = (drawn == 255).all(0).nonzero().double()
    black = (drawn == 0).all(0).nonzero().double()
    inside = region.nonzero().double()
    reach = [torch.cdist(points, inside, p=float("inf")).amin(1) for points in (white, black)]
    assert float(reach[0].max()) < float(reach[1].min())


def test_no_region_no_outline() -> None:
    assert torch.equal(render.outlined(plain(), torch.zeros(300, 320, dtype=torch.bool)), plain())


def test_label_maps_of_another_size_are_refused() -> None:
    labels, other = torch.zeros(40, 60, dtype=torch.uint8), torch.zeros(40, 1, dtype=torch.uint8)
    with pytest.raises(InputError, match="the label map is"):
        render.label_overlay(picture(), other, 2)
    for predicted, truth in ((labels, other), (other, labels)):
        with pytest.raises(InputError, match="the label map is"):
            render.error_map(picture(), predicted, truth)
