//! Flags that override or complete hyper-parameters.

use diffae_infer::ModelSource;
use diffae_nets::weights::ArchitectureHints;
use serde_json::{Value, json};

use crate::torch_writer::{Entry, torch_file};
use crate::{Folder, golden, hyper_parameters, open, refused, renamed, state_dict};

/// A model with two attention heads, which no shape reveals.
const MODEL: &str = "gray16_heads2";

fn with_hyper_parameters(folder: &Folder, told: &Value) -> std::path::PathBuf {
    let state = renamed(&state_dict(MODEL, "last.ckpt"), |name| (name != "x_T").then(|| name.to_owned()));
    folder.write(
        "last.ckpt",
        torch_file(&[("state_dict", Entry::Tensors(&state)), ("hyper_parameters", Entry::Plain(told))]),
    )
}

fn expected() -> String {
    open(&golden(MODEL, "last.ckpt")).unwrap().fingerprint().unwrap()
}

fn given() -> ArchitectureHints {
    ArchitectureHints { image_size: Some(16), num_heads: Some(2), ..ArchitectureHints::default() }
}

#[test]
fn flags_count_where_hyper_parameters_are_silent() {
    let folder = Folder::new();
    let mut silent = hyper_parameters(MODEL);
    for key in ["img_size", "net_beatgans_attn_head", "T", "beta_scheduler"] {
        silent.as_object_mut().unwrap().remove(key);
    }
    for key in ["image_size", "num_heads"] {
        silent["model_conf"].as_object_mut().unwrap().remove(key);
    }
    // Hyper-parameters of a wrapper say nothing of the networks.
    for told in [silent, json!({"lr": 1e-4, "batch_size": 8})] {
        let path = with_hyper_parameters(&folder, &told);
        let message = refused(&path, &ArchitectureHints::default());
        assert!(message.contains("--image-size") && message.contains("last.ckpt"), "{message}");
        let hints = given();
        assert_eq!(ModelSource::open(&path, &hints).unwrap().fingerprint().unwrap(), expected());
        let hints =
            ArchitectureHints { num_train_timesteps: Some(500), beta_schedule: Some("cosine".to_owned()), ..hints };
        let source = ModelSource::open(&path, &hints).unwrap();
        let diffusion = source.config().diffusion().unwrap();
        assert_eq!((diffusion.num_train_timesteps, diffusion.beta_schedule.to_string().as_str()), (500, "cosine"));
    }
}

#[test]
fn half_told_networks_are_told_by_shapes() {
    let folder = Folder::new();
    let told = json!({"img_size": 16, "net_beatgans_attn_head": 2, "net_ch": 32});
    let path = with_hyper_parameters(&folder, &told);
    assert_eq!(open(&path).unwrap().fingerprint().unwrap(), expected());
    let path = with_hyper_parameters(&folder, &json!({"img_size": 16, "net_beatgans_attn_head": 2, "net_ch": 64}));
    let message = refused(&path, &ArchitectureHints::default());
    assert!(message.contains("model_channels is 64") && message.contains("32 by the shapes"), "{message}");
}

#[test]
fn contradictions_name_both_sides() {
    let path = golden(MODEL, "last.ckpt");
    assert!(ModelSource::open(&path, &given()).is_ok());
    let none = ArchitectureHints::default();
    for (hints, parts) in [
        (ArchitectureHints { image_size: Some(32), ..none.clone() }, ["--image-size", "32", "16"]),
        (ArchitectureHints { num_heads: Some(1), ..none.clone() }, ["--num-heads", "1", "2"]),
        (ArchitectureHints { encoder_res_blocks: Some(7), ..none.clone() }, ["--encoder-res-blocks", "7", "2"]),
        (ArchitectureHints { num_train_timesteps: Some(10), ..none.clone() }, ["--train-timesteps", "10", "1000"]),
        (
            ArchitectureHints { beta_schedule: Some("cosine".into()), ..none.clone() },
            ["--beta-schedule", "cosine", "linear"],
        ),
        (
            ArchitectureHints { latent_beta_schedule: Some("linear".into()), ..none.clone() },
            ["--latent-beta-schedule", "linear", "const0.008"],
        ),
    ] {
        let message = refused(&path, &hints);
        assert!(
            parts.iter().all(|part| message.contains(part)) && message.contains("leave the option out"),
            "{message}"
        );
    }
}

#[test]
fn a_model_directory_contradicts_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let source = open(&golden(MODEL, "last.ckpt")).unwrap();
    source.write(folder.path(), candle_core::DType::F32, diffae_data::Overwrite::Refuse).unwrap();
    assert!(ModelSource::open(folder.path(), &given()).is_ok());
    let message = refused(folder.path(), &ArchitectureHints { num_heads: Some(4), ..given() });
    assert!(message.contains("--num-heads is 4") && message.contains("config.json says 2"), "{message}");
}
