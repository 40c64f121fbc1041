//! Models whose encoder is a pretrained network.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::support::Workspace;
use crate::training::{set, shapes};

const WIDTH: usize = 384;

/// Writes a network with the layers of the small `DINOv2`, and weights that repeat.
fn write_dinov2(path: &Path, blocks: usize) {
    let waves: Vec<f32> = (0..9973_u16).map(|idx| (f32::from(idx) * 1.37).sin()).collect();
    let mut tensors = BTreeMap::new();
    let mut add = |name: String, shape: &[usize], scale: f32, shift: f32| {
        let scaled: Vec<u8> = waves.iter().flat_map(|value| (value * scale + shift).to_le_bytes()).collect();
        let len = 4 * shape.iter().product::<usize>();
        let mut bytes = scaled.repeat(len.div_ceil(scaled.len()));
        bytes.truncate(len);
        tensors.insert(name, (bytes, shape.to_vec()));
    };
    // 37x37 patches, as it was trained; pictures have 16x16.
    add("pos_embed".to_owned(), &[1, 1370, WIDTH], 0.2, 0.);
    add("cls_token".to_owned(), &[1, 1, WIDTH], 0.2, 0.);
    add("mask_token".to_owned(), &[1, WIDTH], 0.2, 0.);
    add("patch_embed.proj.weight".to_owned(), &[WIDTH, 3, 14, 14], 0.1, 0.);
    add("patch_embed.proj.bias".to_owned(), &[WIDTH], 0.1, 0.);
    for block in 0..blocks {
        let mut layer = |name: &str, shape: [usize; 2]| {
            add(format!("blocks.{block}.{name}.weight"), &shape, 0.08, 0.);
            add(format!("blocks.{block}.{name}.bias"), &shape[..1], 0.08, 0.);
        };
        layer("attn.qkv", [3 * WIDTH, WIDTH]);
        layer("attn.proj", [WIDTH, WIDTH]);
        layer("mlp.fc1", [4 * WIDTH, WIDTH]);
        layer("mlp.fc2", [WIDTH, 4 * WIDTH]);
        for norm in ["norm1", "norm2"] {
            add(format!("blocks.{block}.{norm}.weight"), &[WIDTH], 0.1, 1.);
            add(format!("blocks.{block}.{norm}.bias"), &[WIDTH], 0.1, 0.);
        }
        for scale in ["ls1", "ls2"] {
            add(format!("blocks.{block}.{scale}.gamma"), &[WIDTH], 0.1, 0.5);
        }
    }
    add("norm.weight".to_owned(), &[WIDTH], 0.1, 1.);
    add("norm.bias".to_owned(), &[WIDTH], 0.1, 0.);
    let views = tensors
        .iter()
        .map(|(name, (bytes, shape))| (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn train<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let preset = if more.contains(&"--preset") { &[][..] } else { &["--preset", "smoke"] };
    let fixed = [&["train", "--threads", "1", "--data", "shapes", "--out", out], preset].concat();
    let frozen = ["model.encoder=dinov2-s", "model.z_channels=384", "latent.images=64", "run.preview_steps=2"];
    [&fixed[..], &set(&frozen), more].concat()
}

fn weights(workspace: &Workspace, run: &str) -> Vec<u8> {
    fs::read(workspace.path(run).join("model.safetensors")).unwrap()
}

#[test]
fn a_pretrained_network_is_the_encoder_and_stays_what_it_is() {
    let workspace = Workspace::new();
    shapes(&workspace, 2);
    write_dinov2(&workspace.path("dino.safetensors"), 12);
    let given = ["--encoder-weights", "dino.safetensors"];
    let whole = [&given[..], &["--labels", "folders"], &set(&["autoencoder.images=16"])].concat();
    workspace.run(&train("run", &whole)).succeeds();

    // The parameters are those given, and the rest was trained.
    let (model, released) = (weights(&workspace, "run"), fs::read(workspace.path("dino.safetensors")).unwrap());
    let [model, released] = [&model, &released].map(|bytes| safetensors::SafeTensors::deserialize(bytes).unwrap());
    for name in ["blocks.11.mlp.fc2.weight", "cls_token", "norm.bias"] {
        assert_eq!(model.tensor(&format!("encoder.{name}")).unwrap().data(), released.tensor(name).unwrap().data());
    }
    assert_eq!(model.tensor("encoder.pos_embed").unwrap().shape(), [1, 257, WIDTH]);
    assert!(model.tensor("encoder.mask_token").is_err());
    let info = workspace.run(&["info", "run", "--json"]).succeeds().json();
    assert_eq!((&info["z_sem_width"], &info["encoder"]), (&WIDTH.into(), &"dinov2-s".into()));

    let said = workspace.run(&["info", "run"]).succeeds().stdout();
    assert!(said.contains("384 numbers, the features of dinov2-s"), "{said}");
    // Codes depend on pictures alone, so that another model with the same encoder has the same.
    let z_sem = |run: &str, out: &str| {
        workspace.run(&["encode", "-m", run, "shapes", "-o", out, "--semantic-only"]).succeeds();
        let bytes = fs::read(workspace.path(out)).unwrap();
        safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor("z_sem").unwrap().data().to_vec()
    };
    let codes = z_sem("run", "codes.safetensors");
    assert_eq!(codes.len(), 4 * WIDTH * 4);
    for (out, args) in [
        ("back", &["reconstruct", "-m", "run", "shapes/disc/00.png"][..]),
        ("edits", &["edit", "-m", "run", "shapes/disc/00.png", "-a", "disc"]),
        ("sampled", &["sample", "-m", "run", "-n", "2", "--steps", "2", "--latent-steps", "2"]),
    ] {
        workspace.run(&[args, &["-o", out]].concat()).succeeds();
        assert!(!workspace.files(out).is_empty(), "{out}");
    }

    // The run keeps the weights: it is stopped, they are gone, and it ends with the same bits.
    let half = [&given[..], &["--stage", "autoencoder"], &set(&["autoencoder.images=8"])].concat();
    workspace.run(&train("resumed", &half)).succeeds();
    fs::remove_file(workspace.path("dino.safetensors")).unwrap();
    let rest = ["train", "--out", "resumed", "--resume", "--threads", "1", "--labels", "folders"];
    workspace.run(&[&rest[..], &set(&["autoencoder.images=16"])].concat()).succeeds();
    assert!(weights(&workspace, "resumed") == weights(&workspace, "run"));

    // Another run begins with the networks of a model.
    let from_model = [&["--init-from", "run", "--stage", "autoencoder"][..], &set(&["autoencoder.images=8"])].concat();
    workspace.run(&train("further", &from_model)).succeeds();
    assert!(
        z_sem("further", "others.safetensors") == codes && weights(&workspace, "further") != weights(&workspace, "run")
    );

    workspace.run(&["export", "run", "--onnx", "graphs"]).succeeds();
    assert!(workspace.files("graphs").iter().any(|name| name == "encoder.onnx"));
    workspace.run(&["distill", "--model", "run", "--data", "shapes", "--out", "student"]).fails_with("dinov2-s");
}

#[test]
fn what_does_not_fit_a_pretrained_encoder_is_refused_before_anything_is_made() {
    let workspace = Workspace::new();
    shapes(&workspace, 1);
    write_dinov2(&workspace.path("shallow.safetensors"), 11);
    fs::write(workspace.path("text.pth"), "weights").unwrap();
    let refused = |more: &[&str], expected: &str| {
        workspace.run(&train("run", more)).fails_with(expected);
        assert!(!workspace.path("run").join("checkpoints").exists(), "{expected}");
    };
    refused(&[], "encoder_weights");
    refused(&["--encoder-weights", "nowhere.pth"], "nowhere.pth");
    // What an attempt has left is not used by another.
    fs::write(workspace.path("run/encoder.safetensors"), "of an attempt").unwrap();
    refused(&["--encoder-weights", "text.pth"], "text.pth");
    refused(&["--encoder-weights", "shallow.safetensors"], "384 features and 11 blocks");
    refused(&["--set", "model.z_channels=64"], "384, the number of features of dinov2-s");
    refused(&["--set", "model.kind=ddpm"], "model.encoder");
    refused(&["--set", "model.encoder=dinov3"], "expected trained, dinov2-s, dinov2-b or dinov2-l");
    refused(
        &["--encoder-weights", "shallow.safetensors", "--freeze", "encoder"],
        "a pretrained encoder is never trained",
    );
    refused(
        &["--encoder-weights", "shallow.safetensors", "--set", "model.image_channels=2"],
        "it takes 3, or 1 for gray ones",
    );
    // Nor is anything trained before it on latents.
    refused(&["--preset", "smoke_latent"], "encoder_weights");
    let without = ["train", "--preset", "smoke", "--data", "shapes", "--out", "run", "--encoder-weights", "text.pth"];
    workspace.run(&without).fails_with("encoder_weights");
}
