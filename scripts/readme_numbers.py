"""Write the table of measured numbers into README.md from the JSON under benchmarks/.

python scripts/readme_numbers.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- numbers: made by scripts/readme_numbers.py -->", "<!-- end of numbers -->"


def load(name: str) -> Any:
    return json.loads(Path(f"benchmarks/{name}.json").read_text(encoding="utf-8"))


def table() -> str:
    cpu, large, losses, norms = (load(n) for n in ("cpu", "large", "evaluate", "norms"))
    rows: list[tuple[str, str, str]] = []
    bench = "`styleapp bench --size 512 --size 1024 --runs 5 --stages --peers`"
    by = {(t["name"], t["size"]): t for t in cpu["timings"]}
    for size in (512, 1024):
        network, whole = by["network", size], by["stylize", size]
        rows.append((f"the network, {size} × {size}", f"{network['median']:.2f} s", bench))
        rows.append((f"`stylize` of a PIL image, {size} × {size}", f"{whole['median']:.2f} s", bench))
    share = by["network", 512]["share"]
    rows.append(("the network's share of the machine's own rate at matrix products", f"{share:.0%}", bench))
    for peer in cpu["peers"]:
        if peer["size"] == 512:
            rows.append((f"against {peer['peer']}, 512 × 512", f"{peer['ratio']:.2f} times as fast", bench))
    [compiled] = load("compile")["compiled"]
    pays = f"pays from {compiled['pays_from']} pictures on" if compiled["pays_from"] else "does not pay here"
    text = f"{compiled['first']:.0f} s, then {compiled['compiled']:.2f} s instead of {compiled['eager']:.2f} s: {pays}"
    rows.append(
        ("torch.compile: the first picture of 512 × 512", text, "`styleapp bench --size 512 --runs 7 --compile`")
    )
    biggest = max(large["runs"], key=lambda r: r["result"][0] * r["result"][1])
    name = biggest["photo"].replace("x", " × ")
    what = f"{biggest['seconds']:.0f} s, {biggest['peak_rss_mb'] / 1000:.2f} GB at most"
    rows.append((f"{name}, `--max-memory 2GB`, whole process", what, "`python scripts/bench_large.py`"))
    batch = load("batch")
    one = batch["one_process"]
    text = f"{one['images_per_second']:.2f} photos/s, {one['of_bare']:.2f} of the bare network's"
    rows.append(("a folder of JPEG, 512 × 512, in and out", text, "`python scripts/bench_batch.py`"))
    stock = [r for r in norms["norms"] if r["stock"] and r["layout"] == "contiguous"]
    ratios = [r[k]["ratio"] for r in stock for k in ("forward", "forward_backward")]
    rows.append(
        (
            "stock norms against torch.nn's",
            f"{min(ratios):.2f} to {max(ratios):.2f} times the time",
            "`python scripts/bench_norms.py`",
        )
    )
    evaluate = "`styleapp evaluate --content eval/content --style eval/style`"
    for row in losses:
        text = f"content {row['content_loss']:.2f}, style {row['style_loss']:.2f}"
        rows.append((f"losses on 340 pairs at 512 px: {row['name']}", text, evaluate))
    compared = load("compare")
    for method, name in (("adain", "AdaIN"), ("cin", "CIN"), ("in", "IN, 3 styles")):
        if method in compared["means"]:
            found = compared["means"][method]
            text = f"content {found['content']:.2f}, style {found['style']:.2f}"
            rows.append((f"losses on the built-in styles at 512 px: {name}", text, f"`{compared['command']}`"))
    inside = load("ablation")
    text = ", ".join(f"{norm} {row['style_loss']:.1f}" for norm, row in inside["decoders"].items())
    rows.append(("style loss of small AdaIN decoders by the norm inside", text, f"`{inside['command']}`"))
    web = load("web")
    one = web["one_visitor_seconds"]
    text = f"{one['picture_512']:.2f} s, {one['preview_256']:.2f} s"
    rows.append(("the page: from the button to a picture of 512 × 512, to a preview", text, f"`{web['command']}`"))
    text = f"{web['seconds_p50']:.1f} s, {web['seconds_p95']:.1f} s, {web['pictures_per_second']:.2f} pictures/s"
    rows.append(
        (f"the page with {web['clients']} clients at once: median, 95th percentile", text, f"`{web['command']}`")
    )
    memory = web["memory_mb"]
    text = f"{memory['after_a_third']} MB, {memory['at_the_end']} MB, {memory['most']} MB"
    rows.append(("its memory after a third, at the end, at most", text, f"`{web['command']}`"))
    m = cpu["machine"]
    about = (
        f"Two cores of an {m['device']} ({m['instructions']}), torch {m['torch']}, {cpu['precision']}, "
        f"{cpu['matmul_tflops']:.2f} TFLOP/s in matrix products; decoder of width {cpu['width']}; median of the runs."
    )
    lines = [about, "", "| what | measured | command |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def main() -> None:
    path = Path("README.md")
    text = path.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    path.write_text(f"{head}{BEGIN}\n{table()}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
