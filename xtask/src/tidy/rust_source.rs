//! Rust source, told apart into code and comments, line by line.
//!
//! This is no parser: it knows comments, strings and character literals, which is what it takes to tell whether a
//! word is code.

/// Placeholder in [`Line::code`] for each character inside a literal. No rule looks for it.
const LITERAL: char = '"';

/// One line of a source file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// Text of the line without its comments; characters inside literals are replaced.
    pub(super) code: String,
    /// Comments of the line, with their slashes.
    pub(super) comment: String,
}

impl Line {
    /// Returns whether something other than comments and white space is on the line.
    pub(super) fn has_code(&self) -> bool {
        !self.code.trim().is_empty()
    }

    /// Returns whether the line holds a comment and nothing else.
    pub(super) fn is_comment(&self) -> bool {
        !self.has_code() && !self.comment.is_empty()
    }
}

/// Splits a source text into lines of code and comments.
pub(super) fn lines(text: &str) -> Vec<Line> {
    let mut scanner = Scanner { rest: text, previous: ' ', lines: vec![Line::default()] };
    while let Some(next) = scanner.rest.chars().next() {
        if scanner.rest.starts_with("//") {
            scanner.take(scanner.rest.find('\n').unwrap_or(scanner.rest.len()), Kind::Comment);
        } else if scanner.rest.starts_with("/*") {
            scanner.take(block_comment_len(scanner.rest), Kind::Comment);
        } else if let Some(len) = literal_len(scanner.rest, scanner.previous) {
            scanner.take(len, Kind::Literal);
        } else {
            scanner.take(next.len_utf8(), Kind::Code);
        }
    }
    scanner.lines
}

/// Returns the number of lines before the module of unit tests; all of them if there is none.
pub(super) fn num_lines_before_tests(lines: &[Line]) -> usize {
    let is_test_module = |&line_idx: &usize| {
        let mut code = lines[line_idx..].iter().map(|line| line.code.trim()).filter(|code| !code.is_empty());
        let after_attribute = code.next().and_then(|code| code.strip_prefix("#[cfg(test)]"));
        let Some(after_attribute) = after_attribute else { return false };
        let item = Some(after_attribute.trim()).into_iter().chain(code).find(|c| !c.is_empty() && !c.starts_with("#["));
        item.is_some_and(|item| words(item).any(|(_, word)| word == "mod") && item.ends_with('{'))
    };
    (0..lines.len()).filter(|&line_idx| lines[line_idx].has_code()).find(is_test_module).unwrap_or(lines.len())
}

/// Returns the words of a text (runs of letters, digits and `_`) with their byte positions.
pub(super) fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut end = 0;
    text.split(|c: char| !is_word_char(c)).filter_map(move |word| {
        let start = text[end..].find(word).map_or(end, |offset| end + offset);
        end = start + word.len();
        (!word.is_empty()).then_some((start, word))
    })
}

#[derive(Clone, Copy)]
enum Kind {
    Code,
    Comment,
    Literal,
}

struct Scanner<'a> {
    rest: &'a str,
    /// Last character taken.
    previous: char,
    lines: Vec<Line>,
}

impl Scanner<'_> {
    /// Moves `len` bytes of the rest to the lines.
    fn take(&mut self, len: usize, kind: Kind) {
        let (taken, rest) = self.rest.split_at(len);
        for c in taken.chars() {
            if c == '\n' {
                self.lines.push(Line::default());
                continue;
            }
            let Some(line) = self.lines.last_mut() else { continue };
            match kind {
                Kind::Code => line.code.push(c),
                Kind::Comment => line.comment.push(c),
                Kind::Literal if c.is_whitespace() => line.code.push(' '),
                Kind::Literal => line.code.push(LITERAL),
            }
        }
        self.previous = taken.chars().next_back().unwrap_or(self.previous);
        self.rest = rest;
    }
}

fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Returns the length of the nested block comment at the start of `text`.
fn block_comment_len(text: &str) -> usize {
    let mut depth = 0usize;
    let mut position = 0;
    loop {
        let rest = &text[position..];
        if rest.starts_with("/*") {
            depth += 1;
            position += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            position += 2;
            if depth == 0 {
                return position;
            }
        } else {
            match rest.chars().next() {
                Some(c) => position += c.len_utf8(),
                None => return text.len(),
            }
        }
    }
}

/// Returns the length of the string or character literal at the start of `text`, its prefix included, if there is one.
fn literal_len(text: &str, previous: char) -> Option<usize> {
    if is_word_char(previous) {
        return None; // `text` starts inside a word, so what looks like a prefix is none
    }
    let raw = |prefix: &str| {
        let body = text.strip_prefix(prefix)?;
        Some(prefix.len() + raw_string_len(body)?)
    };
    if let Some(len) = ["r", "br", "cr"].into_iter().find_map(raw) {
        return Some(len);
    }
    let prefix_len = usize::from(text.starts_with(['b', 'c']));
    let body = &text[prefix_len..];
    let body_len = if body.starts_with('"') { Some(quoted_len(body, '"')) } else { character_len(body) };
    body_len.map(|len| prefix_len + len)
}

/// Returns the length of `#"..."#` at the start of `text`, with any number of `#`.
fn raw_string_len(text: &str) -> Option<usize> {
    let content = text.trim_start_matches('#').strip_prefix('"')?;
    let start = text.len() - content.len();
    let end = format!("\"{}", "#".repeat(start - 1));
    Some(content.find(&end).map_or(text.len(), |len| start + len + end.len()))
}

/// Returns the length of the character literal at the start of `text`; a lifetime is none.
fn character_len(text: &str) -> Option<usize> {
    let mut characters = text.strip_prefix('\'')?.chars();
    let first = characters.next()?;
    (first == '\\' || characters.next() == Some('\'')).then(|| quoted_len(text, '\''))
}

/// Returns the length of a literal between two quotes, with escapes.
fn quoted_len(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (position, c) in text.char_indices().skip(1) {
        if is_escaped {
            is_escaped = false;
        } else if c == '\\' {
            is_escaped = true;
        } else if c == quote {
            return position + c.len_utf8();
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> Vec<String> {
        lines(text).into_iter().map(|line| line.code).collect()
    }

    /// Returns the code of one line, with a mark for each run of literal characters.
    fn code_with_marks(text: &str) -> String {
        let code = code(text).join("\n");
        let mut marked = String::new();
        for c in code.chars() {
            match c {
                LITERAL if marked.ends_with('§') => {}
                LITERAL => marked.push('§'),
                _ => marked.push(c),
            }
        }
        marked
    }

    #[test]
    fn comments_are_set_apart() {
        let lines = lines("let x = 1; // unsafe\n/* a /* b */ c\nd */ let y;\n//! doc");
        let pairs: Vec<_> = lines.iter().map(|line| (line.code.as_str(), line.comment.as_str())).collect();
        assert_eq!(pairs, [("let x = 1; ", "// unsafe"), ("", "/* a /* b */ c"), (" let y;", "d */"), ("", "//! doc")]);
        assert!(lines[1].is_comment() && !lines[0].is_comment());
    }

    #[test]
    fn literals_are_masked() {
        for (text, expected) in [
            (r#"f("unsafe // no", x)"#, "f(§ § §, x)"),
            (r#"f("a\"unsafe", x)"#, "f(§, x)"),
            (r#"f("a\\", unsafe_name)"#, "f(§, unsafe_name)"),
            ("f(r\"\\\", x)", "f(§, x)"),
            ("f(br##\"a\"# unsafe\"##, x)", "f(§ §, x)"),
            ("f(c\"a\", b\"b\", x)", "f(§, §, x)"),
            (r#"f('\'', b'\n', '\u{1F600}', '\\', '\"', x)"#, "f(§, §, §, §, §, x)"),
            ("f('\"', '/', x)", "f(§, §, x)"),
            ("fn f<'a>(x: &'a str, r#type: B<'static>)", "fn f<'a>(x: &'a str, r#type: B<'static>)"),
            ("bar(\"x\")", "bar(§)"),
        ] {
            assert_eq!(code_with_marks(text), expected, "{text}");
        }
    }

    #[test]
    fn a_string_over_several_lines_keeps_its_lines() {
        let lines = lines("let x = \"a\n\n  // b\n\";\ny");
        assert_eq!(lines.len(), 5);
        assert!(lines[1].code.is_empty() && lines[2].has_code() && lines[2].comment.is_empty());
        assert_eq!(lines[4].code, "y");
    }

    #[test]
    fn an_open_literal_or_comment_ends_with_the_file() {
        assert_eq!(code("let x = \"abc").len(), 1);
        assert_eq!(code("let x = r#\"abc\"\n").len(), 2);
        assert_eq!(code("/* abc\n/* */").len(), 2);
    }

    #[test]
    fn unit_tests_start_at_their_attribute() {
        for (text, expected) in [
            ("fn f() {}\n\n#[cfg(test)]\nmod tests {\n}\n", 2),
            ("fn f() {}\n#[cfg(test)] // reason\n#[expect(lint)]\npub(crate) mod tests {\n}\n", 1),
            ("#[cfg(test)]\nuse a::b;\nfn f() {}\n", 4),
            ("#[cfg(test)]\nmod tests;\nfn f() {}\n", 4),
            ("#[cfg(test)]\nfn modulo() {\n}\n", 4),
            ("// #[cfg(test)]\nmod tests {}\n", 3),
        ] {
            assert_eq!(num_lines_before_tests(&lines(text)), expected, "{text}");
        }
    }

    #[test]
    fn words_have_their_positions() {
        assert_eq!(
            words("unsafe_code, unsafe{x}").collect::<Vec<_>>(),
            [(0, "unsafe_code"), (13, "unsafe"), (20, "x")]
        );
        assert_eq!(words(" é.a__ a").collect::<Vec<_>>(), [(1, "é"), (4, "a__"), (8, "a")]);
    }
}
