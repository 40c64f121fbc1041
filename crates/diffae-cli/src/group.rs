//! The group of processes that train together: from options, or as Slurm, torchrun or MPI start them.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use diffae_kernels::{kernel_set, num_cuda_devices};
#[cfg(feature = "mpi")]
use diffae_train::Mpi;
use diffae_train::{
    Collective, Group, GroupKind, Launcher, Place, Reduction, StepReport, Tcp, TrainOptions, wait_for_checkpoint,
};
#[cfg(feature = "nccl")]
use diffae_train::{Nccl, Rendezvous};

use crate::FAILURE;
use crate::args::{ConnectionChoice, GroupArgs, ReductionChoice};
use crate::interrupt::interrupted;

/// Time that processes wait for each other at the start: queues start them minutes apart.
const PATIENCE: Duration = Duration::from_mins(10);

/// Time that a process has to end in its own way once another one is lost. It needs it for what it computes, such as a
/// micro-batch or a validation, which is in vain.
const LAST_WORK: Duration = Duration::from_secs(6);
/// Time that a checkpoint may take beyond that.
const LAST_SAVE: Duration = Duration::from_secs(8);

/// Joins the group of this process, which ends when another one is lost; alone without options and without a launcher.
///
/// All processes have the same `options`, run folder, version and kernels: others are not let in.
pub(crate) fn join(args: &GroupArgs, options: &TrainOptions, out: &Path) -> Result<Group> {
    let mut group = connected(args, options, out)?;
    if options.compute.device.is_cpu() {
        // Sums within a network are of as many parts, and results depend on it.
        group.check_same("a number of threads (--threads)", &rayon::current_num_threads().to_string())?;
    }
    group.on_loss(Box::new(|error| end_after(LAST_WORK, error)));
    Ok(group)
}

fn connected(args: &GroupArgs, options: &TrainOptions, out: &Path) -> Result<Group> {
    let reduction = reduction(args);
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
        "{version} {kernels:?} {reduction:?} {is_sharded} {connect:?} {stage:?} {resume} {device} {:?} {}",
        compute.dtype,
        out.display()
    );
    ensure!(
        cfg!(feature = "nccl") || connect != ConnectionChoice::Nccl,
        "this program is built without NCCL: build it with --features nccl"
    );
    ensure!(args.world_size.is_none() || args.rank.is_some(), "--world-size needs --rank, the number of this process");
    #[cfg(feature = "mpi")]
    if connect == ConnectionChoice::Auto
        && args.rank.is_none()
        && args.master.is_none()
        && Launcher::of(&variable).is_some_and(Launcher::has_mpi)
    {
        let mut group = group(Box::new(Mpi::join()?));
        group.check_same("a version, kernels, options or a run folder", &key)?;
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

fn reduction(args: &GroupArgs) -> Reduction {
    match args.reduce {
        ReductionChoice::Ordered => Reduction::Ordered,
        ReductionChoice::Fast => Reduction::Fast,
    }
}

/// Returns the group of `--world-size` processes; `None` without that option.
pub(crate) fn kind(args: &GroupArgs) -> Option<GroupKind> {
    let size = args.world_size?;
    Some(GroupKind { size, reduction: reduction(args), shards_state: args.shard_optimizer })
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

/// Ends this program after a while, because of an error.
fn end_after(time: Duration, error: &diffae_train::Error) -> ! {
    std::thread::sleep(time);
    wait_for_checkpoint(LAST_SAVE);
    eprintln!("error: {}", diffae_infer::one_sentence(error));
    std::process::exit(FAILURE.into())
}

/// Returns the card of this process, as `--device` names it: where several share a machine, each takes that of its number
/// there.
pub(crate) fn card() -> String {
    match (Launcher::local_rank(&variable), num_cuda_devices()) {
        (Some(local_rank), count @ 2..) => format!("cuda:{}", local_rank % count),
        _ => "cuda".to_owned(),
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const IN_CHILD: &str = "DIFFAE_TEST_END_AFTER";

    #[test]
    fn a_lost_process_ends_the_program_whatever_it_computes() {
        if std::env::var_os(IN_CHILD).is_some() {
            let error = diffae_train::Error::Lost { rank: 1, size: 2, source: std::io::ErrorKind::BrokenPipe.into() };
            std::thread::spawn(move || end_after(Duration::from_millis(50), &error));
            std::thread::sleep(Duration::from_mins(10));
        }
        let test = "group::tests::a_lost_process_ends_the_program_whatever_it_computes";
        let mut program = Command::new(std::env::current_exe().unwrap());
        let output = program.args([test, "--exact", "--nocapture"]).env(IN_CHILD, "1").output().unwrap();
        assert_eq!(output.status.code(), Some(FAILURE.into()));
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains("error: process 1 of 2 has ended or cannot be reached"), "{told}");
        assert!(told.contains("--resume goes on from it"), "{told}");
    }
}
