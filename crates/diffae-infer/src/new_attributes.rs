//! Addition of attributes to a model's classifier.

use candle_core::{DType, Device, Tensor};
use diffae_nets::{EditDirection, RawClassifierConfig};

use crate::error::{Error, Result, computing};
use crate::model_dir::{ClassifierParameters, ModelSource};
use diffae_data::{Overwrite, is_same_attribute};

/// Attributes to add to a model that may have others already.
#[derive(Debug, Clone)]
pub struct NewAttributes {
    /// Names of the attributes, one each.
    pub names: Vec<String>,
    /// Weights of the logits, `[A, D]`, f32.
    pub weight: Tensor,
    /// Biases of the logits, `[A]`, f32.
    pub bias: Tensor,
    /// Edit directions of the attributes.
    pub directions: NewDirections,
}

/// Edit directions of new attributes, one each.
#[derive(Debug, Clone)]
pub enum NewDirections {
    /// Weights of a classifier, `[A, D]`, f32; their lengths calibrate no full-edit strength.
    Weights(Tensor),
    /// Mean differences from codes without the attribute to codes with it.
    MeanDifferences(Vec<EditDirection>),
}

impl ModelSource {
    /// Returns the names of the model's attributes.
    #[must_use]
    pub fn attributes(&self) -> &[String] {
        self.config.classifier().map_or(&[], |classifier| &classifier.attributes)
    }

    /// Adds attributes after the model's own. With [`Overwrite::Replace`] an attribute whose name exists takes the
    /// place of the old one; the others keep their rows, directions and numbers.
    ///
    /// # Errors
    /// [`Error::AttributeExists`] with [`Overwrite::Refuse`]; [`Error::Mismatch`] if widths or counts do not fit;
    /// [`Error::Weights`] if two of the new ones have the same name.
    pub fn add_attributes(&mut self, new: NewAttributes, existing: Overwrite) -> Result<()> {
        let NewAttributes { names, weight, bias, directions } = new;
        if let (Overwrite::Refuse, Some(name)) = (existing, overlap(self.attributes(), &names)) {
            return Err(Error::AttributeExists { name });
        }
        let (directions, are_calibrated) = match directions {
            NewDirections::Weights(rows) => {
                let directions = EditDirection::fixed_all(&rows);
                (directions.map_err(|source| Error::Weights { path: self.path.clone(), source })?, false)
            }
            NewDirections::MeanDifferences(directions) => (directions, true),
        };
        let width = self.config.z_channels().unwrap_or(0);
        let fits = weight.dims() == [names.len(), width]
            && bias.dims() == [names.len()]
            && directions.len() == names.len()
            && directions.iter().all(|direction| direction.mean().elem_count() == width);
        if !fits {
            let expected = format!("{width} for each of {} attributes", names.len());
            let got = format!("{:?}, with {} directions", weight.dims(), directions.len());
            return Err(Error::Mismatch { what: "the width of new attributes".to_owned(), got, expected });
        }
        let old = self.config.classifier().map_or_else(
            || RawClassifierConfig { z_channels: width, attributes: vec![], local_units: 0, calibrated: vec![] },
            |classifier| (**classifier).clone(),
        );
        let count = old.attributes.len();
        // The number of the row that each attribute takes its values from: old ones first, then new ones.
        let (mut attributes, mut from) = (old.attributes.clone(), (0..count).collect::<Vec<_>>());
        let mut calibrated: Vec<usize> = vec![];
        for (row, name) in names.iter().enumerate() {
            // Another new one of the same name is not replaced, so that it is refused below.
            let place = (0..count).find(|&idx| from[idx] == idx && is_same_attribute(&attributes[idx], name));
            calibrated.extend(are_calibrated.then_some(place.unwrap_or(attributes.len())));
            if let Some(idx) = place {
                (attributes[idx], from[idx]) = (name.clone(), count + row);
            } else {
                attributes.push(name.clone());
                from.push(count + row);
            }
        }
        calibrated.extend(old.calibrated.iter().copied().filter(|&idx| from[idx] == idx));
        calibrated.sort_unstable();
        let new = ClassifierParameters { weight, bias, directions };
        let parameters = match &self.classifier {
            Some(old) => computing("adding attributes", old.joined(&new, &from))?,
            None => new,
        };
        self.set_classifier_parameters(RawClassifierConfig { attributes, calibrated, ..old }, parameters)
    }
}

impl ClassifierParameters {
    /// Joins the old rows and the new ones, in the order of `from`.
    fn joined(&self, new: &Self, from: &[usize]) -> candle_core::Result<Self> {
        let rows = from.iter().map(|&row| u32::try_from(row)).collect::<std::result::Result<Vec<_>, _>>();
        let rows = Tensor::new(rows.map_err(candle_core::Error::wrap)?, &Device::Cpu)?;
        let joined = |old: &Tensor, new: &Tensor| {
            Tensor::cat(&[old, &new.to_dtype(DType::F32)?.to_device(&Device::Cpu)?], 0)?.index_select(&rows, 0)
        };
        let all: Vec<&EditDirection> = self.directions.iter().chain(&new.directions).collect();
        Ok(Self {
            weight: joined(&self.weight, &new.weight)?,
            bias: joined(&self.bias, &new.bias)?,
            directions: from.iter().map(|&row| all[row].clone()).collect(),
        })
    }
}

/// Returns the first new name that exists already.
fn overlap(there: &[String], new: &[String]) -> Option<String> {
    there.iter().find(|name| new.iter().any(|new| is_same_attribute(name, new))).cloned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model_config::{ModelConfig, RawModelConfig, ZSemConfig};

    /// Creates a source with codes of width 2, whose networks are never used.
    fn source() -> ModelSource {
        let compact = diffae_nets::CompactConfig::new(diffae_nets::RawCompactConfig {
            image_size: 16,
            image_channels: 3,
            model_channels: 8,
            z_channels: 2,
            noise_channels: 4,
            noise_levels: 10,
        })
        .unwrap();
        let config = RawModelConfig::OneShot { networks: compact, z_sem: ZSemConfig::default(), window: None };
        let config = ModelConfig::new(config).unwrap();
        ModelSource::from_networks(config, BTreeMap::new())
    }

    fn mean_directions(source: &ModelSource) -> Vec<Vec<f32>> {
        let directions = source.classifier.iter().flat_map(|classifier| &classifier.directions);
        directions.map(|direction| direction.mean().to_vec1().unwrap()).collect()
    }

    fn rows(values: &[[f32; 2]]) -> Tensor {
        Tensor::from_vec(values.concat(), (values.len(), 2), &Device::Cpu).unwrap()
    }

    fn new(names: &[&str], values: &[[f32; 2]]) -> NewAttributes {
        NewAttributes {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            weight: rows(values),
            bias: Tensor::zeros(names.len(), DType::F32, &Device::Cpu).unwrap(),
            directions: NewDirections::Weights(rows(values)),
        }
    }

    #[test]
    fn new_attributes_come_after_those_that_are_there() {
        let mut source = source();
        source.add_attributes(new(&["Round", "Red"], &[[1., 0.], [0., 1.]]), Overwrite::Refuse).unwrap();
        let direction = EditDirection::fixed(Tensor::new(&[3f32, 4.], &Device::Cpu).unwrap()).unwrap();
        let directions = NewDirections::MeanDifferences(vec![direction]);
        let known = NewAttributes { directions, ..new(&["Old"], &[[5., 5.]]) };
        source.add_attributes(known, Overwrite::Refuse).unwrap();
        assert_eq!(source.attributes(), ["Round", "Red", "Old"]);
        let weight = &source.classifier.as_ref().unwrap().weight;
        assert_eq!(weight.to_vec2::<f32>().unwrap(), [[1., 0.], [0., 1.], [5., 5.]]);
        assert_eq!(mean_directions(&source), [[1., 0.], [0., 1.], [3., 4.]]);
        assert_eq!(source.config.classifier().unwrap().calibrated, [2]);
    }

    #[test]
    fn one_that_is_there_is_replaced_only_where_that_is_asked_for() {
        let mut source = source();
        let along = |x: f32| EditDirection::fixed(Tensor::new(&[x, 0.], &Device::Cpu).unwrap()).unwrap();
        let directions = NewDirections::MeanDifferences(vec![along(1.), along(2.)]);
        let both = NewAttributes { directions, ..new(&["Blond_Hair", "Red"], &[[1., 0.], [0., 1.]]) };
        source.add_attributes(both, Overwrite::Refuse).unwrap();
        let again = new(&["blond hair", "Tall"], &[[7., 7.], [8., 8.]]);
        let error = source.add_attributes(again.clone(), Overwrite::Refuse).unwrap_err();
        assert!(matches!(&error, Error::AttributeExists { name } if name == "Blond_Hair"), "{error}");
        source.add_attributes(again, Overwrite::Replace).unwrap();
        assert_eq!(source.attributes(), ["blond hair", "Red", "Tall"]);
        assert_eq!(mean_directions(&source), [[7., 7.], [2., 0.], [8., 8.]]);
        // Weights of a classifier do not say how far to go.
        assert_eq!(source.config.classifier().unwrap().calibrated, [1]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut source = source();
        source.add_attributes(new(&["Round"], &[[1., 0.]]), Overwrite::Refuse).unwrap();
        let twice = new(&["Red", "Red"], &[[1., 0.], [0., 1.]]);
        assert!(matches!(source.add_attributes(twice, Overwrite::Replace), Err(Error::Weights { .. })));
        let wide = Tensor::zeros((1, 3), DType::F32, &Device::Cpu).unwrap();
        let wide = NewAttributes { weight: wide, ..new(&["Tall"], &[[1., 0.]]) };
        assert!(matches!(source.add_attributes(wide, Overwrite::Refuse), Err(Error::Mismatch { .. })));
        assert_eq!(source.attributes(), ["Round"]);
    }
}
