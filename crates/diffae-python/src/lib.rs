//! The Python module `diffae`: Diffusion Autoencoders on `NumPy` arrays.
//!
//! `Model` of Python wraps a [`Pipeline`](diffae_infer::Pipeline), and `Codes` wrap [`Codes`](diffae_infer::Codes): what
//! they compute is what the program computes, to the bit. Work runs on threads of its own without the interpreter's lock;
//! the thread that called waits, hands progress to callbacks and looks for Ctrl-C.
//!
//! `diffae.pyi` beside this crate describes the module to type checkers, and `docs/python.md` of the repository to people.

mod arrays;
mod codes;
mod error;
mod evaluation;
mod logs;
mod model;
mod settings;
mod subject;
mod training;
mod work;

use pyo3::prelude::*;

/// Allocator that keeps memory, as the program's does: large tensors come and go at every step.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Encode, decode, edit, interpolate and sample pictures with Diffusion Autoencoders.
///
/// `diffae.load("toonheads")` returns the built-in model of cartoon faces, `diffae.load(path)` any other. Pictures are uint8
/// arrays [N, H, W, 3], codes float32 arrays; results are those of the program `diffae`, to the bit.
#[pymodule]
fn diffae(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    logs::install();
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    let exceptions = error::Exceptions::get(py)?;
    module.add("Error", exceptions.error.bind(py))?;
    module.add("InvalidInput", exceptions.invalid_input.bind(py))?;
    module.add("Failure", exceptions.failure.bind(py))?;
    module.add_class::<model::Model>()?;
    module.add_class::<codes::Codes>()?;
    module.add_function(wrap_pyfunction!(model::load, module)?)?;
    module.add_function(wrap_pyfunction!(model::_load_again, module)?)?;
    module.add_function(wrap_pyfunction!(codes::_codes_of_parts, module)?)?;
    module.add_function(wrap_pyfunction!(model::built_in_pictures, module)?)?;
    module.add_function(wrap_pyfunction!(training::train, module)?)?;
    module.add_function(wrap_pyfunction!(training::presets, module)?)?;
    Ok(())
}
