//! `eval`.

use std::fs;

use crate::support::{Workspace, checkpoint, fixture};

fn byte(value: u32) -> u8 {
    u8::try_from(value & 255).unwrap()
}

/// Pictures that differ, eight of them.
fn pictures(workspace: &Workspace, folder: &str) -> String {
    let path = workspace.path(folder);
    fs::create_dir_all(&path).unwrap();
    for number in 0..8u32 {
        let picture = image::RgbImage::from_fn(16, 16, |x, y| {
            image::Rgb([x * (number + 3), y * 16, number * 30 + x * y].map(byte))
        });
        picture.save(path.join(format!("{number}.png"))).unwrap();
    }
    path.to_str().unwrap().to_owned()
}

/// A figure of a report.
fn figure(report: &serde_json::Value, name: &str, of: &[(&str, &str)]) -> f64 {
    let figures = report["figures"].as_array().unwrap();
    let fits = |figure: &&serde_json::Value| {
        figure["name"] == name && of.iter().all(|(key, value)| figure["of"][*key] == *value)
    };
    figures.iter().find(fits).and_then(|figure| figure["value"].as_f64()).unwrap()
}

#[test]
fn reconstructions_are_measured_as_reconstruct_does() {
    let workspace = Workspace::new();
    let data = pictures(&workspace, "data");
    let model = checkpoint("autoenc16_latent");
    let eval = ["eval", "recon", "--model", &model, "--data", &data, "--out", "eval", "--steps", "2,3", "--json"];
    let report = workspace.run(&eval).succeeds().json();
    let reconstruct = ["reconstruct", "--model", &model, &data, "--out", "r", "--steps", "3", "--invert-steps", "3"];
    let single = workspace.run(&[&reconstruct[..], &["--json"]].concat()).succeeds().json();
    let mean = single.as_array().unwrap().iter().map(|row| row["psnr"].as_f64().unwrap()).sum::<f64>() / 8.;
    let got = figure(&report, "psnr", &[("x_T", "inverted"), ("steps", "3")]);
    assert!((got - mean).abs() < 1e-9, "{got}, expected {mean}");
    for name in ["recon.png", "recon.psnr.png", "recon.ssim.png", "recon.csv", "recon.json", "recon.items.jsonl"] {
        assert!(workspace.path("eval").join(name).is_file(), "{name}");
    }
}

#[test]
fn an_interrupted_evaluation_goes_on_and_ends_the_same() {
    let workspace = Workspace::new();
    let data = pictures(&workspace, "data");
    let model = checkpoint("autoenc16_latent");
    let with = |out: &'static str, steps: &'static str| {
        let args = ["eval", "recon", "--model", &model, "--data", &data, "--out", out, "--batch-size", "2"];
        workspace.run(&[&args[..], &["--steps", steps]].concat())
    };
    with("whole", "2").succeeds();
    with("torn", "2").succeeds();
    let read = |folder: &str, name: &str| fs::read_to_string(workspace.path(folder).join(name)).unwrap();
    let items = read("torn", "recon.items.jsonl");
    let kept = items.lines().take(9).collect::<Vec<_>>().join("\n");
    fs::write(workspace.path("torn/recon.items.jsonl"), kept + "\n{\"item\":\"inv").unwrap();
    fs::remove_file(workspace.path("torn/recon.json")).unwrap();
    with("torn", "2").succeeds();
    assert_eq!(read("torn", "recon.json"), read("whole", "recon.json"));
    with("other", "3").succeeds();
    let reports = ["eval", "compare", "whole/recon.json", "torn/recon.json", "other/recon.json"];
    let rows = workspace.run(&[&reports[..], &["--json"]].concat()).succeeds().json();
    let rows = rows.as_array().unwrap();
    // Three measures of two kinds of x_T with two numbers of steps, of which a report has one.
    assert_eq!(rows.len(), 12);
    assert_eq!(rows[0]["figures"][0], rows[0]["figures"][1]);
    assert!(rows[0]["figures"][2].is_null() && rows[11]["figures"][0].is_null());
    let table = workspace.run(&reports).succeeds().stdout();
    assert!(table.contains("whole/recon.json") && table.contains("steps 3, x_T random"), "{table}");
    workspace.run(&["eval", "compare", "whole/recon.csv"]).fails_with("no report");
    // Neither values of other settings are mixed in nor those of other pictures of the same names.
    let picture = workspace.path("data/0.png");
    let original = fs::read(&picture).unwrap();
    image::RgbImage::from_pixel(16, 16, image::Rgb([9, 9, 9])).save(&picture).unwrap();
    with("torn", "2").fails_with("another evaluation (data is");
    fs::write(&picture, original).unwrap();
    with("torn", "3").fails_with("another evaluation (steps is [2], not [3])");
    assert_eq!(read("torn", "recon.json"), read("whole", "recon.json"));
}

#[test]
fn attributes_that_codes_hold_are_found() {
    let workspace = Workspace::new();
    let (data, model) = (pictures(&workspace, "data"), checkpoint("autoenc16_latent"));
    // The pictures grow bluer with their number.
    let rows: Vec<String> = (0..8).map(|number| format!("{number}.png,{},1", u8::from(number > 3))).collect();
    fs::write(workspace.path("labels.csv"), format!("file,Blue,Always\n{}\n", rows.join("\n"))).unwrap();
    let args = ["eval", "attributes", "--model", &model, "--data", &data, "--labels", "labels.csv", "--out", "eval"];
    let finished = workspace.run(&[&args[..], &["--folds", "4", "--json"]].concat()).succeeds();
    let report = finished.json();
    assert!(figure(&report, "auroc", &[("attribute", "Blue")]) > 0.5);
    assert!(!report.to_string().contains("Always"), "an attribute of all pictures cannot be probed");
    let auroc = |attribute| figure(&report, "auroc", &[("attribute", attribute)]);
    assert!((auroc("(mean)") - auroc("Blue")).abs() < 1e-12);
    let rows: Vec<String> = (0..8).map(|n| format!("{n}.png,{},{}", u8::from(n > 3), n % 2)).collect();
    fs::write(workspace.path("two.csv"), format!("file,Blue,Odd\n{}\n", rows.join("\n"))).unwrap();
    let args = ["eval", "disentanglement", "--model", &model, "--data", &data, "--labels", "two.csv", "--out", "eval"];
    let report = workspace.run(&[&args[..], &["--json"]].concat()).succeeds().json();
    let share = figure(&report, "disentanglement", &[]);
    assert!((0. ..=1.).contains(&share), "{share}");
    assert!((figure(&report, "attributes", &[]) - 2.).abs() < 1e-12);
    let plain = checkpoint("ddpm16");
    let args = ["eval", "attributes", "--model", &plain, "--data", &data, "--labels", "labels.csv", "--out", "none"];
    workspace.run(&[&args[..], &["--folds", "4"]].concat()).fails_with("plain DDPM");
}

#[test]
fn edits_are_compared_with_the_truth() {
    let workspace = Workspace::new();
    workspace.import("autoenc32");
    let info = workspace.run(&["info", "model", "--json"]).succeeds().json();
    let attribute = info["attributes"][0].as_str().unwrap().to_owned();
    for side in ["without", "with"] {
        let folder = workspace.path("pairs").join(&attribute).join(side);
        fs::create_dir_all(&folder).unwrap();
        for number in 0..6u32 {
            let picture = image::RgbImage::from_fn(32, 32, |x, y| {
                let changed = side == "with" && y > 20;
                image::Rgb([x * 8, number * 40, if changed { 255 } else { 0 }].map(byte))
            });
            picture.save(folder.join(format!("{number}.png"))).unwrap();
        }
    }
    let args =
        ["eval", "edits", "--model", "model", "--pairs", "pairs", "--steps", "2", "--invert-steps", "2", "--json"];
    let report = workspace.run(&[&args[..], &["--out", "eval"]].concat()).succeeds().json();
    let of = [("attribute", attribute.as_str())];
    // A fifth of the pairs finds the strength.
    let nearer = report["figures"].as_array().unwrap().iter().find(|figure| figure["name"] == "nearer").unwrap();
    assert_eq!(nearer["count"], 4);
    assert!((figure(&report, "mae_inside_unedited", &of) - 1.).abs() < 1e-6);
    let by_pairs = workspace.run(&[&args[..], &["--out", "other", "--direction", "pairs"]].concat()).succeeds().json();
    assert!(figure(&by_pairs, "rmse_edited", &of) > 0.);
    fs::remove_file(workspace.path("pairs").join(&attribute).join("with/0.png")).unwrap();
    workspace.run(&[&args[..], &["--out", "third"]].concat()).fails_with("names differ");
}

#[test]
fn exchanged_codes_tell_what_z_sem_decides() {
    let workspace = Workspace::new();
    let (data, model) = (pictures(&workspace, "data"), checkpoint("autoenc16_latent"));
    let args = ["eval", "z-usage", "--model", &model, "--data", &data, "--out", "eval", "--steps", "2", "--json"];
    let report = workspace.run(&args).succeeds().json();
    let share = figure(&report, "z_sem_share", &[]);
    assert!(share > 0. && share < 1., "{share}");
    let again = workspace.run(&args).succeeds().json();
    assert_eq!(report, again);
    let run = |model: &str, data: &str| {
        workspace.run(&["eval", "z-usage", "--model", model, "--data", data, "--out", "other"])
    };
    run(&checkpoint("ddpm16"), &data).fails_with("z_sem");
    run(&model, &fixture("none")).fails_with("none");
}
