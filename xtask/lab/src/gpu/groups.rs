//! Training in groups of processes, here threads that share the card, and by NCCL.

use std::path::Path;
use std::{fs, thread};

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::Device;
use diffae_train::{Collective, Group, Notes, Outcome, Reduction, RunFolder, Threads, TrainOptions, presets};

use super::Scale;
use super::card::Card;
use super::rows::Rows;
use super::training::pictures;

/// Compares models that several processes trained with that of one.
pub(super) fn sizes(card: &Card, _: &Scale, rows: &mut Rows) -> Result<()> {
    let folder = tempfile::tempdir().context("there is no folder for temporary files")?;
    let data = pictures(folder.path())?;
    for (kind, setting) in [("diffusion", "autoencoder.ema_decay=0.99"), ("compact", "model.kind=compact")] {
        let model = |name: &str, members: Vec<Box<dyn Collective>>| {
            let path = folder.path().join(format!("{kind} {name}"));
            card.run(|device| trained(&path, (&data, setting), device, members))
        };
        let alone = model("alone", vec![Box::new(diffae_train::Alone)])?;
        for size in [2, 3] {
            let members = Threads::group(size).into_iter().map(|member| Box::new(member) as Box<dyn Collective>);
            let differs = f64::from(u8::from(model(&size.to_string(), members.collect())? != alone));
            rows.compare(&format!("{kind} in {size} processes: 0 is the model of one"), differs, 0.);
        }
    }
    Ok(())
}

/// Exchanges messages by NCCL with the only process of a group, and compares its model with that of none.
#[cfg(feature = "cuda")]
pub(super) fn nccl(card: &Card, _: &Scale, rows: &mut Rows) -> Result<()> {
    use std::time::Duration;

    use diffae_train::{Nccl, Place, Rendezvous, Tcp};

    let connected = || -> Result<Rendezvous<Nccl>> {
        let tcp = Tcp::join(&Place::new(0, 1, "127.0.0.1:0")?, b"nccl", Duration::from_mins(1))?;
        Ok(Rendezvous::<Nccl>::join(tcp)?)
    };
    let mut group = connected()?;
    for len in [0, 1, 12_345_678] {
        let message: Vec<u8> = (0..len).map(|i: u32| i.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        let differs = f64::from(u8::from(group.exchange(&[&message])? != [message.clone()]));
        rows.compare(&format!("{len} bytes by NCCL: 0 is what was sent"), differs, 0.);
    }
    group.leave();
    let folder = tempfile::tempdir().context("there is no folder for temporary files")?;
    let data = pictures(folder.path())?;
    let model = |name: &str, member: Box<dyn Collective>| {
        let path = folder.path().join(name);
        card.run(|device| trained(&path, (&data, "autoencoder.ema_decay=0.99"), device, vec![member]))
    };
    let alone = model("alone", Box::new(diffae_train::Alone))?;
    let by_nccl = model("nccl", Box::new(connected()?))?;
    rows.compare("a run by NCCL of one process: 0 is the model of none", f64::from(u8::from(by_nccl != alone)), 0.);
    Ok(())
}

/// Needs CUDA.
#[cfg(not(feature = "cuda"))]
pub(super) fn nccl(_: &Card, _: &Scale, _: &mut Rows) -> Result<()> {
    anyhow::bail!("NCCL is for cards of NVIDIA, and this program is built without CUDA")
}

/// Trains a short run in a group, and returns the file of the model.
fn trained(
    path: &Path,
    (data, setting): (&Path, &str),
    device: &Device,
    members: Vec<Box<dyn Collective>>,
) -> Result<Vec<u8>> {
    let settings = [
        setting,
        "autoencoder.images=48",
        "autoencoder.batch_size=12",
        "autoencoder.accumulate=3",
        "latent.images=24",
        "latent.batch_size=8",
        "latent.accumulate=2",
        "run.preview_every_images=0",
        "run.save_every_secs=1e6",
    ];
    let config = presets::config("smoke", &settings.map(str::to_owned))?;
    let notes = Notes { data: data.to_owned(), ..Notes::default() };
    let one = |member: Box<dyn Collective>| -> Result<Outcome> {
        // Each waits for the others, and would keep them from a pool that they share.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
        pool.install(|| {
            let mut group = Group::new(member, Reduction::Ordered);
            let open = || RunFolder::open_or_create(path, &config, &notes);
            let mut folder = RunFolder::open_in_group(&mut group, open)?;
            let options = TrainOptions { compute: device.into(), ..TrainOptions::default() };
            let outcome = diffae_train::train_in_group(&mut folder, &options, &mut group, &mut |_| {
                std::ops::ControlFlow::Continue(())
            })?;
            group.leave();
            Ok(outcome)
        })
    };
    let outcomes: Vec<Result<Outcome>> = thread::scope(|scope| {
        let threads: Vec<_> = members.into_iter().map(|member| scope.spawn(|| one(member))).collect();
        let ended = threads.into_iter().map(thread::ScopedJoinHandle::join);
        ended.map(|ended| ended.unwrap_or_else(|_| Err(anyhow!("a process of the group has panicked")))).collect()
    });
    for outcome in outcomes {
        ensure!(outcome? == Outcome::Finished, "a run has stopped");
    }
    fs::read(path.join("model.safetensors")).context("there is no model")
}
