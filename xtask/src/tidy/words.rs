//! Terms of the field, in comments and pages: private words that have stood for them are refused.

use super::problem::Problem;
use super::tree::{RustFile, Tree};

/// Private words, by their beginnings in lower case, and the terms of the field for them.
const PRIVATE: [(&str, &str); 8] = [
    ("invent", "sample or generate"),
    ("lateral", "skip connection"),
    ("judge", "discriminator, validation or evaluation"),
    ("labelled", "labeled"),
    ("neighbour", "neighbor"),
    ("grey", "gray"),
    ("colour", "color"),
    ("normalis", "normaliz"),
];
/// Private terms of two words.
const PRIVATE_PAIRS: [(&str, &str); 2] = [("way back", "backward pass"), ("whole way", "full strength")];

/// All rules of this file.
pub(super) fn check(tree: &Tree) -> Vec<Problem> {
    let comments = tree.rust_files().flat_map(|RustFile { path, lines, .. }| {
        let comments = lines.iter().map(|line| line.comment.as_str()).enumerate();
        comments.filter(|(_, comment)| !comment.is_empty()).map(move |(line_idx, comment)| (path, line_idx, comment))
    });
    let pages = tree
        .texts_with_extension("md")
        .flat_map(|(path, text)| text.lines().enumerate().map(move |(line_idx, line)| (path, line_idx, line)));
    comments.chain(pages).flat_map(|(path, line_idx, prose)| of_line(path, line_idx + 1, prose)).collect()
}

fn of_line(path: &str, line_idx: usize, prose: &str) -> Vec<Problem> {
    let prose = without_code(prose).to_lowercase();
    let words: Vec<&str> = prose.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let single = PRIVATE.iter().filter(|(private, _)| words.iter().any(|word| word.starts_with(private)));
    let pairs = words.windows(2).map(|pair| pair.join(" ")).collect::<Vec<_>>();
    let double = PRIVATE_PAIRS.iter().filter(|(private, _)| pairs.iter().any(|pair| pair == private));
    let problem = |(private, term): &(&str, &str)| {
        Problem::at(path, line_idx, format!("the word `{private}` is not of this field: say {term}"))
    };
    single.chain(double).map(problem).collect()
}

/// Returns the text between code spans, of which names of others are.
fn without_code(prose: &str) -> String {
    prose.split('`').step_by(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::problem::printed;

    fn problems(path: &str, text: &str) -> Vec<String> {
        printed(&check(&Tree::made_up(&[(path, text)])))
    }

    #[test]
    fn private_words_are_refused_in_prose_alone() {
        for prose in ["Invented pictures.", "lateral reads", "the way back", "Labelled faces", "the JUDGE"] {
            assert_eq!(problems("docs/a.md", prose).len(), 1, "{prose}");
            assert_eq!(problems("crates/a/src/lib.rs", &format!("/// {prose}\nfn f() {{}}\n")).len(), 1, "{prose}");
        }
        assert_eq!(problems("docs/a.md", "`--invented` was `--samples`; bilateral, a way that leads back"), [""; 0]);
        assert_eq!(problems("crates/a/src/lib.rs", "let invented = judge(\"colour\");\n"), [""; 0]);
    }
}
