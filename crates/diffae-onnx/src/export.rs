//! A model as graphs with their manifest, and the folder that holds them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use candle_core::DType;
use diffae_data::{Overwrite, write_together};
use diffae_infer::{LoadOptions, Model, ModelSource};
use diffae_nets::SemanticConfig;
use diffae_nets::weights::{TensorMap, Weights};
use prost::Message;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::graph::{Graph, Precision};
use crate::manifest::{GraphFile, Manifest};
use crate::{compact, directions, encoder, endpoint, frozen_encoder, latent_net, spatial, unet};

/// Name of the manifest.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Largest message of the format's encoding.
const MAX_BYTES: usize = (1 << 31) - 1;

/// A model as ONNX graphs, in memory.
#[derive(Debug)]
pub struct Export {
    /// Description of the model and the graphs.
    pub manifest: Manifest,
    /// Contents of the graphs' files, by name.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Export {
    /// Exports a model. Every tensor of its networks becomes part of exactly one graph.
    ///
    /// # Errors
    /// [`Error::Infer`] if the model cannot be loaded; [`Error::Nets`] if it is one of volumes, or a number does not fit the precision;
    /// [`Error::TooLarge`] if a graph is larger than its format allows.
    pub fn new(source: &ModelSource, precision: Precision) -> Result<Self> {
        let got = source.config().image_shape().size;
        if got.is_volume() {
            return Err(diffae_nets::Error::NotForVolumes { part: "the export", got }.into());
        }
        let model = source.build(&LoadOptions::cpu())?;
        let weights = Weights::new(Arc::new(TensorMap(source.networks(DType::F32)?)));
        let attributes = directions::editable(&model)?;
        let mut graphs = networks(&model, &weights, precision)?;
        weights.check_each_used_once()?;
        if !attributes.is_empty() {
            graphs.push(("directions", directions::directions(&model, &attributes)?));
        }
        let (mut described, mut files) = (BTreeMap::new(), BTreeMap::new());
        for (part, graph) in graphs {
            let (file, bytes) = encoded(part, graph)?;
            files.insert(file.file.clone(), bytes);
            described.insert(part, file);
        }
        Ok(Self { manifest: Manifest::new(&model, precision, (described, &attributes))?, files })
    }

    /// Writes the files into a folder: all of them, or none.
    ///
    /// # Errors
    /// [`diffae_data::Error::Exists`] if one is there and must not be replaced; [`diffae_data::Error::Io`] if one cannot be
    /// written.
    pub fn write(&self, folder: &Path, overwrite: Overwrite) -> Result<()> {
        let mut manifest = serde_json::to_vec_pretty(&self.manifest).map_err(Error::Json)?;
        manifest.push(b'\n');
        let mut files: Vec<_> = self.files.iter().map(|(name, bytes)| (folder.join(name), bytes.as_slice())).collect();
        files.push((folder.join(MANIFEST_FILE), &manifest));
        if let Some((path, _)) = files.iter().find(|(path, _)| overwrite == Overwrite::Refuse && path.exists()) {
            return Err(diffae_data::Error::Exists { path: path.clone() }.into());
        }
        let is_new = !folder.exists();
        let failed = |source| diffae_data::Error::Io { path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(failed)?;
        let files: Vec<(&Path, &[u8])> = files.iter().map(|(path, bytes)| (path.as_path(), *bytes)).collect();
        let written = write_together(&files, overwrite);
        if written.is_err() && is_new {
            // Best effort: the error that matters is the first one.
            let _ = fs::remove_dir_all(folder);
        }
        Ok(written?)
    }
}

/// Builds the graphs of a model's networks, each with the name of its part.
fn networks(model: &Model, weights: &Weights, precision: Precision) -> Result<Vec<(&'static str, Graph)>> {
    let config = model.config();
    let mut graphs = vec![];
    if let Some(networks) = config.one_shot() {
        graphs.push(("encoder", compact::encoder(networks, weights, precision)?));
        graphs.push(("decoder", compact::decoder(networks, weights, precision)?));
    }
    match config.encoder() {
        Some(SemanticConfig::Trained(networks)) => {
            graphs.push(("encoder", encoder::encoder(networks, weights, precision)?));
        }
        Some(SemanticConfig::Frozen(networks)) => {
            graphs.push(("encoder", frozen_encoder::frozen_encoder(networks, weights, precision)?));
        }
        None => {}
    }
    if let Some(networks) = config.unet() {
        graphs.push(("decoder_step", unet::unet(networks, weights, precision)?));
    }
    if let Some(networks) = config.spatial() {
        graphs.extend(spatial::spatial(networks, weights, precision)?);
    }
    if let Some(networks) = config.endpoint() {
        graphs.push(("endpoint", endpoint::endpoint(networks, weights, precision)?));
    }
    if let Some(latent) = config.latent() {
        graphs.push(("latent", latent_net::latent_net(&latent.net, weights, precision)?));
    }
    Ok(graphs)
}

/// Encodes a graph, and describes its file.
fn encoded(part: &'static str, graph: Graph) -> Result<(GraphFile, Vec<u8>)> {
    let Graph { model, inputs, outputs } = graph;
    check_size(part, model.encoded_len())?;
    let bytes = model.encode_to_vec();
    let sha256 = format!("{:x}", Sha256::digest(&bytes));
    Ok((GraphFile { file: format!("{part}.onnx"), sha256, bytes: bytes.len(), inputs, outputs }, bytes))
}

fn check_size(part: &'static str, bytes: usize) -> Result<()> {
    if bytes > MAX_BYTES { Err(Error::TooLarge { part, bytes, max: MAX_BYTES }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use diffae_nets::weights::ArchitectureHints;

    use super::*;
    use crate::graph::OPSET;
    use crate::proto::{GraphProto, ModelProto};

    /// Operators of the standard that graphs may have, all known to onnxruntime-web.
    const OPERATORS: [&str; 27] = [
        "Add",
        "AveragePool",
        "Cast",
        "Concat",
        "Conv",
        "ConvTranspose",
        "Cos",
        "Div",
        "Flatten",
        "Gemm",
        "GlobalAveragePool",
        "InstanceNormalization",
        "LayerNormalization",
        "MatMul",
        "Mul",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Resize",
        "Sigmoid",
        "Sin",
        "Softmax",
        "Split",
        "Sub",
        "Tanh",
        "Transpose",
        "Unsqueeze",
    ];

    /// Checks what every runtime relies on: names are unique, values exist before they are used, initializers are used by
    /// one input each, one by two, outputs are there.
    fn check(graph: &GraphProto) {
        let mut uses = BTreeMap::new();
        let mut known: BTreeSet<&str> = graph.input.iter().map(|input| input.name.as_deref().unwrap()).collect();
        for initializer in &graph.initializer {
            let name = initializer.name.as_deref().unwrap();
            assert!(known.insert(name) && uses.insert(name, 0).is_none(), "{name} is there twice");
            let bytes = initializer.raw_data.as_ref().unwrap().len();
            let width =
                [(1, 4), (7, 8), (10, 2)].into_iter().find(|(kind, _)| Some(*kind) == initializer.data_type).unwrap().1;
            let count: i64 = initializer.dims.iter().product();
            assert_eq!(bytes, usize::try_from(count).unwrap() * width, "{name}");
        }
        for node in &graph.node {
            let (name, operator) = (node.name.as_deref().unwrap(), node.op_type.as_deref().unwrap());
            assert!(OPERATORS.contains(&operator), "{name}: {operator}");
            for input in node.input.iter().map(String::as_str).filter(|input| !input.is_empty()) {
                assert!(known.contains(input), "{name} uses {input}, which is not there yet");
                uses.entry(input).and_modify(|count| *count += 1);
            }
            for output in &node.output {
                assert!(known.insert(output), "{output} is there twice");
            }
        }
        // Codes are divided by it, and what is added to them is multiplied with it.
        let expected = |name: &str| if name == "directions/std" { 2 } else { 1 };
        let wrong: Vec<_> = uses.into_iter().filter(|&(name, count)| count != expected(name)).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        assert!(graph.output.iter().all(|output| known.contains(output.name.as_deref().unwrap())));
    }

    fn exported(source: &ModelSource, precision: Precision) -> Export {
        let export = Export::new(source, precision).unwrap();
        for (name, bytes) in &export.files {
            let model = ModelProto::decode(bytes.as_slice()).unwrap();
            assert_eq!(model.opset_import[0].version, Some(OPSET.into()), "{name}");
            check(&model.graph.unwrap());
        }
        export
    }

    fn golden(model: &str) -> ModelSource {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden");
        ModelSource::open(&fixtures.join(model).join("last.ckpt"), &ArchitectureHints::default()).unwrap()
    }

    #[test]
    fn graphs_are_well_formed_in_both_precisions() {
        for precision in [Precision::F32, Precision::F16] {
            for model in ["autoenc16_latent", "ddpm16", "gray16_heads2"] {
                exported(&golden(model), precision);
            }
            let export = exported(&ModelSource::built_in().unwrap(), precision);
            assert_eq!(export.manifest.attributes.len(), 13);
        }
    }

    /// Weights are there once: a graph is not much larger than they are.
    #[test]
    fn files_have_the_size_of_their_weights() {
        let source = ModelSource::built_in().unwrap();
        for (precision, bytes) in [(Precision::F32, 4), (Precision::F16, 2)] {
            let export = Export::new(&source, precision).unwrap();
            for (part, prefix) in [("encoder", "encoder."), ("decoder_step", "unet."), ("latent", "latent_net.")] {
                let (got, weights) = (export.manifest.graphs[part].bytes, bytes * source.num_parameters(prefix));
                assert!((weights..weights + 200_000).contains(&got), "{part}: {got} for {weights}");
            }
        }
    }

    #[test]
    fn the_manifest_is_of_the_bytes_and_the_model() {
        let export = Export::new(&ModelSource::built_in().unwrap(), Precision::F32).unwrap();
        let manifest = &export.manifest;
        for file in manifest.graphs.values() {
            assert_eq!(file.sha256, format!("{:x}", Sha256::digest(&export.files[&file.file])));
        }
        let diffusion = manifest.diffusion.as_ref().unwrap();
        assert!(diffusion.alpha_bars.is_sorted_by(|a, b| a > b) && diffusion.alpha_bars.len() == 1000);
        let chain = &diffusion.chain;
        for (&timestep, alpha_bar) in chain.timesteps.iter().zip(&chain.alpha_bars) {
            assert_eq!(diffusion.alpha_bars[timestep].to_bits(), alpha_bar.to_bits());
        }
        assert_eq!(chain.exact.as_ref().unwrap().updates.len(), chain.timesteps.len() - 1);
        assert_eq!(manifest.latent.as_ref().unwrap().chain.sampler, "dpm++2m");
        assert_eq!(manifest.normalization.as_ref().unwrap().std.len(), 128);
        assert!(manifest.attributes.iter().all(|attribute| attribute.full_strength.is_some_and(|full| full > 0.)));
    }

    #[test]
    fn a_graph_beyond_the_format_is_refused() {
        assert!(check_size("decoder_step", 2_147_483_647).is_ok());
        let error = check_size("decoder_step", 2_147_483_648).unwrap_err().to_string();
        assert!(error.contains("decoder_step") && error.contains("--half"), "{error}");
    }
}
