//! Nonsense ends in one sentence and exit code 2, and leaves nothing behind.

use std::fs;

use crate::support::{FEW_STEPS, Workspace, checkpoint, fixture, photograph};

#[test]
fn damaged_checkpoints_are_named() {
    let workspace = Workspace::new();
    let bytes = fs::read(checkpoint("ddpm16")).unwrap();
    let mut flipped = bytes.clone();
    // Entries are read only where they are used; one flip a page meets one that is.
    flipped.iter_mut().skip(2048).step_by(4096).for_each(|byte| *byte ^= 1);
    for (name, content) in
        [("truncated.ckpt", &bytes[..bytes.len() >> 1]), ("empty.ckpt", &[]), ("flipped.ckpt", &flipped)]
    {
        fs::write(workspace.path(name), content).unwrap();
        workspace.run(&["info", name]).fails_with(name);
        workspace.run(&["import", name, "--out", "model"]).fails_with(name);
        assert!(!workspace.path("model").exists());
    }
}

#[test]
fn damaged_model_directories_are_named() {
    let workspace = Workspace::new();
    workspace.run(&["import", &checkpoint("ddpm16"), "--out", "model"]).succeeds();
    let weights = workspace.path("model/model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() - 5]).unwrap();
    workspace.run(&["info", "model"]).fails_with("safetensors");
    fs::write(&weights, &whole).unwrap();
    let config = workspace.path("model/config.json");
    let text = fs::read_to_string(&config).unwrap();
    for (broken, expected) in [
        (text.replace("\"model_channels\": 32", "\"model_channels\": 64"), "expected"),
        (text.replace("\"model_channels\": 32", "\"model_channels\": 36"), "groups"),
        (text.replace("\"dropout\"", "\"dropuot\""), "dropuot"),
        (text.replace("\"format_version\": 1", "\"format_version\": 9"), "version 9"),
        (text.replace("linear", "sideways"), "sideways"),
        (String::new(), "config.json"),
    ] {
        assert_ne!(broken, text);
        fs::write(&config, broken).unwrap();
        workspace.run(&["info", "model"]).fails_with(expected);
    }
    fs::remove_file(&config).unwrap();
    workspace.run(&["info", "model"]).fails_with("not a model");
    workspace.run(&["info", "model/model.safetensors"]).fails_with("model/model.safetensors is not a model");
}

#[test]
fn step_counts_that_do_not_exist_name_their_neighbors() {
    let (model, photograph) = (checkpoint("autoenc16_latent"), photograph());
    let run = |inversion: &str, steps: &str| {
        let args = ["encode", "--model", &model, &photograph, "--out", "c.safetensors", "--inversion", inversion];
        Workspace::new().run(&[&args[..], &["--steps", steps]].concat())
    };
    run("ddim", "0").fails_with("at least 1");
    run("ddim", "3000").fails_with("1000");
    run("ddim", "123").fails_with("125");
    run("exact", "3000").fails_with("1 to 1000");
    run("exact", "3").succeeds();
    let spaced = ["encode", "--model", &model, &photograph, "--out", "c.safetensors", "--spacing", "karras"];
    Workspace::new()
        .run(&[&spaced[..], &["--inversion", "ddim"]].concat())
        .fails_with("--spacing is for --inversion exact and fixed-point");
}

#[test]
fn pictures_of_another_size_in_tensors_are_refused() {
    let (model, golden) = (checkpoint("autoenc16_latent"), fixture("golden/autoenc32/golden.safetensors"));
    Workspace::new()
        .run(&["reconstruct", "--model", &model, &golden, "--out", "out"])
        .fails_with("the model expects [3, 16, 16]");
}

#[test]
fn not_a_number_is_refused() {
    let workspace = Workspace::new();
    let values: Vec<u8> = [f32::NAN; 3 * 16 * 16].iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1, 3, 16, 16], &values).unwrap();
    fs::write(workspace.path("x.safetensors"), safetensors::serialize([("x", view)], None).unwrap()).unwrap();
    let model = checkpoint("autoenc16_latent");
    workspace.run(&["reconstruct", "--model", &model, "x.safetensors", "--out", "out"]).fails_with("not finite");
    assert_eq!(workspace.files("."), ["x.safetensors"]);
}

#[test]
fn a_device_that_is_not_compiled_in_is_explained() {
    if cfg!(feature = "cuda") {
        return;
    }
    let workspace = Workspace::new();
    let model = checkpoint("ddpm16");
    let commands: [&[&str]; 2] =
        [&["sample", "--model", &model], &["train", "--preset", "smoke", "--data", env!("CARGO_MANIFEST_DIR")]];
    for command in commands {
        let args = [command, &["--out", "out", "--device", "cuda"]].concat();
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_diffae"));
        let finished = program.current_dir(workspace.path(".")).args(args).output().unwrap();
        assert_eq!(finished.status.code(), Some(2));
        assert!(String::from_utf8(finished.stderr).unwrap().contains("--features cuda"));
        assert!(workspace.files(".").is_empty(), "{command:?}");
    }
}

/// The file-size limit of the shell stands for a full disk.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing() {
    let workspace = Workspace::new();
    let program = env!("CARGO_BIN_EXE_diffae");
    let import = format!("'{program}' import '{}' --out model", checkpoint("ddpm16"));
    let sample =
        format!("'{program}' sample --model '{}' -n 1 --out out {}", checkpoint("ddpm16"), FEW_STEPS.join(" "));
    for command in [import, sample] {
        let script = format!("trap '' XFSZ; ulimit -f 1; exec {command}");
        let finished = std::process::Command::new("sh").args(["-c", &script]).current_dir(workspace.path(".")).output();
        let finished = finished.unwrap();
        let stderr = String::from_utf8(finished.stderr).unwrap();
        assert_eq!(finished.status.code(), Some(2), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    assert!(workspace.files(".").is_empty());
}

/// Ctrl-C in the middle of a long chain.
#[cfg(unix)]
#[test]
fn an_interrupt_leaves_nothing() {
    let workspace = Workspace::new();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_diffae"))
        .args(["sample", "--model", &checkpoint("ddpm16"), "-n", "64", "--steps", "1000", "--out", "out"])
        .current_dir(workspace.path("."))
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    let killed = std::process::Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(workspace.files(".").is_empty());
}
