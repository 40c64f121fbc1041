#!/usr/bin/env bash
# webdataset 1.0.2 makes a sample of every AppleDouble member of an archive that a Mac has packed.
#
# Expected: `train/._0.png`, which macOS writes beside `train/0.png`, is skipped, or joins the sample `train/0`; or else
#           all of them form one odd sample.
# Seen:     each becomes a sample of its own. All of these have the key `train/`, the name of the folder, and the field
#           `_0.png`, `_1.png`, ..: the regular expression of keys lets the first dot of the hidden name end the key.
#           Half of the samples are none, in turn with the real ones, and no warning is given.
# For us:   shards are read without hidden members.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install webdataset==1.0.2
cat >"$folder/try.py" <<'PYTHON'
import io
import sys
import tarfile

import webdataset

path = sys.argv[1]
with tarfile.open(path, "w") as archive:
    for name in ["train/._0.png", "train/0.png", "train/._1.png", "train/1.png"]:
        member = tarfile.TarInfo(name)
        member.size = len(name)
        archive.addfile(member, io.BytesIO(name.encode()))
for sample in webdataset.WebDataset(path, shardshuffle=False):
    fields = sorted(field for field in sample if not field.startswith("__"))
    print(sample["__key__"], *fields)
PYTHON
cat >"$folder/expected" <<'OUTPUT'
train/ _0.png
train/0 png
train/ _1.png
train/1 png
OUTPUT
"$folder/venv/bin/python" "$folder/try.py" "$folder/mac.tar" >"$folder/got"
cat "$folder/got"
diff "$folder/expected" "$folder/got" && echo "as described: webdataset 1.0.2"
