//! Files as other programs write them, each of a kind that the program once read wrongly, with what is right.
//!
//! Files of the same kinds are in the tests of checkpoints, pictures and data sets; these came with the reports.

use std::fs;

use crate::support::{FEW_STEPS, Workspace, fixture};
use crate::training::{set, train_args};

fn given(name: &str) -> String {
    fixture(&format!("faults/given/{name}"))
}

#[test]
fn models_and_statistics_of_other_programs_are_read() {
    let workspace = Workspace::new();
    let import =
        |model: &str, more: &[&str], out: &str| workspace.run(&[&["import", model, "--out", out], more].concat());
    let compiled = given("f1_compiled.ckpt");
    import(&compiled, &[], "compiled").succeeds();
    let info = workspace.run(&["info", "compiled", "--json"]).succeeds().json();
    assert_eq!((&info["z_sem_width"], &info["kind"]), (&32.into(), &"autoencoder_with_latent_net".into()));
    for name in ["f2_latent_nocrc.pkl", "f3_latent_legacy_proto1.pkl", "f3_latent_legacy_proto4.pkl"] {
        let latent = given(name);
        let said = import(&compiled, &["--latent", &latent], name).succeeds().stderr();
        assert_eq!(said.contains("saved without checksums"), name.contains("nocrc"), "{said}");
        let samples = format!("{name}-samples");
        let sample = ["sample", "--model", name, "-n", "1", "--latent-steps", "2", "--out", &samples];
        workspace.run(&[&sample[..], &FEW_STEPS].concat()).succeeds();
    }
    let released = given("st_ema_released_names.safetensors");
    import(&released, &[], "released").fails_with("--image-size");
    import(&released, &["--image-size", "16"], "released").succeeds();
    let script = given("f11_torchscript.pt");
    let refused = workspace.run(&["info", &script]).fails_with("is a TorchScript program (torch.jit.save)");
    assert_eq!(refused.stderr().matches("f11_torchscript.pt").count(), 1, "{}", refused.stderr());
}

#[test]
fn an_archive_that_is_cut_off_and_labels_that_contradict_are_refused() {
    let workspace = Workspace::new();
    let run = |data: &str, labels: Option<&str>| {
        let labels: Vec<&str> = labels.into_iter().flat_map(|labels| ["--labels", labels]).collect();
        workspace.run(&[&["train", "--preset", "smoke", "--data", data, "--out", "run"], &labels[..]].concat())
    };
    run(&given("f4_cut"), None).fails_with("f4_cut/0.tar: the archive is cut off");
    for folder in ["a", "b"] {
        fs::create_dir_all(workspace.path("twice").join(folder)).unwrap();
        for number in 0..2 {
            let from = given(&format!("f10_pictures/{number}.png"));
            fs::copy(from, workspace.path(&format!("twice/{folder}/{number}.png"))).unwrap();
        }
    }
    run("twice", Some(&given("dup.csv"))).fails_with("dup.csv");
    run(&given("f10_pictures"), Some(&given("l-dupcol.csv"))).fails_with("l-dupcol.csv");
    assert!(!workspace.path("run/model.safetensors").exists());
}

#[test]
fn booleans_of_pandas_are_labels() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("shapes")).unwrap();
    for number in 0..4 {
        let name = format!("{number}.png");
        fs::copy(given(&format!("f10_pictures/{name}")), workspace.path("shapes").join(name)).unwrap();
    }
    let labels = fixture("datasets/bool.csv");
    let short = set(&["data.validation_share=0", "autoencoder.images=16", "latent.images=16", "classifier.images=32"]);
    let args = train_args("run", &[&["--labels", &labels], &short[..]].concat());
    let said = workspace.run(&args).succeeds().stderr();
    assert!(said.contains("2 of 4 pictures are"), "{said}");
}
