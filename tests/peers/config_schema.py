"""The JSON Schema against jsonschema (PyPI): it is a valid schema, the resolved defaults and every shipped config satisfy it,
and what the program refuses for its type, range or choice the schema refuses too. Run: python tests/peers/config_schema.py ./nibble
"""
import glob
import json
import subprocess
import sys
import tempfile

from jsonschema import Draft202012Validator

REFUSED = [
    {"train": {"lrr": 1}},
    {"seed": -1},
    {"seed": 1.5},
    {"device": "cuda"},
    {"train": {"schedule": "cosin"}},
    {"lora": {"dropout": 1}},
    {"lora": {"alpha": 0}},
    {"lora": {"target_modules": []}},
    {"lora": {"target_modules": ["q_proj", "q_proj"]}},
    {"lora": {"layers": [1, 1]}},
    {"data": {"max_length": "long"}},
    {"distributed": {"shard_base": True}},
    {"model": {"path": None}},
    {"model": {"path": ""}},
    {"train": 3},
]


def main():
    nibble = sys.argv[1] if len(sys.argv) > 1 else "./nibble"
    schema = json.loads(subprocess.check_output([nibble, "config", "--schema"]))
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as empty:
        empty.write("{}")
        empty.flush()
        configs = [empty.name] + sorted(glob.glob("configs/train/*.json"))
        for path in configs:
            resolved = subprocess.check_output([nibble, "config", "--check", path, "--print"])
            validator.validate(json.loads(resolved))
    for config in REFUSED:
        assert not validator.is_valid(config), f"the schema lets pass {config}"
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(config, file)
            file.flush()
            result = subprocess.run([nibble, "config", "--check", file.name], capture_output=True, check=False)
            assert result.returncode == 2, f"the program lets pass {config}"
    print(f"ok: {len(configs)} configs satisfy the schema, {len(REFUSED)} mistakes are refused by both")


if __name__ == "__main__":
    main()
