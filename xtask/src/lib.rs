//! Shared parts of the chores: what several packages use.

#![expect(clippy::print_stdout, reason = "a command line tool reports on standard output")]

pub mod repository;
pub mod toonheads;
