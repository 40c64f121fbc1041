//! `cargo xtask scaling`: a simulation of training on many processes, by the order of exchanges of `diffae train`.
//!
//! A process computes its micro-batches one after the other. The buckets of a gradient become complete evenly over the backward
//! pass, two thirds of a micro-batch; one exchange at a time sends each bucket to its owners, in the last round followed by the
//! sums to all. In the fast order all buckets become complete at the end, when a process has added up its own, and an exchange
//! without bytes tells which gradients there are. A step ends when both are done. Costs of an exchange of b bytes among n
//! processes: latency, overhead for each of n - 1 messages, and b (n - 1) / n over the bandwidth. Owners have equal parts of a
//! bucket, which is as long as that takes.

use anyhow::{Result, ensure};

/// Least number of values of a bucket, and of blocks of so many values for each process, as `reduce.rs` has them.
const MIN_BUCKET_LEN: usize = 1 << 21;
const MIN_OWNED_BLOCKS: usize = 2;
const BLOCK_LEN: usize = 1 << 14;
/// Share of a micro-batch before its backward pass.
const FORWARD_SHARE: f64 = 1. / 3.;
/// Seconds that a process needs for each message besides its bytes.
const MESSAGE_SECS: f64 = 5e-6;
/// Numbers of processes of the table.
const SIZES: [usize; 8] = [1, 2, 4, 8, 16, 64, 256, 1024];

/// A link of each process to all others, alike.
struct Link {
    name: &'static str,
    bytes_per_sec: f64,
    latency_secs: f64,
}

/// Nine tenths of the rates of the wire; of `NVLink`, one direction of an H200, 80%.
const LINKS: [Link; 3] = [
    Link { name: "10 GbE", bytes_per_sec: 1.125e9, latency_secs: 30e-6 },
    Link { name: "100 Gb/s", bytes_per_sec: 11.25e9, latency_secs: 5e-6 },
    Link { name: "NVLink", bytes_per_sec: 360e9, latency_secs: 10e-6 },
];

/// Arguments of `cargo xtask scaling`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Parameters of the model, as `diffae train --dry-run` counts them
    #[arg(long)]
    parameters: usize,
    /// Seconds that a process computes for a micro-batch: measured
    #[arg(long)]
    seconds: f64,
    /// Micro-batches of each process in a step
    #[arg(long, default_value_t = 1)]
    rounds: usize,
}

/// Prints the efficiency of each number of processes over each link, in both orders of sums.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.parameters > 0 && args.rounds > 0, "there is nothing to simulate");
    ensure!(args.seconds > 0. && args.seconds.is_finite(), "a micro-batch takes some time");
    println!("| processes | {} |", LINKS.map(|link| format!("{0}, ordered | {0}, fast", link.name)).join(" | "));
    println!("|---{}", "|---".repeat(2 * LINKS.len()) + "|");
    for size in SIZES {
        let percent = |link: &Link| {
            [Order::Ordered, Order::Fast].map(|order| format!("{:.0}%", 100. * efficiency(args, link, (size, order))))
        };
        println!("| {size} | {} |", LINKS.iter().flat_map(percent).collect::<Vec<_>>().join(" | "));
    }
    Ok(())
}

/// The order in which gradients are added, as `--reduce` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Ordered,
    Fast,
}

/// Time of computing over that of a step.
fn efficiency(args: &Args, link: &Link, (size, order): (usize, Order)) -> f64 {
    let num_exchanges = if order == Order::Fast { 1 } else { args.rounds };
    let computing = args.rounds as f64 * args.seconds;
    if size == 1 {
        return 1.;
    }
    let num_buckets = args.parameters.div_ceil(MIN_BUCKET_LEN.max(size * MIN_OWNED_BLOCKS * BLOCK_LEN));
    let others = (size - 1) as f64;
    let bytes = 4. * args.parameters as f64 / num_buckets as f64;
    let empty = link.latency_secs + others * MESSAGE_SECS;
    let exchange = empty + bytes * others / size as f64 / link.bytes_per_sec;
    let before = if order == Order::Fast { empty } else { 0. };
    let mut free_at = 0f64;
    for round in args.rounds - num_exchanges..args.rounds {
        for bucket in 1..=num_buckets {
            let share = FORWARD_SHARE + (1. - FORWARD_SHARE) * bucket as f64 / num_buckets as f64;
            let complete_at = if order == Order::Fast { computing } else { (round as f64 + share) * args.seconds };
            let num_phases = if round + 1 == args.rounds { 2. } else { 1. };
            free_at = free_at.max(complete_at) + before + num_phases * exchange;
        }
    }
    computing / free_at.max(computing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(parameters: usize, seconds: f64, rounds: usize, link: &Link, size: usize) -> [f64; 2] {
        let args = Args { parameters, seconds, rounds };
        [Order::Ordered, Order::Fast].map(|order| efficiency(&args, link, (size, order)))
    }

    #[test]
    fn a_single_process_loses_nothing_and_a_slow_link_all() {
        let slow = Link { name: "slow", bytes_per_sec: 1., latency_secs: 0. };
        assert!(of(1000, 1., 1, &slow, 1).iter().all(|share| (share - 1.).abs() < f64::EPSILON));
        // 4000 bytes, half of them twice, after the end of the backward pass.
        let [ordered, fast] = of(1000, 1., 1, &slow, 2);
        assert!((ordered - 1. / (1. + 4000. + 2. * MESSAGE_SECS)).abs() < 1e-9);
        assert!((fast - 1. / (1. + 4000. + 3. * MESSAGE_SECS)).abs() < 1e-9);
        // Four rounds send two and a half times as much, and the first ones while the others compute.
        let [ordered, fast] = of(1000, 1., 4, &slow, 2);
        assert!(ordered < fast && (fast / ordered - 2.5).abs() < 0.01, "{ordered} {fast}");
    }

    #[test]
    fn exchanges_hide_behind_the_backward_pass() {
        let fast = Link { name: "fast", bytes_per_sec: 1e12, latency_secs: 1e-6 };
        let [ordered, in_one] = of(100 * MIN_BUCKET_LEN, 1., 1, &fast, 8);
        // The last bucket alone is not hidden; in the fast order none is.
        assert!(ordered > 0.999 && ordered < 1. && in_one < ordered, "{ordered} {in_one}");
    }
}
