//! `eval inversion` and `eval ppl`: pictures through their codes, and between the codes of two.

use crate::evaluation::{figure, pictures, random_weights};
use crate::support::{Workspace, checkpoint};

#[test]
fn round_trips_are_exact_along_exact_chains_alone() {
    let workspace = Workspace::new();
    let data = pictures(&workspace, "data");
    let model = checkpoint("autoenc16_latent");
    let eval = ["eval", "inversion", "--model", &model, "--data", &data, "--limit", "3", "--exact-steps", "2,4"];
    let eval = [&eval[..], &["--ddim", "4:4", "--exact-weights", "noise-ratio", "--json", "--out"]].concat();
    let report = workspace.run(&[&eval[..], &["eval", "--batch-size", "2"]].concat()).succeeds().json();
    let of = |name: &str, chain: &str| figure(&report, name, &[("chain", chain)]);
    for chain in ["2 exact log-snr steps (noise-ratio)", "4 exact log-snr steps (noise-ratio)"] {
        assert!(of("equal_min", chain) >= 1. && of("mse_max", chain) < 1e-7, "{chain}");
        assert!(of("mse_perturbed", chain) > of("mse", chain), "{chain}");
        for condition in ["batch", "threads", "convolution"] {
            assert!(of(&format!("equal_other_{condition}_min"), chain) >= 1., "{chain}: {condition}");
        }
        // The other algorithm of convolution rounds otherwise.
        assert!((of("mse_other_convolution", chain) - of("mse", chain)).abs() > 0., "{chain}");
    }
    assert!(of("equal", "DDIM 4 + 4 steps") < 0.9 && of("mse_median", "DDIM 4 + 4 steps") > 1e-7);
    assert!(workspace.path("eval/inversion.psnr.png").is_file());
    // The batch changes nothing but rounding, and the same settings go on where they were.
    let whole = workspace.run(&[&eval[..], &["eval", "--batch-size", "2"]].concat()).succeeds().json();
    assert_eq!(whole, report);
    workspace.run(&[&eval[..], &["eval", "--batch-size", "2", "--spacing", "karras"]].concat()).fails_with("chains");
}

/// The claim of `docs/fewer-steps.md` for 9, 19 and 39 evaluations: no value changes, whatever differs between the directions.
#[test]
fn the_built_in_model_gives_every_value_back_in_few_evaluations() {
    let workspace = Workspace::new();
    workspace.run(&["dataset", "toonheads", "--count", "4", "--seed", "every-value", "--out", "faces"]).succeeds();
    let eval = ["eval", "inversion", "--model", "toonheads", "--data", "faces/images", "--exact-steps", "4,9,19"];
    let eval = [&eval[..], &["--spacing", "interior", "--ddim", "4:4", "--json", "--out", "report"]].concat();
    let report = workspace.run(&eval).succeeds().json();
    for steps in [4, 9, 19] {
        let chain = format!("{steps} exact interior steps (balanced)");
        let of = |name: &str| figure(&report, name, &[("chain", &chain)]);
        for difference in ["", "_f16", "_other_batch", "_other_threads", "_other_convolution", "_perturbed"] {
            let worst = of(&format!("equal{difference}_min"));
            assert!(worst >= 1., "{worst} of {chain}{difference}");
        }
        assert!(of("mse_perturbed") > of("mse"), "{chain}");
    }
}

#[test]
fn paths_between_pictures_have_a_length() {
    let workspace = Workspace::new();
    let data = pictures(&workspace, "data");
    let model = checkpoint("autoenc16_latent");
    let weights = random_weights(&workspace, "squeeze");
    let args = ["eval", "ppl", "--model", &model, "--data", &data, "--out", "ppl", "--backbone", "squeeze"];
    let args = [&args[..], &["--weights", &weights, "--pairs", "2", "--steps", "2", "--invert-steps", "2"]].concat();
    // The pictures of this model are too small for the network.
    workspace.run(&args).fails_with("expected at least 32");
    let args: Vec<&str> = args.iter().map(|&arg| if arg == model { "toonheads" } else { arg }).collect();
    let report = workspace.run(&[&args[..], &["--force", "--json"]].concat()).succeeds().json();
    let length = figure(&report, "ppl", &[("backbone", "squeeze")]);
    assert!(length > 0. && length.is_finite(), "{report}");
    for along in ["--exact-steps", "--fixed-point-steps"] {
        let args =
            ["eval", "ppl", "--model", "toonheads", "--data", &data, "--out", &along[2..], "--backbone", "squeeze"];
        let args = [&args[..], &["--weights", &weights, "--pairs", "2", along, "3", "--json"]].concat();
        let report = workspace.run(&args).succeeds().json();
        let length = figure(&report, "ppl", &[("backbone", "squeeze")]);
        assert!(length > 0. && length.is_finite(), "{report}");
        assert!(report["settings"]["chain"].as_str().unwrap().starts_with("3 "), "{report}");
        assert_eq!(report["settings"]["dtype"], "f32", "the CPU has no other f32");
    }
}
