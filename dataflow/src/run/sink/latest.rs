//! The newest numbers of a run, for displays.

use std::sync::{Arc, Mutex, PoisonError};

use crate::counts::Step;
use crate::record::{Metric, MetricRow, Moment};

/// The newest numbers of a run, for displays. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct Latest {
    values: Arc<Mutex<LatestValues>>,
}

/// The newest numbers of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LatestValues {
    /// Level-1 steps done.
    pub step: Step,
    /// Epoch of the pretrain role.
    pub epoch: i32,
    /// L_m.
    pub pretrain_loss: Option<f64>,
    /// L_f.
    pub finetune_loss: Option<f64>,
    /// L_v.
    pub validation_loss: Option<f64>,
    /// Area under the ROC curve of the panel's scores as a detector of its objects, where these are known; 0.5 is
    /// chance.
    pub object_score_auc: Option<f64>,
    /// Share of the panel's object patches that are masked, where they are known.
    pub object_mask_share: Option<f64>,
    /// Share of the panel's other patches that are masked, where the objects are known.
    pub background_mask_share: Option<f64>,
    /// Level-1 images a second.
    pub images_per_second: Option<f64>,
    /// Outer iterations by which the policy in use was behind.
    pub policy_lag: Option<f64>,
    /// Checkpoints written by this process.
    pub num_checkpoints: u64,
    /// Rows written by this process.
    pub num_rows: u64,
}

impl Latest {
    /// The numbers of a run that starts after `step` level-1 steps, in `epoch`.
    #[must_use]
    pub fn starting(step: Step, epoch: i32) -> Self {
        let values = LatestValues { step, epoch, ..LatestValues::default() };
        Self { values: Arc::new(Mutex::new(values)) }
    }

    /// The numbers now.
    #[must_use]
    pub fn get(&self) -> LatestValues {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut LatestValues)) {
        change(&mut self.values.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl LatestValues {
    /// Updates the number that a row of `metrics` holds.
    pub(super) fn note(&mut self, moment: Moment, row: &MetricRow) {
        (self.epoch, self.step) = (self.epoch.max(moment.epoch), self.step.max(moment.step));
        let place = match Metric::of(moment.level, &row.name) {
            Some(Metric::PretrainLoss) => &mut self.pretrain_loss,
            Some(Metric::FinetuneLoss) => &mut self.finetune_loss,
            Some(Metric::ValidationLoss) => &mut self.validation_loss,
            Some(Metric::ObjectScoreAuc) => &mut self.object_score_auc,
            Some(Metric::ObjectMaskShare) => &mut self.object_mask_share,
            Some(Metric::BackgroundMaskShare) => &mut self.background_mask_share,
            Some(Metric::ImagesPerSecond) => &mut self.images_per_second,
            Some(Metric::PolicyLag) => &mut self.policy_lag,
            _ => return,
        };
        *place = Some(row.value);
    }
}
