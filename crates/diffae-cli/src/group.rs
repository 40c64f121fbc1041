//! The group of processes that train together: from options, or as Slurm, torchrun or MPI start them.

use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use diffae_kernels::kernel_set;
#[cfg(feature = "mpi")]
use diffae_train::Mpi;
use diffae_train::{Collective, Group, Launcher, Place, Reduction, StepReport, Tcp, TrainOptions};
#[cfg(feature = "nccl")]
use diffae_train::{Nccl, Rendezvous};

use crate::args::{ConnectionChoice, GroupArgs, ReductionChoice};
use crate::interrupt::interrupted;

/// Time that processes wait for each other at the start: queues start them minutes apart.
const PATIENCE: Duration = Duration::from_mins(10);

/// Joins the group of this process; alone without options and without a launcher.
///
/// All processes have the same `options`, version and kernels: others are not let in.
pub(crate) fn join(args: &GroupArgs, options: &TrainOptions) -> Result<Group> {
    let reduction = match args.reduce {
        ReductionChoice::Ordered => Reduction::Ordered,
        ReductionChoice::Fast => Reduction::Fast,
    };
    let is_sharded = args.shard_optimizer;
    let group = |collective: Box<dyn Collective>| {
        let group = Group::new(collective, reduction);
        if is_sharded { group.with_sharded_state() } else { group }
    };
    let connect = args.connect;
    let (version, kernels) = (env!("CARGO_PKG_VERSION"), kernel_set());
    let TrainOptions { stage, resume, compute } = options;
    // Other cards of a kind are for other processes.
    let device = match compute.device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    };
    let key = format!(
        "{version} {kernels:?} {reduction:?} {is_sharded} {connect:?} {stage:?} {resume} {device} {:?}",
        compute.dtype
    );
    ensure!(
        cfg!(feature = "nccl") || connect != ConnectionChoice::Nccl,
        "this program is built without NCCL: build it with --features nccl"
    );
    #[cfg(feature = "mpi")]
    if connect == ConnectionChoice::Auto
        && args.rank.is_none()
        && args.master.is_none()
        && Launcher::of(&variable).is_some_and(Launcher::has_mpi)
    {
        let mut group = group(Box::new(Mpi::join()?));
        group.check_same("a version, kernels or options", &key)?;
        return Ok(group);
    }
    let Some(place) = place(args)? else {
        let is_given = args.master.as_deref().filter(|_| Launcher::of(&variable).is_none());
        ensure!(
            is_given.is_none(),
            "--master is for several processes: give --rank and --world-size, or use a launcher"
        );
        return Ok(Group::alone());
    };
    let tcp = Tcp::join(&place, key.as_bytes(), PATIENCE)?;
    #[cfg(feature = "nccl")]
    if connect == ConnectionChoice::Nccl {
        return Ok(group(Box::new(Rendezvous::<Nccl>::join(tcp)?)));
    }
    Ok(group(Box::new(tcp)))
}

fn place(args: &GroupArgs) -> Result<Option<Place>> {
    let master = args.master.as_deref();
    match (args.rank, args.world_size) {
        (Some(rank), Some(size)) => {
            let address =
                master.context("--rank and --world-size need --master HOST:PORT, the address of process 0")?;
            Ok(Some(Place::new(rank, size, address)?))
        }
        _ => Ok(Place::of_launcher(&variable, master)?.map(|(_, place)| place)),
    }
}

/// Reads a variable of the environment.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Follows the training of another process, which shows it: breaks after Ctrl-C.
pub(crate) fn follow(_: &StepReport) -> ControlFlow<()> {
    if interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}
