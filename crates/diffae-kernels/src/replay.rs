//! Computations that a card starts as a whole.

use candle_core::{DType, Device, Result, Tensor, TensorId, bail};

use crate::cuda::{Recording, cudnn_problem};
use crate::dispatch::{CudaKernels, KernelSet, cuda_kernels, kernel_set};

/// A computation on fixed shapes, as a function of its inputs.
pub type Computation = Box<dyn Fn(&[Tensor]) -> Result<Tensor> + Send>;

/// A computation on fixed shapes that is recorded once, and started again on other values of its inputs.
///
/// On a card, all of its kernels are started by one call (a CUDA graph). On the composed backend on the CPU, where it serves to
/// try the code around it, it computes as it would without.
pub struct Replay {
    /// Memory of the inputs.
    inputs: Vec<Tensor>,
    /// The tensors whose values that memory holds.
    held: Vec<TensorId>,
    /// Memory of the result.
    output: Tensor,
    recording: Option<Recording>,
    /// Keeps the tensors that the computation reads besides its inputs, which a recording knows by their addresses.
    computation: Computation,
}

impl std::fmt::Debug for Replay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shapes: Vec<&[usize]> = self.inputs.iter().map(Tensor::dims).collect();
        f.debug_struct("Replay").field("inputs", &shapes).field("output", &self.output.dims()).finish_non_exhaustive()
    }
}

impl Replay {
    /// Returns whether computations on a device in a number type are to be recorded.
    ///
    /// Only those can be whose operations all have kernels for cards, which read nothing from the host; so not where cuDNN is missing.
    #[must_use]
    pub fn is_wanted(device: &Device, dtype: DType) -> bool {
        let has_kernels = match device {
            Device::Cuda(_) => [DType::F32, DType::BF16].contains(&dtype),
            Device::Cpu => kernel_set() == KernelSet::Candle,
            Device::Metal(_) => false,
        };
        has_kernels && cuda_kernels() == CudaKernels::Graphs && cudnn_problem(device).is_none()
    }

    /// Computes once, and records the computation for inputs of the same shapes.
    ///
    /// # Errors
    /// That of the computation; if it cannot be recorded, because it reads from the host or waits for the card.
    pub fn record(inputs: &[&Tensor], computation: Computation) -> Result<Self> {
        let copies = inputs.iter().map(|input| input.force_contiguous()).collect::<Result<Vec<_>>>()?;
        let output = computation(&copies)?.force_contiguous()?;
        let recording =
            Recording::of(output.device(), || output.slice_set(&computation(&copies)?.contiguous()?, 0, 0))?;
        let held = inputs.iter().map(|input| input.id()).collect();
        Ok(Self { inputs: copies, held, output, recording, computation })
    }

    /// Computes on other values.
    ///
    /// An input that is the very tensor of the call before is not copied again.
    ///
    /// # Shapes
    /// - `inputs`: those of the recording; result: that of the computation.
    /// # Errors
    /// If shapes differ, or the card fails.
    pub fn run(&mut self, inputs: &[&Tensor]) -> Result<Tensor> {
        if inputs.len() != self.inputs.len() {
            bail!("{} inputs of a computation on {}", inputs.len(), self.inputs.len())
        }
        for ((memory, held), input) in self.inputs.iter().zip(&mut self.held).zip(inputs) {
            if memory.dims() != input.dims() {
                bail!("an input of shape {:?} of a computation on {:?}", input.dims(), memory.dims())
            }
            if *held != input.id() {
                memory.slice_set(&input.contiguous()?, 0, 0)?;
                *held = input.id();
            }
        }
        match &self.recording {
            Some(recording) => recording.start()?,
            None => self.output.slice_set(&(self.computation)(&self.inputs)?.contiguous()?, 0, 0)?,
        }
        self.output.copy()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_computes_on_the_values_it_is_given() {
        let numbers = |values: [f32; 3]| Tensor::new(&values, &Device::Cpu).unwrap();
        let (a, b) = (numbers([1., 2., 3.]), numbers([10., 20., 30.]));
        let computation: Computation = Box::new(|inputs| &inputs[0] + &inputs[1]);
        let mut replay = Replay::record(&[&a, &b], computation).unwrap();
        let sum = |replay: &mut Replay, a: &Tensor, b: &Tensor| replay.run(&[a, b]).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(sum(&mut replay, &a, &b), [11., 22., 33.]);
        let other = numbers([100., 200., 300.]);
        let first = replay.run(&[&other, &b]).unwrap();
        assert_eq!(sum(&mut replay, &a, &other), [101., 202., 303.]);
        assert_eq!(first.to_vec1::<f32>().unwrap(), [110., 220., 330.], "a result is not overwritten by the next");
        // Values that are not of this shape are refused, and leave the replay as it was.
        let wrong = Tensor::zeros((3, 1), DType::F32, &Device::Cpu).unwrap();
        assert!(replay.run(&[&wrong, &b]).unwrap_err().to_string().contains("shape [3, 1]"));
        assert!(replay.run(&[&a]).unwrap_err().to_string().contains("1 inputs"));
        assert_eq!(sum(&mut replay, &a, &b), [11., 22., 33.]);
    }
}
