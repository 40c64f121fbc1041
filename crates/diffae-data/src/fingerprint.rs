//! Short checksums that identify contents.

/// A BLAKE3 checksum under construction, shown as its first 16 hexadecimal digits.
///
/// 64 bits tell accidental changes apart: files, settings and labels that a cache was made of. They are no protection
/// against someone who wants two things to look alike.
///
/// ```
/// use diffae_data::Fingerprint;
///
/// let mut fingerprint = Fingerprint::new();
/// fingerprint.update(b"z_sem").update(b"[N, D]");
/// assert_eq!(fingerprint.digits(), Fingerprint::of(b"z_sem[N, D]"));
/// assert_eq!(Fingerprint::of(b"").len(), 16);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Fingerprint(blake3::Hasher);

impl Fingerprint {
    /// Creates the checksum of no bytes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the digits of the checksum of some bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> String {
        Self::new().update(bytes).digits()
    }

    /// Adds bytes; splitting them over several calls does not change the result.
    pub fn update(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(bytes);
        self
    }

    /// Adds many bytes, with all threads of the pool.
    pub fn update_parallel(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update_rayon(bytes);
        self
    }

    /// Adds the remaining bytes of a reader.
    ///
    /// # Errors
    /// If reading fails.
    pub fn update_reader(&mut self, reader: impl std::io::Read) -> std::io::Result<&mut Self> {
        self.0.update_reader(reader)?;
        Ok(self)
    }

    /// Returns the first 16 hexadecimal digits of the checksum of all bytes so far.
    #[must_use]
    pub fn digits(&self) -> String {
        self.0.finalize().to_hex().chars().take(16).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digits_stay_what_they_are() {
        // Caches on disk are found by them.
        assert_eq!(Fingerprint::of(b"diffae"), blake3::hash(b"diffae").to_hex()[..16]);
        assert_ne!(Fingerprint::of(b"diffae"), Fingerprint::of(b"diffaf"));
    }
}
