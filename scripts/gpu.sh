#!/usr/bin/env bash
# The whole list of work for a GPU, in pieces of under ten minutes. Each piece goes on where the last one stopped.
#
#   scripts/gpu.sh train [MINUTES]   the release decoder: full width, 16 pairs at 256 px, from the shipped one
#   scripts/gpu.sh cin [MINUTES]     the CIN network: 24 paintings and a predictor for others, from the shipped one
#   scripts/gpu.sh in [MINUTES]      IN networks for three paintings, from the CIN network
#   scripts/gpu.sh ablation [MINUTES] small decoders with norms inside, 10,000 steps each
#   scripts/gpu.sh evaluate          losses of what lies in runs/, on data/eval
#   scripts/gpu.sh sizes             codes of the networks that were evaluated: CIN's at other stroke sizes, AdaIN's
#   scripts/gpu.sh test              the tests that a GPU is needed for
#   scripts/gpu.sh bench             timings to benchmarks/
#   scripts/gpu.sh all [MINUTES]     one after the other
#
# The learning rate falls to zero over STEPS; without it, over as many as fit into MINUTES by the pace of the first half
# minute. An H200 makes 54 steps a second of the decoder and made 18 of the CIN network (before our convolutions had gradients).
# DATA (default: data) holds train/content, train/style, eval/content, eval/style, gallery; RUNS (default: runs) takes
# checkpoints and results: keep it between the pieces. TOY=1 runs the same list in a minute on a CPU.
# Needs torch, torchvision, pillow, safetensors, typer and rich; nothing is installed or downloaded.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} DATA=${DATA:-data} RUNS=${RUNS:-runs} TOY=${TOY:-}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$RUNS"

if [ -n "$TOY" ]; then
    STEPS=${STEPS-3} FIRST=${FIRST:-0.02} BATCHES=(--batch 2)
    DEVICE=auto TRAIN=(--width 0.0625 --batch-size 2 --pairs 1 --size 32)
    CIN=(--width 0.0625 --batch-size 1 --pairs 1 --size 32 --style-size 32) IN=("${CIN[@]}" --steps 3) ABLATION=(--steps 1) LEARN=(--steps 1 --photos 2 --size 32 --sizes 32) INIT_TRAIN=() INIT_CIN=() SIZES=(32) RUNS_TIMED=1 EVAL=32
else
    DEVICE=cuda COMMON=(--batch-size 8 --pairs 2 --size 256 --identity-weight 100 --grid-weight 60)
    TRAIN=("${COMMON[@]}" --width 1 --lr 4e-4 --warmup 200 --ema 0.998 --style-weight 10 --equivariance-weight 5
        --pattern-share 0.1 --colour-share 0.5)
    CIN=("${COMMON[@]}" --width 0.75 --lr 5e-4 --code-lr 2e-3 --predictor-lr 3e-4 --warmup 100 --ema 0.998
        --equivariance-weight 18 --style-weight 10 --further-share 0.75 --pattern-share 0.1)
    IN=("${COMMON[@]}" --pairs 1 --width 0.75 --steps "${STEPS:-10000}" --lr 4e-4 --equivariance-weight 24)
    ABLATION=(--steps 10000 --size 256) LEARN=()
    INIT_TRAIN=(--init weights/adain_decoder.safetensors) INIT_CIN=(--init weights/cin.safetensors)
    SIZES=(256 512 1024 2048) BATCHES=(--batch 8 --batch 32) RUNS_TIMED=10 EVAL=512 FIRST=0.6
fi
OUT=$RUNS/adain_decoder.safetensors

# steps_that_fit LOG MINUTES: the length that a run was given before, or that its first half minute promises
steps_that_fit() {
    "$PYTHON" - "$@" <<'EOF'
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
begun = [row["options"] for row in rows if "options" in row]
paces = [row for row in rows if "images_per_second" in row]
if len(begun) > 1 or not paces:
    print(begun[-1]["steps"])
else:
    pace = paces[-1]["images_per_second"] / begun[0]["batch_size"] / begun[0]["pairs"]
    print(int(paces[-1]["step"] + pace * 60 * max(0.1, float(sys.argv[2]) - 0.6)))
EOF
}

# fitting OUT MINUTES COMMAND…: train for that time, STEPS long or as long as fits
fitting() {
    local out=$1 minutes=$2 log=${1%.safetensors}.log.jsonl
    shift 2
    if [ -z "${STEPS:-}" ] && [ ! -e "$log" ]; then "$@" --out "$out" --minutes "$FIRST"; fi
    "$@" --out "$out" --minutes "$minutes" --steps "${STEPS:-$(steps_that_fit "$log" "$minutes")}"
}

train() {
    fitting "$OUT" "${1:-8.5}" "$PYTHON" -m styleapp train adain --content "$DATA/train/content" --style "$DATA/train/style" \
        --device "$DEVICE" --sample-minutes 4 "${TRAIN[@]}" "${INIT_TRAIN[@]}"
}

cin() {
    fitting "$RUNS/cin.safetensors" "${1:-8.5}" "$PYTHON" -m styleapp train cin --content "$DATA/train/content" \
        --gallery "$DATA/gallery" --further "$DATA/train/style" --device "$DEVICE" --sample-minutes 4 "${CIN[@]}" "${INIT_CIN[@]}"
}

instance() {
    local style
    for style in great-wave wheat-field the-visit; do
        "$PYTHON" -m styleapp train cin --content "$DATA/train/content" --gallery "$DATA/gallery" --style "$style" \
            --out "$RUNS/in_$style.safetensors" --init "$RUNS/cin.safetensors" --device "$DEVICE" \
            --minutes "${1:-3}" --sample-minutes 4 "${IN[@]}"
    done
}

ablation() {
    "$PYTHON" scripts/ablation.py train --content "$DATA/train/content" --style "$DATA/train/style" --runs "$RUNS" \
        --device "$DEVICE" --minutes "${1:-8.5}" "${ABLATION[@]}"
}

evaluate() {
    local weights=$RUNS/weights norm new=()
    rm -rf "$weights" && cp -r weights "$weights"
    [ ! -f "$OUT" ] || new+=(--decoder "$OUT")
    [ ! -f "$RUNS/cin.safetensors" ] || new+=(--cin "$RUNS/cin.safetensors")
    "$PYTHON" scripts/release.py --folder "$weights" "${new[@]}"
    for norm in adain cin; do
        STYLEAPP_WEIGHTS=$weights "$PYTHON" -m styleapp evaluate --content "$DATA/eval/content" --style "$DATA/eval/style" \
            --norm "$norm" --size "$EVAL" --device "$DEVICE" --json | tee "$RUNS/evaluate_$norm.json"
    done
}

sizes() {
    local weights=$RUNS/weights network
    [ -d "$weights" ] || weights=weights
    for network in cin adain; do
        STYLEAPP_WEIGHTS=$weights "$PYTHON" scripts/learn_sizes.py --network $network --gallery "$DATA/gallery" \
            --content "$DATA/train/content" --out "$RUNS/${network}_codes.safetensors" --device "$DEVICE" "${LEARN[@]}"
    done
}

run_tests() {
    if [ -n "$TOY" ]; then
        "$PYTHON" -m pytest tests/norms/test_functional.py
    else
        "$PYTHON" -m pytest tests/test_gpu.py -p no:cacheprovider  # what is skipped elsewhere
    fi
}

bench() {
    local sizes=() size
    for size in "${SIZES[@]}"; do sizes+=(--size "$size"); done
    "$PYTHON" -m styleapp bench --device "$DEVICE" "${sizes[@]}" --runs "$RUNS_TIMED" "${BATCHES[@]}" --stages --peers --json |
        tee "$RUNS/gpu.json"
    "$PYTHON" -m styleapp bench --device "$DEVICE" --size "${SIZES[0]}" --runs "$RUNS_TIMED" --compile --json | tee "$RUNS/gpu_compile.json"
    "$PYTHON" scripts/bench_batch.py --device "$DEVICE" --count "$((RUNS_TIMED * 40))" | tee "$RUNS/gpu_batch.json"
    "$PYTHON" scripts/bench_norms.py --device "$DEVICE" --turns "$((RUNS_TIMED * 4 + 1))" | tee "$RUNS/gpu_norms.json"
    "$PYTHON" scripts/bench_layers.py --device "$DEVICE" --size "${SIZES[-1]}" --runs "$RUNS_TIMED" --batch 1 | tee "$RUNS/gpu_layers.json"
    [ -n "$TOY" ] || "$PYTHON" scripts/bench_layers.py --device "$DEVICE" --batch 1 --batch 8 --batch 32 | tee "$RUNS/gpu_layers.json"
}

case ${1:-} in
    train) train "${2:-}" ;;
    evaluate) evaluate ;;
    cin) cin "${2:-}" ;;
    in) instance "${2:-}" ;;
    ablation) ablation "${2:-}" ;;
    sizes) sizes ;;
    test) run_tests ;;
    bench) bench ;;
    all) train "${2:-}" && cin "${2:-}" && instance "${2:-}" && ablation "${2:-}" && evaluate && sizes && run_tests && bench ;;
    *) sed -n '2,/^set /{/^#/p}' "$0" && exit 2 ;;
esac
