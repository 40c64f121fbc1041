//! Additional help: examples for each command, the form of `--out`, and the global options that apply.

use clap::{Arg, CommandFactory};

use super::Cli;

/// Options of computation, hidden in commands that compute nothing.
const COMPUTING: [&str; 4] = ["device", "dtype", "threads", "exact"];
/// Options of computation without the number of threads, hidden in commands that only read and draw pictures.
const ALL_BUT_THREADS: [&str; 3] = ["device", "dtype", "exact"];
/// Last line of `diffae --help`.
const EXIT_CODES: &str =
    "Exit codes: 0 success; 2 error, explained in one sentence; 130 interrupted (Ctrl-C or SIGTERM)";

/// Help of one command.
#[derive(Debug, Clone, Copy)]
struct Page {
    /// Path of the command: the commands it is part of, and its own name.
    path: &'static [&'static str],
    /// Help of `--out`, for commands that share its definition with others.
    out: Option<&'static str>,
    /// Help of other options that mean more here than in the commands that they are shared with.
    options: &'static [(&'static str, &'static str)],
    /// Global options that would have no effect.
    hidden: &'static [&'static str],
    /// Command lines that work as they stand, given the files that they name.
    examples: &'static [&'static str],
}

/// Help of `--out` for a folder of PNGs, or a file of tensors.
const IMAGES: &str =
    "Folder to write the PNGs and sheet.png into, or a file NAME.safetensors for x [N, C, H, W] in [-1, 1]";
const MODEL: &str = "Folder of the new model: config.json and model.safetensors";

/// Options of commands that invert images and decode what becomes of their codes.
const INVERTING: &[(&str, &str)] = &[
    (
        "steps",
        "Steps of inversion and of decoding [default: 10, or what the model was distilled or polished to; with --reference 250 and 20]",
    ),
    INVERTING_SAMPLER,
    INVERTING_SPACING,
    INVERTING_REFERENCE,
];
/// Options of edits, which decode in more steps with `--reference`.
const EDITING: &[(&str, &str)] = &[
    (
        "steps",
        "Steps of inversion and of decoding [default: 10, or what the model was distilled or polished to; with --reference 250 and 100]",
    ),
    INVERTING_SAMPLER,
    INVERTING_SPACING,
    INVERTING_REFERENCE,
];
const INVERTING_SAMPLER: (&str, &str) = (
    "sampler",
    "Sampler that decodes x_T of --inversion ddim, which it implies, and random x_T; the ddpm samplers add noise at each step",
);
const INVERTING_SPACING: (&str, &str) = (
    "spacing",
    "Spacing of the timesteps [default: log-snr, or that of the distillation; with --inversion ddim or --reference leading]",
);
const INVERTING_REFERENCE: (&str, &str) =
    ("reference", "Use the chains of the paper: ddim on evenly spaced timesteps, inverted in 250 steps");

const fn page(path: &'static [&'static str], examples: &'static [&'static str]) -> Page {
    Page { path, out: None, options: &[], hidden: &[], examples }
}

impl Page {
    const fn out(self, out: &'static str) -> Self {
        Self { out: Some(out), ..self }
    }

    const fn options(self, options: &'static [(&'static str, &'static str)]) -> Self {
        Self { options, ..self }
    }

    const fn without(self, hidden: &'static [&'static str]) -> Self {
        Self { hidden, ..self }
    }
}

/// Help of every command.
const PAGES: &[Page] = &[
    page(&["demo"], &["diffae demo --out demo"]),
    page(&["serve"], &["diffae serve", "diffae serve --model ffhq128 --port 8000"]),
    page(&["info"], &["diffae info toonheads", "diffae info last.ckpt --json"]).without(&COMPUTING),
    page(&["import"], &["diffae import last.ckpt --latent latent.pkl --classifier cls/last.ckpt --out ffhq256"])
        .out(MODEL)
        .without(&["device", "threads", "exact"]),
    page(
        &["export"],
        &["diffae export toonheads --onnx toonheads-onnx", "diffae export ffhq128 --onnx ffhq128-half --half"],
    )
    .without(&COMPUTING),
    page(&["align"], &["diffae align photos --landmarks shape_predictor_68_face_landmarks.dat --whole --out faces"])
        .out("Folder to write the PNGs into")
        .without(&["device", "dtype", "exact"]),
    page(&["dataset"], &["diffae dataset folder --from photos --size 64 --out data"]).without(&ALL_BUT_THREADS),
    page(
        &["dataset", "align"],
        &["diffae dataset align --from photos --landmarks shape_predictor_68_face_landmarks.dat --out faces"],
    )
    .without(&ALL_BUT_THREADS),
    page(&["dataset", "fashion-mnist"], &["diffae dataset fashion-mnist --out fashion"]).without(&ALL_BUT_THREADS),
    page(&["dataset", "toonheads"], &["diffae dataset toonheads --count 2000 --seed held-out --out held-out"])
        .without(&ALL_BUT_THREADS),
    page(&["dataset", "ffhq"], &["diffae dataset ffhq --from images1024x1024 --size 256 --out ffhq"])
        .without(&ALL_BUT_THREADS),
    page(&["dataset", "celeba"], &["diffae dataset celeba --from celeba --size 64 --out celeba64"])
        .without(&ALL_BUT_THREADS),
    page(&["dataset", "celebahq"], &["diffae dataset celebahq --from CelebAMask-HQ.zip --size 256 --out celebahq"])
        .without(&ALL_BUT_THREADS),
    page(&["dataset", "lsun"], &["diffae dataset lsun --from bedroom_train_lmdb.zip --size 128 --out bedroom"])
        .without(&ALL_BUT_THREADS),
    page(&["dataset", "folder"], &["diffae dataset folder --from pets --size 64 --out data"]).without(&ALL_BUT_THREADS),
    page(
        &["encode"],
        &[
            "diffae encode --model ffhq256 photos --out codes.safetensors",
            "diffae encode --model ffhq256 photos --out codes.safetensors --shard 3/8",
            "diffae encode --model ffhq256 photos --out codes.csv",
        ],
    )
    .out("File NAME.safetensors to write the codes into, or NAME.csv or NAME.parquet for z_sem as a table"),
    page(&["codes"], &["diffae codes info codes.safetensors"]).without(&COMPUTING),
    page(
        &["codes", "merge"],
        &["diffae codes merge codes-00001-of-00002.safetensors codes-00002-of-00002.safetensors --out codes.safetensors"],
    )
    .out("File NAME.safetensors to write the codes into")
    .without(&COMPUTING),
    page(&["codes", "info"], &["diffae codes info codes.safetensors"]).without(&COMPUTING),
    page(&["codes", "to-parquet"], &["diffae codes to-parquet codes.safetensors --out codes.parquet"])
        .out("File NAME.parquet to write the table into")
        .without(&COMPUTING),
    page(&["codes", "to-csv"], &["diffae codes to-csv codes.safetensors --out codes.csv"])
        .out("File NAME.csv to write the table into")
        .without(&COMPUTING),
    page(&["decode"], &["diffae decode --model ffhq256 codes.safetensors --out decoded"])
        .out("Folder to write the PNGs into, or a file NAME.safetensors for x [N, C, H, W] in [-1, 1]"),
    page(&["reconstruct"], &["diffae reconstruct --model ffhq256 photos --out reconstructed"])
        .out(IMAGES)
        .options(INVERTING),
    page(
        &["interpolate"],
        &[
            "diffae interpolate --model ffhq256 a.png b.png --frames 24 --out film.gif",
            "diffae interpolate --model ffhq256 a.png b.png --out frames",
        ],
    )
    .out("NAME.gif for an animation, NAME.png for a sheet of the frames, or a folder for single frames")
    .options(INVERTING),
    page(
        &["edit"],
        &[
            "diffae edit --model toonheads --list",
            "diffae edit --model toonheads face.png --attribute Smiling --out edited",
        ],
    )
    .out(IMAGES)
    .options(EDITING),
    page(&["sample"], &["diffae sample --model toonheads --count 16 --out samples"]).out(IMAGES),
    page(&["variations"], &["diffae variations --model toonheads face.png --count 8 --out variations"]).out(IMAGES),
    page(
        &["train"],
        &[
            "diffae train --preset small64 --data photos --labels folders --out run",
            "diffae train --out run --resume",
            "diffae train --out run --resume --set autoencoder.images=400_000",
        ],
    )
    .without(&["device", "dtype"]),
    page(&["distill"], &["diffae distill --model toonheads --data faces --steps 2 --out fast"])
        .without(&["device", "dtype"]),
    page(
        &["polish"],
        &["diffae polish --model toonheads --data faces --lpips-weights vgg16-397923af.pth --out polished"],
    )
    .options(&[
        ("images", "Maximum length of the training in images [default: 20000]"),
        ("batch_size", "Images per step [default: 8]"),
        ("lr", "Learning rate [default: 0.0003]"),
    ])
    .without(&["device", "dtype"]),
    page(
        &["tune-steps"],
        &[
            "diffae tune-steps --model toonheads faces --steps 5 --out tuned",
            "diffae tune-steps --model fast faces --sampler ddim --steps 3 --out tuned",
        ],
    )
    .out(MODEL),
    page(
        &["fit-attributes"],
        &["diffae fit-attributes --model toonheads --data faces --labels faces.csv --out taught"],
    )
    .out(MODEL),
    page(&["fit-edits"], &["diffae fit-edits --model toonheads --pairs pairs --out taught"]).out(MODEL),
    page(&["eval"], &["diffae eval recon --model toonheads --data held-out --out report"]),
    page(&["eval", "recon"], &["diffae eval recon --model toonheads --data held-out --steps 10,20,50 --out report"]),
    page(
        &["eval", "attributes"],
        &["diffae eval attributes --model toonheads --data held-out --labels attributes.csv --out report"],
    ),
    page(
        &["eval", "disentanglement"],
        &["diffae eval disentanglement --model toonheads --data held-out --labels attributes.csv --out report"],
    ),
    page(&["eval", "edits"], &["diffae eval edits --model toonheads --pairs held-out/pairs --out report"]),
    page(&["eval", "inversion"], &["diffae eval inversion --model toonheads --data held-out --out report"]),
    page(&["eval", "z-usage"], &["diffae eval z-usage --model toonheads --data held-out --out report"]),
    page(
        &["eval", "lpips"],
        &["diffae eval lpips --data real --pictures made --weights alexnet-owt-7be5be79.pth --out report"],
    )
    .without(&["dtype"]),
    page(
        &["eval", "ppl"],
        &["diffae eval ppl --model toonheads --data held-out --weights vgg16-397923af.pth --out report"],
    ),
    page(
        &["eval", "few-shot"],
        &["diffae eval few-shot --model toonheads --data held-out --labels attributes.csv --out report"],
    ),
    page(
        &["eval", "fid"],
        &["diffae eval fid --model toonheads --data real --weights pt_inception-2015-12-05-6726825d.pth --out report"],
    ),
    page(&["eval", "all"], &["diffae eval all --model toonheads --data held-out --labels attributes.csv --out report"]),
    page(&["eval", "compare"], &["diffae eval compare mine/recon.json theirs/recon.json --out comparison"])
        .without(&COMPUTING),
    page(&["presets"], &["diffae presets", "diffae presets small64 > my.toml"]).without(&COMPUTING),
    page(&["completions"], &["diffae completions bash > ~/.local/share/bash-completion/completions/diffae"])
        .without(&COMPUTING),
    page(&["man"], &["diffae man --out man"]).without(&COMPUTING),
];

/// Returns the command line with its additional help.
pub(crate) fn command() -> clap::Command {
    let root = Cli::command();
    let globals: Vec<Arg> = root.get_arguments().filter(|arg| arg.is_global_set()).cloned().collect();
    let described = PAGES.iter().fold(root, |root, page| described(root, page.path, page, &globals));
    described.after_help(format!("{EXIT_CODES}\nFor more about a command: diffae COMMAND --help"))
}

/// Adds a page to the command that the path leads to.
fn described(command: clap::Command, path: &[&'static str], page: &Page, globals: &[Arg]) -> clap::Command {
    let Some((&name, rest)) = path.split_first() else {
        let own = command.get_after_help().map(|help| format!("{help}\n\n")).unwrap_or_default();
        let mut command = command.after_help(own + &examples(page));
        if let Some(out) = page.out {
            command = command.mut_arg("out", |arg| arg.help(out));
        }
        for &(option, help) in page.options {
            command = command.mut_arg(option, |arg| arg.help(help));
        }
        // Clap leaves an option alone that a command has itself: it is still understood, but not shown.
        let hidden = globals.iter().filter(|arg| page.hidden.contains(&arg.get_id().as_str()));
        return command.args(hidden.map(|arg| arg.clone().hide(true)));
    };
    command.mut_subcommand(name, |command| described(command, rest, page, globals))
}

fn examples(page: &Page) -> String {
    let heading = if page.examples.len() == 1 { "Example:" } else { "Examples:" };
    page.examples.iter().fold(heading.to_owned(), |text, example| format!("{text}\n  {example}"))
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;

    /// Lists all commands below one, with their paths.
    fn all(command: &clap::Command, path: &[String]) -> Vec<(Vec<String>, clap::Command)> {
        let below = command.get_subcommands().filter(|below| below.get_name() != "help");
        below
            .flat_map(|below| {
                let path = [path, &[below.get_name().to_owned()]].concat();
                [vec![(path.clone(), below.clone())], all(below, &path)].concat()
            })
            .collect()
    }

    fn built() -> clap::Command {
        let mut command = command();
        command.build();
        command
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_command_has_a_page_and_its_examples_are_understood() {
        let paths: Vec<Vec<String>> = all(&built(), &[]).into_iter().map(|(path, _)| path).collect();
        for path in &paths {
            assert!(PAGES.iter().any(|page| page.path == path), "{path:?} has no example in args/help.rs");
        }
        assert_eq!(paths.len(), PAGES.len());
        for page in PAGES {
            for example in page.examples {
                let words = example.split(" > ").next().unwrap_or_default().split_whitespace();
                let matches =
                    command().try_get_matches_from(words).unwrap_or_else(|error| panic!("{example}: {error}"));
                Cli::from_arg_matches(&matches).unwrap();
                assert!(example.starts_with(&format!("diffae {}", page.path.join(" "))), "{example}");
            }
        }
    }

    #[test]
    fn every_out_says_whether_it_is_a_file_or_a_folder() {
        for (path, command) in all(&built(), &[]) {
            let Some(out) = command.get_arguments().find(|arg| arg.get_id() == "out") else { continue };
            let help = out.get_help().map(ToString::to_string).unwrap_or_default();
            let says = ["Folder", "folder", "File ", "file "].iter().any(|word| help.contains(word));
            assert!(says, "{path:?}: --out: {help}");
        }
    }

    #[test]
    fn global_options_come_last_and_only_where_they_apply() {
        for (path, mut command) in all(&built(), &[]) {
            let help = command.render_help().to_string();
            let (own, global) = help.split_once("Global options:").unwrap_or_else(|| panic!("{path:?}: {help}"));
            for option in ["--quiet", "--verbose"] {
                assert!(!own.contains(option) && global.contains(option), "{path:?}: {option}");
            }
            assert!(global.contains("Example"), "{path:?}: {help}");
            let page = PAGES.iter().find(|page| page.path == path).unwrap();
            for option in COMPUTING {
                let shown = help.contains(&format!("--{option} "));
                let shown = shown || help.contains(&format!("--{option}\n"));
                assert_eq!(shown, !page.hidden.contains(&option), "{path:?}: --{option}");
            }
        }
    }

    #[test]
    fn options_are_told_as_the_command_uses_them() {
        for (name, inverts) in [("sample", false), ("decode", false), ("edit", true), ("interpolate", true)] {
            let mut command = built().find_subcommand(name).unwrap().clone();
            let help = command.render_long_help().to_string();
            assert_eq!(help.contains("inver"), inverts, "{name}: {help}");
        }
    }

    #[test]
    fn hidden_options_are_still_understood() {
        let words = ["diffae", "presets", "--device", "cpu", "--threads", "2"];
        let cli = Cli::from_arg_matches(&command().try_get_matches_from(words).unwrap()).unwrap();
        assert_eq!((cli.global.device.as_str(), cli.global.threads), ("cpu", Some(2)));
    }
}
