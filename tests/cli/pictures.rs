//! Pictures of all kinds.

use std::path::Path;

use image::{DynamicImage, ImageBuffer, Luma, LumaA, Rgb, RgbImage};

use crate::support::{FEW_STEPS, Finished, Workspace, checkpoint};

fn variation(workspace: &Workspace, picture: &str) -> Finished {
    let model = checkpoint("autoenc16_latent");
    let args = ["variations", "--model", &model, picture, "-n", "1", "--out", "out", "--force"];
    workspace.run(&[&args[..], &FEW_STEPS].concat())
}

/// The color that the model saw at the center: the sheet shows the input beside the one variation, at its right edge.
fn center_of_input(workspace: &Workspace) -> [u8; 3] {
    let sheet = image::open(workspace.path("out/sheet.png")).unwrap().into_rgb8();
    sheet.get_pixel(sheet.width() - 152, sheet.height() - 52).0
}

#[test]
fn gray_deep_transparent_tiny_and_wide_pictures_are_read() {
    let workspace = Workspace::new();
    let pictures: [(&str, DynamicImage, [u8; 3]); 5] = [
        ("tiny.png", RgbImage::from_pixel(1, 1, Rgb([200, 10, 30])).into(), [200, 10, 30]),
        ("gray.bmp", ImageBuffer::from_pixel(20, 20, Luma([77_u8])).into(), [77; 3]),
        ("deep.png", ImageBuffer::from_pixel(20, 20, Luma([40_000_u16])).into(), [156; 3]),
        ("clear.png", ImageBuffer::from_pixel(20, 20, LumaA([0_u8, 0])).into(), [255; 3]),
        ("wide.tiff", RgbImage::from_pixel(300, 2, Rgb([1, 2, 3])).into(), [1, 2, 3]),
    ];
    for (name, picture, expected) in pictures {
        picture.save(workspace.path(name)).unwrap();
        variation(&workspace, name).succeeds();
        assert_eq!(center_of_input(&workspace), expected, "{name}");
    }
}

#[test]
fn of_an_animation_the_first_frame_is_used_and_said_so() {
    let workspace = Workspace::new();
    let frame =
        |value| image::Frame::new(DynamicImage::from(RgbImage::from_pixel(16, 16, Rgb([value; 3]))).into_rgba8());
    let file = std::fs::File::create(workspace.path("film.gif")).unwrap();
    let mut encoder = image::codecs::gif::GifEncoder::new(file);
    encoder.encode_frames([frame(255), frame(0)]).unwrap();
    drop(encoder);
    let finished = variation(&workspace, "film.gif").succeeds();
    assert!(finished.stderr().contains("only its first frame"), "{}", finished.stderr());
    assert_eq!(center_of_input(&workspace), [255; 3]);
}

#[test]
fn a_wrong_ending_does_not_matter() {
    let workspace = Workspace::new();
    RgbImage::from_pixel(8, 8, Rgb([9; 3])).save(workspace.path("a.png")).unwrap();
    std::fs::rename(workspace.path("a.png"), workspace.path("a.jpg")).unwrap();
    variation(&workspace, "a.jpg").succeeds();
}

#[test]
fn broken_and_missing_pictures_leave_nothing() {
    let workspace = Workspace::new();
    std::fs::write(workspace.path("text.png"), "hello").unwrap();
    RgbImage::from_pixel(64, 64, Rgb([9; 3])).save(workspace.path("whole.png")).unwrap();
    let bytes = std::fs::read(workspace.path("whole.png")).unwrap();
    std::fs::write(workspace.path("half.png"), &bytes[..bytes.len() >> 1]).unwrap();
    std::fs::create_dir(workspace.path("empty")).unwrap();
    variation(&workspace, "text.png").fails_with("text.png");
    variation(&workspace, "half.png").fails_with("half.png");
    variation(&workspace, "missing.png").fails_with("missing.png");
    variation(&workspace, "empty").fails_with("no pictures");
    assert!(!Path::new(&workspace.path("out")).exists());
    assert_eq!(workspace.files("."), ["empty", "half.png", "text.png", "whole.png"]);
}
