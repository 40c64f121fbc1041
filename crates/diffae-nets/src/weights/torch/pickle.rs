//! Reader of Python pickles as inert data.
//!
//! A pickle is a program for a stack machine which builds objects and may call any function. This machine runs the
//! same program but only takes down what would be called with which arguments; no name is ever looked up.
//! A hostile pickle can at worst be rejected: work and memory are bounded by its length.
//!
//! # Source
//! Python's `Lib/pickletools.py` for the opcodes, `Lib/pickle.py` for what they do.

use super::excerpt::excerpt;
use super::pickle_error::PickleError;
use super::pickle_number::{Integer, float_from_text};
use super::pickle_opcode as op;
use super::pickle_reader::PickleReader;
use super::pickle_stack::{Filling, PickleStack};
use super::pickle_string::{unescape_unicode, unquote};
use super::pickle_value::{Items, Node, NodeId, ValueArena};

/// Length of the longest pickle that is read. A checkpoint's pickle holds names and shapes, some hundred bytes per
/// tensor; the weights lie beside it.
const MAX_PICKLE_BYTES: usize = 64 << 20;
/// Number of values that a pickle may have beyond one per two of its bytes. Python's picklers stay below that: a value
/// that takes a single byte is a constant, which is not counted, or is followed by a memo opcode.
const NUM_SPARE_VALUES: usize = 1024;
/// Newest protocol that is read.
const MAX_PROTOCOL: u8 = 5;

type Result<T> = std::result::Result<T, PickleError>;

/// A pickle that was read.
#[derive(Debug)]
pub(super) struct Pickle {
    /// All values of the pickle.
    pub(super) arena: ValueArena,
    /// Result of unpickling.
    pub(super) root: NodeId,
}

impl Pickle {
    /// Reads a pickle of protocol 0 to 5 that fills all of `input`.
    /// # Errors
    /// [`PickleError`], with one variant for each way to be no valid pickle and each limit.
    pub(super) fn parse(input: &[u8]) -> Result<Self> {
        Self::parse_whole(input, Attributes::Dropped)
    }

    /// Reads a pickle like [`Pickle::parse`], with objects as dicts of their attributes.
    /// # Errors
    /// [`PickleError`], like [`Pickle::parse`].
    pub(super) fn parse_with_attributes(input: &[u8]) -> Result<Self> {
        Self::parse_whole(input, Attributes::Kept)
    }

    fn parse_whole(input: &[u8], attributes: Attributes) -> Result<Self> {
        if input.len() > MAX_PICKLE_BYTES {
            return Err(PickleError::TooLarge { len: input.len(), limit: MAX_PICKLE_BYTES });
        }
        let (pickle, len) = Machine::new(input, attributes).run()?;
        match input.len() - len {
            0 => Ok(pickle),
            extra => Err(PickleError::TrailingData { at: len.saturating_sub(1), extra }),
        }
    }

    /// Reads the pickle that `input` begins with, and returns its length.
    /// # Errors
    /// As [`Pickle::parse`].
    pub(super) fn parse_first(input: &[u8]) -> Result<(Self, usize)> {
        let input = input.get(..MAX_PICKLE_BYTES).unwrap_or(input);
        Machine::new(input, Attributes::Dropped).run()
    }
}

/// Treatment of the attributes that BUILD sets on objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attributes {
    /// Drops the attributes.
    Dropped,
    /// Keeps the attributes, as if the object were a dict filled with them.
    Kept,
}

/// Stack machine in which every opcode reads its operands and then changes the stack.
struct Machine<'a> {
    reader: PickleReader<'a>,
    stack: PickleStack,
    attributes: Attributes,
}

impl<'a> Machine<'a> {
    fn new(input: &'a [u8], attributes: Attributes) -> Self {
        let value_limit = NUM_SPARE_VALUES + input.len().div_ceil(2);
        Self { reader: PickleReader::new(input), stack: PickleStack::new(value_limit), attributes }
    }

    fn run(mut self) -> Result<(Pickle, usize)> {
        loop {
            let opcode = self.reader.opcode()?;
            self.stack.opcode_at = self.reader.opcode_at();
            if opcode == op::STOP {
                break;
            }
            self.execute(opcode)?;
        }
        // The opcode that ends a pickle has no operands.
        let len = self.reader.opcode_at() + 1;
        self.stack.finish().map(|(arena, root)| (Pickle { arena, root }, len))
    }

    fn execute(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            op::PROTO | op::FRAME => self.framing(opcode),
            op::MARK | op::POP | op::POP_MARK | op::DUP => self.rearrange(opcode),
            op::NONE | op::NEWTRUE | op::NEWFALSE | op::EMPTY_TUPLE => {
                self.stack.push_known(constant(opcode));
                Ok(())
            }
            op::INT | op::LONG | op::FLOAT => self.number_in_text(opcode),
            op::BININT | op::BININT1 | op::BININT2 | op::LONG1 | op::LONG4 | op::BINFLOAT => self.number(opcode),
            op::STRING | op::UNICODE => self.string_in_text(opcode),
            op::BINSTRING | op::SHORT_BINSTRING | op::BINUNICODE | op::SHORT_BINUNICODE | op::BINUNICODE8 => {
                self.string(opcode)
            }
            op::BINBYTES | op::SHORT_BINBYTES | op::BINBYTES8 | op::BYTEARRAY8 => self.bytes(opcode),
            op::EMPTY_LIST => self.stack.push(Node::List(Items::EMPTY)),
            op::EMPTY_DICT => self.stack.push(Node::Dict(Items::EMPTY)),
            op::EMPTY_SET => self.stack.push(Node::Set(Items::EMPTY)),
            op::LIST | op::DICT | op::TUPLE | op::FROZENSET => self.collect(opcode),
            op::TUPLE1 => self.short_tuple(1),
            op::TUPLE2 => self.short_tuple(2),
            op::TUPLE3 => self.short_tuple(3),
            op::APPEND | op::APPENDS | op::SETITEM | op::SETITEMS | op::ADDITEMS => self.fill(opcode),
            op::PUT | op::BINPUT | op::LONG_BINPUT | op::MEMOIZE => self.memorize(opcode),
            op::GET | op::BINGET | op::LONG_BINGET => self.recall(opcode),
            op::GLOBAL | op::STACK_GLOBAL => self.global(opcode),
            op::INST | op::OBJ => self.instance(opcode),
            op::REDUCE | op::NEWOBJ | op::NEWOBJ_EX => self.call(opcode),
            op::BUILD => self.build(),
            op::PERSID | op::BINPERSID => self.persistent(opcode),
            _ => Err(self.rejected(opcode)),
        }
    }

    fn framing(&mut self, opcode: u8) -> Result<()> {
        if opcode == op::FRAME {
            let len = self.reader.u64()?;
            return self.reader.check_frame(len);
        }
        match self.reader.u8()? {
            0..=MAX_PROTOCOL => Ok(()),
            protocol => Err(PickleError::UnknownProtocol { protocol }),
        }
    }

    fn rearrange(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            op::MARK => self.stack.mark(),
            op::POP => self.stack.discard()?,
            op::POP_MARK => self.stack.discard_to_mark()?,
            _ => self.stack.push_known(self.stack.top()?),
        }
        Ok(())
    }

    fn number_in_text(&mut self, opcode: u8) -> Result<()> {
        let line = self.reader.line()?;
        let node = match (opcode, line) {
            (op::INT, b"00") => Some(Node::Bool(false)),
            (op::INT, b"01") => Some(Node::Bool(true)),
            (op::FLOAT, _) => float_from_text(line).map(Node::Float),
            _ => Integer::from_text(line).map(Node::from),
        };
        let at = self.reader.opcode_at();
        self.stack.push(node.ok_or_else(|| PickleError::BadNumber { at, text: excerpt(line) })?)
    }

    fn number(&mut self, opcode: u8) -> Result<()> {
        let node = match opcode {
            op::BININT1 => Node::Int(self.reader.u8()?.into()),
            op::BININT2 => Node::Int(self.reader.u16()?.into()),
            op::BININT => Node::Int(self.reader.i32()?.into()),
            op::BINFLOAT => Node::Float(f64::from_be_bytes(self.reader.array()?)),
            op::LONG1 => Integer::from_le_bytes(self.reader.take_u8()?).into(),
            _ => Integer::from_le_bytes(self.reader.take_i32()?).into(),
        };
        self.stack.push(node)
    }

    fn string_in_text(&mut self, opcode: u8) -> Result<()> {
        let line = self.reader.line()?;
        let bytes = if opcode == op::STRING { unquote(line) } else { unescape_unicode(line).map(String::into_bytes) };
        let at = self.reader.opcode_at();
        self.stack.push_string(&bytes.ok_or_else(|| PickleError::BadString { at, text: excerpt(line) })?)
    }

    fn string(&mut self, opcode: u8) -> Result<()> {
        let bytes = match opcode {
            op::BINSTRING => self.reader.take_i32()?,
            op::SHORT_BINSTRING | op::SHORT_BINUNICODE => self.reader.take_u8()?,
            op::BINUNICODE => self.reader.take_u32()?,
            _ => self.reader.take_u64()?,
        };
        self.stack.push_string(bytes)
    }

    fn bytes(&mut self, opcode: u8) -> Result<()> {
        let bytes = match opcode {
            op::SHORT_BINBYTES => self.reader.take_u8()?,
            op::BINBYTES => self.reader.take_u32()?,
            _ => self.reader.take_u64()?,
        };
        self.stack.push_bytes(bytes)
    }

    /// Collects everything above the last mark in a container.
    fn collect(&mut self, opcode: u8) -> Result<()> {
        let node = match opcode {
            op::DICT => Node::Dict(self.stack.pop_entries_to_mark()?),
            op::LIST => Node::List(self.stack.pop_to_mark()?.0),
            op::TUPLE => Node::Tuple(self.stack.pop_to_mark()?.0),
            _ => Node::Set(self.stack.pop_to_mark()?.0),
        };
        self.stack.push(node)
    }

    fn short_tuple(&mut self, num_items: usize) -> Result<()> {
        let items = self.stack.pop_items(num_items)?;
        self.stack.push(Node::Tuple(items))
    }

    /// Adds elements to the container below them.
    fn fill(&mut self, opcode: u8) -> Result<()> {
        let (filling, items) = match opcode {
            op::APPEND => (Filling::Elements, self.stack.pop_items(1)?),
            op::APPENDS => (Filling::Elements, self.stack.pop_to_mark()?.0),
            op::SETITEM => (Filling::Entries, self.stack.pop_items(2)?),
            op::SETITEMS => (Filling::Entries, self.stack.pop_entries_to_mark()?),
            _ => (Filling::Members, self.stack.pop_to_mark()?.0),
        };
        self.stack.fill(filling, items)
    }

    fn memorize(&mut self, opcode: u8) -> Result<()> {
        let index = match opcode {
            op::BINPUT => Some(self.reader.u8()?.into()),
            op::LONG_BINPUT => Some(self.reader.u32()?),
            op::PUT => Some(self.memo_index_in_text()?),
            _ => None,
        };
        self.stack.memorize(index)
    }

    fn recall(&mut self, opcode: u8) -> Result<()> {
        let index = match opcode {
            op::BINGET => self.reader.u8()?.into(),
            op::LONG_BINGET => self.reader.u32()?,
            _ => self.memo_index_in_text()?,
        };
        self.stack.recall(index)
    }

    fn memo_index_in_text(&mut self) -> Result<u32> {
        let line = self.reader.line()?;
        let index = str::from_utf8(line).ok().and_then(|digits| digits.parse().ok());
        index.ok_or_else(|| PickleError::BadNumber { at: self.reader.opcode_at(), text: excerpt(line) })
    }

    fn global(&mut self, opcode: u8) -> Result<()> {
        let (module, name) = if opcode == op::GLOBAL {
            self.global_in_text()?
        } else {
            let name = self.stack.pop_text()?;
            (self.stack.pop_text()?, name)
        };
        self.stack.push(Node::Global { module, name })
    }

    fn global_in_text(&mut self) -> Result<(NodeId, NodeId)> {
        let (module, name) = (self.reader.line()?, self.reader.line()?);
        match (str::from_utf8(module), str::from_utf8(name)) {
            (Ok(module), Ok(name)) if !module.is_empty() && !name.is_empty() => {
                Ok((self.stack.new_text(module)?, self.stack.new_text(name)?))
            }
            _ => {
                let text = excerpt([module, b".", name].concat());
                Err(PickleError::BadGlobal { at: self.reader.opcode_at(), text })
            }
        }
    }

    fn instance(&mut self, opcode: u8) -> Result<()> {
        let (callable, args) = if opcode == op::INST {
            let (module, name) = self.global_in_text()?;
            (self.stack.new_node(Node::Global { module, name })?, self.stack.pop_to_mark()?.0)
        } else {
            self.stack.pop_first_to_mark()?
        };
        let args = self.stack.new_node(Node::Tuple(args))?;
        self.stack.push(Node::Object { callable, args, items: None })
    }

    fn call(&mut self, opcode: u8) -> Result<()> {
        if opcode == op::NEWOBJ_EX {
            let _keyword_args = self.stack.pop()?;
        }
        let args = self.stack.pop_tuple()?;
        let callable = self.stack.pop()?;
        self.stack.push(Node::Object { callable, args, items: None })
    }

    /// Takes the state that BUILD would set on the object on top.
    fn build(&mut self) -> Result<()> {
        let state = self.stack.pop()?;
        let object = self.stack.top()?;
        if self.attributes == Attributes::Kept {
            self.stack.give_attributes(object, state);
        }
        Ok(())
    }

    fn persistent(&mut self, opcode: u8) -> Result<()> {
        if opcode == op::PERSID {
            let line = self.reader.line()?;
            self.stack.push_string(line)?;
        }
        let id = self.stack.pop()?;
        self.stack.push(Node::Persistent(id))
    }

    fn rejected(&self, opcode: u8) -> PickleError {
        let at = self.reader.opcode_at();
        let name = match opcode {
            op::EXT1 => "EXT1",
            op::EXT2 => "EXT2",
            op::EXT4 => "EXT4",
            op::NEXT_BUFFER => "NEXT_BUFFER",
            op::READONLY_BUFFER => "READONLY_BUFFER",
            _ => return PickleError::UnknownOpcode { at, opcode },
        };
        PickleError::ExternalOpcode { at, opcode: name }
    }
}

fn constant(opcode: u8) -> NodeId {
    match opcode {
        op::NEWTRUE => NodeId::TRUE,
        op::NEWFALSE => NodeId::FALSE,
        op::EMPTY_TUPLE => NodeId::EMPTY_TUPLE,
        _ => NodeId::NONE,
    }
}

impl From<Integer> for Node {
    fn from(integer: Integer) -> Self {
        match integer {
            Integer::Small(number) => Self::Int(number),
            Integer::Huge => Self::HugeInt,
        }
    }
}

#[cfg(test)]
mod tests;
