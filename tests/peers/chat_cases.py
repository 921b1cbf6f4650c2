"""Conversations for whole templates, with tools among them, and templates of our own that mark what is trained."""
from jinja_cases import CALL, TOOLS, ZZ

SYSTEM, USER = {"role": "system", "content": " Be brief.\u3000\n"}, {"role": "user", "content": "What is 2+2?"}
ANSWER, COLD = {"role": "assistant", "content": "\n It is 4. \n"}, {"role": "assistant", "content": "Cold."}
RESULT = {"role": "tool", "content": '{"t": 3}', "name": "get_weather", "tool_call_id": "abcdefghi"}
SECOND = {"id": "123456789", "type": "function", "function": {"name": "get_weather", "arguments": {}}}
TEXT = {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "K\u00f6ln"}'}}


def calls(*items, **more):
    return {"role": "assistant", **more, "tool_calls": list(items)}


PLAIN_TOOLS = [  # without lists of types, which some templates cannot print
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Weather of a <city> & more \u00e9",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Which"}}, "required": ["city"]},
        },
    }
    for name in ("get_weather", "get_rain")
]

# label, messages, tools
CASES = [
    ("one question", [USER, ANSWER], None),
    ("system", [SYSTEM, USER, ANSWER], None),
    ("several turns", [SYSTEM, USER, ANSWER, ZZ[0], {"role": "assistant", "content": "<think>\nhm\n</think>\n\n\u00dcber"}], None),
    ("ends with a question", [USER, ANSWER, USER], None),
    ("empty", [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}], None),
    ("blank", [{"role": "system", "content": ""}, {"role": "user", "content": "\n"}, {"role": "assistant", "content": "  "}], None),
    ("Unicode", [{"role": "user", "content": "\U0001f469\u200d\U0001f4bb e\u0301"}, {"role": "assistant", "content": "\u65e5\u672c\u2028\u8a9e\x85"}], None),
    ("reasoning", [USER, {"role": "assistant", "content": "4", "reasoning_content": "\n2 and 2\n"}], None),
    ("reasoning under another name", [USER, ANSWER, USER, {"role": "assistant", "content": "4", "thinking": "easy"}], None),
    ("tools, no call", [SYSTEM, USER, ANSWER], TOOLS),
    ("call and result", [USER, calls(CALL, content=""), RESULT, COLD], TOOLS),
    ("call with content null", [USER, calls(CALL, content=None), RESULT, COLD], TOOLS),
    ("call without content", [SYSTEM, USER, calls(CALL), RESULT, COLD], TOOLS),
    ("call behind content", [USER, calls(CALL, content="Let me see."), RESULT, COLD, ZZ[0], ANSWER], TOOLS),
    ("arguments as text", [USER, calls(TEXT, content=""), RESULT, COLD], TOOLS),
    ("two calls", [USER, calls(CALL, SECOND, content=""), RESULT, {**RESULT, "tool_call_id": "123456789"}, COLD], TOOLS),
    ("calls one after the other", [USER, calls(CALL, content=""), RESULT, calls(SECOND, content=""), RESULT, COLD], TOOLS),
    ("call at the end", [USER, ANSWER, ZZ[0], calls(CALL, content="")], TOOLS),
    ("reasoning and call", [USER, calls(CALL, content="", reasoning_content="cold?"), RESULT, COLD], TOOLS),
    ("plain tools, no call", [SYSTEM, USER, ANSWER], PLAIN_TOOLS),
    ("plain tools, call", [SYSTEM, USER, calls(CALL, content=""), RESULT, COLD, ZZ[0], ANSWER], PLAIN_TOOLS),
    ("plain tools, call, no content", [USER, calls(CALL), RESULT, COLD], PLAIN_TOOLS),
    ("plain tools, two calls", [USER, calls(CALL, SECOND), RESULT, {**RESULT, "tool_call_id": "123456789"}, COLD], PLAIN_TOOLS),
    ("plain tools, ends with a call", [USER, calls(SECOND)], PLAIN_TOOLS),
    ("calls, no definitions", [USER, calls(CALL, content=""), RESULT, COLD], None),
]

GENERATION = """{{- bos_token }}
{%- if tools %}[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- '<|assistant|>' }}
        {%- generation %}
        {%- if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}
        {{- m.content }}
        {%- for call in m.tool_calls or [] %}{{ '[CALL]' + call.function.name + (call.function.arguments | tojson) }}{% endfor %}
        {{- eos_token }}
        {%- endgeneration %}
    {%- else %}
        {{- '<|' + m.role + '|>' + m.content + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""

HARMONY = """{%- if tools %}{{ '<|start|>system<|message|>' + (tools | tojson) + '<|end|>' }}{% endif %}
{%- set last = namespace(name='') %}
{%- for m in messages %}
    {%- if m.tool_calls %}
        {%- set call = m.tool_calls[0].function %}
        {%- set last.name = call.name %}
        {{- '<|start|>assistant' }}
        {%- if m.thinking %}{{ '<|channel|>analysis<|message|>' + m.thinking + '<|end|><|start|>assistant' }}{% endif %}
        {{- ' to=functions.' + call.name + '<|channel|>commentary<|message|>' + (call.arguments | tojson) + '<|call|>' }}
    {%- elif m.role == 'tool' %}
        {{- '<|start|>functions.' + last.name + ' to=assistant<|channel|>commentary<|message|>' + m.content + '<|end|>' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + m.content + ('<|return|>' if loop.last else '<|end|>') }}
    {%- else %}
        {{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

OWN = {"generation": GENERATION, "harmony": HARMONY}
