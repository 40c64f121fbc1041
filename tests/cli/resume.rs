//! Interrupted work: what is kept, what is said, and how it goes on.

use std::fs;

use crate::support::{FEW_INVERSION_STEPS, FEW_STEPS, Workspace, checkpoint, fixture, photograph};

/// Copies of two photographs, so that there are several batches.
fn photographs(workspace: &Workspace, count: usize) {
    fs::create_dir(workspace.path("photos")).unwrap();
    for idx in 0..count {
        let from = if idx % 2 == 0 { photograph() } else { fixture("photographs/cat.jpg") };
        fs::copy(from, workspace.path(&format!("photos/{idx}.jpg"))).unwrap();
    }
}

#[test]
fn an_interrupted_sample_goes_on() {
    let workspace = Workspace::new();
    let model = checkpoint("autoenc16_latent");
    let args = ["sample", "--model", &model, "-n", "12", "--batch-size", "1", "--latent-steps", "2", "--out"];
    let mut running = workspace.start(&[&args[..], &["out"]].concat());
    running.wait_until(|| workspace.num_kept(".") >= 2);
    let (code, stderr) = running.signal("INT");
    assert_eq!(code, Some(130), "{stderr}");
    let kept = workspace.num_kept(".");
    assert!((2..12).contains(&kept), "{kept}");
    let sentence = format!("interrupted: {kept} of 12 pictures are kept; go on with: ");
    assert!(stderr.contains(&sentence) && stderr.trim_end().ends_with(" --resume"), "{stderr}");
    assert!(!workspace.path("out").exists());

    let resume = |rest: &[&str]| workspace.run(&[&args[..], &["out", "--resume"], rest].concat());
    resume(&["--seed", "9"]).fails_with("seed was 0, is 9");
    resume(&["--steps", "2"]).fails_with("steps was 10, is 2");
    assert_eq!(workspace.num_kept("."), kept);
    let said = resume(&[]).succeeds().stdout();
    assert_eq!(said, "wrote 12 pictures to out\n");
    assert_eq!(workspace.files("."), ["out"]);
    workspace.run(&[&args[..], &["whole"]].concat()).succeeds();
    assert_eq!(workspace.files("out"), workspace.files("whole"));
    for name in workspace.files("whole") {
        assert_eq!(workspace.pixels(&format!("out/{name}")), workspace.pixels(&format!("whole/{name}")), "{name}");
    }
}

#[test]
fn a_killed_encode_goes_on_by_itself_if_nothing_has_changed() {
    let workspace = Workspace::new();
    let model = checkpoint("autoenc16_latent");
    photographs(&workspace, 8);
    let args = ["encode", "--model", &model, "photos", "--batch-size", "1", "--steps", "20", "--out"];
    let killed = || {
        let mut running = workspace.start(&[&args[..], &["codes.safetensors"]].concat());
        running.wait_until(|| workspace.num_kept(".") >= 2);
        running.signal("KILL");
    };
    killed();
    // Another picture of a name is another run.
    fs::copy(fixture("photographs/cat.jpg"), workspace.path("photos/0.jpg")).unwrap();
    workspace.run(&[&args[..], &["codes.safetensors", "--resume"]].concat()).fails_with("inputs was");
    fs::remove_dir_all(&workspace.partials(".")[0]).unwrap();
    killed();
    let said = workspace.run(&[&args[..], &["codes.safetensors"]].concat()).succeeds();
    assert!(said.stderr().contains("of 8 pictures are kept from an interrupted run"), "{}", said.stderr());
    workspace.run(&[&args[..], &["whole.safetensors"]].concat()).succeeds();
    let read = |name: &str| {
        let bytes = fs::read(workspace.path(name)).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        ["z_sem", "x_T"].map(|name| file.tensor(name).unwrap().data().to_vec())
    };
    assert_eq!(read("codes.safetensors"), read("whole.safetensors"));
    assert_eq!(workspace.files("."), ["codes.safetensors", "photos", "whole.safetensors"]);
}

#[test]
fn edits_and_reconstructions_go_on() {
    let workspace = Workspace::new();
    workspace.import("autoenc16_latent");
    photographs(&workspace, 6);
    let common = ["--model", "model", "photos", "--batch-size", "1", "--invert-steps", "20", "--steps", "20", "--json"];
    for command in [&["edit", "-a", "0", "--strengths", "0.1,0.2"][..], &["reconstruct"], &["variations", "-n", "2"]] {
        let common = if command[0] == "variations" { [&common[..5], &common[7..]].concat() } else { common.to_vec() };
        // Into a folder that is there, beside what is in it.
        let (out, whole) = (command[0], format!("{}-whole", command[0]));
        fs::create_dir(workspace.path(out)).unwrap();
        fs::write(workspace.path(out).join("mine"), "").unwrap();
        let args = [command, &common, &["--out", out]].concat();
        let mut running = workspace.start(&args);
        running.wait_until(|| workspace.num_kept(out) >= 2);
        running.signal("KILL");
        let resumed = workspace.run(&[&args[..], &["--resume"]].concat()).succeeds().json();
        let expected = workspace.run(&[command, &common, &["--out", &whole]].concat()).succeeds().json();
        let text = |json: serde_json::Value| json.to_string().replace(&whole, out);
        assert_eq!(text(resumed), text(expected));
        let names = workspace.files(&whole);
        let mut expected = [&names[..], &["mine".to_owned()]].concat();
        expected.sort();
        assert_eq!(workspace.files(out), expected);
        for name in names {
            assert_eq!(
                workspace.pixels(&format!("{out}/{name}")),
                workspace.pixels(&format!("{whole}/{name}")),
                "{name}"
            );
        }
    }
}

#[test]
fn tensors_are_kept_too() {
    let workspace = Workspace::new();
    let model = checkpoint("ddpm16");
    let args = ["sample", "--model", &model, "-n", "8", "--batch-size", "1", "--out"];
    let mut running = workspace.start(&[&args[..], &["x.safetensors"]].concat());
    running.wait_until(|| workspace.num_kept(".") >= 2);
    running.signal("INT");
    workspace.run(&[&args[..], &["x.safetensors", "--resume"]].concat()).succeeds();
    workspace.run(&[&args[..], &["whole.safetensors"]].concat()).succeeds();
    let read = |name: &str| {
        let bytes = fs::read(workspace.path(name)).unwrap();
        safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor("x").unwrap().data().to_vec()
    };
    assert_eq!(read("x.safetensors"), read("whole.safetensors"));
    assert_eq!(workspace.files("."), ["whole.safetensors", "x.safetensors"]);
}

#[test]
fn what_has_kept_nothing_says_so_and_leaves_nothing() {
    let workspace = Workspace::new();
    let model = checkpoint("ddpm16");
    let args = ["sample", "--model", &model, "-n", "4", "--steps", "1000", "--out", "a/out"];
    let mut running = workspace.start(&args);
    running.wait_until(|| workspace.partials(".").iter().any(|path| path.join("kept.jsonl").exists()));
    let (code, stderr) = running.signal("INT");
    assert_eq!(code, Some(130), "{stderr}");
    assert!(stderr.ends_with("interrupted: nothing was written\n"), "{stderr}");
    assert!(workspace.files(".").is_empty());

    // A killed run cannot tidy up; the next one into that place does.
    let mut running = workspace.start(&args);
    running.wait_until(|| workspace.partials(".").iter().any(|path| path.join("kept.jsonl").exists()));
    running.signal("KILL");
    assert_eq!(workspace.partials(".").len(), 1);
    let other = ["variations", "--model", &checkpoint("autoenc16_latent"), &photograph(), "-n", "1", "--out", "b"];
    workspace.run(&[&other[..], &FEW_STEPS].concat()).succeeds();
    assert_eq!(workspace.files("."), ["b"]);
}

#[test]
fn a_second_run_into_the_same_place_is_refused_at_once() {
    let workspace = Workspace::new();
    let model = checkpoint("ddpm16");
    let args = ["sample", "--model", &model, "-n", "4", "--steps", "1000", "--out", "out"];
    let mut running = workspace.start(&args);
    running.wait_until(|| !workspace.partials(".").is_empty());
    running.wait_until(|| workspace.partials(".").iter().any(|path| path.join("kept.jsonl").exists()));
    let args = ["sample", "--model", "nowhere", "-n", "2", "--out", "./out"];
    workspace.run(&args).fails_with("another run is writing ./out");
    // Frames and edits have places of their own.
    let (model, from, to) = (checkpoint("autoenc16_latent"), photograph(), fixture("photographs/cat.jpg"));
    let frames = ["interpolate", "--model", &model, &from, &to, "--frames", "2", "--out", "frames"];
    workspace.run(&[&frames[..], &FEW_STEPS, &FEW_INVERSION_STEPS].concat()).succeeds();
    running.signal("INT");
    assert_eq!(workspace.files("."), ["frames"]);
}

#[test]
fn exit_codes_are_in_the_help() {
    let help = Workspace::new().run(&["--help"]).succeeds().stdout();
    assert!(help.contains("Exit codes: 0 success; 2 error") && help.contains("130"), "{help}");
}
