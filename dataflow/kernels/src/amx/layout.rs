//! Sizes: of tiles, of packed panels, and of the blocks of a product.

/// Rows of a tile; also its columns in values of 32 bits, which are pairs of bf16.
pub(super) const TILE: usize = 16;
/// Steps of k that one tile holds.
pub(super) const STEP: usize = 2 * TILE;
/// Rows and columns of C that are summed at a time: two by two tiles.
pub(super) const BLOCK: usize = 2 * TILE;
/// bf16 parts of an `f32`, for which packed tiles have room; products may use fewer.
pub(super) const MAX_PARTS: usize = 3;
/// `f32` places that a packed tile takes.
pub(super) const TILE_WORDS: usize = TILE * TILE;
/// `f32` places that the parts of one step take for 16 rows or columns.
pub(super) const STEP_WORDS: usize = MAX_PARTS * TILE_WORDS;
/// Shortest sum that is worth a tile.
pub(super) const MIN_K: usize = 16;
/// Longest block of k: two sweeps of panels of B, up to 96 KiB each, and the block of A share a second-level cache of 2 MiB.
pub(super) const MAX_KC: usize = 512;
/// Values of a block of A, whose rows meet all panels of B in turn: 576 KiB in parts.
pub(super) const MAX_A: usize = 96 << 10;
/// Panels of B that meet a panel of A in turn.
pub(super) const SWEEP: usize = 3;
/// Products between two turns of what is done for the rows of C.
pub(super) const ROWS_EVERY: usize = 6;
/// Products between two stores that keep the way from the tiles awake.
pub(super) const AWAKE_EVERY: usize = 96;
/// Values of panels of B that are kept for further blocks of A: 12 MiB in parts. More are packed again.
pub(super) const MAX_B: usize = 1 << 21;

/// Products of tiles in a step of two by two tiles (`is_half`: of one by two), of values in so many parts.
pub(super) const fn num_products(parts: usize, is_half: bool) -> usize {
    // Parts i and j, from 0, where i + j is less than their number.
    let pairs = parts * (parts + 1) / 2;
    if is_half { 2 * pairs } else { 4 * pairs }
}

/// Turns in a step of what is done for the rows of C.
pub(super) const fn num_row_turns(parts: usize, is_half: bool) -> usize {
    num_products(parts, is_half).div_ceil(ROWS_EVERY)
}
