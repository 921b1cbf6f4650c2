"""Prints the rows of known_sources in data/template.c for published chat templates.

    template_keys.py NAME=FILE...    FILE: a tokenizer_config.json, or a .jinja file

NAME is the built-in that renders the same text; tests/peers/template_renders.py shows that it does. The key is FNV-1a
(64 bits) and the length of the source with CRLF as LF and without one line end at its end.
"""
import json
import sys


def source_of(path):
    with open(path, encoding="utf-8", newline="") as f:
        text = f.read()
    return json.loads(text)["chat_template"] if path.endswith(".json") else text


def key_of(source):
    source = source[:-1] if source.endswith("\n") else source
    source = source[:-1] if source.endswith("\r") else source
    data = source.replace("\r\n", "\n").encode("utf-8")
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 % 2**64
    return h, len(data)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        name, path = argument.split("=", 1)
        print('    {{UINT64_C(0x%016x), %d}, "%s"},' % (*key_of(source_of(path)), name))
