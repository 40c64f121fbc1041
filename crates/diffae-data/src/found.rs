//! The result of a search.

use crate::left_out::LeftOut;
use crate::source::Item;

/// Pictures that were found, and files that were left out.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) items: Vec<Item>,
    pub(crate) left_out: LeftOut,
}

impl From<Vec<Item>> for Found {
    fn from(items: Vec<Item>) -> Self {
        Self { items, left_out: LeftOut::default() }
    }
}
