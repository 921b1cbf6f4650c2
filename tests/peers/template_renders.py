"""Writes tests/golden/template_renders.json: what the models' own Jinja templates make of a few conversations.

    template_renders.py NAME=FILE... > tests/golden/template_renders.json

FILE is a tokenizer_config.json or a .jinja file of a model whose template NAME (a built-in) stands for. Rendered with
jinja2 in the environment that transformers uses; an error of the template becomes null.
"""
import json
import sys

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from template_keys import source_of

SYSTEM = ("system", " Be brief.\u3000\n")
USER = ("user", "  Hi <b>there</b>\n")
ANSWER = ("assistant", " Hello\u00e9!  ")
NEXT, LAST = ("user", "And\nthen?"), ("assistant", "Bye")
CONVERSATIONS = [
    [USER],
    [USER, ANSWER],
    [SYSTEM, USER, ANSWER],
    [USER, ANSWER, NEXT, LAST],
    [SYSTEM, USER, ANSWER, NEXT],
    [SYSTEM, USER, ANSWER, NEXT, LAST],
    [USER, SYSTEM, ANSWER],
    [ANSWER],
    [("system", ""), ("user", ""), ("assistant", "")],
    [SYSTEM, ("user", "  "), ANSWER],
]


def refuse(message):
    raise jinja2.TemplateError(message)


if __name__ == "__main__":
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    cases = []
    for argument in sys.argv[1:]:
        name, path = argument.split("=", 1)
        template = environment.from_string(source_of(path))
        for conversation in CONVERSATIONS:
            messages = [{"role": role, "content": content} for role, content in conversation]
            for generation in (False, True):
                try:
                    text = template.render(
                        messages=messages, add_generation_prompt=generation, bos_token="<s>", eos_token="</s>"
                    )
                except jinja2.TemplateError:
                    text = None
                cases.append({"template": name, "generation": generation, "messages": messages, "text": text})
    json.dump(cases, sys.stdout, indent=0)
    print()
