"""Files of weights: what goes in comes out, and a damaged or foreign file gives one clear sentence."""

import json
import pickle
import resource
import signal

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from saccade.config import to_dict
from saccade.engine.checkpoint import (
    flatten,
    load_model,
    load_state,
    load_weights,
    read_container,
    read_header,
    save_model,
    save_state,
    unflatten,
)
from saccade.errors import RunError, WeightsError
from saccade.types import Classes, ImageBatch


@pytest.fixture
def saved(tmp_path, model):
    path = tmp_path / "model.safetensors"
    model.classes = Classes(("ant", "bee", "cat", "dog", "eel"))
    save_model(
        model, path, name="vit_average_test", metrics={"top1": 0.5}, data={"val": "f00"}, licences={"data": "MIT"}
    )
    return path


def test_round_trip_is_bit_equal(saved, model):
    loaded = load_model(saved)
    assert loaded.config == model.config
    assert loaded.classes == model.classes
    assert not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    images = ImageBatch.of(torch.randn(2, 3, 32, 32))
    assert torch.equal(loaded(images).logits, model.eval()(images).logits)


def test_header_tells_where_the_weights_come_from(saved):
    header = read_header(saved)
    assert header.name == "vit_average_test"
    assert header.metrics == {"top1": 0.5}
    assert header.data == {"val": "f00"}
    assert header.licences == {"data": "MIT"}


@pytest.mark.parametrize("name", ["resnet_test", "vit_moe_test", "vit_attention_test"])
def test_every_kind_of_model_survives(tmp_path, new_model, name):
    model = new_model(name)
    save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert to_dict(loaded.config) == to_dict(model.config)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


def test_loading_leaves_the_random_state_alone(saved):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_model(saved)
    assert torch.equal(torch.rand(1), expected)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_one_weight_bit(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


def rename_a_class(path):
    content = path.read_bytes()
    assert content.count(rb"\"eel\"") == 1
    path.write_bytes(content.replace(rb"\"eel\"", rb"\"fox\""))


def empty(path):
    path.write_bytes(b"")


def make_a_folder(path):
    path.unlink()
    path.mkdir()


def make_it_a_pickle(path):
    path.write_bytes(pickle.dumps({"weight": 1}))


def make_it_a_torch_file(path):
    torch.save({"weight": torch.ones(1)}, path)


def make_it_a_picture(path):
    Image.new("RGB", (8, 8)).save(path, format="PNG")


def make_it_noise(path):
    path.write_bytes(bytes(range(256)) * 4)


def make_it_foreign(path):
    save_file({"weight": torch.ones(1)}, path, metadata={"format": "pt"})


def make_it_a_state(path):
    save_state(path, {"step": 1})


def cut_the_header(path):
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (truncate, "damaged or truncated"),
        (cut_the_header, "damaged or truncated"),
        (flip_one_weight_bit, "was altered"),
        (rename_a_class, "was altered"),
        (empty, "empty"),
        (make_a_folder, "is a folder"),
        (make_it_a_pickle, "a pickle file"),
        (make_it_a_torch_file, "a PyTorch"),
        (make_it_a_picture, "a PNG picture"),
        (make_it_noise, "not a safetensors file"),
        (make_it_foreign, "not written by saccade"),
        (make_it_a_state, "holds a state; expected a model"),
        (lambda path: path.unlink(), "does not exist"),
    ],
)
def test_a_damaged_file_gives_one_sentence_with_a_remedy(saved, damage, sentence):
    damage(saved)
    with pytest.raises(WeightsError, match=sentence) as caught:
        load_model(saved)
    assert str(saved) in str(caught.value)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


def test_loading_never_unpickles(saved):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the file was unpickled",))

    saved.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightsError):
        load_model(saved)


def test_an_unknown_architecture_is_named(tmp_path, model):
    path = tmp_path / "model.safetensors"
    kind = type("ClassifyerConfig", (type(model.config),), {})
    model.config = kind(**model.config.__dict__)
    save_model(model, path)
    kind.__name__ = "ForgottenConfig"
    with pytest.raises(WeightsError, match=r"architecture 'ClassifyerConfig'.*'ClassifierConfig'"):
        load_model(path)


def test_weights_of_another_architecture_are_refused(new_model):
    small, other = new_model("vit_average_test"), new_model("vit_token_test")
    with pytest.raises(WeightsError, match=r"in the weights|has not|lack"):
        load_weights(small, other.state_dict(), where="somewhere")


def test_writing_under_a_file_is_a_run_error(tmp_path, model):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        save_model(model, tmp_path / "file" / "model.safetensors")


def test_a_full_disk_leaves_the_old_file(saved, model):
    old = saved.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(RunError, match="cannot be written"):
            save_model(model, saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert saved.read_bytes() == old
    assert list(saved.parent.iterdir()) == [saved]


def test_new_files_have_the_usual_permissions(saved, tmp_path):
    (tmp_path / "usual").touch()
    assert saved.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_tied_weights_are_written_twice(tmp_path, model):
    save_state(tmp_path / "s.ckpt", {"first": model.head.weight, "second": model.head.weight})
    state = load_state(tmp_path / "s.ckpt")
    assert torch.equal(state["first"], state["second"])


def test_trees_come_back_as_they_were(tmp_path):
    tree = {
        "state": {0: {"step": torch.tensor(3.0)}, 1: {}},
        "betas": (0.9, 0.999),
        "list": [1, None, [True, "text"]],
        "nan": float("inf"),
        "bfloat": torch.randn(2, 3).bfloat16(),
        "scalar": torch.tensor(7),
        "nothing": torch.zeros(0, 4),
    }
    tensors, json_tree = flatten(tree)
    json.dumps(json_tree)
    save_state(tmp_path / "s.ckpt", tree)
    for back in (unflatten(tensors, json_tree), load_state(tmp_path / "s.ckpt")):
        assert back.keys() == tree.keys()
        assert back["betas"] == tree["betas"]
        assert back["list"] == tree["list"]
        assert back["state"][0]["step"] == 3.0
        assert back["bfloat"].dtype == torch.bfloat16
        assert torch.equal(back["bfloat"], tree["bfloat"])
        assert back["scalar"] == 7
        assert back["nothing"].shape == (0, 4)


def test_the_container_is_plain_safetensors(saved, model):
    assert load_file(saved).keys() == model.state_dict().keys()
    _, header = read_container(saved, "model")
    assert header["classes"] == ["ant", "bee", "cat", "dog", "eel"]
    assert header["config"]["preprocess"] == to_dict(model.preprocess)
