//! Reads the pictures of a data set in batches, ahead of time: `cargo run --release --example batches -- DATA`

#![expect(clippy::print_stdout, reason = "this is what the example shows")]

use std::path::Path;
use std::time::Instant;

use diffae_data::{Crop, Drawn, Loader, LoaderSettings, PictureFormat, Pictures};

const BATCH: usize = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let data = std::env::args().nth(1).ok_or("usage: batches DATA (a folder, an archive or an LMDB)")?;
    let pictures = Pictures::all(Path::new(&data), Crop::Center)?;
    let count = pictures.len();
    let settings = LoaderSettings {
        format: PictureFormat::new(3, 64),
        batch_size: BATCH,
        workers: 2,
        prefetch: 4,
        first_batch: 0,
    };
    // The caller decides the order by the place in the sequence: here every second pass is mirrored.
    let draw = move |place: usize| Drawn { idx: place % count, is_mirrored: (place.div_euclid(count)) % 2 == 1 };
    let mut loader = Loader::new(pictures, settings, draw);
    let (start, num_batches) = (Instant::now(), count.div_ceil(BATCH));
    for _ in 0..num_batches {
        let batch = loader.next_batch()?; // [N, C, H, W] in [-1, 1]
        let mean = batch.x_0.mean_all()?.to_scalar::<f32>()?;
        println!("pictures {:?}, mean {mean:.3}", batch.indices);
    }
    let rate = (num_batches * BATCH) as f64 / start.elapsed().as_secs_f64();
    println!("{count} pictures, {rate:.0} read per second");
    Ok(())
}
