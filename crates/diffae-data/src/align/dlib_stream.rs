//! Decoding of dlib's number format from memory.
//!
//! dlib's serialization has no names and no types; a reader must know what comes next. What occurs in landmark models:
//!
//! | value | bytes |
//! |---|---|
//! | integer | a control byte: how many bytes follow (1 to 8), and 128 if it is negative; the magnitude, low byte first |
//! | float | two integers: a mantissa and an exponent `e`; the value is `mantissa * 2^e` |
//! | vector | an integer, its length; its elements |
//! | matrix | two integers, rows and columns, in newer files negated; its elements, row by row |

use std::path::Path;

use crate::error::{Error, Result};
use crate::notices::counted;

/// Minimum bytes of an integer: a control byte and at least one more.
pub(super) const MIN_INTEGER_BYTES: usize = 2;
/// Minimum bytes of a float: two integers.
pub(super) const MIN_FLOAT_BYTES: usize = 2 * MIN_INTEGER_BYTES;
/// Sign bit in the control byte of an integer.
const NEGATIVE: u8 = 0x80;
/// Maximum exponent of a float. Exponents of finite floats are far below it; dlib marks infinities and NaN by exponents
/// from 32000 on.
const LARGEST_EXPONENT: i64 = 1000;

/// A read position in a file.
#[derive(Debug)]
pub(super) struct DlibStream<'a> {
    bytes: &'a [u8],
    position: usize,
    path: &'a Path,
}

impl<'a> DlibStream<'a> {
    /// Starts at the first byte; messages name the file `path`.
    pub(super) fn new(bytes: &'a [u8], path: &'a Path) -> Self {
        Self { bytes, position: 0, path }
    }

    /// Creates an error at the current position.
    pub(super) fn problem(&self, problem: impl Into<String>) -> Error {
        Error::LandmarkModel { path: self.path.to_owned(), offset: self.position, problem: problem.into() }
    }

    /// Reads an integer.
    pub(super) fn integer(&mut self) -> Result<i64> {
        let control = self.take(1)?[0];
        let num_bytes = usize::from(control & !NEGATIVE);
        if !(1..=8).contains(&num_bytes) {
            self.position -= 1;
            return Err(self.problem(format!("an integer begins with {control}, expected 1 to 8 or 129 to 136")));
        }
        let magnitude = self.take(num_bytes)?.iter().rev().fold(0, |value: u64, &byte| value << 8 | u64::from(byte));
        match i64::try_from(magnitude) {
            Ok(value) if control & NEGATIVE != 0 => Ok(-value),
            Ok(value) => Ok(value),
            Err(_) => Err(self.problem(format!("the integer {magnitude} is too large"))),
        }
    }

    /// Reads an integer that is no less than 0.
    pub(super) fn index(&mut self) -> Result<usize> {
        let value = self.integer()?;
        usize::try_from(value).ok().ok_or_else(|| self.problem(format!("got {value}, expected a number from 0 on")))
    }

    /// Reads the length of a vector whose elements take at least `min_bytes` each; a length that exceeds the rest of
    /// the file is refused before memory is allocated.
    pub(super) fn length(&mut self, min_bytes: usize) -> Result<usize> {
        let length = self.index()?;
        self.check_room(length, min_bytes)?;
        Ok(length)
    }

    /// Reads a float.
    pub(super) fn float(&mut self) -> Result<f32> {
        let (mantissa, exponent) = (self.integer()?, self.integer()?);
        let exponent = if exponent.abs() <= LARGEST_EXPONENT { i32::try_from(exponent).ok() } else { None };
        let Some(exponent) = exponent else {
            return Err(self.problem("a float is not finite"));
        };
        #[expect(clippy::cast_possible_truncation, reason = "the file holds f32; a value beyond is found below")]
        let value = (mantissa as f64 * 2_f64.powi(exponent)) as f32;
        if value.is_finite() { Ok(value) } else { Err(self.problem("a float is not finite")) }
    }

    /// Reads a matrix of one column.
    pub(super) fn column(&mut self) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        self.append_column(&mut values)?;
        Ok(values)
    }

    /// Reads a matrix of one column, appends its values, and returns their number.
    pub(super) fn append_column(&mut self, values: &mut Vec<f32>) -> Result<usize> {
        let (rows, columns) = (self.integer()?.unsigned_abs(), self.integer()?.unsigned_abs());
        let length = usize::try_from(rows).ok().filter(|_| columns == 1);
        let Some(length) = length else {
            return Err(self.problem(format!("got a matrix of {rows}x{columns}, expected one column")));
        };
        self.check_room(length, MIN_FLOAT_BYTES)?;
        for _ in 0..length {
            values.push(self.float()?);
        }
        Ok(length)
    }

    /// Fails if bytes are left.
    pub(super) fn finish(&self) -> Result<()> {
        match self.rest() {
            0 => Ok(()),
            rest => {
                Err(self.problem(format!("expected the end of the file, but there is {} more", counted(rest, "byte"))))
            }
        }
    }

    fn rest(&self) -> usize {
        self.bytes.len() - self.position
    }

    fn check_room(&self, length: usize, min_bytes: usize) -> Result<()> {
        let rest = self.rest();
        if length.checked_mul(min_bytes).is_some_and(|bytes| bytes <= rest) {
            return Ok(());
        }
        Err(self.problem(format!("{} announced, but only {} left", counted(length, "element"), counted(rest, "byte"))))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let Some(taken) = self.bytes.get(self.position..).and_then(|rest| rest.get(..count)) else {
            return Err(self.problem("the file ends in the middle"));
        };
        self.position += count;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(bytes: &[u8]) -> DlibStream<'_> {
        DlibStream::new(bytes, Path::new("a.dat"))
    }

    fn message(error: &Error) -> String {
        error.to_string()
    }

    #[test]
    fn integers_have_a_sign_and_as_many_bytes_as_they_need() {
        let mut numbers = stream(&[1, 0, 1, 200, 2, 1, 2, 0x81, 136, 8, 255, 255, 255, 255, 255, 255, 255, 127]);
        let got: Vec<i64> = (0..5).map(|_| numbers.integer().unwrap()).collect();
        assert_eq!(got, [0, 200, 513, -136, i64::MAX]);
        numbers.finish().unwrap();
    }

    #[test]
    fn floats_are_mantissa_and_exponent() {
        // 1.5 = 3 * 2^-1, and the first value of dlib's model of 68 points.
        let mut numbers = stream(&[1, 3, 0x81, 1, 3, 0x4d, 0x38, 0xf1, 0x81, 0x1d, 1, 0, 1, 0]);
        assert_eq!(
            [(); 3].map(|()| numbers.float().unwrap().to_bits()),
            [1.5_f32, 15_808_589. / 536_870_912., 0.].map(f32::to_bits)
        );
    }

    #[test]
    fn infinity_and_nan_are_refused() {
        for exponent in [0x7d00_u16, 0x7d01, 0x7d02, 2000] {
            let [low, high] = exponent.to_le_bytes();
            let error = stream(&[1, 1, 2, low, high]).float().unwrap_err();
            assert!(message(&error).contains("not finite"), "{error}");
        }
        assert!(stream(&[1, 1, 2, 0xc8, 0]).float().is_err(), "2^200 is no f32");
    }

    #[test]
    fn damaged_integers_are_refused_at_their_byte() {
        let error = stream(&[1, 5, 9]).integer().and_then(|_| stream(&[9]).integer()).unwrap_err();
        assert!(message(&error).contains("byte 0: an integer begins with 9"), "{error}");
        assert!(message(&stream(&[0]).integer().unwrap_err()).contains("begins with 0"));
        assert!(message(&stream(&[4, 1]).integer().unwrap_err()).contains("ends in the middle"));
        assert!(
            message(
                &stream(&[8; 9])
                    .integer()
                    .map(|_| stream(&[8, 255, 255, 255, 255, 255, 255, 255, 255]).integer())
                    .unwrap()
                    .unwrap_err()
            )
            .contains("too large")
        );
        assert!(message(&stream(&[0x81, 3]).index().unwrap_err()).contains("got -3"));
    }

    #[test]
    fn lengths_beyond_the_file_are_refused() {
        let error = stream(&[8, 255, 255, 255, 255, 255, 255, 255, 127]).length(2).unwrap_err();
        assert!(message(&error).contains("9223372036854775807 elements announced, but only 0 bytes left"), "{error}");
        assert_eq!(stream(&[1, 1, 1, 7]).length(2).unwrap(), 1);
        assert!(stream(&[0x84, 255, 255, 255, 255, 0x81, 1]).column().is_err());
        assert!(message(&stream(&[0x81, 1, 0x81, 2]).column().unwrap_err()).contains("1x2"));
    }

    #[test]
    fn what_follows_the_end_is_an_error() {
        let mut numbers = stream(&[1, 1, 0]);
        numbers.integer().unwrap();
        assert!(message(&numbers.finish().unwrap_err()).contains("there is 1 byte more"));
    }
}
