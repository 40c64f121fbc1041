//! Links and anchors of a Markdown text, as GitHub understands them.

use std::collections::{BTreeMap, BTreeSet};

/// A link, an image, or the address of a reference or an HTML element.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Line of the link, from 1.
    pub(super) line: usize,
    /// Target of the link, without title and angle brackets.
    pub(super) target: String,
}

/// Returns every link outside code.
pub(super) fn links(text: &str) -> Vec<Link> {
    let mut links = Vec::new();
    for (line, prose) in prose_lines(text).map(|(line_idx, source)| (line_idx + 1, without_code(source))) {
        let targets = inline_targets(&prose).into_iter().chain(reference_target(&prose));
        let targets = targets.chain(html_values(&prose, &["href", "src"]));
        links.extend(targets.map(|target| Link { line, target: target.to_owned() }));
    }
    links
}

/// Returns every anchor that a fragment can name: headings and HTML ids.
pub(super) fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let mut num_uses = BTreeMap::new();
    for (_, source) in prose_lines(text) {
        anchors.extend(html_values(&without_code(source), &["id", "name"]).into_iter().map(ToOwned::to_owned));
        if let Some(slug) = heading(source).map(slug) {
            let num_earlier = num_uses.entry(slug.clone()).or_insert(0usize);
            anchors.insert(if *num_earlier == 0 { slug } else { format!("{slug}-{num_earlier}") });
            *num_earlier += 1;
        }
    }
    anchors
}

/// Returns the lines outside fenced code blocks, with their indices.
fn prose_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut open_fence: Option<&str> = None;
    text.lines().enumerate().filter(move |(_, line)| {
        let line = line.trim();
        let after_fence = line.trim_start_matches(if line.starts_with('~') { '~' } else { '`' });
        let fence = &line[..line.len() - after_fence.len()];
        match open_fence {
            None if fence.len() >= 3 && !after_fence.contains('`') => {
                open_fence = Some(fence);
                false
            }
            None => true,
            Some(open) => {
                if after_fence.is_empty() && fence.starts_with(open) {
                    open_fence = None;
                }
                false
            }
        }
    })
}

/// Removes the code spans from a line.
fn without_code(line: &str) -> String {
    let mut prose = String::new();
    let mut rest = line;
    while let Some(start) = rest.find('`') {
        let (before, code) = rest.split_at(start);
        prose.push_str(before);
        let content = code.trim_start_matches('`');
        let ticks = &code[..code.len() - content.len()];
        rest = match end_of_code(content, ticks.len()) {
            Some(end) => &content[end..],
            None => content, // the backticks stand for themselves
        };
    }
    prose + rest
}

/// Returns the end of a code span that was opened with `num_ticks` backticks: after the next run of just as many.
fn end_of_code(content: &str, num_ticks: usize) -> Option<usize> {
    let mut position = 0;
    loop {
        position += content[position..].find('`')?;
        let run = content.len() - position - content[position..].trim_start_matches('`').len();
        position += run;
        if run == num_ticks {
            return Some(position);
        }
    }
}

/// Returns the targets of `[text](target "title")` and of images.
fn inline_targets(line: &str) -> Vec<&str> {
    let after_openings = line.match_indices("](").map(|(position, opening)| &line[position + opening.len()..]);
    after_openings.filter_map(|after| target(&after[..closing_parenthesis(after)?])).collect()
}

/// Returns the target of `[label]: target "title"`; a footnote has none.
fn reference_target(line: &str) -> Option<&str> {
    let (label, definition) = line.trim_start().strip_prefix('[')?.split_once("]:")?;
    if label.starts_with('^') || label.contains(']') { None } else { target(definition) }
}

/// Returns a target without title and angle brackets.
fn target(text: &str) -> Option<&str> {
    let text = text.trim();
    match text.strip_prefix('<') {
        Some(bracketed) => bracketed.split('>').next(),
        None => text.split_whitespace().next(),
    }
}

fn closing_parenthesis(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (position, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth == 0 => return Some(position),
            ')' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Returns the values of ` name="value"` for these names.
fn html_values<'a>(line: &'a str, names: &[&str]) -> Vec<&'a str> {
    let values = names.iter().flat_map(|name| {
        let opening = format!(" {name}=\"");
        let starts: Vec<_> = line.match_indices(&opening).map(|(position, _)| position + opening.len()).collect();
        starts.into_iter().filter_map(|start| line[start..].split_once('"').map(|(value, _)| value))
    });
    values.collect()
}

/// Returns the text of an ATX heading.
fn heading(line: &str) -> Option<&str> {
    let text = line.trim_start_matches('#');
    let level = line.len() - text.len();
    ((1..=6).contains(&level) && text.starts_with(' ')).then(|| text.trim().trim_end_matches('#').trim_end())
}

/// Returns the anchor that GitHub derives from a heading: lower case, blanks as `-`, other punctuation dropped.
fn slug(heading: &str) -> String {
    let mut text = heading.to_owned();
    while let Some(start) = text.find("](") {
        let end = closing_parenthesis(&text[start + 2..]).map_or(text.len(), |end| start + 2 + end + 1);
        text.replace_range(start..end, "");
    }
    let characters = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    characters.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(text: &str) -> Vec<String> {
        links(text).into_iter().map(|link| format!("{}:{}", link.line, link.target)).collect()
    }

    #[test]
    fn every_kind_of_link_is_found() {
        let text = "[a](b.md), ![c](d.png \"title\")\n\n[e]: f.md#g 'title'\n[h](<i j.md>) [k](l_(m).md)\n\
            <img alt=\"\" src=\"n.svg\"> <a href=\"o.md\">[![p](q.svg)](r.md)</a>\n[^1]: no link\n";
        assert_eq!(
            targets(text),
            ["1:b.md", "1:d.png", "3:f.md#g", "4:i j.md", "4:l_(m).md", "5:q.svg", "5:r.md", "5:o.md", "5:n.svg",]
        );
    }

    #[test]
    fn code_holds_no_links() {
        let text = "`[a](b)` and ``[c](`d`)``, [e](f)\n```md\n[g](h)\n~~~\n```\n~~~~\n[i](j)\n~~~\n~~~~\n`[k](l)\n";
        assert_eq!(targets(text), ["1:f", "10:l"]);
    }

    #[test]
    fn headings_and_ids_are_anchors() {
        let text = "# The `x_T` code: [why?](a.md)\n## Steps & sizes ##\n## Steps & sizes\n```\n# no\n```\n\
            <a id=\"here\"></a>\n#no\n####### no\n";
        let expected = ["here", "steps--sizes", "steps--sizes-1", "the-x_t-code-why"];
        assert_eq!(anchors(text).iter().map(String::as_str).collect::<Vec<_>>(), expected);
    }
}
