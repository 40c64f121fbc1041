//! Reader of the bytes of a pickle that checks every read against what is left.

use super::pickle_error::PickleError;

/// Cursor that reads opcodes and operands one after the other.
///
/// A declared length is only ever compared with the bytes that are left; nothing is allocated for it.
pub(super) struct PickleReader<'a> {
    input: &'a [u8],
    /// Position of the next byte.
    at: usize,
    /// Position of the last opcode, for errors.
    opcode_at: usize,
}

impl<'a> PickleReader<'a> {
    pub(super) fn new(input: &'a [u8]) -> Self {
        Self { input, at: 0, opcode_at: 0 }
    }

    /// Returns the position of the opcode that was read last.
    pub(super) fn opcode_at(&self) -> usize {
        self.opcode_at
    }

    /// Returns the number of bytes that are left.
    pub(super) fn num_left(&self) -> usize {
        self.input.len() - self.at
    }

    pub(super) fn opcode(&mut self) -> Result<u8, PickleError> {
        let &opcode = self.input.get(self.at).ok_or(PickleError::MissingStop { len: self.input.len() })?;
        self.opcode_at = self.at;
        self.at += 1;
        Ok(opcode)
    }

    /// Reads an operand of fixed size.
    pub(super) fn array<const NUM_BYTES: usize>(&mut self) -> Result<[u8; NUM_BYTES], PickleError> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let Some(operand) = rest.first_chunk() else {
            return Err(self.truncated(NUM_BYTES as u64));
        };
        self.at += NUM_BYTES;
        Ok(*operand)
    }

    pub(super) fn u8(&mut self) -> Result<u8, PickleError> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, PickleError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, PickleError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32, PickleError> {
        self.array().map(i32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, PickleError> {
        self.array().map(u64::from_le_bytes)
    }

    /// Reads an operand behind its length in one byte.
    pub(super) fn take_u8(&mut self) -> Result<&'a [u8], PickleError> {
        let len = self.u8()?;
        self.take(len.into())
    }

    /// Reads an operand behind its length in four bytes.
    pub(super) fn take_u32(&mut self) -> Result<&'a [u8], PickleError> {
        let len = self.u32()?;
        self.take(len.into())
    }

    /// Reads an operand behind its length in four bytes, signed.
    pub(super) fn take_i32(&mut self) -> Result<&'a [u8], PickleError> {
        let len = self.i32()?;
        match u64::try_from(len) {
            Ok(len) => self.take(len),
            Err(_negative) => Err(PickleError::NegativeLength { at: self.opcode_at, len }),
        }
    }

    /// Reads an operand behind its length in eight bytes.
    pub(super) fn take_u64(&mut self) -> Result<&'a [u8], PickleError> {
        let len = self.u64()?;
        self.take(len)
    }

    /// Reads a text operand: the bytes up to the next line feed, which is skipped.
    pub(super) fn line(&mut self) -> Result<&'a [u8], PickleError> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let end = rest.iter().position(|&byte| byte == b'\n');
        let Some((line, _)) = end.and_then(|end| rest.split_at_checked(end)) else {
            return Err(PickleError::UnterminatedLine { at: self.opcode_at });
        };
        self.at += line.len() + 1;
        Ok(line)
    }

    /// Checks that a frame fits into the rest; frames are only a hint for buffering and need no other treatment.
    pub(super) fn check_frame(&self, len: u64) -> Result<(), PickleError> {
        if len > self.num_left() as u64 { Err(self.truncated(len)) } else { Ok(()) }
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], PickleError> {
        let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len));
        let operand = end.and_then(|end| self.input.get(self.at..end)).ok_or_else(|| self.truncated(len))?;
        self.at += operand.len();
        Ok(operand)
    }

    fn truncated(&self, needed: u64) -> PickleError {
        PickleError::Truncated { at: self.opcode_at, needed, left: self.num_left() }
    }
}
