//! Output of decoded pictures: kept batch by batch, so that an interrupted run can be resumed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use candle_core::{DType, Device, Tensor};
use diffae_data::{Input, Overwrite, PictureFormat, is_picture_name, png_bytes, rgb_from_tensor};
use diffae_infer::{PartialFolder, Resume, Settings};
use diffae_nets::weights::{SafetensorsFile, TensorSource, safetensors_bytes};
use image::RgbImage;
use serde::Serialize;
use serde_json::Value;

use crate::interrupt::Interruption;
use crate::output::{Provenance, command_with, is_safetensors, refuse_existing, say, say_json, write_file};
use crate::progress::Noun;

/// One picture of a result.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    /// Name of the file, without its extension.
    pub(crate) name: String,
    /// Settings that are noted for this picture only.
    pub(crate) note: Settings,
    /// Picture that it was made of; a volume takes its place in space from there.
    pub(crate) origin: Option<Input>,
}

impl Record {
    /// Records the result of a picture, under its name and without settings of its own.
    pub(crate) fn of(input: &Input) -> Self {
        Self { name: input.name.clone(), note: Settings::new(), origin: Some(input.clone()) }
    }

    /// Encodes all numbers of the result, where no picture file can hold them.
    fn numbers(&self, x: &Tensor, format: PictureFormat) -> Result<Option<(String, Vec<u8>)>> {
        let Some(ending) = format.ending_of_numbers() else { return Ok(None) };
        let origin = self.origin.as_ref().filter(|_| format.shape.size.is_volume());
        let geometry = origin.map(|input| input.read_with_geometry(format)).transpose()?.and_then(|(_, place)| place);
        Ok(Some((format!("{}.{ending}", self.name), format.encode_numbers(x, geometry)?)))
    }
}

/// The files that a command is going to write.
pub(crate) struct OutputPlan<'a> {
    /// A folder for PNGs, or one `.safetensors` file of unquantized `x`.
    pub(crate) out: &'a Path,
    /// Name of the command.
    pub(crate) command: &'static str,
    /// Pictures to write.
    pub(crate) records: Vec<Record>,
    /// Names of sheets, if pictures are written.
    pub(crate) sheets: Vec<String>,
    pub(crate) overwrite: Overwrite,
}

/// Results of a command over a sequence of items, kept while the command works.
#[derive(Debug)]
pub(crate) struct PictureOutput {
    out: PathBuf,
    command: &'static str,
    records: Vec<Record>,
    sheets: Vec<String>,
    overwrite: Overwrite,
    kind: Kind,
    partial: PartialFolder,
    settings: Settings,
    provenance: Provenance,
    num_items: usize,
    /// Form of the model's pictures, once it is known.
    format: Option<PictureFormat>,
}

#[derive(Debug)]
enum Kind {
    Pictures,
    /// Batches that are not kept yet.
    Tensors(Vec<Tensor>),
}

/// Output of `--json`.
#[derive(Serialize)]
struct Report<'a> {
    command: &'a str,
    #[serde(flatten)]
    settings: &'a Settings,
    out: &'a Path,
    files: Vec<PathBuf>,
    pictures: Vec<ReportedPicture<'a>>,
}

#[derive(Serialize)]
struct ReportedPicture<'a> {
    name: &'a str,
    #[serde(flatten)]
    note: &'a Settings,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
    /// File of all numbers, of a volume, for instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    numbers: Option<PathBuf>,
}

impl PictureOutput {
    /// Checks that no file of the plan exists, that it can be written, and that no other run is writing it.
    pub(crate) fn open(plan: OutputPlan<'_>) -> Result<Self> {
        let OutputPlan { out, command, records, sheets, overwrite } = plan;
        let kind = if is_safetensors(out) {
            refuse_existing(out, overwrite)?;
            Kind::Tensors(vec![])
        } else {
            if is_picture_name(out) && !out.is_dir() {
                anyhow::bail!(
                    "{} names a picture, expected a folder for the PNGs, or a name that ends in .safetensors",
                    out.display()
                )
            }
            if out.is_file() {
                anyhow::bail!("{} is a file, expected a folder, or a name that ends in .safetensors", out.display())
            }
            for name in records.iter().map(|record| &record.name).chain(&sheets) {
                refuse_existing(&out.join(png_name(name)), overwrite)?;
            }
            Kind::Pictures
        };
        let sheets = if matches!(kind, Kind::Pictures) { sheets } else { vec![] };
        let partial = PartialFolder::open(out, command)?;
        let (settings, provenance) = (Settings::new(), Provenance::without_model());
        let out = out.to_owned();
        let (num_items, format) = (0, None);
        Ok(Self { out, command, records, sheets, overwrite, kind, partial, settings, provenance, num_items, format })
    }

    /// Starts the work on `num_items` items, or resumes an interrupted run: returns how many items are finished.
    /// `public` settings go into results, the `hidden` ones decide with them whether a run can be resumed.
    pub(crate) fn begin(&mut self, begin: Begin) -> Result<usize> {
        let Begin { public, hidden, num_items, resume, format } = begin;
        (self.num_items, self.format) = (num_items, Some(format));
        if let (Kind::Pictures, Some(ending)) = (&self.kind, format.ending_of_numbers()) {
            for record in &self.records {
                refuse_existing(&self.out.join(format!("{}.{ending}", record.name)), self.overwrite)?;
            }
        }
        self.provenance = Provenance::without_model().with_all(&public);
        let mut decisive: Settings =
            public.iter().chain(&hidden).map(|(key, value)| (key.clone(), value.clone())).collect();
        decisive.insert("items".to_owned(), num_items.into());
        decisive.insert("output".to_owned(), if self.has_sheet() { "pictures" } else { "tensors" }.into());
        self.settings = public;
        let num_kept = self.partial.begin(&decisive, resume)?;
        tell_going_on(num_kept, num_items);
        Ok(num_kept)
    }

    /// Adds a batch `[N, C, ..]`, one picture for each record; where no picture file holds all numbers, a file of these, too.
    pub(crate) fn write(&mut self, x_0: &Tensor, records: &[&Record]) -> Result<()> {
        match &mut self.kind {
            Kind::Tensors(batches) => batches.push(x_0.to_device(&Device::Cpu)?),
            Kind::Pictures => {
                for (idx, record) in records.iter().enumerate() {
                    let (provenance, x) = (self.provenance.clone().with_all(&record.note), x_0.get(idx)?);
                    let numbers = self.format.map(|format| record.numbers(&x, format)).transpose()?;
                    if let Some((name, bytes)) = numbers.flatten() {
                        self.partial.write(&name, &bytes)?;
                    }
                    self.write_png(&record.name, &rgb_from_tensor(&x)?, &provenance)?;
                }
            }
        }
        Ok(())
    }

    /// Notes that the first `done` items are completely written.
    pub(crate) fn keep(&mut self, done: usize, note: Value) -> Result<()> {
        if let Kind::Tensors(batches) = &mut self.kind {
            let x = Tensor::cat(&std::mem::take(batches), 0)?;
            let bytes = safetensors_bytes(&[("x".to_owned(), x)].into(), &[].into())?;
            self.partial.write(&part_name(done), &bytes)?;
        }
        Ok(self.partial.keep(done, note)?)
    }

    /// Returns the notes of finished items, in order.
    pub(crate) fn notes(&self) -> impl Iterator<Item = &Value> {
        self.partial.notes()
    }

    /// Returns whether a sheet is written, which is so where pictures are.
    pub(crate) fn has_sheet(&self) -> bool {
        matches!(self.kind, Kind::Pictures)
    }

    /// Reads a picture that is written already.
    pub(crate) fn picture(&self, name: &str) -> Result<RgbImage> {
        let path = self.partial.result(&png_name(name));
        Ok(image::open(&path).with_context(|| format!("cannot read {}", path.display()))?.into_rgb8())
    }

    /// Adds a sheet of pictures, if pictures are written.
    pub(crate) fn write_sheet(&self, name: &str, sheet: &RgbImage) -> Result<()> {
        match self.kind {
            Kind::Tensors(_) => Ok(()),
            Kind::Pictures => self.write_png(name, sheet, &self.provenance),
        }
    }

    fn write_png(&self, name: &str, picture: &RgbImage, provenance: &Provenance) -> Result<()> {
        let name = png_name(name);
        let bytes = png_bytes(picture, provenance.entries(), &self.out.join(&name))?;
        Ok(self.partial.write(&name, &bytes)?)
    }

    /// Adds to an error how much of the work is kept.
    pub(crate) fn guard<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| tell_kept(error, self.partial.num_kept(), self.num_items))
    }

    /// Moves all files to their final places, and returns a summary.
    pub(crate) fn commit(self) -> Result<Written> {
        let Self { out, command, records, sheets, overwrite, kind, partial, settings, provenance, format, .. } = self;
        match kind {
            Kind::Pictures => partial.commit(overwrite)?,
            Kind::Tensors(_) => {
                let x = joined_parts(&partial, "x")?.context("there are no pictures")?;
                let text = provenance.entries().iter().cloned().collect();
                write_file(&out, &safetensors_bytes(&[("x".to_owned(), x)].into(), &text)?, overwrite)?;
                partial.discard();
            }
        }
        let ending = format.and_then(PictureFormat::ending_of_numbers);
        Ok(Written { out, command, records, sheets, settings, ending })
    }
}

/// Settings and size of the work to start.
pub(crate) struct Begin {
    /// Settings that are noted in results.
    pub(crate) public: Settings,
    /// Settings that decide, besides the public ones, whether a run can be resumed.
    pub(crate) hidden: Settings,
    pub(crate) num_items: usize,
    pub(crate) resume: Resume,
    /// Form of the model's pictures.
    pub(crate) format: PictureFormat,
}

/// Results in their final places.
pub(crate) struct Written {
    out: PathBuf,
    command: &'static str,
    records: Vec<Record>,
    sheets: Vec<String>,
    settings: Settings,
    /// Ending of the files of all numbers beside the pictures.
    ending: Option<&'static str>,
}

impl Written {
    /// Prints the summary as JSON.
    pub(crate) fn say_json(&self) -> Result<()> {
        let is_file = is_safetensors(&self.out);
        let file = |name: &str| self.out.join(png_name(name));
        let numbers = |name: &str| Some(self.out.join(format!("{name}.{}", self.ending?)));
        let pictures = self.records.iter().map(|Record { name, note, .. }| {
            let (file, numbers) = (!is_file).then(|| (file(name), numbers(name))).unzip();
            ReportedPicture { name, note, file, numbers: numbers.flatten() }
        });
        let named = self.records.iter().map(|record| &record.name).chain(&self.sheets);
        let of_numbers = self.records.iter().filter_map(|record| numbers(&record.name));
        let files =
            if is_file { vec![self.out.clone()] } else { named.map(|name| file(name)).chain(of_numbers).collect() };
        say_json(&Report {
            command: self.command,
            settings: &self.settings,
            out: &self.out,
            files,
            pictures: pictures.collect(),
        })
    }

    /// Prints `wrote 2 pictures to out`.
    pub(crate) fn say(&self) -> Result<()> {
        say(&format!("wrote {} to {}", Noun::Pictures.counted(self.records.len()), self.out.display()))
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        if is_safetensors(&self.out) { self.out.clone() } else { self.out.join(png_name(name)) }
    }

    pub(crate) fn out(&self) -> &Path {
        &self.out
    }
}

/// Reports that work resumes after the first `num_kept` of `num_items` items, unless `--quiet` is set.
pub(crate) fn tell_going_on(num_kept: usize, num_items: usize) {
    if num_kept > 0 && tracing::enabled!(tracing::Level::WARN) {
        eprintln!("going on: {num_kept} of {} are kept from an interrupted run", Noun::Pictures.counted(num_items));
    }
}

/// Adds to an error how many of `num_items` items are kept.
pub(crate) fn tell_kept(error: anyhow::Error, num_kept: usize, num_items: usize) -> anyhow::Error {
    if num_kept == 0 {
        return error;
    }
    let kept = format!("{num_kept} of {} are kept", Noun::Pictures.counted(num_items));
    let way_on = format!("go on with: {}", command_with("--resume"));
    if crate::is_interrupt(&error) {
        return error.context(Interruption::new(format!("{kept}; {way_on}")));
    }
    anyhow!("{}; {kept}, {way_on}", crate::one_sentence(&error))
}

/// Returns the name of the file of tensors that ends with item `done`; names sort in order of the items.
pub(crate) fn part_name(done: usize) -> String {
    format!("part_{done:010}.safetensors")
}

/// Lists all parts in their order.
pub(crate) fn part_paths(partial: &PartialFolder) -> Result<Vec<PathBuf>> {
    let folder = partial.result("");
    let list = || -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        let mut paths: Vec<PathBuf> = entries.into_iter().filter(|path| is_safetensors(path)).collect();
        paths.sort();
        Ok(paths)
    };
    list().with_context(|| format!("cannot list what was kept in {}", folder.display()))
}

/// Joins all parts of a tensor; `None` if the parts have no such tensor.
pub(crate) fn joined_parts(partial: &PartialFolder, name: &str) -> Result<Option<Tensor>> {
    let paths = part_paths(partial)?;
    let read = || -> Result<Option<Tensor>> {
        let mut parts = vec![];
        for path in paths {
            let file = SafetensorsFile::open(&path)?;
            if file.shape(name).is_some() {
                parts.push(file.read(name)?.to_tensor(DType::F32, &Device::Cpu)?);
            }
        }
        if parts.is_empty() { Ok(None) } else { Ok(Some(Tensor::cat(&parts, 0)?)) }
    };
    read().with_context(|| format!("cannot read what was kept in {}", partial.result("").display()))
}

fn png_name(name: &str) -> String {
    format!("{name}.png")
}
