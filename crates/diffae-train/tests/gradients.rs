//! Gradients of the whole autoencoder against central differences, in f64.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use diffae_kernels::{ActivationStorage, Gradients, differentiable, no_gradients, record, record_with};
use diffae_nets::{
    AutoencoderConfig, Conditioning, DiffusionAutoencoder, EncoderConfig, RawEncoderConfig, RawUnetConfig,
    TrainingMode, UnetConfig, ZLevels,
};

/// Step of the differences: rounding in f64 is about 1e-16 / STEP, the neglected term about STEP^2.
const STEP: f64 = 1e-5;
const TOLERANCE: f64 = 1e-6;
/// Of f32 kernels, relative to the norm of the whole gradient.
const F32_TOLERANCE: f64 = 1e-5;

/// Of activations rounded to eight bits, relative to the norm of the whole gradient.
const BF16_TOLERANCE: f64 = 0.02;

fn config(z_levels: &ZLevels) -> AutoencoderConfig {
    let unet = UnetConfig::new(RawUnetConfig {
        image_size: 8.into(),
        in_channels: 2,
        out_channels: 2,
        model_channels: 4,
        channel_mult: vec![1, 2],
        num_res_blocks: 1,
        num_input_res_blocks: None,
        embed_channels: 6,
        attention_resolutions: vec![4],
        num_heads: 2,
        dropout: 0.25,
        conditioning: Conditioning::TimeAndZSem,
        z_levels: z_levels.clone(),
    });
    let encoder = EncoderConfig::new(RawEncoderConfig {
        image_size: 8.into(),
        in_channels: 2,
        out_channels: 6,
        model_channels: 4,
        channel_mult: vec![1, 2],
        num_res_blocks: 1,
        attention_resolutions: vec![4],
        num_heads: 1,
        z_levels: z_levels.clone(),
    });
    AutoencoderConfig::new(encoder.unwrap(), unet.unwrap()).unwrap()
}

/// Numbers that look random, of about unit size.
fn numbers(shape: &[usize], seed: f64) -> Tensor {
    let count = shape.iter().product::<usize>();
    let value = |i: usize| (i as f64 * 12.9898 + seed * 78.233).sin() * 1.3;
    Tensor::from_vec((0..count).map(value).collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
}

/// A model over variables whose values look random, sorted by name.
fn model(dtype: DType) -> (DiffusionAutoencoder, Vec<(String, Var)>) {
    model_of(&config(&ZLevels::NONE), dtype)
}

fn model_of(config: &AutoencoderConfig, dtype: DType) -> (DiffusionAutoencoder, Vec<(String, Var)>) {
    let vars = VarMap::new();
    let model = DiffusionAutoencoder::new(config, &VarBuilder::from_varmap(&vars, dtype, &Device::Cpu)).unwrap();
    let mut named: Vec<(String, Var)> = vars.data().lock().unwrap().clone().into_iter().collect();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    for (i, (name, var)) in named.iter().enumerate() {
        // Scales of norms stay near one; zero-initialized layers would hide everything before them.
        let is_scale = var.rank() == 1 && name.ends_with("weight");
        let values = (numbers(var.dims(), i as f64) * 0.2).unwrap();
        let values = if is_scale { (values + 1.).unwrap() } else { values };
        var.set(&values.to_dtype(dtype).unwrap()).unwrap();
    }
    (model, named)
}

/// The loss that the tests differentiate.
fn loss(model: &DiffusionAutoencoder, dtype: DType, mode: TrainingMode) -> Result<Tensor> {
    let pictures = |seed: f64| numbers(&[2, 2, 8, 8], seed).to_dtype(dtype);
    let (x_0, x_t, target) = (pictures(1.)?, pictures(2.)?, pictures(3.)?);
    let predicted = model.forward_training(&x_0, &x_t, &[3., 700.], mode)?;
    differentiable([&predicted], |[predicted]| (&target - predicted)?.sqr()?.mean_all())
}

fn gradients(model: &DiffusionAutoencoder, dtype: DType, mode: TrainingMode) -> Gradients {
    let (recorded, tape) = record(|| loss(model, dtype, mode)).unwrap();
    let mut gradients = Gradients::default();
    tape.backward(&recorded, &mut gradients).unwrap();
    gradients
}

fn values(gradients: &Gradients, var: &Var) -> Vec<f64> {
    gradients.get(var).unwrap().to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// With and without what only training does.
fn modes() -> [TrainingMode; 3] {
    [
        TrainingMode::default(),
        TrainingMode { dropout_seed: Some(5), checkpoint_blocks: false },
        TrainingMode { dropout_seed: Some(5), checkpoint_blocks: true },
    ]
}

/// Every parameter of the model has the gradient that moving it shows.
#[test]
fn the_autoencoder_has_the_gradients_that_differences_show() {
    let (model, named) = model(DType::F64);
    for mode in modes() {
        compare_with_differences(&model, named.iter(), mode);
    }
}

/// The parts of a hierarchical code have gradients, too: those of the encoder's heads, and of the layers that see a part.
#[test]
fn parts_of_a_hierarchical_code_have_the_gradients_that_differences_show() {
    let (model, named) = model_of(&config(&ZLevels::from(vec![2, 4])), DType::F64);
    let is_of_code = |name: &str| {
        ["z_levels", "cond_emb_layers", "encoder.out", "encoder.input_blocks"].iter().any(|part| name.contains(part))
    };
    let chosen: Vec<_> = named.iter().filter(|(name, _)| is_of_code(name)).collect();
    assert!(chosen.iter().any(|(name, _)| name == "encoder.z_levels.0.3.weight"));
    compare_with_differences(&model, chosen.into_iter(), TrainingMode::default());
}

fn compare_with_differences<'a>(
    model: &DiffusionAutoencoder,
    named: impl Iterator<Item = &'a (String, Var)>,
    mode: TrainingMode,
) {
    let gradients = gradients(model, DType::F64, mode);
    let value = || no_gradients(|| loss(model, DType::F64, mode)).unwrap().to_scalar::<f64>().unwrap();
    for (name, var) in named {
        let gradient = values(&gradients, var);
        let original = var.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for at in [0, original.len() >> 1] {
            let moved_by = |by: f64| {
                let mut values = original.clone();
                values[at] += by;
                var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
                value()
            };
            let expected = (moved_by(STEP) - moved_by(-STEP)) / (2. * STEP);
            moved_by(0.);
            let difference = (gradient[at] - expected).abs();
            assert!(difference < TOLERANCE, "{name}[{at}], {mode:?}: {} instead of {expected}", gradient[at]);
        }
    }
}

/// The kernels, which work in f32, have the gradients of the same model in f64.
#[test]
fn the_kernels_have_the_gradients_of_f64() {
    let ((exact, exact_named), (model, named)) = (model(DType::F64), model(DType::F32));
    for mode in modes() {
        let (expected, got) = (gradients(&exact, DType::F64, mode), gradients(&model, DType::F32, mode));
        let whole = exact_named.iter().flat_map(|(_, var)| values(&expected, var)).map(|v| v * v).sum::<f64>().sqrt();
        for ((name, exact_var), (_, var)) in exact_named.iter().zip(&named) {
            let pairs = values(&expected, exact_var).into_iter().zip(values(&got, var));
            for (expected, got) in pairs {
                let difference = (expected - got).abs();
                assert!(difference < F32_TOLERANCE * whole, "{name}, {mode:?}: {got} instead of {expected} of {whole}");
            }
        }
    }
}

/// Activations that are kept in bf16 give the gradients of f32 up to rounding, for half the memory.
#[test]
fn rounded_activations_have_nearly_the_same_gradients() {
    let (model, named) = model(DType::F32);
    for checkpoint_blocks in [false, true] {
        let mode = TrainingMode { dropout_seed: None, checkpoint_blocks };
        let [(exact, exact_bytes), (rounded, rounded_bytes)] =
            [ActivationStorage::F32, ActivationStorage::Bf16].map(|storage| {
                let (recorded, tape) = record_with(storage, || loss(&model, DType::F32, mode)).unwrap();
                let (mut gradients, bytes) = (Gradients::default(), tape.num_kept_bytes());
                tape.backward(&recorded, &mut gradients).unwrap();
                (gradients, bytes)
            });
        assert_eq!(rounded_bytes * 2, exact_bytes);
        let all = |gradients: &Gradients| named.iter().flat_map(|(_, var)| values(gradients, var)).collect::<Vec<_>>();
        let (exact, rounded) = (all(&exact), all(&rounded));
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
        let difference = norm(&mut exact.iter().zip(&rounded).map(|(a, b)| a - b));
        let norm = norm(&mut exact.iter().copied());
        assert!(difference > 0. && difference < BF16_TOLERANCE * norm, "{difference} of {norm}");
    }
}
