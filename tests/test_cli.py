import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FILES, noise
from PIL import Image

SIZE = ("--style-size", 64)


def test_a_photo_and_a_style(run, photo):
    code, out, err = run("stylize", photo, "--style", "great-wave", "-o", "out.png", *SIZE)
    assert (code, err) == (0, "")
    assert out.startswith("out.png  56x40")
    assert Image.open("out.png").size == (56, 40)


def test_name_of_the_output(run, photo):
    assert run("stylize", photo, "-s", "great-wave", *SIZE)[0] == 0
    assert Path("photo-great-wave.png").is_file()
    Path("folder").mkdir()
    assert run("stylize", photo, "-s", "great-wave", "-s", "wheat-field", "-o", "folder", *SIZE)[0] == 0
    assert Path("folder/photo-great-wave+wheat-field.png").is_file()


def test_json(run, photo):
    code, out, _ = run("stylize", photo, "-s", "great-wave", "-o", "a.jpg", "--alpha", 0.5, "--json", *SIZE)
    record = json.loads(out)
    assert code == 0
    assert record["output"] == "a.jpg" and record["alpha"] == 0.5 and record["width"] == 56
    assert record["styles"] == {"great-wave": 1.0} and record["seconds"]["stylize"] > 0


def test_the_norm_that_was_taken_is_told(run, photo):
    for more, norm in (((), "cin"), (("--style-size", 32), "adain"), (("--norm", "adagn:4", *SIZE), "adagn:4")):
        args = ("stylize", photo, "-s", "great-wave", "-o", "a.png", "--overwrite", *more)
        assert run(*args)[1].rstrip().endswith(f"norm {norm}")
        assert json.loads(run(*args, "--json")[1])["norm"] == norm


def test_weights_of_styles(run, photo):
    run("stylize", photo, "-s", "great-wave", "-o", "a.png", *SIZE)
    run("stylize", photo, "-s", "great-wave", "-s", "wheat-field", "--weights", "1,0", "-o", "b.png", *SIZE)
    assert np.array_equal(np.asarray(Image.open("a.png")), np.asarray(Image.open("b.png")))


def test_size(run, photo):
    run("stylize", photo, "-s", "great-wave", "-o", "a.png", "--size", 24, *SIZE)
    assert Image.open("a.png").size == (34, 24)


def test_a_painting_as_style(run, photo):
    noise(64, 80, seed=4).save("painting.jpg")
    assert run("stylize", photo, "-s", "painting.jpg", "-o", "a.png", *SIZE)[0] == 0


def test_one_bad_photo_does_not_lose_the_others(run, photo):
    Path("bad.jpg").write_text("no picture")
    code, out, err = run("stylize", "bad.jpg", photo, "-s", "great-wave", "-o", ".", "--json", *SIZE)
    assert code == 1
    first, second = map(json.loads, out.splitlines())
    assert "not an image" in first["error"] and Path(second["output"]).is_file()
    assert err.count("\n") == 1 and "bad.jpg" in err


def test_the_photo_that_failed_is_named(run, photo):
    cut_out = Image.open(photo).convert("RGBA")
    cut_out.save("cut-out.png")
    code, out, err = run("stylize", "cut-out.png", photo, "--region", "alpha=great-wave", "-o", ".", *SIZE)
    assert code == 1 and out.startswith("cut-out-great-wave.png")
    assert err == f"error: {photo}: the mask 'alpha' is the photo's transparency, and this photo has none\n"


@pytest.mark.parametrize("out", [(), ("-o", "out"), ("-o", "no/out.png")])
def test_no_photo_is_told_before_all_else(run, out):
    code, told, err = run("stylize", "holiday", "-s", "great-wave", "--json", *out, *SIZE)
    assert (code, err) == (1, "error: holiday: no such file\n")
    assert json.loads(told) == {"input": "holiday", "error": "holiday: no such file"}


def bad_inputs(photo: Path) -> dict[str, tuple[list[object], int, str]]:
    Path("empty.jpg").touch()
    Path("text.jpg").write_text("text")
    Path("half.jpg").write_bytes(photo.read_bytes()[:150])
    noise(1, 1).save("dot.png")
    noise(1, 4000).save("line.png")
    Path("there.png").write_text("old")
    wave = ["-s", "great-wave", "-o", "out.png", *SIZE]
    return {
        "missing photo": (["none.jpg", *wave], 1, "none.jpg: no such file"),
        "folder as photo": ([photo.parent, *wave], 2, "is a folder"),
        "empty": (["empty.jpg", *wave], 1, "the file is empty"),
        "text": (["text.jpg", *wave], 1, "not an image"),
        "cut off": (["half.jpg", *wave], 1, "half.jpg"),
        "1x1": (["dot.png", *wave], 1, "1x1 pixels; each side must have at least 16"),
        "1x4000": (["line.png", *wave], 1, "4000x1 pixels; each side must have at least 16"),
        "too large": ([photo, *wave, "--max-megapixels", "0.001"], 1, "more than the 0.001 allowed"),
        "unknown style": ([photo, "-s", "grate-wave"], 2, "did you mean 'great-wave'?"),
        "missing painting": ([photo, "-s", "none.png"], 1, "none.png: no such file"),
        "tiny painting": ([photo, "-s", "dot.png", "--style-size", "8"], 2, "style size must be at least 16"),
        "alpha": ([photo, *wave, "--alpha", "1.2"], 2, "alpha must be from 0 to 1, got 1.2"),
        "alpha is no number": ([photo, *wave, "--alpha", "much"], 2, "Invalid value for '--alpha'"),
        "weights": ([photo, *wave, "--weights", "0.5,0.5"], 2, "2 numbers for 1 styles"),
        "weights are no numbers": ([photo, *wave, "--weights", "half"], 2, "such as 0.7,0.3, got 'half'"),
        "negative weight": ([photo, *wave, "--weights", "-1"], 2, "weights must be 0 or more"),
        "no folder": ([photo, "-s", "great-wave", "-o", "no/out.png"], 1, "output folder does not exist"),
        "exists": ([photo, "-s", "great-wave", "-o", "there.png"], 1, "exists already; --overwrite"),
        "format": ([photo, "-s", "great-wave", "-o", "a.xyz"], 2, "unknown image format '.xyz'"),
        "several to a file": ([photo, photo, "-s", "great-wave", "-o", "a.png"], 2, "must be a folder"),
        "same names": ([photo, photo, "-s", "great-wave"], 2, "same name"),
        "device": ([photo, *wave, "--device", "gpu"], 2, "unknown device 'gpu'"),
        "precision": ([photo, *wave, "--precision", "fp8"], 2, "unknown precision 'fp8'"),
        "pixels": ([photo, *wave, "--max-megapixels", "nan"], 2, "Invalid value for '--max-megapixels'"),
        "no photo": (["", *wave], 2, "CONTENT is empty"),  # a variable of the shell that is not set
        "no style": ([photo, "-s", "", "-o", "out"], 2, "--style is empty"),
        "no such folder": (
            [photo, "-s", "great-wave", "-o", "no/"],
            2,
            "no: no folder, and no file with a format in its",
        ),
    }


@pytest.mark.parametrize("case", range(27))
def test_bad_input(run, photo, case):
    name, (args, code, message) = list(bad_inputs(photo).items())[case]
    before = {p: p.read_bytes() for p in Path().iterdir()}
    found, out, err = run("stylize", *args)
    flat = " ".join(err.replace("│", " ").split())
    assert found == code, name
    assert message in flat, (name, err)
    assert "Traceback" not in err and out == ""
    assert {p: p.read_bytes() for p in Path().iterdir()} == before, name


def test_threads_do_not_wait_for_work_for_long(run, monkeypatch):
    """Unless the user has said how."""
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert run("--version")[0] == 0 and os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert run("--version")[0] == 0 and "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert run("--version")[0] == 0 and os.environ["GOMP_SPINCOUNT"] == "4000"
    code = "import styleapp.cli, sys; assert 'torch' not in sys.modules"  # it would be too late
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_frames_that_are_left_out_are_told(run, photo, tmp_path):
    frames = [noise(32, 40, seed=i) for i in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=50)
    code, _, err = run("stylize", "a.gif", "-s", "great-wave", "-o", "a.jpg", *SIZE)
    assert code == 0 and "a.gif: the first of 3 frames; .gif, .webp, .png, .avif as a result keep them all" in err
    assert "frames" not in run("stylize", "a.gif", "-s", "great-wave", "-o", "b.gif", *SIZE)[2]
    assert "frames" not in run("stylize", photo, "-s", "great-wave", "-o", "c.png", *SIZE)[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_absent_gpu_is_an_error(run, photo):
    code, _, err = run("stylize", photo, "-s", "great-wave", "-o", "a.png", "--device", "cuda", *SIZE)
    assert code == 2 and "sees no CUDA GPU" in err and not Path("a.png").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_not_writable(run, photo):
    Path("closed").mkdir(mode=0o500)
    code, _, err = run("stylize", photo, "-s", "great-wave", "-o", "closed/a.png", *SIZE)
    assert code == 1 and "not writable" in err


@pytest.mark.parametrize(("name", "harm"), [("adain_decoder", "remove"), ("styles", "cut"), ("vgg19_relu4_1", "cut")])
def test_bad_weights(run, photo, weights, tmp_path, monkeypatch, name, harm):
    copy = shutil.copytree(weights, tmp_path / "w")
    file = copy / f"{name}.safetensors"
    if harm == "remove":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-8])
    monkeypatch.setenv("STYLEAPP_WEIGHTS", str(copy))
    code, _, err = run("stylize", photo, "-s", "great-wave", "-o", "a.png", *SIZE)
    assert code == 1 and f"{name}.safetensors" in err and err.count("\n") == 1
    code, out, _ = run("weights", "verify")
    assert code == 1 and f"{name}  " in out


def test_overwrite(run, photo):
    Path("a.png").write_text("old")
    assert run("stylize", photo, "-s", "great-wave", "-o", "a.png", "--overwrite", *SIZE)[0] == 0
    assert Image.open("a.png").size == (56, 40)


def test_lists(run):
    code, out, _ = run("styles")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == [
        "name",
        "great-wave",
        "wheat-field",
        "the-visit",
    ]
    assert json.loads(run("styles", "--json")[1])[0]["artist"] == "A"
    assert "vgg19_rel" in run("weights", "list")[1]  # the table is narrow
    assert json.loads(run("weights", "list", "--json")[1])[1]["name"] == "adain_decoder"
    assert run("weights", "verify")[1].splitlines() == [f"{name}  ok" for name in FILES]


def test_info(run, weights):
    facts = json.loads(run("info", "--json")[1])
    assert facts["weights"] == str(weights) and "cpu" in facts["devices"]
    assert facts["styles"].endswith("styles") and facts["codes"].endswith("codes")
    assert "torch" in run("info")[1]


def test_version_and_help(run):
    from styleapp import __version__

    assert run("--version")[1] == f"styleapp {__version__}\n"
    assert "--style-size" in run("stylize", "--help")[1]


def test_bench(run):
    result = json.loads(run("bench", "--size", 32, "--runs", 2, "--json")[1])
    assert {t["name"] for t in result["timings"]} == {"network", "stylize", "stylize, cin"}
    assert all(t["median"] > 0 for t in result["timings"]) and result["matmul_tflops"] > 0
    assert "TFLOP/s" in run("bench", "--size", 32, "--runs", 1)[1]
    batches = json.loads(run("bench", "--size", 32, "--runs", 1, "--batch", 3, "--json")[1])["timings"]
    assert [t["size"] for t in batches if t["name"] == "network, batch of 3"] == [32]
    args = ("--tile", "off", "--tile", 16, "--stages", "--peers", "--json")
    result = json.loads(run("bench", "--size", 32, "--runs", 1, *args)[1])
    names = [(t["name"], t["tile"]) for t in result["timings"]]
    assert names[:4] == [("network", ""), ("stylize", "off"), ("stylize", "16"), ("stylize, cin", "")]
    assert {n for n, _ in names[4:]} == {"read JPEG", "encoder", "norm", "decoder", "write JPEG"}
    assert result["peers"][0]["peer"].startswith("plain float32") and result["peers"][0]["ratio"] > 0


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.usefixtures("traced")
def test_bench_tells_what_compiling_costs(run, photo):
    told = run("bench", "--size", 32, "--runs", 1, "--compile")[1]
    found = re.search(r"32 px: torch.compile takes ([\d.]+) s for the first picture, then ([\d.]+) s where", told)
    assert found and float(found[1]) > float(found[2]), told
    assert re.search(r"without it: (pays from \d+ pictures on|does not pay)\n", told)
    code, out, err = run("stylize", photo, "-s", "great-wave", "-o", "a.png", "--compile", *SIZE)
    assert code == 0 and out.startswith("a.png") and not err, err


def test_the_plain_network_of_the_benchmark_is_the_same_network(transfer):
    from torch.utils.flop_counter import FlopCounterMode

    from styleapp.bench import flops, plain_network
    from styleapp.models.vgg import by_layer

    image, style = torch.rand(1, 3, 40, 32), torch.rand(1, 3, 32, 32)
    stylizer = transfer.networks.adain
    assert stylizer.besides
    plain, features = plain_network(stylizer, stylizer.measure(style)), by_layer(stylizer.encoder.features(style))
    with FlopCounterMode(display=False) as counter:
        found = plain(image, features)
    assert counter.get_total_flops() == flops(stylizer, 40, 32)
    wanted = stylizer(image, stylizer.measure(style))
    assert float((found[..., :40, :32] - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())  # which is 20 to 40


def test_a_format_that_cannot_hold_the_result_is_refused_before_the_work(run, tmp_path, monkeypatch):
    Image.new("RGB", (16400, 16)).save(tmp_path / "wide.png")
    monkeypatch.setattr("styleapp.pipeline.StyleTransfer.picture", lambda *_, **__: pytest.fail("work was done"))
    code, _, err = run("stylize", "wide.png", "-s", "great-wave", "-o", "wide.webp", *SIZE)
    assert code == 1 and "WEBP holds sides of at most 16383 pixels, the result has 16400x16" in err
    (tmp_path / "in").mkdir()
    (tmp_path / "wide.png").rename(tmp_path / "in" / "wide.png")
    code, _, err = run("stylize", "in", "-s", "great-wave", "-o", "out", "--format", "webp", *SIZE)
    assert code == 1 and "at most 16383 pixels" in err


def test_evaluate(run, folders):
    content, style = folders
    rows = json.loads(run("evaluate", "--content", content, "--style", style, "--size", 32, "--json")[1])
    assert [r["name"] for r in rows] == ["unchanged photo", "AdaIN, bf16"] or rows[1]["name"] == "AdaIN, fp32"
    assert rows[0]["identity_psnr"] is None and rows[1]["identity_psnr"] > 0
    assert set(rows[1]["by_painting"]) == {p.name for p in style.iterdir()}
    assert "identity PSNR" in run("evaluate", "--content", content, "--style", style, "--size", 32)[1]
    code, _, err = run("evaluate", "--content", content, "--style", "nowhere")
    assert code == 1 and "nowhere: not a folder" in err


def test_works_where_gradio_is_not_installed(photo, weights, tmp_path):
    block = "import sys; sys.modules['gradio'] = None; sys.argv[0] = 'styleapp'; from styleapp.cli import main; main()"
    environment = {**os.environ, "STYLEAPP_WEIGHTS": str(weights)}
    args = ["stylize", str(photo), "-s", "great-wave", "-o", str(tmp_path / "o.png"), "--style-size", "64"]
    done = subprocess.run([sys.executable, "-c", block, *args], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([sys.executable, "-c", block, "web"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "pip install gradio" in done.stderr and "Traceback" not in done.stderr


def test_a_command_does_not_wait_for_what_it_does_not_need(photo, weights, tmp_path):
    """torchvision takes a second to import, Triton a tenth of one, and a CPU needs neither for a picture."""
    block = (
        "import sys; sys.argv[0] = 'styleapp'; from styleapp.cli import main\ntry: main()\nfinally: print(*sys.modules)"
    )
    environment = {**os.environ, "STYLEAPP_WEIGHTS": str(weights)}
    args = ["stylize", str(photo), "-s", "great-wave", "--size", "32", "--device", "cpu", "-o", str(tmp_path / "o.png")]
    done = subprocess.run([sys.executable, "-c", block, *args], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert "styleapp.engine" in loaded and not {"torchvision", "triton", "torch._dynamo", "gradio"} & set(loaded)


def test_python_dash_m(tmp_path):
    done = subprocess.run([sys.executable, "-m", "styleapp", "styles"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "great-wave" in done.stdout


class TestSavedStyles:
    def test_a_painting_becomes_a_name(self, run, photo, tmp_path):
        noise(90, 80, seed=11).save(tmp_path / "painting.png")
        code, out, err = run("styles", "save", "painting.png", "--name", "mine")
        assert code == 0 and out.strip().endswith("mine.safetensors"), err
        assert "mine" in run("styles")[1]
        for style, out in (("mine", "a.png"), ("painting.png", "b.png")):
            code, _, err = run("stylize", photo, "-s", style, "-o", out, *SIZE)
            assert code == 0, err
        assert np.array_equal(*(np.asarray(Image.open(f)) for f in ("a.png", "b.png")))

    def test_a_file_goes_by_its_name(self, run, photo, tmp_path):
        """So that one that a friend has sent can be called otherwise."""
        run("styles", "save", photo, "--name", "mine")
        (tmp_path / "styles" / "mine.safetensors").rename(tmp_path / "styles" / "yours.safetensors")
        listed = run("styles")[1]
        assert "yours" in listed and "mine" not in listed

    def test_remove(self, run, photo, tmp_path):
        for name in ("mine", "other"):
            run("styles", "save", photo, "--name", name)
        files = [tmp_path / "styles" / f"{name}.safetensors" for name in ("mine", "other")]
        code, out, err = run("styles", "remove", "mine")
        assert code == 0 and out == f"{files[0]}  removed\n", err
        assert not files[0].exists() and "mine" not in run("styles")[1] and "other" in run("styles")[1]
        code, _, err = run("styles", "remove", "great-wave")
        assert code == 2 and "'great-wave' is built in; only saved ones can be removed: other" in err
        code, _, err = run("styles", "remove", "othr")
        assert code == 2 and "unknown saved style 'othr', did you mean 'other'?" in err and files[1].exists()
        files[1].write_bytes(b"no code")
        assert run("styles", "remove", "other")[0] == 0 and not files[1].exists()

    @pytest.mark.parametrize(
        ("name", "exit_code", "message"),
        [
            ("../x", 2, "the name of a style is made of letters"),
            ("great-wave", 2, "there is a style 'great-wave' already"),
            ("", 2, "the name of a style is made of letters"),
        ],
    )
    def test_bad_names(self, run, photo, name, exit_code, message):
        code, _, err = run("styles", "save", photo, "--name", name)
        assert code == exit_code and message in err

    def test_overwrite(self, run, photo, tmp_path):
        assert run("styles", "save", photo, "--name", "mine")[0] == 0
        code, _, err = run("styles", "save", photo, "--name", "mine")
        assert code == 2 and "--overwrite replaces it" in err
        assert run("styles", "save", photo, "--name", "mine", "--overwrite")[0] == 0

    def test_of_another_encoder_it_is_not_listed_and_damaged_it_stops_no_other(self, run, photo, tmp_path):
        run("styles", "save", photo, "--name", "mine")
        file = tmp_path / "styles" / "mine.safetensors"
        whole = file.read_bytes()
        file.write_bytes(whole.replace(b'"encoder_sha256":"', b'"encoder_sha257":"'))
        code, out, _ = run("styles")
        assert code == 0 and "mine" not in out
        file.write_bytes(whole[:30])
        code, out, err = run("styles")
        assert code == 0 and "great-wave" in out and "mine" not in out
        assert (
            err.startswith(f"left out: {file}: not a saved style")
            and "save it again, or styleapp styles remove mine" in err
        )
        assert run("stylize", photo, "--style", "great-wave", "-o", tmp_path / "a.png", *SIZE)[0] == 0
        code, _, err = run("stylize", photo, "--style", "mine", "-o", tmp_path / "b.png", *SIZE)
        assert code == 1 and f"{file}: not a saved style" in err and not (tmp_path / "b.png").exists()
        assert run("styles", "save", photo, "--name", "mine")[0] == 0
        assert run("stylize", photo, "--style", "mine", "-o", tmp_path / "b.png", *SIZE)[0] == 0


def test_a_painting_is_encoded_once(transfer, monkeypatch):
    calls = []
    real = type(transfer.styles).measure
    monkeypatch.setattr(type(transfer.styles), "measure", lambda *a, **k: calls.append(1) or real(*a, **k))
    painting = noise(64, 64, seed=77)
    for _ in range(3):
        transfer.styles.code(painting, 64)
    transfer.styles.code(painting, 48)
    assert len(calls) == 2
