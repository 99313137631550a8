"""Options that people know from other programs: other names of ours, and what there is in place of the rest.

Without this table a short one would be read as letters (`-st` as `-s t`, `-ot` as the output file `t`, `-hff`
as `-h`), and of a long one another that only looks like it would be offered.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from specx.backends.errors import UsageError

__all__ = ["own_name"]

SAME = {
    "-jf": "--json-schema-file",
    "-hfr": "--hf-repo",
    "--output-file": "--output",
    "--spec-draft-hf": "--hf-repo-draft",
    "--spec-draft-ngl": "--gpu-layers-draft",
    "--spec-draft-threads": "--threads-draft",
    "--spec-draft-threads-batch": "--threads-batch-draft",
    "--spec-draft-type-k": "--cache-type-k-draft",
    "--spec-draft-type-v": "--cache-type-v-draft",
    "--spec-draft-p-min": "--draft-p-min",
    "--draft-p-split": "--draft-p-min",
    "--spec-draft-p-split": "--draft-p-min",
}
"""llama.cpp's other names of options."""

INSTEAD = (
    (
        "leave it out: the model's own chat template is always used",
        "--jinja",
    ),
    (
        "leave it out: specx always has it so",
        "-cb --cont-batching --warmup --repack --cache-prompt -kvo --kv-offload --op-offload --metrics "
        "--props --slots --enable-prefix-caching --mmproj-auto --no-mmproj --no-mmproj-auto --no-webui "
        "--no-ui --nobrowser",
    ),
    (
        "leave it out: there is nothing that it would switch off",
        "--no-warmup --simple-io -mli --multiline-input --no-host -dt --defrag-thold -bs "
        "--backend-sampling --check-tensors --trust-remote-code",
    ),
    (
        "leave it out: `specx complete` answers once, with --chat in the chat template; `specx chat` talks",
        "-st --single-turn -cnv --conversation -no-cnv --no-conversation -i --interactive -if "
        "--interactive-first -ins --instruct --in-prefix --in-suffix --in-prefix-bos",
    ),
    (
        "leave it out: color goes by the terminal, and NO_COLOR turns it off",
        "-co --color",
    ),
    (
        "what other programs write there is left out; --log-file FILE keeps llama.cpp's own messages",
        "--log-disable -lv --verbosity --log-verbosity --log-colors --log-prefix --no-log-prefix "
        "--log-timestamps --no-log-timestamps --log-jsonl --no-log-jsonl --log-verbose --log-prompts-dir",
    ),
    (
        "the model's own form is used; a text that is in a form already goes through `specx complete --raw`",
        "--chat-template --chat-template-file --skip-chat-parsing --prefill-assistant "
        "--no-prefill-assistant --no-jinja",
    ),
    (
        "requests to `specx serve` set that, in chat_template_kwargs and reasoning_effort",
        "--chat-template-kwargs -rea --reasoning --reasoning-format --reasoning-effort --reasoning-budget "
        "--reasoning-budget-message --think --hidethinking",
    ),
    (
        "adapters and control vectors are not loaded: llama-export-lora merges an adapter into its model",
        "--lora --lora-scaled --lora-init-without-apply --control-vector --control-vector-scaled "
        "--control-vector-layer-range --adapter-path",
    ),
    (
        "positions are scaled as the model's header says; gguf_set_metadata.py of llama.cpp changes a copy",
        "--rope-scaling --rope-scale --rope-freq-base --rope-freq-scale --yarn-orig-ctx --yarn-ext-factor "
        "--yarn-attn-factor --yarn-beta-slow --yarn-beta-fast -gan --grp-attn-n -gaw --grp-attn-w",
    ),
    (
        "the header is taken as it is; gguf_set_metadata.py of llama.cpp changes a copy",
        "--override-kv",
    ),
    (
        "there are --temp, --top-k, --top-p, --min-p, --typical-p and the penalties",
        "--samplers --sampler-seq --sampling-seq --top-nsigma --top-n-sigma --xtc-probability "
        "--xtc-threshold --dry-multiplier --dry-base --dry-allowed-length --dry-penalty-last-n "
        "--dry-sequence-breaker --adaptive-target --adaptive-decay --dynatemp-range --dynatemp-exp "
        "--mirostat --mirostat-lr --mirostat-ent",
    ),
    (
        "what drafts is chosen by measurements; --drafter none, suffix, recycle or model chooses otherwise",
        "--spec-type --spec-default --spec-autotune --speculative-config --spec-ngram-size-n "
        "--spec-ngram-size-m --spec-ngram-min-hits --spec-ngram-mod-n-min --spec-ngram-mod-n-max "
        "--spec-ngram-mod-n-match --spec-ngram-simple-size-n --spec-ngram-simple-size-m "
        "--spec-ngram-simple-min-hits --spec-ngram-map-k-size-n --spec-ngram-map-k-size-m "
        "--spec-ngram-map-k-min-hits --spec-ngram-map-k4v-size-n --spec-ngram-map-k4v-size-m "
        "--spec-ngram-map-k4v-min-hits --mtp --eagle3 --dflash",
    ),
    (
        "leave it out: drafts are also searched in earlier answers, and in what `specx cache add` adds",
        "-lcs --lookup-cache-static -lcd --lookup-cache-dynamic",
    ),
    (
        "it is called -md here",
        "--draft-model --speculative-model",
    ),
    (
        "it is called --draft-max here",
        "--num-draft-tokens --num-speculative-tokens",
    ),
    (
        "it is called -n here",
        "--max-tokens --max-new-tokens",
    ),
    (
        "it is called -c here",
        "--context-length --max-model-len --max-kv-size --num-ctx",
    ),
    (
        "it is called -np here (`serve`, `batch`)",
        "--max-num-seqs",
    ),
    (
        "it is called --alias here (`serve`)",
        "--served-model-name",
    ),
    (
        "-t says how many threads; taskset and numactl say on which processors",
        "-C --cpu-mask -Cr --cpu-range --cpu-strict --prio --poll -Cb --cpu-mask-batch -Crb "
        "--cpu-range-batch --cpu-strict-batch --prio-batch --poll-batch -Cd --cpu-mask-draft -Crd "
        "--cpu-range-draft --numa",
    ),
    (
        "-ngl says how many layers are on GPUs, and CUDA_VISIBLE_DEVICES on which; `specx plan` shows it",
        "-dev --device -devd --device-draft --spec-draft-device -sm --split-mode -ts --tensor-split -mg "
        "--main-gpu -ot --override-tensor -otd --override-tensor-draft -cmoe --cpu-moe -ncmoe --n-cpu-moe "
        "-cmoed -ncmoed -ncffn --n-cpu-ffn -nkvo --no-kv-offload --no-op-offload --tensor-parallel-size "
        "--gpu-memory-utilization --gpu",
    ),
    (
        "leave it out: specx fits the context and the layers to the memory by itself; `specx plan` shows it",
        "-fit --fit -fitp --fit-print -fitt --fit-target -fitc --fit-ctx",
    ),
    (
        "`specx probe` lists them",
        "--list-devices",
    ),
    (
        "`specx show --list` lists them",
        "-cl --cache-list",
    ),
    (
        "`specx --version` says it",
        "--version",
    ),
    (
        "HF_HUB_OFFLINE=1 keeps specx off the network",
        "--offline",
    ),
    (
        "name the file: -hf USER/REPO/FILE.gguf",
        "-hff --hf-file",
    ),
    (
        "HF_TOKEN holds it",
        "-hft --hf-token",
    ),
    (
        "`specx pull` fetches the address of a file on Hugging Face",
        "-mu --model-url -dr --docker-repo",
    ),
    (
        "--no-mmap reads the file, and --mlock keeps it in memory",
        "-lm --load-mode -lzm --lazy-mode -dio --direct-io",
    ),
    (
        'the shell reads it: -sys "$(cat FILE)"',
        "-sysf --system-prompt-file",
    ),
    (
        "prompts are UTF-8 text, and go in with -f",
        "-bf --binary-file --in-file",
    ),
    (
        "`specx complete --display-prompt` writes the prompt",
        "--verbose-prompt",
    ),
    (
        "leave it out: without -e nothing is escaped",
        "--no-escape",
    ),
    (
        "control tokens are not written; --parse-special lets those in messages be such",
        "-sp --special",
    ),
    (
        "it ends after --idle without a request",
        "--keepalive --sleep-idle-seconds --ttl",
    ),
    (
        "where texts lie is decided from what is bit-identical and what pays",
        "-kvu --kv-unified -no-kvu --no-kv-unified",
    ),
    (
        "specx reads and writes text alone",
        "-mm --mmproj -mmu --mmproj-url --image --audio --video",
    ),
    (
        "specx writes text; embeddings and rankings are for llama-server",
        "--embedding --embeddings --rerank --reranking --pooling --attention",
    ),
    (
        "a proxy before it, such as Caddy or nginx, speaks TLS and gives addresses a beginning",
        "--ssl-key-file --ssl-cert-file --api-prefix",
    ),
    (
        "`specx serve` answers programs, and has no pages and no tools of its own",
        "--ui --webui --path --tools -ag --agent --ui-config --webui-config --ui-mcp-proxy "
        "--webui-mcp-proxy --mcp-servers-config",
    ),
    (
        "a server has one model: start one for each, with a --port or a --socket of its own",
        "--models-dir --models-preset --models-max --models-autoload --no-models-autoload",
    ),
    (
        "leave it out: addresses are few, and none of them tells texts of others",
        "--threads-http --no-slots",
    ),
    (
        "`specx complete` and `specx chat` take a prompt; `specx bench --synthetic pp512,tg128` has none",
        "-p -pg --n-prompt --n-gen --n-depth",
    ),
    (
        "-ctk and -ctv choose the types of the KV cache",
        "--kv-bits --kv-cache-dtype",
    ),
    (
        "the file says its types; `specx pull ORG/REPO:QUANT` fetches another",
        "--dtype --quantization",
    ),
    (
        "--kernels says whose kernels run; --no-packed-copy keeps rearranged weights off the disk",
        "-nr --no-repack",
    ),
    (
        "-np 1 writes one text at a time",
        "-nocb --no-cont-batching",
    ),
    (
        "speed is told at the end; -q leaves it out, and --no-stats in a chat",
        "--perf --show-timings --no-perf --no-show-timings",
    ),
    (
        "a loaded model keeps what it has read by itself; `specx serve --background` keeps one loaded",
        "--prompt-cache --prompt-cache-all --prompt-cache-ro --slot-save-path -cram --cache-ram -ctxcp "
        "--ctx-checkpoints --swa-checkpoints --cache-reuse --no-cache-prompt -sps "
        "--slot-prompt-similarity",
    ),
)
"""What there is in place of options of llama.cpp, llamafile, Ollama, LM Studio, mlx-lm and vLLM."""

HINTS = {name: hint for hint, names in INSTEAD for name in names.split()}
LETTERS = re.compile(r"--?[A-Za-z][A-Za-z-]+")


def own_name(name: str, own: Collection[str], commands: Mapping[str, Any]) -> str:
    """What a command calls the option `name`; itself where it may be anything.

    Args:
        name: as it was typed.
        own: the options of the command that it was given to.
        commands: by their names; looked into only for an option that is unknown.

    Raises:
        UsageError: there is something else in its place, or another command has it.
    """
    if name in own:
        return name
    hyphened = name.replace("_", "-") if name.startswith("--") else name  # llama.cpp reads --top_k so
    here = SAME.get(hyphened, hyphened)
    if here in own:
        return here
    if (hint := HINTS.get(hyphened)) is not None:
        raise UsageError(f"no such option: {name}", hint)
    if LETTERS.fullmatch(here) and (takers := _takers(here, commands)):
        known = ", ".join(f"`specx {taker}`" for taker in takers)
        raise UsageError(f"no such option: {name}", f"it is an option of {known}")
    return name


def _takers(name: str, commands: Mapping[str, Any]) -> list[str]:
    """Commands that have the option `name`."""
    every: dict[str, Any] = {}
    for first, command in commands.items():
        below = getattr(command, "commands", {})
        every |= {f"{first} {second}": each for second, each in below.items()} or {first: command}
    return [
        called
        for called, command in every.items()
        if any(name in parameter.opts for parameter in command.params)
    ]
