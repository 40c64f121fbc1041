//! The pictures of a run, and how they are read.

use diffae_data::{Crop, FindSettings, Window};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Selection and reading of pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// Crop of a picture, applied before it is resized.
    pub crop: Crop,
    /// Probability of a random horizontal flip.
    pub flip: f64,
    /// Share of pictures that are held out for validation, by a hash of their names.
    pub validation_share: f64,
    /// Maximum share of unreadable pictures among all that a run reads.
    pub max_broken_share: f64,
    /// Number of threads that read pictures.
    pub workers: usize,
    /// Number of batches that are read ahead.
    pub prefetch: usize,
    /// Picture of a sample: a key of a `WebDataset` (`jpg`, `seg.png`; `;` between alternatives; `*` for
    /// every picture) or a column of Parquet files. If it is empty, the obvious one.
    #[serde(default)]
    pub picture_key: String,
    /// Values that become -1 and 1, `[low, high]`, for numbers whose scale a file does not tell: `[-1000.0, 400.0]` Hounsfield units,
    /// for instance. Lesser and larger ones are clamped. If it is empty, integers of 8 and 16 bits fill the range and floats lie in
    /// it.
    #[serde(default, serialize_with = "write_window", deserialize_with = "read_window")]
    pub window: Option<Window>,
}

impl DataSettings {
    /// Returns the settings that decide which pictures belong to a run.
    #[must_use]
    pub fn find_settings(&self) -> FindSettings<'_> {
        let &Self { crop, validation_share, max_broken_share, .. } = self;
        FindSettings { crop, validation_share, max_broken_share, picture_key: &self.picture_key }
    }
}

#[expect(clippy::ref_option, reason = "serde passes references")]
fn write_window<S: Serializer>(window: &Option<Window>, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(window.iter().flat_map(|&window| <[f64; 2]>::from(window)))
}

fn read_window<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<Window>, D::Error> {
    let ends = Vec::<f64>::deserialize(deserializer)?;
    match ends[..] {
        [] => Ok(None),
        [low, high] => Window::new(low, high).map(Some).map_err(serde::de::Error::custom),
        _ => Err(serde::de::Error::invalid_length(ends.len(), &"two numbers, the lesser first, or none")),
    }
}
