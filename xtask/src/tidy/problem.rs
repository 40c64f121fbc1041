//! Problems that rules report.

use std::fmt;

/// A place that breaks a rule. Problems sort by place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Problem {
    /// The file, relative to the repository, with forward slashes.
    path: String,
    /// The line, from 1; 1 for a problem of the whole file.
    line: usize,
    /// Description of what is wrong, and of what is right where that is not plain.
    message: String,
}

impl Problem {
    /// Reports a problem of a line, counted from 1.
    pub(super) fn at(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, message: message.into() }
    }

    /// Reports a problem of a whole file.
    pub(super) fn of_file(path: &str, message: impl Into<String>) -> Self {
        Self::at(path, 1, message)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// Formats problems as they are printed, for comparison.
#[cfg(test)]
pub(super) fn printed(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_sort_by_file_then_by_line_as_a_number() {
        let mut problems = [Problem::at("b", 1, ""), Problem::at("a", 10, ""), Problem::at("a", 9, "")];
        problems.sort();
        assert_eq!(printed(&problems), ["a:9: ", "a:10: ", "b:1: "]);
    }
}
