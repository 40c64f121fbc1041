//! Parsing of the entropy-coded data of a JPEG scan to its last block, without reconstructing pixels.
//!
//! # Source
//! ITU-T T.81, annexes F (sequential) and G (progressive).

/// Number of bits of a code in the lookup table.
const LOOKUP_BITS: u32 = 9;

/// A defect of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    /// The file ends within the scan.
    EndOfFile,
    /// A marker comes before all blocks are there.
    Missing,
    /// A code that does not exist, or more coefficients than a block has.
    Invalid,
    /// The scan uses a Huffman table that the file does not define.
    NoTable,
}

/// A frame header, with the state of each component's blocks.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) progressive: bool,
    width: usize,
    height: usize,
    pub(super) components: Vec<Component>,
}

/// A color channel.
#[derive(Debug)]
pub(super) struct Component {
    id: u8,
    horizontal: usize,
    vertical: usize,
    /// Number of blocks in a row of the interleaved picture.
    row_blocks: usize,
    /// Nonzero coefficients, one bit each, one number per block; of progressive frames only.
    nonzero: Vec<u64>,
    seen: bool,
}

impl Component {
    /// Returns whether a scan has held the component.
    pub(super) fn is_there(&self) -> bool {
        self.seen
    }
}

impl Frame {
    /// Parses a frame header; `None` if the decoder does not read it either, such as 12 bits.
    pub(super) fn parse(segment: &[u8], marker: u8) -> Option<Self> {
        let &[8, height_high, height_low, width_high, width_low, count, ref rest @ ..] = segment else { return None };
        let height = usize::from(u16::from_be_bytes([height_high, height_low]));
        let width = usize::from(u16::from_be_bytes([width_high, width_low]));
        let count = usize::from(count);
        if width == 0 || height == 0 || !(1..=4).contains(&count) || rest.len() < 3 * count {
            return None;
        }
        let factors = |packed: u8| (usize::from(packed >> 4), usize::from(packed & 15));
        let parts = rest.chunks_exact(3).take(count).map(|part| (part[0], factors(part[1]))).collect::<Vec<_>>();
        if parts.iter().any(|(_, (h, v))| !(1..=4).contains(h) || !(1..=4).contains(v)) {
            return None;
        }
        let mut frame = Self { progressive: marker == 0xC2, width, height, components: vec![] };
        let most = |factor: fn(&(u8, (usize, usize))) -> usize| parts.iter().map(factor).max().unwrap_or(1);
        let (mcus_x, mcus_y) = (width.div_ceil(8 * most(|part| part.1.0)), height.div_ceil(8 * most(|part| part.1.1)));
        for &(id, (horizontal, vertical)) in &parts {
            let row_blocks = mcus_x * horizontal;
            let num_blocks = if frame.progressive { row_blocks * mcus_y * vertical } else { 0 };
            let nonzero = vec![0; num_blocks];
            frame.components.push(Component { id, horizontal, vertical, row_blocks, nonzero, seen: false });
        }
        Some(frame)
    }

    fn max_horizontal(&self) -> usize {
        self.components.iter().map(|component| component.horizontal).max().unwrap_or(1)
    }

    fn max_vertical(&self) -> usize {
        self.components.iter().map(|component| component.vertical).max().unwrap_or(1)
    }
}

/// A scan header.
#[derive(Debug)]
pub(super) struct Scan {
    /// Components of the scan: index in the frame, DC table, AC table.
    components: Vec<(usize, usize, usize)>,
    first: u8,
    last: u8,
    /// True if the scan adds bits to coefficients of an earlier one.
    refines: bool,
    restart_interval: usize,
}

impl Scan {
    /// Parses a scan header; `None` if it contradicts the frame.
    pub(super) fn parse(segment: &[u8], frame: &mut Frame, restart_interval: usize) -> Option<Self> {
        let (&count, rest) = segment.split_first()?;
        let count = usize::from(count);
        let (parts, spectral) = (rest.get(..2 * count)?, rest.get(2 * count..)?);
        let &[first, last, approximation, ..] = spectral else { return None };
        let mut components = vec![];
        for part in parts.chunks_exact(2) {
            let place = frame.components.iter().position(|component| component.id == part[0])?;
            components.push((place, usize::from(part[1] >> 4), usize::from(part[1] & 15)));
            frame.components[place].seen |= !frame.progressive || first == 0;
        }
        let is_band = last < 64 && first <= last && (first == 0) == (last == 0);
        let is_sensible = !frame.progressive || (is_band && (first == 0 || count == 1));
        let scan = Self { components, first, last, refines: approximation >> 4 > 0, restart_interval };
        (is_sensible && (1..=4).contains(&count)).then_some(scan)
    }
}

/// The current Huffman tables.
#[derive(Debug, Default)]
pub(super) struct Tables {
    dc: [Option<Huffman>; 4],
    ac: [Option<Huffman>; 4],
}

impl Tables {
    /// Reads a segment of tables; `None` if it is malformed.
    pub(super) fn add(&mut self, mut segment: &[u8]) -> Option<()> {
        while let Some((&kind, rest)) = segment.split_first() {
            let counts = rest.get(..16)?;
            let num_values: usize = counts.iter().map(|&count| usize::from(count)).sum();
            let values = rest.get(16..16 + num_values)?;
            let table = Huffman::new(counts, values)?;
            let tables = if kind >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            *tables.get_mut(usize::from(kind & 15))? = Some(table);
            segment = &rest[16 + num_values..];
        }
        Some(())
    }
}

#[derive(Debug)]
struct Huffman {
    /// Lookup table from the first bits of a code to `length << 8 | value`; zero where the code is longer.
    lookup: [u16; 1 << LOOKUP_BITS],
    /// End of the codes of each length: one more than the last code, all codes as 16 bits from the left.
    ends: [u32; 17],
    /// Offset for each length, which is added to a code to get the index of its value.
    offsets: [i32; 17],
    values: Vec<u8>,
}

impl Huffman {
    fn new(counts: &[u8], values: &[u8]) -> Option<Self> {
        let mut lookup = [0; 1 << LOOKUP_BITS];
        let (mut ends, mut offsets) = ([0; 17], [0; 17]);
        let (mut code, mut place) = (0_u32, 0_u32);
        for (length, &count) in (1_u32..).zip(counts) {
            offsets[length as usize] = i32::try_from(place).ok()? - i32::try_from(code).ok()?;
            for _ in 0..count {
                if code >= 1 << length {
                    return None;
                }
                let entry = u16::try_from(length << 8 | u32::from(*values.get(place as usize)?)).ok()?;
                if length <= LOOKUP_BITS {
                    let start = (code << (LOOKUP_BITS - length)) as usize;
                    lookup[start..start + (1 << (LOOKUP_BITS - length))].fill(entry);
                }
                (code, place) = (code + 1, place + 1);
            }
            ends[length as usize] = code << (16 - length);
            code <<= 1;
        }
        Some(Self { lookup, ends, offsets, values: values.to_vec() })
    }
}

/// Bits of a scan up to the next marker.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    buffer: u64,
    count: u32,
}

impl Bits<'_> {
    /// Fills the buffer, to 32 bits at least if there are as many.
    fn fill(&mut self) {
        while self.count <= 32 {
            let four = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<4>());
            match four {
                Some(four) if !four.contains(&0xFF) => {
                    self.buffer = self.buffer << 32 | u64::from(u32::from_be_bytes(*four));
                    self.at += 4;
                    self.count += 32;
                }
                _ if self.fill_byte() => {}
                _ => return,
            }
        }
    }

    /// Fills the buffer by a byte, unless there is none before the next marker.
    fn fill_byte(&mut self) -> bool {
        let Some(&byte) = self.bytes.get(self.at) else { return false };
        if byte == 0xFF {
            if self.bytes.get(self.at + 1) != Some(&0) {
                return false;
            }
            self.at += 1;
        }
        self.at += 1;
        self.buffer = self.buffer << 8 | u64::from(byte);
        self.count += 8;
        true
    }

    fn exhausted(&self) -> Flaw {
        let is_marker = self.bytes.get(self.at..).is_some_and(|rest| rest.iter().any(|&byte| byte != 0xFF));
        if is_marker { Flaw::Missing } else { Flaw::EndOfFile }
    }

    /// Returns the next 16 bits, zeros where there are fewer.
    #[inline]
    fn peek(&mut self) -> u32 {
        if self.count < 16 {
            self.fill();
        }
        let bits = if self.count >= 16 { self.buffer >> (self.count - 16) } else { self.buffer << (16 - self.count) };
        u32::from_be_bytes([0, 0, bits.to_le_bytes()[1], bits.to_le_bytes()[0]])
    }

    #[inline]
    fn skip(&mut self, count: u32) -> Result<(), Flaw> {
        if count > self.count {
            self.fill();
            if count > self.count {
                return Err(self.exhausted());
            }
        }
        self.count -= count;
        Ok(())
    }

    /// Takes up to 16 bits.
    fn take(&mut self, count: u32) -> Result<u32, Flaw> {
        let bits = self.peek() >> (16 - count);
        self.skip(count).map(|()| bits)
    }

    /// Reads the next symbol, and skips the bits of the coefficient after it, whose number is in its lower half.
    #[inline]
    fn symbol(&mut self, table: &Huffman) -> Result<u8, Flaw> {
        let bits = self.peek();
        let entry = table.lookup[(bits >> (16 - LOOKUP_BITS)) as usize];
        let [value, length] = entry.to_le_bytes();
        if length == 0 {
            let value = self.long_symbol(table, bits)?;
            return self.skip(u32::from(value & 15)).map(|()| value);
        }
        self.skip(u32::from(length) + u32::from(value & 15)).map(|()| value)
    }

    #[cold]
    fn long_symbol(&mut self, table: &Huffman, bits: u32) -> Result<u8, Flaw> {
        let longer = LOOKUP_BITS as usize + 1..=16;
        let Some(length) = longer.into_iter().find(|&length| bits < table.ends[length]) else {
            return Err(if self.count < 16 { self.exhausted() } else { Flaw::Invalid });
        };
        let code = i32::try_from(bits >> (16 - length)).unwrap_or_default();
        self.skip(u32::try_from(length).unwrap_or(16))?;
        let place = usize::try_from(code + table.offsets[length]).ok();
        place.and_then(|place| table.values.get(place).copied()).ok_or(Flaw::Invalid)
    }

    /// Advances past a restart marker of the given number.
    fn restart(&mut self, number: usize) -> Result<(), Flaw> {
        (self.buffer, self.count) = (0, 0);
        loop {
            let rest = self.bytes.get(self.at..).unwrap_or_default();
            let found = rest.iter().position(|&byte| byte == 0xFF).ok_or(Flaw::EndOfFile)?;
            match rest.get(found + 1) {
                None => return Err(Flaw::EndOfFile),
                Some(0) => self.at += found + 2,
                Some(0xFF) => self.at += found + 1,
                Some(&marker) => {
                    self.at += found + 2;
                    let expected = usize::from(marker) == 0xD0 + number % 8;
                    return if expected { Ok(()) } else { Err(Flaw::Missing) };
                }
            }
        }
    }
}

/// Reads all blocks of a scan: returns the number of bytes, or the defect and the share of blocks before it.
pub(super) fn read_scan(scan: &Scan, frame: &mut Frame, tables: &Tables, data: &[u8]) -> Result<usize, (Flaw, f64)> {
    let mut bits = Bits { bytes: data, at: 0, buffer: 0, count: 0 };
    let (across, down) = units(scan, frame);
    let total = across * down;
    let mut end_of_band = 0;
    for unit in 0..total {
        let failed = |flaw| (flaw, unit as f64 / total as f64);
        let since_restart = unit.checked_rem(scan.restart_interval).unwrap_or(1);
        if unit > 0 && since_restart == 0 {
            let number = unit.checked_div(scan.restart_interval).unwrap_or(1) - 1;
            bits.restart(number).map_err(failed)?;
            end_of_band = 0;
        }
        let place = (unit % across, unit.checked_div(across).unwrap_or(0));
        let mut blocks = Blocks { scan, tables, bits: &mut bits, end_of_band: &mut end_of_band };
        blocks.read_unit(frame, place).map_err(failed)?;
    }
    Ok(bits.at)
}

/// Returns the number of units of a scan, across and down: blocks of its only component, or groups of blocks of all of
/// them.
fn units(scan: &Scan, frame: &Frame) -> (usize, usize) {
    let (max_h, max_v) = (frame.max_horizontal(), frame.max_vertical());
    if let &[(place, ..)] = scan.components.as_slice() {
        let component = &frame.components[place];
        let samples = |length: usize, factor: usize, most: usize| (length * factor).div_ceil(most);
        let across = samples(frame.width, component.horizontal, max_h).div_ceil(8);
        let down = samples(frame.height, component.vertical, max_v).div_ceil(8);
        return (across, down);
    }
    (frame.width.div_ceil(8 * max_h), frame.height.div_ceil(8 * max_v))
}

/// Blocks of a scan, one after the other.
struct Blocks<'a, 'b> {
    scan: &'a Scan,
    tables: &'a Tables,
    bits: &'a mut Bits<'b>,
    /// Number of blocks without further coefficients in this band.
    end_of_band: &'a mut u32,
}

impl Blocks<'_, '_> {
    fn read_unit(&mut self, frame: &mut Frame, (x, y): (usize, usize)) -> Result<(), Flaw> {
        let is_alone = self.scan.components.len() == 1;
        for &(place, dc, ac) in &self.scan.components {
            let component = &mut frame.components[place];
            let (across, down) = if is_alone { (1, 1) } else { (component.horizontal, component.vertical) };
            for block in 0..across * down {
                if !frame.progressive {
                    self.sequential(dc, ac)?;
                    continue;
                }
                let column = x * across + block % across;
                let row = y * down + block.checked_div(across).unwrap_or(0);
                let nonzero = component.nonzero.get_mut(row * component.row_blocks + column).ok_or(Flaw::Invalid)?;
                match (self.scan.first, self.scan.refines) {
                    (0, false) => self.dc(dc)?,
                    (0, true) => self.bits.skip(1)?,
                    (_, false) => self.ac_first(ac, nonzero)?,
                    (_, true) => self.ac_refinement(ac, nonzero)?,
                }
            }
        }
        Ok(())
    }

    fn dc(&mut self, table: usize) -> Result<(), Flaw> {
        let table = self.tables.dc.get(table).and_then(Option::as_ref).ok_or(Flaw::NoTable)?;
        if self.bits.symbol(table)? > 15 { Err(Flaw::Invalid) } else { Ok(()) }
    }

    fn sequential(&mut self, dc: usize, ac: usize) -> Result<(), Flaw> {
        self.dc(dc)?;
        let mut at = 1;
        while at < 64 {
            let symbol = self.symbol(ac)?;
            let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
            match (run, size) {
                (15, 0) => at += 16,
                (_, 0) => break,
                _ => {
                    at += run + 1;
                    if at > 64 {
                        return Err(Flaw::Invalid);
                    }
                }
            }
        }
        Ok(())
    }

    fn ac_first(&mut self, table: usize, nonzero: &mut u64) -> Result<(), Flaw> {
        if *self.end_of_band > 0 {
            *self.end_of_band -= 1;
            return Ok(());
        }
        let (mut at, last) = (u32::from(self.scan.first), u32::from(self.scan.last));
        while at <= last {
            let symbol = self.symbol(table)?;
            let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
            match (run, size) {
                (15, 0) => at += 16,
                (_, 0) => {
                    *self.end_of_band = (1 << run) - 1 + self.bits.take(run)?;
                    break;
                }
                _ => {
                    at += run;
                    if at > last {
                        return Err(Flaw::Invalid);
                    }
                    *nonzero |= 1 << at;
                    at += 1;
                }
            }
        }
        Ok(())
    }

    fn symbol(&mut self, table: usize) -> Result<u8, Flaw> {
        let table = self.tables.ac.get(table).and_then(Option::as_ref).ok_or(Flaw::NoTable)?;
        self.bits.symbol(table)
    }

    fn ac_refinement(&mut self, table: usize, nonzero: &mut u64) -> Result<(), Flaw> {
        let (mut at, last) = (u32::from(self.scan.first), u32::from(self.scan.last));
        if *self.end_of_band == 0 {
            while at <= last {
                let symbol = self.symbol(table)?;
                let (mut run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
                if size == 0 && run < 15 {
                    *self.end_of_band = (1 << run) + self.bits.take(run)?;
                    break;
                }
                if size > 1 {
                    return Err(Flaw::Invalid);
                }
                // Over `run` coefficients that are still zero; those that are not get a bit each.
                while at <= last {
                    if *nonzero >> at & 1 == 1 {
                        self.bits.skip(1)?;
                    } else if run == 0 {
                        break;
                    } else {
                        run -= 1;
                    }
                    at += 1;
                }
                if size > 0 {
                    if at > last {
                        return Err(Flaw::Invalid);
                    }
                    *nonzero |= 1 << at;
                }
                at += 1;
            }
        }
        if *self.end_of_band > 0 {
            for at in at..=last {
                if *nonzero >> at & 1 == 1 {
                    self.bits.skip(1)?;
                }
            }
            *self.end_of_band -= 1;
        }
        Ok(())
    }
}
