"""Explanations by the looks of queries, held against matrices written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import ConfigError, ExplainError
from saccade.explanation.attention import AttentionRelevance
from saccade.explanation.boxes import Watched
from saccade.explanation.boxquestions import BoxQuestions
from saccade.explanation.boxscores import places_of
from saccade.explanation.cam import LayerCAM
from saccade.explanation.explain import ExplainOptions, explain, explain_batch
from saccade.explanation.methods import suited
from saccade.explanation.queries import CrossAttention, asked_rows, seen_points, splat, through_encoder
from saccade.explanation.record import recording
from saccade.explanation.scores import class_score
from saccade.models.build import create
from saccade.types import AttentionSite, ImageBatch

DENSE = ("detr_test", "detr_pre_norm_test", "detr_vit_test")
PICTURE = torch.randint(0, 256, (3, 60, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def watched(name: str) -> tuple[Watched, ImageBatch, list[Any]]:
    """A detector with random weights, a picture, and scores of a class and of a side."""
    torch.manual_seed(0)
    model = Watched(create(name, overrides={"selection.min_score": 0.0}).eval())
    images = model.preprocess([PICTURE])
    with torch.no_grad():
        found = model(images)
    questions = BoxQuestions(model, found, images, None)
    return model, images, [questions.ask(of).score for of in ("box:0", "box:1/left")]


def canvas_of(images: ImageBatch) -> tuple[int, int]:
    return int(images.pixels.shape[-2]), int(images.pixels.shape[-1])


def test_relevance_of_queries_by_hand() -> None:
    """Two layers, three queries, two cells, one layer of an encoder: every product written out."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    own, cross, encoder = [draw(3, 3), draw(3, 3)], [draw(3, 2), draw(3, 2)], [draw(2, 2), draw(2, 2)]
    eye, cells = torch.eye(3), torch.eye(2)
    of_cells = (cells + encoder[1]) @ (cells + encoder[0])
    gained = of_cells - cells
    of_cells = gained / gained.sum(1, keepdim=True) + cells
    queries, picture = eye, torch.zeros(3, 2)
    for mixed, looked in zip(own, cross, strict=True):
        queries, picture = queries + mixed @ queries, picture + mixed @ picture
        gathered = queries - eye
        picture = picture + (gathered / gathered.sum(1, keepdim=True) + eye) @ looked @ of_cells
    for query in range(3):
        rows = asked_rows(own, eye[query])
        read = sum(row @ looked for row, looked in zip(rows, cross, strict=True))
        torch.testing.assert_close(through_encoder(read, encoder), picture[query])


def test_queries_that_looked_at_no_other_look_for_themselves() -> None:
    start = torch.tensor([0.0, 1.0])
    rows = asked_rows([torch.zeros(2, 2), torch.zeros(2, 2)], start)
    assert [row.tolist() for row in rows] == [[0, 1], [0, 1]]
    assert torch.equal(through_encoder(start, [torch.zeros(2, 2)]), start)


@pytest.mark.parametrize("name", DENSE)
def test_cross_attention_is_that_of_the_query_that_fired(name: str) -> None:
    model, images, scores = watched(name)
    spec = model.explain_spec()
    assert spec.queries is not None
    for depth, layer in enumerate(spec.queries.layers):
        with recording(model, attention=[AttentionSite(layer.cross, 0, lambda c: c)], with_gradients=False) as record:
            queries = places_of(scores, record.run(images))[:, 0]
            looked = record.attention()[0][0].mean(0)[queries]  # [T, cells]
        found = CrossAttention(depth)(model, images, scores, spec).values
        torch.testing.assert_close(found.flatten(2)[:, 0], looked)
        torch.testing.assert_close(found.sum(dim=(2, 3)), torch.ones(2, 1))
    assert torch.equal(CrossAttention()(model, images, scores, spec).values, found)
    with pytest.raises(ConfigError, match="has no layer 7"):
        CrossAttention(7)(model, images, scores, spec)


@pytest.mark.parametrize("name", DENSE)
def test_relevance_follows_the_published_recurrence(name: str) -> None:
    model, images, scores = watched(name)
    spec = model.explain_spec()
    looks = spec.queries
    assert looks is not None
    found = AttentionRelevance()(model, images, scores, spec).values
    sites = [*(site.path for site in looks.encoder), *(p for one in looks.layers for p in (one.own, one.cross))]
    with recording(model, attention=[AttentionSite(path, 0, lambda c: c) for path in sites]) as record:
        record.run(images)
        attention = record.attention()
        queries = places_of(scores, record.outputs)[:, 0].tolist()
        for score, query, values in zip(scores, queries, found[:, 0], strict=True):
            slopes = next(record.gradients([score], attention))
            weighed = [(a.detach() * g[0]).clamp_min(0)[0].mean(0) for a, g in zip(attention, slopes, strict=True)]
            depth = len(looks.encoder)
            of_cells = torch.eye(weighed[-1].shape[-1])
            for matrix in weighed[:depth]:
                of_cells = of_cells + matrix @ of_cells
            of_queries = torch.eye(len(weighed[-1]))
            expected = torch.zeros_like(weighed[-1])
            for own, cross in zip(weighed[depth::2], weighed[depth + 1 :: 2], strict=True):
                of_queries, expected = of_queries + own @ of_queries, expected + own @ expected
                expected = expected + normalised(of_queries) @ cross @ normalised(of_cells)
            torch.testing.assert_close(values.flatten(), expected[query], rtol=1e-4, atol=1e-8)


def normalised(relevance: Tensor) -> Tensor:
    gathered = relevance - torch.eye(len(relevance))
    return gathered / gathered.sum(1, keepdim=True).clamp_min(1e-30) + torch.eye(len(relevance))


# --- points


def test_points_count_for_the_cells_that_bilinear_sampling_reads() -> None:
    """The adjoint of grid_sample, level by level, and no weight lost within the picture."""
    generator = torch.Generator().manual_seed(1)
    grids = [(4, 6), (2, 3)]
    points = torch.rand(5, 2, 3, 2, generator=generator) * 1.2 - 0.1
    weights = torch.rand(5, 2, 3, generator=generator)
    maps = [torch.zeros(1, 1, *grid, requires_grad=True) for grid in grids]
    sampled = [F.grid_sample(m, 2 * points[None, :, k] - 1, align_corners=False)[0, 0] for k, m in enumerate(maps)]
    slopes = torch.autograd.grad(sum((s * weights[:, k]).sum() for k, s in enumerate(sampled)), maps)
    coarse = slopes[1][0, 0].repeat_interleave(2, 0).repeat_interleave(2, 1) / 4
    torch.testing.assert_close(splat(points, weights, grids).reshape(4, 6), slopes[0][0, 0] + coarse)
    middle = torch.full((1, 2, 1, 2), 0.5)
    assert float(splat(middle, torch.ones(1, 2, 1), grids).sum()) == pytest.approx(2)


def test_deformable_queries_show_the_points_that_they_looked_at() -> None:
    model, images, scores = watched("detr_fast_test")
    spec = model.explain_spec()
    with torch.no_grad():
        query = int(places_of(scores, model(images))[0, 0])
    seen = seen_points(model, images, [query], spec)
    assert seen is not None
    points, weights = seen[0]
    assert points.shape == (2, 2, 3, 2, 2)
    torch.testing.assert_close(weights.sum(dim=(2, 3)), torch.ones(2, 2))
    grids = spec.queries.grids(canvas_of(images))  # type: ignore[union-attr]
    for depth in (0, 1):
        expected = splat(points[depth], weights[depth] / 2, grids)
        found = CrossAttention(depth)(model, images, scores[:1], spec).values[0, 0]
        torch.testing.assert_close(found.flatten(), expected)
    relevance = AttentionRelevance()(model, images, scores, spec).values
    assert relevance.shape == (2, 1, *grids[0])
    assert (relevance >= 0).all()
    assert relevance.flatten(2).any(-1).all()


def test_the_points_lie_on_the_original_picture() -> None:
    """A letterboxed picture half as large: the points are halved with it."""
    torch.manual_seed(0)
    model = create("detr_fast_test", overrides={"selection.min_score": 0.0}).eval()
    small = PICTURE[:, :30:, :32]
    options = ExplainOptions(method="cross_attention", verdict=False)
    fired = explain_batch(model, [small], ["box:0"], options)[0][0].fired
    assert fired is not None
    assert fired.points is not None
    assert fired.cell is not None
    with torch.no_grad():
        images = model.preprocess([small])
        query = int(model.postprocess(model(images), images)[0].source[0])
    assert fired.words.startswith(f"query {query}, from row ")
    seen = seen_points(model, images, [query], model.explain_spec())
    assert seen is not None
    torch.testing.assert_close(fired.points, seen[0].points * 64 / 2)
    assert sorted(fired.arrays()) == ["point_weights", "points"]


# --- through the verb


@pytest.mark.parametrize("name", [*DENSE, "detr_fast_test"])
def test_a_query_is_explained_by_its_looks(name: str) -> None:
    torch.manual_seed(0)
    model = create(name, overrides={"selection.min_score": 0.0}).eval()
    reasons = suited(model.explain_spec(), has_boxes=True)
    assert reasons["cross_attention"] is None
    assert reasons["relevance"] is None
    assert reasons["rollout"] is not None
    for method in ("cross_attention", "relevance"):
        heat = explain(model, PICTURE, of="box:2/top", method=method, verdict=False)
        assert heat.map.shape == PICTURE.shape[1:]
        assert heat.map.any()
        assert heat.fired is not None
        assert heat.fired.words.startswith("query ")
        assert heat.about()["fired"]["words"] == heat.fired.words


def test_models_without_queries_say_so() -> None:
    model = create("yolo_test", overrides={"selection.min_score": 0.0}).eval()
    assert suited(model.explain_spec(), has_boxes=True)["cross_attention"] is not None
    with pytest.raises(ExplainError, match="no queries"):
        explain(model, PICTURE, method="cross_attention", verdict=False)
    with pytest.raises(ExplainError, match="hirescam"):
        explain(model, PICTURE, method="relevance", verdict=False)
    classifier = create("resnet_test").eval()
    with pytest.raises(ExplainError, match="no queries"):
        explain(classifier, PICTURE, method="cross_attention", verdict=False)


def test_a_score_that_is_about_no_object_is_refused() -> None:
    model, images, _ = watched("detr_test")
    with pytest.raises(ExplainError, match="not about an object"):
        CrossAttention()(model, images, [class_score(0)], model.explain_spec())
    assert LayerCAM("bottleneck")(model, images, watched("detr_test")[2], model.explain_spec()).values.any()
