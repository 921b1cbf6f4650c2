"""Reads a run's event files with TensorBoard's own reader and compares them with its metrics.jsonl.

usage: tensorboard_read.py RUN      (needs the package tensorboard)

Every scalar of every step must be there exactly once, as the float32 nearest to the number in metrics.jsonl, also after a
resume, whose event file tells the reader to drop what an older one says of later steps.
"""

import json
import math
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, SCALARS

TAGS = {
    "train/loss": ("step", "loss"),
    "train/grad_norm": ("step", "grad_norm"),
    "train/lr": ("step", "lr"),
    "train/tokens_per_second": ("step", "tokens_per_second"),
    "eval/loss": ("eval", "loss"),
}


def as_float32(value):
    return math.nan if value is None else struct.unpack("<f", struct.pack("<f", value))[0]


def main(run):
    with open(f"{run}/metrics.jsonl", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    events = EventAccumulator(run, size_guidance={SCALARS: 0})
    events.Reload()
    compared = wrong = 0
    for tag, (kind, key) in TAGS.items():
        want = [(r["step"], as_float32(r[key])) for r in records if r["kind"] == kind]
        got = [(e.step, e.value) for e in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []
        compared += len(want)
        # JSON has no infinity: null stands for it too
        same = len(want) == len(got) and all(
            a[0] == b[0] and (a[1] == b[1] or (math.isnan(a[1]) and not math.isfinite(b[1]))) for a, b in zip(want, got)
        )
        if not same:
            wrong += 1
            print(f"{tag}: {len(got)} scalars read, {len(want)} in metrics.jsonl, or they differ")
    print(f"{compared} scalars compared, {wrong} tags differ")
    return 1 if wrong or compared == 0 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
