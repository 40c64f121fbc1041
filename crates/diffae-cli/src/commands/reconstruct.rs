//! `diffae reconstruct --model MODEL INPUT.. --out DIR`

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use diffae_data::{Input, rgb_from_tensor};
use diffae_infer::{CodesBatch, CodesNeed, PipelineSettings, Settings, Sheet, XTerminalSource};
use serde::{Deserialize, Serialize};

use crate::args::{GlobalArgs, ReconstructArgs, ReconstructionNoise, chain_settings};
use crate::output::{say, say_json};
use crate::picture_output::{Begin, OutputPlan, PictureOutput, Record};
use crate::pictures::{Listed, list_readable};
use crate::progress::{Job, Noun, Work};
use crate::session::Session;

const COMMAND: &str = "reconstruct";

const SHEET: &str = "sheet";

/// Accuracy of a reconstruction, both pictures in `[0, 1]`.
#[derive(Debug, Serialize, Deserialize)]
struct Measured {
    name: String,
    /// Path of the reconstruction, once it is written.
    #[serde(default)]
    file: PathBuf,
    psnr: Option<f64>,
    ssim: f64,
    mse: f64,
}

/// Encodes and decodes pictures, shows both side by side, and measures the difference.
pub(crate) fn run(global: &GlobalArgs, args: &ReconstructArgs) -> Result<()> {
    let Listed { inputs, fingerprint } = list_readable(&args.pictures.input, &args.pictures.reading, None)?;
    let mut output = PictureOutput::open(OutputPlan {
        out: &args.out.out,
        command: COMMAND,
        records: inputs.iter().map(Record::of).collect(),
        sheets: vec![SHEET.to_owned()],
        overwrite: args.out.force.overwrite(),
    })?;
    let session = Session::open(global, &args.model, &args.batch)?;
    let inverted = args.x_t == ReconstructionNoise::Inverted;
    let source = args.x_t.name();
    if !inverted && args.inversion.is_given() {
        bail!("--x-t {source} decodes without an inversion; --inversion and --invert-steps do not go with it")
    }
    let settings = if inverted {
        let bases = (session.config(), PipelineSettings::REFERENCE);
        args.decoding.with_inversion(&args.inversion, bases, &args.batch, None)?
    } else {
        args.decoding.settings(&args.batch, session.config())?
    };
    let x_terminal = match args.x_t {
        ReconstructionNoise::Endpoint => XTerminalSource::Endpoint,
        ReconstructionNoise::Inverted | ReconstructionNoise::Random => XTerminalSource::Random,
    };
    let settings = PipelineSettings { seed: args.random.seed, x_terminal, ..settings };
    let need = if inverted { CodesNeed::Both } else { CodesNeed::ZSem };
    session.check_chains(&settings, need)?;
    let mut public = Settings::from([("model".to_owned(), session.model().fingerprint().into())]);
    public.extend(chain_settings(&settings, need));
    if !inverted {
        public.insert("seed".to_owned(), args.random.seed.into());
        public.insert("x_T".to_owned(), source.into());
    }
    let mut hidden = session.run_settings(global);
    hidden.extend(session.endpoint_settings(&settings)?);
    hidden.insert("inputs".to_owned(), fingerprint.into());
    let resume = args.resume.mode(&args.out.force);
    let num_kept = output.begin(Begin {
        public,
        hidden,
        num_items: inputs.len(),
        resume,
        format: session.model().picture_format(),
    })?;
    let reconstructed =
        Reconstruction { session: &session, args, settings, inputs: &inputs }.run(&mut output, num_kept);
    output.guard(reconstructed)?;
    let mut measured: Vec<Measured> = vec![];
    for note in output.notes() {
        measured.extend(Vec::<Measured>::deserialize(note)?);
    }
    if output.has_sheet() {
        let columns = ["original".to_owned(), format!("{source} x_T")];
        output.write_sheet(SHEET, &side_by_side(&session, &inputs, &output)?.with_columns(columns).draw())?;
    }
    let written = output.commit()?;
    for row in &mut measured {
        row.file = written.file(&row.name);
    }
    if args.json {
        return say_json(&measured);
    }
    say_table(&measured)?;
    say(&format!("wrote {} to {}", Noun::Pictures.counted(measured.len()), written.out().display()))
}

/// Inputs shared by all reconstructions.
struct Reconstruction<'a> {
    session: &'a Session,
    args: &'a ReconstructArgs,
    settings: PipelineSettings,
    inputs: &'a [Input],
}

impl Reconstruction<'_> {
    /// Reconstructs the remaining pictures, batch by batch, and notes the measures.
    fn run(&self, output: &mut PictureOutput, num_kept: usize) -> Result<()> {
        let Self { session, args, settings, inputs } = *self;
        let pipeline = &session.pipeline;
        let inverted = args.x_t == ReconstructionNoise::Inverted;
        let invert_calls = if inverted { pipeline.num_inversion_calls(&settings) } else { 0 };
        let left = inputs.len() - num_kept;
        let calls = pipeline.num_decoding_calls(&settings) + invert_calls;
        let work = Work { encoder: session.encoder_calls(left), decoder: left * calls, latent_net: 0 };
        let job = Job { label: COMMAND, noun: Noun::Pictures, num_items: inputs.len(), num_kept, work };
        let progress = session.progress(job);
        let need = if inverted { CodesNeed::Both } else { CodesNeed::ZSem };
        for batch in pipeline.batches(num_kept..inputs.len(), &settings) {
            let inputs = &inputs[batch.clone()];
            let x_0 = session.read(inputs)?;
            let encoded = session.encode_inputs((inputs, &x_0), need, &settings, &progress)?;
            let numbers: Vec<u64> = (batch.start as u64..batch.end as u64).collect();
            let made = || pipeline.x_terminal_batch(encoded.z_sem.as_ref(), &numbers, &settings);
            let x_terminal = encoded.x_terminal.map_or_else(made, Ok)?;
            let codes = CodesBatch {
                x_terminal: &x_terminal,
                chain: encoded.chain.as_ref(),
                z_sem: encoded.z_sem.as_ref(),
                numbers: &numbers,
            };
            let decoded = pipeline.decode_batch(codes, &settings, &mut progress.observer())?;
            let records: Vec<Record> = inputs.iter().map(Record::of).collect();
            output.write(&decoded, &records.iter().collect::<Vec<_>>())?;
            let names: Vec<String> = inputs.iter().map(|input| input.name.clone()).collect();
            output.keep(batch.end, serde_json::to_value(measure(&x_0, &decoded, &names)?)?)?;
            progress.done(batch.len());
        }
        progress.finish();
        Ok(())
    }
}

fn measure(x_0: &Tensor, decoded: &Tensor, names: &[String]) -> Result<Vec<Measured>> {
    let (x, y) = (diffae_eval::to_unit(x_0)?, diffae_eval::to_unit(decoded)?);
    let psnr = diffae_eval::psnr(&x, &y).context("measuring PSNR")?;
    let ssim = diffae_eval::ssim(&x, &y).context("measuring SSIM")?;
    let mse = diffae_eval::mse(&x, &y).context("measuring MSE")?;
    let each = names.iter().zip(psnr).zip(ssim).zip(mse);
    // A perfect copy has no finite PSNR, which JSON could not hold.
    let finite = |value: f64| value.is_finite().then_some(value);
    Ok(each
        .map(|(((name, psnr), ssim), mse)| Measured {
            name: name.clone(),
            file: PathBuf::new(),
            psnr: finite(psnr),
            ssim,
            mse,
        })
        .collect())
}

/// Lays out a sheet with a row per picture: the picture and its reconstruction.
fn side_by_side(session: &Session, inputs: &[Input], output: &PictureOutput) -> Result<Sheet> {
    let mut sheet = Sheet::new();
    for (shown, input) in inputs.iter().enumerate() {
        if sheet.is_full() {
            sheet.leave_out(inputs.len() - shown);
            break;
        }
        let x_0 = input.read(session.model().picture_format())?;
        sheet.push(&input.name, vec![rgb_from_tensor(&x_0)?, output.picture(&input.name)?]);
    }
    Ok(sheet)
}

fn say_table(measured: &[Measured]) -> Result<()> {
    let width = measured.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).max("picture".len());
    let psnr = |value: Option<f64>| value.map_or("inf".to_owned(), |value| format!("{value:.2}"));
    say(&format!("{:width$}  PSNR dB    SSIM       MSE", "picture"))?;
    for Measured { name, psnr: value, ssim, mse, .. } in measured {
        say(&format!("{name:width$}  {:>7}  {ssim:.4}  {mse:.2e}", psnr(*value)))?;
    }
    if measured.len() > 1 {
        let count = measured.len() as f64;
        let mean = |value: fn(&Measured) -> f64| measured.iter().map(value).sum::<f64>() / count;
        let (ssim, mse) = (mean(|row| row.ssim), mean(|row| row.mse));
        let mean_psnr = mean(|row| row.psnr.unwrap_or(f64::INFINITY));
        say(&format!("{:width$}  {mean_psnr:>7.2}  {ssim:.4}  {mse:.2e}", "mean"))?;
    }
    Ok(())
}
