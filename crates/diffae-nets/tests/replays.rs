//! Network calls in the form in which cards record them, on the composed backend on the CPU. One test, since kernels are selected
//! for the whole process.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use diffae_kernels::{KernelSet, Replay, force_cuda_kernels, force_kernel_set};
use diffae_nets::{Conditioning, RawUnetConfig, Unet, UnetConfig, UnetReplays, ZLevels};

fn config(conditioning: Conditioning) -> UnetConfig {
    UnetConfig::new(RawUnetConfig {
        image_size: 16.into(),
        in_channels: 3,
        out_channels: 3,
        model_channels: 32,
        channel_mult: vec![1, 2],
        num_res_blocks: 1,
        num_input_res_blocks: None,
        embed_channels: 24,
        attention_resolutions: vec![8],
        num_heads: 2,
        dropout: 0.,
        conditioning,
        z_levels: ZLevels::NONE,
    })
    .unwrap()
}

fn numbers(dims: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1., dims, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_recorded_call_predicts_what_the_network_predicts() {
    force_kernel_set(KernelSet::Candle).unwrap();
    force_cuda_kernels("graphs").unwrap();
    assert!(force_cuda_kernels("own").unwrap_err().to_string().contains("too late"));
    assert!(Replay::is_wanted(&Device::Cpu, DType::F32));
    for conditioning in [Conditioning::TimeAndZSem, Conditioning::Time] {
        let vars = VarMap::new();
        let unet = Unet::new(&config(conditioning), &VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu)).unwrap();
        // The last layer begins at zero, with which all predictions are the same.
        for var in vars.all_vars() {
            var.set(&numbers(var.dims()).affine(0.1, 0.).unwrap()).unwrap();
        }
        let replays = UnetReplays::default();
        // A shape twice, with other conditions and pictures, and another shape between.
        for images in [2, 3, 2] {
            let z_sem = (conditioning == Conditioning::TimeAndZSem).then(|| numbers(&[images, 24]));
            let z_sem = z_sem.map(|z_sem| unet.project_z_sem(&z_sem).unwrap());
            let time = unet.project_time(&[5., 600., 999.], &numbers(&[1])).unwrap();
            let conditions = unet.chain_conditions(&time, z_sem.as_ref()).unwrap().unwrap();
            let mut all = vec![];
            for step in [2, 0, 1, 2] {
                let x_t = numbers(&[images, 3, 16, 16]);
                let expected = unet.forward_projected(&x_t, &time.of(step).unwrap(), z_sem.as_ref()).unwrap();
                let got = unet.forward_replayed(&replays, &x_t, &conditions, step).unwrap().unwrap();
                assert_eq!(values(&got), values(&expected));
                all.push((got, values(&expected)));
            }
            assert!(all.iter().all(|(got, expected)| values(got) == *expected), "a result was overwritten");
            assert_ne!(all[0].1, all[1].1);
        }
        assert_eq!(format!("{replays:?}"), "UnetReplays(2)");
    }
}
