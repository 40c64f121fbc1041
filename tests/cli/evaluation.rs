//! `eval`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};

use crate::support::{Workspace, checkpoint, fixture};

fn byte(value: u32) -> u8 {
    u8::try_from(value & 255).unwrap()
}

/// Pictures that differ, eight of them.
pub(crate) fn pictures(workspace: &Workspace, folder: &str) -> String {
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
/// Runs an evaluation in two shards, then as a whole in the same folder, whose report it returns.
fn in_shards(workspace: &Workspace, args: &[&str]) -> serde_json::Value {
    for shard in ["2/2", "1/2"] {
        let told = workspace.run(&[args, &["--shard", shard]].concat()).succeeds().json();
        assert_eq!((&told["settings"]["shard"], told["figures"].as_array().unwrap().len()), (&shard.into(), 0));
    }
    workspace.run(args).succeeds().json()
}

pub(crate) fn figure(report: &serde_json::Value, name: &str, of: &[(&str, &str)]) -> f64 {
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
    workspace.run(&["eval", "compare", "whole/recon.csv"]).fails_with("not a report");
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
    workspace.run(&[&args[..], &["--folds", "2"]].concat()).fails_with("another evaluation (folds is 4, not 2)");
    workspace.run(&[&args[..], &["--folds", "2", "--dtype", "bf16", "--force"]].concat()).succeeds();
    // Probes of other pictures: the same ones here, whose attributes stand in another order.
    let rows: Vec<String> = (0..8).map(|number| format!("{number}.png,1,{}", u8::from(number > 3))).collect();
    fs::write(workspace.path("train.csv"), format!("file,Always,Blue\n{}\n", rows.join("\n"))).unwrap();
    let trained = [&args[..8], &["--out", "trained", "--train-data", &data]].concat();
    let report = workspace.run(&[&trained[..], &["--train-labels", "train.csv", "--json"]].concat()).succeeds().json();
    assert!(figure(&report, "auroc", &[("attribute", "Blue")]) > 0.99);
    assert!(report["settings"]["train_count"] == 8 && report["settings"]["folds"].is_null());
    // What is the same for all that are scored counts in no mean.
    let rows: Vec<String> =
        (0..8).map(|number| format!("{number}.png,{},{}", number % 2, u8::from(number > 3))).collect();
    fs::write(workspace.path("odd.csv"), format!("file,Always,Blue\n{}\n", rows.join("\n"))).unwrap();
    let odd = [&trained[..], &["--train-labels", "odd.csv", "--force", "--json"]].concat();
    let scored = workspace.run(&odd).succeeds();
    assert!(scored.stderr().contains("attribute Always is (nearly) constant over the data"), "{}", scored.stderr());
    assert!(!scored.stdout().contains("Always"));
    fs::write(workspace.path("other.csv"), "file,Red\n0.png,1\n1.png,0\n").unwrap();
    let other = [&args[..8], &["--out", "refused", "--train-data", &data, "--train-labels", "other.csv"]].concat();
    workspace.run(&other).fails_with("no attribute Blue");
    assert!(!workspace.path("refused").exists(), "pictures were encoded for nothing");
    workspace.run(&trained).fails_with("required arguments");
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

/// Six pictures without an attribute, a blue lower third, and with it.
fn save_pairs(attribute: &Path) {
    for side in ["without", "with"] {
        let folder = attribute.join(side);
        fs::create_dir_all(&folder).unwrap();
        for number in 0..6u32 {
            let picture = image::RgbImage::from_fn(32, 32, |x, y| {
                let changed = side == "with" && y > 20;
                image::Rgb([x * 8, number * 40, if changed { 255 } else { 0 }].map(byte))
            });
            picture.save(folder.join(format!("{number}.png"))).unwrap();
        }
    }
}

#[test]
fn edits_are_compared_with_the_truth() {
    let workspace = Workspace::new();
    workspace.import("autoenc32");
    let info = workspace.run(&["info", "model", "--json"]).succeeds().json();
    let attribute = info["attributes"][0].as_str().unwrap().to_owned();
    save_pairs(&workspace.path("pairs").join(&attribute));
    let args =
        ["eval", "edits", "--model", "model", "--pairs", "pairs", "--steps", "2", "--invert-steps", "2", "--json"];
    let report = workspace.run(&[&args[..], &["--out", "eval"]].concat()).succeeds().json();
    assert_eq!(in_shards(&workspace, &[&args[..], &["--out", "shards"]].concat()), report);
    let along = |more: &[&str]| {
        let args = ["eval", "edits", "--model", "model", "--pairs", "pairs", "--out", "along", "--spacing", "interior"];
        workspace.run(&[&args[..], more].concat())
    };
    along(&[]).fails_with("required arguments were not provided");
    along(&["--steps", "2"]).fails_with("required arguments were not provided");
    let told = fs::read_to_string(workspace.path("along/edits.json"));
    assert!(told.is_err(), "a spacing that nothing follows is refused");
    along(&["--exact-steps", "2"]).succeeds();
    assert!(fs::read_to_string(workspace.path("along/edits.json")).unwrap().contains("2 exact interior steps"));
    let weights = random_weights(&workspace, "squeeze");
    let data = workspace.path("pairs").join(&attribute).join("with");
    let ppl = ["eval", "ppl", "--model", "model", "--data", data.to_str().unwrap(), "--pairs", "3", "--json"];
    let more = ["--steps", "2", "--invert-steps", "2", "--backbone", "squeeze", "--weights", &weights, "--out"];
    let ppl = |out: &'static str| [&ppl[..], &more, &[out]].concat();
    assert_eq!(in_shards(&workspace, &ppl("ppl-shards")), workspace.run(&ppl("ppl")).succeeds().json());
    let of = [("attribute", attribute.as_str())];
    // A fifth of the pairs finds the strength.
    let nearer = report["figures"].as_array().unwrap().iter().find(|figure| figure["name"] == "nearer").unwrap();
    assert_eq!(nearer["count"], 4);
    // One channel of three is another.
    assert!((figure(&report, "mae_inside_unedited", &of) - 1. / 3.).abs() < 1e-6);
    let by_pairs = workspace.run(&[&args[..], &["--out", "other", "--direction", "pairs"]].concat()).succeeds().json();
    assert!(figure(&by_pairs, "rmse_edited", &of) > 0.);
    // What an edit leaves alone stays as it is, though two steps decode hardly anything.
    let kept = workspace.run(&[&args[..], &["--out", "kept", "--keep-residual"]].concat()).succeeds().json();
    let outside = |report| figure(report, "mae_outside_edited", &of);
    assert!(outside(&kept) < 0.5 * outside(&report), "{} {}", outside(&kept), outside(&report));
    fs::remove_file(workspace.path("pairs").join(&attribute).join("with/0.png")).unwrap();
    workspace.run(&[&args[..], &["--out", "third"]].concat()).fails_with("names differ");
}

#[test]
fn edits_are_learned_from_pairs() {
    let workspace = Workspace::new();
    workspace.import("autoenc32");
    save_pairs(&workspace.path("pairs/attribute_1"));
    save_pairs(&workspace.path("pairs/Unheard_Of"));
    let args = ["fit-edits", "--model", "model", "--pairs", "pairs", "--out"];
    let fitted = workspace.run(&[&args[..], &["taught"]].concat()).succeeds();
    let said = fitted.stdout();
    let new: Vec<&str> = said.lines().filter(|line| line.ends_with("(new)")).collect();
    assert!(new.len() == 1 && new[0].starts_with("Unheard_Of") && said.contains("attribute_1"), "{said}");
    workspace.run(&[&args[..], &["taught"]].concat()).fails_with("exists");
    workspace.run(&[&args[..], &["other", "--units", "2000"]].concat()).fails_with("at most 1024");
    workspace.run(&[&args[..], &["other", "--limit", "1"]].concat()).fails_with("at least two");
    // Pictures that lack the attribute in other ways are learned from as well.
    let others = workspace.path("pairs/attribute_1/others");
    fs::create_dir(&others).unwrap();
    for number in 0..6u8 {
        let plain = image::RgbImage::from_pixel(32, 32, image::Rgb([200, 30 * number, 90]));
        plain.save(others.join(format!("{number}.png"))).unwrap();
    }
    workspace.run(&[&args[..], &["more"]].concat()).succeeds();
    let weights = |folder: &str| fs::read(workspace.path(folder).join("model.safetensors")).unwrap();
    assert!(weights("more") != weights("taught"), "others change nothing");
    workspace.run(&[&args[..], &["fewer", "--limit", "5"]].concat()).succeeds();
    fs::rename(others.join("5.png"), others.join("6.png")).unwrap();
    workspace.run(&[&args[..], &["other"]].concat()).fails_with("pairs/attribute_1/others: 6.png is missing in `with`");
    fs::remove_dir_all(&others).unwrap();
    workspace.run(&[&args[..], &["fixed", "--units", "0"]].concat()).succeeds();
    save_pairs(&workspace.path("pairs/1"));
    workspace.run(&[&args[..], &["other"]].concat()).fails_with("1 and attribute_1 are the same");
    fs::remove_dir_all(workspace.path("pairs/1")).unwrap();
    // The networks stay what they are, in half precision too.
    let half = ["import", "model/model.safetensors", "--dtype", "f16", "--out", "half"];
    workspace.run(&half).succeeds();
    let args = ["fit-edits", "--model", "half", "--pairs", "pairs", "--out", "half", "--force"];
    let fingerprint = || workspace.run(&["info", "half", "--json"]).succeeds().json()["fingerprint"].clone();
    let before = fingerprint();
    workspace.run(&args).succeeds();
    assert_eq!(before, fingerprint());

    // The way from a picture without to that with it is forward, with one direction for all and with local ones.
    fs::remove_dir_all(workspace.path("pairs/Unheard_Of")).unwrap();
    let measured = |model: &str| {
        let args = ["eval", "edits", "--model", model, "--pairs", "pairs", "--steps", "2", "--invert-steps", "2"];
        let out = format!("eval-{model}");
        let report = workspace.run(&[&args[..], &["--json", "--out", &out]].concat()).succeeds().json();
        figure(&report, "strength", &[("attribute", "attribute_1")])
    };
    let [by_row, fixed, local] = ["model", "fixed", "taught"].map(measured);
    assert!(fixed > 0. && local > 0. && (fixed - by_row).abs() > 1e-6, "{by_row} {fixed} {local}");

    let photograph = crate::support::photograph();
    let args = ["edit", "--model", "taught", &photograph, "--attribute", "attribute_1", "--out", "out"];
    workspace.run(&[&args[..], &["--steps", "2", "--invert-steps", "2"]].concat()).succeeds();
    // As far as the model knows it to be.
    let listed = workspace.run(&["edit", "--model", "taught", "--list"]).succeeds().stdout();
    let strength = listed.lines().find_map(|line| line.split("full strength: ").nth(1)).unwrap();
    assert!(strength.parse::<f64>().unwrap() > 0., "{listed}");
    assert_eq!(workspace.files("out"), [format!("astronaut_attribute_1_+{strength}.png")]);
    let model = checkpoint("autoenc32");
    let args = ["fit-edits", "--model", &model, "--pairs", "pairs", "--out", "none"];
    // A model without classifier or statistics gets both.
    let fitted = workspace.run(&[&args[..], &["--json"]].concat()).succeeds();
    assert!(fitted.stderr().contains("no latent statistics"), "{}", fitted.stderr());
    let fitted = fitted.json();
    assert_eq!(
        (&fitted["attributes"][0]["attribute"], &fitted["attributes"][0]["new"]),
        (&"attribute_1".into(), &true.into())
    );
    let listed = workspace.run(&["edit", "--model", "none", "--list"]).succeeds().stdout();
    assert!(listed.starts_with("attribute_1 ") && listed.contains("full strength: "), "{listed}");
}

/// Pairs teach an attribute that the model does not have.
#[test]
fn pairs_add_an_attribute() {
    let workspace = Workspace::new();
    workspace.import("autoenc32");
    let before = workspace.run(&["edit", "--model", "model", "--list"]).succeeds().stdout();
    save_pairs(&workspace.path("pairs/Round"));
    let args = ["fit-edits", "--model", "model", "--pairs", "pairs", "--out", "taught"];
    workspace.run(&args).succeeds();
    let listed = workspace.run(&["edit", "--model", "taught", "--list"]).succeeds().stdout();
    assert!(listed.starts_with(&before), "what was there stays: {listed}");
    let new = listed.lines().last().unwrap();
    assert!(new.starts_with("Round ") && new.contains("full strength: "), "{listed}");
    let again = ["fit-edits", "--model", "taught", "--pairs", "pairs", "--out", "twice"];
    let said = workspace.run(&again).succeeds().stdout();
    assert!(!said.contains("(new)"), "{said}");

    // A pair of which one picture cannot be read is left out as a whole.
    let side = workspace.path("pairs/Round/with");
    let broken = fs::read_dir(&side).unwrap().next().unwrap().unwrap().path();
    fs::write(&broken, "no picture").unwrap();
    let name = broken.file_name().unwrap().to_str().unwrap();
    let args = ["fit-edits", "--model", "model", "--pairs", "pairs", "--out", "fewer", "--json"];
    workspace.run(&args).fails_with(name);
    let all = fs::read_dir(&side).unwrap().count();
    let fitted = workspace.run(&[&args[..], &["--skip-broken"]].concat()).succeeds();
    assert_eq!(fitted.json()["attributes"][0]["pairs"], all - 1);
    assert!(fitted.stderr().contains("left out") && fitted.stderr().contains(name), "{}", fitted.stderr());
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

/// Weights of a feature network that a formula makes, in a file.
pub(crate) fn random_weights(workspace: &Workspace, network: &str) -> String {
    let shapes = include_str!("../../crates/diffae-eval/tests/fixtures/networks.json");
    let shapes: serde_json::Value = serde_json::from_str(shapes).unwrap();
    let mut state = 1_u32;
    let mut tensors = BTreeMap::new();
    for line in shapes["shapes"][network].as_array().unwrap() {
        let mut words = line.as_str().unwrap().split_whitespace();
        let name = words.next().unwrap().to_owned();
        let shape: Vec<usize> = words.map(|word| word.parse().unwrap()).collect();
        let fan_in: usize = shape.iter().skip(1).product::<usize>().max(1);
        let (offset, scale) = match shape.len() {
            1 if name.ends_with("bias") || name.ends_with("mean") => (0., 0.2),
            1 => (1., 0.2),
            _ => (0., (6. / fan_in as f64).sqrt()),
        };
        let number = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = offset + scale * (f64::from(state >> 8) / f64::from(1_u32 << 23) - 1.);
            #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
            (value as f32).to_le_bytes()
        };
        let bytes: Vec<u8> = std::iter::repeat_with(number).take(shape.iter().product()).flatten().collect();
        tensors.insert(name, (shape, bytes));
    }
    let views = tensors
        .iter()
        .map(|(name, (shape, bytes))| (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    let path = workspace.path(&format!("{network}.safetensors"));
    safetensors::serialize_to_file(views, None, &path).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn sets_of_pictures_are_compared_by_features() {
    let workspace = Workspace::new();
    let data = pictures(&workspace, "data");
    let weights = random_weights(&workspace, "efficientnet-lite0");
    let features = ["--features", "efficientnet-lite0", "--weights", &weights, "--json", "--neighbors", "2"];
    let fid = |more: &[&str]| workspace.run(&[&["eval", "fid"][..], &features, more].concat());
    // A set is at no distance from itself, and all of its pictures are real.
    let kept = workspace.path("real.npz");
    let kept = kept.to_str().unwrap();
    let itself = fid(&["--pictures", &data, "--data", &data, "--out", "itself", "--save-statistics", kept]);
    let itself = itself.succeeds().json();
    let scale = figure(&itself, "precision", &[]);
    assert!(figure(&itself, "frechet_distance", &[]) < 1e-3 && (scale - 1.).abs() < 1e-9, "{itself}");
    assert!((figure(&itself, "coverage", &[]) - 1.).abs() < 1e-9);
    let overlap = itself["figures"].as_array().unwrap().iter().find(|figure| figure["name"] == "density").unwrap();
    assert!(overlap["low"].as_f64() <= overlap["value"].as_f64() && overlap["high"].is_number(), "{overlap}");
    // What a model makes is not.
    let model = checkpoint("autoenc16_latent");
    let made = ["--model", &model, "--data", &data, "--latent-steps", "2", "--batch-size", "3"];
    let made = |out: &str, more: &[&str]| fid(&[&made[..], &["--out", out], more].concat());
    let whole = made("made", &["--steps", "2"]).succeeds().json();
    assert!(figure(&whole, "frechet_distance", &[]) > 0.1, "{whole}");
    // Interrupted work goes on and ends the same.
    let path = workspace.path("made/generated.features");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..3 * 1280 * 4 + 5]).unwrap();
    assert_eq!(made("made", &["--steps", "2"]).succeeds().json(), whole);
    assert_eq!(fs::read(&path).unwrap(), bytes);
    made("made", &["--steps", "3"]).fails_with("is of another evaluation");
    // Fewer pictures are the first ones, and nothing is lost.
    let fewer = made("made", &["--steps", "2", "--count", "5"]).succeeds().json();
    assert_eq!(fewer["settings"]["count"], 5);
    assert_eq!(fs::read(&path).unwrap(), bytes);
    let decoded = made("decoded", &["--steps", "2", "--source", "decoded"]).succeeds().json();
    assert_eq!(decoded["settings"]["source"], "decoded");
    let resampled = made("made", &["--steps", "2", "--resamples", "5"]).succeeds().json();
    let interval = &resampled["figures"][0];
    assert!(interval["low"].as_f64() > Some(0.) && interval["low"].as_f64() < interval["high"].as_f64(), "{interval}");
    assert_eq!(interval["value"], whole["figures"][0]["value"]);
    // Statistics stand for the real pictures.
    let from_file = fid(&["--pictures", &data, "--reference-statistics", kept, "--out", "file"]).succeeds().json();
    assert!(figure(&from_file, "frechet_distance", &[]) < 1e-3);
    let alone = |more: &[&str]| {
        fid(&[&["--model", &model, "--reference-statistics", kept, "--out", "alone"][..], more].concat())
    };
    alone(&[]).fails_with("say how many images to generate (`--count`)");
    alone(&["--source", "decoded"]).fails_with("whose z_sem the model decodes (`--data`)");
    let sized = |out: &str, more: &[&str]| {
        let args = ["--pictures", &data, "--data", &data, "--out", out];
        fid(&[&args[..], more].concat())
    };
    sized("sized", &["--crop", "celeba"]).fails_with("say how large the images are (`--size`)");
    let halved = sized("halved", &["--size", "8"]).succeeds().json();
    assert!(figure(&halved, "frechet_distance", &[]) > 0.1, "small pictures are others: {halved}");
    made("made", &["--steps", "2", "--save-statistics", kept]).succeeds();
    sized("halved", &["--size", "8", "--save-statistics", kept]).fails_with("exists already");
    fid(&["--pictures", &data, "--data", &data, "--out", "reference", "--protocol", "reference"])
        .fails_with("features of inception");
    let other = random_weights(&workspace, "squeeze");
    let wrong = ["eval", "fid", "--pictures", &data, "--data", &data, "--out", "wrong", "--weights", &other];
    workspace.run(&wrong).fails_with("weights of a feature network");
}

#[test]
fn sets_that_are_too_small_for_a_frechet_distance_are_named() {
    let workspace = Workspace::new();
    let data = pictures(&workspace, "data");
    fs::create_dir(workspace.path("one")).unwrap();
    fs::copy(workspace.path("data/0.png"), workspace.path("one/0.png")).unwrap();
    let weights = random_weights(&workspace, "efficientnet-lite0");
    let fid = |pictures: &str, data: &str, out: &str| {
        let features = ["--features", "efficientnet-lite0", "--weights", &weights];
        let sets = ["--pictures", pictures, "--data", data, "--out", out, "--neighbors", "2"];
        workspace.run(&[&["eval", "fid"][..], &features, &sets].concat())
    };
    let one = workspace.path("one");
    fid(one.to_str().unwrap(), &data, "a")
        .fails_with("the generated set has 1 image; a Frechet distance needs at least two");
    fid(&data, one.to_str().unwrap(), "b").fails_with("the real set has 1 image;");
    let few = fid(&data, &data, "c").succeeds().stderr();
    assert!(few.contains("the generated set has 8 images for 1280 features: its covariance is singular"), "{few}");
    let clean = ["eval", "fid", "--features", "efficientnet-lite0", "--weights", &weights, "--resize", "clean"];
    let sets = ["--pictures", &data, "--data", &data, "--out", "d"];
    workspace.run(&[&clean[..], &sets].concat()).fails_with("(`--resize clean`) needs the features of inception");
}

#[test]
fn images_may_be_resized_as_clean_fid_does() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("data")).unwrap();
    for number in 0..2u32 {
        let noise = |x: u32, y: u32| image::Rgb([x * 97 + y * 31, y * 77 + number, x * y * 13].map(byte));
        image::RgbImage::from_fn(24, 24, noise).save(workspace.path(&format!("data/{number}.png"))).unwrap();
    }
    let weights = random_weights(&workspace, "inception");
    let fid = |resize: &str, out: &str| {
        let sets = ["--pictures", "data", "--data", "data", "--out", out, "--weights", &weights, "--json"];
        workspace.run(&[&["eval", "fid", "--resize", resize][..], &sets].concat())
    };
    let plain = fid("pytorch-fid", "plain").succeeds().json();
    assert!(plain["settings"].get("resize").is_none());
    let clean = fid("clean", "clean").succeeds().json();
    assert_eq!(clean["settings"]["resize"], "clean");
    let features = |folder: &str| fs::read(workspace.path(folder).join("generated.features")).unwrap();
    assert_ne!(features("plain"), features("clean"));
    // Features of one way are not taken for those of the other.
    fid("clean", "plain").fails_with("is of another evaluation");
}

#[test]
fn statistics_are_read_as_numpy_writes_them() {
    let workspace = Workspace::new();
    let data = pictures(&workspace, "data");
    let weights = random_weights(&workspace, "efficientnet-lite0");
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../diffae-eval/tests/fixtures");
    for name in ["fortran_order.npz", "big_endian.npz"] {
        let statistics = fixtures.join(name);
        let sets = ["--pictures", &data, "--reference-statistics", statistics.to_str().unwrap(), "--out", "out"];
        let features = ["eval", "fid", "--features", "efficientnet-lite0", "--weights", &weights];
        // They are read, and found to be of another network's features.
        workspace.run(&[&features[..], &sets].concat()).fails_with("has 4 features, efficientnet-lite0 has 1280");
    }
}

#[test]
fn pictures_are_compared_with_the_eyes_of_a_network() {
    let workspace = Workspace::new();
    let data = workspace.path("data");
    let made = workspace.path("made");
    for folder in [&data, &made] {
        fs::create_dir_all(folder).unwrap();
    }
    for number in 0..3u32 {
        let picture = |shift: u32| {
            image::RgbImage::from_fn(32, 32, |x, y| image::Rgb([x * 7 + shift, y * 8, number * 60 + x].map(byte)))
        };
        picture(0).save(data.join(format!("{number}.png"))).unwrap();
        picture(number * 40).save(made.join(format!("{number}.bmp"))).unwrap();
    }
    let (data, made) = (data.to_str().unwrap(), made.to_str().unwrap());
    let weights = random_weights(&workspace, "squeeze");
    let network = ["--backbone", "squeeze", "--weights", &weights];
    let args = ["eval", "lpips", "--data", data, "--pictures", made, "--out", "lpips", "--json"];
    let report = workspace.run(&[&args[..], &network].concat()).succeeds().json();
    let divided = ["eval", "lpips", "--data", data, "--pictures", made, "--out", "divided", "--json"];
    assert_eq!(in_shards(&workspace, &[&divided[..], &network].concat()), report);
    let mean = figure(&report, "lpips", &[("backbone", "squeeze")]);
    let items = fs::read_to_string(workspace.path("lpips/lpips.items.jsonl")).unwrap();
    let value = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["values"]["lpips"].as_f64();
    let values: Vec<f64> = items.lines().skip(1).filter_map(value).collect();
    assert!(values[0].abs() < 1e-9 && values[1] > 1e-4 && values[2] > values[1], "{values:?}");
    assert!((values.iter().sum::<f64>() / 3. - mean).abs() < 1e-12);
    // The same beside the other measures of reconstructions.
    let network = ["--lpips-backbone", "squeeze", "--lpips-weights", &weights];
    let args = ["eval", "recon", "--data", data, "--pictures", made, "--steps", "20", "--out", "recon", "--json"];
    let report = workspace.run(&[&args[..], &network].concat()).succeeds().json();
    let divided = ["eval", "recon", "--data", data, "--pictures", made, "--steps", "20", "--out", "halves", "--json"];
    assert_eq!(in_shards(&workspace, &[&divided[..], &network].concat()), report);
    let got = figure(&report, "lpips", &[("x_T", "inverted"), ("steps", "20")]);
    assert!((got - mean).abs() < 1e-12, "{got}, expected {mean}");
    let again = ["eval", "recon", "--data", data, "--pictures", data, "--steps", "50", "--out", "perfect"];
    workspace.run(&again).succeeds();
    let compare = ["eval", "compare", "recon/recon.json", "perfect/recon.json", "--out", "compared"];
    let table = workspace.run(&compare).succeeds().stdout();
    assert!(table.contains("lpips"), "{table}");
    for name in ["compare.json", "compare.txt", "compare.recon.png"] {
        assert!(workspace.path("compared").join(name).is_file(), "{name}");
    }
    workspace
        .run(&["eval", "lpips", "--data", data, "--pictures", made, "--out", "none", "--weights", &weights])
        .fails_with("weights of a feature network");
}

#[test]
fn everything_is_measured_at_once() {
    let workspace = Workspace::new();
    let data = pictures(&workspace, "data");
    let model = checkpoint("autoenc16_latent");
    let labels = workspace.path("labels.csv");
    let lines: Vec<String> =
        (0..8).map(|number| format!("{number}.png,{},{}", number % 2, u8::from(number > 2))).collect();
    fs::write(&labels, format!("file,Odd,Large\n{}\n", lines.join("\n"))).unwrap();
    let labels = labels.to_str().unwrap();
    let few = ["eval", "few-shot", "--model", &model, "--data", &data, "--labels", labels, "--out", "few"];
    fs::create_dir(workspace.path("empty")).unwrap();
    let nothing = ["eval", "all", "--model", &model, "--data", "empty", "--out", "nothing"];
    workspace.run(&nothing).fails_with("there are no pictures in it");
    let options =
        ["--shots", "2,4", "--draws", "2", "--samples", "16", "--latent-steps", "2", "--steps", "2", "--json"];
    let report = workspace.run(&[&few[..], &options].concat()).succeeds().json();
    // Pictures of the attribute have even more of it than the number that they differ by: few labels tell.
    let of = |knows| [("attribute", "Large"), ("labels", "4"), ("knows", knows)];
    assert!(figure(&report, "auroc", &of("binary")) > 0.6, "{report}");
    // Shares of sixteen, as two draws have them.
    let accepted = 32. * figure(&report, "accepted", &of("binary"));
    assert!((accepted - accepted.round()).abs() < 1e-9, "{accepted}");
    let again = workspace.run(&[&few[..], &options].concat()).succeeds().json();
    assert_eq!(again, report);
    let divided = ["eval", "few-shot", "--model", &model, "--data", &data, "--labels", labels, "--out", "few-halves"];
    assert_eq!(in_shards(&workspace, &[&divided[..], &options].concat()), report);
    let few_pictures = ["eval", "few-shot", "--shots", "20", "--model", &model, "--data", &data, "--labels", labels];
    workspace.run(&[&few_pictures[..], &["--out", "too-few"]].concat()).fails_with("expected at least 22");
    let dimensions = ["eval", "disentanglement", "--model", &model, "--data", &data, "--labels", labels, "--json"];
    let dimensions =
        |out: &str, more: &[&str]| workspace.run(&[&dimensions[..], &["--out", out], more].concat()).succeeds().json();
    let (point, resampled) = (dimensions("point", &[]), dimensions("resampled", &["--resamples", "20"]));
    assert!(point["figures"][0]["low"].is_null());
    let (point, resampled) = (&point["figures"][0], &resampled["figures"][0]);
    assert_eq!(point["value"], resampled["value"]);
    assert!(resampled["low"].as_f64() < resampled["high"].as_f64(), "{resampled}");

    let weights = random_weights(&workspace, "efficientnet-lite0");
    let args = ["eval", "all", "--model", &model, "--data", &data, "--out", "all", "--steps", "2"];
    let features = ["--features", "efficientnet-lite0", "--feature-weights", &weights];
    // Eight pictures are too few for folds of every attribute, but not for the other measures.
    let all = workspace.run(&[&args[..], &features, &["--labels", labels]].concat());
    all.fails_with("some measures failed: few-shot");
    for name in ["recon", "z-usage", "inversion", "disentanglement", "fid"] {
        assert!(workspace.path("all").join(name).join(name).with_extension("json").is_file(), "{name}");
    }
    let compare = ["eval", "compare", "all/all.json", "all/recon/recon.json", "--out", "compared"];
    let table = workspace.run(&compare).succeeds().stdout();
    assert!(table.contains("frechet_distance") && table.contains("z_sem_share"), "{table}");
    assert!(workspace.path("compared/compare.recon.png").is_file());
}
