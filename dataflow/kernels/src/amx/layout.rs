//! Sizes of tiles, of packed panels, and of the blocks of a product.

/// Rows of a tile, and its columns in values of 32 bits, each a pair of bf16.
pub(super) const TILE: usize = 16;
/// Steps of k that one tile holds.
pub(super) const STEP: usize = 2 * TILE;
/// Rows and columns of C that are summed at a time: two by two tiles.
pub(super) const BLOCK: usize = 2 * TILE;
/// bf16 parts of an `f32`, for which packed tiles have room; products may use fewer.
pub(super) const MAX_PARTS: usize = 3;
/// `f32` places of a packed tile.
pub(super) const TILE_WORDS: usize = TILE * TILE;
/// `f32` places of the parts of one step of k, for 16 rows or columns.
pub(super) const STEP_WORDS: usize = MAX_PARTS * TILE_WORDS;
/// The shortest k that is worth a tile.
pub(super) const MIN_K: usize = 16;
/// The longest block of k: two sweeps of panels of B, up to 96 KiB each, and the block of A share a
/// second-level cache of 2 MiB.
pub(super) const MAX_KC: usize = 512;
/// Values of a block of A, which is multiplied by all panels of B in turn: 576 KiB in parts.
pub(super) const MAX_A: usize = 96 << 10;
/// Panels of B that each panel of A is multiplied by in turn: the more, the fewer tiles of A are packed in
/// a step.
pub(super) const SWEEP: usize = 3;
/// TDPBF16PS from one slot of the epilogue to the next.
pub(super) const ROWS_EVERY: usize = 6;
/// TDPBF16PS from one dummy TILESTORED to the next. Measured on Sapphire Rapids or later: a TILESTORED
/// takes about 260 ns, the time of 60 TDPBF16PS, if none was issued during the last 130 TDPBF16PS or so.
pub(super) const DUMMY_STORE_EVERY: usize = 96;
/// Values of B of which packed panels are kept for further blocks of A: 12 MiB in parts. A larger B is
/// packed again.
pub(super) const MAX_B: usize = 1 << 21;

/// TDPBF16PS in a step of two by two tiles (`is_half`: of one by two) with this many bf16 parts a value.
pub(super) const fn num_products(parts: usize, is_half: bool) -> usize {
    // Parts i and j, from 0, with i + j < parts.
    let pairs = parts * (parts + 1) / 2;
    if is_half { 2 * pairs } else { 4 * pairs }
}

/// Slots of the epilogue in a step.
pub(super) const fn num_row_slots(parts: usize, is_half: bool) -> usize {
    num_products(parts, is_half).div_ceil(ROWS_EVERY)
}
