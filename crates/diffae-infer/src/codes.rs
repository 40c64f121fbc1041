//! Files of codes: `z_sem` and `x_T` of many pictures, with their names and the model that made them.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use diffae_nets::weights::{SafetensorsFile, TensorSource, safetensors_bytes};

use crate::error::{Error, Result};
use crate::files::{Overwrite, write_atomically};
use crate::inputs::{file_names, read_tensor};

/// The codes of N pictures.
#[derive(Debug, Clone)]
pub struct Codes {
    /// `[N, D]`, f32; absent from a plain DDPM.
    pub z_sem: Option<Tensor>,
    /// `x_T`, `[N, C, H, W]`, f32; absent where only the semantic code was wanted.
    pub x_terminal: Option<Tensor>,
    /// One name a picture; as read, fit for file names and all different.
    pub names: Vec<String>,
    /// Fingerprint of the model.
    pub fingerprint: String,
}

impl Codes {
    /// Writes tensors `z_sem` and `x_T`, and the rest as text.
    ///
    /// # Errors
    /// [`Error::Exists`] or [`Error::Io`] if the file cannot be written.
    pub fn write(&self, path: &Path, text: &[(String, String)], overwrite: Overwrite) -> Result<()> {
        let mut tensors = BTreeMap::new();
        tensors.extend(self.z_sem.clone().map(|z_sem| ("z_sem".to_owned(), z_sem)));
        tensors.extend(self.x_terminal.clone().map(|x_terminal| ("x_T".to_owned(), x_terminal)));
        let mut text: BTreeMap<String, String> = text.iter().cloned().collect();
        let names = serde_json::to_string(&self.names);
        text.insert("names".to_owned(), names.map_err(|source| Error::Config { path: path.to_owned(), source })?);
        text.insert("fingerprint".to_owned(), self.fingerprint.clone());
        let bytes =
            safetensors_bytes(&tensors, &text).map_err(|source| Error::Weights { path: path.to_owned(), source })?;
        write_atomically(path, &bytes, overwrite)
    }

    /// Reads what [`Codes::write`] wrote. Codes of other programs may lack the text: they get numbered names and an
    /// empty fingerprint.
    ///
    /// # Errors
    /// [`Error::Tensors`] if there is neither `z_sem` nor `x_T`, or their counts differ; [`Error::Weights`] if the file is
    /// damaged or holds NaN.
    pub fn read(path: &Path) -> Result<Self> {
        let file = SafetensorsFile::open(path).map_err(|source| Error::Weights { path: path.to_owned(), source })?;
        let problem = |problem: String| Error::Tensors { path: path.to_owned(), problem };
        let read =
            |name: &str, num_axes: &[usize]| file.shape(name).map(|_| read_tensor(&file, name, num_axes)).transpose();
        // A one-shot autoencoder's noise is a vector.
        let (z_sem, x_terminal) = (read("z_sem", &[2])?, read("x_T", &[2, 4])?);
        let count = |tensor: &Option<Tensor>| tensor.as_ref().map(|tensor| tensor.dims()[0]);
        let count = match (count(&z_sem), count(&x_terminal)) {
            (Some(z_sem), Some(x_terminal)) if z_sem != x_terminal => {
                return Err(problem(format!("it holds {z_sem} codes z_sem, but {x_terminal} noise maps x_T")));
            }
            (Some(count), _) | (None, Some(count)) => count,
            (None, None) => return Err(problem("it holds neither z_sem nor x_T".to_owned())),
        };
        let text = file.text();
        let names = text.get("names").and_then(|json| serde_json::from_str::<Vec<String>>(json).ok());
        let names = match names {
            Some(names) if names.len() == count => names,
            _ => (0..count).map(|idx| format!("{idx:04}")).collect(),
        };
        let names = file_names(names);
        Ok(Self { z_sem, x_terminal, names, fingerprint: text.get("fingerprint").cloned().unwrap_or_default() })
    }
}
