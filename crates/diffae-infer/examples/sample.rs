//! Samples faces, and shows the progress: `cargo run --release --example sample -- OUT.png 16`

use std::ops::ControlFlow;

use diffae_infer::{CallEvent, Pipeline, PipelineSettings, sheet, square_rows};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [output, count] = &args[..] else { return Err("usage: sample OUT.png COUNT".into()) };
    let mut num_calls = 0;
    let mut observer = |_: &CallEvent<'_>| {
        num_calls += 1;
        eprint!("\r{num_calls} network calls");
        ControlFlow::Continue(()) // Break would stop the work
    };
    let settings = PipelineSettings { seed: 1, ..PipelineSettings::DEFAULT };
    let faces = Pipeline::from_built_in()?.sample(count.parse()?, &settings, &mut observer)?;
    eprintln!();
    sheet(&square_rows(&faces)).save(output)?;
    Ok(())
}
