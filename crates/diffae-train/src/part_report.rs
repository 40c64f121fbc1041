//! Reports of micro-batches: losses and statistics, which every process needs of all.

use candle_core::{Device, Tensor};
use diffae_nets::BatchMoments;

use crate::collective::{Collective, bytes_of, count_of, floats_of, garbled};
use crate::error::{Error, Result};
use crate::reduce::Share;

/// Losses and statistics of a micro-batch.
#[derive(Debug, Clone, Default)]
pub(crate) struct PartReport {
    /// Loss of the model, as a share of that of the step.
    pub(crate) loss: f64,
    /// Loss of the discriminator, likewise; `None` if nothing was compared.
    pub(crate) loss_discriminator: Option<f64>,
    /// Bytes of activations saved for the backward pass of the model.
    pub(crate) activation_bytes: usize,
    /// Statistics of batch norms, in the order of the network.
    pub(crate) moments: Vec<BatchMoments>,
}

/// First byte of the message of a process whose computation has failed.
const FAILED: u8 = 1;
const DONE: u8 = 0;

impl PartReport {
    /// Gathers the reports of all micro-batches, by their number.
    ///
    /// # Errors
    /// That of `own`; [`Error::Elsewhere`] if another process has failed; as [`Collective::exchange`].
    pub(crate) fn gather(collective: &mut dyn Collective, share: Share, own: Result<Vec<Self>>) -> Result<Vec<Self>> {
        let message = match &own {
            Ok(reports) => reports.iter().try_fold(vec![DONE], |mut message, report| {
                report.write(&mut message)?;
                Ok::<_, Error>(message)
            })?,
            Err(_) => vec![FAILED],
        };
        let received = collective.gather(share.count, &message)?;
        let own = own?;
        let paths: Vec<&str> = own
            .first()
            .map(|report| report.moments.iter().map(|moments| moments.path.as_str()).collect())
            .unwrap_or_default();
        let mut all: Vec<Self> = vec![Self::default(); share.num_parts];
        for (rank, message) in received.iter().enumerate() {
            let Some((&DONE, mut rest)) = message.split_first() else {
                return Err(Error::Elsewhere { rank, size: collective.size(), problem: String::new() });
            };
            for part in (Share { rank, ..share }).parts() {
                all[part] = Self::read(&mut rest, &paths)?;
            }
        }
        Ok(all)
    }

    fn write(&self, message: &mut Vec<u8>) -> Result<()> {
        message.extend(self.loss.to_le_bytes());
        message.extend([u8::from(self.loss_discriminator.is_some())]);
        message.extend(self.loss_discriminator.unwrap_or(0.).to_le_bytes());
        message.extend((self.activation_bytes as u64).to_le_bytes());
        for moments in &self.moments {
            for tensor in [&moments.mean, &moments.variance] {
                let values = tensor.to_vec1::<f32>()?;
                message.extend((values.len() as u64).to_le_bytes());
                message.extend(bytes_of(&values));
            }
        }
        Ok(())
    }

    fn read(rest: &mut &[u8], paths: &[&str]) -> Result<Self> {
        let loss = f64::from_le_bytes(take(rest)?);
        let [is_compared] = take(rest)?;
        let loss_discriminator = f64::from_le_bytes(take(rest)?);
        let activation_bytes = length(rest)?;
        let mut row = || -> Result<Tensor> {
            let len = length(rest)?;
            let (values, after) = rest.split_at_checked(len.saturating_mul(size_of::<f32>())).ok_or_else(garbled)?;
            *rest = after;
            Ok(Tensor::from_vec(floats_of(values)?, len, &Device::Cpu)?)
        };
        let moments = |path: &&str| Ok(BatchMoments { path: (*path).to_owned(), mean: row()?, variance: row()? });
        let moments = paths.iter().map(moments).collect::<Result<_>>()?;
        let loss_discriminator = (is_compared == 1).then_some(loss_discriminator);
        Ok(Self { loss, loss_discriminator, activation_bytes, moments })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N]> {
    let (first, after) = rest.split_first_chunk::<N>().ok_or_else(garbled)?;
    *rest = after;
    Ok(*first)
}

fn length(rest: &mut &[u8]) -> Result<usize> {
    count_of(take(rest)?)
}
