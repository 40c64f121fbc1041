#!/usr/bin/env bash
# nifti 0.18.0 (Rust): a volume that is written without a header claims a place in the patient's space that nobody gave.
#
# Expected: where nothing is known of orientation and voxel size, `sform_code` and `qform_code` are 0 ("unknown"), as NIfTI-1
#           defines and as nibabel writes `Nifti1Image(data, None)`.
# Seen:     `WriterOptions::new(path).write_nifti(&array)` writes sform_code 2 (aligned to another scan) and qform_code 1 (of the
#           scanner) with an identity; a reference header from `NiftiHeader::default()` claims code 1 for both. Readers then
#           take columns for right, rows for front, and voxels for cubes of 1 mm: nibabel reports RAS.
# For us:   decoded volumes without a place would have come back mirrored, since volumes with one are turned to one view.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/src"
cat >"$folder/Cargo.toml" <<'TOML'
[package]
name = "places"
version = "0.0.0"
edition = "2024"

[dependencies]
ndarray = "=0.17.2"
nifti = "=0.18.0"

[workspace]
TOML
cat >"$folder/src/main.rs" <<'RUST'
use ndarray::{Array, ShapeBuilder};
use nifti::{NiftiHeader, writer::WriterOptions};

fn main() -> nifti::Result<()> {
    let volume = Array::from_shape_fn((2, 3, 4).f(), |(x, y, z)| (x + 10 * y + 100 * z) as f32);
    WriterOptions::new("plain.nii").write_nifti(&volume)?;
    WriterOptions::new("default.nii").reference_header(&NiftiHeader::default()).write_nifti(&volume)
}
RUST
(cd "$folder" && cargo run --quiet --release --manifest-path Cargo.toml --target-dir target)
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nibabel==5.4.2
(cd "$folder" && venv/bin/python - <<'PY') | tee "$folder/got"
import nibabel, numpy
nibabel.save(nibabel.Nifti1Image(numpy.zeros((2, 3, 4), numpy.float32), None), "nibabel.nii")
for name in ("plain", "default", "nibabel"):
    image = nibabel.load(f"{name}.nii")
    codes = int(image.header["sform_code"]), int(image.header["qform_code"])
    print(name, *codes, "".join(nibabel.aff2axcodes(image.affine)), float(image.header["srow_x"][0]))
PY
diff "$folder/got" - <<'EXPECTED'
plain 2 1 RAS 1.0
default 1 1 RAS 1.0
nibabel 0 0 LAS 0.0
EXPECTED
echo "as described: nifti 0.18.0, nibabel 5.4.2"
