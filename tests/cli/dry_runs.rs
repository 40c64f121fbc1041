//! `diffae train --dry-run`: what a run would take, and what it would be refused for.

use std::fs;

use image::{Rgb, RgbImage};

use crate::support::Workspace;
use crate::training::{set, shapes};

fn dry<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "--preset", "smoke", "--dry-run"], more].concat()
}

#[test]
fn a_dry_run_tells_sizes_and_the_time_of_all_stages_and_writes_nothing() {
    let workspace = Workspace::new();
    shapes(&workspace, 12);
    let whole = ["--data", "shapes", "--labels", "folders", "--out", "run"];
    let said = workspace.run(&dry(&whole)).succeeds().stdout();
    for text in [
        "image_size = 16",
        "parameters of encoder and UNet",
        "kept for validation",
        "epochs",
        "opened 24 of 24 pictures: 0 cannot be read",
        "labels: 24 of 24 pictures",
        "disc    12 have it",
    ] {
        assert!(said.contains(text), "{text} is missing in {said}");
    }
    for stage in ["autoencoder  300 steps: ", "latent       200 steps: ", "classifier   200 steps: "] {
        assert!(said.contains(stage), "{stage} is missing in {said}");
    }
    assert!(said.lines().last().unwrap().trim_start().starts_with("all"), "{said}");
    // One stage alone takes its own time, and without labels there is no classifier.
    let said = workspace.run(&dry(&["--data", "shapes", "--stage", "latent"])).succeeds().stdout();
    assert!(said.contains("latent       200") && !said.contains("autoencoder  300"), "{said}");
    let said = workspace.run(&dry(&["--data", "shapes"])).succeeds().stdout();
    assert!(said.contains("the stage classifier is left out"), "{said}");
    // A group, of which a single process asks.
    let group = |accumulate| ["--world-size", "3", "--shard-optimizer", "--set", accumulate];
    let said = workspace.run(&dry(&group("autoencoder.accumulate=4"))).succeeds().stdout();
    let line = said.lines().find(|line| line.starts_with("in a group of 3 processes: ")).unwrap();
    for text in ["computes 2 of 4 micro-batches", "MiB more while gradients are exchanged", "MiB a step"] {
        assert!(line.contains(text), "{text} is missing in {line}");
    }
    workspace.run(&dry(&group("autoencoder.accumulate=2"))).fails_with("autoencoder.accumulate is 2 with 3 processes");
    workspace.run(&["train", "--out", "run", "--resume", "--world-size", "2"]).fails_with("--world-size needs --rank");
    assert_eq!(workspace.files(""), ["shapes"]);
}

#[test]
fn what_a_run_would_be_refused_for_ends_a_dry_run_with_its_exit_code() {
    let workspace = Workspace::new();
    shapes(&workspace, 6);
    fs::create_dir(workspace.path("one")).unwrap();
    RgbImage::from_pixel(8, 8, Rgb([9, 99, 199])).save(workspace.path("one/a.png")).unwrap();
    fs::write(workspace.path("missing.csv"), "file,round\nnobody.png,1\ndisc/00.png,0\n").unwrap();
    fs::create_dir(workspace.path("taken")).unwrap();
    fs::write(workspace.path("taken/thesis.txt"), "").unwrap();
    let no_validation = set(&["data.validation_share=0"]);
    workspace.run(&dry(&[&["--data", "one"][..], &no_validation].concat())).fails_with("only 1 picture to train on");
    let alone = [&["--data", "one", "--stage", "autoencoder"][..], &no_validation].concat();
    let said = workspace.run(&dry(&alone)).succeeds().stdout();
    assert!(said.contains("smaller than 16 pixels, and enlarged: 1"), "{said}");
    for (args, text) in [
        (&["--data", "nowhere"][..], "nowhere"),
        (&["--data", "shapes", "--labels", "missing.csv"], "nobody.png"),
        (&["--data", "shapes", "--out", "taken"], "not empty"),
        (&["--data", "shapes", "--out", "/proc/run"], "/proc/run"),
        (&["--data", "shapes", "--init-from", "toonheads"], "another architecture"),
        (&["--data", "shapes", "--freeze", "decoder"], "a part of this model"),
        (&["--data", "shapes", "--stage", "classifier"], "needs labels"),
    ] {
        workspace.run(&dry(args)).fails_with(text);
    }
    // All of it at once, and what cannot be read by name.
    for name in ["disc/00.png", "disc/01.png", "square/00.png"] {
        fs::write(workspace.path("shapes").join(name), "no picture").unwrap();
    }
    let many = dry(&["--data", "shapes", "--labels", "missing.csv", "--out", "taken"]);
    let refused = workspace.run(&many).fails_with("for 3 reasons");
    let said = refused.stdout();
    for text in ["3 cannot be read", "disc/00.png", "problem 3 of 3", "not empty", "nobody.png", "max_broken_share"] {
        assert!(said.contains(text), "{text} is missing in {said}");
    }
    assert_eq!(workspace.files(""), ["missing.csv", "one", "shapes", "taken"]);
}

#[test]
fn a_run_that_is_there_is_left_alone() {
    let workspace = Workspace::new();
    shapes(&workspace, 6);
    let run = ["--data", "shapes", "--out", "run", "--stage", "autoencoder"];
    let few = set(&["autoencoder.images=16", "run.preview_every_images=0"]);
    workspace.run(&[&["train", "--preset", "smoke"], &run[..], &few].concat()).succeeds();
    let other = [&run[..], &few, &set(&["seed=7"])].concat();
    workspace.run(&dry(&other)).fails_with("already started in run with seed = 0, not 7");
}
