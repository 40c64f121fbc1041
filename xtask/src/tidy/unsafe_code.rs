//! Rules for `unsafe`: the files that may contain it, and the reason above it.

use super::problem::Problem;
use super::rust_source::{self, Line};
use super::tree::{RustFile, Tree};

/// Folder of the kernels, which index memory that the compiler cannot see the bounds of.
const KERNELS: &str = "crates/diffae-kernels/src/cpu/";
/// File that reads weights through a memory map, which another process could change.
const MAPPED_FILE: &str = "crates/diffae-nets/src/weights/torch/mapped_file.rs";
/// File that opens a database of pictures through a memory map.
const LMDB: &str = "crates/diffae-data/src/lmdb.rs";
/// Folder of what runs on cards.
const CARDS: &str = "crates/diffae-kernels/src/cuda/";
/// Start of the files that call NCCL.
const NCCL: &str = "crates/diffae-train/src/collective/nccl";
/// File that sets options of the allocator.
const ALLOCATOR: &str = "crates/diffae-cli/src/allocator.rs";
/// Start of a reason.
const REASON: &str = "SAFETY:";

/// Checks all rules of this file.
pub(super) fn check(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for RustFile { path, lines, .. } in tree.rust_files() {
        let is_allowed = [KERNELS, CARDS, NCCL].iter().any(|it| path.starts_with(it))
            || [MAPPED_FILE, LMDB, ALLOCATOR].contains(&path);
        for (line_idx, line) in lines.iter().enumerate() {
            for (start, _) in rust_source::words(&line.code).filter(|&(_, word)| word == "unsafe") {
                let after = &line.code[start + "unsafe".len()..];
                if !is_allowed {
                    let message = format!(
                        "`unsafe` stands only in {KERNELS}, {MAPPED_FILE}, {LMDB}, {CARDS}, {ALLOCATOR} and {NCCL}"
                    );
                    problems.push(Problem::at(path, line_idx + 1, message));
                } else if takes_responsibility(after, &lines[line_idx + 1..]) && !has_reason(&lines[..=line_idx]) {
                    let message = format!("no `// {REASON}` line above this use of `unsafe`");
                    problems.push(Problem::at(path, line_idx + 1, message));
                }
            }
        }
    }
    problems
}

/// Returns whether the keyword opens a block or an `impl`, where the author vouches for something; an `unsafe fn` or a
/// function type passes the duty on to the caller.
fn takes_responsibility(after: &str, following: &[Line]) -> bool {
    let following = following.iter().map(|line| line.code.trim());
    let next = [after.trim()].into_iter().chain(following).find(|code| !code.is_empty()).unwrap_or_default();
    next.starts_with('{') || rust_source::words(next).next() == Some((0, "impl"))
}

/// Returns whether the statement that ends `lines` has a reason above it, possibly with attributes in between.
fn has_reason(lines: &[Line]) -> bool {
    let Some((last, above)) = lines.split_last() else { return false };
    if last.comment.contains(REASON) {
        return true;
    }
    for line in above.iter().rev() {
        let code = line.code.trim();
        let is_blank = code.is_empty() && line.comment.is_empty();
        let is_attribute = code.starts_with("#[") && code.ends_with(']');
        if is_blank || (code.ends_with([';', '{', '}', ',']) && !is_attribute) {
            return false;
        }
        if line.is_comment() && line.comment.contains(REASON) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::problem::printed;

    const KERNEL: &str = "crates/diffae-kernels/src/cpu/gemm.rs";

    fn problem_lines(path: &str, text: &str) -> Vec<usize> {
        let problems = printed(&check(&Tree::made_up(&[(path, text)])));
        let line = |problem: &String| problem.split(':').nth(1).unwrap().parse().unwrap();
        problems.iter().map(line).collect()
    }

    #[test]
    fn the_keyword_stands_in_kernels_and_the_mapped_file_only() {
        let text = "// SAFETY: x\nunsafe { f() }\n";
        for path in [KERNEL, MAPPED_FILE] {
            assert_eq!(problem_lines(path, text), [0; 0], "{path}");
        }
        for path in ["crates/diffae-kernels/src/conv2d.rs", "crates/diffae-nets/src/weights/mapped_file/a.rs", "a.rs"] {
            assert_eq!(problem_lines(path, text), [2], "{path}");
        }
    }

    #[test]
    fn comments_strings_and_lint_names_are_not_the_keyword() {
        let text = "// unsafe\n#![deny(unsafe_code)]\nlet x = \"unsafe {\"; /* unsafe */\n";
        assert_eq!(problem_lines("a.rs", text), [0; 0]);
    }

    #[test]
    fn a_block_needs_a_reason_right_above_its_statement() {
        for text in [
            "// SAFETY: the loop ends before\n// the row does.\nunsafe { f() }\n",
            "unsafe { f() } // SAFETY: in bounds.\n",
            "// SAFETY: in bounds.\n#[expect(lint, reason = \"x\")]\nlet x = unsafe { f() };\n",
            "// SAFETY: in bounds.\nlet x =\n    unsafe { f() };\n",
            "// SAFETY: no interior pointers.\nunsafe impl Send for A {}\n",
            "g(\n    a,\n    // SAFETY: in bounds.\n    unsafe { f() },\n);\n",
        ] {
            assert_eq!(problem_lines(KERNEL, text), [0; 0], "{text}");
        }
        for (text, line) in [
            ("unsafe { f() }\n", 1),
            ("// Fast.\nunsafe { f() }\n", 2),
            ("// SAFETY: far away.\n\nunsafe { f() }\n", 3),
            ("// SAFETY: for g.\nunsafe { g() };\nunsafe { f() };\n", 3),
            ("match x {\n    // SAFETY: for g.\n    0 => unsafe { g() },\n    _ => unsafe { f() },\n}\n", 4),
            ("unsafe\n{\n    f();\n}\n", 1),
            ("unsafe impl Send for A {}\n", 1),
        ] {
            assert_eq!(problem_lines(KERNEL, text), [line], "{text}");
        }
    }

    #[test]
    fn declaring_an_unsafe_function_needs_no_reason() {
        let text = "unsafe fn f(g: unsafe fn(f32)) {\n}\npub unsafe extern \"C\" fn h();\n";
        assert_eq!(problem_lines(KERNEL, text), [0; 0]);
    }
}
