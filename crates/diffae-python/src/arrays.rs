//! Between `NumPy` arrays and tensors.

use candle_core::{Device, Tensor};
use numpy::ndarray::{ArrayD, IxDyn};
use numpy::{
    Element, IntoPyArray, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::prelude::*;

use crate::error::{Error, Result};

/// Pictures of Python, `[N, H, W, 3]`, read where they are.
pub(crate) struct Pictures<'py> {
    array: PyReadonlyArrayDyn<'py, u8>,
}

impl<'py> Pictures<'py> {
    /// Shape and number type, for messages.
    const EXPECTED: &'static str = "a C-contiguous uint8 array [N, H, W, 3] with one picture or more";

    /// Takes an array for pictures.
    ///
    /// # Errors
    /// [`Error::Argument`] if number type, shape or layout are others, or there is no picture.
    pub(crate) fn new(object: &Bound<'py, PyAny>) -> Result<Self> {
        let array = array_of::<u8>("pictures", object, Self::EXPECTED)?;
        match array.shape() {
            [count, height, width, 3] if *count > 0 && *height > 0 && *width > 0 => Ok(Self { array }),
            other => Err(Error::argument("pictures", format!("an array of shape {other:?}"), Self::EXPECTED)),
        }
    }

    /// Returns the number of pictures.
    pub(crate) fn len(&self) -> usize {
        self.array.shape()[0]
    }

    /// Returns the pixels of all pictures with height and width.
    pub(crate) fn pixels(&self) -> Result<Pixels<'_>> {
        let bytes = self.array.as_slice().map_err(|error| Error::argument("pictures", error, Self::EXPECTED))?;
        Ok(Pixels { bytes, sides: [self.array.shape()[1], self.array.shape()[2]] })
    }
}

/// The pixels of pictures of one size.
#[derive(Clone, Copy)]
pub(crate) struct Pixels<'a> {
    bytes: &'a [u8],
    sides: [usize; 2],
}

impl<'a> Pixels<'a> {
    /// Returns the pixels of each picture of a range.
    pub(crate) fn of(self, range: std::ops::Range<usize>) -> impl Iterator<Item = &'a [u8]> {
        let size = self.sides[0] * self.sides[1] * 3;
        self.bytes[range.start * size..range.end * size].chunks_exact(size)
    }

    /// Returns height and width.
    pub(crate) fn sides(self) -> [usize; 2] {
        self.sides
    }
}

/// Converts an array to a tensor on the CPU, its one copy.
///
/// # Shapes
/// - `num_axes`: the numbers of axes that it may have.
/// # Errors
/// [`Error::Argument`] if number type, layout or number of axes are others, it is empty, or a value is not finite.
pub(crate) fn tensor_of(what: &str, object: &Bound<'_, PyAny>, num_axes: &[usize]) -> Result<Tensor> {
    let axes = num_axes.iter().map(usize::to_string).collect::<Vec<_>>().join(" or ");
    let expected = format!("a C-contiguous float32 array of {axes} axes, not empty");
    let array = array_of::<f32>(what, object, &expected)?;
    if !num_axes.contains(&array.shape().len()) || array.is_empty() {
        return Err(Error::argument(what, format!("an array of shape {:?}", array.shape()), &expected));
    }
    let values = array.as_slice().map_err(|error| Error::argument(what, error, &expected))?;
    if values.iter().any(|value| !value.is_finite()) {
        return Err(diffae_infer::Error::NotFinite { what: what.to_owned() }.into());
    }
    Ok(Tensor::from_slice(values, array.shape(), &Device::Cpu)?)
}

fn array_of<'py, T: Element>(
    what: &str,
    object: &Bound<'py, PyAny>,
    expected: &str,
) -> Result<PyReadonlyArrayDyn<'py, T>> {
    let Ok(untyped) = object.cast::<PyUntypedArray>() else {
        let kind = object.get_type().name()?.to_string();
        return Err(Error::argument(what, format!("of type {kind}"), expected));
    };
    let Ok(array) = object.cast::<PyArrayDyn<T>>() else {
        return Err(Error::argument(what, format!("an array of {}", untyped.dtype()), expected));
    };
    if !untyped.is_c_contiguous() {
        let problem = format!("{what} are not C-contiguous; pass numpy.ascontiguousarray of them");
        return Err(Error::Conflict { problem });
    }
    let borrowed = array.try_readonly();
    borrowed.map_err(|_is_borrowed| Error::argument(what, "an array that is being written to", expected))
}

/// Converts a tensor to numbers in memory, with its shape.
pub(crate) fn values_of(tensor: &Tensor) -> Result<(Vec<f32>, Vec<usize>)> {
    let tensor = tensor.to_device(&Device::Cpu)?;
    Ok((tensor.flatten_all()?.to_vec1::<f32>()?, tensor.dims().to_vec()))
}

/// Hands numbers over to a `NumPy` array.
///
/// # Errors
/// [`Error::Argument`] unless there are as many numbers as the shape has places.
pub(crate) fn array_from<T: Element>(py: Python<'_>, values: Vec<T>, shape: &[usize]) -> Result<Py<PyArrayDyn<T>>> {
    let count = values.len();
    let array = ArrayD::from_shape_vec(IxDyn(shape), values).map_err(|_shape| {
        Error::argument("the number of values", count, &format!("those of an array of shape {shape:?}"))
    })?;
    Ok(array.into_pyarray(py).unbind())
}

/// Hands numbers over to a `NumPy` array that cannot be written to, since they are kept elsewhere, too.
pub(crate) fn read_only_from(py: Python<'_>, (values, shape): (Vec<f32>, Vec<usize>)) -> Result<Py<PyArrayDyn<f32>>> {
    let array = array_from(py, values, &shape)?;
    let writable = pyo3::types::PyDict::new(py);
    writable.set_item("write", false)?;
    array.bind(py).call_method("setflags", (), Some(&writable))?;
    Ok(array)
}
