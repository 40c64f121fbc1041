//! `edit`, `interpolate` and `variations`.

use crate::support::{FEW_INVERSION_STEPS, FEW_STEPS, Workspace, checkpoint, fixture, photograph};

#[test]
fn strengths_make_a_strip() {
    let workspace = Workspace::new();
    workspace.import("autoenc16_latent");
    let photograph = photograph();
    let args = ["edit", "--model", "model", &photograph, "--attribute", "attribute_2", "--out", "out"];
    let args = [&args[..], &["--strengths", "-0.3,0,0.3"], &FEW_STEPS, &FEW_INVERSION_STEPS].concat();
    workspace.run(&args).succeeds();
    assert_eq!(
        workspace.files("out"),
        [
            "astronaut_attribute_2_+0.3.png",
            "astronaut_attribute_2_+0.png",
            "astronaut_attribute_2_-0.3.png",
            "astronaut_attribute_2_strip.png",
        ]
    );
    // What is there is kept, which is known before any model is.
    let again: Vec<&str> = args.iter().map(|&arg| if arg == "model" { "nowhere" } else { arg }).collect();
    workspace.run(&again).fails_with("exists");
    let read = |name: &str| std::fs::read(workspace.path("out").join(name)).unwrap();
    assert_ne!(read("astronaut_attribute_2_+0.3.png"), read("astronaut_attribute_2_-0.3.png"));
}

#[test]
fn what_decoding_loses_can_be_kept() {
    let workspace = Workspace::new();
    workspace.import("autoenc16_latent");
    let picture = image::RgbImage::from_fn(16, 16, |x, y| {
        let [x, y] = [x, y].map(|place| u8::try_from(place * 16).unwrap());
        image::Rgb([x, y, x ^ y])
    });
    picture.save(workspace.path("picture.png")).unwrap();
    let edit = ["edit", "--model", "model", "picture.png", "--attribute", "0", "--strengths", "0,0.3"];
    let edit = [&edit[..], &FEW_STEPS, &FEW_INVERSION_STEPS].concat();
    workspace.run(&[&edit[..], &["--out", "kept", "--keep-residual"]].concat()).succeeds();
    workspace.run(&[&edit[..], &["--out", "plain"]].concat()).succeeds();
    let read = |name: &str| image::open(workspace.path(name)).unwrap().to_rgb8();
    // An edit of nothing is the picture itself, in any number of steps.
    assert_eq!(read("kept/picture_0_+0.png"), picture);
    assert_ne!(read("plain/picture_0_+0.png"), picture);
    assert_ne!(read("kept/picture_0_+0.3.png"), picture);
}

#[test]
fn an_unknown_attribute_is_answered_with_the_known_ones() {
    let workspace = Workspace::new();
    workspace.import("autoenc16_latent");
    let photograph = photograph();
    let edit = ["edit", "--model", "model", &photograph, "--out", "out", "--attribute"];
    workspace.run(&[&edit[..], &["Smiling"]].concat()).fails_with("attribute_0, attribute_1");
    // No folder is left of what failed, and folders are made for what does not.
    let deep = ["edit", "--model", "model", &photograph, "--strength", "0.1", "--out", "a/b/c", "--attribute"];
    workspace.run(&[&deep[..], &["Smiling"]].concat()).fails_with("attribute_0, attribute_1");
    assert!(!workspace.path("a").exists());
    workspace.run(&[&deep[..], &["0"], &FEW_STEPS, &FEW_INVERSION_STEPS].concat()).succeeds();
    assert_eq!(workspace.files("a/b/c"), ["astronaut_0_+0.1.png"]);
    workspace.run(&[&edit[..], &["0", "--strengths", "0,nan"]].concat()).fails_with("NaN");
}

#[test]
fn editing_needs_a_classifier() {
    let (model, photograph) = (checkpoint("autoenc32"), photograph());
    let args = ["edit", "--model", &model, &photograph, "--attribute", "0", "--out", "out"];
    Workspace::new().run(&args).fails_with("--classifier");
}

#[test]
fn an_interpolation_is_a_strip_an_animation_or_frames() {
    let workspace = Workspace::new();
    let (model, from, to) = (checkpoint("autoenc16_latent"), photograph(), fixture("photographs/cat.jpg"));
    for out in ["strip.png", "film.GIF", "frames"] {
        let args = ["interpolate", "--model", &model, &from, &to, "--frames", "3", "--out", out];
        workspace.run(&[&args[..], &FEW_STEPS, &FEW_INVERSION_STEPS].concat()).succeeds();
    }
    assert!(std::fs::read(workspace.path("film.GIF")).unwrap().starts_with(b"GIF89a"));
    assert_eq!(workspace.files("frames"), ["frame_0000.png", "frame_0001.png", "frame_0002.png"]);
}

#[test]
fn variations_share_z_sem_and_differ() {
    let workspace = Workspace::new();
    let (model, photograph) = (checkpoint("autoenc16_latent"), photograph());
    let args = ["variations", "--model", &model, &photograph, "-n", "2", "--out", "out"];
    workspace.run(&[&args[..], &FEW_STEPS].concat()).succeeds();
    assert_eq!(workspace.files("out"), ["astronaut_variation_000.png", "astronaut_variation_001.png", "sheet.png"]);
    let read = |idx: usize| std::fs::read(workspace.path(&format!("out/astronaut_variation_00{idx}.png"))).unwrap();
    assert_ne!(read(0), read(1));
}
