//! Residual blocks, plain and conditioned on timestep and `z_sem`.

use diffae_nets::ResPlan;

use crate::error::Result;
use crate::graph::{GraphBuilder, Value, signed};
use crate::layers::Map;

/// Conditions of all blocks of a network.
#[derive(Debug, Clone)]
pub(crate) struct Conditions {
    /// SiLU of the time embedding, `[N, E]`.
    pub(crate) time: Value,
    /// SiLU of `z_sem`, `[N, D]`, or of its part for each level; none in a plain DDPM.
    pub(crate) z_sem: Vec<Value>,
}

/// Conditions of one block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockConditions<'a> {
    time: &'a Value,
    z_sem: Option<&'a Value>,
}

impl Conditions {
    /// Returns the conditions of a block whose result has the resolution of `level`.
    pub(crate) fn at(&self, level: usize) -> BlockConditions<'_> {
        BlockConditions { time: &self.time, z_sem: self.z_sem.get(level).or(self.z_sem.first()) }
    }
}

impl GraphBuilder<'_> {
    /// The block of the encoder: `skip(x) + conv(resample(SiLU(GN(x))))`.
    pub(crate) fn plain_block(&mut self, path: &str, plan: ResPlan, x: &Map) -> Result<Map> {
        let h = self.stem(path, plan, x)?;
        let shortcut = self.shortcut(path, plan, x)?;
        Ok(h.with(self.add(path, &shortcut, &h.value)))
    }

    /// The block of the spatial autoencoder: `skip(x) + conv(SiLU(GN(conv(resample(SiLU(GN(x)))))))`.
    pub(crate) fn two_conv_block(&mut self, path: &str, plan: ResPlan, x: &Map) -> Result<Map> {
        let h = self.stem(path, plan, x)?;
        let norm = format!("{path}.out_layers.0");
        let h = self.group_norm(&norm, &h)?;
        let h = h.with(self.silu(&norm, &h.value));
        let h = self.conv(&format!("{path}.out_layers.3"), &h)?;
        let shortcut = self.shortcut(path, plan, x)?;
        Ok(h.with(self.add(path, &shortcut, &h.value)))
    }

    /// The block of the `UNet`: `skip(x) + conv(SiLU(modulate(GN(conv(resample(SiLU(GN(x))))), t, z_sem)))`.
    pub(crate) fn conditioned_block(
        &mut self,
        path: &str,
        plan: ResPlan,
        (x, conditions): (&Map, BlockConditions<'_>),
    ) -> Result<Map> {
        let h = self.stem(path, plan, x)?;
        let h = self.adaptive_norm(path, &h, conditions)?;
        let h = h.with(self.silu(path, &h.value));
        let h = self.conv(&format!("{path}.out_layers.3"), &h)?;
        let shortcut = self.shortcut(path, plan, x)?;
        Ok(h.with(self.add(path, &shortcut, &h.value)))
    }

    /// `conv(resample(SiLU(GN(x))))`.
    fn stem(&mut self, path: &str, plan: ResPlan, x: &Map) -> Result<Map> {
        let norm = format!("{path}.in_layers.0");
        let h = self.group_norm(&norm, x)?;
        let h = h.with(self.silu(&norm, &h.value));
        let h = self.resample(path, plan.resample, &h)?;
        self.conv(&format!("{path}.in_layers.2"), &h)
    }

    fn shortcut(&mut self, path: &str, plan: ResPlan, x: &Map) -> Result<Value> {
        let path = format!("{path}.skip_connection");
        let x = self.resample(&path, plan.resample, x)?;
        let has_conv = plan.in_channels != plan.out_channels;
        Ok(if has_conv { self.conv(&path, &x)?.value } else { x.value })
    }

    /// Adaptive group norm, `((x_hat * weight + bias) * (1 + scale_t) + shift_t) * (1 + scale_z)`, with the affine maps
    /// folded into one per picture and channel.
    fn adaptive_norm(&mut self, path: &str, x: &Map, conditions: BlockConditions<'_>) -> Result<Map> {
        let norm = format!("{path}.out_layers.0");
        let x_hat = self.standardize(&norm, x)?;
        let row = [1, x.channels];
        let weight = self.weight_as(&format!("{norm}.weight"), &row)?;
        let bias = self.weight_as(&format!("{norm}.bias"), &row)?;
        let time = format!("{path}.emb_layers.1");
        let projected = self.linear(&time, conditions.time)?;
        let [scale_t, shift_t] = self.split(&time, &projected, (1, [x.channels; 2]));
        let gain = self.one_plus(&time, &scale_t)?;
        let mut scale = self.node(&norm, "Mul", &[&gain, &weight], vec![]); // [N, C]
        let shifted = self.node(&norm, "Mul", &[&gain, &bias], vec![]);
        let mut shift = self.add(&norm, &shifted, &shift_t);
        if let Some(z_sem) = conditions.z_sem {
            let path = format!("{path}.cond_emb_layers.1");
            let scale_z = self.linear(&path, z_sem)?;
            let gain = self.one_plus(&path, &scale_z)?;
            scale = self.node(&norm, "Mul", &[&scale, &gain], vec![]);
            shift = self.node(&norm, "Mul", &[&shift, &gain], vec![]);
        }
        let [scale, shift] = [scale, shift].map(|value| {
            let pixel = self.integers(&norm, "pixel", &[0, signed(x.channels), 1, 1]);
            self.node(&norm, "Reshape", &[&value, &pixel], vec![])
        });
        let scaled = self.node(&norm, "Mul", &[&x_hat.value, &scale], vec![]);
        Ok(x.with(self.add(&norm, &scaled, &shift)))
    }
}
