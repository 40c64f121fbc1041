//! Guarantees of a loaded model: independent batch items, lossless model directories, reproducible seeds.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use diffae_data::Overwrite;
use diffae_infer::{
    Codes, DecodeOptions, Error, LoadOptions, Model, ModelSource, NoisePurpose, NoiseSource, Pipeline,
    PipelineSettings, XTerminalSource, no_observer,
};
use diffae_nets::weights::{
    ArchitectureHints, ClassifierCheckpoint, SafetensorsFile, TensorSource, read_latent_moments,
};
use diffae_nets::{EditDirection, EndpointConfig, EndpointNet, LocalOffset, RawEndpointConfig};
use diffae_schedule::{Sampler, no_callback, no_noise};
use proptest::prelude::*;

fn golden(model: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden").join(model).join(file)
}

fn source(model: &str) -> ModelSource {
    ModelSource::open(&golden(model, "last.ckpt"), &ArchitectureHints::default()).unwrap()
}

/// Opens a model with checkpoint, statistics and classifier.
fn complete(model: &str) -> ModelSource {
    let mut source = source(model);
    source.set_latent_moments(read_latent_moments(&golden(model, "latent.pkl")).unwrap()).unwrap();
    source.set_classifier(ClassifierCheckpoint::open(&golden(model, "classifier.ckpt")).unwrap(), None).unwrap();
    source
}

fn noise(seed: u64, indices: std::ops::Range<u64>, model: &Model) -> Tensor {
    NoiseSource::new(seed).batch(NoisePurpose::XTerminal, indices, &model.image_shape().dims(), &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    values(a).iter().zip(values(b)).map(|(a, b)| (a - b).abs()).fold(0., f32::max)
}

fn decode(model: &Model, x_terminal: &Tensor, z_sem: Option<&Tensor>) -> Tensor {
    model.decode(x_terminal, z_sem, &DecodeOptions::ddim(2), &mut no_noise, &mut no_callback).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn a_batch_gives_what_its_members_give(count in 1u64..4, seed in 0u64..1000) {
        let model = source("autoenc16_latent").build(&LoadOptions::cpu()).unwrap();
        let pictures = noise(seed, 0..count, &model).clamp(-1f32, 1f32).unwrap();
        let z_sem = model.encode_semantic(&pictures).unwrap();
        let together = decode(&model, &noise(seed, 10..10 + count, &model), Some(&z_sem));
        for idx in 0..count {
            let item = usize::try_from(idx).unwrap();
            let z_sem = model.encode_semantic(&pictures.narrow(0, item, 1).unwrap()).unwrap();
            let alone = decode(&model, &noise(seed, 10 + idx..11 + idx, &model), Some(&z_sem));
            prop_assert!(largest_difference(&alone, &together.narrow(0, item, 1).unwrap()) < 1e-4);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_bits(seed: u64) {
        let model = source("ddpm16").build(&LoadOptions::cpu()).unwrap();
        let options = DecodeOptions { sampler: Sampler::Ddim { eta: 1. }, ..DecodeOptions::ddim(2) };
        let run = || {
            let mut steps = NoiseSource::new(seed).steps(0..2);
            values(&model.decode(&noise(seed, 0..2, &model), None, &options, &mut steps, &mut no_callback).unwrap())
        };
        prop_assert_eq!(run(), run());
    }
}

#[test]
fn a_model_directory_holds_the_bits_of_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model");
    let original = complete("autoenc16_latent");
    original.write(&out, DType::F32, Overwrite::Refuse).unwrap();
    let read = ModelSource::open(&out, &ArchitectureHints::default()).unwrap();
    assert_eq!(read.config(), original.config());
    assert_eq!(read.fingerprint().unwrap(), original.fingerprint().unwrap());
    let (read_tensors, original_tensors) = (read.networks(DType::F32).unwrap(), original.networks(DType::F32).unwrap());
    assert_eq!(read_tensors.keys().collect::<Vec<_>>(), original_tensors.keys().collect::<Vec<_>>());
    for (name, tensor) in &original_tensors {
        assert_eq!(values(tensor), values(&read_tensors[name]), "{name}");
    }
    let again = folder.path().join("again");
    read.write(&again, DType::F32, Overwrite::Refuse).unwrap();
    for file in ["config.json", "model.safetensors"] {
        assert_eq!(std::fs::read(out.join(file)).unwrap(), std::fs::read(again.join(file)).unwrap(), "{file}");
    }
    read.build(&LoadOptions::cpu()).unwrap();
}

#[test]
fn half_precision_directories_decode_nearly_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let full = complete("autoenc16_latent").build(&LoadOptions::cpu()).unwrap();
    let x_terminal = noise(0, 0..1, &full);
    let z_sem = Tensor::zeros((1, 32), DType::F32, &Device::Cpu).unwrap();
    let expected = decode(&full, &x_terminal, Some(&z_sem));
    for (dtype, tolerance) in [(DType::F16, 0.01), (DType::BF16, 0.1)] {
        let out = folder.path().join(format!("{dtype:?}"));
        complete("autoenc16_latent").write(&out, dtype, Overwrite::Refuse).unwrap();
        let options = LoadOptions { dtype, ..LoadOptions::cpu() };
        let half = Model::load(&out, &options).unwrap();
        let difference = largest_difference(&decode(&half, &x_terminal, Some(&z_sem)), &expected);
        assert!(difference < tolerance && difference > 0., "{dtype:?}: {difference}");
    }
}

#[test]
fn an_existing_model_is_not_replaced_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let source = source("ddpm16");
    source.write(folder.path(), DType::F32, Overwrite::Refuse).unwrap();
    assert!(matches!(
        source.write(folder.path(), DType::F32, Overwrite::Refuse),
        Err(Error::Data(diffae_data::Error::Exists { .. }))
    ));
    source.write(folder.path(), DType::F32, Overwrite::Replace).unwrap();
}

#[test]
fn statistics_and_classifiers_of_another_width_are_rejected() {
    let mut source = source("autoenc16_latent");
    let moments = read_latent_moments(&golden("autoenc32", "latent.pkl")).unwrap();
    assert!(matches!(source.set_latent_moments(moments), Err(Error::Mismatch { .. })));
    let classifier = ClassifierCheckpoint::open(&golden("autoenc32", "classifier.ckpt")).unwrap();
    assert!(matches!(source.set_classifier(classifier, None), Err(Error::Mismatch { .. })));
}

#[test]
fn a_local_direction_bends_by_the_code_and_is_kept() {
    let mut source = complete("autoenc32");
    let row = |values: &[(usize, f32)]| {
        let mut row = vec![0f32; 48];
        for &(idx, value) in values {
            row[idx] = value;
        }
        Tensor::from_vec(row, (1, 48), &Device::Cpu).unwrap()
    };
    let vector = |value: f32| Tensor::new(&[value], &Device::Cpu).unwrap();
    // Along axis 0, and along axis 1 by how far the code is along axis 2.
    let offset = || LocalOffset {
        inputs: row(&[(2, 1.)]),
        bias: vector(0.5),
        hidden: vector(2.).unsqueeze(0).unwrap(),
        hidden_bias: vector(-1.),
        center: vector(0.25),
        outputs: row(&[(1, 2.)]),
    };
    let local = |mean: Tensor| EditDirection::local(mean.squeeze(0).unwrap(), offset()).unwrap();
    let before = source.build(&LoadOptions::cpu()).unwrap();
    source.set_edit_directions([(3, local(row(&[(0, 2.)])))].into()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    source.write(folder.path(), DType::F32, Overwrite::Replace).unwrap();
    let model = Model::load(folder.path(), &LoadOptions::cpu()).unwrap();
    // What bends is stored as the networks are, the classifier's rows always in f32.
    let half = tempfile::tempdir().unwrap();
    source.write(half.path(), DType::F16, Overwrite::Replace).unwrap();
    let stored = SafetensorsFile::open(&half.path().join("model.safetensors")).unwrap();
    let number_type = |name: &str| stored.read(name).unwrap().dtype;
    assert_eq!(number_type("classifier.local_hidden"), DType::F16);
    assert_eq!(number_type("classifier.directions"), DType::F32);
    Model::load(half.path(), &LoadOptions::cpu()).unwrap();
    let z_sem = model.denormalize(&row(&[(2, -3.), (5, 1.)])).unwrap();
    let moved = model.normalize(&model.edit(&z_sem, 3, 0.5).unwrap()).unwrap();
    // 0.5 sqrt(48) (2, 2 bend, 0, ..) / 2 is added.
    let (length, bend) = (0.5 * 48f32.sqrt(), (2. * (-2.5f32).tanh() - 1.).tanh() - 0.25);
    assert!(largest_difference(&moved, &row(&[(0, length), (1, bend * length), (2, -3.), (5, 1.)])) < 1e-4);
    // Other attributes are what they were.
    let [same, other] = [&before, &model].map(|model| model.edit(&z_sem, 1, 0.5).unwrap());
    assert!(largest_difference(&same, &other) < 1e-6);
    let full_strength = |idx| model.classifier().unwrap().full_strength(idx);
    assert!((full_strength(3).unwrap().unwrap() - 2. / 48f64.sqrt()).abs() < 1e-6);
    assert!(full_strength(1).unwrap().is_none() && full_strength(99).is_err());
    // A direction of more units beside it changes nothing for it.
    let mut again = ModelSource::open(folder.path(), &ArchitectureHints::default()).unwrap();
    let two_of = |value: f32| Tensor::new(&[value, value], &Device::Cpu).unwrap();
    let two = LocalOffset {
        inputs: Tensor::cat(&[row(&[(4, 1.)]), row(&[(5, 1.)])], 0).unwrap(),
        bias: two_of(0.),
        hidden: Tensor::new(&[[1f32, 0.], [0., 1.]], &Device::Cpu).unwrap(),
        hidden_bias: two_of(0.1),
        center: two_of(0.),
        outputs: Tensor::cat(&[row(&[(6, 1.)]), row(&[(7, 1.)])], 0).unwrap(),
    };
    let two = EditDirection::local(row(&[(3, 1.)]).squeeze(0).unwrap(), two).unwrap();
    again.set_edit_directions([(0, two)].into()).unwrap();
    let both = again.build(&LoadOptions::cpu()).unwrap();
    assert!(largest_difference(&both.edit(&z_sem, 3, 0.5).unwrap(), &model.edit(&z_sem, 3, 0.5).unwrap()) < 1e-6);
    assert!(largest_difference(&both.edit(&z_sem, 0, 0.5).unwrap(), &model.edit(&z_sem, 0, 0.5).unwrap()) > 0.1);
    // Names of codes do not depend on edits.
    assert_eq!(before.fingerprint(), model.fingerprint());

    assert!(matches!(source.set_edit_directions([(9, local(row(&[])))].into()), Err(Error::Mismatch { .. })));
    let narrow = EditDirection::fixed(row(&[]).narrow(1, 0, 8).unwrap().squeeze(0).unwrap()).unwrap();
    assert!(matches!(source.set_edit_directions([(0, narrow)].into()), Err(Error::Mismatch { .. })));
    let without_classifier = &mut self::source("autoenc32");
    let missing = without_classifier.set_edit_directions([].into());
    assert!(matches!(missing, Err(Error::MissingPart { .. })));
}

#[test]
fn edited_pictures_keep_what_the_edit_leaves_alone() {
    let pipeline = Pipeline::new(complete("autoenc32").build(&LoadOptions::cpu()).unwrap());
    let settings = PipelineSettings { num_steps: 2, num_invert_steps: 2, ..PipelineSettings::REFERENCE };
    let picture = image::RgbImage::from_fn(32, 32, |x, y| {
        let [x, y] = [x, y].map(|place| u8::try_from(place * 8).unwrap());
        image::Rgb([x, y, x ^ y])
    });
    let edit = |pictures: &[image::RgbImage], attribute, strength| {
        pipeline.edit_pictures(pictures, &[(attribute, strength)], &settings, &mut no_observer)
    };
    let edited = |strength| edit(std::slice::from_ref(&picture), "1", strength).unwrap().remove(0);
    let refused = |attribute, strength| edit(&[], attribute, strength).unwrap_err();
    assert!(matches!(refused("Hat", 0.3), Error::UnknownAttribute { .. }));
    assert!(matches!(refused("1", f64::NAN), Error::OutOfRange { .. }));
    assert_eq!(edited(0.), picture);
    assert_ne!(edited(0.3), picture);
}

#[test]
fn a_plain_ddpm_says_what_it_lacks() {
    let model = source("ddpm16").build(&LoadOptions::cpu()).unwrap();
    let picture = noise(0, 0..1, &model);
    assert!(matches!(model.encode_semantic(&picture), Err(Error::MissingPart { .. })));
    assert!(matches!(model.attribute_idx("Smiling"), Err(Error::MissingPart { .. })));
}

#[test]
fn attributes_are_found_by_name_or_number() {
    let model = complete("autoenc32").build(&LoadOptions::cpu()).unwrap();
    assert_eq!(model.attribute_idx("ATTRIBUTE_2").unwrap(), 2);
    assert_eq!(model.attribute_idx("2").unwrap(), 2);
    let error = model.attribute_idx("Smiling").unwrap_err().to_string();
    assert!(error.contains("attribute_0, attribute_1"), "{error}");
}

#[test]
fn a_weight_that_is_not_a_number_is_named() {
    let folder = tempfile::tempdir().unwrap();
    source("ddpm16").write(folder.path(), DType::F32, Overwrite::Refuse).unwrap();
    let path = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let error = Model::load(folder.path(), &LoadOptions::cpu()).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(format!("{error}: {cause}").contains("not finite"), "{error}: {cause}");
}

#[test]
fn a_tensor_that_no_network_uses_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let source = source("ddpm16");
    let mut tensors = source.networks(DType::F32).unwrap();
    tensors.insert("unet.leftover".to_owned(), Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap());
    source.write(folder.path(), DType::F32, Overwrite::Refuse).unwrap();
    let bytes = diffae_nets::weights::safetensors_bytes(&tensors, &std::collections::BTreeMap::new()).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    let error = Model::load(folder.path(), &LoadOptions::cpu()).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("unet.leftover"), "{cause}");
}

#[test]
fn codes_survive_the_round_trip_and_mismatched_counts_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("codes.safetensors");
    let tensor = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
    let codes = Codes {
        z_sem: Some(tensor(&[2, 4])),
        x_terminal: Some(tensor(&[2, 3, 8, 8])),
        chain: None,
        names: vec!["a".to_owned(), "b c".to_owned()],
        fingerprint: "0123".to_owned(),
    };
    codes.write(&path, &[("diffae:steps".to_owned(), "5".to_owned())], Overwrite::Refuse).unwrap();
    let read = Codes::read(&path).unwrap();
    assert_eq!((read.names, read.fingerprint), (codes.names.clone(), codes.fingerprint.clone()));
    assert_eq!(values(&read.z_sem.unwrap()), values(codes.z_sem.as_ref().unwrap()));
    let one_shot = Codes { x_terminal: Some(tensor(&[2, 5])), ..codes.clone() };
    one_shot.write(&path, &[], Overwrite::Replace).unwrap();
    assert_eq!(Codes::read(&path).unwrap().x_terminal.unwrap().dims(), [2, 5]);
    let broken = Codes { x_terminal: Some(tensor(&[3, 3, 8, 8])), ..codes };
    broken.write(&path, &[], Overwrite::Replace).unwrap();
    assert!(matches!(Codes::read(&path), Err(Error::Tensors { .. })));
}

/// Adds an endpoint network whose parameters are small waves.
fn with_endpoint(source: &ModelSource, factor: f32) -> ModelSource {
    let shape = source.config().image_shape();
    let (channels, size) = (shape.channels, shape.size.square().unwrap());
    let z_channels = source.config().z_channels().unwrap();
    let raw = RawEndpointConfig { image_size: size, image_channels: channels, z_channels, model_channels: 8 };
    let endpoint = EndpointConfig::new(raw).unwrap();
    let vars = candle_nn::VarMap::new();
    let vb = candle_nn::VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu).pp("endpoint");
    EndpointNet::new(&endpoint, &vb).unwrap();
    let mut tensors = source.networks(DType::F32).unwrap();
    let made: std::collections::BTreeMap<_, _> = vars.data().lock().unwrap().clone().into_iter().collect();
    for (name, var) in &made {
        let values: Vec<f32> = (0..var.elem_count()).map(|idx| factor * (idx as f32 * 0.7).sin()).collect();
        tensors.insert(name.clone(), Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap());
    }
    source.with_networks(source.config().with_endpoint(Some(endpoint)).unwrap(), tensors)
}

#[test]
fn an_endpoint_network_gives_x_terminal_to_codes_that_have_none() {
    let original = complete("autoenc16_latent");
    let source = with_endpoint(&original, 0.2);
    // Codes of the model are what they were; what depends on the network knows it.
    assert_eq!(source.fingerprint().unwrap(), original.fingerprint().unwrap());
    let fingerprint = source.endpoint_fingerprint().unwrap();
    assert!(fingerprint.is_some() && original.endpoint_fingerprint().unwrap().is_none());
    assert_ne!(fingerprint, with_endpoint(&original, 0.3).endpoint_fingerprint().unwrap());
    let folder = tempfile::tempdir().unwrap();
    source.write(&folder.path().join("model"), DType::F32, Overwrite::Refuse).unwrap();
    let pipeline = Pipeline::new(Model::load(&folder.path().join("model"), &LoadOptions::cpu()).unwrap());
    let model = pipeline.model();
    let settings = PipelineSettings { num_steps: 2, batch_size: Some(2), ..PipelineSettings::of_model(model.config()) };
    assert_eq!(settings.x_terminal, XTerminalSource::Endpoint);
    let z_sem = model.encode_semantic(&noise(3, 0..3, model).clamp(-1f32, 1f32).unwrap()).unwrap();
    let names = ["a", "b", "c"].map(str::to_owned).to_vec();
    let fingerprint = model.fingerprint().to_owned();
    let codes = Codes { z_sem: Some(z_sem.clone()), x_terminal: None, chain: None, names, fingerprint };
    let decoded = pipeline.decode_tensor(&codes, &settings, &mut no_observer).unwrap();
    let x_terminal = model.endpoint(&z_sem).unwrap();
    let given = Codes { x_terminal: Some(x_terminal), ..codes.clone() };
    assert_eq!(values(&decoded), values(&pipeline.decode_tensor(&given, &settings, &mut no_observer).unwrap()));
    // Noise is there for those who ask for it, and depends on the seed; endpoints do not.
    let with = |x_terminal, seed| {
        let settings = PipelineSettings { x_terminal, seed, ..settings };
        values(&pipeline.decode_tensor(&codes, &settings, &mut no_observer).unwrap())
    };
    assert_eq!(with(XTerminalSource::Endpoint, 1), values(&decoded));
    assert_ne!(with(XTerminalSource::Random, 1), with(XTerminalSource::Random, 2));
    let sampled = pipeline.sample_codes(&[4, 5], &settings, &mut no_observer).unwrap();
    let of_samples = model.endpoint(sampled.z_sem.as_ref().unwrap()).unwrap();
    assert_eq!(values(sampled.x_terminal.as_ref().unwrap()), values(&of_samples));
    // A model without one says so.
    let plain = Pipeline::new(original.build(&LoadOptions::cpu()).unwrap());
    assert_eq!(PipelineSettings::of_model(plain.model().config()).x_terminal, XTerminalSource::Random);
    let error = plain.decode_tensor(&codes, &settings, &mut no_observer).unwrap_err().to_string();
    assert!(error.contains("endpoint network") && error.contains("diffae polish"), "{error}");
}

#[test]
fn an_endpoint_network_fits_the_model_or_is_refused() {
    let of = |source: &ModelSource, image_size, z_channels| {
        let raw = RawEndpointConfig { image_size, image_channels: 3, z_channels, model_channels: 8 };
        source.config().with_endpoint(Some(EndpointConfig::new(raw).unwrap())).map(|_| ())
    };
    let autoencoder = source("autoenc16_latent");
    let width = autoencoder.config().z_channels().unwrap();
    of(&autoencoder, 16, width).unwrap();
    let error = of(&autoencoder, 32, width).unwrap_err().to_string();
    assert!(error.contains("image_size of the endpoint network"), "{error}");
    let error = of(&autoencoder, 16, width + 1).unwrap_err().to_string();
    assert!(error.contains("z_channels of the endpoint network"), "{error}");
    assert!(of(&source("ddpm16"), 16, width).is_err());
    assert!(source("ddpm16").config().with_endpoint(None).is_ok());
    // Nor is a network left unread that the config does not name.
    let with = with_endpoint(&autoencoder, 0.2);
    let unnamed = with.with_networks(autoencoder.config().clone(), with.networks(DType::F32).unwrap());
    let error = format!("{:?}", unnamed.build(&LoadOptions::cpu()).unwrap_err());
    assert!(error.contains("endpoint."), "{error}");
}
