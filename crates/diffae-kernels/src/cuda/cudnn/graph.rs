//! Convolutions as graphs of one operation.

use std::ffi::c_int;
use std::sync::Arc;

use candle_core::Result;

use super::descriptor::{ConvolutionMode, DataType, Descriptor, Kind};
use super::library::Library;
use super::plan::Target;
use crate::cuda::convolution::{ALIGNMENT, Convolution, Direction};
use crate::cuda::plan::Element;

/// Numbers of attributes in cuDNN 9.
mod names {
    use std::ffi::c_int;

    pub(super) const COMPUTE_TYPE: c_int = 100;
    pub(super) const MODE: c_int = 101;
    pub(super) const DILATIONS: c_int = 102;
    pub(super) const STRIDES: c_int = 103;
    pub(super) const POST_PADDINGS: c_int = 104;
    pub(super) const PRE_PADDINGS: c_int = 105;
    pub(super) const SPATIAL_DIMS: c_int = 106;
    pub(super) const GRAPH_HANDLE: c_int = 800;
    pub(super) const GRAPH_OPERATIONS: c_int = 801;
    pub(super) const TENSOR_ALIGNMENT: c_int = 900;
    pub(super) const TENSOR_TYPE: c_int = 901;
    pub(super) const TENSOR_DIMENSIONS: c_int = 902;
    pub(super) const TENSOR_STRIDES: c_int = 903;
    pub(super) const TENSOR_ID: c_int = 906;
}

/// Number of f32 among the number types, in which all sums are.
const F32: DataType = DataType(0);
/// Mode of a convolution that does not turn its kernel.
const CROSS_CORRELATION: ConvolutionMode = ConvolutionMode(1);
impl Direction {
    fn kind(self) -> Kind {
        match self {
            Self::Forward => Kind::Forward,
            Self::Input => Kind::InputGradient,
            Self::Weight => Kind::WeightGradient,
        }
    }

    /// Returns the numbers of the attributes alpha, beta, convolution, input, weight and output.
    fn attributes(self) -> [c_int; 6] {
        match self {
            Self::Forward => [700, 701, 702, 704, 703, 705],
            Self::Input => [706, 707, 708, 710, 709, 711],
            Self::Weight => [712, 713, 714, 716, 715, 717],
        }
    }
}

impl Convolution {
    /// Identities of input, weight and output in plans.
    pub(super) const IDS: [i64; 3] = [1, 2, 3];

    /// Returns the graph of the operation, with the descriptors that it refers to after it.
    ///
    /// # Errors
    /// If cuDNN does not know such a convolution.
    pub(super) fn graph(&self, library: &Arc<Library>, target: &Target<'_>) -> Result<Vec<Descriptor>> {
        let mut tensors = Vec::with_capacity(3);
        for (id, dims) in Self::IDS.into_iter().zip(self.dims()) {
            tensors.push(self.tensor(library, id, dims)?);
        }
        let convolution = self.geometry(library)?;
        let [alpha, beta, geometry, input, weight, output] = self.direction.attributes();
        let mut operation = Descriptor::new(library, self.direction.kind())?
            .with(alpha, &[1f32])?
            .with(beta, &[0f32])?
            .with_descriptors(geometry, &[&convolution])?;
        for (name, tensor) in [input, weight, output].into_iter().zip(&tensors) {
            operation = operation.with_descriptors(name, &[tensor])?;
        }
        let operation = operation.finalized()?;
        let graph = Descriptor::new(library, Kind::OperationGraph)?;
        let graph = graph.with_descriptors(names::GRAPH_OPERATIONS, &[&operation])?;
        let graph = match target.handle() {
            Some(handle) => graph.with_handle(names::GRAPH_HANDLE, handle)?,
            None => graph,
        };
        Ok([graph.finalized()?, operation, convolution].into_iter().chain(tensors).collect())
    }

    fn tensor(&self, library: &Arc<Library>, id: i64, dims: [usize; 4]) -> Result<Descriptor> {
        let dims = dims.map(signed);
        let [_, channels, height, width] = dims;
        let data_type = match self.element {
            Element::F32 => F32,
            Element::F16 => DataType(2),
            Element::Bf16 => DataType(9),
        };
        Descriptor::new(library, Kind::Tensor)?
            .with(names::TENSOR_TYPE, &[data_type])?
            .with(names::TENSOR_DIMENSIONS, &dims)?
            .with(names::TENSOR_STRIDES, &[channels * height * width, height * width, width, 1])?
            .with(names::TENSOR_ALIGNMENT, &[ALIGNMENT.cast_signed()])?
            .with(names::TENSOR_ID, &[id])?
            .finalized()
    }

    fn geometry(&self, library: &Arc<Library>) -> Result<Descriptor> {
        let padding = [signed(self.kernel >> 1); 2];
        Descriptor::new(library, Kind::Convolution)?
            .with(names::COMPUTE_TYPE, &[F32])?
            .with(names::MODE, &[CROSS_CORRELATION])?
            .with(names::DILATIONS, &[1i64; 2])?
            .with(names::STRIDES, &[1i64; 2])?
            .with(names::POST_PADDINGS, &padding)?
            .with(names::PRE_PADDINGS, &padding)?
            .with(names::SPATIAL_DIMS, &[2i64])?
            .finalized()
    }
}

fn signed(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
