//! Values of a pickle, as a graph in one arena.
//!
//! Values refer to each other by index, so that what is shared stays shared, a value may contain itself, and
//! nothing recurses when the arena is built, printed or dropped. A node has 16 bytes and an element of a container
//! 8, which bounds the memory of a pickle by a small multiple of its length.

use std::num::NonZeroU32;

use super::chunked_vec::ChunkedVec;

/// Index of a node in its [`ValueArena`]; counts from one so that an `Option` takes no space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeId(NonZeroU32);

impl NodeId {
    /// Id of `None`, in every arena.
    pub(super) const NONE: Self = Self(NonZeroU32::MIN);
    /// Id of `True`, in every arena.
    pub(super) const TRUE: Self = Self(NonZeroU32::MIN.saturating_add(1));
    /// Id of `False`, in every arena.
    pub(super) const FALSE: Self = Self(NonZeroU32::MIN.saturating_add(2));
    /// Id of `()`, in every arena.
    pub(super) const EMPTY_TUPLE: Self = Self(NonZeroU32::MIN.saturating_add(3));

    /// Nodes with these four ids.
    const FIRST_NODES: [Node; 4] = [Node::None, Node::Bool(true), Node::Bool(false), Node::Tuple(Items::EMPTY)];
}

/// One value of a pickle.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits; its value is not kept.
    HugeInt,
    Float(f64),
    Text(TextSpan),
    /// Bytes, or a string that is not UTF-8; only their number is kept.
    Bytes(u32),
    Tuple(Items),
    List(Items),
    Set(Items),
    /// A dict; keys and values alternate.
    Dict(Items),
    /// A class or function by name; never looked up.
    Global {
        module: NodeId,
        name: NodeId,
    },
    /// The result of `callable(*args)`; never called. `items` is the list, set or dict that was filled in later.
    Object {
        callable: NodeId,
        args: NodeId,
        items: Option<NodeId>,
    },
    /// An object that lives outside of the pickle, by its id.
    Persistent(NodeId),
}

/// A range in the text of an arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TextSpan {
    start: u32,
    len: u32,
}

/// The elements of a container: a chain of cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Items {
    ends: Option<(CellId, CellId)>,
}

impl Items {
    pub(super) const EMPTY: Self = Self { ends: None };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CellId(NonZeroU32);

/// Element of a container, and the place of the next one.
#[derive(Debug, Clone, Copy)]
struct Cell {
    value: NodeId,
    next: Option<CellId>,
}

/// Error of an index that does not fit: the arena holds more than `u32` can count.
#[derive(Debug, Clone, Copy)]
pub(super) struct ArenaFull;

/// All values of one pickle.
#[derive(Debug)]
pub(super) struct ValueArena {
    nodes: ChunkedVec<Node>,
    cells: ChunkedVec<Cell>,
    text: String,
}

impl ValueArena {
    /// Returns an arena that holds only the constants of [`NodeId`].
    pub(super) fn new() -> Self {
        let mut nodes = ChunkedVec::new();
        for node in NodeId::FIRST_NODES {
            nodes.push(node);
        }
        Self { nodes, cells: ChunkedVec::new(), text: String::new() }
    }

    /// Adds a value.
    pub(super) fn push(&mut self, node: Node) -> Result<NodeId, ArenaFull> {
        self.nodes.push(node);
        Ok(NodeId(index_from_len(self.nodes.len())?))
    }

    /// Adds a string.
    pub(super) fn push_text(&mut self, text: &str) -> Result<NodeId, ArenaFull> {
        let span = TextSpan { start: index(self.text.len())?, len: index(text.len())? };
        self.text.push_str(text);
        self.push(Node::Text(span))
    }

    /// Appends `value` to `items`.
    pub(super) fn append(&mut self, items: &mut Items, value: NodeId) -> Result<(), ArenaFull> {
        self.cells.push(Cell { value, next: None });
        let cell = CellId(index_from_len(self.cells.len())?);
        *items = self.joined(*items, Items { ends: Some((cell, cell)) });
        Ok(())
    }

    /// Joins the chains `front` and `back` in constant time; `back` must not be part of another container.
    pub(super) fn joined(&mut self, front: Items, back: Items) -> Items {
        match (front.ends, back.ends) {
            (Some((first, joint)), Some((next, last))) => {
                self.cells[position(joint.0)].next = Some(next);
                Items { ends: Some((first, last)) }
            }
            _ => Items { ends: front.ends.or(back.ends) },
        }
    }

    /// Splits a chain into its first element and the chain of the others.
    pub(super) fn split_first(&self, items: Items) -> Option<(NodeId, Items)> {
        let (first, last) = items.ends?;
        let Cell { value, next } = self.cells[position(first.0)];
        Some((value, Items { ends: next.map(|next| (next, last)) }))
    }

    /// Replaces a value.
    pub(super) fn replace(&mut self, id: NodeId, node: Node) {
        self.nodes[position(id.0)] = node;
    }

    /// Returns the number of values.
    pub(super) fn num_nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Iterates over the ids of all nodes.
    pub(super) fn ids(&self) -> impl Iterator<Item = NodeId> {
        (1..=u32::try_from(self.num_nodes()).unwrap_or(u32::MAX)).filter_map(NonZeroU32::new).map(NodeId)
    }

    /// Returns the value with this id.
    pub(super) fn node(&self, id: NodeId) -> Node {
        self.nodes[position(id.0)]
    }

    /// Iterates over the elements of a container, keys and values of a dict alike.
    pub(super) fn items(&self, items: Items) -> ItemsIter<'_> {
        ItemsIter { arena: self, next: items.ends.map(|(first, _)| first) }
    }

    /// Returns the string with this id; `None` if the value is none.
    pub(super) fn text(&self, id: NodeId) -> Option<&str> {
        let Node::Text(TextSpan { start, len }) = self.node(id) else {
            return None;
        };
        let start = start as usize;
        self.text.get(start..start + len as usize)
    }

    /// Returns module and name of a class or function; `None` if the value is none.
    pub(super) fn global(&self, id: NodeId) -> Option<(&str, &str)> {
        let Node::Global { module, name } = self.node(id) else {
            return None;
        };
        Some((self.text(module)?, self.text(name)?))
    }

    /// Returns the only element of a tuple that has one.
    pub(super) fn single_item(&self, tuple: NodeId) -> Option<NodeId> {
        let Node::Tuple(items) = self.node(tuple) else {
            return None;
        };
        let (item, rest) = self.split_first(items)?;
        rest.ends.is_none().then_some(item)
    }

    /// Iterates over keys and values of a dict, of a `collections.OrderedDict`, or of an object that was filled like a
    /// dict; `None` if the value is none of them.
    pub(super) fn dict_entries(&self, id: NodeId) -> Option<DictEntries<'_>> {
        let (pairs, filled) = match self.node(id) {
            Node::Dict(items) => (None, Some(items)),
            Node::Object { callable, args, items } => {
                let is_ordered_dict = self.global(callable) == Some(("collections", "OrderedDict"));
                let pairs = self.single_item(args).and_then(|arg| match self.node(arg) {
                    Node::List(pairs) if is_ordered_dict => Some(pairs),
                    _ => None,
                });
                let filled = items.and_then(|items| match self.node(items) {
                    Node::Dict(items) => Some(items),
                    _ => None,
                });
                if !is_ordered_dict && filled.is_none() {
                    return None;
                }
                (pairs, filled)
            }
            _ => return None,
        };
        Some(DictEntries {
            arena: self,
            pairs: self.items(pairs.unwrap_or(Items::EMPTY)),
            filled: self.items(filled.unwrap_or(Items::EMPTY)),
        })
    }

    /// Describes the kind of a value for errors.
    pub(super) fn kind(&self, id: NodeId) -> &'static str {
        match self.node(id) {
            Node::None => "None",
            Node::Bool(_) => "a bool",
            Node::Int(_) | Node::HugeInt => "an int",
            Node::Float(_) => "a float",
            Node::Text(_) => "a str",
            Node::Bytes(_) => "bytes",
            Node::Tuple(_) => "a tuple",
            Node::List(_) => "a list",
            Node::Set(_) => "a set",
            Node::Dict(_) => "a dict",
            Node::Global { .. } => "a class",
            Node::Object { .. } => "an object",
            Node::Persistent(_) => "a storage",
        }
    }
}

/// Iterator over the elements of a container in order.
#[derive(Debug, Clone)]
pub(super) struct ItemsIter<'a> {
    arena: &'a ValueArena,
    next: Option<CellId>,
}

impl Iterator for ItemsIter<'_> {
    type Item = NodeId;

    fn next(&mut self) -> Option<NodeId> {
        let Cell { value, next } = self.arena.cells[position(self.next?.0)];
        self.next = next;
        Some(value)
    }
}

/// Iterator over the entries of a dict in order, repeated keys included.
///
/// An element of the constructor's list that is no pair comes as an entry with the key `None`, so that a reader
/// which counts its steps counts it as well.
#[derive(Debug)]
pub(super) struct DictEntries<'a> {
    arena: &'a ValueArena,
    /// Arguments of the constructor of an `OrderedDict`: tuples or lists of two.
    pairs: ItemsIter<'a>,
    /// Items that were filled in later: keys and values in turn.
    filled: ItemsIter<'a>,
}

impl Iterator for DictEntries<'_> {
    type Item = (NodeId, NodeId);

    fn next(&mut self) -> Option<(NodeId, NodeId)> {
        let Some(pair) = self.pairs.next() else {
            return Some((self.filled.next()?, self.filled.next()?));
        };
        let (Node::Tuple(items) | Node::List(items)) = self.arena.node(pair) else {
            return Some((NodeId::NONE, NodeId::NONE));
        };
        let mut items = self.arena.items(items);
        match (items.next(), items.next(), items.next()) {
            (Some(key), Some(value), None) => Some((key, value)),
            _ => Some((NodeId::NONE, NodeId::NONE)),
        }
    }
}

fn index(number: usize) -> Result<u32, ArenaFull> {
    u32::try_from(number).ok().ok_or(ArenaFull)
}

/// Returns the index, counted from one, of the last of `len` elements.
fn index_from_len(len: usize) -> Result<NonZeroU32, ArenaFull> {
    NonZeroU32::new(index(len)?).ok_or(ArenaFull)
}

/// Returns the place of the element with an index that counts from one.
fn position(index: NonZeroU32) -> usize {
    index.get() as usize - 1
}
