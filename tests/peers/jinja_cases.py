"""What the Jinja interpreter is held against: snippets with variables, and conversations for whole templates."""

VARIABLES = {
    "s": "Héllo <b>World</b>",
    "pad": "  a b\t\n",
    "empty": "",
    "quote": "it's \"q\"\n\u00e9\U0001f600\u200b\\",
    "n": 7,
    "f": 2.5,
    "t": True,
    "nothing": None,
    "l": [3, 1, 2],
    "words": ["pear", "Apple", "fig", "apple"],
    "d": {"b": 1, "a": [1, {"x": None}], "items": 5, "C": "z"},
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Hi\n"},
        {"role": "assistant", "content": "<think>\nno\n</think>\n\nHello"},
    ],
}

EXPRESSIONS = """
1 + 2 * 3|-7 // 2|7 // -2|-7 % 3|7 % -3|7 / 2|6 / 2|2 ** 10|2 ** -1|-2 ** 2|2 ** 3 ** 2|7.5 // 2|7.5 % -2|1e3|1.5e-7|1e16|123456789.125|0.1 + 0.2
1_000 + 1|10 - 3 - 2|n + 1.0|t + 1|not t|not not t|n > 5 and n < 9|1 < 2 < 3|1 < 3 < 2|1 == 1.0|1 == true|"a" < "b"|"a" == 'a'|[1,2] == [1,2]|[1,2] == (1,2)
{"a":1} == {"a":1.0}|none == none|missing == nothing|missing is defined|missing is undefined|missing|missing.x|missing[0]|missing + "a"|missing ~ "a"|missing or "x"|s and n
nothing or empty or "z"|"x" if t else "y"|"x" if not t|("x" if missing) is defined|"a" "b" 'c'|"a" ~ 1 ~ none ~ 2.5|"a" * 3|3 * "ab"|[1] * 2|[1] + [2]|"a" + 1|1 + "a"|"x" in "axb"|"x" not in "axb"
2 in l|"b" in d|"zz" in d|1 in missing|"a" in none|s[0]|s[-1]|s[99]|s[1:3]|s[::-1]|s[:-3]|s[-3:]|s[::2]|l[0]|l[-1]|l[5]|l[5] is defined|l[1:]|l[::-1]|l[-2:]|l[:0]|d["b"]|d.b|d.nope|d["nope"]|d.items is callable|d["items"]
d.a[1].x|d.a[1].x is none|d.a.1|d.get("b")|d.get("q")|d.get("q", 9)|d.keys()|d.values()|d.items()|d.keys() is iterable|d.items() is sequence|d|l|words|quote|[quote]|[none, true, 1.0, "x"]|(1,)|()|{}|[]|{"a": (1, 2)}
pad|pad.strip()|pad.lstrip()|pad.rstrip()|"xxaxx".strip("x")|"xyaxy".lstrip("yx")|s.upper()|s.lower()|s.title()|s.capitalize()|"they're bill's".title()|"a,b,,c".split(",")|"a,b,,c".split(",", 1)|"a,b,c".rsplit(",", 1)|" a  b ".split()|" a  b c ".split(none, 1)
"abc".startswith("ab")|"abc".endswith(("x", "bc"))|"abc".startswith("")|"aXbX".replace("X", "--")|"aXbX".replace("X", "", 1)|"ab".replace("", "-")|"-".join(["a", "b"])|"-".join([1])|"abcb".find("b")|"abcb".rfind("b")|"héb".find("b")|"abcb".count("b")|"a\\nb".splitlines()
"abc".removeprefix("a")|"abc".removesuffix("c")|"abc".foo|"abc".foo is defined|"abc".index is defined|l.append(4)|d.update({})|d.pop("b")|l.count(1)|messages[0].role|messages[-1]["content"].split("</think>")[-1].lstrip("\\n")|messages[2].content.split("<think>")[1]
"""

FILTERS = """
pad @ trim|"xax" @ trim("x")|s @ length|l @ length|d @ count|missing @ length|n @ length|s @ upper|s @ lower|"hello world-foo (bar" @ title|"hELLO" @ capitalize|words @ join|words @ join(", ")|l @ join("-")|messages @ join(",", attribute="role")|missing @ default("x")|empty @ default("x")
empty @ default("x", true)|nothing @ default("x")|nothing @ d("x", boolean=true)|l @ first|l @ last|[] @ first|"abc" @ last|l @ list|"abc" @ list|d @ list|5 @ string + "x"|"12" @ int + 1|" 12 " @ int|"x" @ int|"x" @ int(5)|"3.7" @ int|2.9 @ int|"1.5" @ float|3 @ float|"x" @ float
l @ map("string") @ join("")|words @ map("upper") @ list|messages @ map(attribute="role") @ list|messages @ map(attribute="no", default="-") @ list|l @ select("odd") @ list|l @ reject("odd") @ list|l @ select("gt", 1) @ list|messages @ selectattr("role", "equalto", "user") @ list|messages @ selectattr("role", "in", ["user", "system"]) @ map(attribute="role") @ list
messages @ rejectattr("role", "eq", "user") @ list @ length|messages @ selectattr("tool_calls") @ list|messages @ selectattr("tool_calls", "defined") @ list|messages @ selectattr("role") @ length|d @ items @ list|missing @ items @ list|d @ dictsort|d @ dictsort(true)|d @ dictsort(reverse=true) @ first|words @ sort|words @ sort(case_sensitive=true)|l @ sort(reverse=true)
messages @ sort(attribute="role") @ map(attribute="role") @ list|words @ unique @ list|words @ unique(true) @ list|l @ reverse @ list|"abc" @ reverse|l @ min|l @ max|l @ sum|words @ min|"a" @ safe|"<a>" @ escape|"<a>" @ e @ length|"a\\nb\\n\\nc" @ indent|"a\\nb" @ indent(2, true)|"a\\n\\nb" @ indent(2, blank=true)|"a\\nb" @ indent("> ")
s @ replace("l", "L")|s @ replace("l", "L", 1)|n @ replace(7, 8)|d @ tojson|quote @ tojson|quote @ tojson(ensure_ascii=true)|d @ tojson(indent=2)|d @ tojson(indent=4, sort_keys=false)|[[], {}, 1.0, none, true, 1e20] @ tojson|[] @ tojson(indent=2)|d @ tojson(separators=(",", ":"))|{"b": 1, "a": 2} @ tojson(sort_keys=true)|missing @ tojson
(1, 2) @ tojson|{1: 2, none: 3, true: 4} @ tojson|"</s>&'" @ tojson|-3 @ abs|(-2.5) @ abs|-3 @ abs @ string|1.0 @ string|1e-5 @ string|123456789012345680.0 @ string|0.00001234 @ string
"""

TESTS = """
n is number|t is number|f is float|n is integer|t is integer|t is boolean|n is boolean|s is string|l is string|d is mapping|l is mapping|l is sequence|s is sequence|d is sequence|n is sequence|s is iterable|n is iterable|missing is iterable|nothing is none|missing is none|nothing is not none|t is true|n is true|t is false
false is false|7 is odd|7 is even|6 is divisibleby 3|6 is divisibleby(4)|n is eq 7|n is equalto(8)|n is ne 7|n is gt 3|n is lt 3|n is ge 7|n is in [7]|"a" is in "abc"|"abc" is lower|"ABC" is upper|none is sameas none|range is callable|s is callable|not n is odd|n is not odd|n is defined and n is odd|1 if n is odd else 2
"""

SNIPPETS = [
    "a\n{% if true %}\nb\n{% endif %}\nc\n",
    "  {% if true %}  x  {% endif %}  \n y",
    "  {%+ if true %}x{% endif +%}\n y",
    "a {%- if true -%} b {%- endif -%} c",
    "a {{- 1 -}} b {{ 2 }} c",
    "a\n  {# c #}\n  b {#- d -#} c",
    "{% raw %}{{ x }}{% endraw %}\nz",
    "a {%- raw -%} {{ x }} {%- endraw -%} b",
    "  {% raw %}\n a{% endraw %}\n  {% raw %} {% endraw %}",
    "a\r\nb\r{% if true %}\r\nc{% endif %}\n\n",
    "{{ 1 }}\n{{ 2 }}\n",
    "{% for i in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }},{% endfor %}",
    "{% for i in l %}{{ loop.previtem }}-{{ loop.nextitem }} {% endfor %}",
    "{% for i in l %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{% endfor %}",
    "{% for i in [] %}x{% else %}none{% endfor %}{% for i in missing %}x{% else %}none{% endfor %}",
    "{% for i in l if i > 1 %}{{ loop.length }}{{ i }}{% else %}none{% endfor %}",
    "{% for i in l if i > 9 %}{{ i }}{% else %}none{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in d|items %}{{ k }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}",
    "{% for k, v in d|dictsort if k != 'b' %}{{ k }}{{ loop.last }}{% endfor %}",
    "{% for a, b in [[1, 2], (3, 4)] %}{{ a + b }} {% endfor %}",
    "{% for a, b in [[1, 2, 3]] %}{{ a }}{% endfor %}",
    "{% for c in 'héy' %}[{{ c }}]{% endfor %}",
    "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in range(2, 10, 3) %}{{ i }} {% endfor %}{% for i in range(3, 0, -1) %}{{ i }}{% endfor %}",
    "{{ range(4) | list }}{{ range(4)[1] }}{{ range(4)|length }}",
    "{% set x = 1 %}{% for i in l %}{% set x = x + i %}{{ x }} {% endfor %}{{ x }}",
    "{% set ns = namespace(x=0, s='a') %}{% for i in l %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ ns.s }}{{ ns.nope is defined }}",
    "{% set ns = namespace() %}{% set ns.a = 1 %}{% if true %}{% set ns.a = 2 %}{% endif %}{{ ns.a }}",
    "{% set ns = namespace({'q': 4}) %}{{ ns.q }}{{ ns['q'] }}",
    "{% set d2 = {'a': 1} %}{% set d2.a = 2 %}",
    "{% if false %}{% set y = 1 %}{% endif %}{{ y is defined }}{% if true %}{% set y = 2 %}{% endif %}{{ y }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set c = 1, 2 %}{{ c }}",
    "{% set x %}\n  body {{ n }}\n{% endset %}[{{ x }}]",
    "{% set x | upper | replace('B', 'q') %}body{% endset %}{{ x }}",
    "{% set x = 1 %}{% set y %}{% set x = 2 %}{{ x }}{% endset %}{{ x }}{{ y }}",
    "{% macro m(a, b=2, c='z') %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }}|{{ m(1, c=3) }}|{{ m() }}|{{ m(1, 2, 3)|upper }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=2) }}",
    "{% macro f(k) %}{% if k > 0 %}{{ k }}{{ f(k - 1) }}{% endif %}{% endmacro %}{{ f(4) }}",
    "{% macro f() %}{{ x }}{% endmacro %}{% set x = 3 %}{{ f() }}",
    "{% set x = 1 %}{% macro f() %}{{ x }}{% set x = 5 %}{{ x }}{% endmacro %}{% set x = 2 %}{{ f() }}{{ x }}",
    "{% macro f(a, b=a) %}{{ b }}{% endmacro %}{{ f(3) }}",
    "{% macro f(d) %}{{ d.items is defined }}{% endmacro %}{{ f({'a': 1}) }}",
    "{% with a = 1, b = 2 %}{{ a + b }}{% set c = 4 %}{% endwith %}{{ c is defined }}",
    "{% for i in [1] %}{% set q = 1 %}{% endfor %}{{ q is defined }}",
    "{% for i in l %}{% if loop.first %}{% set q = 7 %}{% endif %}{{ q }};{% endfor %}",
    "{% for i in [1, 2] %}{% for j in [1, 2] %}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}",
    "{% for i in [1, 2] %}{% set outer = loop %}{% for j in [5] %}{{ outer.index }}{{ loop.index }}{% endfor %}{% endfor %}",
    "{% if n > 5 %}a{% elif n > 3 %}b{% else %}c{% endif %}{% if n < 5 %}a{% elif n > 3 %}b{% else %}c{% endif %}{% if not n %}a{% elif not t %}b{% else %}c{% endif %}",
    "{% if missing %}a{% elif l %}b{% endif %}{% if missing is defined and missing %}c{% endif %}",
    "{{ raise_exception('no') }}",
    "{% if false %}{{ raise_exception('no') }}{% endif %}ok",
    "{% generation %}x {{ n }}{% endgeneration %}\ny",
    "{%- for m in messages -%}\n  {%- if m.role == 'assistant' -%}\n{% generation %}\n{{ m.content }}{% endgeneration %}\n{%- else -%}\n{{ m.content }}\n{%- endif -%}\n{%- endfor -%}",
    "{{ dict(a=1, b='x') }}{{ dict({'q': 1}, r=2) }}",
    "{{ messages }}",
    "{{ messages[1:] | map(attribute='role') | join('+') }}{{ messages[-1].role }}{{ messages[:1] | length }}",
    "{% set u = messages | selectattr('role', 'equalto', 'user') | list %}{{ u[-1] == messages[1] }}{{ u | length }}",
    "{% set u = l | select('odd') %}{{ u | list }}{{ u | list }}",
    "{% if l | select('gt', 99) %}generators are true{% endif %}",
    "{% set u = l | select('odd') %}{{ u[0] }}",
    "{{ (messages | selectattr('role', 'equalto', 'user') | first).content | trim }}",
    "{{ 'a' if messages[0]['role'] == 'system' else 'b' }}{{ messages[0].get('x', 'def') }}",
    "{{ '%s' }}{{ '\\x41\\u00e9\\101\\q\\n' }}{{ \"it's\" }}",
    "{{ [1, 2, 3,] }}{{ {'a': 1,} }}{{ (1, 2)[0] }}{{ 'abc'[1] }}{{ {'a': {'b': 2}}.a.b }}",
    "{{ 1 if true }}{{ 1 if false }}{{ (1, 2) }}{{ 1, 2 }}",
    "{{ {'}}': '%}'} }}",
    "{{ 'a' | upper ~ 'b' | upper }}{{ -1 | abs }}{{ 'a' ~ 1 + 2 }}{{ 1 ~ 2 * 3 }}",
    "{{ not 1 == 2 }}{{ not (1 in l) }}{{ 1 + 1 in l }}{{ 'a' in 'abc' and 'b' }}",
    "{{ n.foo is defined }}{{ nothing.foo is defined }}",
    "{{ 1 // 0 }}",
    "{{ unknown_function() }}",
    "{{ s.nope() }}",
    "{{ d['a'][1]['x'] is none }}{{ d.a[1]['y'] is defined }}",
    "{{ namespace }}{{ 1 }}" if False else "{{ 1 }}",
    "{% set x = none %}{{ x is none }}{{ x }}{{ x == none }}{{ None }}{{ True }}",
    "x{{ '' }}\n\n{% if true %}\n\n{% endif %}\n\n",
    "{%- set a = 'x' -%}\n\n  {{- a }}\n\t{%- if a %}  y {% endif %}",
    "{{ 'a\nb' }}{{ 'tab\there' }}",
    "{% for m in messages %}{{ loop.index0 % 2 == 0 }}{{ (m['role'] == 'user') != (loop.index0 % 2 == 0) }}{% endfor %}",
    "{% set loop_messages = messages[1:] %}{% set sys = messages[0]['content'] %}{{ sys ~ loop_messages | length }}",
    "{% for m in messages %}{% if not loop.last and messages[loop.index0 + 1].role != 'tool' %}{{ m.role }}{% endif %}{% endfor %}",
    "{% for m in messages[::-1] %}{{ (messages|length - 1) - loop.index0 }}{% endfor %}",
    "{{ messages[2].content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') }}",
]

ZZ = [{"role": "user", "content": "  Hé \U0001f600 <b>&'\"</b>\n"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a <city> & more é",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "The city's name"},
                    "days": {"type": ["integer", "null"], "description": "How many"},
                    "tags": {"type": "array", "items": {"type": "string"}, "description": "Tags"},
                },
                "required": ["city"],
            },
        },
    }
]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}}

SYSTEM, USER = {"role": "system", "content": " Be brief.\u3000\n"}, {"role": "user", "content": "What is 2+2?"}
ANSWER = {"role": "assistant", "content": "\n It is 4. \n"}
CONVERSATIONS = [
    ([USER], None),
    ([USER, ANSWER], None),
    ([SYSTEM, USER, ANSWER], None),
    ([SYSTEM, USER, ANSWER, ZZ[0], {"role": "assistant", "content": "<think>\nhm\n</think>\n\nÜber"}], None),
    ([USER, ANSWER, USER, ANSWER, ZZ[0]], None),
    ([{"role": "user", "content": ""}, {"role": "assistant", "content": ""}], None),
    ([{"role": "system", "content": ""}, {"role": "user", "content": "\n"}, {"role": "assistant", "content": "  "}], None),
    ([SYSTEM, USER], TOOLS),
    (
        [
            USER,
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "{\"t\": 3}", "name": "get_weather", "tool_call_id": "abcdefghi"},
            {"role": "assistant", "content": "Cold."},
        ],
        TOOLS,
    ),
    ([{"role": "user", "content": "/no_think <|im_end|> [INST] </s>"}, {"role": "assistant", "content": "日本\u2028語\x85"}], None),
    ([ANSWER, SYSTEM], None),
]


def snippets():
    for group, form in ((EXPRESSIONS, str), (FILTERS, lambda e: e.replace(" @ ", " | ")), (TESTS, str)):
        for line in group.strip().split("\n"):
            for expression in line.split("|"):
                yield "{{ " + form(expression) + " }}"
    yield from SNIPPETS
