//! The group of processes that train together: from options, or as Slurm, torchrun or MPI start them.

use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::{Context, Result};
use diffae_kernels::kernel_set;
use diffae_train::{Group, Place, Reduction, StepReport, Tcp, TrainOptions};
#[cfg(feature = "mpi")]
use diffae_train::{Launcher, Mpi};

use crate::args::{GroupArgs, ReductionChoice};
use crate::interrupt::interrupted;

/// Time that processes wait for each other at the start: queues start them minutes apart.
const PATIENCE: Duration = Duration::from_mins(10);

/// Joins the group of this process; alone without options and without a launcher.
///
/// All processes have the same `options`, version and kernels: others are not let in.
pub(crate) fn join(args: &GroupArgs, options: TrainOptions) -> Result<Group> {
    let reduction = match args.reduce {
        ReductionChoice::Ordered => Reduction::Ordered,
        ReductionChoice::Fast => Reduction::Fast,
    };
    #[cfg(feature = "mpi")]
    if args.rank.is_none() && args.master.is_none() && Launcher::of(&variable).is_some_and(Launcher::has_mpi) {
        return Ok(Group::new(Box::new(Mpi::join()?), reduction));
    }
    let Some(place) = place(args)? else { return Ok(Group::alone()) };
    let key = format!("{} {:?} {reduction:?} {options:?}", env!("CARGO_PKG_VERSION"), kernel_set());
    Ok(Group::new(Box::new(Tcp::join(&place, key.as_bytes(), PATIENCE)?), reduction))
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
