//! The members of a tar archive and the positions of their bytes, from headers alone; a truncated or damaged archive is
//! an error.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use tar::{EntryType, Header};

use crate::error::{Error, Result, at};
use crate::file_kind::is_tar_header;
use crate::names::is_picture_name;
use crate::notices::{counted, verb, warn_once};

/// Block size of archives.
const BLOCK: u64 = 512;
/// Maximum size of long names and pax headers.
const MAX_HEADER_BYTES: u64 = 1 << 20;
/// Maximum number of zeros at the end of an archive; no program writes more.
const MAX_ZEROS: u64 = 2 << 20;
/// Maximum length of a chain of links.
const MAX_LINKS: usize = 8;

/// A regular file in an archive, or a link to one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// Path with `/` between the parts, without `./` or `/` in front.
    pub(crate) name: String,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// Returns a path without `.` and empty parts.
pub(crate) fn clean_name(name: &str) -> String {
    name.split('/').filter(|part| !matches!(*part, "" | ".")).collect::<Vec<_>>().join("/")
}

/// Returns whether a path is of a file that an operating system or an archiver keeps for itself, such as `._0.png` of
/// macOS.
pub(crate) fn is_hidden(name: &str) -> bool {
    let is_hidden_part = |part: &str| {
        (part.starts_with('.') && part != "..")
            || part == "__MACOSX"
            || part.trim_start_matches('@').starts_with("PaxHeader")
    };
    name.split('/').any(is_hidden_part)
}

/// Lists the members of the archive in `file`; `archive` is its name in messages.
///
/// An archive without its end mark is taken for whole if its last member is, with a warning: some programs leave the mark
/// out, and nothing tells such an archive from one that was cut off exactly there. Archives that were appended to each
/// other are read to the last. Of members of one name the last counts, as it does when they are unpacked.
///
/// # Errors
/// [`Error::Data`] if the archive is empty, cut off, damaged, or no archive at all.
pub(crate) fn list(file: File, archive: &Path) -> Result<Vec<Member>> {
    let length = file.metadata().map_err(at(archive))?.len();
    let reader = BufReader::new(file);
    let mut walk =
        Walk { reader, archive, length, position: 0, extensions: Extensions::default(), found: Found::default() };
    while walk.step()? {}
    let Walk { found, .. } = walk;
    Ok(found.members(archive))
}

/// The position of a walk through an archive.
struct Walk<'a> {
    reader: BufReader<File>,
    archive: &'a Path,
    length: u64,
    position: u64,
    extensions: Extensions,
    found: Found,
}

/// Properties of the next member from its extension headers.
#[derive(Default)]
struct Extensions {
    name: Option<String>,
    link: Option<String>,
    size: Option<u64>,
    is_sparse: bool,
}

/// Members found so far, and obstacles to others.
#[derive(Default)]
struct Found {
    files: Vec<Member>,
    /// Links, as name and target.
    links: Vec<(String, String)>,
    sparse: Vec<String>,
    num_members: usize,
    last: String,
    /// Position of the first block of zeros after the last member.
    end_mark: Option<u64>,
}

impl Walk<'_> {
    fn failed(&self, problem: String) -> Error {
        Error::Data { path: self.archive.to_owned(), problem }
    }

    fn cut_off(&self, place: &str) -> Error {
        let count = self.found.num_members;
        let (members, are) = (counted(count, "member"), verb(count, "is", "are"));
        self.failed(format!(
            "the archive is cut off after {}, {place}; {members} before {are} whole. Download or make it again, \
             or take it out of the data",
            counted(self.length, "byte")
        ))
    }

    fn seek(&mut self, position: u64) -> Result<()> {
        let ahead = i64::try_from(position).unwrap_or(i64::MAX) - i64::try_from(self.position).unwrap_or(0);
        self.position = position;
        self.reader.seek_relative(ahead).map_err(at(self.archive))
    }

    /// Reads bytes from the position on, as many as there are.
    fn read(&mut self, count: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![];
        self.reader.by_ref().take(count).read_to_end(&mut bytes).map_err(at(self.archive))?;
        self.position += bytes.len() as u64;
        Ok(bytes)
    }

    /// Reads a header and skips its data. Returns false at the end.
    fn step(&mut self) -> Result<bool> {
        let start = self.position;
        let block = self.read(BLOCK)?;
        if block.iter().all(|&byte| byte == 0) {
            return self.zeros(start, block.len() as u64);
        }
        let is_first = self.found.num_members == 0 && self.found.end_mark.is_none();
        if !is_tar_header(&block) {
            return match self.found.end_mark {
                Some(_) => {
                    self.warn_of_foreign_end(start);
                    Ok(false)
                }
                None if block.len() < 512 => Err(self.cut_off("inside the header of a member")),
                None if is_first => Err(self.failed("it is no tar archive".to_owned())),
                None => Err(self.failed(format!(
                    "the archive is damaged: there is no header at byte {start}, after {}. Download or make it again, or \
                     take it out of the data",
                    self.found.last
                ))),
            };
        }
        self.found.end_mark = None;
        self.member(Header::from_byte_slice(&block))?;
        Ok(true)
    }

    /// Handles zeros: the end mark, or nothing at all; another archive may follow.
    fn zeros(&mut self, start: u64, count: u64) -> Result<bool> {
        if count == BLOCK {
            self.found.end_mark.get_or_insert(start);
            return Ok(true);
        }
        let name = self.archive.display();
        match self.found.end_mark {
            None if self.length == 0 => {
                return Err(self.failed("the file is empty; download or make it again".to_owned()));
            }
            None if count > 0 => return Err(self.cut_off("inside its end mark")),
            None => warn_once(&format!(
                "{name} has no end mark after its last member, {}; if the file was cut off exactly there, pictures are \
                 missing",
                self.found.last
            )),
            Some(mark) if start - mark > MAX_ZEROS => warn_once(&format!(
                "{name} ends in {} of zeros after {}; if its download was not finished, pictures are missing",
                counted(self.length - mark, "byte"),
                counted(self.found.num_members, "member")
            )),
            Some(_) => {}
        }
        Ok(false)
    }

    /// Warns of other bytes behind the end mark, which are no part of the archive.
    fn warn_of_foreign_end(&self, start: u64) {
        let name = self.archive.display();
        let bytes = counted(self.length - start, "byte");
        warn_once(&format!("{name}: {bytes} behind the end mark that are no archive"));
    }

    /// Adds the member of a header, and skips the data behind it.
    fn member(&mut self, header: &Header) -> Result<()> {
        let kind = header.entry_type();
        let extensions = if is_extension(kind) { Extensions::default() } else { std::mem::take(&mut self.extensions) };
        let written = header.path_bytes();
        let path =
            extensions.name.as_deref().map_or_else(|| clean_name(&String::from_utf8_lossy(&written)), clean_name);
        let size = extensions.size.map_or_else(|| header.entry_size(), Ok);
        let size = size.map_err(|error| self.failed(format!("the archive is damaged at {path}: {error}")))?;
        let is_sparse = kind == EntryType::GNUSparse || extensions.is_sparse;
        if kind == EntryType::GNUSparse {
            self.pass_sparse_map(header, &path)?;
        }
        let (data, has_data) = (self.position, has_data(kind));
        if has_data {
            self.check_whole(&path, size)?;
        }
        match kind {
            EntryType::GNULongName => self.extensions.name = Some(self.text(size)?),
            EntryType::GNULongLink => self.extensions.link = Some(self.text(size)?),
            EntryType::XHeader => self.pax(size)?,
            EntryType::Link | EntryType::Symlink => {
                let link = header.link_name_bytes().unwrap_or_default();
                let target = extensions.link.unwrap_or_else(|| String::from_utf8_lossy(&link).into_owned());
                self.found.links.push((path.clone(), target_of(&path, &target, kind)));
            }
            _ if is_sparse => self.found.sparse.push(path.clone()),
            EntryType::Regular | EntryType::Continuous if !written.ends_with(b"/") => {
                self.found.files.push(Member { name: path.clone(), offset: data, length: size });
            }
            _ => {}
        }
        if has_data {
            self.seek(data + size.next_multiple_of(BLOCK))?;
        }
        if !is_extension(kind) {
            (self.found.num_members, self.found.last) = (self.found.num_members + 1, path);
        }
        Ok(())
    }

    /// Fails if the bytes of a member, or the rest of their last block, are not all there.
    fn check_whole(&self, name: &str, size: u64) -> Result<()> {
        let left = self.length.saturating_sub(self.position);
        if size > left {
            return Err(self.cut_off(&format!("inside {name}, of which {left} of {} are there", counted(size, "byte"))));
        }
        if size.checked_next_multiple_of(BLOCK).is_none_or(|whole| whole > left) {
            return Err(self.cut_off(&format!("in the block that ends {name}")));
        }
        Ok(())
    }

    /// Reads a name that has a header of its own.
    fn text(&mut self, size: u64) -> Result<String> {
        let bytes = self.read(size.min(MAX_HEADER_BYTES))?;
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        Ok(String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned())
    }

    /// Reads the pax records that matter here.
    fn pax(&mut self, size: u64) -> Result<()> {
        let bytes = self.read(size.min(MAX_HEADER_BYTES))?;
        let damaged = || self.failed("the archive is damaged: a pax header does not hold records".to_owned());
        let records = pax_records(&bytes).ok_or_else(damaged)?;
        for (key, value) in records {
            let value = String::from_utf8_lossy(value).into_owned();
            match key {
                b"path" => self.extensions.name = Some(value),
                b"linkpath" => self.extensions.link = Some(value),
                b"size" => self.extensions.size = value.parse().ok(),
                b"GNU.sparse.name" => (self.extensions.name, self.extensions.is_sparse) = (Some(value), true),
                key if key.starts_with(b"GNU.sparse.") => self.extensions.is_sparse = true,
                _ => {}
            }
        }
        Ok(())
    }

    /// Skips the blocks with the positions of the holes in an old GNU sparse member.
    fn pass_sparse_map(&mut self, header: &Header, name: &str) -> Result<()> {
        let mut goes_on = header.as_bytes().get(482).is_some_and(|&flag| flag != 0);
        while goes_on {
            let block = self.read(BLOCK)?;
            if block.len() < 512 {
                return Err(self.cut_off(&format!("inside the header of {name}")));
            }
            goes_on = block.get(504).is_some_and(|&flag| flag != 0);
        }
        Ok(())
    }
}

/// Returns whether a header only extends the next member.
fn is_extension(kind: EntryType) -> bool {
    matches!(kind, EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader)
}

/// Returns whether data follow a header, whatever its size field.
fn has_data(kind: EntryType) -> bool {
    !matches!(
        kind,
        EntryType::Link
            | EntryType::Symlink
            | EntryType::Directory
            | EntryType::Char
            | EntryType::Block
            | EntryType::Fifo
    )
}

/// Parses records of the form `LENGTH KEY=VALUE\n` into keys and values; values may hold any bytes.
fn pax_records(bytes: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let (mut records, mut rest) = (vec![], bytes);
    while !rest.is_empty() {
        let space = rest.iter().position(|&byte| byte == b' ')?;
        let length: usize = std::str::from_utf8(rest.get(..space)?).ok()?.parse().ok()?;
        let record = rest.get(space + 1..length.checked_sub(1)?)?;
        let equals = record.iter().position(|&byte| byte == b'=')?;
        records.push((record.get(..equals)?, record.get(equals + 1..)?));
        rest = rest.get(length..)?;
    }
    Some(records)
}

/// Returns the path of the member that a link leads to: hard links contain its path in the archive, symbolic ones its
/// path from where they are.
fn target_of(link: &str, target: &str, kind: EntryType) -> String {
    if kind == EntryType::Link || target.starts_with('/') {
        return clean_name(target);
    }
    let mut parts: Vec<&str> = link.split('/').collect();
    parts.pop();
    for part in target.split('/').filter(|part| !matches!(*part, "" | ".")) {
        if part == ".." && parts.pop().is_some() {
            continue;
        }
        parts.push(part);
    }
    parts.join("/")
}

impl Found {
    /// Returns files and links in order, each name once.
    fn members(self, archive: &Path) -> Vec<Member> {
        let name = archive.display();
        let (linked, lost) = self.linked();
        let pictures = |names: Vec<&String>| {
            let is_picture = |name: &&String| !is_hidden(name) && is_picture_name(Path::new(name));
            names.into_iter().filter(is_picture).cloned().collect::<Vec<_>>()
        };
        let say = |names: Vec<String>, text: &str| {
            if let Some(first) = names.first() {
                warn_once(&format!("{name}: {} {text}, such as {first}", counted(names.len(), "picture")));
            }
        };
        say(pictures(lost), "left out: links that lead out of the archive");
        say(pictures(self.sparse.iter().collect()), "left out: stored as sparse files; pack them without --sparse");
        let mut all = self.files;
        all.extend(linked);
        let last: HashMap<&str, usize> =
            all.iter().enumerate().map(|(idx, member)| (member.name.as_str(), idx)).collect();
        let replaced = all.len() - last.len();
        if replaced == 0 {
            return all;
        }
        warn_once(&format!(
            "{name}: {} {} in it twice; the last of each name counts",
            counted(replaced, "file"),
            verb(replaced, "is", "are")
        ));
        let is_last = |(idx, member): (usize, &Member)| last.get(member.name.as_str()) == Some(&idx);
        let mut kept = all.iter().enumerate().map(is_last).collect::<Vec<_>>().into_iter();
        all.retain(|_| kept.next() == Some(true));
        all
    }

    /// Returns the members that links lead to, under the names of the links, and the names of links that lead out of the archive.
    fn linked(&self) -> (Vec<Member>, Vec<&String>) {
        let (mut linked, mut lost) = (vec![], vec![]);
        if self.links.is_empty() {
            return (linked, lost);
        }
        let places: HashMap<&str, &Member> = self.files.iter().map(|member| (member.name.as_str(), member)).collect();
        let targets: HashMap<&str, &str> = self.links.iter().map(|(link, to)| (link.as_str(), to.as_str())).collect();
        let resolve = |link: &str| {
            let mut to = link;
            for _ in 0..MAX_LINKS {
                to = targets.get(to)?;
                if let Some(member) = places.get(to) {
                    return Some((*member).clone());
                }
            }
            None
        };
        for (link, _) in &self.links {
            match resolve(link) {
                Some(member) => linked.push(Member { name: link.clone(), ..member }),
                None => lost.push(link),
            }
        }
        (linked, lost)
    }
}

/// Reads bytes of a file from `offset` on.
///
/// # Errors
/// If they are not there.
pub(crate) fn read_part(path: &Path, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = vec![0; length];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}
