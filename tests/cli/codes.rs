//! `encode`, `decode` and `reconstruct`.

use safetensors::SafeTensors;

use crate::support::{FEW_INVERSION_STEPS, FEW_STEPS, Workspace, checkpoint, fixture, photograph};

/// The f32 values of a tensor in a safetensors file.
fn tensor(workspace: &Workspace, file: &str, name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(workspace.path(file)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    (view.shape().to_vec(), values)
}

#[test]
fn codes_of_golden_pictures_decode_to_the_golden_reconstruction() {
    let workspace = Workspace::new();
    let (model, golden) = (checkpoint("autoenc32"), fixture("golden/autoenc32/golden.safetensors"));
    let args = ["encode", "--model", &model, &golden, "--out", "codes.safetensors", "--inversion", "ddim"];
    workspace.run(&[&args[..], &["--steps", "10"]].concat()).succeeds();
    let args = ["decode", "--model", &model, "codes.safetensors", "--out", "x.safetensors", "--steps", "10"];
    workspace.run(&args).succeeds();
    std::fs::copy(&golden, workspace.path("golden.safetensors")).unwrap();
    for (file, name, expected) in [
        ("codes.safetensors", "z_sem", "z_sem"),
        ("codes.safetensors", "x_T", "x_T_inverted"),
        ("x.safetensors", "x", "recon_inverted"),
    ] {
        let (shape, got) = tensor(&workspace, file, name);
        let (expected_shape, expected) = tensor(&workspace, "golden.safetensors", expected);
        assert_eq!(shape, expected_shape, "{name}");
        let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let difference = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(difference <= 1e-3 * largest, "{name}: {difference}");
    }
}

#[test]
fn exact_codes_hold_their_chain_and_give_the_picture_back() {
    let workspace = Workspace::new();
    let (model, photograph, cat) = (checkpoint("autoenc32"), photograph(), fixture("photographs/cat.jpg"));
    let encode = ["encode", "--model", &model, &photograph, &cat, "--out", "codes.safetensors", "--steps", "4"];
    let told = workspace.run(&[&encode[..], &["--json"]].concat()).succeeds().json();
    assert_eq!((&told["inversion"], &told["spacing"], &told["steps"]), (&"exact".into(), &"log-snr".into(), &4.into()));
    assert_eq!(tensor(&workspace, "codes.safetensors", "residual").0, [2, 3, 32, 32]);
    // Reconstruction in as many steps is the same round trip.
    let reconstruct = ["reconstruct", "--model", &model, &photograph, &cat, "--out", "r", "--steps", "4", "--json"];
    let measured = workspace.run(&reconstruct).succeeds().json();
    assert!(measured.as_array().unwrap().iter().all(|row| row["mse"].as_f64().unwrap() < 1e-8), "{measured}");
    let decode = ["decode", "--model", &model, "codes.safetensors", "--out", "d"];
    workspace.run(&[&decode[..], &["--batch-size", "1"]].concat()).succeeds();
    assert_eq!(workspace.pixels("d/cat.png"), workspace.pixels("r/cat.png"));
    // Another algorithm, batch and number of threads: the difference is far below half a step of 8 bits.
    let elsewhere = ["--batch-size", "1", "--threads", "1", "--exact", "--force", "--out", "elsewhere"];
    workspace.run(&[&decode[..4], &elsewhere].concat()).succeeds();
    let (here, there) = (workspace.pixels("d/cat.png"), workspace.pixels("elsewhere/cat.png"));
    let num_equal = here.iter().zip(there.iter()).filter(|(a, b)| a == b).count();
    assert!(num_equal * 1000 >= here.len() * 998, "{num_equal} of {} are equal", here.len());
    // Their chain is theirs.
    let again = ["decode", "--model", &model, "codes.safetensors", "--out", "e", "--steps", "5"];
    workspace.run(&again).fails_with("codes of 4 exact log-snr steps (balanced)");
    let other = ["encode", "--model", &model, &cat, "--out", "other.safetensors", "--steps", "3"];
    workspace.run(&other).succeeds();
    let path = ["interpolate", "--model", &model, "codes.safetensors:0", "other.safetensors", "--out", "film.gif"];
    workspace.run(&path).fails_with("do not go together; encode all pictures alike");
    let mixed =
        ["interpolate", "--model", &model, "codes.safetensors:1", &photograph, "--frames", "2", "--out", "frames"];
    workspace.run(&mixed).succeeds();
    assert_eq!(workspace.pixels("frames/frame_0000.png"), workspace.pixels("r/cat.png"));
    assert_eq!(workspace.pixels("frames/frame_0001.png"), workspace.pixels("r/astronaut.png"));
    let impossible = ["--inversion", "exact", "--eta", "1"];
    let other = ["reconstruct", "--model", &model, &photograph, "--out", "s"];
    workspace.run(&[&other[..], &impossible].concat()).fails_with("do not go with it");
}

#[test]
fn codes_of_fixed_points_are_x_terminal_alone_and_decode_by_themselves() {
    let workspace = Workspace::new();
    let (model, photograph, cat) = (checkpoint("autoenc32"), photograph(), fixture("photographs/cat.jpg"));
    let fixed = ["--inversion", "fixed-point", "--steps", "6"];
    let encode = ["encode", "--model", &model, &photograph, &cat, "--out", "codes.safetensors", "--json"];
    let told = workspace.run(&[&encode[..], &fixed].concat()).succeeds().json();
    assert_eq!((&told["inversion"], &told["steps"]), (&"fixed-point".into(), &6.into()));
    let bytes = std::fs::read(workspace.path("codes.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.names().len(), 2, "z_sem and x_T");
    let reconstruct = ["reconstruct", "--model", &model, &photograph, &cat, "--out", "r", "--json"];
    let measured = workspace.run(&[&reconstruct[..], &fixed].concat()).succeeds().json();
    assert!(measured.as_array().unwrap().iter().all(|row| row["mse"].as_f64().unwrap() < 5e-4), "{measured}");
    let decode = ["decode", "--model", &model, "codes.safetensors", "--batch-size", "1", "--out", "d"];
    workspace.run(&decode).succeeds();
    assert_eq!(workspace.pixels("d/cat.png"), workspace.pixels("r/cat.png"));
    let foreign = ["codes.safetensors:1", "--spacing", "log-snr", "--out", "e"];
    let refused = workspace.run(&[&decode[..3], &foreign, &["--steps", "5"]].concat());
    refused.fails_with("codes of 6 DDIM log-snr steps inverted by fixed points");
    let path = ["interpolate", "--model", &model, "codes.safetensors", "--frames", "2", "--out", "frames"];
    workspace.run(&[&path[..], &["--inversion", "exact"]].concat()).fails_with("--inversion exact does not go with");
    workspace.run(&path).succeeds();
    assert_eq!(workspace.pixels("frames/frame_0001.png"), workspace.pixels("r/cat.png"));
    let impossible = [&reconstruct[..5], &fixed, &["--eta", "1", "--out", "s"]].concat();
    workspace.run(&impossible).fails_with("--inversion fixed-point decodes along the chain that it inverts along");
}

#[test]
fn a_photograph_is_reconstructed_and_measured() {
    let workspace = Workspace::new();
    let model = checkpoint("autoenc32");
    let photograph = photograph();
    let args = ["reconstruct", "--model", &model, &photograph, "--out", "out", "--json", "--steps", "10"];
    let measured = workspace.run(&[&args[..], &["--invert-steps", "20"]].concat()).succeeds().json();
    assert_eq!(workspace.files("out"), ["astronaut.png", "sheet.png"]);
    assert_eq!(measured[0]["name"], "astronaut");
    assert!(measured[0]["psnr"].as_f64().unwrap() > 20., "{measured}");
    assert!(measured[0]["ssim"].as_f64().unwrap() > 0.9, "{measured}");
    assert_eq!(workspace.files("."), ["out"]);
}

#[test]
fn results_say_how_they_were_made() {
    let workspace = Workspace::new();
    let (model, photograph) = (checkpoint("autoenc16_latent"), photograph());
    let args = ["reconstruct", "--model", &model, &photograph, "--out", "out", "--x-t", "random", "--seed", "7"];
    for unused in [["--inversion", "exact"], ["--invert-steps", "9"]] {
        workspace.run(&[&args[..], &unused].concat()).fails_with("--x-t random decodes without an inversion");
    }
    workspace.run(&[&args[..], &FEW_STEPS].concat()).succeeds();
    let text = workspace.png_text("out/astronaut.png");
    let entry = |key: &str| text.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str());
    assert_eq!(entry("diffae:seed"), Some("7"));
    assert_eq!(entry("diffae:steps"), Some("2"));
    assert!(entry("diffae:command").unwrap().contains("reconstruct"));
    let info = workspace.run(&["info", &model, "--json"]).succeeds().json();
    assert_eq!(entry("diffae:model"), info["fingerprint"].as_str());
}

#[test]
fn a_plain_ddpm_encodes_x_t_alone() {
    let workspace = Workspace::new();
    let (model, photograph) = (checkpoint("ddpm16"), photograph());
    let args = ["encode", "--model", &model, &photograph, "--out", "codes.safetensors"];
    workspace.run(&[&args[..], &FEW_STEPS].concat()).succeeds();
    assert_eq!(tensor(&workspace, "codes.safetensors", "x_T").0, [1, 3, 16, 16]);
    let args = ["decode", "--model", &model, "codes.safetensors", "--out", "out"];
    workspace.run(&[&args[..], &FEW_STEPS].concat()).succeeds();
    assert_eq!(workspace.files("out"), ["astronaut.png"]);
    workspace.run(&[&args[..3], &["codes.safetensors", "--out", "z", "--x-t", "zero"], &FEW_STEPS].concat()).succeeds();
}

#[test]
fn codes_of_another_model_are_refused() {
    let workspace = Workspace::new();
    let (model, photograph) = (checkpoint("autoenc16_latent"), photograph());
    let args = ["encode", "--model", &model, &photograph, "--out", "codes.safetensors", "--semantic-only"];
    workspace.run(&args).succeeds();
    let other = checkpoint("autoenc32");
    let decode = ["decode", "--model", &other, "codes.safetensors", "--out", "out"];
    workspace.run(&decode).fails_with("was made by model");
    workspace.run(&[&decode[..], &["--any-model"]].concat()).fails_with("of width 32");
    workspace.run(&["decode", "--model", &model, "codes.safetensors", "--out", "out"]).fails_with("no x_T");
    let random = ["decode", "--model", &model, "codes.safetensors", "--out", "out", "--x-t", "random"];
    workspace.run(&[&random[..], &FEW_STEPS].concat()).succeeds();
}

#[test]
fn results_are_not_replaced_unasked() {
    let workspace = Workspace::new();
    let (model, photograph) = (checkpoint("autoenc16_latent"), photograph());
    let args = ["reconstruct", "--model", &model, &photograph, "--out", "out"];
    let args = [&args[..], &FEW_STEPS, &FEW_INVERSION_STEPS].concat();
    workspace.run(&args).succeeds();
    workspace.run(&args).fails_with("exists already");
    workspace.run(&[&args[..], &["--force"]].concat()).succeeds();
}

#[test]
fn a_part_of_the_codes_decodes_alone() {
    let workspace = Workspace::new();
    let (model, photograph, cat) = (checkpoint("autoenc16_latent"), photograph(), fixture("photographs/cat.jpg"));
    let args = ["encode", "--model", &model, &photograph, &cat, "--out", "codes.safetensors", "--steps", "2"];
    assert_eq!(workspace.run(&args).succeeds().stdout(), "wrote the codes of 2 pictures to codes.safetensors\n");
    let decode = |codes: &str, out: &str| {
        let args = ["decode", "--model", &model, codes, "--out", out, "--x-t", "random", "--json"];
        workspace.run(&[&args[..], &FEW_STEPS].concat()).succeeds().json()
    };
    decode("codes.safetensors", "all");
    let told = decode("codes.safetensors:cat", "one");
    assert_eq!(told["pictures"][0], serde_json::json!({ "name": "cat", "index": 1, "file": "one/cat.png" }));
    // Random x_T go by the place in the file.
    assert_eq!(workspace.pixels("all/cat.png"), workspace.pixels("one/cat.png"));
}

#[test]
fn the_picture_of_a_sample_can_be_chosen() {
    let workspace = Workspace::new();
    let (model, archive) = (checkpoint("autoenc16_latent"), fixture("datasets/masks.tar"));
    let encode = ["encode", "--model", &model, &archive, "--semantic-only", "--json", "--out"];
    let num_pictures = |out: &str, more: &[&str]| {
        let report = workspace.run(&[&encode[..], &[out], more].concat()).succeeds().json();
        report["names"].as_array().unwrap().len()
    };
    assert_eq!(num_pictures("jpg.safetensors", &[]), 10);
    assert_eq!(num_pictures("all.safetensors", &["--picture-key", "*"]), 20);
    let none = [&encode[..], &["none.safetensors", "--picture-key", "tif"]].concat();
    workspace.run(&none).fails_with("--picture-key tif");
}

#[test]
fn noise_of_another_program_that_is_none_is_warned_of() {
    let workspace = Workspace::new();
    let model = checkpoint("autoenc16_latent");
    workspace.run(&["encode", "--model", &model, &photograph(), "--steps", "2", "--out", "own.safetensors"]).succeeds();
    let (shape, z_sem) = tensor(&workspace, "own.safetensors", "z_sem");
    let uniform: Vec<f32> = (0..768_u16).map(|idx| f32::from(idx * 77 % 768) / 768.).collect();
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let (z_sem, x_t) = (bytes(&z_sem), bytes(&uniform));
    let view =
        |shape: Vec<usize>, data| safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, data).unwrap();
    let tensors = [("z_sem", view(shape, &z_sem)), ("x_T", view(vec![1, 3, 16, 16], &x_t))];
    std::fs::write(workspace.path("other.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
    for (codes, is_warned) in [("other.safetensors", true), ("own.safetensors", false)] {
        let steps = if is_warned { &["--steps", "2"][..] } else { &[] };
        let decode = [&["decode", "--model", &model, codes, "--out", codes.split_once('.').unwrap().0], steps].concat();
        let said = workspace.run(&decode).succeeds().stderr();
        assert_eq!(said.contains("standard normal noise"), is_warned, "{codes}: {said}");
    }
}
