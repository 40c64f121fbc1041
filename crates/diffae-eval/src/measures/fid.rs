//! Distance between generated and real images, by features of a network.

mod generator;
mod set;

use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use diffae_data::{Crop, Overwrite, PictureFormat, PictureSet, write_atomically};
use diffae_infer::{LatentMethod, Settings};
use diffae_nets::{ImageShape, ImageSize};
use diffae_schedule::{Sampler, Spacing};

use self::generator::{Generator, as_they_are, eight_bits};
use self::set::Features;
use super::Measure;
use crate::error::{Error, Result, cannot, check_at_least, unsuitable};
use crate::evaluated_model::EvaluatedModel;
use crate::evaluation::{Evaluation, Stage};
use crate::feature_file::{FeatureFile, fingerprint_of_file};
use crate::features::{FeatureKind, FeatureNetwork, InceptionInput};
use crate::frechet::{frechet_distance, kernel_distance_of_subsets};
use crate::manifold::manifold_members;
use crate::moments::Moments;
use crate::report::{Figure, Report};

const NAME: &str = "fid";
/// Batch size of the feature network.
const BATCH: usize = 16;

/// Distance between generated and real pictures by features of a network: Frechet distance (FID), kernel distance (KID),
/// precision, recall, density and coverage.
///
/// # Source
/// Heusel et al. 2017 (arXiv:1706.08500); Binkowski et al. 2018 (arXiv:1801.01401); Kynkaanniemi et al. 2019
/// (arXiv:1904.06991); Naeem et al. 2020 (arXiv:2002.09797).
#[derive(Debug)]
pub struct Fid<'a> {
    /// The generated pictures.
    pub subject: FidSubject<'a>,
    /// Real pictures; may be absent if their statistics are known.
    pub real: Option<&'a PictureSet>,
    /// The network.
    pub features: &'a FeatureExtractor,
    /// Options.
    pub options: FidOptions,
}

/// Subject of [`Fid`].
#[derive(Debug)]
pub enum FidSubject<'a> {
    /// A model, which generates pictures.
    Model {
        /// The model.
        model: &'a EvaluatedModel,
        /// Source of its pictures.
        source: FidSource,
    },
    /// Pictures of any program.
    Pictures(&'a PictureSet),
}

/// Sources of generated pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FidSource {
    /// Sampled if the model has a latent net, else decoded.
    Auto,
    /// Samples of the latent diffusion, or of a plain DDPM.
    Sampled,
    /// Reconstructions: `z_sem` of the real pictures, random `x_T`.
    Decoded,
}

/// Evaluation protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FidProtocol {
    /// The pictures as they are.
    Plain,
    /// The paper's: 50,000 generated pictures against real ones, half of them flipped; the caller gives the first
    /// [`FidProtocol::REFERENCE_COUNT`] real ones.
    Reference,
}

/// Options of [`Fid`].
#[derive(Debug, Clone, PartialEq)]
pub struct FidOptions {
    /// Protocol. Default: plain.
    pub protocol: FidProtocol,
    /// Number of pictures to generate. Default: as many as there are real ones; 50,000 in the reference's protocol.
    pub count: Option<usize>,
    /// Side to which real pictures are cropped and resized if no model decides it. Default: as they are.
    pub size: Option<usize>,
    /// Decoding steps. Default: 20.
    pub steps: usize,
    /// Steps of the latent diffusion. Default: 20.
    pub latent_steps: usize,
    /// Method of the latent diffusion. Default: that of decoding; for a distilled decoder that of
    /// [`PipelineSettings::DEFAULT`](diffae_infer::PipelineSettings::DEFAULT).
    pub latent_method: Option<LatentMethod>,
    /// Sampler. Default: DDIM.
    pub sampler: Sampler,
    /// Spacing of the decoding steps. Default: even, as in the paper; that of a distilled decoder's own chain.
    pub spacing: Option<Spacing>,
    /// Statistics of the real pictures (`.npz` with `mu` and `sigma`), instead of pictures or beside them.
    pub reference_statistics: Option<PathBuf>,
    /// File for the statistics of the real pictures.
    pub save_statistics: Option<PathBuf>,
    /// Bootstrap resamples of the generated pictures for an interval of the Frechet distance. Default: 0.
    pub resamples: usize,
    /// Pictures per subset of the kernel distance. Default: 1000.
    pub kid_subset: usize,
    /// Number of subsets of the kernel distance. Default: 100.
    pub kid_subsets: usize,
    /// Nearest neighbors of precision, recall, density and coverage. Default: 5.
    pub neighbors: usize,
    /// Pictures of each set that precision, recall, density and coverage use. Default: 5000.
    pub manifold_limit: usize,
}

impl Default for FidOptions {
    fn default() -> Self {
        Self {
            protocol: FidProtocol::Plain,
            count: None,
            size: None,
            steps: 20,
            latent_steps: 20,
            latent_method: None,
            sampler: Sampler::DDIM,
            spacing: None,
            reference_statistics: None,
            save_statistics: None,
            resamples: 0,
            kid_subset: 1000,
            kid_subsets: 100,
            neighbors: 5,
            manifold_limit: 5000,
        }
    }
}

impl FidProtocol {
    /// Number of generated and of real pictures in the reference's protocol.
    pub const REFERENCE_COUNT: usize = 50_000;

    /// Returns the name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Reference => "reference",
        }
    }
}

/// A feature network, with a fingerprint of its weights.
#[derive(Debug)]
pub struct FeatureExtractor {
    network: FeatureNetwork,
    settings: Settings,
}

impl FeatureExtractor {
    /// Reads the weights of a network; see [`FeatureNetwork::open`].
    ///
    /// # Errors
    /// [`Error::Weights`] if the file cannot be read or is of another network; [`Error::Unsuitable`] if a network other
    /// than Inception is to resize as clean-fid does.
    pub fn open(kind: FeatureKind, path: &Path, input: InceptionInput, device: &Device) -> Result<Self> {
        if input == InceptionInput::Clean && kind != FeatureKind::Inception {
            return Err(unsuitable(format!(
                "resizing as clean-fid does (`--resize clean`) needs the features of inception; {kind} resizes in one way only"
            )));
        }
        let network = FeatureNetwork::open(kind, path, device)?.with_inception_input(input);
        let fingerprint = fingerprint_of_file(path)?;
        let mut settings =
            Settings::from([("features".to_owned(), kind.name().into()), ("weights".to_owned(), fingerprint.into())]);
        // Reports of before there was a choice lack the entry.
        if input == InceptionInput::Clean {
            settings.insert("resize".to_owned(), "clean".into());
        }
        Ok(Self { network, settings })
    }

    /// Returns the kind of the network.
    #[must_use]
    pub fn kind(&self) -> FeatureKind {
        self.network.kind()
    }
}

/// Features of both sets, with the settings that name them.
struct Sets {
    real: Option<FeatureFile>,
    generated: FeatureFile,
    settings: Settings,
    /// `None` if a shard is measured and they are not given.
    moments_of_real: Option<Moments>,
}

impl Measure for Fid<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run(&self, evaluation: &Evaluation<'_>) -> Result<Report> {
        let Self { features, options, .. } = self;
        let kind = features.kind();
        if self.is_reference() && kind != FeatureKind::Inception {
            return Err(unsuitable(format!(
                "the reference's protocol (`--protocol reference`) needs the features of inception, not of {kind}"
            )));
        }
        if let FidSubject::Model { model, .. } = &self.subject {
            model.check_is_of_photographs(&format!("the network of {kind}"))?;
        }
        check_at_least("the size of KID's subsets", options.kid_subset, 2)?;
        check_at_least("the number of KID's subsets", options.kid_subsets, 1)?;
        check_at_least("the number of neighbors", options.neighbors, 1)?;
        let is_cropped = self.real.is_some_and(|real| real.crop() != Crop::Center);
        let is_sized = matches!(self.subject, FidSubject::Model { .. }) || options.size.is_some();
        if (self.is_reference() || is_cropped) && !is_sized {
            let why = "real ones are cropped or flipped for the comparison";
            return Err(unsuitable(format!("say how large the images are (`--size`): {why}")));
        }
        let reference = options.reference_statistics.as_deref().map(Moments::read_npz).transpose()?;
        let generator = self.generator()?;
        let Sets { mut real, mut generated, settings, moments_of_real } =
            self.sets(evaluation, generator, reference)?;
        if let Some(shard) = evaluation.shard() {
            return Ok(Report::of_shard(NAME, settings, shard));
        }
        let moments_of_real = moments_of_real.ok_or_else(|| unsuitable("there are no statistics of real pictures"))?;
        let name = |of_inception: &'static str, other: &'static str| match kind {
            FeatureKind::Inception => of_inception,
            _ => other,
        };
        let of = [("features", kind.name())];
        let (count, resampling) = (generated.count(), (options.resamples, evaluation));
        let mut figures = Figure::of_resamples(([name("fid", "frechet_distance")], &of), count, resampling, |rows| {
            let mut rows = rows.to_vec();
            rows.sort_unstable();
            Ok([frechet_distance(&moments_of_real, &generated.statistics_of(&rows)?.moments()?)?])
        })?;
        if let Some(real) = &mut real {
            let counts = [real.count(), generated.count()];
            let subset = counts.into_iter().fold(options.kid_subset, usize::min);
            // A subset that is all there is, of both sets, is always the same.
            let num_subsets = if counts == [subset; 2] { 1 } else { options.kid_subsets };
            let stage = evaluation.stage("kid", num_subsets, 2);
            let read = |set: usize, rows: &[usize]| {
                stage.check(1)?;
                if set == 0 { real.rows(rows) } else { generated.rows(rows) }
            };
            let (mean, std) = kernel_distance_of_subsets(counts, subset, num_subsets, evaluation.seed(), read)?;
            stage.finish();
            figures.push(Figure::single(name("kid", "kernel_distance"), &of, mean, subset));
            if num_subsets > 1 {
                figures.push(Figure::single(name("kid_std", "kernel_distance_std"), &of, std, num_subsets));
            }
            figures.extend(neighborhoods(options, (&of, evaluation.seed()), real, &mut generated)?);
        }
        Report::new(NAME, settings, figures).written(evaluation)
    }
}

impl<'a> Fid<'a> {
    fn is_reference(&self) -> bool {
        self.options.protocol == FidProtocol::Reference
    }

    /// Decides what the model generates.
    fn generator(&self) -> Result<Generator<'a>> {
        let (model, source) = match self.subject {
            FidSubject::Pictures(pictures) => return Ok(Generator::Folder(pictures)),
            FidSubject::Model { model, source } => (model, source),
        };
        let can_sample = !model.has_z_sem() || model.model().latent_net().is_ok();
        let decodes = match source {
            FidSource::Decoded => true,
            FidSource::Sampled => false,
            FidSource::Auto => !can_sample,
        };
        match self.real {
            _ if !decodes && can_sample => Ok(Generator::Sampled(model)),
            _ if !decodes => Err(unsuitable(
                "the model has no latent net, so it cannot sample; decode real images (`--source decoded`)",
            )),
            _ if !model.has_z_sem() => Err(unsuitable("a plain DDPM has no z_sem to decode")),
            Some(real) => Ok(Generator::Decoded(model, real)),
            None => Err(unsuitable("name the real images whose z_sem the model decodes (`--data`)")),
        }
    }

    /// Returns the features of both sets, computed where they are missing, and the moments of the real ones, if they are
    /// known.
    fn sets(&self, evaluation: &Evaluation<'_>, generator: Generator<'_>, reference: Option<Moments>) -> Result<Sets> {
        let &Self { real, features, ref options, .. } = self;
        let overwrite = evaluation.overwrite();
        let common = |settings: Settings| features.settings.clone().into_iter().chain(settings).collect::<Settings>();
        let given = options.size.map(|size| ImageSize::from(size).with_channels(3));
        let image_size = generator.model().map(|model| model.model().image_shape()).or(given);
        let of_real = |pictures: &PictureSet| -> Result<Settings> {
            Ok(Settings::from([
                ("data".to_owned(), pictures.fingerprint()?.into()),
                ("flips".to_owned(), self.is_reference().into()),
                ("image_shape".to_owned(), image_size.map(ImageShape::dims).into()),
                ("seed".to_owned(), evaluation.seed().into()),
            ]))
        };
        let of_generated = common(generator.settings(options, evaluation.seed())?);
        let mut settings = of_generated.clone();
        let count = match generator {
            Generator::Folder(pictures) => pictures.len(),
            _ if self.is_reference() => options.count.unwrap_or(FidProtocol::REFERENCE_COUNT),
            _ => options
                .count
                .or(real.map(PictureSet::len))
                .ok_or_else(|| unsuitable("say how many images to generate (`--count`)"))?,
        };
        let width = features.network.width();
        if let Some((path, moments)) = options.reference_statistics.as_ref().zip(reference.as_ref()) {
            let (got, kind) = (moments.mean.len(), features.kind());
            if got != width {
                let problem =
                    format!("it has {got} features, {kind} has {width}: the statistics are of another network");
                return Err(Error::StatisticsFile { path: path.clone(), problem });
            }
        }
        let num_real = real.map(PictureSet::len).or(reference.as_ref().and_then(|moments| moments.count));
        check_counts(width, [("real", num_real), ("generated", Some(count))])?;
        let (mut real_file, mut moments) = (None, reference);
        if let Some(pictures) = real {
            let of_real = common(of_real(pictures)?);
            let mut features = Features::open(evaluation, ("real", pictures.len(), 1), (&of_real, features))?;
            let read = |range: Range<usize>, _: &Stage<'_>| {
                self.real_pictures(pictures, generator.model(), range, evaluation.seed())
            };
            features.fill(evaluation, BATCH, read)?;
            let mut file = features.file;
            settings.extend(of_real);
            if moments.is_none() && evaluation.shard().is_none() {
                moments = Some(file.statistics()?.moments()?);
            }
            real_file = Some(file);
        }
        if real_file.is_none() && moments.is_none() {
            return Err(unsuitable("there are neither real pictures nor their statistics"));
        }
        if let Some((path, moments)) = options.save_statistics.as_ref().zip(moments.as_ref()) {
            save(moments, path, overwrite)?;
        }
        let steps = generator.calls_of_picture(options);
        let batch = generator.model().map_or(BATCH, EvaluatedModel::batch_size);
        let mut features = Features::open(evaluation, ("generated", count, steps), (&of_generated, features))?;
        features
            .fill(evaluation, batch, |range, stage| generator.pictures(options, range, (evaluation.seed(), stage)))?;
        let statistics = options.reference_statistics.as_deref().map(fingerprint_of_file).transpose()?;
        settings.extend([
            ("count".to_owned(), count.into()),
            ("protocol".to_owned(), options.protocol.name().into()),
            ("reference_statistics".to_owned(), statistics.into()),
            ("resamples".to_owned(), options.resamples.into()),
            ("kid_subset".to_owned(), options.kid_subset.into()),
            ("kid_subsets".to_owned(), options.kid_subsets.into()),
            ("neighbors".to_owned(), options.neighbors.into()),
            ("manifold_limit".to_owned(), options.manifold_limit.into()),
        ]);
        Ok(Sets { real: real_file, generated: features.file, settings, moments_of_real: moments })
    }

    /// Reads real pictures in `[0, 1]`, with the 8 bits per channel of a file.
    fn real_pictures(
        &self,
        pictures: &PictureSet,
        model: Option<&EvaluatedModel>,
        range: Range<usize>,
        seed: u64,
    ) -> Result<Vec<Tensor>> {
        let x = match (model, self.options.size) {
            (Some(model), _) => model.read(pictures, range.clone())?,
            (None, Some(size)) => pictures.read(range.clone(), PictureFormat::new(3, size))?,
            (None, None) => return as_they_are(pictures, range),
        };
        let x = eight_bits(&x)?;
        if !self.is_reference() {
            return Ok(vec![x]);
        }
        let flipped = x.flip(&[3])?;
        let coin = |idx: usize| {
            let hash = blake3::hash(format!("{seed} {idx}").as_bytes());
            hash.as_bytes().first().is_some_and(|byte| byte & 1 == 1)
        };
        let rows = range.enumerate().map(|(row, idx)| if coin(idx) { flipped.get(row) } else { x.get(row) });
        Ok(vec![Tensor::stack(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)?])
    }
}

/// Computes precision, recall, density and coverage of the first pictures; `None` if there are too few for a
/// neighborhood.
fn neighborhoods(
    options: &FidOptions,
    (of, seed): (&[(&str, &str)], u64),
    real: &mut FeatureFile,
    generated: &mut FeatureFile,
) -> Result<Vec<Figure>> {
    let first = |file: &mut FeatureFile| {
        let rows: Vec<usize> = (0..file.count().min(options.manifold_limit)).collect();
        file.rows(&rows)
    };
    let (x, y) = (first(real)?, first(generated)?);
    if x.dim(0)?.min(y.dim(0)?) <= options.neighbors {
        tracing::warn!(
            "too few images for precision, recall, density and coverage with {} neighbors; they are left out",
            options.neighbors
        );
        return Ok(vec![]);
    }
    let members = manifold_members(&x, &y, options.neighbors)?;
    let values = [
        ("precision", members.precision),
        ("recall", members.recall),
        ("density", members.density),
        ("coverage", members.coverage),
    ];
    Ok(values.into_iter().filter_map(|(name, values)| Figure::mean(name, of, &values, seed)).collect())
}

/// Refuses a set without a covariance, and warns of sets whose covariance has no full rank.
fn check_counts(num_features: usize, sets: [(&str, Option<usize>); 2]) -> Result<()> {
    for (set, count) in sets {
        match count {
            Some(count @ 0..=1) => {
                let images = if count == 1 { "image" } else { "images" };
                let needs = "a Frechet distance needs at least two in each set";
                return Err(unsuitable(format!("the {set} set has {count} {images}; {needs}")));
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

/// Writes the statistics of the real pictures, unless they exist.
fn save(moments: &Moments, path: &Path, overwrite: Overwrite) -> Result<()> {
    let is_same = |there: Moments| there.mean == moments.mean && there.covariance == moments.covariance;
    if Moments::read_npz(path).is_ok_and(is_same) {
        return Ok(());
    }
    let file = tempfile::NamedTempFile::new().map_err(cannot("write", path))?;
    moments.write_npz(file.path())?;
    let bytes = std::fs::read(file.path()).map_err(cannot("read", file.path()))?;
    Ok(write_atomically(path, &bytes, overwrite)?)
}
