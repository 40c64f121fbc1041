//! The page of `diffae serve` in a real browser: what a user sees, clicks, drags, uploads and saves.
//!
//! Run by `cargo xtask browser`; it needs Chromium and chromedriver. With a folder in `DIFFAE_SCREENSHOTS` the tests leave
//! pictures of the page there.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

mod blending;
mod clients;
mod editing;
mod gestures;
#[path = "../cli/http.rs"]
mod http;
mod inspection;
mod levels;
mod looks;
mod page;
#[path = "../cli/served.rs"]
mod served;
mod stage;
mod uploads;
mod webdriver;
