//! `diffae encode --model MODEL INPUT.. --out codes.safetensors`

use anyhow::{Result, bail};
use candle_core::{Device, Tensor};
use diffae_infer::Codes;

use crate::args::{EncodeArgs, GlobalArgs};
use crate::output::{Provenance, is_safetensors, refuse_existing, say};
use crate::pictures::list_readable;
use crate::progress::Progress;
use crate::session::Session;

/// Encodes all pictures into one file.
pub(crate) fn run(global: &GlobalArgs, args: &EncodeArgs) -> Result<()> {
    if !is_safetensors(&args.out.out) {
        bail!("--out is {}, expected a name that ends in .safetensors", args.out.out.display())
    }
    let overwrite = args.out.force.overwrite();
    refuse_existing(&args.out.out, overwrite)?;
    let inputs = list_readable(&args.pictures.input, &args.pictures.broken)?;
    let session = Session::open(global, &args.model, &args.batch)?;
    if args.semantic_only && !session.has_z_sem() {
        bail!("{} is a plain DDPM, which has no semantic code", args.model.model.display())
    }
    let semantic_only = args.semantic_only || session.is_one_shot();
    let num_steps = if semantic_only { 1 } else { args.steps };
    let progress = Progress::start("encode", inputs.len(), num_steps);
    let (mut z_sems, mut x_terminals) = (Vec::new(), Vec::new());
    for batch in inputs.chunks(session.batch_size()) {
        let x_0 = session.read(batch)?;
        let z_sem = session.encode_semantic(&x_0)?;
        if semantic_only {
            if progress.step(batch.len()).is_break() {
                return Err(diffae_infer::Error::Interrupted.into());
            }
        } else {
            x_terminals.push(session.invert(&x_0, z_sem.as_ref(), args.steps, &progress)?);
        }
        z_sems.extend(z_sem);
    }
    progress.finish();
    let codes = Codes {
        z_sem: joined(&z_sems)?,
        x_terminal: joined(&x_terminals)?,
        names: inputs.into_iter().map(|input| input.name).collect(),
        fingerprint: session.model.fingerprint().to_owned(),
    };
    let mut provenance = Provenance::new(session.model.fingerprint());
    if !semantic_only {
        provenance = provenance.with("steps", &args.steps);
    }
    codes.write(&args.out.out, provenance.entries(), overwrite)?;
    say(&format!("wrote the codes of {} pictures to {}", codes.names.len(), args.out.out.display()))
}

/// All batches as one tensor on the CPU; none if there are none.
fn joined(batches: &[Tensor]) -> Result<Option<Tensor>> {
    if batches.is_empty() {
        return Ok(None);
    }
    Ok(Some(Tensor::cat(batches, 0)?.to_device(&Device::Cpu)?))
}
