//! `diffae variations --model MODEL INPUT.. -n 8 --out DIR`

use anyhow::{Result, bail, ensure};
use diffae_data::rgb_from_tensor;
use diffae_infer::{Codes, CodesNeed, PipelineSettings, Settings, Sheet, Subjects, XTerminalSource};
use image::RgbImage;

use crate::args::{GlobalArgs, VariationsArgs, chain_settings};
use crate::picture_output::{Begin, OutputPlan, PictureOutput, Record};
use crate::pictures::list_readable_subjects;
use crate::progress::{Job, Noun, Work};
use crate::session::Session;

const COMMAND: &str = "variations";
const SHEET: &str = "sheet";

/// One variation.
struct Variation {
    /// Index of the picture.
    subject: usize,
    /// Index among the variations of that picture.
    idx: usize,
    record: Record,
}

/// Decodes the `z_sem` of each picture with several random `x_T`.
pub(crate) fn run(global: &GlobalArgs, args: &VariationsArgs) -> Result<()> {
    let subjects = list_readable_subjects(&args.input.input, &args.input.reading)?;
    let chosen = chosen(args)?;
    let each = |subject: usize| {
        let (name, origin) = (&subjects.all()[subject].name, subjects.picture(subject));
        let chosen = chosen.iter().map(move |&idx| {
            let note = Settings::from([("index".to_owned(), idx.into())]);
            let name = format!("{name}_variation_{idx:03}");
            Variation { subject, idx, record: Record { name, note, origin: origin.cloned() } }
        });
        chosen.collect::<Vec<_>>()
    };
    let variations: Vec<Variation> = (0..subjects.len()).flat_map(each).collect();
    let mut output = PictureOutput::open(OutputPlan {
        out: &args.out.out,
        command: COMMAND,
        records: variations.iter().map(|variation| variation.record.clone()).collect(),
        sheets: vec![SHEET.to_owned()],
        overwrite: args.out.force.overwrite(),
    })?;
    let session = Session::open(global, &args.model, &args.batch)?;
    if !session.has_z_sem() {
        bail!("{} is a plain DDPM, which has no semantic code", args.model.model.display())
    }
    subjects.check(session.model(), CodesNeed::ZSem)?;
    let settings = args.decoding.settings(&args.batch, session.config())?;
    let settings = PipelineSettings { seed: args.random.seed, x_terminal: XTerminalSource::Random, ..settings };
    session.check_chains(&settings, CodesNeed::ZSem)?;
    let mut public = Settings::from([
        ("model".to_owned(), session.model().fingerprint().into()),
        ("seed".to_owned(), settings.seed.into()),
    ]);
    public.extend(chain_settings(&settings, CodesNeed::ZSem));
    let mut hidden = session.run_settings(global);
    hidden.insert("inputs".to_owned(), subjects.fingerprint()?.into());
    hidden.insert("variations".to_owned(), format!("{chosen:?} of {}", args.count).into());
    let resume = args.resume.mode(&args.out.force);
    let num_kept = output.begin(Begin {
        public,
        hidden,
        num_items: variations.len(),
        resume,
        format: session.model().picture_format(),
    })?;
    let varying = Varying { session: &session, args, settings, subjects: &subjects, variations: &variations };
    let varied = varying.run(&mut output, num_kept);
    output.guard(varied)?;
    if output.has_sheet() {
        output.write_sheet(SHEET, &varying.sheet(&output, &chosen)?.draw())?;
    }
    let written = output.commit()?;
    if args.json.json { written.say_json() } else { written.say() }
}

/// Returns the indices of the wanted variations of a picture.
fn chosen(args: &VariationsArgs) -> Result<Vec<usize>> {
    if args.index.is_empty() {
        return Ok((0..args.count).collect());
    }
    let mut chosen = args.index.iter().flat_map(|range| range.0.clone()).map(usize::try_from);
    let mut chosen = chosen.by_ref().collect::<Result<Vec<_>, _>>()?;
    chosen.sort_unstable();
    chosen.dedup();
    let last = chosen.last().copied().unwrap_or(0);
    ensure!(last < args.count, "--index is {last}, expected less than the number of variations, {} (-n)", args.count);
    Ok(chosen)
}

/// Inputs shared by all variations.
struct Varying<'a> {
    session: &'a Session,
    args: &'a VariationsArgs,
    settings: PipelineSettings,
    subjects: &'a Subjects,
    variations: &'a [Variation],
}

impl Varying<'_> {
    /// Decodes the remaining variations, batch by batch.
    fn run(&self, output: &mut PictureOutput, num_kept: usize) -> Result<()> {
        let Self { session, args, settings, subjects, variations } = *self;
        let pipeline = &session.pipeline;
        let left = &variations[num_kept..];
        let of_one = |subject: usize| left.iter().filter(move |variation| variation.subject == subject).count();
        let encoded = (0..subjects.len()).filter(|&idx| of_one(idx) > 0 && subjects.picture(idx).is_some()).count();
        let decoder = left.len() * pipeline.num_decoding_calls(&settings);
        let work = Work { encoder: encoded, decoder, latent_net: 0 };
        let job = Job { label: COMMAND, noun: Noun::Pictures, num_items: variations.len(), num_kept, work };
        let progress = session.progress(job);
        let mut done = num_kept;
        for of_one in left.chunk_by(|a, b| a.subject == b.subject) {
            let subject = of_one.first().map_or(0, |variation| variation.subject);
            let encoded = session.encode(subjects, subject..subject + 1, CodesNeed::ZSem, &settings, &progress)?;
            let missing = diffae_infer::Error::MissingPart { part: "z_sem", hint: "nothing is to be varied" };
            let z_sem = Some(encoded.z_sem.ok_or(missing)?.repeat((of_one.len(), 1))?);
            let codes = Codes {
                z_sem,
                x_terminal: None,
                chain: None,
                names: of_one.iter().map(|variation| variation.record.name.clone()).collect(),
                fingerprint: session.model().fingerprint().to_owned(),
            };
            let numbers = of_one.iter().map(|variation| (subject * args.count + variation.idx) as u64);
            let numbers: Vec<u64> = numbers.collect();
            for decoded in pipeline.decode_batches(&codes, &numbers, &settings, &mut progress.observer()) {
                let (batch, x_0) = decoded?;
                let records: Vec<&Record> = of_one[batch.clone()].iter().map(|variation| &variation.record).collect();
                output.write(&x_0, &records)?;
                done += batch.len();
                output.keep(done, serde_json::Value::Null)?;
                progress.done(batch.len());
            }
        }
        progress.finish();
        Ok(())
    }

    /// Lays out a sheet with a row per picture: the picture, unless only its codes are known, and its variations.
    fn sheet(&self, output: &PictureOutput, chosen: &[usize]) -> Result<Sheet> {
        let Self { session, subjects, variations, .. } = *self;
        let has_pictures = subjects.num_pictures() > 0;
        let titles = has_pictures.then(|| "original".to_owned()).into_iter();
        let mut sheet = Sheet::new().with_columns(titles.chain(chosen.iter().map(|idx| format!("x_T {idx}"))));
        for of_one in variations.chunk_by(|a, b| a.subject == b.subject) {
            let Some(subject) = of_one.first().map(|variation| variation.subject) else { continue };
            if sheet.is_full() {
                sheet.leave_out(1);
                continue;
            }
            let mut row = vec![];
            if let Some(input) = subjects.picture(subject) {
                row.push(rgb_from_tensor(&input.read(session.model().picture_format())?)?);
            } else if has_pictures {
                // Of codes alone there is no original to show.
                let (width, height) = output.picture(&of_one[0].record.name)?.dimensions();
                row.push(RgbImage::from_pixel(width, height, image::Rgb([255; 3])));
            }
            for variation in of_one {
                row.push(output.picture(&variation.record.name)?);
            }
            sheet.push(&subjects.all()[subject].name, row);
        }
        Ok(sheet)
    }
}
