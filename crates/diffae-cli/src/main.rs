//! The `diffae` program.

mod allocator;
mod args;
mod commands;
mod device;
mod estimate;
mod group;
mod interrupt;
mod logging;
mod output;
mod picture_output;
mod pictures;
mod progress;
mod session;

use std::path::Path;
use std::process::ExitCode;

use clap::FromArgMatches;

/// Exit code of every error, including a wrong command line.
pub(crate) const FAILURE: u8 = 2;
/// Exit code after Ctrl-C, as shells report it.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let cli = args::Cli::from_arg_matches(&args::command().get_matches()).unwrap_or_else(|error| error.exit());
    if matches!(cli.command, args::Command::Encode(_) | args::Command::Eval(_)) {
        allocator::keep_freed_memory();
    }
    logging::install(&cli.global);
    match device::set_up_kernels(&cli.global).and_then(|()| commands::run(cli)) {
        Ok(()) => {
            pictures::warn_of_left_out();
            ExitCode::SUCCESS
        }
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if is_interrupt(&error) => {
            let told = error.downcast_ref::<interrupt::Interruption>().map(ToString::to_string);
            eprintln!("interrupted: {}", told.as_deref().unwrap_or("nothing was written"));
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            tracing::debug!("{error:?}");
            eprintln!("error: {}", one_sentence(&error));
            ExitCode::from(FAILURE)
        }
    }
}

/// Joins an error and its causes into one line, without what `-vv` shows; of files that exist it names the way out.
fn one_sentence(error: &anyhow::Error) -> String {
    if let Some(path) = error.chain().find_map(existing_file) {
        return format!("{} exists already; use --force to replace it", path.display());
    }
    diffae_infer::one_sentence(error.as_ref())
}

/// Returns the file that must not be replaced, if that is the cause; the errors of upper crates pass it on.
fn existing_file<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a Path> {
    use diffae_data::Error as Data;
    use diffae_eval::Error as Eval;
    use diffae_infer::Error as Infer;
    use diffae_onnx::Error as Onnx;
    use diffae_train::Error as Train;
    let infer = match (cause.downcast_ref(), cause.downcast_ref()) {
        (Some(Train::Infer(error)), _) | (_, Some(Eval::Infer(error))) => Some(error),
        _ => cause.downcast_ref::<Infer>(),
    };
    let data = match (infer, cause.downcast_ref(), cause.downcast_ref()) {
        (Some(Infer::Data(error)), _, _) | (_, Some(Train::Data(error)), _) | (_, _, Some(Eval::Data(error))) => {
            Some(error)
        }
        _ => match cause.downcast_ref() {
            Some(Onnx::Data(error)) => Some(error),
            _ => cause.downcast_ref::<Data>(),
        },
    };
    match data? {
        Data::Exists { path } => Some(path),
        _ => None,
    }
}

fn is_interrupt(error: &anyhow::Error) -> bool {
    use diffae_infer::Error::Cancelled;
    error.is::<interrupt::Interruption>()
        || matches!(error.downcast_ref(), Some(Cancelled))
        || matches!(error.downcast_ref(), Some(diffae_eval::Error::Infer(Cancelled)))
}

/// Returns whether the reader of our output has closed it, as in `diffae info .. | head`.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn causes_follow_their_effect_once() {
        let error = anyhow!("file is damaged").context("cannot load m: file is damaged").context("no model");
        assert_eq!(one_sentence(&error), "no model: cannot load m: file is damaged");
    }

    #[test]
    fn what_exists_is_named_before_the_way_out() {
        let exists = || diffae_data::Error::Exists { path: "out/sheet.png".into() };
        let infer = || diffae_infer::Error::from(exists());
        let expected = "out/sheet.png exists already; use --force to replace it";
        let evaluating = || diffae_eval::Error::from(exists()).into();
        let exporting = || diffae_onnx::Error::from(exists()).into();
        for error in
            [exporting(), exists().into(), infer().into(), diffae_train::Error::from(infer()).into(), evaluating()]
        {
            assert_eq!(one_sentence(&error), expected);
            assert_eq!(one_sentence(&error.context("cannot import")), expected);
        }
    }
}
