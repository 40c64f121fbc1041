//! Names of attributes, which commands look up without regard to their spelling.

/// Returns whether two names are of the same attribute, without regard to case and to separators of words: spaces,
/// underscores and hyphens.
#[must_use]
pub fn is_same_attribute(one: &str, other: &str) -> bool {
    let plain = |name: &str| name.replace([' ', '-'], "_").to_ascii_lowercase();
    plain(one) == plain(other)
}

/// Finds the first two names of one attribute; returns their indices.
pub(crate) fn same_attributes(names: &[String]) -> Option<[usize; 2]> {
    names.iter().enumerate().find_map(|(idx, name)| {
        let before = names.iter().take(idx).position(|other| is_same_attribute(other, name))?;
        Some([before, idx])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_and_separators_of_words_make_no_other_attribute() {
        for (one, other) in [("Red", "red"), ("Blond Hair", "Blond_Hair"), ("blond-hair", "Blond Hair")] {
            assert!(is_same_attribute(one, other));
            let names = ["A", one, "B", other].map(str::to_owned);
            assert_eq!(same_attributes(&names), Some([1, 3]));
        }
        assert!(!is_same_attribute("Red", "Red.1") && !is_same_attribute("BlondHair", "Blond Hair"));
        assert_eq!(same_attributes(&["Red".to_owned(), "Reds".to_owned()]), None);
    }
}
