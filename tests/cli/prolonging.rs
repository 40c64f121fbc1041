//! `diffae train --resume`: runs that go on, longer or with the options of the first call.

use std::fs;
use std::time::Duration;

use crate::support::Workspace;
use crate::training::{set, shapes, start, train_args, wait_for_checkpoints};

#[track_caller]
fn assert_same_model(workspace: &Workspace, [one, other]: [&str; 2]) {
    let bytes = |run: &str| fs::read(workspace.path(run).join("model.safetensors")).unwrap();
    assert!(bytes(one) == bytes(other), "the models differ");
}

/// Every stage gets longer after all were done, and the result is that of a run that was as long from its beginning.
#[test]
fn a_prolonged_run_ends_with_the_bits_of_one_that_was_begun_as_long() {
    let workspace = Workspace::new();
    shapes(&workspace, 8);
    let labels = ["--labels", "folders", "--set", "run.preview_every_images=0"];
    let longer = set(&["autoencoder.images=240", "latent.images=960", "classifier.images=480"]);
    workspace.run(&train_args("long", &[&labels[..], &longer].concat())).succeeds();
    workspace.run(&train_args("run", &labels)).succeeds();
    let before = fs::read(workspace.path("run/model.safetensors")).unwrap();
    let resume = ["train", "--threads", "1", "--out", "run", "--resume"];

    // A later stage alone.
    let latent = set(&["latent.images=800"]);
    let resumed = workspace.run(&[&resume[..], &latent].concat()).succeeds();
    let said = resumed.stderr();
    assert!(said.contains("latent.images is 800 from now on; it was 640"), "{said}");
    assert!(said.contains("latent: going on from step 20 of 25") && !said.contains("autoencoder: going"), "{said}");
    assert!(!said.contains("WARN"), "stages that are done are no reason for a warning: {said}");
    assert!(fs::read(workspace.path("run/model.safetensors")).unwrap() != before);

    let resumed = workspace.run(&[&resume[..], &longer].concat()).succeeds();
    let said = resumed.stderr();
    assert!(said.contains("autoencoder: going on from step 20 of 30"), "{said}");
    for stage in ["latent", "classifier"] {
        assert!(said.contains(&format!("stage {stage} will be trained again")), "{said}");
    }
    assert_same_model(&workspace, ["long", "run"]);
    let notes: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(workspace.path("run/run.json")).unwrap()).unwrap();
    let changes: Vec<&str> =
        notes["changes"].as_array().unwrap().iter().map(|change| change["setting"].as_str().unwrap()).collect();
    assert_eq!(changes, ["latent.images", "autoencoder.images", "classifier.images", "latent.images"]);
    assert_eq!(notes["changes"][1]["steps"]["autoencoder"], 20);

    // All is as it was asked for: nothing is left to do.
    let done = workspace.run(&[&resume[..], &longer].concat()).succeeds();
    assert!(done.stdout().contains("nothing is left to train") && !done.stderr().contains("WARN"), "{}", done.stdout());
    assert_same_model(&workspace, ["long", "run"]);
}

/// The command of the first call with `--resume` behind it is the same run.
#[test]
fn the_options_of_the_first_call_may_be_repeated() {
    let workspace = Workspace::new();
    shapes(&workspace, 8);
    fs::create_dir(workspace.path("other")).unwrap();
    let first = train_args("run", &["--stage", "autoencoder", "--freeze", "encoder", "--set", "model.dropout=0"]);
    workspace.run(&first).succeeds();
    let before = fs::read(workspace.path("run/model.safetensors")).unwrap();
    let again = |more: &[&str]| workspace.run(&[&first[..], &["--resume"], more].concat());
    assert!(again(&[]).succeeds().stdout().contains("nothing is left"));
    let config = workspace.run(&["train", "--preset", "smoke", "--dry-run"]).succeeds().stdout();
    assert!(config.contains("dropout = 0.1"));
    let train_toml = fs::read_to_string(workspace.path("run/train.toml")).unwrap();
    fs::write(workspace.path("own.toml"), &train_toml).unwrap();
    let by_file =
        ["train", "--config", "own.toml", "--data", "./shapes", "--out", "run", "--resume", "--stage=autoencoder"];
    workspace.run(&by_file).succeeds();

    again(&["--set", "model.z_channels=16"]).fails_with("model.z_channels = 32");
    again(&["--set", "autoencoder.batch_size=4"]).fails_with("autoencoder.batch_size = 8, which cannot become 4");
    again(&["--set", "autoencoder.images=80"]).fails_with("10 steps, but 20 have been made");
    again(&["--freeze", "unet"]).fails_with("--freeze");
    again(&["--init-from", "toonheads"]).fails_with("without --init-from");
    let resume = ["train", "--out", "run", "--resume"];
    workspace.run(&[&resume[..], &["--data", "other"]].concat()).fails_with("started with --data");
    workspace.run(&[&resume[..], &["--preset", "smoke"]].concat()).fails_with("model.dropout = 0.0");
    workspace.run(&[&resume[..], &["--preset", "small32"]].concat()).fails_with("cannot become");
    fs::write(workspace.path("own.toml"), train_toml.replace("lr = 0.001", "lr = 0.001 \nnonsense = 1")).unwrap();
    workspace.run(&by_file).fails_with("nonsense");
    assert_eq!(fs::read(workspace.path("run/model.safetensors")).unwrap(), before, "what is refused changes nothing");
    assert_eq!(fs::read_to_string(workspace.path("run/train.toml")).unwrap(), train_toml);
    // Without --resume the same folder is refused, with what differs.
    let other = [&first[..], &["--set", "seed=7"]].concat();
    workspace.run(&other).fails_with("a run was already started in run with seed = 0, not 7");
}

#[test]
fn a_run_without_a_checkpoint_begins_anew_and_says_so() {
    let workspace = Workspace::new();
    shapes(&workspace, 8);
    workspace.run(&train_args("run", &["--stage", "latent"])).fails_with("--stage autoencoder");
    for args in [&["info", "run"][..], &["sample", "--model", "run", "--out", "x"]] {
        workspace.run(args).fails_with("has not reached its first model: go on with `diffae train --out run --resume`");
    }
    let resumed = workspace.run(&["train", "--out", "run", "--resume", "--stage", "autoencoder"]).succeeds();
    assert!(resumed.stderr().contains("autoencoder: there is no checkpoint yet"), "{}", resumed.stderr());
    workspace.run(&["info", "run"]).succeeds();
}

/// `diffae train .. && diffae sample ..` does not go on after Ctrl-C.
#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_ends_with_its_own_exit_code() {
    let workspace = Workspace::new();
    shapes(&workspace, 8);
    let endless = ["--stage", "autoencoder", "--set", "autoencoder.images=800000"];
    let child = start(&workspace, &train_args("run", &endless));
    wait_for_checkpoints(&workspace, "run", 1);
    let kill = format!("kill -INT {}", child.id());
    assert!(std::process::Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    let go_on = "interrupted: the run is saved; go on with: diffae train --out run --resume --stage autoencoder";
    assert!(stderr.contains(go_on), "{stderr}");
    // It has seen far fewer pictures than it was to see, and may end there.
    let made = fs::read_dir(workspace.path("run/checkpoints")).unwrap().count();
    assert!(made > 0);
    let shorter = set(&["autoencoder.images=8"]);
    let resume = ["train", "--out", "run", "--resume", "--stage", "autoencoder"];
    workspace.run(&[&resume[..], &shorter].concat()).fails_with("have been made");
}

/// Event files as `TensorBoard` reads them: after a kill the new file voids the steps that the old one has beyond the checkpoint.
#[test]
fn a_resumed_run_voids_the_curves_after_its_checkpoint() {
    let workspace = Workspace::new();
    shapes(&workspace, 8);
    let seldom = ["--set", "run.save_every_secs=0.2", "--set", "run.log_every_steps=1", "--stage", "autoencoder"];
    let mut child =
        start(&workspace, &train_args("run", &[&seldom[..], &["--set", "autoencoder.images=80000"]].concat()));
    wait_for_checkpoints(&workspace, "run", 1);
    std::thread::sleep(Duration::from_millis(100));
    child.kill().unwrap();
    child.wait().unwrap();
    let checkpoints = || {
        let entries = fs::read_dir(workspace.path("run/checkpoints")).unwrap().flatten();
        let step = |name: String| name.strip_prefix("autoencoder-")?.parse::<usize>().ok();
        entries.filter_map(|entry| step(entry.file_name().into_string().unwrap())).max().unwrap()
    };
    let made = checkpoints();
    let images = format!("autoencoder.images={}", 8 * (made + 3));
    let resume = ["train", "--threads", "1", "--out", "run", "--resume", "--stage", "autoencoder"];
    workspace.run(&[&resume[..], &["--set", &images]].concat()).succeeds();
    let files = workspace.files("run/tensorboard/autoencoder");
    assert_eq!(files.len(), 2, "{files:?}");
    let bytes = fs::read(workspace.path("run/tensorboard/autoencoder").join(&files[1])).unwrap();
    // Records of `size (8), checksum (4), event, checksum (4)`; the second is the mark.
    let size = |at: usize| usize::try_from(u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())).unwrap();
    let mark = &bytes[size(0) + 16..][12..][..size(size(0) + 16)];
    // wall_time (9 bytes), step as a varint, then session_log { status: START }.
    let step = (made + 1) as u64;
    let mut expected = vec![0x10];
    let mut left = step;
    while left >= 0x80 {
        expected.push(u8::try_from(left & 0x7f).unwrap() | 0x80);
        left >>= 7;
    }
    expected.push(u8::try_from(left).unwrap());
    expected.extend([0x3a, 0x02, 0x08, 0x01]);
    assert_eq!(mark[9..], expected);
}
