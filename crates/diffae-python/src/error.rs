//! Errors, and the Python exceptions that they become.

use std::error::Error as StdError;

use diffae_infer::one_sentence;
use pyo3::exceptions::{PyException, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};

/// A result with this crate's [`Error`].
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// A failure of a call.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// An error of using a model.
    #[error(transparent)]
    Infer(#[from] diffae_infer::Error),
    /// An error of an evaluation.
    #[error(transparent)]
    Eval(#[from] diffae_eval::Error),
    /// An error of training.
    #[error(transparent)]
    Train(#[from] diffae_train::Error),
    /// An error of reading pictures or writing files.
    #[error(transparent)]
    Data(#[from] diffae_data::Error),
    /// An error of weights.
    #[error(transparent)]
    Nets(#[from] diffae_nets::Error),
    /// An error of a tensor operation.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// An argument of a call that cannot be used.
    #[error("{what} is {got}, expected {expected}")]
    Argument {
        /// The argument.
        what: String,
        /// The value.
        got: String,
        /// A description of the values that it may have.
        expected: String,
    },
    /// Arguments that do not go together.
    #[error("{problem}")]
    Conflict {
        /// The problem, in a sentence.
        problem: String,
    },
    /// An input that is not there: a path, or a device.
    #[error(transparent)]
    Absent(Box<Self>),
    /// The thread pool cannot be made.
    #[error("cannot start {num_threads} threads")]
    Threads {
        /// The number of threads.
        num_threads: usize,
        /// The cause.
        #[source]
        source: rayon::ThreadPoolBuildError,
    },
    /// An exception of a callback, or `KeyboardInterrupt`.
    #[error(transparent)]
    Python(#[from] PyErr),
}

impl Error {
    /// Returns the error of an argument.
    #[expect(clippy::needless_pass_by_value, reason = "callers format it on the spot")]
    pub(crate) fn argument(what: &str, got: impl ToString, expected: &str) -> Self {
        Self::Argument { what: what.to_owned(), got: got.to_string(), expected: expected.to_owned() }
    }

    /// Marks an error of reading inputs as [`Error::Absent`], if it is that.
    pub(crate) fn of_input(self) -> Self {
        let is_missing = |cause: &(dyn StdError + 'static)| {
            let of_file = cause.downcast_ref::<std::io::Error>();
            of_file.is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound)
        };
        if self.causes().any(is_missing) { Self::Absent(Box::new(self)) } else { self }
    }

    /// Returns whether the machine failed, not what was asked for: a file, the memory, the arithmetic of a training run.
    fn is_failure(&self) -> bool {
        use diffae_train::Error::Diverged;
        match self {
            Self::Absent(_) => false,
            Self::Threads { .. } | Self::Tensor(_) | Self::Train(Diverged { .. }) => true,
            _ => self.causes().any(|cause| cause.is::<std::io::Error>() || cause.is::<candle_core::Error>()),
        }
    }

    /// Returns the error and its causes.
    fn causes(&self) -> impl Iterator<Item = &(dyn StdError + 'static)> {
        std::iter::successors(Some(self as &(dyn StdError + 'static)), |&cause| cause.source())
    }

    /// Returns the sentence that the program would print, with arguments in place of its options where they differ.
    fn sentence(&self) -> String {
        match existing_file(self) {
            Some(path) => format!("{path} exists already; use overwrite=True to replace it"),
            None => one_sentence(self),
        }
    }
}

/// Returns the file that must not be replaced, if that is the cause.
fn existing_file(error: &Error) -> Option<String> {
    use diffae_data::Error::Exists;
    use diffae_eval::Error as Eval;
    use diffae_infer::Error as Infer;
    use diffae_train::Error as Train;
    match error {
        Error::Data(Exists { path })
        | Error::Infer(Infer::Data(Exists { path }))
        | Error::Eval(Eval::Data(Exists { path }) | Eval::Infer(Infer::Data(Exists { path })))
        | Error::Train(Train::Data(Exists { path }) | Train::Infer(Infer::Data(Exists { path }))) => {
            Some(path.display().to_string())
        }
        _ => None,
    }
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        let error = match error {
            Error::Python(raised) => return raised,
            other => other,
        };
        Python::attach(|py| match Exceptions::get(py) {
            Ok(exceptions) => {
                let class = if error.is_failure() { &exceptions.failure } else { &exceptions.invalid_input };
                Self::from_type(class.bind(py).clone(), error.sentence())
            }
            Err(failed) => failed,
        })
    }
}

/// The exception classes of the module.
pub(crate) struct Exceptions {
    /// `diffae.Error`, base of the others.
    pub(crate) error: Py<PyType>,
    /// `diffae.InvalidInput`, a `ValueError`, too.
    pub(crate) invalid_input: Py<PyType>,
    /// `diffae.Failure`, a `RuntimeError`, too.
    pub(crate) failure: Py<PyType>,
}

impl Exceptions {
    /// Returns the classes, which are made at the first call.
    pub(crate) fn get(py: Python<'_>) -> PyResult<&'static Self> {
        static CLASSES: PyOnceLock<Exceptions> = PyOnceLock::new();
        CLASSES.get_or_try_init(py, || {
            let error = class(py, "Error", "Base of all exceptions of diffae.", &[py.get_type::<PyException>()])?;
            let of = |name, doc, base| class(py, name, doc, &[error.bind(py).clone(), base]);
            Ok(Self {
                invalid_input: of(
                    "InvalidInput",
                    "What was given cannot be used: an array, a file, a name or a setting.",
                    py.get_type::<PyValueError>(),
                )?,
                failure: of(
                    "Failure",
                    "What was asked for could not be done: a file system, memory or arithmetic failed.",
                    py.get_type::<PyRuntimeError>(),
                )?,
                error,
            })
        })
    }
}

/// Makes an exception class of the module.
fn class(py: Python<'_>, name: &str, doc: &str, bases: &[Bound<'_, PyType>]) -> PyResult<Py<PyType>> {
    let namespace = PyDict::new(py);
    namespace.set_item("__module__", "diffae")?;
    namespace.set_item("__doc__", doc)?;
    let made = py.get_type::<PyType>().call1((name, PyTuple::new(py, bases)?, namespace))?;
    Ok(made.cast_into::<PyType>()?.unbind())
}
