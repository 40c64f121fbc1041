//! The `diffae` program from outside: what it prints, writes and returns.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

mod align;
mod bad_input;
mod codes;
mod demo;
mod edits;
mod evaluation;
mod help;
mod kernels;
mod models;
mod pictures;
mod samples;
mod support;
mod training;
