//! Tensors in a checkpoint, as its pickle describes them.

use super::excerpt::excerpt;
use super::pickle_value::{Items, Node, NodeId, ValueArena};
use super::strided_view::StridedView;
use super::torch_dtype::TorchDtype;
use super::torch_error::TorchError;

/// Maximum number of dimensions of a tensor.
const MAX_RANK: usize = 16;
/// Maximum length of the name of a storage; PyTorch numbers them.
const MAX_STORAGE_KEY_BYTES: usize = 64;
/// Maximum number of times that a tensor is wrapped as a parameter; PyTorch does so once.
const MAX_WRAPPINGS: usize = 4;

/// A tensor by its name; its numbers stay in the file until they are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorRef {
    name: String,
    layout: Layout,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Layout {
    Strided(StridedView),
    Unsupported { class: String },
}

impl TensorRef {
    /// Returns the key under which the tensor was found.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns type, shape and place of the tensor.
    /// # Errors
    /// [`TorchError::UnsupportedTensor`] for a storage class that is not supported.
    pub fn view(&self) -> Result<&StridedView, TorchError> {
        match &self.layout {
            Layout::Strided(view) => Ok(view),
            Layout::Unsupported { class } => {
                Err(TorchError::UnsupportedTensor { tensor: excerpt(&self.name), class: class.clone() })
            }
        }
    }

    /// Reads the description of a tensor; `None` if the value is no tensor.
    /// # Errors
    /// [`TorchError::MalformedTensor`] for arguments that PyTorch would not take.
    /// # Source
    /// PyTorch's `torch/_utils.py`, functions `_rebuild_*`.
    pub(super) fn from_value(arena: &ValueArena, name: &str, value: NodeId) -> Result<Option<Self>, TorchError> {
        let Node::Object { callable, args, .. } = arena.node(unwrap_parameter(arena, value)) else {
            return Ok(None);
        };
        let (Some((module @ ("torch._utils" | "torch._tensor"), function)), Node::Tuple(args)) =
            (arena.global(callable), arena.node(args))
        else {
            return Ok(None);
        };
        let layout = match function {
            "_rebuild_tensor" | "_rebuild_tensor_v2" => Layout::from_args(arena, args)
                .map_err(|problem| TorchError::MalformedTensor { tensor: excerpt(name), problem })?,
            _ if function.starts_with("_rebuild") => {
                Layout::Unsupported { class: excerpt(format!("{module}.{function}")) }
            }
            _ => return Ok(None),
        };
        Ok(Some(Self { name: name.to_owned(), layout }))
    }
}

impl Layout {
    /// Reads the arguments of `_rebuild_tensor(storage, offset, shape, strides)` or, with `requires_grad`, hooks and
    /// sometimes metadata behind them, of `_rebuild_tensor_v2`. The error says which one is broken.
    fn from_args(arena: &ValueArena, args: Items) -> Result<Self, &'static str> {
        let num_checked_args = 8;
        let args: Vec<NodeId> = arena.items(args).take(num_checked_args).collect();
        let &[storage, offset, shape, strides, ref others @ ..] = args.as_slice() else {
            return Err("number of arguments");
        };
        match *others {
            [] | [_, _] => {}
            [_, _, metadata] if is_empty(arena, metadata) => {}
            [_, _, _] => {
                let class = "torch._utils._rebuild_tensor_v2 with metadata, such as for a negated view".to_owned();
                return Ok(Self::Unsupported { class });
            }
            _ => return Err("number of arguments"),
        }

        let storage = StorageId::from_value(arena, storage).ok_or("storage")?;
        let (shape, strides) = (lengths(arena, shape).ok_or("shape")?, lengths(arena, strides).ok_or("strides")?);
        if shape.len() != strides.len() {
            return Err("shape and strides differ in length");
        }
        let offset = length(arena, offset).ok_or("offset")?;
        let (module, class) = storage.class;
        Ok(match TorchDtype::from_storage_class(module, class) {
            Some(dtype) => Self::Strided(StridedView {
                dtype,
                shape,
                strides,
                offset,
                storage_key: storage.key.to_owned(),
                storage_numel: storage.numel,
            }),
            None => Self::Unsupported { class: excerpt(format!("{module}.{class}")) },
        })
    }
}

/// Description of a storage in the pickle.
pub(super) struct StorageId<'a> {
    pub(super) class: (&'a str, &'a str),
    pub(super) key: &'a str,
    pub(super) numel: usize,
}

impl<'a> StorageId<'a> {
    /// Reads the persistent id `("storage", class, key, device, numel)`; before PyTorch 1.6 with a None behind it.
    /// Protocol 0 writes it as text.
    pub(super) fn from_value(arena: &'a ValueArena, value: NodeId) -> Option<Self> {
        let Node::Persistent(id) = arena.node(value) else {
            return None;
        };
        let items = match arena.node(id) {
            Node::Tuple(items) => items,
            Node::Text(_) => return Self::from_text(arena.text(id)?),
            _ => return None,
        };
        let num_checked_items = 7;
        let items: Vec<NodeId> = arena.items(items).take(num_checked_items).collect();
        let (&[marker, class, key, _device, numel] | &[marker, class, key, _device, numel, NodeId::NONE]) =
            items.as_slice()
        else {
            return None;
        };
        if arena.text(marker) != Some("storage") {
            return None;
        }
        let key = arena.text(key).filter(|key| key.len() <= MAX_STORAGE_KEY_BYTES)?;
        Some(Self { class: arena.global(class)?, key, numel: length(arena, numel)? })
    }

    /// Reads the persistent id from the text that protocol 0 writes for it:
    /// `('storage', <class 'torch.FloatStorage'>, '0', 'cpu', 6)`.
    fn from_text(text: &'a str) -> Option<Self> {
        let mut items = text.strip_prefix('(')?.strip_suffix(')')?.split(", ");
        let (marker, class, key, _device, numel) =
            (items.next()?, items.next()?, items.next()?, items.next()?, items.next()?);
        let is_whole = matches!((items.next(), items.next()), (None | Some("None"), None));
        let class = class.strip_prefix("<class '")?.strip_suffix("'>")?.rsplit_once('.')?;
        let key = key.strip_prefix('\'')?.strip_suffix('\'')?;
        let is_storage = marker == "'storage'" && is_whole && key.len() <= MAX_STORAGE_KEY_BYTES;
        is_storage.then_some(Self { class, key, numel: numel.parse().ok()? })
    }
}

/// Returns the tensor in a parameter, or the value itself.
fn unwrap_parameter(arena: &ValueArena, mut value: NodeId) -> NodeId {
    for _ in 0..MAX_WRAPPINGS {
        let Node::Object { callable, args, .. } = arena.node(value) else {
            break;
        };
        let is_parameter = matches!(
            arena.global(callable),
            Some(("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state"))
        );
        match arena.node(args) {
            Node::Tuple(args) if is_parameter => match arena.split_first(args) {
                Some((data, _)) => value = data,
                None => break,
            },
            _ => break,
        }
    }
    value
}

/// Returns whether a value is None or a dict without entries.
fn is_empty(arena: &ValueArena, value: NodeId) -> bool {
    value == NodeId::NONE || arena.dict_entries(value).is_some_and(|mut entries| entries.next().is_none())
}

/// Reads a tuple of lengths, also as a `torch.Size`; `None` if it is none or longer than [`MAX_RANK`].
pub(super) fn lengths(arena: &ValueArena, value: NodeId) -> Option<Vec<usize>> {
    let tuple = match arena.node(value) {
        Node::Object { callable, args, .. } if arena.global(callable) == Some(("torch", "Size")) => {
            arena.single_item(args)?
        }
        _ => value,
    };
    let Node::Tuple(items) = arena.node(tuple) else {
        return None;
    };
    let lengths: Option<Vec<usize>> = arena.items(items).take(MAX_RANK + 1).map(|item| length(arena, item)).collect();
    lengths.filter(|lengths| lengths.len() <= MAX_RANK)
}

fn length(arena: &ValueArena, value: NodeId) -> Option<usize> {
    match arena.node(value) {
        Node::Int(number) => usize::try_from(number).ok(),
        _ => None,
    }
}
