"""Conversations through nibble's data set reader against transformers' apply_chat_template: text, ids, assistant masks.

    chat_parity.py BUILD [ASSETS]

Every chat template in the assets, and templates of our own (among them one with {% generation %}), times the conversations of
jinja_cases.py and those below. Text: with a tokenizer of bytes and the template's control tokens, so that ids are the text. Ids:
with that tokenizer, and with four real vocabularies to which the control tokens are added. A conversation whose text transformers renders and nibble refuses
must be refused because tools are left out of it, or be undecided (the end of a call) and equal where it is not trained.
"""
import json
import os
import re
import subprocess
import sys
import tempfile

from transformers import PreTrainedTokenizerFast

from chat_cases import CASES, OWN
from jinja_golden import source_of, templates

BOS, EOS = "<s>", "</s>"
VOCABULARIES = ("minimind", "phi-3-mini", "tinyllama", "gpt2")  # byte-level BPE, SentencePiece twice, GPT-2's
FOR_TRAINING = ("leaves out", "has no place for")


def stand_ins():
    shown = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    table, extra = {}, 0
    for byte in range(256):
        table[byte] = chr(byte) if byte in shown else chr(256 + extra)
        extra += byte not in shown
    return table


def control_tokens(source):
    found = re.findall(r"<\|[^|<>\s]+\|>|<｜[^｜<>\s]+｜>|\[/?[A-Z_]{3,}\]|</?start_of_turn>|</?end_of_turn>", source)
    return [BOS, EOS] + sorted(set(found) - {BOS, EOS})


def byte_tokenizer(folder, source):
    """One id a byte, ids from 256 for the control tokens that the template spells."""
    specials = control_tokens(source)
    added = [
        {"id": 256 + i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, text in enumerate(specials)
    ]
    bytelevel = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": False, "byte_fallback": False, "vocab": {c: b for b, c in stand_ins().items()}, "merges": [],
    }
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": bytelevel, "post_processor": None, "decoder": bytelevel, "model": model,
    }
    write_folder(folder, tokenizer, {"bos_token": BOS, "eos_token": EOS, "chat_template": source})
    return specials


def spelled(config, name):
    """A token of tokenizer_config.json, where it may be an object."""
    token = config.get(name)
    return token["content"] if isinstance(token, dict) else token


def real_tokenizer(folder, base, source):
    """The vocabulary of `base` with another template, and that template's control tokens added. None without both files."""
    paths = [os.path.join(base, name) for name in ("tokenizer.json", "tokenizer_config.json")]
    if not all(os.path.exists(path) for path in paths):
        return None
    tokenizer, config = (json.load(open(path, encoding="utf-8")) for path in paths)
    known = {token["content"] for token in tokenizer["added_tokens"]}
    after = 1 + max([*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])])
    missing = [text for text in control_tokens(source) if text not in known and text not in (BOS, EOS)]
    tokenizer["added_tokens"] += [
        {"id": after + i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, text in enumerate(missing)
    ]
    more = {"bos_token": spelled(config, "bos_token"), "eos_token": spelled(config, "eos_token")}
    write_folder(folder, tokenizer, {**more, "chat_template": source})
    made = PreTrainedTokenizerFast(tokenizer_file=os.path.join(folder, "tokenizer.json"), **more)
    made.chat_template = source
    return made


def write_folder(folder, tokenizer, config):
    os.makedirs(folder, exist_ok=True)
    for name, value in (("tokenizer.json", tokenizer), ("tokenizer_config.json", config)):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
            json.dump(value, f)


def spell(ids, specials):
    out = b""
    for i in ids:
        out += bytes([i]) if i < 256 else specials[i - 256].encode()
    return out.decode("utf-8")


def record_of(messages, tools):
    return json.dumps({"messages": messages, **({"tools": tools} if tools else {})})


def run(program, folder, records, train_on, scratch):
    data = os.path.join(scratch, "data.jsonl")
    with open(data, "w", encoding="utf-8") as f:
        f.write("\n".join(records) + "\n")
    done = subprocess.run([program, folder, data, "auto", train_on, os.path.join(scratch, "one.jsonl")], capture_output=True)
    if done.returncode != 0:
        sys.exit(f"{folder}: {done.stderr.decode()}")
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def untrained(messages):
    return [{**m, "train": False} if m["role"] == "assistant" and m.get("tool_calls") else m for m in messages]


def run_cases(program, folder, train_on, scratch, counts):
    """Every case; a call whose end cannot be decided is rendered where it is not trained."""
    results = run(program, folder, [record_of(messages, tools) for _, messages, tools in CASES], train_on, scratch)
    for i, (_, messages, tools) in enumerate(CASES):
        if "cannot be decided" in results[i].get("error", ""):
            results[i] = run(program, folder, [record_of(untrained(messages), tools)], train_on, scratch)[0]
            counts.add("undecided, compared untrained")
    return results


def reference(tokenizer, messages, tools, **more):
    try:
        return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **more)
    except Exception:
        return None


class Counts(dict):
    def add(self, name, count=1):
        self[name] = self.get(name, 0) + count


def compare(name, tokenizer, results, specials, counts):
    for (label, messages, tools), got in zip(CASES, results):
        want = reference(tokenizer, messages, tools)
        counts.add("conversations")
        if want is None or want == "":
            counts.add("refused by both" if "error" in got else "WRONG")
            if "error" not in got:
                print(f"DIFFERENT {name}: {label}: the template refuses, and nibble does not")
            continue
        if "error" in got:
            for_training = any(reason in got["error"] for reason in FOR_TRAINING)
            counts.add("refused for training" if for_training else "WRONG")
            if not for_training:
                print(f"DIFFERENT {name}: {label}: {got['error']}")
            continue
        counts.add("compared")
        if specials is not None:
            text = spell(got["ids"], specials)
            text = text[len(BOS):] if text.startswith(BOS) and not want.startswith(BOS) else text
            if text != want:
                counts.add("different texts")
                print(f"DIFFERENT {name}: {label}\n  want {want!r}\n  got  {text!r}")
        ids = tokenizer(want, add_special_tokens=not want.startswith(tokenizer.bos_token or "\0"))["input_ids"]
        if ids != got["ids"]:
            counts.add("different ids")
            print(f"DIFFERENT IDS {name}: {label}\n  want {ids}\n  got  {got['ids']}")


def compare_masks(name, tokenizer, results, counts):
    for (label, messages, tools), got in zip(CASES, results):
        if "error" in got or reference(tokenizer, messages, tools) is None:
            continue
        done = tokenizer.apply_chat_template(messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
        counts.add("masks")
        want = [0] + done["assistant_masks"][1:]  # a sequence's first token is no target
        if done["input_ids"] != got["ids"] or want != got["train"]:
            counts.add("different masks")
            print(f"DIFFERENT MASK {name}: {label}\n  want {want}\n  got  {got['train']}")


def compare_typed(name, program, folder, tokenizer, specials, scratch, counts):
    """Control tokens that a message spells are text, as with transformers' sanitize_control_tokens."""
    typed = " ".join(specials[:8])
    for content in (typed, "a" + typed.replace(" ", "") + "b"):
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": typed}]
        got = run(program, folder, [record_of(messages, None)], "all", scratch)[0]
        try:
            want = tokenizer.apply_chat_template(messages, sanitize_control_tokens=True)["input_ids"]
        except Exception:
            continue
        counts.add("typed")
        if "error" in got or got["ids"] != want:
            counts.add("different ids")
            print(f"DIFFERENT TYPED {name}\n  want {want}\n  got  {got}")


if __name__ == "__main__":
    program = os.path.join(sys.argv[1], "peers", "dataset_tool")
    assets = sys.argv[2] if len(sys.argv) > 2 else os.path.join("..", "shared", "assets")
    files, counts = list(templates(assets)), Counts()
    sources = [(path, source_of(path)) for path in files] + list(OWN.items())
    if not files:
        print(f"SKIP the models' templates: none in {assets}")
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, source) in enumerate(sources):
            folder = os.path.join(scratch, str(number))
            specials = byte_tokenizer(folder, source)
            tokenizer = PreTrainedTokenizerFast(
                tokenizer_file=os.path.join(folder, "tokenizer.json"), bos_token=BOS, eos_token=EOS
            )
            tokenizer.chat_template = source
            compare(name, tokenizer, run_cases(program, folder, "all", scratch, counts), specials, counts)
            compare_typed(name, program, folder, tokenizer, specials, scratch, counts)
            if re.search(r"\{%-?\s*generation", source):
                compare_masks(name, tokenizer, run_cases(program, folder, "assistant", scratch, counts), counts)
            for vocabulary in VOCABULARIES:
                folder = os.path.join(scratch, f"{number}-{vocabulary}")
                real = real_tokenizer(folder, os.path.join(assets, "tokenizers", vocabulary), source)
                if real is not None:
                    compare(f"{vocabulary} with {name}", real, run_cases(program, folder, "all", scratch, counts), None, counts)
                    counts.add("real tokenizers")
    print(f"{len(sources)} templates x {len(CASES)} conversations: " + ", ".join(f"{v} {k}" for k, v in counts.items()))
    print(f"differing texts {counts.get('different texts', 0)}, differing ids {counts.get('different ids', 0)}, "
          f"differing masks {counts.get('different masks', 0)}")
    sys.exit(any(counts.get(k) for k in ("WRONG", "different texts", "different ids", "different masks")))
