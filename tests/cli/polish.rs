//! `diffae polish`: pictures of `z_sem` alone, from the endpoints of a network.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::evaluation::figure;
use crate::groups::free_port;
use crate::support::{Workspace, checkpoint};
use crate::training::shapes;

/// Writes VGG-16 with torchvision's names and weights that repeat.
pub(crate) fn write_vgg(path: &Path) {
    let waves: Vec<f32> = (0..9973_u16).map(|idx| (f32::from(idx) * 1.37).sin()).collect();
    let (mut tensors, mut idx, mut inputs) = (BTreeMap::new(), 0, 3_u16);
    for (stage, (count, outputs)) in [(2, 64), (2, 128), (3, 256), (3, 512), (3, 512_u16)].into_iter().enumerate() {
        idx += usize::from(stage > 0);
        for _ in 0..count {
            let scale = (6. / (9. * f32::from(inputs))).sqrt();
            let scaled: Vec<u8> = waves.iter().flat_map(|value| (value * scale).to_le_bytes()).collect();
            let bytes = |shape: &[usize]| {
                let len = 4 * shape.iter().product::<usize>();
                let mut bytes = scaled.repeat(len.div_ceil(scaled.len()));
                bytes.truncate(len);
                bytes
            };
            let weight = vec![usize::from(outputs), usize::from(inputs), 3, 3];
            let bias = vec![usize::from(outputs)];
            for (part, shape) in [("weight", weight), ("bias", bias)] {
                tensors.insert(format!("features.{idx}.{part}"), (bytes(&shape), shape));
            }
            (idx, inputs) = (idx + 2, outputs);
        }
    }
    let views = tensors
        .iter()
        .map(|(name, (bytes, shape))| (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn vgg(workspace: &Workspace) -> String {
    let path = workspace.path("vgg16.safetensors");
    write_vgg(&path);
    path.to_str().unwrap().to_owned()
}

/// A workspace with pictures and a model of 32 pixels, hardly trained, and the weights of VGG-16.
fn workspace() -> (Workspace, String) {
    let workspace = Workspace::new();
    shapes(&workspace, 8);
    let train = ["train", "--threads", "1", "--preset", "smoke", "--data", "shapes", "--out", "model"];
    let small = [
        "model.image_size=32",
        "model.attention_resolutions=[16]",
        "diffusion.prediction=v",
        "autoencoder.images=8",
        "latent.images=64",
    ];
    let small: Vec<&str> = small.into_iter().flat_map(|setting| ["--set", setting]).collect();
    workspace.run(&[&train[..], &small].concat()).succeeds();
    let weights = vgg(&workspace);
    (workspace, weights)
}

fn polish<'a>(weights: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["polish", "--threads", "1", "--model", "model", "--data", "shapes", "--lpips-weights", weights];
    let quick = ["--steps", "2", "--batch-size", "2", "--endpoint-channels", "8", "--out", out];
    [&fixed[..], &quick, more].concat()
}

#[test]
fn a_polished_model_decodes_z_sem_from_its_endpoint() {
    let (workspace, weights) = workspace();
    let every = ["--set", "run.preview_every_images=4"];
    let said =
        workspace.run(&polish(&weights, "whole", &[&every[..], &["--images", "4"]].concat())).succeeds().stdout();
    assert!(said.contains("it decodes in 2 steps"), "{said}");
    assert!(workspace.path("whole/previews/images-000000004.png").exists());
    // Stopped and continued, it is the same model.
    workspace.run(&polish(&weights, "run", &[&every[..], &["--images", "2"]].concat())).succeeds();
    let resume = ["train", "--threads", "1", "--out", "run", "--resume", "--set", "autoencoder.images=4"];
    workspace.run(&resume).succeeds();
    let [whole, run] = ["whole", "run"].map(|run| fs::read(workspace.path(run).join("model.safetensors")).unwrap());
    assert!(whole == run, "the models differ");
    // Polished again, with an endpoint network of another size, and trained on without one.
    let again = ["polish", "--model", "run", "--data", "shapes", "--lpips-weights", &weights, "--images", "2"];
    let other = ["--batch-size", "2", "--endpoint-channels", "16", "--out", "again", "--threads", "1"];
    workspace.run(&[&again[..], &other].concat()).succeeds();
    let plain =
        ["train", "--threads", "1", "--preset", "smoke", "--data", "shapes", "--init-from", "run", "--out", "on"];
    let small = ["model.image_size=32", "model.attention_resolutions=[16]", "diffusion.prediction=v"];
    let small: Vec<&str> = small.into_iter().flat_map(|setting| ["--set", setting]).collect();
    let short = ["--stage", "autoencoder", "--set", "autoencoder.images=8"];
    workspace.run(&[&plain[..], &small, &short].concat()).succeeds();
    let distill = ["distill", "--model", "run", "--data", "shapes", "--out", "none"];
    workspace.run(&distill).fails_with("the model that it was made of");
    assert!(!workspace.path("none").exists());

    // z_sem alone is decoded from its endpoint, whatever the seed; noise is there for those who ask for it.
    workspace.run(&["encode", "-m", "run", "shapes", "-o", "codes.safetensors", "--semantic-only"]).succeeds();
    let decoded = |model: &str, out: &str, more: &[&str]| {
        let args = ["decode", "-m", model, "codes.safetensors", "-o", out];
        workspace.run(&[&args[..], more].concat()).succeeds();
        let mut files: Vec<_> = fs::read_dir(workspace.path(out)).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        files.iter().map(|file| image::open(file).unwrap().into_rgb8().into_raw()).collect::<Vec<_>>()
    };
    let endpoint = decoded("run", "endpoint", &["--x-t", "endpoint"]);
    assert!(endpoint == decoded("run", "seeded", &["--x-t", "endpoint", "--seed", "5"]));
    assert!(endpoint != decoded("run", "random", &["--x-t", "random"]));
    let back = ["reconstruct", "-m", "run", "shapes", "-o", "back", "--x-t", "endpoint", "--json"];
    let rows = workspace.run(&back).succeeds().json();
    assert_eq!(rows.as_array().unwrap().len(), endpoint.len());
    let eval = ["eval", "recon", "--model", "run", "--data", "shapes", "--limit", "2", "--steps", "2", "--out", "eval"];
    let report = workspace.run(&[&eval[..], &["--json"]].concat()).succeeds().json();
    let mse = figure(&report, "mse", &[("x_T", "endpoint")]);
    assert!(mse > 0. && mse.is_finite() && report["settings"]["endpoint"].is_string(), "{report}");
    // Samples begin at endpoints, too; their noise is that of z_T.
    for (out, source) in [("one", "endpoint"), ("two", "random")] {
        workspace.run(&["sample", "-m", "run", "-n", "2", "-o", out, "--x-t", source]).succeeds();
    }
    workspace.run(&["sample", "-m", "run", "-n", "2", "-o", "usual"]).succeeds();
    let sample = |folder: &str| image::open(workspace.path(folder).join("sample_00000.png")).unwrap().into_rgb8();
    assert!(sample("one") == sample("usual") && sample("one") != sample("two"));
    // Variations of a picture are drawn from noise.
    workspace.run(&["variations", "-m", "run", "codes.safetensors:0", "--count", "2", "-o", "varied"]).succeeds();
    let info = workspace.run(&["info", "run"]).succeeds().stdout();
    assert!(info.contains("endpoint"), "{info}");
    // A model without such a network says so, before anything is written.
    let plain = ["decode", "-m", "model", "--any-model", "codes.safetensors", "-o", "none", "--x-t", "endpoint"];
    workspace.run(&plain).fails_with("`diffae polish` makes a model with one");
    assert!(!workspace.path("none").exists());
}

#[test]
fn polishing_ends_when_held_out_pictures_no_longer_gain() {
    let (workspace, weights) = workspace();
    let more = ["--images", "40", "--lr", "1e-30", "--patience", "1", "--set", "run.preview_every_images=2"];
    workspace.run(&polish(&weights, "run", &more)).succeeds();
    let log = fs::read_to_string(workspace.path("run/metrics.jsonl")).unwrap();
    let validated = log.lines().filter(|line| line.contains("validation_loss")).count();
    assert_eq!(validated, 2, "{log}");
    workspace.run(&["reconstruct", "-m", "run", "shapes", "-o", "back", "--x-t", "endpoint"]).succeeds();
}

#[test]
fn a_group_polishes_the_model_of_one() {
    let (workspace, weights) = workspace();
    let more = ["--images", "4", "--set", "autoencoder.accumulate=2"];
    workspace.run(&polish(&weights, "alone", &more)).succeeds();
    let master = format!("127.0.0.1:{}", free_port());
    let start = |rank| {
        let place = ["--rank", rank, "--world-size", "2", "--master", &master];
        workspace.start(&polish(&weights, "together", &[&more[..], &place].concat()))
    };
    let (first, second) = (start("0"), start("1"));
    for (code, told) in [first.end(), second.end()] {
        assert_eq!(code, Some(0), "{told}");
    }
    let [alone, together] =
        ["alone", "together"].map(|run| fs::read(workspace.path(run).join("model.safetensors")).unwrap());
    assert!(alone == together, "the models differ");
}

#[test]
fn what_cannot_be_polished_is_refused_in_a_sentence() {
    let workspace = Workspace::new();
    shapes(&workspace, 4);
    let weights = vgg(&workspace);
    workspace.run(&["import", &checkpoint("autoenc16_latent"), "--out", "model"]).succeeds();
    workspace.run(&polish(&weights, "out", &[])).fails_with("at least 32 pixels, for LPIPS");
    workspace.run(&["import", &checkpoint("ddpm16"), "--out", "ddpm"]).succeeds();
    let of_ddpm = ["polish", "--model", "ddpm", "--data", "shapes", "--lpips-weights", &weights, "--out", "out"];
    workspace.run(&of_ddpm).fails_with("model.kind");
    let of_toonheads = |weights: &str| {
        let args = ["polish", "--model", "toonheads", "--data", "shapes", "--lpips-weights", weights, "--out", "out"];
        workspace.run(&args)
    };
    of_toonheads("none.pth").fails_with("none.pth");
    of_toonheads("model/model.safetensors").fails_with("model.safetensors");
    assert!(!workspace.path("out").exists());
}
