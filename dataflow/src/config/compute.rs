//! `[compute]`: where the levels compute.

use mlomae_model::lane::DeviceChoice;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The device of the levels.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ComputeConfig {
    /// Device that all levels compute on.
    pub device: DeviceChoice,
}
