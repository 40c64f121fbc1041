//! Blends two of the built-in faces: `cargo run --release --example blend -- OUT.png`

use std::slice::from_ref;

use diffae_infer::{Pipeline, PipelineSettings, built_in_pictures, no_observer, sheet};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let output = std::env::args().nth(1).ok_or("usage: blend OUT.png")?;
    let (pipeline, settings) = (Pipeline::from_built_in()?, PipelineSettings::DEFAULT);
    let faces = built_in_pictures()?;
    let [(_, from), (_, to), ..] = &faces[..] else { return Err("there are no two faces".into()) };
    let codes = |face| pipeline.encode(from_ref(face), &settings, &mut no_observer);
    let frames = pipeline.interpolate(&codes(from)?, &codes(to)?, 8)?;
    let frames = pipeline.decode(&frames, &settings, &mut no_observer)?;
    sheet(&[frames]).save(output)?;
    Ok(())
}
