//! Shared parts of the chores: what several packages use.

pub mod repository;
