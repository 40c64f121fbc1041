//! A count with its noun, for messages.

use std::fmt::Display;

/// Formats a count and its noun: `1 tensor`, `2 tensors`.
pub(crate) fn counted<N: Copy + Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    let ending = if count == N::from(1) { "" } else { "s" };
    format!("{count} {noun}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular() {
        assert_eq!([counted(1_usize, "tensor"), counted(0_usize, "tensor")], ["1 tensor", "0 tensors"]);
        assert_eq!(counted(2_u64, "byte"), "2 bytes");
    }
}
