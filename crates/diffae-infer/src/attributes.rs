//! Names of attributes.

/// The attributes of `CelebA` and `CelebAMask-HQ` (Liu et al. 2015, arXiv:1411.7766), in the order of their label
/// files, which is that of the released classifier's rows.
pub const CELEBA_ATTRIBUTES: [&str; 40] = [
    "5_o_Clock_Shadow",
    "Arched_Eyebrows",
    "Attractive",
    "Bags_Under_Eyes",
    "Bald",
    "Bangs",
    "Big_Lips",
    "Big_Nose",
    "Black_Hair",
    "Blond_Hair",
    "Blurry",
    "Brown_Hair",
    "Bushy_Eyebrows",
    "Chubby",
    "Double_Chin",
    "Eyeglasses",
    "Goatee",
    "Gray_Hair",
    "Heavy_Makeup",
    "High_Cheekbones",
    "Male",
    "Mouth_Slightly_Open",
    "Mustache",
    "Narrow_Eyes",
    "No_Beard",
    "Oval_Face",
    "Pale_Skin",
    "Pointy_Nose",
    "Receding_Hairline",
    "Rosy_Cheeks",
    "Sideburns",
    "Smiling",
    "Straight_Hair",
    "Wavy_Hair",
    "Wearing_Earrings",
    "Wearing_Hat",
    "Wearing_Lipstick",
    "Wearing_Necklace",
    "Wearing_Necktie",
    "Young",
];

/// Returns names for a classifier without any: `CelebA`'s if it has as many rows, else `attribute_0`, `attribute_1`, ..
pub(crate) fn default_names(num_attributes: usize) -> Vec<String> {
    if num_attributes == CELEBA_ATTRIBUTES.len() {
        return CELEBA_ATTRIBUTES.iter().map(|&name| name.to_owned()).collect();
    }
    (0..num_attributes).map(|idx| format!("attribute_{idx}")).collect()
}

/// Reads names: one per line, all on one line, or a `CelebA` label file (whose second line names the columns).
#[must_use]
pub fn names_from_text(text: &str) -> Vec<String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let (first, second) = (lines.next().unwrap_or_default(), lines.next());
    match second {
        Some(header) if first.parse::<u64>().is_ok() => words(header),
        None => words(first),
        Some(second) => [first, second].into_iter().chain(lines).map(str::to_owned).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_from_lines_a_row_or_a_label_file() {
        let expected = ["Smiling", "Young"];
        assert_eq!(names_from_text("Smiling\n\nYoung\n"), expected);
        assert_eq!(names_from_text("Smiling Young"), expected);
        assert_eq!(names_from_text("2\nSmiling Young\n000001.jpg 1 -1\n"), expected);
    }

    #[test]
    fn forty_rows_are_celeba() {
        assert_eq!(default_names(40)[31], "Smiling");
        assert_eq!(default_names(2), ["attribute_0", "attribute_1"]);
    }
}
