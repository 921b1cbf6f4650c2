#!/bin/sh
# datafree.sh [NIBBLE]: what stories3m-datafree.json needs, then the experiment. Run in the repository's folder, with ../shared/assets beside it.
set -eu
nibble=${1:-./nibble}
text=../shared/assets/datasets/pretrain/tinystories_1500.txt
mkdir -p runs
head -c 1250000 "$text" >runs/tinystories-train.txt
tail -c +1250001 "$text" >runs/tinystories-held-out.txt
"$nibble" distill-data ../shared/assets/models/stories3M/hf --out runs/stories3m-own.jsonl --samples 1200 --max-tokens 256 --precision f32 --overwrite
"$nibble" compare configs/experiments/stories3m-datafree.json
