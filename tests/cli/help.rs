//! `--help`, completions and man pages.

use std::io::Read;
use std::process::{Command, Stdio};

use crate::support::Workspace;

fn help(command: &[&str]) -> String {
    Workspace::new().run(&[command, &["--help"]].concat()).succeeds().stdout()
}

#[test]
fn the_own_options_of_a_command_come_before_those_of_all() {
    let places = |text: &str, words: &[&str]| -> Vec<usize> {
        words.iter().map(|word| text.find(word).unwrap_or_else(|| panic!("{word} is missing: {text}"))).collect()
    };
    let edit = help(&["edit"]);
    let order = ["--model", "--strength", "Global options:", "--device", "--threads", "--quiet", "Examples:"];
    assert!(places(&edit, &order).is_sorted(), "{edit}");
    let align = help(&["align"]);
    let order = ["--landmarks", "--box", "--boxes", "--whole", "--size", "Global options:", "--threads", "Example:"];
    assert!(places(&align, &order).is_sorted(), "{align}");
}

#[test]
fn options_that_do_nothing_are_not_offered() {
    for command in [&["presets"][..], &["completions"], &["man"], &["eval", "compare"]] {
        let text = help(command);
        for option in ["--device", "--dtype", "--threads", "--exact"] {
            assert!(!text.contains(option), "{command:?}: {text}");
        }
        assert!(text.contains("--quiet"), "{text}");
    }
    assert!(!help(&["eval", "lpips"]).contains("--dtype") && help(&["eval", "lpips"]).contains("--device"));
}

#[test]
fn commands_say_what_they_do_and_what_they_write() {
    let all = help(&[]);
    for line in ["Sample new images", "Edit an attribute of images", "Exit codes: 0"] {
        assert!(all.contains(line), "{line}: {all}");
    }
    assert!(help(&["interpolate"]).contains("NAME.gif for an animation"));
    assert!(help(&["encode"]).contains("File NAME.safetensors"));
    assert!(help(&["sample"]).contains("NAME.safetensors for x [N, C, H, W]"));
    assert!(help(&["eval", "recon"]).contains("Reconstruction quality by number of steps"));
}

#[test]
fn completions_and_man_pages_are_made() {
    let workspace = Workspace::new();
    let script = workspace.run(&["completions", "bash"]).succeeds().stdout();
    assert!(script.contains("reconstruct"));
    let said = workspace.run(&["man", "--out", "man"]).succeeds().stdout();
    assert!(said.contains("man pages to man"), "{said}");
    assert!(workspace.files("man").contains(&"diffae-reconstruct.1".to_owned()));
}

/// A reader that stops early, such as `diffae completions zsh | head`.
#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    for arguments in [&["completions", "zsh"][..], &["completions", "bash"], &["presets", "smoke"], &["--help"]] {
        let mut program = Command::new(env!("CARGO_BIN_EXE_diffae"))
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = program.stdout.take().unwrap();
        stdout.read_exact(&mut [0; 10]).unwrap();
        drop(stdout);
        let finished = program.wait_with_output().unwrap();
        let stderr = String::from_utf8(finished.stderr).unwrap();
        assert!(finished.status.success() && stderr.is_empty(), "{arguments:?}: {:?}: {stderr}", finished.status);
    }
}
