//! The declared topology of the pipeline: stages with their workers, edges with their capacities.
//! All ports come from it.

use std::fmt;

use crate::flow::ports::{FanInReceiver, FanInSender, OrderedEdge, Payload};
use crate::flow::ports::{fan_in_edge, num_channels, ordered_edge};
use crate::flow::stage_name::StageName;

/// A stage and how many workers run it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageDecl {
    /// Which stage.
    pub name: StageName,
    /// Workers, each with its own ports. At least one.
    pub num_workers: usize,
}

/// How the items of an edge are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EdgeKind {
    /// By sequence number, over a matrix of channels.
    Ordered,
    /// As they come, over one channel to the one worker of the receiving stage.
    FanIn,
}

/// An edge between two stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EdgeDecl {
    /// The sending stage; none for a fan-in from every other stage.
    pub from: Option<StageName>,
    /// The receiving stage.
    pub to: StageName,
    /// Items that each channel holds. 0 hands over directly.
    pub capacity: usize,
    /// Estimated bytes of one item.
    pub payload_bytes: usize,
    /// Bytes that the few items that are much larger can take besides.
    pub large_bytes: usize,
    /// How the items are joined.
    pub kind: EdgeKind,
}

impl EdgeDecl {
    /// The edge's name, `from->to`.
    #[must_use]
    pub fn name(&self) -> String {
        match self.from {
            Some(from) => format!("{from}->{}", self.to),
            None => format!("all->{}", self.to),
        }
    }
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
    DuplicateEdge(String),
    /// An edge whose end is not declared.
    #[error("edge ends at a stage that is not declared: {0}")]
    UnknownStage(String),
    /// An edge that does not go forward: queues must have no cycle.
    #[error("edge does not go from an earlier stage to a later one: {0}")]
    Backward(String),
    /// A fan-in to several workers.
    #[error("edge without order needs exactly 1 receiving worker: {0}")]
    FanInWorkers(String),
    /// No such edge.
    #[error("edge is not declared: {0}")]
    UnknownEdge(String),
}

/// The memory that one edge can hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeBound {
    /// `from->to`.
    pub name: String,
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
            self.name,
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
            let twice = |other: &EdgeDecl| (other.from, other.to) == (edge.from, edge.to);
            if topology.edges[..place].iter().any(twice) {
                return Err(TopologyError::DuplicateEdge(edge.name()));
            }
            let known = |name: StageName| topology.stages.iter().any(|stage| stage.name == name);
            if !known(edge.to) || edge.from.is_some_and(|from| !known(from)) {
                return Err(TopologyError::UnknownStage(edge.name()));
            }
            if edge.from.is_some_and(|from| from >= edge.to) {
                return Err(TopologyError::Backward(edge.name()));
            }
            if edge.kind == EdgeKind::FanIn && topology.num_workers(edge.to) != 1 {
                return Err(TopologyError::FanInWorkers(edge.name()));
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
        let edge = self.edge(Some(from), to, EdgeKind::Ordered)?;
        Ok(ordered_edge(&edge.name(), self.num_workers(from), self.num_workers(to), edge.capacity))
    }

    /// Makes the channel of an edge from every other stage to `to`.
    ///
    /// # Errors
    /// [`TopologyError::UnknownEdge`] if no such edge was declared.
    pub fn fan_in<T: Payload>(&self, to: StageName) -> Result<(FanInSender<T>, FanInReceiver<T>), TopologyError> {
        let edge = self.edge(None, to, EdgeKind::FanIn)?;
        Ok(fan_in_edge(&edge.name(), self.num_senders(edge), edge.capacity))
    }

    /// The memory bound of every edge.
    #[must_use]
    pub fn bounds(&self) -> Vec<EdgeBound> {
        let bound = |edge: &EdgeDecl| EdgeBound {
            name: edge.name(),
            queue_cap: match edge.kind {
                EdgeKind::Ordered => num_channels(self.num_senders(edge), self.num_workers(edge.to)) * edge.capacity,
                EdgeKind::FanIn => edge.capacity,
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
        match edge.from {
            Some(from) => self.num_workers(from),
            None => {
                let others = self.stages.iter().filter(|stage| stage.name != edge.to);
                others.map(|stage| stage.num_workers).sum()
            }
        }
    }

    fn edge(&self, from: Option<StageName>, to: StageName, kind: EdgeKind) -> Result<&EdgeDecl, TopologyError> {
        let wanted = |edge: &&EdgeDecl| edge.from == from && edge.to == to && edge.kind == kind;
        self.edges.iter().find(wanted).ok_or_else(|| {
            let from = from.map_or("all", StageName::as_str);
            TopologyError::UnknownEdge(format!("{from}->{to}"))
        })
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
        EdgeDecl { from: Some(from), to, capacity: 2, payload_bytes: 1 << 20, large_bytes: 0, kind: EdgeKind::Ordered }
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
        let fan_in = EdgeDecl { from: None, kind: EdgeKind::FanIn, ..edge(Load, Log) };
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
