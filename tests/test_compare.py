import json
import re

import pytest
import torch
from conftest import noise
from PIL import Image
from safetensors.torch import load_file

from styleapp.compare import compare, group_sweep
from styleapp.errors import OptionError
from styleapp.images import from_pil
from styleapp.models import Decoder, Stylizer
from styleapp.options import Options

PHOTO = from_pil(noise(48, 64))
SMALL = Options(style_size=64)


def test_cells_are_what_the_pipeline_makes(transfer):
    found = compare(transfer, PHOTO, ["great-wave", "the-visit"], ["adain", "cin", "in", "adaln", "wct"], SMALL)
    assert [[cell.method for cell in row] for row in found.cells] == [["adain", "cin", "in", "adaln", "wct"]] * 2
    for row in found.cells:
        for cell in row:
            if cell.picture is not None:
                options = Options(norm=cell.method, style_size=64)
                wanted = transfer.picture(PHOTO, cell.style, options).rgb
                assert torch.equal(from_pil(cell.picture).rgb, wanted)
                assert cell.seconds > 0 and cell.style_loss > 0 and cell.content_loss > 0
    wave, visit = found.cells
    assert wave[2].picture is not None and "no IN network for the style 'the-visit'" in visit[2].reason
    assert "needs a painting" in wave[4].reason
    assert found.paintings == [None, None] and found.titles[0].startswith("great-wave: T, A")


def test_detail_is_for_those_that_see_it(transfer):
    whole, less = (
        compare(transfer, PHOTO, ["great-wave"], ["adain", "cin", "adaln"], Options(style_size=64, detail=d)).cells[0]
        for d in (1.0, 0.2)
    )
    same = [torch.equal(from_pil(a.picture).rgb, from_pil(b.picture).rgb) for a, b in zip(whole, less, strict=True)]
    assert same == [True, False, True]


def test_losses_of_a_painting_are_those_of_its_pixels(transfer, tmp_path):
    noise(64, 64, seed=5).save(tmp_path / "p.png")
    path = str(tmp_path / "p.png")
    found = compare(transfer, PHOTO, [path], ["adain", "wct"], SMALL).cells[0]
    result = transfer.picture(PHOTO, path, SMALL).rgb
    features = transfer.networks.adain.encoder.features(result)
    painting = transfer.networks.adain.encoder.features(from_pil(noise(64, 64, seed=5)).rgb)
    wanted = sum(
        (a.mean((2, 3)) - b.mean((2, 3))).square().mean()
        + ((a.var((2, 3), correction=0) + 1e-5).sqrt() - (b.var((2, 3), correction=0) + 1e-5).sqrt()).square().mean()
        for a, b in zip(features, painting, strict=True)
    )
    assert found[0].style_loss == pytest.approx(float(wanted), rel=1e-3)
    assert found[1].picture is not None


def test_the_sweep_ends_in_layer_and_in_instance_norm(transfer):
    assert group_sweep(512) == [f"adagn:{2**i}" for i in range(10)]
    found = compare(transfer, PHOTO, ["great-wave"], [*group_sweep(16), "adaln", "adain"], SMALL).cells[0]
    pictures = {cell.method: from_pil(cell.picture).rgb for cell in found}
    assert (pictures["adagn:1"] - pictures["adaln"]).abs().max() <= 1 / 255
    assert (pictures["adagn:16"] - pictures["adain"]).abs().max() <= 1 / 255
    assert not torch.equal(pictures["adagn:1"], pictures["adagn:16"])


def test_an_unknown_method_or_style_is_told(transfer):
    with pytest.raises(OptionError, match="did you mean 'adain'"):
        compare(transfer, PHOTO, ["great-wave"], ["adin"], SMALL)
    with pytest.raises(OptionError, match="did you mean 'great-wave'"):
        compare(transfer, PHOTO, ["grate-wave"], ["adain"], SMALL)


def test_command_writes_grid_and_page(run, photo, tmp_path):
    code, out, _ = run(
        "compare", photo, "-s", "great-wave", "--size", 32, "--style-size", 64,
        "-o", "grid.png", "--html", "page.html", "--json",
    )  # fmt: skip
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(records) == 9
    assert {r["method"] for r in records if r["reason"]} == {"wct", "ot", "efdm", "adagn:32"}
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 10 * 256
    text = (tmp_path / "page.html").read_text()
    assert not re.search(r"(src|href)=.?https?:|@import|url\(http", text)
    assert text.count("data:image/jpeg;base64,") == 2 * (1 + 5)
    assert run("compare", photo, "-s", "great-wave", "-o", "grid.png")[0] == 1  # exists already
    code, _, err = run("compare", photo, "-s", "great-wave", "--sweep", "axes")
    assert code == 2 and "--sweep is groups or decoders" in err


def test_command_sweeps_groups(run, photo, tmp_path):
    code, out, _ = run("compare", photo, "-s", "great-wave", "--sweep", "groups", "--size", 32, "--style-size", 64)
    assert code == 0 and "photo-compared.png" in out and (tmp_path / "photo-compared.png").exists()


def test_command_sweeps_decoders(run, photo):
    code, out, err = run("compare", photo, "-s", "great-wave", "--sweep", "decoders", "--style-size", 64, "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 0, err
    assert [r["method"] for r in records] == ["decoder:none", "decoder:bn", "decoder:in"]
    assert len({r["style_loss"] for r in records}) == 3


def test_decoders_with_norms_inside(transfer, weights, tmp_path, monkeypatch):
    """Each is the decoder with the norm of the library; one that looks at the whole picture refuses tiles."""
    tensors = load_file(weights / "ablation_in.safetensors")
    decoder = Decoder(16, norm="in").eval()
    decoder.load_state_dict({k: v.float() for k, v in tensors.items()})
    code = transfer.styles.code("great-wave", 64, "decoder:in")
    stylizer = Stylizer(transfer.networks.adain.encoder, decoder)
    wanted = stylizer(PHOTO.rgb, code).clamp(0, 1)
    found = transfer.picture(PHOTO, "great-wave", Options(norm="decoder:in", style_size=64)).rgb
    assert (found - wanted).abs().max() <= 1 / 255
    told = transfer.picture(PHOTO, "great-wave", Options(norm="adain", style_size=64)).rgb
    network = transfer.networks.adain
    untold = Stylizer(network.encoder, network.decoder)
    monkeypatch.setattr(transfer.networks, "adain", untold)
    seeing = transfer.picture(PHOTO, "great-wave", Options(norm="adain", style_size=64)).rgb
    plain = Stylizer(network.encoder, transfer.networks.ablation("none").decoder)
    monkeypatch.setattr(transfer.networks, "adain", plain)
    adain = transfer.picture(PHOTO, "great-wave", Options(norm="adain", style_size=64)).rgb
    assert torch.equal(transfer.picture(PHOTO, "great-wave", Options(norm="decoder:none", style_size=64)).rgb, adain)
    assert not torch.equal(told, seeing) and not torch.equal(seeing, adain)
    assert not torch.equal(found, adain)
    large = from_pil(noise(200, 150))
    whole = transfer.picture(large, "great-wave", Options(norm="decoder:bn", style_size=64))
    tiled = transfer.picture(large, "great-wave", Options(norm="decoder:bn", style_size=64, tile="64"))
    assert (whole.rgb - tiled.rgb).abs().max() <= 1 / 255
    with pytest.raises(OptionError, match="works in one piece"):
        transfer.picture(large, "great-wave", Options(norm="decoder:in", style_size=64, tile="64"))
    with pytest.raises(OptionError, match="got 'wn', there are none, bn, in"):
        transfer.picture(PHOTO, "great-wave", Options(norm="decoder:wn"))
    assert transfer.networks.checksum_of("decoder:bn") == transfer.networks.checksum("ablation_bn")
    files = ("adain_decoder", "adain_codes")
    assert transfer.networks.checksum_of("adagn:8") == " ".join(map(transfer.networks.checksum, files))


def test_learn_teaches_a_style_and_changes_no_other(run, photo, tmp_path):
    noise(64, 48, seed=9).save(tmp_path / "mine.png")
    before = run("stylize", photo, "-s", "great-wave", "--norm", "cin", "-o", "before.png")
    assert before[0] == 0, before[2]
    code, out, err = run(
        "learn", "mine.png", "--name", "mine", "--content", photo, "--steps", 20, "--size", 32,
        "--style-size", 32, "--preview", "previews", "--json",
    )  # fmt: skip
    assert code == 0, err
    record = json.loads(out)
    assert record["after"][1] < record["before"][1]
    assert len(list((tmp_path / "previews").glob("mine-*.png"))) == 5
    for size, norm in ((32, "cin"), (128, "cin"), (64, "cin"), (64, "adain")):  # learned at two of these sizes
        more = ("--style-size", size, "--norm", norm, "-o", f"{norm}.png", "--overwrite")
        assert run("stylize", photo, "-s", "mine", *more)[0] == 0
    assert run("stylize", photo, "-s", "great-wave", "--norm", "cin", "-o", "after.png")[0] == 0
    assert (tmp_path / "before.png").read_bytes() == (tmp_path / "after.png").read_bytes()
    assert (tmp_path / "cin.png").read_bytes() != (tmp_path / "adain.png").read_bytes()
    code, _, err = run("learn", "mine.png", "--name", "mine", "--content", photo)
    assert code == 2 and "--overwrite replaces it" in err
    code, _, err = run("learn", "mine.png", "--name", "once", "--content", photo, "--steps", 1, "--size", 32)
    assert code == 0 and "once: style loss" in run("learn", "mine.png", "--name", "once", "--content", photo, "--steps",
                                                   1, "--size", 32, "--overwrite")[1]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["compare", "mine.png", "-s", "great-wave", "--size", 32, "--html", "no/a.html"], 1, "no: the output folder"),
        (["compare", "mine.png", "-s", "great-wave", "--size", 32, "--html", "."], 1, ".: is a folder"),
        (["learn", "mine.png", "--name", "x", "--preview", "mine.png"], 1, "mine.png: no folder for previews (File ex"),
        (["train", "adain", "--content", ".", "--style", ".", "--out", "w.ckpt"], 2, "ends with .safetensors"),
        (["train", "adain", "--content", ".", "--style", ".", "--out", "mine.png/w.safetensors"], 1, "cannot be writt"),
        (["train", "cin", "--content", ".", "--gallery", ".", "--out", "folder.safetensors"], 1, "cannot be written"),
        (["bench", "--size", 8], 2, "Invalid value for '--size'"),
    ],
)
def test_what_cannot_be_written_is_told_before_any_work(run, tmp_path, arguments, code, message):
    noise(64, 48, seed=9).save(tmp_path / "mine.png")
    for folder in ("folder.safetensors", "styles"):
        (tmp_path / folder).mkdir()
    before = sorted(tmp_path.rglob("*"))
    found, out, err = run(*arguments)
    assert found == code and message in err and "Traceback" not in err and not out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_for_styles_that_cannot_be_written_is_told_before_learning(run, tmp_path, monkeypatch):
    noise(64, 48, seed=9).save(tmp_path / "mine.png")
    monkeypatch.setenv("STYLEAPP_STYLES", str(tmp_path / "mine.png" / "styles"))
    for command in (["learn"], ["styles", "save"]):
        code, _, err = run(*command, "mine.png", "--name", "x")
        assert code == 1 and "x.safetensors: cannot be written (Not a directory)" in err


def test_cin_of_a_saved_style_that_was_not_learned_says_how(run, photo, tmp_path):
    noise(64, 48, seed=9).save(tmp_path / "mine.png")
    assert run("styles", "save", "mine.png", "--name", "mine")[0] == 0
    code, _, err = run("stylize", photo, "-s", "mine", "--norm", "cin", "-o", "x.png")
    assert code == 2 and "has not learned the style 'mine'" in err and "styleapp learn" in err


def test_conditional_networks_in_the_pipeline(transfer, tmp_path):
    noise(64, 64, seed=5).save(tmp_path / "p.png")
    cin, painting = Options(norm="cin"), str(tmp_path / "p.png")
    network = transfer.networks.conditional("cin")
    a, b = network.codes["great-wave"], network.codes["the-visit"]
    plain = network.stylizer(PHOTO.rgb, a).clamp(0, 1)
    assert (transfer.picture(PHOTO, "great-wave", cin).rgb - plain).abs().max() <= 1 / 255
    ends = transfer.picture(PHOTO, {"great-wave": 1.0, "the-visit": 0.0}, cin).rgb
    assert torch.equal(ends, transfer.picture(PHOTO, "great-wave", cin).rgb)
    mixed = [transfer.styles.code({"great-wave": 1 - w, "the-visit": w}, norm="cin") for w in (0.0, 0.5, 1.0)]
    assert torch.allclose(mixed[1].gamma, (a.gamma + b.gamma) / 2)
    measured = transfer.styles.code(painting, 64, "cin")
    assert measured.num_channels == network.stylizer.code_channels
    assert torch.equal(transfer.picture(PHOTO, "great-wave", Options(norm="cin", alpha=0.0)).rgb, PHOTO.rgb)
    with pytest.raises(OptionError, match="give one name, no mix"):
        transfer.picture(PHOTO, {"great-wave": 0.5, "the-visit": 0.5}, Options(norm="in"))
    with pytest.raises(OptionError, match="channels"):
        transfer.picture(PHOTO, measured, Options(norm="adain"))
