//! The declared topology of the pipeline: stages with their workers, edges with their capacities.
//! All ports come from it.

use std::fmt;

use crate::flow::ports::{FanInReceiver, FanInSender, OrderedEdge, Payload};
use crate::flow::ports::{fan_in_edge, num_channels, ordered_edge};
use crate::flow::stage_name::{EdgeId, StageName};

/// A stage and how many workers run it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageDecl {
    /// Which stage.
    pub name: StageName,
    /// Workers, each with its own ports. At least one.
    pub num_workers: usize,
}

/// An edge between two stages, whose items travel by sequence number over a matrix of channels, or a fan-in, whose
/// items travel as they come over one channel to the one worker of the receiving stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EdgeDecl {
    /// Which edge.
    pub id: EdgeId,
    /// Items that each channel holds. 0 hands over directly.
    pub capacity: usize,
    /// Estimated bytes of one item.
    pub payload_bytes: usize,
    /// Bytes that the few items that are much larger can take besides.
    pub large_bytes: usize,
}

/// What is wrong with a declaration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// A stage without a worker.
    #[error("stage needs at least 1 worker: {0}")]
    NoWorkers(StageName),
    /// A stage declared twice.
    #[error("stage is declared twice: {0}")]
    DuplicateStage(StageName),
    /// An edge between the same stages twice.
    #[error("edge is declared twice: {0}")]
    DuplicateEdge(EdgeId),
    /// An edge whose end is not declared.
    #[error("edge ends at a stage that is not declared: {0}")]
    UnknownStage(EdgeId),
    /// An edge that does not go forward: queues must have no cycle.
    #[error("edge does not go from an earlier stage to a later one: {0}")]
    Backward(EdgeId),
    /// A fan-in to several workers.
    #[error("edge without order needs exactly 1 receiving worker: {0}")]
    FanInWorkers(EdgeId),
    /// No such edge.
    #[error("edge is not declared: {0}")]
    UnknownEdge(EdgeId),
}

/// The memory that one edge can hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeBound {
    /// Which edge.
    pub id: EdgeId,
    /// Items over all channels.
    pub queue_cap: usize,
    /// Items that blocked senders hold besides.
    pub num_in_hand: usize,
    /// Estimated bytes of one item.
    pub payload_bytes: usize,
    /// Bytes that the few items that are much larger can take besides.
    pub large_bytes: usize,
}

impl EdgeBound {
    /// Bytes of a full edge, with one item in the hand of each blocked sender, and of its large items.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        ((self.queue_cap + self.num_in_hand) * self.payload_bytes).saturating_add(self.large_bytes)
    }
}

impl fmt::Display for EdgeBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<20} ({} queued + {} in hand) x {} + {} = {}",
            self.id.to_string(),
            self.queue_cap,
            self.num_in_hand,
            mebibytes(self.payload_bytes),
            mebibytes(self.large_bytes),
            mebibytes(self.bytes())
        )
    }
}

fn mebibytes(bytes: usize) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}

/// A checked declaration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    stages: Vec<StageDecl>,
    edges: Vec<EdgeDecl>,
}

impl Topology {
    /// Checks a declaration: every edge goes forward between declared stages with workers, so that
    /// the queues have no cycle.
    ///
    /// # Errors
    /// The first [`TopologyError`].
    pub fn new(stages: Vec<StageDecl>, edges: Vec<EdgeDecl>) -> Result<Self, TopologyError> {
        for (place, stage) in stages.iter().enumerate() {
            if stage.num_workers == 0 {
                return Err(TopologyError::NoWorkers(stage.name));
            }
            if stages[..place].iter().any(|other| other.name == stage.name) {
                return Err(TopologyError::DuplicateStage(stage.name));
            }
        }
        let topology = Self { stages, edges };
        for (place, edge) in topology.edges.iter().enumerate() {
            let EdgeId { from, to } = edge.id;
            if topology.edges[..place].iter().any(|other| other.id == edge.id) {
                return Err(TopologyError::DuplicateEdge(edge.id));
            }
            let known = |name: StageName| topology.stages.iter().any(|stage| stage.name == name);
            if !known(to) || from.is_some_and(|from| !known(from)) {
                return Err(TopologyError::UnknownStage(edge.id));
            }
            if from.is_some_and(|from| from >= to) {
                return Err(TopologyError::Backward(edge.id));
            }
            if from.is_none() && topology.num_workers(to) != 1 {
                return Err(TopologyError::FanInWorkers(edge.id));
            }
        }
        Ok(topology)
    }

    /// The declared stages.
    #[must_use]
    pub fn stages(&self) -> &[StageDecl] {
        &self.stages
    }

    /// The declared edges.
    #[must_use]
    pub fn edges(&self) -> &[EdgeDecl] {
        &self.edges
    }

    /// Workers of a stage; 0 if it is not declared.
    #[must_use]
    pub fn num_workers(&self, name: StageName) -> usize {
        let find = self.stages.iter().find(|stage| stage.name == name);
        find.map_or(0, |stage| stage.num_workers)
    }

    /// Makes the channels of an ordered edge.
    ///
    /// # Errors
    /// [`TopologyError::UnknownEdge`] if no such edge was declared.
    pub fn ordered<T: Payload>(&self, from: StageName, to: StageName) -> Result<OrderedEdge<T>, TopologyError> {
        let edge = self.edge(EdgeId::between(from, to))?;
        Ok(ordered_edge(edge.id, self.num_workers(from), self.num_workers(to), edge.capacity))
    }

    /// Makes the channel of an edge from every other stage to `to`.
    ///
    /// # Errors
    /// [`TopologyError::UnknownEdge`] if no such edge was declared.
    pub fn fan_in<T: Payload>(&self, to: StageName) -> Result<(FanInSender<T>, FanInReceiver<T>), TopologyError> {
        let edge = self.edge(EdgeId::fan_in(to))?;
        Ok(fan_in_edge(edge.id, self.num_senders(edge), edge.capacity))
    }

    /// The memory bound of every edge.
    #[must_use]
    pub fn bounds(&self) -> Vec<EdgeBound> {
        let bound = |edge: &EdgeDecl| EdgeBound {
            id: edge.id,
            queue_cap: match edge.id.from {
                Some(from) => num_channels(self.num_workers(from), self.num_workers(edge.id.to)) * edge.capacity,
                None => edge.capacity,
            },
            num_in_hand: self.num_senders(edge),
            payload_bytes: edge.payload_bytes,
            large_bytes: edge.large_bytes,
        };
        self.edges.iter().map(bound).collect()
    }

    /// Bytes that all edges together can hold.
    #[must_use]
    pub fn bound_bytes(&self) -> usize {
        self.bounds().iter().map(EdgeBound::bytes).sum()
    }

    fn num_senders(&self, edge: &EdgeDecl) -> usize {
        match edge.id.from {
            Some(from) => self.num_workers(from),
            None => {
                let others = self.stages.iter().filter(|stage| stage.name != edge.id.to);
                others.map(|stage| stage.num_workers).sum()
            }
        }
    }

    fn edge(&self, id: EdgeId) -> Result<&EdgeDecl, TopologyError> {
        self.edges.iter().find(|edge| edge.id == id).ok_or(TopologyError::UnknownEdge(id))
    }
}

impl fmt::Display for Topology {
    /// One line for each edge and one for their sum: the memory bound of the pipeline.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for bound in self.bounds() {
            writeln!(f, "{bound}")?;
        }
        write!(f, "{:<20} {}", "all edges", mebibytes(self.bound_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(name: StageName, num_workers: usize) -> StageDecl {
        StageDecl { name, num_workers }
    }

    fn edge(from: StageName, to: StageName) -> EdgeDecl {
        EdgeDecl { id: EdgeId::between(from, to), capacity: 2, payload_bytes: 1 << 20, large_bytes: 0 }
    }

    #[test]
    fn wrong_declarations_are_refused_by_name() {
        use StageName::{Encoder, Load, Log, Score};
        let two = || vec![stage(Load, 1), stage(Score, 2)];
        let refused = |stages, edges| Topology::new(stages, edges).expect_err("refused").to_string();
        assert_eq!(refused(vec![stage(Load, 0)], vec![]), "stage needs at least 1 worker: load");
        assert_eq!(refused(vec![stage(Load, 1), stage(Load, 2)], vec![]), "stage is declared twice: load");
        assert!(refused(two(), vec![edge(Load, Encoder)]).ends_with("load->encoder"));
        assert!(refused(two(), vec![edge(Score, Load)]).ends_with("score->load"));
        assert!(refused(two(), vec![edge(Load, Score), edge(Load, Score)]).contains("twice"));
        let fan_in = EdgeDecl { id: EdgeId::fan_in(Log), ..edge(Load, Log) };
        assert!(refused(vec![stage(Load, 1), stage(Log, 2)], vec![fan_in]).ends_with("all->log"));
    }

    #[test]
    fn the_bound_counts_every_used_channel_and_every_blocked_sender() {
        use StageName::{Load, Score};
        let stages = vec![stage(Load, 2), stage(Score, 3)];
        let topology = Topology::new(stages, vec![edge(Load, Score)]).expect("valid");
        // 2 and 3 are coprime: all 6 channels are in use.
        assert_eq!(topology.bound_bytes(), (6 * 2 + 2) << 20);
        assert!(topology.to_string().contains("load->score"));
        let stages = vec![stage(Load, 2), stage(Score, 4)];
        let topology = Topology::new(stages, vec![edge(Load, Score)]).expect("valid");
        // Only pairs of the same parity meet.
        assert_eq!(topology.bound_bytes(), (4 * 2 + 2) << 20);
    }
}
