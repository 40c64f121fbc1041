//! Durations in words.

const MINUTE: f64 = 60.;
const HOUR: f64 = 60. * MINUTE;
const DAY: f64 = 24. * HOUR;

/// Formats a duration: `40 s`, `12 min`, `2 h 10 min`, `3.5 days`.
pub(super) fn in_words(secs: f64) -> String {
    match secs {
        secs if secs < 1. => "less than a second".to_owned(),
        secs if secs < 99.5 => format!("{secs:.0} s"),
        secs if secs < 99.5 * MINUTE => format!("{:.0} min", secs / MINUTE),
        secs if secs < 36. * HOUR => {
            let minutes = (secs / MINUTE).round();
            let (hours, minutes) = ((minutes / 60.).floor(), minutes % 60.);
            format!("{hours:.0} h {minutes:.0} min")
        }
        secs if secs < 10. * DAY => format!("{:.1} days", secs / DAY),
        secs => format!("{:.0} days", secs / DAY),
    }
}

/// Formats an estimated duration: `about 12 min`.
pub(super) fn about(secs: f64) -> String {
    if secs < 1. { in_words(secs) } else { format!("about {}", in_words(secs)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_fit_the_duration() {
        let said = [0.2, 40.4, 95., 700., 7_790., 35.99 * HOUR, 3.5 * DAY, 140. * DAY].map(in_words);
        let expected =
            ["less than a second", "40 s", "95 s", "12 min", "2 h 10 min", "35 h 59 min", "3.5 days", "140 days"];
        assert_eq!(said, expected);
        assert_eq!([0.2, 40.].map(about), ["less than a second", "about 40 s"]);
    }
}
