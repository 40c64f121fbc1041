//! Ranking measures of binary classifiers: AUROC and average precision.

use crate::error::{Error, Result};

/// Area under the receiver operating characteristic: the chance that something present scores higher than something
/// absent, ties counting half.
///
/// # Errors
/// [`Error::OneClass`] unless both classes occur; [`Error::Lengths`] if there are not as many labels as scores;
/// [`Error::NotFinite`] if a score is NaN.
pub fn auroc(scores: &[f64], present: &[bool]) -> Result<f64> {
    let groups = by_score(scores, present)?;
    let [all_present, all_absent] = [total(&groups, |g| g.present), total(&groups, |g| g.absent)];
    let (mut absent_above, mut wins) = (0., 0.);
    for Group { present, absent } in &groups {
        wins += absent * present * 0.5 + present * (all_absent - absent_above - absent);
        absent_above += absent;
    }
    Ok(wins / (all_present * all_absent))
}

/// Average precision: `sum over thresholds of (R_n - R_(n-1)) P_n`, precision P and recall R from the highest score down,
/// equal scores together.
///
/// # Errors
/// As [`auroc`].
pub fn average_precision(scores: &[f64], present: &[bool]) -> Result<f64> {
    let groups = by_score(scores, present)?;
    let all = total(&groups, |g| g.present);
    let (mut found, mut seen, mut sum) = (0., 0., 0.);
    for Group { present, absent } in &groups {
        found += present;
        seen += present + absent;
        sum += present / all * (found / seen);
    }
    Ok(sum)
}

/// Items with equal scores.
struct Group {
    present: f64,
    absent: f64,
}

fn total(groups: &[Group], of: impl Fn(&Group) -> f64) -> f64 {
    groups.iter().map(of).sum()
}

/// Groups items by score, from the highest down.
fn by_score(scores: &[f64], present: &[bool]) -> Result<Vec<Group>> {
    if scores.len() != present.len() {
        return Err(Error::Lengths { scores: scores.len(), labels: present.len() });
    }
    if scores.iter().any(|score| score.is_nan()) {
        return Err(Error::NotFinite { batch: "scores" });
    }
    if !present.contains(&true) || !present.contains(&false) {
        return Err(Error::OneClass);
    }
    let mut order: Vec<(f64, bool)> = scores.iter().copied().zip(present.iter().copied()).collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0));
    let of_one_score = |some: &[(f64, bool)]| {
        let present = some.iter().filter(|(_, present)| *present).count() as f64;
        Group { present, absent: some.len() as f64 - present }
    };
    Ok(order.chunk_by(|a, b| a.0 >= b.0 && b.0 >= a.0).map(of_one_score).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perfect_reversed_and_constant_scores() {
        let present = [true, true, false, false];
        assert!((auroc(&[4., 3., 2., 1.], &present).unwrap() - 1.).abs() < 1e-12);
        assert!(auroc(&[1., 2., 3., 4.], &present).unwrap().abs() < 1e-12);
        assert!((auroc(&[7.; 4], &present).unwrap() - 0.5).abs() < 1e-12);
        assert!((average_precision(&[7.; 4], &present).unwrap() - 0.5).abs() < 1e-12);
    }

    #[test]
    fn what_cannot_be_ordered_is_an_error() {
        assert!(matches!(auroc(&[1., 2.], &[true, true]), Err(Error::OneClass)));
        assert!(matches!(auroc(&[1., 2.], &[true]), Err(Error::Lengths { .. })));
        assert!(matches!(average_precision(&[f64::NAN, 2.], &[true, false]), Err(Error::NotFinite { .. })));
    }
}
