#!/bin/bash
# Data with tools from outside: what inspect shows of them, a run that trains on calls, what is refused. TAP.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh

make_inputs 60
sed 's/"max_position_embeddings": 128/"max_position_embeddings": 512/' "$work/arch.json" >"$work/longer.json"
rm -rf "$work/model"
"$nibble" synth --arch "$work/longer.json" --out "$work/model" 2>/dev/null || exit 2
printf '%s' "{% if tools %}{{ tools | tojson }}{{ eos_token }}{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}{% endfor %}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}" >"$work/model/chat_template.jinja"
cat >"$work/messages.jsonl" <<'END'
{"tools": [{"type": "function", "function": {"name": "weather"}}], "messages": [{"role": "user", "content": "Cold in Oslo?"}, {"role": "assistant", "content": null, "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]}, {"role": "tool", "name": "weather", "content": "-3"}, {"role": "assistant", "content": "Yes."}]}
{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]}
END
cat >"$work/sharegpt.jsonl" <<'END'
{"conversations": [{"from": "human", "value": "Cold in Oslo?"}, {"from": "function_call", "value": "{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}"}, {"from": "observation", "value": "-3"}, {"from": "gpt", "value": "Yes."}], "tools": "[{\"name\": \"weather\"}]"}
END
call='[[<call>{"name": "weather", "arguments": {"city": "Oslo"}}<|end|>]]<tool>-3<|end|><assistant>[[Yes.<|end|>]]'

inspect() { # STATUS FILE OPTIONS...
    local want=$1 file=$2
    shift 2
    run "$want" inspect --data "$work/config.json" --set data.path="$work/$file" --set data.eval_fraction=0 --set train.save_best=false --set train.micro_batch_tokens=512 "$@"
}
shown() { inspect 0 messages.jsonl && out_has "$call" && out_has '<assistant>[[Hi.<|end|>]]' && err_has "1 records have tools" && err_has "layout messages, template model"; }
check "inspect --data shows that a call and its end are trained, its result is not" shown
counted() { inspect 0 messages.jsonl --json && out_has '"records_with_tools": 1' && out_has '"layout": "messages"'; }
check "inspect --data --json counts the records with tools" counted
sharegpt() { inspect 0 sharegpt.jsonl && out_has "$call" && err_has "layout sharegpt, template model"; }
check "ShareGPT's calls become the same text" sharegpt
trained() { train 0 tools --set data.path="$work/messages.jsonl" --set data.eval_fraction=0 --set train.samples=0 --set train.save_best=false --set train.micro_batch_tokens=512 && err_has "1 records have tools"; }
check "a run trains on them" trained
refused() { inspect 1 messages.jsonl --set data.template=chatml && err_has "messages.jsonl: line 1" && err_has "has no form for"; }
check "a built-in template by name refuses tools, and names the line" refused
no_end() {
    sed "s/{{ eos_token }}{% endfor %}/{% if not m.tool_calls %}{{ eos_token }}{% endif %}{% endfor %}/" "$work/model/chat_template.jinja" >"$work/other"
    cp "$work/other" "$work/model/chat_template.jinja"
    inspect 1 messages.jsonl && err_has "line 1: message 2" && err_has "cannot be decided"
}
check "a call whose end the template does not write is refused" no_end
finish
