//! Arguments of `diffae codes`, and shards of codes.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use diffae_data::Shard;

use super::{JsonArgs, OutArgs};

/// Reads a shard, or `slurm`.
pub(super) fn shard(text: &str) -> diffae_data::Result<Shard> {
    if text == "slurm" { Shard::of_slurm(|name| std::env::var(name).ok()) } else { text.parse() }
}

#[derive(Debug, Args)]
pub(crate) struct CodesFilesArgs {
    #[command(subcommand)]
    pub(crate) command: CodesCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CodesCommand {
    /// Join files of codes into one: shards of `diffae encode --shard`, or any files of one model and chain
    Merge(CodesJoinArgs),
    /// Describe files of codes: number, sizes, chain, model
    Info(CodesInfoArgs),
    /// Write z_sem as a Parquet table, for data frames and databases: columns name, z_sem, fingerprint
    ToParquet(CodesJoinArgs),
    /// Write z_sem as a CSV table, for statistics: columns name, z_0, z_1, ..
    ToCsv(CodesJoinArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CodesJoinArgs {
    /// Files of codes; shards in any order, and all of them
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CodesInfoArgs {
    /// Files of codes
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}
