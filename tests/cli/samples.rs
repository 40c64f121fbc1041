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
    assert_eq!(base, sample("d", "2", "1"));
    assert_eq!(workspace.files("a"), ["sample_00000.png", "sample_00001.png", "sample_00002.png", "sheet.png"]);
}

#[test]
fn a_picture_of_a_seed_can_be_had_alone() {
    let workspace = Workspace::new();
    let model = checkpoint("autoenc16_latent");
    let args = ["sample", "--model", &model, "--latent-steps", "2", "--eta", "1", "--seed", "3"];
    let args = [&args[..], &FEW_STEPS].concat();
    let exact = |out: &str, rest: &[&str]| {
        workspace.run(&[&args[..], &["--out", out], rest].concat()).succeeds();
        let bytes = std::fs::read(workspace.path(out)).unwrap();
        safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor("x").unwrap().data().to_vec()
    };
    // More than eight rows at once go another way through the kernels where training needs them.
    let all = exact("all.safetensors", &["-n", "12", "--batch-size", "12"]);
    let size = all.len().div_ceil(12);
    assert_eq!(exact("one.safetensors", &["--index", "10"]), all[10 * size..11 * size]);
    assert_eq!(exact("some.safetensors", &["--index", "9..11,2", "--batch-size", "2"]), {
        [&all[2 * size..3 * size], &all[9 * size..11 * size]].concat()
    });
    let told = workspace.run(&[&args[..], &["--out", "out", "--index", "10", "--json"]].concat()).succeeds().json();
    assert_eq!(workspace.files("out"), ["sample_00010.png"]);
    let text = workspace.png_text("out/sample_00010.png");
    assert!(text.contains(&("diffae:index".to_owned(), "10".to_owned())), "{text:?}");
    assert_eq!((&told["command"], &told["seed"], &told["steps"]), (&"sample".into(), &3.into(), &2.into()));
    assert_eq!(told["pictures"][0]["index"], 10);
    assert_eq!(told["files"], serde_json::json!(["out/sample_00010.png"]));
    let refused = workspace.run(&[&args[..], &["--out", "out", "--index", "4..4"]].concat());
    assert!(refused.stderr().contains("the range is empty"), "{}", refused.stderr());
}

#[test]
fn noise_can_be_given() {
    let workspace = Workspace::new();
    let (model, golden) = (checkpoint("autoenc16_latent"), fixture("golden/autoenc16_latent/golden.safetensors"));
    let args =
        ["sample", "--model", &model, "--noise", &golden, "--latent-steps", "10", "--steps", "10", "--out", "out"];
    let finished = workspace.run(&args).succeeds();
    assert!(!finished.stderr().contains("standard normal noise"), "{}", finished.stderr());
    assert_eq!(workspace.files("out"), ["sample_00000.png", "sample_00001.png", "sheet.png"]);
    let first = [&args[..7], &FEW_STEPS, &["-n", "1", "--out", "first"]].concat();
    workspace.run(&first).succeeds();
    assert_eq!(workspace.files("first"), ["sample_00000.png", "sheet.png"]);
    workspace.run(&[&args[..7], &["-n", "3", "--out", "none"]].concat()).fails_with("--count is 3, but");
    workspace.run(&["sample", "--model", &model, "--out", "none.png"]).fails_with("names a picture, expected a folder");
    let impossible = ["sample", "--model", &model, "--reference", "--latent-steps", "60", "--out", "none"];
    workspace.run(&impossible).fails_with("--latent-steps: no stride");
    let latent = ["sample", "--model", &model, "-n", "1", "--steps", "2", "--latent-steps", "2", "--out", "latent"];
    let with = |more: &[&str]| workspace.run(&[&latent[..], more].concat());
    with(&["--latent-sampler", "ddpm"]).fails_with("--latent-sampler is ddpm, expected one that adds no noise");
    with(&["--latent-spacing", "tuned"]).fails_with("timesteps are tuned for decoding alone");
    let told = with(&["--latent-sampler", "ddim", "--latent-spacing", "trailing", "--json"]).succeeds().json();
    assert_eq!((&told["latent_sampler"], &told["latent_spacing"]), (&"ddim".into(), &"trailing".into()));
    assert!(!workspace.path("none").exists());
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
