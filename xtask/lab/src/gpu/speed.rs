//! Milliseconds of network calls and training steps, beside PyTorch on the same device if wanted.

use anyhow::Result;
use candle_core::Device;

use super::Scale;
use super::card::{Card, memory_mib};
use super::rows::Rows;
use crate::bench::ours::Prepared;
use crate::bench::peer::Peer;
use crate::bench::work::{Kind, Work};

const NUM_ROUNDS: usize = 7;

/// Measures medians, in rounds that take turns with the twin.
pub(super) fn measure(card: &Card, scale: &Scale, rows: &mut Rows) -> Result<()> {
    let works = if scale.quick { Work::on_small_gpu(scale.numbers) } else { Work::on_gpu(scale.numbers) };
    let is_gpu = card.run(|device| Ok(!device.is_cpu()))?;
    let mut peer = match &scale.peer {
        Some((python, scripts)) => Some(Peer::start_on(python, scripts, if is_gpu { "cuda" } else { "cpu" })?),
        None => None,
    };
    for work in works {
        let repeats = if scale.quick || matches!(work.kind, Kind::Train) { 1 } else { 4 };
        let has_graph = is_gpu && work.kind == Kind::Unet;
        let mut prepared = card.run(|device| Prepared::new_on(&work, device))?;
        let mut once = |card: &Card| card.run(|device: &Device| prepared.run_ms_on(device, repeats));
        if let Some(peer) = &mut peer {
            peer.prepare(&work)?;
            peer.run_ms(repeats)?;
        }
        once(card)?;
        // Before a graph, which has memory of its own.
        let of_peer = peer.as_mut().map(Peer::memory).transpose()?;
        let (mut ours, mut theirs, mut graphs) = (vec![], vec![], vec![]);
        for _ in 0..if scale.quick { 3 } else { NUM_ROUNDS } {
            ours.push(once(card)?);
            if let Some(peer) = &mut peer {
                theirs.push(peer.run_ms(repeats)?);
                if has_graph {
                    graphs.push(peer.graph_ms(repeats)?);
                }
            }
        }
        let [ours, theirs, graphs] = [ours, theirs, graphs].map(median);
        rows.measure(&format!("{}, ms", work.name), ours.unwrap_or(f64::NAN));
        for (peer, theirs) in [("PyTorch", theirs), ("PyTorch as a CUDA graph", graphs)] {
            if let (Some(ours), Some(theirs)) = (ours, theirs) {
                rows.measure(&format!("{}, {peer}, ms", work.name), theirs);
                rows.measure(&format!("{}, times as fast as {peer}", work.name), theirs / ours);
            }
        }
        if let Some(memory) = memory_mib() {
            rows.measure(&format!("{}, memory of this process so far, MiB", work.name), memory);
        }
        // Without what a process on a card has at least, which the row above includes.
        if let Some(bytes) = of_peer {
            let what = format!("{}, memory reserved by PyTorch for this work alone, MiB", work.name);
            rows.measure(&what, bytes / f64::from(1 << 20));
        }
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() >> 1).copied()
}
