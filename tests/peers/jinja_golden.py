"""Writes tests/golden/jinja.json: what transformers' Jinja environment makes of snippets, and of templates in a folder.

    jinja_golden.py [ASSETS] > tests/golden/jinja.json

Rows: source, variables (JSON text), text; or file (a path under ASSETS/tokenizers), variables, text: its length and FNV-1a, since
the text is the template author's. A text that is null: the template refuses. Needs transformers.
"""
import glob
import json
import os
import sys

import jinja2
from transformers.utils.chat_template_utils import _compile_jinja_template, _plain_template_data

from jinja_cases import CONVERSATIONS, VARIABLES, snippets



def render(source, variables):
    try:
        return _compile_jinja_template(source).render(**_plain_template_data(variables))
    except (jinja2.TemplateError, TypeError, ValueError, ZeroDivisionError, OverflowError, AttributeError, KeyError, RecursionError):
        return None


def source_of(path):
    with open(path, encoding="utf-8", newline="") as f:
        text = f.read()
    return json.loads(text).get("chat_template") if path.endswith(".json") else text


def templates(assets):
    for pattern in ("chat_templates/*.jinja", "*/tokenizer_config.json"):
        for path in sorted(glob.glob(os.path.join(assets, "tokenizers", pattern))):
            if isinstance(source_of(path), str):
                yield path


def key_of(text):
    return None if text is None else "%d %016x" % key(text.encode("utf-8"))


def key(data):
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 % 2**64
    return len(data), h


def conversations():
    for messages, tools in CONVERSATIONS:
        for generation in (False, True):
            yield {
                "messages": messages,
                "tools": tools,
                "documents": None,
                "add_generation_prompt": generation,
                "bos_token": "<s>",
                "eos_token": "</s>",
            }


if __name__ == "__main__":
    rows = []
    for source in snippets():
        rows.append({"source": source, "variables": json.dumps(VARIABLES), "text": render(source, VARIABLES)})
    for path in templates(sys.argv[1]) if len(sys.argv) > 1 else ():
        for i, variables in enumerate(conversations()):
            if i % 4 == 0 or i >= 2 * (len(CONVERSATIONS) - 4):
                row = {"file": os.path.relpath(path, os.path.join(sys.argv[1], "tokenizers")), "variables": json.dumps(variables)}
                rows.append({**row, "text": key_of(render(source_of(path), variables))})
    json.dump(rows, sys.stdout, indent=0)
    print()
