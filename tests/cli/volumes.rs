//! Models of volumes, and of pictures of many channels, from training to files.

use std::fs;
use std::path::Path;

use diffae_data::{Geometry, PictureFormat, Window, npy_bytes, picture_with_geometry};
use diffae_nets::ImageSize;

use candle_core::{Device, Tensor};

use crate::polish::write_vgg;
use crate::support::Workspace;
use crate::training::set;

const SIDES: [usize; 3] = [4, 16, 16];
const WINDOW: [f64; 2] = [-1000., 1000.];
/// Voxels of 3 by 2 by 1 mm, in the view that volumes are turned to.
const PLACE: Geometry = Geometry { affine: [[-1., 0., 0., 5.], [0., -2., 0., 6.], [0., 0., 3., 7.]] };

fn format() -> PictureFormat {
    let window = Some(Window::try_from(WINDOW).unwrap());
    PictureFormat { window, ..PictureFormat::new(1, ImageSize::Volume(SIDES)) }
}

/// Writes volumes with a ball of one side, and without.
fn balls(workspace: &Workspace, count: usize) {
    for idx in 0..count {
        let (kind, size) = (if idx % 2 == 0 { "ball" } else { "empty" }, 3. + idx as f32 % 3.);
        fs::create_dir_all(workspace.path("data").join(kind)).unwrap();
        let [depth, height, width] = SIDES;
        let mut values = vec![];
        let pixels = (0..height).flat_map(|row| (0..width).map(move |column| (row, column)));
        for (slice, (row, column)) in (0..depth).flat_map(|slice| pixels.clone().map(move |at| (slice, at))) {
            let [z, y, x] = [slice as f32 * 3. - 4.5, row as f32 - 7.5, column as f32 - 7.5];
            let inside = (z * z + y * y + x * x).sqrt() < size;
            values.push(if inside && kind == "ball" { 0.6 } else { -0.8 + 0.01 * (idx % 5) as f32 });
        }
        let x = Tensor::from_vec(values, (1, depth, height, width), &Device::Cpu).unwrap();
        let bytes = format().encode_numbers(&x, Some(PLACE)).unwrap();
        fs::write(workspace.path("data").join(kind).join(format!("{idx:02}.nii.gz")), bytes).unwrap();
    }
}

fn train<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["train", "--threads", "1", "--preset", "smoke", "--data", "data", "--out", out, "--labels", "folders"];
    let small = [
        "model.image_size=[4,16,16]",
        "model.image_channels=1",
        "data.window=[-1000,1000]",
        "data.validation_share=0",
        "autoencoder.images=32",
        "latent.images=64",
        "classifier.images=64",
        "run.preview_every_images=16",
        "run.preview_steps=2",
    ];
    [&fixed[..], &set(&small), more].concat()
}

/// Reads the volume of a file that a command has written, with its place.
fn read(path: &Path) -> (Vec<f32>, Geometry) {
    let (x, place) = picture_with_geometry(&fs::read(path).unwrap(), path, format(), None).unwrap();
    (x.flatten_all().unwrap().to_vec1().unwrap(), place.unwrap())
}

#[test]
fn volumes_are_trained_on_encoded_and_decoded() {
    let workspace = Workspace::new();
    balls(&workspace, 8);
    workspace.run(&train("run", &[])).succeeds();
    let preview = image::open(workspace.path("run/previews/images-000000032.png")).unwrap();
    assert!(preview.width() > 2 * 16 * 8, "a sheet of the views of volumes");
    let info = workspace.run(&["info", "run"]).succeeds().stdout();
    assert!(info.contains("volumes") && info.contains("4x16x16, 1 channel, values from [-1000, 1000]"), "{info}");
    let json = workspace.run(&["info", "run", "--json"]).succeeds().json();
    assert_eq!(json["image_size"], serde_json::json!(SIDES));

    // A round trip along an exact chain gives the volume back, where it was.
    let file = "data/ball/00.nii.gz";
    let exact = ["--inversion", "exact", "--steps", "5"];
    let report = workspace.run(&[&["reconstruct", "-m", "run", file, "-o", "back", "--json"], &exact[..]].concat());
    let report = report.succeeds().json();
    assert!(report[0]["psnr"].as_f64().unwrap() > 60., "{report}");
    assert_eq!(workspace.files("back"), ["00.nii.gz", "00.png", "sheet.png"]);
    let ((original, place), (back, moved)) = (read(&workspace.path(file)), read(&workspace.path("back/00.nii.gz")));
    assert!(original.iter().zip(&back).all(|(a, b)| (a - b).abs() < 1e-2));
    assert_eq!((place, moved), (PLACE, PLACE));
    let shown = image::open(workspace.path("back/00.png")).unwrap();
    assert_eq!((shown.width(), shown.height()), (32, 20));

    // The same through a file of codes, of which decode knows no place.
    workspace.run(&[&["encode", "-m", "run", file, "-o", "codes.safetensors"], &exact[..2]].concat()).succeeds();
    workspace.run(&["decode", "-m", "run", "codes.safetensors", "-o", "decoded"]).succeeds();
    let path = workspace.path("decoded/00.nii.gz");
    let (decoded, place) = picture_with_geometry(&fs::read(&path).unwrap(), &path, format(), None).unwrap();
    let decoded: Vec<f32> = decoded.flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(place, None);
    let worst = original.iter().zip(&decoded).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
    assert!(worst < 1e-2, "{worst}");

    let both = [file, "data/empty/01.nii.gz"];
    for (out, files, args) in [
        ("edits", 2, [&["edit", "-m", "run", file, "-a", "ball"][..]].concat()),
        ("between", 6, [&["interpolate", "-m", "run"][..], &both, &["--frames", "3"]].concat()),
        ("sampled", 5, ["sample", "-m", "run", "-n", "2", "--steps", "2", "--latent-steps", "2"].to_vec()),
        ("varied", 5, ["variations", "-m", "run", file, "-n", "2", "--steps", "2"].to_vec()),
    ] {
        workspace.run(&[&args[..], &["-o", out]].concat()).succeeds();
        let written = workspace.files(out);
        assert_eq!(written.len(), files, "{out}: {written:?}");
    }
    // A file of tensors holds volumes, too, and is read again.
    workspace.run(&["sample", "-m", "run", "-n", "2", "--steps", "2", "-o", "x.safetensors"]).succeeds();
    workspace.run(&["encode", "-m", "run", "x.safetensors", "-o", "z.csv", "--semantic-only"]).succeeds();
    assert_eq!(fs::read_to_string(workspace.path("z.csv")).unwrap().lines().count(), 3);

    // Reconstructions are measured, but not by networks that know photographs.
    let eval = ["eval", "recon", "--model", "run", "--data", "data", "--limit", "2", "--out", "recon"];
    let eval = [&eval[..], &["--steps", "2", "--invert-steps", "2"]].concat();
    write_vgg(&workspace.path("vgg16.safetensors"));
    let lpips = ["--lpips-weights", "vgg16.safetensors", "--lpips-backbone", "vgg"];
    workspace.run(&[&eval[..], &lpips].concat()).fails_with("this model is of volumes");
    assert!(!workspace.path("recon").exists());
    workspace.run(&eval).succeeds();

    // What volumes have no meaning for is said.
    image::RgbImage::new(16, 16).save(workspace.path("shot.png")).unwrap();
    for (args, reason) in [
        (&["export", "run", "--onnx", "onnx"][..], "not for volumes"),
        (&["encode", "-m", "run", "shot.png", "-o", "no.safetensors"], "the model is for volumes"),
        (&["reconstruct", "-m", "run", file, "-o", "back"], "exists already"),
    ] {
        workspace.run(args).fails_with(reason);
    }
}

#[test]
fn a_run_of_volumes_that_is_resumed_ends_with_the_same_bits() {
    let workspace = Workspace::new();
    balls(&workspace, 4);
    let model = |run: &str| fs::read(workspace.path(run).join("model.safetensors")).unwrap();
    workspace.run(&train("whole", &["--stage", "autoencoder"])).succeeds();
    let half = [&["--stage", "autoencoder"][..], &set(&["autoencoder.images=16"])].concat();
    workspace.run(&train("halves", &half)).succeeds();
    let rest = ["train", "--out", "halves", "--resume", "--threads", "1", "--stage", "autoencoder"];
    workspace.run(&[&rest[..], &set(&["autoencoder.images=32"])].concat()).succeeds();
    assert!(model("whole") == model("halves"));
}

#[test]
fn pictures_of_five_channels_are_arrays_with_a_picture_to_look_at() {
    let workspace = Workspace::new();
    fs::create_dir_all(workspace.path("data")).unwrap();
    for idx in 0..6_u16 {
        let value = |place: usize| (place as f32 * 0.07 + f32::from(idx)).sin();
        let values: Vec<f32> = (0..5 * 16 * 16).map(value).collect();
        fs::write(workspace.path("data").join(format!("{idx}.npy")), npy_bytes(&[5, 16, 16], &values)).unwrap();
    }
    let small = ["model.image_channels=5", "data.validation_share=0", "autoencoder.images=16", "run.preview_steps=2"];
    let args = ["train", "--preset", "smoke", "--data", "data", "--out", "run", "--stage", "autoencoder"];
    workspace.run(&[&args[..], &set(&small)].concat()).succeeds();
    let back = ["reconstruct", "-m", "run", "data/3.npy", "-o", "back", "--inversion", "exact", "--steps", "5"];
    workspace.run(&back).succeeds();
    assert_eq!(workspace.files("back"), ["3.npy", "3.png", "sheet.png"]);
    let numbers = |path: &str| {
        let bytes = fs::read(workspace.path(path)).unwrap();
        let floats = bytes[bytes.len() - 4 * 5 * 256..].chunks_exact(4);
        floats.map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect::<Vec<_>>()
    };
    let worst = numbers("data/3.npy").iter().zip(numbers("back/3.npy")).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
    assert!(worst < 1e-2, "{worst}");
    let wrong = [&args[..], &set(&["model.image_channels=33"])].concat();
    workspace.run(&wrong).fails_with("at most 32");
    // Numbers without a scale ask for a window, with one to begin with.
    let values: Vec<f32> = (0..5 * 256).map(|place| place as f32).collect();
    fs::create_dir_all(workspace.path("counts")).unwrap();
    fs::write(workspace.path("counts/0.npy"), npy_bytes(&[5, 16, 16], &values)).unwrap();
    let encode = ["encode", "-m", "run", "counts/0.npy", "-o", "z.safetensors"];
    workspace.run(&encode).fails_with("data.window = [0, 1279]");
}
