//! Addition of attributes to a model's classifier.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use diffae_nets::weights::ClassifierCheckpoint;
use diffae_nets::{ClassifierConfig, RawClassifierConfig};

use crate::error::{Error, Result, computing};
use crate::local_direction::LocalDirection;
use crate::model_dir::{ClassifierTensors, ModelSource};
use diffae_data::Overwrite;

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
    Ways(Vec<LocalDirection>),
}

/// Returns whether two names are of the same attribute, without regard to case and to separators of words.
#[must_use]
pub fn is_same_attribute(one: &str, other: &str) -> bool {
    let plain = |name: &str| name.replace([' ', '-'], "_").to_ascii_lowercase();
    plain(one) == plain(other)
}

impl ModelSource {
    /// Returns the names of the model's attributes.
    #[must_use]
    pub fn attributes(&self) -> &[String] {
        self.config.classifier.as_ref().map_or(&[], |classifier| &classifier.attributes)
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
        let rows = match &directions {
            NewDirections::Weights(rows) => rows.clone(),
            NewDirections::Ways(ways) => {
                let rows: Vec<Tensor> = ways.iter().map(|way| way.direction.clone()).collect();
                computing("stacking directions", Tensor::stack(&rows, 0))?
            }
        };
        let rows = NewRows { names, weight, bias, directions: rows };
        let places = if let (Some(config), Some(old)) = (self.config.classifier.clone(), self.classifier.clone()) {
            self.extend(&config, &old, &rows)?
        } else {
            let NewRows { names, weight, bias, directions } = rows;
            let places = (0..names.len()).collect();
            let checkpoint = ClassifierCheckpoint { directions, weight, bias, latent_moments: None };
            self.set_classifier(checkpoint, Some(names))?;
            places
        };
        match directions {
            NewDirections::Weights(_) => Ok(()),
            NewDirections::Ways(ways) => {
                self.set_local_directions(&places.into_iter().zip(ways).collect::<BTreeMap<_, _>>())
            }
        }
    }

    /// Places new rows among the old ones, and returns the number of each new attribute.
    fn extend(&mut self, config: &ClassifierConfig, old: &ClassifierTensors, new: &NewRows) -> Result<Vec<usize>> {
        let width = config.z_channels;
        let expected = format!("{width} for each of {} attributes", new.names.len());
        for rows in [&new.weight, &new.directions] {
            if rows.dims() != [new.names.len(), width] {
                let (what, got) = ("the width of new attributes".to_owned(), format!("{:?}", rows.dims()));
                return Err(Error::Mismatch { what, got, expected });
            }
        }
        let count = config.attributes.len();
        // The number of the row that each attribute takes its values from: old ones first, then new ones.
        let (mut names, mut from) = (config.attributes.clone(), (0..count).collect::<Vec<_>>());
        let mut places = vec![];
        for (row, name) in new.names.iter().enumerate() {
            // Another new one of the same name is not replaced, so that it is refused below.
            let place = (0..count).find(|&idx| from[idx] == idx && is_same_attribute(&names[idx], name));
            places.push(place.unwrap_or(names.len()));
            if let Some(idx) = place {
                (names[idx], from[idx]) = (name.clone(), count + row);
            } else {
                names.push(name.clone());
                from.push(count + row);
            }
        }
        let known_ways = config.known_ways.iter().copied().filter(|&idx| from[idx] == idx).collect();
        let raw = RawClassifierConfig { z_channels: width, attributes: names, known_ways, ..(**config).clone() };
        let config = ClassifierConfig::new(raw).map_err(|source| Error::Weights { path: self.path.clone(), source })?;
        self.classifier = Some(computing("adding attributes", old.rows(new, &from))?);
        self.config.classifier = Some(config);
        Ok(places)
    }
}

/// New attributes with one row of directions each.
struct NewRows {
    names: Vec<String>,
    weight: Tensor,
    bias: Tensor,
    directions: Tensor,
}

impl ClassifierTensors {
    /// Joins the old rows and the new ones, in the order of `from`; new directions have no code-dependent part.
    fn rows(&self, new: &NewRows, from: &[usize]) -> candle_core::Result<Self> {
        let from = from.iter().map(|&row| u32::try_from(row)).collect::<std::result::Result<Vec<_>, _>>();
        let from = Tensor::new(from.map_err(candle_core::Error::wrap)?, &Device::Cpu)?;
        let count = new.names.len();
        let joined = |old: &Tensor, new: &Tensor| {
            Tensor::cat(&[old, &new.to_dtype(DType::F32)?.to_device(&Device::Cpu)?], 0)?.index_select(&from, 0)
        };
        let unbent = |old: &Tensor| {
            let shape = [&[count], old.dims().get(1..).unwrap_or_default()].concat();
            joined(old, &Tensor::zeros(shape, DType::F32, &Device::Cpu)?)
        };
        let local = match &self.local {
            Some(local) => {
                let [inputs, bias, hidden, hidden_bias, center, outputs] = local.each_ref().map(unbent);
                Some([inputs?, bias?, hidden?, hidden_bias?, center?, outputs?])
            }
            None => None,
        };
        Ok(Self {
            weight: joined(&self.weight, &new.weight)?,
            bias: joined(&self.bias, &new.bias)?,
            directions: joined(&self.directions, &new.directions)?,
            local,
        })
    }
}

/// Returns the first new name that exists already.
fn overlap(there: &[String], new: &[String]) -> Option<String> {
    there.iter().find(|name| new.iter().any(|new| is_same_attribute(name, new))).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_config::ModelConfig;

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
        let config = ModelConfig::one_shot(compact);
        ModelSource::from_networks(config, BTreeMap::new())
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
        let way = LocalDirection::fixed(&Tensor::new(&[3f32, 4.], &Device::Cpu).unwrap()).unwrap();
        let known = NewAttributes { directions: NewDirections::Ways(vec![way]), ..new(&["Old"], &[[5., 5.]]) };
        source.add_attributes(known, Overwrite::Refuse).unwrap();
        assert_eq!(source.attributes(), ["Round", "Red", "Old"]);
        let tensors = source.classifier.clone().unwrap();
        assert_eq!(tensors.weight.to_vec2::<f32>().unwrap(), [[1., 0.], [0., 1.], [5., 5.]]);
        assert_eq!(tensors.directions.to_vec2::<f32>().unwrap(), [[1., 0.], [0., 1.], [3., 4.]]);
        assert_eq!(source.config.classifier.as_ref().unwrap().known_ways, [2]);
    }

    #[test]
    fn one_that_is_there_is_replaced_only_where_that_is_asked_for() {
        let mut source = source();
        let way = |x: f32| LocalDirection::fixed(&Tensor::new(&[x, 0.], &Device::Cpu).unwrap()).unwrap();
        let ways = NewDirections::Ways(vec![way(1.), way(2.)]);
        let both = NewAttributes { directions: ways, ..new(&["Blond_Hair", "Red"], &[[1., 0.], [0., 1.]]) };
        source.add_attributes(both, Overwrite::Refuse).unwrap();
        let again = new(&["blond hair", "Tall"], &[[7., 7.], [8., 8.]]);
        let error = source.add_attributes(again.clone(), Overwrite::Refuse).unwrap_err();
        assert!(matches!(&error, Error::AttributeExists { name } if name == "Blond_Hair"), "{error}");
        source.add_attributes(again, Overwrite::Replace).unwrap();
        assert_eq!(source.attributes(), ["blond hair", "Red", "Tall"]);
        let tensors = source.classifier.clone().unwrap();
        assert_eq!(tensors.directions.to_vec2::<f32>().unwrap(), [[7., 7.], [2., 0.], [8., 8.]]);
        // Weights of a classifier do not say how far to go.
        assert_eq!(source.config.classifier.as_ref().unwrap().known_ways, [1]);
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
