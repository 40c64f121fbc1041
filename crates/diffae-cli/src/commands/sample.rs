//! `diffae sample --model MODEL -n 16 --out DIR`

use anyhow::{Result, bail, ensure};
use candle_core::Tensor;
use diffae_infer::{DecodeOptions, Error, NoiseSource, Settings, Sheet, read_tensor};
use diffae_nets::weights::{SafetensorsFile, TensorSource};
use diffae_schedule::Clip;

use crate::args::{GlobalArgs, SampleArgs};
use crate::output::MOST_ON_SHEET;
use crate::picture_output::{Begin, OutputPlan, PictureOutput, Record};
use crate::progress::{Job, Noun, Work};
use crate::session::{Decoding, Session};

const COMMAND: &str = "sample";
const SHEET: &str = "sheet";

/// Noise that the user gave.
struct GivenNoise {
    count: usize,
    z_terminal: Option<Tensor>,
    x_terminal: Option<Tensor>,
}

/// Samples pictures: `z_sem` first where the model has one, then the picture.
struct Sampling<'a> {
    session: &'a Session,
    given: &'a GivenNoise,
    options: DecodeOptions,
    num_latent_steps: usize,
    seed: u64,
    indices: &'a [u64],
    records: &'a [Record],
}

/// Samples the pictures of a seed, or some of them.
pub(crate) fn run(global: &GlobalArgs, args: &SampleArgs) -> Result<()> {
    let given = match &args.noise {
        Some(path) => GivenNoise::read(path)?,
        None => GivenNoise { count: args.count, z_terminal: None, x_terminal: None },
    };
    let indices = indices(args, &given)?;
    let record = |&idx: &u64| {
        let note = Settings::from([("index".to_owned(), idx.into())]);
        Record { name: format!("sample_{idx:05}"), note }
    };
    let records: Vec<Record> = indices.iter().map(record).collect();
    // A sheet shows a sample of the seed; single pictures are wanted alone.
    let sheets = if args.index.is_empty() { vec![SHEET.to_owned()] } else { vec![] };
    let wants_sheet = !sheets.is_empty();
    let overwrite = args.out.force.overwrite();
    let plan = OutputPlan { out: &args.out.out, command: COMMAND, records: records.clone(), sheets, overwrite };
    let mut output = PictureOutput::open(plan)?;
    let session = Session::open(global, &args.model, &args.batch)?;
    given.check(&session)?;
    session.check_steps("--steps", args.decoding.steps)?;
    let num_latent_steps = if session.has_z_sem() { args.latent_steps } else { 0 };
    if session.has_z_sem() {
        session.model.latent_net()?;
        session.model.latent_moments()?;
    }
    let sampling = Sampling {
        session: &session,
        given: &given,
        options: DecodeOptions { num_steps: args.decoding.steps, eta: args.eta, clip: Clip::UnitRange },
        num_latent_steps,
        seed: args.random.seed,
        indices: &indices,
        records: &records,
    };
    let num_kept = output.begin(sampling.begin(global, args)?)?;
    let sampled = sampling.sample(&mut output, num_kept);
    output.guard(sampled)?;
    if wants_sheet && output.has_sheet() {
        let shown = records.iter().take(MOST_ON_SHEET).map(|record| output.picture(&record.name));
        output.write_sheet(SHEET, &Sheet::grid(&shown.collect::<Result<Vec<_>>>()?).draw())?;
    }
    let written = output.commit()?;
    if args.json.json { written.say_json() } else { written.say() }
}

/// Numbers of the pictures of the seed, or of the noise that was given.
fn indices(args: &SampleArgs, given: &GivenNoise) -> Result<Vec<u64>> {
    if args.index.is_empty() {
        return Ok((0..given.count as u64).collect());
    }
    let mut indices: Vec<u64> = args.index.iter().flat_map(|range| range.0.clone()).collect();
    indices.sort_unstable();
    indices.dedup();
    if let (Some(path), Some(&last)) = (&args.noise, indices.last()) {
        ensure!(last < given.count as u64, "--index is {last}, but {} holds {} pictures", path.display(), given.count);
    }
    Ok(indices)
}

impl Sampling<'_> {
    /// What the pictures depend on.
    fn begin(&self, global: &GlobalArgs, args: &SampleArgs) -> Result<Begin> {
        let session = self.session;
        let mut public = Settings::from([
            ("model".to_owned(), session.model.fingerprint().into()),
            ("steps".to_owned(), args.decoding.steps.into()),
            ("latent_steps".to_owned(), self.num_latent_steps.into()),
            ("eta".to_owned(), args.eta.into()),
        ]);
        let mut hidden = session.run_settings(global);
        hidden.insert("latent_net".to_owned(), session.latent_fingerprint()?.into());
        let ranges = args.index.iter().map(|range| format!("{}..{}", range.0.start, range.0.end));
        hidden.insert("index".to_owned(), ranges.collect::<Vec<_>>().join(",").into());
        public.insert("seed".to_owned(), args.random.seed.into());
        if let Some(path) = &args.noise {
            let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.clone(), source })?;
            hidden.insert("noise".to_owned(), blake3::hash(&bytes).to_string().into());
        }
        Ok(Begin { public, hidden, num_items: self.records.len(), resume: args.resume.mode(&args.out.force) })
    }

    /// Samples what is not kept yet, batch by batch.
    fn sample(&self, output: &mut PictureOutput, num_kept: usize) -> Result<()> {
        let Self { session, indices, records, .. } = *self;
        let left = records.len() - num_kept;
        let work = Work {
            encoder: 0,
            decoder: left * session.decoding_calls(self.options.num_steps),
            latent_net: left * self.num_latent_steps,
        };
        let job = Job { label: COMMAND, noun: Noun::Pictures, num_items: records.len(), num_kept, work };
        let progress = session.progress(job);
        let noise = NoiseSource::new(self.seed);
        let mut done = num_kept;
        for records in records[num_kept..].chunks(session.batch_size()) {
            let indices = &indices[done..done + records.len()];
            let part = |tensor: &Tensor| -> Result<Tensor> {
                let row = |&idx: &u64| tensor.narrow(0, usize::try_from(idx).map_err(candle_core::Error::wrap)?, 1);
                let rows = indices.iter().map(row).collect::<candle_core::Result<Vec<_>>>()?;
                Ok(Tensor::cat(&rows, 0)?.to_device(session.model.device())?)
            };
            let numbers = || indices.iter().copied();
            let z_sem = match &self.given.z_terminal {
                _ if !session.has_z_sem() => None,
                Some(z_terminal) => Some(session.denoise(&part(z_terminal)?, self.num_latent_steps, &progress)?),
                None => Some(session.invent(noise, numbers(), self.num_latent_steps, &progress)?),
            };
            let x_terminal = match &self.given.x_terminal {
                Some(x_terminal) => part(x_terminal)?,
                None => session.random_x_terminal(noise, numbers())?,
            };
            let how = Decoding { options: self.options, noise: &mut noise.steps(numbers()) };
            let x_0 = session.decode_as(&x_terminal, z_sem.as_ref(), how, &progress)?;
            output.write(&x_0, &records.iter().collect::<Vec<_>>())?;
            done += records.len();
            output.keep(done, serde_json::Value::Null)?;
            progress.done(records.len());
        }
        progress.finish();
        Ok(())
    }
}

impl GivenNoise {
    fn read(path: &std::path::Path) -> Result<Self> {
        let file = SafetensorsFile::open(path).map_err(|source| Error::Weights { path: path.to_owned(), source })?;
        let read =
            |name: &str, num_axes: &[usize]| file.shape(name).map(|_| read_tensor(&file, name, num_axes)).transpose();
        // A one-shot autoencoder's noise is a vector.
        let (z_terminal, x_terminal) = (read("z_T", &[2])?, read("x_T", &[2, 4])?);
        let counts: Vec<usize> =
            [&z_terminal, &x_terminal].into_iter().flatten().map(|tensor| tensor.dims()[0]).collect();
        match counts[..] {
            [count] => Ok(Self { count, z_terminal, x_terminal }),
            [count, other] if count == other => Ok(Self { count, z_terminal, x_terminal }),
            [z, x] => bail!("{} holds {z} vectors z_T, but {x} noise maps x_T", path.display()),
            _ => bail!("{} holds neither z_T nor x_T", path.display()),
        }
    }

    fn check(&self, session: &Session) -> Result<()> {
        if let Some(x_terminal) = &self.x_terminal
            && x_terminal.dims()[1..] != session.model.x_terminal_shape()
        {
            let expected = session.model.x_terminal_shape();
            bail!("x_T has shape {:?}, the model expects [N, {expected:?}]", x_terminal.dims())
        }
        if let Some(z_terminal) = &self.z_terminal {
            let width = session.model.latent_net()?.config().z_channels;
            if z_terminal.dims()[1] != width {
                bail!("z_T has width {}, the model expects {width}", z_terminal.dims()[1])
            }
        }
        Ok(())
    }
}
