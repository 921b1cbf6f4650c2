"""Every snippet, and every chat template in the assets with every conversation: our text against transformers' own rendering.

    jinja_renders.py BUILD [ASSETS]
"""
import json
import os
import subprocess
import sys
import tempfile

from jinja_cases import VARIABLES, snippets
from jinja_golden import conversations, render, source_of, templates


def ours(program, source, variables, folder):
    for name, text in (("template", source), ("variables", json.dumps(variables))):
        with open(os.path.join(folder, name), "w", encoding="utf-8", newline="") as f:
            f.write(text)
    done = subprocess.run([program, os.path.join(folder, "template"), os.path.join(folder, "variables")], capture_output=True)
    return (done.stdout.decode("utf-8") if done.returncode == 0 else None), done.stderr.decode("utf-8", "replace")


if __name__ == "__main__":
    program = os.path.join(sys.argv[1], "peers", "jinja_tool")
    assets = sys.argv[2] if len(sys.argv) > 2 else os.path.join("..", "shared", "assets")
    files, count, refused, wrong = list(templates(assets)), 0, 0, 0
    cases = [("snippet", source, VARIABLES) for source in snippets()]
    cases += [(path, source_of(path), variables) for path in files for variables in conversations()]
    with tempfile.TemporaryDirectory() as folder:
        for name, source, variables in cases:
            want = render(source, variables)
            got, message = ours(program, source, variables, folder)
            count += 1
            refused += want is None
            if want != got:
                wrong += 1
                print(f"DIFFERENT {name}: {source[:80]!r}\n  want {want!r}\n  got  {got!r} {message}")
    if not files:
        print(f"SKIP templates: none in {assets}")
    print(f"{count} renderings ({len(files)} templates), {refused} refused by both, {wrong} different")
    sys.exit(wrong > 0)
