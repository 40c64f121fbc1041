//! `diffae decode --model MODEL codes.safetensors --out DIR`

use anyhow::{Result, bail};
use candle_core::Tensor;
use diffae_infer::{Codes, DecodeOptions, NoiseSource};
use diffae_schedule::Clip;

use crate::args::{DecodeArgs, GlobalArgs, XTerminalChoice};
use crate::output::{PictureOutput, Provenance, say};
use crate::progress::Progress;
use crate::session::Session;

/// Decodes all codes of a file.
pub(crate) fn run(global: &GlobalArgs, args: &DecodeArgs) -> Result<()> {
    let codes = Codes::read(&args.codes)?;
    let mut output = PictureOutput::new(&args.out.out, &codes.names, args.out.force.overwrite())?;
    let session = Session::open(global, &args.model, &args.batch)?;
    check(&codes, &session, args)?;
    let noise = NoiseSource::new(args.random.seed);
    let options = DecodeOptions { num_steps: args.decoding.steps, eta: args.eta, clip: Clip::UnitRange };
    let provenance = Provenance::new(session.model.fingerprint())
        .with("steps", &args.decoding.steps)
        .with("seed", &args.random.seed);
    let progress = Progress::start("decode", codes.names.len(), args.decoding.steps);
    let mut start = 0;
    for names in codes.names.chunks(session.batch_size()) {
        let part = |tensor: &Tensor| tensor.narrow(0, start, names.len())?.to_device(session.model.device());
        let z_sem = codes.z_sem.as_ref().map(part).transpose()?;
        let indices = start as u64..(start + names.len()) as u64;
        let x_terminal = match (args.x_t, &codes.x_terminal) {
            (XTerminalChoice::Stored, Some(x_terminal)) => part(x_terminal)?,
            (XTerminalChoice::Stored, None) if session.is_one_shot() => session.model.zero_x_terminal(names.len())?,
            (XTerminalChoice::Stored, None) => bail!("the codes hold no x_T; use --x-t random or --x-t zero"),
            (XTerminalChoice::Random, _) => session.random_x_terminal(noise, indices.clone())?,
            (XTerminalChoice::Zero, _) => session.model.zero_x_terminal(names.len())?,
        };
        let x_0 =
            session.model.decode(&x_terminal, z_sem.as_ref(), &options, &mut noise.steps(indices), &mut |_| {
                progress.step(names.len())
            })?;
        output.write(&x_0, names, &provenance)?;
        start += names.len();
    }
    progress.finish();
    output.commit(&provenance)?;
    say(&format!("wrote {} pictures to {}", codes.names.len(), args.out.out.display()))
}

/// Fails if the codes cannot be those of the model.
fn check(codes: &Codes, session: &Session, args: &DecodeArgs) -> Result<()> {
    let model = &session.model;
    let foreign = !codes.fingerprint.is_empty() && codes.fingerprint != model.fingerprint();
    if foreign && !args.any_model {
        bail!(
            "{} was made by model {}, not by {}, which is {}; --any-model decodes it all the same",
            args.codes.display(),
            codes.fingerprint,
            args.model.model.display(),
            model.fingerprint(),
        )
    }
    let width = codes.z_sem.as_ref().map(|z_sem| z_sem.dims()[1]);
    let expected = model.config().z_channels();
    if width != expected {
        let show = |width: Option<usize>| width.map_or("none".to_owned(), |width| format!("of width {width}"));
        bail!("the codes' z_sem is {}, the model expects {}", show(width), show(expected))
    }
    if let Some(x_terminal) = &codes.x_terminal
        && x_terminal.dims()[1..] != model.x_terminal_shape()
    {
        let expected = model.x_terminal_shape();
        bail!("the codes' x_T is {:?} a picture, the model expects {expected:?}", &x_terminal.dims()[1..])
    }
    session.check_steps("--steps", args.decoding.steps)
}
