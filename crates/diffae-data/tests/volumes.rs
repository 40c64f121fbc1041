//! Volumes and pictures of many channels, against what nibabel 5.4, pydicom 3.0 and tifffile 2026.3 have read of the same files.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use diffae_data::{
    Crop, FindSettings, NpzFile, PictureFormat, Pictures, Split, Window, list_inputs, npy_bytes, picture_with_geometry,
    read_image, rgb_from_tensor,
};
use diffae_nets::ImageSize;

/// Window of all values of the fixtures, and the largest error of a value that went through it.
const WIDE: [f64; 2] = [-2000., 70_000.];
const ROUNDING: f32 = 0.02;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/volumes").join(name)
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn window() -> Window {
    Window::try_from(WIDE).unwrap()
}

fn volume(channels: usize, sides: [usize; 3]) -> PictureFormat {
    PictureFormat { window: Some(window()), ..PictureFormat::new(channels, ImageSize::Volume(sides)) }
}

/// Reads an array of floats that Python has written, as a picture of one long row.
fn expected(name: &str, count: usize) -> Vec<f32> {
    let bytes = fs::read(fixture(name)).unwrap();
    let floats = bytes[bytes.len() - 4 * count..].chunks_exact(4);
    floats.map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn expected_affine(name: &str) -> Vec<f64> {
    let bytes = fs::read(fixture(name)).unwrap();
    let floats = bytes[bytes.len() - 96..].chunks_exact(8);
    floats.map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn assert_close(x: &Tensor, expected: &[f32]) {
    let got: Vec<f32> = values(x).into_iter().map(|x| window().value_of(x)).collect();
    assert_eq!(got.len(), expected.len());
    let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(worst < ROUNDING, "{worst}: {got:?} {expected:?}");
}

#[test]
fn nifti_volumes_are_turned_to_one_view_with_their_place_in_space() {
    for (file, name, channels, sides) in
        [("scaled.nii.gz", "scaled", 2, [5, 6, 4]), ("rotated.nii", "rotated", 1, [5, 4, 3])]
    {
        let path = fixture(file);
        let (x, geometry) =
            picture_with_geometry(&fs::read(&path).unwrap(), &path, volume(channels, sides), None).unwrap();
        assert_eq!(x.dims(), [channels, sides[0], sides[1], sides[2]], "{file}");
        assert_close(&x, &expected(&format!("{name}.npy"), x.elem_count()));
        let affine: Vec<f64> = geometry.unwrap().affine.concat();
        for (got, expected) in affine.iter().zip(expected_affine(&format!("{name}_affine.npy"))) {
            assert!((got - expected).abs() < 1e-5, "{file}: {affine:?}");
        }
        // What is written is read as it was.
        let bytes = volume(channels, sides).encode_numbers(&x, geometry).unwrap();
        let (again, place) =
            picture_with_geometry(&bytes, Path::new("a.nii.gz"), volume(channels, sides), None).unwrap();
        assert_close(&again, &values(&x).into_iter().map(|x| window().value_of(x)).collect::<Vec<_>>());
        let moved = place.unwrap().affine.concat().iter().zip(&affine).map(|(a, b)| (a - b).abs()).fold(0., f64::max);
        assert!(moved < 1e-5, "{moved}");
    }
}

#[cfg(feature = "dicom")]
#[test]
fn files_of_a_dicom_series_are_one_volume() {
    let folder = tempfile::tempdir().unwrap();
    let patient = folder.path().join("patient");
    fs::create_dir(&patient).unwrap();
    for file in ["0.dcm", "1.dcm", "2.dcm", "3.dcm"] {
        fs::copy(fixture("series").join(file), patient.join(file)).unwrap();
    }
    let format = volume(1, [4, 5, 6]);
    for root in [folder.path(), patient.as_path()] {
        let pictures = Pictures::all(root, Crop::Center).unwrap();
        assert_eq!((pictures.len(), pictures.name(0)), (1, "patient".to_owned()));
        assert_close(&pictures.read(0, format).unwrap(), &expected("series.npy", 120));
        assert!(pictures.check(0).is_ok());
        let inputs = list_inputs(&[root.to_owned()]).unwrap();
        assert_eq!((inputs.len(), inputs[0].name.as_str()), (1, "patient"));
        let (x, geometry) = inputs[0].read_with_geometry(format).unwrap();
        assert_close(&x, &expected("series.npy", 120));
        // Of DICOM's axes, x and y are turned around; the lowest slice is at 30 - 3 * 2.5 mm.
        let affine = [[-0.5, 0., 0., 10.], [0., -0.75, 0., 20.], [0., 0., 2.5, 22.5]];
        assert_eq!(geometry.unwrap().affine, affine);
    }
    let before = Pictures::all(folder.path(), Crop::Center).unwrap().fingerprint(&[0]).unwrap();
    fs::remove_file(patient.join("3.dcm")).unwrap(); // the second slice from the top
    let pictures = Pictures::all(folder.path(), Crop::Center).unwrap();
    assert_ne!(before, pictures.fingerprint(&[0]).unwrap());
    let error = pictures.read(0, format).unwrap_err().to_string();
    assert!(error.contains("2.500 mm apart and all 3.750 mm") && error.contains("missing"), "{error}");
    // A single slice is a picture.
    let alone =
        read_image(&fixture("series/0.dcm"), PictureFormat { window: Some(window()), ..PictureFormat::new(1, 5) });
    assert_eq!(alone.unwrap().dims(), [1, 5, 5]);
}

#[test]
fn pages_are_slices_or_channels() {
    let pages = NpzFile::open(&fixture("pages.npy"));
    assert!(pages.is_err(), "an array is no archive");
    let as_floats = |name: &str, bytes_each: usize, count: usize| -> Vec<f32> {
        let bytes = fs::read(fixture(name)).unwrap();
        let numbers = bytes[bytes.len() - bytes_each * count..].chunks_exact(bytes_each);
        numbers.map(|bytes| bytes.iter().rev().fold(0., |value, &byte| value * 256. + f32::from(byte))).collect()
    };
    let wanted = as_floats("pages.npy", 2, 5 * 7 * 6);
    let stack = read_image(&fixture("pages.tif"), volume(1, [5, 7, 6])).unwrap();
    assert_close(&stack, &wanted);
    // Of a square picture, a row at the bottom is cropped: the sides are 7 and 6.
    let channels = read_image(&fixture("pages.tif"), PictureFormat::new(5, 6)).unwrap();
    let scaled: Vec<f32> = values(&channels).iter().map(|x| (x + 1.) * 32767.5).collect();
    for (channel, wanted) in scaled.chunks(36).zip(wanted.chunks(42)) {
        assert!(channel.iter().zip(&wanted[..36]).all(|(a, b)| (a - b).abs() < 0.1), "{channel:?} {wanted:?}");
    }
    let bands = read_image(&fixture("bands.tif"), PictureFormat::new(5, 6)).unwrap();
    let wanted = as_floats("bands.npy", 1, 5 * 7 * 6);
    let scaled: Vec<f32> = values(&bands).iter().map(|x| (x + 1.) * 127.5).collect();
    for (channel, wanted) in scaled.chunks(36).zip(wanted.chunks(42)) {
        assert!(channel.iter().zip(&wanted[..36]).all(|(a, b)| (a - b).abs() < 1e-3), "{channel:?} {wanted:?}");
    }
    assert_eq!(rgb_from_tensor(&bands).unwrap().dimensions(), (6, 6));
    let signed = PictureFormat { window: Some(window()), ..PictureFormat::new(1, 6) };
    assert!(values(&read_image(&fixture("signed.tif"), signed).unwrap()).iter().any(|&x| x < -0.9));
}

#[test]
fn arrays_are_read_channels_first_or_last() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cells.npy");
    let format = PictureFormat::new(5, 2);
    let numbers: Vec<f32> = (0..20).map(|i| i as f32 / 20.).collect();
    let channels_last: Vec<f32> = (0..4).flat_map(|pixel| (0..5).map(move |c| (c * 4 + pixel) as f32 / 20.)).collect();
    for (shape, stored) in [(&[5, 2, 2], &numbers), (&[2, 2, 5], &channels_last)] {
        fs::write(&path, npy_bytes(shape, stored)).unwrap();
        assert_eq!(values(&read_image(&path, format).unwrap()), numbers);
    }
    assert_eq!(format.ending_of_numbers(), Some("npy"));
    let written = format.encode_numbers(&read_image(&path, format).unwrap(), None).unwrap();
    fs::write(&path, written).unwrap();
    assert_eq!(values(&read_image(&path, format).unwrap()), numbers);
    assert_eq!(PictureFormat::new(3, 2).ending_of_numbers(), None);
    // A volume of one channel needs no axis for it.
    fs::write(&path, npy_bytes(&[5, 2, 2], &numbers)).unwrap();
    let pictures = Pictures::find(folder.path(), &FindSettings::default(), Split::Train).unwrap();
    let x = pictures.read(0, PictureFormat::new(1, ImageSize::Volume([5, 2, 2]))).unwrap();
    assert_eq!((x.dims(), values(&x)), (&[1, 5, 2, 2][..], numbers));
    assert!(pictures.check(0).is_ok());
}

#[test]
fn volumes_are_resized_and_their_voxels_stay_where_they_are() {
    let path = fixture("rotated.nii");
    let bytes = fs::read(&path).unwrap();
    let (whole, place) = picture_with_geometry(&bytes, &path, volume(1, [5, 4, 3]), None).unwrap();
    let (x, smaller) = picture_with_geometry(&bytes, &path, volume(1, [10, 8, 6]), None).unwrap();
    assert_eq!(x.dims(), [1, 10, 8, 6]);
    let mean = |x: &Tensor| values(x).iter().sum::<f32>() / x.elem_count() as f32;
    assert!((mean(&x) - mean(&whole)).abs() < 1e-3);
    let ratio: Vec<f64> = place.unwrap().spacing().iter().zip(smaller.unwrap().spacing()).map(|(a, b)| a / b).collect();
    assert!(ratio.iter().all(|ratio| (ratio - 2.).abs() < 1e-9), "{ratio:?}");
    // Rows and columns by one factor, and the longer side cropped at the center.
    let cropped = read_image(&path, volume(1, [5, 3, 3])).unwrap();
    assert_eq!(cropped.dims(), [1, 5, 3, 3]);
}

#[test]
fn what_is_no_such_picture_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let error = |path: &Path, format: PictureFormat| read_image(path, format).unwrap_err().to_string();
    let (picture, cube) = (PictureFormat::new(1, 4), PictureFormat::new(1, ImageSize::Volume([4; 3])));
    let scaled = fixture("scaled.nii.gz");
    assert!(error(&scaled, PictureFormat::new(2, ImageSize::Volume([4; 3]))).contains("data.window = ["));
    assert!(error(&scaled, cube).contains("it has 2 channels, the model expects 1"));
    assert!(error(&fixture("rotated.nii"), picture).contains("volume of 5 slices, and the model is for pictures"));
    assert!(error(&fixture("signed.tif"), cube).contains("single slice"));
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let floats = write("a.npy", &npy_bytes(&[4, 4], &[-3., 9.].repeat(8)));
    let message = error(&floats, picture);
    assert!(message.contains("floats, from -3 to 9") && message.contains("data.window = [-3, 9]"), "{message}");
    assert!(error(&floats, PictureFormat::new(2, 4)).contains("[2, H, W] or [H, W, 2]"));
    assert!(error(&write("b.npy", &npy_bytes(&[4, 4], &[f32::NAN; 16])), picture).contains("not finite"));
    assert!(error(&write("c.npy", &npy_bytes(&[0, 4], &[])), picture).contains("empty"));
    assert!(error(&write("d.npy", &npy_bytes(&[4, 4], &[0.; 16])[..150]), picture).contains("fewer bytes"));
    let whole = fs::read(fixture("rotated.nii")).unwrap();
    assert!(error(&write("e.nii", &whole[..500]), cube).contains("cut off"));
    assert!(error(&write("e.nii", &whole[..200]), cube).contains("cut off within its header"));
    assert!(error(&write("f.nii.gz", b"\x1f\x8b\x08\x00"), cube).contains("unpacked"));
    let pages = fs::read(fixture("pages.tif")).unwrap();
    assert!(read_image(&write("g.tif", &pages[..900]), PictureFormat::new(5, 6)).is_err());
    // A picture of three colors is none of five channels.
    image::RgbImage::new(4, 4).save(folder.path().join("h.png")).unwrap();
    assert!(error(&folder.path().join("h.png"), PictureFormat::new(5, 4)).contains("it has 3 channels"));
    #[cfg(not(feature = "dicom"))]
    assert!(error(&fixture("series/0.dcm"), picture).contains("--features dicom"));
}
