//! Errors as one sentence, for people.

use std::error::Error;

/// Joins an error and its causes into one line; a cause that its effect quotes already is left out, and so is the
/// backtrace that Candle writes into its errors where `RUST_BACKTRACE` is set. A card without memory is told with what helps.
#[must_use]
pub fn one_sentence(error: &(dyn Error + 'static)) -> String {
    let mut sentence = String::new();
    let mut rest = Some(error);
    while let Some(cause) = rest {
        let text = cause.to_string();
        let lines = text.lines().map(str::trim).take_while(|line| !is_frame(line));
        let text = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
        if sentence.is_empty() {
            sentence = text;
        } else if !sentence.contains(&text) {
            sentence = format!("{sentence}: {text}");
        }
        rest = cause.source();
    }
    if sentence.contains("CUDA_ERROR_OUT_OF_MEMORY") {
        sentence += "; the memory of the card is full: take fewer pictures at once (--batch-size), or in training smaller \
                     micro-batches (autoencoder.accumulate) or objective.checkpoint_blocks=true";
    }
    sentence
}

/// Returns whether a line begins a frame of a backtrace: `12: path::of::a::function`, or `12: <unknown>` of a program without
/// symbols.
fn is_frame(line: &str) -> bool {
    let is_place = |path: &str| path.contains("::") || path == "<unknown>";
    line.split_once(": ").is_some_and(|(number, path)| number.parse::<u32>().is_ok() && is_place(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Told {
        text: &'static str,
        source: Option<Box<Told>>,
    }

    fn told(texts: &[&'static str]) -> Told {
        Told { text: texts[0], source: (texts.len() > 1).then(|| Box::new(told(&texts[1..]))) }
    }

    #[test]
    fn causes_follow_their_effect_once() {
        let error = told(&["no model", "cannot load m: file is damaged", "file is damaged"]);
        assert_eq!(one_sentence(&error), "no model: cannot load m: file is damaged");
    }

    #[test]
    fn backtraces_are_no_part_of_the_sentence() {
        let text =
            "shape [2], expected [3]\n   0: candle_core::error::Error::bt\n             at error.rs:264\n   1: main";
        assert_eq!(one_sentence(&told(&[text])), "shape [2], expected [3]");
        assert_eq!(one_sentence(&told(&["rows\n2: too long"])), "rows; 2: too long");
        let full = one_sentence(&told(&["DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"]));
        assert!(full.contains("--batch-size") && !full.contains('\n'), "{full}");
        let stripped = told(&["DriverError(CUDA_ERROR_ILLEGAL_ADDRESS)\n   0: <unknown>\n   0: <unknown>\n   1: main"]);
        assert_eq!(one_sentence(&stripped), "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS)");
    }
}
