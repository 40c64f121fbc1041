#!/usr/bin/env bash
# dicom-pixeldata 0.10.1 (Rust): a color JPEG whose DICOM header says RGB is decoded as YCbCr, to other colors, without an error.
#
# Expected: a JPEG of three components without a marker that tells its colors has those of the DICOM header, as pydicom and
#           PS3.5 of the standard have it: a light gray border, (244, 244, 244).
# Seen:     the border is (255, 121, 255), pink; the mean of all values is 210 instead of 244. The decoder of JPEG guesses YCbCr
#           for want of a marker, and the header's "RGB" is not told to it. A file with Adobe's marker comes out right.
# For us:   scans in gray are not concerned (CT and MR of pydicom's files have the same numbers, RLE and lossless JPEG included);
#           photographs of skin or eyes in DICOM may be.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/src"
cat >"$folder/Cargo.toml" <<'TOML'
[package]
name = "colors"
version = "0.0.0"
edition = "2024"

[dependencies]
dicom-object = "=0.10.1"
dicom-pixeldata = { version = "=0.10.1", default-features = false, features = ["native"] }

[workspace]
TOML
cat >"$folder/src/main.rs" <<'RUST'
use dicom_pixeldata::PixelDecoder;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for path in std::env::args().skip(1) {
        let pixels = dicom_object::open_file(&path)?.decode_pixel_data()?.to_vec::<f32>()?;
        let mean = pixels.iter().map(|&value| f64::from(value)).sum::<f64>() / pixels.len() as f64;
        println!("{:?} mean {mean:.0}", &pixels[..3]);
    }
    Ok(())
}
RUST
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pydicom==3.0.2 numpy==2.4.6 pylibjpeg==2.1.0 pylibjpeg-libjpeg==2.5.0
data=$("$folder/venv/bin/python" -c 'import os, pydicom.data; print(os.path.dirname(pydicom.data.__file__))')/test_files
files=("$data/SC_jpeg_no_color_transform.dcm" "$data/SC_jpeg_no_color_transform_2.dcm")
{
    cargo run --quiet --release --manifest-path "$folder/Cargo.toml" --target-dir "$folder/target" -- "${files[@]}"
    "$folder/venv/bin/python" - "${files[@]}" <<'PY'
import sys
from pydicom.pixels import pixel_array
for path in sys.argv[1:]:
    pixels = pixel_array(path)
    print([float(value) for value in pixels.ravel()[:3]], f"mean {pixels.mean():.0f}")
PY
} | tee "$folder/got"
diff "$folder/got" - <<'EXPECTED'
[255.0, 121.0, 255.0] mean 210
[244.0, 246.0, 246.0] mean 246
[244.0, 244.0, 244.0] mean 244
[244.0, 246.0, 246.0] mean 246
EXPECTED
echo "as described: dicom-pixeldata 0.10.1, pydicom 3.0.2"
