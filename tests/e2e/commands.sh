#!/bin/bash
# generate, eval, plan, inspect and bench from outside: on a tiny model of random weights, and on real ones where they are. TAP.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh
assets=$PWD/../shared/assets

is_json() { # one valid JSON object on stdout
    if command -v python3 >/dev/null; then
        python3 -c 'import json,sys; sys.exit(not isinstance(json.load(open(sys.argv[1])), dict))' "$work/out"
    else
        grep -q '^{.*}$' "$work/out"
    fi
}
# value KEY: the first number or word after "KEY": in the JSON of $work/out
value() { sed -nE "s/.*\"$1\": \"?([^,\"}]+).*/\1/p" "$work/out" | head -n 1; }
near() { awk -v a="$1" -v b="$2" -v t="$3" 'BEGIN { d = a - b; if (d < 0) d = -d; exit !(d <= t * (b < 0 ? -b : b)) }'; }

command_help() {
    run 0 "$1" --help && out_has "usage: nibble $1" && out_has "example:" && grep -q -- "^  nibble $1 " "$work/out"
}
for command in generate eval plan inspect bench; do check "$command --help has an example" command_help "$command"; done

# ---- a model, data, a run ----------------------------------------------------------------------------------------------
cat >"$work/tiny.json" <<'END'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 64,
 "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
 "vocab_size": 320, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
 "bos_token_id": 256, "eos_token_id": 257, "tie_word_embeddings": false, "initializer_range": 0.2,
 "torch_dtype": "float32"}
END
tiny=$work/tiny
"$nibble" synth --arch "$work/tiny.json" --out "$tiny" --dtype f32 2>/dev/null || exit 2
for word in red=apple blue=sky green=grass white=snow; do
    echo "{\"prompt\": \"${word%=*} is \", \"completion\": \"${word#*=}\"}"
done >"$work/pairs.jsonl"
cat >"$work/run.json" <<END
{"model": {"path": "$tiny"}, "method": "lora", "precision": "f32", "lora": {"rank": 16, "alpha": 32},
 "data": {"path": "$work/pairs.jsonl", "eval_fraction": 0},
 "train": {"steps": 120, "lr": 1e-2, "schedule": "constant", "warmup": 0, "micro_batch_tokens": 128, "gradient_accumulation": 1,
           "samples": 0, "eval_every": 0, "save_every": 60, "save_minutes": 0},
 "output": {"path": "$work/run"}}
END
trained() { run 0 train "$work/run.json" && [[ -s $work/run/adapter/adapter_model.safetensors ]]; }
check "a tiny model learns four answers" trained

# ---- generate ----------------------------------------------------------------------------------------------------------
generate_repeats() {
    run 0 generate "$tiny" --prompt "red is " --max-tokens 12 --temperature 1 --seed 5 --json && is_json || return 1
    local ids
    ids=$(sed -E 's/.*"ids": (\[[^]]*\]).*/\1/' "$work/out")
    run 0 generate "$tiny" --prompt "red is " --max-tokens 12 --temperature 1 --seed 5 --threads 1 --json || return 1
    [[ $(sed -E 's/.*"ids": (\[[^]]*\]).*/\1/' "$work/out") == "$ids" ]] || return 1
    run 0 generate "$tiny" --prompt "red is " --max-tokens 12 --temperature 1 --seed 6 --json || return 1
    [[ $(sed -E 's/.*"ids": (\[[^]]*\]).*/\1/' "$work/out") != "$ids" ]]
}
check "a draw depends on the seed and not on the threads" generate_repeats
answers() {
    run 0 generate "$tiny" --adapter "$work/run/adapter" --prompt "green is " --precision f32 --max-tokens 20 || return 1
    [[ $(cat "$work/out") == grass ]] && err_has "stop: end"
}
check "the adapter's answer is streamed and ends at the end" answers
generate_file() {
    printf 'green is ' >"$work/prompt.txt"
    run 0 generate "$tiny" --adapter "$work/run/adapter" --prompt-file "$work/prompt.txt" --precision f32 && out_has grass
}
check "a prompt from a file" generate_file
generate_context() {
    run 0 generate "$tiny" --prompt "$(printf 'a%.0s' {1..120})" --max-tokens 500 --precision f32 --json && is_json &&
        [[ $(value stop) == context || $(value stop) == end ]]
}
check "the context ends an answer" generate_context
generate_quant() {
    local type
    for type in none nf4 fp4 int8 int4; do
        run 0 generate "$tiny" --prompt "x" --max-tokens 3 --quant $type --json && is_json || return 1
    done
    run 0 generate "$tiny" --prompt "x" --max-tokens 3 --quant nf4 --no-double-quant
}
check "generate quantizes on load" generate_quant
small_head() {
    run 0 generate "$tiny" --prompt "red is " --max-tokens 3 --head q8_0 --json --device cpu && is_json || return 1
    run 0 eval "$tiny" --data "$work/pairs.jsonl" --head q8_0 --device cpu --json && is_json
}
check "the output head in Q8_0" small_head
check "generate: a head that there is not" fails_with "want none or q8_0" generate "$tiny" --prompt x --head q4_0
interrupted() { # after the first character: what is there stays, status 130
    sed 's/"max_position_embeddings": 128/"max_position_embeddings": 100000/' "$work/tiny.json" >"$work/long.json"
    "$nibble" synth --arch "$work/long.json" --out "$work/long" 2>/dev/null && mkfifo "$work/pipe" || return 1
    "$nibble" generate "$work/long" --prompt "x" --max-tokens 99000 >"$work/pipe" 2>"$work/err" &
    local pid=$! status
    exec 3<"$work/pipe"
    IFS= read -r -n 1 -t 60 -u 3 _
    kill -INT $pid
    cat <&3 >"$work/out"
    exec 3<&-
    wait $pid
    status=$?
    ((status == 130)) && err_has "stop: interrupted"
}
check "SIGINT ends an answer politely" interrupted
check "a prompt that is too long" run 1 generate "$tiny" --prompt "$(printf 'a%.0s' {1..200})"
check "generate wants a prompt" fails_with "--prompt TEXT" generate "$tiny"
check "generate: greedy with --top-p" fails_with "give --temperature" generate "$tiny" --prompt x --top-p 0.9
check "generate: unknown template" fails_with "not a built-in template" generate "$tiny" --prompt x --template chatm
check "generate: --system without a template" fails_with "--system" generate "$tiny" --prompt x --system y
check "generate: a run folder has a hint" fails_with "--adapter $work/run/adapter" generate "$work/run" --prompt x
check "generate: a run folder as adapter has a hint" fails_with "--adapter $work/run/adapter" generate "$tiny" --adapter "$work/run" --prompt x
newline_first() {
    "$nibble" generate "$tiny" --prompt "red is " --max-tokens 3 --device cpu >"$work/both" 2>&1 && grep -q '^nibble: 3 tokens' "$work/both"
}
check "generate: the text's line ends before the figures begin" newline_first
check "generate: unknown quantization" fails_with "--quant" generate "$tiny" --prompt x --quant nf5

# ---- eval --------------------------------------------------------------------------------------------------------------
exact() {
    run 0 eval "$tiny" --data "$work/pairs.jsonl" --exact-match --precision f32 --json && is_json && [[ $(value matched) == 0 ]] ||
        return 1
    run 0 eval "$tiny" --adapter "$work/run/adapter" --data "$work/pairs.jsonl" --exact-match --precision f32 --json && is_json &&
        [[ $(value exact_match) == 1 && $(value matched) == 4 && $(value scored) == 4 ]]
}
check "exact match is 0 before training and 1 after it" exact
mistakes() {
    run 0 eval "$tiny" --data "$work/pairs.jsonl" --exact-match --limit 2 --show 1 && out_has "0 of 2" && out_has "--- want" &&
        [[ $(grep -c '^--- record' "$work/out") == 1 ]]
}
check "--limit and --show" mistakes
loss_drops() {
    run 0 eval "$tiny" --data "$work/pairs.jsonl" --precision f32 --json && is_json || return 1
    local before
    before=$(value loss)
    run 0 eval "$tiny" --adapter "$work/run/adapter" --data "$work/pairs.jsonl" --precision f32 --json || return 1
    [[ $(value tokens) == $((5 + 3 + 5 + 4 + 4)) ]] && # the answers' bytes and an end each
        awk -v a="$(value loss)" -v b="$before" 'BEGIN { exit !(b > 5 && a < 0.2) }'
}
check "the loss counts answers and drops with the adapter" loss_drops

windows() { # overlapping windows score every token but the first once; one window over all equals no window
    printf 'The quick brown fox jumps over the lazy dog, and then it sleeps.' >"$work/text.txt"
    local tokens=63 whole # 64 bytes; no BOS, so the first has nothing in front of it
    run 0 eval "$tiny" --data "$work/text.txt" --window 128 --precision f32 --json && is_json && [[ $(value tokens) == "$tokens" ]] ||
        return 1
    whole=$(value loss)
    run 0 eval "$tiny" --data "$work/text.txt" --window 16 --stride 5 --precision f32 --json && [[ $(value tokens) == "$tokens" ]] ||
        return 1
    run 0 eval "$tiny" --data "$work/text.txt" --max-length 128 --no-document-eos --precision f32 --json || return 1
    [[ $(value tokens) == "$tokens" ]] && near "$(value loss)" "$whole" 1e-6 || return 1 # the same rows in other chunks: FP32 sums
    run 0 eval "$tiny" --data "$work/text.txt" --max-length 128 --precision f32 --json && [[ $(value tokens) == $((tokens + 1)) ]]
}
check "windows score every token once" windows
logits() { # 8 bytes, a header, 3 * 320 numbers
    run 0 eval "$tiny" --logits "$work/logits.safetensors" --ids 1,2,3 --precision f32 && [[ ! -s $work/out ]] || return 1
    local header
    header=$(od -An -t u8 -N 8 "$work/logits.safetensors")
    (($(stat -c %s "$work/logits.safetensors") == 8 + header + 3 * 320 * 4))
}
check "--logits writes every row" logits
prequantized() {
    run 0 quantize "$tiny" --out "$work/nf4" || return 1
    run 0 eval "$tiny" --data "$work/text.txt" --quant nf4 --json || return 1
    local loss
    loss=$(value loss)
    run 0 eval "$work/nf4" --data "$work/text.txt" --json && [[ $(value loss) == "$loss" ]]
}
check "a pre-quantized folder gives the loss of --quant nf4, bit for bit" prequantized
check "eval: quantizing what is quantized" fails_with "quantized already" eval "$work/nf4" --data "$work/text.txt" --quant fp4
check "eval: --suite without data" fails_with "where is its data" eval "$tiny" --suite mmlu
check "eval: nothing to do" fails_with "--data FILE" eval "$tiny"
disjoint() { # 64 bytes: 8 windows of 8 leave out 8 first tokens; 7 windows of 9 leave out 7, and the last token stands alone
    run 0 eval "$tiny" --data "$work/text.txt" --window 8 --stride 8 --json && [[ $(value tokens) == 56 ]] || return 1
    run 0 eval "$tiny" --data "$work/text.txt" --window 9 --stride 9 --json && [[ $(value tokens) == 56 ]]
}
check "eval: windows that do not overlap" disjoint
check "eval: --stride of more than a window" fails_with "--stride" eval "$tiny" --data "$work/text.txt" --window 8 --stride 9
check "eval: a window of one token" fails_with "--window" eval "$tiny" --data "$work/text.txt" --window 1
check "eval: windows over records" fails_with "--max-length" eval "$tiny" --data "$work/pairs.jsonl" --window 8
check "eval: exact match of plain text" fails_with "plain text" eval "$tiny" --data "$work/text.txt" --exact-match
check "eval: --limit alone" fails_with "--exact-match" eval "$tiny" --data "$work/pairs.jsonl" --limit 3
check "eval: an id that is none" fails_with "vocabulary" eval "$tiny" --logits "$work/x" --ids 1,320
check "eval: ids that are none" fails_with "--ids" eval "$tiny" --logits "$work/x" --ids 1,,2

# ---- plan --------------------------------------------------------------------------------------------------------------
plans() {
    local file
    for file in configs/train/*.json; do
        run 0 plan "$file" --json && is_json && [[ $(value fits) == true || $(value fits) == false ]] || return 1
    done
}
check "every config in configs/train has a plan" plans
plan_small() {
    run 0 plan configs/train/llama-3.1-8b.json --memory 2GiB && out_has "does not fit" && out_has "none fits" || return 1
    run 0 plan configs/train/llama-3.1-8b.json --memory 64GiB && grep -q '^fits' "$work/out" && out_has "trained numbers       41943040"
}
check "a plan says whether a run fits" plan_small
plan_search() { # what plan calls the largest fits, and the next size does not
    local config=configs/train/qwen2.5-0.5b.json most
    run 0 plan $config --memory 2GiB --json || return 1
    most=$(sed -nE 's/.*"layers": ([0-9]+).*/\1/p' "$work/out")
    ((most > 0)) || return 1
    run 0 plan $config --memory 2GiB --set train.micro_batch_tokens="$most" --set train.recompute=layers --json || return 1
    [[ $(value fits) == true ]] || return 1
    run 0 plan $config --memory 2GiB --set train.micro_batch_tokens=$((2 * most)) --set train.recompute=layers --json &&
        [[ $(value fits) == false ]]
}
check "the largest micro-batch is the largest" plan_search
check "plan: a size that is none" fails_with "is not a size" plan configs/train/tinyllama.json --memory lots
check "plan: no shape" fails_with "--arch FILE" plan "$work/run.json" --set model.path="$work/none"

# ---- inspect -----------------------------------------------------------------------------------------------------------
inspect_all() {
    local path
    for path in "$tiny" "$tiny/model.safetensors" "$work/nf4" "$work/run" "$work/run/adapter" "$work/run/checkpoints/step-120"; do
        run 0 inspect "$path" && out_has kind && run 0 inspect "$path" --json && is_json || return 1
    done
}
check "inspect knows models, files, quantized folders, runs, adapters and checkpoints" inspect_all
inspect_counts() {
    run 0 inspect "$tiny" --json && [[ $(value parameters) == 139584 && $(value kind) == model ]] || return 1
    run 0 inspect "$work/nf4" && out_has "bitsandbytes nf4, double quantization" || return 1
    run 0 inspect "$work/run/adapter" --json && [[ $(value modules) == 14 ]] || return 1
    run 0 inspect "$work/run/checkpoints/step-60" --json && [[ $(value step) == 60 ]] || return 1
    run 0 inspect "$tiny" --tensors && [[ $(grep -c '^  model\.layers' "$work/out") == 18 ]]
}
check "inspect counts" inspect_counts
inspect_tokenizers() { # FILE, as what, what is said of it and its size
    local folder=$work/tokenizers file as words size
    while IFS='|' read -r file as words size; do
        rm -rf "$folder" && mkdir "$folder" && cp "$tiny/config.json" "$folder" && cp "tests/golden/$file" "$folder/$as" || return 1
        run 0 inspect "$folder" && out_has "$words" || return 1
        rm "$folder/config.json"
        run 0 inspect "$folder" --json && [[ $(value kind) == tokenizer && $(value tokenizer_vocabulary) == "$size" ]] || return 1
    done <<'END'
tokenizer_spm_bpe.model|tokenizer.model|SentencePiece tokenizer.model, BPE|440
tokenizer_spm_unigram.model|tokenizer.model|SentencePiece tokenizer.model, unigram|124
tokenizer_tiktoken.model|tokenizer.model|tiktoken tokenizer.model|734
tokenizer_qwen2_style.json|tokenizer.json|tokenizer.json|480
END
    rm -rf "$folder" && mkdir "$folder" && echo '{"tokenizer_class": "GPT2Tokenizer"}' >"$folder/tokenizer_config.json"
    echo '{"a": 0, "b": 1, "ab": 2}' >"$folder/vocab.json" && echo 'a b' >"$folder/merges.txt"
    run 0 inspect "$folder" && out_has "vocab.json with merges.txt" && run 0 inspect "$folder" --json && [[ $(value tokenizer_vocabulary) == 3 ]]
}
check "inspect says which tokenizer a folder has, and its size" inspect_tokenizers
inspect_damage() {
    cp -r "$work/run" "$work/damaged"
    printf x | dd of="$work/damaged/checkpoints/step-120/params.zst" bs=1 seek=100 conv=notrunc 2>/dev/null
    run 0 inspect "$work/damaged" && grep -q 'step 60 .*valid' "$work/out" && ! grep -q 'step 120 .*valid$' "$work/out" || return 1
    run 1 inspect "$work/damaged/checkpoints/step-120"
}
check "inspect finds a damaged checkpoint" inspect_damage
inspect_examples() { # what is trained stands in brackets, its end with it
    run 0 inspect --data "$work/run.json" --count 4 && out_has "red is [[apple" && out_has "]]" && out_has "packing fill" || return 1
    run 0 inspect --data "$work/run.json" --count 2 --json && is_json && [[ $(value trained_tokens) == 21 ]]
}
check "inspect --data marks what is trained" inspect_examples
inspect_controls() { # data cannot write to the terminal: no escape sequence and no line end of another system goes through
    printf '{"prompt": "\\u001b[31mred\\r", "completion": "\\u009b2J, gone\\tnot"}\n' >"$work/controls.jsonl"
    run 0 inspect --data "$work/run.json" --set data.path="$work/controls.jsonl" && out_has '\x1B[31mred\x0D[[\x9B2J, gone'$'\t''not' || return 1
    run 0 inspect --data "$work/run.json" --set data.path="$work/controls.jsonl" --json && is_json && out_has '\u001b[31mred'
}
check "inspect --data shows control characters as such" inspect_controls
inspect_reasons() {
    printf '{"text": "a"}\n{"text": 7}\n[1]\n{"text": 8}\n{"text": "b"}\n' >"$work/reasons.jsonl"
    run 0 inspect --data "$work/run.json" --set data.path="$work/reasons.jsonl" --set data.on_error=skip --json && is_json &&
        [[ $(value skipped_bad) == 3 ]] && out_has 'line 2: text: want a string, got an integer (and 1 more like it)", "' || return 1
    run 0 inspect --data "$work/run.json" --set data.path="$work/reasons.jsonl" --set data.on_error=skip && out_has "line 3: a record: want an object" && err_has "3 bad records were skipped"
}
check "inspect --data counts what was skipped by reason" inspect_reasons
inspect_ends() {
    echo '{"messages": [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "It is."}]}' >"$work/ends.jsonl"
    run 0 inspect --data "$work/run.json" --set data.path="$work/ends.jsonl" --set data.template=llama3 && err_has "<|eot_id|>, which is no token of this model" || return 1
    run 0 inspect --data "$work/run.json" --set data.path="$work/ends.jsonl" --set data.template=zephyr && err_lacks "no token of this model"
}
check "a built-in template whose end of turn is no token of the model is warned of" inspect_ends
check "inspect: data in a config's place" fails_with "--set data.path=$work/ends.jsonl" inspect --data "$work/ends.jsonl"
inspect_one_step() { # all four records are in every step of this run, in another order in another epoch
    run 0 inspect --step 1 "$work/run" && [[ $(grep -c '^--- sequence' "$work/out") == 4 ]] || return 1
    run 0 inspect --step 120 "$work/run" --json && is_json && [[ $(value epoch) == 119 ]]
}
check "inspect --step shows the examples of a step" inspect_one_step
inspect_other_data() {
    local data
    data=$(sed -nE 's/^ *"path": "(.*jsonl)".*/\1/p' "$work/run/config.json" | head -n 1)
    cp "$data" "$work/data.kept" && sed -i '1s/apple/apples/' "$data" && ! cmp -s "$data" "$work/data.kept" || return 1
    run 1 inspect --step 1 "$work/run" && err_has "not what they were in the run" || return 1
    cp "$work/data.kept" "$data" && run 0 inspect --step 1 "$work/run" && err_lacks "not what they were"
}
check "inspect --step shows nothing where the data have changed since" inspect_other_data
check "inspect: a step that is none" fails_with "1 to 120" inspect --step 121 "$work/run"
check "inspect: nothing" fails_with "want a PATH" inspect
check "inspect: --tensors of data" fails_with "--tensors" inspect --data "$work/run.json" --tensors
mkdir "$work/empty"
check "inspect: a folder of nothing" fails_with "is no model" inspect "$work/empty"

# ---- bench -------------------------------------------------------------------------------------------------------------
has_unit() { "$nibble" bench cpu --json 2>/dev/null | grep -qF '"avx2": true' && [[ ${NIBBLE_CPU:-} != ref ]]; }
bench_all() {
    run 0 bench cpu && out_has "used by each operation" && run 0 bench cpu --json && is_json || return 1
    run 0 bench ceiling --json && is_json || return 1
    ! has_unit || out_has '"unit": {' || return 1
    run 0 bench step "$tiny" --tokens 64 --steps 1 --json && is_json && [[ $(value method) == qlora ]] || return 1
    run 0 bench generate --arch "$work/tiny.json" --tokens 20 --steps 1 --sequences 3 && out_has "3 sequences" || return 1
    run 0 bench generate --arch "$work/tiny.json" --tokens 20 --steps 1 --json && is_json && [[ $(value threads) -ge 1 ]] || return 1
    TMPDIR=$work run 0 bench step --arch "$work/tiny.json" --tokens 64 --steps 1 --set method=full && out_has "tokens/s" || return 1
    [[ -z $(find "$work" -maxdepth 1 -name 'nibble-bench-*') ]]
}
check "bench measures, and leaves nothing behind" bench_all
linear_keys() { # PATTERN...: each is somewhere in the JSON
    is_json || return 1
    for pattern; do out_has "$pattern" || return 1; done
}
bench_linears() {
    run 0 bench linear --arch "$work/tiny.json" --tokens 32 --steps 1 --rank 4 --threads 2 --json || return 1
    linear_keys '"threads": 2' '"name": "q,k,v", "tokens": 32, "in": 64, "out": [64, 32, 32], "pass": "forward"' \
        '"name": "gate,up", "tokens": 32, "in": 64, "out": [192, 192], "pass": "backward"' '"weight": "bf16", "rank": 0' '"weight": "nf4", ' \
        '"weight": "nf4+dq", ' '"weight": "nf4+dq, rank 4", "rank": 4' '"fraction": ' '"of_bf16": ' '"cold_bytes": ' || return 1
    ! has_unit || out_has '"of_unit": ' || return 1
    run 0 bench linear --arch "$work/tiny.json" --tokens 7 --steps 2 --set quant.type=int8 --json &&
        linear_keys '"weight": "int8", ' && ! grep -q nf4 "$work/out" || return 1
    NIBBLE_CPU=ref run 0 bench linear --arch "$work/tiny.json" --tokens 2 --steps 1 &&
        out_has "ref, " && out_has "of dense F32 products" && out_has "down 192 -> 64"
}
check "bench linear: kinds of weight, shapes and adapters" bench_linears
sed 's/"intermediate_size": 192/"intermediate_size": 1048576/' "$work/tiny.json" >"$work/wide.json"
check "bench linear: a model" fails_with "takes no MODEL" bench linear "$tiny"
check "bench linear: a key that products do not have" fails_with "--set lora.rank=4: bench linear takes quant" bench linear --set lora.rank=4
check "bench linear: a device" fails_with "only cpu" bench linear --device emu
check "bench linear: sequences" fails_with "--seq belongs" bench linear --seq 4
check "bench linear: fewer than no tokens" fails_with "--tokens: want 1" bench linear --tokens -1
check "bench linear: a block that does not fit" fails_with "quant.block_size" bench linear --set quant.block_size=48
too_wide() { run 1 bench linear --arch "$work/wide.json" --tokens 1048576 && [[ ! -s $work/out ]] && err_has "are left; fewer --tokens would fit"; }
check "bench linear: more than the memory holds" too_wide
check "bench: a kind that is not there" fails_with "bench \"kernels\" is not supported yet" bench kernels
check "bench: step without a model" fails_with "MODEL folder or --arch" bench step
check "bench: a head for a step" fails_with "--head belongs to generate" bench step "$tiny" --head q8_0
check "bench: a key that a step does not use" fails_with "--set data.path" bench step "$tiny" --set data.path=x
check "bench: a model for cpu" fails_with "bench cpu takes only" bench cpu "$tiny"

# ---- real models -------------------------------------------------------------------------------------------------------
# Against reference.json, which an independent double-precision forward pass made.
real_ready() {
    [[ -s $assets/models/stories3M/hf/model.safetensors ]] || { cannot "no ../shared/assets"; return; }
    command -v python3 >/dev/null || { cannot "no python3 to read reference.json"; return; }
}
reference() { # EXPRESSION of r
    python3 -c 'import json,sys; r = json.load(open(sys.argv[1])); print(eval(sys.argv[2]))' \
        "$assets/models/stories3M/reference.json" "$1"
}
real_greedy() {
    real_ready || return
    local i prompt
    for i in 0 1 2; do
        prompt=$(reference "r['greedy'][$i]['prompt']")
        run 0 generate "$assets/models/stories3M/hf" --prompt "$prompt" --precision f32 --json \
            --max-tokens "$(reference "len(r['greedy'][$i]['continuation_ids'])")" || return 1
        [[ $(sed -E 's/.*"ids": (\[[^]]*\]).*/\1/' "$work/out") == "$(reference "r['greedy'][$i]['continuation_ids']")" ]] || return 1
    done
}
check "stories3M: greedy texts equal the reference's" real_greedy
real_loss() {
    real_ready || return
    local i
    for i in 0 1 2 3; do
        python3 -c 'import sys
documents = [d.strip() for d in open(sys.argv[1]).read().split("<|endoftext|>") if d.strip()]
open(sys.argv[2], "w").write(documents[int(sys.argv[3])])' "$assets/datasets/pretrain/tinystories_1500.txt" "$work/story.txt" $i
        run 0 eval "$assets/models/stories3M/hf" --data "$work/story.txt" --window 512 --precision f32 --json || return 1
        [[ $(value tokens) == "$(reference "r['nll_hf_float32']['per_document_sum_and_count'][$i][1]")" ]] || return 1
        # FP32 sums of some hundred terms against double: some 1e-7; a wrong mask or position is off by far more than 1e-5
        near "$(awk -v l="$(value loss)" -v n="$(value tokens)" 'BEGIN { printf "%.9g", l * n }')" \
            "$(reference "r['nll_hf_float32']['per_document_sum_and_count'][$i][0]")" 1e-5 || return 1
    done
}
check "stories3M: losses equal the reference's" real_loss

finish
