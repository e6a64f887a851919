"""The recording context: gradients that are right, and a model that is left as it was found."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import ExplainError
from saccade.explanation.adapt import adapt
from saccade.explanation.cam import GradCAM, HiResCAM
from saccade.explanation.gradients import Gradient, IntegratedGradients, SmoothGrad
from saccade.explanation.inner import InnerAttention
from saccade.explanation.record import counting, find_module, recording, undisturbed, unwrap
from saccade.explanation.scores import class_score
from saccade.ops.image import Preprocess
from saccade.types import ExplainSpec, GridLayer, ImageBatch

SCORES = [class_score(0), class_score(1)]


def _as_is(activation: Tensor, canvas: tuple[int, int]) -> Tensor:
    return activation


LAYERS = {"first": GridLayer("first", _as_is), "final": GridLayer("norm", _as_is)}
SPEC = ExplainSpec(LAYERS)


class Net(nn.Module):
    """A normalised, dropped-out, randomly perturbed network: everything that could be disturbed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(5, 2)
        self.fails = False

    def forward(self, images: ImageBatch) -> Tensor:
        torch.rand(3)  # some models draw random numbers even in evaluation mode
        features = F.relu_(self.norm(self.first(images.pixels)))
        if self.fails:
            raise ValueError("broken model")
        return self.head(self.drop(features).mean(dim=(2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    net = Net()
    net.train()
    net.norm.eval()  # a mixture of modes, as in fine-tuning with frozen statistics
    net.first.requires_grad_(False)
    net.head.weight.grad = torch.ones_like(net.head.weight)
    net.head.register_forward_hook(lambda *_: None)
    return net


def pictures(batch: int = 2) -> ImageBatch:
    return ImageBatch.of(torch.randn(batch, 3, 8, 12, generator=torch.Generator().manual_seed(7)))


def state_of(net: nn.Module) -> dict[str, object]:
    """Everything that explaining must not change."""
    return {
        "modes": [module.training for module in net.modules()],
        "identities": [id(module) for module in net.modules()],
        "needs_grad": [parameter.requires_grad for parameter in net.parameters()],
        "gradients": [None if p.grad is None else (id(p.grad), p.grad.sum().item()) for p in net.parameters()],
        "hooks": [
            [
                id(hook)
                for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)
                for hook in hooks.values()
            ]
            for m in net.modules()
        ],
        "weights": [(value.data_ptr(), value.double().sum().item()) for value in net.state_dict().values()],
        "random": torch.get_rng_state().tolist(),
        "grad_mode": torch.is_grad_enabled(),
        "attributes": [sorted(vars(module)) for module in net.modules()],
    }


@pytest.mark.parametrize("method", [GradCAM(), HiResCAM("first"), Gradient(), SmoothGrad(samples=2)])
def test_the_model_is_left_as_it_was(net, method):
    before = state_of(net)
    method(net, pictures(), SCORES, SPEC)
    assert state_of(net) == before


@pytest.mark.parametrize("method", [GradCAM(), Gradient(), IntegratedGradients(steps=2)])
def test_the_model_is_left_as_it_was_after_a_failure(net, method):
    net.fails = True
    before = state_of(net)
    with pytest.raises(ValueError, match="broken model"):
        method(net, pictures(), SCORES, SPEC)
    assert state_of(net) == before


def test_the_model_is_left_as_it_was_after_a_failing_score(net):
    before = state_of(net)
    with pytest.raises(ZeroDivisionError):
        GradCAM()(net, pictures(), [lambda outputs: outputs[:, 0] / (1 // 0)], SPEC)
    assert state_of(net) == before


def test_the_trunk_leaves_no_graph_and_pixels_stay_untouched(net):
    images = pictures()
    pixels = images.pixels.clone()
    with recording(net, {"final": LAYERS["final"]}) as record:
        outputs = record.run(images)
        kept = record.all_seen()["final"]
        assert kept.is_leaf
        assert kept.requires_grad
    assert outputs.requires_grad
    assert torch.equal(images.pixels, pixels)
    assert not images.pixels.requires_grad


def test_evaluation_mode_holds_inside_and_outputs_are_those_of_evaluation(net):
    images = pictures()
    expected = copy.deepcopy(net).eval()(images)
    with recording(net, LAYERS) as record:
        assert not any(module.training for module in net.modules())
        torch.testing.assert_close(record.run(images), expected)


def test_gradients_are_those_of_autograd_at_every_layer(net):
    images = pictures()
    plain = copy.deepcopy(net).eval().requires_grad_(False)
    features = plain.first(images.pixels).requires_grad_()
    normed = plain.norm(features)
    logits = plain.head(F.relu(normed).mean(dim=(2, 3)))
    for layer, activation in (("first", features), ("final", normed)):
        expected = torch.stack(
            [torch.autograd.grad(logits[:, k].sum(), activation, retain_graph=True)[0] for k in (0, 1)]
        )
        with recording(net, LAYERS) as record:
            record.run(images)
            found = torch.cat(list(record.grid_gradients(layer, SCORES)))
        torch.testing.assert_close(found, expected)


def test_twenty_scores_at_once_equal_one_by_one():
    torch.manual_seed(0)
    net = Net()
    net.head = nn.Linear(5, 20)
    scores = [class_score(label) for label in range(20)]
    together = HiResCAM()(net, pictures(), scores, SPEC).values
    alone = torch.cat([HiResCAM()(net, pictures(), [score], SPEC).values for score in scores])
    torch.testing.assert_close(together, alone)


def test_chunks_of_scores_change_nothing(net, monkeypatch):
    whole = GradCAM("first")(net, pictures(), SCORES * 3, SPEC).values
    monkeypatch.setattr("saccade.explanation.record.ELEMENTS_AT_ONCE", 2 * 5 * 8 * 12 * 4)
    torch.testing.assert_close(GradCAM("first")(net, pictures(), SCORES * 3, SPEC).values, whole)


def test_a_batch_equals_each_picture_alone(net):
    images = pictures(3)
    for method in (GradCAM(), HiResCAM("first"), SmoothGrad(samples=3), IntegratedGradients(steps=3)):
        together = method(net, images, SCORES, SPEC).values
        for index in range(3):
            torch.testing.assert_close(together[:, index : index + 1], method(net, images[index], SCORES, SPEC).values)


class _Square(torch.autograd.Function):
    """An autograd function without a batched backward."""

    @staticmethod
    def forward(ctx, value):
        ctx.save_for_backward(value)
        return value**2

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0].detach().clone()


def test_functions_without_batched_backward_are_swept_one_by_one(net):
    class Squared(Net):
        def forward(self, images):
            return self.head(_Square.apply(self.norm(self.first(images.pixels))).mean(dim=(2, 3)))

    squared = Squared().eval()
    together = HiResCAM()(squared, pictures(), SCORES, SPEC).values
    alone = torch.cat([HiResCAM()(squared, pictures(), [score], SPEC).values for score in SCORES])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_callers_without_gradients_get_the_same_maps(net, context):
    expected = GradCAM()(net, pictures(), SCORES, SPEC).values
    with context():
        images = ImageBatch.of(pictures().pixels * 1.0)  # inference tensors, in inference mode
        found = GradCAM()(net, images, SCORES, SPEC).values
        assert not torch.is_grad_enabled()
        torch.testing.assert_close(Gradient()(net, images, SCORES, SPEC).values.shape, torch.Size([2, 2, 8, 12]))
    torch.testing.assert_close(found.clone(), expected)


def test_frozen_models_are_explained(net):
    expected = GradCAM()(net, pictures(), SCORES, SPEC).values
    assert expected.any()
    net.requires_grad_(False)
    torch.testing.assert_close(GradCAM()(net, pictures(), SCORES, SPEC).values, expected)
    assert Gradient()(net, pictures(), SCORES, SPEC).values.any()


def test_half_precision_weights_give_the_same_picture(net):
    images = pictures()
    expected = HiResCAM()(net, images, SCORES, SPEC).values
    found = HiResCAM()(copy.deepcopy(net).bfloat16(), images.to(dtype=torch.bfloat16), SCORES, SPEC).values
    assert found.dtype == torch.float32
    assert F.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.99


def test_autocast_is_honoured_and_its_cache_left_alone(net):
    images = pictures()
    expected = HiResCAM()(net, images, SCORES, SPEC).values
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = HiResCAM()(net, images, SCORES, SPEC).values
        loss = net(images).float().sum()
    # Weights cast without a graph and then cached would leave the caller's own training without gradients.
    loss.backward()
    assert net.norm.weight.grad is not None
    assert net.head.weight.grad.ne(1).any()
    assert F.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.99


def test_compiled_modules_are_heard(net):
    expected = HiResCAM("first")(net, pictures(), SCORES, SPEC).values
    whole = torch.compile(copy.deepcopy(net), backend="eager")
    whole(pictures())
    torch.testing.assert_close(HiResCAM("first")(whole, pictures(), SCORES, SPEC).values, expected)
    part = copy.deepcopy(net)
    part.first = torch.compile(part.first, backend="eager")
    part.norm.compile(backend="eager")
    part.eval()(pictures())
    torch.testing.assert_close(HiResCAM("first")(part, pictures(), SCORES, SPEC).values, expected)
    torch.testing.assert_close(HiResCAM("final")(part, pictures(), SCORES, SPEC).values.shape, expected.shape)
    assert isinstance(find_module(part, "first"), nn.Conv2d)


def test_wrappers_are_seen_through(net):
    assert unwrap(torch.compile(net, backend="eager")) is net
    assert unwrap(nn.DataParallel(net)) is net


def test_batch_statistics_are_refused_because_pictures_would_mix(net):
    net.norm = nn.BatchNorm2d(5, track_running_stats=False)
    with pytest.raises(ExplainError, match=r"norm.*one picture at a time"):
        GradCAM()(net, pictures(2), SCORES, SPEC)
    assert GradCAM()(net, pictures(1), SCORES, SPEC).values.shape == (2, 1, 8, 12)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_a_forward_that_switches_gradients_off_is_named(net, guard):
    class Guarded(Net):
        @guard()
        def forward(self, images):
            return super().forward(images)

    guarded = Guarded()
    guarded.load_state_dict(net.state_dict())
    with pytest.raises(ExplainError, match=r"remove torch\.no_grad"):
        Gradient()(guarded, pictures(), SCORES, SPEC)
    if guard is torch.no_grad:  # the graph starts behind the switch, so a layer can be explained all the same
        expected = GradCAM()(net, pictures(), SCORES, SPEC).values
        torch.testing.assert_close(GradCAM()(guarded, pictures(), SCORES, SPEC).values, expected)
    else:
        with pytest.raises(ExplainError, match=r"remove torch\.no_grad"):
            GradCAM()(guarded, pictures(), SCORES, SPEC)


def test_a_score_that_ignores_the_picture_gives_an_empty_map(net):
    assert not GradCAM()(net, pictures(), [lambda outputs: outputs[:, 0] * 0], SPEC).values.any()


def test_layers_that_do_not_exist_or_are_not_reached_are_named(net):
    with pytest.raises(ExplainError, match=r"no submodule 'frist'.*first, norm"):
        HiResCAM()(net, pictures(), SCORES, ExplainSpec({"final": GridLayer("frist", _as_is)}))
    net.unused = nn.Identity()
    with pytest.raises(ExplainError, match="never reached"):
        HiResCAM()(net, pictures(), SCORES, ExplainSpec({"final": GridLayer("unused", _as_is)}))


def test_patches_that_no_score_reads_are_named():
    class ReadsToken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Linear(3, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, images):
            return self.head(self.tokens(images.pixels.flatten(2).mT)[:, 0])

    layer = GridLayer("tokens", lambda tokens, canvas: tokens[:, 1:].mT.unflatten(2, (5, 19)))
    with pytest.raises(ExplainError, match=r"prefix tokens.*choose layer"):
        HiResCAM()(ReadsToken(), pictures(), SCORES, ExplainSpec({"final": layer}))


class Wrapper(nn.Module):
    """Gives its output inside a tuple, as blocks of some libraries do."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, value):
        return self.kind([value, 1])


@pytest.mark.parametrize("kind", [tuple, list])
def test_layers_that_give_tuples_are_recorded(net, kind):
    class Tupled(Net):
        def __init__(self) -> None:
            super().__init__()
            self.wrap = Wrapper(kind)

        def forward(self, images):
            return self.head(self.wrap(self.first(images.pixels))[0].mean(dim=(2, 3)))

    tupled = Tupled()
    found = HiResCAM()(tupled, pictures(), SCORES, ExplainSpec({"final": GridLayer("wrap", _as_is)})).values
    torch.testing.assert_close(found, HiResCAM("first")(tupled, pictures(), SCORES, SPEC).values)


def test_what_enters_a_layer_can_be_recorded(net):
    before = ExplainSpec({"final": GridLayer("norm", _as_is, is_input=True)})
    found = HiResCAM()(net, pictures(), SCORES, before).values
    torch.testing.assert_close(found, HiResCAM("first")(net, pictures(), SCORES, SPEC).values)


class Fused(nn.Module):
    """Self-attention in every way torch offers."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.packed = nn.MultiheadAttention(12, 3, batch_first=True)
        self.head = nn.Linear(12, 2)

    def attend(self, tokens: Tensor) -> Tensor:
        if self.way == "packed":
            return self.packed(tokens, tokens, tokens, need_weights=False)[0]
        if self.way == "weights":
            return self.packed(tokens, tokens, tokens)[0]
        qkv = F.linear(tokens, self.packed.in_proj_weight, self.packed.in_proj_bias)
        query, key, value = (part.unflatten(-1, (3, 4)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        if self.way == "fused":
            attended = F.scaled_dot_product_attention(query, key, value)
        elif self.way == "masked":
            attended = F.scaled_dot_product_attention(query, key, value, torch.zeros(96, 96), scale=0.5)
        else:
            attended = (query @ key.mT * 0.5).softmax(dim=-1) @ value
        return self.packed.out_proj(attended.transpose(1, 2).flatten(2))

    def forward(self, images: ImageBatch) -> Tensor:
        return self.head(self.attend(images.pixels.flatten(2).mT.repeat(1, 1, 4)).mean(dim=1))


@pytest.mark.parametrize("way", ["packed", "weights", "fused", "masked", "by hand"])
def test_attention_inside_modules_is_seen_and_the_outputs_stay_the_same(way):
    torch.manual_seed(0)
    net, images = Fused(way), pictures()
    expected = net.eval()(images)
    site = InnerAttention("", 0, lambda canvas: canvas)
    with recording(net, attention=[site]) as record:
        torch.testing.assert_close(record.run(images), expected)
        (attention,) = record.attention()
        ((gradient,),) = record.gradients(SCORES, [attention])
    assert attention.shape == (2, 3, 96, 96)
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(2, 3, 96))
    assert gradient.shape == (2, 2, 3, 96, 96)
    assert gradient.abs().max() > 0


def test_undisturbed_restores_modes_and_random_numbers(net):
    before = state_of(net)
    with undisturbed(net):
        torch.rand(5)
    assert state_of(net) == before
    context = undisturbed(net)
    context.__enter__()
    assert not context.__exit__(KeyError, KeyError(), None)
    assert state_of(net) == before


def test_attention_with_a_row_of_zeros_added_stays_what_it_is():
    torch.manual_seed(0)
    net, images = Fused("packed"), pictures()
    net.packed.add_zero_attn = True
    expected = net.eval()(images)
    site = InnerAttention("", 0, lambda canvas: canvas)
    with recording(net, attention=[site], is_survey=True) as record:
        torch.testing.assert_close(record.run(images), expected)
        assert not record.all_seen()


class Routed(nn.Module):
    """A convolution, and a module that says which of its channels is largest where: numbers of type int64."""

    class Router(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return maps.argmax(dim=1)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.router = Routed.Router()
        self.head = nn.Linear(4, 2)

    def forward(self, pixels: Tensor | ImageBatch) -> Tensor:
        maps = self.stem(pixels.pixels if isinstance(pixels, ImageBatch) else pixels)
        chosen = F.one_hot(self.router(maps), 4).permute(0, 3, 1, 2)
        return self.head((maps * chosen).mean(dim=(2, 3)))


def test_modules_that_give_whole_numbers_are_passed_over_in_a_survey_and_refused_as_layers():
    torch.manual_seed(0)
    adapted = adapt(Routed(), Preprocess(size=(16, 16)))
    assert adapted.explain_spec().layers["final"].path == "module.stem"
    for with_gradients in (True, False):
        with (
            recording(Routed(), {"router": GridLayer("router", _as_is)}, with_gradients=with_gradients) as record,
            pytest.raises(ExplainError, match=r"'router'.*type int64.*inside it"),
        ):
            record.run(pictures())


def test_passes_are_counted_below_wrappers(net):
    with counting(torch.compile(net, backend="eager")) as counts:
        HiResCAM("first")(net, pictures(), SCORES, SPEC)
    assert counts == [2]
    assert not net._forward_pre_hooks
