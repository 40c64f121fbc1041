//! `cargo xtask browser --bench`: the time from the event of a slider to the pixels, measured in a browser.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement ends by a panic, and reports on standard output"
)]

#[path = "../cli/http.rs"]
mod http;
mod page;
#[path = "../cli/served.rs"]
mod served;
mod webdriver;

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::page::Page;
use crate::served::Served;

/// Moves of a slider of each client.
const MOVES: usize = 40;
/// Moves before those that are measured.
const WARM_UP: usize = 3;
const SLIDER: &str = "slider-Smiling";

/// Waits until a slider can be moved.
const READY: &str = "
    const slider = document.getElementById(arguments[0]);
    return new Promise((resolve) => { const look = () => slider.disabled ? setTimeout(look, 5) : resolve(); look(); });
";

/// Measures the next move: from the event to the frame that shows the picture. Previews are no result.
const MEASURE: &str = "
    const slider = document.getElementById(arguments[0]), after = document.getElementById('after');
    window.move = new Promise((resolve) => slider.addEventListener('input', (event) => {
        const loaded = () => {
            if (!after.src.startsWith('blob:')) return;
            after.removeEventListener('load', loaded);
            requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - event.timeStamp)));
        };
        after.addEventListener('load', loaded);
    }, { once: true }));
";

fn main() {
    // Cargo adds --bench.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let program = match &args[..] {
        [] => PathBuf::from(env!("CARGO_BIN_EXE_diffae")),
        [option, path] if option == "--program" => std::fs::canonicalize(path).unwrap(),
        _ => {
            println!("usage: latency [--program PATH]");
            std::process::exit(2);
        }
    };
    println!("{}, load {}", program.display(), load());
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(&program, folder.path(), 0, &[]);
    for num_clients in [1, 2] {
        let mut millis = measure(&served.address, folder.path(), num_clients);
        millis.sort_by(f64::total_cmp);
        let (median, p95) = (quantile(&millis, 0.5), quantile(&millis, 0.95));
        let count = millis.len();
        println!("clients: {num_clients}, moves: {count}, median {median:.0} ms, p95 {p95:.0} ms, load {}", load());
    }
}

/// Moves a slider of each client, all clients at once.
fn measure(address: &str, folder: &Path, num_clients: usize) -> Vec<f64> {
    let pages: Vec<Page> = (0..num_clients).map(|_| Page::open(address, folder)).collect();
    pages.iter().enumerate().for_each(|(idx, page)| page.take_face(idx));
    std::thread::scope(|scope| {
        let clients: Vec<_> = pages.iter().map(|page| scope.spawn(|| moves(page))).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    })
}

fn moves(page: &Page) -> Vec<f64> {
    page.browser.script(READY, &[json!(SLIDER)]);
    let one = |_| {
        page.browser.script(MEASURE, &[json!(SLIDER)]);
        page.nudge(SLIDER, 1);
        page.browser.script("return window.move", &[]).as_f64().unwrap()
    };
    (0..WARM_UP + MOVES).map(one).skip(WARM_UP).collect()
}

/// Returns the smallest value that a share of the values does not exceed.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let number = (1..=sorted.len()).find(|&number| number as f64 >= share * sorted.len() as f64);
    sorted[number.unwrap_or(1) - 1]
}

/// Returns the number of programs that were at work in the last minute, where the system tells it.
fn load() -> String {
    let read = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    read.split(' ').next().filter(|load| !load.is_empty()).unwrap_or("unknown").to_owned()
}
