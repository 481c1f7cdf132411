import json
import shutil

import pytest
import torch
from conftest import FILES, STYLES, noise
from safetensors.torch import load_file, save_file

from styleapp.errors import OptionError, WeightsError
from styleapp.models import Decoder, StyleCode
from styleapp.weights import Weights, sha256, weights_folder


@pytest.fixture
def copy(weights, tmp_path):
    return shutil.copytree(weights, tmp_path / "copy")


def edit(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest["files"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_good_folder_loads_and_verifies(weights):
    assert Weights(weights).verify() == dict.fromkeys(FILES)
    assert Weights(weights).stylizer().encoder.num_channels == 16


def test_shipped_weights_are_whole():
    shipped = Weights()
    assert not any(shipped.verify().values())
    gallery = shipped.gallery()
    assert len(gallery.styles) == 24
    for name in gallery.styles:
        assert torch.isfinite(gallery.code(name, 512).gamma).all() and (gallery.code(name, 512).gamma > 0).all()
    network = shipped.stylizer()
    learned = shipped.adain_codes(network)
    assert learned.keys() == gallery.styles.keys()
    assert all(
        network.takes(code) and code.beta.isfinite().all() for codes in learned.values() for code in codes.values()
    )
    assert network.probes is not None and (network.probes.std((1, 2, 3)) > 0.1).all()
    for entry in shipped.entries.values():
        assert entry.source and entry.licence


def test_environment_names_the_folder(weights, monkeypatch, tmp_path):
    monkeypatch.setenv("STYLEAPP_WEIGHTS", str(weights))
    assert weights_folder() == weights
    monkeypatch.setenv("STYLEAPP_WEIGHTS", str(tmp_path / "none"))
    with pytest.raises(WeightsError, match=r"looked for manifest\.json in .*none"):
        weights_folder()


def test_altered_file(copy):
    path = copy / "adain_decoder.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"adain_decoder\.safetensors: wrong checksum"):
        Weights(copy).stylizer()
    result = Weights(copy).verify()
    assert "wrong checksum" in result["adain_decoder"] and result["styles"] is None


def test_missing_file(copy):
    (copy / "styles.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"styles\.safetensors: cannot be read \(No such file"):
        Weights(copy).gallery()


def test_missing_entry(copy):
    edit(copy, lambda files: files.pop("adain_decoder"))
    with pytest.raises(WeightsError, match="has no 'adain_decoder'; it has vgg19_relu4_1, styles"):
        Weights(copy).stylizer()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": {"a": {"nonsense": 1}}, "styles": []}'])
def test_broken_manifest(copy, text):
    (copy / "manifest.json").write_text(text)
    with pytest.raises(WeightsError, match="not a manifest"):
        Weights(copy)


@pytest.mark.parametrize("name", ["adain_decoder", "styles"])
def test_made_with_another_encoder(copy, name):
    edit(copy, lambda files: files[name].update(encoder_sha256="0" * 64))
    with pytest.raises(WeightsError, match="made with another encoder"):
        Weights(copy).stylizer() if name == "adain_decoder" else Weights(copy).gallery()
    assert "another encoder" in Weights(copy).verify()[name]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [({"x": torch.zeros(1)}, "do not fit the Decoder"), (None, "not a safetensors file"), ("nan", "not finite")],
)
def test_right_checksum_but_wrong_content(copy, tensors, message):
    path = copy / "adain_decoder.safetensors"
    if tensors == "nan":
        state = Weights(copy).stylizer().decoder.state_dict()
        save_file({k: torch.full_like(v, torch.nan) for k, v in state.items()}, path)
    elif tensors is None:
        path.write_text("text")
    else:
        save_file(tensors, path)
    edit(copy, lambda files: files["adain_decoder"].update(sha256=sha256(path)))
    with pytest.raises(WeightsError, match=message):
        Weights(copy).stylizer()


def test_codes_between_sizes_are_interpolated(weights):
    gallery = Weights(weights).gallery()
    small, large = gallery.code("great-wave", 32), gallery.code("great-wave", 64)
    between = gallery.code("great-wave", 45)
    low, high = torch.minimum(small.gamma, large.gamma), torch.maximum(small.gamma, large.gamma)
    assert ((between.gamma >= low - 1e-6) & (between.gamma <= high + 1e-6)).all()
    nearly = gallery.code("great-wave", 63)
    assert (nearly.gamma - large.gamma).abs().max() < 0.05
    with pytest.raises(OptionError, match="must be 32 to 128, got 16"):
        gallery.code("great-wave", 16)
    with pytest.raises(OptionError, match="did you mean 'great-wave'"):
        gallery.code("graet-wave", 64)


def test_codes_at_other_stroke_sizes_belong_to_their_network(copy):
    name = f"{STYLES[0]}.128"
    made = Weights(copy)
    sizes = made.conditional("cin", made.encoder()).sizes[STYLES[0]]
    stored = made.load("cin_sizes")[name].float()
    assert sorted(sizes) == [64, 128, 512] and torch.equal(sizes[128].gamma.flatten(), stored[0])
    path = copy / "cin_sizes.safetensors"
    for tensors, message in (
        ({name: stored[:, 1:]}, "of shape"),
        ({"x": stored}, "'x' of shape"),
        (None, "another network"),
    ):
        if tensors is not None:
            save_file({k: v.contiguous() for k, v in tensors.items()}, path)
            edit(copy, lambda files: files["cin_sizes"].update(sha256=sha256(path)))
        else:
            edit(copy, lambda files: files["cin_sizes"]["config"].update(cin_sha256="0"))
        with pytest.raises(WeightsError, match=message):
            Weights(copy).conditional("cin", made.encoder())


def test_learned_codes_of_adain_belong_to_their_decoder(copy):
    made = Weights(copy)
    found = made.adain_codes(made.stylizer())
    rows = made.load("adain_codes")["the-visit.32"].float()
    assert {name: sorted(codes) for name, codes in found.items()} == {"the-visit": [32, 128]}
    assert torch.equal(found["the-visit"][32].beta.flatten(), rows[1])
    edit(copy, lambda files: files["adain_codes"]["config"].update(adain_decoder_sha256="0"))
    with pytest.raises(WeightsError, match=r"adain_codes\.safetensors was made with another network"):
        Weights(copy).adain_codes(made.stylizer())
    edit(copy, lambda files: files.pop("adain_codes"))
    assert Weights(copy).adain_codes(made.stylizer()) == {}


def test_the_manifest_says_how_a_decoder_upsamples(copy):
    """Nearest where it says nothing, as in files of before there was a choice."""
    plain = Weights(copy)
    nearest = plain.conditional("cin", plain.encoder()).stylizer.decoder
    edit(copy, lambda files: files["cin"]["config"].update(upsampling="bilinear"))
    changed = Weights(copy)
    bilinear = changed.conditional("cin", changed.encoder()).stylizer.decoder
    assert (nearest.upsampling, bilinear.upsampling) == ("nearest", "bilinear")
    features = torch.rand(1, 16, 4, 4)
    skips = {"relu1_1": torch.rand(1, 4, 32, 32), "relu2_1": torch.rand(1, 6, 16, 16)}
    with torch.inference_mode():
        assert not torch.allclose(nearest(features, skips=skips), bilinear(features, skips=skips), atol=1e-3)


@pytest.mark.parametrize(
    "wrong", [{"upsampling": "cubic"}, {"width": "wide"}, {"depth": 3}, {"skips": {"relu5_1": 4}}, {"skips": 3}]
)
def test_a_config_that_fits_no_decoder(copy, wrong):
    edit(copy, lambda files: files["cin"]["config"].update(wrong))
    with pytest.raises(WeightsError, match="config of 'cin' fits no decoder"):
        Weights(copy).conditional("cin", Weights(copy).encoder())


def test_the_manifest_of_a_release_builds_the_decoder(tmp_path):
    """What scripts/release.py says of a file is what the file was made by."""
    import release

    made = Decoder(512, 0.5, upsampling="bilinear", skips={"relu1_1": 64, "relu2_1": 128})
    state = {f"decoder.{k}": v for k, v in made.state_dict().items()}
    file = tmp_path / "cin.safetensors"
    save_file(state, file, {"options": '{"upsampling": "bilinear"}'})
    config = release.decoder_config(file, "decoder.")
    assert config == {"width": 0.5, "upsampling": "bilinear", "skips": {"relu1_1": 64, "relu2_1": 128}}
    Decoder(512, **config).load_state_dict(made.state_dict())
    save_file(Decoder(512, 0.5).state_dict(), file)
    assert release.decoder_config(file) == {"width": 0.5, "upsampling": "nearest"}


def test_learning_stroke_sizes_goes_on_where_it_was_stopped(copy, tmp_path, monkeypatch, capsys):
    import learn_sizes

    monkeypatch.setenv("STYLEAPP_WEIGHTS", str(copy))
    for folder, names in (("gallery", STYLES), ("content", ["photo"])):
        (tmp_path / folder).mkdir()
        for i, name in enumerate(names):
            noise(40, 52, seed=i).save(tmp_path / folder / f"{name}.jpg")
    out = tmp_path / "sizes.safetensors"
    folders = ["--gallery", str(tmp_path / "gallery"), "--content", str(tmp_path / "content"), "--out", str(out)]

    def learn(steps: int, *sizes: int, more: tuple[str, ...] = ()) -> int:
        arguments = [*folders, "--steps", steps, "--photos", 1, "--size", 32, *more, "--sizes", *sizes]
        monkeypatch.setattr("sys.argv", ["learn_sizes.py", *map(str, arguments)])
        learn_sizes.main()
        return len(capsys.readouterr().out.splitlines())

    assert learn(2, 32) == 3
    first = load_file(out)
    assert learn(2, 32, 48) == 3
    codes = load_file(out)
    assert sorted(codes) == sorted(f"{name}.{size}" for name in STYLES for size in (32, 48))
    assert all(torch.equal(codes[key], value) for key, value in first.items())
    start = Weights(copy).load("cin")["codes"][0]
    assert codes[f"{STYLES[0]}.32"].shape == start.shape and not torch.equal(codes[f"{STYLES[0]}.32"], start)
    with pytest.raises(SystemExit):
        learn(3, 32)
    assert "was made otherwise" in capsys.readouterr().err

    out.unlink()
    assert learn(2, 64, more=("--network", "adain")) == 3
    network, rows = Weights(copy).stylizer(), load_file(out)[f"{STYLES[0]}.64"].float()
    code = StyleCode(rows[0].view(1, -1, 1, 1), rows[1].view(1, -1, 1, 1))
    assert network.takes(code) and code.beta[:, 16:].any()
