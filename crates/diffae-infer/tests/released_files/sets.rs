//! Both parameter sets of a checkpoint: the average, and the optimizer's.

use diffae_infer::ModelSource;
use diffae_nets::weights::{ArchitectureHints, ParameterSet};

use crate::torch_writer::{Entry, Named, torch_file, torch_state_dict};
use crate::{Folder, MODEL, below, golden, hyper_parameters, refused, renamed, state_dict};

fn choosing(parameters: ParameterSet) -> ArchitectureHints {
    ArchitectureHints { parameters, ..ArchitectureHints::default() }
}

/// Returns the fingerprints of both parameter sets of the golden model: of its average, and of the optimizer's.
fn both() -> [String; 2] {
    [ParameterSet::Ema, ParameterSet::Online].map(|set| fingerprint(&golden(MODEL, "last.ckpt"), set))
}

#[track_caller]
fn fingerprint(path: &std::path::Path, set: ParameterSet) -> String {
    ModelSource::open(path, &choosing(set)).unwrap().fingerprint().unwrap()
}

#[test]
fn the_choice_decides() {
    let [average, online] = both();
    assert_ne!(average, online);
    assert_eq!(fingerprint(&golden(MODEL, "last.ckpt"), ParameterSet::Auto), average);
}

#[test]
fn lightnings_average_stands_in_the_place_of_the_parameters() {
    let [average, online] = both();
    let folder = Folder::new();
    let state = state_dict(MODEL, "last.ckpt");
    let buffers = renamed(&state, |name| (!name.contains("model.")).then(|| name.to_owned()));
    let with_buffers = |set: Named| -> Named {
        let named = renamed(&set, |name| Some(format!("model.{name}")));
        named.into_iter().chain(buffers.clone()).collect()
    };
    let (averaged, current) = (with_buffers(below(&state, "ema_model.")), with_buffers(below(&state, "model.")));
    let (told, none) = (hyper_parameters(MODEL), Named::new());
    let path = folder.write(
        "last.ckpt",
        torch_file(&[
            ("state_dict", Entry::Tensors(&averaged)),
            ("hyper_parameters", Entry::Plain(&told)),
            ("current_model_state", Entry::Tensors(&current)),
            ("averaging_state", Entry::Tensors(&none)),
        ]),
    );
    assert_eq!(fingerprint(&path, ParameterSet::Auto), average);
    assert_eq!(fingerprint(&path, ParameterSet::Ema), average);
    assert_eq!(fingerprint(&path, ParameterSet::Online), online);
}

#[test]
fn what_is_not_there_is_named_with_the_way_out() {
    let [average, online] = both();
    let folder = Folder::new();
    let state = state_dict(MODEL, "last.ckpt");
    let without =
        |prefix: &str| torch_state_dict(&renamed(&state, |name| (!name.starts_with(prefix)).then(|| name.to_owned())));
    let path = folder.write("online.ckpt", without("ema_model."));
    assert_eq!(fingerprint(&path, ParameterSet::Auto), online);
    let message = refused(&path, &choosing(ParameterSet::Ema));
    assert!(message.contains("--weights model") && message.contains("online.ckpt"), "{message}");
    let path = folder.write("average.ckpt", without("model."));
    assert_eq!(fingerprint(&path, ParameterSet::Auto), average);
    let message = refused(&path, &choosing(ParameterSet::Online));
    assert!(message.contains("--weights ema") && message.contains("average.ckpt"), "{message}");
}

#[test]
fn an_average_with_its_wrapper_is_one_of_two_in_a_file() {
    let [average, online] = both();
    let folder = Folder::new();
    let state = state_dict(MODEL, "last.ckpt");
    let mut ema: Named = renamed(&below(&state, "ema_model."), |name| Some(format!("ema_model.{name}")));
    ema.extend(renamed(&below(&state, "model."), |name| Some(format!("online_model.{name}"))));
    ema.insert("x_T".to_owned(), state["x_T"].clone());
    let model = below(&state, "model.");
    let path = folder.write("both.pt", torch_file(&[("model", Entry::Tensors(&model)), ("ema", Entry::Tensors(&ema))]));
    assert_eq!(fingerprint(&path, ParameterSet::Auto), average);
    assert_eq!(fingerprint(&path, ParameterSet::Online), online);
    let twice: Named = renamed(&model, |name| Some(format!("a.{name}")))
        .into_iter()
        .chain(renamed(&model, |name| Some(format!("b.{name}"))))
        .collect();
    let message = refused(&folder.write("twice.pt", torch_state_dict(&twice)), &choosing(ParameterSet::Auto));
    assert!(message.contains("a.*") && message.contains("b.*"), "{message}");
}
