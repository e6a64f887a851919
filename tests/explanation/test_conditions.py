"""Whatever state a model is in - precision, compilation, wrappers, frozen weights - maps are right and it stays so."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from saccade.errors import ExplainError
from saccade.explanation.adapt import adapt
from saccade.explanation.attribution import Explainer
from saccade.explanation.cam import ScoreCAM
from saccade.explanation.explain import ExplainOptions, explain, explain_batch
from saccade.explanation.faithfulness import rank_similarity
from saccade.explanation.gradients import IntegratedGradients, SmoothGrad
from saccade.explanation.heatmap import Heatmap
from saccade.explanation.perturbation import RISE, Occlusion
from saccade.explanation.scores import class_score
from saccade.explanation.verdict import Judge, Verdict, VerdictConfig
from saccade.ops.image import Preprocess
from saccade.types import ImageBatch

SMALL = Preprocess(size=(32, 32), policy="stretch")
METHODS = ("gradient", "integrated_gradients", "gradcam", "hirescam", "layercam", "occlusion", "rise")
"""One of each kind: at the pixels, averaged, at a layer, by hiding, by hiding at random."""


class Inplace(nn.Module):
    """In-place activations straight after the recorded layers, a residual, dropout and a norm with statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.SiLU(inplace=True))
        self.block = nn.Conv2d(8, 8, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5, inplace=True)
        self.head = nn.Linear(8, 4)

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.stem(pixels)
        maps = self.act(self.block(maps) + maps)
        return self.head(self.drop(maps.mean(dim=(2, 3))))


@dataclass
class Condition:
    """One state that a model may be found in, and how far its maps may then differ."""

    change: Callable[[nn.Module], nn.Module] = lambda model: model
    within: Callable[[], AbstractContextManager[object]] = nullcontext
    similarity: float = 0.9999


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """A group of one process."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


CONDITIONS = {
    "training mode": Condition(lambda model: model.train()),
    "frozen": Condition(lambda model: model.requires_grad_(False)),
    "bfloat16": Condition(lambda model: model.to(torch.bfloat16), similarity=0.9),
    "double": Condition(lambda model: model.double()),
    "autocast": Condition(within=lambda: torch.autocast("cpu", dtype=torch.bfloat16), similarity=0.9),
    "no_grad": Condition(within=torch.no_grad),
    "inference_mode": Condition(within=torch.inference_mode),
    "compiled": Condition(lambda model: torch.compile(model, backend="eager")),
    "compiled inside": Condition(lambda model: _with(model, "block", torch.compile(model.block, backend="eager"))),
    "channels last": Condition(lambda model: model.to(memory_format=torch.channels_last)),
    "data parallel": Condition(nn.DataParallel),
    "distributed": Condition(lambda model: nn.parallel.DistributedDataParallel(model)),
}


def _with(model: nn.Module, name: str, part: nn.Module) -> nn.Module:
    setattr(model, name, part)
    return model


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    net = Inplace()
    with torch.no_grad():
        for _ in range(3):
            net.train()(torch.randn(8, 3, 32, 32))
    return net.eval()


@pytest.fixture(scope="module")
def picture() -> Tensor:
    return torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def expected(network: nn.Module, picture: Tensor) -> dict[str, Tensor]:
    """The maps of the same network without any in-place operation, found one sweep at a time."""
    plain = copy.deepcopy(network)
    for module in plain.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    adapted = adapt(plain, SMALL, layer="block")
    return {name: explain(adapted, picture, of=1, method=name, verdict=False).map for name in METHODS}


@pytest.mark.parametrize("name", CONDITIONS)
def test_maps_are_right_and_the_model_stays_as_it_was(
    name: str, network: nn.Module, picture: Tensor, expected: dict[str, Tensor], tmp_path: Path
) -> None:
    condition = CONDITIONS[name]
    with _alone(tmp_path) if name == "distributed" else nullcontext():
        model = condition.change(copy.deepcopy(network))
        before = _state(model)
        random = torch.get_rng_state()
        with condition.within():
            adapted = adapt(model, SMALL, layer="block")
            for method in METHODS:
                found = explain(adapted, picture, of=1, method=method, verdict=False).map
                assert found.isfinite().all(), method
                assert found.dtype == torch.float32, method
                similarity = rank_similarity(found.abs(), expected[method].abs())
                assert similarity > condition.similarity, (method, similarity)
                if condition.similarity > 0.99:
                    torch.testing.assert_close(found, expected[method], rtol=1e-3, atol=1e-6)
        assert torch.equal(torch.get_rng_state(), random)
        after = _state(model)
        assert after.keys() == before.keys()
        for key, value in before.items():
            assert torch.equal(after[key], value) if isinstance(value, Tensor) else after[key] == value, key


@pytest.fixture(scope="module")
def verdict(network: nn.Module, picture: Tensor) -> Verdict:
    """The verdict on the network as it is."""
    heat = explain(adapt(copy.deepcopy(network), SMALL, layer="block"), picture, of=1, method="hirescam")
    assert heat.verdict is not None
    return heat.verdict


@pytest.mark.parametrize("name", CONDITIONS)
def test_verdicts_are_the_same_in_every_condition(
    name: str, network: nn.Module, picture: Tensor, verdict: Verdict, tmp_path: Path
) -> None:
    condition = CONDITIONS[name]
    with _alone(tmp_path) if name == "distributed" else nullcontext():
        model = condition.change(copy.deepcopy(network))
        before = _state(model)
        random = torch.get_rng_state()
        with condition.within():
            heat = explain(adapt(model, SMALL, layer="block"), picture, of=1, method="hirescam")
        assert torch.equal(torch.get_rng_state(), random)
        after = _state(model)
    assert all(torch.equal(after[k], v) if isinstance(v, Tensor) else after[k] == v for k, v in before.items())
    assert heat.verdict is not None
    assert heat.verdict.status == verdict.status
    assert heat.verdict.cost_forwards == verdict.cost_forwards
    is_exact = condition.similarity > 0.99
    for figure in ("advantage", "advantage_centre", "advantage_chance", "response_ratio", "similarity"):
        tolerance = 1e-3 if is_exact else 0.15
        assert heat.verdict.figures[figure] == pytest.approx(verdict.figures[figure], rel=tolerance, abs=tolerance)


def _state(model: nn.Module) -> dict[str, object]:
    """Everything that explaining must not change."""
    state: dict[str, object] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        state[f"{name} needs"] = parameter.requires_grad
        state[f"{name} gradient"] = parameter.grad is None
    for name, module in model.named_modules():
        state[f"{name} mode"] = module.training
        state[f"{name} hooks"] = (len(module._forward_hooks), len(module._forward_pre_hooks), id(module))
    return state


@pytest.mark.parametrize("method", [*METHODS, "cam", "gradcam++", "xgradcam", "eigencam", "scorecam"])
def test_maps_are_put_together_in_float32_whatever_the_model_computes_in(
    method: str, network: nn.Module, picture: Tensor, tmp_path: Path
) -> None:
    """What is common to all scores is large beside what tells masks apart: sums of eight bits would lose it."""
    adapted = adapt(copy.deepcopy(network), SMALL, layer="block" if method != "cam" else "act")

    def raised(outputs: Tensor) -> Tensor:
        return outputs[:, 1].float() + 20

    def found() -> Heatmap:
        return explain(adapted, picture, of=raised, method=method, verdict=False)

    expected = found().map
    with torch.autocast("cpu", dtype=torch.bfloat16):
        heat = found()
    assert heat.map.dtype == torch.float32
    assert heat.save_array(tmp_path / "map.npy").is_file()
    assert torch.corrcoef(torch.stack([heat.map.flatten(), expected.flatten()]))[0, 1] > 0.97


class Mixing(Inplace):
    """Its norms have no running statistics, so that the pictures of a batch are normalised with each other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem[1] = nn.BatchNorm2d(8, track_running_stats=False)


ONE_BY_ONE: dict[str, Explainer] = {
    "integrated_gradients": IntegratedGradients(chunk=1),
    "smoothgrad": SmoothGrad(chunk=1),
    "occlusion": Occlusion(batch=1),
    "rise": RISE(num_masks=200, batch=1),
    "scorecam": ScoreCAM(chunk=1),
}


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_copies_of_a_picture_are_not_normalised_with_each_other(name: str, picture: Tensor) -> None:
    torch.manual_seed(0)
    adapted = adapt(Mixing(), SMALL, layer="block")
    alone = ONE_BY_ONE[name]
    together = replace(alone, **{"chunk" if hasattr(alone, "chunk") else "batch": 16})  # type: ignore[type-var]
    expected, found = (explain(adapted, picture, of=1, method=each) for each in (alone, together))
    torch.testing.assert_close(found.map, expected.map)
    assert found.verdict is not None
    assert expected.verdict is not None
    # The games of the verdict hide parts of the picture one at a time too.
    apart = Judge(adapted, adapted.explain_spec(), VerdictConfig(batch=1))
    images = adapted.preprocess([picture])
    attribution = together(adapted, images, [class_score(1)], adapted.explain_spec())
    alone_figures = apart(images, [class_score(1)], together, attribution)[0][0].figures
    assert found.verdict.figures == pytest.approx(alone_figures, abs=1e-3)
    pictures = [picture, picture.flip(1)]
    several = explain_batch(adapted, pictures, [1], ExplainOptions(method=together, verdict=False))
    torch.testing.assert_close(several[0][0].map, found.map)


@pytest.mark.parametrize("explainer", [RISE(num_masks=8), Occlusion(), IntegratedGradients()])
def test_several_pictures_of_a_model_that_mixes_them_are_refused(explainer: Explainer) -> None:
    adapted = adapt(Mixing(), SMALL, layer="block")
    images = ImageBatch.of(torch.randn(2, 3, 32, 32))
    with pytest.raises(ExplainError, match=r"stem.1.*one picture at a time"):
        explainer(adapted, images, [class_score(0)], adapted.explain_spec())
