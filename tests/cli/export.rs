//! `export`.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::support::{Workspace, checkpoint};

fn manifest(workspace: &Workspace, folder: &str) -> Value {
    serde_json::from_slice(&fs::read(workspace.path(folder).join("manifest.json")).unwrap()).unwrap()
}

#[test]
fn the_built_in_model_becomes_four_graphs_and_a_manifest() {
    let workspace = Workspace::new();
    let said = workspace.run(&["export", "toonheads", "--onnx", "onnx"]).succeeds().stdout();
    assert!(said.contains("decoder_step.onnx") && said.contains("to onnx"), "{said}");
    let names = ["decoder_step.onnx", "directions.onnx", "encoder.onnx", "latent.onnx", "manifest.json"];
    assert_eq!(workspace.files("onnx"), names);
    let manifest = manifest(&workspace, "onnx");
    let listed: BTreeSet<&str> =
        manifest["graphs"].as_object().unwrap().values().map(|graph| graph["file"].as_str().unwrap()).collect();
    assert_eq!(listed, names[..4].iter().copied().collect());
    for graph in manifest["graphs"].as_object().unwrap().values() {
        let bytes = fs::read(workspace.path("onnx").join(graph["file"].as_str().unwrap())).unwrap();
        assert_eq!(graph["bytes"], bytes.len());
    }
    assert_eq!(manifest["diffusion"]["prediction"], "v");
    assert_eq!(manifest["diffusion"]["alpha_bars"].as_array().unwrap().len(), 1000);
    assert_eq!(manifest["diffusion"]["chain"]["timesteps"].as_array().unwrap().len(), 10);
    // The same strengths as `edit` takes without any.
    let listed = workspace.run(&["edit", "--model", "toonheads", "--list"]).succeeds().stdout();
    let line = |known: &Value| {
        format!("{:<16} full strength: {}\n", known["name"].as_str().unwrap(), known["full_strength"].as_f64().unwrap())
    };
    assert_eq!(manifest["attributes"].as_array().unwrap().iter().map(line).collect::<String>(), listed);
    let info = workspace.run(&["info", "toonheads", "--json"]).succeeds().json();
    assert_eq!(manifest["fingerprint"], info["fingerprint"]);
}

#[test]
fn half_precision_halves_the_networks() {
    let workspace = Workspace::new();
    let ckpt = checkpoint("autoenc16_latent");
    let report = workspace.run(&["export", &ckpt, "--onnx", "f32", "--json"]).succeeds().json();
    assert_eq!((&report["precision"], &report["kind"]), (&"f32".into(), &"autoencoder_with_latent_net".into()));
    workspace.run(&["export", &ckpt, "--onnx", "f16", "--half"]).succeeds();
    let size = |folder: &str| fs::metadata(workspace.path(folder).join("decoder_step.onnx")).unwrap().len() as f64;
    assert!(size("f16") < 0.7 * size("f32"), "{} {}", size("f16"), size("f32"));
    // A checkpoint without a classifier has nothing to edit with.
    assert!(!workspace.files("f32").contains(&"directions.onnx".to_owned()));
}

#[test]
fn another_option_for_the_precision_is_refused() {
    let workspace = Workspace::new();
    for dtype in ["f16", "bf16"] {
        let ckpt = checkpoint("ddpm16");
        workspace.run(&["export", &ckpt, "--onnx", "onnx", "--dtype", dtype]).fails_with("--half");
    }
    assert!(workspace.files(".").is_empty());
}

#[test]
fn a_plain_ddpm_has_one_graph() {
    let workspace = Workspace::new();
    workspace.run(&["export", &checkpoint("ddpm16"), "--onnx", "ddpm"]).succeeds();
    assert_eq!(workspace.files("ddpm"), ["decoder_step.onnx", "manifest.json"]);
    let inputs = &manifest(&workspace, "ddpm")["graphs"]["decoder_step"]["inputs"];
    let names: Vec<&Value> = inputs.as_array().unwrap().iter().map(|input| &input["name"]).collect();
    assert_eq!(names, ["x_t", "timestep"]);
    assert_eq!(inputs[0]["shape"], serde_json::json!(["N", 3, 16, 16]));
}

#[test]
fn an_export_is_not_replaced_without_a_word() {
    let workspace = Workspace::new();
    let export = |options: &[&str]| {
        let ckpt = checkpoint("ddpm16");
        workspace.run(&[&["export", ckpt.as_str(), "--onnx", "onnx"], options].concat())
    };
    export(&[]).succeeds();
    fs::write(workspace.path("onnx/decoder_step.onnx"), "mine").unwrap();
    export(&[]).fails_with("manifest.json exists already; use --force to replace it");
    // Without a manifest it is no export; its file is still somebody's.
    fs::remove_file(workspace.path("onnx/manifest.json")).unwrap();
    export(&[]).fails_with("decoder_step.onnx exists already; use --force to replace it");
    assert_eq!(fs::read(workspace.path("onnx/decoder_step.onnx")).unwrap(), b"mine");
    assert_eq!(workspace.files("onnx"), ["decoder_step.onnx"]);
    export(&["--force"]).succeeds();
    assert!(fs::metadata(workspace.path("onnx/decoder_step.onnx")).unwrap().len() > 10_000);
}

#[test]
fn what_is_no_model_leaves_nothing() {
    let workspace = Workspace::new();
    fs::write(workspace.path("notes.ckpt"), "no weights").unwrap();
    workspace.run(&["export", "notes.ckpt", "--onnx", "onnx"]).fails_with("notes.ckpt");
    workspace.run(&["export", "nothing", "--onnx", "onnx"]).fails_with("nothing");
    assert_eq!(workspace.files("."), ["notes.ckpt"]);
    fs::write(workspace.path("file"), "").unwrap();
    workspace.run(&["export", &checkpoint("ddpm16"), "--onnx", "file"]).fails_with("file");
}
