//! Formats, wrappers, prefixes, shards, and hyper-parameters in other places.

use diffae_nets::weights::{ArchitectureHints, ClassifierCheckpoint, read_latent_moments, safetensors_bytes};
use serde_json::json;

use crate::torch_writer::{Entry, torch_file, torch_state_dict};
use crate::{
    Folder, MODEL, below, golden, hyper_parameters, is_golden, open, refused, renamed, safetensors, state_dict, whole,
};

/// A function that inserts the name of a wrapper into the name of a parameter.
type Wrap = fn(&str) -> String;

fn no_hints() -> ArchitectureHints {
    ArchitectureHints::default()
}

#[test]
fn wrappers_may_stand_at_any_place_of_a_name() {
    let folder = Folder::new();
    let (state, told) = (state_dict(MODEL, "last.ckpt"), hyper_parameters(MODEL));
    let wraps: [(&str, Wrap); 5] = [
        ("compiled", |name| name.replacen("model.", "model._orig_mod.", 1)),
        ("distributed", |name| format!("module.{name}")),
        ("both", |name| format!("_forward_module.module.{}", name.replacen("model.", "model.module._orig_mod.", 1))),
        ("inside", |name| name.replace("latent_net.layers.", "latent_net.layers._fsdp_wrapped_module.")),
        ("checkpointed", |name| name.replace(".in_layers.", "._checkpoint_wrapped_module.in_layers.")),
    ];
    for (name, wrap) in wraps {
        let wrapped = renamed(&state, |name| Some(wrap(name)));
        let entries = [("state_dict", Entry::Tensors(&wrapped)), ("hyper_parameters", Entry::Plain(&told))];
        is_golden(&folder.write(&format!("{name}.ckpt"), torch_file(&entries)), &no_hints());
    }
}

#[test]
fn names_that_become_one_are_named_if_they_differ() {
    let folder = Folder::new();
    let mut state = state_dict(MODEL, "last.ckpt");
    let (plain, wrapped) = ("ema_model.encoder.out.3.bias", "ema_model._orig_mod.encoder.out.3.bias");
    state.insert(wrapped.to_owned(), state[plain].clone());
    is_golden(&folder.write("same.ckpt", torch_state_dict(&state)), &no_hints());
    state.insert(wrapped.to_owned(), (&state[plain] + 1.).unwrap());
    let message = refused(&folder.write("other.ckpt", torch_state_dict(&state)), &no_hints());
    assert!([plain, wrapped, "other.ckpt"].iter().all(|part| message.contains(part)), "{message}");
}

#[test]
fn state_dicts_alone_are_models() {
    let folder = Folder::new();
    let state = state_dict(MODEL, "last.ckpt");
    let ema = below(&state, "ema_model.");
    let mut plain = ema.clone();
    plain.extend(["x_T", "conds_mean", "conds_std"].map(|name| (name.to_owned(), state[name].clone())));
    let renamed = renamed(&plain, |name| Some(format!("model.{name}")));
    for (name, content) in [
        ("whole.pt", torch_state_dict(&state)),
        ("plain.pt", torch_state_dict(&plain)),
        ("model.pt", torch_state_dict(&renamed)),
        ("below_model.pt", torch_file(&[("model", Entry::Tensors(&plain))])),
        ("below_ema.pt", torch_file(&[("ema", Entry::Tensors(&plain)), ("step", Entry::Plain(&json!(1)))])),
    ] {
        is_golden(&folder.write(name, content), &no_hints());
    }
}

#[test]
fn pretrained_safetensors_are_the_checkpoint() {
    let folder = Folder::new();
    let state = state_dict(MODEL, "last.ckpt");
    let plain = renamed(&state, |name| {
        let is_buffer = !name.contains("model.");
        name.strip_prefix("ema_model.").or(is_buffer.then_some(name)).map(str::to_owned)
    });
    let averaged = renamed(&state, |name| (!name.starts_with("model.")).then(|| name.to_owned()));
    for (name, tensors) in [("whole", &state), ("plain", &plain), ("averaged", &averaged)] {
        is_golden(&folder.write(&format!("{name}.safetensors"), safetensors(tensors)), &no_hints());
        // The content decides, not the name.
        is_golden(&folder.write(&format!("{name}.ckpt"), safetensors(tensors)), &no_hints());
        is_golden(
            &folder.write(&format!("{name}/model.safetensors"), safetensors(tensors)).with_file_name(""),
            &no_hints(),
        );
    }
    is_golden(&folder.write("torch.safetensors", torch_state_dict(&state)), &no_hints());
}

#[test]
fn parameters_alone_need_the_image_size() {
    let folder = Folder::new();
    let ema = renamed(&state_dict(MODEL, "last.ckpt"), |name| name.starts_with("ema_model.").then(|| name.to_owned()));
    let path = folder.write("ema.safetensors", safetensors(&ema));
    let message = refused(&path, &no_hints());
    assert!(message.contains("--image-size") && message.contains("ema.safetensors"), "{message}");
    let source =
        diffae_infer::ModelSource::open(&path, &ArchitectureHints { image_size: Some(16), ..no_hints() }).unwrap();
    let whole = open(&golden(MODEL, "last.ckpt")).unwrap();
    assert_eq!(source.fingerprint().unwrap(), whole.fingerprint().unwrap());
    assert!(source.latent_moments().is_none());
}

#[test]
fn hyper_parameters_may_lie_beside_the_weights() {
    let model = "gray16_heads2";
    let state = state_dict(model, "last.ckpt");
    let ema = renamed(&state, |name| (!name.starts_with("model.") && name != "x_T").then(|| name.to_owned()));
    let told = hyper_parameters(model).to_string();
    let expected = open(&golden(model, "last.ckpt")).unwrap().fingerprint().unwrap();
    for name in ["weights.json", "hyper_parameters.json", "config.json"] {
        let folder = Folder::new();
        folder.write(name, &told);
        let path = folder.write("weights.safetensors", safetensors(&ema));
        assert_eq!(open(&path).unwrap().fingerprint().unwrap(), expected, "{name}");
        assert_eq!(open(path.parent().unwrap()).unwrap().fingerprint().unwrap(), expected, "{name}");
        let path = folder.write("weights.pt", torch_state_dict(&ema));
        assert_eq!(open(&path).unwrap().fingerprint().unwrap(), expected, "{name}");
    }
    let folder = Folder::new();
    let text = [("hyper_parameters".to_owned(), told)].into();
    let path = folder.write("weights.safetensors", safetensors_bytes(&ema, &text).unwrap());
    assert_eq!(open(&path).unwrap().fingerprint().unwrap(), expected);
}

#[test]
fn shards_are_one_model() {
    let folder = Folder::new();
    let state = state_dict(MODEL, "last.ckpt");
    let mut map = serde_json::Map::new();
    for shard in 0..3 {
        let file = format!("model-{:05}-of-00003.safetensors", shard + 1);
        let part = state.iter().enumerate().filter(|(idx, _)| idx % 3 == shard);
        let part = part.map(|(_, (name, tensor))| (name.clone(), tensor.clone())).collect();
        map.extend(crate::torch_writer::Named::keys(&part).map(|name| (name.clone(), json!(file))));
        folder.write(&format!("sharded/{file}"), safetensors(&part));
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
    let index = folder.write("sharded/model.safetensors.index.json", index);
    is_golden(&index, &no_hints());
    is_golden(index.parent().unwrap(), &no_hints());
    std::fs::remove_file(index.with_file_name("model-00002-of-00003.safetensors")).unwrap();
    let message = refused(&index, &no_hints());
    assert!(message.contains("model-00002-of-00003.safetensors") && message.contains("copy that file"), "{message}");
}

#[test]
fn classifiers_and_statistics_in_any_format() {
    let folder = Folder::new();
    let (classifier, latent) = (state_dict(MODEL, "classifier.ckpt"), state_dict(MODEL, "latent.pkl"));
    let values = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let known = ClassifierCheckpoint::open(&golden(MODEL, "classifier.ckpt")).unwrap();
    let wrapped =
        renamed(&classifier, |name| Some(format!("module.{}", name.replace("classifier.", "classifier._orig_mod."))));
    let averaged = renamed(&classifier, |name| name.strip_prefix("ema_classifier.").map(str::to_owned));
    for (name, content) in [
        ("classifier.safetensors", safetensors(&classifier)),
        ("bare.pt", torch_state_dict(&classifier)),
        ("wrapped.ckpt", torch_file(&[("state_dict", Entry::Tensors(&wrapped))])),
    ] {
        let read = ClassifierCheckpoint::open(&folder.write(name, content)).unwrap();
        assert_eq!(values(&read.directions), values(&known.directions), "{name}");
        assert_eq!(values(&read.weight), values(&known.weight), "{name}");
        assert!(read.latent_moments.is_some(), "{name}");
    }
    let read = ClassifierCheckpoint::open(&folder.write("linear.safetensors", safetensors(&averaged))).unwrap();
    assert_eq!(values(&read.directions), values(&known.weight));
    assert_eq!(values(&read.bias), values(&known.bias));

    let known = read_latent_moments(&golden(MODEL, "latent.pkl")).unwrap();
    let nested = renamed(&latent, |name| Some(format!("module.{name}")));
    for (name, content) in [
        ("latent.safetensors", safetensors(&latent)),
        ("nested.pkl", torch_file(&[("state_dict", Entry::Tensors(&nested))])),
        ("checkpoint.safetensors", safetensors(&state_dict(MODEL, "last.ckpt"))),
    ] {
        let read = read_latent_moments(&folder.write(name, content)).unwrap();
        assert_eq!(values(&read.std), values(&known.std), "{name}");
    }
    let message = whole(&read_latent_moments(&folder.write("other.safetensors", safetensors(&averaged))).unwrap_err());
    assert!(message.contains("other.safetensors holds no latent statistics"), "{message}");
}

#[test]
fn parts_that_are_no_model_say_what_they_are_for() {
    for (file, expected) in [("classifier.ckpt", "--classifier"), ("latent.pkl", "--latent")] {
        let message = refused(&golden(MODEL, file), &no_hints());
        assert!(message.contains(expected) && message.contains("is not a model"), "{message}");
    }
}
