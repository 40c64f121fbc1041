//! The `diffae` program from outside: what it prints, writes and returns.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

mod align;
mod attributes;
mod bad_input;
mod checkpoints;
mod clusters;
mod codes;
mod datasets;
mod demo;
mod dry_runs;
mod edits;
mod evaluation;
mod export;
mod faults;
mod faulty_pictures;
mod few_steps;
mod frozen;
mod groups;
mod help;
mod http;
mod kernels;
mod latents;
mod models;
mod pictures;
mod polish;
mod prolonging;
mod protocols;
mod readme;
#[cfg(unix)]
mod resume;
mod round_trips;
mod samples;
mod serve;
mod served;
mod shards;
mod support;
mod training;
mod volumes;
mod z_levels;
