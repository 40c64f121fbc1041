//! `diffae eval fid`: distance between generated and real images, by features of a network.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};
use diffae_data::Crop;
use diffae_data::{rgb_from_bytes, write_atomically};
use diffae_eval::{
    FeatureKind, FeatureNetwork, InceptionInput, Moments, frechet_distance, kernel_distance_of_subsets,
    manifold_members,
};
use diffae_infer::PipelineSettings;

use super::feature_file::{FeatureFile, fingerprint_of_file};
use super::journal::Settings;
use super::report::{Figure, Report};
use crate::args::{FidArgs, FidProtocol, FidSource, GlobalArgs, Judged as JudgedArg, PictureCrop, ResizeName};
use crate::device::device_from_name;
use crate::picture_output::sampler_settings;
use crate::pictures::PictureSet;
use crate::progress::Progress;
use crate::session::{Session, catch_interrupts, to_unit};

const NAME: &str = "fid";
/// Number of generated pictures in the reference's protocol.
const REFERENCE_COUNT: usize = 50_000;
/// Batch size of the feature network.
const BATCH: usize = 16;

/// Source of the evaluated images.
enum Judged {
    /// A folder of images.
    Folder(PictureSet),
    /// A model that samples images.
    Sampled(Session),
    /// A model that decodes the `z_sem` of real pictures from random `x_T`.
    Decoded(Session),
}

/// A feature network and its fingerprint.
struct Features {
    network: FeatureNetwork,
    settings: Settings,
}

/// Features of both sets, with the settings that name them.
struct Sets {
    real: Option<FeatureFile>,
    judged: FeatureFile,
    settings: Settings,
    moments_of_real: Moments,
}

/// Computes features of both sets, and compares them.
pub(super) fn run(global: &GlobalArgs, args: &FidArgs) -> Result<Report> {
    catch_interrupts();
    let is_reference = args.protocol == FidProtocol::Reference;
    ensure!(
        !is_reference || FeatureKind::from(args.features) == FeatureKind::Inception,
        "--protocol reference needs the features of inception, not of {}",
        FeatureKind::from(args.features)
    );
    ensure!(
        args.resize == ResizeName::PytorchFid || FeatureKind::from(args.features) == FeatureKind::Inception,
        "--resize clean needs --features inception; {} has one way of resizing only",
        FeatureKind::from(args.features)
    );
    ensure!(
        args.size.is_some() || args.model_is_given() || (!is_reference && args.crop == PictureCrop::Center),
        "say with --size how large the images are: real ones are cropped or flipped for the comparison"
    );
    let reference = args.reference_statistics.as_deref().map(Moments::read_npz).transpose()?;
    let features = Features::open(global, args)?;
    let real = args.data.as_ref().map(|data| {
        let limit = args.limit.or(is_reference.then_some(REFERENCE_COUNT));
        PictureSet::first(data, args.crop.into(), limit)?.handling_broken(&args.broken)
    });
    let real = real.transpose()?;
    let judged = Judged::open(global, args)?;
    let Sets { mut real, mut judged, settings, moments_of_real } =
        sets(args, &features, real.as_ref(), &judged, reference)?;
    let name = |of_inception: &'static str, other: &'static str| match args.features.into() {
        FeatureKind::Inception => of_inception,
        _ => other,
    };
    let of = [("features", FeatureKind::from(args.features).name())];
    let (count, resampling) = (judged.count(), (args.resamples, args.run.random.seed));
    let mut figures = Figure::of_resamples(([name("fid", "frechet_distance")], &of), count, resampling, |rows| {
        let mut rows = rows.to_vec();
        rows.sort_unstable();
        Ok([frechet_distance(&moments_of_real, &judged.statistics_of(&rows)?.moments()?)?])
    })?;
    if let Some(real) = &mut real {
        let counts = [real.count(), judged.count()];
        let subset = counts.into_iter().fold(args.kid_subset, usize::min);
        // A subset that is all there is, of both sets, is always the same.
        let num_subsets = if counts == [subset; 2] { 1 } else { args.kid_subsets };
        let progress = Progress::start("kid", num_subsets, 2);
        let read = |set: usize, rows: &[usize]| {
            progress.check(1)?;
            if set == 0 { real.rows(rows) } else { judged.rows(rows) }
        };
        let (mean, std) = kernel_distance_of_subsets(counts, subset, num_subsets, args.run.random.seed, read)?;
        progress.finish();
        figures.push(Figure::single(name("kid", "kernel_distance"), &of, mean, subset));
        if num_subsets > 1 {
            figures.push(Figure::single(name("kid_std", "kernel_distance_std"), &of, std, num_subsets));
        }
        figures.extend(neighborhoods(args, &of, real, &mut judged)?);
    }
    Report::new(NAME, settings, figures).written(&args.run.out)
}

/// Computes precision, recall, density and coverage of the first pictures; `None` if there are too few for a
/// neighborhood.
fn neighborhoods(
    args: &FidArgs,
    of: &[(&str, &str)],
    real: &mut FeatureFile,
    judged: &mut FeatureFile,
) -> Result<Vec<Figure>> {
    let first = |file: &mut FeatureFile| {
        let rows: Vec<usize> = (0..file.count().min(args.manifold_limit)).collect();
        file.rows(&rows)
    };
    let (x, y) = (first(real)?, first(judged)?);
    if x.dim(0)?.min(y.dim(0)?) <= args.neighbors {
        tracing::warn!(
            "too few images for precision, recall, density and coverage with {} neighbors; they are left out",
            args.neighbors
        );
        return Ok(vec![]);
    }
    let members = manifold_members(&x, &y, args.neighbors)?;
    let values = [
        ("precision", members.precision),
        ("recall", members.recall),
        ("density", members.density),
        ("coverage", members.coverage),
    ];
    let seed = args.run.random.seed;
    Ok(values.into_iter().filter_map(|(name, values)| Figure::mean(name, of, &values, seed)).collect())
}

/// Returns the features of both sets, computed where they are missing, and the moments of the real ones, if they are
/// known.
fn sets(
    args: &FidArgs,
    features: &Features,
    real: Option<&PictureSet>,
    judged: &Judged,
    reference: Option<Moments>,
) -> Result<Sets> {
    let overwrite = args.run.force.overwrite();
    let common = |settings: Settings| features.settings.clone().into_iter().chain(settings).collect::<Settings>();
    let given = args.size.map(|size| [3, size, size]);
    let image_size = judged.session().map(|session| session.model().image_shape()).or(given);
    let of_real = |pictures: &PictureSet| -> Result<Settings> {
        Ok(Settings::from([
            ("data".to_owned(), pictures.fingerprint()?.into()),
            ("flips".to_owned(), (args.protocol == FidProtocol::Reference).into()),
            ("image_shape".to_owned(), image_size.map(Vec::from).into()),
            ("seed".to_owned(), args.run.random.seed.into()),
        ]))
    };
    let of_judged = common(judged.settings(args, real)?);
    let mut settings = of_judged.clone();
    let count = match judged {
        Judged::Folder(pictures) => pictures.len(),
        _ if args.protocol == FidProtocol::Reference => args.count.unwrap_or(REFERENCE_COUNT),
        _ => args.count.or(real.map(PictureSet::len)).context("say with --count how many images to generate")?,
    };
    let width = features.network.width();
    if let Some((path, moments)) = args.reference_statistics.as_ref().zip(reference.as_ref()) {
        let (got, name) = (moments.mean.len(), FeatureKind::from(args.features).name());
        let of_other = "the statistics are of another network";
        ensure!(got == width, "{} has {got} features, {name} has {width}: {of_other}", path.display());
    }
    let num_real = real.map(PictureSet::len).or(reference.as_ref().and_then(|moments| moments.count));
    check_counts(width, [("real", num_real), ("judged", Some(count))])?;
    let (mut real_file, mut moments) = (None, reference);
    if let Some(pictures) = real {
        let of_real = common(of_real(pictures)?);
        let mut file = FeatureFile::open(&args.run.out, "real", &of_real, width, overwrite)?;
        let read = |range: Range<usize>, _: &Progress| real_pictures(args, pictures, judged.session(), range);
        fill(&mut file, ("real", pictures.len(), 1), features, BATCH, read)?;
        settings.extend(of_real);
        if moments.is_none() {
            moments = Some(file.statistics()?.moments()?);
        }
        real_file = Some(file);
    }
    let no_real = "name the real pictures with --data, or their statistics with --reference-statistics";
    let moments_of_real = moments.context(no_real)?;
    if let Some(path) = &args.save_statistics {
        save(&moments_of_real, path, args)?;
    }
    let mut file = FeatureFile::open(&args.run.out, "judged", &of_judged, width, overwrite)?;
    let steps = judged.steps_of_picture(args);
    let batch = judged.session().map_or(BATCH, Session::batch_size);
    fill(&mut file, ("judged", count, steps), features, batch, |range, progress| {
        judged.pictures(args, real, range, progress)
    })?;
    let statistics = args.reference_statistics.as_deref().map(fingerprint_of_file).transpose()?;
    settings.extend([
        ("count".to_owned(), count.into()),
        ("protocol".to_owned(), args.protocol.name().into()),
        ("reference_statistics".to_owned(), statistics.into()),
        ("resamples".to_owned(), args.resamples.into()),
        ("kid_subset".to_owned(), args.kid_subset.into()),
        ("kid_subsets".to_owned(), args.kid_subsets.into()),
        ("neighbors".to_owned(), args.neighbors.into()),
        ("manifold_limit".to_owned(), args.manifold_limit.into()),
    ]);
    Ok(Sets { real: real_file, judged: file, settings, moments_of_real })
}

/// Refuses a set without a covariance, and warns of sets whose covariance has no full rank.
fn check_counts(num_features: usize, sets: [(&str, Option<usize>); 2]) -> Result<()> {
    for (set, count) in sets {
        match count {
            Some(count @ 0..=1) => {
                let images = if count == 1 { "image" } else { "images" };
                bail!("the {set} set has {count} {images}; a Frechet distance needs at least two in each set")
            }
            Some(count) if count <= num_features => tracing::warn!(
                "the {set} set has {count} images for {num_features} features: its covariance is singular and the Frechet \
                 distance is too large; compare it only with distances of as many images, or use KID"
            ),
            _ => {}
        }
    }
    Ok(())
}

/// Computes the features that a file lacks.
fn fill(
    file: &mut FeatureFile,
    (label, count, calls): (&'static str, usize, usize),
    features: &Features,
    batch: usize,
    mut pictures: impl FnMut(Range<usize>, &Progress) -> Result<Vec<Tensor>>,
) -> Result<()> {
    file.take_first(count);
    let progress = Progress::start(label, count, calls + 1);
    progress.check(file.count() * (calls + 1))?;
    while file.count() < count {
        let range = file.count()..(file.count() + batch).min(count);
        let made = range.len();
        for x in pictures(range, &progress)? {
            file.append(&features.network.features(&x)?)?;
        }
        progress.check(made)?;
    }
    progress.finish();
    Ok(())
}

/// Reads real pictures in `[0, 1]`, with the 8 bits per channel of a file.
fn real_pictures(
    args: &FidArgs,
    pictures: &PictureSet,
    session: Option<&Session>,
    range: Range<usize>,
) -> Result<Vec<Tensor>> {
    let x = match (session, args.size) {
        (Some(session), _) => pictures.read(session, range.clone())?,
        (None, Some(size)) => {
            let rows = range.clone().map(|idx| pictures.all().read(idx, 3, size));
            Tensor::stack(&rows.collect::<diffae_data::Result<Vec<_>>>()?, 0)?
        }
        (None, None) => return as_they_are(pictures, range),
    };
    let x = eight_bits(&x)?;
    if args.protocol != FidProtocol::Reference {
        return Ok(vec![x]);
    }
    let flipped = x.flip(&[3])?;
    let coin = |idx: usize| {
        let hash = blake3::hash(format!("{} {idx}", args.run.random.seed).as_bytes());
        hash.as_bytes().first().is_some_and(|byte| byte & 1 == 1)
    };
    let rows = range.enumerate().map(|(row, idx)| if coin(idx) { flipped.get(row) } else { x.get(row) });
    Ok(vec![Tensor::stack(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)?])
}

/// Reads pictures of a folder in their own sizes.
fn as_they_are(pictures: &PictureSet, range: Range<usize>) -> Result<Vec<Tensor>> {
    let read = |idx: usize| -> Result<Tensor> {
        let picture = rgb_from_bytes(&pictures.all().bytes(idx)?, Path::new(&pictures.name(idx)))?;
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let x = Tensor::from_vec(picture.into_raw(), (1, height, width, 3), &Device::Cpu)?;
        Ok((x.permute((0, 3, 1, 2))?.to_dtype(candle_core::DType::F32)? / 255.)?.contiguous()?)
    };
    // Pictures of one size that follow each other go through the network together.
    let mut groups: Vec<Vec<Tensor>> = vec![];
    for idx in range {
        let x = read(idx)?;
        match groups.last_mut() {
            Some(group) if group.first().is_some_and(|first| first.dims() == x.dims()) => group.push(x),
            _ => groups.push(vec![x]),
        }
    }
    groups.iter().map(|group| Ok(Tensor::cat(group, 0)?)).collect()
}

/// Maps `[-1, 1]` to `[0, 1]` in steps of 1/255, as a PNG holds pictures.
fn eight_bits(x: &Tensor) -> Result<Tensor> {
    Ok(((to_unit(x)? * 255.)?.round()? / 255.)?)
}

/// Writes the statistics of the real pictures, unless they exist.
fn save(moments: &Moments, path: &Path, args: &FidArgs) -> Result<()> {
    let is_same = |there: Moments| there.mean == moments.mean && there.covariance == moments.covariance;
    if Moments::read_npz(path).is_ok_and(is_same) {
        return Ok(());
    }
    let file = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
    moments.write_npz(file.path())?;
    let bytes = std::fs::read(file.path()).context("cannot read a temporary file")?;
    Ok(write_atomically(path, &bytes, args.run.force.overwrite())?)
}

impl Features {
    fn open(global: &GlobalArgs, args: &FidArgs) -> Result<Self> {
        let kind = FeatureKind::from(args.features);
        let network = FeatureNetwork::open(kind, &args.weights, &device_from_name(&global.device)?)?;
        let fingerprint = fingerprint_of_file(&args.weights)?;
        let mut settings =
            Settings::from([("features".to_owned(), kind.name().into()), ("weights".to_owned(), fingerprint.into())]);
        // Reports of before there was a choice lack the entry.
        if args.resize == ResizeName::Clean {
            settings.insert("resize".to_owned(), "clean".into());
        }
        Ok(Self { network: network.with_inception_input(InceptionInput::from(args.resize)), settings })
    }
}

impl Judged {
    fn open(global: &GlobalArgs, args: &FidArgs) -> Result<Self> {
        let model = match args.judged.get()? {
            JudgedArg::Pictures(folder) => {
                let pictures = PictureSet::first(&folder, Crop::Center, args.count)?;
                return Ok(Self::Folder(pictures.handling_broken(&args.broken)?));
            }
            JudgedArg::Model(model) => model,
        };
        let session = Session::open(global, &model, &args.run.batch)?;
        let invents = !session.has_z_sem() || session.model().latent_net().is_ok();
        match args.source {
            FidSource::Decoded => {
                ensure!(session.has_z_sem(), "a plain DDPM has no z_sem to decode");
                ensure!(args.data.is_some(), "--source decoded needs --data, whose images are encoded and decoded");
                Ok(Self::Decoded(session))
            }
            FidSource::Sampled if !invents => {
                bail!("the model has no latent net, so it cannot sample; use --source decoded")
            }
            FidSource::Auto if !invents && args.data.is_none() => {
                bail!("the model has no latent net; name with --data the images whose z_sem it decodes")
            }
            FidSource::Auto if !invents => Ok(Self::Decoded(session)),
            FidSource::Auto | FidSource::Sampled => Ok(Self::Sampled(session)),
        }
    }

    fn session(&self) -> Option<&Session> {
        match self {
            Self::Folder(_) => None,
            Self::Sampled(session) | Self::Decoded(session) => Some(session),
        }
    }

    /// Returns the number of network calls per picture.
    fn steps_of_picture(&self, args: &FidArgs) -> usize {
        match self {
            Self::Folder(_) => 0,
            Self::Sampled(session) if session.has_z_sem() => args.steps + args.latent_steps,
            Self::Sampled(_) | Self::Decoded(_) => args.steps,
        }
    }

    fn settings(&self, args: &FidArgs, real: Option<&PictureSet>) -> Result<Settings> {
        let session = match self {
            Self::Folder(pictures) => {
                return Ok(Settings::from([("pictures".to_owned(), pictures.fingerprint()?.into())]));
            }
            Self::Sampled(session) | Self::Decoded(session) => session,
        };
        let mut settings = session.settings();
        settings.extend([("steps".to_owned(), args.steps.into()), ("seed".to_owned(), args.run.random.seed.into())]);
        settings.extend(sampler_settings(args.sampler.get()?));
        if matches!(self, Self::Decoded(_)) {
            settings.insert("source".to_owned(), "decoded".into());
            settings.insert("data".to_owned(), real.map(PictureSet::fingerprint).transpose()?.into());
        } else {
            settings.insert("source".to_owned(), "sampled".into());
            settings.insert("latent_steps".to_owned(), args.latent_steps.into());
            settings.insert("latent".to_owned(), session.latent_fingerprint()?.into());
        }
        Ok(settings)
    }

    /// Generates pictures in `[0, 1]` by their indices.
    fn pictures(
        &self,
        args: &FidArgs,
        real: Option<&PictureSet>,
        range: Range<usize>,
        progress: &Progress,
    ) -> Result<Vec<Tensor>> {
        let session = match self {
            Self::Folder(pictures) => return as_they_are(pictures, range),
            Self::Sampled(session) | Self::Decoded(session) => session,
        };
        let settings = PipelineSettings {
            num_steps: args.steps,
            num_latent_steps: args.latent_steps,
            sampler: args.sampler.get()?,
            seed: args.run.random.seed,
            ..PipelineSettings::DEFAULT
        };
        let first = range.start;
        let numbers: Vec<u64> = (range.start as u64..range.end as u64).collect();
        let z_sem = match (self, real) {
            (Self::Decoded(_), Some(real)) => {
                let encoded = range.map(|idx| idx.checked_rem(real.len()).unwrap_or(0));
                Some(session.model().encode_semantic(&real.read(session, encoded)?)?)
            }
            _ => session.pipeline.sample_z_sem_batch(&numbers, &settings, &mut progress.observer())?,
        };
        let x_terminal = session.pipeline.random_x_terminal_batch(&numbers, &settings)?;
        let x_0 = session.decode((&x_terminal, z_sem.as_ref()), first, &settings, progress)?;
        Ok(vec![eight_bits(&x_0)?])
    }
}
