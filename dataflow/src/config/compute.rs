//! `[compute]`: how precisely the levels compute.

use mlomae_model::Precision;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The arithmetic of the levels. The device is the key `engine`, which was `compute.device`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ComputeConfig {
    /// What the products of encoder and decoder are computed in. `bf16` rounds their factors, and
    /// nothing else: sums, norms, losses, masks and weights stay as they are. With it,
    /// `method.hypergradient` is `tangent` where it is not given.
    pub precision: Precision,
}
