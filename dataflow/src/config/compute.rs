//! `[compute]`: where the levels compute, and how precisely.

use mlomae_model::Precision;
use mlomae_model::lane::DeviceChoice;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The device of the levels and its arithmetic.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ComputeConfig {
    /// Device that all levels compute on.
    pub device: DeviceChoice,
    /// What the products of encoder and decoder are computed in. `bf16` rounds their factors, and
    /// nothing else: sums, norms, losses, masks and weights stay as they are. With it,
    /// `method.hypergradient` is `tangent` where it is not given.
    pub precision: Precision,
}
