//! Files of a folder that belong together: slices of a DICOM series, a picture and its numbers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::inputs::stem;
use crate::names::{is_array_name, may_be_dicom};
use crate::raster::dicom_series;
use crate::source::{Item, Place};

/// Name of the sheet of all results of a folder.
const SHEET: &str = "sheet";

/// Files of a folder: those that stand alone, and volumes of several files.
#[derive(Debug)]
pub(crate) struct Grouped {
    pub(crate) alone: Vec<PathBuf>,
    pub(crate) volumes: Vec<Item>,
}

/// Joins the files of a DICOM series that lie in one folder to one volume, named after the folder, and also after the series where
/// the folder has several.
pub(crate) fn grouped(root: &Path, files: Vec<PathBuf>) -> Grouped {
    let (dicom, mut alone): (Vec<PathBuf>, Vec<PathBuf>) = files.into_iter().partition(|file| may_be_dicom(file));
    let series: Vec<Option<String>> = dicom.par_iter().map(|file| dicom_series(file)).collect();
    let mut by_series: BTreeMap<(PathBuf, String), Vec<PathBuf>> = BTreeMap::new();
    for (file, series) in dicom.into_iter().zip(series) {
        match series {
            Some(series) => by_series.entry((parent(&file), series)).or_default().push(file),
            None => alone.push(file),
        }
    }
    let mut num_series: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for (folder, _) in by_series.keys() {
        *num_series.entry(folder.clone()).or_default() += 1;
    }
    let mut volumes = vec![];
    for ((folder, series), mut files) in by_series {
        if files.len() == 1 {
            alone.append(&mut files);
            continue;
        }
        let relative = folder.strip_prefix(root).unwrap_or(&folder);
        let own = if relative.as_os_str().is_empty() { root.file_name().map_or(root, Path::new) } else { relative };
        let mut parts: Vec<String> = own.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        if num_series.get(&folder).is_some_and(|&count| count > 1) {
            parts.push(series);
        }
        volumes.push(Item { file: folder.into(), name: parts.join("/"), place: Place::Series(files) });
    }
    alone.sort();
    Grouped { alone, volumes }
}

fn parent(file: &Path) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).to_owned()
}

/// Separates arrays and scans from pictures for the eye. Where both are there, an array is another form of the picture that has its
/// name, as results are written; others are left out, since data sets of pictures have arrays of other kinds beside them.
pub(crate) struct Forms {
    /// Pictures, or arrays where there are no pictures.
    pub(crate) files: Vec<PathBuf>,
    /// Arrays by the pictures that show them.
    pub(crate) numbers: BTreeMap<PathBuf, PathBuf>,
    /// Arrays that are left out.
    pub(crate) left_out: Vec<PathBuf>,
}

impl Forms {
    pub(crate) fn of(files: Vec<PathBuf>) -> Self {
        let (arrays, pictures): (Vec<PathBuf>, Vec<PathBuf>) = files.into_iter().partition(|file| is_array_name(file));
        if pictures.is_empty() || arrays.is_empty() {
            let files = if pictures.is_empty() { arrays } else { pictures };
            return Self { files, numbers: BTreeMap::new(), left_out: vec![] };
        }
        let key = |file: &Path| (parent(file), stem(file));
        let mut by_name: BTreeMap<(PathBuf, String), PathBuf> =
            arrays.into_iter().map(|array| (key(&array), array)).collect();
        let numbers: BTreeMap<PathBuf, PathBuf> =
            pictures.iter().filter_map(|picture| Some((picture.clone(), by_name.remove(&key(picture))?))).collect();
        // A sheet shows several results.
        let is_sheet = |file: &Path| !numbers.is_empty() && stem(file) == SHEET;
        let files = pictures.into_iter().filter(|file| !is_sheet(file)).collect();
        Self { files, numbers, left_out: by_name.into_values().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_beside_pictures_are_their_numbers_or_left_out() {
        let of = |names: &[&str]| {
            let Forms { files, numbers, left_out } = Forms::of(names.iter().map(PathBuf::from).collect());
            let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
            (
                files.iter().map(text).collect::<Vec<_>>(),
                numbers.iter().map(|(a, b)| (text(a), text(b))).collect::<Vec<_>>(),
                left_out.iter().map(text).collect::<Vec<_>>(),
            )
        };
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(of(&["a.npy", "b.nii.gz"]), (owned(&["a.npy", "b.nii.gz"]), vec![], vec![]));
        assert_eq!(of(&["a.png", "stats.npz"]), (owned(&["a.png"]), vec![], owned(&["stats.npz"])));
        let paired = vec![("x/a.png".to_owned(), "x/a.nii.gz".to_owned())];
        let (files, numbers, left_out) = of(&["x/a.nii.gz", "x/a.png", "x/sheet.png", "y/a.npy"]);
        assert_eq!((files, numbers, left_out), (owned(&["x/a.png"]), paired, owned(&["y/a.npy"])));
        assert_eq!(of(&["sheet.png", "b.png"]).0, ["sheet.png", "b.png"]);
    }
}
