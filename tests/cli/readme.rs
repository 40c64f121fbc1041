//! Every command of the README, in its order, in one folder, on small stand-ins for what a reader has.
//!
//! A command runs as it is written. Only work that takes hours on real models is made shorter, by [`shortened`]: fewer
//! steps, fewer images, a smaller network.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};

use crate::polish::write_vgg;
use crate::support::{Workspace, fixture};

/// The model that stands in the commands as `MODEL`.
const MODEL: &str = "ffhq128";
/// Settings that make a preset a matter of seconds.
const SHORT_TRAINING: [&str; 15] = [
    "model.image_size=16",
    "model.channel_mult=[1, 1]",
    "model.encoder_channel_mult=[1, 1, 1]",
    "model.z_channels=32",
    "model.attention_resolutions=[8]",
    "data.validation_share=0.2",
    "autoencoder.images=64",
    "autoencoder.batch_size=8",
    "latent.images=128",
    "latent.batch_size=8",
    "latent_net.hidden_channels=32",
    "latent_net.num_layers=2",
    "classifier.images=128",
    "classifier.batch_size=8",
    "run.save_every_secs=60",
];
/// Settings that do so for the spatial autoencoder of a model on latents.
const SHORT_SPATIAL_TRAINING: [&str; 3] =
    ["spatial.images=16", "spatial_net.channel_mult=[1, 2]", "spatial_net.crop_size=8"];
/// Attributes of the stand-in for the released classifier, in place of CelebA's first ones: that has 40 names.
const NUM_CELEBA_ATTRIBUTES: usize = 40;

/// The commands of the README: lines of its shell blocks and code spans that begin with a program of ours.
fn commands(readme: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let (mut in_block, mut in_shell, mut begun) = (false, false, String::new());
    for line in readme.lines().map(str::trim) {
        if let Some(language) = line.strip_prefix("```") {
            (in_block, in_shell) = (!in_block, !in_block && language == "sh");
        } else if in_shell {
            if let Some(part) = line.strip_suffix('\\') {
                begun.push_str(part);
            } else if !line.is_empty() {
                commands.push(std::mem::take(&mut begun) + line);
            }
        } else if !in_block {
            let spans = line.split('`').skip(1).step_by(2);
            commands.extend(spans.filter(|span| is_command(span)).map(str::to_owned));
        }
    }
    commands
}

/// Whether a code span is a command, not a name.
fn is_command(span: &str) -> bool {
    ["diffae ", "cargo "].iter().any(|program| span.starts_with(program))
}

/// The arguments of the program in a command; none if the command starts another program, or a server, which does not end
/// (`serve.rs` has its tests).
fn arguments(command: &str) -> Option<Vec<String>> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let ["diffae", own @ ..] = &words[..] else { return None };
    if own.first() == Some(&"serve") {
        return None;
    }
    // LPIPS takes 32 pixels, and the model that stands for all has fewer.
    let model = if own.first() == Some(&"polish") { "toonheads" } else { MODEL };
    Some(own.iter().map(|word| if *word == "MODEL" { model } else { word }.to_owned()).collect())
}

/// Shortens a command: options that it does not give itself are those of a quick look, not the defaults.
fn shortened(mut arguments: Vec<String>) -> Vec<String> {
    let is = |word: &str| arguments.iter().any(|argument| argument == word);
    let quick: &[[&str; 2]] = match arguments[0].as_str() {
        _ if is("--help") => &[],
        "demo" | "encode" | "variations" | "reconstruct" | "interpolate" => &[["--steps", "2"]],
        "edit" if !is("--list") => &[["--steps", "2"]],
        "sample" => &[["--steps", "2"], ["--latent-steps", "2"]],
        "eval" if is("recon") => &[["--steps", "2"]],
        "eval" if is("edits") => &[["--exact-steps", "2"]],
        "train" => &[["--threads", "1"]],
        "distill" => &[["--threads", "1"], ["--images", "16"], ["--teacher-steps", "2"]],
        "polish" => &[["--threads", "1"], ["--images", "2"], ["--batch-size", "2"], ["--endpoint-channels", "8"]],
        "tune-steps" => &[["--limit", "4"]],
        "align" => &[["--size", "64"]],
        "fit-attributes" => &[["--images", "640"]],
        _ => &[],
    };
    let is_new_run = arguments[0] == "train" && !is("--resume");
    let (is_on_latents, is_of_volumes) = (is("latent256"), is("volumes32"));
    let more: Vec<&[&str; 2]> = quick.iter().filter(|option| !is(option[0])).collect();
    arguments.extend(more.into_iter().flatten().map(|&word| word.to_owned()));
    if is_new_run {
        let of_latents = if is_on_latents { &SHORT_SPATIAL_TRAINING[..] } else { &[] };
        let settings = SHORT_TRAINING.iter().chain(of_latents);
        let of_kind = |setting: &str| match setting {
            "model.image_size=16" if is_of_volumes => "model.image_size=[4, 16, 16]".to_owned(),
            other => other.to_owned(),
        };
        arguments.extend(settings.flat_map(|setting| ["--set".to_owned(), of_kind(setting)]));
    }
    // Frames of an animation are enlarged, and their colors chosen, at 512 pixels.
    if let Some(at) = arguments.iter().position(|argument| argument == "--frames") {
        "3".clone_into(&mut arguments[at + 1]);
    }
    // A run that was made short is prolonged by little.
    for argument in arguments.iter_mut().filter(|argument| !SHORT_TRAINING.contains(&argument.as_str())) {
        if argument.starts_with("autoencoder.images=") {
            "autoencoder.images=96".clone_into(argument);
        }
    }
    arguments
}

/// Writes what the README takes for granted: pictures, labels, pairs, released files, a held-out set.
fn prepare(workspace: &Workspace) {
    let path = |name: &str| {
        let path = workspace.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    };
    let copy = |from: &str, to: &str| {
        fs::copy(fixture(from), path(to)).unwrap();
    };
    for name in ["me.jpg", "a.jpg", "b.jpg"] {
        copy(if name == "b.jpg" { "photographs/cat.jpg" } else { "photographs/astronaut.jpg" }, name);
    }
    for number in 0..10_u8 {
        let values: Vec<f32> = (0..4 * 16 * 16).map(|place| (place as f32 * 0.1 + f32::from(number)).sin()).collect();
        fs::write(path(&format!("scans/{number}.npy")), diffae_data::npy_bytes(&[4, 16, 16], &values)).unwrap();
    }
    let mut labels = BTreeMap::from([
        ("attributes.csv", "file,Red,Dark\n".to_owned()),
        ("glasses.csv", "file,Glasses\n".to_owned()),
        ("boxes.csv", String::new()),
    ]);
    for number in 1..=20_u8 {
        let name = format!("photo_{number}.png");
        let [red, dark, glasses] = [number & 1, number >> 1 & 1, number >> 2 & 1];
        picture([red, dark, glasses, number]).save(path(&format!("photos/{name}"))).unwrap();
        for (file, line) in [
            ("attributes.csv", format!("{name},{red},{dark}\n")),
            ("glasses.csv", format!("{name},{glasses}\n")),
            ("boxes.csv", format!("{name},6,8,20,20\n")),
        ] {
            labels.get_mut(file).unwrap().push_str(&line);
        }
    }
    for (file, text) in labels {
        fs::write(path(file), text).unwrap();
    }
    copy("align/small_68.dat", "landmarks.dat");
    write_vgg(&path("vgg16.pth"));
    let golden = "golden/autoenc16_latent";
    for to in ["last.ckpt", "ffhq128_autoenc_latent/last.ckpt"] {
        copy(&format!("{golden}/last.ckpt"), to);
    }
    for to in ["latent.pkl", "ffhq128_autoenc_130M/latent.pkl"] {
        copy(&format!("{golden}/latent.pkl"), to);
    }
    for to in ["cls.ckpt", "ffhq128_autoenc_cls/last.ckpt"] {
        write_classifier(&path(to), 32);
    }
    for (folder, has_beard) in [("without", 0), ("with", 1)] {
        for number in 0..24 {
            let name = format!("pairs/Beard/{folder}/{number}.png");
            picture([number & 1, number >> 1 & 1, has_beard, number]).save(path(&name)).unwrap();
        }
    }
    held_out(&path);
}

/// The data set that `diffae dataset toonheads` makes, small: drawings and labels of its form, one pair an attribute.
fn held_out(path: &dyn Fn(&str) -> std::path::PathBuf) {
    let mut rows = vec![];
    for number in 0..40_u8 {
        let name = format!("{number:05}.png");
        let [a, b, c] = [number & 1, number >> 1 & 1, number >> 2 & 1];
        picture([a, b, c, number]).save(path(&format!("held-out/images/{name}"))).unwrap();
        let signs = [a, b].map(|value| if value == 1 { "1" } else { "-1" });
        rows.push(format!("{name} {}\n", signs.join(" ")));
    }
    fs::write(path("held-out/attributes.txt"), format!("40\nSmiling Beard\n{}", rows.concat())).unwrap();
    for (folder, smiles) in [("without", 0), ("with", 1)] {
        for number in 0..8 {
            let name = format!("held-out/pairs/Smiling/{folder}/{number:05}.png");
            picture([number & 1, number >> 1 & 1, smiles, number]).save(path(&name)).unwrap();
        }
    }
}

/// A disc on a ground: red or blue, on dark or light, with a bar across it or not, at a place that the number tells.
fn picture([red, dark, bar, number]: [u8; 4]) -> image::RgbImage {
    let ground = if dark == 1 { [30, 30, 40] } else { [220, 225, 215] };
    let disc = if red == 1 { [200, 40, 30] } else { [40, 60, 190] };
    let (at_x, at_y) = (13. + f32::from(number % 5), 14. + f32::from(number % 7) / 2.);
    image::RgbImage::from_fn(32, 32, |x, y| {
        let (dx, dy) = (x as f32 - at_x, y as f32 - at_y);
        let in_bar = bar == 1 && dy.abs() < 2.;
        image::Rgb(if in_bar && dx.abs() < 11. {
            [10, 160, 60]
        } else if dx.hypot(dy) < 9. {
            disc
        } else {
            ground
        })
    })
}

/// A classifier of as many attributes as CelebA has: the golden one has fewer.
fn write_classifier(path: &Path, width: usize) {
    let numbers = |count: usize| -> Vec<u8> {
        let value = |idx: usize| ((idx * 37 % 101) as f32 - 50.) / 50.;
        (0..count).flat_map(|idx| value(idx).to_le_bytes()).collect()
    };
    let (weight, bias) = (numbers(NUM_CELEBA_ATTRIBUTES * width), numbers(NUM_CELEBA_ATTRIBUTES));
    let views = [
        ("classifier.weight", TensorView::new(Dtype::F32, vec![NUM_CELEBA_ATTRIBUTES, width], &weight).unwrap()),
        ("classifier.bias", TensorView::new(Dtype::F32, vec![NUM_CELEBA_ATTRIBUTES], &bias).unwrap()),
    ];
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Returns the path that `--out` names, if the command writes something.
fn output(arguments: &[String]) -> Option<&String> {
    let at = arguments.iter().position(|argument| argument == "--out" || argument == "-o")?;
    arguments.get(at + 1)
}

#[test]
fn every_command_of_the_readme_runs_in_its_order() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md")).unwrap();
    let workspace = Workspace::new();
    prepare(&workspace);
    let (mut num_run, mut elsewhere) = (0, Vec::new());
    for command in commands(&readme) {
        let arguments = arguments(&command).filter(|words| !words.starts_with(&["dataset".into(), "toonheads".into()]));
        let Some(arguments) = arguments else {
            elsewhere.push(command);
            continue;
        };
        let out = output(&arguments).map(|out| workspace.path(out));
        let arguments = shortened(arguments);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let start = std::time::Instant::now();
        let finished = workspace.run(&arguments);
        eprintln!("{:.1} s: {command}", start.elapsed().as_secs_f64()); // shown with --nocapture
        assert!(finished.is_success(), "{command}\n{}", finished.stderr());
        if let Some(out) = out.filter(|_| !arguments.contains(&"--dry-run")) {
            assert!(out.exists(), "{command}: wrote no {}", out.display());
        }
        num_run += 1;
    }
    assert!(num_run >= 35, "only {num_run} commands were found");
    // These are run by the gate itself, by the tests of the demo, of the server and of xtask, and by who installs the program.
    for command in elsewhere {
        let known =
            ["cargo run --release --locked --package diffae-cli -- demo ", "cargo test ", "cargo xtask ", "cargo doc "];
        let known = known.iter().chain(&["cargo install --path crates/diffae-cli", "diffae dataset toonheads "]);
        let served = ["cargo run --release --locked --package diffae-cli -- serve", "diffae serve"];
        let known = known.chain(&served);
        assert!(known.clone().any(|known| command.starts_with(known)), "{command}: nobody runs it");
    }
}
