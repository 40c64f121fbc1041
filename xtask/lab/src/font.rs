//! Font of plots: texts are placed by its widths, whatever fonts the machine has.

use anyhow::{Result, anyhow};
use plotters::style::{FontStyle, register_font};

/// Registers the font.
///
/// # Errors
/// None that can be brought about; the font is part of the program.
pub(crate) fn load() -> Result<()> {
    let loaded = register_font("sans-serif", FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT);
    loaded.map_err(|_invalid| anyhow!("the font cannot be read"))
}
