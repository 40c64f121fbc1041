//! `diffae distill` and `diffae tune-steps`: models that decode in few steps.

use std::fs;

use crate::evaluation::figure;
use crate::groups::free_port;
use crate::support::{Workspace, checkpoint};
use crate::training::shapes;

fn distill<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let quick = ["--steps", "2", "--teacher-steps", "3", "--batch-size", "4", "--set", "run.preview_every_images=12"];
    let fixed = ["distill", "--threads", "1", "--model", "teacher", "--data", "shapes", "--out", out];
    [&fixed[..], &quick, more].concat()
}

/// Few steps are the default of a distilled model; its codes come back exactly, and a run that goes on ends as one that was
/// not stopped.
#[test]
fn a_distilled_model_decodes_in_its_own_steps() {
    let workspace = Workspace::new();
    workspace.run(&["import", &checkpoint("autoenc16_latent"), "--out", "teacher"]).succeeds();
    shapes(&workspace, 8);
    let said = workspace.run(&distill("whole", &["--images", "24"])).succeeds().stdout();
    assert!(said.contains("it decodes in 2 steps"), "{said}");
    assert!(workspace.path("whole/previews/images-000000024.png").exists());

    workspace.run(&distill("run", &["--images", "12"])).succeeds();
    workspace
        .run(&["train", "--threads", "1", "--out", "run", "--resume", "--set", "autoencoder.images=24"])
        .succeeds();
    let [whole, run] = ["whole", "run"].map(|run| fs::read(workspace.path(run).join("model.safetensors")).unwrap());
    assert!(whole == run, "the models differ");
    workspace.run(&distill("run", &["--images", "48", "--lr", "1"])).fails_with("already started");

    let encoded = ["encode", "--model", "run", "shapes", "--out", "codes.safetensors", "--json"];
    workspace.run(&encoded).succeeds();
    let bytes = fs::read(workspace.path("codes.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = format!("{:?}", header.metadata());
    assert!(metadata.contains("trailing") && metadata.contains('2'), "{metadata}");
    let report =
        workspace.run(&["reconstruct", "--model", "run", "shapes", "--out", "back", "--json"]).succeeds().json();
    let rows = report.as_array().unwrap();
    // There is no PSNR where all values are equal.
    // Evaluations follow the chain of the student, and know no other.
    let eval = ["eval", "recon", "--model", "run", "--data", "shapes", "--limit", "2", "--out", "eval", "--json"];
    workspace.run(&eval).fails_with("trained for --steps 2 of --sampler ddim");
    let evaluated = workspace.run(&[&eval[..], &["--steps", "2"]].concat()).succeeds().json();
    assert_eq!(evaluated["settings"]["spacing"], "trailing");
    assert_eq!(
        (&evaluated["settings"]["inversion"], &evaluated["settings"]["invert_steps"]),
        (&"exact".into(), &().into())
    );
    workspace.run(&[&eval[..], &["--steps", "2", "--invert-steps", "9"]].concat()).fails_with("along its own chain");
    let of = |x_t: &str| figure(&evaluated, "mse", &[("x_T", x_t)]);
    assert!(of("inverted") < 1e-6 && of("random") > 1e-4, "{evaluated}");
    let usage = ["eval", "z-usage", "--model", "run", "--data", "shapes", "--limit", "2", "--out", "usage"];
    workspace.run(&usage).fails_with("--steps 2");
    workspace.run(&[&usage[..], &["--steps", "2"]].concat()).succeeds();
    assert!(rows.len() == 16 && rows.iter().all(|row| row["psnr"].as_f64().is_none_or(|psnr| psnr > 60.)), "{report}");
    // The latent diffusion is that of the teacher, along its usual chain.
    workspace.run(&["sample", "--model", "run", "-n", "1", "--out", "samples"]).succeeds();
    let info = workspace.run(&["info", "run"]).succeeds().stdout();
    assert!(info.contains("distilled to 2 steps"), "{info}");
    workspace.run(&distill("none", &["--spacing", "tuned"])).fails_with("tune-steps");
    let tune = ["tune-steps", "--model", "run", "shapes", "--steps", "3", "--out", "none"];
    workspace.run(&tune).fails_with("tune the model that it was made of");
    workspace.run(&distill("none", &["--spacing", "leading"])).fails_with("a spacing that begins at the last timestep");
    let too_many = ["distill", "--model", "teacher", "--data", "shapes", "--steps", "5000", "--out", "none"];
    workspace.run(&too_many).fails_with("distillation.chain does not fit: the number of steps is 5000");
    workspace
        .run(&["reconstruct", "--model", "run", "codes.safetensors", "--out", "none"])
        .fails_with("`diffae decode`");
    assert!(!workspace.path("none").exists());
}

#[test]
fn a_group_distills_the_student_of_one() {
    let workspace = Workspace::new();
    workspace.run(&["import", &checkpoint("autoenc16_latent"), "--out", "teacher"]).succeeds();
    shapes(&workspace, 8);
    let more = ["--images", "16", "--set", "autoencoder.accumulate=2"];
    workspace.run(&distill("alone", &more)).succeeds();
    let master = format!("127.0.0.1:{}", free_port());
    let start = |rank| {
        let place = ["--rank", rank, "--world-size", "2", "--master", &master];
        workspace.start(&distill("together", &[&more[..], &place].concat()))
    };
    let (first, second) = (start("0"), start("1"));
    for (code, told) in [first.end(), second.end()] {
        assert_eq!(code, Some(0), "{told}");
    }
    let [alone, together] =
        ["alone", "together"].map(|run| fs::read(workspace.path(run).join("model.safetensors")).unwrap());
    assert!(alone == together, "the models differ");
}

#[test]
fn tuned_timesteps_belong_to_their_model() {
    let workspace = Workspace::new();
    workspace.run(&["import", &checkpoint("autoenc16_latent"), "--out", "model"]).succeeds();
    shapes(&workspace, 6);
    let tune = ["tune-steps", "--model", "model", "shapes", "--steps", "3", "--out", "tuned", "--json"];
    let report = workspace.run(&tune).succeeds().json();
    assert_eq!(report["sampler"], "dpm++2m");
    let timesteps: Vec<u64> =
        report["timesteps"].as_array().unwrap().iter().map(|timestep| timestep.as_u64().unwrap()).collect();
    assert!(timesteps.len() == 3 && timesteps.is_sorted_by(|a, b| a < b), "{timesteps:?}");
    let config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(workspace.path("tuned/config.json")).unwrap()).unwrap();
    let expected = serde_json::json!({ "timesteps": report["timesteps"], "sampler": "dpm++2m" });
    assert_eq!(config["chains"]["tuned"][0], expected);

    let sample = |model: &str, steps: &str, out: &str| {
        let args = ["sample", "--model", model, "-n", "1", "--spacing", "tuned", "--steps", steps, "--out", out];
        workspace.run(&[&args[..], &["--json"]].concat())
    };
    assert_eq!(sample("tuned", "3", "samples").succeeds().json()["sampler"], "dpm++2m", "they are tuned for it");
    workspace.run(&[&tune[..7], &["for_ddim", "--sampler", "ddim"]].concat()).succeeds();
    assert_eq!(sample("for_ddim", "3", "of_ddim").succeeds().json()["sampler"], "ddim", "they are tuned for it");
    sample("tuned", "4", "other").fails_with("tuned for 4 steps, only for 3");
    sample("model", "3", "other").fails_with("tune-steps --steps 3");
    let encode =
        ["encode", "--model", "tuned", "shapes", "--spacing", "tuned", "--steps", "3", "--out", "codes.safetensors"];
    workspace.run(&encode).succeeds();
    workspace.run(&["decode", "--model", "tuned", "codes.safetensors", "--out", "back"]).succeeds();
    // Another model has no such chain, even one of the same networks.
    workspace.run(&["decode", "--model", "model", "codes.safetensors", "--out", "other"]).fails_with("made by model");
    workspace.run(&tune).fails_with("--force");
    // A student may take them for its own steps, and keeps them.
    let unfit = ["distill", "--model", "tuned", "--data", "shapes", "--spacing", "tuned", "--out", "none", "--steps"];
    workspace.run(&[&unfit[..], &["3"]].concat()).fails_with("timesteps tuned for dpm++2m");
    workspace.run(&[&unfit[..], &["4"]].concat()).fails_with("tuned for 4 steps, only for 3");
    let distill = ["distill", "--model", "for_ddim", "--data", "shapes", "--steps", "3", "--spacing", "tuned"];
    let quick = ["--teacher-steps", "3", "--batch-size", "4", "--images", "8", "--out", "student"];
    workspace.run(&[&distill[..], &quick].concat()).succeeds();
    let info = workspace.run(&["info", "student"]).succeeds().stdout();
    assert!(info.contains("distilled to 3 steps, tuned"), "{info}");
    let sampled =
        workspace.run(&["sample", "--model", "student", "-n", "1", "--out", "own", "--json"]).succeeds().json();
    assert_eq!((&sampled["sampler"], &sampled["spacing"]), (&"ddim".into(), &"tuned".into()));
    assert_eq!(sampled["steps"], 3);
    let named = ["distill", "--model", "model", "--data", "shapes", "--teacher-steps", "3", "--batch-size", "4"];
    let named = [&named[..], &["--images", "4", "--out", "named", "--timesteps"]].concat();
    workspace.run(&[&named[..], &["30,9"]].concat()).fails_with("strictly increasing");
    workspace.run(&[&named[..], &["9,30", "--steps", "2"]].concat()).fails_with("cannot be used with");
    workspace.run(&[&named[..], &["9,30"]].concat()).fails_with("[9, 30] with tuned, expected timesteps that end with");
    workspace.run(&[&named[..], &["9,999"]].concat()).succeeds();
    let sample = ["sample", "--model", "named", "-n", "1", "--spacing", "tuned", "--steps", "5", "--out", "none"];
    workspace.run(&sample).fails_with("the decoder was trained for 2 tuned steps");
    let info = workspace.run(&["info", "named"]).succeeds().stdout();
    assert!(info.contains("distilled to 2 steps, tuned"), "{info}");
    let back =
        workspace.run(&["reconstruct", "--model", "student", "shapes", "--out", "again", "--json"]).succeeds().json();
    assert!(back.as_array().unwrap().iter().all(|row| row["psnr"].as_f64().is_none_or(|psnr| psnr > 60.)), "{back}");
}
