//! `diffae export MODEL --onnx DIR`

use anyhow::{Result, ensure};
use diffae_infer::ModelSource;
use diffae_onnx::{Export, MANIFEST_FILE, Precision};
use serde_json::json;

use super::say_either;
use crate::args::{ExportArgs, GlobalArgs, NumberType};
use crate::output::refuse_existing;
use crate::session::architecture_hints;

/// Writes a model as ONNX files with their manifest.
pub(crate) fn run(global: &GlobalArgs, args: &ExportArgs) -> Result<()> {
    ensure!(
        global.dtype == NumberType::F32,
        "an export is in f32, or with --half in f16; --dtype does not apply to it"
    );
    let (folder, overwrite) = (&args.onnx, args.force.overwrite());
    // Every export has one, so that an existing one is known before anything is computed.
    refuse_existing(&folder.join(MANIFEST_FILE), overwrite)?;
    let source = ModelSource::open(&args.model, &architecture_hints(&args.hints))?;
    let precision = if args.half { Precision::F16 } else { Precision::F32 };
    let export = Export::new(&source, precision)?;
    export.write(folder, overwrite)?;
    let files: Vec<&str> = export.files.keys().map(String::as_str).chain([MANIFEST_FILE]).collect();
    let report = json!({
        "command": "export", "out": folder, "kind": export.manifest.kind, "fingerprint": export.manifest.fingerprint,
        "precision": precision, "files": files,
    });
    say_either(&args.json, &report, &format!("wrote {} to {}", files.join(", "), folder.display()))
}
