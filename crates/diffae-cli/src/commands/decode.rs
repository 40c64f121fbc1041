//! `diffae decode --model MODEL codes.safetensors --out DIR`

use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use diffae_infer::{Codes, DecodeOptions, NoiseSource, Settings, pick_codes};
use diffae_schedule::Clip;

use crate::args::{DecodeArgs, GlobalArgs, XTerminalChoice};
use crate::picture_output::{Begin, OutputPlan, PictureOutput, Record};
use crate::progress::{Job, Noun, Work};
use crate::session::{Decoding, Session};

const COMMAND: &str = "decode";

/// Codes, and which of them are decoded.
struct Chosen {
    codes: Codes,
    indices: Vec<usize>,
}

/// Everything that decoding needs.
struct Decode<'a> {
    session: &'a Session,
    args: &'a DecodeArgs,
    chosen: &'a Chosen,
    records: &'a [Record],
}

/// Decodes all codes of a file, or those that were chosen.
pub(crate) fn run(global: &GlobalArgs, args: &DecodeArgs) -> Result<()> {
    let (codes, indices) = pick_codes(&args.codes)?;
    let chosen = Chosen { codes, indices };
    let record = |&idx: &usize| {
        let note = Settings::from([("index".to_owned(), idx.into())]);
        Record { name: chosen.codes.names[idx].clone(), note }
    };
    let records: Vec<Record> = chosen.indices.iter().map(record).collect();
    let mut output = PictureOutput::open(OutputPlan {
        out: &args.out.out,
        command: COMMAND,
        records: records.clone(),
        sheets: vec![],
        overwrite: args.out.force.overwrite(),
    })?;
    let session = Session::open(global, &args.model, &args.batch)?;
    check(&chosen.codes, &session, args)?;
    let public = Settings::from([
        ("model".to_owned(), session.model.fingerprint().into()),
        ("steps".to_owned(), args.decoding.steps.into()),
        ("seed".to_owned(), args.random.seed.into()),
        ("eta".to_owned(), args.eta.into()),
    ]);
    let mut hidden = session.run_settings(global);
    hidden.insert("x-t".to_owned(), format!("{:?}", args.x_t).into());
    hidden.insert(
        "inputs".to_owned(),
        diffae_infer::list_subjects(std::slice::from_ref(&args.codes))?.fingerprint()?.into(),
    );
    let resume = args.resume.mode(&args.out.force);
    let num_kept = output.begin(Begin { public, hidden, num_items: records.len(), resume })?;
    let decoded = Decode { session: &session, args, chosen: &chosen, records: &records }.run(&mut output, num_kept);
    output.guard(decoded)?;
    let written = output.commit()?;
    if args.json.json { written.say_json() } else { written.say() }
}

impl Decode<'_> {
    /// Decodes what is not kept yet, batch by batch.
    fn run(&self, output: &mut PictureOutput, num_kept: usize) -> Result<()> {
        let Self { session, args, chosen: Chosen { codes, indices }, records } = *self;
        let noise = NoiseSource::new(args.random.seed);
        let options = DecodeOptions { num_steps: args.decoding.steps, eta: args.eta, clip: Clip::UnitRange };
        let decoder = (records.len() - num_kept) * session.decoding_calls(args.decoding.steps);
        let work = Work { decoder, ..Work::default() };
        let job = Job { label: COMMAND, noun: Noun::Pictures, num_items: records.len(), num_kept, work };
        let progress = session.progress(job);
        let mut start = num_kept;
        for records in records[num_kept..].chunks(session.batch_size()) {
            let indices = &indices[start..start + records.len()];
            let part = |tensor: &Tensor| -> Result<Tensor> {
                let rows =
                    indices.iter().map(|&idx| tensor.narrow(0, idx, 1)).collect::<candle_core::Result<Vec<_>>>()?;
                Ok(Tensor::cat(&rows, 0)?.to_device(session.model.device())?)
            };
            let z_sem = codes.z_sem.as_ref().map(part).transpose()?;
            let numbers: Vec<u64> = indices.iter().map(|&idx| idx as u64).collect();
            let x_terminal = match (args.x_t, &codes.x_terminal) {
                (XTerminalChoice::Stored, Some(x_terminal)) => part(x_terminal)?,
                (XTerminalChoice::Stored, None) if session.is_one_shot() => {
                    session.model.zero_x_terminal(records.len())?
                }
                (XTerminalChoice::Stored, None) => bail!("the codes hold no x_T; use --x-t random or --x-t zero"),
                (XTerminalChoice::Random, _) => session.random_x_terminal(noise, numbers.iter().copied())?,
                (XTerminalChoice::Zero, _) => session.model.zero_x_terminal(records.len())?,
            };
            let how = Decoding { options, noise: &mut noise.steps(numbers) };
            let x_0 = session.decode_as(&x_terminal, z_sem.as_ref(), how, &progress)?;
            output.write(&x_0, &records.iter().collect::<Vec<_>>())?;
            start += records.len();
            output.keep(start, serde_json::Value::Null)?;
            progress.done(records.len());
        }
        progress.finish();
        Ok(())
    }
}

/// Fails if the codes cannot be those of the model.
fn check(codes: &Codes, session: &Session, args: &DecodeArgs) -> Result<()> {
    if !args.any_model {
        codes.check_made_by(&session.model, &args.codes).context("--any-model decodes codes of another model")?;
    }
    codes.check_sizes(&session.model, &args.codes)?;
    session.check_steps("--steps", args.decoding.steps)
}
