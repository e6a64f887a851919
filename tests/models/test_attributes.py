"""Direct attribute prediction: the logits are the paper's product, and unseen classes follow from their description."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import saccade
from saccade.backbones.base import Routing
from saccade.errors import ConfigError
from saccade.models.attributes import AttributeClassifier, AttributesConfig
from saccade.models.build import build, find_config
from saccade.types import ClassTarget
from saccade.types.attributes import AttributeTable

TABLE = AttributeTable(
    classes=("horse", "tiger", "zebra"),
    attributes=("hooves", "stripes"),
    values=((1, 0), (0, 1), (1, 1)),
    seen=("horse", "tiger"),
)


def classifier(table: AttributeTable = TABLE, **options: object) -> AttributeClassifier:
    base = find_config("attributes_test")
    assert isinstance(base, AttributesConfig)
    torch.manual_seed(0)
    model = build(replace(base, table=AttributeTable(), **options).described(table))  # type: ignore[arg-type]
    assert isinstance(model, AttributeClassifier)
    return model


def outputs_for(model: AttributeClassifier, attributes: torch.Tensor) -> torch.Tensor:
    """The class logits where the attributes have these logits, whatever the picture."""
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(attributes)
        pooled = torch.zeros(1, model.head.in_features)
        return model.classify(pooled, Routing.none(pooled)).logits[0]


@pytest.mark.parametrize("prior", ["half", "seen"])
def test_the_posterior_is_the_product_of_the_paper(prior: str) -> None:
    table = replace(TABLE, values=((1, 0), (1, 1), (0, 1)), seen=("horse", "tiger"))
    model = classifier(table, prior=prior, loss="attributes")
    logits = torch.tensor([0.7, -1.3])
    posterior = outputs_for(model, logits).softmax(0)
    shares = torch.tensor([0.99, 0.5]) if prior == "seen" else torch.tensor([0.5, 0.5])
    products = []
    for row in table.values:
        wanted = torch.tensor(row)
        likely = torch.where(wanted > 0, logits.sigmoid(), 1 - logits.sigmoid())
        products.append((likely / torch.where(wanted > 0, shares, 1 - shares)).prod())
    expected = torch.stack(products)
    assert torch.allclose(posterior, expected / expected.sum(), atol=1e-5)


def test_an_unseen_class_is_recognised_by_its_description() -> None:
    logits = outputs_for(classifier(), torch.tensor([4.0, 4.0]))
    assert TABLE.classes[int(logits.argmax())] == "zebra"


def test_the_loss_is_that_of_the_attributes_of_the_class() -> None:
    model = classifier(loss="attributes")
    logits = torch.tensor([[0.3, -0.8], [1.5, 0.2]])
    pooled = torch.zeros(2, model.head.in_features)
    outputs = model.classify(pooled, Routing.none(pooled))._replace(attributes=logits)
    loss = model.loss(outputs, [ClassTarget(torch.tensor(0)), ClassTarget(torch.tensor(2))]).total
    right = torch.stack([logits[0, 0].sigmoid(), 1 - logits[0, 1].sigmoid(), *logits[1].sigmoid()])
    assert float(loss) == pytest.approx(float(-right.log().mean()), rel=1e-5)


def test_blended_classes_have_blended_attributes() -> None:
    model = classifier(loss="attributes")
    pooled = torch.randn(1, model.head.in_features, generator=torch.Generator().manual_seed(0))
    outputs = model.classify(pooled, Routing.none(pooled))
    labels = [torch.tensor([0.5, 0.5, 0.0]), torch.tensor(0), torch.tensor(1)]
    half, *ends = (model.loss(outputs, [ClassTarget(label)]).total.item() for label in labels)
    assert half == pytest.approx(sum(ends) / 2, rel=1e-5)


def test_the_linear_head_gives_the_logits_of_the_classes() -> None:
    model = classifier()
    pooled = torch.randn(4, model.head.in_features, generator=torch.Generator().manual_seed(1))
    head = model.explain_spec().linear_head
    assert head is not None
    weight, bias = head()
    assert bias is not None
    expected = model.classify(pooled, Routing.none(pooled)).logits
    assert torch.allclose(pooled @ weight.T + bias, expected, atol=1e-5)


def test_without_a_table_each_class_is_its_own_attribute() -> None:
    model = saccade.create("attributes_small", num_classes=4)
    assert isinstance(model, AttributeClassifier)
    assert torch.equal(model.table, torch.eye(4))


def test_data_without_descriptions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"describes none.*attributes\.csv"):
        find_config("attributes_small").described(None)
    assert find_config("vit_average_test").described(None) is find_config("vit_average_test")


def test_a_table_for_other_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match="describes 3 classes"):
        AttributesConfig(num_classes=4, table=TABLE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": ((1, 0), (0, 1), (1, 0))}, "'horse' and 'zebra' have the same attributes"),
        ({"values": ((1, 0), (0, 2), (1, 1))}, "'tiger' is no share"),
        ({"values": ((1, 0), (0, 1))}, "do not fit"),
        ({"classes": ("horse", "tiger", "horse")}, "'horse' is there twice"),
        ({"seen": ("okapi",)}, "'okapi' is not in the table"),
    ],
)
def test_tables_that_say_nothing_sensible_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TABLE, **change)  # type: ignore[arg-type]


def test_among_classes_only_the_seen_ones_compete() -> None:
    model = classifier(loss="classes")
    outputs = outputs_for(model, torch.tensor([1.2, -0.4]))
    whole = model.classify(torch.zeros(1, model.head.in_features), Routing.none(outputs))
    loss = model.loss(whole, [ClassTarget(torch.tensor(0))]).total.item()
    # Horse has hooves, tiger stripes; the zebra, with 0.8 the next likely, is no candidate.
    assert loss == pytest.approx(-float(torch.tensor([1.2, -0.4]).log_softmax(0)[0]), rel=1e-5)
    soft = model.loss(whole, [ClassTarget(torch.tensor([1.0, 0.0, 0.0]))]).total.item()
    assert soft == pytest.approx(loss, rel=1e-5)


def test_a_picture_of_an_unseen_class_gives_a_finite_loss() -> None:
    model = classifier(loss="classes")
    outputs = outputs_for(model, torch.tensor([1.2, -0.4]))
    whole = model.classify(torch.zeros(1, model.head.in_features), Routing.none(outputs))
    loss = model.loss(whole, [ClassTarget(torch.tensor(2))]).total.item()
    assert loss == pytest.approx(-float(torch.tensor([1.2, -0.4, 0.8]).log_softmax(0)[2]), rel=1e-5)
