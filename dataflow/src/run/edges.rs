//! The edges of the pipeline between the stages that compute: the one list that the topology, the simulation and the
//! figures of a scenario read.

use crate::config::ActorsConfig;
use crate::flow::stage_name::EdgeId;
use crate::flow::stage_name::StageName::{Encoder, Evaluator, Load, Policy, Score};

/// Batches of images for level 1.
pub const LOAD_SCORE: EdgeId = EdgeId::between(Load, Score);
/// Labelled pairs of batches for levels 2 and 3.
pub const LOAD_EVALUATOR: EdgeId = EdgeId::between(Load, Evaluator);
/// Batches with their masks.
pub const SCORE_ENCODER: EdgeId = EdgeId::between(Score, Encoder);
/// Snapshots of θ with the last scored batch.
pub const ENCODER_EVALUATOR: EdgeId = EdgeId::between(Encoder, Evaluator);
/// Directions along which φ's hypergradient is taken.
pub const EVALUATOR_POLICY: EdgeId = EdgeId::between(Evaluator, Policy);

/// All of them.
pub const EDGES: [EdgeId; 5] = [LOAD_SCORE, LOAD_EVALUATOR, SCORE_ENCODER, ENCODER_EVALUATOR, EVALUATOR_POLICY];

/// Items that each channel of `edge` holds: the receiving stage's `queue_cap`, but the loader's own for labelled pairs,
/// so that the two edges into the evaluator can be set apart.
#[must_use]
pub fn capacity(edge: EdgeId, actors: &ActorsConfig) -> usize {
    let stage = if edge == LOAD_EVALUATOR { Load } else { edge.to };
    actors.stage(stage).queue_cap
}
