//! Training in f16, with the scaled loss that it needs: on the composed backend, which computes in f16 on a CPU, too.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

mod short_runs;

use std::collections::HashMap;
use std::fs;
use std::ops::ControlFlow;
use std::thread;

use candle_core::{DType, Device, Tensor};
use diffae_kernels::{KernelSet, force_kernel_set};
use diffae_schedule::Timestep;
use diffae_train::{
    Compute, Group, Reduction, RunFolder, StepResult, Threads, TrainOptions, Trainer, presets, train_in_group,
};

use short_runs::{pictures, trained};

fn compute(dtype: DType) -> Compute {
    Compute { device: Device::Cpu, dtype }
}

fn values(trainer: &Trainer) -> Vec<f32> {
    let tensors = trainer.parameters().unwrap();
    tensors.values().flat_map(|tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
}

#[test]
fn training_follows_that_in_f32_and_goes_on_where_it_was_stopped() {
    let parent = tempfile::tempdir().unwrap();
    let notes = pictures(parent.path());
    let settings = &[
        "autoencoder.images=24",
        "objective.adversarial_weight=0.1",
        "objective.adversarial_timesteps=400",
        "objective.checkpoint_blocks=true",
        "objective.activations=bf16",
        "run.preview_every_images=0",
    ];
    let run = |name: &str, dtype: DType, stops: &[usize]| {
        let legs: Vec<_> = stops.iter().map(|&stop| (KernelSet::Candle, stop)).collect();
        trained(&parent.path().join(name), &notes, settings, &compute(dtype), &legs)
    };
    let expected = run("f32", DType::F32, &[usize::MAX]);
    let got = run("f16", DType::F16, &[usize::MAX]);
    got.assert_like(&expected, "f16");
    assert_ne!(got.figures, expected.figures, "f16 rounds otherwise than f32");
    let again = run("resumed", DType::F16, &[2, usize::MAX]);
    assert!(got.model == again.model, "a run is not the same when it is resumed");
    let log = fs::read_to_string(parent.path().join("f16").join("metrics.jsonl")).unwrap();
    assert!(log.lines().next().unwrap().contains(r#""loss_scale":65536.0"#), "{log}");
}

#[test]
fn a_step_whose_gradients_overflow_is_skipped_and_halves_the_scale_of_the_loss() {
    force_kernel_set(KernelSet::Candle).unwrap();
    let config = presets::config("smoke", &[]).unwrap();
    let model = config.model_config().unwrap();
    let images = |value: f32| Tensor::full(value, (2, 3, 16, 16), &Device::Cpu).unwrap();
    // Noise that no network predicts: the gradient of the loss is large.
    let step = |trainer: &mut Trainer| -> StepResult {
        trainer.step_with(&images(0.5), &images(3000.), &[Timestep::new(500); 2]).unwrap()
    };
    let mut trainer = Trainer::of_model((&model, compute(DType::F16)), &config, HashMap::new()).unwrap();
    let (before, mut scales) = (values(&trainer), vec![]);
    let result = loop {
        let result = step(&mut trainer);
        scales.extend(result.loss_scale);
        if result.grad_norm.is_finite() {
            break result;
        }
        assert_eq!(values(&trainer), before);
    };
    assert!(scales.len() > 1, "{scales:?}");
    let expected: Vec<f64> = (0..scales.len()).map(|number| 65536. / (number as f64).exp2()).collect();
    assert_eq!(scales, expected);
    assert_ne!(values(&trainer), before);
    let mut exact = Trainer::of_model((&model, compute(DType::F32)), &config, HashMap::new()).unwrap();
    let expected = step(&mut exact);
    assert_eq!(expected.loss_scale, None);
    for (got, expected) in [(result.loss, expected.loss), (result.grad_norm, expected.grad_norm)] {
        assert!((got / expected - 1.).abs() < 0.01, "{got} against {expected}");
    }
}

/// Runs `work` in two threads that are a group of processes.
fn in_group<R: Send>(work: impl Fn(Group) -> R + Sync) -> Vec<R> {
    let one = |member: Threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        pool.install(|| work(Group::new(Box::new(member), Reduction::Ordered)))
    };
    thread::scope(|scope| {
        let handles: Vec<_> = Threads::group(2).into_iter().map(|member| scope.spawn(|| one(member))).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    })
}

#[test]
fn a_group_skips_the_steps_that_one_process_would() {
    force_kernel_set(KernelSet::Candle).unwrap();
    let settings = ["diffusion.prediction=v", "autoencoder.accumulate=2", "autoencoder.batch_size=2"];
    let config = presets::config("smoke", &settings.map(str::to_owned)).unwrap();
    let model = config.model_config().unwrap();
    // Far from what pictures are: v, which has them in it, is large, and so is the gradient.
    let part = || Ok(Tensor::full(3000f32, (1, 3, 16, 16), &Device::Cpu)?);
    let trained = |mut group: Group| {
        let mut trainer = Trainer::of_model((&model, compute(DType::F16)), &config, HashMap::new()).unwrap();
        let steps = (0..4).map(|_| trainer.step_in_group(&mut group, &mut || part()).unwrap());
        let scales: Vec<_> = steps.map(|result| (result.loss_scale, result.grad_norm.to_bits())).collect();
        (scales, values(&trainer))
    };
    let alone = trained(Group::alone());
    assert!(alone.0[0].0 > alone.0[3].0, "no step was skipped: {:?}", alone.0);
    for of_process in in_group(trained) {
        assert!(of_process == alone, "{:?} against {:?}", of_process.0, alone.0);
    }
}

#[test]
fn processes_with_other_number_types_are_no_group() {
    let parent = tempfile::tempdir().unwrap();
    let notes = pictures(parent.path());
    let config = presets::config("smoke", &["autoencoder.accumulate=2".to_owned()]).unwrap();
    let outcomes = in_group(|mut group| {
        let open = || RunFolder::open_or_create(&parent.path().join("run"), &config, &notes);
        let mut folder = RunFolder::open_in_group(&mut group, open).unwrap();
        let dtype = if group.rank() == 0 { DType::F32 } else { DType::F16 };
        let options = TrainOptions { compute: compute(dtype), ..TrainOptions::default() };
        train_in_group(&mut folder, &options, &mut group, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string()
    });
    for problem in outcomes {
        assert!(problem.contains("process 1 has a number type other than process 0"), "{problem}");
    }
}
