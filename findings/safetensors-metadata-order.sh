#!/usr/bin/env bash
# safetensors 0.8.0 writes the metadata of a file in random order: the same tensors and text give other bytes each time.
#
# Expected: two saves of the same tensors with the same metadata are equal, byte for byte; tensors are sorted, so the
#           format looks canonical, and the files are compared and cached by checksum.
# Seen:     of twenty saves, several differ. They have the same length, the same tensors at the same offsets and the same
#           metadata; only the order of the keys in `__metadata__` is another, also within one process. With a single key
#           all saves are equal.
# For us:   headers are sorted after they are written, so that equal runs have equal files.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install safetensors==0.8.0 numpy==2.3.5
cat >"$folder/try.py" <<'PYTHON'
import json

import numpy
from safetensors.numpy import save

tensors = {name: numpy.arange(4, dtype=numpy.float32) for name in "dbca"}


def headers(metadata):
    saves = [save(tensors, metadata) for _ in range(20)]
    lengths = {int.from_bytes(data[:8], "little") for data in saves}
    assert len({len(data) for data in saves}) == 1 and len(lengths) == 1
    length = lengths.pop()
    assert len({data[8 + length:] for data in saves}) == 1
    texts = {data[8:8 + length] for data in saves}
    parsed = {json.dumps(json.loads(text), sort_keys=True) for text in texts}
    return len(texts), len(parsed), [key for key in json.loads(texts.pop()) if key != "__metadata__"]


many, meanings, order = headers({f"key {number}": "text" for number in range(8)})
print("eight keys:", "saves differ" if many > 1 else "saves are equal", "with", meanings, "meaning")
single, _, _ = headers({"key": "text"})
print("one key:", "saves differ" if single > 1 else "saves are equal")
print("tensors:", *order)
PYTHON
cat >"$folder/expected" <<'OUTPUT'
eight keys: saves differ with 1 meaning
one key: saves are equal
tensors: a b c d
OUTPUT
"$folder/venv/bin/python" "$folder/try.py" >"$folder/got"
cat "$folder/got"
diff "$folder/expected" "$folder/got" && echo "as described: safetensors 0.8.0"
