#!/bin/bash
# Malformed input through the program: a message that names the file, exit status 1 or 2, never a crash, a hang or a folder left
# behind. With NIBBLE=build/asan/nibble the same under AddressSanitizer and UBSan. The last line of comments counts the cases.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh
shopt -s lastpipe # `... | bad_model` counts in this shell
seed=${NIBBLE_TEST_SEED:-$(date +%s)}
RANDOM=$seed
echo "# seed $seed"
make_inputs
cases=0

# refused WORDS...: status 1 or 2, one message, no sanitizer's word, nothing made. $names must be in the message.
names=
refused() {
    cases=$((cases + 1))
    timeout 60 "$nibble" "$@" >"$work/out" 2>"$work/err" </dev/null
    local status=$?
    ((status == 1 || status == 2)) || { echo "# nibble $*: status $status"; return 1; }
    grep -q "^nibble: error: ." "$work/err" || { echo "# nibble $*: no message"; return 1; }
    grep -qE "Sanitizer|runtime error|internal error" "$work/err" && { echo "# nibble $*: a finding"; return 1; }
    [[ -z $names ]] || err_has "$names"
}
survived() { # WORDS...: any status but a crash, and no finding
    cases=$((cases + 1))
    timeout 60 "$nibble" "$@" >"$work/out" 2>"$work/err" </dev/null
    local status=$?
    ((status <= 2)) && ! grep -qE "Sanitizer|runtime error|internal error" "$work/err" || { echo "# nibble $*: status $status"; false; }
}
training() { # WORDS...: a refused run leaves no folder
    rm -rf "$work/none"
    refused train "$work/config.json" --set "output.path=$work/none" --threads 1 "$@" || return 1
    [[ ! -e $work/none ]] || { echo "# a folder is left"; false; }
}

# broken FILE: a copy of the model in $work/bad, with FILE (of the model) taken from standard input.
broken() {
    rm -rf "$work/bad"
    cp -r "$work/model" "$work/bad"
    cat >"$work/bad/$1"
    ! cmp -s "$work/model/$1" "$work/bad/$1" || { echo "# $1 is as it was: the case tests nothing" && exit 1; }
}
bad_model() { # NAME FILE, content on standard input
    broken "$2"
    names=$2
    [[ $2 != model.safetensors ]] || names=$work/bad # what is wrong with a tensor is said with its own name
    check "$2: $1" training --set "model.path=$work/bad"
    names=
}

# ---- the model's folder -------------------------------------------------------------------------------------------------------
config=$work/model/config.json
printf '' | bad_model "empty" config.json
printf '{' | bad_model "ends early" config.json
printf '[]' | bad_model "no object" config.json
printf 'not json' | bad_model "no JSON" config.json
head -c 3000000 /dev/zero | bad_model "zeros" config.json
printf '{"a":%0100000d' 0 | bad_model "a number of 100,000 digits" config.json
(printf '[%.0s' $(seq 100000)) | bad_model "100,000 brackets" config.json
sed 's/"llama"/"mamba"/' "$config" | bad_model "another architecture" config.json
sed 's/"hidden_size":[[:space:]]*64/"hidden_size":-64/' "$config" | bad_model "a negative width" config.json
sed 's/"hidden_size":[[:space:]]*64/"hidden_size":9223372036854775807/' "$config" | bad_model "the greatest width" config.json
sed 's/"hidden_size":[[:space:]]*64/"hidden_size":"64"/' "$config" | bad_model "a width as text" config.json
sed 's/"num_hidden_layers":[[:space:]]*2/"num_hidden_layers":4611686018427387904/' "$config" | bad_model "too many layers" config.json
sed 's/"num_key_value_heads":[[:space:]]*2/"num_key_value_heads":3/' "$config" | bad_model "heads that do not divide" config.json
sed 's/"num_attention_heads":[[:space:]]*4/"num_attention_heads":0/' "$config" | bad_model "no heads" config.json
sed 's/"vocab_size":[[:space:]]*320/"vocab_size":0/' "$config" | bad_model "no vocabulary" config.json
sed 's/"silu"/"gelu"/' "$config" | bad_model "another activation" config.json
sed 's/"rms_norm_eps":[[:space:]]*[0-9e.-]*/"rms_norm_eps":-1/' "$config" | bad_model "a negative epsilon" config.json

weights=$work/model/model.safetensors
length=$(od -An -t u8 -N 8 "$weights" | tr -d ' ')
u64() { local v=$1 i; for ((i = 0; i < 8; i++)); do printf "$(printf '\\%03o' $(((v >> (8 * i)) & 255)))"; done; }
header() { head -c $((8 + length)) "$weights" | tail -c "$length"; }
data() { tail -c +$((9 + length)) "$weights"; }
with_header() { # sed script: the header changed, its length put right
    local text
    text=$(header | sed -E "$1")
    u64 ${#text}
    printf '%s' "$text"
    data
}
printf '' | bad_model "empty" model.safetensors
head -c 7 "$weights" | bad_model "seven bytes" model.safetensors
head -c 4000 "$weights" | bad_model "the data are missing" model.safetensors
head -c $(($(stat -c %s "$weights") - 1)) "$weights" | bad_model "a byte is missing" model.safetensors
{ u64 -1; header; data; } | bad_model "a header of 2^64 - 1 bytes" model.safetensors
{ u64 9223372036854775807; header; data; } | bad_model "a header of 2^63 - 1 bytes" model.safetensors
{ u64 $((length - 1)); header; data; } | bad_model "a header that ends early" model.safetensors
{ u64 0; data; } | bad_model "no header" model.safetensors
with_header 's/"shape":\[320,64\]/"shape":[64,320]/' | bad_model "a shape turned round" model.safetensors
with_header 's/"shape":\[320,64\]/"shape":[4294967296,4294967296]/' | bad_model "a shape of 2^64 elements" model.safetensors
with_header 's/"shape":\[320,64\]/"shape":[-320,-64]/' | bad_model "a negative shape" model.safetensors
with_header 's/"dtype":"BF16"/"dtype":"F8_E4M3"/' | bad_model "another type" model.safetensors
with_header 's/"dtype":"BF16"/"dtype":"BF17"/' | bad_model "no type" model.safetensors
with_header 's/"data_offsets":\[0,/"data_offsets":[18446744073709551615,/' | bad_model "an offset of 2^64 - 1" model.safetensors
with_header 's/"data_offsets":\[([0-9]+),([0-9]+)\]/"data_offsets":[\2,\1]/' | bad_model "offsets turned round" model.safetensors
with_header 's/"model.norm.weight"/"model.worm.weight"/' | bad_model "a tensor has another name" model.safetensors
with_header 's/"lm_head.weight"/"model.norm.weight"/' | bad_model "a name twice" model.safetensors
{ u64 "$length"; header; data | tail -c +3 | cat <(printf '\200\177') -; } | bad_model "an infinity among the weights" model.safetensors
printf '{"metadata":{},"weight_map":{"a":"../../../etc/passwd"}}' >"$work/model.safetensors.index.json"
index() { rm -rf "$work/bad"; cp -r "$work/model" "$work/bad"; mv "$work/bad/model.safetensors" "$work/bad/part.safetensors"; cat >"$work/bad/model.safetensors.index.json"; training --set "model.path=$work/bad"; }
check "an index that points out of the folder" index <"$work/model.safetensors.index.json"
check "an index of a file that is not there" index <<<'{"metadata":{},"weight_map":{"lm_head.weight":"none.safetensors"}}'
check "an index without a map" index <<<'{"metadata":{}}'

tokenizer=$work/model/tokenizer.json
printf '' | bad_model "empty" tokenizer.json
head -c 1000 "$tokenizer" | bad_model "ends early" tokenizer.json
printf '{}' | bad_model "an empty object" tokenizer.json
sed 's/"BPE"/"Unigram"/' "$tokenizer" | bad_model "another model" tokenizer.json
sed 's/"Z": [0-9]*/"Z": -1/' "$tokenizer" | bad_model "a negative id" tokenizer.json
sed 's/"Z": [0-9]*/"Z": 4294967296/' "$tokenizer" | bad_model "an id of 2^32" tokenizer.json
sed 's/"Z": [0-9]*/"Z": 91/' "$tokenizer" | bad_model "an id twice" tokenizer.json
(printf '{"model":%.0s' $(seq 5000)) | bad_model "5,000 levels" tokenizer.json

# ---- the data -----------------------------------------------------------------------------------------------------------------
bad_data() { # NAME, content on standard input: the message has file and line
    cat >"$work/bad.jsonl"
    names=bad.jsonl
    check "data: $1" training --set "data.path=$work/bad.jsonl"
    names=
}
printf '' | bad_data "empty"
printf 'no json\n' | bad_data "no JSON"
printf '{"prompt": "a", "completion": "b"\n' | bad_data "a line that ends early"
printf '{"prompt": "a", "completion": "b"}\n{"prompt": 3, "completion": "b"}\n' | bad_data "a number for text"
printf '{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n' | bad_data "a field is missing"
printf '{"prompt": "a", "completion": "\\ud800"}\n' | bad_data "half a surrogate"
printf '{"prompt": "a", "completion": "\377\376"}\n' | bad_data "no UTF-8"
printf '{"prompt": "a", "completion": "b\0c"}\n' | bad_data "a zero byte"
printf '{"nothing": "known"}\n' | bad_data "no layout"
printf '{"messages": "hello"}\n' | bad_data "messages that are no list"
printf '{"messages": [{"role": 1, "content": []}]}\n' | bad_data "a role that is no text"
{ printf '{"prompt": "a", "completion": '; printf '[%.0s' $(seq 50000); echo; } | bad_data "50,000 brackets"
check "data: a folder" training --set "data.path=$work"
check "data: a device" training --set "data.path=/dev/zero"
mkfifo "$work/pipe"
check "data: a pipe" training --set "data.path=$work/pipe"

# Archives and bombs: refused by name while they are read, in little memory and time.
bounded() { # WORDS...: as training, in a gigabyte of address space where no sanitizer needs more, and in 20 seconds of processor time
    local limit=$((1 << 20))
    grep -q __asan_init "$nibble" && limit=unlimited
    cases=$((cases + 1)) # the one below counts in its own shell
    (ulimit -t 20 && ulimit -v "$limit" && training --set data.cache=off "$@")
}
bad_archive() { # NAME FILE WORDS-OF-THE-MESSAGE, content on standard input
    cat >"$work/$2"
    names=$2
    check "data: $1" bounded --set "data.path=$work/$2"
    check "data: $1: what is said" err_has "$3"
    rm -f "$work/$2"
    names=
}
long_line() { printf '{"prompt": "a", "completion": "'; head -c "$1" /dev/zero | tr '\0' 'a'; printf '"}\n'; }
printf 'PAR1\25\4PAR1' | bad_archive "Parquet" bad.parquet "read_parquet"
long_line 300000000 | gzip -9 | bad_archive "a gzip bomb" bomb.jsonl.gz "bomb.jsonl.gz"
if command -v zstd >/dev/null; then
    long_line 2000000000 | zstd -q -3 | bad_archive "a zstd bomb" bomb.jsonl.zst "bomb.jsonl.zst"
    long_line 1000 | zstd -q --ultra -22 --long=31 | bad_archive "a window of 2 GiB" window.jsonl.zst "window.jsonl.zst"
else
    echo "# SKIP zstd bombs: there is no zstd program to make them"
fi
printf '\50\265\57\375\244\377\377\377\177\377\377\377\177' | bad_archive "a frame that claims 2 GiB" claims.jsonl.zst "claims.jsonl.zst"
printf '\37\213\10\0\0\0\0\0' | bad_archive "gzip that ends early" cut.jsonl.gz "cut.jsonl.gz"
long_line 700000000 | bad_archive "a line of 700 MB" long.jsonl "line 1"

# ---- chat templates -----------------------------------------------------------------------------------------------------------
printf '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' >"$work/talk.jsonl"
bad_template() { # NAME WORDS-OF-THE-MESSAGE, source on standard input
    rm -rf "$work/bad"
    cp -r "$work/model" "$work/bad"
    cat >"$work/bad/chat_template.jinja"
    names=$2
    check "chat template: $1" bounded --set "model.path=$work/bad" --set "data.path=$work/talk.jsonl"
    names=
}
many() { awk -v text="$1" -v times="$2" 'BEGIN { for (i = 0; i < times; i++) printf "%s", text }'; }
{ many '(' 50000; } | sed 's/^/{{ /' | bad_template "50,000 brackets" "line 1"
{ many '{% if true %}' 3000; many '{% endif %}' 3000; } | bad_template "3,000 levels of if" "line 1"
{ printf '{{ '; many 'not ' 50000; printf 'x }}'; } | bad_template "50,000 times not" "line 1"
{ printf '{{ '; many '[' 50000; printf ' }}'; } | bad_template "50,000 lists" "line 1"
printf '\n\n{%% for i in range(10**12) %%}{%% endfor %%}' | bad_template "a range of 10^12" "line 3"
printf '{%% set r = range(99999) %%}{%% for a in r %%}{%% for b in r %%}{%% for c in r %%}{%% endfor %%}{%% endfor %%}{%% endfor %%}' |
    bad_template "10^15 rounds" "line 1"
printf '{%% macro f() %%}{{ f() }}{%% endmacro %%}\n{{ f() }}' | bad_template "a macro of itself" "line"
printf '{%% set ns = namespace(s="ab") %%}{%% for i in range(99) %%}{%% set ns.s = ns.s + ns.s %%}{%% endfor %%}' | bad_template "2^99 letters" "line 1"
printf '{{ "a" * 10**12 }}' | bad_template "a string of 10^12 letters" "line 1"
printf '{%% include "/etc/passwd" %%}' | bad_template "a file of the machine" "line 1"
printf '{{ messages.__class__.__mro__ }}' | bad_template "Python's insides" "line"
printf '\n{%% for m in messages' | bad_template "a tag that never ends" "line 2"
printf '{{ raise_exception("no") }}' | bad_template "a template that refuses" "no"
head -c 2000000 /dev/zero | tr '\0' 'a' | bad_template "two megabytes" "chat"

# ---- other forms of tokenizers --------------------------------------------------------------------------------------------------
bad_tokenizer() { # NAME FILE [NAMED], content on standard input: the folder's only tokenizer
    rm -rf "$work/bad"
    cp -r "$work/model" "$work/bad"
    rm "$work/bad/tokenizer.json"
    cat >"$work/bad/$2"
    names=${3:-$2}
    check "$2: $1" bounded --set "model.path=$work/bad"
    names=
}
head -c 100000 /dev/urandom | cat <(printf '\12') - | bad_tokenizer "random bytes" tokenizer.model
printf '' | bad_tokenizer "empty" tokenizer.model
printf '\12\377\377\377\377\17' | bad_tokenizer "a piece of 4 GiB" tokenizer.model
printf 'YQ== 0\nYQ== 1\n' | bad_tokenizer "a rank twice" tokenizer.model
printf 'YQ== 99999999999999999999\n' | bad_tokenizer "a rank of 10^20" tokenizer.model
printf '{"a": 0}' | bad_tokenizer "no merges beside it" vocab.json merges.txt

# ---- configs ------------------------------------------------------------------------------------------------------------------
bad_config() { # NAME, content on standard input
    cat >"$work/bad.json"
    names=bad.json
    check "config: $1" refused train "$work/bad.json"
    names=
}
printf '' | bad_config "empty"
printf '{"train": {"steps": 1' | bad_config "ends early"
printf '{"train": {"steps": 1, "steps": 2}}' | bad_config "a key twice"
printf '{"train": {"steps": 1e99}}' | bad_config "too many steps"
printf '{"seed": 18446744073709551616}' | bad_config "a seed of 2^64"
(printf '{"a":%.0s' $(seq 50000)) | bad_config "50,000 levels"
head -c 2000000 /dev/zero | tr '\0' ' ' | bad_config "two megabytes of nothing"
printf '\377\376{}' | bad_config "no UTF-8"

# ---- adapters -----------------------------------------------------------------------------------------------------------------
train 0 run || exit 2
bad_adapter() { # NAME FILE, content on standard input
    rm -rf "$work/adapter"
    cp -r "$work/run/adapter" "$work/adapter"
    cat >"$work/adapter/$2"
    check "adapter: $1" refused generate "$work/model" --adapter "$work/adapter" --prompt a --threads 1
}
printf '' | bad_adapter "empty config" adapter_config.json
printf '{"peft_type": "LORA", "use_dora": true}' | bad_adapter "another kind" adapter_config.json
printf '{"peft_type": "LORA", "lora_alpha": 1e308}' | bad_adapter "an impossible alpha" adapter_config.json
head -c 1000 "$work/run/adapter/adapter_model.safetensors" | bad_adapter "no data" adapter_model.safetensors
printf '' | bad_adapter "no tensors" adapter_model.safetensors
cat "$weights" | bad_adapter "a model's tensors" adapter_model.safetensors
check "adapter: a folder that is not there" refused generate "$work/model" --adapter "$work/nowhere" --prompt a

# ---- run folders --------------------------------------------------------------------------------------------------------------
bad_run() { # NAME FILE STATUS-OF-SUCCESS: content on standard input; a resume refuses, or passes over what is damaged
    rm -rf "$work/resumed"
    cp -r "$work/run" "$work/resumed"
    cat >"$work/resumed/$2"
    check "run folder: $1" survived train "$work/config.json" --set "output.path=$work/resumed" --threads 1 --resume
}
printf '' | bad_run "empty config.json" config.json
printf '{"model_type": "llama"}' | bad_run "another config.json" config.json
printf 'no records\n\0\n{"kind":' | bad_run "no metrics" metrics.jsonl
head -c 100000 /dev/urandom | bad_run "random metrics" metrics.jsonl
printf '' | bad_run "empty state.json" checkpoints/step-21/state.json
printf '{"version": 1, "step": 99999999999999999999}' | bad_run "a step of 10^20" checkpoints/step-21/state.json
sed 's/"elements": [0-9]*/"elements": 768614336404564650/' "$work/run/checkpoints/step-21/state.json" | bad_run "too many elements" checkpoints/step-21/state.json
head -c 100000 /dev/urandom | bad_run "random parameters" checkpoints/step-21/params.zst
printf '\50\265\57\375\244\377\377\377\177\377\377\377\177' | bad_run "a frame that claims too much" checkpoints/step-21/params.zst

# ---- at random ----------------------------------------------------------------------------------------------------------------
flips=$([[ ${NIBBLE_TEST_FULL:-0} == 1 ]] && echo 300 || echo 30)
flipped() { # one bit of one small file, or of a header: read or refused, never a crash
    local i file at byte
    local files=(config.json tokenizer.json model.safetensors tokenizer_config.json)
    for ((i = 0; i < flips; i++)); do
        rm -rf "$work/bad"
        cp -r "$work/model" "$work/bad"
        file=${files[i % 4]}
        at=$(((RANDOM * 32768 + RANDOM) % ($([[ $file == model.safetensors ]] && echo $((length + 8)) || stat -c %s "$work/bad/$file"))))
        byte=$(od -An -t u1 -j "$at" -N 1 "$work/bad/$file")
        printf "$(printf '\\%03o' $((byte ^ (1 << RANDOM % 8))))" | dd of="$work/bad/$file" bs=1 seek="$at" conv=notrunc status=none
        survived train "$work/config.json" --set "model.path=$work/bad" --set "output.path=$work/none" --set output.overwrite=true \
            --set train.steps=1 --set train.samples=0 --threads 1 || { echo "# a bit of byte $at of $file"; return 1; }
    done
}
check "$flips flipped bits" flipped
echo "# $cases malformed cases"
finish
