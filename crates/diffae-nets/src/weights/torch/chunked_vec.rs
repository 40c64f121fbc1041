//! A vector that grows without moving its elements.

use std::ops::{Index, IndexMut};

/// Binary logarithm of the number of elements per chunk.
const CHUNK_LEN_LOG2: usize = 8;
const CHUNK_LEN: usize = 1 << CHUNK_LEN_LOG2;

/// A vector of many small elements in chunks of equal length.
///
/// A `Vec` has up to twice the room that it needs, and three times as much while it moves. This one never has more
/// than a chunk to spare, so that a hostile file cannot inflate it.
#[derive(Debug)]
pub(super) struct ChunkedVec<T> {
    /// Chunks of elements, all full but the last one.
    chunks: Vec<Vec<T>>,
}

impl<T> ChunkedVec<T> {
    pub(super) fn new() -> Self {
        Self { chunks: Vec::new() }
    }

    /// Appends an element.
    pub(super) fn push(&mut self, element: T) {
        match self.chunks.last_mut() {
            Some(chunk) if chunk.len() < CHUNK_LEN => chunk.push(element),
            _ => {
                let mut chunk = Vec::with_capacity(CHUNK_LEN);
                chunk.push(element);
                self.chunks.push(chunk);
            }
        }
    }

    /// Returns the number of elements.
    pub(super) fn len(&self) -> usize {
        self.chunks.last().map_or(0, |last| ((self.chunks.len() - 1) << CHUNK_LEN_LOG2) + last.len())
    }
}

impl<T> Index<usize> for ChunkedVec<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        &self.chunks[index >> CHUNK_LEN_LOG2][index & (CHUNK_LEN - 1)]
    }
}

impl<T> IndexMut<usize> for ChunkedVec<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        &mut self.chunks[index >> CHUNK_LEN_LOG2][index & (CHUNK_LEN - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_found_across_chunks() {
        let mut elements = ChunkedVec::new();
        for number in 0..=3 * CHUNK_LEN {
            assert_eq!(elements.len(), number);
            elements.push(number);
        }
        assert!((0..elements.len()).all(|index| elements[index] == index));
        elements[CHUNK_LEN] = 7;
        assert_eq!([elements[CHUNK_LEN - 1], elements[CHUNK_LEN], elements[CHUNK_LEN + 1]], [255, 7, 257]);
    }
}
