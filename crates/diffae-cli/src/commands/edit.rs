//! `diffae edit --model MODEL INPUT.. --attribute NAME --strength 0.3 --out DIR`

use anyhow::{Context, Result, bail};
use diffae_infer::{Input, LoadOptions, ModelSource, Sheet, list_inputs, rgb_from_tensor};
use diffae_nets::AttributeClassifier;
use image::RgbImage;

use crate::args::{EditArgs, GlobalArgs};
use crate::output::{PictureOutput, Provenance, say, say_json};
use crate::progress::Progress;
use crate::session::{Session, architecture_hints};

/// How far edits go where nothing is known.
const USUAL_STRENGTH: f64 = 0.3;

/// Edits pictures, or lists what can be edited.
pub(crate) fn run(global: &GlobalArgs, args: &EditArgs) -> Result<()> {
    if args.list {
        return list(args);
    }
    let attribute = args.attribute.as_deref().context("--attribute is missing")?;
    let out = args.out.as_deref().context("--out is missing")?;
    if let Some(strength) = args.strengths.iter().chain(&args.strength).find(|strength| !strength.is_finite()) {
        bail!("a strength of {strength} is no strength")
    }
    let inputs = list_inputs(&args.input)?;
    let open = || Session::open(global, &args.model, &args.batch);
    let mut session = None;
    let strengths = match (args.strength, &args.strengths[..]) {
        (Some(strength), _) => vec![strength],
        (None, []) => {
            let model = &session.insert(open()?).model;
            vec![whole_way(model.classifier()?, model.attribute_idx(attribute)?)?.unwrap_or(USUAL_STRENGTH)]
        }
        (None, several) => several.to_vec(),
    };
    let wants_strip = !args.strengths.is_empty();
    let planned = inputs.iter().flat_map(|input| {
        let edited = strengths.iter().map(|&strength| edited_name(input, attribute, strength));
        edited.chain(wants_strip.then(|| strip_name(input, attribute)))
    });
    let mut output = PictureOutput::new(out, &planned.collect::<Vec<_>>(), args.force.overwrite())?;
    let session = session.map_or_else(open, Ok)?;
    let attribute_idx = session.model.attribute_idx(attribute)?;
    session.check_steps("--steps", args.steps)?;
    session.check_steps("--invert-steps", args.inversion.invert_steps)?;
    let has_strip = wants_strip && output.has_sheet();
    let provenance = Provenance::new(session.model.fingerprint())
        .with("steps", &args.steps)
        .with("invert_steps", &args.inversion.invert_steps)
        .with("attribute", attribute)
        .with("keep_residual", &args.keep_residual);

    let num_decodings = strengths.len() + usize::from(args.keep_residual);
    let progress = Progress::start("edit", inputs.len(), args.inversion.invert_steps + num_decodings * args.steps);
    for batch in inputs.chunks(session.batch_size()) {
        let x_0 = session.read(batch)?;
        let z_sem = session.model.encode_semantic(&x_0)?;
        let x_terminal = session.invert(&x_0, Some(&z_sem), args.inversion.invert_steps, &progress)?;
        let original = || session.original(&x_0, (&x_terminal, &z_sem), args.steps, &progress);
        let original = args.keep_residual.then(original).transpose()?;
        let mut strips: Vec<Vec<RgbImage>> = vec![Vec::new(); batch.len()];
        for &strength in &strengths {
            let edited = session.model.edit(&z_sem, attribute_idx, strength)?;
            let decoded = session.decode_edited((&x_terminal, &edited), original.as_ref(), args.steps, &progress)?;
            let names: Vec<_> = batch.iter().map(|input| edited_name(input, attribute, strength)).collect();
            output.write(&decoded, &names, &provenance.clone().with("strength", &strength))?;
            for (idx, strip) in strips.iter_mut().enumerate().filter(|_| has_strip) {
                strip.push(rgb_from_tensor(&decoded.get(idx)?)?);
            }
        }
        for (input, row) in batch.iter().zip(strips).filter(|_| has_strip) {
            let name = format!("{}.png", strip_name(input, attribute));
            let mut strip = Sheet::new().with_columns(strengths.iter().map(|strength| format!("{strength:+}")));
            strip.push(&input.name, row);
            output.write_sheet(&name, &strip.draw(), &provenance)?;
        }
    }
    progress.finish();
    output.commit(&provenance)?;
    say(&format!("wrote {} pictures to {}", inputs.len() * strengths.len(), out.display()))
}

fn list(args: &EditArgs) -> Result<()> {
    let source = ModelSource::open(&args.model.model, &architecture_hints(&args.model.hints))?;
    let model = source.build(&LoadOptions::cpu())?;
    let classifier = model.classifier()?;
    let attributes = &classifier.config().attributes;
    if args.json {
        return say_json(attributes);
    }
    attributes.iter().enumerate().try_for_each(|(idx, name)| match whole_way(classifier, idx)? {
        Some(strength) => say(&format!("{name:<16} the whole way: {strength}")),
        None => say(name),
    })
}

/// The strength that goes the whole way, to two significant digits, where the model knows it.
pub(super) fn whole_way(classifier: &AttributeClassifier, attribute_idx: usize) -> Result<Option<f64>> {
    let rounded = |strength: f64| Ok(format!("{strength:.1e}").parse()?);
    classifier.whole_way(attribute_idx)?.map(rounded).transpose()
}

/// `me_Smiling_+0.3`
fn edited_name(input: &Input, attribute: &str, strength: f64) -> String {
    format!("{}_{}_{strength:+}", input.name, file_part(attribute))
}

fn strip_name(input: &Input, attribute: &str) -> String {
    format!("{}_{}_strip", input.name, file_part(attribute))
}

/// The attribute as part of a file name.
fn file_part(attribute: &str) -> String {
    attribute.chars().map(|c| if c.is_alphanumeric() || c == '_' || c == '-' { c } else { '_' }).collect()
}
