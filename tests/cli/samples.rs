//! `sample`.

use crate::support::{FEW_STEPS, Workspace, checkpoint, fixture, photograph};

#[test]
fn the_same_seed_gives_the_same_pictures_in_any_batch() {
    let workspace = Workspace::new();
    let model = checkpoint("autoenc16_latent");
    let sample = |out: &str, batch: &str, seed: &str| {
        let args = ["sample", "--model", &model, "-n", "3", "--out", out, "--latent-steps", "2"];
        let rest = ["--batch-size", batch, "--seed", seed];
        workspace.run(&[&args[..], &rest, &FEW_STEPS].concat()).succeeds();
        let picture = image::open(workspace.path(out).join("sample_00002.png")).unwrap();
        picture.into_rgb8().into_raw()
    };
    let base = sample("a", "3", "1");
    assert_eq!(base, sample("b", "3", "1"));
    assert_ne!(base, sample("c", "3", "2"));
    let other_batch = sample("d", "2", "1");
    let worst = base.iter().zip(&other_batch).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    assert!(worst <= 1, "a picture depends on its batch: {worst}");
    assert_eq!(workspace.files("a"), ["sample_00000.png", "sample_00001.png", "sample_00002.png", "sheet.png"]);
}

#[test]
fn noise_can_be_given() {
    let workspace = Workspace::new();
    let (model, golden) = (checkpoint("autoenc16_latent"), fixture("golden/autoenc16_latent/golden.safetensors"));
    let args =
        ["sample", "--model", &model, "--noise", &golden, "--latent-steps", "10", "--steps", "10", "--out", "out"];
    workspace.run(&args).succeeds();
    assert_eq!(workspace.files("out"), ["sample_00000.png", "sample_00001.png", "sheet.png"]);
}

#[test]
fn a_plain_ddpm_samples_without_a_latent_net() {
    let workspace = Workspace::new();
    let model = checkpoint("ddpm16");
    let args = ["sample", "--model", &model, "-n", "1", "--eta", "1", "--out", "out"];
    workspace.run(&[&args[..], &FEW_STEPS].concat()).succeeds();
    assert_eq!(workspace.files("out"), ["sample_00000.png", "sheet.png"]);
}

#[test]
fn a_gray_model_samples_gray_pictures() {
    let workspace = Workspace::new();
    let model = checkpoint("gray16_heads2");
    let args = ["sample", "--model", &model, "-n", "1", "--latent-steps", "2", "--out", "out"];
    workspace.run(&[&args[..], &FEW_STEPS].concat()).succeeds();
    let picture = image::open(workspace.path("out/sample_00000.png")).unwrap().into_rgb8();
    assert!(picture.pixels().all(|pixel| pixel[0] == pixel[1] && pixel[1] == pixel[2]));
}

#[test]
fn a_model_without_latent_net_cannot_sample_or_a_ddpm_vary() {
    let model = checkpoint("autoenc32");
    Workspace::new().run(&["sample", "--model", &model, "--out", "out"]).fails_with("no latent net");
    let (model, photograph) = (checkpoint("ddpm16"), photograph());
    Workspace::new().run(&["variations", "--model", &model, &photograph, "--out", "out"]).fails_with("plain DDPM");
}
