//! Parameters and optimizer state that several processes share, or divide among them.

use std::collections::HashMap;

use candle_core::{Tensor, TensorId, Var};
use diffae_kernels::{Gradients, StatePart, block_squares};

use super::{Measured, Parameter, Parameters, Part};
use crate::collective::{Collective, bytes_of, floats_of, garbled};
use crate::error::{Error, Result};
use crate::sharding::{Destination, Shards};

impl Parameters {
    /// Computes what [`measured`](Self::measured) does where the optimizer state is divided: each process has the gradients of the
    /// elements that it holds.
    ///
    /// # Errors
    /// As [`Collective::exchange`].
    pub(crate) fn measured_in_shards(
        &self,
        (shards, collective): (&Shards, &mut dyn Collective),
        part: Part,
        (gradients, loss_scale): (&Gradients, f64),
    ) -> Result<Measured> {
        let mut own = HashMap::new();
        for (_, parameter) in self.trained(part) {
            if let Some(gradient) = gradients.get(&parameter.var) {
                own.insert(parameter.var.id(), block_squares(gradient)?);
            }
        }
        let squares = shards.squares(collective, &own)?;
        Ok(self.with_norms(part, squares, loss_scale))
    }

    /// Gives the values that each process has updated to all.
    ///
    /// # Errors
    /// As [`Collective::exchange`].
    pub(crate) fn share_updated(
        &mut self,
        (shards, collective): (&Shards, &mut dyn Collective),
        Measured { squares, .. }: &Measured,
    ) -> Result<()> {
        let vars: HashMap<TensorId, &Var> =
            self.by_name.values().map(|parameter| (parameter.var.id(), &parameter.var)).collect();
        let flat = |id: TensorId| vars.get(&id).ok_or_else(garbled)?.flatten_all().map_err(Error::from);
        let rank = collective.rank();
        shards.gather(
            (collective, Destination::All),
            &|id| squares.contains_key(&id),
            &mut |id, range| Ok(flat(id)?.narrow(0, range.start, range.len())?.to_vec1()?),
            &mut |owner, id, range, values| {
                // The values of this process are there already.
                if owner != rank {
                    let flat = flat(id)?;
                    flat.slice_set(&Tensor::new(values, flat.device())?, 0, range.start)?;
                }
                Ok(())
            },
        )
    }

    /// Keeps the optimizer state of the elements that this process holds alone.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn keep_held(&mut self, shards: &Shards) -> Result<()> {
        for parameter in self.by_name.values_mut() {
            let Some(held) = shards.held(parameter.var.id()) else { continue };
            // What has been gathered is whole; the rest is cut already.
            parameter.state.narrow(&held, parameter.var.elem_count())?;
            parameter.held = held;
        }
        Ok(())
    }

    /// Makes some of the optimizer state of all parameters whole, in all processes that hold some or in the first.
    ///
    /// # Errors
    /// As [`Collective::exchange`].
    pub(crate) fn gather(
        &mut self,
        (shards, collective): (&Shards, &mut dyn Collective),
        (destination, parts): (Destination, &[StatePart]),
    ) -> Result<()> {
        let by_id = |name: &String, parameter: &Parameter| (parameter.var.id(), name.clone());
        let names: HashMap<TensorId, String> =
            self.by_name.iter().map(|(name, parameter)| by_id(name, parameter)).collect();
        for part in parts {
            let mut whole: HashMap<TensorId, Vec<f32>> = HashMap::new();
            let of = |id: TensorId| names.get(&id).and_then(|name| self.by_name.get(name)).ok_or_else(garbled);
            shards.gather(
                (collective, destination),
                &|_| true,
                &mut |id, _| Ok(of(id)?.state.values(*part)?.into_owned()),
                &mut |_, id, range, values| {
                    let count = of(id)?.var.elem_count();
                    whole.entry(id).or_insert_with(|| vec![0.; count])[range].copy_from_slice(values);
                    Ok(())
                },
            )?;
            for parameter in self.by_name.values_mut() {
                if let Some(values) = whole.remove(&parameter.var.id()) {
                    parameter.state.set(*part, values)?;
                }
            }
        }
        Ok(())
    }

    /// Gives parameters and optimizer state of the first process to all, each of which keeps what it holds.
    ///
    /// # Errors
    /// As [`Collective::exchange`].
    pub(crate) fn share(&mut self, collective: &mut dyn Collective) -> Result<()> {
        let is_first = collective.rank() == 0;
        for Parameter { var, state, held, .. } in self.by_name.values_mut() {
            let mut own = vec![];
            if is_first {
                own.extend(bytes_of(&var.flatten_all()?.to_vec1::<f32>()?));
                for part in StatePart::ALL {
                    own.extend(bytes_of(&state.values(part)?));
                }
            }
            let message = collective.broadcast(&own)?;
            if is_first {
                continue;
            }
            let mut parts = message.chunks_exact(var.elem_count().max(1) * size_of::<f32>());
            if message.len() != (1 + StatePart::ALL.len()) * var.elem_count() * size_of::<f32>() {
                return Err(garbled());
            }
            let mut next = || floats_of(parts.next().unwrap_or_default());
            var.set(&Tensor::from_vec(next()?, var.shape(), var.device())?)?;
            for part in StatePart::ALL {
                state.set(part, next()?.get(held.clone()).ok_or_else(garbled)?.to_vec())?;
            }
        }
        Ok(())
    }
}
