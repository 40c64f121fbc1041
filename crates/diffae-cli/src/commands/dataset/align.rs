//! Data sets of photographs of faces, cropped as FFHQ crops them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use diffae_data::{FaceBoxes, FacePlace, ShapePredictor, align_face, picture_files, png_bytes, read_rgb};

use crate::commands::dataset::output::Made;
use crate::commands::dataset::output::{Fingerprint, Manifest, Output};

/// Folder of the pictures in the data set.
const PICTURES: &str = "images";

/// Arguments of `diffae dataset align`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder of photographs, searched recursively; one face each
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// dlib's model of 68 landmarks, shape_predictor_68_face_landmarks.dat; Debian has it in libdlib-data
    #[arg(long, value_name = "FILE")]
    landmarks: PathBuf,
    /// CSV of lines NAME,LEFT,TOP,WIDTH,HEIGHT, a box for each photograph [default: centered, 0.6 of the
    /// shorter side]
    #[arg(long, value_name = "FILE")]
    boxes: Option<PathBuf>,
    /// Height and width of the pictures
    #[arg(long, default_value_t = 256, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=2048))]
    size: u32,
    /// Folder to write the data set into
    #[arg(long, short, value_name = "DIR")]
    out: PathBuf,
}

/// Creates the data set.
pub(super) fn run(args: &Args) -> Result<Made> {
    let photographs = picture_files(&args.from)?;
    ensure!(!photographs.is_empty(), "there are no pictures in {}", args.from.display());
    let names = names(&args.from, &photographs)?;
    let model = fs::read(&args.landmarks).with_context(|| format!("cannot read {}", args.landmarks.display()))?;
    let predictor = ShapePredictor::from_bytes(&model, &args.landmarks)?;
    let (place, placed) = match &args.boxes {
        Some(path) => {
            let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            (
                FacePlace::Listed(FaceBoxes::open(path)?),
                format!("in the boxes of BLAKE3 {}", blake3::hash(&bytes).to_hex()),
            )
        }
        None => (FacePlace::Middle, "the middle, 0.6 of the shorter side".to_owned()),
    };
    let manifest = Manifest {
        name: "aligned faces",
        source: "photographs of a folder",
        version: format!("{} photographs", photographs.len()),
        licence: "that of the photographs",
        made: format!(
            "cargo xtask dataset align --size {}; face: {placed}; BLAKE3 of the landmark model: {}",
            args.size,
            blake3::hash(&model).to_hex()
        ),
        image_size: args.size,
        originals: Some(Fingerprint { count: photographs.len(), listing_blake3: fingerprint(&names, &photographs)? }),
    };
    let output = Output::new(&args.out, &manifest)?;
    output.finish(&names, &manifest, |idx| {
        let path = &photographs[idx];
        let aligned = || -> diffae_data::Result<Vec<u8>> {
            let photograph = read_rgb(path)?;
            let face_box = place.face_box(&path.to_string_lossy(), &photograph)?;
            png_bytes(&align_face(&predictor, &photograph, face_box, args.size)?.picture, &[], path)
        };
        aligned().with_context(|| format!("cannot align {}", path.display()))
    })
}

/// Returns BLAKE3 of the names and sizes in bytes of the photographs.
fn fingerprint(names: &[String], photographs: &[PathBuf]) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for (name, path) in names.iter().zip(photographs) {
        let bytes = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
        hasher.update(format!("{name} {bytes}\n").as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Returns the names of the results: those of the photographs, below another folder and with another extension.
fn names(root: &Path, photographs: &[PathBuf]) -> Result<Vec<String>> {
    let mut taken = BTreeSet::new();
    let mut names = Vec::new();
    for photograph in photographs {
        let below = photograph.strip_prefix(root).unwrap_or(photograph).with_extension("png");
        let parts: Vec<_> = below.iter().map(|part| part.to_string_lossy()).collect();
        let name = format!("{PICTURES}/{}", parts.join("/"));
        if !taken.insert(name.clone()) {
            bail!("{} and another picture would both become {name}; rename one", photograph.display())
        }
        names.push(name);
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/align").join(name)
    }

    #[test]
    fn each_photograph_becomes_a_face() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        fs::create_dir_all(from.join("b")).unwrap();
        fs::copy(fixture("astronaut.png"), from.join("b/astronaut.png")).unwrap();
        let args = Args {
            from: from.clone(),
            landmarks: fixture("small_68.dat"),
            boxes: None,
            size: 32,
            out: folder.path().join("out"),
        };
        run(&args).unwrap();
        assert_eq!(image::image_dimensions(args.out.join("images/b/astronaut.png")).unwrap(), (32, 32));
        let manifest = fs::read_to_string(args.out.join("manifest.json")).unwrap();
        assert!(manifest.contains("\"images/b\": 1"), "{manifest}");

        fs::write(from.join("broken.png"), "no picture").unwrap();
        let error = run(&Args { out: folder.path().join("other"), ..args }).unwrap_err();
        assert!(format!("{error:#}").contains("broken.png"), "{error:#}");
    }

    #[test]
    fn two_photographs_of_one_name_are_refused() {
        let files = ["a/x.jpg", "a/y.png", "a/x.png"].map(PathBuf::from);
        assert_eq!(names(Path::new("a"), &files[..2]).unwrap(), ["images/x.png", "images/y.png"]);
        assert!(names(Path::new("a"), &files).is_err());
    }
}
