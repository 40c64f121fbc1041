//! Stack, memo and values of the machine that reads a pickle.

use std::collections::HashMap;

use super::pickle_error::PickleError;
use super::pickle_value::{ArenaFull, Items, Node, NodeId, ValueArena};

type Result<T> = std::result::Result<T, PickleError>;

/// Kind of items that an opcode adds to a container.
#[derive(Debug, Clone, Copy)]
pub(super) enum Filling {
    Elements,
    Entries,
    Members,
}

/// State of the machine between two opcodes.
pub(super) struct PickleStack {
    arena: ValueArena,
    /// Slots of the stack: values, and `None` for a mark.
    slots: Vec<Option<NodeId>>,
    memo: HashMap<u32, NodeId>,
    /// Limit on the values of the arena and on the entries of the memo, each.
    value_limit: usize,
    /// Position of the current opcode, for errors.
    pub(super) opcode_at: usize,
}

impl PickleStack {
    /// Returns an empty stack for a pickle that may have `value_limit` values.
    pub(super) fn new(value_limit: usize) -> Self {
        Self { arena: ValueArena::new(), slots: Vec::new(), memo: HashMap::new(), value_limit, opcode_at: 0 }
    }

    /// Returns the values and the one that is left on the stack.
    pub(super) fn finish(mut self) -> Result<(ValueArena, NodeId)> {
        let root = self.pop()?;
        match self.slots.len() {
            0 => Ok((self.arena, root)),
            num_others => Err(PickleError::LeftOnStack { left: num_others + 1 }),
        }
    }

    /// Pushes a new value.
    pub(super) fn push(&mut self, node: Node) -> Result<()> {
        let id = self.new_node(node)?;
        self.push_known(id);
        Ok(())
    }

    /// Pushes a value that exists.
    pub(super) fn push_known(&mut self, id: NodeId) {
        self.slots.push(Some(id));
    }

    /// Pushes a string. One that is not UTF-8, a `str` of Python 2 or one with half a surrogate pair, counts as bytes.
    pub(super) fn push_string(&mut self, bytes: &[u8]) -> Result<()> {
        match str::from_utf8(bytes) {
            Ok(text) => {
                let id = self.new_text(text)?;
                self.push_known(id);
                Ok(())
            }
            Err(_not_utf8) => self.push_bytes(bytes),
        }
    }

    pub(super) fn push_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let len = u32::try_from(bytes.len()).map_err(|_overflow| self.too_many_values())?;
        self.push(Node::Bytes(len))
    }

    /// Adds a value without pushing it.
    pub(super) fn new_node(&mut self, node: Node) -> Result<NodeId> {
        let id = self.arena.push(node);
        self.checked(id)
    }

    /// Adds a string without pushing it.
    pub(super) fn new_text(&mut self, text: &str) -> Result<NodeId> {
        let id = self.arena.push_text(text);
        self.checked(id)
    }

    /// Pops a value; a mark is none.
    pub(super) fn pop(&mut self) -> Result<NodeId> {
        let top = self.top()?;
        self.slots.pop();
        Ok(top)
    }

    /// Pops a string.
    pub(super) fn pop_text(&mut self) -> Result<NodeId> {
        let id = self.pop()?;
        if matches!(self.arena.node(id), Node::Text(_)) { Ok(id) } else { Err(self.unexpected("a str", id)) }
    }

    /// Pops a tuple.
    pub(super) fn pop_tuple(&mut self) -> Result<NodeId> {
        let id = self.pop()?;
        if matches!(self.arena.node(id), Node::Tuple(_)) { Ok(id) } else { Err(self.unexpected("a tuple", id)) }
    }

    /// Returns the value on top.
    pub(super) fn top(&self) -> Result<NodeId> {
        self.slots.last().copied().flatten().ok_or_else(|| self.underflow())
    }

    /// Pops the last `num_items` values, in the order in which they were pushed.
    pub(super) fn pop_items(&mut self, num_items: usize) -> Result<Items> {
        let start = self.slots.len().checked_sub(num_items).ok_or_else(|| self.underflow())?;
        if self.slots.iter().skip(start).any(Option::is_none) {
            return Err(self.underflow());
        }
        self.pop_from(start)
    }

    /// Pops everything above the last mark, and the mark; also returns the number of these values.
    pub(super) fn pop_to_mark(&mut self) -> Result<(Items, usize)> {
        let mark = self.last_mark()?;
        let num_items = self.slots.len() - mark - 1;
        Ok((self.pop_from(mark)?, num_items))
    }

    /// Pops keys and values above the last mark, as [`Self::pop_to_mark`].
    pub(super) fn pop_entries_to_mark(&mut self) -> Result<Items> {
        let (items, num_items) = self.pop_to_mark()?;
        if num_items.is_multiple_of(2) {
            Ok(items)
        } else {
            Err(PickleError::OddDictItems { at: self.opcode_at, num_items })
        }
    }

    /// Pops everything above the last mark, and the mark, and splits off the first value.
    pub(super) fn pop_first_to_mark(&mut self) -> Result<(NodeId, Items)> {
        let (items, _) = self.pop_to_mark()?;
        self.arena.split_first(items).ok_or_else(|| self.underflow())
    }

    /// Pushes a mark.
    pub(super) fn mark(&mut self) {
        self.slots.push(None);
    }

    /// Pops a value or a mark.
    pub(super) fn discard(&mut self) -> Result<()> {
        match self.slots.pop() {
            Some(_) => Ok(()),
            None => Err(self.underflow()),
        }
    }

    /// Drops everything above the last mark, and the mark.
    pub(super) fn discard_to_mark(&mut self) -> Result<()> {
        let mark = self.last_mark()?;
        self.slots.truncate(mark);
        Ok(())
    }

    /// Adds `items` to the container on top.
    pub(super) fn fill(&mut self, filling: Filling, items: Items) -> Result<()> {
        let target = self.top()?;
        let container = match self.arena.node(target) {
            Node::Object { items: Some(container), .. } => container,
            Node::Object { callable, args, items: None } => {
                let container = self.new_node(filling.into_container(Items::EMPTY))?;
                self.arena.replace(target, Node::Object { callable, args, items: Some(container) });
                container
            }
            _ => target,
        };
        let ((Filling::Elements, Node::List(before))
        | (Filling::Entries, Node::Dict(before))
        | (Filling::Members, Node::Set(before))) = (filling, self.arena.node(container))
        else {
            return Err(self.unexpected(filling.expected(), container));
        };
        let all = self.arena.joined(before, items);
        self.arena.replace(container, filling.into_container(all));
        Ok(())
    }

    /// Sets the attributes of an object that holds nothing.
    pub(super) fn give_attributes(&mut self, object: NodeId, state: NodeId) {
        if let (Node::Object { callable, args, items: None }, Node::Dict(_)) =
            (self.arena.node(object), self.arena.node(state))
        {
            self.arena.replace(object, Node::Object { callable, args, items: Some(state) });
        }
    }

    /// Stores the value on top under `index`, or under the next one.
    pub(super) fn memorize(&mut self, index: Option<u32>) -> Result<()> {
        let top = self.top()?;
        let index = match index {
            Some(index) => index,
            None => u32::try_from(self.memo.len()).map_err(|_overflow| self.too_many_values())?,
        };
        self.memo.insert(index, top);
        if self.memo.len() > self.value_limit { Err(self.too_many_values()) } else { Ok(()) }
    }

    /// Pushes the value that was stored under `index`.
    pub(super) fn recall(&mut self, index: u32) -> Result<()> {
        let Some(&id) = self.memo.get(&index) else {
            return Err(PickleError::MissingMemo { at: self.opcode_at, index });
        };
        self.push_known(id);
        Ok(())
    }

    /// Moves the slots from `start` on into a chain; a mark among them is dropped.
    fn pop_from(&mut self, start: usize) -> Result<Items> {
        let mut items = Items::EMPTY;
        let appended = self.slots.drain(start..).flatten().try_for_each(|id| self.arena.append(&mut items, id));
        appended.map_err(|ArenaFull| self.too_many_values())?;
        Ok(items)
    }

    /// Returns the index of the last mark. What is above it gets popped, so that the search costs no more than the
    /// pushes did.
    fn last_mark(&self) -> Result<usize> {
        let mark = self.slots.iter().rposition(Option::is_none);
        mark.ok_or(PickleError::MissingMark { at: self.opcode_at })
    }

    fn checked(&self, id: std::result::Result<NodeId, ArenaFull>) -> Result<NodeId> {
        match id {
            Ok(id) if self.arena.num_nodes() <= self.value_limit => Ok(id),
            _ => Err(self.too_many_values()),
        }
    }

    fn underflow(&self) -> PickleError {
        PickleError::StackUnderflow { at: self.opcode_at }
    }

    fn too_many_values(&self) -> PickleError {
        PickleError::TooManyValues { at: self.opcode_at, limit: self.value_limit }
    }

    fn unexpected(&self, expected: &'static str, got: NodeId) -> PickleError {
        PickleError::UnexpectedValue { at: self.opcode_at, expected, got: self.arena.kind(got) }
    }
}

impl Filling {
    fn into_container(self, items: Items) -> Node {
        match self {
            Self::Elements => Node::List(items),
            Self::Entries => Node::Dict(items),
            Self::Members => Node::Set(items),
        }
    }

    fn expected(self) -> &'static str {
        match self {
            Self::Elements => "a list",
            Self::Entries => "a dict",
            Self::Members => "a set",
        }
    }
}
