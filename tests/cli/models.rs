//! `info` and `import`.

use crate::support::{Workspace, checkpoint, fixture};
use crate::training::{shapes, train_args};

#[test]
fn info_tells_what_a_checkpoint_can_do() {
    let info = Workspace::new().run(&["info", &checkpoint("autoenc16_latent"), "--json"]).succeeds().json();
    assert_eq!(info["kind"], "autoencoder_with_latent_net");
    assert_eq!(info["image_size"], 16);
    assert_eq!(info["z_sem_width"], 32);
    assert_eq!(info["can_sample"], true);
    assert_eq!(info["can_edit"], false);
    assert_eq!(info["latent_beta_schedule"], "const0.008");
    let text = Workspace::new().run(&["info", &checkpoint("ddpm16")]).succeeds().stdout();
    assert!(text.contains("plain DDPM"), "{text}");
}

#[test]
fn an_imported_model_is_the_checkpoint() {
    let workspace = Workspace::new();
    workspace.import("autoenc32");
    assert_eq!(workspace.files("model"), ["config.json", "model.safetensors"]);
    let imported = workspace.run(&["info", "model", "--json"]).succeeds().json();
    let original = workspace.run(&["info", &checkpoint("autoenc32"), "--json"]).succeeds().json();
    assert_eq!(imported["fingerprint"], original["fingerprint"]);
    assert_eq!(imported["parameters"], original["parameters"]);
    assert_eq!(imported["can_edit"], true);
    let by_weights = workspace.run(&["info", "model/model.safetensors", "--json"]).succeeds().json();
    assert_eq!(by_weights, imported);
}

#[test]
fn half_precision_halves_the_file() {
    let workspace = Workspace::new();
    workspace.run(&["import", &checkpoint("ddpm16"), "--out", "f32"]).succeeds();
    workspace.run(&["import", &checkpoint("ddpm16"), "--out", "f16", "--dtype", "f16"]).succeeds();
    let size = |name: &str| std::fs::metadata(workspace.path(name).join("model.safetensors")).unwrap().len() as f64;
    assert!(size("f16") < 0.6 * size("f32"));
}

#[test]
fn attributes_are_named_by_a_file() {
    let workspace = Workspace::new();
    std::fs::write(workspace.path("names.txt"), "a\nb\nc\nd\ne\n").unwrap();
    let (ckpt, classifier) = (checkpoint("autoenc32"), fixture("golden/autoenc32/classifier.ckpt"));
    let args = ["import", &ckpt, "--classifier", &classifier, "--attributes", "names.txt", "--out", "model"];
    workspace.run(&args).succeeds();
    let listed = workspace.run(&["edit", "--model", "model", "--list", "--json"]).succeeds().json();
    assert_eq!(listed, serde_json::json!(["a", "b", "c", "d", "e"]));
}

#[test]
fn parts_of_another_model_are_refused() {
    let workspace = Workspace::new();
    let (ckpt, other) = (checkpoint("autoenc32"), fixture("golden/autoenc16_latent/latent.pkl"));
    workspace
        .run(&["import", &ckpt, "--latent", &other, "--out", "model"])
        .fails_with("the width of the latent statistics is 32, the model expects 48");
    assert!(workspace.files(".").is_empty());
}

#[test]
fn every_command_that_makes_files_tells_scripts_what_it_made() {
    let workspace = Workspace::new();
    let ckpt = checkpoint("autoenc16_latent");
    let imported = workspace.run(&["import", &ckpt, "--out", "model", "--json"]).succeeds().json();
    assert_eq!((&imported["out"], &imported["kind"]), (&"model".into(), &"autoencoder_with_latent_net".into()));
    let pages = workspace.run(&["man", "--out", "man", "--json"]).succeeds().json();
    assert!(workspace.path(pages["first"].as_str().unwrap()).exists(), "{pages}");
    shapes(&workspace, 4);
    let folder = ["dataset", "folder", "--from", "shapes", "--size", "16", "--out", "data"];
    let made = workspace.run(&[&folder[..], &["--json"]].concat()).succeeds().json();
    assert_eq!((&made["pictures"], &made["left_out"]), (&8.into(), &0.into()));
    assert!(workspace.run(&[&folder[..], &["--json"]].concat()).succeeds().json()["pictures"].is_null());
    assert!(workspace.run(&folder).succeeds().stdout().contains("is there already"));
    let trained = train_args("run", &["--stage", "autoencoder", "--json"]);
    let trained = workspace.run(&trained).succeeds().json();
    assert_eq!((&trained["out"], &trained["stages"][0]["stage"]), (&"run".into(), &"autoencoder".into()));
    // A run is no data set, and is not made part of one.
    let into_run = ["dataset", "folder", "--from", "shapes", "--size", "16", "--out", "run"];
    workspace.run(&into_run).fails_with("and no data set; choose a new folder");
}
