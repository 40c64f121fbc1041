//! Exported graphs in a runtime that is not ours: the results of each are those of our networks.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use diffae_data::Overwrite;
use diffae_infer::{AttributeEdit, LoadOptions, Model, ModelSource, NoisePurpose, NoiseSource};
use diffae_nets::weights::{ArchitectureHints, ClassifierCheckpoint, read_latent_moments, safetensors_bytes};
use diffae_nets::{
    CompactConfig, CompactDecoder, CompactEncoder, Conditioning, EncoderConfig, EndpointConfig, EndpointNet,
    FrozenEncoder, FrozenEncoderConfig, FrozenNetwork, LatentNet, LatentNetConfig, RawCompactConfig, RawEncoderConfig,
    RawEndpointConfig, RawFrozenEncoderConfig, RawLatentNetConfig, RawSpatialConfig, RawUnetConfig, SemanticEncoder,
    SpatialAutoencoder, SpatialConfig, Unet, UnetConfig, ZLevels,
};
use diffae_onnx::{Export, Precision};
use rten::ValueOrView;
use serde_json::json;

/// Largest difference of a whole network in f32 (docs/parity.md).
const TOLERANCE: f32 = 1e-4;
/// Timesteps of a batch of two.
const TIMESTEPS: [f32; 2] = [37., 901.];

fn golden(model: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden").join(model).join(file)
}

/// Opens a golden model with everything that belongs to it. The chores have a function for it (`complete_source`), and like
/// this file a random one-shot autoencoder; a program and the tests of a library share no code that is not in a library.
fn complete(model: &str) -> ModelSource {
    let mut source = ModelSource::open(&golden(model, "last.ckpt"), &ArchitectureHints::default()).unwrap();
    if golden(model, "latent.pkl").is_file() {
        source.set_latent_moments(read_latent_moments(&golden(model, "latent.pkl")).unwrap()).unwrap();
        source.set_classifier(ClassifierCheckpoint::open(&golden(model, "classifier.ckpt")).unwrap(), None).unwrap();
    }
    source
}

fn noise(number: u64, dims: &[usize]) -> Tensor {
    NoiseSource::new(number).batch(NoisePurpose::Step, 0..2, dims, &Device::Cpu).unwrap()
}

/// The parts of an export, run by rten.
struct Graphs(BTreeMap<&'static str, rten::Model>);

impl Graphs {
    fn of(source: &ModelSource, precision: Precision) -> Self {
        let mut export = Export::new(source, precision).unwrap();
        let graphs = export.manifest.graphs.iter();
        Self(
            graphs
                .map(|(part, file)| (*part, rten::Model::load(export.files.remove(&file.file).unwrap()).unwrap()))
                .collect(),
        )
    }

    /// Checks one graph against our result for the same inputs.
    #[track_caller]
    fn check(&self, part: &str, inputs: &[(&str, &Tensor)], expected: &Tensor) {
        let graph = &self.0[part];
        let value = |tensor: &Tensor| {
            let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
            rten::Value::from_shape(tensor.dims(), values).unwrap()
        };
        let inputs =
            inputs.iter().map(|(name, tensor)| (graph.node_id(name).unwrap(), ValueOrView::from(value(tensor))));
        let outputs = graph.run(inputs.collect(), graph.output_ids(), None).unwrap();
        let got = outputs.into_iter().next().unwrap().into_tensor::<f32>().unwrap();
        let values = got.clone().into_data();
        assert_agree(part, &values, expected);
        // Tensors are equal if their shapes are, too.
        let shaped = rten::Value::from_shape(expected.dims(), values).unwrap().into_tensor::<f32>().unwrap();
        assert!(got == shaped, "{part} has not the shape {:?}", expected.dims());
    }
}

/// Checks values; what is not finite agrees with nothing.
#[track_caller]
fn assert_agree(part: &str, values: &[f32], expected: &Tensor) {
    let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(values.len(), expected.len(), "{part}");
    for (idx, (got, expected)) in values.iter().zip(&expected).enumerate() {
        assert!((got - expected).abs() <= TOLERANCE, "{part}: value {idx} is {got}, expected {expected}");
    }
}

#[test]
#[should_panic(expected = "value 1 is NaN")]
fn a_graph_that_gives_nan_does_not_agree() {
    assert_agree("encoder", &[1., f32::NAN], &Tensor::ones(2, DType::F32, &Device::Cpu).unwrap());
}

/// Checks every graph of a diffusion model on a batch of two with different timesteps.
///
/// rten and our CPU both compute in f32, also where weights are f16: they agree in either precision.
#[track_caller]
fn check_all(source: &ModelSource, precision: Precision) {
    let options = LoadOptions { dtype: precision.dtype(), ..LoadOptions::cpu() };
    let (graphs, model) = (Graphs::of(source, precision), source.build(&options).unwrap());
    let shape = model.image_shape().dims();
    let (x_0, timesteps) =
        (noise(1, &shape).clamp(-1f32, 1f32).unwrap(), Tensor::new(&TIMESTEPS, &Device::Cpu).unwrap());
    let unet = model.unet().unwrap();
    let x = model.states(&x_0).unwrap();
    if model.config().spatial().is_some() {
        graphs.check("to_latents", &[("x_0", &x_0)], &x);
        graphs.check("from_latents", &[("latents", &x)], &model.pictures(&x).unwrap());
    }
    if model.has_z_sem() {
        let z_sem = model.encode_semantic(&x_0).unwrap();
        graphs.check("encoder", &[("x_0", &x_0)], &z_sem);
        let expected = unet.forward(&x, &TIMESTEPS, Some(&z_sem)).unwrap();
        graphs.check("decoder_step", &[("x_t", &x), ("timestep", &timesteps), ("z_sem", &z_sem)], &expected);
        check_edits(&graphs, &model, &z_sem);
    } else {
        let expected = unet.forward(&x, &TIMESTEPS, None).unwrap();
        graphs.check("decoder_step", &[("x_t", &x), ("timestep", &timesteps)], &expected);
    }
    if let Ok(net) = model.latent_net() {
        let z_t = noise(2, &[net.config().z_channels]);
        let expected = net.forward(&z_t, &TIMESTEPS).unwrap();
        graphs.check("latent", &[("z_t", &z_t), ("timestep", &timesteps)], &expected);
    }
}

/// Checks edits of all attributes at once, of each code at other strengths.
#[track_caller]
fn check_edits(graphs: &Graphs, model: &Model, z_sem: &Tensor) {
    let (Ok(classifier), Ok(_)) = (model.classifier(), model.latent_moments()) else {
        assert!(!graphs.0.contains_key("directions"));
        return;
    };
    let strengths = noise(3, &[classifier.config().attributes.len()]) * 0.2;
    let strengths = strengths.unwrap();
    let edited = |row: usize| {
        let of_row: Vec<f32> = strengths.get(row).unwrap().to_vec1().unwrap();
        let edit = |(attribute_idx, &strength)| AttributeEdit { attribute_idx, strength: f64::from(strength) };
        let edits: Vec<_> = of_row.iter().enumerate().map(edit).collect();
        model.edit_many(&z_sem.narrow(0, row, 1).unwrap(), &edits).unwrap()
    };
    let expected = Tensor::cat(&[edited(0), edited(1)], 0).unwrap();
    graphs.check("directions", &[("z_sem", z_sem), ("strengths", &strengths)], &expected);
}

#[test]
fn golden_models_agree() {
    for model in ["autoenc16_latent", "autoenc32", "ddpm16", "gray16_heads2"] {
        check_all(&complete(model), Precision::F32);
    }
}

#[test]
fn half_precision_agrees() {
    for model in ["autoenc16_latent", "autoenc32", "ddpm16", "gray16_heads2"] {
        check_all(&complete(model), Precision::F16);
    }
}

/// The directions of the built-in model depend on the code.
#[test]
fn the_built_in_model_agrees() {
    check_all(&ModelSource::built_in().unwrap(), Precision::F32);
}

/// Writes a model with random weights, and opens it. Only the variance of the decoder's first norm is no number of f16: it is
/// too large.
fn with_random_weights(config: &serde_json::Value, vars: &VarMap) -> (tempfile::TempDir, ModelSource) {
    let vars: BTreeMap<String, Tensor> =
        vars.data().lock().unwrap().iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
    let drawn = |(idx, (name, tensor)): (u64, (String, Tensor))| {
        let noise = NoiseSource::new(7).standard_normal(NoisePurpose::Step, idx, tensor.dims(), &Device::Cpu).unwrap();
        let is_spread = name.ends_with("running_var") || name.ends_with("latents.std");
        let values = if is_spread { noise.abs().unwrap() + 0.5 } else { noise * 0.1 };
        let values = values.and_then(|values| values.to_dtype(DType::F16)?.to_dtype(DType::F32)).unwrap();
        let values = match name.as_str() {
            "decoder.norm0.running_var" => values * 1e6,
            "decoder.norm0.weight" => values * 1e3,
            _ => Ok(values),
        };
        (name, values.unwrap())
    };
    let weights: BTreeMap<String, Tensor> = (0..).zip(vars).map(drawn).collect();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let bytes = safetensors_bytes(&weights, &BTreeMap::new()).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    let source = ModelSource::open(folder.path(), &ArchitectureHints::default()).unwrap();
    (folder, source)
}

/// Options that no golden model has: an odd width of sinusoids, four heads, fewer blocks on the way down, attention at two levels, a
/// prediction of `x_0`, an endpoint network, a hierarchical `z_sem`.
#[test]
fn unusual_options_agree() {
    let unet = RawUnetConfig {
        image_size: 8.into(),
        in_channels: 2,
        out_channels: 2,
        model_channels: 8,
        channel_mult: vec![1, 2],
        num_res_blocks: 2,
        num_input_res_blocks: Some(1),
        embed_channels: 20,
        attention_resolutions: vec![4, 8],
        num_heads: 4,
        dropout: 0.3,
        conditioning: Conditioning::TimeAndZSem,
        z_levels: vec![7, 13].into(),
    };
    let encoder = RawEncoderConfig {
        image_size: 8.into(),
        in_channels: 2,
        out_channels: 20,
        model_channels: 6,
        channel_mult: vec![1, 3],
        num_res_blocks: 2,
        attention_resolutions: vec![8],
        num_heads: 2,
        z_levels: vec![7, 13].into(),
    };
    let net = RawLatentNetConfig {
        z_channels: 20,
        hidden_channels: 17,
        num_layers: 4,
        skip_layers: vec![2, 3],
        time_embed_channels: 7,
    };
    let endpoint = RawEndpointConfig { image_size: 8, image_channels: 2, z_channels: 20, model_channels: 6 };
    let config = json!({
        "format_version": 1, "unet": unet, "encoder": encoder, "endpoint": endpoint,
        "diffusion": { "num_train_timesteps": 1000, "beta_schedule": "cosine", "prediction": "x_0" },
        "latent": { "net": net, "diffusion": { "num_train_timesteps": 1000, "beta_schedule": "const0.008" } },
    });
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    Unet::new(&UnetConfig::new(unet).unwrap(), &vb.pp("unet")).unwrap();
    SemanticEncoder::new(&EncoderConfig::new(encoder).unwrap(), &vb.pp("encoder")).unwrap();
    EndpointNet::new(&EndpointConfig::new(endpoint).unwrap(), &vb.pp("endpoint")).unwrap();
    LatentNet::new(&LatentNetConfig::new(net).unwrap(), &vb.pp("latent_net")).unwrap();
    let (_folder, source) = with_random_weights(&config, &vars);
    check_all(&source, Precision::F32);
    let model = source.build(&LoadOptions::cpu()).unwrap();
    let z_sem = noise(5, &[20]);
    let expected = model.endpoint(&z_sem).unwrap();
    Graphs::of(&source, Precision::F32).check("endpoint", &[("z_sem", &z_sem)], &expected);
    let manifest = serde_json::to_value(Export::new(&source, Precision::F32).unwrap().manifest).unwrap();
    assert_eq!((&manifest["diffusion"]["prediction"], &manifest["attributes"]), (&"x_0".into(), &json!([])));
}

#[test]
fn a_pretrained_encoder_agrees() {
    let unet = RawUnetConfig {
        image_size: 8.into(),
        in_channels: 1,
        out_channels: 1,
        model_channels: 8,
        channel_mult: vec![1],
        num_res_blocks: 1,
        num_input_res_blocks: None,
        embed_channels: 384,
        attention_resolutions: vec![],
        num_heads: 1,
        dropout: 0.,
        conditioning: Conditioning::TimeAndZSem,
        z_levels: ZLevels::NONE,
    };
    let frozen = RawFrozenEncoderConfig { network: FrozenNetwork::DinoV2Small, image_size: 8, in_channels: 1 };
    let config = json!({
        "format_version": 1, "unet": unet, "frozen_encoder": frozen,
        "diffusion": { "num_train_timesteps": 1000, "beta_schedule": "linear" },
    });
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    Unet::new(&UnetConfig::new(unet).unwrap(), &vb.pp("unet")).unwrap();
    FrozenEncoder::new(&FrozenEncoderConfig::new(frozen).unwrap(), &vb.pp("encoder")).unwrap();
    let (_folder, source) = with_random_weights(&config, &vars);
    check_all(&source, Precision::F32);
}

#[test]
fn models_on_latents_agree() {
    let spatial = RawSpatialConfig {
        image_size: 16,
        image_channels: 3,
        latent_channels: 2,
        model_channels: 8,
        channel_mult: vec![1, 2],
        num_res_blocks: 1,
        num_groups: 4,
        shortcut: false,
        middle_attention: true,
    };
    model_on_latents_agrees(&RawSpatialConfig { latent_channels: 5, num_groups: 0, shortcut: true, ..spatial.clone() });
    model_on_latents_agrees(&spatial);
}

fn model_on_latents_agrees(spatial: &RawSpatialConfig) {
    let channels = spatial.latent_channels;
    // Codes of latents of 8 and 4 pixels.
    let z_levels = ZLevels::from(vec![5, 7]);
    let unet = RawUnetConfig {
        image_size: 8.into(),
        in_channels: channels,
        out_channels: channels,
        model_channels: 8,
        channel_mult: vec![1, 1],
        num_res_blocks: 1,
        num_input_res_blocks: None,
        embed_channels: 12,
        attention_resolutions: vec![4],
        num_heads: 1,
        dropout: 0.,
        conditioning: Conditioning::TimeAndZSem,
        z_levels: z_levels.clone(),
    };
    let encoder = RawEncoderConfig {
        image_size: 16.into(),
        in_channels: 3,
        out_channels: 12,
        model_channels: 8,
        channel_mult: vec![1, 1, 1],
        num_res_blocks: 1,
        attention_resolutions: vec![8],
        num_heads: 1,
        z_levels: z_levels.at_levels_of(1, 3).unwrap(),
    };
    let config = json!({
        "format_version": 1, "unet": unet, "encoder": encoder, "spatial": spatial,
        "diffusion": { "num_train_timesteps": 1000, "beta_schedule": "linear" },
    });
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    Unet::new(&UnetConfig::new(unet).unwrap(), &vb.pp("unet")).unwrap();
    SemanticEncoder::new(&EncoderConfig::new(encoder).unwrap(), &vb.pp("encoder")).unwrap();
    SpatialAutoencoder::new(&SpatialConfig::new(spatial.clone()).unwrap(), &vb.pp("spatial")).unwrap();
    let (_folder, source) = with_random_weights(&config, &vars);
    check_all(&source, Precision::F32);
    let manifest = serde_json::to_value(Export::new(&source, Precision::F32).unwrap().manifest).unwrap();
    assert_eq!(
        (&manifest["diffusion"]["chain"]["clip"], &manifest["x_terminal_shape"]),
        (&false.into(), &json!([channels, 8, 8]))
    );
}

#[test]
fn a_one_shot_autoencoder_agrees() {
    let raw = RawCompactConfig {
        image_size: 16,
        image_channels: 3,
        model_channels: 8,
        z_channels: 24,
        noise_channels: 6,
        noise_levels: 4,
    };
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let networks = CompactConfig::new(raw.clone()).unwrap();
    CompactEncoder::new(&networks, &vb.pp("encoder")).unwrap();
    CompactDecoder::new(&networks, &vb.pp("decoder")).unwrap();
    let (_folder, source) = with_random_weights(&json!({ "format_version": 1, "compact": raw }), &vars);
    let model = source.build(&LoadOptions::cpu()).unwrap();
    let x_0 = noise(1, &model.image_shape().dims()).clamp(-1f32, 1f32).unwrap();
    let z_sem = model.encode_semantic(&x_0).unwrap();
    let x_terminal = model.random_x_terminal(NoiseSource::new(4), 0..2).unwrap();
    let options = diffae_infer::DecodeOptions::ddim(1);
    let no_noise = &mut diffae_schedule::no_noise;
    let expected =
        model.decode(&x_terminal, Some(&z_sem), &options, no_noise, &mut diffae_schedule::no_callback).unwrap();
    for precision in [Precision::F32, Precision::F16] {
        let graphs = Graphs::of(&source, precision);
        graphs.check("encoder", &[("x_0", &x_0)], &z_sem);
        graphs.check("decoder", &[("z_sem", &z_sem), ("x_T", &x_terminal)], &expected);
    }
}

#[test]
fn an_export_is_written_whole_and_not_over_another() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("deep/export");
    let export = Export::new(&complete("autoenc32"), Precision::F16).unwrap();
    export.write(&target, Overwrite::Refuse).unwrap();
    let names = |folder: &Path| std::fs::read_dir(folder).unwrap().count();
    assert_eq!(names(&target), export.files.len() + 1);
    let error = export.write(&target, Overwrite::Refuse).unwrap_err();
    assert!(matches!(error, diffae_onnx::Error::Data(diffae_data::Error::Exists { .. })), "{error}");
    export.write(&target, Overwrite::Replace).unwrap();
    let manifest = std::fs::read_to_string(target.join("manifest.json")).unwrap();
    assert_eq!(manifest.trim_end(), serde_json::to_string_pretty(&export.manifest).unwrap());
}
