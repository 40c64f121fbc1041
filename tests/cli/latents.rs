//! Models whose diffusion runs on the latents of a spatial autoencoder.

use std::fs;

use crate::groups::free_port;
use crate::polish::write_vgg;
use crate::support::Workspace;
use crate::training::{set, shapes};

/// Images of each stage; a few steps.
const QUICK: [&str; 4] = ["spatial.images=64", "autoencoder.images=16", "latent.images=64", "run.preview_steps=2"];

fn train<'a>(out: &'a str, settings: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["train", "--preset", "smoke_latent", "--threads", "1", "--data", "shapes", "--out", out];
    [&fixed[..], &set(&QUICK), &set(settings), more].concat()
}

fn weights(workspace: &Workspace, run: &str) -> Vec<u8> {
    fs::read(workspace.path(run).join("model.safetensors")).unwrap()
}

#[test]
fn a_model_on_latents_is_trained_and_used_like_any_other() {
    let workspace = Workspace::new();
    shapes(&workspace, 8);
    let previews = ["run.preview_every_images=32", "data.validation_share=0.2"];
    workspace.run(&train("run", &previews, &["--labels", "folders"])).succeeds();
    assert!(workspace.path("run/previews/spatial-000000064.png").exists());
    assert!(workspace.path("run/spatial.safetensors").exists());
    let info = workspace.run(&["info", "run", "--json"]).succeeds().json();
    assert_eq!(info["latent_shape"], serde_json::json!([4, 8, 8]));
    assert_eq!(info["image_size"], 16);
    let said = workspace.run(&["info", "run"]).succeeds().stdout();
    assert!(said.contains("latents      8x8, 4 channels, of a spatial autoencoder"), "{said}");

    // x_T is of the size of latents; pictures come back as the spatial autoencoder makes them, whatever the batch.
    workspace.run(&["encode", "-m", "run", "shapes", "-o", "codes.safetensors"]).succeeds();
    let bytes = fs::read(workspace.path("codes.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("x_T").unwrap().shape(), [16, 4, 8, 8]);
    workspace.run(&["decode", "-m", "run", "codes.safetensors", "-o", "decoded"]).succeeds();
    workspace.run(&["reconstruct", "-m", "run", "shapes", "-o", "back", "--batch-size", "3"]).succeeds();
    let names = workspace.files("back");
    let same =
        |name: &String| workspace.pixels(&format!("back/{name}")) == workspace.pixels(&format!("decoded/{name}"));
    assert!(names.len() >= 16 && names.iter().filter(|name| !name.contains("sheet")).all(same), "{names:?}");

    // What the spatial part loses is kept by an edit that asks for it: without a change the picture is itself.
    let cropped = image::open(workspace.path("shapes/disc/00.png")).unwrap().crop_imm(2, 0, 16, 16).into_rgb8();
    cropped.save(workspace.path("small.png")).unwrap();
    for (out, more, is_itself) in [("kept", &["--keep-residual"][..], true), ("lost", &[], false)] {
        let edit = ["edit", "-m", "run", "small.png", "-a", "disc", "--strengths=0", "-o", out];
        workspace.run(&[&edit[..], more].concat()).succeeds();
        assert_eq!(workspace.pixels(&format!("{out}/small_disc_+0.png")) == cropped, is_itself, "{out}");
    }
    for (out, args) in [
        ("edits", &["edit", "-m", "run", "shapes/disc/00.png", "-a", "disc"][..]),
        ("between", &["interpolate", "-m", "run", "shapes/disc/00.png", "shapes/square/01.png"]),
        ("varied", &["variations", "-m", "run", "shapes/disc/00.png", "-n", "2", "--steps", "2"]),
        ("sampled", &["sample", "-m", "run", "-n", "2", "--steps", "2", "--latent-steps", "2"]),
        (
            "ddim",
            &["reconstruct", "-m", "run", "shapes/disc/00.png", "--reference", "--steps", "5", "--invert-steps", "5"],
        ),
    ] {
        workspace.run(&[args, &["-o", out]].concat()).succeeds();
        assert!(workspace.path(out).exists(), "{out}");
    }
    for (measure, more) in
        [("recon", &["--steps", "2", "--invert-steps", "2"][..]), ("inversion", &["--exact-steps", "3"])]
    {
        let args = ["eval", measure, "--model", "run", "--data", "shapes", "--limit", "2", "--out", measure];
        workspace.run(&[&args[..], more].concat()).succeeds();
    }
    workspace.run(&["tune-steps", "-m", "run", "shapes", "--steps", "2", "-o", "tuned"]).succeeds();
    workspace.run(&["reconstruct", "-m", "tuned", "shapes/disc/00.png", "-o", "of_tuned"]).succeeds();
    workspace.run(&["export", "run", "--onnx", "onnx"]).succeeds();
    assert!(workspace.path("onnx/from_latents.onnx").exists());
    let distill = ["distill", "--model", "run", "--data", "shapes", "--out", "none"];
    workspace.run(&distill).fails_with("one on latents");
    write_vgg(&workspace.path("vgg16.safetensors"));
    let polish =
        ["polish", "--model", "run", "--data", "shapes", "--out", "none", "--lpips-weights", "vgg16.safetensors"];
    workspace.run(&polish).fails_with("one on latents");
    assert!(!workspace.path("none").exists());
}

#[test]
fn a_spatial_autoencoder_that_was_stopped_leads_to_the_same_model() {
    let workspace = Workspace::new();
    shapes(&workspace, 8);
    workspace.run(&train("whole", &[], &[])).succeeds();
    workspace.run(&train("run", &["spatial.images=32"], &["--stage", "spatial"])).succeeds();
    let resume =
        |more: &[&str]| workspace.run(&[&["train", "--threads", "1", "--out", "run", "--resume"][..], more].concat());
    let said = resume(&set(&["spatial.images=64"])).succeeds().stderr();
    assert!(!said.contains("depends on"), "{said}");
    assert!(weights(&workspace, "whole") == weights(&workspace, "run"), "the models differ");
    // A longer stage begins those anew that depend on it.
    let said = resume(&set(&["spatial.images=72"])).succeeds().stderr();
    assert!(
        said.contains("stage autoencoder will be trained again, since it depends on the spatial autoencoder"),
        "{said}"
    );
    assert!(weights(&workspace, "whole") != weights(&workspace, "run"));
    // One that has begun is not dropped without a word; until it begins, its settings are free.
    workspace.run(&train("begun", &["autoencoder.images=800"], &["--stage", "spatial"])).succeeds();
    let every = set(&["autoencoder.batch_size=4", "run.save_every_secs=0"]);
    let begin = ["train", "--threads", "1", "--out", "begun", "--resume", "--stage", "autoencoder"];
    let running = workspace.start(&[&begin[..], &every].concat());
    let checkpoints = workspace.path("begun/checkpoints");
    let names = || fs::read_dir(&checkpoints).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let is_begun = || names().any(|name| name.to_string_lossy().starts_with("autoencoder-"));
    let mut running = running;
    running.wait_until(is_begun);
    running.signal("KILL");
    let longer = ["train", "--threads", "1", "--out", "begun", "--resume", "--stage", "spatial"];
    let said = workspace.run(&[&longer[..], &set(&["spatial.images=72"])].concat()).succeeds();
    let dropped = "steps of stage autoencoder are dropped, since it depends on the spatial autoencoder";
    assert!(said.stderr().contains(dropped), "{}", said.stderr());
    assert!(said.stdout().contains("spatial.safetensors") && !is_begun(), "{}", said.stdout());
    // Fine-tuned on other pictures, a model keeps its latents with their statistics.
    fs::remove_dir_all(workspace.path("shapes/disc")).unwrap();
    workspace
        .run(&train("tuned", &["autoencoder.images=8"], &["--init-from", "whole", "--stage", "autoencoder"]))
        .succeeds();
    let spatial = |run: &str| fs::read(workspace.path(run).join("spatial.safetensors")).unwrap();
    assert!(spatial("tuned") == spatial("whole"), "the spatial autoencoders differ");
}

#[test]
fn a_group_trains_the_model_of_one_process() {
    let workspace = Workspace::new();
    shapes(&workspace, 8);
    let settings = ["spatial.accumulate=2", "autoencoder.accumulate=2", "spatial_net.adversarial_weight=0.1"];
    workspace.run(&train("alone", &settings, &[])).succeeds();
    // Before anything is trained, each stage has work for all.
    let few = ["spatial.accumulate=2"];
    let pair = ["--rank", "0", "--world-size", "2", "--master", "127.0.0.1:1"];
    let dry = train("none", &few, &[&pair[..], &["--dry-run"]].concat());
    workspace.run(&dry).fails_with("autoencoder.accumulate is 1 with 2 processes");
    let master = format!("127.0.0.1:{}", free_port());
    let start = |rank| {
        let place = ["--rank", rank, "--world-size", "2", "--master", &master];
        workspace.start(&train("together", &settings, &place))
    };
    let (first, second) = (start("0"), start("1"));
    for (code, told) in [first.end(), second.end()] {
        assert_eq!(code, Some(0), "{told}");
    }
    assert!(weights(&workspace, "alone") == weights(&workspace, "together"), "the models differ");
}

#[test]
fn weights_of_a_spatial_autoencoder_take_the_place_of_its_stage() {
    let workspace = Workspace::new();
    shapes(&workspace, 8);
    workspace.run(&train("first", &[], &["--stage", "spatial"])).succeeds();
    let given = ["--spatial-weights", "first/spatial.safetensors"];
    workspace.run(&train("second", &[], &given)).succeeds();
    assert!(workspace.path("second/previews/spatial-000000000.png").exists());
    let log = fs::read_to_string(workspace.path("second/metrics.jsonl")).unwrap();
    assert!(!log.contains(r#""stage":"spatial""#), "{log}");
    workspace.run(&["reconstruct", "-m", "second", "shapes/disc/00.png", "-o", "back"]).succeeds();
    // Other sizes are named as they have to be set.
    let other = train("third", &["spatial_net.latent_channels=2"], &given);
    workspace.run(&other).fails_with("--set spatial_net.latent_channels=4 --set spatial_net.model_channels=16");
    // A run, or a model, stands for its own; the stage that needs it takes it over.
    workspace.run(&train("of_run", &[], &["--spatial-weights", "first", "--stage", "autoencoder"])).succeeds();
    let again = ["train", "--threads", "1", "--out", "of_run", "--resume", "--spatial-weights"];
    workspace.run(&[&again[..], &["second"]].concat()).fails_with("the run was started with --spatial-weights");
    workspace.run(&[&again[..], &["first", "--stage", "latent"]].concat()).succeeds();
    workspace
        .run(&train("of_model", &[], &["--spatial-weights", "of_run/model.safetensors", "--stage", "spatial"]))
        .succeeds();
    let spatial = |run: &str| fs::read(workspace.path(run).join("spatial.safetensors")).unwrap();
    assert!(spatial("first") == spatial("of_run") && spatial("first") == spatial("of_model"));
    // What a run has no use for is refused, and a dry run looks at what it is given.
    let of_pictures = ["train", "--preset", "smoke", "--data", "shapes", "--out", "none", "--spatial-weights", "first"];
    workspace.run(&of_pictures).fails_with("spatial_weights is");
    workspace
        .run(&train("none", &[], &["--lpips-weights", "first/spatial.safetensors"]))
        .fails_with("lpips_weights is");
    let dry = train("none", &["spatial_net.latent_channels=2"], &[&given[..], &["--dry-run"]].concat());
    workspace.run(&dry).fails_with("--set spatial_net.latent_channels=4");
    assert!(!workspace.path("none").exists());
    write_vgg(&workspace.path("vgg16.safetensors"));
    let of_vgg = train("fourth", &[], &["--spatial-weights", "vgg16.safetensors"]);
    workspace.run(&of_vgg).fails_with("there is no spatial autoencoder");
    // LPIPS is part of its loss where it has a weight, and then its weights are needed.
    let large = [
        "model.image_size=32",
        "spatial_net.crop_size=32",
        "spatial_net.perceptual_weight=0.5",
        "model.attention_resolutions=[8]",
        "spatial.images=4",
        "spatial.batch_size=2",
    ];
    workspace.run(&train("fifth", &large, &["--stage", "spatial"])).fails_with("spatial_net.perceptual_weight=0");
    let lpips = ["--stage", "spatial", "--lpips-weights", "vgg16.safetensors"];
    workspace.run(&train("sixth", &large, &lpips)).succeeds();
}

#[test]
fn settings_that_do_not_fit_are_refused_in_a_sentence() {
    let workspace = Workspace::new();
    shapes(&workspace, 8);
    let refused = |settings: &[&str], more: &[&str]| workspace.run(&train("out", settings, more));
    refused(&["spatial_net.crop_size=7"], &[]).fails_with("spatial_net.crop_size is 7");
    refused(&["spatial_net.crop_size=32"], &[]).fails_with("spatial_net.crop_size is 32");
    refused(&["spatial_net.channel_mult=[1,1,1,1,1,1]"], &[]).fails_with("divisible");
    refused(&["spatial_net.kl_weight=-1"], &[]).fails_with("spatial_net.kl_weight is -1");
    refused(&["objective.adversarial_weight=1"], &[]).fails_with("0 for a model on latents");
    refused(&["model.kind=autoencoder"], &[]).fails_with("no [spatial_net] and no [spatial]");
    refused(&["model.attention_resolutions=[5]"], &[]).fails_with("attention resolution 5 never occurs");
    assert!(!workspace.path("out").exists());
    let of_pictures = ["train", "--preset", "smoke", "--data", "shapes", "--out", "out", "--stage", "spatial"];
    workspace.run(&of_pictures).fails_with("only one on latents has that");
    workspace.run(&train("run", &[], &["--stage", "autoencoder"])).fails_with("--stage spatial");
    let dry = ["train", "--preset", "smoke_latent", "--data", "shapes", "--dry-run"];
    let said = workspace.run(&dry).succeeds().stdout();
    assert!(said.contains("  spatial      200 steps"), "{said}");
}
