//! Several processes that train one model, connected by TCP: the bits of one, and what happens when one of them ends.

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};

use crate::support::{Running, Workspace};

/// A run of 40 steps in the first stage, with a checkpoint after each.
pub(crate) const RUN: [&str; 19] = [
    "train",
    "--preset",
    "smoke",
    "--data",
    "pictures",
    "--stage",
    "autoencoder",
    "--set",
    "autoencoder.images=640",
    "--set",
    "autoencoder.batch_size=16",
    "--set",
    "autoencoder.accumulate=4",
    "--set",
    "run.save_every_secs=0",
    "--set",
    "run.preview_every_images=0",
    "--threads",
    "1",
];
const NUM_STEPS: usize = 40;

pub(crate) fn pictures(workspace: &Workspace) {
    fs::create_dir(workspace.path("pictures")).unwrap();
    for i in 0..20u8 {
        let shade = |at: u32| u8::try_from(at * 16).unwrap();
        let picture = RgbImage::from_fn(16, 16, |x, y| Rgb([10 * i, shade(x), shade(y)]));
        picture.save(workspace.path(&format!("pictures/{i:02}.png"))).unwrap();
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Starts processes that train in a folder.
fn start(workspace: &Workspace, size: usize, out: &str, more: &[&str]) -> Vec<Running> {
    let (master, size_text) = (format!("127.0.0.1:{}", free_port()), size.to_string());
    let one = |rank: usize| {
        let rank = rank.to_string();
        let place = ["--rank", &rank, "--world-size", &size_text, "--master", &master, "--out", out];
        workspace.start(&[&RUN[..], &place, more].concat())
    };
    (0..size).map(one).collect()
}

pub(crate) fn alone(workspace: &Workspace) -> Vec<u8> {
    workspace.run(&[&RUN[..], &["--out", "alone"]].concat()).succeeds();
    fs::read(workspace.path("alone/model.safetensors")).unwrap()
}

/// The step of the newest checkpoint.
pub(crate) fn newest(workspace: &Workspace, out: &str) -> usize {
    let entries = fs::read_dir(workspace.path(out).join("checkpoints")).into_iter().flatten().flatten();
    let step = |name: &str| name.strip_prefix("autoencoder-")?.parse::<usize>().ok();
    entries.filter_map(|entry| step(entry.file_name().to_str()?)).max().unwrap_or(0)
}

#[test]
fn processes_train_the_model_of_one_and_the_first_alone_reports() {
    let workspace = Workspace::new();
    pictures(&workspace);
    let expected = alone(&workspace);
    let told: Vec<_> = start(&workspace, 2, "run", &[]).into_iter().map(Running::end).collect();
    assert!(told.iter().all(|(code, _)| *code == Some(0)), "{told:?}");
    assert_eq!(told[1].1, "");
    assert!(fs::read(workspace.path("run/model.safetensors")).unwrap() == expected);
}

#[test]
fn a_launcher_gives_rank_and_size() {
    let workspace = Workspace::new();
    pictures(&workspace);
    let expected = alone(&workspace);
    let port = free_port().to_string();
    let run = |rank: &str| {
        let place = [("RANK", rank), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port)];
        workspace.run_with_environment(&[&RUN[..], &["--out", "run"]].concat(), &place).succeeds().stdout()
    };
    let told = std::thread::scope(|scope| {
        let second = scope.spawn(|| run("1"));
        (run("0"), second.join().unwrap())
    });
    assert!(told.0.contains("the model is in run") && told.1.is_empty(), "{told:?}");
    assert!(fs::read(workspace.path("run/model.safetensors")).unwrap() == expected);
    let error = workspace.run_with_environment(
        &[&RUN[..], &["--out", "other"]].concat(),
        &[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2"), ("OMPI_COMM_WORLD_LOCAL_SIZE", "1")],
    );
    error.fails_with("mpirun does not say where process 0 is; name its host by --master HOST:PORT");
}

/// Kills of a process at some step, each with the number of processes and the one that is killed.
const KILLS: [(usize, usize, usize); 4] = [(5, 2, 1), (13, 3, 0), (19, 4, 2), (30, 2, 0)];

#[test]
fn a_killed_process_ends_all_and_any_number_goes_on() {
    let workspace = Workspace::new();
    pictures(&workspace);
    let expected = alone(&workspace);
    for (kill, (step, size, victim)) in KILLS.into_iter().enumerate() {
        let how: [&[&str]; 3] = [&[], &["--resume", "--shard-optimizer"], &["--resume"]];
        let mut processes = start(&workspace, size, "run", how[kill.min(2)]);
        processes[victim].wait_until(|| newest(&workspace, "run") >= step);
        let begin = Instant::now();
        assert_eq!(processes.remove(victim).signal("KILL").0, None);
        for (code, told) in processes.into_iter().map(Running::end) {
            assert_eq!(code, Some(2), "{told}");
            assert!(told.contains("has ended or cannot be reached") && told.contains("--resume"), "{told}");
        }
        assert!(begin.elapsed() < Duration::from_secs(30));
        assert!((step..NUM_STEPS).contains(&newest(&workspace, "run")));
    }
    let how_to_end = &["--resume", "--shard-optimizer"];
    let told: Vec<_> = start(&workspace, 3, "run", how_to_end).into_iter().map(Running::end).collect();
    assert!(told.iter().all(|(code, _)| *code == Some(0)), "{told:?}");
    assert!(fs::read(workspace.path("run/model.safetensors")).unwrap() == expected);
}

#[test]
fn ctrl_c_in_one_process_saves_and_ends_all() {
    let workspace = Workspace::new();
    pictures(&workspace);
    let mut processes = start(&workspace, 2, "run", &["--set", "run.save_every_secs=1e6"]);
    processes[1].wait_until(|| workspace.path("run/metrics.jsonl").is_file());
    processes[1].send("TERM");
    for (code, told) in processes.into_iter().map(Running::end) {
        assert_eq!(code, Some(130), "{told}");
        assert!(told.contains("the run is saved; go on with: diffae train --out run --resume"), "{told}");
    }
    let expected = alone(&workspace);
    let go_on = ["train", "--out", "run", "--resume", "--stage", "autoencoder", "--threads", "1"];
    workspace.run(&go_on).succeeds();
    assert!(fs::read(workspace.path("run/model.safetensors")).unwrap() == expected);
}

#[test]
fn places_that_do_not_fit_together_are_refused_at_once() {
    let workspace = Workspace::new();
    pictures(&workspace);
    let run = |more: &[&str]| workspace.run(&[&RUN[..], &["--out", "run"], more].concat());
    run(&["--rank", "0", "--world-size", "2"]).fails_with("--master HOST:PORT");
    run(&["--master", "127.0.0.1"]).fails_with("--master is for several processes");
    run(&["--rank", "2", "--world-size", "2", "--master", "127.0.0.1"]).fails_with("there is no process 2 of 2");
    assert!(!workspace.path("run").exists());
    // Results depend on the number of threads.
    let (master, out) = (format!("127.0.0.1:{}", free_port()), ["--out", "run"]);
    let place = |rank| ["--rank", rank, "--world-size", "2", "--master", &master];
    let other = [&RUN[..RUN.len() - 1], &["2"], &out, &place("1")].concat();
    let (first, second) = (workspace.start(&[&RUN[..], &out, &place("0")].concat()), workspace.start(&other));
    for (code, told) in [first.end(), second.end()] {
        assert!(code == Some(2) && told.contains("process 1 has a number of threads (--threads) other than"), "{told}");
    }
    assert!(!workspace.path("run").exists());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let master = taken.local_addr().unwrap().to_string();
    let error = run(&["--rank", "0", "--world-size", "2", "--master", &master]);
    error.fails_with(&format!("process 0 cannot wait at {master} for the others"));
}
