//! Files of a folder that are the slices of one DICOM series.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::names::may_be_dicom;
use crate::raster::dicom_series;
use crate::source::{Item, Place};

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
