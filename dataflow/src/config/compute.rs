//! `[compute]`: how the levels compute.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the levels compute. The device is the key `engine`, which was `compute.device`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ComputeConfig {}
