//! `diffae sample --model MODEL -n 16 --out DIR`

use anyhow::{Result, bail};
use candle_core::Tensor;
use diffae_infer::{DecodeOptions, Error, NoiseSource, Sheet, read_tensor, rgb_from_tensor};
use diffae_nets::weights::{SafetensorsFile, TensorSource};
use diffae_schedule::Clip;
use image::RgbImage;

use crate::args::{GlobalArgs, SampleArgs};
use crate::output::{MOST_ON_SHEET, PictureOutput, Provenance, say};
use crate::progress::Progress;
use crate::session::Session;

/// Noise that the user gave.
struct GivenNoise {
    count: usize,
    z_terminal: Option<Tensor>,
    x_terminal: Option<Tensor>,
}

/// Invents pictures: `z_sem` first where the model has one, then the picture.
pub(crate) fn run(global: &GlobalArgs, args: &SampleArgs) -> Result<()> {
    let given = match &args.noise {
        Some(path) => GivenNoise::read(path)?,
        None => GivenNoise { count: args.count, z_terminal: None, x_terminal: None },
    };
    let names: Vec<String> = (0..given.count).map(|idx| format!("sample_{idx:05}")).collect();
    let planned: Vec<String> = names.iter().cloned().chain(["sheet".to_owned()]).collect();
    let mut output = PictureOutput::new(&args.out.out, &planned, args.out.force.overwrite())?;
    let session = Session::open(global, &args.model, &args.batch)?;
    given.check(&session)?;
    session.check_steps("--steps", args.decoding.steps)?;
    let latent_steps = if session.has_z_sem() { args.latent_steps } else { 0 };
    if session.has_z_sem() {
        session.model.latent_net()?;
        session.model.latent_moments()?;
    }
    let provenance = Provenance::new(session.model.fingerprint())
        .with("steps", &args.decoding.steps)
        .with("latent_steps", &latent_steps)
        .with("seed", &args.random.seed);
    let options = DecodeOptions { num_steps: args.decoding.steps, eta: args.eta, clip: Clip::UnitRange };
    let noise = NoiseSource::new(args.random.seed);
    let progress = Progress::start("sample", given.count, args.decoding.steps + latent_steps);
    let mut shown: Vec<RgbImage> = Vec::new();
    let mut start = 0;
    for names in names.chunks(session.batch_size()) {
        let indices = start as u64..(start + names.len()) as u64;
        let part = |tensor: &Tensor| tensor.narrow(0, start, names.len())?.to_device(session.model.device());
        let z_sem = if session.has_z_sem() {
            Some(match &given.z_terminal {
                Some(z_terminal) => session.denoise(&part(z_terminal)?, latent_steps, &progress)?,
                None => session.invent(noise, indices.clone(), latent_steps, &progress)?,
            })
        } else {
            None
        };
        let x_terminal = match &given.x_terminal {
            Some(x_terminal) => part(x_terminal)?,
            None => session.random_x_terminal(noise, indices.clone())?,
        };
        let x_0 =
            session.model.decode(&x_terminal, z_sem.as_ref(), &options, &mut noise.steps(indices), &mut |_| {
                progress.step(names.len())
            })?;
        output.write(&x_0, names, &provenance)?;
        let num_shown = if output.has_sheet() { MOST_ON_SHEET.saturating_sub(start).min(names.len()) } else { 0 };
        for idx in 0..num_shown {
            shown.push(rgb_from_tensor(&x_0.get(idx)?)?);
        }
        start += names.len();
    }
    progress.finish();
    output.write_sheet("sheet.png", &Sheet::grid(&shown).draw(), &provenance)?;
    output.commit(&provenance)?;
    say(&format!("wrote {} pictures to {}", given.count, args.out.out.display()))
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
