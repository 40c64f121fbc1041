//! `diffae sample --model MODEL -n 16 --out DIR`

use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;
use diffae_data::read_tensor;
use diffae_infer::{
    CodesBatch, CodesNeed, Error, LatentMethod, PipelineSettings, Settings, Sheet, XTerminalSource, noise_warning,
};
use diffae_nets::weights::{SafetensorsFile, TensorSource};

use crate::args::{GlobalArgs, SampleArgs, chain_settings};
use crate::output::MAX_ON_SHEET;
use crate::picture_output::{Begin, OutputPlan, PictureOutput, Record};
use crate::progress::{Job, Noun, Work};
use crate::session::Session;

const COMMAND: &str = "sample";
/// Number of pictures where the command line does not say.
const USUAL_COUNT: usize = 16;
const SHEET: &str = "sheet";

/// Noise from the user's file.
struct GivenNoise {
    count: usize,
    z_terminal: Option<Tensor>,
    x_terminal: Option<Tensor>,
}

/// Samples pictures: `z_sem` first where the model has one, then the picture.
struct Sampling<'a> {
    session: &'a Session,
    given: &'a GivenNoise,
    settings: PipelineSettings,
    indices: &'a [u64],
    records: &'a [Record],
}

/// Samples the pictures of a seed, or some of them.
pub(crate) fn run(global: &GlobalArgs, args: &SampleArgs) -> Result<()> {
    let given = match &args.noise {
        Some(path) => GivenNoise::read(path)?.limited(args.count, path)?,
        None => GivenNoise { count: args.count.unwrap_or(USUAL_COUNT), z_terminal: None, x_terminal: None },
    };
    let indices = indices(args, &given)?;
    let record = |&idx: &u64| {
        let note = Settings::from([("index".to_owned(), idx.into())]);
        Record { name: format!("sample_{idx:05}"), note, origin: None }
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
    let settings = args.decoding.settings(&args.batch, session.config())?;
    let latent_steps = args.latent_steps.unwrap_or(settings.num_latent_steps);
    let num_latent_steps = if session.has_z_sem() { latent_steps } else { 0 };
    let usual = settings.latent_options();
    let latent_method = args.latent.method(LatentMethod { sampler: usual.sampler, spacing: usual.spacing })?;
    let latent_method = latent_method.or(settings.latent_method);
    let x_terminal = args.x_t.map_or(settings.x_terminal, XTerminalSource::from);
    let settings = PipelineSettings { num_latent_steps, latent_method, x_terminal, seed: args.random.seed, ..settings };
    session.check_chains(&settings, CodesNeed::ZSem)?;
    if session.has_z_sem() {
        session.model().latent_net()?;
        session.pipeline.check_latent_steps(&settings).context("--latent-steps")?;
        session.model().latent_moments()?;
    }
    let sampling = Sampling { session: &session, given: &given, settings, indices: &indices, records: &records };
    let num_kept = output.begin(sampling.begin(global, args)?)?;
    let sampled = sampling.sample(&mut output, num_kept);
    output.guard(sampled)?;
    if wants_sheet && output.has_sheet() {
        let shown = records.iter().take(MAX_ON_SHEET).map(|record| output.picture(&record.name));
        let shown = shown.collect::<Result<Vec<_>>>()?;
        let mut sheet = Sheet::grid(&shown);
        sheet.leave_out((records.len() - shown.len()).div_ceil(shown.len().isqrt().max(1)));
        output.write_sheet(SHEET, &sheet.draw())?;
    }
    let written = output.commit()?;
    if args.json.json { written.say_json() } else { written.say() }
}

/// Returns the indices of the pictures of the seed, or of the noise from the file.
fn indices(args: &SampleArgs, given: &GivenNoise) -> Result<Vec<u64>> {
    if args.index.is_empty() {
        return Ok((0..given.count as u64).collect());
    }
    let mut indices: Vec<u64> = args.index.iter().flat_map(|range| range.0.clone()).collect();
    indices.sort_unstable();
    indices.dedup();
    if let (Some(path), Some(&last)) = (&args.noise, indices.last()) {
        ensure!(
            last < given.count as u64,
            "--index is {last}, but {} holds {}",
            path.display(),
            Noun::Pictures.counted(given.count)
        );
    }
    Ok(indices)
}

impl Sampling<'_> {
    /// Returns the settings that the pictures depend on.
    fn begin(&self, global: &GlobalArgs, args: &SampleArgs) -> Result<Begin> {
        let session = self.session;
        let mut public = Settings::from([
            ("model".to_owned(), session.model().fingerprint().into()),
            ("latent_steps".to_owned(), self.settings.num_latent_steps.into()),
        ]);
        public.extend(chain_settings(&self.settings, CodesNeed::ZSem));
        if self.settings.num_latent_steps > 0 {
            let latent = self.settings.latent_options();
            public.insert("latent_sampler".to_owned(), latent.sampler.to_string().into());
            public.insert("latent_spacing".to_owned(), latent.spacing.to_string().into());
        }
        let mut hidden = session.run_settings(global);
        hidden.extend(session.endpoint_settings(&self.settings)?);
        hidden.insert("latent_net".to_owned(), session.latent_fingerprint()?.into());
        let ranges = args.index.iter().map(|range| format!("{}..{}", range.0.start, range.0.end));
        hidden.insert("index".to_owned(), ranges.collect::<Vec<_>>().join(",").into());
        public.insert("seed".to_owned(), args.random.seed.into());
        if self.settings.x_terminal == XTerminalSource::Endpoint && self.given.x_terminal.is_none() {
            public.insert("x_T".to_owned(), "endpoint".into());
        }
        if let Some(path) = &args.noise {
            let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.clone(), source })?;
            hidden.insert("noise".to_owned(), blake3::hash(&bytes).to_string().into());
        }
        let (num_items, resume) = (self.records.len(), args.resume.mode(&args.out.force));
        Ok(Begin { public, hidden, num_items, resume, format: self.session.model().picture_format() })
    }

    /// Samples the remaining pictures, batch by batch.
    fn sample(&self, output: &mut PictureOutput, num_kept: usize) -> Result<()> {
        let Self { session, indices, records, settings, .. } = *self;
        let pipeline = &session.pipeline;
        let left = records.len() - num_kept;
        let work = Work {
            encoder: 0,
            decoder: left * pipeline.num_decoding_calls(&settings),
            latent_net: left * settings.num_latent_steps,
        };
        let job = Job { label: COMMAND, noun: Noun::Pictures, num_items: records.len(), num_kept, work };
        let progress = session.progress(job);
        for batch in pipeline.batches(num_kept..records.len(), &settings) {
            let (numbers, records) = (&indices[batch.clone()], &records[batch.clone()]);
            let part = |tensor: &Tensor| -> Result<Tensor> {
                let row = |&idx: &u64| tensor.narrow(0, usize::try_from(idx).map_err(candle_core::Error::wrap)?, 1);
                let rows = numbers.iter().map(row).collect::<candle_core::Result<Vec<_>>>()?;
                Ok(Tensor::cat(&rows, 0)?.to_device(session.model().device())?)
            };
            let observer = &mut progress.observer();
            let z_sem = match &self.given.z_terminal {
                Some(z_terminal) if session.has_z_sem() => {
                    Some(pipeline.denoise_z_sem_batch(&part(z_terminal)?, &settings, observer)?)
                }
                _ => pipeline.sample_z_sem_batch(numbers, &settings, observer)?,
            };
            let x_terminal = match &self.given.x_terminal {
                Some(x_terminal) => part(x_terminal)?,
                None => pipeline.x_terminal_batch(z_sem.as_ref(), numbers, &settings)?,
            };
            let codes = CodesBatch { x_terminal: &x_terminal, chain: None, z_sem: z_sem.as_ref(), numbers };
            let x_0 = pipeline.decode_batch(codes, &settings, observer)?;
            output.write(&x_0, &records.iter().collect::<Vec<_>>())?;
            output.keep(batch.end, serde_json::Value::Null)?;
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
        let (z_terminal, x_terminal) = (read("z_T", &[2])?, read("x_T", &[2, 4, 5])?);
        let counts: Vec<usize> =
            [&z_terminal, &x_terminal].into_iter().flatten().map(|tensor| tensor.dims()[0]).collect();
        match counts[..] {
            [count] => Ok(Self { count, z_terminal, x_terminal }),
            [count, other] if count == other => Ok(Self { count, z_terminal, x_terminal }),
            [z, x] => bail!("{} holds {z} vectors z_T, but {x} noise maps x_T", path.display()),
            _ => bail!("{} holds neither z_T nor x_T", path.display()),
        }
    }

    /// Keeps the noise of the first `count` pictures.
    fn limited(self, count: Option<usize>, path: &std::path::Path) -> Result<Self> {
        let Some(count) = count else { return Ok(self) };
        let held = self.count;
        ensure!(count <= held, "--count is {count}, but {} holds {}", path.display(), Noun::Pictures.counted(held));
        let first = |tensor: Option<Tensor>| tensor.map(|tensor| tensor.narrow(0, 0, count)).transpose();
        Ok(Self { count, z_terminal: first(self.z_terminal)?, x_terminal: first(self.x_terminal)? })
    }

    fn check(&self, session: &Session) -> Result<()> {
        if let Some(x_terminal) = &self.x_terminal
            && x_terminal.dims()[1..] != session.model().x_terminal_shape()
        {
            let expected = session.model().x_terminal_shape();
            bail!("x_T has shape {:?}, the model expects [N, {expected:?}]", x_terminal.dims())
        }
        if let Some(z_terminal) = &self.z_terminal {
            let width = session.model().latent_net()?.config().z_channels;
            if z_terminal.dims()[1] != width {
                bail!("z_T has width {}, the model expects {width}", z_terminal.dims()[1])
            }
        }
        // A one-shot autoencoder's holds its level, too.
        let x_terminal = self.x_terminal.as_ref().filter(|x_terminal| x_terminal.rank() > 2);
        for (name, noise) in [("x_T", x_terminal), ("z_T", self.z_terminal.as_ref())] {
            if let Some(warning) = noise.map(|noise| noise_warning(name, noise)).transpose()?.flatten() {
                tracing::warn!("{warning}");
            }
        }
        Ok(())
    }
}
