//! What is known of all masks so far, as a part of the checkpoint: logs of a resumed run are those of a straight one.

use std::collections::BTreeMap;

use mlomae_model::engine::TokenOrder;
use mlomae_storage::escape::shortened;
use serde::{Deserialize, Serialize};

use super::masks::MaskStatistics;
use super::saturation::SaturationWatch;

/// Samples whose last mask is remembered: the first that are seen. So the memory is bounded whatever the size of the
/// data set, and the same samples are compared over the whole run.
pub const MAX_REMEMBERED: usize = 1024;

/// Characters of a refused mask that a message repeats.
const MAX_SHOWN: usize = 40;

/// The last masks of the first [`MAX_REMEMBERED`] samples, a bit a patch.
#[derive(Debug, Clone, Default, PartialEq)]
struct LastMasks(BTreeMap<i64, Vec<u64>>);

impl LastMasks {
    /// Remembers the mask of a sample; the number of patches that differ from its last one, if it was remembered.
    fn replace(&mut self, id: i64, mask: Vec<u64>) -> Option<u32> {
        let is_full = self.0.len() >= MAX_REMEMBERED;
        match self.0.get_mut(&id) {
            Some(last) => {
                let num_changed = last.iter().zip(&mask).map(|(a, b)| (a ^ b).count_ones()).sum();
                *last = mask;
                Some(num_changed)
            }
            None => {
                if !is_full {
                    self.0.insert(id, mask);
                }
                None
            }
        }
    }
}

/// How a batch's masks differ from the last ones of the same samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MaskChange {
    num_changed: usize,
    num_compared: usize,
}

impl MaskChange {
    /// Share of patches that changed between masked and visible; none if no sample of the batch was remembered.
    pub(crate) fn share(self) -> Option<f64> {
        (self.num_compared > 0).then(|| self.num_changed as f64 / self.num_compared as f64)
    }
}

/// Everything that the logs say of masks over more than one step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MaskHistory {
    pub(crate) statistics: MaskStatistics,
    pub(crate) saturation: SaturationWatch,
    last: LastMasks,
}

/// The form of a [`MaskHistory`] in `state.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object with coverage, saturated_steps and last_masks")]
struct Written {
    /// Running share of images in which each position is masked, \[L].
    coverage: Vec<f64>,
    /// Steps in a row whose scores were saturated.
    saturated_steps: u32,
    /// Last masks by sample: words of 64 patches in hexadecimal, 16 digits each, patch 0 in the lowest bit.
    last_masks: BTreeMap<i64, String>,
}

impl MaskHistory {
    /// Takes the masks of one more batch.
    pub(crate) fn add(&mut self, ids: &[i64], order: &TokenOrder) -> MaskChange {
        let mut change = MaskChange::default();
        for (image, id) in ids.iter().enumerate() {
            let masked = |patch: usize| order.is_masked(image * order.num_patches + patch);
            let mask: Vec<bool> = (0..order.num_patches).map(masked).collect();
            self.statistics.add_mask(&mask);
            let words = mask.chunks(64).map(|word| {
                word.iter().enumerate().fold(0, |bits, (patch, masked)| bits | u64::from(*masked) << patch)
            });
            if let Some(num_changed) = self.last.replace(*id, words.collect()) {
                change.num_changed += num_changed as usize;
                change.num_compared += mask.len();
            }
        }
        change
    }

    /// Its form in `state.json`.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let hex = |words: &Vec<u64>| words.iter().map(|word| format!("{word:016x}")).collect::<String>();
        let written = Written {
            coverage: self.statistics.coverage_by_position().to_vec(),
            saturated_steps: self.saturation.num_steps(),
            last_masks: self.last.0.iter().map(|(id, words)| (*id, hex(words))).collect(),
        };
        serde_json::to_value(written).unwrap_or_default()
    }

    /// From its form in `state.json`, for images of `num_patches` patches.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn from_json(value: &serde_json::Value, num_patches: usize) -> Result<Self, String> {
        let written: Written = serde_json::from_value(value.clone()).map_err(|error| error.to_string())?;
        let num_positions = written.coverage.len();
        let is_empty = num_positions == 0 && written.last_masks.is_empty();
        if num_positions != num_patches && !is_empty {
            return Err(format!("coverage has {num_positions} positions, not {num_patches}"));
        }
        if written.coverage.iter().any(|share| !(0.0..=1.0).contains(share)) {
            return Err("coverage is not a share".to_owned());
        }
        if written.last_masks.len() > MAX_REMEMBERED {
            return Err(format!("{} masks are remembered, more than {MAX_REMEMBERED}", written.last_masks.len()));
        }
        let words = |(id, text): (i64, String)| {
            let is_whole = text.len() == 16 * num_patches.div_ceil(64) && text.is_ascii();
            let digits = |place: usize| u64::from_str_radix(text.get(16 * place..16 * (place + 1))?, 16).ok();
            let words = (0..num_patches.div_ceil(64)).map(digits).collect::<Option<Vec<_>>>();
            let beyond = match num_patches % 64 {
                0 => 0,
                num_used => u64::MAX << num_used,
            };
            let fits = |words: &Vec<u64>| is_whole && words.last().is_none_or(|last| last & beyond == 0);
            let refused =
                || format!("no mask of {num_patches} patches for sample {id}: {:?}", shortened(&text, MAX_SHOWN));
            words.filter(fits).map(|words| (id, words)).ok_or_else(refused)
        };
        Ok(Self {
            statistics: MaskStatistics::restored(written.coverage),
            saturation: SaturationWatch::restored(written.saturated_steps),
            last: LastMasks(written.last_masks.into_iter().map(words).collect::<Result<_, _>>()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use mlomae_model::masking::order::order_by_keys;

    use super::*;

    fn order(seed: usize, num_images: usize, num_patches: usize) -> std::sync::Arc<TokenOrder> {
        let keys: Vec<f32> = (0..num_images * num_patches).map(|i| ((i * 7919 + seed * 31) % 1013) as f32).collect();
        order_by_keys(&keys, num_patches, num_patches / 4)
    }

    #[test]
    fn change_is_counted_over_remembered_samples() {
        let mut history = MaskHistory::default();
        let (one, other) = (order(1, 2, 70), order(2, 2, 70));
        assert_eq!(history.add(&[5, 6], &one).share(), None);
        assert_eq!(history.add(&[5, 6], &one).share(), Some(0.0));
        let differ = (0..140).filter(|i| one.is_masked(*i) != other.is_masked(*i)).count();
        assert!(differ > 0);
        assert_eq!(history.add(&[5, 6], &other).share(), Some(differ as f64 / 140.0));
    }

    #[test]
    fn memory_is_bounded_and_keeps_the_first_samples() {
        let mut history = MaskHistory::default();
        let masks = order(1, 1, 16);
        for id in 0..5000 {
            history.add(&[id], &masks);
        }
        assert_eq!(history.last.0.len(), MAX_REMEMBERED);
        assert_eq!((history.add(&[3], &masks).share(), history.add(&[4999], &masks).share()), (Some(0.0), None));
    }

    #[test]
    fn a_history_comes_back_from_its_written_form() {
        let mut history = MaskHistory::default();
        for step in 0..9 {
            history.add(&[1, -7, i64::MAX], &order(step, 3, 100));
            history.saturation.has_become_saturated(0.95);
        }
        let text = history.to_json().to_string();
        let written: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(MaskHistory::from_json(&written, 100), Ok(history.clone()));
        assert!(MaskHistory::from_json(&written, 64).unwrap_err().contains("100 positions"));
        for (place, value) in [("coverage", serde_json::json!([2.0])), ("last_masks", serde_json::json!({"1": "xyz"}))]
        {
            let mut broken = written.clone();
            broken[place] = value;
            assert!(MaskHistory::from_json(&broken, 1).is_err() && MaskHistory::from_json(&broken, 100).is_err());
        }
        let refused = |value: serde_json::Value| MaskHistory::from_json(&value, 70).unwrap_err();
        let with = |coverage: &[f64], mask: &str| {
            refused(serde_json::json!({ "coverage": coverage, "saturated_steps": 0, "last_masks": { "4": mask } }))
        };
        let whole = "00000000000000000000000000000040";
        assert_eq!(with(&[0.5; 70], whole), format!("no mask of 70 patches for sample 4: {whole:?}"), "bit 70 of 70");
        assert_eq!(with(&[], &whole.replace('4', "2")), "coverage has 0 positions, not 70");
        assert!(with(&[0.5; 70], &"7".repeat(9000)).len() < 120);
        assert!(refused(serde_json::json!(3)).contains("an object with coverage, saturated_steps and last_masks"));
    }
}
