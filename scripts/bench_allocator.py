"""What keeping freed memory is worth: elementwise operations and the network, with and without.

python scripts/bench_allocator.py > benchmarks/allocator.json
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

MEASURE = """
import json, statistics, sys, time, torch
from styleapp.allocator import keep_freed_memory
from styleapp.bench import bench, machine
from styleapp.pipeline import StyleTransfer
if sys.argv[1] == "keep":
    assert keep_freed_memory()
x = torch.randn(8, 64, 192, 192).bfloat16()
def median(f):
    f()
    seconds = []
    for _ in range(15):
        start = time.perf_counter(); f(); seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) * 1e3
result = {"clone_ms": median(x.clone), "multiply_ms": median(lambda: x * 2), "to_float32_ms": median(x.float)}
timings = bench(StyleTransfer("cpu"), [512], 9)
result |= {f"{t['name']}_512_ms": t["median"] * 1e3 for t in timings["timings"]}
print(json.dumps({"machine": machine(torch.device("cpu")), "precision": timings["precision"], **result}))
"""


def main() -> None:
    runs: dict[str, list[dict[str, float]]] = {"default": [], "keep": []}
    for _ in range(3):  # in turn, so that a slow spell of the machine meets both
        for mode, found in runs.items():
            done = subprocess.run([sys.executable, "-c", MEASURE, mode], capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout))
    names = [k for k in runs["keep"][0] if k.endswith("_ms")]
    result = {
        mode: {n: round(statistics.median(r[n] for r in found), 2) for n in names} for mode, found in runs.items()
    }
    ratio = {n: round(result["default"][n] / result["keep"][n], 2) for n in names}
    about = {k: runs["keep"][0][k] for k in ("machine", "precision")}
    print(json.dumps({**about, "date": time.strftime("%Y-%m-%d"), **result, "ratio": ratio}, indent=1))


if __name__ == "__main__":
    main()
