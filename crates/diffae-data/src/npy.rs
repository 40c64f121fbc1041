//! Arrays of `NumPy`, alone (`.npy`) or in archives (`.npz`): any byte order, either memory order, compressed or not.

use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek};
use std::path::{Path, PathBuf};

use half::f16;
use zip::ZipArchive;

use crate::error::{Error, Result as DataResult};
use crate::raster::MAX_VALUES;

/// First bytes of each array.
pub(crate) const MAGIC: &[u8] = b"\x93NUMPY";
/// Upper bound of a header's length; `NumPy`'s own are below 200 bytes.
const MAX_HEADER_BYTES: usize = 1 << 16;
/// Maximum size of an array, in bytes.
const MAX_BYTES: usize = 1 << 30;

/// An open `.npz` archive of arrays.
#[derive(Debug)]
pub struct NpzFile {
    path: PathBuf,
    archive: Npz<BufReader<File>>,
}

/// An archive, whose errors are sentences without the path.
#[derive(Debug)]
struct Npz<R> {
    archive: ZipArchive<R>,
}

/// An array, its values in C order whatever the order in the file.
#[derive(Debug, PartialEq)]
pub struct Array {
    /// Sizes of the axes.
    pub shape: Vec<usize>,
    /// Values, the last axis innermost.
    pub values: Vec<f64>,
    /// Number type in the file.
    pub(crate) number: Number,
}

/// A number type of `NumPy` that fits into f64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Number {
    kind: Kind,
    size: usize,
    order: ByteOrder,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Float,
    Signed,
    Unsigned,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ByteOrder {
    Little,
    Big,
}

/// Entries of an array's header.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    number: Number,
    is_fortran: bool,
    shape: Vec<usize>,
}

impl NpzFile {
    /// Opens an archive.
    ///
    /// # Errors
    /// [`Error::Array`] if it is none.
    pub fn open(path: &Path) -> DataResult<Self> {
        let failed = |problem: String| Error::Array { path: path.to_owned(), problem };
        let file = File::open(path).map_err(|error| failed(error.to_string()))?;
        Ok(Self { path: path.to_owned(), archive: Npz::new(BufReader::new(file)).map_err(failed)? })
    }

    /// Returns the names of the arrays, in the order of the archive.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.archive.names()
    }

    /// Reads an array by its name; `None` if the archive lacks it.
    ///
    /// # Errors
    /// [`Error::Array`] if it is damaged, or holds something else than real numbers.
    pub fn read(&mut self, name: &str) -> DataResult<Option<Array>> {
        self.archive.read(name).map_err(|problem| Error::Array { path: self.path.clone(), problem })
    }
}

impl<R: Read + Seek> Npz<R> {
    fn new(source: R) -> Result<Self, String> {
        let archive = ZipArchive::new(source)
            .map_err(|error| format!("this is not an .npz archive, which numpy.savez writes ({error})"))?;
        Ok(Self { archive })
    }

    fn names(&self) -> Vec<String> {
        let names = self.archive.file_names().filter_map(std::result::Result::ok);
        names.map(|name| name.trim_end_matches(".npy").to_owned()).collect()
    }

    fn read(&mut self, name: &str) -> Result<Option<Array>, String> {
        if !self.names().iter().any(|there| there == name) {
            return Ok(None);
        }
        let failed = |problem: String| format!("array {name}: {problem}");
        let mut file = self.archive.by_name(&format!("{name}.npy")).map_err(|error| failed(error.to_string()))?;
        read_array(&mut file).map(Some).map_err(failed)
    }
}

/// Reads the only array of an archive.
pub(crate) fn only_array(bytes: &[u8]) -> Result<Array, String> {
    let mut archive = Npz::new(Cursor::new(bytes))?;
    match archive.names().as_slice() {
        [name] => archive.read(name)?.ok_or_else(|| format!("there is no array {name}")),
        names => Err(format!("it holds {} arrays ({}), and a picture is one", names.len(), names.join(", "))),
    }
}

/// Encodes an array of f32 as a `.npy` file.
#[must_use]
pub fn npy_bytes(shape: &[usize], values: &[f32]) -> Vec<u8> {
    let sides: Vec<String> = shape.iter().map(|side| format!("{side},")).collect();
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}", sides.join(" "));
    // The values begin at a multiple of 64 bytes.
    let before = MAGIC.len() + 4;
    let padded = (before + header.len() + 1).next_multiple_of(64) - before;
    header.extend(std::iter::repeat_n(' ', padded - header.len() - 1));
    header.push('\n');
    let length = u16::try_from(header.len()).unwrap_or(u16::MAX).to_le_bytes();
    let mut bytes = [MAGIC, &[1, 0], &length, header.as_bytes()].concat();
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

pub(crate) fn read_array(source: &mut impl Read) -> Result<Array, String> {
    let Header { number, is_fortran, shape } = read_header(source)?;
    let too_large = || format!("shape {shape:?} is too large");
    let count = shape.iter().try_fold(1_usize, |count, &side| count.checked_mul(side)).ok_or_else(too_large)?;
    if count > MAX_VALUES || count.saturating_mul(number.size) > MAX_BYTES {
        return Err(too_large());
    }
    let num_bytes = count.checked_mul(number.size).ok_or_else(too_large)?;
    let mut bytes = vec![];
    // One byte more than there should be, so that the end is reached and the checksum compared.
    let limit = (num_bytes as u64).saturating_add(1);
    source.take(limit).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() != num_bytes {
        let more = if bytes.len() > num_bytes { "more" } else { "fewer" };
        return Err(format!("there are {more} bytes than the {num_bytes} of shape {shape:?}"));
    }
    let values: Vec<f64> = bytes.chunks_exact(number.size).map(|bytes| number.value(bytes)).collect();
    let values = if is_fortran { to_c_order(&shape, &values) } else { values };
    Ok(Array { shape, values, number: number.in_little_endian() })
}

fn read_header(source: &mut impl Read) -> Result<Header, String> {
    let cut_off = |_| "the header is cut off".to_owned();
    let mut start = [0; 8];
    source.read_exact(&mut start).map_err(cut_off)?;
    if !start.starts_with(MAGIC) {
        return Err("this is not an array of NumPy".to_owned());
    }
    let length = if start[6] == 1 {
        let mut length = [0; 2];
        source.read_exact(&mut length).map_err(cut_off)?;
        usize::from(u16::from_le_bytes(length))
    } else {
        let mut length = [0; 4];
        source.read_exact(&mut length).map_err(cut_off)?;
        u32::from_le_bytes(length) as usize
    };
    if length > MAX_HEADER_BYTES {
        return Err(format!("the header claims {length} bytes"));
    }
    let mut header = vec![0; length];
    source.read_exact(&mut header).map_err(cut_off)?;
    parse_header(&String::from_utf8_lossy(&header))
}

/// Reads `{'descr': '<f8', 'fortran_order': False, 'shape': (4, 4), }`.
fn parse_header(text: &str) -> Result<Header, String> {
    let after = |key: &str| {
        let (_, rest) = text.split_once(&format!("'{key}':")).ok_or_else(|| format!("the header has no {key}"))?;
        Ok::<_, String>(rest.trim_start())
    };
    let descr = after("descr")?;
    let is_structured = descr.starts_with('[');
    let descr = descr.split(['\'', '"']).nth(1).filter(|_| !is_structured);
    let number = Number::parse(descr.ok_or("it holds records, expected plain numbers")?)?;
    let is_fortran = after("fortran_order")?.starts_with("True");
    let shape = after("shape")?;
    let shape = shape.strip_prefix('(').and_then(|shape| shape.split_once(')')).ok_or("the header has no shape")?.0;
    let sides = shape.split(',').map(|side| side.trim().trim_end_matches('L')).filter(|side| !side.is_empty());
    let shape =
        sides.map(str::parse).collect::<Result<_, _>>().map_err(|_invalid| format!("({shape}) is not a shape"))?;
    Ok(Header { number, is_fortran, shape })
}

impl Number {
    pub(crate) const UINT8: Self = Self { kind: Kind::Unsigned, size: 1, order: ByteOrder::Little };
    pub(crate) const UINT16: Self = Self { kind: Kind::Unsigned, size: 2, order: ByteOrder::Little };

    pub(crate) fn is_float(self) -> bool {
        self.kind == Kind::Float
    }

    /// Returns the same type, whatever the byte order of the file.
    fn in_little_endian(self) -> Self {
        Self { order: ByteOrder::Little, ..self }
    }

    /// Reads `<f8`, `>f4`, `|u1` and the like.
    fn parse(descr: &str) -> Result<Self, String> {
        let unknown = || match descr.trim_start_matches(['<', '>', '=', '|']) {
            kind if kind.starts_with('O') => "it holds Python objects, expected numbers".to_owned(),
            kind if kind.starts_with('c') => format!("it holds complex numbers ({descr}), expected real ones"),
            kind if kind.starts_with(['U', 'S']) => "it holds text, expected numbers".to_owned(),
            _ => format!("numbers of type {descr} cannot be read; save them as float64"),
        };
        let order = if descr.starts_with('>') { ByteOrder::Big } else { ByteOrder::Little };
        let (kind, size) = match descr.trim_start_matches(['<', '>', '=', '|']) {
            "f2" => (Kind::Float, 2),
            "f4" => (Kind::Float, 4),
            "f8" => (Kind::Float, 8),
            "i1" => (Kind::Signed, 1),
            "i2" => (Kind::Signed, 2),
            "i4" => (Kind::Signed, 4),
            "i8" => (Kind::Signed, 8),
            "u1" => (Kind::Unsigned, 1),
            "u2" => (Kind::Unsigned, 2),
            "u4" => (Kind::Unsigned, 4),
            "u8" => (Kind::Unsigned, 8),
            _ => return Err(unknown()),
        };
        Ok(Self { kind, size, order })
    }

    /// Decodes the bytes of one value.
    fn value(self, bytes: &[u8]) -> f64 {
        let bits = |shift: u64, byte: &u8| (shift << 8) | u64::from(*byte);
        let bits = match self.order {
            ByteOrder::Big => bytes.iter().fold(0, bits),
            ByteOrder::Little => bytes.iter().rev().fold(0, bits),
        };
        let unused = 64 - 8 * u32::try_from(self.size).unwrap_or(8).min(8);
        #[expect(clippy::cast_possible_truncation, reason = "the type has no more bits")]
        match (self.kind, self.size) {
            (Kind::Float, 2) => f16::from_bits(bits as u16).to_f64(),
            (Kind::Float, 4) => f64::from(f32::from_bits(bits as u32)),
            (Kind::Float, _) => f64::from_bits(bits),
            (Kind::Signed, _) => ((bits << unused).cast_signed() >> unused) as f64,
            (Kind::Unsigned, _) => bits as f64,
        }
    }
}

/// Reorders values from Fortran order to C order.
fn to_c_order(shape: &[usize], values: &[f64]) -> Vec<f64> {
    let mut place = vec![0; shape.len()];
    let mut ordered = Vec::with_capacity(values.len());
    for _ in 0..values.len() {
        let from = shape.iter().zip(&place).rev().fold(0, |from, (side, at)| from * side + at);
        ordered.extend(values.get(from));
        for (at, side) in place.iter_mut().zip(shape).rev() {
            *at += 1;
            if *at < *side {
                break;
            }
            *at = 0;
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of an array as `NumPy` writes them.
    fn npy(descr: &str, order: &str, data: &[u8]) -> Vec<u8> {
        let header = format!("{{'descr': '{descr}', 'fortran_order': {order}, }}\n");
        let length = u16::try_from(header.len()).unwrap().to_le_bytes();
        [MAGIC, &[1, 0], &length, header.as_bytes(), data].concat()
    }

    fn read(descr: &str, order_and_shape: &str, data: &[u8]) -> Result<Array, String> {
        read_array(&mut &npy(descr, order_and_shape, data)[..])
    }

    #[test]
    fn every_number_type_and_byte_order_is_read() {
        let of = |descr: &str, data: &[u8]| read(descr, "False, 'shape': (2,)", data).unwrap().values;
        assert_eq!(of("<f8", &[1.5_f64.to_le_bytes(), (-2_f64).to_le_bytes()].concat()), [1.5, -2.]);
        assert_eq!(of(">f8", &[1.5_f64.to_be_bytes(), (-2_f64).to_be_bytes()].concat()), [1.5, -2.]);
        assert_eq!(of("<f4", &[1.5_f32.to_le_bytes(), (-2_f32).to_le_bytes()].concat()), [1.5, -2.]);
        assert_eq!(of(">f4", &[1.5_f32.to_be_bytes(), (-2_f32).to_be_bytes()].concat()), [1.5, -2.]);
        let halves = [f16::from_f32(1.5), f16::from_f32(-2.)];
        assert_eq!(of("<f2", &halves.map(f16::to_le_bytes).concat()), [1.5, -2.]);
        assert_eq!(of(">f2", &halves.map(f16::to_be_bytes).concat()), [1.5, -2.]);
        assert_eq!(of("<i8", &[7_i64.to_le_bytes(), (-2_i64).to_le_bytes()].concat()), [7., -2.]);
        assert_eq!(of(">i2", &[0, 7, 0xff, 0xfe]), [7., -2.]);
        assert_eq!(of("|u1", &[7, 254]), [7., 254.]);
        assert_eq!(of("|i1", &[7, 254]), [7., -2.]);
    }

    #[test]
    fn fortran_order_is_undone_for_any_rank() {
        let matrix = read("|u1", "True, 'shape': (2, 3)", &[1, 4, 2, 5, 3, 6]).unwrap();
        assert_eq!((matrix.shape, matrix.values), (vec![2, 3], vec![1., 2., 3., 4., 5., 6.]));
        // np.asfortranarray(np.arange(8).reshape(2, 2, 2))
        let cube = read("|u1", "True, 'shape': (2, 2, 2)", &[0, 4, 2, 6, 1, 5, 3, 7]).unwrap();
        assert_eq!(cube.values, [0., 1., 2., 3., 4., 5., 6., 7.]);
        let scalar = read("|u1", "True, 'shape': ()", &[9]).unwrap();
        assert_eq!((scalar.shape, scalar.values), (vec![], vec![9.]));
    }

    #[test]
    fn arrays_that_are_written_are_read() {
        for shape in [vec![], vec![2], vec![3, 1, 2]] {
            let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| i as f32 - 1.5).collect();
            let bytes = npy_bytes(&shape, &values);
            assert_eq!((bytes.len() - 4 * values.len()) % 64, 0);
            let array = read_array(&mut &bytes[..]).unwrap();
            assert_eq!(array.values, values.iter().map(|&value| f64::from(value)).collect::<Vec<_>>());
            assert_eq!(array.shape, shape);
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let problem = |descr: &str, order: &str, data: &[u8]| read(descr, order, data).unwrap_err();
        let pair = "False, 'shape': (2,)";
        assert!(problem("|O", pair, &[]).contains("Python objects"));
        assert!(problem("<c16", pair, &[]).contains("complex numbers"));
        assert!(problem("<U3", pair, &[]).contains("text"));
        assert!(problem("<f16", pair, &[]).contains("float64"));
        assert!(problem("|u1", pair, &[1]).contains("fewer bytes than the 2 of shape [2]"));
        assert!(problem("|u1", pair, &[1, 2, 3]).contains("more bytes"));
        assert!(problem("<f8", "False, 'shape': (99999999999, 99999999999)", &[]).contains("too large"));
        assert!(problem("<f8", "False", &[]).contains("no shape"));
        assert!(parse_header("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (2,), }").is_err());
        assert!(read_array(&mut &b"\x93NUM"[..]).unwrap_err().contains("cut off"));
        assert!(read_array(&mut &b"<html></html>"[..]).unwrap_err().contains("not an array"));
    }
}
