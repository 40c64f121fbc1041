//! `diffae edit --model MODEL INPUT.. --attribute NAME --strength 0.3 --out DIR`

use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;
use diffae_data::{Input, rgb_from_tensor};
use diffae_infer::{
    AttributeEdit, CodesBatch, CodesNeed, LoadOptions, ModelSource, PipelineSettings, Resume, Settings, Sheet,
    Subjects, USUAL_EDIT_STRENGTH, keep_residual, rounded_full_strength,
};
use diffae_nets::weights::float_bytes;
use image::RgbImage;

use crate::args::{EditArgs, GlobalArgs, chain_settings};
use crate::output::{say, say_json};
use crate::picture_output::{Begin, OutputPlan, PictureOutput, Record};
use crate::pictures::list_readable_subjects;
use crate::progress::{Job, Noun, Progress, Work};
use crate::session::{Session, architecture_hints};

const COMMAND: &str = "edit";
/// Maximum length of a part of a file name; longer ones are cut, and told apart by a checksum.
const MAX_NAME_CHARS: usize = 120;

/// An attribute on the command line.
#[derive(Debug, Clone, PartialEq)]
struct Wanted {
    attribute: String,
    strength: Option<f64>,
}

/// All attributes, and the strengths of each: one for each version of a picture.
struct Plan {
    wanted: Vec<Wanted>,
    versions: Vec<Vec<f64>>,
    wants_strip: bool,
}

/// Edits pictures, or lists what can be edited.
pub(crate) fn run(global: &GlobalArgs, args: &EditArgs) -> Result<()> {
    if args.list {
        return list(args);
    }
    let out = args.out.as_deref().context("--out is missing")?;
    let wanted: Vec<Wanted> = args.attribute.iter().map(|text| Wanted::parse(text)).collect();
    let given = wanted.iter().filter_map(|wanted| wanted.strength.as_ref());
    if let Some(strength) = args.strengths.iter().chain(&args.strength).chain(given).find(|given| !given.is_finite()) {
        bail!("a strength of {strength} is no strength")
    }
    let subjects = list_readable_subjects(&args.input, &args.reading)?;
    if let (true, Some(path)) = (args.keep_residual, subjects.codes_path()) {
        bail!("{} holds codes and no pictures, of which --keep-residual gives back what is lost", path.display())
    }
    let open = || Session::open(global, &args.model, &args.batch);
    let mut session = None;
    let plan = if let Some(plan) = Plan::without_model(&wanted, args) {
        plan
    } else {
        Plan::with_model(wanted, args, session.insert(open()?))?
    };
    let records = plan.records(&subjects);
    let mut output = PictureOutput::open(OutputPlan {
        out,
        command: COMMAND,
        records: records.concat(),
        sheets: plan.strips(&subjects),
        overwrite: args.force.overwrite(),
    })?;
    let session = session.map_or_else(open, Ok)?;
    let editing = Editing::new(&session, args, &plan, &subjects)?;
    let hidden = editing.hidden_settings(global)?;
    let resume: Resume = args.resume.mode(&args.force);
    let begin = Begin {
        public: editing.public_settings(),
        hidden,
        num_items: subjects.len(),
        resume,
        format: session.model().picture_format(),
    };
    let num_kept = output.begin(begin)?;
    let edited = editing.edit(&records, &mut output, num_kept);
    output.guard(edited)?;
    let written = output.commit()?;
    if args.json { written.say_json() } else { written.say() }
}

impl Wanted {
    /// Parses `NAME`, or `NAME=STRENGTH`; an equals sign that no number follows is part of the name.
    fn parse(text: &str) -> Self {
        let with_strength =
            text.rsplit_once('=').and_then(|(name, strength)| Some((name, strength.trim().parse().ok()?)));
        match with_strength {
            Some((name, strength)) => Self { attribute: name.trim().to_owned(), strength: Some(strength) },
            None => Self { attribute: text.to_owned(), strength: None },
        }
    }
}

impl Plan {
    /// Returns the plan, if the command line states all strengths.
    fn without_model(wanted: &[Wanted], args: &EditArgs) -> Option<Self> {
        let given = given_strengths(args);
        let base: Option<Vec<f64>> = match wanted {
            // Of one attribute without a strength of its own, they are the strengths.
            [Wanted { strength: None, .. }] if !given.is_empty() => Some(vec![1.]),
            wanted => wanted.iter().map(|wanted| wanted.strength).collect(),
        };
        base.map(|base| Self::new(wanted.to_vec(), &base, args))
    }

    fn with_model(wanted: Vec<Wanted>, args: &EditArgs, session: &Session) -> Result<Self> {
        let classifier = session.model().classifier()?;
        let strength = |wanted: &Wanted| {
            if let Some(strength) = wanted.strength {
                return Ok(strength);
            }
            let attribute_idx = attribute_idx(session, &wanted.attribute)?;
            Ok(rounded_full_strength(classifier, attribute_idx)?.unwrap_or(USUAL_EDIT_STRENGTH))
        };
        let base = wanted.iter().map(strength).collect::<Result<Vec<f64>>>()?;
        Ok(Self::new(wanted, &base, args))
    }

    fn new(wanted: Vec<Wanted>, base: &[f64], args: &EditArgs) -> Self {
        let given = given_strengths(args);
        let factors = if given.is_empty() { vec![1.] } else { given };
        let version = |factor: &f64| base.iter().map(|strength| rounded(strength * factor)).collect();
        Self { wanted, versions: factors.iter().map(version).collect(), wants_strip: !args.strengths.is_empty() }
    }

    /// Returns the records of the results of each subject.
    fn records(&self, subjects: &Subjects) -> Vec<Vec<Record>> {
        let of_one = |name: &str, origin: Option<&Input>| {
            let record = |strengths: &Vec<f64>| {
                let parts = self.wanted.iter().zip(strengths);
                let parts = parts.map(|(wanted, strength)| format!("{}_{strength:+}", file_part(&wanted.attribute)));
                let each = self.wanted.iter().zip(strengths);
                let each = each.map(|(wanted, strength)| format!("{}={strength}", wanted.attribute));
                let mut note = Settings::from([("edit".to_owned(), each.collect::<Vec<_>>().join(" ").into())]);
                if let [strength] = strengths[..] {
                    note.insert("strength".to_owned(), strength.into());
                }
                let name = format!("{name}_{}", shortened(&parts.collect::<Vec<_>>().join("_")));
                Record { name, note, origin: origin.cloned() }
            };
            self.versions.iter().map(record).collect()
        };
        let all = subjects.all().iter().enumerate();
        all.map(|(idx, subject)| of_one(&subject.name, subjects.picture(idx))).collect()
    }

    /// Returns the names of the strips, one per subject.
    fn strips(&self, subjects: &Subjects) -> Vec<String> {
        if !self.wants_strip {
            return vec![];
        }
        subjects.all().iter().map(|subject| self.strip_name(&subject.name)).collect()
    }

    /// Returns the strengths of each version, for the columns of a strip.
    fn titles(&self) -> impl Iterator<Item = String> {
        let joined =
            |strengths: &Vec<f64>| strengths.iter().map(|strength| format!("{strength:+}")).collect::<Vec<_>>();
        self.versions.iter().map(move |strengths| joined(strengths).join(" "))
    }

    fn strip_name(&self, name: &str) -> String {
        let parts: Vec<String> = self.wanted.iter().map(|wanted| file_part(&wanted.attribute)).collect();
        format!("{name}_{}_strip", shortened(&parts.join("_")))
    }
}

/// Inputs shared by all edits.
struct Editing<'a> {
    session: &'a Session,
    args: &'a EditArgs,
    settings: PipelineSettings,
    plan: &'a Plan,
    subjects: &'a Subjects,
    /// The edits of each version.
    edits: Vec<Vec<AttributeEdit>>,
    names: Vec<String>,
}

impl<'a> Editing<'a> {
    fn new(session: &'a Session, args: &'a EditArgs, plan: &'a Plan, subjects: &'a Subjects) -> Result<Self> {
        let indices = plan.wanted.iter().map(|wanted| attribute_idx(session, &wanted.attribute));
        let indices = indices.collect::<Result<Vec<usize>>>()?;
        let edits = |strengths: &Vec<f64>| -> Vec<AttributeEdit> {
            let each = indices.iter().zip(strengths);
            each.map(|(&attribute_idx, &strength)| AttributeEdit { attribute_idx, strength }).collect()
        };
        let edits: Vec<Vec<AttributeEdit>> = plan.versions.iter().map(edits).collect();
        edits.iter().try_for_each(|edits| session.model().check_edits(edits))?;
        args.levels.check(session.model())?;
        let known = &session.model().classifier()?.config().attributes;
        let names = indices.iter().map(|&idx| known[idx].clone()).collect();
        subjects.check(session.model(), CodesNeed::Both)?;
        subjects.noise_warnings()?.iter().for_each(|warning| tracing::warn!("{warning}"));
        let bases = (session.config(), PipelineSettings::REFERENCE_EDITS);
        let settings = args.decoding.with_inversion(&args.inversion, bases, &args.batch, Some(subjects))?;
        let need = if subjects.num_pictures() > 0 { CodesNeed::Both } else { CodesNeed::ZSem };
        session.check_chains(&settings, need)?;
        Ok(Self { session, args, settings, plan, subjects, edits, names })
    }

    fn public_settings(&self) -> Settings {
        let asked = self.settings.num_invert_steps;
        let first = self.subjects.num_invert_steps(0, asked);
        let is_one = |idx| self.subjects.num_invert_steps(idx, asked) == first;
        let mut settings = Settings::from([
            ("model".to_owned(), self.session.model().fingerprint().into()),
            ("attribute".to_owned(), self.names.join(", ").into()),
            ("keep_residual".to_owned(), self.args.keep_residual.into()),
        ]);
        settings.extend(self.args.levels.settings());
        let has_chain = self.settings.chain().is_some();
        settings.extend(chain_settings(&self.settings, if has_chain { CodesNeed::Both } else { CodesNeed::ZSem }));
        if let Some(num_steps) = first.filter(|_| !has_chain && (0..self.subjects.len()).all(is_one)) {
            settings.insert("inversion".to_owned(), "ddim".into());
            settings.insert("invert_steps".to_owned(), num_steps.into());
        }
        settings
    }

    fn hidden_settings(&self, global: &GlobalArgs) -> Result<Settings> {
        let mut hidden = self.session.run_settings(global);
        let classifier = self.session.model().classifier()?;
        hidden.insert("edits".to_owned(), format!("{:?}", self.edits).into());
        hidden.insert("strips".to_owned(), self.plan.wants_strip.into());
        hidden.insert("asked_invert_steps".to_owned(), self.settings.num_invert_steps.into());
        hidden.insert("inputs".to_owned(), self.subjects.fingerprint()?.into());
        // Directions may be fitted anew, which the model's fingerprint does not tell.
        let probe = self.session.model().latent_moments()?.mean.clone();
        let moved = self.edits.iter().flatten().map(|edit| {
            let direction = classifier.directions_at(edit.attribute_idx, &probe)?.flatten_all()?.to_vec1::<f32>()?;
            Ok(float_bytes(&direction).into_owned())
        });
        let moved: Vec<u8> = moved.collect::<Result<Vec<_>>>()?.concat();
        hidden.insert("directions".to_owned(), blake3::hash(&moved).to_string().into());
        Ok(hidden)
    }

    /// Edits the remaining pictures, batch by batch.
    fn edit(&self, records: &[Vec<Record>], output: &mut PictureOutput, num_kept: usize) -> Result<()> {
        let Self { session, settings, subjects, .. } = self;
        let pipeline = &session.pipeline;
        let left = num_kept..subjects.len();
        let num_encoded = left.clone().filter(|&idx| subjects.picture(idx).is_some()).count();
        let decodings = self.edits.len() + usize::from(self.adds_residual());
        let inverted = num_encoded * pipeline.num_inversion_calls(settings);
        let decoder = inverted + left.len() * decodings * pipeline.num_decoding_calls(settings);
        let versions = self.edits.len();
        let progress = session.progress(Job {
            label: COMMAND,
            noun: Noun::Pictures,
            num_items: subjects.len() * versions,
            num_kept: num_kept * versions,
            work: Work { encoder: num_encoded, decoder, latent_net: 0 },
        });
        for batch in pipeline.batches(left, settings) {
            self.edit_batch(batch.clone(), &records[batch.clone()], output, &progress)?;
            output.keep(batch.end, serde_json::Value::Null)?;
        }
        progress.finish();
        Ok(())
    }

    /// Returns whether what decoding loses is added.
    fn adds_residual(&self) -> bool {
        self.args.keep_residual && !self.session.pipeline.is_lossless(&self.settings)
    }

    fn edit_batch(
        &self,
        batch: std::ops::Range<usize>,
        records: &[Vec<Record>],
        output: &mut PictureOutput,
        progress: &Progress,
    ) -> Result<()> {
        let Self { session, settings, .. } = self;
        let encoded = session.encode(self.subjects, batch.clone(), CodesNeed::Both, settings, progress)?;
        let missing = |part| diffae_infer::Error::MissingPart { part, hint: "edits move z_sem and keep x_T" };
        let z_sem = encoded.z_sem.ok_or_else(|| missing("z_sem"))?;
        let x_terminal = encoded.x_terminal.ok_or_else(|| missing("x_T"))?;
        let numbers: Vec<u64> = (batch.start as u64..batch.end as u64).collect();
        let (x_terminal, chain, numbers) = (&x_terminal, encoded.chain.as_ref(), &numbers[..]);
        let decode = |z_sem: &Tensor| {
            let codes = CodesBatch { x_terminal, chain, z_sem: Some(z_sem), numbers };
            session.pipeline.decode_batch(codes, settings, &mut progress.observer())
        };
        let original = || anyhow::Ok((encoded.x_0.ok_or_else(|| missing("picture"))?, decode(&z_sem)?));
        let original = self.adds_residual().then(original).transpose()?;
        let has_strip = self.plan.wants_strip && output.has_sheet();
        let mut strips: Vec<Vec<RgbImage>> = vec![Vec::new(); batch.len()];
        for (version, edits) in self.edits.iter().enumerate() {
            let edited = session.model().edit_many(&z_sem, edits)?;
            let edited = self.args.levels.of_changed(session.model(), &z_sem, edited)?;
            let mut decoded = decode(&edited)?;
            if let Some((x_0, decoded_original)) = &original {
                decoded = keep_residual(&decoded, x_0, decoded_original)?;
            }
            let records: Vec<&Record> = records.iter().map(|of_one| &of_one[version]).collect();
            output.write(&decoded, &records)?;
            progress.done(batch.len());
            for (idx, strip) in strips.iter_mut().enumerate().filter(|_| has_strip) {
                strip.push(rgb_from_tensor(&decoded.get(idx)?)?);
            }
        }
        for (idx, row) in batch.zip(strips).filter(|_| has_strip) {
            let name = &self.subjects.all()[idx].name;
            let mut strip = Sheet::new().with_columns(self.plan.titles());
            strip.push(name, row);
            output.write_sheet(&self.plan.strip_name(name), &strip.draw())?;
        }
        Ok(())
    }
}

/// Returns the index of an attribute; for `NAME=x` the error is about the strength, if there is such a name.
fn attribute_idx(session: &Session, name: &str) -> Result<usize> {
    let found = session.model().attribute_idx(name);
    if found.is_err()
        && let Some((known, strength)) = name.rsplit_once('=')
    {
        ensure!(
            session.model().attribute_idx(known).is_err(),
            "the strength of {known} is {strength:?}, expected a number"
        );
    }
    Ok(found?)
}

fn given_strengths(args: &EditArgs) -> Vec<f64> {
    args.strength.map_or_else(|| args.strengths.clone(), |strength| vec![strength])
}

/// Rounds away the digits that arithmetic adds: 0.3, not 0.30000000000000004.
fn rounded(strength: f64) -> f64 {
    let rounded = (strength * 1e9).round() / 1e9;
    if rounded.is_finite() { rounded } else { strength }
}

fn list(args: &EditArgs) -> Result<()> {
    let source = ModelSource::open(&args.model.model, &architecture_hints(&args.model.hints))?;
    let model = source.build(&LoadOptions::cpu())?;
    let classifier = model.classifier()?;
    let attributes = &classifier.config().attributes;
    if args.json {
        return say_json(attributes);
    }
    attributes.iter().enumerate().try_for_each(|(idx, name)| match rounded_full_strength(classifier, idx)? {
        Some(strength) => say(&format!("{name:<16} full strength: {strength}")),
        None => say(name),
    })
}

/// Returns the attribute as part of a file name.
fn file_part(attribute: &str) -> String {
    attribute.chars().map(|c| if c.is_alphanumeric() || c == '_' || c == '-' { c } else { '_' }).collect()
}

/// Cuts a part of a file name that is too long for one.
fn shortened(part: &str) -> String {
    if part.chars().count() <= MAX_NAME_CHARS {
        return part.to_owned();
    }
    let start: String = part.chars().take(MAX_NAME_CHARS).collect();
    format!("{start}_{}", &blake3::hash(part.as_bytes()).to_hex()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_may_bring_its_strength() {
        let parse = |text: &str| {
            let Wanted { attribute, strength } = Wanted::parse(text);
            (attribute, strength)
        };
        assert_eq!(parse("Smiling"), ("Smiling".to_owned(), None));
        assert_eq!(parse("Blond Hair=-0.5"), ("Blond Hair".to_owned(), Some(-0.5)));
        assert_eq!(parse("a=b"), ("a=b".to_owned(), None));
        assert_eq!(parse("a=b=1"), ("a=b".to_owned(), Some(1.)));
    }

    #[test]
    fn products_have_no_digits_of_arithmetic() {
        assert_eq!(rounded(0.1 * 3.).to_string(), "0.3");
        assert!(rounded(f64::MAX) >= f64::MAX);
        let long = shortened(&"Attribute_+0.25_".repeat(40));
        assert!(long.len() < 140 && long != shortened(&"Attribute_+0.25_".repeat(41)));
    }
}
