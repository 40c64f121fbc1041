//! Codes of subjects: computed from pictures, or looked up.

use std::ops::Range;

use candle_core::Tensor;
use diffae_data::{Input, read_batch};

use super::Pipeline;
use crate::error::{Result, computing};
use crate::observer::Observer;
use crate::settings::PipelineSettings;
use crate::stochastic_code::CodeChain;
use crate::subjects::{CodesNeed, Encoded, Subjects};

impl Subjects {
    /// Returns the codes of some subjects: encodes pictures, and looks up codes. Beside others, samples go along the chain of the
    /// settings.
    ///
    /// # Errors
    /// As [`Input::read`] and [`Pipeline::encode_batch`].
    pub fn encode(
        &self,
        pipeline: &Pipeline,
        range: Range<usize>,
        need: CodesNeed,
        settings: &PipelineSettings,
        observer: &mut Observer<'_>,
    ) -> Result<Encoded> {
        let model = pipeline.model();
        let inputs: Vec<Input> = range.clone().filter_map(|idx| self.picture(idx).cloned()).collect();
        let computed = if inputs.is_empty() {
            Encoded { z_sem: None, x_terminal: None, chain: None, x_0: None }
        } else {
            let x_0 = read_batch(&inputs, model.picture_format(), model.device())?;
            pipeline.encode_batch(&x_0, need, settings, observer)?
        };
        let are_all_samples = self.are_all_samples();
        let (mut z_sems, mut x_terminals, mut chains, mut next) = (vec![], vec![], vec![], 0);
        for idx in range.clone() {
            let (codes, row) = match self.codes(idx) {
                None => {
                    next += 1;
                    ((computed.z_sem.as_ref(), computed.x_terminal.as_ref(), computed.chain.as_ref()), next - 1)
                }
                Some((codes, row)) => ((codes.z_sem.as_ref(), codes.x_terminal.as_ref(), codes.chain.as_ref()), row),
            };
            let of = |tensor: &Tensor| tensor.narrow(0, row, 1)?.to_device(model.device());
            z_sems.extend(computing("looking up z_sem", codes.0.map(of).transpose())?);
            if need != CodesNeed::ZSem {
                let stored = computing("looking up x_T", codes.1.map(of).transpose())?;
                let x_terminal = stored.map_or_else(|| model.zero_x_terminal(1), Ok)?;
                let is_beside_others = codes.2.is_some_and(|chain| chain.settings.is_sampled() && !are_all_samples);
                chains.push(if is_beside_others {
                    settings.chain().map(|chain| CodeChain::of_random(chain, &x_terminal)).transpose()?
                } else {
                    codes.2.map(|chain| chain.map(of)).transpose()?
                });
                x_terminals.push(x_terminal);
            }
        }
        let joined = |rows: Vec<Tensor>| (!rows.is_empty()).then(|| Tensor::cat(&rows, 0)).transpose();
        Ok(Encoded {
            z_sem: computing("joining z_sem", joined(z_sems))?,
            x_terminal: computing("joining x_T", joined(x_terminals))?,
            chain: CodeChain::joined(chains.iter().map(Option::as_ref))?,
            x_0: computed.x_0.filter(|_| inputs.len() == range.len()),
        })
    }
}
