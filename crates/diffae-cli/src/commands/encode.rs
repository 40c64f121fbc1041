//! `diffae encode --model MODEL INPUT.. --out codes.safetensors`

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use diffae_data::{Input, is_code_table};
use diffae_infer::{CodesHeader, CodesNeed, Encoded, PartialFolder, PipelineSettings, Settings};
use diffae_nets::weights::safetensors_bytes;
use serde_json::{Value, json};

use super::codes::write_table;
use crate::args::{EncodeArgs, GlobalArgs};
use crate::output::{Provenance, is_safetensors, make_parents, refuse_existing, say, say_json};
use crate::picture_output::{part_name, part_paths, tell_going_on, tell_kept};
use crate::pictures::{Listed, list_readable};
use crate::progress::{Job, Noun, Work};
use crate::session::Session;

const COMMAND: &str = "encode";
/// Name of the tensor of residuals in parts.
const RESIDUAL: &str = "residual";

/// Inputs and settings of an encoding.
struct Encoding<'a> {
    session: &'a Session,
    inputs: &'a [Input],
    need: CodesNeed,
    settings: PipelineSettings,
}

/// Encodes all pictures into one file.
pub(crate) fn run(global: &GlobalArgs, args: &EncodeArgs) -> Result<()> {
    let (out, overwrite) = (&args.out.out, args.out.force.overwrite());
    let is_table = is_code_table(out);
    if !is_safetensors(out) && !is_table {
        let endings = ".safetensors, or in .csv or .parquet for a table of z_sem";
        bail!("--out is {}, expected a name that ends in {endings}", out.display())
    }
    if is_table && !is_csv(out) && !cfg!(feature = "parquet") {
        bail!("this build writes no Parquet tables; build with `--features parquet`, or let --out end in .csv")
    }
    if is_table && (args.reference || args.inversion.is_some() || args.steps.is_some() || args.spacing.is_some()) {
        bail!("a table holds z_sem alone; options of the inversion to x_T go with --out NAME.safetensors")
    }
    if let (true, Some(shard)) = (is_table, args.shard) {
        bail!("shard {shard} writes codes, which `diffae codes` joins and makes a table of: --out ends in .safetensors")
    }
    let out = &args.shard.map_or_else(|| out.clone(), |shard| shard.path(out));
    refuse_existing(out, overwrite)?;
    let Listed { inputs, fingerprint: listing } =
        list_readable(&args.pictures.input, &args.pictures.reading, args.shard)?;
    let mut partial = PartialFolder::open(out, COMMAND)?;
    let session = Session::open(global, &args.model, &args.batch)?;
    let is_semantic = args.semantic_only || is_table;
    if is_semantic && !session.has_z_sem() {
        bail!("{} is a plain DDPM, which has no semantic code", args.model.model.display())
    }
    let is_inverted = !is_semantic && !session.is_one_shot();
    let pipeline_settings = args.settings(session.config())?;
    let mut settings = Settings::from([("model".to_owned(), session.model().fingerprint().into())]);
    if is_inverted {
        session.pipeline.check_inversion(&pipeline_settings).context("--steps")?;
        settings.extend(pipeline_settings.inversion_settings());
    }
    let mut decisive = session.run_settings(global);
    decisive.extend(settings.clone());
    decisive.insert("inputs".to_owned(), listing.clone().into());
    if let Some(shard) = args.shard {
        decisive.insert("shard".to_owned(), shard.to_string().into());
    }
    let num_kept = partial.begin(&decisive, args.resume.mode(&args.out.force))?;
    tell_going_on(num_kept, inputs.len());
    let need = if is_inverted { CodesNeed::Both } else { CodesNeed::ZSem };
    let encoding = Encoding { session: &session, inputs: &inputs, need, settings: pipeline_settings };
    let encoded = encoding.encode(&mut partial, num_kept);
    encoded.map_err(|error| tell_kept(error, partial.num_kept(), inputs.len()))?;
    let text = Provenance::without_model().with_all(&settings);
    let header = CodesHeader {
        chain: pipeline_settings.chain().filter(|_| is_inverted),
        names: inputs.into_iter().map(|input| input.name).collect(),
        fingerprint: session.model().fingerprint().to_owned(),
        shard: args.shard.map(|shard| (shard, listing)),
        text: text.entries().iter().cloned().collect(),
        shapes: BTreeMap::new(),
    };
    make_parents(out)?;
    let parts = part_paths(&partial)?;
    if is_table {
        let width = session.config().z_channels().unwrap_or(0);
        let shapes = BTreeMap::from([("z_sem".to_owned(), vec![header.names.len(), width])]);
        write_table((&parts, &CodesHeader { shapes, ..header.clone() }), out, overwrite)?;
    } else {
        header.write_parts(&parts, out, overwrite)?;
    }
    partial.discard();
    if args.json.json {
        let files = [out];
        let mut report = json!({ "command": COMMAND, "out": out, "files": files, "names": header.names });
        if let Some(shard) = args.shard {
            report["shard"] = shard.to_string().into();
        }
        let Value::Object(mut report) = report else { bail!("a report is an object") };
        report.extend(settings);
        return say_json(&report);
    }
    say(&format!("wrote the codes of {} to {}", Noun::Pictures.counted(header.names.len()), out.display()))
}

fn is_csv(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"))
}

impl Encoding<'_> {
    /// Encodes the remaining pictures, batch by batch.
    fn encode(&self, partial: &mut PartialFolder, num_kept: usize) -> Result<()> {
        let Self { session, inputs, need, settings } = *self;
        let pipeline = &session.pipeline;
        let left = inputs.len() - num_kept;
        let work = Work {
            encoder: session.encoder_calls(left),
            decoder: if need == CodesNeed::Both { left * pipeline.num_inversion_calls(&settings) } else { 0 },
            latent_net: 0,
        };
        let job = Job { label: COMMAND, noun: Noun::Pictures, num_items: inputs.len(), num_kept, work };
        let progress = session.progress(job);
        for batch in pipeline.batches(num_kept..inputs.len(), &settings) {
            let inputs = &inputs[batch.clone()];
            let x_0 = session.read(inputs)?;
            let Encoded { z_sem, x_terminal, chain, .. } =
                session.encode_inputs((inputs, &x_0), need, &settings, &progress)?;
            partial.write(&part_name(batch.end), &part(z_sem, x_terminal, chain.and_then(|chain| chain.residual))?)?;
            partial.keep(batch.end, Value::Null)?;
            progress.done(batch.len());
        }
        progress.finish();
        Ok(())
    }
}

/// Serializes the codes of a batch as a file.
fn part(z_sem: Option<Tensor>, x_terminal: Option<Tensor>, residual: Option<Tensor>) -> Result<Vec<u8>> {
    let mut tensors = BTreeMap::new();
    for (name, tensor) in [("z_sem", z_sem), ("x_T", x_terminal), (RESIDUAL, residual)] {
        if let Some(tensor) = tensor {
            tensors.insert(name.to_owned(), tensor.to_device(&Device::Cpu)?);
        }
    }
    Ok(safetensors_bytes(&tensors, &BTreeMap::new())?)
}
