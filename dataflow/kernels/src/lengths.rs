//! Checks of the lengths of slices.

/// The number of rows of length `n` in a matrix of `len` values. Panics, naming `what`, if they are not
/// whole.
pub(super) fn num_rows(len: usize, n: usize, what: &str) -> usize {
    assert!(n > 0 && len.is_multiple_of(n), "{what}: {len} values are no rows of {n}");
    len / n
}

/// Panics, naming `what`, if two lengths differ.
pub(super) fn same_len(a: usize, b: usize, what: &str) {
    assert!(a == b, "{what}: lengths differ: {a} and {b}");
}
