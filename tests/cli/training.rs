//! `diffae train` and `diffae presets`.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use image::{Rgb, RgbImage};

use crate::support::{Workspace, checkpoint};

/// Settings that make the `smoke` preset quick in a build for tests.
const QUICK: [&str; 8] = [
    "--set",
    "autoencoder.images=160",
    "--set",
    "latent.images=640",
    "--set",
    "classifier.images=320",
    "--set",
    "run.save_every_secs=0",
];

/// Discs and squares, one folder a shape.
fn shapes(workspace: &Workspace, count: u8) {
    for (class, is_disc) in [("disc", true), ("square", false)] {
        fs::create_dir_all(workspace.path("shapes").join(class)).unwrap();
        for i in 0..count {
            let (radius, at) = (4. + f32::from(i % 4), 8. + f32::from(i % 5) - 2.);
            let picture = RgbImage::from_fn(20, 16, |x, y| {
                let (dx, dy) = (x as f32 - at, y as f32 - 8.);
                let inside = if is_disc { dx.hypot(dy) < radius } else { dx.abs().max(dy.abs()) < radius };
                Rgb(if inside { [200, i.wrapping_mul(9), 40] } else { [20, 60, i.wrapping_mul(7)] })
            });
            picture.save(workspace.path("shapes").join(class).join(format!("{i:02}.png"))).unwrap();
        }
    }
}

fn train_args<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["train", "--preset", "smoke", "--threads", "1", "--data", "shapes", "--out", out];
    [&fixed[..], &QUICK, more].concat()
}

#[test]
fn one_command_makes_a_model_that_every_other_command_takes() {
    let workspace = Workspace::new();
    shapes(&workspace, 16);
    let previews = ["--labels", "folders", "--set", "run.preview_every_images=80"];
    workspace.run(&train_args("run", &previews)).succeeds();
    assert_eq!(workspace.files("run/previews"), ["images-000000080.png", "images-000000160.png"]);
    let info = workspace.run(&["info", "run", "--json"]).succeeds().json();
    assert_eq!(info["kind"], "autoencoder_with_latent_net", "{info}");
    workspace.run(&["sample", "-m", "run", "-n", "1", "--steps", "2", "--latent-steps", "2", "-o", "a"]).succeeds();
    let edit = ["edit", "-m", "run", "shapes/disc/00.png", "-a", "square", "--steps", "2", "--invert-steps", "2"];
    workspace.run(&[&edit[..], &["-o", "b"]].concat()).succeeds();
    // All is done, which a second run says and leaves alone.
    let before = fs::read(workspace.path("run/model.safetensors")).unwrap();
    let again = workspace.run(&train_args("run", &previews)).succeeds();
    assert!(again.stderr().contains("done already"), "{}", again.stderr());
    assert_eq!(fs::read(workspace.path("run/model.safetensors")).unwrap(), before);
}

/// Starts a run that the test will kill.
fn start(workspace: &Workspace, args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_diffae"));
    command.args(args).current_dir(workspace.path("")).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

fn wait_for_a_checkpoint(folder: &Path) {
    let mut waits = 0;
    loop {
        let whole = |name: &str| name.starts_with("autoencoder-");
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        if entries.into_iter().any(|entry| whole(&entry.file_name().to_string_lossy())) {
            return;
        }
        waits += 1;
        assert!(waits < 1200, "no checkpoint after a minute");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_run_that_is_killed_and_resumed_ends_with_the_same_bits() {
    let workspace = Workspace::new();
    shapes(&workspace, 12);
    workspace.run(&train_args("whole", &["--labels", "folders"])).succeeds();
    let mut child = start(&workspace, &train_args("killed", &["--labels", "folders"]));
    // A checkpoint is written at every step, so a random moment is often in the middle of one.
    for delay_ms in [37, 412, 181, 953] {
        wait_for_a_checkpoint(&workspace.path("killed/checkpoints"));
        std::thread::sleep(Duration::from_millis(delay_ms));
        // It may have ended by itself.
        let _ = child.kill();
        child.wait().unwrap();
        child = start(&workspace, &["train", "--threads", "1", "--out", "killed", "--resume"]);
    }
    child.wait().unwrap();
    let bytes = |run: &str| fs::read(workspace.path(run).join("model.safetensors")).unwrap();
    assert!(bytes("whole") == bytes("killed"), "the models differ");
    let losses = |run: &str| {
        let text = fs::read_to_string(workspace.path(run).join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.map(|line| (line["stage"].clone(), line["step"].clone(), line["loss"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(losses("whole"), losses("killed"));
}

#[test]
fn a_broken_newest_checkpoint_is_passed_over() {
    let workspace = Workspace::new();
    shapes(&workspace, 8);
    workspace.run(&train_args("whole", &["--stage", "autoencoder"])).succeeds();
    let mut child = start(&workspace, &train_args("run", &["--stage", "autoencoder"]));
    wait_for_a_checkpoint(&workspace.path("run/checkpoints"));
    std::thread::sleep(Duration::from_millis(200));
    let _ = child.kill();
    child.wait().unwrap();
    if workspace.files("run").contains(&"model.safetensors".to_owned()) {
        return; // it was too quick for this machine
    }
    let newest = workspace.files("run/checkpoints").pop().unwrap();
    let tensors = workspace.path("run/checkpoints").join(&newest).join("state.safetensors");
    let bytes = fs::read(&tensors).unwrap();
    fs::write(&tensors, &bytes[..bytes.len() >> 1]).unwrap();
    let args = ["train", "--threads", "1", "--out", "run", "--resume", "--stage", "autoencoder"];
    if workspace.files("run/checkpoints").len() > 1 {
        let resumed = workspace.run(&args).succeeds();
        assert!(resumed.stderr().contains("broken"), "{}", resumed.stderr());
        let bytes = |run: &str| fs::read(workspace.path(run).join("model.safetensors")).unwrap();
        assert!(bytes("whole") == bytes("run"), "the models differ");
    } else {
        workspace.run(&args).fails_with("no whole checkpoint");
    }
}

/// A limit on the size of files stands for a full disk: writing a checkpoint fails in the middle.
#[cfg(unix)]
#[test]
fn a_full_disk_loses_nothing_that_was_saved() {
    let workspace = Workspace::new();
    shapes(&workspace, 8);
    workspace.run(&train_args("whole", &["--stage", "autoencoder"])).succeeds();
    let mut child = start(&workspace, &train_args("run", &["--stage", "autoencoder"]));
    wait_for_a_checkpoint(&workspace.path("run/checkpoints"));
    // It may have ended by itself.
    let _ = child.kill();
    child.wait().unwrap();
    let resume = ["train", "--threads", "1", "--out", "run", "--resume", "--stage", "autoencoder"];
    if !workspace.files("run").contains(&"model.safetensors".to_owned()) {
        let script = "trap '' XFSZ; ulimit -f 1000; exec \"$0\" \"$@\"";
        let mut limited = Command::new("sh");
        limited.args(["-c", script, env!("CARGO_BIN_EXE_diffae")]).args(resume).current_dir(workspace.path(""));
        let output = limited.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("cannot access"), "{stderr}");
        workspace.run(&resume).succeeds();
    }
    let bytes = |run: &str| fs::read(workspace.path(run).join("model.safetensors")).unwrap();
    assert!(bytes("whole") == bytes("run"), "the models differ");
}

#[test]
fn a_plain_ddpm_and_other_predictions_train() {
    let workspace = Workspace::new();
    shapes(&workspace, 8);
    workspace.run(&train_args("ddpm", &["--set", "model.kind=ddpm"])).succeeds();
    assert_eq!(workspace.run(&["info", "ddpm", "--json"]).succeeds().json()["kind"], "ddpm");
    let two_phases =
        ["diffusion.prediction=v", "diffusion.beta_schedule=cosine-shift4", "objective.terminal_images=40"];
    let set: Vec<&str> = two_phases.iter().flat_map(|assignment| ["--set", assignment]).collect();
    workspace.run(&train_args("v", &[&set[..], &["--stage", "autoencoder"]].concat())).succeeds();
    let out = ["reconstruct", "-m", "v", "shapes/disc/00.png", "--steps", "2", "--invert-steps", "2", "-o", "r"];
    workspace.run(&out).succeeds();
}

#[test]
fn part_of_a_batch_at_a_time_and_recomputed_blocks_give_nearly_the_same_model() {
    let workspace = Workspace::new();
    shapes(&workspace, 8);
    let few = ["--stage", "autoencoder", "--set", "autoencoder.images=24", "--set", "model.dropout=0"];
    for (out, set) in [
        ("plain", "autoencoder.accumulate=1"),
        ("parts", "autoencoder.accumulate=4"),
        ("again", "objective.checkpoint_blocks=true"),
    ] {
        workspace.run(&train_args(out, &[&few[..], &["--set", set]].concat())).succeeds();
    }
    let first_loss = |run: &str| {
        let text = fs::read_to_string(workspace.path(run).join("metrics.jsonl")).unwrap();
        let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        line["loss"].as_f64().unwrap()
    };
    let plain = first_loss("plain");
    assert!((first_loss("parts") / plain - 1.).abs() < 1e-3);
    assert!((first_loss("again") / plain - 1.).abs() < 1e-6);
}

#[test]
fn a_model_can_be_fine_tuned_with_a_part_frozen() {
    let workspace = Workspace::new();
    shapes(&workspace, 8);
    workspace.run(&train_args("first", &["--stage", "autoencoder"])).succeeds();
    let tuned = ["--stage", "autoencoder", "--init-from", "first", "--freeze", "encoder"];
    workspace.run(&train_args("second", &tuned)).succeeds();
    let tensors = |run: &str| {
        let bytes = fs::read(workspace.path(run).join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let owned = |(name, view): (String, safetensors::tensor::TensorView<'_>)| (name, view.data().to_vec());
        file.tensors().into_iter().map(owned).collect::<std::collections::BTreeMap<_, _>>()
    };
    let (first, second) = (tensors("first"), tensors("second"));
    for (name, values) in &first {
        assert_eq!(*values == second[name], name.starts_with("encoder."), "{name}");
    }
    workspace.run(&train_args("third", &["--init-from", &checkpoint("ddpm16")])).fails_with("shape");
}

#[test]
fn what_cannot_be_trained_is_refused_in_one_sentence() {
    let workspace = Workspace::new();
    shapes(&workspace, 4);
    fs::create_dir(workspace.path("empty")).unwrap();
    fs::write(workspace.path("missing.csv"), "file,round\nnobody.png,1\n00.png,0\n").unwrap();
    fs::write(workspace.path("same.csv"), "file,round\n00.png,1\n01.png,1\n").unwrap();
    fs::write(workspace.path("other.toml"), "seed = 0\nnonsense = 1\n").unwrap();
    let train = |args: &[&str]| workspace.run(&[&["train", "--out", "run"], args].concat());
    train(&["--preset", "smoke"]).fails_with("--data");
    train(&["--data", "shapes"]).fails_with("--preset");
    train(&["--preset", "smok", "--data", "shapes"]).fails_with("smoke");
    train(&["--preset", "smoke", "--data", "shapes", "--set", "autoencoder.lrr=1"]).fails_with("lrr");
    train(&["--config", "other.toml", "--data", "shapes"]).fails_with("nonsense");
    train(&["--resume"]).fails_with("no run");
    for (out, args, text) in [
        ("a", ["--data", "empty", "--stage", "autoencoder"], "no pictures"),
        ("b", ["--data", "shapes", "--labels", "missing.csv"], "nobody.png"),
        ("c", ["--data", "shapes", "--labels", "same.csv"], "the same for all"),
        ("d", ["--data", "shapes", "--stage", "latent"], "--stage autoencoder"),
        ("shapes", ["--data", "shapes", "--stage", "autoencoder"], "not empty"),
        ("e", ["--data", "shapes", "--freeze", "decoder"], "encoder or unet"),
    ] {
        workspace.run(&[&["train", "--preset", "smoke", "--out", out], &args[..]].concat()).fails_with(text);
    }
}

#[test]
fn one_picture_is_enough_for_an_autoencoder() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("one")).unwrap();
    RgbImage::from_pixel(8, 8, Rgb([9, 99, 199])).save(workspace.path("one/a.png")).unwrap();
    let few = ["--set", "autoencoder.images=16", "--set", "data.validation_share=0", "--stage", "autoencoder"];
    let args = ["train", "--preset", "smoke", "--data", "one", "--out", "run"];
    workspace.run(&[&args[..], &few].concat()).succeeds();
    workspace.run(&["train", "--out", "run", "--resume", "--stage", "latent"]).fails_with("at least two");
}

#[test]
fn a_dry_run_tells_sizes_and_time_and_writes_nothing() {
    let workspace = Workspace::new();
    shapes(&workspace, 4);
    let dry = workspace.run(&["train", "--preset", "smoke", "--data", "shapes", "--dry-run"]).succeeds().stdout();
    for text in ["image_size = 16", "parameters", "steps: 300", "epochs", "pictures/s"] {
        assert!(dry.contains(text), "{text} is missing in {dry}");
    }
    assert_eq!(workspace.files(""), ["shapes"]);
}

#[test]
fn presets_are_listed_and_printed() {
    let workspace = Workspace::new();
    let list = workspace.run(&["presets"]).succeeds().stdout();
    assert!(list.lines().count() >= 10 && list.contains("ffhq256_autoenc"), "{list}");
    let text = workspace.run(&["presets", "smoke"]).succeeds().stdout();
    fs::write(workspace.path("my.toml"), text).unwrap();
    workspace.run(&["train", "--config", "my.toml", "--dry-run"]).succeeds();
}
