//! Errors of pickles.

use crate::counted::counted;

/// Reason for which a pickle was rejected; `at` is the position of the opcode in the pickle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PickleError {
    /// The pickle is larger than any checkpoint needs.
    #[error("the pickle has {}, more than the limit of {limit}", counted(*len, "byte"))]
    TooLarge {
        /// Length of the pickle.
        len: usize,
        /// Limit on the length.
        limit: usize,
    },
    /// An operand, or the length that an operand declares, reaches past the end.
    #[error("the pickle ends in an operand: the opcode at byte {at} needs {} more, but has {left}", counted(*needed, "byte"))]
    Truncated {
        /// Position of the opcode.
        at: usize,
        /// Bytes that the operand needs.
        needed: u64,
        /// Bytes that are left.
        left: usize,
    },
    /// A text operand has no line end.
    #[error("the pickle ends in an operand: the text operand of the opcode at byte {at} has no line end")]
    UnterminatedLine {
        /// Position of the opcode.
        at: usize,
    },
    /// The pickle ends before STOP.
    #[error("the pickle has no STOP opcode within its {}", counted(*len, "byte"))]
    MissingStop {
        /// Length of the pickle.
        len: usize,
    },
    /// Bytes follow STOP.
    #[error("the pickle ends at byte {at} and leaves {} over", counted(*extra, "byte"))]
    TrailingData {
        /// Position of STOP.
        at: usize,
        /// Number of bytes behind STOP.
        extra: usize,
    },
    /// STOP was reached with more than the result on the stack.
    #[error("the pickle leaves {} on the stack instead of one", counted(*left, "value"))]
    LeftOnStack {
        /// Values and marks on the stack.
        left: usize,
    },
    /// A byte is no opcode of protocols 0 to 5.
    #[error("byte {at} of the pickle is {opcode:#04x}, which is no opcode")]
    UnknownOpcode {
        /// Position of the opcode.
        at: usize,
        /// Value of the byte.
        opcode: u8,
    },
    /// An opcode refers to data outside of the pickle.
    #[error("byte {at} of the pickle is {opcode}, which refers to data outside of the file")]
    ExternalOpcode {
        /// Position of the opcode.
        at: usize,
        /// Name of the opcode.
        opcode: &'static str,
    },
    /// The pickle declares a protocol newer than 5.
    #[error("the pickle declares protocol {protocol}, newer than 5")]
    UnknownProtocol {
        /// The declared protocol.
        protocol: u8,
    },
    /// An opcode takes more values than the stack holds above the last mark.
    #[error("the opcode at byte {at} takes a value from an empty stack")]
    StackUnderflow {
        /// Position of the opcode.
        at: usize,
    },
    /// An opcode takes all values above a mark, and there is no mark.
    #[error("the opcode at byte {at} needs a mark, and there is none")]
    MissingMark {
        /// Position of the opcode.
        at: usize,
    },
    /// A memo entry is read that was never written.
    #[error("the opcode at byte {at} reads memo entry {index}, which was never written")]
    MissingMemo {
        /// Position of the opcode.
        at: usize,
        /// Index of the entry.
        index: u32,
    },
    /// An opcode got a value of the wrong type.
    #[error("the opcode at byte {at} needs {expected}, got {got}")]
    UnexpectedValue {
        /// Position of the opcode.
        at: usize,
        /// Value that the opcode needs.
        expected: &'static str,
        /// Value on the stack.
        got: &'static str,
    },
    /// A dictionary is filled with a key that has no value.
    #[error("the opcode at byte {at} fills a dict with keys and values, an odd number of them: {num_items}")]
    OddDictItems {
        /// Position of the opcode.
        at: usize,
        /// Number of keys and values together.
        num_items: usize,
    },
    /// A number in text form does not read as one, or does not fit.
    #[error("the opcode at byte {at} has the operand {text:?}, which is no number that it can take")]
    BadNumber {
        /// Position of the opcode.
        at: usize,
        /// Start of the operand.
        text: String,
    },
    /// A string in text form has no quotes or a bad escape sequence.
    #[error("the opcode at byte {at} has the operand {text:?}, which is no quoted or escaped string")]
    BadString {
        /// Position of the opcode.
        at: usize,
        /// Start of the operand.
        text: String,
    },
    /// The name of a class or function is empty or not UTF-8.
    #[error("the opcode at byte {at} names the class {text:?}, which is no name")]
    BadGlobal {
        /// Position of the opcode.
        at: usize,
        /// Start of module and name.
        text: String,
    },
    /// A declared length is negative.
    #[error("the opcode at byte {at} declares the length {len}")]
    NegativeLength {
        /// Position of the opcode.
        at: usize,
        /// The declared length.
        len: i32,
    },
    /// A pickle has more values, or memo entries, than Python would write into that many bytes.
    #[error("the opcode at byte {at} creates more than {limit} values, too many for a pickle of this length")]
    TooManyValues {
        /// Position of the opcode.
        at: usize,
        /// Limit for a pickle of this length.
        limit: usize,
    },
}
