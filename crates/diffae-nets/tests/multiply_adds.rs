//! Multiply-adds that are predicted from configs, against those that the kernels count. One test: the counter is the
//! process's.

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use diffae_kernels::num_multiply_adds;
use diffae_nets::{
    Conditioning, EncoderConfig, LatentNet, LatentNetConfig, RawEncoderConfig, RawLatentNetConfig, RawUnetConfig,
    SemanticEncoder, Unet, UnetConfig, ZLevels,
};

fn counted(f: impl FnOnce()) -> u64 {
    let before = num_multiply_adds();
    f();
    num_multiply_adds() - before
}

#[test]
fn networks_take_as_many_multiply_adds_as_predicted() {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    for (num_input_res_blocks, channel_mult, attention_resolutions) in
        [(None, vec![1, 2], vec![8]), (Some(1), vec![1, 2, 2], vec![16, 4])]
    {
        let unet = UnetConfig::new(RawUnetConfig {
            image_size: 16.into(),
            in_channels: 3,
            out_channels: 3,
            model_channels: 32,
            channel_mult,
            num_res_blocks: 2,
            num_input_res_blocks,
            embed_channels: 24,
            attention_resolutions,
            num_heads: 2,
            dropout: 0.,
            conditioning: Conditioning::TimeAndZSem,
            z_levels: ZLevels::NONE,
        })
        .unwrap();
        let name = format!("unet{}", unet.channel_mult.len());
        let network = Unet::new(&unet, &vb.pp(name)).unwrap();
        let x = Tensor::zeros((3, 3, 16, 16), DType::F32, &Device::Cpu).unwrap();
        let z_sem = network.project_z_sem(&Tensor::zeros((3, 24), DType::F32, &Device::Cpu).unwrap()).unwrap();
        let time = network.project_time(&[5.], &x).unwrap();
        let got = counted(|| drop(network.forward_projected(&x, &time, Some(&z_sem)).unwrap()));
        assert_eq!(got, 3 * unet.num_multiply_adds());
    }

    for z_levels in [vec![], vec![10, 14]] {
        let name = format!("encoder{}", z_levels.len());
        let encoder = EncoderConfig::new(RawEncoderConfig {
            image_size: 16.into(),
            in_channels: 3,
            out_channels: 24,
            model_channels: 32,
            channel_mult: vec![1, 2],
            num_res_blocks: 1,
            attention_resolutions: vec![8],
            num_heads: 1,
            z_levels: z_levels.into(),
        })
        .unwrap();
        let network = SemanticEncoder::new(&encoder, &vb.pp(name)).unwrap();
        let x = Tensor::zeros((2, 3, 16, 16), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(counted(|| drop(network.forward(&x).unwrap())), 2 * encoder.num_multiply_adds());
    }

    let latent = LatentNetConfig::new(RawLatentNetConfig {
        z_channels: 24,
        hidden_channels: 40,
        num_layers: 4,
        skip_layers: vec![1, 2],
        time_embed_channels: 16,
    })
    .unwrap();
    let network = LatentNet::new(&latent, &vb.pp("latent")).unwrap();
    let z_t = Tensor::zeros((1, 24), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(counted(|| drop(network.forward(&z_t, &[3.]).unwrap())), latent.num_multiply_adds());
}
