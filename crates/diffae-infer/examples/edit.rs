//! Moves an attribute of a picture: `cargo run --release --example edit -- IN.png OUT.png Smiling 0.3`

use std::path::Path;

use diffae_infer::{BUILT_IN_MODEL, Pipeline, PipelineSettings, no_observer};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [input, output, attribute, strength] = &args[..] else {
        return Err("usage: edit IN.png OUT.png ATTRIBUTE STRENGTH".into());
    };
    // A model directory or a released checkpoint would do as well.
    let pipeline = Pipeline::from_dir(Path::new(BUILT_IN_MODEL))?;
    let (picture, edit) = (image::open(input)?.to_rgb8(), (attribute.as_str(), strength.parse()?));
    for picture in pipeline.edit_pictures(&[picture], &[edit], &PipelineSettings::DEFAULT, &mut no_observer)? {
        picture.save(output)?;
    }
    Ok(())
}
