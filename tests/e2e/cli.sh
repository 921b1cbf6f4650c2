#!/bin/bash
# The command line from outside: help, exit statuses, messages, configs, and a model folder of random weights. Speaks TAP.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh

help_lists_commands() {
    run 0 --help || return 1
    local command
    for command in train quantize export eval generate chat plan inspect compare distill-data synth bench config; do
        out_has "  $command " || return 1
    done
    cp "$work/out" "$work/help"
    run 0 help && cmp -s "$work/out" "$work/help"
}
check "--help and help list every command" help_lists_commands

version() { run 0 --version && grep -qE '^nibble [0-9]+\.[0-9]+\.[0-9]+$' "$work/out"; }
check "--version prints one line" version

command_help() { # both ways give the same text, with a usage and an example
    run 0 "$1" --help && out_has "usage: nibble $1" && out_has "example:" || return 1
    cp "$work/out" "$work/help"
    run 0 help "$1" && cmp -s "$work/out" "$work/help"
}
for command in config synth; do check "$command --help" command_help "$command"; done

no_command() { run 2 && err_has "usage: nibble COMMAND" && [[ ! -s $work/out ]]; }
check "no command is a mistake" no_command
check "an unknown command has a hint" fails_with 'did you mean `nibble train`?' trian
check "an unknown option has a hint" fails_with "did you mean --schema?" config --shcema
check "config wants one thing to do" fails_with "want one of" config
check "config --set needs a file" fails_with "--check FILE" config --schema --set a=b

full_disk() {
    [[ -w /dev/full ]] || { echo "# SKIP there is no /dev/full" && return 0; }
    ! "$nibble" config --schema >/dev/full 2>"$work/err" && err_has "cannot write the results"
}
check "results that cannot be written are a failure" full_disk

gone_reader() { # a reader that leaves: no message, no crash
    { "$nibble" config --schema 2>"$work/err"; echo $? >"$work/status"; } | true
    [[ ! -s $work/err && $(cat "$work/status") -le 1 ]]
}
check "a reader that leaves early is no crash" gone_reader

closed_streams() { "$nibble" config --check "$work/defaults.json" <&- >&- 2>&-; }
defaults() {
    run 0 config --defaults && cp "$work/out" "$work/defaults.json" || return 1
    run 0 config --check "$work/defaults.json" && out_has ": ok"
}
check "the printed defaults are a valid config" defaults
check "it works without standard streams" closed_streams

resolved() {
    run 0 config --check "$work/defaults.json" --print --set train.lr=3e-5 && cp "$work/out" "$work/resolved.json" || return 1
    out_has '"lr": 3e-05' || return 1
    run 0 config --check "$work/resolved.json" --print && cmp -s "$work/out" "$work/resolved.json"
}
check "a resolved config reads back as itself" resolved

shipped() {
    local file
    for file in configs/train/*.json; do run 0 config --check "$file" || return 1; done
}
check "every config in configs/train is valid" shipped

printf '{\n  "train": {\n    "lrr": 1 // too fast\n  }\n}\n' >"$work/wrong.json"
check "a wrong key has file, line and hint" fails_with "wrong.json:3: train.lrr is not a key; did you mean train.lr?" \
    config --check "$work/wrong.json"
check "a wrong override has a hint" fails_with "did you mean cosine?" \
    config --check "$work/defaults.json" --set train.schedule=cosin
check "a missing config is a mistake" fails_with "none.json" config --check "$work/none.json"

# ---- synth -------------------------------------------------------------------------------------------------------------
cat >"$work/tiny.json" <<'END'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 64,
 "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
 "vocab_size": 320, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
 "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": false, "torch_dtype": "float32"}
END
hash_of() { sha256sum <"$1/model.safetensors"; }
synth() { # the same bytes on any number of threads, other bytes from another seed
    run 0 synth --arch "$work/tiny.json" --out "$work/a" --threads 1 || return 1
    run 0 synth --arch "$work/tiny.json" --out "$work/b" --threads 3 || return 1
    run 0 synth --arch "$work/tiny.json" --out "$work/c" --seed 7 || return 1
    [[ $(hash_of "$work/a") == "$(hash_of "$work/b")" && $(hash_of "$work/a") != "$(hash_of "$work/c")" ]] || return 1
    [[ -s $work/a/tokenizer.json && -s $work/a/tokenizer_config.json ]] && grep -q bfloat16 "$work/a/config.json"
}
check "synth depends on the seed and not on the threads" synth

synth_size() { # 2 bytes a parameter: 2*320*64 + 2*(2*64*64 + 2*64*32 + 3*64*192 + 2*64) + 64
    local bytes=$((2 * (2 * 320 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 192 + 2 * 64) + 64))) size header
    size=$(stat -c %s "$work/a/model.safetensors")
    header=$(od -An -t u8 -N 8 "$work/a/model.safetensors")
    ((size == 8 + header + bytes))
}
check "synth writes every parameter once" synth_size
check "synth does not overwrite" fails_with "--overwrite" synth --arch "$work/tiny.json" --out "$work/a"
overwrite() {
    run 0 synth --arch "$work/tiny.json" --out "$work/a/" --dtype f32 --overwrite || return 1
    grep -q float32 "$work/a/config.json" && [[ -z $(find "$work" -name '*.tmp-*') ]]
}
check "synth --overwrite replaces, and leaves nothing beside" overwrite
mkdir "$work/precious" && touch "$work/precious/thesis.txt"
check "synth --overwrite removes nothing but model folders" fails_with "has no config.json" \
    synth --arch "$work/tiny.json" --out "$work/precious" --overwrite
check "synth wants a known type" fails_with "bf16 or f32" synth --arch x --out y --dtype f16
broken_arch() {
    echo '{"model_type": "nonesuch"}' >"$work/broken.json"
    run 1 synth --arch "$work/broken.json" --out "$work/d" && err_has nonesuch && [[ ! -e $work/d ]]
}
check "a shape that is not supported leaves no folder" broken_arch

finish
