//! Rules for single Rust files: a header, a length one can read, nothing left unfinished.

use super::problem::Problem;
use super::rust_source::{self, Line};
use super::tree::{RustFile, Tree};

/// Lines of code above which a file asks to be split.
const ADVISED_CODE_LINES: usize = 400;
/// Lines of code above which a file must be split.
const MAX_CODE_LINES: usize = 600;
/// Macros that stand for missing code or for a look at running code.
const UNFINISHED_MACROS: [&str; 3] = ["todo", "unimplemented", "dbg"];
/// Marks of unfinished work that are never right.
const UNFINISHED_MARKS: [&str; 2] = ["FIXME", "XXX"];
/// The mark that is right with the number of an issue.
const NUMBERED_MARK: &str = "TODO";

/// Checks the rules of this file whose violation is an error.
pub(super) fn check(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for RustFile { path, text, lines } in tree.rust_files() {
        if !text.starts_with("//!") {
            problems.push(Problem::of_file(path, "a file starts with `//!` and what it is for"));
        }
        let num_code_lines = num_code_lines(path, lines);
        if num_code_lines > MAX_CODE_LINES {
            let message = format!("{num_code_lines} lines of code, the limit is {MAX_CODE_LINES}: split by concept");
            problems.push(Problem::of_file(path, message));
        }
        for (line_idx, line) in lines.iter().enumerate() {
            problems.extend(unfinished_work(line).map(|message| Problem::at(path, line_idx + 1, message)));
        }
    }
    problems
}

/// Reports files that are longer than advised, but not too long.
pub(super) fn warnings(tree: &Tree) -> Vec<Problem> {
    let warning = |RustFile { path, lines, .. }: RustFile<'_>| {
        let num_code_lines = num_code_lines(path, lines);
        let is_long = num_code_lines > ADVISED_CODE_LINES && num_code_lines <= MAX_CODE_LINES;
        let message = || format!("{num_code_lines} lines of code, more than the advised {ADVISED_CODE_LINES}");
        is_long.then(|| Problem::of_file(path, message()))
    };
    tree.rust_files().filter_map(warning).collect()
}

/// Counts the lines that are neither blank, comment nor test.
fn num_code_lines(path: &str, lines: &[Line]) -> usize {
    if path.split('/').any(|part| part == "tests") {
        return 0;
    }
    lines[..rust_source::num_lines_before_tests(lines)].iter().filter(|line| line.has_code()).count()
}

fn unfinished_work(line: &Line) -> impl Iterator<Item = String> {
    let macros = rust_source::words(&line.code)
        .filter(|&(start, word)| UNFINISHED_MACROS.contains(&word) && line.code[start + word.len()..].starts_with('!'))
        .map(|(_, word)| format!("`{word}!` is left in the code"));
    let comment = without_quotations(&line.comment);
    let marks = [line.code.as_str(), &comment].into_iter().flat_map(unfinished_marks).collect::<Vec<_>>();
    macros.chain(marks)
}

fn unfinished_marks(text: &str) -> impl Iterator<Item = String> {
    rust_source::words(text).filter_map(|(start, word)| {
        if UNFINISHED_MARKS.contains(&word) {
            Some(format!("{word} is left in the file"))
        } else if word == NUMBERED_MARK && !starts_with_issue(&text[start + word.len()..]) {
            Some(format!("{word} has no issue: write {word}(#123)"))
        } else {
            None
        }
    })
}

/// Returns whether the text after a mark names an issue: ` #12`, `(#12)`, `: #12`.
fn starts_with_issue(text: &str) -> bool {
    let number = text.trim_start_matches(['(', ':', ' ']).strip_prefix('#');
    number.is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit()))
}

/// Removes the text between backticks from a comment: that is talked about, not meant.
fn without_quotations(comment: &str) -> String {
    comment.split('`').step_by(2).collect::<Vec<_>>().join("`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::problem::printed;

    fn problems(path: &str, text: &str) -> Vec<String> {
        printed(&check(&Tree::made_up(&[(path, text)])))
    }

    fn file_of(num_code_lines: usize) -> String {
        format!(
            "//! Header.\n\n{}// comment\n#[cfg(test)]\nmod tests {{\n{}}}\n",
            "a();\n".repeat(num_code_lines),
            "b();\n".repeat(700)
        )
    }

    #[test]
    fn a_file_starts_with_what_it_is_for() {
        assert_eq!(problems("a.rs", "//! Header.\n"), [""; 0]);
        assert_eq!(problems("a.rs", "\n//! Header.\n"), ["a.rs:1: a file starts with `//!` and what it is for"]);
        assert_eq!(problems("a.py", ""), [""; 0]);
    }

    #[test]
    fn code_has_a_limit_and_comments_and_tests_have_none() {
        assert_eq!(problems("src/a.rs", &file_of(600)), [""; 0]);
        assert_eq!(
            problems("src/a.rs", &file_of(601)),
            ["src/a.rs:1: 601 lines of code, the limit is 600: split by concept"]
        );
        assert_eq!(problems("crates/a/tests/parity/main.rs", &file_of(601)), [""; 0]);
    }

    #[test]
    fn a_long_file_is_warned_of_before_it_fails() {
        let warnings = |num_code_lines| warnings(&Tree::made_up(&[("a.rs", &file_of(num_code_lines))]));
        assert_eq!(warnings(400), []);
        assert_eq!(printed(&warnings(401)), ["a.rs:1: 401 lines of code, more than the advised 400"]);
        assert_eq!(warnings(601), []);
    }

    #[test]
    fn unfinished_code_is_refused() {
        let text = "//! Header.\nfn f() {\n    todo!();\n    dbg!(x); unimplemented!()\n}\n";
        assert_eq!(
            problems("a.rs", text),
            [
                "a.rs:3: `todo!` is left in the code",
                "a.rs:4: `dbg!` is left in the code",
                "a.rs:4: `unimplemented!` is left in the code",
            ]
        );
    }

    #[test]
    fn unfinished_comments_need_an_issue() {
        let text = "//! Header.\n// TODO(#12) a, TODO #3 b, TODO: #4 c\n// TODO: d #5\n// XXX e\n/* FIXME f */\n";
        assert_eq!(
            problems("a.rs", text),
            [
                "a.rs:3: TODO has no issue: write TODO(#123)",
                "a.rs:4: XXX is left in the file",
                "a.rs:5: FIXME is left in the file",
            ]
        );
    }

    #[test]
    fn words_in_strings_quotations_and_longer_words_are_fine() {
        let text = "//! `TODO`, mastodon and `XXX`.\nfn f() {\n    g(\"TODO dbg!(x)\", todos!(x), TODO_LIST);\n}\n";
        assert_eq!(problems("a.rs", text), [""; 0]);
    }
}
