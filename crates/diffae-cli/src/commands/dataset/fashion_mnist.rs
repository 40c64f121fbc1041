//! Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747) from its IDX files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use flate2::read::GzDecoder;
use image::{GrayImage, ImageFormat, Luma};

use crate::commands::dataset::output::Made;
use crate::commands::dataset::output::{Manifest, Output};

const LICENCE: &str = "Fashion-MNIST, Copyright 2017 Zalando SE, https://github.com/zalandoresearch/fashion-mnist\n\
    Licence: MIT; its text comes with the Debian package, /usr/share/doc/dataset-fashion-mnist/copyright\n";
const CLASSES: [&str; 10] =
    ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"];
/// Height and width of the originals, before zeros are padded around them.
const SIDE: u32 = 28;
const MARGIN: u32 = 2;
/// First bytes of a file of pictures and of labels.
const PICTURES_MAGIC: u32 = 0x0803;
const LABELS_MAGIC: u32 = 0x0801;

/// Writes `train/CLASS/NNNNN.png` and `test/CLASS/NNNNN.png`.
pub(super) fn run(from: &Path, out: &Path) -> Result<Made> {
    ensure!(
        from.is_dir(),
        "{} is not there; `apt-get install dataset-fashion-mnist` brings it on Debian, or name the folder by --from",
        from.display()
    );
    let (mut names, mut pictures) = (vec![], vec![]);
    for (split, prefix) in [("train", "train"), ("test", "t10k")] {
        let labels = read(&from.join(format!("{prefix}-labels-idx1-ubyte.gz")), LABELS_MAGIC, 0)?;
        let pixels = read(&from.join(format!("{prefix}-images-idx3-ubyte.gz")), PICTURES_MAGIC, 2)?;
        let area = (SIDE * SIDE) as usize;
        ensure!(pixels.len() == labels.len() * area, "{prefix}: {} labels, {} pixels", labels.len(), pixels.len());
        for (idx, (label, picture)) in labels.iter().zip(pixels.chunks(area)).enumerate() {
            let class = CLASSES.get(usize::from(*label)).with_context(|| format!("label {label} of {prefix} {idx}"))?;
            names.push(format!("{split}/{class}/{idx:05}.png"));
            pictures.push(picture.to_vec());
        }
    }
    let manifest = Manifest {
        name: "fashion-mnist",
        source: "Zalando Research, Debian package dataset-fashion-mnist",
        version: "1".to_owned(),
        licence: "MIT",
        made: format!("{SIDE} pixels with {MARGIN} zeros around, gray PNG"),
        image_size: SIDE + 2 * MARGIN,
        originals: None,
    };
    let mut output = Output::new(out, &manifest)?;
    output.file("LICENCE.txt", LICENCE.as_bytes())?;
    output.finish(&names, &manifest, |idx| png(&pictures[idx]))
}

/// Reads the bytes of an IDX file after its header, whose sizes beyond the count are all [`SIDE`].
fn read(path: &Path, magic: u32, further_sizes: usize) -> Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut bytes = vec![];
    GzDecoder::new(file).read_to_end(&mut bytes).with_context(|| format!("cannot unpack {}", path.display()))?;
    let number = |at: usize| -> Result<u32> {
        let four: [u8; 4] = bytes.get(4 * at..4 * at + 4).context("the header is cut short")?.try_into()?;
        Ok(u32::from_be_bytes(four))
    };
    let header = 2 + further_sizes;
    let sizes_fit = (2..header).map(number).all(|size| size.is_ok_and(|size| size == SIDE));
    if number(0)? != magic || !sizes_fit {
        bail!("{} is no IDX file of the expected kind", path.display())
    }
    let count = usize::try_from(number(1)?)? * if further_sizes == 0 { 1 } else { (SIDE * SIDE) as usize };
    ensure!(bytes.len() == 4 * header + count, "{} has another length than it says", path.display());
    Ok(bytes.split_off(4 * header))
}

fn png(pixels: &[u8]) -> Result<Vec<u8>> {
    let whole = SIDE + 2 * MARGIN;
    let picture = GrayImage::from_fn(whole, whole, |x, y| {
        let inside = (x.checked_sub(MARGIN), y.checked_sub(MARGIN));
        match inside {
            (Some(x), Some(y)) if x < SIDE && y < SIDE => Luma([pixels[(y * SIDE + x) as usize]]),
            _ => Luma([0]),
        }
    });
    let mut bytes = vec![];
    picture.write_to(&mut std::io::Cursor::new(&mut bytes), ImageFormat::Png).context("cannot encode a PNG")?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn write(path: &Path, header: &[u32], data: &[u8]) {
        let mut encoder = GzEncoder::new(File::create(path).unwrap(), Compression::fast());
        for number in header {
            encoder.write_all(&number.to_be_bytes()).unwrap();
        }
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap();
    }

    #[test]
    fn pictures_go_to_the_folder_of_their_class_and_a_second_run_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let area = (SIDE * SIDE) as usize;
        for (prefix, labels) in [("train", vec![0u8, 9]), ("t10k", vec![3])] {
            let count = u32::try_from(labels.len()).unwrap();
            let images = folder.path().join(format!("{prefix}-images-idx3-ubyte.gz"));
            write(&images, &[PICTURES_MAGIC, count, SIDE, SIDE], &vec![7; labels.len() * area]);
            write(&folder.path().join(format!("{prefix}-labels-idx1-ubyte.gz")), &[LABELS_MAGIC, count], &labels);
        }
        let out = folder.path().join("out");
        run(folder.path(), &out).unwrap();
        let picture = image::open(out.join("train/ankle-boot/00001.png")).unwrap().into_luma8();
        assert_eq!((picture.dimensions(), picture[(0, 0)][0], picture[(2, 2)][0]), ((32, 32), 0, 7));
        let manifest = std::fs::read(out.join("manifest.json")).unwrap();
        run(folder.path(), &out).unwrap();
        assert_eq!(std::fs::read(out.join("manifest.json")).unwrap(), manifest);
    }

    #[test]
    fn what_is_no_idx_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gz");
        write(&path, &[PICTURES_MAGIC, 1, 20, 20], &[0; 400]);
        assert!(read(&path, PICTURES_MAGIC, 2).unwrap_err().to_string().contains("no IDX file"));
        write(&path, &[LABELS_MAGIC, 9], &[0; 3]);
        assert!(read(&path, LABELS_MAGIC, 0).unwrap_err().to_string().contains("length"));
        let missing = run(&folder.path().join("nowhere"), folder.path()).unwrap_err().to_string();
        assert!(missing.contains("apt-get"), "{missing}");
    }
}
