//! Writes zip archives whose entries are not compressed, to test readers of them.

/// Form of sizes and places in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ZipForm {
    /// Fields of 32 bits.
    Classic,
    /// Fields of 64 bits, as PyTorch writes them for large files.
    Zip64,
}

const MARKER: u32 = u32::MAX;

/// Returns an archive of entries with these names and data. The entries' own headers have no sizes, as from PyTorch.
pub(crate) fn stored_zip(form: ZipForm, entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = Vec::new();
    let mut directory = Vec::new();
    for (name, data) in entries {
        let header_start = zip.len() as u64;
        let padding = [b'F', b'B', 3, 0, 0, 0, 0];
        zip.extend(0x0403_4b50_u32.to_le_bytes());
        zip.extend([0; 22]);
        zip.extend(short(name.len()).to_le_bytes());
        zip.extend(short(padding.len()).to_le_bytes());
        zip.extend(name.as_bytes());
        zip.extend(padding);
        zip.extend(*data);
        directory.extend(directory_entry(form, name, data, header_start));
    }
    let directory_start = zip.len() as u64;
    zip.extend(&directory);
    zip.extend(directory_end(form, entries.len() as u64, directory.len() as u64, directory_start));
    zip
}

fn directory_entry(form: ZipForm, name: &str, data: &[u8], header_start: u64) -> Vec<u8> {
    let mut extra = Vec::new();
    let len = data.len() as u64;
    let [short_len, short_start] = match form {
        ZipForm::Classic => [len, header_start].map(|field| u32::try_from(field).unwrap()),
        ZipForm::Zip64 => {
            extra.extend([9, 9, 1, 0, 7]); // Some other field comes first.
            extra.extend([1_u16.to_le_bytes(), 24_u16.to_le_bytes()].concat());
            extra.extend([len, len, header_start].map(u64::to_le_bytes).concat());
            [MARKER, MARKER]
        }
    };
    let mut entry = 0x0201_4b50_u32.to_le_bytes().to_vec();
    entry.extend([0; 12]);
    entry.extend(crc32fast::hash(data).to_le_bytes());
    entry.extend([short_len, short_len].map(u32::to_le_bytes).concat());
    entry.extend([short(name.len()), short(extra.len())].map(u16::to_le_bytes).concat());
    entry.extend([0; 10]);
    entry.extend(short_start.to_le_bytes());
    entry.extend(name.as_bytes());
    entry.extend(extra);
    entry
}

fn directory_end(form: ZipForm, num_entries: u64, len: u64, start: u64) -> Vec<u8> {
    let mut end = Vec::new();
    let (mut short_num, mut short_len, mut short_start) = (u16::MAX, MARKER, MARKER);
    match form {
        ZipForm::Classic => {
            short_num = u16::try_from(num_entries).unwrap();
            (short_len, short_start) = (u32::try_from(len).unwrap(), u32::try_from(start).unwrap());
        }
        ZipForm::Zip64 => {
            end.extend(0x0606_4b50_u32.to_le_bytes());
            end.extend(44_u64.to_le_bytes());
            end.extend([0; 12]);
            end.extend([num_entries, num_entries, len, start].map(u64::to_le_bytes).concat());
            end.extend(0x0706_4b50_u32.to_le_bytes());
            end.extend([0; 4]);
            end.extend((start + len).to_le_bytes());
            end.extend(1_u32.to_le_bytes());
        }
    }
    end.extend(0x0605_4b50_u32.to_le_bytes());
    end.extend([0; 4]);
    end.extend([short_num, short_num].map(u16::to_le_bytes).concat());
    end.extend([short_len, short_start].map(u32::to_le_bytes).concat());
    end.extend([0; 2]);
    end
}

fn short(number: usize) -> u16 {
    u16::try_from(number).unwrap()
}
