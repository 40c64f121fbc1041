//! Gradients by tensor: what a backward pass adds to, and an optimizer reads.

use std::collections::{HashMap, HashSet};

use candle_core::{Result, Tensor, TensorId, bail};

use crate::storage::sum;

/// Gradients of a loss, by the tensor that they are taken with respect to.
#[derive(Debug, Default)]
pub struct Gradients {
    pub(crate) by_id: HashMap<TensorId, Tensor>,
    /// Variables to whose gradients no node of an inner tape adds any more.
    pub(crate) complete: Vec<TensorId>,
    /// Variables whose gradients have been handed out.
    pub(crate) handed_out: HashSet<TensorId>,
}

impl Gradients {
    /// Returns the gradient with respect to `tensor`, if it has one.
    #[must_use]
    pub fn get(&self, tensor: &Tensor) -> Option<&Tensor> {
        self.by_id.get(&tensor.id())
    }

    /// Removes and returns the gradient with respect to `tensor`, if it has one.
    pub fn remove(&mut self, tensor: &Tensor) -> Option<Tensor> {
        self.by_id.remove(&tensor.id())
    }

    /// Sets the gradient with respect to the tensor of an id.
    pub fn insert(&mut self, id: TensorId, gradient: Tensor) {
        self.by_id.insert(id, gradient);
    }

    /// Adds other gradients to these; where there is none yet, the other one becomes it.
    ///
    /// # Errors
    /// If two gradients of a tensor do not fit together.
    pub fn absorb(&mut self, other: Self) -> Result<()> {
        other.by_id.into_iter().try_for_each(|(id, gradient)| self.add(id, gradient))
    }

    /// Adds a gradient to that of the tensor of an id, or makes it that.
    ///
    /// # Errors
    /// If the gradient of that tensor has been handed out, as a checkpoint that does not do the same each time can bring about,
    /// or the two do not fit together.
    pub(crate) fn add(&mut self, id: TensorId, gradient: Tensor) -> Result<()> {
        if self.handed_out.contains(&id) {
            bail!("a checkpoint has read a variable of shape {:?} in its second run alone", gradient.dims())
        }
        let total = match self.by_id.remove(&id) {
            Some(before) => sum(&before, &gradient)?,
            None => gradient,
        };
        self.by_id.insert(id, total);
        Ok(())
    }
}

impl IntoIterator for Gradients {
    type Item = (TensorId, Tensor);
    type IntoIter = std::collections::hash_map::IntoIter<TensorId, Tensor>;

    /// Returns all gradients, each with the id of the tensor that it is taken with respect to, in no particular order.
    fn into_iter(self) -> Self::IntoIter {
        self.by_id.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn absorbed_gradients_are_sums_and_the_first_is_moved() {
        let [a, b] = [[1f32, 2.], [3., 4.]].map(|values| Var::new(&values, &Device::Cpu).unwrap());
        let gradients = |of: &[(&Var, [f32; 2])]| {
            let mut gradients = Gradients::default();
            for (var, values) in of {
                gradients.insert(var.id(), Tensor::new(values, &Device::Cpu).unwrap());
            }
            gradients
        };
        let mut sum = gradients(&[(&a, [1., -0.])]);
        sum.absorb(gradients(&[(&a, [0.5, -0.]), (&b, [-0., 2.])])).unwrap();
        let numbers = |var: &Var| sum.get(var).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(numbers(&a), [1.5, 0.]);
        assert!(numbers(&b)[0].is_sign_negative());
    }
}
