//! `diffae decode --model MODEL codes.safetensors --out DIR`

use anyhow::{Result, bail};
use diffae_infer::{
    Codes, CodesNeed, GivenSettings, ModelConfig, PipelineSettings, Settings, XTerminalSource, pick_codes,
};

use crate::args::{DecodeArgs, GlobalArgs, XTerminalChoice, chain_settings};
use crate::picture_output::{Begin, OutputPlan, PictureOutput, Record};
use crate::progress::{Job, Noun, Work};
use crate::session::Session;

const COMMAND: &str = "decode";

/// Codes, and the indices of those to decode.
struct Chosen {
    codes: Codes,
    indices: Vec<usize>,
}

/// Inputs shared by all decoding.
struct Decode<'a> {
    session: &'a Session,
    args: &'a DecodeArgs,
    settings: PipelineSettings,
    chosen: &'a Chosen,
    records: &'a [Record],
}

/// Decodes all codes of a file, or the chosen ones.
pub(crate) fn run(global: &GlobalArgs, args: &DecodeArgs) -> Result<()> {
    let (codes, indices) = pick_codes(&args.codes)?;
    let chosen = Chosen { codes, indices };
    let record = |&idx: &usize| {
        let note = Settings::from([("index".to_owned(), idx.into())]);
        Record { name: chosen.codes.names[idx].clone(), note, origin: None }
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
    let settings = PipelineSettings { seed: args.random.seed, ..settings(&chosen.codes, args, session.config())? };
    let is_stored = args.x_t == XTerminalChoice::Stored;
    let has_chain = is_stored && chosen.codes.chain.is_some() && !chosen.codes.is_sampled();
    let codes = if has_chain { CodesNeed::Both } else { CodesNeed::ZSem };
    session.check_chains(&settings, CodesNeed::ZSem)?;
    let mut public = Settings::from([
        ("model".to_owned(), session.model().fingerprint().into()),
        ("seed".to_owned(), settings.seed.into()),
    ]);
    public.extend(chain_settings(&settings, codes));
    let mut hidden = session.run_settings(global);
    hidden.extend(session.endpoint_settings(&settings)?);
    hidden.insert("x-t".to_owned(), format!("{:?}", args.x_t).into());
    hidden.insert(
        "inputs".to_owned(),
        diffae_infer::list_subjects(std::slice::from_ref(&args.codes))?.fingerprint()?.into(),
    );
    let resume = args.resume.mode(&args.out.force);
    let num_kept = output.begin(Begin {
        public,
        hidden,
        num_items: records.len(),
        resume,
        format: session.model().picture_format(),
    })?;
    let decoded =
        Decode { session: &session, args, settings, chosen: &chosen, records: &records }.run(&mut output, num_kept);
    output.guard(decoded)?;
    let written = output.commit()?;
    if args.json.json { written.say_json() } else { written.say() }
}

impl Decode<'_> {
    /// Decodes the remaining codes, batch by batch.
    fn run(&self, output: &mut PictureOutput, num_kept: usize) -> Result<()> {
        let Self { session, settings, chosen: Chosen { indices, .. }, records, .. } = *self;
        if num_kept == records.len() {
            return Ok(());
        }
        let (indices, records) = (&indices[num_kept..], &records[num_kept..]);
        let decoder = records.len() * session.pipeline.num_decoding_calls(&settings);
        let work = Work { decoder, ..Work::default() };
        let job = Job { label: COMMAND, noun: Noun::Pictures, num_items: num_kept + records.len(), num_kept, work };
        let progress = session.progress(job);
        let (codes, numbers) = (self.codes(indices)?, indices.iter().map(|&idx| idx as u64).collect::<Vec<_>>());
        for decoded in session.pipeline.decode_batches(&codes, &numbers, &settings, &mut progress.observer()) {
            let (batch, x_0) = decoded?;
            output.write(&x_0, &records[batch.clone()].iter().collect::<Vec<_>>())?;
            output.keep(num_kept + batch.end, serde_json::Value::Null)?;
            progress.done(batch.len());
        }
        progress.finish();
        Ok(())
    }

    /// Returns the codes to decode, with the `x_T` that `--x-t` asks for; random ones and endpoints are made when they are
    /// decoded.
    fn codes(&self, indices: &[usize]) -> Result<Codes> {
        let codes = self.chosen.codes.select(indices)?;
        let x_terminal = match (self.args.x_t, &codes.x_terminal) {
            (XTerminalChoice::Stored, Some(_)) => return Ok(codes),
            (XTerminalChoice::Stored, None) if !self.session.is_one_shot() => {
                bail!("the codes hold no x_T; use --x-t random, endpoint or zero")
            }
            (XTerminalChoice::Stored | XTerminalChoice::Zero, _) => {
                Some(self.session.model().zero_x_terminal(indices.len())?)
            }
            (XTerminalChoice::Random | XTerminalChoice::Endpoint, _) => None,
        };
        Ok(Codes { x_terminal, chain: None, ..codes })
    }
}

/// Fails if the codes cannot be those of the model.
fn check(codes: &Codes, session: &Session, args: &DecodeArgs) -> Result<()> {
    if let (false, Err(error)) = (args.any_model, codes.check_made_by(session.model(), &args.codes)) {
        bail!("{error}; --any-model decodes them anyway")
    }
    codes.check_sizes(session.model(), &args.codes)?;
    let is_stored = args.x_t == XTerminalChoice::Stored;
    let warning = is_stored.then(|| codes.foreign_noise_warning(&args.codes.display().to_string())).transpose()?;
    if let Some(warning) = warning.flatten() {
        tracing::warn!("{warning}");
    }
    Ok(())
}

/// Returns the settings of decoding; see [`GivenSettings::decoding_codes`](diffae_infer::GivenSettings::decoding_codes).
fn settings(codes: &Codes, args: &DecodeArgs, model: &ModelConfig) -> Result<PipelineSettings> {
    let given = args.decoding.given(&args.batch);
    if args.x_t != XTerminalChoice::Stored {
        let is_endpoint = args.x_t == XTerminalChoice::Endpoint;
        let source = if is_endpoint { XTerminalSource::Endpoint } else { XTerminalSource::Random };
        return Ok(GivenSettings { x_terminal: Some(source), ..given }.decoding(model)?);
    }
    Ok(given.decoding_codes(codes, &args.codes.display().to_string(), model)?)
}
