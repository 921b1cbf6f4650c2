#!/bin/bash
# run.sh BUILD: every comparison with transformers, PEFT and bitsandbytes. PEERS_PYTHON (python3) needs those modules; without
# one of them nothing is run, and the reason is printed.
set -u
build=${1:?usage: run.sh BUILD}
python=${PEERS_PYTHON:-python3}
here=$(cd "$(dirname "$0")" && pwd)

if ! missing=$("$python" -c '
import importlib.util
print(" ".join(m for m in ("torch", "transformers", "peft", "bitsandbytes", "safetensors") if importlib.util.find_spec(m) is None))'); then
    echo "SKIP peers: $python does not run"
    exit 0
fi
if [ -n "$missing" ]; then
    echo "SKIP peers: $python has no module $missing"
    exit 0
fi

failed=0
for name in forward_parity gradients qat_gradients training_parity peft_roundtrip export_check packed_formats gptq_reference jinja_renders chat_parity suite_parity; do
    echo "== $name"
    "$python" "$here/$name.py" "$build" || failed=$((failed + 1))
done
for name in tokenizer_vectors tokenizer_models; do
    if "$python" -c 'import tokenizers, sentencepiece, tiktoken' 2>/dev/null; then
        echo "== $name"
        "$python" "$here/$name.py" "$build" || failed=$((failed + 1))
    else
        echo "SKIP $name: $python has no module tokenizers, sentencepiece or tiktoken"
    fi
done
if "$python" -c 'import gguf, xxhash' 2>/dev/null; then
    for name in gguf_files ggml_blocks; do
        echo "== $name"
        "$python" "$here/$name.py" "$build" || failed=$((failed + 1))
    done
else
    echo "SKIP gguf_files and ggml_blocks: $python has no module gguf or xxhash"
fi
if "$python" -c 'import gguf, llama_cpp' 2>/dev/null; then
    echo "== gguf_llamacpp"
    "$python" "$here/gguf_llamacpp.py" "$build" || failed=$((failed + 1))
else
    echo "SKIP gguf_llamacpp: $python has no module gguf or llama_cpp"
fi
echo "$failed of the comparisons failed"
exit $((failed > 0))
