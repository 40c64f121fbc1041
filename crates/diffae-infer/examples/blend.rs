//! Blends two of the built-in faces: `cargo run --release --example blend -- OUT.png`

use std::slice::from_ref;

use diffae_infer::{Pipeline, built_in_pictures, sheet};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let output = std::env::args().nth(1).ok_or("usage: blend OUT.png")?;
    let pipeline = Pipeline::from_built_in()?;
    let faces = built_in_pictures()?;
    let [(_, from), (_, to), ..] = &faces[..] else { return Err("there are no two faces".into()) };
    let (from, to) = (pipeline.encode(from_ref(from))?, pipeline.encode(from_ref(to))?);
    let frames = pipeline.decode(&pipeline.interpolate(&from, &to, 8)?)?;
    sheet(&[frames]).save(output)?;
    Ok(())
}
