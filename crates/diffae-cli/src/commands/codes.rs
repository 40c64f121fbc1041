//! `diffae codes merge|info FILES..`

use std::path::PathBuf;

use anyhow::{Result, bail};
use diffae_infer::CodesHeader;
use serde_json::{Value, json};

use super::say_either;
use crate::args::{CodesCommand, CodesFilesArgs, CodesInfoArgs, CodesMergeArgs};
use crate::output::{Provenance, is_safetensors, make_parents, refuse_existing};
use crate::progress::Noun;

pub(crate) fn run(args: &CodesFilesArgs) -> Result<()> {
    match &args.command {
        CodesCommand::Merge(args) => merge(args),
        CodesCommand::Info(args) => info(args),
    }
}

/// Reads the headers of files.
fn headers(files: &[PathBuf]) -> Result<Vec<(PathBuf, CodesHeader)>> {
    files.iter().map(|path| Ok((path.clone(), CodesHeader::read(path)?))).collect()
}

fn merge(args: &CodesMergeArgs) -> Result<()> {
    let (out, overwrite) = (&args.out.out, args.out.force.overwrite());
    if !is_safetensors(out) {
        bail!("--out is {}, expected a name that ends in .safetensors", out.display())
    }
    refuse_existing(out, overwrite)?;
    let (paths, mut header) = CodesHeader::joined(headers(&args.files)?)?;
    header.text.extend(Provenance::without_model().entries().iter().cloned());
    make_parents(out)?;
    header.write_parts(&paths, out, overwrite)?;
    let count = header.names.len();
    let report = json!({ "command": "codes merge", "out": out, "files": [out], "count": count, "merged": paths });
    let text = format!("wrote the codes of {} to {}", Noun::Pictures.counted(count), out.display());
    say_either(&args.json, &report, &text)
}

fn info(args: &CodesInfoArgs) -> Result<()> {
    let all = headers(&args.files)?;
    let report: Vec<Value> = all.iter().map(|(path, header)| description(path, header)).collect();
    let text: Vec<String> = report.iter().map(lines).collect();
    say_either(&args.json, &json!({ "command": "codes info", "codes": report }), &text.join("\n\n"))
}

/// Describes a file of codes.
fn description(path: &std::path::Path, header: &CodesHeader) -> Value {
    let mut report = json!({
        "file": path,
        "count": header.names.len(),
        "model": header.fingerprint,
        "chain": header.chain.map(|chain| chain.to_string()),
        "shapes": header.shapes,
        "settings": header.text,
    });
    if let Some((shard, _)) = &header.shard {
        report["shard"] = shard.to_string().into();
    }
    if let (Some(first), Some(last)) = (header.names.first(), header.names.last()) {
        report["names"] = json!([first, last]);
    }
    report
}

/// Formats a description as lines of a name and a value.
fn lines(report: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut lines = vec![format!("{}: codes of {} images", text(&report["file"]), report["count"])];
    for (name, shape) in report["shapes"].as_object().into_iter().flatten() {
        let sizes: Vec<String> = shape.as_array().into_iter().flatten().map(ToString::to_string).collect();
        lines.push(format!("  {name:<9} {}", sizes.join(" x ")));
    }
    for key in ["chain", "model", "shard"] {
        let value = report.get(key).filter(|value| !value.is_null()).map(text);
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            lines.push(format!("  {key:<9} {value}"));
        }
    }
    if let Some([first, last]) = report["names"].as_array().map(Vec::as_slice) {
        lines.push(format!("  names     {} .. {}", text(first), text(last)));
    }
    lines.join("\n")
}
