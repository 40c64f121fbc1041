//! Models whose `z_sem` is hierarchical: one part for each resolution.

use std::fs;

use serde_json::json;

use crate::support::Workspace;
use crate::training::{set, shapes};

const QUICK: [&str; 3] = ["autoencoder.images=160", "latent.images=640", "run.preview_steps=2"];
/// Parts for maps of 16 and of 8 pixels.
const LEVELS: &str = "model.z_levels=[12,20]";

fn train<'a>(out: &'a str, preset: &'a str, settings: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["train", "--preset", preset, "--threads", "1", "--data", "shapes", "--labels", "folders"];
    [&fixed[..], &["--out", out], &set(&QUICK), &set(settings)].concat()
}

/// Returns the semantic codes of a file, row by row.
fn z_sem(workspace: &Workspace, file: &str) -> Vec<Vec<u8>> {
    let bytes = fs::read(workspace.path(file)).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.tensor("z_sem").unwrap().data().chunks(32 * 4).map(<[u8]>::to_vec).collect()
}

#[test]
fn levels_of_a_code_are_edited_blended_and_probed_apart() {
    let workspace = Workspace::new();
    shapes(&workspace, 8);
    workspace.run(&train("run", "smoke", &[LEVELS])).succeeds();
    let info = workspace.run(&["info", "run", "--json"]).succeeds().json();
    assert_eq!((&info["z_levels"], &info["z_resolutions"]), (&json!([12, 20]), &json!([16, 8])));
    let said = workspace.run(&["info", "run"]).succeeds().stdout();
    assert!(said.contains("z_sem        32 numbers: 12, 20 for maps of 16, 8 pixels"), "{said}");

    // An edit of both levels is an edit; of one it is another.
    let picture = "shapes/disc/00.png";
    for (out, more) in
        [("all", &[][..]), ("both", &["--levels", "0,1"]), ("fine", &["--levels", "0"]), ("coarse", &["--levels=1"])]
    {
        let edit = ["edit", "-m", "run", picture, "-a", "disc=-40", "-o", out, "--steps", "4"];
        workspace.run(&[&edit[..], more].concat()).succeeds();
    }
    let [all, both, fine, coarse] =
        ["all", "both", "fine", "coarse"].map(|out| workspace.pixels(&format!("{out}/00_disc_-40.png")));
    assert!(all == both && fine != all && coarse != all && fine != coarse);

    // A path of one level begins at the first picture, and ends at one with that level of the second.
    let (from, to) = ("shapes/disc/00.png", "shapes/square/01.png");
    for (out, more) in [("path", &[][..]), ("path0", &["--levels", "0"]), ("path1", &["--levels", "1"])] {
        let path = ["interpolate", "-m", "run", from, to, "-o", out, "--frames", "3", "--steps", "4"];
        workspace.run(&[&path[..], more].concat()).succeeds();
    }
    let frame = |out: &str, number: usize| workspace.pixels(&format!("{out}/frame_{number:04}.png"));
    assert!(frame("path", 0) == frame("path0", 0) && frame("path", 0) == frame("path1", 0));
    assert!(frame("path", 2) != frame("path0", 2) && frame("path0", 2) != frame("path1", 2));

    // Each level is probed alone, beside the whole code.
    let eval = ["eval", "attributes", "--model", "run", "--data", "shapes", "--labels", "folders", "--folds", "2"];
    let report = workspace.run(&[&eval[..], &["--out", "probes", "--json"]].concat()).succeeds().json();
    let is_mean = |figure: &&serde_json::Value| figure["name"] == "auroc" && figure["of"]["attribute"] == "(mean)";
    let figures = report["figures"].as_array().unwrap().iter().filter(is_mean);
    let levels: Vec<_> = figures.map(|figure| figure["of"]["level"].clone()).collect();
    assert_eq!(levels, [json!(null), json!("0"), json!("1")]);

    // Edits of a level are measured, too.
    for kind in ["without", "with"] {
        let from = if kind == "with" { "disc" } else { "square" };
        fs::create_dir_all(workspace.path("pairs/disc").join(kind)).unwrap();
        for name in ["00.png", "01.png", "02.png"] {
            let to = format!("pairs/disc/{kind}/{name}");
            fs::copy(workspace.path(&format!("shapes/{from}/{name}")), workspace.path(&to)).unwrap();
        }
    }
    let eval =
        ["eval", "edits", "--model", "run", "--pairs", "pairs", "--exact-steps", "3", "--strength", "40", "--json"];
    let measured = |out: &str, levels: &str| {
        let report = workspace.run(&[&eval[..], &["--out", out, "--levels", levels]].concat()).succeeds().json();
        let figures = report["figures"].as_array().unwrap().clone();
        figures.into_iter().find(|figure| figure["name"] == "rmse_edited").unwrap()["value"].clone()
    };
    assert_ne!(measured("edits0", "0"), measured("edits1", "1"));
    let wrong = [&eval[..], &["--out", "no", "--levels", "2"]].concat();
    workspace.run(&wrong).fails_with("there is no level 2");

    // Codes and pictures of chance work as with any model.
    workspace.run(&["sample", "-m", "run", "-n", "2", "--steps", "2", "--latent-steps", "2", "-o", "new"]).succeeds();
    workspace.run(&["export", "run", "--onnx", "onnx"]).succeeds();
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(workspace.path("onnx/manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["z_levels"], json!([12, 20]));

    for (wrong, expected) in [
        (
            &["edit", "-m", "run", picture, "-a", "disc", "-o", "no", "--levels", "2"][..],
            "there is no level 2 of z_sem: the model has 2",
        ),
        (&["edit", "-m", "toonheads", picture, "-a", "Bun", "-o", "no", "--levels", "0"], "has no levels"),
        (&["interpolate", "-m", "run", from, to, "--levels", "0,7", "-o", "no"], "there is no level 7"),
    ] {
        workspace.run(wrong).fails_with(expected);
    }
    assert!(!workspace.path("no").exists());
}

#[test]
fn a_hierarchical_model_that_was_stopped_leads_to_the_same_model() {
    let workspace = Workspace::new();
    shapes(&workspace, 8);
    workspace.run(&train("whole", "smoke", &[LEVELS])).succeeds();
    workspace.run(&train("run", "smoke", &[LEVELS, "autoencoder.images=80"])).succeeds();
    let resume = ["train", "--threads", "1", "--out", "run", "--resume"];
    workspace.run(&[&resume[..], &set(&["autoencoder.images=160"])].concat()).succeeds();
    let weights = |run: &str| fs::read(workspace.path(run).join("model.safetensors")).unwrap();
    assert!(weights("whole") == weights("run"), "the models differ");
    for out in ["whole", "run"] {
        let file = format!("{out}.safetensors");
        workspace.run(&["encode", "-m", out, "shapes", "-o", &file, "--semantic-only"]).succeeds();
    }
    assert_eq!(z_sem(&workspace, "whole.safetensors"), z_sem(&workspace, "run.safetensors"));

    for (settings, expected) in [
        (&["model.z_levels=[12,21]"][..], "and 32 together"),
        (&["model.z_levels=[32]"], "one width for each of 2 levels"),
        (&["model.z_levels=[0,32]"], "z_levels"),
        (&[LEVELS, "model.kind=ddpm"], "model.z_levels"),
        (&[LEVELS, "model.kind=compact"], "model.z_levels"),
        (&[LEVELS, "model.encoder_channel_mult=[1]"], "the encoder has 1 levels, and needs 2"),
        (&[LEVELS, "model.encoder=dinov2-s", "model.z_channels=384"], "features of a pretrained network"),
    ] {
        workspace.run(&train("no", "smoke", settings)).fails_with(expected);
    }
    let again = ["train", "--threads", "1", "--out", "run", "--resume"];
    workspace.run(&[&again[..], &set(&["model.z_levels=[16,16]"])].concat()).fails_with("z_levels");
    assert!(!workspace.path("no").exists());
}
