//! The names of stages, of their workers and of the edges between them, as the configuration, the logs and the
//! messages have them.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One of the roles of the pipeline, ordered from the source to the sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StageName {
    /// Reads, augments and normalises images.
    Load,
    /// Scores the patches of an image with the masking network.
    Score,
    /// Level 1: trains the masked autoencoder.
    Encoder,
    /// Level 2 and the downstream gradient of level 3.
    Evaluator,
    /// Level 3: updates the masking network.
    Policy,
    /// Writes logs and checkpoints.
    Log,
}

impl StageName {
    /// Every stage, from the source to the sink.
    pub const ALL: [Self; 6] = [Self::Load, Self::Score, Self::Encoder, Self::Evaluator, Self::Policy, Self::Log];

    /// The name as written in the configuration and the logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Score => "score",
            Self::Encoder => "encoder",
            Self::Evaluator => "evaluator",
            Self::Policy => "policy",
            Self::Log => "log",
        }
    }

    /// Whether a worker of this stage may be run again after a panic. The stages that hold
    /// weights may not: what a panic left of them cannot be trusted.
    #[must_use]
    pub const fn is_restartable(self) -> bool {
        matches!(self, Self::Load | Self::Score | Self::Log)
    }
}

impl fmt::Display for StageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for StageName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|name| name.as_str() == text)
            .ok_or_else(|| format!("not a stage (load, score, encoder, evaluator, policy, log): {text}"))
    }
}

/// Which worker of which stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId {
    /// The stage.
    pub stage: StageName,
    /// The worker's number within its stage, from 0.
    pub instance: usize,
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.stage, self.instance)
    }
}

/// Which edge of the topology.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EdgeId {
    /// The sending stage; none for a fan-in from every other stage.
    pub from: Option<StageName>,
    /// The receiving stage.
    pub to: StageName,
}

impl EdgeId {
    /// The edge from one stage to another, over which items travel in order.
    #[must_use]
    pub const fn between(from: StageName, to: StageName) -> Self {
        Self { from: Some(from), to }
    }

    /// The edge from every other stage to `to`, over which items travel as they come.
    #[must_use]
    pub const fn fan_in(to: StageName) -> Self {
        Self { from: None, to }
    }
}

impl fmt::Display for EdgeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}->{}", self.from.map_or("all", StageName::as_str), self.to)
    }
}
