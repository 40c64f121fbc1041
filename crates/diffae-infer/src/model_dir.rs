//! Models on disk: `config.json` beside `model.safetensors`, or a file of weights under released names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use diffae_nets::weights::{
    ArchitectureHints, Checkpoint, ClassifierCheckpoint, LatentMoments, ParameterSet, SafetensorsFile, TensorMap,
    Weights, is_finite, safetensors_bytes,
};
use diffae_nets::{ClassifierConfig, EditDirection, RawClassifierConfig, RawUnetConfig, SemanticConfig, UnetConfig};

use crate::error::{Error, Result, computing};
use crate::model_config::{ChainsConfig, DiffusionConfig, FORMAT_VERSION, ModelConfig, RawModelConfig, TunedChain};
use crate::model_location::{CONFIG_FILE, Location, WEIGHTS_FILE, foreign_config_beside};
use crate::partial::Settings;
use crate::settings::{PipelineSettings, XTerminalSource};
use diffae_data::{Fingerprint, Overwrite, write_together};

const MEAN: &str = "latent_stats.mean";
const STD: &str = "latent_stats.std";

/// An opened model whose networks have not been built yet.
#[derive(Debug)]
pub struct ModelSource {
    pub(crate) path: PathBuf,
    pub(crate) config: ModelConfig,
    pub(crate) weights: Weights,
    pub(crate) moments: Option<LatentMoments>,
    pub(crate) classifier: Option<ClassifierParameters>,
}

/// The parameters of an attribute classifier, f32 on the CPU.
#[derive(Debug, Clone)]
pub(crate) struct ClassifierParameters {
    /// Weights of the logits, `[A, D]`.
    pub(crate) weight: Tensor,
    /// Biases of the logits, `[A]`.
    pub(crate) bias: Tensor,
    /// Edit directions of the attributes.
    pub(crate) directions: Vec<EditDirection>,
}

impl ClassifierParameters {
    fn read(config: &ClassifierConfig, vb: &VarBuilder<'_>) -> candle_core::Result<Self> {
        let (count, width) = (config.attributes.len(), config.z_channels);
        let (weight, bias) = (vb.get((count, width), "weight")?, vb.get(count, "bias")?);
        Ok(Self { weight, bias, directions: EditDirection::read_all(config, vb)? })
    }

    /// Returns the tensors, each with its name below `classifier.`.
    pub(crate) fn named(&self) -> candle_core::Result<Vec<(&'static str, Tensor)>> {
        let mut named = EditDirection::stack_all(&self.directions)?;
        named.extend([("weight", self.weight.clone()), ("bias", self.bias.clone())]);
        Ok(named)
    }
}

impl ModelSource {
    /// Tensors of a model directory that belong to no network.
    pub(crate) const SIDE_TENSORS: [&str; 11] = [
        MEAN,
        STD,
        "classifier.weight",
        "classifier.bias",
        "classifier.directions",
        "classifier.local_inputs",
        "classifier.local_bias",
        "classifier.local_hidden",
        "classifier.local_hidden_bias",
        "classifier.local_center",
        "classifier.local_outputs",
    ];

    /// Opens a model directory, a `.safetensors` file inside one, or a file of weights under released names: a file of
    /// `torch.save`, safetensors, or an index or a folder of these. The path `toonheads` is the built-in model
    /// ([`BUILT_IN_MODEL`](crate::BUILT_IN_MODEL)) where that is compiled in; a folder of that name is `./toonheads`.
    ///
    /// `hints` supply facts that a file leaves open. Facts that it states must agree with them.
    ///
    /// # Errors
    /// [`Error::NotAModel`] if it is none of these; [`Error::Config`], [`Error::FormatVersion`] or [`Error::Weights`] if
    /// it is damaged or the hints contradict it.
    pub fn open(path: &Path, hints: &ArchitectureHints) -> Result<Self> {
        #[cfg(feature = "built-in")]
        if path == Path::new(crate::BUILT_IN_MODEL) {
            let source = Self::built_in()?;
            return source.check_hints(hints).map(|()| source);
        }
        match Location::of(path)? {
            Location::Directory { folder, weights } => {
                let source = Self::open_dir(&folder, &weights)?;
                source.check_hints(hints).map(|()| source)
            }
            Location::Released(file) => Self::open_checkpoint(&file, hints.parameters, hints),
        }
    }

    /// Opens one set of parameters of a file of weights under released names.
    ///
    /// # Errors
    /// [`Error::NotAModel`] if the file holds something else; [`Error::Weights`] if it is damaged.
    pub fn open_checkpoint(path: &Path, set: ParameterSet, hints: &ArchitectureHints) -> Result<Self> {
        let failed = |source| Error::Weights { path: path.to_owned(), source };
        let checkpoint = Checkpoint::open(path, set, hints).map_err(|source| match source {
            diffae_nets::Error::NoNetwork { path, found } => {
                let foreign = foreign_config_beside(&path);
                Error::NotAModel { path, problem: foreign.unwrap_or(found) }
            }
            other => failed(other),
        })?;
        let mut source = Self {
            path: path.to_owned(),
            config: RawModelConfig::from_architecture(path, &checkpoint.architecture)?,
            weights: checkpoint.weights,
            moments: None,
            classifier: None,
        };
        if let Some(moments) = checkpoint.latent_moments {
            source.set_latent_moments(moments)?;
        }
        Ok(source)
    }

    /// Opens a model directory.
    fn open_dir(folder: &Path, weights: &Path) -> Result<Self> {
        let config_path = folder.join(CONFIG_FILE);
        let config =
            fs::read_to_string(&config_path).map_err(|source| Error::Io { path: config_path.clone(), source })?;
        let config = read_config(&config, &config_path)?;
        let file =
            SafetensorsFile::open(weights).map_err(|source| Error::Weights { path: folder.to_owned(), source })?;
        Self::from_parts(folder, config, file)
    }

    /// Opens a model directory in memory; `name` stands for its path in messages.
    #[cfg(feature = "built-in")]
    pub(crate) fn from_static(name: &str, config: &str, weights: &'static [u8]) -> Result<Self> {
        let path = Path::new(name);
        let config = read_config(config, path)?;
        let file = SafetensorsFile::from_static(path, weights)
            .map_err(|source| Error::Weights { path: path.to_owned(), source })?;
        Self::from_parts(path, config, file)
    }

    fn from_parts(folder: &Path, config: ModelConfig, file: SafetensorsFile) -> Result<Self> {
        let failed = |source| Error::Weights { path: folder.to_owned(), source };
        let weights = Weights::new(Arc::new(file));
        let read = |name: &str| weights.tensor(name, DType::F32, &Device::Cpu).map_err(failed);
        let vb = weights.var_builder(DType::F32, &Device::Cpu).pp("classifier");
        let classifier = config.classifier().map(|classifier| ClassifierParameters::read(classifier, &vb));
        let classifier = classifier.transpose().map_err(|source| {
            let path = folder.to_owned();
            Error::Build { part: "classifier", path, source }
        })?;
        let is_local = config.classifier().is_some_and(|classifier| classifier.local_units > 0);
        let superfluous = |name: &str| name.contains(".local_") && !is_local && weights.source().shape(name).is_some();
        if let Some(name) = Self::SIDE_TENSORS.into_iter().find(|name| superfluous(name)) {
            return Err(failed(diffae_nets::Error::UnusedTensors { count: 1, name: name.to_owned() }));
        }
        let moments = match weights.source().shape(MEAN) {
            Some(_) => Some(LatentMoments::new(read(MEAN)?, read(STD)?).map_err(failed)?),
            None => None,
        };
        let mut source = Self { path: folder.to_owned(), config, weights, moments: None, classifier };
        if let Some(moments) = moments {
            source.set_latent_moments(moments)?;
        }
        Ok(source)
    }

    /// Creates a model from its config and the parameters of its networks by name.
    #[must_use]
    pub fn from_networks(config: ModelConfig, tensors: BTreeMap<String, Tensor>) -> Self {
        let weights = Weights::new(Arc::new(TensorMap(tensors)));
        Self { path: PathBuf::from("a model in memory"), config, weights, moments: None, classifier: None }
    }

    /// Returns a model with the same statistics and classifier, but other networks.
    #[must_use]
    pub fn with_networks(&self, config: ModelConfig, tensors: BTreeMap<String, Tensor>) -> Self {
        Self {
            path: self.path.clone(),
            config,
            weights: Weights::new(Arc::new(TensorMap(tensors))),
            moments: self.moments.clone(),
            classifier: self.classifier.clone(),
        }
    }

    /// Checks that hints agree with the config of a model directory, which is complete.
    fn check_hints(&self, hints: &ArchitectureHints) -> Result<()> {
        if hints.parameters != ParameterSet::Auto {
            tracing::warn!("{} holds one set of parameters, whichever --weights names", self.path.display());
        }
        let config = &self.config;
        let text = |number: Option<usize>| number.map(|number| number.to_string());
        let schedule =
            |diffusion: Option<&DiffusionConfig>| diffusion.map(|diffusion| diffusion.beta_schedule.to_string());
        let (unet, diffusion) = (config.unet(), config.diffusion());
        let encoder = config.encoder().and_then(SemanticConfig::trained);
        let image_size = config.image_shape().size;
        for (option, given, told) in [
            ("--image-size", text(hints.image_size), Some(image_size.to_string())),
            ("--num-heads", text(hints.num_heads), text(unet.map(|unet| unet.num_heads))),
            (
                "--encoder-res-blocks",
                text(hints.encoder_res_blocks),
                text(encoder.map(|encoder| encoder.num_res_blocks)),
            ),
            ("--train-timesteps", text(hints.num_train_timesteps), text(diffusion.map(|of| of.num_train_timesteps))),
            ("--beta-schedule", hints.beta_schedule.clone(), schedule(diffusion)),
            (
                "--latent-beta-schedule",
                hints.latent_beta_schedule.clone(),
                schedule(config.latent().map(|latent| &latent.diffusion)),
            ),
        ] {
            if let (Some(given), Some(told)) = (given, told)
                && given != told
            {
                let source = diffae_nets::Error::Contradiction {
                    first: format!("{option} is {given}"),
                    second: format!("its config.json says {told}"),
                    remedy: "leave the option out",
                };
                return Err(Error::Weights { path: self.path.clone(), source });
            }
        }
        Ok(())
    }

    /// Returns the config of the model.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Returns the mean and standard deviation of `z_sem`, if known.
    #[must_use]
    pub fn latent_moments(&self) -> Option<&LatentMoments> {
        self.moments.as_ref()
    }

    /// Adds or replaces the statistics of `z_sem`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if their width is not that of the model's `z_sem`.
    pub fn set_latent_moments(&mut self, moments: LatentMoments) -> Result<()> {
        self.check_width("the width of the latent statistics", moments.mean.elem_count())?;
        self.moments = Some(moments);
        Ok(())
    }

    /// Replaces the chains that belong to the model.
    ///
    /// # Errors
    /// [`Error::Weights`] if they do not fit its schedule, or it is a one-shot autoencoder.
    pub fn set_chains(&mut self, chains: ChainsConfig) -> Result<()> {
        let config = self.config.with_chains(chains);
        self.config = config.map_err(|source| Error::Weights { path: self.path.clone(), source })?;
        Ok(())
    }

    /// Adds or replaces the attribute classifier; its edit directions are fixed. Its statistics are taken over if the
    /// model has none.
    ///
    /// `names` are those of its attributes; without them a classifier of 40 is taken for one of `CelebA`'s attributes,
    /// others are numbered.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the width or the number of names does not fit; [`Error::Weights`] if a name occurs twice.
    pub fn set_classifier(&mut self, checkpoint: ClassifierCheckpoint, names: Option<Vec<String>>) -> Result<()> {
        let (num_attributes, width) = match *checkpoint.directions.dims() {
            [num_attributes, width] => (num_attributes, width),
            _ => (0, 0),
        };
        self.check_width("the width of the classifier", width)?;
        let names = names.unwrap_or_else(|| crate::attributes::default_names(num_attributes));
        if names.len() != num_attributes {
            let expected = format!("{num_attributes}, as many as the classifier has rows");
            return Err(mismatch("the number of attribute names", names.len(), expected));
        }
        let ClassifierCheckpoint { directions, weight, bias, latent_moments } = checkpoint;
        let directions = EditDirection::fixed_all(&directions)
            .map_err(|source| Error::Weights { path: self.path.clone(), source })?;
        let raw = RawClassifierConfig { z_channels: width, attributes: names, local_units: 0, calibrated: vec![] };
        self.set_classifier_parameters(raw, ClassifierParameters { weight, bias, directions })?;
        match latent_moments {
            Some(moments) if self.moments.is_none() => self.set_latent_moments(moments),
            _ => Ok(()),
        }
    }

    /// Replaces the edit directions of some attributes, keyed by number, with mean differences from codes without the
    /// attribute to codes with it, so that full-edit strengths are calibrated; other attributes keep their directions.
    ///
    /// # Errors
    /// [`Error::MissingPart`] if the model has no classifier; [`Error::Mismatch`] if there is no such attribute, or the
    /// width is another than that of its `z_sem`.
    pub fn set_edit_directions(&mut self, of_attributes: BTreeMap<usize, EditDirection>) -> Result<()> {
        let missing = Error::MissingPart { part: "attribute classifier", hint: "train or import one first" };
        let (Some(config), Some(classifier)) = (self.config.classifier(), &self.classifier) else {
            return Err(missing);
        };
        let count = config.attributes.len();
        if let Some(&idx) = of_attributes.keys().find(|&&idx| idx >= count) {
            return Err(mismatch("the number of the attribute", idx, format!("below {count}")));
        }
        for direction in of_attributes.values() {
            self.check_width("the width of a direction", direction.mean().elem_count())?;
        }
        let calibrated: BTreeSet<usize> = config.calibrated.iter().chain(of_attributes.keys()).copied().collect();
        let mut parameters = classifier.clone();
        for (idx, direction) in of_attributes {
            parameters.directions[idx] = direction;
        }
        let raw = RawClassifierConfig { calibrated: calibrated.into_iter().collect(), ..(**config).clone() };
        self.set_classifier_parameters(raw, parameters)
    }

    /// Replaces the attribute classifier.
    pub(crate) fn set_classifier_parameters(
        &mut self,
        raw: RawClassifierConfig,
        parameters: ClassifierParameters,
    ) -> Result<()> {
        let local_units = parameters.directions.iter().map(EditDirection::num_units).max().unwrap_or(0);
        let config = ClassifierConfig::new(RawClassifierConfig { local_units, ..raw });
        let config = config.and_then(|classifier| self.config.with_classifier(classifier));
        self.config = config.map_err(|source| Error::Weights { path: self.path.clone(), source })?;
        self.classifier = Some(parameters);
        Ok(())
    }

    /// Returns the number type of the stored network parameters; the type of the first if they differ.
    ///
    /// # Errors
    /// [`Error::Weights`] if the file is damaged.
    pub fn number_type(&self) -> Result<DType> {
        let source = self.weights.source();
        let name = source.names().into_iter().find(|name| !Self::SIDE_TENSORS.contains(&name.as_str()));
        let stored = name.map(|name| source.read(&name).map(|tensor| tensor.dtype)).transpose();
        let stored = stored.map_err(|source| Error::Weights { path: self.path.clone(), source })?;
        Ok(stored.unwrap_or(DType::F32))
    }

    /// Returns the number of parameters of the networks.
    #[must_use]
    pub fn num_parameters(&self, prefix: &str) -> usize {
        let source = self.weights.source();
        let names = source.names().into_iter().filter(|name| name.starts_with(prefix));
        names.filter_map(|name| source.shape(&name).map(|shape| shape.iter().product::<usize>())).sum()
    }

    /// Computes a fingerprint of all that determines how pictures are encoded and decoded: encoder, `UNet`, spatial autoencoder
    /// and their weights.
    ///
    /// Codes carry it, so that they are not decoded with another model by mistake. It does not depend on whether the
    /// model is a checkpoint or was imported from it, as long as the number type is the same.
    ///
    /// # Errors
    /// [`Error::Weights`] if a tensor cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let mut fingerprint = Fingerprint::new();
        let json = if let Some(compact) = self.config.one_shot() {
            serde_json::to_string(compact)
        } else {
            // Dropout acts in training alone.
            let plain = |unet: &UnetConfig| RawUnetConfig { dropout: 0., ..(**unet).clone() };
            let unet = self.config.unet().map(plain);
            let encoder = self.config.encoder();
            let networks = (unet, encoder.and_then(SemanticConfig::trained), self.config.diffusion());
            // What there was not always is added where it is, so that other models keep their names.
            match (self.config.spatial(), encoder.and_then(SemanticConfig::frozen)) {
                (None, None) => serde_json::to_string(&networks),
                (Some(spatial), None) => serde_json::to_string(&(networks.0, networks.1, networks.2, spatial)),
                (spatial, Some(frozen)) => serde_json::to_string(&(networks, spatial, frozen)),
            }
        };
        let config = json.map_err(|source| Error::Config { path: self.path.clone(), source })?;
        // Models had no other prediction once, and keep their names.
        fingerprint.update(config.replace(r#","prediction":"eps""#, "").as_bytes());
        // In another window, a picture has other codes.
        if let Some(window) = self.config.picture_format().window {
            fingerprint.update(window.to_string().as_bytes());
        }
        // Codes may be of a tuned chain, so other timesteps make another model.
        for TunedChain { timesteps, .. } in self.config.chains().iter().flat_map(|chains| &chains.tuned) {
            fingerprint.update(format!("{timesteps:?}").as_bytes());
        }
        self.hash_tensors(&mut fingerprint, &["unet.", "encoder.", "decoder.", "spatial."])?;
        Ok(fingerprint.digits())
    }

    /// Computes a fingerprint of the endpoint network, which is no part of that of the model; none without one.
    ///
    /// # Errors
    /// [`Error::Weights`] if a tensor cannot be read.
    pub fn endpoint_fingerprint(&self) -> Result<Option<String>> {
        if self.config.endpoint().is_none() {
            return Ok(None);
        }
        let mut fingerprint = Fingerprint::new();
        self.hash_tensors(&mut fingerprint, &["endpoint."])?;
        Ok(Some(fingerprint.digits()))
    }

    /// Returns the settings by which results of these settings of decoding are known beside the model's fingerprint: that of the
    /// endpoint network, where its `x_T` are decoded.
    ///
    /// # Errors
    /// [`Error::Weights`] if a tensor cannot be read.
    pub fn endpoint_settings(&self, decoding: &PipelineSettings) -> Result<Settings> {
        let is_used = decoding.x_terminal == XTerminalSource::Endpoint;
        let fingerprint = if is_used { self.endpoint_fingerprint()? } else { None };
        Ok(fingerprint.map(|fingerprint| ("endpoint".to_owned(), fingerprint.into())).into_iter().collect())
    }

    /// Computes a fingerprint of all that determines how `z_sem` is sampled and normalized: the latent net with its
    /// config, mean and standard deviation; none without any of them.
    ///
    /// # Errors
    /// [`Error::Weights`] if a tensor cannot be read.
    pub fn latent_fingerprint(&self) -> Result<Option<String>> {
        if self.config.latent().is_none() && self.moments.is_none() {
            return Ok(None);
        }
        let mut fingerprint = Fingerprint::new();
        let config = serde_json::to_string(&self.config.latent());
        let config = config.map_err(|source| Error::Config { path: self.path.clone(), source })?;
        fingerprint.update(config.as_bytes());
        self.hash_tensors(&mut fingerprint, &["latent_net."])?;
        for tensor in self.moments.iter().flat_map(|moments| [&moments.mean, &moments.std]) {
            let values = tensor.to_dtype(DType::F64).and_then(|tensor| tensor.flatten_all()?.to_vec1::<f64>());
            for value in computing("the name of the latent net", values)? {
                fingerprint.update(&value.to_le_bytes());
            }
        }
        Ok(Some(fingerprint.digits()))
    }

    /// Adds the tensors whose names begin with one of the prefixes to a fingerprint.
    fn hash_tensors(&self, fingerprint: &mut Fingerprint, prefixes: &[&str]) -> Result<()> {
        let source = self.weights.source();
        let decides = |name: &String| prefixes.iter().any(|part| name.starts_with(part));
        for name in source.names().iter().filter(|name| decides(name)) {
            let tensor = source.read(name).map_err(|source| Error::Weights { path: self.path.clone(), source })?;
            fingerprint.update(name.as_bytes());
            fingerprint.update(format!("{:?}{:?}", tensor.dtype, tensor.shape).as_bytes());
            fingerprint.update_parallel(&tensor.bytes);
        }
        Ok(())
    }

    /// Writes a model directory.
    ///
    /// # Errors
    /// [`diffae_data::Error::Exists`] if it holds a model that must not be replaced; [`Error::Io`] if it cannot be written, in which
    /// case no file is left half written; [`Error::Weights`] if a number does not fit `dtype`.
    pub fn write(&self, folder: &Path, dtype: DType, overwrite: Overwrite) -> Result<()> {
        let paths = [folder.join(WEIGHTS_FILE), folder.join(CONFIG_FILE)];
        if let Some(path) = paths.iter().find(|path| overwrite == Overwrite::Refuse && path.exists()) {
            return Err(diffae_data::Error::Exists { path: path.clone() }.into());
        }
        let mut json = serde_json::to_string_pretty(&self.config)
            .map_err(|source| Error::Config { path: folder.join(CONFIG_FILE), source })?;
        json.push('\n');
        let text = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let bytes = safetensors_bytes(&self.tensors(dtype)?, &text)
            .map_err(|source| Error::Weights { path: folder.to_owned(), source })?;
        let is_new = !folder.exists();
        fs::create_dir_all(folder).map_err(|source| Error::Io { path: folder.to_owned(), source })?;
        let [weights_path, config_path] = &paths;
        let files = [(weights_path.as_path(), &bytes[..]), (config_path.as_path(), json.as_bytes())];
        let written = write_together(&files, overwrite);
        if written.is_err() && is_new {
            // Best effort: the error that matters is the first one.
            let _ = fs::remove_dir_all(folder);
        }
        Ok(written?)
    }

    /// Returns the parameters of the networks, by name, on the CPU.
    ///
    /// # Errors
    /// [`Error::Weights`] if one cannot be read or does not fit `dtype`.
    pub fn networks(&self, dtype: DType) -> Result<BTreeMap<String, Tensor>> {
        let source = self.weights.source();
        let names = source.names().into_iter().filter(|name| !Self::SIDE_TENSORS.contains(&name.as_str()));
        let read = |name: String| {
            let tensor = source.read(&name)?.to_tensor(dtype, &Device::Cpu)?;
            Ok((name, tensor))
        };
        names
            .map(read)
            .collect::<diffae_nets::Result<_>>()
            .map_err(|source| Error::Weights { path: self.path.clone(), source })
    }

    /// Returns all tensors of the model: networks and code-dependent parts of edit directions in `dtype`, statistics
    /// and the classifier's rows in f32.
    fn tensors(&self, dtype: DType) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = self.networks(dtype)?;
        if let Some(moments) = &self.moments {
            tensors.insert(MEAN.to_owned(), moments.mean.clone());
            tensors.insert(STD.to_owned(), moments.std.clone());
        }
        let classifier = self.classifier.as_ref().map(ClassifierParameters::named).transpose();
        for (name, tensor) in computing("stacking directions", classifier)?.unwrap_or_default() {
            let is_local = name.starts_with("local_");
            let name = format!("classifier.{name}");
            let tensor = if is_local {
                let rounded = computing("rounding directions", tensor.to_dtype(dtype))?;
                if !computing("checking directions", is_finite(&rounded))? {
                    let source = diffae_nets::Error::NotFinite { name };
                    return Err(Error::Weights { path: self.path.clone(), source });
                }
                rounded
            } else {
                tensor
            };
            tensors.insert(name, tensor);
        }
        Ok(tensors)
    }

    fn check_width(&self, what: &str, got: usize) -> Result<()> {
        match self.config.z_channels() {
            Some(width) if width == got => Ok(()),
            Some(width) => Err(mismatch(what, got, width.to_string())),
            None => Err(Error::MissingPart { part: "semantic code", hint: "a plain DDPM cannot be given one" }),
        }
    }
}

fn mismatch(what: &str, got: usize, expected: String) -> Error {
    Error::Mismatch { what: what.to_owned(), got: got.to_string(), expected }
}

fn read_config(text: &str, path: &Path) -> Result<ModelConfig> {
    #[derive(serde::Deserialize)]
    struct Version {
        format_version: u32,
    }
    let damaged = |source| Error::Config { path: path.to_owned(), source };
    let version: Version = serde_json::from_str(text).map_err(damaged)?;
    if version.format_version != FORMAT_VERSION {
        let (path, got) = (path.to_owned(), version.format_version);
        return Err(Error::FormatVersion { path, got, supported: FORMAT_VERSION });
    }
    serde_json::from_str(text).map_err(damaged)
}
