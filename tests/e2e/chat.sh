#!/bin/bash
# chat through a pipe: answers, a conversation that goes on from the cache, commands, a full context, refusals. TAP.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh

cat >"$work/tiny.json" <<'END'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 64,
 "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
 "vocab_size": 320, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
 "bos_token_id": 256, "eos_token_id": 257, "tie_word_embeddings": false, "initializer_range": 0.2,
 "torch_dtype": "float32"}
END
model=$work/model
"$nibble" synth --arch "$work/tiny.json" --out "$model" 2>/dev/null || exit 2

chat() { # LINES OPTIONS...: status in $status, answers in $work/out, the rest in $work/err
    local lines=$1
    shift
    printf '%b' "$lines" | "$nibble" chat "$model" --precision f32 --max-tokens 16 "$@" >"$work/out" 2>"$work/err"
    status=$?
}
first_answer() { # what generate says to the same message
    chat 'Hello\n' --template chatml && ((status == 0)) || return 1
    "$nibble" generate "$model" --precision f32 --max-tokens 16 --template chatml --prompt Hello >"$work/generated" 2>/dev/null
    cmp "$work/out" "$work/generated"
}
check "a message is answered as generate answers it" first_answer
second_answer() { # the conversation so far, rendered by hand, and never through a cache
    chat 'Hello\nMore\n' --template chatml && ((status == 0)) || return 1
    local first
    first=$(cat "$work/generated" && echo x) # keeps line ends
    first=${first%x}
    first=${first%$'\n'}
    printf '<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n%s<|im_end|>\n<|im_start|>user\nMore<|im_end|>\n<|im_start|>assistant\n' "$first" >"$work/prompt"
    "$nibble" generate "$model" --precision f32 --max-tokens 16 --raw --prompt-file "$work/prompt" --json >"$work/whole" 2>/dev/null || return 1
    "$nibble" generate "$model" --precision f32 --max-tokens 16 --raw --prompt-file "$work/prompt" >"$work/second" 2>/dev/null
    cat "$work/generated" "$work/second" >"$work/both"
    cmp "$work/out" "$work/both"
}
if LC_ALL=C grep -q '[^ -~]' "$work/generated" 2>/dev/null && ! iconv -f utf-8 -t utf-8 "$work/generated" >"$work/same" 2>/dev/null; then
    skip "the next message goes on from the cache" "the model's answer is no UTF-8 that could be typed again"
else
    check "the next message goes on from the cache" second_answer
fi
commands() {
    chat 'Hello\n/reset\nHello\n/system Be brief\nHello\n/help\n/nonsense\n/exit\nnever read\n' --template chatml && ((status == 0)) || return 1
    err_has "forgotten" && err_has "with this system message" && err_has "/exit leaves" && err_has "/nonsense is no command" || return 1
    chat 'Hello\n/reset\nHello\n' --template chatml
    cat "$work/generated" "$work/generated" >"$work/both"
    cmp "$work/out" "$work/both"
}
check "/reset, /system, /help, /exit; after /reset the first answer again" commands
full() {
    local lines=""
    for i in 1 2 3 4 5 6 7 8; do lines+="This is message number $i of a long conversation\n"; done
    chat "$lines" --template chatml --context 200 && ((status == 0)) && err_has "exchanges are forgotten" || return 1
    chat "$(printf '%0300d' 1)\n" --template chatml && ((status == 1)) && err_has "say it shorter"
}
check "a full context drops the oldest exchanges and says so; one message that cannot fit is refused" full
own_template() {
    printf '%s' "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}" >"$model/chat_template.jinja"
    chat 'Hello\n' && ((status == 0)) && err_has "template model" && cp "$work/out" "$work/own" || return 1
    "$nibble" generate "$model" --precision f32 --max-tokens 16 --template model --prompt Hello >"$work/generated" 2>"$work/err" &&
        cmp "$work/own" "$work/generated"
    local same=$?
    ((same == 0)) && own_template_in_eval || same=1
    rm -f "$model/chat_template.jinja"
    return $same
}
# The same conversation as a question with its answer and as messages: only the latter's layout takes the model's template by itself.
own_template_in_eval() {
    local losses=() data=$work/conversation.jsonl layout
    for layout in '"instruction": "Hello", "output": "Hi there"' \
        '"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there"}]'; do
        echo "{$layout}" >"$data"
        run 0 eval "$model" --precision f32 --data "$data" --template model --json && out_has '"template": "model"' || return 1
        losses+=("$(grep -o '"loss": [0-9.e+-]*' "$work/out")")
    done
    [[ -n ${losses[0]} && ${losses[0]} == "${losses[1]}" ]] || return 1
    run 0 eval "$model" --precision f32 --data "$data" --json && [[ $(grep -o '"loss": [0-9.e+-]*' "$work/out") == "${losses[0]}" ]]
}
check "the model's own template, in chat, in generate and in eval" own_template
refusals() {
    run 1 chat "$model" </dev/null && err_has "no chat template of its own" || return 1
    echo '{"instruction": "a", "output": "b"}' >"$work/one.jsonl"
    run 2 eval "$model" --data "$work/one.jsonl" --template model && err_has "no chat template of its own" || return 1
    run 2 eval "$model" --data "$work/one.jsonl" --template chatnl && err_has "did you mean chatml?" || return 1
    run 2 chat "$model" --template nonsense </dev/null && err_has "not a built-in template" || return 1
    run 2 chat "$model" --template chatml --context 100000 </dev/null && err_has "the model takes 256 tokens" || return 1
    run 2 chat "$model" --template chatml --top-k 5 </dev/null && err_has "temperature 0 draws none" || return 1
    run 0 chat --help && out_has "example:"
}
check "what cannot be is refused by name" refusals
finish
