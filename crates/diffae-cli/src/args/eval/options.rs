//! Options of measures from the arguments of the command line.

use anyhow::Result;
use diffae_data::Crop;
use diffae_eval::measures::{
    AttributesOptions, DirectionSource, DisentanglementOptions, EditsOptions, FewShotOptions, FidOptions, FidProtocol,
    FidSource, InversionOptions, PplOptions, ReconOptions, ReconProtocol, XTerminalKind,
};
use diffae_eval::{FeatureKind, InceptionInput, InversePenalty, LpipsBackbone};
use diffae_infer::{ChainSettings, ExactSettings, FixedPointSettings, LatentMethod, PipelineSettings};

use super::{
    AlongArgs, AttributesArgs, BackboneName, DirectionName, DisentanglementArgs, EditsArgs, EvalInversionArgs,
    FeatureName, FewShotArgs, FidArgs, PictureCrop, PplArgs, ProtocolName, ReconArgs, ReconProtocolName, ResizeName,
    SourceName, XTerminalName,
};

impl From<BackboneName> for LpipsBackbone {
    fn from(name: BackboneName) -> Self {
        match name {
            BackboneName::Alex => Self::Alex,
            BackboneName::Vgg => Self::Vgg,
            BackboneName::Squeeze => Self::Squeeze,
        }
    }
}

impl AttributesArgs {
    pub(crate) fn options(&self) -> AttributesOptions {
        let chosen = AttributesOptions::default().inverse_penalty;
        let inverse_penalty = self.labeled.inverse_penalty.map_or(chosen, InversePenalty::Fixed);
        AttributesOptions { folds: self.folds, inverse_penalty }
    }
}

impl DisentanglementArgs {
    pub(crate) fn options(&self) -> DisentanglementOptions {
        let default = DisentanglementOptions::default().inverse_penalty;
        let inverse_penalty = self.labeled.inverse_penalty.unwrap_or(default);
        DisentanglementOptions { resamples: self.resamples, inverse_penalty }
    }
}

impl FewShotArgs {
    pub(crate) fn options(&self) -> Result<FewShotOptions> {
        let default = FewShotOptions::default().inverse_penalty;
        Ok(FewShotOptions {
            shots: self.shots.clone(),
            draws: self.draws,
            samples: self.samples,
            decoded: self.decoded,
            steps: self.steps,
            latent_steps: self.latent_steps,
            sampler: self.sampler.get()?,
            inverse_penalty: self.labeled.inverse_penalty.unwrap_or(default),
        })
    }
}

impl ReconArgs {
    pub(crate) fn options(&self) -> Result<ReconOptions> {
        let (steps, sampler) = (self.steps.clone(), self.sampler.get()?);
        let protocol = match self.protocol {
            ReconProtocolName::Exact => ReconProtocol::Exact,
            ReconProtocolName::Dbae => ReconProtocol::Dbae,
        };
        Ok(ReconOptions { steps, invert_steps: self.invert_steps, sampler, protocol })
    }
}

impl EvalInversionArgs {
    pub(crate) fn options(&self) -> InversionOptions {
        let Self { exact_weights: weights, spacing, .. } = *self;
        let exact = self.exact_steps.iter().map(|&steps| ExactSettings { steps, spacing, weights }).collect();
        let fixed_point = self.fixed_point_steps.iter().map(|&steps| FixedPointSettings { steps, spacing }).collect();
        InversionOptions { exact, fixed_point, ddim: self.ddim.clone(), perturbation: self.perturbation }
    }
}

impl AlongArgs {
    fn chain(&self) -> Option<ChainSettings> {
        let (spacing, weights) = (self.spacing, self.exact_weights);
        let exact = self.exact_steps.map(|steps| ChainSettings::Exact(ExactSettings { steps, spacing, weights }));
        let fixed = |steps| ChainSettings::FixedPoint(FixedPointSettings { steps, spacing });
        exact.or(self.fixed_point_steps.map(fixed))
    }
}

impl EditsArgs {
    pub(crate) fn options(&self) -> Result<EditsOptions> {
        Ok(EditsOptions {
            direction: match self.direction {
                DirectionName::Classifier => DirectionSource::Classifier { strength: self.strength },
                DirectionName::Pairs => DirectionSource::Pairs,
            },
            steps: self.steps,
            invert_steps: self.invert_steps,
            chain: self.along.chain(),
            drop_residual: self.x_t_alone,
            sampler: self.sampler.get()?,
            keep_residual: self.keep_residual,
            levels: self.levels.clone(),
        })
    }
}

impl PplArgs {
    pub(crate) fn options(&self) -> Result<PplOptions> {
        Ok(PplOptions {
            pairs: self.pairs,
            epsilon: self.epsilon,
            steps: self.steps,
            invert_steps: self.invert_steps,
            sampler: self.sampler.get()?,
            chain: self.along.chain(),
        })
    }
}

impl FidArgs {
    pub(crate) fn options(&self) -> Result<FidOptions> {
        let spacing = self.spacing.unwrap_or(PipelineSettings::REFERENCE.spacing);
        Ok(FidOptions {
            protocol: self.protocol.into(),
            count: self.count,
            size: self.size,
            steps: self.steps,
            latent_steps: self.latent_steps,
            latent_method: self.latent.method(LatentMethod { sampler: self.sampler.get()?, spacing })?,
            spacing: self.spacing,
            sampler: self.sampler.get()?,
            reference_statistics: self.reference_statistics.clone(),
            save_statistics: self.save_statistics.clone(),
            resamples: self.resamples,
            kid_subset: self.kid_subset,
            kid_subsets: self.kid_subsets,
            neighbors: self.neighbors,
            manifold_limit: self.manifold_limit,
        })
    }
}

impl From<XTerminalName> for XTerminalKind {
    fn from(name: XTerminalName) -> Self {
        match name {
            XTerminalName::Inverted => Self::Inverted,
            XTerminalName::Random => Self::Random,
            XTerminalName::Endpoint => Self::Endpoint,
        }
    }
}

impl From<SourceName> for FidSource {
    fn from(name: SourceName) -> Self {
        match name {
            SourceName::Auto => Self::Auto,
            SourceName::Sampled => Self::Sampled,
            SourceName::Decoded => Self::Decoded,
        }
    }
}

impl From<FeatureName> for FeatureKind {
    fn from(name: FeatureName) -> Self {
        match name {
            FeatureName::Inception => Self::Inception,
            FeatureName::EfficientNetLite0 => Self::EfficientNetLite0,
            FeatureName::DinoV2 => Self::DinoV2,
        }
    }
}

impl From<ResizeName> for InceptionInput {
    fn from(name: ResizeName) -> Self {
        match name {
            ResizeName::PytorchFid => Self::PytorchFid,
            ResizeName::Clean => Self::Clean,
        }
    }
}

impl From<PictureCrop> for Crop {
    fn from(crop: PictureCrop) -> Self {
        match crop {
            PictureCrop::Center => Self::Center,
            PictureCrop::Celeba => Self::Celeba,
        }
    }
}

impl From<ProtocolName> for FidProtocol {
    fn from(name: ProtocolName) -> Self {
        match name {
            ProtocolName::Plain => Self::Plain,
            ProtocolName::Reference => Self::Reference,
        }
    }
}
