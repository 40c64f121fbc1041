//! `diffae fit-attributes`: attributes of one's own on any model.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

use image::{Rgb, RgbImage};

use crate::support::{FEW_INVERSION_STEPS, FEW_STEPS, Workspace, checkpoint};
use crate::training::{set, shapes, train_args};

/// Few and large steps of the classifier, and a quarter of the pictures held out.
const QUICK: [&str; 6] = ["--images", "3200", "--lr", "0.05", "--held-out", "0.25"];

/// Forty pictures that are red or blue, of which all but the last eight are labeled.
fn colors(workspace: &Workspace) {
    fs::create_dir(workspace.path("colors")).unwrap();
    let mut labels = "file,Red,Odd\n".to_owned();
    for i in 0..40u8 {
        let (strong, weak) = (150 + 2 * i, 3 * i);
        let color = if i % 2 == 0 { [strong, 40, weak] } else { [weak, 40, strong] };
        let picture = RgbImage::from_fn(16, 16, |x, y| if x + y < 20 { Rgb(color) } else { Rgb([90; 3]) });
        picture.save(workspace.path(&format!("colors/{i:02}.png"))).unwrap();
        if i < 32 {
            writeln!(labels, "{i:02}.png,{},{}", u8::from(i % 2 == 0), u8::from(i % 3 == 0)).unwrap();
        }
    }
    fs::write(workspace.path("labels.csv"), labels).unwrap();
}

fn teach<'a>(model: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["fit-attributes", "--model", model, "--data", "colors", "--labels", "labels.csv", "--out", out];
    [&fixed[..], &QUICK, more].concat()
}

/// Names, number types and bytes of all tensors of a model directory.
fn tensors(workspace: &Workspace, folder: &str) -> BTreeMap<String, (String, Vec<u8>)> {
    let bytes = fs::read(workspace.path(folder).join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let owned = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        (name, (format!("{:?}", view.dtype()), view.data().to_vec()))
    };
    file.tensors().into_iter().map(owned).collect()
}

fn attributes(workspace: &Workspace, model: &str) -> Vec<String> {
    let info = workspace.run(&["info", model, "--json"]).succeeds().json();
    info["attributes"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// Everything that the model was stays, to the bit; what is new can be edited.
#[test]
fn a_model_learns_attributes_and_stays_what_it_was() {
    let workspace = Workspace::new();
    workspace.import("autoenc16_latent");
    workspace.run(&["import", "model/model.safetensors", "--dtype", "f16", "--out", "half"]).succeeds();
    colors(&workspace);
    for model in ["model", "half"] {
        let taught = format!("taught-{model}");
        let report = workspace.run(&teach(model, &taught, &["--json"])).succeeds().json();
        assert_eq!(report["attributes"].as_array().unwrap().len(), 2, "{report}");
        let red = &report["attributes"][0];
        let held_out = red["held_out"].as_u64().unwrap();
        assert!(held_out > 2 && report["trained_on"].as_u64().unwrap() + held_out == 32, "{report}");
        assert!((0. ..=1.).contains(&red["auroc"].as_f64().unwrap()), "{report}");
        assert!(red["full_strength"].as_f64().unwrap() > 0., "{report}");

        let (before, after) = (tensors(&workspace, model), tensors(&workspace, &taught));
        let is_kept = |name: &str| !name.starts_with("classifier.");
        for (name, tensor) in before.iter().filter(|(name, _)| is_kept(name)) {
            assert!(after.get(name) == Some(tensor), "{name} is another");
        }
        assert!(after.keys().filter(|name| is_kept(name)).all(|name| before.contains_key(name)));
        let row = |tensors: &BTreeMap<String, (String, Vec<u8>)>| tensors["classifier.weight"].1.clone();
        assert!(row(&after).starts_with(&row(&before)), "attributes that were there keep their rows");
        let old = attributes(&workspace, model);
        assert_eq!(attributes(&workspace, &taught), [&old[..], &["Red".to_owned(), "Odd".to_owned()]].concat());
    }
    for model in ["model", "taught-model"] {
        let out = format!("samples-{model}.safetensors");
        let args = ["sample", "--model", model, "-n", "2", "--latent-steps", "3", "--out", &out];
        workspace.run(&[&args[..], &FEW_STEPS].concat()).succeeds();
    }
    let samples = |model: &str| {
        let bytes = fs::read(workspace.path(&format!("samples-{model}.safetensors"))).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        file.tensor("x").unwrap().data().to_vec()
    };
    assert!(samples("model") == samples("taught-model"), "the samples are others");
    let args = ["edit", "--model", "taught-model", "colors/01.png", "--attribute", "Red", "--out", "edited"];
    workspace.run(&[&args[..], &FEW_STEPS, &FEW_INVERSION_STEPS].concat()).succeeds();
    assert_eq!(workspace.files("edited").len(), 1);
}

/// A checkpoint, one file of a model directory, the built-in model and a run: all can learn.
#[test]
fn any_kind_of_model_can_learn() {
    let workspace = Workspace::new();
    workspace.import("autoenc16_latent");
    colors(&workspace);
    let released = checkpoint("autoenc32");
    let file = "model/model.safetensors";
    for (model, out) in [(released.as_str(), "a"), (file, "b"), ("toonheads", "c")] {
        let report = workspace.run(&teach(model, out, &["--json"])).succeeds().json();
        let auroc = report["attributes"][0]["auroc"].as_f64().unwrap();
        // The others have weights that nobody trained.
        assert!(model != "toonheads" || auroc > 0.9, "red and blue are told apart: {report}");
        let known = attributes(&workspace, out);
        assert_eq!(known[known.len() - 2..], ["Red", "Odd"], "{model}");
        let info = workspace.run(&["info", out, "--json"]).succeeds().json();
        assert_eq!(info["can_edit"], true, "{model}: {info}");
    }
    let fingerprint = |model: &str| workspace.run(&["info", model, "--json"]).succeeds().json()["fingerprint"].clone();
    for (model, out) in [(released.as_str(), "a"), ("toonheads", "c")] {
        assert_eq!(fingerprint(model), fingerprint(out), "codes of {model} are codes of {out}");
    }
    // A run of one stage has neither classifier nor statistics.
    shapes(&workspace, 8);
    workspace.run(&train_args("run", &["--stage", "autoencoder"])).succeeds();
    let photograph = crate::support::photograph();
    let edit = ["edit", "--model", "run", &photograph, "--attribute", "Red", "--out", "x"];
    workspace.run(&edit).fails_with("fit-attributes");
    let taught = workspace.run(&teach("run", "d", &["--directions", "weights"])).succeeds();
    assert!(taught.stderr().contains("no latent statistics"), "{}", taught.stderr());
    let listed = workspace.run(&["edit", "--model", "d", "--list"]).succeeds().stdout();
    assert_eq!(listed, "Red\nOdd\n", "the weights of a classifier do not say how far to go");
    // In the folder of the run itself, as its third stage would; the codes of its stages stay.
    workspace.run(&teach("run", "run", &[])).fails_with("exists");
    workspace.run(&teach("run", "run", &["--force"])).succeeds();
    assert_eq!(attributes(&workspace, "run"), ["Red", "Odd"]);
    let longer = set(&["autoencoder.images=176"]);
    let resume = ["train", "--out", "run", "--resume", "--stage", "autoencoder"];
    workspace.run(&[&resume[..], &longer].concat()).succeeds();
}

#[test]
fn attributes_that_are_there_are_replaced_only_where_that_is_asked_for() {
    let workspace = Workspace::new();
    colors(&workspace);
    let model = checkpoint("autoenc16_latent");
    workspace.run(&teach(&model, "taught", &[])).succeeds();
    let first = tensors(&workspace, "taught");
    workspace.run(&teach("taught", "again", &[])).fails_with("the model has Red, Odd already; --replace");
    assert!(!workspace.path("again").exists(), "what is refused leaves nothing");
    workspace.run(&teach("taught", "again", &["--replace", "--seed", "1"])).succeeds();
    assert_eq!(attributes(&workspace, "again"), ["Red", "Odd"]);
    let second = tensors(&workspace, "again");
    assert!(first["classifier.weight"] != second["classifier.weight"], "another seed gives another row");
    // Nothing is replaced without a word, and the same seed gives the same bits.
    workspace.run(&teach(&model, "taught", &[])).fails_with("--force");
    workspace.run(&teach(&model, "taught", &["--force"])).succeeds();
    assert!(first == tensors(&workspace, "taught"));
}

#[test]
fn what_cannot_be_learned_is_said_before_anything_is_encoded() {
    let workspace = Workspace::new();
    colors(&workspace);
    let model = checkpoint("autoenc16_latent");
    let refused = |args: &[&str], text: &str| {
        workspace.run(args).fails_with(text);
        assert!(!workspace.path("out").exists(), "{args:?}");
    };
    refused(&teach(&checkpoint("ddpm16"), "out", &[]), "plain DDPM");
    refused(&teach(&model, "out", &["--dtype", "f16"]), "f32");
    refused(&teach(&model, "labels.csv", &[]), "is a file");
    refused(&teach("nowhere", "out", &[]), "nowhere");
    let all_held_out = ["fit-attributes", "--model", &model, "--data", "colors", "--labels", "labels.csv"];
    refused(&[&all_held_out[..], &["--out", "out", "--held-out", "1"]].concat(), "below 1");
    refused(&[&all_held_out[..], &["--out", "out", "--lr", "0"]].concat(), "lr is 0");
    let few = "file,Red\n00.png,1\n01.png,0\n";
    fs::write(workspace.path("labels.csv"), few).unwrap();
    refused(&[&all_held_out[..], &["--out", "out", "--held-out", "0.99"]].concat(), "both are needed");
    fs::write(workspace.path("labels.csv"), "file,Red\nnobody.png,1\n01.png,0\n").unwrap();
    refused(&teach(&model, "out", &[]), "nobody.png");
}
