//! `diffae train` and `diffae presets`.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

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
pub(crate) fn shapes(workspace: &Workspace, count: u8) {
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

/// `--set` before each assignment.
pub(crate) fn set<'a>(assignments: &[&'a str]) -> Vec<&'a str> {
    assignments.iter().flat_map(|assignment| ["--set", assignment]).collect()
}

pub(crate) fn train_args<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["train", "--preset", "smoke", "--threads", "1", "--data", "shapes", "--out", out];
    [&fixed[..], &QUICK, more].concat()
}

#[test]
fn one_command_makes_a_model_that_every_other_command_takes() {
    let workspace = Workspace::new();
    shapes(&workspace, 16);
    let previews = ["--labels", "folders", "--set", "run.preview_every_images=80"];
    workspace.run(&train_args("run", &previews)).succeeds();
    let sheets = workspace.files("run/previews");
    let of = |kind: &str| sheets.iter().filter(|name| name.starts_with(kind)).count();
    assert_eq!((of("images-"), of("latent-")), (2, 10), "{sheets:?}");
    let log = fs::read_to_string(workspace.path("run/metrics.jsonl")).unwrap();
    for stage in ["autoencoder", "latent", "classifier"] {
        let validated = |line: &str| line.contains(stage) && line.contains("validation_loss");
        assert!(log.lines().any(validated), "{stage} is never validated");
    }
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

/// Starts the program.
pub(crate) fn start(workspace: &Workspace, args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_diffae"));
    command.args(args).current_dir(workspace.path("")).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Names of whole checkpoints of the first stage, oldest first.
fn checkpoints(workspace: &Workspace, run: &str) -> Vec<String> {
    let entries = fs::read_dir(workspace.path(run).join("checkpoints")).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("autoencoder-")).collect();
    names.sort();
    names
}

/// Waits until there are so many checkpoints.
pub(crate) fn wait_for_checkpoints(workspace: &Workspace, run: &str, count: usize) {
    let start = Instant::now();
    while checkpoints(workspace, run).len() < count {
        assert!(start.elapsed() < Duration::from_mins(1), "no {count} checkpoints after a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A first stage of a hundred steps, each of which is saved: long enough to be killed on the way.
const HUNDRED_STEPS: [&str; 4] = ["--stage", "autoencoder", "--set", "autoencoder.images=800"];
const RESUME_FIRST_STAGE: [&str; 7] = ["train", "--threads", "1", "--out", "killed", "--resume", "--stage=autoencoder"];

/// Makes the run `whole`, and the run `killed`, which is killed once it has two checkpoints.
fn whole_and_killed(workspace: &Workspace) {
    shapes(workspace, 8);
    workspace.run(&train_args("whole", &HUNDRED_STEPS)).succeeds();
    let mut child = start(workspace, &train_args("killed", &HUNDRED_STEPS));
    wait_for_checkpoints(workspace, "killed", 2);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!workspace.path("killed/model.safetensors").exists(), "the run was too quick to be killed");
}

#[track_caller]
fn assert_same_model(workspace: &Workspace) {
    let bytes = |run: &str| fs::read(workspace.path(run).join("model.safetensors")).unwrap();
    assert!(bytes("whole") == bytes("killed"), "the models differ");
}

#[test]
fn a_run_that_is_killed_and_resumed_ends_with_the_same_bits() {
    let workspace = Workspace::new();
    shapes(&workspace, 12);
    let all_stages = ["--labels", "folders", "--set", "autoencoder.images=800"];
    workspace.run(&train_args("whole", &all_stages)).succeeds();
    let mut child = start(&workspace, &train_args("killed", &all_stages));
    wait_for_checkpoints(&workspace, "killed", 1);
    // A checkpoint is written at every step, so a random moment is often in the middle of one.
    for (kill, delay_ms) in [37, 412, 181, 653].into_iter().enumerate() {
        std::thread::sleep(Duration::from_millis(delay_ms));
        let killed = child.kill();
        child.wait().unwrap();
        if kill == 0 {
            killed.unwrap();
            assert!(!workspace.path("killed/model.safetensors").exists(), "the run was too quick to be killed");
        }
        child = start(&workspace, &["train", "--threads", "1", "--out", "killed", "--resume"]);
    }
    assert!(child.wait().unwrap().success());
    assert_same_model(&workspace);
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
    whole_and_killed(&workspace);
    let newest = checkpoints(&workspace, "killed").pop().unwrap();
    let tensors = workspace.path("killed/checkpoints").join(&newest).join("state.safetensors");
    let bytes = fs::read(&tensors).unwrap();
    fs::write(&tensors, &bytes[..bytes.len() >> 1]).unwrap();
    let resumed = workspace.run(&RESUME_FIRST_STAGE).succeeds();
    assert!(resumed.stderr().contains(&newest) && resumed.stderr().contains("broken"), "{}", resumed.stderr());
    assert_same_model(&workspace);
}

#[test]
fn without_a_whole_checkpoint_nothing_is_resumed() {
    let workspace = Workspace::new();
    whole_and_killed(&workspace);
    for name in checkpoints(&workspace, "killed") {
        fs::write(workspace.path("killed/checkpoints").join(name).join("state.json"), "{").unwrap();
    }
    workspace.run(&RESUME_FIRST_STAGE).fails_with("no whole checkpoint");
}

/// A limit on the size of files stands for a full disk: writing a checkpoint fails in the middle.
#[cfg(unix)]
#[test]
fn a_full_disk_loses_nothing_that_was_saved() {
    let workspace = Workspace::new();
    whole_and_killed(&workspace);
    let before = checkpoints(&workspace, "killed");
    let script = "trap '' XFSZ; ulimit -f 1000; exec \"$0\" \"$@\"";
    let mut limited = Command::new("sh");
    limited.args(["-c", script, env!("CARGO_BIN_EXE_diffae")]).args(RESUME_FIRST_STAGE);
    let output = limited.current_dir(workspace.path("")).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("cannot access"), "{stderr}");
    assert_eq!(checkpoints(&workspace, "killed"), before);
    workspace.run(&RESUME_FIRST_STAGE).succeeds();
    assert_same_model(&workspace);
}

/// A run remembers where its data are, wherever it is resumed from.
#[test]
fn a_run_can_be_resumed_from_another_folder() {
    let workspace = Workspace::new();
    whole_and_killed(&workspace);
    let run = workspace.path("killed");
    let mut command = Command::new(env!("CARGO_BIN_EXE_diffae"));
    command.args(["train", "--threads", "1", "--resume", "--stage", "autoencoder", "--out"]).arg(&run);
    let output = command.current_dir(workspace.path("shapes")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_same_model(&workspace);
}

#[test]
fn a_plain_ddpm_and_other_predictions_train() {
    let workspace = Workspace::new();
    shapes(&workspace, 8);
    workspace.run(&train_args("ddpm", &["--set", "model.kind=ddpm"])).succeeds();
    assert_eq!(workspace.run(&["info", "ddpm", "--json"]).succeeds().json()["kind"], "ddpm");
    let two_phases =
        set(&["diffusion.prediction=v", "diffusion.beta_schedule=cosine-shift4", "objective.terminal_images=40"]);
    workspace.run(&train_args("v", &[&two_phases[..], &["--stage", "autoencoder"]].concat())).succeeds();
    let out = ["reconstruct", "-m", "v", "shapes/disc/00.png", "--steps", "2", "--invert-steps", "2", "-o", "r"];
    workspace.run(&out).succeeds();
}

/// The compact autoencoder goes through all stages and commands; what it cannot do is said.
#[test]
fn a_one_shot_autoencoder_is_one_more_kind_of_model() {
    let workspace = Workspace::new();
    shapes(&workspace, 8);
    let small = set(&[
        "model.image_size=16",
        "model.model_channels=8",
        "model.z_channels=12",
        "objective.discriminator_channels=8",
        "objective.adversarial_weight=0.02",
        "autoencoder.images=640",
        "autoencoder.batch_size=16",
        "autoencoder.lr=4e-3",
        "latent.images=640",
        "latent_net.hidden_channels=32",
        "classifier.images=640",
        "run.preview_every_images=320",
        "run.log_every_steps=1",
    ]);
    let fixed = ["train", "--preset", "compact64", "--data", "shapes", "--labels", "folders"];
    let train = |out: &str| workspace.run(&[&fixed[..], &["--out", out], &small].concat());
    train("one").succeeds();
    train("two").succeeds();
    let weights = |run: &str| fs::read(workspace.path(run).join("model.safetensors")).unwrap();
    assert_eq!(weights("one"), weights("two"), "the same seed gives the same model");
    let info = workspace.run(&["info", "one", "--json"]).succeeds().json();
    assert_eq!((&info["kind"], &info["can_sample"]), (&"one_shot".into(), &true.into()));
    let log = fs::read_to_string(workspace.path("one").join("metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let losses: Vec<f64> = lines
        .iter()
        .filter(|line| line["loss_discriminator"].is_f64())
        .filter_map(|line| line["loss"].as_f64())
        .collect();
    assert!(losses.len() == 40 && losses[39] < losses[0], "{losses:?}");
    assert!(workspace.path("one").join("previews").read_dir().unwrap().count() > 2);

    let picture = "shapes/disc/00.png";
    workspace.run(&["encode", "-m", "one", picture, "-o", "codes.safetensors"]).succeeds();
    workspace.run(&["decode", "-m", "one", "codes.safetensors", "-o", "decoded"]).succeeds();
    workspace.run(&["decode", "-m", "one", "codes.safetensors", "-o", "random", "--x-t", "random"]).succeeds();
    workspace.run(&["reconstruct", "-m", "one", picture, "-o", "reconstructed"]).succeeds();
    // What its one shot loses is added by an edit that is asked to: without a change the picture is itself.
    let square = image::open(workspace.path(picture)).unwrap().crop_imm(2, 0, 16, 16).into_rgb8();
    square.save(workspace.path("square.png")).unwrap();
    let kept = ["edit", "-m", "one", "square.png", "-a", "disc", "--strengths=0", "--keep-residual", "-o", "kept"];
    workspace.run(&kept).succeeds();
    assert_eq!(workspace.pixels("kept/square_disc_+0.png"), square);
    assert_eq!(
        image::open(workspace.path("decoded/00.png")).unwrap(),
        image::open(workspace.path("reconstructed/00.png")).unwrap()
    );
    workspace.run(&["edit", "-m", "one", picture, "--attribute", "disc", "-o", "edited"]).succeeds();
    // Along a classifier's weights nobody knows how far to go.
    assert_eq!(workspace.files("edited"), ["00_disc_+0.3.png"]);
    workspace.run(&["interpolate", "-m", "one", picture, "shapes/square/00.png", "-o", "strip.png"]).succeeds();
    workspace.run(&["variations", "-m", "one", picture, "-n", "2", "-o", "varied"]).succeeds();
    workspace.run(&["sample", "-m", "one", "-n", "2", "-o", "sampled"]).succeeds();
    let odd = ["--out", "three", "--set", "model.image_size=24"];
    workspace.run(&[&fixed[..], &odd].concat()).fails_with("power of two");
    workspace.run(&[&fixed[..], &["--out", "four", "--freeze", "unet"]].concat()).fails_with("a part of this model");
}

#[test]
fn a_diffusion_can_have_an_adversarial_term() {
    let workspace = Workspace::new();
    shapes(&workspace, 8);
    let adversarial = set(&[
        "objective.adversarial_weight=0.1",
        "objective.adversarial_timesteps=500",
        "objective.discriminator_channels=4",
        "run.log_every_steps=1",
    ]);
    workspace.run(&train_args("run", &[&["--stage", "autoencoder"], &adversarial[..]].concat())).succeeds();
    let log = fs::read_to_string(workspace.path("run").join("metrics.jsonl")).unwrap();
    assert!(log.contains("loss_discriminator"), "{log}");
    // The discriminator is no part of the model.
    workspace.run(&["info", "run"]).succeeds();
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
    workspace.run(&train_args("third", &["--init-from", &checkpoint("ddpm16")])).fails_with("another architecture");
    // As large, but without a semantic code.
    workspace.run(&train_args("ddpm", &["--stage", "autoencoder", "--set", "model.kind=ddpm"])).succeeds();
    workspace.run(&train_args("fourth", &["--init-from", "ddpm"])).fails_with("they have no encoder");
    let onto_ddpm = ["--set", "model.kind=ddpm", "--init-from", "first"];
    workspace.run(&train_args("fifth", &onto_ddpm)).fails_with("which these networks have not");
}

#[test]
fn what_cannot_be_trained_is_refused_in_one_sentence() {
    let workspace = Workspace::new();
    shapes(&workspace, 4);
    fs::create_dir(workspace.path("empty")).unwrap();
    fs::write(workspace.path("missing.csv"), "file,round\nnobody.png,1\ndisc/00.png,0\n").unwrap();
    fs::write(workspace.path("same.csv"), "file,round\ndisc/00.png,1\ndisc/01.png,1\n").unwrap();
    fs::write(workspace.path("other.toml"), "seed = 0\nnonsense = 1\n").unwrap();
    let train = |args: &[&str]| workspace.run(&[&["train", "--out", "run"], args].concat());
    train(&["--preset", "smoke"]).fails_with("--data");
    train(&["--data", "shapes"]).fails_with("--preset");
    train(&["--preset", "smok", "--data", "shapes"]).fails_with("smoke");
    train(&["--preset", "smoke", "--data", "shapes", "--set", "autoencoder.lrr=1"]).fails_with("lrr");
    train(&["--config", "other.toml", "--data", "shapes"]).fails_with("nonsense");
    train(&["--resume"]).fails_with("no run");
    train(&["--preset", "smoke", "--data", "shapes", "--dtype", "bf16"])
        .fails_with("dtype is bf16, expected f32 on a CPU");
    train(&["--preset", "smoke", "--data", "shapes", "--dtype", "f16"])
        .fails_with("dtype is f16, expected f32 on a CPU");
    train(&["--preset", "smoke", "--data", "shapes", "--init-from", "toonheads"]).fails_with("another architecture");
    for (out, args, text) in [
        ("a", ["--data", "empty", "--stage", "autoencoder"], "no pictures"),
        ("b", ["--data", "shapes", "--labels", "missing.csv"], "nobody.png"),
        ("c", ["--data", "shapes", "--labels", "same.csv"], "the same for all"),
        ("d", ["--data", "shapes", "--stage", "latent"], "--stage autoencoder"),
        ("shapes", ["--data", "shapes", "--stage", "autoencoder"], "not empty"),
        ("e", ["--data", "shapes", "--freeze", "decoder"], "encoder or unet"),
        ("f", ["--data", "other.toml", "--stage", "autoencoder"], "neither a folder nor a .tar"),
        // Not even root may make folders here or there.
        ("/proc/run", ["--data", "shapes", "--stage", "autoencoder"], "/proc/run"),
        ("other.toml/run", ["--data", "shapes", "--stage", "autoencoder"], "other.toml"),
    ] {
        workspace.run(&[&["train", "--preset", "smoke", "--out", out], &args[..]].concat()).fails_with(text);
    }
}

/// The remains of a failed attempt are in nobody's way, and labels can come after the first stage.
#[test]
fn mistakes_can_be_mended_in_the_same_folder() {
    let workspace = Workspace::new();
    shapes(&workspace, 8);
    let mistaken = ["train", "--preset", "smoke", "--data", "nowhere", "--out", "run"];
    workspace.run(&mistaken).fails_with("nowhere");
    let class_means = set(&["edit_directions=\"class_means\""]);
    workspace.run(&train_args("run", &[&["--stage", "autoencoder"], &class_means[..]].concat())).succeeds();
    let classify = ["train", "--out", "run", "--resume", "--stage", "classifier"];
    workspace.run(&classify).fails_with("--labels");
    workspace.run(&[&classify[..], &["--labels", "folders"]].concat()).succeeds();
    // Differences of codes tell how far to go.
    let names = workspace.run(&["edit", "-m", "run", "--list"]).succeeds().stdout();
    let of = |line: &str| line.split_once("full strength: ").map(|(name, _)| name.trim().to_owned());
    assert_eq!(names.lines().map(of).collect::<Vec<_>>(), ["disc", "square"].map(|name| Some(name.to_owned())));
    // Other labels train it anew.
    let rows = |workspace: &Workspace| -> String {
        let names = ["disc", "square"].map(|class| {
            let mut files = workspace.files(&format!("shapes/{class}"));
            files.retain(|file| file.ends_with("png"));
            files.into_iter().map(|file| format!("{class}/{file}")).collect::<Vec<_>>()
        });
        let row = |(number, file): (usize, String)| format!("{file},{}\n", number % 2);
        names.into_iter().flatten().enumerate().map(row).collect()
    };
    fs::write(workspace.path("other.csv"), format!("file,Odd\n{}", rows(&workspace))).unwrap();
    workspace.run(&[&classify[..], &["--labels", "other.csv"]].concat()).succeeds();
    let names = workspace.run(&["edit", "-m", "run", "--list"]).succeeds().stdout();
    assert!(names.starts_with("Odd ") && names.lines().count() == 1, "{names}");
    // A slip of the pen changes nothing.
    workspace.run(&[&classify[..], &["--labels", "typo.csv"]].concat()).fails_with("typo.csv");
    let notes = fs::read_to_string(workspace.path("run/run.json")).unwrap();
    assert!(notes.contains("other.csv") && notes.contains("\"classifier\""), "{notes}");
    // Pictures that have come since are encoded, and the others keep their labels.
    let encoded = || {
        let count = |file: &str| {
            let bytes = fs::read(workspace.path("run").join(file)).unwrap();
            safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor("z_sem").unwrap().shape()[0]
        };
        count("codes.safetensors") + count("codes-validation.safetensors")
    };
    assert_eq!(encoded(), 16);
    fs::copy(workspace.path("shapes/disc/00.png"), workspace.path("shapes/disc/0-first.png")).unwrap();
    fs::write(workspace.path("more.csv"), format!("file,Odd\n{}", rows(&workspace))).unwrap();
    workspace.run(&[&classify[..], &["--labels", "more.csv"]].concat()).succeeds();
    assert_eq!(encoded(), 17);
}

#[test]
fn one_picture_is_enough_for_an_autoencoder() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("one")).unwrap();
    RgbImage::from_pixel(8, 8, Rgb([9, 99, 199])).save(workspace.path("one/a.png")).unwrap();
    let few = ["--set", "autoencoder.images=16", "--set", "data.validation_share=0", "--stage", "autoencoder"];
    let args = ["train", "--preset", "smoke", "--data", "one", "--out", "run"];
    // What needs more says so before anything is trained.
    let whole = &few[..4];
    workspace.run(&[&args[..], whole].concat()).fails_with("only 1 picture to train on");
    assert!(!workspace.path("run/checkpoints").exists());
    workspace.run(&[&args[..], &few].concat()).succeeds();
    workspace.run(&["train", "--out", "run", "--resume", "--stage", "latent"]).fails_with("at least 2");
}

#[test]
fn presets_are_listed_and_printed() {
    let workspace = Workspace::new();
    let list = workspace.run(&["presets"]).succeeds().stdout();
    assert!(list.lines().count() >= 10 && list.contains("ffhq256_autoenc"), "{list}");
    // How long one takes is measured where it is asked for, and promised nowhere.
    assert!(list.contains("300 steps") && list.contains("--dry-run") && !list.contains("hour"), "{list}");
    let text = workspace.run(&["presets", "smoke"]).succeeds().stdout();
    fs::write(workspace.path("my.toml"), text).unwrap();
    workspace.run(&["train", "--config", "my.toml", "--dry-run"]).succeeds();
}
