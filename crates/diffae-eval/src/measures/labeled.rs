//! Pictures with labels, and their codes.

use std::path::Path;

use candle_core::{Device, Tensor};
use diffae_data::{FOLDER_LABELS, Labels, PictureSet, Shard, Strangers};
use diffae_infer::Settings;

use crate::codes::{encode_all, encode_shard};
use crate::error::{Result, unsuitable};
use crate::evaluated_model::EvaluatedModel;
use crate::evaluation::Evaluation;
use crate::feature_file::fingerprint_of_file;
use crate::report::Report;

/// Pictures of a set that have labels.
#[derive(Debug)]
pub struct LabeledPictures<'a> {
    pictures: &'a PictureSet,
    labels: Labels,
    fingerprint_of_labels: String,
    /// Indices of the pictures with labels.
    rows: Vec<usize>,
}

/// Codes of labeled pictures.
#[derive(Clone)]
pub(super) struct LabeledCodes {
    /// Codes, `[N, D]`, on the CPU.
    pub(super) z_sem: Tensor,
    pub(super) names: Vec<String>,
    /// Labels of each attribute, N each.
    pub(super) present: Vec<Vec<bool>>,
    pub(super) settings: Settings,
}

impl<'a> LabeledPictures<'a> {
    /// Reads the labels of pictures from a file; see [`Labels::matched`]. The path `folders` stands for one class per
    /// folder.
    ///
    /// # Errors
    /// As [`Labels::matched`] and [`Labels::from_folders`].
    pub fn find(pictures: &'a PictureSet, path: &Path) -> Result<Self> {
        let is_folders = path == Path::new(FOLDER_LABELS);
        let labels = if is_folders {
            Labels::from_folders(&[pictures.all()])?
        } else {
            Labels::matched(path, &[pictures.all()], Strangers::PassOver)?
        };
        let fingerprint = if is_folders { FOLDER_LABELS.to_owned() } else { fingerprint_of_file(path)? };
        Ok(Self::new(pictures, labels, fingerprint))
    }

    /// Takes labels of pictures. `fingerprint` tells them from other labels in the settings of reports.
    #[must_use]
    pub fn new(pictures: &'a PictureSet, labels: Labels, fingerprint: String) -> Self {
        let rows: Vec<usize> = (0..pictures.len()).filter(|&idx| labels.of(&pictures.name(idx)).is_some()).collect();
        Self { pictures, labels, fingerprint_of_labels: fingerprint, rows }
    }

    /// Returns the names of the attributes.
    #[must_use]
    pub fn attributes(&self) -> &[String] {
        &self.labels.names
    }

    /// Returns the number of pictures with labels.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns whether no picture has labels.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Fails if fewer than `min` pictures have labels.
    pub(super) fn check_count(&self, min: usize) -> Result<()> {
        if self.len() < min {
            let (count, root) = (self.len(), self.pictures.all().root().display());
            return Err(unsuitable(format!(
                "the number of images of {root} with labels is {count}, expected at least {min}"
            )));
        }
        Ok(())
    }

    pub(super) fn settings(&self) -> Result<Settings> {
        Ok(Settings::from([
            ("data".to_owned(), self.pictures.fingerprint()?.into()),
            ("count".to_owned(), self.rows.len().into()),
            ("labels".to_owned(), self.fingerprint_of_labels.clone().into()),
        ]))
    }

    /// Encodes the pictures with labels, `[N, D]` on the CPU.
    pub(super) fn encode(&self, evaluation: &Evaluation<'_>, model: &EvaluatedModel, folder: &Path) -> Result<Tensor> {
        select(&encode_all(evaluation, model, self.pictures, folder)?, &self.rows)
    }

    /// Encodes a shard of the pictures, for an evaluation of the whole.
    pub(super) fn encode_shard(
        &self,
        evaluation: &Evaluation<'_>,
        model: &EvaluatedModel,
        (folder, shard): (&Path, Shard),
    ) -> Result<()> {
        encode_shard(evaluation, model, self.pictures, (folder, shard))
    }

    /// Returns N labels for each of the named attributes.
    pub(super) fn present_as(&self, names: &[String]) -> Result<Vec<Vec<bool>>> {
        let of_name = |name: &String| {
            let known = self.labels.names.iter().position(|known| known == name);
            let attribute = known.ok_or_else(|| {
                let root = self.pictures.all().root().display();
                unsuitable(format!("the labels of {root} have no attribute {name}"))
            })?;
            let label = |&idx: &usize| {
                let row = self.labels.of(&self.pictures.name(idx));
                row.and_then(|row| row.get(attribute).copied()).unwrap_or(false)
            };
            Ok(self.rows.iter().map(label).collect())
        };
        names.iter().map(of_name).collect()
    }

    /// Encodes the pictures for a measure. `settings` are those of the measure besides model, pictures and labels.
    pub(super) fn codes(
        &self,
        evaluation: &Evaluation<'_>,
        model: &EvaluatedModel,
        (measure, mut settings): (&str, Settings),
    ) -> Result<LabeledCodes> {
        settings.extend(model.settings());
        settings.extend(self.settings()?);
        settings.insert("seed".to_owned(), evaluation.seed().into());
        Report::check_folder(evaluation, measure, &settings)?;
        let z_sem = self.encode(evaluation, model, evaluation.codes())?;
        let present = self.present_as(&self.labels.names)?;
        Ok(LabeledCodes { z_sem, names: self.labels.names.clone(), present, settings })
    }
}

/// Selects rows of codes on the CPU.
pub(super) fn select(z_sem: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let rows: Vec<u32> = rows.iter().map(|&row| u32::try_from(row).unwrap_or(u32::MAX)).collect();
    Ok(z_sem.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?)
}
