//! `masks`: masks and scores of a fixed panel of samples.

use crate::logs::row::table;

table! {
    "masks": "masks and scores of a fixed panel of samples", is_truncated: true;
    /// A mask of one panel sample.
    pub struct MaskRow {
        /// The sample's id within its dataset.
        sample_id: i64,
        /// Its label, if known.
        label: Option<i32>,
        /// Version of the masking network, 0 before its first update.
        policy_version: i64,
        /// Share of patches masked.
        mask_ratio: f32,
        /// True where the patch is masked \[num_patches], row by row.
        mask: Vec<bool>,
        /// Mask probabilities \[num_patches]; none for random masks.
        score: Option<Vec<f32>>,
        /// Reconstruction loss \[num_patches], if it was computed.
        patch_loss: Option<Vec<f32>>,
        /// Patches down.
        grid_h: i16,
        /// Patches across.
        grid_w: i16,
    }
}
