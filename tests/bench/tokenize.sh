#!/bin/bash
# tokenize.sh [TEXT]: encoding throughput beside the `tokenizers` package on one core, for a Llama-3-style and a Llama-2-style
# tokenizer of the assets. PEERS_PYTHON (python3) needs the package. Wants the machine for itself.
set -eu
cd "$(dirname "$0")/../.."
assets=../shared/assets
text=${1:-$assets/datasets/pretrain/wikitext2_raw_test.txt}
python=${PEERS_PYTHON:-python3}
for file in "$text" "$assets/tokenizers/llama3/tokenizer.model" "$assets/tokenizers/tinyllama/tokenizer.json"; do
    [[ -e $file ]] || { echo "SKIP tokenize: $file is not there"; exit 0; }
done
"$python" -c 'import tokenizers' 2>/dev/null || { echo "SKIP tokenize: $python has no module tokenizers"; exit 0; }
make -s build/release/libnibble.a
mkdir -p build/release/bench
program=build/release/bench/tokenize
${CC:-gcc} -std=gnu17 -D_GNU_SOURCE= -I. -O2 tests/bench/tokenize.c build/release/libnibble.a -lcjson -lzstd -lz -lpcre2-8 -lutf8proc -lxxhash \
    -lm -pthread -o $program
exec "$python" tests/bench/tokenize.py $program "$text" $assets/tokenizers/llama3/tokenizer.model $assets/tokenizers/tinyllama/tokenizer.json
