//! Invents faces, and says how far it is: `cargo run --release --example sample -- OUT.png 16`

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};

use diffae_infer::{Pipeline, sheet, square_rows};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [output, count] = &args[..] else { return Err("usage: sample OUT.png COUNT".into()) };
    let calls = AtomicUsize::new(0);
    let pipeline = Pipeline::from_built_in()?.with_seed(1).with_callback(move |count| {
        let calls = calls.fetch_add(count, Ordering::Relaxed) + count;
        eprint!("\r{calls} network calls");
        ControlFlow::Continue(()) // Break would stop the work
    });
    let faces = pipeline.sample(count.parse()?)?;
    eprintln!();
    sheet(&square_rows(&faces)).save(output)?;
    Ok(())
}
