//! A sequence of steps, stopped at the first that fails.

use std::time::{Duration, Instant};

use anyhow::{Error, Result};

/// One step of the gate.
#[derive(Debug)]
pub(super) struct Step<A> {
    /// A short name for the summary.
    pub(super) name: &'static str,
    /// Work of the step.
    pub(super) action: A,
}

/// Outcome of a step that did not fail.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The step was performed, and all is well.
    Passed,
    /// The step was skipped, for this reason.
    Skipped(&'static str),
}

/// Performs the steps in order, reports each on standard output and sums up.
///
/// # Errors
/// The first failure; the steps after it are not performed.
pub(super) fn pass<A>(steps: &[Step<A>], perform: impl FnMut(&A) -> Result<Outcome>) -> Result<()> {
    let started = Instant::now();
    let (summary, failure) = perform_in_order(steps, perform);
    println!("\n==> summary");
    for line in summary {
        println!("{line}");
    }
    println!("{:<8} {}", "total", seconds(started.elapsed()));
    failure.map_or(Ok(()), Err)
}

/// Performs the steps, with one line for each, up to the first failure.
fn perform_in_order<A>(
    steps: &[Step<A>],
    mut perform: impl FnMut(&A) -> Result<Outcome>,
) -> (Vec<String>, Option<Error>) {
    let mut summary = Vec::with_capacity(steps.len());
    let mut failure = None;
    for Step { name, action } in steps {
        if failure.is_some() {
            summary.push(format!("{name:<8} not run"));
            continue;
        }
        println!("\n==> {name}");
        let started = Instant::now();
        let outcome = perform(action);
        let elapsed = seconds(started.elapsed());
        let end = match outcome {
            Ok(Outcome::Passed) => format!("ok in {elapsed}"),
            Ok(Outcome::Skipped(reason)) => format!("skipped: {reason}"),
            Err(error) => {
                failure = Some(error.context(format!("step {name} failed")));
                format!("FAILED after {elapsed}")
            }
        };
        println!("<== {name} {end}");
        summary.push(format!("{name:<8} {end}"));
    }
    (summary, failure)
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    const STEPS: [Step<char>; 3] =
        [Step { name: "one", action: 'a' }, Step { name: "two", action: 'b' }, Step { name: "three", action: 'c' }];

    #[test]
    fn every_step_is_performed_once_in_order() {
        let mut performed = String::new();
        let (summary, failure) = perform_in_order(&STEPS, |action| {
            performed.push(*action);
            Ok(if *action == 'b' { Outcome::Skipped("no such tool") } else { Outcome::Passed })
        });
        assert_eq!(performed, "abc");
        assert!(failure.is_none());
        assert!(summary[0].starts_with("one      ok in "), "{summary:?}");
        assert_eq!(summary[1], "two      skipped: no such tool");
    }

    #[test]
    fn nothing_is_performed_after_a_failure() {
        let mut performed = String::new();
        let (summary, failure) = perform_in_order(&STEPS, |action| {
            performed.push(*action);
            if *action == 'b' { Err(anyhow!("broken")) } else { Ok(Outcome::Passed) }
        });
        assert_eq!(performed, "ab");
        assert_eq!(format!("{:#}", failure.unwrap()), "step two failed: broken");
        assert!(summary[1].starts_with("two      FAILED after "), "{summary:?}");
        assert_eq!(summary[2], "three    not run");
    }
}
