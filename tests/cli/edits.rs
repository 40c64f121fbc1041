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

/// Two photographs as `photos`, and their codes as `codes.safetensors`.
fn encoded(workspace: &Workspace) {
    workspace.import("autoenc16_latent");
    std::fs::create_dir(workspace.path("photos")).unwrap();
    std::fs::copy(photograph(), workspace.path("photos/astronaut.jpg")).unwrap();
    std::fs::copy(fixture("photographs/cat.jpg"), workspace.path("photos/cat.jpg")).unwrap();
    let encode = ["encode", "--model", "model", "photos", "--out", "codes.safetensors", "--steps", "2", "--json"];
    let told = workspace.run(&[&encode[..], &["--inversion", "ddim"]].concat()).succeeds().json();
    assert_eq!(told["names"], serde_json::json!(["astronaut", "cat"]));
    assert_eq!(told["files"], serde_json::json!(["codes.safetensors"]));
}

#[test]
fn codes_are_edited_blended_and_varied_as_the_pictures_they_were_made_of() {
    let workspace = Workspace::new();
    encoded(&workspace);
    let cat = fixture("photographs/cat.jpg");
    let same = |command: &[&str], pictures: &[&str], codes: &[&str]| {
        let run = |out: &str, inputs: &[&str]| {
            let invert = if command[0] == "variations" { &[][..] } else { &FEW_INVERSION_STEPS };
            let args = [command, &["--model", "model", "--out", out], inputs, &FEW_STEPS, invert].concat();
            workspace.run(&args).succeeds();
            let names: Vec<String> = workspace.files(out).into_iter().filter(|name| name != "sheet.png").collect();
            let pixels: Vec<_> = names.iter().map(|name| workspace.pixels(&format!("{out}/{name}"))).collect();
            std::fs::remove_dir_all(workspace.path(out)).unwrap();
            (names, pixels)
        };
        let (of_pictures, of_codes) = (run("a", pictures), run("b", codes));
        assert!(!of_pictures.0.is_empty());
        assert_eq!(of_pictures, of_codes, "{command:?} {codes:?}");
    };
    let edit = ["edit", "-a", "0", "--strengths", "0.1,0.2"];
    same(&edit, &["photos"], &["codes.safetensors"]);
    // A part of the codes, in any order, and pictures among them.
    same(&edit, &["photos/cat.jpg"], &["codes.safetensors:cat"]);
    same(&edit, &["photos/cat.jpg", &photograph()], &["codes.safetensors:1", "photos/astronaut.jpg"]);
    same(&["variations", "-n", "3"], &["photos"], &["codes.safetensors"]);
    same(&["interpolate", "--frames", "3"], &["photos/cat.jpg", "photos/astronaut.jpg"], &["codes.safetensors:1,0"]);
    same(&["interpolate", "--frames", "3"], &["photos/astronaut.jpg", &cat], &["codes.safetensors"]);
}

#[test]
fn codes_that_cannot_be_used_are_refused_with_a_reason() {
    let workspace = Workspace::new();
    encoded(&workspace);
    let edit = ["edit", "--model", "model", "-a", "0", "--out", "out"];
    let refused = |rest: &[&str], text: &str| {
        workspace.run(&[&edit[..], rest].concat()).fails_with(text);
        assert!(!workspace.path("out").exists());
    };
    refused(&["codes.safetensors", "--keep-residual"], "codes.safetensors holds codes and no pictures");
    refused(&["codes.safetensors:dog"], "it holds no codes \"dog\"; it has astronaut, cat");
    refused(&["codes.safetensors:2"], "it holds no codes \"2\"");
    let encode = ["encode", "--model", "model", "photos", "--out", "half.safetensors", "--semantic-only"];
    workspace.run(&encode).succeeds();
    refused(&["half.safetensors"], "it holds no x_T; encode the pictures without --semantic-only");
    let vary = ["variations", "--model", "model", "half.safetensors", "-n", "1", "--out", "varied"];
    workspace.run(&[&vary[..], &FEW_STEPS].concat()).succeeds();
    let other = checkpoint("gray16_heads2");
    let foreign = ["variations", "--model", &other, "codes.safetensors", "--out", "out"];
    workspace.run(&foreign).fails_with("codes.safetensors was made by model");
}

#[test]
fn several_attributes_are_moved_at_once() {
    let workspace = Workspace::new();
    encoded(&workspace);
    let edit = |out: &str, rest: &[&str]| {
        let args = ["edit", "--model", "model", "codes.safetensors:cat", "--out", out];
        workspace.run(&[&args[..], rest, &FEW_STEPS].concat())
    };
    edit("a", &["-a", "attribute_0=0.2", "-a", "Attribute 2=-0.1"]).succeeds();
    assert_eq!(workspace.files("a"), ["cat_attribute_0_+0.2_Attribute_2_-0.1.png"]);
    let text = workspace.png_text("a/cat_attribute_0_+0.2_Attribute_2_-0.1.png");
    let entry = |key: &str| text.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str());
    assert_eq!(entry("diffae:attribute"), Some("attribute_0, attribute_2"));
    assert_eq!(entry("diffae:edit"), Some("attribute_0=0.2 Attribute 2=-0.1"));
    assert_eq!(entry("diffae:invert_steps"), Some("2"));
    // The order does not matter; --strength goes as many times as far.
    edit("b", &["-a", "2=-0.05", "-a", "0=0.1", "--strength", "2"]).succeeds();
    let read = |name: &str| workspace.pixels(name);
    assert_eq!(read("b/cat_2_-0.1_0_+0.2.png"), read("a/cat_attribute_0_+0.2_Attribute_2_-0.1.png"));
    edit("c", &["-a", "0=0.2"]).succeeds();
    assert_ne!(read("c/cat_0_+0.2.png"), read("b/cat_2_-0.1_0_+0.2.png"));
    edit("d", &["-a", "ATTRIBUTE-0", "-s", "0.2"]).succeeds();
    assert_eq!(read("c/cat_0_+0.2.png"), read("d/cat_ATTRIBUTE-0_+0.2.png"));
    edit("e", &["-a", "0=0.1", "-a", "attribute_0=0.2"]).fails_with("attribute attribute_0 is given twice");
    edit("e", &["-a", "0=far"]).fails_with("the strength of 0 is \"far\", expected a number");
    edit("e", &["-a", "0=nan"]).fails_with("NaN");
    let told = edit("e", &["-a", "0", "-a", "1", "--strengths", "0,1", "--json"]).succeeds().json();
    assert_eq!(told["files"].as_array().unwrap().len(), 3, "{told}");
    assert_eq!(told["pictures"][1]["edit"], "0=0.3 1=0.3");
}

#[test]
fn a_path_leads_through_all_pictures_and_back() {
    let workspace = Workspace::new();
    encoded(&workspace);
    let path = |out: &str, rest: &[&str]| {
        let args = ["interpolate", "--model", "model", "--frames", "3", "--out", out, "--json"];
        workspace.run(&[&args[..], rest, &FEW_STEPS, &FEW_INVERSION_STEPS].concat())
    };
    let three = ["codes.safetensors", "photos/astronaut.jpg"];
    let told = path("open", &three).succeeds().json();
    assert_eq!((told["frames"].as_u64(), workspace.files("open").len()), (Some(5), 5));
    assert_eq!(told["through"], serde_json::json!(["astronaut", "cat", "astronaut_2"]));
    let frame = |folder: &str, idx: usize| workspace.pixels(&format!("{folder}/frame_{idx:04}.png"));
    assert_eq!(frame("open", 0), frame("open", 4), "the path ends at the picture that it began at");
    assert_ne!(frame("open", 0), frame("open", 2));
    path("closed", &[&three[..], &["--loop"]].concat()).succeeds();
    assert_eq!(workspace.files("closed").len(), 6);
    path("back", &["codes.safetensors", "--loop"]).succeeds();
    assert_eq!(workspace.files("back").len(), 4);
    assert_eq!(frame("back", 1), frame("back", 3), "there and back");

    path("film.gif", &["codes.safetensors", "--fps", "30"]).succeeds();
    let gif = image::codecs::gif::GifDecoder::new(std::io::BufReader::new(
        std::fs::File::open(workspace.path("film.gif")).unwrap(),
    ));
    let frames = image::AnimationDecoder::into_frames(gif.unwrap()).collect_frames().unwrap();
    let delays: Vec<u32> = frames.iter().map(|frame| frame.delay().numer_denom_ms().0).collect();
    assert_eq!(delays, [30, 40, 30]);
    path("f", &["codes.safetensors", "--fps", "30"]).fails_with("--fps is the speed of an animation");
    path("f.gif", &["codes.safetensors", "--fps", "0"]).fails_with("frames a second");
    path("f.gif", &["codes.safetensors:cat"]).fails_with("needs two pictures or more, got 1");
    // What cannot be written is known before a model is.
    std::fs::create_dir(workspace.path("folder.gif")).unwrap();
    let nowhere = ["interpolate", "--model", "nowhere", "codes.safetensors", "--force", "--out", "folder.gif"];
    workspace.run(&nowhere).fails_with("folder.gif");
}
