//! One face: its options and its pixels.

use std::io::Cursor;

use anyhow::{Context, Result, anyhow, ensure};
use dicebear_core::Avatar;
use image::{ImageFormat, Rgb, RgbImage};
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg;
use serde_json::{Map, Value, json};

use super::style::{BACKGROUNDS, Style};

/// A face that is drawn but not yet rendered.
#[derive(Debug)]
pub(super) struct Face {
    /// Options that follow from the seed and the forced options.
    pub(super) options: Map<String, Value>,
    svg: String,
}

/// Draws faces of a style at a size.
pub(super) struct Painter {
    style: &'static Style,
    definition: dicebear_core::Style,
    size: u32,
}

impl Painter {
    pub(super) fn new(style: &'static Style, size: u32) -> Result<Self> {
        Ok(Self { style, definition: style.definition()?, size })
    }

    /// Draws the face of a seed, but with some options forced; all others are as without.
    pub(super) fn face(&self, seed: &str, forced: &Map<String, Value>) -> Result<Face> {
        let mut options = json!({
            "seed": seed,
            "size": self.size,
            "scale": self.style.scale,
            "backgroundColor": BACKGROUNDS,
        });
        options.as_object_mut().context("options are an object")?.extend(forced.clone());
        let avatar = Avatar::new(&self.definition, options).map_err(|error| anyhow!("face {seed}: {error}"))?;
        let resolved = avatar.to_json();
        let options = resolved.get("options").and_then(Value::as_object).context("a face has options")?;
        Ok(Face { options: options.clone(), svg: avatar.to_svg().to_owned() })
    }

    /// Renders the pixels of a face; shapes cover pixels in part, without any further smoothing.
    pub(super) fn render(&self, face: &Face) -> Result<RgbImage> {
        let tree = usvg::Tree::from_str(&face.svg, &usvg::Options::default()).context("the drawing is no SVG")?;
        let mut pixels = Pixmap::new(self.size, self.size).context("there is no picture of this size")?;
        resvg::render(&tree, Transform::identity(), &mut pixels.as_mut());
        ensure!(pixels.pixels().iter().all(|pixel| pixel.alpha() == u8::MAX), "the drawing leaves parts empty");
        Ok(RgbImage::from_fn(self.size, self.size, |x, y| {
            pixels.pixel(x, y).map_or(Rgb([0; 3]), |pixel| Rgb([pixel.red(), pixel.green(), pixel.blue()]))
        }))
    }

    /// Encodes a face as a PNG file.
    pub(super) fn png(&self, face: &Face) -> Result<Vec<u8>> {
        let mut bytes = Cursor::new(vec![]);
        self.render(face)?.write_to(&mut bytes, ImageFormat::Png).context("cannot write a PNG")?;
        Ok(bytes.into_inner())
    }
}
