//! Pictures that are damaged, or of which a part would be lost: refused by name, or left out and counted.

use std::fs;
use std::path::PathBuf;

use image::{DynamicImage, Rgb, RgbImage};

use crate::support::{FEW_INVERSION_STEPS, FEW_STEPS, Finished, Workspace, checkpoint, fixture};

fn fault(name: &str) -> String {
    fixture(&format!("faults/{name}"))
}

fn encode(workspace: &Workspace, inputs: &[&str], options: &[&str]) -> Finished {
    let model = checkpoint("autoenc16_latent");
    let args = ["encode", "--model", &model, "--semantic-only", "--out", "codes.safetensors", "--force"];
    workspace.run(&[&args[..], inputs, options].concat())
}

/// A folder of three pictures, a cut JPEG and a text that is called a picture.
fn mixed_folder(workspace: &Workspace) -> PathBuf {
    let folder = workspace.path("mixed");
    fs::create_dir(&folder).unwrap();
    for (name, value) in [("a", 10), ("c", 120), ("e", 240)] {
        RgbImage::from_pixel(16, 16, Rgb([value; 3])).save(folder.join(format!("{name}.png"))).unwrap();
    }
    fs::copy(fault("truncated.jpg"), folder.join("b.jpg")).unwrap();
    fs::write(folder.join("d.png"), "hello").unwrap();
    folder
}

fn warnings(finished: &Finished) -> Vec<String> {
    let stderr = finished.stderr();
    stderr.lines().filter(|line| line.contains("WARN")).map(str::to_owned).collect()
}

#[test]
fn faulty_files_are_refused_by_name_with_the_reason() {
    let workspace = Workspace::new();
    for (name, reason) in [
        ("truncated.jpg", "truncated.jpg is damaged: it is cut off after 53% of its picture"),
        ("truncated_small.jpg", "truncated_small.jpg is damaged: it is cut off after 37% of its picture"),
        ("float_0_255.tif", "its floats go from 0 to 255, expected values from 0 to 1; divide them by 255"),
        ("rgb_as_pages.tif", "it holds 3 pages, and a picture is one"),
        ("x_0_255.safetensors", "tensor x has values from 0.2179563 to 254.9119, expected -1 (black) to 1 (white)"),
        ("tiff/refused-nan.tif", "it holds values that are not finite numbers"),
        ("tiff/refused-u32.tif", "32-bit integers, whose scale is not known; save it in 8 or 16 bits"),
    ] {
        let finished = encode(&workspace, &[&fault(name)], &[]).fails_with(reason);
        let file = name.rsplit('/').next().unwrap();
        assert_eq!(finished.stderr().matches(file).count(), 1, "{}", finished.stderr());
    }
    assert!(workspace.files(".").is_empty());
}

#[test]
fn float_gray_and_palette_tiffs_are_read() {
    let workspace = Workspace::new();
    for name in ["gray_float.tif", "palette.tif", "two.mpo"] {
        let finished = encode(&workspace, &[&fault(name)], &[]).succeeds();
        assert!(warnings(&finished).is_empty(), "{}", finished.stderr());
    }
}

#[test]
fn broken_pictures_are_all_named_before_the_work_begins() {
    let workspace = Workspace::new();
    mixed_folder(&workspace);
    let finished = encode(&workspace, &["mixed"], &[]).fails_with("2 of 5 pictures cannot be read");
    let stderr = finished.stderr();
    assert!(stderr.contains("b.jpg is damaged") && stderr.contains("cannot read mixed/d.png as a picture: it is text"));
    assert!(stderr.contains("--skip-broken leaves such pictures out"), "{stderr}");
    fs::remove_file(workspace.path("mixed/d.png")).unwrap();
    encode(&workspace, &["mixed"], &[])
        .fails_with("b.jpg is damaged: it is cut off after 53% of its picture; --skip-broken");
    assert_eq!(workspace.files("."), ["mixed"]);
}

#[test]
fn broken_pictures_are_left_out_named_and_counted() {
    let workspace = Workspace::new();
    mixed_folder(&workspace);
    let finished = encode(&workspace, &["mixed"], &["--skip-broken"]).succeeds();
    assert!(finished.stdout().contains("the codes of 3 pictures"), "{}", finished.stdout());
    let warnings = warnings(&finished);
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(warnings[0].contains("left out: mixed/b.jpg is damaged") && warnings[1].contains("mixed/d.png"));
    assert!(warnings[2].contains("2 of 5 pictures could not be read and were left out"), "{warnings:?}");

    let model = checkpoint("autoenc16_latent");
    let run = |command: &[&str], out: &str| {
        let all = [command, &["--model", &model, "mixed", "--out", out, "--skip-broken"], &FEW_STEPS].concat();
        let finished = workspace.run(&all).succeeds();
        assert!(finished.stderr().contains("2 of 5 pictures could not be read"), "{}", finished.stderr());
        workspace.files(out)
    };
    assert_eq!(run(&["reconstruct", "--invert-steps", "2"], "r"), ["a.png", "c.png", "e.png", "sheet.png"]);
    assert_eq!(
        run(&["variations", "-n", "1"], "v"),
        ["a_variation_000.png", "c_variation_000.png", "e_variation_000.png", "sheet.png"]
    );
    // What is left is what comes out without the broken files.
    let of = |folder: &str, name: &str| image::open(workspace.path(&format!("{folder}/{name}"))).unwrap().into_rgb8();
    fs::remove_file(workspace.path("mixed/b.jpg")).unwrap();
    fs::remove_file(workspace.path("mixed/d.png")).unwrap();
    let args = ["variations", "-n", "1", "--model", &model, "mixed", "--out", "whole", "--skip-broken"];
    let whole = workspace.run(&[&args[..], &FEW_STEPS].concat()).succeeds();
    assert!(!whole.stderr().contains("left out"), "{}", whole.stderr());
    for name in workspace.files("v") {
        assert_eq!(of("v", &name), of("whole", &name), "{name}");
    }
}

#[test]
fn edits_leave_broken_pictures_out() {
    let workspace = Workspace::new();
    workspace.import("autoenc16_latent");
    mixed_folder(&workspace);
    let args = ["edit", "--model", "model", "mixed", "-a", "0", "-s", "0.1", "--out", "out", "--skip-broken"];
    let finished = workspace.run(&[&args[..], &FEW_STEPS, &FEW_INVERSION_STEPS].concat()).succeeds();
    assert!(finished.stderr().contains("2 of 5 pictures could not be read and were left out"));
    assert_eq!(workspace.files("out").len(), 3, "{:?}", workspace.files("out"));
}

#[test]
fn measures_leave_broken_pictures_out() {
    let workspace = Workspace::new();
    mixed_folder(&workspace);
    let model = checkpoint("autoenc16_latent");
    let args = ["eval", "recon", "--model", &model, "--data", "mixed", "--steps", "2", "--out", "report", "--json"];
    let failed = workspace.run(&args).fails_with("--skip-broken leaves such pictures out");
    assert!(failed.stderr().contains("b.jpg is damaged"), "{}", failed.stderr());
    let finished = workspace.run(&[&args[..], &["--skip-broken", "--force"]].concat()).succeeds();
    assert_eq!(finished.json()["settings"]["count"], 3);
    assert!(finished.stderr().contains("2 of 5 pictures could not be read and were left out"));
    fs::create_dir(workspace.path("small")).unwrap();
    image::RgbImage::new(16, 16).save(workspace.path("small/a.png")).unwrap();
    let cropped = ["eval", "recon", "--model", &model, "--data", "small", "--crop", "celeba", "--out", "cropped"];
    workspace.run(&cropped).fails_with("the crop needs 153 by 185; --skip-broken leaves such pictures out");
}

#[test]
fn nothing_is_done_if_no_picture_is_left() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("broken")).unwrap();
    for name in ["a.png", "b.png"] {
        fs::write(workspace.path("broken").join(name), "hello").unwrap();
    }
    encode(&workspace, &["broken"], &["--skip-broken"]).fails_with("none of the 2 pictures can be read");
    assert_eq!(workspace.files("."), ["broken"]);
}

#[test]
fn formats_that_are_not_read_are_counted_and_named() {
    let workspace = Workspace::new();
    let folder = workspace.path("phone");
    fs::create_dir(&folder).unwrap();
    let heic = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic";
    for name in ["IMG_1.HEIC", "IMG_2.heic", "c.avif"] {
        fs::write(folder.join(name), heic).unwrap();
    }
    encode(&workspace, &["phone"], &[])
        .fails_with("there are no pictures in phone that are read, only 1 AVIF picture and 2 HEIC pictures")
        .fails_with("convert them to PNG or JPEG first, as by: magick mogrify -format png *.avif");
    encode(&workspace, &["phone/IMG_1.HEIC"], &[]).fails_with("it is a HEIC picture, which is not read");
    RgbImage::from_pixel(16, 16, Rgb([9; 3])).save(folder.join("a.png")).unwrap();
    let finished = encode(&workspace, &["phone"], &[]).succeeds();
    let warnings = warnings(&finished);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("phone: not read and left out: 1 AVIF picture and 2 HEIC pictures"));
    assert!(warnings[0].contains("(c.avif, IMG_1.HEIC, IMG_2.heic)"), "{warnings:?}");
}

#[cfg(unix)]
#[test]
fn linked_folders_are_followed_once() {
    use std::os::unix::fs::symlink;
    let workspace = Workspace::new();
    for name in ["data", "elsewhere"] {
        fs::create_dir(workspace.path(name)).unwrap();
        let picture = RgbImage::from_pixel(16, 16, Rgb([9; 3]));
        picture.save(workspace.path(&format!("{name}/{name}.png"))).unwrap();
    }
    symlink(workspace.path("elsewhere"), workspace.path("data/link")).unwrap();
    symlink(workspace.path("data"), workspace.path("elsewhere/circle")).unwrap();
    symlink("gone.png", workspace.path("data/dangling.png")).unwrap();
    let finished = encode(&workspace, &["data"], &[]).succeeds();
    assert!(finished.stdout().contains("the codes of 2 pictures"), "{}", finished.stdout());
    let warnings = warnings(&finished);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("data: 1 link leads nowhere (dangling.png)"), "{warnings:?}");
}

#[test]
fn animations_are_warned_of_once() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("films")).unwrap();
    for name in ["animation.gif", "animation.webp", "animation.png"] {
        fs::copy(fault(&format!("whole/{name}")), workspace.path("films").join(name)).unwrap();
    }
    let finished = encode(&workspace, &["films"], &[]).succeeds();
    let warnings = warnings(&finished);
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(warnings.iter().all(|warning| warning.contains("is an animation; only its first frame is used")));
}

#[test]
fn bytes_and_values_beyond_the_range_are_no_tensors_of_pictures() {
    let workspace = Workspace::new();
    let write = |dtype, values: &[u8]| {
        let view = safetensors::tensor::TensorView::new(dtype, vec![1, 3, 16, 16], values).unwrap();
        fs::write(workspace.path("x.safetensors"), safetensors::serialize([("x", view)], None).unwrap()).unwrap();
    };
    let floats = |value: f32| [value; 768].iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    write(safetensors::Dtype::U8, &[7; 768]);
    encode(&workspace, &["x.safetensors"], &[])
        .fails_with("tensor x holds U8, expected floats (of bytes: x / 127.5 - 1)");
    write(safetensors::Dtype::F32, &floats(-1.5));
    encode(&workspace, &["x.safetensors"], &[])
        .fails_with("tensor x has values from -1.5 to -1.5, expected -1 (black)");
    write(safetensors::Dtype::F32, &floats(f32::NAN));
    encode(&workspace, &["x.safetensors"], &[]).fails_with("tensor x holds a value that is not finite");
    write(safetensors::Dtype::F32, &floats(1.0005));
    encode(&workspace, &["x.safetensors"], &[]).succeeds();
}

#[test]
fn pictures_of_other_kinds_keep_their_colors() {
    let workspace = Workspace::new();
    let model = checkpoint("autoenc16_latent");
    fs::create_dir(workspace.path("kinds")).unwrap();
    // The same green in three kinds of files, one without an ending.
    let picture: DynamicImage = RgbImage::from_pixel(16, 16, Rgb([0, 200, 0])).into();
    picture.save_with_format(workspace.path("kinds/without"), image::ImageFormat::Png).unwrap();
    picture.save_with_format(workspace.path("kinds/wrong.jpg"), image::ImageFormat::WebP).unwrap();
    picture.to_rgb16().save_with_format(workspace.path("kinds/deep.tif"), image::ImageFormat::Tiff).unwrap();
    let args = ["variations", "--model", &model, "kinds", "-n", "1", "--out", "out"];
    workspace.run(&[&args[..], &FEW_STEPS].concat()).succeeds();
    let sheet = image::open(workspace.path("out/sheet.png")).unwrap().into_rgb8();
    let greens = sheet.pixels().filter(|pixel| pixel.0 == [0, 200, 0]).count();
    assert!(greens >= 3 * 16 * 16, "{greens}");
}

#[test]
fn training_warns_of_an_animation_once() {
    let workspace = Workspace::new();
    mixed_folder(&workspace);
    for name in ["b.jpg", "d.png"] {
        fs::remove_file(workspace.path("mixed").join(name)).unwrap();
    }
    fs::copy(fault("whole/animation.gif"), workspace.path("mixed/film.gif")).unwrap();
    let args = ["train", "--preset", "smoke", "--data", "mixed", "--out", "run", "--stage", "autoencoder"];
    let settings = ["--set", "autoencoder.images=64", "--set", "data.validation_share=0"];
    let finished = workspace.run(&[&args[..], &settings].concat()).succeeds();
    assert_eq!(finished.stderr().matches("is an animation").count(), 1, "{}", finished.stderr());
}

#[test]
fn faces_of_broken_photographs_are_left_out() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("photos")).unwrap();
    fs::copy(fixture("align/astronaut.png"), workspace.path("photos/a.png")).unwrap();
    fs::copy(fault("truncated.jpg"), workspace.path("photos/b.jpg")).unwrap();
    let landmarks = fixture("align/small_68.dat");
    let align = |more: &[&str]| {
        let args = ["align", "photos", "--landmarks", &landmarks, "--whole", "--size", "32", "--out", "out", "--force"];
        workspace.run(&[&args[..], more].concat())
    };
    align(&[]).fails_with("1 of 2 images could not be aligned: b; --skip-broken leaves out those that cannot be read");
    let finished = align(&["--skip-broken"]).succeeds();
    assert_eq!(warnings(&finished).len(), 2, "{}", finished.stderr());
    assert!(finished.stderr().contains("1 of 2 pictures could not be read and was left out"), "{}", finished.stderr());
    assert_eq!(workspace.files("out"), ["a.png"]);
}
