//! All measures that given files allow.

use diffae_data::{AttributePairs, PictureSet};
use diffae_schedule::Sampler;

use super::{
    Attributes, AttributesOptions, DdimSteps, DirectionSource, Disentanglement, DisentanglementOptions, Edits,
    EditsOptions, FeatureExtractor, FewShot, FewShotOptions, Fid, FidOptions, FidSource, FidSubject, Inversion,
    InversionOptions, LabeledPictures, Measure, PerceptualNetwork, Ppl, PplOptions, Recon, ReconOptions, ReconSubject,
    ZUsage, ZUsageOptions,
};
use crate::evaluated_model::EvaluatedModel;
use crate::features::LpipsBackbone;

/// A model, pictures, and what else there is to measure with.
#[derive(Debug, Clone, Copy)]
pub struct AllMeasures<'a> {
    /// The model.
    pub model: &'a EvaluatedModel,
    /// Real pictures.
    pub pictures: &'a PictureSet,
    /// Labels of the pictures: adds attributes, disentanglement and few-shot classification.
    pub labeled: Option<&'a LabeledPictures<'a>>,
    /// Pairs of pictures that differ in one attribute: adds edits.
    pub pairs: Option<&'a [AttributePairs]>,
    /// A feature network: adds the set distances, such as FID.
    pub features: Option<&'a FeatureExtractor>,
    /// The network of LPIPS: adds LPIPS to reconstructions, and, if it is VGG-16, perceptual path length.
    pub lpips: Option<&'a PerceptualNetwork>,
}

/// Options of [`AllMeasures`]; all others are the defaults of each measure.
#[derive(Debug, Clone, PartialEq)]
pub struct AllOptions {
    /// Numbers of decoding steps of reconstructions. The other measures take the middle one, for the latent diffusion
    /// and for inversion, too. Default: 10, 20 and 50.
    pub steps: Vec<usize>,
    /// Sampler. Default: DDIM.
    pub sampler: Sampler,
    /// Bootstrap resamples of disentanglement and of the distance of sets. Default: 0.
    pub resamples: usize,
}

impl Default for AllOptions {
    fn default() -> Self {
        let ReconOptions { steps, sampler, .. } = ReconOptions::default();
        Self { steps, sampler, resamples: 0 }
    }
}

impl<'a> AllMeasures<'a> {
    /// Returns the measures that are possible, quick ones first.
    #[must_use]
    pub fn measures(&self, options: &AllOptions) -> Vec<Box<dyn Measure + 'a>> {
        let &Self { model, pictures, labeled, pairs, features, lpips } = self;
        let (has_z_sem, is_one_shot) = (model.has_z_sem(), model.pipeline().is_one_shot());
        let (sampler, resamples, steps) = (options.sampler, options.resamples, options.middle_steps());
        // The steps of a distilled decoder say nothing about those of the latent diffusion.
        let latent_steps = if model.distilled().is_some() { FidOptions::default().latent_steps } else { steps };
        let recon_options = ReconOptions { steps: options.steps.clone(), sampler, ..ReconOptions::default() };
        let subject = ReconSubject::Model(model);
        let mut measures: Vec<Box<dyn Measure + 'a>> =
            vec![Box::new(Recon { subject, pictures, lpips, options: recon_options })];
        if has_z_sem {
            measures.push(Box::new(ZUsage { model, pictures, options: ZUsageOptions { steps, sampler } }));
        }
        if !is_one_shot {
            let mut options = InversionOptions { exact: InversionOptions::exact_of(&[steps]), ..Default::default() };
            match model.distilled() {
                Some(own) => options.exact.iter_mut().for_each(|exact| exact.spacing = own.spacing),
                None => options.ddim = vec![DdimSteps { invert: steps, decode: steps }],
            }
            measures.push(Box::new(Inversion { model, pictures, options }));
        }
        if let (Some(labeled), true) = (labeled, has_z_sem) {
            let options = AttributesOptions::default();
            measures.push(Box::new(Attributes { model, labeled, train: None, options }));
            let options = DisentanglementOptions { resamples, ..DisentanglementOptions::default() };
            measures.push(Box::new(Disentanglement { model, labeled, options }));
            let options = FewShotOptions { steps, latent_steps, sampler, ..FewShotOptions::default() };
            measures.push(Box::new(FewShot { model, labeled, options }));
        }
        if let (Some(pairs), true, false) = (pairs, has_z_sem, is_one_shot) {
            let has_classifier = model.model().classifier().is_ok();
            let own = EditsOptions::default().direction;
            let direction = if has_classifier { own } else { DirectionSource::Pairs };
            let options = EditsOptions { direction, steps, invert_steps: steps, sampler, ..EditsOptions::default() };
            measures.push(Box::new(Edits { model, pairs, options }));
        }
        if let Some(features) = features {
            let subject = FidSubject::Model { model, source: FidSource::Auto };
            let options = FidOptions { steps, latent_steps, sampler, resamples, ..FidOptions::default() };
            measures.push(Box::new(Fid { subject, real: Some(pictures), features, options }));
        }
        let vgg = lpips.filter(|lpips| lpips.backbone() == LpipsBackbone::Vgg);
        if let (Some(lpips), true, false) = (vgg, has_z_sem, is_one_shot) {
            let options = PplOptions { steps, invert_steps: steps, sampler, ..PplOptions::default() };
            measures.push(Box::new(Ppl { model, pictures, lpips, options }));
        }
        measures
    }
}

impl AllOptions {
    /// Returns the middle one of the numbers of steps.
    fn middle_steps(&self) -> usize {
        let mut sorted = self.steps.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len().div_euclid(2)).copied().unwrap_or(PplOptions::default().steps)
    }
}
