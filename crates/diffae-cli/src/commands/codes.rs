//! `diffae codes merge|info|to-parquet|to-csv FILES..`

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use candle_core::DType;
use diffae_data::{CodeRows, Overwrite, write_code_table};
use diffae_infer::CodesHeader;
use diffae_nets::weights::{SafetensorsFile, TensorSource};
use serde_json::{Value, json};

use super::say_either;
use crate::args::{CodesCommand, CodesFilesArgs, CodesInfoArgs, CodesJoinArgs};
use crate::output::{Provenance, is_safetensors, make_parents, refuse_existing};
use crate::progress::Noun;

pub(crate) fn run(args: &CodesFilesArgs) -> Result<()> {
    match &args.command {
        CodesCommand::Merge(args) => merge(args),
        CodesCommand::Info(args) => info(args),
        CodesCommand::ToParquet(args) => to_table(args, "parquet"),
        CodesCommand::ToCsv(args) => to_table(args, "csv"),
    }
}

/// Reads the headers of files.
fn headers(files: &[PathBuf]) -> Result<Vec<(PathBuf, CodesHeader)>> {
    files.iter().map(|path| Ok((path.clone(), CodesHeader::read(path)?))).collect()
}

fn merge(args: &CodesJoinArgs) -> Result<()> {
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

/// Rows of codes that are read at once.
const ROWS_AT_ONCE: usize = 1 << 14;

fn to_table(args: &CodesJoinArgs, ending: &str) -> Result<()> {
    let (out, overwrite) = (&args.out.out, args.out.force.overwrite());
    if out.extension().is_none_or(|extension| extension != ending) {
        bail!("--out is {}, expected a name that ends in .{ending}", out.display())
    }
    refuse_existing(out, overwrite)?;
    let (paths, mut header) = CodesHeader::joined(headers(&args.files)?)?;
    header.text.extend(Provenance::without_model().entries().iter().cloned());
    write_table((&paths, &header), out, overwrite)?;
    let count = header.names.len();
    let report = json!({ "command": format!("codes to-{ending}"), "out": out, "files": [out], "count": count });
    let text = format!("wrote z_sem of {} to {}", Noun::Pictures.counted(count), out.display());
    say_either(&args.json, &report, &text)
}

/// Writes the `z_sem` of files, which a header describes together, as a table.
pub(super) fn write_table((paths, header): (&[PathBuf], &CodesHeader), out: &Path, overwrite: Overwrite) -> Result<()> {
    let Some(&[_, width]) = header.shapes.get("z_sem").map(Vec::as_slice) else {
        bail!("{} holds no z_sem, of which a table is made", paths[0].display())
    };
    make_parents(out)?;
    let mut names = header.names.iter().cloned();
    let parts = paths.iter().flat_map(|path| match ZSemRows::open(path, width) {
        Ok(rows) => Box::new(rows) as Box<dyn Iterator<Item = Result<Vec<f32>>>>,
        Err(error) => Box::new(std::iter::once(Err(error))),
    });
    let rows = parts.map(|z_sem| {
        let z_sem = z_sem?;
        let count = z_sem.len().checked_div(width).unwrap_or(0);
        Ok::<_, anyhow::Error>(CodeRows { names: names.by_ref().take(count).collect(), z_sem })
    });
    write_code_table((out, overwrite), (width, &header.fingerprint), &header.text, rows)
}

/// Rows of `z_sem` of a file, some at a time.
struct ZSemRows {
    file: SafetensorsFile,
    width: usize,
    next: usize,
}

impl ZSemRows {
    fn open(path: &Path, width: usize) -> Result<Self> {
        Ok(Self { file: SafetensorsFile::open(path)?, width, next: 0 })
    }

    fn read(&self) -> Result<Vec<f32>> {
        let stored = self.file.read("z_sem")?;
        ensure!(stored.dtype == DType::F32, "z_sem is {:?}, expected f32", stored.dtype);
        let row_bytes = self.width * size_of::<f32>();
        let rest = stored.bytes.get(self.next * row_bytes..).unwrap_or_default();
        let (values, _) = rest[..rest.len().min(ROWS_AT_ONCE * row_bytes)].as_chunks::<4>();
        Ok(values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
    }
}

impl Iterator for ZSemRows {
    type Item = Result<Vec<f32>>;

    fn next(&mut self) -> Option<Self::Item> {
        let values = self.read();
        self.next += ROWS_AT_ONCE;
        values.map(|values| Some(values).filter(|values| !values.is_empty())).transpose()
    }
}

fn info(args: &CodesInfoArgs) -> Result<()> {
    let all = headers(&args.files)?;
    let report: Vec<Value> = all.iter().map(|(path, header)| description(path, header)).collect();
    let text: Vec<String> = report.iter().map(lines).collect();
    say_either(&args.json, &json!({ "command": "codes info", "codes": report }), &text.join("\n\n"))
}

/// Describes a file of codes.
fn description(path: &Path, header: &CodesHeader) -> Value {
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
