import math

import pytest
import torch

from styleapp.errors import OptionError
from styleapp.evaluate import evaluate
from styleapp.files import read_image
from styleapp.models import Stylizer, code_from_moments
from styleapp.models.losses import content_loss, style_loss
from styleapp.norms import adain, moments
from styleapp.options import Options


def test_losses_are_those_of_the_paper(stylizer):
    """Against the equations written out in float64."""
    image, painting = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    found, wanted = stylizer.encoder.features(image), stylizer.encoder.features(painting)
    expected = torch.zeros(2, dtype=torch.float64)
    for f, w in zip(found, wanted, strict=True):
        f, w = f.double(), w.double()  # noqa: PLW2901
        expected += (f.mean((2, 3)) - w.mean((2, 3))).square().mean(1)
        deviation = [(t.var((2, 3), correction=0) + 1e-5).sqrt() for t in (f, w)]
        expected += (deviation[0] - deviation[1]).square().mean(1)
    codes = [[code_from_moments(moments(t)) for t in features] for features in (found, wanted)]
    assert torch.allclose(style_loss(*codes).double(), expected, rtol=1e-5)
    target = adain(found[-1], wanted[-1])
    assert torch.allclose(content_loss(found[-1], target), (found[-1] - target).square().mean((1, 2, 3)))
    assert style_loss(codes[0], codes[0]).abs().max() == 0


def test_every_pair_counts(transfer, folders):
    seen = []
    unchanged, network = evaluate(transfer, *folders, size=32, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (12, 12) and len(seen) == 12

    encoder = transfer.networks.adain.encoder
    wanted, by_painting = 0.0, dict.fromkeys((p.name for p in folders[1].iterdir()), 0.0)
    for photo in sorted(folders[0].iterdir()):
        for painting in sorted(folders[1].iterdir()):
            codes = [
                [code_from_moments(moments(f)) for f in encoder.features(transfer.fit(p, options()).rgb)]
                for p in (photo, painting)
            ]
            wanted += float(style_loss(*codes)) / 12
            by_painting[painting.name] += float(style_loss(*codes)) / 4
    assert math.isclose(unchanged.style_loss, wanted, rel_tol=1e-4)
    assert {name: losses[1] for name, losses in unchanged.by_painting.items()} == pytest.approx(by_painting, rel=1e-4)
    assert unchanged.medians[1] == pytest.approx(sorted(by_painting.values())[1], rel=1e-4)
    assert unchanged.identity_psnr is None and network.identity_psnr is not None

    psnr = 0.0
    for photo in sorted(folders[0].iterdir()):
        image = transfer.fit(photo, options()).rgb
        features, skips = transfer.networks.adain.encode(image)
        decoded = transfer.networks.adain.decode(features, image, skips).clamp(0, 1)
        psnr -= 10 * float(((decoded * 255).round() / 255 - image).square().mean().log10()) / 4
    assert network.identity_psnr == pytest.approx(psnr, abs=0.01)


def options():
    return Options(size=32)


def test_images_of_the_tests_are_readable(folders):
    assert all(read_image(p).size[1] == 64 for f in folders for p in f.iterdir())


def test_some_pairs_of_another_decoder(transfer, folders, monkeypatch):
    plain = transfer.networks.ablation("none").decoder  # told nothing, and sees relu4_1 alone
    monkeypatch.setattr(transfer.networks, "adain", Stylizer(transfer.networks.adain.encoder, plain))
    rows = [
        evaluate(transfer, *folders, size=32, every=2, norm=norm) for norm in ("adain", "decoder:none", "decoder:bn")
    ]
    assert rows[0] != rows[2] and rows[0][0] == rows[2][0]
    assert rows[1][1].style_loss == rows[0][1].style_loss and rows[2][1].name == "decoder:bn, fp32"
    with pytest.raises(OptionError, match="adain, cin and decoder:NORM"):
        evaluate(transfer, *folders, size=32, norm="wct")
    for norm, detail, said in (("adain", 0.5, "adain has no detail to set"), ("cin", 1.5, "detail must be from 0")):
        with pytest.raises(OptionError, match=said):
            evaluate(transfer, *folders, size=32, norm=norm, detail=detail)


@pytest.mark.parametrize("detail", [1.0, 0.3])
def test_paintings_through_the_conditional_network(transfer, folders, detail):
    """With their measured, or predicted, codes: what ``--norm cin`` makes of them."""
    _, row = evaluate(transfer, *folders, size=32, norm="cin", detail=detail)
    wanted, how = 0.0, Options(norm="cin", style_size=32, detail=detail)
    for photo in sorted(folders[0].iterdir()):
        for painting in sorted(folders[1].iterdir()):
            made = transfer.picture(transfer.fit(photo, options()), painting, how).rgb
            of_painting = transfer.fit(painting, options()).rgb
            codes = [
                [code_from_moments(moments(f)) for f in transfer.networks.adain.encoder.features(x)]
                for x in (made, of_painting)
            ]
            wanted += float(style_loss(*codes)) / 12
    assert row.name == "CIN, fp32" and row.style_loss == pytest.approx(wanted, rel=1e-3)
