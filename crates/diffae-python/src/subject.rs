//! Pictures, or codes in their place.

use std::ops::{ControlFlow, Range};

use candle_core::Tensor;
use diffae_data::tensor_from_pixels;
use diffae_infer::{CallEvent, CodesNeed, Encoded, Pipeline, PipelineSettings};
use pyo3::prelude::*;

use crate::arrays::{Pictures, Pixels};
use crate::codes::Codes;
use crate::error::Result;

/// The subject of a method: an array of pictures, or codes.
pub(crate) enum Subject<'py> {
    /// Pictures, to be encoded first.
    Pictures(Pictures<'py>),
    /// Codes.
    Codes(Bound<'py, Codes>),
}

impl<'py> Subject<'py> {
    /// Takes codes for codes, and everything else for pictures; codes must be of the model.
    pub(crate) fn new(object: &Bound<'py, PyAny>, pipeline: &Pipeline) -> Result<Self> {
        match object.cast::<Codes>() {
            Ok(codes) => {
                codes.get().check(pipeline.model())?;
                Ok(Self::Codes(codes.clone()))
            }
            Err(_) => Ok(Self::Pictures(Pictures::new(object)?)),
        }
    }

    /// Returns the number of pictures.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Pictures(pictures) => pictures.len(),
            Self::Codes(codes) => codes.get().inner().len(),
        }
    }
}

/// Pictures to encode, with everything that decides how.
#[derive(Clone, Copy)]
pub(crate) struct Encoding<'a> {
    /// The model.
    pub(crate) pipeline: &'a Pipeline,
    /// The pictures.
    pub(crate) pixels: Pixels<'a>,
    /// The number of pictures.
    pub(crate) count: usize,
    /// The codes that are wanted.
    pub(crate) need: CodesNeed,
    /// The settings.
    pub(crate) settings: &'a PipelineSettings,
    /// Whether pictures outside of the model's domain are looked for.
    pub(crate) checks_domain: bool,
}

impl Encoding<'_> {
    /// Encodes the pictures batch by batch; with a warning, if some are outside of the model's domain.
    pub(crate) fn run(
        self,
        names: &[String],
        observer: &mut (dyn FnMut(&CallEvent<'_>) -> ControlFlow<()> + '_),
    ) -> Result<(diffae_infer::Codes, Option<String>)> {
        let Self { pipeline, count, need, settings, checks_domain, .. } = self;
        let (model, mut parts, mut warning) = (pipeline.model(), vec![], None);
        for batch in pipeline.batches(0..count, settings) {
            let x_0 = self.read(batch.clone())?;
            let Encoded { z_sem, x_terminal, chain, .. } = pipeline.encode_batch(&x_0, need, settings, observer)?;
            if let (true, None, Some(z_sem)) = (checks_domain, &warning, &z_sem) {
                warning = model.domain_warning(&names[batch.clone()], &x_0, z_sem)?;
            }
            let (names, fingerprint) = (names[batch].to_vec(), model.fingerprint().to_owned());
            parts.push(diffae_infer::Codes { z_sem, x_terminal, chain, names, fingerprint });
        }
        Ok((diffae_infer::Codes::joined(&parts)?, warning))
    }

    fn read(self, range: Range<usize>) -> Result<Tensor> {
        let model = self.pipeline.model();
        let format = model.picture_format();
        let sides = self.pixels.sides();
        let read = |pixels: &[u8]| Ok(tensor_from_pixels(pixels, sides, format)?);
        let pictures = self.pixels.of(range).map(read).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::stack(&pictures, 0)?.to_device(model.device())?)
    }
}

/// Returns the codes without noise, of which random `x_T` are drawn while they are decoded: each `z_sem` `count` times.
pub(crate) fn repeated(codes: &diffae_infer::Codes, count: usize) -> Result<diffae_infer::Codes> {
    let missing = diffae_infer::Error::MissingPart { part: "z_sem", hint: "nothing is to be varied" };
    let z_sem = codes.z_sem.as_ref().ok_or(missing)?;
    let (num_codes, width) = z_sem.dims2()?;
    let z_sem = z_sem.unsqueeze(1)?.broadcast_as((num_codes, count, width))?; // [N, count, D]
    let z_sem = z_sem.contiguous()?.reshape((num_codes * count, width))?;
    let names = codes.names.iter().flat_map(|name| std::iter::repeat_n(name.clone(), count)).collect();
    Ok(diffae_infer::Codes { z_sem: Some(z_sem), x_terminal: None, chain: None, names, ..codes.clone() })
}
